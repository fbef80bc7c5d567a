"""Behaviour cloning: do what the recorded behaviour did.

The problem it solves here: whether a reward helps can only be seen against a policy that was learned without one, on the same data, with
the same network. The loss is the mean of -log π(a | what was seen so far, instruction) over all recorded transitions, whatever their
rewards; π is a Gaussian if actions are continuous.

Reads batches of `guerdon.transitions`; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from guerdon.algorithms import _joint
from guerdon.interfaces import Algorithm
from guerdon.losses import cloning_loss, gaussian_cloning_loss, masked_mean
from guerdon.machine import Machine
from guerdon.networks import Optimiser, PolicyNetwork, seeded
from guerdon.transitions import Batch, Sampler, Transitions


class BC(Algorithm):
    """Behaviour cloning."""

    name: ClassVar[str] = "bc"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of behaviour cloning."""

        network: PolicyNetwork.Config = field(default_factory=PolicyNetwork.Config)
        """The policy's network."""
        optimiser: Optimiser.Config = field(default_factory=Optimiser.Config)
        """How the network is fitted."""

    def __init__(self, transitions: Transitions, config: Config, *, seed: int, updates: int) -> None:
        """Args: transitions: what will be learned from; seed: of the initial weights; updates: how many there will be."""
        self._transitions = transitions
        self._joint: _joint.JointUpdate | None = None
        with seeded(seed, "bc"):
            self.policy = PolicyNetwork.of(transitions.spec, config.network)
        self.policy.measure(transitions.vector_moments(), transitions.action_deviation(), transitions.libraries)
        self._optimiser = Optimiser(self.policy.parameters(), config.optimiser, updates=updates)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        trunk, rows, action, acted = self.policy.trunk, batch.rows, batch.action, batch.acted
        if not trunk.remembers:  # what an action led to is not looked at
            here = batch.acted_rows()
            rows, action, acted = rows.alone(here), action[here], acted[here]
        words = trunk.read(rows.tokens)
        features, _ = trunk(rows, trunk.remember(batch.prefix, words), words)
        with torch.autocast(features.device.type, enabled=False):  # what the loss is made of is float32
            chosen = self.policy.head(features.float())
        if self.policy.action_size:
            mean, log_deviation = chosen
            losses = gaussian_cloning_loss(mean, log_deviation, action)
            likeness = {"action_error": (mean.detach() - action).abs().mean(-1)}
        else:
            losses = cloning_loss(chosen, action)
            likeness = {"accuracy": (chosen.argmax(-1) == action).float()}
        loss = masked_mean(losses, acted)
        norm = self._optimiser.step(loss)
        measured = {name: masked_mean(values, acted) for name, values in likeness.items()}
        return {"policy_loss": loss.detach(), **measured, "gradient_norm": norm}

    def learn(self, sampler: Sampler, count: int, machine: Machine) -> dict[str, Tensor]:
        if not _joint.is_possible(self._transitions.spec, sampler, machine):
            return super().learn(sampler, count, machine)
        if self._joint is None:
            rows, columns = _joint.packed(self._transitions, self.policy, sampler, reward_scale=1.0)
            names = ("policy_loss", "action_error" if columns.action else "accuracy")
            network = [*_joint.weights_of(self.policy.head), *self.policy.trunk.parameters()]
            loss = _cloning(self.policy, columns, machine.half)
            self._joint = _joint.JointUpdate([network], [], loss, names, rows, self._optimiser, machine, batch_size=sampler.batch_size)
        return self._joint.learn(sampler, count)

    def require(self, sampler: Sampler, machine: Machine) -> None:
        if not _joint.is_possible(self._transitions.spec, sampler, machine):
            super().require(sampler, machine)

    def to(self, device: torch.device) -> None:
        self.policy.to(device)

    def state(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "optimiser": self._optimiser.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._joint = None  # it is made anew, with the weights and moments that are read now
        self.policy.load_state_dict(state["policy"])
        self._optimiser.load_state(state["optimiser"])


def _cloning(policy: PolicyNetwork, columns: _joint.Columns, half: bool) -> _joint.Loss:
    """The loss of `update` as a function of weights and packed rows."""
    layers = len(_joint.weights_of(policy.head))

    def loss(networks: Sequence[_joint.Weights], targets: Sequence[_joint.Weights], rows: Tensor) -> tuple[Tensor, Tensor]:
        del targets
        state, action, *_ = columns.unpacked(rows)
        state, network = _joint.told(state, columns.summary(policy.trunk.reader, rows)), networks[0][:layers]
        if columns.action:
            mean, log_deviation = _joint.gaussian(network, state, half=half)
            cloned = gaussian_cloning_loss(mean, log_deviation, action).mean()
            likeness = (mean.detach() - action).abs().mean()
        else:
            logits = _joint.perceptron(network, state, half=half)
            cloned = cloning_loss(logits, action).mean()
            likeness = (logits.detach().argmax(-1) == action).float().mean()
        return cloned, torch.stack([cloned.detach(), likeness])

    return loss
