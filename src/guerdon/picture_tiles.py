"""Pictures that repeat, and pictures that are made of few distinct tiles: each kept, moved and looked at once.

The problem: an agent that walks into a wall sees the same picture again, and the pictures of a grid world consist of a few dozen tiles. In
recorded BabyAI episodes half of the pictures are repeats, and 36,800 pictures hold 39 distinct tiles. A network that looks at every pixel
of every step does most of its work several times over.

`catalogue` reads the pictures of a view once and finds both, by short keys that are then verified byte by byte, so nothing is ever taken
for the same that is not. It gives None for camera pictures, where neither is worth its while. `Catalogue.batch` gives the pictures of a
batch as `Pictures`: every distinct one once, and which of them each row shows. `Pictures.pixels` gives them back as they were.

Pictures are uint8 RGB (height, width, 3). Nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Frames = npt.NDArray[np.uint8]

TILE = 8
"""Side, in pixels, of the tiles that are looked for: the size at which grid worlds are drawn for policies."""
MOST_TILES = 4096
"""Distinct tiles up to which pictures are kept as numbers of tiles; they must also be fewer than a quarter of all tiles."""
LEAST_REPEATS = 0.1
"""Share of pictures that must be repeats for it to be worth while to look for them."""
_AT_ONCE = 256
"""Pictures that are read at a time."""
_RUNS = 16
"""Places in the data where it is tried out whether pictures repeat."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of a batch. R rows; D distinct pictures, where one that is seen under two instructions counts twice."""

    distinct: Tensor
    """(D, height, width, 3) uint8; or, with `library`, (D, rows, columns) int64 numbers of tiles."""
    row: Tensor
    """(R,) int64: which of them each row shows."""
    instruction: Tensor
    """(D,) int64: the instruction under which each is seen."""
    size: tuple[int, int]
    """Height and width in pixels."""
    library: Tensor | None = None
    """(K, tile, tile, 3) uint8: the tiles."""

    def to(self, device: torch.device | str) -> Pictures:
        """The same pictures on another device."""
        library = None if self.library is None else self.library.to(device)
        return Pictures(self.distinct.to(device), self.row.to(device), self.instruction.to(device), self.size, library)

    def __getitem__(self, part: slice) -> Pictures:
        """Some of the distinct pictures, a row each."""
        instruction = self.instruction[part]
        row = torch.arange(len(instruction), device=instruction.device)
        return Pictures(self.distinct[part], row, instruction, self.size, self.library)

    def distinct_pixels(self) -> Tensor:
        """(D, height, width, 3) uint8."""
        if self.library is None:
            return self.distinct
        height, width = self.size
        whole = self.library[self.distinct].transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return whole[:, :height, :width].contiguous()

    def pixels(self) -> Tensor:
        """(R, height, width, 3) uint8: every row's picture."""
        return self.distinct_pixels()[self.row]


@dataclass(frozen=True)
class Catalogue:
    """Which of a view's N pictures are the same, and what they are made of. D distinct pictures."""

    number: npt.NDArray[np.int64]
    """(N,) which distinct picture each one is."""
    first: npt.NDArray[np.int64]
    """(D,) a picture that is it."""
    size: tuple[int, int]
    """Height and width in pixels."""
    tiles: npt.NDArray[np.uint16] | None = None
    """(D, rows, columns): the numbers of the tiles, padded with black; None for pictures that are kept as pixels."""
    library: Tensor | None = None
    """(K, tile, tile, 3) uint8: the tiles."""

    def batch(
        self, observed: npt.NDArray[np.int64], instruction: npt.NDArray[np.int64], gather: Callable[[npt.NDArray[np.int64]], Frames]
    ) -> Pictures:
        """The pictures `observed` (R,), each seen under an instruction (R,), by number. `gather` gives pictures by number (n,)."""
        texts = int(instruction.max(initial=0)) + 1
        seen, row = np.unique(self.number[observed] * texts + instruction, return_inverse=True)
        number = seen // texts
        distinct = gather(self.first[number]) if self.tiles is None else self.tiles[number].astype(np.int64)
        return Pictures(
            torch.from_numpy(distinct), torch.from_numpy(row.reshape(-1)), torch.from_numpy(seen % texts), self.size, self.library
        )


