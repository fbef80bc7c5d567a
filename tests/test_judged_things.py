"""What a person meets who rates pictures, segments or pairs: words that fit, nothing lost by a mistake, nothing reused that has changed."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon import cli
from guerdon.cli.label import _what_next
from guerdon.datasets import open_dataset
from guerdon.datasets.check import check
from guerdon.datasets.minari import write_minari
from guerdon.errors import GuerdonError, StaleInput, UsageError
from guerdon.methods.rating import Rating
from guerdon.networks import Optimiser
from guerdon.recipes import fit
from guerdon.recipes.pilot import judge, wrong_instructions
from guerdon.recipes.reward import reward
from guerdon.recipes.train import train
from guerdon.report.figures import _between
from guerdon.report.models import GivenRewards
from guerdon.rewards import fitting
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Run
from guerdon.samples import Config, select
from tests import rated_runs
from tests.memory import MemoryDataset, MemoryEpisode


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = rated_runs.begin(rated_runs.robot_data(tmp_path / "data"), tmp_path / "run")
    rated_runs.add_labels(run, rated_runs.ratings())
    return run


@pytest.mark.parametrize(
    ("kind", "unit", "words"),
    [
        ("windows", "episode", "windows"), ("pictures", "subtask", "pictures"), ("episodes", "episode", "episodes"),
        ("episodes", "subtask", "sub-tasks"), ("picture pairs", "episode", "pairs of pictures"),
        ("segment pairs", "subtask", "pairs of segments"),
    ],
)  # fmt: skip
def test_what_is_judged_has_a_name(kind: Any, unit: Any, words: str) -> None:
    assert Config(kind=kind, unit=unit).judged == words


def test_label_and_plan_speak_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(rated_runs.robot_data(tmp_path / "data"))
    flags = [data, "--method", "rating", "--sample", "6", "--vlm", "scripted"]
    cli.main(["label", *flags, "--run", str(tmp_path / "run"), "--store", str(tmp_path / "store.sqlite"), "--quiet"])
    assert cli.main(["plan", *flags]) == 0
    told = capsys.readouterr().out
    assert "6 pictures; " in told
    assert "6 pictures, about 6 transitions" in told
    assert "window" not in told


def test_what_to_do_next_depends_on_the_cause() -> None:
    assert "unsupported" in _what_next(["failed: unsupported"])
    assert "in passing" not in _what_next(["failed: unsupported", "labelled"])
    assert "in passing" in _what_next(["failed: timeout"])


def test_other_wordings_of_a_task_are_not_wrong_instructions() -> None:
    """Two wordings of one task and one of another: only the other task's words are wrong."""
    known = (("open the drawer", "drawer"), ("pull the drawer open", "drawer"), ("close the door", "door"))
    dataset = MemoryDataset([MemoryEpisode(2, text, metadata={"task": {"spec": {"name": name}}}) for text, name in known])
    wrong = wrong_instructions(list(select(dataset, Config(kind="pictures"))), dataset)
    assert {sample.segment.episode: sample.instruction for sample in wrong if sample.segment.episode < 2} == {
        0: "close the door", 1: "close the door",
    }  # fmt: skip


def test_a_pilot_speaks_of_what_it_asked_about() -> None:
    assert judge(Rating(), [], [], 5, judged="pictures").remark.startswith("all pictures have the same instruction")


@pytest.mark.parametrize("rate", [math.nan, math.inf, 0.0])
def test_learning_rates_are_numbers(rate: float) -> None:
    with pytest.raises(UsageError, match="learning_rate is a number above 0"):
        fitting.Config(learning_rate=rate)
    if rate:
        with pytest.raises(UsageError, match="learning_rate"):
            Optimiser.Config(learning_rate=rate)


@pytest.mark.parametrize("name", ["sparse", "bc", "class", "rating"])
def test_a_model_whose_rewards_nobody_could_name_is_not_fitted(run: Run, name: str) -> None:
    with pytest.raises(UsageError, match="Choose another --name"):
        fit.fit(run=run.path, name=name, vectors=("state",))


def test_an_unknown_name_in_an_expression_lists_the_rewards_of_models(run: Run) -> None:
    with pytest.raises(GuerdonError, match=r"There are: rating\. Rewards of models: none yet"):
        reward(run=run.path, compose="nope - 1", name="x")


