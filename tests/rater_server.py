"""A server that answers like an OpenAI-compatible one, counts what arrives and misbehaves by plan. Runs as a process of its own:

    python rater_server.py --latency 0.05 --faults 0.4 --seed 1

prints its port, then serves until it is killed. The scores it gives for a window follow from the window's instruction alone, so that a
test knows every label; which request is answered badly follows from the seed, the question and how often it came. `GET /log` tells what
arrived and how each request was treated.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

TRANSPORT = (
    "429", "429 retry-after", "500", "503", "529", "slow drip", "cut", "empty body", "html", "cut json",
)  # fmt: skip
"""Faults of the connection or the server: the request fails, and may be sent again."""
FINAL = ("refusal", "block")
"""Answers that end a conversation for good."""
CONTENT = ("wrong count", "of ten", "eleven", "lone surrogate", "fraction", "two lists")
"""Replies in which the scores are spoilt; the lone surrogate alone leaves them readable."""

CAUSES = {
    "429": "rate_limit", "429 retry-after": "rate_limit", "500": "overload", "503": "overload", "529": "overload",
    "slow drip": "timeout", "cut": "network", "empty body": "empty", "html": "unreadable", "cut json": "unreadable",
    "refusal": "refusal", "block": "blocked",
}  # fmt: skip
"""The cause that each failure is to be recorded under."""


def scores_of(instruction: str, count: int) -> list[int]:
    """The scores that the server stands by."""
    return [byte % 11 for byte in hashlib.sha256(instruction.encode()).digest()[:count]]


def plan(seed: int, rate: float, question: str, attempt: int, kinds: tuple[str, ...]) -> str:
    """The fault that befalls a request; "" for none."""
    drawn = hashlib.sha256(f"{seed}/{question}/{attempt}".encode()).digest()
    return kinds[drawn[4] % len(kinds)] if int.from_bytes(drawn[:4], "big") < rate * 2**32 else ""


@dataclass
class State:
    latency: float
    faults: float
    seed: int
    drip: float
    key: str
    authorised: int = 0
    """Requests that came with the key."""
    received: int = 0
    answered: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    """(instruction, turn, fault) of each request in the order of arrival."""


def _question(body: dict[str, Any]) -> tuple[str, str, int]:
    """(instruction, turn, number of scores wanted)."""
    texts = [
        (message["role"], part["text"])
        for message in body["messages"]
        for part in ([{"type": "text", "text": message["content"]}] if isinstance(message["content"], str) else message["content"])
        if part["type"] == "text"
    ]
    said = "\n".join(text for role, text in texts if role == "user")
    return question_of(said, sum(message["role"] == "assistant" for message in body["messages"]))


def question_of(said: str, answers: int) -> tuple[str, str, int]:
    """(instruction, turn, number of scores wanted) of a conversation: what was said to the rater, and how often it has answered."""
    instruction = re.search(r'Instruction given to the agent: "(.*)"', said)
    counts = re.findall(r"with exactly (\d+) (?:scores|whole numbers)", said)
    return instruction.group(1) if instruction else "", ("analyse", "score", "repair")[answers], int(counts[-1]) if counts else 0


def content(fault: str, turn: str, scores: list[int]) -> str:
    if turn == "analyse":
        return "\n".join(f"{number}: the agent moved" for number in range(8))
    bodies = {
        "wrong count": json.dumps({"scores": scores[:-1]}),
        "of ten": json.dumps({"scores": [f"{score}/10" for score in scores]}),
        "eleven": json.dumps({"scores": [*scores[:-1], 11]}),
        "fraction": json.dumps({"scores": [score + 0.5 for score in scores]}),
        "two lists": json.dumps({"scores": scores}) + json.dumps({"scores": [10 - score for score in scores]}) + "1",
        "lone surrogate": json.dumps({"scores": scores}) + " \ud800",
    }
    return bodies.get(fault, json.dumps({"scores": scores}))


def _completion(fault: str, turn: str, scores: list[int]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content(fault, turn, scores), "refusal": None}
    reason = "stop"
    if fault == "refusal":
        message |= {"content": None, "refusal": "I cannot help with that."}
    if fault == "block":
        message |= {"content": None}
        reason = "content_filter"
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "served",
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
    }  # fmt: skip


def _response(status: int, body: bytes, *headers: str, kind: str = "application/json") -> bytes:
    lines = [f"HTTP/1.1 {status} Text", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _error(status: int, *headers: str) -> bytes:
    return _response(status, json.dumps({"error": {"message": "no", "type": "server", "code": "busy"}}).encode(), *headers)


async def _serve(state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await _answer_one(state, reader, writer):
            pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _answer_one(state: State, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answers one request; False when the connection is to be closed."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
    data = await reader.readexactly(int(length.group(1)) if length else 0)
    if head.startswith("GET /log"):
        known = {"received": state.received, "answered": state.answered, "authorised": state.authorised, "log": state.log}
        writer.write(_response(200, json.dumps(known).encode()))
        await writer.drain()
        return True
    if state.key and f"Bearer {state.key}" not in head:
        shown = json.dumps({"error": {"message": f"Incorrect API key provided: {head}", "code": "invalid_api_key"}})
        writer.write(_response(401, shown.encode()))
        await writer.drain()
        return True
    state.authorised += 1
    body = json.loads(data)
    instruction, turn, count = _question(body)
    question = f"{instruction}/{turn}"
    state.received += 1
    state.attempts[question] += 1
    kinds = TRANSPORT + (FINAL + CONTENT if turn != "analyse" else ("refusal",))
    fault = plan(state.seed, state.faults, question, state.attempts[question], kinds)
    state.log.append((instruction, turn, fault))
    await asyncio.sleep(state.latency)
    goes_on = await _write(state, writer, fault, turn, scores_of(instruction, count))
    state.answered += 1
    return goes_on


async def _write(state: State, writer: asyncio.StreamWriter, fault: str, turn: str, scores: list[int]) -> bool:
    good = json.dumps(_completion(fault, turn, scores)).encode()
    if fault == "cut":
        writer.write(_response(200, good)[:-20])
        await writer.drain()
        return False
    if fault == "slow drip":
        for byte in _response(200, good):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(state.drip)
        return False
    answers = {
        "429": lambda: _error(429),
        "429 retry-after": lambda: _error(429, "Retry-After: 1"),
        "500": lambda: _error(500),
        "503": lambda: _error(503),
        "529": lambda: _error(529),
        "empty body": lambda: _response(200, b""),
        "html": lambda: _response(200, b"<html><body>Bad gateway</body></html>", kind="text/html"),
        "cut json": lambda: _response(200, good[: len(good) // 2]),
    }
    writer.write(answers.get(fault, lambda: _response(200, good))())
    await writer.drain()
    return True


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drip", type=float, default=0.02)
    parser.add_argument("--key", default="")
    state = State(**vars(parser.parse_args()))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve(state, reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
