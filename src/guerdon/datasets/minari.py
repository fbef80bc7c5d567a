"""Minari datasets: writing them losslessly, reading them lazily.

Minari is the field's format for offline reinforcement learning: a folder `data/` with `metadata.json` and, for its HDF5 flavour,
`main_data.hdf5` with one group an episode (`observations`, `actions`, `rewards`, `terminations`, `truncations`, `infos`). Observations and
infos have T+1 entries, the rest T. `write_minari` writes that layout and the stock library reads it. What is ours lies in places that the
stock library carries along:

- `metadata.json`, key "guerdon": environment, action names, views in order, kinds of the privileged fields;
- the attribute "guerdon" of an episode's group (JSON): annotations with the spans of their sub-tasks, and the recorder's metadata;
- `infos/privileged/NAME`: ground truth. A field with one value a transition is padded at the front with NaN, since by Minari's
  convention entry 0 comes from the reset and entry t+1 from transition t; reading takes the padding off again.

The stock writer is not used: it holds all episodes in memory, does not compress, and encodes pictures as JPEG (lossy) unless told so.
Here pictures are deflated in small chunks (a window costs one or two chunks), every array carries a checksum, and equal episodes give equal
bytes. Reading works on any Minari dataset with pictures and words in it, HDF5 directly and Arrow or Parquet through the stock library
(which decodes a whole episode at a time). JPEG pictures are decoded; their loss was the recorder's choice.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import h5py
import numpy as np
import numpy.typing as npt

from guerdon.errors import DatasetError, UsageError
from guerdon.interfaces import Dataset, DatasetFormat, Floats
from guerdon.records import Annotation, EpisodeInfo, Frames, Span, canonical_json, digest
from guerdon.runs import writing

MINARI_VERSION = "0.5.4"
"""Version of the layout written; the first one whose readers know that pictures need not be JPEG."""

_METADATA_FILE = "metadata.json"
_HDF5_FILE = "main_data.hdf5"
_OURS = "guerdon"
_CHUNK_BYTES = 64 * 1024
"""Uncompressed size that a chunk of pictures aims at: deflate looks back 32 kB, and a window of 9 small pictures spans few chunks."""
_DATASET_ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]/)?[-_\w]+?-v\d+")

INSTRUCTION_KEYS = (
    "instruction", "language_instruction", "natural_language_instruction", "mission", "task_description", "task", "language", "goal",
    "prompt",
)  # fmt: skip
"""Names under which recorders store the words, the likeliest first."""


# --- writing ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """One episode, complete and in memory, on its way to the disk.

    Raises:
        ValueError: if shapes, dtypes, spans or numbers do not fit together, naming the field.
    """

    frames: Mapping[str, Frames]
    """View name -> (T+1, H, W, 3) uint8 RGB, upright."""
    actions: npt.NDArray[Any]
    """(T,) integers (discrete, counted from 0) or (T, A) floats (continuous)."""
    rewards: npt.NDArray[Any]
    """(T,) float64."""
    terminated: bool
    truncated: bool
    annotations: tuple[Annotation, ...]
    """At least one; the first one's instruction also becomes the text observation "instruction"."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON-ready facts about the episode, e.g. task and seed."""
    privileged: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Ground truth, float32: (T,) one value a transition, or (T+1,) one value an observation."""

    def __post_init__(self) -> None:
        length = len(self.rewards)
        _require(self.rewards.shape == (length,) and length > 0, f"rewards have shape {self.rewards.shape}; they need (T,) with T > 0")
        _require(bool(np.isfinite(self.rewards).all()), "rewards hold NaN or infinity")
        self._check_frames(length)
        self._check_actions(length)
        _require(len(self.annotations) > 0, "an episode needs at least one annotation")
        for annotation in self.annotations:
            for text in (annotation.instruction, *(span.text for span in annotation.spans)):
                _require("\0" not in text and _encodable(text), f"the text {text!r} cannot be stored as UTF-8")
        EpisodeInfo(0, length, self.terminated, self.truncated, self.annotations)  # refuses spans beyond the end
        for name, values in self.privileged.items():
            _require(values.shape in ((length,), (length + 1,)), f"privileged field '{name}' has shape {values.shape} for T = {length}")
        canonical_json(dict(self.metadata))  # refuses what is not JSON

    def _check_frames(self, length: int) -> None:
        _require(len(self.frames) > 0, "an episode needs at least one view")
        for view, frames in self.frames.items():
            _require("/" not in view and view not in ("", ".", "instruction"), f"a view cannot be called '{view}'")
            right = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[0] == length + 1 and frames.shape[3] == 3
            _require(right, f"view '{view}' is {frames.dtype}{frames.shape}; {length} transitions need uint8 ({length + 1}, H, W, 3)")

    def _check_actions(self, length: int) -> None:
        _require(self.actions.shape[:1] == (length,), f"there are {len(self.actions)} actions and {length} rewards")
        if np.issubdtype(self.actions.dtype, np.integer):
            _require(self.actions.ndim == 1, f"discrete actions have shape {self.actions.shape}; they need (T,)")
            _require(bool((self.actions >= 0).all()), "discrete actions count from 0")
        else:
            _require(np.issubdtype(self.actions.dtype, np.floating) and self.actions.ndim == 2, "continuous actions are floats (T, A)")
            _require(bool(np.isfinite(self.actions).all()), "actions hold NaN or infinity")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_minari(
    path: Path,
    episodes: Iterable[RecordedEpisode],
    *,
    dataset_id: str,
    action_names: Sequence[str],
    environment: Mapping[str, Any],
    description: str = "",
) -> None:
    """Writes episodes as a Minari dataset that the stock library opens: `minari.MinariDataset(path / "data")`.

    Episodes are taken one by one, so a generator needs the memory of one episode. Equal episodes give equal bytes. The folder appears under
    its name when it is whole.

    Args:
        path: the dataset's folder, new or empty. To be loaded by its id it lies at `$MINARI_DATASETS_PATH/<dataset_id>`.
        episodes: at least one; all with the same views, picture sizes, kind of actions and privileged fields.
        dataset_id: `name-vN` or `namespace/name-vN`.
        action_names: the name of each discrete action by index; empty for continuous actions.
        environment: JSON-ready facts about the world, with its name under "name".
        description: one sentence for `minari show`.

    Raises:
        DatasetError: if the episodes do not fit together or there are none, or `path` holds something already.
        UsageError: if `dataset_id` is no Minari id.
        WriteFailed: if the disk is full or not writable; nothing is left.
    """
    refuse_bad_target(path, dataset_id)
    with writing(path) as temporary:
        data = temporary / "data"
        data.mkdir(parents=True)
        schema, totals = _write_episodes(data / _HDF5_FILE, episodes, tuple(action_names), str(path))
        metadata = {
            "dataset_id": dataset_id,
            "minari_version": MINARI_VERSION,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": canonical_json(schema.observation_space(totals)),
            "action_space": json.dumps(schema.action_space(), sort_keys=True),
            "total_episodes": totals.episodes,
            "total_steps": totals.steps,
            "dataset_size": round((data / _HDF5_FILE).stat().st_size / 1e6, 1),
            "description": description,
            _OURS: {
                "format": 1,
                "environment": dict(environment),
                "action_names": list(action_names),
                "views": list(schema.views),
                "privileged": dict(schema.privileged),
            },
        }
        (data / _METADATA_FILE).write_text(canonical_json(metadata), encoding="utf-8")


def refuse_bad_target(path: Path, dataset_id: str) -> None:
    """Raises DatasetError if `path` holds something already, UsageError if `dataset_id` is no Minari id."""
    if not _DATASET_ID.fullmatch(dataset_id):
        raise UsageError(f"'{dataset_id}' is not a Minari dataset id", cure="It has the form name-v0 or namespace/name-v0.")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DatasetError("exists already", where=str(path), cure="Choose another folder, or delete this one first.")


PrivilegedKind = Literal["transition", "observation"]


@dataclass(frozen=True)
class _Schema:
    """What all episodes of a dataset share."""

    views: Mapping[str, tuple[int, ...]]
    action_names: tuple[str, ...]
    action_width: int | None
    """Number of continuous action components; None for discrete actions."""
    privileged: Mapping[str, PrivilegedKind]

    @classmethod
    def of(cls, episode: RecordedEpisode, action_names: tuple[str, ...]) -> _Schema:
        length = len(episode.rewards)
        return cls(
            views={name: frames.shape[1:] for name, frames in episode.frames.items()},
            action_names=action_names,
            action_width=None if episode.actions.ndim == 1 else episode.actions.shape[1],
            privileged={name: "transition" if len(a) == length else "observation" for name, a in sorted(episode.privileged.items())},
        )

    def observation_space(self, totals: _Totals) -> dict[str, Any]:
        spaces: dict[str, Any] = {
            name: {
                "type": "Box", "dtype": "uint8", "shape": list(shape),
                "low": np.zeros(shape, int).tolist(), "high": np.full(shape, 255).tolist(),
            }
            for name, shape in self.views.items()
        }  # fmt: skip
        charset = "".join(sorted(totals.characters))
        spaces["instruction"] = {"type": "Text", "min_length": 0, "max_length": max(totals.longest, 1), "charset": charset}
        return {"type": "Dict", "subspaces": spaces}

    def action_space(self) -> dict[str, Any]:
        if self.action_width is None:
            return {"type": "Discrete", "dtype": "int64", "start": 0, "n": len(self.action_names)}
        bound = [math.inf] * self.action_width
        return {"type": "Box", "dtype": "float32", "shape": [self.action_width], "low": [-x for x in bound], "high": bound}


@dataclass
class _Totals:
    """What is known once all episodes are written."""

    episodes: int = 0
    steps: int = 0
    longest: int = 0
    characters: set[str] = field(default_factory=set)

    def add(self, episode: RecordedEpisode) -> None:
        text = episode.annotations[0].instruction
        self.episodes += 1
        self.steps += len(episode.rewards)
        self.longest = max(self.longest, len(text))
        self.characters |= set(text)


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


def _write_episodes(
    file_path: Path, episodes: Iterable[RecordedEpisode], action_names: tuple[str, ...], where: str
) -> tuple[_Schema, _Totals]:
    schema: _Schema | None = None
    totals = _Totals()
    with Hdf5Writer(file_path) as writer:
        for episode in episodes:
            place = f"{where}, episode {totals.episodes}"
            schema = schema or _Schema.of(episode, action_names)
            _refuse_misfit(schema, episode, place)
            _write_episode(writer.file.create_group(f"episode_{totals.episodes}"), totals.episodes, episode, schema)
            writer.check()
            totals.add(episode)
    if schema is None:
        raise DatasetError("there are no episodes to write", where=where)
    return schema, totals


def _refuse_misfit(schema: _Schema, episode: RecordedEpisode, where: str) -> None:
    if _Schema.of(episode, schema.action_names) != schema:
        what = "differs from the first episode in its views, picture sizes, kind of actions or privileged fields"
        raise DatasetError(what, where=where, cure="Write it into a dataset of its own.")
    discrete = schema.action_width is None
    if discrete != bool(schema.action_names):
        what = "discrete actions need names" if discrete else "continuous actions have no names"
        raise DatasetError(what, where=where)
    if discrete and int(episode.actions.max()) >= len(schema.action_names):
        step = int(np.argmax(episode.actions >= len(schema.action_names)))
        what = f"action {int(episode.actions[step])} has no name; there are {len(schema.action_names)} names"
        raise DatasetError(what, where=f"{where}, step {step}")


def _write_episode(group: h5py.Group, index: int, episode: RecordedEpisode, schema: _Schema) -> None:
    length = len(episode.rewards)
    observations = group.create_group("observations")
    for view in schema.views:
        store_array(observations, view, episode.frames[view])
    text = episode.annotations[0].instruction
    store_array(observations, "instruction", _fixed_texts(np.full(length + 1, text)))
    actions = episode.actions.astype(np.int64 if schema.action_width is None else np.float32)
    store_array(group, "actions", actions)
    store_array(group, "rewards", episode.rewards.astype(np.float64))
    store_array(group, "terminations", _at_the_end(episode.terminated, length))
    store_array(group, "truncations", _at_the_end(episode.truncated, length))
    privileged = group.create_group("infos").create_group("privileged")
    for name, values in sorted(episode.privileged.items()):
        padded = np.concatenate([[np.nan], values]) if len(values) == length else values
        store_array(privileged, name, padded.astype(np.float32))
    group.attrs["id"] = index
    group.attrs["total_steps"] = length
    record = {
        "annotations": [{"instruction": a.instruction, "spans": [[s.start, s.stop, s.text] for s in a.spans]} for a in episode.annotations],
        "metadata": dict(episode.metadata),
    }
    group.attrs[_OURS] = np.bytes_(canonical_json(record).encode("utf-8"))


def _at_the_end(value: bool, length: int) -> npt.NDArray[np.bool_]:
    flags = np.zeros(length, dtype=np.bool_)
    flags[-1] = value
    return flags


def store_array(group: h5py.Group, name: str, array: npt.NDArray[Any]) -> None:
    """Stores (N, ...) `array` deflated, in chunks of whole rows, with checksums."""
    row_bytes = max(array.dtype.itemsize * math.prod(array.shape[1:]), 1)
    rows = max(1, min(len(array), _CHUNK_BYTES // row_bytes))
    options = {"compression": "gzip", "compression_opts": 4, "fletcher32": True} if array.size else {}
    group.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]) if array.size else None, **options)


# --- storages: Minari's files as named arrays -------------------------------------------------------------------------------------------

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


class _Storage(ABC):
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


class _Hdf5Storage(_Storage):
    keeps_jpeg = True

    def __init__(self, folder: Path, episodes: int) -> None:
        self.file = folder / _HDF5_FILE
        with reading(str(self.file)):
            self._handle = h5py.File(self.file, "r")
            found = len(self._handle)
        if found != episodes:
            cure = "The dataset is incomplete: copy or record it again."
            raise DatasetError(f"holds {found} episodes where {_METADATA_FILE} speaks of {episodes}", where=str(self.file), cure=cure)
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
        return {key: _json_ready(value) for key, value in self._group(index).attrs.items()}

    def copy(self, index: int, group: h5py.Group, leave_out: Collection[str]) -> None:
        source = self._group(index)
        for name in self.names(index):
            if name not in leave_out:
                parent, _, last = name.rpartition("/")
                source.copy(name, group.require_group(parent) if parent else group, name=last)  # stored bytes, not decoded ones
        for key, value in source.attrs.items():
            group.attrs[key] = value


class _ArrowStorage(_Storage):
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
        return {key: _json_ready(value) for key, value in found.items()}

    def copy(self, index: int, group: h5py.Group, leave_out: Collection[str]) -> None:
        for name, array in self._decoded(index).items():
            if name not in leave_out:
                parent, _, last = name.rpartition("/")
                store_array(group.require_group(parent) if parent else group, last, _fixed_texts(array) if _is_text(array) else array)
        for key, value in _flattened(self.metadata(index)):
            group.attrs[key] = value


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, npt.NDArray[Any]]]:
    for key, value in tree.items():
        if isinstance(value, tuple):
            value = {f"_index_{i}": part for i, part in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key}", np.asarray(value)


def _fixed_texts(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Texts as UTF-8 of one length, which HDF5 stores with checksums; those of varying length lie outside of them."""
    encoded = [text.encode("utf-8") for text in _texts(array)]
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", max(map(len, encoded), default=0) or 1))


