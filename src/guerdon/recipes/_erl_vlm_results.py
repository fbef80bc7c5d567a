"""What the study of ERL-VLM found, from its rows and records alone: tables, the paper's claims with verdicts, figures and marks of a page.

A row is one task of one evaluation of one run. Of each run and evaluated task two numbers count: its *final success*, the mean over the
last three evaluations, and its *area*, that under its curve of success as a share of the greatest possible one. Both lie in [0, 1].

Every interval draws seeds, and evaluated tasks for all seeds together (2000 bootstrap resamples, 95 %). Comparisons are paired: equal seeds
of two arms begin with the same networks and meet the same tasks. One seed says nothing about a method, so a comparison of fewer than two
has no interval. No correction is made for the number of comparisons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from guerdon.evaluation.statistics import RESAMPLES, Estimate, ReturnMatrix, interquartile_mean, mean, probability_of_improvement
from guerdon.evaluation.statistics import estimate as estimate_of
from guerdon.recipes import _study
from guerdon.recipes._study import Finding, Verdict, verdict
from guerdon.rewards.compose import NEXT_ACTIONS, WHOLE_TASK

Array = npt.NDArray[np.float64]
Row = Mapping[str, Any]
Measure = Literal["final", "area"]

METAWORLD, BABYAI = "metaworld", "babyai"
DRAWER, SWEEP, INSTRUCTIONS = "drawer-open-v3", "sweep-into-v3", "instructions"
TASKS: Mapping[str, str] = {DRAWER: METAWORLD, SWEEP: METAWORLD, INSTRUCTIONS: BABYAI}
"""What is learned -> the world in which it is. Instructions are several layouts of BabyAI at once, one policy for all of them."""
AXES: Mapping[str, tuple[str, str]] = {METAWORLD: ("step", "environment steps"), BABYAI: ("episode", "episodes")}
"""World -> the column along which curves are drawn and their area is taken, and its name. In BabyAI episodes end when the instruction is
carried out, so that equal episodes are different numbers of steps."""
MEASURES: Mapping[Measure, str] = {"final": "final success", "area": "area under the curve"}
LAST = 3
"""Evaluations that the final success is the mean of."""
CLOSE = 0.1
"""How far below the true reward is still close to it: the study's own choice, the paper gives none."""
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    DRAWER: {
        "true": 1.0, "erl_vlm": 0.96, "erl_vlm_mistake": 0.96, "rl_vlm_f": 0.91, "vanilla": 0.12, "vanilla_mistake": 0.12, "ce": 0.84,
        "unbalanced": 0.77, "erl_vlm_pictures": 0.96,
    },
    SWEEP: {
        "true": 1.0, "erl_vlm": 0.78, "erl_vlm_mistake": 0.78, "rl_vlm_f": 0.05, "vanilla": 0.04, "vanilla_mistake": 0.04, "ce": 0.02,
        "unbalanced": 0.52,
    },
    INSTRUCTIONS: {"erl_vlm": 0.995, "erl_vlm_embedded": 0.995, "rl_vlm_f": 0.0, "sparse": 0.895},
}  # fmt: skip
"""The paper's final success: read off its curves (within 0.03) and from its ablation, at a million steps with a model as the rater; of
instructions, means of its four kinds of household tasks, whose simulator is another one (ALFRED)."""
STAGES = ("learning", "collecting")
"""Parts of the study, in their order."""
_NONE = "–"


