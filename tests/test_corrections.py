"""Labels set by hand: they win, they survive labelling again, and taking them back brings the rater's labels back."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guerdon
from guerdon import cli
from guerdon.errors import RunError, UsageError
from guerdon.evaluation.raters import measure
from guerdon.labels import LabelSet, corrected, transition_values
from guerdon.recipes import labels as recipe
from guerdon.recipes.data import label_set_of
from guerdon.records import Label
from guerdon.report import contents
from guerdon.runs import Manifest, Run, read_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a run with labels and rewards."""
    folder = tmp_path_factory.mktemp("made")
    guerdon.collect_babyai(out=folder / "data", level="small", tasks=2, demonstrations=1, lengths=(1, 2))
    dataset = guerdon.open_dataset(folder / "data")
    run = Run.open_or_create(folder / "run", dataset_path=dataset.path, fingerprint=dataset.fingerprint)
    labels = [
        Label(
            "transition",
            info.index,
            step,
            step + 1,
            f"do {info.index}",
            "labelled",
            value=float((3 * step + info.index) % 11),
            views=("full",),
        )
        for info in dataset.episodes()
        for step in range(info.length)
    ]
    meaning = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "scripted", "dataset": dataset.fingerprint}
    label_set, path = LabelSet(labels, meaning), run.part("labels", "rg_vlm.parquet")
    label_set.write(path)
    run.finish(path, Manifest({}, {"dataset": dataset.fingerprint}, {"fingerprint": label_set.fingerprint, "requests": 9}))
    guerdon.reward(run=folder / "run", name="both")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def label_again(made: Path, run: Path) -> LabelSet:
    """What `guerdon label` does at its end, with labels fresh from a rater."""
    opened = Run.open(run)
    machine = LabelSet.read(made / "run/labels/rg_vlm.parquet")
    merged = recipe.merge(opened, "rg_vlm", machine)
    merged.write(run / "labels/rg_vlm.parquet")
    return merged


def _names(run: Path) -> list[str]:
    return [path.name for path in (run / "labels").iterdir()]


def values(run: Path) -> dict[tuple[int, int], tuple[str, float | None]]:
    found = label_set_of(Run.open(run), "rg_vlm").labels
    assert len({(label.episode, label.start) for label in found}) == len(found), "one label a transition"
    return {(label.episode, label.start): (label.state, label.value) for label in found}


def correct(run: Path, **settings: object) -> recipe.Corrected:
    return recipe.set_label(**{"run": run, "name": "rg_vlm", "episode": 0, "step": 1, "value": 2.5, **settings})  # type: ignore[arg-type]


def test_a_label_set_by_hand_takes_the_place_of_the_raters(run: Path) -> None:
    before, machine = values(run), label_set_of(Run.open(run), "rg_vlm")
    changed = correct(run, note="it turned away")
    assert values(run) == {**before, (0, 1): ("human", 2.5)}
    (human,) = [label for label in changed.labels.labels if label.state == "human"]
    assert (human.rationale, human.instruction, human.views) == ("it turned away", machine.labels[1].instruction, machine.labels[1].views)
    manifest = read_json(run / "labels/rg_vlm.json")
    assert manifest["results"]["fingerprint"] == changed.labels.fingerprint != machine.fingerprint
    assert manifest["results"]["states"] == {"labelled": len(before) - 1, "human": 1}
    assert manifest["results"]["corrections"] == 1
    assert transition_values(changed.labels, {0: 99, 1: 99})[0, 0][1] == 2.5


def test_unset_brings_the_raters_label_back_to_the_byte(run: Path) -> None:
    before = {name: (run / "labels" / name).read_bytes() for name in _names(run)}
    correct(run, stop=4)
    correct(run, episode=1, step=0, value=0)
    recipe.unset_label(run=run, name="rg_vlm", episode=0, step=1, stop=4)
    assert {place: what for place, what in values(run).items() if what[0] == "human"} == {(1, 0): ("human", 0.0)}
    recipe.unset_label(run=run, name="rg_vlm", episode=1, step=0)
    assert sorted(_names(run)) == sorted(before)
    assert (run / "labels/rg_vlm.parquet").read_bytes() == before["rg_vlm.parquet"]


