"""Feedback while learning, in Meta-World: a policy acts, a rater judges pieces of what it did, a reward model learns from the judgements,
and the policy learns from the reward model.

After "ERL-VLM: Enhancing Rating-based Reinforcement Learning to Effectively Leverage Feedback from Large Vision-Language Models" (arXiv
2506.12822) and what it is compared with. Where rewards come from is one row of `SOURCES`:

    erl-vlm     a model of ratings: balanced batches, mean absolute error, weighted classes
    vanilla     a model of ratings as they were learned from before: shuffled batches, cross entropy, all ratings alike
    rl-vlm-f    a model of preferences between pairs
    true        what the simulator says an action was worth
    sparse      1 while the simulator calls it a success

Another package adds one by an entry point of the group `guerdon.reward_sources` that names a `Source`.

The policy sees the state, as published. Pictures are drawn only if the reward model or the rater looks at them. Episodes last
`episode_steps` steps whether or not the task is fulfilled on the way, as published: success is what holds at any step of an episode.

Writes into OUT: what `guerdon.training.online_records` describes, sessions/ (what was judged, by whom, and the models), videos/, policy/
and, in the end, manifest.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import numpy as np
from tyro.conf import Positional, Suppress

from guerdon import discover
from guerdon.errors import UnknownName, UsageError
from guerdon.interfaces import OnlineAlgorithm
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.runs import Manifest, read_json, write_json, writing
from guerdon.seeding import stream_seed

if TYPE_CHECKING:
    from guerdon.interfaces import Environment, Step
    from guerdon.records import Frames, Task
    from guerdon.training.online import Rewards, World

SCRIPTED = ("scripted",)
"""The rater that needs no pictures."""
MANIFEST, POLICY, VIDEOS, SESSIONS = "manifest.json", "policy", "videos", "sessions"
NOT_OF_THE_NUMBERS = frozenset({"out", "quiet", "tensorboard", "videos", "video_view", "yes", "store", "max_cost"})
"""Settings that change nothing that is learned: a run may go on with others. More may be spent on a run than was allowed at first."""
_RATERS_VIEW = "close-no-robot"
_LEVELS = {"sweep-into-v3": 2, "soccer-v3": 2}
"""Classes of ratings as published, where they are not three."""
_EDGES: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    "drawer-open-v3": {2: (0.251,), 3: (0.176, 0.414), 4: (0.151, 0.251, 0.487), 5: (0.139, 0.194, 0.351, 0.52)},
    "sweep-into-v3": {2: (0.125,), 3: (0.033, 0.229), 4: (0.027, 0.125, 0.291), 5: (0.023, 0.05, 0.18, 0.303)},
    "soccer-v3": {2: (0.116,), 3: (0.091, 0.167), 4: (0.074, 0.116, 0.249), 5: (0.057, 0.098, 0.138, 0.334)},
}
"""Where the scripted rater's classes meet, task -> number of classes -> qualities: each class has an equal share of what demonstrations of
uneven quality show (`guerdon collect metaworld`, 50 a task). By equal widths nearly everything that an agent does at first is of one class,
and nothing could be learned from that."""
_MILLISECONDS_A_PICTURE = 33
_FRAMES_BETWEEN = 4
"""Of a video one picture in so many is kept."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where to learn, and from what."""

    method: Positional[str] = "erl-vlm"
    """Where rewards come from: erl-vlm, vanilla, rl-vlm-f, true or sparse."""
    world: Literal["metaworld"] = "metaworld"
    """Where it learns: a robot arm in Meta-World; --world babyai has other settings: several instructions at once."""
    out: Path
    """Folder of the run, new or empty; a run that is there goes on."""
    task: str = "drawer-open-v3"
    """The simulator's task."""
    seed: int = 0
    """Seed of everything."""
    episode_steps: int = 500
    """Steps of an episode."""
    repeat: int = 1
    """Steps of the simulator that an action lasts. All other steps are counted in actions; a step's reward is the mean."""
    hold: int | None = None
    """Steps of the simulator in a row that success has to last for an episode to end early; without it episodes never do."""
    evaluation_tasks: int = 10
    """Tasks in an evaluation, always the same ones; none of them is learned on."""
    algorithm: str = "sac"
    """How to learn."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the networks are: cpu, or cuda for a graphics card."""
    vlm: tuple[str, ...] = ("scripted",)
    """Who judges: "scripted", which answers from what the simulator knows, or a rater as for `guerdon label`."""
    teacher: str = ""
    """How the scripted rater errs. Ratings: perfect, mistake (any other class), adjacent (the class beside), optimism (the next better),
    stochastic (unsure near the borders of classes), skip (says nothing); preferences: perfect, mistake, noisy, skip, myopic, equal.
    perfect if not given."""
    error_rate: float = 0.1
    """How often it does."""
    temperature: float = 0.1
    """How unsure the scripted raters stochastic and noisy are, in units of quality."""
    edges: tuple[float, ...] = ()
    """Qualities (tenths of the simulator's reward) at which the scripted rater's next class begins, one fewer than there are classes. If
    not given, those at which each class has an equal share of what demonstrations of uneven quality show, for the three tasks of the
    paper; equal widths of [0, 1] for others."""
    levels: int | None = None
    """Classes of ratings; as published if not given: 3, and 2 for sweep-into-v3 and soccer-v3."""
    segment: int = 1
    """Transitions that are judged at a time."""
    queries: int | None = None
    """Questions in a session; as published if not given: 50 ratings, or 40 preferences."""
    budget: int | None = None
    """Most labels that are obtained; as published if not given: 10,000 ratings, or 20,000 preferences."""
    max_cost: float | None = None
    """Most US dollars that the run may ever cost."""
    views: tuple[str, ...] = ()
    """Cameras that the reward model looks through."""
    vectors: tuple[str, ...] = ()
    """Vectors that the reward model reads; the state if neither views nor vectors are given."""
    rater_view: str = ""
    """The camera that a rater other than the scripted one looks through; the reward model's first one, else close-no-robot."""
    size: int = 128
    """Height and width of pictures in pixels."""
    transform: Literal["raw", "unit"] = "raw"
    """What becomes of the reward model's numbers: nothing (-1 to 1), or brought to 0 to 1."""
    pessimism: float = 0.0
    """How many times the spread of the reward model's members is taken off their mean."""
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
    videos: int = 0
    """Tasks of each evaluation of which a video (animated WebP) is kept."""
    video_view: str = "corner2"
    """The camera of videos."""
    quiet: bool = False
    """No progress bar."""
    loop: Suppress[Any] = None
    """How long each part lasts (`guerdon.training.online.Config`); its defaults if not given."""
    fitting: Suppress[Any] = None
    """How the reward model is fitted (`guerdon.rewards.fitting.Config`); the method's own defaults if not given."""
    algorithm_settings: Suppress[Any] = None
    """Config of the algorithm; its defaults if not given."""
    rater_settings: Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Config of each rater by the name of its file; defaults if not given."""

    def __post_init__(self) -> None:
        source_of(self.method)
        for name, least in (
            ("episode_steps", 1), ("repeat", 1), ("hold", 1), ("evaluation_tasks", 0), ("levels", 2), ("segment", 1), ("queries", 1),
            ("budget", 1), ("size", 1), ("videos", 0), ("concurrency", 1), ("seed", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is at least {least}, got {value}")
        if not 0 <= self.error_rate <= 1:
            raise UsageError(f"error_rate lies in [0, 1], got {self.error_rate}")
        if not 0 <= self.pessimism < float("inf"):
            raise UsageError(f"pessimism is a number from 0 on, got {self.pessimism}")
        if self.max_cost is not None and not 0 < self.max_cost < float("inf"):
            raise UsageError(f"max_cost is a number above 0, got {self.max_cost}")
        if not self.vlm:
            raise UsageError("no rater was named", cure="For example: --vlm scripted")
        if self.teacher and self.vlm != SCRIPTED:
            raise UsageError("--teacher is about the scripted rater, and another one is asked", cure="Leave out --teacher or --vlm.")
        if self.segment > self.episode_steps:
            raise UsageError(f"a segment of {self.segment} steps does not fit into an episode of {self.episode_steps}")


# --- where rewards come from ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where rewards may come from: a row of `SOURCES`."""

    make: Callable[[Config, Path], Rewards]
    """Makes it for a run, whose folder is there. The Config has everything decided (see `decided`)."""
    kind: Literal["ratings", "preferences"] | None = None
    """What is asked in sessions; None if none are held."""
    fitting: Mapping[str, Any] = field(default_factory=dict)
    """How its reward model is fitted, where that differs from the defaults of `guerdon.rewards.fitting.Config`."""
    queries: int = 50
    """Questions in a session, as published."""
    every: int = 5_000
    """Steps between two sessions, as published."""
    budget: int = 10_000
    """Labels, as published."""
    looks: Callable[[Config], tuple[str, ...]] | None = None
    """Views that must be stored with every step, because somebody looks at them; if not given, those of the reward model and of the rater
    where sessions are held, else none."""

    def views(self, config: Config) -> tuple[str, ...]:
        """Views that must be stored with every step of a run."""
        if self.looks is not None:
            return self.looks(config)
        shown = () if self.kind is None or config.vlm == SCRIPTED else (config.rater_view,)
        return tuple(dict.fromkeys((*(config.views if self.kind is not None else ()), *shown)))


