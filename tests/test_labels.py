"""Label sets on disk and their projection to transitions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.errors import RunError
from guerdon.labels import _FIELDS, LabelSet, transition_values
from guerdon.records import Label, canonical_json, digest

METADATA = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "scripted", "dataset": "s256:memory"}


def label(step: int, value: float | None, **changes: object) -> Label:
    state = "labelled" if value is not None else "failed"
    base = Label(unit="transition", episode=0, start=step, stop=step + 1, instruction="go", state=state, value=value,
                 cause=None if value is not None else "timeout", views=("full",))  # fmt: skip
    return replace(base, **changes)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    labels = [
        label(0, 7.0, rationale="0: turned towards it", asked=2, answered=2, question="s256:q", spread=0.5, probabilities=(0.25, 0.75)),
        label(1, None),
        label(2, None, state="unreadable", cause="unreadable"),
    ]
    written = LabelSet(labels, METADATA)
    written.write(tmp_path / "labels" / "rg_vlm.parquet")
    read = LabelSet.read(tmp_path / "labels" / "rg_vlm.parquet")
    assert list(read.labels) == labels
    assert read.metadata == METADATA
    assert read.fingerprint == written.fingerprint
    assert list((tmp_path / "labels").iterdir()) == [tmp_path / "labels" / "rg_vlm.parquet"]


def test_counts_and_coverage_tell_unknown_from_known() -> None:
    labels = LabelSet([label(0, 0.0), label(1, None), label(2, None, state="refused", cause="blocked"), label(3, 5.0)], METADATA)
    assert labels.counts() == {"labelled": 2, "failed: timeout": 1, "refused: blocked": 1}
    assert labels.coverage == 0.5
    assert LabelSet([], METADATA).coverage == 0.0


def test_a_lone_surrogate_does_not_stop_a_label_set(tmp_path: Path) -> None:
    LabelSet([label(0, 1.0, rationale="odd \udcff")], METADATA).write(tmp_path / "x.parquet")
    assert LabelSet.read(tmp_path / "x.parquet").labels[0].rationale == "odd ?"


def test_unlabelled_transitions_are_unknown_not_zero() -> None:
    values = transition_values(LabelSet([label(0, 0.0), label(2, None)], METADATA), {0: 4})
    np.testing.assert_array_equal(values[0, 0], np.array([0, np.nan, np.nan, np.nan], np.float32))


def test_repeats_are_averaged_and_a_human_wins() -> None:
    labels = [label(0, 2.0), label(0, 4.0), label(1, 9.0, state="human"), label(1, 1.0), label(1, None)]
    values = transition_values(LabelSet(labels, METADATA), {0: 2})
    np.testing.assert_array_equal(values[0, 0], np.array([3, 9], np.float32))


def test_annotations_are_kept_apart() -> None:
    values = transition_values(LabelSet([label(0, 2.0), label(0, 8.0, annotation=1)], METADATA), {0: 1})
    assert {key: float(array[0]) for key, array in values.items()} == {(0, 0): 2.0, (0, 1): 8.0}


@pytest.mark.parametrize("wrong", [label(4, 1.0), label(0, 1.0, episode=3)])
def test_labels_outside_the_dataset_are_refused(wrong: Label) -> None:
    with pytest.raises(RunError, match="which the dataset does not have"):
        transition_values(LabelSet([wrong], METADATA), {0: 4})


@pytest.mark.parametrize("changes", [{"value": None}, {"state": "failed"}, {"value": float("nan")}, {"state": "perhaps"}])
def test_a_label_checks_itself(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"label|state"):
        replace(label(0, 1.0), **changes)


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(RunError, match="no such label set"):
        LabelSet.read(path)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(RunError, match="cannot be read as a label set"):
        LabelSet.read(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(RunError, match="no label set of guerdon"):
        LabelSet.read(path)


def test_the_fingerprint_is_that_of_one_json_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken piece by piece, because a large label set would not fit into memory twice."""
    some = [label(number, 1.0) for number in range(5)]
    whole = canonical_json([[getattr(each, name) for name in sorted(_FIELDS)] for each in some])
    assert LabelSet(some, METADATA).fingerprint == digest("guerdon labels 1", canonical_json(METADATA), whole)
    assert LabelSet([], METADATA).fingerprint == digest("guerdon labels 1", canonical_json(METADATA), "[]")


def test_large_label_sets_are_written_and_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guerdon.labels._AT_ONCE", 3)
    for count in (0, 1, 3, 8):
        written = LabelSet([label(number, 1.0) for number in range(count)], METADATA)
        written.write(tmp_path / "a.parquet")
        assert LabelSet.read(tmp_path / "a.parquet") == written
