"""Labelling a dataset: windows are cut, a rater is asked about each, and the answers become a label set in a run folder."""

from __future__ import annotations

import inspect
import keyword
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tyro.conf import Positional, Suppress

from guerdon import discover, samples
from guerdon.asking.loop import run_sync
from guerdon.asking.scheduler import Progress as AskingProgress
from guerdon.asking.scheduler import ask
from guerdon.asking.store import Store
from guerdon.errors import DatasetError, UsageError
from guerdon.interfaces import Dataset, Method, Provider
from guerdon.labels import LabelSet
from guerdon.recipes import raters
from guerdon.recipes.data import DataOptions, open_data, run_of
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.records import Label, Sample, Subject
from guerdon.rewards.compose import RESERVED
from guerdon.runs import Manifest


@dataclass(frozen=True, kw_only=True)
class Config(DataOptions):
    """What to label, and who is asked."""

    dataset: Positional[Path]
    """Folder of the dataset."""
    run: Path
    """Run folder that the labels are written to; begun if it is not there."""
    method: str = "rg-vlm"
    """How the rater is asked."""
    vlm: tuple[str, ...] = ("scripted",)
    """Who is asked: "scripted", "google:MODEL", "openai:MODEL", "anthropic:MODEL", "openai-compatible:MODEL@URL", "replay:FOLDER".
    A second one is asked in the method's second stage."""
    name: str = ""
    """Name of the label set in reward expressions; the method's own if not given."""
    concurrency: int = 16
    """Conversations in flight at once."""
    min_coverage: float = 1.0
    """Share of the transitions that must get a label for the command to succeed (exit status 0)."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider, without being asked."""
    retry_failed: bool = False
    """Ask again what failed for good before (refusals, blocks); what is answered is never asked again."""
    store: Path | None = None
    """File of the reply store; the user's own if not given."""
    quiet: bool = False
    """No progress bars."""
    sampling: Suppress[samples.Config] = field(default_factory=samples.Config)
    """Which windows are judged."""
    method_settings: Suppress[Any] = None
    """Config of the method; its defaults if not given."""
    rater_settings: Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Config of each provider by the name of its file; defaults if not given."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_coverage <= 1.0:
            raise UsageError(f"min_coverage lies in [0, 1], got {self.min_coverage}")
        if self.concurrency < 1:
            raise UsageError(f"concurrency is at least 1, got {self.concurrency}")
        if self.name and not (self.name.isascii() and self.name.isidentifier()):
            raise UsageError(f"a label set's name is made of letters, digits and underscores, got '{self.name}'")
        if self.name in RESERVED or keyword.iskeyword(self.name):
            raise UsageError(f"'{self.name}' means something else in reward expressions", cure="Choose another --name.")
        if not self.vlm:
            raise UsageError("no rater was named", cure="For example: --vlm scripted")

    @property
    def label_set(self) -> str:
        """Name of the label set in force."""
        return self.name or self.method.replace("-", "_")


@dataclass(frozen=True)
class Labelled:
    """A label set on disk and what it took to get it."""

    path: Path
    labels: LabelSet
    results: Mapping[str, Any]
    """Requests, tokens, dollars (None: no price known), seconds, failures by cause, coverage."""
    complete: bool
    """Whether coverage reached what was asked for."""


@callable_with_settings(Config)
def label(config: Config) -> Labelled:
    """Writes RUN/labels/NAME.parquet. Whatever was answered before, in this run or another, is not asked again.

    Raises:
        DatasetError, UsageError, RunError, StoreError, ProviderError: each says what to do.
        KeyboardInterrupt: after the requests in flight are saved.
    """
    dataset = open_data(config.dataset, config)
    method = make_method(config, dataset)
    providers = [make_rater(spec, dataset, config.rater_settings) for spec in config.vlm]
    for provider in providers:
        raters.require_consent(provider, yes=config.yes)
    selection = samples.survey(dataset, config.sampling)
    if not selection.samples:
        cure = "Use --unit episode, or choose other episodes." if selection.without_spans else "Look at it with: guerdon check DATASET"
        raise DatasetError("there is nothing to label", where=str(dataset.path), cure=cure)
    run = run_of(config.run, dataset, config)
    path = run.part("labels", config.label_set).with_suffix(".parquet")
    began = time.monotonic()
    with closing(Store.open(config.store)) as store:
        run_name = f"{run.dataset_fingerprint}/{path.resolve()}".encode("utf-8", "backslashreplace").decode()  # paths are bytes, not text
        windows = samples.select(dataset, config.sampling)
        with progress_bar(f"asking {', '.join(config.vlm)}", quiet=config.quiet) as progress:
            answered, counts = _ask_all(windows, method, providers, store, run_name, config, selection.samples, progress)
        costs = store.costs(run_name)
    labels = sorted(answered, key=lambda label: (label.episode, label.annotation, label.start, label.stop))
    label_set = LabelSet(labels, _meaning(method, providers, dataset))
    label_set.write(path)
    results = {
        "windows": selection.samples,
        "transitions": selection.transitions,
        "requests": costs.requests,
        "found": counts.found,
        "input_tokens": costs.input_tokens,
        "output_tokens": costs.output_tokens,
        "dollars": None if costs.dollars_unknown else costs.dollars,
        "dollars_known": costs.dollars,
        "failures": dict(costs.failures),
        "states": dict(label_set.counts()),
        "coverage": label_set.coverage,
        "seconds": time.monotonic() - began,
        "fingerprint": label_set.fingerprint,
    }
    run.finish(path, Manifest(as_record(config), {"dataset": dataset.fingerprint}, results))
    return Labelled(path, label_set, results, label_set.coverage >= config.min_coverage)


