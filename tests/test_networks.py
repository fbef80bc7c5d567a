"""The network: what each row may depend on, and that memory reaches as far back as promised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from guerdon.networks import Optimiser, PolicyNetwork, seeded
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
