"""Off-policy evaluation item by item, on any log with known propensities, above all KuaiRand's random exposures.

    log -> users in two parts: one to learn popularity and a model of the reward, the other to judge agents

KuaiRand's random exposures replaced single recommended videos, each drawn uniformly from a pool. So they show what a
policy of single items would earn in such a place, but nothing about slates. The items above and below were chosen by a
policy whose probabilities nobody logged. From other logs, first places with a propensity are used.

There is no truth. Besides intervals over users, the report compares the order of the agents by one half of the users
with the order by the other half.

Axes: N exposures, I items of the pool's catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX, Catalog, Event, EventLog
from feedgym.data.requests import LogAndItems
from feedgym.data.sessions import histories, user_of_rows
from feedgym.data.splits import RANDOM, split_users
from feedgym.experiments.logs import LOG, plan_log, recorded_log, simulated_log, simulator_of, users_key
from feedgym.experiments.ope import estimators as by
from feedgym.experiments.ope.estimators import Estimate, Float
from feedgym.experiments.ope.items_report import terminal_table, write_report
from feedgym.experiments.ope.judging import fault_of
from feedgym.experiments.ope.presets import OPEItemsRun
from feedgym.experiments.ope.targets import content_cosines
from feedgym.experiments.progress import progress
from feedgym.experiments.report import conclude
from feedgym.experiments.run import Codec, Plan, Run, json_of
from feedgym.experiments.statistics import correlation_per_user, interval, resampling_counts

__all__ = ["experiment", "plan", "terminal_table"]

TOLD: Codec[Any] = json_of(dict[str, Any])
BLOCK_CELLS = 2**22
"""Exposures times items to process at a time."""
PRIOR = 20.0
"""Number of exposures with the mean rate that are added to an item's own."""
ESTIMATORS = {"ips": "IPS", "snips": "SNIPS", "dm": "direct method", "dr": "doubly robust"}
"""The estimators for single items, and their names."""


def plan(config: OPEItemsRun) -> Plan:
    """Plan the stages in order, with the settings that decide each."""
    plan = Plan()
    simulated = [users_key(config, config.seed), config.log, config.session_length, config.seed]
    log = plan_log(plan, config, simulated, "simulator", "simulator_options", "session_length")
    agents = [config.popularity_temperatures, config.content_temperatures, config.history_length]
    judged = [config.behaviours, config.exposures, config.held_out, config.min_rows, config.min_rows_share]
    plan.stage("told", [agents, judged, config.seed], (log,))
    return plan


def experiment(config: OPEItemsRun, run: Run) -> dict[str, Any]:
    """Estimate the rewards of agents of single items; see the module's docstring.

    Returns:
        The summary, as written to ``summary.json``.
    """
    log = run.stage("log", lambda _: _read(config, run.trust), LOG)
    told = run.stage("told", lambda _: told_of_items(config, log.value), TOLD)
    summary = {"names": ESTIMATORS, **told.value, "seed": config.seed, **run.facts()}
    return conclude(run, summary, {}, write_report)


def _read(config: OPEItemsRun, trust: bool) -> LogAndItems:
    if config.data is not None:
        return recorded_log(config)
    return simulated_log(simulator_of(config, config.seed, trust), config.log, config.session_length, config.seed)


