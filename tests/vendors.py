"""Vendors on this machine: HTTP servers that imitate their chat APIs, with replies built from the types of the vendors' own SDKs."""

from __future__ import annotations

import atexit
import base64
import io
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import certifi
import numpy as np
import numpy.typing as npt
import pytest
from anthropic.types.beta import BetaMessage
from anthropic.types.beta import message_create_params as anthropic_params
from google.genai import types as google_types
from openai.types.chat import ChatCompletion
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import Response
from openai.types.responses import response_create_params as responses_params
from PIL import Image
from pydantic import TypeAdapter

from guerdon import discover
from guerdon.interfaces import Provider
from guerdon.providers._settings import ChatConfig
from guerdon.recipes.raters import build
from guerdon.records import CAUSES, Cause

PLANTED_KEY = "sk-planted-0123456789abcdef"
"""A key that no output may ever contain."""


@dataclass(frozen=True)
class Answer:
    """What the server sends back."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delay: float = 0.0
    """Seconds of silence before the answer."""
    drop: bool = False
    """Close the connection without an answer."""
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    drip: float = 0.0
    """Seconds between any two bytes of the body."""


@dataclass(frozen=True)
class Fault:
    """An answer that is no reply, and what must be made of it."""

    answer: Answer
    cause: Cause
    final: bool = False
    status: int | None = None
    retry_after: float | None = None


@dataclass
class Call:
    """One HTTP request that arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Server:
    """Answers every POST with what the test has put into `answers` (the last one over and over), or with what `decide` says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls: list[Call] = []
        self.answers: list[Answer] = []
        self.decide: Callable[[Call], Answer] | None = None
        """For tests in which the answer depends on the request. Called from several threads at once."""

    def reply_with(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def next_answer(self, call: Call) -> Answer:
        if self.decide is not None:
            return self.decide(call)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def serve(*, keep: bool = True) -> Iterator[Server]:
    """A server on a free port of this machine. `keep`: whether calls are kept; thousands of them with pictures are a lot of memory."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(body))
            if keep:
                server.calls.append(call)
            answer = server.next_answer(call)
            time.sleep(answer.delay)
            if answer.drop:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in _parts(answer):
                self.wfile.write(part)
                time.sleep(answer.drip)
            if answer.cut is not None:
                self.close_connection = True

        def do_CONNECT(self) -> None:
            """What a client asks of a proxy before it speaks TLS."""
            server.calls.append(Call(f"CONNECT {self.path}", {name.lower(): value for name, value in self.headers.items()}, {}))
            self.send_error(502)

        def log_message(self, format: str, *args: object) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that gave up waiting

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _parts(answer: Answer) -> Iterable[bytes]:
    """The body as it is sent."""
    body = answer.body[: answer.cut]
    return (body[position : position + 1] for position in range(len(body))) if answer.drip else (body,)


@cache
def _one_certificate() -> IO[str]:
    """A file with one certificate. No test speaks TLS, and reading all of them takes most of the time of building a rater."""
    end = "-----END CERTIFICATE-----"
    file = tempfile.NamedTemporaryFile("w", suffix=".pem")  # noqa: SIM115  # lives as long as the process
    file.write(Path(certifi.where()).read_text(encoding="utf-8").partition(end)[0] + end + "\n")
    file.flush()
    atexit.register(file.close)
    return file


