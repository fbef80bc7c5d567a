"""From episodes to the things to be judged: windows of transitions with the words they are judged by.

A window holds `window` transitions and touches one observation more. Windows never cross episodes, nor, in the unit "subtask", the spans of
sub-tasks: there the rater judges a window by the words of its own sub-task. With `stride` equal to `window` every transition is judged
exactly once for each annotation. Reads the episodes' facts and actions; pictures are read when a sample's `frames` is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy.typing as npt

from guerdon.errors import DatasetError, UsageError
from guerdon.interfaces import Dataset
from guerdon.records import Annotation, EpisodeInfo, Frames, Sample, Segment, Span, digest


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which windows are judged."""

    window: int = 8
    """Transitions in a window (RG-VLM uses 8); a rater sees one picture more."""
    stride: int | None = None
    """Transitions from one window's start to the next one's; the size of the window if not given. A smaller stride overlaps windows."""
    unit: Literal["episode", "subtask"] = "episode"
    """What is cut into windows: the whole episode, judged by the whole instruction, or each sub-task, judged by its own words."""
    min_tail: int = 1
    """A last window with fewer transitions than this joins the window before it."""
    views: tuple[str, ...] | None = None
    """Cameras that the rater sees; the dataset's first one if not given."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes to judge; all of them if not given."""
    annotations: Literal["first", "all"] = "all"
    """Judge each episode by the first of its wordings or by all of them."""
    fraction: float = 1.0
    """Share of the windows to judge, drawn evenly at random; what a smaller share selects is part of what a larger one does."""
    sample: int | None = None
    """Number of windows to judge, drawn in the same way, instead of a share."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise UsageError(f"fraction is a share above 0 and up to 1, got {self.fraction}")
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"sample is a number of windows, at least 1, got {self.sample}")
        if self.sample is not None and self.fraction != 1.0:
            raise UsageError("both a fraction and a sample are given", cure="Give one of them.")
        if self.window < 1 or self.min_tail < 1 or self.step < 1:
            raise UsageError("window, stride and min_tail are at least 1")
        if self.step > self.window:
            raise UsageError(f"a stride of {self.step} leaves out transitions between windows of {self.window}")

    @property
    def step(self) -> int:
        """The stride in force."""
        return self.window if self.stride is None else self.stride


def windows(length: int, size: int = 8, stride: int | None = None, min_tail: int = 1) -> list[tuple[int, int]]:
    """Windows [start, stop) that cover the transitions 0 .. length-1.

    Windows start every `stride` transitions until one of them reaches the end; only the last may be shorter than `size`. If it is shorter
    than `min_tail`, it joins the one before it, which then is longer than `size`.

    >>> windows(17)
    [(0, 8), (8, 16), (16, 17)]
    >>> windows(17, min_tail=3)
    [(0, 8), (8, 17)]
    """
    stride = size if stride is None else stride
    if size < 1 or not 1 <= stride <= size or min_tail < 1 or length < 0:
        raise ValueError(f"windows need 1 <= stride <= size, min_tail >= 1 and length >= 0, got {size=} {stride=} {min_tail=} {length=}")
    if length == 0:
        return []
    starts = range(0, max(length - size, 0) + stride, stride)
    found = [(start, min(start + size, length)) for start in starts]
    if len(found) > 1 and found[-1][1] - found[-1][0] < min_tail:
        found[-2:] = [(found[-2][0], length)]
    return found


@dataclass(frozen=True)
class Selection:
    """How much a configuration selects, known without reading a picture."""

    samples: int
    transitions: int
    """Transitions judged, counted once for each annotation."""
    episodes: int
    """Episodes with at least one sample."""
    empty_episodes: tuple[int, ...]
    """Episodes without transitions; nothing of them is judged."""
    without_spans: tuple[int, ...]
    """Episodes left out because none of their annotations has sub-tasks (unit "subtask" only)."""


def survey(dataset: Dataset, config: Config | None = None) -> Selection:
    """Counts what `select` yields and names the episodes it leaves out. Reads all that `select` reads, and raises as it does: what is wrong
    with a dataset is said before the first question is paid for."""
    config = config or Config()
    _views(dataset, config)
    last = _last_rank(dataset, config)
    samples = transitions = 0
    chosen, empty, without_spans = 0, [], []
    for info in _episodes(dataset, config):
        whole = list(_cuts(dataset, info, config))
        cuts = [cut for cut in whole if _is_drawn(info, cut, config, last)]
        _action_names(dataset, info)
        samples += len(cuts)
        covered = {(annotation, step) for annotation, _, start, stop in cuts for step in range(start, stop)}
        transitions += len(covered)
        chosen += bool(cuts)
        if info.length == 0:
            empty.append(info.index)
        elif not whole:
            without_spans.append(info.index)
    return Selection(samples, transitions, chosen, tuple(empty), tuple(without_spans))


def select(dataset: Dataset, config: Config | None = None) -> Iterator[Sample]:
    """The samples of a dataset, by episode, annotation and time. Episodes without transitions yield none; `survey` names them.

    Raises:
        UsageError: for views or episodes that the dataset does not have.
        DatasetError: when it meets damaged data, or an instruction without words.
    """
    config = config or Config()
    views = _views(dataset, config)
    last = _last_rank(dataset, config)
    for info in _episodes(dataset, config):
        names = _action_names(dataset, info)
        for cut in _cuts(dataset, info, config):
            if not _is_drawn(info, cut, config, last):
                continue
            annotation, text, start, stop = cut
            yield Sample(
                segment=Segment(info.index, start, stop, views),
                instruction=text,
                actions=names[start:stop],
                annotation=annotation,
                frames=partial(_load, dataset, info.index, views, start, stop),
            )


def action_texts(actions: npt.NDArray[Any], names: Sequence[str]) -> tuple[str, ...]:
    """Words for actions: the name of each discrete one (T,), or the components of each continuous one (T, A), e.g. "(0.25, -1)"."""
    if actions.ndim == 1:
        return tuple(names[int(action)] for action in actions)
    return tuple("(" + ", ".join(_short(float(value)) for value in action) + ")" for action in actions)


def _short(value: float) -> str:
    """Two decimals at most, without trailing zeros and without a negative zero."""
    return f"{round(value, 2) + 0.0:g}" if abs(value) < 1000 else f"{value:.3g}"


def _load(dataset: Dataset, episode: int, views: tuple[str, ...], start: int, stop: int) -> Mapping[str, Frames]:
    return {view: dataset.frames(episode, view, start, stop + 1) for view in views}


def _views(dataset: Dataset, config: Config) -> tuple[str, ...]:
    views = config.views or dataset.views[:1]
    for view in views:
        if view not in dataset.views:
            raise UsageError(f"the dataset has no view '{view}'; there are: {', '.join(dataset.views)}")
    return views


def _episodes(dataset: Dataset, config: Config) -> Iterator[EpisodeInfo]:
    chosen = range(len(dataset)) if config.episodes is None else config.episodes
    for index in chosen:
        if not 0 <= index < len(dataset):
            raise UsageError(f"there is no episode {index}; the dataset has {len(dataset)}, counted from 0")
    return (dataset.episode(index) for index in sorted(set(chosen)))


def _action_names(dataset: Dataset, info: EpisodeInfo) -> tuple[str, ...]:
    return action_texts(dataset.actions(info.index), dataset.action_names) if info.length else ()


_Cut = tuple[int, str, int, int]


def _last_rank(dataset: Dataset, config: Config) -> str | None:
    """Rank of the last window that is drawn; None if all are."""
    if config.sample is None and config.fraction == 1.0:
        return None
    ranks = sorted(_rank(info, cut, config) for info in _episodes(dataset, config) for cut in _cuts(dataset, info, config))
    count = config.sample or math.ceil(config.fraction * len(ranks))
    return ranks[min(count, len(ranks)) - 1] if ranks else None


def _is_drawn(info: EpisodeInfo, cut: _Cut, config: Config, last: str | None) -> bool:
    return last is None or _rank(info, cut, config) <= last


def _rank(info: EpisodeInfo, cut: _Cut, config: Config) -> str:
    """A window's place in a random order that depends on nothing but the seed and the window, so that draws of any size nest."""
    annotation, _, start, stop = cut
    return digest("guerdon draw 1", f"{config.seed}/{info.index}/{annotation}/{start}/{stop}")


def _cuts(dataset: Dataset, info: EpisodeInfo, config: Config) -> Iterator[_Cut]:
    """(annotation, words, start, stop) of every window of an episode."""
    annotations = info.annotations[:1] if config.annotations == "first" else info.annotations
    for number, annotation in enumerate(annotations):
        for span in _spans(info, annotation, config):
            if not span.text.strip():
                cure = "Give one with --instruction, name another text with --instruction-key, or choose other --episodes."
                raise DatasetError("its instruction has no words", where=f"{dataset.path}, episode {info.index}", cure=cure)
            for start, stop in windows(span.stop - span.start, config.window, config.step, config.min_tail):
                yield number, span.text, span.start + start, span.start + stop


def _spans(info: EpisodeInfo, annotation: Annotation, config: Config) -> tuple[Span, ...]:
    return annotation.spans if config.unit == "subtask" else (Span(0, info.length, annotation.instruction),)
