"""Draws an off-policy evaluation: estimates against the truth, and how far the logs support each agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feedgym.experiments.charts import Chart, Series, hue, panels, plane

Summary = Mapping[str, Any]


def scatter_plot(summary: Summary) -> str:
    """Draw a panel per estimator: estimates with intervals against the truth, a dot per agent and log."""
    told = [name for name in summary["names"] if any(name in figures for figures in summary["agents"].values())]
    return panels(*(_estimates(summary, name) for name in told), width=240)


def _estimates(summary: Summary, name: str) -> Chart:
    """One estimator's estimates."""
    known = [
        (agent, figures)
        for log in summary["logs"]
        for agent, figures in log["agents"].items()
        if name in figures["estimates"]
    ]
    dots = Series(
        label="", x=[figures["truth"]["mean"] for _, figures in known],
        y=[figures["estimates"][name] for _, figures in known], names=[agent for agent, _ in known], mark="dot",
    )  # fmt: skip
    title = f"{summary['names'][name]}, {summary['estimators'][name]['agents']} of {len(summary['agents'])} agents"
    return plane(title, [dots], x="truth", y="estimate", diagonal=True)


def support_plot(summary: Summary) -> str:
    """Draw the effective sample size by place, with a line per agent."""
    lines = [
        Series(label=agent, x=range(1, len(told["rows_K"]) + 1), y=[max(rows, 1e-1) for rows in told["rows_K"]],
               colour=hue(place))
        for place, (agent, told) in enumerate(summary["supports"].items())
    ]  # fmt: skip
    return panels(plane("effective sample size", lines, x="place", log="y", whole=True, height=300), width=500)
