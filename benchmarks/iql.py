"""Gradient updates a second of implicit Q-learning: ours, and peers beside it.

    python benchmarks/iql.py [--quick] [--d3rlpy PYTHON] [--corl CHECKOUT] [--unifloral CHECKOUT --jax PYTHON]
                             [--threads 1 2] [--only vectors pictures] [--device cuda] [--out FILE.json]

- vectors: 17 observations, 6 continuous actions, networks of 256x256, twin critics, batches of 256 out of 1,000,000 random transitions.
- pictures: 64x64 RGB with one of 64 instructions of at most 32 tokens, 7 named actions, batches of 256 out of 8,192 random transitions.
  Beside ours the plain way to write it (`_plain_pictures.py`: an encoder for each network, three optimisers); the policy that remembers its
  episode (8 sequences of 32) does more for each transition and stands there for information.

Drawing batches is part of every update. What is not given is left out. The peers are not part of this project; their code is imported
from where you put it, with the packages that it only evaluates and logs with (d4rl, gym, pyrallis, tyro, wandb) left empty:

    python -m venv D && D/bin/pip install d3rlpy torch==2.13.0             --d3rlpy D/bin/python
    git clone https://github.com/tinkoff-ai/CORL                           --corl CORL
    git clone https://github.com/EmptyJackson/unifloral                    --unifloral unifloral
    python -m venv J && J/bin/pip install jax flax optax distrax           --jax J/bin/python

Give ours and the peers the same torch. Every measurement is a process of its own, bound to as many cores as it has threads; rounds are
interleaved (A B C A B C), and of each round the median of 5 chunks counts. "others" is what everything else on the machine used meanwhile,
in cores. Where it is much, wall time says little; updates for each second of the process's own processor time say more then, but only with
one thread: several wait for each other in a loop, and a neighbour that takes a core from one of them can make them all many times slower.
Ratios are medians of the ratios within a round. Peers keep their own defaults, which hardly change the amount of work: CORL halves the
critics' loss and schedules the policy's learning rate alone; ours clips gradients and decays weights.

Takes about ten minutes with all peers on two quiet cores; with --quick (one thread, one round, fewer transitions) one or two. What fails is
left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

OBSERVATIONS, ACTIONS, BATCH, EPISODE = 17, 6, 256, 1000
SIDE, NAMED_ACTIONS, INSTRUCTIONS, TOKENS = 64, 7, 64, 32
PICTURE_EPISODES = 256
SEQUENCES, CONTEXT = 8, 32
"""What the remembering policy learns from at a time: as many transitions as the others."""
CHUNKS, WARM_UP = 5, 0.5
SCAN = 50
"""Updates in one call of the peer in jax, which has its loop inside."""
BUSY = 0.1
"""Cores used by others above which a measurement is marked."""
SCRIPTS = {"corl": "algorithms/offline/iql.py", "unifloral": "algorithms/iql.py"}
"""What is imported of a checkout."""
PEERS_LEFT_EMPTY = ("d4rl", "gym", "pyrallis", "tyro", "wandb")

Run = Callable[[int], int]
"""Makes at least so many updates, waits until they are done, returns how many there were."""


@dataclass(frozen=True)
class Row:
    """One line of a table: what is measured, and where."""

    name: str
    part: str
    """Which of `PARTS` makes it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    device: str = "cpu"


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float
    """Of a chunk."""
    transitions: int
    """Of vectors."""


# --- data ---------------------------------------------------------------------------------------------------------------------------


def random_vectors(count: int) -> dict[str, Any]:
    """Episodes of EPISODE steps: observations (episodes, EPISODE + 1, 17), actions (episodes, EPISODE, 6) in (-1, 1), rewards."""
    random, episodes = np.random.default_rng(0), count // EPISODE
    return {
        "observations": random.standard_normal((episodes, EPISODE + 1, OBSERVATIONS), dtype=np.float32),
        "actions": random.uniform(-0.999, 0.999, (episodes, EPISODE, ACTIONS)).astype(np.float32),
        "rewards": random.standard_normal((episodes, EPISODE), dtype=np.float32),
    }


