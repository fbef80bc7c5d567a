"""What a run folder holds, read without trusting it.

A report is written for whatever is there: a run with labels only, a run in which an evaluation was interrupted, a folder somebody edited.
So reading never stops at the first bad file. What cannot be used is left out and named in `Contents.problems`, in words for the reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from guerdon.errors import GuerdonError, RunError
from guerdon.evaluation.statistics import matrices
from guerdon.evaluation.tasks import TaskList
from guerdon.labels import LabelSet
from guerdon.rewards.column import RewardColumn
from guerdon.runs import Run, read_json

Value = TypeVar("Value")

_GIF = (b"GIF87a", b"GIF89a")


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None: what is not known is not zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def text(value: Any) -> str:
    """`value` if it is text, else an empty one."""
    return value if isinstance(value, str) else ""


@dataclass(frozen=True)
class Part:
    """A finished part of a run: its name and its manifest."""

    place: str
    """Where it lies in the run: "labels/rg_vlm", "policies/both/seed-0"."""
    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]
    results: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """Wall time that the part took, if it was recorded."""
        return number(self.results.get("seconds"))


@dataclass(frozen=True)
class Rollout:
    """A recorded episode of a policy."""

    arm: str
    task: str
    instruction: str
    start: str
    wording: str
    length: int
    share: float | None
    """Share of the task completed."""
    steps: int | None
    path: Path
    """GIF file."""


@dataclass(frozen=True)
class Model:
    """A reward model: its part of the run, and what was measured while it was fitted."""

    part: Part
    history: tuple[Mapping[str, Any], ...]
    """One entry an epoch."""


@dataclass(frozen=True)
class Contents:
    """Everything the report is made from."""

    run: Run
    labels: Mapping[str, tuple[Part, LabelSet]]
    rewards: Mapping[str, Part]
    policies: Mapping[str, tuple[Part, ...]]
    """Arm -> one part per seed."""
    evaluations: Mapping[str, tuple[Part, ...]]
    rows: tuple[Mapping[str, Any], ...]
    """Evaluation rows of all arms."""
    rollouts: tuple[Rollout, ...]
    tasks: TaskList | None
    problems: tuple[str, ...] = field(default=())
    """What could not be used, one sentence each."""
    models: Mapping[str, Model] = field(default_factory=dict)
    """Reward models by name."""
    columns: Mapping[str, RewardColumn] = field(default_factory=dict)
    """The rewards that reward models gave, by name."""

    def by_machine(self, part: Part, labels: LabelSet) -> LabelSet:
        """A label set as the rater gave it, before corrections by hand. Raises RunError for a damaged file."""
        path = self.run.part("labels", f"{part.name}.machine.parquet")
        return LabelSet.read(path) if path.is_file() else labels

    @property
    def parts(self) -> Iterator[Part]:
        """All finished parts, in the order of the work."""
        yield from (part for part, _ in self.labels.values())
        yield from (model.part for model in self.models.values())
        yield from self.rewards.values()
        for group in (self.policies, self.evaluations):
            for parts in group.values():
                yield from parts


def read_contents(path: Path) -> Contents:
    """Reads a run folder. Raises RunError only if it is none."""
    return _Reader(Run.open(path)).read()


def stale_parts(contents: Contents) -> list[str]:
    """Parts that were made from something that has been made again since, one sentence each."""
    tasks = contents.tasks.digest if contents.tasks else None
    policies = [part for parts in contents.policies.values() for part in parts]
    sources = {part.place: part for part in contents.parts if part.place.partition("/")[0] in ("labels", "models", "rewards")}
    made = [*(model.part for model in contents.models.values()), *contents.rewards.values()]
    made_from = [
        *((part, place, sources.get(place)) for part in made for place in part.inputs),
        *((part, "rewards", contents.rewards.get(text(part.config.get("reward")))) for part in policies),
    ]
    changed = {
        f"{part.place} was made from another {source.place} than there is now; make it again."
        for part, place, source in made_from
        if source and _differ(part.inputs.get(place), source.results.get("fingerprint"))
    }
    moved = {
        f"{part.place} was made on other tasks than tasks.json now holds; evaluate it again."
        for parts in contents.evaluations.values()
        for part in parts
        if _differ(part.inputs.get("tasks"), tasks)
    }
    return sorted(changed | moved)


def _differ(one: Any, other: Any) -> bool:
    """Whether both are known and unequal."""
    return bool(one and other and one != other)


class _Reader:
    """Reads the parts of one run and gathers what is wrong with them."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.problems: list[str] = []

    def read(self) -> Contents:
        rows = tuple(row for path in self._files("evaluations/*/seed-*.jsonl") for row in self._rows(path))
        return Contents(
            run=self.run,
            labels={part.name: (part, labels) for path in self._files("labels/*.parquet") for part, labels in self._label_set(path)},
            rewards={part.name: part for path in self._files("rewards/*.parquet") for part in self._part(path)},
            policies=self._by_arm("policies/*/seed-*/"),
            evaluations=self._by_arm("evaluations/*/seed-*.jsonl"),
            rows=rows,
            rollouts=tuple(rollout for path in self._files("evaluations/*/rollouts-*/index.json") for rollout in self._rollouts(path)),
            tasks=next((tasks for path in self._files("tasks.json") if (tasks := self._tried(TaskList.load, path))), None),
            models={model.part.name: model for path in self._files("models/*/") for model in self._model(path)},
            columns={path.stem: column for path in self._files("rewards/*.parquet") for column in self._column(path)},
            problems=tuple(dict.fromkeys(self.problems)),
        )

    def _files(self, pattern: str) -> list[Path]:
        return sorted(self.run.path.glob(pattern))

    def _tried(self, function: Callable[[Path], Value], path: Path) -> Value | None:
        try:
            return function(path)
        except GuerdonError as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(f"{path}: cannot be read ({type(error).__name__}).")
        return None

    def _part(self, path: Path) -> Iterator[Part]:
        """The finished part at `path`, or nothing and a problem."""
        manifest = self._tried(self.run.manifest, path)
        if manifest is None:
            self.problems.append(f"{self._place(path)} is not finished (it has no manifest) and was left out.")
            return
        fields = (mapping(mapping(manifest).get(key)) for key in ("config", "inputs", "results", "provenance"))
        yield Part(self._place(path).removesuffix(path.suffix), path.stem, *fields)

    def _label_set(self, path: Path) -> Iterator[tuple[Part, LabelSet]]:
        if "." in path.stem:
            return  # belongs to a label set: what was set by hand in it, or what it was before
        for part in self._part(path):
            labels = self._tried(LabelSet.read, path)
            if labels is not None:
                yield part, labels

    def _model(self, path: Path) -> Iterator[Model]:
        if path.name.startswith("."):
            return  # unfinished: written by a command that was killed, or that runs now
        for part in self._part(path):
            history = path / "metrics.jsonl"
            yield Model(part, tuple((self._tried(_json_lines, history) or []) if history.is_file() else []))

    def _column(self, path: Path) -> Iterator[RewardColumn]:
        """The column at `path` if a reward model gave it; of others the report needs the manifest only."""
        manifest = self._tried(self.run.manifest, path)
        if any(place.partition("/")[0] in ("model", "models") for place in mapping(mapping(manifest).get("inputs"))):
            column = self._tried(RewardColumn.read, path)
            if column is not None and column.by_model:
                yield column

    def _by_arm(self, pattern: str) -> dict[str, tuple[Part, ...]]:
        found: dict[str, tuple[Part, ...]] = {}
        for path in self._files(pattern):
            for part in self._part(path):
                found[path.parent.name] = (*found.get(path.parent.name, ()), part)
        return found

    def _rows(self, path: Path) -> list[Mapping[str, Any]]:
        if not self.run.manifest_path(path).is_file():
            return []
        return self._tried(_evaluation_rows, path) or []

    def _rollouts(self, path: Path) -> Iterator[Rollout]:
        index = self._tried(read_json, path)
        for entry in index if isinstance(index, list) else ():
            item = mapping(entry)
            file = path.parent / Path(text(item.get("file"))).name
            if not _is_gif(file):
                self.problems.append(f"{self._place(path)} names a rollout that is no GIF file beside it: {text(item.get('file'))!r}.")
                continue
            named = {key: text(item.get(key)) for key in ("task", "instruction", "start", "wording")}
            steps = number(item.get("steps"))
            yield Rollout(
                arm=path.parent.parent.name,
                length=int(number(item.get("length")) or 0),
                share=number(item.get("return")),
                steps=None if steps is None else int(steps),
                path=file,
                **named,
            )

    def _place(self, path: Path) -> str:
        return str(path.relative_to(self.run.path))


def _json_lines(path: Path) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for line_number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RunError(f"line {line_number} is no JSON ({type(error).__name__}); the file was left out", where=str(path)) from error
        if not isinstance(row, dict):
            raise RunError(f"line {line_number} is no record; the file was left out", where=str(path))
        rows.append(row)
    return rows


def _evaluation_rows(path: Path) -> list[Mapping[str, Any]]:
    rows = _json_lines(path)
    try:
        matrices(rows)
    except RunError as error:
        raise RunError(f"{error.what}; the file was left out", where=f"{path}, {error.where}", cure=error.cure) from error
    return rows


def _is_gif(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(6) in _GIF
    except OSError:
        return False
