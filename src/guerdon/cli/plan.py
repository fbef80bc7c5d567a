"""Say what labelling would take: requests, tokens, dollars and hours, for several raters side by side."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Iterator, Sequence

from guerdon.cli import _show
from guerdon.cli._asking import settings
from guerdon.recipes import plan, reckoning
from guerdon.recipes.watch import money

_FIRST_COLUMN = 23
"""Characters of the longest name of a row, and the space after it."""
_NARROWEST_COLUMN = 12


def main(arguments: Sequence[str]) -> int:
    """`guerdon plan DATASET --method METHOD --vlm RATER --vlm RATER ...`. Sends nothing; takes the flags of `label`."""
    config = settings("plan", __doc__ or "", plan.Config, arguments)
    _tell(plan.plan.of(config), config)
    return 0


_ROWS: tuple[tuple[str, Callable[[plan.Plan, reckoning.Planned], str]], ...] = (
    ("requests", lambda _, each: f"{each.requests:,}"),
    ("pictures sent", lambda _, each: f"{each.pictures:,}"),
    ("picture tokens", lambda _, each: _count(each.picture_tokens)),
    ("text tokens", lambda _, each: f"{each.text_tokens:,}"),
    ("output tokens", lambda _, each: f"{each.output_tokens:,}"),
    ("dollars", lambda _, each: _dollars(each.dollars)),
    ("dollars in batches", lambda _, each: _dollars(each.batch_dollars)),
    ("per 1,000 transitions", lambda whole, each: _dollars(whole.per_thousand_transitions(each))),
    ("dollars at most", lambda _, each: _dollars(each.ceiling)),
    ("hours", lambda _, each: "unknown" if each.hours is None else _short(each.hours)),
)


def _tell(planned: plan.Plan, config: plan.Config) -> None:
    room = max(shutil.get_terminal_size().columns, 40) - _FIRST_COLUMN
    most = max(1, room // (_NARROWEST_COLUMN + 2))
    for first in range(0, len(planned.raters), most):
        columns = planned.raters[first : first + most]
        width = room // len(columns) - 2
        headings = ["what is expected", *(_heading(each.rater, width) for each in columns)]
        _show.table(headings, [[name, *(show(planned, each) for each in columns)] for name, show in _ROWS])
    for line in _notes(planned, config):
        print(textwrap.fill(line, max(shutil.get_terminal_size().columns, 40), subsequent_indent="  ", break_on_hyphens=False))


def _notes(planned: plan.Plan, config: plan.Config) -> Iterator[str]:
    """What a reader must know of the numbers."""
    drawn = "all of them drawn" if planned.drawn == planned.windows else f"{planned.drawn:,} drawn, the others reckoned by their length"
    yield f"{planned.windows:,} {planned.judged}, about {planned.transitions:,} transitions: {drawn}. Nothing was sent."
    yield "dollars: today's list prices or --price; nothing comes from a vendor's cache or from the store."
    if config.price:
        yield "dollars in batches: --price says nothing of them."
    if config.output_tokens is None:
        yield "output tokens: the usual length of answers and of thinking is assumed; --output-tokens N sets it."
    yield (
        "dollars at most: every answer uses its whole allowance and every repair is needed; only attempts that fail and are billed all "
        "the same come on top. A smaller allowance (--chat.max-output-tokens N) lowers it."
    )
    limits = [f"{config.seconds_per_request:g} s an answer", f"{config.concurrency} conversations at once"]
    if config.requests_per_minute is not None:
        limits.append(f"{config.requests_per_minute:,.10g} requests a minute")
    if config.tokens_per_minute is not None:
        limits.append(f"{config.tokens_per_minute:,.10g} tokens a minute")
    yield f"hours: {', '.join(limits)}."
    for reason in dict.fromkeys(reason for each in planned.raters for reason in each.unknown):
        yield f"unknown: {reason}"


def _heading(name: str, width: int) -> str:
    """A rater's name in lines of at most `width` characters, broken where its parts meet."""
    lines = [""]
    part = ""
    for character in name:
        part += character
        if character in ":-/@" or len(part) >= width:
            lines, part = _joined(lines, part, width), ""
            if character == ":" and len(lines) == 1:  # the vendor stands alone, so that models are easy to compare
                lines.append("")
    return "\n".join(line for line in _joined(lines, part, width) if line)


def _joined(lines: list[str], part: str, width: int) -> list[str]:
    return [*lines[:-1], lines[-1] + part] if len(lines[-1]) + len(part) <= width else [*lines, part]


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _dollars(value: float | None) -> str:
    """Cents, or more digits for amounts below ten cents."""
    return "unknown" if value is None else "0" if value == 0 else money(value).replace("$", "")


def _short(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2g}"
