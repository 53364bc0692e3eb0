import numpy as np
import pytest

from feedgym.experiments.statistics import Ratio, interval, lift, resampling_counts, within_user_correlation


def test_interval_covers_the_true_mean_about_95_percent_of_the_time():
    rng = np.random.default_rng(0)
    counts = resampling_counts(80, seed=1, num_resamples=400)
    covered = 0
    for _ in range(200):
        found = interval(Ratio(rng.normal(3.0, 1.0, 80), np.ones(80)), counts)
        covered += found["low"] <= 3.0 <= found["high"]
    assert 0.89 <= covered / 200 <= 0.99


def test_ratio_weighs_users_by_their_denominator():
    metric = Ratio(np.array([1.0, 30.0]), np.array([1.0, 10.0]))
    assert metric.mean() == pytest.approx(31 / 11)


def test_paired_lift_is_exact_when_one_agent_is_a_multiple_of_the_other():
    control = Ratio(np.random.default_rng(0).gamma(2.0, size=50), np.ones(50))
    treated = Ratio(control.numerator_U * 1.3, np.ones(50))
    found = lift(treated, control, resampling_counts(50, seed=0))
    assert found == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3})


@pytest.mark.parametrize("ranks", [False, True])
def test_within_user_correlation_ignores_differences_between_users(ranks):
    scores = np.array([[1.0, 2.0, 3.0], [11.0, 12.0, 13.0], [5.0, 5.0, 5.0]])
    truth = np.array([[3.0, 2.0, 1.0], [-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
    assert within_user_correlation(scores, truth, ranks=ranks) == pytest.approx(-1.0)


def test_rank_correlation_sees_any_rising_curve_as_one():
    scores = np.arange(10.0)[None]
    assert within_user_correlation(scores, np.exp(scores), ranks=True) == pytest.approx(1.0)
    assert within_user_correlation(scores, np.exp(scores), ranks=False) < 0.9