def test_corrections_survive_labelling_again(made: Path, run: Path) -> None:
    correct(run, stop=3)
    kept = (run / "labels/rg_vlm.corrections.parquet").read_bytes()
    merged = label_again(made, run)
    assert [label.value for label in merged.labels if label.state == "human"] == [2.5, 2.5]
    assert (run / "labels/rg_vlm.corrections.parquet").read_bytes() == kept
    assert merged.fingerprint == read_json(run / "labels/rg_vlm.json")["results"]["fingerprint"]
    recipe.unset_label(run=run, name="rg_vlm", episode=0, step=1, stop=3)
    assert values(run) == values(made / "run")


def test_without_corrections_merging_changes_nothing(made: Path, run: Path) -> None:
    machine = LabelSet.read(made / "run/labels/rg_vlm.parquet")
    assert recipe.merge(Run.open(run), "rg_vlm", machine) is machine
    assert not (run / "labels/rg_vlm.machine.parquet").exists()


def test_what_was_made_from_the_labels_is_stale(run: Path) -> None:
    assert contents.stale_parts(contents.read_contents(run)) == []
    correct(run)
    found = contents.read_contents(run)
    assert contents.stale_parts(found) == ["rewards/both was made from another labels/rg_vlm than there is now; make it again."]
    assert found.problems == (), "the files beside a label set are no label sets"
    guerdon.reward(run=run, name="both")
    assert contents.stale_parts(contents.read_contents(run)) == []


def test_the_last_word_counts(run: Path) -> None:
    assert correct(run, stop=3).changed == 2
    assert correct(run, step=2, value=9, note="better").changed == 1
    assert correct(run, step=2, value=9, note="better").changed == 0
    assert [(label.start, label.value, was.value) for label, was in recipe.list_labels(run=run, name="rg_vlm") if was] == [
        (1, 2.5, values_of_rater(run)[0, 1]), (2, 9.0, values_of_rater(run)[0, 2]),
    ]  # fmt: skip


def values_of_rater(run: Path) -> dict[tuple[int, int], float | None]:
    return {(label.episode, label.start): label.value for label in LabelSet.read(run / "labels/rg_vlm.machine.parquet").labels}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"value": 10.5}, "lies between 0 and 10, not at 10.5"),
        ({"value": -1.0}, "lies between 0 and 10, not at -1"),
        ({"value": float("nan")}, "lies between 0 and 10, not at nan"),
        ({"episode": 2}, "there is no episode 2; the dataset has 2"),
        ({"episode": -1}, "count from 0"),
        ({"step": 500}, "there is no transition 500"),
        ({"stop": 500}, "there is no transition 499"),
        ({"stop": 1}, "are none"),
        ({"annotation": 1}, "has 1 annotations"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(run: Path, wrong: dict[str, object], message: str) -> None:
    before = sorted((path, path.read_bytes()) for path in (run / "labels").iterdir())
    with pytest.raises(UsageError) as caught:
        correct(run, **wrong)
    assert message in str(caught.value)
    assert sorted((path, path.read_bytes()) for path in (run / "labels").iterdir()) == before


def test_what_was_not_set_cannot_be_taken_back(run: Path) -> None:
    with pytest.raises(UsageError, match=r"transition 1 of episode 0 \(annotation 0\) was not set by hand"):
        recipe.unset_label(run=run, name="rg_vlm", episode=0, step=1)
    with pytest.raises(RunError, match="no label set is called 'rg_vlm_2'"):
        correct(run, name="rg_vlm_2")


def test_damage_is_noticed(run: Path) -> None:
    correct(run)
    machine = run / "labels/rg_vlm.machine.parquet"
    LabelSet([], LabelSet.read(machine).metadata).write(machine)
    with pytest.raises(RunError, match="is not what the label set was corrected from"):
        correct(run)


@pytest.mark.parametrize("last", ["rg_vlm.corrections.parquet", "rg_vlm.parquet", "rg_vlm.machine.parquet"])
@pytest.mark.parametrize("change", ["set", "unset"])
def test_a_kill_between_two_files_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch, last: str, change: str) -> None:
    correct(run, step=0, value=1)
    write = LabelSet.write

    def write_then_die(self: LabelSet, path: Path) -> None:
        write(self, path)
        if path.name == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LabelSet, "write", write_then_die)
        try:
            if change == "set":
                correct(run)
            else:
                recipe.unset_label(run=run, name="rg_vlm", episode=0, step=0)
        except KeyboardInterrupt:
            pass
    correct(run, step=3, value=7)
    expected = {(0, 0): 1.0, (0, 3): 7.0}
    if change == "set" and last != "rg_vlm.machine.parquet":
        expected[0, 1] = 2.5
    if change == "unset" and last != "rg_vlm.parquet":
        del expected[0, 0]  # only the label set is written when the last correction goes, so the command ran to its end
    assert {place: value for place, (state, value) in values(run).items() if state == "human"} == expected
    recipe.unset_label(run=run, name="rg_vlm", episode=0, step=0, stop=4)
    assert {state for state, _ in values(run).values()} == {"labelled"}


