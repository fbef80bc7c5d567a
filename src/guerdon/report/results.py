"""What the evaluations of a run say: its arms, their tables, and how they compare.

Computed from evaluation rows and from the manifests of the policies behind them; reads no file and knows nothing of HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from markupsafe import Markup

from guerdon.errors import GuerdonError
from guerdon.evaluation.statistics import (
    Estimate,
    RelativeDrop,
    ReturnMatrix,
    Summary,
    matrices,
    probability_of_improvement,
    relative_drop,
    summarise,
)
from guerdon.report import figures
from guerdon.report.contents import Contents, number, text

STARTS = {"fixed": "start as in the data", "randomised": "random start"}
"""Values of "start" and the words for them."""
RANDOM, REPLAY = "random", "replay"
_NOT_TRAINED = {
    RANDOM: "acts at random",
    REPLAY: "replays the recorded actions without looking",
}
_WITHOUT_CONTENT = {"shuffled", "constant"}
"""Functions of reward expressions that take the content out of labels."""
_COLOURS = 8


@dataclass(frozen=True)
class Arm:
    """One way to make a policy."""

    name: str
    algorithm: str
    """"IQL", "BC" ...; empty for what is not trained."""
    expression: str
    """The reward it learned from; empty if there was none."""
    colour: int
    """Which of the page's colours; the random policy is grey whatever it says."""

    @property
    def css(self) -> str:
        """CSS class that gives the arm's colour."""
        return "arm-random" if self.name == RANDOM else f"arm-{self.colour % _COLOURS}"

    @property
    def names(self) -> set[str]:
        """Names in the reward expression."""
        return set(re.findall(r"[A-Za-z_]\w*", self.expression))

    @property
    def role(self) -> str:
        """What the arm is compared for: "method", "control" (a reward without content), "reference" or "baseline"."""
        if self.name in _NOT_TRAINED:
            return "baseline"
        if self.names & _WITHOUT_CONTENT or (self.expression and not self.names):
            return "control"
        return "reference" if "oracle" in self.names else "method"

    @property
    def description(self) -> str:
        """What the arm is, in a few words."""
        if not self.algorithm:
            return _NOT_TRAINED.get(self.name, "no record of how it was made")
        return f"{self.algorithm} on {self.expression}" if self.expression else f"{self.algorithm}, no rewards"


@dataclass(frozen=True)
class Results:
    """What the evaluations say."""

    arms: tuple[Arm, ...]
    returns: Mapping[tuple[str, str, str], ReturnMatrix]
    """(arm, start, wording) -> returns."""
    table: Mapping[tuple[str, str, str, int | None], Summary]
    """(arm, start, wording, length or None) -> summary."""
    advantages: Mapping[str, float] = field(default_factory=dict)
    """Arm -> rank correlation of its policies' advantages with the true contributions, mean over seeds, where it was measured."""
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, contents: Contents) -> Results:
        """Computes the tables. Rows that cannot be used make them empty, with the reason among the problems."""
        try:
            returns, summaries = matrices(contents.rows), summarise(contents.rows)
        except GuerdonError as error:
            return cls((), {}, {}, problems=(str(error),))
        table = {(each.arm, each.start, each.wording, each.length): each for each in summaries}
        left_out = [each for each in summaries if each.length is None and each.left_out]
        groups = {(row["arm"], row["start"], row["wording"]) for row in contents.rows}
        problems = [f"{', '.join(group)}: its seeds have no task in common." for group in sorted(groups - returns.keys())] + [
            f"{each.arm} ({each.start}, {each.wording}): {each.left_out} episodes do not count, because not every seed has done their task."
            for each in left_out
        ]
        return cls(tuple(_arms(contents, {key[0] for key in returns})), returns, table, _advantages(contents), tuple(problems))

    def get(self, arm: str, start: str, wording: str = "seen", length: int | None = None) -> Summary | None:
        """The summary of a group, if it was evaluated."""
        return self.table.get((arm, start, wording, length))

    def above_random(self, arm: str, start: str) -> bool | None:
        """Whether the interval of the mean return lies above that of the random policy; None if one of the two is missing."""
        ours, chance = self.get(arm, start), self.get(RANDOM, start)
        return None if ours is None or chance is None else ours.mean.above(chance.mean)

    @cached_property
    def starts(self) -> list[str]:
        """Starts that were evaluated in wordings of the data."""
        return [start for start in STARTS if any(key[1:3] == (start, "seen") for key in self.table)]

    @cached_property
    def headline(self) -> Arm | None:
        """The arm the report is about: IQL on labels alone, the default reward, or the nearest to it. Chosen by what it is, not by its
        result."""
        methods = [arm for arm in self.arms if arm.role == "method"]
        preference = {arm.name: (arm.algorithm == "IQL", bool(arm.names - {"sparse"}), "sparse" not in arm.names) for arm in methods}
        return max(methods, key=lambda arm: preference[arm.name], default=None)

    @cached_property
    def sparse(self) -> Arm | None:
        """The arm that learned from the sparse reward alone."""
        return next((arm for arm in self.arms if arm.expression.strip() == "sparse"), None)

    def drop(self, arm: str) -> RelativeDrop:
        """What the arm loses when the start is randomised."""
        return relative_drop(*(self.returns.get((name, start, "seen")) for name, start in _drop_keys(arm)))

    def improvement(self, over: str) -> Estimate | None:
        """Probability that the headline arm beats another on a task from the data's start; None if they did different tasks."""
        if self.headline is None or self.headline.name == over:
            return None
        ours, theirs = (self.returns.get((name, "fixed", "seen")) for name in (self.headline.name, over))
        if ours is None or theirs is None or ours.tasks != theirs.tasks:
            return None
        return probability_of_improvement(ours, theirs)

    @cached_property
    def held_out(self) -> bool:
        """Whether wordings that the data do not hold were evaluated."""
        return any(key[2] == "held-out" for key in self.table)

    def overview(self) -> Markup:
        """Figure: interquartile mean of every arm from every start."""
        series = [figures.Series(arm.name, arm.css, self._by_start(arm)) for arm in self.arms]
        return figures.intervals(
            series, [STARTS[start] for start in self.starts],
            axis="interquartile mean return, 95 % interval", description="Interquartile mean return of every arm",
        )  # fmt: skip

    def _by_start(self, arm: Arm) -> dict[str, Estimate]:
        found = {start: self.get(arm.name, start) for start in self.starts}
        return {STARTS[start]: summary.iqm for start, summary in found.items() if summary is not None}

    def by_length(self, start: str) -> Markup:
        """Figure: mean return of every arm by number of sub-tasks."""
        lengths = sorted({key[3] for key in self.table if key[1:3] == (start, "seen") and key[3] is not None})
        return figures.bars(
            [figures.Series(arm.name, arm.css, self._by_length(arm, start, lengths)) for arm in self.arms],
            [str(length) for length in lengths],
            axis="number of sub-tasks",
            description=f"Mean return by number of sub-tasks, {STARTS[start]}",
        )

    def _by_length(self, arm: Arm, start: str, lengths: Sequence[int]) -> dict[str, Estimate]:
        found = {length: self.get(arm.name, start, "seen", length) for length in lengths}
        return {str(length): summary.mean for length, summary in found.items() if summary is not None}


