"""What the embedded rater's judgements are worth: measured on worlds that it was not trained in, beside what costs nothing.

Per transition, on windows of recorded behaviour: how well does "this action serves the instruction" agree with the simulator? Beside the
rater stand

- guesses that see no picture and no word, only the actions: how often the same action, or the same three actions in a row, served in
  worlds of other seeds, and what a network learns from eight actions on either side (more than a rater is shown: they reach beyond its
  window), with and without being told where the sub-task begins and ends, which whoever is given a sub-task's words is told;
- full information: the same reasoning over the window, but told what each action does and how far there is to go instead of looking. With
  a sub-task's own words it is right by construction wherever it knows the distances; with the whole chain it has to find out from the
  window how much is done already, so it says how well that can be done at least;
- controls: another window's pictures, other words about the same pictures, and time running backwards. A rater that looks at the pictures
  and reads the words does worse under each of them;
- reading: many actions serve another instruction, too, so scores need not fall much where the words are wrong. What the actions truly did
  for the wrong words is known as well, and a rater that reads agrees with that instead. On the actions that serve under one of the two
  instructions and not under the other, a rater that does not read the words is right as often as it is wrong.

Looks are taken with the NumPy network, as users get them. A window's looks are one for each picture and clause, independent of each other,
so a sub-task's part of a window, and the window backwards, are parts of the same looks.

Intervals are 95 % bootstrap intervals over episodes; every demonstration is of a task of its own. Differences are paired: both sides are
resampled alike. Everything returned is JSON-ready: an estimate is {"value", "low", "high"}, or None where it is undefined.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from guerdon.envs._babyai_distance import Action, WorldMap, distance_field
from guerdon.envs._babyai_words import WORDINGS, Clause, Thing
from guerdon.errors import UsageError
from guerdon.evaluation.statistics import Estimate
from guerdon.evaluation.truth import digitise
from guerdon.metrics import spearman
from guerdon.providers._embedded_words import named, tokens
from guerdon.providers.embedded import EQUAL, FULFILLED, SCORES
from guerdon.recipes.parallel import run_jobs
from guerdon.recipes.progress import Progress
from guerdon.seeding import generator, stream_seed

if TYPE_CHECKING:
    from guerdon.interfaces import Dataset
    from guerdon.providers._embedded_network import EmbeddedNetwork, Judgement, Looks
    from guerdon.recipes._embedded_data import Window
    from guerdon.records import Frames, Label

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Record = dict[str, Any]

RESAMPLES = 1000
ACTIONS: Mapping[str, tuple[Action, ...]] = {
    "turning": (Action.TURN_LEFT, Action.TURN_RIGHT),
    "moving forward": (Action.MOVE_FORWARD,),
    "handling": (Action.PICK_UP, Action.DROP, Action.TOGGLE),
    "waiting": (Action.DONE,),
}
"""Groups of actions that agreement is told for."""
THREE_ACTIONS = "previous, this and next action"
"""The better one of the two tables that see no picture."""
ALL_ACTIONS = "network of the actions alone"
ALL_ACTIONS_AND_ENDS = "network of the actions alone, told the sub-task's ends"
_REACH = 8
"""Actions on either side that the networks of actions see."""
_MORE_EPISODES = 4
"""Times as many episodes that they learn from as tables are made from; with four times as many again they gain little."""
_PASSES, _BATCH, _WIDTH = 8, 256, 64
"""How often they see each of these, how many at a time, and how wide they are."""
_GRID = 50
"""Cells that qualities are sorted into where rank correlations are resampled."""
_NONE = -1
"""Stands for the action before an episode's first one, and for the one after its last."""
_TENTHS = 10
_MORE_TASKS = "Evaluate on more tasks."


# --- what is judged -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Behaviour that the rater is tried on."""

    name: str
    words: str
    """For people."""
    level: str
    lengths: tuple[int, int] = (1, 3)
    """Least and greatest number of sub-tasks."""
    behaviour: Literal["collect", "pilot"] = "collect"
    """How far the demonstrators stray: as `guerdon collect babyai` has it, or so that 36 % of the actions serve."""
    held_out_wording: bool = False
    like: str = ""
    """Name of the distribution with the same episodes in other words, that this one is compared with; empty for none."""


DISTRIBUTIONS: tuple[Distribution, ...] = (
    Distribution(name="two-rooms", words="two-rooms, 1 to 3 sub-tasks, as `guerdon collect babyai` records it", level="two-rooms"),
    Distribution(name="small", words="small, 1 to 3 sub-tasks, as `guerdon demo` records it", level="small"),
    Distribution(
        name="pilot", words="one-room, one sub-task, 36 % of the actions serve", level="one-room", lengths=(1, 1), behaviour="pilot"
    ),
    Distribution(
        name="held-out", words="two-rooms, the same episodes in wordings that were held out of training", level="two-rooms",
        held_out_wording=True, like="two-rooms",
    ),
    Distribution(name="one-room", words="one-room, 1 to 3 sub-tasks", level="one-room"),
    Distribution(name="four-rooms", words="four-rooms, 1 to 3 sub-tasks", level="four-rooms"),
    Distribution(name="long", words="two-rooms, 4 to 6 sub-tasks", level="two-rooms", lengths=(4, 6)),
)  # fmt: skip


def draw_windows(distribution: Distribution, *, seed: int, tasks: int) -> list[Window]:
    """The windows of `tasks` episodes, each of a task of its own, by episode and time. Raises EnvironmentFailed."""
    from guerdon.recipes._embedded_data import PILOT_NOISE, windows
    from guerdon.recipes.collect_babyai import Noise

    return windows(
        distribution.level,
        seed=seed,
        tasks=tasks,
        demonstrations=1,
        lengths=distribution.lengths,
        noise=PILOT_NOISE if distribution.behaviour == "pilot" else Noise(),
        held_out_wording=distribution.held_out_wording,
    )


@dataclass(frozen=True)
class Transitions:
    """All transitions of some windows, in the windows' order; arrays are (N,)."""

    episode: Integers
    """Position of the transition's episode, 0 .. number of episodes - 1."""
    action: Integers
    context: Integers
    """(N, 3): the action before, the action and the one after within the episode."""
    contribution: Array
    """NaN where it is not known."""
    kind: npt.NDArray[np.str_]
    """Kind of the clause that is due."""

    @property
    def known(self) -> Booleans:
        """Whether the contribution is known."""
        return ~np.isnan(self.contribution)

    @property
    def serves(self) -> Booleans:
        """Whether the action serves the instruction; False where that is not known."""
        return self.contribution > 0


