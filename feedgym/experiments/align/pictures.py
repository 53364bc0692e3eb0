"""Draws pictures and tables of an alignment's probes as sections of the report.

They show the parts of ``summary.json`` that :mod:`feedgym.experiments.align.analysis` and
:mod:`feedgym.experiments.align.gap` make. A part that a run does not have becomes an empty section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from feedgym.experiments.align.overoptimisation import FORMS, predicted
from feedgym.experiments.charts import Chart, Series, in_rows, panels, plane
from feedgym.experiments.page import folded, html_table, missing, note, number, section, with_ends

FINE = 60
"""Points to draw a fitted curve with."""
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
    return section(
        "Over-optimisation",
        panels(_distances_chart(found), _rounds_chart(found, stops or ()), width=380),
        f"<p>{_turnover_sentence(found['turnover'])}</p>" if found["turnover"] else "",
        _stops_table(stops or ()),
        folded("Fits of the curves", _fits_table(found["fits"])),
        folded("Best of n of the base", _best_of_n_table(found["best_of_n"])),
        read=READ_CURVES,
    )


def gap_section(gaps: Mapping[str, Mapping[str, Any]] | None) -> str:
    """Draw the steps from base to oracle, with a panel and a table for each place where they were measured.

    Args:
        gaps: by place ("at logged requests"), the result of :func:`feedgym.experiments.align.gap.gap`.
    """
    if not gaps:
        return ""
    charts = [_way_chart(place, found) for place, found in gaps.items()]
    tables = (_gap_table(place, found) for place, found in gaps.items())
    return section("Where the gap lies", panels(*charts, width=380), *tables, read=READ_GAP)


READ_CURVES = (
    "The further an agent moves from the base, the more the optimised reward rises. Where the truth turns down while "
    "the optimised reward still rises, the agent is over-optimised. Lines without dots are fitted curves; dashed ones "
    "with dots choose the best of n sessions of the base."
)
READ_GAP = (
    "Each bar is one step from the base to the best possible sessions, with its 95% interval. A long first step says "
    "that choosing among the base's own sessions would already help; a long last step, that better ones were never "
    "drawn."
)

# ---------------------------------------------------------------- charts


def _distances_chart(found: Mapping[str, Any]) -> Chart:
    """Gains against the root of the divergence: points of the rounds, their fit, and best-of-n."""
    series = []
    for name, colour in CURVES.items():
        if name not in found["unit"]:
            continue
        unit = max(found["unit"][name], 1e-12)
        for kind, label, mark in (("rounds", "rounds", "dot"), ("best_of_n", "best of n of the base", "line")):
            gains, label = _gains(found[kind], name, unit), f"{CALLED[name]}, {label}"
            dash = "dashed" if mark == "line" else "solid"
            series.append(Series(label=label, x=_distances(found[kind]), y=gains, colour=colour, mark=mark, dash=dash))
        series += [
            _fit(fit, _distances(found["rounds"]), unit, colour)
            for fit in found["fits"]
            if (fit["curve"], fit["of"], fit["form"]) == ("rounds", name, "rl")
        ]
    turn = found["turnover"]
    walls = {"turnover": _distances(found["rounds"])[turn["round"]]} if turn and turn["over_optimised"] else {}
    title = "gain over the base, in spreads of its sessions"
    return plane(title, series, x="distance from the base, root of KL in nats", walls=walls, height=260)


def _fit(fit: Mapping[str, Any], distances: Sequence[float], unit: float, colour: str) -> Series:
    """The fitted curve of a reward."""
    line = np.linspace(1e-3, max(distances), FINE)
    gains = (predicted(line, fit["alpha"]["mean"], fit["beta"]["mean"], fit["form"]) / unit).tolist()
    label = f"{CALLED[fit['of']]}, {'fit' if fit['fits'] else 'form does not fit'}"
    return Series(
        label=label, x=line.tolist(), y=gains, colour=colour, mark="curve", dash="solid" if fit["fits"] else "dotted"
    )


def _rounds_chart(found: Mapping[str, Any], stops: Sequence[Mapping[str, Any]]) -> Chart:
    """The truth by round, or else the proxy, on its own scale, with the turnover and the rules' alarms."""
    name = "truth" if "truth" in found["unit"] else "proxy"
    places = range(len(found["rounds"]))
    gains = Series(label="", x=places, y=_gains(found["rounds"], name, 1.0), colour=CURVES[name])
    turn = found["turnover"]
    walls = {"turnover": turn["round"]} if turn and turn["over_optimised"] else {}
    series = [gains]
    if alarms := [stop for stop in stops if stop["alarm"] is not None]:
        rules = [stop["rule"].replace("_", " ") for stop in alarms]
        at = [stop["alarm"] for stop in alarms]
        there = [found["rounds"][place][name]["mean"] if place < len(places) else None for place in at]
        alarm = "a rule would stop here"
        series.append(Series(label=alarm, x=at, y=there, names=rules, mark="dot", colour="model", hollow=True))
    return plane(f"gain by {CALLED[name]}", series, x="rounds of alignment", whole=True, walls=walls, height=260)


def _way_chart(place: str, found: Mapping[str, Any]) -> Chart:
    """A waterfall: the base's value, a floating bar per step with its interval, and the last agent's value."""
    level, last = found["values"]["base"]["mean"], found["steps"][-1]["to"]
    series = [Series(label="base", x=["base"], y=[level], mark="bar", starts=[0.0], colour="base")]
    for step in found["steps"]:
        below, level = level, level + step["mean"]
        figure = {"mean": level, "low": below + step["low"], "high": below + step["high"]}
        bar: dict[str, Any] = {"mark": "bar", "starts": [below], "colour": STEP_COLOURS[step["to"]]}
        share = f"{with_ends(step, '+')}, {_percent(step['share']['mean'])} of the gap"
        series.append(Series(label=step["name"], x=[step["name"]], y=[figure], names=[share], **bar))
    end = Series(label=last, x=[last.replace("_", " ")], y=[found["values"][last]["mean"]], mark="bar", starts=[0.0],
                 colour="base")  # fmt: skip
    return replace(in_rows(place, [*series, end], x="true value per session"), legend=False)


def _distances(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [max(row["kl"], 0) ** 0.5 for row in rows]


def _gains(rows: Sequence[Mapping[str, Any]], name: str, unit: float) -> list[dict[str, float]]:
    """Figures in a unit."""
    return [{end: row[name][end] / unit for end in ("mean", "low", "high")} for row in rows]


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
    told = note("Bends: share of resamples with beta above 0. Intervals hold 95% of resamples of users.")
    return html_table(head, rows) + told if rows else "<p>Too few rounds for a fit.</p>"


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
