"""Measures exposure: its spread over creators and items, the share of new items, and the cost of exploring them.

It needs only an event log and its catalogue, so it works for a recorded log as for served agents. An *exposure* is an
impression that the user reached. An item is

* *cold* if an earlier log, the one that agents learn from, has fewer than ``few`` exposures of it;
* *explored* by an exposure before which it had fewer than ``few`` exposures, in the earlier log and in this one, to any
  user. So a cold item is no longer explored once it has been shown often enough;
* *new* if it was uploaded after the earlier log ended.

The share of exposures that explore is the budget of exploration. Its price is the reward of as many exposures of
well-known items, minus that of the explored ones. It is measured by users' responses, which for simulated users are the
truth.

Shares and rates are ratios of sums over users. Inequality and coverage are not: a resample holds fewer distinct users,
so it is less covered and more unequal than the users themselves. Their intervals take the spread of the resamples
around the users' own figure (:class:`FigureOfSums`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feedgym.data.events import BEHAVIOUR_IDX, Catalog, Event, EventLog, FloatArray, IntArray, LoggedSessions
from feedgym.data.sessions import user_of_rows
from feedgym.envs.truth import RewardWeights, brought_at_once
from feedgym.experiments.statistics import Figure, Ratio

FEW = 10
"""An item with fewer exposures counts as hardly known."""

TOP_SHARE = 0.01
"""Share of the items that count as the most exposed ones."""

SPREAD_RESAMPLES = 400
"""Number of resamples for a spread; quantiles around a known centre need fewer than an interval from scratch."""

NO_CREATOR = -1


@dataclass(frozen=True, eq=False)
class FigureOfSums:
    """A figure that is a function of sums over U users but not a ratio of two, such as inequality.

    Attributes:
        sums_UX: float64 [U, X], an array or a sparse one.
        of_sums: computes the figure [R] from summed rows [R, X].
    """

    sums_UX: Any
    of_sums: Callable[[NDArray[np.float64]], NDArray[np.float64]]

    @property
    def num_users(self) -> int:
        """U."""
        return self.sums_UX.shape[0]

    def mean(self) -> float:
        """Compute the figure for all users."""
        return float(self.of_sums(np.asarray(self.sums_UX.sum(axis=0), np.float64).reshape(1, -1))[0])

    def resampled(self, counts_RU: FloatArray) -> NDArray[np.float64]:
        """The figure under the first of R resamplings of the users, moved so that their median is :meth:`mean`."""
        # Use only the spread of a resample and not its centre: it holds fewer distinct users.
        values_R = self.of_sums(np.asarray(counts_RU[:SPREAD_RESAMPLES] @ self.sums_UX))
        return (values_R - np.median(values_R)) + self.mean()


def exposure_counts(log: EventLog, num_items: int) -> NDArray[np.int64]:
    """Exposures of each item, int64 [I]."""
    return np.bincount(log.item_id[(log.event == Event.IMPRESSION) & log.examined], minlength=num_items)


def times_seen(sessions: LoggedSessions, num_items: int) -> NDArray[np.int64]:
    """Number of times that each item was reached in logged sessions, int64 [I]."""
    return np.bincount(sessions.item_ids_NK[sessions.examined_NK], minlength=num_items)


def gini(count_RX: NDArray) -> NDArray[np.float64]:
    """Gini coefficient of each row [R]: 0 if all X are equal, 1 - 1/X if one has everything; 0 if all are zero.

    G = sum_i (2i - X - 1) c_i / (X sum_i c_i) over the counts in ascending order, i = 1..X.
    """
    size = count_RX.shape[1]
    ranked_RX = np.sort(count_RX.astype(np.float64), axis=1)
    return ranked_RX @ (2 * np.arange(1, size + 1) - size - 1) / np.maximum(size * ranked_RX.sum(axis=1), 1e-12)


def creators_of(catalog: Catalog) -> sparse.csr_matrix:
    """Matrix of items and their creators: [I, creators], 1 or 0; items of unknown creators (-1) have no entry."""
    with_creator = np.flatnonzero(catalog.creator_I != NO_CREATOR)
    creators, column = np.unique(catalog.creator_I[with_creator], return_inverse=True)
    return sparse.csr_matrix(
        (np.ones(len(with_creator)), (with_creator, column)), shape=(catalog.num_items, len(creators))
    )


def top_share(count_RI: NDArray, share: float = TOP_SHARE) -> NDArray[np.float64]:
    """Share of the exposures of the most exposed items [R]: the top ``share`` of the items, at least one."""
    top = max(1, round(share * count_RI.shape[1]))
    held_R = np.partition(count_RI, -top, axis=1)[:, -top:].sum(axis=1)
    return held_R / np.maximum(count_RI.sum(axis=1), 1e-12)


def exposed_so_far(item_N: IntArray, examined_N: NDArray[np.bool_], before_I: IntArray) -> NDArray[np.int64]:
    """Number of exposures that each impression's item had just before it.

    Args:
        item_N: items of the impressions in order of time.
        examined_N: whether each is an exposure.
        before_I: number of exposures before the first impression.
    """
    # Sorted by item, then by time, an item's earlier exposures are a running sum minus the one at its first row.
    order = np.argsort(item_N, kind="stable")
    item, one = item_N[order], examined_N[order].astype(np.int64)
    past = np.cumsum(one) - one
    first = np.searchsorted(item, item)
    so_far_N = np.empty(len(item_N), np.int64)
    so_far_N[order] = past - past[first] + before_I[item]
    return so_far_N


def worth(log: EventLog, rows: NDArray[np.int64], weights: RewardWeights) -> NDArray[np.float64]:
    """Immediate reward of impressions: the weighted sum of minutes and behaviours, without the return, float64."""
    return brought_at_once(log.behaviours[rows], log.watch_s[rows], weights)


def exposure_figures(
    log: EventLog,
    catalog: Catalog,
    *,
    earlier: EventLog | None = None,
    weights: RewardWeights = RewardWeights(),  # noqa: B008 (frozen)
    few: int = FEW,
    arrivals: bool = False,
) -> dict[str, Figure]:
    """Compute the figures of a log, each with a ``mean()`` and resamplings over its users.

    Args:
        log: the served sessions.
        catalog: its items.
        earlier: the known past, a log of the same items; None if nothing was known.
        weights: weights of an exposure's immediate reward.
        few: an item with fewer exposures is cold, or explored.
        arrivals: whether the catalogue's times are real, so that a served item may have been absent.

    Returns:
        Of creators: ``creator_gini``, the inequality of their exposure, and ``creators_unseen``, the share without an
        exposure. Of items: ``catalog_coverage``, the share with an exposure. Of exposures: ``top_1pct_share``, the
        share of the most exposed hundredth of the items; ``cold_share`` and ``exploration_share``. ``item_reward``, the
        immediate reward of an exposure; for cold ones ``cold_reward`` and ``cold_click_rate``. ``exploration_cost``,
        the reward lost per visit by exploring. If some items are newer than an earlier log: ``new_item_share`` and
        ``new_click_rate``. With ``arrivals``: ``absent_share``, the share of the served items that did not exist when
        they should have appeared. Figures without any case are left out.
    """
    # A log is sorted by user; exposures before an impression depend on all users, so sort the rows by time.
    rows = np.flatnonzero(log.event == Event.IMPRESSION)
    rows = rows[np.argsort(log.timestamp_s[rows], kind="stable")]
    user_N, item_N, examined_N = user_of_rows(log)[rows], log.item_id[rows].astype(np.int64), log.examined[rows]
    known_I = np.zeros(catalog.num_items, np.int64) if earlier is None else exposure_counts(earlier, catalog.num_items)
    explores_N = exposed_so_far(item_N, examined_N, known_I) < few
    worth_N, click_N = worth(log, rows, weights), log.behaviours[rows, BEHAVIOUR_IDX["click"]].astype(np.float64)
    visits_U = np.bincount(user_of_rows(log)[log.event == Event.LOGIN], minlength=log.num_users).astype(np.float64)

    def a_user(mask_N: NDArray[np.bool_], values_N: NDArray | float = 1.0) -> NDArray[np.float64]:
        values_N = np.where(mask_N, values_N, 0.0)
        return np.bincount(user_N, values_N, minlength=log.num_users).astype(np.float64)

    # Cold items are hardly shown in the earlier log, and stay cold all through this one. Explored items are hardly
    # shown so far, so an item is no longer explored as soon as it has been shown often.
    cold_N = examined_N & (known_I[item_N] < few)
    seen_U, cold_U, explored_U = a_user(examined_N), a_user(cold_N), a_user(examined_N & explores_N)
    items_UI = shown_items(user_N[examined_N], item_N[examined_N], (log.num_users, catalog.num_items))
    figures = spread_figures(items_UI, catalog)
    figures["cold_share"] = Ratio(cold_U, seen_U)
    figures["exploration_share"] = Ratio(explored_U, seen_U)
    figures["item_reward"] = Ratio(a_user(examined_N, worth_N), seen_U)
    if cold_U.any():
        figures["cold_reward"] = Ratio(a_user(cold_N, worth_N), cold_U)
        figures["cold_click_rate"] = Ratio(a_user(cold_N, click_N), cold_U)
    if (seen_U > explored_U).any():
        exploring_N, routine_N = examined_N & explores_N, examined_N & ~explores_N
        sums = a_user(exploring_N), a_user(exploring_N, worth_N), a_user(routine_N), a_user(routine_N, worth_N)
        # The mean reward of routine exposures is itself estimated from these users, so each resample computes it again.
        figures["exploration_cost"] = FigureOfSums(np.stack([*sums, visits_U], axis=1), _forgone)
    if earlier is not None and (new_I := catalog.upload_s_I > earlier.timestamp_s.max()).any():
        new_N = examined_N & new_I[item_N]
        figures["new_item_share"] = Ratio(a_user(new_N), seen_U)
        if new_N.any():
            figures["new_click_rate"] = Ratio(a_user(new_N, click_N), a_user(new_N))
    if arrivals:
        # Nobody examines an absent item; most items that were not examined exist and were merely not reached.
        absent_N = ~examined_N & ~catalog.exists(log.timestamp_s[rows], item_N)
        figures["absent_share"] = Ratio(a_user(absent_N), a_user(np.ones(len(rows), bool)))
    return figures


def shown_items(user_N: IntArray, item_N: IntArray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Number of times that each user was shown each item, [U, I]."""
    return sparse.csr_matrix((np.ones(len(user_N)), (user_N, item_N)), shape=shape)


def spread_figures(items_UI: sparse.csr_matrix, catalog: Catalog) -> dict[str, Figure]:
    """Spread of users' exposures [U, I] over creators and items; see :func:`exposure_figures`."""
    maker_IX = creators_of(catalog)
    figures: dict[str, Figure] = {}
    if maker_IX.shape[1]:
        sums_UX = items_UI @ maker_IX
        figures["creator_gini"] = FigureOfSums(sums_UX, gini)
        figures["creators_unseen"] = FigureOfSums(sums_UX, lambda count_RX: (count_RX == 0).mean(axis=1))
    figures["catalog_coverage"] = FigureOfSums(items_UI, lambda count_RI: (count_RI > 0).mean(axis=1))
    figures["top_1pct_share"] = FigureOfSums(items_UI, top_share)
    return figures


def _forgone(sums_R5: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reward per visit that as many routine exposures would have brought beyond that of the exploring ones."""
    exploring_R, explored_R, routine_R, routine_worth_R, visits_R = sums_R5.T
    routine_mean_R = routine_worth_R / np.maximum(routine_R, 1e-12)
    return (exploring_R * routine_mean_R - explored_R) / np.maximum(visits_R, 1e-12)
