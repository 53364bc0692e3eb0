"""Measures repeats: items that users see again, favourites used up, and how few items make up everything served.

It needs only the sessions that an agent served, as arrays of visits by users by places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BoolArray

TOP_ITEMS = 20
"""Number of the most served items of a visit; their share is its concentration."""

FAVOURITES = 50
"""Number of a user's favourites, the items they would like most on arrival."""


def favourites_of(simulator: Any, state: Any) -> NDArray[np.int64] | None:
    """The items [U, N] that users would like most by the truth; None if the simulator does not offer them.

    Args:
        simulator: its method ``favourites(state, n) -> item ids [U, n]`` is called, if it has one.
        state: the users before their first visit.
    """
    if not hasattr(simulator, "favourites"):
        return None
    return simulator.favourites(state, min(FAVOURITES, simulator.catalog.num_items))


def first_times(items_VUK: NDArray[np.int64], examined_VUK: BoolArray) -> BoolArray:
    """Places where a user sees an item for the first time, bool [V, U, K].

    Args:
        items_VUK: the served items, -1 if the user had left.
        examined_VUK: which of them were seen.
    """
    user_VUK = np.broadcast_to(np.arange(items_VUK.shape[1])[None, :, None], items_VUK.shape)
    keys = user_VUK * (items_VUK.max(initial=0) + 1) + items_VUK
    seen = np.flatnonzero(examined_VUK)
    # Visits come first in the order of the array, so the first place of a key is its earliest time.
    _, first = np.unique(keys.ravel()[seen], return_index=True)
    first_X = np.zeros(items_VUK.size, bool)
    first_X[seen[first]] = True
    return first_X.reshape(items_VUK.shape)


def used_up(
    items_VUK: NDArray[np.int64], first_VUK: BoolArray, favourites_UN: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of each user's favourites that they have seen by the end of each visit, [V, U]."""
    size = max(items_VUK.max(initial=0), favourites_UN.max(initial=0)) + 1
    user_U1 = np.arange(items_VUK.shape[1])[:, None]
    liked_VUK = np.isin(user_U1 * size + items_VUK, user_U1 * size + favourites_UN)
    return (liked_VUK & first_VUK).sum(axis=2).cumsum(axis=0) / favourites_UN.shape[1]


def concentration(items_VUK: NDArray[np.int64], top: int = TOP_ITEMS) -> NDArray[np.float64]:
    """Share of each visit's served items that its ``top`` most served items hold, [V]; NaN if nothing was served."""
    share_V = np.full(len(items_VUK), np.nan)
    for visit, items_UK in enumerate(items_VUK):
        served = items_UK[items_UK >= 0]
        if len(served):
            share_V[visit] = np.sort(np.bincount(served))[-top:].sum() / len(served)
    return share_V
