"""Parts of Vega-Lite specifications: encodings, layers of points, lines across a chart, and texts for hovering.

Rows of data have short names, see :class:`feedgym.experiments.charts.Series`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Spec = dict[str, Any]
"""A specification or a part of it."""

PAINT: Spec = {"color": {"field": "c", "type": "nominal", "scale": None}}
"""The series' own colour."""
FOCUS: Spec = {"opacity": {"condition": {"test": "only === null || datum.s === only", "value": 1}, "value": 0.12}}
"""Fades all series but the one chosen in the legend."""
PATHS = {"line": "linear", "curve": "linear", "step": "step-after"}
"""Lines by mark, and how they lead from point to point."""
SHAPES = {"line": ("circle", 16), "dot": ("circle", 44), "cross": ("cross", 110), "tick": ("stroke", 130)}
"""Shapes of points and their sizes; those of a cloud are too many for outlines and larger places to hit."""


def points(at: Spec, marks: Sequence[str], tooltip: list[Spec]) -> list[Spec]:
    """Layers of points by shape, and of invisible larger ones that are easy to hit."""
    layers: list[Spec] = []
    if "cloud" in marks:
        mark = {"type": "point", "shape": "circle", "size": 18, "filled": True, "opacity": 0.35}
        layers.append({**only("cloud"), "mark": mark, "encoding": {**at, **PAINT, **tip(tooltip)}})
    for kind, (shape, size) in SHAPES.items():
        if kind in marks:
            mark = {"type": "point", "shape": shape, "size": size, "filled": False, "strokeWidth": 1.5}
            mark |= {"angle": 90} if kind == "tick" else {}  # upright in its row
            fill = {} if kind in ("cross", "tick") else {"fill": {"field": "f", "type": "nominal", "scale": None}}
            layers.append({**only(kind), "mark": mark, "encoding": {**at, **PAINT, **fill, **FOCUS}})
    if set(marks) & SHAPES.keys():
        mark = {"type": "point", "size": 220, "filled": True, "opacity": 0}
        test = [f"datum.m === '{kind}'" for kind in SHAPES]
        layers.append({"transform": [{"filter": " || ".join(test)}], "mark": mark, "encoding": {**at, **tip(tooltip)}})
    return layers


def bands(at: Spec, data: Sequence[Spec], marks: Sequence[str]) -> list[Spec]:
    """Bands of intervals around lines."""
    if not any("l" in row and marks[row["i"]] == "line" for row in data):
        return []
    ends = {**at, "y": {**at["y"], "field": "l"}, "y2": {"field": "h"}, "detail": {"field": "s"}, **PAINT}
    return [{**only("line"), "mark": {"type": "area", "opacity": 0.14}, "encoding": ends}]


def spreads(at: Spec, data: Sequence[Spec], marks: Sequence[str]) -> list[Spec]:
    """Bars for intervals of points: upright ones for those of y, level ones for those of x."""
    layers: list[Spec] = []
    if any("l" in row and marks[row["i"]] != "line" for row in data):
        ends = {**at, "y": {**at["y"], "field": "l"}, "y2": {"field": "h"}, **PAINT, **FOCUS}
        layers.append({"transform": [{"filter": "datum.m !== 'line'"}], "mark": "rule", "encoding": ends})
    if any("a" in row for row in data):
        ends = {**at, "x": {**at["x"], "field": "a"}, "x2": {"field": "b"}, **PAINT, **FOCUS}
        layers.append({"mark": "rule", "encoding": ends})
    return layers


def spreads_along(at: Spec, data: Sequence[Spec], bars: bool) -> list[Spec]:
    """Bars for intervals in rows."""
    if not any("l" in row for row in data):
        return []
    paint = {"color": {"value": "var(--ink)"}} if bars else PAINT
    ends = {**at, "x": {**at["x"], "field": "l"}, "x2": {"field": "h"}, **paint, **FOCUS}
    return [{"mark": "rule", "encoding": ends}]


