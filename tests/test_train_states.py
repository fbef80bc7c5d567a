"""Training and evaluating policies that see a state and act continuously, through the commands, in a real simulator without pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guerdon.algorithms.bc import BC
from guerdon.algorithms.iql import IQL
from guerdon.datasets import open_dataset
from guerdon.errors import UsageError
from guerdon.interfaces import Dataset
from guerdon.networks import PolicyNetwork
from guerdon.recipes.collect_metaworld import Config as Collection
from guerdon.recipes.collect_metaworld import collect_metaworld
from guerdon.recipes.evaluate import evaluate
from guerdon.recipes.reward import reward
from guerdon.recipes.train import Config, train, what_is_seen
from guerdon.runs import Run
from guerdon.training.policy import load_policy, read_record
from tests.memory import MemoryDataset
from tests.point import PointData


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    pytest.importorskip("metaworld")
    folder = tmp_path_factory.mktemp("states") / "data"
    return open_dataset(collect_metaworld(Collection(out=folder, task=("drawer-open-v3",), demonstrations=3, steps=12, views=("none",))))


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("states") / "run"
    Run.open_or_create(run, dataset_path=data.path, fingerprint=data.fingerprint)
    reward(run=run, compose="sparse", name="sparse")
    for algorithm in ("iql", "bc"):
        train(run=run, rewards=("sparse",), algorithm=algorithm, seeds=1, updates=4, jobs=1, quiet=True)
    return run


def test_policies_of_states_are_trained_and_evaluated(run: Path) -> None:
    policy = load_policy(run / "policies/sparse/seed-0")
    assert (policy.spec.views, policy.spec.vectors, policy.spec.action_size) == ({}, {"state": 39}, 4)
    rows = evaluate(run=run, per_length=2, rollouts=0, jobs=1, quiet=True)
    assert {row["arm"] for row in rows} == {"random", "replay", "bc", "sparse"}
    assert len(rows) == 4 * 2 * 3  # each task as recorded, from another start and in other words
    assert all(0 <= row["return"] <= 1 and 1 <= row["steps"] <= 12 and row["reward"] > 0 for row in rows)
    stored = [json.loads(line) for line in (run / "evaluations/sparse/seed-0.jsonl").read_text().splitlines()]
    assert stored == [row for row in rows if row["arm"] == "sparse"]


def test_replay_earns_what_was_recorded(run: Path, data: Dataset) -> None:
    rows = evaluate(run=run, arms=("replay",), per_length=2, rollouts=0, jobs=1, quiet=True)
    recorded = {info.metadata["task"]["id"]: float(data.rewards(info.index).sum()) for info in data.episodes()}
    found = {row["task"]: row["reward"] for row in rows if row["task"] in recorded}
    assert len(found) == 2
    assert found == {task: pytest.approx(recorded[task], rel=1e-3) for task in found}


def pictures() -> MemoryDataset:
    return MemoryDataset([])


def states(*views: str) -> PointData:
    return PointData(0, views=views)


@pytest.mark.parametrize(
    ("dataset", "given", "expected"),
    [
        (pictures(), {}, (("full",), ())),
        (states("above"), {}, ((), ("state",))),
        (states(), {}, ((), ("state",))),
        (states("above", "hand"), {"views": ("hand",)}, (("hand",), ())),
        (states("above", "hand"), {"views": ("hand",), "vectors": ("state",)}, (("hand",), ("state",))),
        (states("above"), {"views": ("none",)}, ((), ("state",))),
        (states("above"), {"vectors": ("state",)}, ((), ("state",))),
    ],
)
def test_what_a_policy_sees(dataset: Dataset, given: dict[str, Any], expected: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    assert what_is_seen(Config(run=Path("run"), **given), dataset) == expected


def test_named_actions_with_a_state_are_learned_from_pictures_unless_asked() -> None:
    both = states("above")
    both.action_names = ("left",)
    assert what_is_seen(Config(run=Path("run")), both) == (("above",), ())
    assert what_is_seen(Config(run=Path("run"), views=("none",)), both) == ((), ("state",))


def test_seeing_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="would see nothing"):
        what_is_seen(Config(run=Path("run"), views=("none",)), pictures())
    with pytest.raises(UsageError, match="goes with no other view"):
        Config(run=Path("run"), views=("none", "full"))


@pytest.mark.parametrize(("setting", "message"), [({"symbols": True}, "tiles as symbols"), ({"learn_words": False}, "reading unlearned")])
def test_what_cannot_be_trained_takes_no_finished_policy_away(run: Path, setting: dict[str, bool], message: str) -> None:
    part = run / "policies/bc/seed-0"
    before = {file.name: file.read_bytes() for file in part.iterdir()}
    assert "manifest.json" in before
    settings = BC.Config(network=PolicyNetwork.Config(**setting))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        train(run=run, algorithm="bc", seeds=1, updates=4, jobs=1, quiet=True, algorithm_settings=settings)
    assert {file.name: file.read_bytes() for file in part.iterdir()} == before
    assert load_policy(part).spec.action_size == 4


@pytest.mark.parametrize(("gamma", "given", "expected"), [(0.4, None, 0.4), (0.4, 0.6, 0.6), (None, None, 0.97)])
def test_a_policy_learns_with_the_discount_of_its_reward(run: Path, gamma: float | None, given: float | None, expected: float) -> None:
    reward(run=run, compose="original", name="with_discount", gamma=gamma)
    settings = IQL.Config(network=PolicyNetwork.Config(hidden=(8,)), discount=given)
    (folder,) = train(run=run, rewards=("with_discount",), seeds=1, updates=2, quiet=True, algorithm_settings=settings)
    assert read_record(folder)["training"]["config"]["discount"] == expected
