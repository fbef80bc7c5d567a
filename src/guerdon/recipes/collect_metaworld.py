"""Demonstrations in Meta-World: recorded behaviour of very different quality.

Each demonstration begins with everything in other places. Scripted experts act, and are disturbed: by noise whose strength is drawn for
each demonstration, by bursts in which one random action is held, and some of them give up on the way. About two thirds reach the goal. That
unevenness is what ratings are for: an imitator copies bad and good alike, one that is told by rewards what was good can do better.

What the simulator itself says an action was worth becomes the dataset's rewards, and as "quality" and "success" its ground truth. Reads
nothing; writes a Minari dataset, and beside its `data` folder `collection.json`, which counts what was recorded. Equal configurations give
equal bytes on the same machine (pictures may differ a little between graphics drivers).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.envs._metaworld_simulator import EXPERTS, LONGEST, VIEWS
from guerdon.envs._metaworld_words import recorded_wordings
from guerdon.envs.metaworld import HOLD, MOST_REWARD, NAMES, SIZE, STATE, MetaWorld, new_task, provenance
from guerdon.errors import UnknownName, UsageError
from guerdon.interfaces import Observation, Step
from guerdon.records import Annotation, Task
from guerdon.runs import write_json
from guerdon.seeding import generator, stream_seed

Progress = Callable[[int, int], None]
"""Told after each demonstration: how many are done, of how many."""

COLLECTION = "collection.json"
"""What was asked for and recorded, in the dataset's folder."""
NO_VIEWS = ("none",)
"""What stands for no pictures at all."""
_LARGEST = 1024
"""Pictures larger than this were a mistake."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far the demonstrators stray. With the defaults about two thirds of them reach the goal."""

    strength: tuple[float, float] = (0.0, 0.7)
    """Least and greatest standard deviation of what is added to each component of an action; drawn for each demonstration."""
    bursts: float = 0.008
    """Probability that a step begins a burst, in which one random action is held."""
    burst_steps: tuple[int, int] = (5, 15)
    """Least and greatest number of steps of a burst."""
    giving_up: float = 0.2
    """Probability that a demonstrator gives up, and from then on only holds random actions."""

    def __post_init__(self) -> None:
        for name, probability in (("bursts", self.bursts), ("giving_up", self.giving_up)):
            if not 0 <= probability <= 1:
                raise UsageError(f"{name} is a probability from 0 to 1, not {probability}")
        if not 0 <= self.strength[0] <= self.strength[1] < float("inf"):
            raise UsageError(f"strength is two numbers from 0 on, the least first, not {self.strength[0]} and {self.strength[1]}")
        if not 1 <= self.burst_steps[0] <= self.burst_steps[1]:
            raise UsageError(f"burst_steps is two numbers from 1 on, the least first, not {self.burst_steps[0]} and {self.burst_steps[1]}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Demonstrations in Meta-World."""

    out: Path = Path("metaworld")
    """Folder of the dataset, new or empty."""
    task: tuple[str, ...] = ("drawer-open-v3", "sweep-into-v3", "soccer-v3")
    """Names of the simulator's tasks."""
    demonstrations: int = 50
    """Demonstrations of each task, each with everything in other places."""
    steps: int = 150
    """Steps after which a demonstration is cut off; also the step limit of the tasks."""
    views: tuple[str, ...] = ("close-no-robot",)
    """Cameras: close, corner, corner2, corner3, corner4, topview, behindGripper, gripperPOV, each also without the robot (-no-robot). With
    --views none no pictures are drawn."""
    size: int = SIZE
    """Height and width of pictures in pixels."""
    hold: int = HOLD
    """Steps in a row that success has to last."""
    noise: Noise = field(default_factory=Noise)
    """How far the demonstrators stray."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if self.demonstrations < 1 or not self.task or len(set(self.task)) < len(self.task):
            what = f"tasks that differ and at least one demonstration are needed, not {list(self.task)} and {self.demonstrations}"
            raise UsageError(what)
        for name in self.task:
            if name not in NAMES:
                raise UnknownName("Meta-World task", name, NAMES)
        for view in self.drawn:
            if view not in VIEWS:
                raise UnknownName("Meta-World view", view, (*VIEWS, *NO_VIEWS))
        if len(set(self.views)) < len(self.views):
            raise UsageError(f"views have to differ, not {', '.join(self.views)}")
        if not 1 <= self.hold <= self.steps <= LONGEST:
            what = f"there are at most {LONGEST} steps and at least as many as success has to last, not {self.steps} and {self.hold}"
            raise UsageError(what)
        if not 1 <= self.size <= _LARGEST:
            raise UsageError(f"pictures have 1 to {_LARGEST} pixels in height and width, not {self.size}")

    @property
    def drawn(self) -> tuple[str, ...]:
        """The views that are drawn."""
        return () if self.views == NO_VIEWS else self.views


def collect_metaworld(config: Config, *, progress: Progress | None = None) -> Path:
    """Records demonstrations and returns the dataset's folder.

    Raises:
        EnvironmentFailed: if this machine cannot draw, or a simulation became unstable.
        DatasetError, WriteFailed: if the folder is taken or cannot be written.
    """
    tally = Tally()

    def counted() -> Iterator[RecordedEpisode]:
        total = len(config.task) * config.demonstrations
        for number, episode in enumerate(demonstrations(config), start=1):
            tally.add(episode)
            yield episode
            if progress is not None:
                progress(number, total)

    world = config.task[0].removesuffix("-v3") if len(config.task) == 1 else f"{len(config.task)}-tasks"
    write_minari(
        config.out,
        counted(),
        dataset_id=f"guerdon/metaworld-{world}-v0",
        action_names=(),
        environment=provenance(config.task),
        description=f"Demonstrations of uneven quality in Meta-World: {', '.join(config.task)}",
    )
    recorded_with = {key: value for key, value in asdict(config).items() if key != "out"}
    write_json(config.out / COLLECTION, {"config": recorded_with, "tasks": tally.rows()})
    return config.out


def demonstrations(config: Config) -> Iterator[RecordedEpisode]:
    """The episodes that `collect_metaworld` writes, one by one and task by task. Raises what it raises, but for writing."""
    for name in config.task:
        environment = MetaWorld(config.drawn)
        try:
            for number in range(config.demonstrations):
                random = generator(config.seed, "demonstration", name, number)
                yield _demonstrate(environment, _task(config, name, number, random), config.noise, random)
        finally:
            environment.close()


def _task(config: Config, name: str, number: int, random: np.random.Generator) -> Task:
    seed = stream_seed(config.seed, "task", name, number) % 2**31
    wording = int(random.integers(recorded_wordings(name)))
    return new_task(name, seed, step_limit=config.steps, wording=wording, hold=config.hold, size=config.size)


def _demonstrate(environment: MetaWorld, task: Task, noise: Noise, random: np.random.Generator) -> RecordedEpisode:
    demonstrator = Demonstrator(task, noise, random)
    seen = [environment.reset(task)]
    actions: list[npt.NDArray[np.float32]] = []
    steps: list[Step] = []
    success = [False]
    while len(steps) < task.step_limit and not (steps and steps[-1].terminated):
        actions.append(demonstrator.act(seen[-1]))
        steps.append(environment.step(actions[-1]))
        seen.append(steps[-1].observation)
        success.append(environment.success)
    rewards = np.array([step.reward for step in steps])
    quality = np.clip(rewards / MOST_REWARD, 0.0, 1.0)
    return RecordedEpisode(
        frames={view: np.stack([observation.frames[view] for observation in seen]) for view in environment.views},
        vectors={STATE: np.stack([observation.vectors[STATE] for observation in seen])},
        actions=np.stack(actions),
        rewards=rewards,
        terminated=steps[-1].terminated,
        truncated=not steps[-1].terminated,
        annotations=(Annotation(task.instruction),),
        metadata={"task": task.to_record(), **demonstrator.record},
        privileged={"quality": np.concatenate([quality[:1], quality]).astype(np.float32), "success": np.array(success, np.float32)},
    )


class Demonstrator:
    """A scripted expert that is disturbed."""

    def __init__(self, task: Task, noise: Noise, random: np.random.Generator) -> None:
        self._expert = EXPERTS[task.spec["name"]]()
        self._noise, self._random = noise, random
        self._strength = float(random.uniform(*noise.strength))
        gives_up = bool(random.random() < noise.giving_up)
        self._gives_up = int(random.integers(1, max(2, task.step_limit // 2))) if gives_up else None
        self._step = self._burst_until = 0
        self._held = np.zeros(MetaWorld.action_size)
        self._bursts = 0

    @property
    def record(self) -> dict[str, Any]:
        """What disturbed it, JSON-ready: strength of the noise, number of bursts, step of giving up (None if it did not come to that)."""
        gave_up = self._gives_up if self._gives_up is not None and self._gives_up < self._step else None
        return {"noise": round(self._strength, 4), "bursts": self._bursts, "gave_up": gave_up}

    def act(self, seen: Observation) -> npt.NDArray[np.float32]:
        """The next action, (4,) in [-1, 1]."""
        action = self._next(seen)
        self._step += 1
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def _next(self, seen: Observation) -> npt.NDArray[np.float64]:
        given_up = self._gives_up is not None and self._step >= self._gives_up
        if self._step >= self._burst_until and (given_up or self._random.random() < self._noise.bursts):
            low, high = self._noise.burst_steps
            self._burst_until = self._step + int(self._random.integers(low, high + 1))
            self._held = self._random.uniform(-1.0, 1.0, MetaWorld.action_size)
            self._bursts += not given_up
        if self._step < self._burst_until:
            return self._held
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts warn of each action that has to be clipped
            good: npt.NDArray[np.float64] = self._expert.get_action(seen.vectors[STATE].astype(np.float64))
        return np.clip(good, -1.0, 1.0) + self._random.normal(0.0, self._strength, MetaWorld.action_size)


class Tally:
    """Counts what is recorded, by task."""

    def __init__(self) -> None:
        self._episodes: dict[str, list[tuple[bool, int, float, float, bool]]] = defaultdict(list)

    def add(self, episode: RecordedEpisode) -> None:
        """Counts one episode."""
        quality, gave_up = float(episode.privileged["quality"][1:].mean()), episode.metadata["gave_up"] is not None
        row = (episode.terminated, len(episode.rewards), float(episode.rewards.sum()), quality, gave_up)
        self._episodes[episode.metadata["task"]["spec"]["name"]].append(row)

    def rows(self) -> list[dict[str, Any]]:
        """One row a task: demonstrations, the share that succeeded, and in the mean steps, return (sum of the simulator's rewards, 0 to 10
        each) and quality of a step; how many gave up."""
        return [self._row(name, np.array(rows, float)) for name, rows in self._episodes.items()]

    @staticmethod
    def _row(name: str, rows: npt.NDArray[np.float64]) -> dict[str, Any]:
        success, steps, total, quality, _ = rows.mean(axis=0)
        means = {"success": success, "mean_steps": steps, "mean_return": total, "mean_quality": quality}
        rounded = {key: round(float(value), 4) for key, value in means.items()}
        return {"task": name, "demonstrations": len(rows), **rounded, "gave_up": int(rows[:, 4].sum())}
