"""The dataset of a command or of a run folder, the settings that choose what is read from it, and the run's parts that others are made
from: label sets and reward columns, each held against its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.datasets import open_dataset
from guerdon.errors import RunError, StaleInput
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Run


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to read a dataset that does not say so itself."""

    view_keys: tuple[str, ...] = ()
    """Which observations are camera pictures, the default camera first; found by themselves if not given."""
    instruction_key: str = ""
    """Where the words are: an observation, info or episode metadata key, e.g. "mission"; found by itself if not given."""
    instruction: str = ""
    """One instruction for all episodes, for datasets without words."""

    def as_options(self) -> dict[str, Any]:
        """The settings that were given, in the form `open_dataset` takes."""
        given = {"views": list(self.view_keys), "instruction_key": self.instruction_key, "instruction": self.instruction}
        return {name: value for name, value in given.items() if value}


def open_data(path: Path, options: DataOptions) -> Dataset:
    """The dataset at `path`. Raises DatasetError."""
    return open_dataset(path, **options.as_options())


def run_of(path: Path, dataset: Dataset, options: DataOptions) -> Run:
    """The run folder at `path` for `dataset`, begun if it is not there. Raises RunError if it belongs to another dataset."""
    return Run.open_or_create(path, dataset_path=dataset.path, fingerprint=dataset.fingerprint, options=options.as_options())


def dataset_of(run: Run) -> Dataset:
    """The dataset that a run was made from.

    Raises:
        DatasetError: if it is gone or damaged.
        StaleInput: if it has changed since.
    """
    dataset = open_dataset(run.dataset_path, **run.dataset_options)
    if dataset.fingerprint != run.dataset_fingerprint:
        cure = "Its labels no longer fit it: begin a new run folder, or put the old dataset back."
        raise StaleInput(f"has changed since the run {run.path} was begun", where=str(run.dataset_path), cure=cure)
    return dataset


def label_set_of(run: Run, name: str) -> LabelSet:
    """A label set of a run. Raises RunError if it is not there, damaged or not what its manifest says, StaleInput if it is about other
    data."""
    path = part_path(run, "labels", name, kind="label set", cure="(sparse, original and oracle need none.)")
    labels = LabelSet.read(path)
    _refuse_changed(run, path, labels.fingerprint)
    return labels


def rewards_of(run: Run, name: str) -> RewardColumn:
    """A reward column of a run. Raises as `label_set_of` does."""
    path = part_path(run, "rewards", name, kind="reward column", cure=f"Make one with: guerdon reward {run.path} --name {name}")
    column = RewardColumn.read(path)
    _refuse_changed(run, path, column.fingerprint)
    return column


def part_path(run: Run, folder: str, name: str, *, kind: str, cure: str) -> Path:
    """Where the part called `name` lies in a folder of a run. Raises RunError, which lists the parts there are, and `cure`."""
    there = {path.stem: path for path in (run.path / folder).glob("*.parquet") if "." not in path.stem}  # others belong to one of these
    if name not in there:
        known = ", ".join(sorted(there)) or "none yet"
        raise RunError(f"no {kind} is called '{name}'", where=str(run.path), cure=f"There are: {known}. {cure}")
    return there[name]


def _refuse_changed(run: Run, path: Path, fingerprint: str) -> None:
    """Raises RunError if what was read is not what was written: by another program, by a damaged disk, or by a write that was cut short."""
    manifest = run.require(path, {"dataset": run.dataset_fingerprint})
    if manifest["results"].get("fingerprint") != fingerprint:
        raise RunError("is not what its manifest says: it was changed or damaged", where=str(path), cure="Make it again.")
