"""Evaluating policies and baselines in their world, on one frozen list of tasks shared by all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from guerdon import discover
from guerdon.errors import RunError, UsageError
from guerdon.evaluation.baselines import RandomActor, ReplayActor
from guerdon.evaluation.tasks import TaskList, recorded_lengths, task_list
from guerdon.interfaces import Actor, Dataset, Environment
from guerdon.recipes.data import dataset_of
from guerdon.recipes.parallel import run_jobs
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.settings import callable_with_settings
from guerdon.recipes.train import inputs_of
from guerdon.records import digest
from guerdon.rollout import EpisodeResult, run_tasks
from guerdon.runs import Manifest, Run, write_json, writing

BASELINES = ("random", "replay")
"""Arms that learn nothing: actions at random, and the demonstration's actions repeated blindly."""
_LONGEST = 6
"""Sub-tasks of the longest tasks that are evaluated unasked."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to evaluate, and on which tasks."""

    run: Positional[Path]
    """The run folder."""
    arms: tuple[str, ...] = ()
    """Which policies (folders of RUN/policies) and baselines (random, replay); all of them if not given."""
    lengths: tuple[int, ...] = ()
    """Numbers of sub-tasks; all that the dataset has, up to 6, if not given."""
    per_length: int = 10
    """Tasks of each length; each is set from the recorded start, from another start, and in words that the data does not use. All recorded
    tasks of these lengths if 0."""
    other_words: bool = True
    """Set each task also in words that the data does not use."""
    tasks: Path | None = None
    """A list of tasks that another run has (its tasks.json), instead of tasks drawn from this run's dataset: policies of different datasets
    meet the same tasks."""
    seed: int = 0
    """Seed of the choice of tasks and starts."""
    seeds: int = 0
    """Seeds of the random baseline; as many as the policies have if 0."""
    policy_seeds: tuple[int, ...] = ()
    """Which policies of each arm, by their seeds; all that are finished if not given."""
    rollouts: int = 3
    """Tasks for which a short film of the first seed is kept."""
    jobs: int = 0
    """Evaluations at a time, one core each; as many as there are cores if 0."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if min(self.per_length, self.seeds, self.rollouts, self.jobs, *self.policy_seeds, 0) < 0:
            raise UsageError("per_length, seeds, policy_seeds, rollouts and jobs are at least 0")


@dataclass(frozen=True)
class Job:
    """One arm with one seed on all tasks."""

    run: Path
    arm: str
    seed: int
    films: tuple[str, ...]
    """Ids of the tasks whose pictures are kept."""


@callable_with_settings(Config)
def evaluate(config: Config) -> list[dict[str, Any]]:
    """Writes RUN/tasks.json and RUN/evaluations/ARM/seed-K.jsonl, and returns all rows. Evaluations of unchanged policies on unchanged
    tasks are kept.

    Raises:
        RunError: if a policy is not there or was made from other inputs than the run now holds.
        DatasetError, UsageError, EnvironmentFailed: each says what to do.
    """
    run = Run.open(config.run)
    dataset = dataset_of(run)
    tasks = frozen_tasks(run, dataset, config)
    jobs = _jobs(run, config, tasks)
    with progress_bar(f"evaluating on {len(tasks)} tasks", quiet=config.quiet, share=True) as progress:
        run_jobs(_evaluate_one, jobs, workers=config.jobs, progress=progress)
    return [row for job in jobs for row in read_rows(_part(run, job.arm, job.seed))]


def frozen_tasks(run: Run, dataset: Dataset, config: Config) -> TaskList:
    """The run's list of tasks: made once, then the same for every arm. Raises RunError if other tasks are asked for later."""
    path = run.path / "tasks.json"
    wanted = _tasks_wanted(dataset, config)
    if not path.is_file():
        wanted.save(path)
    stored = TaskList.load(path)
    if stored.digest != wanted.digest:
        cure = "All arms of a run share their tasks: use the same settings, or delete tasks.json and the folder evaluations to begin again."
        raise RunError("holds other tasks than the ones asked for now", where=str(path), cure=cure)
    return stored


