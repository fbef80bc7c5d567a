"""Composing and checking rewards; numbers worked out by hand (discount .97 unless said)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.errors import RewardError
from guerdon.labels import LabelSet, transition_values
from guerdon.records import Annotation, Label, Span
from guerdon.rewards.check import check_rewards, loitering_value
from guerdon.rewards.column import RewardColumn
from guerdon.rewards.compose import compose, controls, names_in, potential_shaping, reward_statistics, usual_discount
from tests.memory import MemoryDataset, MemoryEpisode

SCORES = (0, 0, 2, 5, 10, 3, 8, 10)
DISCOUNTS = 0.97 ** np.arange(8)


def label_set(scores: dict[int, tuple[float | None, ...]], **metadata: object) -> LabelSet:
    labels = [
        Label(unit="transition", episode=episode, start=step, stop=step + 1, instruction="go", value=value,
              state="labelled" if value is not None else "failed", cause=None if value is not None else "timeout")
        for episode, values in scores.items() for step, value in enumerate(values)
    ]  # fmt: skip
    return LabelSet(labels, {"method": "rg-vlm", "version": "1", "scale": [0, 10], "rater": "r", "dataset": "s256:memory", **metadata})


EIGHT = MemoryDataset([MemoryEpisode(8)])
LABELS = {"rg_vlm": label_set({0: SCORES})}


@pytest.mark.parametrize(
    ("expression", "rewards", "value"),
    [
        ("0.1 * rg_vlm + sparse", (0, 0, 0.02, 0.05, 0.1, 0.03, 0.08, 1.1), 1.134162),
        ("rg_vlm", (0, 0, 0.2, 0.5, 1, 0.3, 0.8, 1), 3.261790),
        ("sparse", (0, 0, 0, 0, 0, 0, 0, 1), 0.807983),
        ("rg_vlm + sparse", (0, 0, 0.2, 0.5, 1, 0.3, 0.8, 2), 4.069773),
        ("rg_vlm.raw", SCORES, 32.61790),
        ("-(1 - 2) / 4", (0.25,) * 8, 0.25 * (1 - 0.97**8) / 0.03),
    ],
)
def test_expressions(expression: str, rewards: tuple[float, ...], value: float) -> None:
    column = compose(LABELS, EIGHT, expression)
    np.testing.assert_allclose(column.values[0, 0], rewards, rtol=1e-6, atol=1e-7)
    assert column.values[0, 0].dtype == np.float32
    np.testing.assert_allclose((column.values[0, 0] * DISCOUNTS).sum(), value, atol=1e-5)


def test_potential_shaping_telescopes() -> None:
    phi = (0, 0.1, 0.1, 0.3, 0.6, 0.6, 0.8, 0.9, 1)
    shaped = potential_shaping(phi, 0.97)
    np.testing.assert_allclose((shaped * DISCOUNTS).sum(), 0.783743, atol=1e-6)
    np.testing.assert_allclose(shaped[:3], [0.097, -0.003, 0.191], atol=1e-12)


def test_potential_of_scores_by_hand() -> None:
    dataset = MemoryDataset([MemoryEpisode(2)])
    column = compose({"rg_vlm": label_set({0: (4, 10)})}, dataset, "potential(rg_vlm)", gamma=0.5)
    np.testing.assert_allclose(column.values[0, 0], [0.5 * 0.2 - 0, 0.5 * 0.7 - 0.2], atol=1e-7)


def test_sparse_pays_only_success() -> None:
    column = compose({}, MemoryDataset([MemoryEpisode(2), MemoryEpisode(2, terminated=False)]), "sparse")
    np.testing.assert_array_equal(column.values[0, 0], [0, 1])
    np.testing.assert_array_equal(column.values[1, 0], [0, 0])


def test_unknown_stays_unknown() -> None:
    column = compose({"rg_vlm": label_set({0: (1, None)})}, MemoryDataset([MemoryEpisode(2), MemoryEpisode(3)]), "0.1 * rg_vlm + sparse")
    np.testing.assert_array_equal(np.isnan(column.values[0, 0]), [False, True])
    assert np.isnan(column.values[1, 0]).all()
    assert column.coverage == pytest.approx(1 / 5)


def test_shuffled_keeps_the_values_and_their_places_of_ignorance() -> None:
    labels = {"rg_vlm": label_set({0: (1, None, 3, 4, 5, 6, 7, 8)})}
    shuffled = compose(labels, EIGHT, "shuffled(rg_vlm)").values[0, 0]
    again = compose(labels, EIGHT, "shuffled(rg_vlm)").values[0, 0]
    np.testing.assert_array_equal(shuffled, again)
    assert np.isnan(shuffled[1])
    np.testing.assert_allclose(np.sort(shuffled[~np.isnan(shuffled)]), np.array([1, 3, 4, 5, 6, 7, 8]) / 10, atol=1e-7)
    assert not np.array_equal(shuffled, compose(labels, EIGHT, "rg_vlm").values[0, 0], equal_nan=True)


def test_constant_praises_whatever_is_labelled() -> None:
    labels = {"rg_vlm": label_set({0: (1, None, 3, 4, 5, 6, 7, 8)})}
    expected = np.array([1, np.nan, 1, 1, 1, 1, 1, 1], np.float32)
    np.testing.assert_array_equal(compose(labels, EIGHT, "constant(rg_vlm)").values[0, 0], expected)
    np.testing.assert_array_equal(compose(labels, EIGHT, "constant(rg_vlm.raw)").values[0, 0], 10 * expected)
    with pytest.raises(RewardError, match="takes the name of a label set, not 'sparse'"):
        compose(labels, EIGHT, "constant(sparse)")


def test_controls_replace_labels_and_nothing_else() -> None:
    assert controls("0.1 * rg_vlm + potential(rg_vlm.raw) + sparse")["shuffled"] == (
        "0.1 * shuffled(rg_vlm) + potential(shuffled(rg_vlm.raw)) + sparse"
    )
    assert controls("sparse + oracle") == {}


def test_original_and_oracle_come_from_the_dataset() -> None:
    dataset = MemoryDataset([MemoryEpisode(4, rewards=(0, 0, 0.5, 1), contribution=(1, 0, -1, np.nan))])
    np.testing.assert_array_equal(compose({}, dataset, "original").values[0, 0], np.array([0, 0, 0.5, 1], np.float32))
    np.testing.assert_array_equal(compose({}, dataset, "oracle").values[0, 0], np.array([1, 0, 0, np.nan], np.float32))
    with pytest.raises(RewardError, match="no ground truth"):
        compose({}, EIGHT, "oracle")


def wavering(*numbers: tuple[float | None, float | None]) -> LabelSet:
    """Labels of one episode, each with a value and a spread."""
    plain = label_set({0: tuple(value for value, _ in numbers)})
    return LabelSet([replace(label, spread=spread) for label, (_, spread) in zip(plain.labels, numbers, strict=True)], plain.metadata)


def test_the_spread_of_repeated_answers_can_be_held_against_a_label() -> None:
    dataset = MemoryDataset([MemoryEpisode(4)])
    labels = {"rg_vlm": wavering((4, 2), (10, 0), (6, None), (None, None))}
    spread = compose(labels, dataset, "rg_vlm.spread").values[0, 0]
    np.testing.assert_array_equal(spread, np.array([0.2, 0, np.nan, np.nan], np.float32))
    cautious = compose(labels, dataset, "rg_vlm - 0.5 * rg_vlm.spread").values[0, 0]
    np.testing.assert_allclose(cautious, [0.3, 1.0, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(compose(labels, dataset, "constant(rg_vlm.spread)").values[0, 0], [0, 0, np.nan, np.nan])
    assert controls("rg_vlm - rg_vlm.spread")["constant"] == "constant(rg_vlm) - constant(rg_vlm.spread)"


def test_a_spread_is_scaled_by_the_width_of_the_scale_only() -> None:
    labels = wavering((1, 1.5), (4, 3))
    column = compose(
        {"stars": LabelSet(labels.labels, {**labels.metadata, "scale": [1, 4]})}, MemoryDataset([MemoryEpisode(2)]), "stars.spread"
    )
    np.testing.assert_allclose(column.values[0, 0], [0.5, 1.0])


def test_spreads_of_overlapping_windows_are_averaged_and_a_human_has_none() -> None:
    first, second = wavering((4, 2), (4, 1)), wavering((6, 4), (6, None))
    by_hand = replace(first.labels[1], state="human", value=9.0, spread=None)
    both = LabelSet([*first.labels, *second.labels], first.metadata)
    corrected = LabelSet([*both.labels, by_hand], first.metadata)
    np.testing.assert_array_equal(transition_values(both, {0: 2}, column="spread")[0, 0], [3, 1])
    np.testing.assert_array_equal(transition_values(corrected, {0: 2}, column="spread")[0, 0], [3, np.nan])
    np.testing.assert_array_equal(transition_values(corrected, {0: 2})[0, 0], [5, 9])


def test_every_annotation_has_its_own_rewards() -> None:
    dataset = MemoryDataset([MemoryEpisode(1, annotations=(Annotation("a"), Annotation("b")))])
    assert sorted(compose({}, dataset, "sparse").values) == [(0, 0), (0, 1)]


@pytest.mark.parametrize(
    "expression",
    ["", "rg_vlm +", "__import__('os')", "rg_vlm.scale", "rg_vlm ** 2", "'text'", "True", "potential(rg_vlm, 3)", "open(rg_vlm)",
     "sparse.spread", "rg_vlm.spread.raw", "[1]", "rg-vlm", "sparse if 1 else 2", "lambda: 1", "(" * 300],
)  # fmt: skip
def test_bad_expressions_are_refused(expression: str) -> None:
    with pytest.raises(RewardError) as caught:
        compose(LABELS, EIGHT, expression)
    assert f"expression '{expression}'" in str(caught.value)


@given(st.text(alphabet="rg_vlmspaed 0123.+-*/()", max_size=30))
def test_an_expression_gives_rewards_or_a_clear_error(expression: str) -> None:
    try:
        column = compose(LABELS, EIGHT, expression)
    except RewardError:
        return
    assert column.values[0, 0].shape == (8,)


def test_names_and_mismatches_are_refused() -> None:
    assert names_in("0.1 * rg_vlm + potential(clip) + sparse") == {"rg_vlm", "clip"}
    with pytest.raises(RewardError, match="no label set 'clip'; there are: constant"):
        compose(LABELS, EIGHT, "clip")
    with pytest.raises(RewardError, match="divides by zero"):
        compose(LABELS, EIGHT, "1 / rg_vlm")
    with pytest.raises(RewardError, match="made from another dataset"):
        compose({"rg_vlm": label_set({0: SCORES}, dataset="s256:other")}, EIGHT, "rg_vlm")


def test_columns_round_trip(tmp_path: Path) -> None:
    dataset = MemoryDataset([MemoryEpisode(3, annotations=(Annotation("a"), Annotation("b"))), MemoryEpisode(1)])
    column = compose({"rg_vlm": label_set({0: (1, None, 3)})}, dataset, "rg_vlm")
    column.write(tmp_path / "r.parquet")
    read = RewardColumn.read(tmp_path / "r.parquet")
    assert read.fingerprint == column.fingerprint
    assert sorted(read.values) == sorted(column.values)
    for key, array in column.values.items():
        np.testing.assert_array_equal(read.values[key], array)
    assert reward_statistics(read) == {
        "coverage": pytest.approx(2 / 7), "mean": pytest.approx(0.2), "std": pytest.approx(0.1), "min": pytest.approx(0.1),
        "max": pytest.approx(0.3),
    }  # fmt: skip


# --- rewards of a reward model --------------------------------------------------------------------------------------------------------


def by_model(*rows: tuple[float, ...], **metadata: object) -> RewardColumn:
    """A column as `guerdon relabel` writes it, of a model whose scale is [-1, 1]."""
    meaning = {"model": "s256:model", "model_name": "erl_vlm", "scale": [-1, 1], "transform": "raw", "pessimism": 0.0}
    return RewardColumn(values(*rows).values, {"expression": "relabel(erl_vlm)", "dataset": "s256:memory", **meaning, **metadata})


FOUR = MemoryDataset([MemoryEpisode(4)])


@pytest.mark.parametrize(
    ("expression", "rewards"),
    [
        ("erl_vlm", (0, 0.25, 0.5, 1)),
        ("erl_vlm.raw", (-1, -0.5, 0, 1)),
        ("0.1 * erl_vlm + sparse", (0, 0.025, 0.05, 1.1)),
        ("constant(erl_vlm)", (1, 1, 1, 1)),
        ("constant(erl_vlm.raw) / 2", (0.5, 0.5, 0.5, 0.5)),
        ("erl_vlm - 0.1 * rg_vlm", (-0.01, 0.23, 0.47, 0.96)),
        ("potential(erl_vlm.raw)", (-0.97 / 4, 0.25 - 1.5 * 0.97 / 4, 0.375 - 1.5 * 0.97 / 4, 0.375 - 0.5 * 0.97 / 4)),
    ],
)
def test_rewards_of_a_model_can_be_named(expression: str, rewards: tuple[float, ...]) -> None:
    columns = {"erl_vlm": by_model((-1, -0.5, 0, 1))}
    column = compose({"rg_vlm": label_set({0: (1, 2, 3, 4)})}, FOUR, expression, columns=columns)
    np.testing.assert_allclose(column.values[0, 0], rewards, rtol=1e-6, atol=1e-7)
    assert column.metadata["columns"] == {"erl_vlm": columns["erl_vlm"].fingerprint}
    assert set(column.metadata["labels"]) == ({"rg_vlm"} if "rg_vlm" in expression else set())


def test_rewards_of_a_model_can_be_shuffled_and_may_be_unknown() -> None:
    columns = {"erl_vlm": by_model((-1, np.nan, 0, 1))}
    shuffled = compose({}, FOUR, "shuffled(erl_vlm)", columns=columns).values[0, 0]
    assert np.isnan(shuffled[1])
    assert sorted(shuffled[[0, 2, 3]]) == [0.0, 0.5, 1.0]
    assert np.isnan(compose({}, FOUR, "erl_vlm + sparse", columns=columns).values[0, 0][1])
    assert controls("0.1 * erl_vlm + sparse")["constant"] == "0.1 * constant(erl_vlm) + sparse"


@pytest.mark.parametrize(
    ("expression", "metadata", "words"),
    [
        ("erl_vlm.spread", {}, "is a reward column, which has no spread"),
        ("erl_vlm", {"scale": None, "transform": "standard"}, "is standardised.*Write erl_vlm.raw"),
        ("constant(erl_vlm.raw)", {"scale": None, "transform": "standard"}, "is standardised"),
        ("erl_vlm", {"dataset": "s256:other"}, "the reward column 'erl_vlm' was made from another dataset"),
        ("clip", {}, "no label set or reward column 'clip'; there are: constant.*, erl_vlm"),
    ],
)
def test_rewards_of_a_model_are_refused_where_they_mean_nothing(expression: str, metadata: dict[str, object], words: str) -> None:
    with pytest.raises(RewardError, match=words):
        compose({}, FOUR, expression, columns={"erl_vlm": by_model((0, 0, 0, 1), **metadata)})


def test_standardised_rewards_can_be_used_as_they_are() -> None:
    columns = {"erl_vlm": by_model((-1, 1, -1, 1), scale=None)}
    np.testing.assert_array_equal(compose({}, FOUR, "2 * erl_vlm.raw", columns=columns).values[0, 0], [-2, 2, -2, 2])


def test_a_name_means_one_thing() -> None:
    with pytest.raises(RewardError, match="'rg_vlm' is the name of a label set and of a reward column"):
        compose({"rg_vlm": label_set({0: (1, 2, 3, 4)})}, FOUR, "rg_vlm", columns={"rg_vlm": by_model((0, 0, 0, 1))})
    composed = compose({}, FOUR, "2 * sparse")
    with pytest.raises(RewardError, match=r"'twice' is a composed reward column, which has no scale.*in its place: 2 \* sparse"):
        compose({}, FOUR, "twice.raw", columns={"twice": composed})


def test_what_a_column_without_models_is_made_from_is_told_as_before() -> None:
    assert set(compose(LABELS, EIGHT, "rg_vlm").metadata) == {"expression", "labels", "dataset", "gamma", "seed"}


# --- checks ---------------------------------------------------------------------------------------------------------------------------


def found(column: RewardColumn, dataset: MemoryDataset) -> set[str]:
    return {finding.name for finding in check_rewards(column, dataset)}


def values(*rows: tuple[float, ...]) -> RewardColumn:
    return RewardColumn({(i, 0): np.asarray(row, np.float32) for i, row in enumerate(rows)}, {})


def test_loitering_arithmetic() -> None:
    assert loitering_value(0.3, 0.97) == pytest.approx(10.0)


def test_checks_find_what_they_are_for() -> None:
    three = MemoryDataset([MemoryEpisode(2), MemoryEpisode(3), MemoryEpisode(4)])
    assert "constant reward" in found(values((0, 0), (0, 0, 0), (0, 0, 0, 0)), three)
    assert "loitering" in found(values((0.3, 1), (0.3, 0.3, 1), (0.3, 0.3, 0.3, 1)), three)
    assert "return grows with length" in found(values((0.3, 1), (0.3, 0.3, 1), (0.3, 0.3, 0.3, 1)), three)
    assert found(values((0, 1), (0, 0, 1), (0, 0, 0, 1)), three) == set()
    assert "unknown rewards" in found(values((0, 1), (0, np.nan, 1), (0, 0, 0, 1)), three)
    assert "no rewards" in found(values((np.nan, np.nan)), MemoryDataset([MemoryEpisode(2)]))


def test_a_shifted_reward_is_noticed() -> None:
    spans = (Annotation("x", (Span(0, 2, "a"), Span(2, 4, "b"))),)
    dataset = MemoryDataset([MemoryEpisode(4, annotations=spans) for _ in range(3)])
    assert "one step late" not in found(values(*[(0, 1, 0, 1)] * 3), dataset)
    assert "one step late" in found(values(*[(0, 0, 1, 0)] * 3), dataset)


def test_what_the_world_pays_for_itself_is_a_note() -> None:
    """Episodes of 2, 3 and 4 steps; each step pays 0.3 and the last one 1, in the column and in the dataset itself."""
    rows = [(0.3,) * (length - 1) + (1.0,) for length in (2, 3, 4)]
    sparse = MemoryDataset([MemoryEpisode(len(row)) for row in rows])
    dense = MemoryDataset([MemoryEpisode(len(row), rewards=row) for row in rows])
    severity = [{finding.name: finding.severity for finding in check_rewards(values(*rows), dataset)} for dataset in (sparse, dense)]
    assert severity == [
        {"loitering": "warning", "return grows with length": "warning"},
        {"loitering": "note", "return grows with length": "note"},
    ]


def test_rewards_between_minus_one_and_one() -> None:
    """Steps that cost pay for no loitering, however dense they are."""
    dataset = MemoryDataset([MemoryEpisode(length) for length in (2, 3, 4)])
    assert found(by_model((-0.5, 0.9), (-0.6, -0.1, 0.8), (-0.4, -0.3, 0.1, 0.7)), dataset) == set()
    assert found(by_model((0.5, 0.9), (0.6, 0.1, 0.8), (0.4, 0.3, 0.1, 0.7)), dataset) >= {"loitering"}


def test_a_model_at_the_ends_of_its_scale_is_noticed() -> None:
    dataset = MemoryDataset([MemoryEpisode(10, terminated=False)])
    ends = (-1, -1, -0.999, -0.99, 1, 1, 0.981, 0.995, -1)
    assert "saturated" in found(by_model((*ends, 1)), dataset)
    assert "saturated" not in found(by_model((*ends, 0)), dataset), "9 of 10 are not above the limit of 90 %"
    assert "saturated" not in found(by_model((*ends, 1), scale=None), dataset)


def test_a_model_that_hardly_varies_is_noticed() -> None:
    """5 % of a scale from -1 to 1 are 0.1."""
    dataset = MemoryDataset([MemoryEpisode(3, terminated=False)])
    assert "hardly varies" in found(by_model((0.0, 0.02, 0.09)), dataset)
    assert "hardly varies" not in found(by_model((0.0, 0.02, 0.11)), dataset)
    assert "hardly varies" not in found(by_model((0.0, 0.02, 0.09), scale=None), dataset)
    assert found(by_model((0.5, 0.5, 0.5)), dataset) == {"constant reward"}


def test_a_column_keeps_its_fingerprint_on_disk(tmp_path: Path) -> None:
    """Also with an episode without transitions, and with a NaN of another make (0 / 0 has a sign)."""
    odd = np.array([1.0, np.nan], np.float32)
    odd.view(np.uint32)[1] = 0xFFC00001
    column = RewardColumn({(0, 0): odd, (1, 0): np.zeros(0, np.float32), (2, 0): np.array([-0.0], np.float32)}, {"expression": "x"})
    column.write(tmp_path / "rewards.parquet")
    again = RewardColumn.read(tmp_path / "rewards.parquet")
    assert again.fingerprint == column.fingerprint
    assert list(again.values) == [(0, 0), (2, 0)]
    other = RewardColumn({**again.values, (2, 0): np.array([0.5], np.float32)}, column.metadata)
    assert other.fingerprint != column.fingerprint


def test_a_model_that_does_not_hear_what_is_asked_for_is_noticed() -> None:
    rows = ((-0.5, 0.1), (-0.4, 0.2))
    two, one = (MemoryDataset([MemoryEpisode(2, words) for words in asked]) for asked in (("go left", "go right"), ("go", "go")))
    assert "instructions not read" in found(by_model(*rows, reads=False), two)
    assert "instructions not read" not in found(by_model(*rows, reads=True), two) | found(by_model(*rows, reads=False), one)
    assert "instructions not read" not in found(values(*rows), two), "labels were given by the words of each"


def test_checks_need_no_ground_truth_and_no_ends() -> None:
    dataset = MemoryDataset([MemoryEpisode(3, annotations=(), terminated=False) for _ in range(4)])
    assert found(by_model(*[(-0.1, 0.2, 0.3)] * 4), dataset) == set()


RATINGS = LabelSet(
    [Label(unit="observation", episode=0, start=1, stop=1, instruction="go", value=1, state="labelled")],
    {"method": "rating", "scale": [0, 2], "levels": ["Bad", "Average", "Good"]},
)


@pytest.mark.parametrize(
    ("expression", "discount"),
    [
        ("rg_vlm - 1", 0.8),
        ("2 * constant(rg_vlm) + shuffled(rg_vlm.raw)", 0.8),
        ("rg_vlm - 0.5 * rg_vlm.spread + oracle", 0.8),
        ("rg_vlm + sparse - 1", 0.8),
        ("-(1 - rg_vlm.raw) / 10 + sparse", 0.8),
        ("0.1 * rg_vlm + sparse", 0.97),
        ("rg_vlm + 1.01 * sparse - 1", 0.97),
        ("1 - rg_vlm", 0.97),
        ("sparse", 0.97),
        ("1 / rg_vlm", 0.97),
        ("rg_vlm + original", 0.97),
        ("potential(rg_vlm)", 0.97),
        ("rg_vlm + potential(oracle)", 0.97),
        ("rating", 0.97),
        ("rg_vlm + rating", 0.97),
        ("erl_vlm - 1", 0.97),
        ("distilled - 1", 0.8),
        ("0.1 * distilled + sparse", 0.97),
        ("1", 0.97),
    ],
)
def test_scores_of_single_actions_want_a_short_horizon(expression: str, discount: float) -> None:
    models = {name: RewardColumn({}, {"scale": [0, 1], "kind": kind}) for name, kind in (("erl_vlm", "rating"), ("distilled", "score"))}
    assert usual_discount(expression, {**LABELS, "rating": RATINGS, **models}) == discount


def test_a_column_keeps_the_discount_that_it_was_composed_for(tmp_path: Path) -> None:
    compose(LABELS, EIGHT, "rg_vlm", gamma=0.25).write(tmp_path / "column.parquet")
    assert RewardColumn.read(tmp_path / "column.parquet").discount == 0.25
    assert RewardColumn({}, {"model": "m"}).discount is None
