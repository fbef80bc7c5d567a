"""Looking at a reward before anything is trained on it: what usually goes wrong, found from the numbers alone.

Every finding says what was measured and what it means. Findings never stop a command; they are printed, stored with the reward column and
shown in the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from guerdon.interfaces import Dataset
from guerdon.rewards.column import RewardColumn

LENGTH_CORRELATION_ALARM = 0.5
"""Above this correlation of return with length, longer episodes look better merely because they are longer."""
_OFF_BY_ONE_MARGIN = 0.1
_FEWEST_FOR_CORRELATION = 3


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

    Looks for: unknown rewards, constant or all-zero rewards, rewards that pay for loitering under the discount `gamma`, returns that grow
    with length, and rewards that come one step late.
    """
    findings = [*_unknown(column), *_constant(column), *_loitering(column, dataset, gamma), *_length(column), *_late(column, dataset)]
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


def _loitering(column: RewardColumn, dataset: Dataset, gamma: float) -> Iterator[Finding]:
    before: list[npt.NDArray[np.float32]] = []
    final: list[float] = []
    for (episode, _), array in column.values.items():
        before.append(_known(array[:-1]))
        if array.size and dataset.episode(episode).terminated and np.isfinite(array[-1]):
            final.append(float(array[-1]))
    steps = np.concatenate(before or [np.zeros(0, np.float32)])
    if not steps.size or not final:
        return
    per_step, at_end = float(steps.mean()), float(np.mean(final))
    value = loitering_value(per_step, gamma)
    if per_step > 0 and value > at_end:
        yield Finding(
            "warning", "loitering",
            f"an average step before the end pays {per_step:.3g}; at a discount of {gamma:g} doing that for ever is worth {value:.3g}, "
            f"more than the {at_end:.3g} for finishing: lower the weight of the dense part, or use potential(...)",
        )  # fmt: skip


def _length(column: RewardColumn) -> Iterator[Finding]:
    whole = [array for array in column.values.values() if array.size and np.isfinite(array).all()]
    returns, lengths = np.array([float(a.sum()) for a in whole]), np.array([a.size for a in whole], np.float64)
    if len(whole) < _FEWEST_FOR_CORRELATION or returns.std() == 0 or lengths.std() == 0:
        return
    correlation = float(np.corrcoef(returns, lengths)[0, 1])
    if correlation > LENGTH_CORRELATION_ALARM:
        yield Finding(
            "warning", "return grows with length",
            f"the correlation of undiscounted return with episode length is {correlation:.2f} (alarm above {LENGTH_CORRELATION_ALARM}): "
            "longer episodes look better because they are longer",
        )  # fmt: skip


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
