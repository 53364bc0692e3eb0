"""Draws an off-policy evaluation: estimates against the truth, and how far the logs support each agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from feedgym.experiments.page import COLOURS, axes_row, image

Summary = Mapping[str, Any]


def scatter_plot(summary: Summary) -> str:
    """Draw a panel per estimator: estimates with intervals against the truth, a dot per agent and log."""
    told = [name for name in summary["names"] if any(name in figures for figures in summary["agents"].values())]
    truths = [agent["truth"]["mean"] for log in summary["logs"] for agent in log["agents"].values()]
    low, high = min(truths), max(truths)
    margin = 0.35 * (high - low) + 0.05
    rows = [told[at : at + 4] for at in range(0, len(told), 4)]
    return "".join(_row(summary, names, (low - margin, high + margin)) for names in rows)


def _row(summary: Summary, names: list[str], limits: tuple[float, float]) -> str:
    figure, axes = axes_row(len(names), width=3.0, height=3.2)
    for axis, name in zip(axes, names, strict=True):
        axis.plot(limits, limits, color=COLOURS["other"], linewidth=1)
        for log in summary["logs"]:
            agents = [agent for agent in log["agents"].values() if name in agent["estimates"]]
            if agents:
                truth = [agent["truth"]["mean"] for agent in agents]
                mean, low, high = (
                    np.array([a["estimates"][name][end] for a in agents]) for end in ("mean", "low", "high")
                )
                spread = np.maximum([mean - low, high - mean], 0)
                axis.errorbar(truth, mean, yerr=spread, fmt="o", markersize=3, linewidth=0.7, color=COLOURS["truth"])
        told = summary["estimators"][name]["agents"]
        axis.set_title(f"{summary['names'][name]}\n{told} of {len(summary['agents'])} agents", fontsize=9)
        axis.set_xlim(*limits)
        axis.set_ylim(*limits)  # an interval may exceed the picture; the table has its ends
        axis.set_xlabel("truth")
    axes[0].set_ylabel("estimate")
    return image(figure)


def support_plot(summary: Summary) -> str:
    """Draw the effective sample size by place, with a line per agent."""
    from matplotlib import colormaps

    figure, (axis,) = axes_row(1, width=8, height=3.8)
    for place, (agent, told) in enumerate(summary["supports"].items()):
        rows = np.maximum(told["rows_K"], 1e-1)
        style = {"color": colormaps["tab20"](place % 20), "marker": "o", "markersize": 3, "linewidth": 1.2}
        axis.plot(range(1, len(rows) + 1), rows, label=agent, **style)
    axis.set_yscale("log")
    axis.set_xlabel("place")
    axis.set_ylabel("effective sample size")
    axis.set_xticks(range(1, len(rows) + 1))
    axis.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return image(figure)
