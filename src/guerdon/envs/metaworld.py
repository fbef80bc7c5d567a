"""Meta-World: a robot arm at a table, with one object to be moved, opened, pressed or turned.

    "pull the drawer open"

A policy sees the arm and the object as 39 numbers or as pictures, and moves the gripper by four continuous components. The world is fully
determined by a task: name and seed decide where everything is. Two starts of one task differ in these places and in nothing else. What the
simulator calls success has to last for some steps before the task counts as done, since what an instruction names is a resting end state.

A task's `spec` (JSON-ready):

    name        of the simulator's task, e.g. "drawer-open-v3"
    seed        of the places
    positions   the places that the seed gave when the task was made; a simulator that gives others now is refused
    wording     index of the instruction's words
    hold        steps in a row that success has to last
    size        height and width of pictures in pixels
    repeat      steps of the simulator that an action lasts; left out if it is one
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from guerdon.envs._metaworld_simulator import LONGEST, VIEWS, World
from guerdon.envs._metaworld_words import WORDINGS, recorded_wordings
from guerdon.errors import EnvironmentFailed, UnknownName
from guerdon.interfaces import Environment, Observation, Step
from guerdon.records import Task
from guerdon.seeding import stream_seed

NAMES: tuple[str, ...] = tuple(WORDINGS)
"""Names of all tasks."""
STATE = "state"
"""Name of the vector: gripper's place and opening and the object's place and turn, now and one step ago, and the goal's place."""
MOST_REWARD = 10.0
"""The simulator's reward of one step at its best."""

HOLD = 5
"""Steps in a row that success lasts, by default."""
SIZE = 128
"""Height and width of pictures, by default."""


@dataclass(frozen=True)
class _Spec:
    """A task's `spec`, read and typed."""

    name: str
    seed: int
    positions: tuple[float, ...]
    wording: int
    hold: int = HOLD
    size: int = SIZE
    repeat: int = 1

    @classmethod
    def read(cls, task: Task) -> _Spec:
        """Reads the spec of a task. Raises EnvironmentFailed if it is of another world or damaged, or does not say the instruction."""
        if task.environment != "metaworld":
            what = f"the task belongs to the environment '{task.environment}', not to metaworld"
            raise EnvironmentFailed(what, where=f"task {task.id}")
        try:
            spec = task.spec
            seed, wording, hold, size = (operator.index(spec[key]) for key in ("seed", "wording", "hold", "size"))
            repeat = operator.index(spec.get("repeat", 1))
            read = cls(str(spec["name"]), seed, tuple(float(value) for value in spec["positions"]), wording, hold, size, repeat)
            if min(seed, wording, hold - 1, size - 1, repeat - 1) < 0:
                raise ValueError(f"one of {seed=}, {wording=}, {hold=}, {size=}, {repeat=} is too small")
            says = WORDINGS[read.name][wording]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"the task's spec is damaged ({type(error).__name__}: {error})"
            raise EnvironmentFailed(what, where=f"task {task.id}", cure="Make the list of tasks again.") from None
        if says != task.instruction or task.length != 1:
            what = f"the task's spec says '{says}', its instruction '{task.instruction}' ({task.length} sub-tasks)"
            raise EnvironmentFailed(what, where=f"task {task.id}", cure="Make the list of tasks again.")
        return read

    def to_record(self) -> dict[str, Any]:
        record = {**asdict(self), "positions": list(self.positions)}
        if self.repeat == 1:
            del record["repeat"]  # as in tasks that were written down before actions could last
        return record


