"""Vendors on this machine: HTTP servers that imitate their chat APIs, with replies built from the types of the vendors' own SDKs."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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

from guerdon.providers.chat import Chat

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
    drop: bool = False
    """Close the connection without an answer."""


@dataclass
class Call:
    """One HTTP request that arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


class Server:
    """Answers every POST with what the test has put into `answers` (the last one over and over)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.calls: list[Call] = []
        self.answers: list[Answer] = []

    def reply_with(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.calls.append(Call(self.path, {name.lower(): value for name, value in self.headers.items()}, json.loads(body)))
            answer = server.next_answer()
            time.sleep(answer.delay)
            if answer.drop:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

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

    def provider(self, server: Server, monkeypatch: pytest.MonkeyPatch, config: Chat.Config | None = None) -> Chat:
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value.format(url=server.url))
        return Chat(self.spec(server.url), config)

    def answer(self, text: str) -> Answer:
        return Answer(json.dumps(self.reply(text)).encode())

    def outcome(self, name: str) -> Answer:
        return Answer(json.dumps(self.outcomes[name]).encode())


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
    "truncated": _google_content("0: turned le", "MAX_TOKENS"),
    "empty": {},
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
        ),
        Vendor("openai-chat", lambda _url: "openai-chat:gpt-4.1", _OPENAI, _chat_completion, _check_chat, _CHAT_OUTCOMES),
        Vendor(
            "openai",
            lambda _url: "openai:gpt-4.1",
            _OPENAI,
            lambda text: _response(_output_text(text)),
            _check_responses,
            _RESPONSES_OUTCOMES,
        ),
        Vendor(
            "anthropic",
            lambda _url: "anthropic:claude-sonnet-4-6",
            {"ANTHROPIC_BASE_URL": "{url}", "ANTHROPIC_API_KEY": PLANTED_KEY},
            _anthropic_message,
            _check_anthropic,
            _ANTHROPIC_OUTCOMES,
        ),
        Vendor(
            "google",
            lambda _url: "google:gemini-2.5-flash",
            {"GOOGLE_GEMINI_BASE_URL": "{url}", "GOOGLE_API_KEY": PLANTED_KEY},
            _google_content,
            _check_google,
            _GOOGLE_OUTCOMES,
        ),
    )
}
