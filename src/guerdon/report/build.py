"""From a run folder to `report.html`: one page that needs nothing else, made from what the run recorded.

Reads the manifests, label sets and evaluation rows of a run, and its dataset for pictures and ground truth if that is still there. Writes
RUN/report.html and nothing else. The page holds its style, figures and pictures in itself and asks no server for anything. Every text from
the run is escaped. What is missing is said to be missing: a run with labels only has a report too.

`contents` reads, `results` and `examples` compute and choose, this module gathers the sections, `template.html.j2` lays them out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from guerdon.datasets import open_dataset
from guerdon.errors import GuerdonError
from guerdon.evaluation.raters import NOT_TABLE_ONE, RaterQuality, measure
from guerdon.evaluation.ratings import RatingQuality, holds_ratings, measure_ratings
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.report import figures
from guerdon.report.contents import Contents, Part, Rollout, mapping, number, read_contents, stale_parts, text
from guerdon.report.examples import Example, data_uri, examples, outcome
from guerdon.report.models import GivenRewards, ModelSection
from guerdon.report.rated import Rated, class_counts, rated_examples
from guerdon.report.results import RANDOM, STARTS, Results, sentences
from guerdon.runs import package_version, writing

_ROLLOUT_ARMS, _ROLLOUTS_PER_ARM, _ROLLOUT_BYTES = 4, 3, 8_000_000


def build(run: Path, *, dataset: Dataset | None = None) -> Path:
    """Writes RUN/report.html and returns its path.

    Args:
        run: the run folder.
        dataset: the run's dataset, if it is open already; otherwise it is opened from where the run says it lies.

    Raises:
        RunError: if `run` is no run folder.
        WriteFailed: if the page cannot be written.
    """
    contents = read_contents(Path(run))
    dataset, problem = (dataset, "") if dataset is not None else _open(contents)
    page = render(contents, dataset, [problem] if problem else [])
    path = contents.run.path / "report.html"
    with writing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def render(contents: Contents, dataset: Dataset | None, problems: Sequence[str] = ()) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("guerdon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"estimate": figures.spoken, "count": _count, "percent": _percent, "duration": _duration, "dollars": _dollars}
    results, raters, given = Results.of(contents), RaterSection.all_of(contents, dataset), GivenRewards.all_of(contents, dataset)
    unmeasured = [problem for problem in (*(each.problem for each in raters), *(each.problem for each in given)) if problem]
    return environment.get_template("template.html.j2").render(
        contents=contents,
        results=results,
        raters=raters,
        lead=[*sentences(results), *_lead_raters(raters), *_lead_models(given), *_lead_cost(contents)],
        scripted=[rater.name for rater in raters if rater.by("scripted")],
        embedded=[rater.name for rater in raters if rater.by("embedded")],
        shown=_examples(contents, dataset),
        rated=_rated(contents, dataset),
        models=ModelSection.all_of(contents),
        given=given,
        rollouts=_rollouts(contents.rollouts, results),
        costs=_costs(contents),
        findings=_findings(contents),
        provenance=_provenance(contents, dataset),
        dataset=dataset,
        problems=[*problems, *contents.problems, *stale_parts(contents), *results.problems, *unmeasured],
        starts=STARTS,
        not_table_one=NOT_TABLE_ONE,
        version=package_version(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _open(contents: Contents) -> tuple[Dataset | None, str]:
    """The run's dataset, or None and the reason."""
    run = contents.run
    try:
        dataset = open_dataset(run.dataset_path, **run.dataset_options)
        changed = dataset.fingerprint != run.dataset_fingerprint
    except GuerdonError as error:
        return None, f"The dataset cannot be read, so there is no ground truth and there are no pictures: {error}"
    if changed:
        return None, f"The dataset at {run.dataset_path} has changed since this run began, so its ground truth and pictures are not used."
    return dataset, ""


