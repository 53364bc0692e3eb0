"""Splits a log by a hash of the user's id, by time, or by each user's last session or items.

Sessions are split for agents that are aligned; single items for retrieval, where an agent predicts the next item. For
retrieval, training uses a log without the items to be predicted. Histories are read from the whole log up to the
target's row. So a test target's history ends with the validation target, as it would in use.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, BoolArray, Event, EventLog, LoggedSessions
from feedgym.data.sessions import rows_where


class Dated(Protocol):
    """N rows, each with a time."""

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def start_s_N(self) -> NDArray[np.float64]:
        """Seconds on the log's clock."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSplit:
    """Rows of an event log's users in three disjoint parts that cover all.

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
    """Masks over N sessions for three disjoint parts that cover all.

    Attributes:
        train_N: bool.
        validation_N: bool.
        held_out_N: bool.
    """

    train_N: BoolArray
    validation_N: BoolArray
    held_out_N: BoolArray


def split_users(user_ids_U: NDArray, *, validation: float = 0.1, held_out: float = 0.1, seed: int = 0) -> UserSplit:
    """Splits users by a hash of their id, so that a user stays in the same part when others come or go.

    Args:
        user_ids_U: ids outside feedgym (int or str).
        validation: expected share of users for choosing settings.
        held_out: expected share of users for the final figures.
        seed: another seed gives another split.

    Raises:
        ValueError: shares are negative or leave no user to train on.
    """
    if min(validation, held_out) < 0 or validation + held_out >= 1:
        raise ValueError(f"Shares {validation} and {held_out} must be >= 0 and sum to less than 1; lower them.")
    luck_U = user_luck(user_ids_U, seed)
    return UserSplit(
        train_idx=np.flatnonzero(luck_U >= validation + held_out),
        validation_idx=np.flatnonzero((luck_U >= held_out) & (luck_U < validation + held_out)),
        held_out_idx=np.flatnonzero(luck_U < held_out),
    )


def user_luck(user_ids_U: NDArray, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1] per user, which depends only on their id and the seed."""
    import pandas as pd

    # Hashed as text, because the seed keys only the hash of strings, and so that 7 and "7" are one user.
    text = np.asarray(user_ids_U).astype(str).astype(object)
    return pd.util.hash_array(text, hash_key=f"{seed % 10**16:016d}", categorize=False) / 2.0**64


def split_time(sessions: Dated, *, validation: float = 0.1, held_out: float = 0.1) -> SessionSplit:
    """Splits sessions at two times: train before the first, held out from the second on.

    Args:
        sessions: N sessions, or rows of candidates.
        validation: share of sessions between the two times.
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

    Users with fewer than three sessions are used only for training.

    Args:
        sessions: N sessions sorted by user and time, as the functions of :mod:`feedgym.data.sessions` return them.
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
    """The log's events before a time, for training when the rest is held out.

    No user is dropped, and profile events stay, because a profile has no time of its own.
    """
    kept = (log.timestamp_s < time_s) | (log.event == Event.PROFILE)
    return keep_events(log, kept)


def keep_events(log: EventLog, kept: BoolArray) -> EventLog:
    """The log's events where ``kept`` is true; no user is dropped."""
    offsets = np.concatenate([[0], np.cumsum(kept)])[log.offsets_U1].astype(np.int64)
    return replace(log, offsets_U1=offsets, **_events(log, kept))


def without_last(log: EventLog, count: int) -> EventLog:
    """The log without each user's last ``count`` impressions, which a leave-one-out split holds out."""
    shown = np.flatnonzero(log.event == Event.IMPRESSION)
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets_U1))[shown]
    from_end = np.searchsorted(user, user, side="right") - np.arange(len(user))
    kept = np.ones(log.num_events, dtype=bool)
    kept[shown[from_end <= count]] = False
    return keep_events(log, kept)


RANDOM = "random"
"""Name in ``EventLog.extra`` of the flag for exposures that were drawn at random, independently of the user."""


def random_exposures(log: EventLog) -> BoolArray:
    """True for examined exposures that were drawn at random; figures on them have no exposure bias.

    bool [rows], all false if the log has no such flag (KuaiRand's ``log_random_*`` gives one).
    """
    drawn = log.extra.get(RANDOM, np.zeros(log.num_events, np.float32)) == 1
    return drawn & (log.event == Event.IMPRESSION) & log.examined


# ---------------------------------------------------------------- splits of single items


@dataclass(frozen=True, kw_only=True, eq=False)
class NextItems:
    """N items that users took next, to be predicted from the events before them in the original log.

    Attributes:
        user_idx_N: int64 the user's row in the log.
        row_N: int64 the target's row in the log, the exclusive end of its history.
        item_id_N: int64.
        time_s_N: float64 the time of the target and of its request, seconds.
    """

    user_idx_N: NDArray[np.int64]
    row_N: NDArray[np.int64]
    item_id_N: NDArray[np.int64]
    time_s_N: NDArray[np.float64]

    @classmethod
    def at(cls, log: EventLog, row_N: NDArray) -> Self:
        """Makes targets of some rows of a log."""
        user = np.searchsorted(log.offsets_U1, row_N, side="right") - 1
        return cls(
            user_idx_N=user.astype(np.int64),
            row_N=row_N.astype(np.int64),
            item_id_N=log.item_id[row_N].astype(np.int64),
            time_s_N=log.timestamp_s[row_N],
        )

    def rows(self, idx: NDArray | slice) -> NextItems:
        """The targets at ``idx`` (a slice, an index or a boolean array)."""
        return NextItems(**{f.name: getattr(self, f.name)[idx] for f in fields(self)})

    def __len__(self) -> int:
        return len(self.row_N)


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemSplit:
    """A log cut for retrieval.

    Attributes:
        name: of the protocol, for tables.
        log: the whole log.
        end_U: int64 rows of the log where the users' training events end.
        validation: targets for early stopping and for choosing settings.
        test: targets for the final figures.
    """

    name: str
    log: EventLog
    end_U: NDArray[np.int64]
    validation: NextItems
    test: NextItems

    @property
    def is_train(self) -> BoolArray:
        """True for the log's training events and for all profiles; bool [rows]."""
        begin_U, next_U = self.log.offsets_U1[:-1], self.log.offsets_U1[1:]
        sizes_U2 = np.stack([self.end_U - begin_U, next_U - self.end_U], axis=1)
        before = np.repeat(np.tile([True, False], len(self.end_U)), sizes_U2.ravel())
        return before | (self.log.event == Event.PROFILE)

    @property
    def train(self) -> EventLog:
        """The same users' training events as a log of their own, which is a copy; no user is dropped."""
        return keep_events(self.log, self.is_train)

    def shown_I(self, num_items: int) -> NDArray[np.int64]:
        """Examined exposures of each item in training, for the popularity of items."""
        shown = self.is_train & (self.log.event == Event.IMPRESSION) & self.log.examined
        return np.bincount(self.log.item_id[shown], minlength=num_items)


