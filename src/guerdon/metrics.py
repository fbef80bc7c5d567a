"""Agreement between numbers, in NumPy alone: how well do scores classify, rank and order?

Every function takes arrays of equal length (N,) and returns one number. Nothing is dropped and nothing is guessed: NaN in the input is a
ValueError, and a quantity that is not defined for the input (a correlation with a constant, the AUROC of a single class, the accuracy of
nothing) is NaN, never 0. Where `weights` are taken they are frequencies: an observation of weight 3 counts as if it stood there three
times. Bootstrapping thousands of transitions is then a matter of re-weighting the few distinct pairs of values among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Values = npt.ArrayLike


def accuracy(predicted: Values, actual: Values, weights: Values | None = None) -> float:
    """Share of observations for which two yes-or-no answers agree, in [0, 1]; NaN for no observations.

    Raises:
        ValueError: if the arrays differ in length or hold NaN.
    """
    predicted, actual, weights = _columns(predicted, actual, weights)
    return _ratio(weights @ ((predicted != 0) == (actual != 0)), weights.sum())


def balanced_accuracy(predicted: Values, actual: Values, weights: Values | None = None) -> float:
    """Mean of the shares found right among the positives and among the negatives, in [0, 1]; 0.5 is what any constant answer gets.

    NaN unless both classes occur.

    Raises:
        ValueError: if the arrays differ in length or hold NaN.
    """
    predicted, actual, weights = _columns(predicted, actual, weights)
    said, true = predicted != 0, actual != 0
    return 0.5 * (_ratio(weights @ (said & true), weights @ true) + _ratio(weights @ (~said & ~true), weights @ ~true))


def auroc(scores: Values, actual: Values, weights: Values | None = None) -> float:
    """Area under the receiver operating characteristic: the probability that a random positive scores higher than a random negative.

    Ties count one half (the Mann-Whitney statistic), so a constant score gives 0.5. NaN unless both classes occur.

    Raises:
        ValueError: if the arrays differ in length or hold NaN.
    """
    scores, actual, weights = _columns(scores, actual, weights)
    true = actual != 0
    positives, negatives = weights @ true, weights @ ~true
    rank_sum = (weights * average_ranks(scores, weights)) @ true
    return _ratio(rank_sum - positives * (positives + 1) / 2, positives * negatives)


def average_ranks(values: Values, weights: Values | None = None) -> Array:
    """Rank of each value, 1 being the lowest; equal values share the mean of the ranks they occupy.

    Returns:
        (N,) float64.

    Raises:
        ValueError: if the arrays differ in length or hold NaN.
    """
    values, weights = _columns(values, weights=weights)
    _, place = np.unique(values, return_inverse=True)
    counts = np.bincount(place, weights=weights)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], np.float64)


def spearman(first: Values, second: Values, weights: Values | None = None) -> float:
    """Spearman's rank correlation, in [-1, 1]: Pearson's correlation of average ranks. NaN if either side is constant.

    Raises:
        ValueError: if the arrays differ in length or hold NaN.
    """
    first, second, weights = _columns(first, second, weights)
    if not weights.sum():
        return float("nan")
    centred = [ranks - np.average(ranks, weights=weights) for ranks in (average_ranks(first, weights), average_ranks(second, weights))]
    covariance, *variances = (weights @ (a * b) for a, b in ((centred[0], centred[1]), (centred[0],) * 2, (centred[1],) * 2))
    return _ratio(covariance, np.sqrt(variances[0] * variances[1]))


def kendall_tau_b(first: Values, second: Values) -> float:
    """Kendall's tau-b, in [-1, 1]: concordant minus discordant pairs, over the geometric mean of the pairs that are not tied on a side.

    Source: Kendall (1945), "The treatment of ties in ranking problems". Takes O(N^2) time and O(N) memory. NaN if either side is constant.

    Raises:
        ValueError: if the arrays differ in length or hold NaN.
    """
    first, second, _ = _columns(first, second)
    agreement = untied_first = untied_second = 0.0
    for index in range(1, len(first)):
        order_first = np.sign(first[index] - first[:index])
        order_second = np.sign(second[index] - second[:index])
        agreement += order_first @ order_second
        untied_first += np.count_nonzero(order_first)
        untied_second += np.count_nonzero(order_second)
    return _ratio(agreement, np.sqrt(untied_first * untied_second))


def value_order_correlation(values: Values) -> float:
    """VOC: Spearman's correlation of the values with the order of time in which they were given, in [-1, 1].

    1 for values that never fall and do not stand still. NaN for constant values and for fewer than two. Source: Ma et al. (2024), "Vision
    Language Models are In-Context Value Learners".
    """
    values = np.asarray(values, np.float64)
    return spearman(values, np.arange(len(values)))


def _ratio(numerator: Any, denominator: Any) -> float:
    """The quotient; NaN where there is nothing to divide by."""
    return float(numerator / denominator) if denominator > 0 else float("nan")


def _columns(first: Values, second: Values | None = None, weights: Values | None = None) -> tuple[Array, ...]:
    """The given arrays as float64 of equal length; weights of 1 unless given."""
    columns = [np.asarray(column, np.float64) for column in (first, second) if column is not None]
    columns.append(np.ones(len(columns[0])) if weights is None else np.asarray(weights, np.float64))
    if any(column.shape != columns[0].shape or column.ndim != 1 for column in columns):
        raise ValueError(f"these need one dimension and equal length: {[column.shape for column in columns]}")
    if any(np.isnan(column).any() for column in columns):
        raise ValueError("a value is NaN; leave unknown values out before measuring")
    return tuple(columns)
