"""What the embedded rater makes of a request's evidence: which pictures and actions belong together, and what it sees in them.

Nothing else is used: not the prompt, not who is asked about, never the simulator. What the network was not trained for is `Unsupported`,
with a short reason, and never answered.

One thing is decided without the network. The pictures show the whole world, so a thing that the instruction names and that is nowhere to be
seen is not there: from the sub-task that names it on, nothing can be done, no action matters, and the instruction gets no further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.providers._embedded_file import Weights
from guerdon.providers._embedded_network import ACTIONS, LONGEST, Looks
from guerdon.providers._embedded_tiles import NotKnown, Scene, scenes_of
from guerdon.providers._embedded_words import NotUnderstood, clauses, named, tokens
from guerdon.records import Evidence, Picture, Subject

Array = npt.NDArray[np.floating[Any]]

NEUTRAL = (0.0, 1.0, 0.0)
"""The verdict that an action does not matter."""


class Unsupported(ValueError):
    """Evidence that the network was not trained for. The message is a short reason, fit for a failure's code."""


@dataclass(frozen=True)
class Part:
    """One piece of behaviour: that of a request, or one of the two of a pair."""

    actions: tuple[str, ...]
    pictures: tuple[Picture, ...]
    """In order of time: one more than there are actions, or fewer, evenly spaced."""

    @property
    def whole(self) -> bool:
        """Whether every observation is shown."""
        return len(self.pictures) == len(self.actions) + 1


@dataclass(frozen=True)
class Seen:
    """What is seen in one piece of behaviour. P pictures, T actions (if every observation is shown), L sub-tasks, of which the first K can
    be done."""

    phrases: tuple[str, ...]
    """The words of each sub-task, (L,)."""
    possible: int
    """K: how many sub-tasks come before the first one that names a thing that is not there; L if all are there."""
    actions: tuple[str, ...]
    """Those that are judged, (T,); none if not every observation is shown."""
    scenes: tuple[Scene, ...]
    """What each picture shows, (P,)."""
    verdict: Array
    """(T, 3) probabilities that the action hindered, did not matter, served."""
    due: Array
    """(P, K + 1) probabilities of the number of sub-tasks done at each picture."""
    progress: Array
    """(P,) expected share of the instruction that is done at each picture, 0 to 1."""
    reached: Array
    """(P, K + 1) that share if so many sub-tasks are done."""
    distance: Array
    """(K, P) actions to go until each sub-task is completed, as the network sees it."""

    @property
    def outcomes(self) -> slice:
        """The pictures that actions led to; the only one of a single picture."""
        return slice(1 if len(self.scenes) > 1 else 0, None)

    @property
    def missing(self) -> tuple[str, ...]:
        """The things that the first sub-task that cannot be done names and that are not there; empty if all can be done."""
        if self.possible == len(self.phrases):
            return ()
        return tuple(thing for thing in named(self.phrases[self.possible]) if thing not in self.scenes[0].seen)

    @property
    def mean_progress(self) -> float:
        """Mean progress over the pictures that actions led to."""
        return float(np.mean(self.progress[self.outcomes], dtype=np.float64))


def parts_of(evidence: Evidence, subject: Subject) -> tuple[Part, ...]:
    """The pieces of behaviour that a request is about: one, or the two of a pair.

    Of long behaviour, methods show some observations only, evenly spaced; then there are fewer pictures than observations. Of a pair they
    show at most as many of the one as of the other, so it is known which pictures belong to the first one.

    Raises:
        Unsupported: if the numbers of pictures and actions do not fit, as with pictures of several cameras.
    """
    actions = (evidence.actions,) if subject.other is None else (evidence.actions, evidence.other_actions)
    lengths = tuple(part.stop - part.start for part in subject.parts)
    frames, counts = evidence.frames, tuple(length + 1 for length in lengths)
    if lengths != tuple(map(len, actions)) or (len(actions) == 1 and evidence.other_actions):
        raise Unsupported("numbers_do_not_fit")
    if len(frames) > sum(counts):
        raise Unsupported("more_pictures_than_observations")
    shown = (len(frames),) if len(counts) == 1 else _shown_of_pair(counts, len(frames))
    if any(some < min(count, 2) for some, count in zip(shown, counts, strict=True)):
        raise Unsupported("numbers_do_not_fit")
    pieces = (frames[: shown[0]], frames[shown[0] :])[: len(actions)]
    return tuple(Part(names, pictures) for names, pictures in zip(actions, pieces, strict=True))


