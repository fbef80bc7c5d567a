"""Quality of raters: agreement worked out by hand on a tiny world, and what is said when there is nothing to measure against."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from guerdon.errors import RunError
from guerdon.evaluation.raters import advantage_spearman, measure
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.records import EpisodeInfo, Frames, Label


class World(Dataset):
    """A dataset of given actions and contributions; it has no pictures."""

    path = Path("nowhere")
    views = ("full",)
    action_names = ("left", "right", "forward")

    def __init__(
        self, actions: Sequence[Sequence[float]], contributions: Sequence[Sequence[float]] | None, completed: Sequence[bool] = ()
    ) -> None:
        self._actions, self._contributions = actions, contributions
        self._completed = completed or [True] * len(actions)

    @property
    def fingerprint(self) -> str:
        return "s256:world"

    @property
    def environment(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return len(self._actions)

    def episode(self, index: int) -> EpisodeInfo:
        return EpisodeInfo(index, len(self._actions[index]), self._completed[index], not self._completed[index], ())

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        raise AssertionError("measuring a rater looks at no picture")

    def actions(self, index: int) -> npt.NDArray[Any]:
        return np.array(self._actions[index])

    def rewards(self, index: int) -> npt.NDArray[np.float64]:
        return np.zeros(len(self._actions[index]))

    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        return {} if self._contributions is None else {"contribution": np.array(self._contributions[index], np.float32)}


def label_set(scores: Sequence[Sequence[float | None]], **changes: Any) -> LabelSet:
    """One window of answers per episode; None is an unreadable answer."""
    labels = [
        Label(
            unit="transition", episode=episode, start=step, stop=step + 1, instruction="go", value=value, question=f"q{episode}",
            state="unreadable" if value is None else "labelled", cause="unreadable" if value is None else None,
        )
        for episode, values in enumerate(scores)
        for step, value in enumerate(values)
    ]  # fmt: skip
    metadata = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "scripted", "dataset": "s256:world"}
    return LabelSet(labels, {**metadata, **changes})


ACTIONS = [[0, 2, 2], [1, 2, 0], [2, 2, 1]]
TRUTH = [[-1, 1, 1], [0, 1, -1], [1, 1, np.nan]]
SCORES: list[list[float | None]] = [[2, 9, 4], [5, 10, 0], [8, None, 10]]


def test_agreement_by_hand() -> None:
    found = measure(label_set(SCORES), World(ACTIONS, TRUTH))
    # Judged: (2, -1) (9, 1) (4, 1) (5, 0) (10, 1) (0, -1) (8, 1); the two left over are unreadable and of unknown truth.
    assert (found.labels, found.transitions, found.episodes) == (9, 7, 3)
    assert found.serving == pytest.approx(4 / 7)
    assert found.agreement is not None
    assert found.agreement.accuracy is not None
    assert found.agreement.accuracy.value == pytest.approx(5 / 7)
    assert found.agreement.balanced_accuracy is not None
    assert found.agreement.balanced_accuracy.value == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found.agreement.auroc is not None
    assert found.agreement.auroc.value == pytest.approx(11 / 12)
    assert found.agreement.spearman is not None
    assert found.agreement.spearman.value == pytest.approx(20 / (28 * 22.5) ** 0.5)
    assert found.score_counts == {"serves": {4: 1, 8: 1, 9: 1, 10: 1}, "neutral": {5: 1}, "hinders": {0: 1, 2: 1}}
    assert "Table I" in found.note


def test_coverage_states_and_causes_are_counted() -> None:
    found = measure(label_set(SCORES), World(ACTIONS, TRUTH))
    assert found.coverage == pytest.approx(8 / 9)
    assert found.states == {"labelled": 8, "unreadable": 1}
    assert found.causes == {"unreadable": 1}


def test_the_midpoint_follows_the_scale() -> None:
    found = measure(label_set([[-1.0, 0.0, 1.0]], scale=[-1, 1]), World([[0, 1, 2]], [[-1, 1, 1]]))
    assert found.agreement is not None
    assert found.agreement.accuracy is not None
    assert found.agreement.accuracy.value == 1.0


def test_blind_baselines_see_other_episodes_only() -> None:
    # "forward" serves in each episode; what "left" does here differs from what it does elsewhere, so a guess from elsewhere is wrong.
    world = World([[0, 2], [0, 2], [0, 2]], [[1, 1], [-1, 1], [-1, 1]])
    found = measure(label_set([[9, 9]] * 3), world)
    single = found.baselines[0]
    assert single.name == "per-action majority"
    assert single.accuracy is not None
    # Episode 0: says -1, wrong. Episodes 1 and 2: one of two other episodes serves, a tie, which counts as "serves": wrong.
    assert single.accuracy.value == pytest.approx(3 / 6)


def test_the_table_of_three_actions_uses_what_the_single_action_cannot_tell() -> None:
    # Turning left is undone by turning right: it serves before a step forward only.
    episodes = [[0, 2, 0, 1], [0, 1, 0, 2]] * 6
    truth = [[1, 1, -1, -1], [-1, -1, 1, 1]] * 6
    found = measure(label_set([[5] * 4] * 12), World(episodes, truth))
    single, triple = (each.balanced_accuracy for each in found.baselines)
    assert single is not None
    assert triple is not None
    assert triple.value == 1.0 > single.value


def test_a_rater_that_always_says_the_same_is_no_better_than_chance_when_balanced() -> None:
    found = measure(label_set([[10, 10, 10]] * 3), World(ACTIONS, TRUTH))
    assert found.agreement is not None
    assert found.agreement.balanced_accuracy is not None
    assert found.agreement.balanced_accuracy.value == 0.5
    assert found.agreement.auroc is not None
    assert found.agreement.auroc.value == 0.5
    assert found.agreement.spearman is None


def test_intervals_resample_whole_episodes() -> None:
    right, wrong = [9.0, 9.0, 1.0], [1.0, 1.0, 9.0]
    world = World([[2, 2, 0]] * 20, [[1, 1, -1]] * 20)
    found = measure(label_set([right, wrong] * 10), world)
    assert found.agreement is not None
    accuracy = found.agreement.accuracy
    assert accuracy is not None
    assert accuracy.value == 0.5
    # Twenty all-or-nothing episodes: the standard error is .5 / sqrt(20), not .5 / sqrt(60).
    assert accuracy.low == pytest.approx(0.5 - 1.96 * 0.5 / 20**0.5, abs=0.04)
    assert measure(label_set([right, wrong] * 10), world).agreement == found.agreement


def test_completion_accuracy_by_hand() -> None:
    scores: list[list[float | None]] = [[0, 9], [0, 3], [10, 2], [1, 1]]
    found = measure(label_set(scores), World([[2, 2]] * 4, [[0, 1]] * 4, completed=[True, True, False, False]))
    assert found.completion is not None
    assert (found.completion.completed, found.completion.unfinished) == (2, 2)
    assert found.completion.value == found.completion.balanced == 0.5


def test_completion_among_completed_episodes_only_is_not_measured() -> None:
    found = measure(label_set(SCORES), World(ACTIONS, TRUTH))
    assert found.completion is None
    assert "every episode with a readable last window is completed" in found.reasons["completion"]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (label_set(SCORES), "records no ground truth"),
        (label_set([[None, None]]), "no label carries a value"),
        (label_set([]), "no labels of single transitions"),
    ],
)
def test_without_ground_truth_the_reason_is_given(labels: LabelSet, reason: str) -> None:
    found = measure(labels, World(ACTIONS, None))
    assert found.agreement is None
    assert found.baselines == ()
    assert found.serving is None
    assert reason in found.reasons["agreement"]
    assert json.loads(json.dumps(found.to_record(), allow_nan=False))["rater"] == "scripted"


def test_continuous_actions_have_no_blind_baselines() -> None:
    found = measure(label_set(SCORES), World([[0.5, 0.1, 0.2]] * 3, TRUTH))
    assert found.agreement is not None
    assert found.baselines == ()
    assert "continuous" in found.reasons["baselines"]


def test_one_episode_has_neither_intervals_nor_baselines() -> None:
    found = measure(label_set([[9, 1]]), World([[0, 2]], [[1, -1]]))
    assert found.agreement is not None
    assert found.agreement.accuracy is not None
    assert (found.agreement.accuracy.value, found.agreement.accuracy.low) == (1.0, None)
    assert "two labelled episodes" in found.reasons["baselines"]


@pytest.mark.parametrize(("scores", "message"), [([[1, 1, 1]] * 4, "episode 3"), ([[1, 1, 1, 1]], "transition 3 of episode 0")])
def test_a_label_outside_the_dataset_is_refused(scores: list[list[float | None]], message: str) -> None:
    with pytest.raises(RunError, match=message):
        measure(label_set(scores), World(ACTIONS, TRUTH))


def test_a_scale_without_extent_is_refused() -> None:
    with pytest.raises(RunError, match="scale"):
        measure(label_set(SCORES, scale=[5, 5]), World(ACTIONS, TRUTH))


def test_advantages_against_contributions() -> None:
    assert advantage_spearman([0.1, 0.5, np.nan, 0.9], [-1, 0, 1, 1]) == pytest.approx(1.0)
    assert advantage_spearman([0.1, 0.5, 0.2], [1, 0, np.nan]) == pytest.approx(-1.0)
    assert advantage_spearman([0.1, 0.1], [0, 1]) is None
    assert advantage_spearman([], []) is None
    with pytest.raises(ValueError, match="equal length"):
        advantage_spearman([1.0], [1.0, 2.0])
