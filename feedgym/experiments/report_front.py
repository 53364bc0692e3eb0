"""Draws true reward against the cost per request, with the Pareto front; the headline picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feedgym.experiments.cost import MFLOP, MS
from feedgym.experiments.page import axes_row, image, missing
from feedgym.experiments.report_agents import agent_label, ordered, style_of

COSTS = {MS: "ms per request", MFLOP: "MFLOP per request, matrix products"}
"""Costs for the x axes, with their titles."""


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Find the points, by rising cost, that no other point beats.

    A point beats another by a higher value at no higher cost, or by the same value at a lower cost.
    """
    places = sorted(range(len(costs)), key=lambda at: (costs[at], -values[at]))
    best, kept = -np.inf, []
    for at in places:
        if values[at] > best:
            best = values[at]
            kept.append(at)
    return kept


def front_plot(agents: Mapping[str, Any], metric: str = "true_reward") -> str:
    """Draw a panel per kind of cost with a point per agent, its interval, and the Pareto front; empty without costs.

    Agents without matrix products cost 0 MFLOP and are drawn at the left end of that axis.
    """
    points = {name: agents[name] for name in ordered(agents) if MS in agents[name] and metric in agents[name]}
    points = {name: told for name, told in points.items() if not missing(told[metric]["mean"])}
    if not points:
        return ""
    figure, axes = axes_row(len(COSTS), width=5.4, height=4.2)
    names = list(points)
    for axis, (cost, title) in zip(axes, COSTS.items(), strict=True):
        x = [points[name][cost]["mean"] for name in names]
        least = min([value for value in x if value > 0], default=1.0) / 3
        x = [max(value, least) for value in x]
        y = [points[name][metric]["mean"] for name in names]
        for name, at, value in zip(names, x, y, strict=True):
            _point(axis, name, points[name], cost, (at, value), names, metric)
        kept = front(x, y)
        axis.step([x[k] for k in kept], [y[k] for k in kept], where="post", color="#1d2126", linewidth=1, zorder=1)
        axis.set_xscale("log")
        axis.set_xlabel(title)
    axes[0].set_ylabel("true reward per visit")
    note = "Bars are 95% intervals; for milliseconds, fastest and slowest batch. No agent beats those on the line at "
    return image(figure) + f"<p class='facts'>{note}the same or lower cost.</p>"


def _point(
    axis: Any, name: str, told: Mapping[str, Any], cost: str, at: tuple[float, float], names: list[str], metric: str
) -> None:
    """Draw an agent with its intervals and its name: a disc if it draws sessions, open if it searches or chooses."""
    style = style_of(name, names)
    low, high = (told[metric][end] for end in ("low", "high"))
    spread = {"yerr": [[max(at[1] - low, 0)], [max(high - at[1], 0)]]}
    if not missing(told[cost]["low"]):
        spread["xerr"] = [[max(at[0] - told[cost]["low"], 0)], [max(told[cost]["high"] - at[0], 0)]]
    face = style["color"] if style["linestyle"] == "-" else "white"
    axis.errorbar(*at, **spread, fmt="o", color=style["color"], markerfacecolor=face, markersize=6, linewidth=1)
    axis.annotate(agent_label(name), at, xytext=(6, 4), textcoords="offset points", fontsize=7)
