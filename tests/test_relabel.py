"""Scoring a dataset with a reward model: which number belongs to which transition, in what order, and in how much memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from guerdon.errors import RewardError, RewardModelError, UsageError
from guerdon.interfaces import RewardModel
from guerdon.records import Annotation
from guerdon.rewards._ensemble import Ensemble, EnsembleModel
from guerdon.rewards.encoders import Architecture
from guerdon.rewards.fitting import model_class
from guerdon.rewards.relabel import relabel
from guerdon.rewards.steps import Look, gather, look_of, read_steps
from tests.memory import MemoryEpisode
from tests.reward_data import INSTRUCTION, SPANS, Recorded


def model_of(data: Recorded, *, kind: Any = "rating", members: int = 2, **options: Any) -> EnsembleModel:
    look = look_of(data, **options)
    encoder: Any = "residual" if look.views else "vector"
    ensemble = Ensemble(look, Architecture(encoder, width=8, channels=8), members, seed=0)
    for member in ensemble.members:  # the fresh last layer of a network for pictures hardly says anything
        torch.nn.init.normal_(member.last.weight, generator=torch.Generator().manual_seed(1))
    return model_class(kind)(ensemble, levels=3 if kind == "rating" else 0)


def test_every_transition_gets_the_score_of_its_own_picture_in_order() -> None:
    data = Recorded()
    model = model_of(data)
    found = dict(relabel(model, data))
    assert list(found) == [(0, 0), (0, 1), (1, 0), (2, 0)]
    for (episode, annotation), values in found.items():
        assert values.dtype == np.float32
        assert values.shape == (data.episode(episode).length,)
        for t, value in enumerate(values):
            alone, _ = model.score(gather(read_steps(data, model.look, [(episode, annotation, t)]), np.arange(1)))
            assert value == pytest.approx(float(alone), abs=1e-4)  # a picture of one colour blurs a group norm
    assert np.ptp(np.concatenate(list(found.values()))) > 1e-3


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_size_of_batches_makes_no_difference(batch: int) -> None:
    data = Recorded([40])
    model = model_of(data, views=["full"], vectors=["state"], pictures=2, action=True, instruction=True)
    expected = dict(relabel(model, data))
    for key, values in relabel(model, data, batch=batch):
        np.testing.assert_allclose(values, expected[key], atol=1e-4)


def test_chosen_episodes_only() -> None:
    data = Recorded()
    model = model_of(data)
    assert [key for key, _ in relabel(model, data, episodes=[2, 1])] == [(1, 0), (2, 0)]
    with pytest.raises(UsageError, match="no episode 3; the dataset has 3"):
        relabel(model, data, episodes=[3])


def test_episodes_come_one_after_the_other() -> None:
    data = Recorded()
    told: list[tuple[int, int]] = []
    stream = relabel(model_of(data), data, progress=lambda *done: told.append(done))
    data.reads.clear()
    assert next(stream)[0] == (0, 0)
    assert {episode for episode, _, _ in data.reads} == {0}
    assert told == [(1, 3)]
    assert next(stream)[0] == (0, 1)  # the same pictures: not read again, because the model reads no words
    assert {episode for episode, _, _ in data.reads} == {0}
    assert len(list(stream)) == 2
    assert told[-1] == (3, 3)


def test_a_long_episode_is_read_in_pieces() -> None:
    data = Recorded([500])
    model = model_of(data)
    stream = relabel(model, data, batch=16)
    data.reads.clear()
    assert len(next(stream)[1]) == 500
    assert sum(stop - start for _, start, stop in data.reads) == 500
    assert max(stop - start for _, start, stop in data.reads) == 8 * 16


def test_words_matter_to_a_model_that_reads_them() -> None:
    data = Recorded()
    model = model_of(data, vectors=["state"], instruction=True)
    found = dict(relabel(model, data))
    assert not np.allclose(found[0, 0], found[0, 1])
    deaf = dict(relabel(model_of(data, vectors=["state"]), data))
    assert np.array_equal(deaf[0, 0], deaf[0, 1])


def test_instructions_with_unknown_words_are_fine() -> None:
    data = Recorded()
    model = model_of(data, vectors=["state"], instruction=True)
    data._episodes[1] = MemoryEpisode(7, "levitate")
    assert np.isfinite(dict(relabel(model, data))[1, 0]).all()


def test_an_episode_without_instruction_is_unknown_to_a_model_that_reads() -> None:
    data = Recorded()
    data._episodes[1] = MemoryEpisode(7, annotations=())
    assert np.isnan(dict(relabel(model_of(data, vectors=["state"], instruction=True), data))[1, 0]).all()
    assert np.isfinite(dict(relabel(model_of(data, vectors=["state"]), data))[1, 0]).all()


def test_a_model_that_reads_sub_tasks_is_not_asked_outside_of_them() -> None:
    """The sub-tasks are transitions 0 to 2 and 3 to 4 of 7; the second annotation has none and is read as a whole."""
    data = Recorded()
    data._episodes[0] = MemoryEpisode(7, annotations=(Annotation(INSTRUCTION, SPANS), Annotation("reach the ball")))
    by_subtask = dict(relabel(model_of(data, vectors=["state"], instruction=True, unit="subtask"), data))
    assert np.isfinite(by_subtask[0, 0]).tolist() == [True] * 5 + [False] * 2
    assert np.isfinite(by_subtask[0, 1]).all()
    as_a_whole = dict(relabel(model_of(data, vectors=["state"], instruction=True), data))
    assert np.isfinite(as_a_whole[0, 0]).all()
    assert not np.isclose(by_subtask[0, 0][:5], as_a_whole[0, 0][:5]).any()


def test_an_episode_without_transitions_has_no_rewards() -> None:
    assert dict(relabel(model_of(Recorded()), Recorded([5, 0, 3])))[1, 0].shape == (0,)


# --- transforms ---------------------------------------------------------------------------------------------------------------------


class Fixed(RewardModel):
    """Gives the time of the observation as its mean, a tenth of it as its spread."""

    name = "rating"
    scale = (-1.0, 3.0)
    look = Look(vectors={"state": 2})

    def score(self, steps: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return steps.vector[:, 1], steps.vector[:, 1] / 10


def values_of(**options: Any) -> list[float]:
    """Rewards under the first annotation of two episodes with one and two transitions."""
    data, model = Recorded([1, 2]), Fixed()
    data._episodes[0] = MemoryEpisode(1, annotations=(Annotation("go"),))
    stream = relabel(model, data, **options)  # type: ignore[arg-type]
    return [float(value) for _, values in stream for value in values]


def test_raw_rewards_are_the_mean() -> None:
    assert values_of() == [1, 1, 2]


def test_pessimism_takes_the_spread_away() -> None:
    assert values_of(pessimism=2.0) == pytest.approx([0.8, 0.8, 1.6])


def test_unit_rewards_are_scaled_by_the_model_s_scale() -> None:
    assert values_of(transform="unit") == pytest.approx([0.5, 0.5, 0.75])
    assert values_of(transform="unit", pessimism=2.0) == pytest.approx([0.45, 0.45, 0.65])


def test_standard_rewards_have_mean_zero_and_deviation_one() -> None:
    # mean 4/3, population deviation sqrt(2)/3
    assert values_of(transform="standard") == pytest.approx([-1 / 2**0.5, -1 / 2**0.5, 2**0.5])
    assert values_of(transform="standard", pessimism=5.0) == pytest.approx([-1 / 2**0.5, -1 / 2**0.5, 2**0.5])


def test_equal_rewards_cannot_be_standardised() -> None:
    data = Recorded([1])
    data._episodes[0] = MemoryEpisode(1)
    with pytest.raises(RewardError, match="every transition the same reward"):
        list(relabel(Fixed(), data, transform="standard"))  # type: ignore[arg-type]


class Noise(Fixed):
    """Differs in the last digit of single precision."""

    def score(self, steps: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mean = 0.6 + 6e-8 * steps.vector[:, 1]
        return mean, torch.zeros_like(mean)


def test_rounding_errors_are_not_standardised_into_a_reward() -> None:
    (_, values), *_ = relabel(Noise(), data := Recorded([5]))  # type: ignore[arg-type]
    assert np.ptp(values) > 0
    with pytest.raises(RewardError, match="every transition the same reward"):
        list(relabel(Noise(), data, transform="standard"))  # type: ignore[arg-type]


# --- refusals: before anything is scored --------------------------------------------------------------------------------------------


def test_data_of_another_kind_are_refused_at_once() -> None:
    data = Recorded()
    model = model_of(data)
    with pytest.raises(RewardModelError, match=r"pictures of view 'full' of 16 x 16, the dataset has 24 x 24"):
        relabel(model, Recorded(size=24))
    with pytest.raises(RewardModelError, match="knows the actions"):
        relabel(model_of(data, action=True), Recorded(continuous=True))


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"threads": 0}, {"pessimism": -1.0}, {"pessimism": float("nan")}, {"transform": "log"}])
def test_settings_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        relabel(model_of(Recorded()), Recorded(), **wrong)


def test_a_broken_model_is_found_out() -> None:
    data = Recorded()
    model = model_of(data)
    torch.nn.init.constant_(model.ensemble.members[0].last.bias, float("nan"))
    with pytest.raises(RewardError, match=r"episode 0: the model gives a reward that is not finite"):
        next(relabel(model, data))


def test_threads_are_put_back() -> None:
    data, before = Recorded(), torch.get_num_threads()
    stream = relabel(model_of(data), data, threads=2)
    next(stream)
    assert torch.get_num_threads() == before
