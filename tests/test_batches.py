"""Conversations through batch queues: the same labels as live, nothing paid for twice, nothing lost, whatever happens in between."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from guerdon.asking import batches
from guerdon.asking import store as store_module
from guerdon.asking.batches import ask_in_batches
from guerdon.asking.loop import run_sync
from guerdon.asking.progress import Progress
from guerdon.asking.scheduler import InBatches, ask
from guerdon.asking.store import Key, Store
from guerdon.errors import CeilingReached, ProviderError, QuotaExhausted, RaterUnreachable, UsageError
from guerdon.interfaces import BatchDraft, Batches, BatchStatus, Provider
from guerdon.methods.rg_vlm import RgVlm
from guerdon.providers.chat import Chat
from guerdon.providers.scripted import Scripted
from guerdon.records import Failure, Quote, Rater, Reply, Request, Sample, Segment, Transcript, Usage
from tests.batch_servers import SERVERS, BatchServer, Fate, Line, Refused, serve
from tests.vendors import PLANTED_KEY

WINDOWS = 5
METHOD = RgVlm(RgVlm.Config(tile=16))


@pytest.fixture(scope="module")
def vendors() -> Iterator[dict[str, tuple[BatchServer, Chat]]]:
    """Servers and raters that ask them, begun when first wanted; building a rater takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        made: dict[str, tuple[BatchServer, Chat]] = {}
        running = {name: serve(name) for name in SERVERS}
        for name, context in running.items():
            server = context.__enter__()
            made[name] = server, server.provider(patch, Chat.Config(timeout=5.0, max_output_tokens=100))
        yield made
        for _server, chat in made.values():
            run_sync(chat.close())
        for context in running.values():
            context.__exit__(None, None, None)


@pytest.fixture(params=sorted(SERVERS))
def vendor(request: pytest.FixtureRequest, vendors: dict[str, tuple[BatchServer, Chat]]) -> tuple[BatchServer, Chat]:
    server, chat = vendors[request.param]
    server.reset()
    return server, chat


@pytest.fixture
def openai(vendors: dict[str, tuple[BatchServer, Chat]]) -> tuple[BatchServer, Chat]:
    server, chat = vendors["openai"]
    server.reset()
    return server, chat


def frames(start: int) -> dict[str, Any]:
    return {"front": np.full((3, 8, 8, 3), start, np.uint8)}


def window(number: int) -> Sample:
    return Sample(Segment(0, number, number + 2, ("front",)), "go to the red ball", ("left", "forward"), frames=lambda: frames(number))


def windows(count: int = WINDOWS) -> list[Sample]:
    return [window(number) for number in range(count)]


class Killed(BaseException):
    """The process dies here."""


class Mortal(Provider):
    """A rater whose queue kills the process at a chosen moment."""

    def __init__(self, chat: Chat, moment: str) -> None:
        self.rater = chat.rater
        self.queue = MortalQueue(chat.batches(), moment)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        raise NotImplementedError

    def batches(self) -> Batches:
        return self.queue


class MortalQueue(Batches):
    """Passes everything on until the moment has come."""

    def __init__(self, inner: Batches | None, moment: str) -> None:
        assert inner is not None
        self.inner, self.moment, self.largest = inner, moment, inner.largest

    def quote(self, request: Request) -> Quote | None:
        return self.inner.quote(request)

    def draft(self, largest: int | None = None) -> BatchDraft:
        draft = self.inner.draft(largest)
        if self.moment == "while putting together":
            add = draft.add

            async def dying(name: str, request: Request, repeat: int) -> bool | Failure:
                if draft.size == 2:
                    raise Killed
                return await add(name, request, repeat)

            draft.add = dying  # type: ignore[method-assign]
        return draft

    async def create(self, marker: str, draft: BatchDraft) -> str | Failure | None:
        if self.moment == "before handing over":
            raise Killed
        name = await self.inner.create(marker, draft)
        if self.moment == "after handing over":
            raise Killed
        return name

    async def find(self, marker: str, *, since: float, size: int, others: Collection[str] = ()) -> str | Failure | None:
        return await self.inner.find(marker, since=since, size=size, others=others)

    async def status(self, batch: str) -> BatchStatus | Failure:
        return await self.inner.status(batch)

    async def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
        if self.moment == "before the results":
            raise Killed
        count = 0
        async for result in self.inner.results(batch, requests):
            yield result
            count += 1
            if self.moment == "among the results" and count == 3:
                raise Killed
        if self.moment == "after the results":
            raise Killed

    async def cancel(self, batch: str) -> None:
        await self.inner.cancel(batch)

    async def forget(self, marker: str, batch: str) -> None:
        await self.inner.forget(marker, batch)


