"""Let policies and baselines carry out the same tasks, and measure how much of each they complete."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli import _show
from guerdon.cli._parse import parse
from guerdon.recipes import evaluate


def main(arguments: Sequence[str]) -> int:
    """`guerdon evaluate RUN`."""
    config = parse("evaluate", __doc__ or "", {"_settings": evaluate.Config}, arguments)["_settings"]
    _show.returns(evaluate.evaluate.of(config))
    print(f"written: {config.run / 'evaluations'}")
    return 0
