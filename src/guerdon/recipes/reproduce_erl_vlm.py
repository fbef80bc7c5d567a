"""ERL-VLM's experiments: what a policy is worth that learns while a rater judges what it does, beside what it has to beat.

The setting of the paper (arXiv 2506.12822, its learning curves and its ablation), smaller: soft actor-critic in two tasks of Meta-World,
and one policy for several instructions at once in BabyAI, instead of ALFRED's household. Ratings come from what the simulator knows,
without errors or with a fifth of them wrong. Arms differ in their reward only:

- `true` learns from the simulator's own reward (in BabyAI: whether each action served the instruction), `sparse` from 1 at success and 0
  elsewhere, `quality` from how good each state is, as ratings without any mistake would say;
- `erl_vlm` learns from ratings, `vanilla` as ratings were learned from before (both also as `..._mistake`, with wrong ratings);
- `rl_vlm_f` learns from preferences, as many of them as there are ratings;
- `ce` and `unbalanced` are `erl_vlm_mistake` with another loss, and without balanced batches and weights;
- `erl_vlm_pictures` has a reward model that looks at pictures, `erl_vlm_embedded` the package's own small rater.

Reads nothing. Writes OUT/runs/WORLD/TASK/ARM/seed-K (a run of `guerdon online` each), OUT/erl-vlm.json, OUT/erl-vlm.parquet (one row for
each task of each evaluation of each run) and OUT/figures, and fills the marks of a page with the numbers. Whatever is there is kept: runs
of a killed study go on from their checkpoints, and more worlds, tasks, arms or seeds add to what is there.
"""

from __future__ import annotations

import _thread
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as arrow

from guerdon import discover
from guerdon.errors import RunError, UnknownName, UsageError
from guerdon.labels import read_table
from guerdon.recipes import _study, online
from guerdon.recipes._erl_vlm_results import BABYAI, DRAWER, INSTRUCTIONS, METAWORLD, SWEEP, TABLES, TASKS, Results, figures, value_of
from guerdon.recipes.parallel import run_jobs
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.settings import as_record
from guerdon.records import canonical_json
from guerdon.runs import command_line, package_version, read_json, write_json

RESULTS, ROWS, STUDY, TIMES, RUNS, STORE = "erl-vlm.json", "erl-vlm.parquet", "study.json", "seconds.jsonl", "runs", "replies.sqlite"
WORLDS = (METAWORLD, BABYAI)
METAWORLD_TASKS = tuple(task for task, world in TASKS.items() if world == METAWORLD)


# --- settings that all runs of a world share ----------------------------------------------------------------------------------------

METAWORLD_SETTINGS: Mapping[str, Any] = {
    "episode_steps": 100,
    "repeat": 2,
    "evaluation_tasks": 10,
    "queries": 50,
    "edges": {DRAWER: (0.15, 0.2, 0.35, 0.6), SWEEP: (0.033, 0.125, 0.291, 0.5)},
    "loop": {"random_steps": 500, "first_session": 2_000, "every": 1_000},
    "fitting": {"batch": 32},
    "algorithm": {
        "batch": 256, "hidden": (256, 256), "normed_critics": True, "target_every": 1,
        "actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3, "temperature_learning_rate": 1e-3,
    },
}  # fmt: skip
"""Published constants are for a million steps. In 25,000 the policy has to meet its first reward earlier, be told more often, and learn
more from every step. With the published batches of 512 all ratings that there are would be in one batch, and batches could be balanced in
one way only. What the simulator answers is cut where a task's stages begin: on the way, near, at the thing, moving it, done; with fewer
classes either the beginning or the end would all look alike."""
BABYAI_SETTINGS: Mapping[str, Any] = {
    "tasks": 10,
    "lengths": (1, 3),
    "demonstrations": 3,
    "feedback": {"budget": 1_500, "passes": 10},
    "loop": {"episodes": 20, "updates": 200, "first_updates": 400, "session_every": 5, "temperature": 0.5},
    "fitting": {"encoder": "residual", "batch": 32, "learning_rate": 1e-3, "held_out": 0.0, "members": 2},
    "algorithm": {"inverse_temperature": 3.0},
}
_EVALUATIONS = 10
"""Evaluations of a run, beside the one before it begins."""


