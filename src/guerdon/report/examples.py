"""Windows to look at: what the rater saw, what it said, and what was true.

Chosen by rule, never by hand and never at random, so the same run shows the same windows: some where scores and ground truth agree on
every action, those where they disagree on most, and one for each reason why there was no usable answer. Without ground truth: windows
spread over the label set.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from guerdon.errors import GuerdonError
from guerdon.frames import mosaic
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.records import Label, PictureFormat

PER_KIND = 3
_WINDOW = 8
"""Transitions shown together where labels do not say which reply they were read from."""
_LONGEST = 16
"""Transitions of a window that are shown at most."""


@dataclass(frozen=True)
class Action:
    """One transition of an example."""

    number: int
    """Position in the window: from picture `number` to picture `number` + 1."""
    name: str
    score: float | None
    share: float | None
    """The score on a scale from 0 to 1."""
    truth: float | None
    """True contribution: above 0 serves the instruction, 0 changes nothing, below 0 hinders; None if unknown."""
    words: str
    """The rater's own line about it."""

    @property
    def agrees(self) -> bool | None:
        """Whether the score lies on the side of the midpoint that the truth asks for; None if one of the two is unknown."""
        return None if self.share is None or self.truth is None else (self.share >= 0.5) == (self.truth > 0)


@dataclass(frozen=True)
class Example:
    """A window with its picture."""

    kind: str
    """"agree", "disagree", "unusable", or "sample" (no ground truth to sort by)."""
    episode: int
    start: int
    stop: int
    instruction: str
    outcome: str
    """State of the labels, with the cause if there is no value."""
    actions: tuple[Action, ...]
    view: str
    picture: str | None = None
    """PNG as data URI."""
    missing: str = ""
    """Why there is no picture."""

    @property
    def right(self) -> int:
        """Number of actions for which score and truth agree."""
        return sum(action.agrees is True for action in self.actions)

    @property
    def wrong(self) -> int:
        """Number of actions for which score and truth disagree."""
        return sum(action.agrees is False for action in self.actions)

    @property
    def telling(self) -> bool:
        """Whether some actions of the window serve the instruction and others do not."""
        return len({action.truth > 0 for action in self.actions if action.truth is not None}) == 2


def examples(label_set: LabelSet, dataset: Dataset, *, per_kind: int = PER_KIND) -> list[Example]:
    """At most `per_kind` windows of each kind, with pictures."""
    episodes = groupby(_ordered(label_set), key=lambda label: label.episode)
    windows = [window for _, labels in episodes for window in _examples(list(labels), label_set.scale, dataset)]
    chosen = [*_agreeing(windows, per_kind), *_disagreeing(windows, per_kind), *_unsorted(windows, per_kind), *_unusable(windows, per_kind)]
    return [_with_picture(window, dataset) for window in chosen]


def _agreeing(windows: Sequence[Example], count: int) -> list[Example]:
    flawless = [window for window in windows if window.right and not window.wrong]
    best = max(((window.telling, window.right) for window in flawless), default=None)
    return [replace(each, kind="agree") for each in _spread([w for w in flawless if (w.telling, w.right) == best], count)]


def _disagreeing(windows: Sequence[Example], count: int) -> list[Example]:
    flawed = sorted((window for window in windows if window.wrong), key=lambda window: -window.wrong)
    one_per_episode = {window.episode: window for window in reversed(flawed)}
    return [replace(window, kind="disagree") for window in sorted(one_per_episode.values(), key=lambda w: (-w.wrong, w.episode))[:count]]


def _unsorted(windows: Sequence[Example], count: int) -> list[Example]:
    if any(window.right or window.wrong for window in windows):
        return []
    valued = [window for window in windows if any(action.score is not None for action in window.actions)]
    return [replace(window, kind="sample") for window in _spread(valued, count)]


def _unusable(windows: Sequence[Example], count: int) -> list[Example]:
    without_value = [window for window in windows if all(action.score is None for action in window.actions)]
    first_of_each = {window.outcome: window for window in reversed(without_value)}
    return [replace(window, kind="unusable") for window in list(first_of_each.values())[::-1][:count]]


def _spread(windows: Sequence[Example], count: int) -> list[Example]:
    """`count` of the windows at even distances."""
    if len(windows) <= count:
        return list(windows)
    return [windows[int((position + 0.5) * len(windows) / count)] for position in range(count)]


def _ordered(label_set: LabelSet) -> list[Label]:
    transitions = (label for label in label_set.labels if label.unit == "transition")
    return sorted(transitions, key=lambda label: (label.episode, label.annotation, label.start))


def _examples(labels: Sequence[Label], scale: tuple[float, float], dataset: Dataset) -> Iterator[Example]:
    """The windows of one episode: neighbouring transitions whose labels were read from one reply."""
    episode = labels[0].episode
    if not 0 <= episode < len(dataset):
        return
    taken = dataset.actions(episode)
    truth = dataset.privileged(episode).get("contribution", np.full(len(taken), np.nan))
    for _, group in groupby(labels, key=lambda label: (label.annotation, label.question or label.start // _WINDOW)):
        window = list(group)[:_LONGEST]
        if window[-1].stop <= len(taken):
            actions = tuple(_action(number, label, scale, taken, truth, dataset.action_names) for number, label in enumerate(window))
            yield _example(window, actions, window[0].views[0] if window[0].views else dataset.views[0])


def _action(number: int, label: Label, scale: tuple[float, float], taken: Any, truth: Any, names: Sequence[str]) -> Action:
    low, high = scale
    return Action(
        number=number,
        name=_action_name(taken[label.start], names),
        score=label.value,
        share=None if label.value is None else (label.value - low) / (high - low),
        truth=None if np.isnan(truth[label.start]) else float(truth[label.start]),
        words=label.rationale,
    )


def _example(window: Sequence[Label], actions: tuple[Action, ...], view: str) -> Example:
    first = window[0]
    return Example("", first.episode, first.start, window[-1].stop, first.instruction, outcome(first), actions, view)


def outcome(label: Label) -> str:
    """State of a label, with the cause if there is one: "labelled", "unreadable", "failed: timeout"."""
    return label.state if label.cause in (None, label.state) else f"{label.state}: {label.cause}"


def _action_name(action: Any, names: Sequence[str]) -> str:
    if np.ndim(action):
        return "[" + ", ".join(f"{component:.2f}" for component in action) + "]"
    return names[int(action)] if 0 <= int(action) < len(names) else f"action {int(action)}"


def _with_picture(window: Example, dataset: Dataset) -> Example:
    try:
        frames = dataset.frames(window.episode, window.view, window.start, window.stop + 1)
    except (GuerdonError, KeyError, OSError) as error:
        why = str(error) if isinstance(error, GuerdonError) else f"view '{window.view}' cannot be read ({type(error).__name__})"
        return replace(window, missing=why)
    return replace(window, picture=data_uri(mosaic(frames).encoded(PictureFormat()), "image/png"))


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as an address that needs no request."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
