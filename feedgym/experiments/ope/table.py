"""Measures each estimator: its errors over agents and logs, and whether it orders the agents as the truth does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.ope.estimators import Estimate, Float, direct
from feedgym.experiments.ope.judging import ESTIMATORS, Answers, Judge
from feedgym.experiments.statistics import LEVEL, correlation_per_user, ends, interval, resampling_counts

RANKED = 200
"""Resamples of the users for the interval of a rank correlation."""
FEWEST = 3
"""Least number of agents for a rank correlation."""

Log = Mapping[str, Any]
"""Result of :func:`told_of_log` for a log."""


def told_of_log(judge: Judge, found: Mapping[str, Answers], seed: int) -> dict[str, Any]:
    """Judge all agents by all estimators on one log.

    Returns:
        ``visits`` and ``users``. ``agents``: by agent the ``truth`` with its interval over users, ``estimates`` with
        their intervals, ``refused`` with reasons, and the ``support``. ``ranks``: by estimator the rank correlation
        with the truth, that of resampled users, and the number of agents.
    """
    visits = judge.visits
    counts_RU = resampling_counts(visits.num_users, seed)
    agents: dict[str, Any] = {}
    by_estimator: dict[str, list[tuple[Estimate, Estimate]]] = {name: [] for name in ESTIMATORS}
    for agent, answered in found.items():
        told, support = judge.estimates(answered)
        truth = direct(answered.truth_N).of_users(visits.user_N, visits.num_users)
        agents[agent] = {
            "truth": interval(truth, counts_RU),
            "estimates": {},
            "refused": {name: told[name] for name in ESTIMATORS if isinstance(told[name], str)},
            "support": vars(support),
        }
        for name, estimate in told.items():
            if isinstance(estimate, Estimate):
                users = estimate.of_users(visits.user_N, visits.num_users)
                agents[agent]["estimates"][name] = interval(users, counts_RU)
                by_estimator[name].append((users, truth))
    ranks = {name: ranked(pairs, counts_RU[:RANKED]) for name, pairs in by_estimator.items()}
    return {"visits": len(visits), "users": visits.num_users, "agents": agents, "ranks": ranks}


def ranked(pairs: Sequence[tuple[Estimate, Estimate]], counts_RU: NDArray) -> dict[str, Any]:
    """Spearman's rank correlation of estimates and truths over agents; None for fewer than three of them."""
    if len(pairs) < FEWEST:
        return {"mean": None, "resampled": [], "agents": len(pairs)}
    means = [np.array([[figure.mean() for figure in column]]) for column in zip(*pairs, strict=True)]
    drawn = [np.stack([f.resampled(counts_RU) for f in column], axis=1) for column in zip(*pairs, strict=True)]
    mean = correlation_per_user(*means, ranks=True)[0]
    resampled_R = correlation_per_user(*drawn, ranks=True)
    return {"mean": float(mean), "resampled": resampled_R.tolist(), "agents": len(pairs)}


def table_of(logs: Sequence[Log]) -> dict[str, dict[str, Any]]:
    """Summarise each estimator over the logs.

    Returns:
        By estimator: the number of ``agents`` that it judges in all logs, and ``refused`` cells with the first reason.
        Over the judged cells: ``bias``, ``spread`` (of an agent's errors over the logs), ``rmse``, and ``covered``
        (intervals that contain the truth). ``rank``: mean over logs, with the interval of resampled users. ``regret``:
        the loss from serving the agent with the highest estimate instead of the best judged one.
    """
    return {name: _row(name, logs) for name in ESTIMATORS}


def _row(name: str, logs: Sequence[Log]) -> dict[str, Any]:
    cells = [(agent, told, log["agents"][agent]["truth"]) for log in logs for agent, told in _told(name, log).items()]
    reasons = [log["agents"][a]["refused"][name] for log in logs for a in log["agents"] if a not in _told(name, log)]
    row: dict[str, Any] = {
        "agents": sum(all(agent in _told(name, log) for log in logs) for agent in logs[0]["agents"]),
        "refused": len(reasons),
        "reason": reasons[0] if reasons else None,
    }
    if not cells:
        return row
    error_X = np.array([told["mean"] - truth["mean"] for _, told, truth in cells])
    covered_X = np.array([told["low"] <= truth["mean"] <= told["high"] for _, told, truth in cells])
    errors = {a: error_X[[x for x, cell in enumerate(cells) if cell[0] == a]] for a, _, _ in cells}
    spreads = [values.var(ddof=1) for values in errors.values() if len(values) > 1]
    return row | {
        "bias": float(error_X.mean()),
        "spread": float(np.sqrt(np.mean(spreads))) if spreads else None,
        "rmse": float(np.sqrt((error_X**2).mean())),
        "covered": float(covered_X.mean()),
        "rank": _rank([log["ranks"][name] for log in logs]),
        "regret": float(np.mean([_regret(name, log) for log in logs if _told(name, log)])),
    }


def _told(name: str, log: Log) -> dict[str, Any]:
    """The estimates of an estimator, by agent."""
    return {a: told["estimates"][name] for a, told in log["agents"].items() if name in told["estimates"]}


def _rank(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    means = [rank["mean"] for rank in ranks if rank["mean"] is not None and not np.isnan(rank["mean"])]
    if not means:
        return None
    drawn_R = np.array([value for rank in ranks for value in rank["resampled"]], float)
    return {"mean": float(np.mean(means)), **ends(drawn_R[~np.isnan(drawn_R)]), "level": LEVEL}


def _regret(name: str, log: Log) -> float:
    told, truth = _told(name, log), {agent: told["truth"]["mean"] for agent, told in log["agents"].items()}
    return max(truth[agent] for agent in told) - truth[max(told, key=lambda agent: told[agent]["mean"])]


def over_logs(logs: Sequence[Log]) -> dict[str, dict[str, Any]]:
    """Figures by agent as means over the logs; refused ones are left out."""
    found: dict[str, dict[str, Any]] = {}
    for agent in logs[0]["agents"]:
        figures = {"truth": [log["agents"][agent]["truth"] for log in logs]}
        figures |= {n: [log["agents"][agent]["estimates"][n] for log in logs if agent in _told(n, log)]
                    for n in ESTIMATORS}  # fmt: skip
        found[agent] = {
            name: {end: float(np.mean([value[end] for value in values])) for end in ("mean", "low", "high")}
            for name, values in figures.items()
            if values
        }
    return found


def supports(logs: Sequence[Log]) -> dict[str, dict[str, Any]]:
    """Support that the logs give to each agent: means over the logs, and the least depth."""
    found = {}
    for agent in logs[0]["agents"]:
        told = [log["agents"][agent]["support"] for log in logs]
        names = ("served", "rows_K", "mean_K", "largest_K")
        means: dict[str, Float] = {name: np.mean([s[name] for s in told], axis=0) for name in names}
        found[agent] = {name: np.asarray(value).tolist() for name, value in means.items()}
        found[agent]["depth"] = min(s["depth"] for s in told)
    return found