def _json_ready(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray | np.generic):
        return _json_ready(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _json_ready(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(part) for part in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _is_text(array: Any) -> bool:
    return h5py.check_string_dtype(array.dtype) is not None or array.dtype.kind in "US" or _holds_strings(array)


def _holds_strings(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == object and all(isinstance(entry, str) for entry in array.flat)


def _texts(array: Any) -> list[str]:
    entries = np.atleast_1d(array[()])
    return [entry.decode("utf-8") if isinstance(entry, bytes) else str(entry) for entry in entries]


# --- reading ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to read a dataset that others recorded."""

    instruction: str | None = None
    """One instruction for all episodes, instead of the recorded words."""
    instruction_key: str | None = None
    """Where the words are: "observations.mission", "infos.task" or, for episode metadata, "metadata.task"; the first part may be left out.
    Found by itself when it has one of the usual names."""
    views: tuple[str, ...] | None = None
    """Which pictures to use, e.g. "image" or "pixels.front", the default view first. All of them if not given."""
    action_names: tuple[str, ...] | None = None
    """Names of the discrete actions, by index."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Options:
        """Options from a mapping. Raises UsageError for unknown names and wrong types."""
        known = tuple(cls.__dataclass_fields__)
        for name, value in options.items():
            if name not in known:
                raise UsageError(f"Minari datasets have no option '{name}'; there are: {', '.join(known)}")
            listed = name in ("views", "action_names")
            fits = _are_texts(value) if listed else isinstance(value, str)
            if value is not None and not fits:
                raise UsageError(f"option '{name}' is {'a list of texts' if listed else 'a text'}, got {value!r}")
        given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        return cls(**given)

    @property
    def words(self) -> dict[str, Any]:
        """The options that change what is asked about the dataset."""
        given = {"instruction": self.instruction, "instruction_key": self.instruction_key, "action_names": self.action_names}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class _Ours:
    """What `write_minari` wrote into `metadata.json`; empty for datasets that others recorded."""

    environment: Mapping[str, Any]
    action_names: tuple[str, ...]
    views: tuple[str, ...]
    privileged: Mapping[str, PrivilegedKind]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], where: str) -> _Ours:
        """Raises DatasetError naming `where` if an entry is not what it should be."""
        section = metadata.get(_OURS, {})
        if not isinstance(section, Mapping):
            raise DatasetError(f"'{_OURS}' is not a JSON object", where=where)
        environment, privileged = section.get("environment", {}), section.get("privileged", {})
        names, views = section.get("action_names", []), section.get("views", [])
        right = {
            "environment": isinstance(environment, Mapping),
            "privileged": isinstance(privileged, Mapping) and all(kind in get_args(PrivilegedKind) for kind in privileged.values()),
            "action_names": _are_texts(names),
            "views": _are_texts(views),
        }
        for key, fits in right.items():
            if not fits:
                raise DatasetError(f"'{_OURS}', '{key}' holds something else than it should", where=where, cure="Record the dataset again.")
        return cls(environment, tuple(names), tuple(views), privileged)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


@dataclass(frozen=True)
class _View:
    """Where a view's pictures are and how they are stored."""

    name: str
    source: str
    encoding: Literal["raw", "jpeg"]
    channels_first: bool = False

    def decode(self, stored: Any) -> Frames:
        """(N, H, W, 3) pictures from what is stored of N observations."""
        if self.encoding == "jpeg":
            from PIL import Image

            pictures = [np.asarray(Image.open(io.BytesIO(np.asarray(entry, dtype=np.uint8).tobytes()))) for entry in stored]
            return np.stack(pictures)
        return np.ascontiguousarray(np.moveaxis(stored, 1, -1)) if self.channels_first else cast(Frames, stored)


class MinariDataset(Dataset):
    """A Minari dataset on disk. Reads what is asked for and nothing else."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self._options = path, options
        self.folder = path / "data" if (path / "data").is_dir() else path
        """The folder that holds `metadata.json`."""
        self.metadata = _read_metadata(self.folder / _METADATA_FILE)
        """What `metadata.json` says, as it is written there."""
        self._ours = _Ours.of(self.metadata, str(self.folder / _METADATA_FILE))
        self._storage = self._open_storage()
        self._infos: dict[int, EpisodeInfo] = {}
        example = self._first_nonempty()
        with reading(self._storage.where(example)):
            self._views = {view.name: view for view in self._find_views(example)}
            self.views = tuple(self._views)
            self._discrete = self._find_discrete(example)
            self.action_names = self._find_action_names()
            self._words = self._find_words(example)

    # opening

    def _open_storage(self) -> _Storage:
        where = str(self.folder / _METADATA_FILE)
        flavour, episodes = self.metadata.get("data_format", "hdf5"), self.metadata.get("total_episodes")
        if not isinstance(episodes, int) or isinstance(episodes, bool) or episodes < 1:
            raise DatasetError(f"speaks of {episodes!r} episodes; a dataset needs at least one", where=where)
        if flavour == "hdf5":
            return _Hdf5Storage(self.folder, episodes)
        if flavour in ("arrow", "parquet"):
            return _ArrowStorage(self.folder, episodes)
        raise DatasetError(f"names the data format {flavour!r}; known are hdf5, arrow and parquet", where=where)

    def _first_nonempty(self) -> int:
        for index in range(self._storage.episodes):
            with reading(self._storage.where(index)):
                rewards = self._storage.array(index, "rewards")
                if rewards is None:
                    raise DatasetError("has no rewards, so its length is unknown", where=self._storage.where(index))
                if rewards.shape[0] > 0:
                    return index
        raise DatasetError("every episode is empty", where=str(self._storage.file))

    def _find_views(self, example: int) -> list[_View]:
        found: dict[str, _View] = {}
        almost: list[str] = []
        for source in self._storage.names(example):
            if source.split("/")[0] != "observations":
                continue
            array = self._storage.array(example, source)
            name = source.removeprefix("observations").strip("/").replace("/", ".") or "image"
            view = _as_view(name, source, array)
            if view is not None:
                found[name] = view
            elif len(array.shape) == 4 and 3 in (array.shape[1], array.shape[3]):
                almost.append(f"'{name}' is {array.dtype}")
        if not found:
            what = f"has no pictures: uint8 (T+1, H, W, 3) or (T+1, 3, H, W); {', '.join(almost) or 'nothing has that shape'}"
            raise DatasetError(what, where=self._storage.where(example), cure="Record the camera's pictures as uint8 observations.")
        names = self._options.views or (*self._ours.views, *sorted(found.keys() - set(self._ours.views)))
        for name in names:
            if name not in found:
                raise DatasetError(f"has no view '{name}'; there are: {', '.join(sorted(found))}", where=self._storage.where(example))
        return [found[name] for name in names]

    def _find_discrete(self, example: int) -> bool:
        actions = self._storage.array(example, "actions")
        where = self._storage.where(example)
        if actions is None:
            raise DatasetError("has no array of actions; dictionaries and tuples of actions are not supported", where=where)
        if actions.dtype.kind in "iu" and len(actions.shape) == 1:
            return True
        if actions.dtype.kind == "f" and len(actions.shape) in (1, 2):
            return False
        raise DatasetError(f"has actions {actions.dtype}{actions.shape}; they are integers (T,) or floats (T, A)", where=where)

    def _find_action_names(self) -> tuple[str, ...]:
        if not self._discrete:
            return ()
        names = self._options.action_names or self._ours.action_names
        if names:
            return names
        count = _discrete_count(self.metadata, str(self.folder / _METADATA_FILE)) or 1 + max(self._highest_actions())
        return tuple(f"action {number}" for number in range(count))

    def _highest_actions(self) -> Iterator[int]:
        for index in range(len(self)):
            array = self._storage.array(index, "actions")
            if array is not None and array.shape[0] > 0:
                yield int(array[()].max())

    def _find_words(self, example: int) -> str | None:
        """Where the instruction is: a name of the storage, "metadata/KEY", or None for annotations of our own or a constant text."""
        if self._options.instruction is not None:
            return None
        metadata = self._storage.metadata(example)
        texts = [name for name in self._storage.names(example) if _is_text(self._storage.array(example, name))]
        texts += [f"metadata/{name}" for name, value in sorted(metadata.items()) if isinstance(value, str) and name != _OURS]
        if self._options.instruction_key is not None:
            wanted = self._options.instruction_key.replace(".", "/")
            match = [name for name in texts if name == wanted] or [name for name in texts if name.split("/", 1)[-1] == wanted]
        elif _OURS in metadata:
            return None
        else:
            match = sorted((name for name in texts if name.split("/")[-1] in INSTRUCTION_KEYS), key=_likelihood)
            match = match or [name for name in texts if name.startswith("observations")][:1]
        if not match:
            there = ", ".join(name.replace("/", ".") for name in texts) or "none"
            asked = f"under '{self._options.instruction_key}'" if self._options.instruction_key else "in observations, infos or metadata"
            cure = "Say which text it is with the option instruction_key, or give one for all episodes with the option instruction."
            raise DatasetError(f"has no instruction {asked}; texts found: {there}", where=self._storage.where(example), cure=cure)
        return match[0]

    # the interface

    @cached_property
    def fingerprint(self) -> str:
        """Digest over the files' bytes and, where given, the options that change the words. Reads every byte once."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith((".", "_")))
        parts: list[str] = []
        for path in files:
            with reading(str(path)), path.open("rb") as stream:
                parts += [path.relative_to(self.folder).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()]
        return digest("guerdon minari 1", *parts, canonical_json(self._options.words))

    @property
    def environment(self) -> Mapping[str, Any]:
        return self._ours.environment

    def __len__(self) -> int:
        return self._storage.episodes

    def episode(self, index: int) -> EpisodeInfo:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no episode {index}; there are {len(self)}")
        if index not in self._infos:
            with reading(self._storage.where(index)):
                self._infos[index] = self._read_episode(index)
        return self._infos[index]

    def _read_episode(self, index: int) -> EpisodeInfo:
        where = self._storage.where(index)
        length = self._checked_length(index)
        metadata = self._storage.metadata(index)
        annotations, recorded = self._annotations(index, metadata)
        ended = {}
        for key in ("terminations", "truncations"):
            flags = self._storage.array(index, key)
            ended[key] = bool(flags[length - 1]) if length else False
        try:
            return EpisodeInfo(index, length, ended["terminations"], ended["truncations"], annotations, recorded)
        except ValueError as error:
            raise DatasetError(str(error), where=where) from None

    def _checked_length(self, index: int) -> int:
        """T, after the arrays were found to have T or T+1 entries."""
        where = self._storage.where(index)
        arrays = {name: self._storage.array(index, name) for name in ("rewards", "actions", "terminations", "truncations")}
        for name, array in arrays.items():
            if array is None or len(array.shape) == 0:
                raise DatasetError(f"has no array '{name}'", where=where)
        length = int(arrays["rewards"].shape[0])
        for name, array in arrays.items():
            if array.shape[0] != length:
                raise DatasetError(f"has {length} rewards, but '{name}' has {array.shape[0]} entries", where=where)
        for view in self._views.values() if length else ():
            array = self._storage.array(index, view.source)
            if array is None or _as_view(view.name, view.source, array) != view:
                raise DatasetError(f"view '{view.name}' is missing or stored in another way than in other episodes", where=where)
            if array.shape[0] != length + 1:
                what = f"view '{view.name}' has {array.shape[0]} pictures; {length} transitions need {length + 1}"
                raise DatasetError(what, where=where, cure="Record the observation after the last action, too.")
        return length

    def _annotations(self, index: int, metadata: Mapping[str, Any]) -> tuple[tuple[Annotation, ...], dict[str, Any]]:
        """The annotations of an episode and what its recorder wrote about it."""
        ours = json.loads(metadata[_OURS]) if _OURS in metadata else {}
        recorded = ours.get("metadata") or {key: value for key, value in metadata.items() if key not in (_OURS, "id", "total_steps")}
        if self._options.instruction is not None:
            return (Annotation(self._options.instruction),), recorded
        if self._words is not None:
            return (Annotation(self._recorded_words(index, self._words, metadata)),), recorded
        if not ours.get("annotations"):
            raise DatasetError("has no annotation", where=self._storage.where(index), cure="Give the option instruction.")
        annotations = tuple(
            Annotation(str(a["instruction"]), tuple(Span(int(start), int(stop), str(text)) for start, stop, text in a["spans"]))
            for a in ours["annotations"]
        )
        return annotations, recorded

    def _recorded_words(self, index: int, source: str, metadata: Mapping[str, Any]) -> str:
        where, key = self._storage.where(index), source.replace("/", ".")
        if source.startswith("metadata/"):
            text = metadata.get(source.removeprefix("metadata/"))
            texts = [text] if isinstance(text, str) else []
        else:
            array = self._storage.array(index, source)
            texts = _texts(array) if array is not None and _is_text(array) else []
        if not texts:
            raise DatasetError(f"has no instruction under '{key}'", where=where, cure="Give the option instruction or instruction_key.")
        # Infos may be empty until the first step has been made.
        spoken = [(step, text) for step, text in enumerate(texts) if text] or [(0, "")]
        for step, text in spoken:
            if text != spoken[0][1]:
                cure = "Name a text that stays the same with the option instruction_key, or give one with the option instruction."
                raise DatasetError(f"the instruction in '{key}' changes to {text!r}", where=self._storage.where(index, step), cure=cure)
        return spoken[0][1]

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        found = self._views[view]
        length = self.episode(index).length
        where = self._storage.where(index)
        if not 0 <= start <= stop <= length + 1:
            raise DatasetError(f"observations [{start}, {stop}) lie outside the {length + 1} of this episode", where=where)
        with reading(f"{where}, view '{view}', observations {start} to {stop - 1}"):
            pictures = found.decode(self._storage.array(index, found.source)[start:stop])
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise DatasetError(f"view '{view}' gives {pictures.dtype}{pictures.shape}, not uint8 (N, H, W, 3)", where=where)
        return pictures

    def actions(self, index: int) -> npt.NDArray[Any]:
        values = self._values(index, "actions")
        if not self._discrete:
            return self._finite(index, "action", values.reshape(len(values), -1).astype(np.float32))
        strange = np.flatnonzero((values < 0) | (values >= len(self.action_names)))
        if strange.size:
            what = f"action {values[strange[0]]} is not among the {len(self.action_names)} actions"
            cure = "Give the names of all actions with the option action_names."
            raise DatasetError(what, where=self._storage.where(index, int(strange[0])), cure=cure)
        return values.astype(np.int64)

    def rewards(self, index: int) -> Floats:
        return self._finite(index, "reward", self._values(index, "rewards").astype(np.float64))

    def _values(self, index: int, name: str) -> npt.NDArray[Any]:
        length = self.episode(index).length
        with reading(f"{self._storage.where(index)}, {name}"):
            values = np.asarray(self._storage.array(index, name)[()])
            expected = ("iu" if self._discrete else "f") if name == "actions" else "fiub"
            if values.dtype.kind not in expected and length:
                raise DatasetError(f"'{name}' is of dtype {values.dtype}", where=self._storage.where(index))
            return values.astype(np.int64) if self._discrete and name == "actions" else values

    def _finite(self, index: int, noun: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        strange = np.argwhere(~np.isfinite(values))
        if strange.size:
            raise DatasetError(f"the {noun} is {values[tuple(strange[0])]}", where=self._storage.where(index, int(strange[0][0])))
        return values

    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        length = self.episode(index).length
        found: dict[str, npt.NDArray[Any]] = {}
        for name, kind in self._ours.privileged.items():
            where = f"{self._storage.where(index)}, privileged field '{name}'"
            with reading(where):
                array = self._storage.array(index, f"infos/privileged/{name}")
                if array is None or array.shape != (length + 1,):
                    raise DatasetError(f"is missing or does not have {length + 1} entries", where=where)
                values = array[()].astype(np.float32)
            found[name] = values[1:] if kind == "transition" else values
        return found

    def audit(self, index: int) -> Iterator[tuple[int | None, str]]:
        """Oddities of an episode that reading does not stumble over: (step or None, what is odd)."""
        length = self.episode(index).length
        with reading(self._storage.where(index)):
            for key in ("terminations", "truncations"):
                early = np.flatnonzero(self._storage.array(index, key)[()][: max(length - 1, 0)])
                if early.size:
                    yield int(early[0]), f"'{key}' is set before the last transition"
            for name in self._storage.names(index):
                array = self._storage.array(index, name)
                if name.startswith("observations/") and array.dtype.kind == "f":
                    strange = np.argwhere(~np.isfinite(array[()]))
                    if strange.size:
                        yield int(strange[0][0]), f"'{name.replace('/', '.')}' holds NaN or infinity"

    def has_array(self, index: int, name: str) -> bool:
        """Whether an episode has an array of this name, e.g. "infos/task"."""
        with reading(self._storage.where(index)):
            return self._storage.array(index, name) is not None

    def write_copy(
        self, folder: Path, episodes: Sequence[int], replaced: Callable[[int], Mapping[str, npt.NDArray[Any]]], metadata: Mapping[str, Any]
    ) -> None:
        """Writes some of the episodes as a new HDF5 dataset, one by one; what is not replaced keeps its stored bytes.

        Args:
            folder: the new dataset's folder; it must not exist.
            episodes: numbers of the episodes to copy; in the copy they count from 0.
            replaced: arrays of an episode (given by its number here) to write instead of or beside the recorded ones, by their names,
                such as "rewards" or "infos/original_reward".
            metadata: entries of `metadata.json` to set beside the recorded ones.

        Raises:
            DatasetError: if the data is damaged.
            OSError: if the disk is full or not writable.
        """
        data = folder / "data"
        data.mkdir(parents=True)
        with Hdf5Writer(data / _HDF5_FILE) as writer:
            for number, index in enumerate(episodes):
                new = replaced(index)
                group = writer.file.create_group(f"episode_{number}")
                with reading(self._storage.where(index)):
                    self._storage.copy(index, group, new.keys())
                for name, array in new.items():
                    parent, _, last = name.rpartition("/")
                    store_array(group.require_group(parent) if parent else group, last, array)
                group.attrs["id"] = number
                writer.check()
        kept = {key: value for key, value in self.metadata.items() if key not in ("data_format", "jpeg_encoding")}
        stored = {"data_format": "hdf5", "jpeg_encoding": self._storage.keeps_jpeg and bool(self.metadata.get("jpeg_encoding", True))}
        counts = {"total_episodes": len(episodes), "total_steps": sum(self.episode(index).length for index in episodes)}
        size = {"dataset_size": round((data / _HDF5_FILE).stat().st_size / 1e6, 1)}
        (data / _METADATA_FILE).write_text(canonical_json({**kept, **stored, **counts, **size, **metadata}), encoding="utf-8")


def _likelihood(name: str) -> tuple[int, int]:
    """Sorting key of texts that may be the instruction: by their name, then observations before infos before metadata."""
    places = ("observations", "infos", "metadata")
    place = name.split("/")[0]
    return INSTRUCTION_KEYS.index(name.split("/")[-1]), places.index(place) if place in places else len(places)


def _as_view(name: str, source: str, array: Any) -> _View | None:
    shape = array.shape
    if array.dtype == np.uint8 and len(shape) == 4 and 3 in (shape[1], shape[3]):
        return _View(name, source, "raw", channels_first=shape[3] != 3)
    variable = h5py.check_vlen_dtype(array.dtype) == np.uint8
    if shape and shape[0] > 0 and (variable or (array.dtype == np.uint8 and len(shape) == 2)):
        start = np.asarray(array[0])[:3]
        if start.dtype == np.uint8 and start.tobytes() == b"\xff\xd8\xff":
            return _View(name, source, "jpeg")
    return None


def _read_metadata(path: Path) -> dict[str, Any]:
    cure = "A Minari dataset is a folder with data/metadata.json in it."
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError("is not a Minari dataset: there is no metadata.json", where=str(path.parent), cure=cure) from None
    except (ValueError, OSError, RecursionError) as error:
        raise DatasetError(f"cannot be read as JSON ({type(error).__name__})", where=str(path), cure=cure) from error
    if not isinstance(metadata, dict):
        raise DatasetError("does not hold a JSON object", where=str(path), cure=cure)
    return metadata


def _discrete_count(metadata: Mapping[str, Any], where: str) -> int | None:
    """Number of discrete actions by the recorded action space; None if it was not recorded."""
    text = metadata.get("action_space")
    if text is None:
        return None
    with reading(where):
        space = json.loads(text)
        if space["type"] != "Discrete":
            raise DatasetError(f"the action space is {space['type']}, the actions are integers", where=where)
        if space.get("start", 0) != 0:
            raise DatasetError("discrete actions count from 0", where=where, cure="Record them again, or subtract the start.")
        return int(space["n"])


class MinariFormat(DatasetFormat):
    """The format of Farama's Minari library."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        try:
            return (path / "data" / _METADATA_FILE).is_file() or (path / _METADATA_FILE).is_file()
        except (OSError, ValueError):
            return False

    @classmethod
    def open(cls, path: Path, options: Mapping[str, Any]) -> Dataset:
        return MinariDataset(path, Options.of(options))
