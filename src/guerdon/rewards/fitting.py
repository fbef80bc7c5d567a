"""Fitting a reward model to what raters said, and opening one that was fitted.

The problem: labels are few, unbalanced and partly wrong, so a model that explains all of them has learned their errors. Some of the
labels are held out (whole episodes, because neighbouring pictures are nearly the same), fitting stops when those are not explained any
better, and the weights that explained them best are kept. Training accuracy decides nothing: with nine in ten "bad" it is 90 % for a
model that has learned nothing.

All members are fitted at once by one optimiser, which minimises the sum of their losses; each sees the labels in an order of its own. An
item's return is the sum over its transitions, so items of any length share a batch. The gradient of a batch with more than
`Config.max_steps` transitions is taken in two passes: the first finds all returns and what the loss asks of each, the second goes through
the transitions piece by piece again. That is the same gradient, in bounded memory.

    fitted = fit(judgements(label_sets, dataset, look), look, seed=0, out=folder)
    model = load_model(folder)

When labels come in sessions, a model goes on from the one before (`start=`): the labels that were there before stay on the side that they
were on, learned from or held out, for a label that was once learned from would say nothing when held out; only new episodes are divided.

Writes into `out`: `model.safetensors`, `model.json` (see `guerdon.rewards._ensemble`) and `metrics.jsonl`, one line a measurement.
"""

from __future__ import annotations

import importlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon.errors import RewardError, RewardModelError, UsageError
from guerdon.losses import item_weights, rating_weights
from guerdon.records import digest
from guerdon.rewards._ensemble import Ensemble, EnsembleModel, read_record
from guerdon.rewards._settings import Config as Config
from guerdon.rewards.encoders import Architecture, choose_encoder
from guerdon.rewards.samplers import Batches, has_contrast
from guerdon.rewards.steps import Judgements, Kind, Look, StepArrays
from guerdon.runs import writing
from guerdon.seeding import generator, stream_seed

METRICS = "metrics.jsonl"
KINDS: tuple[Kind, ...] = ("rating", "preference", "score")

Rows = npt.NDArray[np.int64]
Progress = Callable[[int, int], object]
"""Called with the updates made and the most there will be."""
Log = Callable[[Mapping[str, Any]], object]
"""Called with every line of the history."""

_FEWEST_GROUPS = 5
"""With fewer episodes, single labels are held out."""
_FEWEST_HELD_OUT = 5
"""Fewer labels decide nothing."""
_UPDATES_BETWEEN = 20
"""Measuring costs about a third of an update for every label."""
_STEPS_MEASURED = {True: 2048, False: 65_536}
"""Transitions that are measured while fitting, with pictures and without; all of them are at the end."""
_FEWEST_OF_A_CLASS = 8
"""Labels of each class that are measured while fitting, if there are so many: what is measured is a mean over the classes."""
_VECTORS_PER_PICTURE = 16


@dataclass(frozen=True)
class Fitted:
    """A fitted model and how well it fits."""

    model: EnsembleModel
    history: tuple[Mapping[str, Any], ...]
    """One JSON-ready line a measurement: "epoch" (passes begun), "updates", "loss" (mean over members and updates since the last line),
    "contradicted" (share of the labels in those updates that the members held to be all but impossible; both are None if there was none),
    "training" and "held_out" (what `EnsembleModel.measure` says; "held_out" is None if nothing was held out)."""
    results: Mapping[str, Any]
    """JSON-ready: "training" and "held_out" of the weights that were kept, on all labels; "contradicted" of the labels learned from;
    "epochs", "updates" and "stopped" ("target", "patience" or "updates"); "kept_epoch"; "held_out_labels", "held_out_by" ("episode",
    "label" or None); "skipped" (batches of one class); "encoder", "parameters" (of a member); "start", the fingerprint of the model that
    it went on from, if it did."""
    seconds: float


