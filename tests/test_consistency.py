from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.evaluation.consistency import consistency, draw, reliability
from guerdon.recipes.consistency import measure
from tests.memory import MemoryDataset, MemoryEpisode
from tests.reward_data import label

NAN = float("nan")


def measured(votes: object, success: object, levels: int = 2, episode: object = None, step: object = None) -> object:
    array = np.array(votes, np.float64)
    places = np.zeros(array.shape[1], int) if episode is None else np.array(episode)
    steps = np.arange(array.shape[1]) if step is None else np.array(step)
    return consistency(array, np.array(success), places, steps, levels)


def test_two_classes_by_hand() -> None:
    # Repeat 0 is right for 3 of 4, repeat 1 for 4 of 4: mean 7/8, deviation sqrt(2 (1/8)^2).
    found = measured([[0, 1, 0, 1], [0, 0, 0, 1]], [False, False, False, True])
    assert found.agreement == pytest.approx(7 / 8)
    assert found.agreement_deviation == pytest.approx(np.sqrt(2) / 8)
    assert found.same_again == pytest.approx(3 / 4)
    assert found.balanced_agreement == pytest.approx((1.0 + 5 / 6) / 2)
    assert (found.answered, found.decided) == (1.0, 1.0)


def test_the_middle_class_says_neither() -> None:
    found = measured([[0, 1, 2, 2]], [False, False, False, True], levels=3)
    assert found.decided == pytest.approx(3 / 4)
    assert found.agreement == pytest.approx(2 / 3)
    assert np.isnan(found.agreement_deviation)
    assert np.isnan(found.same_again)
    assert np.isnan(found.reliability)


def test_an_even_number_of_classes_has_no_middle() -> None:
    found = measured([[0, 1, 2, 3]], [False, False, True, True], levels=4)
    assert (found.decided, found.agreement) == (1.0, 1.0)
    assert found.order == pytest.approx(1.0)


def test_missing_answers_count_nowhere_but_in_their_share() -> None:
    found = measured([[0, NAN], [0, 1]], [False, True])
    assert found.answered == pytest.approx(3 / 4)
    assert found.agreement == 1.0
    assert found.same_again == 1.0  # one picture with two answers
    nothing = measured([[NAN, NAN]], [False, True])
    assert nothing.answered == 0.0
    assert all(np.isnan(value) for value in (nothing.agreement, nothing.same_again, nothing.reliability, nothing.order))
    assert nothing.to_record()["agreement"] is None


def test_reliability_by_hand() -> None:
    # Two pictures with answers (0, 1) and (1, 1): each sum over pairs is 2 n (sum of squares) / (n - 1).
    votes = np.array([[0.0, 1.0], [1.0, 1.0]])
    observed = 2 * 2 * 0.5 / 1
    values = np.array([0.0, 1.0, 1.0, 1.0])
    expected = 2 * 4 * ((values - 0.75) ** 2).sum() / 3
    assert reliability(votes) == pytest.approx(1 - observed / expected)
    assert reliability(votes) == pytest.approx(0.0)


def test_reliability_tells_random_answers_from_steady_ones() -> None:
    random = np.random.default_rng(0)
    assert reliability(random.integers(3, size=(10, 400)).astype(float)) == pytest.approx(0.0, abs=0.05)
    assert reliability(np.repeat(random.integers(3, size=(1, 50)), 4, 0).astype(float)) == pytest.approx(1.0)
    assert reliability(np.ones((3, 5))) == 1.0


def test_order_is_taken_within_episodes() -> None:
    found = measured([[0, 1, 2, 2, 1, 0]], [False] * 6, levels=3, episode=[0, 0, 0, 1, 1, 1], step=[1, 2, 3, 1, 2, 3])
    assert found.order == pytest.approx(0.0)


@pytest.mark.parametrize("votes", [[[2.0, 0.0]], [[0.5, 0.0]], [[-1.0, 0.0]]])
def test_what_is_no_class_is_refused(votes: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 1"):
        measured(votes, [False, True])


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="pictures"):
        measured([[0.0, 1.0]], [False, True, True], episode=[0, 0], step=[0, 1])


@given(
    st.integers(2, 5).flatmap(
        lambda levels: st.tuples(
            st.just(levels),
            st.lists(
                st.lists(st.one_of(st.just(NAN), st.integers(0, levels - 1).map(float)), min_size=4, max_size=4), min_size=1, max_size=5
            ),
        )
    ),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_shares_lie_between_zero_and_one(case: tuple[int, list[list[float]]], success: list[bool]) -> None:
    levels, votes = case
    found = measured(votes, success, levels)
    for name in ("answered", "same_again", "decided", "agreement", "balanced_agreement"):
        value = getattr(found, name)
        assert np.isnan(value) or 0 <= value <= 1
    assert np.isnan(found.reliability) or found.reliability <= 1 + 1e-12


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    rows = [measured([[0, 1], [0, 1]], [False, True]), measured([[NAN, NAN]], [False, True], levels=3)]
    draw(rows, tmp_path / "consistency.png", title="a rater")
    assert (tmp_path / "consistency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("unit", ["observation", "transition"])
def test_a_transition_is_judged_by_what_it_led_to(unit: str) -> None:
    """Only the last observation of each of two episodes, of 3 and of 2 transitions, shows success: the rater says so twice."""
    dataset = MemoryDataset([MemoryEpisode(3), MemoryEpisode(2)])
    told = [(0, 1, 0), (0, 2, 0), (0, 3, 1), (1, 1, 0), (1, 2, 1)]
    labels = [
        label(unit, episode, k, k, value) if unit == "observation" else label(unit, episode, k - 1, k, value) for episode, k, value in told
    ]
    found = measure({0: labels, 1: labels}, dataset, 2)
    assert (found.pictures, found.agreement, found.balanced_agreement, found.reliability) == (5, 1.0, 1.0, 1.0)
