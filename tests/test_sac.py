"""The arithmetic of soft actor-critic, by hand and against the plain way to write it."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from guerdon.algorithms._sac_networks import Pass, Perceptrons, Shared, said
from guerdon.algorithms.sac import SAC, _Memory, _values, squashed_draw
from guerdon.cli import train as train_command
from guerdon.errors import GuerdonError, UsageError
from guerdon.interfaces import Environment, Observation, Step
from guerdon.records import Task
from guerdon.replay_buffer import Experience
from guerdon.rollout import run_tasks
from guerdon.training import offline
from guerdon.training.policy import load_policy, save_policy
from guerdon.transitions import Transitions
from tests.point import PointData

STATES, ACTIONS = 3, 2
SMALL = SAC.Config(hidden=(8, 8))


def experience(count: int = 16, *, seed: int = 0, states: int = STATES, actions: int = ACTIONS) -> Experience:
    random = torch.Generator().manual_seed(seed)
    return Experience(
        state=torch.randn(count, states, generator=random),
        action=2 * torch.rand(count, actions, generator=random) - 1,
        reward=torch.randn(count, generator=random),
        next_state=torch.randn(count, states, generator=random),
        terminal=torch.rand(count, generator=random) < 0.25,
    )


def small(config: SAC.Config = SMALL, **settings: Any) -> SAC:
    return SAC(STATES, ACTIONS, replace(config, **settings), seed=0)


def log_temperature(algorithm: SAC) -> float:
    return float(algorithm.state()["log_temperature"])


# --- settings -----------------------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_published_settings() -> None:
    assert asdict(SAC.Config()) == {
        "batch": 512,
        "discount": 0.99,
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "temperature_learning_rate": 1e-4,
        "initial_temperature": 0.1,
        "target_entropy": None,
        "target_rate": 0.005,
        "target_every": 2,
        "lowest_log_deviation": -5.0,
        "highest_log_deviation": 2.0,
        "hidden": (256, 256, 256),
        "normed_critics": False,
        "precision": "float32",
    }
    state = SAC(39, 4, SAC.Config(), seed=0).state()
    assert float(state["log_temperature"]) == pytest.approx(math.log(0.1))


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"discount": 1.5}, "discount"),
        ({"target_rate": -0.1}, "target_rate"),
        ({"actor_learning_rate": math.nan}, "actor_learning_rate"),
        ({"initial_temperature": 0.0}, "initial_temperature"),
        ({"target_entropy": math.inf}, "target_entropy"),
        ({"lowest_log_deviation": 3.0}, "lowest_log_deviation"),
        ({"batch": 0}, "batch"),
        ({"hidden": ()}, "hidden"),
        ({"hidden": (0,)}, "hidden"),
        ({"precision": "float16"}, "precision"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        SAC.Config(**setting)


def test_states_and_experience_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one component"):
        SAC(0, 1, SMALL, seed=0)
    algorithm = small()
    with pytest.raises(UsageError, match="rows of 3 numbers"):
        algorithm.act(np.zeros((1, 4), np.float32), explore=True)
    with pytest.raises(UsageError, match="3 numbers of a state and 2 of an action"):
        algorithm.update(experience(states=4))
    with pytest.raises(UsageError, match="at least one row"):
        algorithm.update(experience(0))
    with pytest.raises(UsageError, match="shapes"):
        algorithm.update(replace(experience(), reward=torch.zeros(16, 1)))


# --- the policy ---------------------------------------------------------------------------------------------------------------------


def test_the_log_probability_of_a_squashed_draw_is_that_of_the_distribution() -> None:
    mean, log_deviation, noise = torch.randn(3, 50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    action, log_probability = squashed_draw(mean, log_deviation, noise)
    distribution = Independent(TransformedDistribution(Normal(mean, log_deviation.exp()), [TanhTransform()]), 1)  # type: ignore[arg-type]
    before = mean + log_deviation.exp() * noise
    assert torch.allclose(action, torch.tanh(before))
    inside = before.abs().amax(1) < 8  # where the distribution can find its way back from tanh
    assert int(inside.sum()) > 30
    assert torch.allclose(log_probability[inside], distribution.log_prob(action)[inside], rtol=1e-6)


def test_the_log_probability_by_hand_and_where_tanh_is_one() -> None:
    zero = torch.zeros(1, 1)
    _, at_zero = squashed_draw(zero, zero, zero)
    assert float(at_zero) == pytest.approx(-0.5 * math.log(2 * math.pi))  # tanh has slope 1 at 0
    action, far = squashed_draw(torch.full((1, 1), 30.0), zero, zero)
    assert float(action) == 1.0
    # 1 - tanh²(30) = 4 e⁻⁶⁰ but for terms of e⁻¹²⁰; float32 has no such number beside 1
    assert float(far) == pytest.approx(-0.5 * math.log(2 * math.pi) - (math.log(4) - 60), rel=1e-6)


@pytest.mark.parametrize(("open_deviation", "wanted"), [(-50.0, -5.0), (0.0, -1.5), (50.0, 2.0)])
def test_the_log_deviation_lies_between_its_bounds(open_deviation: float, wanted: float) -> None:
    said_of_it = torch.tensor([[0.7, -0.2, open_deviation, open_deviation]])
    mean, log_deviation = small()._gaussian(said_of_it)
    assert torch.equal(mean, said_of_it[:, :2])
    assert log_deviation.tolist() == [[pytest.approx(wanted)] * 2]


def test_weights_begin_orthogonal_and_biases_at_zero() -> None:
    algorithm = SAC(STATES, ACTIONS, SAC.Config(hidden=(16, 16)), seed=0)
    for network in (*algorithm._policy.each, *algorithm._critics.each):
        for weight, bias in network:
            short = weight if weight.shape[0] <= weight.shape[1] else weight.T
            assert torch.allclose(short @ short.T, torch.eye(len(short)), atol=1e-5)
            assert not bias.any()
    assert torch.equal(algorithm._target.flat, algorithm._critics.flat)
    assert not torch.equal(algorithm._critics.each[0][0][0], algorithm._critics.each[1][0][0])


# --- networks -----------------------------------------------------------------------------------------------------------------------


def filled(count: int, sizes: tuple[int, ...], *, half: bool = False, normed: bool = False) -> Perceptrons:
    """Perceptrons with biases too."""
    made = Perceptrons(count, sizes, half=half, normed=normed)
    made.begin(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layers in made.each:
            for _, bias in layers:
                bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(2)))
    made.moved()
    return made


def plainly(layers: Sequence[tuple[Tensor, Tensor]], seen: Tensor, *, normed: bool) -> Tensor:
    if not normed:
        return said(layers, seen)
    for weight, bias in layers[:-1]:
        seen = torch.relu(F.layer_norm(F.linear(seen, weight, bias), weight.shape[:1]))
    return F.linear(seen, *layers[-1])


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
def test_a_pass_says_and_gives_back_what_autograd_does(normed: bool) -> None:
    network, inputs = filled(2, (5, 7, 6, 3), normed=normed), torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(11, 3, generator=torch.Generator().manual_seed(3))
    ways = network.ways(11, Shared(11, torch.device("cpu")))
    for way, layers, gradients in zip(ways, network.multiplied, network.gradients, strict=True):
        with torch.enable_grad():
            leaves = [(weight.clone().requires_grad_(), bias.clone().requires_grad_()) for weight, bias in layers]
            seen = inputs.clone().requires_grad_()
            expected = plainly(leaves, seen, normed=normed)
            wanted = torch.autograd.grad(expected, [seen, *(each for layer in leaves for each in layer)], slope)
        assert torch.allclose(way.there(layers, inputs[:, :2], inputs[:, 2:]), expected, atol=1e-6)
        by_inputs = way.back(layers, slope, gradients=gradients, inputs=slice(2, None))
        assert by_inputs is not None
        assert torch.allclose(by_inputs, wanted[0][:, 2:], atol=1e-6)
        found = [each for layer in gradients for each in layer]
        assert all(torch.allclose(mine, theirs, atol=1e-5) for mine, theirs in zip(found, wanted[1:], strict=True))


@torch.no_grad()
def test_going_back_to_the_inputs_leaves_the_weights_alone() -> None:
    network = filled(1, (5, 7, 3))
    (way,) = network.ways(4, Shared(4, torch.device("cpu")))
    way.there(network.multiplied[0], torch.ones(4, 5))
    assert way.back(network.multiplied[0], torch.ones(4, 3), inputs=slice(None)) is not None
    assert network.flat.grad is not None
    assert not network.flat.grad.any()


def test_units_are_normalised_by_hand() -> None:
    layers = [(torch.eye(2), torch.tensor([0.0, 1.0])), (torch.tensor([[3.0, 5.0]]), torch.tensor([0.5]))]
    seen = torch.tensor([[2.0, 5.0], [4.0, 1.0]])  # with the biases: (2, 6) and (4, 2), normalised (-1, 1) and (1, -1)
    way = Pass((2, 2, 1), 2, Shared(2, torch.device("cpu")), back=True, half=False, normed=True)
    assert way.there(layers, seen).tolist() == [[pytest.approx(5.5, abs=1e-4)], [pytest.approx(3.5, abs=1e-4)]]


@torch.no_grad()
@pytest.mark.parametrize("normed", [False, True])
def test_products_in_bfloat16_are_near_the_exact_ones(normed: bool) -> None:
    exact, rough = (filled(1, (5, 64, 64, 1), half=half, normed=normed) for half in (False, True))
    inputs, slope = torch.randn(32, 5, generator=torch.Generator().manual_seed(0)), torch.ones(32, 1)
    found = []
    for network in (exact, rough):
        way = Pass(network.sizes, 32, Shared(32, torch.device("cpu")), back=True, half=network is rough, normed=normed)
        value = way.there(network.multiplied[0], inputs).clone()
        way.back(network.multiplied[0], slope, gradients=network.gradients[0])
        assert network.flat.grad is not None
        found.append((value, network.flat.grad.clone()))
    (value, gradient), (rough_value, rough_gradient) = found
    assert not torch.equal(value, rough_value)
    assert float((value - rough_value).norm() / value.norm()) < 0.02
    assert float((gradient - rough_gradient).norm() / gradient.norm()) < 0.05


# --- updates ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_sac() -> Any:
    """The plain way to write it, which the benchmark measures."""
    path = Path(__file__).parent.parent / "benchmarks" / "_plain_sac.py"
    specification = importlib.util.spec_from_file_location("plain_sac", path)
    assert specification is not None
    assert specification.loader is not None
    sys.modules["plain_sac"] = module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the plain one and ours draw the same noise, in the order in which both ask for it: for s', then for s."""
    mine, theirs = (torch.Generator().manual_seed(5) for _ in range(2))

    def rsample(self: Normal, sample_shape: Any = ()) -> Tensor:
        return self.loc + self.scale * torch.randn(self.loc.shape, generator=theirs)

    monkeypatch.setattr(SAC, "_noise", lambda self, use, rows: torch.randn(rows, ACTIONS, generator=mine))
    monkeypatch.setattr(Normal, "rsample", rsample)


