"""The frozen list of tasks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("minigrid")

from guerdon.datasets.minari import MinariFormat, RecordedEpisode, write_minari
from guerdon.envs.babyai import BabyAI, build_world
from guerdon.errors import DatasetError, EnvironmentFailed, RunError, UnknownName, UsageError
from guerdon.evaluation.baselines import RandomActor, ReplayActor
from guerdon.evaluation.tasks import TaskList, task_list
from guerdon.interfaces import Dataset
from guerdon.recipes.collect_babyai import Config, collect_babyai
from guerdon.records import Annotation, Task
from guerdon.rollout import run_tasks


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    config = Config(out=tmp_path_factory.mktemp("babyai") / "data", tasks=12, demonstrations=2, lengths=(1, 3))
    return MinariFormat.open(collect_babyai(config), {})


@pytest.fixture(scope="module")
def tasks(dataset: Dataset) -> TaskList:
    return task_list(dataset, lengths=[1, 3], per_length=3, seed=0)


def test_every_task_comes_in_three_variants(tasks: TaskList) -> None:
    kinds = Counter((task.length, task.start, task.wording) for task in tasks)
    variants = [("fixed", "seen"), ("randomised", "seen"), ("fixed", "held-out")]
    assert kinds == {(length, *variant): 3 for length in (1, 3) for variant in variants}
    assert len(tasks) == 18


def test_the_list_is_the_same_again_and_another_for_another_seed(dataset: Dataset, tasks: TaskList) -> None:
    assert task_list(dataset, lengths=[1, 3], per_length=3, seed=0) == tasks
    other = task_list(dataset, lengths=[1, 3], per_length=3, seed=1)
    assert other.digest != tasks.digest


def test_a_randomised_start_does_not_depend_on_which_others_were_drawn(dataset: Dataset, tasks: TaskList) -> None:
    more = {task.id: task for task in task_list(dataset, lengths=[3, 1, 2], per_length=4, seed=0)}
    assert all(more[task.id] == task for task in tasks)


def test_fixed_starts_are_those_of_the_dataset(dataset: Dataset, tasks: TaskList) -> None:
    environment = BabyAI(views=("full",))
    for task in tasks:
        first = dataset.frames(tasks.sources[task.id], "full", 0, 1)[0]
        same = np.array_equal(environment.reset(task).frames["full"], first)
        assert same == (task.start == "fixed")


def test_words_are_those_of_the_first_demonstration(dataset: Dataset, tasks: TaskList) -> None:
    for task in tasks:
        episode = dataset.episode(tasks.sources[task.id])
        assert episode.metadata["demonstration"] == 0
        assert (task.instruction == episode.annotations[0].instruction) == (task.wording == "seen")


def test_step_limits(dataset: Dataset, tasks: TaskList) -> None:
    for task in tasks:
        if task.start == "fixed":
            assert task.step_limit == 2 * dataset.episode(tasks.sources[task.id]).length
        else:
            assert task.step_limit >= build_world(task).distance()


def test_replay_wins_from_the_fixed_start_only(dataset: Dataset, tasks: TaskList) -> None:
    results = run_tasks(ReplayActor.of(dataset, tasks.sources), tasks.tasks, lambda: BabyAI(views=("full",)))
    assert all(result.completed == 1.0 and result.success for result in results if result.task.start == "fixed")
    assert np.mean([result.completed for result in results if result.task.start == "randomised"]) < 0.6


def test_random_actions_win_little(tasks: TaskList) -> None:
    results = run_tasks(RandomActor(0, 7), tasks.tasks, lambda: BabyAI(views=("full",)))
    assert np.mean([result.completed for result in results]) < 0.5
    assert all(result.steps == result.task.step_limit for result in results if not result.success)


# --- saving -------------------------------------------------------------------------------------------------------------------------


def test_save_and_load(tasks: TaskList, tmp_path: Path) -> None:
    tasks.save(tmp_path / "tasks.json")
    loaded = TaskList.load(tmp_path / "tasks.json")
    assert loaded == tasks
    assert loaded.digest == tasks.digest


@pytest.mark.parametrize("change", ["step_limit", "instruction", "episode", "dataset", "order", "seal"])
def test_a_changed_file_is_refused(tasks: TaskList, tmp_path: Path, change: str) -> None:
    path = tmp_path / "tasks.json"
    tasks.save(path)
    record = json.loads(path.read_text())
    entry = record["tasks"][0]
    if change in ("step_limit", "instruction"):
        entry["task"][change] *= 2
    elif change == "episode":
        entry["episode"] += 1
    elif change == "order":
        record["tasks"].reverse()
    else:
        record[change] += "0"
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="changed after it was saved"):
        TaskList.load(path)


def test_what_is_no_list_is_refused(tasks: TaskList, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    with pytest.raises(RunError, match="no such file"):
        TaskList.load(path)
    tasks.save(path)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(RunError, match="format 99"):
        TaskList.load(path)
    path.write_text(json.dumps(record | {"tasks": [*record["tasks"], record["tasks"][0]]}))
    with pytest.raises(RunError, match="not a list of tasks"):
        TaskList.load(path)


KEYS = st.sampled_from(["format", "tasks", "task", "episode", "seal", "id"])
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(junk=JUNK)
def test_junk_is_refused_by_name(junk: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("junk") / "tasks.json"
    path.write_text(json.dumps(junk))
    with pytest.raises(RunError):
        TaskList.load(path)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_junk_in_a_list_is_refused_by_name(data: st.DataObject, tasks: TaskList, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("junk") / "tasks.json"
    tasks.save(path)
    record = json.loads(path.read_text())
    where = data.draw(st.sampled_from([record, record["tasks"][0], record["tasks"][0]["task"]]))
    key = data.draw(st.sampled_from(sorted(where)))
    junk = data.draw(JUNK)
    if where[key] == junk:
        return
    where[key] = junk
    path.write_text(json.dumps(record))
    with pytest.raises(RunError):
        TaskList.load(path)


def test_tasks_need_different_ids_and_sources(tasks: TaskList) -> None:
    with pytest.raises(ValueError, match="different ids"):
        replace(tasks, tasks=tasks.tasks * 2)
    with pytest.raises(ValueError, match="each a source"):
        replace(tasks, sources={})


# --- what it refuses ----------------------------------------------------------------------------------------------------------------


def test_too_many_tasks_are_refused(dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="has 4 tasks of 2 sub-tasks, 5 are wanted"):
        task_list(dataset, lengths=[2], per_length=5, seed=0)
    with pytest.raises(UsageError, match="has 0 tasks of 6"):
        task_list(dataset, lengths=[6], per_length=1, seed=0)
    for lengths, count in (([], 1), ([1, 1], 1), ([1], 0)):
        with pytest.raises(UsageError):
            task_list(dataset, lengths=lengths, per_length=count, seed=0)


def foreign_dataset(path: Path, metadata: dict[str, Any]) -> Dataset:
    episode = RecordedEpisode(
        frames={"full": np.zeros((2, 4, 4, 3), np.uint8)},
        actions=np.zeros(1, np.int64),
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
        annotations=(Annotation("count"),),
        metadata=metadata,
    )
    write_minari(path, [episode], dataset_id="foreign-v0", action_names=("wait",), environment={"name": "foreign"})
    return MinariFormat.open(path, {})


def test_data_without_tasks_are_refused(tmp_path: Path) -> None:
    for number, metadata in enumerate([{}, {"task": {"id": "x"}}, {"task": "dance"}]):
        with pytest.raises(DatasetError, match=r"episode 0.*name no task"):
            task_list(foreign_dataset(tmp_path / str(number), metadata), lengths=[1], per_length=1, seed=0)


def test_tasks_of_unknown_worlds_are_refused(tmp_path: Path) -> None:
    record = Task("x", "nowhere", "count", 1, "fixed", 1).to_record()
    with pytest.raises(UnknownName, match="no env 'nowhere'"):
        task_list(foreign_dataset(tmp_path / "data", {"task": record}), lengths=[1], per_length=1, seed=0)


def test_worlds_that_cannot_vary_their_tasks_are_refused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BabyAI, "hold_out_wording")
    with pytest.raises(EnvironmentFailed, match="cannot be varied"):
        task_list(dataset, lengths=[1], per_length=1, seed=0)
