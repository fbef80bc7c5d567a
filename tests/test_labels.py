"""Label sets on disk and their projection to transitions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guerdon.errors import RunError
from guerdon.labels import LabelSet, compatible, in_order, transition_values
from guerdon.records import Label, canonical_json, digest

METADATA = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "scripted", "dataset": "s256:memory"}


FIELDS = [
    "annotation", "answered", "asked", "cause", "episode", "instruction", "probabilities", "question", "rationale", "spread", "start",
    "state", "stop", "unit", "value", "views",
]  # fmt: skip
"""Of a label of one thing; a pair has three more."""


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
    whole = canonical_json([[getattr(each, name) for name in FIELDS] for each in some])
    assert LabelSet(some, METADATA).fingerprint == digest("guerdon labels 1", canonical_json(METADATA), whole)
    assert LabelSet([], METADATA).fingerprint == digest("guerdon labels 1", canonical_json(METADATA), "[]")


def test_large_label_sets_are_written_and_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guerdon.labels._AT_ONCE", 3)
    for count in (0, 1, 3, 8):
        written = LabelSet([label(number, 1.0) for number in range(count)], METADATA)
        written.write(tmp_path / "a.parquet")
        assert LabelSet.read(tmp_path / "a.parquet") == written


# --- labels of pictures, segments and pairs -----------------------------------------------------------------------------------------


def picture(number: int, value: float | None, **changes: object) -> Label:
    return label(0, value, unit="observation", start=number, stop=number, **changes)


def pair(value: float | None, second: tuple[int, int, int] = (2, 7, 7), **changes: object) -> Label:
    episode, start, stop = second
    return label(0, value, unit="pair", start=4, stop=4, episode_b=episode, start_b=start, stop_b=stop, **changes)


def test_labels_of_every_unit_are_written_and_read_back(tmp_path: Path) -> None:
    labels = [
        picture(1, 2.0),
        picture(2, None),
        label(0, 1.0, unit="segment", stop=50, probabilities=(0.0, 1.0)),
        pair(0.5),
        pair(None, (0, 9, 9), state="unreadable", cause="unreadable"),
        replace(pair(1.0, (1, 3, 11)), start=5, stop=13),
    ]
    written = LabelSet(labels, {**METADATA, "levels": ["Bad", "Good"]})
    written.write(tmp_path / "x.parquet")
    read = LabelSet.read(tmp_path / "x.parquet")
    assert (list(read.labels), read.metadata, read.fingerprint) == (labels, written.metadata, written.fingerprint)
    assert read.units == {"observation", "segment", "pair"}
    assert read.coverage == 4 / 6
    assert read.counts() == {"labelled": 4, "failed: timeout": 1, "unreadable: unreadable": 1}
    assert LabelSet([], METADATA).units == frozenset()


def test_a_fingerprint_tells_pairs_apart_and_knows_nothing_of_them_elsewhere() -> None:
    whole = LabelSet([pair(1.0)], METADATA).fingerprint
    assert len({whole, *(LabelSet([pair(1.0, second)], METADATA).fingerprint for second in ((1, 7, 7), (2, 6, 7), (2, 7, 8)))}) == 4
    mixed = [picture(3, 1.0), pair(1.0)]
    names = [[*FIELDS], sorted([*FIELDS, "episode_b", "start_b", "stop_b"])]
    as_json = canonical_json([[getattr(each, name) for name in chosen] for each, chosen in zip(mixed, names, strict=True)])
    assert LabelSet(mixed, METADATA).fingerprint == digest("guerdon labels 1", canonical_json(METADATA), as_json)


def test_label_sets_from_before_there_were_pairs_are_read(tmp_path: Path) -> None:
    """They lack three columns, and their fingerprints stand in manifests."""
    written = LabelSet([label(0, 7.0), label(1, None)], METADATA)
    written.write(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table.drop_columns(["episode_b", "start_b", "stop_b"]), tmp_path / "old.parquet")
    assert LabelSet.read(tmp_path / "old.parquet") == written
    assert LabelSet.read(tmp_path / "old.parquet").fingerprint == written.fingerprint
    pq.write_table(table.drop_columns(["stop_b"]), tmp_path / "torn.parquet")
    with pytest.raises(RunError, match="no label set of guerdon"):
        LabelSet.read(tmp_path / "torn.parquet")


def test_a_pair_without_its_second_one_is_refused(tmp_path: Path) -> None:
    LabelSet([pair(1.0)], METADATA).write(tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    lost = table.set_column(table.schema.get_field_index("start_b"), "start_b", pa.array([None], pa.int64()))
    pq.write_table(lost, tmp_path / "x.parquet")
    with pytest.raises(RunError, match="contradicts itself"):
        LabelSet.read(tmp_path / "x.parquet")


def test_a_picture_counts_for_the_transition_that_led_to_it() -> None:
    values = transition_values(LabelSet([picture(1, 2.0), picture(3, 0.0), picture(3, 1.0), picture(4, None)], METADATA), {0: 4})
    np.testing.assert_array_equal(values[0, 0], np.array([2, np.nan, 0.5, np.nan], np.float32))


def test_a_segment_counts_for_all_its_transitions() -> None:
    segments = [label(0, 2.0, unit="segment", stop=3), label(1, 0.0, unit="segment", stop=4)]
    values = transition_values(LabelSet(segments, METADATA), {0: 5})
    np.testing.assert_array_equal(values[0, 0], np.array([2, 1, 1, 0, np.nan], np.float32))


@pytest.mark.parametrize("wrong", [picture(5, 1.0), picture(1, 1.0, episode=3)])
def test_pictures_outside_the_dataset_are_refused(wrong: Label) -> None:
    with pytest.raises(RunError, match=r"observation \d of episode \d, which the dataset does not have"):
        transition_values(LabelSet([wrong], METADATA), {0: 4})


def test_no_transition_leads_to_the_first_picture() -> None:
    with pytest.raises(RunError, match="observation 0 of episode 0, which no transition leads to"):
        transition_values(LabelSet([picture(0, 1.0)], METADATA), {0: 4})


def test_preferences_give_no_transition_a_value() -> None:
    with pytest.raises(RunError, match=r"preferences: its labels say which of two is better.*guerdon fit"):
        transition_values(LabelSet([pair(1.0)], METADATA), {0: 4, 2: 9}, source="preferences")


def test_labels_are_sorted_by_both_of_a_pair() -> None:
    labels = [pair(1.0, (2, 7, 7)), pair(0.0, (0, 9, 9)), picture(4, 1.0), pair(0.0, (2, 6, 6))]
    found = [(each.unit, each.episode_b, each.start_b) for each in sorted(labels, key=in_order)]
    assert found == [("observation", None, None), ("pair", 0, 9), ("pair", 2, 6), ("pair", 2, 7)]


# --- label sets that are used together ----------------------------------------------------------------------------------------------

MEANING = {**METADATA, "levels": ["Bad", "Good"], "rater_settings": [{"temperature": 0.0}]}


def test_label_sets_of_one_meaning_go_together() -> None:
    same = LabelSet([label(1, 1.0)], {**MEANING, "machine": "s256:x", "scale": [0, 10], "levels": ("Bad", "Good")})
    compatible([LabelSet([], MEANING), same, same])
    compatible([same])
    compatible([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "s256:other"}, "1 and 3 differ in the dataset (s256:memory and s256:other)"),
        ({"method": "ratings"}, "differ in the method (rg-vlm and ratings)"),
        ({"version": "2"}, "differ in the prompts (1 and 2)"),
        ({"scale": [0, 2]}, "differ in the scale ([0,10] and [0,2])"),
        ({"levels": ["Good", "Bad"]}, 'differ in the names of the classes (["Bad","Good"] and ["Good","Bad"])'),
        ({"levels": None}, "differ in the names of the classes"),
        ({"rater": "google:gemini"}, "differ in the rater (scripted and google:gemini)"),
        ({"rater_settings": [{"temperature": 1.0}]}, "differ in the rater's settings"),
    ],
)
def test_label_sets_of_different_meanings_are_not_mixed(change: dict[str, object], message: str) -> None:
    with pytest.raises(RunError) as caught:
        compatible([LabelSet([], MEANING), LabelSet([], MEANING), LabelSet([], {**MEANING, **change})])
    assert message in caught.value.what
    assert caught.value.cure
