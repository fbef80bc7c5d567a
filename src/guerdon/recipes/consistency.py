"""How steadily a rater rates an expert's trajectory, and how well, for each number of classes: asked before a number is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tyro.conf import Suppress

from guerdon import discover
from guerdon.errors import DatasetError, UsageError
from guerdon.evaluation.consistency import Consistency, consistency, draw
from guerdon.evaluation.truth import qualities
from guerdon.interfaces import Dataset, Method
from guerdon.recipes import label
from guerdon.recipes.data import open_data
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.records import Label
from guerdon.runs import Run, write_json

_EXPERTS = 3
"""Episodes that are asked about unasked."""
_DONE = 1.0 - 1e-6
"""Quality from which a picture shows the task done, where the ground truth says nothing of success itself."""


@dataclass(frozen=True, kw_only=True)
class Config(label.Config):
    """Which numbers of classes are tried, on which trajectories. Takes what `label` takes; every answer costs, and is kept in the store."""

    method: Suppress[str] = "rating"
    classes: tuple[int, ...] = (2, 3, 4, 5)
    """Numbers of classes to try."""
    repeats: int = 10
    """Independent answers to each question (the paper: 10)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.classes or len(set(self.classes)) < len(self.classes) or not all(2 <= each <= 5 for each in self.classes):
            raise UsageError(f"classes are different numbers from 2 to 5, got {list(self.classes)}")
        if self.method != "rating" or self.name:
            raise UsageError(
                "consistency is measured for the method 'rating', under names of its own", cure="Leave out --method and --name."
            )
        if self.repeats < 2:
            raise UsageError("one answer to each question says nothing about consistency", cure="Give --repeats 2 or more.")
        if self.batch and not self.wait:
            raise UsageError("consistency is measured when all answers are there", cure="Leave out --no-wait.")


@dataclass(frozen=True)
class Measured:
    """What was found, and where it was written."""

    rows: tuple[Consistency, ...]
    """One for each number of classes."""
    table: Path
    picture: Path
    stopped: str
    """Why not all was asked; empty if it was."""


@callable_with_settings(Config)
def raters_consistency(config: Config) -> Measured:
    """Asks about pictures of successful episodes, several times with each number of classes, and writes RUN/consistency.json and .png.

    Without --episodes, the first three successful episodes are asked about; `--every N` leaves out pictures between.

    Raises:
        DatasetError: if no episode is successful.
        UsageError, RunError, StoreError, ProviderError: as `label`.
    """
    dataset = open_data(config.dataset, config)
    chosen = config.sampling.episodes or experts(dataset)
    rows, stopped = [], ""
    for levels in config.classes:
        labelled = label.label.of(_label_config(config, chosen, levels))
        rows.append(measure(labelled.votes, dataset, levels))
        stopped = stopped or labelled.stopped
    run = Run.open(config.run)
    table, picture = run.path / "consistency.json", run.path / "consistency.png"
    rater = " then ".join(config.vlm)
    write_json(table, {"rater": rater, "episodes": list(chosen), "config": as_record(config), "rows": [row.to_record() for row in rows]})
    draw(rows, picture, title=f"{rater}: {rows[0].repeats} answers about {rows[0].pictures} pictures of {len(chosen)} successful episodes")
    return Measured(tuple(rows), table, picture, stopped)


def experts(dataset: Dataset, count: int = _EXPERTS) -> tuple[int, ...]:
    """The first successful episodes. Raises DatasetError if there is none."""
    found = tuple(info.index for info in dataset.episodes() if info.terminated and info.length)[:count]
    if not found:
        cure = "Name the episodes of an expert with --episodes."
        raise DatasetError("no episode ended by success", where=str(dataset.path), cure=cure)
    return found


def _label_config(config: Config, episodes: tuple[int, ...], levels: int) -> label.Config:
    """What `label` is asked for one number of classes."""
    defaults = _default_settings()
    settings: Any = config.method_settings or defaults
    if settings.levels != defaults.levels:
        raise UsageError("several numbers of classes are compared here", cure="Name them with --classes, and leave out --levels.")
    if settings.item not in ("picture", "transition"):
        raise _unclear()
    shared = {name: getattr(config, name) for name in label.Config.__dataclass_fields__}
    changed = {
        "name": f"consistency_{levels}",
        "sampling": replace(config.sampling, episodes=episodes),
        "method_settings": replace(settings, levels=levels),
        "min_coverage": 0.0,
        "keep_votes": True,
    }
    return label.Config(**{**shared, **changed})


def _default_settings() -> Any:
    made: type[Method] = discover.load("methods", Config.method)
    return made.Config()  # type: ignore[attr-defined]


def measure(votes: Mapping[int, Sequence[Label]], dataset: Dataset, levels: int) -> Consistency:
    """Consistency of labels of single pictures or transitions.

    Args:
        votes: the labels of each repeat.

    Raises:
        UsageError: for labels of segments or pairs.
    """
    places: dict[tuple[int, int, int], int] = {}
    for labels in votes.values():
        for each in labels:
            places.setdefault(_place(each), len(places))
    table = np.full((len(votes), len(places)), np.nan)
    for row, labels in enumerate(votes.values()):
        for each in labels:
            table[row, places[_place(each)]] = np.nan if each.value is None else each.value
    episode, _, observation = (np.array(column) for column in zip(*places, strict=True)) if places else (np.zeros(0, int),) * 3
    return consistency(table, _success(dataset, episode, observation), episode, observation, levels)


def _place(each: Label) -> tuple[int, int, int]:
    """Episode, annotation and the observation that is judged."""
    if each.unit == "observation":
        return each.episode, each.annotation, each.start
    if each.unit == "transition":
        return each.episode, each.annotation, each.start + 1
    raise _unclear()


def _unclear() -> UsageError:
    return UsageError("whether a rater agrees with success can be told of single pictures only", cure="Use --item picture.")


def _success(dataset: Dataset, episode: npt.NDArray[Any], observation: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each observation shows the task done: by the ground truth where there is some, else only the last one of an episode that
    ended by success."""
    table = {int(each): _success_of(dataset, int(each)) for each in np.unique(episode)}
    return np.array([table[int(one)][int(place)] for one, place in zip(episode, observation, strict=True)], bool)


def _success_of(dataset: Dataset, episode: int) -> npt.NDArray[np.bool_]:
    info = dataset.episode(episode)
    if "success" in (privileged := dataset.privileged(episode)):
        return np.asarray(privileged["success"] > 0)
    if (quality := qualities(dataset, episode)) is not None:
        return np.asarray(quality >= _DONE)
    done = np.zeros(info.length + 1, bool)
    done[-1] = info.terminated
    return done