def fit(
    judgements: Judgements,
    look: Look,
    config: Config | None = None,
    *,
    seed: int,
    out: Path | None = None,
    start: EnsembleModel | None = None,
    progress: Progress | None = None,
    log: Log | None = None,
) -> Fitted:
    """Fits a reward model. The same arguments give the same weights.

    Args:
        judgements: what raters said of which transitions.
        look: what the model takes in; `judgements.steps` must have been read with it.
        config: how to fit; None takes the defaults.
        seed: of first weights, batches, and the choice of what is held out.
        out: folder to write the model to; None writes nothing.
        start: a model that `fit` made of the first ones of these labels, in the same order (see `guerdon.rewards.steps.joined`). Its
            weights are gone on from, with a fresh optimiser; it stays as it is. Vectors are standardised anew, by all labels there are
            now: an input that hardly varied at first, such as the place of a thing that nobody had moved, would otherwise come in at
            thousands of deviations, where a squashed reward is flat and learns nothing. So the first update does not begin at just what
            `start` said. None begins with weights drawn from the seed.
        progress: told how many updates have been made.
        log: told every line of the history.

    Raises:
        RewardError: if there are too few labels, ratings of one class only, or no batch with two classes; says what is needed.
        UsageError: for settings that fit neither the labels nor what the model looks at.
        RewardModelError: if fitting diverges; if `start` is another kind of model, or was fitted to other labels than the first of these.
        WriteFailed: if the disk is full or not writable.
    """
    begin = time.perf_counter()
    config = config or Config()
    check(judgements)
    _check_read_with(look, judgements.steps)
    judgements = replace(judgements, steps=replace(judgements.steps, words=look.words))
    architecture = Architecture(choose_encoder(look, config.encoder), config.width, config.channels)
    ensemble = Ensemble(look, architecture, config.members, seed=seed)
    model = model_class(judgements.kind)(ensemble, levels=judgements.levels)
    model.precision = config.precision
    before = None
    if start is not None:
        before = _sides_of(start, model, judgements)
        _take_weights(ensemble, start.ensemble)
    fitter = _Fitter(model, judgements, config, seed, progress, log, before)
    results = fitter.run() | ({} if start is None else {"start": start.fingerprint})
    ensemble.requires_grad_(False)
    fitted = Fitted(model, tuple(fitter.history), results, time.perf_counter() - begin)
    model.training = {
        "settings": asdict(config),
        "seed": seed,
        "labels": len(judgements),
        "kind": judgements.kind,
        "held_out": fitter.held_out.tolist(),
        "learned_from": _digest_of(judgements, len(judgements)),
        "results": results,
    }
    if out is not None:
        with writing(out / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in fitted.history), encoding="utf-8")
        model.save(out, model.training)
    return fitted


def load_model(folder: Path | str) -> EnsembleModel:
    """Opens a model that `fit` (or `EnsembleModel.save`) wrote. Raises RewardModelError if there is none or it is damaged."""
    record = read_record(Path(folder))
    if record["name"] not in KINDS:
        cure = f"This version knows: {', '.join(KINDS)}."
        raise RewardModelError(f"is a reward model of an unknown kind '{record['name']}'", where=str(folder), cure=cure)
    return model_class(record["name"]).load(Path(folder), record)


def model_class(kind: Kind) -> type[EnsembleModel]:
    """The class of models of a kind: each is the one in the file of its name."""
    module = importlib.import_module(f"guerdon.rewards.{kind}_model")
    found: type[EnsembleModel] = getattr(module, f"{kind.capitalize()}Model")
    return found


def check(judgements: Judgements) -> None:
    """Raises RewardError if there is nothing to learn from `judgements`, or they contradict themselves."""
    count = len(judgements)
    if not count:
        raise RewardError("there is no label to learn from", cure="Label first.")
    items = 2 * count if judgements.kind == "preference" else count
    if len(judgements.offsets) != items + 1 or (np.diff(judgements.offsets) < 1).any():
        raise RewardError(f"{count} labels need {items} items of at least one transition each")
    if not np.isfinite(judgements.target).all():
        raise RewardError("a label's value is not a finite number")
    if judgements.kind == "rating":
        counts = np.bincount(_classes(judgements), minlength=judgements.levels)
        shown = ", ".join(str(number) for number in counts)
        if (counts > 0).sum() < 2:
            cure = "Rate more, or other data; a reward can only be learned from differences."
            raise RewardError(f"all ratings are of one class (by class: {shown})", cure=cure)
        if count < judgements.levels:
            raise RewardError(f"there are {count} ratings for {judgements.levels} classes", cure="Rate more, or with fewer classes.")
    if judgements.kind == "preference" and (judgements.target == 0.5).all():
        raise RewardError("no pair has a better one: the rater has no preference anywhere", cure="Compare other pairs.")
    if judgements.kind == "score" and np.ptp(judgements.target) == 0:
        raise RewardError("all scores are the same", cure="Score more, or other data; a reward can only be learned from differences.")


