import json
from itertools import pairwise

import pytest
from pages import Page, points

from feedgym.experiments.charts import Bead, Series, beads, figures, hue, in_rows, panels, plane


def value(mean, half=0.25):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def marks(chart):
    kinds = [
        layer["mark"]["type"] if isinstance(layer.get("mark"), dict) else layer.get("mark")
        for layer in chart.spec["layer"]
    ]
    return [kind for kind in kinds if kind]


def test_points_have_the_tables_text_six_digits_and_null_where_nothing_was_measured():
    nothing = {"mean": float("nan"), "low": None, "high": float("nan")}
    line = Series(label="a", x=[1, 2, 3, 4], y=[value(1 / 3), None, nothing, 2.0], names=list("pqrs"))
    rows = points(plane("t", [line], x="visit").spec)["a"]
    assert rows[0] == {"i": 0, "x": 1, "y": 0.333333, "l": 0.0833333, "h": 0.583333, "v": "0.33 [0.08, 0.58]", "n": "p"}
    assert [row["y"] for row in rows[1:]] == [None, None, 2.0] and [row["v"] for row in rows[1:]] == ["-", "-", "2.00"]
    assert not any("l" in row for row in rows[1:])


def test_intervals_are_bands_around_lines_and_bars_at_dots():
    line, dot = (Series(label=mark, x=[1, 2], y=[value(1), value(2)], mark=mark) for mark in ("line", "dot"))
    assert marks(plane("", [line], x="x"))[0] == "area" and "rule" not in marks(plane("", [line], x="x"))
    assert "area" not in marks(plane("", [dot], x="x")) and "rule" in marks(plane("", [dot], x="x"))
    plain = Series(label="plain", x=[1, 2], y=[1, 2])
    assert not {"area", "rule"} & set(marks(plane("", [plain], x="x")))


def test_columns_become_figures():
    assert figures({"mean": [1, 2]}) == [1, 2]
    assert figures({"mean": [1], "low": [0], "high": [2]}) == [{"mean": 1, "low": 0, "high": 2}]


def test_series_of_the_same_rows_lie_below_each_other_unless_they_share_a_line():
    one, two = (Series(label=name, x=["p", "q"], y=[value(1), value(2)], mark="dot") for name in "ab")
    assert "yOffset" in json.dumps(in_rows("", [one, two]).spec)
    assert "yOffset" not in json.dumps(in_rows("", [one, two], beside=False).spec)
    apart = Series(label="c", x=["r"], y=[value(1)], mark="dot")
    assert "yOffset" not in json.dumps(in_rows("", [one, apart]).spec)
    assert in_rows("", [one, two]).spec["height"] > in_rows("", [one]).spec["height"]


def test_bars_begin_at_nothing_or_where_they_are_told():
    (bar,) = points(in_rows("", [Series(label="", x=["p"], y=[3.0], mark="bar", starts=[2.0])]).spec)[""]
    assert (bar["z"], bar["y"]) == (2.0, 3.0)
    (layer,) = in_rows("", [Series(label="", x=["p"], y=[3.0], mark="bar")]).spec["layer"]
    assert "x2" not in layer["encoding"] and layer["encoding"]["x"]["scale"]["zero"]


def test_charts_share_a_legend_of_buttons_and_one_series_needs_none():
    a, b = (Series(label=name, x=[1], y=[1]) for name in ("a<", "b"))
    page = Page(panels(plane("p", [a, b], x="x"), plane("q", [b], x="x")))
    assert page.tags.count("button") == 2 and "a<" in page.text and list(page.charts) == ["p", "q"]
    assert "button" not in Page(panels(plane("p", [a], x="x"))).tags
    assert "button" not in Page(panels(plane("p", [a, b], x="x", labels=True))).tags, "they have their names"
    assert panels() == ""


def test_neighbouring_hues_differ():
    angles = [float(hue(number)[4:].partition(" ")[0]) for number in range(12)]
    assert len(set(angles)) == 12 and all(abs(a - b) > 40 for a, b in pairwise(angles))


def test_beads_grow_with_their_share_and_are_faint_without():
    data = [Bead(x=1.0, y=1, share=share, colour="red", text="") for share in (None, 0.0, 0.5, 3.0)]
    rows = beads("", data, x="day", y="items").spec["data"]["values"]
    assert [row["z"] for row in rows] == [25, 25, 62.5, 100] and rows[0]["o"] < rows[1]["o"] == rows[3]["o"]


def test_a_chart_is_a_picture_too():
    charts = pytest.importorskip("feedgym.experiments.charts")
    pytest.importorskip("vl_convert")
    picture = charts.png(plane("t", [Series(label="a", x=[1, 2], y=[1, 2])], x="x"), width=120)
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000
