"""Minari datasets: what is written comes back, here and in the stock library; what is damaged is refused by name and place."""

from __future__ import annotations

import errno
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon.datasets import _minari_storage as storage
from guerdon.datasets import open_dataset
from guerdon.datasets.check import check
from guerdon.datasets.minari import MinariDataset, RecordedEpisode
from guerdon.errors import DatasetError, UsageError, WriteFailed
from guerdon.records import Annotation, Span
from tests.data.episodes import ACTIONS, episode, write, write_stock

PIXELS = gymnasium.spaces.Box(0, 255, (8, 10, 3), np.uint8)
WORDS = gymnasium.spaces.Text(60)


def hdf5(path: Path) -> Path:
    return path / "data" / "main_data.hdf5"


def edit_metadata(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = path / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))


def replace(path: Path, name: str, values: Any, number: int = 0) -> None:
    with h5py.File(hdf5(path), "r+") as file:
        group = file[f"episode_{number}"]
        if name in group:
            del group[name]
        if values is not None:
            group[name] = values


# --- writing ----------------------------------------------------------------------------------------------------------------------------


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "d"))
    assert len(dataset) == 3
    assert dataset.views == ("image", "wrist")
    assert dataset.action_names == ACTIONS
    assert dataset.environment == {"name": "doors"}
    for index in range(3):
        expected, info = episode(10 + index, index), dataset.episode(index)
        assert (info.index, info.length, info.terminated, info.truncated) == (index, 10 + index, True, False)
        assert info.annotations == expected.annotations
        assert info.metadata == expected.metadata
        for view, frames in expected.frames.items():
            assert np.array_equal(dataset.frames(index, view, 0, info.length + 1), frames)
        assert np.array_equal(dataset.actions(index), expected.actions)
        assert dataset.actions(index).dtype == np.int64
        assert np.array_equal(dataset.rewards(index), expected.rewards)
        truth = dataset.privileged(index)
        assert truth.keys() == {"contribution", "progress"}
        assert all(np.array_equal(truth[name], values) and truth[name].dtype == np.float32 for name, values in expected.privileged.items())


def test_the_stock_library_reads_it_from_a_folder_and_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "root" / "tests" / "doors-v0", description="Doors.")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    for stock in (minari.MinariDataset(path / "data"), minari.load_dataset("tests/doors-v0")):
        assert stock.total_episodes == 3
        assert stock.total_steps == 33
        assert stock.action_space == gymnasium.spaces.Discrete(7)
        assert stock.observation_space["image"] == PIXELS
        for index, found in enumerate(stock.iterate_episodes()):
            expected, length = episode(10 + index, index), 10 + index
            assert np.array_equal(found.observations["image"], expected.frames["image"])
            assert found.observations["instruction"] == ["gehe zur Tür"] * (length + 1)
            assert stock.observation_space.contains({name: values[0] for name, values in found.observations.items()})
            assert np.array_equal(found.actions, expected.actions)
            assert np.array_equal(found.rewards, expected.rewards)
            assert found.terminations.tolist() == [False] * (length - 1) + [True]
            assert not found.truncations.any()
            assert np.isnan(found.infos["privileged"]["contribution"][0])
            assert np.array_equal(found.infos["privileged"]["contribution"][1:], expected.privileged["contribution"])
            assert np.array_equal(found.infos["privileged"]["progress"], expected.privileged["progress"])
        facts = next(iter(stock.storage.get_episode_metadata([1])))
        assert json.loads(facts["guerdon"])["metadata"]["seed"] == 1
    assert minari.list_local_datasets()["tests/doors-v0"]["description"] == "Doors."
    assert len(minari.load_dataset("tests/doors-v0").filter_episodes(lambda found: len(found.rewards) > 10)) == 2


def test_continuous_actions_come_back_and_their_space_is_unbounded(tmp_path: Path) -> None:
    actions = np.array([[0.25, -1.0], [3.5, 0.0]])
    dataset = open_dataset(write(tmp_path / "d", [episode(2, actions=actions)], action_names=()))
    assert dataset.action_names == ()
    assert dataset.actions(0).dtype == np.float32
    assert dataset.actions(0).tolist() == actions.tolist()
    assert minari.MinariDataset(tmp_path / "d" / "data").action_space == gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def states(length: int, width: int = 3, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(length + 1, width)).astype(np.float32)


