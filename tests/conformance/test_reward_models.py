"""What every kind of reward model must do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from guerdon.interfaces import RewardModel
from guerdon.rewards import fitting
from guerdon.rewards._ensemble import Ensemble, EnsembleModel
from guerdon.rewards.encoders import Architecture
from guerdon.rewards.fitting import KINDS, Config, load_model, model_class
from guerdon.rewards.steps import StepArrays, gather
from tests.reward_data import SEES, judged, of_vectors, true_reward

FILES = sorted(path.stem for path in Path(str(fitting.__file__)).parent.glob("*_model.py"))


def build(kind: Any, *, members: int = 3, seed: int = 0) -> EnsembleModel:
    ensemble = Ensemble(SEES, Architecture("vector", width=16), members, seed=seed)
    return model_class(kind)(ensemble, levels=3 if kind == "rating" else 0)


def arrays(count: int = 50, seed: int = 0) -> StepArrays:
    return of_vectors(3 * np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32))


def test_every_file_holds_a_kind() -> None:
    assert sorted(f"{kind}_model" for kind in KINDS) == FILES


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_is_the_kind_s(kind: Any) -> None:
    assert issubclass(model_class(kind), RewardModel)
    assert model_class(kind).name == kind


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_means_and_spreads_on_the_scale(kind: Any) -> None:
    model, data = build(kind), arrays()
    value, spread = model.score(gather(data, np.arange(50)))
    low, high = model.scale
    assert value.shape == spread.shape == (50,)
    assert value.dtype == spread.dtype == torch.float32
    assert low < float(value.min()) < float(value.max()) < high
    assert float(spread.min()) > 0
    assert not value.requires_grad
    members = torch.stack([model.member_values(member, data, np.arange(50)) for member in range(3)]).detach()
    assert_close(value, members.mean(0))
    assert_close(spread, members.std(0, correction=0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_member_has_no_spread(kind: Any) -> None:
    _, spread = build(kind, members=1).score(gather(arrays(), np.arange(50)))
    assert not spread.any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_does_not_depend_on_the_batch(kind: Any) -> None:
    model, data = build(kind), arrays()
    whole, _ = model.score(gather(data, np.arange(50)))
    for row in (0, 17, 49):
        assert_close(model.score(gather(data, np.array([row])))[0], whole[row : row + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_give_the_same_bits(kind: Any, tmp_path: Path) -> None:
    labels = judged(kind, 60)
    fitted = fitting.fit(labels, SEES, Config(width=8, updates=4), seed=0, out=tmp_path).model
    loaded = load_model(tmp_path)
    steps = gather(arrays(), np.arange(50))
    assert type(loaded) is type(fitted)
    assert loaded.fingerprint == fitted.fingerprint != build(kind).fingerprint
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(fitted.score(steps), loaded.score(steps), strict=True))
    predicted = fitted.predictions(labels.steps, labels.offsets, labels.members)
    assert loaded.measure(predicted, labels.target) == fitted.measure(predicted, labels.target)


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_reward_measures_better_than_its_opposite(kind: Any) -> None:
    model, labels = build(kind), judged(kind)
    truth = np.add.reduceat(true_reward(labels.steps.vector), labels.offsets[:-1])
    on_scale = (truth + 1) / 2 if kind == "score" else truth
    model.calibrate(on_scale, labels.target)
    right, wrong = model.measure(on_scale, labels.target), model.measure(1 - on_scale if kind == "score" else -truth, labels.target)
    assert model.quality(right) > model.quality(wrong)
    assert all(value is None or math.isfinite(value) for value in {**right, **wrong}.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_labels_measure_as_unknown(kind: Any) -> None:
    assert set(build(kind).measure(np.zeros(0), np.zeros(0, np.float32)).values()) == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_lower_where_predictions_agree(kind: Any) -> None:
    model, labels = build(kind), judged(kind)
    truth = torch.from_numpy(np.add.reduceat(true_reward(labels.steps.vector), labels.offsets[:-1])).float()
    target = torch.from_numpy(labels.target)
    said = target.long() if kind == "rating" else target
    for config in (Config(), replace(Config(), loss="ce")):
        predicted = [(truth + 1) / 2, (1 - truth) / 2] if kind == "score" else [truth, -truth]
        right, wrong = (model.loss(values, said, config, None).loss for values in predicted)
        assert float(right) < float(wrong)
