"""Splits of users and of time: by a hash of the user's id, by a moment, or by each user's last session."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, Event, EventLog, LoggedSessions


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSplit:
    """Rows of an event log's users, three disjoint parts that cover all.

    Attributes:
        train_idx: int64.
        validation_idx: int64.
        held_out_idx: int64.
    """

    train_idx: NDArray[np.int64]
    validation_idx: NDArray[np.int64]
    held_out_idx: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionSplit:
    """Masks over N sessions, three disjoint parts that cover all.

    Attributes:
        train_N: bool.
        validation_N: bool.
        held_out_N: bool.
    """

    train_N: BoolArray
    validation_N: BoolArray
    held_out_N: BoolArray


def split_users(user_ids_U: NDArray, *, validation: float = 0.1, held_out: float = 0.1, seed: int = 0) -> UserSplit:
    """Splits users by a hash of their id, so that a user stays in their part when others come or go.

    Args:
        user_ids_U: ids outside feedgym (int or str).
        validation: expected share of users for choosing settings.
        held_out: expected share of users for the final figures.
        seed: another seed is another split.

    Raises:
        ValueError: shares are negative or leave no user to train on.
    """
    if min(validation, held_out) < 0 or validation + held_out >= 1:
        raise ValueError(f"Shares {validation} and {held_out} must be >= 0 and sum to less than 1; lower them.")
    # Hashed as text, for the seed keys the hash of strings alone, and so that 7 and "7" are one user.
    text = np.asarray(user_ids_U).astype(str).astype(object)
    hash_U = pd.util.hash_array(text, hash_key=f"{seed % 10**16:016d}", categorize=False)
    luck_U = hash_U / 2.0**64
    return UserSplit(
        train_idx=np.flatnonzero(luck_U >= validation + held_out),
        validation_idx=np.flatnonzero((luck_U >= held_out) & (luck_U < validation + held_out)),
        held_out_idx=np.flatnonzero(luck_U < held_out),
    )


def split_time(sessions: LoggedSessions, *, validation: float = 0.1, held_out: float = 0.1) -> SessionSplit:
    """Splits sessions at two moments: train before the first, held out from the second on.

    Args:
        sessions: N sessions.
        validation: share of sessions between the moments.
        held_out: share of sessions after the second.

    Raises:
        ValueError: shares are negative or leave nothing to train on.
    """
    if min(validation, held_out) < 0 or validation + held_out >= 1:
        raise ValueError(f"Shares {validation} and {held_out} must be >= 0 and sum to less than 1; lower them.")
    ordered_s = np.append(np.sort(sessions.start_s_N), np.inf)
    first_s, second_s = (ordered_s[round(len(sessions) * (1 - share))] for share in (validation + held_out, held_out))
    late_N = sessions.start_s_N >= second_s
    train_N = sessions.start_s_N < first_s
    return SessionSplit(train_N=train_N, validation_N=~train_N & ~late_N, held_out_N=late_N)


def leave_last_out(sessions: LoggedSessions) -> SessionSplit:
    """Holds out each user's last session, validates on the one before it and trains on the rest.

    Users with fewer than three sessions are trained on only.

    Args:
        sessions: N sessions sorted by user and time, as the functions of :mod:`feedgym.data.sessions` give them.
    """
    user = sessions.user_idx_N
    assert (np.diff(user) >= 0).all(), "sessions must be sorted by user"
    count = np.bincount(user, minlength=1)
    from_end = np.cumsum(count)[user] - 1 - np.arange(len(user))
    held_out_N = (from_end == 0) & (count[user] >= 3)
    validation_N = (from_end == 1) & (count[user] >= 3)
    return SessionSplit(train_N=~held_out_N & ~validation_N, validation_N=validation_N, held_out_N=held_out_N)


_USER_FIELDS = ("user_ids_U", "offsets_U1", "profile_UF", "profile_names", "profile_sizes")
_EVENT_FIELDS = tuple(f.name for f in fields(EventLog) if f.name not in (*_USER_FIELDS, "extra", "has_time"))


def _events(log: EventLog, rows: NDArray) -> dict[str, Any]:
    """The event columns at some rows, an index or a boolean array."""
    columns: dict[str, Any] = {name: getattr(log, name)[rows] for name in _EVENT_FIELDS}
    return columns | {"extra": {name: values[rows] for name, values in log.extra.items()}}


def take_users(log: EventLog, user_idx: NDArray) -> EventLog:
    """The log of the users at ``user_idx``, in that order."""
    user_idx = np.arange(log.num_users)[user_idx]
    size = np.diff(log.offsets_U1)[user_idx]
    offsets = np.concatenate([[0], np.cumsum(size)]).astype(np.int64)
    row = np.arange(offsets[-1]) + np.repeat(log.offsets_U1[user_idx] - offsets[:-1], size)
    ids, profile_UF = log.user_ids_U[user_idx], log.profile_UF[user_idx]
    return replace(log, user_ids_U=ids, profile_UF=profile_UF, offsets_U1=offsets, **_events(log, row))


def until(log: EventLog, time_s: float) -> EventLog:
    """The log's events before a moment: what may be learnt from when the rest is held out.

    No user is dropped, and profile events stay, for a profile has no time of its own.
    """
    kept = (log.timestamp_s < time_s) | (log.event == Event.PROFILE)
    return keep_events(log, kept)


def keep_events(log: EventLog, kept: BoolArray) -> EventLog:
    """The log's events where ``kept`` is true; no user is dropped."""
    offsets = np.concatenate([[0], np.cumsum(kept)])[log.offsets_U1].astype(np.int64)
    return replace(log, offsets_U1=offsets, **_events(log, kept))


def without_last(log: EventLog, count: int) -> EventLog:
    """The log without each user's last ``count`` impressions: whatever a leave-one-out split holds out is gone."""
    shown = np.flatnonzero(log.event == Event.IMPRESSION)
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets_U1))[shown]
    from_end = np.searchsorted(user, user, side="right") - np.arange(len(user))
    kept = np.ones(log.num_events, dtype=bool)
    kept[shown[from_end <= count]] = False
    return keep_events(log, kept)
