"""Labelling a dataset: windows are cut, a rater is asked about each, and the answers become a label set in a run folder."""

from __future__ import annotations

import inspect
import keyword
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from tyro.conf import Positional, Suppress

from guerdon import discover, samples
from guerdon.asking.batches import ask_in_batches
from guerdon.asking.limits import Limits
from guerdon.asking.loop import run_sync
from guerdon.asking.progress import Progress
from guerdon.asking.scheduler import InBatches, ask
from guerdon.asking.store import Store
from guerdon.errors import BadPilot, CeilingReached, DatasetError, UsageError
from guerdon.evaluation.truth import qualities
from guerdon.interfaces import Dataset, Method, Provider
from guerdon.labels import LabelSet, in_order, vote
from guerdon.recipes import raters, reckoning
from guerdon.recipes.data import DataOptions, open_data, run_of
from guerdon.recipes.labels import merge as with_corrections
from guerdon.recipes.pilot import Pilot, judge, wrong_instructions
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.recipes.watch import Watch, money, watching
from guerdon.records import Label, Sample, Span, Subject, Transcript
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
    vlm: tuple[str, ...] = ("embedded",)
    """Who is asked: "google:MODEL", "openai:MODEL", "anthropic:MODEL", "openai-compatible:MODEL@URL", "hf:FOLDER", "replay:FILE",
    "scripted"; "embedded", which comes with the package, reads pictures of BabyAI worlds and no others.
    A second one is asked in the method's second stage."""
    name: str = ""
    """Name of the label set in reward expressions; the method's own if not given."""
    repeats: int = 1
    """Independent answers to each question; labels are their median (classes: their majority) and carry their spread."""
    concurrency: int = 16
    """Most conversations in flight at once; fewer while a vendor says that it is too much."""
    requests_per_minute: float | None = None
    """Most requests a minute to each rater; as many as it takes if not given."""
    tokens_per_minute: float | None = None
    """Most tokens a minute to each rater, in and out."""
    patience: float = 600.0
    """Seconds without a single answer after which a rater that does not respond is given up."""
    max_cost: float | None = None
    """Most US dollars that this run folder may ever cost, over all commands and processes. Nothing is sent that could break it."""
    price: tuple[str, ...] = ()
    """Dollars per million tokens, as INPUT,OUTPUT, of a model without a known price (or for a price of your own), once for each --vlm."""
    pilot: int = 0
    """Ask about so many windows, pictures, segments or episodes first, and about the same ones with wrong instructions; stop there if the
    answers are no good."""
    pilot_instruction: str = ""
    """Wrong instruction for the pilot; another episode's if not given."""
    force: bool = False
    """Go on after a bad pilot."""
    batch: bool = False
    """Use the vendor's queue at half price: answers may take a day for each turn."""
    wait: bool = True
    """With --batch: wait for the answers. With --no-wait the same command collects later what is ready, and sends the next turn."""
    batch_size: int | None = None
    """With --batch: most requests in one batch; up to 10,000, as far as the vendor takes them, if not given."""
    retry_lost: bool = False
    """With --batch: ask again, and pay again, for what lies in a batch that the vendor no longer knows."""
    min_coverage: float = 1.0
    """Share of the transitions that must get a label for the command to succeed (exit status 0)."""
    yes: bool = False
    """Agree that pictures leave this machine for the rater's provider, without being asked."""
    retry_failed: bool = False
    """Ask again what failed for good before (refusals, blocks); what is answered is never asked again."""
    store: str | None = None
    """The reply store: a file, or postgresql://USER:PASSWORD@HOST/DATABASE; the user's own if not given."""
    log_json: Path | None = None
    """File that progress is added to as JSON lines."""
    quiet: bool = False
    """Show no progress."""
    keep_votes: Suppress[bool] = False
    """Hand out the labels of each repeat, too, for who compares them."""
    sampling: Suppress[samples.Config] = field(default_factory=samples.Config)
    """Which windows, pictures, segments, episodes or pairs are judged."""
    method_settings: Suppress[Any] = None
    """Config of the method; its defaults if not given."""
    rater_settings: Suppress[Mapping[str, Any]] = field(default_factory=dict)
    """Config of each provider by the name of its file; defaults if not given."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_coverage <= 1.0:
            raise UsageError(f"min_coverage lies in [0, 1], got {self.min_coverage}")
        for name, least in (("concurrency", 1), ("repeats", 1), ("pilot", 0), ("batch_size", 1)):
            count = getattr(self, name)
            if count is not None and count < least:
                raise UsageError(f"{name} is at least {least}, got {count}")
        for name in ("requests_per_minute", "tokens_per_minute", "patience", "max_cost"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is a number above 0, got {value}")
        changed = [flag for flag, given in self._only_with_batch().items() if given]
        if changed and not self.batch:
            raise UsageError(f"{changed[0]} says something of batches only", cure="Add --batch, or leave it out.")
        if len(self.price) not in (0, 1, len(self.vlm)):
            raise UsageError(f"{len(self.price)} prices are given for {len(self.vlm)} raters", cure="Give --price once for each --vlm.")
        if self.name and not (self.name.isascii() and self.name.isidentifier()):
            raise UsageError(f"a label set's name is made of letters, digits and underscores, got '{self.name}'")
        if self.name in RESERVED or keyword.iskeyword(self.name):
            raise UsageError(f"'{self.name}' means something else in reward expressions", cure="Choose another --name.")
        if not self.vlm:
            raise UsageError("no rater was named", cure="For example: --vlm google:gemini-2.5-flash")

    def _only_with_batch(self) -> dict[str, bool]:
        """Flags that mean nothing without --batch, and whether they are given: who forgets it would pay the full price."""
        return {"--no-wait": not self.wait, "--batch-size": self.batch_size is not None, "--retry-lost": self.retry_lost}

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
    """Requests, tokens, dollars (None: no price known), seconds, failures by cause, coverage, what was planned, the pilot."""
    complete: bool
    """Whether coverage reached what was asked for."""
    stopped: str = ""
    """Why not all was asked: the ceiling was reached, or batches are under way. Empty if all was asked."""
    votes: Mapping[int, Sequence[Label]] = field(default_factory=dict)
    """With `keep_votes`: the labels of each repeat, before they became one each."""


@callable_with_settings(Config)
def label(config: Config) -> Labelled:
    """Writes RUN/labels/NAME.parquet. Whatever was answered before, in this run or another, is not asked again.

    Raises:
        DatasetError, UsageError, RunError, StoreError, ProviderError: each says what to do.
        BadPilot: if a pilot was asked for and its answers are no good.
        KeyboardInterrupt: after the requests in flight are saved.
    """
    dataset = open_data(config.dataset, config)
    method = make_method(config, dataset)
    config = with_kind(config, method)
    providers = [make_rater(spec, dataset, config.rater_settings, config.sampling.unit) for spec in config.vlm]
    for provider, price in zip(providers, raters.prices_of(config.vlm, config.price), strict=True):
        provider.price = price
    for provider in providers:
        raters.require_consent(provider, yes=config.yes)
    selection = selection_of(config, dataset)
    expected = planned_for(config, samples.select(dataset, config.sampling), method)
    run = run_of(config.run, dataset, config)
    path = run.part("labels", config.label_set).with_suffix(".parquet")
    began = time.monotonic()
    with closing(Store.open(config.store)) as store:
        store.begin_run(run.id, _printable(run.path))
        asker = _Asker(config, dataset, method, providers, store, run.id, expected)
        try:
            trial = asker.pilot(selection.samples) if config.pilot else None
            answered, counts, stopped = asker.ask_all(selection.samples)
        finally:
            asker.close()
        costs = store.costs(run.id)
    labels = sorted(answered, key=in_order)
    label_set = with_corrections(run, config.label_set, LabelSet(labels, _meaning(method, providers, dataset)))
    label_set.write(path)
    results = {
        "windows": selection.samples,
        "judged": config.sampling.judged,
        "transitions": selection.transitions,
        "requests": costs.requests,
        "found": counts.found,
        "input_tokens": costs.input_tokens,
        "output_tokens": costs.output_tokens,
        "thinking_tokens": costs.thinking_tokens,
        "cached_tokens": costs.cached_tokens,
        "dollars": None if costs.dollars_unknown else costs.dollars,
        "dollars_known": costs.dollars,
        "dollars_charged": costs.charged,
        "sent_now": counts.asked,
        "failures": dict(costs.failures),
        "lost": costs.lost,
        "states": dict(label_set.counts()),
        "declined": dict(asker.declined),
        "corrections": label_set.counts()["human"],
        "coverage": label_set.coverage,
        "nothing_to_ask": asker.nothing_to_ask,
        "planned": expected.to_record(),
        "pilot": trial.to_record() if trial else None,
        "stopped": stopped,
        "seconds": time.monotonic() - began,
        "fingerprint": label_set.fingerprint,
    }
    run.finish(path, Manifest(as_record(replace(config, store=store.name)), {"dataset": dataset.fingerprint}, results))
    askable = 1.0 - asker.nothing_to_ask / max(len(label_set.labels), 1)
    votes = {repeat: sorted(found, key=in_order) for repeat, found in sorted(asker.votes.items())}
    return Labelled(path, label_set, results, label_set.coverage >= config.min_coverage * askable, stopped, votes)


Settings = TypeVar("Settings", bound=Config)


def with_kind(config: Settings, method: Method) -> Settings:
    """The settings of a command whose samples are of the kind that the method wants to be shown. Raises UsageError for settings of the
    sampling that mean nothing there."""
    return replace(config, sampling=replace(config.sampling, kind=method.samples))


def selection_of(config: Config, dataset: Dataset) -> samples.Selection:
    """How many windows there are. Raises DatasetError if there is none."""
    selection = samples.survey(dataset, config.sampling)
    if not selection.samples:
        cure = "Use --unit episode, or choose other episodes." if selection.without_spans else "Look at it with: guerdon check DATASET"
        raise DatasetError("there is nothing to label", where=str(dataset.path), cure=cure)
    return selection


def planned_for(config: Config, windows: Iterable[Sample], method: Method) -> reckoning.Planned:
    """What asking about the windows should take with all raters, each in its stage: to be held against what it took. Takes a few tenths of
    a second, for drawing pictures. Raises as `reckoning.read_rater` does."""
    asked = reckoning.asked_of(config.vlm, config.rater_settings, config.price)
    return planned_with(config, reckoning.draw(windows, method), asked)


def planned_with(
    config: Config, drawn: reckoning.Drawn, asked: Sequence[reckoning.Asked], *, seconds_per_request: float = reckoning.SECONDS_PER_REQUEST
) -> reckoning.Planned:
    """What the windows drawn should take with the settings of a command."""
    return reckoning.planned(
        drawn,
        asked,
        repeats=config.repeats,
        pilot=config.pilot,
        concurrency=config.concurrency,
        seconds_per_request=seconds_per_request,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
    )


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


def make_rater(spec: str, dataset: Dataset, settings: Mapping[str, Any], unit: Unit = "episode") -> Provider:
    """The rater that a `--vlm` text names, for samples of a `unit` (see `samples.Config`). Raises UnknownName, UsageError, ProviderError or
    MissingExtra."""
    truth = truth_of(dataset, unit)
    return raters.build(
        spec, config=settings.get(raters.provider_of(spec)), truth=truth.contributions, qualities=truth.qualities, truth_id=truth.id,
        world=dataset.environment,
    )  # fmt: skip


def chosen_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The Configs that differ from their defaults: a preset such as `scripted:perfect` stands unless settings are given."""
    return {name: config for name, config in settings.items() if config != type(config)()}


