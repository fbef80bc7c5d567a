"""Networks that look at one transition and give one number.

The problem: what there is to look at differs from world to world (pictures of any size, one or two of them, state vectors, the action, an
instruction), and a reward model must take in all that its `Look` names and nothing else. A `Network` is put together from these parts:

    pictures     `Published`: the convolutional network of ERL-VLM and RL-VLM-F, exactly; or `Residual`: a small residual network for
                 pictures from 16 x 16 pixels up, whose head knows where in the picture things are
    vectors      three layers of leaky rectifiers (PEBBLE, Lee et al., ICML 2021, gives its reward model these)
    instruction  a recurrent network in both directions, averaged over words
    action       an embedding of discrete ones, the numbers of continuous ones

Instruction and action condition the convolutions by scaling and shifting their channels ("FiLM: Visual Reasoning with a General
Conditioning Layer", Perez et al., AAAI 2018), beginning with no effect, and are further inputs of the layers for vectors. No layer looks
at another transition of the batch, so a transition's number never depends on what it is batched with. Nothing is read or written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guerdon.errors import UsageError
from guerdon.networks import Reader
from guerdon.rewards.steps import Look, Steps
from guerdon.transitions import Vocabulary

Encoder = Literal["published", "residual", "vector"]
"""Which network looks at pictures; "vector" if there are none."""

PUBLISHED = ((16, 5, 3), (32, 3, 2), (64, 3, 2), (128, 3, 2))
"""Channels, kernel and stride of each convolution."""
SMALLEST_PUBLISHED = 47
"""Height and width, in pixels, that leave one tile after the published convolutions."""
SMALLEST_RESIDUAL = 16
_LAST_WEIGHT = 1e-3
"""Bound of the uniform weights of the last layer: fresh models find everything equally good."""
_WORD_WIDTH = 64
_ACTION_WIDTH = 32
_TILE_NUMBERS = 4
"""Numbers that the residual network keeps of each tile, together with its place."""
_LARGEST_LAYOUT = 8
"""Height and width in tiles that pictures are brought down to."""
_GROUPS = 8


@dataclass(frozen=True)
class Architecture:
    """What a network is made of, beside what it looks at."""

    encoder: Encoder
    width: int = 256
    """Of the layers for vectors, and of those that join several kinds of input."""
    channels: int = 16
    """Of the first layers of the residual network; later ones have up to four times as many."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.channels < 1 or self.channels % _GROUPS:
            raise UsageError(f"width is at least 1 and channels are a multiple of {_GROUPS}, got {self.width} and {self.channels}")


def choose_encoder(look: Look, wanted: Encoder | Literal["auto"]) -> Encoder:
    """The encoder for what there is to look at.

    Args:
        look: what the model takes in.
        wanted: "auto" takes the published network for pictures that are large enough for it, and else the residual one.

    Raises:
        UsageError: if the wanted one cannot be used: it names the size that it needs and what can.
    """
    if not look.views and not look.vectors:
        raise UsageError("a reward model looks at pictures or at vectors, and is given neither")
    smallest = min((min(size) for size in look.views.values()), default=0)
    if wanted == "auto":
        if not look.views:
            return "vector"
        wanted = "published" if smallest >= SMALLEST_PUBLISHED else "residual"
    if wanted == "vector" and look.views:
        raise UsageError("the encoder 'vector' looks at no pictures", cure="Name no views, or choose the encoder residual.")
    if wanted != "vector" and not look.views:
        raise UsageError(f"the encoder '{wanted}' needs pictures, and there are only vectors", cure="Choose the encoder vector.")
    needed = {"published": SMALLEST_PUBLISHED, "residual": SMALLEST_RESIDUAL, "vector": 0}[wanted]
    if smallest < needed:
        cure = f"Choose the encoder residual, which needs {SMALLEST_RESIDUAL}." if smallest >= SMALLEST_RESIDUAL else "Use larger pictures."
        raise UsageError(f"the encoder '{wanted}' needs pictures of {needed} x {needed} pixels at least, they have {smallest}", cure=cure)
    return wanted


