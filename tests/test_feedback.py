"""Feedback sessions: what is asked, what is paid, what is kept, what a model learns, and that a killed run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guerdon
from guerdon.asking.store import Store
from guerdon.datasets import open_dataset
from guerdon.datasets.minari import RecordedEpisode
from guerdon.errors import DatasetError, RunError, UnknownName, UsageError
from guerdon.labels import LabelSet
from guerdon.metrics import spearman
from guerdon.providers import scripted
from guerdon.providers.scripted import Scripted
from guerdon.recipes import feedback
from guerdon.recipes.feedback import Config, Sessions, compare_segments, fitting_preset, rate_segments
from guerdon.records import Annotation, Quote, Usage
from guerdon.rewards.fitting import Config as Fitting
from guerdon.rewards.steps import Look, StepArrays, joined, judgements
from guerdon.runs import Run
from tests.memory import MemoryDataset, MemoryEpisode

WORLD = {"name": "arm", "task": "drawer-open-v3"}
WORDS = "open the drawer"
SEES = Look(vectors={"state": 3})
SMALL = Fitting(width=16, members=2, learning_rate=1e-2, batch=64, patience=3, least_updates=20)
QUICK: dict[str, Any] = {"fitting": SMALL, "least_updates": 20, "quiet": True}


def segment(
    quality: Sequence[float], source: int | None = None, *, words: str = WORDS, pictures: int = 0, number: int = 0, known: bool = True
) -> RecordedEpisode:
    """A segment with these qualities of the observations that its transitions led to, told by its state and its pictures' brightness."""
    given = np.array([quality[0], *quality], np.float32)
    good = np.nan_to_num(given)
    random = np.random.default_rng((1, 0 if source is None else source, number))
    frames = np.clip(255 * good, 0, 255)[:, None, None, None] * np.ones((pictures, pictures, 3)) if pictures else None
    return RecordedEpisode(
        frames={} if frames is None else {"corner": frames.astype(np.uint8)},
        vectors={"state": np.concatenate([good[:, None], random.normal(size=(len(good), 2))], 1).astype(np.float32)},
        actions=random.uniform(-1, 1, (len(quality), 2)).astype(np.float32),
        rewards=10.0 * good[1:].astype(np.float64),
        terminated=False,
        truncated=True,
        annotations=(Annotation(words),),
        metadata={} if source is None else {"episode": source, "step": number},
        privileged={"quality": given, "success": np.zeros(len(good), np.float32)} if known else {},
    )


def drawn(session: int, count: int = 20, *, length: int = 1, best: float = 1.0, **changes: Any) -> list[RecordedEpisode]:
    """Segments of any quality up to `best`, from twenty episodes of the agent for each session."""
    random = np.random.default_rng((0, session))
    return [
        segment(random.uniform(0, best, length).tolist(), 20 * session + k % 20, number=k, **changes) for k in range(count)
    ]  # fmt: skip


def begin(out: Path, sees: Look = SEES, *, seed: int = 0, world: Mapping[str, Any] = WORLD, **settings: Any) -> Sessions:
    given = QUICK | settings
    return Sessions(out, Config(**given), look=sees, seed=seed, environment=world)


def resumed(out: Path, sees: Look = SEES, *, last: int | None = None, **settings: Any) -> Sessions:
    given = QUICK | settings
    return Sessions.resume(out, Config(**given), look=sees, seed=0, environment=WORLD, last=last)


def states(count: int = 300) -> StepArrays:
    vector = np.random.default_rng(5).uniform(0, 1, (count, 3)).astype(np.float32)
    nothing = np.zeros((count, 0), np.float32)
    return StepArrays({}, np.zeros((count, 1), np.int64), vector, nothing, np.zeros(count, np.int64), ("",))


def labels_of(out: Path, number: int, name: str = "rating") -> LabelSet:
    return LabelSet.read(out / "sessions" / f"{number:04d}" / "run" / "labels" / f"{name}.parquet")


