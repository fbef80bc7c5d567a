"""Implicit Q-learning from pictures and words as it is usually written: what `iql.py` compares with.

Every network sees for itself: policy, value, both critics and their targets each have an encoder of pictures and a reader of instructions
of their own. An update is seven passes forward (V twice) and four back, three optimisers with torch's defaults, pictures laid out channel
by channel, every row's instruction read whether or not another row has the same, numbers fetched from the device at every update. The
layers are those of `guerdon.networks_glimpse`, so both compute the same kind of thing.

    plain = PlainPictures(data, batch=256)
    metrics = plain.update()
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Data:
    """N transitions."""

    pictures: Tensor
    """(N, 3, height, width) uint8."""
    next_pictures: Tensor
    """(N, 3, height, width) uint8."""
    tokens: Tensor
    """(N, L) int64 of the instruction, 0 for padding."""
    action: Tensor
    """(N,) int64."""
    reward: Tensor
    """(N,) float32."""
    terminal: Tensor
    """(N,) float32, 1 where the task ended."""


class Network(nn.Module):
    """Pictures and tokens -> (B, outputs)."""

    def __init__(self, side: int, words: int, outputs: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width // 2, padding_idx=0)
        self.reader = nn.GRU(width // 2, width // 2, batch_first=True, bidirectional=True)
        self.first, self.second, self.third = nn.Conv2d(3, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3)
        places = ((side - 8) // 4 - 3) // 2 - 1
        self.film, self.widen, self.asked = nn.Linear(width, 128), nn.Linear(64 * places * places, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, pictures: Tensor, tokens: Tensor) -> Tensor:
        lengths = (tokens > 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        read, _ = nn.utils.rnn.pad_packed_sequence(self.reader(packed)[0], batch_first=True)
        summary = read.sum(1) / lengths[:, None]
        scale, shift = self.film(summary)[:, :, None, None].chunk(2, 1)
        seen = F.relu(self.second(F.relu(self.first(pictures.float() / 127.5 - 1))))
        told = F.relu(self.third(seen) * (1 + scale) + shift)
        result: Tensor = self.head(F.relu(self.norm(self.widen(told.flatten(1)) + self.asked(summary))))
        return result


class PlainPictures:
    """Named actions; batches are drawn with replacement."""

    def __init__(
        self,
        data: Data,
        *,
        actions: int,
        words: int,
        batch: int = 256,
        width: int = 128,
        learning_rate: float = 3e-4,
        discount: float = 0.97,
        expectile: float = 0.8,
        inverse_temperature: float = 1.0,
        target_rate: float = 0.02,
        device: str = "cpu",
    ) -> None:
        side = data.pictures.shape[-1]
        self.data, self.batch, self.device = data, batch, device
        self.discount, self.expectile = discount, expectile
        self.inverse_temperature, self.target_rate = inverse_temperature, target_rate
        self.policy, self.first, self.second = (Network(side, words, actions, width).to(device) for _ in range(3))
        self.value = Network(side, words, 1, width).to(device)
        self.targets = [deepcopy(critic).requires_grad_(False) for critic in (self.first, self.second)]
        critics = [*self.first.parameters(), *self.second.parameters()]
        self.of_policy, self.of_value, self.of_critics = (
            torch.optim.Adam(parameters, lr=learning_rate) for parameters in (self.policy.parameters(), self.value.parameters(), critics)
        )

    def update(self) -> dict[str, float]:
        """Draws a batch and learns from it."""
        chosen = torch.randint(len(self.data.action), (self.batch,))
        columns = (self.data.pictures, self.data.next_pictures, self.data.tokens, self.data.action, self.data.reward, self.data.terminal)
        pictures, next_pictures, tokens, action, reward, terminal = (column[chosen].to(self.device) for column in columns)

        with torch.no_grad():
            next_value = self.value(next_pictures, tokens).squeeze(-1)
            both = [target(pictures, tokens).gather(1, action[:, None]).squeeze(-1) for target in self.targets]
            lower = torch.minimum(*both)
        advantage = lower - self.value(pictures, tokens).squeeze(-1)
        value_loss = (torch.where(advantage > 0, self.expectile, 1 - self.expectile) * advantage.square()).mean()
        _step(self.of_value, value_loss)

        goal = reward + self.discount * (1 - terminal) * next_value
        found = [critic(pictures, tokens).gather(1, action[:, None]).squeeze(-1) for critic in (self.first, self.second)]
        critic_loss = sum(((values - goal).square().mean() for values in found), torch.zeros((), device=self.device))
        _step(self.of_critics, critic_loss)
        for target, critic in zip(self.targets, (self.first, self.second), strict=True):
            for old, new in zip(target.parameters(), critic.parameters(), strict=True):
                old.data.copy_(self.target_rate * new.data + (1 - self.target_rate) * old.data)

        weight = (self.inverse_temperature * advantage.detach()).exp().clamp(max=100.0)
        policy_loss = (weight * F.cross_entropy(self.policy(pictures, tokens), action, reduction="none")).mean()
        _step(self.of_policy, policy_loss)
        return {"value_loss": value_loss.item(), "critic_loss": critic_loss.item(), "policy_loss": policy_loss.item()}


def _step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