def test_vectors_come_back_beside_pictures_or_alone(tmp_path: Path) -> None:
    vectors = {"state": states(10), "force": states(10, 1, 1)}
    beside = open_dataset(write(tmp_path / "beside", [episode(10, vectors=vectors)]))
    alone = open_dataset(write(tmp_path / "alone", [episode(10, vectors=vectors, frames={})]))
    assert (beside.views, alone.views) == (("image", "wrist"), ())
    for dataset in (beside, alone):
        assert dataset.vectors == ("state", "force")
        for name, values in vectors.items():
            assert dataset.vector(0, name).dtype == np.float32
            assert np.array_equal(dataset.vector(0, name), values)
        with pytest.raises(KeyError):
            dataset.vector(0, "image")
        with pytest.raises(IndexError):
            dataset.vector(1, "state")
    with pytest.raises(DatasetError, match="has no pictures"):
        open_dataset(tmp_path / "alone", views=("state",))


def test_the_stock_library_reads_vectors(tmp_path: Path) -> None:
    write(tmp_path / "d", [episode(10, vectors={"state": states(10)})])
    stock = minari.MinariDataset(tmp_path / "d" / "data")
    assert stock.observation_space["state"] == gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert np.array_equal(stock[0].observations["state"], states(10))


def test_without_vectors_the_files_are_what_they_were_before_there_were_any(tmp_path: Path) -> None:
    write(tmp_path / "d")
    metadata = json.loads((tmp_path / "d/data/metadata.json").read_text())
    assert metadata["guerdon"].keys() == {"format", "environment", "action_names", "views", "privileged"}
    assert json.loads(metadata["observation_space"])["subspaces"].keys() == {"image", "wrist", "instruction"}


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_vectors_that_others_recorded_are_offered_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str) -> None:
    state = np.random.default_rng(0).normal(size=(5, 2))
    path = write_stock(
        tmp_path,
        monkeypatch,
        observations={"state": state, "joint": {"angle": state[:, :1]}, "mission": ["go"] * 5, "image": np.zeros((5, 4, 4, 3), np.uint8)},
        spaces={
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "joint": gymnasium.spaces.Dict(angle=gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)),
            "mission": gymnasium.spaces.Text(9),
            "image": gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
        },
        actions=np.zeros((4, 2), np.float32),
        action_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        data_format=data_format,
    )
    dataset = open_dataset(path)
    assert (dataset.views, dataset.vectors) == (("image",), ("joint.angle", "state"))
    assert dataset.vector(0, "state").dtype == np.float32
    assert np.array_equal(dataset.vector(0, "state"), state.astype(np.float32))


def test_a_stock_dataset_of_vectors_alone_needs_an_instruction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_stock(
        tmp_path,
        monkeypatch,
        observations={"state": states(4)},
        spaces={"state": gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)},
        actions=np.zeros((4, 2), np.float32),
        action_space=gymnasium.spaces.Box(-1, 1, (2,), np.float32),
    )
    with pytest.raises(DatasetError, match=r"has no pictures.*To train on its vectors alone \(state\), say what is to be done"):
        open_dataset(path)
    dataset = open_dataset(path, instruction="run")
    assert (dataset.views, dataset.vectors) == ((), ("state",))
    assert np.array_equal(dataset.vector(0, "state"), states(4))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "holds NaN or infinity"), (1e300, "holds NaN or infinity")])
def test_numbers_that_are_none_are_named_by_step(tmp_path: Path, value: float, message: str) -> None:
    write(tmp_path / "d", [episode(10, vectors={"state": states(10)})])
    with h5py.File(hdf5(tmp_path / "d"), "r+") as file:
        values = states(10).astype(np.float64)
        values[7, 1] = value
        del file["episode_0/observations/state"]
        file["episode_0/observations/state"] = values
    dataset = open_dataset(tmp_path / "d")
    with pytest.raises(DatasetError, match=f"episode 0, step 7: 'observations.state' {message}"):
        dataset.vector(0, "state")
    (problem,) = check(dataset).problems
    assert (problem.severity, problem.kind, problem.step) == ("warning", "bad-vector", None)


