"""What every algorithm must do, run over whatever algorithms there are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from guerdon import discover
from guerdon.interfaces import Algorithm
from guerdon.records import Frames
from guerdon.seeding import generator
from guerdon.transitions import Batch, Chunk, Sampler, Transitions, collate
from tests.memory import MemoryDataset, MemoryEpisode
from tests.point import PointData
from tests.states import differing, tensors

NAMES = [name for name in discover.names("algorithms") if issubclass(discover.load("algorithms", name), Algorithm)]
"""Those that learn while acting are in test_online_algorithms.py."""
KINDS = ("pictures and named actions", "vectors and continuous actions", "pictures without memory")
over_all = pytest.mark.parametrize("kind", KINDS)


class Camera(MemoryDataset):
    """No two pictures are alike."""

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        shape = (self._episodes[index].length + 1, 36, 36, 3)
        return generator(index, view).integers(0, 256, shape, dtype=np.uint8)[start:stop]


def transitions(kind: str, *, indifferent: bool = False) -> Transitions:
    """Three short episodes; indifferent ones have no reward that makes one push better than another."""
    texts = {4: "go left", 6: "go right", 3: ""}
    if kind == KINDS[1]:
        rewards = {(k, 0): np.zeros(4, np.float32) for k in range(3)} if indifferent else None
        return Transitions.build(PointData(3, steps=4, texts=tuple(texts.values())), rewards, vectors=("state",))
    episodes = [MemoryEpisode(n, text, rewards=[0.0] * (n - 1) + [1.0]) for n, text in texts.items()]
    return Transitions.build(Camera(episodes), memory=False) if kind == KINDS[2] else Transitions.build(MemoryDataset(episodes))


def build(name: str, data: Transitions, *, seed: int = 0, updates: int = 200) -> Algorithm:
    chosen = discover.load("algorithms", name)
    algorithm: Algorithm = chosen(data, chosen.Config(), seed=seed, updates=updates)
    return algorithm


def whole(data: Transitions) -> Batch:
    return collate(data, [Chunk(number, 0, trajectory.length) for number, trajectory in enumerate(data.trajectories)])


def test_there_are_algorithms() -> None:
    assert {"bc", "iql"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_the_file_s(name: str) -> None:
    assert discover.load("algorithms", name).name == name


@over_all
@pytest.mark.parametrize("name", NAMES)
def test_one_batch_overfits(name: str, kind: str) -> None:
    data = transitions(kind, indifferent=True)
    updates = 80 if data.spec.views else 250
    algorithm, batch = build(name, data, updates=updates), whole(data)
    least = least_loss(data)
    losses = [float(algorithm.update(batch)["policy_loss"]) - least for _ in range(updates)]
    assert losses[0] > 0.3
    assert losses[-1] < 0.2 * losses[0]


def least_loss(data: Transitions) -> float:
    """What cloning without an error would lose, were the deviation of the actions left where it begins: 0 for named actions."""
    deviation = data.action_deviation()
    return 0.0 if deviation is None else float((deviation.log() + 0.5 * math.log(2 * math.pi)).sum())


@over_all
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_tensors_without_a_graph(name: str, kind: str) -> None:
    data = transitions(kind)
    metrics = build(name, data).update(whole(data))
    assert all(value.shape == () and torch.isfinite(value) and not value.requires_grad for value in metrics.values())


@over_all
@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_numbers_and_another_seed_others(name: str, kind: str) -> None:
    data = transitions(kind)
    runs = [build(name, data, seed=seed) for seed in (3, 3, 4)]
    for algorithm in runs:
        sampler = Sampler(data, sequences=2, context=3, seed=0)
        for _ in range(3):
            algorithm.update(sampler.draw())
    assert differing(runs[0], runs[1]) == []
    assert differing(runs[0], runs[2]) != []


@over_all
@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_goes_on_bit_by_bit(name: str, kind: str) -> None:
    data = transitions(kind)
    first, sampler = build(name, data), Sampler(data, sequences=2, context=3, seed=0)
    batches = [sampler.draw() for _ in range(6)]
    for batch in batches[:3]:
        first.update(batch)
    second = build(name, data, seed=9)
    second.load_state(first.state())
    for batch in batches[3:]:
        ours, theirs = first.update(batch), second.update(batch)
        assert all(torch.equal(ours[metric], theirs[metric]) for metric in ours)
    assert differing(first, second) == []


@over_all
@pytest.mark.parametrize("name", NAMES)
def test_the_first_action_of_a_window_changes_what_is_learned(name: str, kind: str) -> None:
    data = transitions(kind)
    batch = collate(data, [Chunk(1, 1, 4)])
    action = batch.action.clone()
    action[0] = -action[0] if action.is_floating_point() else (action[0] + 1) % 3
    first, second = build(name, data), build(name, data)
    first.update(batch)
    second.update(replace(batch, action=action))
    assert differing(first, second) != []


@over_all
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_anything_to_learn_changes_no_gradient_to_nan(name: str, kind: str) -> None:
    data = transitions(kind)
    batch = whole(data)
    nothing = torch.zeros_like(batch.acted)
    algorithm = build(name, data)
    algorithm.update(replace(batch, acted=nothing, known=nothing))
    assert all(bool(torch.isfinite(value).all()) for _, value in tensors(algorithm.state()))
