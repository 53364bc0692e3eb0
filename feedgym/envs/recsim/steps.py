"""What RecSim's three families share: one visit is one of RecSim's steps, and its slate holds at most one click."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, BoolArray, Catalog, IntArray
from feedgym.protocols import Response, take_users

STEP_GAP_S = 1.0
"""Seconds between an answer and the next slate. RecSim's steps follow each other at once; our clock must move."""

TRAITS = 0
"""Salt that keeps who a user is apart from the luck of their visits."""

BLOCK_CELLS = 2**21
"""Users by items that an oracle looks at in one go; its choices do not depend on it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RecSimState:
    """U users between two steps; each family adds who they are.

    Attributes:
        seed_U: uint64 the user's luck.
        visit_U: int64 steps answered.
        time_s_U: float64 when the next step begins.
        profile_UF: int64 what a recommender may know of the user.
    """

    seed_U: NDArray[np.uint64]
    visit_U: NDArray[np.int64]
    time_s_U: NDArray[np.float64]
    profile_UF: NDArray[np.int64]


def fresh(seeds_U: NDArray[np.uint64]) -> dict[str, NDArray]:
    """The columns in which users before their first step are alike."""
    num_users = len(seeds_U)
    return {
        "seed_U": np.array(seeds_U, np.uint64),
        "visit_U": np.zeros(num_users, np.int64),
        "time_s_U": np.zeros(num_users),
    }


def documents(content_IE: NDArray, topic_I: IntArray, duration_s_I: NDArray) -> Catalog:
    """The catalogue of RecSim's documents, which have no authors and are all there from the beginning."""
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
    """The response of users of whom each took at most one item.

    Args:
        position_U: what they took, -1 for nothing.
        examined_UK: what they saw.
        watch_s_U: seconds spent with the item taken.
        to_the_end_U: whether that was all of it; a long view, then.
        idle_s: seconds that a slate takes of which nothing is taken.
        churned_U: this was their last step.
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
    """When the next step begins."""
    return time_s_U + response.elapsed_s_U + response.return_gap_s_U


def by_blocks(
    choose: Callable[[Any, int], NDArray[np.int64]], state: Any, session_length: int, num_items: int
) -> NDArray[np.int64]:
    """Sessions [U, K] by ``choose(state, K)``, which makes arrays of users by items, a block of users at a time.

    Raises:
        ValueError: there are fewer items than the session is long.
    """
    if not 1 <= session_length <= num_items:
        raise ValueError(f"A session of {session_length} different items needs as many items; have 1..{num_items}.")
    num_users = len(state.seed_U)
    sessions_UK = np.empty((num_users, session_length), np.int64)
    block = max(1, BLOCK_CELLS // num_items)
    for start in range(0, num_users, block):
        rows = np.arange(start, min(start + block, num_users))
        sessions_UK[rows] = choose(take_users(state, rows), session_length)
    return sessions_UK


def best(value_UI: NDArray, session_length: int) -> NDArray[np.int64]:
    """The items of greatest value, best first, [U, K]."""
    if session_length == value_UI.shape[1]:
        return np.argsort(-value_UI, axis=1, kind="stable")
    top_UK = np.argpartition(-value_UI, session_length, axis=1)[:, :session_length]
    order_UK = np.argsort(-np.take_along_axis(value_UI, top_UK, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top_UK, order_UK, axis=1)