def _true(config: Config, out: Path) -> Rewards:
    from guerdon.training.online import TrueReward

    del config, out
    return TrueReward()


def _sparse(config: Config, out: Path) -> Rewards:
    from guerdon.training.online import SparseReward

    del config, out
    return SparseReward()


def _judged(config: Config, out: Path) -> Rewards:
    from guerdon.recipes import _online_rewards

    return _online_rewards.JudgedReward(config, out)


SOURCES: dict[str, Source] = {
    "erl-vlm": Source(_judged, kind="ratings"),
    "vanilla": Source(_judged, kind="ratings", fitting={"loss": "ce", "boundary": "lower", "weights": "none", "sampler": "uniform"}),
    "rl-vlm-f": Source(_judged, kind="preferences", fitting={"loss": "ce"}, queries=40, every=4_000, budget=20_000),
    "true": Source(_true),
    "sparse": Source(_sparse),
}
"""Where rewards come from, by the name of the method. To add one is to add a row."""
_GROUP = "guerdon.reward_sources"


def sources() -> list[str]:
    """Names of all methods, those of other packages included. Imports none of these."""
    return sorted(SOURCES.keys() | {point.name for point in entry_points(group=_GROUP)})


def source_of(method: str) -> Source:
    """The row of a method. Raises UnknownName."""
    if method in SOURCES:
        return SOURCES[method]
    for point in entry_points(group=_GROUP):
        if point.name == method:
            found: Source = point.load()
            return found
    raise UnknownName("method of learning", method, sources())


