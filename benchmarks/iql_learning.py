"""Does implicit Q-learning learn as well in bfloat16 as in float32?

    python benchmarks/iql_learning.py FOLDER [--quick] [--task drawer-open-v3] [--seeds 5] [--updates 5000] [--every 1000] [--tasks 40]

Records demonstrations of uneven quality in Meta-World (the defaults of `guerdon collect metaworld`, without pictures), takes the
simulator's own reward less its largest ("0.1 * original - 1"), and trains a policy of state vectors for every precision and seed. Two
policies of one seed begin with the same weights and see the same batches. Each is kept after every 1000 updates of its one run (a shorter
run is another thing: its learning rate falls sooner) and tried from recorded and from other places of the things.

Prints both curves and their paired difference, bfloat16 less float32, with 95 % bootstrap intervals over seeds and tasks: of the share of
tasks done, and, since that soon is 1, of the share of the allowed time that was left when the task was done (0 if it was not). An interval
of the difference that holds 0 and is narrow says that nothing is lost.

Whatever FOLDER holds is kept: a killed run goes on, policy by policy, with the same numbers. Takes five to ten minutes on two cores (by a
small run). Needs `pip install 'guerdon[metaworld]'`. Without FOLDER it only says how it is called.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from guerdon.algorithms.iql import IQL
from guerdon.datasets.minari import MinariFormat
from guerdon.envs.metaworld import MetaWorld
from guerdon.errors import GuerdonError, PolicyError, UsageError
from guerdon.evaluation.statistics import Estimate, ReturnMatrix, estimate, mean
from guerdon.evaluation.tasks import task_list
from guerdon.interfaces import Dataset
from guerdon.machine import quick_products
from guerdon.recipes.collect_metaworld import COLLECTION, NO_VIEWS, collect_metaworld
from guerdon.recipes.collect_metaworld import Config as Collect
from guerdon.recipes.parallel import run_jobs
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.settings import as_record
from guerdon.records import Task, digest
from guerdon.rewards.compose import compose
from guerdon.rollout import run_tasks
from guerdon.runs import package_version, read_json, write_json
from guerdon.training.offline import Config, use_one_thread
from guerdon.training.policy import WEIGHTS, load_policy, read_record, save_policy
from guerdon.transitions import Sampler, Transitions

REWARD = "0.1 * original - 1"
PRECISIONS = ("float32", "bfloat16")
STARTS = {"fixed": "recorded places", "randomised": "other places"}
MEASURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "tasks done": lambda row: float(row["success"]),
    "share of the time left": lambda row: 1 - row["steps"] / row["step_limit"] if row["success"] else 0.0,
}


@dataclass(frozen=True)
class Job:
    """One policy's training and its trials."""

    folder: Path
    precision: str
    seed: int
    updates: int
    every: int
    tasks: int
    """Places from each start."""

    @property
    def points(self) -> range:
        """Numbers of updates after which the policy is kept and tried."""
        return range(self.every, self.updates + 1, self.every)

    def part(self, point: int) -> Path:
        """Folder of the policy at a point. Runs of another length are other runs."""
        return self.folder / f"{self.updates}-updates" / self.precision / f"seed-{self.seed}" / f"at-{point}"

    def trials(self, point: int) -> Path:
        return self.part(point) / "trials.json"


def dataset_of(folder: Path) -> Dataset:
    """The demonstrations in a folder."""
    return MinariFormat.open(folder / "data", {})


def record(folder: Path, task: str, demonstrations: int) -> None:
    """Demonstrations, unless they are there. Raises UsageError if others are."""
    data = folder / "data"
    wanted = Collect(out=data, task=(task,), demonstrations=demonstrations, views=NO_VIEWS)
    if not data.exists():
        with progress_bar(f"recording {task}") as progress:
            collect_metaworld(wanted, progress=progress)
    there, asked = read_json(data / COLLECTION)["config"], as_record(wanted)
    if any(there[name] != asked[name] for name in there):
        raise UsageError("holds other demonstrations than the ones asked for", where=str(data), cure="Choose another folder.")


def tasks_of(folder: Path, count: int) -> list[Task]:
    """What policies are tried on, the same for all: recorded places, and as many others."""
    return [task for task in task_list(dataset_of(folder), lengths=(1,), per_length=count, seed=0) if task.wording == "seen"]


def work(job: Job, progress: Progress) -> None:
    """Trains and tries one policy. A training of which a policy is missing or is another is made again, with the same numbers."""
    use_one_thread()
    dataset = dataset_of(job.folder)
    if not all(is_kept(job, point, dataset) for point in job.points):
        train(job, dataset, lambda made: progress(made, 2 * job.updates))
    tasks = tasks_of(job.folder, job.tasks)
    for point in job.points:
        try_out(job, point, tasks)
        progress(job.updates + point, 2 * job.updates)


def origin(job: Job, point: int, dataset: Dataset) -> dict[str, Any]:
    """What a policy was made from and how."""
    made = {"precision": job.precision, "seed": job.seed, "updates": job.updates, "at": point}
    return {**made, "data": dataset.fingerprint, "reward": REWARD, "version": package_version()}


def is_kept(job: Job, point: int, dataset: Dataset) -> bool:
    try:
        return bool(read_record(job.part(point))["training"] == origin(job, point, dataset))
    except PolicyError:
        return False


