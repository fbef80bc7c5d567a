"""Where the pictures of a dataset live while a policy learns from them: in memory, or in a file that is mapped into memory.

The problem: pictures of long recordings are larger than the memory there is, and a process that asks for more is killed without a word. So
the bytes are counted first. Pictures that fit into this process's share of the memory are read into one array; others are written once,
episode by episode, into a file of the run folder, which all policies of the run share and from which the system reads what a batch needs.
Either way they are an array (N, height, width, 3) uint8 with the same numbers.

    RUN/pictures/VIEW-FINGERPRINT.npy    opens with numpy.load; what it was made from and a checksum follow the pictures

A file appears under its name only when it is whole. One process writes while others that want the same pictures wait for it; a process
that was killed leaves nothing that is taken for pictures, and what it did leave is removed by the next. A file that was cut off, changed or
made from something else is made again: its size, its fingerprint and the time of its last change are compared whenever it is opened, and
its checksum if that time is not the one that was written down.

Mapped pictures are read from the disk when they are first touched, and whoever touches them waits. In order, as slices, that is fast: the
system reads ahead. Here and there it is not, so the system is told before: `gather` asks for all pictures of a batch together (a tenth of
the time, measured on a cold disk), and `expect` does so for the next batch while the present one is learned from (a third of that). What is
left is a copy within memory, so there is no thread that reads.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from guerdon.errors import DatasetError, UsageError, WriteFailed
from guerdon.records import Frames
from guerdon.runs import writing

GIBIBYTE = 1 << 30
FOLDER = "pictures"
"""Of a run folder."""

_SHARE = 0.5
"""Of the available memory; the rest is for networks, batches and whatever else the machine does."""
_BLOCK = 64 << 20
"""Bytes of pictures that are looked at together where all of them are looked at."""
_ADVISED = 128 << 10
"""Bytes that the system is asked for at a time: Linux reads no more than its own limit ahead, however much is asked for."""
_MARK = "guerdon pictures 1"
_LONGEST_MARK = 1024

Read = Callable[[int], Frames]
"""Position of an episode in the order of the data -> its pictures (n, height, width, 3) uint8."""


@dataclass(frozen=True)
class PicturePlace:
    """Where pictures may be kept."""

    folder: Path
    """For those that do not fit into memory; made if needed."""
    memory: int
    """Bytes of memory that pictures of this process may take."""

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise UsageError(f"pictures cannot take {self.memory} bytes of memory")


def memory_for_pictures(processes: int, gibibytes: float | None = None, *, root: Path = Path("/")) -> int:
    """Bytes that pictures may take in each of several processes side by side.

    Args:
        processes: how many there are, >= 1.
        gibibytes: what all of them may take together; None takes half of the memory that is available now.
        root: where `proc` and `sys` are found.

    Raises:
        UsageError: if `gibibytes` is negative or not a number.
    """
    if gibibytes is not None:
        if not 0 <= gibibytes < float("inf"):
            raise UsageError(f"pictures_in_memory is a number of GiB that is not negative, got {gibibytes}")
        return int(gibibytes * GIBIBYTE) // processes
    available = available_memory(root)
    return (1 << 62) if available is None else int(available * _SHARE) // processes


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process could still take before the machine, or a control group that it is in, runs out: the least of Linux's
    MemAvailable and, for each group (version 1 or 2) up to the outermost, its limit less what cannot be reclaimed. Elsewhere half of the
    machine's memory; None if that is not known either."""
    found = [_machine_memory(root), *(_left(group, names) for group, names in _groups(root))]
    known = [number for number in found if number is not None]
    return max(0, min(known)) if known else None


@dataclass(frozen=True)
class _Names:
    """What the files of a control group are called."""

    limit: str
    usage: str
    reclaimable: tuple[str, ...]
    """Lines of memory.stat: pages of files, which the system gives up when memory is short."""


