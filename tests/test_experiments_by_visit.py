import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.by_visit import told_by_visit
from feedgym.experiments.repeats import concentration, favourites_of, first_times, used_up
from feedgym.experiments.serve import FIRST_REWARD, ServingRecord
from feedgym.experiments.statistics import Series, difference, intervals, resampling_counts

GONE = [-1, -1]
# Two users, three visits, two places; the second user leaves after two visits.
ITEMS_VUK = np.array([[[3, 5], [3, 4]], [[5, 3], [6, 3]], [[7, 3], GONE]])
EXAMINED_VUK = np.array([[[True, False], [True, True]], [[True, True], [True, False]], [[True, True], [False, False]]])


def test_first_times_repeats_and_favourites_by_hand():
    first_VUK = first_times(ITEMS_VUK, EXAMINED_VUK)
    assert first_VUK.tolist() == [
        [[True, False], [True, True]],  # the first user did not see item 5
        [[True, False], [True, False]],  # so it is new now, and 3 is not; the second user did not reach 3
        [[True, False], [False, False]],
    ]
    used_VU = used_up(ITEMS_VUK, first_VUK, np.array([[5, 7], [6, 9]]))
    assert used_VU[:2].tolist() == [[0, 0], [0.5, 0.5]] and used_VU[2, 0] == 1


def test_concentration_by_hand():
    # Visit 1 serves 3 twice and 4, 5 once; visit 2 serves 3 twice, 5, 6; visit 3 serves 7, 3.
    assert concentration(ITEMS_VUK, top=1).tolist() == [0.5, 0.5, 0.5]
    assert concentration(ITEMS_VUK, top=2).tolist() == [0.75, 0.75, 1]
    assert concentration(ITEMS_VUK, top=20).tolist() == [1, 1, 1]
    assert np.isnan(concentration(np.full((1, 2, 2), -1))[0])


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**31))
def test_what_was_seen_before_is_that_of_a_plain_loop(visits, users, length, items, seed):
    rng = np.random.default_rng(seed)
    items_VUK = rng.integers(items, size=(visits, users, length))
    examined_VUK = rng.random(items_VUK.shape) < 0.7
    favourites_UN = np.stack([rng.choice(items + 2, 2, replace=False) for _ in range(users)])
    first_VUK = first_times(items_VUK, examined_VUK)
    used_VU = used_up(items_VUK, first_VUK, favourites_UN)
    for u in range(users):
        known = set()
        for v in range(visits):
            for k in range(length):
                assert first_VUK[v, u, k] == (examined_VUK[v, u, k] and items_VUK[v, u, k] not in known)
                if examined_VUK[v, u, k]:
                    known.add(items_VUK[v, u, k])
            assert used_VU[v, u] == len(known & set(favourites_UN[u].tolist())) / 2


def record(reward_VU, alive_VU=None, **others):
    reward_VU = np.asarray(reward_VU, float)
    alive_VU = np.ones_like(reward_VU) if alive_VU is None else np.asarray(alive_VU, float)
    return ServingRecord({"true_reward": reward_VU * alive_VU, "visits": alive_VU, **others}, np.zeros(len(reward_VU)))


def test_means_are_of_those_still_there_and_none_where_nobody_is():
    alive_VU = [[1, 1, 1], [1, 0, 1], [0, 0, 0]]
    found = record([[1, 2, 6], [4, 9, 0], [5, 5, 5]], alive_VU).series("true_reward")
    assert found.mean()[:2].tolist() == [3, 2] and np.isnan(found.mean()[2])
    told = intervals(found, resampling_counts(3, 0))
    assert told["mean"][:2] == [3, 2] and np.isnan(told["low"][2]) and np.isnan(told["high"][2])
    assert 1 <= told["low"][0] < 3 < told["high"][0] <= 6


def test_intervals_of_visits_are_quantiles_over_resampled_users():
    rng = np.random.default_rng(0)
    numerator_UV, denominator_UV = rng.gamma(2.0, size=(12, 3)), rng.integers(1, 5, (12, 3)).astype(float)
    counts_RU = resampling_counts(12, 0, 50)
    plain_RV = np.array(
        [(c @ numerator_UV) / (c @ denominator_UV) for c in counts_RU]  # one resample at a time
    )
    told = intervals(Series(numerator_UV, denominator_UV), counts_RU)
    np.testing.assert_allclose(told["low"], np.quantile(plain_RV, 0.025, axis=0))
    np.testing.assert_allclose(told["high"], np.quantile(plain_RV, 0.975, axis=0))


def test_differences_are_paired_over_users():
    """Users differ by far more than the agents do, and all by the same: only pairing sees it."""
    base_VU = np.random.default_rng(0).gamma(2.0, 5.0, size=(2, 40))
    one, other = (
        record(base_VU + np.array([[0.5], [-0.25]])).series("true_reward"),
        record(base_VU).series("true_reward"),
    )
    told = difference(one, other, resampling_counts(40, 0))
    for end in ("mean", "low", "high"):
        assert told[end] == pytest.approx([0.5, -0.25])


def test_the_table_has_every_agent_and_the_pairs_that_were_served():
    alive_VU = np.array([[1.0, 1, 1], [1, 0, 1]])
    served = {
        "base": record([[1, 2, 3], [1, 2, 3]], alive_VU, repeats=np.ones((2, 3)), seen=np.full((2, 3), 4.0)),
        "aligned": record([[2, 3, 4], [2, 3, 4]], alive_VU),
    }
    pairs = [("aligned", "base"), ("aligned_searched", "base_searched")]
    told = told_by_visit(served, pairs, resampling_counts(3, 0))
    assert list(told["agents"]) == ["base", "aligned"] and list(told["difference"]) == ["aligned over base"]
    assert told["difference"]["aligned over base"]["low"] == pytest.approx([1, 1])
    assert told["agents"]["base"]["repeats"]["mean"] == [0.25, 0.25] and "repeats" not in told["agents"]["aligned"]
    assert told["agents"]["base"]["alive"]["mean"] == pytest.approx([1, 2 / 3])
    json.dumps(told, allow_nan=False)


def test_the_mean_of_the_first_visits_is_told_beside_that_of_more():
    reward_VU = np.array([[10.0, 20]] * 8 + [[0, 0]] * 2)
    told = record(reward_VU).ratios()
    assert told["true_reward"].mean() == 12 and told[FIRST_REWARD].mean() == 15
    assert FIRST_REWARD not in record(reward_VU[:8]).ratios()


def test_favourites_of_the_short_video_users_are_those_that_please_most():
    users = ShortVideo(ShortVideoConfig(num_items=90))
    state = users.reset(np.arange(3, dtype=np.uint64))
    c, latents = users.config, users.latents
    liking_UI = c.interest_weight * state.interest_UD @ latents.z_ID.T + c.quality_weight * latents.quality_I
    liking_UI = liking_UI - c.enjoyment_clickbait * latents.clickbait_I
    best_UN = np.argsort(-liking_UI, axis=1)[:, :50]
    assert np.sort(favourites_of(users, state), axis=1).tolist() == np.sort(best_UN, axis=1).tolist()
    few = ShortVideo(replace(users.config, num_items=30))
    assert favourites_of(few, few.reset(np.arange(3, dtype=np.uint64))).shape == (3, 30)
    assert favourites_of(object(), state) is None