def _drop_keys(arm: str) -> tuple[tuple[str, str], ...]:
    return (arm, "fixed"), (arm, "randomised"), (RANDOM, "fixed")


def _advantages(contents: Contents) -> dict[str, float]:
    measured = {arm: [number(part.results.get("advantage_spearman")) for part in parts] for arm, parts in contents.evaluations.items()}
    known = {arm: [value for value in values if value is not None] for arm, values in measured.items()}
    return {arm: sum(values) / len(values) for arm, values in known.items() if values}


def _arms(contents: Contents, names: set[str]) -> list[Arm]:
    """The evaluated arms in the order in which they are shown: methods, references, controls, baselines."""
    order = ("method", "reference", "control", "baseline")
    described = [_arm(contents, name) for name in sorted(names)]
    ranked = sorted(described, key=lambda arm: (order.index(arm.role), arm.algorithm == "BC", not arm.names - {"sparse"}, len(arm.names)))
    colours = {arm.name: place for place, arm in enumerate(arm for arm in ranked if arm.name != RANDOM)}
    return [replace(arm, colour=colours.get(arm.name, 0)) for arm in ranked]


def _arm(contents: Contents, name: str) -> Arm:
    config = next((part.config for part in contents.policies.get(name, ())), {})
    reward = contents.rewards.get(text(config.get("reward")))
    return Arm(name, text(config.get("algorithm")).upper(), text(reward.config.get("expression")) if reward else "", 0)


_THE_START = {"fixed": "the start in the data", "randomised": "a random start"}
_ABOVE = "That is above random: the intervals do not overlap."
_NOT_ABOVE = "That is not above random: the intervals overlap, so nothing is shown to have been learned."


def sentences(results: Results) -> Iterator[str]:
    """The outcome in plain words, computed from the numbers."""
    arm = results.headline
    if arm is None:
        yield "No policy has been evaluated in this run yet."
        return
    chance = results.get(RANDOM, "fixed")
    told = [f"{figures.spoken(found.mean)} from {_THE_START[start]}" for start in STARTS if (found := results.get(arm.name, start))]
    random = f"; acting at random completes {figures.spoken(chance.mean)}" if chance else ""
    yield f"“{arm.name}” ({arm.description}) completes on average {' and '.join(told)} (share of the task, 95 % interval){random}."
    above = results.above_random(arm.name, "fixed")
    if above is not None:
        yield _ABOVE if above else _NOT_ABOVE
    if results.sparse is not None and (better := results.improvement(results.sparse.name)) is not None:
        yield f"On a task it beats the sparse reward alone with probability {figures.spoken(better)}, where 0.50 means no difference."


_THE_START = {"fixed": "the start in the data", "randomised": "a random start"}
