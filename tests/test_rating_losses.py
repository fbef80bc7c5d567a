"""The losses of reward models against numbers worked out by hand, and what must hold for every batch."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, tensor
from torch.testing import assert_close

from guerdon.errors import UsageError
from guerdon.losses import (
    BoundaryRule,
    LossKind,
    contradicted_share,
    item_weights,
    normalise_returns,
    preference_loss,
    rating_boundaries,
    rating_counts,
    rating_loss,
    rating_probabilities,
    rating_weights,
    score_loss,
)

RULES, KINDS = get_args(BoundaryRule), get_args(LossKind)
FIVE = (-0.8, -0.4, 0.0, 0.4, 0.8)


def doubles(values: Any, **options: Any) -> Tensor:
    return tensor(values, dtype=torch.float64, **options)


def near(actual: Tensor, expected: Any, *, tolerance: float = 1e-5) -> None:
    assert_close(actual, doubles(expected), rtol=0, atol=tolerance)


def likelihood(raw: Tensor, labels: Tensor, levels: int, rule: BoundaryRule = "lower") -> Tensor:
    scores = normalise_returns(raw)
    return rating_probabilities(scores, rating_boundaries(scores, labels, levels, rule))


# --- the formulas, in numbers -------------------------------------------------------------------------------------------------------


def test_scores_span_zero_to_one() -> None:
    near(normalise_returns(doubles(FIVE)), [0, 0.25, 0.5, 0.75, 1])
    assert float(normalise_returns(doubles(FIVE))[-1]) == 1.6 / (1.6 + 1e-6)


def test_gradients_of_scores_flow_through_the_lowest_and_the_highest() -> None:
    raw = doubles((1.0, 2.0, 5.0), requires_grad=True)
    normalise_returns(raw)[1].backward()
    # p = (R1 - R0) / (R2 - R0): dp/dR0 = (p - 1) / 4, dp/dR1 = 1 / 4, dp/dR2 = -p / 4, with p = 1 / 4
    near(raw.grad, [-0.1875, 0.25, -0.0625])


def test_two_classes_in_order() -> None:
    labels = tensor([0, 0, 1, 1, 1])
    scores = normalise_returns(doubles(FIVE))
    near(rating_boundaries(scores, labels, 2, "lower"), [0, 0.25, 1])
    near(rating_boundaries(scores, labels, 2), [0, 0.375, 1])
    lower, midpoint = (likelihood(doubles(FIVE), labels, 2, rule) for rule in ("lower", "midpoint"))
    near(lower[:, 0], [0.999447, 0.5, 0.000553, 0, 0])
    near(midpoint[:, 0], [0.999987, 0.977023, 0.022977, 0.000013, 0])
    near(rating_loss(lower, labels, "ce"), 0.138851)
    near(rating_loss(lower, labels), 0.200442)
    near(rating_loss(lower, labels, weights=doubles((1.5, 1.5, 1, 1, 1))), 0.250461)
    near(rating_loss(midpoint, labels, "ce"), 0.009303)
    near(rating_loss(midpoint, labels), 0.018392)


def test_the_gradient_of_two_classes_in_order() -> None:
    raw = doubles(FIVE, requires_grad=True)
    labels = tensor([0, 0, 1, 1, 1])
    rating_loss(likelihood(raw, labels, 2), labels).backward()
    near(raw.grad, [-1.404177, 1.874999, -0.004144, -0.000002, -0.466676])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_fixed_boundaries(rule: BoundaryRule, kind: LossKind) -> None:
    """Against central differences of the published formula, written out anew in NumPy, with the boundaries held still."""
    raw, labels = np.array(FIVE), np.array([0, 1, 0, 1, 1])
    scores = normalise_returns(doubles(raw))
    borders = rating_boundaries(scores, tensor(labels), 2, rule).numpy()

    def loss(returns: Any) -> float:
        p = (returns - returns.min()) / (returns.max() - returns.min() + 1e-6)
        q = np.exp(np.stack([-30 * (p - borders[i]) * (p - borders[i + 1]) for i in range(2)], 1))
        share = (q / q.sum(1, keepdims=True))[np.arange(5), labels]
        return float(2 * (1 - share).mean() if kind == "mae" else -np.log(share).mean())

    steps = 1e-6 * np.eye(5)
    expected = [(loss(raw + step) - loss(raw - step)) / 2e-6 for step in steps]
    given_raw = doubles(raw, requires_grad=True)
    rating_loss(likelihood(given_raw, tensor(labels), 2, rule), tensor(labels), kind).backward()
    near(given_raw.grad, expected)


def test_three_classes() -> None:
    raw, labels = doubles((0.1, 0.2, 0.5, 0.7, 0.9, 0.3)), tensor([0, 0, 1, 2, 2, 1])
    scores = normalise_returns(raw)
    near(rating_boundaries(scores, labels, 3, "lower"), [0, 0.125, 0.499999, 1])
    near(rating_boundaries(scores, labels, 3), [0, 0.1875, 0.624999, 1])
    lower = likelihood(raw, labels, 3)
    rows = [
        (0.867035, 0.132965, 0), (0.499987, 0.499987, 0.000027), (0.0018, 0.4991, 0.4991),
        (0, 0.00141, 0.99859), (0, 0.000002, 0.999998), (0.132802, 0.865975, 0.001223),
    ]  # fmt: skip
    near(lower, rows)
    near(rating_loss(lower, labels, "ce"), 0.279352)
    near(rating_loss(lower, labels), 0.423105)
    midpoint = likelihood(raw, labels, 3, "midpoint")
    near(rating_loss(midpoint, labels, "ce"), 0.110794)
    near(rating_loss(midpoint, labels), 0.198458)


def test_ratings_in_the_wrong_order() -> None:
    labels = tensor([1, 0, 1, 0, 1])
    probabilities = likelihood(doubles(FIVE), labels, 2)
    near(rating_loss(probabilities, labels, "ce"), 4.638848)
    near(rating_loss(probabilities, labels), 1.0)
    assert int((probabilities.argmax(1) == labels).sum()) == 3


@pytest.mark.parametrize("rule", RULES)
def test_the_highest_class_only(rule: BoundaryRule) -> None:
    labels = torch.ones(5, dtype=torch.int64)
    near(rating_boundaries(normalise_returns(doubles(FIVE)), labels, 2, rule), [0, 0, 1])
    probabilities = likelihood(doubles(FIVE), labels, 2, rule)
    near(rating_loss(probabilities, labels, "ce"), 0.138740)
    near(rating_loss(probabilities, labels), 0.200221)
    near(probabilities[0], [0.5, 0.5])
    assert int((probabilities.argmax(1) == labels).sum()) == 4


@pytest.mark.parametrize("rule", RULES)
def test_the_lowest_class_only(rule: BoundaryRule) -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    near(rating_boundaries(normalise_returns(doubles(FIVE)), labels, 2, rule), [0, 1, 1])
    probabilities = likelihood(doubles(FIVE), labels, 2, rule)
    near(rating_loss(probabilities, labels, "ce"), 0.138740)
    near(rating_loss(probabilities, labels), 0.200221)


def test_a_lowest_class_without_items() -> None:
    raw, labels = doubles((0.1, 0.2, 0.5, 0.7, 0.9)), tensor([1, 1, 1, 2, 2])
    scores = normalise_returns(raw)
    near(rating_boundaries(scores, labels, 3, "lower"), [0, 0, 0.499999, 1])
    near(rating_boundaries(scores, labels, 3), [0, 0, 0.624999, 1])
    lower, midpoint = likelihood(raw, labels, 3), likelihood(raw, labels, 3, "midpoint")
    near(rating_loss(lower, labels, "ce"), 0.305962)
    near(rating_loss(lower, labels), 0.453466)
    near(rating_loss(midpoint, labels, "ce"), 0.166274)
    near(rating_loss(midpoint, labels), 0.253445)
    assert int((lower.argmax(1) == labels).sum()) == 4


def published_boundaries(scores: Any, labels: Any, levels: int) -> list[float]:
    """As the published code computes them, with Python's index -1 for a class without items."""
    ends, ordered = np.bincount(labels, minlength=levels).cumsum(), np.sort(scores)
    return [0.0, *(float(ordered[end - 1]) for end in ends[:-1]), 1.0]


