"""The words that the embedded rater knows: its vocabulary, and how an instruction is split into sub-tasks.

An instruction is a chain of clauses to be carried out in order, "go to the red ball, then open the blue door". What does not consist of
known words alone, in the order of such a chain, is not understood: nothing is skipped or replaced. The words are those of
`guerdon.envs._babyai_words` (a test compares the two), the wordings that are held out of recorded data included: these use no other words.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

COLOURS: tuple[str, ...] = ("blue", "green", "grey", "purple", "red", "yellow")
KINDS: tuple[str, ...] = ("ball", "box", "door", "key")

WORDS: tuple[str, ...] = (
    "",
    "ball", "beside", "blue", "box", "door", "get", "go", "grab", "green", "grey", "head", "key", "lift", "move", "next", "open", "over",
    "pick", "place", "pull", "purple", "put", "red", "take", "the", "to", "up", "walk", "yellow",
)  # fmt: skip
"""Word by token; token 0, the empty word, is padding."""

_TOKENS = {word: token for token, word in enumerate(WORDS) if word}
_JOINERS = re.compile(r"(?: ?,)? ?(?<![a-z])(?:and then|then|after that)(?![a-z]) ?(?:, ?)?")
"""What stands between two clauses, with or without commas. White space has become single spaces."""
Kind = Literal["go to", "pick up", "open", "put next to"]
"""What a clause asks for."""
_MOVING, _LIFTING, _BESIDE = {"go", "walk", "head", "over"}, {"pick", "grab", "take", "lift"}, {"next", "beside"}


class NotUnderstood(ValueError):
    """An instruction that is not a chain of clauses in known words. The message says why."""

    def __init__(self, why: str, words: tuple[str, ...] = ()) -> None:
        super().__init__(why)
        self.words = words
        """The words that were never learned, each once, in order; empty if it is not for a word."""


def clauses(instruction: str) -> tuple[str, ...]:
    """The words of each sub-task in order, in lower case with single spaces; one if nothing joins two.

    Clauses are joined by "then", "and then" or "after that", with or without commas. Case, white space and a final full stop do not count.

    >>> clauses("Walk to the red ball, then open the blue door.")
    ('walk to the red ball', 'open the blue door')

    Raises:
        NotUnderstood: for words that were never learned, an empty clause, and one that asks for nothing that can be done (see `asks`).
    """
    plain = " ".join(instruction.lower().split()).removesuffix(".").rstrip()
    found = tuple(_JOINERS.split(plain))
    unknown = dict.fromkeys(word for clause in found for word in clause.split() if word not in _TOKENS)
    if unknown:
        raise NotUnderstood(f"the instruction has words that were never learned: {', '.join(unknown)}", tuple(unknown))
    for clause in found:
        if not clause:
            raise NotUnderstood("a part of the instruction has no words" if plain else "the instruction is empty")
        asks(clause)
    return found


def tokens(clause: str) -> tuple[int, ...]:
    """The tokens of one clause. Raises NotUnderstood for a word that was never learned, and for no words."""
    words = clause.lower().split()
    unknown = tuple(dict.fromkeys(word for word in words if word not in _TOKENS))
    if unknown or not words:
        raise NotUnderstood(f"words that were never learned: {', '.join(unknown)}" if words else "a clause without words", unknown)
    return tuple(_TOKENS[word] for word in words)


def named(clause: str) -> tuple[str, ...]:
    """The things that a clause names, by colour and kind, in order.

    >>> named("put the red ball next to the green key")
    ('red ball', 'green key')
    """
    words = clause.lower().split()
    return tuple(f"{first} {second}" for first, second in pairwise(words) if first in COLOURS and second in KINDS)


def asks(clause: str) -> Kind:
    """What a clause of known words asks for.

    It goes by the words, not by their order, so a wording that nobody wrote down is no obstacle. Things to be picked up or put somewhere
    are no doors; what is to be opened is one.

    Raises:
        NotUnderstood: if it asks for nothing or for two things at once, or of something that it cannot be asked of.
    """
    words, things = set(clause.lower().split()), named(clause)
    doors = sum(thing.endswith(" door") for thing in things)
    asked: dict[Kind, bool] = {
        "go to": bool(words & _MOVING) and not words & _BESIDE,
        "pick up": bool(words & _LIFTING),
        "open": "open" in words,
        "put next to": bool(words & _BESIDE),
    }
    kinds = [kind for kind, so in asked.items() if so]
    if len(kinds) != 1:
        raise NotUnderstood(f"'{clause}' does not ask for one thing to be done")
    kind = kinds[0]
    fits = len(set(things)) == 2 and not doors if kind == "put next to" else len(things) == 1
    if not fits or (kind == "pick up" and doors) or (kind == "open" and not doors):
        named_so = " and ".join(things) or "nothing that has a colour and a kind"
        raise NotUnderstood(f"'{clause}' asks to {kind}: {named_so}, which cannot be done")
    return kind
