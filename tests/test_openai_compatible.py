"""Servers that speak OpenAI's chat completions: what is sent, what is read, what every refusal turns into."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import guerdon
from guerdon.answers import Scores, Text
from guerdon.errors import AuthenticationRefused, ProviderError, UsageError
from guerdon.labels import LabelSet
from guerdon.providers._settings import ChatConfig
from guerdon.providers.openai_compatible import OpenaiCompatible, _ResponseFormat
from guerdon.records import Evidence, Failure, Message, Picture, PictureFormat, Price, Reply, Request, Subject, Usage
from tests import compatible_server as servers
from tests.compatible_server import Answer, Body, Raw, Served, completion, serve
from tests.data.episodes import ACTIONS, episode, write

KEY = "sk-planted-0123456789abcdef"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Picture("s256:picture", PIXELS)
OTHER = Picture("s256:other", PIXELS[::-1].copy())


def question(answer: Text | Scores | None = None, *pictures: Picture, system: str = "Be exact.", text: str = "Now score.") -> Request:
    first = Message("user", 'Instruction given to the agent: "go"\n0: left\n1: right', pictures or (PICTURE,))
    messages = (first,) if answer is None else (first, Message("assistant", "0: it moves"), Message("user", f"{text} (whole numbers)"))
    return Request(Evidence("go", ("left", "right"), ()), messages, answer or Text(), "step", Subject(0, 0, 2), system=system)


SCORE = question(Scores(2))


def rater(served: Served, config: ChatConfig | None = None, model: str = "served") -> OpenaiCompatible:
    return OpenaiCompatible(f"{model}@{served.url}", config)


def ask(provider: OpenaiCompatible, *requests: Request) -> list[Reply | Failure]:
    async def run() -> list[Reply | Failure]:
        try:
            return [await provider.ask(request) for request in requests]
        finally:
            await provider.close()

    return asyncio.run(run())


def ask_of(
    answer: Callable[[Body], Answer | Raw] | Answer | Raw, *requests: Request, config: ChatConfig | None = None
) -> list[Reply | Failure]:
    with serve(answer if callable(answer) else lambda _body: answer) as served:
        outcomes = ask(rater(served, config), *(requests or (question(),)))
        assert len(served.bodies) == len(outcomes), "one HTTP call each"
    return outcomes


def failure_of(answer: Callable[[Body], Answer | Raw] | Answer | Raw, config: ChatConfig | None = None, *, score: bool = True) -> Failure:
    native = config or ChatConfig(structured="native")
    (outcome,) = ask_of(answer, SCORE if score else question(), config=native)
    assert isinstance(outcome, Failure)
    assert KEY not in repr(outcome)
    return outcome


# --- what is sent ---


def test_the_body_of_a_second_turn() -> None:
    with serve(servers.vllm) as served:
        (reply,) = ask(rater(served, ChatConfig(seed=5)), SCORE)
        (body,), (headers,) = served.bodies, served.headers
    assert {name: body[name] for name in body if name not in ("messages", "response_format")} == {
        "model": "served", "max_tokens": 8192, "temperature": 0.0, "stream": False, "seed": 5,
    }  # fmt: skip
    schema = Scores(2).schema()
    assert body["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    system, first, second, last = body["messages"]
    assert (system, second) == ({"role": "system", "content": "Be exact."}, {"role": "assistant", "content": "0: it moves"})
    assert [part["type"] for part in first["content"]] == ["image_url", "text"], "pictures come first"
    assert last["content"].startswith("Now score.")
    assert json.dumps(schema) in last["content"], "said in words too"
    (url,) = servers.picture_urls(body)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))), PIXELS)
    assert "authorization" not in headers
    assert reply == Reply(reply.text, "served", Usage(100, 20, 0.0, thinking_tokens=7, cached_tokens=64), reply.seconds)
    assert Scores(2).read(reply.text) == (servers.score_of("left", "go"), servers.score_of("right", "go"))


def test_repeats_count_up_from_the_seed_and_pictures_may_be_jpeg() -> None:
    config = ChatConfig(seed=5, picture_form="jpeg", jpeg_quality=80)
    with serve(servers.vllm) as served:
        provider = rater(served, config)

        async def run() -> None:
            await provider.ask(question(), repeat=2)
            await provider.close()

        asyncio.run(run())
        (body,) = served.bodies
    assert body["seed"] == 7
    assert servers.picture_urls(body)[0].startswith("data:image/jpeg;base64,/9j/")
    assert provider.rater.settings["pictures"] == "jpeg 80"


def test_no_system_message_without_a_system_prompt_and_strange_texts_travel() -> None:
    with serve(servers.vllm) as served:
        ask(rater(served), question(Scores(2), system="", text='half \ud83d "a"\n 🚪'))
        (body,) = served.bodies
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert 'half ? "a"\n 🚪' in body["messages"][-1]["content"]


def test_a_large_body_travels_whole() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (700, 800, 3), dtype=np.uint8)
    with serve(servers.vllm) as served:
        (reply,) = ask(rater(served), question(None, Picture("s256:large", noise)))
        (url,) = servers.picture_urls(served.bodies[0])
    assert isinstance(reply, Reply)
    assert len(url) > 2**20
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))), noise)


def test_the_key_comes_from_its_own_variable_only_and_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret-of-netrc\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serve(servers.vllm) as served:
        provider = rater(served)
        ask(provider, question())
        monkeypatch.setenv("OPENAI_COMPATIBLE_API_KEY", f" {KEY}\n")
        with_key = rater(served)
        ask(with_key, question())
        without, with_it = served.headers
    assert "authorization" not in without
    assert with_it["authorization"] == f"Bearer {KEY}"
    shown = [repr(vars(with_key)), repr(vars(with_key._connections)), repr(with_key.rater), with_key.rater.key, caplog.text]
    assert KEY not in "".join(shown)
    monkeypatch.setenv("OPENAI_COMPATIBLE_API_KEY", "two\nlines")
    with pytest.raises(AuthenticationRefused, match="OPENAI_COMPATIBLE_API_KEY holds a character") as caught:
        rater(served)
    assert "two" not in str(caught.value)


def test_a_proxy_is_used_for_other_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(servers.vllm) as proxy, serve(servers.vllm) as here:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1").replace("//", "//me:pass@"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        (far,) = ask(OpenaiCompatible("served@http://rater.invalid/v1"), question())
        (near,) = ask(rater(here), question())
        assert isinstance(far, Reply)
        assert isinstance(near, Reply)
        assert proxy.paths == ["http://rater.invalid/v1/chat/completions"]
        assert proxy.headers[0]["proxy-authorization"] == "Basic " + base64.b64encode(b"me:pass").decode()
        assert here.paths == ["/v1/chat/completions"]
        assert len(proxy.paths) == 1, "what is on this machine stays here"
        monkeypatch.setenv("no_proxy", "rater.invalid")
        assert OpenaiCompatible("served@http://rater.invalid/v1")._connections._proxy is None


def test_a_picture_is_compressed_once_for_all_turns_and_raters() -> None:
    calls: list[str] = []

    class Counted(Picture):
        def encoded(self, form: PictureFormat) -> bytes:
            calls.append(form.text)
            return super().encoded(form)

    counted = Counted("s256:compressed once", PIXELS)
    with serve(servers.vllm) as served:
        for config in (ChatConfig(), ChatConfig(seed=1), ChatConfig(picture_form="jpeg")):
            ask(rater(served, config), question(None, counted), question(Scores(2), counted))
    assert calls == ["png", "jpeg 90"]


# --- names ---


@pytest.mark.parametrize("url", ["http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions", "http://h:1/v1/chat/completions/"])
def test_one_server_has_one_name(url: str) -> None:
    assert OpenaiCompatible(f"org/model@v2@{url}").rater.name == "openai-compatible:org/model@v2@http://h:1/v1"


def test_where_the_frames_go_and_what_it_costs() -> None:
    assert OpenaiCompatible("m@https://gpu.example:8443/v1").remote == "gpu.example"
    assert OpenaiCompatible("m@http://192.168.0.7/v1").remote == "192.168.0.7"
    for here in ("localhost:1", "127.0.0.1", "127.1.2.3:9", "[::1]:80"):
        assert OpenaiCompatible(f"m@http://{here}/v1").remote == ""
    far, near = OpenaiCompatible("m@https://gpu.example/v1"), OpenaiCompatible("m@http://localhost:8000/v1")
    quotes = [provider.quote(SCORE) for provider in (far, near)]
    assert [quote.dollars for quote in quotes if quote] == [None, 0.0]
    assert quotes[0].output_tokens == 8192
    far.price = Price(1.0, 10.0)
    priced = far.quote(SCORE)
    assert priced is not None
    assert priced.dollars == pytest.approx((priced.input_tokens + 10 * 8192) / 1e6)


def test_the_users_price_is_charged() -> None:
    with serve(servers.vllm) as served:
        provider = rater(served)
        provider.price = Price(1.0, 10.0)
        (reply,) = ask(provider, question())
    assert reply.usage.dollars == pytest.approx((100 + 10 * 20) / 1e6)


def test_the_identity_says_how_json_is_asked_for() -> None:
    settings = {name: OpenaiCompatible("m@http://h/v1", ChatConfig(structured=name)).rater for name in ("auto", "native", "instructed")}
    assert [one.settings["schema"] for one in settings.values()] == ["both", "native", "instructed"]
    assert len({one.key for one in settings.values()}) == 3


# --- response_format ---


@pytest.mark.parametrize(
    "manner", [servers.vllm, servers.llama_cpp, servers.ollama, servers.reasonless, servers.transformers_serve, servers.curt]
)
def test_every_server_is_read_without_a_wrong_score(manner: Callable[[Body], Answer]) -> None:
    with serve(manner) as served:
        provider = rater(served)
        outcomes = ask(provider, question(), SCORE, SCORE, SCORE)
        assert len(served.bodies) == 4
    refused = manner in (servers.transformers_serve, servers.curt)
    assert isinstance(outcomes[0], Reply)
    assert "Hm." not in outcomes[0].text
    if refused:
        assert isinstance(outcomes[1], Failure)
        assert (outcomes[1].cause, outcomes[1].final, outcomes[1].code) == ("bad_request", False, "response_format")
    for outcome in outcomes[1 + refused :]:
        assert isinstance(outcome, Reply)
        assert Scores(2).read(outcome.text) == (servers.score_of("left", "go"), servers.score_of("right", "go"))
    assert ["response_format" in body for body in served.bodies] == [False, True, not refused, not refused]
    assert provider.rater.settings["schema"] == "both", "the identity does not change with what is learnt"


@pytest.mark.parametrize(("structured", "sent", "said"), [("native", True, False), ("instructed", False, True), ("auto", True, True)])
def test_the_way_of_asking_is_a_setting(structured: Any, sent: bool, said: bool) -> None:
    with serve(servers.vllm) as served:
        ask(rater(served, ChatConfig(structured=structured)), SCORE)
        (body,) = served.bodies
    assert ("response_format" in body, "Its schema:" in body["messages"][-1]["content"]) == (sent, said)


def test_a_server_that_cannot_do_what_is_insisted_on_stops_the_run() -> None:
    with (
        serve(servers.transformers_serve) as served,
        pytest.raises(ProviderError, match=r"no response_format \(HTTP 422\).*structured auto"),
    ):
        ask(rater(served, ChatConfig(structured="native")), SCORE)


def test_a_bad_question_does_not_cost_the_others_their_format() -> None:
    def picky(body: Body) -> Answer:
        return (400, {"error": {"message": "no"}}) if "odd" in body["messages"][-1]["content"] else (200, completion(servers.honest(body)))

    odd = question(Scores(2), text="odd")
    with serve(picky) as served:
        outcomes = ask(rater(served), odd, odd, SCORE, odd)
    assert [getattr(outcome, "final", None) for outcome in outcomes] == [False, True, None, True]
    assert ["response_format" in body for body in served.bodies] == [True, False, True, True]


@pytest.mark.parametrize(
    "body",
    [
        {
            "error": {
                "message": "The provided JSON schema contains features not supported by xgrammar.",
                "type": "BadRequestError",
                "code": 400,
            }
        },
        {"error": {"message": "Extra inputs are not permitted", "param": "response_format"}},
        {"detail": [{"type": "extra_forbidden", "loc": ["body", "response_format"], "msg": "Extra inputs are not permitted", "input": {}}]},
        {"object": "error", "message": "structured outputs are disabled", "type": "BadRequestError", "code": 400},
        b"unknown field: response_format",
    ],
)
def test_a_refusal_that_names_the_format_settles_it_even_late(body: Any) -> None:
    answers = iter([(200, completion("{}")), (400, body), (200, completion("{}"))])
    with serve(lambda _body: next(answers)) as served:
        outcomes = ask(rater(served), SCORE, SCORE, SCORE)
    assert [getattr(outcome, "final", None) for outcome in outcomes] == [None, False, None]
    assert ["response_format" in sent for sent in served.bodies] == [True, True, False]


def test_a_schema_that_the_server_cannot_enforce_is_said_in_words() -> None:
    with serve(servers.llama_cpp) as served:
        outcomes = ask(rater(served), SCORE, question(Scores(501)), question(Scores(501)))
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [None, "response_format", None]
    assert ["response_format" in body for body in served.bodies] == [True, True, False]


def test_a_host_without_a_possible_address_is_a_network_failure() -> None:
    (outcome,) = ask(OpenaiCompatible(f"m@http://{'a' * 70}.invalid/v1"), question())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final) == ("network", False)
    assert outcome.code in ("UnicodeError", "UnicodeEncodeError")  # the latter is a kind of the former, raised since Python 3.13


def test_what_is_learnt_while_other_requests_are_in_flight() -> None:
    state = _ResponseFormat()
    assert state.rejected(sent=True, named=False)
    assert state.rejected(sent=True, named=False), "sent before the first refusal came: it is asked again, too"
    state.accepted(asked=False, sent=False)
    assert state.state == "suspected", "free text says nothing about it"
    state.accepted(asked=True, sent=False)
    assert (state.state, state.worth_sending) == ("refused", False)
    state.accepted(asked=True, sent=True)
    assert not state.worth_sending, "a late answer of before changes nothing"


# --- what comes back ---


def test_thoughts_are_no_answer() -> None:
    scores = '{"scores": [3, 9]}'
    unended = failure_of((200, completion(f"<think>{scores}")))
    assert (unended.cause, unended.final) == ("empty", False)
    elsewhere = failure_of((200, completion(None, reasoning_content=scores, reasoning=scores)))
    assert elsewhere.cause == "empty"


def test_content_in_parts_is_put_together() -> None:
    parts = [{"type": "thinking", "thinking": "5"}, {"type": "text", "text": '{"scores":'}, {"type": "text", "text": " [3, 9]}"}]
    (reply,) = ask_of((200, completion(parts)), SCORE)
    assert isinstance(reply, Reply)
    assert reply.text == '{"scores": [3, 9]}'


@pytest.mark.parametrize(
    ("body", "cause", "final", "code"),
    [
        (completion(None, "content_filter"), "blocked", True, "content_filter"),
        (completion(None, refusal="I cannot."), "refusal", True, "stop"),
        (completion("0: turned le", "length"), "truncated", True, "length"),
        (completion("", "stop"), "empty", False, "stop"),
        (completion(" \n"), "empty", False, "stop"),
        (completion("x", "abort"), "overload", False, "abort"),
        ({**completion("x", None), "usage": {"prompt_tokens": 1, "completion_tokens": 8192}}, "truncated", True, "truncated"),
        ({**completion("x"), "choices": []}, "unreadable", False, "other_shape"),
        ({**completion("x"), "choices": [{"message": "x"}]}, "unreadable", False, "other_shape"),
        (completion(7), "unreadable", False, "other_shape"),
        (completion(["x"]), "unreadable", False, "other_shape"),
        ({"error": {"message": "no capacity", "code": 503}}, "overload", False, "http_503"),
        ({"error": {"message": "slow down", "code": 429}, "choices": None}, "rate_limit", False, "http_429"),
        ({"error": "out of memory"}, "unreadable", False, "error"),
        (b"<html>hello</html>", "unreadable", False, "html"),
        (b'{"id": "x", "cho', "unreadable", False, "not_json"),
        (b'data: {"choices": []}\n\n', "unreadable", False, "event_stream"),
        (b"\xff\xfe{}", "unreadable", False, "not_json"),
        (b"[" * 100_000, "unreadable", False, "not_json"),
        (b"[1]", "unreadable", False, "other_shape"),
        (b" ", "empty", False, "no_body"),
        (b'{"a": ' + b"9" * 5000 + b"}", "unreadable", False, "not_json"),
    ],
)
def test_answers_that_are_none(body: Any, cause: str, final: bool, code: str) -> None:
    outcome = failure_of((200, body))
    assert (outcome.cause, outcome.final, outcome.code) == (cause, final, code)


def test_a_body_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guerdon.providers.openai_compatible.LARGEST_REPLY", 100_000)
    outcome = failure_of((200, completion("x" * 200_000)))
    assert (outcome.cause, outcome.code) == ("unreadable", "too_long")


@pytest.mark.parametrize("usage", [None, "much", {"prompt_tokens": -1, "completion_tokens": True}, {"prompt_tokens": 2**70}, []])
def test_usage_that_is_not_told_is_unknown(usage: Any) -> None:
    with serve(lambda _body: (200, {**completion("fine"), "usage": usage})) as served:
        free, priced = rater(served), rater(served)
        priced.price = Price(1, 1)
        ((reply,), (other,)) = ask(free, question()), ask(priced, question())
    assert (reply.usage, other.usage) == (Usage(dollars=0.0), Usage())


def test_what_fails_on_this_machine_is_free_too() -> None:
    (here,) = ask(OpenaiCompatible("m@http://127.0.0.1:9/v1"), question())
    (far,) = ask(OpenaiCompatible(f"m@http://{'a' * 70}.invalid/v1"), question())
    assert (here.usage, far.usage) == (Usage(dollars=0.0), Usage())


def _error(status: int, message: str = "no", *headers: tuple[str, str], **more: Any) -> Raw:
    body = {"error": {"message": f"{message} {KEY}", "type": "some_type", **more}}
    return Raw(json.dumps(body).encode(), status, headers)


@pytest.mark.parametrize(
    ("answer", "cause", "final", "code"),
    [
        (_error(401), "authentication", False, "some_type"),
        (_error(403), "authentication", False, "some_type"),
        (_error(402), "quota", False, "some_type"),
        (_error(429, code="insufficient_quota"), "quota", False, "insufficient_quota"),
        (_error(429), "rate_limit", False, "some_type"),
        (_error(400, code=f"bad-{KEY}"), "bad_request", True, "some_type"),
        (_error(400, code="content_filter"), "blocked", True, "content_filter"),
        (_error(451), "blocked", True, "some_type"),
        (_error(413), "bad_request", True, "some_type"),
        (_error(408), "timeout", False, "some_type"),
        (_error(504), "timeout", False, "some_type"),
        (_error(409), "overload", False, "some_type"),
        (_error(500), "overload", False, "some_type"),
        (_error(529), "overload", False, "some_type"),
        (Raw(b"<html>", 502), "overload", False, "http_502"),
        (Raw(b'{"detail": "busy"}', 503), "overload", False, "http_503"),
        (Raw(b"", 500), "overload", False, "http_500"),
        (Raw(b'"x"', 400), "bad_request", True, "http_400"),
    ],
)
def test_errors_are_told_apart(answer: Raw, cause: str, final: bool, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_COMPATIBLE_API_KEY", KEY)
    outcome = failure_of(answer, score=False)
    assert (outcome.cause, outcome.final, outcome.code, outcome.status) == (cause, final, code, answer.status)
    assert outcome.retry_after is None


def test_how_long_to_wait() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    headers = (
        (("Retry-After", "7"),),
        (("Retry-After", soon),),
        (("Retry-After", "7"), ("Retry-After-Ms", "250")),
        (("Retry-After", "soon"),),
    )
    waits = [failure_of(_error(429, "no", *given)).retry_after for given in headers]
    assert (waits[0], waits[2], waits[3]) == (7.0, 0.25, None)
    assert waits[1] == pytest.approx(90, abs=3)


def test_what_every_further_request_would_meet_is_said_at_once() -> None:
    with serve(servers.vllm) as served:
        with pytest.raises(
            ProviderError, match=r"no such model, or has nothing at this path \(HTTP 404 to POST http.*/v1/chat/completions\)"
        ):
            ask(rater(served, model="gone"), question())
        root = served.url.removesuffix("/v1")
        with pytest.raises(ProviderError, match=rf"POST {root}/chat/completions.*Most servers answer below /v1: write .*@{root}/v1\."):
            ask(OpenaiCompatible(f"served@{root}"), question())
    for answer, words in {
        servers.llama_cpp_blind: "takes no pictures.*mmproj",
        lambda _body: (400, {"error": {"message": "served is not a multimodal model", "type": "BadRequestError"}}): "takes no pictures",
        lambda _body: Raw(b"", 307, (("Location", "http://elsewhere.invalid/"),)): r"another address \(HTTP 307.*final URL",
        lambda _body: _error(400, "This model's maximum context length is 4096 tokens."): "too short.*8192 tokens.*max-output-tokens",
    }.items():
        with serve(answer) as served:
            with pytest.raises(ProviderError, match=words) as caught:
                ask(rater(served), question())
            assert len(served.bodies) == 1
            assert KEY not in str(caught.value)


def test_a_server_that_has_answered_before_is_not_given_up() -> None:
    answers = iter([(200, completion("fine")), (404, {"detail": "Not Found"}), Raw(b"", 302), _error(400, "is not a multimodal model"),
                    _error(400, "maximum context length")])  # fmt: skip
    outcomes = ask_of(lambda _body: next(answers), *[question()] * 5)
    assert [getattr(outcome, "cause", None) for outcome in outcomes] == [None, "overload", "network", "unsupported", "bad_request"]
    assert [getattr(outcome, "final", None) for outcome in outcomes] == [None, False, False, True, True]


def test_a_reply_that_drips_in_is_given_up() -> None:
    began = time.monotonic()
    outcome = failure_of(Raw(json.dumps(completion("x")).encode(), drip=0.05), ChatConfig(timeout=0.3))
    assert (outcome.cause, outcome.final) == ("timeout", False)
    assert time.monotonic() - began < 3
    assert outcome.seconds == pytest.approx(0.3, abs=0.3)


def test_nobody_there_and_a_connection_that_breaks() -> None:
    (outcome,) = ask(OpenaiCompatible("m@http://127.0.0.1:9/v1"), question())
    assert isinstance(outcome, Failure)
    assert (outcome.cause, outcome.final, outcome.status) == ("network", False, None)
    assert outcome.usage.dollars == 0  # no ceiling fills up with requests to a server that is not there
    cut = failure_of(Raw(b"{", 200, (("Content-Length", "500"), ("Connection", "close"))))
    assert (cut.cause, cut.final) == ("network", False)


def test_many_at_once_share_connections() -> None:
    with serve(lambda _body: (200, completion("fine"))) as served:
        provider = rater(served)

        async def run() -> None:
            try:
                for _ in range(2):
                    outcomes = await asyncio.gather(*(provider.ask(question()) for _ in range(20)))
                    assert all(isinstance(outcome, Reply) for outcome in outcomes)
            finally:
                await provider.close()

        asyncio.run(run())
        asyncio.run(run())  # in another loop, after it was closed
    assert len(served.bodies) == 80


@pytest.mark.parametrize(
    "name", ["", "m", "m@", "@http://h", "m@ftp://h", "m@http://", "m@http://h:0/", "m@http://h:port", "m@http://[::1"]
)
def test_names_that_cannot_work(name: str) -> None:
    with pytest.raises(UsageError, match="MODEL@"):
        OpenaiCompatible.build(name)


# --- the whole line ---


@pytest.mark.parametrize(
    "manner", [servers.vllm, servers.ollama, servers.reasonless, servers.transformers_serve], ids=lambda manner: manner.__name__
)
def test_a_dataset_is_labelled_without_a_wrong_label(manner: Callable[[Body], Answer], tmp_path: Path) -> None:
    data = write(tmp_path / "data", [episode(9, number) for number in range(2)])
    with serve(manner) as served:
        vlm = f"openai-compatible:served@{served.url}"
        labelled = guerdon.label(dataset=data, run=tmp_path / "run", vlm=(vlm,), concurrency=2, quiet=True)
        sent = len(served.bodies)
        again = guerdon.label(dataset=data, run=tmp_path / "run", vlm=(vlm,), concurrency=2, quiet=True)
        assert len(served.bodies) == sent, "nothing is asked twice"
    assert labelled.complete
    assert again.complete
    labels = LabelSet.read(tmp_path / "run/labels/rg_vlm.parquet").labels
    dataset = guerdon.open_dataset(data)
    assert len(labels) == 36, "each action, by each of two wordings"
    for label in labels:
        action = ACTIONS[int(dataset.actions(label.episode)[label.start])]
        assert label.value == servers.score_of(action, label.instruction)
    assert labelled.results["dollars"] == 0.0