_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
_VERSION_2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The memory control groups of this process, inner ones first. Inside a container the path that is told may be that of the machine
    outside, and what is there is the outermost folder."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts, names = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], _VERSION_2
        elif "memory" in controllers.split(","):
            mounts, names = ["sys/fs/cgroup/memory"], _VERSION_1
        else:
            continue
        for mount in mounts:
            inner = Path(path.strip("/"))
            for folder in (inner, *inner.parents) if inner.parts else (Path(),):
                yield root / mount / folder, names


def _left(group: Path, names: _Names) -> int | None:
    limit, usage = _number(_text(group / names.limit)), _number(_text(group / names.usage))
    if limit is None or usage is None:  # "max", or not there
        return None
    stat = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    return limit - max(0, usage - sum(_number(stat.get(name, "")) or 0 for name in names.reclaimable))


def _machine_memory(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) << 10
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None


def keep(place: PicturePlace | None, name: str, fingerprint: str, counts: Sequence[int], read: Read) -> Frames:
    """All pictures of one view, one episode after the other: (N, height, width, 3) uint8, N the sum of `counts`.

    Args:
        place: where they may be kept; None keeps them in memory, however many there are.
        name: of the view.
        fingerprint: of everything that decides the pictures and their order.
        counts: pictures of each episode, at least one of them.
        read: gives an episode's pictures, all of one size; called with 0, 1, ... in order. What it raises is passed on.

    Raises:
        DatasetError: if there is not that much memory.
        WriteFailed: if the disk is full or not writable.
    """
    first = read(0)
    shape = (sum(counts), *first.shape[1:])
    size = int(np.prod(shape, dtype=np.int64))

    def episodes() -> Iterator[Frames]:
        yield first
        yield from (read(position) for position in range(1, len(counts)))

    if place is None or size <= place.memory:
        return _in_memory(name, shape, episodes())
    path = place.folder / f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:40]}-{fingerprint.rpartition(':')[2][:24]}.npy"
    return _in_file(path, fingerprint, shape, episodes())


def is_mapped(pictures: Frames) -> bool:
    """Whether pictures lie in a file and not in memory."""
    return _mapping_of(pictures) is not None


def expect(pictures: Frames, observations: npt.NDArray[np.integer[Any]]) -> None:
    """Lets the system begin to read pictures that will be gathered soon; returns at once. Nothing is done for pictures in memory.

    Args:
        pictures: (N, height, width, 3) uint8.
        observations: which of them, in any order, in [0, N).
    """
    mapping = _mapping_of(pictures)
    if mapping is None or not len(observations) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    wanted = np.unique(observations)
    size, begin = pictures.strides[0], _address(pictures) - _address(np.frombuffer(mapping, np.uint8))
    breaks = np.flatnonzero(np.diff(wanted) > 1)
    firsts, lasts = wanted[np.r_[0, breaks + 1]].tolist(), wanted[np.r_[breaks, len(wanted) - 1]].tolist()
    for first, last in zip(firsts, lasts, strict=True):
        start = (begin + first * size) // mmap.PAGESIZE * mmap.PAGESIZE
        stop = begin + (last + 1) * size
        for at in range(start, stop, _ADVISED):
            with suppress(OSError):  # it is advice: what was not read ahead is read when it is touched
                mapping.madvise(mmap.MADV_WILLNEED, at, min(_ADVISED, stop - at))


def gather(pictures: Frames, observations: npt.NDArray[np.integer[Any]]) -> Frames:
    """`pictures[observations]`, a copy (n, height, width, 3); mapped ones are asked for all together before the first is waited for."""
    expect(pictures, observations)
    found: Frames = pictures[observations]
    return found