@pytest.mark.parametrize("damage", [None, states(9), states(10, 4), np.zeros((11, 3), np.int64)])
def test_a_vector_that_is_missing_or_of_another_size_in_an_episode_is_refused(tmp_path: Path, damage: Any) -> None:
    write(tmp_path / "d", [episode(10, number, vectors={"state": states(10, seed=number)}) for number in range(2)])
    with h5py.File(hdf5(tmp_path / "d"), "r+") as file:
        del file["episode_1/observations/state"]
        if damage is not None:
            file["episode_1/observations/state"] = damage
    dataset = open_dataset(tmp_path / "d")
    assert np.array_equal(dataset.vector(0, "state"), states(10))
    with pytest.raises(DatasetError, match="episode 1, vector 'state': is missing or does not have 11 observations of 3 numbers"):
        dataset.vector(1, "state")


def test_a_copy_carries_vectors_along(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [episode(10 + n, n, vectors={"state": states(10 + n, seed=n)}, frames={}) for n in range(2)])
    source = open_dataset(path)
    assert isinstance(source, MinariDataset)
    source.write_copy(tmp_path / "copy", [1], lambda index: {"rewards": np.zeros(source.episode(index).length)}, {})
    copied = open_dataset(tmp_path / "copy")
    assert (len(copied), copied.views, copied.vectors) == (1, (), ("state",))
    assert np.array_equal(copied.vector(0, "state"), states(11, seed=1))


def test_vectors_of_which_the_metadata_speak_have_to_be_there(tmp_path: Path) -> None:
    write(tmp_path / "d", [episode(10, vectors={"state": states(10)})])
    with h5py.File(hdf5(tmp_path / "d"), "r+") as file:
        del file["episode_0/observations/state"]
    with pytest.raises(DatasetError, match=r"has no vector 'state', which metadata\.json speaks of"):
        open_dataset(tmp_path / "d")


def test_equal_episodes_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    one, two, other = write(tmp_path / "one"), write(tmp_path / "two"), write(tmp_path / "other", [episode(10, 7)])
    for name in ("main_data.hdf5", "metadata.json"):
        assert (one / "data" / name).read_bytes() == (two / "data" / name).read_bytes()
    assert open_dataset(one).fingerprint == open_dataset(two).fingerprint != open_dataset(other).fingerprint


def test_pictures_are_compressed_in_small_chunks_with_checksums(tmp_path: Path) -> None:
    frames = np.zeros((101, 56, 56, 3), np.uint8)
    frames[:, 8:16, 8:16] = 200
    write(tmp_path / "d", [episode(100, frames={"image": frames})])
    with h5py.File(hdf5(tmp_path / "d")) as file:
        stored = file["episode_0/observations/image"]
        assert stored.chunks == (6, 56, 56, 3)  # 6 x 9408 bytes = 56 kB
        assert stored.id.get_storage_size() < frames.nbytes / 50
        assert all(thing.fletcher32 for thing in [stored, file["episode_0/actions"], file["episode_0/observations/instruction"]])


def test_episodes_are_taken_one_by_one(tmp_path: Path) -> None:
    alive: list[int] = []

    class Tracked(np.ndarray):
        def __del__(self) -> None:
            alive.remove(id(self))

    def stream() -> Iterator[RecordedEpisode]:
        for number in range(5):
            assert len(alive) <= 1, "an episode is kept after it was written"
            made = episode(5, number)
            tracked = made.frames["image"].view(Tracked)
            alive.append(id(tracked))
            made = episode(5, number, frames={"image": tracked})
            del tracked
            yield made
            del made

    write(tmp_path / "d", stream())


