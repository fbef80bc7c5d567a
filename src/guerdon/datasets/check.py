"""What is in a dataset, and what is wrong with it, before anything is paid for or trained.

`check` reads a whole dataset once, a block of pictures at a time, and goes on after each problem: one damaged episode does not hide the
next. An "error" makes the episode unfit for labelling or training; a "warning" is worth a look. `render` turns the result into text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from guerdon.errors import DatasetError
from guerdon.interfaces import Dataset
from guerdon.records import Annotation, EpisodeInfo, array_digest, digest

_ROUNDING = 1e-6
"""By how much an action may leave its bounds: single precision."""
_BLOCK = 64
"""Pictures in memory at a time."""


@runtime_checkable
class Audited(Protocol):
    """A dataset whose format knows of more that can be odd."""

    def audit(self, index: int) -> Iterator[tuple[int | None, str]]:
        """Oddities of an episode: (step or None, what is odd)."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    severity: Literal["error", "warning"]
    kind: str
    """Short name, the same for all problems of a sort, e.g. "no-instruction"."""
    what: str
    where: str
    """File, episode and step, in words."""
    cure: str = ""
    episode: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class Contents:
    """What a dataset holds. Numbers count readable episodes only."""

    path: str
    fingerprint: str
    environment: Mapping[str, Any]
    episodes: int
    transitions: int
    lengths: tuple[int, float, int]
    """Shortest, median and longest episode, in transitions."""
    views: Mapping[str, tuple[tuple[int, int], ...]]
    """View -> sizes (H, W) that occur."""
    vectors: Mapping[str, tuple[tuple[float, float], ...]]
    """Vector -> lowest and highest value of each component."""
    actions: Mapping[str, int]
    """How often each discrete action was taken; empty for continuous actions."""
    action_ranges: tuple[tuple[float, float], ...]
    """Lowest and highest value of each component of continuous actions; empty for discrete ones."""
    instructions: int
    """Distinct whole instructions."""
    annotations: int
    subtasks: int
    """Spans of sub-tasks."""
    subtask_instructions: int
    """Distinct words for sub-tasks."""
    terminated: int
    truncated: int
    rewards: tuple[float, float]
    """Lowest and highest."""
    rewarded: int
    """Transitions with a reward other than zero."""
    privileged: tuple[str, ...]
    """Ground truth that is present."""


@dataclass(frozen=True)
class Findings:
    """What is in a dataset and what is wrong with it."""

    contents: Contents
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        """Number of problems of severity "error"."""
        return sum(problem.severity == "error" for problem in self.problems)

    def to_record(self) -> dict[str, Any]:
        """The findings as JSON-ready data."""
        return asdict(self)


_Range = tuple[npt.NDArray[Any], npt.NDArray[Any]]
"""Lowest and highest value of each component."""


def _widened(known: _Range | None, values: npt.NDArray[Any]) -> _Range:
    """The range of `values` (N, D) and those before."""
    low, high = values.min(axis=0), values.max(axis=0)
    return (low, high) if known is None else (np.minimum(low, known[0]), np.maximum(high, known[1]))


def _pairs(found: _Range | None) -> tuple[tuple[float, float], ...]:
    return () if found is None else tuple(zip(found[0].tolist(), found[1].tolist(), strict=True))


