"""Measures slow effects on users, cycle by cycle, which a single deployment cannot show.

Every figure is about the sessions that one learner served in one cycle, to the users of that cycle. Intervals resample
those users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feedgym.data.events import Catalog, Event, EventLog
from feedgym.data.sessions import user_of_rows
from feedgym.experiments.cycles.populations import Served
from feedgym.experiments.exposure import FigureOfSums, shown_items, spread_figures
from feedgym.experiments.statistics import Figure, Ratio, interval, resampling_counts

EFFECTS = {
    "true_reward": "true reward per visit",
    "satisfaction": "satisfaction after a visit",
    "users_lost": "users lost in the cycle",
    "diversity": "diversity of a session",
    "topic_concentration": "topic concentration per user",
    "code_entropy": "entropy of first codes (nats)",
    "creator_gini": "creator Gini",
    "catalog_coverage": "items covered",
    "repeats": "share seen before",
    "new_item_share": "share of new items",
}
"""The effects and their titles."""


def effects_of(
    served: Served, cycle: int, visits: int, catalog: Catalog, code_I: NDArray[np.int64], log: EventLog, seed: int
) -> dict[str, dict[str, float]]:
    """Compute the slow effects of a cycle.

    Args:
        served: a learner's latest record of every population that was served in the cycle.
        cycle: the number of the cycle.
        visits: visits per user and cycle.
        catalog: the items.
        code_I: the items' first codes.
        log: the events known before the first cycle; newer items are new.
        seed: seed for resampling users.

    Returns:
        The available figures of :data:`EFFECTS`, each with ``mean``, ``low`` and ``high``, per visit or per item seen.
        ``topic_concentration`` is the probability that two items that a user saw have the same topic.
    """
    figures = {**_of_visits(served, cycle, visits), **_of_items(served, cycle, visits, catalog, code_I, log)}
    counts_RU = resampling_counts(next(iter(figures.values())).num_users, seed)
    return {name: interval(figures[name], counts_RU) for name in EFFECTS if name in figures}


def _of_visits(served: Served, cycle: int, visits: int) -> dict[str, Figure]:
    """Figures counted by visit."""
    parts = [(record.by_visit, slice((cycle - first) * visits, None)) for first, record in served.items()]

    def summed(name: str) -> NDArray[np.float64]:
        return np.concatenate([by_visit[name][when].sum(axis=0) for by_visit, when in parts])

    came_U = np.concatenate([by_visit["visits"][when][0] for by_visit, when in parts])
    names = [name for name in ("true_reward", "satisfaction", "diversity") if name in parts[0][0]]
    figures: dict[str, Figure] = {name: Ratio(summed(name), summed("visits")) for name in names}
    figures["repeats"] = Ratio(summed("repeats"), summed("seen"))
    figures["users_lost"] = Ratio(summed("churn_rate"), came_U)
    return figures


def _of_items(
    served: Served, cycle: int, visits: int, catalog: Catalog, code_I: NDArray[np.int64], log: EventLog
) -> dict[str, Figure]:
    """Figures counted by item."""
    user_N, item_N, num_users = _seen(served, cycle, visits)
    items_UI = shown_items(user_N, item_N, (num_users, catalog.num_items))
    topics_UX = (items_UI @ _one_hot(catalog.topic_I)).toarray()
    codes_UX = (items_UI @ _one_hot(code_I)).toarray()
    seen_U = topics_UX.sum(axis=1)
    same_U = (topics_UX * (topics_UX - 1)).sum(axis=1) / np.maximum(seen_U * (seen_U - 1), 1)
    figures = spread_figures(items_UI, catalog)
    figures["topic_concentration"] = Ratio(same_U * (seen_U > 1), (seen_U > 1).astype(np.float64))
    figures["code_entropy"] = FigureOfSums(codes_UX, entropy)
    if (new_I := catalog.upload_s_I > log.timestamp_s.max()).any():
        figures["new_item_share"] = Ratio(np.asarray(items_UI @ new_I).ravel().astype(np.float64), seen_U)
    return figures


def _seen(served: Served, cycle: int, visits: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Users and items of the exposures seen in the cycle, and the number of users served; all populations count."""
    users, items, before = [], [], 0
    for first, record in served.items():
        log = record.log
        assert log is not None
        seen = (log.event == Event.IMPRESSION) & log.examined & (log.session_id >= (cycle - first) * visits)
        users.append(before + user_of_rows(log)[seen])
        items.append(log.item_id[seen].astype(np.int64))
        before += log.num_users
    return np.concatenate(users), np.concatenate(items), before


def _one_hot(kind_I: NDArray[Any]) -> sparse.csr_matrix:
    """One-hot matrix of the items' kinds, [I, X]."""
    _, column_I = np.unique(kind_I, return_inverse=True)
    return sparse.csr_matrix((np.ones(len(kind_I)), (np.arange(len(kind_I)), column_I)))


def entropy(count_RX: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row of counts [R], in nats."""
    share_RX = count_RX / np.maximum(count_RX.sum(axis=1, keepdims=True), 1e-12)
    return -(share_RX * np.log(np.maximum(share_RX, 1e-300))).sum(axis=1)
