"""A dataset in memory, for tests of what works on any dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.interfaces import Dataset
from guerdon.records import Annotation, EpisodeInfo, Frames


@dataclass
class MemoryEpisode:
    length: int
    instruction: str = "go to the red ball"
    annotations: tuple[Annotation, ...] | None = None
    terminated: bool = True
    rewards: Sequence[float] | None = None
    contribution: Sequence[float] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


class MemoryDataset(Dataset):
    """Episodes whose frame t is filled with the number t + 20 * episode."""

    def __init__(self, episodes: Sequence[MemoryEpisode], *, size: int = 16) -> None:
        self._episodes, self._size = list(episodes), size
        self.path = Path("memory")
        self.views = ("full",)
        self.action_names = ("left", "right", "forward")

    @property
    def fingerprint(self) -> str:
        return "s256:memory"

    @property
    def environment(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> EpisodeInfo:
        episode = self._episodes[index]
        annotations = (Annotation(episode.instruction),) if episode.annotations is None else episode.annotations
        return EpisodeInfo(index, episode.length, episode.terminated, not episode.terminated, annotations, episode.metadata)

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        if view not in self.views:
            raise KeyError(view)
        values = (np.arange(start, stop) + 20 * index).astype(np.uint8)
        return np.broadcast_to(values[:, None, None, None], (len(values), self._size, self._size, 3)).copy()

    def actions(self, index: int) -> np.ndarray[Any, Any]:
        return (np.arange(self._episodes[index].length) + index) % 3

    def rewards(self, index: int) -> np.ndarray[Any, Any]:
        episode = self._episodes[index]
        return np.zeros(episode.length) if episode.rewards is None else np.asarray(episode.rewards, np.float64)

    def privileged(self, index: int) -> Mapping[str, np.ndarray[Any, Any]]:
        contribution = self._episodes[index].contribution
        return {} if contribution is None else {"contribution": np.asarray(contribution, np.float32)}
