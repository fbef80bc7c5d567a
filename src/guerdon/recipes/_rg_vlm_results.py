"""What the study of RG-VLM found, from its rows and records alone: tables, the paper's claims with verdicts, figures and marks of a page.

Rows are those of `evaluation.statistics`, one for each arm, seed and task. Every interval that compares arms draws tasks for all arms
together and seeds for each arm on its own (2000 bootstrap resamples, 95 %). No correction is made for the number of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.evaluation.statistics import (
    RESAMPLES,
    Estimate,
    ReturnMatrix,
    Summary,
    matrices,
    mean,
    probability_of_improvement,
    relative_drop,
    summarise,
)
from guerdon.evaluation.statistics import estimate as estimate_of
from guerdon.recipes import _study
from guerdon.recipes._study import Finding, verdict
from guerdon.seeding import generator

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]

STARTS: Mapping[str, str] = {"fixed": "recorded start", "randomised": "other start"}
RANDOM = "random"
OTHER_RATERS = ("clip", "blip2", "roboclip")
"""Arms that learn from the similarity of pictures and words, as the paper compares them."""
PUBLISHED = ("sparse", "rg_vlm", *OTHER_RATERS)
"""Arms of the paper beside its best one, `both`."""
STAGES = ("recording", "labels", "rewards", "training", "evaluation")
"""Parts of the study, in their order."""
_NONE = "–"


@dataclass(frozen=True)
class Mean:
    """A mean return and its bootstrap resamples, (RESAMPLES,)."""

    value: float
    resampled: Array

    def with_other(self, other: Mean, function: Callable[[Array, Array], Array]) -> Estimate:
        """`function` of two means, with its interval; resamples in which it is undefined are left out."""
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(function(np.array(self.value), np.array(other.value)))
            return Estimate.of(value, function(self.resampled, other.resampled))


def mean_of(means: Sequence[Mean]) -> Mean:
    """The mean of several means."""
    return Mean(float(np.mean([each.value for each in means])), np.mean([each.resampled for each in means], axis=0))


class Results:
    """Everything that was found, and what is made of it.

    Args:
        record: what `rg-vlm.json` holds.
        rows: what `rg-vlm.parquet` holds.
    """

    def __init__(self, record: Mapping[str, Any], rows: Iterable[Row]) -> None:
        self.record, self.rows = record, list(rows)

    @cached_property
    def matrices(self) -> dict[tuple[str, str], ReturnMatrix]:
        """(arm, start) -> returns."""
        return {(arm, start): matrix for (arm, start, wording), matrix in matrices(self.rows).items() if wording == "seen"}

    @cached_property
    def summaries(self) -> dict[tuple[str, str, int | None], Summary]:
        """(arm, start, length) -> mean and IQM; the length is None for all tasks together."""
        return {(each.arm, each.start, each.length): each for each in summarise(self.rows) if each.wording == "seen"}

    @cached_property
    def about(self) -> dict[str, Mapping[str, Any]]:
        """Arm -> its record, in the order of the study."""
        return {arm["name"]: arm for arm in self.record["arms"]}

    @cached_property
    def arms(self) -> list[str]:
        """Arms that were evaluated, in the order of the study; actions at random first."""
        there = {arm for arm, _ in self.matrices}
        return [arm for arm in (RANDOM, *self.about) if arm in there]

    @cached_property
    def lengths(self) -> list[int]:
        """Numbers of sub-tasks."""
        return sorted({row["length"] for row in self.rows})

    @cached_property
    def _means(self) -> dict[tuple[str, str], Mean]:
        return {key: _resampled(matrix, key[0]) for key, matrix in self.matrices.items()}

    def words(self, arm: str) -> str:
        """What an arm is called in tables."""
        return "random actions" if arm == RANDOM else str(self.about[arm]["words"])

    def has(self, *arms: str) -> bool:
        """Whether all these arms were evaluated, from both starts."""
        return all((arm, start) in self.matrices for arm in arms for start in STARTS)

    def mean(self, arm: str, start: str) -> Mean:
        """Mean return. Raises KeyError if there is none."""
        return self._means[arm, start]

    def average(self, arm: str) -> Mean:
        """Mean return of both starts."""
        return mean_of([self.mean(arm, start) for start in STARTS])

    def ratio(self, better: str, worse: str, start: str | None = None) -> Estimate:
        """How many times the return of `worse` that of `better` is, on average over the starts or from one."""
        ours, theirs = ((self.average(arm) if start is None else self.mean(arm, start)) for arm in (better, worse))
        return ours.with_other(theirs, lambda one, other: one / other)

    def difference(self, better: str, worse: str, start: str) -> Estimate:
        """Mean return of `better` less that of `worse`."""
        return self.mean(better, start).with_other(self.mean(worse, start), lambda one, other: one - other)

    def improvement(self, better: str, worse: str, start: str) -> Estimate:
        """Probability that `better` does better than `worse` on a task. Raises KeyError if one of them is not there."""
        return probability_of_improvement(self.matrices[better, start], self.matrices[worse, start])

    def drop(self, arm: str) -> Estimate | None:
        """Share of the return that is lost from another start; None where that says nothing."""
        return self._drop(arm)[0]

    def drop_reason(self, arm: str) -> str:
        """Why there is no drop; empty if there is one."""
        return self._drop(arm)[1]

    def _drop(self, arm: str) -> tuple[Estimate | None, str]:
        fixed, other, chance = (self.matrices.get(key) for key in ((arm, "fixed"), (arm, "randomised"), (RANDOM, "fixed")))
        found = relative_drop(fixed, other, chance)
        return (None, found.reason) if found.estimate is None else (self._share_lost(arm, lambda share: share), "")

    def _share_lost(self, arm: str, function: Callable[[Array], Array]) -> Estimate:
        return self.mean(arm, "fixed").with_other(self.mean(arm, "randomised"), lambda before, after: function(1 - after / before))

    def smaller_drop(self, arm: str, other: str) -> Estimate | None:
        """How much less of its return `arm` loses from another start than `other` does; None where that says nothing."""
        if not self.has(arm, other) or self.drop(arm) is None or self.drop(other) is None:
            return None
        lost = [_ratio_of(self.mean(each, "randomised"), self.mean(each, "fixed")) for each in (arm, other)]
        return lost[0].with_other(lost[1], lambda kept, others: kept - others)

    def share(self, arm: str, start: str, holds: Callable[[Row], bool]) -> Estimate | None:
        """Share of an arm's episodes of which something holds, with its interval; None if there are none."""
        rows = [{**row, "return": float(holds(row))} for row in self.rows if (row["arm"], row["start"]) == (arm, start)]
        matrix = matrices(rows).get((arm, start, "seen"))
        return None if matrix is None else estimate_of(matrix, mean)


