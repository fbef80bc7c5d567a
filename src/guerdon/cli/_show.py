"""Printing: tables and numbers as all commands show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from guerdon.rewards.check import Finding

if TYPE_CHECKING:
    from guerdon.evaluation.statistics import Estimate
    from guerdon.recipes.reward import ComposedReward


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Prints a table; columns after the first are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        shown.add_row(*(text(cell) for cell in row))
    console = Console(highlight=False, soft_wrap=False)
    if title:  # not the table's own, which would be broken at the width of a narrow table
        console.print(Text(title, style="bold", overflow="fold"))
    console.print(shown)


_SMALLEST = 0.0005
"""Below it three decimals would show nothing."""


def text(value: object) -> str:
    """A number or word for a table cell; None becomes a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= _SMALLEST else f"{value:.1e}"
    return str(value)


def rewards(made: Iterable[ComposedReward]) -> None:
    """Prints reward columns: their statistics, what the checks saw in them, and where they lie."""
    for each in made:
        numbers = (each.statistics[name] for name in ("coverage", "mean", "std", "min", "max"))
        table(("reward", "coverage", "mean", "std", "min", "max"), [(each.path.stem, *numbers)], title=each.expression)
        findings(each.findings)
        if each.column.discount is not None:
            print(f"discount: {each.column.discount:g}, which policies learn from it with unless --iql.discount says otherwise")
        print(f"written: {each.path}")


def returns(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints the share of the task completed by each arm from each start: mean, and interquartile mean with its 95 % interval."""
    from guerdon.evaluation.statistics import summarise

    groups = {("fixed", "seen"): "recorded start", ("randomised", "seen"): "other start", ("fixed", "held-out"): "held-out words"}
    whole = [summary for summary in summarise(rows) if summary.length is None and (summary.start, summary.wording) in groups]
    order = list(groups)
    table(
        ("tasks", "arm", "mean", "interquartile mean", "95 % interval"),
        [
            (groups[each.start, each.wording], each.arm, f"{each.mean.value:.2f}", f"{each.iqm.value:.2f}", _interval(each.iqm))
            for each in sorted(whole, key=lambda each: (order.index((each.start, each.wording)), each.mean.value))
        ],
        title="Share of the task completed",
    )


def _interval(estimate: Estimate) -> str:
    return "-" if estimate.low is None or estimate.high is None else f"{estimate.low:.2f} to {estimate.high:.2f}"


def findings(found: Iterable[Finding]) -> None:
    """Prints what a check saw, one line each."""
    for finding in found:
        print(f"{finding.severity}: {finding.name}: {finding.message}")