def train(job: Job, dataset: Dataset, progress: Callable[[int], object]) -> None:
    """One run, whose policy is kept at every point."""
    transitions = Transitions.build(dataset, compose({}, dataset, REWARD).values, vectors=dataset.vectors)
    # One task in several wordings: there is nothing to be read, and whole updates are for policies that do not read.
    transitions.spec = replace(transitions.spec, reads=False)
    algorithm = IQL(transitions, IQL.Config(), seed=job.seed, updates=job.updates)
    chosen: Any = {"device": "cpu", "precision": job.precision}
    loop = Config(**chosen)
    machine, (sequences, context) = loop.machine(), loop.of(transitions.spec)
    sampler = Sampler(transitions, sequences=sequences, context=context, seed=job.seed)
    for point in job.points:
        with quick_products():  # as the training loop does
            algorithm.learn(sampler, job.every, machine)
        save_policy(job.part(point), algorithm.policy, transitions.spec, origin(job, point, dataset))
        progress(point)


def try_out(job: Job, point: int, tasks: Sequence[Task]) -> None:
    """Trials of one policy, unless they are there."""
    weights = digest((job.part(point) / WEIGHTS).read_bytes())
    about = {"policy": weights, "tasks": [task.id for task in tasks]}
    path = job.trials(point)
    if path.is_file() and read_json(path)["about"] == about:
        return
    results = run_tasks(load_policy(job.part(point)), tasks, partial(MetaWorld, views=()))
    rows = [
        {"task": each.task.id, "start": each.task.start, "success": each.success, "steps": each.steps, "step_limit": each.task.step_limit}
        for each in results
    ]
    write_json(path, {"about": about, "rows": rows})


def matrix(jobs: Sequence[Job], point: int, start: str, measure: str) -> ReturnMatrix:
    """Seeds x tasks of one precision at one point. Tasks are in one order, so that two precisions are resampled alike."""
    table = [[row for row in read_json(job.trials(point))["rows"] if row["start"] == start] for job in jobs]
    names = tuple(row["task"] for row in table[0])
    values = np.array([[MEASURES[measure](row) for row in rows] for rows in table])
    return ReturnMatrix(tuple(job.seed for job in jobs), names, (1,) * len(names), values)


def difference(one: ReturnMatrix, other: ReturnMatrix) -> Estimate:
    """Mean of `one` less that of `other`, over the same seeds and tasks, with its interval."""
    drawn = (one.resamples() - other.resamples()).mean(axis=(1, 2))
    return Estimate.of(float(one.returns.mean() - other.returns.mean()), drawn)


def shown(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def report(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Prints both curves and their difference; returns the same."""
    found: list[dict[str, Any]] = []
    by_precision = {precision: [job for job in jobs if job.precision == precision] for precision in PRECISIONS}
    for pair in zip(*by_precision.values(), strict=True):
        if len({(job.part(job.points[-1]) / WEIGHTS).read_bytes() for job in pair}) < len(pair):
            raise UsageError(f"all precisions of seed {pair[0].seed} gave the same weights, so nothing was compared")
    for measure in MEASURES:
        for start, words in STARTS.items():
            print(f"\n{measure}, {words}\n{'updates':>8}" + "".join(f"{name:>24}" for name in (*PRECISIONS, "difference")))
            for point in jobs[0].points:
                plain, half = (matrix(by_precision[precision], point, start, measure) for precision in PRECISIONS)
                cells = {"float32": estimate(plain, mean), "bfloat16": estimate(half, mean), "difference": difference(half, plain)}
                texts = (shown(each, "+" if name == "difference" else "") for name, each in cells.items())
                print(f"{point:>8}" + "".join(f"{text:>24}" for text in texts), flush=True)
                found.append({"measure": measure, "start": start, "updates": point, **{name: asdict(each) for name, each in cells.items()}})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="what is there is kept; without a folder nothing is done")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 200 updates: only shows that it works")
    parser.add_argument("--task", default="drawer-open-v3")
    parser.add_argument("--demonstrations", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=5000)
    parser.add_argument("--every", type=int, default=1000, help="updates between two trials; divides --updates")
    parser.add_argument("--tasks", type=int, default=40, help="places tried from each start, at most as many as demonstrations")
    parser.add_argument("--jobs", type=int, default=0, help="policies at a time; as many as there are cores if 0")
    arguments = parser.parse_args()
    if arguments.folder is None:
        parser.print_help()
        return
    if arguments.quick:
        arguments.seeds, arguments.updates, arguments.every, arguments.demonstrations, arguments.tasks = 2, 200, 100, 6, 4
    if min(arguments.seeds, arguments.updates, arguments.every, arguments.tasks) < 1 or arguments.updates % arguments.every:
        parser.error("--seeds, --tasks and --every are at least 1, and --every divides --updates")
    if arguments.tasks > arguments.demonstrations:
        parser.error(f"--tasks {arguments.tasks} are more than --demonstrations {arguments.demonstrations}")
    began = time.monotonic()
    try:
        record(arguments.folder, arguments.task, arguments.demonstrations)
    except GuerdonError as error:
        parser.error(str(error))
    what = {"folder": arguments.folder, "updates": arguments.updates, "every": arguments.every, "tasks": arguments.tasks}
    jobs = [Job(precision=precision, seed=seed, **what) for seed in range(arguments.seeds) for precision in PRECISIONS]
    with progress_bar(f"{len(jobs)} policies", share=True) as progress:
        run_jobs(work, jobs, workers=arguments.jobs, progress=progress)
    found = report(jobs)
    write_json(arguments.folder / "learning.json", {"settings": {**vars(arguments), "folder": str(arguments.folder)}, "curves": found})
    print(f"\n{time.monotonic() - began:.0f} s in all; numbers in {arguments.folder / 'learning.json'}")


if __name__ == "__main__":
    main()
