"""Rewards of a reward model in a run folder: written, kept, refused, and used in expressions."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import guerdon
from guerdon import cli
from guerdon.datasets import open_dataset
from guerdon.errors import GuerdonError, RewardError, RewardModelError, RunError, StaleInput, UsageError
from guerdon.labels import LabelSet
from guerdon.recipes.data import rewards_of
from guerdon.recipes.reward import ComposedReward
from guerdon.rewards import fitting
from guerdon.rewards.column import RewardColumn
from guerdon.rewards.fitting import load_model
from guerdon.rewards.relabel import relabel as scores_of
from guerdon.runs import Run
from tests import rated_runs
from tests.rated_runs import EPISODES, LENGTH, add_labels, begin, ratings, robot_data

QUICK = fitting.Config(updates=20, members=2, width=16)


def run_here(work: Any, job: Any, *, progress: Any, variables: Any = None) -> Any:
    """Instead of starting another process, which takes seconds."""
    return work(job, progress)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit", "relabel"):
        monkeypatch.setattr(importlib.import_module(f"guerdon.recipes.{module}"), "run_apart", run_here)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with ratings and a model, which its tests do not change."""
    folder = tmp_path_factory.mktemp("finished")
    run = begin(robot_data(folder / "data"), folder / "run")
    add_labels(run, ratings())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("guerdon.recipes.fit"), "run_apart", run_here)
        guerdon.fit(run=run.path, vectors=("state",), fitting=QUICK, quiet=True)
    return run


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of that run."""
    return Run.open(shutil.copytree(finished.path, tmp_path / "run"))


def relabelled(run: Run, **settings: Any) -> ComposedReward:
    return guerdon.relabel(run=run.path, quiet=True, **settings)


def directly(run: Run, **settings: Any) -> dict[tuple[int, int], np.ndarray[Any, Any]]:
    """What the model says, without the recipe."""
    return dict(scores_of(load_model(run.path / "models/erl_vlm"), open_dataset(run.dataset_path), **settings))


def parts(run: Run) -> list[str]:
    folder = run.path / "rewards"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- what is written ------------------------------------------------------------------------------------------------------------------


def test_every_transition_gets_the_model_s_reward(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line and in a process of its own, as a user has it."""
    assert cli.main(["relabel", str(run.path), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "relabel(erl_vlm)" in out
    assert f"written: {run.path / 'rewards/erl_vlm.parquet'}" in out
    column = rewards_of(run, "erl_vlm")
    expected = directly(run)
    assert sorted(column.values) == sorted(expected) == [(episode, 0) for episode in range(EPISODES)]
    for key, values in expected.items():
        np.testing.assert_array_equal(column.values[key], values)
        assert values.shape == (LENGTH,)
    manifest = json.loads((run.path / "rewards/erl_vlm.json").read_text())
    model = json.loads((run.path / "models/erl_vlm/manifest.json").read_text())["results"]["fingerprint"]
    assert manifest["inputs"] == {"dataset": run.dataset_fingerprint, "models/erl_vlm": model}
    assert column.metadata == {
        "expression": "relabel(erl_vlm)", "dataset": run.dataset_fingerprint, "model": model, "model_name": "erl_vlm", "from_run": None,
        "reads": False, "scale": [-1.0, 1.0], "transform": "raw", "pessimism": 0.0, "kind": "rating",
    }  # fmt: skip
    assert column.by_model
    assert manifest["results"]["coverage"] == 1.0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("settings", "scale"),
    [({"transform": "unit"}, (0, 1)), ({"transform": "standard"}, None), ({"pessimism": 2.0}, (-1, 1))],
)
def test_transforms_and_pessimism(run: Run, settings: dict[str, Any], scale: tuple[int, int] | None) -> None:
    made = relabelled(run, name="other", **settings)
    assert made.column.scale == scale
    for key, values in directly(run, **settings).items():
        np.testing.assert_array_equal(made.column.values[key], values)
    known = np.concatenate(list(made.column.values.values()))
    if settings.get("transform") == "standard":
        assert (known.mean(), known.std()) == pytest.approx((0, 1), abs=1e-5)
    assert not np.array_equal(known, np.concatenate(list(directly(run).values())))


@pytest.mark.usefixtures("here")
def test_the_same_scores_are_kept_and_others_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = relabelled(run)
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("guerdon.recipes.relabel"), "run_apart", None)  # would fail if it were called
        kept = relabelled(run)
        assert (kept.column.fingerprint, kept.statistics, kept.findings) == (first.column.fingerprint, first.statistics, first.findings)
        with pytest.raises(TypeError):
            relabelled(run, pessimism=1.0)
    assert relabelled(run, pessimism=1.0).column.fingerprint != first.column.fingerprint
    guerdon.fit(run=run.path, vectors=("state",), fitting=QUICK, seed=1, quiet=True)
    assert relabelled(run).column.metadata["model"] != first.column.metadata["model"]