def make_method(config: Config, dataset: Dataset) -> Method:
    """The method that a Config names, told how to read the dataset's pictures. Raises UnknownName, or UsageError if it has no second stage
    for a second rater."""
    made = discover.load("methods", config.method)
    settings: Any = config.method_settings or (made.Config() if hasattr(made, "Config") else None)
    if getattr(settings, "note", None) == "":
        settings = replace(settings, note=dataset.environment.get("pictures", ""))
    given: dict[str, Any] = {} if settings is None else {"config": settings}
    if len(config.vlm) > 1:
        if "score_rater" not in inspect.signature(made).parameters:
            raise UsageError(f"the method '{config.method}' asks one rater, {len(config.vlm)} were given", cure="Give --vlm once.")
        given["score_rater"] = 1
    method: Method = made(**given)
    return method


def provider_of(spec: str) -> str:
    """Name of the provider file behind a `--vlm` text: the vendors' prefixes all belong to "chat"."""
    name = spec.partition(":")[0]
    return name if name in discover.names("providers") else "chat"


def make_rater(spec: str, dataset: Dataset, settings: Mapping[str, Any]) -> Provider:
    """The rater that a `--vlm` text names. Raises UnknownName, UsageError, ProviderError or MissingExtra."""
    truth = truth_of(dataset)
    return raters.build(spec, config=settings.get(provider_of(spec)), truth=truth, truth_id=dataset.fingerprint if truth else None)


def chosen_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The Configs that differ from their defaults: a preset such as `scripted:perfect` stands unless settings are given."""
    return {name: config for name, config in settings.items() if config != type(config)()}


def truth_of(dataset: Dataset) -> Callable[[Subject], npt.NDArray[np.floating[Any]]] | None:
    """Ground truth for scripted raters: whether each transition of a subject serves (+1), does not matter (0) or hinders (-1); None if the
    dataset has none."""
    if not len(dataset) or "contribution" not in dataset.privileged(0):
        return None

    @lru_cache(maxsize=64)  # every window of an episode asks twice
    def contribution(episode: int) -> npt.NDArray[np.floating[Any]]:
        return dataset.privileged(episode)["contribution"]

    def truth(subject: Subject) -> npt.NDArray[np.floating[Any]]:
        return contribution(subject.episode)[subject.start : subject.stop]

    return truth


def _ask_all(
    windows: Iterator[Sample], method: Method, providers: Sequence[Provider], store: Store, run_name: str, config: Config,
    total: int, progress: Progress,
) -> tuple[list[Label], AskingProgress]:  # fmt: skip
    labels: list[Label] = []
    latest = AskingProgress()

    def on_event(state: AskingProgress) -> None:
        nonlocal latest
        latest = state
        progress(state.done, total)

    async def collect() -> None:
        conversations = ask(
            windows, method, providers, store, run=run_name, concurrency=config.concurrency, retry_failed=config.retry_failed,
            on_event=on_event,
        )  # fmt: skip
        try:
            async for transcript in conversations:
                labels.extend(method.read(transcript))
        finally:
            await conversations.aclose()  # type: ignore[attr-defined]
            for provider in providers:
                await provider.close()

    run_sync(collect())
    return labels, latest


def _meaning(method: Method, providers: Sequence[Provider], dataset: Dataset) -> dict[str, Any]:
    return {
        "method": method.name,
        "version": method.version,
        "scale": list(method.scale),
        "rater": " then ".join(provider.rater.name for provider in providers),
        "rater_settings": [dict(provider.rater.settings) for provider in providers],
        "dataset": dataset.fingerprint,
    }