def flat_vectors(count: int) -> dict[str, Any]:
    """The same in the shape that D4RL made common: (N, 17), (N, 6), (N,)."""
    data = random_vectors(count)
    terminals = np.zeros(data["rewards"].shape, np.float32)
    terminals[:, -1] = 1
    return {
        "observations": data["observations"][:, :-1].reshape(-1, OBSERVATIONS),
        "next_observations": data["observations"][:, 1:].reshape(-1, OBSERVATIONS),
        "actions": data["actions"].reshape(-1, ACTIONS),
        "rewards": data["rewards"].reshape(-1),
        "terminals": terminals.reshape(-1),
    }


def vector_transitions(count: int) -> Any:
    """The same as Transitions."""
    from guerdon.transitions import ObservationSpec, Trajectory, Transitions, Vocabulary

    data = random_vectors(count)
    episodes = len(data["rewards"])
    spec = ObservationSpec({}, (), Vocabulary.of(()), {"state": OBSERVATIONS}, ACTIONS, reads=False)
    trajectories = [Trajectory(number, 0, number * (EPISODE + 1), number * EPISODE, EPISODE) for number in range(episodes)]
    terminal = np.zeros(data["rewards"].shape, np.bool_)
    terminal[:, -1] = True
    vectors = {"state": data["observations"].reshape(-1, OBSERVATIONS)}
    action, reward = data["actions"].reshape(-1, ACTIONS), data["rewards"].reshape(-1)
    return Transitions(spec, trajectories, {}, action, reward, terminal.reshape(-1), ["go"] * episodes, "benchmark", vectors)


def random_instructions() -> list[str]:
    """64 of them; the token that begins each is the 32nd of the longest."""
    random, words = np.random.default_rng(1), [f"word{number}" for number in range(100)]
    return [" ".join(random.choice(words, random.integers(8, TOKENS))) for _ in range(INSTRUCTIONS)]


def picture_transitions(*, memory: bool) -> Any:
    """PICTURE_EPISODES episodes of CONTEXT steps as Transitions. Random pictures cost the same as real ones, unless real ones repeat."""
    from guerdon.transitions import ObservationSpec, Trajectory, Transitions, Vocabulary

    random, steps = np.random.default_rng(2), PICTURE_EPISODES * CONTEXT
    instructions = random_instructions()
    texts = [instructions[number % INSTRUCTIONS] for number in range(PICTURE_EPISODES)]
    names = tuple(f"action {number}" for number in range(NAMED_ACTIONS))
    spec = ObservationSpec({"camera": (SIDE, SIDE)}, names, Vocabulary.of(instructions), memory=memory)
    trajectories = [Trajectory(number, 0, number * (CONTEXT + 1), number * CONTEXT, CONTEXT) for number in range(PICTURE_EPISODES)]
    frames = {"camera": random.integers(0, 256, (steps + PICTURE_EPISODES, SIDE, SIDE, 3), dtype=np.uint8)}
    action, reward = random.integers(0, NAMED_ACTIONS, steps), random.standard_normal(steps, dtype=np.float32)
    terminal = np.arange(1, steps + 1) % CONTEXT == 0
    return Transitions(spec, trajectories, frames, action, reward, terminal, texts, "benchmark")


# --- ours ---------------------------------------------------------------------------------------------------------------------------


def one_by_one(algorithm: Any, sampler: Any) -> Run:
    """Every update on its own: for those who write their own loop."""

    def run(count: int) -> int:
        for _ in range(count):
            algorithm.update(sampler.draw())
        return count

    return run


def as_trained(algorithm: Any, sampler: Any, loop: Any, *, remembers: bool) -> Run:
    """What the training loop does between two lines of metrics, again and again."""
    from guerdon.machine import quick_products

    machine = loop.machine()
    algorithm.to(machine.device)

    def products() -> Any:
        return contextlib.nullcontext() if remembers or machine.device.type != "cpu" else quick_products()

    def run(count: int) -> int:
        made = 0
        while made < count:
            some = min(loop.log_every, count - made)
            with products():
                sums = algorithm.learn(sampler, some, machine)
            for total in sums.values():
                float(total)  # waits for the device
            made += some
        return made

    return run


