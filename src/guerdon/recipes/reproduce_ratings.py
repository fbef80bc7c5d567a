"""Ratings, noise and imbalance: a controlled study of reward models, without any rater.

Which way of learning a reward from ratings survives wrong and unbalanced ratings? Here the true reward is known: recorded behaviour comes
from simulators that state it, ratings are made from it with known errors, a reward model is fitted, and what it says of episodes that
nobody rated is compared with the truth. One base configuration; one thing at a time is changed, and a few pairs of things. Everything that
is compared shares its data, its split, its ratings and its errors, so that differences are paired.

- Meta-World (three tasks, state vectors of 39 numbers; quality: a tenth of the true reward). One model a task, as in ERL-VLM.
- BabyAI (one room, one sub-task; one layout a seed, pictures as block means; quality: share of the way that is done). One model a layout.

Reads nothing; records its own data. Writes OUT/data, OUT/results (one JSON line a fitted model: a killed study goes on), OUT/tables,
OUT/figures and OUT/summary.csv, and fills the marks of a page with the numbers. Equal settings give equal numbers on one machine.
"""

from __future__ import annotations

import csv
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as arrow

from guerdon import discover
from guerdon.errors import RewardError, RewardModelError, RunError, StaleInput, UnknownName, UsageError
from guerdon.evaluation.statistics import Estimate
from guerdon.evaluation.truth import confuse, digitise, prefer, qualities
from guerdon.labels import read_table, write_table
from guerdon.metrics import auroc, spearman
from guerdon.recipes import _study
from guerdon.recipes.parallel import run_jobs, usable_cores
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.runs import command_line, package_version, read_json, write_json, writing
from guerdon.seeding import generator, stream_seed

if TYPE_CHECKING:
    from guerdon.rewards import fitting
    from guerdon.rewards.steps import Judgements, Look, StepArrays

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

WORLDS = ("metaworld", "babyai")
TASKS = ("drawer-open-v3", "sweep-into-v3", "soccer-v3")
"""Of Meta-World: the three of ERL-VLM."""
BLOCK = 4
"""Pixels along a block of a BabyAI picture, half a tile: a model sees the mean colour of each."""
MEASURES: Mapping[str, str] = {
    "spearman": "Spearman's rank correlation of learned and true reward over the transitions of held-out episodes",
    "segments": "share of pairs of held-out segments (10 transitions) that the learned return ranks as the true one does",
    "best": "AUROC with which the learned reward finds the truly best tenth of the held-out transitions",
}
_HELD_OUT = 0.25
"""Share of the episodes that nobody rates."""
_SEGMENT = 10
_MOST_TRANSITIONS = 4000
"""A cell in which more are judged would take longer than all others together."""
_PAIRS = 2000
"""Pairs of held-out segments that are ranked."""


# --- what is varied -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration: how things are rated, and how a model is fitted to that. The defaults are the base configuration."""

    judged: Literal["ratings", "preferences"] = "ratings"
    pictures: int = 240
    """Pictures (or segments) that are shown: ratings take one each, preferences two."""
    unit: int = 1
    """Transitions that one rating is about; 0 for whole episodes."""
    levels: int = 3
    """Number of classes."""
    edges: Literal["shares", "widths"] = "shares"
    """Where classes meet: each has an equal share of the recorded behaviour, or an equal width of the quality."""
    imbalance: float = 1.0
    """How many times the worst class is as frequent as the best; the classes between lie between. 0 takes behaviour as it comes."""
    errors: Literal["uniform", "adjacent", "optimism"] = "uniform"
    """Kind of wrong ratings: any other class, a class beside it, the next better class."""
    rate: float = 0.0
    """Share of the ratings in which the error is made."""
    coarse: bool = False
    """Preferences: calls two of the same class equal, i.e. sees no finer than a rating does."""
    loss: Literal["mae", "ce"] = "mae"
    boundaries: Literal["midpoint", "lower"] = "midpoint"
    sampler: Literal["balanced", "stratified", "uniform"] = "balanced"
    weights: Literal["inverse", "reference", "none"] = "inverse"
    smoothing: float = 0.0
    members: int = 1
    """Networks whose mean is the reward."""
    size: Literal["raw", "stretched"] = "raw"
    """Rewards as the network gives them, or stretched to the whole scale; then what is better or worse than all that was rated is all
    alike."""
    stopping: bool = True
    """Stops early and keeps the best pass, by held-out ratings; else the last of all passes is kept."""

    @property
    def name(self) -> str:
        """What differs from the base configuration: "loss=ce rate=0.4"; "base" if nothing does."""
        base = Cell()
        changed = {name: value for name, value in asdict(self).items() if value != getattr(base, name)}
        return " ".join(f"{name}={value}" for name, value in changed.items()) or "base"

    @classmethod
    def named(cls, name: str) -> Cell:
        """The inverse of `name`. Raises KeyError for a setting that there is not."""
        if name == "base":
            return cls()
        kinds = {setting: type(value) for setting, value in asdict(cls()).items()}
        given: dict[str, Any] = dict(part.split("=", 1) for part in name.split())
        return cls(**{key: value == "True" if kinds[key] is bool else kinds[key](value) for key, value in given.items()})


Change = Mapping[str, Any]
"""Settings of a Cell that differ."""