# --- arms ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One source of rewards."""

    name: str
    """What it goes by."""
    words: str
    """What it is called in tables."""
    method: str
    """As of `guerdon online`."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """What it can be tried on."""
    core: tuple[str, ...] = ()
    """What it is tried on if no arms are named."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `guerdon online` that are its own."""
    fitting: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its reward model that are its own."""
    most_seeds: int | None = None
    """Runs that are made of it at most."""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready data."""
        return as_record(self)


_MISTAKES = {"teacher": "mistake", "error_rate": 0.2}
_ARMS: tuple[Arm, ...] = (
    Arm(name="true", words="true reward", method="true", core=tuple(TASKS)),
    Arm(name="quality", words="true quality of states", method="quality", tasks=(INSTRUCTIONS,), core=(INSTRUCTIONS,)),
    Arm(name="erl_vlm", words="ERL-VLM", method="erl-vlm", core=tuple(TASKS)),
    Arm(
        name="erl_vlm_mistake", words="ERL-VLM, a fifth wrong", method="erl-vlm", tasks=METAWORLD_TASKS, core=METAWORLD_TASKS,
        settings=_MISTAKES,
    ),
    Arm(name="vanilla", words="vanilla ratings", method="vanilla", core=tuple(TASKS)),
    Arm(
        name="vanilla_mistake", words="vanilla ratings, a fifth wrong", method="vanilla", tasks=METAWORLD_TASKS, core=METAWORLD_TASKS,
        settings=_MISTAKES,
    ),
    Arm(name="rl_vlm_f", words="RL-VLM-F", method="rl-vlm-f", core=(INSTRUCTIONS,)),
    Arm(name="sparse", words="sparse reward", method="sparse", core=(INSTRUCTIONS,)),
    Arm(
        name="ce", words="cross entropy, a fifth wrong", method="erl-vlm", tasks=METAWORLD_TASKS, settings=_MISTAKES,
        fitting={"loss": "ce"},
    ),
    Arm(
        name="unbalanced", words="shuffled batches, no weights, a fifth wrong", method="erl-vlm", tasks=METAWORLD_TASKS, settings=_MISTAKES,
        fitting={"sampler": "uniform", "weights": "none"},
    ),
    Arm(
        name="erl_vlm_pictures", words="ERL-VLM from pictures", method="erl-vlm", tasks=METAWORLD_TASKS, most_seeds=1,
        settings={"views": ("close-no-robot",), "size": 64},
    ),
    Arm(
        name="erl_vlm_embedded", words="ERL-VLM, embedded rater", method="erl-vlm", tasks=(INSTRUCTIONS,), settings={"vlm": ("embedded",)},
    ),
)  # fmt: skip
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in _ARMS}
"""Every arm."""


