"""What TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: the points of each curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {name: [(point.step, point.value) for point in read.Scalars(name)] for name in read.Tags()["scalars"]}


def points(lines: Sequence[Mapping[str, Any]], heading: str = "") -> dict[str, list[tuple[int, float]]]:
    """The curves of what a run's lines say, as numbers of 32 bits."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(heading + name, []).append((line["step"], float(np.float32(value))))
    return found
