"""What reproductions of published findings share: results kept line by line, paired intervals, tables and figures, pages filled from them.

A study trains many small models. Each finished one is a line of a JSON-lines file, so that a study that was killed goes on where it was,
and the tables and figures of its page are made from those lines and from nothing else. Numbers on a page stand between marks

    <!-- fill KEY -->0.81<!-- /fill -->

and are written there by `fill_page`; nobody types them.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as arrow

from guerdon.errors import RunError
from guerdon.evaluation.statistics import RESAMPLES, Estimate
from guerdon.labels import write_table
from guerdon.runs import write_json, writing
from guerdon.seeding import generator

Place = tuple[str, int]
"""Where a number was found: problem and seed."""
Found = Mapping[Place, float]
"""A measure of one cell of a study, wherever it was taken."""


# --- results ------------------------------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The finished lines of a JSON-lines file; none if there is no such file. A last line that was cut off does not count.

    Raises:
        RunError: for a line that is no JSON object.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise RunError("is no JSON object", where=f"{path}, line {number}", cure="Delete this line; what it held is computed again.")
        records.append(record)
    return records


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a record as one line; what a kill left of an unfinished one is overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, sort_keys=True, allow_nan=False).encode() + b"\n"
    with path.open("r+b" if path.exists() else "x+b") as stream:
        content = stream.read()
        stream.seek(content.rfind(b"\n") + 1)
        stream.truncate()
        stream.write(line)


@contextmanager
def timed(path: Path, stage: str) -> Iterator[None]:
    """Adds to a file how long a part of a study took, also if it was interrupted."""
    print(f"[{stage}]", flush=True)
    began = time.monotonic()
    try:
        yield
    finally:
        append_line(path, {"stage": stage, "seconds": time.monotonic() - began})


def seconds_of(path: Path) -> dict[str, float]:
    """How long each part took in all, by what `timed` wrote."""
    seconds: dict[str, float] = {}
    for line in read_lines(path):
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
    return seconds


# --- intervals ----------------------------------------------------------------------------------------------------------------------


def estimate(found: Found) -> Estimate:
    """Mean over problems of the mean over seeds, with its 95 % interval; NaN where nothing was found.

    A bootstrap resample draws the seeds of each problem with replacement; the problems stay. So the interval answers "what if other seeds
    had been drawn", not "what if this were another task", and with five seeds it is somewhat too narrow.
    """
    problems = _by_problem(found)
    if not problems:
        return Estimate(math.nan)
    value = float(np.mean([values.mean() for values in problems.values()]))
    if all(len(values) == 1 for values in problems.values()):
        return Estimate(value)
    drawn = [values[_draws(name, len(values))].mean(axis=1) for name, values in problems.items()]
    return Estimate.of(value, np.mean(drawn, axis=0))


def difference(found: Found, other: Found) -> Estimate:
    """Paired difference of two cells over the problems and seeds that both have: same data, same split, same initial networks."""
    return estimate({place: found[place] - other[place] for place in found if place in other})


def _by_problem(found: Found) -> dict[str, npt.NDArray[np.float64]]:
    problems: dict[str, list[float]] = {}
    for (problem, _), value in sorted(found.items()):
        if math.isfinite(value):
            problems.setdefault(problem, []).append(value)
    return {problem: np.array(values) for problem, values in problems.items()}


def _draws(problem: str, count: int) -> npt.NDArray[np.int64]:
    return generator(0, "bootstrap", problem).integers(count, size=(RESAMPLES, count))


def shown(found: Estimate, *, signed: bool = False) -> str:
    """An estimate for a table: "0.812 [0.79, 0.83]"; of a difference "+0.031 [0.02, 0.04]", bold if its interval leaves out zero."""
    if not math.isfinite(found.value):
        return "–"
    sign = "+" if signed else ""
    interval = "" if found.low is None or found.high is None else f" [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"
    text = f"{found.value:{sign}.3f}{interval}".replace("-", "−")
    certain = signed and found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    return f"**{text}**" if certain else text


# --- tables and pages ---------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


_MARK = re.compile(r"(<!-- fill (?P<key>.+?) -->)(?P<body>.*?)(?P<end><!-- /fill -->)", re.DOTALL)


def filled(text: str, give: Callable[[str], str]) -> str:
    """`text` with what `give` says of each key between its marks; tables stand on lines of their own.

    Raises:
        RunError: naming a key that `give` does not know (KeyError).
    """

    def replaced(mark: re.Match[str]) -> str:
        try:
            content = give(mark["key"])
        except KeyError as error:
            raise RunError(f"there is nothing to fill '{mark['key']}' with ({error})", cure="Correct the mark on the page.") from None
        block = "\n" in content or content.startswith("|")
        return f"{mark[1]}\n\n{content}\n\n{mark['end']}" if block else f"{mark[1]}{content}{mark['end']}"

    return _MARK.sub(replaced, text)


def fill_page(path: Path, give: Callable[[str], str]) -> None:
    """Fills the marks of a page; written whole or not at all. Raises RunError as `filled`, and if the page is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        cure = "Give one that holds marks: <!-- fill KEY --><!-- /fill -->"
        raise RunError("there is no such page", where=str(path), cure=cure) from None
    content = filled(text, give)
    with writing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