def _check_read_with(look: Look, arrays: StepArrays) -> None:
    """Raises UsageError if transitions were not read with `look`."""
    sizes = {view: tuple(frames.shape[1:3]) for view, frames in arrays.frames.items()}
    action = () if look.action_names else (look.action_size,)
    found = (sizes, arrays.picture.shape[1] if look.views else look.pictures, arrays.vector.shape[1], arrays.action.shape[1:])
    if found != (dict(look.views), look.pictures, look.vector_size, action):
        what = f"the transitions have pictures {sizes}, {found[1]} each, vectors of {found[2]} and actions {found[3]}, which is not what"
        raise UsageError(f"{what} the model looks at", cure="Read them with the same look.")


def _classes(judgements: Judgements) -> Rows:
    """(B,) likeliest class of each rating; of pairs and scores, which of a few values is nearest."""
    target = judgements.target
    if target.ndim == 2:
        return np.asarray(target.argmax(1), np.int64)
    return np.asarray(target if judgements.kind == "rating" else np.rint(2 * target), np.int64)


# --- going on from a model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sides:
    """On which side the labels were that there were before: the first `count` ones."""

    count: int
    held_out: Rows
    """Numbers of those that were held out; the others were learned from."""


def _sides_of(start: EnsembleModel, model: EnsembleModel, judgements: Judgements) -> Sides:
    """What `start` held out. Raises RewardModelError if `model` cannot go on from it."""
    cure = "Go on from a model that was fitted with the same settings to the first ones of these labels, or begin without one."
    facts = [
        {
            "kind": each.name,
            "number of classes": each.levels,
            "number of members": each.members,
            "network": each.ensemble.architecture,
            "look": each.look.to_record(),
        }
        for each in (start, model)
    ]
    for what, theirs in facts[0].items():
        if theirs != facts[1][what]:
            raise RewardModelError(f"the model to go on from has another {what} ({theirs}, not {facts[1][what]})", cure=cure)
    count, held_out = start.training.get("labels"), start.training.get("held_out")
    if not isinstance(count, int) or not isinstance(held_out, list):
        raise RewardModelError("the model to go on from does not say which labels it was fitted to", cure=cure)
    if count > len(judgements) or start.training.get("learned_from") != _digest_of(judgements, count):
        what = f"the model to go on from was fitted to {count} labels, which are not the first {count} of these {len(judgements)}"
        raise RewardModelError(what, cure=cure)
    return Sides(count, np.array(held_out, np.int64))


def _digest_of(judgements: Judgements, count: int) -> str:
    """What tells the first `count` labels from others: what was said of how many transitions of which episodes."""
    target = judgements.target[:count]
    if judgements.kind == "rating" and target.ndim == 1:  # later labels may be shares, which makes shares of these, too
        target = np.eye(judgements.levels, dtype=np.float32)[target.astype(np.int64)]
    items = 2 * count if judgements.kind == "preference" else count
    parts = (target.astype("<f4"), judgements.offsets[: items + 1].astype("<i8"), judgements.group[:count].astype("<i8"))
    return digest("guerdon judgements 1", *(part.tobytes() for part in parts))


def _take_weights(ensemble: Ensemble, start: Ensemble) -> None:
    """The weights of the members, but neither how vectors are standardised nor how rewards are stretched: both are decided anew."""
    ensemble.members.load_state_dict(start.members.state_dict())


# --- what is held out ---------------------------------------------------------------------------------------------------------------


