"""A run of asking that a person can watch, and a program too: done, left, per second, dollars, failures by cause, time to go.

Writes to the standard error stream (a bar in a terminal, a line now and then elsewhere) and, if asked to, JSON lines to a file: one object
a line with `time` (UTC), `event` ("start", "progress", "end" or "stopped") and what is known at that moment.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor, log10
from pathlib import Path
from typing import Any

from guerdon.asking.progress import Progress
from guerdon.errors import GuerdonError, WriteFailed

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_RECORDS = 1.0
_BAR = 10
"""Characters of the bar."""
_RATE_OVER = 30.0
"""Seconds that the rate is an average over: long enough to be steady, short enough to follow a vendor that slows down."""


@dataclass(frozen=True)
class Moment:
    """Where a run stands at one moment."""

    state: Progress
    total: int
    """Conversations to carry out."""
    elapsed: float
    """Seconds since the beginning."""
    per_second: float
    """Conversations ended per second of late."""

    @property
    def left(self) -> int:
        return max(self.total - self.state.done, 0)

    @property
    def seconds_to_go(self) -> float | None:
        """None if nothing has ended of late."""
        return self.left / self.per_second if self.per_second > 0 else (0.0 if self.left == 0 else None)

    @property
    def projected_dollars(self) -> float | None:
        """What this run will have cost in the end if the rest costs like what is done; None before anything has ended."""
        return self.state.dollars * self.total / self.state.done if self.state.done else None

    def to_record(self) -> dict[str, Any]:
        """All of it as JSON-ready data."""
        state = self.state
        return {
            "done": state.done, "left": self.left, "total": self.total, "in_flight": state.in_flight, "allowed": state.allowed,
            "asked": state.asked, "found": state.found, "failures": dict(state.failures), "waiting": state.waiting,
            "per_second": round(self.per_second, 4), "elapsed": round(self.elapsed, 3),
            "seconds_to_go": None if self.seconds_to_go is None else round(self.seconds_to_go, 1),
            "input_tokens": state.input_tokens, "output_tokens": state.output_tokens,
            "thinking_tokens": state.thinking_tokens, "cached_tokens": state.cached_tokens,
            "dollars": state.dollars, "charged": state.charged, "reserved": state.reserved,
            "projected_dollars": self.projected_dollars, "price_unknown": state.price_unknown,
        }  # fmt: skip

    @property
    def text(self) -> str:
        """The same for a person, on one line."""
        state = self.state
        parts = [f"{self.per_second:.3g}/s" if self.per_second else ""]
        if state.asked:
            parts.append(dollars_text(self))
        parts += [f"{count} {cause.replace('_', ' ')}" for cause, count in sorted(state.failures.items())]
        parts.append(f"{duration(self.seconds_to_go)} to go" if self.left and self.seconds_to_go is not None else "")
        if state.waiting == "stopping":
            parts.append(f"stopping when {state.in_flight} in flight are answered; Ctrl-C again does not wait")
        elif state.waiting:
            parts.append(f"waiting: {_WAITING.get(state.waiting, state.waiting)}")
        return ", ".join(filter(None, parts))


_WAITING = {
    "limit": "the limit per minute",
    "retry-after": "the vendor asked for a pause",
    "server": "the server does not answer",
    "money": "money reserved by requests in flight",
    "vendor": "the vendor's queue",
    "others": "another process",
}
_LONG = frozenset({"server", "vendor", "others", "stopping"})
"""What may be waited for so long that a person should know at once."""


def dollars_text(moment: Moment) -> str:
    """What was spent and what it will be in the end: "$0.12 of about $1.40"."""
    state, projected = moment.state, moment.projected_dollars
    if state.price_unknown and not state.dollars:
        return "no price known"
    spent = f"{money(state.dollars)}" + ("+" if state.price_unknown else "")
    return spent if projected is None or not moment.left else f"{spent} of about {money(projected)}"


def money(dollars: float) -> str:
    """Dollars for a person, in cents, or with two digits that tell something if there is less: "$1.40", "$0.0012"."""
    if dollars == 0 or dollars >= 0.1:
        return f"${dollars:,.2f}"
    return f"${dollars:.{1 - floor(log10(dollars))}f}" if dollars >= 1e-6 else "<$0.000001"


def duration(seconds: float | None) -> str:
    """Seconds for a person: "42 s", "3 min", "2 h 05 min"."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Watch:
    """Follows one run. Build with `watching`."""

    def __init__(self, total: int, show: Callable[[Moment], None], log: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._total, self._show, self._log = total, show, log
        self._began = self._logged = time.monotonic()
        self._ended: deque[tuple[float, int]] = deque([(self._began, 0)])
        self.latest = Progress()

    def __call__(self, state: Progress) -> None:
        """Takes note of where the run stands."""
        self.latest = state
        now = time.monotonic()
        if state.done != self._ended[-1][1]:
            self._ended.append((now, state.done))
        while len(self._ended) > 2 and now - self._ended[1][0] > _RATE_OVER:
            self._ended.popleft()
        moment = self.moment(now)
        self._show(moment)
        if now - self._logged >= _SECONDS_BETWEEN_RECORDS:
            self._logged = now
            self._log("progress", moment.to_record())

    def moment(self, now: float | None = None) -> Moment:
        """Where the run stands now."""
        now = time.monotonic() if now is None else now
        since, count = self._ended[0]
        rate = (self.latest.done - count) / (now - since) if now > since else 0.0
        return Moment(self.latest, self._total, now - self._began, rate)


@contextmanager
def watching(
    description: str,
    total: int,
    *,
    quiet: bool = False,
    note: str = "",
    log: Path | None = None,
    begin: Mapping[str, Any] | None = None,
) -> Iterator[Watch]:
    """A `Watch` to be called with the progress of `ask`.

    Args:
        description: what is being done.
        total: conversations to carry out.
        quiet: show nothing.
        note: shown before anything is done.
        log: file that JSON lines are added to.
        begin: what the line "start" says.

    Raises:
        WriteFailed: if the log cannot be written.
    """
    with ExitStack() as stack:
        write = stack.enter_context(_log_writer(log))
        if note and not quiet:
            print(note, file=sys.stderr, flush=True)
        show = stack.enter_context(_display(description, total, quiet))
        watch = Watch(total, show, write)
        write("start", {"total": total, **(begin or {})})
        try:
            yield watch
        except BaseException as error:
            reason = error.what if isinstance(error, GuerdonError) else type(error).__name__
            write("stopped", {**watch.moment().to_record(), "reason": reason})
            raise
        write("end", watch.moment().to_record())


@contextmanager
def _log_writer(path: Path | None) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    if path is None:
        yield lambda _event, _content: None
        return
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab", buffering=0)  # what a buffer still held would fail a second time, when the file is closed
    with file:

        def write(event: str, content: Mapping[str, Any]) -> None:
            record = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **content}
            with _explained(path):
                line = memoryview(json.dumps(record).encode() + b"\n")
                while line:
                    line = line[file.write(line) :]

        yield write


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"the log cannot be written: {error.strerror or type(error).__name__}"
        raise WriteFailed(what, where=str(path), cure="Free some space, or choose another file.") from error