async def no_sleep(_seconds: float) -> None:
    await asyncio.sleep(0)


def through_batches(rater: Provider, store: Path, samples: list[Sample] | None = None, **options: Any) -> list[Transcript]:
    async def inside() -> list[Transcript]:
        settings: dict[str, Any] = {"run": "r", "poll": 0.0, "settling": 0.0, "sleep": no_sleep, **options}
        with Store.open(store) as opened:
            async with aclosing(ask_in_batches(samples or windows(), METHOD, [rater], opened, **settings)) as transcripts:  # type: ignore[type-var]
                return [transcript async for transcript in transcripts]

    return run_sync(inside())


def live(rater: Provider, store: Path, samples: list[Sample] | None = None) -> list[Transcript]:
    async def inside() -> list[Transcript]:
        with Store.open(store) as opened:
            async with aclosing(ask(samples or windows(), METHOD, [rater], opened, run="live")) as transcripts:  # type: ignore[type-var]
                return [transcript async for transcript in transcripts]

    return run_sync(inside())


def values(transcripts: list[Transcript]) -> list[tuple[int, str, float | None, str]]:
    labels = [label for transcript in transcripts for label in METHOD.read(transcript)]
    return sorted((label.start, label.state, label.value, label.rationale) for label in labels)


def costs(store: Path, run: str = "r") -> Any:
    with Store.open(store) as opened:
        return opened.costs(run)


def paid_once(server: BatchServer) -> bool:
    return set(server.billed.values()) == {1}


