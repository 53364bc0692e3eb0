"""Replays the users of a log: the same seeds and the same sessions give the same responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, Event, EventLog, IntArray, LoggedSessions
from feedgym.data.sessions import logged_sessions, user_of_rows
from feedgym.envs.logging import BLOCK_USERS
from feedgym.envs.luck import LOG_GROUP, seeds_of
from feedgym.envs.wrappers import of_feeds
from feedgym.protocols import Response, UserSimulator, cat_users, take_users


def states_at(
    simulator: UserSimulator, log: EventLog, sessions: LoggedSessions, seed: int, group: str = LOG_GROUP
) -> Any:
    """Restores the users just before logged sessions, by replaying the log from their first visit.

    Args:
        simulator: the simulator that the log was collected from.
        log: the log from :func:`feedgym.envs.logging.collect_log`, or some of its users.
        sessions: N of its sessions, in any order and with any repetitions.
        seed: the seed that the log was collected with.
        group: the population of its users (:func:`feedgym.envs.luck.user_seeds`).

    Returns:
        The simulator's state of N users, row n for session n.

    Raises:
        ValueError: the replay differs from the log, so the log is from another simulator or seed.
    """
    seeds_U = seeds_of(log.user_ids_U, seed, group)
    served, first_U1 = served_visits(log)
    number_N = np.searchsorted(served.row_N, sessions.row_N, side="right") - 1
    order = np.argsort(number_N, kind="stable")
    pieces, source = [], []
    for row_V, state, _ in replayed(simulator, served, first_U1, seeds_U, np.unique(number_N)):
        first_V = np.searchsorted(number_N, row_V, sorter=order)
        count_V = np.searchsorted(number_N, row_V, side="right", sorter=order) - first_V
        place = np.repeat(np.arange(len(row_V)), count_V)
        pieces.append(take_users(state, place))
        source.append(order[first_V[place] + np.arange(len(place)) - (np.cumsum(count_V) - count_V)[place]])
    return take_users(cat_users(pieces), np.argsort(np.concatenate(source)))


def replayed(
    simulator: UserSimulator,
    served: LoggedSessions,
    first_U1: NDArray[np.int64],
    seeds_U: NDArray[np.uint64],
    rows: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], Any, Response]]:
    """Serves logged visits again, to users recreated from their seeds.

    Args:
        simulator: the simulator that wrote the log.
        served: the visits, from :func:`served_visits`.
        first_U1: offsets of the users' visits.
        seeds_U: the seeds of the log's users.
        rows: visits to return, ascending; earlier visits are served too, later ones are not.

    Yields:
        Rows of visits in ``served``, ascending, with the users' state just before them and their responses; for every
        block of users, in the order of visit numbers.

    Raises:
        ValueError: a response differs from the log, so the log is from another simulator, or its users had other seeds.
    """
    last_U = np.full(len(seeds_U), -1)
    np.maximum.at(last_U, served.user_idx_N[rows], rows)
    users = np.flatnonzero(last_U >= 0)
    for start in range(0, len(users), BLOCK_USERS):
        user_V = users[start : start + BLOCK_USERS]
        row_V, last_V, state = first_U1[user_V], last_U[user_V], simulator.reset(seeds_U[user_V])
        while len(row_V):
            logged = served.rows(row_V)
            response, next_state = simulator.respond(state, logged.item_ids_NK)
            _must_be_same(response, logged)
            yield row_V, state, response
            later = np.flatnonzero(row_V < last_V)
            row_V, last_V, state = row_V[later] + 1, last_V[later], take_users(next_state, later)


def _must_be_same(response: Response, logged: LoggedSessions) -> None:
    same = (
        np.array_equal(response.watch_s_UK, logged.watch_s_NK)
        and np.array_equal(response.examined_UK, logged.examined_NK)
        and np.array_equal(response.behaviours_UKB, logged.behaviours_NKB)
    )
    if not same:
        raise ValueError(
            "Replaying the log gives other responses; pass the simulator and the seed that the log was collected with."
        )


def replay(env: Any, log: EventLog, seeds_U: NDArray[np.uint64]) -> Response:
    """Serves the users of a log the same sessions again.

    Args:
        env: the simulator that wrote the log, or an environment around it.
        log: a log recorded by :class:`feedgym.envs.recorder.RecordLog` or collected by
            :func:`feedgym.envs.logging.collect_log`.
        seeds_U: seeds of the log's users (``RecordLog.seeds_U``, :func:`feedgym.envs.recorder.read_seeds`,
            :func:`feedgym.envs.logging.user_seeds` of the group "log").

    Returns:
        The responses to the log's N visits, in its order, including what the log does not hold. Visits of fewer items
        than the longest one end in zeros.

    Raises:
        ValueError: a response is not bit by bit that of the log, or there is not one seed per user.
    """
    if len(seeds_U) != log.num_users:
        raise ValueError(f"{len(seeds_U)} seeds do not fit the log's {log.num_users} users; give one per user.")
    simulator = of_feeds(env, "simulator")[0] if hasattr(env, "unwrapped") else env
    served, is_visit_N = _served(log)
    first_U1 = np.searchsorted(served.user_idx_N, np.arange(log.num_users + 1))
    visits = replayed(_AnyLength(simulator), served, first_U1, seeds_U, np.arange(len(served)))
    rows, responses = zip(*((row_V, response) for row_V, _, response in visits), strict=True)
    order = np.argsort(np.concatenate(rows))
    columns = {f.name: np.concatenate([getattr(r, f.name) for r in responses])[order] for f in fields(Response)}
    return Response(**{name: column[is_visit_N] for name, column in columns.items()})


def served_visits(log: EventLog) -> tuple[LoggedSessions, NDArray[np.int64]]:
    """The visits of a log, one row each, and int64 [U+1] offsets of the users' visits among them."""
    served = logged_sessions(log, int(log.position.max()) + 1)
    return served, np.searchsorted(served.user_idx_N, np.arange(log.num_users + 1))


