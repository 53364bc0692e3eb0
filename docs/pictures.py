"""Draws the picture of the home page from a finished run: opinion against truth by round, and the gain by visit.

Example:
    python docs/pictures.py runs/one docs/images/truth.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from feedgym.experiments.page import light_colours


def draw(summary: dict, path: Path) -> None:
    """Write the picture of a run's summary."""
    figure, colours = Figure(figsize=(9.2, 3.4), layout="constrained"), light_colours()
    rounds, visits = figure.subplots(1, 2)
    told = summary["rounds"]
    at = range(len(told))
    rounds.plot(at, [row["model_mean"] for row in told], "o-", color=colours["model"], label="reward model's opinion")
    rounds.plot(at, [row["true_mean"] for row in told], "o-", color=colours["truth"], label="truth")
    rounds.set(xlabel="rounds of alignment", ylabel="reward of a drawn session", title="At the requests it learns from")
    gain = summary["by_visit"]["difference"]["aligned over base"]
    at = range(1, len(gain["mean"]) + 1)
    visits.fill_between(at, gain["low"], gain["high"], color=colours["truth"], alpha=0.2, linewidth=0)
    visits.plot(at, gain["mean"], color=colours["truth"], label="true gain, aligned over base")
    agents = summary["by_visit"]["agents"]
    aligned, base = (agents[who]["model_reward"]["mean"] for who in ("aligned", "base"))
    opinion = [a - b for a, b in zip(aligned, base, strict=True)]
    visits.plot(at, opinion, color=colours["model"], label="gain in the reward model's opinion")
    visits.axhline(0, color=colours["soft"], linewidth=0.8)
    visits.set(xlabel="visit", ylabel="reward per visit", title="While it serves fresh users")
    for axis in (rounds, visits):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color=colours["edge"], linewidth=0.8)
        axis.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    draw(json.loads((Path(sys.argv[1]) / "summary.json").read_text()), Path(sys.argv[2]))
