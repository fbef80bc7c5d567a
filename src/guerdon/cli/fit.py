"""Fit a reward model to ratings, preferences or scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from guerdon.cli import _show
from guerdon.cli._parse import parse
from guerdon.errors import MissingExtra
from guerdon.recipes import fit


def main(arguments: Sequence[str]) -> int:
    """`guerdon fit RUN --labels NAME [NAME ...] --name MODEL`."""
    try:
        from guerdon.rewards import fitting
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "train") from error
    parsed = parse("fit", __doc__ or "", {"_settings": fit.Config, "fitting": fitting.Config}, arguments)
    fitted = fit.fit.of(replace(parsed["_settings"], fitting=parsed["fitting"]))
    show(fitted)
    return 0


def show(fitted: fit.FittedModel) -> None:
    """Prints what a model was fitted to and how well it fits."""
    results: Mapping[str, Any] = fitted.results
    counts = results["classes"]
    total = max(sum(count for _, count in counts), 1)
    title = f"Fitted to {results['labels']} labels about {results['transitions']} transitions; it looks at {results['looks_at']}"
    _show.table((results["kind"], "labels", "share"), [(name, count, f"{count / total:.1%}") for name, count in counts], title=title)
    held_out = results["held_out_labels"]
    groups = [("learned from", results["labels"] - held_out, results["training"])]
    groups += [("held out", held_out, results["held_out"])] if results["held_out"] else []
    names = [name for name in results["training"] if name != "loss"]
    rows = [(group, number, *(measured[name] for name in names)) for group, number, measured in groups]
    _show.table(("how well it fits", "labels", *(name.replace("_", " ") for name in names)), rows)
    if results["held_out_by"] == "episode":
        print("whole episodes are held out")
    if not results["held_out"]:
        print("warning: too few labels to hold some out, so nobody knows how well the model does on others")
    print(
        f"{results['epochs']} epochs in {results['seconds']:.1f} s, stopped by {_STOPPED.get(results['stopped'], results['stopped'])}; "
        f"the weights of epoch {results['kept_epoch']} are kept"
    )
    if results["contradicted"] is not None:
        print(f"{results['contradicted']:.1%} of the labels contradict the model: it holds them to be all but impossible")
    print(f"{'kept, nothing has changed' if fitted.kept else 'written'}: {fitted.path}")


_STOPPED = {
    "target": "the accuracy wanted",
    "patience": "no further improvement",
    "updates": "the number of updates",
}