# --- raters ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RaterSection:
    """A label set and how good it is."""

    part: Part
    label_set: LabelSet
    quality: RaterQuality | None
    """None without a dataset to compare with."""
    problem: str = ""
    ratings: RatingQuality | None = None
    """Of a label set of ratings or preferences, which has no `quality`."""

    @classmethod
    def all_of(cls, contents: Contents, dataset: Dataset | None) -> list[RaterSection]:
        """One for each label set."""
        return [cls._of(part, labels, contents, dataset) for part, labels in contents.labels.values()]

    @classmethod
    def _of(cls, part: Part, labels: LabelSet, contents: Contents, dataset: Dataset | None) -> RaterSection:
        """Measures the rater's own labels: a person corrects those that are wrong, and without them the rater would look too good."""
        try:
            own = contents.by_machine(part, labels)
            if dataset is None:
                return cls(part, labels, None)
            if holds_ratings(labels):
                return cls(part, labels, None, ratings=measure_ratings(own, dataset))
            return cls(part, labels, measure(own, dataset))
        except GuerdonError as error:
            return cls(part, labels, None, f"The quality of the labels '{part.name}' cannot be measured: {error}")

    @property
    def name(self) -> str:
        """Name of the rater."""
        return str(self.label_set.metadata.get("rater", "unknown"))

    @property
    def is_rated(self) -> bool:
        """Whether it holds ratings or preferences, not scores."""
        return holds_ratings(self.label_set)

    @property
    def classes(self) -> list[tuple[str, int]]:
        """How many labels carry each class, or each verdict on a pair."""
        return class_counts(self.label_set.labels, [str(name) for name in self.label_set.metadata.get("levels") or ()])

    def by(self, provider: str) -> bool:
        """Whether a rater of this provider took part."""
        return any(word.split(":")[0] == provider for word in self.name.split())

    @property
    def outcomes(self) -> list[tuple[str, int]]:
        """Labels by state, those without a value with their cause; the most frequent first."""
        counts = Counter(outcome(label) for label in self.label_set.labels)
        return counts.most_common()

    def histogram(self) -> Markup:
        """Figure: scores by ground truth."""
        counts = self.quality.score_counts if self.quality else {}
        return figures.histogram(
            counts, self.label_set.scale, axis="score", description=f"Scores of {self.name} by ground truth, as shares of each kind"
        )


# --- what it all comes to -------------------------------------------------------------------------------------------------------------


def _lead_raters(raters: Sequence[RaterSection]) -> Iterator[str]:
    for rater in raters:
        quality = rater.quality
        if rater.is_rated:
            yield _lead_ratings(rater)
            continue
        if quality is None or quality.agreement is None or quality.agreement.balanced_accuracy is None:
            yield f"The rater {rater.name} gave a usable score for {rater.label_set.coverage:.1%} of the transitions asked about."
            continue
        guesses = [each.balanced_accuracy.value for each in quality.baselines if each.balanced_accuracy]
        beside = f"; guessing from the actions alone reaches {max(guesses):.2f}" if guesses else ""
        yield (
            f"The rater {rater.name} scored {quality.coverage:.1%} of the transitions, with a balanced accuracy of "
            f"{figures.spoken(quality.agreement.balanced_accuracy)} against ground truth (0.50 is chance{beside})."
        )


def _lead_ratings(rater: RaterSection) -> str:
    labels, quality = rater.label_set, rater.ratings
    kind = "preference" if quality is not None and quality.unit == "pair" else "rating"
    usable = f"The rater {rater.name} gave a usable {kind} for {labels.coverage:.1%} of the {len(labels.labels):,} things asked about"
    if quality is None or quality.balanced_accuracy is None:
        return f"{usable}."
    if quality.agreement is not None:
        return f"{usable}; where it prefers one, it is the truly better one with a probability of {figures.spoken(quality.agreement)}."
    order = f" and a rank correlation of {figures.spoken(quality.spearman)} with the true quality" if quality.spearman else ""
    return f"{usable}, with a balanced accuracy of {figures.spoken(quality.balanced_accuracy)} over the true classes{order}."