Table = Callable[[Subject], npt.NDArray[np.floating[Any]]]
Unit = Literal["episode", "subtask"]


@dataclass(frozen=True)
class Truth:
    """Ground truth for scripted raters. A table is None if the dataset says nothing of it."""

    contributions: Table | None
    """Whether each transition of a subject serves (+1), does not matter (0) or hinders (-1)."""
    qualities: Table | None
    """How far the instruction is fulfilled at each observation of a subject, in [0, 1]."""
    id: str | None
    """What tells these tables from others."""


def truth_of(dataset: Dataset, unit: Unit = "episode") -> Truth:
    """What a dataset knows. With the unit "subtask", qualities are those of the sub-task that a subject lies in. Nothing serves, and
    nothing fulfils, words that are none of the episode's (annotation -1)."""
    known = dataset.privileged(0) if len(dataset) else {}
    contributions = _contributions(dataset) if "contribution" in known else None
    fulfilled = _qualities(dataset, unit) if len(dataset) and qualities(dataset, 0) is not None else None
    by_subtask = " by sub-task" if fulfilled is not None and unit == "subtask" else ""
    return Truth(contributions, fulfilled, None if contributions is fulfilled is None else dataset.fingerprint + by_subtask)


def _contributions(dataset: Dataset) -> Table:
    @lru_cache(maxsize=64)  # every window of an episode asks twice
    def contribution(episode: int) -> npt.NDArray[np.floating[Any]]:
        return dataset.privileged(episode)["contribution"]

    def truth(subject: Subject) -> npt.NDArray[np.floating[Any]]:
        if subject.annotation < 0:
            return np.zeros(subject.stop - subject.start)
        return contribution(subject.episode)[subject.start : subject.stop]

    return truth


