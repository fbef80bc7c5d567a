"""Train policies on reward columns, several seeds side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from guerdon import discover
from guerdon.cli._parse import chosen, parse
from guerdon.recipes import train


def main(arguments: Sequence[str]) -> int:
    """`guerdon train RUN --rewards NAME [NAME ...] --seeds 3`."""
    algorithm = chosen("algorithm", arguments, train.Config.algorithm)
    discover.load("algorithms", algorithm)
    from guerdon.training import offline  # after the line above, which names the extra if torch is not installed

    sections = {"_settings": train.Config, "_loop": offline.Config, algorithm: offline.algorithm_called(algorithm).Config}
    parsed = parse("train", __doc__ or "", sections, arguments)
    config = replace(parsed["_settings"], loop_settings=parsed["_loop"], algorithm_settings=parsed[algorithm])
    for folder in train.train.of(config):
        print(f"written: {folder}")
    return 0
