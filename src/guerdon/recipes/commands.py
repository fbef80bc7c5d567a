"""Commands that are one call to another part of the package: writing a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from guerdon.recipes.settings import callable_with_settings


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which report to write."""

    run: Positional[Path]
    """The run folder."""


@callable_with_settings(ReportConfig)
def report(config: ReportConfig) -> Path:
    """Writes RUN/report.html from what the run holds, and returns its path. Raises RunError, WriteFailed."""
    from guerdon.report import build

    return build(config.run)
