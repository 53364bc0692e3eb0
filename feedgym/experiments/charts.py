"""Turns data into interactive charts for pages: lines and points with intervals, and bars or dots in rows.

A chart is a Vega-Lite specification. Its colours are CSS variables of the page, so that it follows the page's dark or
light style at any time, also when printed. Texts for hovering are formatted here, so charts and tables round alike. The
library that draws is put into the page by :func:`feedgym.experiments.page.page`; nothing is loaded from a network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feedgym.experiments.layers import (
    PAINT,
    Spec,
    bands,
    bars_of,
    diagonal_of,
    line_of,
    named,
    names_of,
    paths,
    points,
    scale_of,
    spreads,
    spreads_along,
    tip,
    wall,
)
from feedgym.experiments.page import light_colours, missing, number, with_ends

DASHES = {"solid": [1, 0], "dashed": [6, 4], "dotted": [2, 3]}
ENDS = ("mean", "low", "high")
FEW = 8
"""As many whole places on an axis all have a tick."""
Figure = Mapping[str, Any]
"""A mean with the ends of its interval, as in ``summary.json``."""


def hue(number: int) -> str:
    """Colour number n of any number of colours; neighbours differ, and the page's style sets the lightness."""
    return f"hsl({number * 137.5 % 360:.0f} 55% var(--lightness))"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Values that share a colour and an entry of the legend.

    Attributes:
        label: the entry.
        x: places; numbers in :func:`plane`, names of rows in :func:`in_rows`.
        y: figures with their intervals, or plain numbers; None where nothing was measured.
        x_ends: ends of the intervals of x, if there are any.
        names: a name per point, for hovering.
        colour: name of a colour of the page, or a CSS colour.
        dash: solid, dashed or dotted.
        mark: line (with points), curve (without), step (a staircase), dot, cloud (many dots), cross, tick or bar.
        hollow: whether the points are only outlined.
        starts: in :func:`in_rows`, beginnings of bars that do not begin at 0.
    """

    label: str
    x: Sequence[Any]
    y: Sequence[Figure | float | None]
    x_ends: Sequence[tuple[float, float] | None] | None = None
    names: Sequence[str] | None = None
    colour: str = "truth"
    dash: str = "solid"
    mark: str = "line"
    hollow: bool = False
    starts: Sequence[float] | None = None

    @property
    def paint(self) -> str:
        """The colour for CSS."""
        return self.colour if "(" in self.colour else f"var(--{self.colour})"

    def style(self) -> Spec:
        """The style that all points share: s series, m mark, c colour, f filling, d dashes."""
        fill = "var(--page)" if self.hollow else self.paint
        return {"s": self.label, "m": self.mark, "c": self.paint, "f": fill, "d": DASHES[self.dash]}

    def data(self) -> list[Spec]:
        """A row per point: x and y, with the ends l and h of y, a and b of x.

        n is its name, v the text for hovering, z the begin of a bar.
        """
        told = []
        for at, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            figure: Figure = y if isinstance(y, Mapping) else {"mean": y}
            mean, *ends = (_plain(figure.get(end)) for end in ENDS)
            row: Spec = {"x": _plain(x), "y": mean, "v": number(figure["mean"])}
            if None not in ends:
                row |= {"l": ends[0], "h": ends[1], "v": with_ends(figure)}
            if self.x_ends is not None and (pair := self.x_ends[at]) is not None:
                row |= {"a": _plain(pair[0]), "b": _plain(pair[1])}
            if self.names is not None:
                row["n"] = self.names[at]
            if self.starts is not None:
                row["z"] = _plain(self.starts[at])
            told.append(row)
        return told


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart's specification, and the series for its legend, if it needs one."""

    spec: Spec
    series: Sequence[Series]
    legend: bool = True


def figures(told: Mapping[str, Sequence[Any]]) -> list[Figure | float | None]:
    """Figures from columns: lists ``mean`` and, if there are intervals, ``low`` and ``high``."""
    if "low" not in told:
        return list(told["mean"])
    return [dict(zip(ENDS, row, strict=True)) for row in zip(*(told[end] for end in ENDS), strict=True)]


