"""What it costs to learn from pictures that are larger than the memory: updates a second with pictures in a mapped file, in a process whose
memory is limited to a quarter of the data, beside the same training with all pictures in memory and no limit.

    python benchmarks/memory.py [--policy both] [--rounds 6] [--updates 8] [--beyond 600] [--folder FOLDER]

The data are camera pictures of 128 x 128 pixels of noise, which no file system and no cache can make smaller, in episodes of 100 to 200
steps. The limit is that of a control group (version 1 or 2 of Linux), which counts everything: the interpreter, the networks, and the pages
of files that the system keeps in memory. It is what a training from a few pictures takes, and `--beyond` MB. The data are 4 times the
limit. The file is written under the limit too; then the system's cache is emptied.

Both trainings are processes of one thread that run at the same time and make their updates in turns, so that a busy neighbour disturbs both
alike; the ratio is the median over the turns. Needs the right to make a control group (root, as a rule) and about 5 to 8 GB of disk and of
memory for each policy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SIDE = 128
PICTURE = 3 * SIDE * SIDE
ACTIONS = 7
EPISODE = (100, 200)
SETTINGS: dict[str, dict[str, Any]] = {
    "remembering": {"memory": True, "sequences": 8, "context": 64},
    "single": {"memory": False, "sequences": 256, "context": 1},
}
TIMES = 4
"""The data, in limits."""
MEGABYTE = 10**6
FEW = 2000
"""Pictures of the trial that tells how much memory a training takes without them."""


# the child: one training


def child(asked: Mapping[str, Any]) -> None:
    """Builds the data, says so, then makes as many updates as each line of standard input says, and tells the seconds."""
    from guerdon.pictures import PicturePlace, is_mapped
    from guerdon.training.offline import use_one_thread
    from guerdon.transitions import Sampler, Transitions

    use_one_thread()
    settings = SETTINGS[asked["policy"]]
    place = PicturePlace(Path(asked["folder"]), 0) if asked["folder"] else None
    began = time.perf_counter()
    dataset = noise_dataset(asked["pictures"])
    transitions = Transitions.build(dataset, views=("camera",), pictures=place, memory=settings["memory"])
    algorithm = iql(transitions)
    sampler = Sampler(transitions, sequences=settings["sequences"], context=settings["context"], seed=0)
    camera = transitions.frames["camera"]
    tell({"mapped": is_mapped(camera), "bytes": camera.nbytes, "seconds": time.perf_counter() - began})
    for line in sys.stdin:
        began, processor = time.perf_counter(), time.process_time()
        waited = 0.0
        for _ in range(int(line)):
            drawing = time.perf_counter()
            batch = sampler.draw()
            waited += time.perf_counter() - drawing
            algorithm.update(batch)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows = len(batch.rows.previous_action) + (0 if batch.prefix is None else len(batch.prefix.previous_action))
        tell({"seconds": seconds, "processor": processor, "drawing": waited, "peak": peak, "rows": rows})


def iql(transitions: Any) -> Any:
    from guerdon import discover

    chosen = discover.load("algorithms", "iql")
    return chosen(transitions, chosen.Config(), seed=0, updates=10_000)


def tell(record: Mapping[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def noise_dataset(pictures: int) -> Any:
    """Episodes with `pictures` pictures in all, made again from their number whenever they are read."""
    import numpy as np

    from guerdon.interfaces import Dataset
    from guerdon.records import Annotation, EpisodeInfo

    random = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) + len(lengths) < pictures:
        lengths.append(int(random.integers(EPISODE[0], EPISODE[1] + 1)))

    class Noise(Dataset):
        path = Path("noise")
        views = ("camera",)
        action_names = tuple(f"action {number}" for number in range(ACTIONS))
        fingerprint = f"s256:noise{pictures}"
        environment: Mapping[str, Any] = {}

        def __len__(self) -> int:
            return len(lengths)

        def episode(self, index: int) -> EpisodeInfo:
            return EpisodeInfo(index, lengths[index], True, False, (Annotation(f"do task {index % 10}"),), {})

        def frames(self, index: int, view: str, start: int, stop: int) -> Any:
            del view
            noise = np.random.Generator(np.random.SFC64(index)).bytes((lengths[index] + 1) * PICTURE)
            return np.frombuffer(noise, np.uint8).reshape(-1, SIDE, SIDE, 3)[start:stop]

        def actions(self, index: int) -> Any:
            return np.random.default_rng(index).integers(0, ACTIONS, lengths[index])

        def rewards(self, index: int) -> Any:
            return np.random.default_rng(index).random(lengths[index])

        def privileged(self, index: int) -> Mapping[str, Any]:
            del index
            return {}

    return Noise()


# the parent


class Group:
    """A memory control group of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 2 if (path / "memory.max").exists() else 1

    @classmethod
    def make(cls) -> Group:
        """Exits with what to do if there can be none."""
        for folder in _candidates():
            path = folder / f"guerdon-benchmark-{os.getpid()}"
            try:
                path.mkdir()
            except OSError:
                continue
            if any((path / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
                return cls(path)
            path.rmdir()
        sys.exit(
            "No memory control group can be made. Run as root on Linux; in a container, give it the right to (docker run --privileged"
            " --cgroupns=private), or run it inside: systemd-run --scope -p Delegate=yes python benchmarks/memory.py"
        )

    def limit(self, size: int) -> None:
        """Limits everything: there is no swap to escape to."""
        (self.path / ("memory.max" if self.version == 2 else "memory.limit_in_bytes")).write_text(str(size))
        try:
            if self.version == 2:
                (self.path / "memory.swap.max").write_text("0")
            else:
                (self.path / "memory.memsw.limit_in_bytes").write_text(str(size))
        except OSError:
            pass  # swap is not counted on this machine

    def enter(self) -> None:
        """Moves the present process into it."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int | None:
        path = self.path / ("memory.peak" if self.version == 2 else "memory.max_usage_in_bytes")
        return int(path.read_text()) if path.exists() else None

    def remove(self) -> None:
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:  # its last process is still ending
                time.sleep(0.1)


def _candidates() -> Iterator[Path]:
    """Folders in which a group may be made: those above this process's own, inner ones first."""
    for line in Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        inner = Path(path.strip("/"))
        yield from dict.fromkeys(mount / folder for folder in (inner, *inner.parents) if (mount / folder).is_dir())


class Training:
    """A child process that trains when it is told to."""

    def __init__(self, policy: str, pictures: int, *, folder: Path | None = None, group: Group | None = None) -> None:
        asked = {"policy": policy, "pictures": pictures, "folder": str(folder or "")}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | threads,
            preexec_fn=group.enter if group else None,
        )
        self.built: dict[str, Any] = {}

    def build(self) -> None:
        self.built = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"A training ended early with exit status {self.process.wait()}: -9 means that it ran out of memory; see --beyond.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def updates(self, count: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.kill()  # there is nothing that it would have to put in order
        self.process.communicate()


@contextmanager
def training(*arguments: Any, **settings: Any) -> Iterator[Training]:
    process = Training(*arguments, **settings)
    try:
        process.build()
        yield process
    finally:
        process.end()


@contextmanager
def group_of(size: int) -> Iterator[Group]:
    group = Group.make()
    try:
        group.limit(size)
        yield group
    finally:
        group.remove()


def empty_the_cache() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        print(f"  the system's cache could not be emptied ({error.strerror}): the first updates may be too fast")


def benchmark(policy: str, arguments: argparse.Namespace, folder: Path) -> float:
    settings = SETTINGS[policy]
    print(f"{policy}: IQL, {settings['sequences']} sequences of up to {settings['context']} transitions")
    with training(policy, FEW) as small:
        base = small.updates(6)["peak"] - FEW * PICTURE
    limit = base + arguments.beyond * MEGABYTE
    pictures = TIMES * limit // PICTURE
    free = shutil.disk_usage(folder).free
    if free < 1.1 * pictures * PICTURE:
        sys.exit(f"{folder} has {free / 1e9:.1f} GB left, {1.1 * pictures * PICTURE / 1e9:.1f} GB are needed: choose another --folder.")
    empty_the_cache()  # pages that another group has read would not count
    with ExitStack() as stack:
        group = stack.enter_context(group_of(limit))
        beyond = stack.enter_context(training(policy, pictures, folder=folder / policy, group=group))
        within = stack.enter_context(training(policy, pictures))
        size = beyond.built["bytes"]
        assert beyond.built["mapped"]
        assert not within.built["mapped"]
        written = f"written in {beyond.built['seconds']:.0f} s"
        print(
            f"  limit {limit / 1e9:.2f} GB (version {group.version}), pictures {size / 1e9:.2f} GB = {size / limit:.1f} limits, {written}"
        )
        empty_the_cache()
        within.updates(2)
        turns = [(beyond.updates(arguments.updates), within.updates(arguments.updates)) for _ in range(arguments.rounds)]
        peak = group.peak()
    shutil.rmtree(folder / policy)
    for name, side in (("mapped, limited", 0), ("in memory, no limit", 1)):
        rate, processor, drawing = (
            statistics.median(turn[side][what] / arguments.updates for turn in turns) for what in ("seconds", "processor", "drawing")
        )
        print(
            f"  {name:20} {1 / rate:6.2f} updates/s, each {1000 * rate:6.0f} ms, {1000 * processor:6.0f} ms of processor,"
            f" {1000 * drawing:5.0f} ms to draw {turns[-1][side]['rows']} pictures; largest process {turns[-1][side]['peak'] / 1e9:.2f} GB"
        )
    ratios = [other["seconds"] / mapped["seconds"] for mapped, other in turns]
    most = "unknown" if peak is None else f"{peak / 1e9:.2f} GB"
    print(f"  ratio {statistics.median(ratios):.2f} (turns {min(ratios):.2f} to {max(ratios):.2f}), peak of the group {most}", flush=True)
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=[*SETTINGS, "both"], default="both")
    parser.add_argument("--rounds", type=int, default=6, help="turns that each training has")
    parser.add_argument("--updates", type=int, default=8, help="updates of each turn")
    parser.add_argument("--beyond", type=int, default=600, help="MB of the limit beyond what a training from few pictures takes")
    parser.add_argument("--folder", type=Path, default=None, help="for the files, on the disk that is to be measured")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended early"))  # without leaving gigabytes behind
    folder = Path(tempfile.mkdtemp(prefix="guerdon-memory-", dir=arguments.folder))
    try:
        for policy in SETTINGS if arguments.policy == "both" else [arguments.policy]:
            benchmark(policy, arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
