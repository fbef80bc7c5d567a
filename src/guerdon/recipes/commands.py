"""Commands that are one call to another part of the package: recording demonstrations with a progress bar, writing a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from guerdon.recipes import collect_babyai as babyai
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.settings import callable_with_settings


@callable_with_settings(babyai.Config)
def collect_babyai(config: babyai.Config) -> Path:
    """Records demonstrations in the BabyAI world and returns the dataset's folder. Raises EnvironmentFailed, UsageError, WriteFailed."""
    with progress_bar("recording demonstrations") as progress:
        return babyai.collect_babyai(config, progress=progress)


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