def values(labels: LabelSet) -> list[float | None]:
    return [label.value for label in labels.labels]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]


# --- the scripted teacher -----------------------------------------------------------------------------------------------------------


class Judged(MemoryDataset):
    """Episodes with these true qualities of the observations that their transitions led to."""

    def __init__(self, qualities: Sequence[Sequence[float]], words: Sequence[str] = ()) -> None:
        super().__init__([MemoryEpisode(len(each), words[number] if words else WORDS) for number, each in enumerate(qualities)])
        self._qualities = qualities

    def privileged(self, index: int) -> Mapping[str, np.ndarray[Any, Any]]:
        return {"quality": np.array([0.0, *self._qualities[index]], np.float32)}


def rated(qualities: Sequence[Sequence[float]], *, seed: int = 0, session: int = 1, **settings: Any) -> list[float | None]:
    return [label.value for label in rate_segments(Judged(qualities), Config(**settings), seed=seed, session=session)]


def test_classes_are_cut_at_equal_widths_or_at_edges_of_ones_own() -> None:
    qualities = [[0.0], [0.3], [0.4], [0.65], [0.7], [1.0], [0.0, 0.9, 0.36], [0.9, 0.9, 0.9]]  # means of the last two: 0.42 and 0.9
    assert rated(qualities) == [0, 0, 1, 1, 2, 2, 1, 2]
    assert rated(qualities, levels=2) == [0, 0, 0, 1, 1, 1, 0, 1]
    assert rated(qualities, edges=(0.1, 0.95)) == [0, 1, 1, 1, 1, 2, 1, 1]
    assert rated(qualities, levels=5) == [0, 1, 2, 3, 3, 4, 2, 4]


def test_the_error_models_of_ratings_err_as_they_are_named() -> None:
    qualities = [[(k % 3) / 2] for k in range(300)]
    true = np.array([k % 3 for k in range(300)])
    found = {name: rated(qualities, teacher=name, rate=0.3) for name in feedback.TEACHERS["rating"]}
    assert found["perfect"] == true.tolist()
    moved = {name: np.array(given, float) - true for name, given in found.items()}
    assert 0.2 < (moved["mistake"] != 0).mean() < 0.4
    assert {abs(each) for each in moved["mistake"]} == {0, 1, 2}
    assert set(moved["adjacent"]) == {-1, 0, 1}
    assert 0.12 < (moved["adjacent"] != 0).mean() < 0.3, "a move beyond the last class is none"
    assert set(moved["optimism"]) == {0, 1}
    assert 0.1 < (moved["optimism"] != 0).mean() < 0.3
    assert set(moved["stochastic"]) == {-1, 0, 1}, "unsure near the edges"
    silent = np.isnan(np.array(found["skip"], float))
    assert 0.2 < silent.mean() < 0.4
    assert np.array_equal(np.array(found["skip"], float)[~silent], true[~silent])


def test_a_repeated_session_gets_the_same_labels_and_another_one_others() -> None:
    qualities = [[k / 50] for k in range(50)]
    settings: dict[str, Any] = {"teacher": "mistake", "rate": 0.5}
    first = rated(qualities, **settings)
    assert rated(qualities, **settings) == first
    assert rated(qualities, session=2, **settings) != first
    assert rated(qualities, seed=1, **settings) != first
    fewer = rated(qualities[:20], **settings)
    assert fewer == first[:20], "what is said of a segment does not depend on how many there are"


def preferred(qualities: Sequence[Sequence[float]], **settings: Any) -> list[float | None]:
    return [label.value for label in compare_segments(Judged(qualities), Config(method="preference", **settings), seed=0, session=1)]


