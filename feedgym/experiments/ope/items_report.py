"""Makes the tables of an off-policy evaluation item by item, for the terminal and for the page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from feedgym.experiments.page import COLOURS, axes_row, html_table, image, number, page, section, with_ends
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
    agents = list(summary["agents"])
    figure, (axis,) = axes_row(1, width=8, height=1.4 + 0.35 * len(agents))
    shifts, colours = np.linspace(0.25, -0.25, len(summary["names"])), ("other", "truth", "model", "aligned")
    for shift, colour, (name, label) in zip(shifts, colours, summary["names"].items(), strict=True):
        told = [(place, summary["agents"][a][name]) for place, a in enumerate(agents) if name in summary["agents"][a]]
        if told:
            mean, low, high = (np.array([value[end] for _, value in told]) for end in ("mean", "low", "high"))
            places = [place + shift for place, _ in told]
            axis.errorbar(mean, places, xerr=np.maximum([mean - low, high - mean], 0), fmt="o", markersize=4,
                          color=COLOURS[colour], label=label, capsize=2)  # fmt: skip
    axis.set_yticks(range(len(agents)), agents, fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return image(figure)
