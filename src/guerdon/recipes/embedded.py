"""Training the embedded rater: from seeds to the weights that `--vlm embedded` uses, with a card of what they are worth.

Five stages, each with seeds that no other stage uses:

    data          layouts of all four families of worlds, sub-tasks, and what every action does there (`_embedded_data`)
    looks         the network that looks at one picture with one sub-task in mind (`_embedded_torch`)
    windows       the reasoning over windows of demonstrations: which sub-task is due, and what did the actions do for it
    calibration   of its probabilities, on other demonstrations
    evaluation    on yet others, beside blind tables, full information and controls (`_embedded_evaluation`)

Reads nothing. Writes OUT/babyai.safetensors (the weights), OUT/babyai.json (the card) and OUT/babyai.md (the card for people), and keeps in
OUT/work what the stages made: the same command goes on after the last finished one. All sizes are counts, so that the same seed
and sizes give the same weights, byte by byte, on the same machine.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from guerdon.errors import RunError, UsageError
from guerdon.providers._embedded_file import is_name
from guerdon.recipes import _embedded_card, _study
from guerdon.recipes.parallel import run_apart, run_jobs
from guerdon.recipes.progress import Progress, progress_bar
from guerdon.recipes.settings import as_record, callable_with_settings
from guerdon.records import canonical_json, digest
from guerdon.runs import command_line, package_version, read_json, write_json, writing
from guerdon.seeding import stream_seed

if TYPE_CHECKING:
    from guerdon.recipes._embedded_data import Purpose, Scenes, Window
    from guerdon.recipes._embedded_torch import TorchNetwork

WEIGHTS, CARD, PAGE = "babyai.safetensors", "babyai.json", "babyai.md"
_FORMAT = 1
"""Of what lies in OUT/work; rises when the stages make something else from the same settings."""
_LIBRARIES = ("torch", "numpy", "minigrid", "safetensors")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is made in each stage."""

    layouts: int
    """Layouts of each family of worlds for the looks."""
    looks_updates: int
    windows_tasks: int
    """Demonstrated tasks of each family, for the reasoning."""
    windows_updates: int
    calibration_tasks: int
    """The same, for the calibration."""
    evaluation_tasks: int
    """Demonstrated tasks of each distribution that the rater is tried on."""
    engine_tasks: int
    """Tasks of the dataset that is labelled through the engine."""

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            least = 2 if name.endswith("tasks") else 1  # with a single episode there is no other one to compare with
            if size < least:
                raise UsageError(f"{name} is at least {least}, got {size}")


