"""RG-VLM's experiments: what a policy is worth that learned from a rater's scores, beside what it has to beat.

The setting of the paper (arXiv 2504.08772, Fig. 4, its ablation and Table I) in BabyAI: instructions of one to six sub-tasks, demonstrated
with detours; a rater scores what every action contributed; IQL learns from that. Every policy carries out the same frozen tasks, from the
recorded start and from another one; what counts is the share of the task that it completes. Arms differ in their reward only, unless their
name says something else:

- `bc` imitates; `sparse` rewards the end; `rg_vlm` the rater's scores; `both` the two together, the paper's best;
- `oracle` has perfect labels, `constant` and `shuffled` have labels without content;
- `scripted_...` are raters of measured accuracy, as far from the truth as the three models of the paper's Table I;
- `..._skills` learn from single sub-tasks, cut out of the demonstrations, and are tried on the whole chains;
- NAME=EXPRESSION is an arm of one's own: any reward of `guerdon reward`, over any label set or reward of a model that OUT/run holds.

Reads nothing; records its own data. Writes OUT/data and OUT/run (OUT/skills-data and OUT/skills-run for single sub-tasks), OUT/rg-vlm.json,
OUT/rg-vlm.parquet (one row for each arm, seed and task) and OUT/figures, and fills the marks of a page with the numbers. Whatever is there
is kept: a killed study goes on, and more arms or more seeds add to what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as arrow
from tyro.conf import Suppress

from guerdon import discover, samples
from guerdon.datasets import open_dataset
from guerdon.datasets.minari import RecordedEpisode, write_minari
from guerdon.errors import DatasetError, RunError, UnknownName, UsageError
from guerdon.evaluation.raters import measure
from guerdon.interfaces import Dataset
from guerdon.labels import read_table
from guerdon.providers.scripted import Scripted, sign_of
from guerdon.recipes import _study
from guerdon.recipes._rg_vlm_results import RANDOM, TABLES, Results, figures, value_of
from guerdon.recipes.data import dataset_of, has_labels, has_rewards, label_set_of
from guerdon.recipes.evaluate import Config as EvaluateConfig
from guerdon.recipes.evaluate import evaluate, frozen_tasks
from guerdon.recipes.label import Config as LabelConfig
from guerdon.recipes.label import label, make_method, truth_of
from guerdon.recipes.progress import progress_bar
from guerdon.recipes.reward import NAMES_OF_OTHER_ARMS, reward
from guerdon.recipes.settings import as_record
from guerdon.recipes.train import Config as TrainConfig
from guerdon.recipes.train import jobs_of, train_jobs
from guerdon.records import Annotation, canonical_json
from guerdon.rewards.compose import names_in
from guerdon.runs import Run, command_line, package_version, read_json, write_json

RESULTS, ROWS, STUDY, TIMES = "rg-vlm.json", "rg-vlm.parquet", "study.json", "seconds.jsonl"
EPISODES = Literal["chains", "skills"]
"""What is learned from: whole instructions, or the single sub-tasks that they consist of."""


# --- arms ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make a policy."""

    name: str
    """What it goes by."""
    words: str
    """What it is called in tables."""
    expression: str | None
    """The reward it learns from (`rewards.compose`); None to imitate."""
    gamma: float | None = None
    """The discount that it is composed for, and learned with; None for what is usual for such a reward."""
    episodes: EPISODES = "chains"
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `guerdon train` that are its own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the algorithm that are its own; those of its network under "network"."""
    shown: bool = False
    """Whether it is drawn in the figures of all arms."""

    @property
    def policies(self) -> str:
        """Name of its reward column and of its policies in the run folder; not that of what the reward is made from."""
        if self.expression is None:
            return "bc"
        return f"{self.name}_reward" if self.name in names_in(self.expression) else self.name

    def to_record(self) -> dict[str, Any]:
        """JSON-ready data."""
        return as_record(self)


_SCORES = "{labels} - 1"
"""The best score costs nothing, the worst one most: with rewards that are never negative it pays to put off the end."""
_BOTH = "{labels} + sparse - 1"
"""Scores and the end, as in the paper's best reward; the end is worth as much as one good action."""
_END_FIRST = "0.1 * {labels} + sparse"
"""The end is worth ten good actions."""
_NEAR, _FAR = 0.8, 0.97
"""Discounts."""
_TABLE_ONE = {93: 0.934, 86: 0.862, 74: 0.742}
"""Accuracy of the models of the paper's Table I: Gemini 1.5 Pro, Qwen2-VL-72B, Gemini 1.5 Flash."""
SCRIPTED: Mapping[str, tuple[Literal["flips", "optimism"], float]] = {
    f"scripted_{kind}_{per_cent}": (kind, accuracy) for kind in ("flips", "optimism") for per_cent, accuracy in _TABLE_ONE.items()
}
"""Label set of a scripted rater -> how it errs, and the accuracy that it is made to have."""
_KINDS = {"flips": "errs either way", "optimism": "praises too much"}

