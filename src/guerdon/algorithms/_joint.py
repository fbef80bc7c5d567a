"""Whole updates of policies that see a state: all networks in one flat array, one loss, one step.

The problem: networks of 256 units are so small that an update written the usual way spends more time between the matrix products than in
them: three optimisers, sixty tensors, a batch put together by a dozen gathers. Nothing of that is needed. The losses of implicit
Q-learning are all taken at the weights that an update starts from, so one sum of them has the gradients of all three. Here

- transitions are packed once, one row each (state, action, reward, end, next state), in the units in which they are learned from, and
  many batches are gathered at a time;
- the weights of all networks lie end to end in one array, and so do their moments and the target's weights: clipping, AdamW and the
  moving average are a few operations on whole arrays;
- the update is one function of those arrays, so that it can be compiled as a whole (`compiled`), or replayed as one graph on a
  graphics card.

The numbers are those of `update` on the same batches, but for rounding. The networks' own parameters are views of the flat array: they
are always up to date.

Reads a `guerdon.transitions.Sampler` of single transitions; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guerdon.errors import UsageError
from guerdon.machine import Machine
from guerdon.networks import GaussianHead, Optimiser, PolicyNetwork
from guerdon.transitions import ObservationSpec, Sampler, Transitions

Weights = Sequence[Tensor]
"""Of one network: weight and bias of each layer in order, and for a Gaussian the log deviation last."""
Loss = Callable[[Sequence[Weights], Sequence[Weights], Tensor], tuple[Tensor, Tensor]]
"""(networks, targets, rows (B, columns)) -> the loss, and the metrics (M,) without gradient."""

_BATCHES_AT_A_TIME = 32
_ALIGNMENT = 16
"""Floats: each tensor begins at a multiple of 64 bytes, which matrix products like."""
_FIRST, _SECOND, _SMALL = 0.9, 0.999, 1e-8
"""AdamW's decay of the two moments, and what is added to the root of the second; torch's defaults."""


@dataclass(frozen=True)
class Columns:
    """What is where in a packed row."""

    state: int
    """S, numbers of a state as the networks see it."""
    action: int
    """A, components of a continuous action; 0 for a named one, which takes one column."""
    tokens: Tensor | None = None
    """(U, L) of all instructions, if they are read; which one a row follows is its last column."""

    def summary(self, reader: Any, rows: Tensor) -> Tensor | None:
        """What `reader` makes of each row's instruction (B, width), each distinct one read once; None if nothing is read."""
        if self.tokens is None:
            return None
        asked, place = torch.unique(rows[:, -1].long(), return_inverse=True)
        tokens = self.tokens[asked]
        summary: Tensor = reader(tokens[:, : int((tokens != 0).sum(1).max())]).summary
        return summary[place]

    def unpacked(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(B, columns) -> state (B, S), action (B, A) float32 or (B,) int64, reward (B,), terminal (B,) bool, next state (B, S)."""
        rows = rows if self.tokens is None else rows[:, :-1]
        state, action, reward, terminal, following = torch.split(rows, [self.state, max(self.action, 1), 1, 1, self.state], 1)
        chosen = action if self.action else action.squeeze(1).long()
        return state, chosen, reward.squeeze(1), terminal.squeeze(1) > 0, following


def is_possible(spec: ObservationSpec, sampler: Sampler, machine: Machine) -> bool:
    """Whether a policy sees a state and no pictures, and learns from single transitions. One that reads must not be compiled, nor replayed
    on a graphics card: how many instructions a batch has, and how long they are, differs from one to the next."""
    fixed = machine.compiled or machine.device.type == "cuda"
    return not spec.views and sampler.singles() is not None and not (spec.reads and fixed)


def told(state: Tensor, summary: Tensor | None) -> Tensor:
    """What the networks see: the state, and beside it what the instruction says, if it is read."""
    return state if summary is None else torch.cat([state, summary], 1)


@torch.no_grad()
def packed(transitions: Transitions, policy: PolicyNetwork, sampler: Sampler, reward_scale: float) -> tuple[Tensor, Columns]:
    """All transitions that a sampler draws from, (N, columns) float32 in the order of its places, on the policy's device."""
    listed = sampler.singles()
    assert listed is not None
    transition, observation = (torch.from_numpy(each) for each in listed)
    device = next(policy.parameters()).device
    scaled = [
        scale(torch.from_numpy(np.ascontiguousarray(transitions.vectors[name])).to(device)).cpu() for name, scale in policy.trunk.scales()
    ]
    state = torch.cat(scaled, 1)
    action = torch.from_numpy(transitions.action)[transition]
    instruction, tokens = sampler.instructions()
    columns = Columns(state.shape[1], transitions.spec.action_size, tokens.to(device) if transitions.spec.reads else None)
    parts = [
        state[observation], action if columns.action else action[:, None].float(),
        reward_scale * torch.from_numpy(transitions.reward)[transition, None],
        torch.from_numpy(transitions.terminal)[transition, None].float(), state[observation + 1],
        *([] if columns.tokens is None else [torch.from_numpy(instruction)[:, None].float()]),
    ]  # fmt: skip
    return torch.cat(parts, 1).to(device), columns


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a perceptron, or of a Gaussian head, in the order of `Weights`."""
    return [*network.mean.parameters(), network.log_deviation] if isinstance(network, GaussianHead) else list(network.parameters())


def perceptron(weights: Weights, inputs: Tensor, *, half: bool) -> Tensor:
    """What a `networks.Perceptron` with these weights gives, (B, outputs) float32."""
    *hidden, last = zip(weights[::2], weights[1::2], strict=True)
    features = inputs
    for weight, bias in hidden:
        features = F.relu(_linear(features, weight, bias, half))
    weight, bias = last
    if len(bias) == 1:  # a matrix product for a single column is slower than a sum
        return (features.float() * weight).sum(1, keepdim=True) + bias
    return _linear(features, weight, bias, half).float()


def gaussian(weights: Weights, inputs: Tensor, *, half: bool) -> tuple[Tensor, Tensor]:
    """What a `networks.GaussianHead` with these weights gives."""
    mean = torch.tanh(perceptron(weights[:-1], inputs, half=half))
    return mean, weights[-1].clamp(GaussianHead.LOWEST, GaussianHead.HIGHEST)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor, half: bool) -> Tensor:
    if half:
        return F.linear(inputs.bfloat16(), weight.bfloat16(), bias.bfloat16())
    return F.linear(inputs, weight, bias)


class JointUpdate:
    """Updates of several networks that share nothing, on single transitions."""

    def __init__(
        self,
        networks: Sequence[Sequence[nn.Parameter]],
        targets: Sequence[Sequence[nn.Parameter]],
        loss: Loss,
        metrics: Sequence[str],
        rows: Tensor,
        optimiser: Optimiser,
        machine: Machine,
        *,
        batch_size: int,
        policy: int = 0,
        target_rate: float = 0.0,
    ) -> None:
        """Args: networks: each clipped on its own; targets: follow the last of all those parameters, as many; loss: see `Loss`; metrics:
        names of what it measures; policy: which of the networks acts, whose gradient is measured; rows: what `packed` gives; optimiser: of
        just these parameters; its moments are taken over, and kept up to date.

        Raises:
            UsageError: if the update is to be compiled and that cannot be done here.
        """
        self._loss, self._metrics, self._rows, self._optimiser, self._machine = loss, (*metrics, "gradient_norm"), rows, optimiser, machine
        self._target_rate, self._batch_size, self._policy = target_rate, batch_size, policy
        self._shapes = [[parameter.shape for parameter in network] for network in networks]
        self._target_shapes = [[parameter.shape for parameter in network] for network in targets]
        together = [parameter for network in networks for parameter in network]
        self._flat = _flattened(together)
        self._target = _flattened([parameter for network in targets for parameter in network])
        self._leaves = [list(network) for network in networks]
        ends = np.cumsum([sum(map(_room, shapes)) for shapes in self._shapes]).tolist()
        self._spans = list(zip([0, *ends], ends, strict=False))
        self._moments = [torch.zeros_like(self._flat) for _ in range(2)]
        shapes = [parameter.shape for parameter in together]
        optimiser.keep_moments_in(together, *(_cut_one(each, shapes) for each in self._moments))
        self._step = self._on_its_machine()

    def learn(self, sampler: Sampler, count: int) -> dict[str, Tensor]:
        """Makes `count` updates on the sampler's next batches; returns the sums of their metrics, not synchronised with the host."""
        sums = torch.zeros(len(self._metrics), device=self._rows.device)
        size = self._batch_size
        for begin in range(0, count, _BATCHES_AT_A_TIME):
            batches = min(_BATCHES_AT_A_TIME, count - begin)
            places = torch.from_numpy(sampler.draw_places(batches)).to(self._rows.device)
            gathered = self._rows.index_select(0, places)
            schedule = self._schedule(batches)
            for number in range(batches):
                sums += self._step(gathered[number * size : (number + 1) * size], schedule[number])
        self._optimiser.count_moments()
        return dict(zip(self._metrics, sums, strict=True))

    def _schedule(self, batches: int) -> Tensor:
        """What differs from one update to the next, (batches, 3): how much of the weights decays, the step, the second moment's bias."""
        config = self._optimiser.config
        lines = []
        for _ in range(batches):
            rate = self._optimiser.advance()
            made = self._optimiser.made
            lines.append([rate * config.weight_decay, rate / (1 - _FIRST**made), math.sqrt(1 - _SECOND**made)])
        return torch.tensor(lines).to(self._rows.device)

    def _update(self, flat: Tensor, first: Tensor, second: Tensor, target: Tensor, rows: Tensor, schedule: Tensor) -> Tensor:
        """One update in place; a pure function of its arguments otherwise. Returns the metrics (M,)."""
        networks, targets = _cut(flat, self._shapes), _cut(target, self._target_shapes)
        gradients, metrics = torch.func.grad(self._loss, has_aux=True)(networks, targets, rows)
        return self._move(flat, first, second, target, _joined(gradients), metrics, schedule)

    def _eager_update(self, flat: Tensor, first: Tensor, second: Tensor, target: Tensor, rows: Tensor, schedule: Tensor) -> Tensor:
        """The same by autograd, which is quicker where nothing is compiled. The leaves are views of `flat`."""
        loss, metrics = self._loss(self._leaves, _cut(target, self._target_shapes), rows)
        found = iter(torch.autograd.grad(loss, [leaf for network in self._leaves for leaf in network]))
        gradients = [[next(found) for _ in network] for network in self._leaves]
        return self._move(flat, first, second, target, _joined(gradients), metrics, schedule)

    @torch.no_grad()
    def _move(
        self, flat: Tensor, first: Tensor, second: Tensor, target: Tensor, gradient: Tensor, metrics: Tensor, schedule: Tensor
    ) -> Tensor:
        """Clips, moves the weights by AdamW and lets the target follow."""
        longest = self._optimiser.config.gradient_norm
        clipped, norms = [], []
        for begin, end in self._spans:
            part = gradient[begin:end]
            norm = part.square().sum().sqrt()
            norms.append(norm)
            clipped.append(part * (longest / (norm + 1e-6)).clamp(max=1.0))
        gradient = torch.cat(clipped)
        decay, rate, bias = schedule
        first.lerp_(gradient, 1 - _FIRST)
        second.mul_(_SECOND).add_((1 - _SECOND) * gradient * gradient)
        flat.copy_(flat * (1 - decay) - rate * first / (second.sqrt() / bias + _SMALL))
        if len(target):
            target.lerp_(flat[len(flat) - len(target) :], self._target_rate)
        return torch.cat([metrics, norms[self._policy][None]])

    def _on_its_machine(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The update as a function of rows and schedule alone."""
        arrays = (self._flat, *self._moments, self._target)
        step: Callable[..., Tensor] = self._eager_update
        if self._machine.compiled:
            step = _compiled(self._update)
            self._try_out(step, arrays)
        if self._machine.device.type == "cuda":
            return self._replayed(step, arrays)
        return lambda rows, schedule: step(*arrays, rows, schedule)

    def _try_out(self, step: Callable[..., Tensor], arrays: Sequence[Tensor]) -> None:
        """Compiles on copies. Raises UsageError if that cannot be done here."""
        try:
            step(*(array.clone() for array in arrays), *self._example())
        except Exception as error:  # whatever a compiler may say
            what = f"the update cannot be compiled ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})"
            raise UsageError(what, cure="Install a C++ compiler (g++), or leave out --compile.") from error

    def _example(self) -> tuple[Tensor, Tensor]:
        """Rows and a schedule of the right shapes."""
        size = self._batch_size
        return self._rows[torch.arange(size) % len(self._rows)], torch.tensor([0.0, 0.0, 1.0], device=self._rows.device)

    def _replayed(self, step: Callable[..., Tensor], arrays: Sequence[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The update recorded once as a graph of the graphics card, and replayed: launching its hundred small operations one by one would
        take longer than they do."""
        rows, schedule = (each.clone() for each in self._example())
        before = [array.clone() for array in arrays]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step(*arrays, rows, schedule)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            metrics = step(*arrays, rows, schedule)
        for array, value in zip(arrays, before, strict=True):
            array.copy_(value)

        def replay(new_rows: Tensor, new_schedule: Tensor) -> Tensor:
            rows.copy_(new_rows)
            schedule.copy_(new_schedule)
            graph.replay()
            return metrics

        return replay


def _compiled(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(step, fullgraph=True, dynamic=False)
    return compiled


def _room(shape: torch.Size) -> int:
    """Places that a tensor takes up in a flat array."""
    return -(-shape.numel() // _ALIGNMENT) * _ALIGNMENT


@torch.no_grad()
def _flattened(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One array that holds all parameters, which become views of it."""
    shapes = [parameter.shape for parameter in parameters]
    device = parameters[0].device if parameters else None
    flat = torch.zeros(sum(map(_room, shapes)), device=device)
    for parameter, view in zip(parameters, _cut_one(flat, shapes), strict=True):
        view.copy_(parameter)
        parameter.data = view
    return flat


def _cut(flat: Tensor, shapes: Sequence[Sequence[torch.Size]]) -> list[list[Tensor]]:
    """Views of a flat array, network by network."""
    views = iter(_cut_one(flat, [shape for network in shapes for shape in network]))
    return [[next(views) for _ in network] for network in shapes]


def _cut_one(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Views of a flat array, one for each shape."""
    views, begin = [], 0
    for shape in shapes:
        views.append(flat[begin : begin + shape.numel()].view(shape))
        begin += _room(shape)
    return views


def _joined(tensors: Sequence[Sequence[Tensor]]) -> Tensor:
    """The inverse of `_cut`; zeros in the gaps."""
    parts = [F.pad(each.reshape(-1), (0, _room(each.shape) - each.numel())) for network in tensors for each in network]
    return torch.cat(parts)