# --- figures ------------------------------------------------------------------------------------------------------------------------

_COLOURS = ("#3b6fb5", "#d1662b", "#3f8f57", "#8a5fb0", "#a08a2c", "#5c7d8a", "#b5476f", "#4f4f4f")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460.0, 300.0, 52.0, 14.0, 34.0, 46.0
_STYLE = (
    "text{font:12px sans-serif;fill:#555}.title{font-weight:bold;fill:#333}.grid{stroke:#ccc;stroke-width:.7}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.title{fill:#ddd}.grid{stroke:#555}}"
)
_WHISKER_STYLE = ".whisker{stroke:#222;stroke-width:1.1}@media(prefers-color-scheme:dark){.whisker{stroke:#ddd}}"


@dataclass(frozen=True)
class Line:
    """One line of a figure."""

    name: str
    values: Sequence[Estimate]
    """One for each place on the axis; NaN where there is none."""
    colour: int | None = None
    """Number of its colour, for what is drawn in several figures; its place among the series of this one if not given."""

    def number(self, place: int) -> int:
        """Number of its colour in a figure where it has this place."""
        return place if self.colour is None else self.colour

    def shade(self, place: int) -> str:
        """Its colour in a figure where it has this place."""
        return _COLOURS[self.number(place) % len(_COLOURS)]