def _served(log: EventLog) -> tuple[LoggedSessions, BoolArray]:
    """All visits that users were served, one row each, and flags for those that are not only history."""
    row = np.flatnonzero(log.event == Event.IMPRESSION)
    user = user_of_rows(log)[row]
    begins = (np.diff(user, prepend=-1) != 0) | (np.diff(log.session_id[row], prepend=-1) != 0)
    first_N, visit = row[begins], np.cumsum(begins) - 1

    def scatter(values: NDArray, fill: float) -> NDArray:
        out = np.full((len(first_N), int(log.position.max()) + 1, *values.shape[1:]), fill, values.dtype)
        out[visit, log.position[row]] = values[row]
        return out

    served = LoggedSessions(
        user_idx_N=user[begins],
        row_N=first_N,
        start_s_N=log.timestamp_s[first_N],
        item_ids_NK=scatter(log.item_id, -1),
        examined_NK=scatter(log.examined, False),
        watch_s_NK=scatter(log.watch_s, 0),
        behaviours_NKB=scatter(log.behaviours, 0),
        propensity_NK=scatter(log.propensity, np.nan),
        return_gap_s_N=np.full(len(first_N), np.nan),
    )
    return served, log.event[first_N - 1] == Event.LOGIN


class _AnyLength:
    """A simulator that takes sessions of different lengths, padded with -1; responses are padded with zeros."""

    def __init__(self, simulator: UserSimulator) -> None:
        self.simulator, self.reset, self.catalog = simulator, simulator.reset, simulator.catalog
        self.profile_names, self.profile_sizes = simulator.profile_names, simulator.profile_sizes

    def respond(self, state: Any, slates_UK: IntArray) -> tuple[Response, Any]:
        """Responses of U users, and their next states."""
        length_U = (slates_UK >= 0).sum(axis=1)
        groups = [np.flatnonzero(length_U == length) for length in np.unique(length_U)]
        answers, states = [], []
        for users in groups:
            length = length_U[users[0]]
            response, after = self.simulator.respond(take_users(state, users), slates_UK[users, :length])
            answers.append(_padded(response, slates_UK.shape[1] - length))
            states.append(after)
        back = np.argsort(np.concatenate(groups))
        return take_users(cat_users(answers), back), take_users(cat_users(states), back)


def _padded(response: Response, places: int) -> Response:
    """Responses with additional places, which the users did not reach."""
    names = ("behaviours_UKB", "watch_s_UK", "examined_UK")
    columns = {name: getattr(response, name) for name in names}
    more = {n: np.zeros((len(c), places, *c.shape[2:]), c.dtype) for n, c in columns.items()}
    return replace(response, **{n: np.concatenate([c, more[n]], axis=1) for n, c in columns.items()})
