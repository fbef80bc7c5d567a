"""The arithmetic of offline learning and of reward learning: pure functions from tensors to tensors.

Policies. The problem: every loss of a language-conditioned policy is a mean over transitions of which some must not count (their reward
is unknown, or they only pad a batch). Each function gives one number per transition; `masked_mean` is the one place where they become a
loss. Rewards and values are in units of reward; `mask` and `terminal` are boolean. Shapes: N transitions, A actions. Equations (1) to (3)
are those of "Offline Reinforcement Learning with Implicit Q-Learning" (Kostrikov, Nair, Levine, ICLR 2022).

Reward models. The problem: a rater says "bad", "average" or "good" of B pictures or segments, and nobody knows which reward each word
stands for. Rating-based reinforcement learning (White et al., AAAI 2024) orders the predicted returns of a batch, lets each class own the
share of that order that its ratings take up, and asks that each return falls where its rating says:

    raw returns -> normalise_returns -> scores in [0, 1] -> rating_boundaries, rating_probabilities -> rating_loss

ERL-VLM ("Enhancing Rating-Based Reinforcement Learning to Effectively Leverage Feedback from Large Vision-Language Models", Luu et al.,
ICML 2025) replaces cross entropy by the mean absolute error, which survives wrong ratings, and weighs classes by how rare they are.
Ratings are class numbers 0 (worst) .. levels - 1, (B,) int64, or each item's shares of the classes, (B, levels) float with rows that sum
to one, where repeated answers of a rater differ. `rating_loss` and `preference_loss` return the loss itself, because the boundaries
belong to the batch.

Nothing is read or written.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from guerdon.errors import UsageError

BoundaryRule = Literal["midpoint", "lower"]
"""Where one class ends and the next begins: halfway between the two scores there, or at the lower one (as published)."""
WeightRule = Literal["inverse", "reference", "none"]
"""How much the items of a class count: by inverse frequency, by the formula of ERL-VLM's code, or all alike."""
LossKind = Literal["mae", "ce"]
"""Mean absolute error, which bounds what a wrong label can do, or cross entropy."""
SMALLEST_SPREAD = 1e-6
"""Added to the spread of a batch's returns, so that equal returns have a score too."""
CONTRADICTED = 1e-3
"""An item whose class is given a smaller probability than this counts as contradicted."""
_HALF = 0.5 - 1e-6
"""Expected counts are rounded half up; the tolerance keeps rounding errors of their sums from deciding."""


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


def gaussian_cloning_loss(mean: Tensor, log_deviation: Tensor, action: Tensor) -> Tensor:
    """-log N(a | μ(s), σ²) of the recorded continuous actions, whose components are independent:

        Σ_k  ½ ((a_k - μ_k) / σ_k)² + log σ_k + ½ log 2π

    Args:
        mean: (N, A) float.
        log_deviation: (A,) float, log σ.
        action: (N, A) float.

    Returns:
        (N,) float, of either sign: it is a density.
    """
    squares = ((action - mean) * (-log_deviation).exp()).square()
    return (0.5 * squares + log_deviation + 0.5 * math.log(2 * math.pi)).sum(-1)


def weighted_gaussian_cloning_loss(mean: Tensor, log_deviation: Tensor, action: Tensor, weight: Tensor) -> Tensor:
    """-w log N(a | μ(s), σ²), equation (3) for continuous actions.

    Args:
        mean, log_deviation, action: as `gaussian_cloning_loss`.
        weight: (N,) float, from `advantage_weight`; treated as a constant.
    """
    return weight.detach() * gaussian_cloning_loss(mean, log_deviation, action)


# --- ratings ------------------------------------------------------------------------------------------------------------------------