@dataclass(frozen=True)
class Curves:
    """How the runs of one arm in one task went: `success` of each seed, evaluation and evaluated task."""

    seeds: tuple[int, ...]
    """(S,) ascending."""
    at: Array
    """(E,) where on the axis evaluations were made, ascending."""
    cases: tuple[str, ...]
    """(N,) evaluated tasks, by kind and place in the list of the run."""
    kinds: tuple[int, ...]
    """(N,) numbers of their kinds (start and number of sub-tasks): the strata of the bootstrap."""
    success: Array
    """(S, E, N), 0 or 1."""
    totals: Array
    """(S, E, N), sums of the world's own rewards."""

    def measured(self, measure: Measure) -> ReturnMatrix:
        """One number for each seed and evaluated task."""
        last = np.where(np.arange(len(self.at)) >= len(self.at) - LAST, 1 / min(LAST, len(self.at)), 0.0)
        found = np.tensordot(last if measure == "final" else _shares(self.at), self.success, axes=(0, 1))
        return ReturnMatrix(self.seeds, self.cases, self.kinds, np.clip(found, 0.0, 1.0))

    def final_totals(self, most: float) -> ReturnMatrix:
        """The mean over the last evaluations of the sum of the world's own rewards, as a share of `most`."""
        return ReturnMatrix(self.seeds, self.cases, self.kinds, np.clip(self.totals[:, -LAST:].mean(axis=1) / most, 0.0, 1.0))

    def at_evaluation(self, number: int, most: float | None = None) -> ReturnMatrix:
        """The success at one evaluation; or the sum of the world's own rewards, as a share of `most`."""
        found = self.success[:, number] if most is None else np.clip(self.totals[:, number] / most, 0.0, 1.0)
        return ReturnMatrix(self.seeds, self.cases, self.kinds, found)


def _shares(at: Array) -> Array:
    """How much each evaluation counts in the area under a curve (trapezoidal rule), (E,) with sum 1."""
    if len(at) == 1:
        return np.ones(1)
    widths = np.diff(at)
    return np.asarray((np.append(widths, 0.0) + np.insert(widths, 0, 0.0)) / 2 / (at[-1] - at[0]), np.float64)


def curves_of(rows: Iterable[Row], axis: str) -> Curves | None:
    """The rows of one arm in one task as arrays, over the evaluations and the evaluated tasks that all seeds share; None if there are none.

    Args:
        axis: column with the place of an evaluation on the axis.
    """
    found: dict[int, dict[tuple[float, str], tuple[float, float]]] = {}
    kind_of: dict[str, tuple[str, int]] = {}
    ordered = sorted(rows, key=lambda row: (row["seed"], row["evaluation"], row["place"]))
    counted: Counter[tuple[Any, ...]] = Counter()
    for row in ordered:
        kind = (str(row["start"]), int(row["length"]))
        counted[row["seed"], row["evaluation"], kind] += 1
        case = f"{kind[0]} {kind[1]} {counted[row['seed'], row['evaluation'], kind]:03d}"
        kind_of[case] = kind
        found.setdefault(row["seed"], {})[float(row[axis]), case] = float(row["success"]), float(row["return"])
    shared = set.intersection(*(set(each) for each in found.values())) if found else set()
    at, cases = sorted({place for place, _ in shared}), sorted({case for _, case in shared})
    if not shared or len(shared) < len(at) * len(cases):
        return None
    kinds = sorted(set(kind_of.values()))
    both = np.array([[[found[seed][place, case] for case in cases] for place in at] for seed in sorted(found)])
    return Curves(
        tuple(sorted(found)), np.array(at), tuple(cases), tuple(kinds.index(kind_of[case]) for case in cases), both[..., 0], both[..., 1]
    )


