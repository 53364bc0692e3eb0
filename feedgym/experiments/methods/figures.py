"""Reads a cell's figures, by agent and name, from the summary of its alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feedgym.experiments.page import missing
from feedgym.experiments.serve import FIRST_REWARD

Figure = Mapping[str, Any]
"""``mean``, ``low`` and ``high``; the ends are None if there is no interval over users."""

SERVED = (
    *("true_reward", FIRST_REWARD, "model_reward", "watch_s", "long_view_rate", "like_rate", "follow_rate"),
    *("session_items", "return_24h", "churn_rate", "repeats", "diversity", "cost_ms", "cost_mflop"),
)
"""Figures of the judgement, and of the cost per request."""
LAST_REWARD = "true_reward_last"
"""The true reward of the last visit."""
SAMPLED = ("model_mean", "model_max", "true_mean", "true_max", "legality", "kl_to_base", "entropy")
"""Figures of the sessions sampled in the rounds: of the base in the first row, of the aligned agent in the last."""
SPENT = {"learned_from": "pairs or groups", "update_s": "seconds of the updates", "requests_spent": "requests spent"}
"""Costs of the alignment, summed over its rounds."""

BY_VISIT = ("true_reward", "model_reward")
"""Figures that are kept by visit."""


def figures_of(summary: Mapping[str, Any]) -> dict[str, dict[str, Figure]]:
    """Figures of all agents of a cell, by their names there: "base", "aligned", "oracle" and others."""
    found = {
        name: {metric: told[metric] for metric in SERVED if metric in told} for name, told in summary["agents"].items()
    }
    for name, told in summary.get("by_visit", {}).get("agents", {}).items():
        reward = told["true_reward"]
        found[name][LAST_REWARD] = {end: reward[end][-1] for end in ("mean", "low", "high")}
    rounds = summary["rounds"]
    for metric in SAMPLED:
        for name, rows in (("base", rounds[:1]), ("aligned", rounds)):
            if told_rows := [row[metric] for row in rows if not missing(row.get(metric))]:
                found[name][metric] = _exactly(told_rows[-1])
    found["aligned"] |= {name: _exactly(value) for name, value in spent(summary).items()}
    for name, told in list(found.items()):  # the reward of an agent that chooses among sessions goes to its owner
        owner, _, way = name.partition("_")
        if way and owner in ("base", "aligned"):
            found[owner][f"true_reward_{way}"] = told["true_reward"]
    return found


def spent(summary: Mapping[str, Any]) -> dict[str, float]:
    """Costs of an alignment: pairs or groups learned from, seconds of its updates, and users' requests."""
    rounds, stages = summary["rounds"], summary["stages"]
    learned = sum(row.get("pairs") or row.get("groups") or 0 for row in rounds)
    seconds = sum(stage["seconds"] for name, stage in stages.items() if name.startswith("aligned-"))
    requests = max((row.get("requests_spent") or 0 for row in rounds), default=0)
    return {"learned_from": learned, "update_s": seconds, "requests_spent": requests}


def visits_of(summary: Mapping[str, Any]) -> dict[str, dict[str, Sequence[float | None]]]:
    """Means by visit, for all agents."""
    agents = summary.get("by_visit", {}).get("agents", {})
    return {
        name: {metric: told[metric]["mean"] for metric in BY_VISIT if metric in told} for name, told in agents.items()
    }


def gains_of(summary: Mapping[str, Any]) -> list[dict[str, float | None]]:
    """By round, divergence from the base and the gains of reward model and truth over the base.

    They are of the same users after every round if the alignment probed such users; otherwise of each round's own
    users.
    """
    if found := summary.get("over_optimisation"):
        return [
            {"kl": row["kl"], "proxy": row["proxy"]["mean"], "truth": row.get("truth", {}).get("mean")}
            for row in found["rounds"]
        ]
    first = summary["rounds"][0]
    return [
        {
            "kl": row["kl_to_base"],
            "proxy": row["model_mean"] - first["model_mean"],
            "truth": row["true_mean"] - first["true_mean"],
        }
        for row in summary["rounds"]
    ]


def _exactly(value: float) -> Figure:
    return {"mean": value, "low": None, "high": None}
