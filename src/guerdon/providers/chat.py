"""Every vendor's chat model as a rater, through pydantic-ai: `google:MODEL`, `openai:MODEL`, `anthropic:MODEL`, or any other prefix it
knows. (A server of one's own has a file of its own: `openai_compatible.py`.)

Sends the rendered conversation with its pictures over HTTPS, exactly one call per request: SDK retries are switched off, because the
scheduler retries and counts. Keys come from the vendor's environment variable and stay inside the SDK; of an error only its kind, HTTP
status and short code are kept, never its text, which may quote a key. Prices come from genai-prices (US dollars; None if unknown), unless
the user names one. Vendors' base URLs and proxies are those of their SDKs: OPENAI_BASE_URL, ANTHROPIC_BASE_URL, GOOGLE_GEMINI_BASE_URL,
HTTPS_PROXY, HTTP_PROXY, NO_PROXY.

A later turn repeats the earlier ones word for word, so vendors can read its beginning, pictures included, from their cache at a tenth to a
half of the price. A schema stands before everything else for OpenAI and Anthropic: one that only the later turn has makes the beginning
another one, and nothing is read. So with `structured="native"` (or "auto", where the model takes schemas) nothing is marked for the cache,
because Anthropic and OpenAI (from GPT-5.6 on, which would mark by itself if it were not told otherwise) charge a quarter more for what is
written there; with "instructed" the wish for JSON stands at the end of the last turn, the first turn is marked, and OpenAI is told which
requests belong together. The caches of Google and of OpenAI's older models need no marks and cost nothing.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args
from urllib.parse import urlsplit

from pydantic_ai import exceptions as vendor_errors
from pydantic_ai import messages as chat
from pydantic_ai.direct import model_request
from pydantic_ai.models import KnownModelName, Model, ModelRequestParameters, OpenAIChatCompatibleProvider, infer_model
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers import infer_provider_class
from pydantic_ai.settings import ModelSettings

from guerdon import pricing
from guerdon.answers import Text
from guerdon.errors import AuthenticationRefused, ProviderError, UnknownName, UsageError
from guerdon.interfaces import Batches, Provider
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
)
from guerdon.records import Cause, Failure, Message, PictureFormat, Quote, Rater, Reply, Request, Usage, digest

_OPENAI = frozenset({"openai", "openai-chat", "openai-responses"})
_THINKING = ("reasoning_tokens", "thoughts_tokens", "thinking_tokens")
"""What vendors call tokens of thinking."""
_BOUNDS = ("minItems", "maxItems", "minimum", "maximum")
_KNOWN_REASONS = frozenset({"google", "google-cloud", "anthropic"})
"""Vendors who list every reason for which an answer ends: another one, or Google's "OTHER", is no ordinary end."""
_NOT_CHAT = frozenset({"test", "openai-decisions", "google-decisions", "typesafe"})


