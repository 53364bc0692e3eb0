"""Compares agents in the end: serves them to fresh simulated users, or tests them on held-out users' next items.

Online, every agent serves the SAME users with the same random numbers, so that differences are paired.
Every metric is a ratio of sums over users; intervals resample users (:mod:`feedgym.experiments.statistics`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from typing_extensions import TypedDict

from feedgym.agents.best_of import BestOf
from feedgym.data.batches import EventBatch
from feedgym.data.events import Catalog, EventLog
from feedgym.data.requests import Requests
from feedgym.envs.history import has_arrivals
from feedgym.experiments.by_visit import told_by_visit
from feedgym.experiments.configs import JudgeConfig
from feedgym.experiments.exposure import exposure_figures, shown_items, spread_figures
from feedgym.experiments.progress import Step, progress
from feedgym.experiments.rollouts import Rollouts
from feedgym.experiments.run import Codec, NumberOrNone, json_of
from feedgym.experiments.serve import (
    JudgedConfig,
    ServingRecord,
    best_of_name,
    samples,
    serve_all,
    session_diversity,
)
from feedgym.experiments.statistics import Figure, Ratio, interval, lift, resampling_counts
from feedgym.protocols import Recommender, SessionReward, UserSimulator

NEXT_ITEMS = 10
"""Number of items an agent may predict as the next one offline."""

OFFLINE_BLOCK = 256
"""Held-out users to answer at a time."""


Table = dict[str, dict[str, NumberOrNone]]
"""Figures by name, each a mean with the ends of its interval if there is one."""


class Judgement(TypedDict):
    """The parts that every judgement of agents has; each adds its own."""

    __pydantic_config__ = {"extra": "allow"}  # type: ignore[misc]  # noqa: RUF012 (pydantic reads it)

    agents: dict[str, Table]
    judged_by: str


class Comparison(Judgement):
    """A judgement that compares agents."""

    lift: Table


JUDGED: Codec[Any] = json_of(Comparison)
"""Codec of a judgement."""

READ = ("base", "aligned", "base_searched", "aligned_searched")
"""Agents whose sessions the report lists for reading."""


def judge_online(
    simulator: UserSimulator,
    agents: dict[str, Recommender],
    reward: SessionReward,
    log: EventLog,
    seeds_U: NDArray[np.uint64],
    config: JudgedConfig,
    known: Mapping[str, ServingRecord] | None = None,
    workers: Rollouts | None = None,
) -> dict[str, Any]:
    """Serve all agents to the same users, and compare.

    Args:
        simulator: the users.
        agents: the agents to compare, including "base", "aligned" and the controls
            (:mod:`feedgym.experiments.controls`).
        reward: the reward model.
        log: the log that agents learned from.
        seeds_U: seeds of the users, whom no model was trained on.
        config: visits, lengths, weights, seed.
        known: records of these users under some of the agents.
        workers: serve one agent each.

    Returns:
        ``agents``, ``lift``, ``lift_searched``, ``lifts`` (of the aligned agent over each), ``by_visit``, ``samples``
        and ``judged_by`` of the summary.
    """
    served = serve_all(simulator, agents, reward, seeds_U, config, known, workers)
    return told_online(served, simulator, log, config)


def told_online(
    served: Mapping[str, ServingRecord], simulator: UserSimulator, log: EventLog, config: JudgedConfig
) -> dict[str, Any]:
    """Make the summary of :func:`judge_online` from records of the same users under all agents."""
    figures = {
        name: {**result.ratios(), **exposure_of(result, simulator, log, config)} for name, result in served.items()
    }
    num_users = next(iter(served.values())).num_users
    counts_RU = resampling_counts(num_users, config.seed)
    return {
        **compared(figures, config.seed),
        "lifts": lifts_over_each("aligned", figures, counts_RU),
        "by_visit": told_by_visit(served, _pairs(config.judge), counts_RU),
        "samples": samples({name: served[name] for name in READ if name in served}, simulator.catalog),
        "judged_by": judged_by(num_users, config),
    }


def _pairs(judge: JudgeConfig) -> list[tuple[str, str]]:
    """Pairs of agents to compare by visit: the effect of alignment, and its effect beyond best of N."""
    instead = [("aligned", best_of_name("base", n)) for n in judge.best_of]
    return [("aligned", "base"), ("aligned_searched", "base_searched"), *instead]


def exposure_of(
    served: ServingRecord, simulator: UserSimulator, log: EventLog, config: JudgedConfig
) -> dict[str, Figure]:
    """Exposure by creator and item, results for new items and costs of exploring; the log is the known past."""
    assert served.log is not None
    return exposure_figures(
        served.log, simulator.catalog, earlier=log, weights=config.weights, arrivals=has_arrivals(simulator)
    )


def judged_by(users: int, config: JudgedConfig) -> str:
    """Describe the judging users in words."""
    return f"{users:,} fresh users, served {config.judge.visits} visits each unless they left for good"


def lifts_over_each(
    ours: str, figures: Mapping[str, Mapping[str, Figure]], counts_RU: NDArray[np.float64]
) -> dict[str, dict[str, dict[str, float]]]:
    """Lifts of one agent over each of the others, by "ours over other", in all figures that both have."""
    return {
        f"{ours} over {name}": {
            metric: gain
            for metric, figure in other.items()
            # A figure without cases for one of the two, such as clicks on cold items, has no lift.
            if metric in figures[ours] and (gain := lift(figures[ours][metric], figure, counts_RU)) is not None
        }
        for name, other in figures.items()
        if name != ours
    }


def compared(ratios: Mapping[str, Mapping[str, Figure]], seed: int) -> dict[str, Any]:
    """Every agent's metrics with intervals, and the lifts of the aligned agents over their bases with paired ones."""
    # One set of resamples for all agents and metrics: the users are the same, so that lifts are paired.
    first = next(iter(next(iter(ratios.values())).values()))
    counts_RU = resampling_counts(first.num_users, seed)
    agents = {
        name: {metric: interval(ratio, counts_RU) for metric, ratio in metrics.items()}
        for name, metrics in ratios.items()
    }
    lifts = {}
    for suffix in ("", "_searched"):
        aligned, base = f"aligned{suffix}", f"base{suffix}"
        if base in ratios:
            both = {name: ratios[name] for name in (aligned, base)}
            lifts[f"lift{suffix}"] = lifts_over_each(aligned, both, counts_RU)[f"{aligned} over {base}"]
    return {"agents": agents, **lifts}