_CORE: tuple[Arm, ...] = (
    Arm(name="bc", words="imitation (BC)", expression=None, shown=True),
    Arm(name="sparse", words="sparse", expression="sparse", gamma=_FAR, shown=True),
    Arm(name="rg_vlm", words="RG-VLM", expression=_SCORES.format(labels="rg_vlm"), gamma=_NEAR, shown=True),
    Arm(name="both", words="sparse + RG-VLM", expression=_BOTH.format(labels="rg_vlm"), gamma=_NEAR, shown=True),
    Arm(name="oracle", words="sparse + perfect labels", expression=_BOTH.format(labels="oracle"), gamma=_NEAR, shown=True),
    Arm(name="constant", words="sparse + constant labels", expression=_BOTH.format(labels="constant(rg_vlm)"), gamma=_NEAR),
    Arm(name="shuffled", words="sparse + shuffled labels", expression=_BOTH.format(labels="shuffled(rg_vlm)"), gamma=_NEAR),
)
_FURTHER: tuple[Arm, ...] = (
    Arm(name="end_first", words="sparse + a tenth of RG-VLM", expression=_END_FIRST.format(labels="rg_vlm"), gamma=_FAR),
    Arm(name="end_first_oracle", words="sparse + a tenth of perfect", expression=_END_FIRST.format(labels="oracle"), gamma=_FAR),
    Arm(name="far", words="RG-VLM, far horizon", expression=_SCORES.format(labels="rg_vlm"), gamma=_FAR),
    Arm(name="never_negative", words="RG-VLM, never negative", expression="rg_vlm", gamma=_NEAR),
    Arm(name="oracle_alone", words="perfect labels alone", expression=_SCORES.format(labels="oracle"), gamma=_NEAR),
    Arm(name="potential", words="sparse + potential of RG-VLM", expression="potential(rg_vlm) + sparse", gamma=_FAR),
    Arm(name="potential_oracle", words="sparse + potential of perfect labels", expression="potential(oracle) + sparse", gamma=_FAR),
    *(
        Arm(name=name, words=f"rater of {accuracy:.1%}, {_KINDS[kind]}", expression=_BOTH.format(labels=name), gamma=_NEAR)
        for name, (kind, accuracy) in SCRIPTED.items()
    ),
    Arm(name="bc_skills", words="imitation, single sub-tasks", expression=None, episodes="skills"),
    Arm(name="sparse_skills", words="sparse, single sub-tasks", expression="sparse", gamma=_FAR, episodes="skills"),
    Arm(
        name="rg_vlm_skills", words="RG-VLM, single sub-tasks", expression=_SCORES.format(labels="rg_vlm"), gamma=_NEAR, episodes="skills"
    ),
    Arm(
        name="both_skills", words="sparse + RG-VLM, single sub-tasks", expression=_BOTH.format(labels="rg_vlm"), gamma=_NEAR,
        episodes="skills",
    ),
    Arm(
        name="oracle_skills", words="sparse + perfect, single sub-tasks", expression=_BOTH.format(labels="oracle"), gamma=_NEAR,
        episodes="skills",
    ),
    Arm(
        name="both_tiles", words="sparse + RG-VLM, tiles as symbols", expression=_BOTH.format(labels="rg_vlm"), gamma=_NEAR,
        settings={"network": {"symbols": True}},
    ),
    Arm(
        name="both_glimpse", words="sparse + RG-VLM, no memory", expression=_BOTH.format(labels="rg_vlm"), gamma=_NEAR,
        training={"memory": False},
    ),
    Arm(name="clip", words="CLIP", expression="clip", shown=True),
    Arm(name="blip2", words="BLIP-2", expression="blip2", shown=True),
    Arm(name="roboclip", words="RoboCLIP", expression="roboclip", shown=True),
    Arm(name="erl_vlm", words="ERL-VLM", expression="0.1 * erl_vlm + sparse"),
)  # fmt: skip
ARMS: Mapping[str, Arm] = {arm.name: arm for arm in (*_CORE, *_FURTHER)}
"""Every arm that goes by a name."""
CORE = tuple(arm.name for arm in _CORE)
_TRAINING: Mapping[str, Any] = {}
"""Settings of `guerdon train` that all arms share and that are not its defaults."""