def _resampled(matrix: ReturnMatrix, arm: str) -> Mean:
    """Tasks are drawn alike for every arm on the same tasks, seeds for each arm on its own: equal seeds of two arms share nothing."""
    _, columns = matrix.draws(0, RESAMPLES)
    rows = generator(0, "bootstrap seeds", arm).integers(len(matrix.seeds), size=(RESAMPLES, len(matrix.seeds)))
    return Mean(float(matrix.returns.mean()), matrix.returns[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2)))


def _ratio_of(part: Mean, whole: Mean) -> Mean:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Mean(float(np.divide(part.value, whole.value)), part.resampled / whole.resampled)


# --- claims -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A statement, what the paper reports, and how it is looked at here."""

    name: str
    says: str
    paper: str
    """What the paper reports; "–" for a question of this study's own."""
    measured: str
    """What the numbers are."""
    threshold: float
    """All numbers lie above it if the claim is true."""
    find: Callable[[Results], list[Finding]]


def _drops(results: Results) -> list[Finding]:
    found = results.smaller_drop("both", "sparse")
    return [] if found is None else [Finding("sparse less both", found)]


def _alone(results: Results) -> list[Finding]:
    return [Finding("both to RG-VLM", results.ratio("both", "rg_vlm"))] if results.has("both", "rg_vlm") else []