@dataclass(frozen=True)
class Vendor:
    """One API: how to be asked through it, and what its answers look like."""

    name: str
    spec: Callable[[str], str]
    """URL of the server -> text for `--vlm`."""
    environment: Mapping[str, str]
    """Variables that lead to the server; {url} stands for its URL."""
    reply: Callable[[str], dict[str, Any]]
    """An ordinary answer with this text: 100 tokens in, 20 out."""
    check: Callable[[Call], None]
    """Validates a request against the vendor's own types."""
    outcomes: Mapping[str, dict[str, Any]]
    """Cause (perhaps with more words behind it) -> body of an HTTP 200 answer that is none."""
    errors: Mapping[str, Fault]
    """This vendor's own errors, worded as it words them; each holds the planted key."""

    def provider(self, server: Server, monkeypatch: pytest.MonkeyPatch, config: ChatConfig | None = None) -> Provider:
        monkeypatch.setenv("SSL_CERT_FILE", _one_certificate().name)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value.format(url=server.url))
        return build(self.spec(server.url), config=config)

    def answer(self, text: str) -> Answer:
        """An ordinary answer; a lone surrogate in `text` travels as an escape, as in any JSON."""
        return Answer(json.dumps(self.reply("@text@")).replace("@text@", json.dumps(text)[1:-1]).encode())

    def outcome(self, name: str) -> Answer:
        return Answer(json.dumps(self.outcomes[name]).encode())

    @property
    def faults(self) -> dict[str, Fault]:
        """Everything that can go wrong, by name: with any server, with this vendor's errors, with answers that are none."""
        none = {f"200 {name}": Fault(self.outcome(name), _cause_of(name), final=not name.startswith("empty")) for name in self.outcomes}
        whole = self.answer("fine")
        broken = {
            "cut connection": Fault(replace(whole, cut=len(whole.body) // 2), "network"),
            "slow drip": Fault(replace(whole, drip=0.02), "timeout"),
            "half of JSON": Fault(Answer(whole.body[: len(whole.body) // 2]), "unreadable"),
        }
        return COMMON_FAULTS | broken | none | dict(self.errors)


def _cause_of(name: str) -> Cause:
    """The cause that a name begins with."""
    return next(cause for cause in CAUSES if name.split()[0] == cause)


def _http(status: int, body: Mapping[str, Any] | None = None, **headers: str) -> Answer:
    """An error with a JSON body, headers given with underscores."""
    told = body or {"error": {"message": f"something about {PLANTED_KEY}", "type": "some_type"}}
    return Answer(json.dumps(told).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()})


HTML = f"<html><body>Bad gateway: your proxy has a content policy {PLANTED_KEY}</body></html>".encode()

COMMON_FAULTS: dict[str, Fault] = {
    "401": Fault(_http(401), "authentication", status=401),
    "403": Fault(_http(403), "authentication", status=403),
    "402": Fault(_http(402), "quota", status=402),
    "400": Fault(_http(400), "bad_request", final=True, status=400),
    "413": Fault(_http(413), "bad_request", final=True, status=413),
    "422": Fault(_http(422), "bad_request", final=True, status=422),
    "408": Fault(_http(408), "timeout", status=408),
    "429": Fault(_http(429), "rate_limit", status=429),
    "429 and seconds": Fault(_http(429, retry_after="11"), "rate_limit", status=429, retry_after=11.0),
    "429 and half a second": Fault(_http(429, retry_after="0.5"), "rate_limit", status=429, retry_after=0.5),
    "429 and milliseconds": Fault(_http(429, retry_after_ms="1500", retry_after="2"), "rate_limit", status=429, retry_after=1.5),
    "429 and a date gone by": Fault(_http(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"), "rate_limit", status=429, retry_after=0.0),
    "429 and nonsense": Fault(_http(429, retry_after="soon"), "rate_limit", status=429),
    "500": Fault(_http(500), "overload", status=500),
    "503": Fault(_http(503), "overload", status=503),
    "503 and seconds": Fault(_http(503, retry_after="3"), "overload", status=503, retry_after=3.0),
    "504": Fault(_http(504), "timeout", status=504),
    "529": Fault(_http(529), "overload", status=529),
    "no body with 500": Fault(Answer(status=500), "overload", status=500),
    "HTML with 502": Fault(Answer(HTML, 502, content_type="text/html"), "overload", status=502),
    "HTML with 403": Fault(Answer(HTML, 403, content_type="text/html"), "authentication", status=403),
    "HTML with 200": Fault(Answer(HTML, content_type="text/html"), "unreadable"),
    "HTML that says JSON": Fault(Answer(HTML), "unreadable"),
    "JSON of another shape": Fault(Answer(b'{"hello": "world"}'), "unreadable"),
    "a JSON list": Fault(Answer(b"[1, 2]"), "unreadable"),
    "no body": Fault(Answer(b""), "empty"),
    "a dropped connection": Fault(Answer(drop=True), "network"),
    "silence": Fault(Answer(delay=0.8), "timeout"),
}
"""What can go wrong with any server."""
SLOW = frozenset({"silence", "slow drip"})
"""Faults that are none unless the time limit lies below 0.8 seconds."""


def pictures(body: Any) -> list[npt.NDArray[np.uint8]]:
    """Every PNG in a JSON body, wherever it is."""
    if isinstance(body, Mapping):
        return [picture for value in body.values() for picture in pictures(value)]
    if isinstance(body, list):
        return [picture for value in body for picture in pictures(value)]
    if isinstance(body, str) and (data := body.removeprefix("data:image/png;base64,")).startswith("iVBOR"):
        return [np.asarray(Image.open(io.BytesIO(base64.urlsafe_b64decode(data.replace("+", "-").replace("/", "_")))))]
    return []


def texts(body: Any) -> list[str]:
    """Every value under "text" or "content" in a JSON body, in order."""
    if isinstance(body, Mapping):
        own = [value for name, value in body.items() if name in ("text", "content") and isinstance(value, str)]
        return own + [text for value in body.values() for text in texts(value)]
    return [text for value in body for text in texts(value)] if isinstance(body, list) else []


def _consume(value: Any) -> None:
    """Walks through what pydantic validates lazily."""
    if isinstance(value, Mapping):
        for inner in value.values():
            _consume(inner)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for inner in value:
            _consume(inner)


def _fits(body: Mapping[str, Any], parameters: Any) -> None:
    """Whether a body fits the parameters of an SDK's method, and holds nothing else."""
    known = {name for kind in (parameters, *parameters.__orig_bases__) for name in kind.__annotations__}
    assert set(body) <= known, set(body) - known
    adapter = TypeAdapter(parameters)  # must outlive what it validates lazily
    _consume(adapter.validate_python(dict(body)))


# --- OpenAI, chat completions ---


def _chat_completion(content: str | None, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "finish_reason": finish, "message": message, "logprobs": None}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    body = {"id": "c1", "object": "chat.completion", "created": 1, "model": "gpt-4.1-2025-04-14", "choices": [choice], "usage": usage}
    return ChatCompletion.model_validate(body).model_dump(mode="json")


_CHAT_OUTCOMES = {
    "blocked": _chat_completion(None, "content_filter"),
    "refusal": _chat_completion(None, refusal="I cannot help with that."),
    "truncated": _chat_completion("0: turned le", "length"),
    "empty": _chat_completion(""),
}


def _openai_error(message: str, kind: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": f"{message} ({PLANTED_KEY})", "type": kind, "param": None, "code": code}}


_LATER = "Please try again in 20ms. Visit https://platform.openai.com/account/rate-limits to learn more."
_OPENAI_ERRORS = {
    "a wrong key": Fault(
        _http(401, _openai_error("Incorrect API key provided", "invalid_request_error", "invalid_api_key")), "authentication", status=401
    ),
    "a region not served": Fault(
        _http(
            403, _openai_error("Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory")
        ),
        "authentication",
        status=403,
    ),
    "no money": Fault(
        _http(429, _openai_error("You exceeded your current quota, please check your plan", "insufficient_quota", "insufficient_quota")),
        "quota",
        status=429,
    ),
    "a hard limit": Fault(
        _http(400, _openai_error("Billing hard limit has been reached", "invalid_request_error", "billing_hard_limit_reached")),
        "quota",
        status=400,
    ),
    "too many requests": Fault(
        _http(429, _openai_error(f"Rate limit reached for gpt-4.1. {_LATER}", "requests", "rate_limit_exceeded"), retry_after_ms="20"),
        "rate_limit",
        status=429,
        retry_after=0.02,
    ),
    "more than a minute allows": Fault(
        _http(429, _openai_error("Request too large for gpt-4.1: Limit 30000, Requested 50000.", "tokens", "rate_limit_exceeded")),
        "bad_request",
        final=True,
        status=429,
    ),
    "overloaded": Fault(
        _http(503, _openai_error("The engine is currently overloaded, please try again later", "server_error", None)),
        "overload",
        status=503,
    ),
    "too long": Fault(
        _http(
            400, _openai_error("This model's maximum context length is 8192 tokens.", "invalid_request_error", "context_length_exceeded")
        ),
        "bad_request",
        final=True,
        status=400,
    ),
    "a bad picture": Fault(
        _http(400, _openai_error("You uploaded an unsupported image. Please make sure your image is valid.", "i", "invalid_image_format")),
        "bad_request",
        final=True,
        status=400,
    ),
    "no pictures": Fault(
        _http(400, _openai_error("Invalid content type. image_url is only supported by certain models.", "invalid_request_error", None)),
        "unsupported",
        final=True,
        status=400,
    ),
    "policy": Fault(
        _http(400, _openai_error("Your request was rejected as a result of our safety system.", "user_error", "content_policy_violation")),
        "blocked",
        final=True,
        status=400,
    ),
}


def _check_chat(call: Call) -> None:
    assert call.path == "/v1/chat/completions"
    _fits(call.body, chat_params.CompletionCreateParamsNonStreaming)


# --- OpenAI, responses ---


def _response(content: list[dict[str, Any]], incomplete: str | None = None) -> dict[str, Any]:
    status = "incomplete" if incomplete else "completed"
    output = [{"id": "m1", "type": "message", "role": "assistant", "status": status, "content": content}] if content else []
    details = {"input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 7}}
    body = {
        "id": "r1", "object": "response", "created_at": 1, "model": "gpt-4.1-2025-04-14", "status": status, "output": output,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120, **details},
    }  # fmt: skip
    return Response.model_validate(body).model_dump(mode="json")


def _output_text(text: str) -> list[dict[str, Any]]:
    return [{"type": "output_text", "text": text, "annotations": []}]


_RESPONSES_OUTCOMES = {
    "blocked": _response([], "content_filter"),
    "refusal": _response([{"type": "refusal", "refusal": "I cannot help with that."}]),
    "truncated": _response(_output_text("0: turned le"), "max_output_tokens"),
    "empty": _response([]),
}


def _failed_response(code: str) -> Answer:
    """A response that has failed, with status 200."""
    body = {**_response([]), "status": "failed", "error": {"code": code, "message": f"something about {PLANTED_KEY}"}}
    return Answer(json.dumps(body).encode())


_RESPONSES_ERRORS = _OPENAI_ERRORS | {
    "200 and too many requests": Fault(_failed_response("rate_limit_exceeded"), "rate_limit"),
    "200 and out of order": Fault(_failed_response("server_error"), "overload"),
    "200 and a bad picture": Fault(_failed_response("invalid_image"), "bad_request", final=True),
    "200 and policy": Fault(_failed_response("invalid_prompt"), "blocked", final=True),
}


def _check_responses(call: Call) -> None:
    assert call.path == "/v1/responses"
    _fits(call.body, responses_params.ResponseCreateParamsNonStreaming)


# --- Anthropic, messages ---


def _anthropic_message(text: str, stop: str = "end_turn") -> dict[str, Any]:
    content = [{"type": "text", "text": text}] if text else []
    body = {
        "id": "m1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6", "content": content,
        "stop_reason": stop, "stop_sequence": None, "usage": {"input_tokens": 100, "output_tokens": 20},
    }  # fmt: skip
    return BetaMessage.model_validate(body).model_dump(mode="json")


_ANTHROPIC_OUTCOMES = {
    "refusal": _anthropic_message("", "refusal"),
    "truncated": _anthropic_message("0: turned le", "max_tokens"),
    "empty": _anthropic_message(""),
}


def _anthropic_error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": f"{message} ({PLANTED_KEY})"}, "request_id": "req_1"}


_POOR = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."
_ANTHROPIC_ERRORS = {
    "a wrong key": Fault(_http(401, _anthropic_error("authentication_error", "invalid x-api-key")), "authentication", status=401),
    "not allowed": Fault(_http(403, _anthropic_error("permission_error", "Your API key may not use it")), "authentication", status=403),
    "no money": Fault(_http(400, _anthropic_error("invalid_request_error", _POOR)), "quota", status=400),
    "a bill to pay": Fault(_http(402, _anthropic_error("billing_error", "There is an issue with billing")), "quota", status=402),
    "too many requests": Fault(
        _http(429, _anthropic_error("rate_limit_error", "This request would exceed your rate limit"), retry_after="17"),
        "rate_limit",
        status=429,
        retry_after=17.0,
    ),
    "overloaded": Fault(_http(529, _anthropic_error("overloaded_error", "Overloaded"), x_should_retry="true"), "overload", status=529),
    "out of order": Fault(_http(500, _anthropic_error("api_error", "Internal server error")), "overload", status=500),
    "too slow": Fault(_http(504, _anthropic_error("timeout_error", "The request timed out")), "timeout", status=504),
    "too large": Fault(
        _http(413, _anthropic_error("request_too_large", "Request exceeds the maximum size")), "bad_request", final=True, status=413
    ),
    "too long": Fault(
        _http(400, _anthropic_error("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum")),
        "bad_request",
        final=True,
        status=400,
    ),
    "no pictures": Fault(
        _http(400, _anthropic_error("invalid_request_error", "claude-text does not support image input")),
        "unsupported",
        final=True,
        status=400,
    ),
    "policy": Fault(
        _http(400, _anthropic_error("invalid_request_error", "Output blocked by content filtering policy")),
        "blocked",
        final=True,
        status=400,
    ),
}


def _check_anthropic(call: Call) -> None:
    assert call.path.split("?")[0] == "/v1/messages"
    body = {name: value for name, value in call.body.items() if name != "temperature"}  # taken by the API, dropped from the SDK's types
    _fits(body, anthropic_params.MessageCreateParamsNonStreaming)


# --- Google, generateContent ---


def _google_content(text: str, finish: str = "STOP") -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": text}] if text else []}
    usage = {"promptTokenCount": 100, "candidatesTokenCount": 13, "thoughtsTokenCount": 7, "totalTokenCount": 120}
    candidate = {"content": content, "finishReason": finish, "index": 0}
    body = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash", "responseId": "g1"}
    return google_types.GenerateContentResponse.model_validate(body).model_dump(mode="json", by_alias=True, exclude_none=True)


_GOOGLE_OUTCOMES: dict[str, dict[str, Any]] = {
    "blocked": {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 100},
        "modelVersion": "gemini-2.5-flash",
    },
    "blocked answer": _google_content("", "SAFETY"),
    "blocked as recited": _google_content("0: turned le", "RECITATION"),
    "blocked as forbidden": _google_content("", "PROHIBITED_CONTENT"),
    "truncated": _google_content("0: turned le", "MAX_TOKENS"),
    "truncated while thinking": _google_content("", "MAX_TOKENS"),
    "empty": {},
    "empty content": _google_content(""),
}


def _google_error(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": f"{message} ({PLANTED_KEY})", "status": status, "details": list(details)}}


def _quota_failure(*identifiers: str) -> dict[str, Any]:
    violations = [
        {"quotaMetric": "generativelanguage.googleapis.com/requests", "quotaId": name, "quotaValue": "20"} for name in identifiers
    ]
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}


_RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "23.5s"}
_INVALID_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
_EXHAUSTED = "You exceeded your current quota, please check your plan and billing details."
_GOOGLE_ERRORS = {
    "JSON of another shape": Fault(Answer(b'{"hello": "world"}'), "empty"),  # nothing in its answers must be there
    "a JSON list": Fault(Answer(b"[1, 2]"), "empty"),
    "a wrong key": Fault(
        _http(400, _google_error(400, "INVALID_ARGUMENT", "API key not valid.", _INVALID_KEY)), "authentication", status=400
    ),
    "not allowed": Fault(_http(403, _google_error(403, "PERMISSION_DENIED", "No permission")), "authentication", status=403),
    "a region not served": Fault(
        _http(400, _google_error(400, "FAILED_PRECONDITION", "User location is not supported for the API use.")),
        "authentication",
        status=400,
    ),
    "no billing": Fault(
        _http(400, _google_error(400, "FAILED_PRECONDITION", "Please enable billing on your project in Google AI Studio.")),
        "quota",
        status=400,
    ),
    "too many a day": Fault(
        _http(
            429, _google_error(429, "RESOURCE_EXHAUSTED", _EXHAUSTED, _quota_failure("GenerateRequestsPerDayPerProjectPerModel"), _RETRY)
        ),
        "quota",
        status=429,
        retry_after=23.5,
    ),
    "too many a minute": Fault(
        _http(429, _google_error(429, "RESOURCE_EXHAUSTED", _EXHAUSTED, _quota_failure("GenerateRequestsPerMinutePerProject"), _RETRY)),
        "rate_limit",
        status=429,
        retry_after=23.5,
    ),
    "no money": Fault(_http(429, _google_error(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted.")), "quota", status=429),
    "overloaded": Fault(_http(503, _google_error(503, "UNAVAILABLE", "The model is overloaded.")), "overload", status=503),
    "out of order": Fault(_http(500, _google_error(500, "INTERNAL", "An internal error has occurred.")), "overload", status=500),
    "too slow": Fault(_http(504, _google_error(504, "DEADLINE_EXCEEDED", "Deadline expired.")), "timeout", status=504),
    "too long": Fault(
        _http(400, _google_error(400, "INVALID_ARGUMENT", "The input token count (9) exceeds the maximum number of tokens allowed (8).")),
        "bad_request",
        final=True,
        status=400,
    ),
}


def _check_google(call: Call) -> None:
    assert call.path == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert set(call.body) <= {"contents", "generationConfig", "systemInstruction"}
    TypeAdapter(list[google_types.Content]).validate_python(call.body["contents"])
    google_types.GenerationConfig.model_validate(call.body["generationConfig"])


_OPENAI = {"OPENAI_BASE_URL": "{url}/v1", "OPENAI_API_KEY": PLANTED_KEY}

VENDORS: dict[str, Vendor] = {
    vendor.name: vendor
    for vendor in (
        Vendor(
            "openai-compatible",
            lambda url: f"openai-compatible:gpt-4.1@{url}/v1",
            {"OPENAI_COMPATIBLE_API_KEY": PLANTED_KEY},
            _chat_completion,
            _check_chat,
            _CHAT_OUTCOMES,
            _OPENAI_ERRORS,
        ),
        Vendor("openai-chat", lambda _url: "openai-chat:gpt-4.1", _OPENAI, _chat_completion, _check_chat, _CHAT_OUTCOMES, _OPENAI_ERRORS),
        Vendor(
            "openai",
            lambda _url: "openai:gpt-4.1",
            _OPENAI,
            lambda text: _response(_output_text(text)),
            _check_responses,
            _RESPONSES_OUTCOMES,
            _RESPONSES_ERRORS,
        ),
        Vendor(
            "anthropic",
            lambda _url: "anthropic:claude-sonnet-4-6",
            {"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": PLANTED_KEY},
            _anthropic_message,
            _check_anthropic,
            _ANTHROPIC_OUTCOMES,
            _ANTHROPIC_ERRORS,
        ),
        Vendor(
            "google",
            lambda _url: "google:gemini-2.5-flash",
            {"GOOGLE_GEMINI_BASE_URL": "{url}", "GOOGLE_API_KEY": PLANTED_KEY},
            _google_content,
            _check_google,
            _GOOGLE_OUTCOMES,
            _GOOGLE_ERRORS,
        ),
    )
}

CHAT_VENDORS: dict[str, Vendor] = {name: vendor for name, vendor in VENDORS.items() if name not in discover.names("providers")}
"""Those that are asked through `providers/chat.py`."""
