"""Compose a reward column from labels and from the rewards of models, and check it before training."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli import _show
from guerdon.cli._parse import parse
from guerdon.recipes import reward


def main(arguments: Sequence[str]) -> int:
    """`guerdon reward RUN --compose EXPRESSION --name NAME`."""
    config = parse("reward", __doc__ or "", {"_settings": reward.Config}, arguments)["_settings"]
    _show.rewards(reward.reward.of(config))
    return 0
