"""Servers on this machine that speak OpenAI's chat completions, each with the manners of one that users run, taken from its documentation.

Unlike `tests.vendors` they read the request, refuse what the real one refuses, and answer what was asked. A score follows from the action
and the instruction alone, so that a test knows every label.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Answer = tuple[int, Any]
"""HTTP status, and JSON or bytes."""


def text_of(body: Body) -> str:
    """All texts of the conversation, in order."""
    contents = [message["content"] for message in body["messages"]]
    return "\n".join(c if isinstance(c, str) else "\n".join(p["text"] for p in c if p["type"] == "text") for c in contents)


def picture_urls(body: Body) -> list[str]:
    """The data URLs of the conversation's pictures."""
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [part["image_url"]["url"] for content in contents for part in content if part["type"] == "image_url"]


def asks_for_scores(body: Body) -> bool:
    """Whether the last turn wants JSON."""
    return "whole number" in text_of({"messages": body["messages"][-1:]})


def score_of(action: str, instruction: str) -> int:
    """The score that the servers stand by."""
    return hashlib.sha256(f"{action}/{instruction}".encode()).digest()[0] % 11


def true_scores(body: Body) -> list[int]:
    """The scores of the window that the conversation is about."""
    asked = text_of({"messages": [next(message for message in body["messages"] if message["role"] == "user")]})
    instruction = re.search(r'Instruction given to the agent: "(.*)"', asked)
    return [score_of(action, instruction.group(1) if instruction else "") for action in re.findall(r"^\d+: (.+)$", asked, re.MULTILINE)]


def honest(body: Body) -> str:
    """What a good model says: a line per action, then the scores."""
    scores = true_scores(body)
    if asks_for_scores(body):
        return json.dumps({"scores": scores})
    return "\n".join(f"{number}: it moves" for number in range(len(scores)))


def completion(content: Any, finish: str | None = "stop", **message: Any) -> Body:
    """An ordinary chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice], "usage": usage}


# --- manners ---


def vllm(body: Body) -> Answer:
    """vLLM with a reasoning parser: enforces the schema, gives the thoughts a field of their own, counts them and what its cache held."""
    if body["model"] != "served":
        error = {"message": f"The model `{body['model']}` does not exist.", "type": "NotFoundError", "param": "model", "code": 404}
        return 404, {"error": error}
    reply = completion(honest(body), reasoning='First thought: {"scores": [1]}', refusal=None, tool_calls=[])
    reply["usage"] |= {"prompt_tokens_details": {"cached_tokens": 64}, "completion_tokens_details": {"reasoning_tokens": 7}}
    reply["choices"][0] |= {"logprobs": None, "stop_reason": None}
    return 200, reply


def transformers_serve(body: Body) -> Answer:
    """`transformers serve` refuses fields that it does not know with HTTP 422, response_format among them."""
    refused = {"response_format", "n", "max_completion_tokens", "stream_options"} & body.keys()
    if refused:
        return 422, {"detail": f"Unsupported fields in the request: {refused}"}
    return 200, completion(f'<think>\nHm. {{"scores": [0]}} or so.\n</think>\n\n{honest(body)}')


def llama_cpp(body: Body) -> Answer:
    """llama.cpp turns the schema into a grammar, and says when it cannot."""
    if "response_format" in body and body["response_format"]["json_schema"]["schema"]["properties"]["scores"]["maxItems"] > 500:
        return 400, {"error": {"code": 400, "message": "Failed to parse grammar", "type": "invalid_request_error"}}
    return 200, completion(honest(body)) | {"timings": {"predicted_ms": 1.0}, "system_fingerprint": "b1"}


def llama_cpp_blind(body: Body) -> Answer:
    """llama.cpp without a projector."""
    message = "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"
    return (500, {"error": {"code": 500, "message": message, "type": "server_error"}}) if picture_urls(body) else (200, completion("ok"))


def ollama(body: Body) -> Answer:
    """Ollama ignores what it does not know, and here the format too: prose first."""
    prefix = "Sure! Here is what I think:\n```json\n" if asks_for_scores(body) else ""
    suffix = "\n```\nHope it helps." if prefix else ""
    return 200, completion(prefix + honest(body) + suffix) | {"system_fingerprint": "fp_ollama"}


def curt(body: Body) -> Answer:
    """A gateway that refuses the format without saying so."""
    return (
        (400, {"error": {"message": "Bad request", "type": "invalid_request"}})
        if "response_format" in body
        else (200, completion(honest(body)))
    )


def reasonless(body: Body) -> Answer:
    """A server that never says why it ended."""
    return 200, completion(honest(body), None)


@dataclass
class Served:
    """A running server."""

    url: str
    """With /v1."""
    bodies: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Raw:
    """An answer byte by byte."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    drip: float = 0.0
    """Seconds before each byte."""


@contextmanager
def serve(answer: Callable[[Body], Answer | Raw]) -> Iterator[Served]:
    """A server that answers POST /v1/chat/completions as `answer` says, and any other path with HTTP 404."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.bodies.append(body)
            served.headers.append({name.lower(): value for name, value in self.headers.items()})
            served.paths.append(self.path)
            path = "/" + self.path.split("/", 3)[3] if self.path.startswith("http://") else self.path
            given = answer(body) if path == "/v1/chat/completions" else (404, {"detail": "Not Found"})
            raw = given if isinstance(given, Raw) else Raw(_bytes(given[1]), given[0], (("Content-Type", "application/json"),))
            self.send_response(raw.status)
            for name, value in {"Content-Length": str(len(raw.body)), **dict(raw.headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            if not raw.drip:
                self.wfile.write(raw.body)
            for byte in raw.body if raw.drip else b"":
                time.sleep(raw.drip)
                self.wfile.write(bytes([byte]))
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return  # a client that gave up waiting

    http = Quiet(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()
