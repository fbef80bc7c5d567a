"""How fast a rater may be asked: requests and tokens per minute, requests in flight, pauses it asks for, and what to do when it is down.

A `Pace` decides and a `Gate` waits; every rater of a run has its own. What holds for all requests to a rater:

- Requests in flight follow additive increase, multiplicative decrease (Chiu and Jain 1989; the window of TCP): halved when the rater says
  "too much" (rate_limit, overload), at most once for all requests that were under way at that moment, and one more after a full window of
  answers.
- Requests and tokens per minute are buckets that fill evenly and hold what a second brings, at least one request.
- A wait that the rater asks for holds back everything that is sent to it.
- After `STREAK` attempts in a row without an answer one request at a time tries, after pauses that double, until there is an answer or the
  patience is at its end.

Turns that continue a conversation go before first turns, and nothing overtakes what is next: a large request is not starved by small ones.
Durations are seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from guerdon.errors import RaterUnreachable, UsageError
from guerdon.records import Cause, Failure, Quote, Reply

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before something is tried again, and the most that doubling it leads to."""
LONGEST_RETRY_AFTER = 300.0
"""A rater that asks to wait longer is not waited for."""
STREAK = 8
"""Attempts in a row without an answer after which one request at a time tries."""
LONG_WAITS = 5
"""Answers in a row that ask for a longer wait than that after which the run stops."""
USELESS = 20
"""Different requests in a row whose reply has no content or cannot be read after which the run stops."""

BUSY: frozenset[Cause] = frozenset({"rate_limit", "overload"})
"""Causes by which a rater says that too much is asked of it."""
SILENT: frozenset[Cause] = BUSY | {"network", "timeout"}
"""Causes that tell nothing about the request: the rater did not look at it, or nobody knows."""
_NO_CONTENT: frozenset[Cause] = frozenset({"unreadable", "empty"})
_USELESS_BECAUSE: dict[Cause, str] = {
    "empty": "had no content",
    "unreadable": "were no answers (a web page, cut-off or foreign JSON)",
    "bad_request": "said that the request is wrong, and none was ever answered (these are asked again with --retry-failed)",
}
_FIRST_OUTPUT = 256.0  # tokens that a reply is expected to have before there was one
_MEMORY = 0.1  # weight of the latest reply in the expected length
_KEEP = "Everything answered so far is kept: the same command goes on from here."

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a rater may be asked at most. Holds for each rater by itself.

    Raises:
        UsageError: if a number is out of its range.
    """

    requests_per_minute: float | None = None
    """None for no limit of ours."""
    tokens_per_minute: float | None = None
    """Tokens of input and output together; None for no limit of ours."""
    timeout: float | None = None
    """Seconds after which a request without an outcome is given up (cause timeout); None to leave it to the provider's own timeout."""
    patience: float = 600.0
    """Seconds without a single answer after which the run stops."""

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is a positive number, got {value}", cure="Leave it out for no limit.")
        if not self.patience >= 0:
            raise UsageError(f"patience is a number of seconds, not negative, got {self.patience}")


