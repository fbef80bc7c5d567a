"""Behaviour cloning: do what the recorded behaviour did.

The problem it solves here: whether a reward helps can only be seen against a policy that was learned without one, on the same data, with
the same network. The loss is the mean of -log π(a | what was seen so far, instruction) over all recorded transitions, whatever their
rewards; π is a Gaussian if actions are continuous.

Reads batches of `guerdon.transitions`; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from guerdon.interfaces import Algorithm
from guerdon.losses import cloning_loss, gaussian_cloning_loss, masked_mean
from guerdon.networks import Optimiser, PolicyNetwork, seeded
from guerdon.transitions import Batch, Transitions


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
        with seeded(seed, "bc"):
            self.policy = PolicyNetwork.of(transitions.spec, config.network)
        self.policy.measure(transitions.vector_moments(), transitions.action_deviation())
        self._optimiser = Optimiser(self.policy.parameters(), config.optimiser, updates=updates)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        memory = self.policy.trunk.remember(batch.prefix)
        features, _ = self.policy.trunk(batch.rows, memory)
        chosen = self.policy.head(features)
        if self.policy.action_size:
            mean, log_deviation = chosen
            losses = gaussian_cloning_loss(mean, log_deviation, batch.action)
            likeness = {"action_error": (mean.detach() - batch.action).abs().mean(-1)}
        else:
            losses = cloning_loss(chosen, batch.action)
            likeness = {"accuracy": (chosen.argmax(-1) == batch.action).float()}
        loss = masked_mean(losses, batch.acted)
        norm = self._optimiser.step(loss)
        measured = {name: masked_mean(values, batch.acted) for name, values in likeness.items()}
        return {"policy_loss": loss.detach(), **measured, "gradient_norm": norm}

    def state(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "optimiser": self._optimiser.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self._optimiser.load_state(state["optimiser"])
