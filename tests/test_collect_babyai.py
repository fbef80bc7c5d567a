"""Demonstrations: they succeed, stray as much as they should, and repeat byte by byte."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minigrid")

from guerdon.datasets.minari import MinariFormat, RecordedEpisode
from guerdon.envs._babyai_distance import contribution
from guerdon.envs.babyai import BabyAI, build_world
from guerdon.errors import EnvironmentFailed, UnknownName, UsageError
from guerdon.recipes import collect_babyai as recipe
from guerdon.recipes.collect_babyai import Config, Noise, Tally, collect_babyai, demonstrations
from guerdon.records import Task

SMALL = Config(tasks=9, demonstrations=3, views=("full", "agent"))


@pytest.fixture(scope="module")
def episodes() -> list[RecordedEpisode]:
    return list(demonstrations(SMALL))


def task_of(episode: RecordedEpisode) -> Task:
    return Task.from_record(episode.metadata["task"])


def test_there_are_as_many_as_asked_for(episodes: list[RecordedEpisode]) -> None:
    tasks = [task_of(episode) for episode in episodes]
    assert Counter(task.id for task in tasks) == {task.id: 3 for task in tasks}
    assert Counter(task.length for task in tasks) == {1: 9, 2: 9, 3: 9}
    assert [episode.metadata["demonstration"] for episode in episodes] == [0, 1, 2] * 9


def test_replaying_the_actions_repeats_the_episode(episodes: list[RecordedEpisode]) -> None:
    environment = BabyAI()
    for episode in episodes[::4]:
        seen = [environment.reset(task_of(episode))]
        progress = [0.0]
        for action in episode.actions.tolist():
            step = environment.step(action)
            seen.append(step.observation)
            progress.append(step.progress)
        assert step.terminated
        assert episode.terminated
        assert not episode.truncated
        for view, frames in episode.frames.items():
            np.testing.assert_array_equal(frames, [observation.frames[view] for observation in seen])
        np.testing.assert_array_equal(episode.privileged["progress"], np.array(progress, np.float32))


def test_demonstrations_of_a_task_start_alike_and_differ(episodes: list[RecordedEpisode]) -> None:
    by_task: dict[str, list[RecordedEpisode]] = defaultdict(list)
    for episode in episodes:
        by_task[task_of(episode).id].append(episode)
    for group in by_task.values():
        for episode in group[1:]:
            np.testing.assert_array_equal(episode.frames["full"][0], group[0].frames["full"][0])
        assert len({tuple(episode.actions.tolist()) for episode in group}) == 3
    words = [{episode.annotations[0].instruction for episode in group} for group in by_task.values()]
    assert sum(len(each) for each in words) > 2 * len(words)


def test_ground_truth_is_that_of_the_world(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes[:3]:
        world, truth = build_world(task_of(episode)), episode.privileged
        assert truth["distance"][0] == world.distance()
        for time, action in enumerate(episode.actions.tolist()):
            before, clause = world.distance(), world.completed
            assert truth["subtask"][time] == clause
            world.step(action)
            done = world.completed > clause
            assert truth["contribution"][time] == contribution(before, 0.0 if done else world.distance())
            assert truth["distance"][time + 1] == world.distance()
        assert truth["subtask"][-1] == task_of(episode).length
        assert truth["distance"][-1] == 0
        assert {name: values.dtype.name for name, values in truth.items()} == dict.fromkeys(truth, "float32")


def test_spans_follow_one_another_and_say_the_instruction(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes:
        (annotation,) = episode.annotations
        spans, subtask = annotation.spans, episode.privileged["subtask"]
        assert annotation.instruction == task_of(episode).instruction
        assert len(spans) == task_of(episode).length
        assert [spans[0].start, *(span.stop for span in spans)] == [*(span.start for span in spans), len(episode.actions)]
        at = 0
        for number, span in enumerate(spans):
            at = annotation.instruction.index(span.text, at) + len(span.text)
            assert (subtask[span.start : span.stop] == number).all()
            assert episode.privileged["contribution"][span.stop - 1] == 1


def test_data_have_no_rewards_and_step_limits_are_twice_the_length(episodes: list[RecordedEpisode]) -> None:
    for episode in episodes:
        assert not episode.rewards.any()
        assert task_of(episode).step_limit == 2 * len(episode.actions)


def test_about_half_of_the_actions_serve_the_goal() -> None:
    tally = Tally()
    for episode in demonstrations(Config(tasks=45, demonstrations=2, views=("full",))):
        tally.add(episode)
    for row in tally.rows():
        assert 0.45 <= row["serving"] <= 0.60, row
        assert row["straying"] > 0.1
        assert row["serving"] + row["idle"] + row["straying"] + row["unknown"] == pytest.approx(1, abs=1e-3)


def test_without_noise_every_action_serves_the_goal() -> None:
    noise = Noise(random_actions=0, dithering=0, detours=0)
    for episode in demonstrations(Config(tasks=6, demonstrations=1, lengths=(1, 6), noise=noise)):
        assert (episode.privileged["contribution"] == 1).all()


@pytest.mark.parametrize("level", ["one-room", "four-rooms"])
def test_other_levels(level: str) -> None:
    config = Config(level=level, tasks=2, demonstrations=1, lengths=(4, 5))
    assert [task_of(episode).spec["level"] for episode in demonstrations(config)] == [level, level]


# --- on disk ------------------------------------------------------------------------------------------------------------------------


def test_equal_configurations_give_equal_bytes(tmp_path: Path) -> None:
    config = {"tasks": 2, "demonstrations": 2, "lengths": (1, 2)}
    folders = [collect_babyai(Config(out=tmp_path / name, **config)) for name in ("a", "b")]  # type: ignore[arg-type]
    other = collect_babyai(Config(out=tmp_path / "c", seed=1, **config))  # type: ignore[arg-type]
    contents = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} for folder in folders]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3
    opened = [MinariFormat.open(folder, {}) for folder in (*folders, other)]
    assert opened[0].fingerprint == opened[1].fingerprint != opened[2].fingerprint


def test_the_dataset_holds_what_was_demonstrated(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    config = Config(out=tmp_path / "data", tasks=2, demonstrations=2, views=("full", "agent"))
    dataset = MinariFormat.open(collect_babyai(config, progress=lambda done, total: told.append((done, total))), {})
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert dataset.views == ("full", "agent")
    assert dataset.action_names == BabyAI.action_names
    assert {key: dataset.environment[key] for key in ("name", "level")} == {"name": "babyai", "level": "two-rooms"}
    assert {"minigrid", "numpy"} <= dataset.environment.keys()
    for index, episode in enumerate(demonstrations(config)):
        info = dataset.episode(index)
        assert (info.length, info.terminated, info.truncated) == (len(episode.actions), True, False)
        assert info.annotations == episode.annotations
        assert info.metadata == episode.metadata
        np.testing.assert_array_equal(dataset.actions(index), episode.actions)
        for view in dataset.views:
            np.testing.assert_array_equal(dataset.frames(index, view, 0, info.length + 1), episode.frames[view])
        privileged = dataset.privileged(index)
        assert privileged.keys() == episode.privileged.keys()
        for name, values in episode.privileged.items():
            np.testing.assert_array_equal(privileged[name], values)


def test_the_count_is_kept_beside_the_data(tmp_path: Path) -> None:
    config = Config(out=tmp_path / "data", tasks=2, demonstrations=1, lengths=(1, 2))
    tally = Tally()
    for episode in demonstrations(config):
        tally.add(episode)
    collected = json.loads((collect_babyai(config) / "collection.json").read_text())
    assert collected["lengths"] == tally.rows()
    assert collected["config"]["noise"] == {"random_actions": 0.44, "dithering": 0.13, "detours": 0.65}


# --- what it refuses ----------------------------------------------------------------------------------------------------------------


def test_impossible_configurations_are_refused() -> None:
    for wrong in ({"tasks": 0}, {"demonstrations": 0}, {"lengths": (0, 2)}, {"lengths": (3, 2)}, {"lengths": (1, 7)}, {"views": ()}):
        with pytest.raises(UsageError):
            Config(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="detours is a probability"):
        Noise(detours=1.5)
    with pytest.raises(UnknownName, match="castle"):
        next(demonstrations(Config(level="castle")))
    with pytest.raises(UnknownName, match="top"):
        next(demonstrations(Config(views=("top",))))


def test_a_demonstrator_that_keeps_failing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_ATTEMPTS", 3)
    monkeypatch.setattr(recipe, "_STEPS_PER_CLAUSE", 1)
    with pytest.raises(EnvironmentFailed, match="failed 3 times"):
        list(demonstrations(Config(tasks=6, lengths=(2, 2))))


def test_failed_attempts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "_STEPS_PER_CLAUSE", 28)
    tally = Tally()
    for episode in demonstrations(Config(tasks=6, demonstrations=2, lengths=(1, 1))):
        assert len(episode.actions) <= 28
        tally.add(episode)
    assert tally.rows()[0]["failed_attempts"] > 0
