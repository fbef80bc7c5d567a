"""Every extension point of the package, on one page.

A thing is added by adding one file to the folder of its kind, named after the thing, with one concrete class in it (and its `Config`).
Classes here are abstract; classes elsewhere are final: vary behaviour by wrapping, not by subclassing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from guerdon.errors import UsageError
from guerdon.records import (
    EpisodeInfo,
    Exchange,
    Failure,
    Frames,
    Label,
    Price,
    Quote,
    Rater,
    Reply,
    Request,
    Sample,
    Task,
    Transcript,
)

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


class Dataset(ABC):
    """Recorded behaviour, read only and lazily. Pictures are read from disk when asked for."""

    path: Path
    views: tuple[str, ...]
    """Names of the cameras, the first one being the default."""
    action_names: tuple[str, ...]
    """Name of each discrete action by index; empty for continuous actions."""
    vectors: tuple[str, ...] = ()
    """Names of the observations that are vectors of numbers, such as a robot's state."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of the content: equal for equal data, wherever it lies; different after any change."""

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, Any]:
        """What the recorder wrote about the world: {"name": "babyai", ...}; empty if it wrote nothing."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of episodes."""

    @abstractmethod
    def episode(self, index: int) -> EpisodeInfo:
        """What is known of episode `index` (0-based). Raises IndexError outside the range, DatasetError for damaged data."""

    @abstractmethod
    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        """Observations start .. stop-1 of an episode: (stop - start, H, W, 3) uint8 RGB upright. Raises DatasetError, KeyError (view)."""

    def vector(self, index: int, name: str) -> npt.NDArray[np.float32]:
        """Observations of an episode that are vectors: (T+1, D) float32. Raises DatasetError, KeyError (name)."""
        del index
        raise KeyError(name)

    @abstractmethod
    def actions(self, index: int) -> npt.NDArray[Any]:
        """(T,) int64 for discrete actions, (T, A) float32 for continuous ones."""

    @abstractmethod
    def rewards(self, index: int) -> Floats:
        """(T,) float64: the rewards stored in the dataset itself."""

    @abstractmethod
    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        """Ground truth that no rater and no policy may see, e.g. "contribution" (T,), "progress" (T+1,); empty if there is none."""

    def episodes(self) -> Iterator[EpisodeInfo]:
        """All episodes in order."""
        return (self.episode(index) for index in range(len(self)))


class DatasetFormat(ABC):
    """A file format."""

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Whether `path` looks like this format. Reads no more than a few file names; never raises."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, options: Mapping[str, Any]) -> Dataset:
        """Opens `path`. Raises DatasetError with file and place."""


class Provider(ABC):
    """A rater that can be asked: a vendor, a local model, a script, a recording."""

    rater: Rater
    remote: str = ""
    """Host that frames are sent to; empty if they stay on this machine. Asking a remote provider needs the user's consent."""
    price: Price | None = None
    """What the user says that it costs; wins over any price list."""

    @abstractmethod
    async def ask(self, request: Request, *, repeat: int = 0) -> Reply | Failure:
        """Asks once: exactly one call, no retries. Returns a Failure instead of raising; raises only ProviderError, when every further
        request would fail in the same way before being sent. `repeat` tells equal questions apart, for raters with a random state."""

    def quote(self, request: Request) -> Quote | None:
        """The most that one attempt at `request` can cost: all its input, the whole allowance of output and thinking. None if unknown."""
        del request
        return None

    def batches(self) -> Batches | None:
        """The vendor's queue for requests that may wait, at a lower price; None if it has none."""
        return None

    async def close(self) -> None:
        """Gives connections back. Nothing may be asked afterwards."""
        return


@dataclass(frozen=True)
class BatchStatus:
    """How a vendor says that a batch stands."""

    state: Literal["running", "ended", "failed"]
    """`ended`: results can be fetched, perhaps not for every request; `failed`: the vendor did none of it."""
    finished: int = 0
    """Requests that have an outcome, as far as the vendor says so."""
    rest: Failure | None = None
    """What became of the requests that have no result of their own (expired, cancelled, refused as a whole); None if nobody knows."""


class BatchDraft(ABC):
    """Requests in a vendor's words, in a temporary file until they are handed over: pictures are not kept in memory."""

    size: int = 0
    """Requests in it."""

    @abstractmethod
    async def add(self, name: str, request: Request, repeat: int) -> bool | Failure:
        """Puts a request into the draft, under a name of ours: at most 64 letters, digits and hyphens. Several calls may be under way.

        Returns:
            True; False if it has no place in this batch any more (begin another); a Failure if no batch can carry it.

        Raises:
            WriteFailed: if the disk is full.
        """

    @abstractmethod
    def close(self) -> None:
        """Deletes the file. Closing twice does nothing."""


