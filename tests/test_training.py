"""The training loop: the same numbers again, the same numbers after a kill, and a memory that reaches back as far as it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guerdon.algorithms.bc import BC
from guerdon.algorithms.iql import IQL
from guerdon.errors import PolicyError, RunError, StaleInput, UnknownName, UsageError
from guerdon.interfaces import Actor
from guerdon.networks import Optimiser, PolicyNetwork
from guerdon.recipes import learning_test
from guerdon.records import Frames
from guerdon.rollout import run_tasks
from guerdon.training.offline import Config, advantages, train, updates_for, updates_within
from guerdon.training.policy import load_policy, read_tensors
from guerdon.transitions import Transitions
from tests import point
from tests.memory import MemoryDataset, MemoryEpisode

SMALL = PolicyNetwork.Config(channels=8, width=16)
LOOP = Config(sequences=2, context=3, log_every=2, checkpoint_every=4)
SETTINGS: dict[str, Any] = {"bc": BC.Config(network=SMALL), "iql": IQL.Config(network=SMALL)}


class Killed(Exception):
    """Stands for a signal: nothing in the package may catch it."""


def transitions(*, last_reward: float = 1.0) -> Transitions:
    lengths = (4, 6, 3)
    return Transitions.build(MemoryDataset([MemoryEpisode(n, f"task {n}", rewards=[0.0] * (n - 1) + [last_reward]) for n in lengths]))


def run(
    out: Path, name: str = "iql", *, updates: int = 10, seed: int = 0, kill_at: int = -1, data: Transitions | None = None, **more: Any
) -> Path:
    def progress(made: int, _: int) -> None:
        if made == kill_at:
            raise Killed

    settings = {"config": SETTINGS[name], "loop": LOOP} | more
    return train(data or transitions(), name, updates=updates, seed=seed, out=out, progress=progress, **settings)


def metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def differing_tensors(first: Path, second: Path) -> list[str]:
    found = []
    for file in ("checkpoint.safetensors", "policy.safetensors"):
        ours, theirs = read_tensors(first / file)[0], read_tensors(second / file)[0]
        assert ours.keys() == theirs.keys()
        found += [name for name in ours if not torch.equal(ours[name], theirs[name])]
    return found


@pytest.mark.parametrize(("name", "kill_at"), [("bc", 6), ("iql", 2), ("iql", 4), ("iql", 10)])
def test_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, name: str, kill_at: int) -> None:
    run(tmp_path / "whole", name)
    with pytest.raises(Killed):
        run(tmp_path / "killed", name, kill_at=kill_at)
    assert not (tmp_path / "killed" / "policy.json").exists()
    run(tmp_path / "killed", name)
    assert differing_tensors(tmp_path / "whole", tmp_path / "killed") == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    assert [line["update"] for line in metrics(tmp_path / "whole")] == [2, 4, 6, 8, 10]


def test_seeds_decide_the_numbers(tmp_path: Path) -> None:
    first, again, other = (run(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert differing_tensors(first, again) == []
    assert (first / "policy.safetensors").read_bytes() == (again / "policy.safetensors").read_bytes()
    assert differing_tensors(first, other) != []


def test_a_finished_run_is_kept(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "policy.safetensors").stat().st_mtime_ns
    assert run(tmp_path, kill_at=2) == tmp_path
    assert (tmp_path / "policy.safetensors").stat().st_mtime_ns == before
    with pytest.raises(Killed):
        run(tmp_path, kill_at=2, resume=False)
    assert not (tmp_path / "policy.json").exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"updates": 12}, "updates"),
        ({"data": transitions(last_reward=2.0)}, "data"),
        ({"config": IQL.Config(network=SMALL, discount=0.9)}, "config"),
        ({"loop": Config(sequences=3, context=3, log_every=2, checkpoint_every=4)}, "sequences"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path: Path, finished: bool, change: dict[str, Any], name: str) -> None:
    if finished:
        run(tmp_path)
    else:
        with pytest.raises(Killed):
            run(tmp_path, kill_at=6)
    with pytest.raises(StaleInput, match=f"other {name}"):
        run(tmp_path, **change)


def test_how_often_it_writes_does_not_matter(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", loop=Config(sequences=2, context=3, log_every=5, checkpoint_every=5))
    assert differing_tensors(tmp_path / "a", tmp_path / "b") == []


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunError, match="is damaged"):
        run(tmp_path)


def test_a_line_of_metrics_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, kill_at=6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 7, "val')
    run(tmp_path)
    assert [line["update"] for line in metrics(tmp_path)] == [2, 4, 6, 8, 10]


def test_divergence_is_an_error_and_leaves_no_policy(tmp_path: Path) -> None:
    config = BC.Config(network=SMALL, optimiser=Optimiser.Config(learning_rate=1e30))
    with pytest.raises(PolicyError, match="training diverged"):
        run(tmp_path, "bc", config=config)
    assert not (tmp_path / "policy.json").exists()


def test_tensorboard_on_request(tmp_path: Path) -> None:
    run(tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()
    run(tmp_path / "with", log_to_tensorboard=True)
    assert list((tmp_path / "with" / "tensorboard").glob("events*"))


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sequences must be at least 1"):
        Config(sequences=0)
    with pytest.raises(UsageError, match="multiple of log_every"):
        Config(log_every=40, checkpoint_every=100)
    with pytest.raises(UsageError, match="updates must be at least 1"):
        run(tmp_path, updates=0)
    with pytest.raises(UnknownName, match="there are: bc, iql"):
        train(transitions(), "ppo", seed=0, out=tmp_path)


def test_updates_are_counted_by_the_clock() -> None:
    few = updates_within(0.001, transitions(), "bc", SETTINGS["bc"], loop=LOOP, trial=2)
    many = updates_within(100.0, transitions(), "bc", SETTINGS["bc"], loop=LOOP, trial=2)
    assert 1 <= few < many


class Reminder(MemoryDataset):
    """A red or a blue picture, grey ones, and twenty steps later a white one: left after red, right after blue."""

    WAIT = 20

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        pictures = np.full((self.WAIT + 2, 8, 8, 3), 128, np.uint8)
        pictures[self.WAIT] = 255
        pictures[0] = (255, 0, 0) if index % 2 == 0 else (0, 0, 255)
        return pictures[start:stop]

    def actions(self, index: int) -> np.ndarray:
        return np.array([2] * self.WAIT + [index % 2])


def test_nothing_is_left_to_see_when_the_turn_is_due() -> None:
    source = Reminder([MemoryEpisode(Reminder.WAIT + 1)] * 2)
    red, blue = (source.frames(index, "full", 0, Reminder.WAIT + 2) for index in range(2))
    assert (red[1:] == blue[1:]).all()
    assert (red[0] != blue[0]).any()


def test_what_was_done_twenty_steps_ago_decides(tmp_path: Path) -> None:
    length = Reminder.WAIT + 1
    source = Reminder([MemoryEpisode(length, "look, wait, then turn", rewards=[0.0] * length) for _ in range(2)])
    config = BC.Config(network=PolicyNetwork.Config(channels=8, width=64), optimiser=Optimiser.Config(learning_rate=2e-3, warm_up=5))
    train(Transitions.build(source), "bc", config, updates=250, seed=0, out=tmp_path, loop=Config(sequences=2))
    policy = load_policy(tmp_path)
    for index in range(2):
        policy.start("look, wait, then turn")
        actions = [policy.step(frame) for frame in source.frames(index, "full", 0, length)]
        assert actions == source.actions(index).tolist()


class Oracle(Actor):
    """Knows the room, and takes a shortest way after `dithering` wasted turns."""

    def __init__(self, rooms: list[learning_test.Room], dithering: int = 0) -> None:
        self.rooms, self.wasted = rooms, dithering

    def reset(self, tasks: Any) -> None:
        self.poses = [room.start for room in self.rooms]
        self.left = [self.wasted] * len(self.rooms)

    def act(self, frames: Any, active: Any) -> Any:
        return np.array([self.choose(slot) if going else 0 for slot, going in enumerate(active)])

    def choose(self, slot: int) -> int:
        way = learning_test.distances(self.rooms[slot].target)
        nearer = next(action for action in range(3) if way[self.poses[slot].after(action)] < way[self.poses[slot]])
        action = 0 if self.left[slot] else nearer
        self.left[slot] = max(0, self.left[slot] - 1)
        self.poses[slot] = self.poses[slot].after(action)
        return action


def test_the_learning_test_measures_ways() -> None:
    rooms = learning_test.draw_rooms(30, 0, "tasks")
    assert learning_test.measure(Oracle(rooms), rooms) == learning_test.Outcome(1.0, 1.0)
    dithering = learning_test.measure(Oracle(rooms, dithering=4), rooms)
    assert dithering.completed == 1.0
    assert dithering.detour > 1.3
    assert learning_test.measure(Oracle(rooms, dithering=1000), rooms).completed == 0.0


def test_the_learning_test_s_data_succeed_by_detours_and_reward_each_step_that_shortens_the_way() -> None:
    recording = learning_test.record(40, seed=0)
    for one in recording.demonstrations:
        way = learning_test.distances(one.room.target)
        assert one.poses[-1].cell == one.room.target
        assert one.rewards().sum() == pytest.approx(1.0 + 0.1 * way[one.room.start], abs=1e-5)
        assert all(one.room.picture(pose).shape == (40, 40, 3) for pose in one.poses[:1])
    shortest = sum(learning_test.distances(one.room.target)[one.room.start] for one in recording.demonstrations)
    assert sum(len(one.actions) for one in recording.demonstrations) > 2 * shortest


@pytest.mark.parametrize(
    ("iql", "bc", "expected"), [((0.95, 1.2), (1.0, 1.3), True), ((0.94, 1.2), (1.0, 1.3), False), ((1.0, 1.3), (1.0, 1.3), False)]
)
def test_the_learning_test_can_fail(iql: tuple[float, float], bc: tuple[float, float], expected: bool) -> None:
    assert learning_test.passes({"iql": learning_test.Outcome(*iql), "bc": learning_test.Outcome(*bc)}) is expected


def test_advantages_are_those_of_the_finished_training(tmp_path: Path) -> None:
    data = transitions()
    out = run(tmp_path, data=data)
    found = advantages(data, "iql", SETTINGS["iql"], updates=10, seed=0, out=out, loop=LOOP)
    assert found is not None
    assert {key: array.shape for key, array in found.items()} == {(0, 0): (4,), (1, 0): (6,), (2, 0): (3,)}
    assert len(np.unique(np.concatenate(list(found.values())))) > 1
    with pytest.raises(StaleInput):
        advantages(data, "iql", SETTINGS["iql"], updates=10, seed=1, out=out, loop=LOOP)
    imitation = run(tmp_path / "bc", "bc", data=data)
    assert advantages(data, "bc", SETTINGS["bc"], updates=10, seed=0, out=imitation, loop=LOOP) is None


# --- vectors and continuous actions -------------------------------------------------------------------------------------------------

PUSHES: dict[str, Any] = {
    "bc": BC.Config(network=PolicyNetwork.Config(hidden=(16,))),
    "iql": IQL.Config(network=PolicyNetwork.Config(hidden=(16,))),
}
SINGLES = Config(sequences=4, log_every=2, checkpoint_every=4)


def pushes(count: int = 4, *, texts: tuple[str, ...] = ("go", "run")) -> Transitions:
    return Transitions.build(point.PointData(count, steps=5, texts=texts), vectors=("state",))


@pytest.mark.parametrize(("name", "kill_at"), [("bc", 6), ("iql", 4)])
def test_a_killed_run_on_states_goes_on_bit_by_bit(tmp_path: Path, name: str, kill_at: int) -> None:
    more: dict[str, Any] = {"data": pushes(), "config": PUSHES[name], "loop": SINGLES}
    run(tmp_path / "whole", name, **more)
    with pytest.raises(Killed):
        run(tmp_path / "killed", name, kill_at=kill_at, **more)
    run(tmp_path / "killed", name, **more)
    assert differing_tensors(tmp_path / "whole", tmp_path / "killed") == []
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")
    run(tmp_path / "other", name, seed=1, **more)
    assert differing_tensors(tmp_path / "whole", tmp_path / "other") != []


def test_batches_and_updates_fit_what_is_seen(tmp_path: Path) -> None:
    pictures, states = transitions().spec, pushes().spec
    assert (Config().of(pictures), Config().of(states)) == ((8, 64), (256, 1))
    assert Config(sequences=3, context=7).of(states) == (3, 7)
    assert (updates_for(pictures), updates_for(states)) == (1500, 5000)
    out = run(tmp_path, "bc", data=pushes(), config=PUSHES["bc"], loop=None, updates=2)
    training = json.loads((out / "policy.json").read_text())["training"]
    assert (training["sequences"], training["context"], training["updates"]) == (256, 1, 2)


def test_advantages_of_states(tmp_path: Path) -> None:
    data = pushes()
    which: dict[str, Any] = {"updates": 6, "seed": 0, "loop": SINGLES}
    train(data, "iql", PUSHES["iql"], out=tmp_path, **which)
    found = advantages(data, "iql", PUSHES["iql"], out=tmp_path, **which)
    assert found is not None
    assert {key: array.shape for key, array in found.items()} == {(k, 0): (5,) for k in range(4)}


def test_a_reward_teaches_straighter_ways_than_imitation(tmp_path: Path) -> None:
    """Most recorded pushes go astray; which ones, the reward says."""
    data = Transitions.build(point.PointData(40), vectors=("state",))
    steps = {}
    for name, algorithm in (("bc", BC), ("iql", IQL)):
        config = algorithm.Config(network=PolicyNetwork.Config(hidden=(64, 64)))  # type: ignore[call-arg]
        out = train(data, name, config, updates=500, seed=0, out=tmp_path / name, loop=Config(sequences=64))
        results = run_tasks(load_policy(out), point.tasks(30), lambda: point.PointWorld(views=()))
        steps[name] = float(np.mean([result.steps for result in results]))
        completed = float(np.mean([result.success for result in results]))
    assert completed == 1.0  # by iql, the last one
    assert steps["iql"] < 0.6 * steps["bc"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_dense_reward_teaches_shorter_ways_than_imitation() -> None:
    assert learning_test.passes(learning_test.run())


def test_a_policy_of_pictures_learns_in_bfloat16(tmp_path: Path) -> None:
    """One context of automatic precision kept over several updates would go on with the weights that it rounded first."""
    single = run(tmp_path / "single", "bc", updates=60, loop=Config(sequences=2, context=3, log_every=20, checkpoint_every=20))
    half = run(
        tmp_path / "half", "bc", updates=60, loop=Config(sequences=2, context=3, log_every=20, checkpoint_every=20, precision="bfloat16")
    )
    ours, theirs = ([line["policy_loss"] for line in metrics(out)] for out in (half, single))
    assert ours == pytest.approx(theirs, rel=0.1)
    assert ours != theirs
    assert ours[-1] < 0.95 * ours[0]
