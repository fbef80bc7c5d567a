"""The losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from guerdon.losses import (
    advantage_weight,
    cloning_loss,
    expectile_loss,
    masked_mean,
    temporal_difference_target,
    weighted_cloning_loss,
)


@pytest.mark.parametrize(("expectile", "error", "expected"), [(0.8, 1, 0.8), (0.8, -1, 0.2), (0.5, 2, 2), (0.7, -0.5, 0.075), (0.9, 0, 0)])
def test_expectile_loss(expectile: float, error: float, expected: float) -> None:
    assert_close(expectile_loss(tensor(float(error)), expectile), tensor(float(expected)))


def test_value_loss_of_three_transitions_and_its_gradient() -> None:
    target_q = tensor([0.5, 0.2, 1.0])
    value = tensor([0.3, 0.4, 0.9], requires_grad=True)
    losses = expectile_loss(target_q - value, 0.8)
    assert_close(losses, tensor([0.032, 0.008, 0.008]))
    loss = masked_mean(losses, torch.ones(3, dtype=torch.bool))
    assert_close(loss, tensor(0.016))
    loss.backward()
    # d/dV of w (q - V)² / 3 is -2 w (q - V) / 3 with w = .8, .2, .8
    assert_close(value.grad, tensor([-2 * 0.8 * 0.2, -2 * 0.2 * -0.2, -2 * 0.8 * 0.1]) / 3)


def test_temporal_difference_target_ignores_what_follows_the_end() -> None:
    reward, terminal = tensor([0.0, 0.0, 1.0]), tensor([False, False, True])
    assert_close(temporal_difference_target(reward, tensor([0.3, 0.6, 9.0]), terminal, 0.97), tensor([0.291, 0.582, 1.0]))
    assert_close(temporal_difference_target(reward, tensor([0.3, 0.6, math.nan]), terminal, 0.97), tensor([0.291, 0.582, 1.0]))


def test_temporal_difference_target_carries_no_gradient() -> None:
    next_value = tensor([0.5], requires_grad=True)
    assert not temporal_difference_target(tensor([1.0]), next_value, tensor([False]), 0.97).requires_grad


def test_advantage_weight_and_its_ceiling() -> None:
    weight = advantage_weight(tensor([0.2, -0.2, 0.1, 0.5, 1.0, 1e6]), 5.0, 100.0)
    assert_close(weight, tensor([2.718282, 0.367879, 1.648721, 12.182494, 100.0, 100.0]))
    assert not advantage_weight(tensor([0.2], requires_grad=True), 5.0, 100.0).requires_grad


def test_inverse_temperature_zero_is_cloning() -> None:
    logits, action = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)), tensor([0, 3, 6, 3])
    weight = advantage_weight(tensor([3.0, -3.0, 0.0, 9.0]), 0.0, 100.0)
    assert_close(weighted_cloning_loss(logits, action, weight), cloning_loss(logits, action))


def test_cloning_loss_of_uniform_logits_and_its_gradient() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    loss = cloning_loss(logits, tensor([2]))
    assert_close(loss, tensor([math.log(4)]))
    loss.sum().backward()
    assert_close(logits.grad, tensor([[0.25, 0.25, -0.75, 0.25]]))


def test_weighted_cloning_loss_does_not_learn_its_weights() -> None:
    weight = tensor([2.0], requires_grad=True)
    logits = torch.zeros(1, 4, requires_grad=True)
    loss = weighted_cloning_loss(logits, tensor([2]), weight)
    assert_close(loss, tensor([2 * math.log(4)]))
    loss.sum().backward()
    assert weight.grad is None
    assert_close(logits.grad, tensor([[0.5, 0.5, -1.5, 0.5]]))


def test_masked_mean_counts_the_mask_only() -> None:
    losses = tensor([[1.0, 2.0, 0.0, 0.0], [3.0, math.nan, math.nan, math.nan]])
    mask = tensor([[True, True, False, False], [True, False, False, False]])
    assert_close(masked_mean(losses, mask), tensor(2.0))


def test_masked_mean_of_nothing_is_zero_with_zero_gradient() -> None:
    losses = tensor([math.nan, 1.0], requires_grad=True)
    mean = masked_mean(losses, tensor([False, False]))
    mean.backward()
    assert_close(mean.detach(), tensor(0.0))
    assert_close(losses.grad, torch.zeros(2))


def test_masked_positions_get_no_gradient_even_if_not_a_number() -> None:
    losses = tensor([2.0, math.nan, 4.0], requires_grad=True)
    masked_mean(losses, tensor([True, False, True])).backward()
    assert_close(losses.grad, tensor([0.5, 0.0, 0.5]))
