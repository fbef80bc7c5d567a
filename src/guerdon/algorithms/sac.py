"""Soft actor-critic (Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications"): learning continuous actions while acting.

The problem it solves here: a reward that a rater taught is known for whatever the policy does, so the policy need not be content with what
others recorded. It looks for actions of high value and, as far as they cost no value, for variety:

    (1) critics      ( r + γ (1 - d) (min(Q̂₁, Q̂₂)(s', a') - α log π(a' | s')) - Qᵢ(s, a) )²,  i = 1, 2,  a' ~ π(s')
    (2) policy       α log π(a | s) - min(Q₁, Q₂)(s, a),  a ~ π(s)
    (3) temperature  α (-log π(a | s) - H̄)

The policy is a Gaussian squeezed into [-1, 1] by tanh; H̄ is the entropy that it should have on average. The three steps are made one after
the other: the policy learns from critics that have just moved, and its loss moves no critic. The target critics Q̂ follow by a moving
average after every second update.

Rewards are taken as they are. The temperature finds its own size, but its pull is slow: rewards of a size around 1 are what the published
settings are for. A task that ends takes all later rewards away, so where success ends an episode, a reward must make that worth while; an
episode that only ran out of time is not `terminal`.

The settings are those of ERL-VLM and PEBBLE on Meta-World. The arithmetic of the networks is in `_sac_networks`; what a policy does in an
update is all here.

Reads `guerdon.replay_buffer.Experience`; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adam import adam

from guerdon.algorithms._sac_networks import Pass, Perceptrons, Shared, said
from guerdon.errors import UsageError
from guerdon.interfaces import Floats, OnlineAlgorithm
from guerdon.losses import temporal_difference_target
from guerdon.machine import Machine, Precision, quick_products
from guerdon.networks import GaussianHead, PolicyNetwork, seeded
from guerdon.seeding import stream_seed
from guerdon.transitions import ObservationSpec, Vocabulary

if TYPE_CHECKING:
    from guerdon.replay_buffer import Experience

STATE = "state"
"""Name of the vector that the policy sees, in worlds and in saved policies."""
_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8
"""Adam's decay of the two moments, and what is added to the root of the second."""
_UNIT = 2.0**20
"""In which saved policies see the numbers of a state."""
_STREAMS = ("weights", "exploring", "updating")
"""Random numbers are drawn for three uses, apart from each other: how often one acts does not change what is learned from."""


