"""Pictures that repeat or are made of few tiles: kept once, and given back as they were."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from guerdon import picture_tiles
from guerdon.picture_tiles import Catalogue, Frames, catalogue

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