# --- settings -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """How large the study is, and which arms it has."""

    out: Path = Path("runs/erl-vlm")
    """Folder of the study; a study that was begun there goes on."""
    arms: tuple[str, ...] = ()
    """Arms by name, tried wherever they can be; if not given, in Meta-World true, erl_vlm and vanilla with right and with wrong ratings, in
    BabyAI true, quality, erl_vlm, vanilla, rl_vlm_f and sparse. They add to those that the study has already."""
    worlds: tuple[str, ...] = WORLDS
    """Worlds to learn in."""
    tasks: tuple[str, ...] = METAWORLD_TASKS
    """Tasks of Meta-World."""
    seeds: int = 3
    """Runs of each arm."""
    steps: int = 25_000
    """Environment steps of each run in Meta-World."""
    rounds: int = 15
    """Rounds of each run in BabyAI, of 20 episodes each."""
    page: Path | None = None
    """Page whose marks are filled with the numbers; its figures are written beside it. None if not given."""
    jobs: int = 0
    """Runs at a time; as many as there are cores if 0."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.rounds < 1 or self.jobs < 0:
            raise UsageError("seeds and rounds are at least 1, jobs at least 0")
        if self.steps < 2 * _EVALUATIONS:
            raise UsageError(f"steps are at least {2 * _EVALUATIONS}, got {self.steps}")
        for what, given, known in (
            ("world", self.worlds, WORLDS), ("task of the study", self.tasks, METAWORLD_TASKS), ("arm of the study", self.arms, ARMS),
        ):  # fmt: skip
            for name in given:
                if name not in known:
                    raise UnknownName(what, name, known)
            if len(set(given)) < len(given):
                raise UsageError(f"a {what} is named twice: {' '.join(given)}")
        if not self.chosen:
            cure = "Name others, or leave --arms out."
            raise UsageError(f"there is nothing to do: {' '.join(self.arms) or 'no arm'} cannot be tried there", cure=cure)
        idle = sorted(set(self.arms) - {arm.name for arm, _ in self.chosen})
        if idle:
            where = "; ".join(f"{name}: {', '.join(ARMS[name].tasks)}" for name in idle)
            raise UsageError(f"arms that cannot be tried in what was named ({where})", cure="Name their worlds and tasks, too.")

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """What is learned, in the order of the study."""
        return tuple(task for task, world in TASKS.items() if world in self.worlds and (world == BABYAI or task in self.tasks))

    @property
    def chosen(self) -> tuple[tuple[Arm, str], ...]:
        """Arms and tasks that are asked for."""
        return tuple(
            (arm, task)
            for task in self.all_tasks
            for arm in ARMS.values()
            if (task in arm.tasks and arm.name in self.arms if self.arms else task in arm.core)
        )

    def run(self, arm: Arm, task: str, seed: int) -> Path:
        """Folder of a run."""
        return self.out / RUNS / TASKS[task] / task / arm.name / f"seed-{seed}"


# --- what is done -------------------------------------------------------------------------------------------------------------------


def reproduce(config: Config) -> list[Path]:
    """Carries out what is not done yet; returns what was written.

    Raises:
        RunError: if the study was begun with other settings, or another process is at work in one of its runs.
        MissingExtra: if torch, Meta-World or BabyAI are not installed.
        RewardError, PolicyError, EnvironmentFailed, WriteFailed, and what `guerdon online` raises: each says what to do.
    """
    jobs = jobs_of(config)
    settings = _begin(config)
    with _study.timed(config.out / TIMES, "learning"), progress_bar(f"{len(jobs)} runs", quiet=config.quiet, share=True) as progress:
        run_jobs(carry_out, jobs, workers=config.jobs, progress=progress)
    with _study.timed(config.out / TIMES, "collecting"):
        record, rows = _merged(config, *collected(config.out))
    return _write(config, settings, record, rows)


def _begin(config: Config) -> dict[str, Any]:
    """The settings that all runs of a world share, written down when it is begun. Raises RunError if it was begun with others."""
    in_metaworld = {"steps": config.steps, METAWORLD: {**METAWORLD_SETTINGS, "loop": _schedule(config.steps)}}
    in_babyai = {"rounds": config.rounds, BABYAI: BABYAI_SETTINGS}
    asked = {**(in_metaworld if METAWORLD in config.worlds else {}), **(in_babyai if BABYAI in config.worlds else {})}
    asked = json.loads(canonical_json(asked))  # as it is read back
    path = config.out / STUDY
    begun: dict[str, Any] = read_json(path) if path.is_file() else {}
    for name, value in asked.items():
        if begun.get(name, value) != value:
            what = f"this study was begun with {name} {canonical_json(begun[name])}, not {canonical_json(value)}"
            raise RunError(what, where=str(config.out), cure="Give the same settings again, or begin another study: --out FOLDER")
    if not asked.keys() <= begun.keys():
        write_json(path, {**begun, **asked})
    return {**begun, **asked}


# --- runs ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run."""

    world: str
    settings: Any
    """Config of `guerdon.recipes.online` or `guerdon.recipes.online_babyai`."""
    total: int
    """Steps or rounds that it has."""


def jobs_of(config: Config) -> list[Job]:
    """All runs that are asked for, those that are there included: all arms of a seed before the next one, so that a study that was stopped
    has all arms of the first seeds. Raises what the settings of runs raise."""
    wanted = [
        (seed, arm, task)
        for seed in range(config.seeds)
        for arm, task in config.chosen
        if arm.most_seeds is None or seed < arm.most_seeds
    ]  # fmt: skip
    for world in {TASKS[task] for _, _, task in wanted}:
        discover.load("envs", world)  # names the extra if it is not installed
        discover.load("algorithms", {METAWORLD: "sac", BABYAI: "iql"}[world])
    make = {METAWORLD: _in_metaworld, BABYAI: _in_babyai}
    return [make[TASKS[task]](config, arm, task, seed) for seed, arm, task in wanted]