class SAC(OnlineAlgorithm):
    """Soft actor-critic with twin critics and a temperature that is learned."""

    name: ClassVar[str] = "sac"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of soft actor-critic."""

        batch: int = 512
        """Transitions that an update learns from."""
        discount: float = 0.99
        """γ: what a reward one step later is worth."""
        actor_learning_rate: float = 3e-4
        """Of the policy."""
        critic_learning_rate: float = 3e-4
        """Of the critics."""
        temperature_learning_rate: float = 1e-4
        """Of the logarithm of the temperature; 0 leaves the temperature as it is."""
        initial_temperature: float = 0.1
        """α at the beginning: how much reward a unit of entropy is worth."""
        target_entropy: float | None = None
        """H̄: the entropy that the temperature steers to; the number of the action's components, negated, if not given."""
        target_rate: float = 0.005
        """Share of the critics' weights that the target takes over when it follows."""
        target_every: int = 2
        """Updates from one such time to the next."""
        lowest_log_deviation: float = -5.0
        """Least logarithm of the standard deviation of the action, before it is squeezed into [-1, 1]."""
        highest_log_deviation: float = 2.0
        """Greatest one."""
        hidden: tuple[int, ...] = (256, 256, 256)
        """Widths of the hidden layers of each network."""
        normed_critics: bool = False
        """Whether the critics normalise their hidden units before they rectify them. Not published with these settings; meant for learning
        from few steps, as in Hiraoka et al. 2022, "Dropout Q-Functions for Doubly Efficient Reinforcement Learning"."""
        precision: Precision = "float32"
        """Of the matrix products in updates: float32, or bfloat16, which is faster on processors and cards that have it."""

        def __post_init__(self) -> None:
            object.__setattr__(self, "hidden", tuple(self.hidden))  # a record read from JSON has a list
            for name in ("discount", "target_rate"):
                if not 0 <= getattr(self, name) <= 1:
                    raise UsageError(f"{name} lies in [0, 1], got {getattr(self, name)}")
            for name in ("actor_learning_rate", "critic_learning_rate", "temperature_learning_rate"):
                if not 0 <= getattr(self, name) < math.inf:  # not a number: neither
                    raise UsageError(f"{name} is not negative, got {getattr(self, name)}")
            if not 0 < self.initial_temperature < math.inf:
                raise UsageError(f"initial_temperature is above 0, got {self.initial_temperature}")
            if self.target_entropy is not None and not math.isfinite(self.target_entropy):
                raise UsageError(f"target_entropy is a number, got {self.target_entropy}")
            if not -math.inf < self.lowest_log_deviation < self.highest_log_deviation < math.inf:
                raise UsageError("lowest_log_deviation is below highest_log_deviation")
            if min(self.batch, self.target_every, *self.hidden) < 1 or not self.hidden:
                raise UsageError("batch and target_every are at least 1, and there is a hidden layer, each at least 1 wide")
            Machine.of(precision=self.precision)

    def __init__(self, state_size: int, action_size: int, config: Config, *, seed: int) -> None:
        """Args: state_size: D, numbers of a state; action_size: A, components of an action; seed: of weights, exploring and updates."""
        if min(state_size, action_size) < 1:
            raise UsageError(f"states and actions have at least one component, got {state_size} and {action_size}")
        self.config = config
        self._state_size, self._action_size = state_size, action_size
        self._target_entropy = -float(action_size) if config.target_entropy is None else config.target_entropy
        self._random = {use: torch.Generator().manual_seed(stream_seed(seed, "sac", use)) for use in _STREAMS}
        self._made = 0
        self._build(torch.device("cpu"))
        self._policy.begin(self._random["weights"])
        self.forget_values()

    def _build(self, device: torch.device) -> None:
        """Networks and optimisers, empty."""
        config, half = self.config, self.config.precision == "bfloat16"
        judged = (self._state_size + self._action_size, *config.hidden, 1)
        self._device = device
        self._policy = Perceptrons(1, (self._state_size, *config.hidden, 2 * self._action_size), half=half, device=device)
        normed = config.normed_critics
        self._critics, self._target = (Perceptrons(2, judged, half=half, normed=normed, device=device) for _ in range(2))
        self._log_temperature = nn.Parameter(torch.tensor(math.log(config.initial_temperature), device=device))
        learned = {
            "policy": (self._policy.flat, config.actor_learning_rate),
            "critics": (self._critics.flat, config.critic_learning_rate),
            "temperature": (self._log_temperature, config.temperature_learning_rate),
        }
        self._optimisers = {name: _Adam(parameter, rate) for name, (parameter, rate) in learned.items()}
        self._memory: _Memory | None = None

    # --- acting ---------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, states: Floats, *, explore: bool) -> npt.NDArray[np.float32]:
        if states.ndim != 2 or states.shape[1] != self._state_size:
            raise UsageError(f"states are rows of {self._state_size} numbers, got {states.shape}")
        seen = torch.from_numpy(np.ascontiguousarray(states, np.float32)).to(self._device)
        mean, log_deviation = self._gaussian(said(self._policy.each[0], seen))
        if explore:
            mean = mean + log_deviation.exp() * self._noise("exploring", len(seen))
        chosen: npt.NDArray[np.float32] = torch.tanh(mean).cpu().numpy()
        return chosen

    @property
    def spec(self) -> ObservationSpec:
        """What `policy` sees and does."""
        return ObservationSpec({}, (), Vocabulary.of(()), {STATE: self._state_size}, self._action_size, reads=False)

    @property
    @torch.no_grad()
    def policy(self) -> PolicyNetwork:
        """The policy as it is now, without its variety, as a network for `guerdon.training.policy` to keep on disk and to let act.

        It gives the likeliest actions. Its deviation is the least one there is, whatever the policy's own: that depends on the state, for
        which such a network has no place.
        """
        with seeded(0, "sac"):  # these weights are replaced at once; torch's global generator is left alone
            network = PolicyNetwork.of(self.spec, PolicyNetwork.Config(hidden=self.config.hidden))
        *hidden, (weight, bias) = self._policy.each[0]
        likeliest = [*hidden, (weight[: self._action_size], bias[: self._action_size])]
        assert isinstance(network.head, GaussianHead)
        parameters = list(network.head.mean.parameters())
        for parameter, value in zip(parameters, [each for layer in likeliest for each in layer], strict=True):
            parameter.copy_(value)
        # Such a network cuts what it sees at 10 units, which this policy does not: so its units are large. Powers of two cost no digit.
        for _, scale in network.trunk.scales():
            scale.scale.fill_(1 / _UNIT)
        parameters[0].mul_(_UNIT)
        network.head.log_deviation.fill_(GaussianHead.LOWEST)
        return network

    # --- learning -------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, experience: Experience) -> dict[str, Tensor]:
        self._check(experience)
        rows = experience.to(self._device)
        if self._memory is None or self._memory.rows != len(rows.reward):
            self._memory = _Memory(len(rows.reward), self._policy, self._critics)
        with self._products():
            metrics = self._learn_values(rows, self._memory) | self._learn_policy(rows, self._memory)
        self._made += 1
        if self._made % self.config.target_every == 0:
            self._target.flat.lerp_(self._critics.flat, self.config.target_rate)
            self._target.moved()
        return metrics

    def _learn_values(self, rows: Experience, memory: _Memory) -> dict[str, Tensor]:
        """Equation (1)."""
        action, log_probability = self._draw(memory.following.there(self._policy.multiplied[0], rows.next_state))
        target_q = torch.minimum(*_values(memory.target, self._target, rows.next_state, action))
        next_value = target_q - self._log_temperature.exp() * log_probability
        goal = temporal_difference_target(rows.reward, next_value, rows.terminal, self.config.discount)
        errors = [value - goal for value in _values(memory.critics, self._critics, rows.state, rows.action)]
        for way, layers, gradients, error in zip(memory.critics, self._critics.multiplied, self._critics.gradients, errors, strict=True):
            way.back(layers, (2 / len(error)) * error[:, None], gradients=gradients)
        self._optimisers["critics"].step()
        self._critics.moved()
        loss = torch.stack([error.square().mean() for error in errors]).sum()
        return {"critic_loss": loss, "target_value": goal.mean()}

    def _learn_policy(self, rows: Experience, memory: _Memory) -> dict[str, Tensor]:
        """Equations (2) and (3)."""
        temperature = self._log_temperature.exp()
        with torch.enable_grad():  # of what lies between the two networks; the networks themselves go back by hand
            outputs = memory.policy.there(self._policy.multiplied[0], rows.state).detach().requires_grad_()
            action, log_probability = self._draw(outputs)
        first, second = _values(memory.critics, self._critics, rows.state, action.detach())
        by_action = self._climb(memory, first, second)
        by_log_probability = (temperature / len(first)).expand_as(log_probability)
        (slope,) = torch.autograd.grad([action, log_probability], [outputs], [by_action, by_log_probability])
        memory.policy.back(self._policy.multiplied[0], slope, gradients=self._policy.gradients[0])
        self._optimisers["policy"].step()
        self._policy.moved()
        log_probability = log_probability.detach()
        surplus = -log_probability.mean() - self._target_entropy  # of the policy's entropy over the one it should have
        self._log_temperature.grad = temperature * surplus
        self._optimisers["temperature"].step()
        loss = (temperature * log_probability - torch.minimum(first, second)).mean()
        return {"policy_loss": loss, "entropy": -log_probability.mean(), "temperature": temperature}

    def _climb(self, memory: _Memory, first: Tensor, second: Tensor) -> Tensor:
        """The derivative of -mean min(Q₁, Q₂)(s, a) by the action, (N, A). Of each row only the lower critic has a say; no critic moves."""
        slopes, lower = torch.zeros(len(first), self._action_size, device=self._device), first <= second
        for way, layers, chosen in zip(memory.critics, self._critics.multiplied, (lower, ~lower), strict=True):
            slope = chosen[:, None] * (-1 / len(first))
            by_action = way.back(layers, slope, inputs=slice(self._state_size, None))
            assert by_action is not None
            slopes += by_action
        return slopes

    def _draw(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (N, A) of the policy, drawn anew, and their log π (N,), from the outputs of its network (N, 2 A)."""
        return squashed_draw(*self._gaussian(outputs), self._noise("updating", len(outputs)))

    def _gaussian(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ, each (N, A), before squashing, from the outputs of the policy's network (N, 2 A)."""
        mean, open_deviation = outputs.chunk(2, 1)
        lowest, highest = self.config.lowest_log_deviation, self.config.highest_log_deviation
        return mean, lowest + 0.5 * (highest - lowest) * (torch.tanh(open_deviation) + 1)

    def _noise(self, use: str, rows: int) -> Tensor:
        return torch.randn(rows, self._action_size, generator=self._random[use]).to(self._device)

    def _products(self) -> AbstractContextManager[Any]:
        return quick_products() if self._device.type == "cpu" else nullcontext()

    def _check(self, rows: Experience) -> None:
        """Raises UsageError for experience that does not fit the networks."""
        count, wide, long = len(rows.reward), self._state_size, self._action_size
        found = [tuple(each.shape) for each in (rows.state, rows.action, rows.reward, rows.next_state, rows.terminal)]
        if found != [(count, wide), (count, long), (count,), (count, wide), (count,)] or count == 0:
            raise UsageError(f"experience is at least one row of {wide} numbers of a state and {long} of an action, got shapes {found}")

    def forget_values(self) -> None:
        self._critics.begin(self._random["weights"])
        self._target.take(self._critics.flat)
        self._optimisers["critics"].forget()

    # --- going on -------------------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> None:
        if device != self._device:
            state = self.state()
            self._build(device)
            self.load_state(state)

    @torch.no_grad()
    def state(self) -> dict[str, Any]:
        return {
            "policy": self._policy.flat.detach().clone(),
            "critics": self._critics.flat.detach().clone(),
            "target": self._target.flat.detach().clone(),
            "log_temperature": self._log_temperature.detach().clone(),
            "optimisers": {name: optimiser.state() for name, optimiser in self._optimisers.items()},
            "random": {use: random.get_state() for use, random in self._random.items()},
            "made": torch.tensor(self._made),
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        self._policy.take(state["policy"])
        self._critics.take(state["critics"])
        self._target.take(state["target"])
        self._log_temperature.copy_(state["log_temperature"])
        for name, optimiser in self._optimisers.items():
            optimiser.load_state(state["optimisers"][name])
        for use, random in self._random.items():
            random.set_state(state["random"][use].cpu())
        self._made = int(state["made"])


def squashed_draw(mean: Tensor, log_deviation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a = tanh(u), u = μ + σ ε, and says how likely that was:

        log π(a) = Σ_k  log N(u_k | μ_k, σ_k²) - log(1 - tanh²(u_k)),   log(1 - tanh²(u)) = 2 (log 2 - u - softplus(-2 u))

    The right-hand form stays exact where tanh has long rounded to one.

    Args:
        mean, log_deviation: (N, A), of the Gaussian before it is squashed.
        noise: ε (N, A), drawn from a standard Gaussian.

    Returns:
        The actions (N, A) in [-1, 1], and log π (N,).
    """
    before = mean + log_deviation.exp() * noise
    log_density = -0.5 * noise.square() - log_deviation - 0.5 * math.log(2 * math.pi)
    log_slope = 2 * (math.log(2) - before - F.softplus(-2 * before))
    return torch.tanh(before), (log_density - log_slope).sum(1)


def _values(ways: list[Pass], critics: Perceptrons, state: Tensor, action: Tensor) -> list[Tensor]:
    """Q₁ and Q₂ (N,) of states and actions."""
    return [way.there(layers, state, action).squeeze(1) for way, layers in zip(ways, critics.multiplied, strict=True)]


class _Memory:
    """What an update of N rows keeps between its ways there and back."""

    def __init__(self, rows: int, policy: Perceptrons, critics: Perceptrons) -> None:
        self.rows, shared = rows, Shared(rows, policy.flat.device)
        (self.policy,), (self.following,) = policy.ways(rows, shared), policy.ways(rows, shared, back=False)
        self.critics, self.target = critics.ways(rows, shared), critics.ways(rows, shared, back=False)


class _Adam:
    """Adam of one array, whose gradient is there already."""

    def __init__(self, parameter: nn.Parameter, learning_rate: float) -> None:
        self._parameter, self._rate = parameter, learning_rate
        self.forget()

    def step(self) -> None:
        parameter = self._parameter
        assert parameter.grad is not None
        adam(
            [parameter], [parameter.grad], [self._first], [self._second], [], [self._made],
            lr=self._rate, beta1=_FIRST, beta2=_SECOND, eps=_SMALL, weight_decay=0.0, amsgrad=False, maximize=False, fused=True,
        )  # fmt: skip

    def forget(self) -> None:
        """Begins anew."""
        self._first, self._second = (torch.zeros_like(self._parameter.detach()) for _ in range(2))
        self._made = torch.zeros((), device=self._parameter.device)

    def state(self) -> dict[str, Tensor]:
        return {"first": self._first.clone(), "second": self._second.clone(), "made": self._made.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._first.copy_(state["first"])
        self._second.copy_(state["second"])
        self._made.copy_(state["made"])
