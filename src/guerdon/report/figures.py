"""The report's figures, as SVG to be put into the page.

Pure functions from numbers to markup. Colours are CSS classes (`arm-0`, `arm-1` ...: an arm has one colour in all figures) and
`currentColor`, so the figures follow the page into dark mode and onto paper. Every mark carries its exact numbers as a tooltip, and every
figure a description for those who cannot see it. Lengths are in units of the SVG's own coordinate system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from guerdon.evaluation.statistics import Estimate

_WIDTH = 460.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 12.0, 46.0
_MOST_BARS = 12
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour."""

    name: str
    css: str
    """CSS class that gives the colour."""
    values: Mapping[str, Estimate]
    """Group on the axis -> number in [0, 1]."""


def _element(tag: str, *children: Markup | str, **attributes: object) -> Markup:
    """An SVG element; a trailing underscore in an attribute's name is dropped, others become hyphens."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"' for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{Markup('').join(children)}</{tag}>")


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _text(words: str, x: float, y: float, **attributes: object) -> Markup:
    return _element("text", words, x=x, y=y, **attributes)


def _figure(children: Iterable[Markup], height: float, description: str) -> Markup:
    return _element(
        "svg", _element("title", description), *children, viewBox=f"0 0 {_WIDTH:g} {height:g}", role="img", class_="figure"
    )  # fmt: skip


def spoken(found: Estimate) -> str:
    """An estimate as text: "0.62 [0.55, 0.69]"."""
    interval = "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"
    return f"{found.value:.2f}{interval}"


def bars(
    series: Sequence[Series], groups: Sequence[str], *, axis: str, description: str, height: float = 270.0, top: float = 1.0
) -> Markup:
    """Grouped bars from 0 to `top` with 95 % intervals: groups on the x axis, one bar for each series in each group."""
    floor, scale = height - _BOTTOM, (height - _BOTTOM - _TOP) / top
    room = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    width = min(room * 0.84 / max(len(series), 1), 34.0)
    marks = [*_grid(floor, scale, top), _text(axis, (_LEFT + _WIDTH) / 2, height - 6, class_="axis", text_anchor="middle")]
    for place, group in enumerate(groups):
        centre = _LEFT + room * (place + 0.5)
        marks.append(_text(group, centre, floor + 18, class_="tick", text_anchor="middle"))
        for index, each in enumerate(series):
            left = centre + (index - len(series) / 2) * width
            marks.extend(_bar(each, group, left, width, floor, scale))
    return _figure(marks, height, description)


def _grid(floor: float, scale: float, top: float) -> Iterable[Markup]:
    for tick in (tick for tick in _TICKS if tick <= top):
        y = floor - tick * scale
        yield _element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y, class_="base" if tick == 0 else "grid")
        yield _text(f"{tick:g}", _LEFT - 6, y + 4, class_="tick", text_anchor="end")


def _bar(series: Series, group: str, left: float, width: float, floor: float, scale: float) -> Iterable[Markup]:
    found = series.values.get(group)
    if found is None:
        return
    tip = _element("title", f"{series.name}, {group}: {spoken(found)}")
    top = floor - found.value * scale
    yield _element("rect", tip, x=left + 0.6, y=top, width=width - 1.2, height=max(floor - top, 1.0), class_=f"bar {series.css}")
    if found.low is not None and found.high is not None:
        yield _whisker(left + width / 2, floor - found.low * scale, floor - found.high * scale, min(width * 0.22, 4.0))


def _whisker(x: float, low: float, high: float, cap: float) -> Markup:
    path = f"M{x - cap:.2f} {high:.2f}h{2 * cap:.2f}M{x:.2f} {high:.2f}V{low:.2f}M{x - cap:.2f} {low:.2f}h{2 * cap:.2f}"
    return _element("path", d=path, class_="whisker")


def intervals(series: Sequence[Series], groups: Sequence[str], *, axis: str, description: str) -> Markup:
    """One line for each series: a dot with its 95 % interval for each group; the first group is filled, the second one hollow."""
    step, left = 17.0 * max(len(groups), 1) + 12, 128.0
    height, scale = _TOP + step * len(series) + 44, _WIDTH - left - 14
    floor = _TOP + step * len(series)
    marks: list[Markup] = []
    for tick in _TICKS:
        x = left + tick * scale
        marks.append(_element("line", x1=x, x2=x, y1=_TOP, y2=floor, class_="base" if tick == 0 else "grid"))
        marks.append(_text(f"{tick:g}", x, floor + 18, class_="tick", text_anchor="middle"))
    marks.append(_text(axis, left + scale / 2, floor + 38, class_="axis", text_anchor="middle"))
    for row, each in enumerate(series):
        middle = _TOP + step * (row + 0.5)
        marks.append(_text(_short(each.name), left - 10, middle + 4, class_="label", text_anchor="end"))
        for place, group in enumerate(groups):
            marks.extend(_dot(each, group, left, scale, middle + 17 * (place - (len(groups) - 1) / 2), hollow=place > 0))
    return _figure(marks, height, description)


def _short(name: str, longest: int = 16) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _dot(series: Series, group: str, left: float, scale: float, y: float, *, hollow: bool) -> Iterable[Markup]:
    found = series.values.get(group)
    if found is None:
        return
    if found.low is not None and found.high is not None:
        yield _element("line", x1=left + found.low * scale, x2=left + found.high * scale, y1=y, y2=y, class_=f"range {series.css}")
    tip = _element("title", f"{series.name}, {group}: {spoken(found)}")
    yield _element("circle", tip, cx=left + found.value * scale, cy=y, r=5.0, class_=f"dot {series.css}{' hollow' if hollow else ''}")


def histogram(
    counts: Mapping[str, Mapping[float, int]], scale: tuple[float, float], *, axis: str, description: str, height: float = 240.0
) -> Markup:
    """Bars side by side for each kind of transition: what share of that kind got which score. Many distinct scores go into ten bins."""
    if len({score for kind in counts.values() for score in kind}) > _MOST_BARS:
        counts = {name: _binned(kind, scale) for name, kind in counts.items()}
    scores = {score for kind in counts.values() for score in kind}
    if all(score.is_integer() for score in scores) and scale[1] - scale[0] <= _MOST_BARS:
        scores |= {float(score) for score in range(int(scale[0]), int(scale[1]) + 1)}
    series = [
        Series(name, f"truth-{name}", {f"{score:g}": Estimate(count / sum(kind.values())) for score, count in kind.items()})
        for name, kind in counts.items()
    ]
    highest = max((share.value for each in series for share in each.values.values()), default=1.0)
    top = min(tick for tick in _TICKS if tick >= min(highest, 1.0))
    return bars(series, [f"{score:g}" for score in sorted(scores)], axis=axis, description=description, height=height, top=top)


@dataclass(frozen=True)
class Line:
    """Numbers in order, one after the other."""

    name: str
    css: str
    """CSS class that gives the colour."""
    values: Sequence[float | None]
    """At the places 0, 1, 2, ...; None leaves a gap."""
    bounds: tuple[float, float]
    """The numbers at the bottom and at the top of the figure."""


def lines(series: Sequence[Line], *, axis: str, description: str, places: Sequence[object] | None = None, height: float = 190.0) -> Markup:
    """Lines over places at even distances, named 0, 1, 2, ... unless `places` names them. The first line's bounds stand on the left; other
    bounds, if any, on the right."""
    others = [each.bounds for each in series if each.bounds != series[0].bounds]
    right = _WIDTH - _RIGHT - (26.0 if others else 0.0)
    floor, count = height - _BOTTOM, max((len(each.values) for each in series), default=0)
    named = [str(name) for name in (range(count) if places is None else places)]
    step = (right - _LEFT) / max(count - 1, 1)
    marks = [_text(axis, (_LEFT + right) / 2, height - 6, class_="axis", text_anchor="middle")]
    for share in (0.0, 0.5, 1.0):
        y = floor - share * (floor - _TOP)
        marks.append(_element("line", x1=_LEFT, x2=right, y1=y, y2=y, class_="base" if share == 0 else "grid"))
        if series:
            marks.append(_text(_between(series[0].bounds, share), _LEFT - 6, y + 4, class_="tick", text_anchor="end"))
        if others:
            marks.append(_text(_between(others[0], share), right + 6, y + 4, class_="tick", text_anchor="start"))
    for place in sorted({0, (count - 1) // 2, count - 1} if count else ()):
        marks.append(_text(named[place], _LEFT + place * step, floor + 18, class_="tick", text_anchor="middle"))
    for each in series:
        low, high = each.bounds
        shares = [None if value is None else (value - low) / ((high - low) or 1.0) for value in each.values]
        points = [None if share is None else (_LEFT + n * step, floor - share * (floor - _TOP)) for n, share in enumerate(shares)]
        marks.extend(_line(each, points, named))
    return _figure(marks, height, description)


def _between(bounds: tuple[float, float], share: float) -> str:
    value, span = bounds[0] + share * (bounds[1] - bounds[0]), bounds[1] - bounds[0]
    return f"{0.0 if abs(value) < span / 1000 else value:.3g}"  # a middle that is all but 0 is written as 0


def _line(line: Line, points: Sequence[tuple[float, float] | None], named: Sequence[str]) -> Iterable[Markup]:
    known = [(place, value) for place, value in enumerate(line.values) if value is not None]
    if not known:
        return
    (begin, start), (end, last) = known[0], known[-1]
    told = f"{start:.3g} at {named[begin]}, {last:.3g} at {named[end]}" if end > begin else f"{start:.3g}"
    drawn = zip((None, *points), points, strict=False)
    path = "".join(f"{'M' if before is None else 'L'}{point[0]:.1f} {point[1]:.1f}" for before, point in drawn if point is not None)
    yield _element("path", _element("title", f"{line.name}: {told}"), d=path, class_=f"line {line.css}")
    if end == begin:
        x, y = next(point for point in points if point is not None)
        yield _element("circle", cx=x, cy=y, r=3.0, class_=f"dot {line.css}")


def _binned(counts: Mapping[float, int], scale: tuple[float, float], bins: int = 10) -> dict[float, int]:
    """Counts by the middle of the bin that the score falls into; the last bin holds the highest score."""
    low, high = scale
    binned: dict[float, int] = {}
    for score, count in counts.items():
        place = min(int((score - low) / (high - low) * bins), bins - 1)
        middle = low + (place + 0.5) * (high - low) / bins
        binned[middle] = binned.get(middle, 0) + count
    return binned
