"""Fitting a reward model in a run folder to what raters said: RUN/models/NAME/, from one or several of its label sets.

Ratings, preferences and scores are fitted alike (`guerdon.rewards.fitting`); what a label set holds says which. The work is done in one
process of its own with one thread. The model is written into a temporary folder and moved into place when it is whole; a model that was
fitted to the same labels with the same settings is kept.
"""

from __future__ import annotations

import keyword
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional, Suppress

from guerdon.errors import UsageError
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet, compatible
from guerdon.recipes.data import dataset_of, has_labels, label_set_of, model_fingerprint
from guerdon.recipes.parallel import run_apart
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.reward import NAMES_OF_OTHER_ARMS
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.rewards.compose import RESERVED
from guerdon.runs import Manifest, Run, writing

if TYPE_CHECKING:
    from guerdon.rewards.steps import Judgements, Look

_NOT_OF_THE_MODEL = frozenset({"run", "name", "quiet"})
"""Settings that make no difference to a model."""
_MALLOC = "glibc.malloc.mmap_max=0:glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=8589934592"
"""Memory that was freed is kept: glibc otherwise gives every tensor above 32 MB back, and training takes 1.7 times as long."""

_BINS = 10
_TOLERANCE = 1e-6
"""Scores are single precision: 0.3 of a scale is a little less than three tenths."""

