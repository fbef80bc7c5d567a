"""Write a run's report: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli._parse import parse
from guerdon.recipes import commands


def main(arguments: Sequence[str]) -> int:
    """`guerdon report RUN`."""
    config = parse("report", __doc__ or "", {"_settings": commands.ReportConfig}, arguments)["_settings"]
    print(f"written: {commands.report.of(config)}")
    return 0
