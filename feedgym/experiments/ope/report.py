"""Presents the result of an off-policy evaluation: tables for the terminal and for the page, and pictures."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from feedgym.experiments.ope.pictures import scatter_plot, support_plot
from feedgym.experiments.page import html_table, missing, note, number, page, section, with_ends
from feedgym.experiments.report import compact_table
from feedgym.experiments.run import write_text

Summary = Mapping[str, Any]

HEADS = ("agents", "bias", "spread", "RMSE", "in 95%", "rank correlation", "regret")
"""Columns of the table of estimators."""


def write_report(summary: Summary, folder: Path) -> Path:
    """Write ``report.html``; returns its path."""
    sections = [
        _headline(summary),
        section(f"Estimators, by {summary['judged_by']}", _estimators_table(summary), read=NOTE),
        section("Estimates against the truth", scatter_plot(summary), read=READ),
        section("Agents", _agents_table(summary)),
        section("How far the logs support each agent", support_plot(summary), _supports_table(summary)),
        section("Refused estimates", _refused_table(summary)),
    ]
    path = folder / "report.html"
    write_text(path, page(summary["title"], sections))
    return path


NOTE = (
    "Value of serving an agent for one visit at the log's own requests. Agents: those that an estimator can judge in "
    "every log; the rest is refused. Spread: of an agent's errors over the logs. In 95%: share of the intervals "
    "(bootstrap over users) that contain the truth. Rank correlation: Spearman's with the truth over the judged "
    "agents, mean over the logs, with the interval of resampled users. Regret: true value of the best judged agent, "
    "minus that of the agent with the highest estimate."
)


READ = (
    "A dot per agent and log, with the estimator's 95% interval. On the diagonal the estimate is the truth. An "
    "estimator that is wrong but rises steadily still orders the agents well."
)


def terminal_table(summary: Summary) -> Table:
    """Table of the estimators, in 80 columns."""
    table = compact_table(summary["title"], best_sentence(summary))
    table.add_column("", no_wrap=True)
    for head in ("agents", "bias", "spread", "RMSE", "in 95%", "rank corr.", "regret"):
        table.add_column(head, justify="right", no_wrap=True)
    for name in summary["estimators"]:
        cells = _cells(summary, name)
        rank = (summary["estimators"][name].get("rank") or {}).get("mean")
        table.add_row(name, *cells[:5], number(rank), cells[6])
    return table


def best_sentence(summary: Summary) -> str:
    """Sentence about the estimator that orders the most agents best, and about refused estimates."""
    rows = {name: row for name, row in summary["estimators"].items() if row.get("rank")}
    total = len(summary["agents"])
    if not rows:
        return f"No estimator can judge enough of the {total} agents to order them."
    most = max(row["agents"] for row in rows.values())
    best = max((n for n in rows if rows[n]["agents"] == most), key=lambda name: rows[name]["rank"]["mean"])
    told = (
        f"Best order of {most} of {total} agents: {summary['names'][best]}, rank correlation "
        f"{with_ends(rows[best]['rank'])}"
    )
    refused = next((row for row in summary["estimators"].values() if row["refused"]), None)
    return told if refused is None else f"{told}; refused, for example: {refused['reason']}"


def _headline(summary: Summary) -> str:
    seconds = sum(stage["seconds"] for stage in summary["stages"].values())
    facts = [f"seed {summary['seed']}", f"revision {summary['git_revision'][:12]}", f"{seconds:,.0f} s of work"]
    return (
        f"<h1>{html.escape(summary['title'])}</h1><p class='lead'>{html.escape(best_sentence(summary))}</p>"
        f"<p class='facts'>{html.escape(' · '.join(facts))}</p>"
    )


def _cells(summary: Summary, name: str) -> list[str]:
    """An estimator's cells for HEADS."""
    row = summary["estimators"][name]
    signed = "-" if missing(row.get("bias")) else f"{row['bias']:+.2f}"
    covered = "-" if missing(row.get("covered")) else f"{row['covered']:.0%}"
    rest = [number(row.get(figure)) for figure in ("spread", "rmse")]
    return [f"{row['agents']}/{len(summary['agents'])}", signed, *rest, covered, with_ends(row.get("rank")),
            number(row.get("regret"))]  # fmt: skip


def _estimators_table(summary: Summary) -> str:
    names = summary["names"]
    return html_table(["", *HEADS], [[names[name], *_cells(summary, name)] for name in summary["estimators"]])


def _agents_table(summary: Summary) -> str:
    """Table of truth and estimates of every agent, best first."""
    agents = summary["agents"]
    order = sorted(agents, key=lambda agent: -agents[agent]["truth"]["mean"])
    told = [name for name in summary["names"] if any(name in figures for figures in agents.values())]
    rows = [[agent, *(with_ends(agents[agent].get(name)) for name in ("truth", *told))] for agent in order]
    read = "Means over the logs, also of the ends of intervals; - if refused in all logs."
    heads = ["truth", *(summary["names"][name] for name in told)]
    return html_table(["", *heads], rows) + note(read)


def _supports_table(summary: Summary) -> str:
    rows = []
    for agent, told in summary["supports"].items():
        rows.append([agent, f"{told['served']:.1%}", *map(number, told["rows_K"]), number(told["mean_K"][-1]),
                     f"{told['largest_K'][-1]:.1%}", str(told["depth"])])  # fmt: skip
    places = [f"rows, place {k + 1}" for k in range(len(next(iter(summary["supports"].values()))["rows_K"]))]
    heads = ["could be shown", *places, "mean weight", "largest weight's share", "supported places"]
    read = (
        "Could be shown: share of the agent's own slates that the log's policy serves with a probability above 0. "
        "Rows: effective sample size of the prefix weights. The mean weight is 1 if propensities are right and the "
        "log is long enough; if it is far below 1, most of the agent's slates were never shown."
    )
    return html_table(["", *heads], rows) + note(read)


def _refused_table(summary: Summary) -> str:
    """Table of each refused estimate of the first log with its reason; an agent's equal reasons share a row."""
    rows = []
    for agent, told in summary["logs"][0]["agents"].items():
        for why in dict.fromkeys(told["refused"].values()):
            names = [summary["names"][name] for name, reason in told["refused"].items() if reason == why]
            rows.append([agent, ", ".join(names), why])
    read = "In the first log."
    return html_table(["agent", "estimators", "why"], rows) + note(read) if rows else ""
