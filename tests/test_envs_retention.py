import numpy as np
import pytest

from feedgym.envs.retention import retention_curve, return_statistics

INF = np.inf


def test_return_statistics_by_hand():
    told = return_statistics([0.5, 1.0, 2.5, INF, INF], num_days=3)
    assert told.share_D.tolist() == [0.4, 0.4, 0.6]
    assert (told.num_visits, told.churned) == (5, pytest.approx(0.4))
    assert told.mean_days == pytest.approx(4 / 3) and told.median_days == 1.0
    gone = return_statistics([INF])
    assert gone.mean_days == INF and not gone.share_D.any()


def test_retention_curve_by_hand():
    """User 7 comes on days 0, 0, 1 and 3; user 2 on day 0 and 1.5 days later; user 5 never comes back."""
    user = [7, 2, 7, 7, 5, 7, 2]
    elapsed_s = [0, 8640, 0, 0, 60, 0, 0]
    gap_days = [0.5, 1.4, 1.25, 1.5, INF, INF, 90]
    assert retention_curve(user, elapsed_s, gap_days, num_days=3).tolist() == [2 / 3, 0, 1 / 3]


def test_retention_curve_is_what_a_loop_over_users_counts():
    rng = np.random.default_rng(0)
    user_N = rng.integers(20, size=300)
    elapsed_s_N, gap_N = rng.uniform(0, 5000, 300), rng.exponential(0.6, 300)
    gap_N[rng.random(300) < 0.05] = INF
    seen = []
    for user in np.unique(user_N):
        days, clock = set(), 0.0
        for row in np.flatnonzero(user_N == user):
            if np.isfinite(gap_N[row]):
                clock += elapsed_s_N[row] / 86_400 + gap_N[row]
                days.add(int(clock))
        seen.append([day in days for day in range(1, 8)])
    np.testing.assert_allclose(retention_curve(user_N, elapsed_s_N, gap_N), np.mean(seen, axis=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: return_statistics([]), "0 gaps"),
        (lambda: return_statistics([1.0, -1.0]), "least -1.0"),
        (lambda: return_statistics([np.nan]), "1 gaps"),
        (lambda: return_statistics([1.0], num_days=0), "num_days=0"),
        (lambda: retention_curve([1], [2.0], []), "1 users, 1 lengths, 0 gaps"),
    ],
)
def test_user_faults_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
