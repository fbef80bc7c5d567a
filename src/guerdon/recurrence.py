"""Gated recurrent networks over short sequences on a processor, without the cost of their many small operations.

The problem: `torch.nn.GRU` records a dozen operations for the gradient of every step, and each costs more than the arithmetic in it. Here
a step is one small matrix product and a few operations in place. The way back is written by hand: what can be computed for all steps at
once is computed before and after the loop, so that a step of it is one product too, and the gradient of the weights is a single product
over all steps. The numbers are those of `torch.nn.GRU` but for rounding. On a graphics card the library's own network is faster.

    r = σ(Wᵣx + Uᵣh)    z = σ(Wᵤx + Uᵤh)    n = tanh(Wₙx + r (Uₙh))    h' = (1 - z) n + z h          (biases left out)

All of it is computed in the precision of the weights, whatever precision is chosen around it: rounding would add up from step to step.
Knows nothing of policies; reads and writes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def one_way(network: nn.GRU, inputs: Tensor, state: Tensor) -> Tensor:
    """The states (T, B, H) after each step of a network of one layer and one direction.

    Args:
        network: whose weights are used, whatever its `batch_first` says.
        inputs: (T, B, I).
        state: (B, H) before the first step.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        weights = _weights(network)
        gates = F.linear(inputs.to(state.dtype), weights.of_inputs, weights.inputs_bias)
        states: Tensor = _GatedSteps.apply(gates, state, weights.of_states, weights.states_bias)  # type: ignore[no-untyped-call]
        return states


def both_ways(network: nn.GRU, inputs: Tensor, lengths: Tensor) -> Tensor:
    """The states (T, B, 2 H) of a network of one layer and two directions, which begin at zero; zero beyond the end of a sequence.

    Args:
        network: whose weights are used, whatever its `batch_first` says.
        inputs: (T, B, I), padded at the end.
        lengths: (B,) steps of each sequence, at most T.
    """
    with torch.autocast(inputs.device.type, enabled=False):
        step = torch.arange(len(inputs), device=inputs.device)[:, None]
        outside = step >= lengths
        turned = torch.where(outside, step, lengths - 1 - step)
        """Where each step of a sequence read from its end lies in it; the same again turns it back."""
        sequence = torch.arange(inputs.shape[1], device=inputs.device)
        there, back = _weights(network), _weights(network, "_reverse")
        gates = torch.stack(
            [
                F.linear(inputs, there.of_inputs, there.inputs_bias),
                F.linear(inputs[turned, sequence], back.of_inputs, back.inputs_bias),
            ],
            1,
        )
        weight = torch.stack([there.of_states, back.of_states])
        bias = torch.stack([there.states_bias, back.states_bias])
        state = inputs.new_zeros(2, inputs.shape[1], network.hidden_size)
        states = _GatedSteps.apply(gates, state, weight, bias)  # type: ignore[no-untyped-call]
        return torch.cat([states[:, 0], states[turned, 1, sequence]], -1).masked_fill(outside[..., None], 0.0)


class _Weights(NamedTuple):
    """Those of a network of one layer in one direction; three gates of width H lie one below the other."""

    of_inputs: Tensor
    """(3 H, I)."""
    of_states: Tensor
    """(3 H, H)."""
    inputs_bias: Tensor
    states_bias: Tensor


def _weights(network: nn.GRU, direction: str = "") -> _Weights:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return _Weights(*(getattr(network, name + direction) for name in names))


class _GatedSteps(torch.autograd.Function):
    """(what the inputs contribute to the gates, state, U, its bias) -> the states after each step.

    Shapes: (T, B, 3 H), (B, H), (3 H, H), (3 H,) -> (T, B, H); for D networks side by side (T, D, B, 3 H), (D, B, H), (D, 3 H, H),
    (D, 3 H) -> (T, D, B, H).
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        width = state.shape[-1]
        gates = bias.unsqueeze(-2).expand_as(inputs).clone()
        gates[..., : 2 * width] += inputs[..., : 2 * width]
        new = inputs[..., 2 * width :].clone(memory_format=torch.contiguous_format)
        states = torch.cat([state[None], torch.empty_like(new)])
        add_product, turned = _adder_of_products(weight), weight.mT
        columns = (gates, gates[..., : 2 * width], *torch.split(gates, width, -1), new, states[1:])
        steps = zip(*(values.unbind() for values in columns), strict=True)
        for gate, squashed, reset, update, recalled, fresh, after in steps:
            add_product(gate, state, turned)
            squashed.sigmoid_()
            fresh.addcmul_(reset, recalled).tanh_()
            state = torch.lerp(fresh, state, update, out=after)
        ctx.save_for_backward(weight, gates, new, states)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        weight, gates, new, states = ctx.saved_tensors
        width, before = new.shape[-1], states[:-1]
        with torch.autocast(gates.device.type, enabled=False):
            reset, update, recalled = torch.split(gates, width, -1)
            # How each gate of a step changes the state after it.
            fresh = (1 - update) * (1 - new * new)
            share = torch.stack([fresh * recalled * reset * (1 - reset), (before - new) * update * (1 - update), fresh * reset], -2)
            arriving = torch.cat([torch.zeros_like(states[:1]), gradient])
            changes = torch.empty_like(gates)
            add_product = _adder_of_products(weight)
            columns = (arriving[1:], arriving[:-1], share, changes, changes.view(*changes.shape[:-1], 3, width), update)
            for here, earlier, part, change, apart, kept in reversed(list(zip(*(values.unbind() for values in columns), strict=True))):
                torch.mul(here.unsqueeze(-2), part, out=apart)
                add_product(earlier.addcmul_(here, kept), change, weight)
            inputs = torch.cat([changes[..., : 2 * width], arriving[1:] * fresh], -1)
            flat, past = (values.movedim(0, -3).flatten(-3, -2) for values in (changes, before))
            return inputs, arriving[0], flat.mT @ past, flat.sum(-2)


def _adder_of_products(weight: Tensor) -> Any:
    """(total, states, matrix) -> total += states @ matrix; for one network or for several side by side."""
    return torch.Tensor.addmm_ if weight.dim() == 2 else torch.Tensor.baddbmm_