def test_large_metadata_and_empty_words_are_kept(tmp_path: Path) -> None:
    big = {"trace": "ü" * 100_000}
    made = episode(3, metadata=big, annotations=(Annotation(""),))
    info = open_dataset(write(tmp_path / "d", [made])).episode(0)
    assert info.metadata == big
    assert info.annotations == (Annotation(""),)
    assert minari.MinariDataset(tmp_path / "d" / "data")[0].observations["instruction"] == [""] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": {}}, "at least one view"),
        ({"frames": {"image": np.zeros((10, 4, 4, 3), np.uint8)}}, "is uint8(10, 4, 4, 3); 10 transitions need uint8 (11, H, W, 3)"),
        ({"frames": {"image": np.zeros((11, 4, 4, 3), np.float32)}}, "view 'image' is float32"),
        ({"frames": {"a/b": np.zeros((11, 4, 4, 3), np.uint8)}}, "a view cannot be called 'a/b'"),
        ({"vectors": {"state": np.zeros((10, 3), np.float32)}}, "is float32(10, 3); 10 transitions need float32 (11, D)"),
        ({"vectors": {"state": np.zeros((11, 3))}}, "vector 'state' is float64"),
        ({"vectors": {"state": np.full((11, 3), np.nan, np.float32)}}, "vector 'state' holds NaN"),
        ({"vectors": {"image": np.zeros((11, 3), np.float32)}}, "a vector cannot be called 'image'"),
        ({"vectors": {"a/b": np.zeros((11, 3), np.float32)}}, "a vector cannot be called 'a/b'"),
        ({"rewards": np.zeros(0)}, "they need (T,) with T > 0"),
        ({"rewards": np.r_[np.zeros(9), np.nan]}, "rewards hold NaN"),
        ({"actions": np.zeros(9, int)}, "there are 9 actions and 10 rewards"),
        ({"actions": np.full(10, -1)}, "count from 0"),
        ({"actions": np.full((10, 2), np.inf)}, "actions hold NaN or infinity"),
        ({"actions": np.zeros((10, 2), int)}, "they need (T,)"),
        ({"actions": np.zeros(10)}, "continuous actions are floats (T, A)"),
        ({"annotations": ()}, "at least one annotation"),
        ({"annotations": (Annotation("a\0b"),)}, "cannot be stored as UTF-8"),
        ({"annotations": (Annotation("\ud800"),)}, "cannot be stored as UTF-8"),
        ({"annotations": (Annotation("x", (Span(0, 11, "y"),)),)}, "has 10 transitions"),
        ({"privileged": {"progress": np.zeros(9)}}, "privileged field 'progress' has shape (9,)"),
        ({"metadata": {"x": float("nan")}}, "not JSON compliant"),
    ],
)
def test_an_episode_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        episode(10, **changes)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"frames": {"image": np.zeros((11, 4, 4, 3), np.uint8)}}, "differs from the first episode"),
        ({"privileged": {}}, "differs from the first episode"),
        ({"vectors": {"state": np.zeros((11, 3), np.float32)}}, "differs from the first episode"),
        ({"actions": np.zeros((10, 2))}, "differs from the first episode"),
        ({"actions": np.r_[np.zeros(9, int), 7]}, "episode 1, step 9: action 7 has no name; there are 7 names"),
    ],
)
def test_episodes_that_do_not_fit_together_are_refused_and_nothing_is_left(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(message)):
        write(tmp_path / "d", [episode(10), episode(10, **second)])
    assert list(tmp_path.iterdir()) == []