class Bucket:
    """Fills evenly with `per_minute` a minute and holds what a second brings, but at least `least`. Can be overdrawn."""

    def __init__(self, per_minute: float, least: float = 1.0) -> None:
        self._rate = per_minute / 60
        self._size = self._level = max(self._rate, least)
        self._seen = float("-inf")

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` may be taken. What is larger than the bucket may be taken when it is full."""
        self._fill(now)
        # The tolerance: rounding must not leave a wait too short for the clock to show.
        missing = min(amount, self._size) - self._level
        return missing / self._rate if missing > 1e-9 * self._size else 0.0

    def take(self, now: float, amount: float) -> None:
        """Takes `amount`, gives back what is negative. The level may fall below zero."""
        self._fill(now)
        self._level = min(self._level - amount, self._size)

    def _fill(self, now: float) -> None:
        if now > self._seen:
            if self._seen > float("-inf"):
                self._level = min(self._level + (now - self._seen) * self._rate, self._size)
            self._seen = now


@dataclass(frozen=True)
class Pass:
    """Leave to send one request."""

    number: int
    began: float
    tokens: float
    """What was taken from the tokens of the minute."""


class Pace:
    """Decides when a rater may be asked next. Knows the time only from its arguments.

    Args:
        limits: what holds for this rater.
        most: requests in flight that are never exceeded, at least 1.
        where: name of the rater, for messages.
    """

    def __init__(self, limits: Limits, most: int, where: str) -> None:
        self.allowed = most
        self.in_flight = 0
        self.down = False
        """Whether the rater seems to be down, so that one request at a time tries."""
        self._limits, self._most, self._where = limits, most, where
        self._requests = Bucket(limits.requests_per_minute) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self._sent = 0
        self._halved_at = 0
        self._answers_of_window = 0
        self._brake = float("-inf")
        self._answered = False
        self._streak = self._long_waits = self._useless = 0
        self._silent_since = 0.0
        self._down_at = 0
        self._probe, self._pause = 0.0, FIRST_PAUSE
        self._expected_output = _FIRST_OUTPUT
        self._expected_input = 0.0

    def expected_tokens(self, quote: Quote | None) -> float:
        """Tokens of a request and its reply, as far as is known before it is sent."""
        if quote is None:
            return self._expected_input + self._expected_output
        return quote.input_tokens + min(self._expected_output, float(quote.output_tokens))

    def wait(self, now: float, tokens: float) -> tuple[float | None, str]:
        """Seconds until a request may be sent (0: now; None: not before something else has ended), and what is waited for: "server",
        "retry-after", "limit", or "" for a place among the requests in flight."""
        if self.down and self.in_flight:
            return None, "server"
        if self.down and now < self._probe:
            return self._probe - now, "server"
        if now < self._brake:
            return self._brake - now, "retry-after"
        if self.in_flight >= self.allowed:
            return None, ""
        wait = max(
            self._requests.wait(now, 1.0) if self._requests else 0.0,
            self._tokens.wait(now, tokens) if self._tokens else 0.0,
        )
        return (wait, "limit") if wait > 0 else (0.0, "")

    def begin(self, now: float, tokens: float) -> Pass:
        """A request goes out."""
        self._sent += 1
        self.in_flight += 1
        self._take(now, 1.0, tokens)
        return Pass(self._sent, now, tokens)

    def free(self) -> None:
        """A place among the requests in flight is given back."""
        self.in_flight -= 1

    def withdraw(self, now: float, leave: Pass) -> None:
        """The request was not sent after all: what it took is given back, its place not yet."""
        self._take(now, -1.0, -leave.tokens)

    def _take(self, now: float, requests: float, tokens: float) -> None:
        if self._requests:
            self._requests.take(now, requests)
        if self._tokens:
            self._tokens.take(now, tokens)

    def learn(self, now: float, leave: Pass, outcome: Reply | Failure, *, first_attempt: bool = True, spread: float = 1.0) -> None:
        """Takes note of what became of a request.

        Args:
            now: the time.
            leave: what `begin` gave for it.
            outcome: what came back.
            first_attempt: False if this request was tried before.
            spread: about 1; pauses of several processes are spread by it.

        Raises:
            RaterUnreachable: if asking on is useless: no answer for longer than the patience, waits that are too long, nothing but replies
                without content.
        """
        self._correct_tokens(now, leave, outcome)
        if isinstance(outcome, Failure):
            self._slow_down(now, leave, outcome, spread)
            if outcome.cause in SILENT:
                self._stay_silent(now, leave, outcome)
                return
        self.note_alive()
        if isinstance(outcome, Failure) and (outcome.cause in _NO_CONTENT or (outcome.cause == "bad_request" and not self._answered)):
            self._count_useless(outcome, first_attempt)
            return
        self.note_answer()
        self._answers_of_window += 1
        if self._answers_of_window >= self.allowed:
            self.allowed, self._answers_of_window = min(self.allowed + 1, self._most), 0

    def note_alive(self) -> None:
        """The rater looked at a request."""
        self.down, self._streak, self._long_waits, self._pause = False, 0, 0, FIRST_PAUSE

    def note_answer(self) -> None:
        """The rater is known to answer: now, or in what lies in the store."""
        self._answered, self._useless = True, 0

    def _correct_tokens(self, now: float, leave: Pass, outcome: Reply | Failure) -> None:
        usage = outcome.usage
        if usage.output_tokens is not None and isinstance(outcome, Reply):
            self._expected_output += _MEMORY * (usage.output_tokens - self._expected_output)
        if usage.input_tokens is not None and isinstance(outcome, Reply):
            self._expected_input = max(self._expected_input, float(usage.input_tokens))
        if usage.input_tokens is not None and usage.output_tokens is not None:
            self._take(now, 0.0, usage.input_tokens + usage.output_tokens - leave.tokens)

    def _slow_down(self, now: float, leave: Pass, failure: Failure, spread: float) -> None:
        if failure.cause in BUSY and leave.number > self._halved_at:
            # What was sent before the window was halved says nothing about the smaller window.
            self.allowed, self._answers_of_window, self._halved_at = max(self.allowed // 2, 1), 0, self._sent
        if failure.retry_after is not None and failure.retry_after <= LONGEST_RETRY_AFTER and failure.cause in SILENT:
            self._brake = max(self._brake, now + failure.retry_after + spread * FIRST_PAUSE)

    def _stay_silent(self, now: float, leave: Pass, failure: Failure) -> None:
        if self._streak == 0:
            self._silent_since = leave.began
        self._streak += 1
        if failure.retry_after is not None and failure.retry_after > LONGEST_RETRY_AFTER:
            self._long_waits += 1
            if self._long_waits >= LONG_WAITS:
                what = f"asks to wait {failure.retry_after / 60:.0f} minutes{_status(failure)}"
                raise RaterUnreachable(what, where=self._where, cure=f"Wait that long. {_KEEP}")
        if not self.down and self._streak >= STREAK:
            self.down, self._down_at, self._probe = True, self._sent, now + self._pause
        elif self.down and leave.number > self._down_at:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._probe = now + self._pause
        if self.down and now - self._silent_since >= self._limits.patience:
            what = f"no answer for {now - self._silent_since:.0f} seconds, the last failure was {failure.cause}{_status(failure)}"
            raise RaterUnreachable(what, where=self._where, cure=f"Check that it is up and reachable. {_KEEP}")

    def _count_useless(self, failure: Failure, first_attempt: bool) -> None:
        self._useless += first_attempt  # a few windows that always fail in this way, tried several times, are no reason to stop
        if self._useless >= (max(USELESS, 2 * self._most) if self._answered else USELESS):
            what = f"the replies to {self._useless} requests in a row {_USELESS_BECAUSE[failure.cause]}{_status(failure)}"
            raise RaterUnreachable(what, where=self._where, cure=f"Check the model's name, its settings and the address. {_KEEP}")


def _status(failure: Failure) -> str:
    return f" (HTTP {failure.status})" if failure.status else ""


@dataclass(eq=False)
class _Waiting:
    """A request that waits at a gate."""

    begun: bool
    order: int
    attempts: int
    tokens: float
    admitted: asyncio.Future[Pass]


class Gate:
    """Lets requests to one rater through when its `Pace` says so.

    Args:
        pace: decides.
        clock: the time in seconds, never going back.
        sleep: waits; may return early (tests): the gate's time then moves to where the wait would have ended.
        changed: called when what is waited for has changed.
    """

    def __init__(self, pace: Pace, clock: Callable[[], float], sleep: Sleep, changed: Callable[[], None]) -> None:
        self.pace = pace
        self.waits_for = ""
        """What the next request waits for, as in `Pace.wait`; "" also if none waits."""
        self._clock, self._sleep, self._changed = clock, sleep, changed
        self._ahead = 0.0
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.Task[None] | None = None
        self._due = 0.0
        self._closed: Callable[[], BaseException] | None = None

    def now(self) -> float:
        """The gate's time."""
        return self._clock() + self._ahead

    async def enter(self, tokens: float, *, begun: bool, order: int, attempts: int = 0, holding: bool = False) -> Pass:
        """Waits until a request may be sent, and takes a place among those in flight. End it with `leave`, or with the next `enter`.

        Args:
            tokens: what it is expected to consume.
            begun: True if its conversation has begun; goes before those that have not.
            order: who goes first among equals: the lowest.
            attempts: how often it was tried; while the rater is down the one that was tried least tries next.
            holding: True if its conversation still has the place of its last request; it is given back.
        """
        if holding:
            self.pace.free()  # and not by `leave`: a conversation that has begun is asked first whether it wants the place
        if self._closed is not None:
            raise self._closed()
        if not self._waiting and self.pace.wait(self.now(), tokens)[0] == 0.0:
            return self.pace.begin(self.now(), tokens)
        waiting = _Waiting(begun, order, attempts, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._admit()
        try:
            return await waiting.admitted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.admitted.done() and not waiting.admitted.cancelled() and waiting.admitted.exception() is None:
                self.pace.withdraw(self.now(), waiting.admitted.result())
                self.leave()
            self._admit()
            raise

    def learn(self, leave: Pass, outcome: Reply | Failure, *, first_attempt: bool, spread: float) -> None:
        """Tells the pace what became of a request that still has its place. Raises RaterUnreachable as `Pace.learn` does."""
        self.pace.learn(self.now(), leave, outcome, first_attempt=first_attempt, spread=spread)
        self._admit()

    def withdraw(self, leave: Pass) -> None:
        """The request was not sent after all: gives its place back, and what it took of the limits."""
        self.pace.withdraw(self.now(), leave)
        self.leave()

    def leave(self) -> None:
        """Gives a place back."""
        self.pace.free()
        self._admit()

    def close(self, reason: Callable[[], BaseException]) -> None:
        """Lets nobody through any more: those who wait get `reason()` raised."""
        self._closed = reason
        for waiting in self._waiting:
            if not waiting.admitted.done():
                waiting.admitted.set_exception(reason())
        self._waiting.clear()
        self._set_timer(None)

    def _admit(self) -> None:
        """Lets through whoever may go, in order, and sees to it that the next is looked at in time."""
        reason, wait = "", None
        while self._waiting:
            first = min(self._waiting, key=self._rank)
            wait, reason = self.pace.wait(self.now(), first.tokens)
            if wait != 0.0:
                break
            self._waiting.remove(first)
            if not first.admitted.done():
                first.admitted.set_result(self.pace.begin(self.now(), first.tokens))
            reason, wait = "", None
        self._set_timer(wait)
        if reason != self.waits_for:
            self.waits_for = reason
            self._changed()

    def _rank(self, waiting: _Waiting) -> tuple[int, bool, int]:
        # Requests that try whether the rater is back take turns, so that none uses up its attempts on an outage.
        return (waiting.attempts if self.pace.down else 0, not waiting.begun, waiting.order)

    def _set_timer(self, wait: float | None) -> None:
        due = None if wait is None else self.now() + wait
        if self._timer is not None and (due is None or abs(due - self._due) > 1e-6):
            self._timer.cancel()
            self._timer = None
        if due is not None and wait is not None and self._timer is None:
            self._due = due
            self._timer = asyncio.get_running_loop().create_task(self._look_later(wait))

    async def _look_later(self, wait: float) -> None:
        due = self._due
        await self._sleep(wait)
        self._ahead += max(due - self.now(), 0.0)
        self._timer = None
        self._admit()