@dataclass(frozen=True)
class Column:
    """A column of a table: a change of the row's cell, or the difference of two such changes."""

    title: str
    change: Change
    minus: Change | None = None


@dataclass(frozen=True)
class Sheet:
    """One question: a table of cells, rows by columns."""

    name: str
    title: str
    rows: Mapping[str, Change]
    columns: Sequence[Column]
    measure: str = "spearman"

    def cells(self) -> Iterator[Cell]:
        """All of it, differences as their two sides."""
        for row in self.rows.values():
            for column in self.columns:
                yield cell_of(row, column.change)
                if column.minus is not None:
                    yield cell_of(row, column.minus)


def cell_of(*changes: Change) -> Cell:
    """The base configuration with changes, later ones first."""
    return replace(Cell(), **{key: value for change in changes for key, value in change.items()})


_MAE, _CE = {"loss": "mae"}, {"loss": "ce"}
_UNSTOPPED = {"stopping": False}
_STRETCHED = {"size": "stretched"}
_PREFERENCES = {"judged": "preferences", **_CE}
_RATES = (0.1, 0.2, 0.3, 0.4)
_RATIOS = (1.0, 10.0, 50.0)
_NUMBERS_SHOWN = (120, 240, 480)
_BATCHES = ("balanced", "stratified", "uniform")
_WEIGHTS = ("inverse", "reference", "none")
_PUBLISHED = {"sampler": "stratified", "weights": "reference", "boundaries": "lower"}
_WRONG: Mapping[str, Change] = {"none": {}, "any class, 20%": {"rate": 0.2}, "any class, 40%": {"rate": 0.4}}
_KINDS = {"uniform": "any class", "adjacent": "class beside", "optimism": "next better"}

SHEETS: tuple[Sheet, ...] = (
    Sheet(
        "noise",
        "Wrong ratings and the loss",
        {"none": {}} | {f"{words}, {rate:.0%}": {"errors": kind, "rate": rate} for kind, words in _KINDS.items() for rate in _RATES},
        (Column("MAE", _MAE), Column("CE", _CE), Column("MAE − CE", _MAE, _CE)),
    ),
    Sheet(
        "stopping",
        "Early stopping by held-out ratings",
        _WRONG,
        (
            Column("MAE, not stopped", {**_MAE, **_UNSTOPPED}),
            Column("CE, not stopped", {**_CE, **_UNSTOPPED}),
            Column("MAE − CE, not stopped", {**_MAE, **_UNSTOPPED}, {**_CE, **_UNSTOPPED}),
            Column("MAE: gain of stopping", _MAE, {**_MAE, **_UNSTOPPED}),
            Column("CE: gain of stopping", _CE, {**_CE, **_UNSTOPPED}),
        ),
    ),
    Sheet(
        "imbalance",
        "Unbalanced ratings: batches and weights",
        {f"{batches}, {weights}": {"sampler": batches, "weights": weights} for batches in _BATCHES for weights in _WEIGHTS},
        (
            *(Column(f"{ratio:g}:1", {"imbalance": ratio}) for ratio in _RATIOS),
            Column("50:1, CE", {"imbalance": 50.0, **_CE}),
            Column("50:1, 960 ratings", {"imbalance": 50.0, "pictures": 960}),
            Column("10:1, 20% errors", {"imbalance": 10.0, "rate": 0.2}),
        ),
    ),
    Sheet(
        "preferences",
        "Ratings and preferences, as many pictures",
        {f"{number} pictures, {rate:.0%} errors": {"pictures": number, "rate": rate} for rate in (0.0, 0.2) for number in _NUMBERS_SHOWN},
        (
            Column("ratings, MAE", _MAE),
            Column("preferences, CE", _PREFERENCES),
            Column("preferences, MAE", {**_PREFERENCES, **_MAE}),
            Column("coarse preferences, CE", {**_PREFERENCES, "coarse": True}),
            Column("ratings, MAE, not stopped", {**_MAE, **_UNSTOPPED}),
            Column("preferences, CE, not stopped", {**_PREFERENCES, **_UNSTOPPED}),
            Column("ratings − preferences, not stopped", {**_MAE, **_UNSTOPPED}, {**_PREFERENCES, **_UNSTOPPED}),
        ),
    ),
    Sheet(
        "levels",
        "Number of classes",
        {str(levels): {"levels": levels} for levels in (2, 3, 4, 5)},
        (
            Column("no errors", {}),
            Column("any class, 20%", {"rate": 0.2}),
            Column("any class, 40%", {"rate": 0.4}),
            Column("class beside, 40%", {"errors": "adjacent", "rate": 0.4}),
            Column("CE, any class, 40%", {"rate": 0.4, **_CE}),
        ),
    ),
    Sheet(
        "boundaries",
        "Where classes meet",
        {**_WRONG, "50:1": {"imbalance": 50.0}},
        (
            Column("midpoint, MAE", {}),
            Column("lower, MAE", {"boundaries": "lower"}),
            Column("midpoint − lower, MAE", {}, {"boundaries": "lower"}),
            Column("midpoint, CE", _CE),
            Column("lower, CE", {"boundaries": "lower", **_CE}),
            Column("midpoint − lower, CE", _CE, {"boundaries": "lower", **_CE}),
        ),
    ),
    Sheet(
        "ablation",
        "The published ablation, from ratings that are fixed",
        {
            "as published": _PUBLISHED,
            "CE instead of MAE": {**_PUBLISHED, **_CE},
            "no stratification, no weights": {**_PUBLISHED, "sampler": "uniform", "weights": "none"},
            "none of the three (RbRL)": {**_PUBLISHED, "sampler": "uniform", "weights": "none", **_CE},
            "balanced, inverse, midpoint": {},
            "the same with CE": _CE,
        },
        (
            Column("1:1", {}),
            Column("1:1, 30% errors", {"rate": 0.3}),
            Column("10:1, 20% errors", {"imbalance": 10.0, "rate": 0.2}),
            Column("equal widths, 20% beside", {"edges": "widths", "imbalance": 0.0, "errors": "adjacent", "rate": 0.2}),
        ),
    ),
    Sheet(
        "smoothing",
        "Label smoothing of 0.1",
        _WRONG,
        (
            Column("CE, smoothed", {**_CE, "smoothing": 0.1}),
            Column("CE: gain", {**_CE, "smoothing": 0.1}, _CE),
            Column("MAE, smoothed", {**_MAE, "smoothing": 0.1}),
            Column("MAE: gain", {**_MAE, "smoothing": 0.1}, _MAE),
        ),
    ),
    Sheet(
        "units",
        "What is rated: single pictures, segments, episodes (60 ratings each)",
        {"one picture": {"pictures": 60}}
        | {f"{unit} transitions": {"pictures": 60, "unit": unit} for unit in (10, 25)}
        | {"whole episode": {"pictures": 60, "unit": 0}},
        (Column("no errors", {}), Column("any class, 20%", {"rate": 0.2})),
    ),
    Sheet(
        "size",
        "Rewards stretched to the whole scale, or as the network gives them",
        {**_WRONG, "50:1": {"imbalance": 50.0}},
        (Column("raw", {}), Column("stretched", _STRETCHED), Column("stretched − raw", _STRETCHED, {})),
    ),
    Sheet(
        "members",
        "Mean of three networks",
        _WRONG,
        (
            Column("MAE, three", {**_MAE, "members": 3}),
            Column("MAE: gain", {**_MAE, "members": 3}, _MAE),
            Column("CE, three", {**_CE, "members": 3}),
            Column("CE: gain", {**_CE, "members": 3}, _CE),
        ),
    ),
)


