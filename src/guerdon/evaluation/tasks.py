"""The frozen list of tasks on which all policies are compared.

Tasks are drawn from a dataset, once, and every policy meets the same ones. Each of them comes in three variants:

- from the recorded start, in the words of a demonstration;
- from a randomised start in the same words: repeating what was recorded is of no use there;
- from the recorded start in words that no demonstration uses.

The first two are the settings of RG-VLM's evaluation ("fixed" and "randomised" initial state); starts are drawn once and shared by all
methods. Reads episodes' metadata (`task`, a `Task` record); writes and reads one JSON file, which is refused if it was changed afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from guerdon import discover
from guerdon.errors import DatasetError, EnvironmentFailed, RunError, UsageError
from guerdon.interfaces import Dataset
from guerdon.records import Task, canonical_json, digest
from guerdon.runs import read_json, write_json
from guerdon.seeding import generator

FORMAT = 1


class Variations(Protocol):
    """What an environment's class offers beyond `Environment` so that its tasks can be varied; new tasks have new ids."""

    def randomise_start(self, task: Task, random: np.random.Generator) -> Task:
        """The task from another start, with a step limit that fits it."""

    def hold_out_wording(self, task: Task) -> Task:
        """The task in words that are held out of recorded data."""


@dataclass(frozen=True)
class TaskList:
    """Tasks with different ids, and where they come from."""

    tasks: tuple[Task, ...]
    sources: Mapping[str, int]
    """Task id -> index of the recorded episode that the task was made from."""
    dataset: str
    """Fingerprint of the dataset."""

    def __post_init__(self) -> None:
        ids = {task.id for task in self.tasks}
        if len(ids) < len(self.tasks) or ids != self.sources.keys():
            raise ValueError("tasks need different ids, and each a source")

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def digest(self) -> str:
        """Digest of the tasks in their order; equal lists have equal ones."""
        return digest("guerdon tasks 1", canonical_json([task.to_record() for task in self.tasks]))

    @cached_property
    def seal(self) -> str:
        """Digest of everything that is saved."""
        return digest("guerdon task list 1", self.digest, self.dataset, canonical_json(dict(self.sources)))

    def save(self, path: Path) -> None:
        """Writes the list, whole or not at all. Raises WriteFailed."""
        record = {
            "format": FORMAT,
            "dataset": self.dataset,
            "tasks": [{"episode": self.sources[task.id], "task": task.to_record()} for task in self.tasks],
            "seal": self.seal,
        }
        write_json(path, record)

    @classmethod
    def load(cls, path: Path) -> TaskList:
        """Reads a saved list.

        Raises:
            RunError: if the file is missing, damaged, of another format, or was changed after it was saved.
        """
        record = read_json(path)
        cure = "Delete it and the evaluations beside it, then evaluate again."
        try:
            if record["format"] != FORMAT:
                raise RunError(f"is a list of tasks of format {record['format']}, this version reads {FORMAT}", where=str(path), cure=cure)
            tasks = tuple(Task.from_record(entry["task"]) for entry in record["tasks"])
            sources = {task.id: int(entry["episode"]) for task, entry in zip(tasks, record["tasks"], strict=True)}
            loaded, seal = cls(tasks, sources, str(record["dataset"])), record["seal"]
            genuine = loaded.seal == seal
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"is not a list of tasks ({type(error).__name__})", where=str(path), cure=cure) from None
        if not genuine:
            raise RunError("was changed after it was saved", where=str(path), cure=cure)
        return loaded


def task_list(
    dataset: Dataset, *, lengths: Sequence[int], per_length: int | None, seed: int, held_out_words: bool = True
) -> TaskList:  # fmt: skip
    """Draws tasks from a dataset, and varies each: fixed start, randomised start, held-out words.

    Where a task was demonstrated several times, its first demonstration gives words and step limit.

    Args:
        dataset: its episodes carry a task in their metadata.
        lengths: numbers of sub-tasks wanted; tasks are listed in this order.
        per_length: tasks drawn for each length, before they are varied; None for all that were recorded.
        seed: of the draw and of the randomised starts. A task's randomised start does not depend on which others were drawn.
        held_out_words: whether each task is also set in words that the data does not use.

    Raises:
        UsageError: if there are not enough tasks of a length.
        DatasetError: if the dataset was not recorded in an environment of ours.
        EnvironmentFailed: if a task cannot be built or varied.
    """
    if (per_length is not None and per_length < 1) or not lengths or len(set(lengths)) < len(lengths):
        raise UsageError(f"tasks need lengths that differ and at least one task of each, not {list(lengths)} and {per_length}")
    recorded = _recorded_tasks(dataset)
    variants = [
        (variant, episode)
        for length in lengths
        for task, episode in _draw([entry for entry in recorded if entry[0].length == length], length, per_length, seed)
        for variant in _variants(task, seed)
        if held_out_words or variant.wording == "seen"
    ]
    return TaskList(tuple(task for task, _ in variants), {task.id: episode for task, episode in variants}, dataset.fingerprint)


def recorded_lengths(dataset: Dataset) -> tuple[int, ...]:
    """Numbers of sub-tasks of the tasks in a dataset, ascending. Raises DatasetError if it was not recorded in an environment of ours."""
    return tuple(sorted({task.length for task, _ in _recorded_tasks(dataset)}))


def _recorded_tasks(dataset: Dataset) -> list[tuple[Task, int]]:
    """The tasks of a dataset, each with its first episode, in order of recording."""
    found: dict[str, tuple[Task, int]] = {}
    for episode in dataset.episodes():
        try:
            task = Task.from_record(episode.metadata["task"])
        except (KeyError, TypeError, ValueError, AttributeError):
            what = "its metadata name no task, so it cannot be set again to a policy"
            cure = "Policies can be evaluated on data from `guerdon collect`."
            raise DatasetError(what, where=f"{dataset.path}, episode {episode.index}", cure=cure) from None
        found.setdefault(task.id, (task, episode.index))
    return list(found.values())


def _draw(tasks: list[tuple[Task, int]], length: int, count: int | None, seed: int) -> list[tuple[Task, int]]:
    """`count` of the tasks, drawn at random, in order of recording; all of them for None."""
    if count is None and tasks:
        return tasks
    count = count or 1
    if len(tasks) < count:
        cure = "Ask for fewer tasks of each length, or collect more."
        raise UsageError(f"the dataset has {len(tasks)} tasks of {length} sub-tasks, {count} are wanted", cure=cure)
    drawn = generator(seed, "tasks", length).choice(len(tasks), count, replace=False)
    return [tasks[index] for index in sorted(drawn.tolist())]


def _variants(task: Task, seed: int) -> tuple[Task, Task, Task]:
    environment = discover.load("envs", task.environment)
    if not (hasattr(environment, "randomise_start") and hasattr(environment, "hold_out_wording")):
        raise EnvironmentFailed(f"tasks of '{task.environment}' cannot be varied", where=f"task {task.id}")
    vary = cast(Variations, environment)
    return task, vary.randomise_start(task, generator(seed, "start", task.id)), vary.hold_out_wording(task)
