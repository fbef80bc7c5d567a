"""Ask a rater about recorded behaviour, and keep every answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from guerdon import discover, samples
from guerdon.cli import _show
from guerdon.cli._parse import all_chosen, chosen, parse
from guerdon.recipes import label


def main(arguments: Sequence[str]) -> int:
    """`guerdon label DATASET --method METHOD --vlm RATER --run RUN`. The exit status is 1 if coverage stays below --min-coverage."""
    method = chosen("method", arguments, label.Config.method)
    specs = all_chosen("vlm", arguments, label.Config.vlm)
    providers = dict.fromkeys(label.provider_of(spec) for spec in specs)
    sections = {"_settings": label.Config, "_sampling": samples.Config}
    things = {"_method": discover.load("methods", method)} | {name: discover.load("providers", name) for name in providers}
    own = {name: thing.Config for name, thing in things.items() if hasattr(thing, "Config")}
    parsed = parse("label", __doc__ or "", sections | own, arguments)
    config = replace(
        parsed["_settings"],
        sampling=parsed["_sampling"],
        method_settings=parsed.get("_method"),
        rater_settings=label.chosen_settings({name: parsed[name] for name in providers if name in parsed}),
    )
    labelled = label.label.of(config)
    _tell(labelled)
    if not labelled.complete:
        print(f"coverage {labelled.labels.coverage:.1%} is below --min-coverage {config.min_coverage:.1%}")
        print("The same command asks again what failed in passing; with --retry-failed also what was refused.")
    return 0 if labelled.complete else 1


def _tell(labelled: label.Labelled) -> None:
    results = labelled.results
    title = f"labels by {labelled.labels.metadata['rater']}"
    _show.table(("state of the labels", "transitions"), sorted(results["states"].items()), title=title)
    dollars = "no price known" if results["dollars"] is None else f"${results['dollars']:.2f}"
    print(
        f"{results['windows']} windows, {results['requests']} requests sent so far for this label set, "
        f"{results['found']} found in the store, "
        f"{results['input_tokens']:,} + {results['output_tokens']:,} tokens, {dollars}, {results['seconds']:.0f} s"
    )
    print(f"written: {labelled.path}")