@dataclass(frozen=True, eq=False)
class Exposures:
    """N exposures with known propensities to judge agents by, and the figures learned from other users.

    Attributes:
        log: all users.
        catalog: the items.
        row_N: rows of the log.
        user_N: rows of the judging users, 0..U-1.
        num_users: U.
        pool_I: bool, the items that could be shown.
        prob_N: probability with which the item was shown.
        reward_N: 0 or 1.
        count_I: exposures with the wanted behaviours, among the other users.
        rate_I: share of the exposures that had them, shrunk towards the mean: the model of the reward.
    """

    log: EventLog
    catalog: Catalog
    row_N: NDArray[np.int64]
    user_N: NDArray[np.int64]
    num_users: int
    pool_I: NDArray[np.bool_]
    prob_N: Float
    reward_N: Float
    count_I: Float
    rate_I: Float

    @property
    def item_N(self) -> NDArray[np.int64]:
        """The items that were shown."""
        return self.log.item_id[self.row_N].astype(np.int64)

    @classmethod
    def of(cls, config: OPEItemsRun, data: LogAndItems) -> Exposures:
        """Collect the exposures of a log.

        Raises:
            ValueError: the log has no exposure with a known propensity.
        """
        log, catalog = data
        known = known_chances(log)
        if not known.any():
            raise ValueError(
                "The log has no exposure with a known probability of being shown (a propensity), so other policies "
                "cannot be evaluated. KuaiRand's log_random_* files have propensities; put them beside its other files."
            )
        pool_I = np.zeros(catalog.num_items, bool)
        pool_I[log.item_id[known]] = True
        split = split_users(log.user_ids_U, validation=0.0, held_out=config.held_out, seed=config.seed)
        judging_U = np.zeros(log.num_users, bool)
        judging_U[split.held_out_idx] = True
        user = user_of_rows(log)
        row_N = np.flatnonzero(known & judging_U[user])
        if not len(row_N):
            raise ValueError(f"No judging user has an exposure with a propensity; raise held_out={config.held_out}.")
        if config.exposures and len(row_N) > config.exposures:
            row_N = np.sort(np.random.default_rng(config.seed).choice(row_N, config.exposures, replace=False))
        users, user_N = np.unique(user[row_N], return_inverse=True)
        of_use = [BEHAVIOUR_IDX[name] for name in config.behaviours]
        wanted = np.asarray(log.behaviours[:, of_use].any(axis=1), bool)
        seen = (log.event == Event.IMPRESSION) & log.examined & ~judging_U[user]
        shown_I = np.bincount(log.item_id[seen], minlength=catalog.num_items)
        count_I = np.bincount(log.item_id[seen & wanted], minlength=catalog.num_items).astype(np.float64)
        mean = count_I.sum() / max(shown_I.sum(), 1)
        return cls(
            log=log, catalog=catalog, row_N=row_N, user_N=user_N, num_users=len(users), pool_I=pool_I,
            prob_N=log.propensity[row_N].astype(np.float64), reward_N=wanted[row_N].astype(np.float64),
            count_I=count_I, rate_I=(count_I + PRIOR * mean) / (shown_I + PRIOR),
        )  # fmt: skip

    def blocks(self) -> Iterator[slice]:
        """Slices of the exposures, a few at a time."""
        size = max(1, BLOCK_CELLS // self.catalog.num_items)
        return (slice(low, low + size) for low in range(0, len(self.row_N), size))


def known_chances(log: EventLog) -> NDArray[np.bool_]:
    """Rows of exposures with a known propensity of their own: drawn at random, or in the first place of a session."""
    drawn = log.extra.get(RANDOM, np.zeros(log.num_events, np.float32)) == 1
    alone = drawn if RANDOM in log.extra else log.position == 0
    return np.asarray(alone & (log.event == Event.IMPRESSION) & log.examined & (log.propensity > 0))


def told_of_items(config: OPEItemsRun, data: LogAndItems) -> dict[str, Any]:
    """Estimate every agent from the exposures.

    Returns:
        ``agents``: by agent the estimates with intervals over users. ``refused``: reasons. ``rows``: effective sample
        sizes. ``halves``: for each estimator the rank correlation of the agents' orders by two halves of the users.
    """
    shown = Exposures.of(config, data)
    least = max(config.min_rows, config.min_rows_share * len(shown.row_N))
    agents: dict[str, Any] = {}
    refused: dict[str, dict[str, str]] = {}
    rows: dict[str, float] = {}
    orders: dict[str, list[Estimate]] = {name: [] for name in ESTIMATORS}
    counts_RU = resampling_counts(shown.num_users, config.seed)
    for agent, (prob_N, value_N) in policies(config, shown).items():
        weight_N1 = by.prefix_weights(prob_N[:, None], shown.prob_N[:, None])
        rows[agent] = float(by.effective_sample_size(weight_N1)[0])
        found = estimates(weight_N1, shown, value_N)
        why = fault_of(weight_N1[:, 0], least)
        refused[agent] = {name: why for name in found if why and name != "dm"}
        users = {n: e.of_users(shown.user_N, shown.num_users) for n, e in found.items() if n not in refused[agent]}
        agents[agent] = {name: interval(estimate, counts_RU) for name, estimate in users.items()}
        for name, estimate in users.items():
            orders[name].append(estimate)
    return {
        "title": f"Off-policy evaluation of {len(agents)} agents of single items",
        "judged_by": f"{len(shown.row_N):,} exposures of {shown.num_users:,} users, with known propensities",
        "reward": " or ".join(config.behaviours),
        "agents": agents,
        "refused": refused,
        "rows": rows,
        "halves": {name: halves(found, shown.num_users) for name, found in orders.items()},
    }


def policies(config: OPEItemsRun, shown: Exposures) -> Mapping[str, tuple[Float, Float]]:
    """By agent, its probability [N] of the item shown, and the reward [N] that the model expects from its own item."""
    popular_I = torch.from_numpy(np.where(shown.pool_I, np.log(shown.count_I + 1), -np.inf))
    pool_I = torch.from_numpy(np.where(shown.pool_I, 0.0, -np.inf))
    parts: dict[str, list[tuple[Float, Float]]] = {}
    with progress("Agents") as step:
        for rows in shown.blocks():
            num = len(shown.row_N[rows])
            logits = {"random": pool_I.repeat(num, 1)}
            logits |= {f"popular at {t:g}": popular_I.repeat(num, 1) / t for t in config.popularity_temperatures}
            if config.content_temperatures:
                cosine_NI = cosines(config, shown, rows)
                logits |= {f"content at {t:g}": cosine_NI / t + pool_I for t in config.content_temperatures}
            for agent, logit_NI in logits.items():
                prob_NI = logit_NI.softmax(1)
                item_N1 = torch.from_numpy(shown.item_N[rows])[:, None]
                value_N = prob_NI @ torch.from_numpy(shown.rate_I)
                parts.setdefault(agent, []).append((prob_NI.gather(1, item_N1)[:, 0].numpy(), value_N.numpy()))
            step(min(rows.stop, len(shown.row_N)), len(shown.row_N))
    joined = {agent: [np.concatenate(column) for column in zip(*told, strict=True)] for agent, told in parts.items()}
    return {agent: (prob_N, value_N) for agent, (prob_N, value_N) in joined.items()}


def cosines(config: OPEItemsRun, shown: Exposures, rows: slice) -> torch.Tensor:
    """Cosines [N, I] of the items' contents with the mean content of the items that the user liked before."""
    row_N, log = shown.row_N[rows], shown.log
    user_N = user_of_rows(log)[row_N]
    before = histories(log, shown.catalog, user_N, row_N, log.timestamp_s[row_N], config.history_length)
    return content_cosines(before, shown.catalog, torch.float64)


def estimates(weight_N1: Float, shown: Exposures, value_N: Float) -> dict[str, Estimate]:
    """Estimates of an agent by each estimator."""
    reward_N1, model_N1 = shown.reward_N[:, None], shown.rate_I[shown.item_N][:, None]
    return {
        "ips": by.ips(weight_N1, reward_N1),
        "snips": by.snips(weight_N1, reward_N1),
        "dm": by.direct(value_N),
        "dr": by.doubly_robust(weight_N1, reward_N1, model_N1, value_N),
    }


def halves(found: list[Estimate], num_users: int) -> float | None:
    """Rank correlation of the agents' orders by two halves of the users; None for fewer than three agents."""
    if len(found) < 3:
        return None
    half_2U = np.stack([np.arange(num_users) % 2 == part for part in range(2)]).astype(np.float64)
    first, second = np.stack([estimate.resampled(half_2U) for estimate in found], axis=1)
    return float(correlation_per_user(first[None], second[None], ranks=True)[0])
