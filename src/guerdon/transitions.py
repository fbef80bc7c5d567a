"""Recorded behaviour as training data: pictures, vectors, actions, rewards and instructions, kept in memory and cut into batches.

The problem: a policy with memory must see whole episodes, some rewards are unknown, and neither fact may leak into the other. A
transition whose reward is unknown stays where it is (memory needs its picture) and is marked, so that the losses leave it out. `terminal`
is true only at the true end of a trajectory that ended because its task was carried out; where recording was cut off or a batch cuts an
episode, the value of the next state is bootstrapped.

`Transitions.build` reads a dataset and reward arrays. `Sampler` draws `Batch`es. `ObservationSpec` says what a policy trained on the data
expects to see; it is stored with the policy.

Pictures are uint8 RGB (height, width, 3), vectors float32 (D,). Actions are numbers (int64) or A floats in [-1, 1]. Rows: a sequence of n
transitions is n + 1 rows, one for each observation; the last row has no action. A policy that sees vectors and no pictures needs no memory,
and one that sees pictures can go without: both learn from single transitions, which are gathered without a loop.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon.errors import DatasetError, PolicyError, RewardError
from guerdon.interfaces import Dataset
from guerdon.networks_glimpse import require_large_enough
from guerdon.picture_tiles import Catalogue, Pictures, catalogue
from guerdon.pictures import PicturePlace, expect, gather, is_mapped, keep
from guerdon.records import EpisodeInfo, Frames, canonical_json, digest
from guerdon.seeding import generator

Actions = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""(N,) int64: numbers of named actions; or (N, A) float32 in [-1, 1]."""

RewardArrays = Mapping[tuple[int, int], npt.NDArray[np.float32]]
"""(episode, annotation) -> rewards of its T transitions, NaN where unknown."""

_ROUNDING = 1e-4
"""How far beyond 1 a recorded continuous action may lie and count as 1."""

