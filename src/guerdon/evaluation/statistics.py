"""What an evaluation says, and how sure one can be of it.

An evaluation row is one episode: {"arm", "seed", "task", "length" (number of sub-tasks), "start" ("fixed" or "randomised"), "wording"
("seen" or "held-out"), "return" (share of the sub-tasks completed, in [0, 1]), "success", "steps", "step_limit"}. An arm is one way to
make a policy, a seed one training of it.

Every number is taken over a matrix seeds x tasks: the returns of S policies on the same N tasks, pooled. The interquartile mean (IQM) is
the mean of the middle half of those S*N returns: it ignores the quarter of the episodes that went worst and the quarter that went best
(Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"). Returns of short tasks are mostly 0 or 1;
an IQM of exactly 0 or 1 then says no more than that over three quarters of the episodes went one way, so the mean always stands beside it.

Intervals are 95 % percentile bootstrap intervals. A resample draws seeds and, within each task length, tasks, with replacement; so the
interval answers "what if other seeds and other tasks of these lengths had been drawn". With one seed it covers the tasks only, and with
few seeds it tends to be too narrow. Resampling depends on the seed and on the shape of the matrix alone: matrices of one shape whose
seeds and tasks are listed in one order are resampled alike, which makes their comparison a paired one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.errors import RunError
from guerdon.seeding import generator

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]

RESAMPLES = 2000
"""Bootstrap resamples behind an interval."""
CONFIDENCE = 0.95
"""Share of the resamples that an interval holds."""
_TEXTS = ("arm", "task", "start", "wording")
_NUMBERS = ("seed", "length", "return")


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float | None = None
    """Lower end; None if the data allow no interval (a single observation, or a quantity undefined in the resamples)."""
    high: float | None = None

    def above(self, other: Estimate) -> bool:
        """Whether this interval lies wholly above the other one. Without both intervals nothing can be said, so False."""
        return self.low is not None and other.high is not None and self.low > other.high

    @classmethod
    def of(cls, value: float, resampled: npt.ArrayLike) -> Estimate:
        """`value` with the percentile interval of its bootstrap resamples (B,); resamples in which it was undefined (NaN) are left out."""
        defined = np.asarray(resampled, np.float64)
        defined = defined[np.isfinite(defined)]
        if not defined.size:
            return cls(float(value))
        low, high = np.quantile(defined, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
        return cls(float(value), float(low), float(high))


@dataclass(frozen=True)
class ReturnMatrix:
    """Returns of S policies of one arm on the same N tasks, from one kind of start and in one kind of wording.

    Raises:
        ValueError: if the shapes disagree or a return is not a number in [0, 1].
    """

    seeds: tuple[int, ...]
    """(S,) ascending."""
    tasks: tuple[str, ...]
    """(N,) by length, then by name."""
    lengths: tuple[int, ...]
    """(N,) number of sub-tasks of each task: the strata of the bootstrap."""
    returns: Array
    """(S, N) in [0, 1]."""
    left_out: int = 0
    """Episodes not in the matrix because another seed has not done the same task."""

    def __post_init__(self) -> None:
        if self.returns.shape != (len(self.seeds), len(self.tasks)) or len(self.lengths) != len(self.tasks) or not self.returns.size:
            raise ValueError(f"{len(self.seeds)} seeds and {len(self.tasks)} tasks do not fit returns of shape {self.returns.shape}")
        if not ((self.returns >= 0) & (self.returns <= 1)).all():
            raise ValueError("a return is a share of the task, in [0, 1]")

    def only(self, length: int) -> ReturnMatrix:
        """The tasks with `length` sub-tasks. Raises ValueError if there are none."""
        kept = [index for index, each in enumerate(self.lengths) if each == length]
        return ReturnMatrix(self.seeds, tuple(self.tasks[index] for index in kept), (length,) * len(kept), self.returns[:, kept])

    def resamples(self, seed: int = 0, count: int = RESAMPLES) -> Array:
        """(count, S, N): matrices with seeds, and within each length tasks, drawn with replacement. Raises ValueError for count < 1."""
        if count < 1:
            raise ValueError(f"a bootstrap needs at least one resample, got {count}")
        rows, columns = self.draws(seed, count)
        return np.asarray(self.returns[rows[:, :, None], columns[:, None, :]])

    def draws(self, seed: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The positions drawn: of seeds (count, S) and of tasks (count, N). They depend on the shape and the strata, not on the returns."""
        rows = generator(seed, "bootstrap seeds").integers(len(self.seeds), size=(count, len(self.seeds)))
        columns = np.empty((count, len(self.tasks)), np.int64)
        strata = np.asarray(self.lengths)
        for length in sorted(set(self.lengths)):
            members = np.flatnonzero(strata == length)
            drawn = generator(seed, "bootstrap tasks", length).integers(len(members), size=(count, len(members)))
            columns[:, members] = members[drawn]
        return rows, columns


