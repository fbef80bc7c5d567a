"""Learning while acting, episode by episode: a policy acts, its episodes join a buffer, and an offline algorithm goes on learning from it.

The problem: an algorithm made for recorded data (implicit Q-learning) is to learn from data that grows, under rewards that change each
time a reward model is fitted again. So a run is made of rounds. In each of them the policy acts for some episodes, drawing its actions;
the buffer takes them in whole and drops its oldest whole ones; perhaps a feedback session is held, after which every reward in the buffer
is found anew; then the algorithm makes its updates on all that is there. Round 0 acts nowhere: it holds the first session on the
demonstrations that the buffer begins with, and learns from those.

The number of updates is known before the first, so that the learning rate falls along its whole length.

Knows no world, no rater and no reward model: those are a `World` and a `Rewards`, given by whoever builds the run.

A checkpoint after each round keeps the actions of the episodes and not their pictures: worlds are determined by task and actions, so a
run that goes on carries them out again (some thousand steps a second) and compares digests. Writes `checkpoint/`, `metrics.jsonl` (a line
a round) and `evaluations.jsonl` (a line an evaluation), as `guerdon.training.online_records` describes them, and in the end `policy/`.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon.algorithms.iql import IQL
from guerdon.datasets.minari import RecordedEpisode
from guerdon.errors import PolicyError, RunError, UsageError
from guerdon.interfaces import Actor, Dataset
from guerdon.machine import Device, Machine, quick_products
from guerdon.networks import PolicyNetwork
from guerdon.records import EpisodeInfo, Frames, Task, array_digest, canonical_json, digest
from guerdon.seeding import generator, stream_seed
from guerdon.training.online_records import EVALUATIONS, METRICS, Checkpoints, Lines, Outcome, evaluation_line, read_state, write_state
from guerdon.training.policy import Policy, save_policy
from guerdon.training.tensorboard import TensorBoard
from guerdon.transitions import ObservationSpec, Sampler, Transitions, Vocabulary

POLICY = "policy"
"""Folder of the policy in that of its run."""

Rewarded = npt.NDArray[np.float32]
"""(T,) rewards of an episode's transitions, NaN where unknown."""
Progress = Callable[[int, int], object]
"""Told after each round how many are done, of how many."""


# --- episodes in memory -------------------------------------------------------------------------------------------------------------


class EpisodeDataset(Dataset):
    """Episodes in memory as a dataset; nothing is copied."""

    def __init__(self, episodes: Sequence[RecordedEpisode], action_names: Sequence[str], digests: Sequence[str] | None = None) -> None:
        """Args: episodes: at least one, with the same views and vectors; digests: of each episode (`digest_of`), if they are known."""
        if not episodes:
            raise UsageError("a dataset in memory needs at least one episode")
        self._episodes = list(episodes)
        self.path = Path("episodes in memory")
        self.action_names = tuple(action_names)
        self.views, self.vectors = tuple(episodes[0].frames), tuple(episodes[0].vectors)
        self._fingerprint = digest("guerdon episodes in memory 1", *(digests or map(digest_of, episodes)))

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def environment(self) -> Mapping[str, Any]:
        return {}

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> EpisodeInfo:
        episode = self._episodes[index]
        length = len(episode.rewards)
        return EpisodeInfo(index, length, episode.terminated, episode.truncated, episode.annotations, episode.metadata)

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        return self._episodes[index].frames[view][start:stop]

    def vector(self, index: int, name: str) -> npt.NDArray[np.float32]:
        return self._episodes[index].vectors[name]

    def actions(self, index: int) -> npt.NDArray[Any]:
        return self._episodes[index].actions

    def rewards(self, index: int) -> npt.NDArray[np.float64]:
        return np.asarray(self._episodes[index].rewards, np.float64)

    def privileged(self, index: int) -> Mapping[str, npt.NDArray[Any]]:
        return self._episodes[index].privileged


