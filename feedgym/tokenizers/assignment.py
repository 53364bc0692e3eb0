"""Assigns points to clusters: to the nearest one, in exact sizes, or so that points do not collide.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` points, ``C`` clusters, ``G`` points of one group, ``X``
groups, ``M`` centroids that distances are measured to. In ``_bids`` and ``auction``, ``L`` counts the points left.

Everything is float64 on the CPU and draws no random numbers. Assignments of more than ``EXACT_PAIRS`` pairs of points
and clusters are left to :mod:`feedgym.tokenizers.many_points`, which holds no matrix of them.
"""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from feedgym.tokenizers.many_points import auction_of_many, separated

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]
Assignment = Literal["auction", "greedy", "nearest"]

PRECISION = 1e-3
"""An auction's bids rise by at least this share of the distances' range; totals end within a few 1e-4 of the best."""
SINKHORN_EPSILON = 0.003
"""Entropy of the Sinkhorn repair, for distances scaled to [-1, 1] (LC-Rec, arXiv:2311.09049)."""
SINKHORN_ITERATIONS = 50
"""Row and column passes of one Sinkhorn repair."""
SINKHORN_ROUNDS = 20
"""Most times that points which still collide are spread again (LC-Rec)."""
EXACT_PAIRS = 8_000_000
"""Most pairs of points and clusters of an exact auction: its matrix takes 64 MB and its rounds some seconds."""
_BLOCK = 8192
"""Points whose distances are held at a time."""


def assign(points_ND: Matrix, centroids_CD: Matrix, sizes_C: Ints, assignment: Assignment) -> Ints:
    """Assigns points to clusters.

    Args:
        points_ND: N points.
        centroids_CD: C centroids.
        sizes_C: points each cluster takes; they sum to N. ``nearest`` ignores them.
        assignment: ``auction``, ``greedy`` or ``nearest``, the functions below. An auction of more than
            ``EXACT_PAIRS`` pairs is that of :func:`feedgym.tokenizers.many_points.auction_of_many`, with exact sizes
            too.

    Returns:
        int64 [N] the cluster of each point.
    """
    if assignment == "nearest":
        return nearest(points_ND, centroids_CD)[0]
    if assignment == "greedy":
        return greedy(points_ND, centroids_CD, sizes_C)
    fill = auction_of_many if is_large(len(points_ND), len(centroids_CD)) else auction
    return fill(points_ND, centroids_CD, sizes_C)


def is_large(num_points: int, num_clusters: int) -> bool:
    """True if there are too many pairs of points and clusters for an exact auction."""
    return num_points * num_clusters > EXACT_PAIRS


def nearest(points_ND: Matrix, centroids_CD: Matrix) -> tuple[Ints, Matrix]:
    """Each point's nearest centroid [N] and its squared distance [N]; clusters may stay empty."""
    code_N, distance_N = np.empty(len(points_ND), dtype=np.int64), np.empty(len(points_ND))
    for start in range(0, len(points_ND), _BLOCK):
        block = slice(start, start + _BLOCK)
        distance_BC = squared_distance(points_ND[block], centroids_CD)
        code_N[block], distance_N[block] = distance_BC.argmin(axis=1), distance_BC.min(axis=1)
    return code_N, distance_N.clip(min=0.0)


def auction(points_ND: Matrix, centroids_CD: Matrix, sizes_C: Ints) -> Ints:
    """Minimises the total distance, up to N times the auction's smallest bid (Bertsekas & Castañón, 1989).

    Every point without a place bids for its best cluster at current prices, as much as makes the second best equally
    good. A cluster keeps its highest bids; among equal ones, that of the lower-numbered point. Once the cluster is
    full, its price is the lowest of them. Clusters may have more places than there are points; places left over cost
    nothing.
    """
    # Prices decide the assignment: in the end no point could gain more than ``least_bid`` by moving, which bounds the
    # total. With this minimum for bids the auction ends; a smaller one is more exact and takes more rounds.
    worth_NC = -squared_distance(points_ND, centroids_CD)
    worth_NC[:, sizes_C == 0] = -np.inf
    least_bid = PRECISION * float(np.ptp(worth_NC[:, sizes_C > 0])) or 1.0
    no_second_best = np.count_nonzero(sizes_C) == 1
    price_C, sizes = np.zeros(len(sizes_C)), sizes_C.tolist()
    # One heap per cluster: the lowest bid first; among equal ones, that of the last point.
    kept: list[list[tuple[float, int]]] = [[] for _ in sizes]
    left = list(range(len(points_ND)))
    while left:
        best_L, bid_L = _bids(worth_NC, left, price_C, least_bid, no_second_best)
        outbid = []
        # Most rounds have few bidders, for which a heap is many times faster than sorting arrays.
        for point, cluster, bid in zip(left, best_L, bid_L, strict=True):
            bids = kept[cluster]
            if len(bids) < sizes[cluster]:
                heapq.heappush(bids, (bid, -point))
            else:
                outbid.append(-heapq.heappushpop(bids, (bid, -point))[1])
            if len(bids) == sizes[cluster]:
                price_C[cluster] = bids[0][0]
        left = outbid
    code_N = np.empty(len(points_ND), dtype=np.int64)
    for cluster, bids in enumerate(kept):
        code_N[[-point for _, point in bids]] = cluster
    return code_N


