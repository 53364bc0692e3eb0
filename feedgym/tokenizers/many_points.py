"""Balanced clusters of more points than an exact auction can hold: each point bids for the clusters near it.

:func:`~feedgym.tokenizers.assignment.auction` holds the distances of all pairs of points and clusters, 65 GB at 10**6 x
8,192. Here every point knows only its nearest clusters, and all points without a place bid at once (Bertsekas's auction
in its Jacobi form, 1988). So a round is a few operations on arrays. Points that find no place among their neighbours
look again among the clusters that still have room. Sizes are exact; the total distance is a few per cent above that of
the exact auction. The axes are those of :mod:`feedgym.tokenizers.assignment`, with ``K`` neighbours of a point.

Points of one prefix that collide in a code are separated by swaps, which keep all sizes. A point exchanges codes with a
point of another prefix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]

NEIGHBOURS = 32
"""Number of nearest clusters that a point may bid for."""
RAISE = 0.02
"""Smallest rise of a bid, as a share of the median gap between a point's nearest and farthest neighbour."""
ROUNDS = 300
"""Rounds of an auction, after which points without a place look again among the clusters with room."""
TRIALS = 8
"""Partners that a colliding point tries for a swap."""
SWAPS = 60
"""Rounds of swaps; points that still collide then take a free code, and sizes are no longer exact."""
_BLOCK = 8192
"""Points whose distances are in memory at a time."""


def nearest_few(points_ND: Matrix, centroids_CD: Matrix, num: int = NEIGHBOURS) -> tuple[NDArray, NDArray]:
    """The nearest clusters of each point, nearest first.

    Returns:
        float32 [N, K] squared distances minus the point's squared length, and int32 [N, K] clusters.
    """
    num = min(num, len(centroids_CD))
    cost_NK, cluster_NK = np.empty((len(points_ND), num), np.float32), np.empty((len(points_ND), num), np.int32)
    centroids = torch.from_numpy(np.asarray(centroids_CD, dtype=np.float32))
    half_C = (centroids**2).sum(1) / 2
    for start in range(0, len(points_ND), _BLOCK):
        block = slice(start, start + _BLOCK)
        points = torch.from_numpy(np.asarray(points_ND[block], dtype=np.float32))
        near = torch.topk(half_C - points @ centroids.T, num, largest=False)
        cost_NK[block], cluster_NK[block] = 2 * near.values.numpy(), near.indices.numpy()
    return cost_NK, cluster_NK


def auction_of_many(points_ND: Matrix, centroids_CD: Matrix, sizes_C: Ints) -> Ints:
    """Assigns points to clusters of exact sizes at nearly the smallest total distance, without a matrix [N, C].

    Args:
        points_ND: N points.
        centroids_CD: C centroids.
        sizes_C: points each cluster takes; they sum to N.

    Returns:
        int64 [N] the cluster of each point.
    """
    code_N, left, room_C = np.full(len(points_ND), -1), np.arange(len(points_ND)), sizes_C.copy()
    while len(left):  # every pass fills at least one place of each cluster that some point prefers
        clusters = np.flatnonzero(room_C)
        cost_NK, near_NK = nearest_few(points_ND[left], centroids_CD[clusters])
        chosen = _auction_round_by_round(cost_NK, near_NK, room_C[clusters])
        placed = chosen >= 0
        code_N[left[placed]] = clusters[chosen[placed]]
        room_C -= np.bincount(code_N[left[placed]], minlength=len(room_C))
        left = left[~placed]
    return code_N


