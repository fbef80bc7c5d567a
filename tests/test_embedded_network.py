"""The embedded rater's network: NumPy and torch agree, the reasoning is what its definition says, training is exact and learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from guerdon.errors import UsageError
from guerdon.providers._embedded_network import ACTIONS, LONGEST, Array, EmbeddedNetwork, Judgement, Looks, shapes
from guerdon.providers._embedded_words import WORDS, tokens
from guerdon.recipes import _embedded_torch as trained
from guerdon.recipes._embedded_data import Scenes, Variety, Window, layout_seeds, scenes, windows
from guerdon.recipes._embedded_torch import LooksConfig, TorchNetwork, WindowsConfig

TINY = LooksConfig(channels=8, blocks=2, updates=4, batch=8, warm_up=2, threads=1)
CLAUSES = [tokens(words) for words in ("go to the red ball", "put the blue key next to the grey box", "open the green door")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def untrained(seed: int = 0, *, channels: int = 12, blocks: int = 3) -> TorchNetwork:
    """A network whose every weight differs from what it starts with, so that nothing is hidden by zeros and ones."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = TorchNetwork(channels=channels, blocks=blocks)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network


def used(network: TorchNetwork) -> EmbeddedNetwork:
    return EmbeddedNetwork.from_tensors(trained.export(network))


@cache
def some_scenes(level: str = "small", layouts: int = 3) -> Scenes:
    return scenes(level, layout_seeds("looks", 5, layouts), variety=Variety(maps=2, clauses=3, poses=4, steps=(10, 20)))


@cache
def some_windows() -> tuple[Window, ...]:
    return tuple(windows("small", seed=3, tasks=3, demonstrations=2, lengths=(1, 3)))


def random_window(seed: int, length: int, transitions: int, size: tuple[int, int]) -> tuple[np.ndarray, list[list[int]], list[int]]:
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 256, (transitions + 1, 8 * size[0], 8 * size[1], 3), np.uint8)
    clauses = [random.integers(1, len(WORDS), random.integers(1, 11)).tolist() for _ in range(length)]
    return pictures, clauses, random.integers(0, len(ACTIONS), transitions).tolist()


