"""An embedded rater that has learned nothing, and real BabyAI behaviour to ask it about.

Its weights have the right shapes and are drawn at random: what it says means nothing, but it is said in the right form, and every time the
same.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from guerdon.datasets.minari import RecordedEpisode
from guerdon.envs.babyai import ACTION_NAMES
from guerdon.providers._embedded_network import shapes
from guerdon.providers._embedded_words import WORDS
from guerdon.recipes._embedded_file import write_weights
from guerdon.recipes.collect_babyai import Config, demonstrations
from guerdon.records import Sample, Segment


def random_tensors(seed: int = 0, *, channels: int = 8, blocks: int = 2) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes(channels, blocks, len(WORDS)).items()}


def random_weights(folder: Path, seed: int = 0, *, name: str = "random") -> Path:
    """The file of such weights: equal arguments, equal bytes."""
    path = folder / f"{name}-{seed}.safetensors"
    write_weights(path, random_tensors(seed), name=name)
    return path


@cache
def episodes(level: str = "small", *, tasks: int = 3, seed: int = 0) -> tuple[RecordedEpisode, ...]:
    """Demonstrations of instructions of one to three sub-tasks, one each, through both cameras."""
    config = Config(level=level, tasks=tasks, demonstrations=1, lengths=(1, 3), views=("full", "agent"), seed=seed)
    return tuple(demonstrations(config))


def sample(
    episode: RecordedEpisode,
    start: int = 0,
    stop: int | None = None,
    *,
    instruction: str = "",
    views: tuple[str, ...] = ("full",),
    other: Sample | None = None,
) -> Sample:
    """A piece of an episode, all of it if no end is given, to be judged by its own instruction if no other one is given."""
    stop = len(episode.actions) if stop is None else stop
    pictures = {view: episode.frames[view][start : stop + 1] for view in views}
    return Sample(
        Segment(0, start, stop, views),
        instruction or episode.annotations[0].instruction,
        tuple(ACTION_NAMES[action] for action in episode.actions[start:stop]),
        frames=lambda: pictures,
        other=other,
    )
