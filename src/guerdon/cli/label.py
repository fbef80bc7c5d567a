"""Ask a rater about recorded behaviour, and keep every answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from guerdon.cli import _show
from guerdon.cli._asking import settings
from guerdon.recipes import label
from guerdon.recipes.watch import duration, money


def main(arguments: Sequence[str]) -> int:
    """`guerdon label DATASET --method METHOD --vlm RATER --run RUN`. The exit status is 1 if coverage stays below --min-coverage."""
    config = settings("label", __doc__ or "", label.Config, arguments)
    labelled = label.label.of(config)
    _tell(labelled)
    if labelled.stopped:
        print(labelled.stopped)
    elif not labelled.complete:
        print(f"coverage {labelled.labels.coverage:.1%} is below --min-coverage {config.min_coverage:.1%}")
        print(_what_next(labelled.results["states"], labelled.results["declined"]))
    return 0 if labelled.complete else 1


def _what_next(states: Collection[str], declined: Mapping[str, int] = MappingProxyType({})) -> str:
    """What can be done about what has no label.

    Args:
        states: the names of the states, with their causes.
        declined: the rater's reasons for what it cannot answer, and how often it gave each.
    """
    reasons = ", ".join(f"{count} x {reason.replace('_', ' ')}" for reason, count in sorted(declined.items()))
    why = f"unsupported: {reasons}" if reasons else "unsupported"
    cures = {
        "failed: unsupported": f"The rater cannot answer such questions ({why}): ask another one, or ask it otherwise.",
        "failed": "The same command asks again what failed in passing.",
        "refused": "With --retry-failed it also asks again what was refused.",
        "unreadable": "Answers that cannot be read stay so: change the prompt, the pictures or the rater.",
    }
    found = {state if state in cures else state.partition(":")[0] for state in map(str, states)}
    return " ".join(cure for state, cure in cures.items() if state in found) or "Choose more to be judged: a larger --sample or --fraction."


def _tell(labelled: label.Labelled) -> None:
    results = labelled.results
    if results["pilot"]:
        _tell_pilot(results["pilot"])
    title = f"labels by {labelled.labels.metadata['rater']}"
    _show.table(("state of the labels", _labelled_things(labelled)), sorted(results["states"].items()), title=title)
    rows = [(name, _amount(results["planned"][key]), _amount(results[key])) for name, key in _AMOUNTS]
    _show.table(("cost", "planned", "billed"), rows)
    failures = ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in sorted(results["failures"].items())) or "none"
    print(
        f"{results['windows']} {results['judged']}; {results['sent_now']} requests sent now, {results['found']} found in the store; "
        f"failed attempts: {failures}; {duration(results['seconds'])}"
    )
    if results["nothing_to_ask"]:
        print(f"skipped: {results['nothing_to_ask']} of them look the same, pixel by pixel: nothing to ask")
    print(f"planned: all of these {results['judged']}, nothing from the store; billed: all that this run folder has ever sent")
    print(f"written: {labelled.path}")


def _labelled_things(labelled: label.Labelled) -> str:
    """What carries a label each, in the plural."""
    labels = labelled.labels.labels
    return "transitions" if labels and labels[0].unit == "transition" else str(labelled.results["judged"])


_AMOUNTS = (("requests", "requests"), ("input tokens", "input_tokens"), ("output tokens", "output_tokens"), ("dollars", "dollars"))


def _amount(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else "0" if value == 0 else f"{value:,.4f}" if value < 1 else f"{value:,.2f}"


def _tell_pilot(pilot: Mapping[str, Any]) -> None:
    contrast = pilot["contrast"]
    scores = "-" if contrast is None else f"{contrast['right']:.2f} by the right words, {contrast['wrong']:.2f} by wrong ones"
    projected = "unknown" if pilot["projected_dollars"] is None else f"{money(pilot['projected_dollars'])} for all {pilot['judged']}"
    rows = [
        (pilot["judged"], pilot["windows"]),
        *((name, f"{pilot[name]:.0%}") for name in ("unreadable", "refused", "failed")),
        ("mean score", scores),
        ("cost", projected),
    ]
    _show.table(("pilot", ""), rows)
    for line in filter(None, [pilot["remark"], *pilot["problems"]]):
        print(f"note: {line}")
