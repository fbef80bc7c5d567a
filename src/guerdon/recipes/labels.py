"""Correcting labels by hand: `guerdon labels`.

What a person says about a transition is kept apart from what a rater said:

    labels/NAME.parquet               the label set in force: a person's labels in the place of the rater's
    labels/NAME.corrections.parquet   a person's labels alone, in the state `human`, one for each transition
    labels/NAME.machine.parquet       the label set before any correction; there while there are corrections

Labelling again replaces the second last of these only through `merge`, and never touches the corrections; taking a correction back brings
the rater's label back. The label set's fingerprint changes with every correction, so what was made from it before is reported as stale.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from guerdon import discover
from guerdon.errors import RunError, UsageError
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet, corrected
from guerdon.recipes.data import dataset_of, part_path
from guerdon.recipes.settings import callable_with_settings
from guerdon.records import EpisodeInfo, Label, Unit
from guerdon.runs import Manifest, Run

COLUMNS = ("episode", "step", "value", "stop", "annotation", "note")
"""Columns of a file of corrections; the first three are required."""
_REQUIRED = COLUMNS[:3]
_WHOLE_NUMBER = re.compile(r"[0-9]{1,15}")
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")

_CORRECTABLE: frozenset[Unit] = frozenset({"transition"})
"""What a label may be about to be set by hand. What is said of a whole segment, of a picture or of a pair is not said of one transition."""

Place = tuple[int, int, int]
"""(episode, annotation, step) of a transition."""


@dataclass(frozen=True)
class Correction:
    """What a person says about the transitions [step, stop) of an episode under one of its wordings.

    Raises:
        UsageError: for numbers that cannot be a place.
    """

    episode: int
    step: int
    value: float
    """On the label set's own scale."""
    stop: int | None = None
    """The first transition that is not meant; `step + 1` if not given."""
    annotation: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        _require_place(self.episode, self.step, self.end, self.annotation)

    @property
    def end(self) -> int:
        """`stop` in force."""
        return self.step + 1 if self.stop is None else self.stop

    @property
    def places(self) -> Iterator[Place]:
        """Each transition that is meant."""
        return ((self.episode, self.annotation, step) for step in range(self.step, self.end))


@dataclass(frozen=True)
class Corrected:
    """A label set after its corrections changed."""

    path: Path
    labels: LabelSet
    corrections: LabelSet
    changed: int
    """Transitions whose correction was set, changed or taken back."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which label set."""

    run: Positional[Path]
    """The run folder that holds the labels."""
    name: Positional[str]
    """Name of the label set, e.g. "rg_vlm"."""


@dataclass(frozen=True, kw_only=True)
class SetConfig(Config):
    """What is right, and where."""

    episode: int
    """Number of the episode, from 0."""
    step: int
    """Number of the transition in the episode, from 0."""
    value: float
    """The right value, on the label set's own scale (RG-VLM: 0 to 10)."""
    stop: int | None = None
    """Set all transitions from --step up to, but without, this one."""
    annotation: int = 0
    """Which of the episode's wordings is meant."""
    note: str = ""
    """Why, in words; kept with the label."""


@dataclass(frozen=True, kw_only=True)
class UnsetConfig(Config):
    """Which corrections are taken back."""

    episode: int
    """Number of the episode, from 0."""
    step: int
    """Number of the transition in the episode, from 0."""
    stop: int | None = None
    """All transitions from --step up to, but without, this one."""
    annotation: int = 0
    """Which of the episode's wordings is meant."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Config):
    """Where corrections are read from."""

    file: Positional[Path]
    """CSV file (UTF-8, commas) with the columns episode, step, value and, if wanted, stop, annotation, note."""


@callable_with_settings(SetConfig)
def set_label(config: SetConfig) -> Corrected:
    """Sets labels by hand and merges them into the label set.

    Raises:
        UsageError: for a value outside the scale, or an episode or transition that the dataset does not have.
        RunError, DatasetError: if the label set or its dataset is not there, damaged or changed.
    """
    correction = Correction(config.episode, config.step, config.value, config.stop, config.annotation, config.note)
    return _corrected(config, lambda target: target.with_corrections([(correction, "")]))


@callable_with_settings(ImportConfig)
def import_labels(config: ImportConfig) -> Corrected:
    """Sets the labels that a CSV file lists, all of them or none.

    Raises:
        UsageError: for a file that cannot be read or a row that is wrong, with its line number.
        RunError, DatasetError: as `set_label`.
    """
    rows = read_corrections(config.file)
    return _corrected(config, lambda target: target.with_corrections([(row, f"{config.file}, line {line}") for line, row in rows]))


@callable_with_settings(UnsetConfig)
def unset_label(config: UnsetConfig) -> Corrected:
    """Takes corrections back: the rater's labels count again.

    Raises:
        UsageError: if none of the transitions was set by hand.
        RunError, DatasetError: as `set_label`.
    """
    stop = config.step + 1 if config.stop is None else config.stop
    _require_place(config.episode, config.step, stop, config.annotation)
    return _corrected(config, lambda target: target.without(config.episode, config.annotation, config.step, stop))


@callable_with_settings(Config)
def list_labels(config: Config) -> list[tuple[Label, Label | None]]:
    """What was set by hand, and the rater's label of the same transition, if there is one. Raises RunError."""
    target = _Target(Run.open(config.run), config.name)
    was = _by_place(target.machine.labels)
    return [(label, was.get(_place(label))) for label in target.corrections.labels]