def _lead_models(given: Sequence[GivenRewards]) -> Iterator[str]:
    for rewards in given:
        if rewards.spearman is not None:
            yield (
                f"The rewards “{rewards.name}” of a reward model follow the true {rewards.truth} with a rank correlation of "
                f"{figures.spoken(rewards.spearman)} over {rewards.transitions:,} transitions."
            )


def _lead_cost(contents: Contents) -> Iterator[str]:
    last = _last_ledger(contents)
    if last is None:
        return
    dollars = number(last.results.get("dollars"))
    money = "; no price is known for them" if dollars is None else f" and cost {_dollars(dollars)}"
    yield f"Labelling sent {_count(number(last.results.get('requests')) or 0)} requests{money}."


def _last_ledger(contents: Contents) -> Part | None:
    """The label set that was made last: each one's sums are those of the whole run until then."""
    asked = [part for part, _ in contents.labels.values() if number(part.results.get("requests")) is not None]
    return max(asked, key=lambda part: number(part.results.get("requests")) or 0, default=None)


# --- examples, rollouts, costs, checks, provenance ------------------------------------------------------------------------------------


def _examples(contents: Contents, dataset: Dataset | None) -> list[Example]:
    """Windows of the label set that says most in words, of those that hold scores."""
    scored = [item for item in contents.labels.values() if not holds_ratings(item[1])]
    if dataset is None or not scored:
        return []
    talkative = max(scored, key=lambda item: sum(bool(label.rationale) for label in item[1].labels))
    low, high = talkative[1].scale
    return examples(talkative[1], dataset) if low < high else []


def _rated(contents: Contents, dataset: Dataset | None) -> list[tuple[str, list[Rated]]]:
    """What was rated, for each label set of ratings or preferences."""
    sets = {name: labels for name, (_, labels) in contents.labels.items() if holds_ratings(labels)}
    return [] if dataset is None else [(name, rated_examples(labels, dataset)) for name, labels in sets.items()]


@dataclass(frozen=True)
class ShownRollout:
    """A rollout with its moving picture."""

    rollout: Rollout
    picture: str
    """GIF as data URI."""


def _rollouts(rollouts: Sequence[Rollout], results: Results) -> list[ShownRollout]:
    """A few rollouts of the first trained arms and of the random policy, on the same tasks where these were recorded."""
    recorded = {rollout.arm for rollout in rollouts}
    order = [arm.name for arm in results.arms if arm.name in recorded] or sorted(recorded)
    if results.headline is not None and results.headline.name in order:
        order = [results.headline.name, *(name for name in order if name != results.headline.name)]
    arms = [*order[: _ROLLOUT_ARMS - 1], *(name for name in order[_ROLLOUT_ARMS - 1 :] if name == RANDOM)]
    shown: list[ShownRollout] = []
    room = _ROLLOUT_BYTES
    for rollout in (each for arm in arms for each in _spread([r for r in rollouts if r.arm == arm])):
        data = rollout.path.read_bytes()
        room -= len(data)
        if room >= 0:
            shown.append(ShownRollout(rollout, data_uri(data, "image/gif")))
    return shown


def _spread(rollouts: Sequence[Rollout]) -> list[Rollout]:
    ordered = sorted(rollouts, key=lambda each: (each.start, each.length, each.task, str(each.path)))
    count = min(_ROLLOUTS_PER_ARM, len(ordered))
    return [ordered[int((place + 0.5) * len(ordered) / count)] for place in range(count)]


@dataclass(frozen=True)
class Cost:
    """A line of the table of costs; None is unknown or does not apply."""

    stage: str
    name: str
    seconds: float | None
    requests: float | None = None
    found: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    dollars: float | None = None
    asked: bool = False
    """Whether a rater was asked, so that a missing price is an unknown one."""


