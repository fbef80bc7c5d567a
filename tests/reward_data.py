"""Recorded behaviour and labels for tests of reward models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.labels import LabelSet
from guerdon.records import Annotation, Label, Span
from guerdon.rewards.steps import Judgements, Kind, Look, StepArrays
from tests.memory import MemoryDataset, MemoryEpisode

INSTRUCTION = "go to the red ball"
SPANS = (Span(0, 3, "find the ball"), Span(3, 5, "touch it"))


class Recorded(MemoryDataset):
    """Episodes with pictures filled with t + 20 * episode, and a vector observation "state" that is (episode, t)."""

    def __init__(self, lengths: Sequence[int] = (5, 7, 4), *, size: int = 16, continuous: bool = False) -> None:
        first = (Annotation(INSTRUCTION, SPANS), Annotation("reach the ball"))
        super().__init__([MemoryEpisode(n, annotations=first if k == 0 else None) for k, n in enumerate(lengths)], size=size)
        self.vectors = ("state",)
        self._continuous = continuous
        self.reads: list[tuple[int, int, int]] = []
        """(episode, start, stop) of every read of pictures."""
        if continuous:
            self.action_names = ()

    def frames(self, index: int, view: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        self.reads.append((index, start, stop))
        return super().frames(index, view, start, stop)

    def vector(self, index: int, name: str) -> npt.NDArray[np.float32]:
        if name not in self.vectors:
            raise KeyError(name)
        times = np.arange(self.episode(index).length + 1)
        return np.stack([np.full(len(times), index), times], 1).astype(np.float32)

    def actions(self, index: int) -> np.ndarray[Any, Any]:
        discrete = super().actions(index)
        return np.stack([discrete, -discrete], 1).astype(np.float32) / 2 if self._continuous else discrete


def label(unit: str, episode: int, start: int, stop: int, value: float | None, **changes: Any) -> Label:
    state = "labelled" if value is not None else "failed"
    fields: dict[str, Any] = {"unit": unit, "episode": episode, "start": start, "stop": stop, "instruction": INSTRUCTION}
    cause = None if value is not None else "timeout"
    return Label(**({**fields, "state": state, "value": value, "cause": cause} | changes))


def label_set(labels: Sequence[Label], *, levels: int = 0, scale: tuple[float, float] = (0.0, 10.0), **metadata: Any) -> LabelSet:
    named = {"levels": ["bad", "average", "good", "great", "perfect"][:levels], "scale": [0, levels - 1]} if levels else {"scale": scale}
    return LabelSet(list(labels), {"method": "test", "version": "1", "rater": "scripted", "dataset": "s256:memory"} | named | metadata)


# --- arrays without a dataset -------------------------------------------------------------------------------------------------------

SEES = Look(vectors={"state": 4})
"""What models of the vectors below take in."""


def true_reward(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """A reward that is not linear, in (-1, 1)."""
    return np.tanh(vector[:, 0] - 0.5 * vector[:, 1] ** 2 + 0.3 * vector[:, 2]).astype(np.float64)


def of_vectors(vector: npt.NDArray[np.float32]) -> StepArrays:
    count = len(vector)
    nothing = np.zeros((count, 0), np.float32)
    return StepArrays({}, np.zeros((count, 1), np.int64), vector, nothing, np.zeros(count, np.int64), ("",))


def of_pictures(frames: npt.NDArray[np.uint8]) -> StepArrays:
    count = len(frames)
    nothing = np.zeros((count, 0), np.float32)
    return StepArrays({"full": frames}, np.arange(count)[:, None], nothing, nothing, np.zeros(count, np.int64), ("",))


def judged(
    kind: Kind, items: int = 240, *, lengths: tuple[int, int] = (1, 1), levels: int = 3, groups: int = 40, seed: int = 0,
    spoil: Callable[[npt.NDArray[np.float32], np.random.Generator], npt.NDArray[np.float32]] | None = None,
) -> Judgements:  # fmt: skip
    """Items of random vectors, judged without mistakes by the sum of their true rewards (of scores: the mean)."""
    random = np.random.default_rng(seed)
    sizes = random.integers(lengths[0], lengths[1] + 1, items)
    vector = random.normal(size=(int(sizes.sum()), 4)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    returns = np.add.reduceat(true_reward(vector), offsets[:-1])
    if kind == "rating":
        target = np.searchsorted(np.quantile(returns, np.arange(1, levels) / levels), returns)
    elif kind == "preference":
        target = returns[1::2] > returns[::2]
    else:
        target = (returns / sizes + 1) / 2
    values = target.astype(np.float32)
    if spoil is not None:
        values = spoil(values, random)
    group = np.arange(len(values)) % groups
    return Judgements(kind, levels if kind == "rating" else 0, of_vectors(vector), offsets, np.arange(len(vector)), values, group)