@dataclass
class _Tally:
    """What is counted on the way through the episodes."""

    lengths: list[int] = field(default_factory=list)
    sizes: dict[str, set[tuple[int, int]]] = field(default_factory=dict)
    actions: Counter[int] = field(default_factory=Counter)
    action_range: _Range | None = None
    vectors: dict[str, _Range] = field(default_factory=dict)
    instructions: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    annotations: int = 0
    subtasks: int = 0
    terminated: int = 0
    truncated: int = 0
    rewards: list[tuple[float, float]] = field(default_factory=list)
    rewarded: int = 0
    privileged: set[str] = field(default_factory=set)
    seen: dict[str, int] = field(default_factory=dict)
    """Digest of an episode -> the first episode that has it."""

    def add_info(self, info: EpisodeInfo) -> None:
        self.lengths.append(info.length)
        self.annotations += len(info.annotations)
        self.instructions |= {annotation.instruction for annotation in info.annotations}
        spans = [span for annotation in info.annotations for span in annotation.spans]
        self.subtasks += len(spans)
        self.words |= {span.text for span in spans}
        self.terminated += info.terminated
        self.truncated += info.truncated

    def add_actions(self, actions: npt.NDArray[Any]) -> None:
        if actions.ndim == 1:
            self.actions.update(actions.tolist())
        elif len(actions):
            self.action_range = _widened(self.action_range, actions)

    def add_vector(self, name: str, values: npt.NDArray[Any]) -> None:
        self.vectors[name] = _widened(self.vectors.get(name), values)

    def add_rewards(self, rewards: npt.NDArray[Any]) -> None:
        if len(rewards):
            self.rewards.append((float(rewards.min()), float(rewards.max())))
            self.rewarded += int(np.count_nonzero(rewards))


def check(dataset: Dataset, *, pictures: bool = True, progress: Callable[[int, int], None] | None = None) -> Findings:
    """Reads `dataset` and reports what is in it and what is wrong with it.

    Args:
        dataset: any format.
        pictures: also read every picture; without them sizes, flat and repeated pictures and duplicate episodes are not looked at.
        progress: called with (episodes done, episodes) after each episode.
    """
    tally = _Tally()
    problems: list[Problem] = []
    for index in range(len(dataset)):
        try:
            problems += _check_episode(dataset, index, tally, pictures=pictures)
        except DatasetError as error:
            problems.append(Problem("error", "unreadable", error.what, error.where or _where(dataset, index), error.cure, index))
        if progress:
            progress(index + 1, len(dataset))
    return Findings(_contents(dataset, tally), (*problems, *_check_whole(dataset, tally)))


def _where(dataset: Dataset, index: int, step: int | None = None) -> str:
    return f"{dataset.path}, episode {index}" + ("" if step is None else f", step {step}")


def _check_episode(dataset: Dataset, index: int, tally: _Tally, *, pictures: bool) -> Iterator[Problem]:
    info = dataset.episode(index)
    if info.length == 0:
        what = "has no transitions"
        yield Problem("error", "empty-episode", what, _where(dataset, index), "Nothing of it is labelled; record it again.", index)
        return
    tally.add_info(info)
    actions = dataset.actions(index)
    tally.add_actions(actions)
    tally.add_rewards(dataset.rewards(index))
    tally.privileged |= dataset.privileged(index).keys()
    yield from _check_ending(dataset, info)
    for annotation in info.annotations:
        yield from _check_annotation(dataset, info, annotation)
    if isinstance(dataset, Audited):
        for step, what in dataset.audit(index):
            yield Problem("warning", "odd-values", what, _where(dataset, index, step), "", index, step)
    content = [array_digest(actions), *(annotation.instruction for annotation in info.annotations)]
    for name in dataset.vectors:
        try:
            values = dataset.vector(index, name)
        except DatasetError as error:  # labelling needs none of them
            cure = error.cure or "Do not train on this vector, or record it again."
            yield Problem("warning", "bad-vector", error.what, error.where or _where(dataset, index), cure, index)
            continue
        tally.add_vector(name, values)
        content.append(array_digest(values))
    if pictures:
        for view in dataset.views:
            problem, identity = _check_view(dataset, info, view, tally)
            content.append(identity)
            yield from problem
        first = tally.seen.setdefault(digest(*content), index)
        if first != index:
            what = f"is the same as episode {first}"
            yield Problem("warning", "duplicate-episode", what, _where(dataset, index), "Keep one of them.", index)


def _check_ending(dataset: Dataset, info: EpisodeInfo) -> Iterator[Problem]:
    where = _where(dataset, info.index, info.length - 1)
    if info.terminated and info.truncated:
        what, cure = "is both terminated and truncated", "Say whether the task was finished (terminated) or recording stopped (truncated)."
    elif not (info.terminated or info.truncated):
        what, cure = "is neither terminated nor truncated at its end", "It is treated as truncated: its last value is bootstrapped."
    else:
        return
    yield Problem("warning", "unclear-ending", what, where, cure, info.index, info.length - 1)


