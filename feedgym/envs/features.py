"""Computations of the wrappers as functions of batches: observations as vectors, points as the items near them.

They read only observations and the catalogue, which recommenders may know, and never the users' state.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from feedgym.data.events import BEHAVIOUR_IDX, BoolArray, Catalog, FloatArray, IntArray
from feedgym.data.sessions import POSITIVE, WEEK_DAYS
from feedgym.envs.history import Observation
from feedgym.protocols import too_few

BLOCK_CELLS = 2**22
"""Distances between points and items held at a time; keeps memory low. Results do not depend on it."""

DAY_HOURS = 24.0


def compact_state(
    observation: Observation,
    points_IE: FloatArray,
    topic_I: IntArray,
    profile_sizes: Sequence[int],
    *,
    half_life: float,
    satiation_hours: float,
) -> FloatArray:
    """Turns the observations of users into one vector each.

    The vector holds, in this order:

    - the profile, one-hot
    - the mean content of watched items, weighted by recency and by the share watched
    - the mean content of items that were liked, followed, commented, forwarded or viewed long, weighted by recency
    - rates of the B behaviours and the share watched, weighted by recency
    - the recent frequency of each topic, x / (1 + x) of a count that decays with time
    - sine and cosine of the time of day, recency of the last item, fill of the history window
    - the day of the week, one-hot, if observed
    - for a session under construction: its mean content, the shares of its topics, and the share that is filled

    Args:
        observation: observations of U users, with :class:`ItemByItem`'s keys or without.
        points_IE: contents of the items within [-1, 1]; see :func:`item_points`.
        topic_I: topics of the items, -1 where unknown.
        profile_sizes: cardinalities of the profile fields.
        half_life: number of later events after which an event counts half.
        satiation_hours: hours after which the count of a topic decays to 1/e.

    Returns:
        float32 [U, D] within [-1, 1].
    """
    items_UT, mask_UT = observation["history_items"], observation["history_mask"].astype(np.float32)
    behaviours_UTB = observation["history_behaviours"].astype(np.float32)
    length_U = mask_UT.sum(axis=1)
    newer_UT = length_U[:, None] - 1 - np.arange(items_UT.shape[1])
    recent_UT = mask_UT * np.exp2(-newer_UT.clip(0) / np.float32(half_life)).astype(np.float32)
    watched_UT = recent_UT * observation["history_watch_fraction"].clip(0, 1)
    pleased_UT = recent_UT * behaviours_UTB[:, :, [BEHAVIOUR_IDX[name] for name in POSITIVE]].max(axis=2)
    age_hours_UT = np.cumsum(observation["history_gap_s"][:, ::-1], axis=1, dtype=np.float64)[:, ::-1] / 3600
    lately_UT = mask_UT * np.exp(-age_hours_UT / satiation_hours)
    count_UM = _topic_counts(topic_I, items_UT, lately_UT)
    last_hours_U = age_hours_UT[np.arange(len(items_UT)), np.maximum(length_U.astype(int) - 1, 0)]
    angle_U1 = observation["time_of_day"] * (2 * np.pi / DAY_HOURS)
    columns: list[NDArray] = [
        *(np.eye(size)[observation["profile"][:, f]] for f, size in enumerate(profile_sizes)),
        _mean_point(points_IE, items_UT, watched_UT),
        _mean_point(points_IE, items_UT, pleased_UT),
        (recent_UT[:, :, None] * behaviours_UTB).sum(axis=1) / _positive(recent_UT.sum(axis=1))[:, None],
        watched_UT.sum(axis=1) / _positive(recent_UT.sum(axis=1)),
        count_UM / (1 + count_UM),
        np.sin(angle_U1),
        np.cos(angle_U1),
        np.exp(-last_hours_U / DAY_HOURS) * (length_U > 0),
        length_U / items_UT.shape[1],
    ]
    if "weekday" in observation:
        columns.append(np.eye(WEEK_DAYS)[observation["weekday"][:, 0]])
    if "slate" in observation:
        columns += _slate_columns(observation["slate"], points_IE, topic_I)
    state_UD = np.concatenate([column.reshape(len(items_UT), -1) for column in columns], axis=1)
    return state_UD.astype(np.float32).clip(-1, 1)  # means may leave the bounds by a rounding error


def _slate_columns(slate_UK: IntArray, points_IE: FloatArray, topic_I: IntArray) -> list[NDArray]:
    placed_UK = (slate_UK >= 0).astype(np.float32)
    items_UK, length = slate_UK.clip(0), slate_UK.shape[1]
    count_UM = _topic_counts(topic_I, items_UK, placed_UK)
    return [_mean_point(points_IE, items_UK, placed_UK), count_UM / length, placed_UK.sum(axis=1) / length]


def _mean_point(points_IE: FloatArray, items_UT: IntArray, weight_UT: FloatArray) -> FloatArray:
    """Weighted means of items' points, 0 without weight; a sparse product avoids a [U, T, E] array."""
    num_users, length = items_UT.shape
    rows_U1 = np.arange(num_users + 1) * length
    weights = sparse.csr_array((weight_UT.ravel(), items_UT.ravel(), rows_U1), shape=(num_users, len(points_IE)))
    return (weights @ points_IE) / _positive(weight_UT.sum(axis=1))[:, None]