@pytest.mark.parametrize(
    ("raw", "labels", "levels", "boundaries", "cross_entropy", "right"),
    [
        (FIVE, (1, 1, 1, 1, 1), 2, (0, 0.999999, 1), 15.138731, 0),
        ((0.1, 0.2, 0.5, 0.7, 0.9), (1, 1, 1, 2, 2), 3, (0, 0.999999, 0.499999, 1), 8.104113, 1),
    ],
)
def test_what_the_published_code_makes_of_a_missing_lowest_class(
    raw: Any, labels: Any, levels: int, boundaries: Any, cross_entropy: float, right: int
) -> None:
    """Why the boundaries are guarded: with index -1 the class that is not there owns nearly everything."""
    scores, label = normalise_returns(doubles(raw)), tensor(labels)
    published = doubles(published_boundaries(scores.numpy(), labels, levels))
    near(published, boundaries, tolerance=2e-6)
    probabilities = rating_probabilities(scores, published)
    near(rating_loss(probabilities, label, "ce"), cross_entropy)
    assert int((probabilities.argmax(1) == label).sum()) == right
    guarded = likelihood(doubles(raw), label, levels)
    assert int((guarded.argmax(1) == label).sum()) == 4


@given(st.data())
def test_the_lower_rule_is_the_published_one_wherever_that_is_defined(data: st.DataObject) -> None:
    levels = data.draw(st.integers(2, 6))
    raw, labels = data.draw(batches(levels, float))
    labels[0] = 0
    scores = normalise_returns(tensor(raw))
    assert rating_boundaries(scores, tensor(labels), levels, "lower").tolist() == published_boundaries(scores.numpy(), labels, levels)


