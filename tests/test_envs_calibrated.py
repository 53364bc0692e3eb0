"""The calibrated short-video users, and the terms that are off in ShortVideo's defaults."""

import hashlib
from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
from scipy.special import expit

from feedgym.data.events import DAY_S
from feedgym.data.realism import describe
from feedgym.data.sessions import logged_sessions, weekday
from feedgym.envs import luck
from feedgym.envs.feed import make_simulator
from feedgym.envs.history import event_times_s
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import states_at
from feedgym.envs.short_video import CalibratedConfig, ShortVideo, ShortVideoCalibrated, ShortVideoConfig
from feedgym.envs.short_video.population import Terms
from feedgym.envs.truth import true_value
from feedgym.experiments.configs import UsersConfig
from feedgym.experiments.logs import simulator_of
from feedgym.protocols import take_users

SMALL = {"num_items": 80, "memory_items": 8}
STRONG = CalibratedConfig(
    **vars(ShortVideoConfig(**SMALL))
    | {"satisfaction_rate": 0.3, "satiation_hours": 48.0, "churn_logit": -1.0, "drift_rate": 0.1},
    satisfaction_bar=0.8,
    churn_fatigue=9.0,
    gap_fatigue=4.0,
    gap_min_hours=3.0,
    week=(0.1, 3.0, 1.0, 0.2, 1.0, 0.5, 2.0),
    drift_watched=0.4,
    drift_core=0.2,
    drift_limit=0.9,
)
"""ShortVideo with all terms on, and strong."""


def lived(simulator, num_users, visits=4, length=6):
    """Users with a past."""
    state, rng = simulator.reset(user_seeds(num_users, 0, "test")), np.random.default_rng(0)
    for _ in range(visits):
        _, state = simulator.respond(state, rng.integers(simulator.config.num_items, size=(num_users, length)))
    return state


def same_bits(a, b):
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert x.dtype == y.dtype and np.array_equal(x, y), f.name


# ---------------------------------------------------------------- ShortVideo is what it was


def test_logs_of_short_video_are_those_of_before():
    """Made before the new terms were: what was served and answered to the bit, times nearly so."""
    log = collect_log(
        ShortVideo(ShortVideoConfig(num_items=300, memory_items=16)),
        num_users=60,
        num_visits=8,
        session_length=6,
        seed=3,
    )
    told = hashlib.sha256()
    for column in (log.event, log.session_id.astype(np.int64), log.position, log.item_id, log.examined, log.behaviours):
        told.update(str(column.dtype).encode() + str(column.shape).encode() + np.ascontiguousarray(column).tobytes())
    assert told.hexdigest().startswith("5fc4daae20025a2f")
    assert log.watch_s.sum(dtype=np.float64) == pytest.approx(34232.110537140514, rel=1e-5)
    assert log.timestamp_s.sum() == pytest.approx(1203671027.8315647, rel=1e-6)
    assert np.nansum(log.propensity, dtype=np.float64) == pytest.approx(36.68989696833546, rel=1e-4)


def test_with_the_constants_of_short_video_the_calibrated_one_is_it():
    plain = ShortVideoConfig(**SMALL)
    a, b = ShortVideo(plain), ShortVideoCalibrated(CalibratedConfig(**vars(plain), **vars(Terms())))
    state, slates = lived(a, 50), np.random.default_rng(1).integers(80, size=(50, 6))
    for one, other in zip(a.respond(state, slates), b.respond(state, slates), strict=True):
        same_bits(one, other)
    assert np.array_equal(a.ranker_score(state, slates), b.ranker_score(state, slates))


def test_interests_hardly_move_where_the_drift_is_off():
    state = lived(ShortVideo(ShortVideoConfig(**SMALL)), 50, visits=60)
    assert (np.vecdot(state.interest_UD, state.core_UD) > 0.99).all()


# ---------------------------------------------------------------- the equations, one user at a time


