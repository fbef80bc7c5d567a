"""The network of a policy that sees pictures, reads an instruction and remembers the whole episode.

The problem: from a few hundred recorded episodes and a minute or two on one processor core, learn what to do next when the instruction
has several parts and the picture does not say which of them are done. So the network asks two questions, one after the other. A memory
over the episode attends to the words that are due now; then the picture is looked at once more with those words in mind:

    picture -> tiles -> convolutions that know the instruction -> memory (with the previous action) -> attention over the words
            -> convolutions that know the words due now -> layout of the picture -> features for the heads

All pictures of a batch go through the convolutions at once; only the memory runs along time. Everything is normalised tile by tile or row
by row, so an output never depends on what else is in the batch. Instructions are read once per distinct text.

Rows are laid out as in `guerdon.transitions.Rows`, which this module knows as the protocol `Sequences`. In shapes: R rows, B sequences, U
distinct instructions of at most L tokens, T rows of the longest sequence. Nothing is read from disk or written.

A picture is conditioned on words as in "FiLM: Visual Reasoning with a General Conditioning Layer" (Perez et al., AAAI 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guerdon.errors import UsageError
from guerdon.seeding import stream_seed


class Sequences(Protocol):
    """Sequences of observations laid end to end, one row an observation."""

    @property
    def frames(self) -> Mapping[str, Tensor]:
        """View -> (R, height, width, 3) uint8."""

    @property
    def previous_action(self) -> Tensor:
        """(R,) int64; the number of actions stands for "none"."""

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, rows of each sequence; zero is allowed."""

    @property
    def instruction(self) -> Tensor:
        """(B,) int64, rows of `tokens`."""

    @property
    def tokens(self) -> Tensor:
        """(U, L) int64, 0 for padding, at least one token in each row."""


@contextmanager
def seeded(seed: int, *names: str) -> Iterator[None]:
    """Weights made inside are those of `seed`; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "weights", *names))
        yield


def head(width: int, outputs: int) -> nn.Sequential:
    """Features (R, width) -> (R, outputs)."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))


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
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        features, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return Words(features, features.sum(1) / lengths[:, None], padding)


class Tiles(nn.Module):
    """Pictures (R, height, width, 3) uint8 -> features of their tiles (R, rows, columns, channels). Edges are padded with black."""

    def __init__(self, height: int, width: int, tile: int, channels: int) -> None:
        super().__init__()
        self.tile, self.rows, self.columns = tile, math.ceil(height / tile), math.ceil(width / tile)
        self.edge = (0, 0, 0, self.columns * tile - width, 0, self.rows * tile - height)
        self.embedding = nn.Linear(3 * tile * tile, channels)
        self.position = nn.Parameter(torch.randn(self.rows, self.columns, channels) * 0.1)

    def forward(self, frames: Tensor) -> Tensor:
        whole = F.pad(frames, self.edge) if any(self.edge) else frames
        cut = whole.view(-1, self.rows, self.tile, self.columns, self.tile, 3).transpose(2, 3)
        pixels = cut.reshape(-1, self.rows, self.columns, 3 * self.tile * self.tile).float()
        # The linear map of pixels / 127.5 - 1, without two more passes over all pixels.
        weight = self.embedding.weight
        return F.relu(F.linear(pixels, weight / 127.5, self.embedding.bias - weight.sum(1)) + self.position)


