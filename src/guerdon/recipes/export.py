"""Writing a dataset that carries a reward column, for programs that know nothing of run folders.

The export is a new Minari dataset: the same episodes with their stored bytes, the column's rewards in place of the recorded ones, which
move to `infos/original_reward`. `infos/guerdon_reward_known` says where the column had a reward. Both have T+1 entries, as Minari's infos
have: entry t+1 belongs to transition t, entry 0 is NaN or False. Where the rewards come from is written in `metadata.json` under
"guerdon", "export". The run's dataset itself is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tyro.conf import Positional

from guerdon.datasets.minari import MinariDataset, refuse_bad_target
from guerdon.errors import DatasetError, RewardError, UsageError
from guerdon.recipes.data import dataset_of, rewards_of
from guerdon.recipes.settings import callable_with_settings
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Run, package_version, writing

_ORIGINAL = "infos/original_reward"
_KNOWN = "infos/guerdon_reward_known"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to export and where to."""

    run: Positional[Path]
    """The run folder that holds the reward column."""
    out: Path
    """Folder of the new dataset. To be loaded by its id it lies at $MINARI_DATASETS_PATH/ID."""
    rewards: str = "dense"
    """Name of the reward column."""
    to: Literal["minari"] = "minari"
    """Format of the new dataset."""
    dataset_id: str = ""
    """Id of the new dataset, in the form name-v0 or namespace/name-v0; made from the old one and the column's name if not given."""
    annotation: int = 0
    """Which of each episode's wordings the rewards are for, counted from 0."""
    unknown: Literal["refuse", "zero", "drop-episodes"] = "refuse"
    """What becomes of transitions without a known reward: no export, a reward of 0 (see infos guerdon_reward_known), or their whole
    episode is left out."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    dataset_id: str
    episodes: int
    transitions: int
    unknown: int
    """Transitions written with a reward of 0 because theirs is unknown."""
    dropped: tuple[int, ...]
    """Episodes of the source that were left out; later ones move up."""

    def __str__(self) -> str:
        left_out = f", {len(self.dropped)} episodes left out" if self.dropped else ""
        unknown = f", {self.unknown} unknown rewards written as 0" if self.unknown else ""
        return f"{self.path} ({self.dataset_id}: {self.episodes} episodes, {self.transitions} transitions{unknown}{left_out})"


@callable_with_settings(Config)
def export(config: Config) -> Exported:
    """Writes the run's dataset with the rewards of one column.

    Raises:
        RewardError: if rewards are unknown and nothing was said about them, or the column does not fit the dataset.
        RunError: if the run or the column is not there or was made from other data.
        DatasetError: if the dataset is damaged or `out` holds something already.
        WriteFailed: if the disk is full or not writable; nothing is left.
    """
    run = Run.open(config.run)
    dataset = dataset_of(run)
    if not isinstance(dataset, MinariDataset):
        raise UsageError("only Minari datasets can be exported to Minari", where=str(dataset.path))
    dataset_id = config.dataset_id or _derived_id(str(dataset.metadata.get("dataset_id", "dataset-v0")), config.rewards)
    refuse_bad_target(config.out, dataset_id)
    part = run.part("rewards", config.rewards).with_suffix(".parquet")
    column = rewards_of(run, config.rewards)
    manifest = run.require(part, {"dataset": dataset.fingerprint})
    if not any(annotation == config.annotation for _, annotation in column.values):
        raise UsageError(f"no episode has a wording number {config.annotation}", where=str(part), cure="Wordings are counted from 0.")
    rewards = {index: _rewards(column, dataset, index, config.annotation) for index in range(len(dataset))}
    dropped = _dropped(rewards, config, str(part))
    kept = [index for index in rewards if index not in dropped]
    if not kept:
        raise RewardError("every episode has unknown rewards, so none would be left", where=str(part))
    provenance = {
        "rewards": config.rewards,
        "column": {**column.metadata, "fingerprint": column.fingerprint},
        "inputs": manifest["inputs"],
        "raters": _raters(run, manifest),
        "source": {"dataset_id": dataset.metadata.get("dataset_id"), "fingerprint": dataset.fingerprint},
        "annotation": config.annotation,
        "unknown": config.unknown,
        "dropped_episodes": list(dropped),
        "guerdon": package_version(),
    }
    metadata = {"dataset_id": dataset_id, "guerdon": {**dataset.metadata.get("guerdon", {}), "export": provenance}}
    with writing(config.out) as temporary:
        dataset.write_copy(temporary, kept, lambda index: _replaced(dataset, index, rewards[index]), metadata)
    transitions = sum(rewards[index].size for index in kept)
    unknown = sum(int(np.isnan(rewards[index]).sum()) for index in kept)
    return Exported(config.out, dataset_id, len(kept), transitions, unknown, dropped)


def _rewards(column: RewardColumn, dataset: MinariDataset, index: int, annotation: int) -> npt.NDArray[np.float32]:
    """(T,) rewards of an episode, NaN where unknown; all NaN if the column says nothing of it."""
    length = dataset.episode(index).length
    values = column.values.get((index, annotation), np.full(length, np.nan, np.float32))
    if values.shape != (length,):
        what = f"the column has {values.size} rewards for episode {index}, which has {length} transitions"
        raise RewardError(what, where=str(dataset.path), cure="Make the column again.")
    return values


def _dropped(rewards: Mapping[int, npt.NDArray[np.float32]], config: Config, where: str) -> tuple[int, ...]:
    """Episodes to leave out. Raises RewardError if rewards are unknown and nothing was said about them."""
    incomplete = tuple(index for index, values in rewards.items() if np.isnan(values).any())
    if incomplete and config.unknown == "refuse":
        first = incomplete[0]
        step = int(np.flatnonzero(np.isnan(rewards[first]))[0])
        count = sum(int(np.isnan(values).sum()) for values in rewards.values())
        what = f"{count} rewards in {len(incomplete)} episodes are unknown, the first in episode {first}, step {step}"
        cure = "Choose --unknown zero (a mask says which) or --unknown drop-episodes, or label what is missing."
        raise RewardError(what, where=where, cure=cure)
    return incomplete if config.unknown == "drop-episodes" else ()


def _replaced(dataset: MinariDataset, index: int, rewards: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    if dataset.has_array(index, _ORIGINAL):
        cure = "Export from the dataset that was recorded."
        raise DatasetError("is an export already: it has infos 'original_reward'", where=str(dataset.path), cure=cure)
    known = ~np.isnan(rewards)
    return {
        "rewards": np.where(known, rewards, 0.0).astype(np.float64),
        _ORIGINAL: np.concatenate([[np.nan], dataset.rewards(index)]),
        _KNOWN: np.concatenate([[False], known]),
    }


def _raters(run: Run, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Label set -> its manifest's results and settings, for the label sets that the column was made from."""
    names = [name.removeprefix("labels/") for name in manifest["inputs"] if name.startswith("labels/")]
    parts = {name: run.manifest(run.part("labels", name).with_suffix(".parquet")) for name in names}
    return {name: {"config": record["config"], "provenance": record["provenance"]} for name, record in parts.items() if record}


def _derived_id(source: str, rewards: str) -> str:
    return f"{re.sub(r'-v[0-9]+$', '', source)}-{rewards}-v0"
