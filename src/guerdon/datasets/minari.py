"""Minari datasets, the field's format for offline reinforcement learning: written losslessly, read lazily.

A dataset is a folder `data/` with `metadata.json` and, for its HDF5 flavour, `main_data.hdf5` with one group an episode (`observations`,
`actions`, `rewards`, `terminations`, `truncations`, `infos`). Observations and infos have T+1 entries, the rest T. `write_minari` writes
that layout and the stock library reads it. Reading works on any Minari dataset with pictures (or vectors) and words in it, also in the
Arrow and Parquet flavours. JPEG pictures are decoded; their loss was the recorder's choice. Observations that are floats of shape
(T+1, D) are offered as vectors, cast to float32.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np
import numpy.typing as npt

from guerdon.datasets._minari_storage import (
    HDF5_FILE,
    METADATA_FILE,
    ArrowStorage,
    Hdf5Storage,
    Hdf5Writer,
    Storage,
    is_text,
    reading,
    store_array,
    texts_of,
)
from guerdon.datasets._minari_writer import OURS, PrivilegedKind, RecordedEpisode, refuse_bad_target, write_minari
from guerdon.errors import DatasetError, UsageError
from guerdon.interfaces import Dataset, DatasetFormat, Floats
from guerdon.records import Annotation, EpisodeInfo, Frames, Span, canonical_json, digest

__all__ = ["MinariDataset", "MinariFormat", "Options", "RecordedEpisode", "refuse_bad_target", "write_minari"]

INSTRUCTION_KEYS = (
    "instruction", "language_instruction", "natural_language_instruction", "mission", "task_description", "task", "language", "goal",
    "prompt",
)  # fmt: skip
"""Names under which recorders store the words, the likeliest first."""


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
    vectors: tuple[str, ...]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], where: str) -> _Ours:
        """Raises DatasetError naming `where` if an entry is not what it should be."""
        section = metadata.get(OURS, {})
        if not isinstance(section, Mapping):
            raise DatasetError(f"'{OURS}' is not a JSON object", where=where)
        environment, privileged = section.get("environment", {}), section.get("privileged", {})
        names, views, vectors = (section.get(key, []) for key in ("action_names", "views", "vectors"))
        right = {
            "environment": isinstance(environment, Mapping),
            "privileged": isinstance(privileged, Mapping) and all(kind in get_args(PrivilegedKind) for kind in privileged.values()),
            "action_names": _are_texts(names),
            "views": _are_texts(views),
            "vectors": _are_texts(vectors),
        }
        for key, fits in right.items():
            if not fits:
                raise DatasetError(f"'{OURS}', '{key}' holds something else than it should", where=where, cure="Record the dataset again.")
        return cls(environment, tuple(names), tuple(views), privileged, tuple(vectors))


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
        return np.array(np.moveaxis(stored, 1, -1) if self.channels_first else stored, order="C")


@dataclass(frozen=True)
class _Vector:
    """Where a vector's numbers are, and how many an observation has."""

    source: str
    width: int


