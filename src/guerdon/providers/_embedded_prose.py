"""The embedded rater's verdicts in words: what a method stores as its rationale, and what a second rater may go by.

Every sentence says something that was seen: what differs between two pictures is read from their tiles; which sub-task is due, how far it
is from done and whether an action served it are the network's, as probabilities that were rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from guerdon.providers._embedded_evidence import Seen
from guerdon.providers._embedded_tiles import Scene
from guerdon.providers._embedded_words import asks, named

VERDICTS: tuple[str, ...] = ("hinders", "does not matter", "serves")
_NEARER = 0.5
"""Actions by which a way must become shorter or longer to be said so."""
_CERTAIN = 0.9
"""Probability from which the number of sub-tasks that are done is said without a reservation."""


def action_lines(seen: Seen, *, verdicts: bool) -> list[str]:
    """One line per action, "number: action - what changed; ...".

    Args:
        verdicts: end each line in whether the action serves; else in how much of the instruction is done after it.
    """
    return [f"{number}: {action} - {_told(seen, number, verdicts=verdicts)}" for number, action in enumerate(seen.actions)]


def picture_lines(seen: Seen) -> list[str]:
    """One line per picture, "number: how much is done"."""
    return [f"{number}: {_share(progress)} of the instruction is done" for number, progress in enumerate(seen.progress.tolist())]


def summary(seen: Seen) -> str:
    """A few sentences on how far the instruction is fulfilled at the last picture."""
    scene, done = seen.scenes[-1], int(np.argmax(seen.due[-1]))
    count = len(seen.phrases)
    holds = f"holds the {scene.carried}" if scene.carried else "holds nothing"
    faces = f"faces the {scene.faced}" if scene.faced else "faces no thing"
    told = [f"The agent {holds} and {faces}."]
    if done:
        told.append(f"Done: {_quoted(seen.phrases[:done])}.")
    if done == count:
        told.append("With that, the whole instruction is done.")
    elif done == seen.possible:
        told.append(f"To be done next: '{seen.phrases[done]}', but there is no {_either(seen.missing)} to be seen, so that cannot be done.")
    else:
        told.append(f"To be done next: '{seen.phrases[done]}', about {_actions(float(seen.distance[done, -1]))} to go.")
        if later := seen.phrases[done + 1 :]:
            told.append(f"After that: {_quoted(later)}.")
    if seen.due[-1, done] < _CERTAIN:
        told.append("That is the most likely; what is shown leaves it open how much is done.")
    told.append(f"In all, {_share(float(seen.progress[-1]))} of the instruction is done.")
    return " ".join(told)


def changes(before: Scene, after: Scene, goal: Sequence[str] = (), *, nearer: float = 0.0) -> str:
    """What differs between two pictures, in words.

    Args:
        goal: the things that the sub-task is about which is due, the one that is to be reached now first.
        nearer: number of actions by which that sub-task is nearer to done in the second one; nan if that is not known.
    """
    if before == after:
        return "nothing changed"
    if after.carried != before.carried:
        return f"picked up the {after.carried}" if after.carried else f"put the {before.carried} down{_beside(after, before.carried, goal)}"
    opened, closed = after.open_doors - before.open_doors, before.open_doors - after.open_doors
    if opened or closed:
        return f"opened the {min(opened)}" if opened else f"closed the {min(closed)}"
    moved = after.agent != before.agent
    if not goal:
        return "moved" if moved else "turned"
    if after.faced == goal[0]:
        return f"{'moved' if moved else 'turned'} and now faces the {goal[0]}"
    if nearer > _NEARER:
        return f"{'came nearer to' if moved else 'turned towards'} the {goal[0]}"
    if nearer < -_NEARER:
        return f"{'walked' if moved else 'turned'} away from the {goal[0]}"
    if math.isnan(nearer):
        return "moved" if moved else "turned"
    return f"{'moved' if moved else 'turned'}, neither nearer to the {goal[0]} nor farther from it"


def _nearer(seen: Seen, number: int, due: int) -> float:
    """Number of actions by which an action brought the sub-task that is due nearer, as far as that is known; nan if it is not.

    Far away, what the network reads of the way's length errs by more than one action. Its verdict does not, and is believed: what serves
    leads nearer. Where the two say the opposite, nothing is known.
    """
    said = float(seen.distance[due, number] - seen.distance[due, number + 1])
    believed = float(np.argmax(seen.verdict[number])) - 1
    return believed if abs(said) <= _NEARER or said * believed > 0 else math.nan


def _told(seen: Seen, number: int, *, verdicts: bool) -> str:
    """What is said of an action after its name."""
    before, after = list(pairwise(seen.scenes))[number]
    due, then = (int(np.argmax(seen.due[picture])) for picture in (number, number + 1))
    if due == len(seen.phrases):
        told, end = changes(before, after), "all is done already"
    elif due == seen.possible:
        told, end = changes(before, after), f"there is no {_either(seen.missing)} to be seen"
    else:
        phrase = seen.phrases[due]
        told = changes(before, after, _goal(phrase, before), nearer=_nearer(seen, number, due))
        end = f"with that '{phrase}' is done" if then > due else ""
    said = VERDICTS[int(np.argmax(seen.verdict[number]))] if verdicts else f"{_share(float(seen.progress[number + 1]))} is done"
    return "; ".join(filter(None, (told, end, said)))


def _goal(phrase: str, scene: Scene) -> tuple[str, ...]:
    """The things that a sub-task is about, the one to be reached now first."""
    things = named(phrase)
    return things[::-1] if asks(phrase) == "put next to" and scene.carried == things[0] else things


def _beside(scene: Scene, thing: str, goal: Sequence[str]) -> str:
    """That a thing lies next to the other one that the sub-task is about, if it does."""
    for other in goal:
        if other != thing and {other, thing} <= scene.things.keys():
            down, right = (abs(one - two) for one, two in zip(scene.things[other], scene.things[thing], strict=True))
            if down + right == 1:
                return f" next to the {other}"
    return ""


def _share(progress: float) -> str:
    return f"{100 * progress:.0f} %"


def _actions(count: float) -> str:
    whole = round(count)
    return "1 action" if whole == 1 else f"{whole} actions"


def _quoted(phrases: Sequence[str]) -> str:
    return ", ".join(f"'{phrase}'" for phrase in phrases)


def _either(things: Sequence[str]) -> str:
    return " and no ".join(things)
