"""Progress a person can watch: a bar in a terminal, a line now and then elsewhere, silence when asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress_bar(description: str, *, quiet: bool = False, share: bool = False) -> Iterator[Progress]:
    """A function to report progress with, shown on the standard error stream while the block runs.

    Args:
        quiet: show nothing.
        share: show per cent instead of counts.
    """
    if quiet:
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _terminal_bar(description, share) as report:
            yield report
    else:
        yield _line_reporter(description, share)


@contextmanager
def _terminal_bar(description: str, share: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    done_of_total = TaskProgressColumn() if share else MofNCompleteColumn()
    columns = (TextColumn("{task.description:<34}"), BarColumn(), done_of_total, TimeElapsedColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _line_reporter(description: str, share: bool) -> Progress:
    began = last = time.monotonic()
    shown = -1

    def report(done: int, total: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if done == shown or (done < total and now - last < _SECONDS_BETWEEN_LINES):
            return
        last, shown = now, done
        how_far = f"{done / max(total, 1):.0%}" if share else f"{done} of {total}"
        print(f"{description}: {how_far} ({now - began:.0f} s)", file=sys.stderr, flush=True)

    return report
