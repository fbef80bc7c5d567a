"""Writes the file of the embedded rater's weights, with the tiles and sizes of the pictures that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from guerdon.envs._babyai_distance import WALL
from guerdon.envs._babyai_world import LEVELS
from guerdon.providers import _embedded_file as file
from guerdon.providers._embedded_tiles import BLACK, tile_digest, tile_name
from guerdon.recipes._embedded_data import LIBRARY, Tile, tile_library
from guerdon.runs import writing


def write_weights(path: Path, tensors: Mapping[str, npt.NDArray[np.float32]], *, name: str) -> None:
    """Writes the weights of a network trained on full pictures of all levels: equal weights and names, equal bytes.

    Args:
        tensors: as `EmbeddedNetwork.from_tensors` takes them.
        name: of the rater, e.g. "babyai-1".

    Raises:
        WriteFailed: if the disk is full or not writable.
    """
    sizes = [(level.rows * (level.room_size - 1) + 1, level.columns * (level.room_size - 1) + 1) for level in LEVELS.values()]
    data = file.to_bytes(tensors, name=name, tiles=known_tiles(), grids=sizes)
    with writing(path) as temporary:
        temporary.write_bytes(data)


def known_tiles() -> dict[str, str]:
    """Name of every tile of a full picture by its digest."""
    return {tile_digest(image): _name(tile) for image, tile in zip(tile_library(), LIBRARY, strict=True)}


def _name(tile: Tile | None) -> str:
    if tile is None:
        return BLACK
    content = tile.content
    thing = "" if content is None else content.kind if content == WALL else str(content)
    return tile_name(thing, is_open=tile.is_open, heading=tile.heading)
