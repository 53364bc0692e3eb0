import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedgym.experiments.align import overoptimisation
from feedgym.experiments.align.overoptimisation import Curve, fit, predicted, rising_then_falling, turnover


def planted(rng, form, alpha, beta, *, users=150, d=(0.5, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8), noise=0.4, shared=0.3):
    """A curve whose users' gains scatter around the form, each user alike in all rounds but for noise."""
    d_N = np.array(d)
    kl_NU = d_N[:, None] ** 2 * rng.gamma(20, 1 / 20, (len(d_N), users))
    own_U = 1 + shared * rng.normal(size=users)
    gain_NU = predicted(d_N, alpha, beta, form)[:, None] * own_U + noise * rng.normal(size=kl_NU.shape)
    zeros_1U = np.zeros((1, users))
    return Curve(kl_NU=np.vstack([zeros_1U, kl_NU]), gain_NU=np.vstack([zeros_1U, gain_NU]))


@pytest.mark.parametrize(("form", "alpha", "beta"), [("best_of_n", 1.0, 0.3), ("rl", 0.8, 0.6)])
def test_without_noise_the_planted_curve_comes_back(form, alpha, beta):
    kl_NU = np.repeat(np.array([[0.0, 0.3, 0.6, 1.4, 2.6, 4.0, 5.8, 7.8]]).T, 50, axis=1)
    exact = Curve(kl_NU=kl_NU, gain_NU=predicted(np.sqrt(kl_NU), alpha, beta, form))
    found = fit([exact], form)
    assert found["alpha"]["mean"] == pytest.approx(alpha) and found["beta"]["mean"] == pytest.approx(beta)
    d = alpha / (2 * beta) if form == "best_of_n" else np.exp(alpha / beta - 1)
    highest = predicted(np.linspace(0.01, 4, 4000), alpha, beta, form).max()
    assert found["peak"] == pytest.approx({"d": d, "gain": highest}, rel=1e-5)
    assert found["fits"] and found["bends"] == 1 and found["points"] == 7


def test_intervals_cover_what_was_planted_about_95_percent_of_the_time(monkeypatch):
    monkeypatch.setattr(overoptimisation, "NUM_RESAMPLES", 400)
    covered = {"alpha": 0, "beta": 0, "d_star": 0, "r_star": 0}
    truth = {"alpha": 1.0, "beta": 0.3, "d_star": 1 / 0.6, "r_star": 1 / 1.2}
    for seed in range(100):
        found = fit([planted(np.random.default_rng(seed), "best_of_n", 1.0, 0.3, users=80)], "best_of_n", seed)
        for name, value in truth.items():
            covered[name] += found[name]["low"] <= value <= found[name]["high"]
    assert all(88 <= count <= 99 for count in covered.values()), covered


def test_runs_that_differ_widen_the_interval():
    rng = np.random.default_rng(3)
    alike = [planted(rng, "rl", 0.8, 0.4) for _ in range(4)]
    apart = [planted(rng, "rl", alpha, 0.4) for alpha in (0.5, 0.7, 0.9, 1.1)]
    width = [found["alpha"]["high"] - found["alpha"]["low"] for found in (fit(alike, "rl"), fit(apart, "rl"))]
    assert width[1] > 2 * width[0]


def test_a_peak_beyond_what_was_seen_is_not_told():
    rng = np.random.default_rng(4)
    rising = fit([planted(rng, "best_of_n", 1.0, 0.1, noise=0.05)], "best_of_n")  # its peak is at 5
    assert rising["peak"] is None and "outside the observed distances" in rising["no_peak"]
    straight = fit([planted(rng, "best_of_n", 0.5, -0.1, noise=0.05)], "best_of_n")
    assert straight["peak"] is None and "does not bend" in straight["no_peak"]
    assert straight["d_star"]["high"] == np.inf and straight["bends"] < 0.05


def test_a_form_that_the_points_contradict_does_not_fit():
    rng = np.random.default_rng(5)
    curve = planted(rng, "best_of_n", 1.0, 0.0, users=400, noise=0.3, shared=0)
    steps_N = np.array([0, 0, 0, 0, 2.0, 2.0, 2.0, 0])  # nothing, then a jump, then nothing again
    jump = Curve(kl_NU=curve.kl_NU, gain_NU=steps_N[:, None] + 0.3 * rng.normal(size=curve.gain_NU.shape))
    assert not fit([jump], "best_of_n")["fits"] and not fit([jump], "rl")["fits"]
    assert fit([curve], "best_of_n")["fits"]


def test_points_next_to_the_base_are_left_out_and_too_few_are_refused():
    rng = np.random.default_rng(6)
    curve = planted(rng, "rl", 0.8, 0.4, d=(0.9, 1.4, 2.0))
    noise_1U = rng.normal(size=(1, curve.kl_NU.shape[1]))  # a divergence that is nothing but noise
    more = Curve(
        kl_NU=np.vstack([curve.kl_NU, noise_1U - noise_1U.mean()]), gain_NU=np.vstack([curve.gain_NU, noise_1U])
    )
    assert fit([more], "rl")["points"] == 3
    assert fit([Curve(kl_NU=curve.kl_NU[:3], gain_NU=curve.gain_NU[:3])], "rl") is None


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=7), st.integers(0, 99))
def test_the_free_curve_rises_then_falls_and_leaves_such_curves_alone(gains, seed):
    gain_N = np.array(gains)
    d_N = np.random.default_rng(seed).permutation(len(gain_N)).astype(float)
    free_N = rising_then_falling(d_N, gain_N, np.ones(len(gain_N)))
    steps = np.sign(np.round(np.diff(free_N[np.argsort(d_N)]), 9))
    steps = steps[steps != 0]
    assert (np.diff(steps) <= 0).all()  # never up again after down
    np.testing.assert_allclose(rising_then_falling(d_N, free_N, np.ones(len(gain_N))), free_N, atol=1e-9)


def test_the_turnover_is_the_first_round_that_is_as_good_as_the_best():
    rng = np.random.default_rng(7)
    mean_N = np.array([2.0, 2.5, 3.0, 3.001, 2.9, 2.6])
    luck_U = rng.normal(size=200)  # which all rounds share, and which must not blur the comparison
    found = turnover(mean_N[:, None] + luck_U + 0.1 * rng.normal(size=(6, 200)))
    assert found["round"] == 2 and found["over_optimised"]
    assert found["gain"] == pytest.approx(1.0, abs=0.05) and found["fall"] == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(("last", "delta", "expected"), [(2.98, None, False), (2.9, None, True), (2.9, 0.2, False)])
def test_a_small_fall_is_no_over_optimisation(last, delta, expected):
    noise = 0.01 * np.random.default_rng(8).normal(size=(4, 300))
    found = turnover(np.array([2.0, 2.6, 3.0, last])[:, None] + noise, delta)
    assert found["over_optimised"] is expected
