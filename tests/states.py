"""States of algorithms, compared bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from guerdon.interfaces import Algorithm, OnlineAlgorithm


def tensors(state: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Path and copy of every tensor in a state."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield above + name, value.clone()
        else:
            yield from tensors(value, f"{above}{name}/")


def differing(first: Algorithm | OnlineAlgorithm, second: Algorithm | OnlineAlgorithm) -> list[str]:
    """Paths of the tensors in which two algorithms differ."""
    ours, theirs = dict(tensors(first.state())), dict(tensors(second.state()))
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]
