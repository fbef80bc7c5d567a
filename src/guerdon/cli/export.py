"""Write a new dataset that carries a reward column, for other libraries."""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli._parse import parse
from guerdon.recipes import export


def main(arguments: Sequence[str]) -> int:
    """`guerdon export RUN --rewards NAME --to minari --out FOLDER`."""
    config = parse("export", __doc__ or "", {"_settings": export.Config}, arguments)["_settings"]
    print(f"written: {export.export.of(config)}")
    return 0