def split(judgements: Judgements, share: float, seed: int, before: Sides | None = None) -> tuple[Rows, Rows, str | None]:
    """Which labels are learned from, which are held out, and by what ("episode", "label", or None if nothing is: less than five labels).

    Whole episodes are held out if there are at least five of them. Every class that occurs often enough is on both sides: it is never
    held out altogether, and the rarest classes are chosen for first. A pair is held out with the episode of its first one; its second one
    may come from an episode that is learned from.

    With `before`, labels stay on the side that they were on, and further labels of the same episodes join them there (of an episode that
    had labels on both sides, they are learned from). Only new episodes are divided, so that the share is reached in all.
    """
    random = generator(seed, "held out")
    classes, count = _classes(judgements), len(judgements)
    wanted = round(share * count)
    if wanted < _FEWEST_HELD_OUT and (before is None or not len(before.held_out)):
        return np.arange(count), np.zeros(0, np.int64), None
    _, group = np.unique(judgements.group, return_inverse=True)
    group = group.reshape(-1)
    by = "episode" if group.max() + 1 >= _FEWEST_GROUPS else "label"
    if by == "label":
        group = np.arange(count)
    chosen, free = _decided(group, before)
    _, numbers = np.unique(group[free], return_inverse=True)
    numbers = numbers.reshape(-1)
    table = np.zeros((int(numbers.max(initial=-1)) + 1, int(classes.max()) + 1), np.int64)
    np.add.at(table, (numbers, classes[free]), 1)
    learned, held_before = (np.bincount(classes[~free & (chosen == side)], minlength=table.shape[1]) for side in (False, True))
    held = _held_groups(table, wanted - int(held_before.sum()), random, learned, held_before > 0)
    chosen[free] = held[numbers]
    if chosen.sum() < _FEWEST_HELD_OUT:
        return np.arange(count), np.zeros(0, np.int64), None
    return np.flatnonzero(~chosen), np.flatnonzero(chosen), by


def _decided(group: Rows, before: Sides | None) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which labels are held out (B,) so far, and of which nothing is decided yet (B,). `group` (B,): numbers of groups from 0."""
    held, free = np.zeros(len(group), np.bool_), np.ones(len(group), np.bool_)
    if before is None:
        return held, free
    old = np.arange(len(group)) < before.count
    held[before.held_out] = True
    of_learned, of_held = (np.bincount(group[old & (held == side)], minlength=int(group.max()) + 1) > 0 for side in (False, True))
    held[~old] = (of_held & ~of_learned)[group[~old]]
    return held, ~old & ~(of_held | of_learned)[group]


def _held_groups(
    table: Rows, wanted: int, random: np.random.Generator, learned: Rows, held_before: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Which groups are held out, (G,). `table` (G, C): how many labels of each class each group has; `learned` (C,): how many others are
    learned from; `held_before` (C,): of which classes others are held out."""
    left, held = table.sum(0) + learned, np.zeros(len(table), np.bool_)
    present = left > 0
    order = random.permutation(len(table))

    def take(group: int) -> None:
        nonlocal left
        if not held[group] and (left - table[group])[present].min() > 0:
            held[group] = True
            left = left - table[group]

    for level in np.argsort(table.sum(0), kind="stable"):
        if present[level] and not held_before[level] and not (table[held, level] > 0).any():
            having = [group for group in order if table[group, level]]
            smallest = sorted(having, key=lambda group: int(table[group].sum()))  # stable: random among equals
            for group in smallest:
                take(int(group))
                if held[group]:
                    break
    for group in order:
        total = int(table[held].sum())
        if total >= wanted:
            break
        if total + int(table[group].sum()) <= max(wanted * 1.5, total + 1):
            take(int(group))
    return held


# --- the loop -----------------------------------------------------------------------------------------------------------------------