@dataclass(frozen=True)
class Scale:
    """How much is recorded and fitted."""

    episodes: int
    """Demonstrations of each task or layout."""
    pictures: float
    """Factor on the pictures of every cell."""
    updates: int
    """Most gradient steps of each model."""
    width: int
    """Of each hidden layer."""
    tasks: tuple[str, ...]
    batch: int = 64
    """Ratings in a batch: so small that there are several batches a pass, or stratification could do nothing."""


FULL = Scale(episodes=160, pictures=1.0, updates=500, width=128, tasks=TASKS)
QUICK = Scale(episodes=24, pictures=0.25, updates=24, width=32, tasks=TASKS[:1], batch=16)


# --- settings -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """A study of reward learning from ratings."""

    out: Path = Path("ratings-study")
    """Folder of the study; a study that was begun there goes on."""
    worlds: tuple[str, ...] = WORLDS
    """Where behaviour is recorded: metaworld, babyai."""
    sheets: tuple[str, ...] = ()
    """Questions to be answered; all of them if not given."""
    seeds: int = 5
    """Repetitions with other splits, ratings, errors and networks (in BabyAI also another layout)."""
    jobs: int = 0
    """Models fitted at a time, one core each; as many as there are cores if 0."""
    quick: bool = False
    """A fraction of the data and of the fitting, to see that it works; the numbers mean nothing."""
    page: Path | None = None
    """A page with marks (docs/results/ratings.md) that is filled with the numbers; its figures are written beside it."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.jobs < 0:
            raise UsageError("seeds are at least 1, jobs at least 0")
        for world in self.worlds:
            if world not in WORLDS:
                raise UnknownName("world of this study", world, WORLDS)
        for name in self.sheets:
            if name not in {sheet.name for sheet in SHEETS}:
                raise UnknownName("question of this study", name, [sheet.name for sheet in SHEETS])

    @property
    def scale(self) -> Scale:
        return QUICK if self.quick else FULL

    @property
    def asked(self) -> tuple[Sheet, ...]:
        """The sheets to be filled."""
        return tuple(sheet for sheet in SHEETS if not self.sheets or sheet.name in self.sheets)

    def cells(self) -> list[Cell]:
        """Each configuration once."""
        return list(dict.fromkeys(cell for sheet in self.asked for cell in sheet.cells()))


@dataclass(frozen=True)
class Job:
    """All cells of one problem and one seed."""

    config: Config
    world: str
    problem: str
    """Task of Meta-World, or the level of BabyAI."""
    seed: int

    @property
    def data(self) -> Path:
        return self.config.out / "data" / self.problem

    @property
    def results(self) -> Path:
        return self.config.out / "results" / f"{self.problem}-seed-{self.seed}.jsonl"


def reproduce(config: Config) -> list[Path]:
    """Records, fits what is not fitted yet, and writes tables and figures; returns what was written.

    Raises:
        MissingExtra: if a simulator or torch is not installed.
        StaleInput: if OUT holds results of other data or other settings.
        RunError, WriteFailed, UsageError: each says what to do.
    """
    began = time.monotonic()
    jobs = _jobs(config)
    _record_data(config, jobs)
    _check_same_study(config, jobs)
    if any(list(_missing(job)) for job in jobs):
        try:
            with progress_bar("fitting reward models", quiet=config.quiet, share=True) as progress:
                run_jobs(_carry_out, jobs, workers=config.jobs, progress=progress)
        finally:
            _note_time(config, time.monotonic() - began)
    results = Results.read(config.out)
    return write_results(config, results)


def _jobs(config: Config) -> list[Job]:
    """One for each problem and seed, all problems of a seed before the next one."""
    problems = [("metaworld", task) for task in config.scale.tasks if "metaworld" in config.worlds]
    problems += [("babyai", "one-room")] if "babyai" in config.worlds else []
    return [Job(config, world, problem, seed) for seed in range(config.seeds) for world, problem in problems]


# --- behaviour and its truth --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behaviour:
    """Recorded transitions of several episodes, and how good each one's outcome is."""

    vectors: tuple[Vectors, ...]
    """For each episode (T, D): what is seen after each action."""
    quality: tuple[Floats, ...]
    """For each episode (T,) in [0, 1]."""

    def only(self, episodes: Sequence[int]) -> Behaviour:
        """Some of the episodes."""
        return Behaviour(tuple(self.vectors[e] for e in episodes), tuple(self.quality[e] for e in episodes))


