"""What the methods share: prompt files, and conversations of a look, an answer and at most one repair.

A prompt file has sections headed [name]; lines that start with '#' are comments; $fields are filled in, and a literal dollar sign is
written $$. A prompt's version is the digest of its texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from itertools import groupby, pairwise
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from guerdon.answers import Text, Unreadable
from guerdon.errors import UsageError
from guerdon.records import Cause, Exchange, Failure, Reply, Request, State, digest

LARGEST_TILE = 2000
"""Pixels. Nine frames of that size make a picture of 100 MB in memory, larger than any vendor takes."""
REFUSALS: frozenset[Cause] = frozenset({"blocked", "refusal"})


@dataclass(frozen=True)
class Prompt:
    """The texts of the turns.

    Raises:
        UsageError: if a text uses a field that does not exist.
    """

    texts: Mapping[str, str]
    """Section -> text, in the order in which they make up the version."""
    fields: Collection[str]
    """What may stand after a dollar sign."""
    source: str = field(default="built-in", compare=False)

    def __post_init__(self) -> None:
        for section, text in self.texts.items():
            template = Template(text)
            if not template.is_valid():
                raise UsageError(f"section [{section}] has a lone '$'", where=self.source, cure="Write a literal dollar sign as $$.")
            unknown = set(template.get_identifiers()) - set(self.fields)
            if unknown:
                cure = f"There are: {', '.join(sorted(self.fields))}."
                raise UsageError(f"section [{section}] uses ${min(unknown)}", where=self.source, cure=cure)

    @classmethod
    def parse(cls, text: str, source: str, *, sections: Sequence[str], fields: Collection[str]) -> Prompt:
        """Reads a prompt file that has exactly these sections. Raises UsageError."""
        lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
        parts = re.split(r"^\[([a-z]+)\]\s*$", lines, flags=re.MULTILINE)
        found = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
        if set(found) != set(sections):
            missing = [name for name in sections if name not in found] or [name for name in found if name not in sections]
            raise UsageError(f"a prompt file has the sections {', '.join(sections)}; look at [{missing[0]}]", where=source)
        return cls({section: found[section] for section in sections}, fields, source)

    @classmethod
    def load(cls, path: Path | None, built_in: str, *, sections: Sequence[str], fields: Collection[str]) -> Prompt:
        """The prompt in `path`, or the one that comes with the package under the name `built_in`. Raises UsageError if the file cannot be
        read."""
        if path is None:
            text = (files("guerdon.methods") / "prompts" / built_in).read_text(encoding="utf-8")
            return cls.parse(text, built_in, sections=sections, fields=fields)
        try:
            return cls.parse(path.read_text(encoding="utf-8"), str(path), sections=sections, fields=fields)
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the prompt ({type(error).__name__})", where=str(path)) from error

    @cached_property
    def version(self) -> str:
        """Digest of the texts."""
        return digest(*self.texts.values())

    def fill(self, section: str, values: Mapping[str, str]) -> str:
        """The text of a section with its fields."""
        return Template(self.texts[section]).substitute(values)


def check_tile(tile: int) -> None:
    """Raises UsageError for a size that no picture can have."""
    if not 1 <= tile <= LARGEST_TILE:
        raise UsageError(f"tile is a number of pixels from 1 to {LARGEST_TILE:,}, got {tile}")


# --- conversations ------------------------------------------------------------------------------------------------------------------


def next_turn(
    exchanges: Sequence[Exchange],
    *,
    first: Callable[[], Request | None],
    answer: Callable[[Exchange, Reply], Request | None],
    repair: Callable[[Exchange, Reply, str], Request],
) -> Request | None:
    """The next request: the first one, the one for the answer, and one that quotes what could not be read. Ends at the first failure.

    Args:
        answer: gets the first exchange and its reply.
        repair: gets the second exchange, its reply and why that could not be read.
    """
    if not exchanges:
        return first()
    last = exchanges[-1]
    if isinstance(last.outcome, Failure):
        return None
    if len(exchanges) == 1:
        return answer(last, last.outcome)
    if len(exchanges) == 2:
        try:
            last.request.answer.read(last.outcome.text)
        except Unreadable as error:
            return repair(last, last.outcome, str(error))
    return None


def outcome(exchanges: Sequence[Exchange]) -> tuple[State, Cause | None, Any]:
    """State, cause and what was read of a conversation that may have ended anywhere. Nothing is read from a first turn."""
    if not exchanges:
        return "skipped", "unsupported", None
    last = exchanges[-1]
    if isinstance(last.outcome, Failure):
        return ("refused" if last.outcome.cause in REFUSALS else "failed"), last.outcome.cause, None
    try:
        found = last.request.answer.read(last.outcome.text)
    except Unreadable:
        return "unreadable", "unreadable", None
    return ("skipped", "unsupported", None) if isinstance(last.request.answer, Text) else ("labelled", None, found)


def answered(exchanges: Sequence[Exchange]) -> int:
    """How many of the requests got a reply."""
    return sum(isinstance(exchange.outcome, Reply) for exchange in exchanges)


def first_reply(exchanges: Sequence[Exchange]) -> str:
    """The text of the first turn's reply; empty without one."""
    return exchanges[0].outcome.text if exchanges and isinstance(exchanges[0].outcome, Reply) else ""


