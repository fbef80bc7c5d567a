"""Training policies in a run folder: one for each reward column and seed, side by side on the cores there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tyro.conf import Positional, Suppress

from guerdon.errors import PolicyError, StaleInput, UsageError
from guerdon.interfaces import Dataset
from guerdon.pictures import FOLDER, PicturePlace, memory_for_pictures
from guerdon.recipes.data import dataset_of, require_up_to_date, rewards_of
from guerdon.recipes.parallel import run_jobs, usable_cores
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Manifest, Run

_NOT_OF_ONE_POLICY = frozenset({"run", "rewards", "seeds", "first_seed", "jobs", "pictures_in_memory", "quiet"})
"""Settings that make no difference to a policy."""
NO_VIEWS = "none"
"""Given as a view: look at no pictures."""
_MOST_NAMED = 5
"""Arms that are named beside the progress bar."""
WITHOUT_REWARDS = ("bc",)
"""Algorithms that imitate and read no rewards; their arm goes by their own name."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train."""

    run: Positional[Path]
    """The run folder."""
    rewards: tuple[str, ...] = ("dense",)
    """Names of reward columns (guerdon reward); each becomes an arm of the comparison."""
    algorithm: str = "iql"
    """How to learn: iql, or bc, which imitates and reads no rewards."""
    seeds: int = 3
    """Number of policies for each arm, trained from seeds 0, 1, ..."""
    first_seed: int = 0
    """First of the seeds, if it is not 0."""
    updates: int | None = None
    """Gradient steps of each policy; if not given, 1500 for policies that look at pictures and 5000 for those that see vectors only."""
    views: tuple[str, ...] = ()
    """Cameras that the policy looks through, or "none". If not given: none where vectors are seen, else the dataset's first one."""
    vectors: tuple[str, ...] = ()
    """Vectors that the policy sees, such as a robot's state. If neither these nor views are given, all vectors of a dataset with continuous
    actions."""
    memory: bool = True
    """Whether policies that look at pictures remember their episode. Without a memory they learn from single transitions: usual, and much
    faster, for camera pictures of robots."""
    jobs: int = 0
    """Policies trained at a time, one core each; as many as there are cores if 0."""
    pictures_in_memory: float | None = None
    """GiB of memory that the pictures of all policies trained at a time may take. Those that do not fit are written once into the folder
    pictures of the run and read from there, which is slower; 0 writes all of them. If not given, half of the memory that is available."""
    tensorboard: bool = False
    """Also write TensorBoard logs into each policy's folder."""
    quiet: bool = False
    """No progress bars."""
    loop_settings: Suppress[Any] = None
    """Size of batches and checkpoints (`guerdon.training.offline.Config`); defaults if not given."""
    algorithm_settings: Suppress[Any] = None
    """Config of the algorithm; its defaults if not given."""

    def __post_init__(self) -> None:
        if self.first_seed < 0:
            raise UsageError(f"first_seed is at least 0, got {self.first_seed}")
        if self.seeds < 1 or (self.updates is not None and self.updates < 1) or self.jobs < 0:
            raise UsageError("seeds and updates are at least 1, jobs at least 0")
        if self.pictures_in_memory is not None and not 0 <= self.pictures_in_memory < float("inf"):
            raise UsageError(f"pictures_in_memory is a number of GiB that is not negative, got {self.pictures_in_memory}")
        if self.algorithm not in WITHOUT_REWARDS and not self.rewards:
            raise UsageError(f"{self.algorithm} needs at least one reward column", cure="Name it: --rewards NAME")
        if NO_VIEWS in self.views and len(self.views) > 1:
            raise UsageError(f"--views {NO_VIEWS} goes with no other view, got {' '.join(self.views)}")

    def arms(self) -> dict[str, str | None]:
        """Name of each arm and the reward column it learns from."""
        if self.algorithm in WITHOUT_REWARDS:
            return {self.algorithm: None}
        return {name if self.algorithm == "iql" else f"{name}_{self.algorithm}": name for name in self.rewards}


@dataclass(frozen=True)
class Job:
    """One policy to be trained."""

    config: Config
    arm: str
    reward: str | None
    seed: int
    picture_memory: int | None = None
    """Bytes of memory that its pictures may take; no limit if None."""

    @property
    def part(self) -> Path:
        """Folder of the policy."""
        return self.config.run / "policies" / self.arm / f"seed-{self.seed}"


@callable_with_settings(Config)
def train(config: Config) -> list[Path]:
    """Writes RUN/policies/ARM/seed-K/ and returns the folders. Policies that are there and were made from the same inputs are kept.

    Raises:
        RunError: if a reward column is not there.
        StaleInput: if what a reward column was made from has changed since.
        RewardError, DatasetError, UsageError: each says what to do.
    """
    jobs = jobs_of(config)
    train_jobs(jobs, workers=config.jobs, quiet=config.quiet)
    return [job.part for job in jobs]


def jobs_of(config: Config) -> list[Job]:
    """The policies that a Config asks for; reward columns are checked to be there."""
    run = Run.open(config.run)
    for reward in filter(None, config.arms().values()):
        require_up_to_date(run, reward)
    return [Job(config, arm, reward, seed) for seed in _seeds(config) for arm, reward in config.arms().items()]


def _seeds(config: Config) -> range:
    return range(config.first_seed, config.first_seed + config.seeds)


