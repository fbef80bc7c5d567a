"""From episodes to the things to be judged: windows, pictures, segments, whole episodes, or pairs, with the words they are judged by.

Nothing crosses an episode, nor, in the unit "subtask", the span of a sub-task: there the rater judges by the words of that sub-task.

- A window holds `window` transitions and touches one observation more. With `stride` equal to `window` every transition is judged exactly
  once for each annotation.
- A picture is an observation that an action led to: 1 .. T of an episode, start+1 .. stop of a span.
- A segment holds `window` consecutive transitions from anywhere, the last place included; what is shorter than that is one segment.
- An episode is one segment, whatever its length.
- Of a pair, both pictures (or segments) are drawn at random from all that are judged by the same words (RL-VLM-F).

Reads the episodes' facts and actions; pictures are read when a sample's `frames` is called.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, islice
from typing import Any, Literal

import numpy.typing as npt
from tyro.conf import Suppress

from guerdon.errors import DatasetError, UsageError
from guerdon.interfaces import Dataset, Kind
from guerdon.records import Annotation, EpisodeInfo, Frames, Sample, Segment, Span, digest

_WINDOW = 8
_OF_ONE_SIZE: tuple[Kind, ...] = ("windows", "segments", "segment pairs")
"""What `window` is about."""
_PAIRS: Mapping[Kind, Kind] = {"picture pairs": "pictures", "segment pairs": "segments"}
"""Kind of pair -> of what."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which parts of a dataset are judged."""

    kind: Suppress[Kind] = "windows"
    """What is judged at a time. The method says so."""
    window: int = _WINDOW
    """Transitions in a window or a segment (RG-VLM uses 8); a rater sees one picture more."""
    stride: int | None = None
    """Windows only: transitions from one window's start to the next one's; the size of the window if not given. A smaller stride overlaps
    windows."""
    unit: Literal["episode", "subtask"] = "episode"
    """Where windows, pictures and segments come from, and what a whole episode is: the whole episode, judged by the whole instruction, or
    each sub-task, judged by its own words."""
    min_tail: int = 1
    """Windows only: a last window with fewer transitions than this joins the window before it."""
    every: int = 1
    """Single pictures only: judge each so many-th one, counted back from the end of the episode or sub-task: the last one is judged."""
    views: tuple[str, ...] | None = None
    """Cameras that the rater sees; the dataset's first one if not given."""
    episodes: tuple[int, ...] | None = None
    """Numbers of the episodes to judge; all of them if not given."""
    annotations: Literal["first", "all"] = "all"
    """Judge each episode by the first of its wordings or by all of them."""
    fraction: float = 1.0
    """Share of the windows, pictures, segments or episodes to judge, drawn evenly at random; what a smaller share selects is part of what a
    larger one does. Of pairs: how many, as a share of the number of pictures or segments that can be paired."""
    sample: int | None = None
    """Number of windows, pictures, segments, episodes or pairs to judge, drawn in the same way, instead of a share."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        if not 0.0 < self.fraction <= 1.0:
            raise UsageError(f"fraction is a share above 0 and up to 1, got {self.fraction}")
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"sample is a number of things to judge, at least 1, got {self.sample}")
        if self.sample is not None and self.fraction != 1.0:
            raise UsageError("both a fraction and a sample are given", cure="Give one of them.")
        if self.window < 1 or self.min_tail < 1 or self.step < 1 or self.every < 1:
            raise UsageError("window, stride, min_tail and every are at least 1")
        if self.kind != "windows" or self.every == 1:  # a command reads the settings before the method says what it judges
            self.require_settings_of_the_kind()
        if self.step > self.window:
            raise UsageError(f"a stride of {self.step} leaves out transitions between windows of {self.window}")

    def require_settings_of_the_kind(self) -> None:
        """Raises UsageError for a setting that would have no effect."""
        idle = {
            "stride": self.stride is not None and self.kind != "windows",
            "min_tail": self.min_tail != 1 and self.kind != "windows",
            "window": self.window != _WINDOW and self.kind not in _OF_ONE_SIZE,
            "every": self.every != 1 and self.kind != "pictures",
        }
        for name, given in idle.items():
            if given:
                raise UsageError(
                    f"{name} means nothing where {self.kind} are judged", cure="Leave it out, or let the method judge something else."
                )

    @property
    def judged(self) -> str:
        """What is judged at a time, in words for people and in the plural: "pictures", "sub-tasks", "pairs of segments"."""
        if self.kind in _PAIRS:
            return f"pairs of {_PAIRS[self.kind]}"
        return "sub-tasks" if self.kind == "episodes" and self.unit == "subtask" else self.kind

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
    """Transitions judged, counted once for each annotation, however often they are looked at; a picture stands for the transition that led
    to it."""
    episodes: int
    """Episodes that at least one sample shows."""
    empty_episodes: tuple[int, ...]
    """Episodes without transitions; nothing of them is judged."""
    without_spans: tuple[int, ...]
    """Episodes left out because none of their annotations has sub-tasks (unit "subtask" only)."""


def survey(dataset: Dataset, config: Config | None = None) -> Selection:
    """Counts what `select` yields and names the episodes it leaves out. Reads all that `select` reads, and raises as it does: what is wrong
    with a dataset is said before the first question is paid for."""
    config = config or Config()
    config.require_settings_of_the_kind()
    _views(dataset, config)
    return _survey_of_pairs(dataset, config) if config.kind in _PAIRS else _survey_of_singles(dataset, config)


def _survey_of_singles(dataset: Dataset, config: Config) -> Selection:
    last = _last_rank(dataset, config)
    samples = transitions = 0
    chosen, empty, without_spans = 0, [], []
    for info in _episodes(dataset, config):
        whole = list(_cuts(dataset, info, config))
        cuts = [cut for cut in whole if _is_drawn(info, cut, config, last)]
        _action_names(dataset, info, config)
        samples += len(cuts)
        transitions += _covered((annotation, start, stop) for annotation, _, start, stop in cuts)
        chosen += bool(cuts)
        if info.length == 0:
            empty.append(info.index)
        elif not whole:
            without_spans.append(info.index)
    return Selection(samples, transitions, chosen, tuple(empty), tuple(without_spans))


def _survey_of_pairs(dataset: Dataset, config: Config) -> Selection:
    empty, without_spans = [], []
    for info in _episodes(dataset, config):
        if info.length == 0:
            empty.append(info.index)
        elif next(_runs(dataset, info, config), None) is None:
            without_spans.append(info.index)
    samples = 0
    shown: dict[int, set[tuple[int, int, int]]] = {}
    for pair in _pairs(dataset, config):
        samples += 1
        for episode, annotation, _, start, stop in pair:
            shown.setdefault(episode, set()).add((annotation, start, stop))
    for episode in shown:
        _action_names(dataset, dataset.episode(episode), config)
    transitions = sum(_covered(places) for places in shown.values())
    return Selection(samples, transitions, len(shown), tuple(empty), tuple(without_spans))


def _covered(places: Iterable[tuple[int, int, int]]) -> int:
    """Transitions of an episode that lie in at least one of the places (annotation, start, stop), counted once for each annotation."""
    count, reached = 0, (-1, 0)
    for annotation, start, stop in sorted(places):
        begin = start - 1 if start == stop else start  # a picture stands for the transition that led to it
        begin = max(begin, reached[1]) if annotation == reached[0] else begin
        count += max(0, stop - begin)
        reached = (annotation, max(stop, begin))
    return count


def select(dataset: Dataset, config: Config | None = None) -> Iterator[Sample]:
    """The samples of a dataset, by episode, annotation and time; pairs in the order in which they are drawn, so that a larger `sample`
    begins with the smaller one. Episodes without transitions yield none; `survey` names them.

    A draw depends on the seed and the dataset alone. A pair is drawn as RL-VLM-F does: two items, independently, with equal chances for all
    that have the same words, which of the two is the first one included; what is drawn twice is not judged twice, in whatever order. Words
    that only one item has give no pair.

    Raises:
        UsageError: for views or episodes that the dataset does not have.
        DatasetError: when it meets damaged data, or an instruction without words.
    """
    config = config or Config()
    return _select_pairs(dataset, config) if config.kind in _PAIRS else _select_singles(dataset, config)


def _select_singles(dataset: Dataset, config: Config) -> Iterator[Sample]:
    views = _views(dataset, config)
    last = _last_rank(dataset, config)
    for info in _episodes(dataset, config):
        names = _action_names(dataset, info, config)
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


def _select_pairs(dataset: Dataset, config: Config) -> Iterator[Sample]:
    views = _views(dataset, config)

    @lru_cache(maxsize=1024)  # the two of a pair come from anywhere
    def actions(episode: int) -> npt.NDArray[Any]:
        return dataset.actions(episode)

    def sample(item: _Item, other: Sample | None = None) -> Sample:
        episode, annotation, text, start, stop = item
        return Sample(
            segment=Segment(episode, start, stop, views),
            instruction=text,
            actions=action_texts(actions(episode)[start:stop], dataset.action_names) if start < stop else (),
            annotation=annotation,
            frames=partial(_load, dataset, episode, views, start, stop),
            other=other,
        )

    for first, second in _pairs(dataset, config):
        yield sample(first, sample(second))


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
    if not views:
        cure = "Label a dataset with pictures; the ones here were recorded without any (such as with --views none)."
        raise UsageError("has no pictures, so there is nothing to show to a rater", where=str(dataset.path), cure=cure)
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


def _action_names(dataset: Dataset, info: EpisodeInfo, config: Config) -> tuple[str, ...]:
    """Names of all actions of an episode; none where pictures are judged, which show none."""
    if info.length == 0 or config.kind in ("pictures", "picture pairs"):
        return ()
    return action_texts(dataset.actions(info.index), dataset.action_names)


# --- where they lie -----------------------------------------------------------------------------------------------------------------


_Cut = tuple[int, str, int, int]
"""Annotation, words, start, stop."""
_Item = tuple[int, int, str, int, int]
"""Episode, annotation, words, start, stop."""


@dataclass(frozen=True)
class _Run:
    """Items of one size, one after the other, that are judged by the same words."""

    episode: int
    annotation: int
    text: str
    starts: Sequence[int]
    size: int
    """Transitions of each; 0 for pictures."""

    def item(self, position: int) -> _Item:
        start = self.starts[position]
        return self.episode, self.annotation, self.text, start, start + self.size


def _runs(dataset: Dataset, info: EpisodeInfo, config: Config) -> Iterator[_Run]:
    """All pictures, segments or episodes that an episode offers."""
    kind = _PAIRS.get(config.kind, config.kind)
    for number, span in _judged_spans(dataset, info, config):
        length = span.stop - span.start
        size = {"pictures": 0, "segments": min(config.window, length), "episodes": length}[kind]
        pictures = range(span.start + 1 + (length - 1) % config.every, span.stop + 1, config.every)
        starts = pictures if kind == "pictures" else range(span.start, span.stop - size + 1)
        if length > 0:
            yield _Run(info.index, number, span.text, starts, size)


def _cuts(dataset: Dataset, info: EpisodeInfo, config: Config) -> Iterator[_Cut]:
    """Everything in an episode that can be judged by itself."""
    if config.kind == "windows":
        for number, span in _judged_spans(dataset, info, config):
            for start, stop in windows(span.stop - span.start, config.window, config.step, config.min_tail):
                yield number, span.text, span.start + start, span.start + stop
        return
    for run in _runs(dataset, info, config):
        for start in run.starts:
            yield run.annotation, run.text, start, start + run.size


def _judged_spans(dataset: Dataset, info: EpisodeInfo, config: Config) -> Iterator[tuple[int, Span]]:
    """Annotation and words of each part of an episode that is judged by words of its own."""
    annotations = info.annotations[:1] if config.annotations == "first" else info.annotations
    for number, annotation in enumerate(annotations):
        for span in _spans(info, annotation, config):
            if not span.text.strip():
                cure = "Give one with --instruction, name another text with --instruction-key, or choose other --episodes."
                raise DatasetError("its instruction has no words", where=f"{dataset.path}, episode {info.index}", cure=cure)
            yield number, span


def _spans(info: EpisodeInfo, annotation: Annotation, config: Config) -> tuple[Span, ...]:
    return annotation.spans if config.unit == "subtask" else (Span(0, info.length, annotation.instruction),)


# --- draws --------------------------------------------------------------------------------------------------------------------------


def _last_rank(dataset: Dataset, config: Config) -> str | None:
    """Rank of the last one that is drawn; None if all are."""
    if config.sample is None and config.fraction == 1.0:
        return None
    ranks = (_rank(info, cut, config) for info in _episodes(dataset, config) for cut in _cuts(dataset, info, config))
    if config.sample is not None:
        drawn = heapq.nsmallest(config.sample, ranks)
        return drawn[-1] if drawn else None
    known = sorted(ranks)
    return known[math.ceil(config.fraction * len(known)) - 1] if known else None


def _is_drawn(info: EpisodeInfo, cut: _Cut, config: Config, last: str | None) -> bool:
    return last is None or _rank(info, cut, config) <= last


def _rank(info: EpisodeInfo, cut: _Cut, config: Config) -> str:
    """Its place in a random order that depends on nothing but the seed and where it lies, so that draws of any size nest."""
    annotation, _, start, stop = cut
    return digest("guerdon draw 1", f"{config.seed}/{info.index}/{annotation}/{start}/{stop}")


def _pairs(dataset: Dataset, config: Config) -> Iterator[tuple[_Item, _Item]]:
    """The pairs that are judged, in the order in which they are drawn."""
    groups = _groups(dataset, config)
    count = config.sample or math.ceil(config.fraction * sum(group.size for group in groups))
    return islice(_drawn_pairs(groups, config.seed), count)


class _Group:
    """All items that are judged by the same words, and which pairs of them are left."""

    def __init__(self, runs: Sequence[_Run]) -> None:
        self._runs = runs
        self._ends = list(accumulate(len(run.starts) for run in runs))
        self.size = self._ends[-1]
        self.left = self.size * (self.size - 1) // 2
        self._moved: dict[int, int] = {}

    def take(self, number: int) -> tuple[_Item, _Item]:
        """Takes the pair at place `number`, below `left`, out of those that are left (a shuffle that remembers only what it moved)."""
        self.left -= 1
        pair = self._moved.pop(number, number)
        if number != self.left:
            self._moved[number] = self._moved.pop(self.left, self.left)
        later = (1 + math.isqrt(1 + 8 * pair)) // 2
        return self._item(pair - later * (later - 1) // 2), self._item(later)

    def _item(self, position: int) -> _Item:
        run = bisect_right(self._ends, position)
        return self._runs[run].item(position - (self._ends[run - 1] if run else 0))


def _groups(dataset: Dataset, config: Config) -> list[_Group]:
    """The groups with at least one pair, in the order of their first items."""
    by_text: dict[str, list[_Run]] = {}
    for info in _episodes(dataset, config):
        seen: dict[str, set[tuple[int, int]]] = {}
        for run in _runs(dataset, info, config):
            earlier = seen.setdefault(run.text, set())
            starts = [start for start in run.starts if (start, run.size) not in earlier] if earlier else run.starts
            earlier.update((start, run.size) for start in starts)
            if starts:  # two annotations may say the same of the same pictures: no picture is compared with itself
                by_text.setdefault(run.text, []).append(_Run(run.episode, run.annotation, run.text, starts, run.size))
    return [group for group in map(_Group, by_text.values()) if group.left]


def _drawn_pairs(groups: Sequence[_Group], seed: int) -> Iterator[tuple[_Item, _Item]]:
    """All pairs of all groups in a random order: each time an item is drawn from all, then a pair from those left in its group.

    The random numbers are digests of the seed and a count, which neither a machine nor a library can change: what has been paid for stays
    part of the draw.
    """
    groups = list(groups)
    ends = list(accumulate(group.size for group in groups))
    spent = count = 0
    while groups:
        number = int.from_bytes(hashlib.sha256(f"guerdon pairs 1/{seed}/{count}".encode()).digest(), "little")
        count += 1
        turned, number = number % 2, number // 2
        number, place = divmod(number, ends[-1])
        group = groups[bisect_right(ends, place)]
        if group.left:
            first, second = group.take(number % group.left)
            yield (second, first) if turned else (first, second)
            spent += 0 if group.left else group.size
        if 2 * spent >= ends[-1]:
            groups = [each for each in groups if each.left]
            ends = list(accumulate(each.size for each in groups))
            spent = 0