def _record_data(config: Config, jobs: Sequence[Job]) -> None:
    """Records the demonstrations of each problem, unless they are there."""
    for world, problem, folder in dict.fromkeys((job.world, job.problem, job.data) for job in jobs):
        discover.load("envs", world)  # names the extra that is missing, if one is
        if (folder / "collection.json").exists():
            continue
        with progress_bar(f"recording {problem}", quiet=config.quiet) as progress:
            if world == "babyai":
                from guerdon.recipes import collect_babyai as babyai

                tasks, each = config.seeds, config.scale.episodes
                asked = babyai.Config(out=folder, level=problem, tasks=tasks, demonstrations=each, lengths=(1, 1))
                babyai.collect_babyai(asked, progress=progress)
            else:
                from guerdon.recipes import collect_metaworld as metaworld

                asked_of_metaworld = metaworld.Config(
                    out=folder, task=(problem,), demonstrations=config.scale.episodes, steps=150, views=metaworld.NO_VIEWS,
                    noise=metaworld.Noise(strength=(0.0, 0.8), bursts=0.03, burst_steps=(5, 20), giving_up=0.25),
                )  # fmt: skip
                metaworld.collect_metaworld(asked_of_metaworld, progress=progress)


@cache
def _behaviour(folder: Path, world: str, layout: int, episodes: int) -> Behaviour:
    """What is recorded of a problem; of BabyAI one layout."""
    from guerdon.datasets import open_dataset

    dataset = open_dataset(folder)
    wanted = range(layout * episodes, (layout + 1) * episodes) if world == "babyai" else range(len(dataset))
    vectors, quality = [], []
    for episode in wanted:
        known = qualities(dataset, episode)
        if known is None:
            raise RunError("holds no ground truth to compare with", where=f"{folder}, episode {episode}", cure="Record it again.")
        if world == "babyai":
            view = dataset.views[0]
            vectors.append(block_means(dataset.frames(episode, view, 0, len(known)))[1:])
        else:
            vectors.append(dataset.vector(episode, "state")[1:])
        quality.append(known[1:])
    return Behaviour(tuple(vectors), tuple(quality))


def block_means(frames: npt.NDArray[np.uint8]) -> Vectors:
    """Pictures (N, H, W, 3) as the mean colours of their blocks, (N, H/4 * W/4 * 3) in [0, 1]; what does not fill a block is cut off."""
    count, height, width, _ = frames.shape
    rows, columns = height // BLOCK, width // BLOCK
    blocks = frames[:, : rows * BLOCK, : columns * BLOCK].reshape(count, rows, BLOCK, columns, BLOCK, 3)
    return np.asarray(blocks.mean(axis=(2, 4)).reshape(count, -1) / 255, np.float32)


def split(behaviour: Behaviour, problem: str, seed: int) -> tuple[Behaviour, Behaviour]:
    """The episodes that may be rated, and a quarter of all that nobody rates."""
    order = generator(seed, "split", problem).permutation(len(behaviour.quality))
    held_out = max(1, round(_HELD_OUT * len(order)))
    return behaviour.only(order[held_out:].tolist()), behaviour.only(order[:held_out].tolist())


# --- ratings ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Items:
    """Things that could be rated: transitions, segments or episodes."""

    spans: Rows
    """(N, 3): episode, first transition, one past the last one."""
    quality: Floats
    """(N,) mean quality of each."""


def items_of(behaviour: Behaviour, unit: int) -> Items:
    """Everything of `unit` transitions, or every episode if it is 0."""
    spans, quality = [np.empty((0, 3), np.int64)], [np.empty(0)]
    for episode, values in enumerate(behaviour.quality):
        length = unit or len(values)
        starts = np.arange(max(len(values) - length + 1, 0))
        sums = np.concatenate([[0.0], values.cumsum()])
        spans.append(np.stack([np.full_like(starts, episode), starts, starts + length], 1))
        quality.append((sums[starts + length] - sums[starts]) / length if len(starts) else sums[:0])
    return Items(np.concatenate(spans), np.concatenate(quality))