def _others(results: Results) -> list[Finding]:
    there = [arm for arm in OTHER_RATERS if results.has("both", arm)]
    return [Finding(f"both to {results.words(arm)}", results.ratio("both", arm, "fixed")) for arm in there]


def _best(results: Results) -> list[Finding]:
    there = [arm for arm in PUBLISHED if results.has("both", arm)]
    return [
        Finding(f"against {results.words(arm)}, {words}", results.difference("both", arm, start))
        for arm in there
        for start, words in STARTS.items()
    ]


def _over(better: str, *worse: str) -> Callable[[Results], list[Finding]]:
    def find(results: Results) -> list[Finding]:
        if not results.has(better, *worse):
            return []
        return [
            Finding(f"against {results.words(arm)}, {words}", results.difference(better, arm, start))
            for arm in worse
            for start, words in STARTS.items()
        ]

    return find


_DIFFERENCES = "differences of the mean return, from either start"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "drop",
        "From another start, sparse + RG-VLM loses a smaller share of its return than sparse alone",
        "loses 38.94 %, sparse 49.91 %",
        "difference of the shares lost",
        0.0,
        _drops,
    ),
    Claim(
        "best",
        "Sparse + RG-VLM does best in both settings of the start",
        "the best of all methods compared",
        f"{_DIFFERENCES}, to every method of the paper that was tried",
        0.0,
        _best,
    ),
    Claim(
        "alone",
        "Sparse + RG-VLM does better than RG-VLM alone",
        "1.14 times the return, on average",
        "ratio of the mean returns, over both starts",
        1.0,
        _alone,
    ),
    Claim(
        "others",
        "Sparse + RG-VLM does better than rewards by the similarity of pictures and words",
        "1.12 to 3.15 times the return, recorded start",
        "ratios of the mean returns, recorded start",
        1.0,
        _others,
    ),
    Claim(
        "sparse",
        "RG-VLM's rewards beside the sparse one do better than the sparse one alone",
        _NONE,
        _DIFFERENCES,
        0.0,
        _over("both", "sparse"),
    ),
    Claim(
        "imitation",
        "RG-VLM's rewards beside the sparse one do better than imitation",
        _NONE,
        _DIFFERENCES,
        0.0,
        _over("both", "bc"),
    ),
    Claim(
        "scores",
        "RG-VLM's scores alone do better than imitation and than the sparse reward alone",
        _NONE,
        _DIFFERENCES,
        0.0,
        _over("rg_vlm", "bc", "sparse"),
    ),
    Claim(
        "truth",
        "Perfect labels beside the sparse reward do better than imitation and than the sparse reward alone",
        _NONE,
        _DIFFERENCES,
        0.0,
        _over("oracle", "bc", "sparse"),
    ),
    Claim(
        "content",
        "What the labels say is what helps: labels without content do worse",
        _NONE,
        _DIFFERENCES,
        0.0,
        _over("both", "constant", "shuffled"),
    ),
)
"""What the paper claims, and what this study asks besides."""


def claims_table(results: Results) -> str:
    """Each claim beside what was found."""
    rows = []
    for claim in CLAIMS:
        found = claim.find(results)
        numbers = "; ".join(f"{each.of}: {_study.shown(each.estimate, signed=not claim.threshold)}" for each in found) or _NONE
        rows.append([claim.says, claim.paper, claim.measured, numbers, f"**{verdict(found, claim.threshold)}**"])
    return _study.table(["claim", "paper", "measured here", "found", "verdict"], rows)


