"""Soft actor-critic as it is usually written, for benchmarks/online.py and for the test that ours gives the same numbers.

In the manner of the code that PEBBLE and its descendants learn with: a module for each network, Adam for each of them, a distribution
object for the policy, and losses that go back through autograd as they stand. Written for this project; nothing is copied.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution


def network(inputs: int, width: int, outputs: int, *, normed: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in (inputs, width, width):
        layers += [nn.Linear(size, width), *([nn.LayerNorm(width, elementwise_affine=False)] if normed else []), nn.ReLU()]
    made = nn.Sequential(*layers, nn.Linear(width, outputs))
    for layer in made:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return made


class Critic(nn.Module):
    def __init__(self, state: int, action: int, width: int, *, normed: bool) -> None:
        super().__init__()
        self.first, self.second = (network(state + action, width, 1, normed=normed) for _ in range(2))

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([state, action], -1)
        return self.first(both), self.second(both)


class Actor(nn.Module):
    def __init__(self, state: int, action: int, width: int) -> None:
        super().__init__()
        self.network = network(state, width, 2 * action)

    def forward(self, state: Tensor) -> TransformedDistribution:
        mean, log_deviation = self.network(state).chunk(2, -1)
        log_deviation = -5 + 0.5 * (2 + 5) * (torch.tanh(log_deviation) + 1)
        squashed = TransformedDistribution(Normal(mean, log_deviation.exp()), [TanhTransform(cache_size=1)])
        return Independent(squashed, 1)  # type: ignore[return-value]


class PlainSAC:
    def __init__(self, state: int, action: int, *, width: int = 256, normed_critics: bool = False) -> None:
        self.actor, self.critic = Actor(state, action, width), Critic(state, action, width, normed=normed_critics)
        self.target = copy.deepcopy(self.critic)
        self.log_alpha = torch.tensor(math.log(0.1), requires_grad=True)
        self.target_entropy, self.discount, self.made = -float(action), 0.99, 0
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=3e-4, betas=(0.9, 0.999))
        self.critic_optimiser = torch.optim.Adam(self.critic.parameters(), lr=3e-4, betas=(0.9, 0.999))
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=1e-4, betas=(0.9, 0.999))

    def update(self, batch: Any) -> dict[str, float]:
        reward, going = batch.reward[:, None], 1.0 - batch.terminal.float()[:, None]

        policy = self.actor(batch.next_state)
        following = policy.rsample()
        log_probability = policy.log_prob(following)[:, None]
        first, second = self.target(batch.next_state, following)
        value = torch.min(first, second) - self.log_alpha.exp().detach() * log_probability
        goal = (reward + going * self.discount * value).detach()
        first, second = self.critic(batch.state, batch.action)
        critic_loss = F.mse_loss(first, goal) + F.mse_loss(second, goal)
        self.critic_optimiser.zero_grad()
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic_optimiser.step()

        policy = self.actor(batch.state)
        action = policy.rsample()
        log_probability = policy.log_prob(action)[:, None]
        first, second = self.critic(batch.state, action)
        actor_loss = (self.log_alpha.exp().detach() * log_probability - torch.min(first, second)).mean()
        self.actor_optimiser.zero_grad()
        actor_loss.backward()  # type: ignore[no-untyped-call]
        self.actor_optimiser.step()

        self.alpha_optimiser.zero_grad()
        alpha_loss = (self.log_alpha.exp() * (-log_probability - self.target_entropy).detach()).mean()
        alpha_loss.backward()
        self.alpha_optimiser.step()

        self.made += 1
        if self.made % 2 == 0:
            for mine, followed in zip(self.target.parameters(), self.critic.parameters(), strict=True):
                mine.data.copy_(0.005 * followed.data + 0.995 * mine.data)
        return {"critic_loss": critic_loss.item(), "policy_loss": actor_loss.item(), "entropy": -log_probability.mean().item()}
