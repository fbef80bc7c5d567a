"""Policies from ratings, offline: ERL-VLM beside what it has to beat, and RG-VLM's scores distilled into a reward model.

Three questions, one command.

- Ratings: some pictures of a dataset are rated, a reward model is fitted to them and scores every transition, IQL learns from that. Is the
  policy better than imitation (BC) and than a reward at the end of success (sparse), and how far is it from the true reward? On Meta-World
  (the rater and the reward model see pictures without the robot, the policy sees the state, as in the paper) and on BabyAI (pictures all
  along).
- Distillation: RG-VLM scores 5, 20 or 50 % of the windows of a BabyAI dataset, a reward model is fitted to the scores and scores all of it.
  How well does it agree with scores that it was not fitted to, and with the truth, and what is the policy worth beside one that learned
  from all scores, and beside one that learned from that part of them alone?
- Consistency: how steady and how right the rater is with 2, 3, 4 and 5 classes.

Every policy of an arm with a model has a model of its own, fitted with its own seed, so that intervals cover both.

Reads nothing; records its own data. Writes OUT/WORLD (a dataset and a run folder each) and OUT/offline.json, and fills the marks of a page
with the numbers. Whatever is there is kept: a killed study goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tyro.conf import Suppress

from guerdon import discover, samples
from guerdon.errors import UnknownName, UsageError
from guerdon.evaluation.statistics import Summary, matrices, probability_of_improvement, summarise
from guerdon.evaluation.truth import qualities
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet, by_transition
from guerdon.metrics import auroc, spearman
from guerdon.recipes import _study
from guerdon.recipes.consistency import raters_consistency
from guerdon.recipes.data import dataset_of, label_set_of, rewards_of
from guerdon.recipes.evaluate import evaluate
from guerdon.recipes.fit import fit
from guerdon.recipes.label import label
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.relabel import relabel
from guerdon.recipes.reward import reward
from guerdon.recipes.settings import as_record
from guerdon.recipes.train import Config as TrainConfig
from guerdon.recipes.train import jobs_of, train_jobs
from guerdon.runs import Run, command_line, package_version, read_json, write_json

RESULTS = "offline.json"
METAWORLD: Mapping[str, int] = {"drawer-open-v3": 3, "sweep-into-v3": 2, "soccer-v3": 2}
"""Task -> number of classes, as in the paper."""
BABYAI, BABYAI_LEVELS = "babyai", 3
DISTILLATION = "distillation"
CONSISTENCY = "consistency"
PARTS = (*METAWORLD, BABYAI, DISTILLATION, CONSISTENCY)
SHARES: Mapping[str, float] = {"05": 0.05, "20": 0.2, "50": 0.5}
"""Name -> share of the windows that RG-VLM scores."""
_CLASSES_TRIED = (2, 3, 4, 5)
_LEARNED = {"erl_vlm": "{model} - 1", "erl_vlm_sparse": "0.1 * ({model} - 1) + sparse", "erl_vlm_raw": "{model}.raw"}
"""Arms with a reward model and what they learn from."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How large the study is, and who rates."""

    out: Path = Path("runs/offline")
    """Folder of the study."""
    parts: tuple[str, ...] = PARTS
    """Which parts: drawer-open-v3, sweep-into-v3, soccer-v3, babyai, distillation, consistency."""
    page: Path | None = None
    """Page whose marks are filled with the numbers; none if not given."""
    vlm: tuple[str, ...] = ("scripted",)
    """Who rates; a script that knows the truth and errs, unless a real one is named."""
    seeds: int = 5
    """Policies of each arm, each with a reward model of its own."""
    pictures: int = 400
    """Pictures that are rated in each world."""
    demonstrations: int = 50
    """Demonstrations of each Meta-World task."""
    layouts: int = 30
    """BabyAI: tasks, each demonstrated five times."""
    tasks: int = 20
    """Most tasks of each number of sub-tasks on which each policy is tried, from recorded and from other starts: no more than were
    recorded."""
    updates: int | None = None
    """Gradient steps of each policy; as `guerdon train` if not given."""
    picture_updates: int = 700
    """Gradient steps of each policy that looks at pictures."""
    fit_updates: int | None = None
    """Most gradient steps of each reward model; as `guerdon fit` if not given."""
    repeats: int = 10
    """Consistency: answers to each question."""
    size: int = 128
    """Pixels of Meta-World's pictures."""
    jobs: int = 0
    """Processes at a time; as many as there are cores if 0."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider, without being asked."""
    quiet: bool = False
    """No progress bars."""
    rater_settings: Suppress[Mapping[str, Any] | None] = None
    """Config of each provider by the name of its file."""

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise UnknownName("part of the study", part, PARTS)
        for name in ("seeds", "pictures", "demonstrations", "layouts", "tasks", "picture_updates", "repeats"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, got {getattr(self, name)}")

    @property
    def store(self) -> str:
        """The study's own reply store."""
        return str(self.out / "replies.sqlite")


def reproduce(config: Config) -> list[Path]:
    """Carries out what is not done yet; returns what was written. Raises as the commands that it is made of."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    for part in config.parts:
        print(f"[{part}]", flush=True)
        found[part] = _PARTS[part](config, part)
    path = config.out / RESULTS
    before = read_json(path) if path.is_file() else {}
    seconds = before.get("seconds", 0.0) + time.monotonic() - began
    record = {
        "version": package_version(), "command": command_line(), "seconds": seconds, "config": as_record(config),
        "parts": {**before.get("parts", {}), **found},
    }  # fmt: skip
    write_json(path, record)
    for table in tables(record).values():
        print(f"\n{table}")
    written = [path]
    if config.page is not None:
        _study.fill_page(config.page, lambda key: value_of(key, record))
        written.append(config.page)
    return written


# --- ratings ------------------------------------------------------------------------------------------------------------------------


def _metaworld(config: Config, task: str) -> dict[str, Any]:
    from guerdon.recipes.collect_metaworld import Config as Collect
    from guerdon.recipes.collect_metaworld import collect_metaworld

    data = config.out / f"{task}-data"
    if not data.exists():
        with progress_bar(f"recording {task}", quiet=config.quiet) as progress:
            collect_metaworld(Collect(out=data, task=(task,), demonstrations=config.demonstrations, size=config.size), progress=progress)
    arms = {"sparse": "sparse", "true": "0.1 * original - 1", **_LEARNED}
    return _rated(config, config.out / task, data, METAWORLD[task], arms, updates=config.updates)


def _babyai_data(config: Config, name: str, lengths: tuple[int, int]) -> Path:
    from guerdon.recipes.collect_babyai import Config as Collect
    from guerdon.recipes.collect_babyai import collect_babyai

    data = config.out / f"{name}-data"
    if not data.exists():
        with progress_bar(f"recording {name}", quiet=config.quiet) as progress:
            collect_babyai(Collect(out=data, level="small", tasks=config.layouts, lengths=lengths), progress=progress)
    return data


def _babyai(config: Config, part: str) -> dict[str, Any]:
    data = _babyai_data(config, part, (1, 1))
    arms = {"sparse": "sparse", "true": "oracle", "true_cost": "oracle - 1", **_LEARNED}
    return _rated(config, config.out / part, data, BABYAI_LEVELS, arms, updates=config.picture_updates)


def _rated(config: Config, run: Path, data: Path, levels: int, arms: Mapping[str, str], *, updates: int | None) -> dict[str, Any]:
    """Rates, fits, relabels, trains and evaluates in one world."""
    made: Any = discover.load("methods", "rating")
    labelled = label(
        dataset=data, run=run, method="rating", vlm=config.vlm, method_settings=made.Config(levels=levels), store=config.store,
        sampling=samples.Config(sample=config.pictures), min_coverage=0.0, yes=config.yes, quiet=config.quiet,
        rater_settings=config.rater_settings or {},
    )  # fmt: skip
    models = [_model(config, run, f"model_{seed}", ("rating",), seed) for seed in range(config.seeds)]
    rows = _policies(config, run, arms, [f"model_{seed}" for seed in range(config.seeds)], updates=updates)
    opened = Run.open(run)
    dataset = dataset_of(opened)
    agreement = [reward_agreement(rewards_of(opened, f"model_{seed}").values, dataset) for seed in range(config.seeds)]
    return {
        "rater": labelled.labels.metadata["rater"],
        "episodes": len(dataset),
        "transitions": sum(info.length for info in dataset.episodes()),
        "successful": float(np.mean([info.terminated for info in dataset.episodes()])),
        "rated": sum(each.value is not None for each in labelled.labels.labels),
        "classes": _class_counts(labelled.labels, levels),
        "held_out": [each["held_out"] for each in models],
        "agreement": agreement,
        "rows": rows,
    }


def _class_counts(labels: LabelSet, levels: int) -> list[int]:
    values = [each.value for each in labels.labels if each.value is not None]
    return [sum(value == each for value in values) for each in range(levels)]


def _model(config: Config, run: Path, name: str, labels: tuple[str, ...], seed: int) -> Mapping[str, Any]:
    """A model fitted with a seed, and its rewards."""
    from guerdon.rewards.fitting import Config as Fitting

    fitting = Fitting() if config.fit_updates is None else Fitting(updates=config.fit_updates)
    fitted = fit(run=run, labels=labels, name=name, seed=seed, fitting=fitting, quiet=config.quiet)
    relabel(run=run, model=name, quiet=config.quiet)
    return fitted.results


def reward_agreement(values: Mapping[tuple[int, int], npt.NDArray[np.float32]], dataset: Dataset) -> float:
    """Spearman's correlation of rewards with the true quality of the states that actions led to, of all transitions; NaN without truth."""
    learned, true = [], []
    for (episode, _), rewards in sorted(values.items()):
        quality = qualities(dataset, episode)
        if quality is not None:
            learned.append(rewards)
            true.append(quality[1:])
    return spearman(np.concatenate(learned), np.concatenate(true)) if learned else math.nan


# --- policies -----------------------------------------------------------------------------------------------------------------------


def _policies(config: Config, run: Path, arms: Mapping[str, str], models: Sequence[str], *, updates: int | None) -> list[dict[str, Any]]:
    """Rows of an evaluation of all arms and BC. An arm whose expression names "{model}" takes another model for every seed."""
    shared: dict[str, Any] = {"run": run, "updates": updates, "quiet": config.quiet}
    names: dict[str, tuple[str, int | None]] = {}
    for arm, expression in arms.items():
        for seed in range(config.seeds) if "{model}" in expression else (None,):
            name = arm if seed is None else f"{arm}_{seed}"
            reward(run=run, compose=expression.format(model="" if seed is None else models[seed]), name=name)
            names[name] = (arm, seed)
    jobs = jobs_of(TrainConfig(rewards=(), algorithm="bc", seeds=config.seeds, **shared))
    for name, (_, seed) in names.items():
        seeds: dict[str, Any] = {"seeds": config.seeds} if seed is None else {"seeds": 1, "first_seed": seed}
        jobs += jobs_of(TrainConfig(rewards=(name,), **seeds, **shared))
    train_jobs(jobs, workers=config.jobs, quiet=config.quiet)
    rows = evaluate(
        run=run, arms=("random", *names, "bc"), per_length=per_length(dataset_of(Run.open(run)), most=config.tasks), lengths=(), rollouts=0,
        jobs=config.jobs, quiet=config.quiet,
    )  # fmt: skip
    return [{**row, "arm": names.get(row["arm"], (row["arm"], None))[0]} for row in rows]


def per_length(dataset: Dataset, *, most: int) -> int:
    """How many tasks of each number of sub-tasks policies can be tried on: as many as were recorded of every one, at most `most`."""
    recorded: dict[int, set[str]] = {}
    for info in dataset.episodes():
        task = info.metadata["task"]
        recorded.setdefault(task["length"], set()).add(task["id"])
    return min(most, *(len(tasks) for tasks in recorded.values()))


# --- distillation -------------------------------------------------------------------------------------------------------------------


def _distillation(config: Config, part: str) -> dict[str, Any]:
    data = _babyai_data(config, part, (1, 2))
    run = config.out / part
    shared: dict[str, Any] = {
        "dataset": data, "run": run, "vlm": config.vlm, "store": config.store, "min_coverage": 0.0, "yes": config.yes,
        "quiet": config.quiet, "rater_settings": config.rater_settings or {},
    }  # fmt: skip
    label(name="all_scores", **shared)
    fidelity: dict[str, list[dict[str, float]]] = {}
    arms = {"sparse": "sparse", "all_scores": "0.1 * all_scores + sparse"}
    opened = Run.open(run)
    for name, share in SHARES.items():
        label(name=f"scores_{name}", sampling=samples.Config(fraction=share), **shared)
        arms |= {f"part_{name}": f"0.1 * scores_{name} + sparse"}
        fidelity[name] = []
        for seed in range(config.seeds):
            _model(config, run, f"distilled_{name}_{seed}", (f"scores_{name}",), seed)
            column = rewards_of(opened, f"distilled_{name}_{seed}").values
            fidelity[name].append(
                distilled_fidelity(column, label_set_of(opened, "all_scores"), label_set_of(opened, f"scores_{name}"), dataset_of(opened))
            )
    rows = _policies(config, run, arms, [], updates=config.picture_updates)
    for name in SHARES:
        models = [f"distilled_{name}_{seed}" for seed in range(config.seeds)]
        distilled = _policies(config, run, {f"both_{name}": "0.1 * {model} + sparse"}, models, updates=config.picture_updates)
        rows += [row for row in distilled if row["arm"] == f"both_{name}"]
    return {"fidelity": fidelity, "rows": rows, "scored": len(label_set_of(opened, "all_scores").labels)}


def distilled_fidelity(
    values: Mapping[tuple[int, int], npt.NDArray[np.float32]], scores: LabelSet, fitted_to: LabelSet, dataset: Dataset
) -> dict[str, float]:
    """How a distilled reward agrees with scores that it was not fitted to, and with the truth where it was not.

    Returns:
        "spearman" with the rater's held-out scores; "auroc" with which the reward tells actions that truly serve from others, and
        "rater_auroc" with which the rater's own scores do, both on the held-out transitions; NaN without ground truth.
    """
    seen = by_transition(fitted_to.labels)
    held_out = {key: each for key, each in by_transition(scores.labels).items() if key not in seen and each.value is not None}
    if not held_out:
        return {"spearman": math.nan, "auroc": math.nan, "rater_auroc": math.nan}
    learned = np.array([values[episode, annotation][step] for episode, annotation, step in held_out], np.float64)
    rated = np.array([each.value for each in held_out.values()], np.float64)
    truth = {episode: dataset.privileged(episode).get("contribution") for episode, _, _ in held_out}
    if any(contribution is None for contribution in truth.values()):
        return {"spearman": spearman(learned, rated), "auroc": math.nan, "rater_auroc": math.nan}
    contribution = np.array([truth[episode][step] for episode, _, step in held_out], np.float64)  # type: ignore[index]
    known = np.isfinite(contribution)
    serves = contribution[known] > 0
    return {
        "spearman": spearman(learned, rated),
        "auroc": auroc(learned[known], serves),
        "rater_auroc": auroc(rated[known], serves),
    }


# --- consistency --------------------------------------------------------------------------------------------------------------------


def _consistency(config: Config, part: str) -> dict[str, Any]:
    """On the trajectories of the first of the study's Meta-World tasks."""
    task = next((each for each in config.parts if each in METAWORLD), next(iter(METAWORLD)))
    data = config.out / f"{task}-data"
    if not data.exists():
        _metaworld(replace(config, parts=(task,)), task)
    measured = raters_consistency(
        dataset=data, run=config.out / part, vlm=config.vlm, classes=_CLASSES_TRIED, repeats=config.repeats, store=config.store,
        sampling=samples.Config(every=5), yes=config.yes, quiet=config.quiet, rater_settings=config.rater_settings or {},
    )  # fmt: skip
    return {"task": task, "picture": str(measured.picture), "rows": [row.to_record() for row in measured.rows]}


_PARTS: Mapping[str, Callable[[Config, str], dict[str, Any]]] = {
    **dict.fromkeys(METAWORLD, _metaworld),
    BABYAI: _babyai,
    DISTILLATION: _distillation,
    CONSISTENCY: _consistency,
}


# --- tables -------------------------------------------------------------------------------------------------------------------------

_ARM_WORDS = {
    "random": "random actions",
    "bc": "BC",
    "sparse": "sparse reward",
    "true": "true reward",
    "true_cost": "true reward − 1",
    "erl_vlm": "ERL-VLM (r − 1)",
    "erl_vlm_sparse": "ERL-VLM (0.1 (r − 1)) and sparse",
    "erl_vlm_raw": "ERL-VLM (as published)",
    "all_scores": "RG-VLM, all windows scored",
    **{f"part_{name}": f"RG-VLM, {share:.0%} scored, the rest unknown" for name, share in SHARES.items()},
    **{f"both_{name}": f"RG-VLM, {share:.0%} scored, the rest distilled" for name, share in SHARES.items()},
}
_STARTS = (("fixed", "recorded start"), ("randomised", "other start"))


def tables(record: Mapping[str, Any]) -> dict[str, str]:
    """Markdown tables of a finished study by name: one for each part."""
    found: dict[str, str] = {}
    parts = record["parts"]
    for part, result in parts.items():
        if "rows" in result and part != CONSISTENCY:
            found[part] = policy_table(result["rows"])
    rated = {part: result for part, result in parts.items() if "agreement" in result}
    if rated:
        found["models"] = _model_table(rated)
    if DISTILLATION in parts:
        found["fidelity"] = _fidelity_table(parts[DISTILLATION]["fidelity"])
    if CONSISTENCY in parts:
        found[CONSISTENCY] = _consistency_table(parts[CONSISTENCY]["rows"])
    return found


def value_of(key: str, record: Mapping[str, Any]) -> str:
    """What a page's mark is filled with: "table NAME", "command", "minutes", "version", or "better PART ARM OTHER START" (probability that
    a policy of ARM does better than one of OTHER). Raises KeyError."""
    name, *rest = key.split()
    match name, rest:
        case "table", [table]:
            return tables(record)[table]
        case "command", []:
            return f"`{record['command']}`"
        case "version", []:
            return str(record["version"])
        case "minutes", []:
            return f"{record['seconds'] / 60:.0f}"
        case "better", [part, arm, other, start]:
            groups = matrices(record["parts"][part]["rows"])
            better = probability_of_improvement(groups[arm, start, "seen"], groups[other, start, "seen"])
            return _study.shown(better)
    raise KeyError(key)


def policy_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Share of the tasks that each arm's policies carry out, from each start, with 95 % intervals over seeds and tasks."""
    summaries = {(each.arm, each.start): each for each in summarise(rows) if each.length is None and each.wording == "seen"}
    arms = [arm for arm in _ARM_WORDS if (arm, "fixed") in summaries]
    lines = [
        [_ARM_WORDS[arm], *(cell for start, _ in _STARTS for cell in _cells(summaries.get((arm, start))))] for arm in arms
    ]  # fmt: skip
    return _study.table(["arm", *(f"{words}: {what}" for _, words in _STARTS for what in ("mean", "IQM"))], lines)


def _cells(summary: Summary | None) -> tuple[str, str]:
    return ("–", "–") if summary is None else (_study.shown(summary.mean), _study.shown(summary.iqm))


def _model_table(rated: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for part, result in rated.items():
        place: Any = {(part, seed): value for seed, value in enumerate(result["agreement"])}
        balanced: Any = {
            (part, seed): each["balanced_accuracy"]
            for seed, each in enumerate(result["held_out"])
            if each and each.get("balanced_accuracy")
        }
        lines.append(
            [
                part, f"{result['episodes']} ({result['successful']:.0%} successful)", str(result["transitions"]), str(result["rated"]),
                " / ".join(map(str, result["classes"])), _study.shown(_study.estimate(balanced)), _study.shown(_study.estimate(place)),
            ]
        )  # fmt: skip
    header = ["world", "episodes", "transitions", "rated", "classes, worst first", "held-out balanced accuracy", "Spearman with the truth"]
    return _study.table(header, lines)


def _fidelity_table(fidelity: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    def cell(name: str, measure: str) -> str:
        found: Any = {(name, seed): each[measure] for seed, each in enumerate(fidelity[name])}
        return _study.shown(_study.estimate(found))

    header = ["windows scored", "Spearman with held-out scores", "AUROC with the truth", "AUROC of the rater's own scores"]
    return _study.table(
        header, [[f"{SHARES[name]:.0%}", *(cell(name, each) for each in ("spearman", "auroc", "rater_auroc"))] for name in fidelity]
    )


def _consistency_table(rows: Sequence[Mapping[str, Any]]) -> str:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    lines = [
        [
            str(row["levels"]), f"{number(row['agreement'])} ± {number(row['agreement_deviation'])}",
            *(number(row[name]) for name in ("balanced_agreement", "same_again", "reliability", "decided", "order")),
        ]
        for row in rows
    ]  # fmt: skip
    header = ["classes", "agrees with success", "balanced", "the same again", "reliability (alpha)", "decided", "order in time"]
    return _study.table(header, lines)
