"""What an agent has experienced: a ring of the latest observations, which it learns from while it goes on acting.

The problem: rewards come later than the steps that they are about, and change; pictures do not fit into memory; the oldest steps are
overwritten while raters and checkpoints still want them. Each of these has a way to go wrong without a word.

The ring is one of observations, not of transitions: an episode of T transitions takes T + 1 places, one after the other, so each picture is
kept once. A transition is valid while both its observations are held. Valid transitions have numbers in the order in which they were added,
counting from 0 since the buffer began; `held` are those of now. A stretch of transitions is a `range` of such numbers, and one that was
overwritten is refused instead of giving other behaviour.

    buffer = ReplayBuffer(25_000, vectors={"state": 39}, action_size=4, views={"corner": (128, 128)}, folder=OUT / "pictures", margin=5_000)
    buffer.begin(observation, instruction="open the drawer")
    buffer.add(action, observation, reward=NAN, terminated=False, truncated=False, true_reward=0.1, quality=0.01, success=False)
    buffer.relabel(score, batch=512)                      # every valid transition, each once
    experience = buffer.sample(random, 512)               # known rewards only

Pictures lie in files of their full size that take space only where something was written. They are written with ordinary writes, so that
a full disk is an error (a full disk behind a mapping kills the process), and read through a mapping, so that the system decides how much of
them is in memory.

    FOLDER/ring.json    whose pictures these are
    FOLDER/0-corner.npy (places, height, width, 3) uint8; opens with numpy.load

A checkpoint holds everything but the pictures, which it names: they stay what they were until `margin` more observations come. Each
observation's pictures have a checksum, so that a checkpoint whose pictures were overwritten, or which belongs to others, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from guerdon.errors import RewardError, RunError, UsageError, WriteFailed
from guerdon.interfaces import Floats, Observation
from guerdon.pictures import GIBIBYTE, gather
from guerdon.records import Annotation, Frames, canonical_json, digest
from guerdon.runs import disk_refusals, read_json, write_json, writing

FORMAT: Final = 1
MANIFEST: Final = "replay.json"
COLUMNS: Final = "columns.safetensors"
RING: Final = "ring.json"

_MARK = "guerdon replay buffer"
_ROUNDING = 1e-4
"""How far beyond 1 a component of an action may lie."""


@dataclass(frozen=True)
class Experience:
    """N transitions to learn from."""

    state: Tensor
    """(N, D) float32: all vectors of o_t side by side."""
    action: Tensor
    """(N, A) float32 in [-1, 1]."""
    reward: Tensor
    """(N,) float32."""
    next_state: Tensor
    """(N, D) float32: of o_{t+1}."""
    terminal: Tensor
    """(N,) bool: the task ended there, so that there is no value to come. A time limit is no such end."""

    def __len__(self) -> int:
        return len(self.reward)

    def to(self, device: torch.device) -> Experience:
        """The same on a device."""
        return Experience(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A segment as an episode of its own, with the fields of `guerdon.datasets.minari.RecordedEpisode`: `RecordedEpisode(**vars(excerpt))`.

    T transitions and T + 1 observations.
    """

    frames: Mapping[str, Frames]
    """View -> (T+1, H, W, 3) uint8 RGB."""
    actions: npt.NDArray[np.float32]
    """(T, A)."""
    rewards: npt.NDArray[np.float64]
    """(T,): what the environment itself says that the actions were worth."""
    terminated: bool
    """Whether the last transition ended the task."""
    truncated: bool
    """Whether it did not: the segment was cut out."""
    annotations: tuple[Annotation, ...]
    """The instruction."""
    metadata: Mapping[str, Any]
    """"episode": its number, counting from 0 since the buffer began; "step": the segment's first transition in it."""
    privileged: Mapping[str, npt.NDArray[np.float32]]
    """"quality" and "success" (T+1,) of the transition that led to each observation. An episode's first observation has the quality of its
    first transition, and no success."""
    vectors: Mapping[str, npt.NDArray[np.float32]]
    """Name -> (T+1, D)."""


