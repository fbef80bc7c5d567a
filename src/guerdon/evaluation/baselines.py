"""Actors that learn nothing: what a policy has to beat before its numbers mean anything.

- `RandomActor` shows what a world gives for free.
- `ReplayActor` repeats recorded actions with its eyes shut. From the recorded start it is perfect; from another start it shows how much of
  a policy's success can be had by rote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from guerdon.errors import UsageError
from guerdon.interfaces import Actor, Dataset, Integers
from guerdon.records import Frames, Task
from guerdon.seeding import generator


class RandomActor(Actor):
    """Takes every action with equal probability.

    A task's actions depend on `seed` and the task's id only, not on which tasks run beside it.

    Args:
        seed: 0 or more.
        num_actions: actions are 0 .. num_actions-1.
    """

    def __init__(self, seed: int, num_actions: int) -> None:
        self._seed, self._num_actions = seed, num_actions
        self._streams: list[np.random.Generator] = []

    def reset(self, tasks: Sequence[Task]) -> None:
        self._streams = [generator(self._seed, "random actor", task.id) for task in tasks]

    def act(self, frames: Mapping[str, Frames], active: npt.NDArray[np.bool_]) -> Integers:  # noqa: ARG002 (it acts blindly)
        return np.array([int(stream.integers(self._num_actions)) for stream in self._streams])


class ReplayActor(Actor):
    """Repeats recorded actions, whatever it sees; when they have run out, it repeats the action `idle`.

    Args:
        actions: the recording (T,) for each task's id.
        idle: an action that does nothing, such as "done"; None to repeat the recording's last action.
    """

    def __init__(self, actions: Mapping[str, npt.NDArray[np.int64]], idle: int | None = None) -> None:
        self._recordings, self._idle = actions, idle
        self._playing: list[npt.NDArray[np.int64]] = []
        self._time = 0

    @classmethod
    def of(cls, dataset: Dataset, sources: Mapping[str, int]) -> ReplayActor:
        """The actor that replays, for each task's id, the dataset's episode given in `sources` (as in `TaskList.sources`)."""
        idle = dataset.action_names.index("done") if "done" in dataset.action_names else None
        return cls({task: dataset.actions(episode) for task, episode in sources.items()}, idle)

    def reset(self, tasks: Sequence[Task]) -> None:
        """Begins the recordings of `tasks`. Raises UsageError for a task that has none."""
        if unknown := [task.id for task in tasks if task.id not in self._recordings]:
            raise UsageError(f"there is nothing to replay for task {unknown[0]}")
        self._playing = [self._recordings[task.id] for task in tasks]
        self._time = 0

    def act(self, frames: Mapping[str, Frames], active: npt.NDArray[np.bool_]) -> Integers:  # noqa: ARG002 (it acts blindly)
        actions = [self._action(recording) for recording in self._playing]
        self._time += 1
        return np.array(actions)

    def _action(self, recording: npt.NDArray[np.int64]) -> int:
        if self._time < len(recording):
            return int(recording[self._time])
        return int(recording[-1]) if self._idle is None else self._idle
