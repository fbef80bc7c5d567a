"""What every environment must do, run over whatever environments there are. Each offers `sample_task(seed)`, a short task to try."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from guerdon import discover
from guerdon.errors import EnvironmentFailed, MissingExtra
from guerdon.interfaces import Environment, Observation
from guerdon.records import Task

STEPS = 40


@pytest.fixture(params=discover.names("envs"))
def world(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Environment]]:
    """A class of environments and one of its objects."""
    try:
        environment_class = discover.load("envs", request.param)
        environment_class().reset(environment_class.sample_task(0))
        environment = environment_class()
    except MissingExtra as error:
        pytest.skip(str(error))
    except EnvironmentFailed as error:
        if "cannot be drawn on this machine" not in str(error):
            raise
        pytest.skip(f"NOT TESTED: {error}")
    yield environment_class, environment
    environment.close()


def walk(environment: Environment, task: Task, seed: int) -> list[tuple[Observation, float, bool]]:
    """What is seen in an episode of random actions."""
    random = np.random.default_rng(seed)
    seen = [(environment.reset(task), 0.0, False)]
    for _ in range(STEPS):
        step = environment.step(random_action(environment, random))
        seen.append((step.observation, step.progress, step.terminated))
        if step.terminated:
            break
    return seen


def random_action(environment: Environment, random: np.random.Generator) -> Any:
    if environment.action_size:
        return random.uniform(-1, 1, environment.action_size).astype(np.float32)
    return int(random.integers(len(environment.action_names)))


def assert_equal_walks(one: list[tuple[Observation, float, bool]], other: list[tuple[Observation, float, bool]]) -> None:
    assert [what[1:] for what in one] == [what[1:] for what in other]
    for (first, _, _), (second, _, _) in zip(one, other, strict=True):
        for view in first.frames:
            np.testing.assert_array_equal(first.frames[view], second.frames[view])
        assert first.vectors.keys() == second.vectors.keys()
        for name in first.vectors:
            np.testing.assert_array_equal(first.vectors[name], second.vectors[name])


def test_there_is_an_environment() -> None:
    assert "babyai" in discover.names("envs")


def test_equal_tasks_and_actions_give_equal_episodes(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    task = environment_class.sample_task(0)
    assert task == environment_class.sample_task(0)
    first = walk(environment, task, 0)
    walk(environment, environment_class.sample_task(1), 1)  # whatever happened in between leaves no trace
    assert_equal_walks(first, walk(environment, task, 0))
    assert_equal_walks(first, walk(environment_class(), task, 0))


def test_different_seeds_give_different_tasks(world: tuple[Any, Environment]) -> None:
    tasks = [world[0].sample_task(seed) for seed in range(5)]
    assert len({task.id for task in tasks}) == 5


def test_frames_are_rgb_for_each_view_and_keep_their_size(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    seen = walk(environment, environment_class.sample_task(0), 0) + walk(environment, environment_class.sample_task(1), 1)
    for observation, _, _ in seen:
        assert tuple(observation.frames) == environment.views
        for frame in observation.frames.values():
            assert frame.dtype == np.uint8
            assert frame.ndim == 3
            assert frame.shape[2] == 3
    for view in environment.views:
        assert len({observation.frames[view].shape for observation, _, _ in seen}) == 1
        assert any(observation.frames[view].any() for observation, _, _ in seen)


def test_frames_are_not_changed_by_later_steps(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    task = environment_class.sample_task(0)
    first = environment.reset(task)
    copies = {view: frame.copy() for view, frame in first.frames.items()}
    walk(environment, task, 0)
    for view, copied in copies.items():
        np.testing.assert_array_equal(first.frames[view], copied)


def test_progress_is_a_share(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    for seed in range(3):
        progress = [progress for _, progress, _ in walk(environment, environment_class.sample_task(seed), seed)]
        assert all(0 <= share <= 1 for share in progress)


def test_vectors_are_finite_floats_and_keep_their_size(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    shapes = set()
    seen = [step for seed in (0, 1) for step in walk(environment, environment_class.sample_task(seed), seed)]
    for observation, _, _ in seen:
        shapes.add(tuple((name, vector.shape) for name, vector in observation.vectors.items()))
        for vector in observation.vectors.values():
            assert (vector.dtype, vector.ndim) == (np.float32, 1)
            assert np.isfinite(vector).all()
    assert len(shapes) == 1


def test_rewards_are_numbers(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    environment.reset(environment_class.sample_task(0))
    step = environment.step(random_action(environment, np.random.default_rng(0)))
    assert isinstance(step.reward, float)
    assert np.isfinite(step.reward)


def test_without_views_nothing_is_drawn_and_the_rest_stays_the_same(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    task, blind = environment_class.sample_task(0), environment_class(views=())
    assert blind.views == ()
    drawn, undrawn = walk(environment, task, 0), walk(blind, task, 0)
    assert [what[1:] for what in drawn] == [what[1:] for what in undrawn]
    for (first, _, _), (second, _, _) in zip(drawn, undrawn, strict=True):
        assert second.frames == {}
        assert first.vectors.keys() == second.vectors.keys()
        for name in first.vectors:
            np.testing.assert_array_equal(first.vectors[name], second.vectors[name])
    blind.close()


def test_actions_are_either_discrete_or_continuous(world: tuple[Any, Environment]) -> None:
    assert bool(world[1].action_names) != bool(world[1].action_size)


def test_actions_and_views_have_names(world: tuple[Any, Environment]) -> None:
    assert len(world[1].views) > 0
    for names in (world[1].action_names, world[1].views):
        assert len(set(names)) == len(names)
        assert all(name == name.strip() and name for name in names)


def test_tasks_survive_json(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    task = environment_class.sample_task(0)
    again = Task.from_record(json.loads(json.dumps(task.to_record())))
    assert again == task
    assert_equal_walks(walk(environment, task, 0), walk(environment, again, 0))


def test_what_cannot_be_built_is_refused(world: tuple[Any, Environment]) -> None:
    environment_class, environment = world
    task = environment_class.sample_task(0)
    for damaged in (replace(task, environment="elsewhere"), replace(task, spec={})):
        with pytest.raises(EnvironmentFailed):
            environment.reset(damaged)


def test_stepping_needs_a_task(world: tuple[Any, Environment]) -> None:
    with pytest.raises(EnvironmentFailed):
        world[1].step(0)