def plane(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str = "",
    log: str = "",
    whole: bool = False,
    diagonal: bool = False,
    lines: Mapping[str, float] | None = None,
    walls: Mapping[str, float] | None = None,
    labels: bool = False,
    ends: Sequence[tuple[float, float] | None] = (None, None),
    height: int = 210,
) -> Chart:
    """Draw lines and points in a plane of two numbers.

    Args:
        title: the chart's title.
        series: the data; intervals are bands around lines, and bars at dots.
        x: title of the x axis.
        y: title of the y axis; empty if the title says it.
        log: the axes with a logarithmic scale: "x", "y" or "xy".
        whole: whether x is a whole number.
        diagonal: whether to draw the line of equality.
        lines: horizontal lines by name.
        walls: vertical lines by name.
        labels: whether points show their names.
        ends: ends of the x and of the y axis, if they are known beforehand.
        height: height in pixels; the width is that of the place on the page.
    """
    data, marks = _rows_of(series), [one.mark for one in series]
    places = sorted({row["x"] for row in data})
    ticks = ({"format": "d"} | ({"values": places} if len(places) <= FEW else {"tickMinStep": 1})) if whole else {}
    scale = scale_of("x" in log, ends[0]) | ({"nice": False} if whole else {})
    of_y = {"type": "quantitative", "title": y or None, "scale": scale_of("y" in log, ends[1])}
    at = {
        "x": {"field": "x", "type": "quantitative", "title": x, "scale": scale, "axis": ticks},
        "y": {"field": "y", **of_y},
    }
    tooltip = [*named(data), line_of("x", x, ",d" if whole else ",.3~g"), line_of("v", y or title)]
    layers = [wall("y", name, value) for name, value in (lines or {}).items()]
    layers += [wall("x", name, value) for name, value in (walls or {}).items()]
    layers += [diagonal_of(data)] if diagonal else []
    layers += [*bands(at, data, marks), *spreads(at, data, marks), *paths(at, marks), *points(at, marks, tooltip)]
    layers += [names_of(at)] if labels else []
    return Chart(spec=_spec(title, series, data, layers, height), series=series, legend=not labels)


def in_rows(
    title: str, series: Sequence[Series], *, x: str = "", percent: bool = False, log: bool = False,
    walls: Mapping[str, float] | None = None, ends: tuple[float, float] | None = None, beside: bool = True,
) -> Chart:  # fmt: skip
    """Draw figures in named rows, as bars or as marks with intervals; series of one row lie below each other.

    Args:
        title: the chart's title.
        series: the data; x are the rows, in the order of their first appearance.
        x: title of the axis.
        percent: whether figures are shares.
        log: whether the axis is logarithmic.
        walls: vertical lines by name.
        ends: ends of the axis, if they are known beforehand.
        beside: whether series of one row lie below each other, or all on one line.
    """
    data, marks = _rows_of(series), [one.mark for one in series]
    labels, names = (list(dict.fromkeys(told)) for told in ([one.label for one in series], [row["x"] for row in data]))
    bars = "bar" in marks
    beside = beside and len(labels) > 1 and len(names) < len(data)
    scale = {**scale_of(log, ends), **({} if log else {"zero": bars})}
    axis = {"grid": False, "labelLimit": 170, "ticks": False, "domain": False}
    of_x: Spec = {"field": "y", "type": "quantitative", "title": x or None, "scale": scale}
    at: Spec = {
        "x": of_x | ({"axis": {"format": ".1~%"}} if percent else {}),
        "y": {"field": "x", "type": "nominal", "sort": names, "title": None, "axis": axis},
    }
    at |= {"yOffset": {"field": "s", "sort": labels}} if beside else {}
    tooltip = [{"field": "x", "title": " "}, *named(data, len(labels) > 1), line_of("v", x or title)]
    layers = [wall("x", name, value) for name, value in (walls or {}).items()]
    layers += [bars_of(at, data, tooltip)] if bars else []
    layers += [*spreads_along(at, data, bars), *points(at, marks, tooltip)]
    height = len(names) * (max(22, 12 * len(labels)) if beside else 22)
    return Chart(spec=_spec(title, series, data, layers, height), series=series)


@dataclass(frozen=True, kw_only=True)
class Bead:
    """A dot of a timeline: its place, a share in [0, 1] for its size, or None if it is faint, its colour and text."""

    x: float
    y: int
    share: float | None
    colour: str
    text: str