_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Lower-case words and punctuation marks of any text, in order. Never raises; white space disappears."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Vocabulary:
    """Word -> number, fixed when the data is read. Words it does not hold share one number, so that no instruction is refused."""

    words: tuple[str, ...]
    """Known words; word i has the number i + 3."""

    PADDING = 0
    UNKNOWN = 1
    START = 2
    """First token of every instruction, which makes the empty one a sequence too."""

    @classmethod
    def of(cls, instructions: Iterable[str]) -> Vocabulary:
        """The vocabulary of all words in `instructions`, in alphabetical order."""
        return cls(tuple(sorted({word for text in instructions for word in split_words(text)})))

    def __len__(self) -> int:
        """Number of tokens, the three special ones included."""
        return len(self.words) + 3

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, start=3)}

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, never empty."""
        return [self.START, *(self._numbers.get(word, self.UNKNOWN) for word in split_words(text))]

    def batch(self, texts: Sequence[str]) -> Tensor:
        """Tokens (len(texts), longest) int64, padded at the end."""
        rows = [torch.tensor(self.encode(text), dtype=torch.int64) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.PADDING)


@dataclass(frozen=True)
class ObservationSpec:
    """What a policy sees and does: stored beside its weights and compared before it acts."""

    views: Mapping[str, tuple[int, int]]
    """View name -> (height, width) in pixels, in the order in which the network reads them."""
    action_names: tuple[str, ...]
    """Name of each action by index, none for continuous actions. A policy with a memory also sees the previous action."""
    vocabulary: Vocabulary
    vectors: Mapping[str, int] = field(default_factory=dict)
    """Name of each vector -> its components, in the order in which the network reads them."""
    action_size: int = 0
    """A, the components of a continuous action; 0 for named actions."""
    reads: bool = True
    """Whether the instruction matters. False where all data had the same one and the policy sees no pictures."""
    memory: bool = True
    """Whether a policy that sees pictures has a memory."""

    @property
    def remembers(self) -> bool:
        """Whether the policy remembers its episode. One that sees vectors only does not: the vectors are the state."""
        return bool(self.views) and self.memory

    def check_seen(self, seen: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raises PolicyError if a view or vector is missing, pictures are not uint8 of shape (..., height, width, 3), or vectors are not
        finite floats of shape (..., D)."""
        for view, (height, width) in self.views.items():
            if view not in seen:
                cure = f"Give it the views it was trained on: {', '.join(self.views)}."
                raise PolicyError(f"the policy looks through view '{view}', but the views given are: {_names(seen)}", cure=cure)
            picture = seen[view]
            if picture.dtype != np.uint8 or picture.shape[-3:] != (height, width, 3):
                expected = f"the policy expects uint8 pictures of shape ({height}, {width}, 3) for view '{view}'"
                cure = "Render the same view at the size of the training data."
                raise PolicyError(f"{expected}, got {picture.dtype} {tuple(picture.shape)}", cure=cure)
        for name, size in self.vectors.items():
            if name not in seen:
                cure = f"Give it the vectors it was trained on: {', '.join(self.vectors)}."
                raise PolicyError(f"the policy sees the vector '{name}', but what is given is: {_names(seen)}", cure=cure)
            vector = seen[name]
            if vector.dtype.kind != "f" or vector.shape[-1:] != (size,):
                expected = f"the policy expects {size} floats for vector '{name}'"
                raise PolicyError(f"{expected}, got {vector.dtype} {tuple(vector.shape)}", cure="Use the world it was trained in.")
            if not np.isfinite(vector).all():
                raise PolicyError(f"vector '{name}' holds a number that is not finite", cure="Look at the world that it comes from.")

    def check_actions(self, action_names: Sequence[str], action_size: int = 0) -> None:
        """Raises PolicyError if an environment's actions are not those the policy was trained with, in the same order."""
        if (tuple(action_names), action_size) != (self.action_names, self.action_size):
            theirs, ours = _actions_in_words(action_names, action_size), _actions_in_words(self.action_names, self.action_size)
            raise PolicyError(f"the policy acts with [{ours}], the environment with [{theirs}]", cure="Use the world it was trained in.")

    def to_record(self) -> dict[str, Any]:
        """JSON-ready. What a policy of pictures and named actions does not need is left out, so that its record is what it always was."""
        views = [[name, height, width] for name, (height, width) in self.views.items()]
        record: dict[str, Any] = {"views": views, "actions": list(self.action_names), "words": list(self.vocabulary.words)}
        if self.vectors:
            record["vectors"] = [[name, size] for name, size in self.vectors.items()]
        if self.action_size:
            record["action_size"] = self.action_size
        if not self.reads:
            record["reads"] = False
        if not self.memory:
            record["memory"] = False
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ObservationSpec:
        """The inverse of `to_record`. Raises KeyError, TypeError or ValueError for anything else."""
        views = {str(name): (int(height), int(width)) for name, height, width in record["views"]}
        vectors = {str(name): int(size) for name, size in record.get("vectors", ())}
        vocabulary = Vocabulary(tuple(map(str, record["words"])))
        actions, size = tuple(map(str, record["actions"])), int(record.get("action_size", 0))
        reads, memory = bool(record.get("reads", True)), bool(record.get("memory", True))
        return cls(views, actions, vocabulary, vectors, size, reads, memory)


def _names(seen: Mapping[str, Any]) -> str:
    return ", ".join(sorted(seen)) or "none"


def _actions_in_words(names: Sequence[str], size: int) -> str:
    return f"{size} continuous components" if size else ", ".join(names)


@dataclass(frozen=True)
class Trajectory:
    """One episode under one instruction, as places in the flat arrays."""

    episode: int
    annotation: int
    first_observation: int
    """Where the pictures of the episode begin."""
    first_transition: int
    """Where the actions and rewards of the trajectory begin."""
    length: int
    """T, the number of transitions."""


