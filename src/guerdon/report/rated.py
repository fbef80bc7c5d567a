"""Pictures, segments and pairs to look at: what a rater was shown, the class it gave or the one it preferred, and what was true.

Chosen by rule, never by hand and never at random: of each class some that are right, those that are furthest from the truth, and one for
each reason why there was no usable answer. Without ground truth: some of each class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from guerdon.errors import GuerdonError, RunError
from guerdon.evaluation.ratings import quality_of
from guerdon.evaluation.truth import digitise
from guerdon.frames import MosaicRecipe, mosaic, tile_boxes
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet
from guerdon.records import Frames, Label, Picture, PictureFormat
from guerdon.report.examples import data_uri, outcome

RIGHT_PER_CLASS, WRONG, UNUSABLE = 2, 6, 3
_ROUNDING = 9
"""Decimals beyond which two means of the same numbers may differ."""
_FRAMES = 9
"""Frames of a segment that are shown at most."""
_RECIPE = MosaicRecipe(tile=300, largest=320)
VERDICTS = ("the first is better", "neither is better", "the second is better")
"""What a preference of 0, 0.5 and 1 says."""

Place = tuple[int, int, int]
"""Episode, start and stop."""


@dataclass(frozen=True)
class Rated:
    """Something that was rated, with its picture."""

    kind: str
    """"right", "wrong", "sample" (no ground truth to sort by) or "unusable"."""
    places: tuple[Place, ...]
    """What was shown: one thing, or the two of a pair."""
    instruction: str
    outcome: str
    given: str
    """Class or verdict in words; empty if there is none."""
    value: float | None
    """Class number, or probability that the second one is better."""
    truth: str
    """The same by the simulator's ground truth; empty if unknown."""
    distance: float
    """How far the two lie apart; 0 if one of them is unknown."""
    view: str
    words: str = ""
    """The rater's own line about it."""
    pictures: tuple[str, ...] = field(default=())
    """PNG as data URI, for each of the places."""
    missing: str = ""
    """Why there are none."""

    @property
    def where(self) -> str:
        """The places in words."""
        return " and ".join(_in_words(place) for place in self.places)


def rated_examples(label_set: LabelSet, dataset: Dataset) -> list[Rated]:
    """What the report shows of a label set of ratings or preferences."""
    names = [str(name) for name in label_set.metadata.get("levels") or ()]
    truths = _Truths(dataset, len(names))
    known = (label for label in sorted(label_set.labels, key=lambda label: (label.episode, label.annotation, label.start, label.stop)))
    found = [_rated(label, names, truths, dataset) for label in known if 0 <= label.episode < len(dataset)]
    right = [each for each in found if each.value is not None and each.truth and not each.distance]
    wrong = sorted((each for each in found if each.distance), key=lambda each: -each.distance)
    unsorted = [] if any(each.truth for each in found) else [each for each in found if each.value is not None]
    unusable = {each.outcome: each for each in reversed(found) if each.value is None}
    chosen = [
        *(replace(each, kind="right") for each in _of_each_class(right)),
        *(replace(each, kind="wrong") for each in wrong[:WRONG]),
        *(replace(each, kind="sample") for each in _of_each_class(unsorted)),
        *(replace(each, kind="unusable") for each in list(unusable.values())[::-1][:UNUSABLE]),
    ]
    return [_with_pictures(each, dataset) for each in chosen]


def _of_each_class(rated: Sequence[Rated]) -> Iterator[Rated]:
    for given in sorted({each.value for each in rated if each.value is not None}):
        of_class = [each for each in rated if each.value == given]
        count = min(RIGHT_PER_CLASS, len(of_class))
        yield from (of_class[int((number + 0.5) * len(of_class) / count)] for number in range(count))


