"""Reports a comparison of reward models: measures of each, and which measure predicts the aligned agent."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from feedgym.experiments.methods.report import best_sentence, rows_in_order, title
from feedgym.experiments.methods.report import write_report as write_methods
from feedgym.experiments.page import folded, html_table, note, number, section, with_ends
from feedgym.experiments.report import compact_table
from feedgym.experiments.rewards.pictures import predictors_plot, reliability_plot, scatter_plot

Summary = Mapping[str, Any]

MEASURED = {
    "log_auc": "AUC of the score, held-out logged sessions",
    "log_rank": "rank correlation with users' responses",
    "log_ece": "calibration error, log",
    "random_auc": "AUC of the score, held-out sessions served at random",
    "random_rank": "rank correlation, those served at random",
    "random_ece": "calibration error, those served at random",
    "towers_auc": "AUC of the towers, mean",
    "base_pairs": "pairs in the truth's order, base's draws",
    "base_rank": "rank correlation with the truth, base's draws",
    "aligned_rank": "the same, an aligned agent's draws",
    "searched_rank": "the same, searched sessions",
    "own_rank": "the same, draws of the agent aligned to it",
    "base_best": "truth of the best of n, base's draws",
    "aligned_best": "the same, an aligned agent's draws",
    "searched_best": "the same, searched sessions",
    "own_best": "the same, draws of the agent aligned to it",
    "base_excess": "score less truth, base's draws",
    "aligned_excess": "the same, an aligned agent's draws",
    "searched_excess": "the same, searched sessions",
    "own_excess": "the same, draws of the agent aligned to it",
}
"""Measures in the order of the table, with their names for people; other measures follow by their own names."""
AFTER = "own_"
"""Prefix of measures that are known only after the alignment."""
READ = (
    "Sessions are grouped by score; a dot is a group. On the diagonal a reward model's scores are the rewards that "
    "followed; below it, it promises too much."
)
FIRST = {"log_auc": "AUC", "base_pairs": "pairs", "base_rank": "rank", "searched_rank": "searched", "base_best": "best"}
"""Measures of the terminal's table, with their column heads."""


def called(name: str) -> str:
    """A measure's name for people."""
    return MEASURED.get(name, name.replace("_", " "))


def write_report(summary: Summary, folder: Path) -> Path:
    """Write ``report.html``: that of a comparison of methods, with sections about the rewards; returns its path."""
    return write_methods(summary, folder, report_sections(summary))


def report_sections(summary: Summary) -> list[str]:
    """Sections of the page that other comparisons do not have."""
    curves = "".join(reliability_plot(summary, place) for place in ("log", "own"))
    return [
        section("Which measure predicts the aligned agent", _predictors_table(summary), predictors_plot(summary)),
        section("Aligned agents by measures of their rewards", scatter_plot(summary)),
        section("Measures of the rewards", _measures_table(summary)),
        section("Reliability: scores and outcomes", curves, read=READ),
    ]


def terminal_table(summary: Summary) -> Table:
    """Table of the rewards, best first, in 80 columns: the aligned agent's true reward, and the measures."""
    table = compact_table(summary["title"], f"{best_sentence(summary)} {predictor_sentence(summary)}")
    table.add_column("", no_wrap=True, max_width=18)
    for head in ("true", "model", *FIRST.values()):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows_in_order(summary):
        figures, measured = summary["agents"][row], summary["measured"].get(row, {})
        told = [figures.get(name, {}).get("mean") for name in ("true_reward", "model_reward")]
        cells = [number(value) for value in (*told, *(measured.get(name) for name in FIRST))]
        table.add_row(escape(title(summary, row)), *cells)
    return table


def predictor_sentence(summary: Summary) -> str:
    """The best measure that is known before an alignment, in a sentence."""
    early = [row for row in summary["predictors"] if not row["name"].startswith(AFTER)]
    if not early:
        return "Too few reward models to say which measure predicts the aligned agent."
    best = early[0]
    return (
        f"Best predictor of the aligned agent before alignment: {called(best['name'])} "
        f"(rank correlation {with_ends(best)} over {best['models']} reward models)."
    )


def _predictors_table(summary: Summary) -> str:
    if not summary["predictors"]:
        return ""
    rows = [
        [
            called(row["name"]),
            "after" if row["name"].startswith(AFTER) else "before",
            with_ends(row),
            str(row["models"]),
        ]
        for row in summary["predictors"]
    ]
    heads = ["measure", "known", "rank correlation with the aligned agent's true reward", "reward models"]
    told = note(
        "Each reward model is the mean of its seeds; 95% intervals resample reward models. Measures "
        "of the log need no truth; the others are for study."
    )
    lead = f"<p>{html.escape(predictor_sentence(summary))}</p>"
    return lead + html_table(heads, rows) + told


def _measures_table(summary: Summary) -> str:
    measured = summary["measured"]
    there = {name for figures in measured.values() for name in figures}
    names = [name for name in MEASURED if name in there] + sorted(there - set(MEASURED))
    rows = [
        [title(summary, row), *(number(measured[row].get(name)) for name in names)]
        for row in rows_in_order(summary)
        if row in measured
    ]
    by_cell = [
        [cell, *(number(told["figures"].get(name)) for name in names)] for cell, told in summary["measures"].items()
    ]
    heads = ["", *map(called, names)]
    return html_table(heads, rows) + folded("Every seed", html_table(heads, by_cell)) if rows else ""