@pytest.mark.parametrize("rule", RULES)
def test_a_missing_lowest_class_has_no_width_wherever_scores_begin(rule: BoundaryRule) -> None:
    near(rating_boundaries(doubles((0.2, 0.6)), tensor([1, 1]), 2, rule), [0, 0, 1])


def test_a_middle_class_without_items_has_no_width() -> None:
    scores = doubles((0.0, 0.2, 0.6, 1.0))
    near(rating_boundaries(scores, tensor([0, 0, 2, 2]), 3), [0, 0.4, 0.4, 1])
    near(rating_boundaries(scores, tensor([0, 0, 2, 2]), 3, "lower"), [0, 0.2, 0.2, 1])


@pytest.mark.parametrize("rule", RULES)
def test_equal_returns_say_nothing(rule: BoundaryRule) -> None:
    labels = tensor([0, 0, 1, 1])
    probabilities = likelihood(doubles((7.0,) * 4), labels, 2, rule)
    near(probabilities, np.full((4, 2), 0.5))
    near(rating_loss(probabilities, labels, "ce"), math.log(2), tolerance=1e-12)


def test_on_a_boundary_two_classes_tie_and_elsewhere_the_owner_leads() -> None:
    boundaries = doubles((0.0, 0.3, 0.8, 1.0))
    near(rating_probabilities(doubles((0.3,)), boundaries)[0, :2].diff(), [0.0], tolerance=1e-12)
    owners = rating_probabilities(doubles((0.1, 0.299, 0.301, 0.55, 0.799, 0.801, 0.95)), boundaries).argmax(1)
    assert owners.tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_sharpness_makes_sure() -> None:
    boundaries = doubles((0.0, 0.5, 1.0))
    # at p = 0.25 the logits are k/16 and -3k/16, so the odds are exp(k / 4)
    for sharpness in (4.0, 30.0):
        near(rating_probabilities(doubles((0.25,)), boundaries, sharpness)[0, 0], 1 / (1 + math.exp(-sharpness / 4)))


def test_the_absolute_error_ignores_confident_contradictions_and_cross_entropy_does_not() -> None:
    logits = doubles(((0.0, math.log(5.5e-4 / (1 - 5.5e-4))),), requires_grad=True)
    for kind, slope in (("mae", 1.1e-3), ("ce", 0.99945)):
        (gradient,) = torch.autograd.grad(rating_loss(logits.softmax(-1), tensor([1]), kind), logits)
        near(gradient[0, 1].abs(), slope, tolerance=1e-6)


