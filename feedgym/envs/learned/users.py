"""Users of a log in :class:`feedgym.envs.learned.LearnedSimulator`: taken over from it, or replaying their visits.

Axes beyond the legend of :mod:`feedgym.data.events`: ``G`` users of the log who have a visit, ``R`` exposures of all
users in a single row.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import Catalog, EventLog, LoggedSessions
from feedgym.data.sessions import histories
from feedgym.envs import luck
from feedgym.envs.learned.simulator import LearnedSimulator, LearnedState
from feedgym.envs.logging import event_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import served_visits
from feedgym.envs.visits import Visits
from feedgym.protocols import put_users, take_users

OTHER_ITEMS = 0x6F74686572
"""Salt for drawing items when a user's own exposures run out in a replay."""


def donors_of(log: EventLog, catalog: Catalog, history_length: int, known_visits: int) -> LearnedState:
    """The users of a log at their visit number ``known_visits``, or at their last one if they have fewer."""
    served, first_U1 = served_visits(log)
    user_G = np.flatnonzero(np.diff(first_U1) > 0)
    row_G = np.minimum(first_U1[user_G] + known_visits, first_U1[user_G + 1] - 1)
    return states_before(log, catalog, served.rows(row_G), history_length)


def states_before(log: EventLog, catalog: Catalog, sessions: LoggedSessions, history_length: int) -> LearnedState:
    """The users of logged sessions just before them, with seeds from the user's row in the log."""
    user_N = sessions.user_idx_N
    logged = histories(log, catalog, user_N, sessions.row_N, sessions.start_s_N, history_length)
    mask_NT = logged.mask_UT.numpy()
    gap_s_NT = np.where(mask_NT, logged.gap_s_UT.double().numpy(), 0)
    # The time of an event is that of the request minus all gaps after the event.
    time_s_NT = np.where(mask_NT, sessions.start_s_N[:, None] - np.cumsum(gap_s_NT[:, ::-1], axis=1)[:, ::-1], 0)
    return LearnedState(
        seed_U=user_N.astype(np.uint64),
        visit_U=np.zeros(len(user_N), np.int64),
        time_s_U=sessions.start_s_N.astype(np.float64),
        profile_UF=log.profile_UF[user_N].astype(np.int64),
        items_UT=logged.item_ids_UT.numpy(),
        behaviours_UTB=logged.behaviours_UTB.numpy().astype(np.int8),
        watch_fraction_UT=logged.watch_fraction_UT.numpy(),
        time_s_UT=time_s_NT,
        length_U=mask_NT.sum(axis=1),
    )


def replay_users(simulator: LearnedSimulator, log: EventLog, *, session_length: int = 10, seed: int = 0) -> EventLog:
    """Replays the users of a log in the simulator from their first visit on, with the sessions they were served.

    They behave, leave and return as in the simulator; it never sees what they really did. If all sessions of the log
    have one length, the visits' own slates are served. Otherwise (a log of only examined items, or with sessions of
    different lengths) a user's exposures form a stream. Each visit takes the next K items and continues after the last
    one that was seen. After its end, items are drawn by the log's exposures.

    Args:
        simulator: fitted without these users.
        log: the users.
        session_length: K for visits served from streams.
        seed: for the users' random numbers.

    Returns:
        The replayed log; no user has more visits in it than in the given one.
    """
    served, first_U1 = served_visits(log)
    users = np.flatnonzero(np.diff(first_U1) > 0)
    length_N = (served.item_ids_NK >= 0).sum(axis=1)
    streams = None if length_N.min() == length_N.max() else _Streams(simulator, served, first_U1, session_length)
    state = states_before(log, simulator.catalog, served.rows(first_U1[users]), simulator.donors.items_UT.shape[1])
    state = replace(state, seed_U=user_seeds(len(users), seed, "replay"))
    num_visits_U, profile_UF = np.diff(first_U1)[users], state.profile_UF
    here, taken_U, paid = np.arange(len(users)), np.zeros(len(users), np.int64), []
    for visit in range(int(num_visits_U.max())):
        here = here[num_visits_U[here] > visit]
        if not len(here):
            break
        state_here = take_users(state, here)
        slates_UK = (
            served.item_ids_NK[first_U1[users[here]] + visit]
            if streams is None
            else streams.slates(users[here], taken_U[here], state_here.seed_U)
        )
        response, after = simulator.respond(state_here, slates_UK)
        paid.append(
            {
                "user_N": here,
                "visit_N": np.full(len(here), visit),
                "login_s_N": state_here.time_s_U,
                "logout_s_N": state_here.time_s_U + response.elapsed_s_U.astype(np.float64),
                "slates_NK": slates_UK.astype(np.int64),
                "propensity_NK": np.full(slates_UK.shape, np.nan, np.float32),
                "watch_s_NK": response.watch_s_UK,
                "examined_NK": response.examined_UK,
                "behaviours_NKB": response.behaviours_UKB,
            }
        )
        taken_U[here] += response.examined_UK.sum(axis=1)
        state = put_users(state, here, after)
        here = here[~response.churned_U]
    columns = {name: np.concatenate([visit[name] for visit in paid]) for name in paid[0]}
    order = np.lexsort((columns["visit_N"], columns["user_N"]))
    visits = Visits(profile_UF=profile_UF, **{name: column[order] for name, column in columns.items()})
    return event_log(simulator, profile_UF, visits)


class _Streams:
    """Served items of each user as one stream, and other items after its end."""

    def __init__(
        self, simulator: LearnedSimulator, served: LoggedSessions, first_U1: NDArray[np.int64], session_length: int
    ) -> None:
        is_item_NK = served.item_ids_NK >= 0
        self.item_R = served.item_ids_NK[is_item_NK].astype(np.int64)
        self.offset_U1 = np.append(0, np.cumsum(is_item_NK.sum(axis=1)))[first_U1]
        self.share_I = np.cumsum(simulator.exposures_I) / simulator.exposures_I.sum()
        self.session_length = session_length

    def slates(
        self, user_U: NDArray[np.int64], taken_U: NDArray[np.int64], seed_U: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """The next K items [U, K] of users, given how many they have seen."""
        place_UK = (self.offset_U1[user_U] + taken_U)[:, None] + np.arange(self.session_length)
        inside_UK = place_UK < self.offset_U1[user_U + 1][:, None]
        key_U = luck.derive(luck.derive(seed_U, OTHER_ITEMS), taken_U)
        uniform_UK = luck.draw(key_U[:, None], np.arange(self.session_length), 0)
        other_UK = np.minimum(np.searchsorted(self.share_I, uniform_UK), len(self.share_I) - 1)
        return np.where(inside_UK, self.item_R[np.minimum(place_UK, len(self.item_R) - 1)], other_UK)
