"""How well ratings and preferences agree with a simulator's ground truth.

The truth about a picture is how far its instruction is fulfilled there (`truth.qualities`, 0 to 1); about a transition, that of the
observation it leads to; about a segment, the mean over the observations that its transitions lead to. Its true class is that quality cut
into classes of equal width. A rater's classes need not mean just that (those for transitions go by completion, for one), so the rank
correlation, which asks only for the order, says more about a rater than the share of equal classes. Scores are measured in `raters.py`.

Intervals are 95 % bootstrap intervals over episodes (of a pair: that of the first one), because the labels of one episode are not
independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.answers import Preference
from guerdon.errors import RunError
from guerdon.evaluation.statistics import Estimate
from guerdon.evaluation.truth import digitise, qualities
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.metrics import spearman
from guerdon.records import STATES_WITH_VALUE, Label, Span, Unit
from guerdon.seeding import generator

Array = npt.NDArray[np.float64]

RESAMPLES = 1000
_GRID = 200
"""Cells that qualities are sorted into where rank correlations are resampled: intervals need no more, and take a fraction of the time."""
_ROUNDING = 9
"""Decimals beyond which two means of the same numbers may differ."""

NOT_HUMAN = (
    "True classes are the simulator's measure of how far the instruction is fulfilled, cut into equal widths. A rater whose classes mean "
    "something else can be right and disagree."
)
"""To be shown wherever these numbers are."""


@dataclass(frozen=True, kw_only=True)
class RatingQuality:
    """Everything measured about a set of ratings or preferences. A field that cannot be computed is None, and `reasons` says why under its
    name."""

    rater: str
    method: str
    version: str
    unit: Unit
    classes: tuple[str, ...]
    """Names of the classes, the worst first; of preferences: "first", "neither", "second"."""
    labels: int
    """With or without a value; those set by hand are left out."""
    coverage: float
    """Share of them that carry a value."""
    states: Mapping[str, int]
    causes: Mapping[str, int]
    """Labels without a value, by cause."""
    measured: int
    """Labels with a value and a known truth: those that all below is measured on."""
    episodes: int
    """Episodes that they come from."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of labels by true class (row) and given class (column)."""
    accuracy: Estimate | None
    """Share of equal classes. Of pairs, only those count of which one is truly better: "neither" is then wrong."""
    balanced_accuracy: Estimate | None
    """Mean of that share over the true classes that occur; a constant answer gets 1 / their number."""
    error: Estimate | None
    """Mean distance of given and true class, in classes; None for pairs."""
    spearman: Estimate | None
    """Rank correlation of class and true quality, in [-1, 1]; None for pairs."""
    agreement: Estimate | None
    """Share of the pairs, of which one is truly better and the rater prefers one, where both are the same one; None for ratings."""
    undecided: float | None
    """Share of the pairs that the rater calls equal; None for ratings."""
    majority: float | None
    """Accuracy of always giving the true class that is most frequent (of pairs: the more frequent of first and second)."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    note: str = NOT_HUMAN

    def to_record(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def holds_ratings(label_set: LabelSet) -> bool:
    """Whether labels are classes or preferences, which `measure_ratings` measures, and not scores of transitions."""
    return bool(label_set.metadata.get("levels")) or any(label.unit != "transition" for label in label_set.labels)


def measure_ratings(label_set: LabelSet, dataset: Dataset, *, seed: int = 0, resamples: int = RESAMPLES) -> RatingQuality:
    """Measures a set of ratings or preferences against what the dataset knows.

    Args:
        seed: of the bootstrap.

    Raises:
        RunError: if the set holds scores, labels of several units, or labels about what the dataset does not have.
        DatasetError: if the dataset cannot be read.
    """
    labels = [label for label in label_set.labels if label.state != "human"]  # a person's are not its own
    unit = _unit(label_set)
    classes = Preference.OPTIONS if unit == "pair" else _names(label_set)
    valued = [label for label in labels if label.value is not None]
    found = _judged(valued, unit, label_set, dataset, len(classes))
    reasons = {} if found.size else {"accuracy": _why_nothing_is_known(labels, valued)}
    times = _draws(found, seed, resamples)
    tables = _tables(found, len(classes), times)
    decided = tables[:, ::2] if unit == "pair" else tables
    return RatingQuality(
        rater=str(label_set.metadata.get("rater", "unknown")),
        method=str(label_set.metadata.get("method", "unknown")),
        version=str(label_set.metadata.get("version", "unknown")),
        unit=unit,
        classes=classes,
        labels=len(labels),
        coverage=len(valued) / len(labels) if labels else 0.0,
        states=dict(Counter(label.state for label in labels)),
        causes=dict(Counter(str(label.cause or "unknown") for label in labels if label.state not in STATES_WITH_VALUE)),
        measured=found.size,
        episodes=len(np.unique(found.episodes)),
        confusion=tuple(tuple(int(count) for count in row) for row in tables[0]),
        accuracy=_estimate(_accuracy(tables, decided), found),
        balanced_accuracy=_estimate(_balanced(tables, unit), found),
        error=None if unit == "pair" else _estimate(_error(tables), found),
        spearman=None if unit == "pair" else _estimate(_rank_correlations(found, times), found),
        agreement=_estimate(_agreement(tables), found) if unit == "pair" else None,
        undecided=float((found.given == 1).mean()) if unit == "pair" and found.size else None,
        majority=float(decided[0].sum(axis=1).max() / decided[0].sum()) if decided[0].sum() else None,
        reasons=reasons,
    )


def _unit(label_set: LabelSet) -> Unit:
    """What the labels are about. Raises RunError if they are no ratings, or of several units."""
    units = {label.unit for label in label_set.labels if label.state != "human"} or {label.unit for label in label_set.labels}
    if len(units) > 1:
        raise RunError(f"it holds labels of several units ({', '.join(sorted(units))})", where="the label set", cure="Make it again.")
    if label_set.labels and not holds_ratings(label_set):
        raise RunError("its labels are scores, not ratings", where="the label set", cure="Measure it with evaluation.raters.measure.")
    return units.pop() if units else "observation"


def _names(label_set: LabelSet) -> tuple[str, ...]:
    """Names of the classes. Raises RunError if the scale is none of classes."""
    low, high = label_set.scale
    names = tuple(map(str, label_set.metadata.get("levels") or ()))
    count = int(high) + 1
    if low != 0 or high != int(high) or count < 2 or (names and len(names) != count):
        raise RunError(f"its scale, {low:g} to {high:g}, is none of classes", where="the label set", cure="Make it again.")
    return names or tuple(str(number) for number in range(count))


# --- labels and their truth ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """Labels with a value and a known truth; all arrays are (N,)."""

    episodes: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    true: npt.NDArray[np.int64]
    quality: Array
    """Of pairs: that of the second one minus that of the first one."""

    @property
    def size(self) -> int:
        return len(self.given)


def _judged(valued: Sequence[Label], unit: Unit, label_set: LabelSet, dataset: Dataset, levels: int) -> _Judged:
    low, high = label_set.scale
    known = quality_of(dataset)
    rows = []
    for label in valued:
        value = float(label.value if label.value is not None else np.nan)
        if unit == "pair":
            second = (label.episode_b or 0, label.start_b or 0, label.stop_b or 0)
            first = known(label.episode, label.start, label.stop, label.instruction)
            quality = round(known(*second, label.instruction) - first, _ROUNDING)
            given, true = 1 + np.sign(value - (low + high) / 2), 1 + np.sign(quality)
        else:
            quality = known(label.episode, label.start, label.stop, label.instruction)
            given, true = value, np.nan if np.isnan(quality) else digitise(quality, levels)
        if not np.isnan(quality):
            rows.append((label.episode, given, true, quality))
    table = np.array(rows, np.float64).reshape(-1, 4)
    episodes, given, true = table[:, :3].astype(np.int64).T
    return _Judged(episodes, given, true, table[:, 3])


def quality_of(dataset: Dataset) -> Callable[[int, int, int, str], float]:
    """Looks up the quality of (episode, start, stop) by an instruction; NaN if it is not known."""

    @lru_cache(maxsize=1024)
    def of(episode: int, span: Span | None) -> Array | None:
        return qualities(dataset, episode, span)

    def known(episode: int, start: int, stop: int, instruction: str) -> float:
        if not 0 <= episode < len(dataset):
            raise RunError(f"a label is about episode {episode}, and the dataset has {len(dataset)}", where="the label set")
        length = dataset.episode(episode).length
        if not 0 <= start <= stop <= length:
            place = f"{start} to {stop} of episode {episode}, which has {length} transitions"
            raise RunError(f"a label is about {place}", where="the label set")
        try:
            found = of(episode, _span(dataset, episode, start, stop, instruction))
        except LookupError:
            return float("nan")
        return float("nan") if found is None else float(found[start] if start == stop else found[start + 1 : stop + 1].mean())

    return known


def _span(dataset: Dataset, episode: int, start: int, stop: int, instruction: str) -> Span | None:
    """The sub-task that a label was judged by; None for the whole instruction. Raises LookupError for words that are neither."""
    annotations = dataset.episode(episode).annotations
    if not annotations or any(annotation.instruction == instruction for annotation in annotations):
        return None
    first = start - 1 if start == stop else start  # a picture belongs to what led to it
    for span in (span for annotation in annotations for span in annotation.spans):
        if span.text == instruction and span.start <= first and stop <= span.stop:
            return span
    raise LookupError(instruction)


def _why_nothing_is_known(labels: Sequence[Label], valued: Sequence[Label]) -> str:
    if not labels:
        return "the label set holds no labels"
    if not valued:
        return "no label carries a value"
    return "the dataset records no ground truth (privileged field 'quality', 'subtask' or 'progress') for the words that were rated"


# --- measures, over the data (first) and its resamples --------------------------------------------------------------------------------


def _draws(found: _Judged, seed: int, resamples: int) -> Array:
    """How often each episode counts, (1 + resamples, E): once each, then as drawn."""
    count = len(np.unique(found.episodes))
    if not count:
        return np.ones((1, 0))
    draws = generator(seed, "bootstrap episodes").multinomial(count, np.full(count, 1 / count), size=resamples if count > 1 else 0)
    return np.concatenate([np.ones((1, count)), draws]).astype(np.float64)


def _tables(found: _Judged, levels: int, times: Array) -> Array:
    """Labels by true and given class, (1 + resamples, levels, levels)."""
    _, episode = np.unique(found.episodes, return_inverse=True)
    outside = (found.given < 0) | (found.given >= levels)
    if outside.any():
        raise RunError(f"a label gives the class {found.given[outside][0]}, and there are {levels}", where="the label set")
    cells = np.zeros((times.shape[1], levels * levels))
    np.add.at(cells, (episode.reshape(-1), found.true * levels + found.given), 1.0)
    return np.asarray((times @ cells).reshape(-1, levels, levels), np.float64)


def _divided(numerator: Array, denominator: Array) -> Array:
    """The quotients; NaN where there is nothing to divide by."""
    return np.asarray(np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0), np.float64)


def _accuracy(tables: Array, decided: Array) -> Array:
    """Share on the diagonal; of pairs (fewer rows than columns), of the first and the last row."""
    if decided.shape == tables.shape:
        return _divided(np.trace(tables, axis1=1, axis2=2), tables.sum(axis=(1, 2)))
    return _divided(tables[:, 0, 0] + tables[:, 2, 2], decided.sum(axis=(1, 2)))


def _balanced(tables: Array, unit: Unit) -> Array:
    shares = _divided(np.diagonal(tables, axis1=1, axis2=2), tables.sum(axis=2))
    shares = shares[:, ::2] if unit == "pair" else shares
    occurs = ~np.isnan(shares)
    return _divided(np.where(occurs, shares, 0.0).sum(axis=1), occurs.sum(axis=1).astype(np.float64))


def _error(tables: Array) -> Array:
    numbers = np.arange(tables.shape[1])
    return _divided((tables * np.abs(numbers[:, None] - numbers)).sum(axis=(1, 2)), tables.sum(axis=(1, 2)))


def _agreement(tables: Array) -> Array:
    right = tables[:, 0, 0] + tables[:, 2, 2]
    return _divided(right, right + tables[:, 0, 2] + tables[:, 2, 0])


def _rank_correlations(found: _Judged, times: Array) -> Array:
    """Exact for the data; resampled over cells of nearly equal quality."""
    (given, cell_quality), cell = np.unique(
        np.stack([found.given.astype(np.float64), np.round(found.quality * _GRID) / _GRID]), axis=1, return_inverse=True
    )
    _, episode = np.unique(found.episodes, return_inverse=True)
    weights = (np.bincount(cell.reshape(-1), weights=each[episode.reshape(-1)], minlength=len(given)) for each in times[1:])
    return np.array([spearman(found.given, found.quality), *(spearman(given, cell_quality, each) for each in weights)])


def _estimate(values: Array, found: _Judged) -> Estimate | None:
    if not found.size or np.isnan(values[0]):
        return None
    return Estimate.of(float(values[0]), values[1:])
