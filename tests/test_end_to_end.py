"""The whole line, tiny, in one process: collect, check, label, reward, train, evaluate, report, export; also inside a running event loop,
as in a notebook."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

import guerdon
from guerdon import discover
from guerdon.datasets.minari import MinariDataset
from guerdon.evaluation.baselines import ReplayActor
from guerdon.evaluation.tasks import TaskList
from guerdon.labels import LabelSet
from guerdon.rewards.column import RewardColumn

UPDATES = 4


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the line leaves behind, made through the public functions."""
    folder = tmp_path_factory.mktemp("line")
    data, run = folder / "data", folder / "run"
    guerdon.collect_babyai(out=data, level="small", tasks=4, demonstrations=2, lengths=(1, 2))
    assert guerdon.check(guerdon.open_dataset(data)).errors == 0
    labelled = guerdon.label(dataset=data, run=run, vlm=("scripted:perfect",), store=folder / "store.sqlite", quiet=True)
    assert labelled.complete
    for name, expression in {"sparse": "sparse", "both": "rg_vlm + sparse - 1"}.items():
        guerdon.reward(run=run, compose=expression, name=name)
    guerdon.train(run=run, rewards=("sparse", "both"), seeds=1, updates=UPDATES, jobs=1, quiet=True)
    guerdon.train(run=run, algorithm="bc", seeds=1, updates=UPDATES, jobs=1, quiet=True)
    guerdon.evaluate(run=run, per_length=1, rollouts=1, jobs=1, quiet=True)
    guerdon.report(run=run)
    guerdon.export(run=run, rewards="both", out=folder / "exported")
    return folder


def test_labels_and_rewards_cover_every_transition(line: Path) -> None:
    dataset = guerdon.open_dataset(line / "data")
    steps = {(info.index, step) for info in dataset.episodes() for step in range(info.length)}
    labels = LabelSet.read(line / "run/labels/rg_vlm.parquet")
    assert {(label.episode, label.start) for label in labels.labels} == steps
    assert labels.coverage == 1.0
    column = RewardColumn.read(line / "run/rewards/both.parquet")
    scores = {(label.episode, label.start): label.value or 0.0 for label in labels.labels}
    for info in dataset.episodes():
        expected = [scores[info.index, step] / 10 + (step == info.length - 1) - 1 for step in range(info.length)]
        np.testing.assert_allclose(column.values[info.index, 0], expected, rtol=1e-5)
    assert column.discount == 0.8


def test_a_perfect_rater_tells_what_serves_the_task(line: Path) -> None:
    dataset = guerdon.open_dataset(line / "data")
    labels = LabelSet.read(line / "run/labels/rg_vlm.parquet").labels
    truth = {info.index: dataset.privileged(info.index)["contribution"] for info in dataset.episodes()}
    serving = {label.value for label in labels if truth[label.episode][label.start] > 0}
    others = {label.value for label in labels if truth[label.episode][label.start] < 0}
    assert min(value for value in serving if value is not None) > max(value for value in others if value is not None)


