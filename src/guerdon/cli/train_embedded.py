"""Train the rater that needs no vendor and no key, from seeds, and measure it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from guerdon import discover
from guerdon.cli._parse import parse
from guerdon.errors import MissingExtra
from guerdon.recipes import embedded
from guerdon.runs import read_json


def main(arguments: Sequence[str]) -> int:
    """`guerdon train-embedded --out FOLDER`."""
    config = parse("train-embedded", __doc__ or "", {"_settings": embedded.Config}, arguments)["_settings"]
    discover.load("envs", "babyai")  # names the extra that is missing, if one is
    try:
        import torch  # noqa: F401 (only whether it is there)
    except ModuleNotFoundError as error:
        raise MissingExtra("torch", "train") from error
    began = time.monotonic()
    path = embedded.train_embedded.of(config)
    show(read_json(path))
    print(f"finished in {(time.monotonic() - began) / 60:.1f} minutes")
    for name in (embedded.WEIGHTS, embedded.CARD, embedded.PAGE):
        print(f"written: {config.out / name}")
    return 0


def show(card: Mapping[str, Any]) -> None:
    """Prints how well a rater does, beside what costs nothing."""
    from guerdon.cli import _show

    names = ("embedded, sub-task's words", "embedded, whole chain", "previous, this and next action", "full information, whole chain")
    rows = []
    for record in card["evaluation"]:
        by_rater = {row["rater"]: row["auroc"] for row in record["rows"]}
        rows.append((record["name"], *(by_rater[name] and f"{by_rater[name]['value']:.3f}" for name in names)))
    network = card["network"]
    title = f'{card["name"]}: {network["parameters"]:,} weights. AUROC of "this action serves" on unseen seeds, judged by'
    _show.table(("tried on", "sub-task's words", "whole chain", "actions alone", "full information"), rows, title=title)