def merge(run: Run, name: str, label_set: LabelSet) -> LabelSet:
    """`label_set`, freshly made by a rater, with what was set by hand in the label set `name` of the run. To be called before the label
    set is written; keeps the rater's labels beside it, so that corrections can be taken back.

    Raises:
        RunError: if the corrections cannot be read, belong to another dataset, or do not fit the scale of `label_set` or what it is about.
        WriteFailed: if the disk is full.
    """
    path = _path(run, name, "corrections")
    if not path.is_file():
        return label_set
    corrections = LabelSet.read(path)
    cure = f"Move it away, or label under another --name; see: guerdon labels list {run.path} {name}"
    if corrections.metadata.get("dataset") != label_set.metadata.get("dataset"):
        raise RunError("holds corrections of labels of another dataset", where=str(path), cure=cure)
    others = sorted(label_set.units - _CORRECTABLE)
    if others:
        raise RunError(f"holds corrections of transitions, but the new labels are about {others[0]}s", where=str(path), cure=cure)
    low, high = label_set.scale
    for label in corrections.labels:
        if label.value is None or label.unit != "transition" or not low <= label.value <= high:
            place = f"episode {label.episode}, transition {label.start}"
            raise RunError(
                f"the correction of {place} ({label.value}) does not fit the scale {low:g} to {high:g}", where=str(path), cure=cure
            )
    if corrections.labels:
        label_set.write(_path(run, name, "machine"))
    return corrected(label_set, corrections)


# --- files of corrections -----------------------------------------------------------------------------------------------------------