def judge_offline(
    agents: dict[str, Recommender],
    reward: SessionReward,
    catalog: Catalog,
    requests: Requests,
    config: JudgedConfig,
    judged_by: str,
) -> dict[str, Any]:
    """Test how well agents predict the next items of held-out users, and how the reward model scores their sessions.

    The metrics are recall and NDCG of the served session's K items against the items of the held-out session, which are
    all relevant. The same is computed for the ten likeliest next items against the first item of that session. Others
    measure how the served items are spread over the catalogue and its creators.

    Args:
        agents: the agents to compare, including "base", "aligned" and the controls.
        reward: the reward model.
        catalog: the items.
        requests: one held-out request per user.
        config: lengths and seed.
        judged_by: description of the users in words.
    """
    ratios = {}
    for name, agent in agents.items():
        with progress(f"Testing {name}") as step:
            ratios[name] = _offline_ratios(agent, reward, catalog, requests, step)
    return {**compared(ratios, config.seed), "judged_by": judged_by}


def _offline_ratios(
    agent: Recommender, reward: SessionReward, catalog: Catalog, requests: Requests, step: Step
) -> dict[str, Figure]:
    """Offline metrics of one agent, with one row per held-out user."""
    served, opinions, next_items = [], [], []
    for low in range(0, len(requests), OFFLINE_BLOCK):
        histories = requests.histories.rows(slice(low, low + OFFLINE_BLOCK))
        with torch.inference_mode():
            sessions = agent.recommend(histories)
            opinions.append(reward(histories, sessions)[:, 0])
            next_items.append(top_items(agent, histories, min(NEXT_ITEMS, catalog.num_items)))
        served.append(sessions.item_ids_USK[:, 0])
        step(min(low + OFFLINE_BLOCK, len(requests)), len(requests))
    items_UK = torch.cat(served).numpy()
    targets_UK = requests.targets_NK.numpy()
    metrics = {
        "model_reward": torch.cat(opinions).double().numpy(),
        "diversity": session_diversity(catalog, items_UK),
        **recall_ndcg(items_UK, targets_UK, "session"),
        **recall_ndcg(torch.cat(next_items).numpy(), targets_UK[:, :1], "next item"),
    }
    # The served items count as exposures: nobody has seen them, so all of them count.
    user_UK = np.broadcast_to(np.arange(len(items_UK))[:, None], items_UK.shape)
    items_UI = shown_items(user_UK.ravel(), items_UK.ravel(), (len(items_UK), catalog.num_items))
    ratios = {name: Ratio(value_U, np.ones(len(value_U))) for name, value_U in metrics.items()}
    return {**ratios, **spread_figures(items_UI, catalog)}


def top_items(agent: Any, histories: EventBatch, n: int) -> torch.Tensor:
    """The ``n`` items [U, n] that an agent predicts as likeliest to come next, best first, -1 if a search finds fewer.

    A generative agent gives the ``n`` best sessions of one item, other agents the session of ``n`` items they would
    serve. For best of N, its agent is used.
    """
    agent = copy.copy(
        agent.agent if isinstance(agent, BestOf) else agent
    )  # the caller's agent keeps its own session length
    if hasattr(agent, "beams"):
        agent.session_length = 1
        items_US = agent.beams(histories, n).item_ids_USK[:, :, 0]
        return F.pad(items_US, (0, n - items_US.shape[1]), value=-1)
    agent.session_length = n
    return agent.recommend(histories).item_ids_USK[:, 0]


def recall_ndcg(served_UK: NDArray[np.int64], targets_UM: NDArray[np.int64], of: str) -> dict[str, NDArray[np.float64]]:
    """Recall and NDCG of ranked items against those that really followed, all of them relevant.

    Args:
        served_UK: the agent's items, best first, -1 if it has no more.
        targets_UM: the items that followed, -1 after the last one; each user has at least one.
        of: the predicted thing, for the metrics' names.

    Returns:
        float64 [U]: ``recall@K of ...`` and ``ndcg@K of ...``; 1 if everything possible was predicted.
    """
    length = served_UK.shape[1]
    hit_UK = ((served_UK[:, :, None] == targets_UM[:, None, :]) & (targets_UM >= 0)[:, None, :]).any(axis=2)
    discount_K = 1 / np.log2(np.arange(length) + 2)
    # Users took fewer items than K, or more: both figures are divided by the best possible value, so 1 can be reached.
    possible_U = np.minimum((targets_UM >= 0).sum(axis=1), length)
    return {
        f"recall@{length} of {of}": hit_UK.sum(axis=1) / possible_U,
        f"ndcg@{length} of {of}": (hit_UK * discount_K).sum(axis=1) / np.cumsum(discount_K)[possible_U - 1],
    }
