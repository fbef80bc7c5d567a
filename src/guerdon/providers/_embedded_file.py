"""The file of the embedded rater's weights: tensors, and what a rater must know about them, in safetensors' own metadata.

    name      of the rater, e.g. "babyai-1"
    words     by token: a network reads numbers, and with another list of words they would mean something else
    actions   by index, for the same reason
    tiles     digest -> name of every tile of the pictures that it was trained on
    grids     rows and columns of these pictures' grids
    checksum  digest of the tensors: a weight that was damaged on the way is a number like any other, and nobody would notice

A file is one rater: whatever changes in it, its digest changes, and answers of the one are never taken for the other's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors import numpy as storage

from guerdon.errors import ProviderError
from guerdon.providers._embedded_network import ACTIONS, EmbeddedNetwork
from guerdon.providers._embedded_tiles import Cell, Tiles
from guerdon.providers._embedded_words import WORDS
from guerdon.records import canonical_json, digest

_KEY = "guerdon embedded 1"
"""Under this name in the metadata stands all that is not a tensor, as JSON: several keys would be written in no certain order."""
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Weights:
    """A network and what it was trained on."""

    network: EmbeddedNetwork
    name: str
    tiles: Tiles
    digest: str
    """Of the whole file."""


def to_bytes(tensors: Mapping[str, npt.NDArray[np.float32]], *, name: str, tiles: Mapping[str, str], grids: Collection[Cell]) -> bytes:
    """A file's content; equal arguments give equal bytes.

    Args:
        tensors: of an `EmbeddedNetwork`.
        name: of the rater.
        tiles: name of each tile (see `tile_name`, and "black") by its digest.
        grids: rows and columns of the pictures' grids, without the row that shows what is carried.
    """
    about = {
        "name": name,
        "words": WORDS,
        "actions": ACTIONS,
        "tiles": dict(tiles),
        "grids": sorted(set(grids)),
        "checksum": _checksum(tensors),
    }
    return storage.save({key: np.ascontiguousarray(tensors[key]) for key in sorted(tensors)}, {_KEY: canonical_json(about)})


def _checksum(tensors: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """Digest of tensors with their names."""
    parts = [(name, np.ascontiguousarray(tensors[name])) for name in sorted(tensors)]
    return digest(*(part for name, tensor in parts for part in (f"{name} {tensor.dtype} {tensor.shape}", tensor.tobytes())))


def read(path: Path, *, cure: str) -> Weights:
    """Reads a file that holds what `to_bytes` makes.

    Args:
        cure: what to do if the file is not there or damaged.

    Raises:
        ProviderError: if there is no such file, if it is damaged, or made for other words or actions than this version's.
    """
    where = str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ProviderError("there are no weights", where=where, cure=cure) from None
    except OSError as error:
        raise ProviderError(f"the weights cannot be read ({type(error).__name__})", where=where, cure=cure) from error
    try:
        about, tensors = _about(data), storage.load(data)
        tiles = Tiles(about["tiles"], [(int(rows), int(columns)) for rows, columns in about["grids"]])
        network = EmbeddedNetwork.from_tensors(tensors)
        name, same = about["name"], (tuple(about["words"]), tuple(about["actions"])) == (WORDS, ACTIONS)
        if not is_name(name):
            raise ValueError("the rater's name is not one word")
        if about.get("checksum", _checksum(tensors)) != _checksum(tensors):
            raise ValueError("the numbers are not those that were written")
    except KeyError as error:
        raise ProviderError(f"holds no weights of an embedded rater: {error} is missing in it", where=where, cure=cure) from error
    except (SafetensorError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ProviderError(f"holds no weights of an embedded rater, or damaged ones ({error})", where=where, cure=cure) from error
    if not same or network.words != len(WORDS):
        raise ProviderError("the weights were trained for other words or actions than this version knows", where=where, cure=cure)
    return Weights(network, name, tiles, digest(data))


def is_name(name: object) -> bool:
    """Whether a rater can be called so: one printable word without what stands between raters and their settings."""
    return isinstance(name, str) and name.isprintable() and bool(name) and not set(name) & set(" :@,")


def _about(data: bytes) -> dict[str, Any]:
    """What stands in the metadata. Raises ValueError, TypeError or RecursionError if nothing does."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if not 0 < length <= len(data) - _LENGTH_BYTES:
        raise ValueError("it is no safetensors file")
    try:
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except ValueError:
        raise ValueError("it is no safetensors file") from None
    if not isinstance(header, dict) or _KEY not in header.get("__metadata__", {}):
        raise ValueError("it is a file of something else, or of another version")
    about: dict[str, Any] = json.loads(header["__metadata__"][_KEY])
    return about
