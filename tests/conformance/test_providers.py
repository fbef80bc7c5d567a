"""What every provider must do, run over whatever providers there are; chat raters once per vendor, against imitations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from guerdon import discover
from guerdon.answers import Scores, Text
from guerdon.asking.store import Store
from guerdon.interfaces import Provider
from guerdon.providers.chat import Chat
from guerdon.providers.replay import Replay
from guerdon.providers.scripted import Scripted
from guerdon.records import Cause, Evidence, Failure, Message, Picture, Rater, Reply, Request, Subject, canonical_json
from tests.vendors import PLANTED_KEY, VENDORS, Answer, Server, Vendor, serve

COUNT = 4


def request(answer: Text | Scores) -> Request:
    frames = tuple(Picture(f"s256:{number}", np.full((8, 8, 3), number, dtype=np.uint8)) for number in range(COUNT + 1))
    messages = (Message("user", "What changed?", frames[:1]),)
    if isinstance(answer, Scores):
        messages = (*messages, Message("assistant", "0: left - turned left"), Message("user", "Score."))
    return Request(Evidence("go", ("left",) * COUNT, frames), messages, answer, "step", Subject(0, 0, COUNT), system="Be exact.")


REQUESTS = {"text": request(Text()), "scores": request(Scores(COUNT))}
SCORES = '{"scores": [3, 9, 1, 10]}'


# --- one of each provider, ready to answer ---


def _scripted(_tmp_path: Path, _server: Server, _monkeypatch: pytest.MonkeyPatch) -> Provider:
    return Scripted.build("perfect", truth=lambda subject: np.ones(subject.stop - subject.start))


def _replay(tmp_path: Path, _server: Server, _monkeypatch: pytest.MonkeyPatch) -> Provider:
    async def record(store: Store) -> None:
        await store.record(REQUESTS["text"], Rater("someone", ""), 0, Reply("0: left - turned left"), run="a")
        await store.record(REQUESTS["scores"], Rater("someone", ""), 0, Reply(SCORES), run="a")

    with Store.open(tmp_path / "replies.sqlite") as store:
        asyncio.run(record(store))
    return Replay.build(str(tmp_path))


def _chat(vendor: Vendor) -> Callable[[Path, Server, pytest.MonkeyPatch], Provider]:
    def make(_tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Provider:
        server.reply_with(vendor.answer(SCORES))
        return vendor.provider(server, monkeypatch)

    return make


MAKERS = {"scripted": _scripted, "replay": _replay, **{f"chat {name}": _chat(vendor) for name, vendor in VENDORS.items()}}


@dataclass
class Ready:
    provider: Provider
    server: Server


@pytest.fixture(params=MAKERS)
def ready(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ready]:
    with serve() as server:
        provider = MAKERS[request.param](tmp_path, server, monkeypatch)
        yield Ready(provider, server)


def ask(provider: Provider, *requests: Request) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        try:
            return [await provider.ask(one) for one in requests]
        finally:
            await provider.close()

    return asyncio.run(run())


def test_every_provider_is_in_this_battery() -> None:
    assert set(discover.names("providers")) == {name.split()[0] for name in MAKERS}


def test_a_provider_has_a_name_and_a_config() -> None:
    for name in discover.names("providers"):
        config = discover.load("providers", name).Config
        assert is_dataclass(config)
        assert config.__doc__
        assert all(field.kw_only for field in fields(config))
        assert config() == config()


def test_the_identity_is_json_without_a_key(ready: Ready) -> None:
    rater = ready.provider.rater
    identity = canonical_json([rater.provider, rater.model, rater.base_url, dict(rater.settings)])
    assert json.loads(identity)[0] == rater.provider
    assert PLANTED_KEY not in identity + rater.name + ready.provider.remote + repr(ready.provider)
    asyncio.run(ready.provider.close())


def test_equal_providers_have_equal_keys(
    ready: Ready, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = MAKERS[request.node.callspec.params["ready"]](tmp_path, ready.server, monkeypatch)
    assert again.rater.key == ready.provider.rater.key
    for provider in (again, ready.provider):
        asyncio.run(provider.close())


def test_replies_can_be_read_as_what_was_asked_for(ready: Ready) -> None:
    text, scores = ask(ready.provider, REQUESTS["text"], REQUESTS["scores"])
    assert isinstance(text, Reply)
    assert isinstance(scores, Reply)
    assert REQUESTS["text"].answer.read(text.text)
    assert len(REQUESTS["scores"].answer.read(scores.text)) == COUNT
    assert text.seconds >= 0


def test_stored_replies_read_the_same(ready: Ready, tmp_path: Path) -> None:
    (outcome,) = ask(ready.provider, REQUESTS["scores"])
    rater = ready.provider.rater

    async def round_trip(store: Store) -> Reply | Failure | None:
        await store.record(REQUESTS["scores"], rater, 0, outcome, run="a")
        return await store.find(REQUESTS["scores"].question, rater.key, 0)

    with Store.open(tmp_path / "round-trip.sqlite") as store:
        found = asyncio.run(round_trip(store))
    assert isinstance(found, Reply)
    assert found == outcome
    assert REQUESTS["scores"].answer.read(found.text)


def test_a_request_is_one_http_call_or_none(ready: Ready) -> None:
    ask(ready.provider, REQUESTS["text"], REQUESTS["scores"])
    assert len(ready.server.calls) == (2 if isinstance(ready.provider, Chat) else 0)


# --- failures of those who are asked over a network ---

HTML = b"<html><body>Bad gateway</body></html>"


@dataclass(frozen=True)
class Case:
    answer: Answer
    cause: Cause | tuple[Cause, ...]
    final: bool = False
    status: int | None = None
    retry_after: float | None = None


def _error(status: int, **headers: str) -> Answer:
    body = {"error": {"message": f"something about {PLANTED_KEY}", "type": "some_type"}}
    return Answer(json.dumps(body).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()})


CASES = {
    "401": Case(_error(401), "authentication", status=401),
    "403": Case(_error(403), "authentication", status=403),
    "402": Case(_error(402), "quota", status=402),
    "400": Case(_error(400), "bad_request", final=True, status=400),
    "413": Case(_error(413), "bad_request", final=True, status=413),
    "408": Case(_error(408), "timeout", status=408),
    "429": Case(_error(429, retry_after="11"), "rate_limit", status=429, retry_after=11.0),
    "500": Case(_error(500), "overload", status=500),
    "503": Case(_error(503, retry_after="3"), "overload", status=503, retry_after=3.0),
    "529": Case(_error(529), "overload", status=529),
    "HTML with 502": Case(Answer(HTML, 502, content_type="text/html"), "overload", status=502),
    "HTML with 200": Case(Answer(HTML, content_type="text/html"), "unreadable"),
    "HTML that says JSON": Case(Answer(HTML), "unreadable"),
    "half of JSON": Case(Answer(b'{"id": "x", "cho'), "unreadable"),
    "JSON of another shape": Case(Answer(b'{"hello": "world"}'), ("unreadable", "empty")),
    "a JSON list": Case(Answer(b"[1, 2]"), ("unreadable", "empty")),
    "no body": Case(Answer(b""), "empty"),
    "a dropped connection": Case(Answer(drop=True), "network"),
    "silence": Case(Answer(delay=1.0), "timeout"),
}


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return VENDORS[request.param]


def test_failures_are_told_apart(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        provider = vendor.provider(server, monkeypatch, Chat.Config(timeout=0.4))
        server.reply_with(*(case.answer for case in CASES.values()))
        outcomes = dict(zip(CASES, ask(provider, *[REQUESTS["scores"]] * len(CASES)), strict=True))
        assert len(server.calls) == len(CASES)  # one call each, although every one failed
    for name, outcome in outcomes.items():
        case = CASES[name]
        assert isinstance(outcome, Failure), name
        assert outcome.cause in (case.cause if isinstance(case.cause, tuple) else (case.cause,)), name
        assert outcome.cause in get_args(Cause)
        assert (outcome.final, outcome.status, outcome.retry_after) == (case.final, case.status, case.retry_after), name
        assert outcome.code, name
        assert PLANTED_KEY not in repr(outcome)


def test_answers_that_are_none_are_told_apart(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        provider = vendor.provider(server, monkeypatch)
        server.reply_with(*(vendor.outcome(name) for name in vendor.outcomes))
        outcomes = ask(provider, *[REQUESTS["scores"]] * len(vendor.outcomes))
    for name, outcome in zip(vendor.outcomes, outcomes, strict=True):
        assert isinstance(outcome, Failure), name
        assert (outcome.cause, outcome.final) == (name.split()[0], name != "empty")
        assert outcome.status is None
        if name != "empty":
            assert outcome.usage.input_tokens == 100