class ConditionedConvolution(nn.Module):
    """Residual 3x3 convolution whose channels a condition (R, condition) scales and shifts. Tiles: (R, rows, columns, channels)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.film = nn.Linear(condition, 2 * channels)

    def forward(self, tiles: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, None, None, :].chunk(2, -1)
        neighbours = self.convolution(tiles.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return tiles + F.relu(torch.addcmul(shift, self.norm(neighbours), 1 + scale))


class Layout(nn.Module):
    """What is where: a few numbers for each tile, all tiles side by side. (R, rows, columns, channels) -> (R, width)."""

    def __init__(self, tiles: Tiles, channels: int, numbers: int, width: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(channels, numbers)
        self.widen = nn.Linear(numbers * tiles.rows * tiles.columns, width)

    def forward(self, tiles: Tensor) -> Tensor:
        narrow: Tensor = self.narrow(tiles)
        wide: Tensor = self.widen(narrow.flatten(1))
        return wide


class View(nn.Module):
    """The pictures of one camera, looked at twice: before and after it is known which words are due."""

    def __init__(self, size: tuple[int, int], config: PolicyNetwork.Config) -> None:
        super().__init__()
        channels, width = config.channels, config.width
        self.tiles = Tiles(*size, config.tile, channels)
        self.early = nn.ModuleList(ConditionedConvolution(channels, width) for _ in range(config.early_convolutions))
        self.late = nn.ModuleList(ConditionedConvolution(channels, 2 * width) for _ in range(config.late_convolutions))
        self.early_layout = Layout(self.tiles, channels, config.layout_numbers, width)
        self.late_layout = Layout(self.tiles, channels, config.layout_numbers, width)

    def first_look(self, frames: Tensor, instruction: Tensor) -> tuple[Tensor, Tensor]:
        """-> tiles to look at again, and their layout (R, width)."""
        tiles = self.tiles(frames)
        for convolution in self.early:
            tiles = convolution(tiles, instruction)
        return tiles, self.early_layout(tiles)

    def second_look(self, tiles: Tensor, due: Tensor) -> Tensor:
        """-> layout (R, width)."""
        for convolution in self.late:
            tiles = convolution(tiles, due)
        layout: Tensor = self.late_layout(tiles)
        return layout


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
        states, _ = self.recurrent(seen + self.noticed(latch), state[None].contiguous())
        history = torch.cat([before[:, None], torch.cat([latch, states], 2)], 1)
        return states, history[torch.arange(len(seen), device=seen.device), lengths]


class Trunk(nn.Module):
    """What was seen so far and an instruction -> features (R, width) of the present situation."""

    def __init__(self, pictures: Mapping[str, tuple[int, int]], *, words: int, actions: int, config: PolicyNetwork.Config) -> None:
        super().__init__()
        width = config.width
        self.names = tuple(pictures)
        self.reader = Reader(words, width)
        self.views = nn.ModuleList(View(size, config) for size in pictures.values())
        self.previous_action = nn.Embedding(actions + 1, width)
        self.norm = nn.LayerNorm(width)
        self.memory = Memory(width)
        self.query = nn.Linear(width, width)
        self.situation = nn.Sequential(nn.Linear(3 * width, width), nn.LayerNorm(width), nn.ReLU())

    def read(self, tokens: Tensor) -> Words:
        """Reads instructions (U, L); give the result to `forward` to act on the same ones again and again."""
        words: Words = self.reader(tokens)
        return words

    @torch.no_grad()
    def remember(self, prefix: Sequences | None) -> Tensor | None:
        """The memory that the rows of `prefix` leave behind, without gradient; None if there are none."""
        return None if prefix is None else self(prefix)[1]

    def forward(self, rows: Sequences, memory: Tensor | None = None, words: Words | None = None) -> tuple[Tensor, Tensor]:
        """-> features (R, width) of each row, and the memory (B, 2 width) after each sequence.

        Args:
            rows: what is seen.
            memory: (B, 2 width) what earlier rows left behind; None or zeros at the start of the episodes.
            words: the instructions, if they have been read already.
        """
        words = words or self.read(rows.tokens)
        place = _Places(rows.lengths)
        instruction = words.summary[rows.instruction][place.sequence]
        looks = [view.first_look(rows.frames[name], instruction) for name, view in self._views()]
        seen = F.relu(self.norm(torch.stack([layout for _, layout in looks]).sum(0) + self.previous_action(rows.previous_action)))
        states, memory = self.memory(place.pad(seen), rows.lengths, memory)
        due = torch.cat([place.rows(states), place.rows(self._attended(states, words, rows.instruction))], 1)
        layouts = [view.second_look(tiles, due) for (_, view), (tiles, _) in zip(self._views(), looks, strict=True)]
        features: Tensor = self.situation(torch.cat([torch.stack(layouts).sum(0), due], 1))
        return features, memory

    def _views(self) -> Iterator[tuple[str, Any]]:
        return zip(self.names, self.views, strict=True)

    def _attended(self, states: Tensor, words: Words, instruction: Tensor) -> Tensor:
        """What of the instruction is due at each step: (B, T, width)."""
        features = words.features[instruction]
        score: Tensor = self.query(states) @ features.transpose(1, 2) / math.sqrt(features.shape[2])
        return score.masked_fill(words.padding[instruction][:, None, :], -math.inf).softmax(-1) @ features


class _Places:
    """Where each row lies in a padded array (B, T, ...)."""

    def __init__(self, lengths: Tensor) -> None:
        self.shape = (len(lengths), int(lengths.max()))
        self.sequence = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        self.step = torch.arange(len(self.sequence), device=lengths.device) - (lengths.cumsum(0) - lengths)[self.sequence]

    def pad(self, rows: Tensor) -> Tensor:
        """(R, n) -> (B, T, n), zero where there is no row."""
        return rows.new_zeros(*self.shape, rows.shape[1]).index_put((self.sequence, self.step), rows)

    def rows(self, padded: Tensor) -> Tensor:
        """(B, T, n) -> (R, n)."""
        return padded[self.sequence, self.step]


class PolicyNetwork(nn.Module):
    """All that is needed to act: a trunk, and a head that gives the logits of the actions."""

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

        def __post_init__(self) -> None:
            for name in ("tile", "channels", "layout_numbers", "width"):
                if getattr(self, name) < 1:
                    raise UsageError(f"the network's {name} is at least 1, got {getattr(self, name)}")
            if min(self.early_convolutions, self.late_convolutions) < 0 or self.width % 2:
                raise UsageError("the network's width is even and its convolutions are not fewer than none")

    def __init__(self, pictures: Mapping[str, tuple[int, int]], *, words: int, actions: int, config: Config) -> None:
        """Args: pictures: view -> (height, width) in pixels; words: size of the vocabulary; actions: number of actions."""
        super().__init__()
        self.config = config
        self.trunk = Trunk(pictures, words=words, actions=actions, config=config)
        self.head = head(config.width, actions)


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
            if self.warm_up < 1 or self.gradient_norm <= 0 or min(self.learning_rate, self.weight_decay) < 0:
                raise UsageError("learning_rate and weight_decay are not negative, gradient_norm is above 0, warm_up at least 1")

    def __init__(self, parameters: Iterable[nn.Parameter], config: Config, *, updates: int) -> None:
        """Args: parameters: what is fitted; updates: after how many the learning rate reaches zero."""
        self.config, self.updates, self.made = config, updates, 0
        self._parameters = list(parameters)
        self._adam = torch.optim.AdamW(self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)

    def learning_rate(self) -> float:
        """Of the next update."""
        rise = min(1.0, (self.made + 1) / self.config.warm_up)
        fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.made / self.updates)))
        return self.config.learning_rate * rise * fall

    def step(self, loss: Tensor) -> Tensor:
        """Moves the weights down the gradient of `loss`. Returns the gradient's norm before clipping, not synchronised with the host."""
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm: Tensor = nn.utils.clip_grad_norm_(self._parameters, self.config.gradient_norm)
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
