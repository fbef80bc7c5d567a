"""Does a rater say the same again, and is it right? What to know before choosing how many classes to ask for.

Raters waver even at temperature 0. ERL-VLM therefore recommends a check for every new prompt: ask several times about the pictures of an
expert's trajectory, and see how often the answers agree with success and failure (there: 90 % with two classes in one
task, about 65 % in two others). More classes say more in one answer and are wrong more often; this measures both sides.

Classes are numbered 0 (the worst) to levels - 1. Those below the middle say that the task is not done, those above it that it is; a class
in the very middle ("Average") says neither and is not counted, as in the paper. NaN marks an answer that is missing.

Reads arrays, knows no rater and no file. `draw` writes a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.metrics import spearman
from guerdon.runs import writing

Votes = npt.NDArray[np.float64]
"""(R, B): class of each of B pictures in each of R repeats, NaN where there is no answer."""


@dataclass(frozen=True)
class Consistency:
    """How a rater answers with so many classes. Shares lie in [0, 1]; NaN where nothing could be counted."""

    levels: int
    pictures: int
    repeats: int
    answered: float
    """Share of the questions that got a class."""
    same_again: float
    """Probability that two answers about one picture are the same class."""
    reliability: float
    """Krippendorff's alpha with squared distances between classes: 1 for a rater that never wavers, 0 for one that says the same classes
    at random; comparable over numbers of classes, unlike `same_again`."""
    decided: float
    """Share of the answers that are not in the very middle."""
    agreement: float
    """Share of the decided answers that agree with success and failure, mean over the repeats."""
    agreement_deviation: float
    """Its standard deviation over the repeats (with R - 1)."""
    balanced_agreement: float
    """The same as the mean of the shares among pictures of success and of failure: an expert's trajectory mostly shows failure."""
    order: float
    """Spearman's correlation of the mean class with the step, mean over the episodes: an expert gets closer and closer."""

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data; NaN as None."""
        return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in asdict(self).items()}


def consistency(votes: Votes, success: npt.ArrayLike, episode: npt.ArrayLike, step: npt.ArrayLike, levels: int) -> Consistency:
    """What repeated answers say about a rater.

    Args:
        votes: (R, B) classes 0 .. levels - 1, NaN where missing.
        success: (B,) bool, whether the picture shows the task done.
        episode, step: (B,) where each picture comes from.
        levels: number of classes, at least 2.

    Raises:
        ValueError: if shapes disagree or a vote is no class.
    """
    truth, episodes, steps = np.asarray(success, bool), np.asarray(episode), np.asarray(step)
    if votes.ndim != 2 or any(column.shape != votes.shape[1:] for column in (truth, episodes, steps)):
        raise ValueError(f"votes (R, B) need B pictures, got {votes.shape}, {truth.shape}, {episodes.shape} and {steps.shape}")
    known = np.isfinite(votes)
    classes = votes[known]
    if levels < 2 or ((classes < 0) | (classes >= levels) | (classes % 1 != 0)).any():
        raise ValueError(f"votes are whole numbers from 0 to {levels - 1}")
    middle = (levels - 1) / 2
    decided = known & (votes != middle)
    right = (votes > middle) == truth
    each = [_share(right[repeat][decided[repeat]]) for repeat in range(len(votes))]
    counted = [value for value in each if np.isfinite(value)]
    sides = [_share(right[decided & (truth == side)]) for side in (True, False)]
    return Consistency(
        levels=levels,
        pictures=votes.shape[1],
        repeats=len(votes),
        answered=_share(known.ravel()),
        same_again=_same_again(votes, levels),
        reliability=reliability(votes),
        decided=_share(decided[known]),
        agreement=float(np.mean(counted)) if counted else float("nan"),
        agreement_deviation=float(np.std(counted, ddof=1)) if len(counted) > 1 else float("nan"),
        balanced_agreement=float(np.mean(sides)),
        order=_order(votes, episodes, steps),
    )


def reliability(votes: Votes) -> float:
    """Krippendorff's alpha for numbers: 1 - observed / expected disagreement, both as mean squared differences between pairs of answers
    (Krippendorff 2004, "Reliability in Content Analysis"). Pictures with fewer than two answers do not count. 1 if all answers are equal;
    NaN if no picture has two answers."""
    pairable = votes[:, np.isfinite(votes).sum(0) > 1]
    if not pairable.size:
        return float("nan")
    values = pairable[np.isfinite(pairable)]
    observed = 0.0
    for column in pairable.T:
        each = column[np.isfinite(column)]
        observed += 2 * len(each) * float(((each - each.mean()) ** 2).sum()) / (len(each) - 1)
    expected = 2 * len(values) * float(((values - values.mean()) ** 2).sum()) / (len(values) - 1)
    return 1.0 if expected == 0 else 1.0 - observed / expected


def _share(answers: npt.NDArray[np.bool_]) -> float:
    return float(answers.mean()) if answers.size else float("nan")


def _same_again(votes: Votes, levels: int) -> float:
    counts = np.stack([(votes == each).sum(0) for each in range(levels)])
    total = counts.sum(0)
    several = total > 1
    pairs = (total * (total - 1))[several]
    return float(((counts * (counts - 1)).sum(0)[several] / pairs).mean()) if several.any() else float("nan")


def _order(votes: Votes, episode: npt.NDArray[Any], step: npt.NDArray[Any]) -> float:
    answered = np.isfinite(votes).any(0)
    totals = np.where(np.isfinite(votes), votes, 0.0).sum(0)
    mean = totals / np.maximum(np.isfinite(votes).sum(0), 1)
    each = [
        spearman(mean[chosen], step[chosen]) for chosen in (answered & (episode == one) for one in np.unique(episode)) if chosen.sum() > 1
    ]
    defined = [value for value in each if np.isfinite(value)]
    return float(np.mean(defined)) if defined else float("nan")


_COLUMNS = (("agreement with success", "agreement"), ("the same class again", "same_again"), ("reliability", "reliability"))


def draw(rows: Sequence[Consistency], path: Path, *, title: str) -> None:
    """A picture (PNG or SVG by the name's end): agreement with success (with its deviation over repeats), the same class again and
    reliability, for each number of classes. Raises WriteFailed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(rows), dtype=float)
    for index, (name, field) in enumerate(_COLUMNS):
        values = np.array([getattr(row, field) for row in rows])
        errors = np.array([row.agreement_deviation for row in rows]) if field == "agreement" else None
        bars = axes.bar(places + 0.27 * (index - 1), values, width=0.25, label=name, yerr=errors, capsize=3)
        axes.bar_label(bars, labels=["-" if np.isnan(value) else f"{value:.2f}" for value in values], padding=2, fontsize=8)
    axes.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xticks(places, [f"{row.levels} classes" for row in rows])
    axes.set_ylim(min(0.0, *(row.reliability for row in rows if np.isfinite(row.reliability)), 0.0) - 0.02, 1.12)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    with writing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=150)
