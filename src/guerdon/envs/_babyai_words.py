"""The language of the BabyAI world: what an instruction says, and in how many ways it can be said.

An instruction is a chain of clauses to be carried out in order. Meaning (`Clause`) and words are apart: the same chain can be worded in
many ways, so that no learner can tell tasks by their text as by a number. One wording of each kind of clause is held out of recorded data;
it consists of words that do occur there, so it asks for composition and not for a guess. Imports no simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

ClauseKind = Literal["go to", "pick up", "open", "put next to"]
CLAUSE_KINDS: tuple[ClauseKind, ...] = get_args(ClauseKind)


class Thing(NamedTuple):
    """An object or a door, by what it looks like. Every thing named in an instruction exists exactly once in its world."""

    colour: str
    kind: str
    """ "ball", "key", "box" or "door"."""

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"

    @classmethod
    def parse(cls, text: str) -> Thing:
        """The inverse of `str`. Raises ValueError for anything but two words."""
        colour, kind = text.split(" ")
        return cls(colour, kind)


@dataclass(frozen=True)
class Clause:
    """One sub-task.

    Raises:
        ValueError: for an unknown kind, or if `beside` does not fit the kind.
    """

    kind: ClauseKind
    target: Thing
    """The thing to go to, pick up, open or move."""
    beside: Thing | None = None
    """Where to put the target; only for "put next to"."""

    def __post_init__(self) -> None:
        if self.kind not in CLAUSE_KINDS:
            raise ValueError(f"no clause is of kind {self.kind!r}")
        if (self.beside is not None) != (self.kind == "put next to"):
            raise ValueError(f"a clause '{self.kind}' {'needs a' if self.beside is None else 'has no'} second thing")

    def to_record(self) -> dict[str, str]:
        """The clause as JSON-ready data."""
        record = {"kind": self.kind, "target": str(self.target)}
        return record if self.beside is None else record | {"beside": str(self.beside)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Clause:
        """The inverse of `to_record`. Raises KeyError or ValueError for a damaged record."""
        beside = record.get("beside")
        return cls(record["kind"], Thing.parse(record["target"]), None if beside is None else Thing.parse(beside))


WORDINGS: Mapping[ClauseKind, tuple[str, ...]] = {
    "go to": (
        "go to the {target}", "walk to the {target}", "move over to the {target}", "head to the {target}", "walk over to the {target}",
    ),
    "pick up": (
        "pick up the {target}", "grab the {target}", "take the {target}", "lift the {target} up", "pick the {target} up",
    ),
    "open": (
        "open the {target}", "open up the {target}", "pull the {target} open", "get the {target} open", "pull open the {target}",
    ),
    "put next to": (
        "put the {target} next to the {beside}", "place the {target} next to the {beside}", "put the {target} beside the {beside}",
        "move the {target} next to the {beside}", "place the {target} beside the {beside}",
    ),
}  # fmt: skip
"""Templates by kind of clause. The last one of each kind is held out: it never occurs in recorded data."""

JOINERS: tuple[str, ...] = (" then ", ", then ", " and then ", ", after that ")
"""What stands between two clauses."""


@dataclass(frozen=True)
class Wording:
    """Which words an instruction uses: a template for each clause and a joiner for each gap between two."""

    templates: tuple[int, ...]
    """Index into `WORDINGS` of the clause's kind, one per clause."""
    joiners: tuple[int, ...]
    """Index into `JOINERS`, one fewer than there are clauses."""

    @classmethod
    def draw(cls, clauses: Sequence[Clause], random: np.random.Generator) -> Wording:
        """A wording drawn uniformly from those that may occur in recorded data."""
        return cls(
            templates=tuple(int(random.integers(held_out_template(clause.kind))) for clause in clauses),
            joiners=tuple(int(random.integers(len(JOINERS))) for _ in clauses[1:]),
        )

    def held_out(self, clauses: Sequence[Clause]) -> Wording:
        """The same joiners, but every clause in the words that are held out of recorded data."""
        return Wording(tuple(held_out_template(clause.kind) for clause in clauses), self.joiners)

    def phrases(self, clauses: Sequence[Clause]) -> tuple[str, ...]:
        """The words of each clause. Raises ValueError or IndexError if the wording does not fit the clauses."""
        return tuple(
            WORDINGS[clause.kind][template].format(target=clause.target, beside=clause.beside)
            for clause, template in zip(clauses, self.templates, strict=True)
        )

    def sentence(self, clauses: Sequence[Clause]) -> str:
        """The whole instruction. Raises ValueError or IndexError if the wording does not fit the clauses."""
        first, *others = self.phrases(clauses)
        return first + "".join(JOINERS[joiner] + phrase for joiner, phrase in zip(self.joiners, others, strict=True))


def held_out_template(kind: ClauseKind) -> int:
    """Index of the template that is held out of recorded data, which is also the number of templates that occur in it."""
    return len(WORDINGS[kind]) - 1