def fitting_config(method: str) -> type[Any]:
    """`guerdon.rewards.fitting.Config` with the defaults of a method. Raises UnknownName."""
    from guerdon.rewards import fitting

    changed = source_of(method).fitting
    hints = get_type_hints(fitting.Config)
    fields = [(name, hints[name], dataclasses.field(default=value)) for name, value in changed.items()]
    return dataclasses.make_dataclass("Config", fields, bases=(fitting.Config,), frozen=True, kw_only=True) if fields else fitting.Config


# --- the recipe -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learned:
    """A finished run."""

    path: Path
    """Its folder."""
    results: Mapping[str, Any]
    """What its manifest says: see `online`."""
    kept: bool
    """Whether it was finished already."""


@callable_with_settings(Config)
def online(config: Config) -> Learned:
    """Writes the run into OUT and returns it. A run that was stopped goes on, with the same numbers as if it had not been.

    The results, also in OUT/manifest.json: "steps", "episodes", "sessions", "labels", "requests", "dollars" (None: a price is not known),
    "success" and "return" of the last evaluation (None without one), "seconds".

    Raises:
        RunError: if OUT holds other files, or a run with other settings; says which.
        UnknownName, UsageError: for names and settings that do not go together.
        MissingExtra: if torch or Meta-World are not installed.
        RewardError: if the budget is used up and there is no reward model.
        PolicyError: if learning diverges.
        EnvironmentFailed, DatasetError, ProviderError, StoreError, WriteFailed: each says what to do.
    """
    config = decided(config)
    asked = settings_of(config)
    if source_of(config.method).kind is not None and not (config.out / MANIFEST).is_file():
        _require_askable(config)
    from guerdon.training.offline import use_one_thread
    from guerdon.training.online_records import alone, begin_or_go_on

    begin_or_go_on(config.out, asked)
    with alone(config.out):
        if (config.out / MANIFEST).is_file():
            return Learned(config.out, read_json(config.out / MANIFEST)["results"], kept=True)
        use_one_thread()
        results = _learn(config)
        write_json(config.out / MANIFEST, Manifest(asked, {}, results).to_record())
    return Learned(config.out, results, kept=False)