class _Fitter:
    """One fit: the model, its optimiser, and what is measured on the way."""

    def __init__(
        self,
        model: EnsembleModel,
        judgements: Judgements,
        config: Config,
        seed: int,
        progress: Progress | None,
        log: Log | None,
        before: Sides | None = None,
    ) -> None:
        self.model, self.judgements, self.config, self.progress, self.log = model, judgements, config, progress, log
        self.training, self.held_out, self.held_out_by = split(judgements, config.held_out, seed, before)
        is_rating = judgements.kind == "rating"
        rule, levels = (config.sampler, judgements.levels) if is_rating else ("uniform", 0)
        learned = judgements.target[self.training]
        self.batches = [
            Batches(learned, rule=rule, batch=config.batch, levels=levels, seed=stream_seed(seed, "member", member))
            for member in range(config.members)
        ]
        self.target = torch.from_numpy(learned)
        if is_rating and learned.ndim == 1:
            self.target = self.target.long()
        self.weights = self._weights() if is_rating else None
        model.ensemble.standardise(judgements.steps.vector[np.unique(self._members_of(self.training)[0])])
        self.optimiser = torch.optim.Adam(model.ensemble.parameters(), lr=config.learning_rate, fused=True)
        with_pictures = bool(model.look.views)
        self.max_steps = config.max_steps * (1 if with_pictures else _VECTORS_PER_PICTURE)
        random = generator(seed, "measured")
        self.measured = [self._some(rows, _STEPS_MEASURED[with_pictures], random) for rows in (self.training, self.held_out)]
        epoch = len(self.batches[0].epoch(0))
        self.epochs = config.epochs or max(2, math.ceil(config.updates / epoch))
        self.most = self.epochs * epoch
        self.history: list[dict[str, Any]] = []
        self.updates = self.skipped = 0
        self.losses: list[float] = []
        self.contradicted: list[float] = []

    def _weights(self) -> Tensor | None:
        """(B,) of each label learned from, by how often its class is shown in an epoch; None if all count alike."""
        counts = np.unique(_classes(self.judgements)[self.training], return_counts=True)[1]
        if self.config.weights == "none" or counts.min() < self.config.fewest_weighted:
            return None
        shown = self.target[torch.from_numpy(np.concatenate(self.batches[0].epoch(0)))]
        return item_weights(self.target, rating_weights(shown, self.judgements.levels, self.config.weights))

    def _members_of(self, labels: Rows) -> tuple[Rows, Rows]:
        """Transitions of the items of `labels`, item after item, and how many each item has."""
        offsets = self.judgements.offsets
        items = np.stack([2 * labels, 2 * labels + 1], 1).reshape(-1) if self.judgements.kind == "preference" else labels
        lengths = offsets[items + 1] - offsets[items]
        places = np.arange(lengths.sum()) + np.repeat(offsets[items] - (np.cumsum(lengths) - lengths), lengths)
        return self.judgements.members[places], lengths

    def _some(self, labels: Rows, steps: int, random: np.random.Generator) -> Rows:
        """As many of `labels` as have about so many transitions, at least a few, and a few more of each class that is rare."""
        shuffled = random.permutation(labels)
        per_label = len(self.judgements.members) / len(self.judgements)
        classes = _classes(self.judgements)[shuffled]
        of_each = [shuffled[classes == level][:_FEWEST_OF_A_CLASS] for level in np.unique(classes)]
        return np.unique(np.concatenate([shuffled[: max(32, int(steps / per_label))], *of_each]))

    def run(self) -> dict[str, Any]:
        """Fits, puts the best weights back and measures them. Returns `Fitted.results`."""
        best: tuple[float, float] | None = None
        kept: dict[str, Tensor] = {}
        kept_epoch = waited = 0
        stopped = "updates"
        measured_at = 0
        for epoch in range(1, self.epochs + 1):
            self._pass(epoch - 1)
            if self.updates - measured_at < _UPDATES_BETWEEN and epoch != self.epochs:
                continue
            measured_at = self.updates
            quality = self._measure(epoch)
            waited += 1
            if best is None or quality > best:
                best, kept_epoch, waited = quality, epoch, 0
                kept = {name: tensor.detach().clone() for name, tensor in self.model.ensemble.state_dict().items()}
            may_stop = epoch >= 2 and self.updates >= self.config.least_updates
            if may_stop and self.judgements.kind != "score" and quality[0] > self.config.target:
                stopped = "target"
                break
            if may_stop and waited >= self.config.patience:
                stopped = "patience"
                break
        self.model.ensemble.load_state_dict(kept)
        self.model.precision = "float32"
        if self.judgements.kind == "rating" and self.config.size == "stretched":
            rows, _ = self._members_of(self.training)
            same_length = len(np.unique(np.diff(self.judgements.offsets))) == 1
            self.model.stretch_to_scale(self.judgements.steps, np.unique(rows), shift=same_length)
        if self.progress:
            self.progress(self.most, self.most)
        training, held_out = self._judged(self.training, self.held_out)
        return {
            "training": training,
            "held_out": held_out,
            "contradicted": training.get("contradicted"),
            "epochs": epoch,
            "updates": self.updates,
            "stopped": stopped,
            "kept_epoch": kept_epoch,
            "held_out_labels": len(self.held_out),
            "held_out_by": self.held_out_by,
            "skipped": self.skipped,
            "encoder": self.model.ensemble.architecture.encoder,
            "parameters": sum(p.numel() for p in self.model.ensemble.members[0].parameters()),
        }

    def _pass(self, number: int) -> None:
        """Goes once through the labels; every member in its own order."""
        orders = [batches.epoch(number) for batches in self.batches]
        for rows in zip(*orders, strict=True):
            self.optimiser.zero_grad(set_to_none=True)
            learned = [self._learn(member, mine) for member, mine in enumerate(rows)]
            if any(learned):
                self.optimiser.step()
                self.updates += 1
            if self.progress:
                self.progress(min(self.updates, self.most), self.most)
        if not self.updates:
            cure = "Use larger batches, or the sampler balanced."
            raise RewardError(f"no batch of {self.config.batch} holds ratings of two classes", cure=cure)

    def _learn(self, member: int, rows: Rows) -> bool:
        """Adds the gradient of one member's loss for a batch. False if the batch says nothing."""
        if self.judgements.kind == "rating" and not has_contrast(self.judgements.target[self.training[rows]]):
            self.skipped += 1
            return False
        labels = self.training[rows]
        members, lengths = self._members_of(labels)
        steps, place = np.unique(members, return_inverse=True)
        item = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        place_of = torch.from_numpy(place.reshape(-1))
        chosen = torch.from_numpy(rows)
        weights = None if self.weights is None else self.weights[chosen]

        def loss_of(values: Tensor) -> Tensor:
            predicted = torch.zeros(len(lengths)).index_add(0, item, values[place_of])
            if self.model.per_step:
                predicted = predicted / torch.from_numpy(lengths)
            loss = self.model.loss(predicted, self.target[chosen], self.config, weights)
            self.losses.append(float(loss.loss.detach()))
            if not math.isfinite(self.losses[-1]):
                raise self._diverged()
            self.contradicted.append(loss.contradicted)
            return loss.loss

        if len(steps) <= self.max_steps:
            loss_of(self._values(member, steps)).backward()  # type: ignore[no-untyped-call]
            return True
        pieces = [steps[i : i + self.max_steps] for i in range(0, len(steps), self.max_steps)]
        with torch.no_grad():
            values = torch.cat([self._values(member, piece) for piece in pieces])
        values.requires_grad_(True)
        (wanted,) = torch.autograd.grad(loss_of(values), values)
        for piece, gradient in zip(pieces, torch.split(wanted, self.max_steps), strict=True):
            self._values(member, piece).backward(gradient)  # type: ignore[no-untyped-call]
        return True

    def _values(self, member: int, steps: Rows) -> Tensor:
        return self.model.member_values(member, self.judgements.steps, steps)

    def _measure(self, epoch: int) -> tuple[float, float]:
        """Writes a line of history. Returns how good the model is, on what is held out if anything is."""
        if not all(bool(p.isfinite().all()) for p in self.model.ensemble.parameters()):
            raise self._diverged()
        training, held_out = self._judged(*self.measured)
        line = {
            "epoch": epoch,
            "updates": self.updates,
            "loss": float(np.mean(self.losses)) if self.losses else None,
            "contradicted": float(np.mean(self.contradicted)) if self.contradicted else None,
            "training": training,
            "held_out": held_out,
        }
        self.losses, self.contradicted = [], []
        self.history.append(line)
        if self.log:
            self.log(line)
        return self.model.quality(training if held_out is None else held_out)

    def _diverged(self) -> RewardModelError:
        what = f"fitting diverged: the loss or a weight is not finite after {self.updates} updates"
        return RewardModelError(what, cure="Use a lower learning rate.")

    def _judged(self, training: Rows, held_out: Rows) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Measures on labels learned from, which also calibrate the model, and on labels held out (None if there are none)."""
        predicted = self._predicted(training)
        self.model.calibrate(predicted, self.judgements.target[training])
        found = self.model.measure(predicted, self.judgements.target[training])
        if not len(held_out):
            return found, None
        return found, self.model.measure(self._predicted(held_out), self.judgements.target[held_out])

    def _predicted(self, labels: Rows) -> npt.NDArray[np.float64]:
        members, lengths = self._members_of(labels)
        return self.model.predictions(self.judgements.steps, np.concatenate([[0], np.cumsum(lengths)]), members)