def leave_one_out(log: EventLog, *, behaviours: tuple[str, ...] = ("click",), min_items: int = 3) -> ItemSplit:
    """Takes each user's last item for the test, the one before it for validation, and trains on everything before both.

    Args:
        log: the event log.
        behaviours: an examined exposure with any of these is an item taken.
        min_items: users with fewer items are used only for training; at least 3, so that every target
            has a history.

    Raises:
        ValueError: an unknown behaviour, or no user has enough items.
    """
    if min_items < 3:
        raise ValueError(f"min_items is {min_items} and must be at least 3 (two targets and a history); raise it.")
    row = _taken(log, behaviours)
    end_U1 = np.searchsorted(row, log.offsets_U1.astype(row.dtype))
    judged_U = np.diff(end_U1) >= min_items
    if not judged_U.any():
        raise ValueError(f"No user has {min_items} items with {' or '.join(behaviours)}; give a longer log.")
    last_N = end_U1[1:][judged_U] - 1
    train_end_U = log.offsets_U1[1:].copy()
    train_end_U[judged_U] = row[last_N - 1]
    return ItemSplit(
        name="leave-one-out",
        log=log,
        end_U=train_end_U,
        validation=NextItems.at(log, row[last_N - 1]),
        test=NextItems.at(log, row[last_N]),
    )


def temporal_split(
    log: EventLog,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    behaviours: tuple[str, ...] = ("click",),
    targets: Literal["first", "all"] = "first",
) -> ItemSplit:
    """Cuts all users at two times: train before the first, validation targets between them, test targets after.

    As in real use, training uses nothing that happened to any user after the first time; leave-one-out trains on other
    users' futures. Targets without any examined event before them are left out.

    Args:
        log: the event log.
        validation: share of the items taken between the two times.
        test: share of the items taken after the second time.
        behaviours: an examined exposure with any of these is an item taken.
        targets: in each part the user's first item, or all items (each with the earlier ones in its history).

    Raises:
        ValueError: the log has no times, shares leave nothing, or an unknown behaviour.
    """
    if not log.has_time:
        raise ValueError("The log has no times, only the order of events, so no time can cut it; use leave_one_out.")
    if min(validation, test) <= 0 or validation + test >= 1:
        raise ValueError(f"Shares {validation} and {test} must be above 0 and sum to less than 1; change them.")
    row = _taken(log, behaviours)
    user = np.searchsorted(log.offsets_U1, row, side="right") - 1
    ordered_s = np.sort(log.timestamp_s[row])
    first_s, second_s = (ordered_s[int(len(row) * (1 - share))] for share in (validation + test, test))
    seen = np.cumsum((log.event == Event.IMPRESSION) & log.examined)
    before = np.concatenate([[0], seen])
    has_history = before[row] > before[log.offsets_U1[user]]  # an examined event of the user lies before the row
    row, user = row[has_history], user[has_history]
    time_s = log.timestamp_s[row]
    parts = []
    for begin_s, end_s in ((first_s, second_s), (second_s, np.inf)):
        within = (time_s >= begin_s) & (time_s < end_s)
        chosen, owner = row[within], user[within]
        parts.append(NextItems.at(log, chosen[np.diff(owner, prepend=-1) != 0] if targets == "first" else chosen))
    if not all(map(len, parts)):
        raise ValueError("A part of the split has no targets: too many events share one time; change the shares.")
    name = f"split at two times, {'first item' if targets == 'first' else 'every item'} after each"
    num_before = np.concatenate([[0], np.cumsum(log.timestamp_s < first_s)])
    end_U = log.offsets_U1[:-1] + np.diff(num_before[log.offsets_U1])
    return ItemSplit(name=name, log=log, end_U=end_U, validation=parts[0], test=parts[1])


def _taken(log: EventLog, behaviours: tuple[str, ...]) -> NDArray[np.integer]:
    """Rows of examined exposures with any of the behaviours."""
    if unknown := [name for name in behaviours if name not in BEHAVIOUR_IDX]:
        raise ValueError(f"Unknown behaviour {unknown[0]!r}; the behaviours are {', '.join(BEHAVIOURS)}.")
    done = log.behaviours[:, [BEHAVIOUR_IDX[name] for name in behaviours]].any(axis=1)
    row = rows_where((log.event == Event.IMPRESSION) & log.examined & done)
    if not len(row):
        raise ValueError(f"No exposure has {' or '.join(behaviours)}; name behaviours that the log has.")
    return row
