"""Common part of RecSim's three families: one visit is one of RecSim's steps, with at most one click per slate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, BoolArray, Catalog, IntArray
from feedgym.protocols import Response, take_users

STEP_GAP_S = 1.0
"""Seconds between a response and the next slate. RecSim has no time between steps, but our clock must advance."""

TRAITS = 0
"""Salt that separates a user's traits from the random numbers of the visits."""

BLOCK_CELLS = 2**21
"""Users by items that an oracle processes at a time; its choices do not depend on it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecSimState:
    """U users between two steps; each family adds its own traits.

    Attributes:
        seed_U: uint64 key of the user's random numbers.
        visit_U: int64 number of steps so far.
        time_s_U: float64 start of the next step, seconds.
        profile_UF: int64 fields that a recommender may know about the user.
    """

    seed_U: NDArray[np.uint64]
    visit_U: NDArray[np.int64]
    time_s_U: NDArray[np.float64]
    profile_UF: NDArray[np.int64]


def fresh(seeds_U: NDArray[np.uint64]) -> dict[str, NDArray]:
    """The columns that are equal for all users before their first step."""
    num_users = len(seeds_U)
    return {
        "seed_U": np.array(seeds_U, np.uint64),
        "visit_U": np.zeros(num_users, np.int64),
        "time_s_U": np.zeros(num_users),
    }


def documents(content_IE: NDArray, topic_I: IntArray, duration_s_I: NDArray) -> Catalog:
    """The catalogue of RecSim's documents, which have no authors and exist from the beginning."""
    num_items = len(content_IE)
    return Catalog(
        raw_ids_I=np.arange(num_items),
        content_IE=content_IE.astype(np.float32),
        topic_I=topic_I.astype(np.int32),
        duration_s_I=duration_s_I.astype(np.float32),
        creator_I=np.arange(num_items),
        upload_s_I=np.zeros(num_items),
        content_from="RecSim's document observations",
    )


def one_click(
    position_U: NDArray[np.int64],
    examined_UK: BoolArray,
    *,
    watch_s_U: NDArray,
    to_the_end_U: BoolArray,
    idle_s: float,
    churned_U: BoolArray,
) -> Response:
    """Response of users who each took at most one item.

    Args:
        position_U: position of the item taken, -1 for none.
        examined_UK: items they saw.
        watch_s_U: seconds spent with the item taken.
        to_the_end_U: true if they watched all of it, a long view.
        idle_s: seconds that a slate takes if nothing is taken.
        churned_U: true if this was their last step.
    """
    rows_U = np.flatnonzero(position_U >= 0)
    place_U = position_U[rows_U]
    behaviours_UKB = np.zeros((*examined_UK.shape, len(BEHAVIOURS)), np.uint8)
    behaviours_UKB[rows_U, place_U, BEHAVIOUR_IDX["click"]] = 1
    behaviours_UKB[rows_U, place_U, BEHAVIOUR_IDX["long_view"]] = to_the_end_U[rows_U]
    watch_s_UK = np.zeros(examined_UK.shape, np.float32)
    watch_s_UK[rows_U, place_U] = watch_s_U[rows_U]
    return Response(
        behaviours_UKB=behaviours_UKB,
        watch_s_UK=watch_s_UK,
        examined_UK=examined_UK,
        elapsed_s_U=np.where(position_U >= 0, watch_s_U, idle_s).astype(np.float32),
        left_U=np.logical_not(examined_UK.all(axis=1)),
        return_gap_s_U=np.full(len(position_U), STEP_GAP_S, np.float32),
        churned_U=churned_U,
    )


def next_time_s(time_s_U: NDArray[np.float64], response: Response) -> NDArray[np.float64]:
    """Start of the next step."""
    return time_s_U + response.elapsed_s_U + response.return_gap_s_U


def by_blocks(
    choose: Callable[[Any, int], NDArray[np.int64]], state: Any, session_length: int, num_items: int
) -> NDArray[np.int64]:
    """Sessions [U, K] from ``choose(state, K)``, one block of users at a time, since it makes arrays of users by items.

    Raises:
        ValueError: there are fewer items than the session is long.
    """
    if not 1 <= session_length <= num_items:
        raise ValueError(f"A session of {session_length} different items needs that many items; choose 1..{num_items}.")
    num_users = len(state.seed_U)
    sessions_UK = np.empty((num_users, session_length), np.int64)
    block = max(1, BLOCK_CELLS // num_items)
    for start in range(0, num_users, block):
        rows = np.arange(start, min(start + block, num_users))
        sessions_UK[rows] = choose(take_users(state, rows), session_length)
    return sessions_UK


def best(value_UI: NDArray, session_length: int) -> NDArray[np.int64]:
    """The items of greatest value in descending order, [U, K]."""
    if session_length == value_UI.shape[1]:
        return np.argsort(-value_UI, axis=1, kind="stable")
    top_UK = np.argpartition(-value_UI, session_length, axis=1)[:, :session_length]
    order_UK = np.argsort(-np.take_along_axis(value_UI, top_UK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top_UK, order_UK, axis=1)
