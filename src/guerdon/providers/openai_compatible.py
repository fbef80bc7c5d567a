"""A server of one's own, or a gateway, that speaks OpenAI's chat completions: `openai-compatible:MODEL@URL` (vLLM, SGLang, llama.cpp,
Ollama, `transformers serve`, LM Studio, OpenRouter ...).

Sends the rendered conversation with its pictures as one POST to URL/chat/completions, without an SDK in between: the body is put together
from pictures that are encoded once, and takes a tenth of the processor time. Exactly one HTTP call per request: nothing is tried again and
no redirect is followed. The key, if the server wants one, comes from the environment variable OPENAI_COMPATIBLE_API_KEY and from nowhere
else (no .netrc). HTTP_PROXY, HTTPS_PROXY and NO_PROXY are respected, except for a server on this machine, whose pictures must stay here.

A JSON answer is asked for in words and, where the server takes it, as `response_format` with a JSON schema. A server may ignore the latter
(the words are there) or refuse it (it is not sent again, and the request that met the refusal is to be asked once more). Which of the two
ways are used is a setting, fixed before the first request, because it is part of the rater's identity.

Answers are read strictly: what a server thinks aloud (`reasoning`, `<think>...</think>`) is no answer, a body that is not a chat completion
is a failure with a cause, and of an error only cause, short code and HTTP status are kept. A server on this machine costs nothing; for any
other the price is unknown unless the user states it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from guerdon import pricing
from guerdon.errors import AuthenticationRefused, ProviderError, UsageError
from guerdon.interfaces import Provider
from guerdon.providers._settings import (
    ENCODED,
    ChatConfig,
    in_words,
    remote_host,
    retry_after,
    sendable,
    short_code,
    status_cause,
    told_cause,
    without_thinking,
)
from guerdon.records import Cause, Failure, Message, Picture, PictureFormat, Price, Quote, Rater, Reply, Request, Usage

NAME = "openai-compatible"
"""What stands before the colon of `--vlm`."""
KEY_VARIABLE = "OPENAI_COMPATIBLE_API_KEY"
"""Environment variable with the key of the server, if it wants one."""
LARGEST_REPLY = 16 * 2**20
"""Bytes of an HTTP body after which a server is not listened to any more."""

_PATH = "/chat/completions"
_IDLE = 4.0
"""Seconds that an unused connection is kept: less than the 5 s after which Uvicorn, below many of these servers, closes it."""
_FREE = Price(0.0, 0.0)


class OpenaiCompatible(Provider):
    """A model on a server that speaks OpenAI's chat completions."""

    Config = ChatConfig

    def __init__(self, name: str, config: ChatConfig | None = None) -> None:
        """`name`: MODEL@URL. The URL is the one that stands before /chat/completions, most often http://HOST:PORT/v1.

        Raises:
            UsageError: if the name cannot work, or the URL holds a password or a query.
            AuthenticationRefused: if the key cannot be sent in a header.
        """
        self.config = config or self.Config()
        model, url = model_and_url(name)
        self.remote = remote_host(url, url)
        self.rater = Rater(
            provider=NAME,
            model=model,
            base_url=url,
            settings={
                "temperature": self.config.temperature,
                "max_tokens": self.config.max_output_tokens,
                **({} if self.config.seed is None else {"seed": self.config.seed}),
                "schema": "both" if self.config.structured == "auto" else self.config.structured,
                **self.config.picture_settings,
            },
        )
        self._connections = _Connections(url + _PATH, _Key.from_environment(), self.config.timeout, here=not self.remote)
        self._format = _ResponseFormat()
        self._answered = False
        """Whether the server has ever given a chat completion: from then on its address and settings are right."""

    @classmethod
    def build(cls, argument: str = "", *, config: ChatConfig | None = None) -> OpenaiCompatible:
        """The rater called `openai-compatible:ARGUMENT`. Raises as the constructor does."""
        if not argument:
            raise UsageError("names no model and no server", where=NAME, cure=f"Write {NAME}:MODEL@http://HOST:PORT/v1.")
        return cls(argument, config)

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Sends one HTTP request. If the server refuses `response_format`, the failure is not final and the next request goes without.

        Raises:
            ProviderError: if what the server says means that every further request would fail in the same way: nothing there to ask
                (HTTP 404, 405, a redirect), a model without eyes, a context shorter than `max_output_tokens`.
        """
        schema = request.answer.schema()
        native = schema is not None and self._sends_format
        body = await self._body(request, schema if native else None, repeat)
        outcome = await self._attempt(body, structured=schema is not None, native=native)
        if self._price == _FREE and outcome.usage.dollars is None:
            return replace(outcome, usage=replace(outcome.usage, dollars=0.0))
        return outcome

    async def _attempt(self, body: bytes, *, structured: bool, native: bool) -> Reply | Failure:
        """What comes of sending `body`: asked for a `structured` answer, with the `native` response_format or without."""
        began = time.perf_counter()
        try:
            answer = await self._connections.post(body)
        except TimeoutError as error:
            return Failure("timeout", final=False, code=type(error).__name__, seconds=time.perf_counter() - began)
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # the last of a host's name that cannot be looked up
            # Without a connection nothing was sent, so it counts for nothing under a ceiling; any other end leaves that open.
            usage = Usage(dollars=0.0) if isinstance(error, aiohttp.ClientConnectorError) else Usage()
            return Failure("network", final=False, code=type(error).__name__, usage=usage, seconds=time.perf_counter() - began)
        answer = replace(answer, seconds=time.perf_counter() - began)
        if answer.status < 300:
            return self._outcome(answer, structured=structured, native=native)
        return self._refusal(answer, structured=structured, native=native)

    def quote(self, request: Request) -> Quote | None:
        return pricing.quote(
            request,
            provider=NAME,
            model=self.rater.model,
            max_output_tokens=self.config.max_output_tokens,
            form=self.config.picture_format,
            price=self._price,
        )

    async def close(self) -> None:
        await self._connections.close()

    @property
    def _price(self) -> Price | None:
        """The user's word first; a server on this machine is free, any other has no known price."""
        return self.price or (None if self.remote else _FREE)

    @property
    def _sends_format(self) -> bool:
        return self.config.structured == "native" or (self.config.structured == "auto" and self._format.worth_sending)

    # --- request ---

    async def _body(self, request: Request, schema: Mapping[str, Any] | None, repeat: int) -> bytes:
        """The JSON to send, with `schema` as its response_format."""
        config = self.config
        settings: dict[str, Any] = {
            "model": sendable(self.rater.model),
            "max_tokens": config.max_output_tokens,
            "temperature": config.temperature,
            "stream": False,
        }
        if config.seed is not None:
            settings["seed"] = config.seed + repeat
        if schema is not None:
            settings["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        messages = [_json({"role": "system", "content": sendable(request.system)})] if request.system else []
        messages += [await self._message(message) for message in _with_words(request, config.structured != "native").messages]
        return _json(settings)[:-1] + b',"messages":[' + b",".join(messages) + b"]}"

    async def _message(self, message: Message) -> bytes:
        text = sendable(message.text)
        if not message.pictures:
            return _json({"role": message.role, "content": text})
        # Pictures come before the text that speaks of them.
        parts = [await _part(picture, self.config.picture_format) for picture in message.pictures]
        parts.append(_json({"type": "text", "text": text}))
        return b'{"role":"%b","content":[%b]}' % (message.role.encode(), b",".join(parts))

    # --- response ---

    def _outcome(self, answer: _Answer, *, structured: bool, native: bool) -> Reply | Failure:
        """The reply in an HTTP 200, or why it holds none."""
        parsed = _parsed(answer)
        if isinstance(parsed, Failure):
            return parsed
        if "error" in parsed and not parsed.get("choices"):
            # A gateway that found out too late to say so in the status.
            return _told(answer).failure(status=_status_within(parsed["error"]))
        usage = _usage(parsed.get("usage"), self._price)
        choice, message = _first_choice(parsed)
        if message is None:
            return Failure("unreadable", final=False, code="other_shape", usage=usage, seconds=answer.seconds)
        self._answered = True
        self._format.accepted(asked=structured, sent=native)
        return _read(choice, message, usage, answer.seconds, str(parsed.get("model") or ""), self.config.max_output_tokens)

    def _refusal(self, answer: _Answer, *, structured: bool, native: bool) -> Failure:
        """The failure that an HTTP error stands for."""
        told = _told(answer)
        refuses_format = told.speaks_of(_FORMAT) and answer.status not in _NOT_ABOUT_FORMAT
        if native and refuses_format and self.config.structured == "native":
            cure = f"Use --{NAME}.structured auto, or instructed."
            raise ProviderError(f"the server takes no response_format (HTTP {answer.status})", where=self.rater.name, cure=cure)
        failure = told.failure(status=answer.status)
        unexplained = answer.status == 501 or (failure.cause == "bad_request" and failure.code != "too_long")
        perhaps = refuses_format or (unexplained and answer.status in (400, 422, 501))
        if structured and self.config.structured == "auto" and perhaps and self._format.rejected(sent=native, named=refuses_format):
            return replace(failure, cause="bad_request", final=False, code="response_format")
        if not self._answered:
            self._raise_if_hopeless(answer.status, failure)
        return failure

    def _raise_if_hopeless(self, status: int, failure: Failure) -> None:
        """Raises what every further request would meet as well. Called only as long as the server has answered nothing."""
        what = cure = ""
        if failure.cause == "unsupported":
            what = f"the server's model takes no pictures, or no question of this kind (HTTP {status})"
            cure = "Serve a vision-language model (llama.cpp also needs its --mmproj file)."
        elif status in (404, 405):
            what = f"the server knows no such model, or has nothing at this path (HTTP {status} to POST {self.rater.base_url}{_PATH})"
            cure = "Check the model's name (GET URL/models lists them) and the URL."
            if urlsplit(self.rater.base_url).path == "":
                cure = f"Most servers answer below /v1: write {self.rater.name}/v1. Otherwise check the model's name."
        elif 300 <= status < 400:
            what = f"the server sends us on to another address (HTTP {status} to POST {self.rater.base_url}{_PATH})"
            cure = "Pictures go only where you say: name the final URL, with https:// if that is the difference."
        elif failure.code == "too_long":
            what = f"the model's context is too short for the question and {self.config.max_output_tokens} tokens of answer (HTTP {status})"
            cure = f"Lower --{NAME}.max-output-tokens, or serve the model with a longer context."
        if what:
            raise ProviderError(what, where=self.rater.name, cure=cure)


# --- name ---------------------------------------------------------------------------------------------------------------------------


def model_and_url(text: str) -> tuple[str, str]:
    """Model and URL of MODEL@URL; the URL without a final slash, and without the path that is added to it. Raises UsageError."""
    named = re.fullmatch(r"(.+?)@(https?://\S+)", text)
    parts = _url_parts(named.group(2)) if named else None
    if named is None or parts is None:
        cure = f"For example {NAME}:qwen2-vl@http://localhost:8000/v1"
        raise UsageError(f"write {NAME}:MODEL@URL, with a URL that begins with http:// or https://", cure=cure)
    if parts.username or parts.password or parts.query or parts.fragment:
        cure = f"Put the key into the environment variable {KEY_VARIABLE}."
        raise UsageError("the URL of a rater is written into results, so it must not hold a user name, a password or a query", cure=cure)
    return named.group(1), named.group(2).rstrip("/").removesuffix(_PATH).rstrip("/")


def _url_parts(url: str) -> SplitResult | None:
    """The parts of a URL that names a host; None for any other text."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 and URL(url).host else None
    except ValueError:
        return None


@dataclass(frozen=True)
class _Key:
    """A key, or none. Never shown."""

    value: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> _Key:
        value = os.environ.get(KEY_VARIABLE, "").strip()
        if not (value.isascii() and value.isprintable()):
            what = f"{KEY_VARIABLE} holds a character that no key has"
            raise AuthenticationRefused(what, where=NAME, cure="Copy the key again, without line breaks.")
        return cls(value)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.value}"} if self.value else {}


# --- connections --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """An HTTP response."""

    status: int
    headers: Mapping[str, str]
    """Names in any case."""
    body: bytes | None
    """None if it was longer than `LARGEST_REPLY`."""
    seconds: float = 0.0


class _Connections:
    """The open connections to one server. They belong to the event loop in which the first request is sent."""

    def __init__(self, url: str, key: _Key, timeout: float, *, here: bool) -> None:
        self._url, self._key = URL(url), key
        self._timeout = aiohttp.ClientTimeout(total=timeout)  # the whole of it, so that a reply that drips in ends too
        self._proxy = None if here else _proxy(self._url)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(self, body: bytes) -> _Answer:
        """One POST. Raises TimeoutError, aiohttp.ClientError, OSError or UnicodeError."""
        # aiohttp warns of bytes above 1 MiB, which it would write in one go.
        data = body if len(body) <= 2**20 else BytesIO(body)
        async with self._opened().post(self._url, data=data, proxy=self._proxy, allow_redirects=False) as response:
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > LARGEST_REPLY:
                    response.close()
                    return _Answer(response.status, response.headers, None)
            return _Answer(response.status, response.headers, bytes(content))

    def _opened(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            self._loop = loop
            self._session = aiohttp.ClientSession(
                # How many requests are in flight is the caller's choice: waiting for a free connection would eat up their time.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": "guerdon",
                    **self._key.headers,
                },
            )
        return self._session

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None and self._loop is asyncio.get_running_loop():
            await session.close()


def _proxy(url: URL) -> URL | None:
    """The proxy that the environment names for `url`. (aiohttp's own trust_env would also send what .netrc holds for the host.)"""
    host = url.host or ""
    named = getproxies().get(url.scheme)
    return URL(named) if named and not proxy_bypass(host) else None


# --- request ------------------------------------------------------------------------------------------------------------------------


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def _json(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def _with_words(request: Request, wanted: bool) -> Request:
    """The request with what the answer must look like at the end of its last turn, if that is to be said in words."""
    schema = request.answer.schema() if wanted else None
    if schema is None:
        return request
    *earlier, last = request.messages
    return replace(request, messages=(*earlier, replace(last, text=f"{last.text}\n\n{in_words(schema)}")))


async def _part(picture: Picture, form: PictureFormat) -> bytes:
    """A picture as the JSON of the part of a message that carries it."""
    data = base64.b64encode(await ENCODED.of(picture, form))
    return b'{"type":"image_url","image_url":{"url":"data:%b;base64,%b"}}' % (form.media_type.encode(), data)


class _ResponseFormat:
    """Whether the server takes `response_format`, learnt from what it says.

    A refusal that names it settles the matter. One that does not (a bare HTTP 400) makes it a suspect as long as the server has never taken
    it: the question is asked again without, and what comes of that decides.
    """

    def __init__(self) -> None:
        self.state: Literal["untried", "taken", "suspected", "refused"] = "untried"

    @property
    def worth_sending(self) -> bool:
        return self.state in ("untried", "taken")

    def accepted(self, *, asked: bool, sent: bool) -> None:
        """A request was taken; `asked` for a JSON answer, and `sent` the format with it."""
        if sent and self.state != "refused":
            self.state = "taken"
        elif asked and not sent and self.state == "suspected":
            self.state = "refused"

    def rejected(self, *, sent: bool, named: bool) -> bool:
        """A request for a JSON answer was refused. Returns whether it is to be sent again without the format."""
        if not sent:
            if self.state == "suspected":
                self.state = "untried"  # it was innocent
            return False
        if named:
            self.state = "refused"
        elif self.state == "untried":
            self.state = "suspected"
        return self.state != "taken"


# --- HTTP 200 -----------------------------------------------------------------------------------------------------------------------


def _parsed(answer: _Answer) -> dict[str, Any] | Failure:
    """The JSON object in a body, whatever its content type says; a failure if it is none."""

    def failure(cause: Cause, code: str) -> Failure:
        return Failure(cause, final=False, code=code, seconds=answer.seconds)

    if answer.body is None:
        return failure("unreadable", "too_long")
    if not answer.body.strip():
        return failure("empty", "no_body")
    try:
        value = json.loads(answer.body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        beginning = answer.body.lstrip()[:5]
        return failure("unreadable", "html" if beginning[:1] == b"<" else "event_stream" if beginning == b"data:" else "not_json")
    return value if isinstance(value, dict) else failure("unreadable", "other_shape")


def _first_choice(parsed: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The first choice and its message; no message if the body is no chat completion."""
    choices = parsed.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return {}, None
    message = choice.get("message")
    return choice, message if isinstance(message, dict) and _content(message) is not None else None


def _content(message: Mapping[str, Any]) -> str | None:
    """The text of a message, "" for none; None if it is neither text nor parts of which some are."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


_CUT_OFF = frozenset({"length", "max_tokens", "model_length"})
_BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "error", "timeout"})


def _read(
    choice: Mapping[str, Any], message: Mapping[str, Any], usage: Usage, seconds: float, model: str, max_tokens: int
) -> Reply | Failure:
    """The reply that a choice holds. Blocks, refusals, cut-off and empty answers come as ordinary completions."""
    finish = choice.get("finish_reason")
    refusal = message.get("refusal")

    def failure(cause: Cause, *, final: bool) -> Failure:
        return Failure(cause, final=final, code=short_code([finish], cause), usage=usage, seconds=seconds)

    if finish in ("content_filter", "safety"):
        return failure("blocked", final=True)
    if finish == "refusal" or (isinstance(refusal, str) and refusal.strip()):
        return failure("refusal", final=True)
    # A server that does not say why it ended, and ended where it had to, was cut off.
    if finish in _CUT_OFF or (finish is None and usage.output_tokens is not None and usage.output_tokens >= max_tokens):
        return failure("truncated", final=True)
    if finish in _BROKEN_OFF:
        return failure("overload", final=False)
    text = without_thinking(_content(message) or "")
    if not text.strip():
        return failure("empty", final=False)
    return Reply(text, model=model, usage=usage, seconds=seconds)


def _usage(value: Any, price: Price | None) -> Usage:
    """What a completion says that it used; None for what it does not say."""
    told = value if isinstance(value, dict) else {}
    into, out = _count(told, "prompt_tokens"), _count(told, "completion_tokens")
    dollars = None if price is None or into is None or out is None else price.dollars(into, out)
    return Usage(
        into,
        out,
        dollars,
        thinking_tokens=_count(told.get("completion_tokens_details"), "reasoning_tokens"),
        cached_tokens=_count(told.get("prompt_tokens_details"), "cached_tokens"),
    )


def _count(details: Any, name: str) -> int | None:
    """A number of tokens, if that is what it is."""
    value = details.get(name) if isinstance(details, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


# --- HTTP errors --------------------------------------------------------------------------------------------------------------------

_FORMAT = re.compile(r"response_?format|json[_ ]?schema|structured.{0,3}output|guided_|grammar", re.IGNORECASE)
_LONGEST_WORDS = 4000
_NOT_ABOUT_FORMAT = frozenset({401, 402, 403, 404, 405, 407, 408, 409, 413, 425, 429, 502, 503, 504, 529})
_NO_PICTURES = re.compile(r"unsupported content part type|at most 0 image|missing data required for image", re.IGNORECASE)
"""Of llama.cpp, vLLM and Ollama; what others say is known to `told_cause`."""
_TOO_LONG = re.compile(
    r"(?:maximum|max|available) context (?:length|size)|context_length_exceeded|exceed_context_size|max_model_len"
    r"|max_(?:completion_)?tokens.{0,20}too large",
    re.IGNORECASE,
)
_BELIEVED: dict[Cause, frozenset[int | None]] = {
    "quota": frozenset({400, 402, 403, 429, None}),
    "blocked": frozenset({400, 403, 422, None}),
    "bad_request": frozenset({429, None}),
    "unsupported": frozenset({400, 404, 415, 422, 500, 501, None}),
}
"""A cause told in words -> the statuses (None: HTTP 200) that may be said to mean it."""
_RESTARTING = (404, 405)
"""Statuses that are met here only by a server that has answered before."""


@dataclass(frozen=True)
class _Told:
    """What an error says. The words serve to tell errors apart and are never kept."""

    codes: tuple[object, ...]
    """What may be a short code."""
    words: str = field(repr=False)
    answer: _Answer = field(repr=False)

    def speaks_of(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(text) for text in (*self.codes, self.words) if isinstance(text, str))

    def failure(self, *, status: int | None) -> Failure:
        """The failure that it stands for."""
        cause, final = self._cause(status)
        code = "too_long" if final and self.speaks_of(_TOO_LONG) else short_code(self.codes, f"http_{status}" if status else "error")
        wait = retry_after(self.answer.headers)
        return Failure(cause, final=final, code=code, status=status, retry_after=wait, seconds=self.answer.seconds)

    def _cause(self, status: int | None) -> tuple[Cause, bool]:
        told: tuple[Cause, bool] | None = ("unsupported", True)
        if not self.speaks_of(_NO_PICTURES):
            told = told_cause(*self.codes, self.words)
        if told is not None and status in _BELIEVED.get(told[0], ()):
            return told
        if status is None:
            return "unreadable", False
        return ("overload", False) if status in _RESTARTING else status_cause(status)


def _told(answer: _Answer) -> _Told:
    """Reads the error forms of OpenAI ({"error": {...}}), older vLLM ({"message": ..., "type": ...}), FastAPI ({"detail": ...}), Ollama
    ({"error": "..."}) and plain text."""
    body = answer.body or b""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _Told((), body[:_LONGEST_WORDS].decode("utf-8", "replace"), answer)
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return _Told((), error if isinstance(error, str) else "", answer)
    detail = error.get("detail")
    # Of what FastAPI found wrong, not what was given: that is our own request again.
    found = [part for part in detail if isinstance(part, dict)] if isinstance(detail, list) else []
    words = [
        error.get("message"),
        detail,
        error.get("param"),
        *(f"{part.get('type')} {part.get('loc')} {part.get('msg')}" for part in found),
    ]
    return _Told((error.get("code"), error.get("type")), " ".join(word for word in words if isinstance(word, str))[:_LONGEST_WORDS], answer)


def _status_within(error: Any) -> int | None:
    """The HTTP status that an error in an HTTP 200 carries as its code."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else None
