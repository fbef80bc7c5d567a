"""Chat raters against imitated vendors: what is sent, what comes back, what is never let out."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from genai_prices.data_snapshot import get_snapshot
from pydantic_ai.direct import model_request
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import KnownModelName

from guerdon.answers import AnswerSpec, Scores, Text
from guerdon.asking.scheduler import ask
from guerdon.asking.store import Store
from guerdon.errors import AuthenticationRefused, ProviderError, UsageError
from guerdon.interfaces import Provider
from guerdon.providers._settings import EncodedPictures, status_cause
from guerdon.providers.chat import Chat, prefixes
from guerdon.records import Cause, Evidence, Failure, Frames, Message, Picture, PictureFormat, Price, Reply, Request, Subject, Usage
from tests.test_scheduler import Sleeps, TwoTurns, collect, sample
from tests.vendors import CHAT_VENDORS, PLANTED_KEY, VENDORS, Answer, Server, Vendor, pictures, serve, texts

PIXELS: Frames = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Picture("s256:picture", PIXELS)


@pytest.fixture(params=CHAT_VENDORS)
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


# --- answers in JSON ---


def _schema(body: dict[str, Any]) -> Any:
    """The schema of the scores in a body, wherever the vendor has it."""
    if "properties" in body:
        return body["properties"]["scores"]
    return next((found for value in body.values() if isinstance(value, dict) and (found := _schema(value))), None)


BOUNDS = {"minItems": 2, "maxItems": 2}
ITEM = {"type": "integer", "minimum": 0, "maximum": 10}
SCHEMAS = {
    "openai": {"type": "array", "items": ITEM, **BOUNDS},
    "openai-chat": {"type": "array", "items": ITEM, **BOUNDS},
    "google": {"type": "array", "items": ITEM, **BOUNDS},
    # Anthropic refuses bounds of numbers and of lengths; they are told instead.
    "anthropic": {
        "type": "array",
        "items": {"type": "integer", "description": "{minimum: 0, maximum: 10}"},
        "description": "{maxItems: 2, minItems: 2}",
    },
}


def test_the_schema_is_sent_with_scores_only(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    provider = vendor.provider(server, monkeypatch)
    ask_all(provider, first_turn(), second_turn())
    assert provider.rater.settings["schema"] == "native"
    without, with_schema = (call.body for call in server.calls)
    assert _schema(without) is None
    assert _schema(with_schema) == SCHEMAS[vendor.name]
    assert not any("JSON" in text for text in texts(with_schema))


def test_a_fine_tuned_model_gets_no_bounds(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(VENDORS["openai-chat"].answer('{"scores": [3, 9]}'))
    VENDORS["openai-chat"].provider(server, monkeypatch)
    ask_all(Chat("openai-chat:ft:gpt-4.1:someone::1"), second_turn())
    assert _schema(server.calls[0].body) == {
        "type": "array",
        "items": {"type": "integer", "description": "minimum: 0, maximum: 10"},
        "description": "minItems: 2, maxItems: 2",
    }


def test_a_schema_in_words_stands_at_the_end(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    provider = vendor.provider(server, monkeypatch, Chat.Config(structured="instructed"))
    ask_all(provider, first_turn(), second_turn())
    assert provider.rater.settings["schema"] == "in words"
    without, with_words = (call.body for call in server.calls)
    vendor.check(server.calls[1])
    assert [_schema(body) for body in (without, with_words)] == [None, None]
    assert not any("JSON" in text for text in texts(without))
    (told,) = (text for text in texts(with_words) if "JSON" in text)
    assert told.startswith("Now score.\n\nAnswer with one JSON object")
    assert json.loads(told[told.index("{") :]) == Scores(2).schema()
    assert second_turn().messages[-1].text == "Now score."  # the question that is stored says nothing of it


@pytest.mark.filterwarnings("ignore:The model 'claude-3-5-haiku-latest' is deprecated:DeprecationWarning")
def test_a_model_that_knows_no_schemas_gets_words(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(VENDORS["anthropic"].answer('{"scores": [3, 9]}'))
    VENDORS["anthropic"].provider(server, monkeypatch)
    ask_all(provider := Chat("anthropic:claude-3-5-haiku-latest"), second_turn())
    assert provider.rater.settings["schema"] == "in words"
    assert any("JSON" in text for text in texts(server.calls[0].body))
    with pytest.raises(UsageError, match=r"claude-3-5-haiku-latest: takes no schema"):
        Chat("anthropic:claude-3-5-haiku-latest", Chat.Config(structured="native"))


# --- the vendors' caches ---


def _prefix(vendor: Vendor, body: dict[str, Any]) -> tuple[Any, ...]:
    """What a vendor reads first: all up to the end of the first user turn."""
    turns = body.get("messages") or body.get("input") or body["contents"]
    first = [turn["role"] for turn in turns].index("user")
    return body.get("instructions"), body.get("system"), body.get("systemInstruction"), _schema(body), turns[: first + 1]


def test_the_second_turn_begins_with_the_first_one(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    provider = vendor.provider(server, monkeypatch, Chat.Config(structured="instructed"))
    ask_all(provider, first_turn(), second_turn())
    first, second = (json.dumps(_prefix(vendor, call.body)) for call in server.calls)
    assert first == second
    assert "What changed?" in first


@pytest.mark.parametrize("structured", ["auto", "instructed"])
@pytest.mark.parametrize("spec", ["anthropic:claude-sonnet-4-6", "openai:gpt-5.6-terra", "openai-chat:gpt-5.6-terra"])
def test_only_what_will_be_read_is_written_to_a_cache_that_costs(
    spec: str, structured: Literal["auto", "instructed"], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = VENDORS[spec.split(":")[0]]
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    vendor.provider(server, monkeypatch)
    alone = replace(second_turn(), messages=first_turn().messages)
    ask_all(Chat(spec, Chat.Config(structured=structured)), first_turn(), second_turn(), alone)
    for call in server.calls:
        vendor.check(call)
        if vendor.name != "anthropic":
            assert call.body["prompt_cache_options"] == {"mode": "explicit"}
    bodies = [json.dumps(call.body) for call in server.calls]
    marks = [body.count('"cache_control"') + body.count('"prompt_cache_breakpoint"') for body in bodies]
    assert marks == ([1, 1, 0] if structured == "instructed" else [0, 0, 0])  # a question that stands alone is not asked about again
    if structured == "instructed":
        _picture, text = _prefix(vendor, server.calls[1].body)[-1][-1]["content"]
        assert text["text"] == "What changed?"
        assert {"cache_control", "prompt_cache_breakpoint"} & text.keys()


@pytest.mark.parametrize("name", ["openai", "openai-chat"])
def test_openai_hears_which_requests_belong_together(name: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS[name]
    server.reply_with(vendor.answer('{"scores": [3, 9]}'))
    another = replace(first_turn(), messages=(Message("user", "What changed?", (Picture("s256:another", PIXELS),)),))
    ask_all(vendor.provider(server, monkeypatch, Chat.Config(structured="instructed")), first_turn(), second_turn(), another)
    ask_all(vendor.provider(server, monkeypatch), first_turn())
    one, two, other, native = (call.body.get("prompt_cache_key", "") for call in server.calls)
    assert one == two != other
    assert len(one) == 32
    assert not native
    assert all("prompt_cache_options" not in call.body for call in server.calls)  # older models would refuse it


def test_a_picture_is_encoded_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    original = Picture.encoded

    def counted(self: Picture, form: PictureFormat) -> bytes:
        encoded.append(form.text)
        return original(self, form)

    monkeypatch.setattr(Picture, "encoded", counted)
    picture = Picture("s256:encoded once", PIXELS)
    first = replace(first_turn(), messages=(Message("user", "What changed?", (picture,)),))
    server.reply_with(VENDORS["openai"].answer("fine"))
    ask_all(VENDORS["openai"].provider(server, monkeypatch), first, first, first)
    ask_all(VENDORS["openai"].provider(server, monkeypatch, Chat.Config(picture_form="jpeg")), first)
    assert encoded == ["png", "jpeg 90"]


def test_pictures_may_travel_smaller(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer("fine"))
    provider = vendor.provider(server, monkeypatch, Chat.Config(picture_form="jpeg", jpeg_quality=80))
    ask_all(provider, first_turn())
    assert provider.rater.settings["pictures"] == "jpeg 80"
    body = json.dumps(server.calls[0].body)
    assert "image/jpeg" in body
    assert "image/png" not in body
    assert base64.b64encode(PICTURE.encoded(PictureFormat("jpeg", 80))).decode() in body.replace("-", "+").replace("_", "/")


def test_encoded_pictures_take_no_more_room_than_they_may() -> None:
    noise = [Picture(f"s256:noise {number}", np.roll(PIXELS, number)) for number in range(4)]
    size = len(noise[0].encoded(PictureFormat()))
    held = EncodedPictures(limit=3 * size)
    for picture in (*noise[:3], noise[0], noise[3]):
        assert held.of_now(picture, PictureFormat()) == picture.encoded(PictureFormat())
    assert [name for name, _form in held._files] == ["s256:noise 2", "s256:noise 0", "s256:noise 3"]
    assert sum(map(len, held._files.values())) == held._held <= 3 * size
    small = EncodedPictures(limit=size // 2)
    small.of_now(noise[0], PictureFormat())
    assert not small._files


# --- what it costs ---


@pytest.mark.parametrize(("name", "dollars"), [("openai", 0.00036), ("openai-chat", 0.00036), ("google", 0.00008), ("anthropic", 0.0006)])
def test_prices_are_those_of_the_vendor(name: str, dollars: float, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Per million tokens, in and out: gpt-4.1 2 and 8, gemini-2.5-flash 0.30 and 2.50, claude-sonnet-4-6 3 and 15.
    server.reply_with(VENDORS[name].answer("fine"))
    (outcome,) = ask_all(VENDORS[name].provider(server, monkeypatch), first_turn())
    assert outcome.usage.dollars == pytest.approx(dollars)


CACHED_USAGE: dict[str, tuple[dict[str, Any], float]] = {
    # 500 tokens in at the full price, 1,000 read from the cache, 20 out of which 7 are thoughts; in millionths of a dollar.
    "openai": (
        {"usage": {
            "input_tokens": 1500, "output_tokens": 20, "total_tokens": 1520,
            "input_tokens_details": {"cached_tokens": 1000}, "output_tokens_details": {"reasoning_tokens": 7},
        }},
        500 * 2 + 1000 * 0.5 + 20 * 8,
    ),
    "openai-chat": (
        {"usage": {
            "prompt_tokens": 1500, "completion_tokens": 20, "total_tokens": 1520,
            "prompt_tokens_details": {"cached_tokens": 1000}, "completion_tokens_details": {"reasoning_tokens": 7},
        }},
        500 * 2 + 1000 * 0.5 + 20 * 8,
    ),
    "google": (
        {"usageMetadata": {
            "promptTokenCount": 1500, "cachedContentTokenCount": 1000, "candidatesTokenCount": 13, "thoughtsTokenCount": 7,
            "totalTokenCount": 1520,
        }},
        500 * 0.3 + 1000 * 0.03 + 20 * 2.5,
    ),
    # Anthropic counts apart: 400 of the 500 were written to the cache, at a quarter more.
    "anthropic": (
        {"usage": {
            "input_tokens": 100, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 400, "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 7},
        }},
        100 * 3 + 1000 * 0.3 + 400 * 3.75 + 20 * 15,
    ),
}  # fmt: skip


def test_thoughts_and_cached_tokens_are_counted(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    told, millionths = CACHED_USAGE[vendor.name]
    server.reply_with(Answer(json.dumps({**vendor.reply("fine"), **told}).encode()))
    provider = vendor.provider(server, monkeypatch)
    (outcome,) = ask_all(provider, first_turn())
    assert outcome.usage == Usage(1500, 20, pytest.approx(millionths / 1e6), thinking_tokens=7, cached_tokens=1000)


def test_the_price_that_the_user_names_wins(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer("fine"))
    provider = vendor.provider(server, monkeypatch)
    provider.price = Price(10, 100)
    (outcome,) = ask_all(provider, first_turn())
    assert outcome.usage.dollars == pytest.approx((100 * 10 + 20 * 100) / 1e6)
    quote = provider.quote(first_turn())
    assert quote is not None
    assert quote.dollars is not None
    assert quote.dollars >= 8192 * 100 / 1e6


def test_a_batch_costs_half(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer("fine"))
    provider = vendor.provider(server, monkeypatch)
    assert isinstance(provider, Chat)

    async def response() -> ModelResponse:
        got = await model_request(provider.model, await provider.conversation(first_turn()), model_settings=provider.settings())
        await provider.close()
        return got

    got = asyncio.run(response())
    live, batch = provider.outcome(got).usage.dollars, provider.outcome(got, batch=True).usage.dollars
    assert live is not None
    assert batch == pytest.approx(live / 2)


def test_a_quote_is_more_than_the_bill(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = vendor.provider(server, monkeypatch)
    server.reply_with(vendor.answer("fine"))
    (outcome,) = ask_all(provider, second_turn())
    quote = provider.quote(second_turn())
    assert quote is not None
    assert quote.output_tokens == 8192
    assert quote.dollars is not None
    assert outcome.usage.dollars is not None
    assert quote.dollars > outcome.usage.dollars


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
    [
        ("openai:gpt-4.1", True), ("openai:o4-mini", False), ("openai:gpt-5", False), ("openai:gpt-5.1", True), ("openai:gpt-5.6", False),
        ("openai-chat:gpt-5", False), ("anthropic:claude-opus-4-8", False), ("anthropic:claude-haiku-4-5", True),
        ("google:gemini-3-pro-preview", True),
    ],
)  # fmt: skip
def test_a_setting_that_would_be_ignored_is_none(spec: str, takes: bool, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VENDORS[spec.split(":")[0]]
    vendor.provider(server, monkeypatch)
    server.reply_with(vendor.answer("fine"))
    provider = Chat(spec, Chat.Config(temperature=0.25, max_output_tokens=77))
    (outcome,) = ask_all(provider, first_turn())  # pydantic-ai warns when it drops a setting; a warning fails this test
    assert isinstance(outcome, Reply)
    sent = {**server.calls[0].body, **server.calls[0].body.get("generationConfig", {})}
    assert ("temperature" in provider.rater.settings) == takes == ("temperature" in sent)
    names = {"max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens"}
    assert [sent[name] for name in names & sent.keys()] == [77] == [provider.rater.settings["max_tokens"]]


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
    monkeypatch.setenv("OPENAI_BASE_URL", "https://proxy.example/v1")
    redirected = Chat("openai:gpt-4.1")
    assert (redirected.remote, redirected.rater.base_url) == ("proxy.example", "https://proxy.example/v1")
    for here in ("localhost:1", "127.0.0.1", "127.1.2.3:9", "[::1]:80"):
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://{here}/v1")
        assert Chat("openai:gpt-4.1").remote == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://192.168.0.7/v1")
    assert Chat("openai:gpt-4.1").remote == "192.168.0.7"


def _behind_a_proxy(vendor: Vendor, scheme: str, proxy: Server, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """The rater, with its vendor at a host that does not exist and a proxy that does."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", proxy.url)
    for name, value in vendor.environment.items():
        monkeypatch.setenv(name, value.format(url=f"{scheme}://vendor.invalid"))
    return Chat(vendor.spec(""))


