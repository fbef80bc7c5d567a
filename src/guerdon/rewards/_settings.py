"""How a reward model is fitted: one list of settings for ratings, preferences and scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from guerdon.errors import UsageError
from guerdon.losses import BoundaryRule, LossKind, WeightRule
from guerdon.rewards.samplers import Rule


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a reward model is fitted."""

    encoder: Literal["auto", "published", "residual", "vector"] = "auto"
    """Network that looks at pictures: ERL-VLM's own (from 47 x 47 pixels up), a small residual one (from 16 x 16), or none (vectors
    alone). auto: the published one where pictures are large enough."""
    members: int = 3
    """Networks in the ensemble. The reward is their mean; how far they lie apart is its spread."""
    updates: int = 1000
    """Most gradient steps, rounded up to whole passes over the labels, two at least; means nothing if epochs are given."""
    epochs: int | None = None
    """Most passes over the labels."""
    batch: int = 128
    """Labels in a batch. Class boundaries are placed batch by batch."""
    learning_rate: float = 3e-4
    """Of Adam."""
    loss: LossKind = "mae"
    """Of ratings and preferences: mean absolute error, which bounds what a wrong label can do, or cross entropy."""
    boundary: BoundaryRule = "midpoint"
    """Where one class ends and the next begins: halfway between the two returns there, or at the lower one (as published)."""
    sharpness: float = 30.0
    """How sharply classes are told apart at their boundaries (ratings only)."""
    weights: WeightRule = "reference"
    """How much the ratings of a class count, by how often it is in the batches of an epoch: by the published formula (which favours rare
    classes less than inverse frequency does), by inverse frequency, or all alike."""
    fewest_weighted: int = 10
    """Ratings that the rarest class needs, or all classes count alike: a handful of ratings, one of them perhaps wrong, is not to outweigh
    all others."""
    sampler: Rule = "balanced"
    """How ratings are put into batches: every class in every one, as in the published code, or shuffled."""
    smoothing: float = 0.0
    """Share of each rating that is spread over all classes."""
    noise: float = 0.0
    """Share of preferences that are taken to be given at random."""
    held_out: float = 0.1
    """Share of the labels that are not learned from, and decide when to stop: whole episodes where there are five at least. If the share
    is less than five labels, none are held out and the others decide."""
    patience: int = 10
    """Measurements in a row without improvement after which fitting stops; one is made after a pass, but not before 20 updates more."""
    target: float = 0.97
    """Balanced accuracy on held-out labels above which fitting stops (not before the second pass)."""
    least_updates: int = 100
    """Gradient steps before which fitting does not stop: a few held-out labels are soon all right."""
    size: Literal["stretched", "raw"] = "stretched"
    """Of rewards from ratings, which teach an order and no size. stretched: the transitions that were rated use the whole scale; raw: as
    the networks give them (as published)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic while fitting; bfloat16 is faster on processors that have it."""
    width: int = 256
    """Of the layers for vectors."""
    channels: int = 16
    """Of the first layers of the residual network, a multiple of 8; twice as many take four times as long."""
    max_steps: int = 1024
    """Most transitions with pictures whose gradient is held in memory at once (16 times as many of vectors alone). Batches with more,
    such as those of long episodes, are gone through twice: a third slower, with the same result."""

    def __post_init__(self) -> None:
        for name in ("members", "updates", "least_updates", "batch", "patience", "width", "channels", "max_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.fewest_weighted < 0:
            raise UsageError(f"fewest_weighted is at least 0, got {self.fewest_weighted}")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"epochs are at least 1, got {self.epochs}")
        for name in ("learning_rate", "sharpness"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is a number above 0, got {getattr(self, name)}")
        if not 0 <= self.held_out < 1 or not 0 <= self.noise < 1 or not 0 <= self.smoothing <= 1:
            raise UsageError("held_out and noise are shares from 0 to below 1, smoothing is one from 0 to 1")