def _shown_of_pair(counts: Sequence[int], total: int) -> tuple[int, int]:
    """How many pictures are of each, if the most that are shown of one are `total` in all. Raises Unsupported if no number fits."""
    fewest = min(counts)
    if total < 2 * fewest:
        if total % 2:
            raise Unsupported("numbers_do_not_fit")
        return total // 2, total // 2
    rest = total - fewest
    return (fewest, rest) if counts[0] == fewest else (rest, fewest)


def see(weights: Weights, instruction: str, part: Part) -> Seen:
    """Looks at one piece of behaviour. If not every observation is shown, each picture is judged on its own, by what it shows; actions are
    then not judged, because more than one lies between two pictures.

    Raises:
        Unsupported: if the network was not trained for it.
    """
    phrases = _phrases(instruction)
    if any(action not in ACTIONS for action in part.actions):
        raise Unsupported("unknown_action")
    try:
        scenes = tuple(scenes_of(weights.tiles, [picture.pixels for picture in part.pictures]))
    except NotKnown as error:
        raise Unsupported(str(error)) from None
    there = [all(thing in scenes[0].seen for thing in named(phrase)) for phrase in phrases]
    possible = there.index(False) if False in there else len(phrases)
    actions = part.actions if part.whole else ()
    if not possible:
        nothing, pictures = np.zeros(len(scenes)), len(scenes)
        verdict = np.tile(np.array([NEUTRAL]), (len(actions), 1))
        return Seen(phrases, 0, actions, scenes, verdict, np.ones((pictures, 1)), nothing, nothing[:, None], np.zeros((0, pictures)))
    network, looks = weights.network, _looks(weights, part, phrases[:possible])
    if part.whole:
        judged = [network.judge(looks, [ACTIONS.index(action) for action in actions])]
    else:
        judged = [network.judge(_at(looks, [number]), []) for number in range(len(scenes))]
    names = ("verdict", "due", "progress", "reached")
    verdict, due, progress, reached = (np.concatenate([getattr(each, name) for each in judged]) for name in names)
    share = possible / len(phrases)
    return Seen(phrases, possible, actions, scenes, verdict, due, progress * share, reached * share, looks.distance)


def _phrases(instruction: str) -> tuple[str, ...]:
    try:
        phrases = clauses(instruction)
    except NotUnderstood as error:
        raise Unsupported("unknown_words" if error.words else "not_understood") from None
    if len(phrases) > LONGEST:
        raise Unsupported("too_many_sub_tasks")
    return phrases


def _looks(weights: Weights, part: Part, phrases: Sequence[str]) -> Looks:
    """The looks at each picture; at pictures that are the same, only once."""
    places = {picture.id: number for number, picture in reversed(list(enumerate(part.pictures)))}
    different = sorted(places.values())
    pixels = np.stack([part.pictures[number].pixels for number in different])
    looks = weights.network.look(pixels, [tokens(phrase) for phrase in phrases])
    return _at(looks, [different.index(places[picture.id]) for picture in part.pictures])


def _at(looks: Looks, pictures: Sequence[int]) -> Looks:
    """The looks at some of the pictures."""
    some = {name: getattr(looks, name)[:, pictures] for name in ("classes", "completes", "distance", "done")}
    return replace(looks, **some)