def arm_of(text: str) -> Arm:
    """The arm that NAME or NAME=EXPRESSION stands for; a name of one's own that ends in "_skills" learns from single sub-tasks.

    Raises:
        UnknownName: for a name that is not in the table.
        UsageError: for an expression under a name that means another one, or that cannot be a name.
        RewardError: for an expression that cannot be read.
    """
    name, equals, expression = (part.strip() for part in text.partition("="))
    if not equals:
        if name not in ARMS:
            raise UnknownName("arm of the study", name, ARMS, cure='Or give a reward of your own: --arms NAME="0.1 * LABELS + sparse"')
        return ARMS[name]
    if not (name.isascii() and name.isidentifier()) or name in NAMES_OF_OTHER_ARMS:
        raise UsageError(f"an arm's name is made of letters, digits and underscores and is not 'random', 'replay' or 'bc', got '{name}'")
    if name.endswith("_reward"):
        raise UsageError(f"names that end in _reward belong to reward columns of the study, got '{name}'", cure="Choose another name.")
    if name in ARMS and ARMS[name].expression != expression:
        raise UsageError(f"'{name}' stands for another reward: {ARMS[name].expression or 'none'}", cure="Give yours a name of its own.")
    names_in(expression)
    return ARMS.get(name) or Arm(name=name, words=name, expression=expression, episodes="skills" if name.endswith("_skills") else "chains")