def test_a_proxy_is_used(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer("fine"))
    (outcome,) = ask_all(_behind_a_proxy(vendor, "http", server, monkeypatch), first_turn())
    assert isinstance(outcome, Reply)
    assert server.calls[0].path.startswith("http://vendor.invalid/v1")
    (outcome,) = ask_all(_behind_a_proxy(vendor, "https", server, monkeypatch), first_turn())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final) == ("network", False)
    assert [call.path for call in server.calls[1:]] == ["CONNECT vendor.invalid:443"]
    assert PLANTED_KEY not in str(server.calls[1].headers)


def test_no_proxy_is_used_for_the_hosts_that_need_none(vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(vendor.answer("fine"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (outcome,) = ask_all(vendor.provider(server, monkeypatch), first_turn())
    assert isinstance(outcome, Reply)
    assert server.calls[0].path.startswith("/v1")


@pytest.mark.parametrize("status", [302, 307])
def test_frames_do_not_follow_a_redirect(status: int, vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as elsewhere:
        elsewhere.reply_with(vendor.answer("fine"))
        server.reply_with(Answer(b"{}", status, {"Location": f"{elsewhere.url}/v1"}))
        (outcome,) = ask_all(vendor.provider(server, monkeypatch), first_turn())
        assert not elsewhere.calls
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final, outcome.status) == ("network", False, status)


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


@pytest.mark.parametrize("name", ["openai", "openai-chat", "anthropic", "google"])
def test_a_status_means_the_same_to_every_vendor_as_to_a_server_of_ones_own(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = (400, 401, 402, 407, 408, 409, 425, 429, 451, 499, 500, 501, 503, 504, 524, 529)
    provider = VENDORS[name].provider(server, monkeypatch)
    server.reply_with(*(Answer(b"{}", status) for status in statuses))
    outcomes = ask_all(provider, *(first_turn() for _ in statuses))
    told = {
        status: (outcome.cause, outcome.final) for status, outcome in zip(statuses, outcomes, strict=True) if isinstance(outcome, Failure)
    }
    assert told == {status: status_cause(status) for status in statuses}


def test_the_vendors_short_code_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = VENDORS["openai"].provider(server, monkeypatch)
    server.reply_with(_error(429, code="insufficient_quota"), _error(429, code="rate_limit_exceeded", headers={"retry-after": "7"}))
    quota, rate = ask_all(provider, first_turn(), first_turn())
    assert isinstance(quota, Failure)
    assert isinstance(rate, Failure)
    assert (quota.cause, quota.code) == ("quota", "insufficient_quota")
    assert (rate.cause, rate.code) == ("rate_limit", "rate_limit_exceeded")


def test_the_model_that_takes_no_pictures_is_not_an_unknown_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = VENDORS["openai-chat"].provider(server, monkeypatch)
    body = {"error": {"message": "No endpoints found that support image input", "code": 404}}
    server.reply_with(Answer(json.dumps(body).encode(), 404))
    (outcome,) = ask_all(provider, first_turn())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final, outcome.status) == ("unsupported", True, 404)


@pytest.mark.parametrize(
    ("name", "change", "cause", "code"),
    [
        ("google", lambda body: body["candidates"][0].update(finishReason="OTHER"), "truncated", "OTHER"),
        ("anthropic", lambda body: body.update(stop_reason="pause_turn"), "truncated", "pause_turn"),
        ("anthropic", lambda body: body.update(stop_reason="something_new"), "truncated", "something_new"),
        ("anthropic", lambda body: body["content"].insert(0, {"type": "something_new"}), "unreadable", "unknown_part"),
        ("openai", lambda body: body.update(status="incomplete"), "truncated", "incomplete"),
        ("openai", lambda body: body.update(status="queued"), "truncated", "queued"),
    ],
)
def test_an_answer_without_an_ordinary_end_is_none(
    name: str, change: Callable[[dict[str, Any]], object], cause: Cause, code: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = VENDORS[name].reply("0: turned le")
    change(body)
    server.reply_with(Answer(json.dumps(body).encode()))
    (outcome,) = ask_all(VENDORS[name].provider(server, monkeypatch), first_turn())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final, outcome.code) == (cause, False, code)
    assert outcome.usage.output_tokens == 20  # paid for all the same


def test_thoughts_are_no_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    google = VENDORS["google"].reply("yes")
    google["candidates"][0]["content"]["parts"].insert(0, {"text": "{}", "thought": True})
    anthropic = VENDORS["anthropic"].reply("yes")
    anthropic["content"].insert(0, {"type": "thinking", "thinking": "{}", "signature": "s"})
    chat = VENDORS["openai-chat"].reply("<think>{}</think>yes")
    for name, body in (("google", google), ("anthropic", anthropic), ("openai-chat", chat)):
        server.reply_with(Answer(json.dumps(body).encode()))
        (outcome,) = ask_all(VENDORS[name].provider(server, monkeypatch), first_turn())
        assert isinstance(outcome, Reply)
        assert outcome.text.strip() == "yes"


def test_an_error_keeps_nothing_of_what_the_vendor_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(_error(404, code="model_not_found"))
    with pytest.raises(ProviderError) as raised:
        ask_all(VENDORS["openai-chat"].provider(server, monkeypatch), first_turn())
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None
    assert PLANTED_KEY not in "".join(traceback.format_exception(raised.value))


def test_a_code_that_holds_the_key_is_not_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.reply_with(_error(400, code=f"bad-{PLANTED_KEY}", kind="invalid_request_error"))
    (outcome,) = ask_all(VENDORS["openai-chat"].provider(server, monkeypatch), first_turn())
    assert isinstance(outcome, Failure)
    assert outcome.code == "invalid_request_error"


def test_a_server_that_is_not_there_is_a_network_failure(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    (outcome,) = ask_all(vendor.provider(Server("http://127.0.0.1:9"), monkeypatch), first_turn())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final) == ("network", False)


def test_no_key_reaches_the_store_a_message_or_the_log(
    vendor: Vendor, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_no_known_model_gets_a_setting_that_is_dropped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [(vendor.id, model.id) for vendor in get_snapshot().providers for model in vendor.models if vendor.id in CHAT_VENDORS]
    names = {name for name in get_args(KnownModelName.__value__) if name.partition(":")[0] in CHAT_VENDORS}
    names |= {f"{vendor}:{model}" for vendor, model in listed} | {f"openai-chat:{model}" for vendor, model in listed if vendor == "openai"}
    assert len(names) > 200
    for name in sorted(names):
        vendor = VENDORS[name.partition(":")[0]]
        vendor.provider(server, monkeypatch)
        server.reply_with(vendor.answer("fine"))
        server.calls.clear()
        provider = Chat(name, Chat.Config(temperature=0.25))
        (outcome,) = ask_all(provider, first_turn())  # dropping a setting warns, and a warning is an error here
        assert isinstance(outcome, Reply), (name, outcome)
        sent = {**server.calls[0].body, **server.calls[0].body.get("generationConfig", {})}
        assert ("temperature" in provider.rater.settings) == ("temperature" in sent), name
