"""Runs with ratings, preferences and scores in them, made without asking anybody: for tests of what is learned from labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.datasets import open_dataset
from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.labels import LabelSet
from guerdon.records import Annotation, Label
from guerdon.runs import Manifest, Run

INSTRUCTION = "open the drawer"
LEVELS = ("Bad", "Average", "Good")
LENGTH, EPISODES = 12, 10


def quality(episode: int, length: int = LENGTH) -> np.ndarray[Any, Any]:
    """(T+1,) in [0, 1]: rises to an end that differs from episode to episode."""
    return np.linspace(0, 0.55 + 0.05 * (episode % 10), length + 1).clip(0, 1).astype(np.float32)


def robot_episode(number: int, *, size: int = 16, states: int = 3, instruction: str = INSTRUCTION) -> RecordedEpisode:
    """An arm that does better and better; its state tells how well, and so does the brightness of the picture. No contributions."""
    random = np.random.default_rng(number)
    good = quality(number)
    state = np.concatenate([good[:, None], random.normal(size=(LENGTH + 1, states - 1))], 1).astype(np.float32)
    frames = np.broadcast_to((255 * good)[:, None, None, None], (LENGTH + 1, size, size, 3)).astype(np.uint8)
    success = (good > 0.9).astype(np.float32)
    return RecordedEpisode(
        frames={"corner": frames.copy()},
        vectors={"state": state},
        actions=random.uniform(-1, 1, (LENGTH, 2)).astype(np.float32),
        rewards=10.0 * good[1:].astype(np.float64),
        terminated=bool(success[-1]),
        truncated=not success[-1],
        annotations=(Annotation(instruction),),
        metadata={"task": {"length": 1}},
        privileged={"quality": good, "success": success},
    )


def robot_data(path: Path, **changes: Any) -> Path:
    """A dataset of such episodes."""
    episodes = [robot_episode(number, **changes) for number in range(EPISODES)]
    write_minari(path, episodes, dataset_id="tests/arm-v0", action_names=(), environment={"name": "arm"})
    return path


def begin(data: Path, folder: Path) -> Run:
    """A run folder about a dataset."""
    dataset = open_dataset(data)
    return Run.open_or_create(folder, dataset_path=data, fingerprint=dataset.fingerprint)


def meaning(run: Run, **changes: Any) -> dict[str, Any]:
    """Metadata of ratings of three classes."""
    known = {"method": "rating", "version": "1 s256:prompt", "scale": [0, 2], "levels": list(LEVELS), "rater": "scripted:perfect"}
    return {**known, "dataset": run.dataset_fingerprint, **changes}


def rating(episode: int, k: int, level: int | None, instruction: str = INSTRUCTION) -> Label:
    """A rating of a picture; none for a request that timed out."""
    common: dict[str, Any] = {"unit": "observation", "episode": episode, "start": k, "stop": k, "instruction": instruction}
    common |= {"views": ("corner",), "question": f"q{episode}-{k}", "asked": 2}
    if level is None:
        return Label(**common, state="failed", cause="timeout")
    return Label(**common, state="labelled", value=float(level), answered=2)


def ratings(episodes: Sequence[int] = range(EPISODES), *, wrong: Sequence[tuple[int, int]] = (), missing: int = 0) -> list[Label]:
    """Ratings of every outcome by a third of its quality; those of `wrong` are turned round, the first `missing` ones have no answer."""
    found = []
    for episode in episodes:
        for k in range(1, LENGTH + 1):
            level = min(int(3 * quality(episode)[k]), 2)
            level = 2 - level if (episode, k) in wrong else level
            found.append(rating(episode, k, None if len(found) < missing else level))
    return found


def pairs(count: int = 60) -> list[Label]:
    """Preferences for the better one of two pictures; every tenth time nobody is preferred."""
    random = np.random.default_rng(0)
    found = []
    for number in range(count):
        (one, k), (other, m) = [(int(random.integers(EPISODES)), int(random.integers(1, LENGTH + 1))) for _ in range(2)]
        value = 0.5 if number % 10 == 9 else float(quality(other)[m] > quality(one)[k])
        found.append(
            Label(unit="pair", episode=one, start=k, stop=k, episode_b=other, start_b=m, stop_b=m, instruction=INSTRUCTION,
                  state="labelled", value=value, views=("corner",), question=f"p{number}")
        )  # fmt: skip
    return found


def scores(episodes: Sequence[int] = range(EPISODES)) -> list[Label]:
    """Scores of actions from 0 to 10."""
    return [
        Label(unit="transition", episode=episode, start=t, stop=t + 1, instruction=INSTRUCTION, state="labelled",
              value=float(round(10 * quality(episode)[t + 1])), views=("corner",), question=f"s{episode}")
        for episode in episodes for t in range(LENGTH)
    ]  # fmt: skip


def add_labels(run: Run, labels: Sequence[Label], name: str = "rating", **changes: Any) -> LabelSet:
    """Writes a label set and its manifest, as `guerdon label` does."""
    label_set = LabelSet(list(labels), meaning(run, **changes))
    part = run.part("labels", name).with_suffix(".parquet")
    label_set.write(part)
    results = {"fingerprint": label_set.fingerprint, "requests": 2 * len(labels), "dollars": 0.0, "seconds": 3.0}
    run.finish(part, Manifest({"method": "rating"}, {"dataset": run.dataset_fingerprint}, results))
    return label_set