def test_the_teachers_of_preferences() -> None:
    # Returns 0.3 and 0.9; 0.9 and 0.3; 0.9 and 0.95; 0.05 and 0.1; 0.5 and 0.5. Their mean is 0.5.
    pairs = [[0.1] * 3, [0.3] * 3, [0.3] * 3, [0.1] * 3, [0.9, 0, 0], [0, 0, 0.95], [0.05, 0, 0], [0, 0.1, 0], [0.5, 0, 0], [0, 0, 0.5]]
    oracle = preferred(pairs)
    assert oracle == [1, 0, 1, 1, 0.5]
    assert preferred(pairs, teacher="skip", rate=0.3) == [1, 0, 1, None, 0.5], "of both returns up to 0.15 nothing is said"
    assert preferred(pairs, teacher="equal", rate=0.2) == [1, 0, 0.5, 0.5, 0.5], "differences up to 0.1 are none"
    assert preferred(pairs, teacher="myopic", discount=0.5) == [1, 0, 1, 1, 1]
    turned = preferred(pairs, teacher="mistake", rate=1.0)
    assert turned == [0, 1, 0, 0, 0.5]
    many = [[0.5], [0.6]] * 400
    noisy = preferred(many, teacher="noisy", temperature=0.1)
    assert np.mean(np.array(noisy, float)) == pytest.approx(0.731059, abs=0.06), "the logistic function of 0.1 / 0.1"


def test_pairs_have_the_same_words_and_an_odd_one_is_left_out() -> None:
    words = ["open", "close", "open", "close", "open", "push"]
    dataset = Judged([[0.1 * k] for k in range(6)], words)
    found = compare_segments(dataset, Config(method="preference"), seed=0, session=1)
    assert [(label.episode, label.episode_b, label.value, label.instruction) for label in found] == [(0, 2, 1, "open"), (1, 3, 1, "close")]
    assert {(label.start, label.stop, label.start_b, label.stop_b) for label in found} == {(1, 1, 1, 1)}


