"""What kind of answer a request wants: the one source of vendor schemas, instructions, scripted answers and parsing.

An answer specification says what a good answer looks like, writes one (`render`, used by scripted raters and tests) and reads one
(`read`). Reading is strict: a reply is either exactly what was asked for, or `Unreadable` with the reason in words that can be quoted to
the rater in a repair turn. Nothing is clamped, padded, guessed or defaulted to a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
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
        with scores are read only if they all say the same, and none if one is damaged: what is left of it may be another's scores.

        Raises:
            Unreadable: in every other case (wrong count, fractions, strings such as "8/10", values outside the range, ...).
        """
        found = list(_values(reply, "scores", bare_list=True))
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
        if not isinstance(value, Decimal):
            raise Unreadable(f"score {position} is {_shown(value)}, not a number")
        if not value.is_finite() or value != value.to_integral_value():
            raise Unreadable(f"score {position} is {_shown(value)}, not a whole number")
        if not self.low <= value <= self.high:
            raise Unreadable(f"score {position} is {_shown(value)}, outside {self.low}..{self.high}")
        return int(value)

    def to_record(self) -> dict[str, Any]:
        return {"kind": self.kind, "n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Choice:
    """`n` of the named `options`, one for each thing judged, as JSON `{"ratings": [...]}`; read as their positions in `options`.

    Raises:
        ValueError: if `n` < 1, there are fewer than two options, or two of them differ only in case or white space.
    """

    options: tuple[str, ...]
    n: int = 1
    kind: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if self.n < 1:
            raise ValueError(f"Choice needs n >= 1, got {self.n}")
        if len(self.options) < 2 or len({_plain(option) for option in self.options} - {""}) < len(self.options):
            raise ValueError(f"Choice needs at least two options that differ, got {self.options}")

    def schema(self) -> dict[str, Any]:
        """JSON schema of the reply (an object with one array of exactly `n` of the options)."""
        ratings = {"type": "array", "items": {"type": "string", "enum": list(self.options)}, "minItems": self.n, "maxItems": self.n}
        return {"type": "object", "properties": {"ratings": ratings}, "required": ["ratings"], "additionalProperties": False}

    def render(self, choices: Sequence[int]) -> str:
        """A well-formed reply that carries `choices`, positions in `options`. Raises ValueError for a position that is none."""
        if not all(0 <= choice < len(self.options) for choice in choices):
            raise ValueError(f"the options have the positions 0 to {len(self.options) - 1}, got {list(choices)}")
        return json.dumps({"ratings": [self.options[choice] for choice in choices]})

    def read(self, reply: str) -> tuple[int, ...]:
        """The `n` positions in `reply`.

        What is tolerated around the JSON is what `Scores.read` tolerates. Names of options are compared without case and the white space
        around them. If one is asked for, a reply that is nothing but the name of an option is read, too; a full stop, quotation marks or
        marks of emphasis around it do not count.

        Raises:
            Unreadable: in every other case (wrong count, numbers, names that are no option's, several lists that differ, ...).
        """
        found = list(_values(reply, "ratings", bare_list=True))
        named = _named_alone(reply, self.options) if self.n == 1 and not found else None
        if named is not None:
            return (named,)
        if not found:
            raise Unreadable(f'the reply contains no JSON object {{"ratings": [...]}} with {self.n} of the options {self._names()}')
        read = {self._check(candidate) for candidate in found}
        if len(read) > 1:
            raise Unreadable(f"the reply contains {len(found)} lists of ratings that differ")
        return read.pop()

    def read_probabilities(self, reply: str) -> tuple[tuple[float, ...], ...] | None:
        """How likely each option is, for each of the `n` things, where a rater that knows it adds it to its ratings.

        Nobody is asked for it: it is the value of "probabilities" in the same reply, `n` lists with one number per option, each list
        summing to 1 (within a hundredth). None if there is no such value, or if it is anything else.
        """
        try:
            found = list(_values(reply, "probabilities"))
        except Unreadable:
            return None
        rows = found[0] if len(found) == 1 else None
        if not isinstance(rows, list) or len(rows) != self.n:
            return None
        read = [_distribution(row, len(self.options)) for row in rows]
        return None if any(row is None for row in read) else tuple(row for row in read if row is not None)

    def _check(self, candidate: Any) -> tuple[int, ...]:
        if not isinstance(candidate, list):
            raise Unreadable(f'"ratings" must be a list of {self.n} of the options {self._names()}')
        if len(candidate) != self.n:
            raise Unreadable(f"the list has {len(candidate)} ratings, {self.n} were asked for")
        return tuple(self._rating(number, value) for number, value in enumerate(candidate))

    def _rating(self, number: int, value: Any) -> int:
        found = _position(value, self.options)
        if found is None:
            raise Unreadable(f"rating {number} is {_shown(value)}, none of the options {self._names()}")
        return found

    def _names(self) -> str:
        """The options, short enough to quote."""
        names = ", ".join(self.options)
        return names if len(names) <= _NAMES_LENGTH else f"that were given ({self.options[0][:_SHOWN_LENGTH]}, ...)"

    def to_record(self) -> dict[str, Any]:
        return {"kind": self.kind, "options": list(self.options), "n": self.n}


_ROUNDING = 0.01
"""How far the sum of probabilities may lie from 1: they are written with a few digits."""


def _distribution(row: Any, count: int) -> tuple[float, ...] | None:
    """`count` probabilities that sum to 1, or None."""
    if not isinstance(row, list) or len(row) != count or not all(isinstance(each, Decimal) and 0 <= each <= 1 for each in row):
        return None
    return tuple(map(float, row)) if abs(float(sum(row)) - 1) <= _ROUNDING else None


@dataclass(frozen=True)
class Preference:
    """Which of two is better, as JSON `{"better": "first" | "second" | "neither"}`."""

    kind: ClassVar[str] = "preference"
    OPTIONS: ClassVar[tuple[str, str, str]] = ("first", "neither", "second")
    """In the order of the probability that the second one is better: 0, 0.5, 1. "neither" says that the rater has no preference."""

    def schema(self) -> dict[str, Any]:
        """JSON schema of the reply."""
        better = {"type": "string", "enum": list(self.OPTIONS)}
        return {"type": "object", "properties": {"better": better}, "required": ["better"], "additionalProperties": False}

    def render(self, value: float) -> str:
        """A well-formed reply that carries `value`: 0.0, 0.5 or 1.0. Raises ValueError for any other value."""
        return json.dumps({"better": self.OPTIONS[(0.0, 0.5, 1.0).index(value)]})

    def read(self, reply: str) -> float:
        """Probability that the second one is better: 0.0 (first), 0.5 (no preference) or 1.0 (second).

        What is tolerated around the JSON is what `Scores.read` tolerates; a reply that is nothing but one of the three words is read as
        `Choice.read` reads one. Only the word "neither" is no preference: an answer that is missing or damaged never is.

        Raises:
            Unreadable: in every other case.
        """
        found = list(_values(reply, "better"))
        named = _named_alone(reply, self.OPTIONS) if not found else None
        if named is not None:
            return named / 2
        if not found:
            raise Unreadable('the reply contains no JSON object {"better": ...} with "first", "second" or "neither"')
        read = {self._check(candidate) for candidate in found}
        if len(read) > 1:
            raise Unreadable(f"the reply contains {len(found)} preferences that differ")
        return read.pop()

    def _check(self, candidate: Any) -> float:
        found = _position(candidate, self.OPTIONS)
        if found is None:
            raise Unreadable(f'"better" is {_shown(candidate)}, not "first", "second" or "neither"')
        return found / 2

    def to_record(self) -> dict[str, Any]:
        return {"kind": self.kind}


def _plain(text: str) -> str:
    """`text` without case and without the white space around it."""
    return text.strip().casefold()


def _position(value: Any, options: Sequence[str]) -> int | None:
    """Which option is called `value`; None if none is."""
    names = [_plain(option) for option in options]
    return names.index(_plain(value)) if isinstance(value, str) and _plain(value) in names else None


_MARKS = ".\"'`*_"
"""What may stand around a word that is the whole reply."""


def _named_alone(reply: str, options: Sequence[str]) -> int | None:
    """Which option the reply names and says nothing else; None if it says anything else."""
    body = _without_fence(reply.strip())
    exact = _position(body, options)
    if exact is not None:
        return exact
    bare = [_without_marks(option) for option in options]
    word = _without_marks(body)
    return bare.index(word) if word and bare.count(word) == 1 else None


def _without_marks(text: str) -> str:
    return _plain(_plain(text).strip(_MARKS))


AnswerSpec = Text | Scores | Choice | Preference


def answer_from_record(record: Mapping[str, Any]) -> AnswerSpec:
    """The inverse of `to_record`. Raises ValueError for a kind that does not exist."""
    fields = {name: value for name, value in record.items() if name != "kind"}
    for specification in (Text, Scores, Choice, Preference):
        if record.get("kind") == specification.kind:
            return specification(**fields)
    raise ValueError(f"no kind of answer is called {record.get('kind')!r}")


_FENCE = "```"
_OBJECT_BEGINS = re.compile(r"""\{\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[\w-]+)\s*:""", re.DOTALL)
"""What is meant as an object, although it may be none of JSON. A brace in prose, such as "{0, 1}" or "{{", is not."""
_SHOWN_LENGTH, _NAMES_LENGTH = 40, 80


def _shown(value: Any) -> str:
    """`value` as JSON, short enough to quote."""
    try:
        text = str(value) if isinstance(value, Decimal) else json.dumps(value, default=str)
    except RecursionError:
        text = "nested too deeply"
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


def _number(text: str) -> Decimal:
    """Exactly what is written: as binary fractions, 9.99999999999999999 would be 10."""
    try:
        return Decimal(text)
    except ArithmeticError:  # more digits in the exponent than there are atoms
        return Decimal("NaN")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_int=_number, parse_float=_number)


