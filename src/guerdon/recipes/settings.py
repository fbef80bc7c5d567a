"""Settings of commands: the same frozen dataclass serves the command line, a YAML file and a Python call.

A recipe defines a `Config` and a function of it, and publishes the function through `callable_with_settings`, so that
`guerdon.label(dataset="data", run="runs/a")` is the same as `guerdon label data --run runs/a`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, get_args, get_type_hints

Parameters = ParamSpec("Parameters")
Settings = TypeVar("Settings")
Result = TypeVar("Result")


class Command(Generic[Parameters, Settings, Result]):
    """A function of settings: called with the settings by name, or with a whole Config through `of`."""

    def __init__(self, config: Callable[Parameters, Settings], function: Callable[[Settings], Result]) -> None:
        self._config, self._function = config, function
        self.__doc__ = f"{function.__doc__}\n\nSettings are those of `{function.__module__}.Config`:\n\n{config.__doc__}"
        self.__name__, self.__module__ = function.__name__, function.__module__

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        paths = self._path_names()
        given: Any = {name: Path(value) if name in paths and isinstance(value, str) else value for name, value in kwargs.items()}
        return self._function(self._config(*args, **given))

    def _path_names(self) -> set[str]:
        """Settings that are paths; in a Python call they may be given as text."""
        hints = get_type_hints(self._config)
        return {name for name, hint in hints.items() if Path in (hint, *get_args(hint))}

    def of(self, config: Settings) -> Result:
        """Runs with settings that are already a Config."""
        return self._function(config)


def callable_with_settings(
    config: Callable[Parameters, Settings],
) -> Callable[[Callable[[Settings], Result]], Command[Parameters, Settings, Result]]:
    """Turns a function of a Config into a function of the Config's fields, given by name."""
    return lambda function: Command(config, function)


def as_record(config: Any) -> dict[str, Any]:
    """A Config as JSON-ready data, for manifests: paths as text, nested Configs as mappings."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_record(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