def ours(transitions: Any, settings: Mapping[str, Any], device: str) -> Run:
    """Settings: loop (of `guerdon.training.offline.Config`), network (of `PolicyNetwork.Config`), and one_by_one."""
    from guerdon.algorithms.iql import IQL
    from guerdon.networks import PolicyNetwork
    from guerdon.training.offline import Config
    from guerdon.transitions import Sampler

    chosen: Any = {"device": device, **settings.get("loop", {})}
    loop = Config(**chosen)
    sequences, context = loop.of(transitions.spec)
    config = IQL.Config(network=PolicyNetwork.Config(**settings.get("network", {})))
    algorithm = IQL(transitions, config, seed=0, updates=1_000_000)
    sampler = Sampler(transitions, sequences=sequences, context=context, seed=0)
    if settings.get("one_by_one"):
        return one_by_one(algorithm, sampler)
    return as_trained(algorithm, sampler, loop, remembers=transitions.spec.remembers)


def ours_vectors(settings: Mapping[str, Any], effort: Effort, device: str) -> Run:
    return ours(vector_transitions(effort.transitions), settings, device)


def ours_pictures(settings: Mapping[str, Any], effort: Effort, device: str) -> Run:  # noqa: ARG001
    return ours(picture_transitions(memory=settings["memory"]), settings, device)


def plain_pictures(settings: Mapping[str, Any], effort: Effort, device: str) -> Run:  # noqa: ARG001
    """The plain implementation on the same transitions, pictures laid out channel by channel beforehand."""
    import torch

    from _plain_pictures import Data, PlainPictures

    transitions = picture_transitions(memory=False)
    vocabulary, texts = transitions.spec.vocabulary, transitions.instructions
    frames = torch.from_numpy(transitions.frames["camera"]).view(PICTURE_EPISODES, CONTEXT + 1, SIDE, SIDE, 3).permute(0, 1, 4, 2, 3)
    data = Data(
        frames[:, :-1].reshape(-1, 3, SIDE, SIDE),
        frames[:, 1:].reshape(-1, 3, SIDE, SIDE),
        vocabulary.batch(texts).repeat_interleave(CONTEXT, 0),
        torch.from_numpy(transitions.action),
        torch.from_numpy(transitions.reward),
        torch.from_numpy(transitions.terminal).float(),
    )
    plain = PlainPictures(data, actions=NAMED_ACTIONS, words=len(vocabulary), batch=BATCH, device=device)

    def run(count: int) -> int:
        for _ in range(count):
            plain.update()  # it reads its losses from the device, and so waits for it
        return count

    return run


# --- peers --------------------------------------------------------------------------------------------------------------------------


def imported(path: Path, name: str) -> Any:
    """A script of a peer as a module, with the packages that it needs for nothing measured here left empty."""
    for package in PEERS_LEFT_EMPTY:
        empty: Any = types.ModuleType(package)
        empty.Env, empty.wrap = object, lambda: lambda function: function
        sys.modules[package] = empty
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def corl(settings: Mapping[str, Any], effort: Effort, device: str) -> Run:
    """`train` of CORL's algorithms/offline/iql.py up to its loop, and the first lines of that."""
    import torch

    theirs = imported(Path(settings["checkout"]) / SCRIPTS["corl"], "corl_iql")
    buffer = theirs.ReplayBuffer(OBSERVATIONS, ACTIONS, effort.transitions, device)
    with contextlib.redirect_stdout(sys.stderr):
        buffer.load_d4rl_dataset(flat_vectors(effort.transitions))
    q_network, v_network = theirs.TwinQ(OBSERVATIONS, ACTIONS).to(device), theirs.ValueFunction(OBSERVATIONS).to(device)
    actor = theirs.GaussianPolicy(OBSERVATIONS, ACTIONS, 1.0).to(device)
    trainer = theirs.ImplicitQLearning(
        max_action=1.0,
        actor=actor,
        actor_optimizer=torch.optim.Adam(actor.parameters(), lr=3e-4),
        q_network=q_network,
        q_optimizer=torch.optim.Adam(q_network.parameters(), lr=3e-4),
        v_network=v_network,
        v_optimizer=torch.optim.Adam(v_network.parameters(), lr=3e-4),
        device=device,
    )

    def run(count: int) -> int:
        for _ in range(count):
            trainer.train([column.to(device) for column in buffer.sample(BATCH)])
        return count

    return run