class Results:
    """Everything that was found, and what is made of it.

    Args:
        record: what `erl-vlm.json` holds.
        rows: what `erl-vlm.parquet` holds.
    """

    def __init__(self, record: Mapping[str, Any], rows: Iterable[Row]) -> None:
        self.record, self.rows = record, list(rows)

    @cached_property
    def curves(self) -> dict[tuple[str, str], Curves]:
        """(task, arm) -> how its runs went."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row["task"], row["arm"]), []).append(row)
        found = {key: curves_of(some, AXES[TASKS[key[0]]][0]) for key, some in groups.items()}
        return {key: curves for key, curves in found.items() if curves is not None}

    @cached_property
    def about(self) -> dict[str, Mapping[str, Any]]:
        """Arm -> its record, in the order of the study."""
        return {arm["name"]: arm for arm in self.record["arms"]}

    @cached_property
    def tasks(self) -> list[str]:
        """What was learned, in the order of the study."""
        return [task for task in TASKS if any(task == each for each, _ in self.curves)]

    def arms(self, task: str) -> list[str]:
        """Arms that were carried out in a task, in the order of the study."""
        return [arm for arm in self.about if (task, arm) in self.curves]

    def words(self, arm: str) -> str:
        """What an arm is called in tables."""
        return str(self.about[arm]["words"])

    def runs(self, task: str, arm: str) -> list[Mapping[str, Any]]:
        """What the manifests of an arm's runs in a task say."""
        return [run for run in self.record["runs"] if (run["task"], run["arm"]) == (task, arm)]

    @cached_property
    def _matrices(self) -> dict[tuple[str, str, Measure], ReturnMatrix]:
        return {(*key, measure): curves.measured(measure) for key, curves in self.curves.items() for measure in MEASURES}

    def value(self, task: str, arm: str, measure: Measure) -> Estimate:
        """Mean over seeds and evaluated tasks. Raises KeyError if there is none."""
        return estimate_of(self._matrices[task, arm, measure], mean)

    def middle(self, task: str, arm: str) -> Estimate:
        """Interquartile mean of the final success. Raises KeyError if there is none."""
        return estimate_of(self._matrices[task, arm, "final"], interquartile_mean)

    def total(self, task: str, arm: str) -> Estimate:
        """Mean sum of the world's own rewards in an episode, over the last evaluations, as a share of the greatest possible (in BabyAI:
        share of the sub-tasks that were done). Raises KeyError if there is none."""
        return estimate_of(self.curves[task, arm].final_totals(self.greatest_return if TASKS[task] == METAWORLD else 1.0), mean)

    @property
    def greatest_return(self) -> float:
        """The greatest sum of Meta-World's own rewards in an episode of this study."""
        return _MOST_REWARD * float(self.record["settings"][METAWORLD]["episode_steps"])

    def has(self, task: str, *arms: str) -> bool:
        """Whether all these arms were carried out in a task."""
        return all((task, arm) in self.curves for arm in arms)

    def difference(self, task: str, better: str, worse: str, measure: Measure = "final") -> Estimate:
        """Mean of `better` less that of `worse`, over the seeds and evaluated tasks that both have; NaN if there are none, and without an
        interval for one seed."""
        ours, theirs = _alike(self._matrices[task, better, measure], self._matrices[task, worse, measure])
        if ours is None or theirs is None:
            return Estimate(math.nan)
        value = float(ours.returns.mean() - theirs.returns.mean())
        if len(ours.seeds) < 2:
            return Estimate(value)
        resampled = ours.resamples(0, RESAMPLES).mean(axis=(1, 2)) - theirs.resamples(0, RESAMPLES).mean(axis=(1, 2))
        return Estimate.of(value, resampled)

    def improvement(self, task: str, better: str, worse: str) -> Estimate:
        """Probability that a run of `better` has the higher final success on an evaluated task than one of `worse`, ties counted half;
        NaN if they share no tasks, and without an interval for one seed."""
        ours, theirs = (self._matrices[task, arm, "final"] for arm in (better, worse))
        shared = sorted(set(ours.tasks) & set(theirs.tasks))
        if not shared:
            return Estimate(math.nan)
        found = probability_of_improvement(_only(ours, ours.seeds, shared), _only(theirs, theirs.seeds, shared))
        return found if min(len(ours.seeds), len(theirs.seeds)) > 1 else Estimate(found.value)


def _alike(one: ReturnMatrix, other: ReturnMatrix) -> tuple[ReturnMatrix, ReturnMatrix] | tuple[None, None]:
    """Both with the seeds and tasks that both have, in one order."""
    seeds, tasks = sorted(set(one.seeds) & set(other.seeds)), sorted(set(one.tasks) & set(other.tasks))
    return (_only(one, seeds, tasks), _only(other, seeds, tasks)) if seeds and tasks else (None, None)


def _only(matrix: ReturnMatrix, seeds: Sequence[int], tasks: Sequence[str]) -> ReturnMatrix:
    rows, columns = [matrix.seeds.index(seed) for seed in seeds], [matrix.tasks.index(task) for task in tasks]
    kinds = tuple(matrix.lengths[column] for column in columns)
    return ReturnMatrix(tuple(seeds), tuple(tasks), kinds, matrix.returns[np.ix_(rows, columns)])


