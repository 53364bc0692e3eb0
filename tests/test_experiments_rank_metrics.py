"""Rankers' figures against scikit-learn and against counting, candidates repeated as often as their users are drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from feedgym.experiments.rank.metrics import task_figures, watch_figures
from feedgym.experiments.statistics import interval, resampling_counts

USERS = 6


def candidates(seed, num=60):
    """Scores with ties, and a last user without candidates."""
    rng = np.random.default_rng(seed)
    label_N, prob_N = rng.random(num) < 0.4, rng.integers(1, 8, num) / 8
    return label_N, prob_N, rng.integers(USERS - 1, size=num)


@given(seed=st.integers(0, 1000))
def test_figures_are_those_of_the_candidates_repeated(seed):
    label_N, prob_N, user_N = candidates(seed)
    figures = task_figures("like", label_N, prob_N, user_N, USERS)
    counts_RU = resampling_counts(USERS, seed, 4)
    for r, counts_U in enumerate(counts_RU):
        often_N = counts_U[user_N].astype(int)
        label, prob, user = (np.repeat(x, often_N) for x in (label_N, prob_N, user_N))
        if label.all() or not label.any():
            assert np.isnan(figures["auc.like"].resampled(counts_RU)[r])
            continue
        rate = label.mean()
        loss = log_loss(label, prob)
        areas = []
        for u in np.unique(user):
            mine = user == u
            if 0 < label[mine].sum() < mine.sum():
                areas.append((roc_auc_score(label[mine], prob[mine]), mine.sum()))
        expected = {
            "auc": roc_auc_score(label, prob),
            "logloss": loss,
            "ne": loss / log_loss(label, np.full(len(label), rate)),
            "calibration": prob.sum() / label.sum(),
            "gauc": np.average([a for a, _ in areas], weights=[n for _, n in areas]) if areas else 0,
        }
        for name, value in expected.items():
            assert figures[f"{name}.like"].resampled(counts_RU)[r] == pytest.approx(value), name


def test_means_lie_in_their_intervals_and_the_order_of_candidates_is_nothing():
    label_N, prob_N, user_N = candidates(3, 400)
    figures = task_figures("click", label_N, prob_N, user_N, USERS)
    order_N = np.random.default_rng(0).permutation(400)
    again = task_figures("click", label_N[order_N], prob_N[order_N], user_N[order_N], USERS)
    counts_RU = resampling_counts(USERS, 0, 200)
    for name, figure in figures.items():
        found = interval(figure, counts_RU)
        assert found["low"] < found["mean"] < found["high"]
        assert interval(again[name], counts_RU) == pytest.approx(found)


def test_a_perfect_order_and_a_perfect_rate():
    label_N, user_N = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    right = task_figures("like", label_N, np.array([0.9, 0.1, 0.9, 0.1]), user_N, 2)
    blind = task_figures("like", label_N, np.full(4, 0.5), user_N, 2)
    assert right["auc.like"].mean() == right["gauc.like"].mean() == right["calibration.like"].mean() == 1
    assert blind["auc.like"].mean() == blind["gauc.like"].mean() == 0.5
    assert blind["ne.like"].mean() == pytest.approx(1) and right["ne.like"].mean() < 0.2


def test_watched_fractions_count_up_to_the_whole():
    found = watch_figures(np.array([0.5, 3.0]), np.array([0.25, 1.0]), np.array([0, 1]), 2)
    assert found["mae.watch"].mean() == pytest.approx(0.125)
    assert found["calibration.watch"].mean() == pytest.approx(1.25 / 1.5)
