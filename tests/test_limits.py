"""How fast a rater is asked: limits per minute, requests in flight, pauses and outages, all in a time of the test's own."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count, pairwise
from typing import Any, TypeVar

import pytest

from guerdon.asking.limits import STREAK, USELESS, Bucket, Gate, Limits, Pace, Pass
from guerdon.errors import RaterUnreachable, UsageError
from guerdon.records import Cause, Failure, Quote, Reply, Usage

pytestmark = pytest.mark.anyio
Result = TypeVar("Result")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class VirtualTime:
    """A clock that stands still while anybody has something to do, then jumps to the end of the next wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), future))
        await future

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(12):
                await asyncio.sleep(0)
            while self._sleepers and self._sleepers[0][2].done():
                heapq.heappop(self._sleepers)
            if self._sleepers and not task.done():
                self.now, _, future = heapq.heappop(self._sleepers)
                future.set_result(None)
        return await task


Outcome = Reply | Failure


class Rater:
    """A rater behind a gate. Every request takes `seconds`; notes when each arrived."""

    def __init__(self, limits: Limits | None = None, most: int = 8, *, seconds: float = 1.0, answer: Callable[[float], Outcome]) -> None:
        self.time = VirtualTime()
        self.pace = Pace(limits or Limits(), most, "fake:model")
        self.reasons: list[str] = []
        self.gate = Gate(self.pace, self.time, self.time.sleep, lambda: self.reasons.append(self.gate.waits_for))
        self.arrived: list[float] = []
        self.tried: dict[int, int] = {}
        self.most = most
        self.in_flight = self.most_in_flight = 0
        self._seconds, self._answer = seconds, answer

    async def ask(self, quote: Quote | None = None, *, begun: bool = False, order: int = 0, attempts: int = 0) -> Outcome:
        leave = await self.gate.enter(self.pace.expected_tokens(quote), begun=begun, order=order, attempts=attempts)
        self.arrived.append(self.time.now)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await self.time.sleep(self._seconds)
        self.in_flight -= 1
        outcome = self._answer(self.arrived[-1])
        try:
            self.gate.learn(leave, outcome, first_attempt=attempts == 0, spread=1.0)
        finally:
            self.gate.leave()
        return outcome

    async def ask_all(self, number: int, quote: Quote | None = None) -> None:
        """Like a run, with more conversations than may be in flight: what fails is tried again; the first error ends it."""
        orders = iter(range(number))

        async def converse() -> None:
            for order in orders:
                attempts = 0
                while isinstance(await self.ask(quote, order=order, begun=attempts > 0, attempts=attempts), Failure):
                    attempts += 1
                    self.tried[order] = attempts

        tasks = [asyncio.ensure_future(converse()) for _ in range(2 * self.most)]
        try:
            await self.time.run(_gather(tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _gather(tasks: list[asyncio.Future[None]]) -> None:
    await asyncio.gather(*tasks)


def reply(_time: float = 0.0, *, tokens: tuple[int, int] | None = None) -> Reply:
    return Reply("fine", usage=Usage() if tokens is None else Usage(*tokens))


def failing(cause: Cause, retry_after: float | None = None) -> Callable[[float], Failure]:
    return lambda _time: Failure(cause, final=False, retry_after=retry_after)


def most_within(times: list[float], seconds: float) -> int:
    return max(sum(begin <= time < begin + seconds for time in times) for begin in times)


# --- limits per minute ---


@pytest.mark.parametrize(
    "wrong", [{"requests_per_minute": 0}, {"tokens_per_minute": -1}, {"timeout": float("nan")}, {"timeout": float("inf")}, {"patience": -1}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_bucket_fills_evenly_and_can_be_overdrawn() -> None:
    bucket = Bucket(120)  # two a second
    assert bucket.wait(0.0, 1) == 0.0
    bucket.take(0.0, 2)
    assert bucket.wait(0.0, 1) == pytest.approx(0.5)
    assert bucket.wait(0.25, 1) == pytest.approx(0.25)
    bucket.take(0.25, 4.5)  # larger than it holds
    assert bucket.wait(0.25, 2) == pytest.approx(3.0)
    assert bucket.wait(0.25, 1000) == pytest.approx(3.0)  # what never fits goes when it is full
    assert bucket.wait(100.0, 2) == 0.0
    bucket.take(100.0, -50)  # giving back fills it no further than to the brim
    bucket.take(100.0, 2)
    assert bucket.wait(100.0, 1) == pytest.approx(0.5)


@pytest.mark.parametrize("per_minute", [7, 60, 600])
async def test_requests_per_minute_are_kept(per_minute: int) -> None:
    rater = Rater(Limits(requests_per_minute=per_minute), 64, seconds=0.5, answer=reply)
    await rater.ask_all(2 * per_minute)
    burst = max(1, per_minute // 60)
    assert most_within(rater.arrived, 60) <= per_minute + burst
    assert rater.arrived[-1] == pytest.approx((2 * per_minute - burst) / per_minute * 60, rel=0.01)  # and no slower than allowed
    assert rater.reasons[0] == "limit"


async def test_tokens_per_minute_are_kept_with_what_replies_really_use() -> None:
    rater = Rater(Limits(tokens_per_minute=60_000), 64, seconds=0.5, answer=lambda _time: reply(tokens=(900, 100)))
    await rater.ask_all(200, Quote(1000, 8192, None))  # the quote is the most; 1000 tokens are used
    steady = [time for time in rater.arrived if time > 30]
    assert most_within(steady, 60) == pytest.approx(60, abs=3)
    assert most_within(rater.arrived, 60) <= 66


async def test_without_a_quote_the_length_of_requests_is_learned() -> None:
    rater = Rater(Limits(tokens_per_minute=60_000), 4, seconds=0.5, answer=lambda _time: reply(tokens=(900, 100)))
    await rater.ask_all(150)
    assert most_within([time for time in rater.arrived if time > 30], 60) == pytest.approx(60, abs=5)


async def test_a_request_larger_than_the_limit_is_sent_all_the_same() -> None:
    rater = Rater(Limits(tokens_per_minute=600), 4, answer=lambda _time: reply(tokens=(1200, 0)))
    await rater.ask_all(3, Quote(1200, 0, None))
    assert rater.arrived == pytest.approx([0, 120, 240], abs=1.5)


# --- requests in flight ---


def attempt(pace: Pace, now: float = 0.0) -> Pass:
    assert pace.wait(now, 0.0) == (0.0, "")
    return pace.begin(now, 0.0)


def end(pace: Pace, leave: Pass, outcome: Outcome, now: float = 0.0) -> None:
    pace.learn(now, leave, outcome)
    pace.free()


def test_a_burst_of_refusals_counts_once_and_answers_open_the_window_again() -> None:
    pace = Pace(Limits(), 16, "fake")
    busy = Failure("rate_limit", final=False)
    burst = [attempt(pace) for _ in range(16)]
    for leave in burst[:5]:
        end(pace, leave, busy)
    assert pace.allowed == 8
    assert pace.in_flight == 11
    assert pace.wait(0.0, 0.0) == (None, "")  # more are in flight than are allowed now
    for leave in burst[5:]:
        end(pace, leave, reply())
    assert pace.allowed == 9  # eleven answers: one full window
    end(pace, attempt(pace), Failure("overload", final=False, status=529))
    assert pace.allowed == 4  # sent after the window was halved: this one counts
    for expected in (5, 6, 7):
        for _ in range(expected - 1):
            assert pace.allowed == expected - 1
            end(pace, attempt(pace), reply())
        assert pace.allowed == expected
    for _ in range(5):
        end(pace, attempt(pace), busy)
    assert pace.allowed == 1


def test_the_window_never_exceeds_the_concurrency() -> None:
    pace = Pace(Limits(), 3, "fake")
    for _ in range(50):
        end(pace, attempt(pace), reply())
    assert pace.allowed == 3


async def test_a_rater_with_room_for_ten_is_asked_about_ten_at_once() -> None:
    rater = Rater(most=64, seconds=1.0, answer=reply)
    rater._answer = lambda _time: Failure("rate_limit", final=False) if rater.in_flight >= 10 else reply()
    await rater.ask_all(600)
    assert 5 <= rater.pace.allowed <= 11
    assert len(rater.arrived) < 850  # of 600 requests few were refused
    assert rater.time.now < 180


# --- order ---


async def test_turns_of_begun_conversations_go_first_and_nothing_is_overtaken() -> None:
    rater = Rater(most=1, answer=reply)
    went: list[str] = []

    async def ask(name: str, *, begun: bool, order: int) -> None:
        await rater.ask(begun=begun, order=order)
        went.append(name)

    async def all_of_them() -> None:
        first = asyncio.ensure_future(ask("first", begun=False, order=0))
        await asyncio.sleep(0)
        rest = [ask("new 3", begun=False, order=3), ask("new 1", begun=False, order=1), ask("begun 9", begun=True, order=9)]
        await asyncio.gather(first, *rest, ask("begun 2", begun=True, order=2))

    await rater.time.run(all_of_them())
    assert went == ["first", "begun 2", "begun 9", "new 1", "new 3"]


async def test_a_large_request_is_not_starved_by_small_ones() -> None:
    rater = Rater(Limits(tokens_per_minute=6000), 8, answer=lambda _time: reply(tokens=(0, 0)))
    rater.pace._expected_output = 0.0
    ended: list[int] = []

    async def ask(order: int, tokens: int) -> None:
        await rater.ask(Quote(tokens, 0, None), order=order)
        ended.append(order)

    rater._answer = lambda _time: Reply("fine")
    await rater.time.run(_all([ask(0, 100), ask(1, 3000), *(ask(order, 10) for order in range(2, 30))]))
    assert ended.index(1) == 1


async def _all(work: list[Awaitable[None]]) -> None:
    await asyncio.gather(*work)


async def test_who_is_cancelled_while_waiting_leaves_nothing_behind() -> None:
    rater = Rater(Limits(requests_per_minute=60), 1, answer=reply)
    holder = await rater.gate.enter(0.0, begun=True, order=0)
    waiting = [asyncio.ensure_future(rater.gate.enter(0.0, begun=False, order=order)) for order in (1, 2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    rater.gate.withdraw(holder)
    waiting[1].cancel()  # after it was let through, before it learned of it
    await asyncio.gather(*waiting, return_exceptions=True)
    assert rater.pace.in_flight == 0
    assert rater.pace.wait(0.0, 0.0) == (0.0, "")


async def test_a_closed_gate_lets_nobody_through() -> None:
    rater = Rater(most=1, answer=reply)
    await rater.gate.enter(0.0, begun=True, order=0)
    waiting = asyncio.ensure_future(rater.gate.enter(0.0, begun=False, order=1))
    await asyncio.sleep(0)
    rater.gate.close(lambda: ValueError("closed"))
    for late in (waiting, rater.gate.enter(0.0, begun=True, order=2)):
        with pytest.raises(ValueError, match="closed"):
            await late


# --- pauses and outages ---


async def test_a_wait_that_is_asked_for_holds_back_everything() -> None:
    rater = Rater(most=4, seconds=1.0, answer=reply)
    rater._answer = lambda time: Failure("rate_limit", final=False, retry_after=20.0) if time < 1 else reply()
    await rater.ask_all(12)
    assert rater.arrived[:4] == [0.0] * 4
    assert min(rater.arrived[4:]) == pytest.approx(1 + 20 + 1)
    assert "retry-after" in rater.reasons


async def test_a_dead_server_is_asked_a_few_times_only_and_then_given_up() -> None:
    rater = Rater(Limits(patience=600), 16, seconds=0.01, answer=failing("network"))
    with pytest.raises(
        RaterUnreachable, match=r"fake:model: no answer for 6\d\d seconds, the last failure was network.*the same command goes on"
    ):
        await rater.ask_all(10_000)
    assert len(rater.arrived) <= 16 + STREAK + 17
    late = [time for time in rater.arrived if time > 1]
    gaps = [after - before for before, after in pairwise(late)]
    assert gaps[0] == pytest.approx(2, abs=0.1)
    assert max(gaps) == pytest.approx(60, abs=0.1)
    assert rater.time.now == pytest.approx(600, abs=61)


@pytest.mark.parametrize("cause", ["rate_limit", "overload", "timeout"])
async def test_nothing_but_refusals_is_a_dead_server_too(cause: Cause) -> None:
    rater = Rater(Limits(patience=100), 8, seconds=0.1, answer=failing(cause))
    with pytest.raises(RaterUnreachable, match=f"the last failure was {cause}"):
        await rater.ask_all(100)
    assert len(rater.arrived) <= 8 + STREAK + 7


async def test_after_an_outage_everything_goes_on_and_no_request_used_up_its_attempts() -> None:
    rater = Rater(most=16, seconds=0.1, answer=reply)
    rater._answer = lambda time: Failure("network", final=False) if 10 < time < 250 else reply()
    await rater.ask_all(4000)
    during = [time for time in rater.arrived if 11 < time < 250]
    assert len(during) < 16
    assert max(rater.tried.values()) <= 3
    assert 10 < rater.time.now < 400
    assert rater.most_in_flight == 16
    assert "server" in rater.reasons


async def test_a_few_requests_that_always_fail_do_not_stop_the_run() -> None:
    rater = Rater(Limits(patience=600), 4, answer=reply)
    poisoned = {3, 50, 51}

    async def ask(order: int) -> None:
        for attempts in range(4):
            leave = await rater.gate.enter(0.0, begun=attempts > 0, order=order, attempts=attempts)
            await rater.time.sleep(1.0)
            outcome = Failure("overload", final=False) if order in poisoned else reply()
            rater.gate.learn(leave, outcome, first_attempt=attempts == 0, spread=1.0)
            rater.gate.leave()
            if isinstance(outcome, Reply):
                return

    await rater.time.run(_all([ask(order) for order in range(52)]))


@pytest.mark.parametrize(
    ("cause", "words"), [("empty", "had no content"), ("unreadable", "were no answers"), ("bad_request", "said that the request is wrong")]
)
async def test_replies_without_content_stop_a_run_that_has_seen_nothing_else(cause: Cause, words: str) -> None:
    rater = Rater(most=4, answer=failing(cause))
    with pytest.raises(RaterUnreachable, match=rf"replies to {USELESS} requests in a row {words}"):
        await rater.time.run(_all([rater.ask(order=order) for order in range(1000)]))  # type: ignore[misc]
    assert len(rater.arrived) <= USELESS + 4


def test_windows_that_always_come_back_empty_do_not_stop_a_run_that_gets_answers() -> None:
    pace = Pace(Limits(), 64, "fake")
    pace.note_answer()  # found in the store
    for _ in range(100):  # the last few windows of a job, each tried four times
        leave = attempt(pace)
        pace.learn(0.0, leave, Failure("empty", final=False), first_attempt=False)
        pace.free()
    for number in range(127):
        leave = attempt(pace)
        pace.learn(0.0, leave, Failure("empty", final=False))
        pace.free()
        assert number < 128
    with pytest.raises(RaterUnreachable, match="128 requests in a row"):
        pace.learn(0.0, attempt(pace), Failure("empty", final=False))


def test_waits_that_are_too_long_stop_the_run_if_nothing_else_comes() -> None:
    pace = Pace(Limits(), 64, "fake")
    long = Failure("rate_limit", final=False, retry_after=3600.0, status=429)
    for _ in range(4):
        end(pace, attempt(pace), long)
    end(pace, attempt(pace), reply())
    for _ in range(4):
        end(pace, attempt(pace), long)
    with pytest.raises(RaterUnreachable, match=r"fake: asks to wait 60 minutes \(HTTP 429\)"):
        pace.learn(0.0, attempt(pace), long)


def test_a_streak_is_needed_before_a_rater_counts_as_down() -> None:
    pace = Pace(Limits(patience=0), 8, "fake")
    for _ in range(STREAK - 1):
        end(pace, attempt(pace), Failure("network", final=False))
    assert not pace.down
    end(pace, attempt(pace), Failure("refusal", final=True))  # an answer of a kind: it is alive
    for _ in range(STREAK - 1):
        end(pace, attempt(pace), Failure("timeout", final=False))
    assert not pace.down


@pytest.mark.parametrize("seed", range(10))
async def test_any_mixture_of_troubles_ends_with_every_request_answered(seed: int) -> None:
    dice = random.Random(seed)
    limits = Limits(requests_per_minute=dice.choice([None, 30, 600]), tokens_per_minute=dice.choice([None, 20_000]), patience=float("inf"))
    most = dice.choice([1, 3, 20])

    def answer(_time: float) -> Outcome:
        kind = dice.random()
        if kind < 0.3:
            return Failure(dice.choice(["rate_limit", "overload", "network", "timeout"]), final=False)
        if kind < 0.35:
            return Failure("rate_limit", final=False, retry_after=dice.uniform(0, 30))
        return reply(tokens=(dice.randrange(1000), dice.randrange(300)))

    rater = Rater(limits, most, seconds=1.0, answer=answer)
    await rater.ask_all(100, Quote(500, 300, None))
    assert rater.most_in_flight <= most
    assert rater.pace.in_flight == 0
    if limits.requests_per_minute:
        assert most_within(rater.arrived, 60) <= limits.requests_per_minute + max(1, limits.requests_per_minute / 60)