def blocks(pictures: Frames, most: int = _BLOCK) -> Iterator[Frames]:
    """All pictures in order, in slices of about `most` bytes (one picture at least), for what looks at every picture once."""
    step = max(1, most // max(1, pictures.strides[0]))
    return (pictures[start : start + step] for start in range(0, len(pictures), step))


def _in_memory(name: str, shape: tuple[int, ...], episodes: Iterator[Frames]) -> Frames:
    try:
        pictures = np.empty(shape, dtype=np.uint8)
    except MemoryError:
        cure = "Let a policy see fewer of them, or smaller ones; where a run folder is given, they can lie on the disk."
        raise DatasetError(
            f"its pictures of view '{name}' take {_gibibytes(shape)}, which is more memory than there is", cure=cure
        ) from None
    start = 0
    for frames in episodes:
        pictures[start : start + len(frames)] = frames
        start += len(frames)
    return pictures


def _in_file(path: Path, fingerprint: str, shape: tuple[int, ...], episodes: Iterator[Frames]) -> Frames:
    found = _opened(path, fingerprint, shape)
    if found is not None:
        return found
    cure = (
        f"The pictures take {_gibibytes(shape)} and do not fit into the memory that they may take. Free some space there, or keep them in"
        " memory: --pictures-in-memory GIB says how much all policies trained at a time may take, --jobs how many these are."
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path.parent) as alone:
            found = _opened(path, fingerprint, shape)  # by another process, meanwhile
            if found is not None:
                return found
            if alone:
                for left in path.parent.glob(f".{path.name}.*"):
                    shutil.rmtree(left, ignore_errors=True)
            _write(path, fingerprint, shape, episodes)
    except OSError as error:
        raise WriteFailed(f"cannot write: {error.strerror or error}", where=str(path), cure=cure) from error
    except WriteFailed as error:
        raise WriteFailed(error.what, where=str(path), cure=cure) from error
    found = _opened(path, fingerprint, shape)
    if found is None:
        raise WriteFailed("is not what was written to it", where=str(path), cure="Look at the disk, or use another folder for the run.")
    return found


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Lets other processes that write pictures of this run wait. Gives False where the system or the disk has no such locks: then the
    last one to finish wins, which does no harm. A process that dies gives its lock back."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(handle)


def _write(path: Path, fingerprint: str, shape: tuple[int, ...], episodes: Iterator[Frames]) -> None:
    size = int(np.prod(shape, dtype=np.int64))
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise WriteFailed(f"the disk has {free / GIBIBYTE:.1f} GiB left, and {_gibibytes(shape)} are needed")
    modified = int(time.time()) // 2 * 2  # every file system can keep an even number of seconds
    with writing(path) as temporary:
        checksum, written = 0, 0
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for frames in episodes:
                data = np.ascontiguousarray(frames).data.cast("B")
                checksum, written = zlib.crc32(data, checksum), written + len(data)
                file.write(data)
            if written != size:
                raise ValueError(f"{written} bytes of pictures were given where {size} were expected")
            file.write(json.dumps({_MARK: {"fingerprint": fingerprint, "crc32": checksum, "modified": modified}}).encode())
            file.flush()
            os.fsync(file.fileno())
        os.utime(temporary, (modified, modified))


def _opened(path: Path, fingerprint: str, shape: tuple[int, ...]) -> Frames | None:
    """The pictures of a file, mapped; None if they are not there, not whole, not these, or not what was written."""
    try:
        with path.open("rb") as file:
            begin, found = _begin_of(file), os.fstat(file.fileno())
            file.seek(begin + int(np.prod(shape, dtype=np.int64)))
            mark = json.loads(file.read(_LONGEST_MARK))[_MARK]
            if mark["fingerprint"] != fingerprint or file.read(1):
                return None
        pictures = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        if pictures.shape != shape or pictures.dtype != np.uint8 or not pictures.flags.c_contiguous:
            return None
        if found.st_mtime_ns != mark["modified"] * 10**9:
            checksum = 0
            for block in blocks(pictures):
                checksum = zlib.crc32(block.data.cast("B"), checksum)
            if checksum != mark["crc32"]:
                return None
            with suppress(OSError):  # a copy of somebody else's run: it will be compared again the next time
                os.utime(path, (mark["modified"], mark["modified"]))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return pictures


def _begin_of(file: BinaryIO) -> int:
    """Where the pictures begin in a file of numpy's format. Raises ValueError for another."""
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file.tell()


def _mapping_of(pictures: Frames) -> mmap.mmap | None:
    base: Any = pictures
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _address(array: npt.NDArray[np.uint8]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _gibibytes(shape: tuple[int, ...]) -> str:
    return f"{np.prod(shape, dtype=np.float64) / GIBIBYTE:.1f} GiB"