# --- tables -------------------------------------------------------------------------------------------------------------------------


def returns_table(results: Results) -> str:
    """Mean return and IQM of each arm from either start."""
    rows = []
    for arm in results.arms:
        found = [results.summaries.get((arm, start, None)) for start in STARTS]
        cells = [_NONE if each is None else _study.shown(number) for each in found for number in _numbers(each)]
        rows.append([results.words(arm), str(max((each.seeds for each in found if each), default=0)), *cells])
    return _study.table(["arm", "policies", *(f"{words}: {what}" for words in STARTS.values() for what in ("mean", "IQM"))], rows)


def _numbers(summary: Summary | None) -> tuple[Estimate, Estimate]:
    nothing = Estimate(math.nan)
    return (nothing, nothing) if summary is None else (summary.mean, summary.iqm)


def lengths_table(results: Results, start: str) -> str:
    """Mean return of each arm for each number of sub-tasks."""
    rows = []
    for arm in results.arms:
        found = [results.summaries.get((arm, start, length)) for length in results.lengths]
        rows.append([results.words(arm), *(_NONE if each is None else _study.shown(each.mean) for each in found)])
    return _study.table(["arm", *(_sub_tasks(length) for length in results.lengths)], rows)


def _sub_tasks(length: int) -> str:
    return "1 sub-task" if length == 1 else f"{length} sub-tasks"


def pairs(results: Results) -> list[tuple[str, str]]:
    """Arms that are compared: `both` with every other, and what says whether labels and their content help."""
    wanted = [("both", arm) for arm in results.arms if arm not in ("both", RANDOM)]
    wanted += [("oracle", "bc"), ("oracle", "sparse"), ("rg_vlm", "constant"), ("rg_vlm", "shuffled")]
    return [pair for pair in wanted if results.has(*pair)]


def improvement_table(results: Results) -> str:
    """Probability that one arm does better than another on a task; bold where the interval leaves out one half."""
    rows = []
    for better, worse in pairs(results):
        found = [results.improvement(better, worse, start) for start in STARTS]
        rows.append([results.words(better), results.words(worse), *(_against_half(each) for each in found)])
    return _study.table(["better?", "than", *STARTS.values()], rows)


def _against_half(found: Estimate) -> str:
    certain = found.low is not None and found.high is not None and (found.low > 0.5 or found.high < 0.5)
    return f"**{_study.shown(found)}**" if certain else _study.shown(found)


def drop_table(results: Results) -> str:
    """Share of the return that each arm loses from another start."""
    paper = {"sparse": "49.91 %", "both": "38.94 %", "roboclip": "47.74 %"}
    rows = []
    for arm in results.arms:
        if arm == RANDOM:
            continue
        found = results.drop(arm)
        rows.append([results.words(arm), results.drop_reason(arm) if found is None else per_cent(found), paper.get(arm, _NONE)])
    return _study.table(["arm", "lost from another start", "paper"], rows)


def per_cent(found: Estimate) -> str:
    """A share for a table: "37.5 % [30.1, 44.0]"."""
    interval = "" if found.low is None or found.high is None else f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{100 * found.value:.1f} %{interval}".replace("-", "−")


def _ran_out(row: Row) -> bool:
    return not row["success"] and bool(row["steps"] >= row["step_limit"])


def loitering_table(results: Results) -> str:
    """How long episodes took: successes, their steps, and episodes that ended at the step limit."""
    rows = []
    for arm in results.arms:
        cells = []
        for start in STARTS:
            successes = [row for row in results.rows if (row["arm"], row["start"]) == (arm, start) and row["success"]]
            done, ran_out = (results.share(arm, start, holds) for holds in (lambda row: bool(row["success"]), _ran_out))
            steps = f"{np.mean([row['steps'] for row in successes]):.1f}" if successes else _NONE
            of_limit = f"{np.mean([row['steps'] / row['step_limit'] for row in successes]):.0%}" if successes else _NONE
            cells += [_NONE if done is None else per_cent(done), f"{steps} ({of_limit})", _NONE if ran_out is None else per_cent(ran_out)]
        rows.append([results.words(arm), *cells])
    what = ("whole task done", "steps of these (of the limit)", "ran into the limit")
    return _study.table(["arm", *(f"{words}: {each}" for words in STARTS.values() for each in what)], rows)


