"""Batches of ratings: what each rule promises, and the reference's generator in numbers."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import UsageError
from guerdon.rewards.samplers import Batches, Rule, balanced, has_contrast, likeliest, stratified_reference, uniform

RULES = get_args(Rule)


def labels_of(counts: tuple[int, ...]) -> Any:
    return np.repeat(np.arange(len(counts)), counts)


def classes_per_batch(labels: Any, batches: list[Any], levels: int) -> list[tuple[int, ...]]:
    return [tuple(np.bincount(labels[rows], minlength=levels).tolist()) for rows in batches]


class_counts = st.lists(st.integers(0, 60), min_size=2, max_size=6).filter(any).map(tuple)


# --- the reference's generator ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "batch", "expected"),
    [
        ((1000, 24), 512, [(500, 12)] * 2),
        ((900, 90, 10), 100, [(90, 9, 1)] * 10),
        ((900, 90, 3), 100, [(90, 9, 1)] * 3 + [(91, 9, 0)] * 6 + [(84, 9, 0)]),
        ((1000, 1), 512, [(511, 1), (489, 0)]),
        ((500, 0, 20), 128, [(124, 0, 4)] * 4 + [(4, 0, 4)]),
        ((7, 5, 3), 4, [(1, 2, 1), (2, 1, 1), (2, 1, 1), (2, 1, 0)]),
        ((3, 2), 512, [(3, 2)]),
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_classes_of_the_references_batches(counts: Any, batch: int, expected: Any, shuffle: bool) -> None:
    labels = labels_of(counts)
    batches = stratified_reference(labels, batch, len(counts), shuffle, np.random.default_rng(0))
    assert classes_per_batch(labels, batches, len(counts)) == expected


def test_the_rows_of_the_references_batches_in_order() -> None:
    """Classes 0 (rows 0-6), 1 (7-11) and 2 (12-14): whole parts rare class first, then what remains rare class first."""
    batches = stratified_reference(labels_of((7, 5, 3)), 4, 3, shuffle=False)
    # whole parts (1, 1, 0), remainders (3, 1, 3)
    assert [rows.tolist() for rows in batches] == [[7, 0, 12, 8], [9, 1, 13, 2], [10, 3, 14, 4], [11, 5, 6]]


@given(class_counts, st.integers(1, 40), st.booleans())
def test_the_reference_shows_each_item_once_in_full_batches(counts: Any, batch: int, shuffle: bool) -> None:
    labels = labels_of(counts)
    batches = stratified_reference(labels, batch, len(counts), shuffle, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(labels)))
    assert all(len(rows) == batch for rows in batches[:-1])
    assert 0 < len(batches[-1]) <= batch


def test_the_last_round_of_the_reference_is_in_order_of_class() -> None:
    labels = labels_of((900, 90, 3))
    *others, last = stratified_reference(labels, 100, 3, True, np.random.default_rng(2))
    assert (np.diff(labels[last]) <= 0).all()
    assert all((np.diff(labels[rows]) > 0).any() for rows in others)


def test_a_short_round_of_the_reference_is_filled_by_the_next() -> None:
    """Rounds take 9, 8 and 2 of 19: the third batch of the list begins one item into the last round."""
    # whole parts (2, 4), remainders (0, 1); the largest class has 2 left for the 3 that the second round lacks
    batches = stratified_reference(labels_of((6, 13)), 9, 2, shuffle=False)
    assert [rows.tolist() for rows in batches] == [[0, 1, 6, 7, 8, 9, 10, 11, 12], [2, 3, 13, 14, 15, 16, 17, 18, 4], [5]]


# --- balanced -----------------------------------------------------------------------------------------------------------------------


@given(class_counts, st.integers(1, 80), st.integers(0, 3))
def test_balanced_batches(counts: Any, batch: int, seed: int) -> None:
    labels = labels_of(counts)
    present = np.flatnonzero(counts)
    if len(present) > batch:
        with pytest.raises(UsageError, match="cannot hold each of"):
            balanced(labels, batch, np.random.default_rng(seed))
        return
    batches = balanced(labels, batch, np.random.default_rng(seed))
    found = np.array(classes_per_batch(labels, batches, len(counts)))
    assert (found[:, present] >= 1).all()
    assert (found.max(0) - found.min(0) <= 1).all()
    sizes = found.sum(1)
    assert sizes.max() <= batch
    assert np.ptp(sizes) <= 1
    assert all(len(set(rows.tolist())) == len(rows) for rows in batches)
    times = np.bincount(np.concatenate(batches), minlength=len(labels))
    assert times.min() >= 1
    for level in present:
        assert np.ptp(times[labels == level]) <= 1
        if counts[level] >= len(batches):
            assert (times[labels == level] == 1).all()


def test_a_rare_class_is_in_every_balanced_batch() -> None:
    labels = labels_of((900, 90, 3))
    batches = balanced(labels, 100, np.random.default_rng(0))
    # 7 repetitions fill what 993 items leave of 10 batches
    assert classes_per_batch(labels, batches, 3) == [(90, 9, 1)] * 10
    times = np.bincount(np.concatenate(batches))
    assert sorted(times[990:].tolist()) == [3, 3, 4]


def test_repeating_rare_items_takes_another_batch_where_there_is_no_room() -> None:
    labels = labels_of((99, 1))
    assert [len(rows) for rows in balanced(labels, 10, np.random.default_rng(0))] == [10] * 11


def test_as_many_classes_as_places() -> None:
    labels = labels_of((5, 1, 2))
    assert classes_per_batch(labels, balanced(labels, 3, np.random.default_rng(0)), 3) == [(1, 1, 1)] * 5


# --- all of them --------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 50))
def test_uniform_batches(size: int, batch: int) -> None:
    batches = uniform(size, batch, np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(size))
    assert len(batches) == -(-size // batch)
    assert np.ptp([len(rows) for rows in batches]) <= 1


@pytest.mark.parametrize("rule", RULES)
def test_a_pass_is_the_same_for_the_same_seed_and_another_one_for_another(rule: Any) -> None:
    labels = labels_of((40, 9, 2))

    def rows(seed: int, number: int) -> list[list[int]]:
        return [batch.tolist() for batch in Batches(labels, rule=rule, batch=16, levels=3, seed=seed).epoch(number)]

    assert rows(0, 3) == rows(0, 3)
    assert rows(0, 3) != rows(0, 4)
    assert rows(0, 3) != rows(1, 3)


@pytest.mark.parametrize("rule", RULES)
def test_a_pass_shows_everything_as_rows(rule: Any) -> None:
    batches = Batches(labels_of((40, 9, 2)), rule=rule, batch=16, levels=3, seed=0).epoch(0)
    assert all(rows.dtype == np.int64 and 0 < len(rows) <= 16 for rows in batches)
    assert set(np.concatenate(batches).tolist()) == set(range(51))


@pytest.mark.parametrize("rule", RULES)
def test_fewer_items_than_a_batch_make_one(rule: Any) -> None:
    batches = Batches(labels_of((3, 1)), rule=rule, batch=512, levels=2, seed=0).epoch(5)
    assert [sorted(rows.tolist()) for rows in batches] == [[0, 1, 2, 3]]


def test_the_rules_differ_in_what_they_promise() -> None:
    labels = labels_of((1000, 1))
    rare = {rule: sum(1000 in rows for rows in Batches(labels, rule=rule, batch=64, levels=2, seed=0).epoch(0)) for rule in RULES}
    assert rare == {"balanced": 16, "stratified": 1, "uniform": 1}


@pytest.mark.parametrize("rule", ["balanced", "stratified"])
def test_shares_count_as_their_likeliest_class(rule: Any) -> None:
    labels = labels_of((40, 9, 2))
    shares = 0.6 * np.eye(3)[labels] + 0.4 / 3
    of_shares, of_labels = (Batches(given, rule=rule, batch=16, levels=3, seed=7).epoch(1) for given in (shares, labels))
    assert [rows.tolist() for rows in of_shares] == [rows.tolist() for rows in of_labels]


def test_likeliest() -> None:
    assert likeliest(np.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]), 2).tolist() == [1, 0, 0]
    assert likeliest(np.array([0.0, 2.0], np.float32), 3).tolist() == [0, 2]


def test_what_has_no_class_can_be_in_uniform_batches() -> None:
    batches = Batches(np.linspace(0, 1, 10), rule="uniform", batch=4, levels=0, seed=0).epoch(0)
    assert [len(rows) for rows in batches] == [4, 3, 3]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1], True), ([2, 2], False), ([1], False), ([], False),
        ([[0.9, 0.1], [0.1, 0.9]], True), ([[0.9, 0.1], [0.6, 0.4]], False),
    ],
)  # fmt: skip
def test_contrast(labels: Any, expected: bool) -> None:
    assert has_contrast(np.array(labels)) is expected


def test_weights_belong_to_what_is_shown() -> None:
    torch = pytest.importorskip("torch")
    from guerdon.losses import rating_weights

    labels = labels_of((900, 90, 3))
    shown = np.concatenate(Batches(labels, rule="balanced", batch=100, levels=3, seed=0).epoch(0))
    torch.testing.assert_close(rating_weights(torch.from_numpy(labels[shown]), 3), torch.tensor([1.0, 10.0, 90.0]))


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([0, 1], {"rule": "random"}, "There are: balanced, stratified, uniform"),
        ([], {}, "0 items"),
        ([0, 1], {"batch": 0}, "batches of 0"),
        ([0, 1], {"levels": 0}, "at least two classes, got 0"),
        ([0, 2], {}, "class numbers 0 to 1, got 0 to 2"),
        ([0.5, 1.0], {}, "class numbers 0 to 1, got 0.5 to 1.0"),
        ([float("nan"), 1.0], {}, "class numbers"),
        ([[0.2, 0.3, 0.5]], {}, "the shape"),
        ([0, 1], {"batch": 1}, "a batch of 1 cannot hold each of 2 classes"),
    ],
)
def test_what_cannot_be_batched_is_said(labels: Any, options: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Batches(np.array(labels), **{"rule": "balanced", "batch": 8, "levels": 2, "seed": 0} | options)


def test_shuffling_needs_random_numbers() -> None:
    with pytest.raises(UsageError, match="generator of random numbers"):
        stratified_reference(labels_of((3, 3)), 2, 2)
