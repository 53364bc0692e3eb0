"""Reports deployment cycles: true reward against the requests that users spent, and the slow effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from feedgym.experiments.cycles.effects import EFFECTS
from feedgym.experiments.page import axes_row, folded, html_table, image, missing, number, section, with_ends
from feedgym.experiments.report_agents import OTHERS, style_of

ENDS = ("mean", "low", "high")
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def cycles_section(summary: Mapping[str, Any]) -> str:
    """Section of a report about cycles; empty if there are none."""
    cycles, effects = summary.get("cycles"), summary.get("effects")
    if not cycles:
        return ""
    note = (
        "Every point is judged by the same fresh users. Lines: true reward; dots: reward that the model predicted. The "
        "offline agent is aligned for as many rounds, only on the log, and spends no requests."
    )
    found = section(
        "True reward against the requests that users spent for it",
        _spent_plot(summary) + f"<p class='facts'>{note}</p>",
        _cycles_table(cycles),
    )
    told = _effects_plot(effects), _effects_table(effects)
    return found + section("Sessions of each learner's users, cycle by cycle", *told)


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """Table of the learners, cycle by cycle, for the terminal."""
    caption = f"Judged by {summary['judged_by']}; means per visit with 95% intervals."
    table = Table(title=escape(summary["title"]), caption=escape(caption), caption_justify="left", box=SIMPLE_HEAD)
    for head in ("", "cycle", "requests", "true reward", "predicted", "over the first", "over offline"):
        table.add_column(head, justify="left" if not head else "right", no_wrap=True)
    for name, rows in summary["cycles"].items():
        for row in rows:
            table.add_row(name, *_cells(row))
        table.add_section()
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    expected = row["model_reward"]["mean"]
    differences = ("-" if name not in row else _signed(row[name]) for name in ("over_first", "over_offline"))
    return [str(row["cycle"]), f"{row['requests']:,}", with_ends(row["true_reward"]), number(expected), *differences]


def _signed(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+.2f} [{value['low']:+.2f}, {value['high']:+.2f}]"


def _spent_plot(summary: Mapping[str, Any]) -> str:
    """Draw true reward over requests spent, with a line per learner; other runs' agents are points."""
    cycles, agents = summary["cycles"], summary["agents"]
    figure, (axis,) = axes_row(1, width=7.6, height=4.2)
    names = list(cycles)
    for name, rows in cycles.items():
        style = style_of(name, names)
        told = [row["true_reward"] for row in rows]
        mean, low, high = (np.array([value[end] for value in told]) for end in ENDS)
        spent = [row["requests"] for row in rows]
        x = spent if spent[-1] else list(np.linspace(0, _most(cycles), len(rows)))  # the offline agent, cycle by cycle
        axis.errorbar(x, mean, yerr=[mean - low, high - mean], marker="o", markersize=4, capsize=3, label=name, **style)
        expected = [np.nan if missing(row["model_reward"]["mean"]) else row["model_reward"]["mean"] for row in rows]
        if name == "aligned":
            axis.plot(x, expected, ":", marker=".", color=style["color"], label="aligned, predicted")
    for number_, (run, spent) in enumerate((summary.get("rivals") or {}).items()):
        for name in (name for name in agents if name.endswith(f" of {run}") and spent is not None):
            value, colour = agents[name]["true_reward"], OTHERS[number_ % len(OTHERS)]
            spread = [[value["mean"] - value["low"]], [value["high"] - value["mean"]]]
            axis.errorbar([spent], [value["mean"]], yerr=spread, fmt="s", color=colour, capsize=3, label=name)
    if "oracle" in agents:
        axis.axhline(agents["oracle"]["true_reward"]["mean"], color="#1d2126", linewidth=1, label="oracle")
    axis.set_xlabel("requests of real users")
    axis.set_ylabel("true reward per visit of the judges")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return image(figure)


def _most(cycles: Rows) -> int:
    return max(rows[-1]["requests"] for rows in cycles.values())


def _cycles_table(cycles: Rows) -> str:
    head = ["", "cycle", "requests", "true reward", "predicted reward", "over the first", "over offline"]
    return html_table(head, [[name, *_cells(row)] for name, rows in cycles.items() for row in rows])


def _effects_plot(effects: Rows | None) -> str:
    """Draw a panel per effect, with a line per learner."""
    if not effects:
        return ""
    told = [name for name in EFFECTS if any(name in row for rows in effects.values() for row in rows)]
    figure, axes = axes_row(len(told), width=2.9)
    for axis, effect in zip(axes, told, strict=True):
        for name, rows in effects.items():
            values = [row.get(effect, {}) for row in rows]
            mean, low, high = (np.array([v.get(end, np.nan) for v in values], float) for end in ENDS)
            cycle, style = np.arange(1, len(rows) + 1), style_of(name, list(effects))
            axis.plot(cycle, mean, marker="o", markersize=3, label=name, **style)
            axis.fill_between(cycle, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axis.set_title(EFFECTS[effect], fontsize=9)
        axis.set_xlabel("cycle")
        axis.set_xticks(cycle)
    axes[0].legend(fontsize=7, frameon=False)
    return image(figure)


def _effects_table(effects: Rows | None) -> str:
    if not effects:
        return ""
    rows = [
        [name, str(cycle), *(with_ends(row.get(effect)) for effect in EFFECTS)]
        for name, told in effects.items()
        for cycle, row in enumerate(told, 1)
    ]
    return folded("Every effect of every cycle", html_table(["", "cycle", *EFFECTS.values()], rows))