# --- claims -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A statement, what the paper reports, and how it is looked at here."""

    name: str
    says: str
    paper: str
    """What the paper reports; "–" for a question of this study's own."""
    pairs: tuple[tuple[str, str], ...]
    """Arms that are compared: the first has the higher success if the claim is true."""
    measures: tuple[Measure, ...] = ("final",)
    threshold: float = 0.0
    """All differences lie above it if the claim is true."""

    def find(self, results: Results) -> list[Finding]:
        """The differences in each task in which both arms were carried out."""
        return [
            Finding(
                f"{task}, {results.words(better)} less {results.words(worse)}"
                + (f", {MEASURES[measure]}" if len(self.measures) > 1 else ""),
                results.difference(task, better, worse, measure),
            )
            for task in results.tasks
            for better, worse in self.pairs
            if results.has(task, better, worse)
            for measure in self.measures
        ]

    def verdict(self, results: Results) -> Verdict:
        """What the intervals say."""
        return verdict(self.find(results), self.threshold)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "vanilla",
        "ERL-VLM does better than learning from ratings did before",
        "Sweep Into 78 % against 4 %, Drawer Open 96 % against 12 %",
        (("erl_vlm", "vanilla"), ("erl_vlm_mistake", "vanilla_mistake")),
    ),
    Claim(
        "preferences",
        "ERL-VLM does better than RL-VLM-F, with as many labels",
        "Sweep Into 78 % against 5 %, Drawer Open 96 % against 91 %, household tasks 99 to 100 % against 0 %",
        (("erl_vlm", "rl_vlm_f"),),
    ),
    Claim(
        "loss",
        "With wrong ratings, mean absolute error does better than cross entropy",
        "Sweep Into 78 % against 2 %, Drawer Open 96 % against 84 %",
        (("erl_vlm_mistake", "ce"),),
    ),
    Claim(
        "balance",
        "Balanced batches and weighted classes help",
        "Sweep Into 78 % against 52 %, Drawer Open 96 % against 77 %",
        (("erl_vlm_mistake", "unbalanced"),),
    ),
    Claim(
        "true",
        f"ERL-VLM comes close to the true reward: no more than {CLOSE:g} below it",
        "Sweep Into 78 % against 100 %, Drawer Open 96 % against 100 %",
        (("erl_vlm", "true"),),
        ("final", "area"),
        -CLOSE,
    ),
    Claim(
        "quality",
        f"Ratings and their model lose little against the true quality of states: no more than {CLOSE:g}",
        _NONE,
        (("erl_vlm", "quality"),),
        ("final", "area"),
        -CLOSE,
    ),
    Claim(
        "sparse",
        "ERL-VLM does better than the sparse reward",
        "household tasks: 99 to 100 % against 67 to 100 %",
        (("erl_vlm", "sparse"),),
    ),
    Claim(
        "mistakes",
        f"A fifth of the ratings may be wrong: ERL-VLM is then no more than {CLOSE:g} below what it does with right ones",
        _NONE,
        (("erl_vlm_mistake", "erl_vlm"),),
        ("final", "area"),
        -CLOSE,
    ),
)
"""What the paper claims, and what this study asks besides."""


def claims_table(results: Results) -> str:
    """Each claim beside what was found."""
    rows = []
    for claim in CLAIMS:
        found = claim.find(results)
        numbers = "; ".join(f"{each.of}: {_study.shown(each.estimate, signed=True)}" for each in found) or _NONE
        rows.append([claim.says, claim.paper, numbers, f"**{verdict(found, claim.threshold)}**"])
    return _study.table(["claim", "paper", "differences found", "verdict"], rows)


# --- tables -------------------------------------------------------------------------------------------------------------------------


def task_table(results: Results, task: str) -> str:
    """What each arm's runs in a task achieved."""
    rows = []
    for arm in results.arms(task):
        labels = [run["labels"] for run in results.runs(task, arm)]
        paper = PUBLISHED.get(task, {}).get(arm)
        rows.append(
            [
                results.words(arm), str(len(results.curves[task, arm].seeds)), f"{np.mean(labels):,.0f}" if labels else _NONE,
                _study.shown(results.value(task, arm, "final")), _study.shown(results.middle(task, arm)),
                _study.shown(results.value(task, arm, "area")), _study.shown(results.total(task, arm)),
                _NONE if paper is None else f"{paper:g}",
            ]
        )  # fmt: skip
    header = [
        "arm",
        "runs",
        "labels",
        "final success",
        "IQM",
        "area under the curve",
        "share of the greatest return",
        "final success in the paper",
    ]
    return _study.table(header, rows)


