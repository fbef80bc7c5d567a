"""The arithmetic of offline learning: pure functions from tensors to tensors.

The problem: every loss of a language-conditioned policy is a mean over transitions of which some must not count (their reward is unknown,
or they only pad a batch). Each function here gives one number per transition; `masked_mean` is the one place where they become a loss.

Nothing is read or written. Rewards and values are in units of reward; `mask` and `terminal` are boolean. Shapes: N transitions, A
actions. Equations (1) to (3) are those of "Offline Reinforcement Learning with Implicit Q-Learning" (Kostrikov, Nair, Levine, ICLR 2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true; exactly zero, with zero gradients, if it is true nowhere.

    Positions outside the mask never matter, not even if they hold NaN.

    Args:
        values: any shape, float.
        mask: the same shape, bool.
    """
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Asymmetric squares |τ - 1(u < 0)| u² of u = `error`, equation (1): with τ > 0.5 falling short costs more than overshooting.

    Args:
        error: target minus prediction, any shape.
        expectile: τ in (0, 1).
    """
    weight = torch.where(error < 0, 1.0 - expectile, expectile)
    return weight * error.square()


def temporal_difference_target(reward: Tensor, next_value: Tensor, terminal: Tensor, discount: float) -> Tensor:
    """r + γ (1 - d) V(s'), the regression target of equation (2); carries no gradient.

    Args:
        reward: (N,) float.
        next_value: (N,) value of the next state; ignored, whatever it holds, where `terminal`.
        terminal: (N,) bool, true only where the task truly ended.
        discount: γ in [0, 1].
    """
    return (reward + discount * next_value.masked_fill(terminal, 0.0)).detach()


def advantage_weight(advantage: Tensor, inverse_temperature: float, ceiling: float) -> Tensor:
    """min(exp(β A), ceiling), the weight of an action in equation (3); carries no gradient.

    Args:
        advantage: A = Q(s, a) - V(s), any shape.
        inverse_temperature: β >= 0; 0 gives behaviour cloning.
        ceiling: largest weight, > 0.
    """
    return (inverse_temperature * advantage.detach()).exp().clamp(max=ceiling)


def cloning_loss(logits: Tensor, action: Tensor) -> Tensor:
    """-log π(a | s) of the recorded actions.

    Args:
        logits: (N, A) float.
        action: (N,) int64 in [0, A).

    Returns:
        (N,) float, >= 0.
    """
    return F.cross_entropy(logits, action, reduction="none")


def weighted_cloning_loss(logits: Tensor, action: Tensor, weight: Tensor) -> Tensor:
    """-w log π(a | s), equation (3): advantage-weighted regression, which clones good actions more than bad ones.

    Args:
        logits: (N, A) float.
        action: (N,) int64 in [0, A).
        weight: (N,) float, from `advantage_weight`; treated as a constant.
    """
    return weight.detach() * cloning_loss(logits, action)
