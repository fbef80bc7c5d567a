"""Acting: an actor carries out tasks, several at once, and what came of it is written down.

Worlds are stepped one after the other in one process; the actor sees the pictures of all of them in one batch, which is where its time
goes. Knows neither a world nor a policy: only `Environment` and `Actor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from guerdon.errors import EnvironmentFailed, PolicyError, UsageError
from guerdon.interfaces import Actor, Environment, Integers, Observation
from guerdon.records import Frames, Task


@dataclass(frozen=True)
class EpisodeResult:
    """How one task went."""

    task: Task
    completed: float
    """Share of the sub-tasks completed when the episode ended, in [0, 1]: the episode's return."""
    success: bool
    """Whether all were."""
    steps: int
    """T, the number of actions taken."""
    actions: npt.NDArray[np.int64]
    """(T,)"""
    frames: Mapping[str, Frames] = field(default_factory=dict)
    """View name -> (T+1, H, W, 3) uint8; empty unless the task's frames were to be kept."""


def run_tasks(
    actor: Actor,
    tasks: Sequence[Task],
    make_environment: Callable[[], Environment],
    *,
    slots: int = 16,
    keep_frames: Set[str] = frozenset(),
    progress: Callable[[int, int], None] | None = None,
) -> list[EpisodeResult]:
    """Lets `actor` carry out each task once, within the task's step limit.

    Tasks of similar step limits run together, so that few slots wait for the slowest; an actor whose choices for one slot depend on that
    slot only gives the same results for any number of slots.

    Args:
        actor: what acts; `Actor.reset` is called once for each group of tasks.
        tasks: with different ids.
        make_environment: gives a new environment; called at most `slots` times.
        slots: greatest number of tasks carried out at once.
        keep_frames: ids of the tasks whose pictures are kept.
        progress: told after each group how many tasks are done, of how many.

    Returns:
        One result per task, in the order of `tasks`.

    Raises:
        UsageError: if `slots` is below 1 or two tasks share an id.
        EnvironmentFailed: if a world cannot be built, or worlds that run together have pictures of different sizes.
        PolicyError: if the actor does not return one action per slot.
    """
    if slots < 1:
        raise UsageError(f"at least one slot is needed, not {slots}")
    if len({task.id for task in tasks}) < len(tasks):
        raise UsageError("two tasks have the same id")
    environments = [make_environment() for _ in range(min(slots, len(tasks)))]
    results: dict[str, EpisodeResult] = {}
    try:
        by_limit = sorted(tasks, key=lambda task: task.step_limit)
        for first in range(0, len(by_limit), slots):
            group = by_limit[first : first + slots]
            episodes = [_Episode(task, world, keep=task.id in keep_frames) for task, world in zip(group, environments, strict=False)]
            _run_together(actor, episodes)
            results |= {episode.task.id: episode.result() for episode in episodes}
            if progress is not None:
                progress(len(results), len(tasks))
    finally:
        for environment in environments:
            environment.close()
    return [results[task.id] for task in tasks]


class _Episode:
    """A task being carried out."""

    def __init__(self, task: Task, environment: Environment, *, keep: bool) -> None:
        if task.step_limit < 1:
            raise UsageError(f"the step limit is {task.step_limit}, it has to be at least 1", where=f"task {task.id}")
        self.task, self._environment = task, environment
        self.observation: Observation = environment.reset(task)
        self.active = True
        self._progress = 0.0
        self._actions: list[int] = []
        self._kept = [self.observation] if keep else []

    def act(self, action: int) -> None:
        step = self._environment.step(action)
        self.observation, self._progress = step.observation, step.progress
        self._actions.append(action)
        self.active = not step.terminated and len(self._actions) < self.task.step_limit
        if self._kept:
            self._kept.append(self.observation)

    def result(self) -> EpisodeResult:
        views = self._kept[0].frames if self._kept else ()
        return EpisodeResult(
            task=self.task,
            completed=self._progress,
            success=self._progress == 1.0,
            steps=len(self._actions),
            actions=np.array(self._actions, np.int64),
            frames={view: np.stack([seen.frames[view] for seen in self._kept]) for view in views},
        )


def _run_together(actor: Actor, episodes: Sequence[_Episode]) -> None:
    actor.reset([episode.task for episode in episodes])
    while any(episode.active for episode in episodes):
        active = np.array([episode.active for episode in episodes])
        actions = _checked(actor.act(_batch(episodes), active), len(episodes))
        for episode, action in zip(episodes, actions.tolist(), strict=True):
            if episode.active:
                episode.act(action)


def _batch(episodes: Sequence[_Episode]) -> dict[str, Frames]:
    """The present pictures of all slots: view -> (B, H, W, 3)."""
    try:
        return {view: np.stack([episode.observation.frames[view] for episode in episodes]) for view in episodes[0].observation.frames}
    except (KeyError, ValueError):
        where = "tasks " + ", ".join(episode.task.id for episode in episodes)
        cure = "Evaluate the tasks of each level on their own."
        raise EnvironmentFailed("worlds with different views or picture sizes cannot run together", where=where, cure=cure) from None


def _checked(actions: Integers, count: int) -> Integers:
    if actions.shape != (count,) or not np.issubdtype(actions.dtype, np.integer):
        raise PolicyError(f"an actor returned {actions.dtype}{actions.shape} where {count} whole numbers were expected")
    return actions
