"""What a simulator knows, as one number a moment; and the errors that turn it into ratings and preferences. Numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from guerdon.evaluation.truth import (
    class_probabilities,
    confuse,
    digitise,
    draw_classes,
    myopic_return,
    prefer,
    probability_second_is_better,
    qualities,
)
from guerdon.records import Annotation, Span
from tests.memory import MemoryDataset, MemoryEpisode

INF, NAN = float("inf"), float("nan")


class Known(MemoryDataset):
    """One episode with given privileged fields."""

    def __init__(self, length: int, known: Mapping[str, Any], **episode: Any) -> None:
        super().__init__([MemoryEpisode(length, **episode)])
        self._known = {name: np.asarray(values, np.float32) for name, values in known.items()}

    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        return self._known


TWO = {"subtask": [0, 0, 0, 1, 1, 2], "distance": [3, 4, 1, 4, 2, 0], "progress": [0, 0, 0, 0.5, 0.5, 1]}
"""Three steps away, astray, near; then four steps away, half-way, done."""


# --- qualities ----------------------------------------------------------------------------------------------------------------------


def test_a_sub_task_counts_by_the_way_that_is_left() -> None:
    found = qualities(Known(5, TWO), 0)
    assert found is not None
    np.testing.assert_allclose(found, [0, 0, 1 / 3, 0.5, 0.75, 1.0])
    assert found.dtype == np.float64
    assert found[-1] == 1.0


def test_a_recorded_quality_is_taken_as_it_is() -> None:
    found = qualities(Known(2, {"quality": [0.25, 0.5, 1.0], "progress": [0, 0, 1]}), 0)
    np.testing.assert_array_equal(found, [0.25, 0.5, 1.0])


def test_without_distances_sub_tasks_count_as_wholes() -> None:
    np.testing.assert_array_equal(qualities(Known(5, {"subtask": TWO["subtask"], "progress": TWO["progress"]}), 0), TWO["progress"])
    np.testing.assert_allclose(qualities(Known(2, {"progress": [0, 0.3, 1]}), 0), [0, 0.3, 1], rtol=1e-6)
    assert qualities(Known(2, {"contribution": [1, 1]}), 0) is None


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ([4, INF, 2, 0], [0, 0, 0.5, 1]),  # the last one known holds
        ([4, 2, NAN, 0], [0, 0.5, 0.5, 1]),
        ([INF, 4, 1, 0], [0, 0, 0.75, 1]),  # the first one known is the start
        ([INF, NAN, INF, 0], [0, 0, 0, 1]),
        ([0, 3, 1, 0], [0, 0, 0, 1]),
        ([2, 8, 1, 0], [0, 0, 0.5, 1]),  # farther away than at the start is as bad as the start
    ],
)
def test_distances_that_are_not_known(distance: list[float], expected: list[float]) -> None:
    known = {"subtask": [0, 0, 0, 1], "distance": distance, "progress": [0, 0, 0, 1]}
    np.testing.assert_allclose(qualities(Known(3, known), 0), expected)


def test_an_episode_that_completes_nothing_is_measured_by_what_was_asked() -> None:
    known = {"subtask": [0, 0, 0], "distance": [4, 3, 2], "progress": [0, 0, 0]}
    by_task = Known(2, known, metadata={"task": {"length": 2}})
    np.testing.assert_allclose(qualities(by_task, 0), [0, 0.125, 0.25])
    spans = (Annotation("both", (Span(0, 1, "one"), Span(1, 2, "other"))),)
    np.testing.assert_allclose(qualities(Known(2, known, annotations=spans), 0), [0, 0.125, 0.25])
    np.testing.assert_array_equal(qualities(Known(2, known), 0), [0, 0, 0])  # nothing says of how many sub-tasks


def test_a_sub_task_by_its_own_words() -> None:
    world = Known(5, TWO)
    np.testing.assert_allclose(qualities(world, 0, Span(0, 3, "first")), [0, 0, 2 / 3, 1, 1, 1])
    np.testing.assert_allclose(qualities(world, 0, Span(3, 5, "second")), [0, 0, 0, 0, 0.5, 1])
    unfinished = Known(2, {"subtask": [0, 0, 0], "distance": [4, 3, 2], "progress": [0, 0, 0]}, metadata={"task": {"length": 1}})
    np.testing.assert_allclose(qualities(unfinished, 0, Span(0, 2, "first")), [0, 0.25, 0.5])
    shares = Known(3, {"progress": [0, 0.5, 0.75, 1]})
    np.testing.assert_allclose(qualities(shares, 0, Span(1, 3, "second")), [0, 0, 0.5, 1])
    assert qualities(Known(2, {"progress": [0, 0, 0]}), 0, Span(0, 2, "first")) is None


# --- classes ------------------------------------------------------------------------------------------------------------------------


def test_classes_are_bins_that_hold_their_lower_edge() -> None:
    assert digitise([0, 9.99, 10, 25, 40, 50], 5, (10, 20, 30, 40)).tolist() == [0, 0, 1, 2, 4, 4]
    assert digitise([0, 0.33, 1 / 3, 0.5, 2 / 3, 1], 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert digitise(0.5, 2) == 1


@pytest.mark.parametrize(
    ("quality", "levels", "edges"), [([NAN], 3, None), ([0.5], 3, (0.5,)), ([0.5], 3, (0.6, 0.4)), ([0.5], 1, None), ([0.5], 3, (0.5, 0.5))]
)
def test_what_has_no_class_is_refused(quality: list[float], levels: int, edges: tuple[float, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"NaN|rising edges"):
        digitise(quality, levels, edges)


def test_an_unsure_rater_prefers_the_nearest_middle() -> None:
    # Middles of two classes: 0.25 and 0.75. At 0.5 both are equally far; at 0.75 the distances are 0.5 and 0.
    np.testing.assert_allclose(class_probabilities([0.5, 0.75], 2, 0.5), [[0.5, 0.5], [0.268941, 0.731059]], rtol=1e-5)
    assert class_probabilities([0.1], 3, 1e-9)[0].tolist() == [1.0, 0.0, 0.0]
    quality = np.full(20_000, 0.75)
    drawn = draw_classes(quality, 2, np.random.default_rng(0), temperature=0.5)
    assert drawn.mean() == pytest.approx(0.731, abs=0.01)
    np.testing.assert_array_equal(draw_classes([0.1, 0.5, 0.9], 3, np.random.default_rng(0)), [0, 1, 2])


MANY = np.arange(30_000) % 3


@pytest.mark.parametrize(
    ("rates", "expected"),
    [  # rows: true class; columns: share of the classes given
        ({}, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ({"mistake": 0.2}, [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]),
        ({"adjacent": 0.2}, [[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0.1, 0.9]]),
        ({"optimism": 0.3}, [[0.7, 0.3, 0], [0, 0.7, 0.3], [0, 0, 1]]),
        ({"mistake": 1.0}, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    ],
)
def test_errors_are_made_at_their_rates(rates: dict[str, float], expected: list[list[float]]) -> None:
    said = confuse(MANY, 3, np.random.default_rng(1), **rates)
    found = [[(said[true == MANY] == given).mean() for given in range(3)] for true in range(3)]
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_what_is_skipped_is_no_class() -> None:
    said = confuse(MANY, 3, np.random.default_rng(1), skip=0.25)
    assert np.isnan(said).mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(said[~np.isnan(said)], MANY[~np.isnan(said)])


def test_a_rate_changes_nothing_but_its_own_errors() -> None:
    plain = confuse(MANY, 3, np.random.default_rng(1), adjacent=0.2)
    silent = confuse(MANY, 3, np.random.default_rng(1), adjacent=0.2, skip=0.5)
    np.testing.assert_array_equal(silent[~np.isnan(silent)], plain[~np.isnan(silent)])


@pytest.mark.parametrize("labels", [[0, 3], [-1], [0.5], [[0]], [NAN]])
def test_labels_that_are_no_classes_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 2"):
        confuse(labels, 3, np.random.default_rng(0))


# --- preferences --------------------------------------------------------------------------------------------------------------------


def test_the_teachers_of_b_pref() -> None:
    assert probability_second_is_better([3.0], [4.0], 1.0)[0] == pytest.approx(0.731059, abs=1e-6)
    assert probability_second_is_better([1.0, 2.0, 3.0], [2.0, 2.0, 1.0]).tolist() == [1.0, 0.5, 0.0]
    assert myopic_return([1, 2, 3], 0.9) == pytest.approx(5.61)
    assert myopic_return([1, 2, 3]) == 6.0


def test_preferences_err_at_their_rates() -> None:
    worse, better = np.zeros(20_000), np.ones(20_000)
    random = np.random.default_rng
    assert (prefer(worse, better, random(0)) == 1).all()
    assert (prefer(better, worse, random(0)) == 0).all()
    assert prefer(worse, better, random(0), mistake=0.1).mean() == pytest.approx(0.9, abs=0.01)
    assert prefer(worse, better, random(0), temperature=1.0).mean() == pytest.approx(0.731, abs=0.01)
    assert (prefer(worse, better, random(0), equal=1.0, mistake=1.0) == 0.5).all(), "what is called equal is not turned round"
    assert (prefer(worse, worse, random(0)) == 0.5).all()
    assert np.isnan(prefer(worse, better, random(0), skip=0.3)).mean() == pytest.approx(0.3, abs=0.01)
