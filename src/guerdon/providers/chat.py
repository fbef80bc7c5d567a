"""Every vendor's chat model as a rater, through pydantic-ai: `google:MODEL`, `openai:MODEL`, `anthropic:MODEL`, any other prefix it knows,
or `openai-compatible:MODEL@URL` for a server of one's own (vLLM, llama.cpp, Ollama, a gateway).

Sends the rendered conversation with its pictures (PNG) over HTTPS, exactly one call per request: SDK retries are switched off, because the
scheduler retries and counts. Keys come from the vendor's environment variable and stay inside the SDK; of an error only its kind, HTTP
status and short code are kept, never its text, which may quote a key. Prices come from genai-prices (US dollars; None if unknown).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import SplitResult, urlsplit

from pydantic_ai import exceptions as vendor_errors
from pydantic_ai import messages as chat
from pydantic_ai.direct import model_request
from pydantic_ai.models import KnownModelName, Model, ModelRequestParameters, OpenAIChatCompatibleProvider, infer_model
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.providers import infer_provider_class
from pydantic_ai.settings import ModelSettings

from guerdon.errors import AuthenticationRefused, ProviderError, UnknownName, UsageError
from guerdon.interfaces import Provider
from guerdon.providers._settings import ChatConfig, remote_host, sendable, short_code
from guerdon.records import Cause, Failure, Message, PictureFormat, Rater, Reply, Request, Usage

COMPATIBLE = "openai-compatible"
"""Prefix of servers that speak OpenAI's chat completions at a URL of their own."""
COMPATIBLE_KEY = "OPENAI_COMPATIBLE_API_KEY"
"""Environment variable with the key of such a server, if it wants one."""
_NO_SEED = frozenset({"OpenAIResponsesModel", "AnthropicModel", "BedrockConverseModel"})
_NOT_CHAT = frozenset({"test", "openai-decisions", "google-decisions", "typesafe"})


class Chat(Provider):
    """A vendor's chat model, or one on a server that speaks OpenAI's protocol."""

    Config = ChatConfig

    def __init__(self, name: str, config: ChatConfig | None = None) -> None:
        """`name`: PREFIX:MODEL or openai-compatible:MODEL@URL.

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
        self._model = _compatible_model(model_name) if prefix == COMPATIBLE else _vendor_model(prefix, model_name)
        self._settings = self._effective_settings(prefix)
        self._native_schema = bool(self._model.profile.get("supports_json_schema_output", False))
        url = self._model.base_url or ""
        self.remote = remote_host(url, prefix)
        self.rater = Rater(
            provider=prefix,
            model=self._model.model_name,
            base_url=url.rstrip("/") if prefix == COMPATIBLE or _is_redirected(url) else "",
            settings={
                **{name: self._settings[name] for name in ("temperature", "max_tokens", "seed") if name in self._settings},
                "schema": "native" if self._native_schema else "instructed",
                **self.config.picture_settings,
            },
        )

    @classmethod
    def build(cls, argument: str = "", *, config: ChatConfig | None = None) -> Chat:
        """The rater called ARGUMENT, e.g. `google:gemini-2.5-flash`. Raises as the constructor does."""
        return cls(argument, config)

    def _effective_settings(self, prefix: str) -> ModelSettings:
        """What is really sent: a model that refuses a setting does not get it."""
        config, profile = self.config, self._model.profile
        settings = ModelSettings(
            max_tokens=config.max_output_tokens,
            timeout=config.timeout,
            request_timeout=config.timeout,
            max_retries=0,
            framing_announcement="never",  # pydantic-ai would put 185 words of its own into the prompt of some models
        )
        if _takes_temperature(profile):
            settings["temperature"] = config.temperature
        if config.seed is not None:
            if type(self._model).__name__ in _NO_SEED:
                raise UsageError("takes no seed", where=f"{prefix}:{self._model.model_name}", cure="Leave the seed out.")
            settings["seed"] = config.seed
        if prefix.startswith("openai") and prefix != COMPATIBLE:
            settings["openai_store"] = False  # type: ignore[typeddict-unknown-key]  # frames are not kept on the vendor's servers
        return settings

    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Sends one HTTP request.

        Raises:
            ProviderError: if the vendor does not know the model: every further request would fail in the same way.
        """
        schema = request.answer.schema()
        conversation = await _conversation(request, None if self._native_schema else schema, self.config.picture_format)
        settings, parameters = self._settings_of(repeat), self._parameters(schema)
        began = time.perf_counter()
        try:
            response = await model_request(
                self._model, conversation, model_settings=settings, model_request_parameters=parameters, instrument=False
            )
        except vendor_errors.ModelNotFoundError as error:
            raise self._unknown_model(error) from None
        except Exception as error:
            # Whatever a vendor's SDK raises about one request is that request's failure; its text may hold the key and goes no further.
            return _failure(error, time.perf_counter() - began)
        return _outcome(response, self._usage(response), time.perf_counter() - began)

    async def close(self) -> None:
        await self._model.__aenter__()  # leaving the context closes the connections, also those opened outside of it
        await self._model.__aexit__(None, None, None)

    def _settings_of(self, repeat: int) -> ModelSettings:
        settings = self._settings.copy()
        if "seed" in settings:
            settings["seed"] += repeat
        return settings

    def _parameters(self, schema: dict[str, Any] | None) -> ModelRequestParameters:
        if schema is None or not self._native_schema:
            return ModelRequestParameters()
        return ModelRequestParameters(output_mode="native", output_object=OutputObjectDefinition(schema, name="answer", strict=True))

    def _usage(self, response: chat.ModelResponse) -> Usage:
        usage = response.usage
        if not usage.input_tokens and not usage.output_tokens:
            return Usage()  # the vendor did not say
        return Usage(usage.input_tokens, usage.output_tokens, None if self.rater.provider == COMPATIBLE else _dollars(response))

    def _unknown_model(self, error: vendor_errors.ModelAPIError) -> ProviderError:
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