def _values(reply: str, key: str, *, bare_list: bool = False) -> Iterator[Any]:
    """Every value that the reply gives for `key`, at the top level of a JSON object in it; with `bare_list`, or the reply itself if it is
    one array. Raises Unreadable if any object in the reply is damaged, cut off or ambiguous."""
    body = _without_fence(reply.strip())
    if body.startswith("["):
        try:
            whole, end = _DECODER.raw_decode(body)
        except (ValueError, RecursionError):
            return
        if bare_list and end == len(body):
            yield whole
        return
    position = 0
    while begins := _OBJECT_BEGINS.search(body, position):
        try:
            value, position = _DECODER.raw_decode(body, begins.start())
        except _Invalid as error:
            raise Unreadable(f"the JSON in the reply is ambiguous: {error}") from None
        except (ValueError, RecursionError):
            raise Unreadable("the JSON in the reply is damaged or cut off") from None
        if key in value:
            yield value[key]


def _without_fence(body: str) -> str:
    """What lies between a first line such as "```json" and a final "```"; all of it if they are not there."""
    opening, _, rest = body.partition("\n")
    language = opening.removeprefix(_FENCE).strip()
    if opening.startswith(_FENCE) and rest.endswith(_FENCE) and (not language or (language.isascii() and language.isalpha())):
        return rest.removesuffix(_FENCE).strip()
    return body
