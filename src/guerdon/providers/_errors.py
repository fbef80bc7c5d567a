"""How scripted raters err, as pure functions of arrays: classes and preferences from a true quality, and the mistakes made about them.

Generic in the number of classes; `levels` classes are numbered 0 .. levels-1, the worst first. Qualities lie in [0, 1] unless edges say
otherwise. A result that nobody gave (a skip) is NaN, never a class. Every function draws the same count of random numbers whatever its
rates are, so that two runs that differ in one rate differ in nothing else.

Source: the scripted teachers of B-Pref (Lee et al. 2021, arXiv 2111.03026, section 4) for preferences; the same, carried over to classes,
for ratings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]

SKIPPED = float("nan")
_ROUNDING = 1e-9
"""Means of the same numbers may differ by so much."""


def equal_edges(levels: int) -> tuple[float, ...]:
    """Upper edges of all classes but the best, if [0, 1] is cut into `levels` equal widths: 1/levels, 2/levels ..."""
    return tuple(number / levels for number in range(1, levels))


def digitise(quality: npt.ArrayLike, levels: int, edges: Sequence[float] | None = None) -> Classes:
    """Class of each quality: the number of edges that it reaches. A quality on an edge, or within rounding of it, belongs to the class
    above it.

    Args:
        quality: any shape.
        levels: number of classes, at least 2.
        edges: upper edges of all classes but the best, rising: `levels` - 1 of them; equal widths of [0, 1] if None.

    Returns:
        int64 of the same shape.

    Raises:
        ValueError: for edges that do not fit, or a quality that is not known (NaN).

    >>> digitise([0, 9.99, 10, 25, 40, 50], 5, (10, 20, 30, 40)).tolist()
    [0, 0, 1, 2, 4, 4]
    """
    bounds, values = _edges(levels, edges), np.asarray(quality, np.float64)
    if np.isnan(values).any():
        raise ValueError("a quality is NaN: what is not known has no class")
    return np.asarray(np.searchsorted(bounds - _ROUNDING, values, side="right"), np.int64)


def class_probabilities(quality: npt.ArrayLike, levels: int, temperature: float, edges: Sequence[float] | None = None) -> Array:
    """Softmax of -|quality - centre of each class| / temperature, (N, levels): a rater that is unsure near the edges.

    Args:
        quality: (N,) in [0, 1].
        temperature: above 0, in units of quality; 0.1 blurs the edges of three classes, 1 leaves little but chance.
        edges: as for `digitise`, within [0, 1].
    """
    bounds = np.concatenate([[0.0], _edges(levels, edges), [1.0]])
    distance = np.abs(np.asarray(quality, np.float64)[:, None] - (bounds[1:] + bounds[:-1]) / 2)
    weights = np.exp((distance.min(axis=1, keepdims=True) - distance) / temperature)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


def draw_classes(
    quality: npt.ArrayLike, levels: int, generator: np.random.Generator, *, temperature: float = 0.0, edges: Sequence[float] | None = None
) -> Classes:
    """Class of each quality (N,), drawn from `class_probabilities`; with temperature 0 it is `digitise`."""
    drawn = generator.random(len(np.asarray(quality)))
    if not temperature:
        return digitise(quality, levels, edges)
    upper = class_probabilities(quality, levels, temperature, edges).cumsum(axis=1)[:, :-1]
    return np.asarray((drawn[:, None] >= upper).sum(axis=1), np.int64)


def confuse(
    labels: npt.ArrayLike,
    levels: int,
    generator: np.random.Generator,
    *,
    mistake: float = 0.0,
    adjacent: float = 0.0,
    optimism: float = 0.0,
    skip: float = 0.0,
) -> Array:
    """Classes as a rater that errs gives them. The errors are made in the order of the arguments.

    Args:
        labels: (N,) true classes 0 .. levels-1.
        mistake: rate at which a class is replaced by another one, drawn evenly from all the others.
        adjacent: rate at which it moves up or down by one; a move beyond the last class is none.
        optimism: rate at which it is raised by one.
        skip: rate at which nothing is said.

    Returns:
        (N,) float64: class numbers, NaN where nothing is said.

    Raises:
        ValueError: for labels that are no classes, or fewer than two classes.
    """
    true = np.asarray(labels)
    if levels < 2 or true.ndim != 1 or not np.isin(true, np.arange(levels)).all():
        raise ValueError(f"labels are (N,) whole numbers from 0 to {levels - 1} of at least two classes")
    count = len(true)
    wrong, other, moved, down, raised, silent = generator.random((6, count))
    said = true.astype(np.int64)
    said = np.where(wrong < mistake, (said + 1 + np.floor(other * (levels - 1)).astype(np.int64)) % levels, said)
    said = np.where(moved < adjacent, np.clip(said + np.where(down < 0.5, -1, 1), 0, levels - 1), said)
    said = np.where(raised < optimism, np.minimum(said + 1, levels - 1), said)
    return np.where(silent < skip, SKIPPED, said)


def myopic_return(rewards: npt.ArrayLike, discount: float = 1.0) -> float:
    """Sum of rewards (H,) that weighs the last step 1 and each earlier one `discount` times the next: what just happened counts most.

    >>> round(myopic_return([1, 2, 3], 0.9), 2)
    5.61
    """
    values = np.asarray(rewards, np.float64)
    return float(values @ discount ** np.arange(len(values) - 1, -1, -1))


def probability_second_is_better(first: npt.ArrayLike, second: npt.ArrayLike, temperature: float = 0.0) -> Array:
    """Probability that a teacher calls the second one better: the logistic function of (second - first) / temperature.

    With temperature 0 it is 0, 1/2 (equal returns) or 1. Takes and returns arrays of the same shape.
    """
    difference = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    if not temperature:
        return np.asarray((np.sign(difference) + 1) / 2, np.float64)
    return np.asarray((1 + np.tanh(difference / temperature / 2)) / 2, np.float64)


def prefer(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    generator: np.random.Generator,
    *,
    temperature: float = 0.0,
    equal: float = 0.0,
    mistake: float = 0.0,
    skip: float = 0.0,
) -> Array:
    """Which of two is better, as the teachers of B-Pref say it.

    Args:
        first: (N,) returns of the first ones. `second`: those of the second ones.
        temperature: of `probability_second_is_better`; its inverse is B-Pref's beta, and 0 is an answer without chance.
        equal: returns that differ by no more than this are called equal, whatever else happens. (B-Pref: by less than this; so without a
            margin exact ties are equal here, and the first one's there.)
        mistake: rate at which the answer is turned round.
        skip: rate at which nothing is said.

    Returns:
        (N,) float64: 0 (the first one), 0.5 (equal), 1 (the second one), NaN where nothing is said.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    drawn, wrong, silent = generator.random((3, len(one)))
    better = (drawn < probability_second_is_better(one, other, temperature)).astype(np.float64)
    better = np.where(wrong < mistake, 1 - better, better)
    better = np.where(np.abs(other - one) <= equal + _ROUNDING, 0.5, better)
    return np.where(silent < skip, SKIPPED, better)


def _edges(levels: int, edges: Sequence[float] | None) -> npt.NDArray[Any]:
    bounds = np.asarray(equal_edges(levels) if edges is None else edges, np.float64)
    if levels < 2 or bounds.shape != (levels - 1,) or not (np.diff(bounds) > 0).all():
        raise ValueError(f"{levels} classes have {levels - 1} rising edges, got {bounds.tolist()}")
    return bounds
