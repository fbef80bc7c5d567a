"""Processes that write pictures, for tests of several at once. Imports little, so that they start fast."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.pictures import PicturePlace, keep
from guerdon.records import Frames

COUNTS = [6] * 8


def noise(position: int, count: int, side: int = 4) -> Frames:
    return np.random.default_rng(position).integers(0, 256, (count, side, side + 1, 3), dtype=np.uint8)


def _keep(folder: Path, log: Path, stop_at: int, hold: Any, reached: Any) -> None:
    """Notes which episodes it reads, and stops at one of them until it is let go."""

    def read(position: int) -> Frames:
        with log.open("a") as file:
            file.write(f"{position}\n")
        if position == stop_at:
            reached.set()
            hold.wait()
        return noise(position, COUNTS[position])

    found = keep(PicturePlace(folder, 0), "full", "s256:abc", COUNTS, read)
    assert np.array_equal(found, np.concatenate([noise(position, count) for position, count in enumerate(COUNTS)]))


class Child:
    """A process that keeps pictures of `COUNTS` in a file."""

    def __init__(self, folder: Path, log: Path, *, stop_at: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.hold, self.reached = context.Event(), context.Event()
        self.process = context.Process(target=_keep, args=(folder, log, stop_at, self.hold, self.reached))
        self.process.start()

    def end(self) -> int | None:
        self.process.join(60)
        return self.process.exitcode