def beads(title: str, data: Sequence[Bead], *, x: str, y: str) -> Chart:
    """Draw dots of different sizes in columns, such as the items of a user's visits along the days.

    Args:
        title: the chart's title.
        data: the dots; y counts from 1.
        x: title of the x axis.
        y: title of the y axis.
    """
    values = [
        {"x": _plain(bead.x), "y": bead.y, "z": 25 + 75 * min(bead.share or 0, 1), "c": bead.colour, "n": bead.text,
         "o": 0.2 if bead.share is None else 0.95}
        for bead in data
    ]  # fmt: skip
    num_rows = max((bead.y for bead in data), default=1)
    encoding = {
        "x": {"field": "x", "type": "quantitative", "title": x, "axis": {"grid": False}},
        "y": {
            "field": "y",
            "type": "ordinal",
            "title": y,
            "sort": "descending",
            "axis": {"labels": False, "ticks": False},
        },
        "size": {"field": "z", "type": "quantitative", "scale": None},
        "opacity": {"field": "o", "type": "quantitative", "scale": None},
        **PAINT,
        **tip([{"field": "n", "title": " "}, line_of("x", x, ".1f")]),
    }
    mark = {"type": "point", "filled": True, "shape": "circle"}
    spec = {"title": title, "width": "container", "height": 14 * num_rows, "data": {"values": values}}
    return Chart(spec={**spec, "mark": mark, "encoding": encoding}, series=())


def panels(*charts: Chart, width: int = 300) -> str:
    """Put charts beside each other, as many as fit, under one legend; a click on an entry fades the others.

    Args:
        charts: the charts.
        width: the least width of a chart in pixels.
    """
    if not charts:
        return ""
    entries = {one.label: one for chart in charts if chart.legend for one in chart.series if one.label}
    legend = "".join(map(_entry, entries.values())) if len(entries) > 1 else ""
    drawn = "".join(
        f"<div class='chart'><script type='application/json'>{_json(c.spec)}</script></div>" for c in charts
    )
    within = f"style='--least: {width}px'"
    return f"<div class='panels'><div class='legend'>{legend}</div><div class='charts' {within}>{drawn}</div></div>"


def png(chart: Chart, width: int = 420) -> bytes:
    """Make a picture of a chart in the colours of the light page."""
    from vl_convert import vegalite_to_png

    spec = json.dumps({**chart.spec, "width": width, "background": "white"})
    for name, colour in light_colours().items():
        spec = spec.replace(f"var(--{name})", colour)
    return vegalite_to_png(spec, scale=2)


# ---------------------------------------------------------------- parts


def _rows_of(series: Sequence[Series]) -> list[Spec]:
    """The points of all series; i is the series' number."""
    return [{"i": number, **row} for number, one in enumerate(series) for row in one.data()]


def _spec(title: str, series: Sequence[Series], data: list[Spec], layers: list[Spec], height: int) -> Spec:
    styles = [{"i": number, **one.style()} for number, one in enumerate(series)]
    looked_up = {"data": {"values": styles}, "key": "i", "fields": ["s", "m", "c", "f", "d"]}
    return {
        "title": title,
        "width": "container",
        "height": height,
        "params": [{"name": "only", "value": None}],
        "data": {"values": data},
        "transform": [{"lookup": "i", "from": looked_up}],
        "layer": layers,
    }


def _entry(one: Series) -> str:
    """An entry of the legend, a button."""
    label, filled = html.escape(one.label), "none" if one.hollow else one.paint
    if one.mark in ("line", "curve", "step"):
        dash = " ".join(map(str, DASHES[one.dash]))
        drawn = f"<line x1='0' y1='5' x2='22' y2='5' stroke-width='2' stroke-dasharray='{dash}' stroke='{one.paint}'/>"
    else:
        drawn = f"<circle cx='11' cy='5' r='4' stroke='{one.paint}' fill='{filled}'/>"
    swatch = f"<svg width='22' height='10' aria-hidden='true'>{drawn}</svg>"
    return f"<button type='button' aria-pressed='false' data-series='{label}'>{swatch}{label}</button>"


def _json(spec: Spec) -> str:
    """JSON that cannot end the element around it."""
    return json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    """A number for JSON, with six digits; None for what was not measured."""
    if isinstance(value, str):
        return value
    if missing(value) or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.6g}")