def test_no_episodes_a_bad_id_missing_names_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no episodes"):
        write(tmp_path / "d", [])
    with pytest.raises(UsageError, match="not a Minari dataset id"):
        write(tmp_path / "d", dataset_id="no version")
    with pytest.raises(DatasetError, match="discrete actions need names"):
        write(tmp_path / "d", action_names=())
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="exists already"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the kernel then refuses to write, as on a full disk
    try:
        with pytest.raises(WriteFailed, match="cannot write"):
            write(tmp_path / "d", (episode(40, seed) for seed in range(50)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_the_first_failed_write_ends_the_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def stream() -> Iterator[RecordedEpisode]:
        for seed in range(100):
            taken.append(seed)
            yield episode(40, seed)

    failure = OSError(errno.ENOSPC, "No space left on device")
    original, count = storage._Sink.write, [0]

    def failing(sink: Any, data: Any) -> int:
        count[0] += 1
        if count[0] == 30:
            sink._failure = failure
        return original(sink, data)

    monkeypatch.setattr(storage._Sink, "write", failing)
    with pytest.raises(WriteFailed, match="No space left on device") as caught:
        write(tmp_path / "d", stream())
    assert caught.value.__cause__ is failure
    assert len(taken) < 10
    assert list(tmp_path.iterdir()) == []


def test_the_library_behind_it_never_sees_a_failure(tmp_path: Path) -> None:
    # HDF5 reads back what it wrote; after a failed write it must find it, or it crashes while closing.
    sink = storage._Sink(tmp_path / "f")
    sink.write(b"0123456789")
    sink._failure = OSError(errno.ENOSPC, "full")
    sink.seek(8)
    assert sink.write(b"ABCD") == 4
    assert sink.tell() == 12
    sink.seek(6)
    back = bytearray(10)
    assert sink.readinto(back) == 6
    assert back[:6] == b"67ABCD"
    with pytest.raises(OSError, match="full"):
        sink.check()
    sink.close()


# --- reading what others wrote ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("place", ["observations", "infos"])
def test_stock_datasets_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str, place: str) -> None:
    expected = episode(10)
    observations: dict[str, Any] = {"rgb": expected.frames["image"], "direction": np.arange(11)}
    spaces: dict[str, Any] = {"rgb": PIXELS, "direction": gymnasium.spaces.Discrete(20)}
    infos: dict[str, Any] = {}
    if place == "observations":
        observations["mission"], spaces["mission"] = ["go"] * 11, WORDS
    else:
        infos["task"] = ["go"] * 11
    path = write_stock(
        tmp_path, monkeypatch, observations=observations, spaces=spaces, infos=infos, episodes=2, data_format=data_format,
        actions=expected.actions, action_space=gymnasium.spaces.Discrete(9),
    )  # fmt: skip
    dataset = open_dataset(path)
    assert dataset.views == ("rgb",)
    assert dataset.action_names == tuple(f"action {n}" for n in range(9))
    for index in range(2):
        info = dataset.episode(index)
        assert (info.length, info.terminated, info.annotations) == (10, True, (Annotation("go"),))
        dataset.frames(index, "rgb", 3, 7)[:] = 0  # what is read belongs to the reader
        assert np.array_equal(dataset.frames(index, "rgb", 3, 7), expected.frames["image"][3:7])
        assert np.array_equal(dataset.actions(index), expected.actions)
        assert dataset.rewards(index).dtype == np.float64
        assert dataset.privileged(index) == {}
    assert dataset.environment == {}


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_jpeg_pictures_are_decoded_as_the_stock_library_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str) -> None:
    frames = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8), 8, 1), 8, 2)
    space = gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8)
    path = write_stock(
        tmp_path, monkeypatch, observations={"image": frames, "mission": ["go"] * 4}, spaces={"image": space, "mission": WORDS},
        actions=np.zeros(3, int), action_space=gymnasium.spaces.Discrete(2), jpeg=True, data_format=data_format,
    )  # fmt: skip
    stock = minari.MinariDataset(path / "data")[0].observations["image"]
    assert not np.array_equal(stock, frames), "JPEG loses something, else this test shows nothing"
    dataset = open_dataset(path)
    assert np.array_equal(dataset.frames(0, "image", 1, 4), stock[1:4])
    assert [dataset.frames(0, "image", place, place).shape for place in (0, 4)] == [(0, 40, 40, 3)] * 2


def test_nested_and_channel_first_views_are_found_and_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = episode(4).frames["image"]
    first = np.moveaxis(frames, -1, 1)
    spaces = gymnasium.spaces.Dict({"front": PIXELS, "back": gymnasium.spaces.Box(0, 255, (3, 8, 10), np.uint8)})
    path = write_stock(
        tmp_path, monkeypatch, observations={"pixels": {"front": frames, "back": first}}, spaces={"pixels": spaces},
        actions=np.zeros(4, int), action_space=gymnasium.spaces.Discrete(2),
    )  # fmt: skip
    dataset = open_dataset(path, instruction="do it")
    assert dataset.views == ("pixels.back", "pixels.front")
    assert np.array_equal(dataset.frames(0, "pixels.back", 0, 5), frames)
    assert dataset.frames(0, "pixels.back", 0, 5).flags.c_contiguous
    assert open_dataset(path, instruction="do it", views=["pixels.front"]).views == ("pixels.front",)
    with pytest.raises(DatasetError, match=re.escape("has no view 'top'; there are: pixels.back, pixels.front")):
        open_dataset(path, instruction="do it", views=["top"])


