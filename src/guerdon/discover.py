"""File name -> class: what there is, found without importing it.

`names("methods")` lists the files of a folder and the entry points of other packages; `load("methods", "rg-vlm")` imports one of them and
returns its one concrete class. In names a hyphen stands for the underscore of the file name. Other packages add to a kind with an entry
point of the group `guerdon.<kind>`, for example in pyproject.toml:

    [project.entry-points."guerdon.providers"]
    my-rater = "my_package.my_rater"
"""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from guerdon import interfaces
from guerdon.errors import MissingExtra, UnknownName

KINDS: dict[str, type | tuple[type, ...]] = {
    "datasets": interfaces.DatasetFormat,
    "providers": interfaces.Provider,
    "methods": interfaces.Method,
    "algorithms": (interfaces.Algorithm, interfaces.OnlineAlgorithm),
    "envs": interfaces.Environment,
}
"""Folder -> the interface that its classes implement, or one of several."""

_NOT_THINGS = {"check"}
"""Files in those folders that serve the others and implement no interface."""

_EXTRA_OF = {
    "torch": "train",
    "tensorboard": "train",
    "minigrid": "babyai",
    "metaworld": "metaworld",
    "mujoco": "metaworld",
    "transformers": "local",
    "llguidance": "local",
}


def _folder(kind: str) -> Path:
    return Path(__file__).parent / kind


def _plugins(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"guerdon.{kind}")}


def names(kind: str) -> list[str]:
    """Names of all things of a kind, sorted. Imports none of them."""
    files = (path.stem for path in _folder(kind).glob("*.py"))
    own = {stem.replace("_", "-") for stem in files if not stem.startswith("_") and stem not in _NOT_THINGS}
    return sorted(own | _plugins(kind).keys())


def load(kind: str, name: str) -> Any:
    """The class called `name`.

    Raises:
        UnknownName: if there is none; the message lists the names there are.
        MissingExtra: if the file needs a package that is not installed.
    """
    name = name.replace("_", "-")
    if name not in names(kind):
        raise UnknownName(kind.removesuffix("s"), name, names(kind))
    plugin = _plugins(kind).get(name)
    try:
        module = importlib.import_module(plugin.module if plugin else f"guerdon.{kind}.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in _EXTRA_OF:
            raise MissingExtra(package, _EXTRA_OF[package]) from error
        raise
    return _concrete_class(module, KINDS[kind])


def _concrete_class(module: ModuleType, interface: type | tuple[type, ...]) -> type:
    found = [
        thing
        for _, thing in inspect.getmembers(module, inspect.isclass)
        if issubclass(thing, interface) and not inspect.isabstract(thing) and thing.__module__ == module.__name__
    ]
    if len(found) != 1:
        wanted = " or ".join(one.__name__ for one in (interface if isinstance(interface, tuple) else (interface,)))
        raise TypeError(f"{module.__name__} must define exactly one concrete {wanted}, found {[c.__name__ for c in found]}")
    return found[0]