def plain_end(simulator, state, u, slate, clicks, watch_s):
    """Satisfaction, fatigue, interests and chances after a visit, in float64, given its clicks and seconds."""
    c, truth = simulator.config, simulator.latents
    theta, core, s = (x[u].astype(float) for x in (state.interest_UD, state.core_UD, state.mood_UD))
    f, satisfaction = state.satiation_UM[u].astype(float), float(state.satisfaction_U[u])
    ring = {int(i) for i in state.seen_UR[u] if i >= 0}
    sated, w, y = [], 0.0, np.zeros_like(theta)
    for item, click, seconds in zip(slate, clicks, watch_s, strict=True):
        z, m = truth.z_ID[item].astype(float), truth.mixture_IM[item].astype(float)
        g = c.interest_weight * theta @ z + c.mood_weight * s @ z + c.quality_weight * truth.quality_I[item]
        g -= c.satiation_weight * f @ m + c.seen_penalty * (int(item) in ring)
        g += c.novelty_weight * state.novelty_U[u] * (f[truth.topic_I2[item, 0]] < c.novelty_satiation)
        e = g - c.enjoyment_clickbait * truth.clickbait_I[item]
        sated.append(f @ m)
        part = 1 if click else c.satisfaction_skip
        satisfaction += c.satisfaction_rate * (np.tanh(e - c.satisfaction_bar) * part - satisfaction)
        liked = click * max(0.0, np.tanh(e))
        w, y = w + liked, y + liked * z
        s = s + c.mood_rate * np.tanh(e) * click * (z - s)
        f = f + c.satiation_rate * m * (c.satiation_skip + (1 - c.satiation_skip) * click) * (1 - f)
        f = f * np.exp(-seconds / (3600 * c.satiation_hours))
        ring.add(int(item))
    fatigue = np.mean(sated)
    x = theta + c.drift_rate * (s - theta) + c.drift_watched * (y - w * theta) / max(w, 1)
    x = x + c.drift_core * (core - theta)
    x /= np.linalg.norm(x)
    if x @ core < c.drift_limit:  # turned within the plane of x and the core
        off = x - (x @ core) * core
        x = c.drift_limit * core + np.sqrt(1 - c.drift_limit**2) * off / np.linalg.norm(off)
    churn = expit(c.churn_logit - c.churn_satisfaction * satisfaction + c.churn_fatigue * fatigue)
    scale = np.exp(-c.gap_satisfaction * satisfaction + c.gap_fatigue * fatigue) / state.activity_U[u]
    return satisfaction, x, churn, 3600 * c.gap_hours * scale


def passed(week, begin_s, end_s, step_s=60.0):
    """The integral of the week's activity from one time to another, by midpoints."""
    edges = np.append(np.arange(begin_s, end_s, step_s), end_s)
    return (np.asarray(week)[weekday((edges[1:] + edges[:-1]) / 2)] * np.diff(edges)).sum()


@pytest.mark.parametrize(
    "config", [STRONG, replace(STRONG, drift_rate=0.1), CalibratedConfig(**SMALL)], ids=["strong", "mood", "calibrated"]
)
def test_a_visit_ends_by_the_equations(config):
    simulator = ShortVideoCalibrated(config)
    c, state = config, lived(simulator, 60)
    slates = np.random.default_rng(1).integers(80, size=(60, 7))
    response, after = simulator.respond(state, slates)
    key = luck.stream(state.seed_U, state.visit_U)
    turned = 0
    for u in range(60):
        n = response.examined_UK[u].sum()
        told = slates[u, :n], response.behaviours_UKB[u, :n, 0], response.watch_s_UK[u, :n].astype(float)
        satisfaction, interest, churn, scale_s = plain_end(simulator, state, u, *told)
        np.testing.assert_allclose(after.satisfaction_U[u], satisfaction, atol=1e-5)
        np.testing.assert_allclose(after.interest_UD[u], interest, atol=1e-5)
        turned += bool(np.isclose(interest @ state.core_UD[u], c.drift_limit, atol=1e-5))
        assert response.churned_U[u] == (luck.draw(key[u : u + 1], luck.VISIT, 4)[0] < churn)
        gap_s = scale_s * float(-np.log1p(-luck.draw(key[u : u + 1], luck.VISIT, 1)[0])) ** (1 / c.gap_shape)
        begin_s = state.time_s_U[u] + response.elapsed_s_U[u]
        back_s = simulator.population.after(begin_s[None], np.array([gap_s]))[0]
        assert passed(c.week, begin_s, back_s) == pytest.approx(gap_s, rel=1e-3, abs=300)
        waited_s = after.time_s_U[u] - (back_s + 3600 * c.gap_min_hours)
        assert -30 <= waited_s < 25 * 3600, "a return waits for an active hour, and never comes early"
    assert np.array_equal(after.core_UD, state.core_UD)
    assert turned > 5 or config is not STRONG, "some interests must have met the limit"


