"""Printing: tables and numbers as all commands show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from guerdon.rewards.check import Finding

if TYPE_CHECKING:
    from guerdon.evaluation.statistics import Summary


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Prints a table; columns after the first are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(text(cell) for cell in row))
    Console(highlight=False, soft_wrap=False).print(shown)


def text(value: object) -> str:
    """A number or word for a table cell; None becomes a dash."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def returns(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints the share of the task completed by each arm: interquartile mean with its 95 % interval, for each start."""
    from guerdon.evaluation.statistics import summarise

    groups = (("fixed", "seen", "recorded start"), ("randomised", "seen", "other start"), ("fixed", "held-out", "held-out words"))
    whole = {(s.arm, s.start, s.wording): s for s in summarise(rows) if s.length is None}
    arms = sorted({arm for arm, _, _ in whole}, key=lambda arm: _mean_of(whole.get((arm, "fixed", "seen"))))
    table(
        ("arm", *(title for _, _, title in groups)),
        [(arm, *(_interval(whole.get((arm, start, wording))) for start, wording, _ in groups)) for arm in arms],
        title="Share of the task completed: interquartile mean [95 % interval] and mean",
    )


def _mean_of(summary: Summary | None) -> float:
    return summary.mean.value if summary else -1.0


def _interval(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    iqm = summary.iqm
    interval = "" if iqm.low is None or iqm.high is None else f" [{iqm.low:.2f}, {iqm.high:.2f}]"
    return f"{iqm.value:.2f}{interval} {summary.mean.value:.2f}"


def findings(found: Iterable[Finding]) -> None:
    """Prints what a check saw, one line each."""
    for finding in found:
        print(f"{finding.severity}: {finding.name}: {finding.message}")