def _tasks_wanted(dataset: Dataset, config: Config) -> TaskList:
    if config.tasks is not None:
        return TaskList.load(config.tasks)
    lengths = config.lengths or tuple(length for length in recorded_lengths(dataset) if length <= _LONGEST)
    per_length = config.per_length or None
    return task_list(dataset, lengths=lengths, per_length=per_length, seed=config.seed, held_out_words=config.other_words)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an evaluation (one JSON object a line). Raises RunError."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"cannot be read ({type(error).__name__})", where=str(path), cure="Evaluate again.") from error


def _jobs(run: Run, config: Config, tasks: TaskList) -> list[Job]:
    folder = run.path / "policies"
    trained = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    arms = tuple(dict.fromkeys(config.arms or (*BASELINES, *trained)))
    seeds = {arm: _seeds_of(folder / arm) if arm in trained else [] for arm in arms if arm not in BASELINES}
    for arm, found in seeds.items():
        if arm not in trained:
            raise RunError(f"no policy is called '{arm}'; there are: {', '.join(trained) or 'none'}", where=str(folder))
        if config.policy_seeds:
            missing = sorted(set(config.policy_seeds) - set(found))
            if missing:
                cure = "Train it, or name other seeds with --policy-seeds."
                raise RunError(f"holds no finished policy of seed {missing[0]}", where=str(folder / arm), cure=cure)
            seeds[arm] = sorted(set(config.policy_seeds))
        if not found:
            cure = "Run the command that trains it again, or name the arms to evaluate with --arms."
            raise RunError("holds no finished policy", where=str(folder / arm), cure=cure)
    most = config.seeds or max((len(found) for found in seeds.values()), default=1)
    seeds |= {arm: list(range(most if arm == "random" else 1)) for arm in arms if arm in BASELINES}
    films = _films(tasks, config.rollouts)
    return [Job(config.run, arm, seed, films if number == 0 else ()) for arm in arms for number, seed in enumerate(seeds[arm])]


def _seeds_of(folder: Path) -> list[int]:
    names = [path.parent.name.removeprefix("seed-") for path in folder.glob("seed-*/manifest.json")]
    return sorted(int(name) for name in names if name.isdecimal())


def _films(tasks: TaskList, count: int) -> tuple[str, ...]:
    """Tasks worth looking at: the first of each length, from either start, shortest first."""
    first: dict[tuple[str, int], str] = {}
    for task in tasks:
        if task.wording == "seen":
            first.setdefault((task.start, task.length), task.id)
    return tuple(first[key] for key in sorted(first, key=lambda key: (key[1], key[0])))[:count]


def _part(run: Run, arm: str, seed: int) -> Path:
    return run.part("evaluations", arm) / f"seed-{seed}.jsonl"


def _evaluate_one(job: Job, progress: Progress) -> None:
    run = Run.open(job.run)
    dataset = dataset_of(run)
    tasks = TaskList.load(run.path / "tasks.json")
    part = _part(run, job.arm, job.seed)
    inputs = {"dataset": run.dataset_fingerprint, "tasks": tasks.digest, "policy": _policy_fingerprint(run, job)}
    config = {"arm": job.arm, "seed": job.seed, "tasks": len(tasks)}
    films = part.parent / f"rollouts-seed-{job.seed}"
    if run.holds(part, config, inputs) and _is_whole(part, len(tasks)) and (films.is_dir() or not job.films):
        return
    began = time.monotonic()
    environment = discover.load("envs", tasks.tasks[0].environment)
    actor = _actor(run, job, dataset, tasks, environment)
    results = run_tasks(
        actor,
        tasks.tasks,
        environment if actor.views is None else partial(environment, views=actor.views),
        keep_frames=frozenset(job.films),
        make_filmed=environment,
        progress=progress,
    )
    rows = [_row(job, result) for result in results]
    with writing(part) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if job.films:
        _write_films(films, [result for result in results if result.frames])
    measured = {"seconds": time.monotonic() - began, "episodes": len(rows)} | _of_training(run, job)
    run.finish(part, Manifest(config, inputs, measured))


