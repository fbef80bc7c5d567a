"""How fast reward models learn from rated pictures and score recorded ones on one thread, and in how much memory.

    python benchmarks/reward_model.py [--quick] [--only fit relabel]

- fit: one pass over 10,000 rated pictures of 128x128 in batches of 512, three members of the published network. The clock runs from the
  end of the first batch to that of the last one. The last column is the whole call:
  `fit` also measures the model, on a share of the labels after a pass and on all of them at the end.
- relabel: 20,000 pictures scored by the three members; the time for the 200,000 of a full replay memory is ten times that.

Beside ours stands the way of ERL-VLM's code, written anew: each member gathers its own batch, copies it to float, divides by 255 and
sends the whole of it through the network; relabelling does so by 500 pictures and records a graph that nobody needs. Networks, losses and
batches are the same for both. "glibc settings" keep freed memory in the process: without them every tensor above 32 MiB is given
back to the system and faulted in again. They must be set before Python starts (`guerdon fit` does so for the process that it starts):

    GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=8589934592

Each number is the median of 5 runs (of 1 with --quick), each in a process of its own, all rows in turn. Processor time, not wall time, so
that a busy neighbour disturbs less. Memory is the peak above what pictures and libraries take. About 15 minutes; with --quick about two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

SIDE, MEMBERS, LEVELS, BATCH, RELABEL_BATCH = 128, 3, 3, 512, 500
CONVOLUTIONS = ((16, 5, 3), (32, 3, 2), (64, 3, 2), (128, 3, 2))
"""Channels, kernel and stride."""
PICTURES = {"fit": 10_000, "relabel": 200_000}
"""What the seconds in the tables are for."""
GOALS = {"fit": 2.0, "relabel": 2.3}
"""How many times as fast as the reference ours should be in float32."""
EPISODE = 100
"""Transitions of an episode that is relabelled."""
POOL = 20
"""Episodes that differ; they are gone through again and again."""
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.mmap_threshold=4294967295:glibc.malloc.trim_threshold=8589934592"
ROWS = (
    ("reference", "float32", False),
    ("reference", "float32", True),
    ("guerdon", "float32", False),
    ("guerdon", "float32", True),
    ("guerdon", "bfloat16", False),
    ("guerdon", "bfloat16", True),
)
"""Whose, in which precision, with glibc settings or without."""


# --- the reference ------------------------------------------------------------------------------------------------------------------


class Reference:
    """Three networks and the two loops around them, as in ERL-VLM's code."""

    def __init__(self) -> None:
        import torch

        torch.manual_seed(0)
        self.networks = [self._network() for _ in range(MEMBERS)]
        self.optimiser = torch.optim.Adam([weight for network in self.networks for weight in network.parameters()], lr=3e-4)

    @staticmethod
    def _network() -> Any:
        from torch import nn

        layers: list[Any] = []
        channels, side = 3, SIDE
        for outputs, kernel, stride in CONVOLUTIONS:
            convolution = nn.Conv2d(channels, outputs, kernel, stride)
            bound = 1 / math.sqrt(channels * kernel * kernel)
            nn.init.uniform_(convolution.weight, -bound, bound)
            nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.ReLU()]
            channels, side = outputs, (side - kernel) // stride + 1
        last = nn.Linear(channels * side * side, 1)
        nn.init.uniform_(last.weight, -1e-3, 1e-3)
        nn.init.uniform_(last.bias, -1e-3, 1e-3)
        return nn.Sequential(*layers, nn.Flatten(), last, nn.Tanh())

    def _returns(self, member: int, pictures: Any) -> Any:
        import torch

        return self.networks[member](torch.from_numpy(pictures).float())

    def fit(self, pictures: Any, labels: Any, progress: Callable[[int, int], Any]) -> None:
        """One pass over `pictures` (N, 1, H, W, 3) uint8 with ratings `labels` (N,)."""
        import numpy as np
        import torch

        from guerdon.losses import normalise_returns, rating_boundaries, rating_loss, rating_probabilities, rating_weights
        from guerdon.rewards.samplers import stratified_reference

        weights = rating_weights(torch.from_numpy(labels), LEVELS, "reference")
        orders = [stratified_reference(labels, BATCH, LEVELS, random=np.random.default_rng(member)) for member in range(MEMBERS)]
        for number, rows_of_members in enumerate(zip(*orders, strict=True)):
            self.optimiser.zero_grad()
            loss: Any = 0.0
            for member, rows in enumerate(rows_of_members):
                floats = np.transpose(pictures[rows], (0, 1, 4, 2, 3)).astype(np.float32) / 255.0
                label = torch.from_numpy(labels[rows])
                scores = normalise_returns(self._returns(member, floats[:, -1])[:, 0])
                probabilities = rating_probabilities(scores, rating_boundaries(scores, label, LEVELS, "lower"))
                loss = loss + rating_loss(probabilities, label, "mae", weights[label])
            loss.backward()
            self.optimiser.step()
            progress(number + 1, len(orders[0]))

    def relabel(self, pictures: Any) -> Any:
        """Rewards (N,) of `pictures` (N, H, W, 3) uint8."""
        import numpy as np

        rewards = np.zeros(len(pictures), np.float32)
        for start in range(0, len(pictures), RELABEL_BATCH):
            floats = np.transpose(pictures[start : start + RELABEL_BATCH], (0, 3, 1, 2)).astype(np.float32) / 255.0
            members = [self._returns(member, floats).detach().numpy() for member in range(MEMBERS)]
            rewards[start : start + RELABEL_BATCH] = np.mean(members, axis=0)[:, 0]
        return rewards