def _by_arm(results: Results, part: str) -> list[tuple[str, Any]]:
    """What a part of the record says of each arm, in the order of the study."""
    return [(arm, results.record[part][arm]) for arm in results.about if arm in results.record[part]]


def advantages_table(results: Results) -> str:
    """How the advantages of each arm's policies agree with the truth over the data."""
    rows = []
    for arm, trained in _by_arm(results, "training"):
        found: Any = {
            (arm, int(seed)): each["advantage_spearman"] for seed, each in trained.items() if each["advantage_spearman"] is not None
        }
        if found:
            rows.append([results.words(arm), str(len(found)), _study.shown(_study.estimate(found))])
    return _study.table(["arm", "policies", "Spearman of advantage and truth"], rows)


_QUALITIES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "spearman": "Spearman"}


def labels_table(results: Results) -> str:
    """How right the labels of each label set are."""
    rows = []
    for place, found in sorted(results.record["labels"].items()):
        agreement = found["agreement"] or {}
        cells = [_study.shown(Estimate(**agreement[name])) if agreement.get(name) else _NONE for name in _QUALITIES]
        rows.append([place, found["rater"], f"{found['coverage']:.1%}", *cells])
    return _study.table(["labels", "rater", "coverage", *_QUALITIES.values()], rows)


def raters_table(results: Results) -> str:
    """Returns by how right the rater is."""
    rows = []
    scripted = [arm for arm in results.arms if arm.startswith("scripted_")]
    accuracy = {arm: results.record["labels"][f"chains/{arm}"]["agreement"]["accuracy"] for arm in scripted}
    for arm in sorted(scripted, key=lambda each: -accuracy[each]["value"]):
        means = [results.summaries[arm, start, None].mean for start in STARTS]
        rows.append([results.words(arm), _study.shown(Estimate(**accuracy[arm])), *map(_study.shown, means)])
    return _study.table(["rater", "measured accuracy", *STARTS.values()], rows)


def rewards_table(results: Results) -> str:
    """What each arm learns from."""
    rows = []
    for arm, found in _by_arm(results, "rewards"):
        numbers = [_NONE if found[name] is None else f"{found[name]:.3f}".replace("-", "−") for name in ("mean", "std", "min", "max")]
        about = results.about[arm]
        reward = f"`{about['expression']}`"
        rows.append([results.words(arm), reward, f"{found['discount']:g}", about["episodes"], *numbers, f"{found['coverage']:.1%}"])
    return _study.table(["arm", "reward", "discount", "trained on", "mean", "std", "min", "max", "coverage"], rows)


_FORMS = (
    ("both", "rg_vlm", "never_negative", "far", "end_first", "potential"),
    ("oracle", "oracle_alone", "end_first_oracle", "potential_oracle"),
    ("sparse", "constant"),
)
"""Arms that differ in how the same labels become a reward, with the rater's labels, with perfect ones, and without."""


def forms_table(results: Results) -> str:
    """Returns of rewards that are made from the same labels in different ways."""
    rows = []
    for arm in (arm for arms in _FORMS for arm in arms if results.has(arm)):
        means = [_study.shown(results.summaries[arm, start, None].mean) for start in STARTS]
        discount = results.record["rewards"][arm]["discount"]
        rows.append([results.words(arm), f"`{results.about[arm]['expression']}`", f"{discount:g}", *means])
    return _study.table(["arm", "reward", "discount", *STARTS.values()], rows)


