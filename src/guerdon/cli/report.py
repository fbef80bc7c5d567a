"""Write a run's report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from guerdon.cli._parse import parse
from guerdon.report import build


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which report to write."""

    run: Positional[Path]
    """The run folder."""


def main(arguments: Sequence[str]) -> int:
    """`guerdon report RUN`."""
    config = parse("report", __doc__ or "", {"_settings": Config}, arguments)["_settings"]
    print(f"written: {build(config.run)}")
    return 0
