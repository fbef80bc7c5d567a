"""What a reward model looks at: single transitions, and judgements about one or many of them.

`StepArrays` holds N transitions in host memory, pictures once each. `Judgements` are items (pictures, segments, whole episodes of any
length, or pairs of those) with what a rater said about them. `Steps` are the transitions of one batch as tensors. A model's `Look` says
which of all that it takes in; it is stored with the model and compared before the model scores anything.

The picture of transition t is o_{t+1}, the one that the action led to (the reference gives its reward model the image rendered after the
step); with `pictures=2` it is o_t beside o_{t+1}.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

Kind = Literal["rating", "preference", "score"]
"""What raters gave: one of several classes, which of two is better, or a number for each transition."""


@dataclass(frozen=True)
class Look:
    """What a model takes in of a transition."""

    views: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """View name -> (height, width) of its pictures."""
    pictures: Literal[1, 2] = 1
    """1: o_{t+1}; 2: o_t and o_{t+1}."""
    vectors: Mapping[str, int] = field(default_factory=dict)
    """Name of each vector observation -> its size; of o_{t+1}, and with `pictures=2` also of o_t."""
    action_names: tuple[str, ...] = ()
    """If the action is looked at: the names of discrete ones."""
    action_size: int = 0
    """If the action is looked at: the components of continuous ones."""
    words: tuple[str, ...] | None = None
    """The vocabulary of instructions; None if the model does not read them."""

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        raise NotImplementedError

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Look:
        """The inverse of `to_record`. Raises KeyError, TypeError or ValueError for anything else."""
        raise NotImplementedError


@dataclass(frozen=True)
class StepArrays:
    """N transitions in host memory."""

    frames: Mapping[str, npt.NDArray[np.uint8]]
    """View -> (P, H, W, 3): every picture once."""
    picture: npt.NDArray[np.int64]
    """(N, K): which pictures each transition shows, in order of time (K = `Look.pictures`); the same for all views."""
    vector: npt.NDArray[np.float32]
    """(N, D): vector observations side by side in the order of `Look.vectors`; D is 0 if there are none."""
    action: npt.NDArray[Any]
    """(N,) int64 or (N, A) float32; empty (N, 0) if the action is not looked at."""
    instruction: npt.NDArray[np.int64]
    """(N,): row of `instructions`."""
    instructions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instruction)


@dataclass(frozen=True)
class Judgements:
    """B judged items, each one or several transitions of `steps`; a pair is two items."""

    kind: Kind
    levels: int
    """Number of classes (ratings); 0 for the other kinds."""
    steps: StepArrays
    offsets: npt.NDArray[np.int64]
    """(I + 1,): item i is `members[offsets[i] : offsets[i + 1]]`; I = B, or 2 B for pairs (first ones at even places)."""
    members: npt.NDArray[np.int64]
    """Rows of `steps`."""
    target: npt.NDArray[np.float32]
    """(B,) class numbers, (B, levels) shares of the classes, (B,) scores in [0, 1], or (B,) probability that the second one is better."""
    group: npt.NDArray[np.int64]
    """(B,): the episode that an item comes from (of a pair: the first one's), so that held-out items share no episode with the others."""

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Steps:
    """The transitions of one batch, as tensors."""

    frames: Mapping[str, Tensor]
    """View -> (N, K, H, W, 3) uint8."""
    vector: Tensor
    """(N, D) float32."""
    action: Tensor
    """(N,) int64, (N, A) float32 or (N, 0)."""
    instruction: Tensor
    """(N,) int64: row of `tokens`."""
    tokens: Tensor
    """(U, L) int64: distinct instructions as `guerdon.transitions.Vocabulary.batch` gives them."""
