"""A run folder: everything made from one dataset, each part with a manifest that says from what and how.

    run.json                       which dataset, and the run's own id; written before the first part
    labels/NAME.parquet            + NAME.json, its manifest
    labels/NAME.corrections.parquet, NAME.machine.parquet     labels set by hand, and those that they stand in for
    rewards/NAME.parquet           + NAME.json
    policies/NAME/seed-K/          with manifest.json
    pictures/VIEW-FINGERPRINT.npy  copies for training, of pictures that do not fit into memory; may be deleted
    evaluations/NAME/seed-K.jsonl  + seed-K.json
    report.html

A part is written under a temporary name and renamed; its manifest comes last, so a manifest means that the part is whole. A part whose
inputs changed is refused, not silently reused.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs

from guerdon.errors import RunError, StaleInput, UsageError, WriteFailed

FORMAT = 1

_CANNOT_WRITE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""What goes wrong with a disk, or with a path that leads through a file."""
_MAKE_ROOM = "Free some space or choose another folder, then run the same command again."
_UNFINISHED = ".part"
"""Ending of temporary names; a killed process may leave one behind."""


def package_version() -> str:
    """Version of the installed package, or "unknown" in a source tree that is not installed."""
    try:
        return version("guerdon")
    except PackageNotFoundError:
        return "unknown"


def user_data_folder() -> Path:
    """The folder of this user for what outlives a run: the reply store, agreements. Raises UsageError if the user has no home."""
    try:
        return Path(platformdirs.user_data_dir("guerdon", appauthor=False))
    except RuntimeError:
        raise UsageError("this user has no home folder to keep replies in", cure="Set the environment variable HOME.") from None


def command_line() -> str:
    """The command that this process (or the one that started it) was called with, without passwords; empty for calls from Python."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    return without_password(shlex.join(["guerdon", *sys.argv[1:]])) if program in ("guerdon", "__main__.py") else ""


def without_password(text: str) -> str:
    """`text` with the password of every URL in it replaced by stars."""
    text = re.sub(r"(\w://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` if the block succeeds, removed otherwise. Works for files and for folders.

    Raises:
        WriteFailed: if the disk is full or not writable; nothing is left under the final name.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)) / path.name
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            raise WriteFailed(f"cannot write: {os.strerror(error.errno)}", where=str(path), cure=_MAKE_ROOM) from error
        raise
    finally:
        if temporary is not None:
            shutil.rmtree(temporary.parent, ignore_errors=True)


@contextmanager
def disk_refusals(where: Path, cure: str = _MAKE_ROOM) -> Iterator[None]:
    """What the system says of a disk becomes WriteFailed, with a cure."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(f"cannot write: {error.strerror or error}", where=str(where), cure=cure) from error
    except WriteFailed as error:
        raise WriteFailed(error.what, where=str(where), cure=cure) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON. Raises RunError if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError("there is no such file", where=str(path)) from None
    except (ValueError, OSError) as error:
        what = f"cannot be read as JSON ({type(error).__name__})"
        raise RunError(what, where=str(path), cure="Delete it and make this part again.") from error


@dataclass(frozen=True)
class Manifest:
    """What was asked (`config`), what it was made from (`inputs`), what happened (`provenance`, `results`)."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name -> fingerprint of everything that the part depends on."""
    results: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": dict(self.config),
            "inputs": dict(self.inputs),
            "results": dict(self.results),
            "provenance": {
                "guerdon": package_version(),
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
                "command": command_line(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                **self.provenance,
            },
        }