def test_gaps_pass_as_fast_as_the_days_are_active():
    population = ShortVideoCalibrated(STRONG).population
    rng = np.random.default_rng(0)
    begin_s, gap_s = rng.uniform(0, 60 * DAY_S, 40), rng.exponential(4 * DAY_S, 40)
    for begin, gap, end in zip(begin_s, gap_s, population.after(begin_s, gap_s), strict=True):
        assert passed(STRONG.week, begin, end, 30.0) == pytest.approx(gap, abs=100)
    assert np.array_equal(ShortVideo(ShortVideoConfig(**SMALL)).population.after(begin_s, gap_s), begin_s + gap_s)


def test_nobody_comes_back_before_the_least_gap():
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL, gap_hours=0.01, gap_min_hours=2.0))
    response, _ = simulator.respond(lived(simulator, 500), np.tile([1, 2], (500, 1)))
    assert response.return_gap_s_U.min() >= 2 * 3600 * 0.999
    assert np.median(response.return_gap_s_U) < 2.1 * 3600


def test_the_rankers_score_leans_to_interests():
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL, ranker_interest=3.0))
    c, truth, state = simulator.config, simulator.latents, lived(simulator, 5)
    items = np.random.default_rng(0).integers(80, size=(5, 4))
    got = simulator.ranker_score(state, items)
    for u, c_ in np.ndindex(5, 4):
        z = truth.z_ID[items[u, c_]]
        want = (c.interest_weight + 3) * state.interest_UD[u] @ z
        want += c.quality_weight * truth.quality_I[items[u, c_]] + c.ranker_clickbait * truth.clickbait_I[items[u, c_]]
        assert got[u, c_] == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_a_user_is_alone_among_many():
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL))
    seeds, rng = user_seeds(64, 0, "alone"), np.random.default_rng(0)
    many, few = simulator.reset(seeds), simulator.reset(seeds[[5]])
    for _ in range(20):
        slates = rng.integers(80, size=(64, 5))
        many, few = simulator.respond(many, slates)[1], simulator.respond(few, slates[[5]])[1]
        same_bits(take_users(many, np.array([5])), few)
    assert few.interest_UD.dtype == few.satisfaction_U.dtype == np.float32


# ---------------------------------------------------------------- drift


def test_interests_follow_what_is_watched_and_stay_near_the_core():
    """A feed of one loved topic of several pulls the interests towards it; nothing takes them beyond the limit."""
    calm = {"churn_logit": -50.0, "gap_hours": 300.0, "interest_topics": (2, 4), "satiation_weight": 0.0}
    simulator = ShortVideoCalibrated(CalibratedConfig(num_items=2000, memory_items=8, **calm))
    truth = simulator.latents
    state, rng = simulator.reset(user_seeds(100, 0, "drift")), np.random.default_rng(0)
    affinity_UM = state.core_UD @ truth.topic_MD.T
    loved_U = np.argsort(-affinity_UM, axis=1)[:, 1]
    about = [np.flatnonzero(truth.topic_I2[:, 0] == m) for m in range(simulator.config.num_topics)]
    lowest = 1.0
    for _ in range(40):
        _, state = simulator.respond(state, np.stack([rng.choice(about[m], 8) for m in loved_U]))
        lowest = min(lowest, np.vecdot(state.interest_UD, state.core_UD).min())
    now_UM = state.interest_UD @ truth.topic_MD.T
    pulled_U = (now_UM - affinity_UM)[np.arange(100), loved_U]
    assert pulled_U.mean() > 0.05 and np.vecdot(state.interest_UD, state.core_UD).mean() < 0.98
    assert lowest >= simulator.config.drift_limit - 1e-5
    np.testing.assert_allclose(np.linalg.norm(state.interest_UD, axis=1), 1, rtol=1e-5)