@dataclass(frozen=True)
class Rows:
    """Sequences laid end to end, one row an observation. B sequences, R rows in all, U distinct instructions of at most L tokens."""

    frames: Mapping[str, Any]
    """View -> (R, height, width, 3) uint8; or `Pictures`, where they repeat or are made of few tiles, whose `pixels` are just that."""
    previous_action: Tensor
    """(R,) int64: the action that led here; the number of actions, as "none", at the start of an episode. Continuous actions: (R, A)
    float32, zeros at the start."""
    lengths: Tensor
    """(B,) int64: rows of each sequence; zero is allowed."""
    instruction: Tensor
    """(B,) int64: which row of `tokens` each sequence follows."""
    tokens: Tensor
    """(U, L) int64."""
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> (R, D) float32."""

    def alone(self, chosen: Tensor) -> Rows:
        """The rows `chosen` (N,) int64, each a sequence of its own: all that a policy without a memory needs to see of them."""
        followed = torch.repeat_interleave(self.instruction, self.lengths, output_size=len(self.previous_action))
        return Rows(
            frames={view: pictures.index_select(0, chosen) for view, pictures in self.frames.items()},
            previous_action=self.previous_action[chosen],
            lengths=torch.ones_like(chosen),
            instruction=followed[chosen],
            tokens=self.tokens,
            vectors={name: values[chosen] for name, values in self.vectors.items()},
        )

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on another device."""
        frames = {view: pictures.to(device) for view, pictures in self.frames.items()}
        vectors = {name: values.to(device) for name, values in self.vectors.items()}
        columns = (self.previous_action, self.lengths, self.instruction, self.tokens)
        previous_action, lengths, instruction, tokens = (column.to(device) for column in columns)
        return Rows(frames, previous_action, lengths, instruction, tokens, vectors)


@dataclass(frozen=True)
class Batch:
    """What one update learns from. Per-row columns belong to `rows`; the last row of a sequence has no transition."""

    rows: Rows
    prefix: Rows | None
    """The rows before each sequence back to the start of its episode, for the memory's sake; None if all begin there."""
    action: Tensor
    """(R,) int64, or (R, A) float32; 0 where there is no transition."""
    reward: Tensor
    """(R,) float32; 0 where unknown or where there is no transition."""
    terminal: Tensor
    """(R,) bool: the task ended with this transition."""
    acted: Tensor
    """(R,) bool: the row has a transition."""
    known: Tensor
    """(R,) bool: the row has a transition whose reward is known."""

    def acted_rows(self) -> Tensor:
        """(R - B,) int64: all rows but the last of each sequence; the row after each shows what its action led to. Not synchronised with
        the host, which knows how many there are."""
        inside = torch.ones_like(self.acted).index_fill(0, self.rows.lengths.cumsum(0) - 1, False)
        return torch.nonzero_static(inside, size=len(inside) - len(self.rows.lengths)).squeeze(1)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        columns = (self.action, self.reward, self.terminal, self.acted, self.known)
        prefix = None if self.prefix is None else self.prefix.to(device)
        return Batch(self.rows.to(device), prefix, *(column.to(device) for column in columns))