def _bids(
    worth_NC: Matrix, left: list[int], price_C: Matrix, least_bid: float, no_second_best: bool
) -> tuple[list[int], list[float]]:
    """For each point left, the cluster it prefers and its bid."""
    if len(left) == 1:
        # An auction ends with thousands of rounds with one bidder, and vectors are faster than matrices with one row.
        gain_C = worth_NC[left[0]] - price_C
        best = int(gain_C.argmax())
        best_gain, gain_C[best] = gain_C[best], -np.inf
        ahead = 0.0 if no_second_best else best_gain - gain_C.max()
        return [best], [float(price_C[best] + ahead + least_bid)]
    # A bid makes the second best cluster as good, plus a little. This is the most that a point can pay without loss, so
    # that prices rise as fast as possible. Gains use flat indices, because the best one is removed to find the second.
    gain_LC = worth_NC.take(left, axis=0) - price_C
    best_L = gain_LC.argmax(axis=1)
    place_L = np.arange(0, gain_LC.size, gain_LC.shape[1]) + best_L
    best_gain_L = gain_LC.take(place_L)
    gain_LC.put(place_L, -np.inf)
    ahead_L = 0.0 if no_second_best else best_gain_L - gain_LC.max(axis=1)
    return best_L.tolist(), (price_C[best_L] + ahead_L + least_bid).tolist()


