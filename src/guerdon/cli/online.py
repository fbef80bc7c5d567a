"""Learn a policy while a rater judges what it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from guerdon import discover
from guerdon.cli import _show
from guerdon.cli._parse import all_chosen, chosen, parse
from guerdon.errors import UnknownName
from guerdon.recipes import label, online, raters

WORLDS = ("metaworld", "babyai")


def main(arguments: Sequence[str]) -> int:
    """`guerdon online METHOD --out OUT --task drawer-open-v3 --steps 25000`, or `guerdon online METHOD --world babyai --out OUT`."""
    first = next(iter(arguments), "-")
    method = chosen("method", arguments, online.Config.method) if first.startswith("-") else first
    world = chosen("world", arguments, WORLDS[0])
    if world not in WORLDS:
        raise UnknownName("world to learn in", world, WORLDS)
    _tell(_in_babyai(method, arguments) if world == "babyai" else _in_metaworld(method, arguments))
    return 0


def _in_metaworld(method: str, arguments: Sequence[str]) -> online.Learned:
    asks = online.source_of(method).kind is not None
    algorithm = chosen("algorithm", arguments, online.Config.algorithm)
    settings_of = discover.load("algorithms", algorithm).Config
    from guerdon.training import online as loop  # after the line above, which names the extra if torch is not installed

    return online.online.of(_config(method, asks, arguments, online.Config, loop.Config, algorithm, settings_of))


def _in_babyai(method: str, arguments: Sequence[str]) -> online.Learned:
    discover.load("algorithms", "iql")  # names the extra if torch is not installed
    from guerdon.recipes import online_babyai
    from guerdon.training import online_episodes

    if method not in online_babyai.METHODS:
        raise UnknownName("source of rewards", method, online_babyai.METHODS)
    asks = method not in online_babyai.KNOWN
    config = _config(method, asks, arguments, online_babyai.Config, online_episodes.Config, "iql", online_babyai.Learning)
    return online_babyai.online_babyai.of(config)


def _config(method: str, asks: bool, arguments: Sequence[str], settings: type, loop: type, algorithm: str, learning: type) -> Any:
    """The settings of a world's recipe with those of the loop, the algorithm and, if anybody is asked, the reward model and the raters."""
    own = _raters(arguments) if asks else {}
    fitting = {"fitting": online.fitting_config(method)} if asks else {}
    sections: dict[str, type] = {"_settings": settings, "_loop": loop, algorithm: learning}
    parsed = parse("online", __doc__ or "", sections | fitting | own, arguments)
    return replace(
        parsed["_settings"],
        loop=parsed["_loop"],
        algorithm_settings=parsed[algorithm],
        fitting=parsed.get("fitting"),
        rater_settings=label.chosen_settings({name: parsed[name] for name in own}),
    )


def _raters(arguments: Sequence[str]) -> dict[str, type]:
    """A section for each rater that has settings."""
    named = tuple(all_chosen("vlm", arguments, online.Config.vlm))
    asked = named != online.SCRIPTED
    things = {name: discover.load("providers", name) for name in dict.fromkeys(map(raters.provider_of, named)) if asked}
    return {name: thing.Config for name, thing in things.items() if hasattr(thing, "Config")}


def _tell(learned: online.Learned) -> None:
    results = learned.results
    rows = [(name, _shown(value)) for name, value in results.items() if name != "seconds"]
    _show.table(("result", ""), rows, title=f"{results['steps']:,} steps in {results['seconds']:,.0f} s")
    print(f"{'kept, it was finished already' if learned.kept else 'written'}: {learned.path}")


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
