"""The embedded rater's network in torch, and how it learns.

`guerdon.providers._embedded_network` describes the network and uses it without torch; `export` gives the tensors it reads. Learning has
three steps:

- `train_looks`: the look at one picture. Pictures are never drawn: all tiles come from a small library, whose embedding is computed once a
  batch and gathered by index, which is exactly what embedding the pixels would give. Beside what is wanted where the agent stands, the
  network says for every pose in the world what the three moves would do there: distances-to-go are known for all of them, so that each
  scene teaches some hundred poses instead of one;
- `train_windows`: the reasoning over windows, with the looks as they are;
- `calibrate`: temperature and bias of the verdicts, on windows that nothing was trained on.

The number of updates is fixed, never the time: equal seeds give equal bytes on the same machine, whatever the number of threads. In
shapes: S scenes in a batch, W windows, N = T + 1 pictures, L sub-tasks, C channels, B blocks, K tiles.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guerdon.errors import UsageError
from guerdon.networks import seeded
from guerdon.providers._embedded_network import (
    ACTIONS,
    CLASSES,
    EMBEDDING,
    HIDDEN,
    LARGEST_DISTANCE,
    LARGEST_LOGIT,
    LONGEST,
    OUTPUTS,
    PRIOR,
    PRIOR_INPUTS,
    TILE,
    WORDS,
    Array,
    EmbeddedNetwork,
    Looks,
)
from guerdon.providers._embedded_words import WORDS as VOCABULARY
from guerdon.providers._embedded_words import tokens
from guerdon.seeding import generator

if TYPE_CHECKING:
    from guerdon.recipes._embedded_data import Scenes, Window

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Told now and then: updates made, of how many, and the means of the losses since it was last told."""

HEADINGS, MOVES = 4, 3
_UNKNOWN = 255
"""Class of an action of which nothing is known."""
_TOLD = 100
"""Updates between two reports of progress."""


@dataclass(frozen=True, kw_only=True)
class LooksConfig:
    """How the look network is made and trained."""

    channels: int = 48
    """Channels of the grid."""
    blocks: int = 12
    """Residual convolutions; what a tile shows is known that many cells away."""
    updates: int = 20_000
    """Number of updates."""
    batch: int = 128
    """Scenes in an update, all of one level."""
    learning_rate: float = 2e-3
    """Highest learning rate of Adam; it rises to it over `warm_up` updates, then falls to zero along a cosine."""
    warm_up: int = 300
    """Updates over which the learning rate rises."""
    gradient_norm: float = 1.0
    """Longest gradient; longer ones are shortened to it."""
    dense: float = 1.0
    """Weight of the loss of the moves in every pose."""
    dense_distance: float = 0.5
    """Weight of the loss of the distance in every pose."""
    classes: float = 1.0
    """Weight of the loss of what the seven actions do."""
    completes: float = 1.0
    """Weight of the loss of what completes the sub-task."""
    distance: float = 0.5
    """Weight of the loss of the distance."""
    done: float = 0.5
    """Weight of the loss of whether the goal holds."""
    agent: float = 0.1
    """Weight of the loss of where the agent is."""
    threads: int = 2
    """Threads that learn at the same time; more than two are of no use. The result does not depend on it."""

    def __post_init__(self) -> None:
        _check(self, "channels", "blocks", "updates", "batch", "warm_up", "threads")


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """How the reasoning over windows is trained."""

    updates: int = 2000
    """Number of updates."""
    batch: int = 256
    """Windows in an update, all with as many pictures and sub-tasks."""
    learning_rate: float = 1e-2
    """Highest learning rate of Adam; it falls to zero along a cosine."""
    warm_up: int = 50
    """Updates over which the learning rate rises."""
    gradient_norm: float = 1.0
    """Longest gradient; longer ones are shortened to it."""
    due: float = 0.5
    """Weight of the loss of the number of sub-tasks done, given the window."""
    prior: float = 0.5
    """Weight of the loss of the number of sub-tasks done, given a single picture."""
    progress: float = 5.0
    """Weight of the squared error of progress, given the window and given a single picture."""
    threads: int = 2
    """Threads that look at windows at the same time. The result does not depend on it."""

    def __post_init__(self) -> None:
        _check(self, "updates", "batch", "warm_up", "threads")


