"""The dataset of a command or of a run folder, the settings that choose what is read from it, and the run's parts that others are made
from: label sets, reward models and reward columns, each held against its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guerdon.datasets import open_dataset
from guerdon.errors import RunError, StaleInput
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.records import digest
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Run

MODEL_FILES = ("model.safetensors", "model.json")
"""What a reward model consists of: weights, and what it looks at and how it was fitted."""


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


def label_set_of(run: Run, name: str, *, cure: str = "(sparse, original and oracle need none.)") -> LabelSet:
    """A label set of a run. Raises RunError if it is not there, damaged or not what its manifest says, StaleInput if it is about other
    data."""
    path = part_path(run, "labels", name, kind="label set", cure=cure)
    labels = LabelSet.read(path)
    _refuse_changed(run, path, labels.fingerprint)
    return labels


def rewards_of(run: Run, name: str) -> RewardColumn:
    """A reward column of a run. Raises as `label_set_of` does."""
    path = part_path(run, "rewards", name, kind="reward column", cure=f"Make one with: guerdon reward {run.path} --name {name}")
    column = RewardColumn.read(path)
    _refuse_changed(run, path, column.fingerprint)
    return column


def relabelled_of(run: Run, name: str) -> RewardColumn:
    """A reward column that a reward model gave, to be used in an expression. Raises as `rewards_of` does, and StaleInput if a model of
    this run gave it that has been fitted anew since, or whose labels have changed."""
    column = rewards_of(run, name)
    model = str(column.metadata.get("model_name", ""))
    manifest = run.manifest(run.part("models", model)) if model and not column.metadata.get("from_run") else None
    if isinstance(manifest, dict):
        if manifest.get("results", {}).get("fingerprint") != column.metadata.get("model"):
            cure = f"Make it again: guerdon relabel {run.path} --model {model} --name {name}"
            raise StaleInput(f"was given by another model '{model}' than there is now", where=str(run.part("rewards", name)), cure=cure)
        _refuse_other_labels(run, model, {place: each for place, each in manifest["inputs"].items() if _is_there(run, place)})
    return column


def require_up_to_date(run: Run, name: str) -> None:
    """Whether a reward column is made from what the run holds now. What it was made from and is gone cannot be compared, and passes.

    Raises:
        RunError: if the column is not there or damaged.
        StaleInput: if label sets, other reward columns or a model that it was made from have changed since; says how to make it again.
    """
    column = rewards_of(run, name)
    part = run.part("rewards", name).with_suffix(".parquet")
    if column.by_model:
        relabelled_of(run, name)
    for place, fingerprint in run.require(part, {})["inputs"].items():
        kind, _, source = place.partition("/")
        if kind not in ("labels", "rewards") or not _is_there(run, place):
            continue
        now = label_set_of(run, source) if kind == "labels" else relabelled_of(run, source)
        if now.fingerprint != fingerprint:
            what = f"was made from other {'labels' if kind == 'labels' else 'rewards'} '{source}' than there are now"
            cure = f'Make it again: guerdon reward {run.path} --compose "{column.metadata.get("expression", "")}" --name {name}'
            raise StaleInput(what, where=str(part), cure=cure)


def _is_there(run: Run, place: str) -> bool:
    """Whether the run holds what a manifest names as an input, such as "labels/rating"."""
    kind, _, name = place.partition("/")
    return {"labels": has_labels, "rewards": has_rewards}[kind](run, name) if kind in ("labels", "rewards") and name else False


def _refuse_other_labels(run: Run, model: str, inputs: Mapping[str, str]) -> None:
    """Raises StaleInput if label sets that a model was fitted to have changed since."""
    for place, fingerprint in inputs.items():
        kind, _, label_set = place.partition("/")
        if kind == "labels" and label_set_of(run, label_set).fingerprint != fingerprint:
            cure = f"Fit it again: guerdon fit {run.path} --labels {label_set} --name {model}"
            where = str(run.part("models", model))
            raise StaleInput(f"was fitted to other labels '{label_set}' than there are now", where=where, cure=cure)


def has_labels(run: Run, name: str) -> bool:
    """Whether a run holds a label set of this name."""
    return run.part("labels", name).with_suffix(".parquet").is_file()


def has_rewards(run: Run, name: str) -> bool:
    """Whether a run holds a reward column of this name."""
    return run.part("rewards", name).with_suffix(".parquet").is_file()


def model_of(run: Run, name: str) -> tuple[Path, str]:
    """Folder and fingerprint of a finished reward model of a run.

    Raises:
        RunError: if it is not there, not finished or damaged.
        StaleInput: if the run's labels have changed since it was fitted.
    """
    folder = run.path / "models"
    there = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    if name not in there:
        known = ", ".join(there) or "none yet"
        cure = f"There are: {known}. Fit one with: guerdon fit {run.path} --labels NAME --name {name}"
        raise RunError(f"no reward model is called '{name}'", where=str(run.path), cure=cure)
    part = folder / name
    manifest = run.require(part, {"dataset": run.dataset_fingerprint})
    _refuse_other_labels(run, name, manifest["inputs"])
    fingerprint = model_fingerprint(part)
    if manifest["results"].get("fingerprint") != fingerprint:
        raise RunError("is not what its manifest says: it was changed or damaged", where=str(part), cure="Fit it again.")
    return part, fingerprint


def model_fingerprint(part: Path) -> str:
    """Digest of a model's files; empty if one of them cannot be read."""
    try:
        return digest("guerdon model 1", *((part / file).read_bytes() for file in MODEL_FILES))
    except OSError:
        return ""


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
