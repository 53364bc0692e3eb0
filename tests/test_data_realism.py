"""The figures of logs and their distances, against closed forms, brute force and invariances."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toy_users import toy_catalog

from feedgym.data import realism
from feedgym.data.build import assemble_log
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS
from feedgym.data.splits import take_users, user_luck
from feedgym.envs.logging import collect_log
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig


def make_log(user, time_s, item, *, watch_s=None, click=None, new_visit=None, has_time=True):
    user, time_s = np.asarray(user), np.asarray(time_s, float)
    behaviours = np.zeros((len(user), len(BEHAVIOURS)), np.uint8)
    behaviours[:, BEHAVIOUR_IDX["click"]] = 0 if click is None else click
    users = user.max() + 1
    return assemble_log(
        user_ids_U=np.arange(users),
        profile_UF=np.zeros((users, 1), int),
        profile_names=("x",),
        profile_sizes=(1,),
        user_idx=user,
        timestamp_s=time_s,
        item_id=np.asarray(item),
        watch_s=np.zeros(len(user), np.float32) if watch_s is None else np.asarray(watch_s, np.float32),
        behaviours=behaviours,
        new_visit=np.diff(user, prepend=-1) != 0 if new_visit is None else np.asarray(new_visit, bool),
        has_time=has_time,
    )


@pytest.fixture(scope="module")
def feed():
    simulator = ShortVideo(ShortVideoConfig(num_items=200))
    return collect_log(simulator, num_users=60, num_visits=5, session_length=8, seed=3), simulator.catalog


def test_a_log_is_at_no_distance_from_itself(feed):
    _, _, found = realism.compare(feed, feed)
    assert {d.aspect for d in found} == set(realism.describe(*feed)) and len({d.aspect for d in found}) == 8
    assert all(d.distance == 0 or np.isnan(d.distance) for d in found)
    assert np.mean([d.distance == 0 for d in found]) > 0.9  # NaN only where the small log lacks the rare behaviours
    halves = [d.halves for d in found if d.figure == "distribution"]
    assert len(halves) == 8 and min(halves) > 0  # while its halves differ


def test_the_noise_is_the_mean_distance_of_halves_of_the_users(feed):
    log, catalog = feed
    noise = realism._noise(log, catalog, 5)
    apart = []
    for number in range(realism.NUM_HALVINGS):
        first_U = user_luck(log.user_ids_U, 5 + realism.HALVES + number) < 0.5
        clicks = [realism.describe(take_users(log, half_U), catalog) for half_U in (first_U, ~first_U)]
        apart.append(abs(np.subtract(*(found["behaviour rates"].figures["click"] for found in clicks))))
    assert noise["behaviour rates", "click", "absolute difference"] == pytest.approx(np.mean(apart))
    chosen = take_users(log, np.flatnonzero(user_luck(log.user_ids_U, 5) < 0.5))  # a part of a split of the same seed
    assert realism._noise(chosen, catalog, 5)


def test_the_order_of_users_does_not_matter(feed):
    log, catalog = feed
    other = take_users(log, np.random.default_rng(0).permutation(log.num_users))
    for a, b in zip(realism.describe(log, catalog).values(), realism.describe(other, catalog).values(), strict=True):
        np.testing.assert_allclose(list(a.figures.values()), list(b.figures.values()), atol=1e-12)
        if a.sample is not None:
            np.testing.assert_array_equal(np.sort(a.sample), np.sort(b.sample))
        if a.curve is not None:
            np.testing.assert_allclose(a.curve, b.curve, atol=1e-12)


def test_distances_are_symmetric_and_see_a_changed_log(feed):
    log, catalog = feed
    longer = (replace(log, watch_s=log.watch_s * np.float32(2)), catalog)
    there, back = (
        realism.distances(realism.describe(*a), realism.describe(*b)) for a, b in ((feed, longer), (longer, feed))
    )
    for d, e in zip(there, back, strict=True):
        assert d.distance == pytest.approx(e.distance, nan_ok=True)
        if d.aspect != "watch ratio" and d.aspect != "return gaps":
            assert d.distance == 0 or np.isnan(d.distance), d
    assert next(d.distance for d in there if d.aspect == "watch ratio" and d.kind == "KS") > 0.1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.lists(st.integers(0, 6), min_size=1, max_size=9))
def test_ks_is_the_largest_gap_between_the_distribution_functions(a, b):
    a, b = np.array(a), np.array(b)
    brute = max(abs(np.mean(a <= x) - np.mean(b <= x)) for x in range(7))
    assert realism.ks(a, b) == pytest.approx(brute)
    assert realism.ks(a, b) == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic)


def test_wasserstein_of_a_shifted_sample_is_the_shift():
    a = realism.Aspect(figures={}, sample=np.arange(5.0), unit="steps")
    b = realism.Aspect(figures={}, sample=np.arange(5.0) + 3, unit="steps")
    found = {d.kind: d.distance for d in realism.distances({"x": a}, {"x": b})}
    assert found == {"KS": pytest.approx(0.6), "Wasserstein (steps)": pytest.approx(3.0)}


def test_the_popularity_exponent_of_a_power_law_is_its_own():
    for exponent in (0.5, 0.9, 1.4):
        count_R = 1e6 * np.arange(1, 301) ** -exponent
        assert realism.popularity_exponent(count_R) == pytest.approx(exponent, abs=1e-9)
    assert np.isnan(realism.popularity_exponent(np.ones(50)))


def test_bimodality_of_known_samples():
    rng = np.random.default_rng(0)
    assert realism.bimodality(np.repeat([0.0, 1.0], 5000)) == pytest.approx(1, abs=0.01)
    assert realism.bimodality(np.linspace(0, 1, 10_000)) == pytest.approx(5 / 9, abs=0.01)
    assert realism.bimodality(rng.normal(size=50_000)) == pytest.approx(1 / 3, abs=0.02)
    assert np.isnan(realism.bimodality(np.ones(9)))


def test_clicks_of_one_user_correlate_as_they_were_drawn():
    rng = np.random.default_rng(0)
    trials_U = rng.integers(5, 30, 4000)
    assert realism.intraclass(rng.binomial(trials_U, 0.3), trials_U) == pytest.approx(0, abs=0.01)
    rate_U = rng.beta(2, 4, len(trials_U))  # a beta(a, b) mixture has correlation 1 / (a + b + 1)
    assert realism.intraclass(rng.binomial(trials_U, rate_U), trials_U) == pytest.approx(1 / 7, abs=0.01)
    always_U = np.where(rng.random(len(trials_U)) < 0.5, trials_U, 0)
    assert realism.intraclass(always_U, trials_U) == pytest.approx(1)


def test_sessions_and_gaps_of_a_log_made_by_hand():
    # Two visits of 2 and 1 items, 3600 s after the logout; one visit of 3 items.
    log = make_log(
        [0, 0, 0, 1, 1, 1], [0, 10, 3630, 0, 5, 9], [0, 1, 2, 0, 1, 2],
        watch_s=[10, 20, 5, 5, 4, 1], new_visit=[1, 0, 1, 1, 0, 0],
    )  # fmt: skip
    found = realism.describe(log, toy_catalog(6))
    assert found["session length"].sample.tolist() == [2, 1, 3]
    np.testing.assert_allclose(found["return gaps"].sample, [0])  # 3630 - 30 s is an hour, whose log is 0
    assert found["return gaps"].figures["back within 24 h"] == 1


def test_visits_of_both_logs_are_cut_alike():
    """One log says that two requests in ten minutes are two visits, the other that a pause of a day is none."""
    user, time_s, watch_s = [0, 0, 0, 0], [0, 600, 90_000, 90_010], [10, 10, 10, 10]
    catalog = toy_catalog(4)
    requests, whole = (
        realism.describe(make_log(user, time_s, range(4), watch_s=watch_s, new_visit=new), catalog)
        for new in ([1, 1, 1, 1], [1, 0, 0, 0])
    )
    for found in (requests, whole):
        assert found["session length"].sample.tolist() == [2, 2]
        np.testing.assert_allclose(found["return gaps"].sample, [np.log10((90_000 - 610) / 3600)])


def test_positions_and_topics_against_counting():
    rng = np.random.default_rng(1)
    user, item = np.repeat(np.arange(40), 12), rng.integers(0, 30, 480)
    click = rng.random(480) < 0.9 - 0.06 * np.tile(np.arange(12), 40)
    catalog = toy_catalog(30)
    found = realism.describe(make_log(user, np.tile(np.arange(12), 40), item, click=click), catalog)
    rate = click.reshape(40, 12).mean(axis=0) / click.mean()
    np.testing.assert_allclose(found["position effect"].curve, rate[:10])
    topic = catalog.topic_I[item].reshape(40, 12)
    share = np.bincount(topic.ravel()) / 480
    for lag in (1, 7):
        pairs = [topic[u, t] == topic[u, t + lag] for u in range(40) for t in range(12 - lag)]
        expected = (np.mean(pairs) - (share**2).sum()) / (1 - (share**2).sum())
        assert found["repeat-topic autocorrelation"].curve[lag - 1] == pytest.approx(expected)


def test_a_user_who_watches_one_topic_only_repeats_it_always():
    user = np.repeat(np.arange(3), 12)
    found = realism.describe(
        make_log(user, np.tile(np.arange(12), 3), user + 3 * np.tile(np.arange(12), 3)), toy_catalog(36)
    )
    np.testing.assert_allclose(found["repeat-topic autocorrelation"].curve, 1)


def test_what_a_log_cannot_tell_is_said(feed):
    order_only = make_log([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 2], has_time=False)
    catalog = replace(toy_catalog(3), topic_I=np.full(3, -1, np.int32))
    found = realism.describe(order_only, catalog)
    missing = {name for name, aspect in found.items() if aspect.missing}
    assert missing == {
        "session length",
        "watch ratio",
        "return gaps",
        "repeat-topic autocorrelation",
        "position effect",
    }
    for distance in realism.distances(realism.describe(*feed), found):
        if distance.aspect in missing:
            assert np.isnan(distance.distance) and "B: " in distance.missing
    with pytest.raises(ValueError, match="no examined exposure"):
        realism.describe(replace(order_only, examined=np.zeros(order_only.num_events, bool)), catalog)
