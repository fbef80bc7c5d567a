"""What `label` and `plan` have in common: settings of their own, of the windows, of the method and of each rater that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from guerdon import discover, samples
from guerdon.cli._parse import all_chosen, chosen, parse
from guerdon.recipes import label, raters

Settings = TypeVar("Settings", bound=label.Config)


def settings(command: str, description: str, config: type[Settings], arguments: Sequence[str]) -> Settings:
    """The settings of a command. Only the files of the method and raters named are imported. Raises UsageError, MissingExtra."""
    method = chosen("method", arguments, config.method)
    specs = all_chosen("vlm", arguments, config.vlm)
    providers = dict.fromkeys(raters.provider_of(spec) for spec in specs)
    things = {"_method": discover.load("methods", method)} | {name: discover.load("providers", name) for name in providers}
    own = {name: thing.Config for name, thing in things.items() if hasattr(thing, "Config")}
    parsed = parse(command, description, {"_settings": config, "_sampling": samples.Config} | own, arguments)
    given: Settings = parsed["_settings"]
    return replace(
        given,
        sampling=parsed["_sampling"],
        method_settings=parsed.get("_method"),
        rater_settings=label.chosen_settings({name: parsed[name] for name in providers if name in parsed}),
    )
