"""Draws a comparison: predicted and true reward, the gap to the oracle, visits, rounds, and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from feedgym.experiments.align.gap import WAY
from feedgym.experiments.charts import Series, hue, in_rows, panels, plane
from feedgym.experiments.methods.presets import CENTRE
from feedgym.experiments.report_front import front_plot

Summary = Mapping[str, Any]
CHOSEN = {"true_reward": ("truth", "true reward per visit"), "model_reward": ("model", "reward model's prediction")}
"""The figures to compare, each with its colour and its name."""
LANDMARKS = {"base": "base", "base_best": "best of n of the base", "base_best_by_truth": "the same by the truth",
             "oracle": "oracle"}  # fmt: skip
"""Agents of the gap that are the same for all methods, and their names."""


def truth_plot(summary: Summary) -> str:
    """Draw true and predicted reward with intervals over the seeds, and each seed's share of the gap to the oracle."""
    names = _sorted(summary)[::-1]
    if not names:
        return ""
    titles = [_title(summary, name) for name in names]
    rewards = [
        Series(
            label=label, x=titles, y=[summary["agents"][name].get(metric) for name in names], mark="dot", colour=colour
        )
        for metric, (colour, label) in CHOSEN.items()
    ]
    known = {name: summary["agents"].get(name, {}).get("true_reward") for name in ("base", "oracle")}
    walls = {name: told["mean"] for name, told in known.items() if told}
    shares = {
        title: summary["way"][name] for title, name in zip(titles, names, strict=True) if summary["way"].get(name)
    }
    each = [(title, run) for title, share in shares.items() for run in share["runs"]]
    seeds = Series(
        label="a seed", x=[title for title, _ in each], y=[run for _, run in each], mark="tick", colour="base"
    )
    mean = Series(label="interquartile mean over the seeds", x=list(shares), y=list(shares.values()), mark="dot")
    left = in_rows("reward per visit", rewards, walls=walls)
    right = in_rows("share of the gap from base to oracle", [mean, seeds], percent=True)
    return panels(left, width=420) + (panels(right, width=420) if shares else "")


def cost_plot(summary: Summary) -> str:
    """Draw true reward against the cost per request: the best condition, drawing or choosing, and the other agents.

    A draw costs the same for all methods, so the other conditions would all be just below the best.
    """
    names = [name for name in summary["agents"] if name not in summary["conditions"]]
    shown = {name: summary["agents"][name] for name in [*names, *_sorted(summary)[-1:]]}
    return front_plot(shown | summary["choosers"])


def visits_plot(summary: Summary) -> str:
    """Draw true reward by visit, and the gain over the base that is left; means over the seeds."""
    told = {name: both for name in summary["conditions"] if (both := _by_visit(summary, name))}
    if not told:
        return ""
    own, gained = [], []
    for name, (own_V, base_V) in told.items():
        visits, style = range(1, len(own_V) + 1), _style(summary, name)
        own.append(Series(x=visits, y=own_V.tolist(), **style))
        gained.append(Series(x=visits, y=(own_V - base_V).tolist(), **style))
    own.append(Series(label="base", x=visits, y=base_V.tolist(), colour="base", dash="dashed"))
    left = plane("true reward per visit", own, x="visit", whole=True, height=280)
    right = plane("gain over the base", gained, x="visit", whole=True, lines={"base": 0}, height=280)
    return panels(left, right, width=420)


def gains_plot(summary: Summary) -> str:
    """Draw gains of the reward model and of the truth along the rounds, against the distance from the base."""
    curves = {name: _gains(summary, name) for name in summary["conditions"]}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return ""
    charts = []
    for column, title in ((1, "gain by the reward model"), (2, "true gain")):
        lines = [
            Series(x=curve_N3[:, 0].tolist(), y=curve_N3[:, column].tolist(), **_style(summary, name))
            for name, curve_N3 in curves.items()
        ]
        charts.append(plane(title, lines, x="root of KL to the base (nats)", height=280))
    return panels(*charts, width=420)


