"""What a reward model looks at: single transitions, and judgements about one or many of them.

`StepArrays` holds N transitions in host memory, pictures once each. `Judgements` are items (pictures, segments, whole episodes of any
length, or pairs of those) with what a rater said about them. `Steps` are the transitions of one batch as tensors. A model's `Look` says
which of all that it takes in; it is stored with the model and compared before the model scores anything.

The picture of transition t is o_{t+1}, the one that the action led to (the reference gives its reward model the image rendered after the
step); with `pictures=2` it is o_t beside o_{t+1}.

    look = look_of(dataset, pictures=1)
    judged = judgements([label_set], dataset, look)
    steps = gather(judged.steps, np.arange(32))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon.errors import DatasetError, RewardError, RewardModelError, UsageError
from guerdon.interfaces import Dataset
from guerdon.labels import LabelSet, in_order
from guerdon.records import EpisodeInfo, Label
from guerdon.transitions import Vocabulary

Kind = Literal["rating", "preference", "score"]
"""What raters gave: one of several classes, which of two is better, or a number for each transition."""

Unit = Literal["episode", "subtask"]
"""Whose words a transition is judged by: those of its episode, or those of the sub-task that it belongs to."""


@dataclass(frozen=True)
class Look:
    """What a model takes in of a transition."""

    views: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """View name -> (height, width) of its pictures."""
    pictures: Literal[1, 2] = 1
    """1: o_{t+1}; 2: o_t and o_{t+1}."""
    vectors: Mapping[str, int] = field(default_factory=dict)
    """Name of each vector observation -> its size; of o_{t+1}, and with `pictures=2` also of o_t."""
    action_names: tuple[str, ...] = ()
    """If the action is looked at: the names of discrete ones."""
    action_size: int = 0
    """If the action is looked at: the components of continuous ones."""
    words: tuple[str, ...] | None = None
    """The vocabulary of instructions; None if the model does not read them."""
    unit: Unit = "episode"
    """Which words a transition is judged by; means nothing if the model does not read them."""

    @property
    def vector_size(self) -> int:
        """D of `StepArrays.vector`."""
        return self.pictures * sum(self.vectors.values())

    def to_record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return {
            "views": [[name, height, width] for name, (height, width) in self.views.items()],
            "pictures": self.pictures,
            "vectors": [[name, size] for name, size in self.vectors.items()],
            "action_names": list(self.action_names),
            "action_size": self.action_size,
            "words": None if self.words is None else list(self.words),
            "unit": self.unit,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Look:
        """The inverse of `to_record`. Raises KeyError, TypeError or ValueError for anything else."""
        if record["pictures"] not in (1, 2) or record["unit"] not in ("episode", "subtask"):
            raise ValueError("pictures are 1 or 2, the unit is episode or subtask")
        return cls(
            views={str(name): (int(height), int(width)) for name, height, width in record["views"]},
            pictures=record["pictures"],
            vectors={str(name): int(size) for name, size in record["vectors"]},
            action_names=tuple(map(str, record["action_names"])),
            action_size=int(record["action_size"]),
            words=None if record["words"] is None else tuple(map(str, record["words"])),
            unit=record["unit"],
        )


@dataclass(frozen=True)
class StepArrays:
    """N transitions in host memory."""

    frames: Mapping[str, npt.NDArray[np.uint8]]
    """View -> (P, H, W, 3): every picture once."""
    picture: npt.NDArray[np.int64]
    """(N, K): which pictures each transition shows, in order of time (K = `Look.pictures`); the same for all views."""
    vector: npt.NDArray[np.float32]
    """(N, D): vector observations side by side in the order of `Look.vectors`, those of o_t first with `pictures=2`; D is 0 if there
    are none."""
    action: npt.NDArray[Any]
    """(N,) int64 or (N, A) float32; empty (N, 0) if the action is not looked at."""
    instruction: npt.NDArray[np.int64]
    """(N,): row of `instructions`."""
    instructions: tuple[str, ...]
    words: tuple[str, ...] | None = None
    """`Look.words` of the model that will see the transitions: makes tokens of the instructions."""

    def __len__(self) -> int:
        return len(self.instruction)

    @cached_property
    def tokens(self) -> Tensor:
        """(U, L) int64: all instructions as tokens; a single column if instructions are not read."""
        texts = self.instructions if self.words is not None else ("",) * len(self.instructions)
        return Vocabulary(self.words or ()).batch(texts) if texts else torch.zeros(0, 1, dtype=torch.int64)


@dataclass(frozen=True)
class Judgements:
    """B judged items, each one or several transitions of `steps`; a pair is two items."""

    kind: Kind
    levels: int
    """Number of classes (ratings); 0 for the other kinds."""
    steps: StepArrays
    offsets: npt.NDArray[np.int64]
    """(I + 1,): item i is `members[offsets[i] : offsets[i + 1]]`; I = B, or 2 B for pairs (first ones at even places)."""
    members: npt.NDArray[np.int64]
    """Rows of `steps`."""
    target: npt.NDArray[np.float32]
    """(B,) class numbers, (B, levels) shares of the classes, (B,) scores in [0, 1], or (B,) probability that the second one is better."""
    group: npt.NDArray[np.int64]
    """(B,): the episode that an item comes from (of a pair: the first one's), so that held-out items share no episode with the others."""

    def __len__(self) -> int:
        return len(self.target)


@dataclass(frozen=True)
class Steps:
    """The transitions of one batch, as tensors."""

    frames: Mapping[str, Tensor]
    """View -> (N, K, H, W, 3) uint8."""
    vector: Tensor
    """(N, D) float32."""
    action: Tensor
    """(N,) int64, (N, A) float32 or (N, 0)."""
    instruction: Tensor
    """(N,) int64: row of `tokens`."""
    tokens: Tensor
    """(U, L) int64: distinct instructions as `guerdon.transitions.Vocabulary.batch` gives them."""

    def __len__(self) -> int:
        return len(self.instruction)


# --- what there is to look at -------------------------------------------------------------------------------------------------------


def look_of(
    dataset: Dataset,
    *,
    views: Sequence[str] = (),
    pictures: Literal[1, 2] = 1,
    vectors: Sequence[str] = (),
    action: bool = False,
    instruction: bool = False,
    unit: Unit = "episode",
) -> Look:
    """What a model of `dataset` is to look at, with the sizes that the dataset has.

    Args:
        dataset: recorded behaviour.
        views: cameras. If neither views nor vectors are named, the dataset's first camera, or all its vectors if it has none.
        pictures: 1 for the outcome of a transition alone, 2 for what was before it also.
        vectors: names of vector observations.
        action: look at the action too.
        instruction: read the instruction too.
        unit: whose words (see `unit_of`).

    Raises:
        UsageError: for a view or a vector that the dataset does not have, or if it has neither.
        DatasetError: if the dataset holds no transition, or is damaged.
    """
    _must_know(dataset, "view", views, dataset.views)
    _must_know(dataset, "vector observation", vectors, dataset.vectors)
    if not views and not vectors:
        views, vectors = dataset.views[:1], () if dataset.views else dataset.vectors
    if not views and not vectors:
        raise UsageError("the dataset has neither pictures nor vector observations to look at", where=str(dataset.path))
    some = next((info for info in dataset.episodes() if info.length), None)
    if some is None:
        raise DatasetError("holds no transition", where=str(dataset.path))
    shapes = {view: dataset.frames(some.index, view, 0, 1).shape for view in views}
    sizes = {name: int(dataset.vector(some.index, name).shape[1]) for name in vectors}
    continuous = action and not dataset.action_names
    return Look(
        views={view: (int(shape[1]), int(shape[2])) for view, shape in shapes.items()},
        pictures=pictures,
        vectors=sizes,
        action_names=dataset.action_names if action else (),
        action_size=int(np.asarray(dataset.actions(some.index)).shape[1]) if continuous else 0,
        words=Vocabulary.of(_all_texts(dataset)).words if instruction else None,
        unit=unit,
    )


def _must_know(dataset: Dataset, what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {what} '{name}'; there are: {', '.join(known) or 'none'}", where=str(dataset.path))


def _all_texts(dataset: Dataset) -> Iterator[str]:
    for info in dataset.episodes():
        for annotation in info.annotations:
            yield annotation.instruction
            yield from (span.text for span in annotation.spans)


def unit_of(label_sets: Sequence[LabelSet], dataset: Dataset) -> Unit:
    """Whose words the labels were given by: "subtask" if some were judged by words that are not their episode's instruction."""
    texts: dict[tuple[int, int], str] = {}
    for label_set in label_sets:
        for label in label_set.labels:
            key = (label.episode, label.annotation)
            if key not in texts:
                annotations = dataset.episode(label.episode).annotations if 0 <= label.episode < len(dataset) else ()
                texts[key] = annotations[label.annotation].instruction if label.annotation < len(annotations) else label.instruction
            if label.instruction != texts[key]:
                return "subtask"
    return "episode"


def check_look(look: Look, dataset: Dataset) -> None:
    """Raises RewardModelError if `dataset` lacks what a model looks at, or has it in another size. Instructions of any words will do."""
    where = str(dataset.path)
    for what, wanted, known in (("view", look.views, dataset.views), ("vector observation", look.vectors, dataset.vectors)):
        for name in wanted:
            if name not in known:
                given = ", ".join(known) or "none"
                cure = "Give it data with the observations that it was fitted to."
                raise RewardModelError(f"the model looks at {what} '{name}', which the dataset does not have (it has: {given})",
                                       where=where, cure=cure)  # fmt: skip
    if look.action_names and look.action_names != dataset.action_names:
        theirs, ours = ", ".join(dataset.action_names) or "none with names", ", ".join(look.action_names)
        cure = "Fit a model that does not look at the action, or use data with the same actions."
        raise RewardModelError(f"the model knows the actions [{ours}], the dataset has [{theirs}]", where=where, cure=cure)
    some = next((info for info in dataset.episodes() if info.length), None)
    if some is None:
        return
    for view, size in look.views.items():
        _check_size(f"pictures of view '{view}'", size, dataset.frames(some.index, view, 0, 1).shape[1:3], where)
    for name, count in look.vectors.items():
        _check_size(f"vectors '{name}'", (count,), dataset.vector(some.index, name).shape[1:], where)
    if look.action_size:
        _check_size("actions", (look.action_size,), np.asarray(dataset.actions(some.index)).shape[1:], where)


def _check_size(what: str, expected: tuple[int, ...], found: tuple[int, ...], where: str) -> None:
    if tuple(found) != tuple(expected):
        sizes = [" x ".join(map(str, size)) or "no size" for size in (expected, found)]
        cure = "Give it data of the size that it was fitted to."
        raise RewardModelError(f"the model expects {what} of {sizes[0]}, the dataset has {sizes[1]}", where=where, cure=cure)


# --- reading ------------------------------------------------------------------------------------------------------------------------


def read_steps(dataset: Dataset, look: Look, wanted: Iterable[tuple[int, int, int]]) -> StepArrays:
    """Reads transitions into memory, each picture once.

    Args:
        dataset: recorded behaviour that has what `look` says (see `check_look`).
        look: what is read of each transition.
        wanted: (episode, annotation, t) of each; the annotation decides the instruction, which is empty if there is no such annotation.

    Raises:
        RewardError: for a transition that the dataset does not have.
        RewardModelError: if pictures, vectors or actions differ in size from what `look` says.
        DatasetError: for damaged data.
    """
    infos = _Infos(dataset)
    places = list(wanted)
    texts = [_words(infos(episode), annotation, t, look) for episode, annotation, t in places]
    return _read(dataset, look, infos, [(episode, t) for episode, _, t in places], texts)


class _Infos:
    """The episodes' facts, each read once."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._known: dict[int, EpisodeInfo] = {}

    def __call__(self, index: int) -> EpisodeInfo:
        if index not in self._known:
            if not 0 <= index < len(self._dataset):
                raise RewardError(f"the dataset has no episode {index}, only {len(self._dataset)}", where=str(self._dataset.path))
            self._known[index] = self._dataset.episode(index)
        return self._known[index]


def _words(info: EpisodeInfo, annotation: int, t: int, look: Look) -> str:
    """What transition t is judged by."""
    if look.words is None or annotation >= len(info.annotations):
        return ""
    whole = info.annotations[annotation]
    spans = whole.spans if look.unit == "subtask" else ()
    return next((span.text for span in spans if span.start <= t < span.stop), whole.instruction)


def _read(dataset: Dataset, look: Look, infos: _Infos, places: Sequence[tuple[int, int]], texts: Sequence[str]) -> StepArrays:
    """Transitions at (episode, t), judged by `texts`."""
    steps_of: dict[int, list[int]] = {}
    for row, (episode, t) in enumerate(places):
        if not 0 <= t < infos(episode).length:
            what = f"episode {episode} has {infos(episode).length} transitions, so there is no transition {t}"
            raise RewardError(what, where=str(dataset.path))
        steps_of.setdefault(episode, []).append(row)
    time = np.array([t for _, t in places], np.int64)
    before = np.arange(look.pictures) - (look.pictures - 1)
    observed: npt.NDArray[np.int64] = (time[:, None] + 1 + before).reshape(len(places), look.pictures)
    needed = {episode: np.unique(observed[rows]) for episode, rows in steps_of.items()} if look.views else {}
    total = sum(map(len, needed.values()))
    frames = {view: np.empty((total, *size, 3), np.uint8) for view, size in look.views.items()}
    picture = np.zeros_like(observed)
    vector = np.zeros((len(places), look.vector_size), np.float32)
    action = _no_actions(len(places), look)
    first = 0
    for episode, rows in steps_of.items():
        if look.views:
            numbers = needed[episode]
            picture[rows] = first + np.searchsorted(numbers, observed[rows])
            for view, target in frames.items():
                _read_pictures(dataset, episode, view, numbers, target[first : first + len(numbers)])
            first += len(numbers)
        if look.vectors:
            vector[rows] = _vectors(dataset, infos(episode), look)[observed[rows]].reshape(len(rows), -1)
        if look.action_names or look.action_size:
            action[rows] = _actions(dataset, infos(episode), look)[time[rows]]
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    instruction = np.array([distinct[text] for text in texts], np.int64)
    return StepArrays(frames, picture, vector, action, instruction, tuple(distinct), look.words)


def _no_actions(count: int, look: Look) -> npt.NDArray[Any]:
    return np.zeros(count, np.int64) if look.action_names else np.zeros((count, look.action_size), np.float32)


def _read_pictures(dataset: Dataset, episode: int, view: str, numbers: npt.NDArray[np.int64], into: npt.NDArray[np.uint8]) -> None:
    """Observations `numbers` (ascending) of an episode, one read for each unbroken run of them."""
    ends = np.flatnonzero(np.diff(numbers) > 1) + 1
    for begin, end in zip([0, *ends], [*ends, len(numbers)], strict=True):
        found = dataset.frames(episode, view, int(numbers[begin]), int(numbers[end - 1]) + 1)
        _check_size(f"pictures of view '{view}'", into.shape[1:3], found.shape[1:3], f"{dataset.path}, episode {episode}")
        into[begin:end] = found


def _vectors(dataset: Dataset, info: EpisodeInfo, look: Look) -> npt.NDArray[np.float32]:
    """(T+1, sum of the sizes)."""
    where = f"{dataset.path}, episode {info.index}"
    parts = []
    for name, size in look.vectors.items():
        part = np.asarray(dataset.vector(info.index, name), np.float32)
        _check_size(f"vectors '{name}'", (size,), part.shape[1:], where)
        if len(part) != info.length + 1 or not np.isfinite(part).all():
            raise DatasetError(f"vector observation '{name}' is not {info.length + 1} rows of finite numbers", where=where)
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _actions(dataset: Dataset, info: EpisodeInfo, look: Look) -> npt.NDArray[Any]:
    where = f"{dataset.path}, episode {info.index}"
    action = np.asarray(dataset.actions(info.index))
    if look.action_names:
        if action.shape != (info.length,) or action.dtype.kind not in "iu" or not ((action >= 0) & (action < len(look.action_names))).all():
            raise DatasetError(f"its actions are not {info.length} whole numbers from 0 to {len(look.action_names) - 1}", where=where)
        return action.astype(np.int64)
    _check_size("actions", (look.action_size,), action.shape[1:], where)
    return action.astype(np.float32)


def gather(arrays: StepArrays, rows: npt.NDArray[np.int64]) -> Steps:
    """The transitions `rows` (N,) as tensors. Pictures that lie side by side in memory, in order, are not copied."""
    rows = np.asarray(rows, np.int64)
    used, instruction = np.unique(arrays.instruction[rows], return_inverse=True)
    picture = arrays.picture[rows]
    return Steps(
        frames={view: _gathered(frames, picture) for view, frames in arrays.frames.items()},
        vector=torch.from_numpy(arrays.vector[rows]),
        action=torch.from_numpy(arrays.action[rows]),
        instruction=torch.from_numpy(instruction.reshape(-1).astype(np.int64)),
        tokens=arrays.tokens[torch.from_numpy(used)],
    )


def _gathered(frames: npt.NDArray[np.uint8], picture: npt.NDArray[np.int64]) -> Tensor:
    """Pictures (N, K) -> (N, K, H, W, 3)."""
    flat = picture.reshape(-1)
    if not frames.flags.writeable:  # torch would warn of it
        chosen = torch.from_numpy(frames[flat])
    elif len(flat) and bool((np.diff(flat) == 1).all()):
        chosen = torch.from_numpy(frames)[int(flat[0]) : int(flat[-1]) + 1]
    else:
        chosen = torch.from_numpy(frames).index_select(0, torch.from_numpy(flat))
    return chosen.view(*picture.shape, *frames.shape[1:])


# --- judgements ---------------------------------------------------------------------------------------------------------------------


def judgements(label_sets: Sequence[LabelSet], dataset: Dataset, look: Look) -> Judgements:
    """The labels that carry a value, and the transitions that they are about.

    Labels of pairs are preferences; label sets whose metadata name "levels" are ratings; the others are scores, brought to [0, 1] by their
    scale. A label of observation k is about transition k - 1, which led there; one of a segment is about all its transitions. Several
    answers to one question ("probabilities") become shares of the classes; of pairs, the mean of the preferences. A label
    that two sets hold counts once. Where a label was set by hand, the others about the same transitions are left out.

    Raises:
        RewardError: if no label carries a value; label sets are of another dataset or of different kinds; a label is about something that
            the dataset does not have; or labels were judged by other words than `look.unit` says.
    """
    if not label_sets:
        raise RewardError("there is no label set to learn from")
    kinds = {_kind(label_set) for label_set in label_sets}
    if len(kinds) > 1:
        names = " and ".join(sorted(f"{kind}s of {levels} classes" if levels else f"{kind}s" for kind, levels in kinds))
        raise RewardError(f"the label sets are of different kinds: {names}", cure="Fit a model to label sets of one kind.")
    kind, levels = kinds.pop()
    for label_set in label_sets:
        if label_set.metadata.get("dataset") != dataset.fingerprint:
            raise RewardError("a label set was made from another dataset", cure="Use the dataset that was labelled.")
    chosen = [(label, label_set) for label_set in label_sets for label in label_set.labels if label.value is not None]
    chosen = _without_overruled(_once(chosen))
    if not chosen:
        total = sum(len(label_set.labels) for label_set in label_sets)
        raise RewardError(
            f"none of the {total} labels carries a value",
            cure="Label again (--retry-failed asks again what failed for good), or ask another rater.",
        )
    return _Collector(dataset, look, kind, levels).collect(chosen)


def joined(parts: Sequence[Judgements], *, same_groups: bool = False) -> Judgements:
    """The judgements of several datasets as one: those of the first come first, and keep their numbers.

    Joining what was joined before gives the same as joining all at once, so that judgements may be added as they come.

    Args:
        parts: at least one, of the same kind and number of classes, about transitions that were read with the same look.
        same_groups: whether equal groups of two parts are one group (episodes that have the same numbers in both). If not, they are
            different episodes: those of each part are numbered on from the last one of the parts before it.

    Returns:
        One `Judgements`. Classes become shares of the classes if they are shares in one of the parts. Instructions stand there once each.

    Raises:
        RewardError: if there is no part, or two of them are of different kinds or looks.
    """
    if not parts:
        raise RewardError("there are no judgements to join")
    for number, part in enumerate(parts[1:], start=2):
        for what, (first, other) in _differences(parts[0], part).items():
            if first != other:
                what = f"judgements 1 and {number} differ in {what} ({first} and {other})"
                raise RewardError(what, cure="Join judgements of one kind, read with one look.")
    items = np.cumsum([0, *(len(part.members) for part in parts)])
    steps = np.cumsum([0, *(len(part.steps) for part in parts)])
    groups = np.cumsum([0, *(0 if same_groups or not len(part.group) else int(part.group.max()) + 1 for part in parts)])
    ends = [part.offsets[1:] + items[number] for number, part in enumerate(parts)]
    as_shares = any(part.target.ndim == 2 for part in parts)
    targets = [_shares(part) if as_shares else part.target for part in parts]
    return Judgements(
        kind=parts[0].kind,
        levels=parts[0].levels,
        steps=_joined_steps([part.steps for part in parts]),
        offsets=np.concatenate([np.zeros(1, np.int64), *ends]),
        members=np.concatenate([part.members + steps[number] for number, part in enumerate(parts)]),
        target=np.concatenate(targets),
        group=np.concatenate([part.group + groups[number] for number, part in enumerate(parts)]),
    )


def _differences(one: Judgements, other: Judgements) -> dict[str, tuple[Any, Any]]:
    """What two that are to be joined must agree in, and what each of them has."""
    facts = [
        {
            "kind": part.kind,
            "number of classes": part.levels,
            "sizes of pictures": {view: frames.shape[1:] for view, frames in part.steps.frames.items()},
            "pictures of a transition": part.steps.picture.shape[1:],
            "sizes of vectors": part.steps.vector.shape[1:],
            "actions": (part.steps.action.dtype.kind, part.steps.action.shape[1:]),
            "words that a model knows": part.steps.words,
        }
        for part in (one, other)
    ]
    return {what: (facts[0][what], facts[1][what]) for what in facts[0]}


def _shares(part: Judgements) -> npt.NDArray[np.float32]:
    """(B, levels) shares of the classes."""
    return part.target if part.target.ndim == 2 else np.eye(part.levels, dtype=np.float32)[part.target.astype(np.int64)]


def _joined_steps(parts: Sequence[StepArrays]) -> StepArrays:
    pictures = np.cumsum([0, *(len(next(iter(part.frames.values()), ())) for part in parts)])
    distinct: dict[str, int] = {}
    for part in parts:
        for text in part.instructions:
            distinct.setdefault(text, len(distinct))
    numbers = [np.array([distinct[text] for text in part.instructions], np.int64) for part in parts]
    return StepArrays(
        frames={view: np.concatenate([part.frames[view] for part in parts]) for view in parts[0].frames},
        picture=np.concatenate([part.picture + pictures[number] for number, part in enumerate(parts)]),
        vector=np.concatenate([part.vector for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        instruction=np.concatenate([known[part.instruction] for known, part in zip(numbers, parts, strict=True)]),
        instructions=tuple(distinct),
        words=parts[0].words,
    )


def _kind(label_set: LabelSet) -> tuple[Kind, int]:
    units = {label.unit for label in label_set.labels}
    if "pair" in units:
        if len(units) > 1:
            raise RewardError("a label set mixes pairs with single things")
        return "preference", 0
    levels = label_set.metadata.get("levels")
    return ("rating", len(levels)) if levels else ("score", 0)


def _spans(label: Label) -> Iterator[tuple[int, range]]:
    """Episode and transitions of each of the things that a label is about."""
    yield label.episode, _transitions(label.start, label.stop)
    if label.episode_b is not None and label.start_b is not None and label.stop_b is not None:
        yield label.episode_b, _transitions(label.start_b, label.stop_b)


def _transitions(start: int, stop: int) -> range:
    """The transitions [start, stop); of the single observation `start` (= `stop`) the one that led to it."""
    return range(start - 1, start) if start == stop else range(start, stop)


def _once(chosen: Sequence[tuple[Label, LabelSet]]) -> list[tuple[Label, LabelSet]]:
    """Every answer once: a larger sample holds the labels of a smaller one again. Of those about one question, the one of most answers."""
    found: dict[Any, tuple[Label, LabelSet]] = {}
    for number, (label, label_set) in enumerate(chosen):
        key = (label.unit, in_order(label), label.instruction, label.question) if label.question else number
        if key not in found or found[key][0].answered < label.answered:
            found[key] = (label, label_set)
    return list(found.values())


def _without_overruled(chosen: Sequence[tuple[Label, LabelSet]]) -> list[tuple[Label, LabelSet]]:
    """All but the labels about transitions of which every one was set by hand."""
    by_hand = {
        (episode, label.annotation, t)
        for label, _ in chosen
        if label.state == "human" and label.unit != "pair"
        for episode, span in _spans(label)
        for t in span
    }
    pairs_by_hand = {tuple(map(str, (*_spans(label), label.annotation))) for label, _ in chosen if label.state == "human"}

    def overruled(label: Label) -> bool:
        if label.state == "human":
            return False
        if label.unit == "pair":
            return tuple(map(str, (*_spans(label), label.annotation))) in pairs_by_hand
        return all((episode, label.annotation, t) in by_hand for episode, span in _spans(label) for t in span)

    return [(label, label_set) for label, label_set in chosen if not overruled(label)] if by_hand or pairs_by_hand else list(chosen)


def _preference(label: Label) -> float | None:
    """How likely the second one of a pair is the better one: the mean over a rater's answers, not what most of them say."""
    if label.probabilities is None:
        return label.value
    shares = np.asarray(label.probabilities, np.float64)
    if shares.shape != (3,) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.sum() > 0:
        raise RewardError(f"a preference carries the shares {label.probabilities} for first, neither and second")
    return float((shares[1] / 2 + shares[2]) / shares.sum())


class _Collector:
    """Turns labels into arrays; every transition is read once, however many labels are about it."""

    def __init__(self, dataset: Dataset, look: Look, kind: Kind, levels: int) -> None:
        self.dataset, self.look, self.kind, self.levels = dataset, look, kind, levels
        self.infos = _Infos(dataset)
        self.rows: dict[tuple[int, int, str], int] = {}

    def collect(self, chosen: Sequence[tuple[Label, LabelSet]]) -> Judgements:
        members: list[int] = []
        offsets = [0]
        for label, _ in chosen:
            self._check_words(label)
            text = label.instruction if self.look.words is not None else ""
            for episode, span in _spans(label):
                if not 0 <= span.start < span.stop <= self.infos(episode).length:
                    what = f"a label is about transitions {span.start}..{span.stop} of episode {episode}, which has"
                    raise RewardError(f"{what} {self.infos(episode).length}", where=str(self.dataset.path))
                members += (self.rows.setdefault((episode, t, text), len(self.rows)) for t in span)
                offsets.append(len(members))
        places = [(episode, t) for episode, t, _ in self.rows]
        return Judgements(
            kind=self.kind,
            levels=self.levels,
            steps=_read(self.dataset, self.look, self.infos, places, [text for _, _, text in self.rows]),
            offsets=np.array(offsets, np.int64),
            members=np.array(members, np.int64),
            target=self._targets(chosen),
            group=np.array([label.episode for label, _ in chosen], np.int64),
        )

    def _check_words(self, label: Label) -> None:
        annotations = self.infos(label.episode).annotations
        if self.look.words is None or label.annotation >= len(annotations):
            return
        t = _transitions(label.start, label.stop).start
        expected = _words(self.infos(label.episode), label.annotation, t, self.look)
        if label.instruction != expected:
            what = f"a label of episode {label.episode} was judged by '{label.instruction}', where the model would read '{expected}'"
            raise RewardError(what, cure="Let the model read the words of the same unit (episode or subtask) that was labelled.")

    def _targets(self, chosen: Sequence[tuple[Label, LabelSet]]) -> npt.NDArray[np.float32]:
        if self.kind == "rating":
            return self._classes(chosen)
        values = np.array([_preference(label) if self.kind == "preference" else label.value for label, _ in chosen], np.float64)
        low = np.array([label_set.scale[0] if self.kind == "score" else 0.0 for _, label_set in chosen])
        high = np.array([label_set.scale[1] if self.kind == "score" else 1.0 for _, label_set in chosen])
        shares = (values - low) / (high - low)
        if not ((shares >= 0) & (shares <= 1)).all():
            worst = values[(shares < 0) | (shares > 1)][0]
            raise RewardError(f"a label has the value {worst:g}, outside the scale of its label set")
        return np.asarray(shares, np.float32)

    def _classes(self, chosen: Sequence[tuple[Label, LabelSet]]) -> npt.NDArray[np.float32]:
        values = np.array([(label.value or 0.0) - label_set.scale[0] for label, label_set in chosen])
        if not (np.isin(values, np.arange(self.levels))).all():
            strange = values[~np.isin(values, np.arange(self.levels))][0]
            raise RewardError(f"a rating has the value {strange:g}, which is none of {self.levels} classes")
        if all(label.probabilities is None for label, _ in chosen):
            return values.astype(np.float32)
        shares = np.eye(self.levels, dtype=np.float32)[values.astype(np.int64)]
        for row, (label, _) in enumerate(chosen):
            if label.probabilities is not None:
                given = np.asarray(label.probabilities, np.float32)
                if given.shape != (self.levels,) or not np.isfinite(given).all() or (given < 0).any() or not given.sum() > 0:
                    raise RewardError(f"a rating carries the shares {label.probabilities} for {self.levels} classes")
                shares[row] = given / given.sum()
        return shares
