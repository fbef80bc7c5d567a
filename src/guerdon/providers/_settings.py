"""What all raters share that are asked over HTTP: settings, and how hosts, texts and error codes are treated."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

from guerdon.errors import UsageError
from guerdon.records import Cause, Picture, PictureFormat

MAX_OUTPUT_TOKENS = 8192
"""Most tokens of one answer, unless the user says otherwise."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Settings of chat raters.

    Raises:
        UsageError: if a number is out of its range.
    """

    temperature: float = 0.0
    """Randomness of the answers, 0 to 2; at 0 as little as the model allows. Left out for models that refuse it."""
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    """Most tokens of one answer, thinking included; a longer one is cut off and counts as failed (truncated)."""
    timeout: float = 120.0
    """Seconds after which a request is given up."""
    picture_form: Literal["png", "jpeg"] = "png"
    """How pictures travel: unchanged (png), or smaller and a little blurred (jpeg)."""
    jpeg_quality: int = PictureFormat.quality
    """Quality of JPEG pictures, 1 to 100."""
    seed: int | None = None
    """Seed of the vendor's sampling, for vendors that take one; independent answers to one question count up from it."""
    structured: Literal["auto", "native", "instructed"] = "auto"
    """How an answer in JSON is asked for: by the vendor's schema (native), in words (instructed), or as suits the model best (auto).
    In words, OpenAI and Anthropic can read a conversation's earlier turns from their caches, at a lower price."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2:
            raise UsageError(f"temperature is a number from 0 to 2, got {self.temperature}", where="chat")
        if self.max_output_tokens < 1 or not 0 < self.timeout < float("inf"):
            got = f"{self.max_output_tokens} and {self.timeout}"
            raise UsageError(f"max_output_tokens and timeout are positive, got {got}", where="chat")
        if not 1 <= self.jpeg_quality <= 100:
            raise UsageError(f"jpeg_quality is a number from 1 to 100, got {self.jpeg_quality}", where="chat")

    @property
    def picture_format(self) -> PictureFormat:
        """How pictures travel."""
        return PictureFormat(self.picture_form, self.jpeg_quality)

    @property
    def picture_settings(self) -> dict[str, str]:
        """What a rater's identity says about it: nothing for PNG, which changes no pixel."""
        return {} if self.picture_form == "png" else {"pictures": self.picture_format.text}


class EncodedPictures:
    """Pictures as the bytes of files, the last ones used up to `limit` bytes: a later turn about a picture does not compress it again.

    One object may be shared by threads.
    """

    def __init__(self, limit: int = 64 * 2**20) -> None:
        self._limit = limit
        self._held = 0
        self._files: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    async def of(self, picture: Picture, form: PictureFormat) -> bytes:
        """The picture's file. Compressing takes milliseconds, hence a thread."""
        found = self._found((picture.id, form.text))
        return await asyncio.to_thread(self.of_now, picture, form) if found is None else found

    def of_now(self, picture: Picture, form: PictureFormat) -> bytes:
        """As `of`, for callers that have no event loop."""
        key = (picture.id, form.text)
        found = self._found(key)
        if found is not None:
            return found
        file = picture.encoded(form)
        with self._lock:
            if len(file) <= self._limit and key not in self._files:
                self._files[key] = file
                self._held += len(file)
            while self._held > self._limit:
                self._held -= len(self._files.popitem(last=False)[1])
        return file

    def _found(self, key: tuple[str, str]) -> bytes | None:
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
            return self._files.get(key)


ENCODED = EncodedPictures()
"""What the raters of this process share."""