def test_what_was_skipped_or_disliked_moves_nothing():
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL, click_logit=-60.0))
    state = lived(simulator, 50, visits=10)
    np.testing.assert_allclose(state.interest_UD, state.core_UD, atol=1e-5)


# ---------------------------------------------------------------- what becomes of users


def served(simulator, choose, num_users=400, visits=20):
    """The share of users left, and of visits followed by a return within 24 hours."""
    state, back, answered = simulator.reset(user_seeds(num_users, 0, "served")), 0, 0
    for _ in range(visits):
        response, state = simulator.respond(state, choose(state))
        answered += len(state.seed_U)
        back += (~response.churned_U & (response.return_gap_s_U <= DAY_S)).sum()
        state = take_users(state, np.flatnonzero(~response.churned_U))
    return len(state.seed_U) / num_users, back / answered


def rule(simulator, **shares):
    """A rule of the logging policy alone."""
    policy = LoggingPolicy(simulator, 10, LoggingConfig(**{"popularity_share": 0.0, "random_share": 0.0} | shares))
    return lambda state: policy.serve(state, policy.no_taste(len(state.seed_U)))[0]


@pytest.fixture(scope="module")
def calibrated():
    return ShortVideoCalibrated()


def test_a_random_feed_loses_users_and_a_feed_of_one_topic_tires(calibrated):
    truth, rng = calibrated.latents, np.random.default_rng(0)
    about = [np.flatnonzero(truth.topic_I2[:, 0] == m) for m in range(calibrated.config.num_topics)]

    def of_one_topic(state):
        loved_U = (state.core_UD @ truth.topic_MD.T).argmax(axis=1)
        return np.stack([rng.choice(about[m], 10, replace=False) for m in loved_U])

    random, popular = (rule(calibrated, **{name: 1.0}) for name in ("random_share", "popularity_share"))
    left, back = {}, {}
    for name, choose in {
        "random": random, "popular": popular, "one topic": of_one_topic, "production": rule(calibrated)
    }.items():  # fmt: skip
        left[name], back[name] = served(calibrated, choose)
    assert left["random"] < 0.55 and left["random"] + 0.1 < left["popular"] < left["production"] - 0.1
    assert left["one topic"] < left["production"] - 0.05 and left["production"] > 0.8
    assert back["random"] + 0.04 < back["popular"] < back["production"] - 0.08


def test_its_statistics_are_those_of_kuairand(calibrated):
    """docs/realism.md's figures, within the noise of 700 users."""
    log = collect_log(calibrated, num_users=700, num_visits=14, session_length=10, seed=1)
    look = describe(log, calibrated.catalog)
    assert look["user heterogeneity"].figures["correlation of a user's clicks"] == pytest.approx(0.14, abs=0.03)
    assert look["repeat-topic autocorrelation"].figures["next item"] == pytest.approx(0.063, abs=0.015)
    assert look["return gaps"].figures["back within 24 h"] == pytest.approx(0.65, abs=0.05)
    assert look["return gaps"].figures["median, hours"] == pytest.approx(15, abs=2.5)
    real = {"click": 0.34, "like": 0.0174, "comment": 0.0026, "hate": 0.0008}
    for name, rate in real.items():
        assert rate / 2 < look["behaviour rates"].figures[name] < rate * 2, name
    # Whoever is served again is not back within half an hour.
    begins = np.flatnonzero(log.position == 0)
    assert look["session length"].figures["mean"] == pytest.approx(log.examined.sum() / len(begins), rel=1e-6)


