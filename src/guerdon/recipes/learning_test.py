"""The named learning test: does a dense reward teach shorter ways than imitation, where imitation is known to fail?

The problem: a training loop can be wrong in ways that no unit test sees (a reward shifted by one step, a terminal where an episode was
cut), and still produce a policy that gets somewhere. This test is built so that such a policy fails. In a room of 5x5 tiles lie a red and
a blue disc; the instruction names one of them. Every recorded episode succeeds, but more than half of its actions are drawn to the other
disc. Imitation learns to go there. Implicit Q-learning, told for each action whether it shortened the way, must not.

    python -m guerdon.recipes.learning_test

It collects the data, trains both policies with the package's own loop and network, and lets them act in the same layouts from new starts.
It prints a table and ends with exit status 0 only if implicit Q-learning completes at least 95 % of the tasks and its ways are shorter
than those of imitation. It takes some minutes on one core, and needs neither a simulator nor a network connection. Nothing is kept.

Rewards: 0.1 for each step by which an action shortens the way (negative if it lengthens it), and 1 for reaching the disc. They say of each
action what it is worth, so the discount is the one for such rewards, 0.8. Lengths of ways are in actions.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.interfaces import Actor, Dataset, Floats
from guerdon.records import Annotation, EpisodeInfo, Frames, Task, digest
from guerdon.seeding import generator

SIDE = 5
"""Tiles along a wall of the room."""
LAYOUTS = 40
"""Places of the two discs; each is seen in many demonstrations, from different starts."""
TILE = 8
"""Pixels along a tile."""
ACTIONS = ("left", "right", "forward")
COLOURS: Mapping[str, tuple[int, int, int]] = {"red": (220, 30, 30), "blue": (40, 60, 230)}
WORDINGS = ("go to the {} disc", "walk to the {} one", "find the {} disc", "the {} disc is where you should be")
DISCOUNT = 0.8
AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
"""East, south, west, north, as (column, row)."""

Cell = tuple[int, int]


@dataclass(frozen=True)
class Pose:
    """Where the agent stands and which way it looks (index into AHEAD)."""

    cell: Cell
    heading: int

    def after(self, action: int) -> Pose:
        """The pose that an action leads to; a wall stops the agent."""
        if action < 2:
            return Pose(self.cell, (self.heading + (-1, 1)[action]) % 4)
        column, row = (place + step for place, step in zip(self.cell, AHEAD[self.heading], strict=True))
        inside = 0 <= column < SIDE and 0 <= row < SIDE
        return Pose((column, row), self.heading) if inside else self


@dataclass(frozen=True)
class Room:
    """Two discs, a start, and which disc is asked for in which words."""

    discs: Mapping[str, Cell]
    start: Pose
    colour: str
    instruction: str

    @property
    def target(self) -> Cell:
        """Where the disc that is asked for lies."""
        return self.discs[self.colour]

    @classmethod
    def random(cls, discs: Mapping[str, Cell], random: np.random.Generator) -> Room:
        """A start that is not on a disc, a disc to go to, and words for it."""
        free = [(column, row) for column in range(SIDE) for row in range(SIDE) if (column, row) not in discs.values()]
        colour = str(random.choice(list(discs)))
        start = Pose(free[random.integers(len(free))], int(random.integers(4)))
        return cls(discs, start, colour, WORDINGS[random.integers(len(WORDINGS))].format(colour))

    def picture(self, pose: Pose) -> Frames:
        """(SIDE * TILE, SIDE * TILE, 3) uint8: grey floor, the discs, and the agent as a wedge that points ahead."""
        picture = np.full((SIDE * TILE, SIDE * TILE, 3), 60, dtype=np.uint8)
        for colour, cell in self.discs.items():
            _tile(picture, cell)[_disc()] = COLOURS[colour]
        _tile(picture, pose.cell)[_wedge(pose.heading)] = (250, 220, 60)
        return picture


def _tile(picture: Frames, cell: Cell) -> Frames:
    column, row = cell
    return picture[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]


@cache
def _disc() -> npt.NDArray[np.bool_]:
    down, along = np.mgrid[:TILE, :TILE] - (TILE - 1) / 2
    return np.asarray(down**2 + along**2 <= (TILE / 2) ** 2)


@cache
def _wedge(heading: int) -> npt.NDArray[np.bool_]:
    down, along = np.mgrid[:TILE, :TILE]
    east = np.abs(down - (TILE - 1) / 2) <= (TILE - 1 - along) / 2
    return np.rot90(east, -heading)


@cache
def distances(target: Cell) -> Mapping[Pose, int]:
    """Fewest actions from each pose to a cell, by breadth-first search backwards from it."""
    poses = [Pose((column, row), heading) for column in range(SIDE) for row in range(SIDE) for heading in range(4)]
    before: dict[Pose, list[Pose]] = {pose: [] for pose in poses}
    for pose in poses:
        for action in range(len(ACTIONS)):
            before[pose.after(action)].append(pose)
    found = {Pose(target, heading): 0 for heading in range(4)}
    queue = deque(found)
    while queue:
        pose = queue.popleft()
        for earlier in before[pose]:
            if earlier not in found:
                found[earlier] = found[pose] + 1
                queue.append(earlier)
    return found


@dataclass(frozen=True)
class Demonstration:
    """A recorded episode that ends on the disc that was asked for."""

    room: Room
    poses: Sequence[Pose]
    """T + 1 poses."""
    actions: Sequence[int]

    def rewards(self) -> npt.NDArray[np.float32]:
        """0.1 for each step by which an action shortened the way to the target, and 1 more for the last one."""
        way = [distances(self.room.target)[pose] for pose in self.poses]
        gained = 0.1 * np.array([before - after for before, after in pairwise(way)], dtype=np.float32)
        gained[-1] += 1.0
        return gained


def demonstrate(room: Room, random: np.random.Generator, *, distraction: float, noise: float) -> Demonstration:
    """Walks until it stands on the target. Each action is drawn anew: one towards the other disc with probability `distraction`, any one
    with probability `noise`, else one towards the target."""
    other = next(cell for colour, cell in room.discs.items() if colour != room.colour)
    poses, actions = [room.start], list[int]()
    while poses[-1].cell != room.target:
        way = distances(other if random.random() < distraction else room.target)
        nearer = [action for action in range(len(ACTIONS)) if way[poses[-1].after(action)] < way[poses[-1]]]
        choices = range(len(ACTIONS)) if random.random() < noise or not nearer else nearer
        actions.append(int(random.choice(list(choices))))
        poses.append(poses[-1].after(actions[-1]))
    return Demonstration(room, poses, actions)


class Recording(Dataset):
    """Demonstrations as a dataset."""

    def __init__(self, demonstrations: Sequence[Demonstration]) -> None:
        self.demonstrations = demonstrations
        self.path = Path("learning test")
        self.views = ("room",)
        self.action_names = ACTIONS

    @property
    def fingerprint(self) -> str:
        return digest("learning test", repr(self.demonstrations))

    @property
    def environment(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return len(self.demonstrations)

    def episode(self, index: int) -> EpisodeInfo:
        one = self.demonstrations[index]
        return EpisodeInfo(index, len(one.actions), True, False, (Annotation(one.room.instruction),))

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        if view not in self.views:
            raise KeyError(view)
        one = self.demonstrations[index]
        return np.stack([one.room.picture(pose) for pose in one.poses[start:stop]])

    def actions(self, index: int) -> npt.NDArray[Any]:
        return np.array(self.demonstrations[index].actions, dtype=np.int64)

    def rewards(self, index: int) -> Floats:
        return self.demonstrations[index].rewards().astype(np.float64)

    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        del index
        return {}


def draw_rooms(count: int, seed: int, purpose: str) -> list[Room]:
    """Rooms of `LAYOUTS` layouts, which depend on the seed alone; starts, discs to go to and words are drawn for each purpose anew."""
    places = generator(seed, "learning test", "layouts")
    layouts = []
    for _ in range(LAYOUTS):
        cells = places.choice(SIDE * SIDE, len(COLOURS), replace=False).tolist()
        layouts.append({colour: (cell % SIDE, cell // SIDE) for colour, cell in zip(COLOURS, cells, strict=True)})
    random = generator(seed, "learning test", purpose)
    return [Room.random(layouts[random.integers(LAYOUTS)], random) for _ in range(count)]


def record(episodes: int, seed: int) -> Recording:
    """The data: demonstrations of walkers who are drawn to the wrong disc more often than to the right one."""
    random = generator(seed, "learning test", "demonstrations")
    rooms = draw_rooms(episodes, seed, "recorded rooms")
    return Recording([demonstrate(room, random, distraction=0.55, noise=0.1) for room in rooms])


@dataclass(frozen=True)
class Outcome:
    """How a policy did on a set of tasks."""

    completed: float
    """Share of the tasks, in [0, 1]."""
    detour: float
    """Actions taken divided by the fewest that would do, mean over all tasks; a task that was not completed counts with its step limit."""


def measure(policy: Actor, rooms: Sequence[Room]) -> Outcome:
    """Lets a policy act in rooms, with five times the fewest actions (and at least ten) as the limit."""
    fewest = np.array([distances(room.target)[room.start] for room in rooms])
    limits = np.maximum(10, 5 * fewest)
    poses = [room.start for room in rooms]
    taken, active = np.zeros(len(rooms), dtype=np.int64), np.ones(len(rooms), dtype=np.bool_)
    policy.reset([Task(f"room {n}", "learning-test", room.instruction, 1, "randomised", int(limits[n])) for n, room in enumerate(rooms)])
    while active.any():
        pictures = np.stack([room.picture(pose) for room, pose in zip(rooms, poses, strict=True)])
        chosen = policy.act({"room": pictures}, active)
        for slot in np.flatnonzero(active).tolist():
            poses[slot] = poses[slot].after(int(chosen[slot]))
            taken[slot] += 1
            active[slot] = poses[slot].cell != rooms[slot].target and taken[slot] < limits[slot]
    completed = [pose.cell == room.target for room, pose in zip(rooms, poses, strict=True)]
    return Outcome(float(np.mean(completed)), float(np.mean(taken / fewest)))


def run(*, episodes: int = 1000, updates: int = 800, seed: int = 0) -> dict[str, Outcome]:
    """Trains both policies, measures them and the demonstrations, and prints a line for each as it is done."""
    from guerdon.algorithms.bc import BC
    from guerdon.algorithms.iql import IQL
    from guerdon.training.offline import Config, train
    from guerdon.training.policy import load_policy
    from guerdon.transitions import Transitions

    recording = record(episodes, seed)
    transitions = Transitions.build(recording)
    rooms = draw_rooms(200, seed, "tasks")
    ways = [len(one.actions) / distances(one.room.target)[one.room.start] for one in recording.demonstrations]
    outcomes = {"recorded": Outcome(1.0, float(np.mean(ways)))}
    print(f"{len(recording)} demonstrations, {len(transitions)} transitions, {len(rooms)} new tasks\n")
    print("              completed   way / shortest   seconds of training")
    print(f"{'recorded':12}{1.0:11.3f}{outcomes['recorded'].detour:17.2f}", flush=True)
    for name, config in {"bc": BC.Config(), "iql": IQL.Config(discount=DISCOUNT)}.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            path = train(transitions, name, config, updates=updates, seed=seed, out=Path(folder) / name, loop=Config(sequences=16))
            seconds = time.monotonic() - began
            outcomes[name] = measure(load_policy(path), rooms)
        print(f"{name:12}{outcomes[name].completed:11.3f}{outcomes[name].detour:17.2f}{seconds:17.0f}", flush=True)
    return outcomes


def passes(outcomes: Mapping[str, Outcome]) -> bool:
    """Whether implicit Q-learning completes 95 % of the tasks, by shorter ways than imitation."""
    return outcomes["iql"].completed >= 0.95 and outcomes["iql"].detour < outcomes["bc"].detour


def main() -> int:
    """Runs the test; 0 if it passes."""
    from guerdon.training.offline import use_one_thread

    use_one_thread()
    passed = passes(run())
    print("\npassed" if passed else "\nfailed: iql must complete 0.95 of the tasks, by shorter ways than bc")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
