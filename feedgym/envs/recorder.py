"""Offline reinforcement learning from logs: the transitions that a log holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.data.events import Catalog, Event, EventLog, FloatArray, LoggedSessions
from feedgym.data.sessions import histories, logged_sessions
from feedgym.envs.feed import MAX_GAP_S, Observation
from feedgym.envs.truth import RewardWeights, session_reward
from feedgym.protocols import Response

CHURNED, RETURN_GAP_S = "churned", "return_gap_s"
"""What :class:`RecordLog` knows beyond the columns of every log, in ``EventLog.extra`` on a visit's impressions."""


def transitions(
    log: EventLog,
    catalog: Catalog,
    history_length: int,
    session_length: int,
    weights: RewardWeights = RewardWeights(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """A log as the transitions of :class:`feedgym.envs.feed.FeedEnv`, one a visit, for offline learners.

    Visits of more than K items become several transitions; what is left over, and visits of fewer items, are no
    actions of the environment and are left out, but stay in the histories.

    Args:
        log: the event log.
        catalog: its items.
        history_length: T.
        session_length: K.
        weights: of the reward's components.

    Returns:
        Arrays with the leading axis N, in the log's order:

        * ``observations``, ``next_observations``: dicts with the keys and dtypes of the environment's observations.
          The next request of a user's last visit is at the recorded return, or, where the log does not tell, at the
          logout.
        * ``actions``: int64 item ids [N, K].
        * ``rewards``: float32. A return that the log does not tell adds nothing.
        * ``terminateds``: bool, the user is known to have churned (logs of :class:`RecordLog` tell).
        * ``truncateds``: bool, the next transition is another user's, or not what came next, for any other reason.
        * ``propensities``: float32 [N, K], NaN where unknown.
        * ``users``: int64 row of the user in the log.
        * ``episodes``: int64 number of the unbroken run of transitions.

    Raises:
        ValueError: a length is below 1, the log has no visits, or none with K items.
    """
    sessions = logged_sessions(log, session_length)
    follows_N = np.append(sessions.user_idx_N[1:] == sessions.user_idx_N[:-1], False)
    whole = np.flatnonzero((sessions.item_ids_NK >= 0).all(axis=1))
    if not len(whole):
        shown = int((sessions.item_ids_NK >= 0).sum(axis=1).max(initial=0))
        raise ValueError(
            f"No visit of the log has session_length={session_length} items, the longest row has {shown}; lower it."
        )
    next_row_N = np.where(follows_N, np.roll(sessions.row_N, -1), log.offsets_U1[sessions.user_idx_N + 1])
    churned_N, gap_s_N = _ends(log, sessions, follows_N, next_row_N)
    told_s_N = np.where(np.isnan(sessions.return_gap_s_N), np.nan_to_num(gap_s_N), 0)
    last_s_N = log.timestamp_s[next_row_N - 1] + told_s_N
    next_s_N = np.where(follows_N, np.roll(sessions.start_s_N, -1), last_s_N)

    user_N, row_N, start_s_N = (a[whole] for a in (sessions.user_idx_N, sessions.row_N, sessions.start_s_N))
    now = histories(log, catalog, user_N, row_N, start_s_N, history_length)
    after = histories(log, catalog, user_N, next_row_N[whole], next_s_N[whole], history_length)
    joined_N = follows_N[whole] & np.append(np.diff(whole) == 1, False)
    terminated_N = churned_N[whole] & ~follows_N[whole]
    return {
        "observations": _observation(now),
        "actions": sessions.item_ids_NK[whole].astype(np.int64),
        "rewards": _rewards(sessions, churned_N, gap_s_N, weights)[whole],
        "next_observations": _observation(after),
        "terminateds": terminated_N,
        "truncateds": ~joined_N & ~terminated_N,
        "propensities": sessions.propensity_NK[whole],
        "users": user_N,
        "episodes": np.cumsum(np.append(False, ~joined_N[:-1])).astype(np.int64),
    }


def _ends(
    log: EventLog, sessions: LoggedSessions, follows_N: NDArray, next_row_N: NDArray
) -> tuple[NDArray, NDArray[np.float64]]:
    """Whether users are known to have churned after their sessions, and seconds to their next visit, NaN if unknown."""
    shown = np.flatnonzero(log.event == Event.IMPRESSION)
    last_N = shown[np.searchsorted(shown, next_row_N) - 1]
    unknown_N = np.full(len(sessions), np.nan)
    churned_N, told_s_N = (
        log.extra[name][last_N].astype(np.float64) if name in log.extra else unknown_N
        for name in (CHURNED, RETURN_GAP_S)
    )
    gap_s_N = sessions.return_gap_s_N
    return churned_N == 1, np.where(~follows_N & np.isnan(gap_s_N), told_s_N, gap_s_N)


def _rewards(sessions: LoggedSessions, churned_N: NDArray, gap_s_N: NDArray, weights: RewardWeights) -> FloatArray:
    """The environment's rewards of logged sessions; a gap of NaN is no return."""
    response = Response(
        behaviours_UKB=sessions.behaviours_NKB,
        watch_s_UK=sessions.watch_s_NK,
        examined_UK=sessions.examined_NK,
        elapsed_s_U=sessions.watch_s_NK.sum(axis=1),
        left_U=~np.all(sessions.examined_NK, axis=1),
        return_gap_s_U=gap_s_N.astype(np.float32),
        churned_U=churned_N,
    )
    return session_reward(response, weights)


def _observation(batch: EventBatch) -> Observation:
    """Histories as the environment's batched observation."""
    return {
        "profile": batch.profile_UF.numpy(),
        "history_items": batch.item_ids_UT.numpy(),
        "history_behaviours": batch.behaviours_UTB.numpy().astype(np.int8),
        "history_watch_fraction": batch.watch_fraction_UT.numpy(),
        "history_gap_s": np.clip(batch.gap_s_UT.numpy(), 0, MAX_GAP_S).astype(np.float32),
        "history_mask": batch.mask_UT.numpy().astype(np.int8),
        "time_of_day": batch.time_of_day_U.numpy(),
    }
