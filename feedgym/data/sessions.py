"""Cuts sessions and histories out of an event log, and filters the sessions that are worth learning from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.batches import DatedEventBatch, EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, DAY_S, BoolArray, Catalog, Event, EventLog, LoggedSessions
from feedgym.ranges import CountOrZero, Ranged, Seconds, SomeShare

if TYPE_CHECKING:
    from torch import Tensor

POSITIVE = ("long_view", "like", "follow", "comment", "forward")
"""The behaviours that make an exposure positive by default."""

MAX_WATCH_FRACTION = 5.0
ROWS_AT_ONCE = 2**20
"""Rows whose int64 numbers are in memory at one time."""
WEEK_DAYS = 7


def user_of_rows(log: EventLog) -> NDArray[np.int64]:
    """Row 0..U-1 of the user of every event."""
    return np.repeat(np.arange(log.num_users), np.diff(log.offsets_U1))


def rows_where(chosen: BoolArray) -> NDArray:
    """The chosen rows of a log in order, as int32 where they fit, which takes half the memory of ``flatnonzero``."""
    rows = np.empty(np.count_nonzero(chosen), np.int32 if len(chosen) < 2**31 else np.int64)
    done = 0
    for begin in range(0, len(chosen), ROWS_AT_ONCE):
        some = np.flatnonzero(chosen[begin : begin + ROWS_AT_ONCE])
        rows[done : done + len(some)] = some + begin
        done += len(some)
    return rows


def logged_sessions(log: EventLog, session_length: int) -> LoggedSessions:
    """The visits of a log as rows of K items: longer visits become several rows, shorter ones are padded.

    A visit begins at a login and ends before the user's next login. Impressions outside a visit (a history that was
    recorded without sessions) belong to no row, and visits without an impression are left out. Items that a visit
    showed before a row are part of the row's history.

    Args:
        log: the event log.
        session_length: K.

    Returns:
        N sessions in the log's order. The return gap is known only in a visit's last row.

    Raises:
        ValueError: ``session_length`` is below 1, or the log has no login.
    """
    _check_length(session_length)
    login = np.flatnonzero(log.event == Event.LOGIN)
    if not len(login):
        raise ValueError("The log has no login event, so it has no visits; cut its sessions with positive_sessions.")
    user = user_of_rows(log)
    visit = np.cumsum(log.event == Event.LOGIN) - 1
    row = np.flatnonzero((log.event == Event.IMPRESSION) & (visit >= 0))
    # Rows of a user before their first login would be assigned to the previous user.
    row = row[user[row] == user[login[visit[row]]]]
    visit = visit[row]
    begins = np.flatnonzero(np.diff(visit, prepend=-1) != 0)
    place = np.arange(len(row)) - np.repeat(begins, np.diff(np.append(begins, len(row))))
    first = np.flatnonzero(place % session_length == 0)
    visit_N, opens_N = visit[first], place[first] == 0
    session = np.cumsum(place % session_length == 0) - 1
    # A visit's first row begins at its login, the others at their first item.
    begin_N = np.where(opens_N, login[visit_N], row[first])
    closes_N = np.append(visit_N[1:] != visit_N[:-1], True) if len(visit_N) else opens_N
    return_gap_s_N = np.where(closes_N, _gap_after_visits(log, login, user)[visit_N], np.nan)
    return _gather(log, begin_N, user[begin_N], row, session, place % session_length, session_length, return_gap_s_N)


def _gap_after_visits(log: EventLog, login: NDArray, user: NDArray) -> NDArray[np.float64]:
    """Seconds from each visit's last event (the row before the user's next login) to that login; NaN if none came."""
    end = np.minimum(np.append(login[1:], log.num_events), log.offsets_U1[user[login] + 1])
    comes_back = end < log.offsets_U1[user[login] + 1]
    next_login_s = log.timestamp_s[np.minimum(end, log.num_events - 1)]
    return np.where(comes_back, next_login_s - log.timestamp_s[end - 1], np.nan)


def positive_sessions(
    log: EventLog,
    session_length: int,
    *,
    behaviours: tuple[str, ...] = POSITIVE,
    max_gap_s: float | None = None,
    min_items: int | None = None,
) -> LoggedSessions:
    """Cuts target sessions from logs without sessions: a user's positive exposures in consecutive windows of K.

    Windows do not overlap and are counted backwards from the user's latest positive. So an incomplete window is the
    oldest one, whose history is the shortest. Each item counts once per user, at its first positive exposure, so the
    items of a session differ. Everything before a window's first row, positive or not, is its history.

    Args:
        log: the event log.
        session_length: K.
        behaviours: an examined exposure with any of these is positive.
        max_gap_s: a longer time between two positives ends a window; None for logs where only the order is known.
        min_items: windows with fewer items are left out; None keeps only full ones.

    Returns:
        N sessions in the log's order. ``row_N`` and ``start_s_N`` are those of the first target; the return gap is NaN,
        since windows are not visits.

    Raises:
        ValueError: an unknown behaviour, a length below 1, or a log without a single positive.
    """
    _check_length(session_length)
    min_items = session_length if min_items is None else min_items
    user = user_of_rows(log)
    row = _first_positives(log, user, behaviours)
    starts = np.diff(user[row], prepend=-1) != 0
    if max_gap_s is not None:
        starts |= np.diff(log.timestamp_s[row], prepend=-np.inf) > max_gap_s
    segment = np.cumsum(starts) - 1
    size = np.bincount(segment)
    from_end = (np.cumsum(size))[segment] - 1 - np.arange(len(row))
    window = segment * (size.max() // session_length + 1) - from_end // session_length
    _, first, session, count = np.unique(window, return_index=True, return_inverse=True, return_counts=True)
    place = np.arange(len(row)) - first[session]
    begin = row[first]
    gaps_s = np.full(len(first), np.nan)
    sessions = _gather(log, begin, user[begin], row, session, place, session_length, gaps_s)
    return sessions.rows(count >= min_items)


def _first_positives(log: EventLog, user: NDArray, behaviours: tuple[str, ...]) -> NDArray[np.int64]:
    """Rows of each user's first positive exposure to each item, in the log's order."""
    if unknown := [name for name in behaviours if name not in BEHAVIOUR_IDX]:
        raise ValueError(f"Unknown behaviour {unknown[0]!r}; the behaviours are {', '.join(BEHAVIOURS)}.")
    chosen = log.behaviours[:, [BEHAVIOUR_IDX[name] for name in behaviours]].any(axis=1)
    row = np.flatnonzero((log.event == Event.IMPRESSION) & log.examined & chosen)
    if not len(row):
        present = [name for b, name in enumerate(BEHAVIOURS) if log.behaviours[:, b].any()]
        raise ValueError(f"No exposure has any of {behaviours}; the log has {present}: choose behaviours= from those.")
    key = user[row] * (int(log.item_id.max()) + 1) + log.item_id[row]
    return row[np.sort(np.unique(key, return_index=True)[1])]


def _gather(
    log: EventLog,
    begin_N: NDArray,
    user_idx_N: NDArray,
    row: NDArray,
    session: NDArray,
    place: NDArray,
    session_length: int,
    return_gap_s_N: NDArray,
) -> LoggedSessions:
    """Sessions from impressions: log row ``row[i]`` is item ``place[i]`` of session ``session[i]``."""
    kept = place < session_length
    at, row = (session[kept], place[kept]), row[kept]

    def scatter(values: NDArray, fill: float) -> NDArray:
        out = np.full((len(begin_N), session_length, *values.shape[1:]), fill, dtype=values.dtype)
        out[at] = values[row]
        return out

    return LoggedSessions(
        user_idx_N=user_idx_N.astype(np.int64),
        row_N=begin_N.astype(np.int64),
        start_s_N=log.timestamp_s[begin_N],
        item_ids_NK=scatter(log.item_id, -1),
        examined_NK=scatter(log.examined, False),
        watch_s_NK=scatter(log.watch_s, 0),
        behaviours_NKB=scatter(log.behaviours, 0),
        propensity_NK=scatter(log.propensity, np.nan),
        return_gap_s_N=return_gap_s_N,
    )


def exposures_as_sessions(log: EventLog, row_N: NDArray[np.int64]) -> LoggedSessions:
    """Single exposures as sessions of one item (K = 1), for what judges exposures one by one.

    Args:
        log: the event log.
        row_N: rows of the log, impressions.
    """
    return LoggedSessions(
        user_idx_N=user_of_rows(log)[row_N],
        row_N=row_N,
        start_s_N=log.timestamp_s[row_N],
        item_ids_NK=log.item_id[row_N, None],
        examined_NK=log.examined[row_N, None],
        watch_s_NK=log.watch_s[row_N, None],
        behaviours_NKB=log.behaviours[row_N, None],
        propensity_NK=log.propensity[row_N, None],
        return_gap_s_N=np.full(len(row_N), np.nan),
    )


def histories(
    log: EventLog,
    catalog: Catalog,
    user_idx_N: NDArray,
    row_N: NDArray,
    now_s_N: NDArray,
    length: int,
    *,
    dated: bool = False,
    memory: int = 0,
) -> EventBatch:
    """Builds what a recommender knew at a request: each user's last T examined items before a row of the log.

    It means the same as the environment's observation. Items that were served but never seen do not appear, events are
    right-padded, and the gap of the last one runs to the request.

    Args:
        log: the event log.
        catalog: the items, for their durations.
        user_idx_N: users, rows of the log's user columns.
        row_N: log rows, exclusive ends of the histories (``LoggedSessions.row_N``).
        now_s_N: time of the request, seconds (``LoggedSessions.start_s_N``).
        length: T.
        dated: include the time of the requests, for agents that serve only items that exist then.
        memory: number of items examined before the T events that are known too (``earlier_UJ``).

    Returns:
        N histories, dated ones on demand; users without an examined event have an empty mask.

    Raises:
        ValueError: ``length`` is below 1.
    """
    return LoggedHistories(log, catalog, user_idx_N, row_N, now_s_N, length, dated=dated, memory=memory).rows(
        slice(None)
    )


class LoggedHistories:
    """Histories of N requests that are built from the log when they are asked for, some rows at a time.

    A row takes 24 bytes, instead of 45 bytes per event in :func:`histories`, so millions of requests fit into memory.

    Args:
        log: as for :func:`histories`, like all other arguments.

    Attributes:
        seen: the log's rows with an examined item.
        first_U1: number of those before each user's rows, and of all.
        end_N: number of those before each request.
    """

    def __init__(
        self,
        log: EventLog,
        catalog: Catalog,
        user_idx_N: NDArray,
        row_N: NDArray,
        now_s_N: NDArray,
        length: int,
        *,
        dated: bool = False,
        memory: int = 0,
    ) -> None:
        if length < 1:
            raise ValueError(f"The history length is {length} and must be at least 1; raise it.")
        self.log, self.catalog, self.length, self.dated, self.memory = log, catalog, length, dated, memory
        self.user_idx_N, self.now_s_N = user_idx_N, np.asarray(now_s_N, np.float64)
        self.seen = rows_where((log.event == Event.IMPRESSION) & log.examined)
        # Searched for in their own type, because otherwise they would be copied into the other one.
        dtype = self.seen.dtype
        self.first_U1 = np.searchsorted(self.seen, log.offsets_U1.astype(dtype))
        self.end_N = np.searchsorted(self.seen, np.asarray(row_N).astype(dtype))

    def __len__(self) -> int:
        return len(self.end_N)

    @property
    def lengths_N(self) -> Tensor:
        """Events of each history, at most T."""
        import torch

        return torch.from_numpy(np.minimum(self.end_N - self.first_U1[self.user_idx_N], self.length))

    def rows(self, idx: Any) -> EventBatch:
        """Builds the histories at ``idx`` (slice, index or boolean array or tensor)."""
        import torch

        idx = idx if isinstance(idx, slice) else np.asarray(idx)
        log, seen, user_idx_N = self.log, self.seen, self.user_idx_N[idx]
        end_N, now_s_N = self.end_N[idx], self.now_s_N[idx]
        first_N = self.first_U1[user_idx_N]
        begin_N = np.maximum(first_N, end_N - self.length)
        size_N = end_N - begin_N
        place_T = np.arange(self.length)
        mask_NT = place_T < size_N[:, None]
        row_NT = (
            seen[np.where(mask_NT, begin_N[:, None] + place_T, 0)] if len(seen) else np.zeros(mask_NT.shape, np.int64)
        )
        item_NT = np.where(mask_NT, log.item_id[row_NT], 0)
        fraction_NT = np.clip(log.watch_s[row_NT] / self.catalog.duration_s_I[item_NT], 0, MAX_WATCH_FRACTION)
        time_NT = log.timestamp_s[row_NT]
        next_NT = np.concatenate([time_NT[:, 1:], np.zeros((len(time_NT), 1))], axis=1)
        next_NT = np.where(place_T == size_N[:, None] - 1, now_s_N[:, None], next_NT)
        batch = EventBatch(
            item_ids_UT=torch.from_numpy(item_NT.astype(np.int64)),
            behaviours_UTB=torch.from_numpy((log.behaviours[row_NT] * mask_NT[..., None]).astype(np.float32)),
            watch_fraction_UT=torch.from_numpy(np.where(mask_NT, fraction_NT, 0).astype(np.float32)),
            gap_s_UT=torch.from_numpy(np.where(mask_NT, next_NT - time_NT, 0).astype(np.float32)),
            mask_UT=torch.from_numpy(mask_NT),
            profile_UF=torch.from_numpy(log.profile_UF[user_idx_N].astype(np.int64)),
            time_of_day_U=torch.from_numpy(time_of_day(now_s_N)),
            earlier_UJ=_earlier(log, seen, first_N, begin_N, self.memory) if self.memory else None,
        )
        return DatedEventBatch(**vars(batch), time_s_U=torch.from_numpy(now_s_N)) if self.dated else batch


def _earlier(log: EventLog, seen: NDArray, first_N: NDArray, end_N: NDArray, memory: int) -> Tensor:
    """The last items [N, J] among the exposures ``seen`` from ``first_N`` to ``end_N``; -1 after the last one."""
    import torch

    begin_N = np.maximum(first_N, end_N - memory)
    place_J = np.arange(memory)
    there_NJ = place_J < (end_N - begin_N)[:, None]
    row_NJ = np.where(there_NJ, begin_N[:, None] + place_J, 0)
    item_NJ = log.item_id[seen[row_NJ]] if len(seen) else np.zeros(row_NJ.shape, np.int64)
    return torch.from_numpy(np.where(there_NJ, item_NJ, -1).astype(np.int64))


def time_of_day(time_s: NDArray) -> NDArray[np.float32]:
    """Hours in [0, 24) of times on the log's clock, whose zero is midnight."""
    hours = np.mod(time_s, DAY_S) / 3600
    # Rounding to float32 must not turn 23:59:59.99 into 24.
    return np.minimum(hours.astype(np.float32), np.nextafter(np.float32(24), np.float32(0)))


