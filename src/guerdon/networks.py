"""The networks of policies: one that sees pictures, reads an instruction and remembers the episode, and one that sees a state.

The problem of pictures: from a few hundred recorded episodes and a minute or two on one processor core, learn what to do next when the
instruction has several parts and the picture does not say which of them are done. So the network asks two questions, one after the other.
A memory over the episode attends to the words that are due now; then the picture is looked at once more with those words in mind:

    picture -> tiles -> convolutions that know the instruction -> memory (with the previous action) -> attention over the words
            -> convolutions that know the words due now -> layout of the picture -> features for the heads

All pictures of a batch go through the convolutions at once; only the memory runs along time. Everything is normalised tile by tile or row
by row, so an output never depends on what else is in the batch. Instructions are read once per distinct text. Vectors that are seen beside
pictures are added to both looks.

Pictures that come as `guerdon.picture_tiles.Pictures` are looked at once where they repeat, up to where the words that are due come in; the
result is the same. Under `torch.autocast` convolutions and linear maps of pictures are in the lower precision; reading, memory,
normalisation and the features that come out are float32.

Where there are vectors and no pictures, they are the state. `StateTrunk` only brings them to a common scale (and adds what the instruction
says, if there are several); there is no memory, and policy, value and critics are networks of their own on top of it, as in "Offline
Reinforcement Learning with Implicit Q-Learning" (Kostrikov, Nair, Levine, ICLR 2022). Continuous actions come from a Gaussian whose mean
lies in [-1, 1].

Pictures without a memory have a trunk of their own, in `guerdon.networks_glimpse`; the heads are those of the remembering policy.

Rows are laid out as in `guerdon.transitions.Rows`, which this module knows as the protocol `Sequences`. In shapes: R rows, B sequences, U
distinct instructions of at most L tokens, T rows of the longest sequence. Nothing is read from disk or written.

A picture is conditioned on words as in "FiLM: Visual Reasoning with a General Conditioning Layer" (Perez et al., AAAI 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from guerdon.errors import UsageError
from guerdon.networks_glimpse import GlimpseTrunk
from guerdon.picture_tiles import Pictures
from guerdon.recurrence import both_ways, one_way
from guerdon.seeding import stream_seed

AT_ONCE = 64
"""Pictures that go through several operations together, where what lies between them should stay in the processor's cache."""


