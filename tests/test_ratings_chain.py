"""From a rater's words to what a policy learns from, in one line: the rating of an observation rewards the transition that led there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from guerdon.labels import LabelSet, vote
from guerdon.methods.rating import Rating
from guerdon.providers.scripted import Scripted
from guerdon.records import Exchange, Label, Reply, Sample, Subject, Transcript
from guerdon.rewards.column import RewardColumn
from guerdon.rewards.compose import compose
from guerdon.rewards.fitting import Config, fit, load_model
from guerdon.rewards.relabel import relabel
from guerdon.rewards.steps import judgements, look_of
from guerdon.samples import Config as Sampling
from guerdon.samples import select
from guerdon.transitions import Sampler, Transitions
from tests.reward_data import Recorded

LENGTHS = (9, 7, 8, 9, 8, 7)
BEST = 4
"""The observation that fulfils the instruction; before it nothing is done, and after it half of it is undone again."""


def quality(subject: Subject) -> npt.NDArray[np.float64]:
    seen = np.arange(subject.start, subject.stop + 1)
    return np.select([seen == BEST, seen > BEST], [1.0, 0.5], 0.0)


def conversation(method: Rating, rater: Scripted, sample: Sample, repeat: int) -> Transcript:
    """All that a rater is asked about a sample, without a store."""
    exchanges: list[Exchange] = []
    while (request := method.next(sample, exchanges)) is not None:
        exchanges.append(Exchange(request, asyncio.run(rater.ask(request, repeat=repeat))))
    assert all(isinstance(exchange.outcome, Reply) for exchange in exchanges)
    return Transcript(sample, tuple(exchanges), repeat)


def rated(data: Recorded, item: Any) -> LabelSet:
    """Ratings of every observation or transition, each asked twice."""
    method = Rating(Rating.Config(item=item))
    rater = Scripted.build("perfect", qualities=quality)

    def labels() -> Iterator[Label]:
        for sample in select(data, Sampling(kind=method.samples, **({"window": 4} if item == "transition" else {}))):
            yield from vote([method.read(conversation(method, rater, sample, repeat)) for repeat in range(2)], "majority", scale=(0, 2))

    meaning = {"method": "rating", "version": "1", "scale": [0, 2], "levels": list(method.classes), "rater": "scripted"}
    return LabelSet(list(labels()), {**meaning, "dataset": data.fingerprint})


@pytest.mark.parametrize("item", ["picture", "transition"])
def test_the_action_that_leads_to_the_best_observation_gets_the_largest_reward(item: Any, tmp_path: Path) -> None:
    data = Recorded(LENGTHS)
    label_set = rated(data, item)
    label_set.write(tmp_path / "labels.parquet")
    judged = judgements([LabelSet.read(tmp_path / "labels.parquet")], data, look := look_of(data, vectors=["state"]))
    assert len(judged) == sum(LENGTHS) + LENGTHS[0], "the first episode has two wordings"
    config = Config(members=2, width=32, updates=150, learning_rate=1e-2, loss="ce", held_out=0)
    fit(judged, look, config, seed=0, out=tmp_path / "model")
    values = dict(relabel(load_model(tmp_path / "model"), data))
    RewardColumn(values, {"dataset": data.fingerprint, "model": "s256:model", "scale": [-1, 1]}).write(tmp_path / "rewards.parquet")
    column = compose({}, data, "erl_vlm", columns={"erl_vlm": RewardColumn.read(tmp_path / "rewards.parquet")})
    transitions = Transitions.build(data, column.values, vectors=["state"])
    pieces = len(transitions)
    assert pieces == len(judged)
    batch = Sampler(transitions, sequences=pieces, context=1, seed=0).draw()
    before, after = batch.rows.vectors["state"][::2], batch.rows.vectors["state"][1::2]
    reward = batch.reward[::2]
    assert batch.known[::2].all()
    assert (after[:, 1] == before[:, 1] + 1).all()
    led_to = after[:, 1]
    np.testing.assert_allclose(reward[led_to == BEST], 1.0, atol=0.2)
    np.testing.assert_allclose(reward[led_to < BEST], 0.0, atol=0.2)
    assert reward[led_to == BEST].min() > reward[led_to > BEST].max()
    assert reward[led_to > BEST].min() > reward[led_to < BEST].max()
