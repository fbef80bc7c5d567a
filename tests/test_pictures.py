"""Pictures in memory and in a mapped file are the same pictures; what is in the file is what was written, or it is made again."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import threading
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guerdon import transitions
from guerdon.datasets import open_dataset
from guerdon.errors import DatasetError, UsageError, WriteFailed
from guerdon.picture_tiles import Pictures
from guerdon.pictures import PicturePlace, available_memory, blocks, expect, gather, is_mapped, keep, memory_for_pictures
from guerdon.recipes.train import Config, train
from guerdon.records import Frames
from guerdon.runs import Run
from guerdon.transitions import Batch, Sampler, Transitions
from tests import rated_runs
from tests.memory import MemoryDataset, MemoryEpisode
from tests.picture_children import COUNTS, Child, noise

GIB = 1 << 30


def kept(folder: Path, counts: Sequence[int], *, name: str = "full", fingerprint: str = "s256:abc", side: int = 4) -> Frames:
    return keep(PicturePlace(folder, 0), name, fingerprint, counts, lambda position: noise(position, counts[position], side))


def whole(counts: Sequence[int], side: int = 4) -> Frames:
    return np.concatenate([noise(position, count, side) for position, count in enumerate(counts)])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# equal pictures


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    side=st.integers(1, 60),
    name=st.text(min_size=1, max_size=60),
    chosen=st.lists(st.integers(0, 10_000), max_size=30),
    most=st.integers(1, 100_000),
)
@settings(max_examples=40, deadline=None)
def test_pictures_in_a_file_are_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], side: int, name: str, chosen: list[int], most: int
) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    mapped, expected = kept(folder, counts, name=name, side=side), whole(counts, side)
    assert is_mapped(mapped)
    assert not mapped.flags.writeable
    assert np.array_equal(mapped, expected)
    observations = np.array(chosen, dtype=np.int64) % len(expected)
    gathered = gather(mapped, observations)
    assert gathered.flags.writeable
    assert np.array_equal(gathered, expected[observations])
    assert np.array_equal(np.concatenate(list(blocks(mapped, most))), expected)
    assert all(block.nbytes <= max(most, block[0].nbytes) for block in blocks(mapped, most))
    (written,) = folder.iterdir()
    assert np.array_equal(np.load(written), expected)  # numpy alone can read it
    in_memory = keep(PicturePlace(folder, expected.nbytes), name, "s256:abc", counts, lambda k: noise(k, counts[k], side))
    assert not is_mapped(in_memory)
    assert np.array_equal(in_memory, expected)


def test_what_is_expected_may_be_anything_in_any_order(tmp_path: Path) -> None:
    mapped = kept(tmp_path, [40, 30], side=50)
    for observations in ([], [0], [69], [69, 0, 0, 35, 36, 34], list(range(70))):
        expect(mapped, np.array(observations, dtype=np.int64))
    expect(whole([3]), np.array([0, 1]))


def dataset(kind: type[MemoryDataset] = MemoryDataset, **changes: Any) -> MemoryDataset:
    return kind([MemoryEpisode(length, f"task {length % 3}", rewards=[0.5] * length) for length in (7, 3, 12, 1, 5)], **changes)


def of_kind(kind: str) -> MemoryDataset:
    return {"different": dataset(Different), "of tiles": dataset(size=40), "repeating": dataset(Repeating)}[kind]


def columns(batch: Batch) -> list[Any]:
    found: list[Any] = [batch.action, batch.reward, batch.terminal, batch.acted, batch.known]
    for rows in (batch.rows, batch.prefix):
        if rows is not None:
            pictures = [frames.pixels() if isinstance(frames, Pictures) else frames for frames in rows.frames.values()]
            found += [rows.previous_action, rows.lengths, rows.instruction, rows.tokens, *pictures]
    return [column.tolist() for column in found]


class Different(MemoryDataset):
    """Noise, large enough for policies without a memory."""

    times = 1

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        return np.concatenate([noise(100 * index + step // self.times, 1, 40) for step in range(start, stop)])


class Repeating(Different):
    """Noise, each picture of which is seen twice in a row."""

    times = 2


@pytest.mark.parametrize("kind", ["different", "of tiles", "repeating"])
@pytest.mark.parametrize(("memory", "context"), [(True, 64), (True, 4), (True, 1), (False, 1), (False, 3)])
def test_batches_are_the_same_wherever_pictures_lie(tmp_path: Path, kind: str, memory: bool, context: int) -> None:
    data = of_kind(kind)
    in_memory = Transitions.build(data, memory=memory)
    mapped = Transitions.build(data, memory=memory, pictures=PicturePlace(tmp_path, 0))
    found = mapped.catalogues["full"]
    assert (found is not None) == (memory and kind != "different")
    assert (found is not None and found.tiles is not None) == (memory and kind == "of tiles")
    assert is_mapped(mapped.frames["full"])
    assert not is_mapped(in_memory.frames["full"])
    assert mapped.fingerprint == in_memory.fingerprint
    assert mapped.spec == in_memory.spec
    first, second = (Sampler(each, sequences=3, context=context, seed=1) for each in (in_memory, mapped))
    for _ in range(12):  # more than one epoch, so that the look ahead crosses its end
        assert columns(first.draw()) == columns(second.draw())
        assert first.state() == second.state()  # what was looked at ahead was not drawn
    third = Sampler(mapped, sequences=3, context=context, seed=1)
    third.load_state(second.state())
    assert columns(third.draw()) == columns(first.draw())


@pytest.mark.parametrize("kind", ["different", "of tiles", "repeating"])
@pytest.mark.parametrize(("memory", "context"), [(True, 4), (False, 1), (False, 3)])
def test_what_is_read_ahead_is_what_the_next_batch_gathers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, memory: bool, context: int
) -> None:
    expected: list[set[int]] = []
    gathered: list[set[int]] = []

    def note_expected(pictures: Frames, observations: Any) -> None:
        expected.append(set(observations.tolist()))

    def note_gathered(pictures: Frames, observations: Any) -> Frames:
        gathered[-1] |= set(observations.tolist())
        return gather(pictures, observations)

    monkeypatch.setattr(transitions, "expect", note_expected)
    monkeypatch.setattr(transitions, "gather", note_gathered)
    data = Transitions.build(of_kind(kind), memory=memory, pictures=PicturePlace(tmp_path, 0))
    sampler = Sampler(data, sequences=3, context=context, seed=1)
    for _ in range(12):
        gathered.append(set())
        sampler.draw()
    assert gathered[1:] == expected[:-1]
    assert any(gathered) == (kind != "of tiles" or not memory)


class TwoViews(MemoryDataset):
    """Pictures of two cameras, the second of which is four times larger."""

    def __init__(self) -> None:
        super().__init__([MemoryEpisode(3), MemoryEpisode(2)], size=8)
        self.views = ("left", "right")

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        side = 8 if view == "left" else 16
        return np.full((stop - start, side, side, 3), index, np.uint8)


@pytest.mark.parametrize(
    ("memory", "expected"), [(0, (True, True)), (7 * 8 * 8 * 3, (False, True)), (7 * 16 * 16 * 3, (False, True)), (7 * 960, (False, False))]
)
def test_all_views_of_a_process_share_its_memory(tmp_path: Path, memory: int, expected: tuple[bool, bool]) -> None:
    data = Transitions.build(TwoViews(), views=("left", "right"), pictures=PicturePlace(tmp_path, memory))
    assert tuple(is_mapped(data.frames[view]) for view in ("left", "right")) == expected
    assert len(files(tmp_path)) == sum(expected)


def test_pictures_of_two_sizes_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    class Growing(MemoryDataset):
        def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
            return np.zeros((stop - start, 8 + index, 8, 3), np.uint8)

    with pytest.raises(DatasetError, match="episode 1: view 'full' has pictures"):
        Transitions.build(Growing([MemoryEpisode(2), MemoryEpisode(2)]), pictures=PicturePlace(tmp_path, 0))
    assert files(tmp_path) == []


class Large(MemoryDataset):
    """20 episodes of 21 pictures of 50 kB: 20 MB."""

    def __init__(self) -> None:
        super().__init__([MemoryEpisode(20) for _ in range(20)], size=128)


SIZE = 20 * 21 * 128 * 128 * 3


@pytest.mark.parametrize("mapped", [False, True])
def test_reading_takes_no_more_memory_than_what_is_kept(tmp_path: Path, mapped: bool) -> None:
    tracemalloc.start()
    try:
        data = Transitions.build(Large(), pictures=PicturePlace(tmp_path, 0) if mapped else None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert data.frames["full"].nbytes == SIZE
    assert peak < (0.3 if mapped else 1.3) * SIZE


# the file


def test_a_file_is_written_once(tmp_path: Path) -> None:
    read: list[int] = []

    def reading(position: int) -> Frames:
        read.append(position)
        return noise(position, 3)

    for _ in range(3):
        keep(PicturePlace(tmp_path, 0), "full", "s256:abc", [3, 3, 3], reading)
    assert read == [0, 1, 2, 0, 0]  # the first episode tells the size
    assert len(files(tmp_path)) == 1


class Other(MemoryDataset):
    """The same episodes with other pictures."""

    @property
    def fingerprint(self) -> str:
        return "s256:other"

    def frames(self, index: int, view: str, start: int, stop: int) -> Frames:
        return 255 - super().frames(index, view, start, stop)


def test_another_dataset_gets_a_file_of_its_own(tmp_path: Path) -> None:
    episodes = [MemoryEpisode(3), MemoryEpisode(2)]
    place = PicturePlace(tmp_path, 0)
    one, other = (Transitions.build(kind(episodes), pictures=place) for kind in (MemoryDataset, Other))
    fewer = Transitions.build(MemoryDataset(episodes), episodes=[1], pictures=place)
    assert np.array_equal(other.frames["full"], 255 - one.frames["full"])
    assert np.array_equal(fewer.frames["full"], one.frames["full"][4:])
    assert len(files(tmp_path)) == 3


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def _cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _without_mark(path: Path) -> None:
    np.save(path, np.load(path))


def _changed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(300)
        byte = file.read(1)[0]
        file.seek(300)
        file.write(bytes([byte ^ 1]))
    os.utime(path, (1, 1))


def _foreign(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"s256:abc", b"s256:xyz"))


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" " * 2000)


def _mark_of_another_kind(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b'{"guerdon')] + json.dumps([1]).encode())


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _no_array(path: Path) -> None:
    path.write_bytes(b"these are no pictures")


DAMAGES = [_cut_off, _cut_in_half, _without_mark, _changed, _foreign, _longer, _mark_of_another_kind, _empty, _no_array]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_made_again(tmp_path: Path, damage: Any) -> None:
    counts = [5, 2]
    kept(tmp_path, counts)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    damage(path)
    assert path.read_bytes() != sound
    assert np.array_equal(kept(tmp_path, counts), whole(counts))
    assert np.load(path).shape == (7, 4, 5, 3)
    assert len(files(tmp_path)) == 1


def test_a_copied_file_is_compared_and_kept(tmp_path: Path) -> None:
    counts = [5, 2]
    kept(tmp_path / "first", counts)
    shutil.copytree(tmp_path / "first", tmp_path / "second", copy_function=shutil.copy)  # forgets when it was changed
    (path,) = (tmp_path / "second").iterdir()
    os.utime(path, (1, 1))
    before = path.stat()
    assert np.array_equal(kept(tmp_path / "second", counts), whole(counts))
    after = path.stat()
    assert before.st_ino == after.st_ino  # not written again
    assert before.st_mtime_ns != after.st_mtime_ns  # and trusted from now on


# a disk that is full


@pytest.fixture
def small_disk() -> Any:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # the kernel then refuses to write, as on a full disk
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_fills_up_is_told_with_what_to_do(tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(WriteFailed, match=r"cannot write: File too large.*--pictures-in-memory"):
        kept(tmp_path, [100, 100])
    assert files(tmp_path) == []


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10 * GIB, used=10 * GIB, free=1000))
    with pytest.raises(WriteFailed, match=r"the disk has 0.0 GiB left, and 0.0 GiB are needed.*--pictures-in-memory"):
        kept(tmp_path, [100, 100])
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteFailed, match=r"cannot write.*--pictures-in-memory"):
        kept(tmp_path / "file" / "pictures", [3])


# several processes


def test_what_is_killed_while_writing_leaves_no_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    child = Child(folder, tmp_path / "log", stop_at=5)
    assert child.reached.wait(60)
    assert [name for name in files(folder) if name.endswith(".part")]  # it was writing indeed
    os.kill(child.process.pid or 0, signal.SIGKILL)
    assert child.end() == -signal.SIGKILL
    assert not [name for name in files(folder) if name.endswith(".npy")]
    assert np.array_equal(kept(folder, COUNTS), whole(COUNTS))
    assert [Path(name).suffix for name in files(folder)] == [".npy"]  # what was left is gone


def test_of_two_processes_one_writes_and_the_other_waits(tmp_path: Path) -> None:
    folder, logs = tmp_path / "pictures", [tmp_path / "first", tmp_path / "second"]
    first = Child(folder, logs[0], stop_at=5)
    assert first.reached.wait(60)
    second = Child(folder, logs[1], stop_at=0)
    second.hold.set()
    assert second.reached.wait(60)
    first.hold.set()
    assert (first.end(), second.end()) == (0, 0)
    assert [len(log.read_text().split()) for log in logs] == [len(COUNTS), 1]
    assert len(files(folder)) == 1


def test_nobody_waits_for_a_process_that_died(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    child = Child(folder, tmp_path / "log", stop_at=5)
    assert child.reached.wait(60)
    found: list[Frames] = []
    waiting = threading.Thread(target=lambda: found.append(kept(folder, COUNTS)))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    os.kill(child.process.pid or 0, signal.SIGKILL)
    waiting.join(60)
    child.end()
    assert np.array_equal(found[0], whole(COUNTS))


def test_without_locks_the_last_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def unsupported(handle: int, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    threads = [threading.Thread(target=kept, args=(tmp_path, COUNTS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert np.array_equal(kept(tmp_path, COUNTS), whole(COUNTS))
    assert len(files(tmp_path)) == 1


# how much memory there is


def machine(root: Path, texts: Mapping[str, str], available: int | None = 8 * GIB) -> Path:
    if available is not None:
        texts = {**texts, "proc/meminfo": f"MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: {available >> 10} kB\n"}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


VERSION_2 = {
    "proc/self/cgroup": "0::/user/job\n",
    "sys/fs/cgroup/user/job/memory.max": f"{4 * GIB}\n",
    "sys/fs/cgroup/user/job/memory.current": f"{3 * GIB}\n",
    "sys/fs/cgroup/user/job/memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB}\n",
}
VERSION_1 = {
    "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{2 * GIB}\n",
    "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{GIB}\n",
    "sys/fs/cgroup/memory/box/memory.stat": f"cache 7\ntotal_inactive_file {GIB // 2}\ntotal_active_file 0\n",
}
IN_A_CONTAINER = {name.replace("/box", ""): text for name, text in VERSION_1.items()} | {"proc/self/cgroup": "4:memory:/docker/abc\n"}
"""The path that is told is that of the machine outside."""
NO_LIMIT = f"{(1 << 63) - 4096}\n"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8 * GIB),
        (VERSION_2, 3 * GIB),
        (VERSION_2 | {"sys/fs/cgroup/user/job/memory.max": "max\n"}, 8 * GIB),
        (VERSION_2 | {"sys/fs/cgroup/user/memory.max": f"{GIB}\n", "sys/fs/cgroup/user/memory.current": "0\n"}, GIB),
        (VERSION_2 | {"sys/fs/cgroup/user/job/memory.stat": "rubbish"}, GIB),
        (VERSION_2 | {"sys/fs/cgroup/user/job/memory.current": f"{9 * GIB}\n"}, 0),
        (VERSION_1, 3 * GIB // 2),
        (VERSION_1 | {"sys/fs/cgroup/memory/box/memory.limit_in_bytes": NO_LIMIT}, 8 * GIB),
        (IN_A_CONTAINER, 3 * GIB // 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n", "sys/fs/cgroup/memory.current": "0\n"}, GIB),
        ({"proc/self/cgroup": "not what\nanybody:expects\n"}, 8 * GIB),
    ],
)
def test_the_least_of_all_limits_counts(tmp_path: Path, changes: Mapping[str, str], expected: int) -> None:
    assert available_memory(machine(tmp_path, changes)) == expected


def test_without_linux_half_of_the_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
    assert available_memory(tmp_path) == 2_048_000
    monkeypatch.delattr(os, "sysconf")
    assert available_memory(tmp_path) is None
    assert memory_for_pictures(3, root=tmp_path) > 1 << 60


def test_this_machine_has_memory() -> None:
    found = available_memory()
    assert found is not None
    assert 0 < found < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_processes_side_by_side_share_half_of_it(tmp_path: Path) -> None:
    root = machine(tmp_path, {})
    assert memory_for_pictures(1, root=root) == 4 * GIB
    assert memory_for_pictures(4, root=root) == GIB
    assert memory_for_pictures(2, 3.0, root=root) == 3 * GIB // 2
    assert memory_for_pictures(2, 0, root=root) == 0


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_memory_that_cannot_be_is_refused(wrong: float) -> None:
    with pytest.raises(UsageError, match="pictures_in_memory"):
        memory_for_pictures(1, wrong)
    with pytest.raises(UsageError, match="pictures_in_memory"):
        Config(run=Path("run"), pictures_in_memory=wrong)


# the command


def test_policies_are_the_same_wherever_their_pictures_lie(tmp_path: Path) -> None:
    data = rated_runs.robot_data(tmp_path / "data")
    weights = []
    for name, gibibytes in (("memory", None), ("disk", 0.0)):
        run = rated_runs.begin(data, tmp_path / name)
        for first in (0, 1):
            common: dict[str, Any] = {"algorithm": "bc", "views": ("corner",), "first_seed": first, "seeds": 1, "updates": 2, "jobs": 1}
            train(run=run.path, **common, pictures_in_memory=gibibytes, quiet=True)
        weights.append((run.path / "policies/bc/seed-1/policy.safetensors").read_bytes())
        assert len(files(run.path / "pictures")) == (0 if gibibytes is None else 1)
    assert weights[0] == weights[1]
    assert Run.open(tmp_path / "disk").dataset_fingerprint == open_dataset(data).fingerprint