def normalise_returns(raw: Tensor) -> Tensor:
    """Scores (R - min R) / (max R - min R + 1e-6) within the batch; gradients flow through min and max, shared by items that tie.

    Equal returns all get the score 0. Half precision is raised to float32, whose order it would blur.

    Args:
        raw: (B,) float, predicted returns of any size; B >= 1.

    Returns:
        (B,) float in [0, 1].
    """
    raw = _at_least_float32(raw)
    lowest, highest = raw.amin(), raw.amax()
    return (raw - lowest) / (highest - lowest + SMALLEST_SPREAD)


def rating_counts(labels: Tensor, levels: int) -> Tensor:
    """How many items of each class there are, (levels,) float64: expected numbers, sums of shares, where labels are shares.

    Args:
        labels: (B,) int64 in [0, levels), or (B, levels) float.
        levels: number of classes, >= 2.

    Raises:
        UsageError: for a label that is none of the classes, or shares of another number of classes.
    """
    return _shares(labels, levels, torch.float64).sum(0)


@torch.no_grad()
def rating_boundaries(scores: Tensor, labels: Tensor, levels: int, rule: BoundaryRule = "midpoint") -> Tensor:
    """Where classes meet: class i owns the scores from boundary i to boundary i + 1. Carries no gradient.

    With C_i the number of items of the classes 0 .. i and p the scores in ascending order, boundary i + 1 is p[C_i - 1] by the published
    rule ("lower"), by which the best item of a class always ties with the next class, or lies halfway from there to p[C_i] ("midpoint").
    The first boundary is 0 and the last one 1. A class without items has no width: where the published formula would look before the
    first score (C_i = 0) the boundary is 0, and where halfway would look beyond the last one (C_i = B) it is 1. Boundaries never fall,
    because neither p nor C does. For shares, C_i is the expected number rounded half up, which keeps both its order and its total B.

    Args:
        scores: (B,) float in [0, 1], from `normalise_returns`.
        labels: (B,) int64 in [0, levels), or (B, levels) float.
        levels: number of classes, >= 2.
        rule: "midpoint" or "lower".

    Returns:
        (levels + 1,) float in the precision of `scores`.

    Raises:
        UsageError: for a label that is none of the classes, shares of another number of classes, or an unknown rule.
    """
    if rule not in ("midpoint", "lower"):
        raise UsageError(f"no rule for boundaries is called '{rule}'", cure="There are: midpoint, lower")
    size = len(scores)
    below = rating_counts(labels, levels).cumsum(0)[:-1].add(1.0 - _HALF).floor().long().clamp(0, size)
    zero, one = scores.new_zeros(1), scores.new_ones(1)
    ordered = torch.cat([zero, scores.sort().values, one])
    inner = ordered[below]
    if rule == "midpoint":
        halfway = (inner + ordered[below + 1]) / 2
        inner = torch.where(below == 0, zero, torch.where(below == size, one, halfway))
    return torch.cat([zero, inner, one])


def rating_probabilities(scores: Tensor, boundaries: Tensor, sharpness: float = 30.0) -> Tensor:
    """P_i = softmax_i(-k (p - R_i) (p - R_{i+1})): the parabola of a class is above zero inside its interval and below it outside.

    Args:
        scores: (B,) float in [0, 1].
        boundaries: (levels + 1,) float, from `rating_boundaries`.
        sharpness: k > 0. Both papers print the formula without it; their code has 30.

    Returns:
        (B, levels) float; rows sum to one. No probability is below exp(-k) / (levels exp(k / 4)), so none vanishes in float32 for k < 60.
    """
    from_lower, from_upper = scores[:, None] - boundaries[:-1], scores[:, None] - boundaries[1:]
    return (-sharpness * from_lower * from_upper).softmax(-1)


