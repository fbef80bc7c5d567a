"""Demonstrations in Meta-World: uneven on purpose, replayable, with their truth, and equal byte by byte for equal configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("metaworld", reason="NOT TESTED: metaworld is not installed; install 'guerdon[metaworld]'")

from guerdon.datasets import open_dataset
from guerdon.datasets.check import check, render
from guerdon.datasets.minari import RecordedEpisode
from guerdon.envs._metaworld_words import WORDINGS, recorded_wordings
from guerdon.envs.metaworld import MetaWorld, new_task
from guerdon.errors import EnvironmentFailed, UnknownName, UsageError
from guerdon.evaluation.tasks import task_list
from guerdon.recipes.collect_metaworld import Config, Noise, Tally, collect_metaworld, demonstrations
from guerdon.records import Task
from guerdon.samples import select

SMALL = Config(task=("drawer-open-v3", "sweep-into-v3"), demonstrations=6, views=("none",))


def task_of(episode: RecordedEpisode) -> Task:
    return Task.from_record(episode.metadata["task"])


@pytest.fixture(scope="module")
def episodes() -> list[RecordedEpisode]:
    return list(demonstrations(SMALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect_metaworld(Config(**{**vars(SMALL), "out": tmp_path_factory.mktemp("data") / "d"}))


def test_there_are_as_many_as_asked_for_each_from_a_start_of_its_own(episodes: list[RecordedEpisode]) -> None:
    tasks = [task_of(episode) for episode in episodes]
    assert [task.spec["name"] for task in tasks] == ["drawer-open-v3"] * 6 + ["sweep-into-v3"] * 6
    assert len({task.id for task in tasks}) == len({tuple(task.spec["positions"]) for task in tasks}) == 12
    assert {(task.length, task.start, task.step_limit, task.wording) for task in tasks} == {(1, "fixed", 150, "seen")}
    for task, episode in zip(tasks, episodes, strict=True):
        name = task.spec["name"]
        assert episode.annotations[0].instruction == task.instruction
        assert task.instruction in WORDINGS[name][: recorded_wordings(name)]
    assert len({task.instruction for task in tasks}) > 2


def test_replaying_the_actions_repeats_the_episode(episodes: list[RecordedEpisode]) -> None:
    environment = MetaWorld(())
    for episode in episodes[::3]:
        seen = [environment.reset(task_of(episode)).vectors["state"]]
        rewards, success = [], [False]
        for action in episode.actions:
            step = environment.step(action)
            seen.append(step.observation.vectors["state"])
            rewards.append(step.reward)
            success.append(environment.success)
        np.testing.assert_array_equal(episode.vectors["state"], seen)
        np.testing.assert_array_equal(episode.rewards, rewards)
        np.testing.assert_array_equal(episode.privileged["success"], np.array(success, np.float32))
        assert episode.terminated == step.terminated == (step.progress == 1.0)


def test_ground_truth_belongs_to_the_observation_after_the_step(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes:
        quality, success = episode.privileged["quality"], episode.privileged["success"]
        np.testing.assert_allclose(quality[1:], np.clip(episode.rewards / 10, 0, 1), rtol=1e-6)
        assert quality[0] == quality[1]
        assert 0 <= quality.min() <= quality.max() <= 1
        assert set(success.tolist()) <= {0.0, 1.0}
        assert success[0] == 0
        assert episode.terminated != episode.truncated
        assert episode.terminated == bool(success[-5:].all())
        assert len(episode.actions) == 150 or episode.terminated


def test_actions_are_continuous_and_bounded(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes:
        assert episode.actions.shape == (len(episode.rewards), 4)
        assert episode.actions.dtype == np.float32
        assert np.abs(episode.actions).max() <= 1


def test_half_to_three_quarters_succeed_and_qualities_differ() -> None:
    tally, means = Tally(), []
    for episode in demonstrations(Config(demonstrations=16, views=("none",))):
        tally.add(episode)
        means.append(episode.privileged["quality"].mean())
    rows = tally.rows()
    assert [row["task"] for row in rows] == ["drawer-open-v3", "sweep-into-v3", "soccer-v3"]
    assert 0.5 <= np.mean([row["success"] for row in rows]) <= 0.75
    assert sum(row["gave_up"] for row in rows) >= 3
    assert np.quantile(means, 0.9) > 2 * np.quantile(means, 0.1)


def test_without_noise_the_expert_succeeds() -> None:
    noise = Noise(strength=(0, 0), bursts=0, giving_up=0)
    for episode in demonstrations(Config(task=("drawer-open-v3",), demonstrations=3, views=("none",), noise=noise)):
        assert episode.terminated
        assert {key: episode.metadata[key] for key in ("noise", "bursts", "gave_up")} == {"noise": 0.0, "bursts": 0, "gave_up": None}


def test_who_gives_up_at_once_gets_nowhere_by_holding_actions() -> None:
    noise = Noise(giving_up=1.0, burst_steps=(10, 10))
    (episode,) = demonstrations(Config(task=("drawer-open-v3",), demonstrations=1, steps=60, views=("none",), noise=noise))
    since = episode.metadata["gave_up"]
    assert 1 <= since < 30
    changes = np.flatnonzero((np.diff(episode.actions[since:], axis=0) != 0).any(axis=1))
    assert len(changes) <= (60 - since) // 10 + 1


def test_the_dataset_holds_states_and_no_pictures(folder: Path) -> None:
    dataset = open_dataset(folder)
    assert (len(dataset), dataset.views, dataset.vectors, dataset.action_names) == (12, (), ("state",), ())
    assert dataset.environment["name"] == "metaworld"
    assert dataset.privileged(0).keys() == {"quality", "success"}
    for number, episode in enumerate(demonstrations(SMALL)):
        np.testing.assert_array_equal(dataset.vector(number, "state"), episode.vectors["state"])
        np.testing.assert_array_equal(dataset.rewards(number), episode.rewards)
        np.testing.assert_array_equal(dataset.actions(number), episode.actions)
    found = check(dataset)
    assert found.errors == 0
    assert "vector        state, 39 numbers from -" in render(found)
    with pytest.raises(UsageError, match="has no pictures, so there is nothing to show to a rater"):
        next(iter(select(dataset)))


def test_what_was_collected_is_counted(folder: Path) -> None:
    written = json.loads((folder / "collection.json").read_text())
    assert written["config"]["demonstrations"] == 6
    dataset = open_dataset(folder)
    drawer = written["tasks"][0]
    assert drawer["success"] == round(sum(dataset.episode(k).terminated for k in range(6)) / 6, 4)
    assert drawer["mean_return"] == pytest.approx(np.mean([dataset.rewards(k).sum() for k in range(6)]), abs=1e-3)
    assert drawer["mean_steps"] == pytest.approx(np.mean([dataset.episode(k).length for k in range(6)]), abs=1e-3)


def test_policies_can_be_evaluated_on_its_tasks(folder: Path) -> None:
    tasks = task_list(open_dataset(folder), lengths=(1,), per_length=3, seed=0)
    assert [(task.start, task.wording) for task in tasks] == [("fixed", "seen"), ("randomised", "seen"), ("fixed", "held-out")] * 3
    environment = MetaWorld(())
    for task in tasks:
        environment.reset(task)


def test_equal_configurations_give_equal_bytes_and_another_seed_others(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": ("soccer-v3",), "demonstrations": 2, "steps": 30, "size": 24, "views": _views()}
    one, two, other = (
        collect_metaworld(Config(out=tmp_path / name, seed=seed, **settings)) for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    for name in ("data/main_data.hdf5", "data/metadata.json", "collection.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "data/main_data.hdf5").read_bytes() != (other / "data/main_data.hdf5").read_bytes()
    dataset = open_dataset(one)
    assert dataset.views == (settings["views"] if settings["views"] != ("none",) else ())
    for view in dataset.views:
        assert dataset.frames(0, view, 0, 31).shape == (31, 24, 24, 3)


def _views() -> tuple[str, ...]:
    """Two views, or none where this machine cannot draw."""
    try:
        MetaWorld(("close",)).reset(new_task("soccer-v3", 0, step_limit=1, size=24))
    except EnvironmentFailed:
        return ("none",)
    return ("close-no-robot", "close")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"task": ("drawer-open-v2",)}, UnknownName, "no Meta-World task 'drawer-open-v2'"),
        ({"task": ()}, UsageError, "at least one demonstration"),
        ({"demonstrations": 0}, UsageError, "at least one demonstration"),
        ({"views": ("front",)}, UnknownName, "no Meta-World view 'front'; there are: .*none"),
        ({"views": ("close", "close")}, UsageError, "views have to differ"),
        ({"steps": 501}, UsageError, "at most 500 steps"),
        ({"steps": 4}, UsageError, "at least as many as success has to last"),
        ({"size": 0}, UsageError, "1 to 1024 pixels"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Config(**settings)


@pytest.mark.parametrize("settings", [{"bursts": 1.5}, {"giving_up": -0.1}, {"strength": (1.0, 0.5)}, {"burst_steps": (0, 5)}])
def test_noise_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        Noise(**settings)