def _check_annotation(dataset: Dataset, info: EpisodeInfo, annotation: Annotation) -> Iterator[Problem]:
    where = _where(dataset, info.index)
    texts = [("instruction", annotation.instruction), *((f"sub-task [{s.start}, {s.stop})", s.text) for s in annotation.spans)]
    for noun, text in texts:
        if not text.strip():
            cure = "Give one with --instruction, or name another text with --instruction-key."
            yield Problem("error", "no-instruction", f"its {noun} has no words", where, cure, info.index)
    reached = 0
    for span in sorted(annotation.spans, key=lambda span: (span.start, span.stop)):
        place = _where(dataset, info.index, span.start)
        what = f"the sub-task '{span.text}' [{span.start}, {span.stop})"
        if span.start == span.stop:
            yield Problem("warning", "empty-span", f"{what} holds no transition", place, "", info.index, span.start)
        elif span.start < reached:
            cure = "Transitions may belong to one sub-task only."
            yield Problem("error", "overlapping-spans", f"{what} begins before the one before it ends", place, cure, info.index, span.start)
        elif span.start > reached:
            yield _gap(dataset, info, reached, span.start)
        reached = max(reached, span.stop)
    if annotation.spans and reached < info.length:
        yield _gap(dataset, info, reached, info.length)


def _gap(dataset: Dataset, info: EpisodeInfo, start: int, stop: int) -> Problem:
    what = f"transitions [{start}, {stop}) belong to no sub-task"
    cure = "They are left out when sub-tasks are labelled."
    return Problem("warning", "gap-between-spans", what, _where(dataset, info.index, start), cure, info.index, start)


def _check_view(dataset: Dataset, info: EpisodeInfo, view: str, tally: _Tally) -> tuple[list[Problem], str]:
    """Problems of an episode's pictures in one view, and their digest."""
    first: npt.NDArray[Any] | None = None
    flat = still = True
    parts: list[str] = []
    for start in range(0, info.length + 1, _BLOCK):
        block = dataset.frames(info.index, view, start, min(start + _BLOCK, info.length + 1))
        first = block[0] if first is None else first
        tally.sizes.setdefault(view, set()).add((block.shape[1], block.shape[2]))
        flat = flat and bool((block == block[:, :1, :1]).all())
        still = still and bool((block == first).all())
        parts.append(array_digest(block))
    where = f"{_where(dataset, info.index)}, view '{view}'"
    problems = []
    if flat and first is not None:
        colour = "black" if not first.any() else "of one flat colour"
        cure = "Check the camera or the renderer, and record it again."
        problems.append(Problem("error", "flat-pictures", f"every picture is {colour}", where, cure, info.index))
    elif still:
        what = f"all {info.length + 1} pictures are the same"
        problems.append(Problem("warning", "still-pictures", what, where, "Nothing that happens can be seen in them.", info.index))
    return problems, digest(*parts)


def _check_whole(dataset: Dataset, tally: _Tally) -> Iterator[Problem]:
    for view, sizes in tally.sizes.items():
        if len(sizes) > 1:
            what = f"view '{view}' has pictures of {len(sizes)} sizes: {_sizes(tuple(sorted(sizes)))}"
            yield Problem("warning", "mixed-sizes", what, str(dataset.path), "A policy needs pictures of one size.")
    ranges = enumerate(_pairs(tally.action_range))
    outside = [f"component {number}: {low:.3g} to {high:.3g}" for number, (low, high) in ranges if max(-low, high) > 1 + _ROUNDING]
    if outside:
        what = f"continuous actions leave [-1, 1] ({'; '.join(outside)})"
        yield Problem("warning", "actions-outside", what, str(dataset.path), "Policies are not trained on them: scale or clip them first.")
    if not tally.lengths:
        yield Problem("error", "nothing-readable", "no episode can be read", str(dataset.path), "See the other problems.")


