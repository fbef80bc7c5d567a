"""From the words of a command line to Configs, with help, errors and `--config FILE.yaml`.

A command names its sections: Config classes whose fields become flags, flat or under a prefix. The dataclasses are the one source of
flags, defaults and help (the docstring under each field).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
import yaml

from guerdon.errors import UsageError


def parse(command: str, description: str, sections: Mapping[str, type], arguments: Sequence[str]) -> dict[str, Any]:
    """The Config of each section.

    Args:
        command: name of the sub-command, for usage lines.
        sections: name -> Config class. A name that begins with an underscore is flat (`--window`), any other is a prefix
            (`--scripted.flip`).
        arguments: what follows the sub-command.

    Raises:
        UsageError: for a YAML file that cannot be read, or holds a key or a value that does not fit.
        SystemExit: by tyro, after `--help` (0) or a flag that does not fit (2).
    """
    path, rest = value_of_flag("--config", arguments)
    given = _read_yaml(Path(path)) if path else {}
    adjusted = {name: _with_defaults(name, config, given) for name, config in sections.items()}
    if given:
        raise UsageError(f"no setting is called '{min(map(str, given))}'", where=str(path), cure=f"See: guerdon {command} --help")
    fields = [
        (name, Annotated[config, tyro.conf.arg(name="" if name.startswith("_") else name)]) for name, config in adjusted.items()
    ]
    whole = dataclasses.make_dataclass("Whole", fields, kw_only=True)
    epilogue = "Every command also takes --config FILE.yaml with the same settings; flags win over the file."
    markers = (tyro.conf.FlagCreatePairsOff,)
    parsed: Any = tyro.cli(whole, args=list(rest), prog=f"guerdon {command}", description=f"{description}\n\n{epilogue}", config=markers)
    return {name: _as(config, getattr(parsed, name)) for name, config in sections.items()}


def value_of_flag(flag: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--flag VALUE` or `--flag=VALUE`, and the arguments without it. Raises UsageError if the value is missing."""
    rest: list[str] = []
    value: str | None = None
    words = iter(arguments)
    for word in words:
        if word == flag:
            value = next(words, None)
            if value is None:
                raise UsageError(f"{flag} needs a value")
        elif word.startswith(f"{flag}="):
            value = word.split("=", 1)[1]
        else:
            rest.append(word)
    return value, rest


def values_of_flag(flag: str, arguments: Sequence[str], default: Sequence[str]) -> list[str]:
    """All values of a flag that may be repeated or take several words (`--vlm a b --vlm c`); `default` if it does not occur."""
    values: list[str] = []
    collecting = False
    for word in arguments:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            collecting = name == flag and not value
            if name == flag and value:
                values.append(value)
        elif collecting:
            values.append(word)
    return values or list(default)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot be read as YAML ({type(error).__name__})", where=str(path)) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError("must hold settings as 'name: value' lines", where=str(path))
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _with_defaults(name: str, config: type, given: dict[str, Any]) -> type:
    """`config` with the defaults that the YAML file gives; takes what it uses out of `given`."""
    own = given if name.startswith("_") else given.pop(name, {})
    if not isinstance(own, dict):
        raise UsageError(f"'{name}' must hold settings of its own")
    hints = get_type_hints(config, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(config):
        if field.name in own:
            value = _checked(field.name, hints[field.name], own.pop(field.name))
            fields.append((field.name, hints[field.name], dataclasses.field(default=value)))
    if own and not name.startswith("_"):
        raise UsageError(f"no setting is called '{name}.{min(own)}'")
    if not fields:
        return config
    return dataclasses.make_dataclass(config.__name__, fields, bases=(config,), frozen=True, kw_only=True)


def _checked(name: str, hint: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise UsageError(f"'{name}' cannot be {value!r}: {error.errors()[0]['msg'].lower()}") from None


def _as(config: type, parsed: Any) -> Any:
    """`parsed` as a plain `config`, not the class made for its defaults."""
    return config(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(config)})
