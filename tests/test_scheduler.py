"""The scheduler: what is sent, what is not, what is tried again, and how it stops."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from guerdon.answers import Scores, Text
from guerdon.asking import scheduler
from guerdon.asking.limits import Limits
from guerdon.asking.loop import Terminated, run_sync
from guerdon.asking.progress import Progress
from guerdon.asking.scheduler import InBatches, ask
from guerdon.asking.store import Claim, Key, Store
from guerdon.errors import AuthenticationRefused, ProviderError, QuotaExhausted, RaterUnreachable, UsageError, WriteFailed
from guerdon.interfaces import Method, Provider
from guerdon.records import Evidence, Exchange, Failure, Label, Message, Quote, Rater, Reply, Request, Sample, Segment, Transcript, Usage

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "s.sqlite") as opened:
        yield opened


class TwoTurns(Method):
    """Asks for an analysis, then for scores, with the analysis in the conversation."""

    name = "two-turns"
    version = "1"
    scale = (0.0, 10.0)

    def __init__(self, second_rater: int = 0) -> None:
        self._second_rater = second_rater

    def next(self, sample: Sample, exchanges: Sequence[Exchange]) -> Request | None:
        if len(exchanges) == 2:
            return None
        first = Message("user", f"What happens in {sample.segment.episode}?")
        evidence = Evidence(sample.instruction, sample.actions, ())
        if not exchanges:
            return Request(evidence, (first,), Text(), "analyse", sample.subject)
        assert isinstance(exchanges[0].outcome, Reply)
        turns = (first, Message("assistant", exchanges[0].outcome.text), Message("user", "Score it."))
        return Request(evidence, turns, Scores(1), "score", sample.subject, rater=self._second_rater)

    def read(self, transcript: Transcript) -> list[Label]:
        return []


Answer = Callable[[Request], Reply | Failure | BaseException]


class Fake(Provider):
    """Answers what the test says, and remembers what it was asked."""

    def __init__(self, answer: Answer | None = None, *, name: str = "fake", delay: float = 0.0) -> None:
        self.rater = Rater(name, "")
        self.asked: list[Request] = []
        self.in_flight = self.most_in_flight = 0
        self._answer = answer or (lambda request: Reply(f"reply to {request.purpose}", usage=Usage(10, 2, 0.5)))
        self._delay = delay

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        self.asked.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await asyncio.sleep(self._delay)
        self.in_flight -= 1
        outcome = self._answer(request)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def sample(episode: int) -> Sample:
    return Sample(Segment(episode, 0, 1, ("full",)), "go", ("left",))


class Sleeps:
    """A sleep that does not wait and remembers."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def collect(transcripts: AsyncIterator[Transcript]) -> list[Transcript]:
    return sorted([transcript async for transcript in transcripts], key=lambda t: t.sample.segment.episode)


# --- the ordinary course ---


async def test_conversations_are_carried_out_and_kept(store: Store) -> None:
    provider = Fake()
    transcripts = await collect(ask(map(sample, range(5)), TwoTurns(), [provider], store, run="a"))
    assert [t.sample.segment.episode for t in transcripts] == list(range(5))
    assert all([e.request.purpose for e in t.exchanges] == ["analyse", "score"] for t in transcripts)
    assert all(e.asked_now for t in transcripts for e in t.exchanges)
    costs = store.costs("a")
    assert (costs.requests, costs.answered, costs.dollars) == (10, 10, 5.0)


async def test_a_second_run_sends_nothing(store: Store) -> None:
    await collect(ask(map(sample, range(5)), TwoTurns(), [Fake()], store, run="a"))
    provider = Fake()
    events: list[Progress] = []
    transcripts = await collect(ask(map(sample, range(5)), TwoTurns(), [provider], store, run="b", on_event=events.append))
    assert provider.asked == []
    assert not any(e.asked_now for t in transcripts for e in t.exchanges)
    assert events[-1] == Progress(done=5, found=10, allowed=8)
    assert store.costs("b").requests == 0


