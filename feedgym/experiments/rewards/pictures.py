"""Draws a comparison of reward models: predictors, aligned agents by measure, and reliability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feedgym.experiments.charts import Series, hue, in_rows, panels, plane
from feedgym.experiments.page import missing

Summary = Mapping[str, Any]

SHOWN = 3
"""Number of measures with a picture of all reward models."""


def predictors_plot(summary: Summary) -> str:
    """Draw the rank correlations of the measures with the aligned agents' true reward, with their intervals."""
    told = summary["predictors"]
    if not told:
        return ""
    dots = Series(label="", x=[row["name"].replace("_", " ") for row in told], y=told, mark="dot")
    title = "rank correlation with the true reward of the agent aligned to it"
    return panels(in_rows(title, [dots], ends=(-1, 1), walls={"none": 0}), width=500)


def scatter_plot(summary: Summary) -> str:
    """Draw the reward models by the best measures, against the true reward of the aligned agents."""
    charts = []
    for row in summary["predictors"][:SHOWN]:
        known = {
            name: value for name, told in summary["measured"].items() if not missing(value := told.get(row["name"]))
        }
        rewards = [summary["agents"][name]["true_reward"]["mean"] for name in known]
        names = [name.replace("_", " ") for name in known]
        dots = Series(label="", x=list(known.values()), y=rewards, names=names, mark="dot", colour="aligned")
        title = "true reward of the aligned agent"
        charts.append(plane(title, [dots], x=row["name"].replace("_", " "), labels=True, height=280))
    return panels(*charts, width=340)


PLACES = {"log": "held-out logged sessions", "own": "sessions of the agent aligned to it"}
"""Sets of sessions with a reliability picture, and their names."""


def reliability_plot(summary: Summary, place: str) -> str:
    """Draw mean score and outcome of groups of sessions with similar scores: a line per reward model, first seed."""
    curves: dict[str, Any] = {}
    for name, told in summary["measures"].items():
        curves.setdefault(summary["cells"][name]["condition"], told["curves"][place])
    if not curves:
        return ""
    lines = [
        Series(label=name.replace("_", " "), x=[group["score"] for group in curve],
               y=[group["value"] for group in curve], colour=hue(number))
        for number, (name, curve) in enumerate(curves.items())
    ]  # fmt: skip
    title = "reward of users' responses" if place == "log" else "true value"
    chart = plane(title, lines, x=f"mean score, {PLACES[place]}", diagonal=True, height=300)
    return panels(chart, width=500)