def assert_agreement(network: TorchNetwork, pictures: np.ndarray, clauses: list[list[int]], actions: list[int]) -> None:
    fast = used(network)
    looks = fast.look(pictures, clauses)
    judgement = fast.judge(looks, actions)
    with torch.no_grad():
        cases = network.cases(pictures, clauses, actions)
        reasons = network.reasoning(cases)
    for name in ("classes", "completes", "distance", "done", "words"):
        np.testing.assert_allclose(getattr(looks, name), getattr(cases, name)[0].numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(judgement.verdict, reasons.verdict[0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(judgement.due, reasons.due[0].exp().numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(judgement.progress, reasons.progress[0].numpy(), rtol=0, atol=1e-5)


# --- two implementations ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(1, LONGEST + 1))
@pytest.mark.parametrize("transitions", range(9))
def test_numpy_and_torch_agree(length: int, transitions: int) -> None:
    size = ((9, 8), (6, 9), (7, 11), (12, 11))[(length + transitions) % 4]
    assert_agreement(untrained(), *random_window(length * 10 + transitions, length, transitions, size))


def test_they_agree_at_full_size() -> None:
    torch.manual_seed(0)
    config = LooksConfig()
    network = TorchNetwork(channels=config.channels, blocks=config.blocks)
    assert_agreement(network, *random_window(0, 2, 8, (12, 11)))
    assert used(network).parameters <= 2_000_000


def test_they_agree_after_training() -> None:
    config = replace(TINY, updates=40, learning_rate=1e-2)
    network = trained.train_looks({"small": some_scenes()}, config, seed=1)
    trained.train_windows(network, some_windows(), WindowsConfig(updates=40, batch=16, threads=1), seed=1)
    trained.calibrate(network, some_windows())
    for window in some_windows()[:6]:
        assert_agreement(network, window.pictures, [list(tokens(phrase)) for phrase in window.phrases], window.actions.tolist())


def test_gathered_tiles_are_what_pictures_show() -> None:
    network, data = untrained(), some_scenes()
    rows = np.arange(len(data.pose))[::7]
    batch, pictures = trained.batch_of(data, rows), data.pictures(rows)
    with torch.no_grad():
        library = network.look.embed(trained.library_pixels())
        answers = network.look(library[batch.grid], library[batch.carried], network.look.read(batch.clause))
    for row, (picture, clause) in enumerate(zip(pictures, batch.clause.tolist(), strict=True)):
        look = used(network).look(picture[None], [[token for token in clause if token]])
        np.testing.assert_allclose(look.classes[0, 0], answers.classes[row].numpy(), atol=1e-5)
        np.testing.assert_allclose(look.completes[0, 0], answers.completes[row].numpy(), atol=1e-5)


# --- the look -----------------------------------------------------------------------------------------------------------------------


def test_a_look_depends_on_its_picture_and_its_words_only() -> None:
    network = used(untrained())
    pictures, _, _ = random_window(0, 1, 40, (12, 11))  # more cells than are convolved at a time
    together = network.look(pictures, CLAUSES)
    for clause, picture in product(range(len(CLAUSES)), (0, 17, 40)):
        alone = network.look(pictures[picture : picture + 1], [CLAUSES[clause]])
        for name in ("classes", "completes", "distance", "done"):
            np.testing.assert_allclose(getattr(alone, name)[0, 0], getattr(together, name)[clause, picture], rtol=1e-5, atol=1e-5)
    assert together.classes.shape == (3, 41, 7, 3)
    assert together.words.shape == (3, 64)
    assert np.ptp(together.classes, axis=0).min() > 0
    assert np.ptp(together.classes, axis=1).min() > 0


def test_pictures_that_recur_are_told_apart_by_place() -> None:
    network = used(untrained())
    pictures, _, _ = random_window(0, 1, 2, (9, 8))
    order = [2, 0, 0, 1, 2]
    once, often = network.look(pictures, CLAUSES), network.look(pictures[order], CLAUSES)
    for name in ("classes", "completes", "distance", "done"):
        np.testing.assert_allclose(getattr(often, name), getattr(once, name)[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((9, 8, 3), "uint8"), ((1, 72, 64, 4), "uint8"), ((1, 72, 60, 3), "uint8"), ((1, 8, 64, 3), "uint8"), ((0, 72, 64, 3), "uint8"),
     ((1, 72, 64, 3), "float32")],
)  # fmt: skip
def test_other_pictures_are_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match="pictures are"):
        used(untrained()).look(np.zeros(shape, dtype), CLAUSES)  # type: ignore[arg-type]


@pytest.mark.parametrize("clauses", [[], [[]], [[1], []], [[0]], [[len(WORDS)]], [[-1]]])
def test_other_words_are_refused(clauses: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="sub-tasks are"):
        used(untrained()).look(np.zeros((1, 72, 64, 3), np.uint8), clauses)


# --- the reasoning ------------------------------------------------------------------------------------------------------------------


def random_looks(seed: int, length: int, pictures: int) -> Looks:
    random = np.random.default_rng(seed)

    def drawn(*shape: int) -> Array:
        return random.normal(0, 2, shape).astype(np.float32)

    return Looks(
        drawn(length, pictures, 7, 3),
        drawn(length, pictures, 7),
        np.abs(drawn(length, pictures)) * 4,
        drawn(length, pictures),
        drawn(length, 64),
    )


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max())
    return raised / raised.sum()


@pytest.mark.parametrize(("length", "transitions"), [(1, 1), (1, 4), (2, 5), (3, 4)])
def test_the_posterior_is_the_sum_over_all_ways(length: int, transitions: int) -> None:
    """Every sequence of numbers of sub-tasks done is weighed one by one, by the definition of the model."""
    network, looks = used(untrained()), random_looks(4, length, transitions + 1)
    tensors = trained.export(untrained())
    actions = np.random.default_rng(1).integers(0, 7, transitions)
    first = Looks(**{item.name: getattr(looks, item.name)[:, :1] for item in fields(Looks) if item.name != "words"}, words=looks.words)
    prior = network.judge(first, []).due[0].astype(np.float64)
    total = np.zeros((transitions + 1, length + 1))
    for way in product(range(length + 1), repeat=transitions + 1):
        weight = prior[way[0]]
        for t, (now, then) in enumerate(pairwise(way)):
            action = actions[t]
            if now == length:
                weight *= (then == now) * np.exp(tensors["emission.finished"][action])
                continue
            on = 1 / (1 + np.exp(-(tensors["advance"][0] + tensors["advance"][1] * looks.completes[now, t, action])))
            weight *= {now: 1 - on, now + 1: on}.get(then, 0.0)
            weight *= (np.exp(tensors["emission.classes"][action]) * softmax(looks.classes[now, t, action])).sum()
        for t, state in enumerate(way):
            total[t, state] += weight
    np.testing.assert_allclose(network.judge(looks, actions.tolist()).due, total / total.sum(1, keepdims=True), atol=1e-5)


def test_the_verdict_is_the_mean_over_what_could_be_due() -> None:
    network, tensors, looks = used(untrained()), trained.export(untrained()), random_looks(2, 2, 4)
    actions = [2, 0, 5]
    judgement = network.judge(looks, actions)
    for t, action in enumerate(actions):
        expected = judgement.due[t, 2] * np.array([0.0, 1.0, 0.0])
        for clause in range(2):
            change = np.clip(looks.distance[clause, t + 1] - looks.distance[clause, t], -2, 2)
            logits = looks.classes[clause, t, action] * tensors["verdict.temperature"] + change * tensors["verdict.change"]
            expected += judgement.due[t, clause] * softmax(logits + tensors["verdict.bias"][action])
        np.testing.assert_allclose(judgement.verdict[t], expected, atol=1e-5)


def test_what_comes_later_tells_what_was_due() -> None:
    """The same first picture; only what is seen to be completed later differs."""
    network = untrained()
    with torch.no_grad():
        network.reasoning.advance.copy_(torch.tensor([0.0, 1.0]))
    quiet = random_looks(0, 2, 4)
    completes = quiet.completes.copy()
    completes[:] = -9
    loud = completes.copy()
    loud[1, 2] = 9
    last = [used(network).judge(replace(quiet, completes=some), [0, 0, 0]).due[-1, 2] for some in (completes, loud)]
    assert last[1] > last[0]


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(1, LONGEST), st.integers(0, 5), st.lists(FINITE, min_size=8, max_size=8), st.integers(0, 2**31))
def test_any_finite_looks_give_probabilities(length: int, transitions: int, extremes: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    drawn = random_looks(seed, length, transitions + 1)
    values = {item.name: getattr(drawn, item.name).copy() for item in fields(Looks)}
    for array in values.values():
        where = random.random(array.shape) < 0.3
        array[where] = random.choice(np.array(extremes, np.float32), where.sum())
    judgement = used_untrained().judge(Looks(**values), random.integers(0, 7, transitions).tolist())
    for probabilities in (judgement.verdict, judgement.due):
        assert np.isfinite(probabilities).all()
        assert (probabilities >= 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert ((judgement.progress >= 0) & (judgement.progress <= 1)).all()


@cache
def used_untrained() -> EmbeddedNetwork:
    return used(untrained())


def test_shapes_of_a_judgement() -> None:
    judgement = used(untrained()).judge(random_looks(0, 3, 1), [])
    assert isinstance(judgement, Judgement)
    assert (judgement.verdict.shape, judgement.due.shape, judgement.progress.shape) == ((0, 3), (1, 4), (1,))


@pytest.mark.parametrize(("length", "actions"), [(1, [0, 1]), (1, [7, 0, 0]), (1, [-1, 0, 0]), (LONGEST + 1, [0, 0, 0])])
def test_what_does_not_fit_is_refused(length: int, actions: list[int]) -> None:
    with pytest.raises(ValueError, match=r"pictures|sub-tasks"):
        used(untrained()).judge(random_looks(0, length, 4), actions)


# --- files --------------------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_network(tmp_path: Path) -> None:
    tensors = trained.export(untrained())
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes(12, 3, len(WORDS))
    save_file(tensors, tmp_path / "weights.safetensors")
    read = EmbeddedNetwork.load(tmp_path / "weights.safetensors")
    pictures, clauses, _ = random_window(0, 2, 1, (9, 8))
    np.testing.assert_array_equal(read.look(pictures, clauses).classes, used(untrained()).look(pictures, clauses).classes)
    assert read.parameters == sum(tensor.size for tensor in tensors.values())


def test_other_tensors_are_refused() -> None:
    tensors = trained.export(untrained())
    for name in tensors:
        with pytest.raises(KeyError):
            EmbeddedNetwork.from_tensors({other: tensor for other, tensor in tensors.items() if other != name})
        with pytest.raises(ValueError, match=r"has shape"):
            EmbeddedNetwork.from_tensors(tensors | {name: np.concatenate([tensors[name], tensors[name]], -1)})
        with pytest.raises(ValueError, match="finite float32"):
            EmbeddedNetwork.from_tensors(tensors | {name: np.full_like(tensors[name], np.nan)})
    with pytest.raises(ValueError, match="finite float32"):
        EmbeddedNetwork.from_tensors(tensors | {"advance": tensors["advance"].astype(np.float64)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="no tensor 'more'"):
        EmbeddedNetwork.from_tensors(tensors | {"more": tensors["advance"]})


# --- training -----------------------------------------------------------------------------------------------------------------------


def as_bytes(network: TorchNetwork) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in trained.export(network).items()}


def test_equal_seeds_give_equal_bytes() -> None:
    data = {"small": some_scenes(), "one-room": some_scenes("one-room", 1)}

    def made(seed: int, threads: int) -> dict[str, bytes]:
        network = trained.train_looks(data, replace(TINY, threads=threads), seed=seed)
        trained.train_windows(network, some_windows(), WindowsConfig(updates=3, batch=8, threads=threads), seed=seed)
        trained.calibrate(network, some_windows())
        return as_bytes(network)

    first, again, other = made(1, threads=1), made(1, threads=2), made(2, threads=2)
    assert first == again
    different = [name for name in first if first[name] != other[name]]
    assert "blocks.weight" in different
    assert "prior.hidden.weight" in different


def test_a_batch_of_one_can_be_learned_from() -> None:
    network = trained.train_looks({"small": some_scenes()}, replace(TINY, batch=1), seed=0)
    assert as_bytes(network) != as_bytes(trained.train_looks({"small": some_scenes()}, replace(TINY, batch=1, updates=3), seed=0))


def test_training_leaves_torch_as_it_was() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    trained.train_looks({"small": some_scenes()}, TINY, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1


def test_looks_are_learned() -> None:
    told: list[tuple[int, int, dict[str, float]]] = []
    config = LooksConfig(channels=16, blocks=3, updates=300, batch=16, learning_rate=5e-3, warm_up=20, threads=1)
    trained.train_looks({"small": some_scenes()}, config, seed=0, progress=lambda *news: told.append((news[0], news[1], dict(news[2]))))
    assert [news[:2] for news in told] == [(100, 300), (200, 300), (300, 300)]
    for name in ("dense", "dense_distance", "classes", "completes", "distance", "agent"):
        assert told[-1][2][name] < 0.8 * told[0][2][name], name


def test_unknown_classes_and_distances_teach_nothing() -> None:
    network, data = untrained(), some_scenes()
    batch = trained.batch_of(data, np.arange(8))
    nothing = replace(
        batch,
        moves=torch.full_like(batch.moves, 255),
        field=torch.full_like(batch.field, torch.inf),
        classes=torch.full_like(batch.classes, 255),
        distance=torch.full_like(batch.distance, torch.inf),
    )
    losses = trained.looks_losses(network.look, trained.library_pixels(), nothing)
    assert [losses[name].item() for name in ("dense", "dense_distance", "classes", "distance")] == [0, 0, 0, 0]
    losses["classes"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_reasoning_is_learned_and_looks_stay() -> None:
    network = untrained()
    before, told = as_bytes(network), []
    config = WindowsConfig(updates=300, batch=32, threads=1)
    trained.train_windows(network, some_windows(), config, seed=0, progress=lambda _made, _updates, losses: told.append(losses))
    after = as_bytes(network)
    changed = {name.split(".")[0] for name in after if after[name] != before[name]}
    assert changed == {"prior", "advance", "emission", "verdict", "progress"}
    assert told[-1]["due"] < told[0]["due"]
    assert told[-1]["verdict"] < told[0]["verdict"]


def test_calibration_changes_temperature_and_bias_only() -> None:
    network = untrained()
    before = as_bytes(network)
    likelihood = trained.calibrate(network, some_windows())
    after = as_bytes(network)
    assert {name for name in after if after[name] != before[name]} == {"verdict.temperature", "verdict.bias"}
    assert likelihood["after"] < likelihood["before"]


def test_what_cannot_be_learned_from_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one level"):
        trained.train_looks({}, TINY, seed=0)
    with pytest.raises(UsageError, match="at least one pose"):
        trained.train_looks({"small": scenes("small", ())}, TINY, seed=0)
    with pytest.raises(UsageError, match="at least one window"):
        trained.train_windows(untrained(), [], seed=0)
    with pytest.raises(UsageError, match="at least one window"):
        trained.calibrate(untrained(), [])
    with pytest.raises(UsageError, match="batch is at least 1"):
        LooksConfig(batch=0)
    with pytest.raises(UsageError, match="above 0"):
        LooksConfig(learning_rate=0)
    with pytest.raises(UsageError, match="dense is a finite number"):
        LooksConfig(dense=float("nan"))
    with pytest.raises(UsageError, match="updates is at least 1"):
        WindowsConfig(updates=0)
    with pytest.raises(UsageError, match="prior is a finite number"):
        WindowsConfig(prior=-1)