def test_a_mistake_takes_no_finished_policy_away(run: Run) -> None:
    reward(run=run.path, compose="rating", name="dense")
    (policy,) = train(run=run.path, rewards=("dense",), seeds=1, updates=2, jobs=1, quiet=True)
    before = (policy / "manifest.json").read_bytes()
    with pytest.raises(GuerdonError, match="nowhere"):
        train(run=run.path, rewards=("dense",), seeds=1, updates=2, jobs=1, quiet=True, views=("nowhere",))
    assert (policy / "manifest.json").read_bytes() == before


def test_rewards_from_labels_that_have_changed_since_are_not_trained_on(run: Run) -> None:
    reward(run=run.path, compose="rating", name="dense")
    rated_runs.add_labels(run, rated_runs.ratings(range(8)))
    with pytest.raises(StaleInput, match=r"made from other labels 'rating' than there are now.*guerdon reward .*--name dense"):
        train(run=run.path, rewards=("dense",), seeds=1, updates=2, jobs=1, quiet=True)
    reward(run=run.path, compose="rating", name="dense")
    assert len(train(run=run.path, rewards=("dense",), seeds=1, updates=2, jobs=1, quiet=True)) == 1


def test_rewards_of_actions_are_compared_with_what_actions_contribute() -> None:
    """Rewards that equal the contributions correlate perfectly with them."""
    truth = np.array([1, 0, -1, 1, 0], np.int8)
    dataset = MemoryDataset([MemoryEpisode(5, "go", contribution=truth.tolist())])
    column = RewardColumn({(0, 0): truth.astype(np.float32)}, {"model": "m", "model_name": "m"})
    found = GivenRewards._of("x", column, dataset, of_actions=True)
    assert found.truth == "contribution of each action"
    assert found.spearman is not None
    assert found.spearman.value == pytest.approx(1.0)


def test_actions_that_no_policy_can_learn_are_said_beforehand(tmp_path: Path) -> None:
    episodes = [replace(rated_runs.robot_episode(number), actions=np.full((rated_runs.LENGTH, 2), loud, np.float32)) for number, loud in
                enumerate((0.5, 3.0))]  # fmt: skip
    write_minari(tmp_path / "data", episodes, dataset_id="tests/loud-v0", action_names=(), environment={"name": "arm"})
    (problem,) = [each for each in check(open_dataset(tmp_path / "data")).problems if each.kind == "actions-outside"]
    assert "component 0: 0.5 to 3" in problem.what


_ENDED = """
import signal, sys, time
from guerdon import cli
def _run(words):
    print("ready", flush=True)
    time.sleep(60)
cli._run = _run
sys.argv = ["guerdon", "fit"]
sys.exit(cli.main())
"""


def test_a_command_that_is_ended_ends_in_order() -> None:
    with subprocess.Popen([sys.executable, "-c", _ENDED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "interrupted" in told
    assert "Traceback" not in told


def test_the_table_of_consistency_fits_into_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    data = str(rated_runs.robot_data(tmp_path / "data"))
    flags = ["--run", str(tmp_path / "run"), "--store", str(tmp_path / "s.sqlite"), "--every", "4", "--repeats", "2", "--quiet"]
    flags += ["--vlm", "scripted"]
    assert cli.main(["raters", "consistency", data, *flags]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("written:")]
    assert all(len(line) <= 80 for line in told)
    rows = [line.split() for line in told if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["2", "3", "4", "5"]
    assert all("±" in row and row[-1] != "±" for row in rows), "mean and deviation stand in one line"


@pytest.mark.parametrize(("bounds", "middle"), [((-1.0, 0.99996), "0"), ((0.48, 0.687), "0.584"), ((0.0, 2e-6), "1e-06")])
def test_a_middle_that_is_all_but_zero_is_written_as_zero(bounds: tuple[float, float], middle: str) -> None:
    assert _between(bounds, 0.5) == middle


def test_results_say_what_was_judged(tmp_path: Path) -> None:
    data = rated_runs.robot_data(tmp_path / "data")
    cli.main(["label", str(data), "--method", "preference", "--sample", "4", "--run", str(tmp_path / "run"),
              "--store", str(tmp_path / "s.sqlite"), "--vlm", "scripted", "--quiet"])  # fmt: skip
    manifest = json.loads((tmp_path / "run/labels/preference.json").read_text())
    assert manifest["results"]["judged"] == "pairs of pictures"