def transitions_of(windows: Sequence[Window]) -> Transitions:
    """The transitions of windows that stand by episode and time. Raises UsageError for no windows."""
    if not windows:
        raise UsageError("there are no windows to judge", cure=_MORE_TASKS)
    names = [window.episode for window in windows]
    _, episode = np.unique(names, return_inverse=True)
    contexts = []
    for _, members in groupby(windows, key=lambda window: window.episode):
        taken = np.concatenate([[_NONE], *(np.asarray(window.actions, np.int64) for window in members), [_NONE]])
        contexts.append(np.lib.stride_tricks.sliding_window_view(taken, 3))
    context = np.concatenate(contexts)
    kinds = [clause_of(window.phrases[due]).kind for window in windows for due in _due(window)]
    counts = [len(window.actions) for window in windows]
    return Transitions(
        episode=np.repeat(episode.reshape(-1), counts).astype(np.int64),
        action=context[:, 1],
        context=context,
        contribution=np.concatenate([np.asarray(window.contribution, np.float64) for window in windows]),
        kind=np.array(kinds),
    )


def _due(window: Window) -> list[int]:
    """Which clause was due before each action."""
    return [int(done) for done in window.subtask[: len(window.actions)]]


@dataclass(frozen=True)
class _Part:
    """Transitions [start, stop) of a window, in which one clause is due."""

    clause: int
    start: int
    stop: int


def _parts(window: Window) -> list[_Part]:
    """A window cut where the clause that is due changes."""
    due, parts, start = _due(window), [], 0
    for clause, members in groupby(due):
        stop = start + len(list(members))
        parts.append(_Part(clause, start, stop))
        start = stop
    return parts


def _patterns() -> list[tuple[Any, re.Pattern[str]]]:
    places = {"target": r"(?P<target>\w+ \w+)", "beside": r"(?P<beside>\w+ \w+)"}
    return [(kind, re.compile(template.format(**places))) for kind, templates in WORDINGS.items() for template in templates]


_CLAUSES = _patterns()


def clause_of(phrase: str) -> Clause:
    """What a sub-task's words mean. Raises ValueError for words that no template gives."""
    for kind, pattern in _CLAUSES:
        if found := pattern.fullmatch(phrase):
            things = {name: Thing.parse(words) for name, words in found.groupdict().items()}
            return Clause(kind, **things)
    raise ValueError(f"'{phrase}' is none of the world's sub-tasks")


# --- judging --------------------------------------------------------------------------------------------------------------------------


def looks_at(network: EmbeddedNetwork, pictures: Frames, phrases: Sequence[str]) -> Looks:
    """Looks at every picture, (N, H, W, 3), with every clause."""
    return network.look(pictures, [tokens(phrase) for phrase in phrases])


def part_of(looks: Looks, clauses: slice, pictures: slice) -> Looks:
    """The looks with some of the clauses at some of the pictures."""
    return replace(
        looks,
        classes=looks.classes[clauses, pictures],
        completes=looks.completes[clauses, pictures],
        distance=looks.distance[clauses, pictures],
        done=looks.done[clauses, pictures],
        words=looks.words[clauses],
    )


_BACKWARDS = slice(None, None, -1)
_ALL = slice(None)


def verdicts_on_parts(network: EmbeddedNetwork, windows: Sequence[Window], looks: Sequence[Looks], *, backwards: bool = False) -> Array:
    """(N, 3) probabilities that each transition hinders, does not matter, serves, if each sub-task's part of a window is judged by the
    sub-task's own words; from looks with the clauses of each window. `backwards`: as if pictures and actions came in the opposite order."""
    found = []
    for window, seen in zip(windows, looks, strict=True):
        for part in _parts(window):
            own = part_of(seen, slice(part.clause, part.clause + 1), slice(part.start, part.stop + 1))
            found.append(_verdict(network, own, np.asarray(window.actions)[part.start : part.stop], backwards=backwards))
    return np.concatenate(found)


def verdicts_on_windows(network: EmbeddedNetwork, windows: Sequence[Window], looks: Sequence[Looks], *, backwards: bool = False) -> Array:
    """The same, each window judged by the whole chain."""
    pairs = zip(windows, looks, strict=True)
    return np.concatenate([_verdict(network, seen, np.asarray(window.actions), backwards=backwards) for window, seen in pairs])


def _verdict(network: EmbeddedNetwork, looks: Looks, actions: npt.NDArray[Any], *, backwards: bool) -> Array:
    if backwards:
        found = network.judge(part_of(looks, _ALL, _BACKWARDS), actions[::-1].tolist()).verdict[::-1]
    else:
        found = network.judge(looks, actions.tolist()).verdict
    return np.asarray(found, np.float64)


