"""Demonstrations in the BabyAI world: recorded behaviour that reaches its goals, but not by the shortest way.

Every task (a layout with an instruction) is demonstrated several times from the same start, each time in other words and with other
detours: steps at random, turning to and fro, walking to a wrong thing first. About half of the actions serve the goal. An imitator that
copies all actions alike therefore learns the detours too; one that is told by rewards which actions served the goal can do better. That
difference is what the data is for. Rewards are zero throughout: nothing but words and pictures says what was good.

Reads nothing; writes a Minari dataset, and beside its `data` folder `collection.json`, which counts what was recorded. Equal
configurations give equal bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.envs._babyai_distance import Action, contribution
from guerdon.envs._babyai_words import Clause
from guerdon.envs._babyai_world import World
from guerdon.envs.babyai import ACTION_NAMES, build_world, new_task, phrases, provenance, reword
from guerdon.errors import EnvironmentFailed, UsageError
from guerdon.records import Annotation, Frames, Span, Task
from guerdon.runs import write_json
from guerdon.seeding import generator, stream_seed

Progress = Callable[[int, int], None]
"""Told after each demonstration: how many are done, of how many."""

COLLECTION = "collection.json"
"""What was asked for and recorded, in the dataset's folder."""
_ATTEMPTS = 50
"""Tries for a seed that gives a task that can be carried out, and for a demonstration that reaches its goal."""
_STEPS_PER_CLAUSE = 200
"""Steps after which a demonstrator is given up; it usually needs a quarter of that."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far the demonstrator strays. The defaults leave about half of the actions serving the goal."""

    random_actions: float = 0.44
    """Probability that a step is any of the seven actions instead of a good one."""
    dithering: float = 0.13
    """Probability that a step begins with a turn and a turn back."""
    detours: float = 0.65
    """Probability that a sub-task begins with walking to a wrong thing."""

    def __post_init__(self) -> None:
        for name, probability in asdict(self).items():
            if not 0 <= probability <= 1:
                raise UsageError(f"{name} is a probability from 0 to 1, not {probability}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Demonstrations in the BabyAI world."""

    out: Path = Path("babyai")
    """Folder of the dataset, new or empty."""
    level: str = "two-rooms"
    """Family of worlds: small, one-room, two-rooms or four-rooms."""
    tasks: int = 60
    """Number of different layouts with instructions; the lengths take turns."""
    demonstrations: int = 5
    """Demonstrations of each task, all from the same start."""
    lengths: tuple[int, int] = (1, 3)
    """Least and greatest number of sub-tasks in an instruction."""
    views: tuple[str, ...] = ("full",)
    """Cameras: full (the whole grid), agent (what lies before the agent)."""
    noise: Noise = field(default_factory=Noise)
    """How far the demonstrator strays."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if min(self.tasks, self.demonstrations) < 1:
            raise UsageError(f"at least one task and one demonstration are needed, not {self.tasks} and {self.demonstrations}")
        if not 1 <= self.lengths[0] <= self.lengths[1] <= 6:
            raise UsageError(f"instructions have 1 to 6 sub-tasks, the least number first, not {self.lengths[0]} to {self.lengths[1]}")
        if not self.views:
            raise UsageError("at least one view is needed")


def collect_babyai(config: Config, *, progress: Progress | None = None) -> Path:
    """Records demonstrations and returns the dataset's folder.

    Raises:
        UnknownName: if there is no such level or view.
        EnvironmentFailed: if the level has no such tasks, or the demonstrator keeps failing.
        DatasetError, WriteFailed: if the folder is taken or cannot be written.
    """
    tally = Tally()

    def counted() -> Iterator[RecordedEpisode]:
        total = config.tasks * config.demonstrations
        for number, episode in enumerate(demonstrations(config), start=1):
            tally.add(episode)
            yield episode
            if progress is not None:
                progress(number, total)

    write_minari(
        config.out,
        counted(),
        dataset_id=f"guerdon/babyai-{config.level}-v0",
        action_names=ACTION_NAMES,
        environment=provenance(config.level),
        description=f"Demonstrations with detours in BabyAI {config.level}, {config.lengths[0]} to {config.lengths[1]} sub-tasks",
    )
    recorded_with = {key: value for key, value in asdict(config).items() if key != "out"}
    write_json(config.out / COLLECTION, {"config": recorded_with, "lengths": tally.rows()})
    return config.out


def demonstrations(config: Config) -> Iterator[RecordedEpisode]:
    """The episodes that `collect_babyai` writes, one by one and task by task. Raises what it raises, but for writing."""
    for number in range(config.tasks):
        task, rejected = _task(config, number)
        for repeat in range(config.demonstrations):
            worded = reword(task, generator(config.seed, "words", number, repeat))
            recording, failures = _demonstrate(worded, config, number, repeat)
            yield recording.episode({"demonstration": repeat, "failed_attempts": failures, "rejected_seeds": rejected})


def _task(config: Config, number: int) -> tuple[Task, int]:
    """Task `number`, and how many seeds gave none that can be carried out."""
    low, high = config.lengths
    length = low + number % (high - low + 1)
    for attempt in range(_ATTEMPTS):
        seed = stream_seed(config.seed, "task", number, attempt) % 2**31
        if task := new_task(config.level, seed, length, generator(config.seed, "words", number), step_limit=1):
            return task, attempt
    raise EnvironmentFailed(f"level '{config.level}' gave no task of {length} sub-tasks that can be carried out in {_ATTEMPTS} attempts")


def _demonstrate(task: Task, config: Config, number: int, repeat: int) -> tuple[_Recording, int]:
    """A successful demonstration, and how many attempts failed before it."""
    for attempt in range(_ATTEMPTS):
        recording = _Recording(task, config.views)
        demonstrator = _Demonstrator(recording, config.noise, generator(config.seed, "demonstration", number, repeat, attempt))
        if demonstrator.run():
            return recording, attempt
    cure = "Lower the noise."
    raise EnvironmentFailed(f"the demonstrator failed {_ATTEMPTS} times in a row", where=f"task {task.id}", cure=cure)


class _Recording:
    """An episode in the making."""

    def __init__(self, task: Task, views: Sequence[str]) -> None:
        self._task, self._views = task, views
        self.world = build_world(task)
        self._actions: list[int] = []
        self._contributions: list[float] = []
        self._frames = [self.world.draw(views)]
        self._distances = [self.world.distance()]
        self._completed = [0]

    @property
    def over(self) -> bool:
        return self.world.done or len(self._actions) >= _STEPS_PER_CLAUSE * self._task.length

    def act(self, action: int) -> None:
        world, clause = self.world, self.world.completed
        world.step(action)
        distance = world.distance()
        self._contributions.append(contribution(self._distances[-1], 0.0 if world.completed > clause else distance))
        self._actions.append(int(action))
        self._distances.append(distance)
        self._completed.append(world.completed)
        self._frames.append(world.draw(self._views))

    def episode(self, metadata: dict[str, Any]) -> RecordedEpisode:
        """The episode, once it is over."""
        completed = np.array(self._completed)
        task = replace(self._task, step_limit=2 * len(self._actions))
        return RecordedEpisode(
            frames={view: _stacked(self._frames, view) for view in self._views},
            actions=np.array(self._actions, np.int64),
            rewards=np.zeros(len(self._actions)),
            terminated=self.world.done,
            truncated=not self.world.done,
            annotations=(Annotation(task.instruction, self._spans(completed)),),
            metadata={"task": task.to_record(), **metadata},
            privileged={
                "contribution": np.array(self._contributions, np.float32),
                "distance": np.array(self._distances, np.float32),
                "progress": (completed / task.length).astype(np.float32),
                "subtask": completed.astype(np.float32),
            },
        )

    def _spans(self, completed: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Span, ...]:
        ends = [int(np.argmax(completed > clause)) for clause in range(self._task.length)]
        return tuple(Span(start, stop, words) for (start, stop), words in zip(pairwise([0, *ends]), phrases(self._task), strict=True))


def _stacked(frames: Sequence[dict[str, Frames]], view: str) -> Frames:
    return np.stack([pictures[view] for pictures in frames])


class _Demonstrator:
    """Carries out an instruction by shortest ways, from which it strays."""

    def __init__(self, recording: _Recording, noise: Noise, random: np.random.Generator) -> None:
        self._recording, self._noise, self._random = recording, noise, random
        self._world: World = recording.world

    def run(self) -> bool:
        """Acts until the instruction is carried out; False if that fails."""
        begun = -1
        while not self._recording.over:
            if self._world.completed > begun:
                begun = self._world.completed
                if self._happens(self._noise.detours):
                    self._walk_to_a_wrong_thing()
                    continue
            if self._happens(self._noise.dithering):
                self._dither()
            elif not self._step():
                return False
        return self._world.done

    def _happens(self, probability: float) -> bool:
        return bool(self._random.random() < probability)

    def _step(self, clause: Clause | None = None) -> bool:
        """One action for `clause` (by default the present one), or at random; False if no way is known."""
        good = self._world.best_actions(clause)
        if not good:
            return False
        options = tuple(Action) if self._happens(self._noise.random_actions) else good
        self._recording.act(options[self._random.integers(len(options))])
        return True

    def _dither(self) -> None:
        turns = [Action.TURN_LEFT, Action.TURN_RIGHT]
        self._random.shuffle(turns)
        for turn in turns:
            if not self._recording.over:
                self._recording.act(turn)

    def _walk_to_a_wrong_thing(self) -> None:
        clause, map_ = self._world.clause, self._world.map
        wrong = sorted(set(map_.places) - {clause.target, clause.beside})
        if not wrong:
            return
        goal = Clause("go to", wrong[self._random.integers(len(wrong))])
        while not self._recording.over and self._world.clause == clause:
            if goal.target not in self._world.map.places or self._world.field(goal)[self._world.pose] == 0 or not self._step(goal):
                return


class Tally:
    """Counts what is recorded, by number of sub-tasks."""

    def __init__(self) -> None:
        self._episodes: Counter[int] = Counter()
        self._steps: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._contributions: Counter[tuple[int, str]] = Counter()

    def add(self, episode: RecordedEpisode) -> None:
        """Counts one episode."""
        length = int(episode.metadata["task"]["length"])
        values = episode.privileged["contribution"]
        self._episodes[length] += 1
        self._steps[length] += len(values)
        self._failures[length] += episode.metadata["failed_attempts"]
        for name, count in (("serving", values > 0), ("idle", values == 0), ("straying", values < 0), ("unknown", np.isnan(values))):
            self._contributions[length, name] += int(count.sum())

    def rows(self) -> list[dict[str, float]]:
        """One row a length: episodes, steps in the mean, failed attempts, and the shares of actions that served the goal, changed
        nothing, led away, or of which that is unknown."""
        return [self._row(length) for length in sorted(self._episodes)]

    def _row(self, length: int) -> dict[str, float]:
        episodes, steps = self._episodes[length], self._steps[length]
        counts = {"sub_tasks": length, "demonstrations": episodes, "failed_attempts": self._failures[length]}
        shares = {name: round(self._contributions[length, name] / steps, 4) for name in ("serving", "idle", "straying", "unknown")}
        return {**counts, "mean_steps": round(steps / episodes, 2), **shares}