def _qualities(dataset: Dataset, unit: Unit) -> Table:
    @lru_cache(maxsize=1024)  # the two of a pair come from anywhere
    def of(episode: int, span: Span | None) -> npt.NDArray[np.floating[Any]]:
        found = qualities(dataset, episode, span)
        if found is None:
            raise LookupError(f"nothing is known of episode {episode}")
        return found

    def truth(subject: Subject) -> npt.NDArray[np.floating[Any]]:
        if subject.annotation < 0:
            return np.zeros(subject.stop - subject.start + 1)
        span = _span_of(dataset, subject) if unit == "subtask" else None
        return of(subject.episode, span)[subject.start : subject.stop + 1]

    return truth


def _span_of(dataset: Dataset, subject: Subject) -> Span:
    """The sub-task that a subject lies in; a picture belongs to the one that led to it. Raises LookupError if there is none."""
    first = min(subject.start, subject.stop - 1)
    annotations = dataset.episode(subject.episode).annotations
    own = annotations[subject.annotation : subject.annotation + 1]
    for annotation in (*own, *annotations):  # the second one of a pair may have its words from another annotation
        for span in annotation.spans:
            if span.start <= first and subject.stop <= span.stop:
                return span
    raise LookupError(f"no sub-task of episode {subject.episode} holds {subject.start} to {subject.stop}")


