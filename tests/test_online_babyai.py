"""Feedback while learning in BabyAI: what is recorded and learned from, and that a run which was stopped goes on with equal numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("minigrid")

from guerdon.algorithms.iql import IQL
from guerdon.cli import main
from guerdon.datasets.minari import MinariFormat
from guerdon.errors import RunError, UnknownName, UsageError
from guerdon.evaluation.tasks import TaskList
from guerdon.evaluation.truth import qualities
from guerdon.networks import PolicyNetwork
from guerdon.recipes import feedback
from guerdon.recipes.online_babyai import METHODS, BabyAITasks, Config, Plan, QualityRewards, SparseRewards, TrueRewards, online_babyai
from guerdon.records import Task
from guerdon.rewards import fitting
from guerdon.rewards.fitting import load_model
from guerdon.rewards.relabel import relabel
from guerdon.seeding import generator
from guerdon.training import online_episodes
from guerdon.training.online_episodes import EpisodeDataset, _Again
from guerdon.training.online_records import read_lines, read_state
from guerdon.training.policy import load_policy
from tests.curves import curves, points

LOOP = online_episodes.Config(
    rounds=3, episodes=3, updates=3, session_every=2, evaluate_every=3, capacity=420, memory=True, sequences=2, context=32
)
FAST = fitting.Config(members=1, epochs=2, encoder="residual", channels=8)


def config(out: Path, method: str = "sparse", **changes: Any) -> Config:
    """A run of seconds."""
    settings = {"tasks": 2, "demonstrations": 2, "lengths": (1, 2), "budget": 60, "slots": 4, "quiet": True, "loop": LOOP}
    algorithm = IQL.Config(expectile=0.5, network=PolicyNetwork.Config(channels=8, width=16))
    fitted = {"fitting": FAST} if method not in ("true", "sparse") else {}
    return Config(**{"method": method, "out": out, "algorithm_settings": algorithm, **settings, **fitted, **changes})


def lines(out: Path) -> list[dict[str, Any]]:
    """All lines of a run, without the times."""
    found = [*read_lines(out / "metrics.jsonl"), *read_lines(out / "evaluations.jsonl")]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of erl-vlm."""
    out = tmp_path_factory.mktemp("online") / "erl-vlm"
    online_babyai.of(config(out, "erl-vlm", tensorboard=True))
    return out


@pytest.fixture(scope="module")
def world(finished: Path) -> BabyAITasks:
    dataset = MinariFormat.open(finished / "demonstrations", {})
    return BabyAITasks(dataset, TaskList.load(finished / "tasks.json"), "full", other_starts=0.5, slots=4)


# --- what is recorded ---------------------------------------------------------------------------------------------------------------


def test_an_episode_carries_what_a_demonstration_does(world: BabyAITasks) -> None:
    shown = world.demonstrations()
    tasks = [Task.from_record({**one.metadata["task"], "id": f"task {number}"}) for number, one in enumerate(shown)]
    again = world.carry_out(_Again({task.id: one.actions for task, one in zip(tasks, shown, strict=True)}), tasks)
    dataset = EpisodeDataset([replace(one, privileged={k: v for k, v in one.privileged.items() if k != "quality"}) for one in again], ())
    for index, (ours, theirs) in enumerate(zip(again, shown, strict=True)):
        assert ours.privileged.keys() == theirs.privileged.keys()
        for name, values in theirs.privileged.items():
            assert_array_equal(ours.privileged[name], values)
        assert_array_equal(ours.frames["full"], theirs.frames["full"])
        assert_array_equal(ours.actions, theirs.actions)
        assert (ours.terminated, ours.truncated) == (True, False)
        found = qualities(dataset, index)
        assert found is not None
        assert_allclose(ours.privileged["quality"], found, atol=1e-6)  # as the scripted teacher's truth is defined
        assert ours.privileged["quality"][-1] == 1.0


def test_an_episode_that_ends_early_is_no_success(world: BabyAITasks) -> None:
    shown = world.demonstrations()[0]
    task = replace(Task.from_record(shown.metadata["task"]), step_limit=2)
    (cut,) = world.carry_out(_Again({task.id: shown.actions}), [task])
    assert (cut.terminated, cut.truncated, len(cut.rewards)) == (False, True, 2)
    assert cut.privileged["success"].tolist() == [0.0, 0.0, 0.0]


def test_rewards_of_the_simulator(world: BabyAITasks) -> None:
    shown = EpisodeDataset(world.demonstrations(), ())
    found = [rewards.of(shown) for rewards in (SparseRewards(), TrueRewards(), QualityRewards())]
    for sparse, true, quality, episode in zip(*found, world.demonstrations(), strict=True):
        assert_array_equal(quality, 2 * (episode.privileged["quality"][1:] - 1))
        assert quality.min() >= -2
        assert quality[-1] == 0.0
        assert sparse.tolist() == [0.0] * (len(sparse) - 1) + [1.0]
        assert_array_equal(true, episode.privileged["contribution"])
        assert episode.rewards.sum() == pytest.approx(1.0)  # all sub-tasks done