def test_words_are_chosen_by_option_before_they_are_guessed(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [episode(4)])
    replace(path, "infos/note", ["", "walk", "walk", "walk", "walk"])
    assert open_dataset(path).episode(0).annotations == episode(4).annotations
    assert open_dataset(path, instruction="sing").episode(0).annotations == (Annotation("sing"),)
    assert open_dataset(path, instruction_key="note").episode(0).annotations == (Annotation("walk"),)  # the first info may be empty
    assert open_dataset(path, instruction_key="infos.note").episode(0).annotations == (Annotation("walk"),)
    assert open_dataset(path, instruction_key="observations.instruction").episode(0).annotations == (Annotation("gehe zur Tür"),)
    with pytest.raises(DatasetError, match=r"no instruction under 'nothing'; texts found: infos.note, observations.instruction"):
        open_dataset(path, instruction_key="nothing")


def test_words_in_episode_metadata_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_stock(
        tmp_path, monkeypatch, observations={"image": episode(4).frames["image"]}, spaces={"image": PIXELS},
        actions=np.zeros(4, int), action_space=gymnasium.spaces.Discrete(2),
    )  # fmt: skip
    minari.MinariDataset(path / "data").storage.update_episode_metadata([{"task": "fly", "layout": np.int64(3)}])
    for options in ({}, {"instruction_key": "metadata.task"}, {"instruction_key": "task"}):
        info = open_dataset(path, **options).episode(0)
        assert info.annotations == (Annotation("fly"),)
        assert info.metadata == {"task": "fly", "layout": 3}


def test_an_instruction_that_changes_on_the_way_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [episode(3)])
    replace(path, "infos/mission", ["go", "go", "stop", "stop"])
    with pytest.raises(DatasetError, match=r"episode 0, step 2: the instruction in 'infos.mission' changes to 'stop'"):
        open_dataset(path, instruction_key="mission").episode(0)


def test_options_that_do_not_exist_or_fit_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    with pytest.raises(UsageError, match="no option 'word'; there are: instruction, instruction_key, views, action_names"):
        open_dataset(path, word="x")
    with pytest.raises(UsageError, match="option 'views' is a list of texts, got 'image'"):
        open_dataset(path, views="image")
    with pytest.raises(UsageError, match="option 'instruction' is a text, got 3"):
        open_dataset(path, instruction=3)