# --- ours ---------------------------------------------------------------------------------------------------------------------------


def judgements(pictures: Any, labels: Any) -> tuple[Any, Any]:
    """Rated pictures (N, H, W, 3), and what a model looks at of them."""
    import numpy as np

    from guerdon.rewards.steps import Judgements, Look, StepArrays

    count = len(labels)
    nothing, rows = np.zeros((count, 0), np.float32), np.arange(count)
    steps = StepArrays({"camera": pictures}, rows[:, None], nothing, nothing, np.zeros(count, np.int64), ("",))
    rated = Judgements("rating", LEVELS, steps, np.arange(count + 1), rows, labels.astype(np.float32), rows)
    return rated, Look(views={"camera": (SIDE, SIDE)})


def fitted(pictures: Any, labels: Any, precision: Any, progress: Callable[[int, int], Any] | None = None) -> Any:
    """A model after one pass, by the settings that the reference has."""
    from guerdon.rewards.fitting import Config, fit

    rated, look = judgements(pictures, labels)
    config = Config(
        encoder="published", members=MEMBERS, epochs=1, batch=BATCH, boundary="lower", weights="reference", sampler="stratified",
        held_out=0.0, precision=precision,
    )  # fmt: skip
    return fit(rated, look, config, seed=0, progress=progress).model


def recorded(pictures: Any, episodes: int) -> Any:
    """A dataset of so many episodes, whose pictures are `pictures` again and again."""
    import numpy as np

    from guerdon.interfaces import Dataset
    from guerdon.records import Annotation, EpisodeInfo

    class Recorded(Dataset):
        path, views, action_names = Path("recorded"), ("camera",), ("act",)
        fingerprint: Any = "s256:recorded"
        environment: Any = {}  # noqa: RUF012

        def __len__(self) -> int:
            return episodes

        def episode(self, index: int) -> EpisodeInfo:
            return EpisodeInfo(index, EPISODE, True, False, (Annotation("go"),))

        def frames(self, index: int, view: str, start: int, stop: int) -> Any:  # noqa: ARG002
            first = index % POOL * (EPISODE + 1)
            return pictures[first + start : first + stop]

        def actions(self, index: int) -> Any:  # noqa: ARG002
            return np.zeros(EPISODE, np.int64)

        def rewards(self, index: int) -> Any:  # noqa: ARG002
            return np.zeros(EPISODE)

        def privileged(self, index: int) -> Mapping[str, Any]:  # noqa: ARG002
            return {}

    return Recorded()


# --- one row, in a process of its own -----------------------------------------------------------------------------------------------