def _schedule(steps: int) -> dict[str, int]:
    """The loop of a run in Meta-World: that of the table, in shorter runs less of everything."""
    usual = METAWORLD_SETTINGS["loop"]
    first = min(usual["first_session"], steps // 5)
    return {
        **usual,
        "steps": steps,
        "random_steps": min(usual["random_steps"], first // 4),
        "first_session": first,
        "every": min(usual["every"], max(1, steps // 20)),
        "evaluate_every": steps // _EVALUATIONS,
    }


def _in_metaworld(config: Config, arm: Arm, task: str, seed: int) -> Job:
    from guerdon.algorithms.sac import SAC
    from guerdon.training.online import Config as Loop

    shared = METAWORLD_SETTINGS
    kind, edges = online.source_of(arm.method).kind, tuple(shared["edges"].get(task, ()))
    judged = {"queries": shared["queries"], "fitting": _fitting(arm, shared["fitting"]), **arm.settings} if kind is not None else {}
    if edges and kind == "ratings":
        judged |= {"edges": edges, "levels": len(edges) + 1}
    settings = online.Config(
        method=arm.method, out=config.run(arm, task, seed), task=task, seed=seed, episode_steps=shared["episode_steps"],
        repeat=shared["repeat"], evaluation_tasks=shared["evaluation_tasks"], loop=Loop(**_schedule(config.steps)),
        algorithm_settings=SAC.Config(**shared["algorithm"]), quiet=True, **judged,
    )  # fmt: skip
    return Job(METAWORLD, settings, config.steps)


def _in_babyai(config: Config, arm: Arm, task: str, seed: int) -> Job:
    from guerdon.recipes import online_babyai
    from guerdon.training.online_episodes import Config as Loop

    shared = BABYAI_SETTINGS
    asks = arm.method not in online_babyai.KNOWN
    judged = {**shared["feedback"], "fitting": _fitting(arm, shared["fitting"]), **arm.settings} if asks else {}
    loop = {**shared["loop"], "rounds": config.rounds, "evaluate_every": max(1, config.rounds // _EVALUATIONS)}
    settings = online_babyai.Config(
        method=arm.method, out=config.run(arm, task, seed), seed=seed, tasks=shared["tasks"], lengths=tuple(shared["lengths"]),
        demonstrations=shared["demonstrations"], loop=Loop(**loop), store=str(config.out / STORE),
        algorithm_settings=online_babyai.Learning(**shared["algorithm"]), quiet=True, **judged,
    )  # fmt: skip
    return Job(BABYAI, settings, config.rounds)


def _fitting(arm: Arm, shared: Mapping[str, Any]) -> Any:
    """How an arm's reward model is fitted."""
    from guerdon.recipes.feedback import fitting_preset

    return replace(fitting_preset(arm.method), **{**shared, **arm.fitting})


def carry_out(job: Job, progress: Callable[[int, int], object]) -> Path:
    """Carries a run out, or the rest of it; returns its folder."""
    from guerdon.training.online_records import METRICS, read_lines

    out: Path = job.settings.out
    counted = "step" if job.world == METAWORLD else "round"

    def report() -> None:
        lines = read_lines(out / METRICS)
        progress(int(lines[-1][counted]) if lines else 0, job.total)

    with _reporting(report):
        if job.world == METAWORLD:
            return online.online.of(job.settings).path
        from guerdon.recipes.online_babyai import online_babyai

        return online_babyai.of(job.settings).path


_SECONDS_BETWEEN_REPORTS = 2.0


@contextmanager
def _reporting(report: Callable[[], None]) -> Iterator[None]:
    """Calls `report` now and then while the block runs, in a thread beside it; if that is told to stop, the block is interrupted."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SECONDS_BETWEEN_REPORTS):
            try:
                report()
            except KeyboardInterrupt:
                if not over.is_set():
                    _thread.interrupt_main()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- results ------------------------------------------------------------------------------------------------------------------------

_SCHEMA = arrow.schema(
    [
        ("world", arrow.string()), ("task", arrow.string()), ("arm", arrow.string()), ("seed", arrow.int64()),
        ("evaluation", arrow.int64()), ("step", arrow.int64()), ("episode", arrow.int64()), ("place", arrow.int64()),
        ("case", arrow.string()), ("start", arrow.string()), ("length", arrow.int64()), ("success", arrow.bool_()),
        ("return", arrow.float64()),
    ]
)  # fmt: skip
Place = tuple[str, str, int]
"""Task, arm and seed of a run."""
_KEPT = ("steps", "episodes", "sessions", "labels", "requests", "dollars", "success", "return", "seconds")


def collected(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the finished runs of a study say: a record for each run (its place and the results of its manifest), and the rows of their
    evaluations. Raises RunError for a damaged one."""
    from guerdon.training.online_records import EVALUATIONS, METRICS, read_lines

    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for path in sorted((out / RUNS).glob(f"*/*/*/seed-*/{online.MANIFEST}")):
        folder = path.parent
        task, arm, number = folder.parts[-3:]
        if arm not in ARMS or task not in TASKS or not number.removeprefix("seed-").isdecimal():
            continue
        place = {"world": TASKS[task], "task": task, "arm": arm, "seed": int(number.removeprefix("seed-"))}
        manifest = read_json(path)
        evaluations, metrics = read_lines(folder / EVALUATIONS), read_lines(folder / METRICS)
        try:
            runs.append(place | {name: manifest["results"][name] for name in _KEPT})
            rows += rows_of(place, manifest["config"], evaluations, metrics)
        except (KeyError, TypeError) as error:
            cure = "Delete this run; it is made again."
            raise RunError(f"is damaged ({type(error).__name__}: {error})", where=str(folder), cure=cure) from error
    return runs, rows


def rows_of(
    place: Mapping[str, Any], settings: Mapping[str, Any], evaluations: Iterable[Mapping[str, Any]], metrics: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The rows of a run, one for each task of each evaluation.

    Args:
        place: world, task, arm and seed.
        settings: of the run.
        evaluations, metrics: lines that the run wrote.
    """
    rounds = {line["step"]: line["round"] for line in metrics} if place["world"] == BABYAI else {}
    for number, line in enumerate(evaluations):
        step = line["step"]
        episode = rounds[step] * settings["loop"]["episodes"] if rounds else -(-step // settings["episode_steps"])
        for order, outcome in enumerate(line["outcomes"]):
            yield {
                **place, "evaluation": number, "step": step, "episode": episode, "place": order, "case": outcome["task"],
                "start": outcome.get("start", "fixed"), "length": outcome.get("length", 1), "success": bool(outcome["success"]),
                "return": float(outcome["return"]),
            }  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study (`OUT/erl-vlm.parquet`). Raises RunError."""
    rows: list[dict[str, Any]] = read_table(path, "table of a study", _SCHEMA)[0].to_pylist()
    return rows


def merge(before: Iterable[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], *, runs: Iterable[Place]) -> list[dict[str, Any]]:
    """Rows or records of earlier calls and of this one: those of now, and of earlier ones what is of no run in `runs`. In the order of the
    study."""
    newer = set(runs)
    kept = [each for each in before if _place_of(each) not in newer and each["task"] in TASKS and each["arm"] in ARMS]
    tasks, arms = list(TASKS), list(ARMS)
    return sorted(
        map(dict, (*kept, *now)),
        key=lambda each: (
            tasks.index(each["task"]), arms.index(each["arm"]), each["seed"], each.get("evaluation", 0), each.get("place", 0)
        ),
    )  # fmt: skip


def _place_of(each: Mapping[str, Any]) -> Place:
    return each["task"], each["arm"], each["seed"]


def _merged(config: Config, runs: list[dict[str, Any]], rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was found before, where its runs are no longer there, and now."""
    path, table = config.out / RESULTS, config.out / ROWS
    before = read_json(path) if path.is_file() and table.is_file() else {}
    found = [_place_of(run) for run in runs]
    all_runs = merge(before.get("runs", ()), runs, runs=found)
    all_rows = merge(read_rows(table) if before else (), rows, runs=found)
    there = {run["arm"] for run in all_runs}
    commands = list(dict.fromkeys([*before.get("commands", ()), command_line()]))
    record = {
        "runs": all_runs,
        "arms": [arm.to_record() for arm in ARMS.values() if arm.name in there],
        "commands": [command for command in commands if command],
    }
    return record, all_rows


def _write(config: Config, settings: Mapping[str, Any], found: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[Path]:
    """Writes record, rows, figures and page, and prints the tables."""
    record = {
        "version": package_version(), "machine": _study.machine(), "seconds": _study.seconds_of(config.out / TIMES),
        "config": as_record(config), "settings": dict(settings),
        **found,
    }  # fmt: skip
    results, columns = Results(record, rows), {name: [row[name] for row in rows] for name in _SCHEMA.names}
    return _study.write_study(
        config.out / RESULTS, record, config.out / ROWS, arrow.table(columns, schema=_SCHEMA),
        tables=((name, give(results)) for name, give in TABLES.items()), figures=figures(results), page=config.page,
        value_of=lambda key: value_of(key, results),
    )  # fmt: skip
