"""Fitting a reward model in a run folder: what is written, what it looks at, what is refused, and what an interruption leaves."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import guerdon
from guerdon import cli
from guerdon.datasets import open_dataset
from guerdon.errors import GuerdonError, RewardError, RunError, StaleInput, UsageError
from guerdon.labels import LabelSet
from guerdon.recipes import fit, parallel
from guerdon.recipes.data import label_set_of, model_of
from guerdon.recipes.progress import Progress
from guerdon.rewards import fitting, steps
from guerdon.runs import Run
from tests import rated_runs
from tests.rated_runs import EPISODES, LENGTH, add_labels, begin, pairs, rating, ratings, robot_data, scores

QUICK = fitting.Config(updates=20, members=2, width=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return robot_data(tmp_path_factory.mktemp("arm") / "data")


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    run = begin(data, tmp_path / "run")
    add_labels(run, ratings(missing=3))
    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits in this process: starting another one takes seconds."""

    def run_here(work: Any, job: Any, *, progress: Any, variables: Any = None) -> Any:
        return work(job, progress)

    monkeypatch.setattr(fit, "run_apart", run_here)


def fitted(run: Run, **settings: Any) -> fit.FittedModel:
    return guerdon.fit(run=run.path, **{"vectors": ("state",), "fitting": QUICK, "quiet": True, **settings})


def left(run: Run) -> list[str]:
    """Everything below the folder of the models, also what is hidden."""
    folder = run.path / "models"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


FILES = ["manifest.json", "metrics.jsonl", "model.json", "model.safetensors"]


# --- the real thing -------------------------------------------------------------------------------------------------------------------


