"""Composing a reward column in a run folder from its label sets and the rewards of its reward models, and looking at it before anything is
trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from guerdon.errors import RunError, UsageError
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.recipes.data import dataset_of, has_labels, has_rewards, label_set_of, relabelled_of, rewards_of
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.rewards.check import Finding, check_rewards
from guerdon.rewards.column import RewardColumn
from guerdon.rewards.compose import compose, controls, names_in, reward_statistics, usual_discount
from guerdon.runs import Manifest, Run

NAMES_OF_OTHER_ARMS = ("random", "replay", "bc")
"""Arms of a comparison that learn from no reward; a policy goes by the name of its reward."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to compose."""

    run: Positional[Path]
    """The run folder that holds the labels."""
    compose: str = "rg_vlm - 1"
    """Expression over label sets and rewards of reward models, e.g. "rg_vlm - 1", "rg_vlm + sparse - 1", "sparse",
    "erl_vlm - 1", "potential(rg_vlm) + sparse"."""
    name: str = "dense"
    """Name of the reward column; arms of a comparison go by it."""
    gamma: float | None = None
    """Discount factor that policies learn from this reward with; also that of potential(...) and of the checks. If not given, 0.8 where
    single actions are paid for their scores, and the end of the task no more than the best of them, else 0.97."""
    controls: bool = False
    """Also compose constant_NAME and shuffled_NAME, in which labels are replaced by ones without content."""
    seed: int = 0
    """Seed of shuffled(...)."""

    def __post_init__(self) -> None:
        if self.gamma is not None and not 0.0 <= self.gamma < 1.0:
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
        RunError: if RUN is no run folder, its dataset has changed, or a label set or reward column is not there or damaged.
    """
    run = Run.open(config.run)
    dataset = dataset_of(run)
    wanted = {config.name: config.compose}
    if config.controls:
        wanted |= {f"{control}_{config.name}": expression for control, expression in controls(config.compose).items()}
    return [_compose(run, dataset, config, name, expression) for name, expression in wanted.items()]


def _compose(run: Run, dataset: Dataset, config: Config, name: str, expression: str) -> ComposedReward:
    label_sets, columns = _named(run, expression)
    if name in columns:
        what = f"the reward '{name}' would take the place of the one that it is composed from"
        raise UsageError(what, where=f"expression '{expression}'", cure="Choose another --name.")
    gamma = usual_discount(expression, {**label_sets, **columns}) if config.gamma is None else config.gamma
    column = compose(label_sets, dataset, expression, columns=columns, gamma=gamma, seed=config.seed)
    findings = tuple(check_rewards(column, dataset, gamma=gamma))
    path = run.part("rewards", name).with_suffix(".parquet")
    column.write(path)
    statistics = reward_statistics(column)
    inputs = {"dataset": dataset.fingerprint}
    inputs |= {f"labels/{source}": labels.fingerprint for source, labels in label_sets.items()}
    inputs |= {f"rewards/{source}": rewards.fingerprint for source, rewards in columns.items()}
    results = {**statistics, "findings": [finding.to_record() for finding in findings], "fingerprint": column.fingerprint}
    run.finish(path, Manifest({**as_record(config), "name": name, "expression": expression}, inputs, results))
    return ComposedReward(path, expression, column, statistics, findings)


def _named(run: Run, expression: str) -> tuple[dict[str, LabelSet], dict[str, RewardColumn]]:
    """The label sets and the reward columns that an expression names. A name that is a label set and a composed column is the label set:
    composed columns cannot be named."""
    label_sets: dict[str, LabelSet] = {}
    columns: dict[str, RewardColumn] = {}
    for name in sorted(names_in(expression)):
        labelled = has_labels(run, name)
        if labelled or not has_rewards(run, name):
            label_sets[name] = label_set_of(
                run, name, cure=f"Rewards of models: {_by_models(run)}. (sparse, original and oracle need none.)"
            )
        if has_rewards(run, name) and (not labelled or _is_by_model(run, name)):
            columns[name] = relabelled_of(run, name)
    return label_sets, columns


def _by_models(run: Run) -> str:
    """Names of the reward columns that an expression can mean."""
    stems = sorted(path.stem for path in (run.path / "rewards").glob("*.parquet"))
    return ", ".join(name for name in stems if _is_by_model(run, name)) or "none yet (guerdon fit, guerdon relabel)"


def _is_by_model(run: Run, name: str) -> bool:
    """Whether a reward column that shares its name with a label set is one that an expression could mean; a damaged one is not."""
    try:
        return rewards_of(run, name).by_model
    except RunError:
        return False
