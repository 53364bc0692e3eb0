"""Draws true reward against the cost per request, with the Pareto front; the headline picture of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feedgym.experiments.charts import Chart, Series, panels, plane
from feedgym.experiments.cost import MFLOP, MS
from feedgym.experiments.page import missing
from feedgym.experiments.report_agents import agent_label, ordered, style_of

COSTS = {MS: "ms per request", MFLOP: "MFLOP per request, matrix products"}
"""Costs for the x axes, with their titles."""


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Find the points, by rising cost, that no other point beats.

    A point beats another by a higher value at no higher cost, or by the same value at a lower cost.
    """
    places = sorted(range(len(costs)), key=lambda at: (costs[at], -values[at]))
    best, kept = float("-inf"), []
    for at in places:
        if values[at] > best:
            best = values[at]
            kept.append(at)
    return kept


def front_plot(agents: Mapping[str, Any], metric: str = "true_reward") -> str:
    """Draw a chart per kind of cost with a dot per agent, its intervals, and the Pareto front; empty without costs.

    Agents without matrix products cost 0 MFLOP and are drawn at the left end of that axis. A dot is filled if the agent
    draws its sessions, and hollow if it searches or chooses.
    """
    points = {name: agents[name] for name in ordered(agents) if MS in agents[name] and metric in agents[name]}
    points = {name: told for name, told in points.items() if not missing(told[metric]["mean"])}
    charts = [_front_chart(points, cost, title, metric) for cost, title in COSTS.items()] if points else []
    return panels(*charts, width=420)


def _front_chart(points: Mapping[str, Any], cost: str, title: str, metric: str) -> Chart:
    names = list(points)
    costs = [points[name][cost]["mean"] for name in names]
    least = min([value for value in costs if value > 0], default=1.0) / 3
    costs = [max(value, least) for value in costs]
    values = [points[name][metric]["mean"] for name in names]
    dots = [_dot(name, points[name], cost, at, names, metric) for name, at in zip(names, costs, strict=True)]
    kept = front(costs, values)
    stairs = Series(label="", x=[costs[k] for k in kept], y=[values[k] for k in kept], mark="step", colour="ink")
    return plane("", [stairs, *dots], x=title, y="true reward per visit", log="x", labels=True, height=320)


def _dot(name: str, told: Mapping[str, Any], cost: str, at: float, names: Sequence[str], metric: str) -> Series:
    style = style_of(name, names)
    known = not missing(told[cost]["low"]) and told[cost]["low"] > 0
    ends = (told[cost]["low"], told[cost]["high"]) if known else None
    return Series(label=agent_label(name), x=[at], y=[told[metric]], x_ends=[ends], names=[agent_label(name)],
                  mark="dot", colour=style["colour"], hollow=style["dash"] != "solid")  # fmt: skip
