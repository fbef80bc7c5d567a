"""Numbers of a run for TensorBoard, beside the files that are always written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guerdon.errors import MissingExtra
from guerdon.runs import disk_refusals

_STEPS = ("step", "update")
"""What a line calls the step that it belongs to."""


class TensorBoard:
    """Curves of a run: one file of events for each time that the run was begun or gone on with, open as long as it goes.

    What a killed run had written after the point from which it goes on is hidden by what is written from there.
    """

    def __init__(self, run: Path, *, done: int) -> None:
        """Args: run: the folder of the run, in which a folder "tensorboard" is made; done: the last step that stands, -1 if there is none.

        Raises:
            MissingExtra: if TensorBoard is not installed.
            WriteFailed: if the folder cannot be written to.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "train") from error
        self._folder = run / "tensorboard"
        with disk_refusals(self._folder):
            self._writer = SummaryWriter(self._folder, purge_step=done + 1)

    def write(self, step: int, line: Mapping[str, Any], heading: str = "") -> None:
        """Adds a point at `step` to the curve of each number in `line`, named "HEADING/NAME"; what is not a number, and the
        step itself, is left out. Raises WriteFailed."""
        with disk_refusals(self._folder):
            for name, value in line.items():
                if name not in _STEPS and isinstance(value, int | float):
                    self._writer.add_scalar(f"{heading}/{name}" if heading else name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()