async def test_another_rater_or_repeat_is_asked_anew(store: Store) -> None:
    await collect(ask([sample(0)], TwoTurns(), [Fake()], store, run="a"))
    other, repeated = Fake(name="other"), Fake()
    await collect(ask([sample(0)], TwoTurns(), [other], store, run="a"))
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [repeated], store, run="a", repeat=1))
    assert len(other.asked) == len(repeated.asked) == 2
    assert transcript.repeat == 1


async def test_the_second_stage_may_ask_another_rater(store: Store) -> None:
    first, second = Fake(), Fake(name="cheap")
    await collect(ask([sample(0)], TwoTurns(second_rater=1), [first, second], store, run="a"))
    assert [r.purpose for r in first.asked] == ["analyse"]
    assert [r.purpose for r in second.asked] == ["score"]
    with pytest.raises(UsageError, match="rater number 2, but 1 were given"):
        await collect(ask([sample(1)], TwoTurns(second_rater=1), [first], store, run="a"))


async def test_concurrency_is_kept_and_samples_are_pulled_lazily(store: Store) -> None:
    provider, pulled = Fake(delay=0.001), []

    def samples() -> Iterator[Sample]:
        for episode in range(40):
            pulled.append(episode)
            yield sample(episode)

    seen = 0
    async with aclosing(ask(samples(), TwoTurns(), [provider], store, run="a", concurrency=4)) as transcripts:
        async for _ in transcripts:
            seen += 1
            assert len(pulled) <= seen + 4
    assert 1 < provider.most_in_flight <= 4
    assert seen == 40


async def test_equal_questions_are_paid_for_once(store: Store) -> None:
    provider = Fake(delay=0.005)
    transcripts = await collect(ask([sample(0)] * 6, TwoTurns(), [provider], store, run="a"))
    assert len(transcripts) == 6
    assert Counter(r.purpose for r in provider.asked) == {"analyse": 1, "score": 1}


async def test_what_another_process_is_asking_is_waited_for(store: Store) -> None:
    method, provider = TwoTurns(), Fake()
    request = method.next(sample(0), ())
    assert request is not None
    assert await store.claim(Key(request.question, provider.rater.key, 0), "another process", 60) is Claim.GRANTED

    async def answer_later() -> None:
        await asyncio.sleep(0.05)
        await store.record(request, provider.rater, 0, Reply("theirs"), run="theirs")

    later = asyncio.create_task(answer_later())
    (transcript,) = await collect(ask([sample(0)], method, [provider], store, run="a"))
    await later
    assert isinstance(transcript.exchanges[0].outcome, Reply)
    assert transcript.exchanges[0].outcome.text == "theirs"
    assert [r.purpose for r in provider.asked] == ["score"]


@pytest.mark.parametrize("ceiling", [None, 100.0])
async def test_what_lies_in_a_batch_is_not_waited_for_and_keeps_nobody_else(store: Store, ceiling: float | None) -> None:
    class WithPrice(Fake):
        def quote(self, request: Request) -> Quote | None:
            return Quote(10, 10, 0.5)

    method, provider = TwoTurns(), WithPrice()
    for episode in (0, 1, 2):
        request = method.next(sample(episode), ())
        assert request is not None
        assert await store.claim(Key(request.question, provider.rater.key, 0), "batch/b", 1e6, run="a", dollars=0.1) is Claim.GRANTED
    heard: list[Transcript] = []
    with pytest.raises(InBatches, match=r"fake: the next request of 3 conversations lies in a batch.*--batch"):
        async with asyncio.timeout(10):
            async for transcript in ask(map(sample, range(6)), method, [provider], store, run="a", concurrency=2, ceiling=ceiling):
                heard.append(transcript)
    assert sorted(transcript.sample.segment.episode for transcript in heard) == [3, 4, 5]
    assert store.costs("a").requests == 6


async def test_events_count_what_happened(store: Store) -> None:
    outcomes = iter([Failure("overload", final=False), Reply("a", usage=Usage(10, 2, 0.5)), Reply("b", usage=Usage(5, 1, None))])
    events: list[Progress] = []
    provider = Fake(lambda _request: next(outcomes))
    await collect(ask([sample(0)], TwoTurns(), [provider], store, run="a", on_event=events.append, sleep=Sleeps()))
    sums = {"input_tokens": 15, "output_tokens": 3, "dollars": 0.5, "price_unknown": 1, "charged": 0.5}
    assert events[-1] == Progress(done=1, asked=3, failures={"overload": 1}, allowed=4, **sums)
    assert [event.asked for event in events] == [1, 2, 3, 3]