def _compatible_model(text: str) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    named = re.fullmatch(r"(.+?)@(https?://\S+)", text)
    parts = _url_parts(named.group(2)) if named else None
    if named is None or parts is None:
        cure = "For example openai-compatible:qwen2-vl@http://localhost:8000/v1"
        raise UsageError(f"write {COMPATIBLE}:MODEL@URL, with a URL that begins with http:// or https://", cure=cure)
    if parts.username or parts.password or parts.query or parts.fragment:
        cure = f"Put the key into the environment variable {COMPATIBLE_KEY}."
        raise UsageError("the URL of a rater is written into results, so it must not hold a user name, a password or a query", cure=cure)
    provider = OpenAICompatibleProvider(COMPATIBLE, base_url=named.group(2), api_key=os.environ.get(COMPATIBLE_KEY) or None)
    return OpenAIChatModel(named.group(1), provider=provider)


def _url_parts(url: str) -> SplitResult | None:
    """The parts of a URL that names a host; None for any other text."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _takes_temperature(profile: Any) -> bool:
    """False for models that refuse sampling settings, or ignore them because they reason before they answer."""
    if profile.get("anthropic_disallows_sampling_settings", False):
        return False
    return not profile.get("openai_supports_reasoning", False) or not (
        profile.get("thinking_enabled_by_default", False) or profile.get("thinking_always_enabled", False)
    )


def _is_redirected(url: str) -> bool:
    """Whether the user's environment, not the vendor, says where the requests go."""
    named = (value for name, value in os.environ.items() if name.endswith(("_BASE_URL", "_ENDPOINT")))
    return any(value and urlsplit(value).netloc == urlsplit(url).netloc for value in named)


# --- request ------------------------------------------------------------------------------------------------------------------------


async def _conversation(request: Request, schema: dict[str, Any] | None, form: PictureFormat) -> list[chat.ModelMessage]:
    """The turns of a request. A schema that the model cannot take as such is put into words."""
    in_words = f"Answer with one JSON object and nothing else. Its schema: {json.dumps(schema)}" if schema else ""
    system = "\n\n".join(filter(None, (sendable(request.system), in_words)))
    *earlier, last = [await _turn(message, form) for message in request.messages]
    # One system message, not two: more than one is refused by many open models.
    return [*earlier, replace(last, instructions=system or None) if isinstance(last, chat.ModelRequest) else last]


