"""What every algorithm must do, run over whatever algorithms there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from guerdon import discover
from guerdon.interfaces import Algorithm
from guerdon.transitions import Batch, Chunk, Sampler, Transitions, collate
from tests.memory import MemoryDataset, MemoryEpisode

NAMES = discover.names("algorithms")


def transitions() -> Transitions:
    texts = {4: "go left", 6: "go right", 3: ""}
    return Transitions.build(MemoryDataset([MemoryEpisode(n, text, rewards=[0.0] * (n - 1) + [1.0]) for n, text in texts.items()]))


def build(name: str, data: Transitions, *, seed: int = 0, updates: int = 200) -> Algorithm:
    chosen = discover.load("algorithms", name)
    algorithm: Algorithm = chosen(data, chosen.Config(), seed=seed, updates=updates)
    return algorithm


def tensors(state: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield above + name, value.clone()
        else:
            yield from tensors(value, f"{above}{name}/")


def differing(first: Algorithm, second: Algorithm) -> list[str]:
    ours, theirs = dict(tensors(first.state())), dict(tensors(second.state()))
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def whole(data: Transitions) -> Batch:
    return collate(data, [Chunk(number, 0, trajectory.length) for number, trajectory in enumerate(data.trajectories)])


def test_there_are_algorithms() -> None:
    assert {"bc", "iql"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_the_file_s(name: str) -> None:
    assert discover.load("algorithms", name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_one_batch_overfits(name: str) -> None:
    data = transitions()
    algorithm, batch = build(name, data, updates=80), whole(data)
    losses = [float(algorithm.update(batch)["policy_loss"]) for _ in range(80)]
    assert losses[0] > 0.3
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_tensors_without_a_graph(name: str) -> None:
    data = transitions()
    metrics = build(name, data).update(whole(data))
    assert all(value.shape == () and torch.isfinite(value) and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_numbers_and_another_seed_others(name: str) -> None:
    data = transitions()
    runs = [build(name, data, seed=seed) for seed in (3, 3, 4)]
    for algorithm in runs:
        sampler = Sampler(data, sequences=2, context=3, seed=0)
        for _ in range(3):
            algorithm.update(sampler.draw())
    assert differing(runs[0], runs[1]) == []
    assert differing(runs[0], runs[2]) != []


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_state_goes_on_bit_by_bit(name: str) -> None:
    data = transitions()
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


@pytest.mark.parametrize("name", NAMES)
def test_the_first_action_of_a_window_changes_what_is_learned(name: str) -> None:
    data = transitions()
    batch = collate(data, [Chunk(1, 2, 5)])
    action = batch.action.clone()
    action[0] = (action[0] + 1) % 3
    first, second = build(name, data), build(name, data)
    first.update(batch)
    second.update(replace(batch, action=action))
    assert differing(first, second) != []


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_anything_to_learn_changes_no_gradient_to_nan(name: str) -> None:
    data = transitions()
    batch = whole(data)
    nothing = torch.zeros_like(batch.acted)
    algorithm = build(name, data)
    algorithm.update(replace(batch, acted=nothing, known=nothing))
    assert all(bool(torch.isfinite(value).all()) for _, value in tensors(algorithm.state()))
