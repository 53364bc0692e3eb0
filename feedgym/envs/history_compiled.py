"""The history after one more visit, compiled: each user's old events move, and the examined items follow them."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import FloatArray, IntArray
from feedgym.data.sessions import MAX_WATCH_FRACTION
from feedgym.envs.compiling import compiled, given
from feedgym.protocols import Response

Columns = namedtuple("Columns", "items_UT behaviours_UTB watch_fraction_UT time_s_UT length_U")
"""The columns of a :class:`feedgym.envs.history.History`."""

DTYPES = Columns(np.int64, np.int8, np.float32, np.float64, np.int64)
LONGEST = np.float32(MAX_WATCH_FRACTION)


def after(
    history: Any, login_s_U: NDArray, slates_UK: IntArray, response: Response, duration_s_I: FloatArray
) -> dict[str, NDArray]:
    """The columns of the history with the examined items of one more visit, in new arrays."""
    old = Columns(*(given(getattr(history, name), dtype) for name, dtype in DTYPES._asdict().items()))
    new = Columns(*map(np.empty_like, old))
    _append(
        old,
        new,
        given(login_s_U, np.float64),
        given(slates_UK, np.int64),
        given(response.behaviours_UKB, np.uint8),
        given(response.watch_s_UK, np.float32),
        given(response.examined_UK, bool),
        given(duration_s_I, np.float32),
    )
    return new._asdict()


@compiled()
def _append(old, new, login_s_U, slates_UK, behaviours_UKB, watch_s_UK, examined_UK, duration_s_I):
    num_users, length = old.items_UT.shape
    for u in range(num_users):
        num_new = 0
        for k in range(slates_UK.shape[1]):
            num_new += examined_UK[u, k]
        total = old.length_U[u] + num_new
        gone = max(total - length, 0)
        kept = max(old.length_U[u] - gone, 0)
        new.length_U[u] = total - gone
        for t in range(kept):
            new.items_UT[u, t] = old.items_UT[u, t + gone]
            new.watch_fraction_UT[u, t] = old.watch_fraction_UT[u, t + gone]
            new.time_s_UT[u, t] = old.time_s_UT[u, t + gone]
            for b in range(old.behaviours_UTB.shape[2]):
                new.behaviours_UTB[u, t, b] = old.behaviours_UTB[u, t + gone, b]
        spent_s, time_s = 0.0, login_s_U[u]
        for k in range(num_new):
            # As in ``event_times_s``, which adds the seconds up and takes the item's own away.
            spent_s += watch_s_UK[u, k]
            time_s = max(time_s, login_s_U[u] + spent_s - watch_s_UK[u, k])
            t = old.length_U[u] + k - gone
            if t < 0:
                continue
            item = slates_UK[u, k]
            new.items_UT[u, t], new.time_s_UT[u, t] = item, time_s
            fraction = watch_s_UK[u, k] / duration_s_I[item]
            new.watch_fraction_UT[u, t] = min(max(fraction, np.float32(0)), LONGEST)
            for b in range(old.behaviours_UTB.shape[2]):
                new.behaviours_UTB[u, t, b] = behaviours_UKB[u, k, b]
        for t in range(new.length_U[u], length):
            new.items_UT[u, t], new.time_s_UT[u, t], new.watch_fraction_UT[u, t] = 0, 0, 0
            for b in range(old.behaviours_UTB.shape[2]):
                new.behaviours_UTB[u, t, b] = 0