async def _turn(message: Message, form: PictureFormat) -> chat.ModelRequest | chat.ModelResponse:
    if message.role == "assistant":
        return chat.ModelResponse(parts=[chat.TextPart(sendable(message.text))])
    # Pictures come before the text, as the vendors advise. Compressing them takes milliseconds, hence a thread.
    pictures = [
        chat.BinaryContent(await asyncio.to_thread(picture.encoded, form), media_type=form.media_type) for picture in message.pictures
    ]
    return chat.ModelRequest(parts=[chat.UserPromptPart([*pictures, sendable(message.text)])])


# --- response -----------------------------------------------------------------------------------------------------------------------


def _outcome(response: chat.ModelResponse, usage: Usage, seconds: float) -> Reply | Failure:
    """Blocks, refusals, cut-off and empty answers raise nothing: they are read from the response."""
    details = response.provider_details or {}
    reason = str(details.get("finish_reason") or details.get("block_reason") or response.finish_reason or "")

    def failure(cause: Cause, *, final: bool) -> Failure:
        return Failure(cause, final=final, code=short_code([reason], cause), usage=usage, seconds=seconds)

    if response.finish_reason == "content_filter":
        return failure("refusal" if "refusal" in details or reason == "refusal" else "blocked", final=True)
    if response.finish_reason == "length":
        return failure("truncated", final=True)
    text = response.text or ""
    if response.finish_reason == "error":
        return failure("unreadable", final=False)
    if not text.strip():
        return failure("empty", final=False)
    return Reply(text, model=response.model_name or "", usage=usage, seconds=seconds)


def _dollars(response: chat.ModelResponse) -> float | None:
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError, AssertionError):  # an unknown model, usage that cannot be priced, no model named
        return None


_CAUSES: tuple[tuple[type[Exception], Cause, bool], ...] = (
    (vendor_errors.ModelAuthenticationError, "authentication", False),
    (vendor_errors.ModelQuotaExceededError, "quota", False),
    (vendor_errors.ModelRateLimitError, "rate_limit", False),
    (vendor_errors.ModelUnavailableError, "overload", False),
    (vendor_errors.ModelServerError, "overload", False),
    (vendor_errors.ModelRequestTimeout, "timeout", False),
    (vendor_errors.ModelTimeoutError, "timeout", False),
    (vendor_errors.ModelConnectionError, "network", False),
    (vendor_errors.ModelRequestRejectedError, "bad_request", True),
    (vendor_errors.ContentFilterError, "blocked", True),
    (vendor_errors.UserError, "unsupported", True),
)
"""What pydantic-ai raises -> cause, and whether asking again is useless. The first class that fits counts."""
_PASSING_STATUSES: dict[int, Cause] = {402: "quota", 408: "timeout", 409: "overload", 425: "overload"}


def _failure(error: Exception, seconds: float) -> Failure:
    """The failure that an exception of pydantic-ai, of an SDK or of the network stands for. Its text is dropped."""
    cause, final = _cause(error)
    return Failure(
        cause,
        final=final,
        code=short_code([getattr(error, "provider_error_code", None), getattr(error, "provider_error_type", None)], type(error).__name__),
        status=getattr(error, "status_code", None),
        retry_after=getattr(error, "retry_after", None),
        seconds=seconds,
    )


def _cause(error: Exception) -> tuple[Cause, bool]:
    status = getattr(error, "status_code", None)
    if status in _PASSING_STATUSES:
        return _PASSING_STATUSES[status], False
    for kind, cause, final in _CAUSES:
        if isinstance(error, kind):
            return cause, final
    if isinstance(error, vendor_errors.ModelHTTPError):
        return ("bad_request", True) if status is not None and 400 <= status < 500 else ("overload", False)
    if isinstance(undecodable := error.__cause__, json.JSONDecodeError) and not undecodable.doc.strip():
        return "empty", False
    if isinstance(error, OSError):
        return "network", False
    return "unreadable", False  # a body that is no answer: HTML from a proxy, JSON of another shape