@pytest.mark.usefixtures("here")
def test_a_model_of_another_run_scores_data_that_shows_the_same(run: Run, tmp_path: Path) -> None:
    other = begin(robot_data(tmp_path / "other", instruction="open it slowly"), tmp_path / "other run")
    made = guerdon.relabel(run=other.path, from_run=str(run.path), quiet=True)
    assert made.column.metadata["from_run"] == str(run.path)
    manifest = json.loads(made.path.with_suffix(".json").read_text())
    assert set(manifest["inputs"]) == {"dataset", "model"}
    for key, values in directly(run).items():  # the same states, so the same rewards
        np.testing.assert_array_equal(made.column.values[key], values)
    composed = guerdon.reward(run=other.path, compose="0.1 * erl_vlm + sparse", name="both")[0]
    assert composed.column.coverage == 1.0
    assert cli.main(["relabel", str(other.path), "--from", str(run.path), "--name", "again", "--quiet"]) == 0
    assert guerdon.relabel(run=run.path, from_run=run.path, quiet=True).column.metadata["from_run"] is None


# --- what is refused ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_data_that_does_not_show_what_the_model_looks_at(run: Run, tmp_path: Path) -> None:
    other = begin(robot_data(tmp_path / "other", states=5), tmp_path / "other run")
    with pytest.raises(RewardModelError, match="state"):
        guerdon.relabel(run=other.path, from_run=run.path, quiet=True)
    assert parts(other) == []
    guerdon.fit(run=run.path, views=("corner",), fitting=QUICK, name="seen", quiet=True)
    larger = begin(robot_data(tmp_path / "larger", size=20), tmp_path / "larger run")
    with pytest.raises(RewardModelError, match="corner"):
        guerdon.relabel(run=larger.path, from_run=run.path, model="seen", quiet=True)
    assert parts(larger) == []


def other_labels(run: Run) -> None:
    add_labels(run, ratings((0, 1, 2)))


def damaged_weights(run: Run) -> None:
    path = run.path / "models/erl_vlm/model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def unfinished(run: Run) -> None:
    (run.path / "models/erl_vlm/manifest.json").unlink()


def no_labels(run: Run) -> None:
    (run.path / "labels/rating.parquet").unlink()


def damaged_manifest(run: Run) -> None:
    (run.path / "models/erl_vlm/manifest.json").write_text("{}")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (other_labels, StaleInput, "was fitted to other labels 'rating' than there are now"),
        (damaged_weights, RunError, "was changed or damaged"),
        (unfinished, RunError, "no reward model is called 'erl_vlm'.*none yet"),
        (no_labels, RunError, "no label set is called 'rating'"),
        (damaged_manifest, RunError, "does not hold what it should"),
    ],
)
def test_models_that_cannot_be_trusted(run: Run, change: Callable[[Run], None], kind: type[GuerdonError], words: str) -> None:
    change(run)
    with pytest.raises(kind, match=words):
        relabelled(run)
    assert parts(run) == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "rating"}, "the run holds a label set called 'rating'"),
        ({"name": "sparse"}, "means something else already"),
        ({"name": "random"}, "means something else already"),
        ({"name": "a b"}, "made of letters"),
        ({"pessimism": -1.0}, "pessimism is a number of at least 0"),
        ({"pessimism": float("nan")}, "pessimism is a number of at least 0"),
        ({"gamma": 1.0}, "gamma must lie in"),
        ({"transform": "log"}, "raw, unit or standard"),
    ],
)
def test_settings_that_cannot_be(run: Run, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        relabelled(run, **settings)
    assert parts(run) == []


@pytest.mark.usefixtures("here")
def test_a_single_network_has_no_doubts_to_be_wary_of(run: Run) -> None:
    guerdon.fit(run=run.path, vectors=("state",), fitting=replace(QUICK, members=1), name="alone", quiet=True)
    with pytest.raises(UsageError, match=r"'alone' is a single network.*fitting.members"):
        relabelled(run, model="alone", pessimism=1.0)
    assert relabelled(run, model="alone").column.coverage == 1.0


def test_an_interruption_leaves_what_was_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = importlib.import_module("guerdon.recipes.relabel")
    monkeypatch.setattr(recipe, "run_apart", run_here)
    before = relabelled(run).column.fingerprint

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "run_apart", stopped)
    for name in ("", "other"):
        with pytest.raises(KeyboardInterrupt):
            relabelled(run, pessimism=3.0, name=name)
    assert parts(run) == ["erl_vlm.json", "erl_vlm.parquet"]
    assert rewards_of(run, "erl_vlm").fingerprint == before