def interquartile_mean(returns: npt.ArrayLike) -> Array:
    """Mean of the middle half of the numbers along the last axis; a quarter (rounded down) is cut at each end.

    The same as `scipy.stats.trim_mean(returns, 0.25)`, which rliable uses. Fewer than four numbers are all kept.

    Raises:
        ValueError: for no numbers, or if one is NaN.
    """
    ordered = np.sort(np.asarray(returns, np.float64), axis=-1)
    size = ordered.shape[-1]
    if not size or np.isnan(ordered).any():
        raise ValueError("the interquartile mean needs at least one number and no NaN")
    cut = size // 4
    return np.asarray(ordered[..., cut : size - cut].mean(axis=-1))


def estimate(matrix: ReturnMatrix, statistic: Callable[[Array], Array], *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """A statistic of the pooled returns, with its interval; without one for a single episode.

    Args:
        statistic: maps (..., S*N) to (...), e.g. `interquartile_mean`.
    """
    value = float(statistic(matrix.returns.reshape(-1)))
    if matrix.returns.size == 1:
        return Estimate(value)
    return Estimate.of(value, statistic(matrix.resamples(seed, resamples).reshape(resamples, -1)))


def mean(returns: Array) -> Array:
    """Mean along the last axis."""
    return np.asarray(returns.mean(axis=-1))


def probability_of_improvement(better: ReturnMatrix, worse: ReturnMatrix, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Probability that a random seed of the first arm beats a random seed of the second on a random task; ties count one half.

    Source: Agarwal et al. (2021), section 4.3. Tasks are resampled for both arms together.

    Raises:
        ValueError: if the two were not evaluated on the same tasks.
    """
    if better.tasks != worse.tasks:
        raise ValueError("the two arms were not evaluated on the same tasks")
    difference = better.returns[:, None, :] - worse.returns[None, :, :]
    wins = (difference > 0) + 0.5 * (difference == 0)
    rows, columns = better.draws(seed, resamples)
    other_rows = generator(seed, "bootstrap seeds of the other arm").integers(len(worse.seeds), size=(resamples, len(worse.seeds)))
    drawn = [wins[np.ix_(first, second, tasks)].mean() for first, second, tasks in zip(rows, other_rows, columns, strict=True)]
    return Estimate.of(float(wins.mean()), drawn) if wins.size > 1 else Estimate(float(wins.mean()))


@dataclass(frozen=True)
class RelativeDrop:
    """What is lost when the start is randomised, as a share of the return from the fixed start."""

    estimate: Estimate | None
    """1 - randomised/fixed: 0.375 means that 37.5 % is lost; negative if the randomised start is the easier one."""
    reason: str = ""
    """Why there is no estimate; empty if there is one."""


def relative_drop(
    fixed: ReturnMatrix | None,
    randomised: ReturnMatrix | None,
    random: ReturnMatrix | None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RelativeDrop:
    """(R_fixed - R_randomised) / R_fixed over mean returns, where that means something.

    A policy that does no better than chance has nothing to lose: its ratio would be noise over noise. It is therefore given only if the
    interval of the mean return from the fixed start lies above that of the random policy's.

    Args:
        fixed: an arm's returns from the fixed start.
        randomised: the same arm's returns from the randomised start.
        random: returns of the policy that acts at random, from the fixed start.
    """
    if fixed is None or randomised is None:
        return RelativeDrop(None, f"not evaluated from the {'fixed' if fixed is None else 'randomised'} start")
    if random is None:
        return RelativeDrop(None, "no random policy was evaluated to compare with")
    ours, chance = (estimate(matrix, mean, seed=seed, resamples=resamples) for matrix in (fixed, random))
    if not ours.above(chance):
        return RelativeDrop(None, "the return from the fixed start is not above that of a random policy")
    before, after = (matrix.resamples(seed, resamples).mean(axis=(1, 2)) for matrix in (fixed, randomised))
    ratio = np.divide(after, before, out=np.full(resamples, np.nan), where=before > 0)
    return RelativeDrop(Estimate.of(float(1 - randomised.returns.mean() / fixed.returns.mean()), 1 - ratio))


# --- from rows to matrices and tables -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What one arm did on one group of tasks."""

    arm: str
    start: str
    wording: str
    length: int | None
    """Number of sub-tasks; None for the tasks of all lengths together."""
    seeds: int
    tasks: int
    mean: Estimate
    """Mean return, in [0, 1]."""
    iqm: Estimate
    """Interquartile mean of the returns."""
    completed: float
    """Share of the episodes in which the whole instruction was carried out."""
    left_out: int
    """Episodes not counted because not every seed has done the same task."""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def matrices(rows: Iterable[Row]) -> dict[tuple[str, str, str], ReturnMatrix]:
    """Rows as matrices: (arm, start, wording) -> returns on the tasks that every seed of the arm has done.

    Groups whose seeds have no task in common are absent.

    Raises:
        RunError: for a row without a needed field, with a return outside [0, 1], or for a task done twice by one seed.
    """
    groups: dict[tuple[str, str, str], dict[int, dict[tuple[int, str], float]]] = {}
    for number, row in enumerate(rows, 1):
        _check(row, number)
        seeds = groups.setdefault((row["arm"], row["start"], row["wording"]), {})
        returns = seeds.setdefault(row["seed"], {})
        key = (row["length"], row["task"])
        if key in returns:
            raise RunError(f"seed {row['seed']} of '{row['arm']}' has two results for task {row['task']}", where=f"evaluation row {number}")
        returns[key] = float(row["return"])
    found = {key: _matrix(seeds) for key, seeds in sorted(groups.items())}
    return {key: matrix for key, matrix in found.items() if matrix is not None}


def summarise(rows: Iterable[Row], *, seed: int = 0, resamples: int = RESAMPLES) -> list[Summary]:
    """The table of an evaluation: for each arm, start and wording one record for all lengths and one for each length.

    Raises:
        RunError: as `matrices`.
    """
    return [
        _summary(key, length, matrix if length is None else matrix.only(length), matrix.left_out, seed, resamples)
        for key, matrix in matrices(rows).items()
        for length in (None, *sorted(set(matrix.lengths)))
    ]


def _summary(key: tuple[str, str, str], length: int | None, matrix: ReturnMatrix, left_out: int, seed: int, resamples: int) -> Summary:
    mean_return, iqm = (estimate(matrix, statistic, seed=seed, resamples=resamples) for statistic in (mean, interquartile_mean))
    completed = float((matrix.returns == 1).mean())
    return Summary(*key, length, len(matrix.seeds), len(matrix.tasks), mean_return, iqm, completed, left_out)


def _matrix(seeds: Mapping[int, Mapping[tuple[int, str], float]]) -> ReturnMatrix | None:
    columns: Counter[tuple[int, str]] = Counter(key for returns in seeds.values() for key in returns)
    shared = sorted(key for key, count in columns.items() if count == len(seeds))
    if not shared:
        return None
    order = sorted(seeds)
    returns = np.array([[seeds[seed][key] for key in shared] for seed in order])
    left_out = columns.total() - returns.size
    return ReturnMatrix(tuple(order), tuple(task for _, task in shared), tuple(length for length, _ in shared), returns, left_out)


def _check(row: Row, number: int) -> None:
    cure = "Evaluate this arm again."
    where = f"evaluation row {number}"
    missing = [name for name in (*_TEXTS, *_NUMBERS) if name not in row]
    if missing:
        raise RunError(f"has no '{missing[0]}'", where=where, cure=cure)
    wrong = _wrong_types(row)
    if wrong:
        raise RunError(f"'{wrong[0]}' is {row[wrong[0]]!r}", where=where, cure=cure)
    if not 0 <= row["return"] <= 1:
        raise RunError(f"the return is {row['return']}, not a share of the task in [0, 1]", where=where, cure=cure)


def _wrong_types(row: Row) -> Sequence[str]:
    texts = [name for name in _TEXTS if not isinstance(row[name], str)]
    return texts + [name for name in _NUMBERS if not isinstance(row[name], int | float) or not math.isfinite(row[name])]