def gap_plot(summary: Summary) -> str:
    """Draw each condition between the base and the oracle, together with agents that choose among sessions."""
    values = {name: _gap_values(summary, name) for name in _sorted(summary)[::-1]}
    values = {_title(summary, name): found for name, found in values.items() if found}
    if not values:
        return ""
    colours = dict(zip(LANDMARKS, ("base", "model", "truth", "other"), strict=True))
    kinds = [(agent, label, "tick", colours[agent], False) for agent, label in LANDMARKS.items()]
    kinds += [("aligned", "aligned", "dot", "aligned", False)]
    kinds += [("aligned_best", "best of n of the aligned", "dot", "aligned", True)]
    series = [
        Series(label=label, x=[title for title in values if agent in values[title]],
               y=[found[agent] for found in values.values() if agent in found], mark=mark, colour=colour, hollow=hollow)
        for agent, label, mark, colour, hollow in kinds
    ]  # fmt: skip
    where = "held-out users at their logged requests"
    return panels(in_rows("true value per session", series, x=where, beside=False), width=500)


def axes_plot(summary: Summary) -> str:
    """Draw true and predicted reward along each varied option of an ablation; empty for other comparisons."""
    varied = {option: _along(summary, option) for option in summary["centre"]}
    varied = {option: values for option, values in varied.items() if len(values) > 1}
    if not varied:
        return ""
    charts = []
    for option, value_by_name in varied.items():
        values = list(map(str, value_by_name.values()))
        dots = [
            Series(label=label, x=values, y=[summary["agents"][name][metric] for name in value_by_name], mark="dot",
                   colour=colour)
            for metric, (colour, label) in CHOSEN.items()
        ]  # fmt: skip
        charts.append(in_rows(option.replace("_", " "), dots))
    return panels(*charts)


# ---------------------------------------------------------------- data to draw


def _sorted(summary: Summary) -> list[str]:
    """Conditions with a true reward, lowest first, because the first one is drawn at the bottom."""
    told = {name: summary["agents"][name].get("true_reward") for name in summary["conditions"]}
    return sorted((name for name in told if told[name]), key=lambda name: told[name]["mean"])


def _title(summary: Summary, name: str) -> str:
    return summary["conditions"].get(name, name.replace("_", " "))


def _style(summary: Summary, name: str) -> dict[str, Any]:
    place = list(summary["conditions"]).index(name)
    dash = ("solid", "dashed", "dotted")[place // 10 % 3]
    return {"label": _title(summary, name), "colour": hue(place), "dash": dash}


def _cells(summary: Summary, condition: str) -> list[Mapping[str, Any]]:
    return [cell for cell in summary["cells"].values() if cell["condition"] == condition]


def _by_visit(summary: Summary, condition: str) -> tuple[np.ndarray, np.ndarray] | None:
    """True reward by visit of the condition and of its bases, [V] each, means over the seeds."""
    visits = [cell["by_visit"] for cell in _cells(summary, condition) if "aligned" in cell["by_visit"]]
    if not visits:
        return None
    aligned_V, base_V = (
        np.mean([np.array(told[name]["true_reward"], float) for told in visits], axis=0) for name in ("aligned", "base")
    )
    return aligned_V, base_V


def _gains(summary: Summary, condition: str) -> np.ndarray:
    """Distance from the base, gain by the reward model and true gain, [N, 3], by round, means over the seeds."""
    curves = [
        np.array([[row["kl"], row["proxy"], row["truth"]] for row in cell["gains"]], float)
        for cell in _cells(summary, condition)
    ]
    rounds = min(map(len, curves))  # a stop rule may have ended one earlier
    curve_N3 = np.mean([curve[:rounds] for curve in curves], axis=0)
    curve_N3[:, 0] = np.sqrt(np.maximum(curve_N3[:, 0], 0))
    return curve_N3


def _gap_values(summary: Summary, condition: str) -> dict[str, float]:
    """True values at logged requests of the agents between base and oracle, means over the seeds."""
    gaps = [next(iter(cell["gap"].values()))["values"] for cell in _cells(summary, condition) if cell["gap"]]
    names = [name for name in (*WAY, "aligned_best") if gaps and all(name in values for values in gaps)]
    return {name: float(np.mean([values[name]["mean"] for values in gaps])) for name in names}


def _along(summary: Summary, option: str) -> dict[str, Any]:
    """The conditions along an option with its values, including the preset's own; numbers are sorted."""
    texts = {name: name.partition("=")[2] for name in summary["conditions"] if name.startswith(f"{option}=")}
    texts |= {CENTRE: str(summary["centre"][option])} if CENTRE in summary["conditions"] else {}
    try:
        return dict(sorted(texts.items(), key=lambda pair: float(pair[1])))
    except ValueError:
        return texts