def test_smoothing_moves_targets_towards_all_classes() -> None:
    probabilities = doubles(((0.7, 0.2, 0.1),))
    # targets of r = 0.3: 0.8, 0.1, 0.1
    near(rating_loss(probabilities, tensor([0]), "mae", smoothing=0.3), 0.1 + 0.1 + 0.0)
    near(rating_loss(probabilities, tensor([0]), "ce", smoothing=0.3), -(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1)))


def test_shares_are_targets() -> None:
    probabilities, shares = doubles(((0.7, 0.2, 0.1), (0.2, 0.2, 0.6))), doubles(((0.5, 0.5, 0.0), (0.0, 0.0, 1.0)))
    near(rating_loss(probabilities, shares), ((0.2 + 0.3 + 0.1) + (0.2 + 0.2 + 0.4)) / 2)
    near(rating_loss(probabilities, shares, "ce"), -(0.5 * math.log(0.7 * 0.2) + math.log(0.6)) / 2)


def test_cross_entropy_of_an_impossible_class_is_large_and_finite() -> None:
    probabilities = tensor([[1.0, 0.0]], requires_grad=True)
    loss = rating_loss(probabilities, tensor([1]), "ce")
    assert_close(loss, tensor(-math.log(torch.finfo(torch.float32).tiny)))
    loss.backward()
    assert probabilities.grad.isfinite().all()


@pytest.mark.parametrize("sharpness", [30.0, 60.0])
def test_in_single_precision_no_probability_vanishes(sharpness: float) -> None:
    boundaries = tensor([0.0, 0.0, 1.0, 1.0])
    probabilities = rating_probabilities(tensor([0.0, 0.5, 1.0]), boundaries, sharpness)
    assert float(probabilities.min()) >= math.exp(-1.25 * sharpness) / 3
    # logits (0, 0, -k), (-k/4, k/4, -k/4), (-k, 0, 0)
    k = sharpness
    losses = [k + math.log(2 + math.exp(-k)), k / 2 + math.log(1 + 2 * math.exp(-k / 2)), k + math.log(2 + math.exp(-k))]
    assert_close(rating_loss(probabilities, tensor([2, 0, 0]), "ce"), tensor(sum(losses) / 3))


# --- counts and weights -------------------------------------------------------------------------------------------------------------


def test_class_weights() -> None:
    two, three = tensor([900, 100]), tensor([800, 150, 50])
    for rule in ("inverse", "reference"):
        assert_close(rating_weights(None, 2, rule, counts=two), tensor([1.0, 9.0]))
    assert_close(rating_weights(None, 3, counts=three), tensor([1, 16 / 3, 16]))
    assert_close(rating_weights(None, 3, "reference", counts=three), tensor([1, 4.25, 4.75]))
    assert_close(rating_weights(None, 3, "none", counts=three), torch.ones(3))
    labels = torch.repeat_interleave(torch.arange(3), three)
    assert_close(rating_weights(labels, 3), tensor([1, 16 / 3, 16]))


def test_class_weights_with_a_class_that_is_missing() -> None:
    counts = tensor([800, 0, 50])
    assert_close(rating_weights(None, 3, counts=counts), tensor([1.0, 0.0, 16.0]))
    assert_close(rating_weights(None, 3, "reference", counts=counts), torch.ones(3))
    assert_close(rating_weights(None, 2, counts=tensor([0, 0])), torch.zeros(2))


def test_inverse_weights_give_every_class_the_same_sum() -> None:
    labels = tensor([0, 0, 0, 0, 2, 2, 3])
    weights = item_weights(labels, rating_weights(labels, 4))
    assert_close(weights, tensor([1.0, 1, 1, 1, 2, 2, 4]))


