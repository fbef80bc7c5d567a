"""What learning while acting writes down, and how it goes on after a stop: shared by all loops of that kind. Knows no algorithm, no world.

Writes into a folder:

    config.json         the settings that decide the numbers; a folder with others is refused, with the name of what differs
    metrics.jsonl       one line an interval
    evaluations.jsonl   one line an evaluation
    checkpoint/N/       everything that an exact continuation after N steps needs; N is the newest, an older one is deleted afterwards
    tensorboard/        the numbers of both once more, on request

Lines carry a "step". Who goes on from a checkpoint drops the lines after it, which are then written again with the same numbers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guerdon.errors import RunError
from guerdon.runs import FORMAT, package_version, read_json, write_json, writing
from guerdon.training.policy import read_tensors, write_tensors

CONFIG, METRICS, EVALUATIONS, CHECKPOINTS = "config.json", "metrics.jsonl", "evaluations.jsonl", "checkpoint"
_STATE, _LOCK = "state.safetensors", ".lock"

Line = Mapping[str, Any]
"""JSON-ready: "step" and numbers, None where there is none."""


@dataclass(frozen=True)
class Outcome:
    """How one task of an evaluation went."""

    task: str
    """Its id."""
    success: bool
    """Whether the world called it a success at any step."""
    total: float
    """Sum of the world's own rewards."""
    steps: int
    """Actions taken."""


def evaluation_line(step: int, outcomes: Sequence[Outcome], **more: Any) -> dict[str, Any]:
    """The line of an evaluation after `step` steps: shares and means over tasks, and each task's own numbers."""
    count = len(outcomes)
    return {
        "step": step,
        "tasks": count,
        "success": sum(one.success for one in outcomes) / count,
        "return": math.fsum(one.total for one in outcomes) / count,
        "steps": sum(one.steps for one in outcomes) / count,
        **more,
        "outcomes": [{"task": one.task, "success": one.success, "return": one.total, "steps": one.steps} for one in outcomes],
    }


class Lines:
    """A file of JSON lines that a run goes on with."""

    def __init__(self, path: Path, *, until: int) -> None:
        """Keeps the lines up to step `until` and drops the others, such as one that was cut off. Raises WriteFailed."""
        self.path = path
        found = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in found if _step_of(line) <= until]
        with writing(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def append(self, line: Line) -> None:
        """Adds a line. Raises ValueError for a number that is not finite."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file that `Lines` wrote; none if it is not there."""
    found = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in found if _step_of(line) < math.inf]


