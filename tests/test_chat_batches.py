"""Vendors' batch queues, against servers that speak their protocols: what is sent, what comes of it, and what an accident leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from guerdon.answers import Scores, Text
from guerdon.asking.loop import run_sync
from guerdon.interfaces import Batches, BatchStatus
from guerdon.providers._chat_batches import of
from guerdon.providers.chat import Chat
from guerdon.records import Evidence, Failure, Message, Picture, Reply, Request, Subject
from tests.batch_servers import SERVERS, BatchServer, Fate, serve
from tests.vendors import PLANTED_KEY

MARKER = "g0123456789abcdef0123456"


@pytest.fixture(scope="module", params=sorted(SERVERS))
def vendor(request: pytest.FixtureRequest) -> Iterator[tuple[BatchServer, Chat]]:
    """A server and a rater that asks it; building one takes a while."""
    with serve(request.param) as server, pytest.MonkeyPatch.context() as patch:
        chat = server.provider(patch, Chat.Config(timeout=5.0))
        yield server, chat
        run_sync(chat.close())


@pytest.fixture
def server(vendor: tuple[BatchServer, Chat]) -> BatchServer:
    vendor[0].reset()
    return vendor[0]


@pytest.fixture
def queue(vendor: tuple[BatchServer, Chat]) -> Batches:
    found = vendor[1].batches()
    assert found is not None
    return found


def question(number: int = 0, text: str = "What has changed?") -> Request:
    pixels = np.full((8, 8, 3), number, np.uint8)
    picture = Picture(f"picture {number}", pixels)
    return Request(
        evidence=Evidence("go to the red ball", ("left", "forward"), (picture,)),
        messages=(Message("user", f"{text} {number}", (picture,)),),
        answer=Text(),
        purpose="analyse",
        subject=Subject(0, number, number + 2),
        system="You judge.",
    )


def second_turn(number: int = 0) -> Request:
    first = question(number)
    turns = (*first.messages, Message("assistant", "0: turned"), Message("user", "Score them."))
    return Request(first.evidence, turns, Scores(2), "score", first.subject, system=first.system)


def requests(count: int = 3) -> dict[str, tuple[Request, int]]:
    return {f"{MARKER}-{number}": (question(number), 0) for number in range(count)}


async def handed_over(queue: Batches, asked: dict[str, tuple[Request, int]]) -> str | Failure | None:
    draft = queue.draft()
    try:
        for name, (request, repeat) in asked.items():
            assert await draft.add(name, request, repeat) is True
        return await queue.create(MARKER, draft)
    finally:
        draft.close()


async def until_ended(queue: Batches, batch: str) -> BatchStatus:
    for _ in range(20):
        status = await queue.status(batch)
        assert isinstance(status, BatchStatus)
        if status.state != "running":
            return status
    raise AssertionError("it never ended")


async def outcomes(queue: Batches, batch: str, asked: dict[str, tuple[Request, int]]) -> list[tuple[str, Reply | Failure]]:
    return [outcome async for outcome in queue.results(batch, asked)]


def test_a_batch_is_answered(server: BatchServer, queue: Batches) -> None:
    server.switches.polls = 2
    asked = {**requests(), f"{MARKER}-s": (second_turn(), 0)}

    async def work() -> tuple[list[str], dict[str, Reply | Failure]]:
        batch = await handed_over(queue, asked)
        assert isinstance(batch, str)
        states = []
        for _ in range(3):
            status = await queue.status(batch)
            assert isinstance(status, BatchStatus)
            states.append(status.state)
        return states, dict(await outcomes(queue, batch, asked))

    states, answered = run_sync(work())
    assert states == ["running", "ended", "ended"]
    assert answered.keys() == asked.keys()
    assert server.creations == 1
    assert len(server.billed) == 4
    for reply in answered.values():
        assert isinstance(reply, Reply)
        assert (reply.usage.input_tokens, reply.usage.output_tokens) == (100, 20)
    first, scores = answered[f"{MARKER}-0"], answered[f"{MARKER}-s"]
    assert isinstance(first, Reply)
    assert "\u2028" in first.text  # which some readers of lines take for the end of one
    assert isinstance(scores, Reply)
    assert len(Scores(2).read(scores.text)) == 2


def test_the_price_is_that_of_batches(vendor: tuple[BatchServer, Chat], server: BatchServer, queue: Batches) -> None:
    chat, asked = vendor[1], requests(1)

    async def work() -> tuple[Reply | Failure, Reply | Failure]:
        batch = await handed_over(queue, asked)
        assert isinstance(batch, str)
        await until_ended(queue, batch)
        return (await outcomes(queue, batch, asked))[0][1], await chat.ask(question())

    cheap, dear = run_sync(work())
    quote, dear_quote = queue.quote(question()), chat.quote(question())
    assert isinstance(cheap, Reply)
    assert isinstance(dear, Reply)
    assert cheap.text == dear.text
    assert cheap.usage.dollars is not None
    assert dear.usage.dollars is not None
    assert 0 < cheap.usage.dollars == pytest.approx(dear.usage.dollars / 2)
    assert quote is not None
    assert dear_quote is not None
    assert quote.dollars is not None
    assert dear_quote.dollars is not None
    assert cheap.usage.dollars <= quote.dollars < dear_quote.dollars


CAUSES: dict[Fate, tuple[str, bool, str]] = {
    "server error": ("overload", False, ""),
    "bad request": ("bad_request", True, ""),
    "expired": ("timeout", False, "batch_expired"),
    "cancelled": ("timeout", False, "batch_cancelled"),
}


def test_lines_that_fail_have_the_causes_of_live_requests(server: BatchServer, queue: Batches) -> None:
    fates: list[Fate] = ["ok", "twice", "server error", "bad request", "missing", "damaged"]
    if server.vendor != "google":  # Gemini ends a batch as a whole
        fates += ["expired", "cancelled"]
    server.switches.fate = lambda line: fates[line.position]
    asked = requests(len(fates))

    async def work() -> list[tuple[str, Reply | Failure]]:
        batch = await handed_over(queue, asked)
        assert isinstance(batch, str)
        status = await until_ended(queue, batch)
        assert status == BatchStatus("ended", status.finished)
        return await outcomes(queue, batch, {**asked, "somebody-elses": (question(), 0)})

    found = run_sync(work())
    answered = dict(found)
    for name, fate in zip(asked, fates, strict=True):
        if fate in ("missing", "damaged"):
            assert name not in answered
        elif fate in ("ok", "twice"):
            assert isinstance(answered[name], Reply)
        else:
            failure = answered[name]
            assert isinstance(failure, Failure)
            cause, final, code = CAUSES[fate]
            assert (failure.cause, failure.final) == (cause, final)
            assert failure.code == code or not code
            assert not code or failure.usage.dollars == 0  # the vendor says that it has not run it


@pytest.mark.parametrize("ending", ["expired", "cancelled", "failed"])
def test_a_batch_that_ends_badly_says_what_became_of_the_rest(server: BatchServer, queue: Batches, ending: Any) -> None:
    if server.vendor == "anthropic":
        pytest.skip("Anthropic's batches end in one way only; each request says how it ended")
    server.switches.ending = lambda _job: ending
    server.switches.fate = lambda line: "ok" if line.position == 0 else "missing"
    asked = requests(2)

    async def work() -> tuple[BatchStatus, list[str]]:
        batch = await handed_over(queue, asked)
        assert isinstance(batch, str)
        status = await until_ended(queue, batch)
        return status, [name for name, _ in await outcomes(queue, batch, asked)] if status.state == "ended" else []

    status, answered = run_sync(work())
    assert status.rest is not None
    if ending == "failed":
        assert (status.state, answered) == ("failed", [])
        assert status.rest.cause == ("rate_limit" if server.vendor == "openai" else "overload")
        assert not status.rest.final
    else:
        assert (status.state, answered) == ("ended", [f"{MARKER}-0"])
        assert (status.rest.cause, status.rest.code) == ("timeout", f"batch_{ending}")


def test_a_batch_whose_arrival_is_unknown_is_found_by_its_marker(server: BatchServer, queue: Batches) -> None:
    server.switches.cut = 1
    server.switches.polls = 0
    asked = requests()

    async def work() -> tuple[Any, Any, Any, Any, Any]:
        since = 0.0
        unknown = await handed_over(queue, asked)
        for _ in range(4):  # later batches of others, more than the server lists on a page
            server.begin("another", [(f"another-{number}", line.body) for number, line in enumerate(server.job(server.id_of(0)).lines)])
        found = await queue.find(MARKER, since=since, size=3)
        not_there = await queue.find("g9", since=since, size=3)
        too_late = await queue.find(MARKER, since=2e9, size=3)
        return unknown, found, not_there, too_late, dict(await outcomes(queue, str(found), asked))

    unknown, found, not_there, too_late, answered = run_sync(work())
    assert unknown is None
    assert found == server.id_of(0)
    assert not_there is None
    assert too_late is None or server.vendor != "anthropic"
    assert answered.keys() == asked.keys()


def test_a_batch_that_never_arrived_is_not_found(server: BatchServer, queue: Batches) -> None:
    server.switches.lost = 1

    async def work() -> tuple[Any, Any]:
        return await handed_over(queue, requests()), await queue.find(MARKER, since=0.0, size=3)

    assert run_sync(work()) == (None, None)
    assert (server.creations, len(server.jobs), len(server.billed)) == (1, 0, 0)


REFUSALS = {
    "openai": (429, {"error": {"message": "quota", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}}, "quota"),
    "anthropic": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, None),
    "google": (429, {"error": {"code": 429, "message": "busy", "status": "RESOURCE_EXHAUSTED"}}, "rate_limit"),
}


def test_a_refused_batch_did_not_come_into_being_and_its_file_is_deleted(server: BatchServer, queue: Batches) -> None:
    status, body, cause = REFUSALS[server.vendor]
    server.switches.refused = [(status, body)]
    answer = run_sync(handed_over(queue, requests()))
    if cause is None:  # after a server error nobody knows
        assert answer is None
    else:
        assert (answer.cause, answer.status) == (cause, status)
        assert not server.files
    assert server.creations == 1


@pytest.mark.parametrize("status", [408, 409, 499])
def test_a_call_that_was_broken_off_may_have_made_a_batch(status: int, server: BatchServer, queue: Batches) -> None:
    """Handing it over again could pay for it twice: `find` has to look first."""
    server.switches.refused = [(status, {"error": {"code": status, "message": "busy", "type": "busy"}})]
    assert run_sync(handed_over(queue, requests())) is None


def test_pictures_are_deleted_at_the_vendor(server: BatchServer, queue: Batches) -> None:
    if server.vendor == "anthropic":
        pytest.skip("Anthropic keeps requests and results together")

    async def work() -> list[str]:
        batch = await handed_over(queue, requests())
        assert isinstance(batch, str)
        before = list(server.files)
        await queue.forget(MARKER, batch)
        await queue.forget(MARKER, batch)
        return sorted(set(before) - set(server.files))

    deleted = run_sync(work())
    assert deleted == [f"files/{MARKER}"] if server.vendor == "google" else len(deleted) == 1


def test_a_batch_can_be_cancelled(server: BatchServer, queue: Batches) -> None:
    async def work() -> None:
        batch = await handed_over(queue, requests())
        await queue.cancel(str(batch))

    run_sync(work())
    assert server.job(server.id_of(0)).cancelled


def test_trouble_is_told_without_the_vendors_words(server: BatchServer, queue: Batches) -> None:
    from guerdon.errors import ProviderError

    async def work() -> tuple[Any, str]:
        status = await queue.status(server.id_of(77))
        with pytest.raises(ProviderError) as raised:
            await outcomes(queue, server.id_of(77), requests())
        return status, str(raised.value)

    status, text = run_sync(work())
    assert isinstance(status, Failure)
    assert status.status == 404
    assert "HTTP 404" in text
    assert PLANTED_KEY not in repr(status) + text
    assert "no /v1" not in text


def test_a_draft_takes_no_more_than_fits(server: BatchServer, queue: Batches) -> None:
    async def work(queue: Any) -> list[bool | Failure]:
        small = queue.draft(2)
        taken = [await small.add(f"{MARKER}-{number}", question(number), 0) for number in range(3)]
        small.close()
        queue.largest_bytes = 2 * small.bytes // 2 - 1  # one byte less than two requests
        tight = queue.draft()
        taken += [await tight.add(f"{MARKER}-{number}", question(number), 0) for number in range(2)]
        tight.close()
        queue.largest_bytes = 10
        tiny = queue.draft()
        taken.append(await tiny.add(f"{MARKER}-0", question(), 0))
        tiny.close()
        return taken

    *taken, too_large = run_sync(work(queue))
    assert taken == [True, True, False, True, False]
    assert isinstance(too_large, Failure)
    assert (too_large.cause, too_large.final) == ("bad_request", True)


def test_what_has_no_queue_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    chat = Chat("openai-chat:gpt-4.1")
    assert of(chat) is None
    asyncio.run(chat.close())


def test_one_that_is_still_running_is_not_taken_for_lost(server: BatchServer, queue: Batches) -> None:
    """Anthropic's batches have no names: nothing but its results tells whose a batch is."""
    if server.vendor != "anthropic":
        pytest.skip("batches of this vendor have names")
    server.switches.polls = 10**6
    server.switches.cut = 1

    async def work() -> list[Any]:
        await handed_over(queue, requests())
        running = await queue.find(MARKER, since=0.0, size=3)
        other_size = await queue.find(MARKER, since=0.0, size=4)
        known = await queue.find(MARKER, since=0.0, size=3, others=["msgbatch_0"])
        server.job("msgbatch_0").polls_left = 0
        ended = await queue.find(MARKER, since=0.0, size=3)
        server.switches.gone = True
        return [running, other_size, known, ended, await queue.find(MARKER, since=0.0, size=3)]

    running, other_size, known, ended, gone = run_sync(work())
    assert isinstance(running, Failure)
    assert not running.final
    assert (other_size, known, ended) == (None, None, "msgbatch_0")
    assert isinstance(gone, Failure)
    assert gone.final


def test_lines_are_read_as_they_arrive() -> None:
    """Whatever pieces a file comes in, its lines are the same; a separator within a text ends none."""
    from guerdon.providers._chat_batches import _lines

    data = '{"a": "x\u2028y\x85z"}\r\n\n{"b": 2}\n[1]\n{"c": \n{"d": 4}'.encode()

    async def read(size: int) -> list[Any]:
        async def pieces() -> Any:
            for first in range(0, len(data), size):
                yield data[first : first + size]

        return [record async for record in _lines(pieces())]

    for size in (1, 2, 3, 7, 1000):
        assert asyncio.run(read(size)) == [{"a": "x\u2028y\x85z"}, {"b": 2}, {"d": 4}]
