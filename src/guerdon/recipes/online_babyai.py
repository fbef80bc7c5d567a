"""Feedback while learning, in BabyAI: several instructions at once, one policy that reads them, rewards learned from a rater's answers.

The second half of "ERL-VLM: Enhancing Rating-based Reinforcement Learning to Effectively Leverage Feedback from Large Vision-Language
Models" (its ALFRED tasks), in a world that runs anywhere: tasks are layouts with an instruction of one or two sub-tasks; one
language-conditioned policy learns all of them by implicit Q-learning, online, from a buffer that begins with three demonstrations a task.
Its rivals learn in the same loop from other rewards:

    erl-vlm     a model of ratings (pictures and instruction), fitted again after each feedback session
    vanilla     the same with cross entropy, shuffled batches and all classes alike
    rl-vlm-f    a model of preferences between two pieces of behaviour under one instruction
    true        the simulator's own measure: whether each action served the instruction
    quality     how good the state is that each action led to: what ratings without mistakes and a model without errors would give
    sparse      1 when the instruction was carried out

What a rater is shown is a picture, judged by the whole instruction; segments of several transitions if asked for. The first session rates
demonstrations, with two thirds of the labels; the later ones draw evenly from the buffer.

A learned reward says how good a picture is, and the world ends an episode when its task is done. A reward above 0 would then teach to put
the end off: what the policy learns from is by default the reward less its largest value, so that each step costs the more the farther
things are from done (`Config.transform`).

Reads nothing but what it wrote: OUT/demonstrations (a Minari dataset), OUT/tasks.json (what policies are evaluated on), OUT/feedback (what
was rated, the labels and the reward models), OUT/metrics.jsonl, OUT/evaluations.jsonl, OUT/checkpoint.safetensors and, in the end,
OUT/policy
and OUT/manifest.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tyro.conf import Positional, Suppress

from guerdon.algorithms.iql import IQL
from guerdon.datasets.minari import MinariFormat, RecordedEpisode
from guerdon.envs._babyai_distance import contribution
from guerdon.envs.babyai import ACTION_NAMES, BabyAI, provenance
from guerdon.errors import RewardError, UnknownName, UsageError
from guerdon.evaluation.tasks import TaskList, recorded_lengths, task_list
from guerdon.evaluation.truth import chain_quality
from guerdon.interfaces import Actor, Dataset, Observation, Step
from guerdon.recipes import collect_babyai, feedback
from guerdon.recipes.feedback import Sessions
from guerdon.recipes.online import MANIFEST, Learned
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.records import Annotation, Task
from guerdon.rewards import fitting
from guerdon.rewards.compose import NEXT_ACTIONS, WHOLE_TASK
from guerdon.rewards.steps import Look, look_of, read_steps
from guerdon.rollout import run_tasks
from guerdon.runs import Manifest, read_json, write_json
from guerdon.seeding import generator, stream_seed
from guerdon.training import online_episodes
from guerdon.training.offline import use_one_thread
from guerdon.training.online_episodes import EpisodeBuffer, EpisodeDataset, OnlineEpisodes, Rewarded, Rewards, World
from guerdon.training.online_records import EVALUATIONS, METRICS, alone, begin_or_go_on, read_lines

DEMONSTRATIONS, FEEDBACK, TASKS = "demonstrations", "feedback", "tasks.json"
KNOWN = ("true", "quality", "sparse")
"""Rewards for which nobody is asked."""
METHODS = ("erl-vlm", "vanilla", "rl-vlm-f", *KNOWN)
"""Where rewards come from."""
_NOT_OF_THE_NUMBERS = frozenset({"out", "quiet", "tensorboard", "yes", "store", "max_cost", "concurrency"})
"""Settings that change nothing that is learned: a run may go on with others. More may be spent on a run than was allowed at first."""

Transform = Literal["cost", "raw", "unit"]


@dataclass(frozen=True, kw_only=True)
class Learning(IQL.Config):
    """Settings of implicit Q-learning, for learning while acting."""

    expectile: float = 0.5
    """τ of the value loss: 0.5 gives the mean over recorded actions, as published; 1 the best of them."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to learn in BabyAI, and from what."""

    method: Positional[str] = "erl-vlm"
    """Where rewards come from: erl-vlm, vanilla, rl-vlm-f, true, quality or sparse."""
    world: Literal["babyai"] = "babyai"
    """Where it learns: several instructions at once in BabyAI. (Meta-World is `guerdon.online`.)"""
    out: Path
    """Folder of the run, new or empty; a run that is there goes on."""
    level: str = "small"
    """Family of worlds: small, one-room, two-rooms or four-rooms."""
    tasks: int = 10
    """Number of layouts, each with an instruction; the lengths take turns."""
    lengths: tuple[int, int] = (1, 2)
    """Least and greatest number of sub-tasks in an instruction."""
    demonstrations: int = 3
    """Demonstrations of each task."""
    noise: collect_babyai.Noise = field(default_factory=collect_babyai.Noise)
    """How far the demonstrator strays."""
    view: str = "full"
    """What policy, reward model and rater see: full (the whole grid), or agent (what lies before the agent)."""
    other_starts: float = 0.5
    """Share of the episodes that begin at another place than the demonstrations of their task."""
    seed: int = 0
    """Seed of everything."""
    vlm: tuple[str, ...] = ("scripted",)
    """Who judges: "scripted", which answers from what the simulator knows, or a rater as for `guerdon label`."""
    teacher: str = ""
    """How the scripted rater errs, and not at all if not given. Ratings: mistake, adjacent, optimism, stochastic, skip; preferences:
    mistake, noisy, skip, myopic, equal (see `guerdon.recipes.feedback.TEACHERS`)."""
    error_rate: float = 0.1
    """How often the scripted rater errs."""
    levels: int = 3
    """Classes of ratings."""
    segment: int = 1
    """Transitions that are judged at a time; 1 judges the picture that a transition led to."""
    budget: int = 1500
    """Most labels that are obtained in the run."""
    first_queries: int | None = None
    """Questions in the session on the demonstrations; two thirds of the budget if not given, and no more than there is to be judged."""
    queries: int | None = None
    """Questions in each later session; an equal share of what is left of the budget if not given."""
    max_cost: float | None = None
    """Most US dollars that the run may ever cost."""
    passes: int = 30
    """Most passes over all labels after each session."""
    pessimism: float = 0.0
    """How many times the spread of the reward model's members is taken off their mean."""
    transform: Transform = "cost"
    """What becomes of the reward model's numbers (-1 to 1): less 1, so that what is not done yet costs (cost); nothing, as published (raw);
    or 0 to 1 (unit)."""
    price: tuple[str, ...] = ()
    """Dollars per million tokens, as INPUT,OUTPUT, of a model without a known price."""
    concurrency: int = 16
    """Most questions in flight at once."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider, without being asked."""
    store: str | None = None
    """The reply store; the user's own if not given."""
    tensorboard: bool = False
    """Also write the numbers for TensorBoard."""
    slots: int = 16
    """Worlds that the policy acts in at a time."""
    quiet: bool = False
    """No progress bar."""
    loop: Suppress[online_episodes.Config] = field(default_factory=online_episodes.Config)
    """Rounds of acting, feedback and learning."""
    fitting: Suppress[Any] = None
    """How the reward model is fitted (`guerdon.rewards.fitting.Config`); the method's own defaults if not given."""
    algorithm_settings: Suppress[Any] = None
    """Settings of learning (`Learning`); its defaults if not given."""
    rater_settings: Suppress[Any] = field(default_factory=dict)
    """Config of each rater by the name of its file; defaults if not given."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownName("source of rewards", self.method, METHODS)
        for name, least in (
            ("levels", 2), ("segment", 1), ("budget", 1), ("first_queries", 1), ("queries", 1), ("passes", 1), ("slots", 1),
            ("concurrency", 1), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is at least {least}, got {value}")
        if not 0 <= self.error_rate <= 1 or not 0 <= self.other_starts <= 1:
            raise UsageError("error_rate and other_starts lie in [0, 1]")
        if self.max_cost is not None and not 0 < self.max_cost < float("inf"):
            raise UsageError(f"max_cost is a number above 0, got {self.max_cost}")
        if not self.vlm:
            raise UsageError("no rater was named", cure="For example: --vlm scripted")
        self.collection()
        if self.asks:
            self.feedback()

    def collection(self) -> collect_babyai.Config:
        """How demonstrations are recorded. Raises UsageError if they cannot be."""
        return collect_babyai.Config(
            out=self.out / DEMONSTRATIONS, level=self.level, tasks=self.tasks, demonstrations=self.demonstrations,
            lengths=self.lengths, views=(self.view,), noise=self.noise, seed=self.seed,
        )  # fmt: skip

    @property
    def asks(self) -> bool:
        """Whether anybody is asked."""
        return self.method not in KNOWN

    @property
    def pairs(self) -> bool:
        """Whether two are compared."""
        return self.method == "rl-vlm-f"

    def feedback(self) -> feedback.Config:
        """Who is asked what in each session. Raises UsageError, UnknownName for what cannot be."""
        scripted = self.vlm == ("scripted",)
        return feedback.Config(
            method="preference" if self.pairs else "rating", levels=self.levels, vlm=() if scripted else self.vlm,
            teacher=self.teacher if scripted else "", rate=self.error_rate, max_labels=self.budget, max_dollars=self.max_cost,
            passes=self.passes, pessimism=self.pessimism, price=self.price, concurrency=self.concurrency, store=self.store, yes=self.yes,
            quiet=True, rater_settings=self.rater_settings, fitting=self.fitting_settings(),
        )  # fmt: skip

    def fitting_settings(self) -> fitting.Config:
        """How the reward model is fitted."""
        if self.fitting is not None:
            chosen: fitting.Config = self.fitting
            return chosen
        return feedback.fitting_preset(self.method)

    def learning(self) -> IQL.Config:
        """Settings of learning; the discount is that for rewards of single actions, or of whole tasks, if none is given."""
        chosen: IQL.Config = Learning() if self.algorithm_settings is None else self.algorithm_settings
        usual = NEXT_ACTIONS if self.method == "true" else WHOLE_TASK
        return chosen if chosen.discount is not None else replace(chosen, discount=usual)

    def decisive(self) -> dict[str, Any]:
        """Settings that decide the numbers, JSON-ready; those that nobody reads are left out."""
        decided = replace(self, fitting=self.fitting_settings() if self.asks else None, algorithm_settings=self.learning())
        record = {name: value for name, value in as_record(decided).items() if name not in _NOT_OF_THE_NUMBERS}
        if not self.asks:
            for name in ("vlm", "teacher", "error_rate", "levels", "segment", "budget", "first_queries", "queries", "transform", "price",
                         "fitting", "rater_settings", "passes", "pessimism"):  # fmt: skip
                del record[name]
        return record


@callable_with_settings(Config)
def online_babyai(config: Config) -> Learned:
    """Learns, and returns the run. One that was stopped goes on, with the numbers that it would have had.

    The results, also in OUT/manifest.json: "steps" and "episodes" of the policy, "sessions", "labels", "requests", "dollars", "success" and
    "return" of the last evaluation, "seconds" of processor time.

    Raises:
        RunError: if OUT holds something else, or a run with other settings.
        RewardError: if the first session gave no reward model.
        UsageError, EnvironmentFailed, DatasetError, PolicyError, ProviderError, WriteFailed: each says what to do.
    """
    use_one_thread()
    asked = config.decisive()
    if config.asks and not (config.out / MANIFEST).is_file():
        feedback.require_askable(config.feedback(), provenance(config.level))
    begin_or_go_on(config.out, asked)
    with alone(config.out):
        if (config.out / MANIFEST).is_file():
            return Learned(config.out, read_json(config.out / MANIFEST)["results"], kept=True)
        dataset = _demonstrated(config)
        world = BabyAITasks(dataset, _frozen_tasks(config, dataset), config.view, other_starts=config.other_starts, slots=config.slots)
        run = OnlineEpisodes(world, _rewards(config, world), config.loop, config.learning(), seed=config.seed, out=config.out)
        with progress_bar(f"learning from {config.method}", quiet=config.quiet) as progress:
            run.run(progress, log_to_tensorboard=config.tensorboard)
        results = _results(config)
        write_json(config.out / MANIFEST, Manifest(asked, {}, results).to_record())
    return Learned(config.out, results, kept=False)


def _results(config: Config) -> dict[str, Any]:
    lines, evaluations = read_lines(config.out / METRICS), read_lines(config.out / EVALUATIONS)
    last, evaluated = lines[-1], evaluations[-1]
    return {
        "steps": last["step"],
        "episodes": config.loop.rounds * config.loop.episodes,
        **{name: last[name] for name in ("sessions", "labels", "requests", "dollars")},
        **{name: evaluated[name] for name in ("success", "return")},
        "seconds": round(math.fsum(line["seconds"] for line in lines), 3),
    }


def _demonstrated(config: Config) -> Dataset:
    """The demonstrations, recorded if they are not there."""
    collection = config.collection()
    if not (collection.out / "data").is_dir():
        collect_babyai.collect_babyai(collection)
    return MinariFormat.open(collection.out, {})


def _frozen_tasks(config: Config, dataset: Dataset) -> TaskList:
    """What policies are evaluated on: each task from its recorded start and from another one."""
    path = config.out / TASKS
    if not path.is_file():
        lengths = recorded_lengths(dataset)
        task_list(dataset, lengths=lengths, per_length=None, seed=config.seed, held_out_words=False).save(path)
    return TaskList.load(path)


def _rewards(config: Config, world: BabyAITasks) -> Rewards:
    if not config.asks:
        known: dict[str, type[TrueRewards | QualityRewards | SparseRewards]] = {
            each.name: each for each in (TrueRewards, QualityRewards, SparseRewards)
        }  # fmt: skip
        return known[config.method]()
    shown = EpisodeDataset(world.demonstrations(), world.action_names)
    look = look_of(shown, views=world.views, instruction=True)
    segments = sum(max(info.length - config.segment + 1, 0) for info in shown.episodes())
    sessions = config.loop.rounds // config.loop.session_every
    plan = Plan.of(
        config.budget, config.first_queries, config.queries, sessions=sessions, shown=None if config.pairs else segments
    )  # fmt: skip
    where: dict[str, Any] = {
        "look": look,
        "seed": stream_seed(config.seed, "feedback"),
        "environment": {**provenance(config.level), "demonstrations": shown.fingerprint},
        "action_names": ACTION_NAMES,
    }
    asked = config.feedback()
    begin, go_on = (partial(make, config.out / FEEDBACK, asked, **where) for make in (Sessions, Sessions.resume))
    return LearnedRewards(begin, go_on, look, plan, config)


# --- the world ----------------------------------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """What the simulator knew while a task was carried out."""

    length: int
    distances: list[float]
    completed: list[int]
    contributions: list[float] = field(default_factory=list)

    def privileged(self) -> dict[str, npt.NDArray[np.float32]]:
        """The fields that demonstrations have too, with the quality of each observation and whether all was done, (T+1,)."""
        completed, distance = np.array(self.completed, np.float64), np.array(self.distances, np.float64)
        return {
            "contribution": np.array(self.contributions, np.float32),
            "distance": distance.astype(np.float32),
            "progress": (completed / self.length).astype(np.float32),
            "subtask": completed.astype(np.float32),
            "quality": chain_quality(completed, distance, self.length).astype(np.float32),
            "success": (completed == self.length).astype(np.float32),
        }


class _WatchedBabyAI(BabyAI):
    """The world, with a record of what only the simulator knows: by the id of the task."""

    def __init__(self, views: Sequence[str], known: dict[str, _Known]) -> None:
        super().__init__(views)
        self._known, self._task_id = known, ""

    def reset(self, task: Task) -> Observation:
        seen = super().reset(task)
        assert self._world is not None
        self._task_id = task.id
        self._known[task.id] = _Known(task.length, [self._world.distance()], [0])
        return seen

    def step(self, action: int) -> Step:
        taken, world, known = super().step(action), self._world, self._known[self._task_id]
        assert world is not None
        distance, is_new = world.distance(), world.completed > known.completed[-1]
        known.contributions.append(contribution(known.distances[-1], 0.0 if is_new else distance))
        known.distances.append(distance)
        known.completed.append(world.completed)
        return taken


class BabyAITasks(World):
    """Demonstrated tasks: each is set again in one of the wordings of its demonstrations, from their start or from another one."""

    action_names = ACTION_NAMES

    def __init__(self, demonstrations: Dataset, evaluated: TaskList, view: str, *, other_starts: float, slots: int) -> None:
        """Args: demonstrations: what `collect_babyai` wrote; evaluated: the frozen list; view: what the policy sees; other_starts: share of
        the tasks drawn that begin elsewhere; slots: worlds at a time."""
        self.views = (view,)
        self._dataset, self._evaluated, self._other_starts, self._slots = demonstrations, evaluated, other_starts, slots
        self._wordings: dict[str, list[Task]] = {}
        for info in demonstrations.episodes():
            task = Task.from_record(info.metadata["task"])
            self._wordings.setdefault(task.id, []).append(task)

    def demonstrations(self) -> list[RecordedEpisode]:
        return [self._demonstration(index) for index in range(len(self._dataset))]

    def _demonstration(self, index: int) -> RecordedEpisode:
        info, dataset = self._dataset.episode(index), self._dataset
        privileged = dict(dataset.privileged(index))
        known = _Known(info.metadata["task"]["length"], privileged["distance"].tolist(), privileged["subtask"].tolist())
        added = {name: values for name, values in known.privileged().items() if name in ("quality", "success")}
        return RecordedEpisode(
            frames={view: dataset.frames(index, view, 0, info.length + 1) for view in self.views},
            actions=np.asarray(dataset.actions(index), np.int64),
            rewards=_gains(privileged["progress"]),
            terminated=info.terminated,
            truncated=info.truncated,
            annotations=info.annotations[:1],
            metadata={"task": info.metadata["task"]},
            privileged=privileged | added,
        )

    def draw(self, random: np.random.Generator) -> Task:
        names = list(self._wordings)
        wordings = self._wordings[names[int(random.integers(len(names)))]]
        task = wordings[int(random.integers(len(wordings)))]
        return BabyAI.randomise_start(task, random) if random.random() < self._other_starts else task

    def carry_out(self, actor: Actor, tasks: Sequence[Task]) -> list[RecordedEpisode]:
        known: dict[str, _Known] = {}
        make = partial(_WatchedBabyAI, self.views, known)
        results = run_tasks(actor, tasks, make, slots=self._slots, keep_frames={task.id for task in tasks})
        episodes = []
        for task, result in zip(tasks, results, strict=True):
            privileged = known[task.id].privileged()
            episodes.append(
                RecordedEpisode(
                    frames=result.frames,
                    actions=result.actions,
                    rewards=_gains(privileged["progress"]),
                    terminated=result.success,
                    truncated=not result.success,
                    annotations=(Annotation(task.instruction),),
                    metadata={"task": task.to_record()},
                    privileged=privileged,
                )
            )
        return episodes

    def evaluate(self, actor: Actor) -> list[dict[str, Any]]:
        results = run_tasks(actor, self._evaluated.tasks, partial(BabyAI, views=self.views), slots=self._slots)
        return [
            {
                "task": result.task.id, "length": result.task.length, "start": result.task.start, "return": result.completed,
                "success": result.success, "steps": result.steps, "step_limit": result.task.step_limit,
            }
            for result in results
        ]  # fmt: skip


def _gains(progress: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The share of the sub-tasks that each action completed, (T,), from the share done at each observation."""
    return np.diff(np.asarray(progress, np.float64))