def train_jobs(jobs: list[Job], *, workers: int, quiet: bool = False) -> None:
    """Trains several arms' policies side by side."""
    arms = dict.fromkeys(job.arm for job in jobs)
    at_a_time = max(1, min(workers or usable_cores(), len(jobs)))
    # Measured once, before any of them has taken its share.
    jobs = [replace(job, picture_memory=memory_for_pictures(at_a_time, job.config.pictures_in_memory)) for job in jobs]
    named = ", ".join(arms) if len(arms) <= _MOST_NAMED else f"{len(jobs)} policies"
    with progress_bar(f"training {named}", quiet=quiet, share=True) as progress:
        run_jobs(_train_one, jobs, workers=workers, progress=progress)


def what_is_seen(config: Config, dataset: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Views and vectors that a policy learns from. A policy of continuous actions sees the state and no pictures unless others are named:
    the pictures are the rater's. Raises UsageError if nothing is left to see."""
    views, vectors = config.views, config.vectors
    if not vectors and (views == (NO_VIEWS,) or not (views or dataset.action_names)):
        vectors = dataset.vectors
    if views == (NO_VIEWS,) or (vectors and not views):
        views = ()
    elif not views:
        views = dataset.views[:1]
    if not (views or vectors):
        raise UsageError("the policy would see nothing: the dataset has no vectors", cure="Name a view: --views NAME")
    return views, vectors


def inputs_of(run: Run, reward: str | None) -> dict[str, str]:
    """Fingerprints of what a policy is made from."""
    rewards = {} if reward is None else {"rewards": rewards_of(run, reward).fingerprint}
    return {"dataset": run.dataset_fingerprint} | rewards


def _train_one(job: Job, progress: Progress) -> None:
    from guerdon.training import offline, policy
    from guerdon.transitions import Transitions

    offline.use_one_thread()
    run = Run.open(job.config.run)
    settings = {key: value for key, value in as_record(job.config).items() if key not in _NOT_OF_ONE_POLICY}
    if job.config.memory:
        del settings["memory"]  # so that policies made before there was a choice stay valid
    if job.config.loop_settings is not None:  # likewise
        asked_of_loop = {key: value for key, value in settings["loop_settings"].items() if key not in ("device", "precision", "compile")}
        settings["loop_settings"] = asked_of_loop | job.config.loop_settings.decisive()
    asked = settings | {"arm": job.arm, "reward": job.reward}
    inputs = inputs_of(run, job.reward)
    whole = _opens(job.part)
    if run.holds(job.part, asked, inputs) and whole:
        return
    column = None if job.reward is None else rewards_of(run, job.reward)
    values: Mapping[tuple[int, int], Any] | None = None if column is None else column.values
    algorithm_settings = _with_discount(job.config, column)
    dataset = dataset_of(run)
    views, vectors = what_is_seen(job.config, dataset)
    place = None if job.picture_memory is None else PicturePlace(run.path / FOLDER, job.picture_memory)
    transitions = Transitions.build(dataset, values, views=views, vectors=vectors, memory=job.config.memory, pictures=place)
    updates = job.config.updates or offline.updates_for(transitions.spec)
    offline.require_possible(transitions, job.config.algorithm, algorithm_settings, loop=job.config.loop_settings)
    run.manifest_path(job.part).unlink(missing_ok=True)  # not before: what cannot be trained takes no finished policy away
    if not whole:
        (job.part / policy.RECORD).unlink(missing_ok=True)  # else the loop takes a damaged policy for a finished one
    began = time.monotonic()
    which: dict[str, Any] = {
        "algorithm_name": job.config.algorithm, "config": algorithm_settings, "updates": updates,
        "seed": job.seed, "out": job.part, "loop": job.config.loop_settings,
    }  # fmt: skip
    watching: dict[str, Any] = {"progress": progress, "log_to_tensorboard": job.config.tensorboard}
    try:
        offline.train(transitions, **which, **watching)
    except StaleInput:  # an earlier attempt with other rewards or settings: this command is the one that makes the part anew
        offline.train(transitions, **which, **watching, resume=False)
    results = {
        "advantage_spearman": _agreement(offline.advantages(transitions, **which), dataset),
        "seconds": time.monotonic() - began,
        "updates": updates,
        "transitions": len(transitions),
        "coverage": transitions.coverage,
        "seed": job.seed,
    }
    run.finish(job.part, Manifest(asked, inputs, results))


def _with_discount(config: Config, column: RewardColumn | None) -> Any:
    """The algorithm's settings, with the discount that the reward was composed for unless another one is given."""
    from guerdon.training.offline import algorithm_called

    settings = config.algorithm_settings or algorithm_called(config.algorithm).Config()
    if column is None or column.discount is None or getattr(settings, "discount", 0.0) is not None:
        return settings
    return replace(settings, discount=column.discount)


def _agreement(advantages: Mapping[tuple[int, int], Any] | None, dataset: Dataset) -> float | None:
    """Rank correlation of a policy's advantages with the dataset's ground truth; None where there is none."""
    import numpy as np

    from guerdon.evaluation.raters import advantage_spearman

    if advantages is None or "contribution" not in dataset.privileged(0):
        return None
    truth = [dataset.privileged(episode)["contribution"] for episode, _ in advantages]
    return advantage_spearman(np.concatenate(list(advantages.values())), np.concatenate(truth))


def _opens(part: Path) -> bool:
    """Whether a policy is there that can be used."""
    from guerdon.training.policy import load_policy

    try:
        load_policy(part)
    except PolicyError:
        return False
    return True