async def test_a_reply_is_on_disk_before_the_next_request_is_sent(store: Store) -> None:
    def answer(request: Request) -> Reply:
        if request.purpose == "score":
            with sqlite3.connect(store.path) as connection:
                bodies = [body for (body,) in connection.execute("SELECT body FROM answer")]
            connection.close()
            assert f"about {request.subject.episode}".encode() in bodies
        return Reply(f"about {request.subject.episode}")

    transcripts = await collect(ask(map(sample, range(10)), TwoTurns(), [Fake(answer)], store, run="a"))
    assert all(t.failure is None for t in transcripts)


async def test_two_runs_share_a_job(tmp_path: Path) -> None:
    one, two = Fake(delay=0.002), Fake(delay=0.002)
    with Store.open(tmp_path / "s.sqlite") as first, Store.open(tmp_path / "s.sqlite") as second:
        both = await asyncio.gather(
            collect(ask(map(sample, range(20)), TwoTurns(), [one], first, run="a")),
            collect(ask(map(sample, range(20)), TwoTurns(), [two], second, run="a")),
        )
        assert [len(transcripts) for transcripts in both] == [20, 20]
        assert len(one.asked) + len(two.asked) == first.costs("a").requests == 40


# --- failures ---


async def test_a_transient_failure_is_tried_again_with_growing_pauses(store: Store) -> None:
    sleeps, provider = Sleeps(), Fake(lambda _request: Failure("overload", final=False))
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [provider], store, run="a", sleep=sleeps))
    assert transcript.failure == Failure("overload", final=False)
    assert len(provider.asked) == 4
    assert store.costs("a").failures == {"overload": 4}
    for pause, doubling in zip(sleeps.seconds, (1, 2, 4), strict=True):
        assert 0.5 * doubling <= pause <= 1.5 * doubling


async def test_the_provider_says_how_long_to_wait(store: Store) -> None:
    sleeps, outcomes = Sleeps(), iter([Failure("rate_limit", final=False, retry_after=20.0), Reply("a"), Reply("b")])
    await collect(ask([sample(0)], TwoTurns(), [Fake(lambda _request: next(outcomes))], store, run="a", sleep=sleeps))
    (pause,) = sleeps.seconds
    assert 20.5 <= pause <= 21.5


async def test_a_wait_of_an_hour_is_left_to_a_later_run(store: Store) -> None:
    sleeps, provider = Sleeps(), Fake(lambda _request: Failure("rate_limit", final=False, retry_after=3600.0))
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [provider], store, run="a", sleep=sleeps))
    assert transcript.failure is not None
    assert (len(provider.asked), sleeps.seconds) == (1, [])


async def test_a_final_failure_ends_the_conversation_and_is_not_asked_again(store: Store) -> None:
    provider = Fake(lambda _request: Failure("blocked", final=True))
    for run in ("a", "b"):
        (transcript,) = await collect(ask([sample(0)], TwoTurns(), [provider], store, run=run))
        assert transcript.failure == Failure("blocked", final=True)
        assert len(transcript.exchanges) == 1
    assert len(provider.asked) == 1
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [provider], store, run="c", retry_failed=True))
    assert len(provider.asked) == 2


async def test_an_exhausted_transient_failure_is_asked_again_by_a_re_run(store: Store) -> None:
    await collect(ask([sample(0)], TwoTurns(), [Fake(lambda _r: Failure("timeout", final=False))], store, run="a", sleep=Sleeps()))
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [Fake()], store, run="b"))
    assert transcript.failure is None


