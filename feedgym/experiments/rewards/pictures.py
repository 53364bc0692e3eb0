"""Draws a comparison of reward models: predictors, aligned agents by measure, and reliability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from feedgym.experiments.page import COLOURS, axes_row, image, missing

Summary = Mapping[str, Any]

SHOWN = 3
"""Number of measures with a picture of all reward models."""


def predictors_plot(summary: Summary) -> str:
    """Draw the rank correlations of the measures with the aligned agents' true reward, with their intervals."""
    told = summary["predictors"][::-1]
    if not told:
        return ""
    figure, (axis,) = axes_row(1, width=8, height=1.2 + 0.28 * len(told))
    mean = np.array([row["mean"] for row in told])
    spread = np.maximum([[row["mean"] - row["low"] for row in told], [row["high"] - row["mean"] for row in told]], 0)
    axis.errorbar(mean, range(len(told)), xerr=spread, fmt="o", color=COLOURS["truth"], capsize=2)
    axis.axvline(0, color=COLOURS["base"], linewidth=1)
    axis.set_yticks(range(len(told)), [row["name"].replace("_", " ") for row in told], fontsize=8)
    axis.set_xlabel("rank correlation with the true reward of the agent aligned to it")
    axis.set_xlim(-1.05, 1.05)
    return image(figure)


def scatter_plot(summary: Summary) -> str:
    """Draw the reward models by the best measures, against the true reward of the aligned agents."""
    shown = summary["predictors"][:SHOWN]
    if not shown:
        return ""
    figure, axes = axes_row(len(shown), width=4.4, height=3.8)
    for axis, row in zip(axes, shown, strict=True):
        for name, figures in summary["measured"].items():
            if not missing(value := figures.get(row["name"])):
                reward = summary["agents"][name]["true_reward"]["mean"]
                axis.plot(value, reward, "o", color=COLOURS["aligned"], markersize=4)
                axis.annotate(
                    name.replace("_", " "), (value, reward), fontsize=6, xytext=(3, 2), textcoords="offset points"
                )
        axis.set_xlabel(row["name"].replace("_", " "), fontsize=9)
    axes[0].set_ylabel("true reward of the aligned agent", fontsize=9)
    return image(figure)


PLACES = {"log": "held-out logged sessions", "own": "sessions of the agent aligned to it"}
"""Sets of sessions with a reliability picture, and their names."""


def reliability_plot(summary: Summary, place: str) -> str:
    """Draw mean score and outcome of groups of sessions with similar scores: a line per reward model, first seed."""
    curves: dict[str, Any] = {}
    for name, told in summary["measures"].items():
        curves.setdefault(summary["cells"][name]["condition"], told["curves"][place])
    if not curves:
        return ""
    from matplotlib import colormaps

    figure, (axis,) = axes_row(1, width=7, height=4.2)
    for number, (name, curve) in enumerate(curves.items()):
        score, value = np.array([[group["score"], group["value"]] for group in curve]).T
        style = {"color": colormaps["tab20"](number % 20), "linewidth": 1.2, "marker": "o", "markersize": 3}
        axis.plot(score, value, label=name.replace("_", " "), **style)
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color=COLOURS["base"], linewidth=1, linestyle="--")
    axis.set_xlabel(f"mean score, {PLACES[place]}")
    axis.set_ylabel("reward of users' responses" if place == "log" else "true value")
    axis.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return image(figure)
