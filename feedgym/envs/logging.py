"""Collects logs of simulated users under the production system (:mod:`feedgym.envs.logging_policy`).

A log depends neither on the block size nor on the other users. A user's state at any logged visit can be restored by
replaying the log (:func:`feedgym.envs.replay.states_at`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feedgym.data.events import Event, EventLog
from feedgym.envs.history import event_times_s
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import LOG_GROUP, seeds_of, user_seeds
from feedgym.envs.visits import Visits, served_visits
from feedgym.protocols import UserSimulator

BLOCK_USERS = 512
"""Users served at a time; keeps arrays of users by candidates small. The log does not depend on it."""


def collect_log(
    simulator: UserSimulator,
    *,
    num_users: int,
    num_visits: int,
    session_length: int,
    seed: int,
    config: LoggingConfig = LoggingConfig(),  # noqa: B008 (frozen)
    until_s: float = np.inf,
    progress: Callable[[int, int], object] | None = None,
) -> EventLog:
    """Collects the event log of fresh users, each served until they churn or have made all their visits.

    Args:
        simulator: the users.
        num_users: U; their ids in the log are 0..U-1, and their seeds are :func:`user_seeds` of the group "log".
        num_visits: most visits per user.
        session_length: K different items per visit.
        seed: the same seed gives the same log.
        config: the logging policy.
        until_s: the log ends at this time of the simulator's clock: later visits are left out, except first ones.
        progress: called with the number of users done and U.

    Returns:
        The log. Served items that the user never reached have ``examined`` false and the time at which the user left.

    Raises:
        ValueError: a number or share is out of range.
    """
    if num_visits < 1:
        raise ValueError(f"num_visits={num_visits} is below 1; give 1 or more.")
    seeds_U = user_seeds(num_users, seed, LOG_GROUP)
    policy = LoggingPolicy(simulator, session_length, config, seed)
    blocks = []
    for start in range(0, num_users, BLOCK_USERS):
        rows = np.arange(start, min(start + BLOCK_USERS, num_users))
        blocks.append(served_visits(policy, simulator.reset(seeds_U[rows]), rows, num_visits, until_s))
        if progress is not None:
            progress(start + len(rows), num_users)
    visits = Visits.cat(blocks)
    return event_log(simulator, np.concatenate([block.profile_UF for block in blocks]), visits)


def logs_of_groups(
    simulator: UserSimulator,
    groups: Iterable[NDArray],
    *,
    num_visits: int,
    session_length: int,
    seed: int,
    config: LoggingConfig = LoggingConfig(),  # noqa: B008 (frozen)
) -> Iterator[EventLog]:
    """Collects the same log group by group, for logs that are larger than memory.

    Args:
        simulator: the users.
        groups: the ids of each group's users.
        num_visits: most visits per user.
        session_length: K different items per visit.
        seed: as for :func:`collect_log`.
        config: the logging policy.

    Yields:
        The log of each group; it holds the rows that :func:`collect_log` gives these users.
    """
    policy = LoggingPolicy(simulator, session_length, config, seed)
    for ids in groups:
        blocks = []
        for start in range(0, len(ids), BLOCK_USERS):
            rows = np.arange(start, min(start + BLOCK_USERS, len(ids)))
            state = simulator.reset(seeds_of(ids[rows], seed, LOG_GROUP))
            blocks.append(served_visits(policy, state, rows, num_visits))
        log = event_log(simulator, np.concatenate([block.profile_UF for block in blocks]), Visits.cat(blocks))
        yield replace(log, user_ids_U=ids)


def event_log(simulator: UserSimulator, profile_UF: NDArray[np.int64], visits: Visits) -> EventLog:
    """Turns visits into log rows: a user's profile, then for each visit login, impressions and logout.

    Args:
        simulator: gives the names and sizes of the profile fields.
        profile_UF: the users' profiles.
        visits: sorted by user and visit; every user has at least one.

    Returns:
        The log of the users 0..U-1.
    """
    num_users, (num_visits, length) = len(profile_UF), visits.slates_NK.shape
    count_U = np.bincount(visits.user_N, minlength=num_users)
    offsets_U1 = np.append(0, np.cumsum(1 + count_U * (length + 2)))
    is_profile = np.zeros(offsets_U1[-1], bool)
    is_profile[offsets_U1[:-1]] = True
    first_N = np.cumsum(count_U) - count_U

    def column(profile_U: ArrayLike, login_N: ArrayLike, shown_NK: NDArray, logout_N: ArrayLike, dtype: Any) -> NDArray:
        block = np.empty((num_visits, length + 2, *shown_NK.shape[2:]), dtype)
        block[:, 0], block[:, 1:-1], block[:, -1] = login_N, shown_NK, logout_N
        rows = np.empty((len(is_profile), *shown_NK.shape[2:]), dtype)
        rows[is_profile] = profile_U
        rows[~is_profile] = block.reshape(-1, *shown_NK.shape[2:])
        return rows

    def shown(values_NK: NDArray, fill: float, dtype: Any) -> NDArray:
        return column(fill, fill, values_NK, fill, dtype)

    times_s_NK = np.minimum(event_times_s(visits.login_s_N, visits.watch_s_NK), visits.logout_s_N[:, None])
    kinds_NK = np.full((num_visits, length), int(Event.IMPRESSION))
    visit_N1 = np.broadcast_to(visits.visit_N[:, None], (num_visits, length))
    return EventLog(
        user_ids_U=np.arange(num_users),
        offsets_U1=offsets_U1.astype(np.int64),
        profile_UF=profile_UF,
        profile_names=simulator.profile_names,
        profile_sizes=simulator.profile_sizes,
        timestamp_s=column(visits.login_s_N[first_N], visits.login_s_N, times_s_NK, visits.logout_s_N, np.float64),
        event=column(Event.PROFILE, Event.LOGIN, kinds_NK, Event.LOGOUT, np.int8),
        session_id=column(-1, visits.visit_N, visit_N1, visits.visit_N, np.int32),
        position=shown(np.broadcast_to(np.arange(length), (num_visits, length)), -1, np.int16),
        item_id=shown(visits.slates_NK, -1, np.int32),
        watch_s=shown(visits.watch_s_NK, 0, np.float32),
        examined=shown(visits.examined_NK, False, bool),
        behaviours=shown(visits.behaviours_NKB, 0, np.uint8),
        propensity=shown(visits.propensity_NK, np.nan, np.float32),
    )
