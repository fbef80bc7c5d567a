"""Rollouts in a made-up world, so that nothing here depends on a simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from guerdon.errors import EnvironmentFailed, PolicyError, UsageError
from guerdon.evaluation.baselines import RandomActor, ReplayActor
from guerdon.interfaces import Actor, Environment, Integers, Observation, Step
from guerdon.records import Frames, Task
from guerdon.rollout import run_tasks
from guerdon.seeding import generator
from tests import point


class Counter(Environment):
    """Action 1 counts up, 0 does nothing; the task is done at `goal`. The picture shows goal and count."""

    views = ("front",)
    action_names = ("wait", "count")
    made = 0
    closed = 0

    def __init__(self) -> None:
        Counter.made += 1

    def reset(self, task: Task) -> Observation:
        self.goal, self.count, self.width = task.length, 0, task.spec.get("width", 1)
        return self._look()

    def step(self, action: int) -> Step:
        assert self.count < self.goal, "stepped after the end"
        self.count += action
        return Step(self._look(), self.count / self.goal, self.count == self.goal)

    def close(self) -> None:
        Counter.closed += 1

    def _look(self) -> Observation:
        return Observation({"front": np.full((2, self.width, 3), (self.goal, self.count, 0), np.uint8)})


class Watcher(Actor):
    """Counts in every slot, and remembers what it was shown."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.shown: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []

    def reset(self, tasks: Sequence[Task]) -> None:
        self.groups.append([task.id for task in tasks])

    def act(self, frames: Mapping[str, Frames], active: npt.NDArray[np.bool_]) -> Integers:
        self.shown.append((frames["front"], active.copy()))
        return np.ones(len(active), np.int64)


def task(name: str, goal: int, limit: int, **spec: Any) -> Task:
    return Task(name, "counter", "count", goal, "fixed", limit, spec=spec)


def test_results_by_hand() -> None:
    tasks = [task("long", 4, 10), task("short", 2, 3), task("too-long", 6, 3)]
    results = run_tasks(Watcher(), tasks, Counter, keep_frames={"short"})
    assert [result.task.id for result in results] == ["long", "short", "too-long"]
    assert [result.completed for result in results] == [1.0, 1.0, 0.5]
    assert [result.success for result in results] == [True, True, False]
    assert [result.steps for result in results] == [4, 2, 3]
    np.testing.assert_array_equal(results[2].actions, [1, 1, 1])
    assert [sorted(result.frames) for result in results] == [[], ["front"], []]
    np.testing.assert_array_equal(results[1].frames["front"][:, 0, 0], [[2, 0, 0], [2, 1, 0], [2, 2, 0]])


