"""Implicit Q-learning against its equations, and what every transition may and may not influence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from guerdon.algorithms.iql import IQL
from guerdon.errors import UsageError
from guerdon.networks import Optimiser, PolicyNetwork
from guerdon.transitions import Batch, Chunk, Sampler, Transitions, collate
from tests.memory import MemoryDataset, MemoryEpisode
from tests.point import PointData

NAN = float("nan")
FAST = Optimiser.Config(learning_rate=1e-2, warm_up=5)
SMALL = PolicyNetwork.Config(channels=8, width=16)


def transitions() -> Transitions:
    source = MemoryDataset([MemoryEpisode(4, "go left"), MemoryEpisode(3, "go right", terminated=False)])
    return Transitions.build(source, {(0, 0): np.array([0.1, NAN, 0, 2], np.float32), (1, 0): np.array([0.1, 0.2, 0.3], np.float32)})


def learner(config: IQL.Config | None = None) -> tuple[IQL, Batch]:
    data = transitions()
    algorithm = IQL(data, config or IQL.Config(network=SMALL), seed=0, updates=100)
    return algorithm, collate(data, [Chunk(0, 0, 4), Chunk(1, 0, 3)])


def gradient(algorithm: IQL, batch: Batch) -> dict[str, Tensor]:
    """Gradient that one update would follow, by name of the parameter."""
    algorithm.update(batch)
    modules = {"policy": algorithm.policy, "value": algorithm._value, "critics": algorithm._critics.heads}
    return {f"{m}.{n}": p.grad for m, module in modules.items() for n, p in module.named_parameters() if p.grad is not None}


def test_losses_are_the_three_equations() -> None:
    config = IQL.Config(network=SMALL, discount=0.5, expectile=0.7, inverse_temperature=3.0, largest_return=4.0)
    algorithm, batch = learner(config)
    algorithm.update(batch)  # so that the target differs from the online critics
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows)
        target_features, _ = algorithm._target.trunk(batch.rows)
        value = algorithm._value(features)[:, 0]
        online = [critic(features) for critic in algorithm._critics.heads]
        target = [critic(target_features) for critic in algorithm._target.heads]
        log_policy = algorithm.policy.head(features).log_softmax(-1)
    losses = algorithm.losses(batch)
    scale = 4.0 / 2.0  # the largest return of 0.1, ?, 0, 2 is that of its last transition
    for row in torch.nonzero(batch.known).flatten().tolist():
        action, ends = batch.action[row], bool(batch.terminal[row])
        lower = min(target[0][row, action], target[1][row, action])
        goal = scale * batch.reward[row] + (0.0 if ends else 0.5 * value[row + 1])
        error = lower - value[row]
        assert_close(losses["value_loss"][row], (0.7 if error > 0 else 0.3) * error**2)
        assert_close(losses["critic_loss"][row], (online[0][row, action] - goal) ** 2 + (online[1][row, action] - goal) ** 2)
        assert_close(losses["policy_loss"][row], -min(torch.exp(3 * error), torch.tensor(100.0)) * log_policy[row, action])


def test_the_first_action_of_a_window_matters() -> None:
    algorithm, batch = learner()
    algorithm.update(batch)  # before which all actions are worth the same
    features, _ = algorithm.policy.trunk(batch.rows)
    other = batch.action.clone()
    other[0] = (other[0] + 1) % 3
    first, changed = algorithm._critics.values(features, batch.action)[0], algorithm._critics.values(features, other)[0]
    assert first[0] != changed[0]
    assert torch.equal(first[1:], changed[1:])


def test_the_critic_loss_of_the_first_transition_reaches_its_own_action_value() -> None:
    algorithm, batch = learner()
    algorithm.losses(batch)["critic_loss"][0].backward()  # type: ignore[no-untyped-call]
    for critic in algorithm._critics.heads:
        bias = critic[-1].bias.grad
        assert bias[batch.action[0]] != 0
        assert bias.count_nonzero() == 1


def test_unknown_rewards_and_rows_without_a_transition_contribute_no_gradient() -> None:
    first, batch = learner()
    second, _ = learner()
    masked = ~batch.known
    assert masked.sum() == 3
    other = replace(batch, action=batch.action.masked_fill(masked, 2), reward=batch.reward.masked_fill(masked, 99.0))
    ours, theirs = gradient(first, batch), gradient(second, other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_known_reward_does_contribute() -> None:
    first, batch = learner()
    second, _ = learner()
    other = replace(batch, reward=batch.reward + batch.known)
    ours, theirs = gradient(first, batch), gradient(second, other)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_target_follows_slowly() -> None:
    algorithm, batch = learner(IQL.Config(network=SMALL, target_rate=0.25))
    before = [parameter.clone() for parameter in algorithm._target.parameters()]
    algorithm.update(batch)
    for old, new, online in zip(before, algorithm._target.parameters(), algorithm._critics.parameters(), strict=True):
        assert_close(new, 0.75 * old + 0.25 * online)
        assert not new.requires_grad


def test_values_find_the_discounted_return_of_a_known_episode() -> None:
    """Rewards 0, 0, 0, 1 with γ = 0.5 are worth 1/8, 1/4, 1/2, 1: with one action each the critics have nothing else to learn."""
    data = Transitions.build(MemoryDataset([MemoryEpisode(4)], size=8), {(0, 0): np.array([0, 0, 0, 1], np.float32)})
    config = IQL.Config(network=SMALL, optimiser=FAST, discount=0.5, target_rate=0.3, largest_return=1.0)
    algorithm = IQL(data, config, seed=0, updates=200)
    batch = collate(data, [Chunk(0, 0, 4)])
    for _ in range(200):
        algorithm.update(batch)
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows)
        q, _ = algorithm._critics.values(features, batch.action)
    assert q[:4].tolist() == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1], abs=0.03)


def test_the_policy_prefers_the_action_that_paid() -> None:
    """Half of the episodes answer the same picture with action 0 and are paid, half with action 1 and are not."""

    class Choice(MemoryDataset):
        def actions(self, index: int) -> np.ndarray:
            return np.array([index % 2])

        def frames(self, index: int, view: str, start: int, stop: int) -> np.ndarray:
            return np.zeros((stop - start, 8, 8, 3), np.uint8)

    source = Choice([MemoryEpisode(1) for _ in range(4)])
    data = Transitions.build(source, {(k, 0): np.array([1.0 - k % 2], np.float32) for k in range(4)})
    algorithm = IQL(data, IQL.Config(network=SMALL, optimiser=FAST, target_rate=0.1), seed=0, updates=120)
    batch = collate(data, [Chunk(k, 0, 1) for k in range(4)])
    for _ in range(120):
        algorithm.update(batch)
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows)
        chances = algorithm.policy.head(features)[0].softmax(-1)
    assert chances[0] > 0.9


@pytest.mark.parametrize("wrong", [{"discount": 3.0}, {"expectile": -0.1}, {"target_rate": 2.0}, {"largest_return": 0.0}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        IQL.Config(**wrong)


@pytest.mark.parametrize("wrong", [{"width": 127}, {"tile": 0}, {"late_convolutions": -1}])
def test_networks_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        PolicyNetwork.Config(**wrong)


# --- vectors and continuous actions -------------------------------------------------------------------------------------------------

PUSHES = PolicyNetwork.Config(hidden=(16,))


def pusher(config: IQL.Config | None = None) -> tuple[IQL, Batch]:
    source = PointData(2, steps=4)
    rewards = {(0, 0): np.array([0.1, NAN, 0, 2], np.float32), (1, 0): np.array([0.1, 0.2, 0.3, -0.4], np.float32)}
    data = Transitions.build(source, rewards, vectors=("state",))
    algorithm = IQL(data, config or IQL.Config(network=PUSHES), seed=0, updates=100)
    return algorithm, collate(data, [Chunk(0, 0, 3), Chunk(0, 3, 4), Chunk(1, 1, 3)])


def test_losses_of_continuous_actions_are_the_three_equations() -> None:
    config = IQL.Config(network=PUSHES, discount=0.5, expectile=0.7, inverse_temperature=3.0, largest_return=4.0)
    algorithm, batch = pusher(config)
    batch = replace(batch, terminal=torch.tensor([False, False, False, False, True, False, False, False, False]))
    for _ in range(3):
        algorithm.update(batch)
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows)
        value = algorithm._value(features)[:, 0]
        both = torch.cat([features, batch.action], 1)
        online = [critic(both)[:, 0] for critic in algorithm._critics.heads]
        target = [critic(both)[:, 0] for critic in algorithm._target.heads]
        mean, log_deviation = algorithm.policy.head(features)
    assert not torch.equal(online[0], target[0])
    losses = algorithm.losses(batch)
    scale = 4.0 / 2.0
    rows = torch.nonzero(batch.known).flatten().tolist()
    assert rows == [0, 2, 4, 6, 7]
    for row in rows:
        lower = min(target[0][row], target[1][row])
        goal = scale * batch.reward[row] + (0.0 if batch.terminal[row] else 0.5 * value[row + 1])
        error = lower - value[row]
        surprise = -torch.distributions.Normal(mean[row], log_deviation.exp()).log_prob(batch.action[row]).sum()
        assert_close(losses["value_loss"][row], (0.7 if error > 0 else 0.3) * error**2)
        assert_close(losses["critic_loss"][row], (online[0][row] - goal) ** 2 + (online[1][row] - goal) ** 2)
        assert_close(losses["policy_loss"][row], min(torch.exp(3 * error), torch.tensor(100.0)) * surprise)


def test_unknown_rewards_of_single_transitions_contribute_no_gradient() -> None:
    first, batch = pusher()
    second, _ = pusher()
    masked = ~batch.known
    other = replace(batch, action=batch.action.masked_fill(masked[:, None], 0.7), reward=batch.reward.masked_fill(masked, 99.0))
    ours, theirs = gradient(first, batch), gradient(second, other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    third, _ = pusher()
    different = gradient(third, replace(batch, reward=batch.reward + batch.known))
    assert any(not torch.equal(ours[name], different[name]) for name in ours)


def test_policy_value_and_critics_of_a_state_share_nothing() -> None:
    algorithm, batch = pusher()
    algorithm.update(batch)
    modules = {"policy": algorithm.policy, "value": algorithm._value, "critics": algorithm._critics.heads}
    for loss, owner in (("policy_loss", "policy"), ("value_loss", "value"), ("critic_loss", "critics")):
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        algorithm.losses(batch)[loss].sum().backward()  # type: ignore[no-untyped-call]
        touched = {name for name, module in modules.items() if any(p.grad is not None and p.grad.any() for p in module.parameters())}
        assert touched == {owner}


def test_values_of_a_state_find_the_discounted_return() -> None:
    """Rewards 0, 0, 0, 1 with γ = 0.5 are worth 1/8, 1/4, 1/2, 1 if the task ends there."""
    source = PointData(1, steps=4)
    source._episodes[0].terminated = True
    data = Transitions.build(source, {(0, 0): np.array([0, 0, 0, 1], np.float32)}, vectors=("state",))
    config = IQL.Config(network=PolicyNetwork.Config(hidden=(64, 64)), optimiser=FAST, discount=0.5, target_rate=0.3, largest_return=1.0)
    algorithm, sampler = IQL(data, config, seed=0, updates=300), Sampler(data, sequences=16, context=1, seed=0)
    for _ in range(300):
        algorithm.update(sampler.draw())
    batch = collate(data, [Chunk(0, 0, 4)])
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows)
        q, _ = algorithm._critics.values(features, batch.action)
    assert q[:4].tolist() == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1], abs=0.05)


def test_the_mean_moves_to_the_push_that_paid() -> None:
    """From one state, half of the pushes go left and are not paid, half go right and are: cloning would stand still."""

    class Choice(PointData):
        def vector(self, index: int, name: str) -> np.ndarray:
            return np.zeros((2, 2), np.float32)

        def actions(self, index: int) -> np.ndarray:
            return np.array([[0.5 if index % 2 else -0.5]], np.float32)

    data = Transitions.build(Choice(8, steps=1), {(k, 0): np.array([float(k % 2)], np.float32) for k in range(8)}, vectors=("state",))
    config = IQL.Config(network=PUSHES, optimiser=FAST, target_rate=0.1)
    algorithm, sampler = IQL(data, config, seed=0, updates=200), Sampler(data, sequences=16, context=1, seed=0)
    for _ in range(200):
        algorithm.update(sampler.draw())
    with torch.no_grad():
        mean, _ = algorithm.policy.head(torch.zeros(1, 2))
    assert float(mean[0, 0]) > 0.4


def test_advantages_of_continuous_actions_are_in_the_units_of_the_rewards() -> None:
    algorithm, batch = pusher(IQL.Config(network=PUSHES, largest_return=20.0))
    for _ in range(3):
        algorithm.update(batch)
    with torch.no_grad():
        features, _ = algorithm.policy.trunk(batch.rows)
        q = torch.minimum(*algorithm._target.values(features, batch.action))
        expected = (q - algorithm._value(features)[:, 0]) / (20.0 / 2.0)
    assert_close(algorithm.advantages(batch), expected)


def test_the_usual_inverse_temperature_depends_on_what_is_seen() -> None:
    states, _ = pusher(IQL.Config(network=PUSHES))
    pictures, _ = learner()
    assert (states._inverse_temperature, pictures._inverse_temperature) == (20.0, 1.0)
    assert pusher(IQL.Config(network=PUSHES, inverse_temperature=0.0))[0]._inverse_temperature == 0.0


@pytest.mark.parametrize(
    ("given", "discount", "share"),
    [
        ({}, 0.97, 0.03),
        ({"discount": 0.86}, 0.86, 0.03),
        ({"discount": 0.85}, 0.85, 0.3),
        ({"discount": 0.8, "critic_share": 0.0}, 0.8, 0.0),
    ],
)
def test_the_usual_share_of_the_critics_gradient_depends_on_the_horizon(given: dict[str, Any], discount: float, share: float) -> None:
    pictures, _ = learner(IQL.Config(network=SMALL, **given))
    assert (pictures._discount, pictures._critic_share) == (discount, share)


def test_critics_of_states_have_the_same_share_at_every_horizon() -> None:
    algorithms = [pusher(IQL.Config(network=PUSHES, discount=discount))[0] for discount in (0.8, 0.99)]
    assert [each._critic_share for each in algorithms] == [0.3, 0.3]