def d3rlpy(settings: Mapping[str, Any], effort: Effort, device: str) -> Run:  # noqa: ARG001
    """What `fit` does for each batch, without its progress bar and logs."""
    import d3rlpy as theirs  # type: ignore[import-not-found]

    data = random_vectors(effort.transitions)
    episodes = [
        theirs.dataset.Episode(observations[:-1], actions, rewards[:, None], terminated=True)
        for observations, actions, rewards in zip(data["observations"], data["actions"], data["rewards"], strict=True)
    ]
    buffer = theirs.dataset.create_infinite_replay_buffer(episodes)
    learner = theirs.algos.IQLConfig(batch_size=BATCH).create(device="cpu:0" if device == "cpu" else device)
    learner.build_with_dataset(buffer)

    def run(count: int) -> int:
        for _ in range(count):
            learner.update(buffer.sample_transition_batch(BATCH))
        return count

    return run


def unifloral(settings: Mapping[str, Any], effort: Effort, device: str) -> Run:  # noqa: ARG001
    """The script's own preparations and its own scan, SCAN updates a call."""
    import jax  # type: ignore[import-not-found]
    import jax.numpy as jnp  # type: ignore[import-not-found]

    theirs = imported(Path(settings["checkout"]) / SCRIPTS["unifloral"], "unifloral_iql")
    arguments, flat = theirs.Args(), flat_vectors(effort.transitions)
    dataset = theirs.Transition(
        obs=jnp.array(flat["observations"]),
        action=jnp.array(flat["actions"]),
        reward=jnp.array(flat["rewards"]),
        next_obs=jnp.array(flat["next_observations"]),
        done=jnp.array(flat["terminals"]),
    )
    mean, deviation = dataset.obs.mean(axis=0), jnp.nan_to_num(dataset.obs.std(axis=0), nan=1.0)
    seen, done = jnp.zeros(OBSERVATIONS), jnp.zeros(ACTIONS)
    actor = theirs.TanhGaussianActor(ACTIONS, mean, deviation)
    critics, value = theirs.DualQNetwork(mean, deviation), theirs.StateValueFunction(mean, deviation)
    key, of_actor, of_critics, of_value = jax.random.split(jax.random.PRNGKey(0), 4)
    agent = theirs.AgentTrainState(
        actor=theirs.create_train_state(arguments, of_actor, actor, [seen]),
        dual_q=theirs.create_train_state(arguments, of_critics, critics, [seen, done]),
        dual_q_target=theirs.create_train_state(arguments, of_critics, critics, [seen, done]),
        value=theirs.create_train_state(arguments, of_value, value, [seen]),
    )
    step = theirs.make_train_step(arguments, actor.apply, critics.apply, value.apply, dataset)
    state = (key, agent)

    def run(count: int) -> int:
        nonlocal state
        calls = -(-count // SCAN)
        for _ in range(calls):
            state, _ = jax.lax.scan(step, state, None, SCAN)
        jax.block_until_ready(state)
        return calls * SCAN

    return run


PARTS: Mapping[str, Callable[[Mapping[str, Any], Effort, str], Run]] = {
    "ours_vectors": ours_vectors,
    "ours_pictures": ours_pictures,
    "plain_pictures": plain_pictures,
    "corl": corl,
    "d3rlpy": d3rlpy,
    "unifloral": unifloral,
}


# --- one measurement, in a process of its own ---------------------------------------------------------------------------------------


def all_cores_used() -> float | None:
    """Seconds of processor time used on the whole machine since it began, stolen time included; None where nobody counts them."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()
    except OSError:
        return None
    return sum(int(fields[number]) for number in (1, 2, 3, 6, 7, 8)) / os.sysconf("SC_CLK_TCK")


def timed(run: Run, count: int) -> dict[str, float | None]:
    """updates, seconds, own processor seconds, and the cores that others kept busy meanwhile."""
    before, cpu, began = all_cores_used(), time.process_time(), time.perf_counter()
    updates = run(count)
    seconds, own, after = time.perf_counter() - began, time.process_time() - cpu, all_cores_used()
    others = None if before is None or after is None else max(0.0, (after - before - own) / seconds)
    return {"updates": updates, "seconds": seconds, "cpu": own, "others": others}


def measure(run: Run, seconds: float) -> list[dict[str, float | None]]:
    """CHUNKS chunks of about so many seconds, after a warm-up."""
    run(1)
    count, warm_until = 1, time.perf_counter() + WARM_UP
    while True:
        began = time.perf_counter()
        made = run(count)
        took = time.perf_counter() - began
        if time.perf_counter() >= warm_until and took >= seconds / 4:
            break
        if took < seconds / 2:
            count *= 2
    return [timed(run, max(1, round(made * seconds / took))) for _ in range(CHUNKS)]


def part(text: str) -> None:
    """Measures one row once and prints its chunks as JSON."""
    asked = json.loads(text)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked["threads"]])
    row, effort = Row(**asked["row"]), Effort(**asked["effort"])
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(asked["threads"])
    run = PARTS[row.part](row.settings, effort, row.device)
    print(json.dumps({"chunks": measure(run, effort.seconds), "versions": versions() | script_of(row)}))


def script_of(row: Row) -> dict[str, str]:
    """Which script of a checkout was measured."""
    if row.part not in SCRIPTS:
        return {}
    return {"script": SCRIPTS[row.part], "sha256": sha256((Path(row.settings["checkout"]) / SCRIPTS[row.part]).read_bytes()).hexdigest()}


def versions() -> dict[str, str]:
    """Of the packages that decide the speed, as far as this interpreter has them."""
    found = {"python": platform.python_version()}
    for name in ("torch", "d3rlpy", "jax", "flax", "optax", "numpy", "guerdon"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


# --- rounds and tables --------------------------------------------------------------------------------------------------------------


def environment(threads: int) -> dict[str, str]:
    """No more threads than asked for, in any library."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict(os.environ) | dict.fromkeys(names, str(threads))


def in_own_process(row: Row, effort: Effort, threads: int) -> dict[str, Any] | None:
    """What one measurement found; None if it failed, which is said."""
    text = json.dumps({"row": asdict(row), "effort": asdict(effort), "threads": threads})
    done = subprocess.run([row.python, __file__, "--part", text], capture_output=True, text=True, env=environment(threads), check=False)
    if done.returncode:
        print(f"  FAILED {row.name}: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}", flush=True)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def say(what: str) -> None:
    """What is being done, for a reader at a terminal."""
    if sys.stderr.isatty():
        print(f"\r{what:<60}\r", end="", file=sys.stderr, flush=True)


def in_rounds(rows: Sequence[Row], effort: Effort, threads: int) -> Iterator[tuple[Row, list[dict[str, Any]]]]:
    """Each row with what its rounds found, measured in turn; a row that fails is not tried again."""
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    failed: set[str] = set()
    for number in range(effort.rounds):
        for row in rows:
            if row.name in failed:
                continue
            say(f"round {number + 1} of {effort.rounds}: {row.name}")
            result = in_own_process(row, effort, threads)
            if result is None:
                failed.add(row.name)
            else:
                found[row.name].append(result)
    say("")
    return ((row, found[row.name]) for row in rows if row.name not in failed)


def summary(row: Row, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each round the medians over its chunks; of the row the medians over its rounds."""
    rounds = [
        {
            "wall": statistics.median(chunk["updates"] / chunk["seconds"] for chunk in result["chunks"]),
            "cpu": statistics.median(chunk["updates"] / max(chunk["cpu"], 1e-9) for chunk in result["chunks"]),
            "others": statistics.median(chunk["others"] or 0.0 for chunk in result["chunks"]),
        }
        for result in results
    ]
    medians = {name: statistics.median(one[name] for one in rounds) for name in ("wall", "cpu", "others")}
    return {
        "row": row.name,
        **medians,
        "rounds": rounds,
        "chunks": [result["chunks"] for result in results],
        "versions": results[0]["versions"],
    }


def ratio(one: Mapping[str, Any], reference: Mapping[str, Any], name: str) -> float:
    """Median over rounds of how many times the reference's rate it reaches in the same round."""
    ratios: list[float] = [mine[name] / theirs[name] for mine, theirs in zip(one["rounds"], reference["rounds"], strict=True)]
    return statistics.median(ratios)


def table(title: str, rows: Sequence[Row], effort: Effort, threads: int, beside: str) -> dict[str, Any]:
    """Measures and prints one table; ratios are to the row `beside`, or to the first one if that is not there."""
    summaries = [summary(row, results) for row, results in in_rounds(rows, effort, threads)]
    if not summaries:
        return {"title": title, "threads": threads, "rows": []}
    reference = next((one for one in summaries if one["row"] == beside), summaries[0])
    print(f"\n{title}, {threads} thread{'s' if threads > 1 else ''} (ratios to: {reference['row']})")
    print(f"{'':<38} {'updates/s':>10} {'rounds':>15} {'ratio':>6} {'per CPU s':>10} {'ratio':>6} {'others':>7}")
    for one in summaries:
        walls = [each["wall"] for each in one["rounds"]]
        one["ratio_wall"], one["ratio_cpu"] = ratio(one, reference, "wall"), ratio(one, reference, "cpu")
        spread = f"{min(walls):.1f}-{max(walls):.1f}"
        busy = " *" if one["others"] > BUSY else ""
        print(
            f"{one['row']:<38} {one['wall']:>10.1f} {spread:>15} {one['ratio_wall']:>6.2f} {one['cpu']:>10.1f} {one['ratio_cpu']:>6.2f}"
            f" {one['others']:>7.2f}{busy}",
            flush=True,
        )
    if any(one["others"] > BUSY for one in summaries):
        cure = "trust the rate per CPU second, and measure wall time when it is quiet" if threads == 1 else "measure again when it is quiet"
        print(f"* a neighbour was active (more than {BUSY} cores): {cure}")
    return {"title": title, "threads": threads, "reference": reference["row"], "rows": summaries}


OURS_ON_VECTORS = (
    Row("guerdon, update by update", "ours_vectors", {"one_by_one": True}),
    Row("guerdon", "ours_vectors"),
    Row("guerdon, bfloat16", "ours_vectors", {"loop": {"precision": "bfloat16"}}),
    Row("guerdon, compiled", "ours_vectors", {"loop": {"compile": True}}),
    Row("guerdon, compiled, bfloat16", "ours_vectors", {"loop": {"compile": True, "precision": "bfloat16"}}),
)
OURS_ON_PICTURES = (
    Row("plain", "plain_pictures"),
    Row("guerdon", "ours_pictures", {"memory": False}),
    Row("guerdon, bfloat16", "ours_pictures", {"memory": False, "loop": {"precision": "bfloat16"}}),
    Row(
        "guerdon, bfloat16, words not learned",
        "ours_pictures",
        {"memory": False, "loop": {"precision": "bfloat16"}, "network": {"learn_words": False}},
    ),
    Row("guerdon, remembering", "ours_pictures", {"memory": True, "loop": {"sequences": SEQUENCES, "context": CONTEXT}}),
)


def on_devices(arguments: argparse.Namespace, rows: Sequence[Row]) -> list[Row]:
    """The rows on the processor, and on the device that was named."""
    there = [
        replace(row, name=f"{row.name}, on {arguments.device}", device=arguments.device)
        for row in rows
        if arguments.device and not row.settings.get("one_by_one")
    ]
    return [*rows, *there]


def rows_of_vectors(arguments: argparse.Namespace) -> list[Row]:
    """Ours and the peers that are given."""
    rows = []
    if arguments.corl:
        rows.append(Row("CORL", "corl", {"checkout": arguments.corl}))
    if arguments.d3rlpy:
        rows.append(Row("d3rlpy", "d3rlpy", python=arguments.d3rlpy))
    if arguments.unifloral and arguments.jax:
        rows.append(Row("unifloral (jax)", "unifloral", {"checkout": arguments.unifloral}, python=arguments.jax))
    return rows + on_devices(arguments, OURS_ON_VECTORS)


def rows_of_pictures(arguments: argparse.Namespace) -> list[Row]:
    """Ours, and the plain way."""
    return on_devices(arguments, OURS_ON_PICTURES)


def left_out(arguments: argparse.Namespace) -> list[str]:
    """Peers that are not given."""
    given = {"CORL": arguments.corl, "d3rlpy": arguments.d3rlpy, "unifloral": arguments.unifloral and arguments.jax}
    return [name for name, there in given.items() if not there]


def machine() -> dict[str, Any]:
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"cores": usable_cores(), "model": model, "system": platform.system(), "load_before": load, **versions()}


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuses what cannot be measured, before anything is."""
    if bool(arguments.unifloral) != bool(arguments.jax):
        parser.error("--unifloral and --jax go together: its checkout, and an interpreter that has jax")
    needed = {"--corl": (arguments.corl, SCRIPTS["corl"]), "--unifloral": (arguments.unifloral, SCRIPTS["unifloral"])}
    for option, (checkout, script) in needed.items():
        if checkout and not (Path(checkout) / script).is_file():
            parser.error(f"{option} {checkout} holds no {script}")
    for option, python in (("--d3rlpy", arguments.d3rlpy), ("--jax", arguments.jax)):
        if python and not Path(python).is_file():
            parser.error(f"{option} {python} is no interpreter")
    if min(arguments.threads or [1]) < 1:
        parser.error("--threads are at least 1")
    if arguments.device:
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no graphics card")


def vectors(arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    effort = Effort(1, 0.2, 100_000) if arguments.quick else Effort(3, 0.3, 1_000_000)
    title = f"state vectors: {OBSERVATIONS} observations, {ACTIONS} actions, 256x256, batch {BATCH} of {effort.transitions:,}"
    return table(title, rows_of_vectors(arguments), effort, threads, "CORL")


def pictures(arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    effort = Effort(1, 0.5, 0) if arguments.quick else Effort(2, 1.0, 0)
    title = f"pictures and words: {SIDE}x{SIDE}, {INSTRUCTIONS} instructions, {NAMED_ACTIONS} actions, batch {BATCH}"
    return table(title, rows_of_pictures(arguments), effort, threads, "plain")


TABLES: Mapping[str, Callable[[argparse.Namespace, int], dict[str, Any]]] = {"vectors": vectors, "pictures": pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one thread, one round, fewer transitions")
    parser.add_argument("--corl", default="", metavar="CHECKOUT", help="folder of tinkoff-ai/CORL")
    parser.add_argument("--d3rlpy", default="", metavar="PYTHON", help="interpreter of an environment with d3rlpy")
    parser.add_argument("--unifloral", default="", metavar="CHECKOUT", help="folder of EmptyJackson/unifloral; needs --jax")
    parser.add_argument("--jax", default="", metavar="PYTHON", help="interpreter of an environment with jax, flax, optax, distrax")
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="1 and 2 if not given, as far as there are cores")
    parser.add_argument("--only", nargs="+", choices=tuple(TABLES), default=tuple(TABLES))
    parser.add_argument("--device", default="", choices=("", "cuda"), help="also measure ours on a graphics card")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="everything that was measured, as JSON")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        part(arguments.part)
        return
    check(parser, arguments)
    began, about = time.monotonic(), machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if left_out(arguments) and "vectors" in arguments.only:
        print(f"left out, because not given: {', '.join(left_out(arguments))}")
    wanted = arguments.threads or ([1] if arguments.quick else [1, 2])
    found = [TABLES[name](arguments, threads) for name in arguments.only for threads in wanted if threads <= usable_cores()]
    for threads in wanted:
        if threads > usable_cores():
            print(f"{threads} threads were not measured: there are {usable_cores()} cores")
    print(f"\n{time.monotonic() - began:.0f} s in all")
    if arguments.out:
        arguments.out.write_text(
            json.dumps({"machine": about, "arguments": vars(arguments) | {"out": str(arguments.out)}, "tables": found}, indent=1)
        )


if __name__ == "__main__":
    main()
