"""Composing a reward column in a run folder from its label sets, and looking at it before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from guerdon.errors import UsageError
from guerdon.interfaces import Dataset
from guerdon.recipes.data import dataset_of, label_set_of
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.rewards.check import Finding, check_rewards
from guerdon.rewards.column import RewardColumn
from guerdon.rewards.compose import compose, controls, names_in, reward_statistics
from guerdon.runs import Manifest, Run

NAMES_OF_OTHER_ARMS = ("random", "replay", "bc")
"""Arms of a comparison that learn from no reward; a policy goes by the name of its reward."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to compose."""

    run: Positional[Path]
    """The run folder that holds the labels."""
    compose: str = "0.1 * rg_vlm + sparse"
    """Expression over label sets, e.g. "0.1 * rg_vlm + sparse", "sparse", "rg_vlm", "potential(rg_vlm) + sparse"."""
    name: str = "both"
    """Name of the reward column; arms of a comparison go by it."""
    gamma: float = 0.97
    """Discount factor, for potential(...) and for the checks."""
    controls: bool = False
    """Also compose constant_NAME and shuffled_NAME, in which labels are replaced by ones without content."""
    seed: int = 0
    """Seed of shuffled(...)."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < 1.0:
            raise UsageError(f"gamma must lie in [0, 1), got {self.gamma}")
        if not self.name.isidentifier():
            raise UsageError(f"a reward's name is made of letters, digits and underscores, got '{self.name}'")
        if self.name in NAMES_OF_OTHER_ARMS:
            raise UsageError(f"'{self.name}' is the name of an arm without rewards", cure="Choose another --name.")


@dataclass(frozen=True)
class ComposedReward:
    """A reward column on disk and what was seen in it."""

    path: Path
    expression: str
    column: RewardColumn
    statistics: Mapping[str, Any]
    findings: tuple[Finding, ...]


@callable_with_settings(Config)
def reward(config: Config) -> list[ComposedReward]:
    """Writes RUN/rewards/NAME.parquet, and its controls if they are asked for.

    Raises:
        RewardError: for an expression that cannot be read or computed.
        RunError: if RUN is no run folder, its dataset has changed, or a label set is not there or damaged.
    """
    run = Run.open(config.run)
    dataset = dataset_of(run)
    wanted = {config.name: config.compose}
    if config.controls:
        wanted |= {f"{control}_{config.name}": expression for control, expression in controls(config.compose).items()}
    return [_compose(run, dataset, config, name, expression) for name, expression in wanted.items()]


def _compose(run: Run, dataset: Dataset, config: Config, name: str, expression: str) -> ComposedReward:
    label_sets = {label_set: label_set_of(run, label_set) for label_set in sorted(names_in(expression))}
    column = compose(label_sets, dataset, expression, gamma=config.gamma, seed=config.seed)
    findings = tuple(check_rewards(column, dataset, gamma=config.gamma))
    path = run.part("rewards", name).with_suffix(".parquet")
    column.write(path)
    statistics = reward_statistics(column)
    inputs = {"dataset": dataset.fingerprint} | {f"labels/{name}": labels.fingerprint for name, labels in label_sets.items()}
    results = {**statistics, "findings": [finding.to_record() for finding in findings], "fingerprint": column.fingerprint}
    run.finish(path, Manifest({**as_record(config), "name": name, "expression": expression}, inputs, results))
    return ComposedReward(path, expression, column, statistics, findings)
