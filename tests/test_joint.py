"""Whole updates of state policies give the numbers of plain ones, go on after a checkpoint, and say what they cannot do."""

from __future__ import annotations

import contextlib
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from guerdon import discover
from guerdon.algorithms import _joint
from guerdon.errors import StaleInput, UsageError
from guerdon.interfaces import Algorithm
from guerdon.machine import Machine, Probe, probe, quick_products
from guerdon.networks import Optimiser, PolicyNetwork
from guerdon.training import offline
from guerdon.transitions import Sampler, Transitions
from tests.memory import MemoryDataset
from tests.point import PointData

NAN = float("nan")
SMALL = PolicyNetwork.Config(hidden=(24, 16))
QUICK = Optimiser.Config(learning_rate=1e-2, warm_up=3)


class Named(PointData):
    """The point pushed by named actions."""

    def __init__(self, count: int) -> None:
        super().__init__(count, steps=9)
        self.action_names = ("left", "right", "stay")

    def actions(self, index: int) -> np.ndarray[Any, Any]:
        return np.arange(9) % 3


def data(named: bool = False, texts: tuple[str, ...] = ("go",)) -> Transitions:
    """Five episodes; one reward in nine is unknown, and two episodes end for good."""
    source: MemoryDataset = Named(5) if named else PointData(5, steps=9, texts=texts)
    for number in (1, 3):
        source._episodes[number].terminated = True
    random = np.random.default_rng(0)
    rewards = {(k, 0): np.where(np.arange(9) == k, NAN, random.normal(size=9)).astype(np.float32) for k in range(5)}
    return Transitions.build(source, rewards, vectors=("state",))


def learner(name: str, transitions: Transitions) -> tuple[Algorithm, Sampler]:
    chosen = discover.load("algorithms", name)
    config = chosen.Config(network=SMALL, optimiser=QUICK)
    return chosen(transitions, config, seed=3, updates=40), Sampler(transitions, sequences=16, context=1, seed=3)


def plain(algorithm: Algorithm, sampler: Sampler, count: int) -> dict[str, torch.Tensor]:
    return Algorithm.learn(algorithm, sampler, count, Machine())


def flat(state: Any) -> dict[str, torch.Tensor]:
    return dict(offline._flatten(state))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", ["iql", "bc"])
def test_losses_are_those_of_plain_updates(name: str, named: bool) -> None:
    transitions = data(named)
    ours, sampler = learner(name, transitions)
    theirs, other = learner(name, transitions)
    first_loss = last_loss = 0.0
    for count in (1, 1, 1, 5, 33):
        found, expected = ours.learn(sampler, count, Machine()), plain(theirs, other, count)
        assert found.keys() == expected.keys()
        assert_close(found, expected, rtol=2e-4, atol=1e-5)
        first_loss, last_loss = first_loss or float(found["policy_loss"]), float(found["policy_loss"]) / count
    assert abs(last_loss - first_loss) > 1e-3  # something was learned, so equal losses say something
    ours_state, theirs_state = flat(ours.state()), flat(theirs.state())
    assert ours_state.keys() == theirs_state.keys()
    assert_close(ours_state, theirs_state, rtol=2e-3, atol=2e-4)
    assert sampler.state() == other.state()