class _Asker:
    """Asks with the settings of one command."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        method: Method,
        providers: Sequence[Provider],
        store: Store,
        run: str,
        expected: reckoning.Planned,
    ) -> None:
        self._config, self._dataset, self._method, self._providers, self._store, self._run = config, dataset, method, providers, store, run
        self._expected = expected
        self.nothing_to_ask = 0
        """Labels of which the method had nothing to ask, such as a pair that looks the same."""
        self.declined: Counter[str] = Counter()
        """Why a rater could not answer ("unsupported"), in its own words, and how many conversations ended so."""
        self.votes: dict[int, list[Label]] = {}
        """Labels of each repeat, if they are to be kept."""

    def close(self) -> None:
        """Gives the raters' connections back."""

        async def close_all() -> None:
            for provider in self._providers:
                await provider.close()

        run_sync(close_all())

    def pilot(self, total: int) -> Pilot:
        """A trial of a few windows. Raises BadPilot unless forced."""
        config = self._config
        chosen = replace(config.sampling, sample=min(config.pilot, total), fraction=1.0)
        right = list(samples.select(self._dataset, chosen))
        wrong = wrong_instructions(right, self._dataset, instruction=config.pilot_instruction, seed=config.sampling.seed)
        # Both in one go and each wrong one beside its right one, so that a rater that changes from hour to hour does so for both.
        both = sorted([*right, *wrong], key=lambda sample: (sample.segment.episode, sample.segment.start))
        heard: list[Transcript] = []
        with watching("pilot", len(both), quiet=config.quiet, log=config.log_json, begin={"pilot": True}) as watch:
            try:
                self._run_through(self._live(both, watch, repeats=1), heard.append)
            except InBatches:
                if not config.batch:
                    raise
                # Collected when the pilot is over: it is judged by the others.
        found = judge(
            self._method,
            [transcript for transcript in heard if transcript.sample.annotation >= 0],
            [transcript for transcript in heard if transcript.sample.annotation < 0],
            total * config.repeats,
            judged=config.sampling.judged,
        )
        if found.problems and not config.force:
            cure = "Look at the replies (guerdon store), change the prompt, the pictures or the rater; --force goes on all the same."
            raise BadPilot(f"the pilot of {found.windows} {found.judged} is bad: {'; '.join(found.problems)}", cure=cure)
        return found

    def ask_all(self, total: int) -> tuple[list[Label], Progress, str]:
        """Labels of all windows, what it took, and why not all were asked (empty if they were)."""
        config = self._config
        windows = samples.select(self._dataset, config.sampling)
        answers: dict[Subject, list[tuple[int, list[Label]]]] = {}
        description = f"asking {', '.join(config.vlm)}"
        stopped = ""

        def keep(transcript: Transcript) -> None:
            found = self._method.read(transcript)
            if transcript.failure and transcript.failure.cause == "unsupported":
                self.declined[transcript.failure.code or "no reason given"] += 1
            self.nothing_to_ask += 0 if transcript.exchanges or transcript.sample.subject in answers else len(found)
            answers.setdefault(transcript.sample.subject, []).append((transcript.repeat, found))
            if config.keep_votes:
                self.votes.setdefault(transcript.repeat, []).extend(found)

        with watching(
            description, total * config.repeats, quiet=config.quiet, note=self._note(), log=config.log_json,
            begin={"planned": self._expected.to_record()},
        ) as watch:  # fmt: skip
            conversations = self._queued(windows, watch) if config.batch else self._live(windows, watch, repeats=config.repeats)
            try:
                self._run_through(conversations, keep)
            except (CeilingReached, InBatches) as reached:
                stopped = f"{reached.what}. {reached.cure}"
            counts = watch.latest
        labels: list[Label] = []
        if sum(map(len, answers.values())) < total * config.repeats:
            stopped = stopped or _under_way(counts)
            labels += self._skipped(answers)
        while answers:  # a large dataset's labels are not to lie in memory twice
            # By the number of the answer, not by when it came: what is told of a vote must not depend on that.
            in_turn = [found for _, found in sorted(answers.popitem()[1], key=itemgetter(0))]
            labels += vote(in_turn, self._method.vote, scale=self._method.scale)
        return labels, counts, stopped

    def _note(self) -> str:
        """What is planned, in words."""
        dollars = self._expected.batch_dollars if self._config.batch else self._expected.dollars
        price = "at an unknown price" if dollars is None else f"about {money(dollars)}"
        ceiling = "" if self._config.max_cost is None else f"; never more than {money(self._config.max_cost)}"
        return f"planned: {self._expected.requests:,} requests, {price}{ceiling}"

    def _skipped(self, answered: Container[Subject]) -> Iterator[Label]:
        """Labels without a value for the windows that nobody was asked about."""
        for sample in samples.select(self._dataset, self._config.sampling):
            if sample.subject not in answered:
                yield from (replace(label, cause=None) for label in self._method.read(Transcript(sample, ())))

    def _live(self, windows: Iterable[Sample], watch: Watch, *, repeats: int) -> AsyncIterator[Transcript]:
        config = self._config
        limits = Limits(
            requests_per_minute=config.requests_per_minute, tokens_per_minute=config.tokens_per_minute, patience=config.patience
        )
        return ask(
            windows, self._method, self._providers, self._store, run=self._run, concurrency=config.concurrency, repeats=repeats,
            retry_failed=config.retry_failed, ceiling=config.max_cost, limits=limits, on_event=watch,
        )  # fmt: skip

    def _queued(self, windows: Iterable[Sample], watch: Watch) -> AsyncIterator[Transcript]:
        config = self._config
        return ask_in_batches(
            windows, self._method, self._providers, self._store, run=self._run, repeats=config.repeats,
            retry_failed=config.retry_failed, retry_lost=config.retry_lost, ceiling=config.max_cost, largest=config.batch_size,
            wait=config.wait, on_event=watch,
        )  # fmt: skip

    @staticmethod
    def _run_through(conversations: AsyncIterator[Transcript], keep: Callable[[Transcript], None]) -> None:
        async def listen() -> None:
            try:
                async for transcript in conversations:
                    keep(transcript)
            finally:
                await conversations.aclose()  # type: ignore[attr-defined]

        run_sync(listen())


def _under_way(state: Progress) -> str:
    """Why batches have not ended."""
    if state.in_flight:
        return f"{state.in_flight:,} requests lie with the vendor; the same command collects the answers"
    return "nothing lies with the vendor: it cannot be reached, or another process is at work. The same command goes on from here"


def _printable(path: Path) -> str:
    """Paths are bytes, not text."""
    return str(path.resolve()).encode("utf-8", "backslashreplace").decode()


def _meaning(method: Method, providers: Sequence[Provider], dataset: Dataset) -> dict[str, Any]:
    classes = getattr(method, "classes", ())
    return {
        "method": method.name,
        "version": method.version,
        "scale": list(method.scale),
        **({"levels": list(classes)} if classes else {}),
        "rater": " then ".join(provider.rater.name for provider in providers),
        "rater_settings": [dict(provider.rater.settings) for provider in providers],
        "dataset": dataset.fingerprint,
    }