Decision = Literal["auto", "yes", "no"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to fit, and what the model looks at."""

    run: Positional[Path]
    """The run folder that holds the labels."""
    labels: tuple[str, ...] = ("rating",)
    """Label sets of the run; several must have been made with the same method, prompts, classes and rater."""
    name: str = "erl_vlm"
    """Name of the model, and of the rewards that it gives."""
    views: tuple[str, ...] = ()
    """Cameras that the model looks through; the dataset's first one if neither views nor vectors are given."""
    vectors: tuple[str, ...] = ()
    """Vector observations that the model reads, such as a robot's state; alone they are read without pictures."""
    pictures: Literal["auto", "1", "2"] = "auto"
    """1: the picture that an action led to; 2: the one before it as well. auto: 2 for scores of actions, else 1."""
    action: Decision = "auto"
    """Whether the model is told the action. auto: yes for scores, which judge actions, else no."""
    instruction: Decision = "auto"
    """Whether the model reads the instruction. auto: yes if the labels are about more than one."""
    seed: int = 0
    """Seed of the weights, the batches and the choice of held-out labels."""
    quiet: bool = False
    """No progress bar."""
    fitting: Suppress[Any] = None
    """How to fit (`guerdon.rewards.fitting.Config`); its defaults if not given."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise UsageError("a model is fitted to at least one label set", cure="Name it: --labels NAME")
        if len(set(self.labels)) < len(self.labels):
            raise UsageError("a label set is named twice", cure="Name each one once.")
        if not self.name.isidentifier():
            raise UsageError(f"a model's name is made of letters, digits and underscores, got '{self.name}'")
        if self.name in (*NAMES_OF_OTHER_ARMS, *RESERVED) or keyword.iskeyword(self.name):
            raise UsageError(f"'{self.name}' means something else already", cure="Choose another --name.")
        if self.pictures not in ("auto", "1", "2") or {self.action, self.instruction} - {"auto", "yes", "no"}:
            raise UsageError("pictures is auto, 1 or 2; action and instruction are auto, yes or no")


@dataclass(frozen=True)
class FittedModel:
    """A reward model on disk and how well it fits."""

    path: Path
    """Folder of the model."""
    results: Mapping[str, Any]
    """What its manifest says: see `fit`."""
    kept: bool
    """Whether it was there already, fitted to the same labels with the same settings."""


@callable_with_settings(Config)
def fit(config: Config) -> FittedModel:
    """Writes RUN/models/NAME/ (model.safetensors, model.json, metrics.jsonl, manifest.json) and returns it.

    The results, also in the manifest: "kind"; "labels", how many are fitted to; "classes", name and number of each; "transitions", how
    many they are about; "looks_at", in words; "seconds"; "fingerprint"; and those of `guerdon.rewards.fitting.Fitted.results`.

    Raises:
        RunError: if RUN is no run folder, or a label set is not there, damaged or unlike the others.
        StaleInput: if the dataset has changed.
        RewardError: if the labels are too few, or all say the same.
        RewardModelError, DatasetError, UsageError, WriteFailed: each says what to do.
    """
    run = Run.open(config.run)
    if has_labels(run, config.name):
        what = f"the run holds a label set called '{config.name}', so expressions could not tell the model's rewards from it"
        raise UsageError(what, where=str(run.path), cure="Choose another --name.")
    cure = f"Make one with: guerdon label {run.dataset_path} --run {run.path} --method rating"
    label_sets = {name: label_set_of(run, name, cure=cure) for name in config.labels}
    compatible(list(label_sets.values()))
    part = run.part("models", config.name)
    asked, inputs = _asked(config), inputs_of(run, label_sets)
    if run.holds(part, asked, inputs):
        results = run.require(part, inputs)["results"]
        if results.get("fingerprint") == model_fingerprint(part):
            return FittedModel(part, results, kept=True)
    with progress_bar(f"fitting {config.name}", quiet=config.quiet, share=True) as progress, writing(part) as temporary:
        temporary.mkdir()
        results = run_apart(fit_one, Job(config, temporary), progress=progress, variables=malloc_settings())
    run.finish(part, Manifest(asked, inputs, results))
    return FittedModel(part, results, kept=False)


def inputs_of(run: Run, label_sets: Mapping[str, LabelSet]) -> dict[str, str]:
    """Fingerprints of what a model is made from."""
    return {"dataset": run.dataset_fingerprint} | {f"labels/{name}": labels.fingerprint for name, labels in label_sets.items()}


def malloc_settings() -> dict[str, str]:
    """Environment variables that make a process keep the memory it freed: for glibc only, and only if the user has set none."""
    is_glibc = platform.libc_ver()[0] == "glibc"
    return {"GLIBC_TUNABLES": _MALLOC} if is_glibc and "GLIBC_TUNABLES" not in os.environ else {}


def _asked(config: Config) -> dict[str, Any]:
    from guerdon.rewards import fitting

    settings = {key: value for key, value in as_record(config).items() if key not in _NOT_OF_THE_MODEL}
    return settings | {"fitting": as_record(config.fitting or fitting.Config())}


# --- in a process of its own ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A model to be fitted."""

    config: Config
    folder: Path
    """Where to write it: there and empty."""


def fit_one(job: Job, progress: Progress) -> dict[str, Any]:
    """Fits a model, writes it into the job's folder and returns the results for its manifest. Raises as `fit` does."""
    from guerdon.rewards import fitting, steps
    from guerdon.training.offline import use_one_thread

    use_one_thread()
    config, began = job.config, time.monotonic()
    run = Run.open(config.run)
    dataset = dataset_of(run)
    label_sets = [label_set_of(run, name) for name in config.labels]
    look = look_of(config, dataset, label_sets)
    judgements = steps.judgements(label_sets, dataset, look)
    fitted = fitting.fit(judgements, look, config.fitting, seed=config.seed, out=job.folder, progress=progress)
    return {
        "kind": judgements.kind,
        "labels": len(judgements),
        "classes": [list(pair) for pair in class_counts(judgements, label_sets[0])],
        "transitions": len(judgements.steps),
        "looks_at": in_words(look),
        "seconds": time.monotonic() - began,
        "fingerprint": model_fingerprint(job.folder),
        **fitted.results,
    }


def look_of(config: Config, dataset: Dataset, label_sets: Sequence[LabelSet]) -> Look:
    """What the model takes in, with everything decided that was left to the labels. Raises UsageError for names the dataset lacks."""
    from guerdon.rewards import steps

    of_actions = is_of_actions(label_sets)
    both = config.pictures == "2" or (config.pictures == "auto" and of_actions)
    return steps.look_of(
        dataset,
        views=config.views,
        pictures=2 if both else 1,
        vectors=config.vectors,
        action=_decided(config.action, of_actions),
        instruction=_decided(config.instruction, len(instructions(label_sets)) > 1),
        unit=steps.unit_of(label_sets, dataset),
    )


def is_of_actions(label_sets: Sequence[LabelSet]) -> bool:
    """Whether the labels are scores: numbers that judge single actions, neither classes nor preferences."""
    pairs = any(label.unit == "pair" for labels in label_sets for label in labels.labels)
    return not pairs and not any(labels.metadata.get("levels") for labels in label_sets)


def instructions(label_sets: Sequence[LabelSet]) -> set[str]:
    """The distinct texts that labels with a value are about."""
    return {label.instruction for labels in label_sets for label in labels.labels if label.value is not None}


def class_counts(judgements: Judgements, label_set: LabelSet) -> list[tuple[str, int]]:
    """How many labels there are of each class, in the classes' order; of each verdict on a pair; of scores, by tenths of their scale."""
    target = judgements.target
    if judgements.kind == "rating":
        classes = target.argmax(1) if target.ndim == 2 else target
        return [(str(name), int((classes == number).sum())) for number, name in enumerate(label_set.metadata["levels"])]
    if judgements.kind == "preference":
        sides = {"first": target < 0.5, "neither": target == 0.5, "second": target > 0.5}
        return [(name, int(side.sum())) for name, side in sides.items()]
    low, high = label_set.scale
    bounds = [low + tenth * (high - low) / _BINS for tenth in range(_BINS + 1)]
    tenths = [min(int(value * _BINS + _TOLERANCE), _BINS - 1) for value in target]
    return [(f"{bounds[tenth]:g} to {bounds[tenth + 1]:g}", tenths.count(tenth)) for tenth in range(_BINS)]


def in_words(look: Look) -> str:
    """What a model looks at, for people."""
    *first, last = _looked_at(look)
    return f"{', '.join(first)} and {last}" if first else last


def _looked_at(look: Look) -> Iterator[str]:
    before = "before and after an action" if look.pictures == 2 else "after an action"
    if look.views:
        sizes = (f"{name} ({width} x {height})" for name, (height, width) in look.views.items())
        yield f"{'pictures' if look.pictures == 2 else 'the picture'} {before} from {', '.join(sizes)}"
    if look.vectors:
        yield f"{', '.join(f'{name} ({size} numbers)' for name, size in look.vectors.items())} {before}"
    if look.action_names or look.action_size:
        yield "the action"
    if look.words is not None:
        yield "the instruction"


def _decided(choice: Decision, otherwise: bool) -> bool:
    return {"yes": True, "no": False}.get(choice, otherwise)
