"""Acting: an actor carries out tasks, several at once, and what came of it is written down.

Worlds are stepped one after the other in one process; the actor sees the pictures and vectors of all of them in one batch. Where its time
goes depends on the world: into looking, or into drawing pictures, which is why worlds should draw only what the actor looks at. Knows
neither a world nor a policy: only `Environment` and `Actor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.errors import EnvironmentFailed, PolicyError, UsageError
from guerdon.interfaces import Actor, Environment, Observation
from guerdon.records import Frames, Task


@dataclass(frozen=True)
class EpisodeResult:
    """How one task went."""

    task: Task
    completed: float
    """Largest share of the sub-tasks that was completed at any step, in [0, 1]."""
    success: bool
    """Whether all were."""
    steps: int
    """T, the number of actions taken."""
    actions: npt.NDArray[Any]
    """(T,) int64, or (T, A) float32."""
    frames: Mapping[str, Frames] = field(default_factory=dict)
    """View name -> (T+1, H, W, 3) uint8; empty unless the task's frames were to be kept."""
    reward: float = 0.0
    """Sum of what the world itself says that the actions were worth; 0 if it says nothing."""


def run_tasks(
    actor: Actor,
    tasks: Sequence[Task],
    make_environment: Callable[[], Environment],
    *,
    slots: int = 16,
    keep_frames: Set[str] = frozenset(),
    make_filmed: Callable[[], Environment] | None = None,
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
        make_filmed: gives a new environment for those tasks, which then run on their own, for an actor that looks at fewer pictures than
            are to be kept; called at most `slots` times. None uses `make_environment` for all tasks.
        progress: told after each group how many tasks are done, of how many.

    Returns:
        One result per task, in the order of `tasks`.

    Raises:
        UsageError: if `slots` is below 1 or two tasks share an id.
        EnvironmentFailed: if a world cannot be built, or worlds that run together have pictures of different sizes.
        PolicyError: if the actor does not return one action per slot, of the world's kind.
    """
    if slots < 1:
        raise UsageError(f"at least one slot is needed, not {slots}")
    if len({task.id for task in tasks}) < len(tasks):
        raise UsageError("two tasks have the same id")
    results: dict[str, EpisodeResult] = {}
    filmed = [task for task in tasks if make_filmed is not None and task.id in keep_frames]
    others = [task for task in tasks if make_filmed is None or task.id not in keep_frames]
    for some, make in ((others, make_environment), (filmed, make_filmed or make_environment)):
        with _environments(make, min(slots, len(some))) as environments:
            by_limit = sorted(some, key=lambda task: task.step_limit)
            for first in range(0, len(by_limit), slots):
                group = by_limit[first : first + slots]
                episodes = [_Episode(task, world, keep=task.id in keep_frames) for task, world in zip(group, environments, strict=False)]
                _run_together(actor, episodes, environments[0].action_size)
                results |= {episode.task.id: episode.result() for episode in episodes}
                if progress is not None:
                    progress(len(results), len(tasks))
    return [results[task.id] for task in tasks]


@contextmanager
def _environments(make: Callable[[], Environment], count: int) -> Iterator[list[Environment]]:
    """`count` environments, closed in the end."""
    made: list[Environment] = []
    try:
        made.extend(make() for _ in range(count))
        yield made
    finally:
        for environment in made:
            environment.close()


class _Episode:
    """A task being carried out."""

    def __init__(self, task: Task, environment: Environment, *, keep: bool) -> None:
        if task.step_limit < 1:
            raise UsageError(f"the step limit is {task.step_limit}, it has to be at least 1", where=f"task {task.id}")
        self.task, self._environment = task, environment
        self.observation: Observation = environment.reset(task)
        self.active = True
        self._progress = 0.0
        self._reward = 0.0
        self._actions: list[Any] = []
        self._kept = [self.observation] if keep else []

    def act(self, action: Any) -> None:
        step = self._environment.step(action)
        self.observation, self._progress = step.observation, max(self._progress, step.progress)
        self._reward += step.reward
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
            actions=np.array(self._actions, np.float32 if self._environment.action_size else np.int64),
            reward=self._reward,
            frames={view: np.stack([seen.frames[view] for seen in self._kept]) for view in views},
        )


def _run_together(actor: Actor, episodes: Sequence[_Episode], action_size: int) -> None:
    actor.reset([episode.task for episode in episodes])
    while any(episode.active for episode in episodes):
        active = np.array([episode.active for episode in episodes])
        actions = _checked(actor.act(_batch(episodes), active), active, action_size)
        for episode, action in zip(episodes, actions if action_size else actions.tolist(), strict=True):
            if episode.active:
                episode.act(action)


def _batch(episodes: Sequence[_Episode]) -> dict[str, npt.NDArray[Any]]:
    """What all slots see now: view -> (B, H, W, 3), vector -> (B, D)."""
    seen: list[dict[str, npt.NDArray[Any]]] = [{**episode.observation.frames, **episode.observation.vectors} for episode in episodes]
    try:
        return {name: np.stack([one[name] for one in seen]) for name in seen[0]}
    except (KeyError, ValueError):
        where = "tasks " + ", ".join(episode.task.id for episode in episodes)
        cure = "Evaluate the tasks of each level on their own."
        what = "worlds with different views, vectors or picture sizes cannot run together"
        raise EnvironmentFailed(what, where=where, cure=cure) from None


def _checked(actions: npt.NDArray[Any], active: npt.NDArray[np.bool_], action_size: int) -> npt.NDArray[Any]:
    """The actions of all slots, whole numbers (B,) or floats (B, A); raises PolicyError for anything else."""
    count = len(active)
    if not action_size:
        if actions.shape != (count,) or not np.issubdtype(actions.dtype, np.integer):
            raise PolicyError(f"an actor returned {actions.dtype}{actions.shape} where {count} whole numbers were expected")
        return actions
    if actions.shape != (count, action_size) or not np.issubdtype(actions.dtype, np.floating):
        raise PolicyError(f"an actor returned {actions.dtype}{actions.shape} where {count} rows of {action_size} floats were expected")
    if not (np.abs(actions[active]) <= 1).all():
        raise PolicyError("an actor returned an action outside [-1, 1], or one that is not a number")
    return actions
