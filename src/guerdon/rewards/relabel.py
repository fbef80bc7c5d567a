"""Scoring recorded behaviour with a reward model: every transition of a dataset, an episode after the other.

The problem: a dataset of pictures does not fit into memory, and a model that was fitted to other pictures gives numbers without complaint.
So what the model looks at is compared with what there is before anything is scored, and an episode is read in pieces.

    for (episode, annotation), rewards in relabel(model, dataset): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from guerdon.errors import RewardError, UsageError
from guerdon.interfaces import Dataset
from guerdon.losses import SMALLEST_SPREAD
from guerdon.records import EpisodeInfo
from guerdon.rewards._ensemble import VECTORS_AT_ONCE, EnsembleModel
from guerdon.rewards.steps import Look, check_look, gather, read_steps

Transform = Literal["raw", "unit", "standard"]
"""raw: the model's own scale; unit: brought from there to [0, 1]; standard: mean 0 and standard deviation 1 over all transitions."""
Scores = tuple[tuple[int, int], npt.NDArray[np.float32]]
"""(episode, annotation) and (T,) rewards, NaN where unknown."""

_BATCHES_READ = 8
"""Batches whose pictures are read from disk together."""


def relabel(
    model: EnsembleModel,
    dataset: Dataset,
    *,
    episodes: Sequence[int] | None = None,
    batch: int = 32,
    threads: int = 1,
    pessimism: float = 0.0,
    transform: Transform = "raw",
    progress: Callable[[int, int], object] | None = None,
) -> Iterator[Scores]:
    """Rewards of all transitions, by episode and annotation; nothing is scored before the first is asked for, but all is checked.

    An episode without an annotation has rewards under annotation 0, unknown ones if the model reads instructions. Words that the model
    does not know are read as one unknown word. A model that reads the words of sub-tasks gives unknown rewards to transitions that lie in
    none of an annotation's sub-tasks; an annotation without any is read as a whole.

    Args:
        model: what scores.
        dataset: recorded behaviour that has what `model.look` says.
        episodes: which ones; all if None.
        batch: transitions with pictures that are scored at a time; 16 to 64 suit a processor's cache.
        threads: of torch, while scoring.
        pessimism: c of mean - c * spread, where spread is the standard deviation over the members; >= 0.
        transform: see `Transform`. "standard" scores everything before it gives the first episode; its numbers are kept, not its pictures.
        progress: told how many episodes are scored, and how many there are.

    Raises:
        RewardModelError: if the dataset lacks a view, a vector or an action that the model looks at, or has it in another size.
        RewardError: if all rewards are equal and are to be standardised, or a reward is not finite.
        UsageError: for an episode that the dataset does not have, or a setting out of range.
        DatasetError: when it meets damaged data.
    """
    if batch < 1 or threads < 1 or not np.isfinite(pessimism) or pessimism < 0:
        raise UsageError(f"batch and threads are at least 1 and pessimism is not negative, got {batch}, {threads} and {pessimism}")
    if transform not in get_args(Transform):
        raise UsageError(f"no transform is called '{transform}'; there are: {', '.join(get_args(Transform))}")
    chosen = range(len(dataset)) if episodes is None else sorted(set(episodes))
    for index in chosen:
        if not 0 <= index < len(dataset):
            raise UsageError(f"there is no episode {index}; the dataset has {len(dataset)}, counted from 0")
    check_look(model.look, dataset)
    scored = _scored(model, dataset, chosen, batch, threads, pessimism, progress)
    if transform == "unit":
        low, high = model.scale
        return ((key, (values - np.float32(low)) / np.float32(high - low)) for key, values in scored)
    return _standardised(scored, str(dataset.path)) if transform == "standard" else scored


def _scored(
    model: EnsembleModel, dataset: Dataset, chosen: Sequence[int], batch: int, threads: int, pessimism: float, progress: Any
) -> Iterator[Scores]:
    for done, index in enumerate(chosen, 1):
        info = dataset.episode(index)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            scores = list(_of_episode(model, dataset, info, batch, pessimism))
        finally:
            torch.set_num_threads(before)
        if progress:
            progress(done, len(chosen))
        yield from scores


def _of_episode(model: EnsembleModel, dataset: Dataset, info: EpisodeInfo, batch: int, pessimism: float) -> Iterator[Scores]:
    """All annotations of an episode; scored once for all of them if the model reads no instructions."""
    reads = model.look.words is not None
    count = max(1, len(info.annotations))
    unknown = np.full(info.length, np.nan, np.float32)
    if reads:
        for annotation in range(count):
            if not info.annotations:
                yield (info.index, annotation), unknown
                continue
            values = _values(model, dataset, info, annotation, batch, pessimism)
            values[_without_words(info, annotation, model.look)] = np.nan
            yield (info.index, annotation), values
    else:
        values = _values(model, dataset, info, 0, batch, pessimism)
        yield from (((info.index, annotation), values.copy()) for annotation in range(count))


def _without_words(info: EpisodeInfo, annotation: int, look: Look) -> npt.NDArray[np.bool_]:
    """(T,): transitions of which nobody says what they are to be judged by."""
    spans = info.annotations[annotation].spans if look.unit == "subtask" else ()
    outside = np.full(info.length, bool(spans))
    for span in spans:
        outside[span.start : span.stop] = False
    return outside


def _values(
    model: EnsembleModel, dataset: Dataset, info: EpisodeInfo, annotation: int, batch: int, pessimism: float
) -> npt.NDArray[np.float32]:
    """(T,) float32."""
    size = batch if model.look.views else VECTORS_AT_ONCE
    values = np.zeros(info.length, np.float32)
    for begin in range(0, info.length, _BATCHES_READ * size):
        end = min(begin + _BATCHES_READ * size, info.length)
        arrays = read_steps(dataset, model.look, [(info.index, annotation, t) for t in range(begin, end)])
        for start in range(0, end - begin, size):
            rows = np.arange(start, min(start + size, end - begin))
            mean, spread = model.score(gather(arrays, rows))
            values[begin + rows] = (mean - pessimism * spread).numpy()
    if not np.isfinite(values).all():
        where = f"{dataset.path}, episode {info.index}"
        raise RewardError("the model gives a reward that is not finite", where=where, cure="Fit the model again.")
    return values


def _standardised(scored: Iterator[Scores], where: str) -> Iterator[Scores]:
    held = list(scored)
    known = np.concatenate([values[np.isfinite(values)] for _, values in held] or [np.zeros(0, np.float32)]).astype(np.float64)
    if not known.size or np.ptp(known) <= SMALLEST_SPREAD:  # rounding errors would pass for a reward
        cure = "Use another transform, or fit the model to more labels."
        raise RewardError("the model gives every transition the same reward, which cannot be standardised", where=where, cure=cure)
    mean, deviation = float(known.mean()), float(known.std())
    yield from ((key, ((values - mean) / deviation).astype(np.float32)) for key, values in held)