class Chat(Provider):
    """A vendor's chat model."""

    Config = ChatConfig

    def __init__(self, name: str, config: ChatConfig | None = None) -> None:
        """`name`: PREFIX:MODEL.

        Raises:
            UnknownName: if pydantic-ai knows no such prefix.
            AuthenticationRefused: if no key is set.
            ProviderError: if a package is missing or the model cannot be built for another reason.
            UsageError: if the name or a setting cannot work.
        """
        self.config = config or self.Config()
        prefix, _, model_name = name.partition(":")
        if not model_name:
            raise UsageError(f"'{name}' names no model", cure="Write it as PREFIX:MODEL, for example google:gemini-2.5-flash.")
        self.model = _vendor_model(prefix, model_name)
        self._settings = self._effective_settings(prefix)
        self._native_schema = self._takes_schema(prefix)
        url = self.model.base_url or ""
        self.remote = remote_host(url, prefix)
        self.rater = Rater(
            provider=prefix,
            model=self.model.model_name,
            base_url=url.rstrip("/") if _is_redirected(url) else "",
            settings={
                **{name: self._settings[name] for name in ("temperature", "max_tokens", "seed") if name in self._settings},
                "schema": "native" if self._native_schema else "in words",
                **self.config.picture_settings,
            },
        )

    @classmethod
    def build(cls, argument: str = "", *, config: ChatConfig | None = None) -> Chat:
        """The rater called ARGUMENT, e.g. `google:gemini-2.5-flash`. Raises as the constructor does."""
        return cls(argument, config)

    def _takes_schema(self, prefix: str) -> bool:
        known = bool(self.model.profile.get("supports_json_schema_output", False))
        if self.config.structured == "native" and not known:
            cure = "Leave it at auto: the schema is then put into words."
            raise UsageError("takes no schema (structured=native)", where=f"{prefix}:{self.model.model_name}", cure=cure)
        return known and self.config.structured != "instructed"

    def _effective_settings(self, prefix: str) -> ModelSettings:
        """What is really sent: a model that refuses or ignores a setting does not get it."""
        config, profile = self.config, self.model.profile
        settings = ModelSettings(
            max_tokens=config.max_output_tokens,
            timeout=config.timeout,
            request_timeout=config.timeout,
            max_retries=0,
            temperature=config.temperature,
            framing_announcement="never",  # pydantic-ai would put 185 words of its own into the prompt of some models
        )
        if config.seed is not None:
            settings["seed"] = config.seed
        ignored: set[str] = {*self.model.unsupported_settings, *cast(tuple[str, ...], profile.get("openai_unsupported_model_settings", ()))}
        if "seed" in ignored and config.seed is not None:
            raise UsageError("takes no seed", where=f"{prefix}:{self.model.model_name}", cure="Leave the seed out.")
        if not _takes_temperature(profile):
            ignored.add("temperature")
        settings = cast(ModelSettings, {name: value for name, value in settings.items() if name not in ignored})
        if prefix in _OPENAI:
            of_openai: dict[str, Any] = {"openai_store": False}  # frames are not kept on the vendor's servers
            if self._charges_for_marks:
                of_openai["openai_prompt_cache_options"] = {"mode": "explicit"}  # it would mark every request, read again or not
            settings = cast(ModelSettings, {**settings, **of_openai})
        return settings

    @property
    def _charges_for_marks(self) -> bool:
        """Whether the vendor's cache keeps what is marked, and charges for keeping it."""
        named = type(self.model).__name__ == "AnthropicModel"
        return named or bool(self.model.profile.get("openai_supports_prompt_cache_breakpoints", False))

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Sends one HTTP request.

        Raises:
            ProviderError: if the vendor does not know the model: every further request would fail in the same way.
        """
        conversation = await self.conversation(request, cache=True)
        settings = self.settings(repeat)
        if not self._native_schema and self.rater.provider in _OPENAI:
            # Requests with one key meet on one machine, where the beginning of the conversation lies in the cache.
            settings["openai_prompt_cache_key"] = digest(*_beginning(request))[5:37]  # type: ignore[typeddict-unknown-key]
        began = time.perf_counter()
        try:
            response = await model_request(
                self.model, conversation, model_settings=settings, model_request_parameters=self.parameters(request), instrument=False
            )
        except Exception as error:
            # Whatever a vendor's SDK raises about one request is that request's failure; its text may hold the key and goes no further.
            failed = failure(error, time.perf_counter() - began)
            unknown = self._unknown_model(error) if failed.cause == "bad_request" else None
        else:
            return self.outcome(response, time.perf_counter() - began)
        if unknown is not None:
            raise unknown
        return failed

    def quote(self, request: Request) -> Quote | None:
        """The most that one attempt can cost: all of its input, the whole allowance of output."""
        return pricing.quote(
            request,
            provider=self.rater.provider,
            model=self.rater.model,
            max_output_tokens=self.config.max_output_tokens,
            form=self.config.picture_format,
            price=self.price,
        )

    def batches(self) -> Batches | None:
        """The vendor's queue, if it has one that is spoken here."""
        from guerdon.providers import _chat_batches

        return _chat_batches.of(self)

    async def close(self) -> None:
        await self.model.__aenter__()  # leaving the context closes the connections, also those opened outside of it
        await self.model.__aexit__(None, None, None)

    async def conversation(self, request: Request, *, cache: bool = False) -> list[chat.ModelMessage]:
        """The turns of `request` in pydantic-ai's words.

        `cache`: mark the beginning for the vendor's cache, if marks are needed and a later turn will read it soon.
        """
        schema = request.answer.schema()
        words = "" if schema is None or self._native_schema else in_words(schema)
        turns = [await _turn(message, self.config.picture_format) for message in request.messages]
        last = turns[-1]
        if isinstance(last, chat.ModelRequest):
            # One system message, not two: more than one is refused by many open models.
            last = replace(last, instructions=sendable(request.system) or None)
            turns[-1] = _with_text(last, words) if words else last
        goes_on = len(turns) > 1 or isinstance(request.answer, Text)
        if cache and goes_on and self._charges_for_marks and not self._native_schema:
            turns[0] = _marked(turns[0])
        return turns

    def settings(self, repeat: int = 0) -> ModelSettings:
        """What the model is told for independent answer number `repeat`; never shared, so that callers may change it."""
        settings = self._settings.copy()
        if "seed" in settings:
            settings["seed"] += repeat
        return settings

    def parameters(self, request: Request) -> ModelRequestParameters:
        """The schema of the answer, for models that take one."""
        schema = request.answer.schema()
        if schema is None or not self._native_schema:
            return ModelRequestParameters()
        if self.rater.provider in _OPENAI and self.rater.model.startswith("ft:"):
            schema = _without_bounds(schema)
        return ModelRequestParameters(output_mode="native", output_object=OutputObjectDefinition(schema, name="answer", strict=True))

    def outcome(self, response: chat.ModelResponse, seconds: float = 0.0, *, batch: bool = False) -> Reply | Failure:
        """What a response comes to: blocks, refusals, cut-off and empty answers raise nothing, but are no replies.

        `batch`: priced as part of a batch.
        """
        return _outcome(response, self.usage(response, batch=batch), seconds)

    def usage(self, response: chat.ModelResponse, *, batch: bool = False) -> Usage:
        """What a response consumed; unknown where the vendor did not say. Thinking counts as output, whatever the vendor calls it."""
        usage = response.usage
        if not usage.input_tokens and not usage.output_tokens:
            return Usage()
        thinking = usage.output_reasoning_tokens or next((usage.details[name] for name in _THINKING if name in usage.details), 0)
        return Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            dollars=self._dollars(response, batch),
            thinking_tokens=thinking or None,
            cached_tokens=usage.cache_read_tokens or None,
        )

    def _dollars(self, response: chat.ModelResponse, batch: bool) -> float | None:
        if self.price is not None:
            return self.price.dollars(response.usage.input_tokens, response.usage.output_tokens)
        if response.usage.cost is not None:
            return float(response.usage.cost)  # a gateway that says what it charged
        return _listed_dollars(response, batch)

    def _unknown_model(self, error: Exception) -> ProviderError | None:
        """What to raise if the vendor does not know the model."""
        if not isinstance(error, vendor_errors.ModelNotFoundError):
            return None
        suggestion = getattr(error, "suggested_model_id", None)
        cure = f"Did you mean {suggestion}?" if suggestion else "Check the model's name (and the URL, if you gave one)."
        return ProviderError("the vendor knows no such model (HTTP 404)", where=self.rater.name, cure=cure)