def weekday(time_s: NDArray) -> NDArray[np.int64]:
    """Days of the week 0..6 of times on the log's clock; 0 is the clock's first day (of Unix time, a Thursday)."""
    return np.floor(np.asarray(time_s) / DAY_S).astype(np.int64) % WEEK_DAYS


@dataclass(frozen=True, kw_only=True)
class SessionFilter(Ranged):
    """Conditions for sessions that are worth imitating (OneRec, arXiv:2502.18965; its technical report, 2506.13695)."""

    min_watched: CountOrZero = 5
    """Least number of items that were truly watched."""
    watched_s: Seconds = 3.0
    """Least seconds watched for an item to count as truly watched."""
    min_watch_s: Seconds = 30.0
    """Least total seconds watched in the session."""
    interactions: tuple[str, ...] = ("like", "follow", "comment", "forward")
    """Behaviours that count towards `min_interactions`."""
    min_interactions: CountOrZero = 1
    """Least number of those behaviours in the session; 0 requires none."""
    top_share: SomeShare = 1.0
    """Share of the passing sessions to keep, those with the most watch time (the technical report's RSFT: 0.5)."""


def quality_filter(sessions: LoggedSessions, config: SessionFilter | None = None) -> BoolArray:
    """True for sessions that pass OneRec's filter of sessions worth imitating.

    Args:
        sessions: N sessions.
        config: the conditions; all must hold.

    Returns:
        bool [N].

    Raises:
        ValueError: a condition that no session can meet, a share outside (0, 1], or an unknown behaviour.
    """
    config = config or SessionFilter()
    length = sessions.item_ids_NK.shape[1]
    if config.min_watched > length:
        raise ValueError(
            f"min_watched is {config.min_watched} but sessions have {length} items, so none can pass; lower it."
        )
    if unknown := [name for name in config.interactions if name not in BEHAVIOUR_IDX]:
        raise ValueError(f"Unknown behaviour {unknown[0]!r}; the behaviours are {', '.join(BEHAVIOURS)}.")
    columns = [BEHAVIOUR_IDX[name] for name in config.interactions]
    total_s_N = sessions.watch_s_NK.sum(axis=1)
    keep_N = (sessions.watch_s_NK >= config.watched_s).sum(axis=1) >= config.min_watched
    keep_N &= total_s_N >= config.min_watch_s
    keep_N &= sessions.behaviours_NKB[..., columns].sum(axis=(1, 2), dtype=np.int64) >= config.min_interactions
    passed = np.flatnonzero(keep_N)
    best = passed[np.argsort(-total_s_N[passed], kind="stable")]
    keep_N[best[int(np.ceil(config.top_share * len(passed))) :]] = False
    return keep_N


def _check_length(session_length: int) -> None:
    if session_length < 1:
        raise ValueError(f"The session length is {session_length} and must be at least 1; raise it.")