def _is_whole(part: Path, episodes: int) -> bool:
    try:
        return len(read_rows(part)) == episodes
    except RunError:
        return False


def _actor(run: Run, job: Job, dataset: Dataset, tasks: TaskList, world: type[Environment]) -> Actor:
    """What acts. Raises PolicyError if a policy's actions are not those of the world."""
    if job.arm == "random":
        return RandomActor(job.seed, len(world.action_names), world.action_size)
    if job.arm == "replay":
        if tasks.dataset != dataset.fingerprint:
            cure = "Leave the arm 'replay' out with --arms."
            raise UsageError("the tasks come from another dataset, so that nothing is there to be repeated", where=str(run.path), cure=cure)
        return ReplayActor.of(dataset, tasks.sources)
    from guerdon.training.offline import use_one_thread
    from guerdon.training.policy import load_policy

    use_one_thread()
    policy = load_policy(_policy_folder(run, job))
    policy.spec.check_actions(world.action_names, world.action_size)
    return policy


def _of_training(run: Run, job: Job) -> dict[str, Any]:
    """What training measured that belongs beside the evaluation."""
    manifest = None if job.arm in BASELINES else run.manifest(_policy_folder(run, job))
    agreement = manifest and manifest["results"].get("advantage_spearman")
    return {} if agreement is None else {"advantage_spearman": agreement}


def _policy_folder(run: Run, job: Job) -> Path:
    return run.part("policies", job.arm) / f"seed-{job.seed}"


def _policy_fingerprint(run: Run, job: Job) -> str:
    """Identity of what acts. Raises StaleInput if a policy was trained on rewards that have changed since."""
    if job.arm in BASELINES:
        return job.arm
    folder = _policy_folder(run, job)
    manifest = run.require(folder, {})
    run.require(folder, inputs_of(run, manifest["config"].get("reward")))
    weights = folder / "policy.safetensors"
    try:
        return digest(weights.read_bytes())
    except OSError as error:
        raise RunError(f"cannot be read ({type(error).__name__})", where=str(weights), cure="Train it again.") from error


def _row(job: Job, result: EpisodeResult) -> dict[str, Any]:
    task = result.task
    return {
        "arm": job.arm, "seed": job.seed, "task": task.id, "length": task.length, "start": task.start, "wording": task.wording,
        "return": result.completed, "success": result.success, "steps": result.steps, "step_limit": task.step_limit,
        "reward": result.reward,
    }  # fmt: skip


def _write_films(folder: Path, results: Sequence[EpisodeResult]) -> None:
    with writing(folder) as temporary:
        temporary.mkdir()
        index = []
        for number, result in enumerate(results):
            name = f"{number}.gif"
            _write_gif(temporary / name, result)
            task = result.task
            index.append(
                {"task": task.id, "instruction": task.instruction, "length": task.length, "start": task.start, "wording": task.wording,
                 "return": result.completed, "steps": result.steps, "file": name}
            )  # fmt: skip
        write_json(temporary / "index.json", index)


_FILM_PIXELS = 240
_FILM_MILLISECONDS = 180


def _write_gif(path: Path, result: EpisodeResult) -> None:
    from PIL import Image

    frames = next(iter(result.frames.values()))
    factor = max(1, _FILM_PIXELS // max(frames.shape[1:3]))
    size = (frames.shape[2] * factor, frames.shape[1] * factor)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in frames]
    shades = [picture.quantize(64, dither=Image.Dither.NONE) for picture in pictures]
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=_FILM_MILLISECONDS, loop=0, optimize=True)
