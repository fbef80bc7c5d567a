"""Policies that see pictures and have no memory: what each row may depend on, the losses against the plain way to compute them, and that
they learn from words, pictures and vectors through every part of the package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, tensor
from torch.testing import assert_close

from guerdon.algorithms.bc import BC
from guerdon.algorithms.iql import IQL
from guerdon.errors import PolicyError, UsageError
from guerdon.networks import Optimiser, PolicyNetwork, seeded
from guerdon.networks_glimpse import GlimpseTrunk
from guerdon.recipes.train import Config as TrainConfig
from guerdon.recipes.train import train as train_recipe
from guerdon.records import Frames, Task
from guerdon.runs import Run
from guerdon.seeding import generator
from guerdon.training.offline import Config, advantages, train, updates_for
from guerdon.training.policy import load_policy, network_for, read_tensors, save_policy
from guerdon.transitions import Batch, Chunk, ObservationSpec, Rows, Sampler, Transitions, Vocabulary, collate, cut
from tests.memory import MemoryDataset, MemoryEpisode
from tests.point import PointData

NAN = float("nan")
SMALL = PolicyNetwork.Config(width=16)
FAST = Optimiser.Config(learning_rate=1e-2, warm_up=5)
TEXTS = ("go left", "go right to the red ball")


class Scenes(PointData):
    """Random pictures, 36 x 44 pixels, of two cameras beside the state; named actions on request."""

    def __init__(self, count: int = 4, *, steps: int = 4, named: bool = False) -> None:
        super().__init__(count, steps=steps, views=("above", "hand"), texts=TEXTS)
        if named:
            self.action_names = ("left", "right", "forward")

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        random = generator(index, view)
        return random.integers(0, 256, (self._episodes[index].length + 1, 36, 44, 3), dtype=np.uint8)[start:stop]

    def actions(self, index: int) -> np.ndarray[Any, Any]:
        length = self._episodes[index].length
        return (np.arange(length) + index) % 3 if self.action_names else super().actions(index)


def transitions(*, named: bool = False, views: Sequence[str] = ("above", "hand"), vectors: Sequence[str] = ("state",)) -> Transitions:
    rewards = {(k, 0): np.array([0.1 * k, NAN, 0.3, 2], np.float32) for k in range(4)}
    return Transitions.build(Scenes(named=named), rewards, views=views, vectors=vectors, memory=False)


def learner(data: Transitions, **settings: Any) -> IQL:
    return IQL(data, IQL.Config(network=SMALL, **settings), seed=0, updates=100)


def batches(data: Transitions, count: int = 1, *, sequences: int = 6) -> list[Batch]:
    sampler = Sampler(data, sequences=sequences, context=1, seed=0)
    return [sampler.draw() for _ in range(count)]


# --- the trunk ----------------------------------------------------------------------------------------------------------------------


def network(pictures: dict[str, tuple[int, int]] | None = None, vectors: dict[str, int] | None = None) -> PolicyNetwork:
    with seeded(0):
        return PolicyNetwork(pictures or {"full": (36, 44)}, words=9, actions=3, config=SMALL, vectors=vectors, memory=False).eval()


def rows(*lengths: int, seed: int = 0) -> Rows:
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    return Rows(
        frames={"full": torch.randint(256, (count, 36, 44, 3), generator=random, dtype=torch.uint8)},
        previous_action=torch.randint(4, (count,), generator=random),
        lengths=tensor(lengths),
        instruction=torch.arange(len(lengths)) % 2,
        tokens=tensor([[2, 3, 4, 5, 0], [2, 6, 7, 8, 8]]),
    )


def features(net: PolicyNetwork, given: Rows) -> Tensor:
    with torch.no_grad():
        result: Tensor = net.trunk(given)[0]
    return result


def test_a_row_depends_on_nothing_but_its_picture_and_instruction() -> None:
    net, whole = network(), rows(3, 1, 2)
    together = features(net, whole)
    assert (together.shape, together.dtype) == ((6, SMALL.width), torch.float32)
    for row, sequence in enumerate((0, 0, 0, 1, 2, 2)):
        alone = whole.alone(tensor([row]))
        assert_close(features(net, replace(alone, tokens=whole.tokens[alone.instruction], instruction=tensor([0])))[0], together[row])
        assert int(alone.instruction) == sequence % 2
    assert_close(features(net, replace(whole, previous_action=torch.zeros_like(whole.previous_action))), together)
    longer = replace(whole, tokens=torch.cat([whole.tokens, torch.zeros(2, 4, dtype=torch.int64)], 1))
    assert_close(features(net, longer), together)
    other = features(net, replace(whole, instruction=1 - whole.instruction))
    assert ((other - together).abs().amax(1) > 1e-4).all()
    assert net.trunk.remember(whole) is None
    assert net.trunk(whole)[1].shape == (3, 0)


def test_every_corner_of_the_picture_matters_that_the_convolutions_reach() -> None:
    net = network()
    seen = replace(rows(1), frames={"full": torch.full((1, 36, 44, 3), 128, dtype=torch.uint8)})
    for y, x in ((0, 0), (0, 43), (35, 0), (35, 43), (17, 20)):
        changed = seen.frames["full"].clone()
        changed[0, y, x] = 255
        assert not torch.equal(features(net, replace(seen, frames={"full": changed})), features(net, seen))


def plain_features(trunk: GlimpseTrunk, given: Rows) -> Tensor:
    """What the trunk computes, written row by row with the layers as torch gives them."""
    found = []
    for row, sequence in enumerate(torch.repeat_interleave(torch.arange(len(given.lengths)), given.lengths).tolist()):
        tokens = given.tokens[given.instruction[sequence]]
        embedded = trunk.reader.embedding(tokens[tokens > 0])[None]
        summary = trunk.reader.recurrent(embedded)[0].mean(1)
        parts = [trunk.asked(summary)]
        for name, camera in zip(trunk.names, trunk.cameras, strict=True):
            picture = given.frames[name][row].permute(2, 0, 1)[None].contiguous().float() / 127.5 - 1
            told = camera.third(F.relu(camera.second(F.relu(camera.first(picture)))))
            scale, shift = camera.film(summary)[0].chunk(2)
            told = F.relu(told * (1 + scale[None, :, None, None]) + shift[None, :, None, None])
            parts.append(camera.widen(told.permute(0, 2, 3, 1).reshape(1, -1)))
        for (name, scale_of), felt in zip(trunk.scales(), trunk.felt, strict=True):
            parts.append(felt(scale_of(given.vectors[name][row : row + 1])))
        found.append(F.relu(trunk.norm(sum(parts[1:], parts[0]))))
    return torch.cat(found)


def test_the_trunk_is_its_layers_one_after_the_other() -> None:
    data = transitions()
    algorithm, batch = learner(data), batches(data)[0]
    with torch.no_grad():
        assert_close(algorithm.policy.trunk(batch.rows)[0], plain_features(algorithm.policy.trunk, batch.rows), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("size", "fits"), [((36, 36), True), ((36, 200), True), ((35, 64), False), ((64, 16), False)])
def test_pictures_are_large_enough_or_refused(size: tuple[int, int], fits: bool) -> None:
    if fits:
        seen = replace(rows(2), frames={"hand": torch.zeros(2, *size, 3, dtype=torch.uint8)})
        assert features(network({"hand": size}), seen).shape == (2, SMALL.width)
        return
    with pytest.raises(UsageError, match=rf"view 'hand' has pictures of {size[0]} x {size[1]} pixels.*36 or more") as caught:
        network({"hand": size})
    assert "memory" in str(caught.value)
    assert PolicyNetwork({"hand": size}, words=9, actions=3, config=SMALL).trunk.remembers


def test_two_cameras_and_a_vector_all_matter() -> None:
    data = transitions()
    algorithm = learner(data)
    seen = batches(data)[0].rows
    before = features(algorithm.policy, seen)
    for name in ("above", "hand"):
        frames = {**seen.frames, name: seen.frames[name].flip(1)}
        assert not torch.allclose(features(algorithm.policy, replace(seen, frames=frames)), before)
    assert not torch.allclose(features(algorithm.policy, replace(seen, vectors={"state": seen.vectors["state"] + 0.1})), before)
    scale = dict(algorithm.policy.trunk.scales())["state"]
    assert_close(scale.mean, torch.from_numpy(data.vectors["state"].mean(0)))
    assert scale.scale[4] == 0  # the state's last number never changes


def test_in_bfloat16_only_convolutions_and_linear_maps_are_narrow() -> None:
    data = transitions(named=True)
    algorithm, batch = learner(data), batches(data)[0]
    seen: dict[str, torch.dtype] = {}
    trunk = algorithm.policy.trunk
    camera = trunk.cameras[0]
    watched = {"convolution": camera.third, "widen": camera.widen, "norm": trunk.norm, "head": algorithm.policy.head}
    for name, module in watched.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out.dtype))
    exact = algorithm.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        words = trunk.read(batch.rows.tokens)
        rounded = algorithm.losses(batch)
        sum(loss.sum() for loss in rounded.values()).backward()  # type: ignore[union-attr]
    assert words.summary.dtype == torch.float32
    assert seen == {"convolution": torch.bfloat16, "widen": torch.bfloat16, "norm": torch.float32, "head": torch.float32}
    for name, loss in rounded.items():
        assert loss.dtype == torch.float32
        assert_close(loss, exact[name], atol=0.2, rtol=0.1)
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in algorithm.policy.parameters())


# --- implicit Q-learning and cloning ------------------------------------------------------------------------------------------------


class Plain:
    """IQL as it is written down: policy, value, both critics and their targets each see for themselves, with the same weights."""

    def __init__(self, algorithm: IQL) -> None:
        trunk, target = algorithm.policy.trunk, algorithm._target
        self.policy = nn.ModuleList([deepcopy(trunk), deepcopy(algorithm.policy.head)])
        self.value = nn.ModuleList([deepcopy(trunk), deepcopy(algorithm._value)])
        self.critics = [nn.ModuleList([deepcopy(trunk), deepcopy(each)]) for each in algorithm._critics.heads]
        self.targets = [nn.ModuleList([deepcopy(target.trunk), deepcopy(each)]) for each in target.heads]
        self.algorithm = algorithm

    @staticmethod
    def q(critic: Any, seen: Rows, action: Tensor) -> Tensor:
        trunk, head = critic
        found = plain_features(trunk, seen)
        if action.is_floating_point():
            return torch.stack([head(torch.cat([found[k], action[k]])).squeeze() for k in range(len(action))])
        return torch.stack([head(found[k])[action[k]] for k in range(len(action))])

    def losses(self, now: Rows, later: Rows, action: Tensor, paid: Tensor, terminal: Tensor) -> dict[str, Tensor]:
        c, scale = self.algorithm.config, self.algorithm._reward_scale
        trunk, head = self.value
        with torch.no_grad():
            next_value = head(plain_features(trunk, later))[:, 0]
            lower = torch.minimum(*(self.q(target, now, action) for target in self.targets))
        error = lower - head(plain_features(trunk, now))[:, 0]
        goal = scale * paid + c.discount * (~terminal) * next_value
        weight = torch.exp(self.algorithm._inverse_temperature * error.detach()).clamp(max=c.weight_ceiling)
        trunk, head = self.policy
        said = head(plain_features(trunk, now))
        if action.is_floating_point():
            surprise = -torch.distributions.Normal(said[0], said[1].exp()).log_prob(action).sum(1)
        else:
            surprise = -said.log_softmax(1)[torch.arange(len(action)), action]
        return {
            "value_loss": torch.where(error > 0, c.expectile, 1 - c.expectile) * error.square(),
            "critic_loss": sum(((self.q(critic, now, action) - goal).square() for critic in self.critics), torch.zeros(len(action))),
            "policy_loss": weight * surprise,
        }


@pytest.mark.parametrize("named", [True, False])
def test_losses_and_gradients_equal_those_of_networks_that_each_see_for_themselves(named: bool) -> None:
    data = transitions(named=named)
    algorithm = learner(data, discount=0.5, expectile=0.7, inverse_temperature=3.0, largest_return=4.0, critic_share=0.3)
    *earlier, batch = batches(data, 4)
    for each in earlier:  # so that targets differ from the critics, and heads from their beginning
        algorithm.update(each)
    batch = replace(batch, terminal=batch.acted & (torch.arange(len(batch.acted)) % 4 == 0))
    plain = Plain(algorithm)
    now, later = (batch.rows.alone(torch.arange(start, 12, 2)) for start in (0, 1))
    expected = plain.losses(now, later, batch.action[::2], batch.reward[::2], batch.terminal[::2])
    losses = algorithm.losses(batch)
    for name, loss in expected.items():
        assert_close(losses[name][::2], loss, atol=1e-5, rtol=1e-4)
    for module in (algorithm.policy, algorithm._value, algorithm._critics):
        module.zero_grad(set_to_none=True)
    sum(loss[batch.known].mean() for loss in losses.values()).backward()  # type: ignore[union-attr]
    sum(loss.mean() for loss in expected.values()).backward()  # type: ignore[union-attr]
    for name, parameter in algorithm.policy.trunk.named_parameters():
        judging = [trunk.get_parameter(name).grad for trunk, _ in (plain.value, *plain.critics)]
        assert_close(parameter.grad, plain.policy[0].get_parameter(name).grad + 0.3 * sum(judging), atol=1e-4, rtol=1e-3)
    for ours, theirs in zip(algorithm._critics.heads.parameters(), [p for c in plain.critics for p in c[1].parameters()], strict=True):
        assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in algorithm._target.parameters())


def test_what_an_action_led_to_is_looked_at_once_and_without_gradient() -> None:
    data = transitions(named=True)
    algorithm, batch = learner(data), batches(data)[0]
    looks: list[tuple[str, int, bool]] = []
    for name, trunk in (("online", algorithm.policy.trunk), ("target", algorithm._target.trunk)):
        trunk.register_forward_hook(lambda _, __, out, name=name: looks.append((name, len(out[0]), out[0].requires_grad)))
    algorithm.update(batch)
    assert sorted(looks) == [("online", 6, False), ("online", 6, True), ("target", 6, False)]
    looks.clear()
    cloning = BC(data, BC.Config(network=SMALL), seed=0, updates=10)
    cloning.policy.trunk.register_forward_hook(lambda _, __, out: looks.append(("bc", len(out[0]), out[0].requires_grad)))
    cloning.update(batch)
    assert looks == [("bc", 6, True)]


@pytest.mark.parametrize("named", [True, False])
def test_unknown_rewards_contribute_no_gradient(named: bool) -> None:
    data = transitions(named=named)
    batch = collate(data, [Chunk(0, 0, 4), Chunk(1, 1, 3)])
    assert int((batch.acted & ~batch.known).sum()) == 2

    def gradient(given: Batch) -> dict[str, Tensor | None]:
        algorithm = learner(data)
        algorithm.update(given)
        return {name: parameter.grad for name, parameter in algorithm.policy.named_parameters()}

    other = replace(batch, reward=batch.reward.masked_fill(~batch.known, 99.0))
    ours, theirs, third = gradient(batch), gradient(other), gradient(replace(batch, reward=batch.reward + batch.known))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], third[name]) for name in ours)


def test_networks_that_share_a_trunk_are_clipped_together_and_weigh_as_pictures_do() -> None:
    algorithm = learner(transitions())
    assert algorithm._inverse_temperature == 1.0
    assert [len(group) for group in algorithm._optimiser._clipped] == [len(algorithm._optimiser._parameters)]


class Obey(MemoryDataset):
    """One picture, two instructions that ask for opposite things."""

    def __init__(self) -> None:
        super().__init__([MemoryEpisode(1, TEXTS[k % 2]) for k in range(8)], size=36)

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        return np.full((stop - start, 36, 36, 3), 90, np.uint8)

    def actions(self, index: int) -> np.ndarray[Any, Any]:
        return np.array([index % 2 if index < 4 else 1 - index % 2])


@pytest.mark.parametrize("name", ["iql", "bc"])
def test_words_decide_where_pictures_do_not(name: str) -> None:
    """For IQL half of the episodes disobey, and are not paid; cloning sees only those that obey."""
    paid = {(k, 0): np.array([float(k < 4)], np.float32) for k in range(8)}
    data = Transitions.build(Obey(), paid, episodes=range(8 if name == "iql" else 4), memory=False)
    config: Any = IQL.Config(network=SMALL, optimiser=FAST, target_rate=0.1) if name == "iql" else BC.Config(network=SMALL, optimiser=FAST)
    algorithm: Any = (IQL if name == "iql" else BC)(data, config, seed=0, updates=120)
    sampler = Sampler(data, sequences=8, context=1, seed=0)
    for _ in range(120):
        algorithm.update(sampler.draw())
    with torch.no_grad():
        seen = collate(data, [Chunk(0, 0, 1), Chunk(1, 0, 1)]).rows
        chances = algorithm.policy.head(algorithm.policy.trunk(seen)[0]).softmax(-1)
    assert chances[0, 0] > 0.9
    assert chances[2, 1] > 0.9


@pytest.mark.parametrize(("name", "named", "kill_at"), [("iql", True, 4), ("iql", False, 2), ("bc", True, 4), ("bc", False, 6)])
def test_a_killed_run_goes_on_bit_by_bit(tmp_path: Path, name: str, named: bool, kill_at: int) -> None:
    class Killed(Exception):
        pass

    def progress(made: int, _: int) -> None:
        if made == kill_at:
            raise Killed

    data = transitions(named=named)
    which: dict[str, Any] = {
        "config": {"iql": IQL.Config(network=SMALL), "bc": BC.Config(network=SMALL)}[name],
        "loop": Config(sequences=4, log_every=2, checkpoint_every=4), "updates": 8, "seed": 0,
    }  # fmt: skip
    train(data, name, out=tmp_path / "whole", **which)
    with pytest.raises(Killed):
        train(data, name, out=tmp_path / "killed", progress=progress, **which)
    train(data, name, out=tmp_path / "killed", **which)
    for file in ("checkpoint.safetensors", "policy.safetensors"):
        ours, theirs = (read_tensors(tmp_path / folder / file)[0] for folder in ("whole", "killed"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[each], theirs[each]) for each in ours)
    found = advantages(data, name, out=tmp_path / "whole", **which)
    shapes = None if found is None else {key: values.shape for key, values in found.items()}
    assert shapes == (None if name == "bc" else {(k, 0): (4,) for k in range(4)})


def test_advantages_are_the_target_s_action_values_less_the_value() -> None:
    data = transitions(named=True)
    algorithm = learner(data)
    for batch in batches(data, 3):
        algorithm.update(batch)
    batch = collate(data, [Chunk(0, 0, 4), Chunk(2, 0, 4)])
    plain, here = Plain(algorithm), batch.acted_rows()
    seen = batch.rows.alone(here)
    with torch.no_grad():
        lower = torch.minimum(*(plain.q(target, seen, batch.action[here]) for target in plain.targets))
        expected = (lower - plain.value[1](plain_features(plain.value[0], seen))[:, 0]) / algorithm._reward_scale
    assert_close(algorithm.advantages(batch)[here], expected, atol=1e-4, rtol=1e-3)


# --- data, policies and the command ---------------------------------------------------------------------------------------------------


def test_gathered_pictures_are_those_that_collate_puts_together() -> None:
    data = transitions(named=True)
    chunks = cut(data, 1)
    sampler = Sampler(data, sequences=5, context=1, seed=3)
    for number in range(4):  # two epochs of 12, so that batches reach over their ends
        drawn = sampler.draw()
        places = [divmod(5 * number + k, len(chunks)) for k in range(5)]
        order = [chunks[generator(3, "sampler", epoch).permutation(len(chunks))[place]] for epoch, place in places]
        expected = collate(data, order)
        assert list(drawn.rows.frames) == ["above", "hand"]
        for name, pictures in drawn.rows.frames.items():
            assert pictures.dtype == torch.uint8
            assert torch.equal(pictures, expected.rows.frames[name])
        for name in ("action", "reward", "terminal", "acted", "known"):
            assert torch.equal(getattr(drawn, name), getattr(expected, name))
        assert torch.equal(drawn.rows.vectors["state"], expected.rows.vectors["state"])
        assert torch.equal(drawn.rows.tokens[drawn.rows.instruction], expected.rows.tokens[expected.rows.instruction])
        assert drawn.prefix is expected.prefix is None


def test_rows_that_acted_are_found_without_asking_for_their_number() -> None:
    data = transitions()
    batch = collate(data, [Chunk(0, 1, 4), Chunk(2, 0, 1), Chunk(1, 2, 4)])
    assert batch.acted_rows().tolist() == batch.acted.nonzero().squeeze(1).tolist() == [0, 1, 2, 4, 6, 7]
    alone = batch.rows.alone(tensor([4, 7]))
    assert alone.lengths.tolist() == [1, 1]
    assert torch.equal(alone.frames["hand"], batch.rows.frames["hand"][[4, 7]])
    assert alone.instruction.tolist() == batch.rows.instruction[[1, 2]].tolist()


def test_a_record_says_so_only_where_there_is_no_memory() -> None:
    forgetful = transitions().spec
    assert (forgetful.memory, forgetful.remembers) == (False, False)
    assert forgetful.to_record()["memory"] is False
    assert ObservationSpec.from_record(forgetful.to_record()) == forgetful
    remembering = replace(forgetful, memory=True)
    assert "memory" not in remembering.to_record()
    assert ObservationSpec.from_record(remembering.to_record()).remembers
    state = Transitions.build(Scenes(), views=(), vectors=("state",), memory=False)
    assert "memory" not in state.spec.to_record()  # one that sees no pictures never had one
    assert state.fingerprint == Transitions.build(Scenes(), views=(), vectors=("state",)).fingerprint
    assert transitions().fingerprint != Transitions.build(Scenes(), views=("above", "hand"), vectors=("state",)).fingerprint
    assert (Config().of(forgetful), updates_for(forgetful)) == ((256, 1), 5000)


SPEC = ObservationSpec({"full": (36, 44)}, ("left", "right", "forward"), Vocabulary.of(TEXTS), memory=False)
FRAMES = np.random.default_rng(0).integers(0, 256, (12, 36, 44, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with seeded(1):
        save_policy(tmp_path, network_for(SPEC, SMALL), SPEC, {})
    return tmp_path


def test_a_saved_policy_acts_on_what_it_sees_alone(folder: Path) -> None:
    policy = load_policy(folder)
    assert (policy.spec, policy.views) == (SPEC, ("full",))
    seen: list[Tensor] = []
    look = policy._look
    policy._look = lambda *given: (seen.append(look(*given)), seen[-1])[1]  # type: ignore[method-assign]
    alone = []
    for slot, text in enumerate((TEXTS[0], TEXTS[1], "fly over unheard-of hills")):
        policy.start(text)
        policy.step(FRAMES[11])  # what came before does not matter
        alone.append(policy.step(FRAMES[slot]))
    said = torch.cat(seen[1::2])
    policy.reset([Task(str(k), "x", text, 1, "fixed", 9) for k, text in enumerate((*TEXTS, "fly over unheard-of hills"))])
    together = policy.act({"full": FRAMES[:3]}, np.array([True, True, True]))
    assert together.tolist() == alone
    assert_close(seen[-1], said)
    before = len(seen)
    policy.act({"full": FRAMES[:3]}, np.array([False, True, False]))
    assert_close(seen[before], said[1:2])


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (FRAMES[0][:30], r"shape \(36, 44, 3\) for view 'full', got uint8 \(30, 44, 3\)"),
        (FRAMES[0].astype(np.float32), "got float32"),
        ({"hand": FRAMES[0]}, "view 'full', but the views given are: hand"),
    ],
)
def test_other_pictures_are_refused(folder: Path, seen: Any, message: str) -> None:
    policy = load_policy(folder)
    policy.start("go")
    with pytest.raises(PolicyError, match=message):
        policy.step(seen)


def test_weights_of_a_policy_with_memory_are_refused(folder: Path) -> None:
    record = json.loads((folder / "policy.json").read_text())
    del record["sees"]["memory"]
    (folder / "policy.json").write_text(json.dumps(record))
    with pytest.raises(PolicyError, match="cannot be opened"):
        load_policy(folder)


def test_the_command_trains_policies_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Scenes(named=True)
    monkeypatch.setattr("guerdon.recipes.train.dataset_of", lambda run: data)
    monkeypatch.setattr("guerdon.recipes.train.inputs_of", lambda run, reward: {"dataset": data.fingerprint})
    Run.open_or_create(tmp_path, dataset_path=tmp_path, fingerprint=data.fingerprint)
    settings: dict[str, Any] = {
        "run": tmp_path, "algorithm": "bc", "seeds": 1, "updates": 2, "jobs": 1, "quiet": True, "views": ("hand",),
        "algorithm_settings": BC.Config(network=SMALL),
    }  # fmt: skip
    (part,) = train_recipe.of(TrainConfig(**settings, memory=False))
    assert load_policy(part).spec.to_record()["memory"] is False
    run = Run.open(tmp_path)
    manifest = run.manifest(part)
    assert manifest is not None
    assert manifest["config"]["memory"] is False
    train_recipe.of(TrainConfig(**settings))
    manifest = run.manifest(part)
    assert manifest is not None
    assert "memory" not in manifest["config"]  # as in the manifests of policies made before there was a choice
    assert load_policy(part).spec.remembers


def test_too_small_pictures_are_refused_before_anything_is_touched() -> None:
    data = MemoryDataset([MemoryEpisode(3)], size=16)
    with pytest.raises(UsageError, match="view 'full' has pictures of 16 x 16 pixels"):
        Transitions.build(data, memory=False)
    assert Transitions.build(data).spec.remembers


# --- a reader that does not learn ---------------------------------------------------------------------------------------------------

UNLEARNED = PolicyNetwork.Config(width=16, learn_words=False)


def test_a_reader_that_does_not_learn_reads_each_instruction_once() -> None:
    data = transitions()
    algorithm = BC(data, BC.Config(network=UNLEARNED, optimiser=FAST), seed=0, updates=20)
    trunk = algorithm.policy.trunk
    assert isinstance(trunk, GlimpseTrunk)
    before, read = deepcopy(trunk.reader.state_dict()), []
    trunk.reader.register_forward_hook(lambda *arguments: read.append(len(arguments[1][0])))
    for batch in batches(data, 6):
        algorithm.update(batch)
    assert sum(read) == len(TEXTS)
    assert all(torch.equal(before[name], value) for name, value in trunk.reader.state_dict().items())


def test_what_was_read_once_is_what_a_learning_reader_would_see() -> None:
    """Whatever padding and company an instruction has, and again after other weights were loaded."""
    data = transitions()
    learning, fixed = (PolicyNetwork.of(data.spec, replace(SMALL, learn_words=learn)).eval() for learn in (True, False))
    for seed in (0, 1):
        with seeded(seed):
            learning.load_state_dict({name: torch.randn_like(value) for name, value in learning.state_dict().items()})
        fixed.load_state_dict(learning.state_dict())
        for texts in (TEXTS[:1], TEXTS, TEXTS[::-1]):
            tokens = data.spec.vocabulary.batch(texts)
            with torch.no_grad():
                assert_close(fixed.trunk.read(tokens).summary, learning.trunk.read(tokens).summary, rtol=1e-5, atol=1e-6)


def test_unlearned_words_still_tell_what_to_do(tmp_path: Path) -> None:
    """One picture, two instructions, opposite actions; the policy is kept, loaded and acts."""

    class Same(Scenes):
        def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
            return np.full((stop - start, 36, 44, 3), 99, np.uint8)

        def actions(self, index: int) -> np.ndarray[Any, Any]:
            return np.full(self._episodes[index].length, index % 2)

    data = Transitions.build(Same(8, named=True), None, views=("above",), memory=False)
    config = BC.Config(network=UNLEARNED, optimiser=FAST)
    policy = load_policy(train(data, "bc", config, updates=200, seed=0, out=tmp_path, loop=Config(sequences=8)))
    for number, text in enumerate(TEXTS):
        policy.start(text)
        assert policy.step(np.full((36, 44, 3), 99, np.uint8)) == number