def _rated(label: Label, names: Sequence[str], truths: _Truths, dataset: Dataset) -> Rated:
    places: tuple[Place, ...] = ((label.episode, label.start, label.stop),)
    if label.unit == "pair" and label.episode_b is not None and label.start_b is not None and label.stop_b is not None:
        places = (*places, (label.episode_b, label.start_b, label.stop_b))
        truth = truths.preference(label, places)
        given, true = (None if value is None else VERDICTS[_verdict(value)] for value in (label.value, truth))
    else:
        truth = truths.level(label)
        given, true = (None if value is None else _named(value, names) for value in (label.value, truth))
    distance = 0.0 if truth is None or label.value is None else abs(label.value - truth)
    view = label.views[0] if label.views else (dataset.views or ("",))[0]
    return Rated("", places, label.instruction, outcome(label), given or "", label.value, true or "", distance, view, label.rationale)


def _named(value: float, names: Sequence[str]) -> str:
    whole = int(value) if float(value).is_integer() else -1
    return names[whole] if 0 <= whole < len(names) else f"{value:g}"


def _verdict(value: float) -> int:
    return 0 if value < 0.5 else 2 if value > 0.5 else 1


class _Truths:
    """What is true of things that were rated."""

    def __init__(self, dataset: Dataset, levels: int) -> None:
        self._quality, self._levels = quality_of(dataset), levels

    def level(self, label: Label) -> float | None:
        """The true class of what is not a pair; None if unknown."""
        quality = self._of((label.episode, label.start, label.stop), label)
        return None if quality is None or self._levels < 2 else float(digitise(quality, self._levels))

    def preference(self, label: Label, places: Sequence[Place]) -> float | None:
        """Which of two is truly better: 0, 0.5 or 1; None if unknown."""
        first, second = (self._of(place, label) for place in places)
        return None if first is None or second is None else (1 + float(np.sign(round(second - first, _ROUNDING)))) / 2

    def _of(self, place: Place, label: Label) -> float | None:
        try:
            quality = self._quality(*place, label.instruction)
        except RunError:  # about something that the dataset does not have
            return None
        return None if np.isnan(quality) else quality


def _with_pictures(rated: Rated, dataset: Dataset) -> Rated:
    try:
        pictures = tuple(_picture(dataset, place, rated.view) for place in rated.places)
    except (GuerdonError, KeyError, IndexError, ValueError, OSError) as error:
        why = str(error) if isinstance(error, GuerdonError) else f"view '{rated.view}' cannot be read ({type(error).__name__})"
        return replace(rated, missing=why)
    return replace(rated, pictures=tuple(data_uri(picture.encoded(PictureFormat()), "image/png") for picture in pictures))


def _picture(dataset: Dataset, place: Place, view: str) -> Picture:
    """The observation, or some of those of a segment in one picture, the first and the last among them."""
    episode, start, stop = place
    if start == stop:
        return _enlarged(dataset.frames(episode, view, start, start + 1))
    numbers = np.unique(np.linspace(start, stop, min(stop - start + 1, _FRAMES)).round().astype(int))
    return mosaic(np.concatenate([dataset.frames(episode, view, int(k), int(k) + 1) for k in numbers]), _RECIPE)


def _enlarged(frames: Frames) -> Picture:
    """A single frame in the size in which mosaics show it, without a number above it."""
    drawn = mosaic(frames, _RECIPE)
    top, left, bottom, right = tile_boxes(1, frames.shape[1], frames.shape[2], _RECIPE)[0]
    return Picture(drawn.id, np.ascontiguousarray(drawn.pixels[top:bottom, left:right]))


def _in_words(place: Place) -> str:
    episode, start, stop = place
    if start == stop:
        return f"episode {episode}, picture {start}"
    return f"episode {episode}, " + (f"action {start}" if stop == start + 1 else f"actions {start} to {stop - 1}")


def class_counts(labels: Iterable[Label], names: Sequence[str]) -> list[tuple[str, int]]:
    """How many labels carry each class, or each verdict if there are no classes."""
    values = [label.value for label in labels if label.value is not None]
    if names:
        return [(name, sum(value == number for value in values)) for number, name in enumerate(names)]
    verdicts = [_verdict(value) for value in values]
    return [(words, verdicts.count(number)) for number, words in enumerate(VERDICTS)]