class MetaWorld(Environment):
    """The world of a task. Its observations have the vector "state", (39,) float32, and the pictures asked for.

    Args:
        views: which pictures to draw: "close" (a camera near the table's middle) or one of the simulator's cameras ("corner2", "topview",
            ...), each also without the robot ("corner2-no-robot"); none at all makes stepping some twenty times as fast.

    Raises:
        UnknownName: for another view.
    """

    action_names = ()
    action_size = 4
    """The gripper's movement along three axes (1 is a centimetre), and how firmly it closes."""

    def __init__(self, views: Sequence[str] = ("corner2",)) -> None:
        for view in views:
            if view not in VIEWS:
                raise UnknownName("Meta-World view", view, VIEWS)
        self.views = tuple(views)
        self._world: World | None = None
        self._spec: _Spec | None = None
        self._steps = self._lasted = 0

    def reset(self, task: Task) -> Observation:
        spec = _Spec.read(task)
        if self._world is None or self._world.name != spec.name:
            self.close()
            self._world = World(spec.name)
        state = self._world.reset(spec.seed)
        if self._world.positions != spec.positions:
            what = "the simulator draws other positions from this task's seed than when the task was made"
            cure = "Install the version of metaworld that the dataset's environment names, or collect the data again."
            raise EnvironmentFailed(what, where=f"task {task.id}", cure=cure)
        self._spec, self._steps, self._lasted = spec, 0, 0
        return Observation(self._world.draw(self.views, spec.size), {STATE: state})

    def step(self, action: Any) -> Step:
        if self._world is None or self._spec is None or self._lasted >= self._spec.hold:
            state = "no task has begun" if self._spec is None else "the task is completed"
            raise EnvironmentFailed(f"cannot step: {state}", cure="Call reset with a task first.")
        repeat, checked = self._spec.repeat, _checked(action)
        if self._steps + repeat > LONGEST:
            cure = f"Give tasks a step limit of at most {LONGEST // repeat}."
            raise EnvironmentFailed(f"cannot step: the simulator ends after {LONGEST} steps", cure=cure)
        rewards: list[float] = []
        while len(rewards) < repeat and self._lasted < self._spec.hold:
            outcome = self._world.step(checked)
            rewards.append(outcome.reward)
            self._steps += 1
            self._lasted = self._lasted + 1 if outcome.success else 0
        done = self._lasted >= self._spec.hold
        seen = Observation(self._world.draw(self.views, self._spec.size), {STATE: outcome.state})
        return Step(seen, float(done), done, sum(rewards) / len(rewards))

    @property
    def success(self) -> bool:
        """Whether the simulator says that the task's end state holds now, for however short a time. Ground truth: not for policies."""
        return self._lasted > 0

    def close(self) -> None:
        if self._world is not None:
            self._world.close()
        self._world = self._spec = None

    @classmethod
    def sample_task(cls, seed: int) -> Task:
        """A task, the same for the same seed: for trying the world out, and for the battery that all environments pass."""
        names = ("drawer-open-v3", "sweep-into-v3", "soccer-v3")
        return new_task(names[seed % len(names)], stream_seed(seed, "sample") % 2**31, step_limit=100)

    @classmethod
    def randomise_start(cls, task: Task, random: np.random.Generator) -> Task:
        """The same task with everything in other places, which recorded data do not have.

        Raises:
            EnvironmentFailed: if the task has a randomised start already.
        """
        spec = _Spec.read(task)
        if task.start != "fixed":
            raise EnvironmentFailed("the task has a randomised start already", where=f"task {task.id}")
        seed = int(random.integers(2**31, 2**32))  # recorded ones are below
        record = replace(spec, seed=seed, positions=positions(spec.name, seed)).to_record()
        return replace(task, id=f"{task.id}/randomised", start="randomised", spec=record)

    @classmethod
    def hold_out_wording(cls, task: Task) -> Task:
        """The same task in words that never occur in recorded data."""
        return replace(reword(task, recorded_wordings(_Spec.read(task).name)), id=f"{task.id}/held-out", wording="held-out")


def _checked(action: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """An action, clipped to [-1, 1]. Raises EnvironmentFailed for anything else than four finite numbers."""
    values = np.asarray(action)
    if values.shape != (MetaWorld.action_size,) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        what = f"{action!r} is no action; it has {MetaWorld.action_size} finite components"
        raise EnvironmentFailed(what, cure="Components are numbers from -1 to 1.")
    return np.clip(values.astype(np.float64), -1.0, 1.0)


@lru_cache(maxsize=4)
def _world_without_pictures(name: str) -> World:
    return World(name)


def positions(name: str, seed: int) -> tuple[float, ...]:
    """Where a seed puts the things of a task, in metres, in the order of the simulator's own vector."""
    world = _world_without_pictures(name)
    world.reset(seed)
    return world.positions


def new_task(name: str, seed: int, *, step_limit: int, wording: int = 0, hold: int = HOLD, size: int = SIZE, repeat: int = 1) -> Task:
    """The task that a seed (below 2^31) gives.

    Args:
        name: of the simulator's task.
        seed: of the places.
        step_limit: in actions.
        wording: index of the instruction's words.
        hold: steps of the simulator in a row that success has to last.
        size: height and width of pictures in pixels.
        repeat: steps of the simulator that an action lasts; its reward is their mean.

    Raises:
        UnknownName: if there is no such task.
    """
    if name not in NAMES:
        raise UnknownName("Meta-World task", name, NAMES)
    return Task(
        id=f"{name}/{seed}",
        environment="metaworld",
        instruction=WORDINGS[name][wording],
        length=1,
        start="fixed",
        step_limit=step_limit,
        spec=_Spec(name, seed, positions(name, seed), wording, hold, size, repeat).to_record(),
    )


def reword(task: Task, wording: int) -> Task:
    """The same task in the words of that index."""
    spec = _Spec.read(task)
    return replace(task, instruction=WORDINGS[spec.name][wording], spec=replace(spec, wording=wording).to_record())


PICTURES = (
    "A table seen by a camera that stands still. If the robot is drawn, it is a red arm whose gripper has one white and one light blue "
    "finger. A small green, blue or red ball without a shadow is no object: it marks the place where the object is to be."
)
"""How to read the pictures, in words for a rater."""


def provenance(names: Sequence[str]) -> Mapping[str, Any]:
    """What a dataset says about its world: environment, tasks, how to read its pictures, and the versions that decide what a seed gives."""
    from importlib.metadata import version

    versions = {package: version(package) for package in ("metaworld", "mujoco", "gymnasium")}
    return {"name": "metaworld", "tasks": list(names), "pictures": PICTURES, **versions, "numpy": np.__version__}