FULL = Sizes(
    layouts=10_000, looks_updates=12_000, windows_tasks=100, windows_updates=2000, calibration_tasks=40, evaluation_tasks=150,
    engine_tasks=40,
)  # fmt: skip
QUICK = Sizes(
    layouts=100, looks_updates=300, windows_tasks=12, windows_updates=200, calibration_tasks=6, evaluation_tasks=12, engine_tasks=2
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where to, and how large. Sizes that are not given are those of the whole recipe, or with `quick` those of a trial."""

    out: Path
    """Folder for the weights, the card and, in `work`, for what the stages made."""
    quick: bool = False
    """A trial of two minutes on two cores instead of the whole recipe: everything is there, and nothing is any good."""
    seed: int = 0
    """Seed of everything."""
    layouts: int | None = None
    """Layouts of each family of worlds that the looks are trained on."""
    looks_updates: int | None = None
    """Updates of the looks."""
    windows_tasks: int | None = None
    """Demonstrated tasks of each family that the reasoning is trained on."""
    windows_updates: int | None = None
    """Updates of the reasoning."""
    calibration_tasks: int | None = None
    """Demonstrated tasks of each family that the probabilities are calibrated on."""
    evaluation_tasks: int | None = None
    """Demonstrated tasks of each distribution that the rater is tried on."""
    engine_tasks: int | None = None
    """Tasks of the dataset that is labelled through the engine."""
    channels: int | None = None
    """Channels of the network's grid; as it is shipped if not given."""
    blocks: int | None = None
    """Convolutions of the network; as it is shipped if not given."""
    threads: int = 2
    """Threads that training computes with, one or two; makes no difference to what comes out."""
    jobs: int = 0
    """Processes at a time for data and evaluation; as many as there are cores if 0. Makes no difference to what comes out."""
    name: str = "babyai-1"
    """Name of the rater, as labels show it."""
    page: Path | None = None
    """Page whose marks are filled with the card's numbers; none if not given."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"the seed is a number from 0 to {2**32 - 1}, got {self.seed}")
        if self.threads < 1 or self.jobs < 0:
            raise UsageError(f"threads is at least 1 and jobs at least 0, got {self.threads} and {self.jobs}")
        for name in ("channels", "blocks"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise UsageError(f"{name} is at least 1, got {size}")
        if not is_name(self.name):
            raise UsageError(f"a rater's name is one word without colons, commas and @, got '{self.name}'")
        self.sizes  # noqa: B018 (refuses sizes that cannot be)

    @property
    def sizes(self) -> Sizes:
        """The sizes in force."""
        preset = QUICK if self.quick else FULL
        given = {each.name: getattr(self, each.name) for each in fields(Sizes)}
        return replace(preset, **{name: size for name, size in given.items() if size is not None})


@callable_with_settings(Config)
def train_embedded(config: Config) -> Path:
    """Trains, calibrates and evaluates a rater; returns the path of its card.

    Whatever an earlier call with the same settings finished in the folder is used again.

    Raises:
        UsageError, RunError, WriteFailed, EnvironmentFailed, MissingExtra: each says what to do.
    """
    if config.page is not None:
        _check_page(config.page)
    folder, sizes, watch = config.out, config.sizes, _Watch(config)
    write_json(folder / "work" / "settings.json", as_record(config))  # a folder that cannot be written is told now, and not in the end
    network, learned = _trained(config, watch)
    weights = folder / WEIGHTS
    _write_weights(weights, network, config.name)
    _remove_card_of_others(folder)
    evaluation = _evaluation(config, watch, weights=weights, known_tasks=learned.tasks)
    card = {
        "name": config.name,
        "what": _embedded_card.WHAT,
        "not": list(_embedded_card.WHAT_NOT),
        "limits": list(_embedded_card.LIMITS),
        "date": datetime.now(UTC).date().isoformat(),
        "package": package_version(),
        "command": command_line(),
        "libraries": _libraries(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "seed": config.seed,
        "seeds": _seeds(config),
        "threads": config.threads,
        "sizes": asdict(sizes),
        "network": _facts_of(weights),
        "training": learned.record,
        **evaluation,
        "seconds": {**watch.seconds, "total": sum(watch.seconds.values())},
    }
    write_json(folder / CARD, _rounded(card))
    written = read_json(folder / CARD)
    _write_text(folder / PAGE, _embedded_card.page(written))
    if config.page is not None:
        _study.fill_page(config.page, partial(_embedded_card.value_of, card=written))
    return folder / CARD


def _check_page(path: Path) -> None:
    """Raises UsageError for a page that nothing could be filled in on: now, and not after all the work."""
    keys: list[str] = []

    def noted(key: str) -> str:
        keys.append(key)
        return ""

    try:
        _study.filled(path.read_text(encoding="utf-8"), noted)
        problem = "" if keys else "the page holds no marks"
    except FileNotFoundError:
        problem = "there is no such page"
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the page cannot be read as text ({type(error).__name__})"
    if problem:
        raise UsageError(problem, where=str(path), cure="Give one that holds marks: <!-- fill KEY --><!-- /fill -->")


def _rounded(value: Any) -> Any:
    """`value` with all fractions in it rounded to five decimals: a card is read by people."""
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


# --- stages ---------------------------------------------------------------------------------------------------------------------------


class _Watch:
    """Runs stages: a progress bar for each, and how long it took, also where it was finished by an earlier call."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, words: str) -> Iterator[Progress]:
        """A stage, which adds to the seconds of `name`."""
        began = time.monotonic()
        with progress_bar(words, quiet=self._config.quiet, share=True) as progress:
            yield progress
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def kept(self, name: str, path: Path) -> None:
        """Adds what a stage took that was finished before."""
        before = path.with_name(path.name + ".seconds")
        if before.is_file():
            self.seconds[name] = self.seconds.get(name, 0.0) + float(read_json(before))

    def finished(self, path: Path, seconds: float) -> None:
        """Remembers what a stage took whose result lies in `path`."""
        write_json(path.with_name(path.name + ".seconds"), seconds)


@dataclass(frozen=True)
class _Learned:
    """What training leaves behind beside the network."""

    record: Mapping[str, Any]
    """Last losses of each stage."""
    tasks: frozenset[str]
    """Tasks whose demonstrations it was trained or calibrated on."""


def _trained(config: Config, watch: _Watch) -> tuple[TorchNetwork, _Learned]:
    """The network after all training, and what it learned from."""
    from guerdon.recipes import _embedded_torch

    network, looks = _looks(config, watch)
    learning = _windows(config, watch, "windows", config.sizes.windows_tasks)
    losses: dict[str, float] = {}
    with watch.stage("windows", "training the reasoning") as progress:
        settings = _embedded_torch.WindowsConfig(updates=config.sizes.windows_updates, threads=config.threads)
        seed = stream_seed(config.seed, "embedded reasoning")
        _embedded_torch.train_windows(network, learning, settings, seed=seed, progress=_telling(progress, losses))
    others = _windows(config, watch, "calibration", config.sizes.calibration_tasks)
    learned_tasks = {window.task for window in learning}
    with watch.stage("calibration", "calibrating"):
        fitted = _embedded_torch.calibrate(network, [window for window in others if window.task not in learned_tasks])
    tasks = frozenset(learned_tasks | {window.task for window in others})
    return network, _Learned({"looks": looks, "windows": losses, "calibration": dict(fitted)}, tasks)


def _telling(progress: Progress, losses: dict[str, float]) -> Callable[[int, int, Mapping[str, float]], None]:
    """Reports progress, and remembers the last losses."""

    def told(done: int, total: int, means: Mapping[str, float]) -> None:
        losses.update(means)
        progress(done, total)

    return told


def _looks(config: Config, watch: _Watch) -> tuple[TorchNetwork, dict[str, float]]:
    """The network with trained looks, and its last losses."""
    from safetensors import torch as storage

    from guerdon.recipes import _embedded_torch

    sizes = {name: size for name in ("channels", "blocks") if (size := getattr(config, name)) is not None}
    settings = _embedded_torch.LooksConfig(updates=config.sizes.looks_updates, threads=config.threads, **sizes)
    network = _embedded_torch.TorchNetwork(channels=settings.channels, blocks=settings.blocks)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    path = _work(config, "looks", [config.sizes.layouts, asdict(settings), shapes], "safetensors")
    losses: dict[str, float] = {}
    if path.is_file() and path.with_suffix(".json").is_file():
        watch.kept("data", path.with_name(path.name + ".data"))
        watch.kept("looks", path)
        with _reading(path):
            network.load_state_dict(storage.load_file(path))
        return network, dict(read_json(path.with_suffix(".json")))
    scenes = _scenes(config, watch)
    began = time.monotonic()
    with watch.stage("looks", "training the looks") as progress:
        seed = stream_seed(config.seed, "embedded looks")
        network = _embedded_torch.train_looks(scenes, settings, seed=seed, progress=_telling(progress, losses))
    write_json(path.with_suffix(".json"), losses)
    watch.finished(path.with_name(path.name + ".data"), watch.seconds["data"])
    watch.finished(path, time.monotonic() - began)
    with writing(path) as temporary:
        # Not by the library's own function for files: a full disk is no OSError of it.
        temporary.write_bytes(storage.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}))
    return network, losses