def pairs(results: Results, task: str) -> list[tuple[str, str]]:
    """Arms that are compared: `erl_vlm` with every other, and with wrong ratings what was changed."""
    wanted = [("erl_vlm", arm) for arm in results.arms(task) if arm != "erl_vlm"]
    wanted += [("erl_vlm_mistake", arm) for arm in ("vanilla_mistake", *ABLATION[1:3])]
    return [pair for pair in wanted if results.has(task, *pair)]


def differences_table(results: Results) -> str:
    """Arms beside each other in each task; bold where the interval leaves out what is even."""
    rows = []
    for task in results.tasks:
        for better, worse in pairs(results, task):
            differences = [_study.shown(results.difference(task, better, worse, measure), signed=True) for measure in MEASURES]
            improvement = _against_half(results.improvement(task, better, worse))
            rows.append([task, results.words(better), results.words(worse), *differences, improvement])
    return _study.table(["task", "better?", "than", *(f"{words}: difference" for words in MEASURES.values()), "probability"], rows)


def _against_half(found: Estimate) -> str:
    certain = found.low is not None and found.high is not None and (found.low > 0.5 or found.high < 0.5)
    return f"**{_study.shown(found)}**" if certain else _study.shown(found)


ABLATION = ("erl_vlm_mistake", "ce", "unbalanced", "vanilla_mistake")
"""ERL-VLM with wrong ratings, without its loss, without its batches and weights, and without all of them."""


def ablation_table(results: Results) -> str:
    """What each part of ERL-VLM is worth when a fifth of the ratings are wrong."""
    tasks = [task for task in results.tasks if any(results.has(task, arm) for arm in ABLATION)]
    rows = []
    for arm in (arm for arm in ABLATION if arm in results.about):
        cells = []
        for task in tasks:
            there, paper = results.has(task, arm), PUBLISHED.get(task, {}).get(arm)
            cells += [_study.shown(results.value(task, arm, "final")) if there else _NONE, _NONE if paper is None else f"{paper:g}"]
        rows.append([results.words(arm), *cells])
    return _study.table(["arm", *(text for task in tasks for text in (task, f"{task}, paper"))], rows)


def metaworld_settings_table(results: Results) -> str:
    """What Meta-World's runs share, beside what was published."""
    shared = results.record["settings"].get(METAWORLD)
    if shared is None:
        return _study.table(_SETTINGS, [])
    loop, queries, algorithm = shared["loop"], shared["queries"], shared["algorithm"]
    rates = {name: f"{algorithm.get(f'{name}_learning_rate', usual):g}" for name, usual in _RATES.items()}
    classes = "; ".join(
        f"{task}: {len(edges) + 1}, from {', '.join(f'{10 * edge:g}' for edge in edges)}" for task, edges in shared["edges"].items()
    )
    sessions = len(range(loop["first_session"], loop["steps"], loop["every"]))
    return _settings(
        ("environment steps", loop["steps"], "1,000,000"),
        ("of these at random", loop["random_steps"], "1,000"),
        ("first feedback session at step", loop["first_session"], "10,000"),
        ("steps from one session to the next", loop["every"], "5,000 (RL-VLM-F: 4,000)"),
        ("labels in a session", queries, "50 (RL-VLM-F: 40)"),
        ("most labels", sessions * queries, "9,900 (RL-VLM-F: 20,000)"),
        ("labels in a batch of the reward model", shared["fitting"].get("batch", _NONE), "512"),
        ("transitions in a batch of soft actor-critic", algorithm.get("batch", 512), "512"),
        ("widths of its hidden layers", " ".join(map(str, algorithm.get("hidden", _HIDDEN))), " ".join(map(str, _HIDDEN))),
        (
            "its learning rates (policy, critics, temperature)",
            ", ".join(rates.values()),
            ", ".join(f"{usual:g}" for usual in _RATES.values()),
        ),
        ("its critics normalise their units", "yes" if algorithm.get("normed_critics") else "no", "no"),
        ("updates from one step of its target to the next", algorithm.get("target_every", 2), "2"),
        ("steps of an episode", shared["episode_steps"], "500"),
        ("steps of the simulator in each", shared["repeat"], "1"),
        ("classes of ratings, and the simulator's reward at which they begin", classes or _NONE, "Drawer Open 3, Sweep Into 2"),
        ("tasks in an evaluation", shared["evaluation_tasks"], "10"),
        ("who rates", "the simulator, in classes", "Gemini 1.5 Pro, from a picture"),
        ("what the reward model sees", "the state, or a picture", "a picture"),
    )