@pytest.mark.parametrize(
    ("cause", "error", "words"),
    [("authentication", AuthenticationRefused, "the key was refused"), ("quota", QuotaExhausted, "the account has no quota left")],
)
async def test_account_trouble_stops_the_run_but_saves_what_is_in_flight(
    store: Store, cause: str, error: type[ProviderError], words: str
) -> None:
    def answer(request: Request) -> Reply | Failure:
        return Failure(cause, final=False, status=401) if request.subject.episode == 3 else Reply("fine")  # type: ignore[arg-type]

    provider, ended = Fake(answer, delay=0.002), []
    with pytest.raises(error, match=rf"fake: {words}.*HTTP 401.*the same command goes on"):
        async for transcript in ask(map(sample, range(1000)), TwoTurns(), [provider], store, run="a", concurrency=4):
            ended.append(transcript)
    assert len(provider.asked) < 20
    costs = store.costs("a")
    assert costs.requests == len(provider.asked)
    assert costs.failures == {cause: 1}
    again = Fake()
    await collect(ask(map(sample, range(4)), TwoTurns(), [again], store, run="b"))
    assert len(again.asked) == 8 - sum(r.subject.episode < 4 for r in provider.asked) + 1


async def test_a_provider_error_stops_the_run(store: Store) -> None:
    provider = Fake(lambda _request: ProviderError("no such model", where="fake"))
    with pytest.raises(ProviderError, match="no such model"):
        await collect(ask(map(sample, range(100)), TwoTurns(), [provider], store, run="a", concurrency=3))
    assert 1 <= len(provider.asked) <= 3
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [Fake()], store, run="b"))  # its claim was given up
    assert transcript.failure is None


async def test_stopping_does_not_wait_out_pauses(store: Store) -> None:
    def answer(request: Request) -> Reply | Failure:
        if request.subject.episode == 0:
            return Failure("rate_limit", final=False, retry_after=200.0)
        return Failure("quota", final=False)

    began = time.monotonic()
    with pytest.raises(QuotaExhausted):
        await collect(ask(map(sample, range(2)), TwoTurns(), [Fake(answer)], store, run="a"))
    assert time.monotonic() - began < 10


async def test_a_reply_that_cannot_be_stored_stops_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_args: object, **_kwargs: object) -> None:
        raise WriteFailed("the disk is full", where="s.sqlite", cure="Free some space.")

    monkeypatch.setattr(store, "record", full)
    provider = Fake()
    with pytest.raises(WriteFailed):
        await collect(ask(map(sample, range(100)), TwoTurns(), [provider], store, run="a", concurrency=2))
    assert 1 <= len(provider.asked) <= 2


