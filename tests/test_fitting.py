"""Fitting reward models: what is learned, from what, when it stops, and that every setting acts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from guerdon.errors import RewardError, RewardModelError, UsageError
from guerdon.metrics import spearman
from guerdon.rewards._ensemble import Ensemble, EnsembleModel
from guerdon.rewards.encoders import Architecture
from guerdon.rewards.fitting import Config, Fitted, Sides, _Fitter, fit, load_model, model_class, split
from guerdon.rewards.rating_model import class_boundaries
from guerdon.rewards.steps import Judgements, Look, StepArrays, gather
from tests.reward_data import SEES, judged, of_pictures, of_vectors, true_reward

SMALL = Config(width=32, members=2, updates=60, batch=32, learning_rate=3e-3)


def agreement(model: EnsembleModel) -> float:
    """Spearman's correlation of the learned with the true reward over transitions that nobody judged."""
    vector = np.random.default_rng(99).normal(size=(1500, 4)).astype(np.float32)
    learned, _ = model.score(gather(of_vectors(vector), np.arange(len(vector))))
    return spearman(learned.numpy(), true_reward(vector))


def weights(fitted: Fitted) -> list[torch.Tensor]:
    return list(fitted.model.ensemble.parameters())


def equal(first: Fitted, second: Fitted) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def scores(fitted: Fitted, arrays: StepArrays, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What each member says, (members, N)."""
    found = []
    for member in range(fitted.model.members):
        alone = replace_members(fitted.model, member)
        found.append(alone.score(gather(arrays, rows))[0].numpy())
    return np.stack(found)


def replace_members(model: EnsembleModel, member: int) -> EnsembleModel:
    alone = Ensemble(model.look, model.ensemble.architecture, 1, seed=0)
    alone.load_state_dict(
        {name.replace(f"members.{member}.", "members.0."): tensor for name, tensor in model.ensemble.state_dict().items()
         if name.startswith(f"members.{member}.") or name in ("mean", "deviation")}
        | {name: getattr(model.ensemble, name)[member : member + 1] for name in ("shift", "stretch")}
    )  # fmt: skip
    return model_class("rating")(alone, levels=model.levels)


# --- the size of rewards ------------------------------------------------------------------------------------------------------------


def test_ratings_of_pictures_use_the_whole_scale_whatever_the_networks_say(tmp_path: Path) -> None:
    judgements = judged("rating", 60)
    brief = replace(SMALL, updates=2, least_updates=1, learning_rate=1e-4, held_out=0)
    raw, stretched = fit(judgements, SEES, replace(brief, size="raw"), seed=0), fit(judgements, SEES, brief, seed=0, out=tmp_path)
    rows = np.arange(len(judgements.steps))
    assert equal(raw, stretched), "the networks are the same"
    before, after = (scores(each, judgements.steps, rows) for each in (raw, stretched))
    assert np.ptp(before, axis=1).max() < 1.0
    np.testing.assert_allclose(after.min(1), -1.0, atol=1e-4)
    np.testing.assert_allclose(after.max(1), 1.0, atol=1e-4)
    np.testing.assert_array_equal(np.argsort(before, axis=1, kind="stable"), np.argsort(after, axis=1, kind="stable"))
    again = load_model(tmp_path)
    assert torch.equal(again.score(gather(judgements.steps, rows))[0], stretched.model.score(gather(judgements.steps, rows))[0])


def test_what_is_held_out_decides_nothing_about_the_scale() -> None:
    """A held-out picture that is far better than all others gets the largest reward, and the others keep theirs."""
    config = replace(SMALL, updates=2, least_updates=1, held_out=0.2)
    judgements = judged("rating", 60)
    fitted = fit(judgements, SEES, config, seed=0)
    training, held_out, _ = split(judgements, 0.2, 0)
    of_training, of_held_out = (scores(fitted, judgements.steps, rows) for rows in (training, held_out))
    np.testing.assert_allclose([of_training.min(1), of_training.max(1)], [[-1.0] * 2, [1.0] * 2], atol=1e-5)
    vector = judgements.steps.vector.copy()
    vector[held_out] *= 100
    far = replace(judgements, steps=replace(judgements.steps, vector=vector))
    of_far = fit(far, SEES, config, seed=0)
    assert torch.equal(of_far.model.ensemble.stretch, fitted.model.ensemble.stretch)
    np.testing.assert_array_equal(scores(of_far, far.steps, training), of_training)
    of_the_far = scores(of_far, far.steps, held_out)
    assert np.abs(of_the_far).max() == 1.0, "rewards stay on the scale"
    assert np.abs(of_the_far).mean() > np.abs(of_held_out).mean()


def test_what_is_measured_is_the_reward_that_is_given() -> None:
    judgements = judged("rating", 60, spoil=spoilt)
    fitted = fit(judgements, SEES, replace(SMALL, updates=20, learning_rate=1e-3, held_out=0), seed=0)
    low, high = fitted.model.ensemble.stretch.aminmax()
    assert high > 1.05 * low, "the members are stretched differently, which decides whose word counts"
    given = fitted.model.score(gather(judgements.steps, np.arange(60)))[0].double().numpy()
    ends = class_boundaries(given, np.eye(3)[judgements.target.astype(int)])
    right = np.searchsorted(ends, given, side="right") == judgements.target
    assert fitted.results["training"]["accuracy"] == right.mean()
    of_each = [right[judgements.target == level].mean() for level in range(3)]
    assert fitted.results["training"]["balanced_accuracy"] == pytest.approx(np.mean(of_each))


@pytest.mark.parametrize("shift", [True, False])
def test_rounding_errors_are_not_stretched_into_a_reward(shift: bool) -> None:
    judgements = judged("rating", 60)
    model = fit(judgements, SEES, replace(SMALL, updates=2, held_out=0, members=2, size="raw"), seed=0).model
    with torch.no_grad():
        silent = model.ensemble.members[0].last  # says 0.604368 of everything, but for the last digit
        silent.weight.mul_(5e-7 / silent.weight.abs().max())
        silent.bias.fill_(0.7)
    rows = np.arange(60)
    said = replace_members(model, 0).score(gather(judgements.steps, rows))[0].numpy()
    assert 0 < np.ptp(said) < 1e-6
    model.stretch_to_scale(judgements.steps, rows, shift=shift)
    silent_one, other = (replace_members(model, member).score(gather(judgements.steps, rows))[0].numpy() for member in range(2))
    np.testing.assert_array_equal(silent_one, said)
    assert np.abs(other).max() == pytest.approx(1.0, abs=1e-5)


def test_measuring_some_labels_leaves_out_no_class() -> None:
    def rare(values: Any, _random: Any) -> Any:
        return np.where(np.arange(len(values)) == 777, 2, np.arange(len(values)) % 2).astype(np.float32)

    ratings = judged("rating", 2000, lengths=(40, 40), spoil=rare)
    for seed in range(5):
        fitting = _Fitter(fitter(ratings, SMALL).model, ratings, replace(SMALL, held_out=0), seed, None, None)
        measured = fitting._some(fitting.training, 2048, np.random.default_rng(seed))
        assert 777 in measured
        assert len(measured) == len(set(measured)) < 80


def test_where_lengths_differ_zero_stays_zero() -> None:
    judgements = judged("rating", 40, lengths=(2, 9))
    brief = replace(SMALL, updates=4, least_updates=1, held_out=0)
    raw, stretched = fit(judgements, SEES, replace(brief, size="raw"), seed=0), fit(judgements, SEES, brief, seed=0)
    rows = np.unique(judgements.members)
    before, after = (scores(each, judgements.steps, rows) for each in (raw, stretched))
    np.testing.assert_allclose(after, before / np.abs(before).max(1, keepdims=True), atol=1e-5)


def test_preferences_have_a_size_of_their_own() -> None:
    assert torch.equal(fit(judged("preference", 40), SEES, SMALL, seed=0).model.ensemble.stretch, torch.ones(2))


def test_it_does_not_stop_before_enough_updates() -> None:
    easy = judged("rating", 40)
    fitted = fit(easy, SEES, replace(SMALL, updates=400, least_updates=60, target=0.5), seed=0)
    assert fitted.results["stopped"] == "target"
    assert fitted.results["updates"] >= 60


# --- what is learned ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rating", "preference", "score"])
def test_few_labels_can_be_learned_by_heart(kind: Any) -> None:
    few = judged(kind, 24)
    fitted = fit(few, SEES, replace(SMALL, updates=150, held_out=0, target=1.0, patience=99, loss="ce"), seed=0)
    found = fitted.results["training"]
    assert found["error"] < 0.05 if kind == "score" else found["accuracy"] == 1.0


def test_pictures_can_be_learned_by_heart() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    few = Judgements("rating", 2, of_pictures(frames), np.arange(13), np.arange(12), np.arange(12, dtype=np.float32) % 2, np.arange(12))
    config = Config(members=1, channels=8, updates=40, held_out=0, learning_rate=3e-3, loss="ce", patience=99)
    fitted = fit(few, Look({"full": (16, 16)}), config, seed=0)
    assert fitted.results["encoder"] == "residual"
    assert fitted.results["training"]["accuracy"] == 1.0


@pytest.mark.parametrize("loss", ["mae", "ce"])
def test_ratings_of_whole_episodes_give_back_the_reward_of_each_step(loss: Any) -> None:
    episodes = judged("rating", 160, lengths=(4, 16))
    fitted = fit(episodes, SEES, replace(SMALL, updates=200, loss=loss, width=48), seed=0)
    assert agreement(fitted.model) > 0.8


def test_preferences_of_segments_give_back_the_reward_of_each_step() -> None:
    fitted = fit(judged("preference", 400, lengths=(3, 8)), SEES, replace(SMALL, updates=120, loss="ce"), seed=0)
    assert agreement(fitted.model) > 0.8


def test_scores_give_back_the_reward() -> None:
    assert agreement(fit(judged("score"), SEES, SMALL, seed=0).model) > 0.8


def test_a_score_of_a_segment_is_that_of_its_mean() -> None:
    fitted = fit(judged("score", 300, lengths=(1, 6)), SEES, replace(SMALL, updates=150), seed=0)
    assert fitted.results["held_out"]["error"] < 0.1
    assert agreement(fitted.model) > 0.8


def test_the_wrong_way_round_is_not_what_is_learned() -> None:
    def upside_down(values: Any, _random: Any) -> Any:
        return 2 - values

    assert agreement(fit(judged("rating", spoil=upside_down), SEES, SMALL, seed=0).model) < -0.8


def test_shares_of_classes_can_be_learned_from() -> None:
    ratings = judged("rating")
    shares = 0.8 * np.eye(3, dtype=np.float32)[ratings.target.astype(int)] + np.float32(0.2 / 3)
    fitted = fit(replace(ratings, target=shares), SEES, SMALL, seed=0)
    assert agreement(fitted.model) > 0.8


@pytest.mark.parametrize("encoder", ["vector", "residual"])
def test_what_an_instruction_asks_for_is_learned(encoder: Any) -> None:
    random = np.random.default_rng(0)
    place, asked = random.integers(0, 2, (2, 200))  # where a bright bar is, and where it should be
    frames = np.zeros((200, 16, 16, 3), np.uint8)
    for row, where in enumerate(place):
        frames[row, :, 10 * where : 10 * where + 5] = 255
    nothing = np.zeros((200, 0), np.float32)
    arrays = StepArrays(
        {"full": frames} if encoder == "residual" else {}, np.arange(200)[:, None],
        nothing if encoder == "residual" else place[:, None].astype(np.float32), nothing, asked, ("go left", "go right"),
    )  # fmt: skip
    words = ("go", "left", "right")
    look = Look({"full": (16, 16)}, words=words) if encoder == "residual" else Look(vectors={"place": 1}, words=words)
    target = (place == asked).astype(np.float32)
    ratings = Judgements("rating", 2, arrays, np.arange(201), np.arange(200), target, np.arange(200))
    fitted = fit(ratings, look, Config(width=16, channels=8, members=1, learning_rate=1e-2, updates=100, batch=50, loss="ce"), seed=0)
    assert fitted.results["held_out"]["accuracy"] > 0.9


def test_the_right_action_is_learned() -> None:
    random = np.random.default_rng(0)
    state, action = random.integers(0, 2, (2, 200))
    instruction = np.zeros(200, np.int64)
    arrays = StepArrays({}, np.zeros((200, 1), np.int64), state[:, None].astype(np.float32), action, instruction, ("",))
    scores = Judgements("score", 0, arrays, np.arange(201), np.arange(200), (state == action).astype(np.float32), np.arange(200))
    look = Look(vectors={"state": 1}, action_names=("left", "right"))
    assert fit(scores, look, replace(SMALL, updates=200), seed=0).results["held_out"]["error"] < 0.1


# --- the gradient -------------------------------------------------------------------------------------------------------------------


def fitter(judgements: Judgements, config: Config) -> _Fitter:
    ensemble = Ensemble(SEES, Architecture("vector", config.width), config.members, seed=0)
    return _Fitter(model_class(judgements.kind)(ensemble, levels=judgements.levels), judgements, config, 0, None, None)


def gradient(judgements: Judgements, config: Config) -> list[torch.Tensor]:
    one = fitter(judgements, config)
    assert one._learn(0, np.arange(len(one.training)))
    return [parameter.grad for parameter in one.model.ensemble.members[0].parameters() if parameter.grad is not None]


@pytest.mark.parametrize("kind", ["rating", "preference", "score"])
def test_long_episodes_in_pieces_give_the_same_gradient(kind: Any) -> None:
    episodes = judged(kind, 20, lengths=(1, 60))
    at_once, in_pieces = (gradient(episodes, replace(SMALL, max_steps=steps)) for steps in (1024, 1))
    assert len(episodes.members) > 10 * 16  # pieces of 16 transitions
    assert any(bool(part.any()) for part in at_once)
    for ours, theirs in zip(at_once, in_pieces, strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["rating", "score"])
def test_items_of_any_length_share_a_batch(kind: Any) -> None:
    episodes = judged(kind, 12, lengths=(1, 9))
    model = fitter(episodes, SMALL).model
    together = model.predictions(episodes.steps, episodes.offsets, episodes.members)
    for item, value in enumerate(together):
        rows = episodes.members[episodes.offsets[item] : episodes.offsets[item + 1]]
        steps, _ = model.score(gather(episodes.steps, rows))
        assert value == pytest.approx(float(steps.mean() if kind == "score" else steps.sum()), abs=1e-6)


def test_a_transition_in_two_items_counts_in_both() -> None:
    episodes = judged("score", 2, lengths=(2, 2))
    model = fitter(episodes, SMALL).model
    values = model.score(gather(episodes.steps, np.arange(4)))[0].numpy()
    shared = model.predictions(episodes.steps, np.array([0, 2, 4]), np.array([0, 1, 1, 2]))
    assert shared == pytest.approx([(values[0] + values[1]) / 2, (values[1] + values[2]) / 2], abs=1e-6)


def test_rare_classes_weigh_as_much_as_they_are_rare_in_what_is_shown() -> None:
    def rare(values: Any, _random: Any) -> Any:
        return (np.arange(len(values)) % 10 == 0).astype(np.float32)

    ratings = judged("rating", 100, levels=2, spoil=rare)
    config = replace(SMALL, held_out=0, sampler="stratified")
    found = fitter(ratings, config).weights
    assert found is not None
    assert sorted(set(found.tolist())) == [1.0, 9.0]
    assert fitter(ratings, replace(config, weights="none")).weights is None
    # Batches of four bring each of the ten rare ones more often, so that it need not weigh as much.
    balanced = fitter(ratings, replace(config, sampler="balanced", batch=4)).weights
    assert balanced is not None
    assert 1.0 < float(balanced.max()) < 9.0


# --- the same again, and every setting acts -----------------------------------------------------------------------------------------


def spoilt(values: Any, random: Any) -> Any:
    return np.where(random.random(len(values)) < 0.2, random.integers(0, 3, len(values)), values).astype(np.float32)


SHORT = replace(SMALL, updates=6, members=1, width=8, target=1.0, patience=99)


def test_a_handful_of_ratings_does_not_outweigh_the_others() -> None:
    def rare(values: Any, random: Any) -> Any:
        return (np.arange(len(values)) < 9).astype(np.float32)

    judgements = judged("rating", 100, levels=2, spoil=rare)
    few = replace(SMALL, updates=8, held_out=0)
    alike = fit(judgements, SEES, replace(few, weights="none"), seed=0)
    assert equal(fit(judgements, SEES, few, seed=0), alike), "9 ratings of a class are fewer than 10"
    assert not equal(fit(judgements, SEES, replace(few, fewest_weighted=9), seed=0), alike)


def test_the_same_seed_gives_the_same_model() -> None:
    ratings = judged("rating", 100, spoil=spoilt)
    runs = [fit(ratings, SEES, SHORT, seed=seed) for seed in (0, 0, 1)]
    assert equal(runs[0], runs[1])
    assert runs[0].history == runs[1].history
    assert runs[0].results == runs[1].results
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "change",
    [
        {"updates": 9}, {"epochs": 1}, {"batch": 16}, {"learning_rate": 1e-3}, {"loss": "ce"}, {"boundary": "lower"}, {"sharpness": 10.0},
        {"weights": "none"}, {"weights": "reference"}, {"sampler": "uniform"}, {"sampler": "stratified"}, {"smoothing": 0.1},
        {"held_out": 0.3}, {"precision": "bfloat16"},
    ],
)  # fmt: skip
def test_every_setting_acts(change: dict[str, Any]) -> None:
    def unbalanced(values: Any, random: Any) -> Any:
        return np.minimum(spoilt(values, random), (random.random(len(values)) < 0.4) * 2).astype(np.float32)

    ratings = judged("rating", 100, spoil=unbalanced)
    config = replace(SHORT, weights="inverse")
    assert not equal(fit(ratings, SEES, config, seed=0), fit(ratings, SEES, replace(config, **change), seed=0))


@pytest.mark.parametrize("change", [{"noise": 0.2}, {"loss": "ce"}])
def test_settings_of_preferences_act(change: dict[str, Any]) -> None:
    pairs = judged("preference", 100)
    config = replace(SHORT, **({"loss": "ce"} if "noise" in change else {}))
    assert not equal(fit(pairs, SEES, config, seed=0), fit(pairs, SEES, replace(config, **change), seed=0))


def test_members_learn_in_orders_of_their_own() -> None:
    one = fitter(judged("rating"), SMALL)
    first, second = (np.concatenate(batches.epoch(0)) for batches in one.batches)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.concatenate(one.batches[0].epoch(1)))


# --- when it stops ------------------------------------------------------------------------------------------------------------------


def test_it_stops_at_the_target_but_not_before_the_second_pass() -> None:
    easy = judged("rating", 2000, levels=2)
    config = replace(SMALL, updates=400, target=0.8, learning_rate=1e-2)
    fitted = fit(easy, SEES, config, seed=0)
    assert fitted.results["stopped"] == "target"
    assert [line["epoch"] for line in fitted.history] == [1, 2]
    assert fitted.history[0]["held_out"]["balanced_accuracy"] > 0.8  # it was there already


def test_it_stops_when_nothing_improves_and_keeps_the_best_weights() -> None:
    def noise(values: Any, random: Any) -> Any:
        return random.integers(0, 3, len(values)).astype(np.float32)

    config = replace(SMALL, updates=1000, patience=2, least_updates=1)
    fitted = fit(judged("rating", spoil=noise), SEES, config, seed=0)
    raw = fit(judged("rating", spoil=noise), SEES, replace(config, size="raw"), seed=0)
    quality = [(line["held_out"]["balanced_accuracy"], -line["held_out"]["loss"]) for line in fitted.history]
    best = quality.index(max(quality))
    assert fitted.results["stopped"] == "patience"
    assert len(quality) == best + 1 + 2
    assert fitted.results["kept_epoch"] == fitted.history[best]["epoch"]
    assert fitted.results["updates"] == fitted.history[-1]["updates"] < 1000
    assert raw.results["held_out"] == raw.history[best]["held_out"]
    assert equal(raw, fitted)


def test_it_ends_after_so_many_epochs() -> None:
    fitted = fit(judged("rating", 100), SEES, replace(SHORT, epochs=3), seed=0)
    assert (fitted.results["epochs"], fitted.results["stopped"]) == (3, "updates")
    assert fitted.results["updates"] == 9  # three batches of the 90 labels that are not held out


def test_batches_of_one_class_are_left_out_and_counted() -> None:
    ratings = judged("rating", 60, levels=2)
    fitted = fit(ratings, SEES, replace(SHORT, sampler="uniform", batch=2, epochs=1, held_out=0), seed=0)
    assert 0 < fitted.results["skipped"] < 30
    assert fitted.results["updates"] == 30 - fitted.results["skipped"]
    with pytest.raises(RewardError, match=r"no batch of 1 holds ratings of two classes\. Use larger batches"):
        fit(ratings, SEES, replace(SHORT, sampler="uniform", batch=1, held_out=0), seed=0)


def test_a_last_pass_without_an_update_has_no_loss() -> None:
    """Two batches of two of four labels: now and then both are of one class."""
    four = judged("rating", 4, levels=2, seed=1)
    config = replace(SHORT, sampler="uniform", batch=2, held_out=0, least_updates=1, epochs=24)
    history = fit(four, SEES, config, seed=1).history
    assert [(line["epoch"], line["updates"]) for line in history] == [(12, 20), (23, 40), (24, 40)]
    assert [line["loss"] is None for line in history] == [line["contradicted"] is None for line in history] == [False, False, True]


# --- what is held out ---------------------------------------------------------------------------------------------------------------


def test_held_out_labels_share_no_episode_with_the_others() -> None:
    ratings = judged("rating", 400, groups=40)
    training, held_out, by = split(ratings, 0.1, seed=0)
    assert by == "episode"
    assert sorted([*training, *held_out]) == list(range(400))
    assert not set(ratings.group[training]) & set(ratings.group[held_out])
    assert 35 <= len(held_out) <= 60
    assert not np.array_equal(held_out, split(ratings, 0.1, seed=1)[1])


def test_with_few_episodes_single_labels_are_held_out() -> None:
    training, held_out, by = split(judged("rating", 100, groups=4), 0.1, seed=0)
    assert (by, len(training), len(held_out)) == ("label", 90, 10)


@pytest.mark.parametrize("groups", [4, 100])
def test_rare_classes_are_on_both_sides_where_that_is_possible(groups: int) -> None:
    def rare(values: Any, _random: Any) -> Any:
        values = np.zeros(len(values), np.float32)
        values[[3, 50]], values[70] = 1, 2  # two of one class, and a single one
        return values

    for seed in range(10):
        ratings = judged("rating", 200, groups=groups, spoil=rare)
        training, held_out, _ = split(ratings, 0.1, seed)
        assert set(ratings.target[training]) == {0, 1, 2}
        assert set(ratings.target[held_out]) == {0, 1}


def test_of_few_labels_none_are_held_out() -> None:
    fitted = fit(judged("rating", 40), SEES, SHORT, seed=0)
    assert fitted.results["held_out"] is None
    assert (fitted.results["held_out_labels"], fitted.results["held_out_by"]) == (0, None)
    assert all(line["held_out"] is None for line in fitted.history)


# --- going on from a model ----------------------------------------------------------------------------------------------------------


def first_of(judgements: Judgements, count: int) -> Judgements:
    """The first labels, and all transitions."""
    items = 2 * count if judgements.kind == "preference" else count
    return replace(judgements, offsets=judgements.offsets[: items + 1], target=judgements.target[:count], group=judgements.group[:count])


def in_turn(groups: int, count: int = 400) -> Judgements:
    """Ratings that come one after the other: those of an episode first, then those of the next."""
    return replace(judged("rating", count), group=np.arange(count) * groups // count)


def test_going_on_begins_with_the_weights_there_were() -> None:
    ratings = judged("rating", 200)
    start = fit(first_of(ratings, 100), SEES, SMALL, seed=0)
    before = [parameter.clone() for parameter in weights(start)]
    nothing = replace(SMALL, updates=1, epochs=1, learning_rate=1e-30, batch=256)
    fitted = fit(ratings, SEES, nothing, seed=7, start=start.model)
    for ours, theirs in zip(weights(fitted), before, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert fitted.model is not start.model
    assert all(torch.equal(a, b) for a, b in zip(weights(start), before, strict=True)), "the first model stays as it is"
    again = fit(ratings, SEES, SMALL, seed=7, start=start.model)
    assert equal(again, fit(ratings, SEES, SMALL, seed=7, start=start.model))
    assert not equal(again, fit(ratings, SEES, SMALL, seed=7))


def test_going_on_from_a_file_is_going_on_from_the_model(tmp_path: Path) -> None:
    ratings = judged("rating", 200, spoil=spoilt)
    start = fit(first_of(ratings, 100), SEES, SHORT, seed=0, out=tmp_path / "1")
    fitted = fit(ratings, SEES, SHORT, seed=1, out=tmp_path / "2", start=start.model)
    assert equal(fitted, fit(ratings, SEES, SHORT, seed=1, start=load_model(tmp_path / "1")))
    assert fitted.results["start"] == start.model.fingerprint
    assert load_model(tmp_path / "2").training["results"]["start"] == start.model.fingerprint
    assert "start" not in start.results


def test_what_a_model_learned_is_not_forgotten() -> None:
    ratings = judged("rating", 400)
    start = fit(first_of(ratings, 200), SEES, replace(SMALL, updates=200), seed=0)
    few = replace(SMALL, epochs=2, least_updates=1, batch=400)
    assert agreement(fit(ratings, SEES, few, seed=1, start=start.model).model) > agreement(fit(ratings, SEES, few, seed=1).model) + 0.1


def test_inputs_that_hardly_varied_at_first_are_standardised_anew() -> None:
    """A thing that nobody had moved: scaled by its noise, its place would come in at thousands of deviations."""
    ratings = judged("rating", 240)
    vector = ratings.steps.vector.copy()
    vector[:120, 0] = 1e-4 * np.random.default_rng(0).normal(size=120)
    ratings = replace(ratings, steps=replace(ratings.steps, vector=vector))
    start = fit(first_of(ratings, 120), SEES, replace(SMALL, updates=100), seed=0)
    assert float(start.model.ensemble.deviation[0]) < 2e-4
    fitted = fit(ratings, SEES, replace(SMALL, updates=200), seed=1, start=start.model)
    learned = np.unique(fitter(ratings, SMALL).training)
    assert float(fitted.model.ensemble.deviation[0]) == pytest.approx(vector[learned, 0].std(), rel=0.2)
    later = replace(first_of(ratings, 240), group=np.arange(240))
    assert fitted.results["training"]["balanced_accuracy"] > 0.7
    assert spearman(fitted.model.predictions(later.steps, later.offsets, later.members)[120:], true_reward(vector)[120:]) > 0.7


@pytest.mark.parametrize("groups", [80, 4])
def test_held_out_labels_stay_held_out_over_sessions(groups: int) -> None:
    ratings = in_turn(groups)
    learned: set[int] = set()
    held: set[int] = set()
    model = None
    for count in (30, 60, 100, 200, 400):
        model = fit(first_of(ratings, count), SEES, SHORT, seed=count, start=model).model
        now_held = set(model.training["held_out"])
        now_learned = set(range(count)) - now_held
        assert not learned & now_held, "a label that was learned from is held out"
        assert not held & now_learned, "a label that was held out is learned from"
        learned, held = now_learned, now_held
        if groups == 80:
            assert not set(ratings.group[sorted(held)]) & set(ratings.group[sorted(learned)])
            assert len(held) == 0 if count < 50 else 0.05 * count <= len(held) <= 0.2 * count


def test_further_labels_of_an_episode_join_those_there_are() -> None:
    """Episodes that are judged in both sessions: nothing about them may be on both sides."""
    ratings = replace(judged("rating", 400), group=np.arange(400) % 40)
    start = fit(first_of(ratings, 200), SEES, SHORT, seed=0)
    training, held_out, _ = split(ratings, 0.1, 5, Sides(200, np.array(start.model.training["held_out"])))
    assert set(held_out[held_out < 200]) == set(start.model.training["held_out"])
    assert set(ratings.group[held_out]) == set(ratings.group[start.model.training["held_out"]])
    assert not set(ratings.group[training]) & set(ratings.group[held_out])


def test_a_class_that_comes_later_is_on_both_sides() -> None:
    def late(values: Any, _random: Any) -> Any:
        return np.where(np.arange(len(values)) < 200, np.arange(len(values)) % 2, np.arange(len(values)) % 10 == 9).astype(np.float32) + 1

    ratings = replace(in_turn(100), target=late(np.zeros(400), None))
    ratings.target[250:] = np.where(np.arange(250, 400) % 10 == 0, 0, ratings.target[250:])  # the lowest class is empty until then
    start = fit(first_of(ratings, 200), SEES, SHORT, seed=0)
    assert start.results["training"]["balanced_accuracy"] is not None
    fitted = fit(ratings, SEES, SHORT, seed=1, start=start.model)
    held_out = fitted.model.training["held_out"]
    assert set(ratings.target[held_out]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "preference"}, "another kind"),
        ({"levels": 4}, "another number of classes"),
        ({"members": 1}, "another number of members"),
        ({"width": 16}, "another network"),
        ({"look": Look(vectors={"pose": 4})}, "another look"),
        ({"labels": "others"}, "not the first 100 of these 200"),
        ({"labels": "fewer"}, "not the first 100 of these 90"),
    ],
)
def test_a_model_that_cannot_be_gone_on_from_is_refused(change: dict[str, Any], words: str) -> None:
    ratings = judged("rating", 200)
    start = fit(first_of(ratings, 100), SEES, SHORT, seed=0).model
    config = replace(SHORT, members=2 if "members" in change else 1, width=change.get("width", SHORT.width))
    if change.get("labels") == "others":
        ratings = replace(ratings, target=np.roll(ratings.target, 1))
    elif change.get("labels") == "fewer":
        ratings = first_of(ratings, 90)
    ratings = judged("preference", 200) if "kind" in change else replace(ratings, levels=change.get("levels", 3))
    with pytest.raises(RewardModelError, match=words):
        fit(ratings, change.get("look", SEES), config, seed=0, start=start)


# --- what is written ----------------------------------------------------------------------------------------------------------------


def test_a_model_and_its_history_are_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    lines: list[Any] = []
    ratings = judged("rating", 100)
    fitted = fit(ratings, SEES, SHORT, seed=5, out=tmp_path, progress=lambda *done: told.append(done), log=lines.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "model.json", "model.safetensors"]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(fitted.history) == lines
    assert told[-1] == (6, 6)
    assert set(fitted.history[0]) == {"epoch", "updates", "loss", "contradicted", "training", "held_out"}
    loaded = load_model(tmp_path)
    assert loaded.fingerprint == fitted.model.fingerprint
    assert (loaded.training["seed"], loaded.training["settings"]["updates"], loaded.training["labels"]) == (5, 6, 100)
    assert loaded.training["results"] == fitted.results
    steps = gather(ratings.steps, np.arange(9))
    assert all(torch.equal(a, b) for a, b in zip(fitted.model.score(steps), loaded.score(steps), strict=True))


# --- refusals -----------------------------------------------------------------------------------------------------------------------


def single_class(values: Any, _random: Any) -> Any:
    return np.full(len(values), 2, np.float32)


@pytest.mark.parametrize(
    ("judgements", "words"),
    [
        (judged("rating", 10, spoil=single_class), r"all ratings are of one class \(by class: 0, 0, 10\). Rate more"),
        (judged("rating", 2, levels=3), "2 ratings for 3 classes"),
        (judged("preference", 20, spoil=lambda values, _: np.full(len(values), 0.5, np.float32)), "no preference anywhere"),
        (judged("score", 20, spoil=lambda values, _: np.full(len(values), 0.3, np.float32)), "all scores are the same"),
        (judged("score", 20, spoil=lambda values, _: values * np.float32("nan")), "not a finite number"),
        (replace(judged("score", 3), target=np.zeros(0, np.float32)), "no label to learn from"),
        (replace(judged("score", 3), offsets=np.array([0, 1, 1, 3])), "at least one transition each"),
    ],
)
def test_labels_that_teach_nothing_are_refused(judgements: Judgements, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        fit(judgements, SEES, SHORT, seed=0)


def test_fitting_that_diverges_stops_with_a_word(tmp_path: Path) -> None:
    with pytest.raises(RewardModelError, match=r"fitting diverged: .* after \d+ updates\. Use a lower learning rate"):
        fit(judged("rating"), SEES, replace(SHORT, learning_rate=1e38), seed=0, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong",
    [
        {"members": 0}, {"updates": 0}, {"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"sharpness": 0.0}, {"held_out": 1.0},
        {"smoothing": 1.1}, {"noise": 1.0}, {"patience": 0}, {"max_steps": 0}, {"width": 0},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Config(**wrong)


@pytest.mark.parametrize("look", [Look(vectors={"state": 5}), Look(vectors={"state": 2}, pictures=2, action_names=("left", "right"))])
def test_transitions_that_were_read_otherwise_are_refused(look: Look) -> None:
    with pytest.raises(UsageError, match="not what the model looks at"):
        fit(judged("rating"), look, SHORT, seed=0)


def test_an_encoder_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="only vectors"):
        fit(judged("rating"), SEES, replace(SHORT, encoder="published"), seed=0)
