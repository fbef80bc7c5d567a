"""What every dataset format must do, whichever exist. A new format adds one line to WRITERS: how to write a small example of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guerdon import discover
from guerdon.datasets import open_dataset
from guerdon.datasets.check import check
from guerdon.datasets.minari import RecordedEpisode
from guerdon.errors import DatasetError
from guerdon.interfaces import Dataset, DatasetFormat
from tests.data.episodes import episode, write

FORMATS = discover.names("datasets")
WRITERS: dict[str, Callable[[Path], object]] = {
    "minari": lambda path: write(path, [with_state(10), with_state(1, 1), with_state(12, 2, terminated=False, truncated=True)]),
}
"""Format -> writes three episodes of 10, 1 and 12 transitions with a vector; the last one is truncated, the others are terminated."""


def with_state(length: int, seed: int = 0, **changes: Any) -> RecordedEpisode:
    return episode(length, seed, vectors={"state": np.random.default_rng(seed).normal(size=(length + 1, 5)).astype(np.float32)}, **changes)


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def reader(name: str) -> type[DatasetFormat]:
    found: type[DatasetFormat] = discover.load("datasets", name)
    return found


@pytest.fixture
def path(name: str, tmp_path: Path) -> Path:
    assert name in WRITERS, f"add an example of the format '{name}' to WRITERS"
    WRITERS[name](tmp_path / "example")
    return tmp_path / "example"


@pytest.fixture
def dataset(path: Path) -> Dataset:
    return open_dataset(path)


def test_its_own_files_are_recognised_and_nothing_else(reader: type[DatasetFormat], path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert reader.recognises(path)
    for other in (tmp_path / "empty", tmp_path / "file", tmp_path / "absent", Path("\0"), Path("x" * 5000)):
        assert not reader.recognises(other)


def test_there_is_one_observation_more_than_actions(dataset: Dataset) -> None:
    assert len(dataset) == 3
    assert [info.length for info in dataset.episodes()] == [10, 1, 12]
    for info in dataset.episodes():
        assert len(dataset.actions(info.index)) == len(dataset.rewards(info.index)) == info.length
        for view in dataset.views:
            assert len(dataset.frames(info.index, view, 0, info.length + 1)) == info.length + 1
            with pytest.raises(DatasetError):
                dataset.frames(info.index, view, 0, info.length + 2)
        for values in dataset.privileged(info.index).values():
            assert len(values) in (info.length, info.length + 1)


def test_dtypes_and_shapes(dataset: Dataset) -> None:
    for info in dataset.episodes():
        for view in dataset.views:
            frames = dataset.frames(info.index, view, 0, 2)
            assert frames.dtype == np.uint8
            assert frames.ndim == 4
            assert frames.shape[3] == 3
        actions = dataset.actions(info.index)
        assert (actions.dtype, actions.ndim) == ((np.int64, 1) if dataset.action_names else (np.float32, 2))
        assert dataset.rewards(info.index).dtype == np.float64


def test_vectors_have_one_row_an_observation_and_belong_to_the_reader(dataset: Dataset) -> None:
    for info in dataset.episodes():
        for name in dataset.vectors:
            values = dataset.vector(info.index, name)
            kept = values.copy()
            assert values.dtype == np.float32
            assert values.ndim == 2
            assert len(values) == info.length + 1
            values[:] = 0
            assert np.array_equal(dataset.vector(info.index, name), kept)
    with pytest.raises(KeyError):
        dataset.vector(0, "no such vector")


def test_terminated_and_truncated_are_told_apart(dataset: Dataset) -> None:
    assert [(info.terminated, info.truncated) for info in dataset.episodes()] == [(True, False), (True, False), (False, True)]


def test_every_episode_has_words(dataset: Dataset) -> None:
    assert all(annotation.instruction for info in dataset.episodes() for annotation in info.annotations)
    assert all(info.annotations for info in dataset.episodes())


def test_slices_of_pictures_agree_with_the_whole(dataset: Dataset) -> None:
    for view in dataset.views:
        whole = dataset.frames(0, view, 0, 11)
        assert np.array_equal(dataset.frames(0, view, 4, 9), whole[4:9])
        assert dataset.frames(0, view, 3, 3).shape == (0, *whole.shape[1:])


def test_what_is_read_belongs_to_the_reader(dataset: Dataset) -> None:
    view = dataset.views[0]
    before = dataset.frames(0, view, 0, 3)
    kept = before.copy()
    before[:] = 0
    dataset.actions(0)[:] = 0
    assert np.array_equal(dataset.frames(0, view, 0, 3), kept)


def test_the_fingerprint_is_that_of_the_content(path: Path, tmp_path: Path) -> None:
    fingerprint = open_dataset(path).fingerprint
    assert open_dataset(path).fingerprint == fingerprint
    shutil.copytree(path, tmp_path / "elsewhere" / "copy")
    assert open_dataset(tmp_path / "elsewhere" / "copy").fingerprint == fingerprint
    for file in [found for found in path.rglob("*") if found.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert open_dataset(path).fingerprint != fingerprint
        file.write_bytes(content)


def test_reading_changes_no_file(path: Path) -> None:
    def state() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}

    before = state()
    assert check(open_dataset(path)).errors == 0
    assert state() == before


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "noise"])
def test_damaged_files_give_a_dataset_error(path: Path, damage: str) -> None:
    for file in sorted(found for found in path.rglob("*") if found.is_file()):
        content = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            noise = np.random.default_rng(0).bytes(len(content))
            file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": noise}[damage])
        with pytest.raises(DatasetError, match=r".+: .+"):
            check_all(open_dataset(path))
        file.write_bytes(content)
    check_all(open_dataset(path))


def check_all(dataset: Dataset) -> None:
    for info in dataset.episodes():
        dataset.actions(info.index)
        dataset.rewards(info.index)
        dataset.privileged(info.index)
        for view in dataset.views:
            dataset.frames(info.index, view, 0, info.length + 1)
        for name in dataset.vectors:
            dataset.vector(info.index, name)
