"""What is measured of the embedded rater: numbers worked out by hand, and the same pictures looked at in two ways."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("minigrid")
pytest.importorskip("torch")

from guerdon.datasets import open_dataset
from guerdon.envs._babyai_distance import contribution
from guerdon.envs._babyai_words import WORDINGS, Clause, Thing
from guerdon.envs._babyai_world import World
from guerdon.errors import UsageError
from guerdon.metrics import accuracy, auroc, balanced_accuracy
from guerdon.providers._embedded_network import EmbeddedNetwork, shapes
from guerdon.providers._embedded_words import WORDS, named
from guerdon.recipes import _embedded_card as card_of
from guerdon.recipes import _embedded_evaluation as evaluation
from guerdon.recipes._embedded_data import Window
from guerdon.recipes._embedded_evaluation import (
    ALL_ACTIONS,
    ALL_ACTIONS_AND_ENDS,
    DISTRIBUTIONS,
    Distribution,
    EngineJob,
    Job,
    Resampling,
    SpeedJob,
    Transitions,
    actions_around,
    blind_tables,
    calibration,
    classes_of,
    clause_of,
    contribution_to,
    draw_windows,
    estimate,
    full_information,
    guess_from_actions,
    looks_at,
    other_pictures,
    pairs_of,
    preference_rows,
    scene_of,
    things_in,
    through_the_engine,
    transitions_of,
    try_distribution,
    verdicts_on_parts,
    verdicts_on_windows,
    without_ground_truth,
    wrong_words,
)
from guerdon.recipes._embedded_file import write_weights
from guerdon.recipes.collect_babyai import Config as Collect
from guerdon.recipes.collect_babyai import collect_babyai

SMALL = Distribution(name="small", words="small worlds", level="small", lengths=(2, 3))


def tensors_of_nobody() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """The weights of a small network that nobody has trained."""
    random = np.random.default_rng(0)
    return {
        name: random.normal(0, 0.3 if name.startswith(("tiles", "blocks", "words")) else 0.5, shape).astype(np.float32)
        for name, shape in shapes(6, 2, len(WORDS)).items()
    }


def network_of() -> EmbeddedNetwork:
    return EmbeddedNetwork.from_tensors(tensors_of_nobody())


def weights_in(folder: Path) -> Path:
    path = folder / "weights.safetensors"
    write_weights(path, tensors_of_nobody(), name="untrained-1")
    return path


@cache
def some_windows() -> tuple[Window, ...]:
    return tuple(draw_windows(SMALL, seed=5, tasks=4))


def window(episode: int, actions: list[int], contribution: list[float], subtask: list[int], phrases: tuple[str, ...]) -> Window:
    count = len(actions)
    return Window(
        level="small", episode=episode, start=0, task="t", instruction=" then ".join(phrases), phrases=phrases,
        pictures=np.zeros((count + 1, 16, 8, 3), np.uint8), actions=np.array(actions), contribution=np.array(contribution, np.float32),
        subtask=np.array(subtask), quality=np.zeros(count + 1),
    )  # fmt: skip


# --- measures -------------------------------------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    scores, serves = np.array([0.9, 0.8, 0.3, 0.6]), np.array([True, False, False, True])
    found = Resampling.of(2, resamples=50).agreement(scores, serves, np.array([0, 0, 1, 1]))
    assert found["accuracy"][0] == pytest.approx(3 / 4)
    assert found["balanced_accuracy"][0] == pytest.approx((1 + 1 / 2) / 2)
    assert found["auroc"][0] == pytest.approx(3 / 4)  # of the pairs, only 0.6 and 0.8 stand the wrong way round
    assert all(len(values) == 51 for values in found.values())


def test_resamples_weigh_whole_episodes() -> None:
    resampling = Resampling(np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    scores, serves, episode = np.array([0.9, 0.1, 0.7, 0.2, 0.4]), np.array([True, False, False, True, True]), np.array([0, 0, 1, 1, 1])
    found = resampling.agreement(scores, serves, episode)
    for number, chosen in ((1, episode == 0), (2, episode == 1), (3, episode >= 0)):
        assert found["auroc"][number] == pytest.approx(auroc(scores[chosen], serves[chosen]))
        assert found["accuracy"][number] == pytest.approx(accuracy(scores[chosen] >= 0.5, serves[chosen]))
        assert found["balanced_accuracy"][number] == pytest.approx(balanced_accuracy(scores[chosen] >= 0.5, serves[chosen]))
    assert resampling.mean(np.array([1.0, 2.0, 3.0, 4.0, 8.0]), episode).tolist() == pytest.approx([18 / 5, 3 / 2, 5.0, 18 / 5])
    ranks = resampling.rank_correlation(np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([0.2, 0.1, 0.3, 0.5, 0.4]), episode)
    assert ranks.tolist() == pytest.approx([0.8, -1.0, 0.5, 0.8])


def test_resamples_tell_the_smallest_scores_apart() -> None:
    random = np.random.default_rng(4)
    scores, episode = 1e-7 * random.integers(1, 30, 60).astype(np.float64), np.repeat(np.arange(6), 10)
    serves = random.random(60) < 3e5 * scores
    resampling = Resampling.of(6, resamples=100)
    found = resampling.agreement(scores, serves, episode)["auroc"]
    assert found[0] == pytest.approx(auroc(scores, serves))
    for times, value in zip(resampling.times[1:20], found[1:20], strict=True):
        assert value == pytest.approx(auroc(scores, serves, times[episode]))
    interval = estimate(found)
    assert interval is not None
    assert interval["low"] < interval["value"] < interval["high"]


def test_one_episode_has_no_interval_and_nothing_is_nothing() -> None:
    resampling = Resampling.of(3, resamples=20)
    found = resampling.agreement(np.array([0.9, 0.2]), np.array([True, False]), np.array([1, 1]))
    assert estimate(found["auroc"]) == {"value": 1.0, "low": None, "high": None}
    nothing = resampling.agreement(np.zeros(0), np.zeros(0, np.bool_), np.zeros(0, np.int64))
    assert [estimate(values) for values in nothing.values()] == [None, None, None]
    assert estimate(resampling.mean(np.zeros(0), np.zeros(0, np.int64))) is None
    half = Resampling.of(2, resamples=200).mean(np.array([0.0, 1.0]), np.array([0, 1]))
    assert estimate(half) == {"value": 0.5, "low": 0.0, "high": 1.0}


def test_equal_numbers_of_episodes_are_drawn_alike() -> None:
    assert np.array_equal(Resampling.of(5, resamples=30).times, Resampling.of(5, resamples=30).times)
    assert (Resampling.of(5, resamples=30).times.sum(axis=1) == 5).all()


def test_calibration_by_hand() -> None:
    found = calibration(np.array([0.05, 0.02, 0.95, 1.0]), np.array([False, True, True, True]))
    assert found["tenths"] == [
        {"count": 2, "said": pytest.approx(0.035), "true": 0.5},
        {"count": 2, "said": pytest.approx(0.975), "true": 1.0},
    ]
    assert found["gap"] == pytest.approx((2 * 0.465 + 2 * 0.025) / 4)


def test_classes_keep_the_best_one_for_what_is_fulfilled() -> None:
    assert classes_of(np.array([0.0, 0.24, 0.25, 0.5, 0.89, 0.9, 1.0]), 4).tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert classes_of(np.array([0.1, 0.89, 0.95]), 2).tolist() == [0, 0, 1]


def test_preferences_by_hand() -> None:
    true, said = np.array([0.0, 0.05, 0.35, 1.0]), np.array([0.2, 0.1, 0.1, 0.9])
    pairs = np.array([[0, 1], [1, 2], [0, 2], [3, 0], [2, 2]])
    rows = preference_rows(true, said, pairs, np.zeros(4, np.int64), Resampling.of(1))
    assert [row["pairs"] for row in rows] == [1, 0, 2, 1, 4]
    # 0.05 over 0: said the other way round; 0.05 to 0.35: called equal; 0 to 0.35: the other way round; 0 to 1: right.
    assert rows[0]["accuracy"]["value"] == 0.0
    assert rows[1]["accuracy"] is None
    assert rows[2]["accuracy"]["value"] == pytest.approx(0.25)
    assert rows[3]["accuracy"]["value"] == 1.0
    assert rows[4]["accuracy"]["value"] == pytest.approx((0 + 0.5 + 0 + 1) / 4)


def test_pairs_stay_within_an_episode() -> None:
    episode = np.array([0, 0, 0, 1, 1, 2])
    pairs = pairs_of(episode, np.array([True, True, False, True, True, True]), seed=1)
    assert {frozenset(pair) for pair in pairs.tolist()} == {frozenset({0, 1}), frozenset({3, 4})}
    assert pairs_of(episode, np.zeros(6, np.bool_), seed=1).shape == (0, 2)


# --- transitions and tables -----------------------------------------------------------------------------------------------------------


def test_transitions_know_their_neighbours_across_windows() -> None:
    go, lift = "go to the red ball", "pick up the red key"
    windows = [
        window(7, [0, 2], [1, -1], [0, 0, 1], (go, lift)),
        window(7, [3], [np.nan], [1, 2], (go, lift)),
        window(9, [2], [0], [0, 0], (lift,)),
    ]
    found = transitions_of(windows)
    assert found.context.tolist() == [[-1, 0, 2], [0, 2, 3], [2, 3, -1], [-1, 2, -1]]
    assert found.action.tolist() == [0, 2, 3, 2]
    assert found.episode.tolist() == [0, 0, 0, 1]
    assert found.known.tolist() == [True, True, False, True]
    assert found.serves.tolist() == [True, False, False, False]
    assert found.kind.tolist() == ["go to", "go to", "pick up", "pick up"]
    with pytest.raises(UsageError, match="no windows"):
        transitions_of([])


def test_blind_tables_by_hand() -> None:
    def transitions(contexts: list[list[int]], contribution: list[float]) -> Transitions:
        context = np.array(contexts)
        return Transitions(
            np.zeros(len(context), np.int64), context[:, 1], context, np.array(contribution), np.array(["go to"] * len(context))
        )

    learned = transitions([[-1, 2, 0], [0, 2, 0], [0, 2, 0], [1, 0, 1], [1, 0, 1]], [1, 1, 0, -1, np.nan])
    asked = transitions([[0, 2, 0], [5, 2, 5], [1, 0, 1], [1, 6, 1]], [0, 0, 0, 0])
    single, triple = blind_tables(learned, asked)
    assert single.tolist() == pytest.approx([2 / 3, 2 / 3, 0.0, 0.5])  # an action never met: the share of all that is known
    assert triple.tolist() == pytest.approx([0.5, 2 / 3, 0.0, 0.5])


def test_actions_around_end_with_the_episode_or_the_sub_task() -> None:
    go, lift = "go to the red ball", "pick up the red key"
    windows = [
        window(7, [0, 2], [1, -1], [0, 0, 1], (go, lift)),
        window(7, [3], [1], [1, 2], (go, lift)),
        window(9, [2], [0], [0, 0], (lift,)),
    ]
    before, after = [7] * 6, [8] * 6
    whole = actions_around(windows, ends=False)
    assert whole[0].tolist() == [*before, 7, 7, 0, 2, 3, *after]
    assert whole[2].tolist() == [*before, 0, 2, 3, 8, 8, *after]
    assert whole[3].tolist() == [*before, 7, 7, 2, 8, 8, *after]
    parts = actions_around(windows, ends=True)
    assert parts[0].tolist() == [*before, 7, 7, 0, 2, 8, *after]
    assert parts[1].tolist() == [*before, 7, 0, 2, 8, 8, *after]
    assert parts[2].tolist() == [*before, 7, 7, 3, 8, 8, *after]


def test_actions_alone_are_learned_from() -> None:
    random = np.random.default_rng(0)
    around, asked = random.integers(0, 7, (4000, 17)), random.integers(0, 7, (2000, 17))
    did = np.where(around[:, 4] == 2, 1.0, 0.0)  # what no table of three actions can know
    did[:500] = np.nan
    guesses = guess_from_actions(around, did, asked, seed=1)
    assert auroc(guesses, asked[:, 4] == 2) > 0.99
    assert np.array_equal(guesses, guess_from_actions(around, did, asked, seed=1))
    assert not guess_from_actions(around, np.full(4000, np.nan), asked, seed=1).any()


@pytest.mark.parametrize("kind", WORDINGS)
def test_every_wording_is_understood(kind: Any) -> None:
    beside = Thing("green", "key") if kind == "put next to" else None
    clause = Clause(kind, Thing("red", "ball"), beside)
    for template in WORDINGS[kind]:
        assert clause_of(template.format(target=clause.target, beside=clause.beside)) == clause
    with pytest.raises(ValueError, match="none of the world's sub-tasks"):
        clause_of("throw the red ball")


# --- looks ----------------------------------------------------------------------------------------------------------------------------


def test_a_picture_shows_the_map() -> None:
    random = np.random.default_rng(3)
    for seed, level in ((1, "two-rooms"), (2, "four-rooms")):
        world = World(level, seed, 3)
        for _ in range(60):
            good = [] if world.done else world.best_actions()
            world.step(int(good[0]) if good and random.random() < 0.7 else int(random.integers(7)))
            if world.done:
                break
            found, pose = scene_of(world.draw(("full",))["full"])
            assert (found, pose) == (world.map, world.pose)


def test_full_information_says_what_the_simulator_says() -> None:
    network, windows = network_of(), some_windows()
    for each in windows:
        exact = full_information(each, looks_at(network, each.pictures, each.phrases))
        for step, (action, due) in enumerate(zip(each.actions, each.subtask[:-1], strict=True)):
            logits = exact.classes[due, step, action]
            known = each.contribution[step]
            assert (logits.max() == 0) == np.isnan(known)
            if not np.isnan(known):
                assert logits.argmax() == known + 1
            assert (exact.completes[due, step, action] > 0) == (each.subtask[step + 1] > due)


def test_what_actions_do_for_the_own_words_is_what_was_recorded() -> None:
    windows = some_windows()
    for each in windows:
        assert contribution_to(each, each.phrases) == pytest.approx(each.contribution, nan_ok=True)


def test_what_actions_do_for_other_words_is_what_the_simulator_says() -> None:
    windows = [each for each in some_windows() if each.episode == 1]
    level, length, seed = windows[0].task.split("/")
    world = World(level, int(seed), int(length))
    thing = next(thing for thing in sorted(world.map.places) if all(str(thing) not in named(phrase) for phrase in windows[0].phrases))
    goal, finished, seen = Clause("go to", thing), 0, 0
    for each in windows:
        found = contribution_to(each, [f"walk to the {thing}"] * len(each.phrases))
        for step, value in enumerate(found):
            if step and each.subtask[step] > each.subtask[step - 1]:
                finished = 0  # the words of the next sub-task's part
            before = world.field(goal)[world.pose]
            world.step(int(each.actions[step]))
            after = world.field(goal)[world.pose]
            assert value == pytest.approx(np.nan if finished else contribution(before, after), nan_ok=True)
            finished += after == 0
            seen += not np.isnan(value)
        finished = 0
    assert seen > 10
    assert world.done
    absent = contribution_to(windows[0], ["pick up the purple box"] * len(windows[0].phrases))
    assert np.isnan(absent).all()


def test_reading_by_hand() -> None:
    count = 8
    transitions = Transitions(
        np.arange(count) // 2, np.full(count, 2), np.full((count, 3), 2), np.array([1, 1, -1, 0, 1, -1, 1, np.nan]),
        np.full(count, "go to"),
    )  # fmt: skip
    truth = np.array([-1, 1, 1, 0, 0, 1, np.nan, 1])
    measured = evaluation._Measured(transitions, Resampling.of(4, resamples=20))
    table = np.linspace(0, 1, count)

    def verdicts(serves: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        share = np.array(serves)
        return np.stack([1 - share, np.zeros(count), share], 1)

    right, wrong = verdicts([0.9, 0.8, 0.1, 0.2, 0.7, 0.0, 0.9, 0.5]), verdicts([0.1, 0.8, 0.9, 0.2, 0.3, 0.95, 0.5, 0.5])
    found = measured.reading(right, wrong, table, truth)
    assert (found["transitions"], found["differ"]) == (6, 4)
    assert (found["serving"], found["serving_wrong"]) == (0.5, 0.5)
    assert found["auroc"]["value"] == 1.0
    assert found["differ_auroc"]["value"] == found["differ_auroc_wrong"]["value"] == found["follows"]["value"] == 1.0
    assert found["score_change"]["value"] == pytest.approx((wrong - right)[:6, 2].mean() * 10)
    assert found["score_change_known"]["value"] == pytest.approx((-10 + 0 + 10 + 0 - 7 + 10) / 6)
    deaf = measured.reading(right, right, table, truth)  # one that does not read
    assert deaf["differ_auroc"]["value"] + deaf["differ_auroc_wrong"]["value"] == pytest.approx(1.0)
    assert deaf["follows"]["value"] == 0.5
    nothing = measured.reading(right, wrong, table, np.full(count, np.nan))
    assert (nothing["transitions"], nothing["auroc"], nothing["follows"], nothing["serving"]) == (0, None, None, None)


def test_parts_and_backwards_are_what_looking_again_gives() -> None:
    network, windows = network_of(), some_windows()[:6]
    looks = [looks_at(network, each.pictures, each.phrases) for each in windows]
    parts, whole = [], []
    for each in windows:
        for clause in sorted(set(each.subtask[:-1].tolist())):
            steps = np.flatnonzero(each.subtask[:-1] == clause)
            start, stop = int(steps[0]), int(steps[-1]) + 1
            seen = looks_at(network, each.pictures[start : stop + 1], each.phrases[clause : clause + 1])
            parts.append(network.judge(seen, each.actions[start:stop].tolist()).verdict)
        backwards = looks_at(network, each.pictures[::-1], each.phrases)
        whole.append(network.judge(backwards, each.actions[::-1].tolist()).verdict[::-1])
    assert verdicts_on_parts(network, windows, looks) == pytest.approx(np.concatenate(parts), abs=1e-5)
    assert verdicts_on_windows(network, windows, looks, backwards=True) == pytest.approx(np.concatenate(whole), abs=1e-5)
    assert verdicts_on_parts(network, windows, looks, backwards=True).shape == np.concatenate(parts).shape


def test_controls_are_of_other_tasks() -> None:
    windows = some_windows()
    for each, pictures in zip(windows, other_pictures(windows, seed=2), strict=True):
        assert pictures.shape == each.pictures.shape
        assert not np.array_equal(pictures, each.pictures)
    wrong = wrong_words(windows, seed=2)
    shown = 0
    for each, phrases in zip(windows, wrong.phrases, strict=True):
        for right, other in zip(each.phrases, phrases, strict=True):
            assert not set(named(right)) & set(named(other))
            assert other not in each.phrases
            shown += set(named(other)) <= things_in(each.pictures[0])
    assert wrong.in_the_picture == pytest.approx(shown / sum(len(each.phrases) for each in windows))
    with pytest.raises(UsageError, match="no other episode"):
        other_pictures([windows[0]], seed=2)
    with pytest.raises(UsageError, match="no other task names"):
        wrong_words([replace(windows[0], phrases=windows[0].phrases[:1])], seed=2)


def test_distributions_have_names_of_their_own_and_a_partner_where_they_are_compared() -> None:
    names = {each.name: each for each in DISTRIBUTIONS}
    assert len(names) == len(DISTRIBUTIONS)
    for each in DISTRIBUTIONS:
        if each.like:
            assert replace(each, name="", words="", held_out_wording=False, like="") == replace(names[each.like], name="", words="")


# --- all of it ------------------------------------------------------------------------------------------------------------------------


def nothing(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def test_a_distribution_and_the_card_made_from_it(tmp_path: Path) -> None:
    weights = weights_in(tmp_path)
    job = Job(weights=weights, distribution=SMALL, tasks=4, seed=5, blind_seed=6, resamples=20)
    tried = try_distribution(job, nothing)
    record = json.loads(json.dumps(tried.record, allow_nan=False))
    assert record == json.loads(json.dumps(try_distribution(job, nothing).record))
    by_rater = {row["rater"]: row for row in record["rows"]}
    windows = some_windows()
    known = np.concatenate([each.contribution for each in windows])
    assert record["transitions"] == int((~np.isnan(known)).sum())
    assert record["serving"] == pytest.approx(float((known > 0).sum() / (~np.isnan(known)).sum()))
    network = EmbeddedNetwork.load(weights)
    scores = verdicts_on_windows(network, windows, [looks_at(network, each.pictures, each.phrases) for each in windows])[:, 2]
    there = ~np.isnan(known)
    assert by_rater["embedded, whole chain"]["auroc"]["value"] == pytest.approx(auroc(scores[there], known[there] > 0))
    changes = {(row["words"], row["control"]): row for row in record["controls"]["rows"]}
    one = changes["whole chain", "backwards in time"]
    before = by_rater["embedded, whole chain"]["auroc"]["value"]
    assert one["auroc_change"]["value"] == pytest.approx(one["auroc"]["value"] - before)
    blind = by_rater["previous, this and next action"]["auroc"]["value"]
    assert one["auroc_above_table"]["value"] == pytest.approx(one["auroc"]["value"] - blind)
    assert {ALL_ACTIONS, ALL_ACTIONS_AND_ENDS} <= by_rater.keys()
    assert record["controls"]["reading"]["transitions"] > 20
    turning = np.concatenate([np.isin(each.actions, (0, 1)) for each in windows]) & there
    by_action = {(row["action"], row["rater"]): row for row in record["by_action"]}
    one = by_action["turning", "embedded, whole chain"]
    assert one["transitions"] == turning.sum()
    assert one["auroc"]["value"] == pytest.approx(auroc(scores[turning], known[turning] > 0))
    assert one["serving"] == pytest.approx((known[turning] > 0).mean())
    assert {row["kind"] for row in record["by_kind"]} == set(transitions_of(windows).kind.tolist())

    card = {
        "name": "untrained-1", "what": "A rater.", "not": ["Not trained."], "limits": ["All."], "date": "2026-01-01", "package": "1",
        "command": "", "libraries": {"numpy": "2"}, "machine": "a machine", "seed": 0, "seeds": {"looks": 1}, "threads": 1,
        "sizes": {"layouts": 1}, "network": {"parameters": 1234, "channels": 6, "blocks": 2, "bytes": 5000, "digest": "s256:0"},
        "training": {"looks": {"dense": 1.0}}, "seconds": {"data": 1.0, "total": 120.0}, "evaluation": [record],
        "engine": {"rows": [], "equal_without_truth": True},
        "speed": [{"level": "small", "clauses": 1, "transitions": 8, "windows_per_second": 99.6}],
    }  # fmt: skip
    page = card_of.page(card)
    for table in card_of.tables(card).values():
        assert table in page
    assert "| small | 1 | 8 | 100 |" in page
    assert card_of.value_of("table speed", card) == card_of.tables(card)["speed"]
    assert card_of.value_of("network/parameters", card) == "1,234"
    assert card_of.value_of("minutes", card) == "2"
    assert card_of.value_of("row embedded, whole chain/auroc/small", card).startswith(f"{before:.3f} [")
    for unknown in ("table nothing", "network/nothing", "row nobody/auroc/small", "minutes/more", "name/more"):
        with pytest.raises(KeyError):
            card_of.value_of(unknown, card)


def test_known_tasks_are_left_out(tmp_path: Path) -> None:
    first = some_windows()[0].task
    job = Job(weights=weights_in(tmp_path), distribution=SMALL, tasks=4, seed=5, blind_seed=6, known_tasks=frozenset({first}), resamples=2)
    assert try_distribution(job, nothing).record["episodes"] == 3


def test_speed_is_told_for_every_level_and_length(tmp_path: Path) -> None:
    rows = evaluation.speed(SpeedJob(weights=weights_in(tmp_path), seed=1, seconds=0.01), nothing)
    assert {row["level"] for row in rows} == {"small", "one-room", "two-rooms", "four-rooms"}
    assert {row["clauses"] for row in rows} == {1, 2, 3}


def test_a_copy_without_ground_truth_holds_the_rest(tmp_path: Path) -> None:
    collect_babyai(Collect(out=tmp_path / "data", level="small", tasks=2, demonstrations=1))
    before = open_dataset(tmp_path / "data")
    after = open_dataset(without_ground_truth(before, tmp_path / "bare"))
    assert (len(after), after.views, after.action_names, after.environment) == (2, before.views, before.action_names, before.environment)
    for index in range(len(before)):
        assert before.privileged(index)
        assert not after.privileged(index)
        assert not after.episode(index).metadata
        assert after.episode(index).annotations == before.episode(index).annotations
        assert np.array_equal(after.actions(index), before.actions(index))
        length = before.episode(index).length
        assert np.array_equal(after.frames(index, "full", 0, length + 1), before.frames(index, "full", 0, length + 1))


def test_through_the_engine_labels_need_no_ground_truth(tmp_path: Path) -> None:
    job = EngineJob(weights=weights_in(tmp_path), folder=tmp_path, tasks=1, seed=3, methods=("rg-vlm",))
    found = through_the_engine(job, nothing)
    assert found["equal_without_truth"] is True
    assert [row["words"] for row in found["rows"]] == ["whole chain", "sub-task's words"]
    assert all(row["coverage"] == 1.0 for row in found["rows"])


@pytest.mark.slow
def test_through_the_engine_in_all_ways(tmp_path: Path) -> None:
    job = EngineJob(weights=weights_in(tmp_path), folder=tmp_path, tasks=2, seed=3, judged=12)
    found = through_the_engine(job, nothing)
    assert found["equal_without_truth"] is True
    assert found["known_tasks"] == 0
    assert [row["method"] for row in found["rows"]] == ["rg-vlm", "rg-vlm", "rating", "preference"]
    assert all(row["coverage"] > 0.8 for row in found["rows"])
    assert json.dumps(found, allow_nan=False)
    assert "rating, whole chain" in card_of.engine_table(found["rows"])