def prefixes() -> list[str]:
    """Prefixes of `PREFIX:MODEL` that pydantic-ai is known to know; it may know more."""
    curated = {name.split(":")[0] for name in get_args(KnownModelName.__value__) if ":" in name}
    return sorted((curated | set(get_args(OpenAIChatCompatibleProvider.__value__))) - _NOT_CHAT)


# --- building the model -------------------------------------------------------------------------------------------------------------


def _vendor_model(prefix: str, model_name: str) -> Model:
    where = f"{prefix}:{model_name}"
    if prefix in _NOT_CHAT:
        raise UnknownName("vendor prefix", prefix, prefixes())
    try:
        infer_provider_class(prefix)
        return infer_model(where)
    except ValueError:
        raise UnknownName("vendor prefix", prefix, prefixes()) from None
    except ImportError as error:
        package = re.search(r"pydantic-ai-slim\[[\w-]+\]", str(error))
        install = package.group() if package else "pydantic-ai"
        raise ProviderError("its package is not installed", where=where, cure=f"Install it with: pip install '{install}'") from None
    except vendor_errors.UserError as error:
        variable = re.search(r"`([A-Z][A-Z0-9_]+)`", error.message)
        if variable is None:
            raise ProviderError("pydantic-ai cannot build this model", where=where, cure="Use a chat model that takes pictures.") from None
        cure = f"Set the environment variable {variable.group(1)}."
        raise AuthenticationRefused("no key is set", where=where, cure=cure) from None


