"""A buffer of whole episodes, exploring, and learning that goes on from data that grows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from guerdon.algorithms.iql import IQL
from guerdon.datasets.minari import RecordedEpisode
from guerdon.errors import PolicyError, UsageError
from guerdon.machine import Machine
from guerdon.networks import Optimiser, PolicyNetwork
from guerdon.records import Annotation, Span
from guerdon.seeding import generator
from guerdon.training.online_episodes import Config, EpisodeBuffer, EpisodeDataset, ExploringPolicy, digest_of, piece_of
from guerdon.transitions import Chunk, ObservationSpec, Sampler, Transitions, Vocabulary, collate
from tests.memory import MemoryDataset, MemoryEpisode
from tests.point import PointData

NAMES = ("left", "right", "forward")
SMALL = PolicyNetwork.Config(channels=8, width=16)
FAST = Optimiser.Config(learning_rate=1e-2, warm_up=5)


def episode(length: int, number: int = 0, words: str = "go left", *, terminated: bool = True, **more: Any) -> RecordedEpisode:
    """An episode whose picture t is filled with t + 20 * number."""
    values = (np.arange(length + 1) + 20 * number).astype(np.uint8)
    return RecordedEpisode(
        frames={"full": np.broadcast_to(values[:, None, None, None], (length + 1, 16, 16, 3)).copy()},
        actions=(np.arange(length) + number) % 3,
        rewards=np.arange(length, dtype=np.float64),
        terminated=terminated,
        truncated=not terminated,
        annotations=(Annotation(words, (Span(0, length, words),)),),
        metadata={"task": {"id": f"task-{number}"}},
        privileged={"quality": np.linspace(0, 1, length + 1, dtype=np.float32), "contribution": np.ones(length, np.float32)},
        **more,
    )


def filled(*lengths: int, capacity: int = 1000, words: tuple[str, ...] = ("go left", "go right")) -> EpisodeBuffer:
    buffer = EpisodeBuffer(capacity, NAMES)
    for number, length in enumerate(lengths):
        buffer.add(episode(length, number, words[number % len(words)]))
    for held in buffer.held:
        held.reward = np.full(len(held), held.number, np.float32)
    return buffer


# --- the buffer ---------------------------------------------------------------------------------------------------------------------


def test_the_oldest_whole_episodes_make_room() -> None:
    buffer = EpisodeBuffer(10, NAMES)
    for number in range(4):
        buffer.add(episode(3, number))
    assert [held.number for held in buffer.held] == [1, 2, 3]
    assert len(buffer) == 9
    buffer.add(episode(8, 4))
    assert [held.number for held in buffer.held] == [4]
    assert buffer.added == 5


@pytest.mark.parametrize(("keep", "left"), [(True, [0, 2]), (False, [1, 2])])
def test_demonstrations_stay_if_they_are_to(keep: bool, left: list[int]) -> None:
    buffer = EpisodeBuffer(10, NAMES, keep_demonstrations=keep)
    buffer.add(episode(4, 0), is_demonstration=True)
    buffer.add(episode(4, 1))
    buffer.add(episode(4, 2))
    assert [held.number for held in buffer.held] == left


def test_what_does_not_fit_is_refused() -> None:
    buffer = EpisodeBuffer(10, NAMES)
    buffer.add(episode(6, 0), is_demonstration=True)
    with pytest.raises(UsageError, match="6 stay in it, and an episode of 5 does not fit"):
        buffer.add(episode(5, 1))


def test_transitions_are_those_of_the_episodes_and_their_rewards() -> None:
    buffer = filled(3, 2)
    buffer.held[1].reward = np.array([0.5, np.nan], np.float32)
    words = Vocabulary.of(["go left", "go right", "take the key"])
    data = buffer.transitions(views=("full",), memory=True, vocabulary=words)
    assert data.reward.tolist() == [0.0, 0.0, 0.0, 0.5, 0.0]
    assert data.known.tolist() == [True] * 4 + [False]
    assert data.terminal.tolist() == [False, False, True, False, True]
    assert data.action.tolist() == [0, 1, 2, 1, 2]
    assert data.instructions == ("go left", "go right")
    assert data.spec.vocabulary == words  # and not only the words of what lies in the buffer now
    assert data.frames["full"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 20, 21, 22]


def test_segments_are_drawn_evenly_from_all_starts_and_never_twice() -> None:
    buffer = filled(3, 1, 4)
    all_of_them = {(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)}
    everything = buffer.segments(generator(0, "x"), 99, 2)
    assert {(one.metadata["episode"], one.metadata["step"]) for one in everything} == all_of_them
    assert len(everything) == 5
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(500):
        drawn = buffer.segments(generator(seed, "y"), 2, 2)
        counts.update((one.metadata["episode"], one.metadata["step"]) for one in drawn)
    assert set(counts) == all_of_them
    assert all(150 < count < 250 for count in counts.values())  # 200 each; 150 and 250 are 4.6 standard deviations away
    assert buffer.segments(generator(0, "x"), 3, 9) == []


def test_pairs_have_the_same_words_and_are_not_the_same_piece() -> None:
    buffer = filled(3, 2, 2, 1, words=("go left", "go right", "go left", "alone"))
    drawn = buffer.segments(generator(0, "pairs"), 50, 1, pairs=True)
    assert len(drawn) == 100
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert first.annotations[0].instruction == second.annotations[0].instruction != "alone"
        assert (first.metadata["episode"], first.metadata["step"]) != (second.metadata["episode"], second.metadata["step"])
    assert {one.annotations[0].instruction for one in drawn} == {"go left", "go right"}


def test_a_piece_is_cut_from_everything() -> None:
    whole = episode(5, 1)
    piece = piece_of(whole, 1, 2, {"step": 1})
    assert piece.frames["full"][:, 0, 0, 0].tolist() == [21, 22, 23]
    assert piece.actions.tolist() == [2, 0]
    assert piece.rewards.tolist() == [1.0, 2.0]
    assert_close(piece.privileged["quality"], np.array([0.2, 0.4, 0.6], np.float32))
    assert len(piece.privileged["contribution"]) == 2
    assert (piece.terminated, piece.truncated, piece.annotations[0].spans) == (False, True, ())
    last = piece_of(whole, 3, 2, {})
    assert (last.terminated, last.truncated) == (True, False)


def test_digests_tell_pictures_words_and_actions_apart() -> None:
    ones = [episode(3), episode(3, 1), episode(3, words="go right"), episode(4)]
    assert len({digest_of(one) for one in ones}) == 4
    assert digest_of(episode(3)) == digest_of(episode(3))
    assert EpisodeDataset(ones[:2], NAMES).fingerprint != EpisodeDataset(ones[1::-1], NAMES).fingerprint


# --- exploring ----------------------------------------------------------------------------------------------------------------------


def explorer(temperature: float, random_actions: float) -> ExploringPolicy:
    spec = ObservationSpec({"full": (16, 16)}, NAMES, Vocabulary.of(["go"]))
    network = PolicyNetwork.of(spec, SMALL)
    return ExploringPolicy(network, spec, temperature=temperature, random_actions=random_actions, seed=3)


def test_actions_are_drawn_as_temperature_and_chance_say() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5]])).expand(20_000, 3)
    drawn = explorer(0.5, 0.3)._choose(logits)
    # squared and normalised: 4, 9 and 25 of 38; of that 0.7, and 0.1 for each action
    expected = np.array([0.7 * share / 38 + 0.1 for share in (4, 9, 25)])
    found = np.bincount(drawn.numpy(), minlength=3) / 20_000
    assert_close(found, expected, rtol=0, atol=0.015)  # four standard deviations
    assert explorer(0.5, 0.3)._choose(logits).tolist() == drawn.tolist()


def test_continuous_actions_are_refused() -> None:
    spec = ObservationSpec({}, (), Vocabulary(()), {"state": 5}, 2, reads=False)
    with pytest.raises(PolicyError, match="named actions"):
        ExploringPolicy(PolicyNetwork.of(spec, SMALL), spec, temperature=1.0, random_actions=0.0, seed=0)


# --- learning goes on ---------------------------------------------------------------------------------------------------------------


def memory_data(*rewards: list[float]) -> Transitions:
    source = MemoryDataset([MemoryEpisode(len(each), "go left") for each in rewards])
    arrays = {(number, 0): np.array(each, np.float32) for number, each in enumerate(rewards)}
    return Transitions.build(source, arrays, vocabulary=Vocabulary.of(["go left"]))


def test_what_is_estimated_stays_the_same_in_the_units_of_the_rewards() -> None:
    before, after = memory_data([0.0, 0.0, 2.0]), memory_data([0.0, 0.0, 2.0], [0.0, 8.0])
    algorithm = IQL(before, IQL.Config(network=SMALL, discount=0.5, largest_return=4.0, optimiser=FAST), seed=0, updates=50)
    sampler = Sampler(before, sequences=2, context=8, seed=0)
    algorithm.learn(sampler, 10, Machine())
    batch = collate(before, [Chunk(0, 0, 3)])
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows, None)
        value, critic = algorithm._value(features), algorithm._critics.heads[0](features)
        advantages, logits = algorithm.advantages(batch), algorithm.policy.head(features)
    algorithm.continue_with(after)
    assert algorithm._reward_scale == pytest.approx(0.5)  # the largest return was 2, now it is 8: 4 / 8 instead of 4 / 2
    with torch.no_grad():
        assert_close(algorithm._value(features), value / 4)
        assert_close(algorithm._critics.heads[0](features), critic / 4)
        assert_close(algorithm.advantages(batch), advantages)
        assert_close(algorithm.policy.head(features), logits)  # the policy stays
    assert float(advantages.abs().max()) > 1e-4
    algorithm.learn(Sampler(after, sequences=2, context=8, seed=0), 1, Machine())


def test_going_on_with_the_same_data_changes_nothing() -> None:
    data = memory_data([0.1, 0.0, 2.0])
    learned = []
    for interrupted in (False, True):
        algorithm = IQL(data, IQL.Config(network=SMALL, optimiser=FAST), seed=0, updates=20)
        sampler = Sampler(data, sequences=2, context=8, seed=0)
        algorithm.learn(sampler, 3, Machine())
        if interrupted:
            algorithm.continue_with(memory_data([0.1, 0.0, 2.0]))
        learned.append(algorithm.learn(sampler, 3, Machine()))
    assert learned[0] == learned[1]


def test_other_words_are_refused() -> None:
    algorithm = IQL(memory_data([1.0]), IQL.Config(network=SMALL), seed=0, updates=1)
    other = Transitions.build(MemoryDataset([MemoryEpisode(1, "turn round")]), {(0, 0): np.ones(1, np.float32)})
    with pytest.raises(UsageError, match="show, say or do something else"):
        algorithm.continue_with(other)


def test_policies_of_states_go_on_in_whole_updates_as_one_by_one() -> None:
    first, then = (Transitions.build(PointData(count), vectors=("state",), vocabulary=Vocabulary.of(["go"])) for count in (2, 4))
    first.reward[:], then.reward[:] = 1.0, 3.0

    def learn(together: bool) -> list[dict[str, float]]:
        algorithm = IQL(first, IQL.Config(network=PolicyNetwork.Config(width=16)), seed=0, updates=40)
        found = []
        for data in (first, then, first):
            algorithm.continue_with(data)
            sampler = Sampler(data, sequences=16, context=1, seed=0)
            if together:
                sums = algorithm.learn(sampler, 6, Machine())
            else:
                each = [algorithm.update(sampler.draw()) for _ in range(6)]
                sums = {name: torch.stack([one[name] for one in each]).sum() for name in each[0]}
            found.append({name: float(total) for name, total in sums.items()})
        return found

    for ours, theirs in zip(learn(True), learn(False), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


# --- settings -----------------------------------------------------------------------------------------------------------------------


def test_the_number_of_updates_is_known_beforehand() -> None:
    assert Config(rounds=3, updates=10).all_updates == 40
    assert Config(rounds=3, updates=10, first_updates=0).all_updates == 30
    assert Config(rounds=3, updates=10, first_updates=5).all_updates == 35


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"capacity": 0}, {"temperature": 0.0}, {"random_actions": 1.5}, {"first_updates": -1}, {"sequences": 0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Config(**settings)
