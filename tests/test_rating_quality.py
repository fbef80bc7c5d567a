"""Quality of ratings and preferences: confusion, distance, order and agreement, worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from guerdon.errors import RunError
from guerdon.evaluation.raters import measure
from guerdon.evaluation.ratings import NOT_HUMAN, holds_ratings, measure_ratings
from guerdon.labels import LabelSet
from guerdon.records import Annotation, Label, Span
from tests.memory import MemoryDataset, MemoryEpisode

QUALITIES = [[0.0, 0.2, 0.5, 0.9], [0.1, 0.4, 0.7, 1.0]]
"""True classes of three: 0 0 1 2 and 0 1 2 2."""
LEVELS = ["Bad", "Average", "Good"]


class World(MemoryDataset):
    def __init__(self, known: Mapping[str, Sequence[Sequence[float]]], **episode: Any) -> None:
        super().__init__([MemoryEpisode(3, instruction="go", **episode)] * 2)
        self._known = known

    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        return {name: np.array(values[index], np.float32) for name, values in self._known.items()}

    def frames(self, index: int, view: str, start: int, stop: int) -> Any:
        raise AssertionError("measuring a rater looks at no picture")


WORLD = World({"quality": QUALITIES})


def label(episode: int, start: int, stop: int, value: float | None, *, unit: Any = "observation", **more: Any) -> Label:
    state, cause = ("unreadable", "unreadable") if value is None else ("labelled", None)
    return Label(**{"unit": unit, "episode": episode, "start": start, "stop": stop, "instruction": "go", "state": state, "cause": cause,
                    "value": value} | more)  # fmt: skip


def label_set(labels: Sequence[Label], **changes: Any) -> LabelSet:
    metadata = {"method": "rating", "version": "1", "scale": [0, 2], "levels": LEVELS, "rater": "scripted", "dataset": "s256:memory"}
    return LabelSet(labels, metadata | changes)


def pictures(*values: Sequence[float | None]) -> LabelSet:
    return label_set([label(episode, k, k, value) for episode, given in enumerate(values) for k, value in enumerate(given, 1)])


def test_pictures_by_hand() -> None:
    found = measure_ratings(pictures([0, 2, 2], [1, 0, None]), WORLD)
    assert found.classes == ("Bad", "Average", "Good")
    assert (found.unit, found.labels, found.measured, found.episodes) == ("observation", 6, 5, 2)
    # true classes 0 1 2, 1 2; given 0 2 2, 1 0
    assert found.confusion == ((1, 0, 0), (0, 1, 1), (1, 0, 1))
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(3 / 5)
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.value == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found.error is not None
    assert found.error.value == pytest.approx((0 + 1 + 0 + 0 + 2) / 5)
    assert found.majority == pytest.approx(2 / 5)
    assert found.spearman is not None
    # ranks of the qualities 0.2 0.5 0.9 0.4 0.7: 1 3 5 2 4; of the classes 0 2 2 1 0: 1.5 4.5 4.5 3 1.5
    assert found.spearman.value == pytest.approx(4.5 / np.sqrt(10 * 9))
    assert (found.agreement, found.undecided) == (None, None)
    assert found.coverage == pytest.approx(5 / 6)
    assert found.causes == {"unreadable": 1}
    assert found.note == NOT_HUMAN
    assert json.loads(json.dumps(found.to_record()))["confusion"] == [[1, 0, 0], [0, 1, 1], [1, 0, 1]]


def test_intervals_come_from_episodes() -> None:
    found = measure_ratings(pictures([0, 1, 2], [2, 0, 0]), WORLD)  # all right, all wrong
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.low, found.accuracy.high) == (0.5, 0.0, 1.0)
    alone = measure_ratings(pictures([0, 1, 0]), WORLD)
    assert alone.accuracy is not None
    assert (alone.accuracy.value, alone.accuracy.low) == (pytest.approx(2 / 3), None)


def test_segments_by_their_mean_and_transitions_by_what_they_lead_to() -> None:
    segments = label_set([label(0, 0, 3, 1, unit="segment"), label(1, 1, 3, 2, unit="segment")])  # 1.6 / 3 = 0.53 and 0.85
    assert measure_ratings(segments, WORLD).confusion == ((0, 0, 0), (0, 1, 0), (0, 0, 1))
    steps = label_set([label(0, t, t + 1, value, unit="transition") for t, value in enumerate([0, 1, 2])])
    found = measure_ratings(steps, WORLD)
    assert found.accuracy is not None
    assert found.accuracy.value == 1.0


def preferences(*given: tuple[int, int, float | None]) -> LabelSet:
    """(first, second, value): pictures of episode 0 and episode 1."""
    labels = [label(0, one, one, value, unit="pair", episode_b=1, start_b=other, stop_b=other) for one, other, value in given]
    return label_set(labels, scale=[0, 1], levels=[], method="preference")


def test_pairs_by_hand() -> None:
    # qualities of the firsts 0.2 0.9 0.5 0.9, of the seconds 0.4 0.4 0.7 0.7: second, first, second, first
    found = measure_ratings(preferences((1, 1, 1.0), (3, 1, 0.0), (2, 2, 0.0), (3, 2, 0.5)), WORLD)
    assert found.classes == ("first", "neither", "second")
    assert found.confusion == ((1, 1, 0), (0, 0, 0), (1, 0, 1))
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(2 / 3)
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(2 / 4)
    assert found.undecided == pytest.approx(1 / 4)
    assert found.majority == pytest.approx(1 / 2)
    assert (found.error, found.spearman) == (None, None)


def test_a_truth_that_is_equal_decides_nothing() -> None:
    equal = World({"quality": [[0.5] * 4] * 2})
    found = measure_ratings(preferences((1, 1, 1.0)), equal)
    assert found.confusion == ((0, 0, 0), (0, 0, 1), (0, 0, 0))
    assert (found.agreement, found.accuracy) == (None, None)


def test_a_constant_rater_is_worth_nothing() -> None:
    found = measure_ratings(pictures([1, 1, 1], [1, 1, 1]), WORLD)
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.value == pytest.approx(1 / 3)
    assert found.spearman is None


def test_sub_tasks_are_measured_by_their_own_words() -> None:
    spans = (Annotation("go", (Span(0, 1, "find it"), Span(1, 3, "open it"))),)
    world = World({"subtask": [[0, 1, 1, 2]] * 2, "distance": [[4, 4, 2, 0]] * 2, "progress": [[0, 0.5, 0.5, 1]] * 2}, annotations=spans)
    labels = [label(0, 1, 1, 2, instruction="find it"), label(0, 2, 2, 1, instruction="open it"), label(0, 2, 2, 2)]
    found = measure_ratings(label_set(labels), world)
    assert found.confusion == ((0, 0, 0), (0, 1, 0), (0, 0, 2))  # "find it" is done, "open it" half, both together three quarters
    unknown = measure_ratings(label_set([label(0, 2, 2, 1, instruction="close it")]), world)
    assert unknown.measured == 0
    assert "no ground truth" in unknown.reasons["accuracy"]


def test_without_ground_truth_or_labels_it_says_why() -> None:
    assert "no ground truth" in measure_ratings(pictures([0, 1, 2]), World({})).reasons["accuracy"]
    assert measure_ratings(pictures([None, None, None]), WORLD).reasons["accuracy"] == "no label carries a value"
    empty = measure_ratings(label_set([]), WORLD)
    assert (empty.accuracy, empty.majority, empty.reasons["accuracy"]) == (None, None, "the label set holds no labels")


def test_labels_set_by_hand_are_not_the_raters() -> None:
    by_hand = label(0, 1, 2, 2, unit="transition", state="human")
    assert measure_ratings(label_set([*pictures([0, 1, 2]).labels, by_hand]), WORLD).labels == 3


def test_scores_and_ratings_are_not_mixed_up() -> None:
    with pytest.raises(RunError, match="ratings or preferences, not scores"):
        measure(pictures([0, 1, 2]), WORLD)
    scores = label_set([label(0, 0, 1, 9, unit="transition")], scale=[0, 10], levels=[])
    assert not holds_ratings(scores)
    with pytest.raises(RunError, match="are scores, not ratings"):
        measure_ratings(scores, WORLD)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([label(5, 1, 1, 0)], {}, "episode 5, and the dataset has 2"),
        ([label(0, 4, 4, 0)], {}, "which has 3 transitions"),
        ([label(0, 1, 1, 0)], {"scale": [0, 1]}, "none of classes"),
        ([label(0, 1, 1, 3)], {}, "the class 3, and there are 3"),
        ([label(0, 1, 1, 0), label(0, 0, 3, 0, unit="segment")], {}, "several units"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: list[Label], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        measure_ratings(label_set(labels, **changes), WORLD)