def greedy(points_ND: Matrix, centroids_CD: Matrix, sizes_C: Ints) -> Ints:
    """OneRec's Algorithm 1: cluster 0 takes its ``sizes_C[0]`` nearest points, then cluster 1 of the rest..."""
    code_N = np.full(len(points_ND), -1)
    left = np.arange(len(points_ND))
    clusters = np.flatnonzero(sizes_C)
    # Distances for one block of clusters at a time: a large matrix product is fast, and memory stays bounded.
    for block in np.array_split(clusters, max(1, -(-len(clusters) // 256))):
        distance_BN = squared_distance(centroids_CD[block], points_ND[left])
        place = np.arange(len(left))
        for row, cluster in enumerate(block):
            distance = distance_BN[row, place]
            taken = np.argpartition(distance, sizes_C[cluster] - 1)[: sizes_C[cluster]]
            code_N[left[place[taken]]] = cluster
            place = np.delete(place, taken)
        left = left[place]
    assert len(left) == 0
    return code_N


def assign_apart(
    points_ND: Matrix, centroids_CD: Matrix, sizes_C: Ints, prefix_N: Ints, limit: int, assignment: Assignment
) -> Ints:
    """Assigns points so that no code holds more than ``limit`` points of one prefix.

    Balanced: prefixes with more than ``limit`` points choose first, the largest first, each by the cheapest assignment
    of its points. The others cannot break the limit and share the rest as in any balanced assignment. Nearest: only
    prefixes that break the limit move, each by an auction of ``limit`` places per code. Auctions of more than
    ``EXACT_PAIRS`` pairs: all points are assigned without the limit, and those that break it swap codes with others
    (:func:`feedgym.tokenizers.many_points.separated`).

    Args:
        points_ND: N points.
        centroids_CD: C centroids.
        sizes_C: points each cluster takes, within 1 of each other; they sum to N. ``nearest`` ignores them.
        prefix_N: int64 the prefix of each point, 0..; none holds more than ``limit * C`` points.
        limit: most points of one prefix in one cluster.
        assignment: see :func:`assign`.

    Returns:
        int64 [N] the cluster of each point.
    """
    size_of_prefix = np.bincount(prefix_N)
    assert size_of_prefix.max() <= limit * len(centroids_CD)
    if assignment == "auction" and is_large(len(points_ND), len(centroids_CD)):
        code_N = auction_of_many(points_ND, centroids_CD, sizes_C)
        return separated(points_ND, centroids_CD, code_N, prefix_N, limit)
    members = np.split(np.argsort(prefix_N, kind="stable"), np.cumsum(size_of_prefix)[:-1])
    if assignment == "nearest":
        return _nearest_apart(points_ND, centroids_CD, prefix_N, limit, members)
    crowded = np.flatnonzero(size_of_prefix > limit) if sizes_C.max() > limit else np.empty(0, dtype=np.int64)
    crowded = crowded[np.argsort(-size_of_prefix[crowded], kind="stable")]
    code_N, left_C = np.full(len(points_ND), -1), sizes_C.copy()
    places_C = limit * np.arange(1, len(sizes_C) + 1)
    room_C = _room(size_of_prefix, places_C)
    for prefix in crowded:
        group = members[prefix]
        room_C = room_C - np.minimum(len(group), places_C)
        distance_GC = squared_distance(points_ND[group], centroids_CD)
        code_N[group] = _assign_group(distance_GC, left_C, room_C, limit)
        left_C = left_C - np.bincount(code_N[group], minlength=len(left_C))
    rest = np.flatnonzero(code_N < 0)
    if len(rest):
        code_N[rest] = assign(points_ND[rest], centroids_CD, left_C, assignment)
    return code_N


def _nearest_apart(
    points_ND: Matrix, centroids_CD: Matrix, prefix_N: Ints, limit: int, members: list[NDArray[np.intp]]
) -> Ints:
    code_N = nearest(points_ND, centroids_CD)[0]
    tuples, count = np.unique(prefix_N * len(centroids_CD) + code_N, return_counts=True)
    for prefix in np.unique(tuples[count > limit] // len(centroids_CD)):
        group = members[prefix]
        code_N[group] = auction(points_ND[group], centroids_CD, np.full(len(centroids_CD), limit))
    return code_N


def _room(size_of_prefix: Ints, places_C: Ints) -> Ints:
    """For k = 1..C: number of points that any k clusters can hold, given ``places_C[k-1]`` places per prefix."""
    sizes, counts = np.unique(size_of_prefix, return_counts=True)
    return (np.minimum(sizes[:, None], places_C) * counts[:, None]).sum(axis=0)


def _assign_group(distance_GC: Matrix, left_C: Ints, room_C: Ints, limit: int) -> Ints:
    """The cheapest clusters of one prefix's points such that the prefixes after it can still be placed.

    By Gale and Ryser's theorem, with ``limit`` for 1, they can under one condition, and only then. For every k, the k
    clusters with most places left need no more points than the later prefixes can give them. ``room_C`` has these
    numbers. Choosing the clusters with most places left always keeps that true, so a price on scarce clusters is raised
    until it holds.
    """
    # ``linear_sum_assignment`` gives one column to one point, so a cluster appears once per place it may give. The n-th
    # copy has one place fewer left, so that the price makes points prefer clusters with most places.
    copies_C = np.minimum(left_C, min(limit, len(distance_GC)))
    nearest_G = distance_GC.argmin(axis=1)
    if _fits(nearest_G, copies_C) and _leaves_room(nearest_G, left_C, room_C):
        return nearest_G  # nothing is cheaper
    cluster = np.repeat(np.arange(len(left_C)), copies_C)
    nth_copy = np.arange(len(cluster)) - np.repeat(np.cumsum(copies_C) - copies_C, copies_C)
    places_left = left_C[cluster] - nth_copy
    cost = distance_GC[:, cluster]
    spread = float(np.ptp(cost)) or 1.0
    price = 0.0
    while price <= 1e3 * len(cost) * spread:
        code_G = cluster[linear_sum_assignment(cost - price * places_left)[1]]
        if _leaves_room(code_G, left_C, room_C):
            return code_G
        price = max(4 * price, 1e-3 * spread)
    raise AssertionError("No balanced choice was found although one exists.")


def _fits(code_G: NDArray[np.integer], places_C: Ints) -> bool:
    return bool((np.bincount(code_G, minlength=len(places_C)) <= places_C).all())


def _leaves_room(code_G: NDArray[np.integer], left_C: Ints, room_C: Ints) -> bool:
    left_after_C = left_C - np.bincount(code_G, minlength=len(left_C))
    return bool((np.cumsum(-np.sort(-left_after_C)) <= room_C).all())


def sinkhorn_apart(points_ND: Matrix, centroids_CD: Matrix, code_N: Ints, prefix_N: Ints) -> Ints:
    """Spreads colliding points (same prefix, same code) evenly over the codes, as LC-Rec does.

    Each group of colliding points shares all codes by :func:`sinkhorn`. A code goes to the point that holds most of it,
    and a point takes the nearest of its codes. Points that still collide are spread again, up to ``SINKHORN_ROUNDS``
    times and as long as their number falls. Points with the same content cannot be separated.

    Deviation: LC-Rec takes the largest entry of a point's row. With fewer points than codes, all codes of a point weigh
    nearly the same. So the largest would be an arbitrary one rather than the nearest.
    """
    num_codes, best_N, fewest = len(centroids_CD), code_N, len(code_N) + 1
    for _ in range(SINKHORN_ROUNDS + 1):
        tuple_N = np.unique(prefix_N * num_codes + code_N, return_inverse=True)[1].reshape(-1)
        size = np.bincount(tuple_N)
        num_colliding = int(size[size > 1].sum())
        if num_colliding >= fewest:
            break
        best_N, fewest = code_N, num_colliding
        code_N = _spread_groups(points_ND, centroids_CD, code_N, tuple_N, size)
    return best_N


def _spread_groups(points_ND: Matrix, centroids_CD: Matrix, code_N: Ints, tuple_N: Ints, size: Ints) -> Ints:
    """Codes after every group of points with the same tuple has shared all codes."""
    code_N, num_codes = code_N.copy(), len(centroids_CD)
    order_N, first = np.argsort(tuple_N, kind="stable"), np.cumsum(size) - size
    for num_members in np.unique(size[size > 1]):  # groups of one size at a time, so that they form arrays
        groups = np.flatnonzero(size == num_members)
        at_once = max(1, _BLOCK * 256 // (int(num_members) * num_codes))
        for start in range(0, len(groups), at_once):
            member_XG = order_N[first[groups[start : start + at_once], None] + np.arange(num_members)]
            distance_NC = squared_distance(points_ND[member_XG.reshape(-1)], centroids_CD)
            code_N[member_XG] = _share_out(distance_NC.reshape(*member_XG.shape, num_codes))
    return code_N


def _share_out(distance_XGC: Matrix) -> Ints:
    """int64 [X, G] the nearest of the codes that a point holds more of than the other points of its group."""
    plan_XGC = sinkhorn(distance_XGC)
    holder_X1C = plan_XGC.argmax(axis=1, keepdims=True)
    mine_XGC = holder_X1C == np.arange(plan_XGC.shape[1])[:, None]
    nearest_mine_XG = np.where(mine_XGC, distance_XGC, np.inf).argmin(axis=-1)
    return np.where(mine_XGC.any(axis=-1), nearest_mine_XG, plan_XGC.argmax(axis=-1))


def sinkhorn(distance: Matrix, *, epsilon: float = SINKHORN_EPSILON, iterations: int = SINKHORN_ITERATIONS) -> Matrix:
    """The entropic transport plan from points to equally used clusters (Cuturi, 2013), in log space.

    Args:
        distance: [..., N, C] costs; each matrix is centred and scaled to [-1, 1], so that ``epsilon`` means the same
            everywhere.
        epsilon: weight of the entropy; a smaller one gives a sharper plan and slower convergence of the rows.
        iterations: passes over rows and columns.

    Returns:
        float64 [..., N, C] plans: columns sum to 1/C exactly, rows to 1/N approximately.
    """
    num_points, num_clusters = distance.shape[-2:]
    highest, lowest = distance.max(axis=(-2, -1), keepdims=True), distance.min(axis=(-2, -1), keepdims=True)
    half_range = np.where(highest > lowest, (highest - lowest) / 2, 1.0)
    log_kernel = -(distance - (highest + lowest) / 2) / (half_range * epsilon)
    column = np.zeros((*distance.shape[:-2], 1, num_clusters))
    for _ in range(iterations):
        row = -np.log(num_points) - _logsumexp(log_kernel + column, axis=-1)
        column = -np.log(num_clusters) - _logsumexp(log_kernel + row, axis=-2)
    return np.exp(log_kernel + row + column)


def _logsumexp(matrix: Matrix, axis: int) -> Matrix:
    """Like SciPy's, without the half millisecond that it spends on options."""
    largest = matrix.max(axis=axis, keepdims=True)
    return largest + np.log(np.exp(matrix - largest).sum(axis=axis, keepdims=True))


def cluster_sizes(num_points: int, num_codes: int) -> Ints:
    """Sizes within 1 of each other: ceil(N/C) for the first N % C clusters, floor(N/C) for the others."""
    return num_points // num_codes + (np.arange(num_codes) < num_points % num_codes)


def squared_distance(left_ND: Matrix, right_MD: Matrix) -> Matrix:
    """Squared Euclidean distances [N, M]; rounding may leave them a little below 0."""
    return (left_ND**2).sum(1)[:, None] - 2 * left_ND @ right_MD.T + (right_MD**2).sum(1)
