"""How well a rater's scores agree with a simulator's ground truth, beside what can be guessed without looking at any picture.

Reads a label set (one score per transition) and the dataset's privileged field "contribution": per transition +1 if the action served the
instruction (the way to go became shorter, or a sub-task was completed), 0 if it changed nothing, -1 if it hindered, NaN where unknown.
Writes nothing. Ratings and preferences are measured in `ratings.py`.

The numbers are agreement with that ground truth in that simulator. They are NOT the "task-completion accuracy" of Table I of the RG-VLM
paper (arXiv 2504.08772), whose protocol is not published. A number alone also says little, because actions are easy to guess: in recorded
behaviour most steps forward serve the instruction. So the same numbers are given for two baselines that see no picture and no instruction,
only names of actions. They are fitted to the ground truth of other episodes (cross-fitting: no episode is judged by a table that it
contributed to), which a rater never sees; beating them is therefore a real achievement, not a formality.

Intervals are 95 % bootstrap intervals over episodes, because the transitions of one episode are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.errors import RunError
from guerdon.evaluation.ratings import RatingQuality as RatingQuality
from guerdon.evaluation.ratings import holds_ratings
from guerdon.evaluation.ratings import measure_ratings as measure_ratings
from guerdon.evaluation.statistics import Estimate
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.metrics import accuracy, auroc, balanced_accuracy, spearman
from guerdon.records import STATES_WITH_VALUE, Label
from guerdon.seeding import generator

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

NOT_TABLE_ONE = (
    "This is agreement with the simulator's ground truth for single transitions. It is not the “task-completion accuracy” of the RG-VLM "
    "paper's Table I, whose protocol is not published; the two must not be compared."
)
"""To be shown wherever these numbers are."""

RESAMPLES = 1000
FOLDS = 10
_COMPLETED = 0.8
"""Share of the scale from which a score says "completed": 8 of 0..10."""
_NO_PREVIOUS = -1
"""Stands for the action before the first one, and for the one after the last."""

Measure = Callable[[Array, Array, Array], float]
"""(scores on [0, 1], contributions, weights), all (N,) -> one number, NaN if undefined."""

_MEASURES: dict[str, Measure] = {
    "accuracy": lambda scores, truth, weights: accuracy(scores >= 0.5, truth > 0, weights),
    "balanced_accuracy": lambda scores, truth, weights: balanced_accuracy(scores >= 0.5, truth > 0, weights),
    "auroc": lambda scores, truth, weights: auroc(scores, truth > 0, weights),
    "spearman": spearman,
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Agreement of scores with ground truth on a set of transitions. A measure that is undefined there (one class only) is None."""

    name: str
    """Whose scores: "rater", or the name of a blind baseline."""
    accuracy: Estimate | None
    """Share of the transitions for which "score at least midway" equals "contribution above 0"."""
    balanced_accuracy: Estimate | None
    """Mean of that share among the transitions that serve the instruction and among those that do not; 0.5 for a constant answer."""
    auroc: Estimate | None
    """Probability that a transition that serves scores higher than one that does not; 0.5 for a constant answer."""
    spearman: Estimate | None
    """Rank correlation of score and contribution, in [-1, 1]."""


@dataclass(frozen=True)
class CompletionAccuracy:
    """Does the highest score of an episode's last window tell completed episodes from unfinished ones? 8 of 0..10 says completed."""

    value: float
    balanced: float
    """Mean of the shares found right among completed and among unfinished episodes."""
    completed: int
    unfinished: int