def _takes_temperature(profile: Any) -> bool:
    """False for models that refuse sampling settings, and for those that reason before they answer, for which pydantic-ai drops them."""
    if profile.get("anthropic_disallows_sampling_settings", False):
        return False
    if not profile.get("openai_supports_reasoning", False):
        return True
    efforts = profile.get("openai_reasoning_efforts")
    can_be_off = profile.get("openai_supports_reasoning_effort_none", False) if efforts is None else "none" in efforts
    return bool(can_be_off) and not profile.get("thinking_enabled_by_default", False)


def _is_redirected(url: str) -> bool:
    """Whether the user's environment, not the vendor, says where the requests go."""
    named = (value for name, value in os.environ.items() if name.endswith(("_BASE_URL", "_ENDPOINT")))
    return any(value and urlsplit(value).netloc == urlsplit(url).netloc for value in named)


# --- request ------------------------------------------------------------------------------------------------------------------------


async def _turn(message: Message, form: PictureFormat) -> chat.ModelRequest | chat.ModelResponse:
    if message.role == "assistant":
        return chat.ModelResponse(parts=[chat.TextPart(sendable(message.text))])
    # Pictures come before the text, as the vendors advise.
    pictures = [chat.BinaryContent(await ENCODED.of(picture, form), media_type=form.media_type) for picture in message.pictures]
    return chat.ModelRequest(parts=[chat.UserPromptPart([*pictures, sendable(message.text)])])


def _with_text(turn: chat.ModelRequest, words: str) -> chat.ModelRequest:
    """A user turn with `words` behind its text."""
    *pictures, text = _content(turn)
    return replace(turn, parts=[chat.UserPromptPart([*pictures, f"{text}\n\n{words}"])])


def _marked(turn: chat.ModelRequest | chat.ModelResponse) -> chat.ModelRequest | chat.ModelResponse:
    """A user turn whose end is marked: up to there the vendor keeps the conversation in its cache."""
    if isinstance(turn, chat.ModelResponse):
        return turn
    return replace(turn, parts=[chat.UserPromptPart([*_content(turn), chat.CachePoint()])])


def _content(turn: chat.ModelRequest) -> list[chat.UserContent]:
    return [item for part in turn.parts if isinstance(part, chat.UserPromptPart) for item in part.content]


def _beginning(request: Request) -> list[str]:
    """What every turn of one conversation has in common."""
    first = request.messages[0]
    return [request.system, first.text, *(picture.id for picture in first.pictures)]


def _without_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose bounds are told in a description: OpenAI's fine-tuned models refuse them."""
    inner = {name: _without_bounds(value) if isinstance(value, dict) else value for name, value in schema.items()}
    bounds = {name: inner.pop(name) for name in _BOUNDS if name in inner}
    return {**inner, "description": ", ".join(f"{name}: {value}" for name, value in bounds.items())} if bounds else inner


# --- response -----------------------------------------------------------------------------------------------------------------------


def _outcome(response: chat.ModelResponse, usage: Usage, seconds: float) -> Reply | Failure:
    """Blocks, refusals, cut-off and empty answers raise nothing: they are read from the response."""
    details = response.provider_details or {}
    reason = str(details.get("finish_reason") or details.get("block_reason") or response.finish_reason or "")
    try:
        text = response.text or ""
    except TypeError:  # a part of a kind that the SDK does not know, and takes for text
        return Failure("unreadable", final=False, code="unknown_part", usage=usage, seconds=seconds)

    def failed(cause: Cause, *, final: bool) -> Failure:
        return Failure(cause, final=final, code=short_code([reason], cause), usage=usage, seconds=seconds)

    if response.finish_reason == "content_filter":
        return failed("refusal" if "refusal" in details or reason == "refusal" else "blocked", final=True)
    if response.finish_reason == "length":
        return failed("truncated", final=True)  # with as much room again it would be cut off again
    if response.finish_reason == "error":
        return failed("unreadable", final=False)
    if not text.strip():
        return failed("empty", final=False)
    unknown = response.finish_reason is None and bool(details.get("finish_reason")) and response.provider_name in _KNOWN_REASONS
    if response.state != "complete" or unknown or reason == "incomplete":
        return failed("truncated", final=False)
    return Reply(text, model=response.model_name or "", usage=usage, seconds=seconds)


def _listed_dollars(response: chat.ModelResponse, batch: bool) -> float | None:
    """Price by genai-prices, reads and writes of caches included."""
    details = {**(response.provider_details or {}), **({"processing": "batch"} if batch else {})}
    try:
        return float(replace(response, provider_details=details).cost().total_price)
    except (LookupError, ValueError, AssertionError):  # an unknown model, usage that cannot be priced, no model named
        return None


