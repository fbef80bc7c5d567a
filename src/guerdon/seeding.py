"""Random numbers: every generator is derived from a seed and the words for what it is used for.

Streams with different names are independent, so adding a use does not change the numbers of the others.
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` of `seed`; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A generator for the stream `names` of `seed`."""
    return np.random.default_rng(stream_seed(seed, *names))
