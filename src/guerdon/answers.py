"""What kind of answer a request wants: the one source of vendor schemas, instructions, scripted answers and parsing.

An answer specification says what a good answer looks like, writes one (`render`, used by scripted raters and tests) and reads one
(`read`). Reading is strict: a reply is either exactly what was asked for, or `Unreadable` with the reason in words that can be quoted to
the rater in a repair turn. Nothing is clamped, padded, guessed or defaulted to a number.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class Unreadable(ValueError):
    """A reply that is not the answer asked for. The message says why, in words fit to quote to the rater."""


@dataclass(frozen=True)
class Text:
    """Free text: any reply with a visible character."""

    kind: ClassVar[str] = "text"

    def schema(self) -> None:
        """JSON schema of the reply; None, because free text has none."""
        return

    def read(self, reply: str) -> str:
        """The reply without surrounding white space. Raises `Unreadable` if nothing is left."""
        text = reply.strip()
        if not text:
            raise Unreadable("the reply is empty")
        return text

    def to_record(self) -> dict[str, Any]:
        return {"kind": self.kind}


@dataclass(frozen=True)
class Scores:
    """`n` whole numbers from `low` to `high`, as JSON `{"scores": [...]}`.

    Raises:
        ValueError: if `n` < 1 or `low` >= `high`.
    """

    n: int
    low: int = 0
    high: int = 10
    kind: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Scores needs n >= 1, got {self.n}")
        if self.low >= self.high:
            raise ValueError(f"Scores needs low < high, got {self.low} and {self.high}")

    def schema(self) -> dict[str, Any]:
        """JSON schema of the reply (an object with one array of exactly `n` integers)."""
        item = {"type": "integer", "minimum": self.low, "maximum": self.high}
        scores = {"type": "array", "items": item, "minItems": self.n, "maxItems": self.n}
        return {"type": "object", "properties": {"scores": scores}, "required": ["scores"], "additionalProperties": False}

    def render(self, scores: Sequence[int]) -> str:
        """A well-formed reply that carries `scores`."""
        return json.dumps({"scores": list(scores)})

    def read(self, reply: str) -> tuple[int, ...]:
        """The `n` scores in `reply`.

        Code fences and prose around the JSON are tolerated; a bare JSON array is read only if it is the whole reply. Several JSON objects
        with scores are read only if they all say the same.

        Raises:
            Unreadable: in every other case (wrong count, fractions, strings such as "8/10", values outside the range, ...).
        """
        found = list(_score_lists(reply))
        if not found:
            raise Unreadable(f'the reply contains no JSON object {{"scores": [...]}} with {self.n} whole numbers')
        read = {self._check(candidate) for candidate in found}
        if len(read) > 1:
            raise Unreadable(f"the reply contains {len(found)} lists of scores that differ")
        return read.pop()

    def _check(self, candidate: Any) -> tuple[int, ...]:
        if not isinstance(candidate, list):
            raise Unreadable(f'"scores" must be a list of {self.n} whole numbers')
        if len(candidate) != self.n:
            raise Unreadable(f"the list has {len(candidate)} scores, {self.n} were asked for")
        return tuple(self._score(position, value) for position, value in enumerate(candidate))

    def _score(self, position: int, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unreadable(f"score {position} is {_shown(value)}, not a number")
        if isinstance(value, float) and (not math.isfinite(value) or not value.is_integer()):
            raise Unreadable(f"score {position} is {_shown(value)}, not a whole number")
        if not self.low <= value <= self.high:
            raise Unreadable(f"score {position} is {_shown(value)}, outside {self.low}..{self.high}")
        return int(value)

    def to_record(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.n, "low": self.low, "high": self.high}


AnswerSpec = Text | Scores


def answer_from_record(record: Mapping[str, Any]) -> AnswerSpec:
    """The inverse of `to_record`. Raises ValueError for a kind that does not exist."""
    fields = {name: value for name, value in record.items() if name != "kind"}
    for specification in (Text, Scores):
        if record.get("kind") == specification.kind:
            return specification(**fields)
    raise ValueError(f"no kind of answer is called {record.get('kind')!r}")


_FENCE = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*?)\n?\s*```\s*$", re.DOTALL)
_SHOWN_LENGTH = 40


def _shown(value: Any) -> str:
    """`value` as JSON, short enough to quote."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


class _Invalid(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses JSON objects that name a key twice: which of the two was meant cannot be known."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Invalid("a key is given twice")
    return result


def _constant(name: str) -> float:
    raise _Invalid(f"{name} is not a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant)


def _score_lists(reply: str) -> Iterator[Any]:
    """Every value that the reply gives for "scores", at the top level of a JSON object in it; or the reply itself if it is one array."""
    fenced = _FENCE.match(reply)
    body = (fenced.group(1) if fenced else reply).strip()
    if body.startswith("["):
        try:
            whole, end = _DECODER.raw_decode(body)
        except (ValueError, RecursionError):
            return
        if end == len(body):
            yield whole
        return
    position = body.find("{")
    while position >= 0:
        try:
            value, end = _DECODER.raw_decode(body, position)
        except _Invalid as error:
            raise Unreadable(f"the JSON in the reply is ambiguous: {error}") from None
        except (ValueError, RecursionError):
            position = body.find("{", position + 1)
            continue
        if "scores" in value:
            yield value["scores"]
        position = body.find("{", end)