def test_a_rater_is_not_measured_by_what_a_person_said(made: Path, run: Path) -> None:
    dataset = guerdon.open_dataset(made / "data")
    before = measure(label_set_of(Run.open(run), "rg_vlm"), dataset, resamples=1)
    after = measure(correct(run, stop=4).labels, dataset, resamples=1)
    assert after.labels == before.labels - 3
    assert after.states == {"labelled": before.labels - 3}


def test_what_is_said_where_nobody_was_asked_has_the_words_of_its_sub_task(made: Path, run: Path) -> None:
    """Else a model that reads the words of sub-tasks could not be fitted to it."""
    dataset = guerdon.open_dataset(made / "data")
    info = next(info for info in dataset.episodes() if len(info.annotations[0].spans) > 1)
    whole, (first, last) = info.annotations[0].instruction, info.annotations[0].spans
    step = last.start
    for judged_by, expected in ((first.text, last.text), (whole, whole)):
        label = Label("transition", info.index, 0, 1, judged_by, "labelled", value=3.0)
        label_set = LabelSet([label], {**LabelSet.read(made / "run/labels/rg_vlm.parquet").metadata})
        path = Run.open(run).part("labels", "rg_vlm.parquet")
        label_set.write(path)
        Run.open(run).finish(path, Manifest({}, {"dataset": dataset.fingerprint}, {"fingerprint": label_set.fingerprint, "requests": 1}))
        done = recipe.set_label(run=run, name="rg_vlm", episode=info.index, step=step, value=5)
        assert [label.instruction for label in done.labels.labels] == [judged_by, expected]
        recipe.unset_label(run=run, name="rg_vlm", episode=info.index, step=step)


def test_a_segment_keeps_its_label_where_nobody_spoke() -> None:
    meaning = {"method": "m", "version": "1", "scale": [0, 10], "rater": "r", "dataset": "d"}
    segments = [Label("segment", 0, 0, 3, "go", "labelled", value=4.0), Label("segment", 0, 3, 5, "go", "labelled", value=6.0)]
    by_hand = [Label("transition", 0, step, step + 1, "go", "human", value=1.0) for step in (1, 3, 4)]
    merged = corrected(LabelSet(segments, meaning), LabelSet(by_hand, meaning))
    assert [label.unit for label in merged.labels] == ["segment", "transition", "transition", "transition"]
    assert transition_values(merged, {0: 5})[0, 0].tolist() == [4, 1, 4, 1, 1]