def part_fit(whose: str, precision: str, count: int) -> dict[str, float]:
    import numpy as np
    import torch

    torch.set_num_threads(1)

    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    labels = random.choice(LEVELS, count, p=(0.7, 0.2, 0.1))
    times: list[float] = []

    def progress(done: int, most: int) -> None:  # noqa: ARG001
        times.append(time.process_time())

    def work() -> None:
        if whose == "reference":
            reference.fit(pictures[:, None], labels, progress)
        else:
            fitted(pictures, labels, precision, progress)

    reference = Reference()
    found = measured(work, count)
    batches = -(-count // BATCH)
    return found | {"whole": found["rate"], "rate": (count - BATCH) / (times[batches - 1] - times[0])}


def part_relabel(whose: str, precision: str, count: int) -> dict[str, float]:
    import numpy as np
    import torch

    torch.set_num_threads(1)

    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (POOL * (EPISODE + 1), SIDE, SIDE, 3), dtype=np.uint8)
    if whose == "reference":
        reference = Reference()
        outcomes = np.concatenate([pictures[number * (EPISODE + 1) + 1 :][:EPISODE] for number in range(POOL)])

        def relabel() -> None:
            for start in range(0, count, len(outcomes)):
                reference.relabel(outcomes[: count - start])

        return measured(relabel, count, lambda: reference.relabel(outcomes[:RELABEL_BATCH]))

    from guerdon.rewards.relabel import relabel as stream

    model = fitted(pictures[:12], np.arange(12) % LEVELS, "float32")
    model.precision = precision

    def score(episodes: int) -> None:
        for _ in stream(model, recorded(pictures, episodes)):
            pass

    return measured(lambda: score(count // EPISODE), count, lambda: score(1))


def measured(work: Callable[[], Any], count: int, warm_up: Callable[[], Any] = lambda: None) -> dict[str, float]:
    """Pictures a second of processor time, and the peak of memory above what there was before, in MiB."""
    before = memory_now()
    warm_up()
    began = time.process_time()
    work()
    spent = time.process_time() - began
    return {"rate": count / spent, "memory": memory_peak() - before}


def memory_now() -> float:
    """MiB in use; from here on `memory_peak` counts anew, where the system can do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")
    return memory_peak()


def memory_peak() -> float:
    """MiB in use at most."""
    with contextlib.suppress(OSError):
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


# --- tables -------------------------------------------------------------------------------------------------------------------------


def in_own_process(what: str, row: tuple[str, str, bool], count: int) -> dict[str, float] | None:
    """What a row's process prints; None if it fails, which is said."""
    whose, precision, keeping = row
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment.pop("GLIBC_TUNABLES", None)
    if keeping:
        environment["GLIBC_TUNABLES"] = KEEP_MEMORY
    command = [sys.executable, __file__, "--part", what, whose, precision, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(f"FAILED {named(row)}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}", flush=True)
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def named(row: tuple[str, str, bool]) -> str:
    whose, precision, keeping = row
    return f"{whose}, {precision}{', glibc settings' if keeping else ''}"


def table(what: str, count: int, runs: int) -> None:
    found: dict[tuple[str, str, bool], list[dict[str, float]]] = {row: [] for row in ROWS}
    for _ in range(runs):
        for row in ROWS:
            result = in_own_process(what, row, count)
            if result is not None:
                found[row].append(result)
    rates = {row: median(results, "rate") for row, results in found.items() if results}
    whole = PICTURES[what]
    columns = [f"{what}, {count:,} pictures", "pictures/s", f"s for {whole:,}", "x reference", "x reference with settings"]
    columns += ["MiB above data", *(["pictures/s, whole call"] if what == "fit" else [])]
    print(f"\n| {' | '.join(columns)} |")
    print(f"|---|{'--:|' * (len(columns) - 1)}")
    for row, rate in rates.items():
        ratios = [f"{rate / rates[other]:.2f}" if other in rates else "" for other in ROWS[:2]]
        memory = median(found[row], "memory")
        cells = [named(row), f"{rate:,.0f}", f"{whole / rate:.1f}", *ratios, f"{memory:,.0f}"]
        if what == "fit":
            cells.append(f"{median(found[row], 'whole'):,.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)
    ours, theirs = ROWS[3], ROWS[0]
    if ours in rates and theirs in rates:
        ratio = rates[ours] / rates[theirs]
        verdict = "reached" if ratio >= GOALS[what] else "NOT REACHED"
        print(f"\nGoal for {named(ours)}: {GOALS[what]} times the reference; {verdict} ({ratio:.2f}).")


def median(runs: list[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def machine() -> str:
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    versions = f"{platform.system()}, Python {platform.python_version()}, torch {version('torch')}"
    return f"{os.cpu_count()} cores of {model}, one used, {versions}{load}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run each, fewer pictures")
    parser.add_argument("--only", nargs="+", choices=tuple(PICTURES), default=tuple(PICTURES))
    parser.add_argument("--part", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        what, whose, precision, count = arguments.part
        print(json.dumps({"fit": part_fit, "relabel": part_relabel}[what](whose, precision, int(count))))
        return
    runs, began = 1 if arguments.quick else 5, time.monotonic()
    print(f"{machine()}; median of {runs} run{'s' if runs > 1 else ''}")
    for what in arguments.only:
        counts = {"fit": 1_536, "relabel": 2_000} if arguments.quick else {"fit": 10_000, "relabel": 20_000}
        table(what, counts[what], runs)
    print(f"\n{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
