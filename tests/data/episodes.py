"""Small recorded episodes for tests, and the stock Minari library's way of writing them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.records import Annotation, Span

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


def episode(length: int = 10, seed: int = 0, **changes: Any) -> RecordedEpisode:
    """A valid episode with two views, two sub-tasks, metadata and ground truth, unlike that of any other seed."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 256, (length + 1, 8, 10, 3), dtype=np.uint8)
    half = length // 2
    spans = (Span(0, half, "find it"), Span(half, length, "go there"))
    fields: dict[str, Any] = {
        "frames": {"image": frames, "wrist": frames[:, ::2, ::2].copy()},
        "actions": random.integers(0, len(ACTIONS), length),
        "rewards": np.r_[np.zeros(length - 1), 1.0],
        "terminated": True,
        "truncated": False,
        "annotations": (Annotation("gehe zur Tür", spans), Annotation("reach the door")),
        "metadata": {"seed": seed, "task": {"level": "GoTo"}},
        "privileged": {
            "contribution": np.arange(length, dtype=np.float32),
            "progress": np.linspace(0, 1, length + 1, dtype=np.float32),
        },
    }
    return RecordedEpisode(**(fields | changes))


def write(path: Path, episodes: Iterable[RecordedEpisode] | None = None, **changes: Any) -> Path:
    """A dataset at `path`; three episodes of 10, 11 and 12 transitions if not given."""
    options: dict[str, Any] = {"dataset_id": "tests/doors-v0", "action_names": ACTIONS, "environment": {"name": "doors"}}
    write_minari(path, [episode(10 + n, n) for n in range(3)] if episodes is None else episodes, **(options | changes))
    return path


def write_stock(
    root: Path,
    monkeypatch: Any,
    *,
    observations: Mapping[str, Any],
    spaces: Mapping[str, Any],
    actions: Any,
    action_space: Any,
    rewards: Any = None,
    infos: Mapping[str, Any] | None = None,
    data_format: str = "hdf5",
    jpeg: bool = False,
    episodes: int = 1,
    dataset_id: str = "stock/thing-v0",
) -> Path:
    """A dataset of equal episodes written by the stock library."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    length = len(actions)
    buffers = [
        EpisodeBuffer(
            id=number,
            seed=None,
            observations=dict(observations),
            actions=actions,
            rewards=[0.0] * length if rewards is None else list(rewards),
            terminations=[False] * (length - 1) + [True] * bool(length),
            truncations=[False] * length,
            infos=dict(infos or {}),
        )
        for number in range(episodes)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            dataset_id,
            buffers,
            observation_space=gymnasium.spaces.Dict(dict(spaces)),
            action_space=action_space,
            data_format=data_format,
            jpeg_encoding=jpeg,
        )
    return root / dataset_id
