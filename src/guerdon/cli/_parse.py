"""From the words of a command line to Configs, with help, errors and `--config FILE.yaml`.

A command names its sections: Config classes whose fields become flags, flat or under a prefix. The dataclasses are the one source of
flags, defaults and help (the docstring under each field).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
import yaml

from guerdon.errors import UnknownName, UsageError


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
    adjusted = _adjusted(sections, path, command)
    fields = [
        (_field(name), Annotated[config, tyro.conf.arg(name="" if name.startswith("_") else name)]) for name, config in adjusted.items()
    ]
    whole = dataclasses.make_dataclass("Whole", fields, kw_only=True)
    epilogue = "Every command also takes --config FILE.yaml with the same settings; flags win over the file."
    parsed: Any = tyro.cli(
        whole, args=_repeats_joined(rest, _flags_of_lists(sections)), prog=f"guerdon {command}", description=f"{description}\n\n{epilogue}"
    )
    return {name: _as(config, getattr(parsed, _field(name))) for name, config in sections.items()}


def _field(section: str) -> str:
    """The name of a section as a field: `openai-compatible` is none."""
    return section.replace("-", "_")


def recipes_called(prefix: str) -> list[str]:
    """What the files of `recipes/` whose names begin with `prefix` are about, as words of the command line. Imports none of them."""
    recipes = Path(__file__).parent.parent / "recipes"
    return sorted(path.stem.removeprefix(prefix).replace("_", "-") for path in recipes.glob(f"{prefix}*.py"))


Actions = Mapping[str, tuple[type, Callable[[Any], int | None], str]]
"""Sub-command of a command -> its Config, what carries it out and returns the exit status (None: 0), and one line of help."""


def carry_out(command: str, kind: str, description: str, operands: str, actions: Actions, arguments: Sequence[str]) -> int:
    """Runs the sub-command that `arguments` begin with. Raises UnknownName, which calls it a `kind`, and whatever `parse` raises."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: guerdon {command} ACTION {operands}[OPTIONS]\n\n{description}\nactions: {', '.join(actions)}")
        return 0
    action, rest = arguments[0], arguments[1:]
    if action not in actions:
        raise UnknownName(kind, action, actions)
    config, run, help_line = actions[action]
    return run(parse(f"{command} {action}", help_line, {"_settings": config}, rest)["_settings"]) or 0


def chosen(name: str, arguments: Sequence[str], default: str) -> str:
    """The value of a setting that decides which others there are, looked up before all else: from its flag, else from the YAML file.

    Raises:
        UsageError: if there is no value, or the file cannot be read.
    """
    flag, _ = value_of_flag(f"--{name}", arguments)
    return flag or str(_from_file(name, arguments, default))


def all_chosen(name: str, arguments: Sequence[str], default: Sequence[str]) -> list[str]:
    """The same for a setting with several values."""
    given = _from_file(name, arguments, list(default))
    return values_of_flag(f"--{name}", arguments, [str(value) for value in (given if isinstance(given, list) else [given])])


def _from_file(name: str, arguments: Sequence[str], default: Any) -> Any:
    path, _ = value_of_flag("--config", arguments)
    return _read_yaml(Path(path)).get(name, default) if path else default


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


def _flags_of_lists(sections: Mapping[str, type]) -> set[str]:
    """Flags of settings with any number of values."""
    prefixes = {name: "" if name.startswith("_") else f"{name}." for name in sections}
    hints = [(prefixes[name], field, hint) for name, config in sections.items() for field, hint in get_type_hints(config).items()]
    return {f"--{prefix}{field}".replace("_", "-") for prefix, field, hint in hints if get_origin(_without_none(hint)) is tuple}


def _repeats_joined(arguments: Sequence[str], flags: Collection[str]) -> list[str]:
    """`--vlm a --vlm b` as `--vlm a b`, for `flags`."""
    repeated = {flag for flag in flags if sum(word.partition("=")[0] == flag for word in arguments) > 1}
    rest: list[str] = []
    skipping = False
    for word in arguments:
        if word.startswith("--"):
            name, equals, _ = word.partition("=")
            skipping = name in repeated and not equals
            if name in repeated:
                continue
        if not skipping:
            rest.append(word)
    return [*rest, *(word for flag in sorted(repeated) for word in (flag, *values_of_flag(flag, arguments, ())))]


