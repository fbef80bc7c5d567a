"""The quick way through the network of pictures against the plain one: one sequence after the other, and every picture for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from guerdon import networks
from guerdon.algorithms.bc import BC
from guerdon.algorithms.iql import IQL
from guerdon.networks import PolicyNetwork, Trunk, Words, seeded
from guerdon.picture_tiles import Pictures
from guerdon.transitions import Batch, Chunk, ObservationSpec, Rows, Sampler, Trajectory, Transitions, Vocabulary, collate

LENGTHS = (9, 4, 12, 1, 7, 10)
TEXTS = ("go to the red ball", "open the door", "go to the red ball then open the door", "go left")


def transitions(views: int = 1, *, grid: bool = True) -> Transitions:
    """Episodes in which about half of the pictures are repeats: of a grid world, or seen through a camera that stands still at times."""
    random = np.random.default_rng(0)
    count = sum(LENGTHS) + len(LENGTHS)
    tiles = random.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    frames = {}
    for view in range(views):
        different = tiles[random.integers(0, 3, (count, 3, 4))].swapaxes(2, 3).reshape(count, 24, 32, 3)
        if not grid:
            different = random.integers(0, 256, different.shape, dtype=np.uint8)
        frames[f"view {view}"] = different[np.cumsum(random.random(count) < 0.5)][:, :21]
    spec = ObservationSpec({view: f.shape[1:3] for view, f in frames.items()}, ("left", "right", "forward"), Vocabulary.of(TEXTS))
    ends = np.cumsum(LENGTHS)
    trajectories = [
        Trajectory(k, 0, int(end - length) + k, int(end - length), length)
        for k, (end, length) in enumerate(zip(ends, LENGTHS, strict=True))
    ]
    terminal = np.zeros(sum(LENGTHS), dtype=np.bool_)
    terminal[ends - 1] = True
    action, reward = random.integers(0, 3, len(terminal)), random.random(len(terminal)).astype(np.float32)
    return Transitions(spec, trajectories, frames, action, reward, terminal, [TEXTS[k % 4] for k in range(len(LENGTHS))], "repeats")


# --- the plain way ------------------------------------------------------------------------------------------------------------------


def plain_words(reader: Any, tokens: Tensor) -> Words:
    padding = tokens == 0
    lengths = (~padding).sum(1)
    packed = nn.utils.rnn.pack_padded_sequence(reader.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
    features, _ = nn.utils.rnn.pad_packed_sequence(reader.recurrent(packed)[0], batch_first=True, total_length=tokens.shape[1])
    return Words(features, features.sum(1) / lengths[:, None], padding)


def plain_block(block: Any, tiles: Tensor, condition: Tensor) -> Tensor:
    scale, shift = block.film(condition)[:, None, None, :].chunk(2, -1)
    neighbours = block.norm(block.convolution(tiles.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    return tiles + F.relu(neighbours * (1 + scale) + shift)


def plain_tiles(embedding: Any, frames: Tensor) -> Tensor:
    whole = F.pad(frames, embedding.edge)
    cut = whole.view(-1, embedding.rows, embedding.tile, embedding.columns, embedding.tile, 3).transpose(2, 3)
    pixels = cut.reshape(-1, embedding.rows, embedding.columns, 3 * embedding.tile**2)
    return F.relu(embedding.embedding(pixels / 127.5 - 1) + embedding.position)


def plain_layout(layout: Any, tiles: Tensor) -> Tensor:
    return layout.widen(layout.narrow(tiles).flatten(1))


def plain_sequence(trunk: Any, frames: Mapping[str, Tensor], previous: Tensor, words: Words, text: Tensor, memory: Tensor) -> Any:
    """One sequence: features (n, width), and the memory (2 width,) after it."""
    summary = words.summary[text].expand(len(previous), -1)
    looks = []
    for name, view in zip(trunk.names, trunk.views, strict=True):
        tiles = plain_tiles(view.tiles, frames[name])
        for block in view.early:
            tiles = plain_block(block, tiles, summary)
        looks.append(tiles)
    early = sum(plain_layout(view.early_layout, tiles) for view, tiles in zip(trunk.views, looks, strict=True))
    seen = F.relu(trunk.norm(early + trunk.previous_action(previous)))
    latch, state = memory.chunk(2)
    latches = torch.maximum(F.relu(trunk.memory.notice(seen)).cummax(0).values, latch)
    all_states = trunk.memory.recurrent((seen + trunk.memory.noticed(latches))[None], state[None, None])[0][0]
    read = words.features[text][~words.padding[text]]
    attended = (trunk.query(all_states) @ read.T / math.sqrt(read.shape[1])).softmax(-1) @ read
    due = torch.cat([all_states, attended], 1)
    late = 0
    for view, tiles in zip(trunk.views, looks, strict=True):
        for block in view.late:
            tiles = plain_block(block, tiles, due)
        late = late + plain_layout(view.late_layout, tiles)
    return trunk.situation(torch.cat([late, due], 1)), torch.cat([latches[-1], all_states[-1]])


def pixels(rows: Any) -> dict[str, Tensor]:
    return {view: frames.pixels() if isinstance(frames, Pictures) else frames for view, frames in rows.frames.items()}


def plain_forward(trunk: Any, rows: Any, memory: Tensor | None = None, words: Words | None = None) -> tuple[Tensor, Tensor]:
    words = plain_words(trunk.reader, rows.tokens)
    frames, begin, features, memories = pixels(rows), 0, [], []
    for sequence, length in enumerate(rows.lengths.tolist()):
        before = torch.zeros(2 * trunk.width) if memory is None else memory[sequence]
        part = slice(begin, begin + length)
        begin += length
        if length:
            own = {view: pictures[part] for view, pictures in frames.items()}
            new, before = plain_sequence(trunk, own, rows.previous_action[part], words, rows.instruction[sequence], before)
            features.append(new)
        memories.append(before)
    return torch.cat(features), torch.stack(memories)


@torch.no_grad()
def plain_remember(trunk: Any, prefix: Any, words: Words | None = None) -> Tensor | None:
    return None if prefix is None else plain_forward(trunk, prefix)[1]


# --- comparisons --------------------------------------------------------------------------------------------------------------------


def learned(trunk: Trunk, found: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    features, memory = found
    weight = torch.linspace(-1, 1, features.numel()).view_as(features)
    trunk.zero_grad()
    ((weight * features).sum() + memory.square().sum()).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in trunk.named_parameters() if parameter.grad is not None}


def config(**changes: Any) -> PolicyNetwork.Config:
    return PolicyNetwork.Config(channels=8, width=16, **changes)


def batch_of(data: Transitions, context: int = 5) -> Batch:
    return Sampler(data, sequences=6, context=context, seed=0).draw()


def test_what_is_compared_does_repeat() -> None:
    batch = batch_of(transitions())
    seen = batch.rows.frames["view 0"]
    assert isinstance(seen, Pictures)
    assert seen.library is not None
    assert len(seen.distinct) < 0.9 * len(seen.row)
    assert batch.prefix is not None
    assert (batch.prefix.lengths == 0).any()
    by_pixels = batch_of(transitions(grid=False)).rows.frames["view 0"]
    assert isinstance(by_pixels, Pictures)
    assert by_pixels.library is None


@pytest.mark.parametrize(
    ("grid", "views", "settings"),
    [
        (True, 1, {}),
        (False, 1, {}),
        (True, 2, {"late_convolutions": 2}),
        (True, 1, {"late_convolutions": 0}),
        (True, 1, {"early_convolutions": 0, "tile": 7}),
    ],
)
@pytest.mark.parametrize("at_once", [4, 64])
@pytest.mark.parametrize("raw", [False, True])
def test_features_memory_and_gradients_are_those_of_the_plain_way(
    grid: bool, views: int, settings: dict[str, int], raw: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "AT_ONCE", at_once)
    data = transitions(views, grid=grid)
    with seeded(0):
        trunk = PolicyNetwork.of(data.spec, config(**settings)).trunk
    assert isinstance(trunk, Trunk)
    nn.init.normal_(trunk.memory.noticed.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    batch = batch_of(data)
    rows, prefix = batch.rows, batch.prefix
    assert prefix is not None
    if raw:
        rows, prefix = (replace(part, frames=pixels(part)) for part in (rows, prefix))
    memory, expected_memory = trunk.remember(prefix), plain_remember(trunk, prefix)
    assert memory is not None
    assert not memory.requires_grad
    assert_close(memory, expected_memory, atol=1e-5, rtol=1e-5)
    assert_close(trunk(rows, memory), plain_forward(trunk, rows, memory), atol=1e-5, rtol=1e-5)
    # Where a picture is the last one of the prefix once more, rounding decides whether the latch keeps the old value or takes the new one,
    # and with it where the gradient goes. So gradients are compared after another past.
    past = torch.rand(memory.shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = trunk(rows, past), plain_forward(trunk, rows, past)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    gradients, expected = learned(trunk, ours), learned(trunk, theirs)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        largest = float(expected[name].abs().max())
        assert_close(gradient, expected[name], atol=1e-5 * (largest + 1), rtol=1e-4)


def test_instructions_that_were_read_before_serve_the_prefix_too() -> None:
    data = transitions()
    with seeded(0):
        trunk = PolicyNetwork.of(data.spec, config()).trunk
    batch = batch_of(data)
    words = trunk.read(batch.rows.tokens)
    assert torch.equal(trunk.remember(batch.prefix, words), trunk.remember(batch.prefix))


def test_a_policy_without_memory_is_given_plain_pictures() -> None:
    data = transitions()
    data.spec = replace(data.spec, memory=False)
    batch = collate(data, [Chunk(0, 0, 3)])
    assert isinstance(batch.rows.frames["view 0"], Tensor)


def metrics(make: Callable[[Transitions], Any], data: Transitions) -> list[dict[str, float]]:
    algorithm, sampler = make(data), Sampler(data, sequences=3, context=64, seed=0)
    return [{name: float(value) for name, value in algorithm.update(sampler.draw()).items()} for _ in range(6)]


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [(IQL, {"critic_share": 0.3}), (IQL, {}), (BC, {})],
    ids=["iql", "iql with its usual share", "bc"],
)
def test_several_updates_are_those_of_the_plain_way(chosen: Any, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def make(data: Transitions) -> Any:
        # Of another seed's units one lies within rounding of its kink at the fourth update, and the two ways part there.
        return chosen(data, chosen.Config(network=config(), **settings), seed=1, updates=50)

    ours = metrics(make, transitions())
    monkeypatch.setattr(Trunk, "forward", plain_forward)
    monkeypatch.setattr(Trunk, "remember", plain_remember)
    theirs = metrics(make, transitions())
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_updates_repeat_to_the_last_bit() -> None:
    def make(data: Transitions) -> Any:
        return IQL(data, IQL.Config(network=config()), seed=0, updates=50)

    assert metrics(make, transitions()) == metrics(make, transitions())


@pytest.mark.parametrize("raw", [False, True])
def test_a_coarser_precision_stays_outside_memory_and_features(raw: bool) -> None:
    data = transitions()
    with seeded(0):
        trunk = PolicyNetwork.of(data.spec, config()).trunk
    rows: Rows = batch_of(data, context=64).rows
    rows = replace(rows, frames=pixels(rows)) if raw else rows
    exact, exact_memory = trunk(rows)
    with torch.autocast("cpu", torch.bfloat16):
        coarse, memory = trunk(rows)
    assert (coarse.dtype, memory.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(coarse, exact)
    assert_close(coarse, exact, atol=0.2, rtol=0)
    assert_close(memory, exact_memory, atol=0.05, rtol=0)