def stages_table(results: Results) -> str:
    """Minutes of each part of the study."""
    seconds = results.record["seconds"]
    return _study.table(["part", "minutes"], [[name, f"{seconds[name] / 60:.1f}"] for name in STAGES if name in seconds])


TABLES: Mapping[str, Callable[[Results], str]] = {
    "returns": returns_table,
    "lengths fixed": lambda results: lengths_table(results, "fixed"),
    "lengths randomised": lambda results: lengths_table(results, "randomised"),
    "improvement": improvement_table,
    "drop": drop_table,
    "claims": claims_table,
    "loitering": loitering_table,
    "advantages": advantages_table,
    "labels": labels_table,
    "raters": raters_table,
    "rewards": rewards_table,
    "forms": forms_table,
    "stages": stages_table,
}


def value_of(key: str, results: Results, known: Iterable[str] = ()) -> str:
    """What stands between the marks of a page: "table NAME", "mean ARM START", "better ARM ARM START", "drop ARM", "verdict CLAIM",
    "command", "minutes", "machine", "version", "rater", "tasks", "episodes", "transitions", "policies". Raises KeyError for another.

    Args:
        key: of the mark.
        results: what was found.
        known: arms that the study may have; numbers of those that were not carried out are dashes.
    """
    missing = set(known) - set(results.arms)
    match key.split(" "):
        case ["mean" | "better" | "drop", *rest] if missing & set(rest):
            return _NONE
        case ["table", *name]:
            return TABLES[" ".join(name)](results)
        case ["mean", arm, start]:
            return _study.shown(results.summaries[arm, start, None].mean)
        case ["better", better, worse, start]:
            return _study.shown(results.improvement(better, worse, start))
        case ["drop", arm]:
            if (arm, "fixed") not in results.matrices:
                raise KeyError(arm)
            found = results.drop(arm)
            return results.drop_reason(arm) if found is None else per_cent(found)
        case ["verdict", name]:
            claim = {each.name: each for each in CLAIMS}[name]
            return verdict(claim.find(results), claim.threshold)
        case ["command"]:
            return f"`{results.record['command']}`"
        case ["minutes"]:
            return f"{sum(results.record['seconds'].values()) / 60:.0f}"
        case ["machine"]:
            return ", ".join(str(each) for each in results.record["machine"].values())
        case ["rater"]:
            return ", ".join(f"`{each}`" for each in results.record["config"]["vlm"])
        case ["policies"]:
            return str(sum(len(each) for each in results.record["training"].values()))
        case ["version" | "tasks" | "episodes" | "transitions" as name]:
            return str(results.record[name])
        case _:
            raise KeyError(key)


# --- figures ------------------------------------------------------------------------------------------------------------------------

_ABLATION = ("sparse", "rg_vlm", "both")


def figures(results: Results) -> dict[str, str]:
    """Name -> SVG: return for each number of sub-tasks from either start, and the ablation."""
    shown = [arm for arm in results.arms if arm != RANDOM and results.about[arm]["shown"]]
    places = [str(length) for length in results.lengths]
    found = {}
    for start, words in STARTS.items():
        groups = [_study.Line(results.words(arm), [_mean(results, arm, start, length) for length in results.lengths]) for arm in shown]
        found[start] = _study.bars(f"Share of the task done, {words}", places, groups, axis="sub-tasks", measure="mean return")
    ablation = [arm for arm in _ABLATION if arm in results.arms]
    colours = {arm: number for number, arm in enumerate(shown)}
    groups = [_study.Line(results.words(arm), [_mean(results, arm, start, None) for start in STARTS], colours.get(arm)) for arm in ablation]
    found["ablation"] = _study.bars("Ablation", list(STARTS.values()), groups, axis="", measure="mean return")
    return found


def _mean(results: Results, arm: str, start: str, length: int | None) -> Estimate:
    found = results.summaries.get((arm, start, length))
    return Estimate(math.nan) if found is None else found.mean