@contextmanager
def _display(description: str, total: int, quiet: bool) -> Iterator[Callable[[Moment], None]]:
    if quiet:
        yield lambda _moment: None
    elif sys.stderr.isatty():
        with _bar(description, total) as show:
            yield show
    else:
        yield _lines(description)


@contextmanager
def _bar(description: str, total: int) -> Iterator[Callable[[Moment], None]]:
    """A line with the description, and below it all that is known, over as many lines as it takes in a narrow terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    began = time.monotonic()
    latest = Moment(Progress(), total, 0.0, 0.0)

    def show(moment: Moment) -> None:
        nonlocal latest
        latest = moment

    def shown() -> Text:
        done = latest.state.done
        filled = _BAR * min(done, total) // total if total else _BAR
        counted = f"{done} of {total} ({duration(time.monotonic() - began)})"
        line = ", ".join(filter(None, [f"{'#' * filled}{'.' * (_BAR - filled)} {counted}", latest.text]))
        return Text(f"{description}\n{line}", overflow="fold")

    with Live(console=Console(stderr=True, highlight=False), get_renderable=shown, vertical_overflow="visible"):
        yield show


def _lines(description: str) -> Callable[[Moment], None]:
    last = time.monotonic()
    shown = -1
    waiting = ""

    def show(moment: Moment) -> None:
        nonlocal last, shown, waiting
        now = time.monotonic()
        done = moment.state.done
        waits_long = moment.state.waiting in _LONG and moment.state.waiting != waiting
        if not waits_long and (done == shown or (moment.left and now - last < _SECONDS_BETWEEN_LINES)):
            return
        last, shown, waiting = now, done, moment.state.waiting or waiting
        print(f"{description}: {done} of {moment.total} ({duration(moment.elapsed)}) {moment.text}", file=sys.stderr, flush=True)

    return show