async def test_an_error_while_reading_samples_saves_what_is_in_flight(store: Store) -> None:
    def samples() -> Iterator[Sample]:
        yield from map(sample, range(4))
        raise ValueError("damaged episode")

    provider = Fake(delay=0.01)
    with pytest.raises(ValueError, match="damaged episode"):
        await collect(ask(samples(), TwoTurns(), [provider], store, run="a", concurrency=3))
    assert store.costs("a").requests == len(provider.asked) >= 4


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"attempts": 0}])
async def test_nonsense_is_refused(store: Store, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        await collect(ask([], TwoTurns(), [Fake()], store, run="a", **wrong))


# --- a rater that is overloaded, slow or down ---


async def test_a_dead_server_is_not_asked_about_every_window(store: Store) -> None:
    sleeps, provider, pulled = Sleeps(), Fake(lambda _request: Failure("network", final=False)), []

    def samples() -> Iterator[Sample]:
        for episode in range(10_000):
            pulled.append(episode)
            yield sample(episode)

    events: list[Progress] = []
    options = {"concurrency": 16, "sleep": sleeps, "on_event": events.append}
    with pytest.raises(RaterUnreachable, match=r"fake: no answer for \d+ seconds, the last failure was network.*the same command goes on"):
        await collect(ask(samples(), TwoTurns(), [provider], store, run="a", **options))
    assert len(provider.asked) == store.costs("a").requests <= 16 + 8 + 17
    assert len(pulled) <= 16 + 6
    assert "server" in {event.waiting for event in events}
    await collect(ask(map(sample, range(20)), TwoTurns(), [Fake()], store, run="b"))  # nothing was left behind


async def test_an_outage_fails_no_conversation(store: Store) -> None:
    """Forty attempts in a row come to nothing, then the server is back."""
    seen = Counter[str]()

    def answer(request: Request) -> Reply | Failure:
        seen["all"] += 1
        return Failure("overload", final=False, status=503) if 30 < seen["all"] <= 60 else Reply("fine")

    provider = Fake(answer, delay=0.001)
    options = {"concurrency": 16, "sleep": Sleeps(), "limits": Limits(patience=1e9)}
    transcripts = await collect(ask(map(sample, range(60)), TwoTurns(), [provider], store, run="a", **options))
    assert all(transcript.failure is None for transcript in transcripts)
    assert len(provider.asked) == 120 + 30


async def test_requests_in_flight_fall_when_the_rater_is_overloaded(store: Store) -> None:
    def answer(_request: Request) -> Reply | Failure:
        return Reply("fine") if provider.in_flight < 4 else Failure("rate_limit", final=False, status=429)

    provider, events = Fake(answer, delay=0.002), list[Progress]()
    options = {"concurrency": 32, "attempts": 40, "sleep": Sleeps(), "on_event": events.append, "limits": Limits(patience=1e9)}
    transcripts = await collect(ask(map(sample, range(80)), TwoTurns(), [provider], store, run="a", **options))
    assert all(transcript.failure is None for transcript in transcripts)
    assert min(event.allowed for event in events) < 8
    assert len(provider.asked) < 160 + 140


async def test_second_turns_go_before_first_turns_when_places_are_short(store: Store) -> None:
    provider = Fake(delay=0.001)
    hurried = {"clock": lambda: 10 * time.monotonic(), "sleep": lambda seconds: asyncio.sleep(seconds / 10)}
    limits = Limits(requests_per_minute=60)
    await collect(ask(map(sample, range(8)), TwoTurns(), [provider], store, run="a", concurrency=8, limits=limits, **hurried))
    unfinished = most = 0
    for request in provider.asked:
        unfinished += 1 if request.purpose == "analyse" else -1
        most = max(most, unfinished)
    assert len(provider.asked) == 16
    assert most <= 3  # eight if first come were first served


async def test_limits_per_minute_hold_and_are_shown(store: Store) -> None:
    provider, sleeps, events = Fake(), Sleeps(), list[Progress]()
    frozen = {"clock": lambda: 0.0, "sleep": sleeps, "on_event": events.append}
    await collect(ask(map(sample, range(6)), TwoTurns(), [provider], store, run="a", limits=Limits(requests_per_minute=6), **frozen))
    assert sum(sleeps.seconds) == pytest.approx(110, rel=0.01)  # twelve requests, one at once, then one each ten seconds
    assert "limit" in {event.waiting for event in events}
    assert events[-1].waiting == ""


async def test_a_wait_holds_back_the_whole_rater(store: Store) -> None:
    def answer(_request: Request) -> Reply | Failure:
        return Failure("rate_limit", final=False, retry_after=30.0) if len(provider.asked) == 1 else Reply("fine")

    provider, sleeps, events = Fake(answer, delay=0.001), Sleeps(), list[Progress]()
    options = {"sleep": sleeps, "on_event": events.append, "concurrency": 1}
    await collect(ask(map(sample, range(6)), TwoTurns(), [provider], store, run="a", **options))
    (pause,) = sleeps.seconds
    assert 30.5 <= pause <= 31.5
    assert "retry-after" in {event.waiting for event in events}


async def test_waits_of_an_hour_and_nothing_else_stop_the_run(store: Store) -> None:
    provider = Fake(lambda _request: Failure("rate_limit", final=False, retry_after=3600.0))
    with pytest.raises(RaterUnreachable, match="asks to wait 60 minutes"):
        await collect(ask(map(sample, range(1000)), TwoTurns(), [provider], store, run="a", concurrency=2, sleep=Sleeps()))
    assert len(provider.asked) <= 6


async def test_replies_without_content_and_nothing_else_stop_the_run(store: Store) -> None:
    provider = Fake(lambda _request: Failure("unreadable", final=False))
    with pytest.raises(RaterUnreachable, match="the replies to 20 requests in a row were no answers"):
        await collect(ask(map(sample, range(1000)), TwoTurns(), [provider], store, run="a", concurrency=2, sleep=Sleeps()))
    assert len(provider.asked) <= 4 * 20 + 2


async def test_a_request_without_an_outcome_is_given_up(store: Store) -> None:
    provider = Fake(delay=60)
    limits = Limits(timeout=0.02)
    (transcript,) = await collect(ask([sample(0)], TwoTurns(), [provider], store, run="a", attempts=2, sleep=Sleeps(), limits=limits))
    assert transcript.failure is not None
    assert (transcript.failure.cause, transcript.failure.code, transcript.failure.final) == ("timeout", "no_outcome", False)
    assert len(provider.asked) == 2
    assert store.costs("a").failures == {"timeout": 2}


async def test_a_time_out_inside_a_provider_is_not_taken_for_ours(store: Store) -> None:
    provider = Fake(lambda _request: TimeoutError("a defect of the provider"))
    with pytest.raises(TimeoutError, match="a defect"):
        await collect(ask([sample(0)], TwoTurns(), [provider], store, run="a", limits=Limits(timeout=10)))


async def test_repeats_are_conversations_of_their_own(store: Store) -> None:
    provider = Fake()
    transcripts = await collect(ask(map(sample, range(3)), TwoTurns(), [provider], store, run="a", repeat=2, repeats=3))
    assert Counter((t.sample.segment.episode, t.repeat) for t in transcripts) == {(e, r): 1 for e in range(3) for r in (2, 3, 4)}
    assert len(provider.asked) == 18


@pytest.mark.parametrize("ceiling", [None, 100.0])
async def test_raters_are_let_go_at_the_end(store: Store, ceiling: float | None) -> None:
    class Free(Fake):
        def quote(self, request: Request) -> Quote | None:
            return Quote(0, 0, 0.0)

    provider = Free()
    gone = weakref.ref(provider)
    gc.disable()  # a rater may hold an open file, which is to close with its last user and not some time later
    try:
        await collect(ask(map(sample, range(3)), TwoTurns(), [provider], store, run="a", ceiling=ceiling))
        del provider
        await asyncio.sleep(0)
        assert gone() is None
    finally:
        gc.enable()


async def test_a_listener_that_fails_stops_the_run(store: Store) -> None:
    def listen(state: Progress) -> None:
        if state.waiting == "limit":
            raise WriteFailed("the log cannot be written")

    options = {"limits": Limits(requests_per_minute=60), "sleep": Sleeps(), "on_event": listen}
    with pytest.raises(WriteFailed, match="the log"):
        await collect(ask(map(sample, range(100)), TwoTurns(), [Fake()], store, run="a", **options))


async def test_a_heartbeat_that_breaks_stops_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_owner: str, _lease: float) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scheduler, "LEASE", 0.04)
    monkeypatch.setattr(store, "renew", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        await collect(ask(map(sample, range(50)), TwoTurns(), [Fake(delay=0.05)], store, run="a", concurrency=1))


async def test_claims_that_cannot_be_renewed_stop_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_args: object) -> None:
        raise WriteFailed("the disk is full")

    monkeypatch.setattr(scheduler, "LEASE", 0.04)
    monkeypatch.setattr(store, "renew", full)
    provider = Fake(delay=0.1)
    with pytest.raises(WriteFailed, match="the disk is full"):
        await collect(ask(map(sample, range(100)), TwoTurns(), [provider], store, run="a", concurrency=4))
    assert len(provider.asked) <= 4