def test_tasks_are_drawn_in_all_wordings_and_from_both_starts(world: BabyAITasks) -> None:
    random = generator(0, "draws")
    drawn = [world.draw(random) for _ in range(60)]
    assert {task.instruction for task in drawn} == {one.annotations[0].instruction for one in world.demonstrations()}
    others = sum(task.start == "randomised" for task in drawn)
    assert 15 < others < 45  # 30, four standard deviations either way


# --- a run --------------------------------------------------------------------------------------------------------------------------


def test_a_run_writes_all_that_it_should(finished: Path) -> None:
    metrics, evaluations = read_lines(finished / "metrics.jsonl"), read_lines(finished / "evaluations.jsonl")
    assert [line["round"] for line in metrics] == [0, 1, 2, 3]
    assert [line["sessions"] for line in metrics] == [1, 1, 2, 2]  # one on the demonstrations, one every second round
    assert [line["labels"] for line in metrics] == [40, 40, 60, 60]  # two thirds first; then all that is left
    assert all(line["dollars"] == 0 and line["coverage"] == 1 and line["transitions"] <= LOOP.capacity for line in metrics)
    assert [(line["step"], line["tasks"]) for line in evaluations] == [(0, 4), (metrics[-1]["step"], 4)]
    assert {row["start"] for row in evaluations[0]["outcomes"]} == {"fixed", "randomised"}
    assert metrics[-1]["step"] > metrics[1]["step"] > 0
    assert metrics[-1]["transitions"] < metrics[0]["transitions"] + metrics[-1]["step"]  # the oldest episodes made room
    assert curves(finished / "tensorboard") == points(metrics)
    policy = load_policy(finished / "policy")
    policy.start("go to the red ball")
    size = policy.spec.views["full"]
    assert 0 <= policy.step(np.zeros((*size, 3), np.uint8)) < 7


def test_everything_in_the_buffer_has_the_reward_of_the_last_model(finished: Path) -> None:
    (folder,) = (finished / "checkpoint").iterdir()
    state = read_state(folder)
    length = int(state["lengths"][0])
    demonstrations = MinariFormat.open(finished / "demonstrations", {})
    model = load_model(finished / "feedback" / "sessions" / "0001" / "model")
    ((_, scored),) = relabel(model, demonstrations, episodes=[state["episodes"][0][0]])
    assert_allclose(state["rewards"][:length], scored - 1, atol=1e-5)  # less its largest value
    old = load_model(finished / "feedback" / "sessions" / "0000" / "model")
    ((_, before),) = relabel(old, demonstrations, episodes=[state["episodes"][0][0]])
    assert np.abs(before - scored).max() > 1e-4


def test_segments_that_are_archived_carry_the_truth(finished: Path) -> None:
    for session in ("0000", "0001"):
        data = MinariFormat.open(finished / "feedback" / "sessions" / session / "data", {})
        for info in data.episodes():
            assert info.length == 1
            assert {"quality", "success", "subtask", "distance", "progress", "contribution"} == data.privileged(info.index).keys()
            assert info.metadata.keys() >= {"episode", "step", "task"}
    assert max(info.metadata["episode"] for info in data.episodes()) >= 4  # what the policy did, and not the demonstrations alone


class Killed(Exception):
    """What a test stops a run with."""