class Network(nn.Module):
    """One member of a reward model: a transition -> one number, before it is squashed into the model's scale."""

    def __init__(self, look: Look, architecture: Architecture) -> None:
        super().__init__()
        self.look = look
        self.reader = None if look.words is None else Reader(len(Vocabulary(look.words)), _WORD_WIDTH)
        self.action = nn.Embedding(len(look.action_names), _ACTION_WIDTH) if look.action_names else None
        condition = _WORD_WIDTH * (self.reader is not None) + (_ACTION_WIDTH if self.action is not None else look.action_size)
        kind: type[Published | Residual] = Published if architecture.encoder == "published" else Residual
        pictures = [kind(size, look.pictures, condition, architecture.channels) for size in look.views.values()]
        self.views = nn.ModuleList(pictures)
        sizes = [view.features for view in pictures]
        if look.vectors:
            self.vectors: nn.Module | None = _layers(look.vector_size + condition, architecture.width, 3)
            sizes.append(architecture.width)
        else:
            self.vectors = None
        joined = _layers(sum(sizes), architecture.width, 1) if len(sizes) > 1 else nn.Identity()
        self.join = joined
        self.last = nn.Linear(architecture.width if len(sizes) > 1 else sizes[0], 1)
        if self.views:
            nn.init.uniform_(self.last.weight, -_LAST_WEIGHT, _LAST_WEIGHT)
            nn.init.uniform_(self.last.bias, -_LAST_WEIGHT, _LAST_WEIGHT)

    def forward(self, steps: Steps, vector: Tensor) -> Tensor:
        """(N,) of N transitions.

        Args:
            steps: what is looked at.
            vector: (N, D) `steps.vector`, standardised.
        """
        condition = self._condition(steps)
        parts = [view(steps.frames[name], condition) for name, view in zip(self.look.views, self.views, strict=True)]
        if self.vectors is not None:
            parts.append(self.vectors(vector if condition is None else torch.cat([vector, condition], 1)))
        features = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        result: Tensor = self.last(self.join(features)).squeeze(1)
        return result

    def _condition(self, steps: Steps) -> Tensor | None:
        """Instruction and action as numbers (N, C); None if the model looks at neither."""
        parts = []
        if self.reader is not None:
            parts.append(self.reader(steps.tokens).summary[steps.instruction])
        if self.action is not None:
            parts.append(self.action(steps.action))
        elif self.look.action_size:
            parts.append(steps.action)
        return torch.cat(parts, 1) if parts else None


def _layers(inputs: int, width: int, count: int) -> nn.Sequential:
    sizes = [inputs, *[width] * count]
    return nn.Sequential(*(layer for i in range(count) for layer in (nn.Linear(sizes[i], sizes[i + 1]), nn.LeakyReLU())))


class _Film(nn.Module):
    """Scales and shifts the channels of (N, channels, h, w) by a condition (N, C); leaves them alone at first."""

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.both = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.both.weight)
        nn.init.zeros_(self.both.bias)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.both(condition)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, maps, 1 + scale)


