"""Recurrent networks written out by hand against those of the library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn, tensor
from torch.testing import assert_close

from guerdon.recurrence import _GatedSteps, both_ways, one_way


def gradients(network: nn.GRU, states: Tensor, *given: Tensor) -> list[Tensor]:
    """Of a loss in which every state counts differently."""
    weight = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    return list(torch.autograd.grad((weight * states.sin()).sum(), [*given, *network.parameters()]))


@pytest.mark.parametrize("steps", [1, 7])
def test_one_way_is_the_library_s_network(steps: int) -> None:
    torch.manual_seed(0)
    network = nn.GRU(5, 8)
    inputs, state = torch.randn(steps, 3, 5, requires_grad=True), torch.randn(3, 8, requires_grad=True)
    ours, theirs = one_way(network, inputs, state), network(inputs, state[None])[0]
    assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for mine, other in zip(gradients(network, ours, inputs, state), gradients(network, theirs, inputs, state), strict=True):
        assert_close(mine, other, atol=2e-6, rtol=1e-5)


def test_both_ways_is_the_library_s_network_on_sequences_of_different_lengths() -> None:
    torch.manual_seed(0)
    network, lengths = nn.GRU(5, 8, bidirectional=True), tensor([6, 1, 4])
    inputs = torch.randn(7, 3, 5, requires_grad=True)
    packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, enforce_sorted=False)
    theirs, _ = nn.utils.rnn.pad_packed_sequence(network(packed)[0], total_length=7)
    ours = both_ways(network, inputs, lengths)
    assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    for mine, other in zip(gradients(network, ours, inputs), gradients(network, theirs, inputs), strict=True):
        assert_close(mine, other, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("beside", [(), (2,)])
def test_the_way_back_is_the_derivative_of_the_way_there(beside: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(4, *beside, 3, 6), (*beside, 3, 2), (*beside, 6, 2), (*beside, 6)]
    given = [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(_GatedSteps.apply, given)


def test_a_coarser_precision_around_it_changes_nothing() -> None:
    torch.manual_seed(0)
    network, inputs, state = nn.GRU(5, 8), torch.randn(4, 3, 5), torch.zeros(3, 8)
    plain = one_way(network, inputs, state)
    with torch.autocast("cpu", torch.bfloat16):
        around = one_way(network, inputs, state)
        expected = gradients(network, plain)
        found = gradients(network, around)
    assert torch.equal(around, plain)
    recurrent = [name for name, _ in network.named_parameters()].index("weight_hh_l0")
    with torch.autocast("cpu", enabled=False):
        assert_close(found[recurrent], gradients(network, one_way(network, inputs, state))[recurrent])
    assert_close(found[recurrent], expected[recurrent])