def test_the_first_losses_are_equal_to_the_last_digits() -> None:
    transitions = data()
    ours, sampler = learner("iql", transitions)
    theirs, other = learner("iql", transitions)
    assert_close(ours.learn(sampler, 1, Machine()), plain(theirs, other, 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["iql", "bc"])
def test_it_goes_on_from_a_checkpoint_of_either_kind_bit_by_bit(name: str) -> None:
    transitions = data()
    whole, sampler = learner(name, transitions)
    whole.learn(sampler, 12, Machine())
    begun, other = learner(name, transitions)
    begun.learn(other, 5, Machine())
    saved = {key: value.clone() for key, value in flat(begun.state()).items()}
    begun.learn(other, 2, Machine())  # the checkpoint holds copies: what comes after it changes nothing
    again, third = learner(name, transitions)
    again.load_state(offline._nest(saved))
    third.load_state({"drawn": 5 * 16})
    again.learn(third, 7, Machine())
    assert all(torch.equal(value, flat(again.state())[key]) for key, value in flat(whole.state()).items())
    plainly, fourth = learner(name, transitions)
    plainly.load_state(offline._nest(saved))
    fourth.load_state({"drawn": 5 * 16})
    plain(plainly, fourth, 7)
    assert_close(flat(plainly.state()), flat(whole.state()), rtol=2e-3, atol=2e-4)


def test_loading_into_an_algorithm_that_has_learned_takes_effect() -> None:
    transitions = data()
    fresh, _ = learner("iql", transitions)
    begin = {key: value.clone() for key, value in flat(fresh.state()).items()}
    used, sampler = learner("iql", transitions)
    first = used.learn(sampler, 4, Machine())
    used.load_state(offline._nest(begin))
    sampler.load_state({"drawn": 0})
    assert_close(used.learn(sampler, 4, Machine()), first, rtol=0, atol=0)


def test_bfloat16_gives_nearly_the_same_losses() -> None:
    transitions = data()
    (ours, sampler), (theirs, other) = learner("iql", transitions), learner("iql", transitions)
    found, expected = ours.learn(sampler, 10, Machine(half=True)), theirs.learn(other, 10, Machine())
    assert_close(found, expected, rtol=0.03, atol=0.03)
    assert not torch.equal(found["policy_loss"], expected["policy_loss"])
    assert all(value.dtype == torch.float32 for name, value in flat(ours.state()).items() if name != "optimiser/made")


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_updates_give_the_same_losses_and_go_on() -> None:
    transitions = data()
    (ours, sampler), (theirs, other) = learner("iql", transitions), learner("iql", transitions)
    for count in (1, 8):
        found = ours.learn(sampler, count, Machine(compiled=True))
        assert_close(found, theirs.learn(other, count, Machine()), rtol=2e-4, atol=1e-5)
    assert_close(flat(ours.state()), flat(theirs.state()), rtol=2e-3, atol=2e-4)


def test_what_cannot_be_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    transitions = data()

    def broken(step: object) -> Any:
        def fails(*_: object) -> None:
            raise RuntimeError("no compiler\nhere")

        return fails

    monkeypatch.setattr(_joint, "_compiled", broken)
    algorithm, sampler = learner("iql", transitions)
    with pytest.raises(UsageError, match=r"cannot be compiled \(RuntimeError: no compiler\).*g\+\+"):
        algorithm.learn(sampler, 1, Machine(compiled=True))


@pytest.mark.parametrize("name", ["iql", "bc"])
def test_a_policy_that_reads_has_the_losses_of_plain_updates(name: str) -> None:
    transitions = data(texts=("go", "come to the goal", "go to it"))
    assert transitions.spec.reads
    (ours, sampler), (theirs, other) = learner(name, transitions), learner(name, transitions)
    for count in (1, 1, 5, 20):
        found, expected = ours.learn(sampler, count, Machine()), plain(theirs, other, count)
        assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert_close(flat(ours.state()), flat(theirs.state()), rtol=5e-3, atol=5e-4)
    fresh, _ = learner(name, transitions)
    assert not torch.equal(
        flat(ours.state())["policy/trunk.reader.embedding.weight"], flat(fresh.state())["policy/trunk.reader.embedding.weight"]
    )


def test_a_policy_that_reads_cannot_be_compiled() -> None:
    algorithm, sampler = learner("iql", data(texts=("go", "come")))
    with pytest.raises(UsageError, match="follow one instruction"):
        algorithm.learn(sampler, 1, Machine(compiled=True))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_reads_is_neither_compiled_nor_replayed(device: str, compiled: bool) -> None:
    machine = Machine(device=torch.device(device), compiled=compiled)
    for texts, expected in ((("go",), True), (("go", "come"), device == "cpu" and not compiled)):
        transitions = data(texts=texts)
        _, sampler = learner("iql", transitions)
        assert _joint.is_possible(transitions.spec, sampler, machine) is expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu"}, "device is one of"),
        ({"precision": "float16"}, "precision is one of"),
        pytest.param(
            {"device": "cuda"}, "no graphics card", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
        ),
    ],
)
def test_machines_that_are_not_there_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        offline.Config(**settings)


def test_precision_and_compilation_belong_to_a_run_and_the_defaults_leave_no_trace(tmp_path: Any) -> None:
    transitions = data()
    offline.train(transitions, "bc", updates=3, seed=0, out=tmp_path)
    assert {"precision", "compile"}.isdisjoint(offline.read_record(tmp_path)["training"])
    with pytest.raises(StaleInput, match="precision"):
        offline.train(transitions, "bc", updates=3, seed=0, out=tmp_path, loop=offline.Config(precision="bfloat16"))


@pytest.mark.parametrize(
    ("found", "better"),
    [
        (Probe(usual=3.0, other=1.0, error=3e-7), True),
        (Probe(usual=3.0, other=1.0, error=2e-3), False),  # it rounds to bfloat16
        (Probe(usual=1.1, other=1.0, error=3e-7), False),
    ],
)
def test_the_other_library_must_be_faster_and_exact(found: Probe, better: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guerdon.machine.probe", lambda: found)
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    with contextlib.suppress(KeyError), quick_products() as taken:
        assert taken is better
        assert (settings.fp32_precision == "bf16") is better
        raise KeyError
    assert settings.fp32_precision == before


def test_the_probe_measures_this_machine() -> None:
    found = probe()
    if torch.backends.mkldnn.is_available():
        assert 0 < found.usual < 1
        assert 0 < found.other < 1
        assert 0 < found.error < 0.01
    else:
        assert not found.other_is_better
