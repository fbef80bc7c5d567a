"""What every algorithm that learns while acting must do, run over whatever such algorithms there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from guerdon import discover
from guerdon.interfaces import OnlineAlgorithm
from guerdon.replay_buffer import Experience
from guerdon.seeding import generator
from tests.states import differing, tensors

NAMES = [name for name in discover.names("algorithms") if issubclass(discover.load("algorithms", name), OnlineAlgorithm)]
over_all = pytest.mark.parametrize("name", NAMES)

STATES, ACTIONS = 3, 2


def build(name: str, *, state_size: int = STATES, action_size: int = ACTIONS, seed: int = 0) -> OnlineAlgorithm:
    chosen = discover.load("algorithms", name)
    algorithm: OnlineAlgorithm = chosen(state_size, action_size, chosen.Config(), seed=seed)
    return algorithm


def experience(number: int, count: int = 32) -> Experience:
    random = generator(number, "experience")
    return Experience(
        state=torch.from_numpy(random.standard_normal((count, STATES), dtype=np.float32)),
        action=torch.from_numpy(random.uniform(-1, 1, (count, ACTIONS)).astype(np.float32)),
        reward=torch.from_numpy(random.standard_normal(count, dtype=np.float32)),
        next_state=torch.from_numpy(random.standard_normal((count, STATES), dtype=np.float32)),
        terminal=torch.from_numpy(random.random(count) < 0.2),
    )


def states(number: int, count: int = 5) -> np.ndarray[Any, Any]:
    return generator(number, "states").standard_normal((count, STATES), dtype=np.float32)


def test_there_are_algorithms() -> None:
    assert "sac" in NAMES


@over_all
def test_the_name_is_the_file_s(name: str) -> None:
    assert discover.load("algorithms", name).name == name


@over_all
def test_says_how_much_it_learns_from_at_a_time(name: str) -> None:
    assert discover.load("algorithms", name).Config().batch >= 1


@over_all
def test_metrics_are_finite_tensors_without_a_graph(name: str) -> None:
    metrics = build(name).update(experience(0))
    assert metrics
    assert all(value.shape == () and torch.isfinite(value) and not value.requires_grad for value in metrics.values())


@over_all
def test_metrics_stay_what_they_were_when_learning_goes_on(name: str) -> None:
    algorithm = build(name)
    metrics = algorithm.update(experience(0))
    before = {key: float(value) for key, value in metrics.items()}
    algorithm.update(experience(1))
    assert {key: float(value) for key, value in metrics.items()} == before


@over_all
def test_same_seed_same_numbers_and_another_seed_others(name: str) -> None:
    runs, acted = [build(name, seed=seed) for seed in (3, 3, 4)], []
    for algorithm in runs:
        for number in range(3):
            algorithm.update(experience(number))
        acted.append(algorithm.act(states(0), explore=True))
    assert differing(runs[0], runs[1]) == []
    assert differing(runs[0], runs[2]) != []
    assert np.array_equal(acted[0], acted[1])
    assert not np.array_equal(acted[0], acted[2])


@over_all
def test_batches_of_another_size_are_learned_from(name: str) -> None:
    algorithm = build(name)
    for count in (32, 7, 1, 32):
        metrics = algorithm.update(experience(0, count))
        assert all(torch.isfinite(value) for value in metrics.values())


@over_all
def test_a_restored_state_learns_and_explores_on_bit_by_bit(name: str) -> None:
    first = build(name)
    for number in range(3):
        first.update(experience(number))
        first.act(states(number), explore=True)
    second = build(name, seed=9)
    second.update(experience(8))
    kept = first.state()
    second.load_state(kept)
    for number in range(3, 7):
        ours, theirs = first.update(experience(number)), second.update(experience(number))
        assert all(torch.equal(ours[metric], theirs[metric]) for metric in ours)
        acted = [algorithm.act(states(number), explore=True) for algorithm in (first, second)]
        assert np.array_equal(*acted)
        if number == 4:
            first.forget_values()
            second.forget_values()
    assert differing(first, second) == []


@over_all
def test_a_state_is_that_of_a_moment(name: str) -> None:
    algorithm = build(name)
    algorithm.update(experience(0))
    kept = algorithm.state()
    before = dict(tensors(kept))
    algorithm.update(experience(1))
    algorithm.act(states(0), explore=True)
    assert all(torch.equal(before[key], value) for key, value in tensors(kept))


@over_all
def test_a_state_of_the_beginning_can_be_gone_back_to(name: str) -> None:
    first, second = build(name), build(name)
    fresh = first.state()
    first.update(experience(0))
    first.load_state(fresh)
    first.update(experience(1))
    second.update(experience(1))
    assert differing(first, second) == []


@over_all
def test_actions_are_finite_and_within_bounds_for_any_state(name: str) -> None:
    algorithm = build(name)
    seen = np.concatenate([states(0, 200), 1e4 * states(1, 20), np.zeros((1, STATES), np.float32)])
    for explore in (True, False):
        acted = algorithm.act(seen, explore=explore)
        assert acted.shape == (len(seen), ACTIONS)
        assert acted.dtype == np.float32
        assert np.isfinite(acted).all()
        assert (np.abs(acted) <= 1).all()


@over_all
def test_without_exploring_actions_repeat_and_draw_nothing(name: str) -> None:
    algorithm, other = build(name), build(name)
    acted = [algorithm.act(states(0), explore=False) for _ in range(3)]
    assert np.array_equal(acted[0], acted[1])
    assert np.array_equal(acted[0], acted[2])
    assert np.array_equal(algorithm.act(states(1), explore=True), other.act(states(1), explore=True))


@over_all
def test_exploring_draws_anew_each_time_and_changes_no_update(name: str) -> None:
    first, second = build(name), build(name)
    drawn = [first.act(states(0), explore=True) for _ in range(2)]
    assert not np.array_equal(*drawn)
    ours, theirs = first.update(experience(0)), second.update(experience(0))
    assert all(torch.equal(ours[metric], theirs[metric]) for metric in ours)


@over_all
def test_what_comes_after_the_end_does_not_matter(name: str) -> None:
    ended = replace(experience(0), terminal=torch.ones(32, dtype=torch.bool))
    first, second, third = (build(name) for _ in range(3))
    ours = first.update(ended)
    theirs = second.update(replace(ended, next_state=100 * ended.next_state))
    assert all(torch.equal(ours[metric], theirs[metric]) for metric in ours)
    assert differing(first, second) == []
    going = third.update(replace(ended, terminal=torch.zeros(32, dtype=torch.bool)))
    assert any(not torch.equal(ours[metric], going[metric]) for metric in ours)


@over_all
def test_forgotten_values_are_other_ones_each_time_and_the_policy_stays(name: str) -> None:
    algorithm, other = build(name), build(name)
    for each in (algorithm, other):
        for number in range(2):
            each.update(experience(number))
    acted = algorithm.act(states(0), explore=False)
    found = []
    for _ in range(2):
        before = algorithm.state()
        algorithm.forget_values()
        assert np.array_equal(algorithm.act(states(0), explore=False), acted)
        found.append(dict(tensors(algorithm.state())))
        changed = [key for key, value in tensors(before) if not torch.equal(found[-1][key], value)]
        assert changed
    assert any(not torch.equal(found[0][key], found[1][key]) for key in found[0])
    ours, theirs = algorithm.update(experience(5)), other.update(experience(5))
    assert any(not torch.equal(ours[metric], theirs[metric]) for metric in ours)


@over_all
def test_the_best_action_of_a_single_step_is_found_in_each_state(name: str) -> None:
    algorithm, random = build(name, state_size=1, action_size=1), np.random.default_rng(0)
    for _ in range(250):
        state = random.choice([-1.0, 1.0], (32, 1)).astype(np.float32)
        action = algorithm.act(state, explore=True)
        reward = -4 * (action[:, 0] - 0.5 * state[:, 0]) ** 2  # best: 0.5 in state 1, -0.5 in state -1
        rows = [torch.from_numpy(each) for each in (state, action, reward, state)]
        algorithm.update(Experience(*rows, terminal=torch.ones(32, dtype=torch.bool)))
    found = algorithm.act(np.array([[-1.0], [1.0]], np.float32), explore=False)
    assert np.abs(found[:, 0] - [-0.5, 0.5]).max() < 0.2


SPEED, LIMIT, WALKERS = 0.2, 20, 16


def walked(algorithm: OnlineAlgorithm, place: np.ndarray[Any, Any], *, explore: bool) -> tuple[np.ndarray[Any, Any], ...]:
    """One step of points that are to go to the origin: states, actions, rewards, next states."""
    action = algorithm.act(place, explore=explore)
    moved = np.clip(place + SPEED * action, -1, 1).astype(np.float32)
    return place, action, -np.linalg.norm(moved, axis=1).astype(np.float32), moved


def distance_in_the_end(algorithm: OnlineAlgorithm) -> float:
    place = np.random.default_rng(1).uniform(-1, 1, (100, 2)).astype(np.float32)
    for _ in range(LIMIT):
        place = walked(algorithm, place, explore=False)[3]
    return float(np.linalg.norm(place, axis=1).mean())


@over_all
def test_a_point_learns_to_go_to_its_goal(name: str) -> None:
    algorithm, random = build(name, state_size=2, action_size=2), np.random.default_rng(0)
    lost = distance_in_the_end(algorithm)
    held: list[tuple[np.ndarray[Any, Any], ...]] = []
    for step in range(300):
        if step % LIMIT == 0:
            place = random.uniform(-1, 1, (WALKERS, 2)).astype(np.float32)
        held.append(walked(algorithm, place, explore=True))
        place = held[-1][3]
        chosen = [held[number] for number in random.integers(len(held), size=4)]
        state, action, reward, following = (torch.from_numpy(np.concatenate(column)) for column in zip(*chosen, strict=True))
        algorithm.update(Experience(state, action, reward, following, torch.zeros(len(reward), dtype=torch.bool)))
    assert lost > 0.4
    assert distance_in_the_end(algorithm) < 0.15
