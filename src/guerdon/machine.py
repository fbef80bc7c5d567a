"""What a training runs on: processor or graphics card, precision, and the quickest way to multiply matrices there.

The problem: the same update takes twice as long on some processors because torch sends float32 matrix products to a library that is slow
there. torch's other library may be asked instead, but only through a setting that also lets it round to bfloat16 where the processor can:
so a product is timed and checked before anything is learned with it (`quick_products`).

Reads and writes nothing; `quick_products` changes a setting of torch for the time of a `with` block.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from guerdon.errors import UsageError

Precision = Literal["float32", "bfloat16"]
"""Of matrix products and convolutions. Weights, optimiser, memory and losses are float32 always."""
Device = Literal["cpu", "cuda"]
"""Where a policy is trained."""

LARGEST_ERROR = 1e-6
"""Relative error (Frobenius norm, against float64) above which a product does not count as float32."""
_WORTH = 1.2
"""How many times faster the other library must be to be taken."""
_SIDE = 256
_PRODUCTS = 15


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how an update is computed."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    half: bool = False
    """Whether products and convolutions are made in bfloat16."""
    compiled: bool = False
    """Whether whole updates are compiled, where an algorithm offers that."""

    @classmethod
    def of(cls, device: Device = "cpu", precision: Precision = "float32", compiled: bool = False) -> Machine:
        """The machine that settings ask for. Raises UsageError for an unknown name, or a graphics card that is not there."""
        for name, given, known in (("device", device, ("cpu", "cuda")), ("precision", precision, ("float32", "bfloat16"))):
            if given not in known:
                raise UsageError(f"{name} is one of {', '.join(known)}, got '{given}'")
        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("device cuda was asked for, but torch sees no graphics card", cure="Use --device cpu.")
        return cls(device=torch.device(device), half=precision == "bfloat16", compiled=compiled)

    def precision(self) -> torch.autocast:
        """A context in which an update is computed as asked."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)


@dataclass(frozen=True)
class Probe:
    """What a trial of the two libraries found."""

    usual: float
    """Seconds of a product of 256 x 256 matrices."""
    other: float
    """The same by oneDNN."""
    error: float
    """Relative error of oneDNN's."""

    @property
    def other_is_better(self) -> bool:
        """Whether oneDNN is clearly faster and still float32."""
        return self.error < LARGEST_ERROR and self.other * _WORTH < self.usual


@contextmanager
def quick_products() -> Iterator[bool]:
    """Lets torch make float32 products by oneDNN inside, if that is faster on this processor and as exact. Gives whether it does."""
    better = probe().other_is_better
    if better:
        with _products_by_onednn():
            yield True
    else:
        yield False


@cache
def probe() -> Probe:
    """Tries both libraries, once in a process; takes some milliseconds."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Probe(0.0, float("inf"), float("inf"))
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(_SIDE, _SIDE, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    usual = _seconds(left, right)
    with _products_by_onednn():
        other, product = _seconds(left, right), left @ right
    return Probe(usual, other, float((product - exact).norm() / exact.norm()))


@contextmanager
def _products_by_onednn() -> Iterator[None]:
    """The setting's name is misleading: it permits oneDNN to round to bfloat16, which it does only on processors with units for that."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _seconds(left: Tensor, right: Tensor) -> float:
    """Of a product; the least of several, so that a busy neighbour does not decide."""
    taken = []
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        torch.mm(left, right)
        taken.append(time.perf_counter() - began)
    return min(taken)
