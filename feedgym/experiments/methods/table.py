"""Makes the table of a comparison: every condition's figures over the seeds, and which differences are significant.

A seed makes its own users, log, base and reward model, so differences are taken seed by seed
(:mod:`feedgym.experiments.over_seeds`). The gain of an alignment is also given as a share of the gap from the base to
the oracle. So seeds with generous users count no more than others.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` runs, one per seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.methods.figures import LAST_REWARD, Figure
from feedgym.experiments.over_seeds import against, aggregate, in_bold, probability_of_improvement
from feedgym.experiments.page import missing
from feedgym.experiments.serve import FIRST_REWARD
from feedgym.experiments.statistics import over_runs

Float = NDArray[np.float64]
Rows = dict[str, dict[str, dict[int, Figure]]]
"""Figures by row, name and seed. A row is a condition, or another agent, such as the base."""
Cells = Sequence[tuple[str, int, Mapping[str, Mapping[str, Figure]]]]
"""Condition, seed and figures by agent, of each finished cell."""

REWARD = "true_reward"
BETTER = (
    *(REWARD, FIRST_REWARD, LAST_REWARD, "watch_s", "long_view_rate", "like_rate", "follow_rate", "session_items"),
    *("return_24h", "true_mean", "true_max"),
)
"""Figures of which more is better for users, so that there can be a best one."""


def rows_of(cells: Cells) -> Rows:
    """Make the rows of a table.

    Args:
        cells: the finished cells.

    Returns:
        A row per condition, which is its aligned agent, and a row for each other agent. Those are the same in all cells
        of a seed and are taken from the first. The rewards of the conditions' own choosers, such as
        ``aligned_searched``, are in the row of the condition.
    """
    rows: Rows = {}
    for condition, seed, agents in cells:
        for name, figures in agents.items():
            row = condition if name == "aligned" else name
            if name == "aligned" or not name.startswith("aligned_"):
                for metric, figure in figures.items():
                    rows.setdefault(row, {}).setdefault(metric, {}).setdefault(seed, figure)
    conditions = list(dict.fromkeys(condition for condition, _, _ in cells))
    return {name: rows[name] for name in (*conditions, *(name for name in rows if name not in conditions))}


def choosers_of(cells: Cells, condition: str) -> Rows:
    """Rows of a condition's agents that choose among sessions, such as ``aligned_searched``; see :func:`rows_of`."""
    rows: Rows = {}
    for name, seed, agents in cells:
        for agent, figures in agents.items() if name == condition else ():
            if agent.startswith("aligned_"):
                row = rows.setdefault(agent.replace("aligned", condition, 1), {})
                for metric, figure in figures.items():
                    row.setdefault(metric, {})[seed] = figure
    return rows


def over_seeds(by_seed: Mapping[int, Figure]) -> dict[str, Any] | None:
    """A figure over the seeds: mean with 95% interval by Student's t, ``runs`` and ``seeds``.

    With only one seed, the interval is the one over its users.
    """
    told = {seed: figure for seed, figure in by_seed.items() if not missing(figure["mean"])}
    if not told:
        return None
    found = over_runs(np.array([figure["mean"] for figure in told.values()], float))
    if len(told) == 1:
        (only,) = told.values()
        found |= {"low": only["low"], "high": only["high"]}
    return {**found, "seeds": list(told)}


def table_of(rows: Rows) -> dict[str, dict[str, Any]]:
    """All rows' figures over the seeds."""
    told = {row: {metric: over_seeds(by_seed) for metric, by_seed in metrics.items()} for row, metrics in rows.items()}
    return {row: {metric: value for metric, value in metrics.items() if value} for row, metrics in told.items()}


def compared(rows: Rows, conditions: Sequence[str], control: str, metric: str = REWARD) -> dict[str, dict[str, Any]]:
    """Each condition's difference to a control, seed by seed; see :func:`feedgym.experiments.over_seeds.against`.

    Conditions that miss one of the control's seeds are left out. ``improves`` is added: the probability that a run of
    the condition is above one of the control.
    """
    seeds = list(rows[control][metric]) if metric in rows.get(control, {}) else []
    values = {name: values_N for name in conditions if (values_N := _values(rows, name, metric, seeds)) is not None}
    others = [name for name in values if name != control]
    if not seeds or not others:
        return {}
    own_N = _values(rows, control, metric, seeds)
    assert own_N is not None
    found = against(control, {control: own_N} | values)
    return {
        name: found[name] | {"improves": probability_of_improvement(values[name][:, None], own_N[:, None])}
        for name in others
    }


def on_the_way(rows: Rows, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Shares of the gap from base to oracle: the interquartile mean over the seeds, with interval, and every seed.

    Args:
        rows: rows that include ``base`` and ``oracle``; otherwise the result is empty.
        seed: seed for resampling.

    Returns:
        By row the figures of :func:`feedgym.experiments.over_seeds.aggregate`, ``runs`` and ``seeds``.
    """
    ends = [rows.get(name, {}).get(REWARD, {}) for name in ("base", "oracle")]
    length = {at: ends[1][at]["mean"] - ends[0][at]["mean"] for at in ends[0] if at in ends[1]}
    found = {}
    for name, figures in rows.items():
        told = {at: figure["mean"] for at, figure in figures.get(REWARD, {}).items() if length.get(at, 0) > 0}
        share_N = np.array([(value - ends[0][at]["mean"]) / length[at] for at, value in told.items()])
        if len(share_N):
            found[name] = {**aggregate(share_N[:, None], seed), "runs": share_N.tolist(), "seeds": list(told)}
    return found


def bold(rows: Rows, conditions: Sequence[str]) -> dict[str, list[str]]:
    """By figure, the conditions that none beats as far as the seeds can show; see :func:`in_bold` of over_seeds."""
    found = {}
    for metric in BETTER:
        told = [name for name in conditions if metric in rows[name]]
        seeds = [at for at in (rows[told[0]][metric] if told else ()) if all(at in rows[name][metric] for name in told)]
        values = {name: values_N for name in told if (values_N := _values(rows, name, metric, seeds)) is not None}
        if len(seeds) > 1 and len(values) > 1 and (best := in_bold(values)):
            found[metric] = sorted(best, key=told.index)
    return found


def _values(rows: Rows, row: str, metric: str, seeds: Sequence[int]) -> Float | None:
    """A row's figures for the given seeds, [N]; None if one is missing."""
    by_seed = rows.get(row, {}).get(metric, {})
    if any(at not in by_seed or missing(by_seed[at]["mean"]) for at in seeds):
        return None
    return np.array([by_seed[at]["mean"] for at in seeds], float)
