"""The report: a thin view of what a run recorded."""

from guerdon.report.build import build

__all__ = ["build"]
