"""Looking at a reward before anything is trained on it: what usually goes wrong, found from the numbers alone.

Every finding says what was measured and what it means. Findings never stop a command; they are printed, stored with the reward column and
shown in the report. What the dataset's own rewards do as well (in a world that pays for every step) is a note, no warning: it is how that
world pays. Nothing here needs ground truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from guerdon.interfaces import Dataset
from guerdon.rewards.column import RewardColumn, Values

LENGTH_CORRELATION_ALARM = 0.5
"""Above this correlation of return with length, longer episodes look better merely because they are longer."""
_OFF_BY_ONE_MARGIN = 0.1
_FEWEST_FOR_CORRELATION = 3
_FLAT = 0.05
"""Share of a model's scale that its rewards take up, below which their size says hardly anything."""
_SATURATED = 0.9
"""Share of a model's rewards at the ends of its scale from which it hardly tells transitions apart."""
_AT_THE_END = 0.01
"""How near the end of the scale that is, as a share of its width."""


@dataclass(frozen=True)
class Finding:
    """One thing seen in a reward column."""

    severity: Literal["error", "warning", "note"]
    name: str
    message: str

    def to_record(self) -> dict[str, Any]:
        return asdict(self)


def check_rewards(column: RewardColumn, dataset: Dataset, *, gamma: float = 0.97) -> list[Finding]:
    """Everything suspicious about a reward column, worst first.

    Looks for: unknown rewards, constant or all-zero rewards, a model's rewards that hardly vary, lie at the ends of its scale or are the
    same whatever is asked for, rewards that pay for loitering under the discount `gamma`, returns that grow with length, and rewards that
    come one step late.
    """
    findings = [
        *_unknown(column),
        *_constant(column),
        *_flat(column),
        *_saturated(column),
        *_deaf(column, dataset),
        *_loitering(column, dataset, gamma),
        *_length(column, dataset),
        *_late(column, dataset),
    ]
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def loitering_value(reward_per_step: float, gamma: float) -> float:
    """What collecting `reward_per_step` for ever is worth: r / (1 - gamma)."""
    return reward_per_step / (1.0 - gamma)


