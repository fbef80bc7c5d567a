"""Metrics: vectors worked out by hand or taken from the literature, and SciPy as the reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from guerdon.metrics import accuracy, auroc, average_ranks, balanced_accuracy, kendall_tau_b, spearman, value_order_correlation

few_levels = st.integers(0, 4).map(float)
pairs = st.lists(st.tuples(few_levels, few_levels), min_size=2, max_size=30).map(np.array)
real_pairs = st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=2, max_size=30).map(np.array)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0, 10, 40, 30, 90), 0.9), ((25, 100, 0), -0.5), ((0, 100, 50), 0.5), ((0, 50, 50, 100), 0.948683), ((7, 7, 7), math.nan)],
)
def test_value_order_correlation(values: tuple[float, ...], expected: float) -> None:
    assert value_order_correlation(values) == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_value_order_of_fewer_than_two_values_is_undefined() -> None:
    assert math.isnan(value_order_correlation([]))
    assert math.isnan(value_order_correlation([3.0]))


@pytest.mark.parametrize(("levels", "ceiling"), [(2, 0.866), (3, 0.943), (4, 0.968), (5, 0.980), (10, 0.995)])
def test_ceiling_of_a_perfect_rater_with_few_levels(levels: int, ceiling: float) -> None:
    steps = np.arange(120)
    assert value_order_correlation(steps * levels // 120) == pytest.approx(ceiling, abs=5e-4)


@pytest.mark.parametrize(("levels", "ceiling"), [(2, 0.710), (3, 0.820), (4, 0.870), (5, 0.898), (10, 0.953)])
def test_kendall_ceiling_of_a_perfect_rater_with_few_levels(levels: int, ceiling: float) -> None:
    steps = np.arange(120)
    assert kendall_tau_b(steps, steps * levels // 120) == pytest.approx(ceiling, abs=6e-4)


def test_accuracy_and_balanced_accuracy_by_hand() -> None:
    predicted, actual = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]
    assert accuracy(predicted, actual) == pytest.approx(3 / 5)
    assert balanced_accuracy(predicted, actual) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert balanced_accuracy([1] * 5, actual) == 0.5


def test_auroc_by_hand_with_ties() -> None:
    # Positives 3, 2; negatives 2, 1. Pairs: 3>2, 3>1, 2=2 (one half), 2>1.
    assert auroc([3, 2, 2, 1], [1, 1, 0, 0]) == pytest.approx(3.5 / 4)
    assert auroc([5, 5, 5], [1, 0, 1]) == 0.5


def test_average_ranks_by_hand() -> None:
    assert average_ranks([10, 20, 20, 5]).tolist() == [2.0, 3.5, 3.5, 1.0]


def test_kendall_by_hand() -> None:
    # Of six pairs three agree, two disagree and one is tied on the left.
    assert kendall_tau_b([1, 2, 2, 3], [1, 3, 4, 2]) == pytest.approx((3 - 2) / math.sqrt(5 * 6))


@pytest.mark.parametrize(
    "undefined",
    [accuracy([], []), balanced_accuracy([1], [1]), auroc([1, 2], [1, 1]), spearman([1, 1], [1, 2]), kendall_tau_b([1, 1], [1, 2])],
)
def test_undefined_is_nan_and_not_a_number_that_looks_like_a_result(undefined: float) -> None:
    assert math.isnan(undefined)


@pytest.mark.parametrize("function", [accuracy, balanced_accuracy, auroc, spearman, kendall_tau_b])
def test_bad_input_is_refused(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="NaN"):
        function([1.0, math.nan], [1.0, 0.0])
    with pytest.raises(ValueError, match="equal length"):
        function([1.0, 2.0], [1.0])


@settings(max_examples=60, deadline=None)
@given(st.one_of(pairs, real_pairs))
def test_correlations_equal_scipy(values: np.ndarray) -> None:
    first, second = values.T
    constant = len(set(first)) == 1 or len(set(second)) == 1
    if constant:
        assert math.isnan(spearman(first, second))
        assert math.isnan(kendall_tau_b(first, second))
        return
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)
    assert kendall_tau_b(first, second) == pytest.approx(stats.kendalltau(first, second).statistic, abs=1e-9)
    assert average_ranks(first).tolist() == stats.rankdata(first).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(few_levels, st.booleans()), min_size=2, max_size=30))
def test_auroc_equals_mann_whitney(rows: list[tuple[float, bool]]) -> None:
    scores, actual = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if actual.all() or not actual.any():
        assert math.isnan(auroc(scores, actual))
        return
    statistic = stats.mannwhitneyu(scores[actual], scores[~actual], method="asymptotic").statistic
    assert auroc(scores, actual) == pytest.approx(statistic / (actual.sum() * (~actual).sum()))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(few_levels, few_levels, st.integers(0, 4)), min_size=1, max_size=20))
def test_a_weight_counts_like_repetition(rows: list[tuple[float, float, int]]) -> None:
    first, second, weights = (np.array(column) for column in zip(*rows, strict=True))
    repeated = np.repeat(first, weights), np.repeat(second, weights)
    for function in (accuracy, balanced_accuracy, spearman):
        assert function(first, second, weights) == pytest.approx(function(*repeated), nan_ok=True)
    assert auroc(first, second > 2, weights) == pytest.approx(auroc(repeated[0], repeated[1] > 2), nan_ok=True)