def _contents(dataset: Dataset, tally: _Tally) -> Contents:
    return Contents(
        path=str(dataset.path),
        fingerprint=dataset.fingerprint,
        environment=dataset.environment,
        episodes=len(dataset),
        transitions=sum(tally.lengths),
        lengths=(min(tally.lengths), float(np.median(tally.lengths)), max(tally.lengths)) if tally.lengths else (0, 0.0, 0),
        views={view: tuple(sorted(tally.sizes.get(view, ()))) for view in dataset.views},
        vectors={name: _pairs(tally.vectors.get(name)) for name in dataset.vectors},
        actions={name: tally.actions[number] for number, name in enumerate(dataset.action_names)},
        action_ranges=_pairs(tally.action_range),
        instructions=len(tally.instructions),
        annotations=tally.annotations,
        subtasks=tally.subtasks,
        subtask_instructions=len(tally.words),
        terminated=tally.terminated,
        truncated=tally.truncated,
        rewards=(min(low for low, _ in tally.rewards), max(high for _, high in tally.rewards)) if tally.rewards else (0.0, 0.0),
        rewarded=tally.rewarded,
        privileged=tuple(sorted(tally.privileged)),
    )


def _sizes(sizes: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(f"{width} x {height}" for height, width in sizes) or "not read"


def render(findings: Findings, *, examples: int = 3) -> str:
    """The findings as plain text; of each kind of problem at most `examples` are written out."""
    lines = [f"{name:<14}{value}" for name, value in _facts(findings.contents)]
    order = sorted(findings.problems, key=lambda problem: (problem.severity, problem.kind))
    for (severity, kind), group in groupby(order, key=lambda problem: (problem.severity, problem.kind)):
        alike = list(group)
        lines += ["", f"{severity} ({kind}), {len(alike)} time{'s' if len(alike) != 1 else ''}:"]
        lines += [f"  {problem.where}: {problem.what}" for problem in alike[:examples]]
        if len(alike) > examples:
            lines.append(f"  ... and {len(alike) - examples} more")
        lines += [f"  -> {cure}" for cure in dict.fromkeys(problem.cure for problem in alike) if cure]
    warnings = len(findings.problems) - findings.errors
    lines += ["", f"{findings.errors} errors, {warnings} warnings"]
    return "\n".join(lines)


def _range_of(ranges: tuple[tuple[float, float], ...]) -> str:
    if not ranges:
        return "not read"
    still = sum(low == high for low, high in ranges)
    varied = f", {still} of them constant" if still else ""
    return f"{len(ranges)} numbers from {min(low for low, _ in ranges):.3g} to {max(high for _, high in ranges):.3g}{varied}"


def _facts(contents: Contents) -> Iterator[tuple[str, str]]:
    shortest, median, longest = contents.lengths
    yield "dataset", contents.path
    yield "fingerprint", contents.fingerprint
    if contents.environment:
        yield "environment", str(contents.environment.get("name", "unnamed"))
    yield "episodes", f"{contents.episodes} ({contents.terminated} terminated, {contents.truncated} truncated)"
    yield "transitions", f"{contents.transitions} ({shortest} to {longest} an episode, median {median:g})"
    yield "views", "; ".join(f"{view} {_sizes(sizes)}" for view, sizes in contents.views.items()) or "none: a rater has nothing to look at"
    for name, ranges in contents.vectors.items():
        yield "vector", f"{name}, {_range_of(ranges)}"
    if contents.action_ranges:
        yield "actions", "; ".join(f"{low:.3g} to {high:.3g}" for low, high in contents.action_ranges)
    else:
        yield "actions", ", ".join(f"{name} {count}" for name, count in contents.actions.items())
    yield "instructions", f"{contents.instructions} distinct in {contents.annotations} annotations"
    yield "sub-tasks", f"{contents.subtasks} ({contents.subtask_instructions} distinct)" if contents.subtasks else "none marked"
    low, high = contents.rewards
    constant = f"always {low:g}" if low == high else f"{low:g} to {high:g}, not zero in {contents.rewarded} transitions"
    yield "rewards", constant
    yield "privileged", ", ".join(contents.privileged) or "none"