_NUMBERED = re.compile(r"^\W*(?:action\s+|transition\s+)?(\d{1,4})\b(?:\s*(?:->|→|to)\s*\d{1,4})?\W*(.*)$", re.IGNORECASE)


def lines_by_number(text: str, count: int) -> dict[int, str]:
    """The first line of an analysis that begins with each number 0 .. count-1, without the number."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        match = _NUMBERED.match(line.strip())
        if match and match.group(2) and int(match.group(1)) < count:
            found.setdefault(int(match.group(1)), match.group(2).strip())
    return found


# --- what is shown of long behaviour ------------------------------------------------------------------------------------------------

_MOST_RUNS = 12
"""Runs of equal actions that are named between two observations."""


def evenly_spaced(count: int, most: int) -> tuple[int, ...]:
    """At most `most` of the positions 0 .. count-1, evenly spaced, the first and the last among them. Whole-number arithmetic.

    >>> evenly_spaced(9, 4)
    (0, 3, 5, 8)
    """
    wanted = min(count, most)
    return tuple((2 * number * (count - 1) + wanted - 1) // (2 * (wanted - 1)) for number in range(wanted)) if wanted > 1 else (0,)


def numbered(actions: Sequence[str]) -> str:
    """One line per action: "number: action"."""
    return "\n".join(f"{number}: {action}" for number, action in enumerate(actions))


def between(actions: Sequence[str], shown: Sequence[int]) -> str:
    """One line for the actions between each two of the observations shown; all of them if every observation is shown.

    >>> between(("left", "ahead", "ahead", "drop"), (0, 3, 4))
    '0 to 1: left, ahead (2 times)\\n1 to 2: drop'
    """
    if len(shown) == len(actions) + 1:
        return numbered(actions)
    return "\n".join(f"{number} to {number + 1}: {_runs(actions[start:stop])}" for number, (start, stop) in enumerate(pairwise(shown)))


def _runs(actions: Sequence[str]) -> str:
    runs = [(action, len(list(same))) for action, same in groupby(actions)]
    told = [action if times == 1 else f"{action} ({times} times)" for action, times in runs[:_MOST_RUNS]]
    rest = sum(times for _, times in runs[_MOST_RUNS:])
    return ", ".join([*told, f"and {rest} more"] if rest else told)


def what_is_shown(count: int, shown: Sequence[int], *, name: str = "The picture") -> str:
    """A sentence on which of `count` observations a mosaic shows, and what their numbers mean."""
    if len(shown) == count:
        return (
            f"{name} shows {count} observations of the agent in order of time. The number of each observation, 0 to {count - 1}, stands "
            "above it. Between observation i and observation i+1 the agent carried out action i:"
        )
    steps = ", ".join(map(str, shown))
    return (
        f"{name} shows {len(shown)} of {count} observations of the agent in order of time, the first and the last among them. The number "
        f"of each, 0 to {len(shown) - 1}, stands above it; they were made after {steps} actions. Between them the agent carried out:"
    )


def cameras(views: Sequence[str], *, name: str) -> str:
    """A sentence on the order of the pictures if there are several cameras; empty for one."""
    if len(views) == 1:
        return ""
    return f"There is one {name} for each of {len(views)} cameras that saw the same, in this order: {', '.join(views)}."


def same_pictures(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lots of pictures (view -> array) agree in every pixel."""
    return one.keys() == other.keys() and all(np.array_equal(one[view], other[view]) for view in one)