def _auction_round_by_round(cost_NK: NDArray, cluster_NK: NDArray, places_C: Ints) -> NDArray[np.int32]:
    """Returns the cluster of each point, or -1 for points that found no place in ``ROUNDS`` rounds."""
    # As in the exact auction, a bid closes the gap to the second-best cluster, plus a little. A full cluster's price is
    # its lowest bid. Only clusters that got new bids can change, so only their points are sorted.
    raise_by = RAISE * (float(np.median(cost_NK[:, -1] - cost_NK[:, 0])) or 1.0)
    num_points, num_clusters = len(cost_NK), len(places_C)
    price_C, bid_N = np.zeros(num_clusters, np.float32), np.zeros(num_points, np.float32)
    code_N, left = np.full(num_points, -1, np.int32), np.arange(num_points)
    for _ in range(ROUNDS):
        if not len(left):
            break
        code_N[left], bid_N[left] = _bids_of_many(cost_NK[left], cluster_NK[left], price_C, raise_by)
        touched = np.zeros(num_clusters + 1, dtype=bool)  # the last entry is that of code -1
        touched[code_N[left]] = True
        rivals = np.flatnonzero(touched[code_N])
        rivals = rivals[_by_cluster_and_bid(code_N[rivals], bid_N[rivals])]
        cluster = code_N[rivals]
        rank = _place_in_run(cluster)
        lowest_kept = rank == places_C[cluster] - 1
        price_C[cluster[lowest_kept]] = bid_N[rivals[lowest_kept]]
        left = rivals[rank >= places_C[cluster]]
        code_N[left] = -1
    return code_N


def _by_cluster_and_bid(code: NDArray[np.int32], bid: NDArray[np.float32]) -> Ints:
    """Returns the order by cluster, highest bid first."""
    # One key of 64 bits sorts ten times faster than two: the bits of positive floats are in the order of the floats.
    return np.argsort((code.astype(np.int64) << 32) | (0x7FFFFFFF - bid.view(np.int32).astype(np.int64)))


def _place_in_run(ordered: NDArray) -> Ints:
    """Counts, for each entry of a sorted array, the equal entries before it."""
    start = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    return np.arange(len(ordered)) - np.repeat(start, np.diff(np.append(start, len(ordered))))


