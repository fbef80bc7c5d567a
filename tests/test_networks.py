"""The network: what each row may depend on, and that memory reaches as far back as promised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from guerdon.errors import UsageError
from guerdon.networks import GaussianHead, Optimiser, Perceptron, PolicyNetwork, Standardise, seeded
from guerdon.transitions import Rows

CONFIG = PolicyNetwork.Config(channels=8, width=16)
ACTIONS = 3


def network(pictures: dict[str, tuple[int, int]] | None = None) -> PolicyNetwork:
    with seeded(0):
        return PolicyNetwork(pictures or {"full": (16, 24)}, words=9, actions=ACTIONS, config=CONFIG).eval()


def rows(*lengths: int, seed: int = 0) -> Rows:
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    return Rows(
        frames={"full": torch.randint(256, (count, 16, 24, 3), generator=random, dtype=torch.uint8)},
        previous_action=torch.randint(ACTIONS + 1, (count,), generator=random),
        lengths=tensor(lengths),
        instruction=torch.arange(len(lengths)) % 2,
        tokens=tensor([[2, 3, 4, 5, 0], [2, 6, 7, 8, 8]]),
    )


def part(whole: Rows, start: int, stop: int, sequence: int, length: int) -> Rows:
    """Rows start .. stop-1 as one sequence."""
    frames = {view: pictures[start:stop] for view, pictures in whole.frames.items()}
    chosen = slice(sequence, sequence + 1)
    return Rows(frames, whole.previous_action[start:stop], tensor([length]), whole.instruction[chosen], whole.tokens)


def features(net: PolicyNetwork, given: Rows, memory: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        result: Tensor = net.trunk(given, memory)[0]
    return result


def test_a_sequence_does_not_depend_on_the_others_in_its_batch() -> None:
    net, whole = network(), rows(5, 2, 7)
    together = features(net, whole)
    assert together.shape == (14, CONFIG.width)
    assert_close(features(net, part(whole, 0, 5, 0, 5)), together[:5])
    assert_close(features(net, part(whole, 5, 7, 1, 2)), together[5:7])
    assert_close(features(net, part(whole, 7, 14, 2, 7)), together[7:])


def test_padding_of_the_instruction_changes_nothing() -> None:
    net, whole = network(), rows(3)
    longer = replace(whole, tokens=torch.cat([whole.tokens, torch.zeros(2, 4, dtype=torch.int64)], 1))
    assert_close(features(net, longer), features(net, whole))


def test_one_step_at_a_time_equals_the_whole_sequence() -> None:
    net, whole = network(), rows(9)
    together = features(net, whole)
    memory = None
    for step in range(9):
        with torch.no_grad():
            now, memory = net.trunk(part(whole, step, step + 1, 0, 1), memory)
        assert_close(now[0], together[step])


def test_a_prefix_gives_the_memory_that_the_whole_sequence_would_have() -> None:
    net, whole = network(), rows(6, 4)
    together = features(net, whole)
    prefix = Rows({"full": whole.frames["full"][:4]}, whole.previous_action[:4], tensor([4, 0]), whole.instruction, whole.tokens)
    kept = [4, 5, 6, 7, 8, 9]
    rest = Rows({"full": whole.frames["full"][kept]}, whole.previous_action[kept], tensor([2, 4]), whole.instruction, whole.tokens)
    memory = net.trunk.remember(prefix)
    assert memory is not None
    assert not memory.requires_grad
    assert_close(memory[1], torch.zeros(2 * CONFIG.width))
    assert_close(features(net, rest, memory), together[kept])
    assert net.trunk.remember(None) is None


def test_nothing_depends_on_the_future() -> None:
    net, whole = network(), rows(6)
    changed = replace(whole, frames={"full": whole.frames["full"].clone()})
    changed.frames["full"][4:] = 0
    assert_close(features(net, changed)[:4], features(net, whole)[:4])
    assert not torch.equal(features(net, changed)[4:], features(net, whole)[4:])


@pytest.mark.parametrize("column", ["frames", "previous_action", "instruction"])
def test_the_last_row_depends_on_the_first(column: str) -> None:
    net, whole = network(), rows(6)
    changed = {
        "frames": replace(whole, frames={"full": torch.cat([255 - whole.frames["full"][:1], whole.frames["full"][1:]])}),
        "previous_action": replace(whole, previous_action=torch.cat([(whole.previous_action[:1] + 1) % 4, whole.previous_action[1:]])),
        "instruction": replace(whole, instruction=tensor([1])),
    }[column]
    difference = (features(net, changed)[-1] - features(net, whole)[-1]).abs().max()
    assert difference > 1e-5


def test_the_instruction_read_beforehand_gives_the_same() -> None:
    net, whole = network(), rows(3, 2)
    with torch.no_grad():
        assert_close(net.trunk(whole, None, net.trunk.read(whole.tokens))[0], net.trunk(whole)[0])


def test_several_views_and_sizes_that_are_no_multiple_of_a_tile() -> None:
    net = network({"full": (16, 24), "hand": (9, 13)})
    whole = rows(3)
    hand = torch.zeros(3, 9, 13, 3, dtype=torch.uint8)
    both = replace(whole, frames={**whole.frames, "hand": hand})
    other = replace(whole, frames={**whole.frames, "hand": hand + 255})
    other.frames["hand"][:2] = 0
    assert_close(features(net, both)[:2], features(net, other)[:2])
    assert not torch.equal(features(net, both)[2], features(net, other)[2])


def test_seeded_weights_repeat_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = network().state_dict(), network().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_learning_rate_rises_and_falls() -> None:
    weight = torch.nn.Parameter(tensor([1.0]))
    optimiser = Optimiser([weight], Optimiser.Config(learning_rate=1.0, warm_up=2), updates=4)
    rates = []
    for _ in range(4):
        rates.append(optimiser.learning_rate())
        optimiser.step(weight.square().sum())
    assert rates == pytest.approx([0.5, 0.5 * (1 + 2**-0.5), 0.5, 0.5 * (1 - 2**-0.5)])
    assert optimiser.learning_rate() == pytest.approx(0)


def test_a_long_gradient_is_shortened_and_its_length_reported() -> None:
    weight = torch.nn.Parameter(tensor([3.0]))
    optimiser = Optimiser([weight], Optimiser.Config(learning_rate=0.0), updates=4)
    assert_close(optimiser.step(weight.square().sum()), tensor(6.0))
    assert_close(weight.grad, tensor([1.0]), atol=1e-5, rtol=0)


# --- vectors and continuous actions -------------------------------------------------------------------------------------------------


def state_network(*, reads: bool, vectors: dict[str, int] | None = None, action_size: int = 2) -> PolicyNetwork:
    with seeded(0):
        return PolicyNetwork({}, words=9, actions=0, config=CONFIG, vectors=vectors or {"state": 3}, action_size=action_size, reads=reads)


def states(*lengths: int, seed: int = 0) -> Rows:
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    values = torch.randn(count, 3, generator=random)
    return replace(rows(*lengths), frames={}, previous_action=torch.zeros(count, 2), vectors={"state": values})


def test_vectors_are_brought_to_the_scale_of_the_data() -> None:
    scale = Standardise(4)
    scale.measure(tensor([1.0, 0.0, -2.0, 7.0]), tensor([1.999, 0.0, 0.499, 0.001]))
    seen = tensor([[3.0, 5.0, -2.5, 7.002], [1.0, 0.0, 100.0, 7.0]])
    # (3 - 1) / 2; the second never changed; (-2.5 + 2) / 0.5; 0.002 / 0.002; and 102 / 0.5 is cut at 10
    assert_close(scale(seen), tensor([[1.0, 0.0, -1.0, 1.0], [0.0, 0.0, 10.0, 0.0]]), atol=1e-3, rtol=0)


def test_the_scale_belongs_to_the_weights() -> None:
    first, second = state_network(reads=False), state_network(reads=False)
    first.measure({"state": (tensor([1.0, 2.0, 3.0]), tensor([1.0, 1.0, 1.0]))}, tensor([0.5, 1e-9]))
    second.load_state_dict(first.state_dict())
    assert_close(features(second, states(4)), features(first, states(4)))
    assert_close(first.head.log_deviation, tensor([0.5, 1.0]).log() + tensor([0.0, -5.0]))


def test_a_state_s_features_are_the_state_and_what_is_asked() -> None:
    blind, reading = state_network(reads=False), state_network(reads=True)
    seen = states(2, 2)
    assert features(blind, seen).shape == (4, 3)
    assert_close(features(blind, seen), seen.vectors["state"])  # nothing was measured yet
    both = features(reading, seen)
    assert both.shape == (4, 3 + CONFIG.width)
    assert_close(both[0, 3:], both[1, 3:])
    assert not torch.allclose(both[1, 3:], both[2, 3:])  # the second sequence follows another instruction
    with torch.no_grad():
        assert_close(reading.trunk(seen, None, reading.trunk.read(seen.tokens))[0], both)


def test_a_state_is_all_that_matters() -> None:
    net, seen = state_network(reads=False), states(5)
    reversed_rows = replace(seen, vectors={"state": seen.vectors["state"].flip(0)}, previous_action=torch.ones(5, 2))
    assert_close(features(net, reversed_rows).flip(0), features(net, seen))
    assert net.trunk.remember(seen) is None
    assert net.trunk(seen)[1].shape == (1, 0)


def test_heads_on_a_state_are_networks_of_their_own() -> None:
    net = state_network(reads=False)
    widths = [layer.weight.shape for layer in net.new_head(1, beside=2) if isinstance(layer, torch.nn.Linear)]
    assert [tuple(width) for width in widths] == [(256, 5), (256, 256), (1, 256)]
    assert not any(parameter.requires_grad for name, parameter in net.trunk.named_parameters())
    assert not list(net.trunk.parameters())


def test_a_gaussian_s_mean_is_squashed_and_its_deviation_bounded() -> None:
    head = GaussianHead(Perceptron(2, (), 3), 3)
    with torch.no_grad():
        head.log_deviation.copy_(tensor([-9.0, 0.5, 9.0]))
        mean, log_deviation = head(tensor([[100.0, -100.0]]))
    assert (mean.abs() <= 1).all()
    assert log_deviation.tolist() == [-5.0, 0.5, 2.0]


@pytest.mark.parametrize("action_size", [0, 2])
def test_vectors_beside_pictures_matter_at_once_and_later(action_size: int) -> None:
    with seeded(0):
        net = PolicyNetwork(
            {"full": (16, 24)}, words=9, actions=ACTIONS, config=CONFIG, vectors={"state": 3}, action_size=action_size
        ).eval()
    whole = replace(rows(6), vectors={"state": torch.zeros(6, 3)})
    if action_size:
        whole = replace(whole, previous_action=torch.zeros(6, 2))
    moved = torch.zeros(6, 3)
    moved[2] = 1.0
    difference = (features(net, replace(whole, vectors={"state": moved})) - features(net, whole)).abs().sum(1)
    assert (difference[:2] == 0).all()
    assert (difference[2:] > 1e-6).all()
    pushed = replace(whole, previous_action=torch.ones_like(whole.previous_action))
    assert not torch.allclose(features(net, pushed), features(net, whole))


def test_networks_that_share_nothing_are_clipped_apart() -> None:
    first, second = torch.nn.Parameter(tensor([3.0])), torch.nn.Parameter(tensor([4.0]))
    optimiser = Optimiser([first, second], Optimiser.Config(learning_rate=0.0), updates=4, apart=[[second]])
    assert_close(optimiser.step(first.square().sum() + 100 * second.square().sum()), tensor(6.0))
    assert_close(first.grad, tensor([1.0]), atol=1e-5, rtol=0)
    assert_close(second.grad, tensor([1.0]), atol=1e-5, rtol=0)
    together = Optimiser([first, second], Optimiser.Config(learning_rate=0.0), updates=4)
    assert_close(together.step(1.5 * first.square().sum() + 1.5 * second.square().sum()), tensor(15.0))  # 9 and 12
    assert_close(first.grad, tensor([0.6]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "pictures", "memory", "message"),
    [
        ({"symbols": True}, {"full": (40, 40)}, False, "tiles as symbols"),
        ({"symbols": True}, {}, True, "tiles as symbols"),
        ({"learn_words": False}, {"full": (40, 40)}, True, "leave reading unlearned"),
        ({"learn_words": False}, {}, False, "leave reading unlearned"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(
    settings: dict[str, bool], pictures: dict[str, tuple[int, int]], memory: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        PolicyNetwork(pictures, words=5, actions=3, config=PolicyNetwork.Config(**settings), vectors={"state": 3}, memory=memory)