# --- stopping from outside ---


async def test_cancelling_saves_what_is_in_flight(store: Store) -> None:
    provider, events = Fake(delay=0.05), list[Progress]()
    asking = ask(map(sample, range(100)), TwoTurns(), [provider], store, run="a", concurrency=5, on_event=events.append)
    task = asyncio.create_task(collect(asking))
    while provider.in_flight < 5:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.costs("a").requests == len(provider.asked) == 5
    assert next(event.in_flight for event in events if event.waiting == "stopping") == 5  # who waits is told for what


async def test_cancelling_twice_does_not_wait(store: Store) -> None:
    provider = Fake(delay=60)
    task = asyncio.create_task(collect(ask(map(sample, range(10)), TwoTurns(), [provider], store, run="a", concurrency=5)))
    while provider.in_flight < 5:
        await asyncio.sleep(0.001)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 10
    assert store.costs("a").lost == 5  # nobody knows what became of them
    await collect(ask(map(sample, range(5)), TwoTurns(), [Fake()], store, run="b"))  # claims were given up


async def test_leaving_the_loop_early_saves_what_is_in_flight(store: Store) -> None:
    provider = Fake(delay=0.01)
    async with aclosing(ask(map(sample, range(100)), TwoTurns(), [provider], store, run="a", concurrency=5)) as transcripts:
        async for _ in transcripts:
            break
    assert store.costs("a").requests == len(provider.asked)
    gc.collect()