def test_every_arm_was_evaluated_on_the_same_tasks(line: Path) -> None:
    tasks = TaskList.load(line / "run/tasks.json")
    assert len(tasks) == 6, "one task of each of two lengths, in three variants"
    rows: dict[str, list[dict[str, Any]]] = {
        path.parent.name: [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        for path in (line / "run/evaluations").glob("*/seed-0.jsonl")
    }
    assert rows.keys() == {"random", "replay", "sparse", "both", "bc"}
    assert all([row["task"] for row in found] == [task.id for task in tasks] for found in rows.values())
    from_the_recorded_start = [row for row in rows["replay"] if row["start"] == "fixed"]
    assert all(row["success"] for row in from_the_recorded_start), "repeating a demonstration succeeds where it was recorded"


def test_a_policy_acts_on_its_own(line: Path) -> None:
    dataset = guerdon.open_dataset(line / "data")
    policy = guerdon.load_policy(line / "run/policies/both/seed-0")
    policy.start("go to the red ball")
    actions = [policy.step(frame) for frame in dataset.frames(0, "full", 0, 5)]
    assert all(0 <= action < len(dataset.action_names) for action in actions)
    assert ReplayActor.of(dataset, {}) is not None


def test_the_report_stands_alone_and_names_every_arm(line: Path) -> None:
    page = (line / "run/report.html").read_text(encoding="utf-8")
    for name in ("sparse", "both", "bc", "random", "replay", "scripted:perfect"):
        assert name in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing is fetched from elsewhere"
    assert "was made from another" not in page


def test_the_export_opens_in_the_stock_library(line: Path) -> None:
    column = RewardColumn.read(line / "run/rewards/both.parquet")
    exported = minari.MinariDataset(line / "exported/data")
    for episode in exported.iterate_episodes():
        np.testing.assert_allclose(episode.rewards, column.values[episode.id, 0], rtol=1e-6)
    ours = guerdon.open_dataset(line / "exported")
    assert isinstance(ours, MinariDataset)
    np.testing.assert_array_equal(ours.frames(0, "full", 0, 3), guerdon.open_dataset(line / "data").frames(0, "full", 0, 3))


def test_doing_it_again_asks_and_trains_nothing(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = line / "run"
    files = [path for part in ("policies", "evaluations") for path in (run / part).rglob("*") if path.is_file()]
    made = {path: path.stat().st_mtime_ns for path in files}
    before = (run / "labels/rg_vlm.parquet").read_bytes()
    again = guerdon.label(dataset=line / "data", run=run, vlm=("scripted:perfect",), store=line / "store.sqlite", quiet=True)
    assert again.results["found"] >= again.results["requests"] > 0
    assert (run / "labels/rg_vlm.parquet").read_bytes() == before
    guerdon.reward(run=run, compose="rg_vlm + sparse - 1", name="both")
    guerdon.train(run=run, rewards=("sparse", "both"), seeds=1, updates=UPDATES, jobs=1, quiet=True)
    guerdon.evaluate(run=run, per_length=1, rollouts=1, jobs=1, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert capsys.readouterr().err == ""


def test_in_a_notebook(line: Path, tmp_path: Path) -> None:
    """A notebook's cells run inside an event loop, which may not be entered again."""

    async def cells() -> Path:
        run: Any = str(tmp_path / "run")  # paths may be given as text
        given: dict[str, Any] = {"dataset": line / "data", "run": run, "vlm": ("scripted:perfect",), "store": tmp_path / "store.sqlite"}
        assert guerdon.label(**given, quiet=True).complete
        await asyncio.sleep(0)
        assert guerdon.label(**given, quiet=True).results["found"] > 0
        guerdon.reward(run=run)
        guerdon.train(run=run, seeds=1, updates=1, jobs=1, quiet=True)
        guerdon.evaluate(run=run, per_length=1, lengths=(1,), arms=("dense",), rollouts=0, jobs=1, quiet=True)
        return guerdon.report(run=run)

    assert asyncio.run(cells()).is_file()
    assert guerdon.report(run=tmp_path / "run").is_file(), "it can be called again"
    assert (tmp_path / "run/labels/rg_vlm.parquet").read_bytes() == (line / "run/labels/rg_vlm.parquet").read_bytes()


def test_a_policy_meets_only_a_world_with_its_own_actions(line: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(line / "run", run, ignore=shutil.ignore_patterns("evaluations"))
    world = discover.load("envs", "babyai")
    monkeypatch.setattr(world, "action_names", tuple(reversed(world.action_names)))
    with pytest.raises(guerdon.GuerdonError, match="the policy acts with"):
        guerdon.evaluate(run=run, arms=("both",), per_length=1, rollouts=0, jobs=1, quiet=True)
