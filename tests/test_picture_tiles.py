"""Pictures that repeat or are made of few tiles: kept once, and given back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from guerdon import picture_tiles
from guerdon.algorithms.bc import BC
from guerdon.errors import UsageError
from guerdon.networks import PolicyNetwork, SymbolTiles
from guerdon.picture_tiles import Catalogue, Frames, catalogue
from guerdon.training.offline import train
from guerdon.training.policy import load_policy
from guerdon.transitions import Transitions
from tests.memory import MemoryDataset, MemoryEpisode

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (300, 12, 20, 3), dtype=np.uint8)
"""Camera pictures: nothing repeats."""
REPEATED = NOISE[np.cumsum(RANDOM.random(300) < 0.6)]
"""Those of a camera that stands still at times."""


def grid(count: int, *, height: int = 24, width: int = 32) -> Frames:
    """Pictures of a grid world of four kinds of tiles; cut off where the size is no multiple of 8."""
    tiles = RANDOM.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    numbers = RANDOM.integers(0, 4, (count, 4, 4))
    numbers[1::2] = numbers[::2]
    whole = tiles[numbers].swapaxes(2, 3).reshape(count, 32, 32, 3)
    return np.ascontiguousarray(whole[:, :height, :width])


def given_back(found: Catalogue, frames: Frames, observed: npt.NDArray[np.int64], instruction: npt.NDArray[np.int64]) -> None:
    pictures = found.batch(observed, instruction, lambda wanted: frames[wanted])
    np.testing.assert_array_equal(pictures.pixels().numpy(), frames[observed])
    np.testing.assert_array_equal(pictures.instruction[pictures.row].numpy(), instruction)
    seen = {(frames[number].tobytes(), int(text)) for number, text in zip(observed, instruction, strict=True)}
    assert len(pictures.distinct) == len(seen)


@pytest.mark.parametrize("size", [(24, 32), (21, 27)])
def test_pictures_of_few_tiles_are_kept_as_numbers_of_tiles(size: tuple[int, int]) -> None:
    frames = grid(400, height=size[0], width=size[1])
    found = catalogue(frames)
    assert found is not None
    assert found.tiles is not None
    assert found.library is not None
    assert len(found.library) <= 4 * 4  # those at the edges are cut off in up to three more ways
    assert len(found.first) == 200
    given_back(found, frames, RANDOM.integers(0, 400, 50), RANDOM.integers(0, 3, 50))


def test_pictures_that_repeat_are_kept_as_they_are() -> None:
    found = catalogue(REPEATED)
    assert found is not None
    assert found.tiles is None
    assert len(found.first) == len(np.unique(REPEATED, axis=0)) < 220
    given_back(found, REPEATED, RANDOM.integers(0, 300, 50), RANDOM.integers(0, 3, 50))


def test_a_picture_under_two_instructions_counts_twice() -> None:
    found = catalogue(REPEATED)
    assert found is not None
    pictures = found.batch(np.array([7, 7, 7]), np.array([0, 1, 0]), lambda wanted: REPEATED[wanted])
    assert pictures.row.tolist() == [0, 1, 0]
    assert pictures.instruction.tolist() == [0, 1]


def test_no_rows_are_no_pictures() -> None:
    found = catalogue(REPEATED)
    assert found is not None
    none = np.empty(0, dtype=np.int64)
    assert found.batch(none, none, lambda wanted: REPEATED[wanted]).pixels().shape == (0, 12, 20, 3)


def test_camera_pictures_are_left_alone() -> None:
    assert catalogue(NOISE) is None


def test_too_many_tiles_are_not_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_tiles, "MOST_TILES", 3)
    found = catalogue(grid(400))
    assert found is not None
    assert found.tiles is None  # but the pictures still repeat


@pytest.mark.parametrize("frames", [grid(100), REPEATED])
def test_equal_keys_of_different_pictures_do_no_harm(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_tiles, "_keys", lambda values: np.zeros(len(values), dtype=np.uint64))
    assert catalogue(frames) is None


def test_keys_differ_wherever_a_single_byte_does() -> None:
    plain = np.zeros((1, 5, 5, 3), dtype=np.uint8)
    changed = np.repeat(plain, 75, 0)
    changed.reshape(75, 75)[np.arange(75), np.arange(75)] = 128
    assert len(np.unique(picture_tiles._keys(np.concatenate([plain, changed])))) == 76


def test_pictures_move_as_a_whole() -> None:
    frames = grid(400)
    found = catalogue(frames)
    assert found is not None
    observed = np.arange(5)
    moved = found.batch(observed, np.zeros(5, np.int64), lambda wanted: frames[wanted]).to(torch.device("cpu"))
    np.testing.assert_array_equal(moved.pixels().numpy(), frames[:5])


# --- tiles as symbols ---------------------------------------------------------------------------------------------------------------


def drawn(numbers: npt.NDArray[np.int64]) -> Frames:
    """Pictures of tiles of one colour each: (N, rows, columns) -> (N, 8 rows, 8 columns, 3)."""
    return np.repeat(np.repeat(numbers, 8, 1), 8, 2)[..., None].repeat(3, 3).astype(np.uint8)


def symbols() -> SymbolTiles:
    torch.manual_seed(0)
    tiles = SymbolTiles(16, 24, 8, 5)
    tiles.learn(torch.from_numpy(drawn(np.array([[[10]], [[20]], [[30]]]))))
    return tiles


def test_symbols_say_which_tile_it_is_and_nothing_else() -> None:
    tiles = symbols()
    with torch.no_grad():
        tiles.position.zero_()
        tiles.embedding.weight.abs_()  # so that nothing is cut off
    looked = tiles(torch.from_numpy(drawn(np.array([[[10, 20, 30], [20, 11, 99]]]))))
    weight = tiles.embedding.weight
    assert torch.equal(looked[0, 0], weight[[0, 1, 2]])
    assert torch.equal(looked[0, 1], weight[[1, SymbolTiles.MOST, SymbolTiles.MOST]])  # strange tiles look alike, however near


def test_symbols_of_repeated_pictures_are_those_of_pixels() -> None:
    numbers = np.random.default_rng(0).choice([10, 20, 30], size=(40, 2, 3))
    frames = drawn(numbers[np.arange(40) // 2])
    found = catalogue(frames)
    assert found is not None
    batch = found.batch(np.arange(30), np.zeros(30, np.int64), lambda wanted: frames[wanted])
    tiles = symbols()
    assert torch.equal(tiles(batch)[batch.row], tiles(torch.from_numpy(frames[:30])))


def test_pictures_that_are_not_made_of_few_tiles_cannot_be_symbols() -> None:
    with pytest.raises(UsageError, match="300 tiles of 8 pixels; 256 of 8"):
        symbols().learn(torch.zeros(300, 8, 8, 3, dtype=torch.uint8))
    data = Transitions.build(Noisy([MemoryEpisode(6, "go")]))
    assert data.libraries() == {"full": None}
    with pytest.raises(UsageError, match="view 'full' are not made of few tiles"):
        BC(data, BC.Config(network=PolicyNetwork.Config(symbols=True)), seed=0, updates=1)


class Noisy(MemoryDataset):
    """Camera pictures."""

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        return NOISE[start:stop]


class Grid(MemoryDataset):
    """Pictures of 2 x 3 tiles of three kinds; the agent is told what to do by the first one."""

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        numbers = np.random.default_rng(index).integers(0, 3, (40, 2, 3))
        return drawn(10 * (1 + numbers[start:stop]))

    def actions(self, index: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng(index).integers(0, 3, (40, 2, 3))[:20, 0, 0]


def test_a_policy_of_symbols_learns_is_kept_and_acts(tmp_path: Path) -> None:
    data = Transitions.build(Grid([MemoryEpisode(20, "go") for _ in range(12)]))
    config = BC.Config(network=PolicyNetwork.Config(symbols=True, channels=8, width=16))
    policy = load_policy(train(data, "bc", config, updates=150, seed=0, out=tmp_path))
    policy.start("go")
    numbers = np.random.default_rng(99).integers(0, 3, (30, 2, 3))
    chosen = [policy.step(picture) for picture in drawn(10 * (1 + numbers))]
    assert np.mean(np.array(chosen) == numbers[:, 0, 0]) > 0.9