def _require_askable(config: Config) -> None:
    """Raises what would come to light in the first session only, for settings of feedback, the reward model's look and the rater."""
    from guerdon.envs.metaworld import provenance
    from guerdon.recipes import _online_rewards, feedback

    _online_rewards.look_of(config)
    feedback.require_askable(_online_rewards.feedback_config(config), provenance([config.task]))


def decided(config: Config) -> Config:
    """The settings with everything decided that was left to the method, the task or the number of steps.

    Raises:
        UnknownName: for a task, a view or a method that there is not.
        UsageError: for settings that do not go together.
    """
    discover.load("envs", "metaworld")  # names the extra if it is not installed
    from guerdon.envs._metaworld_simulator import LONGEST, VIEWS
    from guerdon.envs.metaworld import NAMES, STATE
    from guerdon.training import online as loop

    for view in (*config.views, *((config.video_view,) if config.videos else ()), *((config.rater_view,) if config.rater_view else ())):
        if view not in VIEWS:
            raise UnknownName("Meta-World view", view, VIEWS)
    if config.task not in NAMES:
        raise UnknownName("Meta-World task", config.task, NAMES)
    if config.episode_steps * config.repeat > LONGEST:
        each = "" if config.repeat == 1 else f" of {config.repeat} each"
        raise UsageError(f"the simulator ends after {LONGEST} steps, an episode cannot have {config.episode_steps}{each}")
    source = source_of(config.method)
    algorithm = discover.load("algorithms", config.algorithm)
    if not issubclass(algorithm, OnlineAlgorithm):
        cure = "For example: --algorithm sac"
        raise UsageError(f"{config.algorithm} learns from recorded data and cannot learn while acting", cure=cure)
    asks = source.kind is not None
    levels = (config.levels or _LEVELS.get(config.task, 3)) if source.kind == "ratings" else None
    usual = _EDGES.get(config.task, {}).get(levels, ()) if levels and config.vlm == SCRIPTED else ()
    config = replace(
        config,
        levels=levels,
        edges=config.edges or usual,
        queries=(config.queries or source.queries) if asks else None,
        budget=(config.budget or source.budget) if asks else None,
        vectors=config.vectors or (() if config.views else (STATE,)),
        rater_view=config.rater_view or (config.views or (_RATERS_VIEW,))[0],
        fitting=(config.fitting or fitting_config(config.method)()) if asks else None,
        algorithm_settings=config.algorithm_settings or algorithm.Config(),
    )
    pictures = bool(source.views(config))
    given = config.loop or loop.Config()
    schedule = given.schedule(pictures=pictures, published_every=source.every, episode_steps=config.episode_steps)
    if not asks:  # nothing is to be found out before rewards are known
        schedule = replace(schedule, first_session=schedule.random_steps)
    return replace(config, loop=schedule)


def settings_of(config: Config) -> dict[str, Any]:
    """Everything that decides the numbers, JSON-ready, of settings that are `decided`."""
    return {name: value for name, value in as_record(config).items() if name not in NOT_OF_THE_NUMBERS}


