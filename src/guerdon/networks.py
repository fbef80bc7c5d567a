"""The network of a policy that sees pictures, reads an instruction and remembers the whole episode.

The problem: from a few hundred recorded episodes and a minute or two on one processor core, learn what to do next when the instruction has
several parts and the picture does not say which of them are done. So the network keeps two questions apart. A memory over the episode
attends to the words of the part that is due now; the pictures are then looked at with those words in mind:

    picture -> tiles -> convolutions conditioned on the whole instruction -> memory (with the previous action) -> attention over the words
    -> convolution conditioned on the attended words -> what matters where -> features for the heads

All pictures of a batch go through the convolutions at once; only the memory runs along time. Everything is normalised per tile or per row, so
an output never depends on what else is in the batch. Rows are laid out as in `guerdon.transitions.Rows`, which this module reads through the
protocol `Sequences`. Nothing is written.

Conditioning by scaling and shifting channels: "FiLM: Visual Reasoning with a General Conditioning Layer" (Perez et al., AAAI 2018).
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


class Sequences(Protocol):
    """Sequences of observations laid end to end: R rows, B sequences, U distinct instructions of at most L tokens."""

    @property
    def frames(self) -> Mapping[str, Tensor]:
        """View -> (R, height, width, 3) uint8."""

    @property
    def previous_action(self) -> Tensor:
        """(R,) int64, the number of actions standing for "none"."""

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, rows of each sequence."""

    @property
    def instruction(self) -> Tensor:
        """(B,) int64, rows of `tokens`."""

    @property
    def tokens(self) -> Tensor:
        """(U, L) int64, 0 for padding."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of the network."""

    tile: int = 8
    """Side of the square patches, in pixels, that a picture is cut into; the tile size of a grid world."""
    channels: int = 32
    """Channels of the convolutions."""
    blocks: int = 2
    """Residual 3x3 convolutions before the memory."""
    late_blocks: int = 1
    """Residual 3x3 convolutions after the memory, conditioned on the words that are due."""
    width: int = 128
    """Width of the memory, of the word features and of the features given to the heads."""
    pool: str = "flat"
    """x"""
    film: bool = True
    """x"""


class Language(nn.Module):
    """Tokens -> features of each token in its context, and of the instruction as a whole."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width // 2, padding_idx=0)
        self.reader = nn.GRU(width // 2, width // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(U, L) int64 -> features (U, L, width), their mean (U, width), and which are padding (U, L)."""
        padding = tokens == 0
        lengths = (~padding).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        features, _ = nn.utils.rnn.pad_packed_sequence(self.reader(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return features, features.sum(1) / lengths[:, None], padding


class ConditionedBlock(nn.Module):
    """Residual 3x3 convolution whose channels are scaled and shifted by a condition (FiLM). Pictures are (R, h, w, channels)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.LayerNorm(channels)
        self.film = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, None, None, :].chunk(2, -1)
        y = self.norm(self.convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return x + F.relu(torch.addcmul(shift, y, 1 + scale))


class Tiles(nn.Module):
    def __init__(self, size: tuple[int, int], tile: int, channels: int) -> None:
        super().__init__()
        self.height, self.width = math.ceil(size[0] / tile), math.ceil(size[1] / tile)
        self.padding = (0, 0, 0, self.width * tile - size[1], 0, self.height * tile - size[0])
        self.tile = tile
        self.embedding = nn.Linear(3 * tile * tile, channels)
        self.position = nn.Parameter(torch.randn(self.height, self.width, channels) * 0.1)

    def forward(self, frames: Tensor) -> Tensor:
        x = F.pad(frames, self.padding) if any(self.padding) else frames
        x = x.view(len(x), self.height, self.tile, self.width, self.tile, 3).transpose(2, 3).reshape(len(x), self.height, self.width, -1)
        return F.relu(self.embedding(x.float() / 127.5 - 1.0) + self.position)


class Pool(nn.Module):
    """What is in a picture and where: mean and maximum over the tiles, and a narrow map of all tiles."""

    def __init__(self, height: int, width: int, channels: int, outputs: int, kind: str, cond: int) -> None:
        super().__init__()
        self.kind = kind
        n = 0
        if "mm" in kind: n += 2 * channels
        if "flat" in kind:
            self.narrow = nn.Linear(channels, 8); n += 8 * height * width
        if "att" in kind:
            self.heads = 4
            self.q = nn.Linear(cond, self.heads * channels); self.pos = nn.Parameter(torch.randn(height * width, channels) * 0.1); n += self.heads * channels
        self.out = nn.Linear(n, outputs)

    def forward(self, x: Tensor, cond) -> Tensor:
        o = []
        if "mm" in self.kind: o += [x.amax((1, 2)), x.mean((1, 2))]
        if "flat" in self.kind: o.append(self.narrow(x).flatten(1))
        if "att" in self.kind:
            t = x.flatten(1, 2)
            q = self.q(cond).view(len(x), self.heads, -1)
            w = (q @ t.transpose(1, 2) / t.shape[-1] ** .5).softmax(-1)
            o.append((w @ (t + self.pos)).flatten(1))
        return self.out(torch.cat(o, 1))


class Trunk(nn.Module):
    """Observations so far and an instruction -> features (R, width) of the present situation."""

    def __init__(self, pictures: Mapping[str, tuple[int, int]], *, words: int, actions: int, config: Config) -> None:
        super().__init__()
        c, w = config.channels, config.width
        (self.view, size), = pictures.items()
        self.language = Language(words, w)
        self.tiles = Tiles(size, config.tile, c)
        self.blocks = nn.ModuleList(ConditionedBlock(c, w) for _ in range(config.blocks))
        self.early = Pool(self.tiles.height, self.tiles.width, c, w, config.pool, w)
        self.previous = nn.Embedding(actions + 1, w)
        self.norm = nn.LayerNorm(w)
        self.memory = nn.GRU(w, w, batch_first=True)
        self.query = nn.Linear(w, w)
        self.late_blocks = nn.ModuleList(ConditionedBlock(c, 2 * w) for _ in range(config.late_blocks))
        self.late = Pool(self.tiles.height, self.tiles.width, c, w, config.pool, 2 * w)
        self.out = nn.Sequential(nn.Linear(3 * w, w), nn.LayerNorm(w), nn.ReLU())

    def forward(self, s: Sequences, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        words, summary, padding = self.language(s.tokens)
        seq = torch.repeat_interleave(torch.arange(len(s.lengths)), s.lengths)
        col = torch.arange(len(seq)) - (s.lengths.cumsum(0) - s.lengths)[seq]
        cond = summary[s.instruction][seq]
        x = self.tiles(s.frames[self.view])
        for b in self.blocks:
            x = b(x, cond)
        m = F.relu(self.norm(self.early(x, cond) + self.previous(s.previous_action)))
        padded = m.new_zeros(len(s.lengths), int(s.lengths.max()), m.shape[1])
        padded[seq, col] = m
        h, last = self.memory(padded, hidden)
        score = self.query(h) @ words[s.instruction].transpose(1, 2) / m.shape[1] ** 0.5
        att = score.masked_fill(padding[s.instruction][:, None, :], -torch.inf).softmax(-1)
        clause = (att @ words[s.instruction])[seq, col]
        h = h[seq, col]
        cond = torch.cat([clause, h], 1)
        for b in self.late_blocks:
            x = b(x, cond)
        return self.out(torch.cat([self.late(x, cond), h, clause], 1)), last
