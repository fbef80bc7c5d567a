"""Learning from recorded transitions: the loop, its checkpoints and its records. Knows no algorithm.

The problem: a training run must give the same numbers when it is repeated, and the same numbers when it is killed and started again. So
its length is counted in updates, never in seconds (`updates_within` says how many fit into a time), and everything that the next update
depends on goes into one checkpoint file that is replaced as a whole.

Reads transitions. Writes into a folder:

    metrics.jsonl            one line per `log_every` updates: means of the algorithm's metrics, and seconds spent
    checkpoint.safetensors   weights, optimiser, place in the data
    tensorboard/             the metrics once more, on request
    policy.safetensors       the weights needed to act
    policy.json              what the policy sees, how it was made, digest of its weights; written last, so it means "finished"
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guerdon import discover
from guerdon.errors import PolicyError, StaleInput, UsageError
from guerdon.interfaces import Algorithm
from guerdon.machine import Device, Machine, Precision, quick_products
from guerdon.records import canonical_json
from guerdon.runs import writing
from guerdon.training.policy import RECORD, read_record, read_tensors, save_policy, write_tensors
from guerdon.training.tensorboard import TensorBoard
from guerdon.transitions import Chunk, ObservationSpec, Sampler, Transitions, collate

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"

Progress = Callable[[int, int], object]
"""Called at every line of metrics with the updates made and the updates to make."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """On how much to train at a time, and how often to write down where it stands."""

    sequences: int | None = None
    """Episodes (or pieces of long ones) in a batch; 8 if not given, and 256 single transitions where the policy has no memory."""
    context: int | None = None
    """Most transitions that a gradient reaches back through; memory always reaches to the start of the episode. 64 if not given, 1 where
    the policy has no memory."""
    log_every: int = 50
    """Updates between two lines of metrics."""
    checkpoint_every: int = 500
    """Updates between two checkpoints; a multiple of log_every."""
    device: Device = "cpu"
    """Where to train: cpu, or cuda for a graphics card. The latter is written but was never tried on one."""
    precision: Precision = "float32"
    """Of matrix products and convolutions: float32, or bfloat16, which is faster on processors and cards that have it."""
    compile: bool = False
    """Compile whole updates of policies that see a state and follow one instruction: ten to twenty seconds at the start, two thirds
    more updates a second afterwards. Needs a C++ compiler."""

    def __post_init__(self) -> None:
        for name in ("sequences", "context", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.machine()
        if self.checkpoint_every % self.log_every:
            raise UsageError(f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every ({self.log_every})")

    def machine(self) -> Machine:
        """What to train on. Raises UsageError if it is not there."""
        return Machine.of(self.device, self.precision, self.compile)

    def decisive(self) -> dict[str, Any]:
        """Settings that change the numbers, if only by rounding, where they differ from the defaults."""
        chosen = {"precision": self.precision, "compile": self.compile}
        return {name: value for name, value in chosen.items() if value != getattr(Config, name)}

    def of(self, spec: ObservationSpec) -> tuple[int, int]:
        """Sequences and context for what a policy sees."""
        sequences, context = (8, 64) if spec.remembers else (256, 1)
        return self.sequences or sequences, self.context or context


def updates_for(spec: ObservationSpec) -> int:
    """Gradient steps that are enough as a rule: 1,500 batches of episodes seen in pictures, 5,000 of single states."""
    return 1500 if spec.remembers else 5000


def algorithm_called(name: str) -> Any:
    """The class of an algorithm that learns from recorded transitions.

    Raises:
        UnknownName: if there is no algorithm of that name.
        UsageError: if it learns while acting.
    """
    found = discover.load("algorithms", name)
    if not issubclass(found, Algorithm):
        cure = f"Let it act, with a rater or the true reward beside it: guerdon online true --algorithm {name}"
        raise UsageError(f"{name} learns while it acts, not from recorded data", cure=cure)
    return found


def use_one_thread() -> None:
    """Keeps torch to one thread in this process: two runs side by side on two cores are faster than one run on both."""
    torch.set_num_threads(1)


def train(
    transitions: Transitions,
    algorithm_name: str,
    config: Any = None,
    *,
    updates: int | None = None,
    seed: int,
    out: Path,
    loop: Config | None = None,
    progress: Progress | None = None,
    log_to_tensorboard: bool = False,
    resume: bool = True,
) -> Path:
    """Trains one policy; goes on where an earlier call with the same arguments stopped, with the same numbers as if it had not.

    Args:
        transitions: what to learn from.
        algorithm_name: a file of `guerdon.algorithms`, e.g. "iql".
        config: the algorithm's own `Config`; None takes its defaults.
        updates: gradient steps to make; None takes `updates_for` what the policy sees.
        seed: of the initial weights and of the order of the data.
        out: folder of this policy.
        loop: batches and checkpoints; None takes the defaults.
        progress: told how far it is.
        log_to_tensorboard: also write the metrics for TensorBoard.
        resume: False begins anew, whatever lies in `out`.

    Returns:
        `out`, ready for `guerdon.training.policy.load_policy`.

    Raises:
        UnknownName: if there is no such algorithm.
        StaleInput: if `out` holds a run on other data, with other settings or another seed.
        UsageError: if `updates` is not positive, or the algorithm learns while acting.
        PolicyError: if the loss stops being a finite number.
        WriteFailed: if the disk is full or not writable.
    """
    run = _run_of(transitions, algorithm_name, config, updates, seed, out, loop)
    if not resume:
        run.clear()
    if not run.is_finished():
        run.restore()
        run.learn(progress, log_to_tensorboard)
    return run.out


def require_possible(transitions: Transitions, algorithm_name: str, config: Any = None, *, loop: Config | None = None) -> None:
    """Raises what `train` would raise with these arguments before it learns anything, so that nothing is thrown away for a training that
    cannot be."""
    _run_of(transitions, algorithm_name, config, 1, 0, Path(), loop)


def advantages(
    transitions: Transitions,
    algorithm_name: str,
    config: Any = None,
    *,
    updates: int | None = None,
    seed: int,
    out: Path,
    loop: Config | None = None,
) -> dict[tuple[int, int], npt.NDArray[np.float32]] | None:
    """What a finished training thinks of the recorded actions: (episode, annotation) -> Q(s, a) - V(s) of each transition (T,).

    Takes the arguments that `train` was called with. None for an algorithm that estimates no advantages (imitation).

    Raises:
        StaleInput: if `out` holds a training on other data, with other settings or another seed.
    """
    run = _run_of(transitions, algorithm_name, config, updates, seed, out, loop)
    if not hasattr(run.algorithm, "advantages"):
        return None
    run.restore()
    found: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
    for number, trajectory in enumerate(transitions.trajectories):
        batch = collate(transitions, [Chunk(number, 0, trajectory.length)]).to(run.machine.device)
        found[trajectory.episode, trajectory.annotation] = run.algorithm.advantages(batch)[batch.acted].cpu().numpy().astype(np.float32)
    return found


def updates_within(
    seconds: float, transitions: Transitions, algorithm_name: str, config: Any = None, *, loop: Config | None = None, trial: int = 12
) -> int:
    """How many updates take about `seconds` on this machine as busy as it is now, from timing `trial` of them; nothing is kept.

    The number differs from one call to the next: write it down and train with `updates=` that number to be repeatable.
    """
    algorithm_class = algorithm_called(algorithm_name)
    algorithm = algorithm_class(transitions, config or algorithm_class.Config(), seed=0, updates=trial + 1)
    loop = loop or Config()
    sequences, context = loop.of(transitions.spec)
    sampler = Sampler(transitions, sequences=sequences, context=context, seed=0)
    machine = loop.machine()
    algorithm.to(machine.device)
    algorithm.learn(sampler, 1, machine)
    begin = time.perf_counter()
    algorithm.learn(sampler, trial, machine)
    return max(1, int(seconds * trial / (time.perf_counter() - begin)))


def _run_of(
    transitions: Transitions, algorithm_name: str, config: Any, updates: int | None, seed: int, out: Path, loop: Config | None
) -> _TrainingRun:
    """A run at its beginning, whatever lies in `out`."""
    updates = updates_for(transitions.spec) if updates is None else updates
    if updates < 1:
        raise UsageError(f"updates must be at least 1, got {updates}")
    algorithm_class = algorithm_called(algorithm_name)
    config = config or algorithm_class.Config()
    loop = loop or Config()
    algorithm = algorithm_class(transitions, config, seed=seed, updates=updates)
    sequences, context = loop.of(transitions.spec)
    sampler = Sampler(transitions, sequences=sequences, context=context, seed=seed)
    asked = {
        "algorithm": algorithm_class.name,
        "config": asdict(config),
        "updates": updates,
        "sequences": sequences,
        "context": context,
        "seed": seed,
        "data": transitions.fingerprint,
        **loop.decisive(),
    }
    return _TrainingRun(algorithm, sampler, transitions.spec, loop, asked, Path(out))


class _TrainingRun:
    """One run: algorithm, place in the data and updates made, with the folder where they are kept."""

    def __init__(self, algorithm: Any, sampler: Sampler, spec: ObservationSpec, loop: Config, asked: dict[str, Any], out: Path) -> None:
        self.algorithm, self.sampler, self.spec, self.loop, self.out = algorithm, sampler, spec, loop, out
        self.asked = asked
        """Everything that decides the result."""
        self.made = 0
        self.seconds = 0.0
        self.machine = loop.machine()
        algorithm.require(sampler, self.machine)
        algorithm.to(self.machine.device)

    def clear(self) -> None:
        for name in (RECORD, CHECKPOINT, METRICS):
            (self.out / name).unlink(missing_ok=True)

    def is_finished(self) -> bool:
        if not (self.out / RECORD).is_file():
            return False
        self._check(read_record(self.out).get("training", {}), self.out / RECORD)
        return True

    def restore(self) -> None:
        path = self.out / CHECKPOINT
        if not path.is_file():
            return
        tensors, record = read_tensors(path)
        self._check(record.get("asked", {}), path)
        self.algorithm.load_state(_nest(tensors))
        self.sampler.load_state(record["sampler"])
        self.made, self.seconds = record["made"], record["seconds"]

    def _check(self, found: Mapping[str, Any], path: Path) -> None:
        differing = [name for name, value in self.asked.items() if canonical_json(found.get(name)) != canonical_json(value)]
        if differing:
            cure = "Choose another folder, or begin anew with resume=False."
            raise StaleInput(f"belongs to a run with other {', '.join(differing)}", where=str(path), cure=cure)

    def learn(self, progress: Progress | None, log_to_tensorboard: bool) -> None:
        with ExitStack() as open_files:
            listeners: list[Callable[[Mapping[str, float]], None]] = [_MetricsFile(self.out / METRICS, self.made).append]
            if log_to_tensorboard:
                board = TensorBoard(self.out, done=self.made)
                open_files.callback(board.close)
                listeners.append(lambda line: board.write(self.made, line))
            self._learn(progress, listeners)
        save_policy(self.out, self.algorithm.policy, self.spec, self.asked)

    def _learn(self, progress: Progress | None, listeners: Sequence[Callable[[Mapping[str, float]], None]]) -> None:
        updates: int = self.asked["updates"]
        while self.made < updates:
            means = self._updates(min(self.loop.log_every, updates - self.made))
            for listen in listeners:
                listen({"update": self.made, "seconds": round(self.seconds, 3), **means})
            if self.made % self.loop.checkpoint_every == 0 or self.made == updates:
                self._save()
            if progress:
                progress(self.made, updates)

    def _updates(self, count: int) -> dict[str, float]:
        """Makes `count` updates; returns the means of their metrics, which are read from the device once, at the end."""
        begin = time.perf_counter()
        with self._products():
            sums = self.algorithm.learn(self.sampler, count, self.machine)
        means = {name: float(total) / count for name, total in sums.items()}
        self.made += count
        self.seconds += time.perf_counter() - begin
        broken = [name for name, mean in means.items() if not math.isfinite(mean)]
        if broken:
            cure = "Use a lower learning rate or smaller rewards."
            what = f"training diverged: {', '.join(broken)} is not finite near update {self.made}"
            raise PolicyError(what, where=str(self.out), cure=cure)
        return means

    def _products(self) -> AbstractContextManager[Any]:
        """oneDNN's products cost more than they save in the tiny steps of a memory."""
        return nullcontext() if self.spec.remembers or self.machine.device.type != "cpu" else quick_products()

    def _save(self) -> None:
        record = {"asked": self.asked, "sampler": self.sampler.state(), "made": self.made, "seconds": self.seconds}
        write_tensors(self.out / CHECKPOINT, dict(_flatten(self.algorithm.state())), record)


class _MetricsFile:
    """metrics.jsonl, without the lines that come after the checkpoint that the run goes on from."""

    def __init__(self, path: Path, made: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if _update_of(line) <= made]
        with writing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def append(self, line: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _update_of(line: str) -> float:
    """The update that a line of metrics belongs to; infinity for a line that was cut off."""
    try:
        return int(json.loads(line)["update"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _flatten(state: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    """Nested mappings of tensors as (path, tensor); the inverse of `_nest`."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield f"{above}{name}", value
        else:
            yield from _flatten(value, f"{above}{name}/")


def _nest(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """{"a/b": tensor} -> {"a": {"b": tensor}}."""
    nested: dict[str, Any] = {}
    for path, tensor in tensors.items():
        *folders, name = path.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = tensor
    return nested
