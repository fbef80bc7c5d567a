"""Train policies on reward columns, several seeds side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from guerdon import discover
from guerdon.cli._parse import parse, value_of_flag
from guerdon.recipes import train


def main(arguments: Sequence[str]) -> int:
    """`guerdon train RUN --rewards NAME [NAME ...] --seeds 3`."""
    algorithm = value_of_flag("--algorithm", arguments)[0] or train.Config.algorithm
    sections = {"_settings": train.Config, algorithm: discover.load("algorithms", algorithm).Config}
    parsed = parse("train", __doc__ or "", sections, arguments)
    folders = train.train.of(replace(parsed["_settings"], algorithm_settings=parsed[algorithm]))
    for folder in folders:
        print(f"written: {folder}")
    return 0