class Batches(ABC):
    """A vendor's queue for requests that may wait for up to a day. Knows nothing of the store: who uses it writes the intent down first."""

    largest: int
    """The most requests in one batch."""

    @abstractmethod
    def quote(self, request: Request) -> Quote | None:
        """As `Provider.quote`, at the price of batches."""

    @abstractmethod
    def draft(self, largest: int | None = None) -> BatchDraft:
        """An empty draft that takes at most `largest` requests, and no more than the vendor takes."""

    @abstractmethod
    async def create(self, marker: str, draft: BatchDraft) -> str | Failure | None:
        """Hands a draft over; exactly one call that can bring a batch into being.

        Args:
            marker: a name of ours for the batch, put where `find` can see it: at most 32 lower-case letters and digits. The names of the
                draft's requests begin with it and a hyphen.
            draft: of this object, not empty.

        Returns:
            The vendor's name of the batch; a Failure if certainly none came into being; None if nobody knows (ask `find` later).
        """

    @abstractmethod
    async def find(self, marker: str, *, since: float, size: int, others: Collection[str] = ()) -> str | Failure | None:
        """Looks for the batch that was handed over under `marker`, with `size` requests, not before `since` (seconds since 1970).
        It is none of `others` (the vendor's names).

        Returns:
            The vendor's name of the batch; None if the vendor has no such batch; a Failure if that cannot be said now, a final one if it
            will never be known.
        """

    @abstractmethod
    async def status(self, batch: str) -> BatchStatus | Failure:
        """How a batch stands. A Failure says that the question failed, not the batch."""

    @abstractmethod
    def results(self, batch: str, requests: Mapping[str, tuple[Request, int]]) -> AsyncIterator[tuple[str, Reply | Failure]]:
        """What became of each request of an ended batch, name -> (request, repeat), in any order, read line by line; a request without a
        result of its own is left out, and so are names that are not in `requests`. The requests' pictures are not looked at.

        Raises:
            ProviderError: if the list cannot be fetched now; what has been handed out counts.
            ResultsGone: if it never can be, because the vendor has it no more.
        """

    @abstractmethod
    async def cancel(self, batch: str) -> None:
        """Asks the vendor to do no more of it. What is done by then can still be fetched. Raises ProviderError if that failed."""

    @abstractmethod
    async def forget(self, marker: str, batch: str) -> None:
        """Deletes the pictures that the vendor keeps for a batch whose results have been recorded. Never raises: they expire anyway."""


Kind = Literal["windows", "pictures", "segments", "episodes", "picture pairs", "segment pairs"]
"""What is judged at a time: windows that cover an episode, single pictures (each the outcome of a transition), segments from anywhere,
whole episodes (or sub-tasks), or two pictures or segments with the same instruction."""


class Method(ABC):
    """A protocol of questions, and the reading of the answers. Knows no provider."""

    name: ClassVar[str]
    version: str
    """Changes whenever the prompts or the reading change what is asked."""
    scale: tuple[float, float]
    """Lowest and highest value of a label."""
    vote: ClassVar[Literal["median", "majority"]] = "median"
    """How several independent answers to one question become one label: the median of scores, the majority of classes."""
    samples: Kind = "windows"
    """What it wants to be shown."""

    @abstractmethod
    def next(self, sample: Sample, exchanges: Sequence[Exchange]) -> Request | None:
        """The next request of the conversation about `sample`, or None when nothing is left to ask. Pure: depends on its arguments only."""

    @abstractmethod
    def read(self, transcript: Transcript) -> list[Label]:
        """The labels that the transcript holds, one for each unit of the sample, failures included. Pure; never asks."""


@dataclass(frozen=True)
class Observation:
    """What an agent sees now."""

    frames: Mapping[str, Frames]
    """View name -> (H, W, 3) uint8 RGB."""
    vectors: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Name -> (D,) float32, such as a robot's state."""


@dataclass(frozen=True)
class Step:
    """What one action led to."""

    observation: Observation
    progress: float
    """Share of the task's sub-tasks completed so far, in [0, 1]."""
    terminated: bool
    """The task is completed, or cannot be completed any more."""
    reward: float = 0.0
    """What the environment itself says the action was worth; privileged: no rater and no policy may see it."""


class Environment(ABC):
    """A world in which tasks are carried out. One object carries out one task at a time."""

    views: tuple[str, ...]
    """Pictures that are drawn; the constructor takes `views=`, and none at all makes stepping faster."""
    action_names: tuple[str, ...]
    """Name of each discrete action by index; empty for continuous actions."""
    action_size: int = 0
    """A, the components of a continuous action, each in [-1, 1]; 0 for discrete actions."""

    @abstractmethod
    def reset(self, task: Task) -> Observation:
        """Builds the task's world at its start. Raises EnvironmentFailed."""

    @abstractmethod
    def step(self, action: Any) -> Step:
        """Carries out one action: a number below the number of names, or (A,) floats in [-1, 1]."""

    def close(self) -> None:
        """Gives resources back."""
        return