@dataclass(frozen=True)
class Stretch:
    """M transitions in the order in which they were added, and the P observations from the first one's to the last one's."""

    numbers: range
    frames: Mapping[str, Frames]
    """View -> (P, H, W, 3) uint8, not to be written to; read from the disk where it is looked at."""
    vectors: Mapping[str, npt.NDArray[np.float32]]
    """Name -> (P, D)."""
    before: npt.NDArray[np.int64]
    """(M,): which of the P observations is o_t; o_{t+1} is the one after it."""
    action: npt.NDArray[np.float32]
    """(M, A)."""
    reward: npt.NDArray[np.float32]
    """(M,): what is learned from; NaN where unknown."""
    true_reward: npt.NDArray[np.float64]
    """(M,): privileged."""
    quality: npt.NDArray[np.float32]
    """(M,) in [0, 1]: privileged."""
    success: npt.NDArray[np.bool_]
    """(M,): privileged."""
    terminal: npt.NDArray[np.bool_]
    """(M,)."""
    episode: npt.NDArray[np.int64]
    """(M,): number of the episode, counting from 0 since the buffer began."""
    step: npt.NDArray[np.int64]
    """(M,): t, counting from 0 in each episode."""
    instruction: npt.NDArray[np.int64]
    """(M,): which of `instructions`."""
    instructions: tuple[str, ...]
    """Every instruction that the buffer was ever given, once."""

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class _Settings:
    """What a buffer was made for."""

    capacity: int
    margin: int
    vectors: Mapping[str, int]
    action_size: int
    views: Mapping[str, tuple[int, int]]

    def __post_init__(self) -> None:
        if self.capacity < 2:
            raise UsageError(f"a replay buffer holds at least 2 observations, not {self.capacity}")
        if self.margin < 0:
            raise UsageError(f"the margin is a number of observations, not {self.margin}")
        if not self.vectors or min(self.vectors.values()) < 1:
            raise UsageError(f"a replay buffer needs vectors of at least one number each, not {dict(self.vectors)}")
        if self.action_size < 1:
            raise UsageError(f"actions have at least one component, not {self.action_size}")
        if any(side < 1 for size in self.views.values() for side in size):
            raise UsageError(f"pictures have at least one pixel, not {dict(self.views)}")
        if set(self.views) & set(self.vectors):
            raise UsageError(f"a view and a vector cannot both be called {sorted(set(self.views) & set(self.vectors))}")

    @property
    def ring(self) -> int:
        """Places of the ring."""
        return self.capacity + self.margin

    @property
    def state_size(self) -> int:
        """D."""
        return sum(self.vectors.values())

    @property
    def slices(self) -> dict[str, slice]:
        """Name of each vector -> its components of a state."""
        ends = np.cumsum(list(self.vectors.values())).tolist()
        return {name: slice(end - size, end) for (name, size), end in zip(self.vectors.items(), ends, strict=True)}

    def columns(self) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Name of each column -> dtype and shape of a row."""
        return {
            "state": (np.float32, (self.state_size,)),
            "quality": (np.float32, ()),  # of the transition that led to the observation, as `success`
            "success": (np.bool_, ()),
            "episode": (np.int64, ()),
            "step": (np.int64, ()),
            "instruction": (np.int64, ()),
            "checksum": (np.uint32, ()),  # of the pictures
            "departs": (np.bool_, ()),  # whether a transition begins here; what follows is about that one
            "action": (np.float32, (self.action_size,)),
            "reward": (np.float32, ()),
            "true_reward": (np.float64, ()),
            "terminal": (np.bool_, ()),
        }

    def to_record(self) -> dict[str, Any]:
        return {
            "capacity": self.capacity,
            "margin": self.margin,
            "vectors": [[name, size] for name, size in self.vectors.items()],
            "action_size": self.action_size,
            "views": [[name, *size] for name, size in self.views.items()],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> _Settings:
        return cls(
            capacity=int(record["capacity"]),
            margin=int(record["margin"]),
            vectors={str(name): int(size) for name, size in record["vectors"]},
            action_size=int(record["action_size"]),
            views={str(name): (int(height), int(width)) for name, height, width in record["views"]},
        )


@dataclass(frozen=True)
class _Counts:
    """How far a buffer has come. Observations have numbers as transitions have: since the buffer began."""

    written: int = 0
    """Observations."""
    oldest: int = 0
    """The first observation that is held."""
    added: int = 0
    """Transitions."""
    first: int = 0
    """The first transition that is valid."""
    episodes: int = 0
    open: bool = False
    """Whether the last episode may go on."""


class ReplayBuffer:
    """A ring of the latest observations and of the transitions between them.

    Args:
        capacity: observations that are held, at least 2. An episode of T transitions takes T + 1.
        vectors: name -> components; side by side in this order they are a state.
        action_size: A, the components of an action.
        views: name -> (height, width) of its pictures.
        folder: where pictures are kept, made if needed; only if there are views. Pictures that an earlier buffer left there are deleted.
        margin: observations that may be written after a checkpoint before it is worth nothing; they take space on the disk. Without views a
            checkpoint is always good, and needs none.

    Raises:
        UsageError: if a number makes no sense, or there are views and no folder.
        WriteFailed: if the folder cannot be written, or the disk has less space left than the pictures may take.
    """

    def __init__(
        self,
        capacity: int,
        *,
        vectors: Mapping[str, int],
        action_size: int,
        views: Mapping[str, tuple[int, int]] | None = None,
        folder: Path | None = None,
        margin: int = 0,
    ) -> None:
        settings = _Settings(capacity, margin, dict(vectors), action_size, dict(views or {}))
        if settings.views and folder is None:
            raise UsageError("pictures of a replay buffer are kept on the disk", cure="Give a folder for them.")
        pictures = _Pictures.create(folder, settings) if settings.views and folder is not None else None
        self._begin_with(settings, pictures, _Counts(), ())

    def _begin_with(self, settings: _Settings, pictures: _Pictures | None, counts: _Counts, instructions: Sequence[str]) -> None:
        self._settings, self._pictures, self._counts = settings, pictures, counts
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.zeros((settings.ring, *shape), dtype) for name, (dtype, shape) in settings.columns().items()
        }
        self._place = np.zeros(settings.ring, np.int64)
        """Transition i begins at place `_place[i % ring]`."""
        self._unknown = 0
        """Valid transitions without a reward."""
        self._instructions = {text: number for number, text in enumerate(instructions)}
        self._known: npt.NDArray[np.int64] | None = None
        """Places of the valid transitions with a reward; None where that has to be looked up again."""

    # what is held

    def __len__(self) -> int:
        """Valid transitions, with and without a reward."""
        return self._counts.added - self._counts.first

    @property
    def held(self) -> range:
        """Numbers of the valid transitions, the oldest first."""
        return range(self._counts.first, self._counts.added)

    @property
    def unknown(self) -> int:
        """How many of the valid transitions have no reward yet."""
        return self._unknown

    @property
    def observations(self) -> int:
        """Observations that are held."""
        return self._counts.written - self._counts.oldest

    def states(self) -> npt.NDArray[np.float32]:
        """(M, D): the states of all observations held, the oldest first; a copy."""
        found: npt.NDArray[np.float32] = self._columns["state"][self._rows(self._counts.oldest, self._counts.written)]
        return found

    # writing

    def begin(self, observation: Observation, *, instruction: str = "") -> None:
        """An episode begins with o_0. One that has not ended goes no further.

        Raises:
            UsageError: if the observation is not of the kind that the buffer was made for; nothing has changed then.
            WriteFailed: if the disk is full; the oldest observation may be gone then, and nothing else.
        """
        number = self._instructions.get(instruction, len(self._instructions))
        self._write(observation, {"episode": self._counts.episodes, "instruction": number, "quality": np.nan})
        self._instructions.setdefault(instruction, number)
        self._counts = replace(self._counts, episodes=self._counts.episodes + 1, open=True)

    def add(
        self,
        action: Floats,
        observation: Observation,
        *,
        reward: float,
        terminated: bool,
        truncated: bool,
        true_reward: float,
        quality: float,
        success: bool,
    ) -> None:
        """One transition of the episode that was begun.

        Args:
            action: (A,) in [-1, 1].
            observation: what it led to.
            reward: what is learned from; NaN if that is not known yet.
            terminated: the task ended there. The episode is over.
            truncated: the episode is over for another reason, such as a time limit.
            true_reward: what the environment says; privileged.
            quality: how good the step was, in [0, 1]; privileged.
            success: whether the task is carried out after it; privileged.

        Raises:
            UsageError: if no episode has been begun, or something is not of the kind that the buffer was made for; nothing has changed
                then.
            WriteFailed: if the disk is full; the oldest observation may be gone then, and nothing else.
        """
        if not self._counts.open:
            raise UsageError(
                "a transition was added where no episode has been begun", cure="Call begin with the episode's first observation."
            )
        acted = self._checked_action(action)
        for name, number in (("true reward", true_reward), ("quality", quality)):
            if not np.isfinite(number):
                raise UsageError(f"the {name} of a transition is {number}; only its reward may be unknown")
        if np.isinf(reward):
            raise UsageError(f"the reward of a transition is {reward}", cure="A reward that is not known yet is NaN.")
        columns, before = self._columns, (self._counts.written - 1) % self._settings.ring
        step = int(columns["step"][before])
        same = {"episode": columns["episode"][before], "instruction": columns["instruction"][before]}
        self._write(observation, {**same, "step": step + 1, "quality": quality, "success": success})
        if step == 0:
            columns["quality"][before] = quality  # the first observation has no transition that led there
        departure = {"action": acted, "reward": reward, "true_reward": true_reward, "terminal": terminated, "departs": True}
        for name, value in departure.items():
            columns[name][before] = value
        self._place[self._counts.added % self._settings.ring] = before
        self._unknown += bool(np.isnan(reward))
        self._known = None
        self._counts = replace(self._counts, added=self._counts.added + 1, open=not (terminated or truncated))

    def _write(self, observation: Observation, values: Mapping[str, Any]) -> None:
        """The next observation. The one that it overwrites is let go before, so that it does not count as held if the disk is full."""
        state, frames = self._checked_state(observation), self._checked_frames(observation)
        self._let_go(self._counts.written + 1 - self._settings.capacity)
        place = self._counts.written % self._settings.ring
        checksum = self._pictures.write(place, frames) if self._pictures is not None else 0
        row = {"step": 0, "success": False, **values, "state": state, "checksum": checksum, "departs": False, "reward": np.nan}
        for name, value in row.items():
            self._columns[name][place] = value
        self._counts = replace(self._counts, written=self._counts.written + 1)

    def _let_go(self, oldest: int) -> None:
        """Observations before `oldest` are not held any more."""
        while self._counts.oldest < oldest:
            place = self._counts.oldest % self._settings.ring
            departs = bool(self._columns["departs"][place])
            self._unknown -= departs and bool(np.isnan(self._columns["reward"][place]))
            self._counts = replace(self._counts, oldest=self._counts.oldest + 1, first=self._counts.first + departs)
            self._known = None

    def _checked_action(self, action: Floats) -> Floats:
        found = np.asarray(action)
        size = self._settings.action_size
        if found.shape != (size,) or found.dtype.kind != "f":
            raise UsageError(f"an action is {found.dtype}{found.shape} where ({size},) floats were expected")
        if not (np.abs(found) <= 1 + _ROUNDING).all():
            raise UsageError(f"an action lies outside [-1, 1], or is not a number: {found.tolist()}")
        return found

    def _checked_state(self, observation: Observation) -> npt.NDArray[np.float32]:
        parts = []
        for name, size in self._settings.vectors.items():
            part = observation.vectors.get(name)
            if part is None or part.shape != (size,):
                shape = "is not there" if part is None else f"has the shape {part.shape}"
                raise UsageError(f"vector '{name}' of an observation {shape}; expected were {size} numbers")
            parts.append(part)
        state = np.concatenate(parts, dtype=np.float32)
        if not np.isfinite(state).all():
            raise UsageError("an observation holds a number that is not finite")
        return state

    def _checked_frames(self, observation: Observation) -> dict[str, Frames]:
        found = {}
        for name, size in self._settings.views.items():
            picture = observation.frames.get(name)
            if picture is None or picture.shape != (*size, 3) or picture.dtype != np.uint8:
                shape = "is not there" if picture is None else f"is {picture.dtype}{picture.shape}"
                raise UsageError(f"the picture '{name}' of an observation {shape}; expected was uint8{(*size, 3)}")
            found[name] = np.ascontiguousarray(picture)
        return found

    # learning from it

    def sample(self, random: np.random.Generator, count: int, *, known: bool = True) -> Experience:
        """Transitions drawn evenly, each draw independent of the others.

        Args:
            random: where chance comes from.
            count: N.
            known: draw only from those whose reward is known; else from all, and an unknown reward is NaN.

        Raises:
            UsageError: if there is none to draw from.
        """
        places = self._drawn(random, count, known)
        columns = self._columns
        return Experience(
            state=torch.from_numpy(columns["state"].take(places, axis=0)),
            action=torch.from_numpy(columns["action"].take(places, axis=0)),
            reward=torch.from_numpy(columns["reward"].take(places)),
            next_state=torch.from_numpy(columns["state"].take(places + 1, axis=0, mode="wrap")),
            terminal=torch.from_numpy(columns["terminal"].take(places)),
        )

    def _drawn(self, random: np.random.Generator, count: int, known: bool) -> npt.NDArray[np.int64]:
        if known and self._unknown:
            if self._known is None:
                places = self._places(self.held)
                self._known = places[~np.isnan(self._columns["reward"][places])]
            if len(self._known):
                return self._known[random.integers(len(self._known), size=count)]
        elif len(self):
            begin = self._counts.first % self._settings.ring
            return self._place.take(begin + random.integers(len(self), size=count), mode="wrap")
        what = f"none of the {len(self)} transitions has a known reward" if len(self) else "there is no transition yet"
        raise UsageError(f"nothing can be drawn from the replay buffer: {what}", cure="Act first, or give the transitions their rewards.")

    def columns(self, numbers: range) -> Stretch:
        """Valid transitions by their numbers, a range with step 1. Raises UsageError if one is not held (any more)."""
        self._require_held(numbers)
        places = self._places(numbers)
        if not len(places):
            return self._stretch(numbers, self._counts.oldest, self._counts.oldest, places)
        first = self._observation(places[0])
        return self._stretch(numbers, first, self._observation(places[-1]) + 2, places)

    def _stretch(self, numbers: range, first: int, stop: int, places: npt.NDArray[np.int64]) -> Stretch:
        columns, ring = self._columns, self._settings.ring
        rows = self._rows(first, stop)
        arrived = (places + 1) % ring
        begin = first % ring
        whole = slice(begin, begin + stop - first) if begin + stop - first <= ring else None  # else it goes on at place 0
        pictures = self._pictures.arrays if self._pictures is not None else {}
        state = columns["state"][rows]
        return Stretch(
            numbers=numbers,
            frames={name: array[whole] if whole is not None else gather(array, rows) for name, array in pictures.items()},
            vectors={name: state[:, part] for name, part in self._settings.slices.items()},
            before=(places - begin) % ring,
            action=columns["action"][places],
            reward=columns["reward"][places],
            true_reward=columns["true_reward"][places],
            quality=columns["quality"][arrived],
            success=columns["success"][arrived],
            terminal=columns["terminal"][places],
            episode=columns["episode"][places],
            step=columns["step"][places],
            instruction=columns["instruction"][places],
            instructions=tuple(self._instructions),
        )

    def relabel(self, score: Callable[[Stretch], npt.ArrayLike], *, batch: int = 512, only_unknown: bool = False) -> int:
        """Gives every valid transition a new reward, or none if `score` fails for one of them.

        Args:
            score: gives the rewards (M,) of a stretch; NaN where it knows none. Called with the oldest ones first; no transition is shown
                twice.
            batch: the most transitions in a stretch.
            only_unknown: leave those alone that have a reward.

        Returns:
            How many transitions were scored.

        Raises:
            UsageError: if `batch` is below 1.
            RewardError: if `score` gives another number of rewards, or an infinite one.
        """
        if batch < 1:
            raise UsageError(f"a batch has at least one transition, not {batch}")
        wanted = np.arange(self._counts.first, self._counts.added)
        if only_unknown:
            wanted = wanted[np.isnan(self._columns["reward"][self._places(self.held)])] if self._unknown else wanted[:0]
        rewards = np.empty(len(wanted), np.float32)
        done = 0
        for numbers in _stretches(wanted, batch):
            rewards[done : done + len(numbers)] = _checked_rewards(score(self.columns(numbers)), len(numbers))
            done += len(numbers)
        if wanted.size and int(wanted[0]) < self._counts.first:
            raise UsageError("the replay buffer was written to while it was relabelled")
        self._columns["reward"][self._place[wanted % self._settings.ring]] = rewards
        self._unknown = int(np.isnan(self._columns["reward"][self._places(self.held)]).sum())
        self._known = None
        return len(wanted)

    # what raters are asked about

    def starts(self, length: int) -> npt.NDArray[np.int64]:
        """Numbers of all transitions at which a segment of `length` transitions can begin: one in one episode that is held as a whole."""
        if length < 1:
            raise UsageError(f"a segment has at least one transition, not {length}")
        if length > len(self):
            return np.empty(0, np.int64)
        episode = self._columns["episode"][self._places(self.held)]
        within = episode[: len(episode) - length + 1] == episode[length - 1 :]
        found: npt.NDArray[np.int64] = self._counts.first + np.flatnonzero(within)
        return found

    def segments(self, random: np.random.Generator, count: int, length: int, *, distinct: bool = True) -> list[range]:
        """Segments of transitions for raters, each start as likely as any other; the last transition of an episode is as likely as others.

        Args:
            random: where chance comes from.
            count: number of segments.
            length: transitions in each.
            distinct: no segment twice; they may overlap.

        Returns:
            The numbers of each segment's transitions.

        Raises:
            UsageError: if there are not so many segments.
        """
        starts = self.starts(length)
        if count > (len(starts) if distinct else count * len(starts)):
            what = f"{count} segments of {length} transitions were asked for, and the replay buffer holds {len(starts)}"
            raise UsageError(what, cure="Act for longer before asking, or ask about fewer or shorter segments.")
        return [range(int(start), int(start) + length) for start in random.choice(starts, count, replace=not distinct)]

    def recorded(self, segments: Sequence[range]) -> list[Excerpt]:
        """Segments as episodes of their own, pictures and all in memory. Raises UsageError if one crosses episodes, is empty or is not
        held (any more)."""
        return [self._excerpt(segment) for segment in segments]

    def _excerpt(self, segment: range) -> Excerpt:
        self._require_held(segment)
        places = self._places(segment)
        columns = self._columns
        if not len(places) or columns["episode"][places[0]] != columns["episode"][places[-1]]:
            raise UsageError(f"the transitions {segment.start} to {segment.stop} are not a segment of one episode")
        first = self._observation(places[0])
        rows = self._rows(first, first + len(places) + 1)
        state = columns["state"][rows]
        terminated = bool(columns["terminal"][places[-1]])
        instruction = tuple(self._instructions)[int(columns["instruction"][places[0]])]
        return Excerpt(
            frames={name: gather(array, rows) for name, array in (self._pictures.arrays if self._pictures else {}).items()},
            vectors={name: state[:, part].copy() for name, part in self._settings.slices.items()},
            actions=columns["action"][places],
            rewards=columns["true_reward"][places],
            terminated=terminated,
            truncated=not terminated,
            annotations=(Annotation(instruction),),
            metadata={"episode": int(columns["episode"][places[0]]), "step": int(columns["step"][places[0]])},
            privileged={"quality": columns["quality"][rows], "success": columns["success"][rows].astype(np.float32)},
        )

    def _require_held(self, numbers: range) -> None:
        if numbers.step != 1:
            raise UsageError(f"transitions are asked for one after the other, not as {numbers}")
        if len(numbers) and not self._counts.first <= numbers.start < numbers.stop <= self._counts.added:
            asked, held = f"{numbers.start} to {numbers.stop}", f"{self._counts.first} to {self._counts.added}"
            what = f"the transitions {asked} were asked for; the replay buffer holds {held}"
            raise UsageError(what, cure="Use segments before more is added, or make the replay buffer larger.")

    def _places(self, numbers: range) -> npt.NDArray[np.int64]:
        """Where transitions begin."""
        return self._place[np.arange(numbers.start, numbers.stop) % self._settings.ring]

    def _rows(self, first: int, stop: int) -> npt.NDArray[np.int64]:
        """Places of the observations with these numbers."""
        return np.arange(first, stop) % self._settings.ring

    def _observation(self, place: int) -> int:
        """Number of the observation that is held at a place."""
        return self._counts.oldest + (int(place) - self._counts.oldest) % self._settings.ring

    # checkpoints

    def save(self, folder: Path) -> None:
        """Writes a checkpoint, whole or not at all. Pictures are not copied: it is good until `margin` more observations are written.

        Raises:
            WriteFailed: if the disk is full or not writable.
            RunError: if the pictures were deleted, or taken over by another buffer.
        """
        folder = Path(os.path.abspath(folder))
        held = self._rows(self._counts.oldest, self._counts.written)
        with writing(folder) as temporary:
            if self._pictures is not None:
                self._pictures.flush()
            temporary.mkdir(parents=True)
            safetensors.numpy.save_file({name: column[held] for name, column in self._columns.items()}, temporary / COLUMNS)
            record: dict[str, Any] = {
                "settings": self._settings.to_record(),
                "counts": vars(self._counts),
                "instructions": list(self._instructions),
                "columns": _file_digest(temporary / COLUMNS),
                "pictures": None if self._pictures is None else self._pictures.to_record(folder),
            }
            record["digest"] = digest(canonical_json(record))
            (temporary / MANIFEST).write_text(json.dumps({_MARK: FORMAT, **record}, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, *, pictures: Path | None = None) -> ReplayBuffer:
        """The buffer of a checkpoint. It writes its pictures where the checkpoint's are.

        Args:
            folder: of the checkpoint.
            pictures: the folder of the pictures, if it was moved without the checkpoint.

        Raises:
            RunError: if there is no checkpoint, it is damaged, or its pictures are gone, were overwritten or changed.
            WriteFailed: if the pictures cannot be written to.
        """
        folder = Path(os.path.abspath(folder))
        record = _manifest(folder / MANIFEST)
        settings, counts = _Settings.from_record(record["settings"]), _Counts(**record["counts"])
        columns = _read_columns(folder / COLUMNS, record["columns"])
        ring = _Pictures.of_checkpoint(record["pictures"], settings, folder, pictures) if settings.views else None
        buffer = cls.__new__(cls)
        buffer._begin_with(settings, ring, counts, record["instructions"])
        held = buffer._rows(counts.oldest, counts.written)
        for name, column in buffer._columns.items():
            column[held] = columns[name]
        numbers = np.arange(counts.first, counts.added)
        buffer._place[numbers % settings.ring] = held[columns["departs"]]
        buffer._unknown = int(np.isnan(buffer._columns["reward"][buffer._places(buffer.held)]).sum())
        if ring is not None:
            ring.verify(held, columns["checksum"], folder)
        return buffer


def _stretches(numbers: npt.NDArray[np.int64], batch: int) -> Iterator[range]:
    """Ascending numbers as ranges of at most `batch`, cut where one is left out."""
    ends = np.flatnonzero(np.diff(numbers) > 1) + 1
    for unbroken in np.split(numbers, ends):
        for begin in range(0, len(unbroken), batch):
            piece = unbroken[begin : begin + batch]
            yield range(int(piece[0]), int(piece[-1]) + 1)


def _checked_rewards(given: npt.ArrayLike, count: int) -> npt.NDArray[np.float32]:
    rewards = np.asarray(given, np.float32)
    if rewards.shape != (count,):
        raise RewardError(f"{count} transitions were scored, and the rewards have the shape {rewards.shape}")
    if np.isinf(rewards).any():
        raise RewardError("a transition was given an infinite reward")
    return rewards


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_DAMAGED = "Use an older checkpoint, or begin again."


def _manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises RunError unless it is what was written."""
    record = read_json(path)
    if not isinstance(record, dict) or _MARK not in record:
        raise RunError("is not a checkpoint of a replay buffer", where=str(path), cure="Give the folder that was saved to.")
    found = record.pop(_MARK)
    if found != FORMAT:
        cure = "Use the version of guerdon that made it."
        raise RunError(f"is a checkpoint of format {found}, this version reads {FORMAT}", where=str(path), cure=cure)
    expected = record.pop("digest", None)
    if digest(canonical_json(record)) != expected:
        raise RunError("is not what was written", where=str(path), cure=_DAMAGED)
    return record


