"""Votes: several answers become one label; every number here is worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.labels import LabelSet, vote
from guerdon.records import Label


def label(value: float | None, *, step: int = 0, **changes: object) -> Label:
    state = "labelled" if value is not None else "failed"
    base = Label(unit="transition", episode=3, start=step, stop=step + 1, instruction="go", state=state, value=value, asked=2, answered=2,
                 cause=None if value is not None else "timeout", views=("full",))  # fmt: skip
    return replace(base, **changes)


def voted(values: Sequence[float | None], rule: str = "median", **options: object) -> Label:
    (found,) = vote([[label(value)] for value in values], rule, **options)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("values", "median", "spread"),
    [
        ((7.0,), 7.0, None),
        ((2.0, 4.0), 3.0, 1.0),
        ((2.0, 4.0, 9.0), 4.0, 2.943920),  # mean 5, squares 9 + 1 + 16, a third of 26
        ((9.0, 1.0, 2.0, 4.0), 3.0, 3.082207),  # mean 4, squares 25 + 9 + 4 + 0, a quarter of 38
        ((8.0, None, 2.0), 5.0, 3.0),
        ((None, 6.0, None), 6.0, None),
        ((5.0, 5.0, 5.0), 5.0, 0.0),
    ],
)
def test_the_median_of_the_values_there_are(values: tuple[float | None, ...], median: float, spread: float | None) -> None:
    found = voted(values)
    assert (found.state, found.cause, found.value) == ("labelled", None, median)
    assert found.spread == (None if spread is None else pytest.approx(spread, abs=1e-6))
    assert found.probabilities is None
    assert (found.asked, found.answered) == (2 * len(values), 2 * len(values))


@pytest.mark.parametrize(
    ("values", "majority", "shares"),
    [
        ((1.0,), 1.0, (0, 1, 0, 0)),
        ((2.0, 0.0, 2.0), 2.0, (1 / 3, 0, 2 / 3, 0)),
        ((0.0, 0.0, 3.0, 3.0, 2.0), 3.0, (2 / 5, 0, 1 / 5, 2 / 5)),  # 0 and 3 tie; the median is 2; 3 is nearer
        ((0.0, 1.0, 3.0), 1.0, (1 / 3, 1 / 3, 0, 1 / 3)),  # all tie; the median is 1
        ((3.0, 1.0), 1.0, (0, 1 / 2, 0, 1 / 2)),  # both are one away from the median, 2: the lower one
        ((None, 3.0, None), 3.0, (0, 0, 0, 1)),
    ],
)
def test_the_majority_of_the_classes(values: tuple[float | None, ...], majority: float, shares: tuple[float, ...]) -> None:
    found = voted(values, "majority", scale=(0.0, 3.0))
    assert found.value == majority
    assert found.probabilities == pytest.approx(shares)


def test_an_answer_that_says_how_likely_each_class_is_counts_by_that() -> None:
    sure, unsure = label(1.0), label(0.0, probabilities=(0.5, 0.3, 0.2))
    (alone,) = vote([[unsure]], "majority", scale=(0, 2))
    assert (alone.value, alone.probabilities) == (0.0, (0.5, 0.3, 0.2))
    (both,) = vote([[sure], [unsure], [label(None)]], "majority", scale=(0, 2))
    assert both.probabilities == pytest.approx((0.25, 0.65, 0.1))


def test_without_a_scale_classes_reach_from_nought_to_the_highest_vote() -> None:
    answers = [[label(1.0), label(2.0, step=1)], [label(1.0), label(0.0, step=1)]]
    assert [found.probabilities for found in vote(answers, "majority")] == [(0, 1, 0), (0.5, 0, 0.5)]


def test_classes_may_begin_elsewhere() -> None:
    assert voted((-1.0, 1.0, 1.0), "majority", scale=(-1.0, 1.0)).probabilities == pytest.approx((1 / 3, 0, 2 / 3))
    assert voted((2.0, 3.0, 3.0), "majority", scale=(1.0, 3.0)).probabilities == pytest.approx((0, 1 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        ([("failed", "timeout"), ("failed", "timeout"), ("unreadable", "unreadable")], ("failed", "timeout")),
        ([("failed", "timeout"), ("refused", "refusal")], ("refused", "refusal")),
        ([("refused", "blocked"), ("unreadable", "unreadable"), ("failed", "quota")], ("unreadable", "unreadable")),
        ([("failed", "network"), ("failed", "timeout")], ("failed", "network")),
        ([("skipped", "unsupported"), ("failed", "timeout")], ("failed", "timeout")),
    ],
)
def test_without_a_value_the_most_frequent_reason_is_told(reasons: list[tuple[str, str]], expected: tuple[str, str]) -> None:
    answers = [[label(None, state=state, cause=cause, question=f"s256:{state}")] for state, cause in reasons]
    (found,) = vote(answers, "median")
    assert (found.state, found.cause) == expected
    assert found.value is None
    assert found.spread is None
    assert found.question == f"s256:{expected[0]}"
    assert found.asked == 2 * len(reasons)


def test_words_come_from_the_first_answer_nearest_to_the_vote() -> None:
    answers = [[label(value, rationale=f"said {value:g}", question=f"s256:{number}")] for number, value in enumerate((9.0, 2.0, 4.0, 2.0))]
    (found,) = vote(answers, "median")  # the vote is 3
    assert (found.value, found.rationale, found.question) == (3.0, "said 2", "s256:1")


def test_each_unit_is_voted_on_by_itself() -> None:
    first = [label(1.0), label(None, step=1), label(10.0, step=2)]
    second = [label(3.0), label(6.0, step=1), label(None, step=2)]
    found = vote([first, second], "median")
    assert [(each.start, each.value, each.spread) for each in found] == [(0, 2.0, 1.0), (1, 6.0, None), (2, 10.0, None)]


def test_what_cannot_be_voted_on_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        vote([], "median")
    with pytest.raises(ValueError, match="the same units"):
        vote([[label(1.0)], [label(1.0, step=1)]], "median")
    with pytest.raises(ValueError, match="the same units"):
        vote([[label(1.0)], []], "median")
    with pytest.raises(ValueError, match=r"a whole number from 0 to 3, got 1\.5"):
        voted((1.5, 1.0), "majority", scale=(0.0, 3.0))
    with pytest.raises(ValueError, match=r"a whole number from 0 to 3, got 4\.0"):
        voted((4.0, 1.0), "majority", scale=(0.0, 3.0))


@given(st.lists(st.none() | st.integers(0, 10).map(float), min_size=1, max_size=9), st.sampled_from(["median", "majority"]))
def test_a_vote_lies_among_the_votes(values: list[float | None], rule: str) -> None:
    found = voted(values, rule, scale=(0.0, 10.0))
    known = [value for value in values if value is not None]
    if not known:
        assert (found.state, found.value) == ("failed", None)
        return
    assert found.value is not None
    assert min(known) <= found.value <= max(known)
    if rule == "majority":
        assert known.count(found.value) == max(map(known.count, known))
        assert found.probabilities is not None
        assert sum(found.probabilities) == pytest.approx(1.0)


def test_a_vote_keeps_its_fingerprint_on_disk(tmp_path: Path) -> None:
    answers = [[label(value, rationale="odd \udcff")] for value in (2.0, 4.0, 9.0)]
    meaning = {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "scripted", "dataset": "s256:memory"}
    written = LabelSet(vote(answers, "majority", scale=(0.0, 10.0)), meaning)
    written.write(tmp_path / "x.parquet")
    assert LabelSet.read(tmp_path / "x.parquet").fingerprint == written.fingerprint


# --- votes on pairs -----------------------------------------------------------------------------------------------------------------


def pair(value: float | None, second: tuple[int, int, int] = (2, 7, 7)) -> Label:
    episode, start, stop = second
    return label(value, unit="pair", start=4, stop=4, episode_b=episode, start_b=start, stop_b=stop)


@pytest.mark.parametrize(
    ("values", "majority", "shares"),
    [
        ((1.0,), 1.0, (0, 0, 1)),
        ((1.0, 1.0, 0.0), 1.0, (1 / 3, 0, 2 / 3)),
        ((0.0, 0.0, 0.5), 0.0, (2 / 3, 1 / 3, 0)),
        ((0.0, 1.0), 0.5, (1 / 2, 0, 1 / 2)),  # one against one is no preference, not the first one
        ((0.0, 0.5, 1.0), 0.5, (1 / 3, 1 / 3, 1 / 3)),
        ((0.5, 0.5, 0.0, 0.0), 0.5, (1 / 2, 1 / 2, 0)),
        ((1.0, 1.0, 0.0, 0.0, 0.5), 0.5, (2 / 5, 1 / 5, 2 / 5)),
        ((None, 0.0, None), 0.0, (1, 0, 0)),
    ],
)
def test_the_majority_of_the_preferences(values: tuple[float | None, ...], majority: float, shares: tuple[float, ...]) -> None:
    (found,) = vote([[pair(value)] for value in values], "majority", scale=(0.0, 1.0))
    assert found.value == majority
    assert found.probabilities == pytest.approx(shares)
    assert (found.unit, found.episode_b, found.start_b, found.stop_b) == ("pair", 2, 7, 7)


def test_the_median_of_the_preferences() -> None:
    (found,) = vote([[pair(value)] for value in (1.0, 1.0, 0.0)], "median")
    assert (found.value, found.probabilities) == (1.0, None)
    assert found.spread == pytest.approx(0.471405, abs=1e-6)  # mean 2/3, squares 1/9 + 1/9 + 4/9, a third of 6/9


def test_a_vote_is_about_one_pair() -> None:
    for second in ((1, 7, 7), (2, 6, 7), (2, 7, 8)):
        with pytest.raises(ValueError, match="the same units"):
            vote([[pair(1.0)], [pair(1.0, second)]], "median")
    with pytest.raises(ValueError, match=r"one of two is 0, 0\.5 or 1, got 0\.25"):
        vote([[pair(0.25)]], "majority", scale=(0.0, 1.0))