class Actor(ABC):
    """Something that acts: a trained policy or a baseline. Acts in several environments at once; keeps its memory of each."""

    views: tuple[str, ...] | None = None
    """Cameras it looks through, so that no others need be drawn; None if it may look through any."""

    @abstractmethod
    def reset(self, tasks: Sequence[Task]) -> None:
        """Begins one episode per task; slot i of later calls belongs to tasks[i]."""

    @abstractmethod
    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Actions, (B,) integers or (B, A) floats, for what is seen now: name -> pictures (B, H, W, 3) uint8 or vectors (B, D) float32.
        Slots that are not `active` (B,) have ended; what is returned for them is ignored."""


class Algorithm(ABC):
    """A way to learn a policy from recorded transitions: networks, optimiser and update rule."""

    name: ClassVar[str]

    @abstractmethod
    def update(self, batch: Any) -> dict[str, torch.Tensor]:
        """One gradient step on a batch (`guerdon.transitions.Batch`). Returns metrics, not yet synchronised with the host."""

    def learn(self, sampler: Any, count: int, machine: Any) -> dict[str, torch.Tensor]:
        """`count` gradient steps on a sampler's next batches. Returns the sums of their metrics, not yet synchronised with the host.

        An algorithm that has a quicker way than one `update` after the other overrides this; the numbers are the same but for rounding.

        Args:
            sampler: a `guerdon.transitions.Sampler`.
            machine: a `guerdon.machine.Machine`; the networks are on its device already.

        Raises:
            UsageError: if whole updates are to be compiled, which an algorithm need not offer.
        """
        self.require(sampler, machine)
        sums: dict[str, torch.Tensor] = {}
        for _ in range(count):
            batch = sampler.draw().to(machine.device)
            with machine.precision():
                metrics = self.update(batch)
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value.clone()
        return sums

    def require(self, sampler: Any, machine: Any) -> None:
        """Raises UsageError if it cannot learn from a sampler on a machine: if whole updates are to be compiled, which an algorithm need
        not offer."""
        del sampler
        if machine.compiled:
            what = f"{self.name} compiles no updates of such a policy"
            raise UsageError(what, cure="Leave out --compile: it is for policies that see a state and follow one instruction.")

    def to(self, device: torch.device) -> None:
        """Moves all networks to a device. Raises UsageError if the algorithm knows no other than the processor."""
        if device.type != "cpu":
            raise UsageError(f"{self.name} runs on the processor only", cure="Use --device cpu.")

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that an exact continuation needs: networks, targets, optimiser, step."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`: training goes on bit by bit as if it had never stopped."""


class OnlineAlgorithm(ABC):
    """A way to learn while acting: networks that choose continuous actions from states, and their update from what was experienced.

    The constructor takes the number of components of a state and of an action, `config=` and `seed=`. What it learns from is drawn from a
    `guerdon.replay_buffer.ReplayBuffer`; where the rewards there come from it does not know.
    """

    name: ClassVar[str]

    @abstractmethod
    def act(self, states: Floats, *, explore: bool) -> npt.NDArray[np.float32]:
        """Actions (B, A) in [-1, 1] for states (B, D): drawn from the policy to explore, else its likeliest ones."""

    @abstractmethod
    def update(self, experience: Any) -> dict[str, torch.Tensor]:
        """One update from N transitions (`guerdon.replay_buffer.Experience`). Returns metrics, not yet synchronised with the host."""

    @abstractmethod
    def forget_values(self) -> None:
        """Lets everything that estimates values begin anew, with other weights each time: the rewards it was learned from mean nothing any
        more. The policy stays."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that an exact continuation needs: networks, targets, optimisers, random states, counts."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`: learning and exploring go on bit by bit as if they had never stopped."""

    def to(self, device: torch.device) -> None:
        """Moves all networks to a device. Raises UsageError if the algorithm knows no other than the processor."""
        if device.type != "cpu":
            raise UsageError(f"{self.name} runs on the processor only", cure="Use --device cpu.")


class RewardModel(ABC):
    """A learned reward: an ensemble of networks that look at single transitions."""

    name: ClassVar[str]
    scale: tuple[float, float]
    """Lowest and highest value of a score."""

    @abstractmethod
    def score(self, steps: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and population standard deviation over the members, each (N,) float32, of N transitions (`guerdon.rewards.steps.Steps`).
        Carries no gradient."""