def give_weights(plain: Any, ours: SAC) -> None:
    with torch.no_grad():
        networks = ((plain.actor, ours._policy), (plain.critic, ours._critics), (plain.target, ours._target))
        for module, perceptrons in networks:
            values = [each for layers in perceptrons.each for layer in layers for each in layer]
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(value)


def largest_difference(module: torch.nn.Module, perceptrons: Perceptrons) -> float:
    values = [each for layers in perceptrons.each for layer in layers for each in layer]
    return max(float((parameter.detach() - value).abs().max()) for parameter, value in zip(module.parameters(), values, strict=True))


@pytest.mark.parametrize("normed", [False, True])
def test_updates_are_those_of_the_plain_way_to_write_them(normed: bool, plain_sac: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = SAC(STATES, ACTIONS, SAC.Config(hidden=(32, 32, 32), normed_critics=normed), seed=0)
    plain = plain_sac.PlainSAC(STATES, ACTIONS, width=32, normed_critics=normed)
    give_weights(plain, ours)
    same_draws(monkeypatch)
    begin = ours.state()
    for number in range(20):
        rows = experience(64, seed=number)
        mine, theirs = ours.update(rows), plain.update(rows)
        for metric, value in theirs.items():
            assert float(mine[metric]) == pytest.approx(value, rel=1e-3, abs=1e-4)
    for module, perceptrons, name in (
        (plain.actor, ours._policy, "policy"),
        (plain.critic, ours._critics, "critics"),
        (plain.target, ours._target, "target"),
    ):
        moved = float((perceptrons.flat.detach() - begin[name]).abs().max())
        assert largest_difference(module, perceptrons) < 2e-6 < 1e-4 < moved
    assert log_temperature(ours) == pytest.approx(float(plain.log_alpha.detach()), abs=1e-6)
    assert abs(log_temperature(ours) - math.log(0.1)) > 1e-3


def constant(network: Perceptrons, number: int, value: float) -> None:
    """Lets a perceptron say `value` whatever it sees."""
    with torch.no_grad():
        for weight, bias in network.each[number]:
            weight.zero_()
            bias.zero_()
        network.each[number][-1][1].fill_(value)
    network.moved()


def test_the_target_value_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = SAC(1, 1, SAC.Config(hidden=(4,)), seed=0)
    constant(algorithm._policy, 0, 0.0)  # mean 0, log σ = -5 + 3.5 = -1.5
    for network, values in ((algorithm._target, (3.0, 2.0)), (algorithm._critics, (1.0, -1.0))):
        for number, value in enumerate(values):
            constant(network, number, value)
    monkeypatch.setattr(SAC, "_noise", lambda self, use, rows: torch.zeros(rows, 1))
    column = torch.zeros(2, 1)
    metrics = algorithm.update(Experience(column, column, torch.tensor([0.5, 0.5]), column, torch.tensor([False, True])))
    log_probability = 1.5 - 0.5 * math.log(2 * math.pi)  # of action 0, where tanh has slope 1
    going, ended = 0.5 + 0.99 * (2.0 - 0.1 * log_probability), 0.5
    assert float(metrics["target_value"]) == pytest.approx((going + ended) / 2, rel=1e-5)
    loss = sum(((value - going) ** 2 + (value - ended) ** 2) / 2 for value in (1.0, -1.0))
    assert float(metrics["critic_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(-log_probability, rel=1e-5)
    assert float(metrics["temperature"]) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.parametrize(("target_entropy", "sign"), [(50.0, 1), (-50.0, -1)])
def test_the_temperature_rises_while_the_policy_lacks_entropy_and_falls_while_it_has_too_much(target_entropy: float, sign: int) -> None:
    algorithm = small(target_entropy=target_entropy)
    before = log_temperature(algorithm)
    entropy = float(algorithm.update(experience())["entropy"])
    # Adam's first step is as long as the learning rate, whatever the gradient.
    assert log_temperature(algorithm) - before == pytest.approx(sign * 1e-4, rel=1e-2)
    assert algorithm._log_temperature.grad is not None
    assert float(algorithm._log_temperature.grad) == pytest.approx(0.1 * (entropy - target_entropy), rel=1e-4)


def test_the_entropy_steered_to_is_the_number_of_components_negated() -> None:
    assert small()._target_entropy == -2.0


def test_a_temperature_that_is_not_learned_stays() -> None:
    algorithm = small(temperature_learning_rate=0.0)
    algorithm.update(experience())
    assert log_temperature(algorithm) == pytest.approx(math.log(0.1))


def test_the_target_follows_every_second_update_by_its_rate() -> None:
    algorithm = small()
    for number in range(1, 5):
        before = algorithm._target.flat.detach().clone()
        algorithm.update(experience(seed=number))
        followed = before + 0.005 * (algorithm._critics.flat - before)
        wanted = followed if number % 2 == 0 else before
        assert torch.allclose(algorithm._target.flat, wanted, rtol=0, atol=1e-7)
        assert torch.equal(algorithm._target.flat, before) == (number % 2 == 1)


def test_the_policy_s_loss_moves_no_critic_and_the_critics_loss_no_policy() -> None:
    begin = small().state()
    still = {"actor_learning_rate": 0.0, "temperature_learning_rate": 0.0}, {"critic_learning_rate": 0.0}
    no_policy, no_critics = (small(**settings) for settings in still)
    no_policy.update(experience())
    no_critics.update(experience())
    assert torch.equal(no_policy.state()["policy"], begin["policy"])
    assert not torch.equal(no_policy.state()["critics"], begin["critics"])
    assert torch.equal(no_critics.state()["critics"], begin["critics"])
    assert not torch.equal(no_critics.state()["policy"], begin["policy"])
    # The critics' gradient is that of their own loss still: the policy's way back went past it.
    both = small()
    both.update(experience())
    assert torch.equal(both.state()["critics"], no_policy.state()["critics"])


def test_the_policy_climbs_the_lower_of_the_two_values() -> None:
    """Q₁ rises with the action and Q₂ is constant: the action is pushed up only where Q₁ is the lower one."""
    for level, moves in ((5.0, True), (-5.0, False)):
        algorithm = SAC(1, 1, SAC.Config(hidden=(4,)), seed=0)
        constant(algorithm._critics, 0, 0.0)
        constant(algorithm._critics, 1, level)
        with torch.no_grad():
            (first, bias), (last, _) = algorithm._critics.each[0]
            first[0, 1], bias[0], last[0, 0] = 1.0, 2.0, 3.0  # Q₁ = 3 (a + 2) - 6, for a > -2
            algorithm._critics.each[0][1][1].fill_(-6.0)
        memory = _Memory(4, algorithm._policy, algorithm._critics)
        with torch.no_grad():
            values = _values(memory.critics, algorithm._critics, torch.zeros(4, 1), torch.full((4, 1), 0.5))
            found = algorithm._climb(memory, *values)
        assert values[0].tolist() == pytest.approx([1.5] * 4)
        assert found.flatten().tolist() == pytest.approx([-3.0 / 4 if moves else 0.0] * 4)


def test_bfloat16_learns_nearly_the_same() -> None:
    exact, rough = (SAC(STATES, ACTIONS, SAC.Config(hidden=(64, 64), precision=kind), seed=0) for kind in ("float32", "bfloat16"))
    first, second = exact.update(experience(128)), rough.update(experience(128))
    assert float(first["critic_loss"]) != float(second["critic_loss"])
    assert all(float(second[metric]) == pytest.approx(float(value), rel=0.05, abs=0.02) for metric, value in first.items())
    assert rough.state()["policy"].dtype == torch.float32


# --- what is kept -------------------------------------------------------------------------------------------------------------------


class Walk(Environment):
    """A point on a line that is pushed; the task is done where it comes to 1."""

    views, action_names, action_size = (), (), 1

    def reset(self, task: Task) -> Observation:
        self._place = 0.0
        return self._seen()

    def step(self, action: Any) -> Step:
        self._place += 0.3 * float(action[0])
        return Step(self._seen(), float(self._place >= 1), terminated=self._place >= 1)

    def _seen(self) -> Observation:
        return Observation({}, {"state": np.array([self._place], np.float32)})


def test_a_saved_policy_acts_as_the_algorithm_does(tmp_path: Path) -> None:
    algorithm = SAC(STATES, ACTIONS, SAC.Config(hidden=(32, 32)), seed=3)
    for number in range(5):
        algorithm.update(experience(seed=number))
    save_policy(tmp_path, algorithm.policy, algorithm.spec, {"algorithm": "sac"})
    policy = load_policy(tmp_path)
    seen = np.concatenate([np.random.default_rng(0).standard_normal((8, STATES)), [[50.0, -80.0, 200.0]]]).astype(np.float32)
    acted = algorithm.act(seen, explore=False)
    assert np.abs(acted).max() > 0.01
    for state, wanted in zip(seen, acted, strict=True):
        policy.start("whatever")
        assert np.allclose(policy.step(state), wanted, atol=1e-6)


def test_a_saved_policy_carries_out_tasks(tmp_path: Path) -> None:
    algorithm = SAC(1, 1, SAC.Config(hidden=(8,)), seed=0)
    constant(algorithm._policy, 0, 2.0)
    save_policy(tmp_path, algorithm.policy, algorithm.spec, {})
    tasks = [Task("walk", "walk", "go", 1, {}, step_limit=10)]
    (result,) = run_tasks(load_policy(tmp_path), tasks, Walk)
    assert result.success
    assert result.steps == 4


def test_a_policy_once_taken_does_not_learn_on() -> None:
    algorithm = small()
    network = algorithm.policy
    before = [parameter.clone() for parameter in network.parameters()]
    algorithm.update(experience())
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


def test_torch_s_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    algorithm = small()
    algorithm.update(experience())
    algorithm.act(np.zeros((1, STATES), np.float32), explore=True)
    algorithm.forget_values()
    assert algorithm.policy is not None
    assert torch.equal(torch.random.get_rng_state(), before)


# --- the command --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refused",
    [
        lambda folder: train_command.main([str(folder), "--rewards", "truth", "--algorithm", "sac"]),
        lambda folder: offline.train(Transitions.build(PointData(2, steps=4), vectors=("state",)), "sac", seed=0, out=folder, updates=1),
    ],
)
def test_learning_from_recorded_data_is_refused_with_the_command_that_can(refused: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(GuerdonError, match=r"sac learns while it acts, not from recorded data.* guerdon online "):
        refused(tmp_path)
