import base64
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import Page

from feedgym.experiments import page as page_module
from feedgym.experiments.charts import Series, panels, plane
from feedgym.experiments.page import LONG, decimals, folded, html_table, light_colours, link, page, section, with_ends


def value(mean, low, high):
    return {"mean": mean, "low": low, "high": high}


@pytest.mark.parametrize(
    ("three", "style", "text"),
    [
        ((3.14159, 3.04159, 3.24159), "", "3.14 [3.04, 3.24]"),  # half-width .100: two digits
        ((3.14159, 2.78659, 3.49659), "", "3.1 [2.8, 3.5]"),  # .355: one
        ((3.14159, 2.18159, 4.10159), "", "3.1 [2.2, 4.1]"),  # .96 is rounded up to 1.0
        ((1234.5, 884.5, 1584.5), "", "1,230 [880, 1,580]"),  # 350: tens
        ((0.000123, 0.000111, 0.000135), "", "0.000123 [0.000111, 0.000135]"),
        ((0.34231, 0.31131, 0.37331), "+%", "+34.2% [+31.1%, +37.3%]"),
        ((-0.01, -0.4, 0.38), "+%", "-1% [-40%, +38%]"),  # whole percents at least
        ((0.25, 0.2, 0.3), "%", "25% [20%, 30%]"),
        ((-0.001, -0.2, 0.2), "+", "+0.00 [-0.20, +0.20]"),  # no minus before a zero
        ((2.5, 2.5, 2.5), "", "2.50 [2.50, 2.50]"),
        ((2.5, None, None), "", "2.50"),
        ((None, None, None), "+%", "-"),
        ((2.5, float("-inf"), float("inf")), "", "2.50"),
    ],
)
def test_figures_are_rounded_to_what_their_interval_supports(three, style, text):
    assert with_ends(value(*three), style) == text


@given(st.floats(1e-6, 1e6))
def test_an_interval_keeps_one_or_two_digits(half):
    """The Particle Data Group's rule: what rounding loses is less than a seventh of the half-width."""
    unit = 10.0 ** -decimals(half)
    assert 3.5 <= round(half / unit, 6) <= 35.5 or 9.5 <= half / unit < 10
    assert abs(round(half, decimals(half)) - half) <= half / 7


EVIL = "<img src=x onerror=alert(1)>'\"&</script><script>alert(1)</script>"


def test_a_page_has_no_other_scripts_than_its_own_and_says_so_to_the_browser(monkeypatch):
    monkeypatch.setattr(page_module, "library", lambda: "library()")
    chart = plane(EVIL, [Series(label=EVIL, x=[1], y=[2], names=[EVIL])], x=EVIL)
    text = page(EVIL, [section(EVIL, html_table([EVIL], [[EVIL]]), panels(chart), folded(EVIL, ""), read=EVIL)])
    whole = Page(text)
    assert "img" not in whole.tags and not whole.open
    modules = [script for kind, script in whole.scripts if kind == "module"]
    assert modules[0] == "library()" and len(modules) == 2 and len(whole.scripts) == 3
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy and "script-src 'unsafe-eval' 'sha256" in policy
    for script in modules:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert whole.text.count(EVIL) == 6, "tab, heading, how to read, head, cell and fold"
    assert list(whole.charts) == [EVIL] and whole.charts[EVIL][EVIL][0]["n"] == EVIL


def test_a_page_without_charts_carries_no_library(monkeypatch):
    monkeypatch.setattr(page_module, "library", lambda: pytest.fail("not needed"))
    assert "vega" not in page("t", [section("One", "<p>x</p>"), section("Two")]).partition("<main>")[0]


def test_a_long_page_has_links_to_its_sections():
    links = [found for found in Page(page("t", [section(name, "x") for name in ("A b", "C'd", "E")])).fetched]
    assert links == ["#a-b", "#c-d", "#e"]
    assert not Page(page("t", [section("A", "x")])).fetched


def test_cells_are_escaped_wrapped_if_long_and_their_intervals_are_fainter():
    html = html_table(["", link("a&b", "x?'")], [["mean", "2.0 [1.0, 3.0]"], ["text", "word " * LONG], ["list", "[a]"]])
    assert "<td>2.0 <span class='ends'>[1.0, 3.0]</span></td>" in html and "<td>[a]</td>" in html
    assert html.count("class='long'") == 1 and "href='x?&#x27;'" in html
    assert Page(html).table("mean")["mean"] == ["2.0 [1.0, 3.0]"]


def test_every_colour_of_the_light_style_has_one_in_the_dark_style():
    style = page_module._asset("page.css")
    dark = style.partition("prefers-color-scheme: dark")[2].partition("* {")[0]
    assert set(light_colours()) == set(re.findall(r"--([a-z]+):", dark)) >= {"model", "truth", "base", "aligned", "ink"}
    used = set(re.findall(r"var\(--([a-z]+)\)", style + page_module._asset("page.js")))
    assert used - {"least", "tint", "share"} <= set(light_colours())
