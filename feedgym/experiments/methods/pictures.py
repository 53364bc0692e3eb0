"""Draws a comparison: predicted and true reward, the gap to the oracle, visits, rounds, and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feedgym.experiments.align.gap import WAY
from feedgym.experiments.methods.presets import CENTRE
from feedgym.experiments.page import COLOURS, axes_row, image, missing
from feedgym.experiments.report_front import front_plot

Summary = Mapping[str, Any]
CHOSEN = {"true_reward": ("truth", "true reward per visit"), "model_reward": ("model", "reward model's prediction")}
"""The figures to compare, each with its colour and its name."""
LANDMARKS = {"base": "base", "base_best": "best of n of the base", "base_best_by_truth": "the same by the truth",
             "oracle": "oracle"}  # fmt: skip
"""Agents of the gap that are the same for all methods, and their names."""


def truth_plot(summary: Summary) -> str:
    """Draw true and predicted reward with intervals over the seeds, and each seed's share of the gap to the oracle."""
    names = _sorted(summary)
    if not names:
        return ""
    figure, (left, right) = axes_row(2, width=5.2, height=1.2 + 0.3 * len(names))
    places = np.arange(len(names))
    for shift, (metric, (colour, label)) in zip((0.12, -0.12), CHOSEN.items(), strict=True):
        told = [summary["agents"][name].get(metric) for name in names]
        _dots(left, told, places + shift, COLOURS[colour], label)
    for name in ("base", "oracle"):
        if told_one := summary["agents"].get(name, {}).get("true_reward"):
            left.axvline(
                told_one["mean"], color=COLOURS["base"], linewidth=1, linestyle="-" if name == "base" else "--"
            )
            left.annotate(name, (told_one["mean"], len(names) - 0.4), fontsize=7, ha="center", annotation_clip=False)
    left.legend(fontsize=7, frameon=False)
    shares = [summary["way"].get(name) for name in names]
    _dots(right, shares, places, COLOURS["truth"], "interquartile mean")
    for place, share in enumerate(shares):
        if share is not None:
            below = [place - 0.25] * len(share["runs"])
            right.plot(share["runs"], below, "o", color=COLOURS["base"], markerfacecolor="white", markersize=3)
    right.set_title("share of the gap from base to oracle; one dot per seed", fontsize=10)
    right.xaxis.set_major_formatter("{x:.1%}" if np.ptp(right.get_xlim()) < 0.1 else "{x:.0%}")
    right.locator_params(axis="x", nbins=5)
    for axis in (left, right):
        axis.set_yticks(places, [_title(summary, name) for name in names], fontsize=8)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    return image(figure)


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
    figure, (left, right) = axes_row(2, width=5.4, height=3.8)
    for name, (own_V, base_V) in told.items():
        visits, style = np.arange(1, len(own_V) + 1), _style(summary, name)
        left.plot(visits, own_V, **style)
        right.plot(visits, own_V - base_V, **style)
    left.plot(visits, base_V, color=COLOURS["base"], linewidth=2, label="base")
    right.axhline(0, color=COLOURS["base"], linewidth=2)
    left.set_title("true reward per visit", fontsize=10)
    right.set_title("gain over the base", fontsize=10)
    for axis in (left, right):
        axis.set_xlabel("visit")
    left.legend(fontsize=6, frameon=False, ncols=2)
    return image(figure)


def gains_plot(summary: Summary) -> str:
    """Draw gains of the reward model and of the truth along the rounds, against the distance from the base."""
    curves = {name: _gains(summary, name) for name in summary["conditions"]}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return ""
    figure, axes = axes_row(2, width=5.4, height=3.8)
    for axis, column, title in zip(axes, (1, 2), ("gain by the reward model", "true gain"), strict=True):
        for name, curve_N3 in curves.items():
            axis.plot(curve_N3[:, 0], curve_N3[:, column], marker="o", markersize=3, **_style(summary, name))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("root of KL to the base (nats)")
    axes[0].sharey(axes[1])
    axes[0].legend(fontsize=6, frameon=False, ncols=2)
    return image(figure)


