"""Learning while acting: gradient updates a second of soft actor-critic and steps a second of a whole loop, ours and the plain way to
write them.

    python benchmarks/online.py [--quick] [--only updates loops] [--threads 1 2] [--rounds 5] [--device cuda] [--out FILE.json]

States of 39 numbers and actions of 4, as in Meta-World; networks of 256 x 256 x 256, batches of 512 drawn from 100,000 random transitions,
drawing included. *Plain* (`_plain_sac.py`) is written for this in the manner of the code that PEBBLE, RL-VLM-F and ERL-VLM learn with: a
module and an Adam for each network, a distribution object, losses through autograd. It makes the same updates: a test holds the two
together. *oneDNN products* gives the plain one the library for matrix products that ours chooses where it is faster, so that what is left
is what is written differently; bfloat16 rounds the products of ours.

Measured as in `iql.py`: every measurement is a process of its own, bound to as many cores as it has threads, rounds are interleaved, of
each round the median of its chunks counts, and ratios are medians of the ratios within a round. "others" is what everything else on the
machine used meanwhile, in cores; where it is much, trust the rate per second of the process's own processor time, with one thread.

The second table is environment steps a second of whole loops in Meta-World that learn from the true reward, an update a step: ours (whose
checkpoints and metrics are part of it) and a plain one of the same maths, with the plain algorithm and a buffer of arrays.

A further table is a function in `TABLES` and what it measures in `PARTS`.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iql import BUSY, Row, Run, environment, machine, measure, ratio, summary, usable_cores, versions

STATE, ACTION, BATCH, HELD = 39, 4, 512, 100_000
TASK, EPISODE, RANDOM_STEPS, CHECKPOINT_EVERY = "drawer-open-v3", 500, 600, 2_500


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """Of a chunk."""


# --- what is measured ---------------------------------------------------------------------------------------------------------------


def held(device: str) -> Callable[[], Any]:
    """Draws batches from random transitions, in the same way for all."""
    import torch

    from guerdon.replay_buffer import Experience

    random = torch.Generator().manual_seed(0)
    state, following = (torch.randn(HELD, STATE, generator=random).to(device) for _ in range(2))
    action, reward = (2 * torch.rand(HELD, ACTION, generator=random) - 1).to(device), torch.randn(HELD, generator=random).to(device)
    terminal = (torch.rand(HELD, generator=random) < 0.01).to(device)

    def draw() -> Experience:
        rows = torch.randint(HELD, (BATCH,), generator=random).to(device)
        return Experience(*(column.index_select(0, rows) for column in (state, action, reward, following, terminal)))

    return draw


def ours(settings: Mapping[str, Any], device: str) -> Run:
    import torch

    from guerdon.algorithms.sac import SAC

    algorithm, draw = SAC(STATE, ACTION, SAC.Config(**settings), seed=0), held(device)
    algorithm.to(torch.device(device))

    def run(count: int) -> int:
        for _ in range(count):
            metrics = algorithm.update(draw())
        float(metrics["critic_loss"])  # waits for the device
        return count

    return run


def plain(settings: Mapping[str, Any], device: str) -> Run:
    import torch

    from _plain_sac import PlainSAC
    from guerdon.machine import quick_products

    if device != "cpu":
        raise ValueError("the plain one is written for the processor")
    torch.manual_seed(0)
    algorithm, draw = PlainSAC(STATE, ACTION), held(device)

    def run(count: int) -> int:
        with quick_products() if settings.get("onednn") else contextlib.nullcontext():
            for _ in range(count):
                algorithm.update(draw())
        return count

    return run


class _Enough(Exception):
    """Ends a loop for now."""


def our_loop(settings: Mapping[str, Any], device: str) -> Run:  # noqa: ARG001
    """Goes on by at least so many steps at each call, with its records and checkpoints."""
    from guerdon.algorithms.sac import SAC
    from guerdon.recipes import online
    from guerdon.training.online import Config, OnlineRun, TrueReward
    from guerdon.training.online_records import begin_or_go_on

    out = Path(tempfile.mkdtemp(prefix="guerdon-benchmark-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    loop = Config(steps=10**9, random_steps=RANDOM_STEPS, capacity=HELD, log_every=50, checkpoint_every=CHECKPOINT_EVERY)
    config = online.decided(online.Config(method="true", out=out, task=TASK, evaluation_tasks=0, loop=loop))
    begin_or_go_on(out, {})
    world = online.world_of(config)
    going = OnlineRun(SAC(STATE, ACTION, SAC.Config(**settings), seed=0), world, TrueReward(), config.loop, batch=BATCH, seed=0, out=out)

    def run(count: int) -> int:
        begun = going.made

        def watch(made: int, _of: int) -> None:
            if made - begun >= count and made % CHECKPOINT_EVERY:  # else a checkpoint comes next
                raise _Enough

        with contextlib.suppress(_Enough):
            going.learn(watch)
        return going.made - begun

    run(RANDOM_STEPS)
    return run


def plain_loop(settings: Mapping[str, Any], device: str) -> Run:  # noqa: ARG001
    """The same, written plainly: no records, no checkpoints."""
    import numpy as np
    import torch

    from _plain_sac import PlainSAC
    from guerdon.envs.metaworld import MetaWorld, new_task
    from guerdon.machine import quick_products
    from guerdon.replay_buffer import Experience

    torch.manual_seed(0)
    random, algorithm, environment = np.random.default_rng(0), PlainSAC(STATE, ACTION), MetaWorld(())
    columns = [np.zeros((HELD, *shape), np.float32) for shape in ((STATE,), (ACTION,), (), (STATE,), ())]
    held = {"made": 0, "left": 0, "episodes": 0}
    seen = np.zeros(STATE, np.float32)

    def step() -> None:
        nonlocal seen
        if not held["left"]:
            task = new_task(TASK, held["episodes"], step_limit=EPISODE, hold=EPISODE + 1)
            seen, held["left"] = environment.reset(task).vectors["state"], EPISODE
            held["episodes"] += 1
        if held["made"] < RANDOM_STEPS:
            action = random.uniform(-1, 1, ACTION).astype(np.float32)
        else:
            with torch.no_grad():
                action = algorithm.actor(torch.as_tensor(seen)[None]).sample()[0].numpy()
        done = environment.step(action)
        following = done.observation.vectors["state"]
        for column, value in zip(columns, (seen, action, done.reward, following, done.terminated), strict=True):
            column[held["made"] % HELD] = value
        seen = following
        held["made"] += 1
        held["left"] -= 1
        if held["made"] >= RANDOM_STEPS:
            rows = random.integers(min(held["made"], HELD), size=BATCH)
            algorithm.update(Experience(*(torch.as_tensor(column[rows]) for column in columns)))

    def run(count: int) -> int:
        with quick_products() if settings.get("onednn") else contextlib.nullcontext():
            for _ in range(count):
                step()
        return count

    run(RANDOM_STEPS)
    return run


PARTS: Mapping[str, Callable[[Mapping[str, Any], str], Run]] = {
    "ours": ours,
    "plain": plain,
    "our loop": our_loop,
    "plain loop": plain_loop,
}

UPDATES = (
    Row("plain", "plain"),
    Row("plain, oneDNN products", "plain", {"onednn": True}),
    Row("guerdon", "ours"),
    Row("guerdon, bfloat16", "ours", {"precision": "bfloat16"}),
)
LOOPS = (
    Row("plain", "plain loop"),
    Row("plain, oneDNN products", "plain loop", {"onednn": True}),
    Row("guerdon", "our loop"),
    Row("guerdon, bfloat16", "our loop", {"precision": "bfloat16"}),
)


# --- rounds and tables --------------------------------------------------------------------------------------------------------------


def part(text: str) -> None:
    """Measures one row once and prints its chunks as JSON."""
    import torch

    asked = json.loads(text)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked["threads"]])
    torch.set_num_threads(asked["threads"])
    row = Row(**asked["row"])
    print(json.dumps({"chunks": measure(PARTS[row.part](row.settings, row.device), asked["seconds"]), "versions": versions()}))


def in_own_process(row: Row, effort: Effort, threads: int) -> dict[str, Any]:
    text = json.dumps({"row": asdict(row), "seconds": effort.seconds, "threads": threads})
    command = [sys.executable, __file__, "--part", text]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(threads), check=False)
    if done.returncode:
        raise SystemExit(f"{row.name} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(title: str, rows: Sequence[Row], effort: Effort, threads: int) -> dict[str, Any]:
    """Measures and prints one table; ratios are to the first row."""
    results: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    for _ in range(effort.rounds):
        for row in rows:
            results[row.name].append(in_own_process(row, effort, threads))
    summaries = [summary(row, results[row.name]) for row in rows]
    print(f"\n{title}, {threads} thread{'s' if threads > 1 else ''}, {effort.rounds} rounds (ratios to: {rows[0].name})")
    print(f"{'':<28} {'a second':>9} {'rounds':>13} {'ratio':>6} {'per CPU s':>10} {'rounds':>13} {'ratio':>6} {'others':>7}")
    for one in summaries:
        one["ratio_wall"], one["ratio_cpu"] = (ratio(one, summaries[0], name) for name in ("wall", "cpu"))
        spread = {name: sorted(each[name] for each in one["rounds"]) for name in ("wall", "cpu")}
        wall, cpu = (f"{values[0]:.1f}-{values[-1]:.1f}" for values in spread.values())
        busy = " *" if one["others"] > BUSY else ""
        print(
            f"{one['row']:<28} {one['wall']:>9.1f} {wall:>13} {one['ratio_wall']:>6.2f}"
            f" {one['cpu']:>10.1f} {cpu:>13} {one['ratio_cpu']:>6.2f} {one['others']:>7.2f}{busy}",
            flush=True,
        )
    if any(one["others"] > BUSY for one in summaries):
        print(f"* a neighbour was active (more than {BUSY} cores)")
    return {"title": title, "threads": threads, "reference": rows[0].name, "rows": summaries}


def updates(arguments: argparse.Namespace, effort: Effort, threads: int) -> dict[str, Any]:
    title = f"updates of soft actor-critic: {STATE} numbers, {ACTION} actions, 256x256x256, batch {BATCH}"
    there = (Row("guerdon, on cuda", "ours", device="cuda"),) if arguments.device else ()
    return measured(title, (*UPDATES, *there), effort, threads)


def loops(arguments: argparse.Namespace, effort: Effort, threads: int) -> dict[str, Any]:  # noqa: ARG001
    return measured(f"environment steps of the whole loop in {TASK}, an update of batch {BATCH} each", LOOPS, effort, threads)


TABLES: Mapping[str, Callable[[argparse.Namespace, Effort, int], dict[str, Any]]] = {"updates": updates, "loops": loops}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one thread, one round of short chunks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=tuple(TABLES), default=tuple(TABLES))
    parser.add_argument("--device", default="", choices=("", "cuda"), help="also measure ours on a graphics card")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="everything that was measured, as JSON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part)
        return
    if min(*arguments.threads, arguments.rounds) < 1 or max(arguments.threads) > usable_cores():
        parser.error(f"--rounds and --threads are at least 1, and there are {usable_cores()} cores")
    began, about = time.monotonic(), machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    effort = Effort(1, 0.3) if arguments.quick else Effort(arguments.rounds, 1.0)
    threads = [1] if arguments.quick else arguments.threads
    found = [TABLES[name](arguments, effort, number) for name in arguments.only for number in threads]
    print(f"\n{time.monotonic() - began:.0f} s in all")
    if arguments.out:
        record = {"machine": about, "arguments": vars(arguments) | {"out": str(arguments.out)}, "tables": found}
        arguments.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