# --- tables -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "episode,step,value\n0,1,2.5\n1,0,10\n",
        "\ufeffepisode,step,value\r\n0,1,2.5\r\n\r\n1,0,10\r\n",
        '"episode","step","value","note"\n"0","1","2.5",""\n1,0,10,\n',
        "value, step ,episode,stop,annotation,note\n2.5,1,0,2,0,\n10,0,1,,,\n",
    ],
    ids=["plain", "BOM and CRLF", "quoted", "other order and empty fields"],
)
def test_tables_of_every_make_are_read(run: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_bytes(text.encode())
    changed = recipe.import_labels(run=run, name="rg_vlm", file=tmp_path / "c.csv")
    assert changed.changed == 2
    assert {place: what[1] for place, what in values(run).items() if what[0] == "human"} == {(0, 1): 2.5, (1, 0): 10.0}


def test_notes_may_hold_anything() -> None:
    text = 'episode,step,value,note\n0,1,2,"two\nlines, and a ""word"""\n0,2,3,x\n'
    (first, one), (second, _) = recipe.parse_corrections(text)
    assert (first, one.note) == (2, 'two\nlines, and a "word"')
    assert second == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: is no header of corrections"),
        ("episode,step\n0,1\n", "line 1: is no header"),
        ("episode;step;value\n0;1;2\n", "line 1: is no header"),
        ("episode,step,value,score\n0,1,2,3\n", "line 1: is no header"),
        ("episode,step,value,value\n0,1,2,3\n", "line 1: is no header"),
        ("episode,step,value\n", "holds no corrections"),
        ("episode,step,value\n0,1,2\n0,2\n", "line 3: has 2 fields, the header has 3"),
        ("episode,step,value\n\n0,1,8/10\n", "line 3: 'value' is a number, not '8/10'"),
        ("episode,step,value\n0,1,\n", "line 2: 'value' is a number, not ''"),
        ('episode,step,value\n0,1,"7,5"\n', "line 2: 'value' is a number, not '7,5'"),
        ("episode,step,value\n0,1,nan\n", "line 2: 'value' is a number, not 'nan'"),
        ("episode,step,value\n0,1,1_0\n", "line 2: 'value' is a number, not '1_0'"),
        ("episode,step,value\n0,1.0,2\n", "line 2: 'step' is a whole number, not '1.0'"),
        ("episode,step,value\n-1,1,2\n", "line 2: 'episode' is a whole number, not '-1'"),
        ("episode,step,value\n٣,1,2\n", "line 2: 'episode' is a whole number, not '٣'"),
        ("episode,step,value,stop\n0,3,2,3\n", "line 2: the transitions from 3 up to, but without, 3 are none"),
        ("episode,step,value,stop\n0,1,2,4\n0,3,5,\n", "line 3: sets transitions of episode 0 that line 2 sets already"),
        ('episode,step,value\n0,1,2\n0,2,"3\n', "line 3: is no CSV"),
        ("episode,step,value\n0,1," + "9" * 5000 + "\n", "line 2: 'value' is a number"),
        ("episode,step,value\n0,1,11\n", "line 2: a label of 'rg_vlm' lies between 0 and 10, not at 11"),
        ("episode,step,value\n7,1,1\n", "line 2: there is no episode 7"),
        ("episode,step,value\n0,1,1\n0,999,1\n", "line 3: episode 0 has"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(run: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        recipe.import_labels(run=run, name="rg_vlm", file=tmp_path / "c.csv")
    assert message in str(caught.value)
    assert str(tmp_path / "c.csv") in str(caught.value)
    assert not (run / "labels/rg_vlm.corrections.parquet").exists()


@pytest.mark.parametrize("content", [b"\xff\xfee\x00", b"episode,step,value\n0,1,\xe9\n"])
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(UsageError, match="UTF-8"):
        recipe.read_corrections(tmp_path / "c.csv")
    with pytest.raises(UsageError, match="No such file or directory"):
        recipe.read_corrections(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="Is a directory"):
        recipe.read_corrections(tmp_path)


_FIELD = st.text(max_size=6) | st.sampled_from(["0", "1", "7.5", "-3", "1e3", "nan", "inf", "0x1", "٣", "1_0", "½", '"', "\r", "\x00", ""])
_HEADERS = st.sampled_from(["episode,step,value", "value,step,episode,note", "episode,step,value,stop,annotation,note"])


@given(
    _HEADERS, st.lists(st.lists(_FIELD, max_size=7), max_size=4), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n", "\r"])
)
def test_junk_never_becomes_a_number(header: str, rows: list[list[str]], comma: str, end: str) -> None:
    text = end.join([header, *(comma.join(row) for row in rows)])
    try:
        found = recipe.parse_corrections(text)
    except UsageError:
        return
    plain = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    assert len(found) == len(plain) - 1
    for (_, correction), fields in zip(found, plain[1:], strict=True):
        row = dict(zip(plain[0], fields, strict=True))
        for name, number in {"episode": correction.episode, "step": correction.step, "value": correction.value}.items():
            assert row[name].strip().lstrip("+-").replace(".", "", 1).isascii()
            assert row[name].strip().lstrip("+-").replace(".", "", 1).isdigit()
            assert float(row[name]) == number


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        recipe.parse_corrections(text)
    except UsageError:
        return
    raise AssertionError("random text is no table of corrections")


# --- the command line ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def test_the_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--episode", "0", "--step", "1"]
    assert cli.main(["labels", "set", str(run), "rg_vlm", *place, "--value", "3", "--note", "it turned away"]) == 0
    assert "1 set; 1 label is set by hand now" in capsys.readouterr().out
    (tmp_path / "c.csv").write_text("episode,step,value\n1,0,4\n")
    assert cli.main(["labels", "import", str(run), "rg_vlm", str(tmp_path / "c.csv")]) == 0
    assert "1 set; 2 labels are set by hand now" in capsys.readouterr().out
    assert cli.main(["labels", "list", str(run), "rg_vlm"]) == 0
    assert "it turned away" in capsys.readouterr().out
    assert cli.main(["labels", "unset", str(run), "rg_vlm", *place]) == 0
    assert cli.main(["labels", "unset", str(run), "rg_vlm", *place]) == 2
    assert "was not set by hand" in capsys.readouterr().err
    assert cli.main(["labels", "set", str(run), "rg_vlm", *place, "--value", "-1"]) == 2
    assert "lies between 0 and 10, not at -1" in capsys.readouterr().err
    assert cli.main(["labels", "lose", str(run)]) == 2
    assert cli.main(["labels", "set", str(tmp_path), "rg_vlm", *place, "--value", "1"]) == 1


@pytest.mark.parametrize("action", ["", "set", "import", "unset", "list"])
def test_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(["labels", *action.split(), "--help"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 0
    assert f"usage: guerdon labels {action}".rstrip() in capsys.readouterr().out


OTHERS = {
    "segment": {"start": 0, "stop": 3},
    "observation": {"start": 2, "stop": 2},
    "pair": {"start": 2, "stop": 2, "episode_b": 1, "start_b": 1, "stop_b": 1},
}


def of_unit(run: Path, unit: str) -> LabelSet:
    """A label set about something else than transitions, as `guerdon label` would put it into the run."""
    opened = Run.open(run)
    state = {"instruction": "go", "state": "labelled", "value": 1.0}
    meaning = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "scripted", "dataset": opened.dataset_fingerprint}
    label_set, path = LabelSet([Label(unit, 0, **OTHERS[unit], **state)], meaning), opened.part("labels", "others.parquet")  # type: ignore[arg-type]
    label_set.write(path)
    opened.finish(path, Manifest({}, {"dataset": opened.dataset_fingerprint}, {"fingerprint": label_set.fingerprint}))
    return label_set


@pytest.mark.parametrize("unit", sorted(OTHERS))
def test_only_labels_of_transitions_are_set_by_hand(run: Path, unit: str, tmp_path: Path) -> None:
    machine = of_unit(run, unit)
    before = sorted(_names(run))
    (tmp_path / "c.csv").write_text("episode,step,value\n0,1,2\n")
    for change in (
        lambda: correct(run, name="others"),
        lambda: recipe.unset_label(run=run, name="others", episode=0, step=1),
        lambda: recipe.import_labels(run=run, name="others", file=tmp_path / "c.csv"),
    ):
        with pytest.raises(UsageError, match=f"its labels are about {unit}s; only labels of transitions are set by hand"):
            change()
    assert recipe.list_labels(run=run, name="others") == []
    assert sorted(_names(run)) == before
    assert recipe.merge(Run.open(run), "others", machine) is machine


def test_corrections_are_not_merged_into_labels_of_something_else(run: Path) -> None:
    correct(run)
    with pytest.raises(RunError, match="holds corrections of transitions, but the new labels are about pairs"):
        recipe.merge(Run.open(run), "rg_vlm", of_unit(run, "pair"))