def equal_shares(quality: Floats, levels: int) -> tuple[float, ...]:
    """Edges that give each of `levels` classes about the same share of `quality` (N,).

    Raises:
        UsageError: if there are fewer distinct qualities than classes.
    """
    distinct, counts = np.unique(quality.round(9), return_counts=True)
    if len(distinct) < levels:
        raise UsageError(f"{len(distinct)} different qualities make no {levels} classes")
    below = counts.cumsum()[:-1] / counts.sum()
    edges: list[int] = []
    for number in range(1, levels):
        first, last = (edges[-1] + 1 if edges else 0), len(below) - (levels - 1 - number)
        edges.append(first + int(np.abs(below[first:last] - number / levels).argmin()))
    return tuple(float(distinct[edge] + distinct[edge + 1]) / 2 for edge in edges)


def quotas(number: int, levels: int, imbalance: float) -> list[int]:
    """How many of `number` ratings each class gets if the worst one is `imbalance` times as frequent as the best: a geometric series.

    >>> quotas(240, 3, 50)
    [207, 29, 4]
    """
    shares = np.array([imbalance ** (-level / (levels - 1)) for level in range(levels)])
    exact = number * shares / shares.sum()
    counts = np.maximum(np.floor(exact), 1).astype(int)
    for level in np.argsort(np.floor(exact) - exact, kind="stable")[: max(number - counts.sum(), 0)]:
        counts[level] += 1
    return [int(count) for count in counts]


@dataclass(frozen=True)
class Judged:
    """What a rater said."""

    spans: Rows
    """(I, 3) items; of pairs the two one after the other."""
    target: Floats
    """(B,) classes, or probabilities that the second is better."""
    true: Floats
    """(B,) the same without errors."""