def bars_of(at: Spec, data: Sequence[Spec], tooltip: list[Spec]) -> Spec:
    """Bars in rows, which begin at 0 or at z."""
    begin = {"x2": {"field": "z"}} if any("z" in row for row in data) else {}
    encoding = {**at, **begin, **PAINT, **tip(tooltip)}
    return {**only("bar"), "mark": {"type": "bar", "height": {"band": 0.7}}, "encoding": encoding}


def paths(at: Spec, marks: Sequence[str]) -> list[Spec]:
    """Lines, curves and staircases."""
    dashes = {"detail": {"field": "s"}, "strokeDash": {"field": "d", "scale": None}}
    return [
        {
            **only(kind),
            "mark": {"type": "line", "interpolate": shape, "strokeWidth": 1.6},
            "encoding": {**at, **dashes, **PAINT, **FOCUS},
        }
        for kind, shape in PATHS.items()
        if kind in marks
    ]


def names_of(at: Spec) -> Spec:
    """Names beside points: up and to the left of those that none further left exceeds, or else down and to the right.

    No point is up and to the left of the first ones. At the edges of the chart names go to the side that has room.
    """
    above, at_x = "datum.y >= datum.best", "scale('x', datum.x)"
    left = f"{at_x} > 0.8 * width || {above} && {at_x} > 0.2 * width"
    text = {"type": "text", "align": {"expr": f"{left} ? 'right' : 'left'"}}
    text |= {"dx": {"expr": f"{left} ? -7 : 7"}, "dy": {"expr": f"{above} ? -7 : 9"}}
    so_far = {"window": [{"op": "max", "field": "y", "as": "best"}], "sort": [{"field": "x"}]}
    encoding = {**at, "text": {"field": "n"}, **FOCUS}
    return {"transform": [{"filter": "isValid(datum.n)"}, so_far], "mark": text, "encoding": encoding}


def only(kind: str) -> Spec:
    """The part of a layer that keeps series of one mark."""
    return {"transform": [{"filter": f"datum.m === '{kind}'"}]}


def scale_of(log: bool, ends: tuple[float, float] | None = None) -> Spec:
    """A scale, with its ends if they are known; what lies beyond is drawn at the edge."""
    scale: Spec = {"type": "log"} if log else {"zero": False}
    return scale if ends is None else scale | {"domain": list(ends), "clamp": True}


def line_of(name: str, title: str, style: str | None = None) -> Spec:
    """A line of a hovering text: a field with its title, and the format of a number."""
    line = {"field": name, "title": title}
    return line if style is None else line | {"type": "quantitative", "format": style}


def named(data: Sequence[Spec], series: bool = True) -> list[Spec]:
    """Lines of a hovering text for the point's name and its series."""
    names = [{"field": "n", "title": "name"}] if any("n" in row for row in data) else []
    return names + ([{"field": "s", "title": "line"}] if series else [])


def tip(tooltip: list[Spec]) -> Spec:
    """The encoding of a hovering text."""
    return {"tooltip": [{"type": "nominal", **line} for line in tooltip]}


def wall(axis: str, name: str, value: float) -> Spec:
    """A line across the chart with its name."""
    across = {axis: {"datum": value, "type": "quantitative"}}
    text: Spec = {"type": "text", "text": name, "color": "var(--soft)", "fontSize": 10, "clip": False}
    text |= {"align": "left", "dx": 3, "y": 2} if axis == "x" else {"align": "right", "dy": -6, "x": "width"}
    line = {"mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [3, 3]}, "encoding": across}
    return {"data": {"values": [{}]}, "layer": [line, {"mark": text, "encoding": across}]}


def diagonal_of(data: Sequence[Spec]) -> Spec:
    """The line of equality where both axes have data."""
    ends = [(min(values), max(values)) for values in ([row[k] for row in data if row[k] is not None] for k in "xy")]
    low, high = max(pair[0] for pair in ends), min(pair[1] for pair in ends)
    line = [{"x": value, "y": value} for value in (low, max(low, high))]
    at = {name: {"field": name, "type": "quantitative"} for name in "xy"}
    return {
        "data": {"values": line},
        "mark": {"type": "line", "color": "var(--soft)", "strokeWidth": 1},
        "encoding": at,
    }
