"""A point that is pushed towards a goal: continuous actions, a state instead of pictures, and a reward that says which pushes helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from guerdon.interfaces import Environment, Observation, Step
from guerdon.records import Frames, Task
from guerdon.seeding import generator
from tests.memory import MemoryDataset, MemoryEpisode

SPEED = 0.2
"""How far an action of 1 moves the point."""
NEAR = 0.15
"""How near to the goal is near enough."""


def state(place: np.ndarray[Any, Any], goal: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Place and goal, and a number that never changes."""
    return np.array([*place, *goal, 7.0], np.float32)


class PointData(MemoryDataset):
    """Demonstrations of `steps` steps; most pushes go astray. No pictures unless asked for."""

    def __init__(
        self, count: int, *, steps: int = 20, astray: float = 0.6, views: Sequence[str] = (), texts: Sequence[str] = ("go",)
    ) -> None:
        super().__init__([MemoryEpisode(steps, texts[k % len(texts)], terminated=False) for k in range(count)])
        self.views, self.vectors, self.action_names = tuple(views), ("state",), ()
        self.read: list[str] = []
        self._walks = [self._walk(generator(k, "point"), steps, astray) for k in range(count)]

    @staticmethod
    def _walk(random: np.random.Generator, steps: int, astray: float) -> tuple[np.ndarray[Any, Any], ...]:
        place, goal = random.uniform(-1, 1, 2), random.uniform(-1, 1, 2)
        states, actions, rewards = [state(place, goal)], [], []
        for _ in range(steps):
            way = np.clip((goal - place) / SPEED, -1, 1)
            action = random.uniform(-1, 1, 2) if random.random() < astray else way
            moved = place + SPEED * action
            rewards.append(np.linalg.norm(goal - place) - np.linalg.norm(goal - moved))
            actions.append(action)
            place = moved
            states.append(state(place, goal))
        return np.array(states), np.array(actions, np.float32), np.array(rewards)

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        self.read.append(view)
        return super().frames(index, view, start, stop)

    def vector(self, index: int, name: str) -> np.ndarray[Any, Any]:
        if name not in self.vectors:
            raise KeyError(name)
        return self._walks[index][0]

    def actions(self, index: int) -> np.ndarray[Any, Any]:
        return self._walks[index][1]

    def rewards(self, index: int) -> np.ndarray[Any, Any]:
        return self._walks[index][2]


class PointWorld(Environment):
    """Done when the point is near its goal. Draws a picture for each view it was asked for."""

    action_names = ()
    action_size = 2
    made: list[tuple[str, ...]] = []  # noqa: RUF012 (tests read which worlds were made)

    def __init__(self, views: Sequence[str] = ("above",)) -> None:
        self.views = tuple(views)
        PointWorld.made.append(self.views)

    def reset(self, task: Task) -> Observation:
        random = generator(task.spec["seed"], "world")
        self._place, self._goal = random.uniform(-1, 1, 2), random.uniform(-1, 1, 2)
        return self._look()

    def step(self, action: Any) -> Step:
        before = self._distance()
        self._place = self._place + SPEED * np.asarray(action, np.float64)
        done = bool(self._distance() < NEAR)
        return Step(self._look(), float(done), done, before - self._distance())

    def _distance(self) -> float:
        return float(np.linalg.norm(self._goal - self._place))

    def _look(self) -> Observation:
        pictures: Mapping[str, Frames] = {view: np.full((4, 4, 3), 9, np.uint8) for view in self.views}
        return Observation(pictures, {"state": state(self._place, self._goal)})


def tasks(count: int, *, limit: int = 20) -> list[Task]:
    return [Task(f"point/{k}", "point", "go", 1, "fixed", limit, spec={"seed": 1000 + k}) for k in range(count)]
