"""What the reply store holds, what it cost, whether it is sound, and handing on what one run used: `guerdon store`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from guerdon.asking import archive
from guerdon.asking.store import RunInfo, Store, default_path
from guerdon.errors import RunError, StoreError, UsageError
from guerdon.labels import LabelSet
from guerdon.recipes.settings import callable_with_settings
from guerdon.runs import Run

_SHORTEST = 6
"""Characters that the beginning of a run's id needs to stand for it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which store."""

    store: str | None = None
    """The reply store: a file, or postgresql://user@host/database; the user's own if not given."""


@dataclass(frozen=True, kw_only=True)
class CostsConfig(Config):
    """Which store, and whose costs."""

    run: Positional[str] = ""
    """A run folder, or the name or id of a run as `guerdon store list` shows it; all runs if not given."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """What is handed on."""

    run: Positional[str]
    """A run folder, or the name or id of a run as `guerdon store list` shows it.
    Only for a run folder all is found that the run took from the store without asking."""
    file: Positional[Path]
    """The bundle to write, e.g. results.guerdon."""
    names: bool = False
    """Keep the names of runs, which may be paths on this machine."""
    overwrite: bool = False
    """Replace a file that is there."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Config):
    """What is taken in."""

    file: Positional[Path]
    """A bundle that was written by `guerdon store export`."""


@callable_with_settings(Config)
def list_(config: Config) -> archive.Overview:
    """Runs, raters and size of a store. Raises StoreError."""
    with _opened(config) as store:
        return archive.overview(store)


@callable_with_settings(CostsConfig)
def costs(config: CostsConfig) -> list[archive.Share]:
    """What a run, or all of them, cost, by rater and purpose. Raises StoreError, RunError (no such run)."""
    with _opened(config) as store:
        return archive.shares(store, _ids_of(store, config.run) if config.run else None)


@callable_with_settings(Config)
def verify(config: Config) -> list[archive.Fault]:
    """Everything in a store that contradicts itself; empty if it is sound. Raises StoreError."""
    with _opened(config) as store:
        return archive.verify(store)


@callable_with_settings(ExportConfig)
def export(config: ExportConfig) -> archive.Counts:
    """Writes a bundle of all that a run asked or found in the store: requests, raters, attempts and answers.

    What a run found is known from its label sets: each label names the request that it was read from, and the whole conversations around
    these belong to the run (see `guerdon.asking.archive.used`). The bundle can be imported elsewhere, or served by `replay:FILE`.

    Raises:
        RunError: if there is no such run, it used nothing of this store, or one of its label sets is damaged.
        UsageError: if the file is there already.
        StoreError, WriteFailed: if the store cannot be read or the bundle not be written.
    """
    if config.file.exists() and not config.overwrite:
        raise UsageError("is there already", where=str(config.file), cure="Name another file, or say --overwrite.")
    with _opened(config) as store:
        if store.path is not None and config.file.exists() and store.path.samefile(config.file):
            raise UsageError("is the store itself", where=str(config.file), cure="Name another file.")
        runs = _ids_of(store, config.run)
        questions, raters = _labels_of(store, Path(config.run)) if _is_run_folder(config.run) else (set[str](), set[str]())
        keys = archive.used(store, runs, questions, raters)
        if not keys:
            cure = "Name the store that the run was labelled with: --store"
            raise RunError(f"used nothing of the store {store.name}", where=config.run, cure=cure)
        return archive.export(store, keys, config.file, names=config.names)


@callable_with_settings(ImportConfig)
def import_(config: ImportConfig) -> archive.Imported:
    """Adds a bundle to a store, which is begun if it is not there. Answers that the store has are kept as they are.

    Raises:
        StoreError: if the bundle is damaged (nothing is added then), or the store cannot be written.
    """
    if not config.file.is_file():
        raise UsageError("there is no such bundle", where=str(config.file), cure="Write one with: guerdon store export RUN FILE")
    with Store.open(config.store) as store:
        return archive.import_bundle(store, config.file)


def _opened(config: Config) -> Store:
    """The store, which must be there: looking at one does not begin it."""
    place = default_path() if config.store is None else config.store
    if not (isinstance(place, str) and "://" in place) and not Path(place).is_file():
        cure = "Name it with --store FILE, or in the environment variable GUERDON_STORE; `guerdon label` begins one."
        raise StoreError("there is no reply store", where=str(place), cure=cure)
    return Store.open(place)


def _is_run_folder(name: str) -> bool:
    return (Path(name) / "run.json").is_file()


def _ids_of(store: Store, name: str) -> list[str]:
    """Ids under which the store counts the attempts of a run. Raises RunError if it knows none of that name."""
    runs = store.runs()
    if _is_run_folder(name):
        run = Run.open(Path(name))
        place = f"{run.dataset_fingerprint}/{run.path.resolve()}/".encode("utf-8", "backslashreplace").decode()
        return [run.id, *(known.id for known in runs if known.id.startswith(place))]  # once, each label set had an id of its own
    found = _called(runs, name)
    if len(found) == 1:
        return found
    if found:
        raise RunError(f"{len(found)} runs go by '{name}'", where=store.name, cure="Give more of the id, or the run folder.")
    raise RunError(f"the store knows no run '{name}'", where=store.name, cure="Name a run folder, or a run of: guerdon store list")


def _called(runs: Sequence[RunInfo], name: str) -> list[str]:
    """Ids of the runs with this id, else this name, else an id that begins so."""
    by_name = [run.id for run in runs if run.name == name]
    by_beginning = [run.id for run in runs if len(name) >= _SHORTEST and run.id.startswith(name)]
    return [run.id for run in runs if run.id == name] or by_name or by_beginning


def _labels_of(store: Store, run: Path) -> tuple[set[str], set[str]]:
    """The requests from whose replies the labels of a run folder were read, and the keys of the raters. Raises RunError."""
    questions: set[str] = set()
    raters: set[str] = set()
    for path in sorted((run / "labels").glob("*.parquet")):
        if path.stem.endswith(".corrections"):
            continue
        label_set = LabelSet.read(path)
        questions |= {label.question for label in label_set.labels if label.question}
        for name, settings in _raters_of(label_set.metadata):
            raters |= archive.raters_called(store, name, settings)
    return questions, raters


def _raters_of(metadata: Any) -> Iterator[tuple[str, Any]]:
    """Name and settings of each rater that labels were read from."""
    settings = metadata.get("rater_settings")
    names = str(metadata.get("rater", "")).split(" then ")
    if isinstance(settings, list) and len(settings) == len(names):
        yield from zip(names, settings, strict=True)