@dataclass(frozen=True, kw_only=True)
class RaterQuality:
    """Everything measured about a label set. A field that cannot be computed is None, and `reasons` says why under its name."""

    rater: str
    method: str
    version: str
    labels: int
    """Labels of single transitions, with or without a value."""
    coverage: float
    """Share of them that carry a value."""
    states: Mapping[str, int]
    causes: Mapping[str, int]
    """Labels without a value, by cause."""
    transitions: int
    """Transitions with both a value and a known contribution: those that the agreement is measured on."""
    episodes: int
    """Episodes that they come from."""
    serving: float | None
    """Share of those transitions that serve the instruction: the accuracy of always saying so."""
    agreement: Agreement | None
    baselines: tuple[Agreement, ...]
    """Guesses without pictures on the same transitions."""
    completion: CompletionAccuracy | None
    score_counts: Mapping[str, Mapping[float, int]] = field(default_factory=dict)
    """"serves", "neutral", "hinders" -> score on the rater's own scale -> number of transitions."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    note: str = NOT_TABLE_ONE

    def to_record(self) -> dict[str, Any]:
        """JSON-ready data."""
        counts = {group: {f"{score:g}": count for score, count in found.items()} for group, found in self.score_counts.items()}
        return asdict(self) | {"score_counts": counts}


def measure(label_set: LabelSet, dataset: Dataset, *, seed: int = 0, resamples: int = RESAMPLES) -> RaterQuality:
    """Measures a label set against what the dataset knows.

    Args:
        seed: of the folds of the blind baselines and of the bootstrap.

    Raises:
        RunError: if a label is about a transition that the dataset does not have, or the labels are ratings or preferences.
        DatasetError: if the dataset cannot be read.
    """
    if holds_ratings(label_set):
        cure = "Measure it with evaluation.raters.measure_ratings."
        raise RunError("its labels are ratings or preferences, not scores of transitions", where="the label set", cure=cure)
    labels = [label for label in label_set.labels if label.unit == "transition" and label.state != "human"]  # a person's are not its own
    valued = [label for label in labels if label.value is not None]
    reasons: dict[str, str] = {}
    judged = _judged(valued, dataset, label_set.scale)
    if not judged.size:
        reasons["agreement"] = _why_nothing_is_known(labels, valued)
    baselines = _blind_baselines(judged, dataset, seed, reasons) if judged.size else []
    completion = _completion(labels, dataset, label_set.scale, reasons)
    return RaterQuality(
        rater=str(label_set.metadata.get("rater", "unknown")),
        method=str(label_set.metadata.get("method", "unknown")),
        version=str(label_set.metadata.get("version", "unknown")),
        labels=len(labels),
        coverage=len(valued) / len(labels) if labels else 0.0,
        states=dict(Counter(label.state for label in labels)),
        causes=dict(Counter(str(label.cause or "unknown") for label in labels if label.state not in STATES_WITH_VALUE)),
        transitions=judged.size,
        episodes=len(np.unique(judged.episodes)),
        serving=float((judged.contributions > 0).mean()) if judged.size else None,
        agreement=_agreement("rater", judged.scores, judged, seed, resamples) if judged.size else None,
        baselines=tuple(_agreement(name, scores, judged, seed, resamples) for name, scores in baselines),
        completion=completion,
        score_counts=_score_counts(judged, label_set.scale),
        reasons=reasons,
    )


def advantage_spearman(advantages: npt.ArrayLike, contributions: npt.ArrayLike) -> float | None:
    """Rank correlation of a policy's advantages with the true contributions, over the transitions where both are known (not NaN).

    Both are (N,). None if it is undefined: no transition, or one side constant.

    Raises:
        ValueError: if the shapes differ.
    """
    ours, truth = np.asarray(advantages, np.float64), np.asarray(contributions, np.float64)
    if ours.shape != truth.shape or ours.ndim != 1:
        raise ValueError(f"advantages {ours.shape} and contributions {truth.shape} must be two lists of equal length")
    known = ~(np.isnan(ours) | np.isnan(truth))
    found = spearman(ours[known], truth[known])
    return None if np.isnan(found) else found


# --- the transitions that are judged --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """Transitions with a score and a known contribution; all arrays are (N,)."""

    episodes: Integers
    steps: Integers
    scores: Array
    """Scaled to [0, 1]."""
    contributions: Array

    @property
    def size(self) -> int:
        return len(self.scores)


def _judged(valued: Sequence[Label], dataset: Dataset, scale: tuple[float, float]) -> _Judged:
    contributions = {episode: _contribution(dataset, episode) for episode in sorted({label.episode for label in valued})}
    rows = [(label.episode, label.start, label.value, _at(contributions[label.episode], label)) for label in valued]
    table = np.array(rows, np.float64).reshape(-1, 4)
    table = table[~np.isnan(table[:, 3])]
    low, high = scale
    if not low < high:
        raise RunError(f"the scale of its scores is [{low:g}, {high:g}]", where="the label set", cure="Make the label set again.")
    return _Judged(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), (table[:, 2] - low) / (high - low), table[:, 3])


def _contribution(dataset: Dataset, episode: int) -> Array:
    """(T,) true contributions of an episode, NaN where unknown."""
    if not 0 <= episode < len(dataset):
        raise RunError(f"a label is about episode {episode}, and the dataset has {len(dataset)}", where="the label set")
    length = dataset.episode(episode).length
    return np.asarray(dataset.privileged(episode).get("contribution", np.full(length, np.nan)), np.float64)


def _at(contributions: Array, label: Label) -> float:
    if not 0 <= label.start < len(contributions):
        place = f"transition {label.start} of episode {label.episode}, which has {len(contributions)}"
        raise RunError(f"a label is about {place}", where="the label set")
    return float(contributions[label.start])


def _why_nothing_is_known(labels: Sequence[Label], valued: Sequence[Label]) -> str:
    if not labels:
        return "the label set holds no labels of single transitions"
    if not valued:
        return "no label carries a value"
    return "the dataset records no ground truth (privileged field 'contribution') for the labelled transitions"


def _score_counts(judged: _Judged, scale: tuple[float, float]) -> dict[str, dict[float, int]]:
    low, high = scale
    own = np.round(low + judged.scores * (high - low), 6)
    groups = {"serves": judged.contributions > 0, "neutral": judged.contributions == 0, "hinders": judged.contributions < 0}
    return {name: dict(sorted(Counter(own[group].tolist()).items())) for name, group in groups.items() if judged.size}


# --- agreement and its interval -------------------------------------------------------------------------------------------------------


def _agreement(name: str, scores: Array, judged: _Judged, seed: int, resamples: int) -> Agreement:
    """All measures with intervals. Transitions of equal score and contribution form a cell, and a resample of episodes re-weights cells."""
    (values, truth), cell = np.unique(np.stack([scores, judged.contributions]), axis=1, return_inverse=True)
    _, episode = np.unique(judged.episodes, return_inverse=True)
    count = int(episode.max()) + 1
    draws = generator(seed, "bootstrap episodes").multinomial(count, np.full(count, 1 / count), size=resamples)
    times = np.concatenate([np.ones((1, count)), draws])
    weights = [np.bincount(cell.reshape(-1), weights=each[episode], minlength=len(values)).astype(np.float64) for each in times]
    found = {key: [function(values, truth, each) for each in weights] for key, function in _MEASURES.items()}
    return Agreement(name=name, **{key: _estimate(numbers, count) for key, numbers in found.items()})


def _estimate(values: Sequence[float], episodes: int) -> Estimate | None:
    value, *resampled = values
    if np.isnan(value):
        return None
    return Estimate.of(value, resampled if episodes > 1 else [])


# --- guessing without looking ---------------------------------------------------------------------------------------------------------


def _blind_baselines(judged: _Judged, dataset: Dataset, seed: int, reasons: dict[str, str]) -> list[tuple[str, Array]]:
    """Cross-fitted scores in [0, 1] from actions alone: how often the same action served in other episodes."""
    episodes = np.unique(judged.episodes)
    actions = {int(episode): np.asarray(dataset.actions(int(episode))) for episode in episodes}
    if any(taken.ndim != 1 or taken.dtype.kind not in "iu" for taken in actions.values()):
        reasons["baselines"] = "the actions are continuous: there is no table of actions to guess from"
        return []
    if len(episodes) < 2:
        reasons["baselines"] = "guessing from other episodes needs at least two labelled episodes"
        return []
    context = _contexts(judged, actions)
    folds = generator(seed, "folds").permutation(len(episodes)) % FOLDS
    fold = folds[np.searchsorted(episodes, judged.episodes)]
    single = _cross_fitted(context[:, 1:2], judged, fold, fallback=None)
    triple = _cross_fitted(context, judged, fold, fallback=single)
    return [("per-action majority", single), ("previous, this and next action", triple)]


def _contexts(judged: _Judged, actions: Mapping[int, npt.NDArray[Any]]) -> Integers:
    """(N, 3): the action before, the action itself and the action after."""
    padded = {episode: np.concatenate([[_NO_PREVIOUS], taken, [_NO_PREVIOUS]]) for episode, taken in actions.items()}
    rows = [padded[episode][step : step + 3] for episode, step in zip(judged.episodes.tolist(), judged.steps.tolist(), strict=True)]
    return np.array(rows, np.int64)


def _cross_fitted(context: Integers, judged: _Judged, fold: Integers, *, fallback: Array | None) -> Array:
    """For each transition: share of the transitions with the same context in the other folds that serve the instruction.

    Where the other folds hold none, the fallback; without one, their overall share.
    """
    _, key = np.unique(context, axis=0, return_inverse=True)
    key, served = key.reshape(-1), (judged.contributions > 0).astype(np.float64)
    scores = np.empty(judged.size)
    for held_out in np.unique(fold):
        inside, outside = fold == held_out, fold != held_out
        total = np.bincount(key[outside], minlength=key.max() + 1)
        positive = np.bincount(key[outside], weights=served[outside], minlength=key.max() + 1)
        default = fallback[inside] if fallback is not None else np.full(int(inside.sum()), served[outside].mean())
        seen = total[key[inside]]
        scores[inside] = np.where(seen > 0, positive[key[inside]] / np.maximum(seen, 1), default)
    return scores


# --- completed or not -----------------------------------------------------------------------------------------------------------------


def _completion(
    labels: Iterable[Label], dataset: Dataset, scale: tuple[float, float], reasons: dict[str, str]
) -> CompletionAccuracy | None:
    threshold = scale[0] + _COMPLETED * (scale[1] - scale[0])
    highest = _highest_of_last_windows(labels, dataset)
    said = np.array([value >= threshold for _, value in highest], bool)
    true = np.array([dataset.episode(episode).terminated for episode, _ in highest], bool)
    if not true.any() or true.all():
        kind = "completed" if true.any() else "unfinished"
        what = f"every episode with a readable last window is {kind}" if true.size else "no episode has a readable last window"
        reasons["completion"] = f"{what}, so there is nothing to tell apart"
        return None
    return CompletionAccuracy(accuracy(said, true), balanced_accuracy(said, true), int(true.sum()), int((~true).sum()))


def _highest_of_last_windows(labels: Iterable[Label], dataset: Dataset) -> list[tuple[int, float]]:
    """(episode, highest score) over the labels read from the same reply as that of the episode's last transition."""
    episodes: dict[tuple[int, int], list[Label]] = {}
    for label in labels:
        episodes.setdefault((label.episode, label.annotation), []).append(label)
    found = []
    for (episode, _), members in sorted(episodes.items()):
        last = max(members, key=lambda label: label.stop)
        values = [label.value for label in members if label.question == last.question and label.value is not None]
        if last.question and last.stop == dataset.episode(episode).length and values:
            found.append((episode, max(values)))
    return found
