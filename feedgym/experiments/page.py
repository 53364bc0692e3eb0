"""Parts of pages for people: figures in words, tables, pictures, sections, and the page around them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

COLOURS = {"model": "#c2571a", "truth": "#1a6b8f", "base": "#8a8f98", "aligned": "#1a8f5b", "other": "#b9bec7"}
COLOURS |= {"base_searched": COLOURS["base"], "aligned_searched": COLOURS["aligned"]}


def page(title: str, sections: Sequence[str]) -> str:
    """Make a whole HTML page in the common style; empty sections are left out."""
    return _PAGE.format(title=html.escape(title), body="\n".join(filter(None, sections)))


def section(title: str, *parts: str) -> str:
    """Put parts of a page under a heading; empty if the parts are empty."""
    body = "".join(parts)
    return f"<h2>{html.escape(title)}</h2>{body}" if body else ""


def folded(title: str, body: str) -> str:
    """Fold a part of a page, to be opened by a click on its title."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


class Markup(str):
    """A table cell that is HTML already."""


def bold(cell: str) -> Markup:
    """Make a bold cell."""
    return Markup(f"<b>{_escaped(cell)}</b>")


def link(text: str, target: str) -> Markup:
    """Make a cell that links to another page."""
    return Markup(f"<a href='{html.escape(target)}'>{html.escape(text)}</a>")


def _escaped(cell: str) -> str:
    return cell if isinstance(cell, Markup) else html.escape(cell)


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table of cells, which are escaped unless they are :class:`Markup`."""
    top = "".join(f"<th>{_escaped(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def axes_row(columns: int, width: float, height: float = 3.2) -> tuple[Any, Any]:
    """Make a figure with axes in a row; width is that of one, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def image(figure: Any) -> str:
    """Make an HTML image of a figure, with its bytes included."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}'>"


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


def with_ends(value: Mapping[str, float] | None) -> str:
    """Format a mean with the ends of its interval."""
    return "-" if value is None else f"{number(value['mean'])} [{number(value['low'])}, {number(value['high'])}]"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d2126;
  max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: .3rem; }} h2 {{ font-size: 1.1rem; margin: 2.4rem 0 .6rem; }}
.lead {{ font-size: 1.15rem; font-weight: 600; }} .facts {{ color: #69707a; font-size: .85rem; }}
img {{ max-width: 100%; height: auto; }} .scroll {{ overflow-x: auto; }}
details {{ margin: .8rem 0; }} summary {{ cursor: pointer; color: #1a6b8f; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; margin-top: .6rem; }}
th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e6e8eb; }}
th:first-child, td:first-child {{ text-align: left; }} th {{ font-weight: 600; border-bottom: 2px solid #c9ced6; }}
</style></head><body>
{body}
</body></html>
"""
