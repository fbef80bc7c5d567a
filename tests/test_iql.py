"""Implicit Q-learning against its equations, and what every transition may and may not influence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from guerdon.algorithms.iql import IQL
from guerdon.errors import UsageError
from guerdon.networks import Optimiser, PolicyNetwork
from guerdon.transitions import Batch, Chunk, Transitions, collate
from tests.memory import MemoryDataset, MemoryEpisode

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