def test_shares_count_and_weigh_by_their_parts() -> None:
    shares = tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.25, 0.0, 0.75], [0.25, 0.5, 0.25]])
    near(rating_counts(shares, 3), [2, 1, 1])
    assert_close(rating_weights(shares, 3), tensor([1.0, 2.0, 2.0]))
    assert_close(item_weights(shares, tensor([1.0, 2.0, 2.0])), tensor([1.5, 1.0, 1.75, 1.75]))


def test_a_class_of_which_less_than_one_item_is_expected_counts_as_one() -> None:
    shares = doubles([(1.0, 0.0)] * 9 + [(0.99, 0.01)])
    near(rating_weights(shares, 2).double(), [1.0, 9.99])


def test_expected_counts_of_boundaries_are_rounded_half_up() -> None:
    scores = doubles((0.0, 0.2, 0.6, 1.0))
    for share, boundary in ((0.30, 0.1), (0.375, 0.4), (0.40, 0.4), (0.62, 0.4), (0.63, 0.8), (0.1, 0.0), (0.99, 1.0)):
        shares = doubles([(share, 1 - share)] * 4)
        near(rating_boundaries(scores, shares, 2), [0, boundary, 1])


def test_rounding_errors_do_not_decide_expected_counts() -> None:
    """A tenth fifteen times over is 1.5 - 4e-16 or 1.5 + 2e-16, according to the order of addition."""
    shares = torch.full((15, 2), 0.1, dtype=torch.float64)
    shares[:, 1] = 0.9
    scores = torch.linspace(0, 1, 15, dtype=torch.float64)
    assert float(shares[:, 0].cumsum(0)[-1]) != 1.5
    near(rating_boundaries(scores, shares, 2), [0, 1.5 / 14, 1])


def test_contradicted_share() -> None:
    probabilities = tensor([[0.9995, 0.0005], [0.0005, 0.9995], [0.5, 0.5], [0.9, 0.1]])
    assert_close(contradicted_share(probabilities, tensor([1, 1, 1, 1])), tensor(0.25))
    assert_close(contradicted_share(probabilities, tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])), tensor(0.5))


def test_weights_of_zero_are_no_loss_and_no_gradient() -> None:
    probabilities = tensor([[0.4, 0.6]], requires_grad=True)
    loss = rating_loss(probabilities, tensor([0]), weights=tensor([0.0]))
    loss.backward()
    assert loss.item() == 0
    assert_close(probabilities.grad, torch.zeros(1, 2))


# --- preferences and scores ---------------------------------------------------------------------------------------------------------


def test_preferences_by_bradley_and_terry() -> None:
    first, second = doubles((1.2,)), doubles((0.7,))
    near(preference_loss(first, second, doubles((0.0,))), 0.474077)
    near(preference_loss(first, second, doubles((0.0,)), noise=0.1), -math.log(0.610213))
    near(preference_loss(first, second, doubles((0.0,)), "mae"), 2 * (1 - 0.622459))
    near(preference_loss(first, second, doubles((0.0,)), "mae", noise=0.1), 2 * (1 - 0.610213))
    near(preference_loss(second, first, doubles((1.0,))), 0.474077)