@pytest.mark.parametrize("after", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_run_that_was_killed_goes_on_with_equal_numbers(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    asked = config(tmp_path / "run", "erl-vlm")
    original = online_episodes.OnlineEpisodes._learn

    def stopping(self: online_episodes.OnlineEpisodes, number: int) -> dict[str, float]:
        found = original(self, number)
        if number == after:  # after acting, the session and learning, but before anything of the round was written
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(online_episodes.OnlineEpisodes, "_learn", stopping)
        with pytest.raises(Killed):
            online_babyai.of(asked)
    online_babyai.of(asked)
    assert lines(asked.out) == lines(finished)
    for name in ("policy/policy.safetensors", "tasks.json"):
        assert (asked.out / name).read_bytes() == (finished / name).read_bytes()


def test_a_finished_run_is_kept(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "checkpoint").rglob("*")}
    kept = lines(finished)
    again = online_babyai.of(config(finished, "erl-vlm"))
    assert again.kept
    assert (again.results["labels"], again.results["sessions"], again.results["episodes"]) == (60, 2, 9)
    assert {path: path.stat().st_mtime_ns for path in (finished / "checkpoint").rglob("*")} == before
    assert lines(finished) == kept


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"level": "one-room"}, "level"),
        ({"levels": 2}, "levels"),
        ({"vlm": ("embedded",)}, "vlm"),
        ({"teacher": "mistake"}, "teacher"),
        ({"seed": 1}, "seed"),
        ({"loop": replace(LOOP, rounds=4)}, "loop.rounds"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(finished: Path, changes: dict[str, Any], named: str) -> None:
    before = lines(finished)
    with pytest.raises(RunError, match=rf"other settings \({named} was"):
        online_babyai.of(config(finished, "erl-vlm", **changes))
    assert lines(finished) == before


def test_a_world_that_gives_other_pictures_is_noticed(finished: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "manifest.json").unlink()
    from guerdon.training.online_records import Checkpoints, write_state

    (folder,) = (copy / "checkpoint").iterdir()
    state = read_state(folder)
    state["episodes"][-1][3] = "s256:another"
    shutil.rmtree(folder)
    Checkpoints(copy).write(int(folder.name), lambda place: write_state(place, state))
    with pytest.raises(RunError, match="no longer gives what was seen in episode"):
        online_babyai.of(config(copy, "erl-vlm"))


@pytest.mark.parametrize(
    "method", ["sparse", "rl-vlm-f", *(pytest.param(name, marks=pytest.mark.slow) for name in ("true", "quality", "vanilla"))]
)
def test_all_rivals_learn_in_the_same_loop(tmp_path: Path, method: str) -> None:
    loop = replace(LOOP, rounds=1, session_every=1, evaluate_every=1, updates=2)
    online_babyai.of(config(tmp_path / "run", method, loop=loop))
    first, last = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([last["critic_loss"], last["value_loss"], last["policy_loss"]]).all()
    assert (first["labels"], last["labels"]) == ((0, 0) if method in ("true", "sparse") else (40, 60))
    if method == "rl-vlm-f":
        text = (tmp_path / "run" / "feedback" / "sessions.jsonl").read_text().splitlines()
        assert json.loads(text[0])["classes"].keys() == {"first", "neither", "second"}


def test_a_policy_without_a_memory_learns_from_single_transitions(tmp_path: Path) -> None:
    loop = replace(LOOP, rounds=1, memory=False, sequences=16, updates=2)
    online_babyai.of(config(tmp_path / "run", "true", loop=loop))
    assert not load_policy(tmp_path / "run" / "policy").spec.remembers


# --- settings -----------------------------------------------------------------------------------------------------------------------


def test_two_thirds_of_the_labels_are_asked_for_first() -> None:
    plan = Plan.of(1500, None, None, sessions=10)
    assert (plan.first, plan.later) == (1000, 50)  # as published
    assert [plan.wanted(number, obtained) for number, obtained in ((0, 0), (1, 900), (5, 1480), (6, 1500))] == [1000, 50, 20, 0]
    assert Plan.of(100, 10, 7, sessions=3) == Plan(100, 10, 7)
    assert Plan.of(10, 50, None, sessions=0) == Plan(10, 10, 0)
    assert Plan.of(90, None, None, sessions=4, shown=50) == Plan(90, 50, 10)  # 60 are wanted; what is left comes later


def test_presets_are_those_of_the_methods(tmp_path: Path) -> None:
    for method in ("erl-vlm", "vanilla", "rl-vlm-f"):
        assert Config(method=method, out=tmp_path).fitting_settings() == feedback.fitting_preset(method)
    assert Config(out=tmp_path).learning().expectile == 0.5
    discounts = {method: Config(method=method, out=tmp_path).learning().discount for method in METHODS}
    assert discounts == {
        "true": 0.8,
        "quality": 0.97,
        "erl-vlm": 0.97,
        "vanilla": 0.97,
        "rl-vlm-f": 0.97,
        "sparse": 0.97,
    }
    assert Config(method="true", out=tmp_path, algorithm_settings=IQL.Config(discount=0.5)).learning().discount == 0.5


@pytest.mark.parametrize(
    "settings",
    [{"tasks": 0}, {"levels": 1}, {"segment": 0}, {"other_starts": 2.0}, {"vlm": ()}, {"max_cost": 0.0}, {"lengths": (2, 1)}, {"seed": -1}],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Config(out=tmp_path, **settings)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="erl-vlm, quality, rl-vlm-f, sparse, true, vanilla"):
        Config(out=tmp_path, method="sac")
    with pytest.raises(UnknownName, match="teacher"):
        Config(out=tmp_path, teacher="strict")
    with pytest.raises(UnknownName, match="level"):
        online_babyai.of(config(tmp_path / "run", level="castle"))


def test_the_command_knows_what_this_world_pays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--world", "babyai", "--out", str(tmp_path / "run"), "--quiet"]
    sizes = ["--tasks", "2", "--demonstrations", "2", "--rounds", "1", "--episodes", "2", "--updates", "1"]
    assert main(["online", "quality", *words, *sizes]) == 0
    assert (tmp_path / "run" / "manifest.json").is_file()
    capsys.readouterr()
    assert main(["online", "magic", *words]) == 2
    assert "no source of rewards 'magic'; there are: erl-vlm, quality" in capsys.readouterr().err
    assert main(["online", "quality", "--out", str(tmp_path / "robot")]) == 2  # Meta-World's own reward is one of states
    assert "no method of learning 'quality'" in capsys.readouterr().err
