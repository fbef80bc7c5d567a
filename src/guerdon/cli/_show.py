"""Printing: tables and numbers as all commands show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from guerdon.rewards.check import Finding


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


def findings(found: Iterable[Finding]) -> None:
    """Prints what a check saw, one line each."""
    for finding in found:
        print(f"{finding.severity}: {finding.name}: {finding.message}")
