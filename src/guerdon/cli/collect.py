"""Record demonstrations in a simulator: `guerdon collect babyai`, `guerdon collect metaworld`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from guerdon import discover
from guerdon.cli._parse import parse, recipes_called
from guerdon.errors import UnknownName
from guerdon.recipes.progress import progress_bar

_PREFIX = "collect_"


def worlds() -> list[str]:
    """Worlds that demonstrations can be recorded in."""
    return recipes_called(_PREFIX)


def main(arguments: Sequence[str]) -> int:
    """`guerdon collect WORLD ...`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: guerdon collect WORLD [OPTIONS]\n\n{__doc__}\n\nworlds: {', '.join(worlds())}")
        return 0
    world, rest = arguments[0], arguments[1:]
    if world not in worlds():
        raise UnknownName("world to collect in", world, worlds())
    discover.load("envs", world)  # names the extra that is missing, if one is
    recipe = importlib.import_module(f"guerdon.recipes.{_PREFIX}{world}")
    config = parse(f"collect {world}", (recipe.__doc__ or "").split("\n")[0], {"_settings": recipe.Config}, rest)["_settings"]
    with progress_bar("recording demonstrations") as progress:
        path = getattr(recipe, f"{_PREFIX}{world}")(config, progress=progress)
    print(f"written: {path}")
    return 0