def _check(config: LooksConfig | WindowsConfig, *counts: str) -> None:
    """Raises UsageError for a count below 1, a rate or norm that is not above 0, or a weight below 0."""
    for name, value in asdict(config).items():
        if name in counts and value < 1:
            raise UsageError(f"the embedded rater's {name} is at least 1, not {value}")
        rate = name in ("learning_rate", "gradient_norm")
        if not 0 <= value < math.inf or (rate and value == 0):
            raise UsageError(f"the embedded rater's {name} is a finite number {'above' if rate else 'not below'} 0, got {value}")


# --- the look -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What the look network says about S pairs of a picture and a sub-task."""

    outputs: Tensor
    """(S, 30): classes, completions, logarithm of one plus the distance, done."""
    agent: Tensor
    """(S, cells) logits of where the agent is."""
    grid: Tensor
    """(S, C, rows, columns) after all blocks."""

    @property
    def classes(self) -> Tensor:
        """(S, 7, 3) logits."""
        return self.outputs[:, : len(ACTIONS) * CLASSES].reshape(-1, len(ACTIONS), CLASSES)

    @property
    def completes(self) -> Tensor:
        """(S, 7) logits."""
        return self.outputs[:, len(ACTIONS) * CLASSES : -2]


class Look(nn.Module):
    """One picture and the words of one sub-task -> what each action would do."""

    def __init__(self, channels: int, blocks: int, words: int = len(VOCABULARY)) -> None:
        super().__init__()
        self.channels, self.blocks = channels, blocks
        self.tiles = nn.Linear(3 * TILE * TILE, channels)
        self.embedding = nn.Embedding(words, EMBEDDING)
        self.reader = nn.GRU(EMBEDDING, WORDS, batch_first=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.film = nn.Linear(WORDS + channels, blocks * 2 * channels)
        self.agent = nn.Parameter(torch.zeros(channels))
        self.head_hidden, self.head_output = nn.Linear(2 * channels, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.dense = nn.Linear(channels, HEADINGS * MOVES * CLASSES + HEADINGS)
        """Only for training: classes of the moves and the distance in every pose of a cell."""
        with torch.no_grad():
            # As if there were one block: the blocks' sum then stays as large as what they add to.
            for convolution in self.kernels():
                convolution.weight.mul_(math.sqrt(6 / blocks))
            self.film.weight.mul_(0.5)

    def kernels(self) -> list[nn.Conv2d]:
        """The convolution of each block."""
        return [convolution for convolution in self.convolutions if isinstance(convolution, nn.Conv2d)]

    def embed(self, tiles: Tensor) -> Tensor:
        """Tiles (..., 192) from 0 to 1 -> (..., C)."""
        return F.relu(self.tiles(tiles))

    def read(self, clauses: Tensor) -> Tensor:
        """Tokens (S, longest), 0 after the last one -> (S, 64)."""
        states, _ = self.reader(self.embedding(clauses))
        last = (clauses > 0).sum(1) - 1
        read: Tensor = states[torch.arange(len(clauses)), last]
        return read

    def forward(self, grid: Tensor, carried: Tensor, words: Tensor) -> Answers:
        """Args: grid: (S, rows, columns, C) embedded tiles; carried: (S, C); words: (S, 64)."""
        attention = (grid @ self.agent).flatten(1)
        film = self.film(torch.cat([words, carried], 1)).view(-1, self.blocks, 2, self.channels, 1, 1)
        spread = grid.permute(0, 3, 1, 2)
        for block, convolution in enumerate(self.kernels()):
            spread = spread + F.relu(torch.addcmul(film[:, block, 1], convolution(spread), 1 + film[:, block, 0]))
        seen = (attention.softmax(1)[:, None] @ spread.permute(0, 2, 3, 1).flatten(1, 2))[:, 0]
        hidden = F.relu(self.head_hidden(torch.cat([seen, spread.amax((2, 3))], 1)))
        return Answers(self.head_output(hidden), attention, spread)


# --- the reasoning ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cases:
    """Windows that have as many pictures and as many sub-tasks: what was seen in them and what is true."""

    classes: Tensor
    """(W, L, N, 7, 3) logits."""
    completes: Tensor
    """(W, L, N, 7) logits."""
    distance: Tensor
    """(W, L, N) actions to go."""
    done: Tensor
    """(W, L, N) logits."""
    words: Tensor
    """(W, L, 64)."""
    actions: Tensor
    """(W, T) int64."""
    contribution: Tensor
    """(W, T) int64: 0 hindered, 1 did not matter, 2 served, 255 unknown."""
    due: Tensor
    """(W, N) int64: number of sub-tasks done."""
    progress: Tensor
    """(W, N) share of the instruction that is done, 0 to 1; not a number where unknown."""

    def __getitem__(self, rows: Tensor) -> Cases:
        return Cases(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Reasons:
    """What the reasoning makes of `Cases`."""

    verdict: Tensor
    """(W, T, 3) probabilities."""
    due: Tensor
    """(W, N, L + 1) logarithms of probabilities, given the window."""
    prior: Tensor
    """(W, N, L + 1) logarithms of probabilities, given that picture alone."""
    progress: Tensor
    """(W, N), given the window."""
    progress_alone: Tensor
    """(W, N), given that picture alone."""


class Reasoning(nn.Module):
    """A hidden Markov model over the number of sub-tasks done, and the verdicts that follow from it."""

    def __init__(self) -> None:
        super().__init__()
        self.prior_hidden, self.prior_output = nn.Linear(PRIOR_INPUTS, PRIOR), nn.Linear(PRIOR, 1, bias=False)
        self.prior_bias = nn.Parameter(torch.zeros(LONGEST, LONGEST + 1))
        self.advance = nn.Parameter(torch.tensor([-2.0, 1.0]))
        self.emission = nn.Parameter(torch.tensor([-1.0, -1.0, 0.0]).repeat(len(ACTIONS), 1))
        """Logarithms of how much more often an action is taken that hinders, does not matter, serves."""
        self.finished = nn.Parameter(torch.full((len(ACTIONS),), -1.0))
        """The same for an action when all is done."""
        self.temperature = nn.Parameter(torch.ones(1))
        self.change = nn.Parameter(torch.tensor([0.5, 0.0, -0.5]))
        self.bias = nn.Parameter(torch.zeros(len(ACTIONS), CLASSES))
        self.share = nn.Parameter(torch.tensor([1.0, -0.2]))

    def calibrated(self) -> list[nn.Parameter]:
        """What `calibrate` fits."""
        return [self.temperature, self.bias]

    def forward(self, cases: Cases) -> Reasons:
        made = cases.actions
        chosen = made[:, None, :, None].expand(-1, cases.done.shape[1], -1, 1)
        completes = _cut(cases.completes)[:, :, : made.shape[1]].gather(3, chosen)[..., 0]
        classes = _cut(cases.classes)[:, :, : made.shape[1]].gather(3, chosen[..., None].expand(-1, -1, -1, 1, CLASSES))[..., 0, :]
        distance = cases.distance.clamp(0, LARGEST_DISTANCE)
        prior = self._prior(distance, _cut(cases.done), cases.words)
        due = self._due(prior[:, 0], classes, completes, made)
        verdict = (due[:, :-1, :, None].exp() * self._verdicts(classes, distance, made)).sum(2)
        share = torch.sigmoid(self.share[0] + self.share[1] * distance).transpose(1, 2)
        reached = (torch.arange(prior.shape[2]) + F.pad(share, (0, 1))) / (prior.shape[2] - 1)
        alone = prior.log_softmax(2)
        return Reasons(verdict, due, alone, (due.exp() * reached).sum(2), (alone.exp() * reached).sum(2))

    def _prior(self, distance: Tensor, done: Tensor, words: Tensor) -> Tensor:
        """(W, N, L + 1) scores of the number of sub-tasks done, from each picture alone."""
        length, pictures = done.shape[1:]
        each = torch.cat([done[..., None], distance.log1p()[..., None], words[:, :, None].expand(-1, -1, pictures, -1)], 3)
        following = F.pad(each[:, 1:], (0, 0, 0, 0, 0, 1))
        last = (torch.arange(length) == length - 1).to(each.dtype)[None, :, None, None].expand(len(each), -1, pictures, 1)
        hidden = F.relu(self.prior_hidden(torch.cat([each, following, last], 3)))
        scores = self.prior_output(hidden)[..., 0].cumsum(1).transpose(1, 2)
        prior: Tensor = F.pad(scores, (1, 0)) + self.prior_bias[length - 1, : length + 1]
        return prior

    def _due(self, prior: Tensor, classes: Tensor, completes: Tensor, made: Tensor) -> Tensor:
        """(W, N, L + 1) logarithms of the posterior of the number of sub-tasks done."""
        advance = self.advance[0] + self.advance[1] * completes
        on, stay = F.logsigmoid(advance), F.pad(F.logsigmoid(-advance), (0, 0, 0, 1))
        weighed = torch.logsumexp(self.emission[made][:, None] + classes.log_softmax(3), 3)
        emission = torch.cat([weighed, self.finished[made][:, None]], 1)
        forward = [prior]
        for t in range(made.shape[1]):
            seen = forward[-1] + emission[:, :, t]
            stayed = seen + stay[:, :, t]
            moved = torch.logaddexp(stayed[:, 1:], seen[:, :-1] + on[:, :, t])
            forward.append(torch.cat([stayed[:, :1], moved], 1))
        backward = [torch.zeros_like(prior)]
        for t in reversed(range(made.shape[1])):
            stayed = stay[:, :, t] + backward[-1]
            moved = torch.logaddexp(stayed[:, :-1], on[:, :, t] + backward[-1][:, 1:])
            backward.append(torch.cat([moved, stayed[:, -1:]], 1) + emission[:, :, t])
        return (torch.stack(forward, 1) + torch.stack(backward[::-1], 1)).log_softmax(2)

    def _verdicts(self, classes: Tensor, distance: Tensor, made: Tensor) -> Tensor:
        """(W, T, L + 1, 3) probabilities of the classes if so many sub-tasks were done before the action."""
        change = distance.diff(dim=2).clamp(-2, 2)
        logits = classes * self.temperature + change[..., None] * self.change + self.bias[made][:, None]
        nothing_left = torch.tensor([0.0, 1.0, 0.0]).expand(len(made), made.shape[1], 1, CLASSES)
        return torch.cat([logits.softmax(3).transpose(1, 2), nothing_left], 2)


def _cut(logits: Tensor) -> Tensor:
    return logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)


class TorchNetwork(nn.Module):
    """The whole network, with fresh weights."""

    def __init__(self, *, channels: int, blocks: int, words: int = len(VOCABULARY)) -> None:
        super().__init__()
        self.look = Look(channels, blocks, words)
        self.reasoning = Reasoning()

    @torch.no_grad()
    def cases(self, pictures: npt.NDArray[np.uint8], clauses: Sequence[Sequence[int]], actions: Sequence[int]) -> Cases:
        """One window as the reasoning takes it, with nothing known to be true. Arguments as of `EmbeddedNetwork.look` and `judge`."""
        count, height, width, _ = pictures.shape
        cut = torch.tensor(pictures).view(count, height // TILE, TILE, width // TILE, TILE, 3).transpose(2, 3)
        embedded = self.look.embed(cut.reshape(count, height // TILE, width // TILE, -1).float() / 255)
        words = torch.cat([self.look.read(torch.tensor([list(clause)])) for clause in clauses])
        answers = [self.look(embedded[:, :-1], embedded[:, -1, 0], word.expand(count, -1)) for word in words]
        steps, pictured = (1, len(actions)), (1, count)
        return Cases(
            classes=torch.stack([answer.classes for answer in answers])[None],
            completes=torch.stack([answer.completes for answer in answers])[None],
            distance=torch.stack([_distance(answer.outputs[:, -2]) for answer in answers])[None],
            done=torch.stack([answer.outputs[:, -1] for answer in answers])[None],
            words=words[None],
            actions=torch.tensor([list(actions)], dtype=torch.int64).view(steps),
            contribution=torch.full(steps, _UNKNOWN),
            due=torch.zeros(pictured, dtype=torch.int64),
            progress=torch.full(pictured, math.nan),
        )


def _distance(logarithm: Tensor) -> Tensor:
    return logarithm.clamp(0, math.log1p(LARGEST_DISTANCE)).expm1()


# --- learning to look ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Poses of one level: what is seen and what is true."""

    grid: Tensor
    """(S, rows, columns) int64 tiles, the agent's included."""
    carried: Tensor
    """(S,) int64 tile."""
    clause: Tensor
    """(S, longest) int64 tokens."""
    moves: Tensor
    """(S, rows, columns, 4 headings, 3 moves) int64 classes; 255 where unknown."""
    field: Tensor
    """(S, rows, columns, 4 headings) distances; infinite where unknown."""
    cell: Tensor
    """(S,) int64: where the agent is."""
    classes: Tensor
    """(S, 7) int64; 255 where unknown."""
    completes: Tensor
    """(S, 7) 0 or 1."""
    distance: Tensor
    """(S,); infinite where unknown."""
    done: Tensor
    """(S,) 0 or 1."""


def batch_of(scenes: Scenes, rows: npt.NDArray[np.int64]) -> Batch:
    """Some poses, by their number, as tensors."""
    scene, pose = scenes.scene[rows], scenes.pose[rows].astype(np.int64)
    size, (height, width) = len(rows), scenes.grid.shape[1:]
    grid = scenes.grid[scene].reshape(size, -1)
    grid[np.arange(size), pose // HEADINGS] = scenes.agent_tile[rows]
    whole: dict[str, npt.NDArray[Any]] = {
        "grid": grid.reshape(size, height, width),
        "carried": scenes.carried[scene],
        "clause": scenes.tokens[scene],
        "moves": scenes.moves(scene),
        "cell": pose // HEADINGS,
        "classes": scenes.classes[rows],
    }
    real: dict[str, npt.NDArray[Any]] = {
        "field": scenes.field[scene].reshape(size, height, width, HEADINGS),
        "completes": scenes.completes[rows],
        "distance": scenes.distance[rows],
        "done": scenes.done[rows],
    }
    tensors = {name: torch.from_numpy(values.astype(np.int64)) for name, values in whole.items()}
    return Batch(**tensors, **{name: torch.from_numpy(values.astype(np.float32)) for name, values in real.items()})


def looks_losses(look: Look, library: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The losses by their name in `LooksConfig`. Args: library: (K, 192) tiles from 0 to 1."""
    embedded = look.embed(library)
    answers = look(F.embedding(batch.grid, embedded), F.embedding(batch.carried, embedded), look.read(batch.clause))
    # By cell, class, and pose and move: the classes need not be the last axis.
    dense = look.dense(answers.grid.permute(0, 2, 3, 1).flatten(0, 2))
    moves = dense[:, :-HEADINGS].view(-1, CLASSES, HEADINGS * MOVES)
    away = answers.outputs[:, -2]
    return {
        "dense": _class_loss(moves, batch.moves.view(-1, HEADINGS * MOVES)),
        "dense_distance": _distance_loss(dense[:, -HEADINGS:], batch.field.view(-1, HEADINGS)),
        "classes": _class_loss(answers.classes.flatten(0, 1), batch.classes.flatten()),
        "completes": F.binary_cross_entropy_with_logits(answers.completes, batch.completes),
        "distance": _distance_loss(away, batch.distance),
        "done": F.binary_cross_entropy_with_logits(answers.outputs[:, -1], batch.done),
        "agent": F.cross_entropy(answers.agent, batch.cell),
    }


def _class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean over the classes that are known; the logits' second axis is the class."""
    known = (classes != _UNKNOWN).sum().clamp(min=1)
    return F.cross_entropy(logits, classes, ignore_index=_UNKNOWN, reduction="sum") / known


def _distance_loss(logarithm: Tensor, distance: Tensor) -> Tensor:
    """Mean over the distances that are known."""
    known = distance.isfinite()
    target = distance.where(known, 0.0).log1p()
    losses = F.smooth_l1_loss(logarithm, target, reduction="none", beta=0.25)
    return (losses * known).sum() / known.sum().clamp(min=1)


def train_looks(
    scenes: Mapping[str, Scenes], config: LooksConfig | None = None, *, seed: int, progress: Progress = lambda *_: None
) -> TorchNetwork:
    """Trains the look network; the reasoning keeps its fresh weights.

    Args:
        scenes: by level; every update takes poses of one level, and all levels have equal shares.
        config: sizes, number of updates, weights of the losses.
        seed: of the weights and of the order of the poses.
        progress: told of the losses every hundred updates and after the last one.

    Raises:
        UsageError: if there are no scenes, or a level has no poses.
    """
    config = config or LooksConfig()
    if not scenes or not all(len(some.pose) for some in scenes.values()):
        raise UsageError("the embedded rater's looks are trained on scenes of at least one level, each with at least one pose")
    with seeded(seed, "embedded rater"):
        network = TorchNetwork(channels=config.channels, blocks=config.blocks)
    look, random, levels = network.look, generator(seed, "embedded rater", "looks"), sorted(scenes)
    weights = {name: float(getattr(config, name)) for name in _LOSSES}
    library, shares = library_pixels(), _shares(config.batch)
    look.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    descent, told = _Descent(look.parameters(), config, config.updates), _Told(config.updates, progress)
    with _one_thread_each(), ThreadPoolExecutor(min(config.threads, len(shares))) as pool:
        for _ in range(config.updates):
            some = scenes[levels[random.integers(len(levels))]]
            rows = random.integers(len(some.pose), size=config.batch)
            learned = pool.map(partial(_lesson, look, library, some, weights), np.array_split(rows, len(shares)))
            losses, gradients = zip(*learned, strict=True)
            descent.step([weighed(shares, parts) for parts in zip(*gradients, strict=True)])
            told.add({name: weighed(shares, [part[name] for part in losses]) for name in weights})
    return network


_PARTS = 2
"""Parts of a batch, each learned from by a thread of its own. Fixed, so that the number of threads does not change what is summed.

Threads that meet once an update lose little when the machine is busy with other things; those that share every operation lose most."""


def _shares(batch: int) -> list[float]:
    """Of each part in the batch; a batch of one has one part."""
    parts = min(_PARTS, batch)
    return [len(part) / batch for part in np.array_split(np.arange(batch), parts)]


def weighed(shares: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """The sum of the parts, each times its share."""
    return sum_of([share * part for share, part in zip(shares, parts, strict=True)])


def _lesson(
    look: Look, library: Tensor, scenes: Scenes, weights: Mapping[str, float], rows: npt.NDArray[np.int64]
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """The losses of some poses by name, and the gradient of their weighted sum by parameter."""
    losses = looks_losses(look, library, batch_of(scenes, rows))
    gradients = torch.autograd.grad(weighed(list(weights.values()), [losses[name] for name in weights]), list(look.parameters()))
    return {name: loss.detach() for name, loss in losses.items()}, gradients


_LOSSES = ("dense", "dense_distance", "classes", "completes", "distance", "done", "agent")


def library_pixels() -> Tensor:
    """(K, 192): all tiles, from 0 to 1."""
    from guerdon.recipes._embedded_data import tile_library

    return torch.tensor(tile_library()).flatten(1).float() / 255


def sum_of(losses: Sequence[Tensor]) -> Tensor:
    """Their sum, in order."""
    first, *others = losses
    return sum(others, start=first)


class _Descent:
    """Adam with a clipped gradient and a learning rate that rises briefly and then falls to zero along a cosine."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: LooksConfig | WindowsConfig, updates: int) -> None:
        self._parameters, self._config, self._updates, self._made = list(parameters), config, updates, 0
        self._adam = torch.optim.Adam(self._parameters, lr=config.learning_rate, fused=True)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves the parameters down the gradients, one for each."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self._parameters, self._config.gradient_norm)
        rise = min(1.0, (self._made + 1) / self._config.warm_up)
        fall = 0.5 * (1 + math.cos(math.pi * self._made / self._updates))
        for group in self._adam.param_groups:
            group["lr"] = self._config.learning_rate * rise * fall
        self._adam.step()
        self._made += 1


class _Told:
    """Means of the losses, told every hundred updates and after the last one."""

    def __init__(self, updates: int, progress: Progress) -> None:
        self._updates, self._progress, self._made = updates, progress, 0
        self._losses: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            self._losses[name].append(loss.detach())
        self._made += 1
        if self._made % _TOLD == 0 or self._made == self._updates:
            means = {name: float(torch.stack(some).mean()) for name, some in self._losses.items()}
            self._losses.clear()
            self._progress(self._made, self._updates, means)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Inside, torch computes on no more than the thread that calls it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- learning to reason -------------------------------------------------------------------------------------------------------------------


def train_windows(
    network: TorchNetwork,
    windows: Sequence[Window],
    config: WindowsConfig | None = None,
    *,
    seed: int,
    progress: Progress = lambda *_: None,
) -> None:
    """Trains the reasoning of `network` in place; its looks stay as they are.

    Args:
        network: with trained looks.
        windows: of any levels, instructions of at most six sub-tasks.
        config: number of updates, weights of the losses.
        seed: of the order of the windows.
        progress: told of the losses every hundred updates and after the last one.

    Raises:
        UsageError: if there are no windows.
    """
    config = config or WindowsConfig()
    groups = seen(network, windows, threads=config.threads)
    shares = np.array([len(group) for group in groups]) / len(windows)
    random = generator(seed, "embedded rater", "windows")
    weights = {"verdict": 1.0, "due": config.due, "prior": config.prior, "progress": config.progress}
    learned = list(network.reasoning.parameters())
    descent, told = _Descent(learned, config, config.updates), _Told(config.updates, progress)
    with _one_thread_each():
        for _ in range(config.updates):
            group = groups[random.choice(len(groups), p=shares)]
            losses = reasoning_losses(network.reasoning, group[torch.from_numpy(random.integers(len(group), size=config.batch))])
            descent.step(torch.autograd.grad(weighed(list(weights.values()), [losses[name] for name in weights]), learned))
            told.add(losses)


def reasoning_losses(reasoning: Reasoning, cases: Cases) -> dict[str, Tensor]:
    """How far the reasoning is from what is true; means over what is known."""
    reasons = reasoning(cases)
    known = cases.progress.isfinite()
    progress = cases.progress.where(known, 0.0)
    errors = [(guessed - progress).square() * known for guessed in (reasons.progress, reasons.progress_alone)]
    return {
        "verdict": verdict_loss(reasons, cases),
        "due": F.nll_loss(reasons.due.flatten(0, 1), cases.due.flatten()),
        "prior": F.nll_loss(reasons.prior.flatten(0, 1), cases.due.flatten()),
        "progress": sum_of([error.sum() for error in errors]) / known.sum().clamp(min=1),
    }


def verdict_loss(reasons: Reasons, cases: Cases) -> Tensor:
    """Mean negative logarithm of the probability of what the actions truly did."""
    known = cases.contribution != _UNKNOWN
    right = reasons.verdict.gather(2, cases.contribution.where(known, 0)[..., None])[..., 0]
    return -(right.clamp(min=1e-7).log() * known).sum() / known.sum().clamp(min=1)


def calibrate(network: TorchNetwork, windows: Sequence[Window]) -> dict[str, float]:
    """Fits temperature and bias of the verdicts in place, on windows that nothing was trained on.

    Returns:
        The mean negative log-likelihood of what the actions truly did, "before" and "after".

    Raises:
        UsageError: if there are no windows.
    """
    reasoning, groups = network.reasoning, seen(network, windows)
    fitted = reasoning.calibrated()
    optimiser = torch.optim.LBFGS(fitted, max_iter=100, line_search_fn="strong_wolfe")
    shares = [len(group) / len(windows) for group in groups]

    def likelihood() -> Tensor:
        return sum_of([share * verdict_loss(reasoning(group), group) for share, group in zip(shares, groups, strict=True)])

    def closure() -> Tensor:
        optimiser.zero_grad()
        # A weak pull towards where they are, for actions that hardly occur.
        loss = likelihood() + 1e-4 * sum_of([(now - then).square().sum() for now, then in zip(fitted, kept, strict=True)])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    kept = [parameter.detach().clone() for parameter in fitted]
    with torch.no_grad():
        before = float(likelihood())
    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return {"before": before, "after": float(likelihood())}


def seen(network: TorchNetwork, windows: Sequence[Window], *, threads: int = 1) -> list[Cases]:
    """What the looks of `network` say about windows, and what is true, by number of pictures and sub-tasks. Raises UsageError if there are
    none."""
    if not windows:
        raise UsageError("the embedded rater's reasoning is trained and calibrated on at least one window")
    used = EmbeddedNetwork.from_tensors(export(network))
    groups: defaultdict[tuple[int, int], list[Window]] = defaultdict(list)
    for window in windows:
        groups[len(window.actions), len(window.phrases)].append(window)
    with ThreadPoolExecutor(threads) as pool:
        return [_cases(partial(pool.map, partial(_look, used)), groups[key]) for key in sorted(groups)]


def _look(network: EmbeddedNetwork, window: Window) -> Looks:
    return network.look(window.pictures, [tokens(phrase) for phrase in window.phrases])


def _cases(look: Callable[[Sequence[Window]], Iterable[Looks]], windows: Sequence[Window]) -> Cases:
    looks = list(look(windows))
    said = {name: torch.from_numpy(np.stack([getattr(look, name) for look in looks])) for name in Looks.__dataclass_fields__}
    contribution = np.stack([np.asarray(window.contribution, np.float64) for window in windows])
    classes = np.where(np.isnan(contribution), _UNKNOWN, np.nan_to_num(contribution) + 1)
    return Cases(
        **said,
        actions=torch.tensor(np.stack([window.actions for window in windows]), dtype=torch.int64),
        contribution=torch.tensor(classes, dtype=torch.int64),
        due=torch.tensor(np.stack([window.subtask for window in windows]), dtype=torch.int64),
        progress=torch.tensor(np.stack([window.quality for window in windows]), dtype=torch.float32),
    )


# --- export -------------------------------------------------------------------------------------------------------------------------------


def export(network: TorchNetwork) -> dict[str, Array]:
    """The tensors that `EmbeddedNetwork.from_tensors` reads; what is only for training is left out."""
    look, reasoning = network.look, network.reasoning
    channels, blocks = look.channels, look.blocks
    kernels = [convolution.weight.permute(2, 3, 1, 0).reshape(9 * channels, channels) for convolution in look.kernels()]
    reader = dict(look.reader.named_parameters())
    biases = [convolution.bias for convolution in look.kernels() if convolution.bias is not None]
    tensors: dict[str, Tensor] = {
        "tiles.weight": look.tiles.weight.T,
        "tiles.bias": look.tiles.bias,
        "words.embedding": look.embedding.weight,
        "words.input.weight": reader["weight_ih_l0"].T,
        "words.input.bias": reader["bias_ih_l0"],
        "words.state.weight": reader["weight_hh_l0"].T,
        "words.state.bias": reader["bias_hh_l0"],
        "blocks.weight": torch.stack(kernels),
        "blocks.bias": torch.stack(biases),
        "film.weight": look.film.weight.view(blocks, 2 * channels, -1).transpose(1, 2),
        "film.bias": look.film.bias.view(blocks, 2 * channels),
        "agent.weight": look.agent,
        "head.hidden.weight": look.head_hidden.weight.T,
        "head.hidden.bias": look.head_hidden.bias,
        "head.output.weight": look.head_output.weight.T,
        "head.output.bias": look.head_output.bias,
        "prior.hidden.weight": reasoning.prior_hidden.weight.T,
        "prior.hidden.bias": reasoning.prior_hidden.bias,
        "prior.output.weight": reasoning.prior_output.weight[0],
        "prior.bias": reasoning.prior_bias,
        "advance": reasoning.advance,
        "emission.classes": reasoning.emission,
        "emission.finished": reasoning.finished,
        "verdict.temperature": reasoning.temperature,
        "verdict.change": reasoning.change,
        "verdict.bias": reasoning.bias,
        "progress": reasoning.share,
    }
    return {name: np.array(tensor.detach().numpy(), np.float32, order="C") for name, tensor in tensors.items()}
