"""Balanced clusters without a matrix of all pairs: exact sizes, distances near the exact auction's, no collisions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig, assignment, many_points
from feedgym.tokenizers.assignment import assign, auction, cluster_sizes, is_large, squared_distance
from feedgym.tokenizers.many_points import auction_of_many, nearest_few, separated


def uneven(num_points, width=8, seed=0):
    """Clusters of very different sizes, as topics are."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(12, width))
    return centres[rng.geometric(0.3, num_points) % 12] + rng.normal(size=(num_points, width))


def total(points, centroids, code):
    return ((points - centroids[code]) ** 2).sum()


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(assignment, "EXACT_PAIRS", 0)


def test_neighbours_are_the_nearest_clusters():
    points, centroids = uneven(50), uneven(40, seed=1)
    cost, cluster = nearest_few(points, centroids, 5)
    distance = squared_distance(points, centroids)
    assert (cluster == distance.argsort(axis=1)[:, :5]).all()
    own = (points**2).sum(1)[:, None]
    np.testing.assert_allclose(cost + own, np.sort(distance, axis=1)[:, :5], rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(st.data())
def test_any_sizes_are_filled_exactly(data):
    sizes = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=60).filter(any)))
    points = uneven(sizes.sum(), seed=data.draw(st.integers(0, 99)))
    points[: data.draw(st.integers(1, len(points)))] = points[0]  # copies, between which a bid cannot choose
    code = auction_of_many(points, uneven(len(sizes), seed=1), sizes)
    assert np.bincount(code, minlength=len(sizes)).tolist() == sizes.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_distances_are_near_those_of_the_exact_auction(seed):
    points = uneven(4000, seed=seed)
    centroids = points[np.random.default_rng(seed).permutation(4000)[:100]]
    sizes = cluster_sizes(4000, 100)
    exact = total(points, centroids, auction(points, centroids, sizes))
    assert 0.999 * exact <= total(points, centroids, auction_of_many(points, centroids, sizes)) <= exact * 1.08
    assert total(points, centroids, assign(points, centroids, sizes, "greedy")) > exact * 1.15


def test_the_way_is_chosen_by_size(monkeypatch):
    assert not is_large(20_000, 256) and is_large(1_000_000, 128)
    points, centroids, sizes = uneven(300), uneven(10, seed=1), cluster_sizes(300, 10)
    exact = auction(points, centroids, sizes)
    assert (assign(points, centroids, sizes, "auction") == exact).all()
    monkeypatch.setattr(assignment, "EXACT_PAIRS", 299 * 10)
    assert (assign(points, centroids, sizes, "auction") == auction_of_many(points, centroids, sizes)).all()


@settings(max_examples=40)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(2, 12), st.integers(1, 6))
def test_points_of_one_prefix_are_separated(seed, limit, num_codes, num_prefixes):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, limit * num_codes + 1, num_prefixes)  # up to the last place of every code
    prefix = np.repeat(np.arange(num_prefixes), size)
    points, centroids = uneven(len(prefix), seed=seed), uneven(num_codes, seed=seed + 1)
    before = auction_of_many(points, centroids, cluster_sizes(len(points), num_codes))
    code = separated(points, centroids, before, prefix, limit)
    assert np.bincount(prefix * num_codes + code).max() <= limit


def test_swaps_keep_all_sizes_where_codes_are_not_tight():
    rng = np.random.default_rng(0)
    points, centroids, prefix = uneven(2000), uneven(64, seed=1), rng.integers(0, 100, 2000)
    before = auction_of_many(points, centroids, cluster_sizes(2000, 64))
    code = separated(points, centroids, before, prefix, 1)
    assert np.bincount(prefix * 64 + before).max() > 1 == np.bincount(prefix * 64 + code).max()
    assert (np.bincount(code) == np.bincount(before)).all()
    assert total(points, centroids, code) < 1.15 * total(points, centroids, before)


def test_without_a_swap_a_point_takes_a_free_code(monkeypatch):
    monkeypatch.setattr(many_points, "SWAPS", 0)
    prefix, code = np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64)
    assert sorted(separated(uneven(4), uneven(4, seed=1), code, prefix, 1)) == [0, 1, 2, 3]


@pytest.mark.parametrize("num_codes", [(16, 16, 16), (32, 32)])
def test_a_large_catalogue_has_unique_tuples_and_equal_sizes(num_codes, everything_is_large, monkeypatch):
    content = torch.from_numpy(uneven(700))
    config = ResidualKMeansConfig(num_codes=num_codes)
    large = ResidualKMeans(config).fit(content)
    assert len(large.codes_IL.unique(dim=0)) == 700
    for code, size in zip(large.codes_IL.T, num_codes, strict=True):
        counts = code.bincount(minlength=size)
        assert counts.max() - counts.min() <= 3
    assert torch.equal(large.codes_IL, ResidualKMeans(config).fit(content).codes_IL)
    monkeypatch.setattr(assignment, "EXACT_PAIRS", 8_000_000)
    errors = [
        float((k.reconstruct(k.codes_IL) - content).square().mean())
        for k in (large, ResidualKMeans(config).fit(content))
    ]
    assert errors[0] < 1.2 * errors[1]