def digest_of(episode: RecordedEpisode) -> str:
    """Digest of what was seen, done and said in an episode."""
    arrays: list[npt.NDArray[Any]] = [*episode.frames.values(), *episode.vectors.values(), np.asarray(episode.actions)]
    return digest("guerdon episode 1", *(each.instruction for each in episode.annotations), *(array_digest(array) for array in arrays))


def piece_of(episode: RecordedEpisode, start: int, length: int, metadata: Mapping[str, Any]) -> RecordedEpisode:
    """The transitions [start, start + length) of an episode as an episode of its own, in the words of the whole.

    Spans are left out, since they may begin before the piece. A piece ends in truth only where its episode does.
    """
    total, stop = len(episode.rewards), start + length
    last = stop == total

    def cut(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values[start : stop + (len(values) > total)]

    return RecordedEpisode(
        frames={view: cut(frames) for view, frames in episode.frames.items()},
        actions=episode.actions[start:stop],
        rewards=episode.rewards[start:stop],
        terminated=episode.terminated and last,
        truncated=not (episode.terminated and last),
        annotations=tuple(replace(annotation, spans=()) for annotation in episode.annotations),
        metadata=dict(metadata),
        privileged={name: cut(values) for name, values in episode.privileged.items()},
        vectors={name: cut(values) for name, values in episode.vectors.items()},
    )


@dataclass
class Held:
    """An episode in the buffer."""

    number: int
    """Counted from 0 since the run began, demonstrations first."""
    episode: RecordedEpisode
    digest: str
    is_demonstration: bool
    reward: Rewarded | None = None
    """What it is learned from; None until it was found."""

    def __len__(self) -> int:
        return len(self.episode.rewards)


class EpisodeBuffer:
    """Whole episodes, the oldest of which make room for new ones."""

    def __init__(self, capacity: int, action_names: Sequence[str], *, keep_demonstrations: bool = True) -> None:
        """Args: capacity: most transitions, >= 1; keep_demonstrations: whether they stay whatever comes."""
        if capacity < 1:
            raise UsageError(f"a buffer holds at least one transition, not {capacity}")
        self.capacity, self.action_names, self._keep = capacity, tuple(action_names), keep_demonstrations
        self.held: list[Held] = []
        self.added = 0
        """Episodes ever added."""

    def __len__(self) -> int:
        """Number of transitions."""
        return sum(map(len, self.held))

    def add(self, episode: RecordedEpisode, *, is_demonstration: bool = False) -> None:
        """Takes an episode in and drops the oldest that there is no room for any more.

        Raises:
            UsageError: if there is no room for it, even when all that may be dropped is.
        """
        self._put(Held(self.added, episode, digest_of(episode), is_demonstration))

    def restore(self, number: int, episode: RecordedEpisode, *, is_demonstration: bool, reward: Rewarded | None) -> None:
        """Takes an episode in again, under its number and with its reward."""
        self.held.append(Held(number, episode, digest_of(episode), is_demonstration, reward))
        self.added = number + 1

    def _put(self, new: Held) -> None:
        fixed = sum(len(held) for held in self.held if self._stays(held))
        if fixed + len(new) > self.capacity:
            what = f"the buffer has room for {self.capacity} transitions; {fixed} stay in it, and an episode of {len(new)} does not fit"
            raise UsageError(what, cure="Give it a larger capacity, or do not keep the demonstrations.")
        self.held.append(new)
        self.added += 1
        excess = len(self) - self.capacity
        while excess > 0:
            oldest = next(place for place, held in enumerate(self.held) if not self._stays(held))
            excess -= len(self.held.pop(oldest))

    def _stays(self, held: Held) -> bool:
        return self._keep and held.is_demonstration

    def dataset(self, places: Sequence[int] | None = None) -> EpisodeDataset:
        """The episodes at `places` (positions in `held`; all if None) as a dataset."""
        chosen = [self.held[place] for place in (range(len(self.held)) if places is None else places)]
        return EpisodeDataset([held.episode for held in chosen], self.action_names, [held.digest for held in chosen])

    def transitions(self, *, views: Sequence[str], memory: bool, vocabulary: Vocabulary) -> Transitions:
        """What a policy learns from now. Raises what `Transitions.build` raises."""
        rewards = {(place, 0): held.reward for place, held in enumerate(self.held) if held.reward is not None}
        return Transitions.build(self.dataset(), rewards, views=views, memory=memory, vocabulary=vocabulary)

    def segments(self, random: np.random.Generator, count: int, length: int, *, pairs: bool = False) -> list[RecordedEpisode]:
        """Pieces of `length` transitions, drawn evenly from all places where one begins, none of them twice; fewer than `count` if there
        are no more.

        Args:
            pairs: `count` pairs instead, one after the other: each second piece is drawn from those with the same instruction as the first,
                and pieces may occur again in other pairs.

        Returns:
            Episodes of their own (see `piece_of`), whose metadata name the episode ("episode"), the step ("step") and the task.
        """
        starts = np.array([max(len(held) - length + 1, 0) for held in self.held])
        ends = np.cumsum(starts)
        total = int(ends[-1]) if len(ends) else 0
        if not pairs:
            return [self._piece(ends, place, length) for place in random.choice(total, min(count, total), replace=False).tolist()]
        words = np.repeat(np.array([held.episode.annotations[0].instruction for held in self.held]), starts)
        alike = {text: np.flatnonzero(words == text) for text in sorted(set(words.tolist()))}
        comparable = np.concatenate([places for places in alike.values() if len(places) > 1] or [np.zeros(0, np.int64)])
        drawn: list[int] = []
        for first in random.choice(comparable, count if len(comparable) else 0).tolist():
            others = alike[str(words[first])]
            drawn += [first, int(random.choice(others[others != first]))]
        return [self._piece(ends, place, length) for place in drawn]

    def _piece(self, ends: npt.NDArray[np.int64], place: int, length: int) -> RecordedEpisode:
        owner = int(np.searchsorted(ends, place, side="right"))
        held = self.held[owner]
        step = place - (int(ends[owner - 1]) if owner else 0)
        facts = {"episode": held.number, "step": step}
        if "task" in held.episode.metadata:
            facts["task"] = held.episode.metadata["task"]
        return piece_of(held.episode, step, length, facts)


# --- acting -------------------------------------------------------------------------------------------------------------------------


class ExploringPolicy(Policy):
    """A policy that tries things: its actions are drawn, from its distribution made flatter or steeper, and sometimes from all alike."""

    def __init__(self, network: PolicyNetwork, spec: ObservationSpec, *, temperature: float, random_actions: float, seed: int) -> None:
        """Args: temperature: > 0, what the logits are divided by; random_actions: probability of an action from all alike."""
        if spec.action_size:
            raise PolicyError("exploring by temperature needs named actions", cure="Use an algorithm for continuous actions.")
        super().__init__(network, spec, sample=True, seed=seed)
        self._temperature, self._random_actions = temperature, random_actions

    def _choose(self, said: Any) -> Tensor:
        share = self._random_actions / said.shape[-1]
        likely = (1 - self._random_actions) * (said / self._temperature).softmax(-1) + share
        return torch.multinomial(likely, 1, generator=self._random).squeeze(-1)


class _Again(Actor):
    """Carries out recorded actions again."""

    views = ()

    def __init__(self, actions: Mapping[str, npt.NDArray[Any]]) -> None:
        self._actions = actions
        self._under_way: list[npt.NDArray[Any]] = []
        self._step = 0

    def reset(self, tasks: Sequence[Task]) -> None:
        self._under_way, self._step = [self._actions[task.id] for task in tasks], 0

    def act(self, seen: Mapping[str, npt.NDArray[Any]], active: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        del seen, active
        now = [actions[min(self._step, len(actions) - 1)] for actions in self._under_way]
        self._step += 1
        return np.array(now)


class World(ABC):
    """Tasks, and what becomes of them when somebody acts."""

    action_names: tuple[str, ...]
    views: tuple[str, ...]
    """What the policy looks at."""

    @abstractmethod
    def demonstrations(self) -> Sequence[RecordedEpisode]:
        """What the buffer begins with, the same at every call; each has its task in its metadata."""

    @abstractmethod
    def draw(self, random: np.random.Generator) -> Task:
        """A task to be carried out."""

    @abstractmethod
    def carry_out(self, actor: Actor, tasks: Sequence[Task]) -> list[RecordedEpisode]:
        """Lets `actor` carry out tasks with different ids; what came of each, in their order, the task in its metadata. `rewards` are what
        the simulator says, and `privileged` holds all that rewards are found from."""

    @abstractmethod
    def evaluate(self, actor: Actor) -> list[dict[str, Any]]:
        """A JSON-ready row for each task of a frozen list: "task", "start", "return", "success" and whatever else."""


class Rewards(ABC):
    """Where rewards come from."""

    name: ClassVar[str] = ""

    @abstractmethod
    def of(self, episodes: EpisodeDataset) -> list[Rewarded]:
        """Rewards of each episode, as they are now."""

    def hold(self, number: int, buffer: EpisodeBuffer) -> bool:
        """Holds feedback session `number` if there is to be one; whether rewards have another meaning now. The same call with the same
        buffer gives the same, and pays for nothing twice."""
        del number, buffer
        return False

    def state(self) -> dict[str, Any]:
        """JSON-ready: what `load_state` needs to know again what is known now."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`. Nothing is asked."""
        del state

    def account(self) -> dict[str, float]:
        """Labels obtained, requests made and dollars paid so far: "labels", "requests", "dollars"."""
        return {"labels": 0, "requests": 0, "dollars": 0.0}


# --- the run ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """Rounds of acting, feedback and learning."""

    rounds: int = 50
    """Rounds in which the policy acts."""
    episodes: int = 20
    """Episodes in a round."""
    updates: int = 200
    """Gradient steps in a round."""
    first_updates: int | None = None
    """Gradient steps on the demonstrations before the policy acts for the first time; as many as in a round if not given."""
    session_every: int = 5
    """Rounds from one feedback session to the next; the first is held before the policy acts."""
    evaluate_every: int = 10
    """Rounds from one evaluation to the next; the first is before the policy acts, the last at the end."""
    capacity: int = 50_000
    """Transitions that the buffer has room for."""
    keep_demonstrations: bool = True
    """Keep the demonstrations in the buffer when it is full."""
    temperature: float = 1.0
    """Of the distribution that actions are drawn from while exploring: above 1 flatter, below 1 steeper."""
    random_actions: float = 0.05
    """Probability with which an action is any of all alike while exploring."""
    memory: bool = True
    """Whether the policy remembers its episode. Without a memory it learns from single transitions, which is several times faster where
    pictures are those of a camera; in a grid world, whose pictures are made of few tiles, it is not, and does worse."""
    sequences: int | None = None
    """Episodes in a batch (8 if not given), or single transitions of policies without a memory (256)."""
    context: int = 64
    """Most transitions that a gradient reaches back through, with a memory."""
    device: Device = "cpu"
    """Where to learn: cpu, or cuda for a graphics card. The latter is written but was never tried on one."""

    def __post_init__(self) -> None:
        for name in ("rounds", "episodes", "updates", "session_every", "evaluate_every", "capacity", "context"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, got {getattr(self, name)}")
        if (self.first_updates or 0) < 0 or (self.sequences is not None and self.sequences < 1):
            raise UsageError("first_updates are at least 0 and sequences at least 1")
        if not 0 < self.temperature < math.inf or not 0 <= self.random_actions <= 1:
            raise UsageError("temperature is a number above 0, random_actions a probability")

    def updates_of(self, number: int) -> int:
        """Gradient steps of a round, which is 0 for the one before the policy acts."""
        return self.updates if number or self.first_updates is None else self.first_updates

    @property
    def all_updates(self) -> int:
        """Gradient steps of the whole run."""
        return self.updates_of(0) + self.rounds * self.updates


class OnlineEpisodes:
    """A run: the policy, its buffer and where they stand.

    Raises (also from `run`):
        RunError: if the checkpoint is damaged, or the world is no longer the one in which the run began.
        UsageError: if the buffer is too small.
        PolicyError: if a loss stops being a finite number.
        WriteFailed: if the disk is full or not writable.
    """

    def __init__(self, world: World, rewards: Rewards, config: Config, algorithm: IQL.Config, *, seed: int, out: Path) -> None:
        """Args: algorithm: settings of learning; seed: of everything; out: folder of the run, which holds nothing or a run with the same
        settings (`guerdon.training.online_records.begin_or_go_on`)."""
        self._world, self._rewards, self.config, self._algorithm = world, rewards, config, algorithm
        self._seed, self._out = seed, Path(out)
        self._machine, self._checkpoints = Machine.of(config.device), Checkpoints(self._out)
        self._demonstrations = list(world.demonstrations())
        self._vocabulary = Vocabulary.of(episode.annotations[0].instruction for episode in self._demonstrations)
        self.buffer = EpisodeBuffer(config.capacity, world.action_names, keep_demonstrations=config.keep_demonstrations)
        self.learner: IQL | None = None
        self._spec: ObservationSpec | None = None
        self.rounds_done = -1
        """The last round that is over; -1 at the very beginning."""
        self.sessions = 0
        """Times that `Rewards.hold` was called."""
        self.steps = 0
        """Actions that the policy took, demonstrations and evaluations not counted."""

    def run(self, progress: Progress | None = None, *, log_to_tensorboard: bool = False) -> Path:
        """Makes all rounds that are left, with the numbers for TensorBoard too if asked for; returns the folder of the policy."""
        self._restore()
        until = self.steps if self.rounds_done >= 0 else -1
        metrics, evaluations = (Lines(self._out / name, until=until) for name in (METRICS, EVALUATIONS))
        with ExitStack() as open_files:
            shown = [metrics.append]
            if log_to_tensorboard:
                board = TensorBoard(self._out, done=until)
                open_files.callback(board.close)
                shown.append(lambda line: board.write(self.steps, line))
            self._rounds(progress, shown, evaluations)
        assert self.learner is not None
        assert self._spec is not None
        facts = {"algorithm": "iql", "config": asdict(self._algorithm), "seed": self._seed, "updates": self.config.all_updates}
        save_policy(self._out / POLICY, self.learner.policy, self._spec, facts)
        return self._out / POLICY

    def _rounds(self, progress: Progress | None, shown: Sequence[Callable[[dict[str, Any]], None]], evaluations: Lines) -> None:
        for number in range(self.rounds_done + 1, self.config.rounds + 1):
            began = time.process_time()
            line = self._round(number)
            if number % self.config.evaluate_every == 0 or number == self.config.rounds:
                found = self._evaluate()
                evaluations.append(found)
                line |= {name: value for name, value in found.items() if name.startswith(("success", "return"))}
            line["seconds"] = round(time.process_time() - began, 3)
            for show in shown:
                show(line)
            self.rounds_done = number
            self._checkpoints.write(self.steps, lambda folder: write_state(folder, self._state()))
            if progress is not None:
                progress(number + 1, self.config.rounds + 1)

    def _evaluate(self) -> dict[str, Any]:
        rows = self._world.evaluate(self._acting())
        outcomes = [Outcome(row["task"], bool(row["success"]), float(row["return"]), int(row["steps"])) for row in rows]
        of_starts = {start: [row for row in rows if row["start"] == start] for start in sorted({row["start"] for row in rows})}
        more = {f"success_{start}": _mean(row["success"] for row in some) for start, some in of_starts.items()}
        more |= {f"return_{start}": _mean(row["return"] for row in some) for start, some in of_starts.items()}
        return {**evaluation_line(self.steps, outcomes, **more, **self._rewards.account()), "outcomes": rows}

    def _round(self, number: int) -> dict[str, Any]:
        """Acts, holds a session if one is due, learns; returns the line of metrics."""
        acted = self._act(number) if number else []
        changed = False
        if number % self.config.session_every == 0:
            changed = self._rewards.hold(self.sessions, self.buffer)
            self.sessions += 1
        self._relabel(everything=changed)
        losses = self._learn(number)
        new = [held for held in self.buffer.held if held.number >= self.buffer.added - len(acted)] if acted else []
        return {
            "step": self.steps,
            "round": number,
            "sessions": self.sessions,
            **self._rewards.account(),
            "transitions": len(self.buffer),
            **_facts("exploring", acted),
            "reward": _mean(value for held in new for value in np.asarray(held.reward)[np.isfinite(np.asarray(held.reward))].tolist()),
            **losses,
        }

    def _act(self, number: int) -> list[RecordedEpisode]:
        random = generator(self._seed, "tasks of round", number)
        tasks = [self._world.draw(random) for _ in range(self.config.episodes)]
        actor = self._acting(exploring=stream_seed(self._seed, "exploring", number))
        episodes = self._carried_out(actor, tasks)
        for episode in episodes:
            self.buffer.add(episode)
        self.steps += sum(len(episode.rewards) for episode in episodes)
        return episodes

    def _carried_out(self, actor: Actor, tasks: Sequence[Task]) -> list[RecordedEpisode]:
        """What came of tasks, some of which may be the same."""
        episodes = self._world.carry_out(actor, [replace(task, id=_numbered(task, place)) for place, task in enumerate(tasks)])
        return [
            replace(episode, metadata={**episode.metadata, "task": task.to_record()})
            for episode, task in zip(episodes, tasks, strict=True)
        ]  # fmt: skip

    def _carried_out_again(self, tasks: Sequence[Task], actions: Sequence[npt.NDArray[Any]]) -> list[RecordedEpisode]:
        """What came of tasks in which these actions were taken."""
        if not tasks:
            return []
        recorded = {_numbered(task, place): taken for place, (task, taken) in enumerate(zip(tasks, actions, strict=True))}
        return self._carried_out(_Again(recorded), tasks)

    def _acting(self, exploring: int | None = None) -> Policy:
        """A copy of the policy, since acting needs weights that stand still. Explores, with a seed, or does what is likeliest."""
        assert self.learner is not None
        assert self._spec is not None
        network = deepcopy(self.learner.policy).cpu()
        if exploring is None:
            return Policy(network, self._spec)
        c = self.config
        return ExploringPolicy(network, self._spec, temperature=c.temperature, random_actions=c.random_actions, seed=exploring)

    def _relabel(self, *, everything: bool) -> None:
        """Finds the rewards of all episodes, or of those that have none yet."""
        places = [place for place, held in enumerate(self.buffer.held) if everything or held.reward is None]
        if not places:
            return
        for place, reward in zip(places, self._rewards.of(self.buffer.dataset(places)), strict=True):
            self.buffer.held[place].reward = reward

    def _transitions(self) -> Transitions:
        return self.buffer.transitions(views=self._world.views, memory=self.config.memory, vocabulary=self._vocabulary)

    def _begin_learning(self, transitions: Transitions) -> IQL:
        self._spec = transitions.spec
        learner = IQL(transitions, self._algorithm, seed=self._seed, updates=self.config.all_updates)
        learner.to(self._machine.device)
        return learner

    def _learn(self, number: int) -> dict[str, float]:
        """The round's updates; returns the means of their metrics."""
        transitions, count = self._transitions(), self.config.updates_of(number)
        if self.learner is None:
            self.learner = self._begin_learning(transitions)
        else:
            self.learner.continue_with(transitions)
        known = {"coverage": transitions.coverage}
        if not count:
            return known
        remembers = transitions.spec.remembers
        sequences = self.config.sequences or (8 if remembers else 256)
        context = self.config.context if remembers else 1
        sampler = Sampler(transitions, sequences=sequences, context=context, seed=stream_seed(self._seed, "batches of round", number))
        if remembers or self._machine.device.type != "cpu":
            sums = self.learner.learn(sampler, count, self._machine)
        else:
            with quick_products():
                sums = self.learner.learn(sampler, count, self._machine)
        means = {name: float(total) / count for name, total in sums.items()}
        broken = [name for name, mean in means.items() if not math.isfinite(mean)]
        if broken:
            what = f"learning diverged: {', '.join(broken)} is not finite in round {number}"
            raise PolicyError(what, where=str(self._out), cure="Use a lower learning rate or smaller rewards.")
        return known | means

    # --- going on ---------------------------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        """All that an exact continuation needs. Of episodes the task and the actions: what was seen follows from them."""
        assert self.learner is not None
        tasks: dict[str, int] = {}
        episodes = []
        for held in self.buffer.held:
            task = tasks.setdefault(canonical_json(held.episode.metadata["task"]), len(tasks))
            episodes.append([held.number, held.is_demonstration, task, held.digest])
        return {
            "round": self.rounds_done,
            "sessions": self.sessions,
            "steps": self.steps,
            "added": self.buffer.added,
            "tasks": list(tasks),
            "episodes": episodes,
            "lengths": np.array([len(held) for held in self.buffer.held]),
            "actions": np.concatenate([np.asarray(held.episode.actions, np.int64) for held in self.buffer.held]),
            "rewards": np.concatenate([np.asarray(held.reward, np.float32) for held in self.buffer.held]),
            "known": self._rewards.state(),
            "learner": self.learner.state(),
        }

    def _restore(self) -> None:
        folder = self._checkpoints.latest()
        if folder is None:
            for episode in self._demonstrations:
                self.buffer.add(episode, is_demonstration=True)
            return
        state = read_state(folder)
        try:
            self._restore_buffer(state, folder)
            self.rounds_done, self.sessions, self.steps = state["round"], state["sessions"], state["steps"]
            self.learner = self._begin_learning(self._transitions())  # with the scale of rewards that was in use
            self.learner.load_state(state["learner"])
        except (KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            cure = "Begin again in another folder."
            raise RunError(f"is damaged ({type(error).__name__}: {error})", where=str(folder), cure=cure) from error
        self._rewards.load_state(state["known"])

    def _restore_buffer(self, state: Mapping[str, Any], folder: Path) -> None:
        places = np.cumsum(state["lengths"])[:-1]
        actions, rewards = np.split(state["actions"], places), np.split(state["rewards"], places)
        tasks = [Task.from_record(json.loads(text)) for text in state["tasks"]]
        acted = [place for place, (_, shown, _, _) in enumerate(state["episodes"]) if not shown]
        again = self._carried_out_again([tasks[state["episodes"][place][2]] for place in acted], [actions[place] for place in acted])
        found = dict(zip(acted, again, strict=True))
        for place, (number, shown, _, expected) in enumerate(state["episodes"]):
            episode = self._demonstrations[number] if shown else found[place]
            self.buffer.restore(number, episode, is_demonstration=shown, reward=rewards[place])
            if self.buffer.held[-1].digest != expected:
                what = f"the world no longer gives what was seen in episode {number}"
                cure = "Install the versions of the simulator that the run began with, or begin again in another folder."
                raise RunError(what, where=str(folder), cure=cure)
        self.buffer.added = state["added"]


def _numbered(task: Task, place: int) -> str:
    """An id for one of several tasks that may be the same."""
    return f"{task.id} #{place}"


def _mean(values: Iterable[float]) -> float | None:
    """None if there are none."""
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def _facts(name: str, episodes: Sequence[RecordedEpisode]) -> dict[str, Any]:
    """How the episodes of a round went: share that succeeded, means of the world's own rewards and of the steps."""
    return {
        f"{name}_success": _mean(episode.terminated for episode in episodes),
        f"{name}_return": _mean(float(np.sum(episode.rewards)) for episode in episodes),
        f"{name}_steps": _mean(len(episode.rewards) for episode in episodes),
    }