def _topic_counts(topic_I: IntArray, items_UT: IntArray, weight_UT: NDArray) -> NDArray[np.float64]:
    """Sums of weights by topic [U, M]; unknown topics are not counted."""
    num_users, num_topics = len(items_UT), int(topic_I.max(initial=-1)) + 1
    cell_UT = (topic_I[items_UT] + 1) + (num_topics + 1) * np.arange(num_users)[:, None]
    count = np.bincount(cell_UT.ravel(), weight_UT.ravel().astype(np.float64), num_users * (num_topics + 1))
    return count.astype(np.float64).reshape(num_users, num_topics + 1)[:, 1:]


def _positive(total_U: FloatArray) -> FloatArray:
    """Divisors: sums of 0 become 1."""
    return np.where(total_U > 0, total_U, 1).astype(total_U.dtype)


def item_points(catalog: Catalog, width: int | None = None) -> NDArray[np.float64]:
    """Points of the items in the box [-1, 1]: their contents, centred and scaled by the largest entry of each axis.

    Args:
        catalog: the items.
        width: number of principal components of the content to keep, which rotates the axes; None keeps all axes
            unrotated.

    Returns:
        float64 [I, width or E].

    Raises:
        ValueError: ``width`` is not in 1..E.
    """
    points_IE = catalog.content_IE - catalog.content_IE.mean(axis=0, dtype=np.float64)
    if width is not None:
        if not 1 <= width <= points_IE.shape[1]:
            raise ValueError(f"width={width} is outside 1..{points_IE.shape[1]}, the width of the items' content.")
        _, axes_EE = np.linalg.eigh(points_IE.T @ points_IE)
        axes_EE = axes_EE[:, ::-1][:, :width]
        points_IE = points_IE @ (axes_EE * np.sign(axes_EE[np.abs(axes_EE).argmax(axis=0), np.arange(width)]))
    largest_E = np.abs(points_IE).max(axis=0)
    return points_IE / np.where(largest_E > 0, largest_E, 1)


def nearest_items(
    points_IE: NDArray[np.floating],
    proto_UKE: NDArray[np.floating],
    allowed: Callable[[slice], BoolArray] | None = None,
) -> NDArray[np.int64]:
    """For each place of a session, the nearest item to its point among allowed items that are not placed before.

    Wolpertinger's step from a continuous proto-action to a discrete one (Dulac-Arnold et al., arXiv:1512.07679, eq. 4,
    k = 1), place by place. Choosing among k > 1 candidates by a critic is left to the agent.

    Args:
        points_IE: points of the items.
        proto_UKE: U sessions of K points.
        allowed: items that may be served to some of the users, bool [their number, I]; all items if None.

    Returns:
        int64 item ids [U, K].

    Raises:
        ValueError: fewer than K items are allowed.
    """
    # -|a - z|^2 without |a|^2, which is equal for all items, as one product.
    target_FI = np.vstack([2 * points_IE.T, -(points_IE**2).sum(axis=1)])
    num_users, length, _ = proto_UKE.shape
    proto_UKF = np.concatenate([proto_UKE, np.ones((num_users, length, 1))], axis=2)
    slates_UK = np.empty((num_users, length), np.int64)
    block = max(1, BLOCK_CELLS // len(points_IE))
    for start in range(0, num_users, block):
        users = slice(start, min(start + block, num_users))
        allowed_UI = None if allowed is None else allowed(users)
        if allowed_UI is not None and allowed_UI.sum(axis=1).min() < length:
            raise too_few(length, int(allowed_UI.sum(axis=1).min()))
        for k in range(length):
            score_UI = proto_UKF[users, k] @ target_FI
            np.put_along_axis(score_UI, slates_UK[users, :k], -np.inf, axis=1)
            if allowed_UI is not None:
                score_UI[~allowed_UI] = -np.inf
            slates_UK[users, k] = score_UI.argmax(axis=1)
    return slates_UK