# --- the rewards --------------------------------------------------------------------------------------------------------------------


class TrueRewards(Rewards):
    """Whether each action served the instruction (+1, 0, -1; unknown where a distance is not known), as the simulator measures it."""

    name = "true"

    def of(self, episodes: EpisodeDataset) -> list[Rewarded]:
        return [np.asarray(episodes.privileged(index)["contribution"], np.float32) for index in range(len(episodes))]


class QualityRewards(Rewards):
    """How good the state is that an action led to, from -2 to 0 (done): what a reward model gives with `Config.transform` "cost" if neither
    it nor its rater makes any mistake."""

    name = "quality"

    def of(self, episodes: EpisodeDataset) -> list[Rewarded]:
        return [2 * np.asarray(episodes.privileged(index)["quality"], np.float32)[1:] - 2 for index in range(len(episodes))]


class SparseRewards(Rewards):
    """1 for the action that completed the instruction, 0 for all others."""

    name = "sparse"

    def of(self, episodes: EpisodeDataset) -> list[Rewarded]:
        return [np.diff(np.asarray(episodes.privileged(index)["success"], np.float32)) for index in range(len(episodes))]


@dataclass(frozen=True)
class Plan:
    """How many labels each session asks for."""

    labels: int
    """Of the whole run."""
    first: int
    """Of the session before the policy acts."""
    later: int
    """Of each session after that."""

    @classmethod
    def of(cls, labels: int, first: int | None, later: int | None, *, sessions: int, shown: int | None = None) -> Plan:
        """Args: first: two thirds of all labels if None; later: an equal share of what is left if None; sessions: after the first; shown:
        things in the demonstrations that can be judged, None for any number."""
        first = (2 * labels + 2) // 3 if first is None else min(first, labels)
        first = first if shown is None else min(first, shown)
        if later is None:
            later = -(-(labels - first) // sessions) if sessions else 0
        return cls(labels, first, later)

    def wanted(self, number: int, obtained: int) -> int:
        """Labels that session `number` asks for when so many have been obtained."""
        return max(min(self.later if number else self.first, self.labels - obtained), 0)


class LearnedRewards(Rewards):
    """What a reward model says, which is fitted to what raters said in feedback sessions."""

    def __init__(self, begin: Callable[[], Sessions], go_on: Callable[..., Sessions], look: Look, plan: Plan, config: Config) -> None:
        """Args: begin: gives sessions of which none was held; go_on: the same after the session `last`; look: what the model looks at;
        plan: how much each session asks for."""
        self._sessions, self._go_on, self._look, self._plan, self._config = begin(), go_on, look, plan, config

    def hold(self, number: int, buffer: EpisodeBuffer) -> bool:
        c, wanted = self._config, 0 if self._sessions.ended else self._plan.wanted(number, self._sessions.obtained)
        if not wanted:
            return False
        random = generator(c.seed, "segments of session", number)
        segments = buffer.segments(random, wanted, c.segment, pairs=c.pairs)
        if not segments:
            what = f"no episode in the buffer has {c.segment} transitions" + (" and another one to be compared with" if c.pairs else "")
            raise UsageError(what, cure="Use shorter segments, or more demonstrations of each task.")
        result = self._sessions.hold(number, segments)
        if self._sessions.model is None:
            cure = "Ask about more in the first session (--first-queries), with fewer classes, or another rater."
            raise RewardError(
                f"feedback session {number} gave no reward model: {result.not_fitted}", where=str(c.out / FEEDBACK), cure=cure
            )
        return result.fitted is not None

    def of(self, episodes: EpisodeDataset) -> list[Rewarded]:
        return [self._of_one(episodes, index) for index in range(len(episodes))]

    def _of_one(self, episodes: EpisodeDataset, index: int) -> Rewarded:
        steps = read_steps(episodes, self._look, [(index, 0, t) for t in range(episodes.episode(index).length)])
        values = self._sessions.score(steps)
        changed = {"cost": values - 1, "raw": values, "unit": (values + 1) / 2}[self._config.transform]
        return np.asarray(changed, np.float32)

    def account(self) -> dict[str, float]:
        return {"labels": self._sessions.obtained, "requests": self._sessions.requests, "dollars": self._sessions.dollars}

    def state(self) -> dict[str, Any]:
        results = self._sessions.results
        return {"last": results[-1].number if results else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["last"] is not None:
            self._sessions = self._go_on(last=state["last"])
