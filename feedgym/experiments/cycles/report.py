"""Reports deployment cycles: true reward against the requests that users spent, and the slow effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from feedgym.experiments.charts import Series, hue, panels, plane
from feedgym.experiments.cycles.effects import EFFECTS
from feedgym.experiments.page import folded, html_table, number, section, with_ends
from feedgym.experiments.report_agents import style_of

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def cycles_section(summary: Mapping[str, Any]) -> str:
    """Section of a report about cycles; empty if there are none."""
    cycles, effects = summary.get("cycles"), summary.get("effects")
    if not cycles:
        return ""
    found = section(
        "True reward against the requests that users spent for it",
        _spent_plot(summary),
        _cycles_table(cycles),
        read="Every point is judged by the same fresh users; bands and bars are 95% intervals. Dotted: the reward that "
        "the model predicted. The offline agent is aligned for as many rounds, only on the log, and spends no "
        "requests: its points are drawn cycle by cycle for comparison.",
    )
    told = _effects_plot(effects), _effects_table(effects)
    effects_read = (
        "What happens to the users whom each learner serves while it learns, cycle by cycle: slow effects that one "
        "judgement does not show. Bands are 95% intervals."
    )
    return found + section("Sessions of each learner's users, cycle by cycle", *told, read=effects_read)


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
    return with_ends(value, "+")


def _spent_plot(summary: Mapping[str, Any]) -> str:
    """Draw true reward over requests spent, with a line per learner; other runs' agents are points."""
    cycles, agents = summary["cycles"], summary["agents"]
    names, series = list(cycles), []
    for name, rows in cycles.items():
        spent = [row["requests"] for row in rows]
        if not spent[-1]:  # the offline agent, cycle by cycle
            spent = [_most(cycles) * at // max(len(rows) - 1, 1) for at in range(len(rows))]
        style = style_of(name, names)
        series.append(Series(label=name, x=spent, y=[row["true_reward"] for row in rows], **style))
        if name == "aligned":
            expected = [row["model_reward"]["mean"] for row in rows]
            dotted = {**style, "dash": "dotted"}
            series.append(Series(label="aligned, predicted", x=spent, y=expected, **dotted))
    for place, (run, spent) in enumerate((summary.get("rivals") or {}).items()):
        for name in (name for name in agents if name.endswith(f" of {run}") and spent is not None):
            reward = agents[name]["true_reward"]
            series.append(Series(label=name, x=[spent], y=[reward], mark="dot", colour=hue(place)))
    lines = {"oracle": agents["oracle"]["true_reward"]["mean"]} if "oracle" in agents else {}
    title = "true reward per visit of the judges"
    return panels(plane(title, series, x="requests of real users", whole=True, lines=lines, height=320), width=500)


def _most(cycles: Rows) -> int:
    return max(rows[-1]["requests"] for rows in cycles.values())


def _cycles_table(cycles: Rows) -> str:
    head = ["", "cycle", "requests", "true reward", "predicted reward", "over the first", "over offline"]
    return html_table(head, [[name, *_cells(row)] for name, rows in cycles.items() for row in rows])


def _effects_plot(effects: Rows | None) -> str:
    """Draw a panel per effect, with a line per learner."""
    if not effects:
        return ""
    charts = []
    for effect, title in EFFECTS.items():
        lines = [
            Series(label=name, x=range(1, len(rows) + 1), y=[row.get(effect) for row in rows],
                   **style_of(name, list(effects)))
            for name, rows in effects.items()
            if any(effect in row for row in rows)
        ]  # fmt: skip
        if lines:
            charts.append(plane(title, lines, x="cycle", whole=True))
    return panels(*charts, width=260)


def _effects_table(effects: Rows | None) -> str:
    if not effects:
        return ""
    rows = [
        [name, str(cycle), *(with_ends(row.get(effect)) for effect in EFFECTS)]
        for name, told in effects.items()
        for cycle, row in enumerate(told, 1)
    ]
    return folded("Every effect of every cycle", html_table(["", "cycle", *EFFECTS.values()], rows))
