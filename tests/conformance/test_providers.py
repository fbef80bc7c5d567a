"""What every provider must do, run over whatever providers there are; chat raters once per vendor, against imitations."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from guerdon import discover
from guerdon.answers import Scores, Text
from guerdon.asking.store import Store
from guerdon.frames import frame_picture
from guerdon.interfaces import Provider
from guerdon.providers._settings import ChatConfig
from guerdon.providers.embedded import Embedded
from guerdon.providers.replay import Replay
from guerdon.providers.scripted import Scripted
from guerdon.records import Evidence, Failure, Message, Rater, Reply, Request, Subject, canonical_json
from tests.vendors import CHAT_VENDORS, PLANTED_KEY, SLOW, VENDORS, Server, Vendor, serve

COUNT = 4
WINDOW = Path(__file__).parents[1] / "data" / "babyai_window.npz"
"""What happened in a BabyAI world in so many actions; `tests/test_embedded.py` compares it with the world."""


def request(answer: Text | Scores) -> Request:
    """A question about what really happened in a world: a rater that looks declines to judge anything else."""
    with np.load(WINDOW) as window:
        frames = tuple(frame_picture(frame) for frame in window["frames"])
        instruction, actions = str(window["instruction"]), tuple(window["actions"].tolist())
    messages = (Message("user", "What changed?", frames[:1]),)
    if isinstance(answer, Scores):
        messages = (*messages, Message("assistant", "0: left - turned left"), Message("user", "Score."))
    return Request(Evidence(instruction, actions, frames), messages, answer, "step", Subject(0, 0, COUNT), system="Be exact.")


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


def _embedded(_tmp_path: Path, _server: Server, _monkeypatch: pytest.MonkeyPatch) -> Provider:
    return Embedded.build()


def _asked(vendor: Vendor) -> Callable[[Path, Server, pytest.MonkeyPatch], Provider]:
    def make(_tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Provider:
        server.reply_with(vendor.answer(SCORES))
        return vendor.provider(server, monkeypatch)

    return make


def _name(vendor: Vendor) -> str:
    return f"chat {vendor.name}" if vendor.name in CHAT_VENDORS else vendor.name


MAKERS = {"scripted": _scripted, "replay": _replay, "embedded": _embedded, **{_name(vendor): _asked(vendor) for vendor in VENDORS.values()}}
"""First word: the provider's file."""


OWN_BATTERY = {"hf"}
"""Raters that run a model, and so need packages that not everybody has: they are tested in files of their own."""


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
    assert set(discover.names("providers")) - OWN_BATTERY == {name.split()[0] for name in MAKERS}


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
    assert len(ready.server.calls) == (0 if isinstance(ready.provider, Scripted | Replay | Embedded) else 2)


# --- failures of those who are asked over a network ---


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return VENDORS[request.param]


def test_failures_are_told_apart(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    faults = vendor.faults
    outcomes: dict[str, Reply | Failure] = {}
    with serve() as server:
        for slow in (False, True):
            provider = vendor.provider(server, monkeypatch, ChatConfig(timeout=0.8 if slow else 20))
            names = [name for name in faults if slow == (name in SLOW)]
            server.reply_with(*(faults[name].answer for name in names))
            outcomes |= dict(zip(names, ask(provider, *[REQUESTS["text"]] * len(names)), strict=True))
        assert len(server.calls) == len(faults)  # one call each, although every one failed
    for name, outcome in outcomes.items():
        fault = faults[name]
        assert isinstance(outcome, Failure), name
        assert (name, outcome.cause, outcome.final) == (name, fault.cause, fault.final)
        assert (name, outcome.status, outcome.retry_after) == (name, fault.status, fault.retry_after)
        assert outcome.code, name
        assert PLANTED_KEY not in repr(outcome)
        if name.startswith(("200 blocked", "200 refusal", "200 truncated")):
            assert outcome.usage.input_tokens == 100, name
    assert PLANTED_KEY not in caplog.text
    assert PLANTED_KEY not in repr([vars(record) for record in caplog.records])


def test_a_server_that_is_not_there_costs_nothing(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ceiling fills up with requests that never left."""
    with serve() as server:
        provider = vendor.provider(server, monkeypatch)
    (outcome,) = ask(provider, REQUESTS["text"])
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final, outcome.usage.dollars) == ("network", False, 0.0)


def test_a_connection_that_breaks_may_have_cost_something(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        provider = vendor.provider(server, monkeypatch)
        server.reply_with(next(fault.answer for name, fault in vendor.faults.items() if fault.cause == "network" and fault.status is None))
        (outcome,) = ask(provider, REQUESTS["text"])
    assert isinstance(outcome, Failure)
    free = vendor.name == "openai-compatible"  # a server on this machine
    assert (outcome.cause, outcome.usage.dollars) == ("network", 0.0 if free else None)


def test_a_lone_surrogate_in_a_reply_is_no_reason_to_lose_it(vendor: Vendor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve() as server:
        provider = vendor.provider(server, monkeypatch)
        server.reply_with(vendor.answer("half \ud83d a pair"))
        (outcome,) = ask(provider, REQUESTS["text"])
    assert isinstance(outcome, Reply)
    assert outcome.text.startswith("half ")
    assert outcome.text.endswith(" a pair")

    async def record(store: Store) -> Reply | Failure | None:
        await store.record(REQUESTS["text"], provider.rater, 0, outcome, run="a")
        return await store.find(REQUESTS["text"].question, provider.rater.key, 0)

    with Store.open(tmp_path / "surrogate.sqlite") as store:
        assert asyncio.run(record(store)) == outcome
