"""BabyAI: a grid world with rooms, doors and coloured objects, and instructions of one to six sub-tasks carried out in order.

    "walk to the red ball, then pull the blue door open and then put the green key beside the red ball"

The world is small, exactly measurable (how far each sub-task is from done is known for every state, see `_babyai_distance`) and fully
determined by a task: level, seed, words and start. Two starts of one task differ in the agent's cell and heading and in nothing else, so
that behaviour which merely repeats recorded actions can be told from behaviour which looks. What the world consists of and how it is drawn
is described in `_babyai_world`, the words in `_babyai_words`.

A task's `spec` (JSON-ready):

    level      name of the family of worlds: "one-room", "two-rooms", "four-rooms"
    seed       of layout and instruction
    clauses    the sub-tasks, as {"kind", "target", "beside"}
    wordings   index of the words of each clause          joiners    index of what stands between two clauses
    start      null for the start that belongs to the layout, else [column, row, heading]
    layout     digest of what the seed gave when the task was made; a simulator that gives something else now is refused
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guerdon.envs._babyai_distance import Action
from guerdon.envs._babyai_words import Clause, Wording
from guerdon.envs._babyai_world import LEVELS, VIEWS, World
from guerdon.errors import EnvironmentFailed, UnknownName
from guerdon.interfaces import Environment, Observation, Step
from guerdon.records import Task
from guerdon.seeding import generator, stream_seed

ACTION_NAMES: tuple[str, ...] = tuple(action.words for action in Action)


@dataclass(frozen=True)
class _Spec:
    """A task's `spec`, read and typed."""

    level: str
    seed: int
    clauses: tuple[Clause, ...]
    wording: Wording
    start: tuple[int, int, int] | None
    layout: str

    @classmethod
    def read(cls, task: Task) -> _Spec:
        """Reads the spec of a task. Raises EnvironmentFailed if it is damaged, or says something else than the instruction."""
        try:
            spec = task.spec
            read = cls(
                level=_level(spec["level"]),
                seed=_whole_numbers([spec["seed"]])[0],
                clauses=tuple(Clause.from_record(record) for record in spec["clauses"]),
                wording=Wording(_whole_numbers(spec["wordings"]), _whole_numbers(spec["joiners"])),
                start=None if spec["start"] is None else _start(spec["start"]),
                layout=str(spec["layout"]),
            )
            says = read.wording.sentence(read.clauses)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            what = f"the task's spec is damaged ({type(error).__name__}: {error})"
            raise EnvironmentFailed(what, where=f"task {task.id}", cure="Make the list of tasks again.") from None
        if says != task.instruction or len(read.clauses) != task.length:
            what = f"the task's spec says '{says}', its instruction '{task.instruction}' ({task.length} sub-tasks)"
            raise EnvironmentFailed(what, where=f"task {task.id}", cure="Make the list of tasks again.")
        return read

    def to_record(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "seed": self.seed,
            "clauses": [clause.to_record() for clause in self.clauses],
            "wordings": list(self.wording.templates),
            "joiners": list(self.wording.joiners),
            "start": None if self.start is None else list(self.start),
            "layout": self.layout,
        }


def _level(name: Any) -> str:
    if name not in LEVELS:
        raise ValueError(f"there is no level {name!r}")
    return str(name)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(operator.index(value) for value in values)
    if min(numbers, default=0) < 0:
        raise ValueError(f"{min(numbers)} is negative")
    return numbers


def _start(values: Any) -> tuple[int, int, int]:
    x, y, heading = _whole_numbers(values)
    return x, y, heading


class BabyAI(Environment):
    """The world of a task.

    Args:
        views: which pictures to draw, of "full" and "agent".

    Raises:
        UnknownName: for another view.
    """

    action_names = ACTION_NAMES

    def __init__(self, views: Sequence[str] = VIEWS) -> None:
        for view in views:
            if view not in VIEWS:
                raise UnknownName("BabyAI view", view, VIEWS)
        self.views = tuple(views)
        self._world: World | None = None

    def reset(self, task: Task) -> Observation:
        self._world = build_world(task)
        return Observation(self._world.draw(self.views))

    def step(self, action: int) -> Step:
        if self._world is None or self._world.done:
            state = "no task has begun" if self._world is None else "the task is completed"
            raise EnvironmentFailed(f"cannot step: {state}", cure="Call reset with a task first.")
        if action not in range(len(Action)):
            raise EnvironmentFailed(f"there is no action {action}", cure=f"Actions are numbered 0 to {len(Action) - 1}.")
        self._world.step(int(action))
        progress = self._world.completed / len(self._world.clauses)
        return Step(Observation(self._world.draw(self.views)), progress, self._world.done)

    @classmethod
    def sample_task(cls, seed: int) -> Task:
        """A short task, the same for the same seed: for trying the world out, and for the battery that all environments pass."""
        layouts = (stream_seed(seed, "sample", attempt) % 2**31 for attempt in itertools.count())
        tasks = (new_task("two-rooms", layout, 2, generator(seed, "sample words"), step_limit=100) for layout in layouts)
        return next(task for task in tasks if task is not None)

    @classmethod
    def randomise_start(cls, task: Task, random: np.random.Generator) -> Task:
        """The same task from another cell and heading, from where it can be carried out.

        The step limit grows or shrinks by the difference of the shortest ways from the two starts.

        Raises:
            EnvironmentFailed: if the task does not begin at its layout's own start, or can be carried out from no other place.
        """
        spec = _Spec.read(task)
        if spec.start is not None:
            raise EnvironmentFailed("the task has a randomised start already", where=f"task {task.id}")
        shortest = plan_length(build_world(task))
        for start in _other_starts(build_world(task), random):
            moved = replace(task, id=f"{task.id}/randomised", start="randomised", spec=replace(spec, start=start).to_record())
            actions = plan_length(build_world(moved))
            if shortest is not None and actions is not None:
                return replace(moved, step_limit=task.step_limit + actions - shortest)
        raise EnvironmentFailed("the task can be carried out from no other start", where=f"task {task.id}")

    @classmethod
    def hold_out_wording(cls, task: Task) -> Task:
        """The same task in words that never occur in recorded data (though each single word may)."""
        spec = _Spec.read(task)
        wording = spec.wording.held_out(spec.clauses)
        record = replace(spec, wording=wording).to_record()
        return replace(task, id=f"{task.id}/held-out", instruction=wording.sentence(spec.clauses), wording="held-out", spec=record)


