"""Rewards from a reward model: every transition of a run's dataset scored, as a reward column of the run."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from guerdon.errors import RunError, UsageError
from guerdon.recipes.data import dataset_of, has_labels, model_of, rewards_of
from guerdon.recipes.fit import malloc_settings
from guerdon.recipes.parallel import run_apart
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.reward import NAMES_OF_OTHER_ARMS, ComposedReward
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.rewards.check import check_rewards
from guerdon.rewards.column import RewardColumn, Values
from guerdon.rewards.compose import RESERVED, reward_statistics
from guerdon.runs import Manifest, Run

_NOT_OF_THE_REWARD = frozenset({"run", "quiet"})
"""Settings that make no difference to a reward column."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which model scores what."""

    run: Positional[Path]
    """The run folder whose dataset is scored."""
    model: str = "erl_vlm"
    """Name of a reward model (guerdon fit)."""
    from_run: Annotated[Path | None, tyro.conf.arg(aliases=("--from",))] = None
    """Run folder that the model lies in, if it is another one; its dataset must show the same observations."""
    name: str = ""
    """Name of the reward column; the model's name if not given."""
    transform: Literal["raw", "unit", "standard"] = "raw"
    """raw: the model's own scale, [-1, 1] for ratings and preferences; unit: [0, 1]; standard: mean 0 and standard deviation 1 over the
    dataset."""
    pessimism: float = 0.0
    """How many standard deviations of the model's members are taken off: doubtful transitions then pay less."""
    gamma: float = 0.97
    """Discount factor, for the checks."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0:
            raise UsageError(f"gamma must lie in [0, 1), got {self.gamma}")
        if not 0.0 <= self.pessimism < float("inf"):
            raise UsageError(f"pessimism is a number of at least 0, got {self.pessimism}")
        if self.transform not in ("raw", "unit", "standard"):
            raise UsageError(f"transform is raw, unit or standard, got '{self.transform}'")
        if not self.reward.isidentifier():
            raise UsageError(f"a reward's name is made of letters, digits and underscores, got '{self.reward}'")
        if self.reward in (*NAMES_OF_OTHER_ARMS, *RESERVED) or keyword.iskeyword(self.reward):
            raise UsageError(f"'{self.reward}' means something else already", cure="Choose another --name.")

    @property
    def reward(self) -> str:
        """Name of the reward column."""
        return self.name or self.model


@callable_with_settings(Config)
def relabel(config: Config) -> ComposedReward:
    """Writes RUN/rewards/NAME.parquet. The same model's scores of the same data are kept.

    Raises:
        RunError: if a folder is no run folder, or the model is not there or damaged.
        StaleInput: if the dataset has changed, or the model's labels have changed since it was fitted.
        RewardModelError: if the model looks at what the dataset does not show.
    """
    run = Run.open(config.run)
    dataset = dataset_of(run)
    if has_labels(run, config.reward):
        what = f"the run holds a label set called '{config.reward}', so expressions could not tell the rewards from it"
        raise UsageError(what, where=str(run.path), cure="Choose another --name.")
    own = config.from_run is None or config.from_run.resolve() == run.path.resolve()
    part, fingerprint = model_of(run if own or config.from_run is None else Run.open(config.from_run), config.model)
    path = run.part("rewards", config.reward).with_suffix(".parquet")
    expression = f"relabel({config.model})"
    settings = {key: value for key, value in as_record(config).items() if key not in _NOT_OF_THE_REWARD}
    asked = settings | {"name": config.reward, "expression": expression, "from_run": None if own else str(config.from_run)}
    inputs = {"dataset": dataset.fingerprint, f"models/{config.model}" if own else "model": fingerprint}
    kept = _kept(run, config.reward) if run.holds(path, asked, inputs) else None
    if kept is not None:
        findings = tuple(check_rewards(kept, dataset, gamma=config.gamma))
        return ComposedReward(path, expression, kept, reward_statistics(kept), findings)
    job = Job(config, part)
    with progress_bar(f"scoring with {config.model}", quiet=config.quiet, share=True) as progress:
        scored = run_apart(relabel_one, job, progress=progress, variables=malloc_settings())
    metadata = {
        "expression": expression,
        "dataset": dataset.fingerprint,
        "model": fingerprint,
        "model_name": config.model,
        "from_run": None if own else str(config.from_run),
        "reads": scored.reads,
        "scale": None if scored.scale is None else list(scored.scale),
        "transform": config.transform,
        "pessimism": config.pessimism,
        "kind": scored.kind,
    }
    column = RewardColumn(scored.values, metadata)
    findings = tuple(check_rewards(column, dataset, gamma=config.gamma))
    statistics: Mapping[str, Any] = reward_statistics(column)
    column.write(path)
    results = {**statistics, "findings": [finding.to_record() for finding in findings], "fingerprint": column.fingerprint}
    run.finish(path, Manifest(asked, inputs, results))
    return ComposedReward(path, expression, column, statistics, findings)


def _kept(run: Run, name: str) -> RewardColumn | None:
    """The column that is there; None if it is damaged, so that it is made again."""
    try:
        return rewards_of(run, name)
    except RunError:
        return None


# --- in a process of its own ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A dataset to be scored."""

    config: Config
    model: Path
    """Folder of the model."""


@dataclass(frozen=True)
class Scored:
    """What a model gave."""

    values: Values
    scale: tuple[float, float] | None
    """Lowest and highest value that it can give, before pessimism; None for standardised ones."""
    reads: bool
    """Whether it reads instructions."""
    kind: str
    """What it was fitted to: "rating", "preference" or "score"."""


def relabel_one(job: Job, progress: Progress) -> Scored:
    """Scores all transitions, an episode after the other. Raises as `relabel` does."""
    from guerdon.rewards.fitting import load_model
    from guerdon.rewards.relabel import relabel as score

    config = job.config
    dataset = dataset_of(Run.open(config.run))
    model = load_model(job.model)
    if config.pessimism and model.members == 1:
        cure = "Leave --pessimism out, or fit with --fitting.members 3."
        raise UsageError(f"the model '{config.model}' is a single network, which cannot disagree with itself", cure=cure)
    pairs = score(model, dataset, pessimism=config.pessimism, transform=config.transform, threads=1, progress=progress)
    scale = {"raw": model.scale, "unit": (0.0, 1.0)}.get(config.transform)
    return Scored(dict(pairs), scale, model.look.words is not None, model.name)