def rating_loss(
    probabilities: Tensor, labels: Tensor, kind: LossKind = "mae", weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """How far the probabilities of the classes are from the ratings: Σ_j w_j l_j / Σ_j w_j; exactly zero if all weights are.

    With the target t (one at the label, or the shares), l is Σ_i |t_i - P_i| for "mae", which is 2 (1 - P_y) and at most 2, or
    -Σ_i t_i log P_i for "ce". For a confidently contradicted label the gradient of "mae" vanishes with P_y while that of "ce" does not:
    the first ignores labels that everything else speaks against, be they wrong or hard (see `contradicted_share`).

    Args:
        probabilities: (B, levels) float, from `rating_probabilities`. Logarithms are taken of the smallest normal number at least, which
            only a sharpness above 60 (float32) can reach; there the gradient is zero.
        labels: (B,) int64 in [0, levels), or (B, levels) float.
        kind: "mae" or "ce".
        weights: (B,) float, >= 0; all alike if None.
        smoothing: r in [0, 1]: targets become (1 - r) t + r / levels.

    Returns:
        Scalar, >= 0.

    Raises:
        UsageError: for a label that is none of the classes, shares of another number of classes, an unknown kind, or a smoothing outside
            [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise UsageError(f"smoothing lies in [0, 1], got {smoothing}")
    levels = probabilities.shape[-1]
    target = (1 - smoothing) * _shares(labels, levels, probabilities.dtype) + smoothing / levels
    if kind == "mae":
        losses = (target - probabilities).abs().sum(-1)
    elif kind == "ce":
        losses = -(target * _log(probabilities)).sum(-1)
    else:
        raise _unknown_loss(kind)
    return _weighted_mean(losses, weights)


def rating_weights(labels: Tensor | None, levels: int, rule: WeightRule = "inverse", *, counts: Tensor | None = None) -> Tensor:
    """How much an item of each class counts, from the labels of the whole data set, or from `counts` of them.

    "inverse" is the largest count over the class's: all classes then have the same weight in sum, and the most frequent one has 1 an
    item. A class without items gets 0 and changes nothing for the others; one of which less than one item is expected (shares) counts as
    having one. "reference" is the formula of ERL-VLM's code, (N - N_c) / N over the smallest of them, which is inverse frequency for two
    classes only, and all ones if a class is empty. "none" is all ones.

    Args:
        labels: (B,) int64 in [0, levels), or (B, levels) float; None if `counts` are given.
        levels: number of classes, >= 2.
        rule: "inverse", "reference" or "none".
        counts: (levels,), >= 0: how many items of each class there are, from `rating_counts`.

    Returns:
        (levels,) float32. `item_weights` turns them into weights of items.

    Raises:
        UsageError: for a label that is none of the classes, shares or counts of another number of classes, an unknown rule, or unless
            exactly one of `labels` and `counts` is given.
    """
    if labels is not None and counts is None:
        counts = rating_counts(labels, levels)
    elif counts is None or labels is not None:
        raise UsageError("weights come from labels or from counts of them, one of the two", cure="For counts: (None, levels, counts=...)")
    if counts.shape != (levels,):
        raise UsageError(f"there are {levels} classes, but counts have the shape {tuple(counts.shape)}")
    counts = counts.double()
    if rule == "inverse":
        weights = (counts.amax() / counts.clamp(min=1.0)).masked_fill(counts == 0, 0.0)
    elif rule == "reference":
        others = counts.sum() - counts
        weights = others / others.amin() if bool((counts > 0).all()) else torch.ones_like(counts)
    elif rule == "none":
        weights = torch.ones_like(counts)
    else:
        raise UsageError(f"no rule for weights is called '{rule}'", cure="There are: inverse, reference, none")
    return weights.float()


def item_weights(labels: Tensor, class_weights: Tensor) -> Tensor:
    """The weight of each item, (B,) float32: that of its class, or the mean over its shares.

    Args:
        labels: (B,) int64 in [0, levels), or (B, levels) float.
        class_weights: (levels,) float, from `rating_weights`.
    """
    return _shares(labels, len(class_weights), torch.float32) @ class_weights.float()


def contradicted_share(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Share of the items whose own class is given a probability below 0.001 (of shares: the mean over them); carries no gradient.

    The mean absolute error learns nothing from these. A share that stays is the rater's errors, or hard cases; worth logging.

    Args:
        probabilities: (B, levels) float.
        labels: (B,) int64 in [0, levels), or (B, levels) float.

    Returns:
        Scalar in [0, 1].
    """
    probabilities = probabilities.detach()
    own = (probabilities * _shares(labels, probabilities.shape[-1], probabilities.dtype)).sum(-1)
    return (own < CONTRADICTED).to(probabilities.dtype).mean()


# --- preferences and scores ---------------------------------------------------------------------------------------------------------


def preference_loss(
    first: Tensor, second: Tensor, target: Tensor, kind: LossKind = "ce", noise: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Bradley-Terry: the second of two is preferred with probability P = ε / 2 + (1 - ε) σ(R₂ - R₁) (Christiano et al., NeurIPS 2017).

    With the target t, the loss of a pair is -t log P - (1 - t) log(1 - P) for "ce", or for "mae" the sum over both answers, 2 |t - P|, as
    in `rating_loss`. Returns: Σ_j w_j l_j / Σ_j w_j.

    Args:
        first: R₁, (B,) float: returns of the first ones, not normalised.
        second: R₂, (B,) float.
        target: (B,) float in [0, 1]: probability that the second one is better; 0.5 says that neither is.
        kind: "ce" or "mae".
        noise: ε in [0, 1): share of answers given at random, as in the library "imitation".
        weights: (B,) float, >= 0; all alike if None.

    Returns:
        Scalar, >= 0; exactly zero if all weights are.

    Raises:
        UsageError: for an unknown kind or a noise outside [0, 1).
    """
    if not 0 <= noise < 1:
        raise UsageError(f"noise lies in [0, 1), got {noise}")
    advantage = _at_least_float32(second) - _at_least_float32(first)
    target = target.to(advantage.dtype)
    if kind == "mae":
        losses = 2 * (target - (noise / 2 + (1 - noise) * advantage.sigmoid())).abs()
    elif kind == "ce" and noise == 0:
        losses = F.binary_cross_entropy_with_logits(advantage, target, reduction="none")
    elif kind == "ce":
        preferred, other = (noise / 2 + (1 - noise) * side.sigmoid() for side in (advantage, -advantage))
        losses = -(target * preferred.log() + (1 - target) * other.log())
    else:
        raise _unknown_loss(kind)
    return _weighted_mean(losses, weights)


def score_loss(predicted: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of scores: Σ_j w_j (p_j - t_j)² / Σ_j w_j.

    Args:
        predicted: (B,) float in [0, 1].
        target: (B,) float in [0, 1].
        weights: (B,) float, >= 0; all alike if None.

    Returns:
        Scalar, >= 0; exactly zero if all weights are.
    """
    return _weighted_mean((predicted - target).square(), weights)


def _at_least_float32(values: Tensor) -> Tensor:
    """Half precision blurs the order of returns."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _shares(labels: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """(B, levels): labels as shares of the classes."""
    if labels.ndim == 2:
        if labels.shape[1] != levels:
            raise UsageError(f"there are {levels} classes, but the labels hold shares of {labels.shape[1]}")
        return labels.to(dtype)
    if labels.ndim != 1 or labels.is_floating_point():
        raise UsageError(f"labels are (B,) whole numbers or (B, {levels}) shares, got {labels.dtype} of shape {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.amin()) <= int(labels.amax()) < levels:
        raise UsageError(f"labels are class numbers 0 to {levels - 1}, got {int(labels.amin())} to {int(labels.amax())}")
    return F.one_hot(labels.long(), levels).to(dtype)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return losses.mean()
    total = weights.sum()
    return (weights * losses).sum() / total.masked_fill(total == 0, 1.0)


def _unknown_loss(kind: str) -> UsageError:
    return UsageError(f"no loss is called '{kind}'", cure="There are: mae, ce")