def test_weekends_are_busier():
    still = {"churn_logit": -50.0, "activity_sd": 0.0, "gap_satisfaction": 0.0, "gap_fatigue": 0.0, "gap_hours": 20.0}
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL, **still))
    state, by_day = simulator.reset(user_seeds(3000, 0, "week")), np.zeros(7)
    while state.time_s_U.min() < 28 * DAY_S:
        counted = (state.time_s_U >= 14 * DAY_S) & (state.time_s_U < 28 * DAY_S)
        by_day += np.bincount(weekday(state.time_s_U[counted]), minlength=7)
        _, state = simulator.respond(state, np.tile([1], (3000, 1)))
    assert by_day[5:].min() > 1.05 * by_day[:5].max(), by_day


# ---------------------------------------------------------------- everything that ShortVideo can be used for


def test_the_id_tells_the_weekday():
    envs = gym.make_vec(
        "feedgym/ShortVideoCalibrated-v1", num_envs=4, vectorization_mode="vector_entry_point", num_items=60
    )
    assert type(envs.simulator) is ShortVideoCalibrated
    observation, _ = envs.reset(seed=3)
    single = gym.make("feedgym/ShortVideoCalibrated-v1", num_items=60)
    alone, _ = single.reset(seed=5)
    for _ in range(5):
        assert np.array_equal(observation["weekday"][:, 0], weekday(envs.state.time_s_U))
        assert all(np.array_equal(alone[key], observation[key][2]) for key in alone)
        slates = envs.action_space.sample()
        observation, alone = envs.step(slates)[0], single.step(slates[2])[0]


def test_it_goes_by_its_name():
    assert type(make_simulator("short_video_calibrated", num_items=30)) is ShortVideoCalibrated
    config = UsersConfig(simulator="short_video_calibrated", simulator_options={"num_items": 40})
    assert config.simulator_options == CalibratedConfig(num_items=40)
    assert type(simulator_of(config, 0)) is ShortVideoCalibrated


def test_users_of_another_day_are_calibrated_too():
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL))
    later = simulator.starting(9.0)
    assert type(later) is ShortVideoCalibrated and later.config == replace(simulator.config, first_day=9.0)


def test_logs_are_replayed_to_the_bit():
    simulator = ShortVideoCalibrated(CalibratedConfig(**SMALL))
    log = collect_log(simulator, num_users=40, num_visits=6, session_length=5, seed=2)
    sessions = logged_sessions(log, 5)
    some = sessions.rows(np.random.default_rng(0).integers(len(sessions), size=60))
    state = states_at(simulator, log, some, seed=2)
    assert (state.time_s_U == some.start_s_N).all()
    response, _ = simulator.respond(state, some.item_ids_NK)
    assert (response.watch_s_UK == some.watch_s_NK).all()
    assert (response.behaviours_UKB == some.behaviours_NKB).all()
    assert (response.examined_UK == some.examined_NK).all()


def test_items_never_come_before_the_login_or_each_other():
    """A glance at an item, weeks into the clock, rounded to before the login: sorted, the log was another one."""
    rng = np.random.default_rng(0)
    login_s = np.append(1557216.07559115, rng.uniform(1e5, 1e7, 5000))
    watch_s = rng.exponential(1e-3, (5001, 4)).astype(np.float32)
    watch_s[0, 0] = 0.0017864335095509887
    times_s = event_times_s(login_s, watch_s)
    assert (np.diff(times_s, prepend=login_s[:, None], axis=1) >= 0).all()
    np.testing.assert_allclose(times_s[:, 1:], login_s[:, None] + np.cumsum(watch_s, axis=1)[:, :-1], rtol=1e-12)


def test_the_oracle_is_worth_more_and_truths_are_paired():
    simulator = ShortVideoCalibrated(CalibratedConfig(num_items=600))
    state = lived(simulator, 30)
    oracle, random = simulator.oracle(state, 6), np.random.default_rng(0).integers(600, size=(30, 6))
    value = true_value(simulator, state, np.stack([oracle, random, oracle], axis=1), replicas=8)
    assert np.array_equal(value[:, 0], value[:, 2]) and value[:, 0].mean() > value[:, 1].mean() + 1


def test_a_week_has_seven_days():
    with pytest.raises(ValueError, match="week has 2 numbers; give 7"):
        CalibratedConfig(week=(1.0, 2.0))
