"""Say what is in a dataset and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from guerdon.cli._parse import parse
from guerdon.datasets.check import check, render
from guerdon.recipes.data import DataOptions, open_data
from guerdon.recipes.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    """What to check."""

    dataset: Positional[Path]
    """Folder of the dataset."""


def main(arguments: Sequence[str]) -> int:
    """`guerdon check DATASET`. The exit status is 1 if there are errors."""
    config = parse("check", __doc__ or "", {"_settings": Config}, arguments)["_settings"]
    dataset = open_data(config.dataset, config)
    with progress_bar("reading episodes") as progress:
        found = check(dataset, progress=progress)
    print(render(found))
    return 1 if found.errors else 0