def test_no_preference_pulls_returns_together() -> None:
    first, second = doubles((1.2,), requires_grad=True), doubles((0.7,))
    loss = preference_loss(first, second, doubles((0.5,)))
    near(loss, -(math.log(0.622459) + math.log(1 - 0.622459)) / 2)
    loss.backward()
    near(first.grad, [0.622459 - 0.5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_far_apart_returns_have_finite_losses_and_gradients(kind: LossKind, noise: float) -> None:
    first = tensor([1e4, -1e4, 3e4], requires_grad=True)
    loss = preference_loss(first, tensor([0.0, 0.0, 0.0]), tensor([1.0, 1.0, 0.5]), kind, noise)
    loss.backward()
    assert loss.isfinite()
    assert first.grad.isfinite().all()


def test_cross_entropy_of_a_plain_contradiction_is_the_difference_of_returns() -> None:
    assert_close(preference_loss(tensor([1000.0]), tensor([0.0]), tensor([1.0])), tensor(1000.0))


def test_weights_of_pairs() -> None:
    zero, target = doubles((0.0, 1.2)), doubles((0.0, 0.0))
    loss = preference_loss(zero, doubles((0.0, 0.7)), target, weights=doubles((3.0, 1.0)))
    near(loss, (3 * math.log(2) + 0.474077) / 4)


def test_score_loss() -> None:
    predicted, target = doubles((0.2, 0.9)), doubles((0.5, 1.0))
    near(score_loss(predicted, target), (0.09 + 0.01) / 2)
    near(score_loss(predicted, target, doubles((1.0, 3.0))), (0.09 + 0.03) / 4)


# --- what must hold for every batch -------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn, levels: int, kind: type = float) -> tuple[Any, Any]:
    """Returns and labels of a batch: ties, one item, one class and missing classes are all likely."""
    size = draw(st.integers(1, 12))
    numbers = (st.floats(-size, size, width=32) for size in (1.0, 2.0**20, 2.0**100))
    values = st.one_of(st.sampled_from([-1.0, 0.0, 0.5]), *numbers)
    raw = draw(arrays.arrays(np.float64, size, elements=values))
    labels = draw(arrays.arrays(np.int64, size, elements=st.integers(0, levels - 1)))
    return raw.astype(kind), labels


@given(st.data(), st.sampled_from(RULES), st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.float64]))
def test_every_batch_has_finite_losses_and_gradients(
    data: st.DataObject, rule: BoundaryRule, kind: LossKind, precision: torch.dtype
) -> None:
    levels = data.draw(st.integers(2, 6))
    values, classes = data.draw(batches(levels))
    raw, labels = tensor(values, dtype=precision, requires_grad=True), tensor(classes)
    scores = normalise_returns(raw)
    assert 0 <= float(scores.detach().amin()) <= float(scores.detach().amax()) <= 1
    boundaries = rating_boundaries(scores, labels, levels, rule)
    assert boundaries.shape == (levels + 1,)
    assert not boundaries.requires_grad
    assert (boundaries[0], boundaries[-1]) == (0, 1)
    assert (boundaries.diff() >= 0).all()
    probabilities = rating_probabilities(scores, boundaries)
    assert_close(probabilities.sum(1), torch.ones(len(labels), dtype=precision))
    loss = rating_loss(probabilities, labels, kind, item_weights(labels, rating_weights(labels, levels)).to(precision))
    loss.backward()
    assert loss >= 0
    assert loss.isfinite()
    assert raw.grad.isfinite().all()


@given(st.data(), st.sampled_from(RULES))
def test_a_class_without_items_has_no_width(data: st.DataObject, rule: BoundaryRule) -> None:
    levels = data.draw(st.integers(2, 6))
    values, classes = data.draw(batches(levels))
    boundaries = rating_boundaries(normalise_returns(tensor(values)), tensor(classes), levels, rule)
    missing = np.bincount(classes, minlength=levels) == 0
    if rule == "lower":
        missing[classes.max() :] = False  # its top boundary is the best score, which the small addend keeps just below 1
    assert (boundaries.diff().numpy()[missing] == 0).all()


@given(st.data(), st.sampled_from(RULES), st.sampled_from(KINDS))
def test_the_order_of_a_batch_does_not_matter(data: st.DataObject, rule: BoundaryRule, kind: LossKind) -> None:
    levels = data.draw(st.integers(2, 5))
    values, classes = data.draw(batches(levels))
    order = data.draw(st.permutations(range(len(classes))))
    losses, gradients = [], []
    for rows in (list(range(len(classes))), order):
        raw, labels = tensor(values[rows], requires_grad=True), tensor(classes[rows])
        loss = rating_loss(likelihood(raw, labels, levels, rule), labels, kind)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(raw.grad[np.argsort(rows)])
    assert_close(*losses)
    assert_close(*gradients)


@given(st.data(), st.sampled_from(RULES), st.sampled_from(KINDS))
def test_single_precision_agrees_with_double(data: st.DataObject, rule: BoundaryRule, kind: LossKind) -> None:
    levels = data.draw(st.integers(2, 5))
    values, classes = data.draw(batches(levels, np.float32))
    single, double = (
        rating_loss(likelihood(raw, tensor(classes), levels, rule), tensor(classes), kind) for raw in (tensor(values), doubles(values))
    )
    assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@given(st.data())
