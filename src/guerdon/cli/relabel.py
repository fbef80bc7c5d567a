"""Give every transition the reward of a fitted reward model, and check it before training."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli import _show
from guerdon.cli._parse import parse
from guerdon.recipes import relabel


def main(arguments: Sequence[str]) -> int:
    """`guerdon relabel RUN --model NAME`."""
    config = parse("relabel", __doc__ or "", {"_settings": relabel.Config}, arguments)["_settings"]
    _show.rewards([relabel.relabel.of(config)])
    return 0
