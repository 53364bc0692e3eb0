import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, ttest_rel

from feedgym.experiments.over_seeds import (
    against,
    aggregate,
    holm,
    in_bold,
    interquartile_mean,
    paired_p,
    probability_of_improvement,
)


def test_the_interquartile_mean_is_that_of_the_middle_half_of_all_runs():
    value_NM = np.array([[1.0, 100.0], [2.0, 3.0], [4.0, -50.0], [5.0, 6.0]])
    assert interquartile_mean(value_NM) == pytest.approx((2 + 3 + 4 + 5) / 4)
    found = aggregate(value_NM)
    assert found["mean"] == pytest.approx(3.5) and found["worst"] == -50
    assert found["low"] <= found["mean"] <= found["high"]


def test_its_interval_covers_about_95_percent_and_narrows_with_runs():
    rng = np.random.default_rng(0)
    covered = [0.0] * 60
    for n in range(60):
        found = aggregate(rng.normal(2.0, 1.0, (10, 3)), seed=n)
        covered[n] = found["low"] <= 2.0 <= found["high"]
    assert np.mean(covered) > 0.85
    width = [np.subtract(*[aggregate(rng.normal(size=(n, 2)))[end] for end in ("high", "low")]) for n in (4, 64)]
    assert width[1] < width[0] / 2


def test_resamples_come_from_their_seed_and_not_from_a_global_generator():
    value_NM = np.random.default_rng(0).normal(size=(6, 2))
    np.random.seed(1)  # noqa: NPY002
    first = aggregate(value_NM, seed=3)
    np.random.seed(2)  # noqa: NPY002
    assert aggregate(value_NM, seed=3) == first != aggregate(value_NM, seed=4)


def test_the_probability_of_improvement_is_mann_whitneys():
    rng = np.random.default_rng(1)
    ours_NM, theirs_NM = rng.integers(0, 4, (7, 3)) + 1.0, rng.integers(0, 4, (7, 3)) + 0.0
    expected = np.mean([mannwhitneyu(ours_NM[:, m], theirs_NM[:, m]).statistic / 49 for m in range(3)])
    found = probability_of_improvement(ours_NM, theirs_NM)
    assert found["mean"] == pytest.approx(expected)
    assert probability_of_improvement(theirs_NM, ours_NM)["mean"] == pytest.approx(1 - expected)
    assert probability_of_improvement(ours_NM, ours_NM)["mean"] == pytest.approx(0.5)


def test_runs_of_a_seed_are_drawn_together():
    seed_N1 = 10 * np.random.default_rng(2).normal(size=(8, 1))  # seeds differ more than the methods do
    rng = np.random.default_rng(3)
    ours_N1, theirs_N1 = seed_N1 + 0.1, seed_N1
    shuffled = probability_of_improvement(ours_N1, rng.permutation(theirs_N1))
    paired = probability_of_improvement(ours_N1, theirs_N1)
    assert paired["mean"] == shuffled["mean"]
    assert paired["high"] - paired["low"] < 0.5 * (shuffled["high"] - shuffled["low"])


@given(st.integers(0, 1000), st.integers(2, 9))
def test_p_is_that_of_the_paired_t_test(seed, runs):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=runs), rng.normal(0.5, 1, size=runs)
    assert paired_p(left - right) == pytest.approx(ttest_rel(left, right).pvalue)


def test_p_where_the_test_has_no_answer():
    assert paired_p(np.array([3.0])) == 1 and paired_p(np.zeros(4)) == 1 and paired_p(np.ones(4)) == 0


def test_holms_correction():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])


def test_chance_alone_is_called_a_difference_in_5_percent_of_families():
    rng = np.random.default_rng(4)
    families = [against("a", {name: rng.normal(size=6) for name in "abcdefgh"}) for _ in range(100)]
    wrong = [any(row["p_holm"] < 0.05 for row in family.values()) for family in families]
    assert np.mean(wrong) < 0.1
    bold = [in_bold({name: rng.normal(size=6) for name in "abcdefgh"}) for _ in range(100)]
    assert np.mean([bool(names) for names in bold]) < 0.1


def test_differences_are_taken_seed_by_seed():
    rng = np.random.default_rng(5)
    seed_N = 10 * rng.normal(size=6)
    values = {
        "base": seed_N,
        "better": seed_N + 1 + 0.1 * rng.normal(size=6),
        "alike": seed_N + 0.1 * rng.normal(size=6),
    }
    found = against("base", values)
    assert found["better"]["low"] > 0.8 and found["better"]["p_holm"] < 0.001
    assert found["alike"]["low"] < 0 < found["alike"]["high"] and found["alike"]["p_holm"] > 0.05
    assert len(found["better"]["runs"]) == 6 and "base" not in found


def test_bold_is_what_nothing_beats_and_nothing_where_seeds_cannot_tell():
    rng = np.random.default_rng(6)
    seed_N = 10 * rng.normal(size=8)
    near = {"first": seed_N + 1, "second": seed_N + 1 + 0.3 * rng.normal(size=8)}
    assert in_bold({**near, "last": seed_N + 0.1 * rng.normal(size=8)}) == {"first", "second"}
    assert in_bold(near) == set()
    assert in_bold({"first": np.array([3.0]), "second": np.array([1.0])}) == set()
