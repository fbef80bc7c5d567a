"""What exploring is rewarded for, against numbers worked out by hand and against brute force."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from guerdon import exploration
from guerdon.errors import UsageError
from guerdon.exploration import Spread, StateEntropy


def by_brute_force(states: npt.NDArray[Any], held: npt.NDArray[Any], neighbours: int) -> npt.NDArray[np.float64]:
    """Sorted float64 distances; the state itself, at distance 0, is the first."""
    distances = np.linalg.norm(states[:, None].astype(np.float64) - held[None].astype(np.float64), axis=2)
    return np.sort(distances, axis=1)[:, neighbours]


# distances


def test_distance_is_to_the_kth_other_state() -> None:
    held = np.array([[0, 0], [3, 4], [0, 1], [6, 8], [0, -2]], np.float32)
    states = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    # from the origin the others are 1, 2, 5 and 10 away; from (3, 4) they are sqrt(18), 5, 5, sqrt(45) away
    assert StateEntropy(1).distances(states, held).tolist() == pytest.approx([1, 18**0.5])
    assert StateEntropy(2).distances(states, held).tolist() == pytest.approx([2, 5])
    assert StateEntropy(3).distances(states, held).tolist() == pytest.approx([5, 5])
    assert StateEntropy(4).distances(states, held).tolist() == pytest.approx([10, 45**0.5])


def test_equal_states_are_no_distance_apart() -> None:
    held = np.array([[1, 1]] * 3 + [[1, 2]], np.float32)
    # of three equal states one is the state itself and two are others at distance 0
    assert [StateEntropy(k).distances(torch.ones(1, 2), held).item() for k in (1, 2, 3)] == [0, 0, 1]


def test_states_that_are_not_held_have_no_self_to_leave_out() -> None:
    held = np.array([[1.0], [3.0], [6.0]], np.float32)
    assert [StateEntropy(k).distances(torch.zeros(1, 1), held).item() for k in (1, 2)] == [1, 3]


@pytest.mark.parametrize("piece", [1, 700, 1 << 18])
@pytest.mark.parametrize(("size", "spread", "middle"), [(39, 1.0, 0.0), (39, 0.01, 5.0), (3, 1e-3, 100.0)])
def test_distances_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, piece: int, size: int, spread: float, middle: float) -> None:
    """Also for states that are close together and far from 0, where the quick formula alone is wrong by far more."""
    monkeypatch.setattr(exploration, "_PIECE", piece)
    random = np.random.default_rng(0)
    walk = (middle + spread * random.normal(size=(300, size)).cumsum(axis=0)).astype(np.float32)
    chosen = random.integers(300, size=40)
    found = StateEntropy(5).distances(torch.from_numpy(walk[chosen]), walk).numpy()
    assert found == pytest.approx(by_brute_force(walk[chosen], walk, 5), rel=1e-5)


@given(
    held=arrays.arrays(np.float32, st.tuples(st.integers(2, 30), st.integers(1, 5)), elements=st.floats(-100, 100, width=32)),
    data=st.data(),
)
def test_distances_of_any_states(held: npt.NDArray[np.float32], data: st.DataObject) -> None:
    neighbours = data.draw(st.integers(1, len(held) - 1))
    chosen = data.draw(st.lists(st.integers(0, len(held) - 1), max_size=10))
    found = StateEntropy(neighbours).distances(torch.from_numpy(held[chosen]), held)
    assert found.dtype == torch.float32
    # the quick formula finds neighbours among distances that are equal but for its rounding
    assert found.numpy() == pytest.approx(by_brute_force(held[chosen], held, neighbours), rel=1e-4, abs=0.05)


# rewards


def test_reward_is_the_distance_divided_by_the_running_deviation() -> None:
    held = np.array([[0.0], [1.0], [3.0]], np.float32)
    entropy = StateEntropy(1)
    # distances 1, 1, 2: mean 4/3, population variance 2/9
    first = entropy.rewards(torch.from_numpy(held), held)
    assert first.tolist() == pytest.approx([1 / (2 / 9) ** 0.5, 1 / (2 / 9) ** 0.5, 2 / (2 / 9) ** 0.5])
    # then 2 once more: mean 1.5, variance 1/4
    assert entropy.rewards(torch.tensor([[3.0]]), held).tolist() == pytest.approx([4.0])
    assert entropy.spread.mean == pytest.approx(1.5)


def test_equal_distances_are_divided_by_nothing() -> None:
    held = np.array([[0.0], [2.0]], np.float32)
    assert StateEntropy(1).rewards(torch.from_numpy(held), held).tolist() == [2, 2]


def test_running_mean_of_a_first_batch_is_its_mean() -> None:
    """The reference adds `delta + n / N` in place of `delta * n / N`, and so calls the mean of 1, 2, 3 three."""
    assert Spread().including(np.array([1.0, 2.0, 3.0])) == Spread(3, 2.0, 2.0)
    assert Spread().deviation == 0


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), max_size=8))
def test_running_spread_is_that_of_all_numbers(batches: list[list[float]]) -> None:
    running = Spread()
    for batch in batches:
        running = running.including(np.array(batch))
    everything = np.array([number for batch in batches for number in batch])
    assert running.count == len(everything)
    if len(everything):
        assert running.mean == pytest.approx(everything.mean(), abs=1e-9)
        assert running.deviation == pytest.approx(everything.std(), abs=1e-6)


# a part of the states


def test_a_part_of_the_states_is_looked_at_without_the_state_itself() -> None:
    """Ten states on a line, one apart: the nearest other one of those drawn is never nearer than 1, whether or not the state is drawn."""
    held = np.arange(10, dtype=np.float32)[:, None]
    entropy = StateEntropy(1, most=4, seed=1)
    seen = torch.stack([entropy.distances(torch.tensor([[0.0]]), held) for _ in range(60)]).flatten().tolist()
    assert min(seen) == 1
    assert len(set(seen)) > 2  # drawn anew in each call
    assert set(seen) <= set(map(float, range(1, 10)))


def test_a_part_as_large_as_all_is_all() -> None:
    held = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    states = torch.from_numpy(held[:5])
    assert StateEntropy(3, most=20).distances(states, held).equal(StateEntropy(3).distances(states, held))


# going on, and what is refused


def test_goes_on_from_its_state_bit_by_bit() -> None:
    held = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    states = torch.from_numpy(held[:7])
    entropy = StateEntropy(2, most=10, seed=3)
    entropy.rewards(states, held)
    again = StateEntropy(2, most=10)
    again.load_state(json.loads(json.dumps(entropy.state())))
    for _ in range(3):
        assert again.rewards(states, held).equal(entropy.rewards(states, held))
    assert again.spread == entropy.spread


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="neighbour"):
        StateEntropy(0)
    with pytest.raises(UsageError, match="at least 6 states"):
        StateEntropy(5, most=5)
    with pytest.raises(UsageError, match="no neighbour number 5 among 5 states"):
        StateEntropy(5).rewards(torch.zeros(1, 2), np.zeros((5, 2), np.float32))
    with pytest.raises(UsageError, match="cannot be compared"):
        StateEntropy(1).rewards(torch.zeros(1, 2), np.zeros((5, 3), np.float32))


def test_no_states_have_no_rewards() -> None:
    entropy = StateEntropy(1)
    assert entropy.rewards(torch.zeros(0, 2), np.zeros((5, 2), np.float32)).shape == (0,)
    assert entropy.spread.count == 0