def _films(condition: int, channels: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(_Film(condition, count) for count in channels if condition)


def _pixels(frames: Tensor) -> Tensor:
    """(N, K, H, W, 3) uint8 -> (N, 3 K, H, W) float of 0 .. 255, which lies in memory as the pictures do (channels last)."""
    count, pictures, height, width, _ = frames.shape
    beside = frames.permute(0, 2, 3, 1, 4).reshape(count, height, width, 3 * pictures)
    return beside.permute(0, 3, 1, 2).float()


def _first(convolution: nn.Conv2d, pixels: Tensor) -> Tensor:
    """The convolution of pixels / 255, without a further pass over all pixels."""
    return F.conv2d(pixels, convolution.weight / 255, convolution.bias, convolution.stride, convolution.padding)


class Published(nn.Module):
    """The convolutions of ERL-VLM and RL-VLM-F (`PUBLISHED`, without padding) with their first weights.

    Weights are uniform within 1 / sqrt(fan in), biases zero. With the last layer a member has 106,401 parameters at 224 x 224.
    """

    def __init__(self, size: tuple[int, int], pictures: int, condition: int, channels: int) -> None:
        super().__init__()
        del channels
        inputs = [3 * pictures, *(count for count, _, _ in PUBLISHED[:-1])]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(count, outputs, kernel, stride) for count, (outputs, kernel, stride) in zip(inputs, PUBLISHED, strict=True)
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for convolution in self.convolutions:
            bound = 1 / math.sqrt(convolution.weight[0].numel())
            nn.init.uniform_(convolution.weight, -bound, bound)
            nn.init.zeros_(convolution.bias)
        self.films = _films(condition, [count for count, _, _ in PUBLISHED])
        height, width = size
        for _, kernel, stride in PUBLISHED:
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.features = PUBLISHED[-1][0] * height * width

    def forward(self, frames: Tensor, condition: Tensor | None) -> Tensor:
        """(N, K, H, W, 3) uint8 -> (N, features)."""
        maps = _pixels(frames)
        for number, convolution in enumerate(self.convolutions):
            maps = convolution(maps) if number else _first(convolution, maps)
            if condition is not None:
                maps = self.films[number](maps, condition)
            maps = F.relu_(maps)  # in place: neither a convolution nor a film needs its output again
        return maps.flatten(1)


class Residual(nn.Module):
    """A small residual network with group normalisation, which brings pictures down to at most 8 x 8 tiles.

    Its features are the mean of each channel over the picture, and four numbers of each tile side by side, which keep the place.
    """

    def __init__(self, size: tuple[int, int], pictures: int, condition: int, channels: int) -> None:
        super().__init__()
        halvings = max(2, math.ceil(math.log2(max(size) / _LARGEST_LAYOUT)))
        widths = [channels * min(4, 2**number) for number in range(halvings)]
        self.first = nn.Conv2d(3 * pictures, channels, 3, padding=1, stride=2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        blocks = [_Block(before, after, condition) for before, after in pairwise(widths)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(_GROUPS, widths[-1])
        self.narrow = nn.Conv2d(widths[-1], _TILE_NUMBERS, 1)
        height, width = (_halved(side, halvings) for side in size)
        self.features = widths[-1] + _TILE_NUMBERS * height * width

    def forward(self, frames: Tensor, condition: Tensor | None) -> Tensor:
        """(N, K, H, W, 3) uint8 -> (N, features)."""
        maps = _first(self.first, _pixels(frames))
        for block in self.blocks:
            maps = block(maps, condition)
        maps = F.relu_(self.norm(maps))
        return torch.cat([maps.mean((2, 3)), self.narrow(maps).flatten(1)], 1)


def _halved(side: int, times: int) -> int:
    """What stays of a side after so many convolutions of stride 2 with padding."""
    for _ in range(times):
        side = (side + 1) // 2
    return side


class _Block(nn.Module):
    """Halves the picture: two convolutions beside a shortcut ("Identity Mappings in Deep Residual Networks", He et al., ECCV 2016)."""

    def __init__(self, before: int, after: int, condition: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(_GROUPS, before), nn.GroupNorm(_GROUPS, after)])
        self.convolutions = nn.ModuleList([nn.Conv2d(before, after, 3, padding=1, stride=2), nn.Conv2d(after, after, 3, padding=1)]).to(
            memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        self.shortcut = nn.Conv2d(before, after, 1)
        self.films = _films(condition, [after])

    def forward(self, maps: Tensor, condition: Tensor | None) -> Tensor:
        halved = self.convolutions[0](F.relu_(self.norms[0](maps)))
        normed = self.norms[1](halved)
        if condition is not None:
            normed = self.films[0](normed, condition)
        changed: Tensor = self.convolutions[1](F.relu_(normed))
        shortcut: Tensor = self.shortcut(F.avg_pool2d(maps, 2, ceil_mode=True))
        return shortcut + changed