# --- settings from a file -----------------------------------------------------------------------------------------------------------


def _adjusted(sections: Mapping[str, type], path: str | None, command: str) -> dict[str, type]:
    """The sections with the defaults that the YAML file gives. Raises UsageError naming the file."""
    given = _read_yaml(Path(path)) if path else {}
    try:
        adjusted = {name: _with_defaults(name, config, given) for name, config in sections.items()}
    except UsageError as error:
        raise UsageError(error.what, where=error.where or str(path), cure=error.cure) from None
    if given:
        raise UsageError(f"no setting is called '{min(given)}'", where=str(path), cure=f"See: guerdon {command} --help")
    return adjusted


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or type(error).__name__}", where=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot be read as YAML ({type(error).__name__})", where=str(path)) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError("must hold settings as 'name: value' lines", where=str(path))
    return _named_as_fields(content)


def _named_as_fields(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Names as they are written in Python, at every depth: `min-tail` is `min_tail`."""
    return {str(key).replace("-", "_"): _named_as_fields(value) if isinstance(value, dict) else value for key, value in settings.items()}


def _with_defaults(name: str, config: type, given: dict[str, Any]) -> type:
    """`config` with the defaults that the YAML file gives; takes what it uses out of `given`."""
    flat = name.startswith("_")
    own = given if flat else given.pop(_field(name), {})
    if not isinstance(own, dict):
        raise UsageError(f"'{name}' must hold settings of its own")
    fields: list[tuple[str, Any, Any]] = []
    for field, hint in _settable(config).items():
        default = {"default": _checked(field, hint, own.pop(field))} if field in own else _defaults_of(config, field)
        fields.append((field, _legible(field, hint), dataclasses.field(**default)))
    if own and not flat:
        raise UsageError(f"no setting is called '{name}.{min(own)}'")
    return dataclasses.make_dataclass(config.__name__, fields, bases=(config,), frozen=True, kw_only=True)


def _settable(config: type) -> dict[str, Any]:
    """Name and type of the settings that a user can give."""
    hints = get_type_hints(config, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(config) if _SUPPRESSED not in get_args(hints[field.name])}


_SUPPRESSED, _POSITIONAL = (get_args(marked)[1] for marked in (tyro.conf.Suppress[int], tyro.conf.Positional[int]))


def _defaults_of(config: Any, name: str) -> dict[str, Any]:
    field = config.__dataclass_fields__[name]
    known = {"default": field.default, "default_factory": field.default_factory}
    return {key: value for key, value in known.items() if value is not dataclasses.MISSING}


def _legible(field: str, hint: Any) -> Any:
    """The type of a setting with the words that help shows for its value: a positional one goes by its name, and None is not mentioned."""
    inner = _without_none(hint)
    if _POSITIONAL in get_args(hint):
        shown = field.upper()
    elif inner is not hint:
        name = getattr((get_args(inner) or (inner,))[0], "__name__", "VALUE").upper()
        shown = f"{name} [{name} ...]" if get_origin(inner) is tuple else name
    else:
        return hint
    return Annotated[hint, tyro.conf.arg(metavar=shown)]


def _without_none(hint: Any) -> Any:
    rest = [part for part in get_args(hint) if part is not NoneType]
    return rest[0] if len(rest) == 1 and NoneType in get_args(hint) else hint


def _checked(name: str, hint: Any, value: Any) -> Any:
    """`value` as the setting `name` holds it; one value will do where several may stand."""
    from pydantic import TypeAdapter, ValidationError

    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _checked_group(name, hint, value)
    several = get_origin(_without_none(hint)) is tuple and not isinstance(value, list | NoneType)
    try:
        return TypeAdapter(hint).validate_python([value] if several else value)
    except ValidationError as error:
        raise UsageError(f"'{name}' cannot be {value!r}: {error.errors()[0]['msg'].lower()}") from None


def _checked_group(name: str, config: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"'{name}' must hold settings of its own")
    hints = _settable(config)
    for key in value:
        if key not in hints:
            raise UsageError(f"no setting is called '{name}.{key}'")
    return config(**{key: _checked(f"{name}.{key}", hints[key], part) for key, part in value.items()})


def _as(config: type, parsed: Any) -> Any:
    """`parsed` as a plain `config`, not the class made for its defaults."""
    return config(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(config)})