def read_corrections(path: Path) -> list[tuple[int, Correction]]:
    """The rows of a CSV file and the number of the line each begins in. Raises UsageError, which names the line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise UsageError("is not in UTF-8", where=str(path), cure="Save it as CSV in UTF-8.") from error
        raise UsageError(f"cannot be read: {error.strerror or type(error).__name__}", where=str(path)) from error
    return parse_corrections(text, str(path))


def parse_corrections(text: str, source: str = "the file") -> list[tuple[int, Correction]]:
    """The same for text. Nothing is guessed: a number is written in plain digits, with a point for fractions.

    Raises:
        UsageError: for a header that lacks a column or has an unknown one, a row that does not fit it, or a transition that is set twice.
    """
    rows = _rows(text, source)
    line, header = next(rows, (1, []))
    names = [field.strip() for field in header]
    if not set(_REQUIRED) <= set(names) <= set(COLUMNS) or len(set(names)) != len(names):
        cure = f"It names the columns {', '.join(_REQUIRED)} and, if wanted, {', '.join(COLUMNS[3:])}, separated by commas."
        raise UsageError("is no header of corrections", where=f"{source}, line {line}", cure=cure)
    found: list[tuple[int, Correction]] = []
    taken: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for line, fields in rows:
        correction = _correction(names, fields, f"{source}, line {line}")
        earlier = taken.setdefault((correction.episode, correction.annotation), [])
        for start, stop, first in earlier:
            if correction.step < stop and start < correction.end:
                what = f"sets transitions of episode {correction.episode} that line {first} sets already"
                raise UsageError(what, where=f"{source}, line {line}", cure="Keep one of the two.")
        earlier.append((correction.step, correction.end, line))
        found.append((line, correction))
    if not found:
        raise UsageError("holds no corrections", where=source)
    return found


def _rows(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, and the line each begins in."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error:
            raise UsageError(
                "is no CSV: look for a quotation mark that is not closed or not doubled", where=f"{source}, line {line}"
            ) from None
        if fields is None:
            return
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _correction(names: Sequence[str], fields: Sequence[str], where: str) -> Correction:
    if len(fields) != len(names):
        raise UsageError(f"has {len(fields)} fields, the header has {len(names)}", where=where)
    row = dict(zip(names, fields, strict=True))

    def whole(name: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(row[name].strip()):
            raise UsageError(f"'{name}' is a whole number, not {_quoted(row[name])}", where=where)
        return int(row[name])

    if not _NUMBER.fullmatch(row["value"].strip()):
        cure = "Write plain digits, with a point for fractions."
        raise UsageError(f"'value' is a number, not {_quoted(row['value'])}", where=where, cure=cure)
    stop = whole("stop") if row.get("stop", "").strip() else None
    annotation = whole("annotation") if row.get("annotation", "").strip() else 0
    try:
        return Correction(whole("episode"), whole("step"), float(row["value"]), stop, annotation, row.get("note", "").strip())
    except UsageError as error:
        raise UsageError(error.what, where=error.where or where, cure=error.cure) from None


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= 40 else repr(text[:40]) + "..."


def _require_place(episode: int, step: int, stop: int, annotation: int) -> None:
    if min(episode, step, annotation) < 0:
        raise UsageError(f"episodes, steps and annotations count from 0, got {episode}, {step} and {annotation}")
    if stop <= step:
        raise UsageError(f"the transitions from {step} up to, but without, {stop} are none", cure="Give a --stop above --step, or none.")


# --- merging ------------------------------------------------------------------------------------------------------------------------


class _Target:
    """A label set of a run, taken apart into what the rater and what a person said."""

    def __init__(self, run: Run, name: str) -> None:
        """Raises RunError if the parts are not there, damaged, or do not belong together."""
        self.run, self.name = run, name
        self.path = part_path(run, "labels", name, kind="label set", cure="Make one with: guerdon label")
        merged = LabelSet.read(self.path)
        path = _path(run, name, "corrections")
        nothing = LabelSet([], {"kind": "corrections", **{key: merged.metadata.get(key) for key in ("dataset", "scale", "method")}})
        self.corrections = LabelSet.read(path) if path.is_file() else nothing
        self.machine = merged
        path = _path(run, name, "machine")
        if "machine" in merged.metadata:
            self.machine = LabelSet.read(path)
            if self.machine.fingerprint != merged.metadata["machine"]:
                cure = "Label again: the answers lie in the store, and the corrections are kept."
                raise RunError("is not what the label set was corrected from", where=str(path), cure=cure)
        self.manifest = run.require(self.path, {"dataset": run.dataset_fingerprint})
        if self.manifest["results"].get("fingerprint") != merged.fingerprint and not self._was_cut_short(merged):
            raise RunError("is not what its manifest says: it was changed or damaged", where=str(self.path), cure="Label again.")

    def _was_cut_short(self, merged: LabelSet) -> bool:
        """Whether the last change of a correction was killed before the manifest was written; the label set itself is whole then."""
        path = _path(self.run, self.name, "machine")
        if not self.corrections.labels or not path.is_file():
            return False
        machine = LabelSet.read(path)
        return merged.fingerprint in (machine.fingerprint, corrected(machine, self.corrections).fingerprint)

    def with_corrections(self, given: Sequence[tuple[Correction, str]]) -> tuple[LabelSet, int]:
        """The corrections with more of them, each with its place in a file, and how many changed. Raises UsageError for one that does not
        fit scale or dataset."""
        dataset = dataset_of(self.run)
        infos: dict[int, EpisodeInfo] = {}
        for correction, where in given:
            self._require_on_scale(correction.value, where)
            _require_in_dataset(correction, dataset, infos, where)
        machine = _by_place(self.machine.labels)
        by_subtask = _by_subtask(self.machine, dataset)
        fresh: dict[Place, Label] = {}
        for correction, _ in given:
            info = infos[correction.episode]
            for place in correction.places:
                fresh[place] = _human_label(correction, place, machine.get(place), info, by_subtask=by_subtask)
        before = _by_place(self.corrections.labels)
        return self._of(before | fresh), sum(before.get(place) != label for place, label in fresh.items())

    def without(self, episode: int, annotation: int, start: int, stop: int) -> tuple[LabelSet, int]:
        """The corrections without those of some transitions, and how many these were. Raises UsageError if there are none."""
        before = _by_place(self.corrections.labels)
        kept = {place: label for place, label in before.items() if place[:2] != (episode, annotation) or not start <= place[2] < stop}
        if len(kept) == len(before):
            steps = f"transition {start}" if stop == start + 1 else f"transitions {start} to {stop - 1}"
            cure = f"What was: guerdon labels list {self.run.path} {self.name}"
            raise UsageError(f"{steps} of episode {episode} (annotation {annotation}) was not set by hand", where=str(self.path), cure=cure)
        return self._of(kept), len(before) - len(kept)

    def write(self, corrections: LabelSet) -> LabelSet:
        """Writes all parts, in an order in which a kill at any moment loses neither the rater's labels nor the corrections."""
        label_set = corrected(self.machine, corrections)
        if corrections.labels:
            self.machine.write(_path(self.run, self.name, "machine"))
            corrections.write(_path(self.run, self.name, "corrections"))
        label_set.write(self.path)
        results = {
            **self.manifest["results"],
            "states": dict(label_set.counts()),
            "coverage": label_set.coverage,
            "corrections": len(corrections.labels),
            "fingerprint": label_set.fingerprint,
        }
        provenance = self.manifest.get("provenance")
        kept = provenance if isinstance(provenance, dict) else {}
        self.run.finish(self.path, Manifest(self.manifest["config"], self.manifest["inputs"], results, kept))
        if not corrections.labels:
            _path(self.run, self.name, "corrections").unlink(missing_ok=True)
            _path(self.run, self.name, "machine").unlink(missing_ok=True)
        return label_set

    def _of(self, labels: Mapping[Place, Label]) -> LabelSet:
        return LabelSet([labels[place] for place in sorted(labels)], self.corrections.metadata)

    def _require_on_scale(self, value: float, where: str) -> None:
        low, high = self.machine.scale
        if not math.isfinite(value) or not low <= value <= high:
            raise UsageError(f"a label of '{self.name}' lies between {low:g} and {high:g}, not at {value:g}", where=where)
        if _has_classes(self.machine) and not float(value).is_integer():
            raise UsageError(f"a label of '{self.name}' is one of the classes {low:g} to {high:g}, not {value:g}", where=where)


