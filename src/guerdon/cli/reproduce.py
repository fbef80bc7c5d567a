"""Repeat a study whose results the documentation shows: `guerdon reproduce ratings`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from guerdon.cli._parse import parse, recipes_called
from guerdon.errors import UnknownName

_PREFIX = "reproduce_"


def studies() -> list[str]:
    """Studies that there are."""
    return recipes_called(_PREFIX)


def main(arguments: Sequence[str]) -> int:
    """`guerdon reproduce STUDY ...`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: guerdon reproduce STUDY [OPTIONS]\n\n{__doc__}\n\nstudies: {', '.join(studies())}")
        return 0
    study, rest = arguments[0], arguments[1:]
    if study not in studies():
        raise UnknownName("study", study, studies())
    recipe = importlib.import_module(f"guerdon.recipes.{_PREFIX}{study.replace('-', '_')}")
    config = parse(f"reproduce {study}", (recipe.__doc__ or "").split("\n")[0], {"_settings": recipe.Config}, rest)["_settings"]
    for path in recipe.reproduce(config):
        print(f"written: {path}")
    return 0
