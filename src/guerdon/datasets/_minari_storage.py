"""Minari's files as named arrays, and HDF5 files in which a full disk is noticed.

A `Storage` gives the arrays of an episode by names such as "observations/image": HDF5 directly, so that slices are read lazily, Arrow and
Parquet through the stock library, which decodes a whole episode at a time. It knows nothing of what the arrays mean.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import numpy.typing as npt

from guerdon.errors import DatasetError

METADATA_FILE = "metadata.json"
HDF5_FILE = "main_data.hdf5"

_CHUNK_BYTES = 64 * 1024
"""Uncompressed size that a chunk of pictures aims at: deflate looks back 32 kB, and a window of 9 small pictures spans few chunks."""

_READING = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, MemoryError, SyntaxError)
"""What h5py, Pillow and pyarrow raise when a file is damaged."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turns what the reading libraries raise about damaged files into a DatasetError at `where`."""
    try:
        yield
    except _READING as error:
        what = f"cannot be read ({type(error).__name__}: {str(error)[:200] or 'no message'})"
        raise DatasetError(what, where=where, cure="The file is damaged or cut off: copy or record it again.") from error


class Storage(ABC):
    """Named arrays of each episode. A name is a path such as "observations/image" or "infos/task"."""

    file: Path
    """The file or folder to name in errors."""
    episodes: int
    keeps_jpeg: ClassVar[bool]
    """Whether a copy holds JPEG pictures as they were stored."""

    @abstractmethod
    def names(self, index: int) -> list[str]:
        """Names of the arrays of an episode, sorted."""

    @abstractmethod
    def array(self, index: int, name: str) -> Any:
        """One of them: something that has a shape and a dtype and can be sliced; None if it is not there."""

    @abstractmethod
    def metadata(self, index: int) -> dict[str, Any]:
        """What is written about an episode."""

    @abstractmethod
    def copy(self, index: int, group: h5py.Group, leave_out: Collection[str]) -> None:
        """Copies the arrays of an episode, except those named, and what is written about it, into a group of a new HDF5 file."""

    def where(self, index: int, step: int | None = None) -> str:
        """Words for a place in the data."""
        return f"{self.file}, episode {index}" + ("" if step is None else f", step {step}")


class Hdf5Storage(Storage):
    keeps_jpeg = True

    def __init__(self, folder: Path, episodes: int) -> None:
        self.file = folder / HDF5_FILE
        with reading(str(self.file)):
            self._handle = h5py.File(self.file, "r")
            found = len(self._handle)
        if found != episodes:
            cure = "The dataset is incomplete: copy or record it again."
            raise DatasetError(f"holds {found} episodes where {METADATA_FILE} speaks of {episodes}", where=str(self.file), cure=cure)
        self.episodes = episodes

    def _group(self, index: int) -> Any:
        return self._handle[f"episode_{index}"]

    def names(self, index: int) -> list[str]:
        found: list[str] = []
        self._group(index).visititems(lambda name, thing: found.append(name) if isinstance(thing, h5py.Dataset) else None)
        return sorted(found)

    def array(self, index: int, name: str) -> Any:
        thing = self._group(index).get(name)
        return thing if isinstance(thing, h5py.Dataset) else None

    def metadata(self, index: int) -> dict[str, Any]:
        return {key: json_ready(value) for key, value in self._group(index).attrs.items()}

    def copy(self, index: int, group: h5py.Group, leave_out: Collection[str]) -> None:
        source = self._group(index)
        for name in self.names(index):
            if name not in leave_out:
                parent, _, last = name.rpartition("/")
                source.copy(name, group.require_group(parent) if parent else group, name=last)  # stored bytes, not decoded ones
        for key, value in source.attrs.items():
            group.attrs[key] = value