def _known(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return array[np.isfinite(array)]


def _unknown(column: RewardColumn) -> Iterator[Finding]:
    arrays = list(column.values.values())
    total, known = sum(a.size for a in arrays), sum(_known(a).size for a in arrays)
    if known == 0:
        yield Finding("error", "no rewards", f"none of the {total} transitions has a known reward")
    elif known < total:
        empty = sum(_known(a).size == 0 for a in arrays)
        yield Finding(
            "note", "unknown rewards",
            f"{total - known} of {total} transitions ({1 - known / total:.1%}) have no reward and are left out of every loss; "
            f"{empty} of {len(arrays)} trajectories have none at all",
        )  # fmt: skip


def _constant(column: RewardColumn) -> Iterator[Finding]:
    known = np.concatenate([_known(a) for a in column.values.values()] or [np.zeros(0, np.float32)])
    if known.size and known.min() == known.max():
        value = float(known[0])
        same = "every action is worth the same, so only the episode's length can matter"
        meaning = "nothing can be learned from it" if value == 0 else same
        yield Finding("error" if value == 0 else "warning", "constant reward", f"every known reward is {value:g}: {meaning}")


def _flat(column: RewardColumn) -> Iterator[Finding]:
    """Ratings and preferences say which transitions are better, not by how much: a model that orders them soon stops with small rewards."""
    if column.scale is None:
        return
    known = np.concatenate([_known(a) for a in column.values.values()] or [np.zeros(0, np.float32)])
    if not known.size or known.min() == known.max():
        return
    (low, high), span = column.scale, float(known.max()) - float(known.min())
    if span < _FLAT * (high - low):
        yield Finding(
            "warning", "hardly varies",
            f"the rewards lie between {known.min():.3g} and {known.max():.3g}, {span / (high - low):.1%} of the model's scale: their "
            "order may be right, but beside other rewards they would say nothing; make them again with --transform standard",
        )  # fmt: skip


def _saturated(column: RewardColumn) -> Iterator[Finding]:
    if column.scale is None or column.metadata.get("pessimism"):
        return
    known = np.concatenate([_known(a) for a in column.values.values()] or [np.zeros(0, np.float32)])
    (low, high), near = column.scale, _AT_THE_END * (column.scale[1] - column.scale[0])
    if not known.size or known.min() == known.max():
        return
    below, above = float((known <= low + near).mean()), float((known >= high - near).mean())
    if below + above > _SATURATED:
        yield Finding(
            "warning", "saturated",
            f"{below + above:.0%} of the rewards lie at the ends of the model's scale ({below:.0%} at {low:g}, {above:.0%} at {high:g}): "
            "it tells few transitions apart; fit it for fewer epochs, or to more labels",
        )  # fmt: skip


def _deaf(column: RewardColumn, dataset: Dataset) -> Iterator[Finding]:
    """A model that was fitted to labels about one instruction says nothing of others, and does not notice that it is asked."""
    if column.metadata.get("reads", True):
        return
    asked = {annotation.instruction for info in dataset.episodes() for annotation in info.annotations}
    if len(asked) > 1:
        yield Finding(
            "warning", "instructions not read",
            f"the dataset has {len(asked)} different instructions, which the model does not read: it gives the same reward whatever is "
            "asked for; if they ask for different things, label some of each and fit with --instruction yes",
        )  # fmt: skip


def _loitering(column: RewardColumn, dataset: Dataset, gamma: float) -> Iterator[Finding]:
    paid = _paid(column.values, dataset)
    if paid is None or not _pays_for_loitering(*paid, gamma):
        return
    per_step, at_end = paid
    seen = (
        f"an average step before the end pays {per_step:.3g}; at a discount of {gamma:g} doing that for ever is worth "
        f"{loitering_value(per_step, gamma):.3g}, more than the {at_end:.3g} for finishing"
    )
    own = _paid(_own_rewards(column, dataset), dataset)
    if own is not None and _pays_for_loitering(*own, gamma):
        yield Finding("note", "loitering", f"{seen}; the dataset's own rewards pay in the same way")
    else:
        yield Finding("warning", "loitering", f"{seen}: lower the weight of the dense part, or use potential(...)")


def _paid(values: Values, dataset: Dataset) -> tuple[float, float] | None:
    """Mean reward of the steps before the last one, and of the last ones that finished the task; None if there are none of either."""
    before: list[npt.NDArray[np.float32]] = []
    final: list[float] = []
    for (episode, _), array in values.items():
        before.append(_known(array[:-1]))
        if array.size and dataset.episode(episode).terminated and np.isfinite(array[-1]):
            final.append(float(array[-1]))
    steps = np.concatenate(before or [np.zeros(0, np.float32)])
    return (float(steps.mean()), float(np.mean(final))) if steps.size and final else None


def _pays_for_loitering(per_step: float, at_end: float, gamma: float) -> bool:
    return per_step > 0 and loitering_value(per_step, gamma) > at_end


def _own_rewards(column: RewardColumn, dataset: Dataset) -> Values:
    """The rewards stored in the dataset, for the trajectories of a column."""
    return {key: np.asarray(dataset.rewards(key[0]), np.float32) for key in column.values}


def _length(column: RewardColumn, dataset: Dataset) -> Iterator[Finding]:
    correlation = _with_length(column.values)
    if correlation is None or correlation <= LENGTH_CORRELATION_ALARM:
        return
    seen = f"the correlation of undiscounted return with episode length is {correlation:.2f} (alarm above {LENGTH_CORRELATION_ALARM})"
    own = _with_length(_own_rewards(column, dataset))
    if own is not None and own > LENGTH_CORRELATION_ALARM:
        yield Finding("note", "return grows with length", f"{seen}; that of the dataset's own rewards is {own:.2f}")
    else:
        meaning = "longer episodes look better because they are longer"
        yield Finding("warning", "return grows with length", f"{seen}: {meaning}")


def _with_length(values: Values) -> float | None:
    """Correlation of return with length over trajectories whose rewards are all known; None if it is undefined."""
    whole = [array for array in values.values() if array.size and np.isfinite(array).all()]
    returns, lengths = np.array([float(a.sum()) for a in whole]), np.array([a.size for a in whole], np.float64)
    if len(whole) < _FEWEST_FOR_CORRELATION or returns.std() == 0 or lengths.std() == 0:
        return None
    return float(np.corrcoef(returns, lengths)[0, 1])


def _late(column: RewardColumn, dataset: Dataset) -> Iterator[Finding]:
    """Compares the transition that completes a sub-task with the one after it: a reward that is one step late pays the second."""
    completing: list[float] = []
    following: list[float] = []
    for (episode, annotation), array in column.values.items():
        annotations = dataset.episode(episode).annotations
        spans = annotations[annotation].spans if annotation < len(annotations) else ()
        for span in spans:
            if 0 < span.stop < array.size and np.isfinite(array[span.stop - 1 : span.stop + 1]).all():
                completing.append(float(array[span.stop - 1]))
                following.append(float(array[span.stop]))
    if len(completing) < _FEWEST_FOR_CORRELATION:
        return
    known = np.concatenate([_known(a) for a in column.values.values()])
    spread = float(known.max() - known.min())
    difference = float(np.mean(following) - np.mean(completing))
    if spread > 0 and difference > _OFF_BY_ONE_MARGIN * spread:
        yield Finding(
            "warning", "one step late",
            f"transitions that complete a sub-task get {np.mean(completing):.3g} on average, "
            f"the ones right after them {np.mean(following):.3g}: the reward may be shifted by one step",
        )  # fmt: skip