def test_ratings_become_a_model(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line and in a process of its own, as a user has it."""
    command = ["fit", str(run.path), "--vectors", "state", "--fitting.updates", "40", "--fitting.width", "32", "--quiet"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert left(run) == [f"erl_vlm/{name}" for name in FILES]
    manifest = json.loads((run.path / "models/erl_vlm/manifest.json").read_text())
    labels = label_set_of(run, "rating")
    assert manifest["inputs"] == {"dataset": run.dataset_fingerprint, "labels/rating": labels.fingerprint}
    assert manifest["config"]["fitting"]["updates"] == 40
    found = manifest["results"]
    assert found["kind"] == "rating"
    assert found["labels"] == found["transitions"] == EPISODES * LENGTH - 3
    assert found["classes"] == [[name, sum(each.value == n for each in labels.labels)] for n, name in enumerate(rated_runs.LEVELS)]
    assert found["looks_at"] == "state (3 numbers) after an action"
    assert found["held_out"]["balanced_accuracy"] > 0.5
    for words in ("Average", "balanced accuracy", "learned from", "held out", "written: "):
        assert words in " ".join(out.split())

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished model is fitted again")

    monkeypatch.setattr(fit, "run_apart", refuse)
    before = {name: (run.path / "models/erl_vlm" / name).read_bytes() for name in FILES}
    assert cli.main(command) == 0
    assert "kept, nothing has changed" in capsys.readouterr().out
    assert {name: (run.path / "models/erl_vlm" / name).read_bytes() for name in FILES} == before


def environment(_job: None, _progress: Progress) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in ("GLIBC_TUNABLES", "OMP_NUM_THREADS", "GUERDON_TEST")}


def test_a_process_of_its_own_begins_with_the_settings_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    found = parallel.run_apart(environment, None, progress=lambda _done, _total: None, variables={"GUERDON_TEST": "x"})
    assert found == {"GLIBC_TUNABLES": None, "OMP_NUM_THREADS": "1", "GUERDON_TEST": "x"}
    assert dict(os.environ) == before


def test_memory_is_kept_on_glibc_and_the_users_own_settings_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert fit.malloc_settings()["GLIBC_TUNABLES"].startswith("glibc.malloc.mmap_max=0:")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert fit.malloc_settings() == {}
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", "1.2"))
    assert fit.malloc_settings() == {}


# --- what is made again, and what is kept ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_other_labels_or_settings_make_the_model_again(run: Run) -> None:
    first = fitted(run)
    assert not first.kept
    assert fitted(run).kept
    assert fitted(run, quiet=False).kept
    for change in ({"seed": 1}, {"fitting": replace(QUICK, members=1)}, {"vectors": (), "views": ("corner",)}):
        other = fitted(run, **change)
        assert not other.kept
        assert other.results["fingerprint"] != first.results["fingerprint"]
    again = fitted(run)
    assert not again.kept
    assert again.results["fingerprint"] == first.results["fingerprint"], "the same seed gives the same model"
    add_labels(run, ratings(missing=4))
    with pytest.raises(StaleInput, match=r"was fitted to other labels 'rating' than there are now.*guerdon fit"):
        model_of(run, "erl_vlm")
    assert not fitted(run).kept
    assert model_of(run, "erl_vlm")[0] == run.path / "models/erl_vlm"


@pytest.mark.usefixtures("here")
def test_a_damaged_model_is_noticed_and_made_again(run: Run) -> None:
    fitted(run)
    weights = run.path / "models/erl_vlm/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"was changed or damaged.*Fit it again"):
        model_of(run, "erl_vlm")
    assert not fitted(run).kept
    (run.path / "models/erl_vlm/model.json").unlink()
    assert not fitted(run).kept
    with pytest.raises(RunError, match=r"no reward model is called 'clip'.*There are: erl_vlm\. Fit one with: guerdon fit"):
        model_of(run, "clip")


def test_an_interruption_leaves_the_model_that_was_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fit, "run_apart", lambda work, job, *, progress, variables: work(job, progress))
        fitted(run)
    before = {name: (run.path / "models/erl_vlm" / name).read_bytes() for name in FILES}

    def stopped(_work: Any, job: fit.Job, **_: Any) -> Any:
        (job.folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "run_apart", stopped)
    with pytest.raises(KeyboardInterrupt):
        fitted(run, seed=1)
    assert left(run) == [f"erl_vlm/{name}" for name in FILES]
    assert {name: (run.path / "models/erl_vlm" / name).read_bytes() for name in FILES} == before
    with pytest.raises(KeyboardInterrupt):
        fitted(run, name="other")
    assert left(run) == [f"erl_vlm/{name}" for name in FILES]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(run: Run) -> None:
    command = [sys.executable, "-m", "guerdon", "fit", str(run.path), "--vectors", "state", "--fitting.updates", "10000000"]
    command += ["--fitting.patience", "1000000", "--fitting.target", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 60
    while not any((run.path / "models").glob(".erl_vlm.*.part/erl_vlm")):
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.05)
    time.sleep(5)
    process.send_signal(signal.SIGINT)  # to the command alone: it has to tell its worker
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert left(run) == []


# --- what the model looks at ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "labels", "words"),
    [
        ({}, ratings(), "the picture after an action from corner (16 x 16)"),
        ({"pictures": "2"}, ratings(), "pictures before and after an action from corner (16 x 16)"),
        ({"vectors": ("state",)}, ratings(), "state (3 numbers) after an action"),
        (
            {"vectors": ("state",), "views": ("corner",), "action": "yes", "instruction": "yes"}, ratings(),
            "the picture after an action from corner (16 x 16), state (3 numbers) after an action, the action and the instruction",
        ),
        ({}, scores(), "pictures before and after an action from corner (16 x 16) and the action"),
        ({"action": "no", "pictures": "1"}, scores(), "the picture after an action from corner (16 x 16)"),
        ({}, pairs(), "the picture after an action from corner (16 x 16)"),
    ],
)  # fmt: skip
def test_what_is_looked_at_depends_on_the_labels(run: Run, settings: dict[str, Any], labels: list[Any], words: str) -> None:
    unit = labels[0].unit
    meaning = rated_runs.meaning(run, levels=list(rated_runs.LEVELS) if unit == "observation" else None)
    look = fit.look_of(fit.Config(run=run.path, **settings), open_dataset(run.dataset_path), [LabelSet(labels, meaning)])
    assert fit.in_words(look) == words


def test_instructions_are_read_if_there_are_several(run: Run) -> None:
    dataset = open_dataset(run.dataset_path)
    two = [*ratings(), rating(0, 1, None, "close it")]
    for labels, expected in ((two, False), ([*two, rating(0, 2, 1, "close it")], True)):
        assert (len(fit.instructions([LabelSet(labels, rated_runs.meaning(run))])) > 1) is expected
    look = fit.look_of(fit.Config(run=run.path, instruction="yes"), dataset, [LabelSet(two, rated_runs.meaning(run))])
    assert look.words is not None


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("labels", "changes", "kind", "names"),
    [
        (pairs(), {"method": "preference", "scale": [0, 1], "levels": None}, "preference", ["first", "neither", "second"]),
        (scores(), {"method": "rg-vlm", "scale": [0, 10], "levels": None}, "score", [f"{n} to {n + 1}" for n in range(10)]),
    ],
)
def test_preferences_and_scores_are_fitted_in_the_same_way(
    run: Run, labels: list[Any], changes: dict[str, Any], kind: str, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add_labels(run, labels, "other", **changes)
    model = fitted(run, labels=("other",), name="fitted")
    assert model.results["kind"] == kind
    assert [name for name, _ in model.results["classes"]] == names
    assert sum(count for _, count in model.results["classes"]) == len(labels)
    cli_fit = importlib.import_module("guerdon.cli.fit")
    cli_fit.show(model)
    assert "how well it fits" in capsys.readouterr().out


def test_scores_are_counted_by_tenths_of_their_scale(run: Run) -> None:
    """Scores 0, 1, 3, 3 and 10 on a scale of 0 to 10; 3 as a single-precision share of the scale is a little above three tenths."""
    dataset = open_dataset(run.dataset_path)
    labels = [replace(label, value=value) for label, value in zip(scores((0,)), (0.0, 1.0, 3.0, 3.0, 10.0), strict=False)]
    label_set = LabelSet(labels, rated_runs.meaning(run, levels=None, scale=[0, 10]))
    judged = steps.judgements([label_set], dataset, steps.look_of(dataset, vectors=("state",)))
    counts = fit.class_counts(judged, label_set)
    assert [pair for pair in counts if pair[1]] == [("0 to 1", 1), ("1 to 2", 1), ("3 to 4", 2), ("9 to 10", 1)]


# --- what is refused ------------------------------------------------------------------------------------------------------------------


def one_class(run: Run) -> None:
    add_labels(run, [rating(0, k, 1) for k in range(1, 9)])


def fewer_than_classes(run: Run) -> None:
    add_labels(run, [rating(0, 1, 0), rating(1, 2, 2)])


def no_values(run: Run) -> None:
    add_labels(run, [rating(0, k, None) for k in range(1, 9)])


def other_episodes(run: Run) -> None:
    add_labels(run, [*ratings(), rating(99, 1, 1)])


def tampered(run: Run) -> None:
    path = run.path / "labels/rating.parquet"
    LabelSet(ratings()[:50], rated_runs.meaning(run)).write(path)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (one_class, RewardError, "all ratings are of one class.*only be learned from differences"),
        (fewer_than_classes, RewardError, "there are 2 ratings for 3 classes"),
        (no_values, RewardError, "none of the 8 labels carries a value"),
        (other_episodes, GuerdonError, "episode 99"),
        (tampered, RunError, "was changed or damaged"),
    ],
)
def test_labels_that_nothing_can_be_learned_from(run: Run, change: Callable[[Run], None], kind: type[GuerdonError], words: str) -> None:
    change(run)
    with pytest.raises(kind, match=words):
        fitted(run)
    assert left(run) == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "2 s256:other"}, "the prompts"),
        ({"scale": [0, 3], "levels": ["a", "b", "c", "d"]}, "the scale|the names"),
        ({"rater": "google:x"}, "the rater"),
        ({"levels": ["bad", "so-so", "good"]}, "the names of the classes"),
        ({"method": "preference"}, "the method"),
    ],
)
def test_label_sets_that_do_not_belong_together(run: Run, changes: dict[str, Any], words: str) -> None:
    add_labels(run, ratings((0, 1)), "other", **changes)
    with pytest.raises(RunError, match=f"differ in ({words})"):
        fitted(run, labels=("rating", "other"))
    assert left(run) == []


@pytest.mark.usefixtures("here")
def test_label_sets_that_belong_together_are_fitted_to_together(run: Run) -> None:
    add_labels(run, ratings((0, 1)), "half")
    add_labels(run, ratings((2, 3, 4, 5, 6)), "rest")
    model = fitted(run, labels=("half", "rest"))
    assert model.results["labels"] == 7 * LENGTH
    assert {"labels/half", "labels/rest"} < set(json.loads((model.path / "manifest.json").read_text())["inputs"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ()}, "at least one label set"),
        ({"labels": ("a", "a")}, "is named twice"),
        ({"name": "a-b"}, "made of letters"),
        ({"pictures": "3"}, "pictures is auto, 1 or 2"),
        ({"action": "perhaps"}, "yes or no"),
    ],
)
def test_settings_that_cannot_be(run: Run, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fitted(run, **settings)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"labels": ("gone",)}, "no label set is called 'gone'.*There are: rating"),
        ({"views": ("side",), "vectors": ()}, "no view 'side'"),
        ({"vectors": ("pose",)}, "no vector observation 'pose'"),
    ],
)
def test_names_that_are_not_there(run: Run, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(GuerdonError, match=words):
        fitted(run, **settings)
    assert left(run) == []


@pytest.mark.usefixtures("here")
def test_a_dataset_that_has_changed_is_refused(run: Run, tmp_path: Path) -> None:
    moved = shutil.copytree(run.dataset_path, tmp_path / "data")
    record = json.loads((run.path / "run.json").read_text())
    record["dataset"]["path"] = str(moved)
    (run.path / "run.json").write_text(json.dumps(record))
    file = moved / "data/metadata.json"
    file.write_text(file.read_text().replace("corner", "korner"))
    with pytest.raises(GuerdonError):
        fitted(Run.open(run.path))
    assert left(run) == []
