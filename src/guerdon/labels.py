"""Label sets: what a method read from a rater's answers, on disk and in memory; votes, corrections by hand, projection to transitions.

A label set is one Parquet file, `labels/NAME.parquet`, one row a label (columns: the fields of `guerdon.records.Label`). Its metadata
says what the numbers mean: method and version, scale, rater, fingerprint of the dataset. Labels without a value stay in the file with
their state and cause: they are counted, shown, and never become a number.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from guerdon.errors import RunError
from guerdon.records import STATES_WITH_VALUE, Cause, Label, Pieces, State, Unit, canonical_json, digest
from guerdon.runs import writing

_SCHEMA = pa.schema(
    [
        ("unit", pa.string()), ("episode", pa.int64()), ("start", pa.int64()), ("stop", pa.int64()),
        ("episode_b", pa.int64()), ("start_b", pa.int64()), ("stop_b", pa.int64()),
        ("annotation", pa.int64()), ("instruction", pa.string()), ("views", pa.list_(pa.string())),
        ("state", pa.string()), ("cause", pa.string()), ("value", pa.float32()),
        ("probabilities", pa.list_(pa.float32())), ("spread", pa.float32()), ("asked", pa.int64()), ("answered", pa.int64()),
        ("rationale", pa.string()), ("question", pa.string()),
    ]
)  # fmt: skip
_FIELDS = {field.name for field in fields(Label)}
_OF_PAIRS = frozenset({"episode_b", "start_b", "stop_b"})
"""Fields that only labels of pairs have; label sets that were written before there were pairs lack the columns."""
_METADATA_KEY = b"guerdon"


_AT_ONCE = 65_536
"""Labels that are turned into columns, or back, at a time."""


@dataclass(frozen=True)
class LabelSet:
    """Labels and what they mean.

    `metadata` holds: "method", "version", "scale" [low, high], "rater" (name for tables), "dataset" (fingerprint); where labels are classes
    with names, also "levels", the names from the lowest class to the highest.
    """

    labels: Sequence[Label]
    metadata: Mapping[str, Any]

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest possible value."""
        low, high = self.metadata["scale"]
        return float(low), float(high)

    @property
    def fingerprint(self) -> str:
        """Digest of labels and metadata as a file holds them: changes with any of them, and is the same before and after writing."""
        return digest("guerdon labels 1", canonical_json(dict(self.metadata)), Pieces(self._as_json))

    def _as_json(self) -> Iterator[bytes]:
        """A JSON list of the labels, each a list of its fields; what only pairs have stands in labels of pairs alone."""
        of_a_pair = sorted(_FIELDS)
        of_one = sorted(_FIELDS - _OF_PAIRS)
        before = b"["
        for label in self.labels:
            names = of_a_pair if label.unit == "pair" else of_one
            yield before + canonical_json([_as_stored(getattr(label, name)) for name in names]).encode("utf-8", "surrogatepass")
            before = b","
        yield b"]" if self.labels else b"[]"

    def write(self, path: Path) -> None:
        """Writes Parquet, whole or not at all. Raises WriteFailed."""
        batches = [_batch(self.labels[begin : begin + _AT_ONCE]) for begin in range(0, len(self.labels), _AT_ONCE)]
        write_table(path, pa.Table.from_batches(batches, schema=_SCHEMA), self.metadata)

    @classmethod
    def read(cls, path: Path) -> LabelSet:
        """Reads what `write` wrote. Raises RunError for a missing, damaged or foreign file."""
        table, metadata = read_table(path, "label set", _SCHEMA, optional=_OF_PAIRS)
        batches = (batch.to_pylist() for batch in table.to_batches(max_chunksize=_AT_ONCE))
        rows = ({name: value for name, value in row.items() if name in _FIELDS} for batch in batches for row in batch)
        try:
            return cls([_label(row) for row in rows], metadata)
        except (TypeError, ValueError) as error:
            raise RunError(f"holds a label that contradicts itself ({error})", where=str(path), cure="Make the label set again.") from error

    @property
    def units(self) -> frozenset[Unit]:
        """What the labels are about; empty for an empty set."""
        return frozenset(label.unit for label in self.labels)

    @property
    def of_single_actions(self) -> bool:
        """Whether the labels are scores of single actions, as opposed to ratings or comparisons of what they led to."""
        return self.units == {"transition"} and not self.metadata.get("levels")

    def counts(self) -> Counter[str]:
        """Number of labels by state; those without a value by state and cause, e.g. "failed: timeout"."""
        return Counter(f"{label.state}: {label.cause}" if label.cause else label.state for label in self.labels)

    @property
    def coverage(self) -> float:
        """Share of the labels that carry a value; 0.0 for an empty set."""
        if not self.labels:
            return 0.0
        return sum(label.state in STATES_WITH_VALUE for label in self.labels) / len(self.labels)