# --- measures -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resampling:
    """How often each of E episodes counts. Equal numbers of episodes are drawn alike.

    Every measure is an array: its value on the data, then on each resample. Where all values come from a single episode, the resamples are
    NaN: they would say nothing of other episodes.
    """

    times: Array
    """(1 + resamples, E): once each, then as drawn."""

    @classmethod
    def of(cls, episodes: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Resampling:
        """Draws of so many episodes; none for a single one."""
        even = np.full(episodes, 1 / episodes)
        draws = generator(seed, "bootstrap episodes").multinomial(episodes, even, size=resamples if episodes > 1 else 0)
        return cls(np.concatenate([np.ones((1, episodes)), draws]).astype(np.float64))

    def agreement(self, scores: Array, serves: Booleans, episode: Integers) -> dict[str, Array]:
        """Measure -> its value on the data and on each resample, for scores in [0, 1] of transitions; 0.5 and more says that it serves.

        All are exact, ties and the smallest differences between scores included: how often a serving transition of one episode scores above
        another one of a second episode is counted once for each two episodes, and a resample weighs these counts.
        """
        count, said = self.times.shape[1], scores >= 0.5
        ordered = np.zeros((count, count))
        for own in np.unique(episode):
            others = np.sort(scores[(episode == own) & ~serves])
            below, not_above = (np.searchsorted(others, scores[serves], side) for side in ("left", "right"))
            ordered[:, own] = np.bincount(episode[serves], (below + not_above) / 2, count)
        yes, no, right_yes, right_no = (
            self.times @ np.bincount(episode[own], minlength=count) for own in (serves, ~serves, serves & said, ~(serves | said))
        )
        return {
            "accuracy": self._shares(right_yes + right_no, yes + no, episode),
            "balanced_accuracy": self._shares(right_yes * no + right_no * yes, 2 * yes * no, episode),
            "auroc": self._shares(((self.times @ ordered) * self.times).sum(1), yes * no, episode),
        }

    def rank_correlation(self, first: Array, second: Array, episode: Integers) -> Array:
        """Spearman's correlation, exact on the data and over cells of nearly equal values on each resample."""
        ours, theirs, weights = self._cells(np.round(first * _GRID) / _GRID, np.round(second * _GRID) / _GRID, episode)
        return self._measured(spearman(first, second), [spearman(ours, theirs, each) for each in weights[1:]], episode)

    def mean(self, values: Array, episode: Integers) -> Array:
        """The mean on the data and on each resample; NaN where there is nothing."""
        count = self.times.shape[1]
        sums, sizes = np.bincount(episode, values, count), np.bincount(episode, minlength=count)
        return self._shares(self.times @ sums, self.times @ sizes, episode)

    def _shares(self, parts: Array, wholes: Array, episode: Integers) -> Array:
        """Their quotients; NaN for parts of nothing."""
        value, *resampled = np.divide(parts, wholes, out=np.full(len(wholes), np.nan), where=wholes > 0).tolist()
        return self._measured(value, resampled, episode)

    def _measured(self, value: float, resampled: Sequence[float], episode: Integers) -> Array:
        several = len(np.unique(episode)) > 1
        return np.array([value, *(resampled if several else np.full(len(resampled), np.nan))])

    def _cells(self, first: npt.NDArray[Any], second: npt.NDArray[Any], episode: Integers) -> tuple[Array, Array, Array]:
        """Distinct pairs of values, (C,) and (C,), and how often each occurs in each resample, (1 + resamples, C)."""
        pairs, cell = np.unique(np.stack([first, second.astype(np.float64)]), axis=1, return_inverse=True)
        counts = np.zeros((self.times.shape[1], pairs.shape[1]))
        np.add.at(counts, (episode, cell.reshape(-1)), 1.0)
        return pairs[0], pairs[1], np.asarray(self.times @ counts)


def estimate(values: Array) -> Record | None:
    """A value and its resamples as a record; None if it is undefined."""
    return None if np.isnan(values[0]) else asdict(Estimate.of(float(values[0]), values[1:]))


def agreement_row(name: str, found: Mapping[str, Array], **others: Any) -> Record:
    """A row of a table of agreement."""
    return {"rater": name, **{measure: estimate(values) for measure, values in found.items()}, **others}


def calibration(probability: Array, happens: Booleans) -> Record:
    """How far probabilities and shares lie apart: (N,) probabilities, sorted into tenths.

    Returns:
        "tenths", rows of {"count", "said", "true"} for the tenths that occur; "gap", the mean of |said - true| over the N.
    """
    tenth = np.minimum((probability * _TENTHS).astype(np.int64), _TENTHS - 1)
    rows = [
        {"count": int(own.sum()), "said": float(probability[own].mean()), "true": float(happens[own].mean())}
        for own in (tenth == number for number in range(_TENTHS))
        if own.any()
    ]
    gap = sum(row["count"] * abs(row["said"] - row["true"]) for row in rows) / max(len(probability), 1)
    return {"tenths": rows, "gap": gap}


# --- guessing from actions alone ------------------------------------------------------------------------------------------------------


def blind_tables(learned_from: Transitions, asked: Transitions) -> tuple[Array, Array]:
    """Share that served among the transitions with the same action, and with the same three actions in a row, (N,) each; unheard-of three
    actions are judged by the one, and an unheard-of one by the share of all."""
    known = learned_from.known
    serves = learned_from.serves[known].astype(np.float64)
    fallback = np.full(len(asked.action), serves.mean() if len(serves) else 0.0)
    single = _share_by_key(learned_from.context[known, 1:2], serves, asked.context[:, 1:2], fallback)
    return single, _share_by_key(learned_from.context[known], serves, asked.context, single)


def _share_by_key(keys: Integers, serves: Array, asked: Integers, fallback: Array) -> Array:
    _, number = np.unique(np.concatenate([keys, asked]), axis=0, return_inverse=True)
    number = number.reshape(-1)
    own, theirs = number[: len(keys)], number[len(keys) :]
    total = np.bincount(own, minlength=number.max() + 1)
    served = np.bincount(own, weights=serves, minlength=number.max() + 1)
    return np.where(total[theirs] > 0, served[theirs] / np.maximum(total[theirs], 1), fallback)


def actions_around(windows: Sequence[Window], *, ends: bool) -> Integers:
    """The actions around each transition of windows that stand by episode and time, (N, 17): eight before it, itself, eight after it.

    7 stands for what lies before the beginning, 8 for what lies after the end: of the episode, or with `ends` of the sub-task.
    """
    begun, over = len(Action), len(Action) + 1
    found = []
    for _, members in groupby(windows, key=lambda window: window.episode):
        own = list(members)
        taken, due = np.concatenate([window.actions for window in own]), np.concatenate([_due(window) for window in own])
        around = np.lib.stride_tricks.sliding_window_view(np.pad(taken, _REACH, constant_values=(begun, over)), 2 * _REACH + 1).copy()
        if ends:
            least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
            theirs = np.lib.stride_tricks.sliding_window_view(np.pad(due, _REACH, constant_values=(least, most)), 2 * _REACH + 1)
            around[theirs < due[:, None]], around[theirs > due[:, None]] = begun, over
        found.append(around)
    return np.concatenate(found).astype(np.int64)


def guess_from_actions(around: Integers, contribution: Array, asked: Integers, *, seed: int) -> Array:
    """What a small network learns from the actions around transitions (N, 17) and what those did (N,), and says about others: (M,)
    probabilities that they serve. Equal arguments give equal numbers on the same machine."""
    import torch
    from torch import nn

    from guerdon.networks import seeded

    def features(numbers: Integers) -> torch.Tensor:
        return nn.functional.one_hot(torch.from_numpy(numbers), len(Action) + 2).flatten(1).float()

    known = ~np.isnan(contribution)
    if not known.any():
        return np.zeros(len(asked))
    inputs, serves = features(around[known]), torch.tensor(contribution[known] > 0).float()
    with seeded(seed, "guess from actions"):
        layers = (nn.Linear(inputs.shape[1], _WIDTH), nn.ReLU(), nn.Dropout(0.3), nn.Linear(_WIDTH, 1))
        network = nn.Sequential(*layers)
        adam = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
        for _ in range(_PASSES):
            order = torch.randperm(len(inputs))
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                adam.zero_grad()
                loss = nn.functional.binary_cross_entropy_with_logits(network(inputs[rows])[:, 0], serves[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()
    network.eval()
    with torch.no_grad():
        return np.asarray(network(features(asked))[:, 0].sigmoid().numpy(), np.float64)


def guesses_from_actions(distribution: Distribution, windows: Sequence[Window], *, seed: int, tasks: int) -> dict[str, Array]:
    """`ALL_ACTIONS` and `ALL_ACTIONS_AND_ENDS` -> (N,) probabilities that the transitions of `windows` serve, learned from episodes of
    other seeds. Raises EnvironmentFailed."""
    lessons: dict[str, list[Integers]] = {ALL_ACTIONS: [], ALL_ACTIONS_AND_ENDS: []}
    contribution = []
    for part in range(_MORE_EPISODES):  # their pictures would not fit into memory together
        drawn = draw_windows(distribution, seed=stream_seed(seed, "guess from actions", part), tasks=tasks)
        contribution.append(np.concatenate([np.asarray(window.contribution, np.float64) for window in drawn]))
        for name, some in lessons.items():
            some.append(actions_around(drawn, ends=name == ALL_ACTIONS_AND_ENDS))
    return {
        name: guess_from_actions(
            np.concatenate(some), np.concatenate(contribution), actions_around(windows, ends=name == ALL_ACTIONS_AND_ENDS), seed=seed
        )
        for name, some in lessons.items()
    }


# --- controls -------------------------------------------------------------------------------------------------------------------------


def other_pictures(windows: Sequence[Window], *, seed: int) -> list[Frames]:
    """For each window, as many pictures as it has from a window of another episode, drawn at random.

    Raises:
        UsageError: if no other episode has a window as long.
    """
    random = generator(seed, "another window's pictures")
    found = []
    for window in windows:
        count = len(window.pictures)
        longer = [each for each in windows if each.episode != window.episode and len(each.pictures) >= count]
        if not longer:
            raise UsageError("no other episode has a window as long", cure=_MORE_TASKS)
        found.append(longer[int(random.integers(len(longer)))].pictures[:count])
    return found


@dataclass(frozen=True)
class WrongWords:
    """For each window, a wrong clause in the place of each right one, from the tasks of other episodes."""

    phrases: tuple[tuple[str, ...], ...]
    in_the_picture: float
    """Share of the wrong clauses that name nothing but things in the window's pictures; all name other things than the right ones."""


def wrong_words(windows: Sequence[Window], *, seed: int) -> WrongWords:
    """Clauses of other tasks in the place of a window's own.

    A clause is replaced by one that names other things. Drawn at random from those that name things in the picture and none of the whole
    chain's; if there are none, from those that name things in the picture; else from all of them.

    Raises:
        UsageError: if there is none that names other things.
    """
    pool = sorted({phrase for window in windows for phrase in window.phrases})
    things = {phrase: frozenset(named(phrase)) for phrase in pool}
    random = generator(seed, "wrong words")
    found, visible, count = [], 0, 0
    for window in windows:
        there, chain = things_in(window.pictures[0]), frozenset().union(*(things[phrase] for phrase in window.phrases))
        wrong = []
        for phrase in window.phrases:
            others = [each for each in pool if each not in window.phrases and not things[each] & things[phrase]]
            shown = [each for each in others if things[each] <= there]
            best = [each for each in shown if not things[each] & chain] or shown or others
            if not best:
                raise UsageError(f"no other task names anything but what '{phrase}' names", cure=_MORE_TASKS)
            wrong.append(best[int(random.integers(len(best)))])
            visible += bool(shown)
            count += 1
        found.append(tuple(wrong))
    return WrongWords(tuple(found), visible / max(count, 1))


# --- full information -----------------------------------------------------------------------------------------------------------------

_CERTAIN = 8.0
"""Logit of what is known for certain."""
_NO_WAY = 60.0
"""Stands for an infinite distance; longer than the ways in these worlds."""


def scene_of(picture: Frames) -> tuple[WorldMap, int]:
    """The map and the agent's pose that a full picture shows. Raises ValueError for a picture that is none of a BabyAI world."""
    from guerdon.recipes._embedded_data import LIBRARY, tiles_of

    indices = tiles_of(picture)
    grid = [LIBRARY[index] for index in indices[:-1].ravel()]
    carried = LIBRARY[indices[-1, 0]]
    agents = [4 * cell + tile.heading for cell, tile in enumerate(grid) if tile is not None and tile.heading is not None]
    if len(agents) != 1 or None in grid:
        raise ValueError(f"a picture shows {len(agents)} agents" if len(agents) != 1 else "a picture has a black cell")
    tiles = [tile for tile in grid if tile is not None]
    open_doors = frozenset(tile.content for tile in tiles if tile.is_open and tile.content is not None)
    cells = tuple(tile.content for tile in tiles)
    return WorldMap(indices.shape[1], cells, open_doors, None if carried is None else carried.content), agents[0]


def full_information(window: Window, looks: Looks) -> Looks:
    """The looks that somebody would have who knows the simulator: classes and completions of the actions that were taken, distances, and
    which goals hold; read off the pictures, which show everything. The words stay as the network reads them."""
    from guerdon.recipes._embedded_data import UNKNOWN, classified, completes, holds

    scenes, clauses = [scene_of(picture) for picture in window.pictures], [clause_of(phrase) for phrase in window.phrases]
    shape = looks.classes.shape
    classes, complete = np.zeros(shape, np.float32), np.full(shape[:3], -_CERTAIN, np.float32)
    distance, done = np.empty(shape[:2], np.float32), np.empty(shape[:2], np.float32)
    for number, clause in enumerate(clauses):
        away = [distance_field(world, clause)[pose] for world, pose in scenes]
        distance[number] = [min(each, _NO_WAY) for each in away]
        done[number] = [_CERTAIN if holds(clause, world, pose) else -_CERTAIN for world, pose in scenes]
        for step, action in enumerate(np.asarray(window.actions).tolist()):
            (before, _), (after, pose) = scenes[step], scenes[step + 1]
            finished = completes(clause, before, Action(action), after, pose)
            known = classified(away[step], 0.0 if finished else away[step + 1])
            if known != UNKNOWN:
                classes[number, step, action, known] = _CERTAIN
            if finished:
                complete[number, step, action] = _CERTAIN
    return replace(looks, classes=classes, completes=complete, distance=distance, done=done)


def contribution_to(window: Window, phrases: Sequence[str]) -> Array:
    """(T,) what each action did for other words: of each sub-task's part of a window, for the phrase in that sub-task's place.

    1 served, 0 changed nothing, -1 hindered, as the simulator's own labels say it. NaN where a distance is infinite, where a thing that is
    named is not to be seen, and after the action that completed the phrase in this part: from then on nothing is asked for any more.
    """
    from guerdon.recipes._embedded_data import UNKNOWN, classified, completes

    scenes, there = [scene_of(picture) for picture in window.pictures], things_in(window.pictures[0])
    found = np.full(len(window.actions), np.nan)
    for part in _parts(window):
        phrase = phrases[part.clause]
        clause = clause_of(phrase)
        for step in range(part.start, part.stop if set(named(phrase)) <= there else part.start):
            (before, pose), (after, reached) = scenes[step], scenes[step + 1]
            finished = completes(clause, before, Action(int(window.actions[step])), after, reached)
            known = classified(distance_field(before, clause)[pose], 0.0 if finished else distance_field(after, clause)[reached])
            found[step] = np.nan if known == UNKNOWN else known - 1
            if finished:
                break
    return found


def things_in(picture: Frames) -> frozenset[str]:
    """Colour and kind of everything that lies around, stands or is carried in a picture."""
    world, _ = scene_of(picture)
    return frozenset(map(str, (*world.places, *((world.carried,) if world.carried else ()))))


# --- progress -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fulfilment:
    """How far the instruction is fulfilled after each action, (N,) each, in [0, 1]."""

    true: Array
    alone: Array
    """As judged from the picture alone."""
    within: Array
    """As judged within its window."""


def fulfilment(network: EmbeddedNetwork, windows: Sequence[Window], looks: Sequence[Looks], judged: Sequence[Judgement]) -> Fulfilment:
    """What the rater says of the pictures that the windows' actions led to, beside the truth (NaN where it is not known)."""
    true, alone, within = [], [], []
    for window, seen, judgement in zip(windows, looks, judged, strict=True):
        outcomes = range(1, len(window.actions) + 1)
        true.append(np.asarray(window.quality, np.float64)[1:])
        alone.append([float(network.judge(part_of(seen, _ALL, slice(each, each + 1)), []).progress[0]) for each in outcomes])
        within.append(np.asarray(judgement.progress, np.float64)[1:])
    return Fulfilment(np.concatenate(true), np.concatenate(alone).astype(np.float64), np.concatenate(within))


DIFFERENCES = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 1.0))
"""Sizes of true differences that preferences are counted by: above the first number, up to the second."""


def pairs_of(episode: Integers, usable: Booleans, *, seed: int, most: int = 40) -> Integers:
    """Pairs of positions (P, 2) within the same episode, where the instruction is the same: at most `most` for each episode, drawn at
    random with equal chances for all that are usable; the order within a pair is drawn, too."""
    random = generator(seed, "pairs")
    found: list[tuple[int, int]] = []
    for each in np.unique(episode):
        members = np.flatnonzero((episode == each) & usable)
        if len(members) > 1:
            drawn = {tuple(random.choice(len(members), 2, replace=False).tolist()): None for _ in range(most)}
            found += [(int(members[first]), int(members[second])) for first, second in drawn]
    return np.array(found, np.int64).reshape(-1, 2)


def preference_rows(true: Array, said: Array, pairs: Integers, episode: Integers, resampling: Resampling) -> list[Record]:
    """How often the one of a pair (P, 2) that is truly better is called better, by size of the true difference, then over all pairs that
    differ; calling them equal, which the rater does with differences below `EQUAL`, is half right."""
    differ = true[pairs[:, 1]] - true[pairs[:, 0]]
    preferred = said[pairs[:, 1]] - said[pairs[:, 0]]
    right = 0.5 * (1 + np.sign(np.where(np.abs(preferred) < EQUAL, 0.0, preferred)) * np.sign(differ))
    rows = []
    for low, high in (*DIFFERENCES, (0.0, 1.0)):
        own = (np.abs(differ) > low) & (np.abs(differ) <= high)
        found = estimate(resampling.mean(right[own], episode[pairs[own, 0]]))
        rows.append({"above": low, "up_to": high, "pairs": int(own.sum()), "accuracy": found})
    return rows


def classes_of(progress: Array, levels: int) -> Integers:
    """Classes of progress (N,) as the rater cuts them for pictures: equal widths, but that the best one means fulfilled, or nearly so."""
    below = np.minimum(digitise(progress, levels), levels - 2)
    return np.where(progress >= FULFILLED, levels - 1, below).astype(np.int64)


def rating_record(true: Array, said: Array, episode: Integers, resampling: Resampling) -> Record:
    """Rank correlation of progress with the true quality (N,), and share of equal classes with 2 to 5 of them."""
    rows = []
    for levels in (2, 3, 4, 5):
        actual, given = classes_of(true, levels), classes_of(said, levels)
        majority = float(np.bincount(actual).max() / len(actual)) if len(actual) else None
        share = estimate(resampling.mean((given == actual).astype(np.float64), episode))
        rows.append({"classes": levels, "accuracy": share, "majority": majority})
    return {"spearman": estimate(resampling.rank_correlation(said, true, episode)), "classes": rows}


# --- everything about one distribution ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """A distribution to be tried."""

    weights: Path
    """The network, a safetensors file."""
    distribution: Distribution
    tasks: int
    """Episodes, each of a task of its own."""
    seed: int
    """Of the episodes that are judged."""
    blind_seed: int
    """Of the episodes that the tables of actions are made from, as many again."""
    known_tasks: frozenset[str] = frozenset()
    """Tasks that the network was trained or calibrated on; their episodes are left out, should there be any."""
    resamples: int = RESAMPLES


@dataclass(frozen=True)
class Tried:
    """What was measured on one distribution."""

    record: Record
    by_row: Mapping[str, Array]
    """Row -> AUROC on the data and on each resample, for differences between distributions with the same episodes."""


def try_distribution(job: Job, progress: Progress) -> Tried:
    """Measures a network on a distribution: see the module's text. Raises EnvironmentFailed, UsageError for too few tasks, or as
    `EmbeddedNetwork.load`."""
    from guerdon.providers._embedded_network import EmbeddedNetwork

    network, steps = EmbeddedNetwork.load(job.weights), _Steps(progress, 7)
    windows = [window for window in draw_windows(job.distribution, seed=job.seed, tasks=job.tasks) if window.task not in job.known_tasks]
    asked = transitions_of(windows)
    resampling = Resampling.of(int(asked.episode.max()) + 1, seed=job.seed, resamples=job.resamples)
    steps.done()
    tables = blind_tables(transitions_of(draw_windows(job.distribution, seed=job.blind_seed, tasks=job.tasks)), asked)
    steps.done()
    guesses = guesses_from_actions(job.distribution, windows, seed=job.blind_seed, tasks=job.tasks)
    steps.done()
    looks = [looks_at(network, window.pictures, window.phrases) for window in windows]
    steps.done()
    right = _Verdicts.of(network, windows, looks)
    exact = _Verdicts.of(network, windows, [full_information(window, seen) for window, seen in zip(windows, looks, strict=True)])
    steps.done()
    measured = _Measured(asked, resampling)
    raters = {
        "embedded, sub-task's words": right.parts,
        "embedded, whole chain": right.whole,
        "per-action majority": tables[0],
        THREE_ACTIONS: tables[1],
        **guesses,
        "full information, sub-task's words": exact.parts,
        "full information, whole chain": exact.whole,
    }
    by_row = {name: measured.agreement(found) for name, found in raters.items()}
    compared = {name: found for name, found in raters.items() if name.startswith("embedded") or name == THREE_ACTIONS}
    record: Record = {
        "name": job.distribution.name,
        "words": job.distribution.words,
        "level": job.distribution.level,
        "episodes": int(asked.episode.max()) + 1,
        "windows": len(windows),
        "transitions": int(asked.known.sum()),
        "unknown": int((~asked.known).sum()),
        "serving": float(asked.serves[asked.known].mean()) if asked.known.any() else None,
        "rows": [
            agreement_row(name, found, auroc_above_table=estimate(found["auroc"] - by_row[THREE_ACTIONS]["auroc"]))
            for name, found in by_row.items()
        ],
        "by_kind": measured.by_kind(compared),
        "by_action": measured.by_action(compared),
        "calibration": {"parts": measured.calibration(right.parts), "whole": measured.calibration(right.whole)},
    }
    if not job.distribution.held_out_wording:
        record["controls"] = _controls(network, windows, looks, right, tables[1], measured, job.seed)
    steps.done()
    judged = [network.judge(seen, np.asarray(window.actions).tolist()) for window, seen in zip(windows, looks, strict=True)]
    record["progress"] = _progress(fulfilment(network, windows, looks, judged), asked.episode, resampling, job.seed)
    steps.done()
    return Tried(record, {name: found["auroc"] for name, found in by_row.items()})


class _Steps:
    """Reports one step after another."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def done(self) -> None:
        self._done += 1
        self._progress(self._done, self._total)


@dataclass(frozen=True)
class _Verdicts:
    """(N, 3) probabilities of hindering, not mattering and serving."""

    parts: Array
    """Each sub-task's part of a window judged by the sub-task's words."""
    whole: Array
    """Each window judged by the whole chain."""

    @classmethod
    def of(cls, network: EmbeddedNetwork, windows: Sequence[Window], looks: Sequence[Looks], *, backwards: bool = False) -> _Verdicts:
        parts = verdicts_on_parts(network, windows, looks, backwards=backwards)
        return cls(parts, verdicts_on_windows(network, windows, looks, backwards=backwards))


@dataclass(frozen=True)
class _Measured:
    """Measures on the transitions whose contribution is known."""

    transitions: Transitions
    resampling: Resampling

    def agreement(self, verdicts: Array, among: Booleans | None = None) -> dict[str, Array]:
        """Of verdicts (N, 3), or of probabilities of serving (N,), among some of the transitions."""
        own = self.transitions.known if among is None else self.transitions.known & among
        scores = verdicts[:, 2] if verdicts.ndim == 2 else verdicts
        return self.resampling.agreement(scores[own], self.transitions.serves[own], self.transitions.episode[own])

    def mean_score(self, verdicts: Array) -> Array:
        """Mean score from 0 to 10."""
        own = self.transitions.known
        return self.resampling.mean((verdicts @ np.array(SCORES))[own], self.transitions.episode[own])

    def reading(self, right: Array, wrong: Array, table: Array, truth: Array) -> Record:
        """Whether verdicts follow the words: (N, 3) with the right ones and with wrong ones, beside the truth under the wrong words (N,).

        Returns:
            on the transitions whose contribution is known under both: "transitions"; "serving" and "serving_wrong", the shares that serve;
            "auroc" under the wrong words, and "table_auroc" of a table of actions (N,), against the truth under the wrong words;
            "score_change" of the mean score, and "score_change_known", what it is for somebody who knows the truth.
            On those that serve under one and not under the other: "differ", their number; "differ_auroc" and "differ_auroc_wrong", of the
            scores under each against its own truth, whose mean is one half without reading; "follows", the share that scores higher under
            the words that it serves (ties count half).
        """
        both = self.transitions.known & ~np.isnan(truth)
        one, other, episode = self.transitions.serves, truth > 0, self.transitions.episode
        differ = both & (one != other)
        worth = dict(zip((-1.0, 0.0, 1.0), SCORES, strict=True))

        def agree(scores: Array, serves: Booleans, among: Booleans) -> Record | None:
            return estimate(self.resampling.agreement(scores[among], serves[among], episode[among])["auroc"])

        def mean(values: Array, among: Booleans) -> Record | None:
            return estimate(self.resampling.mean(values, episode[among]))

        scored = (wrong - right) @ np.array(SCORES)
        ideal = [worth[after] - worth[before] for before, after in zip(self.transitions.contribution[both], truth[both], strict=True)]
        towards = np.sign((right - wrong)[:, 2]) * np.where(one, 1, -1)
        return {
            "transitions": int(both.sum()),
            "serving": float(one[both].mean()) if both.any() else None,
            "serving_wrong": float(other[both].mean()) if both.any() else None,
            "auroc": agree(wrong[:, 2], other, both),
            "table_auroc": agree(table, other, both),
            "score_change": mean(scored[both], both),
            "score_change_known": mean(np.array(ideal), both),
            "differ": int(differ.sum()),
            "differ_auroc": agree(right[:, 2], one, differ),
            "differ_auroc_wrong": agree(wrong[:, 2], other, differ),
            "follows": mean((1 + towards[differ]) / 2, differ),
        }

    def by_kind(self, raters: Mapping[str, Array]) -> list[Record]:
        """Agreement by the kind of the clause that is due, of verdicts or probabilities by name."""
        kinds = {str(kind): self.transitions.kind == kind for kind in np.unique(self.transitions.kind)}
        return self._by_group("kind", kinds, raters)

    def by_action(self, raters: Mapping[str, Array]) -> list[Record]:
        """The same by what was done."""
        return self._by_group("action", {name: np.isin(self.transitions.action, own) for name, own in ACTIONS.items()}, raters)

    def _by_group(self, title: str, groups: Mapping[str, Booleans], raters: Mapping[str, Array]) -> list[Record]:
        rows = []
        for group, among in groups.items():
            own = among & self.transitions.known
            facts = {
                title: group,
                "transitions": int(own.sum()),
                "serving": float(self.transitions.serves[own].mean()) if own.any() else None,
            }
            rows += [agreement_row(name, self.agreement(found, among), **facts) for name, found in raters.items()]
        return rows

    def calibration(self, verdicts: Array) -> Record:
        """Of the probability of serving."""
        own = self.transitions.known
        return calibration(verdicts[own, 2], self.transitions.serves[own])


def _controls(
    network: EmbeddedNetwork,
    windows: Sequence[Window],
    looks: Sequence[Looks],
    right: _Verdicts,
    table: Array,
    measured: _Measured,
    seed: int,
) -> Record:
    """What becomes of the agreement and of the mean score under each control, for both kinds of words.

    Returns:
        "rows": {"control", "words", "auroc", "score", "auroc_change", "score_change", "auroc_above_table"}, an estimate each; and
        "in_the_picture", see `WrongWords`; and "reading", see `_Measured.reading`, with each sub-task's words.
    """
    others = other_pictures(windows, seed=seed)
    wrong = wrong_words(windows, seed=seed)
    by_control = {
        "another window's pictures": _Verdicts.of(
            network, windows, [looks_at(network, shown, window.phrases) for window, shown in zip(windows, others, strict=True)]
        ),
        "wrong instruction": _Verdicts.of(
            network, windows, [looks_at(network, window.pictures, words) for window, words in zip(windows, wrong.phrases, strict=True)]
        ),
        "backwards in time": _Verdicts.of(network, windows, looks, backwards=True),
    }
    blind = measured.agreement(table)["auroc"]
    rows = []
    for words, which in (("sub-task's words", "parts"), ("whole chain", "whole")):
        before: Array = getattr(right, which)
        auroc_before, score_before = measured.agreement(before)["auroc"], measured.mean_score(before)
        for control, found in by_control.items():
            after: Array = getattr(found, which)
            auroc_after, score_after = measured.agreement(after)["auroc"], measured.mean_score(after)
            rows.append(
                {
                    "control": control,
                    "words": words,
                    "auroc": estimate(auroc_after),
                    "score": estimate(score_after),
                    "auroc_change": estimate(auroc_after - auroc_before),
                    "score_change": estimate(score_after - score_before),
                    "auroc_above_table": estimate(auroc_after - blind),
                }
            )
    pairs = zip(windows, wrong.phrases, strict=True)
    truth = np.concatenate([contribution_to(window, phrases) for window, phrases in pairs])
    reading = measured.reading(right.parts, by_control["wrong instruction"].parts, table, truth)
    return {"rows": rows, "in_the_picture": wrong.in_the_picture, "reading": reading}


def _progress(found: Fulfilment, episode: Integers, resampling: Resampling, seed: int) -> Record:
    known = ~np.isnan(found.true)
    pairs = pairs_of(episode, known, seed=seed)
    sides = {"alone": found.alone, "within": found.within}
    return {
        side: {
            **rating_record(found.true[known], said[known], episode[known], resampling),
            "preferences": preference_rows(found.true, said, pairs, episode, resampling),
        }
        for side, said in sides.items()
    }


def windows_per_second(network: EmbeddedNetwork, windows: Sequence[Window], *, seconds: float = 1.0) -> list[Record]:
    """How many windows a second are judged in this process, looks and reasoning together, by number of clauses, for the longest windows.

    Returns:
        One row {"clauses", "transitions", "windows_per_second"} for each number of clauses that occurs.
    """
    longest = max(len(window.actions) for window in windows)
    rows = []
    for length in sorted({len(window.phrases) for window in windows}):
        own = [window for window in windows if len(window.phrases) == length and len(window.actions) == longest]
        began, count = time.perf_counter(), 0
        while own and time.perf_counter() - began < seconds:
            window = own[count % len(own)]
            network.judge(looks_at(network, window.pictures, window.phrases), np.asarray(window.actions).tolist())
            count += 1
        if count:
            rate = count / (time.perf_counter() - began)
            rows.append({"clauses": length, "transitions": longest, "windows_per_second": rate})
    return rows


# --- all of it ------------------------------------------------------------------------------------------------------------------------


def evaluate(
    weights: Path,
    *,
    tasks: int,
    seed: int,
    blind_seed: int,
    workers: int,
    progress: Progress,
    known_tasks: frozenset[str] = frozenset(),
    resamples: int = RESAMPLES,
) -> list[Record]:
    """One record for each of `DISTRIBUTIONS`, in that order.

    Args:
        weights: the network, a safetensors file.
        tasks: episodes of each distribution, each of a task of its own.
        seed: of the episodes that are judged; none of the network's training or calibration.
        blind_seed: of the episodes that the tables of actions are made from.
        known_tasks: tasks that the network was trained or calibrated on.
        workers: processes at a time; 0 for as many as there are cores.
    """
    shared: dict[str, Any] = {"seed": seed, "blind_seed": blind_seed, "known_tasks": known_tasks, "resamples": resamples}
    jobs = [Job(weights=weights, distribution=each, tasks=tasks, **shared) for each in DISTRIBUTIONS]
    found = run_jobs(try_distribution, jobs, workers=workers, progress=progress)
    tried = dict(zip((each.name for each in DISTRIBUTIONS), found, strict=True))
    for distribution in DISTRIBUTIONS:
        if distribution.like:
            own, other = tried[distribution.name], tried[distribution.like]
            own.record["compared_with"] = distribution.like
            own.record["auroc_change"] = {
                name: estimate(after - other.by_row[name])
                for name, after in own.by_row.items()
                if own.record["episodes"] == other.record["episodes"]
            }
    return [tried[each.name].record for each in DISTRIBUTIONS]


@dataclass(frozen=True, kw_only=True)
class SpeedJob:
    """A network whose speed is to be measured."""

    weights: Path
    seed: int
    seconds: float = 2.0
    """For each level and number of clauses."""


def speed(job: SpeedJob, progress: Progress) -> list[Record]:
    """Windows a second in this process, looks and reasoning together, by level and number of clauses; to be run in a process with one
    thread. Rows {"level", "clauses", "transitions", "windows_per_second"}."""
    from guerdon.envs._babyai_world import LEVELS
    from guerdon.providers._embedded_network import EmbeddedNetwork

    network, rows = EmbeddedNetwork.load(job.weights), []
    for number, level in enumerate(LEVELS):
        windows = draw_windows(Distribution(name=level, words="", level=level), seed=job.seed, tasks=6)
        rows += [{"level": level, **row} for row in windows_per_second(network, windows, seconds=job.seconds)]
        progress(number + 1, len(LEVELS))
    return rows


# --- through the engine ---------------------------------------------------------------------------------------------------------------


def without_ground_truth(dataset: Dataset, out: Path) -> Path:
    """Writes a copy of a dataset that holds pictures, actions and words, and neither privileged fields nor what the recorder wrote about
    the episodes (the simulator's seeds among it). Where each sub-task begins and ends stays: it belongs to the words, and nobody could be
    asked by a sub-task's own words without it. Returns its folder. Raises DatasetError, WriteFailed."""
    from guerdon.datasets.minari import RecordedEpisode, write_minari

    def episodes() -> Iterator[RecordedEpisode]:
        for info in dataset.episodes():
            yield RecordedEpisode(
                frames={view: dataset.frames(info.index, view, 0, info.length + 1) for view in dataset.views},
                actions=dataset.actions(info.index),
                rewards=np.asarray(dataset.rewards(info.index), np.float64),
                terminated=info.terminated,
                truncated=info.truncated,
                annotations=info.annotations,
            )

    write_minari(
        out, episodes(), dataset_id="guerdon/babyai-without-truth-v0", action_names=dataset.action_names,
        environment=dataset.environment, description="Pictures, actions and words alone",
    )  # fmt: skip
    return out


@dataclass(frozen=True, kw_only=True)
class EngineJob:
    """A network that labels a dataset like any rater."""

    weights: Path
    folder: Path
    """Where dataset, labels and replies go; what is there is used again."""
    tasks: int
    """Tasks of two-rooms as `guerdon collect babyai` makes them, each demonstrated twice."""
    seed: int
    known_tasks: frozenset[str] = frozenset()
    """Tasks that the network was trained or calibrated on."""
    judged: int = 400
    """Pictures and pairs that are judged."""
    methods: tuple[str, ...] = ("rg-vlm", "rating", "preference")
    """How the rater is asked."""


def through_the_engine(job: EngineJob, progress: Progress) -> Record:
    """Records a dataset, labels it with `--vlm embedded` by scores (episodes and sub-tasks), ratings and preferences, and measures the
    labels; then labels a copy without ground truth in the same ways.

    Returns:
        "rows", one for each way: what `guerdon.evaluation.raters` measures (`to_record`), under "method" and "words"; and
        "equal_without_truth", whether all labels of the copy are the same; and "known_tasks", how many of the tasks are known to the
        network.
    """
    from guerdon import discover, samples
    from guerdon.datasets import open_dataset
    from guerdon.evaluation.raters import measure, measure_ratings
    from guerdon.recipes.collect_babyai import Config as Collect
    from guerdon.recipes.collect_babyai import collect_babyai
    from guerdon.recipes.label import label

    every_way: tuple[tuple[str, str, samples.Config], ...] = (
        ("rg-vlm", "whole chain", samples.Config()),
        ("rg-vlm", "sub-task's words", samples.Config(unit="subtask")),
        ("rating", "whole chain", samples.Config(sample=job.judged)),
        ("preference", "whole chain", samples.Config(sample=job.judged)),
    )
    ways = [way for way in every_way if way[0] in job.methods]
    steps = _Steps(progress, 2 + 2 * len(ways))
    data, bare = job.folder / "data", job.folder / "data-without-truth"
    if not data.exists():
        collect_babyai(Collect(out=data, tasks=job.tasks, demonstrations=1, seed=job.seed))
    steps.done()
    if not bare.exists():
        without_ground_truth(open_dataset(data), bare)
    steps.done()
    provider: Any = discover.load("providers", "embedded")
    rows, equal = [], True
    for number, (method, words, sampling) in enumerate(ways):
        found = []
        for folder in (data, bare):
            labelled = label(
                dataset=folder, run=job.folder / f"run-{folder.name}", name=f"labels_{number}", method=method, vlm=("embedded",),
                sampling=sampling, store=str(job.folder / f"replies-{folder.name}.sqlite"), min_coverage=0.0, quiet=True,
                rater_settings={"embedded": provider.Config(weights=job.weights)},
            )  # fmt: skip
            found.append(labelled.labels)
            steps.done()
        measured = (measure if method == "rg-vlm" else measure_ratings)(found[0], open_dataset(data), resamples=RESAMPLES)
        rows.append({"method": method, "words": words, **measured.to_record()})
        equal = equal and list(map(_said, found[0].labels)) == list(map(_said, found[1].labels))
    known = {str(info.metadata["task"]["id"]) for info in open_dataset(data).episodes()} & job.known_tasks
    return {"rows": rows, "equal_without_truth": equal, "known_tasks": len(known)}


def _said(label: Label) -> tuple[Any, ...]:
    """What a label says about which place."""
    return label.episode, label.start, label.stop, label.episode_b, label.start_b, label.stop_b, label.state, label.value, label.rationale
