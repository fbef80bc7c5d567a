"""What all raters share that are asked over HTTP: settings, and how hosts, texts and error codes are treated."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal
from urllib.parse import urlsplit

from guerdon.errors import UsageError
from guerdon.records import PictureFormat


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Settings of chat raters.

    Raises:
        UsageError: if a number is out of its range.
    """

    temperature: float = 0.0
    """Randomness of the answers; 0 for as little as the model allows. Left out for models that refuse it."""
    max_output_tokens: int = 8192
    """Longest answer, thinking included; a longer one is cut off and counts as failed (truncated)."""
    timeout: float = 120.0
    """Seconds after which a request is given up."""
    picture_form: Literal["png", "jpeg"] = "png"
    """How pictures travel: unchanged (png), or smaller and a little blurred (jpeg)."""
    jpeg_quality: int = 90
    """Quality of JPEG pictures, 1 to 100."""
    seed: int | None = None
    """Seed of the vendor's sampling, for vendors that take one; independent answers to one question count up from it."""

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