def _scenes(config: Config, watch: _Watch) -> dict[str, Scenes]:
    """Scenes of every family of worlds."""
    from guerdon.envs._babyai_world import LEVELS
    from guerdon.recipes import _embedded_data

    found = {}
    for level in LEVELS:
        seeds = _embedded_data.layout_seeds("looks", config.seed, config.sizes.layouts)
        path = _work(config, f"scenes-{level}", [config.sizes.layouts, asdict(_embedded_data.Variety())], "npz")
        if path.is_file():
            watch.kept("data", path)
            with _reading(path), path.open("rb") as kept, np.load(kept) as arrays:
                found[level] = _embedded_data.Scenes(level=level, **dict(arrays))
            continue
        began = time.monotonic()
        with watch.stage("data", f"laying out {level}") as progress:
            found[level] = _embedded_data.scenes_in_processes(level, seeds, workers=config.jobs, progress=progress)
        watch.finished(path, time.monotonic() - began)
        arrays = {each.name: getattr(found[level], each.name) for each in fields(found[level]) if each.name != "level"}
        with writing(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **arrays)
    return found


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises RunError if what an earlier call left in `path` cannot be read."""
    try:
        yield
    except Exception as error:
        what = f"cannot be read ({type(error).__name__}): it was damaged after it had been written"
        raise RunError(what, where=str(path), cure="Delete it; the same command then makes it again.") from error


def _work(config: Config, name: str, settings: Any, ending: str) -> Path:
    """Where the result of a stage is kept; another place for other settings, seeds and versions."""
    made_by = [_FORMAT, package_version(), _libraries(), config.seed, settings]
    return config.out / "work" / f"{name}-{digest(canonical_json(made_by)).partition(':')[2][:16]}.{ending}"


# --- windows --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Recorded:
    """Demonstrations to be recorded for the reasoning."""

    level: str
    lengths: tuple[int, int]
    pilot: bool
    """Whether demonstrators stray as in `PILOT_NOISE`."""
    seed: int
    tasks: int


_LENGTHS: Mapping[str, tuple[int, int]] = {"small": (1, 4)}
"""Least and greatest number of sub-tasks where it is not 1 to 6: a small world has no more that differ."""


def _windows(config: Config, watch: _Watch, purpose: Literal["windows", "calibration"], tasks: int) -> list[Window]:
    """Windows of all families, each judged by the whole chain, and the parts of them in which one sub-task is due, by its own words."""
    from guerdon.envs._babyai_world import LEVELS
    from guerdon.recipes import _embedded_data

    seed = _embedded_data.recording_seed(purpose, config.seed)
    jobs = [_Recorded(level=level, lengths=_LENGTHS.get(level, (1, 6)), pilot=False, seed=seed, tasks=tasks) for level in LEVELS]
    jobs.append(_Recorded(level="one-room", lengths=(1, 1), pilot=True, seed=stream_seed(seed, "pilot"), tasks=tasks))
    with watch.stage(purpose, f"demonstrations for the {purpose}") as progress:
        recorded = run_jobs(_record, jobs, workers=config.jobs, progress=progress)
    whole = [window for windows in recorded for window in windows]
    return [*whole, *(part for window in whole if len(window.phrases) > 1 for part in by_subtask(window))]


def _record(job: _Recorded, progress: Progress) -> list[Window]:
    from guerdon.recipes import _embedded_data

    noise = _embedded_data.PILOT_NOISE if job.pilot else None
    found = _embedded_data.windows(job.level, seed=job.seed, tasks=job.tasks, demonstrations=1, lengths=job.lengths, noise=noise)
    progress(1, 1)
    return found


def by_subtask(window: Window) -> list[Window]:
    """The parts of a window in which one sub-task is due, as windows of their own with that sub-task's words as instruction."""
    due, parts, start = window.subtask[: len(window.actions)].tolist(), [], 0
    for clause, members in groupby(due):
        stop = start + len(list(members))
        observations = slice(start, stop + 1)
        share = np.clip(window.quality[observations] * len(window.phrases) - clause, 0.0, 1.0)
        parts.append(
            replace(
                window,
                start=window.start + start,
                instruction=window.phrases[clause],
                phrases=(window.phrases[clause],),
                pictures=window.pictures[observations],
                actions=window.actions[start:stop],
                contribution=window.contribution[start:stop],
                subtask=np.clip(window.subtask[observations] - clause, 0, 1),
                quality=share,
            )
        )
        start = stop
    return parts


