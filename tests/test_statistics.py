"""Statistics of evaluations: numbers worked out by hand, SciPy as the reference, and what happens when data are missing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from guerdon.errors import RunError
from guerdon.evaluation.statistics import (
    Estimate,
    ReturnMatrix,
    estimate,
    interquartile_mean,
    matrices,
    mean,
    probability_of_improvement,
    relative_drop,
    summarise,
)


def matrix(returns: Any, lengths: tuple[int, ...] | None = None) -> ReturnMatrix:
    values = np.asarray(returns, np.float64)
    seeds, tasks = values.shape
    return ReturnMatrix(tuple(range(seeds)), tuple(f"t{n}" for n in range(tasks)), lengths or (1,) * tasks, values)


def row(**changes: Any) -> dict[str, Any]:
    base = {"arm": "iql", "seed": 0, "task": "t0", "length": 1, "start": "fixed", "wording": "seen", "return": 1.0}
    return {**base, "success": True, "steps": 5, "step_limit": 20, **changes}


def grid(arm: str, returns: Any, *, start: str = "fixed", lengths: tuple[int, ...] = (1, 1, 2, 2)) -> Iterator[dict[str, Any]]:
    for seed, values in enumerate(returns):
        for index, value in enumerate(values):
            yield row(arm=arm, seed=seed, task=f"t{index}", length=lengths[index], start=start, **{"return": value})


# --- interquartile mean ---------------------------------------------------------------------------------------------------------------


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean([0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]) == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert interquartile_mean([0.0, 0.5, 1.0]) == pytest.approx(0.5)
    assert interquartile_mean([[0, 0, 0, 0, 1], [0, 1, 1, 1, 1]]).tolist() == [0.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_interquartile_mean_equals_scipy(values: list[float]) -> None:
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-12)


@pytest.mark.parametrize("values", [[], [0.5, math.nan]])
def test_interquartile_mean_refuses_nothing_and_nan(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one number"):
        interquartile_mean(values)


# --- the bootstrap --------------------------------------------------------------------------------------------------------------------


def test_resamples_keep_every_task_in_its_length() -> None:
    lengths = (1, 1, 2, 3)
    values = np.array([[0.1, 0.1, 0.2, 0.3]] * 2)
    drawn = matrix(values, lengths).resamples(count=50)
    assert drawn.shape == (50, 2, 4)
    assert (drawn == values).all()


def test_resamples_draw_seeds_and_tasks_as_wholes() -> None:
    of_seed, of_task = np.array([0.0, 0.1, 0.2]), np.array([0.0, 0.2, 0.3, 0.7])
    drawn = matrix(of_seed[:, None] + of_task).resamples(count=200)
    assert np.allclose(drawn - drawn[:, :, :1], (drawn - drawn[:, :, :1])[:, :1])
    assert len({each.tobytes() for each in drawn}) > 150


def test_equal_shapes_are_resampled_alike() -> None:
    first, second = (matrix(np.full((3, 5), value)) for value in (0.2, 0.8))
    assert all((a == b).all() for a, b in zip(first.draws(7, 30), second.draws(7, 30), strict=True))


def test_the_interval_has_the_width_that_theory_gives() -> None:
    returns = (np.arange(400) % 2).reshape(1, 400).astype(float)
    found = estimate(matrix(returns), mean, resamples=4000)
    half_width = 1.96 * 0.5 / math.sqrt(400)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - half_width, abs=0.006)
    assert found.high == pytest.approx(0.5 + half_width, abs=0.006)


def test_seeds_that_differ_widen_the_interval() -> None:
    tasks = np.tile([0.0, 1.0], 100)
    agreeing = estimate(matrix([tasks] * 3), mean)
    differing = estimate(matrix([tasks * 0.0, tasks, tasks * 0 + 1.0]), mean)
    assert agreeing.value == differing.value == 0.5
    assert width(differing) > 3 * width(agreeing)


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_estimates_repeat_with_the_seed_and_change_with_it() -> None:
    values = matrix(np.linspace(0, 1, 30).reshape(3, 10))
    assert estimate(values, mean, seed=1) == estimate(values, mean, seed=1) != estimate(values, mean, seed=2)


def test_a_single_episode_has_no_interval() -> None:
    found = estimate(matrix([[0.5]]), mean)
    assert found == Estimate(0.5, None, None)
    assert not found.above(Estimate(0.0, 0.0, 0.0))
    assert not Estimate(1.0, 1.0, 1.0).above(Estimate(0.0))


@pytest.mark.parametrize("returns", [[[math.nan, 0.5]], [[1.5, 0.5]], [[-0.1, 0.5]]])
def test_a_matrix_refuses_what_is_no_return(returns: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="share of the task"):
        matrix(returns)


def test_a_matrix_refuses_an_empty_stratum() -> None:
    with pytest.raises(ValueError, match="0 tasks"):
        matrix([[0.5]]).only(4)


# --- comparisons ----------------------------------------------------------------------------------------------------------------------


def test_probability_of_improvement_by_hand() -> None:
    # Task 0: (1 > .5, 0 < .5) -> 1 of 2; task 1: (0 = 0, 1 > 0) -> 1.5 of 2.
    found = probability_of_improvement(matrix([[1.0, 0.0], [0.0, 1.0]]), matrix([[0.5, 0.0]]))
    assert found.value == pytest.approx((0.5 + 0.75) / 2)


def test_probability_of_improvement_of_equals_and_of_the_clearly_better() -> None:
    low, high = matrix(np.full((3, 6), 0.2)), matrix(np.full((2, 6), 0.9))
    assert probability_of_improvement(low, low) == Estimate(0.5, 0.5, 0.5)
    assert probability_of_improvement(high, low) == Estimate(1.0, 1.0, 1.0)


def test_probability_of_improvement_needs_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement(matrix([[0.1, 0.2]]), matrix([[0.1]]))


def test_relative_drop_of_the_worked_example() -> None:
    fixed, randomised, random = (matrix(np.full((2, 10), value)) for value in (0.8, 0.5, 0.1))
    found = relative_drop(fixed, randomised, random)
    assert found.reason == ""
    assert found.estimate is not None
    assert found.estimate.value == pytest.approx(0.375)
    assert found.estimate.low == pytest.approx(0.375)


def test_relative_drop_is_paired() -> None:
    returns = np.random.default_rng(0).uniform(0.4, 1.0, (3, 20))
    found = relative_drop(matrix(returns), matrix(returns * 0.5), matrix(returns * 0.1))
    assert found.estimate is not None
    assert width(found.estimate) == pytest.approx(0, abs=1e-12)


def test_relative_drop_is_undefined_unless_above_chance() -> None:
    noisy = matrix([[0.0, 1.0, 0.0, 1.0]])
    chance = matrix([[0.0, 1.0, 0.0, 0.0]])
    found = relative_drop(noisy, chance, chance)
    assert found.estimate is None
    assert "not above that of a random policy" in found.reason


def test_relative_drop_says_what_is_missing() -> None:
    some = matrix([[0.5, 0.6]])
    assert relative_drop(None, some, some).reason == "not evaluated from the fixed start"
    assert relative_drop(some, None, some).reason == "not evaluated from the randomised start"
    assert "no random policy" in relative_drop(some, some, None).reason


# --- tables ---------------------------------------------------------------------------------------------------------------------------


def test_summary_by_hand() -> None:
    fixed, randomised = grid("iql", [[1, 1, 0.5, 0.5], [1, 0, 0.5, 0]]), grid("iql", [[0, 0, 0, 0]], start="randomised")
    rows = [*fixed, *grid("random", [[0, 0, 0, 0.5]]), *randomised]
    table = {(record.arm, record.start, record.length): record for record in summarise(rows)}
    assert list(table) == [
        ("iql", "fixed", None), ("iql", "fixed", 1), ("iql", "fixed", 2),
        ("iql", "randomised", None), ("iql", "randomised", 1), ("iql", "randomised", 2),
        ("random", "fixed", None), ("random", "fixed", 1), ("random", "fixed", 2),
    ]  # fmt: skip
    overall = table["iql", "fixed", None]
    assert (overall.seeds, overall.tasks, overall.left_out) == (2, 4, 0)
    assert overall.mean.value == pytest.approx(4.5 / 8)
    assert overall.iqm.value == pytest.approx((0.5 + 0.5 + 0.5 + 1) / 4)
    assert overall.completed == pytest.approx(3 / 8)
    assert table["iql", "fixed", 1].mean.value == pytest.approx(3 / 4)
    assert overall.mean.low is not None
    assert overall.mean.high is not None
    assert overall.mean.low < overall.mean.value < overall.mean.high


def test_the_order_of_rows_does_not_matter() -> None:
    rows = list(grid("iql", np.random.default_rng(1).uniform(size=(3, 4))))
    assert summarise(rows) == summarise(rows[::-1])


def test_tasks_that_a_seed_has_not_done_are_left_out_and_counted() -> None:
    rows = list(grid("iql", [[1, 1, 0, 0], [1, 1, 0, 0]]))[:-1]
    overall = summarise(rows)[0]
    assert (overall.seeds, overall.tasks, overall.left_out) == (2, 3, 1)


def test_seeds_without_a_common_task_give_no_summary() -> None:
    assert summarise([row(seed=0, task="a"), row(seed=1, task="b")]) == []
    assert summarise([]) == []


def test_the_same_task_from_two_starts_and_in_two_wordings_is_kept_apart() -> None:
    rows = [row(), row(start="randomised"), row(wording="held-out")]
    assert list(matrices(rows)) == [("iql", "fixed", "held-out"), ("iql", "fixed", "seen"), ("iql", "randomised", "seen")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"return": math.nan}, "'return' is nan"),
        ({"return": 1.2}, "not a share of the task"),
        ({"return": "1"}, "'return' is '1'"),
        ({"arm": 3}, "'arm' is 3"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        summarise([row(), row(task="t1", **changes)])
    assert caught.value.where == "evaluation row 2"
    assert caught.value.cure


def test_a_row_without_a_field_and_a_task_done_twice_are_refused() -> None:
    with pytest.raises(RunError, match="has no 'task'"):
        summarise([{name: value for name, value in row().items() if name != "task"}])
    with pytest.raises(RunError, match="two results for task t0"):
        summarise([row(), row()])
