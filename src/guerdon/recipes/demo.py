"""The whole line, small: demonstrations, a rater's scores, rewards, policies, evaluation, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import Suppress

from guerdon.datasets.check import check, render
from guerdon.errors import RunError, UsageError
from guerdon.recipes.collect_babyai import COLLECTION, collect_babyai
from guerdon.recipes.collect_babyai import Config as CollectConfig
from guerdon.recipes.data import DataOptions, open_data
from guerdon.recipes.evaluate import evaluate
from guerdon.recipes.label import Labelled, label
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.reward import reward
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.recipes.train import Config as TrainConfig
from guerdon.recipes.train import jobs_of, train_jobs
from guerdon.runs import read_json

ARMS = {"sparse": "sparse", "rg_vlm": "rg_vlm - 1", "both": "rg_vlm + sparse - 1"}
"""Arm -> the reward it learns from: RG-VLM's comparison and ablation."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How large the demonstration is."""

    out: Path = Path("runs/demo")
    """Run folder; the dataset lies beside it, in a folder with "-dataset" at the end of its name."""
    vlm: tuple[str, ...] = ("embedded",)
    """Who is asked; the default is the small model that comes with the package and was trained on pictures of such worlds."""
    level: str = "small"
    """Family of worlds: small, one-room, two-rooms or four-rooms."""
    tasks: int = 15
    """Different layouts with instructions of 1 to 3 sub-tasks."""
    demonstrations: int = 10
    """Demonstrations of each."""
    seeds: int = 2
    """Policies trained for each arm."""
    updates: int = 1000
    """Gradient steps of each policy."""
    per_length: int = 5
    """Tasks of each length that policies are evaluated on."""
    controls: bool = False
    """Also train on labels without content: the highest score everywhere, and scores in random order."""
    seed: int = 0
    """Seed of the dataset."""
    jobs: int = 0
    """Processes at a time; as many as there are cores if 0."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider, without being asked."""
    quiet: bool = False
    """No progress bars."""
    rater_settings: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Config of each provider by the name of its file."""

    def __post_init__(self) -> None:
        if self.tasks // 3 < self.per_length:
            raise UsageError(f"{self.per_length} tasks of each length need at least {3 * self.per_length} tasks, got {self.tasks}")

    @property
    def dataset(self) -> Path:
        """Where the demonstrations are recorded."""
        return self.out.with_name(self.out.name + "-dataset")


@dataclass(frozen=True)
class Demonstrated:
    """What the demonstration leaves behind."""

    run: Path
    report: Path
    rows: list[dict[str, Any]]
    """One row for each arm, seed and task."""
    labelled: Labelled


@callable_with_settings(Config)
def demo(config: Config) -> Demonstrated:
    """From nothing to RUN/report.html. What is there already is kept, so an interrupted demonstration goes on where it stopped.

    Raises:
        GuerdonError: each stage's own errors.
    """
    from guerdon.report import build

    stage = _stages(6)
    with stage(f"recording demonstrations in {config.dataset}"):
        _collect(config)
    with stage(f"labelling: {', '.join(config.vlm)} scores windows of 8 actions"):
        labelled = label(
            dataset=config.dataset, run=config.out, vlm=config.vlm, min_coverage=0.0, yes=config.yes, quiet=config.quiet,
            rater_settings=config.rater_settings,
        )  # fmt: skip
    with stage("composing rewards"):
        arms = _compose(config)
    with stage(f"training {len(arms) + 1} arms with {config.seeds} seeds each"):
        _train(config, arms)
    with stage("evaluating"):
        rows = evaluate(run=config.out, per_length=config.per_length, jobs=config.jobs, quiet=config.quiet)
    with stage("writing the report"):
        page = build(config.out)
    return Demonstrated(config.out, page, rows, labelled)


def _stages(total: int) -> Callable[[str], Any]:
    """Announces stages, numbered, with the time each took."""
    number = 0

    @contextmanager
    def stage(title: str) -> Iterator[None]:
        nonlocal number
        number += 1
        print(f"[{number}/{total}] {title}", flush=True)
        began = time.monotonic()
        yield
        print(f"      {time.monotonic() - began:.0f} s", flush=True)

    return stage


def _collect(config: Config) -> None:
    settings = CollectConfig(
        out=config.dataset, level=config.level, tasks=config.tasks, demonstrations=config.demonstrations, lengths=(1, 3), seed=config.seed
    )
    if config.dataset.exists():
        _refuse_other_settings(settings)
    else:
        with progress_bar("recording", quiet=config.quiet) as progress:
            collect_babyai(settings, progress=progress)
    found = check(open_data(config.dataset, DataOptions()))
    print(render(found))


def _refuse_other_settings(settings: CollectConfig) -> None:
    """Raises RunError if the dataset that is there already was recorded in another way than `settings` say."""
    record = settings.out / COLLECTION
    recorded = read_json(record)["config"] if record.is_file() else {}
    differing = [name for name, value in as_record(settings).items() if name != "out" and recorded.get(name, value) != value]
    if differing:
        cure = "Give the same settings again, or another --out."
        raise RunError(f"was recorded with other settings ({', '.join(differing)})", where=str(settings.out), cure=cure)


def _compose(config: Config) -> list[str]:
    """Composes the arms' rewards; returns their names."""
    made = []
    for name, expression in ARMS.items():
        composed = reward(run=config.out, compose=expression, name=name, controls=config.controls and name == "rg_vlm")
        for one in composed:
            made.append(one.path.stem)
            print(f"      {one.path.stem}: {one.expression}: mean {one.statistics['mean']:.3f}, coverage {one.statistics['coverage']:.1%}")
            for finding in one.findings:
                print(f"      {finding.severity}: {finding.name}: {finding.message}")
    return made


def _train(config: Config, arms: list[str]) -> None:
    shared: dict[str, Any] = {"run": config.out, "seeds": config.seeds, "updates": config.updates}
    jobs = [*jobs_of(TrainConfig(rewards=tuple(arms), **shared)), *jobs_of(TrainConfig(rewards=(), algorithm="bc", **shared))]
    train_jobs(jobs, workers=config.jobs, quiet=config.quiet)