def gap_plot(summary: Summary) -> str:
    """Draw each condition between the base and the oracle, together with agents that choose among sessions."""
    values = {name: _gap_values(summary, name) for name in _sorted(summary)}
    values = {name: found for name, found in values.items() if found}
    if not values:
        return ""
    figure, (axis,) = axes_row(1, width=8, height=1.4 + 0.3 * len(values))
    colours = dict(zip(LANDMARKS, ("base", "model", "truth", "other"), strict=True))
    for place, found in enumerate(values.values()):
        for agent, label in LANDMARKS.items():
            if agent in found:
                axis.plot(found[agent], place, "|", markersize=14, color=COLOURS[colours[agent]],
                          label=label if place == 0 else None)  # fmt: skip
        axis.plot(found["aligned"], place, "o", color=COLOURS["aligned"], label="aligned" if place == 0 else None)
        if "aligned_best" in found:
            name = "best of n of the aligned" if place == 0 else None
            axis.plot(found["aligned_best"], place, "o", color=COLOURS["aligned"], markerfacecolor="white", label=name)
    axis.set_yticks(range(len(values)), [_title(summary, name) for name in values], fontsize=8)
    axis.set_xlabel("true value per session, held-out users at their logged requests")
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return image(figure)


def axes_plot(summary: Summary) -> str:
    """Draw true and predicted reward along each varied option of an ablation; empty for other comparisons."""
    varied = {option: _along(summary, option) for option in summary["centre"]}
    varied = {option: values for option, values in varied.items() if len(values) > 1}
    if not varied:
        return ""
    figure, axes = axes_row(len(varied), width=3.4)
    for axis, (option, value_by_name) in zip(axes, varied.items(), strict=True):
        for metric, (colour, label) in CHOSEN.items():
            told = [summary["agents"][name][metric] for name in value_by_name]
            spread, mean = np.array([_spread(figure) for figure in told]).T, [figure["mean"] for figure in told]
            axis.errorbar(range(len(told)), mean, yerr=spread, color=COLOURS[colour], marker="o", markersize=4,
                          capsize=2, label=label)  # fmt: skip
        axis.set_title(option.replace("_", " "), fontsize=10)
        axis.set_xticks(range(len(value_by_name)), list(map(str, value_by_name.values())), fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return image(figure)


# ---------------------------------------------------------------- data to draw


def _sorted(summary: Summary) -> list[str]:
    """Conditions with a true reward, lowest first, because the first one is drawn at the bottom."""
    told = {name: summary["agents"][name].get("true_reward") for name in summary["conditions"]}
    return sorted((name for name in told if told[name]), key=lambda name: told[name]["mean"])


def _title(summary: Summary, name: str) -> str:
    return summary["conditions"].get(name, name.replace("_", " "))


def _style(summary: Summary, name: str) -> dict[str, Any]:
    from matplotlib import colormaps

    place = list(summary["conditions"]).index(name)
    colour, line = colormaps["tab20"](place % 20), ("-", "--", ":")[place // 20 % 3]
    return {"color": colour, "linestyle": line, "linewidth": 1.3, "label": _title(summary, name)}


def _spread(told: Mapping[str, Any]) -> tuple[float, float]:
    """Distances from the mean to the ends of the interval; 0 if there is none."""
    if missing(told["low"]) or not np.isfinite(told["low"]):
        return 0.0, 0.0
    return max(told["mean"] - told["low"], 0), max(told["high"] - told["mean"], 0)


def _dots(axis: Any, told: Sequence[Mapping[str, Any] | None], places: Any, colour: str, label: str) -> None:
    """Draw a dot per row, with its interval if there is one."""
    kept = [(figure, place) for figure, place in zip(told, places, strict=True) if figure]
    if kept:
        spread = np.array([_spread(figure) for figure, _ in kept]).T
        mean = [figure["mean"] for figure, _ in kept]
        at = [place for _, place in kept]
        axis.errorbar(mean, at, xerr=spread, fmt="o", color=colour, markersize=5, capsize=2, label=label)


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