# --- in expressions -------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_expressions_name_the_rewards_of_a_model(run: Run) -> None:
    column = relabelled(run).column
    made = guerdon.reward(run=run.path, compose="0.1 * erl_vlm + sparse", name="both", controls=True)
    assert [reward.path.stem for reward in made] == ["both", "constant_both", "shuffled_both"]
    manifest = json.loads((run.path / "rewards/both.json").read_text())
    assert manifest["inputs"] == {"dataset": run.dataset_fingerprint, "rewards/erl_vlm": column.fingerprint}
    dataset = open_dataset(run.dataset_path)
    for (episode, _), values in made[0].column.values.items():
        expected = 0.1 * (column.values[episode, 0] + 1) / 2
        expected[-1] += dataset.episode(episode).terminated
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("here")
def test_names_that_are_no_rewards_of_a_model(run: Run) -> None:
    relabelled(run)
    guerdon.reward(run=run.path, compose="2 * sparse", name="twice")
    for expression, words in (
        ("erl_vlm.spread", "has no spread"),
        ("twice", "'twice' is a composed reward column"),
        ("clip", "no label set is called 'clip'"),
    ):
        with pytest.raises(GuerdonError, match=words):
            guerdon.reward(run=run.path, compose=expression, name="new")
    with pytest.raises(UsageError, match="would take the place of the one that it is composed from"):
        guerdon.reward(run=run.path, compose="erl_vlm + sparse", name="erl_vlm")
    assert rewards_of(run, "erl_vlm").by_model


@pytest.mark.usefixtures("here")
def test_a_name_that_is_both_is_refused_unless_one_cannot_be_meant(run: Run) -> None:
    relabelled(run)
    scored = {"method": "rg-vlm", "levels": None, "scale": [0, 10]}
    add_labels(run, rated_runs.scores(), "erl_vlm", **scored)
    with pytest.raises(RewardError, match="'erl_vlm' is the name of a label set and of a reward column"):
        guerdon.reward(run=run.path, compose="erl_vlm", name="new")
    add_labels(run, rated_runs.scores(), "rg_vlm", **scored)
    for _ in range(2):  # a composed column of that name cannot be meant
        made = guerdon.reward(run=run.path, compose="rg_vlm", name="rg_vlm")[0]
        assert made.column.metadata["labels"]
    (run.path / "rewards/rg_vlm.parquet").write_bytes(b"damaged")
    assert guerdon.reward(run=run.path, compose="rg_vlm", name="rg_vlm")[0].column.coverage == 1.0


@pytest.mark.usefixtures("here")
def test_rewards_of_a_model_that_was_fitted_anew_are_refused(run: Run) -> None:
    relabelled(run)
    guerdon.fit(run=run.path, vectors=("state",), fitting=QUICK, seed=1, quiet=True)
    with pytest.raises(StaleInput, match=r"another model 'erl_vlm' than there is now.*guerdon relabel"):
        guerdon.reward(run=run.path, compose="erl_vlm", name="new")
    relabelled(run)
    assert guerdon.reward(run=run.path, compose="erl_vlm", name="new")[0].column.coverage == 1.0
    shutil.rmtree(run.path / "models")  # rewards outlive their model
    assert guerdon.reward(run=run.path, compose="erl_vlm", name="new")[0].column.coverage == 1.0


@pytest.mark.usefixtures("here")
def test_a_damaged_column_is_refused_and_made_again(run: Run) -> None:
    relabelled(run)
    path = run.path / "rewards/erl_vlm.parquet"
    column = RewardColumn.read(path)
    RewardColumn({**column.values, (0, 0): column.values[0, 0] + 1}, column.metadata).write(path)
    with pytest.raises(RunError, match="was changed or damaged"):
        guerdon.reward(run=run.path, compose="erl_vlm", name="new")
    assert relabelled(run).column.fingerprint == column.fingerprint
    assert rewards_of(run, "erl_vlm").fingerprint == column.fingerprint


def test_ratings_alone_are_no_reward_per_transition_if_they_are_preferences(run: Run) -> None:
    preferences = {"method": "preference", "levels": None, "scale": [0, 1]}
    add_labels(run, rated_runs.pairs(), "preference", **preferences)
    assert LabelSet.read(run.path / "labels/preference.parquet").labels
    with pytest.raises(RunError, match="guerdon fit"):
        guerdon.reward(run=run.path, compose="preference", name="new")