def world_of(config: Config) -> World:
    """Where a run learns: every episode has a task of its own, with everything in other places."""
    from guerdon.envs.metaworld import MOST_REWARD, STATE, MetaWorld, new_task
    from guerdon.training.online import World

    never = config.episode_steps * config.repeat + 1

    def task(number: int) -> Task:
        seed = stream_seed(config.seed, "online", "task", number) % 2**31
        return new_task(
            config.task, seed, step_limit=config.episode_steps, hold=config.hold or never, size=config.size, repeat=config.repeat
        )

    def frozen(number: int) -> Task:
        seed = 2**31 + stream_seed(0, "online evaluation", config.task, number) % 2**31  # those of learning are below
        return new_task(config.task, seed, step_limit=config.episode_steps, hold=never, size=config.size, repeat=config.repeat)

    def succeeded(environment: Environment) -> bool:
        assert isinstance(environment, MetaWorld)
        return environment.success

    def quality(step: Step) -> float:
        return min(max(step.reward / MOST_REWARD, 0.0), 1.0)

    return World(
        make=MetaWorld,
        task=task,
        evaluation=tuple(frozen(number) for number in range(config.evaluation_tasks)),
        succeeded=succeeded,
        quality=quality,
        sees=STATE,
        views=source_of(config.method).views(config),
    )


@lru_cache(maxsize=8)
def vector_sizes(task: str) -> Mapping[str, int]:
    """Name of each vector that is seen in a task -> its size."""
    from guerdon.envs.metaworld import MetaWorld, new_task

    with closing(MetaWorld(())) as environment:
        return {name: len(vector) for name, vector in environment.reset(new_task(task, 0, step_limit=1)).vectors.items()}


def _learn(config: Config) -> dict[str, Any]:
    """Carries a run out, or the rest of it; returns the results for its manifest."""
    import torch

    from guerdon.envs.metaworld import MetaWorld
    from guerdon.machine import Machine
    from guerdon.training.online import OnlineRun
    from guerdon.training.online_records import EVALUATIONS, read_lines
    from guerdon.training.policy import save_policy

    torch.manual_seed(stream_seed(config.seed, "online", "torch") % 2**63)
    world = world_of(config)
    settings, state_size = config.algorithm_settings, vector_sizes(config.task)[world.sees]
    algorithm = discover.load("algorithms", config.algorithm)(state_size, MetaWorld.action_size, settings, seed=config.seed)
    algorithm.to(Machine.of(config.device).device)
    rewards = source_of(config.method).make(config, config.out)
    run = OnlineRun(
        algorithm,
        world,
        rewards,
        config.loop,
        batch=settings.batch,
        seed=config.seed,
        out=config.out,
        log_to_tensorboard=config.tensorboard,
        film=partial(_write_video, config.out / VIDEOS) if config.videos else None,
        filmed=config.videos,
        film_view=config.video_view,
    )
    with closing(run), progress_bar(f"{config.method} in {config.task}", quiet=config.quiet) as progress:
        run.learn(progress)
    save_policy(config.out / POLICY, algorithm.policy, algorithm.spec, {"algorithm": config.algorithm, "settings": settings_of(config)})
    last = (read_lines(config.out / EVALUATIONS) or [{}])[-1]
    spent = rewards.spent
    return {
        "steps": run.made,
        "episodes": run.episodes,
        "sessions": rewards.sessions,
        "labels": spent.labels,
        "requests": spent.requests,
        "dollars": spent.dollars,
        "success": last.get("success"),
        "return": last.get("return"),
        "seconds": round(run.seconds, 3),
    }


def _write_video(folder: Path, step: int, task: Task, pictures: Frames) -> None:
    """Writes an animated WebP of an episode. Raises WriteFailed."""
    from PIL import Image

    frames = [Image.fromarray(np.asarray(picture)) for picture in pictures[::_FRAMES_BETWEEN]]
    with writing(folder / f"step-{step:08d}" / f"{task.id.replace('/', '-')}.webp") as temporary:
        duration = _MILLISECONDS_A_PICTURE * _FRAMES_BETWEEN // 2  # twice as fast as it was
        frames[0].save(temporary, format="WEBP", save_all=True, append_images=frames[1:], duration=duration, loop=0)
