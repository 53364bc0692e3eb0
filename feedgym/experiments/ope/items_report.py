"""Makes the tables of an off-policy evaluation item by item, for the terminal and for the page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from feedgym.experiments.charts import Series, in_rows, panels
from feedgym.experiments.page import html_table, number, page, section, with_ends
from feedgym.experiments.report import compact_table
from feedgym.experiments.run import write_text

Summary = Mapping[str, Any]


def terminal_table(summary: Summary) -> Table:
    """Table of the agents with their estimates."""
    table = compact_table(summary["title"], caption(summary))
    table.add_column("", no_wrap=True)
    for head in (*summary["names"].values(), "rows"):
        table.add_column(head, justify="right")
    for agent, figures in summary["agents"].items():
        cells = [with_ends(figures.get(name)) for name in summary["names"]]
        table.add_row(agent, *cells, number(summary["rows"][agent]))
    return table


def caption(summary: Summary) -> str:
    """Sentence about the reward and the judging users, and the agreement between halves of the users."""
    agree = [f"{summary['names'][name]} {number(value)}" for name, value in summary["halves"].items()]
    return (
        f"Share of {summary['reward']}, by {summary['judged_by']}; the truth is unknown. Rank correlation of the "
        f"agents' orders by one half of the users and by the other: {', '.join(agree)}"
    )


def write_report(summary: Summary, folder: Path) -> Path:
    """Write ``report.html``; returns its path."""
    heads = ["", *summary["names"].values(), "effective sample size"]
    rows = [
        [agent, *(with_ends(figures.get(name)) for name in summary["names"]), number(summary["rows"][agent])]
        for agent, figures in summary["agents"].items()
    ]
    refused = [[agent, ", ".join(summary["names"][name] for name in why), next(iter(why.values()))]
               for agent, why in summary["refused"].items() if why]  # fmt: skip
    sections = [
        f"<h1>{html.escape(summary['title'])}</h1><p class='lead'>{html.escape(caption(summary))}</p>",
        section("Estimated reward of each agent", _dots(summary), html_table(heads, rows)),
        section("Refused estimates", html_table(["agent", "estimators", "why"], refused) if refused else ""),
    ]
    path = folder / "report.html"
    write_text(path, page(summary["title"], sections))
    return path


def _dots(summary: Summary) -> str:
    """Draw a dot with its interval per agent and estimator."""
    series = []
    for colour, (name, label) in zip(("other", "truth", "model", "aligned"), summary["names"].items(), strict=True):
        told = {agent: figures[name] for agent, figures in summary["agents"].items() if name in figures}
        series.append(Series(label=label, x=list(told), y=list(told.values()), mark="dot", colour=colour))
    return panels(in_rows("estimated reward", series), width=500)