class Run:
    """A run folder on disk.

    Build with `Run.open_or_create`, which refuses a folder that belongs to another dataset.
    """

    def __init__(self, path: Path) -> None:
        record = _mapping(path / "run.json")
        if record.get("format") != FORMAT:
            cure = "Use the version of guerdon that made it, or a new folder."
            raise RunError(f"is a run folder of format {record.get('format')}, this version reads {FORMAT}", where=str(path), cure=cure)
        dataset = record["dataset"] if isinstance(record.get("dataset"), dict) else {}
        named = all(isinstance(dataset.get(key), str) for key in ("path", "fingerprint"))
        if not named or not isinstance(dataset.get("options", {}), dict):
            raise RunError("does not say which dataset the run is about", where=str(path / "run.json"), cure="Begin a new run folder.")
        self.path = path
        named_itself = record.get("id")
        self.id: str = named_itself if isinstance(named_itself, str) and named_itself else _id_by_place(path, dataset["fingerprint"])
        """Under which the run's spending is kept: the same wherever the folder is moved."""
        self.dataset_path = Path(dataset["path"])
        self.dataset_fingerprint: str = dataset["fingerprint"]
        self.dataset_options: dict[str, Any] = dataset.get("options", {})

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Opens an existing run folder. Raises RunError if it is none."""
        path = Path(path)
        if not (path / "run.json").is_file():
            cure = "Make one with: guerdon label DATASET --run RUN"
            raise RunError("is not a run folder (it has no run.json)", where=str(path), cure=cure)
        return cls(path)

    @classmethod
    def open_or_create(cls, path: Path | str, *, dataset_path: Path, fingerprint: str, options: Mapping[str, Any] | None = None) -> Run:
        """Opens the run of this dataset, or begins one in a new or empty folder.

        Raises:
            RunError: if the folder holds a run of another dataset, or other files.
        """
        path = Path(path)
        if not (path / "run.json").is_file():
            if path.exists() and (not path.is_dir() or any(found.suffix != _UNFINISHED for found in path.iterdir())):
                raise RunError("exists and is not a run folder", where=str(path), cure="Choose a new folder for --run.")
            dataset = {"path": os.path.abspath(dataset_path), "fingerprint": fingerprint, "options": dict(options or {})}
            write_json(path / "run.json", {"format": FORMAT, "id": uuid.uuid4().hex, "dataset": dataset})
        run = cls(path)
        if run.dataset_fingerprint != fingerprint:
            if run.dataset_options != dict(options or {}) and run.dataset_path == Path(os.path.abspath(dataset_path)):
                what = f"was begun with the settings {_shown(run.dataset_options)} of its dataset, not with {_shown(options or {})}"
                raise RunError(what, where=str(path), cure="Give the same settings again, or choose another folder for --run.")
            theirs = f"{run.dataset_path}, {run.dataset_fingerprint[:17]}"
            what = f"belongs to another dataset ({theirs}), not to {dataset_path} ({fingerprint[:17]})"
            cure = "Choose another folder for --run; if the dataset itself was changed, its labels no longer fit it."
            raise RunError(what, where=str(path), cure=cure)
        return run

    def part(self, kind: str, name: str) -> Path:
        """Path of a part, e.g. part("labels", "rg_vlm") for labels/rg_vlm.parquet without its ending."""
        return self.path / kind / name

    @staticmethod
    def manifest_path(part: Path) -> Path:
        """Where the manifest of a part lies: in a folder part, or beside a file part (part.parquet -> part.json)."""
        return part / "manifest.json" if not part.suffix else part.with_suffix(".json")

    def finish(self, part: Path, manifest: Manifest) -> None:
        """Writes the manifest of a part, which declares it whole."""
        write_json(self.manifest_path(part), manifest.to_record())

    def manifest(self, part: Path) -> dict[str, Any] | None:
        """The manifest of a part, or None if the part is not there or not whole."""
        path = self.manifest_path(part)
        return read_json(path) if path.is_file() else None

    def holds(self, part: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        """Whether a part is finished and was made from just these settings and inputs, so that it need not be made again."""
        manifest = self.manifest(part)
        return isinstance(manifest, dict) and (manifest.get("config"), manifest.get("inputs")) == (dict(config), dict(inputs))

    def require(self, part: Path, inputs: Mapping[str, str]) -> dict[str, Any]:
        """The manifest of a finished part that was made from `inputs`.

        Raises:
            RunError: if the part is not there, or its manifest is damaged.
            StaleInput: if it was made from other inputs.
        """
        if not self.manifest_path(part).is_file():
            raise RunError("is not there or not finished", where=str(part), cure="Make it again.")
        manifest = _mapping(self.manifest_path(part), "config", "inputs", "results")
        for name, fingerprint in inputs.items():
            if manifest["inputs"].get(name) != fingerprint:
                what = f"was made from another {name} than there is now"
                raise StaleInput(what, where=str(part), cure="Make it again, or use a new run folder.")
        return manifest


def _mapping(path: Path, *sections: str) -> dict[str, Any]:
    """A JSON file of this package: an object, with `sections` that are objects. Raises RunError."""
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), dict) for name in sections):
        raise RunError("does not hold what it should", where=str(path), cure="Delete it and make this part again.")
    return record


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in sorted(options.items())) or "(none)"


def _id_by_place(path: Path, fingerprint: str) -> str:
    """For run folders that were begun without an id. Paths are bytes, not text."""
    return f"{fingerprint}/{path.resolve()}".encode("utf-8", "backslashreplace").decode()