def test_the_actor_sees_each_slot_and_which_are_active() -> None:
    watcher = Watcher()
    run_tasks(watcher, [task("a", 1, 5), task("b", 3, 5)], Counter)
    assert [frames[:, 0, 0, 1].tolist() for frames, _ in watcher.shown] == [[0, 0], [1, 1], [1, 2]]
    assert [active.tolist() for _, active in watcher.shown] == [[True, True], [False, True], [False, True]]


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 16])
def test_results_do_not_depend_on_the_number_of_slots(slots: int) -> None:
    tasks = [task(f"{number}", 1 + number % 4, 1 + number % 5) for number in range(7)]
    told: list[tuple[int, int]] = []
    results = run_tasks(RandomActor(3, 2), tasks, Counter, slots=slots, progress=lambda done, total: told.append((done, total)))
    alone = run_tasks(RandomActor(3, 2), tasks, Counter, slots=1)
    for one, other in zip(results, alone, strict=True):
        assert (one.task, one.completed, one.steps) == (other.task, other.completed, other.steps)
        np.testing.assert_array_equal(one.actions, other.actions)
    assert told[-1] == (7, 7)
    assert len(told) == -(-7 // slots)


def test_tasks_of_similar_step_limits_run_together() -> None:
    watcher = Watcher()
    run_tasks(watcher, [task("a", 9, 9), task("b", 1, 1), task("c", 8, 8), task("d", 2, 2)], Counter, slots=2)
    assert watcher.groups == [["b", "d"], ["c", "a"]]


def test_environments_are_reused_and_closed() -> None:
    Counter.made = Counter.closed = 0
    run_tasks(Watcher(), [task(f"{number}", 1, 1) for number in range(9)], Counter, slots=4)
    assert (Counter.made, Counter.closed) == (4, 4)
    with pytest.raises(PolicyError):
        run_tasks(Broken(np.zeros(3)), [task("a", 1, 1)], Counter)
    assert Counter.made == Counter.closed


class Broken(Watcher):
    def __init__(self, actions: npt.NDArray[Any]) -> None:
        super().__init__()
        self._actions = actions

    def act(self, frames: Mapping[str, Frames], active: npt.NDArray[np.bool_]) -> Integers:
        return self._actions


@pytest.mark.parametrize("actions", [np.zeros(2), np.zeros(3, np.int64), np.zeros((2, 1), np.int64)])
def test_an_actor_returns_one_whole_number_a_slot(actions: npt.NDArray[Any]) -> None:
    with pytest.raises(PolicyError, match="2 whole numbers"):
        run_tasks(Broken(actions), [task("a", 1, 1), task("b", 1, 1)], Counter)


def test_no_tasks_no_results() -> None:
    assert run_tasks(Watcher(), [], Counter) == []


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(UsageError, match="slot"):
        run_tasks(Watcher(), [], Counter, slots=0)
    with pytest.raises(UsageError, match="same id"):
        run_tasks(Watcher(), [task("a", 1, 1), task("a", 2, 2)], Counter)
    with pytest.raises(UsageError, match="task a: the step limit is 0"):
        run_tasks(Watcher(), [task("a", 1, 0)], Counter)
    with pytest.raises(EnvironmentFailed, match=r"tasks a, b: .*picture sizes"):
        run_tasks(Watcher(), [task("a", 1, 1), task("b", 1, 1, width=5)], Counter)


# --- baselines ----------------------------------------------------------------------------------------------------------------------


def test_random_actions_are_uniform_and_repeatable() -> None:
    def actions(seed: int) -> npt.NDArray[np.int64]:
        return run_tasks(RandomActor(seed, 2), [task("a", 10_000, 2000)], Counter)[0].actions

    np.testing.assert_array_equal(actions(0), actions(0))
    assert (actions(0) != actions(1)).any()
    assert 900 < actions(0).sum() < 1100


def test_tasks_get_different_random_actions() -> None:
    one, other = run_tasks(RandomActor(0, 2), [task("a", 100, 50), task("b", 100, 50)], Counter)
    assert (one.actions != other.actions).any()


@pytest.mark.parametrize(("idle", "expected"), [(0, [1, 0, 1, 0, 0]), (None, [1, 0, 1, 1, 1])])
def test_replay(idle: int | None, expected: list[int]) -> None:
    replay = ReplayActor({"a": np.array([1, 0, 1])}, idle)
    results = run_tasks(replay, [task("a", 9, 5)], Counter)
    np.testing.assert_array_equal(results[0].actions, expected)


def test_replay_needs_a_recording() -> None:
    with pytest.raises(UsageError, match="nothing to replay for task b"):
        ReplayActor({"a": np.array([1])}).reset([task("b", 1, 1)])


# --- continuous actions and vectors -------------------------------------------------------------------------------------------------


class Straight(Actor):
    """Pushes the point to its goal."""

    views = ()

    def reset(self, tasks: Sequence[Task]) -> None:
        self.seen: list[set[str]] = []

    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        self.seen.append(set(seen))
        state = seen["state"]
        return np.clip((state[:, 2:4] - state[:, :2]) / point.SPEED, -1, 1)


def test_continuous_actions_and_true_rewards_are_kept() -> None:
    actor = Straight()
    results = run_tasks(actor, point.tasks(5, limit=15), point.PointWorld)
    assert all(result.success and result.completed == 1.0 for result in results)
    assert actor.seen[0] == {"above", "state"}
    for result in results:
        assert result.actions.shape == (result.steps, 2)
        assert result.actions.dtype == np.float32
        random = generator(result.task.spec["seed"], "world")
        place, goal = random.uniform(-1, 1, 2), random.uniform(-1, 1, 2)
        left = np.linalg.norm(goal - place - point.SPEED * result.actions.sum(0))
        assert left < point.NEAR
        assert result.reward == pytest.approx(np.linalg.norm(goal - place) - left, abs=1e-4)


def test_films_have_worlds_of_their_own() -> None:
    point.PointWorld.made.clear()
    some = point.tasks(5)
    films = {some[1].id, some[4].id}
    results = run_tasks(
        Straight(),
        some,
        lambda: point.PointWorld(views=()),
        slots=2,
        keep_frames=films,
        make_filmed=lambda: point.PointWorld(views=("above",)),
    )
    assert point.PointWorld.made == [(), (), ("above",), ("above",)]
    assert [sorted(result.frames) for result in results] == [[], ["above"], [], [], ["above"]]
    assert results[1].frames["above"].shape == (results[1].steps + 1, 4, 4, 3)
    together = run_tasks(Straight(), some, point.PointWorld, slots=5)
    for one, other in zip(results, together, strict=True):
        assert (one.task, one.steps, one.reward) == (other.task, other.steps, other.reward)


def test_progress_that_is_lost_again_counts() -> None:
    class Fading(Counter):
        """Near its goal after two steps, and far again after three."""

        def step(self, action: int) -> Step:
            self.count += 1
            return Step(self._look(), (0.0, 0.5, 0.75, 0.25)[self.count], False, float(self.count))

    result = run_tasks(Watcher(), [task("a", 4, 3)], Fading)[0]
    assert (result.completed, result.success, result.reward) == (0.75, False, 6.0)


class Stubborn(Straight):
    def __init__(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions

    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        return self._actions


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros(2), "2 rows of 2 floats"),
        (np.zeros((2, 3)), "2 rows of 2 floats"),
        (np.zeros((2, 2), np.int64), "2 rows of 2 floats"),
        (np.full((2, 2), 1.5), r"outside \[-1, 1\]"),
        (np.full((2, 2), np.nan), "not a number"),
    ],
)
def test_an_actor_returns_floats_in_range(actions: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        run_tasks(Stubborn(actions), point.tasks(2), point.PointWorld)


def test_random_pushes_are_uniform_and_repeatable() -> None:
    def pushes(seed: int) -> npt.NDArray[Any]:
        far = Task("point/far", "point", "go", 1, "fixed", 2000, spec={"seed": 3})
        return run_tasks(RandomActor(seed, 0, 2), [far], Distant)[0].actions

    assert np.array_equal(pushes(0), pushes(0))
    assert not np.array_equal(pushes(0), pushes(1))
    assert pushes(0).shape == (2000, 2)
    assert abs(pushes(0).mean()) < 0.05
    assert pushes(0).std() == pytest.approx(3**-0.5, abs=0.02)


class Distant(point.PointWorld):
    """Never done."""

    def step(self, action: Any) -> Step:
        self._place = self._goal + 5.0
        return super().step(action)


def test_recorded_pushes_are_replayed() -> None:
    recorded = point.PointData(1, steps=4)
    recorded._walks[0][1][0, 0] = 1.00001  # rounded beyond 1 by the recorder
    replay = ReplayActor.of(recorded, {"point/0": 0})
    done = run_tasks(replay, point.tasks(1, limit=6), Distant)[0].actions
    expected = np.clip(recorded.actions(0)[[0, 1, 2, 3, 3, 3]], -1, 1)
    np.testing.assert_array_equal(done, expected)
