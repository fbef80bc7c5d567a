"""Formats of recorded behaviour, one file each.

`open_dataset` picks the format that recognises a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from guerdon import discover
from guerdon.errors import DatasetError
from guerdon.interfaces import Dataset


def open_dataset(path: Path | str, **options: Any) -> Dataset:
    """Opens recorded behaviour, whatever its format. Options that are None count as not given.

    Raises:
        DatasetError: if there is nothing at `path`, no format recognises it, or the data is damaged.
        UsageError: if the format has no such option.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError("there is nothing here", where=str(path), cure="Put the dataset back, or give the folder in which it lies.")
    for name in discover.names("datasets"):
        reader = discover.load("datasets", name)
        if reader.recognises(path):
            dataset: Dataset = reader.open(path, {key: value for key, value in options.items() if value is not None})
            return dataset
    known = ", ".join(discover.names("datasets"))
    raise DatasetError(f"is not a dataset of a known format; known are: {known}", where=str(path))