def _bids_of_many(
    cost_NK: NDArray, cluster_NK: NDArray, price_C: NDArray, raise_by: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Returns, for each point, the cluster that it prefers at current prices, and its bid."""
    gain_NK, row = -(cost_NK + price_C[cluster_NK]), np.arange(len(cost_NK))
    best_N = gain_NK.argmax(axis=1)
    best_gain_N = gain_NK[row, best_N]
    gain_NK[row, best_N] = -np.inf
    second_N = gain_NK.max(axis=1)
    ahead_N = np.where(np.isfinite(second_N), best_gain_N - second_N, 0)
    code_N = cluster_NK[row, best_N]
    return code_N, price_C[code_N] + ahead_N + np.float32(raise_by)


# ---------------------------------------------------------------- points of one prefix


def separated(points_ND: Matrix, centroids_CD: Matrix, code_N: Ints, prefix_N: Ints, limit: int, seed: int = 0) -> Ints:
    """Changes codes until none holds more than ``limit`` points of one prefix.

    For up to ``SWAPS`` rounds, points swap codes, which keeps all sizes. Points that still collide then take the
    nearest code with room below their prefix.

    Args:
        points_ND: N points.
        centroids_CD: C centroids.
        code_N: int64 the cluster of each point.
        prefix_N: int64 the prefix of each point, 0..; none holds more than ``limit * C`` points.
        limit: the most points that one prefix may have in one cluster.
        seed: seed of the choice of partners.

    Returns:
        int64 [N] the new clusters.
    """
    rng, num_codes, code_N = np.random.default_rng(seed), len(centroids_CD), code_N.copy()
    for _ in range(SWAPS):
        surplus, count = _surplus(prefix_N * num_codes + code_N, limit)
        if not len(surplus):
            return code_N
        _swap(points_ND, centroids_CD, code_N, prefix_N, surplus, count, limit, rng)
    while len(surplus := _surplus(prefix_N * num_codes + code_N, limit)[0]):
        _move_to_free(points_ND, centroids_CD, code_N, prefix_N, surplus[:_BLOCK], limit)
    return code_N


class _Count:
    """Counts how often each key occurs."""

    def __init__(self, ordered: Ints) -> None:
        start = np.flatnonzero(np.diff(ordered, prepend=-1))
        self.keys, self.counts = ordered[start], np.diff(np.append(start, len(ordered)))

    def __call__(self, keys: Ints) -> Ints:
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.counts[at], 0)


def _surplus(key_N: Ints, limit: int) -> tuple[Ints, _Count]:
    """Returns the points beyond the first ``limit`` of their key, and the counts of all keys."""
    order = np.argsort(key_N, kind="stable")
    ordered = key_N[order]
    return order[_place_in_run(ordered) >= limit], _Count(ordered)


def _occurrence(keys: Ints) -> Ints:
    """Counts, for each entry, the equal entries before it."""
    order = np.argsort(keys, kind="stable")
    nth = np.empty(len(keys), dtype=np.int64)
    nth[order] = _place_in_run(keys[order])
    return nth


def _swap(
    points_ND: Matrix, centroids_CD: Matrix, code_N: Ints, prefix_N: Ints, surplus: Ints, count: _Count, limit: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Swaps the codes of colliding points with points that have a code they want, where both then fit."""
    num_codes, num = len(centroids_CD), len(surplus)
    wanted = _wanted(points_ND[surplus], centroids_CD, prefix_N[surplus], count, limit, rng)
    by_code, size_C = np.argsort(code_N, kind="stable"), np.bincount(code_N, minlength=num_codes)
    place = (rng.random((num, TRIALS)) * size_C[wanted][:, None]).astype(np.int64)
    first_C = np.cumsum(size_C) - size_C
    partner = by_code[np.minimum(first_C[wanted][:, None] + place, len(by_code) - 1)]  # [surplus, trials]
    theirs = prefix_N[partner] * num_codes + code_N[surplus][:, None]
    colliding = np.zeros(len(code_N), dtype=bool)
    colliding[surplus] = True
    fits = (count(theirs) < limit) & ~colliding[partner] & (code_N[partner] == wanted[:, None])
    cost = np.where(fits, _loss(points_ND, centroids_CD, partner, code_N[surplus], wanted), np.inf)
    best = cost.argmin(axis=1)
    row = np.arange(num)
    fine = np.flatnonzero(np.isfinite(cost[row, best]))
    ours, partner, theirs = surplus[fine], partner[fine, best[fine]], theirs[fine, best[fine]]
    mine = prefix_N[ours] * num_codes + wanted[fine]
    keys = np.concatenate([mine, theirs])
    room = _occurrence(keys) < limit - count(keys)
    done = room[: len(mine)] & room[len(mine) :] & (_occurrence(partner) == 0)
    code_N[ours[done]], code_N[partner[done]] = code_N[partner[done]], code_N[ours[done]]


def _wanted(
    points: Matrix, centroids_CD: Matrix, prefix: Ints, count: _Count, limit: int, rng: np.random.Generator
) -> Ints:
    """Returns the nearest code with room below each point's prefix, sometimes the next one; else any code."""
    near = nearest_few(points, centroids_CD)[1].astype(np.int64)
    choices = np.concatenate([near, rng.integers(len(centroids_CD), size=(len(points), TRIALS))], axis=1)
    has_room = count(prefix[:, None] * len(centroids_CD) + choices) < limit
    skipped = has_room & (rng.random(has_room.shape) < 0.25)  # so that points of one prefix do not all want the same
    first = np.where((has_room & ~skipped).any(axis=1), (has_room & ~skipped).argmax(axis=1), has_room.argmax(axis=1))
    return choices[np.arange(len(points)), first]


def _loss(points_ND: Matrix, centroids_CD: Matrix, partner: Ints, code: Ints, wanted: Ints) -> Any:
    """Returns each partner's loss by the swap: its squared distance to the new code minus that to its own."""
    away = 2 * (centroids_CD[wanted] - centroids_CD[code])
    offset = (centroids_CD[code] ** 2).sum(1) - (centroids_CD[wanted] ** 2).sum(1)
    return np.stack([(points_ND[partner[:, t]] * away).sum(1) + offset for t in range(partner.shape[1])], axis=1)


def _move_to_free(
    points_ND: Matrix, centroids_CD: Matrix, code_N: Ints, prefix_N: Ints, surplus: Ints, limit: int
) -> None:
    """Gives colliding points the nearest code with room, one point per key at a time."""
    num_codes = len(centroids_CD)
    key_NC = prefix_N[surplus][:, None] * num_codes + np.arange(num_codes)
    points, count = points_ND[surplus], _Count(np.sort(prefix_N * num_codes + code_N))
    distance_NC = (centroids_CD**2).sum(1) - 2 * points @ centroids_CD.T
    wanted = np.where(count(key_NC) < limit, distance_NC, np.inf).argmin(axis=1)
    first = _occurrence(prefix_N[surplus] * num_codes + wanted) == 0
    code_N[surplus[first]] = wanted[first]