# --- settings -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Config:
    """How large the study is, which arms it has, and who rates."""

    out: Path = Path("runs/rg-vlm")
    """Folder of the study; a study that was begun there goes on, with the same data."""
    arms: tuple[str, ...] = CORE
    """Arms by name, or NAME=EXPRESSION for a reward of your own. They add to those that the study has already."""
    seeds: int = 5
    """Policies of each arm."""
    vlm: tuple[str, ...] = ("embedded",)
    """Who rates."""
    level: str = "small"
    """Family of BabyAI worlds that is recorded."""
    tasks: int = 100
    """Layouts with an instruction; the numbers of sub-tasks take turns. All of them are also what policies are tried on."""
    lengths: tuple[int, int] = (1, 6)
    """Least and greatest number of sub-tasks."""
    demonstrations: int = 5
    """Demonstrations of each task."""
    updates: int = 2500
    """Gradient steps of each policy."""
    memory: bool = True
    """Whether policies remember their episode; without a memory they learn from single transitions, and faster."""
    seed: int = 0
    """Seed of the recording and of the other starts."""
    page: Path | None = None
    """Page whose marks are filled with the numbers; its figures and its raw table are written beside it. None if not given."""
    jobs: int = 0
    """Processes at a time; as many as there are cores if 0."""
    max_cost: float | None = None
    """Most US dollars that labelling whole instructions may cost, and labelling single sub-tasks again."""
    min_coverage: float = 0.95
    """Share of the transitions that must get a label for the study to go on."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider, without being asked."""
    quiet: bool = False
    """No progress bars."""
    rater_settings: Suppress[Mapping[str, Any] | None] = None
    """Config of each provider by the name of its file."""

    def __post_init__(self) -> None:
        for name in ("seeds", "tasks", "demonstrations"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is at least 1, got {getattr(self, name)}")
        if self.jobs < 0 or self.updates < 1:
            raise UsageError("updates are at least 1, jobs at least 0")
        if not self.arms:
            raise UsageError("a study needs at least one arm", cure=f"Name some: --arms {' '.join(CORE)}")
        names = [arm.name for arm in self.chosen]
        if len(set(names)) < len(names):
            raise UsageError(f"an arm is named twice: {' '.join(names)}")

    @property
    def chosen(self) -> tuple[Arm, ...]:
        """The arms that are asked for."""
        return tuple(map(arm_of, self.arms))

    @property
    def store(self) -> str:
        """The study's own reply store."""
        return str(self.out / "replies.sqlite")

    def data(self, episodes: EPISODES) -> Path:
        """Folder of a dataset."""
        return self.out / ("data" if episodes == "chains" else "skills-data")

    def run(self, episodes: EPISODES) -> Path:
        """The run folder of a dataset."""
        return self.out / ("run" if episodes == "chains" else "skills-run")


_OF_THE_STUDY = ("vlm", "level", "tasks", "lengths", "demonstrations", "updates", "memory", "seed", "rater_settings")
"""Settings that all arms of a study share."""


# --- what is done -------------------------------------------------------------------------------------------------------------------


def reproduce(config: Config) -> list[Path]:
    """Carries out what is not done yet; returns what was written.

    Raises:
        RunError: if the study was begun with other settings, or labels are missing.
        RewardError, DatasetError, UsageError, and what the commands raise that it is made of: each says what to do.
    """
    settings = _begin(config)
    with _study.timed(config.out / TIMES, "recording"):
        record_data(config)
    with _study.timed(config.out / TIMES, "labels"):
        qualities = _labels(config)
    with _study.timed(config.out / TIMES, "rewards"):
        rewards = _rewards(config)
    with _study.timed(config.out / TIMES, "training"):
        training = _train(config)
    with _study.timed(config.out / TIMES, "evaluation"):
        rows = _evaluate(config)
    found = _merged(config, {"labels": qualities, "rewards": rewards, "training": training}, rows)
    return _write(config, settings, *found)


def _begin(config: Config) -> dict[str, Any]:
    """The settings that all arms share, written down when the study begins. Raises RunError if it was begun with others."""
    asked = {name: value for name, value in as_record(config).items() if name in _OF_THE_STUDY} | {"training": dict(_TRAINING)}
    path = config.out / STUDY
    if not path.is_file():
        write_json(path, asked)
    begun = read_json(path)
    for name, value in asked.items():
        if begun.get(name) != value:
            what = f"this study was begun with {name} {canonical_json(begun.get(name))}, not {canonical_json(value)}"
            raise RunError(what, where=str(config.out), cure="Give the same settings again, or begin another study: --out FOLDER")
    return asked


def _needed(config: Config) -> list[EPISODES]:
    """Datasets that the arms learn from; chains are what all are tried on."""
    return ["chains", *(["skills"] if any(arm.episodes == "skills" for arm in config.chosen) else [])]  # type: ignore[list-item]


# --- data ---------------------------------------------------------------------------------------------------------------------------


def record_data(config: Config) -> None:
    """Records the demonstrations, and cuts them into single sub-tasks where an arm learns from these. Raises as the recording does."""
    from guerdon.recipes.collect_babyai import Config as Collect
    from guerdon.recipes.collect_babyai import collect_babyai

    data = config.data("chains")
    if not data.exists():
        asked = Collect(
            out=data, level=config.level, tasks=config.tasks, demonstrations=config.demonstrations, lengths=config.lengths, seed=config.seed
        )
        with progress_bar("recording", quiet=config.quiet) as progress:
            collect_babyai(asked, progress=progress)
    skills = config.data("skills")
    if "skills" in _needed(config) and not skills.exists():
        cut_into_skills(open_dataset(data), skills)


def cut_into_skills(dataset: Dataset, out: Path) -> None:
    """Writes a dataset in which every sub-task of an episode is an episode of its own, with the sub-task's words, terminated at its end.

    Raises:
        DatasetError: if an episode names no sub-tasks, or if `out` is taken.
        WriteFailed: if it cannot be written.
    """
    write_minari(
        out, skills_of(dataset), dataset_id="guerdon/skills-v0", action_names=dataset.action_names, environment=dataset.environment,
        description="Single sub-tasks, cut out of demonstrations of whole instructions",
    )  # fmt: skip


def skills_of(dataset: Dataset) -> Iterator[RecordedEpisode]:
    """The sub-tasks of a dataset's episodes (first annotation), each as an episode. Raises DatasetError if an episode names none."""
    for info in dataset.episodes():
        spans = info.annotations[0].spans if info.annotations else ()
        if not spans:
            raise DatasetError(
                "names no sub-tasks to be cut at", where=f"{dataset.path}, episode {info.index}", cure="Leave out the arms of skills."
            )
        frames = {view: dataset.frames(info.index, view, 0, info.length + 1) for view in dataset.views}
        vectors = {name: dataset.vector(info.index, name) for name in dataset.vectors}
        actions, rewards, known = dataset.actions(info.index), dataset.rewards(info.index), dataset.privileged(info.index)
        for number, span in enumerate(spans):
            seen = slice(span.start, span.stop + 1)
            yield RecordedEpisode(
                frames={view: pictures[seen] for view, pictures in frames.items()},
                vectors={name: values[seen] for name, values in vectors.items()},
                actions=actions[span.start : span.stop],
                rewards=np.asarray(rewards[span.start : span.stop], np.float64),
                terminated=True,
                truncated=False,
                annotations=(Annotation(span.text),),
                metadata={"episode": info.index, "subtask": number, "chain": info.metadata.get("task", {}).get("id", "")},
                privileged={name: _of_skill(name, values, span.start, span.stop, info.length) for name, values in known.items()},
            )


def _of_skill(name: str, values: npt.NDArray[Any], start: int, stop: int, length: int) -> npt.NDArray[np.float32]:
    """What is known of a piece. What counts sub-tasks counts the piece's own one, which is done at the end and only there."""
    cut = np.array(values[start:stop] if len(values) == length else values[start : stop + 1], np.float32)
    if len(values) == length:
        return cut
    if name in ("progress", "subtask"):
        cut[:], cut[-1] = 0.0, 1.0
    elif name == "distance":
        cut[-1] = 0.0  # recorded is the way to the next sub-task
    return cut


# --- labels -------------------------------------------------------------------------------------------------------------------------


def _labels(config: Config) -> dict[str, Any]:
    """Makes the label sets that the arms need; how right each is: "chains/rg_vlm" -> its quality."""
    before = read_json(config.out / RESULTS).get("labels", {}) if (config.out / RESULTS).is_file() else {}
    labellers = {episodes: _Labeller(config, episodes) for episodes in _needed(config)}
    wanted = [(arm.episodes, name) for arm in config.chosen if arm.expression is not None for name in names_in(arm.expression)]
    in_order = sorted(set(wanted), key=lambda each: (each[1] == "rg_vlm" or each[1] in SCRIPTED, each))  # what is missing is said first
    found = {}
    for episodes, name in in_order:
        if labellers[episodes].make(name):
            found[f"{episodes}/{name}"] = labellers[episodes].quality(name, before.get(f"{episodes}/{name}", {}))
    return found


class Window(NamedTuple):
    """What a scripted rater is asked about at a time."""

    truth: npt.NDArray[np.float64]
    """(n,) contributions, NaN where unknown."""
    seen: str
    """Sign of the evidence."""


class _Labeller:
    """Labels one of the study's datasets."""

    def __init__(self, config: Config, episodes: EPISODES) -> None:
        self._config, self._episodes = config, episodes
        self._windows: list[Window] | None = None
        self._dataset = open_dataset(config.data(episodes))
        # Arms without labels need it, too.
        self._run = Run.open_or_create(config.run(episodes), dataset_path=self._dataset.path, fingerprint=self._dataset.fingerprint)

    def make(self, name: str) -> bool:
        """Makes a label set that is not there yet; False for a reward that a model gave. Raises RunError if it cannot be made here."""
        run = self._run
        if name == "rg_vlm":
            self._ask(run, name, self._config.vlm, dict(self._config.rater_settings or {}))
        elif name in SCRIPTED:
            kind, accuracy = SCRIPTED[name]
            if not self._is_there(run, name):
                self._ask(run, name, ("scripted",), {"scripted": calibrated(self._judged(), kind, accuracy)})
        elif not has_labels(run, name):
            if has_rewards(run, name):
                return False
            data, folder = self._config.data(self._episodes), run.path
            cure = f"Make it, then run the study again: guerdon label {data} --run {folder} --name {name} ... (or guerdon relabel)"
            raise RunError(f"holds neither labels nor a model's rewards '{name}', which an arm learns from", where=str(folder), cure=cure)
        return True

    def _judged(self) -> list[Window]:
        if self._windows is None:
            self._windows = windows_of(self._dataset)
        return self._windows

    def _is_there(self, run: Run, name: str) -> bool:
        """Whether a label set is finished."""
        part = run.part("labels", name).with_suffix(".parquet")
        manifest = run.manifest(part) if has_labels(run, name) else None
        if not isinstance(manifest, dict) or manifest["results"]["stopped"]:
            return False
        label_set_of(run, name)  # refuses what was damaged or is about other data
        return bool(manifest["results"]["coverage"] >= self._config.min_coverage)

    def _ask(self, run: Run, name: str, vlm: tuple[str, ...], settings: Mapping[str, Any]) -> None:
        """Labels everything with one rater; what was answered before is not asked again. Raises RunError if too much has no label."""
        config = self._config
        if self._is_there(run, name):
            return
        made = label(
            dataset=config.data(self._episodes), run=run.path, vlm=vlm, name=name, store=config.store, min_coverage=config.min_coverage,
            max_cost=config.max_cost, yes=config.yes, quiet=config.quiet, rater_settings=settings,
        )  # fmt: skip
        if made.stopped:
            raise RunError(
                f"labelling stopped: {made.stopped}", where=str(made.path), cure="Go on with the same command and a higher --max-cost."
            )
        if not made.complete:
            what = f"only {made.labels.coverage:.1%} of the transitions have a label, {config.min_coverage:.0%} are wanted"
            raise RunError(
                what, where=str(made.path), cure="Ask again for what failed (guerdon label ... --retry-failed), or lower --min-coverage."
            )

    def quality(self, name: str, before: Mapping[str, Any]) -> dict[str, Any]:
        """How right a label set is, held against the ground truth."""
        labels = label_set_of(self._run, name)
        if before.get("fingerprint") == labels.fingerprint:
            return dict(before)
        manifest = self._run.require(self._run.part("labels", name).with_suffix(".parquet"), {})
        if labels.labels and labels.labels[0].unit != "transition":
            return {
                "fingerprint": labels.fingerprint,
                "rater": str(labels.metadata.get("rater", "")),
                "coverage": labels.coverage,
                "agreement": None,
            }
        measured = measure(labels, self._dataset).to_record()
        agreement = measured["agreement"]
        return {
            "fingerprint": labels.fingerprint, "rater": measured["rater"], "coverage": labels.coverage, "agreement": agreement,
            "baselines": measured["baselines"], "seconds": manifest["results"]["seconds"], "dollars": manifest["results"]["dollars"],
            "settings": manifest["config"]["rater_settings"], "note": measured["note"],
        }  # fmt: skip


def windows_of(dataset: Dataset) -> list[Window]:
    """What a scripted rater would be asked about, window by window, without asking it."""
    known = truth_of(dataset).contributions
    if known is None:
        cure = "Leave the arms of scripted raters out."
        raise DatasetError("the dataset holds no ground truth for a scripted rater", where=str(dataset.path), cure=cure)
    method = make_method(LabelConfig(dataset=dataset.path, run=dataset.path), dataset)
    found = []
    for sample in samples.select(dataset, samples.Config(kind="windows")):
        request = method.next(sample, [])
        if request is not None:
            found.append(Window(np.asarray(known(sample.subject), np.float64), sign_of(request.evidence)))
    return found


def accuracy_of(windows: Sequence[Window], settings: Scripted.Config) -> float:
    """Share of the actions of which a scripted rater says rightly whether they serve: a score of at least 5 where the contribution is above
    0, and below 5 elsewhere. Unknown contributions do not count."""
    rater = Scripted(settings, truth=lambda _: np.zeros(0))
    right = known = 0
    for window in windows:
        counted = ~np.isnan(window.truth)
        right += int(((rater.scores(window.truth, window.seen) >= 5) == (window.truth > 0))[counted].sum())
        known += int(counted.sum())
    return right / known


_TOLERANCE = 0.001
"""How near the measured accuracy of a scripted rater has to come to the one that is wanted."""
_BISECTIONS = 20


def erring(kind: Literal["flips", "optimism"], rate: float) -> Scripted.Config:
    """A scripted rater that makes one kind of error and no other. Flips take actions that serve for others and the other way round.
    Optimism raises scores by two: actions that do not serve are all scored 3, and then some of them 5."""
    perfect = Scripted.PRESETS["perfect"]
    return replace(perfect, flip=rate) if kind == "flips" else replace(perfect, optimism=rate, hindered=perfect.neutral)


def calibrated(windows: Sequence[Window], kind: Literal["flips", "optimism"], accuracy: float) -> Scripted.Config:
    """The scripted rater of a kind whose measured accuracy on these windows is the one wanted, found by bisection of its rate of errors.

    The errors of a lower rate are among those of a higher one, so the accuracy falls evenly with the rate.

    Raises:
        RunError: if no rate gives that accuracy (within 0.5 percentage points), because there are too few actions.
    """
    low, high = 0.0, 1.0
    best: tuple[float, float] = (np.inf, 0.0)
    for _ in range(_BISECTIONS):
        rate = round((low + high) / 2, 6)
        found = accuracy_of(windows, erring(kind, rate))
        best = min(best, (abs(found - accuracy), rate))
        if best[0] <= _TOLERANCE:
            break
        low, high = (rate, high) if found > accuracy else (low, rate)
    if best[0] > 0.005:
        raise RunError(
            f"no rate of {kind} makes a scripted rater of {accuracy:.1%} here", cure="Record more demonstrations, or leave this arm out."
        )
    return erring(kind, best[1])


# --- policies -----------------------------------------------------------------------------------------------------------------------


def _rewards(config: Config) -> dict[str, Any]:
    """Composes each arm's reward; what is seen in it."""
    found = {}
    for arm in config.chosen:
        if arm.expression is not None:
            composed = reward(run=config.run(arm.episodes), compose=arm.expression, name=arm.policies, gamma=arm.gamma)[0]
            found[arm.name] = {
                **composed.statistics,
                "discount": composed.column.discount,
                "findings": [each.to_record() for each in composed.findings],
            }
    return found


def _train(config: Config) -> dict[str, Any]:
    """Trains what is not trained yet, all arms of a seed before the next one; what training measured, by arm and seed."""
    jobs = []
    for arm in config.chosen:
        kind: dict[str, Any] = {"rewards": (), "algorithm": "bc"} if arm.expression is None else {"rewards": (arm.policies,)}
        shared = {"updates": config.updates, "memory": config.memory, "seeds": config.seeds, "quiet": config.quiet}
        own = {"algorithm_settings": _algorithm_settings(arm)} if arm.settings else {}
        jobs += jobs_of(TrainConfig(run=config.run(arm.episodes), **{**shared, **_TRAINING, **arm.training, **kind, **own}))
    jobs.sort(key=lambda job: job.seed)  # stable: an interrupted study has all arms of the first seeds
    train_jobs(jobs, workers=config.jobs, quiet=config.quiet)
    found: dict[str, Any] = {}
    for arm in config.chosen:
        run = Run.open(config.run(arm.episodes))
        manifests = {seed: run.require(run.part("policies", arm.policies) / f"seed-{seed}", {}) for seed in range(config.seeds)}
        kept = ("advantage_spearman", "seconds", "updates", "coverage")
        found[arm.name] = {str(seed): {name: each["results"].get(name) for name in kept} for seed, each in manifests.items()}
    return found


def _algorithm_settings(arm: Arm) -> Any:
    """The Config of an arm's algorithm."""
    from guerdon.networks import PolicyNetwork

    chosen: Any = discover.load("algorithms", "bc" if arm.expression is None else "iql")
    network = PolicyNetwork.Config(**arm.settings.get("network", {}))
    return chosen.Config(**{**arm.settings, "network": network})


def _evaluate(config: Config) -> list[dict[str, Any]]:
    """Rows of all arms on the study's tasks, and of random actions."""
    every: dict[str, Any] = {"per_length": 0, "other_words": False, "seed": config.seed}
    shared: dict[str, Any] = {
        "policy_seeds": tuple(range(config.seeds)), "seeds": config.seeds, "rollouts": 0, "jobs": config.jobs, "quiet": config.quiet
    }  # fmt: skip
    chains = Run.open(config.run("chains"))
    frozen_tasks(chains, dataset_of(chains), EvaluateConfig(run=chains.path, **every))
    rows = []
    for episodes in _needed(config):
        names = {arm.policies: arm.name for arm in config.chosen if arm.episodes == episodes}
        arms = (*((RANDOM,) if episodes == "chains" else ()), *names)
        tasks = every if episodes == "chains" else {"tasks": chains.path / "tasks.json"}
        found = evaluate(run=config.run(episodes), arms=arms, **tasks, **shared)
        rows += [{**row, "arm": names.get(row["arm"], row["arm"])} for row in found]
    return rows


# --- results ------------------------------------------------------------------------------------------------------------------------

_SCHEMA = arrow.schema(
    [
        ("arm", arrow.string()), ("seed", arrow.int64()), ("task", arrow.string()), ("length", arrow.int64()), ("start", arrow.string()),
        ("wording", arrow.string()), ("return", arrow.float64()), ("success", arrow.bool_()), ("steps", arrow.int64()),
        ("step_limit", arrow.int64()),
    ]
)  # fmt: skip


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a study (`OUT/rg-vlm.parquet`). Raises RunError."""
    rows: list[dict[str, Any]] = read_table(path, "table of a study", _SCHEMA)[0].to_pylist()
    return rows


def merge_rows(before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], gone: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of an earlier call and of this one: for each arm and seed the later ones, and none of the arms that are `gone`."""
    now, gone = list(now), set(gone)
    newer = {(row["arm"], row["seed"]) for row in now}
    kept = [row for row in before if (row["arm"], row["seed"]) not in newer and row["arm"] not in gone]
    return [{name: row[name] for name in _SCHEMA.names} for row in (*kept, *now)]


_MAKING = ("expression", "gamma", "episodes", "training", "settings")
"""Parts of an arm's record that make a difference to its policies."""


def _merged(
    config: Config, found: Mapping[str, Mapping[str, Any]], rows: list[dict[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was found before and now. What an arm was before its reward was changed no longer counts."""
    path, arms = config.out / RESULTS, {arm.name: arm.to_record() for arm in config.chosen}
    before = read_json(path) if path.is_file() and (config.out / ROWS).is_file() else {}
    known = {arm["name"]: arm for arm in before.get("arms", ())}
    changed = [name for name, record in arms.items() if name in known and any(known[name].get(part) != record[part] for part in _MAKING)]
    for name in changed:
        before["training"].pop(name, None)
    training = {
        name: {**before.get("training", {}).get(name, {}), **found["training"].get(name, {})}
        for name in {**before.get("training", {}), **found["training"]}
    }
    in_order = sorted({**known, **arms}, key=lambda name: (list(ARMS).index(name) if name in ARMS else len(ARMS), name))
    record = {
        "arms": [{**known, **arms}[name] for name in in_order],
        "labels": {**before.get("labels", {}), **found["labels"]},
        "rewards": {**before.get("rewards", {}), **found["rewards"]},
        "training": training,
    }
    merged = merge_rows(read_rows(config.out / ROWS) if before else [], rows, changed)
    return record, sorted(merged, key=lambda row: (["random", *in_order].index(row["arm"]), row["seed"], row["length"], row["task"]))


def _write(config: Config, settings: Mapping[str, Any], found: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[Path]:
    """Writes record, rows, figures and page, and prints the tables."""
    run = Run.open(config.run("chains"))
    dataset = dataset_of(run)
    record = {
        "version": package_version(), "command": command_line(), "machine": _study.machine(),
        "seconds": _study.seconds_of(config.out / TIMES),
        "config": as_record(config),
        "settings": dict(settings), "tasks": len({row["task"] for row in rows if row["start"] == "fixed"}), "episodes": len(dataset),
        "transitions": sum(info.length for info in dataset.episodes()), **found,
    }  # fmt: skip
    results, columns = Results(record, rows), {name: [row[name] for row in rows] for name in _SCHEMA.names}
    return _study.write_study(
        config.out / RESULTS, record, config.out / ROWS, arrow.table(columns, schema=_SCHEMA),
        tables=((name, give(results)) for name, give in TABLES.items()),
        figures=figures(results), page=config.page, value_of=lambda key: value_of(key, results, ARMS),
    )  # fmt: skip