def lines(title: str, places: Sequence[str], drawn: Sequence[Line], *, axis: str, measure: str) -> str:
    """A figure as an SVG file's text: one line for each series over evenly spaced places, with 95 % intervals and exact numbers as
    tooltips. The vertical axis covers the data, not zero."""
    numbers = [n for line in drawn for e in line.values for n in (e.value, e.low, e.high) if n is not None and math.isfinite(n)]
    ticks = _ticks(numbers)
    low, high = ticks[0], ticks[-1]
    floor = _HEIGHT - _BOTTOM
    scale = (floor - _TOP) / (high - low)
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(places), 1)
    marks = _frame(title, ticks, places, lambda value: floor - (value - low) * scale, axis=axis, measure=measure)
    for number, line in enumerate(drawn):
        colour = line.shade(number)
        shift = (number - (len(drawn) - 1) / 2) * min(7.0, step / (len(drawn) + 1))
        points = [(_LEFT + step * (n + 0.5) + shift, each, places[n]) for n, each in enumerate(line.values) if math.isfinite(each.value)]
        marks += _drawn(line.name, points, colour, lambda value: floor - (value - low) * scale)
        y = _HEIGHT + 8 + 18 * number
        marks.append(f'<line x1="{_LEFT}" x2="{_LEFT + 22}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        marks.append(_text(line.name, _LEFT + 30, y + 4))
    return _svg(title, marks, len(drawn))


def curves(title: str, points: Sequence[float], drawn: Sequence[Line], *, axis: str, measure: str) -> str:
    """A figure as an SVG file's text: one line for each series over `points` (numbers that rise), with 95 % intervals as bands and exact
    numbers as tooltips. The vertical axis is that of a share, from 0 to 1."""
    low, high = (min(points), max(points)) if points else (0.0, 1.0)
    floor, width = _HEIGHT - _BOTTOM, _WIDTH - _LEFT - _RIGHT
    inset = 0.03 * width
    across = (width - 2 * inset) / ((high - low) or 1.0)

    def height_of(value: float) -> float:
        return floor - value * (floor - _TOP)

    def place_of(point: float) -> float:
        return _LEFT + inset + (point - low) * across

    marks = _frame(title, [number / 5 for number in range(6)], (), height_of, axis=axis, measure=measure)
    marks += [_text(f"{point:,.10g}", place_of(point), floor + 17, anchor="middle") for point in _at_most(points, 6)]
    placed = [
        [(place_of(point), each, f"{point:,.6g}") for point, each in zip(points, line.values, strict=True) if math.isfinite(each.value)]
        for line in drawn
    ]
    colours = [line.shade(number) for number, line in enumerate(drawn)]
    marks += [_band(found, colour, height_of) for found, colour in zip(placed, colours, strict=True)]
    for number, (line, found, colour) in enumerate(zip(drawn, placed, colours, strict=True)):
        path = " ".join(f"{x:.1f},{height_of(each.value):.1f}" for x, each, _ in found)
        dashes = ' stroke-dasharray="5 3"' if line.number(number) >= len(_COLOURS) else ""
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>')
        for x, each, point in found:
            tip = f"<title>{escape(f'{line.name}, {point}: {shown(each)}')}</title>"
            marks.append(f'<circle cx="{x:.1f}" cy="{height_of(each.value):.1f}" r="2.4" fill="{colour}">{tip}</circle>')
        y = _HEIGHT + 8 + 18 * number
        marks.append(f'<line x1="{_LEFT}" x2="{_LEFT + 22}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"{dashes}/>')
        marks.append(_text(line.name, _LEFT + 30, y + 4))
    return _svg(title, marks, len(drawn))


def _svg(title: str, marks: Sequence[str], series: int, style: str = "") -> str:
    """A figure of `marks` with room for the legend of so many series."""
    height = _HEIGHT + 18.0 * series + 4
    size = f'viewBox="0 0 {_WIDTH:g} {height:g}" width="{_WIDTH:g}" height="{height:g}"'
    head, body = f"<title>{escape(title)}</title><style>{_STYLE}{style}</style>", "\n".join(marks)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{head}\n{body}\n</svg>\n'


def _at_most(points: Sequence[float], count: int) -> Sequence[float]:
    """Some of the points, evenly spaced among them, the first one included."""
    return points[:: -(-len(points) // count)] if points else ()


def _band(found: Sequence[tuple[float, Estimate, str]], colour: str, height_of: Callable[[float], float]) -> str:
    """The area between the ends of the intervals of a line."""
    ends = [(x, each.low, each.high) for x, each, _ in found if each.low is not None and each.high is not None]
    corners = [(x, high) for x, _, high in ends] + [(x, low) for x, low, _ in reversed(ends)]
    path = " ".join(f"{x:.1f},{height_of(value):.1f}" for x, value in corners)
    return f'<polygon points="{path}" fill="{colour}" fill-opacity="0.12"/>'


def bars(title: str, places: Sequence[str], drawn: Sequence[Line], *, axis: str, measure: str) -> str:
    """A figure as an SVG file's text: at every place one bar for each series, with 95 % intervals and exact numbers as tooltips. The
    vertical axis begins at zero."""
    numbers = [n for line in drawn for e in line.values for n in (e.value, e.low, e.high) if n is not None and math.isfinite(n)]
    ticks = _ticks([0.0, *(numbers or [1.0])])
    low, high = ticks[0], ticks[-1]
    floor = _HEIGHT - _BOTTOM
    scale = (floor - _TOP) / (high - low)
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(places), 1)
    width = min(0.84 * step / max(len(drawn), 1), 26.0)

    def height_of(value: float) -> float:
        return floor - (value - low) * scale

    marks = _frame(title, ticks, places, height_of, axis=axis, measure=measure)
    for number, line in enumerate(drawn):
        colour = line.shade(number)
        for place, each in enumerate(line.values):
            if math.isfinite(each.value):
                middle = _LEFT + step * (place + 0.5) + (number - (len(drawn) - 1) / 2) * width
                marks += _bar(each, middle, width, colour, height_of, f"{line.name}, {places[place]}: {shown(each)}")
        y = _HEIGHT + 8 + 18 * number
        marks.append(f'<rect x="{_LEFT}" y="{y - 6}" width="22" height="10" fill="{colour}"/>')
        marks.append(_text(line.name, _LEFT + 30, y + 4))
    return _svg(title, marks, len(drawn), _WHISKER_STYLE)


def _bar(found: Estimate, middle: float, width: float, colour: str, height_of: Callable[[float], float], tip: str) -> list[str]:
    """One bar from zero, with its interval as a line."""
    top, bottom = sorted((height_of(found.value), height_of(0.0)))
    place = f'x="{middle - 0.45 * width:.1f}" y="{top:.1f}" width="{0.9 * width:.1f}" height="{bottom - top:.1f}"'
    marks = [f'<rect {place} fill="{colour}"><title>{escape(tip)}</title></rect>']
    if found.low is not None and found.high is not None:
        ends = f'x1="{middle:.1f}" x2="{middle:.1f}" y1="{height_of(found.low):.1f}" y2="{height_of(found.high):.1f}"'
        marks.append(f'<line class="whisker" {ends}/>')
    return marks


def _frame(
    title: str, ticks: Sequence[float], places: Sequence[str], height_of: Callable[[float], float], *, axis: str, measure: str
) -> list[str]:
    """What a figure has around its data: title, grid, names of the places, axis and measure."""
    floor, step = _HEIGHT - _BOTTOM, (_WIDTH - _LEFT - _RIGHT) / max(len(places), 1)
    marks = [_text(title, _LEFT, 18, "title")]
    for tick in ticks:
        y = height_of(tick)
        marks.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(_text(f"{tick:.2f}".replace("-", "−"), _LEFT - 6, y + 4, anchor="end"))
    marks += [_text(place, _LEFT + step * (n + 0.5), floor + 17, anchor="middle") for n, place in enumerate(places)]
    marks.append(_text(axis, (_LEFT + _WIDTH - _RIGHT) / 2, floor + 36, anchor="middle"))
    marks.append(_text(measure, _WIDTH - _RIGHT, 18, anchor="end"))
    return marks


def _ticks(numbers: Sequence[float]) -> list[float]:
    """Round places on an axis that covers the numbers, at most seven."""
    lowest, highest = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    for step in (0.05, 0.1, 0.2, 0.5, 1.0):
        first, last = math.floor(lowest / step), math.ceil(highest / step)
        if last - first <= 6:
            break
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _drawn(name: str, points: Sequence[tuple[float, Estimate, str]], colour: str, height_of: Callable[[float], float]) -> list[str]:
    path = " ".join(f"{x:.1f},{height_of(each.value):.1f}" for x, each, _ in points)
    marks = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>']
    for x, each, place in points:
        if each.low is not None and each.high is not None:
            ends = f'y1="{height_of(each.low):.1f}" y2="{height_of(each.high):.1f}"'
            marks.append(f'<line x1="{x:.1f}" x2="{x:.1f}" {ends} stroke="{colour}" stroke-width="1.2"/>')
        tip = f"<title>{escape(f'{name}, {place}: {shown(each)}')}</title>"
        marks.append(f'<circle cx="{x:.1f}" cy="{height_of(each.value):.1f}" r="3.2" fill="{colour}">{tip}</circle>')
    return marks


def _text(words: str, x: float, y: float, css: str = "", *, anchor: str = "start") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


# --- claims and what is written in the end ---------------------------------------------------------------------------------------------

Verdict = Literal["holds", "does not hold", "not shown", "not measured"]


@dataclass(frozen=True)
class Finding:
    """One number that a claim rests on."""

    of: str
    estimate: Estimate


def verdict(found: Sequence[Finding], threshold: float) -> Verdict:
    """What the intervals say: "holds" if all lie above the threshold, "does not hold" if one lies below it, else "not shown"; "not
    measured" without a number."""
    estimates = [each.estimate for each in found]
    if not estimates or any(not math.isfinite(each.value) for each in estimates):
        return "not measured"
    if all(each.low is not None and each.low > threshold for each in estimates):
        return "holds"
    if any(each.high is not None and each.high < threshold for each in estimates):
        return "does not hold"
    return "not shown"


def write_study(
    record_path: Path,
    record: Mapping[str, Any],
    rows_path: Path,
    rows: arrow.Table,
    *,
    tables: Iterable[tuple[str, str]],
    figures: Mapping[str, str],
    page: Path | None,
    value_of: Callable[[str], str],
) -> list[Path]:
    """Writes what a study found, prints its tables and fills its page.

    Args:
        record_path: in the folder of the study, which also gets figures/NAME.svg.
        record: with "version", "arms" and "settings" among the rest.
        rows_path, rows: the raw table.
        tables: name and text of each.
        figures: name -> SVG.
        page: the page whose marks are filled; the raw table and the figures are written beside it, too. None if there is none.
        value_of: what stands between the marks of a key.

    Returns:
        The files written.

    Raises:
        WriteFailed, RunError: as `fill_page` does.
    """
    tables_made = [rows_path, *([] if page is None else [page.with_suffix(".parquet")])]
    for path in tables_made:
        write_table(path, rows, {name: record[name] for name in ("version", "arms", "settings")})
    write_json(record_path, record)
    for name, text in tables:
        print(f"\n{name}\n\n{text}")
    drawn = {record_path.parent / "figures" / f"{name}.svg": svg for name, svg in figures.items()}
    if page is not None:
        drawn |= {page.parent / f"{page.stem}-{name}.svg": svg for name, svg in figures.items()}
    for path, svg in drawn.items():
        with writing(path) as temporary:
            temporary.write_text(svg, encoding="utf-8")
    if page is not None:
        fill_page(page, value_of)
    return [record_path, *tables_made, *drawn, *([] if page is None else [page])]


def machine() -> dict[str, str]:
    """What computed it."""
    import torch

    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": f"Python {platform.python_version()}",
        "torch": f"torch {torch.__version__}",
    }


def _processor() -> str:
    """The processor's name, as far as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
