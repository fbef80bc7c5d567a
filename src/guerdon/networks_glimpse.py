"""The trunk of policies that see pictures and have no memory: the usual choice for camera pictures of robots.

The problem: camera pictures are many times larger than those of grid worlds, no two of them are equal, and one of them, with the
instruction, mostly says what to do next. Memory then costs whole episodes a batch and buys little. So every row stands alone, and a batch
is single transitions:

    picture -> three convolutions, the last of which the instruction scales and shifts -> linear
            -> with the instruction and vectors -> features for the heads

The convolutions are those of "Human-level control through deep reinforcement learning" (Mnih et al., Nature 2015); the instruction
conditions them as in "FiLM: Visual Reasoning with a General Conditioning Layer" (Perez et al., AAAI 2018), and instructions are read once
per distinct text. The previous action is left out: a policy without a memory that sees it learns to repeat itself. Nothing is normalised
over a batch, so an output never depends on what else is in it.

A reader that does not learn reads each instruction once, and what it made of it is kept.

Under `torch.autocast` convolutions and linear maps are in the lower precision; the reading of instructions, normalisation and the features
that come out are float32.

Reader and scales of vectors are made by `guerdon.networks`, which chooses this trunk. In shapes: R rows, B sequences, U distinct
instructions of at most L tokens. Nothing is read from disk or written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guerdon.errors import UsageError

if TYPE_CHECKING:
    from guerdon.networks import Sequences, Words

SMALLEST = 36
"""Fewest pixels a side of which the three convolutions leave anything."""
_LAYERS = ((3, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1))
"""Channels in and out, side and stride of each convolution."""


def _outputs(pixels: int) -> int:
    """Places along one side that the convolutions leave."""
    for _, _, side, stride in _LAYERS:
        pixels = (pixels - side) // stride + 1
    return pixels


def require_large_enough(view: str, size: tuple[int, int]) -> None:
    """Raises UsageError if pictures of `size` (height, width) are too small to be looked at without a memory."""
    if min(size) < SMALLEST:
        what = f"view '{view}' has pictures of {size[0]} x {size[1]} pixels: without memory a policy looks at {SMALLEST} or more a side"
        raise UsageError(what, cure="Give the policy a memory (memory=True, no --no-memory), or record larger pictures.")


class Camera(nn.Module):
    """The pictures of one camera (R, height, width, 3) uint8 -> (R, width)."""

    def __init__(self, name: str, size: tuple[int, int], width: int) -> None:
        """Args: name: of the view; size: its height and width in pixels; width: numbers that come out, and go in for each instruction.

        Raises:
            UsageError: if a side has fewer pixels than `SMALLEST`.
        """
        super().__init__()
        require_large_enough(name, size)
        self.first, self.second, self.third = (nn.Conv2d(*layer) for layer in _LAYERS)
        channels = _LAYERS[-1][1]
        self.film = nn.Linear(width, 2 * channels)
        self.widen = nn.Linear(channels * _outputs(size[0]) * _outputs(size[1]), width)

    def forward(self, frames: Tensor, summary: Tensor, asked: Tensor) -> Tensor:
        """Args: frames: (R, height, width, 3) uint8; summary: (U, width) of each instruction; asked: (R,) which of them goes with each."""
        # A view of the pictures is what convolutions know as channels-last; whole numbers up to 255 are exact in every floating type.
        pixels = frames.permute(0, 3, 1, 2).to(_floating_type(frames.device.type))
        # The convolution of pixels / 127.5 - 1, without two more passes over all pixels.
        weight: Tensor = self.first.weight
        bias: Tensor = self.first.bias  # type: ignore[assignment]  # there is one
        seen = F.relu_(F.conv2d(pixels, weight / 127.5, bias - weight.sum((1, 2, 3)), self.first.stride))
        scale, shift = self.film(summary)[asked][:, :, None, None].chunk(2, 1)
        told = F.relu_(torch.addcmul(shift, self.third(F.relu_(self.second(seen))), 1 + scale))
        wide: Tensor = self.widen(told.permute(0, 2, 3, 1).flatten(1))
        return wide


@dataclass(frozen=True)
class Summary:
    """Instructions of which only the whole was kept."""

    summary: Tensor
    """(U, width)."""


class GlimpseTrunk(nn.Module):
    """What is seen now and an instruction -> features (R, width). Has no memory: each row stands alone."""

    remembers = False
    memory_size = 0

    def __init__(
        self,
        pictures: Mapping[str, tuple[int, int]],
        *,
        reader: nn.Module,
        scales: Mapping[str, nn.Module],
        sizes: Mapping[str, int],
        width: int,
        learn_words: bool = True,
    ) -> None:
        """Args: pictures: view -> (height, width) in pixels; reader: tokens (U, L) -> `Words` of `width`; scales: vector -> what brings it
        to scale (`Standardise`); sizes: vector -> components; width: of the features; learn_words: whether the reader learns; one that does
        not reads each instruction once.

        Raises:
            UsageError: if pictures are too small.
        """
        super().__init__()
        self.width = width
        self.names, self.vector_names = tuple(pictures), tuple(scales)
        self.reader = reader.requires_grad_(learn_words)
        self._known_words: dict[bytes, Tensor] | None = None if learn_words else {}
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self.cameras = nn.ModuleList(Camera(name, size, width) for name, size in pictures.items())
        self.asked = nn.Linear(width, width)
        self.standardise = nn.ModuleList(scales.values())
        self.felt = nn.ModuleList(nn.Linear(sizes[name], width) for name in scales)
        self.norm = nn.LayerNorm(width)

    def read(self, tokens: Tensor) -> Any:
        """Reads instructions (U, L), in float32; give the result to `forward` to act on the same ones again and again."""
        if self._known_words is None or tokens.device.type != "cpu":
            return self._read(tokens)
        keys = [row[row > 0].tobytes() for row in tokens.numpy()]
        unknown = [number for number, key in enumerate(keys) if key not in self._known_words]
        if unknown:
            fresh = self._read(tokens[unknown]).summary
            self._known_words.update(zip([keys[number] for number in unknown], fresh, strict=True))
        return Summary(torch.stack([self._known_words[key] for key in keys]))

    def _read(self, tokens: Tensor) -> Words:
        with torch.autocast(tokens.device.type, enabled=False):
            words: Words = self.reader(tokens)
        return words

    def remember(self, prefix: Sequences | None, words: Words | Summary | None = None) -> None:
        """Nothing, whatever came before."""
        del prefix, words

    def scales(self) -> Iterator[tuple[str, Any]]:
        """Each vector's name and how it is brought to scale."""
        return zip(self.vector_names, self.standardise, strict=True)

    def forward(self, rows: Sequences, memory: Tensor | None = None, words: Words | Summary | None = None) -> tuple[Tensor, Tensor]:
        """-> features (R, width) float32 of each row, and a memory (B, 0).

        Args:
            rows: what is seen.
            memory: ignored.
            words: the instructions, if they have been read already.
        """
        del memory
        summary = (words or self.read(rows.tokens)).summary
        count = len(rows.frames[self.names[0]])
        asked = torch.repeat_interleave(rows.instruction, rows.lengths, output_size=count)
        parts = [camera(rows.frames[name], summary, asked) for name, camera in zip(self.names, self.cameras, strict=True)]
        parts.append(self.asked(summary)[asked])
        parts.extend(felt(scale(rows.vectors[name])) for (name, scale), felt in zip(self.scales(), self.felt, strict=True))
        with torch.autocast(summary.device.type, enabled=False):
            features = F.relu(self.norm(torch.stack([part.float() for part in parts]).sum(0)))
        return features, summary.new_zeros(len(rows.lengths), 0)


def _forget(trunk: GlimpseTrunk, keys: object) -> None:
    """What was read by other weights."""
    del keys
    if trunk._known_words is not None:
        trunk._known_words.clear()


def _floating_type(device: str) -> torch.dtype:
    """What convolutions compute in on a device now."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
