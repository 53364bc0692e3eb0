"""Draws pictures and tables of an alignment's probes as sections of the report.

They show the parts of ``summary.json`` that :mod:`feedgym.experiments.align.analysis` and
:mod:`feedgym.experiments.align.gap` make. A part that a run does not have becomes an empty section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feedgym.experiments.align.overoptimisation import FORMS, predicted
from feedgym.experiments.page import (
    COLOURS,
    axes_row,
    folded,
    html_table,
    image,
    missing,
    number,
    section,
    with_ends,
)

CURVES = {"proxy": "model", "truth": "truth"}
"""The curves to draw, and the names of their colours."""
CALLED = {"proxy": "the optimised reward", "truth": "the truth", "rounds": "rounds", "best_of_n": "best of n"}
STEP_COLOURS = {"aligned": "aligned", "base_best": "truth", "base_best_by_truth": "model", "oracle": "other"}
"""Colours of the steps from base to oracle, by the agent that they lead to."""


def over_optimisation_section(found: Mapping[str, Any] | None, stops: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Draw proxy and true gain by distance from the base and by round, with fits, best-of-n, turnover and stops.

    Args:
        found: result of :func:`feedgym.experiments.align.analysis.over_optimisation`; None draws nothing.
        stops: result of :func:`feedgym.experiments.align.analysis.stops`.
    """
    if not found:
        return ""
    figure, (by_distance, by_round) = axes_row(2, width=5.2, height=3.8)
    _draw_distances(by_distance, found)
    _draw_rounds(by_round, found, stops or ())
    by_distance.set_ylabel("gain over the base, in spreads of its sessions")
    return section(
        "Over-optimisation",
        image(figure),
        f"<p>{_turnover_sentence(found['turnover'])}</p>" if found["turnover"] else "",
        _stops_table(stops or ()),
        folded("Fits of the curves", _fits_table(found["fits"])),
        folded("Best of n of the base", _best_of_n_table(found["best_of_n"])),
    )


