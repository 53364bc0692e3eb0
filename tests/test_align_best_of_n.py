from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedgym.experiments.align.best_of_n import best_of_n, best_of_n_kl, doublings


def by_brute_force(score_S, value_S, n):
    """Mean over all subsets of n of the best one's value; equals are chosen at random."""
    found = []
    for subset in map(list, combinations(range(len(score_S)), n)):
        best = score_S[subset] == score_S[subset].max()
        found.append(value_S[subset][best].mean())
    return np.mean(found)


@given(st.integers(0, 10_000), st.integers(1, 7), st.booleans())
def test_the_curve_is_the_mean_over_all_subsets(seed, num_samples, ties):
    rng = np.random.default_rng(seed)
    score_US = rng.integers(0, 3, (3, num_samples)).astype(float) if ties else rng.normal(size=(3, num_samples))
    value_US = rng.normal(size=(3, num_samples))
    sizes = range(1, num_samples + 1)
    expected_UX = [[by_brute_force(score_US[u], value_US[u], n) for n in sizes] for u in range(3)]
    np.testing.assert_allclose(best_of_n(score_US, value_US, sizes), expected_UX, atol=1e-12)


def test_one_of_one_is_the_mean_and_one_of_all_the_best():
    rng = np.random.default_rng(0)
    score_US, value_US = rng.normal(size=(5, 512)), rng.normal(size=(5, 512))
    ends_UX = best_of_n(score_US, value_US, [1, 512])
    np.testing.assert_allclose(ends_UX[:, 0], value_US.mean(axis=1))
    np.testing.assert_allclose(ends_UX[:, 1], value_US[np.arange(5), score_US.argmax(axis=1)])


def test_it_has_no_bias_where_the_plain_best_of_one_pool_per_size_is_the_reference():
    rng = np.random.default_rng(1)
    score_US = rng.normal(size=(4000, 64))
    value_US = 0.6 * score_US + rng.normal(size=score_US.shape)
    expected = 0.6 * 1.4236  # mean of the largest of 8 standard normals
    assert best_of_n(score_US, value_US, [8]).mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("sizes", [[0], [5], [1, 9]])
def test_sizes_beyond_the_pool_are_refused(sizes):
    with pytest.raises(ValueError, match="between 1 and the 4 samples"):
        best_of_n(np.zeros((2, 4)), np.zeros((2, 4)), sizes)


def test_without_ties_the_divergence_is_the_known_formula():
    sizes = np.array([1, 2, 4, 8, 16, 32, 64, 128])
    kl_UX = best_of_n_kl(np.random.default_rng(0).normal(size=(3, 128)), sizes)
    np.testing.assert_allclose(kl_UX, np.tile(np.log(sizes) - (sizes - 1) / sizes, (3, 1)), atol=1e-12)


@pytest.mark.parametrize("n", [2, 8, 32])
def test_with_ties_it_is_that_of_the_outcomes_and_below_the_formula(n):
    # Five outcomes of shares .2; the three best of them tie, so best-of-n takes one of the three at random.
    score_US = np.repeat([[0.0, 1.0, 2.0, 2.0, 2.0]], 4, axis=1)
    prob, level = np.full(5, 0.2), np.array([0, 1, 2, 2, 2])
    below = np.array([0.0, 0.2, 0.4, 1.0])
    chosen = np.diff(below**n)[level] * prob / np.diff(below)[level]
    kl = float((chosen * np.log(chosen / prob)).sum())
    assert best_of_n_kl(score_US, [n])[0, 0] == pytest.approx(kl, abs=1e-12)
    assert kl < np.log(n) - (n - 1) / n


def test_a_pool_of_one_score_costs_nothing():
    np.testing.assert_allclose(best_of_n_kl(np.ones((2, 16)), [1, 4, 16]), 0, atol=1e-12)


def test_sizes_double_up_to_the_pool():
    assert doublings(1) == [1]
    assert doublings(8) == [1, 2, 4, 8]
    assert doublings(12) == [1, 2, 4, 8, 12]