def judge(cell: Cell, pool: Behaviour, problem: str, seed: int, number: int) -> Judged | None:
    """Ratings or preferences about `number` pictures of the pool; None if there is none of that length, not half as many, or too much."""
    items = items_of(pool, cell.unit)
    if len(items.quality) < number / 2 or number * np.ptp(items.spans[:, 1:], axis=1).mean() > _MOST_TRANSITIONS:
        return None
    edges = equal_shares(items.quality, cell.levels) if cell.edges == "shares" else None
    classes = digitise(items.quality, cell.levels, edges)
    errors = generator(seed, "errors", problem, cell.errors)
    if cell.judged == "preferences":
        random = generator(seed, "pairs", problem)
        rows = random.integers(len(classes), size=2 * (number // 2))
        worth = classes.astype(np.float64) if cell.coarse else items.quality
        true = prefer(worth[rows[::2]], worth[rows[1::2]], generator(0, "no errors"))
        said = prefer(worth[rows[::2]], worth[rows[1::2]], errors, mistake=cell.rate)
        return Judged(items.spans[rows], said, true)
    rows = _drawn(cell, classes, generator(seed, "rated", problem), number)
    rates = {"uniform": "mistake", "adjacent": "adjacent", "optimism": "optimism"}
    said = confuse(classes[rows], cell.levels, errors, **{rates[cell.errors]: cell.rate})
    return Judged(items.spans[rows], said, classes[rows].astype(np.float64))


def _drawn(cell: Cell, classes: Rows, random: np.random.Generator, number: int) -> Rows:
    """Which items are rated: with the quota of each class, or as they come; more than there are of a class are not drawn."""
    order = random.permutation(len(classes))
    if not cell.imbalance:
        return order[:number]
    wanted = quotas(number, cell.levels, cell.imbalance)
    chosen = [order[classes[order] == level][:count] for level, count in enumerate(wanted)]
    return np.asarray(random.permutation(np.concatenate(chosen)), np.int64)


# --- fitting and measuring ----------------------------------------------------------------------------------------------------------


def _carry_out(job: Job, progress: Progress) -> None:
    """Fits and measures every cell of a job that has no line yet."""
    from guerdon.training.offline import use_one_thread

    use_one_thread()
    missing = list(_missing(job))
    if not missing:
        return
    behaviour = _behaviour(job.data, job.world, job.seed, job.config.scale.episodes)
    pool, held_out = split(behaviour, job.problem, job.seed)
    for number, cell in enumerate(missing):
        _study.append_line(job.results, _line(job, cell, pool, held_out))
        progress(number + 1, len(missing))


def _missing(job: Job) -> Iterator[Cell]:
    """Cells that have no line."""
    done = {record.get("cell") for record in _study.read_lines(job.results)}
    return (cell for cell in job.config.cells() if cell.name not in done)


def _line(job: Job, cell: Cell, pool: Behaviour, held_out: Behaviour) -> dict[str, Any]:
    """What came out for a cell, JSON-ready. Without measures, but with the reason, if no model could be fitted."""
    from guerdon.rewards import fitting

    scale, began = job.config.scale, time.process_time()
    line: dict[str, Any] = {"world": job.world, "problem": job.problem, "seed": job.seed, "cell": cell.name}
    judged = judge(cell, pool, job.problem, job.seed, round(cell.pictures * scale.pictures))
    if judged is None:
        return line | {"refused": "too few episodes are as long as that, or the whole would take too long"}
    line |= {"judgements": len(judged.target), "wrong": float((judged.target != judged.true).mean())}
    look = _look(pool)
    try:
        fitted = fitting.fit(
            judgements_of(cell, judged, pool), look, fit_settings(cell, scale), seed=stream_seed(job.seed, "fit", job.problem)
        )
    except (RewardError, RewardModelError) as error:
        return line | {"refused": error.what}
    measured = measure(_scores(fitted.model, held_out), held_out, job.problem, job.seed)
    line |= {"passes": fitted.results["kept_epoch"], "updates": fitted.results["updates"], "stopped": fitted.results["stopped"]}
    return line | {"seconds": time.process_time() - began} | {name: value for name, value in measured.items() if math.isfinite(value)}


def fit_settings(cell: Cell, scale: Scale) -> fitting.Config:
    """How the model of a cell is fitted."""
    from guerdon.rewards import fitting

    unstopped: dict[str, Any] = {} if cell.stopping else {"held_out": 0.0, "patience": scale.updates, "target": 1.0}
    return fitting.Config(
        encoder="vector", members=cell.members, updates=scale.updates, batch=scale.batch, width=scale.width, loss=cell.loss,
        boundary=cell.boundaries, weights=cell.weights, sampler=cell.sampler, smoothing=cell.smoothing, fewest_weighted=0,
        size=cell.size, **unstopped,
    )  # fmt: skip


def _look(behaviour: Behaviour) -> Look:
    from guerdon.rewards.steps import Look

    return Look(vectors={"state": behaviour.vectors[0].shape[1]})


def _arrays(vectors: Vectors) -> StepArrays:
    from guerdon.rewards.steps import StepArrays

    count = len(vectors)
    nothing, first = np.zeros((count, 0), np.int64), np.zeros(count, np.int64)
    return StepArrays(frames={}, picture=nothing, vector=vectors, action=nothing, instruction=first, instructions=("",))


def judgements_of(cell: Cell, judged: Judged, pool: Behaviour) -> Judgements:
    """What a model is fitted to: the judged transitions, each once, and what was said of them."""
    from guerdon.rewards.steps import Judgements

    firsts = np.concatenate([[0], np.cumsum([len(quality) for quality in pool.quality])])
    places = [np.arange(firsts[episode] + start, firsts[episode] + stop) for episode, start, stop in judged.spans]
    used, members = np.unique(np.concatenate(places), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum([len(place) for place in places])])
    pairs = cell.judged == "preferences"
    return Judgements(
        kind="preference" if pairs else "rating",
        levels=0 if pairs else cell.levels,
        steps=_arrays(np.concatenate(pool.vectors)[used]),
        offsets=offsets.astype(np.int64),
        members=members.astype(np.int64),
        target=judged.target.astype(np.float32),
        group=judged.spans[:: 2 if pairs else 1, 0].copy(),
    )


def _scores(model: Any, behaviour: Behaviour) -> list[Floats]:
    """Learned reward of each transition, by episode."""
    from guerdon.rewards.steps import gather

    arrays = _arrays(np.concatenate(behaviour.vectors))
    value, _ = model.score(gather(arrays, np.arange(len(arrays))))
    ends = np.cumsum([len(quality) for quality in behaviour.quality])[:-1]
    return np.split(value.double().numpy(), ends)


def measure(scores: Sequence[Floats], held_out: Behaviour, problem: str, seed: int) -> dict[str, float]:
    """The MEASURES of learned rewards, by episode, of episodes that nobody rated. NaN where a measure is not defined."""
    learned, true = np.concatenate(scores), np.concatenate(held_out.quality)
    best = true >= np.quantile(true, 0.9)
    return {
        "spearman": spearman(learned, true),
        "segments": _ranked(scores, held_out, generator(seed, "segments", problem)),
        "best": auroc(learned, best),
    }


def _ranked(scores: Sequence[Floats], held_out: Behaviour, random: np.random.Generator) -> float:
    """Share of random pairs of segments that the scores rank rightly; pairs of equal quality do not count, equal scores count half."""
    segments = items_of(held_out, _SEGMENT)
    if not len(segments.quality):
        return math.nan
    drawn = random.integers(len(segments.quality), size=(2, _PAIRS))
    learned = items_of(Behaviour(held_out.vectors, tuple(scores)), _SEGMENT).quality
    worth, said = (each[drawn[0]] - each[drawn[1]] for each in (segments.quality.round(9), learned))
    differ = worth != 0
    return float(((np.sign(worth) * np.sign(said))[differ] + 1).mean() / 2) if differ.any() else math.nan


# --- results ------------------------------------------------------------------------------------------------------------------------


def _check_same_study(config: Config, jobs: Sequence[Job]) -> None:
    """Writes down what the results are made from, or refuses results that were made from something else."""
    from guerdon.datasets import open_dataset

    path = config.out / "study.json"
    cure = "Give another --out, or delete this folder."
    data = {}
    for world, folder in dict.fromkeys((job.world, job.data) for job in jobs):
        dataset = open_dataset(folder)
        data[folder.name] = dataset.fingerprint
        if world == "babyai" and len(dataset) < config.seeds * config.scale.episodes:
            raise StaleInput(f"holds layouts for fewer than {config.seeds} seeds", where=str(folder), cure=cure)
    scale = asdict(config.scale) | {"tasks": list(config.scale.tasks)}
    known: dict[str, Any] = read_json(path) if path.exists() else {}
    before = known.get("data", {})
    if known.get("scale", scale) != scale or any(before.get(name, value) != value for name, value in data.items()):
        raise StaleInput("holds results of other data or of another amount of fitting", where=str(config.out), cure=cure)
    write_json(path, known | {"scale": scale, "data": before | data})


def _note_time(config: Config, seconds: float) -> None:
    """Adds this call to the list of those that computed something."""
    _study.append_line(
        config.out / "calls.jsonl",
        {
            "seconds": round(seconds, 1),
            "workers": config.jobs or usable_cores(),
            "command": command_line(),
            "guerdon": package_version(),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        },
    )


_NUMBERS = (*MEASURES, "wrong", "passes", "updates")
"""What a line may hold of a model: measures, share of wrong labels, passes until the weights that were kept, gradient steps."""
_SCHEMA = arrow.schema(
    [(name, arrow.string()) for name in ("world", "problem", "cell", "refused", "stopped")]
    + [(name, arrow.int32()) for name in ("seed", "judgements", "passes", "updates")]
    + [(name, arrow.float32()) for name in (*MEASURES, "wrong", "seconds")]
)


@dataclass(frozen=True)
class Results:
    """Everything that was measured: (world, cell, measure) -> place -> number."""

    lines: Sequence[Mapping[str, Any]]
    """One for each model, as they were written."""
    calls: Sequence[Mapping[str, Any]] = ()
    """The calls that computed them: seconds, workers, command, machine."""

    @classmethod
    def read(cls, out: Path) -> Results:
        """The lines of a study. Raises RunError for a damaged one."""
        lines = [line for path in sorted((out / "results").glob("*.jsonl")) for line in _study.read_lines(path)]
        return cls(lines, _study.read_lines(out / "calls.jsonl"))

    @classmethod
    def read_table(cls, path: Path) -> Results:
        """The same from the Parquet file that `write_results` leaves. Raises RunError if it cannot be read."""
        table, metadata = read_table(path, "table of results", _SCHEMA)
        return cls([{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()], metadata["calls"])

    def write_table(self, path: Path) -> None:
        """All lines as Parquet, with the calls in its metadata."""
        ordered = sorted(self.lines, key=lambda line: (line["world"], line["problem"], line["seed"], line["cell"]))
        columns = {name: [line.get(name) for line in ordered] for name in _SCHEMA.names}
        write_table(path, arrow.Table.from_pydict(columns, schema=_SCHEMA), {"calls": list(self.calls)})

    @cached_property
    def found(self) -> Mapping[tuple[str, str, str], _study.Found]:
        """(world, cell, measure) -> place -> number."""
        found: dict[tuple[str, str, str], dict[_study.Place, float]] = {}
        for line in self.lines:
            for name in _NUMBERS:
                if name in line:
                    place = (str(line["problem"]), int(line["seed"]))
                    found.setdefault((str(line["world"]), str(line["cell"]), name), {})[place] = float(line[name])
        return found

    @cached_property
    def refused(self) -> Mapping[tuple[str, str], int]:
        """(world, cell) -> models that could not be fitted."""
        return Counter((str(line["world"]), str(line["cell"])) for line in self.lines if "refused" in line)

    def worlds(self) -> list[str]:
        """Those that anything was measured in."""
        return [world for world in WORLDS if any(key[0] == world for key in self.found)]

    def of_cell(self, world: str, cell: Cell, measure: str) -> _study.Found:
        """A measure of a cell wherever it was taken."""
        return self.found.get((world, cell.name, measure), {})

    def estimate(self, world: str, cell: Cell, measure: str) -> Estimate:
        """Its mean."""
        return _study.estimate(self.of_cell(world, cell, measure))

    def difference(self, world: str, cell: Cell, other: Cell, measure: str) -> Estimate:
        """The paired difference of two cells."""
        return _study.difference(self.of_cell(world, cell, measure), self.of_cell(world, other, measure))


TITLES = {"metaworld": "Meta-World", "babyai": "BabyAI"}


def sheet_table(sheet: Sheet, results: Results, world: str, measure: str) -> str:
    """A sheet as a Markdown table of one measure; differences are bold where their interval leaves out zero."""

    def shown(row: Change, column: Column) -> str:
        cell = cell_of(row, column.change)
        if column.minus is None:
            return _study.shown(results.estimate(world, cell, measure))
        return _study.shown(results.difference(world, cell, cell_of(row, column.minus), measure), signed=True)

    rows = [[title, *(shown(row, column) for column in sheet.columns)] for title, row in sheet.rows.items()]
    return _study.table([TITLES[world], *(column.title for column in sheet.columns)], rows)


def value_of(key: str, results: Results) -> str:
    """What a mark on the page stands for. Raises KeyError for anything else.

    "table SHEET WORLD [MEASURE]" is a table; "value WORLD MEASURE: CELL" a number; "change WORLD MEASURE: CELL | CELL" a paired difference;
    "models", "seeds", "hours", "minutes" (on two cores) and "machine" say what was computed.
    """
    head, _, tail = key.partition(":")
    kind, *words = head.split()
    if kind == "table":
        sheet, world, measure = (*words, _SHEET[words[0]].measure)[:3]
        return sheet_table(_SHEET[sheet], results, _known(world, WORLDS), _known(measure, MEASURES))
    if kind in ("value", "change"):
        world, measure = _known(words[0], WORLDS), _known(words[1], _NUMBERS)
        cells = [Cell.named(part.strip()) for part in tail.split("|")]
        if kind == "value":
            return _study.shown(results.estimate(world, cells[0], measure))
        return _study.shown(results.difference(world, cells[0], cells[1], measure), signed=True).strip("*")
    seconds = sum(float(line.get("seconds", 0)) for line in results.lines)
    seeds = sorted(len(results.of_cell(world, Cell(), "spearman")) / len(_problems(results, world)) for world in results.worlds())
    said = {
        "models": f"{sum('seconds' in line for line in results.lines):,}",
        "seeds": " to ".join(dict.fromkeys(f"{each:.3g}" for each in seeds)),
        "hours": f"{seconds / 3600:.1f}",
        "minutes": f"{seconds / 120:.0f}",
        "machine": ", ".join(dict.fromkeys(str(call["machine"]) for call in results.calls)),
    }
    return said[kind]


def _problems(results: Results, world: str) -> set[str]:
    return {str(line["problem"]) for line in results.lines if line["world"] == world}


_SHEET = {sheet.name: sheet for sheet in SHEETS}


def _known(name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise KeyError(name)
    return name


def figures(results: Results, world: str) -> dict[str, str]:
    """Name -> SVG of the figures of one world."""
    title = TITLES[world]

    def line(name: str, cells: Sequence[Cell], measure: str = "spearman") -> _study.Line:
        return _study.Line(name, [results.estimate(world, cell, measure) for cell in cells])

    rates = (0.0, *_RATES)
    noise = [
        line(f"{loss['loss'].upper()}, {_KINDS[kind]}", [cell_of(loss, {"errors": kind, "rate": rate} if rate else {}) for rate in rates])
        for kind in ("uniform", "adjacent")
        for loss in (_MAE, _CE)
    ]
    batches = [
        line(f"{sampler}, weights {weights}", [cell_of({"sampler": sampler, "weights": weights, "imbalance": each}) for each in _RATIOS])
        for sampler, weights in (("balanced", "inverse"), ("balanced", "none"), ("stratified", "reference"), ("uniform", "none"))
    ]
    teachers = [
        line(f"{name}, {rate:.0%} errors", [cell_of(change, _UNSTOPPED, {"pictures": each, "rate": rate}) for each in _NUMBERS_SHOWN])
        for rate in (0.0, 0.2)
        for name, change in (("ratings", _MAE), ("preferences", _PREFERENCES))
    ]
    spearmans = "rank correlation with the truth"
    drawn = {
        "noise": (f"{title}: wrong ratings", [f"{rate:.0%}" for rate in rates], noise, "ratings in which an error is made"),
        "imbalance": (f"{title}: unbalanced ratings", [f"{each:g}:1" for each in _RATIOS], batches, "worst class to best class"),
        "preferences": (f"{title}: ratings and preferences", [str(each) for each in _NUMBERS_SHOWN], teachers, "pictures shown"),
    }
    return {
        f"{name}-{world}": _study.lines(heading, places, series, axis=axis, measure=spearmans)
        for name, (heading, places, series, axis) in drawn.items()
        if any(math.isfinite(each.value) for one in series for each in one.values)
    }


def summary(results: Results) -> str:
    """Every estimate as CSV: world, cell, measure, value, low, high, number of models, refused."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("world", "cell", "measure", "value", "low", "high", "models", "refused"))
    for (world, cell, measure), found in sorted(results.found.items()):
        each = _study.estimate(found)
        numbers = ["" if n is None else f"{n:.4f}" for n in (each.value, each.low, each.high)]
        writer.writerow((world, cell, measure, *numbers, len(found), results.refused.get((world, cell), 0)))
    return stream.getvalue()


def write_results(config: Config, results: Results) -> list[Path]:
    """Writes tables, figures and the summary of all results in OUT, and fills the page; returns the paths."""
    written: dict[Path, str] = {config.out / "summary.csv": summary(results)}
    for world in results.worlds():
        for sheet in config.asked:
            parts = [f"{MEASURES[measure]}:\n\n{sheet_table(sheet, results, world, measure)}\n" for measure in MEASURES]
            written[config.out / "tables" / f"{sheet.name}-{world}.md"] = f"# {sheet.title}\n\n" + "\n".join(parts)
        for name, svg in figures(results, world).items():
            written[config.out / "figures" / f"{name}.svg"] = svg
            if config.page is not None:
                written[config.page.parent / f"{config.page.stem}-{name}.svg"] = svg
    for path, text in written.items():
        with writing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    tables = [config.out / "results.parquet"]
    if config.page is not None:
        tables.append(config.page.with_suffix(".parquet"))
        _study.fill_page(config.page, lambda key: value_of(key, results))
    for path in tables:
        results.write_table(path)
    return [*written, *tables, *([config.page] if config.page is not None else [])]