def _batch(labels: Sequence[Label]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [getattr(label, name, None) for label in labels] for name in _SCHEMA.names}
    for name in ("rationale", "instruction"):
        columns[name] = [_storable(text) for text in columns[name]]
    return pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)


def write_table(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Writes a Parquet file of this package, whole or not at all. Raises WriteFailed."""
    described = table.replace_schema_metadata({_METADATA_KEY: canonical_json(dict(metadata))})
    with writing(path) as temporary, temporary.open("wb") as file:  # opened here, because Arrow takes no path that is not UTF-8
        pq.write_table(described, file)


def read_table(path: Path, what: str, schema: pa.Schema, *, optional: frozenset[str] = frozenset()) -> tuple[pa.Table, dict[str, Any]]:
    """A Parquet file of this package, with the columns of `schema` (of the `optional` ones all or none), and its metadata. Raises RunError
    for a missing, damaged or foreign file."""
    if not path.is_file():
        raise RunError(f"there is no such {what}", where=str(path))
    try:
        with path.open("rb") as file:
            table = pq.read_table(file)
        metadata = json.loads((table.schema.metadata or {}).get(_METADATA_KEY, "null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(f"cannot be read as a {what} ({type(error).__name__})", where=str(path), cure="Make it again.") from error
    required = pa.schema([field for field in schema if field.name not in optional])
    if not isinstance(metadata, dict) or not (table.schema.equals(schema) or table.schema.equals(required)):
        raise RunError(f"is a Parquet file, but no {what} of guerdon", where=str(path), cure="Make it again.")
    return table, metadata


def transition_values(
    label_set: LabelSet,
    lengths: Mapping[int, int],
    *,
    column: Literal["value", "spread"] = "value",
    source: str = "the label set",
) -> dict[tuple[int, int], npt.NDArray[np.float32]]:
    """Labels as one number per transition: (episode, annotation) -> (T,) float32 on the label's own scale, NaN where unknown.

    Several labels of one transition (overlapping windows) are averaged over those that carry the number; a label set by hand wins over
    all others of its transition, also where it has no spread. A label of a segment counts for each of its transitions, a label of
    observation k for transition k - 1, which led to it.

    Args:
        lengths: T of each episode that the dataset has.
        column: which number of the labels, their value or their spread over repeats.
        source: what errors call the label set.

    Raises:
        RunError: if a label lies outside its episode, or is about a pair.
    """
    sums: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
    counts: dict[tuple[int, int], npt.NDArray[np.int64]] = {}
    by_hand: dict[tuple[int, int], npt.NDArray[np.bool_]] = {}
    for label in sorted(label_set.labels, key=lambda label: label.state == "human"):
        if label.unit == "pair":
            cure = "Fit a reward model to them (guerdon fit): it gives every transition a value."
            raise RunError("its labels say which of two is better, which gives no transition a value", where=source, cure=cure)
        length = lengths.get(label.episode)
        steps = _transitions(label)
        if length is None or not 0 <= steps.start < steps.stop <= length:
            raise RunError(f"a label is about {_place_of(label)}", where=source)
        key = (label.episode, label.annotation)
        if key not in sums:
            sums[key], counts[key], by_hand[key] = np.zeros(length), np.zeros(length, np.int64), np.zeros(length, bool)
        if label.value is None:
            continue
        if label.state == "human":
            fresh = ~by_hand[key][steps]
            sums[key][steps][fresh] = 0.0
            counts[key][steps][fresh] = 0
            by_hand[key][steps] = True
        number = getattr(label, column)
        if number is not None:
            sums[key][steps] += number
            counts[key][steps] += 1
    return {key: _mean(sums[key], counts[key]) for key in sums}


def _transitions(label: Label) -> slice:
    """The transitions that a label counts for."""
    return slice(label.start - 1, label.stop) if label.unit == "observation" else slice(label.start, label.stop)


def _place_of(label: Label) -> str:
    """Where a label that fits nowhere says that it lies."""
    if label.unit == "observation" and label.start == 0:
        return f"observation 0 of episode {label.episode}, which no transition leads to"
    what = f"observation {label.start}" if label.unit == "observation" else f"transitions {label.start}..{label.stop}"
    return f"{what} of episode {label.episode}, which the dataset does not have"


def _mean(total: npt.NDArray[np.float64], count: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)


def _label(row: dict[str, Any]) -> Label:
    for name in ("views", "probabilities"):
        row[name] = tuple(row[name]) if row[name] is not None else None
    return Label(**{**row, "views": row["views"] or ()})


def _storable(text: str) -> str:
    """A rater may answer with lone surrogates, which no file of UTF-8 text can hold: they are replaced here (the store keeps the bytes)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _as_stored(field: Any) -> Any:
    """A field of a label as it is read back: numbers in single precision, text without lone surrogates."""
    if isinstance(field, float):
        return float(np.float32(field))
    if isinstance(field, str):
        return _storable(field)
    return [_as_stored(item) for item in field] if isinstance(field, tuple) else field


def by_transition(labels: Iterable[Label]) -> dict[tuple[int, int, int], Label]:
    """Labels of unit "transition" by (episode, annotation, transition); the last one wins."""
    return {(label.episode, label.annotation, label.start): label for label in labels if label.unit == "transition"}


def in_order(label: Label) -> tuple[int, ...]:
    """For sorting labels: by episode, annotation and time, pairs also by where the second one is."""
    second = (label.episode_b, label.start_b, label.stop_b)
    return (label.episode, label.annotation, label.start, label.stop, *(-1 if place is None else place for place in second))


_MEANING = {
    "dataset": "the dataset", "method": "the method", "version": "the prompts", "scale": "the scale", "levels": "the names of the classes",
    "rater": "the rater", "rater_settings": "the rater's settings",
}  # fmt: skip
"""Metadata that must agree before labels of several sets are taken for answers to one question."""


def compatible(sets: Sequence[LabelSet]) -> None:
    """Checks that several label sets may be used together, e.g. to fit one reward model: mixed prompts, scales or raters would pass for
    disagreement about behaviour.

    Raises:
        RunError: if two of them differ in dataset, method, prompts, scale, names of classes, rater or its settings; says in what.
    """
    for number, label_set in enumerate(sets[1:], start=2):
        for key, what in _MEANING.items():
            first, other = sets[0].metadata.get(key), label_set.metadata.get(key)
            if canonical_json(first) != canonical_json(other):
                differ = f"label sets 1 and {number} differ in {what} ({_short(first)} and {_short(other)})"
                raise RunError(differ, cure="Use label sets of one dataset, method and rater together, and the others by themselves.")


def _short(value: Any) -> str:
    """A metadata value, short enough to read."""
    text = "none" if value is None else value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 80 else text[:80] + "..."


# --- votes --------------------------------------------------------------------------------------------------------------------------

_RANK: Mapping[State, int] = {"skipped": 0, "failed": 1, "refused": 2, "unreadable": 3}
"""Which reason is told if several are equally frequent: the one that is closest to an answer."""


def vote(
    answers: Sequence[Sequence[Label]], rule: Literal["median", "majority"], *, scale: tuple[float, float] | None = None
) -> list[Label]:
    """One label a unit from several independent answers about the same units.

    The value is taken over the answers that carry one, whatever became of the others:

        median      the middle one; the mean of the middle two of an even number
        majority    the class that most answers gave. Of classes that tie it is the one nearest to the median of all votes, and the lower
                    of two that are equally near; of preferences that tie it is 0.5, no preference.

    `spread` is the population standard deviation of those values, None if there is only one. Without any value the label has the state and
    cause that occur most often; of equally frequent ones, `unreadable` comes before `refused`, that before `failed`, then the first.
    `asked` and `answered` are sums. Words and question are those of the first answer whose value is nearest to the vote.

    Args:
        answers: one list of labels for each answer (`Method.read`); all lists are about the same units in the same order.
        rule: `Method.vote`.
        scale: `Method.scale`. With `rule` "majority", `probabilities` holds the share of the votes for each class, the whole numbers from
            the lowest to the highest of the scale; an answer that says itself how likely each class is counts by that. Without a scale,
            they go from 0 (or the lowest class of all answers, if that is below) to the highest class of all answers. Those of pairs are
            0, 0.5 and 1, whatever the scale.

    Raises:
        ValueError: if there are no answers, they are about different units, or a vote for a class is no whole number on the scale.
    """
    if not answers:
        raise ValueError("a vote needs at least one answer")
    units = {tuple((label.unit, *in_order(label)) for label in labels) for labels in answers}
    if len(units) > 1:
        raise ValueError("the answers of a vote must be about the same units in the same order")
    classes = _classes(answers, scale) if rule == "majority" else None
    return [_voted(labels, classes) for labels in zip(*answers, strict=True)]


_PREFERENCES = (0.0, 0.5, 1.0)


def _classes(answers: Sequence[Sequence[Label]], scale: tuple[float, float] | None) -> Sequence[float]:
    votes = [label.value for labels in answers for label in labels if label.value is not None]
    if any(label.unit == "pair" for labels in answers for label in labels):
        for value in votes:
            if value not in _PREFERENCES:
                raise ValueError(f"a vote for one of two is 0, 0.5 or 1, got {value}")
        return _PREFERENCES
    low, high = scale or (min(0.0, *votes, 0.0), max(0.0, *votes, 0.0))
    for value in votes:
        if not float(value).is_integer() or not low <= value <= high:
            raise ValueError(f"a vote for a class is a whole number from {low:g} to {high:g}, got {value}")
    return range(int(low), int(high) + 1)


def _voted(labels: Sequence[Label], classes: Sequence[float] | None) -> Label:
    """The vote on one unit: by majority if there are classes, else the median."""
    asked, answered = sum(label.asked for label in labels), sum(label.answered for label in labels)
    values = [label.value for label in labels if label.value is not None]
    if not values:
        spoken = _most_frequent_reason(labels)
        return replace(spoken, asked=asked, answered=answered, spread=None, probabilities=None)
    middle = statistics.median(values)
    value, probabilities = middle, None
    if classes is not None:
        counts = Counter(values)
        value = min(counts, key=lambda each: (-counts[each], abs(each - middle), each))
        if labels[0].unit == "pair" and list(counts.values()).count(counts[value]) > 1:
            value = 0.5
        probabilities = _shares(labels, classes)
    spoken = min((label for label in labels if label.value is not None), key=lambda label: abs((label.value or 0.0) - value))
    spread = float(np.std(values)) if len(values) > 1 else None
    return replace(
        spoken, state="labelled", cause=None, value=float(value), probabilities=probabilities, spread=spread, asked=asked, answered=answered
    )


def _shares(labels: Sequence[Label], classes: Sequence[float]) -> tuple[float, ...]:
    """The mean over the answers with a value of how likely each class is: what the answer says itself, or all on the class it gave."""
    votes = [
        label.probabilities if label.probabilities is not None and len(label.probabilities) == len(classes)
        else tuple(float(label.value == each) for each in classes)
        for label in labels
        if label.value is not None
    ]  # fmt: skip
    return tuple(sum(shares) / len(votes) for shares in zip(*votes, strict=True))


def _most_frequent_reason(labels: Sequence[Label]) -> Label:
    """The first label with the state and cause that most of them have."""
    counts: Counter[tuple[State, Cause | None]] = Counter((label.state, label.cause) for label in labels)
    return max(labels, key=lambda label: (counts[label.state, label.cause], _RANK.get(label.state, 0)))


# --- corrections by hand ------------------------------------------------------------------------------------------------------------


def corrected(machine: LabelSet, corrections: LabelSet) -> LabelSet:
    """`machine` with the labels that were set by hand in the place of those about the same transitions.

    A machine label is dropped if every transition that it is about was set by hand. The metadata gain "machine" and "corrections", the
    fingerprints of the two sets; without corrections the set is returned as it is.

    Args:
        corrections: labels of unit "transition" in the state "human".
    """
    if not corrections.labels:
        return machine
    by_hand = {(label.episode, label.annotation, label.start) for label in corrections.labels}
    kept = [
        label
        for label in machine.labels
        if label.unit not in ("transition", "segment")
        or not all((label.episode, label.annotation, step) in by_hand for step in range(label.start, label.stop))
    ]
    labels = sorted([*kept, *corrections.labels], key=in_order)
    origin = {"machine": machine.fingerprint, "corrections": corrections.fingerprint}
    return LabelSet(labels, {**machine.metadata, **origin})