def _step_of(line: str) -> float:
    """The step that a line belongs to; infinity for a line that was cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


# --- a folder that belongs to settings --------------------------------------------------------------------------------------------------


def begin_or_go_on(out: Path, settings: Mapping[str, Any]) -> None:
    """Begins a run in a new or empty folder, or makes sure that the one there was begun with the same settings.

    Args:
        out: the folder.
        settings: JSON-ready, everything that decides the numbers.

    Raises:
        RunError: if the folder holds other files, or a run with other settings; says which differ, and their values.
    """
    path = out / CONFIG
    if not path.is_file():
        if out.exists() and (not out.is_dir() or any(not found.name.startswith(".") for found in out.iterdir())):
            raise RunError("exists and holds no such run", where=str(out), cure="Choose a new folder for --out.")
        write_json(path, {"format": FORMAT, "guerdon": package_version(), "settings": settings})
        return
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        raise RunError("does not hold what it should", where=str(path), cure="Choose a new folder for --out.")
    if record.get("format") != FORMAT:
        what = f"is of format {record.get('format')}, this version writes {FORMAT}"
        raise RunError(what, where=str(path), cure="Choose a new folder for --out.")
    refuse_others(record["settings"], settings, path)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Makes sure that no other process is at work in a run's folder while the block runs; only where the system has such locks.

    Raises:
        RunError: if one is.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (out / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError("another process is at work in it", where=str(out), cure="Wait for it, or choose another --out.") from None
        yield  # the lock ends with the file, or with the process


def refuse_others(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: Path) -> None:
    """Raises RunError naming the settings in which two runs differ."""
    before, now = dict(_leaves(theirs)), dict(_leaves(json.loads(json.dumps(ours))))
    names = [name for name in sorted(before.keys() | now.keys()) if before.get(name, _ABSENT) != now.get(name, _ABSENT)]
    if names:
        shown = "; ".join(f"{name} was {_shown(before, name)}, is {_shown(now, name)}" for name in names[:_MOST_SHOWN])
        more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
        cure = "Give the same settings to go on, or choose a new folder for --out."
        raise RunError(f"belongs to a run with other settings ({shown}{more})", where=str(where), cure=cure)


_ABSENT = object()
_MOST_SHOWN = 5


def _shown(leaves: Mapping[str, Any], name: str) -> str:
    return json.dumps(leaves[name]) if name in leaves else "not given"


def _leaves(record: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """{"a": {"b": 1}} -> [("a.b", 1)]."""
    found: list[tuple[str, Any]] = []
    for name, value in record.items():
        found += _leaves(value, f"{above}{name}.") if isinstance(value, Mapping) and value else [(f"{above}{name}", value)]
    return found


# --- checkpoints ------------------------------------------------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of a run: at each moment there is a whole one, from the first on."""

    def __init__(self, out: Path) -> None:
        """Of a run's folder, which no other process is at work in: what a killed one left half-written is deleted."""
        self._folder = out / CHECKPOINTS
        for left in self._folder.glob(".*.part"):
            shutil.rmtree(left, ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest whole one, or None."""
        numbers = self._numbers()
        return self._folder / str(max(numbers)) if numbers else None

    def write(self, step: int, fill: Callable[[Path], None]) -> None:
        """Writes one: `fill` puts its files into an empty folder. Older ones are deleted once it is there. Raises WriteFailed."""
        path = self._folder / str(step)
        if not path.is_dir():
            with writing(path) as temporary:
                temporary.mkdir()
                fill(temporary)
        for number in self._numbers():
            if number != step:
                shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def _numbers(self) -> list[int]:
        return [int(found.name) for found in self._folder.iterdir() if found.name.isdecimal()] if self._folder.is_dir() else []


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes nested mappings and lists of tensors, arrays, numbers, texts and None. Raises TypeError for anything else, WriteFailed."""
    tensors: dict[str, torch.Tensor] = {}
    record = _packed(state, tensors)
    write_tensors(folder / _STATE, tensors, {"format": FORMAT, "state": record})


def read_state(folder: Path) -> dict[str, Any]:
    """The inverse of `write_state`. Raises RunError if the file is missing or damaged."""
    tensors, record = read_tensors(folder / _STATE)
    if record.get("format") != FORMAT:
        raise RunError("is a checkpoint of another version", where=str(folder), cure="Choose a new folder for --out.")
    state: dict[str, Any] = _unpacked(record["state"], tensors)
    return state


def _packed(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` as JSON, its tensors by number. A mapping becomes a list of pairs, so that keys keep their type."""
    if isinstance(value, torch.Tensor | np.ndarray):
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(value)
        return ["tensor" if isinstance(value, torch.Tensor) else "array", name]
    if isinstance(value, Mapping):
        return ["mapping", [[_packed(key, tensors), _packed(part, tensors)] for key, part in value.items()]]
    if isinstance(value, list | tuple):
        return ["list" if isinstance(value, list) else "tuple", [_packed(part, tensors) for part in value]]
    if value is None or isinstance(value, bool | int | float | str):
        return ["plain", value]
    if isinstance(value, np.generic):
        return ["plain", value.item()]
    raise TypeError(f"{type(value).__name__} cannot be kept in a checkpoint")


def _unpacked(record: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    kind, value = record
    if kind in ("tensor", "array"):
        return tensors[value] if kind == "tensor" else tensors[value].numpy()
    if kind == "mapping":
        return {_unpacked(key, tensors): _unpacked(part, tensors) for key, part in value}
    if kind in ("list", "tuple"):
        parts = [_unpacked(part, tensors) for part in value]
        return parts if kind == "list" else tuple(parts)
    return value