class MinariDataset(Dataset):
    """A Minari dataset on disk. Reads what is asked for and nothing else."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self._options = path, options
        self.folder = path / "data" if (path / "data").is_dir() else path
        """The folder that holds `metadata.json`."""
        self.metadata = _read_metadata(self.folder / METADATA_FILE)
        """What `metadata.json` says, as it is written there."""
        self._ours = _Ours.of(self.metadata, str(self.folder / METADATA_FILE))
        self._storage = self._open_storage()
        self._infos: dict[int, EpisodeInfo] = {}
        example = self._first_nonempty()
        with reading(self._storage.where(example)):
            self._vectors = self._find_vectors(example)
            self.vectors = tuple(self._vectors)
            self._views = {view.name: view for view in self._find_views(example)}
            self.views = tuple(self._views)
            self._discrete = self._find_discrete(example)
            self.action_names = self._find_action_names()
            self._words = self._find_words(example)

    # opening

    def _open_storage(self) -> Storage:
        where = str(self.folder / METADATA_FILE)
        flavour, episodes = self.metadata.get("data_format", "hdf5"), self.metadata.get("total_episodes")
        if not isinstance(episodes, int) or isinstance(episodes, bool) or episodes < 1:
            raise DatasetError(f"speaks of {episodes!r} episodes; a dataset needs at least one", where=where)
        if flavour == "hdf5":
            return Hdf5Storage(self.folder, episodes)
        if flavour in ("arrow", "parquet"):
            return ArrowStorage(self.folder, episodes)
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

    def _find_vectors(self, example: int) -> dict[str, _Vector]:
        length = self._storage.array(example, "rewards").shape[0]
        found: dict[str, _Vector] = {}
        for source in self._storage.names(example):
            if source.split("/")[0] == "observations":
                array = self._storage.array(example, source)
                if array.dtype.kind == "f" and len(array.shape) == 2 and array.shape[0] == length + 1 and array.shape[1] > 0:
                    name = source.removeprefix("observations").strip("/").replace("/", ".") or "state"
                    found[name] = _Vector(source, int(array.shape[1]))
        for name in self._ours.vectors:
            if name not in found:
                raise DatasetError(f"has no vector '{name}', which {METADATA_FILE} speaks of", where=self._storage.where(example))
        return {name: found[name] for name in (*self._ours.vectors, *sorted(found.keys() - set(self._ours.vectors)))}

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
        meant = self._ours.vectors or (self._vectors and (self._options.instruction or self._options.instruction_key))
        if not found and (almost or self._options.views or self._ours.views or not meant):
            what = f"has no pictures: uint8 (T+1, H, W, 3) or (T+1, 3, H, W); {', '.join(almost) or 'nothing has that shape'}"
            cure = "Record the camera's pictures as uint8 observations."
            if self._vectors and not almost:
                cure += f" To train on its vectors alone ({', '.join(self._vectors)}), say what is to be done with --instruction."
            raise DatasetError(what, where=self._storage.where(example), cure=cure)
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
        count = _discrete_count(self.metadata, str(self.folder / METADATA_FILE)) or 1 + max(self._highest_actions())
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
        texts = [name for name in self._storage.names(example) if is_text(self._storage.array(example, name))]
        texts += [f"metadata/{name}" for name, value in sorted(metadata.items()) if isinstance(value, str) and name != OURS]
        if self._options.instruction_key is not None:
            wanted = self._options.instruction_key.replace(".", "/")
            match = [name for name in texts if name == wanted] or [name for name in texts if name.split("/", 1)[-1] == wanted]
        elif OURS in metadata:
            return None
        else:
            match = sorted((name for name in texts if name.split("/")[-1] in INSTRUCTION_KEYS), key=_likelihood)
            match = match or [name for name in texts if name.startswith("observations")][:1]
        if not match:
            there = ", ".join(name.replace("/", ".") for name in texts) or "none"
            asked = f"under '{self._options.instruction_key}'" if self._options.instruction_key else "in observations, infos or metadata"
            cure = "Say which text it is with --instruction-key, or give one for all episodes with --instruction."
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
        ours = json.loads(metadata[OURS]) if OURS in metadata else {}
        recorded = ours.get("metadata") or {key: value for key, value in metadata.items() if key not in (OURS, "id", "total_steps")}
        if self._options.instruction is not None:
            return (Annotation(self._options.instruction),), recorded
        if self._words is not None:
            return (Annotation(self._recorded_words(index, self._words, metadata)),), recorded
        if not ours.get("annotations"):
            raise DatasetError("has no annotation", where=self._storage.where(index), cure="Give one with --instruction.")
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
            texts = texts_of(array) if array is not None and is_text(array) else []
        if not texts:
            cure = "Give one with --instruction, or name another text with --instruction-key."
            raise DatasetError(f"has no instruction under '{key}'", where=where, cure=cure)
        # Infos may be empty until the first step has been made.
        spoken = [(step, text) for step, text in enumerate(texts) if text] or [(0, "")]
        for step, text in spoken:
            if text != spoken[0][1]:
                cure = "Name a text that stays the same with --instruction-key, or give one with --instruction."
                raise DatasetError(f"the instruction in '{key}' changes to {text!r}", where=self._storage.where(index, step), cure=cure)
        return spoken[0][1]

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        found = self._views[view]
        length = self.episode(index).length
        where = self._storage.where(index)
        if not 0 <= start <= stop <= length + 1:
            raise DatasetError(f"observations [{start}, {stop}) lie outside the {length + 1} of this episode", where=where)
        with reading(f"{where}, view '{view}', observations {start} to {stop - 1}"):
            first = min(start, length)  # one picture at least, since only a decoded picture tells its size
            pictures = found.decode(self._storage.array(index, found.source)[first : max(stop, first + 1)])[start - first : stop - first]
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            raise DatasetError(f"view '{view}' gives {pictures.dtype}{pictures.shape}, not uint8 (N, H, W, 3)", where=where)
        return pictures

    def vector(self, index: int, name: str) -> npt.NDArray[np.float32]:
        found = self._vectors[name]
        length = self.episode(index).length
        where = f"{self._storage.where(index)}, vector '{name}'"
        if length == 0:
            return np.zeros((1, found.width), np.float32)
        with reading(where):
            array = self._storage.array(index, found.source)
            if array is None or array.dtype.kind != "f" or array.shape != (length + 1, found.width):
                what = f"is missing or does not have {length + 1} observations of {found.width} numbers"
                raise DatasetError(what, where=where, cure="Record the observation after the last action, too.")
            with np.errstate(over="ignore"):  # what is too large for float32 is refused below
                values = np.asarray(array[()]).astype(np.float32)
        strange = np.argwhere(~np.isfinite(values))
        if strange.size:
            what = f"'{found.source.replace('/', '.')}' holds NaN or infinity"
            raise DatasetError(what, where=self._storage.where(index, int(strange[0][0])))
        return values

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
        vectors = {vector.source for vector in self._vectors.values()}  # reading them stumbles over such numbers
        with reading(self._storage.where(index)):
            for key in ("terminations", "truncations"):
                early = np.flatnonzero(self._storage.array(index, key)[()][: max(length - 1, 0)])
                if early.size:
                    yield int(early[0]), f"'{key}' is set before the last transition"
            for name in self._storage.names(index):
                array = self._storage.array(index, name)
                if name.startswith("observations/") and array.dtype.kind == "f" and name not in vectors:
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
        with Hdf5Writer(data / HDF5_FILE) as writer:
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
        size = {"dataset_size": round((data / HDF5_FILE).stat().st_size / 1e6, 1)}
        (data / METADATA_FILE).write_text(canonical_json({**kept, **stored, **counts, **size, **metadata}), encoding="utf-8")


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
            return (path / "data" / METADATA_FILE).is_file() or (path / METADATA_FILE).is_file()
        except (OSError, ValueError):
            return False

    @classmethod
    def open(cls, path: Path, options: Mapping[str, Any]) -> Dataset:
        return MinariDataset(path, Options.of(options))
