"""Chat raters against imitated vendors: what is sent, what comes back, what is never let out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon.answers import AnswerSpec, Scores, Text
from guerdon.asking.scheduler import ask
from guerdon.asking.store import Store
from guerdon.errors import AuthenticationRefused, ProviderError, UsageError
from guerdon.interfaces import Provider
from guerdon.providers.chat import Chat, prefixes
from guerdon.records import Evidence, Failure, Frames, Message, Picture, Reply, Request, Subject, Usage
from tests.test_scheduler import Sleeps, TwoTurns, collect, sample
from tests.vendors import PLANTED_KEY, VENDORS, Answer, Server, Vendor, pictures, serve, texts

PIXELS: Frames = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Picture("s256:picture", PIXELS)


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return VENDORS[request.param]


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as running:
        yield running


def first_turn(system: str = "Be exact.") -> Request:
    messages = (Message("user", "What changed?", (PICTURE,)),)
    return Request(Evidence("go", ("left",), ()), messages, Text(), "analyse", Subject(0, 0, 1), system=system)


def second_turn(answer: AnswerSpec | None = None, *, earlier: str = "0: left - turned left") -> Request:
    messages = (*first_turn().messages, Message("assistant", earlier), Message("user", "Now score."))
    return Request(Evidence("go", ("left",), ()), messages, answer or Scores(2), "score", Subject(0, 0, 1), system="Be exact.")


def ask_all(provider: Provider, *requests: Request) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        try:
            return [await provider.ask(request) for request in requests]
        finally:
            await provider.close()

    return asyncio.run(run())


def test_two_turns_with_the_picture(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    outcomes = ask_all(vendor.provider(server, monkeypatch), first_turn(), second_turn())
    for outcome in outcomes:
        assert isinstance(outcome, Reply)
        assert outcome.text == '{"scores": [3, 9]}'
        assert outcome.model in json.dumps(vendor.reply(""))
        assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (100, 20)
        assert outcome.seconds > 0
    assert len(server.calls) == 2
    said = ["What changed?"], ["What changed?", "0: left - turned left", "Now score."]
    for call, expected in zip(server.calls, said, strict=True):
        vendor.check(call)
        (picture,) = pictures(call.body)
        np.testing.assert_array_equal(picture, PIXELS)
        assert [text for text in texts(call.body) if text != "Be exact."] == expected
        assert json.dumps(call.body).count("Be exact.") == 1
        assert '"temperature": 0' in json.dumps(call.body)
        assert "8192" in json.dumps(call.body)


def test_the_schema_is_sent_with_scores_only(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    provider = vendor.provider(server, monkeypatch)
    ask_all(provider, first_turn(), second_turn())
    assert provider.rater.settings["schema"] == "native"
    without, with_schema = (json.dumps(call.body) for call in server.calls)
    assert "minItems" not in without
    assert "minItems" in with_schema


def test_a_model_without_schemas_gets_it_in_words(server: Server) -> None:
    server.reply_with(VENDORS["openai-chat"].answer('{"scores": [3, 9]}'))
    provider = Chat(f"openai-compatible:qwen/qwen2.5-vl@{server.url}/v1")
    ask_all(provider, second_turn(), first_turn(system=""))
    assert provider.rater.settings["schema"] == "instructed"
    system, *_ = server.calls[0].body["messages"]
    assert system["content"].startswith("Be exact.\n\nAnswer with one JSON object")
    assert [message["role"] for message in server.calls[0].body["messages"]] == ["system", "user", "assistant", "user"]
    assert [message["role"] for message in server.calls[1].body["messages"]] == ["user"]
    assert "response_format" not in server.calls[0].body


@pytest.mark.parametrize(("name", "dollars"), [("openai", 0.00036), ("openai-chat", 0.00036), ("google", 0.00008), ("anthropic", 0.0006)])
def test_prices_are_those_of_the_vendor(name: str, dollars: float, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Per million tokens, in and out: gpt-4.1 2 and 8, gemini-2.5-flash 0.30 and 2.50, claude-sonnet-4-6 3 and 15.
    server.reply_with(VENDORS[name].answer("fine"))
    (outcome,) = ask_all(VENDORS[name].provider(server, monkeypatch), first_turn())
    assert outcome.usage.dollars == pytest.approx(dollars)


def test_a_server_of_ones_own_has_no_known_price(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS["openai-compatible"]
    server.reply_with(vendor.answer("fine"))
    (outcome,) = ask_all(vendor.provider(server, monkeypatch), first_turn())
    assert outcome.usage == Usage(100, 20, None)


def test_usage_that_was_not_told_is_unknown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS["openai-chat"]
    server.reply_with(Answer(json.dumps({**vendor.reply("fine"), "usage": None}).encode()))
    (outcome,) = ask_all(vendor.provider(server, monkeypatch), first_turn())
    assert isinstance(outcome, Reply)
    assert outcome.usage == Usage(None, None, None)


def test_a_lone_surrogate_in_an_earlier_reply_can_be_sent(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer("fine"))
    (outcome,) = ask_all(vendor.provider(server, monkeypatch), second_turn(earlier="half \ud83d a pair"))
    assert isinstance(outcome, Reply)
    assert "half ? a pair" in texts(server.calls[0].body)


def test_frames_are_not_kept_on_openais_servers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openai", "openai-chat"):
        server.reply_with(VENDORS[name].answer("fine"))
        ask_all(VENDORS[name].provider(server, monkeypatch), first_turn())
        assert server.calls[-1].body["store"] is False


# --- settings ---


def test_what_is_sent_is_what_the_identity_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS["openai-chat"]
    server.reply_with(vendor.answer("fine"))
    provider = vendor.provider(server, monkeypatch, Chat.Config(temperature=0.5, max_output_tokens=77, seed=5))
    assert provider.rater.settings == {"temperature": 0.5, "max_tokens": 77, "seed": 5, "schema": "native"}

    async def two_repeats() -> None:
        await provider.ask(first_turn())
        await provider.ask(first_turn(), repeat=2)
        await provider.close()

    asyncio.run(two_repeats())
    assert [call.body["seed"] for call in server.calls] == [5, 7]
    assert {(call.body["temperature"], call.body["max_completion_tokens"]) for call in server.calls} == {(0.5, 77)}


@pytest.mark.parametrize(
    ("spec", "takes"),
    [("openai:gpt-4.1", True), ("openai:o4-mini", False), ("openai:gpt-5.1", True), ("anthropic:claude-opus-4-8", False)],
)
def test_a_temperature_that_would_be_ignored_is_no_setting(spec: str, takes: bool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS[spec.split(":")[0]]
    for name, value in vendor.environment.items():
        monkeypatch.setenv(name, value.format(url=server.url))
    server.reply_with(vendor.answer("fine"))
    provider = Chat(spec)
    (outcome,) = ask_all(provider, first_turn())  # pydantic-ai warns when it drops a setting; a warning fails this test
    assert isinstance(outcome, Reply)
    assert ("temperature" in provider.rater.settings) == takes == ("temperature" in server.calls[0].body)


def test_a_seed_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    with pytest.raises(UsageError, match="takes no seed"):
        Chat("openai:gpt-4.1", Chat.Config(seed=1))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"max_output_tokens": 0}, {"timeout": 0}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="chat: "):
        Chat.Config(**wrong)


def test_where_the_frames_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    assert Chat("openai:gpt-4.1").remote == "api.openai.com"
    assert Chat("openai:gpt-4.1").rater.base_url == ""
    assert Chat("openai-compatible:m@https://gpu.example:8443/v1").remote == "gpu.example"
    for here in ("localhost:1", "127.0.0.1", "127.1.2.3:9", "[::1]:80"):
        assert Chat(f"openai-compatible:m@http://{here}/v1").remote == ""
    assert Chat("openai-compatible:m@http://192.168.0.7/v1").remote == "192.168.0.7"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example/v1")
    redirected = Chat("openai:gpt-4.1")
    assert (redirected.remote, redirected.rater.base_url) == ("proxy.example", "https://proxy.example/v1")


def test_an_openai_key_is_not_sent_to_another_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED_KEY)
    server.reply_with(VENDORS["openai-chat"].answer("fine"))
    ask_all(Chat(f"openai-compatible:m@{server.url}/v1"), first_turn())
    assert PLANTED_KEY not in json.dumps(dict(server.calls[0].headers))


def test_prefixes_can_be_listed_and_hold_no_duds() -> None:
    assert {"google", "openai", "anthropic", "openrouter", "mistral"} <= set(prefixes())
    assert not {"test", "openai-decisions"} & set(prefixes())


# --- failures ---


def test_what_ends_the_run_and_what_does_not(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS["openai-chat"]
    provider = vendor.provider(server, monkeypatch)
    server.reply_with(_error(404, code="model_not_found"))
    with pytest.raises(ProviderError, match=r"openai-chat:gpt-4\.1.*no such model.*Did you mean|Check the model"):
        ask_all(provider, first_turn())


def _error(status: int, *, code: str | None = None, kind: str = "some_type", headers: dict[str, str] | None = None) -> Answer:
    message = f"Incorrect API key provided: {PLANTED_KEY}"
    body = {"error": {"message": message, "code": code, "type": kind, "param": PLANTED_KEY}}
    return Answer(json.dumps(body).encode(), status, headers or {})


def test_an_exhausted_account_is_no_rate_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = VENDORS["openai"].provider(server, monkeypatch)
    server.reply_with(_error(429, code="insufficient_quota"), _error(429, code="rate_limit_exceeded", headers={"retry-after": "7"}))
    quota, rate = ask_all(provider, first_turn(), first_turn())
    assert isinstance(quota, Failure)
    assert isinstance(rate, Failure)
    assert (quota.cause, quota.code, quota.status, quota.retry_after) == ("quota", "insufficient_quota", 429, None)
    assert (rate.cause, rate.code, rate.status, rate.retry_after) == ("rate_limit", "rate_limit_exceeded", 429, 7.0)


def test_a_code_that_holds_the_key_is_not_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(_error(400, code=f"bad-{PLANTED_KEY}", kind="invalid_request_error"))
    (outcome,) = ask_all(VENDORS["openai-chat"].provider(server, monkeypatch), first_turn())
    assert isinstance(outcome, Failure)
    assert outcome.code == "invalid_request_error"


def test_a_server_that_is_not_there_is_a_network_failure() -> None:
    (outcome,) = ask_all(Chat("openai-compatible:m@http://127.0.0.1:9/v1"), first_turn())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final) == ("network", False)


def test_no_key_reaches_the_store_a_message_or_the_log(
    vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    provider = vendor.provider(server, monkeypatch)
    server.reply_with(_error(500), vendor.answer("0: fine"), _error(400), _error(401))
    raised: list[BaseException] = []

    async def run(store: Store) -> None:
        try:
            await collect(ask(map(sample, range(2)), TwoTurns(), [provider], store, run="a", concurrency=1, sleep=Sleeps()))
        except AuthenticationRefused as error:
            raised.append(error)
        await provider.close()

    with Store.open(tmp_path / "s.sqlite") as store:
        asyncio.run(run(store))
        assert store.costs("a").failures == {"overload": 1, "authentication": 1, "bad_request": 1}
    assert [call for call in server.calls if PLANTED_KEY in str(call.headers)] == server.calls
    assert len(server.calls) == 4
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"0: fine" in written
    assert PLANTED_KEY.encode() not in written
    assert PLANTED_KEY not in "".join((str(raised[0]), repr(raised[0]), caplog.text, repr(provider.rater), repr(vars(provider.rater))))