def babyai_settings_table(results: Results) -> str:
    """What BabyAI's runs share, beside what was published of household tasks."""
    shared = results.record["settings"].get(BABYAI)
    if shared is None:
        return _study.table(_SETTINGS, [])
    loop = shared["loop"]
    return _settings(
        ("instructions", shared["tasks"], "20, in 10 kitchens"),
        ("sub-tasks of an instruction", "{} to {}".format(*shared["lengths"]), "1 or 2"),
        ("demonstrations of each", shared["demonstrations"], "3"),
        ("rounds", results.record["settings"]["rounds"], _NONE),
        ("episodes in a round", loop["episodes"], _NONE),
        ("gradient steps in a round", loop["updates"], _NONE),
        ("gradient steps before the first", loop["first_updates"], _NONE),
        ("temperature of actions while exploring", loop["temperature"], _NONE),
        ("discount of the true reward, which is paid for actions", NEXT_ACTIONS, _NONE),
        ("discount of all others", WHOLE_TASK, "0.97"),
        ("inverse temperature of advantages", shared["algorithm"]["inverse_temperature"], "5, of rewards that are not scaled"),
        ("rounds from one session to the next", loop["session_every"], _NONE),
        ("most labels", shared["feedback"]["budget"], "1,500"),
        ("episodes in an evaluation", 2 * shared["tasks"], "100"),
        ("who rates", "the simulator, or the embedded rater", "Gemini 1.5 Pro, from pictures"),
        ("what the reward model sees", "a picture and the instruction", "a picture and the instruction"),
    )


_SETTINGS = ("setting", "here", "paper")
_MOST_REWARD = 10.0
"""Meta-World's reward of one step at its best."""
_HIDDEN = (256, 256, 256)
_RATES = {"actor": 3e-4, "critic": 3e-4, "temperature": 1e-4}
"""Learning rates of soft actor-critic as published."""


def _settings(*rows: tuple[str, float | str, str]) -> str:
    return _study.table(_SETTINGS, [[name, ours if isinstance(ours, str) else f"{ours:,}", theirs] for name, ours, theirs in rows])


def runs_table(results: Results) -> str:
    """What each arm's runs took, as means."""
    rows = []
    for task in results.tasks:
        for arm in results.arms(task):
            runs = results.runs(task, arm)
            if not runs:
                continue
            steps, sessions, labels, requests, seconds = (
                float(np.mean([run[name] for run in runs])) for name in ("steps", "sessions", "labels", "requests", "seconds")
            )
            speed = f"{steps / seconds:,.0f}" if seconds else _NONE
            asked = [f"{number:,.0f}" for number in (sessions, labels, requests)] if requests else [_NONE] * 3
            cells = [f"{steps:,.0f}", *asked]
            rows.append([task, results.words(arm), str(len(runs)), *cells, f"{seconds / 60:.1f}", speed])
    header = ["task", "arm", "runs", "environment steps", "sessions", "labels", "requests", "minutes a run", "steps a second"]
    return _study.table(header, rows)


def stages_table(results: Results) -> str:
    """Minutes of each part of the study."""
    seconds = results.record["seconds"]
    return _study.table(["part", "minutes"], [[name, f"{seconds[name] / 60:.1f}"] for name in STAGES if name in seconds])


TABLES: Mapping[str, Callable[[Results], str]] = {
    "claims": claims_table,
    **{task: (lambda results, task=task: task_table(results, task)) for task in TASKS},  # type: ignore[misc]
    "differences": differences_table,
    "ablation": ablation_table,
    f"settings {METAWORLD}": metaworld_settings_table,
    f"settings {BABYAI}": babyai_settings_table,
    "runs": runs_table,
    "stages": stages_table,
}


