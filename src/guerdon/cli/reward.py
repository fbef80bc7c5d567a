"""Compose a reward column from labels, and check it before training."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli import _show
from guerdon.cli._parse import parse
from guerdon.recipes import reward


def main(arguments: Sequence[str]) -> int:
    """`guerdon reward RUN --compose EXPRESSION --name NAME`."""
    config = parse("reward", __doc__ or "", {"_settings": reward.Config}, arguments)["_settings"]
    for composed in reward.reward.of(config):
        numbers = (composed.statistics[name] for name in ("coverage", "mean", "std", "min", "max"))
        _show.table(("reward", "coverage", "mean", "std", "min", "max"), [(composed.path.stem, *numbers)], title=composed.expression)
        _show.findings(composed.findings)
        print(f"written: {composed.path}")
    return 0
