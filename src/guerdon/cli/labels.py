"""Correct labels by hand, take corrections back, list them.

    guerdon labels set RUN NAME --episode E --step T --value V
        what is right, for one transition or, with --stop, several
    guerdon labels import RUN NAME FILE.csv
        the same from a table: episode, step, value; stop, annotation, note
    guerdon labels unset RUN NAME --episode E --step T
        the rater's label counts again
    guerdon labels list RUN NAME
        what was set by hand, and what the rater had said

RUN is a run folder, NAME a label set in it, e.g. rg_vlm. Corrections are kept
apart and survive labelling again. Rewards made from the labels before are stale
then: compose them again.
"""

from __future__ import annotations

from collections.abc import Sequence

from guerdon.cli import _show
from guerdon.cli._parse import Actions, carry_out
from guerdon.recipes import labels


def main(arguments: Sequence[str]) -> int:
    """`guerdon labels set|import|unset|list RUN NAME ...`."""
    return carry_out("labels", "action on labels", __doc__ or "", "RUN NAME ", _ACTIONS, arguments)


def _list(config: labels.Config) -> None:
    rows = [
        (label.episode, label.annotation, label.start, f"{label.value:g}", _value(was.value if was else None), label.rationale)
        for label, was in labels.list_labels.of(config)
    ]
    _show.table(("episode", "annotation", "step", "by hand", "rater", "note"), rows, title=f"set by hand in {config.name}")


def _value(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"


def _tell(changed: labels.Corrected, what: str) -> None:
    count = len(changed.corrections.labels)
    print(f"{changed.changed} {what}; {count} {'label is' if count == 1 else 'labels are'} set by hand now")
    print(f"written: {changed.path}")
    print("Rewards made from these labels before are stale: compose them again with `guerdon reward`.")


_ACTIONS: Actions = {
    "set": (labels.SetConfig, lambda config: _tell(labels.set_label.of(config), "set"), "Set labels by hand."),
    "import": (labels.ImportConfig, lambda config: _tell(labels.import_labels.of(config), "set"), "Set labels from a CSV file."),
    "unset": (labels.UnsetConfig, lambda config: _tell(labels.unset_label.of(config), "taken back"), "Take corrections back."),
    "list": (labels.Config, _list, "List what was set by hand."),
}