class Sequences(Protocol):
    """Sequences of observations laid end to end, one row an observation."""

    @property
    def frames(self) -> Mapping[str, Any]:
        """View -> (R, height, width, 3) uint8, or `guerdon.picture_tiles.Pictures` of R rows."""

    @property
    def previous_action(self) -> Tensor:
        """(R,) int64, where the number of actions stands for "none"; or (R, A) float32."""

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, rows of each sequence; zero is allowed."""

    @property
    def instruction(self) -> Tensor:
        """(B,) int64, rows of `tokens`."""

    @property
    def tokens(self) -> Tensor:
        """(U, L) int64, 0 for padding, at least one token in each row."""

    @property
    def vectors(self) -> Mapping[str, Tensor]:
        """Name -> (R, D) float32."""


@dataclass(frozen=True)
class _Sequences:
    """`Sequences` of some of which there are no rows, without those."""

    frames: Mapping[str, Any]
    previous_action: Tensor
    lengths: Tensor
    instruction: Tensor
    tokens: Tensor
    vectors: Mapping[str, Tensor]


class Spec(Protocol):
    """What a policy sees and does, as in `guerdon.transitions.ObservationSpec`."""

    @property
    def views(self) -> Mapping[str, tuple[int, int]]:
        """View -> (height, width) in pixels."""

    @property
    def vectors(self) -> Mapping[str, int]:
        """Name -> number of components."""

    @property
    def action_names(self) -> Sequence[str]:
        """Named actions; none for continuous ones."""

    @property
    def action_size(self) -> int:
        """A, the components of a continuous action; 0 for named ones."""

    @property
    def vocabulary(self) -> Sized:
        """Its length is the number of tokens."""

    @property
    def reads(self) -> bool:
        """Whether the instruction matters."""

    @property
    def memory(self) -> bool:
        """Whether a policy that sees pictures remembers its episode."""


@contextmanager
def seeded(seed: int, *names: str) -> Iterator[None]:
    """Weights made inside are those of `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights", *names))
        yield


def head(width: int, outputs: int) -> nn.Sequential:
    """Features (R, width) -> (R, outputs)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


class Perceptron(nn.Sequential):
    """Features (R, inputs) -> (R, outputs), through hidden layers of rectified units."""

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        widths = [inputs, *hidden]
        layers = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())]
        super().__init__(*layers, nn.Linear(widths[-1], outputs))


class GaussianHead(nn.Module):
    """Features (R, inputs) -> mean (R, A) in (-1, 1) and log standard deviation (A,) of the action.

    The deviation does not depend on the state, as in the paper's code. Its logarithm is kept within [-5, 2] (the paper's code: -10 to 2,
    CORL: -20 to 2): recorded experts repeat themselves exactly, the likelihood then grows without bound as the deviation shrinks, and so
    does the gradient of the mean. A deviation of 0.7 % of the range is exact enough.
    """

    LOWEST, HIGHEST = -5.0, 2.0

    def __init__(self, mean: nn.Module, size: int) -> None:
        """Args: mean: features -> (R, A), before it is squashed; size: A."""
        super().__init__()
        self.mean = mean
        self.log_deviation = nn.Parameter(torch.zeros(size))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.mean(features)), self.log_deviation.clamp(self.LOWEST, self.HIGHEST)

    @torch.no_grad()
    def begin_at(self, deviation: Tensor) -> None:
        """Lets a fresh head start with `deviation` (A,): that of the recorded actions, so that no updates are spent on finding it."""
        self.log_deviation.copy_(deviation.log().clamp(self.LOWEST, self.HIGHEST))


def scale_gradient(features: Tensor, share: float) -> Tensor:
    """`features` unchanged, of whose gradient `share` goes on to where they come from."""
    fixed = features.detach()
    return fixed + share * (features - fixed)


@dataclass(frozen=True)
class Words:
    """Instructions as the network reads them."""

    features: Tensor
    """(U, L, width): each token in its context."""
    summary: Tensor
    """(U, width): the mean over tokens."""
    padding: Tensor
    """(U, L) bool."""


class Reader(nn.Module):
    """Tokens -> `Words`, by a recurrent network in both directions."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width // 2, padding_idx=0)
        self.recurrent = nn.GRU(width // 2, width // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Words:
        padding = tokens == 0
        lengths = (~padding).sum(1)
        embedded = self.embedding(tokens)
        if tokens.device.type == "cpu":
            features = both_ways(self.recurrent, embedded.transpose(0, 1), lengths).transpose(0, 1)
        else:
            with torch.autocast(tokens.device.type, enabled=False):
                packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
                states = self.recurrent(packed)[0]
                features, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=tokens.shape[1])
        return Words(features, features.sum(1) / lengths[:, None], padding)


class Tiles(nn.Module):
    """Pictures (R, height, width, 3) uint8 -> features of their tiles (R, rows, columns, channels). Edges are padded with black.

    Of `Pictures`, those of the distinct ones; where these are numbers of tiles, each tile is looked at once.
    """

    def __init__(self, height: int, width: int, tile: int, channels: int) -> None:
        super().__init__()
        self.tile, self.rows, self.columns = tile, math.ceil(height / tile), math.ceil(width / tile)
        self.edge = (0, 0, 0, self.columns * tile - width, 0, self.rows * tile - height)
        self.embedding: nn.Module = nn.Linear(3 * tile * tile, channels)
        self.position = nn.Parameter(torch.randn(self.rows, self.columns, channels) * 0.1)

    def forward(self, frames: Tensor | Pictures) -> Tensor:
        if isinstance(frames, Pictures) and frames.library is not None and frames.library.shape[1] == self.tile:
            each = self._embedded(frames.library.flatten(1))
            embedded = each.index_select(0, frames.distinct.flatten()).view(*frames.distinct.shape, -1)
        else:
            pictures = frames.distinct_pixels() if isinstance(frames, Pictures) else frames
            whole = F.pad(pictures, self.edge) if any(self.edge) else pictures
            cut = whole.view(-1, self.rows, self.tile, self.columns, self.tile, 3).transpose(2, 3)
            embedded = self._embedded(cut.reshape(-1, self.rows, self.columns, 3 * self.tile * self.tile))
        return F.relu_(embedded + self.position)

    def _embedded(self, tiles: Tensor) -> Tensor:
        """(..., 3 tile tile) uint8 -> (..., channels): the linear map of pixels / 127.5 - 1, without two more passes over all pixels."""
        weight, bias = self.embedding.parameters()
        return F.linear(tiles.float(), weight / 127.5, bias - weight.sum(1))


class SymbolTiles(Tiles):
    """As `Tiles`, but a tile says only which one it is of those in the data, not what it looks like: input as a grid of symbols.

    Tiles that are not in the data all look the same. `learn` takes over which ones are.
    """

    MOST = 256

    known: Tensor
    count: Tensor

    def __init__(self, height: int, width: int, tile: int, channels: int) -> None:
        super().__init__(height, width, tile, channels)
        self.register_buffer("known", torch.zeros(self.MOST, 3 * tile * tile, dtype=torch.uint8))
        self.register_buffer("count", torch.tensor(0))
        self.embedding: nn.Module = nn.Embedding(self.MOST + 1, channels)

    def learn(self, library: Tensor) -> None:
        """Takes over the tiles (K, tile, tile, 3) uint8 of the data. Raises UsageError if there are too many."""
        if len(library) > self.MOST or library.shape[1] != self.tile:
            what = f"the pictures are made of {len(library)} tiles of {library.shape[1]} pixels; {self.MOST} of {self.tile} can be symbols"
            raise UsageError(what, cure="Look at pixels: leave out --NAME.network.symbols.")
        self.known[: len(library)] = library.flatten(1)
        self.count.fill_(len(library))

    def _embedded(self, tiles: Tensor) -> Tensor:
        distinct, place = torch.unique(tiles.flatten(0, -2), dim=0, return_inverse=True)
        same = (distinct[:, None] == self.known[None, : int(self.count)]).all(2)
        symbols = torch.where(same.any(1), same.int().argmax(1), self.MOST)
        embedded: Tensor = self.embedding(symbols[place].view(tiles.shape[:-1]))
        return embedded


class _NarrowedChange(torch.autograd.Function):
    """(neighbours, row, both, weight) -> relu(neighbours[row] (1 + scale) + shift) @ weight.T; `both` is scale and shift side by side.

    The same operations as one by one, but for a few pictures at a time, so that what lies between them stays in the processor's cache; on
    the way back it is computed again, which is cheaper than fetching it. Shapes: (D, P, C), (R,), (R, 2 C), (N, C) -> (R, P, N).
    """

    @staticmethod
    def forward(ctx: Any, neighbours: Tensor, row: Tensor, both: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(neighbours, row, both, weight)
        narrow = neighbours.new_empty(len(row), neighbours.shape[1], len(weight))
        for part in _parts(row):
            _, _, change = _NarrowedChange._change(neighbours, row[part], both[part])
            torch.matmul(change, weight.T, out=narrow[part])
        return narrow

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        neighbours, row, both, weight = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            of_neighbours, of_both, of_weight = torch.zeros_like(neighbours), torch.empty_like(both), torch.zeros_like(weight)
            for part in _parts(row):
                seen, scale, change = _NarrowedChange._change(neighbours, row[part], both[part])
                of_weight.addmm_(gradient[part].flatten(0, 1).T, change.flatten(0, 1))
                of_change = torch.ops.aten.threshold_backward(gradient[part] @ weight, change, 0)
                of_both[part] = torch.cat([torch.mul(seen, of_change, out=change).sum(1), of_change.sum(1)], 1)
                of_neighbours.index_add_(0, row[part], of_change.mul_(scale))
            return of_neighbours, None, of_both, of_weight

    @staticmethod
    def _change(neighbours: Tensor, row: Tensor, both: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The neighbours of each row, 1 + scale, and the change."""
        scale, shift = both[:, None, :].chunk(2, -1)
        seen, scale = neighbours.index_select(0, row), 1 + scale
        return seen, scale, torch.addcmul(shift, seen, scale).relu_()


def _parts(row: Tensor) -> Iterator[slice]:
    """Rows that are worked on together; all of them on a graphics card."""
    at_once = AT_ONCE if row.device.type == "cpu" else max(1, len(row))
    return (slice(start, start + at_once) for start in range(0, len(row), at_once))


class ConditionedConvolution(nn.Module):
    """Residual 3x3 convolution whose channels a condition (U, condition) scales and shifts. Tiles: (R, rows, columns, channels)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.film = nn.Linear(condition, 2 * channels)

    def neighbours(self, tiles: Tensor) -> Tensor:
        """What the convolution sees, whatever the condition is."""
        seen: Tensor = self.norm(self.convolution(tiles.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).float())
        return seen

    def change(self, neighbours: Tensor, condition: Tensor, asked: Tensor | None = None) -> Tensor:
        """What is added to the tiles. `asked` (R,) says under which condition each picture is seen; None: each has its own."""
        both = self.film(condition)
        scale, shift = (both if asked is None else both.index_select(0, asked))[:, None, None, :].chunk(2, -1)
        return F.relu_(torch.addcmul(shift, neighbours, 1 + scale))

    def forward(self, tiles: Tensor, condition: Tensor, asked: Tensor | None = None) -> Tensor:
        return tiles + self.change(self.neighbours(tiles), condition, asked)

    def narrowed_change(self, tiles: Tensor, row: Tensor, condition: Tensor, weight: Tensor) -> Tensor:
        """A linear map, weight (N, channels), of what is added to the pictures `row` (R,) of `tiles` (D, ...): (R, rows, columns, N)."""
        neighbours, both = self.neighbours(tiles), self.film(condition).float()
        with torch.autocast(tiles.device.type, enabled=False):
            narrow: Tensor = _NarrowedChange.apply(neighbours.flatten(1, 2), row, both, weight)  # type: ignore[no-untyped-call]
            return narrow.view(len(row), *tiles.shape[1:3], len(weight))


class Layout(nn.Module):
    """What is where: a few numbers for each tile, all tiles side by side. (R, rows, columns, channels) -> (R, width)."""

    def __init__(self, tiles: Tiles, channels: int, numbers: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(channels, numbers)
        self.widen = nn.Linear(numbers * tiles.rows * tiles.columns, width)

    def forward(self, tiles: Tensor) -> Tensor:
        wide: Tensor = self.widen(self.narrow(tiles).flatten(1))
        return wide

    def of_changed(self, tiles: Tensor, row: Tensor, change: Any, condition: Tensor) -> Tensor:
        """Of the pictures `row` (R,) of `tiles` (D, ...) after `change`: what is linear is done to each picture once."""
        narrow = self.narrow(tiles).index_select(0, row) + change.narrowed_change(tiles, row, condition, self.narrow.weight)
        wide: Tensor = self.widen(narrow.flatten(1))
        return wide


@dataclass(frozen=True)
class Look:
    """What a first look at pictures leaves for the second."""

    tiles: Tensor
    """(D, rows, columns, channels)."""
    row: Tensor | None
    """(R,) int64: which of the D pictures each row shows; None if each row has its own."""


class View(nn.Module):
    """The pictures of one camera, looked at twice: before and after it is known which words are due."""

    def __init__(self, size: tuple[int, int], config: PolicyNetwork.Config) -> None:
        super().__init__()
        channels, width = config.channels, config.width
        self.tiles = (SymbolTiles if config.symbols else Tiles)(*size, config.tile, channels)
        self.early = nn.ModuleList(ConditionedConvolution(channels, width) for _ in range(config.early_convolutions))
        self.late = nn.ModuleList(ConditionedConvolution(channels, 2 * width) for _ in range(config.late_convolutions))
        self.early_layout = Layout(self.tiles, channels, config.layout_numbers, width)
        self.late_layout = Layout(self.tiles, channels, config.layout_numbers, width)

    def first_look(self, frames: Tensor | Pictures, instruction: Tensor, asked: Tensor) -> tuple[Look, Tensor]:
        """-> what to look at again, and the layout (R, width).

        Args:
            frames: of R rows.
            instruction: (U, width) each instruction.
            asked: (R,) int64, which of them goes with each row.
        """
        row = None
        if isinstance(frames, Pictures):
            row, asked = frames.row, frames.instruction
        tiles, layout = self._look(frames, instruction, asked)
        return Look(tiles, row), layout if row is None else layout.index_select(0, row)

    def first_layout(self, frames: Tensor | Pictures, instruction: Tensor, asked: Tensor) -> Tensor:
        """The layout that `first_look` gives, a few pictures at a time: for where no gradient is wanted and nothing is looked at again."""
        row = None
        if isinstance(frames, Pictures):
            row, asked = frames.row, frames.instruction
        layout = torch.cat([self._look(frames[part], instruction, asked[part])[1] for part in _parts(asked)])
        return layout if row is None else layout.index_select(0, row)

    def _look(self, frames: Tensor | Pictures, instruction: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles and layout of each (distinct) picture, seen under the instruction `asked`."""
        tiles = self.tiles(frames)
        for convolution in self.early:
            tiles = convolution(tiles, instruction, asked)
        return tiles, self.early_layout(tiles)

    def second_look(self, look: Look, due: Tensor) -> Tensor:
        """-> layout (R, width). Everything that comes before the words that are due (R, 2 width) is done once for each picture."""
        tiles, row, later = look.tiles, look.row, list(self.late)
        if len(later) == 1:
            row = torch.arange(len(due), device=due.device) if row is None else row
            layout: Tensor = self.late_layout.of_changed(tiles, row, later[0], due)
            return layout
        tiles = tiles if row is None else tiles.index_select(0, row)
        for convolution in later:
            tiles = convolution(tiles, due)
        layout = self.late_layout(tiles)
        return layout  # noqa: RET504


class Standardise(nn.Module):
    """A vector (R, D) -> the same in units of its deviation in the data, cut at 10.

    Divides by the deviation plus 0.001, as CORL does: a component that moves by less than a thousandth is noise. A component that never
    changed in the data is left out, since nothing can be learned from it and any other value would be a surprise.
    """

    LARGEST = 10.0
    UNCHANGED = 1e-6

    mean: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, vector: Tensor) -> Tensor:
        return ((vector - self.mean) * self.scale).clamp(-self.LARGEST, self.LARGEST)

    @torch.no_grad()
    def measure(self, mean: Tensor, deviation: Tensor) -> None:
        """Takes over mean and deviation (D,) of the data."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > self.UNCHANGED, 1 / (deviation + 1e-3), 0.0))


class VectorView(nn.Module):
    """A vector as it is seen beside pictures: part of the first and of the second look."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.standardise = Standardise(size)
        self.looks = nn.Linear(size, 2 * width)

    def forward(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) -> what is added to the layouts of the pictures before and after the memory, each (R, width)."""
        first, second = self.looks(self.standardise(vector)).chunk(2, 1)
        return first, second


class Memory(nn.Module):
    """What happened so far, in two parts: a latch, and a recurrent network that reads the latch.

    The latch keeps, of each of its features, the largest value since the start of the episode. An event of one step, such as a sub-task
    that was completed, stays in it for ever, and the gradient reaches back to that step undiminished; a recurrent network alone forgets it
    within some twenty steps. What follows from several events is left to the recurrent network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.notice = nn.Linear(width, width)
        self.noticed = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.noticed.weight)  # the recurrent network begins undisturbed
        self.recurrent = nn.GRU(width, width, batch_first=True)

    def forward(self, seen: Tensor, lengths: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """-> states (B, T, width), and the memory (B, 2 width) after the last step.

        Args:
            seen: (B, T, width), padded at the end.
            lengths: (B,) steps of each sequence; zero leaves the memory as it was.
            memory: (B, 2 width) from earlier steps; None or zeros at the start of the episodes.
        """
        before = seen.new_zeros(len(seen), 2 * seen.shape[2]) if memory is None else memory
        latched, state = before.chunk(2, 1)
        latch = torch.maximum(F.relu(self.notice(seen)).cummax(1).values, latched[:, None])
        heard = seen + self.noticed(latch)
        if seen.device.type == "cpu":
            states = one_way(self.recurrent, heard.transpose(0, 1), state).transpose(0, 1)
        else:
            with torch.autocast(seen.device.type, enabled=False):
                states, _ = self.recurrent(heard.float(), state[None].contiguous())
        history = torch.cat([before[:, None], torch.cat([latch, states], 2)], 1)
        return states, history[torch.arange(len(seen), device=seen.device), lengths]


class Trunk(nn.Module):
    """What was seen so far and an instruction -> features (R, width) of the present situation."""

    remembers = True

    def __init__(
        self,
        pictures: Mapping[str, tuple[int, int]],
        vectors: Mapping[str, int],
        *,
        words: int,
        actions: int,
        action_size: int,
        config: PolicyNetwork.Config,
    ) -> None:
        super().__init__()
        self.width = width = config.width
        self.memory_size = 2 * width
        self.names, self.vector_names = tuple(pictures), tuple(vectors)
        self.reader = Reader(words, width)
        self.views = nn.ModuleList(View(size, config) for size in pictures.values())
        self.previous_action = nn.Linear(action_size, width) if action_size else nn.Embedding(actions + 1, width)
        self.norm = nn.LayerNorm(width)
        self.memory = Memory(width)
        self.query = nn.Linear(width, width)
        self.situation = nn.Sequential(nn.Linear(3 * width, width), nn.LayerNorm(width), nn.ReLU())
        self.vectors = nn.ModuleList(VectorView(size, width) for size in vectors.values())

    def read(self, tokens: Tensor) -> Words:
        """Reads instructions (U, L); give the result to `forward` to act on the same ones again and again."""
        words: Words = self.reader(tokens)
        return words

    @torch.no_grad()
    def remember(self, prefix: Sequences | None, words: Words | None = None) -> Tensor | None:
        """The memory that the rows of `prefix` leave behind, without gradient; None if there are none. `words`: the instructions, if they
        have been read already."""
        if prefix is None:
            return None
        some = prefix.lengths.nonzero().squeeze(1)  # the others need not wait for the longest
        memory = torch.zeros(len(prefix.lengths), self.memory_size, device=some.device)
        if len(some):
            rows = _Sequences(
                prefix.frames, prefix.previous_action, prefix.lengths[some], prefix.instruction[some], prefix.tokens, prefix.vectors
            )
            words = words or self.read(prefix.tokens)
            asked = torch.repeat_interleave(rows.instruction, rows.lengths)
            layouts = [view.first_layout(rows.frames[name], words.summary, asked) for name, view in self._views()]
            memory[some] = self._remembered(rows, None, _Places(rows.lengths), layouts)[-1]
        return memory

    def forward(self, rows: Sequences, memory: Tensor | None = None, words: Words | None = None) -> tuple[Tensor, Tensor]:
        """-> features (R, width) of each row, and the memory (B, 2 width) after each sequence.

        Args:
            rows: what is seen.
            memory: (B, 2 width) what earlier rows left behind; None or zeros at the start of the episodes.
            words: the instructions, if they have been read already.
        """
        words = words or self.read(rows.tokens)
        place, looks, felt, states, memory = self._until_now(rows, memory, words)
        due = torch.cat([place.rows(states), place.rows(self._attended(states, words, rows.instruction))], 1)
        layouts = [view.second_look(look, due) for (_, view), look in zip(self._views(), looks, strict=True)]
        late = torch.stack([*layouts, *felt]).sum(0)
        mixed, norm, rectified = self.situation
        features: Tensor = rectified(norm(mixed(torch.cat([late, due], 1)).float()))
        return features, memory

    def _until_now(self, rows: Sequences, memory: Tensor | None, words: Words) -> tuple[_Places, list[Look], list[Tensor], Tensor, Tensor]:
        """The first looks and the memory: where rows lie, what is left for the second looks at pictures and at vectors, the states
        (B, T, width), and the memory (B, 2 width) after each sequence."""
        place = _Places(rows.lengths)
        asked = rows.instruction[place.sequence]
        looks = [view.first_look(rows.frames[name], words.summary, asked) for name, view in self._views()]
        felt, states, memory = self._remembered(rows, memory, place, [layout for _, layout in looks])
        return place, [look for look, _ in looks], felt, states, memory

    def _remembered(
        self, rows: Sequences, memory: Tensor | None, place: _Places, layouts: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """What vectors add to the second looks, the states (B, T, width) and the memory, given the pictures' layouts (R, width)."""
        felt = [vector(rows.vectors[name]) for name, vector in self._vectors()]
        early = torch.stack([*layouts, *(first for first, _ in felt)]).sum(0)
        seen = F.relu(self.norm((early + self.previous_action(rows.previous_action)).float()))
        states, memory = self.memory(place.pad(seen), rows.lengths, memory)
        return [second for _, second in felt], states, memory

    def learn_tiles(self, libraries: Mapping[str, Tensor | None]) -> None:
        """Takes over the tiles of each view as symbols. Raises UsageError if pictures are not made of few tiles."""
        for name, view in self._views():
            library = libraries.get(name)
            if library is None:
                what = f"the pictures of view '{name}' are not made of few tiles, so their tiles cannot be symbols"
                raise UsageError(what, cure="Look at pixels: leave out --NAME.network.symbols.")
            view.tiles.learn(library)

    def scales(self) -> Iterator[tuple[str, Standardise]]:
        """Each vector's name and how it is brought to scale."""
        return ((name, vector.standardise) for name, vector in self._vectors())

    def _views(self) -> Iterator[tuple[str, Any]]:
        return zip(self.names, self.views, strict=True)

    def _vectors(self) -> Iterator[tuple[str, Any]]:
        return zip(self.vector_names, self.vectors, strict=True)

    def _attended(self, states: Tensor, words: Words, instruction: Tensor) -> Tensor:
        """What of the instruction is due at each step: (B, T, width)."""
        features = words.features.index_select(0, instruction)
        score: Tensor = self.query(states) @ features.transpose(1, 2) / math.sqrt(features.shape[2])
        return score.masked_fill(words.padding[instruction][:, None, :], -math.inf).softmax(-1) @ features


class StateTrunk(nn.Module):
    """Vectors that are the whole state, and an instruction -> features (R, width): the vectors on a common scale and, where instructions
    differ, a summary of what is asked for. Has no memory and nothing to learn but how to read."""

    remembers = False
    memory_size = 0

    def __init__(self, vectors: Mapping[str, int], *, words: int, reads: bool, config: PolicyNetwork.Config) -> None:
        super().__init__()
        self.names = tuple(vectors)
        self.standardise = nn.ModuleList(Standardise(size) for size in vectors.values())
        self.reader = Reader(words, config.width) if reads else None
        self.width = sum(vectors.values()) + (config.width if reads else 0)

    def read(self, tokens: Tensor) -> Words | None:
        """As `Trunk.read`; None if the instruction does not matter."""
        return None if self.reader is None else self.reader(tokens)

    def remember(self, prefix: Sequences | None, words: Words | None = None) -> None:
        """Nothing, whatever came before."""
        del prefix, words

    def scales(self) -> Iterator[tuple[str, Any]]:
        """Each vector's name and how it is brought to scale."""
        return zip(self.names, self.standardise, strict=True)

    def forward(self, rows: Sequences, memory: Tensor | None = None, words: Words | None = None) -> tuple[Tensor, Tensor]:
        """As `Trunk.forward`, with a memory (B, 0)."""
        del memory
        features = [scale(rows.vectors[name]) for name, scale in self.scales()]
        words = words or self.read(rows.tokens)
        if words is not None:
            features.append(torch.repeat_interleave(words.summary[rows.instruction], rows.lengths, 0))
        return torch.cat(features, 1), features[0].new_zeros(len(rows.lengths), 0)


class _Places:
    """Where each row lies in a padded array (B, T, ...)."""

    def __init__(self, lengths: Tensor) -> None:
        self.shape = (len(lengths), int(lengths.max()))
        self.sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        step = torch.arange(len(self.sequence), device=lengths.device) - (lengths.cumsum(0) - lengths)[self.sequence]
        self._place = self.sequence * self.shape[1] + step

    def pad(self, rows: Tensor) -> Tensor:
        """(R, n) -> (B, T, n), zero where there is no row."""
        sequences, steps = self.shape
        return rows.new_zeros(sequences * steps, rows.shape[1]).index_copy(0, self._place, rows).view(sequences, steps, -1)

    def rows(self, padded: Tensor) -> Tensor:
        """(B, T, n) -> (R, n)."""
        return padded.reshape(-1, padded.shape[2]).index_select(0, self._place)


class PolicyNetwork(nn.Module):
    """All that is needed to act: a trunk, and a head that gives the logits of the actions or, for continuous ones, a Gaussian."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Size of the network."""

        tile: int = 8
        """Side, in pixels, of the squares that a picture is cut into; best the tile size of the grid world."""
        channels: int = 32
        """Numbers that describe a tile and its surroundings."""
        early_convolutions: int = 2
        """3x3 convolutions before the memory."""
        late_convolutions: int = 1
        """3x3 convolutions after it, which know the words that are due."""
        layout_numbers: int = 8
        """Numbers that are kept of each tile, together with its place."""
        width: int = 128
        """Width of word features, memory and heads; even."""
        learn_words: bool = True
        """Learn to read. If not, a policy without memory tells instructions apart by what a reader with random weights makes of them, and
        each is read once: faster, and enough where it will meet no other instructions than those in the data."""
        symbols: bool = False
        """Look at a grid of symbols: which of the tiles in the data each tile is, not its pixels. For pictures of grid worlds."""
        hidden: tuple[int, ...] = (256, 256)
        """Widths of the hidden layers of each network that sees vectors and no pictures."""

        def __post_init__(self) -> None:
            for name in ("tile", "channels", "layout_numbers", "width"):
                if getattr(self, name) < 1:
                    raise UsageError(f"the network's {name} is at least 1, got {getattr(self, name)}")
            if min(self.early_convolutions, self.late_convolutions) < 0 or self.width % 2:
                raise UsageError("the network's width is even and its convolutions are not fewer than none")
            object.__setattr__(self, "hidden", tuple(self.hidden))  # a record read from JSON has a list
            if min(self.hidden, default=1) < 1:
                raise UsageError(f"the network's hidden layers are at least 1 wide, got {self.hidden}")

    def __init__(
        self,
        pictures: Mapping[str, tuple[int, int]],
        *,
        words: int,
        actions: int,
        config: Config,
        vectors: Mapping[str, int] | None = None,
        action_size: int = 0,
        reads: bool = True,
        memory: bool = True,
    ) -> None:
        """Args: pictures: view -> (height, width) in pixels; words: size of the vocabulary; actions: number of named actions; vectors: name
        -> components; action_size: components of a continuous action, 0 for named ones; reads: whether the instruction matters (it always
        does where there are pictures); memory: whether a policy that sees pictures remembers its episode.

        Raises:
            UsageError: if pictures are too small for a policy without a memory, or a setting means nothing for what it sees.
        """
        super().__init__()
        self.config, self.action_size = config, action_size
        vectors = vectors or {}
        if config.symbols and not (pictures and memory):
            raise UsageError(
                "only a policy that remembers pictures sees their tiles as symbols", cure="Leave out symbols, or let it remember."
            )
        if not config.learn_words and (memory or not pictures):
            raise UsageError(
                "only a policy that looks at pictures without a memory can leave reading unlearned", cure="Let it learn words."
            )
        self.trunk: Trunk | StateTrunk | GlimpseTrunk
        if not pictures:
            self.trunk = StateTrunk(vectors, words=words, reads=reads, config=config)
        elif memory:
            self.trunk = Trunk(pictures, vectors, words=words, actions=actions, action_size=action_size, config=config)
        else:
            scales = {name: Standardise(size) for name, size in vectors.items()}
            reader = Reader(words, config.width)
            self.trunk = GlimpseTrunk(
                pictures, reader=reader, scales=scales, sizes=vectors, width=config.width, learn_words=config.learn_words
            )
        self.head = GaussianHead(self.new_head(action_size), action_size) if action_size else self.new_head(actions)

    @classmethod
    def of(cls, spec: Spec, config: Config) -> PolicyNetwork:
        """A network with fresh weights for what `spec` describes."""
        return cls(
            spec.views,
            words=len(spec.vocabulary),
            actions=len(spec.action_names),
            config=config,
            vectors=spec.vectors,
            action_size=spec.action_size,
            reads=spec.reads,
            memory=spec.memory,
        )

    def new_head(self, outputs: int, beside: int = 0) -> nn.Sequential:
        """A fresh network from the trunk's features, and `beside` further numbers, to `outputs`."""
        inputs = self.trunk.width + beside
        if isinstance(self.trunk, StateTrunk):
            return Perceptron(inputs, self.config.hidden, outputs)
        return Perceptron(inputs, (self.config.width,), outputs) if beside else head(self.trunk.width, outputs)

    def measure(
        self,
        moments: Mapping[str, tuple[Tensor, Tensor]],
        action_deviation: Tensor | None,
        libraries: Callable[[], Mapping[str, Tensor | None]] = dict,
    ) -> None:
        """Takes over what is known of the data before learning: mean and deviation (D,) of each vector, deviation (A,) of the actions, and
        the tiles (K, tile, tile, 3) that the pictures of each view are made of, which are asked for only if they are needed.

        Raises:
            UsageError: if tiles are to be symbols, and there are too many.
        """
        if self.config.symbols:
            assert isinstance(self.trunk, Trunk)
            self.trunk.learn_tiles(libraries())
        for name, scale in self.trunk.scales():
            scale.measure(*moments[name])
        if isinstance(self.head, GaussianHead) and action_deviation is not None:
            self.head.begin_at(action_deviation)


class Optimiser:
    """AdamW with a clipped gradient and a learning rate that rises briefly and then falls to zero along a cosine.

    "Decoupled Weight Decay Regularization" (Loshchilov, Hutter, ICLR 2019).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """How weights are fitted."""

        learning_rate: float = 1e-3
        """Highest learning rate."""
        warm_up: int = 50
        """Updates over which the learning rate rises to it."""
        weight_decay: float = 0.01
        """Pull of the weights towards zero."""
        gradient_norm: float = 1.0
        """Longest gradient; longer ones are shortened to it."""

        def __post_init__(self) -> None:
            rates = self.learning_rate, self.weight_decay
            if self.warm_up < 1 or not self.gradient_norm > 0 or not all(0 <= rate < math.inf for rate in rates):  # not a number: neither
                raise UsageError("learning_rate and weight_decay are not negative, gradient_norm is above 0, warm_up at least 1")

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        config: Config,
        *,
        updates: int,
        apart: Sequence[Iterable[nn.Parameter]] = (),
    ) -> None:
        """Args: parameters: what is fitted; updates: after how many the learning rate reaches zero; apart: networks among the parameters
        whose gradients are clipped on their own, because they share nothing with the rest."""
        self.config, self.updates, self.made = config, updates, 0
        self._parameters = list(parameters)
        groups = [list(group) for group in apart]
        alone = {id(parameter) for group in groups for parameter in group}
        self._clipped = [[parameter for parameter in self._parameters if id(parameter) not in alone], *groups]
        self._adam = torch.optim.AdamW(self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)

    def learning_rate(self) -> float:
        """Of the next update."""
        rise = min(1.0, (self.made + 1) / self.config.warm_up)
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.made / self.updates)))
        return self.config.learning_rate * rise * fall

    def advance(self) -> float:
        """The learning rate of the next update, which now counts as made: for whoever makes it in another way, with the moments of
        `keep_moments_in`."""
        rate = self.learning_rate()
        self.made += 1
        return rate

    def keep_moments_in(self, parameters: Sequence[nn.Parameter], first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """From now on keeps the moments of the gradients of `parameters` in the tensors given, which take over what they are now."""
        for parameter, *places in zip(parameters, first, second, strict=True):
            state = self._adam.state[parameter]
            for name, place in zip(("exp_avg", "exp_avg_sq"), places, strict=True):
                if name in state:
                    place.copy_(state[name])
                state[name] = place
        self.count_moments()

    def count_moments(self) -> None:
        """Tells the moments how many updates have been made."""
        for state in self._adam.state.values():
            state["step"] = torch.tensor(float(self.made))

    def step(self, loss: Tensor) -> Tensor:
        """Moves the weights down the gradient of `loss`. Returns the gradient's norm before clipping, without what is clipped apart; not
        synchronised with the host."""
        self._adam.zero_grad(set_to_none=True)
        with torch.autocast(loss.device.type, enabled=False):  # each way back is in the precision of the way there
            loss.backward()  # type: ignore[no-untyped-call]
        norm, *_ = (nn.utils.clip_grad_norm_(group, self.config.gradient_norm) for group in self._clipped)
        for group in self._adam.param_groups:
            group["lr"] = self.learning_rate()
        self._adam.step()
        self.made += 1
        return norm

    def state(self) -> dict[str, Any]:
        """Nested mappings of tensors: moments of each parameter, and the updates made."""
        moments = {str(index): dict(state) for index, state in self._adam.state_dict()["state"].items()}
        return {"moments": moments, "made": torch.tensor(self.made)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where the optimiser that gave `state` stood."""
        saved = state.get("moments", {})
        moments = {int(index): {name: value.clone() for name, value in moment.items()} for index, moment in saved.items()}
        self._adam.load_state_dict({"state": moments, "param_groups": self._adam.state_dict()["param_groups"]})
        self.made = int(state["made"])