class ArrowStorage(Storage):
    """Arrow and Parquet, through the stock library; the last few episodes stay decoded."""

    keeps_jpeg = False

    def __init__(self, folder: Path, episodes: int) -> None:
        import minari

        self.file, self.episodes = folder, episodes
        with reading(str(folder)):
            self._minari = minari.MinariDataset(folder)
        self._decoded = lru_cache(maxsize=4)(self._decode)

    def _decode(self, index: int) -> dict[str, Any]:
        episode = next(iter(self._minari.storage.get_episodes([index])))
        return dict(_flattened({key: value for key, value in episode.items() if key != "id"}))

    def names(self, index: int) -> list[str]:
        return sorted(self._decoded(index))

    def array(self, index: int, name: str) -> Any:
        return self._decoded(index).get(name)

    def metadata(self, index: int) -> dict[str, Any]:
        found = next(iter(self._minari.storage.get_episode_metadata([index])))
        return {key: json_ready(value) for key, value in found.items()}

    def copy(self, index: int, group: h5py.Group, leave_out: Collection[str]) -> None:
        for name, array in self._decoded(index).items():
            if name not in leave_out:
                parent, _, last = name.rpartition("/")
                store_array(group.require_group(parent) if parent else group, last, fixed_texts(array) if is_text(array) else array)
        for key, value in _flattened(self.metadata(index)):
            group.attrs[key] = value.astype(h5py.string_dtype()) if value.dtype.kind == "U" else value


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for key, value in tree.items():
        if isinstance(value, tuple):
            value = {f"_index_{i}": part for i, part in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", np.asarray(value)


def json_ready(value: Any) -> Any:
    """An attribute as JSON-ready data: NumPy's and HDF5's values become Python's, bytes become text."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): json_ready(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def is_text(array: Any) -> bool:
    """Whether an array of a storage holds texts, in whichever of the many ways."""
    return h5py.check_string_dtype(array.dtype) is not None or array.dtype.kind in "US" or _holds_strings(array)


def _holds_strings(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == object and all(isinstance(entry, str) for entry in array.flat)


def texts_of(array: Any) -> list[str]:
    """The texts in such an array; a single one counts as a list of one."""
    entries = np.atleast_1d(array[()])
    return [entry.decode("utf-8") if isinstance(entry, bytes) else str(entry) for entry in entries]


# --- writing --------------------------------------------------------------------------------------------------------------------------


class _Sink(io.FileIO):
    """A file that keeps the first failure to write for later and goes on as if it had written.

    On a full disk HDF5 loses failures that happen while it gives objects back, and may crash while closing. So it never sees one: what
    cannot be written is kept in memory, and whoever writes asks `check` after each episode.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._failure: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raises the OSError of the first write that failed."""
        if self._failure is not None:
            raise self._failure

    def write(self, data: Any) -> int:
        content = bytes(data)
        start, done = self.tell(), 0
        while self._failure is None and done < len(content):
            try:
                done += super().write(content[done:])
            except OSError as error:
                self._failure = error
        if done < len(content):
            self._kept.append((start + done, content[done:]))
            self.seek(start + len(content))
        return len(content)

    def readinto(self, buffer: Any) -> int:
        start, target = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(target) or 0
        for offset, content in self._kept:
            low, high = max(start, offset), min(start + len(target), offset + len(content))
            if low < high:
                target[low - start : high - start] = content[low - offset : high - offset]
                count = max(count, high - start)
        return count

    def truncate(self, size: int | None = None) -> int:
        return super().truncate(size) if self._failure is None else size or 0


class Hdf5Writer:
    """A new HDF5 file, written with checksums in its own records, in which a full disk is noticed. Used with `with`.

    Raises:
        OSError: from `check` and at the end of the block, if something could not be written.
    """

    def __init__(self, path: Path) -> None:
        self._sink = _Sink(path)
        self.file = h5py.File(self._sink, "w", libver=("v110", "v110"))
        self.check = self._sink.check

    def __enter__(self) -> Hdf5Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        self._sink.close()
        if kind is None:
            self.check()


def store_array(group: h5py.Group, name: str, array: npt.NDArray[Any]) -> None:
    """Stores (N, ...) `array` deflated, in chunks of whole rows, with checksums."""
    row_bytes = max(array.dtype.itemsize * math.prod(array.shape[1:]), 1)
    rows = max(1, min(len(array), _CHUNK_BYTES // row_bytes))
    options = {"compression": "gzip", "compression_opts": 4, "fletcher32": True} if array.size else {}
    group.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]) if array.size else None, **options)


def fixed_texts(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Texts as UTF-8 of one length, which HDF5 stores with checksums; those of varying length lie outside of them."""
    encoded = [text.encode("utf-8") for text in texts_of(array)]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(map(len, encoded), default=0) or 1))