def value_of(key: str, results: Results) -> str:
    """What stands between the marks of a page: "table NAME", "final TASK ARM", "area TASK ARM", "total TASK ARM", "difference TASK ARM
    ARM", "better TASK ARM ARM", "verdict CLAIM", "command", "minutes", "machine", "version", "runs", "seeds", "steps", "rounds", "labels";
    a dash for what was not carried out. Raises KeyError for another."""
    match key.split(" "):
        case ["table", *name]:
            return TABLES[" ".join(name)](results)
        case ["final" | "area" | "total" | "difference" | "better", task, *arms] if task in TASKS and not results.has(task, *arms):
            return _NONE
        case ["total", task, arm]:
            return _study.shown(results.total(task, arm))
        case ["final" | "area" as measure, task, arm]:
            return _study.shown(results.value(task, arm, measure))
        case ["difference", task, better, worse]:
            return _study.shown(results.difference(task, better, worse), signed=True)
        case ["better", task, better, worse]:
            return _study.shown(results.improvement(task, better, worse))
        case ["verdict", name]:
            return {each.name: each for each in CLAIMS}[name].verdict(results)
        case ["command"]:
            return ", then ".join(f"`{command}`" for command in results.record["commands"])
        case ["minutes"]:
            return f"{sum(results.record['seconds'].values()) / 60:.0f}"
        case ["machine"]:
            return ", ".join(str(each) for each in results.record["machine"].values())
        case ["version"]:
            return str(results.record["version"])
        case ["runs"]:
            return str(len(results.record["runs"]))
        case ["seeds"]:
            return str(max((len(curves.seeds) for curves in results.curves.values()), default=0))
        case ["steps" | "rounds" as name]:
            return f"{results.record['settings'][name]:,}" if name in results.record["settings"] else _NONE
        case ["labels"]:
            return f"{sum(run['labels'] for run in results.record['runs']):,}"
        case _:
            raise KeyError(key)


# --- figures ------------------------------------------------------------------------------------------------------------------------


def figures(results: Results) -> dict[str, str]:
    """Name -> SVG: the curves of each task that was learned (in Meta-World those of the return, too), and the ablation where there is
    one."""
    colours = {arm: number for number, arm in enumerate(dict.fromkeys(arm for task in results.tasks for arm in results.arms(task)))}
    found = {task: _curves_figure(results, task, colours) for task in results.tasks}
    found |= {
        f"{task}-return": _curves_figure(results, task, colours, most=results.greatest_return)
        for task in results.tasks
        if TASKS[task] == METAWORLD
    }
    there = [arm for arm in ABLATION if any(results.has(task, arm) for task in results.tasks)]
    if len(there) > 1:
        tasks = [task for task in results.tasks if any(results.has(task, arm) for arm in there)]
        drawn = [_study.Line(results.words(arm), [_final(results, task, arm) for task in tasks], colours[arm]) for arm in there]
        found["ablation"] = _study.bars("A fifth of the ratings wrong", tasks, drawn, axis="", measure="final success")
    return found


def _curves_figure(results: Results, task: str, colours: Mapping[str, int], most: float | None = None) -> str:
    """Curves of success; or of the return, as a share of `most`."""
    arms = results.arms(task)
    points = sorted({float(point) for arm in arms for point in results.curves[task, arm].at})
    drawn = []
    for arm in arms:
        curves = results.curves[task, arm]
        numbers = {float(point): number for number, point in enumerate(curves.at)}
        values = [
            estimate_of(curves.at_evaluation(numbers[point], most), mean) if point in numbers else Estimate(math.nan) for point in points
        ]  # fmt: skip
        drawn.append(_study.Line(results.words(arm), values, colours[arm]))
    measure = "success" if most is None else "share of the greatest return"
    return _study.curves(task, points, drawn, axis=AXES[TASKS[task]][1], measure=measure)


def _final(results: Results, task: str, arm: str) -> Estimate:
    return results.value(task, arm, "final") if results.has(task, arm) else Estimate(math.nan)