def _corrected(config: Config, change: Callable[[_Target], tuple[LabelSet, int]]) -> Corrected:
    run = Run.open(config.run)
    with _one_at_a_time(run):
        target = _Target(run, config.name)
        units = sorted(target.machine.units - _CORRECTABLE)
        if units:
            raise UsageError(f"its labels are about {units[0]}s; only labels of transitions are set by hand", where=str(target.path))
        corrections, changed = change(target)
        return Corrected(target.path, target.write(corrections), corrections, changed)


@contextmanager
def _one_at_a_time(run: Run) -> Iterator[None]:
    """Lets other commands that correct labels of this run wait, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder = os.open(run.path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _has_classes(label_set: LabelSet) -> bool:
    """Whether the labels are classes, not numbers that may lie between two of them."""
    method = str(label_set.metadata.get("method", ""))
    return method in discover.names("methods") and discover.load("methods", method).vote == "majority"


def _require_in_dataset(correction: Correction, dataset: Dataset, infos: dict[int, EpisodeInfo], where: str) -> None:
    if not correction.episode < len(dataset):
        raise UsageError(f"there is no episode {correction.episode}; the dataset has {len(dataset)}, counted from 0", where=where)
    info = infos.setdefault(correction.episode, dataset.episode(correction.episode))
    if correction.end > info.length:
        what = f"episode {info.index} has {info.length} transitions, counted from 0; there is no transition {correction.end - 1}"
        raise UsageError(what, where=where)
    wordings = max(1, len(info.annotations))
    if correction.annotation >= wordings:
        raise UsageError(
            f"episode {info.index} has {wordings} annotations, counted from 0; there is no {correction.annotation}", where=where
        )


def _by_subtask(machine: LabelSet, dataset: Dataset) -> bool:
    """Whether the rater judged by the words of sub-tasks."""
    infos: dict[int, EpisodeInfo] = {}
    for label in machine.labels:
        if label.episode not in infos:
            infos[label.episode] = dataset.episode(label.episode)
        annotations = infos[label.episode].annotations
        if annotations and label.instruction != annotations[label.annotation].instruction:
            return True
    return False


def _human_label(correction: Correction, place: Place, machine: Label | None, info: EpisodeInfo, *, by_subtask: bool) -> Label:
    """The label of one transition, with the words that it was judged by, or would have been if the rater had been asked about it."""
    episode, annotation, step = place
    words = info.annotations[annotation].instruction if info.annotations else ""
    if by_subtask and info.annotations:
        words = next((span.text for span in info.annotations[annotation].spans if span.start <= step < span.stop), words)
    return Label(
        unit="transition",
        episode=episode,
        start=step,
        stop=step + 1,
        annotation=annotation,
        instruction=machine.instruction if machine else words,
        views=machine.views if machine else (),
        state="human",
        value=float(correction.value),
        rationale=correction.note,
    )


def _by_place(labels: Iterable[Label]) -> dict[Place, Label]:
    """The first label about each transition."""
    found: dict[Place, Label] = {}
    for label in labels:
        for step in range(label.start, label.stop) if label.unit in ("transition", "segment") else ():
            found.setdefault((label.episode, label.annotation, step), label)
    return found


def _place(label: Label) -> Place:
    return label.episode, label.annotation, label.start


def _path(run: Run, name: str, part: str = "") -> Path:
    return run.part("labels", f"{name}.{part}.parquet" if part else f"{name}.parquet")
