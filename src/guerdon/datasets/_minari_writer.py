"""Writing recorded episodes as a Minari dataset: losslessly, one by one, with equal bytes for equal episodes.

The stock writer is not used: it holds all episodes in memory, does not compress, and encodes pictures as JPEG (lossy) unless told so.
Here pictures are deflated in small chunks (a window costs one or two chunks) and every array carries a checksum. What is ours lies in
places that the stock library carries along:

- `metadata.json`, key "guerdon": environment, action names, views and vectors in order, kinds of the privileged fields;
- the attribute "guerdon" of an episode's group (JSON): annotations with the spans of their sub-tasks, and the recorder's metadata;
- `infos/privileged/NAME`: ground truth. A field with one value a transition is padded at the front with NaN, since by Minari's
  convention entry 0 comes from the reset and entry t+1 from transition t; reading takes the padding off again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from guerdon.datasets._minari_storage import HDF5_FILE, METADATA_FILE, Hdf5Writer, fixed_texts, store_array
from guerdon.errors import DatasetError, UsageError
from guerdon.records import Annotation, EpisodeInfo, Frames, canonical_json
from guerdon.runs import writing

MINARI_VERSION = "0.5.4"
"""Version of the layout written; the first one whose readers know that pictures need not be JPEG."""

OURS = "guerdon"
"""Key of what this package adds, in `metadata.json` and in an episode's attributes."""

_DATASET_ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]/)?[-_\w]+?-v\d+")


@dataclass(frozen=True, kw_only=True)
class RecordedEpisode:
    """One episode, complete and in memory, on its way to the disk.

    Raises:
        ValueError: if shapes, dtypes, spans or numbers do not fit together, naming the field.
    """

    frames: Mapping[str, Frames]
    """View name -> (T+1, H, W, 3) uint8 RGB, upright; may be empty if there are vectors."""
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
    vectors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Name -> (T+1, D) float32: observations that are numbers, such as a robot's state."""

    def __post_init__(self) -> None:
        length = len(self.rewards)
        _require(self.rewards.shape == (length,) and length > 0, f"rewards have shape {self.rewards.shape}; they need (T,) with T > 0")
        _require(bool(np.isfinite(self.rewards).all()), "rewards hold NaN or infinity")
        self._check_frames(length)
        self._check_vectors(length)
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
        _require(len(self.frames) + len(self.vectors) > 0, "an episode needs at least one view or vector")
        for view, frames in self.frames.items():
            _require(_can_be_a_name(view), f"a view cannot be called '{view}'")
            right = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[0] == length + 1 and frames.shape[3] == 3
            _require(right, f"view '{view}' is {frames.dtype}{frames.shape}; {length} transitions need uint8 ({length + 1}, H, W, 3)")

    def _check_vectors(self, length: int) -> None:
        for name, values in self.vectors.items():
            _require(_can_be_a_name(name) and name not in self.frames, f"a vector cannot be called '{name}'")
            right = values.dtype == np.float32 and values.ndim == 2 and values.shape[0] == length + 1 and values.shape[1] > 0
            _require(right, f"vector '{name}' is {values.dtype}{values.shape}; {length} transitions need float32 ({length + 1}, D)")
            _require(bool(np.isfinite(values).all()), f"vector '{name}' holds NaN or infinity")

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


def _can_be_a_name(name: str) -> bool:
    return "/" not in name and name not in ("", ".", "instruction")


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
        episodes: at least one; all with the same views, picture sizes, vectors, kind of actions and privileged fields.
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
        schema, totals = _write_episodes(data / HDF5_FILE, episodes, tuple(action_names), str(path))
        metadata = {
            "dataset_id": dataset_id,
            "minari_version": MINARI_VERSION,
            "data_format": "hdf5",
            "jpeg_encoding": False,
            "observation_space": json.dumps(schema.observation_space(totals), sort_keys=True, separators=(",", ":"), ensure_ascii=False),
            "action_space": json.dumps(schema.action_space(), sort_keys=True),
            "total_episodes": totals.episodes,
            "total_steps": totals.steps,
            "dataset_size": round((data / HDF5_FILE).stat().st_size / 1e6, 1),
            "description": description,
            OURS: {
                "format": 1,
                "environment": dict(environment),
                "action_names": list(action_names),
                "views": list(schema.views),
                "privileged": dict(schema.privileged),
            }
            | ({"vectors": list(schema.vectors)} if schema.vectors else {}),
        }
        (data / METADATA_FILE).write_text(canonical_json(metadata), encoding="utf-8")


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
    vectors: Mapping[str, int]
    """Name -> D, the number of components."""

    @classmethod
    def of(cls, episode: RecordedEpisode, action_names: tuple[str, ...]) -> _Schema:
        length = len(episode.rewards)
        return cls(
            views={name: frames.shape[1:] for name, frames in episode.frames.items()},
            action_names=action_names,
            action_width=None if episode.actions.ndim == 1 else episode.actions.shape[1],
            privileged={name: "transition" if len(a) == length else "observation" for name, a in sorted(episode.privileged.items())},
            vectors={name: values.shape[1] for name, values in episode.vectors.items()},
        )

    def observation_space(self, totals: _Totals) -> dict[str, Any]:
        spaces: dict[str, Any] = {
            name: {
                "type": "Box", "dtype": "uint8", "shape": list(shape),
                "low": np.zeros(shape, int).tolist(), "high": np.full(shape, 255).tolist(),
            }
            for name, shape in self.views.items()
        }  # fmt: skip
        spaces |= {name: _unbounded(width) for name, width in self.vectors.items()}
        charset = "".join(sorted(totals.characters))
        spaces["instruction"] = {"type": "Text", "min_length": 0, "max_length": max(totals.longest, 1), "charset": charset}
        return {"type": "Dict", "subspaces": spaces}

    def action_space(self) -> dict[str, Any]:
        if self.action_width is None:
            return {"type": "Discrete", "dtype": "int64", "start": 0, "n": len(self.action_names)}
        return _unbounded(self.action_width)


def _unbounded(width: int) -> dict[str, Any]:
    """The space of `width` floats, as the stock library writes it."""
    return {"type": "Box", "dtype": "float32", "shape": [width], "low": [-math.inf] * width, "high": [math.inf] * width}


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
        what = "differs from the first episode in its views, picture sizes, vectors, kind of actions or privileged fields"
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
    for name in schema.vectors:
        store_array(observations, name, episode.vectors[name])
    text = episode.annotations[0].instruction
    store_array(observations, "instruction", fixed_texts(np.full(length + 1, text)))
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
    group.attrs[OURS] = np.bytes_(canonical_json(record).encode("utf-8"))


def _at_the_end(value: bool, length: int) -> npt.NDArray[np.bool_]:
    flags = np.zeros(length, dtype=np.bool_)
    flags[-1] = value
    return flags
