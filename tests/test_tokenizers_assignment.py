import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from feedgym.tokenizers.assignment import (
    PRECISION,
    assign_apart,
    auction,
    cluster_sizes,
    nearest,
    sinkhorn,
    sinkhorn_apart,
    squared_distance,
)
from feedgym.tokenizers.residual_kmeans import fit_centroids


def plain_auction(points, centroids, sizes):
    """The same bids, with every bid in one list and everybody sorted at every turn."""
    worth = -squared_distance(points, centroids)
    worth[:, sizes == 0] = -np.inf
    step = PRECISION * np.ptp(worth[:, sizes > 0]) or 1.0
    price, holder, bids = np.zeros(len(sizes)), {}, {}
    left = range(len(points))
    while left:
        for point in left:
            gain = worth[point] - price
            first, *second = np.argsort(-gain, kind="stable")[:2]
            second_gain = gain[second[0]] if second and np.isfinite(gain[second[0]]) else gain[first]
            holder[point], bids[point] = first, price[first] + (gain[first] - second_gain) + step
        left = []
        for cluster, size in enumerate(sizes):
            members = sorted((p for p in holder if holder[p] == cluster), key=lambda p: (-bids[p], p))
            if size and len(members) >= size:
                price[cluster] = bids[members[size - 1]]
            for point in members[size:]:
                del holder[point]
                left.append(point)
    return np.array([holder[p] for p in range(len(points))])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_an_auction_makes_the_bids_of_the_plain_one(data):
    sizes = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    points, centroids = rng.normal(size=(sizes.sum(), 2)), rng.normal(size=(len(sizes), 2))
    points[: data.draw(st.integers(1, len(points)))] = points[0]  # equal bids: the lower-numbered point wins
    assert auction(points, centroids, sizes).tolist() == plain_auction(points, centroids, sizes).tolist()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_auction_with_places_to_spare_comes_near_the_least_total_distance(data):
    sizes = np.array(data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    points = rng.normal(size=(data.draw(st.integers(1, int(sizes.sum()))), 2))
    centroids = rng.normal(size=(len(sizes), 2))
    code = auction(points, centroids, sizes)
    assert (np.bincount(code, minlength=len(sizes)) <= sizes).all()
    distance = squared_distance(points, centroids)
    copies = distance[:, np.repeat(np.arange(len(sizes)), sizes)]
    least = copies[linear_sum_assignment(copies)].sum()
    assert distance[np.arange(len(points)), code].sum() <= least + PRECISION * len(points) * np.ptp(distance) + 1e-9


def test_nearest_is_the_nearest_across_blocks(monkeypatch):
    monkeypatch.setattr("feedgym.tokenizers.assignment._BLOCK", 7)
    rng = np.random.default_rng(0)
    points, centroids = rng.normal(size=(30, 3)), rng.normal(size=(5, 3))
    code, distance = nearest(points, centroids)
    brute = ((points[:, None] - centroids) ** 2).sum(-1)
    assert code.tolist() == brute.argmin(axis=1).tolist()
    np.testing.assert_allclose(distance, brute.min(axis=1))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nearest_apart_moves_crowded_prefixes_alone_and_keeps_the_limit(data):
    num_codes, limit = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    groups = data.draw(st.lists(st.integers(1, num_codes * limit), min_size=1, max_size=8))
    prefix = np.repeat(np.arange(len(groups)), groups)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    points, centroids = rng.normal(size=(len(prefix), 2)), rng.normal(size=(num_codes, 2))
    sizes = cluster_sizes(len(prefix), num_codes)
    code = assign_apart(points, centroids, sizes, prefix, limit, "nearest")
    free = nearest(points, centroids)[0]
    for group in range(len(groups)):
        mine = prefix == group
        assert np.bincount(code[mine]).max() <= limit
        if np.bincount(free[mine]).max() <= limit:
            assert code[mine].tolist() == free[mine].tolist()


def test_plain_kmeans_leaves_no_cluster_empty_where_points_differ():
    rng = np.random.default_rng(0)
    far = np.array([[50.0, 0.0], [0.0, 50.0], [-50.0, 0.0]])
    points = np.concatenate([0.1 * rng.normal(size=(200, 2)), far + 0.1 * rng.normal(size=(3, 2))])
    centroids = fit_centroids(points, 12, "nearest", 30, np.random.default_rng(1))
    code, distance = nearest(points, centroids)
    assert len(np.unique(code)) == 12
    assert distance[-3:].max() < 1  # the lonely points got centroids of their own
    assert np.isfinite(fit_centroids(np.ones((9, 2)), 4, "nearest", 5, rng)).all()  # fewer different points than codes


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_a_sinkhorn_plan_has_uniform_marginals(num_points, num_codes, seed):
    distance = np.random.default_rng(seed).exponential(size=(num_points, num_codes))
    plan = sinkhorn(distance, epsilon=0.3, iterations=300)
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(axis=0), 1 / num_codes, rtol=1e-9)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / num_points, rtol=1e-6)


def test_a_sinkhorn_plan_equals_plain_scaling_of_the_kernel():
    distance = np.random.default_rng(0).exponential(size=(5, 4))
    middle, half = (distance.max() + distance.min()) / 2, np.ptp(distance) / 2
    plan = np.exp(-(distance - middle) / half / 0.5)
    for _ in range(100):
        plan = plan / plan.sum(axis=1, keepdims=True) / 5
        plan = plan / plan.sum(axis=0, keepdims=True) / 4
    np.testing.assert_allclose(sinkhorn(distance, epsilon=0.5), plan)
    np.testing.assert_allclose(sinkhorn(7 * distance + 3, epsilon=0.5), plan)  # the scale of distances means nothing


def five_that_collide(seed):
    """Points, centroids, their nearest codes, and prefixes which only the first five points share."""
    rng = np.random.default_rng(seed)
    centroids = rng.normal(size=(16, 3))
    points = np.concatenate([centroids[3] + 0.1 * rng.normal(size=(5, 3)), rng.normal(size=(40, 3))])
    return points, centroids, nearest(points, centroids)[0], np.concatenate([np.zeros(5, dtype=int), 1 + np.arange(40)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999))
def test_the_sinkhorn_repair_helps_those_that_collide_and_leaves_the_rest(seed):
    points, centroids, before, prefix = five_that_collide(seed)
    after = sinkhorn_apart(points, centroids, before, prefix)
    assert after[5:].tolist() == before[5:].tolist()
    assert len(np.unique(after[:5])) > len(np.unique(before[:5])) or len(np.unique(before[:5])) == 5
    distance = squared_distance(points, centroids)[np.arange(45), after]
    worst = squared_distance(points, centroids).max(axis=1)
    assert distance[:5].sum() < worst[:5].sum()
    assert sinkhorn_apart(points, centroids, after, prefix).tolist() == after.tolist()


def test_the_sinkhorn_repair_parts_nearly_all():
    parted = 0
    for seed in range(100):
        points, centroids, before, prefix = five_that_collide(seed)
        parted += len(np.unique(sinkhorn_apart(points, centroids, before, prefix)[:5])) == 5
    assert parted >= 90


def test_the_sinkhorn_repair_gives_up_on_copies():
    points = np.ones((3, 2))
    code = sinkhorn_apart(points, np.eye(2), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
    assert code.shape == (3,) and set(code) <= {0, 1}


@pytest.mark.parametrize(("num_points", "num_codes"), [(7, 3), (6, 3), (5, 5)])
def test_cluster_sizes_are_within_one(num_points, num_codes):
    sizes = cluster_sizes(num_points, num_codes)
    assert sizes.sum() == num_points and np.ptp(sizes) <= 1