def catalogue(frames: Frames, tile: int = TILE) -> Catalogue | None:
    """What is the same in pictures (N, height, width, 3), which may lie on disk; None if too little is.

    Camera pictures are given up after some hundred of them. Others are read once, a gigabyte in a second or so, and twice if they repeat
    without being made of few tiles.
    """
    size = frames.shape[1], frames.shape[2]
    tiled = _tiled(frames, tile)
    if tiled is not None:
        tiles, library = tiled
        same = _same(tiles)
        if same is not None:
            number, first = same
            return Catalogue(number, first, size, tiles[first], torch.from_numpy(library))
    if _repeats(frames) < LEAST_REPEATS:
        return None
    same = _same(frames)
    return None if same is None or len(same[1]) > (1 - LEAST_REPEATS) * len(frames) else Catalogue(*same, size)


def _tiled(frames: Frames, tile: int) -> tuple[npt.NDArray[np.uint16], Frames] | None:
    """Numbers of the tiles (N, rows, columns), and the tiles (K, tile, tile, 3); None if there are too many of them."""
    height, width = frames.shape[1:3]
    rows, columns = math.ceil(height / tile), math.ceil(width / tile)
    numbers = np.empty((len(frames), rows, columns), dtype=np.uint16)
    keys, library = np.empty(0, dtype=np.uint64), np.empty((0, 3 * tile * tile), dtype=np.uint8)
    for start in range(0, len(frames), _AT_ONCE):
        cut = _cut(frames[start : start + _AT_ONCE], tile, rows, columns)
        found = _keys(cut)
        fresh, where = np.unique(found, return_index=True)
        unknown = ~np.isin(fresh, keys)
        keys, library = np.concatenate([keys, fresh[unknown]]), np.concatenate([library, cut[where[unknown]]])
        if len(keys) > MOST_TILES:
            return None
        order = np.argsort(keys)
        number = order[np.searchsorted(keys, found, sorter=order)]
        if not np.array_equal(library[number], cut):
            return None  # two tiles share a key: this happens once in many billions
        numbers[start : start + _AT_ONCE] = number.reshape(-1, rows, columns)
    return None if 4 * len(keys) >= numbers.size else (numbers, library.reshape(-1, tile, tile, 3))


def _cut(frames: Frames, tile: int, rows: int, columns: int) -> Frames:
    """The tiles of pictures, one after the other: (N rows columns, 3 tile tile)."""
    height, width = frames.shape[1:3]
    if (height, width) != (rows * tile, columns * tile):
        frames = np.pad(frames, ((0, 0), (0, rows * tile - height), (0, columns * tile - width), (0, 0)))
    return frames.reshape(-1, rows, tile, columns, tile * 3).swapaxes(2, 3).reshape(-1, 3 * tile * tile)


def _same(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Which distinct one each of `values` (N, ...) is (N,), and where each distinct one comes first (D,). None if two share a key."""
    starts = range(0, len(values), _AT_ONCE)
    keys = np.concatenate([_keys(values[start : start + _AT_ONCE]) for start in starts])
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    number = number.reshape(-1)
    for start in starts:
        part = slice(start, start + _AT_ONCE)
        if not np.array_equal(values[first[number[part]]], values[part]):
            return None
    return number.astype(np.int64), first.astype(np.int64)


def _repeats(frames: Frames) -> float:
    """Share of pictures that repeat one near by, from a few runs of pictures."""
    length = min(64, len(frames))
    starts = np.unique(np.linspace(0, len(frames) - length, _RUNS).astype(np.int64))
    distinct = sum(len(np.unique(_keys(frames[start : start + length]))) for start in starts)
    return 1 - distinct / (length * len(starts))


def _keys(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A short key (N,) of each of `values` (N, ...): the sum of its 32-bit words, each times a number of its own, modulo 2^64."""
    whole = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    lacking = -whole.shape[1] % 4
    words = (np.pad(whole, ((0, 0), (0, lacking))) if lacking else whole).view(np.uint32)
    factors = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    keys: npt.NDArray[np.uint64] = np.einsum("ij,j->i", words.astype(np.uint64), 2 * factors + np.uint64(1))
    return keys
