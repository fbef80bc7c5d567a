"""Implicit Q-learning (Kostrikov, Nair, Levine, ICLR 2022), for policies that read an instruction and remember the episode, and for
policies that see a state.

The problem it solves here: recorded behaviour reaches its goal by detours, and a reward says which actions helped. IQL learns values from
the recorded actions alone (it never asks what an unseen action would be worth) and then clones the actions in proportion to their
advantage:

    (1) value    L2^τ( min(Q̂₁, Q̂₂)(s, a) - V(s) )
    (2) critics  ( r + γ (1 - d) V(s') - Qᵢ(s, a) )²,  i = 1, 2
    (3) policy   - min( exp(β (min(Q̂₁, Q̂₂)(s, a) - V(s))), ceiling ) log π(a | s)

With pictures, one trunk serves the policy, the value and both critics; the target critics Q̂ have a trunk of their own, and follow by a
moving average. The three losses are added and minimised by one optimiser: each is taken at the weights that the update starts from. V(s')
is read from the row of the next observation, so a batch passes once through the trunk and once, without gradient, through its target.
Without a memory, batches are single transitions, and what an action led to passes through the trunk once, without gradient.

With vectors and no pictures, policy, value and critics are four networks that share nothing (but the reading of instructions), as in the
paper, and batches are single transitions. Actions, named or continuous, make no further difference: continuous ones are an input of the
critics and are cloned as a Gaussian. Only the inverse temperature has another default then.

A reward that is paid at every step and never negative teaches to put off the end, if the end of the task ends the reward: measured on
recorded drawer openings (one seed, 60 new places), the simulator's reward from 0 to 10 gave 77 % success, the same reward less 10 gave
100 %. Subtract the largest reward, or use differences of potentials, where success ends an episode.

A transition whose reward is unknown is left out of all three losses; its picture still passes through the memory. Rewards are scaled by
the returns in the data, in the manner of the paper: whatever the scale of a reward column, the largest discounted return is
`largest_return`, and value and critics begin at the mean return. That decides two things: how much the critics weigh in the gradient of
the shared trunk (with returns around 1 they hardly learn beside the policy's cross entropy, with returns around 100 they drown it), and
what the inverse temperature means. The defaults for it and for the target's rate are those for runs of some thousand updates; the papers'
5 and 0.005 belong to returns around 1 and to runs a hundred times as long.

Reads batches of `guerdon.transitions`; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from guerdon.algorithms import _joint
from guerdon.errors import UsageError
from guerdon.interfaces import Algorithm
from guerdon.losses import (
    advantage_weight,
    expectile_loss,
    masked_mean,
    temporal_difference_target,
    weighted_cloning_loss,
    weighted_gaussian_cloning_loss,
)
from guerdon.machine import Machine
from guerdon.networks import Optimiser, PolicyNetwork, Sequences, StateTrunk, Trunk, scale_gradient, seeded
from guerdon.networks_glimpse import GlimpseTrunk
from guerdon.transitions import Batch, Sampler, Transitions

DISCOUNT = 0.97
"""γ where nobody says another."""
_SHORT_HORIZON = 0.85
"""The largest discount at which values are about the next few actions only."""
_SHARE, _SHARE_AT_LONG_HORIZONS = 0.3, 0.03
"""Shares of the critics' gradient that reach a trunk which is the policy's, too. Values that look far ahead are mostly about how long the
task still takes, which is no help in choosing an action: on 36 BabyAI tasks, a sparse reward at a discount of .97 gave .18 with a share of
.3 and .50 with .03, imitation .52; on 100 tasks, scores of single actions at .8 gave .71 with .3 and .61 with .03
(docs/results/rg-vlm.md has the commands)."""
_WITH_PICTURES, _WITHOUT_PICTURES = 1.0, 20.0
"""Inverse temperatures. A single movement of a robot changes the return by little, and nothing but the policy suffers from large weights
where networks share nothing. The paper's 3 belongs to returns some ten times as large as those here."""


