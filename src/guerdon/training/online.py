"""Learning while acting, with rewards that are learned on the way: the loop, its checkpoints and its records. Knows no algorithm, no world,
and nobody who judges.

The problem: at first nobody knows what is good. So a few steps are taken at random, then the policy learns to go where it has not been
(state entropy), and only what was seen by then is judged for the first time. From there on it learns from the reward model, which new
judgements change every few thousand steps; after each change all stored rewards are computed anew. (The schedule is PEBBLE's, Lee et al.
2021, arXiv 2106.05091, as ERL-VLM uses it, arXiv 2506.12822.)

    step 1 .. random_steps              actions at random, no update
    .. first_session                    one update a step, towards states that are far from all others
    first_session                       judgements, reward model, all rewards anew, value networks begin anew, some updates at once
    then                                one update a step; every session_every steps judgements, reward model, all rewards anew

Where rewards come from is a `Rewards`: the world's own (known at once, so there is neither exploration nor a session), a fixed model's, or
one that is fitted in sessions. A session without a model (all judgements were the same) leaves the policy exploring until the next one.

A run is counted in steps and never in seconds. Everything that the next step depends on is in a checkpoint; the world, which cannot be
stored, is brought back by repeating the actions of the episode under way. What is repeated after a stop therefore gives the same numbers,
the same questions and, from the store of replies, the same answers.

Writes what `guerdon.training.online_records` describes.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from guerdon.errors import EnvironmentFailed, PolicyError, RewardError, RunError, UsageError
from guerdon.exploration import StateEntropy
from guerdon.interfaces import Environment, Observation, OnlineAlgorithm, Step
from guerdon.records import Frames, Task
from guerdon.replay_buffer import ReplayBuffer
from guerdon.seeding import generator
from guerdon.training.online_records import (
    EVALUATIONS,
    METRICS,
    Checkpoints,
    Line,
    Lines,
    Outcome,
    evaluation_line,
    read_state,
    write_state,
)
from guerdon.training.tensorboard import TensorBoard

Progress = Callable[[int, int], object]
"""Called with the steps made and the steps to make."""
Film = Callable[[int, Task, Frames], object]
"""Called with the step of an evaluation, a task and its pictures (T+1, H, W, 3)."""

BUFFER, PICTURES = "buffer", "pictures"
"""Folders: of the replay buffer in a checkpoint, and of its pictures in the run."""
_BATCHES_RELABELLED = 500
"""Transitions whose rewards are computed anew at a time (as published)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How long each part lasts, and how often to write down where it stands. Settings that are not given go by `steps`; the published
    values are those of a million steps."""

    steps: int = 25_000
    """Steps in the world; published: a million."""
    random_steps: int | None = None
    """Steps at random before anything is learned; 1,000 (published), or a fifth of the steps before the first session if that is less."""
    first_session: int | None = None
    """Step of the first feedback session; until then the policy explores. 10,000 (published), or a fifth of all steps if that is less."""
    every: int | None = None
    """Steps between two feedback sessions; 5,000 (published), or a twentieth of all steps if that is less."""
    first_updates: int = 100
    """Updates at once after the first session."""
    capacity: int | None = None
    """Observations kept, one more in an episode than it has steps; the oldest are forgotten. If not given, all of them (unless episodes end
    early), at most a million, and 200,000 with pictures."""
    neighbours: int = 5
    """While exploring, a state is worth its distance to the neighbour of this number among all stored ones."""
    evaluate_every: int | None = None
    """Steps between two evaluations; 10,000 (published), or a tenth of all steps if that is less."""
    log_every: int | None = None
    """Steps between two lines of metrics; 1,000, or a fiftieth of all steps if that is less."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints, of which there is one more after each session; 5,000, or a tenth of all steps if that is less."""

    def __post_init__(self) -> None:
        for name in ("steps", "every", "capacity", "neighbours", "evaluate_every", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is at least 1, got {value}")
        for name in ("random_steps", "first_session", "first_updates"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UsageError(f"{name} is at least 0, got {value}")
        if self.random_steps is not None and self.first_session is not None and self.random_steps > self.first_session:
            what = f"the first session (step {self.first_session}) comes after the random steps ({self.random_steps})"
            raise UsageError(what, cure="Give fewer random steps, or a later first session.")

    def schedule(self, *, pictures: bool = False, published_every: int = 5_000, episode_steps: int = 500) -> Schedule:
        """The numbers, all decided.

        Args:
            pictures: whether pictures are stored with every step.
            published_every: steps between two sessions in a run of a million steps.
            episode_steps: steps of an episode.
        """
        first = self.first_session
        if first is None:
            first = max(min(10_000, self.steps // 5), self.random_steps or 0, 1)
        random = min(1_000, first // 5) if self.random_steps is None else self.random_steps
        most = 200_000 if pictures else 1_000_000
        return Schedule(
            steps=self.steps,
            random_steps=random,
            first_session=first,
            every=self.every or min(published_every, max(1, self.steps // 20)),
            first_updates=self.first_updates,
            capacity=self.capacity or min(self.steps + self.steps // episode_steps + 2, most),
            neighbours=self.neighbours,
            evaluate_every=self.evaluate_every or min(10_000, max(1, self.steps // 10)),
            log_every=self.log_every or min(1_000, max(1, self.steps // 50)),
            checkpoint_every=self.checkpoint_every or min(5_000, max(1, self.steps // 10)),
        )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`Config` with everything decided."""

    steps: int
    random_steps: int
    first_session: int
    every: int
    first_updates: int
    capacity: int
    neighbours: int
    evaluate_every: int
    log_every: int
    checkpoint_every: int

    def is_session(self, step: int) -> bool:
        """Whether judgements are asked for after so many steps. After the last one they would be of no use."""
        since = step - self.first_session
        return since >= 0 and since % self.every == 0 and step < self.steps


# --- what the loop is given -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A world to learn in."""

    make: Callable[[Sequence[str]], Environment]
    """A new environment that draws the views named."""
    task: Callable[[int], Task]
    """The task of a learning episode, by its number (from 0)."""
    evaluation: Sequence[Task]
    """The frozen list of tasks to be evaluated on; none of them is learned on."""
    succeeded: Callable[[Environment], bool]
    """Whether the world says of its present state that the task is fulfilled."""
    quality: Callable[[Step], float]
    """How far a step's outcome fulfils the task, in [0, 1], by what the simulator knows; for scripted raters."""
    sees: str
    """Name of the vector that the policy sees."""
    views: tuple[str, ...] = ()
    """Pictures that are stored with every step, because somebody looks at them."""


@dataclass(frozen=True)
class Spent:
    """What judgements have taken so far."""

    labels: int = 0
    """Judgements obtained."""
    requests: int = 0
    """Questions asked, those without an answer included."""
    dollars: float | None = 0.0
    """None if a price is not known."""


class Rewards(ABC):
    """Where the rewards that a policy learns from come from."""

    asks: bool = False
    """Whether sessions are held. If not, every reward is known at once."""

    @abstractmethod
    def of(self, before: Observation, action: npt.NDArray[np.float32], step: Step, *, success: bool, instruction: str) -> float:
        """The reward of a transition when it happens; NaN if it is not known yet."""

    def hold(self, buffer: ReplayBuffer) -> bool:
        """Holds the next session: draws, asks, fits. Returns whether rewards have another meaning now. After the same sessions and with the
        same buffer it gives the same result, and pays for nothing twice. Nothing is held if there is nothing yet to ask about."""
        del buffer
        return False

    def relabel(self, buffer: ReplayBuffer, *, batch: int) -> None:
        """Computes the rewards of all transitions of a buffer anew. Rewards that are known at once stay what they are."""
        del buffer, batch

    @property
    def sessions(self) -> int:
        """How many sessions were held so far."""
        return 0

    @property
    def exhausted(self) -> bool:
        """Whether nothing more may be asked."""
        return True

    @property
    def spent(self) -> Spent:
        """What the sessions held so far took."""
        return Spent()

    def go_back(self, sessions: int) -> None:
        """Forgets all sessions but the first `sessions`, for a run that goes on from there. Raises RunError if they are not there."""
        if sessions:
            raise RunError("the checkpoint is of a run with sessions, which this one does not hold")


class TrueReward(Rewards):
    """What the world itself says that an action was worth."""

    def of(self, before: Observation, action: npt.NDArray[np.float32], step: Step, *, success: bool, instruction: str) -> float:
        del before, action, success, instruction
        return step.reward


class SparseReward(Rewards):
    """1 while the world says that the task is fulfilled, else 0."""

    def of(self, before: Observation, action: npt.NDArray[np.float32], step: Step, *, success: bool, instruction: str) -> float:
        del before, action, step, instruction
        return float(success)


# --- an episode -----------------------------------------------------------------------------------------------------------------------


class Episode:
    """An episode under way. It is known by its task and its actions, and brought back by repeating them."""

    def __init__(self, environment: Environment, number: int, task: Task) -> None:
        """Begins it."""
        self.number, self.task, self._environment = number, task, environment
        self.actions: list[npt.NDArray[np.float32]] = []
        self.seen = environment.reset(task)
        self.total = 0.0
        """Sum of the world's own rewards."""
        self.learned: float = 0.0
        """Sum of the rewards that were learned from, NaN if one was unknown."""
        self.success = False
        self.over = False

    def act(self, action: npt.NDArray[np.float32], succeeded: Callable[[Environment], bool]) -> tuple[Step, bool]:
        """Carries out an action (A,). Returns what came of it and whether the world calls that a success now."""
        step = self._environment.step(action)
        success = succeeded(self._environment)
        self.actions.append(action)
        self.seen = step.observation
        self.total += step.reward
        self.success |= success
        self.over = step.terminated or len(self.actions) >= self.task.step_limit
        return step, success

    def state(self) -> dict[str, Any]:
        """What brings it back."""
        actions = np.stack(self.actions) if self.actions else np.zeros((0, self._environment.action_size), np.float32)
        return {"number": self.number, "task": self.task.to_record(), "actions": actions, "learned": self.learned, "seen": self._vectors()}

    def _vectors(self) -> dict[str, npt.NDArray[np.float32]]:
        return {name: vector.copy() for name, vector in self.seen.vectors.items()}

    @classmethod
    def again(cls, state: Mapping[str, Any], environment: Environment, succeeded: Callable[[Environment], bool]) -> Episode:
        """The episode as it was. Raises EnvironmentFailed if the world does not come out where it was, to the bit."""
        episode = cls(environment, state["number"], Task.from_record(state["task"]))
        for action in state["actions"]:
            episode.act(np.array(action), succeeded)
        episode.learned = state["learned"]
        now = episode._vectors()
        if now.keys() != state["seen"].keys() or not all(np.array_equal(now[name], state["seen"][name]) for name in now):
            what = "the world does something else than before when the actions of the episode under way are repeated"
            cure = "Go on with the versions of the simulator and on the kind of machine that the run was begun with, or begin a new one."
            raise EnvironmentFailed(what, where=f"task {episode.task.id}", cure=cure)
        return episode


def evaluate(
    algorithm: OnlineAlgorithm,
    world: World,
    environment: Environment,
    tasks: Sequence[Task],
    *,
    film: Callable[[Task, Frames], object] | None = None,
) -> list[Outcome]:
    """Lets the likeliest actions carry out each task, from beginning to step limit.

    Args:
        environment: draws exactly one view if `film` is given.
        film: called with each task and its pictures (T+1, H, W, 3).
    """
    outcomes = []
    for number, task in enumerate(tasks):
        episode = Episode(environment, number, task)
        pictures = [] if film is None else [_only(episode.seen)]
        while not episode.over:
            episode.act(_action(algorithm, episode.seen, world.sees, explore=False), world.succeeded)
            if film is not None:
                pictures.append(_only(episode.seen))
        if film is not None:
            film(task, np.stack(pictures))
        outcomes.append(Outcome(task.id, episode.success, episode.total, len(episode.actions)))
    return outcomes


def _only(seen: Observation) -> Frames:
    (picture,) = seen.frames.values()
    return picture


def _action(algorithm: OnlineAlgorithm, seen: Observation, name: str, *, explore: bool) -> npt.NDArray[np.float32]:
    action: npt.NDArray[np.float32] = algorithm.act(seen.vectors[name][None], explore=explore)[0]
    if not np.isfinite(action).all():
        raise PolicyError("the policy's action is not a finite number", cure="Use a lower learning rate or smaller rewards.")
    return action


# --- the loop -------------------------------------------------------------------------------------------------------------------------


@dataclass
class _Sums:
    """What goes into the next line of metrics."""

    updates: int = 0
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Sums over updates, on the algorithm's device."""
    episodes: int = 0
    total: float = 0.0
    learned: float = 0.0
    successes: int = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        self.updates += 1
        for name, value in metrics.items():
            value = value.detach().double()
            self.metrics[name] = self.metrics[name] + value if name in self.metrics else value

    def end(self, episode: Episode) -> None:
        self.episodes += 1
        self.total += episode.total
        self.learned += episode.learned
        self.successes += episode.success

    def line(self) -> dict[str, Any]:
        count = self.episodes
        losses = {name: _finite(float(value) / self.updates) for name, value in self.metrics.items()}
        return {
            "episodes": count,
            "episode_return": self.total / count if count else None,
            "episode_learned_return": _finite(self.learned / count) if count else None,
            "success": self.successes / count if count else None,
            "updates": self.updates,
            **losses,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class OnlineRun:
    """One run: everything that the next step depends on, and the folder where it is kept.

    Args:
        algorithm: learns; on its device already.
        world: where.
        rewards: from what.
        schedule: how long each part lasts.
        batch: transitions in an update.
        seed: of random actions and of what is drawn from the buffer.
        out: the folder; its settings were compared already (`begin_or_go_on`).
        log_to_tensorboard: write the numbers for TensorBoard, too.
        film: what becomes of pictures of evaluations; None films none.
        filmed: how many tasks of an evaluation are filmed.
        film_view: the camera.
    """

    def __init__(
        self,
        algorithm: OnlineAlgorithm,
        world: World,
        rewards: Rewards,
        schedule: Schedule,
        *,
        batch: int,
        seed: int,
        out: Path,
        log_to_tensorboard: bool = False,
        film: Film | None = None,
        filmed: int = 0,
        film_view: str = "",
    ) -> None:
        self.algorithm, self.world, self.rewards, self.schedule, self.out = algorithm, world, rewards, schedule, out
        self.made = self.episodes = 0
        self.informed = not rewards.asks
        """Whether rewards are known; before that the policy explores."""
        self.seconds = 0.0
        self._batch = batch
        self._film, self._filmed, self._film_view = film, filmed, film_view
        self._environment = world.make(world.views)
        self._evaluated: Environment | None = None
        self._filming: Environment | None = None
        self._episode: Episode | None = None
        self._sums = _Sums()
        self._entropy = StateEntropy(neighbours=schedule.neighbours)
        self._random = {name: generator(seed, "online", name) for name in ("action", "batch")}
        self._checkpoints = Checkpoints(out)
        restored = self._restore()
        self._began = restored is not None
        self._buffer = self._new_buffer() if restored is None else restored
        until = self.made if self._began else -1
        self._metrics, self._evaluations = (Lines(out / name, until=until) for name in (METRICS, EVALUATIONS))
        self._tensorboard = TensorBoard(out, done=until) if log_to_tensorboard else None

    def close(self) -> None:
        """Gives the environments back, and ends the files that are open."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        for environment in (self._environment, self._evaluated, self._filming):
            if environment is not None:
                environment.close()

    def learn(self, progress: Progress | None = None) -> None:
        """Goes on to the last step.

        Raises:
            PolicyError: if the policy or a loss stops being finite.
            RewardError: if the budget is used up and there is no reward model.
            WriteFailed, EnvironmentFailed: each says what to do.
        """
        steps = self.schedule.steps
        if not self._began:
            self._began = True
            self._evaluate()
        while self.made < steps:
            began = time.perf_counter()
            self._step()
            held = self._hold_session()
            self._learn()
            self.seconds += time.perf_counter() - began
            if self.made % self.schedule.log_every == 0 or self.made == steps:
                self._log()
                if progress:
                    progress(self.made, steps)
            if self.made % self.schedule.evaluate_every == 0 or self.made == steps:
                self._evaluate()
            if held or self.made % self.schedule.checkpoint_every == 0 or self.made == steps:
                self._save()

    # --- one step -------------------------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if self._episode is None:
            self._episode = Episode(self._environment, self.episodes, self.world.task(self.episodes))
            self._buffer.begin(self._episode.seen, instruction=self._episode.task.instruction)
            self.episodes += 1
        episode, before = self._episode, self._episode.seen
        action = self._choose(before)
        step, success = episode.act(action, self.world.succeeded)
        reward = self.rewards.of(before, action, step, success=success, instruction=episode.task.instruction)
        episode.learned += reward
        self._buffer.add(
            action,
            step.observation,
            reward=reward,
            terminated=step.terminated,
            truncated=episode.over and not step.terminated,
            true_reward=step.reward,
            quality=self.world.quality(step),
            success=success,
        )
        self.made += 1
        if episode.over:
            self._sums.end(episode)
            self._episode = None

    def _choose(self, seen: Observation) -> npt.NDArray[np.float32]:
        if self.made < self.schedule.random_steps:
            return self._random["action"].uniform(-1.0, 1.0, self._environment.action_size).astype(np.float32)
        return _action(self.algorithm, seen, self.world.sees, explore=True)

    def _hold_session(self) -> bool:
        """Holds a session if one is due; returns whether it did."""
        if not self.rewards.asks or not self.schedule.is_session(self.made) or self.rewards.exhausted:
            return False
        news = self.rewards.hold(self._buffer)
        if news:
            self.rewards.relabel(self._buffer, batch=_BATCHES_RELABELLED)
            if not self.informed:
                self.informed = True
                self.algorithm.forget_values()
                for _ in range(self.schedule.first_updates):
                    self._update()
        self._refuse_to_go_on_uninformed()
        return True

    def _refuse_to_go_on_uninformed(self) -> None:
        if not self.informed and self.rewards.exhausted:
            what = f"the budget is used up after {self.rewards.spent.labels} labels, and no reward model could be fitted to them"
            cure = "Allow more labels, let it explore longer before the first session, or ask for fewer classes."
            raise RewardError(what, where=str(self.out), cure=cure)

    def _learn(self) -> None:
        if self.made < max(self.schedule.random_steps, 1):
            return
        if self.informed:
            self._update()
        else:
            self._explore()

    def _update(self) -> None:
        self._sums.add(self.algorithm.update(self._buffer.sample(self._random["batch"], self._batch)))

    def _explore(self) -> None:
        """One update towards states that are far from all others."""
        if self._buffer.observations <= self.schedule.neighbours:
            return
        drawn = self._buffer.sample(self._random["batch"], self._batch, known=False)
        self._sums.add(self.algorithm.update(replace(drawn, reward=self._entropy.rewards(drawn.state, self._buffer.states()))))

    def _new_buffer(self) -> ReplayBuffer:
        example = self._environment.reset(self.world.task(0))
        return ReplayBuffer(
            self.schedule.capacity,
            vectors={self.world.sees: len(example.vectors[self.world.sees])},
            action_size=self._environment.action_size,
            views={view: picture.shape[:2] for view, picture in example.frames.items()},
            folder=self.out / PICTURES if self.world.views else None,
            margin=2 * self.schedule.checkpoint_every + 2,  # episodes of one step have two observations
        )

    # --- records --------------------------------------------------------------------------------------------------------------------------

    def _log(self) -> None:
        spent = self.rewards.spent
        line = {
            "step": self.made,
            **self._sums.line(),
            "exploring": not self.informed,
            "sessions": self.rewards.sessions,
            "labels": spent.labels,
            "requests": spent.requests,
            "dollars": spent.dollars,
            "seconds": round(self.seconds, 3),
            "steps_per_second": round(self.made / self.seconds, 3) if self.seconds else None,
        }
        broken = [name for name in self._sums.metrics if line[name] is None]
        if broken:
            cure = "Use a lower learning rate or smaller rewards."
            what = f"learning diverged: {', '.join(broken)} is not finite near step {self.made}"
            raise PolicyError(what, where=str(self.out), cure=cure)
        self._metrics.append(line)
        self._sums = _Sums()
        self._show("learning", line)

    def _evaluate(self) -> None:
        tasks = self.world.evaluation
        if not tasks:
            return
        if self._evaluated is None:
            self._evaluated = self.world.make(())
        filmed = tasks[: self._filmed] if self._film is not None else ()
        outcomes = []
        if filmed and self._film is not None:
            if self._filming is None:
                self._filming = self.world.make((self._film_view,))
            film, step = self._film, self.made
            outcomes += evaluate(self.algorithm, self.world, self._filming, filmed, film=lambda task, pictures: film(step, task, pictures))
        outcomes += evaluate(self.algorithm, self.world, self._evaluated, tasks[len(filmed) :])
        line = evaluation_line(self.made, outcomes)
        self._evaluations.append(line)
        self._show("evaluation", line)

    def _show(self, heading: str, line: Line) -> None:
        if self._tensorboard is not None:
            self._tensorboard.write(int(line["step"]), line, heading)

    # --- checkpoints ----------------------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "algorithm": self.algorithm.state(),
            "entropy": self._entropy.state(),
            "random": {name: random.bit_generator.state for name, random in self._random.items()},
            "made": self.made,
            "sessions": self.rewards.sessions,
            "episodes": self.episodes,
            "informed": self.informed,
            "seconds": self.seconds,
            "spent": [self.rewards.spent.labels, self.rewards.spent.requests],
            "sums": {name: getattr(self._sums, name) for name in self._sums.__dataclass_fields__},
            "episode": None if self._episode is None else self._episode.state(),
        }

        def fill(folder: Path) -> None:
            self._buffer.save(folder / BUFFER)
            write_state(folder, state)

        self._checkpoints.write(self.made, fill)

    def _restore(self) -> ReplayBuffer | None:
        """Goes back to the newest checkpoint and returns its buffer; None if there is none."""
        folder = self._checkpoints.latest()
        if folder is None:
            return None
        state = read_state(folder)
        self.algorithm.load_state(state["algorithm"])
        self._entropy.load_state(state["entropy"])
        for name, random in self._random.items():
            random.bit_generator.state = state["random"][name]
        self.made, self.episodes = state["made"], state["episodes"]
        self.informed, self.seconds = state["informed"], state["seconds"]
        self._sums = _Sums(**state["sums"])
        self.rewards.go_back(state["sessions"])
        spent = [self.rewards.spent.labels, self.rewards.spent.requests]
        if spent[0] != state["spent"][0]:
            what = f"the sessions on disk hold {spent[0]} labels, those of the checkpoint held {state['spent'][0]}"
            raise RunError(what, where=str(self.out), cure="Begin anew in another folder: something was changed or deleted.")
        if state["episode"] is not None:
            self._episode = Episode.again(state["episode"], self._environment, self.world.succeeded)
        return ReplayBuffer.load(folder / BUFFER, pictures=self.out / PICTURES if self.world.views else None)
