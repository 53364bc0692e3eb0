"""Presents a sweep: its table in the terminal, and report.html with the trials' curves and options."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from feedgym.experiments.charts import Chart, Series, in_rows, panels, plane
from feedgym.experiments.page import html_table, link, number, page, section
from feedgym.experiments.report import compact_table
from feedgym.experiments.run import write_text

Summary = Mapping[str, Any]

MOST_ROWS = 20
"""Most trials that the terminal lists."""
MOST_PANELS = 6
"""Most options that the report plots."""


READ_CURVES = (
    "A line per trial; the best draw is in colour. Lines that end early were stopped, because others did better."
)
READ_OPTIONS = "A dot per trial that ran to its end. An option matters if the dots rise or fall along it."


def terminal_table(summary: Summary) -> Table:
    """Table of the trials, best first."""
    options = _options(summary)
    rows = _in_order(summary)
    more = f" The best {MOST_ROWS} of {len(rows)}; report.html has all." if len(rows) > MOST_ROWS else ""
    table = compact_table(summary["title"], f"{best_sentence(summary)}{more}")
    for head in ("trial", *options, "seed", summary["clock"], "objective"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows[:MOST_ROWS]:
        best = summary["best"] and row["name"] in summary["best"]["trials"]
        table.add_row(*map(escape, _cells(row, options)), style="bold" if best else None)
    return table


def best_sentence(summary: Summary) -> str:
    """The result in one sentence."""
    best = summary["best"]
    if not best:
        return "No trial ran to its end."
    drawn = ", ".join(f"{name}={_said(value)}" for name, value in best["options"].items())
    return f"Best: {drawn}, with {number(best['objective'])}, {summary['judged_by']}."


def write_report(summary: Summary, folder: Path) -> Path:
    """Write ``report.html``.

    Args:
        summary: the content of ``summary.json``.
        folder: the folder of the sweep.

    Returns:
        The file's path.
    """
    path = folder / "report.html"
    parts = [
        _headline(summary),
        section("Trials", _table(summary)),
        section(f"Objective by {summary['clock']}", _curves(summary), read=READ_CURVES),
        section("Objective by option", _scatter(summary), read=READ_OPTIONS),
    ]
    write_text(path, page(summary["title"], parts))
    return path


def _options(summary: Summary) -> list[str]:
    return list(summary["trials"][0]["options"]) if summary["trials"] else []


def _in_order(summary: Summary) -> list[Mapping[str, Any]]:
    """The trials by their draws, best first; the last are those that failed."""
    place = {name: at for at, draw in enumerate(summary["draws"]) for name in draw["trials"]}
    return sorted(summary["trials"], key=lambda row: (row["failure"] is not None, place[row["name"]]))


def _cells(row: Mapping[str, Any], options: list[str]) -> list[str]:
    drawn = [_said(row["options"][name]) for name in options]
    end = row["failure"] or ("" if row["ended"] else "stopped")
    return [row["name"], *drawn, str(row["seed"]), str(row["at"]), number(row["objective"]), end]


def _said(value: Any) -> str:
    return str(value) if isinstance(value, bool) else number(value)


def _headline(summary: Summary) -> str:
    best = summary["best"]
    commands = [best["command"]] * bool(best) + [summary["command"]]
    facts = [
        f"{len(summary['trials'])} trials, {summary['stopped']} of them stopped by ASHA",
        f"revision {summary['git_revision'][:12]}",
    ]
    return (
        f"<h1>{html.escape(summary['title'])}</h1><p class='lead'>{html.escape(best_sentence(summary))}</p>"
        f"<p>{html.escape(summary['note'])}</p><p class='facts'>{html.escape(' · '.join(facts))}</p>"
        f"<p>{'<br>'.join(f'<code>{html.escape(command)}</code>' for command in commands)}</p>"
    )


def _table(summary: Summary) -> str:
    options = _options(summary)
    rows = []
    for row in _in_order(summary):
        name, *cells = _cells(row, options)
        rows.append([link(name, f"trials/{name}"), *cells, number(row["seconds"])])
    return html_table(["trial", *options, "seed", summary["clock"], "objective", "", "s"], rows)


def _curves(summary: Summary) -> str:
    """The objective of each trial along its rounds or epochs; those of the best draw are in colour."""
    told = [row for row in summary["trials"] if row["figures"]]
    if not told:
        return ""
    lines = []
    for row in told:
        best = summary["best"] and row["name"] in summary["best"]["trials"]
        at, values = zip(*row["figures"], strict=True)
        colour = "aligned" if best else "other"
        lines.append(Series(label=row["name"], x=at, y=values, colour=colour))
    chart = plane("objective", lines, x=summary["clock"], whole=True, height=300)
    return panels(replace(chart, legend=len(lines) <= MOST_ROWS), width=500)


def _scatter(summary: Summary) -> str:
    """The objective against each option, of the trials that ran to their end."""
    ended = [row for row in summary["trials"] if row["ended"]]
    options = _options(summary)[:MOST_PANELS]
    if not ended or not options:
        return ""
    return panels(*(_option_chart(name, ended) for name in options), width=260)


def _option_chart(name: str, ended: list[Mapping[str, Any]]) -> Chart:
    values, names = [row["options"][name] for row in ended], [row["name"] for row in ended]
    told: dict[str, Any] = {"y": [row["objective"] for row in ended], "names": names, "mark": "dot"}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return plane("objective", [Series(label="", x=values, colour="aligned", **told)], x=name)
    return in_rows(name, [Series(label="", x=list(map(str, values)), colour="aligned", **told)], x="objective")