def _costs(contents: Contents) -> list[Cost]:
    last = _last_ledger(contents)
    several = len(contents.labels) > 1
    labelling = [
        Cost("labels", part.name, part.seconds, asked=not several, **_ledger(part, ("found",) if several else _LEDGER))
        for part, _ in contents.labels.values()
    ]
    if several and last is not None:
        labelling.append(Cost("labels", "all of this run", None, asked=True, **_ledger(last, _LEDGER[:1] + _LEDGER[2:])))
    groups = (("training", contents.policies), ("evaluation", contents.evaluations))
    computing = [
        Cost(stage, f"{arm} ({len(parts)} {'seed' if len(parts) == 1 else 'seeds'})", _total(part.seconds for part in parts))
        for stage, group in groups
        for arm, parts in group.items()
    ]
    return labelling + computing


_LEDGER = ("requests", "found", "input_tokens", "output_tokens", "dollars")


def _ledger(part: Part, names: Sequence[str]) -> dict[str, Any]:
    return {name: number(part.results.get(name)) for name in names}


def _total(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class RewardChecks:
    """A reward column and what was seen in it."""

    name: str
    expression: str
    coverage: float | None
    mean: float | None
    low: float | None
    high: float | None
    findings: tuple[Mapping[str, str], ...]


def _findings(contents: Contents) -> list[RewardChecks]:
    return [_checks(part) for part in contents.rewards.values()]


def _checks(part: Part) -> RewardChecks:
    found = part.results.get("findings")
    items = [mapping(item) for item in found] if isinstance(found, list) else []
    findings = tuple({key: text(item.get(key)) for key in ("severity", "name", "message")} for item in items)
    coverage, mean, low, high = (number(part.results.get(name)) for name in ("coverage", "mean", "min", "max"))
    return RewardChecks(part.name, text(part.config.get("expression")), coverage, mean, low, high, findings)


@dataclass(frozen=True)
class Provenance:
    """Where everything on the page comes from."""

    facts: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    manifests: tuple[tuple[str, str], ...]
    """(place, JSON) of every part."""


def _provenance(contents: Contents, dataset: Dataset | None) -> Provenance:
    run, parts = contents.run, list(contents.parts)
    seeds = {arm: [part.name.removeprefix("seed-") for part in found] for arm, found in contents.policies.items()}
    facts = [
        ("run folder", str(run.path)),
        ("dataset", str(run.dataset_path)),
        ("dataset fingerprint", run.dataset_fingerprint),
        ("dataset options", json.dumps(run.dataset_options) if run.dataset_options else ""),
        ("episodes", "" if dataset is None else f"{len(dataset):,}"),
        *((f"labels “{name}”", _label_facts(labels)) for name, (_, labels) in contents.labels.items()),
        *((f"reward “{name}”", text(part.config.get("expression"))) for name, part in contents.rewards.items()),
        *((f"seeds of “{arm}”", ", ".join(numbers)) for arm, numbers in seeds.items()),
        ("task list", "" if contents.tasks is None else f"{len(contents.tasks)} tasks, {contents.tasks.digest}"),
        *((name, ", ".join(_distinct(parts, name))) for name in ("guerdon", "python", "machine")),
    ]
    manifests = [(part.place, _json(part)) for part in parts]
    return Provenance(tuple((name, value) for name, value in facts if value), tuple(_distinct(parts, "command")), tuple(manifests))


def _label_facts(labels: LabelSet) -> str:
    meaning = labels.metadata
    low, high = labels.scale
    return (
        f"method {meaning.get('method', 'unknown')}, version of method and prompt {meaning.get('version', 'unknown')}, "
        f"scale {low:g} to {high:g}, rater {meaning.get('rater', 'unknown')}"
    )


def _distinct(parts: Sequence[Part], name: str) -> list[str]:
    values = [part.provenance.get(name) for part in parts]
    written = [" ".join(map(str, value)) if isinstance(value, list) else text(value) for value in values]
    return [value for value in dict.fromkeys(written) if value]


def _json(part: Part) -> str:
    record = {name: dict(getattr(part, name)) for name in ("config", "inputs", "results", "provenance")}
    return json.dumps(record, indent=2, ensure_ascii=False)


# --- words for numbers ----------------------------------------------------------------------------------------------------------------


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _dollars(value: float | None) -> str:
    return "no price known" if value is None else f"${value:,.2f}" if value >= 0.01 or value == 0 else f"${value:.4f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
