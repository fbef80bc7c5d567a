"""Saved policies: they act as they were trained, remember their episodes, and refuse what they were not trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from guerdon.errors import PolicyError, RunError
from guerdon.networks import PolicyNetwork, seeded
from guerdon.records import Task
from guerdon.training.policy import Policy, load_policy, network_for, read_tensors, save_policy, write_tensors
from guerdon.transitions import ObservationSpec, Rows, Vocabulary

SPEC = ObservationSpec({"full": (16, 24)}, ("left", "right", "forward"), Vocabulary.of(["go to the red ball, then to the blue key"]))
FRAMES = np.random.default_rng(0).integers(0, 256, (12, 16, 24, 3), dtype=np.uint8)


def new_network() -> PolicyNetwork:
    with seeded(1):
        return network_for(SPEC, PolicyNetwork.Config(channels=8, width=16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(tmp_path / "policy", new_network(), SPEC, {"algorithm": "bc", "seed": 0})
    return tmp_path / "policy"


def tasks(*instructions: str) -> list[Task]:
    return [Task(str(number), "babyai", text, 1, "fixed", 20) for number, text in enumerate(instructions)]


def test_three_lines_are_enough(folder: Path) -> None:
    policy = load_policy(folder)
    policy.start("go to the red ball")
    action = policy.step(FRAMES[0])
    assert action in (0, 1, 2)
    policy.start("go to the red ball")
    assert policy.step({"full": FRAMES[0]}) == action


def test_acting_step_by_step_equals_the_whole_sequence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(folder, sample=True)  # samples, so that previous actions differ
    seen: list[torch.Tensor] = []
    choose = policy._choose
    monkeypatch.setattr(policy, "_choose", lambda logits: (seen.append(logits), choose(logits))[1])
    policy.start("go to the blue key")
    actions = [policy.step(frame) for frame in FRAMES]
    assert len(set(actions)) > 1
    rows = Rows(
        frames={"full": torch.from_numpy(FRAMES)},
        previous_action=torch.tensor([3, *actions[:-1]]),
        lengths=torch.tensor([12]),
        instruction=torch.tensor([0]),
        tokens=SPEC.vocabulary.batch(["go to the blue key"]),
    )
    network = new_network().eval()
    with torch.no_grad():
        features, memory = network.trunk(rows)
        assert_close(torch.cat(seen), network.head(features))
    assert_close(policy._memory, memory)


def test_the_likeliest_action_is_taken(folder: Path) -> None:
    policy = load_policy(folder)
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert policy._choose(logits).tolist() == [1, 0]


def test_slots_do_not_disturb_one_another(folder: Path) -> None:
    instructions = ("go to the red ball", "go to the blue key", "then")
    steps = (6, 3, 6)  # the second slot ends early
    alone = []
    for slot, text in enumerate(instructions):
        policy = load_policy(folder)
        policy.start(text)
        actions = [policy.step(frame) for frame in FRAMES[slot : slot + steps[slot]]]
        alone.append((actions, policy._memory[0]))
    together = load_policy(folder)
    together.reset(tasks(*instructions))
    for step in range(6):
        active = np.array([step < count for count in steps])
        actions_now = together.act({"full": FRAMES[[step, step + 1, step + 2]]}, active)
        assert actions_now.shape == (3,)
        assert all(actions_now[slot] == alone[slot][0][step] for slot in np.flatnonzero(active))
    for slot, (_, memory) in enumerate(alone):
        assert_close(together._memory[slot], memory)
    assert not torch.allclose(together._memory[0], together._memory[2])


def test_sampling_repeats_with_its_seed(folder: Path) -> None:
    def episode(seed: int) -> list[int]:
        policy = load_policy(folder, sample=True, seed=seed)
        policy.start("go")
        return [policy.step(frame) for frame in FRAMES]

    assert episode(0) == episode(0)
    assert len({tuple(episode(seed)) for seed in range(4)}) > 1


def test_no_episode_no_action(folder: Path) -> None:
    policy = load_policy(folder)
    with pytest.raises(PolicyError, match="Call start"):
        policy.step(FRAMES[0])
    policy.reset(tasks("go", "go"))
    with pytest.raises(PolicyError, match="2 episodes are under way"):
        policy.act({"full": FRAMES[:3]}, np.ones(2, np.bool_))
    policy.reset([])
    assert policy.act({"full": FRAMES[:0]}, np.ones(0, np.bool_)).shape == (0,)


def test_nothing_active_moves_nothing(folder: Path) -> None:
    policy = load_policy(folder)
    policy.reset(tasks("go", "go"))
    policy.act({"full": FRAMES[:2]}, np.zeros(2, np.bool_))
    assert not policy._memory.any()


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAMES[0][:8], r"shape \(16, 24, 3\) for view 'full', got uint8 \(8, 24, 3\)"),
        (FRAMES[0].astype(np.float32), "got float32"),
        (FRAMES[0][..., :1], r"got uint8 \(16, 24, 1\)"),
    ],
)
def test_another_picture_is_refused(folder: Path, frame: np.ndarray, message: str) -> None:
    policy = load_policy(folder)
    policy.start("go")
    with pytest.raises(PolicyError, match=message):
        policy.step(frame)
    with pytest.raises(PolicyError, match="view 'full', but the views given are: hand"):
        policy.step({"hand": FRAMES[0]})


@given(st.text(max_size=40))
@settings(max_examples=20)
def test_any_words_will_do(text: str) -> None:
    policy = Policy(new_network(), SPEC)
    policy.start(text)
    assert policy.step(FRAMES[0]) in (0, 1, 2)


def test_odd_words_survive_saving(tmp_path: Path) -> None:
    spec = ObservationSpec(SPEC.views, SPEC.action_names, Vocabulary.of(["geh zum rötesten 球 \ud800", "\x00 '\"\\"]))
    save_policy(tmp_path, network_for(spec, PolicyNetwork.Config(width=16)), spec, {})
    assert load_policy(tmp_path).spec == spec


def test_an_absent_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="holds no policy"):
        load_policy(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["policy.safetensors", "policy.json"])
@pytest.mark.parametrize("damage", ["empty", "half", "flipped", "gone"])
def test_damaged_files_are_refused(folder: Path, file: str, damage: str) -> None:
    path = folder / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = bytearray(content)
        flipped[len(flipped) // 2] ^= 0x80
        path.write_bytes({"empty": b"", "half": content[: len(content) // 2], "flipped": bytes(flipped)}[damage])
    with pytest.raises(PolicyError) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"network": {"width": 16}},
        {"network": {"size": 3}},
        {"network": {"width": "wide"}},
        {"sees": {}},
        {"sees": {"views": [["full", 16, 24]], "actions": ["left"], "words": []}},
        {"weights": "s256:0"},
    ],
)
def test_a_record_that_does_not_fit_its_weights_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PolicyError):
        load_policy(folder)


def test_a_record_that_is_no_record_is_refused(folder: Path) -> None:
    for text in ("[]", "3", "null", "{}", '{"format": 1}'):
        (folder / "policy.json").write_text(text)
        with pytest.raises(PolicyError):
            load_policy(folder)


def test_tensors_and_record_survive_the_file(tmp_path: Path) -> None:
    tensors = {"a/b": torch.arange(6).view(2, 3).t(), "c": torch.tensor(1.5)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"word": "ü\ud800", "number": 3})
    read, record = read_tensors(tmp_path / "x.safetensors")
    assert record == {"word": "ü\ud800", "number": 3}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    with pytest.raises(RunError, match="no such file"):
        read_tensors(tmp_path / "y.safetensors")


# --- vectors and continuous actions -------------------------------------------------------------------------------------------------

STATE = ObservationSpec({}, (), Vocabulary.of(["open the drawer", "close it"]), {"state": 5}, 2)
STATES = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


@pytest.fixture
def pusher(tmp_path: Path) -> Path:
    with seeded(1):
        network = network_for(STATE, PolicyNetwork.Config(width=16, hidden=(16,)))
    network.measure({"state": (torch.full((5,), 0.1), torch.full((5,), 2.0))}, torch.tensor([0.5, 0.5]))
    save_policy(tmp_path / "pusher", network, STATE, {})
    return tmp_path / "pusher"


def test_a_vector_is_enough(pusher: Path) -> None:
    policy = load_policy(pusher)
    assert policy.views == ()
    policy.start("open the drawer")
    action = policy.step(STATES[0])
    assert (action.shape, action.dtype) == ((2,), np.float32)
    assert (np.abs(action) <= 1).all()
    np.testing.assert_array_equal(policy.step({"state": STATES[0].astype(np.float64), "other": np.zeros(3)}), action)
    assert not np.array_equal(policy.step(STATES[1]), action)
    policy.start("close it")
    assert not np.array_equal(policy.step(STATES[0]), action)


def test_the_mean_is_the_action_and_the_scale_is_that_of_the_data(pusher: Path) -> None:
    policy = load_policy(pusher)
    policy.start("open the drawer")
    tensors, _ = read_tensors(pusher / "policy.safetensors")
    words = network_for(STATE, PolicyNetwork.Config(width=16, hidden=(16,)))
    words.load_state_dict(tensors)
    with torch.no_grad():
        summary = words.trunk.read(STATE.vocabulary.batch(["open the drawer"])).summary[0]
        features = torch.cat([(torch.from_numpy(STATES[0]) - 0.1) / 2.001, summary])
        first, last = words.head.mean[0], words.head.mean[2]
        expected = torch.tanh(last(torch.relu(first(features))))
    assert_close(torch.from_numpy(policy.step(STATES[0])), expected)


def test_sampled_pushes_repeat_with_their_seed_and_stay_in_range(pusher: Path) -> None:
    def episode(seed: int) -> np.ndarray:
        policy = load_policy(pusher, sample=True, seed=seed)
        policy.reset(tasks("open the drawer", "close it"))
        return np.array([policy.act({"state": STATES[[k, k + 1]]}, np.ones(2, np.bool_)) for k in range(11)])

    assert np.array_equal(episode(0), episode(0))
    assert not np.array_equal(episode(0), episode(1))
    assert np.abs(episode(0)).max() <= 1


def test_slots_of_a_policy_of_states_do_not_disturb_one_another(pusher: Path) -> None:
    alone = []
    for slot, text in enumerate(("open the drawer", "close it", "close it")):
        policy = load_policy(pusher)
        policy.start(text)
        alone.append(policy.step(STATES[slot]))
    policy.reset(tasks("open the drawer", "close it", "close it"))
    together = policy.act({"state": STATES[:3]}, np.array([True, False, True]))
    assert together.shape == (3, 2)
    assert_close(torch.from_numpy(together[[0, 2]]), torch.from_numpy(np.stack([alone[0], alone[2]])))
    assert (together[1] == 0).all()


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        (np.zeros(4), "expects 5 floats for vector 'state', got float64"),
        ({"force": np.zeros(5)}, "'state', but what is given is: force"),
        (np.full(5, np.inf), "not finite"),
    ],
)
def test_another_vector_is_refused(pusher: Path, seen: Any, message: str) -> None:
    policy = load_policy(pusher)
    policy.start("open the drawer")
    with pytest.raises(PolicyError, match=message):
        policy.step(seen)
    policy.reset(tasks("open the drawer", "close it"))
    with pytest.raises(PolicyError, match="2 episodes are under way, but 3 vectors"):
        policy.act({"state": STATES[:3]}, np.ones(2, np.bool_))


def test_pictures_and_vectors_together(tmp_path: Path) -> None:
    spec = ObservationSpec({"full": (16, 24)}, (), SPEC.vocabulary, {"state": 5}, 2)
    save_policy(tmp_path, network_for(spec, PolicyNetwork.Config(channels=8, width=16)), spec, {})
    policy = load_policy(tmp_path)
    assert policy.spec == spec
    assert policy.views == ("full",)
    policy.start("go to the red ball")
    first = policy.step({"full": FRAMES[0], "state": STATES[0]})
    assert not np.array_equal(policy.step({"full": FRAMES[0], "state": STATES[0]}), first)  # it remembers what it did
    with pytest.raises(PolicyError, match="sees the vector 'state'"):
        policy.step(FRAMES[0])
