"""Actors that learn nothing: what a policy has to beat before its numbers mean anything.

- `RandomActor` shows what a world gives for free.
- `ReplayActor` repeats recorded actions with its eyes shut. From the recorded start it is perfect; from another start it shows how much of
  a policy's success can be had by rote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.errors import UsageError
from guerdon.interfaces import Actor, Dataset
from guerdon.records import Task
from guerdon.seeding import generator


class RandomActor(Actor):
    """Takes every action with equal probability.

    A task's actions depend on `seed` and the task's id only, not on which tasks run beside it.

    Args:
        seed: 0 or more.
        num_actions: actions are 0 .. num_actions-1.
        action_size: A; if it is not 0, actions are A floats, each uniform in [-1, 1], and `num_actions` means nothing.
    """

    views = ()

    def __init__(self, seed: int, num_actions: int, action_size: int = 0) -> None:
        self._seed, self._num_actions, self._action_size = seed, num_actions, action_size
        self._streams: list[np.random.Generator] = []

    def reset(self, tasks: Sequence[Task]) -> None:
        self._streams = [generator(self._seed, "random actor", task.id) for task in tasks]

    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:  # noqa: ARG002 (it acts blindly)
        if self._action_size:
            return np.array([stream.uniform(-1, 1, self._action_size) for stream in self._streams], np.float32)
        return np.array([int(stream.integers(self._num_actions)) for stream in self._streams])


class ReplayActor(Actor):
    """Repeats recorded actions, whatever it sees; when they have run out, it repeats the action `idle`.

    Args:
        actions: the recording, (T,) numbers or (T, A) floats, for each task's id.
        idle: an action that does nothing, such as "done"; None to repeat the recording's last action.
    """

    views = ()

    def __init__(self, actions: Mapping[str, npt.NDArray[Any]], idle: int | None = None) -> None:
        self._recordings, self._idle = actions, idle
        self._playing: list[npt.NDArray[Any]] = []
        self._time = 0

    @classmethod
    def of(cls, dataset: Dataset, sources: Mapping[str, int]) -> ReplayActor:
        """The actor that replays, for each task's id, the dataset's episode given in `sources` (as in `TaskList.sources`)."""
        idle = dataset.action_names.index("done") if "done" in dataset.action_names else None
        recordings = {task: dataset.actions(episode) for task, episode in sources.items()}
        if not dataset.action_names:  # some recorders round a component beyond 1
            recordings = {task: np.clip(actions, -1, 1) for task, actions in recordings.items()}
        return cls(recordings, idle)

    def reset(self, tasks: Sequence[Task]) -> None:
        """Begins the recordings of `tasks`. Raises UsageError for a task that has none."""
        if unknown := [task.id for task in tasks if task.id not in self._recordings]:
            raise UsageError(f"there is nothing to replay for task {unknown[0]}")
        self._playing = [self._recordings[task.id] for task in tasks]
        self._time = 0

    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:  # noqa: ARG002 (it acts blindly)
        actions = [self._action(recording) for recording in self._playing]
        self._time += 1
        return np.array(actions)

    def _action(self, recording: npt.NDArray[Any]) -> Any:
        if self._time < len(recording):
            return recording[self._time]
        return recording[-1] if self._idle is None else self._idle