def test_labels_are_those_of_live_requests(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    server.switches.polls = 3
    expected = values(live(chat, tmp_path / "live.sqlite"))
    server.billed.clear()
    seen: list[Progress] = []
    found = through_batches(chat, tmp_path / "batch.sqlite", on_event=seen.append)
    assert values(found) == expected
    assert all(value is not None for _start, _state, value, _rationale in expected)
    assert len(expected) == 2 * WINDOWS
    assert server.creations == 2  # all first turns, then all second turns
    assert paid_once(server)
    spent, dear = costs(tmp_path / "batch.sqlite"), costs(tmp_path / "live.sqlite", "live")
    assert spent.dollars == pytest.approx(dear.dollars / 2)
    assert (spent.requests, spent.answered, spent.reserved) == (2 * WINDOWS, 2 * WINDOWS, 0)
    assert not any(PLANTED_KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())
    last = seen[-1]
    assert (last.done, last.asked, last.found, last.in_flight, last.batches) == (WINDOWS, 2 * WINDOWS, 0, 0, 0)
    assert last.dollars == pytest.approx(spent.dollars)
    assert max(progress.in_flight for progress in seen) == WINDOWS
    again = through_batches(chat, tmp_path / "batch.sqlite", on_event=seen.append)
    assert values(again) == expected
    assert server.creations == 2
    assert seen[-1].found == 2 * WINDOWS


MOMENTS = [
    "while putting together", "before writing down", "before handing over", "after handing over",
    "before the results", "among the results", "after the results",
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_loses_nothing_and_pays_nothing_twice(
    vendor: tuple[BatchServer, Chat], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, chat = vendor

    async def dead(asker: Any) -> None:
        """A killed process tidies nothing up."""
        asker._heartbeat.cancel()
        for order in asker._orders.values():
            order.draft.close()

    intend = Store.intend_batch

    def interrupted(store: Store, batch: str, rater: Any, run: str, items: Mapping[str, Any]) -> None:
        if items and moment == "before writing down":
            raise Killed
        intend(store, batch, rater, run, items)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batches._BatchAsker, "close", dead)
        patch.setattr(Store, "intend_batch", interrupted)
        through_batches(Mortal(chat, moment), tmp_path / "s.sqlite")
    found = through_batches(chat, tmp_path / "s.sqlite")
    assert len(values(found)) == 2 * WINDOWS
    assert all(state == "labelled" for _start, state, _value, _rationale in values(found))
    assert paid_once(server)
    assert len(server.billed) == 2 * WINDOWS
    spent = costs(tmp_path / "s.sqlite")
    assert (spent.requests, spent.lost, spent.reserved) == (2 * WINDOWS, 0, 0)
    assert server.creations == 2


@pytest.mark.parametrize("accident", ["cut", "lost"])
def test_a_broken_connection_while_handing_over(vendor: tuple[BatchServer, Chat], tmp_path: Path, accident: str) -> None:
    server, chat = vendor
    setattr(server.switches, accident, 1)
    found = through_batches(chat, tmp_path / "s.sqlite")
    assert len(found) == WINDOWS
    assert paid_once(server)
    assert server.creations == (2 if accident == "cut" else 3)
    assert costs(tmp_path / "s.sqlite").requests == 2 * WINDOWS


def test_what_may_still_arrive_is_waited_for(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    """A batch that the vendor does not list is asked again only when it has had time to appear."""
    server, chat = openai
    server.switches.lost = 1
    began = through_batches(chat, tmp_path / "s.sqlite", wait=False, settling=1000.0)
    assert began == []
    assert through_batches(chat, tmp_path / "s.sqlite", wait=False, settling=1000.0) == []
    assert server.creations == 1
    assert len(through_batches(chat, tmp_path / "s.sqlite", settling=0.0)) == WINDOWS
    assert server.creations == 3


def test_passing_failures_are_asked_again(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    fates: dict[tuple[int, int], Fate] = {(0, 1): "server error", (0, 2): "missing", (0, 3): "damaged", (1, 0): "twice"}
    server.switches.fate = lambda line: fates.get((line.job, line.position), "ok")
    found = through_batches(chat, tmp_path / "s.sqlite")
    assert len(values(found)) == 2 * WINDOWS
    assert {state for _start, state, _value, _rationale in values(found)} == {"labelled"}
    failed = costs(tmp_path / "s.sqlite")
    assert failed.failures == {"overload": 1, "empty": 2}
    assert failed.requests == 2 * WINDOWS + 3
    again = {digest: count for digest, count in server.billed.items() if count > 1}
    assert not again or server.vendor != "anthropic"
    assert set(server.billed.values()) <= {1}


def test_a_failure_that_does_not_pass_ends_its_conversation(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    fates: dict[int, Fate] = {0: "bad request", 1: "server error"}
    server.switches.fate = lambda line: fates.get(line.position, "ok") if line.job < 3 and len(line.name) and first_turn(line) else "ok"
    found = {t.sample.segment.start: t for t in through_batches(chat, tmp_path / "s.sqlite", attempts=2, largest=WINDOWS)}
    refused = found[0].failure
    assert refused is not None
    assert (refused.cause, refused.final) == ("bad_request", True)
    assert [transcript.failure is None for _start, transcript in sorted(found.items())].count(True) >= WINDOWS - 2
    creations = server.creations
    server.switches.fate = lambda _line: "ok"
    through_batches(chat, tmp_path / "s.sqlite")
    asked_again = sum(len(job.lines) for job in list(server.jobs.values())[creations:])
    again = {t.sample.segment.start: t for t in through_batches(chat, tmp_path / "s.sqlite", retry_failed=True)}
    assert all(transcript.failure is None for transcript in again.values())
    assert asked_again <= 2


def first_turn(line: Line) -> bool:
    return "assistant" not in str(line.body)


def test_a_failure_that_lasts_is_given_up(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    server.switches.fate = lambda _line: "server error"
    found = through_batches(chat, tmp_path / "s.sqlite", attempts=2)
    assert [transcript.failure.cause for transcript in found if transcript.failure] == ["overload"] * WINDOWS
    assert server.creations == 2
    assert not server.billed


def test_what_somebody_cancelled_is_not_handed_in_again_at_once(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    server.switches.ending = lambda job: "cancelled" if job == 0 and server.vendor != "anthropic" else "completed"
    server.switches.fate = lambda line: "cancelled" if line.job == 0 else "ok"
    found = through_batches(chat, tmp_path / "s.sqlite")
    assert {transcript.failure.code for transcript in found if transcript.failure} == {"batch_cancelled"}
    assert server.creations == 1
    spent = costs(tmp_path / "s.sqlite")
    assert (spent.charged, spent.reserved) == (0, 0)
    assert all(transcript.failure is None for transcript in through_batches(chat, tmp_path / "s.sqlite"))


def test_what_expired_is_asked_again(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    server.switches.ending = lambda job: "expired" if job == 0 and server.vendor != "anthropic" else "completed"
    late: Fate = "missing" if server.vendor == "google" else "expired"
    server.switches.fate = lambda line: late if line.job == 0 and line.position else "ok"
    found = through_batches(chat, tmp_path / "s.sqlite")
    assert all(transcript.failure is None for transcript in found)
    assert paid_once(server)
    assert costs(tmp_path / "s.sqlite").failures == {"timeout": WINDOWS - 1}


def test_without_waiting_the_same_call_goes_on_tomorrow(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    server.switches.polls = 2
    seen: list[Progress] = []
    calls = []
    for _day in range(12):
        calls.append(len(through_batches(chat, tmp_path / "s.sqlite", wait=False, on_event=seen.append)))
        if calls[-1]:
            break
        assert seen[-1].in_flight == WINDOWS
    assert calls[-1] == WINDOWS
    assert len(calls) > 3
    assert server.creations == 2
    assert paid_once(server)


def test_batches_are_no_larger_than_asked_for(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    found = through_batches(chat, tmp_path / "s.sqlite", largest=2)
    assert len(found) == WINDOWS
    assert max(len(job.lines) for job in server.jobs.values()) == 2
    assert paid_once(server)
    assert len(server.billed) == 2 * WINDOWS


def test_equal_questions_are_asked_once_and_repeats_as_often_as_wanted(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    twins = [window(1), window(2), window(1)]
    assert len(through_batches(chat, tmp_path / "s.sqlite", twins)) == 3
    assert paid_once(server)
    assert len(server.billed) == 4
    assert len(through_batches(chat, tmp_path / "s.sqlite", twins[:2], repeats=3)) == 6
    assert set(server.billed.values()) == {3}


def test_two_at_once_share_the_work(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    server.switches.polls = 4
    path = tmp_path / "s.sqlite"

    async def one() -> list[Transcript]:
        with Store.open(path) as store:
            work = ask_in_batches(windows(), METHOD, [chat], store, run="r", poll=0.01, settling=30.0)
            async with aclosing(work) as transcripts:  # type: ignore[type-var]
                return [transcript async for transcript in transcripts]

    async def both() -> list[list[Transcript]]:
        return await asyncio.gather(one(), one())

    for found in run_sync(both()):
        assert len(found) == WINDOWS
    assert paid_once(server)
    assert costs(path).requests == 2 * WINDOWS


def test_a_ceiling_is_never_exceeded(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    queue = chat.batches()
    assert queue is not None
    request = METHOD.next(window(0), ())
    assert request is not None
    quote = queue.quote(request)
    assert quote is not None
    assert quote.dollars is not None
    ceiling = 2.5 * quote.dollars
    spent: list[float] = []

    async def inside() -> int:
        with Store.open(tmp_path / "s.sqlite") as store:
            work = ask_in_batches(
                windows(12), METHOD, [chat], store, run="r", ceiling=ceiling, poll=0.0, settling=0.0, sleep=no_sleep,
                on_event=lambda _progress: spent.append(store.spent("r")),
            )  # fmt: skip
            count = 0
            with pytest.raises(CeilingReached) as raised:
                async for _transcript in work:
                    count += 1
            assert "$" in str(raised.value)
            return count

    count = run_sync(inside())
    assert 0 < count < 12
    assert max(spent) <= ceiling
    assert paid_once(server)
    found = through_batches(chat, tmp_path / "s.sqlite", windows(12), ceiling=1000 * ceiling)
    assert len(found) == 12
    assert paid_once(server)


def test_a_ceiling_needs_a_price(openai: tuple[BatchServer, Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, chat = openai
    rater = Mortal(chat, "never")
    monkeypatch.setattr(MortalQueue, "quote", lambda _self, _request: None)
    with pytest.raises(UsageError, match="price"):
        through_batches(rater, tmp_path / "s.sqlite", ceiling=1.0)
    assert server.creations == 0
    with Store.open(tmp_path / "s.sqlite") as store:
        assert store.open_batches() == []


def test_a_full_queue_is_waited_for(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    """OpenAI takes a batch and fails it as a whole when too much is queued already."""
    server, chat = openai
    server.switches.ending = lambda job: "failed" if job in (1, 2) else "completed"
    found = through_batches(chat, tmp_path / "s.sqlite", largest=3)
    assert len(found) == WINDOWS
    assert paid_once(server)
    assert costs(tmp_path / "s.sqlite").failures == {}


@pytest.mark.parametrize("code", ["token_limit_exceeded", "invalid_json_line", "billing_hard_limit_reached"])
def test_a_queue_that_takes_nothing_ends_the_run(openai: tuple[BatchServer, Chat], tmp_path: Path, code: str) -> None:
    server, chat = openai
    server.switches.ending, server.switches.error_code = lambda _job: "failed", code
    with pytest.raises(QuotaExhausted if code.startswith("billing") else ProviderError) as raised:
        through_batches(chat, tmp_path / "s.sqlite")
    assert code in str(raised.value)
    assert server.creations == (10 if code == "token_limit_exceeded" else 1)
    spent = costs(tmp_path / "s.sqlite")
    assert (spent.charged, spent.reserved, spent.requests) == (0, 0, 0)


def test_a_refused_batch_is_tried_again(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    bodies = {
        "openai": {"error": {"message": "slow down", "type": "requests", "param": None, "code": "rate_limit_exceeded"}},
        "anthropic": {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}},
        "google": {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}},
    }
    server.switches.refused = [(429, bodies[server.vendor])]
    assert len(through_batches(chat, tmp_path / "s.sqlite")) == WINDOWS
    assert server.creations == 3
    assert paid_once(server)


def test_a_batch_that_is_gone_is_not_paid_for_again_unasked(vendor: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = vendor
    server.switches.polls = 10**6
    through_batches(chat, tmp_path / "s.sqlite", wait=False)
    server.jobs.clear()
    server.switches.polls = 1
    with pytest.raises(ProviderError, match="retry_lost"):
        through_batches(chat, tmp_path / "s.sqlite")
    assert server.creations == 1
    assert len(through_batches(chat, tmp_path / "s.sqlite", retry_lost=True)) == WINDOWS
    assert costs(tmp_path / "s.sqlite").lost == WINDOWS


def test_a_vendor_that_does_not_answer_is_asked_again_and_then_left_alone(
    vendor: tuple[BatchServer, Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, chat = vendor
    body = {"error": {"message": "down", "type": "server_error", "code": 503, "status": "UNAVAILABLE"}}
    server.switches.polls = 10**6
    through_batches(chat, tmp_path / "s.sqlite", wait=False)
    server.jobs[server.id_of(0)].polls_left = server.switches.polls = 1
    answering, calls = server.serve, Counter[str]()

    def down(limit: int) -> Any:
        def serve_one(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], data: bytes) -> Any:
            calls[method] += 1
            if calls[method] <= limit:
                raise Refused(503, body)
            return answering(method, path, query, headers, data)

        return serve_one

    monkeypatch.setattr(server, "serve", down(10**6))
    with pytest.raises(RaterUnreachable, match="does not say how a batch stands"):
        through_batches(chat, tmp_path / "s.sqlite")
    assert calls == {"GET": 10}
    calls.clear()
    monkeypatch.setattr(server, "serve", down(5))
    assert len(through_batches(chat, tmp_path / "s.sqlite")) == WINDOWS
    assert paid_once(server)


def test_results_that_cannot_be_fetched_are_not_waited_for_for_ever(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai

    class Unreadable(MortalQueue):
        fetched = 0

        async def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
            self.fetched += 1
            raise ProviderError("the results of a batch could not be fetched")
            yield

    rater = Mortal(chat, "never")
    rater.queue = queue = Unreadable(chat.batches(), "never")
    with pytest.raises(ProviderError, match="could not be fetched"):
        through_batches(rater, tmp_path / "s.sqlite")
    assert queue.fetched == 10
    assert len(through_batches(chat, tmp_path / "s.sqlite")) == WINDOWS
    assert paid_once(server)


def test_results_that_are_gone_are_not_paid_for_again_unasked(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    server.switches.polls = 10**6
    through_batches(chat, tmp_path / "s.sqlite", wait=False)
    server.jobs[server.id_of(0)].polls_left = server.switches.polls = 1

    class Forgetful(MortalQueue):
        async def status(self, batch: str) -> BatchStatus | Failure:
            status = await self.inner.status(batch)
            server.files.clear()
            return status

    rater = Mortal(chat, "never")
    rater.queue = Forgetful(chat.batches(), "never")
    with pytest.raises(ProviderError, match=r"is lost: the results of a batch could not be fetched.*HTTP 404.*retry_lost"):
        through_batches(rater, tmp_path / "s.sqlite")
    assert server.creations == 1
    server.files.clear()
    assert len(through_batches(chat, tmp_path / "s.sqlite", retry_lost=True)) == WINDOWS
    assert costs(tmp_path / "s.sqlite").lost == WINDOWS


def test_a_batch_that_others_have_ended_while_it_was_put_together_is_not_handed_over(
    openai: tuple[BatchServer, Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would look for it at the vendor, and what it cost would be lost."""
    server, chat = openai
    intend, ended = Store.intend_batch, list[str]()

    def intend_and_be_taken_for_dead(self: Store, batch: str, rater: Rater, run: str, items: Any, **more: Any) -> None:
        intend(self, batch, rater, run, items, **more)
        if not ended:
            ended.append(batch)
            self.batch_ended(batch, "unfinished")

    monkeypatch.setattr(Store, "intend_batch", intend_and_be_taken_for_dead)
    assert len(through_batches(chat, tmp_path / "s.sqlite")) == WINDOWS
    assert paid_once(server)
    assert server.creations == 2
    spent = costs(tmp_path / "s.sqlite")
    assert (spent.requests, spent.lost, spent.reserved) == (2 * WINDOWS, 0, 0)


@pytest.mark.parametrize("hours", [-12, 12])
def test_a_wrong_clock_makes_nobody_pay_twice(
    vendor: tuple[BatchServer, Chat], tmp_path: Path, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that arrived is found at the vendor, also where this machine's clock is set to another time zone's."""
    server, chat = vendor
    now = time.time
    ours = SimpleNamespace(time=lambda: now() + hours * 3600)
    monkeypatch.setattr(batches, "time", ours)
    monkeypatch.setattr(store_module, "time", SimpleNamespace(time=ours.time, monotonic=time.monotonic))
    with pytest.raises(Killed):
        through_batches(Mortal(chat, "after handing over"), tmp_path / "s.sqlite")
    assert len(through_batches(chat, tmp_path / "s.sqlite")) == WINDOWS
    assert paid_once(server)
    assert server.creations == 2


def test_a_live_run_says_that_its_requests_lie_in_a_batch(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    server.switches.polls = 10**6
    through_batches(chat, tmp_path / "s.sqlite", windows(2), wait=False)
    with pytest.raises(InBatches, match=r"the next request of 2 conversations lies in a batch.*--batch"):
        live(chat, tmp_path / "s.sqlite", windows(2))
    assert server.live == 0
    server.jobs[server.id_of(0)].polls_left = server.switches.polls = 1
    assert len(through_batches(chat, tmp_path / "s.sqlite", windows(2))) == 2
    assert len(live(chat, tmp_path / "s.sqlite", windows(2))) == 2
    assert server.live == 0


def test_several_machines_share_a_database(openai: tuple[BatchServer, Chat], postgresql_url: str) -> None:
    server, chat = openai
    url: Any = postgresql_url
    with pytest.raises(Killed):
        through_batches(Mortal(chat, "after handing over"), url)
    found = through_batches(chat, url)
    assert len(values(found)) == 2 * WINDOWS
    assert paid_once(server)
    spent = costs(url)
    assert (spent.requests, spent.lost, spent.reserved) == (2 * WINDOWS, 0, 0)
    assert server.creations == 2


def test_a_rater_without_a_queue_is_named(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"scripted.*takes no batches"):
        through_batches(Scripted(truth=lambda _subject: np.zeros(2)), tmp_path / "s.sqlite")


def test_leaving_early_gives_up_what_was_not_sent(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    with pytest.raises(Killed):
        through_batches(Mortal(chat, "while putting together"), tmp_path / "s.sqlite")
    assert costs(tmp_path / "s.sqlite").reserved == 0
    assert server.creations == 0
    with Store.open(tmp_path / "s.sqlite") as store:
        assert store.open_batches() == []


def test_ctrl_c_while_handing_over_writes_the_batch_down_first(openai: tuple[BatchServer, Chat], tmp_path: Path) -> None:
    server, chat = openai
    rater = Mortal(chat, "never")
    task: list[asyncio.Task[Any]] = []
    create = rater.queue.inner.create

    async def interrupted(marker: str, draft: BatchDraft) -> Any:
        task[0].cancel()
        await asyncio.sleep(0.05)
        return await create(marker, draft)

    rater.queue.create = interrupted  # type: ignore[method-assign]

    async def inside() -> None:
        async def work() -> None:
            with Store.open(tmp_path / "s.sqlite") as store:
                async with aclosing(ask_in_batches(windows(), METHOD, [rater], store, run="r")) as transcripts:  # type: ignore[type-var]
                    async for _transcript in transcripts:
                        pass

        task.append(asyncio.create_task(work()))
        with pytest.raises(asyncio.CancelledError):
            await task[0]

    run_sync(inside())
    with Store.open(tmp_path / "s.sqlite") as store:
        assert [row.state for row in store.open_batches()] == ["submitted"]
    assert len(through_batches(chat, tmp_path / "s.sqlite")) == WINDOWS
    assert paid_once(server)


def test_an_outcome_that_is_fetched_twice_is_written_once(tmp_path: Path) -> None:
    rater, request = Scripted(truth=lambda _subject: np.zeros(2)).rater, METHOD.next(window(0), ())
    assert request is not None
    key = Key(request.question, rater.key, 0)
    reply, failure = Reply("0: turned", usage=Usage(1, 1, 0.25)), Failure("overload", final=False)

    async def inside() -> None:
        with Store.open(tmp_path / "s.sqlite") as store:

            async def record(outcome: Reply | Failure) -> Reply | Failure:
                return await store.record(request, rater, 0, outcome, run="r", owner="batch/b", only_held=True)

            store.intend_batch("b", rater, "r", {"b-0": (request, 0)})
            asked = store.batch_requests("b")
            assert asked == {"b-0": (request.to_record(), 0)}
            assert batches._request(asked["b-0"][0]).question == request.question
            assert await store.holds("batch/b") == (0, 0.0)
            await store.claim(key, "batch/b", 100.0, run="r", dollars=1.0)
            count, left = await store.holds("batch/b")
            assert count == 1
            assert 99.0 < left <= 100.0
            await record(failure)
            await record(failure)  # its claim has ended with the first
            assert (store.costs("r").requests, store.costs("r").reserved) == (1, 0)
            await record(reply)  # no claim, but the first answer: a batch that outlived its lease
            assert await record(Reply("another")) == reply
            assert (store.costs("r").requests, store.costs("r").charged) == (2, 0.25)

    run_sync(inside())


class Doomed(MortalQueue):
    """Kills the process after so many steps of whatever kind."""

    def __init__(self, inner: Batches | None, steps: int) -> None:
        super().__init__(inner, "never")
        self.steps = steps

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Killed

    def draft(self, largest: int | None = None) -> BatchDraft:
        draft = super().draft(largest)
        add = draft.add

        async def counted(name: str, request: Request, repeat: int) -> bool | Failure:
            self.step()
            return await add(name, request, repeat)

        draft.add = counted  # type: ignore[method-assign]
        return draft

    async def create(self, marker: str, draft: BatchDraft) -> str | Failure | None:
        self.step()
        name = await super().create(marker, draft)
        self.step()
        return name

    async def status(self, batch: str) -> BatchStatus | Failure:
        self.step()
        return await super().status(batch)

    async def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
        async for result in super().results(batch, requests):
            self.step()
            yield result
        self.step()

    async def forget(self, marker: str, batch: str) -> None:
        self.step()
        await super().forget(marker, batch)


def check_many_lives(vendor: tuple[BatchServer, Chat], folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed again and again at random moments, at a vendor with random accidents, pays for every answer exactly once."""
    server, chat = vendor
    server.reset()
    draw = np.random.default_rng(seed)
    mishaps: list[Fate] = ["ok", "ok", "ok", "twice", "server error", "missing", "damaged"]
    unlucky = {(job, position): mishaps[int(draw.integers(len(mishaps)))] for job in range(8) for position in range(3)}
    server.switches.fate = lambda line: unlucky.get((line.job, line.position), "ok")

    async def dead(asker: Any) -> None:
        if asker._heartbeat is not None:
            asker._heartbeat.cancel()
        for order in [*asker._orders.values(), *asker._full]:
            order.draft.close()

    store, lives = folder / f"{seed}.sqlite", 0
    found: list[Transcript] = []
    while not found:
        lives += 1
        rater = Mortal(chat, "never")
        rater.queue = Doomed(chat.batches(), int(draw.integers(1, 40)) if lives < 12 else 10**6)
        server.switches.polls = int(draw.integers(0, 3))
        setattr(server.switches, "cut" if draw.random() < 0.5 else "lost", int(draw.random() < 0.3))
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(batches._BatchAsker, "close", dead)
            found = through_batches(rater, store, windows(6), largest=3, attempts=10)
    assert {state for _start, state, _value, _rationale in values(found)} == {"labelled"}
    assert paid_once(server)
    assert len(server.billed) == 12
    spent = costs(store)
    assert (spent.answered, spent.lost, spent.reserved) == (12, 0, 0)
    with Store.open(store) as opened:
        assert opened.open_batches() == []


@pytest.mark.parametrize("seed", range(1))
def test_many_lives(vendor: tuple[BatchServer, Chat], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    check_many_lives(vendor, tmp_path, seed, monkeypatch)


@pytest.mark.slow
def test_very_many_lives(vendor: tuple[BatchServer, Chat], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(100, 130):
        check_many_lives(vendor, tmp_path, seed, monkeypatch)


CHILD = """
import asyncio, sys
from contextlib import aclosing
from tests.test_batches import METHOD, windows
from guerdon.asking.batches import ask_in_batches
from guerdon.asking.store import Store
from guerdon.providers.chat import Chat

async def main():
    chat = Chat("openai:gpt-4.1", Chat.Config(timeout=5.0, max_output_tokens=100))
    with Store.open(sys.argv[1]) as store:
        async with aclosing(ask_in_batches(windows(), METHOD, [chat], store, run="r", poll=0.05, settling=1.0)) as transcripts:
            async for _transcript in transcripts:
                pass
    await chat.close()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["upload", "create", "status", "content"])
def test_real_kills(openai: tuple[BatchServer, Chat], tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's machine kills the client with SIGKILL while it waits for an answer: at each stage of both rounds."""
    server, _chat = openai
    children: list[subprocess.Popen[bytes]] = []
    seen: Counter[str] = Counter()
    stages = {"POST files": "upload", "POST batches": "create", "GET batches": "status", "GET files": "content"}
    serve_one = server.serve

    def deadly(method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: bytes) -> Any:
        answer = serve_one(method, path, query, headers, body)
        if stages.get(f"{method} {path.split('/')[2]}") == moment and len(path.split("/")) > (3 if moment == "status" else 2):
            seen[path] += 1
            if sum(seen.values()) in (1, 3):
                children[-1].kill()
                children[-1].wait()
        return answer

    monkeypatch.setattr(server, "serve", deadly)
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": PLANTED_KEY}
    for _attempt in range(4):
        children.append(subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "s.sqlite")], env=environment))
        if children[-1].wait(timeout=60) == 0:
            break
    assert [child.returncode for child in children][-1] == 0
    assert len(children) >= 2
    assert paid_once(server)
    assert len(server.billed) == 2 * WINDOWS
    spent = costs(tmp_path / "s.sqlite")
    assert (spent.requests, spent.lost, spent.reserved) == (2 * WINDOWS, 0, 0)
    assert spent.charged == pytest.approx(spent.dollars)