class _Critics(nn.Module):
    """Two action values on one trunk."""

    def __init__(self, trunk: Trunk | StateTrunk | GlimpseTrunk, heads: nn.ModuleList) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, heads

    def values(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """(Q₁(s, a), Q₂(s, a)), each (R,), in float32. Actions: (R,) int64 or (R, A) float32."""
        with torch.autocast(features.device.type, enabled=False):
            if action.is_floating_point():
                both = torch.cat([features.float(), action], 1)
                first, second = (critic(both).squeeze(-1) for critic in self.heads)
            else:
                first, second = (critic(features.float()).gather(-1, action[:, None]).squeeze(-1) for critic in self.heads)
        return first, second

    @torch.no_grad()
    def lower(self, rows: Sequences, prefix: Sequences | None, action: Tensor, here: Any) -> Tensor:
        """min(Q₁, Q₂)(s, a) of the rows `here` (an index), without gradient."""
        words = self.trunk.read(rows.tokens)
        features, _ = self.trunk(rows, self.trunk.remember(prefix, words), words)
        return torch.minimum(*self.values(features[here], action[here]))


def _begin_at(value: float, estimate: nn.Module) -> None:
    """Lets a fresh head give `value` for every state and action, so that no updates are spent on finding the mean, and none on unlearning
    differences between actions that mean nothing."""
    *_, weight, bias = estimate.parameters()
    nn.init.zeros_(weight)
    nn.init.constant_(bias, value)


class IQL(Algorithm):
    """Implicit Q-learning with twin critics."""

    name: ClassVar[str] = "iql"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of implicit Q-learning."""

        discount: float | None = None
        """γ: what a reward one step later is worth. If not given, what the reward column was composed for (--gamma of guerdon reward), else
        0.97."""
        expectile: float = 0.8
        """τ of the value loss: 0.5 gives the mean over recorded actions, 1 the best of them."""
        inverse_temperature: float | None = None
        """β: how strongly the policy prefers actions of high advantage; 0 gives behaviour cloning. 1 if not given, and 20 for policies that
        see vectors only."""
        weight_ceiling: float = 100.0
        """Largest weight of a transition in the policy loss."""
        target_rate: float = 0.02
        """κ: share of the online weights that the target takes over at each update."""
        largest_return: float = 10.0
        """Rewards are scaled so that the largest discounted return in the data is this."""
        critic_share: float | None = None
        """Share of the gradient of value and critics that reaches the trunk; the rest is the policy's to shape. If not given, 0.3; for
        policies that look at pictures 0.03 where the discount is above 0.85."""
        network: PolicyNetwork.Config = field(default_factory=PolicyNetwork.Config)
        """The network of policy, value and critics."""
        optimiser: Optimiser.Config = field(default_factory=Optimiser.Config)
        """How the network is fitted."""

        def __post_init__(self) -> None:
            for name in ("discount", "expectile", "target_rate", "critic_share"):
                value = getattr(self, name)
                if value is not None and not 0 <= value <= 1:
                    raise UsageError(f"{name} lies in [0, 1], got {value}")
            if (self.inverse_temperature or 0) < 0 or self.weight_ceiling <= 0 or self.largest_return <= 0:
                raise UsageError("inverse_temperature is not negative; weight_ceiling and largest_return are above 0")

    def __init__(self, transitions: Transitions, config: Config, *, seed: int, updates: int) -> None:
        """Args: transitions: what will be learned from; seed: of the initial weights; updates: how many there will be."""
        self.config, spec = config, transitions.spec
        self._transitions = transitions
        self._joint: _joint.JointUpdate | None = None
        self._discount = DISCOUNT if config.discount is None else config.discount
        is_far = bool(spec.views) and self._discount > _SHORT_HORIZON
        usual_share = _SHARE_AT_LONG_HORIZONS if is_far else _SHARE
        self._critic_share = usual_share if config.critic_share is None else config.critic_share
        returns = transitions.returns(self._discount)
        self._reward_scale = self._scale_for(returns)
        usual = _WITH_PICTURES if spec.views else _WITHOUT_PICTURES
        self._inverse_temperature = usual if config.inverse_temperature is None else config.inverse_temperature
        outputs = 1 if spec.action_size else len(spec.action_names)
        with seeded(seed, "iql"):
            self.policy = PolicyNetwork.of(spec, config.network)
            self._value = self.policy.new_head(1)
            critics = [self.policy.new_head(outputs, beside=spec.action_size) for _ in range(2)]
            self._critics = _Critics(self.policy.trunk, nn.ModuleList(critics))
        self.policy.measure(transitions.vector_moments(), transitions.action_deviation(), transitions.libraries)
        for estimate in (self._value, *self._critics.heads):
            _begin_at(self._reward_scale * float(returns.mean()), estimate)
        self._target = deepcopy(self._critics).requires_grad_(False)
        learned = [*self.policy.parameters(), *self._value.parameters(), *self._critics.heads.parameters()]
        apart = [] if spec.views else [list(network.parameters()) for network in (self._value, *critics)]
        self._optimiser = Optimiser(learned, config.optimiser, updates=updates, apart=apart)

    def _scale_for(self, returns: npt.NDArray[np.float64]) -> float:
        return float(self.config.largest_return / (np.abs(returns).max() or 1.0))

    @torch.no_grad()
    def continue_with(self, transitions: Transitions) -> None:
        """Goes on learning from other transitions: more of them, or the same with other rewards. Weights and optimiser stay.

        Rewards are scaled anew by the returns that there are now, so that the weight of the critics in the gradient and the meaning of the
        inverse temperature stay what they are while returns grow or a reward model is fitted again. The last layers of value and critics
        are multiplied by as much, so that what they estimate, in the units of the rewards, does not change ("Learning values across many
        orders of magnitude", van Hasselt et al., NeurIPS 2016).

        Raises:
            UsageError: if the policy would see, read or do something else than it was made for.
        """
        if transitions.spec != self._transitions.spec:
            cure = "Build them with the same views, vectors, memory and vocabulary."
            raise UsageError("the new transitions show, say or do something else than those that the policy was made for", cure=cure)
        scale = self._scale_for(transitions.returns(self._discount))
        for estimate in (self._value, *self._critics.heads, *self._target.heads):
            *_, weight, bias = estimate.parameters()
            weight.mul_(scale / self._reward_scale)
            bias.mul_(scale / self._reward_scale)
        self._transitions, self._reward_scale = transitions, scale
        self._joint = None  # its rows were those of the transitions before

    @torch.no_grad()
    def advantages(self, batch: Batch) -> Tensor:
        """min(Q̂₁, Q̂₂)(s, a) - V(s) of each row (R,), in the units of the rewards; meaningless where there is no transition."""
        features, _ = self.policy.trunk(batch.rows, self.policy.trunk.remember(batch.prefix))
        target_q = self._target.lower(batch.rows, batch.prefix, batch.action, slice(None))
        value: Tensor = self._value(features).squeeze(-1)
        return (target_q - value) / self._reward_scale

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The three losses, each (R,): one number per row, meaningless where no reward is known."""
        trunk = self.policy.trunk
        if trunk.remembers:
            words = trunk.read(batch.rows.tokens)
            features, _ = trunk(batch.rows, trunk.remember(batch.prefix, words), words)
            target_q = self._target.lower(batch.rows, batch.prefix, batch.action, slice(None))
            return self._losses_of(features, None, target_q, batch.action, batch.reward, batch.terminal)
        # Rows stand alone: what an action led to is looked at for V(s') only, without gradient, which would double the work.
        here, words = batch.acted_rows(), trunk.read(batch.rows.tokens)
        now, later, action = batch.rows.alone(here), batch.rows.alone(here + 1), batch.action[here]
        features, _ = trunk(now, None, words)
        target_q = self._target.lower(now, None, action, slice(None))
        losses = self._losses_of(features, self._values_of(later, words), target_q, action, batch.reward[here], batch.terminal[here])
        return {name: torch.zeros_like(batch.reward).index_put((here,), loss) for name, loss in losses.items()}

    def _losses_of(
        self, features: Tensor, next_value: Tensor | None, target_q: Tensor, action: Tensor, reward: Tensor, terminal: Tensor
    ) -> dict[str, Tensor]:
        """The three losses, each (N,), of N rows, in float32. Where V(s') is not given, the next row is what the action led to."""
        c = self.config
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            judged = scale_gradient(features, self._critic_share)
            value = self._value(judged).squeeze(-1)
            next_value = value.detach().roll(-1) if next_value is None else next_value
            goal = temporal_difference_target(self._reward_scale * reward, next_value, terminal, self._discount)
            first, second = self._critics.values(judged, action)
            weight = advantage_weight(target_q - value, self._inverse_temperature, c.weight_ceiling)
            return {
                "value_loss": expectile_loss(target_q - value, c.expectile),
                "critic_loss": (first - goal).square() + (second - goal).square(),
                "policy_loss": self._policy_loss(features, action, weight),
            }

    @torch.no_grad()
    def _values_of(self, rows: Sequences, words: Any) -> Tensor:
        """V(s) of rows (N,) that stand alone, in float32, without gradient."""
        features, _ = self.policy.trunk(rows, None, words)
        with torch.autocast(features.device.type, enabled=False):
            value: Tensor = self._value(features.float())
        return value.squeeze(-1)

    def _policy_loss(self, features: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        if self.policy.action_size:
            mean, log_deviation = self.policy.head(features)
            return weighted_gaussian_cloning_loss(mean, log_deviation, action, weight)
        return weighted_cloning_loss(self.policy.head(features), action, weight)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        means = {name: masked_mean(loss, batch.known) for name, loss in self.losses(batch).items()}
        norm = self._optimiser.step(torch.stack(list(means.values())).sum())
        self._follow()
        return {**{name: mean.detach() for name, mean in means.items()}, "gradient_norm": norm}

    def learn(self, sampler: Sampler, count: int, machine: Machine) -> dict[str, Tensor]:
        if not _joint.is_possible(self._transitions.spec, sampler, machine):
            return super().learn(sampler, count, machine)
        if self._joint is None:
            rows, columns = _joint.packed(self._transitions, self.policy, sampler, self._reward_scale)
            reads, followed = list(self.policy.trunk.parameters()), list(self._target.trunk.parameters())
            self._joint = _joint.JointUpdate(
                [
                    _joint.weights_of(self._value),
                    [*_joint.weights_of(self.policy.head), *reads],
                    *(_joint.weights_of(each) for each in self._critics.heads),
                ],
                [followed, *(_joint.weights_of(each) for each in self._target.heads)],
                self._joint_losses(columns, machine.half),
                ("value_loss", "critic_loss", "policy_loss"),
                rows,
                self._optimiser,
                machine,
                batch_size=sampler.batch_size,
                policy=1,
                target_rate=self.config.target_rate,
            )
        return self._joint.learn(sampler, count)

    def _joint_losses(self, columns: _joint.Columns, half: bool) -> _joint.Loss:
        """The losses of `update` as a function of weights and packed rows."""
        c, inverse_temperature, layers = self.config, self._inverse_temperature, len(_joint.weights_of(self.policy.head))
        discount, critic_share = self._discount, self._critic_share

        def action_values(critics: Sequence[_joint.Weights], state: Tensor, action: Tensor) -> list[Tensor]:
            if columns.action:
                both = torch.cat([state, action], 1)
                return [_joint.perceptron(each, both, half=half).squeeze(1) for each in critics]
            return [_joint.perceptron(each, state, half=half).gather(1, action[:, None]).squeeze(1) for each in critics]

        def loss(networks: Sequence[_joint.Weights], targets: Sequence[_joint.Weights], rows: Tensor) -> tuple[Tensor, Tensor]:
            value_network, policy, *critics = networks
            bare, action, reward, terminal, following = columns.unpacked(rows)
            summary = columns.summary(self.policy.trunk.reader, rows)
            state = _joint.told(bare, summary)
            with torch.no_grad():
                seen_by_target = _joint.told(bare, columns.summary(self._target.trunk.reader, rows))
                target_q = torch.minimum(*action_values(targets[1:], seen_by_target, action))
                following = _joint.told(following, summary)
                next_value = _joint.perceptron(value_network, following, half=half).squeeze(1)
            judged = state if summary is None else scale_gradient(state, critic_share)
            value = _joint.perceptron(value_network, judged, half=half).squeeze(1)
            goal = temporal_difference_target(reward, next_value, terminal, discount)
            first, second = action_values(critics, judged, action)
            weight = advantage_weight(target_q - value, inverse_temperature, c.weight_ceiling)
            if columns.action:
                mean, log_deviation = _joint.gaussian(policy[:layers], state, half=half)
                cloning = weighted_gaussian_cloning_loss(mean, log_deviation, action, weight)
            else:
                cloning = weighted_cloning_loss(_joint.perceptron(policy[:layers], state, half=half), action, weight)
            critic_loss = (first - goal).square() + (second - goal).square()
            losses = torch.stack([expectile_loss(target_q - value, c.expectile).mean(), critic_loss.mean(), cloning.mean()])
            return losses.sum(), losses.detach()

        return loss

    def require(self, sampler: Sampler, machine: Machine) -> None:
        if not _joint.is_possible(self._transitions.spec, sampler, machine):
            super().require(sampler, machine)

    def to(self, device: torch.device) -> None:
        for network in (self.policy, self._value, self._critics, self._target):
            network.to(device)

    @torch.no_grad()
    def _follow(self) -> None:
        torch._foreach_lerp_(list(self._target.parameters()), list(self._critics.parameters()), self.config.target_rate)

    def state(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "value": self._value.state_dict(),
            "critics": self._critics.heads.state_dict(),
            "target": self._target.state_dict(),
            "optimiser": self._optimiser.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._joint = None  # it is made anew, with the weights and moments that are read now
        self.policy.load_state_dict(state["policy"])
        self._value.load_state_dict(state["value"])
        self._critics.heads.load_state_dict(state["critics"])
        self._target.load_state_dict(state["target"])
        self._optimiser.load_state(state["optimiser"])
