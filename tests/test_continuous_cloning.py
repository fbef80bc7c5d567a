"""Cloning continuous actions, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from guerdon.losses import gaussian_cloning_loss, weighted_gaussian_cloning_loss


def test_a_gaussian_s_loss_and_its_gradients() -> None:
    """Half a unit off: 0.5 deviations of 1 in the first component, one deviation of 0.5 in the second.

    0.125 + 0.5, and log 1 + log 0.5 = -0.693147, and twice log(2π) / 2 = 0.918939.
    """
    mean = tensor([[0.5, -0.25]], requires_grad=True)
    log_deviation = tensor([0.0, math.log(0.5)], requires_grad=True)
    loss = gaussian_cloning_loss(mean, log_deviation, tensor([[1.0, 0.25]]))
    assert loss.tolist() == pytest.approx([1.769730], abs=1e-5)
    loss.sum().backward()
    assert mean.grad is not None
    assert_close(mean.grad, tensor([[-0.5, -2.0]]))  # -(a - μ) / σ²
    assert log_deviation.grad is not None
    assert_close(log_deviation.grad, tensor([0.75, 0.0]))  # 1 - ((a - μ) / σ)²


def test_a_sure_hit_is_worth_more_than_certainty() -> None:
    loss = gaussian_cloning_loss(tensor([[0.3]]), tensor([-5.0]), tensor([[0.3]]))
    assert loss.tolist() == pytest.approx([-4.081061], abs=1e-5)


def test_it_is_the_density_of_a_normal_distribution() -> None:
    random = torch.Generator().manual_seed(0)
    mean, action = torch.rand(7, 3, generator=random), torch.rand(7, 3, generator=random)
    log_deviation = tensor([-1.0, 0.0, 0.5])
    expected = -torch.distributions.Normal(mean, log_deviation.exp()).log_prob(action).sum(1)
    assert_close(gaussian_cloning_loss(mean, log_deviation, action), expected)


def test_weights_scale_the_loss_and_are_not_learned() -> None:
    mean, log_deviation, action = tensor([[0.5], [0.5]], requires_grad=True), tensor([0.0]), tensor([[1.0], [0.0]])
    weight = tensor([2.0, 0.0], requires_grad=True)
    loss = weighted_gaussian_cloning_loss(mean, log_deviation, action, weight)
    assert loss.tolist() == pytest.approx([2 * (0.125 + 0.918939), 0.0], abs=1e-5)
    loss.sum().backward()
    assert weight.grad is None
    assert mean.grad is not None
    assert_close(mean.grad, tensor([[-1.0], [0.0]]))
    once = weighted_gaussian_cloning_loss(mean, log_deviation, action, torch.ones(2))
    assert_close(once, gaussian_cloning_loss(mean, log_deviation, action))