class Transitions:
    """A dataset with a reward for its transitions, in memory; pictures that are larger than that lie in a mapped file.

    Build with `Transitions.build`. Pictures of an episode are kept once, however many instructions it has.
    """

    def __init__(
        self,
        spec: ObservationSpec,
        trajectories: Sequence[Trajectory],
        frames: Mapping[str, npt.NDArray[np.uint8]],
        action: Actions,
        reward: npt.NDArray[np.float32],
        terminal: npt.NDArray[np.bool_],
        instructions: Sequence[str],
        fingerprint: str,
        vectors: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """Args: frames: view -> (observations, H, W, 3), mapped or not; vectors: name -> (observations, D); action: (transitions,) int64 or
        (transitions, A) float32; reward (NaN = unknown) and terminal: (transitions,)."""
        self.spec = spec
        self.trajectories = tuple(trajectories)
        self.frames = dict(frames)
        self.vectors = dict(vectors or {})
        self.action = action
        self.known: npt.NDArray[np.bool_] = ~np.isnan(reward)
        self.reward: npt.NDArray[np.float32] = np.where(self.known, reward, np.float32(0))
        self.terminal = terminal
        self.instructions = tuple(instructions)
        self.fingerprint = fingerprint
        """Digest of everything that training depends on."""

    @cached_property
    def catalogues(self) -> Mapping[str, Catalogue | None]:
        """View -> which of its pictures are the same, and what they are made of; None where too little repeats, and for policies without a
        memory, which look at pixels. Found when first asked for."""
        return {view: catalogue(pictures) if self.spec.remembers else None for view, pictures in self.frames.items()}

    def libraries(self) -> dict[str, Tensor | None]:
        """View -> the tiles (K, tile, tile, 3) uint8 that all its pictures are made of; None if they are not made of few."""
        return {view: None if found is None else found.library for view, found in self.catalogues.items()}

    def __len__(self) -> int:
        """Number of transitions, over all trajectories."""
        return len(self.action)

    @property
    def coverage(self) -> float:
        """Share of the transitions whose reward is known, in [0, 1]."""
        return float(self.known.mean()) if len(self) else 0.0

    def vector_moments(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name of each vector -> mean and population standard deviation of its components over the observations, each (D,) float32."""
        wide = {name: values.astype(np.float64) for name, values in self.vectors.items()}
        return {name: (_single(values.mean(0)), _single(values.std(0))) for name, values in wide.items()}

    def action_deviation(self) -> Tensor | None:
        """Population standard deviation of each component of the continuous actions, (A,) float32; None for named actions."""
        return _single(self.action.astype(np.float64).std(0)) if self.spec.action_size else None

    def returns(self, discount: float) -> npt.NDArray[np.float64]:
        """Discounted sum of the known rewards from each transition to the end of its trajectory, (transitions,)."""
        returns = self.reward.astype(np.float64)
        for trajectory in self.trajectories:
            last = trajectory.first_transition + trajectory.length - 1
            for step in range(last - 1, trajectory.first_transition - 1, -1):
                returns[step] += discount * returns[step + 1]
        return returns

    @classmethod
    def build(
        cls,
        dataset: Dataset,
        rewards: RewardArrays | None = None,
        *,
        views: Sequence[str] | None = None,
        vectors: Sequence[str] = (),
        episodes: Iterable[int] | None = None,
        pictures: PicturePlace | None = None,
        memory: bool = True,
        vocabulary: Vocabulary | None = None,
    ) -> Transitions:
        """Reads a dataset into memory, pictures that do not fit there into a file that is mapped.

        Args:
            dataset: recorded behaviour.
            rewards: rewards of each annotated trajectory, NaN where unknown; a trajectory that is absent is unknown throughout. None takes
                the rewards stored in the dataset itself.
            views: the cameras to learn from; an empty sequence reads no pictures at all. None means none where vectors are named, and the
                dataset's first camera where they are not.
            vectors: the vectors to learn from.
            episodes: which episodes to read; None reads all.
            pictures: how much memory pictures may take, and where they lie if they take more; None keeps all of them in memory.
            memory: whether a policy that sees pictures is to remember its episode; one that sees vectors only never does.
            vocabulary: the words that the policy knows, for data that grows or changes under a policy; None takes those of the data.

        Raises:
            DatasetError: if there is nothing to learn from or to see, a view or vector is missing, pictures, vectors or actions differ in
                size, or continuous actions leave [-1, 1].
            RewardError: if a reward array is infinite or not as long as its episode.
            UsageError: if there is to be no memory and pictures are too small to do without.
            WriteFailed: if pictures are to be written and the disk is full or not writable.
        """
        if views is None:
            views = () if vectors else dataset.views[:1]
        reader = _Reader(dataset, rewards, tuple(views), tuple(vectors), pictures)
        for index in range(len(dataset)) if episodes is None else episodes:
            reader.read(dataset.episode(index))
        return reader.finish(memory, vocabulary)


class _Reader:
    """Collects episodes into flat arrays: pictures at the end, when it is known how much room they need."""

    def __init__(
        self,
        dataset: Dataset,
        rewards: RewardArrays | None,
        views: tuple[str, ...],
        vectors: tuple[str, ...],
        place: PicturePlace | None,
    ) -> None:
        self.dataset, self.rewards, self.views, self.place = dataset, rewards, views, place
        self.where = str(dataset.path)
        for kind, names, there in (("view", views, dataset.views), ("vector", vectors, dataset.vectors)):
            for name in names:
                if name not in there:
                    raise DatasetError(f"has no {kind} '{name}'; there are: {', '.join(there) or 'none'}", where=self.where)
        if not (views or vectors):
            raise DatasetError("nothing of it is to be seen", where=self.where, cure="Name a view or a vector to learn from.")
        self.episodes: list[EpisodeInfo] = []
        self.vectors: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in vectors}
        self.trajectories: list[Trajectory] = []
        self.instructions: list[str] = []
        self.columns: list[tuple[Actions, npt.NDArray[np.float32], npt.NDArray[np.bool_]]] = []
        self.action_size = 0
        self.observations = 0
        self.transitions = 0

    def read(self, episode: EpisodeInfo) -> None:
        if not episode.annotations or not episode.length:
            return
        self.episodes.append(episode)
        self._read_vectors(episode)
        action = self._actions(episode)
        terminal = np.zeros(episode.length, dtype=np.bool_)
        terminal[-1] = episode.terminated
        for number, annotation in enumerate(episode.annotations):
            self.columns.append((action, self._reward(episode, number), terminal))
            self.trajectories.append(Trajectory(episode.index, number, self.observations, self.transitions, episode.length))
            self.instructions.append(annotation.instruction)
            self.transitions += episode.length
        self.observations += episode.length + 1

    def _pictures(self) -> dict[str, Frames]:
        """View -> the pictures of all episodes."""
        found: dict[str, Frames] = {}
        place, counts = self.place, [episode.length + 1 for episode in self.episodes]
        for view in self.views:
            described = canonical_json([view, [[episode.index, episode.length] for episode in self.episodes]])
            fingerprint = digest("guerdon pictures 1", self.dataset.fingerprint, described)
            found[view] = keep(place, view, fingerprint, counts, self._reading(view))
            if place is not None and not is_mapped(found[view]):
                place = replace(place, memory=place.memory - found[view].nbytes)
        return found

    def _reading(self, view: str) -> Callable[[int], Frames]:
        """What reads the pictures of an episode by its position; raises DatasetError if they differ in size from those read before."""
        size: tuple[int, ...] | None = None

        def read(position: int) -> Frames:
            nonlocal size
            episode = self.episodes[position]
            frames = self.dataset.frames(episode.index, view, 0, episode.length + 1)
            size = size or frames.shape[1:]
            if frames.shape != (episode.length + 1, *size):
                what = f"view '{view}' has pictures {frames.shape}, where {(episode.length + 1, *size)} is expected"
                raise DatasetError(what, where=f"{self.where}, episode {episode.index}", cure="Train on pictures of one size.")
            return frames

        return read

    def _read_vectors(self, episode: EpisodeInfo) -> None:
        for name, vectors in self.vectors.items():
            values = np.asarray(self.dataset.vector(episode.index, name), dtype=np.float32)
            expected = vectors[0].shape[1:] if vectors else values.shape[1:2]
            if values.shape != (episode.length + 1, *expected) or not expected:
                what = f"vector '{name}' has the shape {values.shape}, where {(episode.length + 1, *(expected or ('D',)))} is expected"
                raise DatasetError(what, where=f"{self.where}, episode {episode.index}")
            if not np.isfinite(values).all():
                raise DatasetError(f"vector '{name}' holds a number that is not finite", where=f"{self.where}, episode {episode.index}")
            vectors.append(values)

    def _actions(self, episode: EpisodeInfo) -> Actions:
        action = np.asarray(self.dataset.actions(episode.index))
        return self._numbers(episode, action) if self.dataset.action_names else self._continuous(episode, action)

    def _continuous(self, episode: EpisodeInfo, action: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        where = f"{self.where}, episode {episode.index}"
        size = self.action_size or (action.shape[1] if action.ndim == 2 else 0)
        if not size or action.shape != (episode.length, size) or action.dtype.kind != "f":
            cure = "Named actions need names in the dataset; continuous ones are floats of shape (steps, components)."
            what = f"its actions are {action.dtype} {action.shape}, where {episode.length} rows of {size or 'some'} floats are expected"
            raise DatasetError(what, where=where, cure=cure)
        if not (np.abs(action) <= 1 + _ROUNDING).all():
            cure = "Scale or clip the recorded actions as the world does."
            raise DatasetError("a continuous action leaves [-1, 1] or is not a number", where=where, cure=cure)
        self.action_size = size
        clipped: npt.NDArray[np.float32] = np.clip(action, -1, 1).astype(np.float32)
        return clipped

    def _numbers(self, episode: EpisodeInfo, action: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        count = len(self.dataset.action_names)
        if action.shape != (episode.length,) or action.dtype.kind not in "iu" or not ((action >= 0) & (action < count)).all():
            what = f"its actions are not {episode.length} whole numbers from 0 to {count - 1}"
            raise DatasetError(what, where=f"{self.where}, episode {episode.index}")
        return action.astype(np.int64)

    def _reward(self, episode: EpisodeInfo, annotation: int) -> npt.NDArray[np.float32]:
        where = f"episode {episode.index}, annotation {annotation}"
        if self.rewards is None:
            reward = np.asarray(self.dataset.rewards(episode.index), dtype=np.float32)
        else:
            unknown = np.full(episode.length, np.nan, dtype=np.float32)
            reward = np.asarray(self.rewards.get((episode.index, annotation), unknown), dtype=np.float32)
        if reward.shape != (episode.length,):
            raise RewardError(f"has {reward.shape} rewards for {episode.length} transitions", where=where)
        if np.isinf(reward).any():
            raise RewardError("has an infinite reward", where=where)
        return reward

    def finish(self, memory: bool, vocabulary: Vocabulary | None = None) -> Transitions:
        if not self.trajectories:
            raise DatasetError("holds no episode with an instruction and an action", where=self.where)
        action, reward, terminal = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        if self.rewards is not None and np.isnan(reward).all():
            cure = "Check that the reward column belongs to this dataset."
            raise RewardError("no transition has a known reward", where=self.where, cure=cure)
        frames = self._pictures()
        views = {view: (int(f.shape[1]), int(f.shape[2])) for view, f in frames.items()}
        vectors = {name: np.concatenate(values) for name, values in self.vectors.items()}
        sizes = {name: values.shape[1] for name, values in vectors.items()}
        reads = bool(views) or len(set(self.instructions)) > 1
        if not memory:
            for view, size in views.items():
                require_large_enough(view, size)
        names, words = self.dataset.action_names, vocabulary or Vocabulary.of(self.instructions)
        spec = ObservationSpec(views, names, words, sizes, self.action_size, reads, memory or not views)
        described = [[t.episode, t.annotation, t.length] for t in self.trajectories]
        text = canonical_json([spec.to_record(), described, self.instructions])
        fingerprint = digest("guerdon transitions 1", self.dataset.fingerprint, text, reward.tobytes())
        return Transitions(spec, self.trajectories, frames, action, reward, terminal, self.instructions, fingerprint, vectors)


@dataclass(frozen=True)
class Chunk:
    """The transitions [start, stop) of a trajectory, counted from the trajectory's beginning."""

    trajectory: int
    start: int
    stop: int


def cut(transitions: Transitions, context: int) -> list[Chunk]:
    """All trajectories in pieces of at most `context` transitions, without the pieces that have no known reward."""
    chunks = [
        Chunk(number, start, min(start + context, trajectory.length))
        for number, trajectory in enumerate(transitions.trajectories)
        for start in range(0, trajectory.length, context)
    ]

    def has_known(chunk: Chunk) -> bool:
        first = transitions.trajectories[chunk.trajectory].first_transition
        return bool(transitions.known[first + chunk.start : first + chunk.stop].any())

    return [chunk for chunk in chunks if has_known(chunk)]


def collate(transitions: Transitions, chunks: Sequence[Chunk]) -> Batch:
    """The batch that holds `chunks` in order, each with what came before it in its episode if the policy has a memory."""
    pieces = [(transitions.trajectories[chunk.trajectory], chunk) for chunk in chunks]
    instruction, tokens = _instructions(transitions, chunks)
    remembered = transitions.spec.remembers and any(chunk.start for chunk in chunks)

    def rows(spans: Sequence[tuple[Trajectory, int, int]]) -> Rows:
        """Observations [start, stop) of trajectories."""
        observed = np.concatenate([np.arange(t.first_observation + start, t.first_observation + stop) for t, start, stop in spans])
        asked = np.repeat(instruction.numpy(), [stop - start for _, start, stop in spans])
        return Rows(
            frames={view: _pictures(transitions, view, observed, asked) for view in transitions.frames},
            previous_action=torch.from_numpy(np.concatenate([_previous_actions(transitions, *span) for span in spans])),
            lengths=torch.tensor([stop - start for _, start, stop in spans]),
            instruction=instruction,
            tokens=tokens,
            vectors={name: torch.from_numpy(values[observed]) for name, values in transitions.vectors.items()},
        )

    def column(values: npt.NDArray[Any]) -> Tensor:
        """Values of the chunks' transitions, each chunk followed by a zero for its last observation."""
        zero = np.zeros((1, *values.shape[1:]), dtype=values.dtype)
        parts = [values[t.first_transition + chunk.start : t.first_transition + chunk.stop] for t, chunk in pieces]
        return torch.from_numpy(np.concatenate([array for part in parts for array in (part, zero)]))

    return Batch(
        rows=rows([(t, chunk.start, chunk.stop + 1) for t, chunk in pieces]),
        prefix=rows([(t, 0, chunk.start) for t, chunk in pieces]) if remembered else None,
        action=column(transitions.action),
        reward=column(transitions.reward),
        terminal=column(transitions.terminal),
        acted=column(np.ones(len(transitions), dtype=np.bool_)),
        known=column(transitions.known),
    )


def _pictures(
    transitions: Transitions, view: str, observed: npt.NDArray[np.int64], instruction: npt.NDArray[np.int64]
) -> Tensor | Pictures:
    """Pictures (R,) of a view, each seen under an instruction (R,): as they are, or each distinct one once."""
    found, frames = transitions.catalogues[view], transitions.frames[view]
    if found is None:
        return torch.from_numpy(gather(frames, observed))
    return found.batch(observed, instruction, lambda wanted: gather(frames, wanted))


def _gathered(transitions: Transitions, view: str, observed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which pictures are gathered where `observed` ones are asked for: none where they are made of tiles, one for all that are equal."""
    found = transitions.catalogues[view]
    if found is None:
        return observed
    return found.first[found.number[observed]] if found.tiles is None else observed[:0]


def _previous_actions(transitions: Transitions, trajectory: Trajectory, start: int, stop: int) -> npt.NDArray[Any]:
    """The action that led to each of the observations [start, stop)."""
    first, spec = trajectory.first_transition, transitions.spec
    none = np.zeros((1, spec.action_size), np.float32) if spec.action_size else np.array([len(spec.action_names)])
    return np.concatenate([none, transitions.action[first : first + trajectory.length]])[start:stop]


def _instructions(transitions: Transitions, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor]:
    """Which instruction each chunk follows (B,), and the tokens of the distinct ones (U, L)."""
    texts = [transitions.instructions[chunk.trajectory] for chunk in chunks]
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([distinct[text] for text in texts]), transitions.spec.vocabulary.batch(list(distinct))


class _Singles:
    """The transitions of known reward one by one, for a policy without a memory: batches are gathered, not put together in a loop."""

    def __init__(self, transitions: Transitions) -> None:
        self._transitions = transitions
        lengths = np.array([trajectory.length for trajectory in transitions.trajectories])
        owner = np.repeat(np.arange(len(lengths)), lengths)
        first = np.array([[t.first_observation, t.first_transition] for t in transitions.trajectories])[owner]
        step = np.arange(len(owner)) - first[:, 1]
        self._known = np.flatnonzero(transitions.known)
        self._observation = first[:, 0] + step
        """Of each transition, the observation that it starts from."""
        self._begins = step == 0
        distinct = {text: number for number, text in enumerate(dict.fromkeys(transitions.instructions))}
        self._instruction = np.array([distinct[text] for text in transitions.instructions])[owner]
        self._tokens = transitions.spec.vocabulary.batch(list(distinct))

    def __len__(self) -> int:
        return len(self._known)

    def indices(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of each transition in this list, its number among all transitions and that of the observation that it starts from."""
        return self._known, self._observation[self._known]

    def instructions(self) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Which instruction each transition in this list follows, and the tokens (U, L) of all of them."""
        return self._instruction[self._known], self._tokens

    def starts(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The observations that the transitions at `places` (B,) of this list start from, (B,)."""
        first: npt.NDArray[np.int64] = self._observation[self._known[places]]
        return first

    def batch(self, places: npt.NDArray[np.int64]) -> Batch:
        """What `collate` gives for the transitions at `places` (B,) of this list: 2 B rows, each transition's two observations."""
        chosen = self._known[places]
        observed = np.stack([self._observation[chosen], self._observation[chosen] + 1], 1).reshape(-1)
        texts, instruction = np.unique(self._instruction[chosen], return_inverse=True)
        tokens = self._tokens[torch.from_numpy(texts)]
        rows = Rows(
            frames={view: torch.from_numpy(gather(pictures, observed)) for view, pictures in self._transitions.frames.items()},
            previous_action=torch.from_numpy(self._previous(chosen)),
            lengths=torch.full((len(chosen),), 2),
            instruction=torch.from_numpy(instruction.reshape(-1)),
            tokens=tokens[:, : int((tokens != Vocabulary.PADDING).sum(1).max())],
            vectors={name: torch.from_numpy(values[observed]) for name, values in self._transitions.vectors.items()},
        )
        t = self._transitions
        columns = (t.action, t.reward, t.terminal, np.ones(len(t), dtype=np.bool_), t.known)
        action, reward, terminal, acted, known = (_spaced(values[chosen]) for values in columns)
        return Batch(rows, None, action, reward, terminal, acted, known)

    def _previous(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The actions before and at each transition, one after the other."""
        action, names = self._transitions.action, len(self._transitions.spec.action_names)
        before = action[chosen - 1]  # of the first transition of all this is the last one, which is replaced
        before[self._begins[chosen]] = names if action.ndim == 1 else 0.0
        return np.stack([before, action[chosen]], 1).reshape(-1, *action.shape[1:])


def _spaced(values: npt.NDArray[Any]) -> Tensor:
    """(B, ...) -> (2 B, ...) with a zero after each."""
    return torch.from_numpy(np.stack([values, np.zeros_like(values)], 1).reshape(-1, *values.shape[1:]))


def _single(values: npt.NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


class Sampler:
    """Draws batches: every transition once an epoch, in an order that depends on the seed and the epoch's number alone.

    A batch holds the same number of sequences always; the last one of an epoch is filled up from the next epoch.
    """

    def __init__(self, transitions: Transitions, *, sequences: int, context: int, seed: int) -> None:
        """Args: sequences: per batch, >= 1; context: most transitions in a sequence, >= 1."""
        self._transitions = transitions
        self._sequences = sequences
        self._seed = seed
        self._pieces: _Singles | list[Chunk] = (
            _Singles(transitions) if context == 1 and not transitions.spec.remembers else cut(transitions, context)
        )
        self._drawn = 0
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    def state(self) -> dict[str, int]:
        """What `load_state` needs to go on with the same batches."""
        return {"drawn": self._drawn}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Goes on where the sampler that gave `state` stood."""
        self._drawn = int(state["drawn"])

    @property
    def batch_size(self) -> int:
        """Sequences (or single transitions) of a batch."""
        return self._sequences

    def singles(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
        """What the places of `draw_places` stand for, if they are single transitions: of each one its number among all transitions and that
        of the observation that it starts from. None for sequences."""
        return self._pieces.indices() if isinstance(self._pieces, _Singles) else None

    def instructions(self) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Where `singles` gives transitions: which instruction each of them follows, and the tokens (U, L) of all instructions."""
        assert isinstance(self._pieces, _Singles)
        return self._pieces.instructions()

    def draw_places(self, batches: int) -> npt.NDArray[np.int64]:
        """The places (batches x batch_size,) of the next batches, for whoever gathers them: as many calls of `draw` would give the same."""
        places = self._next_places(batches)
        self._drawn += len(places)
        return places

    def _next_places(self, batches: int) -> npt.NDArray[np.int64]:
        epochs, positions = np.divmod(np.arange(self._drawn, self._drawn + batches * self._sequences), len(self._pieces))
        return np.concatenate([self._order(epoch)[positions[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)])

    def draw(self) -> Batch:
        """The next batch."""
        places = self.draw_places(1)
        if isinstance(self._pieces, _Singles):
            batch = self._pieces.batch(places)
        else:
            batch = collate(self._transitions, [self._pieces[place] for place in places.tolist()])
        self._look_ahead()
        return batch

    def _look_ahead(self) -> None:
        """Has mapped pictures of the next batch read while this one is learned from."""
        mapped = {view: pictures for view, pictures in self._transitions.frames.items() if is_mapped(pictures)}
        if mapped:
            observed = self._observed(self._next_places(1))
            for view, pictures in mapped.items():
                expect(pictures, _gathered(self._transitions, view, observed))

    def _observed(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The observations that the batch of these places is made of, some of them more than once."""
        if isinstance(self._pieces, _Singles):
            first = self._pieces.starts(places)
            return np.concatenate([first, first + 1])
        chunks = [self._pieces[place] for place in places.tolist()]
        owners = [self._transitions.trajectories[chunk.trajectory].first_observation for chunk in chunks]
        starts = [0 if self._transitions.spec.remembers else chunk.start for chunk in chunks]
        spans = zip(owners, starts, chunks, strict=True)
        return np.concatenate([np.arange(owner + start, owner + chunk.stop + 1) for owner, start, chunk in spans])

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = generator(self._seed, "sampler", epoch).permutation(len(self._pieces))
        return self._permutation
