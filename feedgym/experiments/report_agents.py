"""Names, order and colours of judged agents in reports, and their figures visit by visit."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from feedgym.experiments.charts import Series, figures, hue, panels, plane
from feedgym.experiments.page import folded, html_table, missing, number, with_ends

FIRST = ("random", "popular", "base", "aligned", "base_searched", "aligned_searched")
LAST = ("retrieved", "ranked", "cascade", "oracle")
"""The agents in the order of tables; best-of-N agents come between FIRST and LAST, all others after them."""

BEST_OF = re.compile(r"(base|aligned)_best_of_(\d+)(_by_truth)?")
"""Names of agents that serve the best of N drawn sessions."""

PANELS = {
    "true_reward": "true reward per visit",
    "model_reward": "reward model's prediction",
    "repeats": "share seen before",
    "favourites_used": "favourites used up",
    "concentration": "share of the 20 most served",
    "alive": "users still there",
}
"""Figures drawn by visit, with their titles."""

TOLD = (1, 8, 14, 30)
"""Visits in the tables; the last one is added."""


def ordered(agents: Collection[str]) -> list[str]:
    """Sort agents' names in the order of tables."""
    best = sorted((bool(m[3]), int(m[2]), m[1] != "base", m[0]) for m in map(BEST_OF.fullmatch, agents) if m)
    known = [name for name in (*FIRST, *(one[-1] for one in best), *LAST) if name in agents]
    return known + [name for name in agents if name not in known]


def agent_label(name: str) -> str:
    """An agent's name for people; agents that know the truth are marked."""
    words = name.replace("_", " ")
    return f"{words} (study only)" if name.endswith("_by_truth") else words


def style_of(name: str, among: Sequence[str]) -> dict[str, Any]:
    """Colour and dashes of an agent in charts of several, for :class:`feedgym.experiments.charts.Series`."""
    family, _, way = name.partition("_")
    dash = {"": "solid", "searched": "dashed"}.get(way, "dotted")
    if family in ("base", "aligned"):
        return {"colour": family, "dash": dash}
    if name == "oracle":
        return {"colour": "ink", "dash": "solid"}
    if name in ("random", "popular"):
        return {"colour": "other", "dash": "solid" if name == "popular" else "dotted"}
    others = [other for other in among if other not in (*FIRST, "oracle") and not BEST_OF.fullmatch(other)]
    return {"colour": hue(others.index(name) + 2), "dash": "solid"}  # the first two resemble aligned and model


def visits_plot(by_visit: Mapping[str, Any] | None) -> str:
    """Draw a chart per figure with a line per agent, along the visits; bands are intervals."""
    if not by_visit:
        return ""
    agents = by_visit["agents"]
    names = ordered(agents)
    charts = []
    for metric, title in PANELS.items():
        lines = [
            Series(label=agent_label(name), x=range(1, len(told["mean"]) + 1), y=figures(told), **style_of(name, names))
            for name in names
            if (told := agents[name].get(metric)) is not None
        ]
        if lines:
            charts.append(plane(title, lines, x="visit", whole=True))
    return panels(*charts)


def visits_tables(by_visit: Mapping[str, Any] | None) -> str:
    """Table of true reward at some visits, with the differences of pairs; other figures are folded away."""
    if not by_visit:
        return ""
    agents, names = by_visit["agents"], ordered(by_visit["agents"])
    num_visits = len(agents[names[0]]["true_reward"]["mean"])
    visits = [visit for visit in TOLD if visit < num_visits] + [num_visits]
    heads = [f"visit {visit}" for visit in visits]

    def row(label: str, told: Mapping[str, Sequence[float]]) -> list[str]:
        return [label, *(_cell(told, visit - 1) for visit in visits)]

    reward = [row(agent_label(name), agents[name]["true_reward"]) for name in names]
    apart = [
        row(pair.replace(" over ", " minus ").replace("_", " "), told) for pair, told in by_visit["difference"].items()
    ]
    rest = [
        row(f"{PANELS[metric]}: {agent_label(name)}", agents[name][metric])
        for metric in PANELS
        for name in names
        if metric != "true_reward" and metric in agents[name]
    ]
    first = html_table(["true reward per visit", *heads], reward + apart)
    return first + folded("Predicted reward, repeats, favourites and concentration", html_table(["", *heads], rest))


def last_difference(by_visit: Mapping[str, Any] | None, pair: str) -> str:
    """A pair's difference at the last visit, in words; empty if it is unknown."""
    told = (by_visit or {}).get("difference", {}).get(pair)
    if told is None or missing(told["mean"][-1]):
        return ""
    low, high = (f"{told[end][-1]:+.2f}" for end in ("low", "high"))
    return f"at visit {len(told['mean'])}: {told['mean'][-1]:+.2f} [{low}, {high}]"


def _cell(told: Mapping[str, Sequence[float]], at: int) -> str:
    if "low" not in told:
        return number(told["mean"][at])
    return with_ends({end: told[end][at] for end in ("mean", "low", "high")})