async def test_a_long_request_keeps_its_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LEASE", 0.04)
    slow, quick = Fake(delay=0.3), Fake()
    first = asyncio.create_task(collect(ask([sample(0)], TwoTurns(), [slow], store, run="a")))
    while not slow.asked:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)
    await collect(ask([sample(0)], TwoTurns(), [quick], store, run="b"))
    await first
    assert len(slow.asked) + len(quick.asked) == 2


# --- the event loop of the process ---


def test_run_sync_returns_raises_and_keeps_one_loop() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def fail() -> None:
        raise ValueError("as it was")

    assert run_sync(loop()) is run_sync(loop())
    with pytest.raises(ValueError, match="as it was"):
        run_sync(fail())


async def test_run_sync_works_where_a_loop_already_runs() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert run_sync(answer()) == 42


def test_run_sync_refuses_to_wait_for_itself() -> None:
    async def inner() -> None:
        return

    async def outer() -> None:
        run_sync(inner())

    with pytest.raises(RuntimeError, match="await the coroutine instead"):
        run_sync(outer())


def test_ctrl_c_cancels_and_waits_for_the_end() -> None:
    saved = threading.Event()

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            saved.set()

    with pytest.raises(KeyboardInterrupt):
        run_sync(work())
    assert saved.is_set()


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_stops_in_an_orderly_way_and_handlers_are_put_back(number: signal.Signals, raised: type[KeyboardInterrupt]) -> None:
    saved = threading.Event()

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            saved.set()

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as caught:
        run_sync(work())
    assert type(caught.value) is raised
    assert saved.is_set()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    provider = Fake(delay=60)

    def interrupt_twice() -> None:
        for _ in range(2):
            while provider.in_flight < 3:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    with Store.open(tmp_path / "s.sqlite") as store:
        thread = threading.Thread(target=interrupt_twice)
        thread.start()
        with pytest.raises(Terminated):
            run_sync(collect(ask(map(sample, range(9)), TwoTurns(), [provider], store, run="a", concurrency=3)))
        thread.join()
        assert store.costs("a").lost == 3


def test_sigterm_that_is_ignored_stays_ignored() -> None:
    async def work() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        return 42

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_sync(work()) == 42
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_other_threads_signals_are_left_alone() -> None:
    async def work() -> object:
        return signal.getsignal(signal.SIGTERM)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: run_sync(work())).result() == signal.getsignal(signal.SIGTERM)


SCRIPT = """
import sys
from pathlib import Path
from tests.test_scheduler import Fake, TwoTurns, ask, collect, run_sync, sample, Store
provider = Fake(delay=0.2)
print("asking", flush=True)
with Store.open(Path(sys.argv[1])) as store:
    try:
        run_sync(collect(ask(map(sample, range(1000)), TwoTurns(), [provider], store, run="a", concurrency=5)))
    finally:
        print(len(provider.asked))
"""


@pytest.mark.slow
def test_a_kill_costs_at_most_what_was_in_flight(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "s.sqlite")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.0)
    process.kill()
    process.communicate()
    with Store.open(tmp_path / "s.sqlite") as store:
        kept = store.costs("a").answered
        again = Fake()
        transcripts = run_sync(collect(ask(map(sample, range(20)), TwoTurns(), [again], store, run="b", concurrency=20)))
        assert all(transcript.failure is None for transcript in transcripts)
    assert kept > 0
    assert len(again.asked) == 40 - kept


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")])
def test_a_signal_to_a_real_process_saves_what_is_in_flight(tmp_path: Path, number: signal.Signals, name: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "s.sqlite")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.0)
    process.send_signal(number)
    asked, errors = process.communicate(timeout=30)
    assert name in errors
    with Store.open(tmp_path / "s.sqlite") as store:
        costs = store.costs("a")
    assert costs.requests == costs.answered == int(asked) > 0
