"""Reward models of a run, and the rewards that they gave: how well they fit, and how far the rewards follow what is true.

The ground truth is `guerdon.evaluation.truth.qualities`: how far the instruction is fulfilled at each observation. A reward belongs to a
transition and is compared with the quality of the observation that the transition led to. A model of scores judges actions and no
observations: its rewards are compared with each action's contribution (+1 serves, 0, -1 hinders) where the dataset knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from guerdon.errors import GuerdonError
from guerdon.evaluation.statistics import Estimate
from guerdon.evaluation.truth import qualities
from guerdon.interfaces import Dataset
from guerdon.metrics import spearman
from guerdon.report import figures
from guerdon.report.contents import Contents, Model, mapping, number, text
from guerdon.rewards.column import RewardColumn
from guerdon.seeding import generator

Array = npt.NDArray[np.float64]

CURVES = 4
"""Episodes whose rewards are drawn."""
_EPISODES = 300
"""Episodes that are compared with the truth at most, at even distances."""
_RESAMPLES = 200
QUALITY, CONTRIBUTION = "quality of what each action led to", "contribution of each action"
"""What rewards are compared with."""


@dataclass(frozen=True)
class ModelSection:
    """A reward model."""

    model: Model
    classes: tuple[tuple[str, int], ...]
    measures: tuple[tuple[str, float | None, float | None], ...]
    """What was measured: name, on labels that were held out, and on those learned from."""
    history: tuple[str, Markup] | None
    """A measure by epoch: its name, and the figure."""

    @classmethod
    def all_of(cls, contents: Contents) -> list[ModelSection]:
        """One for each model of the run."""
        return [cls._of(model) for model in contents.models.values()]

    @classmethod
    def _of(cls, model: Model) -> ModelSection:
        results = model.part.results
        counted = results.get("classes")
        pairs = [pair for pair in (counted if isinstance(counted, list) else []) if isinstance(pair, list) and len(pair) == 2]
        classes = tuple((str(name), int(count)) for name, value in pairs if (count := number(value)) is not None)
        held_out, training = mapping(results.get("held_out")), mapping(results.get("training"))
        named = dict.fromkeys(name for name in (*held_out, *training) if name != "loss")
        measures = tuple((name.replace("_", " "), number(held_out.get(name)), number(training.get(name))) for name in named)
        return cls(model, classes, measures, _history(model.part.name, model.history))

    @property
    def labels(self) -> str:
        """Names of the label sets."""
        named = self.model.part.config.get("labels")
        return ", ".join(map(str, named)) if isinstance(named, list) else ""

    def result(self, name: str) -> float | None:
        """A number of the manifest."""
        return number(self.model.part.results.get(name))

    def told(self, name: str) -> str:
        """A text of the manifest."""
        return text(self.model.part.results.get(name))


_LINES = (("held_out", "arm-0", "held-out labels"), ("training", "arm-1", "labels learned from"))
"""Of the history: key, colour, name."""
_MEASURES = ("balanced_accuracy", "correlation")
"""What is drawn: the first one that was measured."""


def _history(name: str, history: Sequence[Mapping[str, Any]]) -> tuple[str, Markup] | None:
    """What is drawn in words, and the figure; None if nothing was measured."""
    for measure in _MEASURES:
        found = {key: [number(mapping(line.get(key)).get(measure)) for line in history] for key, _, _ in _LINES}
        drawn = [figures.Line(words, css, found[key], (0.0, 1.0)) for key, css, words in _LINES if any(v is not None for v in found[key])]
        if drawn:
            epochs = [line.get("epoch", "") for line in history]
            what = measure.replace("_", " ")
            return what, figures.lines(drawn, axis="epoch", places=epochs, description=f"{what} of {name} while it was fitted")
    return None


# --- rewards that a model gave --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GivenRewards:
    """A reward column of a reward model."""

    name: str
    column: RewardColumn
    spearman: Estimate | None
    """Rank correlation of reward and true quality over transitions; None if there is no ground truth."""
    within: float | None
    """Mean of that correlation within single episodes."""
    episodes: int
    """Episodes that it was measured on."""
    transitions: int
    curves: tuple[tuple[str, Markup], ...]
    """Caption and figure of a few episodes."""
    problem: str = ""
    truth: str = QUALITY
    """What they are compared with, in words."""

    @classmethod
    def all_of(cls, contents: Contents, dataset: Dataset | None) -> list[GivenRewards]:
        """One for each column."""
        return [cls._of(name, column, dataset, of_actions=_is_of_actions(column, contents)) for name, column in contents.columns.items()]

    @classmethod
    def _of(cls, name: str, column: RewardColumn, dataset: Dataset | None, *, of_actions: bool = False) -> GivenRewards:
        try:
            return cls._measured(name, column, dataset, of_actions=of_actions)
        except (GuerdonError, IndexError) as error:
            return cls(name, column, None, None, 0, 0, (), f"The rewards '{name}' cannot be compared with the truth: {error}")

    @classmethod
    def _measured(cls, name: str, column: RewardColumn, dataset: Dataset | None, *, of_actions: bool) -> GivenRewards:
        firsts = {episode: (episode, annotation) for episode, annotation in sorted(column.values, reverse=True)}
        keys = _spread(sorted(firsts.values()), _EPISODES)
        of_actions = of_actions and dataset is not None and bool(len(dataset)) and "contribution" in dataset.privileged(0)
        measure, scale = (_contributions, (-1.0, 1.0)) if of_actions else (_outcomes, (0.0, 1.0))
        truths = {key: None if dataset is None else measure(dataset, key[0], column.values[key].size) for key in keys}
        pairs = [(column.values[key].astype(np.float64), truth) for key, truth in truths.items() if truth is not None]
        known = [(rewards[both], truth[both]) for rewards, truth in pairs if (both := np.isfinite(rewards) & np.isfinite(truth)).any()]
        bounds = _bounds(column)
        curves = tuple((_caption(key, dataset), _curve(name, key, column, truths[key], bounds, scale)) for key in _spread(keys, CURVES))
        inside = [value for rewards, truth in known if not np.isnan(value := spearman(rewards, truth))]
        total = sum(rewards.size for rewards, _ in known)
        within, truth = float(np.mean(inside)) if inside else None, CONTRIBUTION if of_actions else QUALITY
        return cls(name, column, _pooled(known), within, len(known), total, curves, truth=truth)

    @property
    def origin(self) -> str:
        """Which model gave the rewards, and how."""
        found = self.column.metadata
        pessimism = found.get("pessimism") or 0
        cautious = f", less {pessimism:g} standard deviations of its members" if pessimism else ""
        other = f" of the run {found['from_run']}" if found.get("from_run") else ""
        return f"model “{found.get('model_name', '')}”{other}, {found.get('transform', '')} rewards{cautious}"


def _outcomes(dataset: Dataset, episode: int, length: int) -> Array | None:
    """(T,) quality of the observation that each transition led to; None if unknown."""
    known = qualities(dataset, episode)
    return None if known is None or known.size != length + 1 else known[1:]


def _contributions(dataset: Dataset, episode: int, length: int) -> Array | None:
    """(T,) whether each action serves (+1), does not matter (0) or hinders (-1); None if unknown."""
    known = dataset.privileged(episode).get("contribution")
    return None if known is None or known.size != length else known.astype(np.float64)


def _is_of_actions(column: RewardColumn, contents: Contents) -> bool:
    """Whether the model of this run that gave the rewards was fitted to scores, which judge actions."""
    model = None if column.metadata.get("from_run") else contents.models.get(str(column.metadata.get("model_name", "")))
    return model is not None and model.part.results.get("kind") == "score"


def _pooled(known: Sequence[tuple[Array, Array]]) -> Estimate | None:
    """Over all transitions, with an interval over episodes."""
    if not known:
        return None
    value = _correlation(known, range(len(known)))
    if np.isnan(value):
        return None
    random = generator(0, "bootstrap episodes")
    draws = [random.integers(len(known), size=len(known)) for _ in range(_RESAMPLES)] if len(known) > 1 else []
    return Estimate.of(value, [_correlation(known, draw.tolist()) for draw in draws])


def _correlation(known: Sequence[tuple[Array, Array]], chosen: Sequence[int]) -> float:
    return spearman(np.concatenate([known[each][0] for each in chosen]), np.concatenate([known[each][1] for each in chosen]))


def _bounds(column: RewardColumn) -> tuple[float, float]:
    known = np.concatenate([array[np.isfinite(array)] for array in column.values.values()] or [np.zeros(0, np.float32)])
    return (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)


def _curve(
    name: str, key: tuple[int, int], column: RewardColumn, truth: Array | None, bounds: tuple[float, float], scale: tuple[float, float]
) -> Markup:
    rewards = figures.Line(f"reward “{name}”", "arm-0", _numbers(column.values[key]), bounds)
    true = [] if truth is None else [figures.Line("what is true", "arm-2", _numbers(truth), scale)]
    return figures.lines([rewards, *true], axis="transition", description=f"Rewards “{name}” over episode {key[0]}")


def _numbers(values: npt.NDArray[Any]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _caption(key: tuple[int, int], dataset: Dataset | None) -> str:
    episode, annotation = key
    if dataset is None:
        return f"Episode {episode}"
    info = dataset.episode(episode)
    words = f": “{info.annotations[annotation].instruction}”" if annotation < len(info.annotations) else ""
    return f"Episode {episode}{words}{', completed' if info.terminated else ''}"


def _spread(keys: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """`count` of the keys at even distances."""
    if len(keys) <= count:
        return list(keys)
    return [keys[int((place + 0.5) * len(keys) / count)] for place in range(count)]