def _read_columns(path: Path, expected: str) -> dict[str, npt.NDArray[Any]]:
    try:
        if _file_digest(path) != expected:
            raise RunError("is not what was written", where=str(path), cure=_DAMAGED)
        return dict(safetensors.numpy.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError(f"cannot be read ({type(error).__name__})", where=str(path), cure=_DAMAGED) from error


@dataclass(frozen=True)
class _Pictures:
    """The pictures of all places: files that are written to and, for reading, mapped."""

    folder: Path
    identity: str
    """Tells these pictures from those of another buffer in the same folder."""
    arrays: dict[str, Frames]
    """View -> (places, height, width, 3), mapped; not to be written to."""
    _files: dict[str, tuple[BinaryIO, int]] = field(repr=False)
    """View -> its file, unbuffered, and where pictures begin in it."""

    @classmethod
    def create(cls, folder: Path, settings: _Settings) -> _Pictures:
        """New files of full size, nearly all of which takes no space yet."""
        folder = Path(os.path.abspath(folder))
        identity = uuid.uuid4().hex
        needed = sum(settings.ring * height * width * 3 for height, width in settings.views.values())
        cure = f"The pictures take up to {needed / GIBIBYTE:.1f} GiB. Free some space, choose another folder, or hold fewer."
        with disk_refusals(folder, cure):
            folder.mkdir(parents=True, exist_ok=True)
            old = [folder / Path(name).name for name in _ring(folder).get("files", [])]
            free = shutil.disk_usage(folder).free + sum(map(_space, old))
            if free < needed:
                raise WriteFailed(f"the disk has {free / GIBIBYTE:.1f} GiB left")
            for path in old:
                path.unlink(missing_ok=True)  # whoever still reads it keeps what was in it
            files = [path.name for path in _paths(folder, settings).values()]
            write_json(folder / RING, {_MARK: FORMAT, "identity": identity, "files": files})
            for name, path in _paths(folder, settings).items():
                with path.open("xb") as file:
                    shape = (settings.ring, *settings.views[name], 3)
                    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                    file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)))
        return cls._open(folder, settings, identity)

    @classmethod
    def _open(cls, folder: Path, settings: _Settings, identity: str) -> _Pictures:
        arrays: dict[str, Frames] = {}
        files: dict[str, tuple[BinaryIO, int]] = {}
        with ExitStack() as stack:
            for name, path in _paths(folder, settings).items():
                arrays[name] = _mapped(path, (settings.ring, *settings.views[name], 3))
                with disk_refusals(path, "Make the file writable, or begin again."):
                    file = stack.enter_context(path.open("r+b", buffering=0))
                    files[name] = (file, path.stat().st_size - arrays[name].nbytes)
            pictures = cls(folder, identity, arrays, files)
            weakref.finalize(pictures, stack.pop_all().close)
        return pictures

    def write(self, place: int, frames: Mapping[str, Frames]) -> int:
        """Writes the pictures of one place. Returns their checksum. Raises WriteFailed."""
        checksum = 0
        with disk_refusals(self.folder, "Free some space there, then go on from the last checkpoint."):
            for name, (file, begin) in self._files.items():
                data = frames[name].data.cast("B")
                checksum = zlib.crc32(data, checksum)
                file.seek(begin + place * len(data))
                while len(data):
                    data = data[file.write(data) or 0 :]
        return checksum

    def flush(self) -> None:
        """Lets the system write everything to the disk. Raises RunError if the folder is another buffer's by now."""
        if _ring(self.folder).get("identity") != self.identity:
            what = "the pictures of this replay buffer were deleted, or taken over by another one"
            raise RunError(what, where=str(self.folder), cure="Give each run a folder of its own, and begin this one again.")
        for file, _ in self._files.values():
            os.fsync(file.fileno())

    def to_record(self, checkpoint: Path) -> dict[str, str]:
        """Where a checkpoint finds them. Seen from the checkpoint too, since both may be moved together."""
        try:
            relative = os.path.relpath(self.folder, checkpoint)
        except ValueError:  # on another drive
            relative = str(self.folder)
        return {"identity": self.identity, "relative": relative, "absolute": str(self.folder)}

    @classmethod
    def of_checkpoint(cls, record: Mapping[str, str], settings: _Settings, checkpoint: Path, moved: Path | None) -> _Pictures:
        """Those that a checkpoint names. Raises RunError if they are not there."""
        named = [checkpoint / record["relative"], Path(record["absolute"])]
        places = [Path(os.path.abspath(place)) for place in (named if moved is None else [moved])]
        for folder in places:
            if _ring(folder).get("identity") == record["identity"]:
                return cls._open(folder, settings, record["identity"])
        what = f"the pictures of this checkpoint are not in {' or '.join(str(place) for place in dict.fromkeys(places))}"
        raise RunError(what, where=str(checkpoint), cure="They were moved, deleted or replaced: put them back, or begin again.")

    def verify(self, places: npt.NDArray[np.int64], checksums: npt.NDArray[np.uint32], checkpoint: Path) -> None:
        """Raises RunError if the pictures at `places` are not those of a checkpoint. Reads them all."""
        for place, expected in zip(places.tolist(), checksums.tolist(), strict=True):
            checksum = 0
            for array in self.arrays.values():
                checksum = zlib.crc32(array[place].data.cast("B"), checksum)
            if checksum != expected:
                what = f"pictures in {self.folder} were overwritten since this checkpoint, or changed"
                cure = "Use a newer checkpoint, or begin again; with a larger margin a checkpoint stays good for longer."
                raise RunError(what, where=str(checkpoint), cure=cure)


def _paths(folder: Path, settings: _Settings) -> dict[str, Path]:
    names = enumerate(settings.views)
    return {name: folder / f"{number}-{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:40]}.npy" for number, name in names}


def _ring(folder: Path) -> dict[str, Any]:
    """What is written down of the pictures in a folder; nothing if it holds none."""
    try:
        record = json.loads((folder / RING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get(_MARK) == FORMAT else {}


def _space(path: Path) -> int:
    """Bytes that a file takes on the disk; 0 if it is not there."""
    try:
        return int(getattr(path.stat(), "st_blocks", 0)) * 512
    except OSError:
        return 0


def _mapped(path: Path, shape: tuple[int, ...]) -> Frames:
    """The pictures of a file, not to be written to. Raises RunError."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        what = f"pictures of a replay buffer cannot be read ({type(error).__name__})"
        raise RunError(what, where=str(path), cure=_DAMAGED) from error
    if array.shape != shape or array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise RunError(f"holds {array.dtype}{array.shape} and not the pictures uint8{shape}", where=str(path), cure=_DAMAGED)
    return array
