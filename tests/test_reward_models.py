"""Networks that look at transitions, ensembles of them, and what each kind of reward model makes of the numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from guerdon.errors import RewardModelError, UsageError
from guerdon.networks import seeded
from guerdon.rewards._ensemble import Ensemble
from guerdon.rewards.encoders import Architecture, Network, choose_encoder
from guerdon.rewards.fitting import Config, load_model, model_class
from guerdon.rewards.preference_model import PreferenceModel
from guerdon.rewards.rating_model import RatingModel, class_boundaries
from guerdon.rewards.score_model import ScoreModel
from guerdon.rewards.steps import Look, Steps, gather, look_of, read_steps
from tests.reward_data import Recorded, of_pictures, of_vectors

RANDOM = np.random.default_rng(0)


def pictures(count: int, size: int) -> Steps:
    return gather(of_pictures(RANDOM.integers(0, 256, (count, size, size, 3), dtype=np.uint8)), np.arange(count))


def network(look: Look, encoder: Any) -> Network:
    with seeded(1):
        return Network(look, Architecture(encoder))


def parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# --- the published network ----------------------------------------------------------------------------------------------------------


def test_the_published_network_has_106401_parameters_at_224() -> None:
    net = network(Look({"full": (224, 224)}), "published")
    assert parameters(net) == 106_401
    assert net.last.in_features == 8192


def test_the_published_network_computes_what_the_paper_s_does() -> None:
    net, steps = network(Look({"full": (64, 64)}), "published"), pictures(5, 64)
    convolutions = net.views[0].convolutions
    kinds = [(c.out_channels, c.kernel_size, c.stride, c.padding) for c in convolutions]
    assert kinds == [
        (16, (5, 5), (3, 3), (0, 0)),
        (32, (3, 3), (2, 2), (0, 0)),
        (64, (3, 3), (2, 2), (0, 0)),
        (128, (3, 3), (2, 2), (0, 0)),
    ]
    maps = steps.frames["full"][:, 0].permute(0, 3, 1, 2).contiguous().float() / 255
    for convolution in convolutions:
        maps = convolution(maps).relu()
    assert_close(net.views[0](steps.frames["full"], None), maps.flatten(1), atol=1e-6, rtol=1e-4)
    assert_close(net(steps, steps.vector), net.last(maps.flatten(1)).squeeze(1), atol=1e-6, rtol=1e-5)


def test_the_published_network_begins_as_published() -> None:
    net = network(Look({"full": (224, 224)}), "published")
    for convolution in net.views[0].convolutions:
        bound = 1 / math.sqrt(convolution.weight[0].numel())
        assert 0.9 * bound < float(convolution.weight.detach().abs().max()) <= bound
        assert not convolution.bias.any()
    assert 0.9e-3 < float(net.last.weight.detach().abs().max()) <= 1e-3
    assert float(net.last.bias.detach().abs().max()) <= 1e-3


def test_the_encoder_is_chosen_by_what_there_is_to_see() -> None:
    assert choose_encoder(Look({"full": (47, 60)}), "auto") == "published"
    assert choose_encoder(Look({"full": (47, 60), "wrist": (46, 60)}), "auto") == "residual"
    assert choose_encoder(Look(vectors={"state": 3}), "auto") == "vector"
    assert network(Look({"full": (47, 47)}), "published").last.in_features == 128  # one tile is left
    with pytest.raises(UsageError, match=r"'published' needs pictures of 47 x 47 pixels at least, they have 46\. Choose .* residual"):
        choose_encoder(Look({"full": (46, 90)}), "published")
    with pytest.raises(UsageError, match=r"'residual' needs pictures of 16 x 16 pixels at least, they have 15\. Use larger pictures"):
        choose_encoder(Look({"full": (15, 15)}), "auto")
    with pytest.raises(UsageError, match="looks at no pictures"):
        choose_encoder(Look({"full": (64, 64)}), "vector")
    with pytest.raises(UsageError, match="only vectors"):
        choose_encoder(Look(vectors={"state": 3}), "residual")
    with pytest.raises(UsageError, match="given neither"):
        choose_encoder(Look(words=()), "auto")


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 64), (100, 33)])
def test_the_residual_network_takes_pictures_of_any_size_and_keeps_the_place(size: tuple[int, int]) -> None:
    net = network(Look({"full": size}), "residual")
    frames = np.zeros((2, *size, 3), np.uint8)
    frames[0, :8, :8], frames[1, -8:, -8:] = 255, 255  # the same square in opposite corners
    steps = gather(of_pictures(frames), np.arange(2))
    features = net.views[0](steps.frames["full"], None)
    assert features.shape == (2, net.views[0].features)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_the_network_for_vectors_is_three_layers_wide() -> None:
    net = network(Look(vectors={"state": 39}), "vector")
    assert parameters(net) == 39 * 256 + 256 + 2 * (256 * 256 + 256) + 256 + 1


# --- what is looked at counts, and nothing else -------------------------------------------------------------------------------------


def everything(encoder: str, pictures_: Any = 2) -> tuple[Network, Steps]:
    data = Recorded(size=48 if encoder == "published" else 16)
    look = look_of(data, views=["full"], vectors=["state"], pictures=pictures_, action=True, instruction=True)
    net = network(look, encoder)
    with seeded(2):
        for film in (module for module in net.modules() if type(module).__name__ == "_Film"):
            torch.nn.init.normal_(film.both.weight, std=0.1)  # they begin without effect
        torch.nn.init.normal_(net.last.weight, std=0.1)  # and the last layer hardly says anything
    arrays = read_steps(data, look, [(0, 0, 1), (0, 1, 2), (1, 0, 5), (2, 0, 0)])
    return net, gather(arrays, np.arange(4))


def changed(tensor: Tensor, row: int) -> Tensor:
    copy = tensor.clone()
    copy[row] = copy[row] + 1 if copy.dtype != torch.int64 else (copy[row] + 1) % 2
    return copy


@pytest.mark.parametrize("encoder", ["published", "residual"])
def test_every_input_acts_on_its_own_transition_only(encoder: str) -> None:
    net, steps = everything(encoder)
    before = net(steps, steps.vector)
    noisy = {"full": steps.frames["full"].clone()}
    noisy["full"][2] = torch.randint(0, 256, noisy["full"][2].shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for other in (
        replace(steps, frames=noisy),
        replace(steps, vector=changed(steps.vector, 2)),
        replace(steps, action=changed(steps.action, 2)),
        replace(steps, instruction=changed(steps.instruction, 2)),
    ):
        difference = (net(other, other.vector) - before).detach().abs()
        assert float(difference[2]) > 1e-3
        assert_close(difference[[0, 1, 3]], torch.zeros(3), atol=1e-5, rtol=0)


def test_the_picture_before_counts_too() -> None:
    net, steps = everything("residual")
    frames = {"full": steps.frames["full"].clone()}
    frames["full"][:, 0] = 200
    assert not torch.allclose(net(replace(steps, frames=frames), steps.vector), net(steps, steps.vector))


def test_instruction_and_action_begin_without_effect_on_convolutions() -> None:
    look = Look({"full": (48, 48)}, words=("ball", "red"), action_names=("left", "right"))
    net, plain = network(look, "published"), network(Look({"full": (48, 48)}), "published")
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if name in plain.state_dict()})
    steps = replace(pictures(3, 48), action=torch.tensor([0, 1, 0]), tokens=torch.tensor([[2, 3, 4]]))
    assert_close(net(steps, steps.vector), plain(steps, steps.vector))


def test_a_transition_s_score_does_not_depend_on_its_batch() -> None:
    look = Look({"full": (48, 48)})
    model = RatingModel(Ensemble(look, Architecture("published"), 2, seed=0), levels=2)
    frames = RANDOM.integers(0, 256, (70, 48, 48, 3), dtype=np.uint8)
    arrays = of_pictures(frames)
    whole = model.member_values(0, arrays, np.arange(70))  # in pieces of 32
    single = torch.cat([model.member_values(0, arrays, np.array([row])) for row in range(70)])
    assert_close(whole, single, atol=1e-6, rtol=1e-5)


# --- ensembles ----------------------------------------------------------------------------------------------------------------------


def test_members_differ_and_are_the_seed_s() -> None:
    look = Look(vectors={"state": 2})
    ensembles = [Ensemble(look, Architecture("vector", width=8), 3, seed=seed) for seed in (0, 0, 1)]
    weights = [[member.last.weight for member in ensemble.members] for ensemble in ensembles]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert len({tuple(weight.flatten().tolist()) for ensemble in (weights[0], weights[2]) for weight in ensemble}) == 6


def test_mean_and_spread_over_the_members() -> None:
    model = RatingModel(Ensemble(Look(vectors={"state": 1}), Architecture("vector", width=1), 3, seed=0), levels=2)
    for member, constant in zip(model.ensemble.members, (-0.5, 0.1, 0.7), strict=True):
        torch.nn.init.zeros_(member.last.weight)
        torch.nn.init.constant_(member.last.bias, math.atanh(constant))
    value, spread = model.score(gather(of_vectors(np.zeros((2, 1), np.float32)), np.arange(2)))
    assert_close(value, torch.full((2,), 0.1))
    assert_close(spread, torch.full((2,), math.sqrt((0.36 + 0 + 0.36) / 3)))  # the population's
    assert not value.requires_grad


def test_vectors_are_standardised() -> None:
    ensemble = Ensemble(Look(vectors={"state": 2}), Architecture("vector", width=4), 1, seed=0)
    ensemble.standardise(np.array([[0, 5], [4, 5]], np.float32))
    assert ensemble.mean.tolist() == [2, 5]
    assert ensemble.deviation.tolist() == [2, 1]  # a constant is only shifted
    steps = gather(of_vectors(np.array([[4, 6]], np.float32)), np.arange(1))
    assert_close(ensemble.raw(0, steps), ensemble.members[0](steps, torch.tensor([[1.0, 1.0]])))


def test_bfloat16_is_close_and_not_the_same() -> None:
    model = RatingModel(Ensemble(Look({"full": (48, 48)}), Architecture("residual"), 1, seed=0), levels=2)
    steps = pictures(4, 48)
    exact, _ = model.score(steps)
    model.precision = "bfloat16"
    coarse, _ = model.score(steps)
    assert coarse.dtype == torch.float32
    assert not torch.equal(coarse, exact)
    assert_close(coarse, exact, atol=0.02, rtol=0.05)


# --- on disk ------------------------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> RatingModel:
    look = look_of(Recorded(), views=["full"], vectors=["state"], pictures=2, action=True, instruction=True)
    model = RatingModel(Ensemble(look, Architecture("residual", width=16, channels=8), 2, seed=3), levels=3)
    model.ensemble.standardise(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    model.calibrate(np.array([0.1, 0.2, 0.3]), np.array([1, 2, 2], np.float32))
    model.save(folder, {"seed": 3})
    return model


def test_a_loaded_model_gives_the_same_bits(tmp_path: Path) -> None:
    data = Recorded()
    model, loaded = saved(tmp_path), load_model(tmp_path)
    assert isinstance(loaded, RatingModel)
    assert (loaded.look, loaded.levels, loaded.members, loaded.training) == (model.look, 3, 2, {"seed": 3})
    assert loaded.boundaries.tolist() == model.boundaries.tolist() == [-math.inf, pytest.approx(0.15)]
    assert loaded.fingerprint == model.fingerprint
    steps = gather(read_steps(data, model.look, [(0, 0, 0), (1, 0, 3)]), np.arange(2))
    for ours, theirs in zip(model.score(steps), loaded.score(steps), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.measure(np.array([0.1, 0.4]), np.array([1, 0], np.float32)) == model.measure(
        np.array([0.1, 0.4]), np.array([1, 0], np.float32)
    )


def test_the_same_model_is_written_as_the_same_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    for name in ("model.safetensors", "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def damage(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("model.safetensors", lambda old: old[:-1] + bytes([old[-1] ^ 1]), "its digest differs"),
        ("model.safetensors", lambda old: old[: len(old) // 2], "its digest differs"),
        ("model.json", lambda _: b"{", "is damaged"),
        ("model.json", lambda _: b"[]", "is damaged"),
        ("model.json", lambda old: json.dumps(json.loads(old) | {"format": 9}).encode(), "of format 9"),
        ("model.json", lambda old: json.dumps(json.loads(old) | {"name": "os"}).encode(), "unknown kind 'os'"),
        ("model.json", lambda old: json.dumps(json.loads(old) | {"members": 7}).encode(), "cannot be opened"),
        ("model.json", lambda old: json.dumps(json.loads(old) | {"looks_at": {}}).encode(), "cannot be opened"),
    ],
)
def test_damaged_models_are_refused(tmp_path: Path, name: str, change: Any, words: str) -> None:
    saved(tmp_path)
    damage(tmp_path, name, change)
    with pytest.raises(RewardModelError, match=words):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RewardModelError, match=r"holds no reward model \(no model.json\). Make one with: guerdon fit RUN"):
        load_model(tmp_path)


# --- what the numbers mean ----------------------------------------------------------------------------------------------------------


def small(kind: Any, **options: Any) -> Any:
    return model_class(kind)(Ensemble(Look(vectors={"state": 1}), Architecture("vector", width=4), 1, seed=0), **options)


def test_boundaries_give_every_class_the_same_weight() -> None:
    returns = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    in_order = np.eye(2)[[0, 0, 0, 0, 0, 1]]
    assert class_boundaries(returns, in_order).tolist() == [4.5]
    # One of two good ones lies low: half of the good class's weight, so two of the four bad ones may lie above the boundary.
    swapped = np.eye(2)[[0, 1, 0, 0, 0, 1]]
    assert class_boundaries(returns, swapped).tolist() == [2.5]


def test_boundaries_of_empty_classes_have_no_width() -> None:
    returns = np.array([0.0, 1.0, 2.0])
    assert class_boundaries(returns, np.eye(4)[[1, 1, 3]]).tolist() == [-math.inf, 1.5, 1.5]
    assert class_boundaries(returns, np.eye(3)[[0, 1, 1]]).tolist() == [0.5, math.inf]


def test_ratings_are_measured_class_by_class() -> None:
    model = small("rating", levels=2)
    model.calibrate(np.array([0.0, 0.2, 0.8, 1.0]), np.array([0, 0, 1, 1], np.float32))
    assert model.boundaries.tolist() == [0.5]
    assert model.classes(np.array([0.4, 0.5, 9.0, -9.0])).tolist() == [0, 1, 1, 0]
    measured = model.measure(np.array([0.1, 0.2, 0.3, 0.1, 0.9]), np.array([0, 0, 0, 1, 1], np.float32))
    assert measured["accuracy"] == pytest.approx(0.8)
    assert measured["balanced_accuracy"] == pytest.approx(0.75)
    # P of the class 0 at p = .1, boundaries (0, .5, 1): softmax of -30 (.1)(-.4) = 1.2 and -30 (-.4)(-.9) = -10.8
    alone = model.measure(np.array([0.1]), np.array([1], np.float32))
    assert alone["loss"] == pytest.approx(2 / (1 + math.exp(-12)))
    assert alone["contradicted"] == 1.0
    assert model.quality(measured) > model.quality(alone)


def test_the_loss_is_measured_between_the_lowest_and_the_highest_return() -> None:
    """Returns of 2 to 5 with the boundary 3.5 are scores of 0, 1/3, 2/3 and 1 with the boundary 1/2, of which the class 1 has the
    probability 1 / (1 + exp(30 (1/2 - p))): exp(15) and exp(5) to one."""
    model = small("rating", levels=2)
    returns, target = np.array([2.0, 3.0, 4.0, 5.0]), np.array([0, 0, 1, 1], np.float32)
    model.calibrate(returns, target)
    assert model.boundaries.tolist() == [3.5]
    measured = model.measure(returns, target)
    assert measured["loss"] == pytest.approx((2 / (1 + math.exp(15)) + 2 / (1 + math.exp(5))) / 2)
    assert model.measure(returns, 1 - target)["contradicted"] == 0.5, "those at the ends; exp(-5) is above a thousandth"
    assert model.measure(np.array([-9.0, 9.0]), target[[0, 3]])["loss"] == pytest.approx(2 / (1 + math.exp(15))), (
        "beyond the ends: as there"
    )


def test_preferences_are_measured_by_who_wins() -> None:
    model = small("preference")
    returns = np.array([0.0, 1.0, 0.0, -1.0, 0.0, 2.0, 0.0, 3.0])
    measured = model.measure(returns, np.array([1, 0, 0, 0.5], np.float32))
    assert measured["accuracy"] == pytest.approx(2 / 3)
    assert measured["balanced_accuracy"] == pytest.approx(3 / 4)
    assert isinstance(model, PreferenceModel)
    loss = model.loss(torch.tensor([0.7, 1.2]), torch.tensor([1.0]), Config(loss="ce"), None)
    assert float(loss.loss) == pytest.approx(0.474077, abs=1e-6)


def test_scores_are_measured_by_their_error() -> None:
    model = small("score")
    assert isinstance(model, ScoreModel)
    measured = model.measure(np.array([0.1, 0.5, 0.7]), np.array([0.1, 0.2, 0.3], np.float32))
    assert measured["error"] == pytest.approx(math.sqrt((0.09 + 0.16) / 3))
    assert measured["correlation"] == pytest.approx(1.0)
    assert model.measure(np.array([0.1]), np.array([0.1], np.float32))["correlation"] is None


def test_the_rating_loss_is_the_published_one() -> None:
    model = small("rating", levels=2)
    returns, target = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]), torch.tensor([0, 0, 1, 1, 1])
    lower = Config(boundary="lower")
    assert float(model.loss(returns, target, lower, None).loss) == pytest.approx(0.200442, abs=2e-6)
    assert float(model.loss(returns, target, replace(lower, loss="ce"), None).loss) == pytest.approx(0.138851, abs=2e-6)
    assert float(model.loss(returns, target, Config(), None).loss) == pytest.approx(0.018392, abs=2e-6)
    weights = torch.tensor([1.5, 1.5, 1.0, 1.0, 1.0])
    assert float(model.loss(returns, target, lower, weights).loss) == pytest.approx(0.250461, abs=2e-6)