def test_a_teacher_needs_the_true_quality(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    with pytest.raises(DatasetError, match=r"episode 0: has no recorded 'quality'.* --vlm"):
        sessions.hold(1, [segment([0.5], known=False)])
    unknown = begin(tmp_path / "nan")
    found = unknown.hold(1, [segment([float("nan")], number=0), segment([0.5], number=1)])
    assert (found.asked, found.obtained) == (2, 1), "what is not known gets no class"


# --- what a session leaves ----------------------------------------------------------------------------------------------------------


def test_a_session_is_archived_judged_and_learned_from(tmp_path: Path) -> None:
    sessions = begin(tmp_path, teacher="skip", rate=0.2)
    assert sessions.model is None
    first = sessions.hold(1, drawn(1, 48))
    assert first.asked == 48
    assert 28 < first.obtained < 48
    assert first.obtained == sum(first.classes.values())
    assert (first.calls, first.dollars, first.kept, first.not_fitted) == (0, 0.0, False, "")
    second = sessions.hold(2, drawn(2, 48))
    assert second.all_classes == {name: first.classes[name] + second.classes[name] for name in ("Bad", "Average", "Good")}
    assert (sessions.obtained, sessions.requests) == (first.obtained + second.obtained, 96)
    assert sessions.dollars == 0.0
    learned = sessions.score(states())
    assert learned.shape == (300,)
    assert learned.dtype == np.float32
    assert spearman(learned, states().vector[:, 0]) > 0.8
    found = labels_of(tmp_path, 1)
    assert found.metadata["rater"] == "teacher:skip"
    assert found.metadata["levels"] == ["Bad", "Average", "Good"]
    assert found.metadata["rater_settings"][0]["rate"] == 0.2
    assert found.counts()["refused: refusal"] == 48 - first.obtained
    said = lines(tmp_path)
    assert [line["session"] for line in said] == [1, 2]
    assert (said[1]["asked"], said[1]["obtained"], said[1]["classes"]) == (48, second.obtained, second.classes)


@pytest.mark.slow
def test_its_run_folder_is_one_that_guerdon_reads(tmp_path: Path) -> None:
    begin(tmp_path).hold(1, drawn(1, 30, length=4))
    run = tmp_path / "sessions" / "0001" / "run"
    fitted = guerdon.fit(run=run, vectors=("state",), name="again", quiet=True, fitting=SMALL)
    assert fitted.results["labels"] == 30
    page = guerdon.report(run=run)
    assert "teacher:perfect" in Path(page).read_text() if isinstance(page, str | Path) else (run / "report.html").is_file()


def test_preferences_of_segments_are_learned_from(tmp_path: Path) -> None:
    sessions = begin(tmp_path, method="preference", fitting=replace(SMALL, loss="ce"))
    result = sessions.hold(1, drawn(1, 80, length=3))
    assert (result.asked, result.obtained) == (40, 40)
    assert set(result.classes) == {"first", "neither", "second"}
    sessions.hold(2, drawn(2, 80, length=3))
    assert spearman(sessions.score(states()), states().vector[:, 0]) > 0.7
    assert {label.unit for label in labels_of(tmp_path, 1, "preference").labels} == {"pair"}


def test_a_model_goes_on_from_the_one_before_and_held_out_labels_stay_so(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    held: set[int] = set()
    learned: set[int] = set()
    last = None
    for number in range(1, 5):
        result = sessions.hold(number, drawn(number % 2, 40, best=0.5 + 0.1 * number))  # sessions 3 and 4: the episodes of 1 and 2 again
        assert sessions.model is not None
        assert result.fitted is not None
        assert result.fitted.get("start") == last
        last = sessions.model.fingerprint
        now = set(sessions.model.training["held_out"])
        assert not held & (set(range(40 * number)) - now)
        assert not learned & now
        held, learned = now, set(range(40 * number)) - now
    assert len(held) >= 5
    group = sessions._judged.group  # type: ignore[union-attr]
    assert not set(group[sorted(held)]) & set(group[sorted(learned)]), "the agent's episodes, whatever session shows them"


def test_there_are_so_many_passes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "passes": 3,
        "least_updates": 1,
        "fitting": replace(SMALL, target=1.0, patience=99, held_out=0, sampler="uniform"),
    }
    sessions = begin(tmp_path / "published", **settings)
    fitted = sessions.hold(1, drawn(1, 40)).fitted
    assert fitted is not None
    assert (fitted["epochs"], fitted["updates"]) == (3, 3)
    fitted = sessions.hold(2, drawn(2, 40)).fitted  # 80 labels are two batches
    assert fitted is not None
    assert (fitted["epochs"], fitted["updates"]) == (3, 6)
    more = begin(tmp_path / "more", **(settings | {"least_updates": 20})).hold(1, drawn(1, 40)).fitted
    assert more is not None
    assert more["updates"] == 20


# --- little to learn from -----------------------------------------------------------------------------------------------------------


def test_without_a_label_there_is_no_model_and_the_run_goes_on(tmp_path: Path) -> None:
    silent = begin(tmp_path, teacher="skip", rate=1.0)
    for number in (1, 2):
        result = silent.hold(number, drawn(number))
        assert (result.asked, result.obtained, result.fitted) == (20, 0, None)
        assert result.not_fitted == "no label was obtained"
        assert result.classes == result.all_classes == {"Bad": 0, "Average": 0, "Good": 0}
    assert silent.model is None
    with pytest.raises(UsageError, match="no reward model yet"):
        silent.score(states())
    assert [line["obtained"] for line in lines(tmp_path)] == [0, 0]
    again = resumed(tmp_path, teacher="skip", rate=1.0)
    assert (again.model, again.requests, again.obtained) == (None, 40, 0)


def test_a_single_class_gives_no_model_until_there_is_another(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    first = sessions.hold(1, drawn(1, best=0.3))
    assert (first.obtained, first.fitted) == (20, None)
    assert first.not_fitted == "all ratings are of one class (by class: 20, 0, 0)"
    assert resumed(tmp_path).model is sessions.model is None
    second = sessions.hold(2, drawn(2))
    assert second.fitted is not None
    model = resumed(tmp_path).model
    assert model is not None
    assert model.training["labels"] == 40, "those of the first session are learned from, too"


def test_the_lowest_class_may_be_empty(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    high = [segment([0.4 + 0.6 * k / 60], k, number=k) for k in range(60)]
    result = sessions.hold(1, high)
    assert result.classes["Bad"] == 0
    assert result.fitted is not None
    rewards = sessions.score(states())
    better = states().vector[:, 0] > 0.4
    assert spearman(rewards[better], states().vector[better, 0]) > 0.7


def test_a_session_without_a_label_leaves_the_model_alone(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    sessions.hold(1, drawn(1))
    model, before = sessions.model, sessions.score(states())
    empty = sessions.hold(2, [segment([float("nan")], number=k) for k in range(5)])
    assert (empty.obtained, empty.fitted) == (0, None)
    assert sessions.model is model
    assert not (tmp_path / "sessions" / "0002" / "model").exists()
    np.testing.assert_array_equal(resumed(tmp_path).score(states()), before)
    third = sessions.hold(3, drawn(3))
    assert third.fitted is not None
    assert model is not None
    assert third.fitted["start"] == model.fingerprint


# --- killed and repeated ------------------------------------------------------------------------------------------------------------


def test_a_repeated_session_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = begin(tmp_path)
    results = [sessions.hold(number, drawn(number)) for number in (1, 2)]
    expected, said = sessions.score(states()), (tmp_path / "sessions.jsonl").read_bytes()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be asked or fitted")

    monkeypatch.setattr(Sessions, "_ask", never)
    monkeypatch.setattr(Sessions, "_fit", never)
    assert sessions.hold(2, drawn(2)) == results[1]
    anew = begin(tmp_path)
    assert (anew.model, anew.obtained) == (None, 0)
    assert anew.hold(1, drawn(1)) == results[0]
    assert anew.hold(2, drawn(2)).kept
    for same in (anew, resumed(tmp_path)):
        np.testing.assert_array_equal(same.score(states()), expected)
        assert same.results == tuple(results)
        assert (same.obtained, same.requests, same.dollars) == (sessions.obtained, sessions.requests, sessions.dollars)
    assert (tmp_path / "sessions.jsonl").read_bytes() == said


@pytest.mark.parametrize("lost", ["session.json", "model", "run/labels/rating.json", "run", "data", "sessions.jsonl"])
def test_a_session_that_was_killed_anywhere_goes_on_with_equal_numbers(tmp_path: Path, lost: str) -> None:
    sessions = begin(tmp_path, teacher="mistake", rate=0.2)
    sessions.hold(1, drawn(1))
    expected_result, expected = sessions.hold(2, drawn(2)), sessions.score(states())
    lines_before = lines(tmp_path)
    folder = tmp_path / "sessions" / "0002"
    after = ["session.json", "model", "run/labels/rating.json", "run", "data"]
    gone = [tmp_path / "sessions.jsonl"] if lost == "sessions.jsonl" else [folder / name for name in after[: after.index(lost) + 1]]
    for path in gone:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    again = resumed(tmp_path, teacher="mistake", rate=0.2)
    assert again.hold(2, drawn(2)) == expected_result
    np.testing.assert_array_equal(again.score(states()), expected)
    assert lines(tmp_path) == lines_before
    assert (again.hold(3, drawn(3)), again.score(states()).tolist()) == (sessions.hold(3, drawn(3)), sessions.score(states()).tolist())


def test_an_older_checkpoint_finds_its_own_model(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    expected = []
    for number in range(1, 5):
        sessions.hold(number, drawn(number))
        expected.append(sessions.score(states()))
    older = resumed(tmp_path, last=2)
    np.testing.assert_array_equal(older.score(states()), expected[1])
    assert older.obtained == 40
    for number in (3, 4):
        assert older.hold(number, drawn(number)).kept
        np.testing.assert_array_equal(older.score(states()), expected[number - 1])
    with pytest.raises(RunError, match="session 7 is not there"):
        resumed(tmp_path, last=7)


def test_a_session_with_other_segments_is_refused(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    sessions.hold(1, drawn(1))
    with pytest.raises(RunError, match="session 1 is there with other segments"):
        sessions.hold(1, drawn(2))
    for others in (drawn(2), drawn(1)[:-1], drawn(1)[::-1]):
        with pytest.raises(RunError, match="session 1 is there with other segments"):
            begin(tmp_path).hold(1, others)
    sessions.hold(5, drawn(5))
    with pytest.raises(UsageError, match="session 3 cannot follow session 5"):
        sessions.hold(3, drawn(3))
    with pytest.raises(RunError, match="session 5 was held after other sessions"):
        begin(tmp_path).hold(5, drawn(5))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"teacher": "adjacent"}, "rater"),
        ({"vlm": ("scripted:perfect",)}, "rater"),
        ({"levels": 2}, "number of classes"),
        ({"method": "preference"}, "method"),
        ({"rate": 0.3}, "error model"),
        ({"edges": (0.2, 0.5)}, "edges"),
        ({"world": WORLD | {"task": "soccer-v3"}}, "environment"),
        ({"fitting": replace(SMALL, loss="ce")}, "fitting"),
        ({"sees": Look(vectors={"pose": 3})}, "look"),
        ({"seed": 1}, "seed"),
    ],
)
def test_sessions_of_another_kind_are_refused(tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    begin(tmp_path)
    begin(tmp_path, max_labels=5, max_dollars=2.0, passes=10), begin(tmp_path)
    with pytest.raises(RunError, match=f"holds sessions with another {what}"):
        begin(tmp_path, **settings)


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no feedback sessions"):
        resumed(tmp_path)
    begin(tmp_path).hold(1, drawn(1))
    result = tmp_path / "sessions" / "0001" / "session.json"
    whole = result.read_text()
    result.write_text(json.dumps({key: value for key, value in json.loads(whole).items() if key != "before"}))
    with pytest.raises(RunError, match="is damaged"):
        resumed(tmp_path)
    result.write_text(whole)
    model = tmp_path / "sessions" / "0001" / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match="its model has changed"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": 6}, {"edges": (0.5,)}, {"edges": (0.6, 0.5)}, {"rate": 1.5}, {"passes": 0}, {"max_labels": 0}, {"max_dollars": 0.0},
        {"vlm": ("scripted",), "teacher": "perfect"}, {"pessimism": -1.0}, {"temperature": 0.0}, {"transform": "cost"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Config(**wrong)
    with pytest.raises(UnknownName, match="oracle"):
        Config(method="preference", teacher="perfect")


# --- budgets ------------------------------------------------------------------------------------------------------------------------


def test_the_budget_counts_labels_and_not_questions(tmp_path: Path) -> None:
    sessions = begin(tmp_path, teacher="skip", rate=0.5, max_labels=25)
    number = 0
    while not sessions.ended:
        number += 1
        before = sessions.obtained
        assert sessions.hold(number, drawn(number)).asked == min(20, 25 - before), "no more is asked than may be obtained"
    assert sessions.obtained == 25
    assert sessions.requests > 40
    after = sessions.hold(number + 1, drawn(number + 1))
    assert (after.asked, after.not_fitted) == (0, "the budget is used up")
    assert not (tmp_path / "sessions" / f"{number + 1:04d}").exists()
    larger = begin(tmp_path, teacher="skip", rate=0.5, max_labels=200)
    for each in range(1, number + 1):
        assert larger.hold(each, drawn(each)).kept, "a session that a smaller budget cut short stays as it is"
    assert larger.hold(number + 1, drawn(number + 1)).asked == 20


# --- raters -------------------------------------------------------------------------------------------------------------------------


def ask(out: Path, *, look: Look = SEES, **settings: Any) -> Sessions:
    given = {"vlm": ("scripted:perfect",), "store": str(out.parent / "store.sqlite")} | settings
    return begin(out, look, **given)


def sent(tmp_path: Path) -> int:
    """Requests that the store knows to have been sent, for all runs."""
    with Store.open(tmp_path / "store.sqlite") as store:
        return sum(store.costs(run.id).requests for run in store.runs())


def shown(session: int, count: int = 12, **changes: Any) -> list[RecordedEpisode]:
    return drawn(session, count, pictures=16, **changes)


def test_a_rater_sees_the_outcome_of_single_transitions(tmp_path: Path) -> None:
    sessions = ask(tmp_path / "out", look=Look({"corner": (16, 16)}), fitting=replace(SMALL, channels=8, members=1))
    result = sessions.hold(1, shown(1))
    assert (result.asked, result.obtained) == (12, 12)
    assert result.calls == sent(tmp_path) > 12
    found = labels_of(tmp_path / "out", 1)
    assert [(label.unit, label.start, label.stop) for label in found.labels] == [("observation", 1, 1)] * 12
    teacher = begin(tmp_path / "teacher")
    teacher.hold(1, shown(1))
    assert values(found) == values(labels_of(tmp_path / "teacher", 1)), "a perfect rater says what a perfect teacher says"
    arrays = judgements([found], open_dataset(tmp_path / "out" / "sessions" / "0001" / "data"), sessions.look).steps
    assert sessions.score(arrays).shape == (12,)


@pytest.mark.parametrize("method", ["rating", "preference"])
def test_a_rater_sees_whole_segments(tmp_path: Path, method: Any) -> None:
    sessions = ask(tmp_path / "out", method=method)
    result = sessions.hold(1, shown(1, 16, length=3))
    assert result.asked == result.obtained == (16 if method == "rating" else 8)
    found = labels_of(tmp_path / "out", 1, method)
    assert {(label.start, label.stop) for label in found.labels} == {(0, 3)}
    assert {label.unit for label in found.labels} == {"segment" if method == "rating" else "pair"}
    assert sessions.model is not None


def test_pairs_of_single_pictures(tmp_path: Path) -> None:
    sessions = ask(tmp_path / "out", method="preference")
    result = sessions.hold(1, shown(1, 16))
    assert result.asked == result.obtained == 8
    data = open_dataset(tmp_path / "out" / "sessions" / "0001" / "data")
    for label in labels_of(tmp_path / "out", 1, "preference").labels:
        first, second = (data.privileged(index)["quality"][1] for index in (label.episode, label.episode_b or 0))
        assert label.value == float(second > first)
    alone = sessions.hold(2, [segment([0.5], words=f"task {k}", pictures=16) for k in range(3)])
    assert (alone.asked, alone.obtained, alone.classes) == (0, 0, {"first": 0, "neither": 0, "second": 0})


def test_what_was_answered_is_never_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after asking, before anything was learned; and killed on the way, with no label set written."""
    out = tmp_path / "out"
    with monkeypatch.context() as killing:
        killing.setattr(Sessions, "_fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ask(out).hold(1, shown(1))
    asked = sent(tmp_path)
    assert asked >= 24
    assert not (out / "sessions" / "0001" / "session.json").exists()
    result = ask(out).hold(1, shown(1))
    assert (result.obtained, result.calls, sent(tmp_path)) == (12, asked, asked)
    for path in (out / "sessions" / "0001" / "session.json", out / "sessions" / "0001" / "run" / "labels" / "rating.json"):
        path.unlink()
    again = ask(out).hold(1, shown(1))
    assert sent(tmp_path) == asked
    assert replace(again, calls=result.calls) == result
    shutil.rmtree(out)
    ask(out).hold(1, shown(1))
    assert sent(tmp_path) == asked, "the same segments in another folder: all answers lie in the store"


def test_failed_questions_leave_labels_missing(tmp_path: Path) -> None:
    unreliable = replace(Scripted.PRESETS["perfect"], skip=0.4)
    sessions = ask(tmp_path / "out", vlm=("scripted",), rater_settings={"scripted": unreliable}, max_labels=40)
    result = sessions.hold(1, shown(1, 40))
    assert result.asked == 40
    assert 12 < result.obtained < 36
    assert labels_of(tmp_path / "out", 1).counts()["refused: refusal"] == 40 - result.obtained
    assert (sessions.requests, sessions.left) == (40, 40 - result.obtained)
    assert sum(result.classes.values()) == result.obtained, "what failed has no class"


def test_nothing_is_sent_that_could_break_the_ceiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cent = Usage(input_tokens=0, output_tokens=0, dollars=0.01)
    monkeypatch.setattr(scripted, "_FREE", cent)
    monkeypatch.setattr(Scripted, "quote", lambda *_: Quote(0, 0, 0.01))
    sessions = ask(tmp_path / "out", max_dollars=0.4, concurrency=2)
    first = sessions.hold(1, shown(1))  # 12 things, two requests each
    assert (first.obtained, first.stopped) == (12, "")
    assert first.dollars == pytest.approx(0.24)
    second = sessions.hold(2, shown(2))
    assert 0 < second.obtained <= 8, "16 cents are left"
    assert "0.16" in second.stopped
    assert sessions.dollars <= 0.4 + 1e-9
    assert sessions.dollars == pytest.approx(0.01 * sent(tmp_path))
    assert sessions.ended
    assert second.fitted is not None, "the run goes on with what it got"
    assert sessions.hold(3, shown(3)).asked == 0
    more = ask(tmp_path / "out", max_dollars=2.0)
    for number in (1, 2):
        assert more.hold(number, shown(number)).kept
    assert not more.ended
    assert more.hold(3, shown(3)).obtained == 12


def test_presets_are_those_that_were_published() -> None:
    assert fitting_preset("erl-vlm") == Fitting()
    vanilla = fitting_preset("vanilla")
    assert (vanilla.loss, vanilla.sampler, vanilla.weights) == ("ce", "uniform", "none")
    assert fitting_preset("rl-vlm-f").loss == "ce"
    with pytest.raises(UnknownName):
        fitting_preset("other")  # type: ignore[arg-type]


# --- rewards ------------------------------------------------------------------------------------------------------------------------


def test_rewards_are_the_members_mean_in_pieces_and_as_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = begin(tmp_path)
    sessions.hold(1, drawn(1))
    whole = sessions.score(states())
    assert -1 <= whole.min() < whole.max() <= 1
    monkeypatch.setattr("guerdon.rewards._ensemble.VECTORS_AT_ONCE", 7)
    np.testing.assert_allclose(sessions.score(states()), whole, atol=1e-6)
    unit = resumed(tmp_path, transform="unit").score(states())
    np.testing.assert_allclose(unit, (whole + 1) / 2, atol=1e-6)
    careful = resumed(tmp_path, pessimism=1.0).score(states())
    assert (careful <= whole + 1e-6).all()
    assert (careful < whole - 1e-4).any()
    assert len(sessions.score(states(0))) == 0
    with torch.no_grad():
        assert sessions.model is not None
        next(iter(sessions.model.ensemble.parameters())).fill_(float("nan"))
    with pytest.raises(guerdon.errors.RewardError, match="not finite"):
        sessions.score(states())


def test_all_sessions_together_are_their_judgements_joined(tmp_path: Path) -> None:
    sessions = begin(tmp_path)
    parts = []
    for number in (1, 2):
        sessions.hold(number, drawn(number))
        folder = tmp_path / "sessions" / f"{number:04d}"
        parts.append(judgements([labels_of(tmp_path, number)], open_dataset(folder / "data"), SEES))
        assert Run.open(folder / "run").dataset_fingerprint == open_dataset(folder / "data").fingerprint
    expected, found = joined(parts), sessions._judged
    assert found is not None
    np.testing.assert_array_equal(found.target, expected.target)
    np.testing.assert_array_equal(found.steps.vector, expected.steps.vector)
    assert set(found.group) == set(range(20, 60)), "the agent's episodes"