def gap_section(gaps: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Draw the steps from base to oracle, with a panel and a table for each place where they were measured.

    Args:
        gaps: by place ("at logged requests"), the result of :func:`feedgym.experiments.align.gap.gap`.
    """
    if not gaps:
        return ""
    figure, axes = axes_row(len(gaps), width=5.2, height=4.0)
    for axis, (place, found) in zip(axes, gaps.items(), strict=True):
        _draw_way(axis, found)
        axis.set_title(place, fontsize=10)
    axes[0].set_ylabel("true value per session")
    tables = (_gap_table(place, found) for place, found in gaps.items())
    return section("Where the gap lies", image(figure), *tables)


# ---------------------------------------------------------------- plots


def _draw_distances(axis: Any, found: Mapping[str, Any]) -> None:
    """Draw gains against the root of the divergence: points of the rounds, their fit, and best-of-n."""
    for name, colour in CURVES.items():
        if name not in found["unit"]:
            continue
        unit, shade = max(found["unit"][name], 1e-12), COLOURS[colour]
        d_N = _distances(found["rounds"])
        axis.errorbar(
            d_N, *_gains(found["rounds"], name, unit), color=shade, fmt="o", markersize=4, capsize=2,
            label=f"{CALLED[name]}, rounds",
        )  # fmt: skip
        axis.plot(
            _distances(found["best_of_n"]), _gains(found["best_of_n"], name, unit)[0], color=shade, linewidth=1,
            linestyle=":", marker="s", markersize=3, alpha=0.7, label=f"{CALLED[name]}, best of n of the base",
        )  # fmt: skip
        for fit in found["fits"]:
            if (fit["curve"], fit["of"], fit["form"]) == ("rounds", name, "rl"):
                line = np.linspace(1e-3, max(d_N), 200)
                gain = predicted(line, fit["alpha"]["mean"], fit["beta"]["mean"], fit["form"])
                axis.plot(line, gain / unit, color=shade, linewidth=1.2, alpha=1 if fit["fits"] else 0.35)
    turn = found["turnover"]
    if turn and turn["over_optimised"]:
        axis.axvline(_distances(found["rounds"])[turn["round"]], color=COLOURS["truth"], linewidth=1, linestyle="--")
    axis.set_xlabel("distance from the base, root of KL in nats")
    axis.set_xlim(left=0)
    axis.legend(fontsize=7, frameon=False)


def _draw_rounds(axis: Any, found: Mapping[str, Any], stops: Sequence[Mapping[str, Any]]) -> None:
    """Draw the truth by round, or else the proxy, on its own scale, with the turnover and the rules' alarms."""
    rounds, name = found["rounds"], "truth" if "truth" in found["unit"] else "proxy"
    gains = _gains(rounds, name, 1.0)
    axis.errorbar(range(len(rounds)), *gains, color=COLOURS[CURVES[name]], marker="o", markersize=4, capsize=2)
    axis.set_ylabel(f"gain by {CALLED[name]}")
    turn = found["turnover"]
    if turn and turn["over_optimised"]:
        axis.axvline(turn["round"], color=COLOURS["truth"], linewidth=1, linestyle="--", label="turnover")
        axis.legend(fontsize=7, frameon=False, loc="upper left")
    alarms: dict[int, list[str]] = {}
    for stop in stops:
        if stop["alarm"] is not None:
            alarms.setdefault(stop["alarm"], []).append(stop["rule"].replace("_", " "))
    low, high = axis.get_ylim()
    lines = max(map(len, alarms.values()), default=0)
    axis.set_ylim(low - 0.06 * lines * (high - low), high)  # room for the boxes below the curve
    for t, names in alarms.items():
        axis.annotate(
            "\n".join(names), (t, axis.get_ylim()[0]), fontsize=7, ha="center", va="bottom", color=COLOURS["model"],
            bbox={"boxstyle": "round,pad=.2", "fc": "white", "ec": COLOURS["model"], "lw": 0.6},
        )  # fmt: skip
    axis.set_xlabel("rounds of alignment; boxes: where rules would stop" if alarms else "rounds of alignment")
    axis.set_xticks(range(len(rounds)))


def _draw_way(axis: Any, found: Mapping[str, Any]) -> None:
    """Draw a waterfall: the base's value, a floating bar per step with its interval, and the oracle's value."""
    steps, level = found["steps"], found["values"]["base"]["mean"]
    axis.bar(0, level, color=COLOURS["base"], width=0.6)
    labels = ["base"]
    for place, step in enumerate(steps, start=1):
        below, level = level, level + step["mean"]
        spread = np.maximum([[step["mean"] - step["low"]], [step["high"] - step["mean"]]], 0)
        axis.bar(
            place, step["mean"], bottom=below, color=COLOURS[STEP_COLOURS[step["to"]]], width=0.6, edgecolor="white",
            yerr=spread, capsize=3, hatch="//" if step["mean"] < 0 else None,
        )  # fmt: skip
        top = (place, max(below, level + spread[1, 0]))
        style = {"ha": "center", "va": "bottom", "fontsize": 8}
        axis.annotate(_percent(step["share"]["mean"]), top, (0, 3), textcoords="offset points", **style)
        labels.append(step["name"].replace(", ", ",\n"))
    last = steps[-1]["to"]
    axis.bar(len(steps) + 1, found["values"][last]["mean"], color=COLOURS["base"], width=0.6)
    axis.set_xticks(range(len(steps) + 2), [*labels, last.replace("_", " ")], rotation=30, ha="right", fontsize=8)
    axis.margins(y=0.1)


def _distances(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [max(row["kl"], 0) ** 0.5 for row in rows]


def _gains(rows: Sequence[Mapping[str, Any]], name: str, unit: float) -> tuple[np.ndarray, np.ndarray]:
    """Means, and the distances of the ends of their intervals, in a unit."""
    mean, low, high = (np.array([row[name][end] for row in rows]) / unit for end in ("mean", "low", "high"))
    return mean, np.maximum([mean - low, high - mean], 0)


# ---------------------------------------------------------------- words and tables


def _turnover_sentence(turn: Mapping[str, Any]) -> str:
    if turn["over_optimised"]:
        return (
            f"Over-optimised: the truth is best after round {turn['round']}, {number(turn['gain'])} above the base, "
            f"and has lost {number(turn['fall'])} of it at the end (more than {number(turn['delta'])} counts)."
        )
    return (
        f"Not over-optimised: the truth after round {turn['round']}, {number(turn['gain'])} above the base, is as good "
        f"as at any round, and the last round is not worse by more than {number(turn['delta'])}."
    )


def _stops_table(stops: Sequence[Mapping[str, Any]]) -> str:
    """Table of the decisions of each stop rule."""
    if not stops:
        return ""
    known = "regret" in stops[0]
    head = [
        "stop rule, without access to the truth",
        "stops after",
        "keeps round",
        *(["regret", "verdict"] if known else []),
        "why",
    ]
    rows = [
        [
            stop["rule"].replace("_", " "),
            "-" if stop["alarm"] is None else f"round {stop['alarm']}",
            str(stop["kept"]),
            *([_percent(stop["regret"]), _verdict(stop)] if known else []),
            stop["reason"] or "it would have continued",
        ]
        for stop in stops
    ]
    return html_table(head, rows)


def _verdict(stop: Mapping[str, Any]) -> str:
    if stop["missed"]:
        return "missed the turn"
    if stop["false_alarm"]:
        return "false alarm"
    if stop["alarm"] is None:
        return "rightly silent"
    return f"{stop['delay_rounds']:+d} rounds from the peak" if stop["turned"] else "harmless"


def _percent(value: Any) -> str:
    return "-" if missing(value) else f"{value:.0%}"


def _fits_table(fits: Sequence[Mapping[str, Any]]) -> str:
    head = [
        *("gain of", "by", "form", "alpha", "beta", "bends", "peak: distance", "gain", "rmse", "of the free curve"),
        *("condition", "points", "verdict"),
    ]
    rows = [
        [
            CALLED[fit["of"]],
            CALLED[fit["curve"]],
            FORMS[fit["form"]],
            with_ends(fit["alpha"]),
            with_ends(fit["beta"]),
            f"{fit['bends']:.0%}",
            *([fit["no_peak"], "-"] if fit["no_peak"] else [with_ends(fit["d_star"]), with_ends(fit["r_star"])]),
            *(number(fit[name]) for name in ("rmse", "free_rmse", "condition", "points")),
            "fits" if fit["fits"] else "form does not fit",
        ]
        for fit in fits
    ]
    note = "Bends: share of resamples with beta above 0. Intervals hold 95% of resamples of users."
    return html_table(head, rows) + f"<p class='facts'>{note}</p>" if rows else "<p>Too few rounds for a fit.</p>"


def _best_of_n_table(rows: Sequence[Mapping[str, Any]]) -> str:
    curves = [name for name in CURVES if name in rows[0]]
    head = ["n", "KL (nats)", *(f"gain by {CALLED[name]}" for name in curves)]
    cells = [[str(row["n"]), number(row["kl"]), *(with_ends(row[name]) for name in curves)] for row in rows]
    return html_table(head, cells)


def _gap_table(place: str, found: Mapping[str, Any]) -> str:
    """Table of the steps, and of the values of all agents."""
    steps = [[step["name"], with_ends(step), _share(step["share"])] for step in found["steps"]]
    steps.append(["from base to the end", with_ends(found["way"]), "100%"])
    values = [[name.replace("_", " "), with_ends(value)] for name, value in found["values"].items()]
    agents = html_table(["agent", "true value per session"], values)
    head = [place, "mean, 95% interval over users", "share of the gap"]
    return html_table(head, steps) + folded(f"The agents, {place}", agents)


def _share(share: Mapping[str, float]) -> str:
    return f"{_percent(share['mean'])} [{_percent(share['low'])}, {_percent(share['high'])}]"
