"""Parts of pages for people: figures in words, tables, sections, and the page around them.

A page is one file that loads nothing: its style, its data and the library that draws its charts are inside. A content
security policy allows exactly the scripts that are written here, so that no text from data can ever run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

CHART = "class='chart'"
"""Mark of pages with charts, which need the library that draws them."""
LONG = 45
"""Characters of a cell that is wrapped."""


def page(title: str, sections: Sequence[str]) -> str:
    """Make a whole HTML page in the common style; empty sections are left out."""
    body = "\n".join(filter(None, sections))
    scripts = [_asset("page.js")]
    if CHART in body:
        scripts.insert(0, library())
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    return _PAGE.format(
        title=html.escape(title),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-eval' {hashes}",
        style=_asset("page.css"),
        contents=_contents(body),
        body=body,
        scripts="\n".join(f'<script type="module">{script}</script>' for script in scripts),
    )


@cache
def library() -> str:
    """The library that draws charts: Vega-Lite with Vega and vega-embed, as one script."""
    from vl_convert import javascript_bundle

    return javascript_bundle("window.vegaEmbed = vegaEmbed;")


def section(title: str, *parts: str, read: str = "") -> str:
    """Put parts of a page under a heading; empty if the parts are empty.

    Args:
        title: the heading.
        parts: HTML.
        read: how to read the section, in plain words.
    """
    body = "".join(parts)
    if not body:
        return ""
    told = f"<p class='read'><b>How to read this.</b> {html.escape(read)}</p>" if read else ""
    return f"<section id='{_slug(title)}'><h2>{html.escape(title)}</h2>{told}{body}</section>"


def folded(title: str, body: str) -> str:
    """Fold a part of a page, to be opened by a click on its title."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def note(text: str) -> str:
    """Make a small remark; the text is escaped."""
    return f"<p class='facts'>{html.escape(text)}</p>"


class Markup(str):
    """A table cell that is HTML already."""


def bold(cell: str) -> Markup:
    """Make a bold cell."""
    return Markup(f"<b>{_escaped(cell)}</b>")


def link(text: str, target: str) -> Markup:
    """Make a cell that links to another page."""
    return Markup(f"<a href='{html.escape(target)}'>{html.escape(text)}</a>")


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table of cells, which are escaped unless they are :class:`Markup`.

    It scrolls within the page if it is wider; the first column stays in sight.
    """
    top = "".join(f"<th>{_escaped(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<div class='scroll' tabindex='0'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(cell: str) -> str:
    """A cell; long text is wrapped, and the ends of an interval are fainter than its mean."""
    if isinstance(cell, Markup) or len(cell) <= LONG:
        return f"<td>{_ENDS.sub(_FAINT, _escaped(cell))}</td>"
    return f"<td class='long'>{_escaped(cell)}</td>"


def _escaped(cell: str) -> str:
    return cell if isinstance(cell, Markup) else html.escape(cell)


_ENDS = re.compile(r" (\[[^\[\]]*\d[^\[\]]*, [^\[\]]*\])(?=$|<)")
_FAINT = r" <span class='ends'>\1</span>"

# ---------------------------------------------------------------- figures in words


def missing(value: Any) -> bool:
    """Whether a figure could not be measured: NaN in a run, null in its file."""
    return value is None or value != value


def number(value: Any) -> str:
    """Format a figure for people: about three digits, or "-" if it is missing."""
    if missing(value):
        return "-"
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def with_ends(value: Mapping[str, Any] | None, style: str = "") -> str:
    """Format a mean with the ends of its interval, if it has one, rounded to what the interval supports.

    Args:
        value: ``mean``, ``low`` and ``high``.
        style: "+" always shows a sign, "%" shows shares in percent, "+%" both.
    """
    if value is None:
        return "-"
    mean, low, high = (value[end] for end in ("mean", "low", "high"))
    if missing(mean) or any(missing(end) or math.isinf(end) for end in (low, high)):
        return _styled(mean, style)
    digits = decimals((high - low) / 2 * (100 if "%" in style else 1))
    digits = max(digits, 0) if digits is not None and "%" in style else digits
    return f"{_styled(mean, style, digits)} [{_styled(low, style, digits)}, {_styled(high, style, digits)}]"


def decimals(half: float) -> int | None:
    """Decimal places for a figure whose interval has a half-width; negative for tens, None without a width.

    The rule of the Particle Data Group looks at the first three digits of the half-width. In 100-354 it is given with
    two digits, in 355-949 with one; above it is rounded up to two. The figure gets as many places.
    """
    if not half > 1e-12:
        return None
    power = math.floor(math.log10(half))
    leading = round(half / 10.0**power * 100)
    return (1 if leading <= 354 or leading >= 950 else 0) - power - (leading >= 950)


def _styled(value: Any, style: str, digits: int | None = None) -> str:
    """A figure in a style with a number of decimal places, or with about three digits."""
    if missing(value):
        return "-"
    sign, percent = "+" if "+" in style else "", "%" in style
    value = float(value) * (100 if percent else 1)
    if digits is None:
        text = f"{value:{sign}.1f}" if percent else ("+" if sign and value >= 0 else "") + number(value)
    else:
        value = round(value, digits) + 0.0  # no minus before a zero
        text = f"{value:{sign},.{max(digits, 0)}f}"
    return text + "%" * percent


# ---------------------------------------------------------------- the page around


@cache
def _asset(name: str) -> str:
    return (files("feedgym.experiments") / "assets" / name).read_text("utf-8")


def light_colours() -> dict[str, str]:
    """The page's colours by name, of its light style."""
    light = _asset("page.css").partition("@media")[0]
    return dict(re.findall(r"--([a-z]+): (#?[0-9a-z%]+)", light))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _contents(body: str) -> str:
    """Links to the sections, if there are enough of them."""
    found = re.findall(r"<section id='([a-z0-9-]*)'><h2>(.*?)</h2>", body)
    links = "".join(f"<a href='#{slug}'>{title.partition(', ')[0]}</a>" for slug, title in found)
    return f"<nav aria-label='Contents'>{links}</nav>" if len(found) > 2 else ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>{style}</style></head><body>
{contents}<main>
{body}
</main>
{scripts}
</body></html>
"""