def test_scores_do_not_depend_on_scale_and_origin(data: st.DataObject) -> None:
    raw, _ = data.draw(batches(3))
    moved = normalise_returns(tensor(1e3 * raw + 5e4))
    if np.ptp(raw) > 1:
        assert_close(moved, normalise_returns(tensor(raw)), rtol=0, atol=2e-6)


@given(st.data(), st.sampled_from(RULES))
def test_shares_of_one_class_are_that_class(data: st.DataObject, rule: BoundaryRule) -> None:
    levels = data.draw(st.integers(2, 5))
    values, classes = data.draw(batches(levels))
    raw, labels = tensor(values), tensor(classes)
    shares = torch.nn.functional.one_hot(labels, levels).double()
    scores = normalise_returns(raw)
    assert_close(rating_boundaries(scores, shares, levels, rule), rating_boundaries(scores, labels, levels, rule), rtol=0, atol=0)
    probabilities = likelihood(raw, labels, levels, rule)
    for kind in KINDS:
        assert_close(rating_loss(probabilities, shares, kind), rating_loss(probabilities, labels, kind))
    assert_close(item_weights(shares, rating_weights(shares, levels)), item_weights(labels, rating_weights(labels, levels)))


@given(st.data(), st.sampled_from(RULES))
def test_any_shares_have_boundaries_in_order(data: st.DataObject, rule: BoundaryRule) -> None:
    levels = data.draw(st.integers(2, 5))
    values, _ = data.draw(batches(levels))
    parts = data.draw(arrays.arrays(np.float64, (len(values), levels), elements=st.floats(0.01, 1)))
    boundaries = rating_boundaries(normalise_returns(tensor(values)), tensor(parts / parts.sum(1, keepdims=True)), levels, rule)
    assert (boundaries.diff() >= 0).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised(half: torch.dtype) -> None:
    assert normalise_returns(tensor([0.0, 1.0], dtype=half)).dtype == torch.float32
    assert preference_loss(tensor([0.0], dtype=half), tensor([1.0], dtype=half), tensor([1.0])).dtype == torch.float32


def test_gradients_of_ties_are_shared() -> None:
    raw = doubles((0.0, 0.0, 1.0), requires_grad=True)
    normalise_returns(raw)[2].backward()
    assert_close(raw.grad[0], raw.grad[1])


# --- refusals -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: rating_loss(torch.ones(1, 2) / 2, tensor([2])), "0 to 1, got 2 to 2"),
        (lambda: rating_counts(tensor([-1, 0]), 2), "0 to 1, got -1 to 0"),
        (lambda: rating_counts(torch.ones(3, 3), 2), "2 classes, but the labels hold shares of 3"),
        (lambda: rating_counts(tensor([0.0, 1.0]), 2), "whole numbers"),
        (lambda: rating_loss(torch.ones(1, 2) / 2, tensor([0]), "mse"), "no loss is called 'mse'"),
        (lambda: rating_loss(torch.ones(1, 2) / 2, tensor([0]), smoothing=1.5), "smoothing lies in"),
        (lambda: rating_boundaries(tensor([0.0]), tensor([0]), 2, "upper"), "no rule for boundaries is called 'upper'"),
        (lambda: rating_weights(tensor([0]), 2, "square"), "no rule for weights is called 'square'"),
        (lambda: rating_weights(tensor([0]), 2, counts=tensor([1, 0])), "one of the two"),
        (lambda: rating_weights(None, 2), "one of the two"),
        (lambda: rating_weights(None, 2, counts=tensor([1, 0, 4])), r"2 classes, but counts have the shape \(3,\)"),
        (lambda: preference_loss(tensor([0.0]), tensor([0.0]), tensor([0.0]), "mse"), "no loss is called 'mse'"),
        (lambda: preference_loss(tensor([0.0]), tensor([0.0]), tensor([0.0]), noise=1.0), "noise lies in"),
    ],
)
def test_what_cannot_be_computed_is_said(call: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()