# --- weights and evaluation -----------------------------------------------------------------------------------------------------------


def _write_weights(path: Path, network: TorchNetwork, name: str) -> None:
    from guerdon.recipes._embedded_file import write_weights
    from guerdon.recipes._embedded_torch import export

    write_weights(path, export(network), name=name)


def _remove_card_of_others(folder: Path) -> None:
    """Removes a card that is about other weights than those that now lie beside it: until the new one is written, there is none."""
    described = read_json(folder / CARD) if (folder / CARD).is_file() else None
    if described is not None and described.get("network", {}).get("digest") != digest((folder / WEIGHTS).read_bytes()):
        for name in (CARD, PAGE):
            (folder / name).unlink(missing_ok=True)


def _facts_of(weights: Path) -> dict[str, Any]:
    """What the card says of the network."""
    from guerdon.providers import _embedded_file

    found = _embedded_file.read(weights, cure="Train it again: guerdon train-embedded --out FOLDER")
    network = found.network
    return {
        "parameters": network.parameters,
        "channels": network.channels,
        "blocks": network.blocks,
        "bytes": weights.stat().st_size,
        "digest": found.digest,
    }


def _evaluation(config: Config, watch: _Watch, *, weights: Path, known_tasks: frozenset[str]) -> dict[str, Any]:
    """What was measured: "evaluation", "engine" and "speed" of the card."""
    from guerdon.recipes import _embedded_evaluation

    seeds, sizes = _seeds(config), config.sizes
    about = [digest(weights.read_bytes()), sizes.evaluation_tasks, sizes.engine_tasks]
    path = _work(config, "evaluation", about, "json")
    if path.is_file():
        watch.kept("evaluation", path)
        return dict(read_json(path))
    began = time.monotonic()
    with watch.stage("evaluation", "evaluating") as progress:
        tried = _embedded_evaluation.evaluate(
            weights, tasks=sizes.evaluation_tasks, seed=seeds["evaluation"], blind_seed=seeds["blind tables"], known_tasks=known_tasks,
            workers=config.jobs, progress=progress,
        )  # fmt: skip
    with watch.stage("evaluation", "labelling through the engine") as progress:
        engine = run_apart(
            _embedded_evaluation.through_the_engine,
            _embedded_evaluation.EngineJob(
                weights=weights, folder=path.with_suffix(""), tasks=sizes.engine_tasks, seed=seeds["engine"], known_tasks=known_tasks
            ),
            progress=progress,
        )
    with watch.stage("evaluation", "measuring the speed") as progress:
        job = _embedded_evaluation.SpeedJob(weights=weights, seed=seeds["evaluation"], seconds=0.5 if config.quick else 2.0)
        speed = run_apart(_embedded_evaluation.speed, job, progress=progress)
    found = {"evaluation": tried, "engine": engine, "speed": speed}
    watch.finished(path, time.monotonic() - began)
    write_json(path, found)
    return found


def _seeds(config: Config) -> dict[str, Any]:
    """Seeds of every stage."""
    from guerdon.recipes import _embedded_data

    layouts = _embedded_data.layout_seeds("looks", config.seed, config.sizes.layouts)
    purposes: Sequence[Purpose] = ("windows", "calibration", "evaluation")
    evaluation = _embedded_data.recording_seed("evaluation", config.seed)
    return {
        "layouts for the looks": [layouts.start, layouts.stop],
        "looks": stream_seed(config.seed, "embedded looks"),
        "reasoning": stream_seed(config.seed, "embedded reasoning"),
        **{purpose: _embedded_data.recording_seed(purpose, config.seed) for purpose in purposes},
        "blind tables": stream_seed(evaluation, "blind tables"),
        "engine": stream_seed(evaluation, "engine"),
    }


def _libraries() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in _LIBRARIES}


def _write_text(path: Path, text: str) -> None:
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