def _other_starts(world: World, random: np.random.Generator) -> list[tuple[int, int, int]]:
    """Cells and headings from which the first clause can be done and is not done yet, in random order."""
    x, y, _ = world.position
    field = world.field(world.clause)
    free = sorted(world.map.empty - {y * world.map.width + x})
    poses = [4 * cell + heading for cell in free for heading in range(4) if 0 < field[4 * cell + heading] < np.inf]
    return [(pose // 4 % world.map.width, pose // 4 // world.map.width, pose % 4) for pose in random.permutation(poses).tolist()]


def build_world(task: Task) -> World:
    """The world of a task at its start.

    Raises:
        EnvironmentFailed: if the task is of another environment or damaged, or if the simulator now builds something else from its seed.
    """
    if task.environment != "babyai":
        raise EnvironmentFailed(f"the task belongs to the environment '{task.environment}', not to babyai", where=f"task {task.id}")
    spec = _Spec.read(task)
    world = World(spec.level, spec.seed, len(spec.clauses))
    if world.clauses != spec.clauses or world.layout != spec.layout:
        what = "the simulator builds another world from this task's seed than when the task was made"
        cure = "Install the version of minigrid that the dataset's environment names, or collect the data again."
        raise EnvironmentFailed(what, where=f"task {task.id}", cure=cure)
    if spec.start is not None:
        world.move_agent(*spec.start)
    return world


def new_task(level: str, seed: int, length: int, random: np.random.Generator, *, step_limit: int) -> Task | None:
    """The task that a seed gives, in words drawn from `random`; None if its sub-tasks cannot be carried out one after the other.

    Raises:
        UnknownName: if there is no such level.
        EnvironmentFailed: if the level has no layout for so many clauses.
    """
    world = World(level, seed, length)
    layout = world.layout
    if plan_length(world) is None:
        return None
    wording = Wording.draw(world.clauses, random)
    return Task(
        id=f"{level}/{length}/{seed}",
        environment="babyai",
        instruction=wording.sentence(world.clauses),
        length=length,
        start="fixed",
        step_limit=step_limit,
        spec=_Spec(level, seed, world.clauses, wording, None, layout).to_record(),
    )


def reword(task: Task, random: np.random.Generator) -> Task:
    """The same task in other words, drawn from those that may occur in recorded data."""
    spec = _Spec.read(task)
    wording = Wording.draw(spec.clauses, random)
    return replace(task, instruction=wording.sentence(spec.clauses), spec=replace(spec, wording=wording).to_record())


def phrases(task: Task) -> tuple[str, ...]:
    """The words of each sub-task, as the task's instruction says them. Raises EnvironmentFailed for a damaged task."""
    spec = _Spec.read(task)
    return spec.wording.phrases(spec.clauses)


def plan_length(world: World) -> int | None:
    """Number of actions in which the planner completes the instruction, each clause by a shortest way; None if it cannot.

    A clause that needs no action of its own (to go to what was just put down) counts as one that cannot be carried out. The world is used
    up: it ends as the plan leaves it.
    """
    actions = 0
    while not world.done:
        good, clause = world.best_actions(), world.completed
        if not good:
            return None
        world.step(good[0])
        actions += 1
        if world.completed > clause + 1:
            return None
    return actions


PICTURES = (
    "A grid seen from above. The red triangle is the agent; it points where the agent faces. Grey squares are walls. A coloured square "
    "frame with a dot in it is a closed door, a thin coloured bar an open one. The black strip along the bottom edge shows what the agent "
    "carries, and nothing if its hands are empty."
)
"""How to read the pictures, in words for a rater."""


def provenance(level: str) -> Mapping[str, Any]:
    """What a dataset says about its world: environment, level, how to read its pictures, and the versions that decide what a seed gives."""
    from importlib.metadata import version

    versions = {"minigrid": version("minigrid"), "numpy": np.__version__}
    return {"name": "babyai", "level": level, "pictures": PICTURES, **versions}