_TOLD_AS: tuple[tuple[Cause, bool, str], ...] = (
    # Anthropic sends an empty account as 400, OpenRouter a spent key as 403, Google spent credits as 429.
    (
        "quota",
        False,
        r"credit balance|insufficient[ _](credits?|balance|funds|quota)|credits? (are|is|have been) (depleted|exhausted|used)",
    ),
    (
        "quota",
        False,
        r"key limit exceeded|(spend|spending|budget|billing)[ _](hard[ _])?(limit|cap)|exceeded[\w ]{0,20} budget|billing_not_active",
    ),
    # One request above the limit of a whole minute: it will never fit.
    ("bad_request", True, r"request too large for "),
    ("blocked", True, r"content[ _](filter|policy|moderation)|polic(y|ies)[ _]violation|violat\w+ .{0,30}usage polic"),
    ("blocked", True, r"responsibleaipolicy|flagged as potentially|moderation_blocked|prompt was flagged"),
    ("unsupported", True, r"no endpoints found that support image|unknown variant .{0,3}image|not (a )?(multimodal|vision)|text-only"),
    ("unsupported", True, r"(does|do|can) ?n[o']t (support|accept|handle|process|read|take) (any )?(image|vision|multimodal|picture)"),
    ("unsupported", True, r"image(_url|s| inputs?)? (is|are) (only|not) (supported|enabled|allowed)|image inputs? not supported"),
)
"""What vendors say in words only, where status and code are the same for causes that are not."""
_HTML = re.compile(r"<(html|!doctype|head|body)\b", re.IGNORECASE)
_TOLD = tuple((cause, final, re.compile(pattern, re.IGNORECASE)) for cause, final, pattern in _TOLD_AS)


_CAUSES: dict[int, tuple[Cause, bool]] = {
    401: ("authentication", False), 402: ("quota", False), 403: ("authentication", False), 407: ("network", False), 408: ("timeout", False),
    409: ("overload", False), 425: ("overload", False), 429: ("rate_limit", False), 451: ("blocked", True), 499: ("network", False),
    501: ("unsupported", True), 504: ("timeout", False), 524: ("timeout", False),
}  # fmt: skip


def status_cause(status: int) -> tuple[Cause, bool]:
    """(cause, final) of an HTTP status that is no success, where nothing more is said."""
    if status < 400:
        return "network", False  # sent on to another address, where nobody agreed that frames may go
    return _CAUSES.get(status) or (("bad_request", True) if status < 500 else ("overload", False))


def told_cause(*words: object) -> tuple[Cause, bool] | None:
    """(cause, final) that an error's code or text names, if it names one. The text goes no further: it may hold a key.

    A page of HTML names none: it comes from a proxy and may say anything.
    """
    text = " ".join(word[:4000] for word in words if isinstance(word, str))
    if _HTML.search(text):
        return None
    return next(((cause, final) for cause, final, pattern in _TOLD if pattern.search(text)), None)


_THOUGHT_BEGINS = re.compile(r"\s*(?:<think(?:ing)?>|◁think▷|\[THINK\])")
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>|◁/think▷|\[/THINK\]")


def without_thinking(text: str) -> str:
    """What follows the thoughts that a server or library without a parser for them leaves in the answer. Their beginning may be missing
    (some models are prompted with it); thoughts without an end have no answer behind them."""
    *_, answer = _THOUGHT_ENDS.split(text)
    if len(answer) < len(text):
        return answer.lstrip()
    return "" if _THOUGHT_BEGINS.match(text) else text


def in_words(schema: Mapping[str, object]) -> str:
    """A schema as an instruction. It belongs at the end of the last turn: whatever stands before it may be read from a vendor's cache."""
    return f"Answer with one JSON object and nothing else. Its schema: {json.dumps(schema)}"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as an HTTP date (RFC 9110, section 10.2.3).

    `headers`: names in lower case. None if it says nothing that can be understood.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, "")) / unit
        if 0 <= seconds < math.inf:
            return seconds
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, TypeError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def _number(text: str) -> float:
    """NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def remote_host(url: str, otherwise: str) -> str:
    """The host that `url` sends to, "" for this machine, `otherwise` if it names none."""
    host = urlsplit(url).hostname
    if host is None:
        return otherwise
    try:
        here = ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return "" if here else host


def sendable(text: str) -> str:
    """`text` without lone surrogates, which no vendor's JSON can carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def short_code(candidates: Iterable[object], otherwise: str) -> str:
    """The first candidate that looks like a short code and holds no secret: all that is kept of an error's words."""
    secrets = [value for name, value in os.environ.items() if name.endswith(("_KEY", "_TOKEN")) and len(value) >= 8]
    for candidate in candidates:
        if isinstance(candidate, str) and re.fullmatch(r"[A-Za-z][\w.-]{0,47}", candidate) and not any(s in candidate for s in secrets):
            return candidate
    return otherwise