def test_the_fingerprint_covers_the_words_given_and_not_the_view(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    plain = open_dataset(path).fingerprint
    assert open_dataset(path, views=["wrist"]).fingerprint == plain
    assert open_dataset(path / "data").fingerprint == plain
    assert len({plain, open_dataset(path, instruction="x").fingerprint, open_dataset(path, instruction="y").fingerprint}) == 3


def test_reading_pictures_touches_only_their_chunks(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (65, 64, 64, 3), dtype=np.uint8)  # chunks of 5 pictures
    path = write(tmp_path / "d", [episode(64, frames={"image": frames})])
    with h5py.File(hdf5(path)) as file:
        chunk = file["episode_0/observations/image"].id.get_chunk_info(6)
    with hdf5(path).open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\0" * 64)
    dataset = open_dataset(path)
    assert np.array_equal(dataset.frames(0, "image", 0, 30), frames[:30])
    assert np.array_equal(dataset.frames(0, "image", 35, 65), frames[35:])
    with pytest.raises(DatasetError, match=r"main_data.hdf5, episode 0, view 'image', observations 29 to 30: cannot be read"):
        dataset.frames(0, "image", 29, 31)


# --- damage -----------------------------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    content = hdf5(path).read_bytes()
    hdf5(path).write_bytes(content[: len(content) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no metadata": (lambda p: (p / "data" / "metadata.json").unlink(), "not a dataset of a known format"),
    "metadata is no JSON": (lambda p: (p / "data" / "metadata.json").write_text("{"), "metadata.json: cannot be read as JSON"),
    "metadata is a list": (lambda p: (p / "data" / "metadata.json").write_text("[]"), "does not hold a JSON object"),
    "no HDF5 file": (lambda p: hdf5(p).unlink(), "main_data.hdf5: cannot be read (FileNotFoundError"),
    "HDF5 cut off": (cut, "main_data.hdf5: cannot be read (OSError"),
    "HDF5 empty": (lambda p: hdf5(p).write_bytes(b""), "main_data.hdf5: cannot be read (OSError"),
    "fewer episodes": (lambda p: edit_metadata(p, lambda m: m.update(total_episodes=4)), "3 episodes where metadata.json speaks of 4"),
    "no episodes": (lambda p: edit_metadata(p, lambda m: m.update(total_episodes=0)), "speaks of 0 episodes"),
    "unknown flavour": (lambda p: edit_metadata(p, lambda m: m.update(data_format="xml")), "names the data format 'xml'"),
    "view gone": (lambda p: edit_metadata(p, lambda m: m["guerdon"]["views"].append("top")), "has no view 'top'; there are: image, wrist"),
    "views odd": (lambda p: edit_metadata(p, lambda m: m["guerdon"].update(views=[3])), "metadata.json: 'guerdon', 'views' holds"),
    "kinds odd": (lambda p: edit_metadata(p, lambda m: m["guerdon"]["privileged"].update(progress="x")), "'guerdon', 'privileged' holds"),
    "space odd": (
        lambda p: edit_metadata(p, lambda m: [m["guerdon"].pop("action_names"), m.update(action_space="[]")]),
        "metadata.json: cannot be read (TypeError",
    ),
    "ours is text": (lambda p: edit_metadata(p, lambda m: m.update(guerdon="x")), "'guerdon' is not a JSON object"),
    "no rewards": (lambda p: replace(p, "rewards", None), "episode 0: has no rewards"),
    "no actions": (lambda p: replace(p, "actions", None), "episode 0: has no array of actions"),
    "no pictures": (lambda p: [replace(p, f"observations/{v}", None) for v in ("image", "wrist")], "episode 0: has no pictures"),
    "float pictures": (
        lambda p: [replace(p, f"observations/{v}", np.zeros((11, 4, 4, 3), np.float32)) for v in ("image", "wrist")],
        "has no pictures: uint8 (T+1, H, W, 3) or (T+1, 3, H, W); 'image' is float32, 'wrist' is float32",
    ),
    "T pictures": (lambda p: replace(p, "observations/image", np.zeros((10, 4, 4, 3), np.uint8)), "10 pictures; 10 transitions need 11"),
    "T pictures later": (lambda p: replace(p, "observations/image", np.zeros((12, 4, 4, 3), np.uint8), 2), "2: view 'image' has 12"),
    "view missing later": (lambda p: replace(p, "observations/image", None, 1), "episode 1: view 'image' is missing"),
    "fewer actions": (lambda p: replace(p, "actions", np.zeros(9, int)), "episode 0: has 10 rewards, but 'actions' has 9 entries"),
    "action dictionary": (lambda p: [replace(p, "actions", None), replace(p, "actions/x", np.zeros(10))], "no array of actions"),
    "action unknown": (lambda p: replace(p, "actions", np.full(11, 9), 1), "episode 1, step 0: action 9 is not among the 7 actions"),
    "action dtype later": (lambda p: replace(p, "actions", np.zeros(11), 1), "episode 1: 'actions' is of dtype float64"),
    "reward NaN": (lambda p: replace(p, "rewards", np.r_[np.zeros(3), np.nan, np.zeros(6)]), "episode 0, step 3: the reward is nan"),
    "reward text": (lambda p: replace(p, "rewards", ["x"] * 11, 1), "episode 1: 'rewards' is of dtype object"),
    "span too long": (
        lambda p: h5py.File(hdf5(p), "r+")["episode_1"].attrs.update(
            guerdon=json.dumps({"annotations": [{"instruction": "x", "spans": [[0, 99, "y"]]}]})
        ),
        "episode 1: episode 1 has 11 transitions, but the span of 'y' ends at 99",
    ),
    "annotations odd": (
        lambda p: h5py.File(hdf5(p), "r+")["episode_1"].attrs.update(guerdon='{"annotations": [3]}'),
        "episode 1: cannot be read (TypeError",
    ),
    "privileged short": (lambda p: replace(p, "infos/privileged/progress", np.zeros(3)), "privileged field 'progress': is missing or"),
}


def read_all(path: Path) -> list[Any]:
    dataset = open_dataset(path)
    return [
        (
            info,
            [dataset.frames(info.index, view, 0, info.length + 1).tobytes() for view in dataset.views],
            dataset.actions(info.index).tolist(),
            dataset.rewards(info.index).tolist(),
            {name: values.tobytes() for name, values in dataset.privileged(info.index).items()},
        )
        for info in dataset.episodes()
    ]


def outcome(path: Path) -> list[Any] | DatasetError:
    """What reading everything gives; any other error passes through."""
    try:
        return read_all(path)
    except DatasetError as error:
        return error


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_with_its_place(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    path = write(tmp_path / "d")
    damage(path)
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        read_all(path)
    assert str(path) in str(caught.value) or "metadata.json" in str(caught.value)


def test_infinite_continuous_actions_are_refused_by_step(tmp_path: Path) -> None:
    path = write(tmp_path / "d", [episode(3, actions=np.zeros((3, 2)))], action_names=())
    replace(path, "actions", np.array([[0, 0], [0, np.inf], [0, 0]]))
    with pytest.raises(DatasetError, match=r"episode 0, step 1: the action is inf"):
        open_dataset(path).actions(0)


def test_an_episode_without_transitions_opens_and_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    with h5py.File(hdf5(path), "r+") as file:
        for name in ("rewards", "actions", "terminations", "truncations"):
            del file[f"episode_0/{name}"]
            file[f"episode_0/{name}"] = np.zeros(0)
    replace(path, "observations/image", np.zeros(0))
    replace(path, "observations/wrist", np.zeros(0))
    with h5py.File(hdf5(path), "r+") as file:
        file["episode_0"].attrs["guerdon"] = json.dumps({"annotations": [{"instruction": "x", "spans": []}]})
    dataset = open_dataset(path)
    assert dataset.episode(0).length == 0
    assert not dataset.episode(0).terminated
    assert dataset.actions(0).shape == dataset.rewards(0).shape == (0,)
    assert dataset.episode(1).length == 11


def test_an_episode_of_one_transition_is_whole(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "d", [episode(1)]))
    assert dataset.episode(0).length == 1
    assert dataset.frames(0, "image", 0, 2).shape == (2, 8, 10, 3)


def test_places_outside_are_refused(tmp_path: Path) -> None:
    dataset = open_dataset(write(tmp_path / "d"))
    with pytest.raises(IndexError, match="no episode 3"):
        dataset.episode(3)
    with pytest.raises(IndexError):
        dataset.episode(-1)
    with pytest.raises(KeyError):
        dataset.frames(0, "top", 0, 1)
    with pytest.raises(DatasetError, match=r"\[5, 12\) lie outside the 11"):
        dataset.frames(0, "image", 5, 12)


def test_folders_that_are_no_dataset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing here"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(DatasetError, match=r"not a dataset of a known format; known are: .*minari"):
        open_dataset(tmp_path)


SMALL = [episode(3, seed, frames={"image": np.full((4, 4, 4, 3), seed + 1, np.uint8)}) for seed in range(2)]


@settings(max_examples=80)
@given(data=st.data())
def test_random_damage_gives_an_error_or_the_truth(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    pristine, damaged = root / "pristine", root / "damaged"
    if not pristine.exists():
        write(pristine, SMALL)
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(pristine, damaged)
    content = bytearray(hdf5(pristine).read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] ^= data.draw(st.integers(1, 255))
    hdf5(damaged).write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    found = outcome(damaged)
    assert found == read_all(pristine) or str(hdf5(damaged)) in str(found)


@settings(max_examples=80)
@given(data=st.data())
def test_random_metadata_gives_an_error_or_a_dataset(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "junk"
    if not path.exists():
        write(path, SMALL)
        (path / "metadata.pristine").write_bytes((path / "data" / "metadata.json").read_bytes())
    metadata = json.loads((path / "metadata.pristine").read_bytes())
    section = data.draw(st.sampled_from([metadata, metadata["guerdon"]]))
    plain = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    junk = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=3), plain, max_size=3)
    section[data.draw(st.sampled_from(sorted(section)))] = data.draw(junk)
    (path / "data" / "metadata.json").write_text(json.dumps(metadata))
    found = outcome(path)
    assert isinstance(found, list) or "metadata.json" in str(found) or "main_data.hdf5" in str(found)


def test_opening_imports_neither_torch_nor_a_simulator(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    code = (
        "import sys; from guerdon.datasets import open_dataset; from guerdon import samples, frames; from guerdon.datasets import check;"
        f"d = open_dataset({str(path)!r}); d.frames(0, 'image', 0, 2);"
        "print({'torch', 'minigrid', 'pygame', 'minari', 'gymnasium'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")
