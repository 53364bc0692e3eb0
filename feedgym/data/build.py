"""Turns flat exposures, the form of most logs, into event streams with profiles, logins and logouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, Event, EventLog, FloatArray

if TYPE_CHECKING:
    import pandas as pd

VISIT_GAP_S = 1800.0
"""A pause longer than this (half an hour) between two exposures ends a visit."""


def cut_visits(user_idx: NDArray, timestamp_s: NDArray, gap_s: float = VISIT_GAP_S) -> BoolArray:
    """Flags the exposures that begin a visit: a user's first, or more than ``gap_s`` seconds after the one before.

    Args:
        user_idx: user of every exposure; rows sorted by user and time.
        timestamp_s: time of every exposure.
        gap_s: the longest pause inside a visit, seconds.
    """
    new_user = np.diff(user_idx, prepend=-1) != 0
    return new_user | (np.diff(timestamp_s, prepend=-np.inf) > gap_s)


def assemble_log(
    *,
    user_ids_U: NDArray,
    profile_UF: NDArray,
    profile_names: tuple[str, ...],
    profile_sizes: tuple[int, ...],
    user_idx: NDArray,
    timestamp_s: NDArray,
    item_id: NDArray,
    watch_s: FloatArray,
    behaviours: NDArray[np.uint8],
    new_visit: BoolArray,
    examined: BoolArray | None = None,
    propensity: FloatArray | None = None,
    without_login: BoolArray | None = None,
    extra: Mapping[str, NDArray] | None = None,
    has_time: bool = True,
) -> EventLog:
    """Adds a profile event before every user's exposures, a login before every visit and a logout after it.

    The login has the time of the first exposure. The logout comes when the last item was watched, or at the next login
    if that is earlier.

    Args:
        user_ids_U: ids outside feedgym.
        profile_UF: profile fields.
        profile_names: their names.
        profile_sizes: their cardinalities.
        user_idx: user of every exposure; rows sorted by user and time.
        timestamp_s: time of every exposure.
        item_id: dense item id of every exposure.
        watch_s: seconds watched.
        behaviours: [rows, B].
        new_visit: true where the exposure begins a visit.
        examined: true where the user reached the item; all are examined if None.
        propensity: the logging policy's probability; unknown if None.
        without_login: true for rows whose visits get neither login nor logout, because they are history only; the first
            row of a visit decides.
        extra: further feedback for every exposure.
        has_time: False if the times give only the order.

    Raises:
        ValueError: a visit has more exposures than ``position`` can number.
    """
    rows, users = len(user_idx), len(user_ids_U)
    new_visit = new_visit | (np.diff(user_idx, prepend=-1) != 0)
    first = np.flatnonzero(new_visit)
    last = np.append(first[1:], rows) - 1
    visit_user, begin_s = user_idx[first], timestamp_s[first]
    visit_number = np.arange(len(first)) - np.searchsorted(visit_user, visit_user)
    next_login_s = np.where(np.append(visit_user[1:], -1) == visit_user, np.append(begin_s[1:], np.inf), np.inf)
    logout_s = np.minimum(timestamp_s[last] + watch_s[last], next_login_s)
    profile_s = np.zeros(users)
    profile_s[visit_user[::-1]] = begin_s[::-1]  # the earliest visit is written last and stays
    logged = np.flatnonzero(~without_login[first]) if without_login is not None else np.arange(len(first))

    visit = np.cumsum(new_visit) - 1
    size, limit = np.bincount(visit), np.iinfo(np.int16).max + 1
    if size.max() > limit:
        raise ValueError(
            f"User {user_ids_U[visit_user[size.argmax()]]} has a visit of {size.max()} exposures, but only {limit} can "
            f"be numbered; give session_id or timestamp to cut it."
        )
    user = np.concatenate([np.arange(users), visit_user[logged], user_idx, visit_user[logged]])
    session = np.concatenate([np.full(users, -1), visit_number[logged], visit_number[visit], visit_number[logged]])
    kinds = (Event.PROFILE, Event.LOGIN, Event.IMPRESSION, Event.LOGOUT)
    event = np.repeat(np.array(kinds, dtype=np.int8), [users, len(logged), rows, len(logged)])
    time_s = np.concatenate([profile_s, begin_s[logged], timestamp_s, logout_s[logged]])
    order = np.lexsort((event, session, user))  # stable: exposures keep their order
    event = event[order]
    shown = event == Event.IMPRESSION

    def column(values: NDArray, fill: float) -> NDArray:
        out = np.full((len(event), *values.shape[1:]), fill, dtype=values.dtype)
        out[shown] = values
        return out

    return EventLog(
        user_ids_U=user_ids_U,
        offsets_U1=np.searchsorted(user[order], np.arange(users + 1)).astype(np.int64),
        profile_UF=profile_UF.astype(np.int64),
        profile_names=profile_names,
        profile_sizes=profile_sizes,
        timestamp_s=time_s[order].astype(np.float64),
        event=event,
        session_id=session[order].astype(np.int32),
        position=column((np.arange(rows) - first[visit]).astype(np.int16), -1),
        item_id=column(item_id.astype(np.int32), -1),
        watch_s=column(watch_s.astype(np.float32), 0),
        examined=column(np.ones(rows, dtype=bool) if examined is None else examined, False),
        behaviours=column(behaviours, 0),
        propensity=column(np.full(rows, np.nan, np.float32) if propensity is None else propensity, np.nan),
        extra={name: column(values.astype(np.float32), 0) for name, values in (extra or {}).items()},
        has_time=has_time,
    )


def encode_profile(table: pd.DataFrame) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Profile fields as integers: 0 for an empty value, then the column's values in order.

    Returns:
        The codes [rows, F] and the F cardinalities.
    """
    import pandas as pd

    codes, sizes = np.zeros(table.shape, dtype=np.int64), []
    for f, name in enumerate(table):
        code, values = pd.factorize(table[name], sort=True)
        codes[:, f] = code + 1
        sizes.append(len(values) + 1)
    return codes, tuple(sizes)