_CAUSES: tuple[tuple[type[Exception], Cause, bool], ...] = (
    (vendor_errors.ModelAuthenticationError, "authentication", False),
    (vendor_errors.ModelQuotaExceededError, "quota", False),
    (vendor_errors.ModelRateLimitError, "rate_limit", False),
    (vendor_errors.ModelRequestTimeout, "timeout", False),
    (vendor_errors.ModelTimeoutError, "timeout", False),
    (vendor_errors.ModelConnectionError, "network", False),
    (vendor_errors.ContentFilterError, "blocked", True),
    (vendor_errors.UserError, "unsupported", True),
)
"""What pydantic-ai raises -> cause, and whether asking again is useless, where that says more than the status."""
_WITHOUT_STATUS: tuple[tuple[type[Exception], Cause, bool], ...] = (
    (vendor_errors.ModelUnavailableError, "overload", False),
    (vendor_errors.ModelServerError, "overload", False),
    (vendor_errors.ModelRequestRejectedError, "bad_request", True),
)
"""The same, where there is no status to go by."""
_CODES: dict[str, tuple[Cause, bool]] = {
    "FAILED_PRECONDITION": ("authentication", False),  # Google serves no one at this place; without billing it is "quota"
    "invalid_prompt": ("blocked", True),
    "bio_policy": ("blocked", True),
    "invalid_image": ("bad_request", True),
    "invalid_image_format": ("bad_request", True),
    "image_too_large": ("bad_request", True),
    "image_too_small": ("bad_request", True),
    "image_parse_error": ("bad_request", True),
}
"""Codes of Google and of OpenAI's Responses API, which also come with status 200."""


def failure(error: Exception, seconds: float = 0.0) -> Failure:
    """The failure that an exception of pydantic-ai, of an SDK or of the network stands for. Its text is dropped."""
    code, kind = getattr(error, "provider_error_code", None), getattr(error, "provider_error_type", None)
    cause, final = _cause(error, code, kind)
    headers = getattr(error, "headers", None) or {}
    told = retry_after(headers)
    return Failure(
        cause,
        final=final,
        code=short_code([code, kind], type(error).__name__),
        status=_status(error),
        retry_after=told if told is not None else getattr(error, "retry_after", None),  # Google says it in the body
        # Without a connection nothing was sent, so it counts for nothing under a ceiling; any other end leaves that open.
        usage=Usage(dollars=0.0) if _never_connected(error) else Usage(),
        seconds=seconds,
    )


def _never_connected(error: BaseException) -> bool:
    """Whether no connection came into being: the clients of all vendors raise a ConnectError of theirs then, or what it was made from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if type(found).__name__ == "ConnectError" or isinstance(found, ConnectionRefusedError | socket.gaierror):
            return True
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return False


def _status(error: Exception) -> int | None:
    """The HTTP status, if there was one: pydantic-ai's, or the SDK's below it (only that knows of a redirect, which is not followed)."""
    found = getattr(error, "status_code", None) or getattr(error.__cause__, "status_code", None) or getattr(error.__cause__, "code", None)
    return found if isinstance(found, int) and found >= 300 else None


def _cause(error: Exception, code: object, kind: object) -> tuple[Cause, bool]:
    status = _status(error)
    if isinstance(error, vendor_errors.ModelAPIError) and not isinstance(error, vendor_errors.ModelQuotaExceededError):
        if isinstance(code, str) and code in _CODES:
            return _CODES[code]
        words = str(error.body) if isinstance(error.body, Mapping) else error.message if status is None and code else ""
        told = told_cause(code, kind, words) if status is None or 400 <= status < 500 else None
        if told is not None:
            return told
    if status == 403 and type(error).__name__ == "ModelRequestRejectedError":
        return "blocked", True  # a gateway's moderation
    for family, cause, final in _CAUSES if status is not None else (*_CAUSES, *_WITHOUT_STATUS):
        if isinstance(error, family):
            return cause, final
    if status is not None:
        return status_cause(status)
    if isinstance(undecodable := error.__cause__, json.JSONDecodeError) and not undecodable.doc.strip():
        return "empty", False
    if isinstance(error, OSError):
        return "network", False
    return "unreadable", False  # a body that is no answer: HTML from a proxy, JSON of another shape
