"""How well an instruction is fulfilled at each moment, by what the simulator knows: the quality that ratings are measured against.

Datasets record different things in `Dataset.privileged`; `qualities` makes one number of them. The functions that turn a quality into the
classes and preferences of a rater, with the errors of a real one, stand here too, so that a study of noise needs no rater at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.interfaces import Dataset
from guerdon.providers._errors import (
    class_probabilities,
    confuse,
    digitise,
    draw_classes,
    equal_edges,
    myopic_return,
    prefer,
    probability_second_is_better,
)
from guerdon.records import Span

__all__ = [
    "chain_quality",
    "class_probabilities",
    "confuse",
    "digitise",
    "draw_classes",
    "equal_edges",
    "myopic_return",
    "prefer",
    "probability_second_is_better",
    "qualities",
]

Array = npt.NDArray[np.float64]


def qualities(dataset: Dataset, episode: int, span: Span | None = None) -> Array | None:
    """How far the instruction is fulfilled at each observation of an episode, as float64 (T+1,) in [0, 1]; None if the dataset says nothing
    of it.

    The first of these that the dataset records:

        "quality"                   is taken as it is (Meta-World: a tenth of the true reward of the step that led there)
        "subtask" and "distance"    (sub-tasks done + 1 - distance / distance at the sub-task's start) / number of sub-tasks (BabyAI); never
                                    below what is done already, and what is farther away than at the sub-task's start counts as its start
        "progress"                  the share of sub-tasks done

    Where a distance is not known, the last known one of the same sub-task holds; before there is one, nothing of the sub-task is done.

    Args:
        span: the sub-task by whose words it is judged, instead of the whole instruction: 0 before it, 1 after it, its own share within.
            "quality" knows no sub-tasks and stays as it is.

    Raises:
        IndexError: for an episode that is not there. DatasetError: for damaged data.
    """
    known = dataset.privileged(episode)
    if "quality" in known:
        return np.clip(np.asarray(known["quality"], np.float64), 0.0, 1.0)
    done = _done(dataset, episode, known)
    if done is None:
        return None
    if span is None:
        return np.clip(done.steps / done.count, 0.0, 1.0)
    before, after = done.finished[span.start], done.finished[span.stop]
    if after <= before and done.whole:
        after = before + 1  # a sub-task that was not finished
    return np.clip((done.steps - before) / (after - before), 0.0, 1.0) if after > before else None


@dataclass(frozen=True)
class _Done:
    """What is done at each observation, (T+1,), out of `count`."""

    steps: Array
    """With the share of the present sub-task."""
    finished: Array
    """Without it."""
    count: float
    whole: bool
    """Whether sub-tasks are counted, and not shares of an unknown number of them."""


def _done(dataset: Dataset, episode: int, known: Mapping[str, Any]) -> _Done | None:
    progress = np.asarray(known["progress"], np.float64) if "progress" in known else None
    shares = None if progress is None else _Done(progress, progress, 1.0, whole=False)
    if "subtask" not in known:
        return shares
    finished = np.asarray(known["subtask"], np.float64)
    count = _count(dataset, episode, finished, progress)
    if count is None:
        return shares
    steps = _with_shares(finished, np.asarray(known["distance"], np.float64), count) if "distance" in known else finished
    return _Done(steps, finished, float(count), whole=True)


def chain_quality(subtask: npt.ArrayLike, distance: npt.ArrayLike, count: int) -> Array:
    """`qualities` of a chain of `count` sub-tasks, from how many are done and how far the present one is from done, both (T+1,)."""
    return np.clip(_with_shares(np.asarray(subtask, np.float64), np.asarray(distance, np.float64), count) / count, 0.0, 1.0)


def _with_shares(finished: Array, distance: Array, count: int) -> Array:
    """Sub-tasks done (T+1,), with the share of the present one."""
    steps = finished.copy()
    for number in range(count):
        present = np.flatnonzero(finished == number)
        steps[present] += _share(distance[present])
    return steps


def _count(dataset: Dataset, episode: int, finished: Array, progress: Array | None) -> int | None:
    """Number of sub-tasks: as the recorder wrote it, or as the shares imply it."""
    if progress is not None and progress[-1] > 0:
        return max(round(float(finished[-1] / progress[-1])), 1)
    info = dataset.episode(episode)
    length = info.metadata.get("task", {}).get("length")
    if isinstance(length, int) and length > 0:
        return length
    spans = [len(annotation.spans) for annotation in info.annotations if annotation.spans]
    return spans[0] if spans and spans[0] >= finished.max() else None


def _share(distance: Array) -> Array:
    """Share of a sub-task that is done while it is under way, from the distances to its end (M,)."""
    reachable = np.flatnonzero(np.isfinite(distance))
    if not reachable.size or distance[reachable[0]] <= 0:
        return np.zeros(len(distance))
    latest = np.maximum.accumulate(np.where(np.isfinite(distance), np.arange(len(distance)), -1))
    begin = distance[reachable[0]]
    return np.where(latest < 0, 0.0, np.clip((begin - distance[latest]) / begin, 0.0, 1.0))
