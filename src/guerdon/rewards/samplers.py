"""Which ratings share a batch: rows of a data set, batch by batch, for one pass over it.

The problem: a batch of ratings places its own class boundaries (`guerdon.losses.rating_boundaries`), so a class that is missing from a
batch says nothing there, and a batch of one class says nothing at all. Ratings are unbalanced ("good" may be one in fifty), and chance
leaves rare classes out of many batches.

- `balanced`: batches as alike as can be, with every class of the data in every batch; a class that has fewer items than there are batches
  is repeated.
- `stratified`: the index generator of ERL-VLM's code (Luu et al., ICML 2025), exactly. It shows each item once and gives rare classes to
  the first batches only, so some batches can lack a class.
- `uniform`: shuffled.

Batches keep the proportions of the classes; that a rare class counts more is the business of `guerdon.losses.rating_weights`. Reads
arrays of labels, gives arrays of rows (int64); needs no torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from guerdon.errors import UsageError
from guerdon.seeding import generator

Rule = Literal["balanced", "stratified", "uniform"]
"""How items are put into batches."""
Rows = npt.NDArray[np.int64]


def likeliest(labels: npt.NDArray[Any], levels: int) -> Rows:
    """The class of each item, (N,): of shares the largest, the lower class where two are equal.

    Args:
        labels: (N,) class numbers, or (N, levels) shares of the classes.
        levels: number of classes, >= 2.

    Raises:
        UsageError: for fewer than two classes, a label that is none of them, or shares of another number of classes.
    """
    if levels < 2:
        raise UsageError(f"batches by class need at least two classes, got {levels}", cure="Where nothing has a class, use uniform")
    if labels.ndim == 2 and labels.shape[1] == levels:
        return np.asarray(labels.argmax(1), np.int64)
    if labels.ndim != 1:
        raise UsageError(f"labels are (N,) class numbers or (N, {levels}) shares, got the shape {labels.shape}")
    if len(labels) and not (0 <= labels.min() <= labels.max() < levels and (labels == np.floor(labels)).all()):
        raise UsageError(f"labels are class numbers 0 to {levels - 1}, got {labels.min()} to {labels.max()}")
    return np.asarray(labels, np.int64)


def has_contrast(labels: npt.NDArray[Any]) -> bool:
    """Whether the items of a batch, (B,) class numbers or (B, levels) shares, have at least two classes between them.

    Without contrast the boundaries of classes mean nothing: leave such a batch out.
    """
    classes = labels.argmax(1) if labels.ndim == 2 else labels
    return len(classes) > 0 and bool((classes != classes[0]).any())


def balanced(classes: Rows, batch: int, random: np.random.Generator) -> list[Rows]:
    """Batches in which the numbers of each class, and the sizes, differ by one at most, with every class of the data in every batch.

    Each item is in at least one batch and none is twice in one. There are as many batches as it takes: T = ⌈Σ_c max(N_c, T) / batch⌉.

    Args:
        classes: (N,) class numbers.
        batch: most items in a batch.
        random: what the order comes from.

    Raises:
        UsageError: if there are more classes in the data than items in a batch.
    """
    members = [np.flatnonzero(classes == present) for present in np.unique(classes)]
    if len(members) > batch:
        raise UsageError(f"a batch of {batch} cannot hold each of {len(members)} classes", cure="Take larger batches, or the rule uniform")
    number = 0
    while number < (enough := math.ceil(sum(max(len(rows), number) for rows in members) / batch)):
        number = enough
    drawn = [_drawn(rows, max(len(rows), number), random) for rows in members]
    deck = np.concatenate([*drawn, np.empty(0, np.int64)])
    # Dealt out like cards, the run of each class falls on all batches alike. Who gets one more is the first in the row: hence the shuffle.
    return [random.permutation(deck[start::number]) for start in random.permutation(number)]


def _drawn(rows: Rows, count: int, random: np.random.Generator) -> Rows:
    """`count` of `rows` in random order, each as often as the others or once more."""
    return np.concatenate([random.permutation(rows) for _ in range(math.ceil(count / len(rows)))])[:count]


def stratified_reference(
    classes: Rows, batch: int, levels: int, shuffle: bool = True, random: np.random.Generator | None = None
) -> list[Rows]:
    """The batches of ERL-VLM's index generator: each item once, and every batch but the last one exactly of the size `batch`.

    It makes one list and cuts it into batches. To the list, each round but the last adds the whole part of every class's share, then one
    of each class that has a remainder, rare classes first, then what fills the batch from the largest class, if that has so much left.
    The last round adds all that remains, class by class, rare ones first, not shuffled. So a class with fewer items than there are
    batches is in the first ones only.

    Args:
        classes: (N,) class numbers in [0, levels).
        batch: items in a batch.
        levels: number of classes.
        shuffle: whether the items of classes and of rounds are shuffled.
        random: what the order comes from; needed to shuffle.

    Raises:
        UsageError: if there is nothing to shuffle by.
    """
    if shuffle and random is None:
        raise UsageError("batches are shuffled by a generator of random numbers", cure="Give one as random=, or shuffle=False")

    def shuffled(rows: list[int]) -> list[int]:
        return random.permutation(rows).tolist() if shuffle and random is not None else rows

    rounds = math.ceil(len(classes) / batch)
    left = [shuffled(np.flatnonzero(classes == level).tolist()) for level in range(levels)]
    rare_first: list[int] = np.argsort([len(rows) for rows in left], kind="stable").tolist()
    whole = [len(rows) // max(rounds, 1) for rows in left]
    remainder = [len(rows) % max(rounds, 1) for rows in left]
    order: list[int] = []
    for _ in range(rounds - 1):
        taken: list[int] = []
        for level in rare_first:
            taken += _take(left[level], whole[level])
        for level in rare_first:
            if len(taken) < batch and remainder[level] > 0:
                remainder[level] -= 1
                taken += _take(left[level], 1)
        taken += _take(left[rare_first[-1]], batch - len(taken))
        order += shuffled(taken)
    for level in rare_first:
        order += left[level]
    return [np.array(order[start : start + batch], np.int64) for start in range(0, len(order), batch)]


def _take(rows: list[int], count: int) -> list[int]:
    """Takes the first `count` away, or as many as there are."""
    taken = rows[:count]
    del rows[:count]
    return taken


def uniform(size: int, batch: int, random: np.random.Generator) -> list[Rows]:
    """All rows below `size` once, in random order, in as few batches as hold them; sizes differ by one at most."""
    return list(np.array_split(random.permutation(size), max(1, math.ceil(size / batch))))


class Batches:
    """The batches of each pass over a data set. The same seed and pass give the same batches.

    Every pass shows an item of a class equally often. Where classes are weighted, weigh what is shown, not what there is, or a class that
    is repeated for being rare is favoured twice: `rating_weights(labels[np.concatenate(batches.epoch(0))], levels)`.

    Raises:
        UsageError: if there are no items, a batch holds none, a label is none of the classes, there are classes to balance and fewer than
            two of them are possible, or a batch is too small to hold each class.
    """

    def __init__(self, labels: npt.NDArray[Any], *, rule: Rule = "balanced", batch: int, levels: int, seed: int) -> None:
        """Args:
        labels: (N,) class numbers or (N, levels) shares of the classes, which count as their likeliest one; with the rule "uniform" any
            array of N items.
        rule: how items are put into batches.
        batch: most items in a batch; all of them make one batch if there are fewer.
        levels: number of classes; means nothing with the rule "uniform".
        seed: of the order.
        """
        if rule not in get_args(Rule):
            raise UsageError(f"no rule for batches is called '{rule}'", cure=f"There are: {', '.join(get_args(Rule))}")
        if not len(labels) or batch < 1:
            raise UsageError(f"batches need items, at least one in each; got {len(labels)} items and batches of {batch}")
        self._size, self._rule, self._batch, self._levels, self._seed = len(labels), rule, batch, levels, seed
        self._classes = None if rule == "uniform" else likeliest(labels, levels)
        self.epoch(0)

    def epoch(self, number: int) -> list[Rows]:
        """The batches of pass `number` in order: rows of the labels, int64."""
        random = generator(self._seed, "batches", number)
        if self._classes is None:
            return uniform(self._size, self._batch, random)
        if self._rule == "balanced":
            return balanced(self._classes, self._batch, random)
        return stratified_reference(self._classes, self._batch, self._levels, True, random)
