"""Items that arrive, fade and are withdrawn: the short-video feed, its logging policy, its oracle, its observations."""

import hashlib
import itertools
from dataclasses import fields, replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_users import ToyUsers

import feedgym  # noqa: F401 (registers the environments)
from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.agents.requests import existing_items
from feedgym.data.batches import DatedEventBatch
from feedgym.data.events import Event
from feedgym.data.parquet import read_catalog, write_catalog
from feedgym.envs.check import check_simulator
from feedgym.envs.feed import FeedVectorEnv, event_batch
from feedgym.envs.history import observation_space
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import states_at
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.short_video.catalog import CatalogConfig, freshness, make_catalog, num_arrivals
from feedgym.protocols import take_users

DAY_S = 86_400.0
LIVELY = {"arrivals_a_day": 8.0, "arrival_days": 20.0, "lifetime_days": 15.0, "fresh_weight": 1.0}
FRESH = ShortVideoConfig(num_items=400, memory_items=16, **LIVELY)


@pytest.fixture(scope="module")
def fresh():
    return ShortVideo(FRESH)


@pytest.fixture(scope="module")
def log(fresh):
    return collect_log(fresh, num_users=120, num_visits=8, session_length=4, seed=3)


def users_at(simulator, num_users, day, group="test"):
    state = simulator.reset(user_seeds(num_users, 0, group))
    return replace(state, time_s_U=np.broadcast_to(day * DAY_S, num_users).copy())


# ---------------------------------------------------------------- off, nothing moves


def digest(*arrays):
    """Of what is discrete, which does not depend on the processor's rounding."""
    made = hashlib.sha256()
    for array in arrays:
        made.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return made.hexdigest()[:16]


def test_without_arrivals_the_log_is_the_one_of_before_there_were_any():
    simulator = ShortVideo(ShortVideoConfig(num_items=300, memory_items=16))
    config = LoggingConfig(popularity_share=0.4, random_share=0.3, num_candidates=20)
    plain = collect_log(simulator, num_users=150, num_visits=6, session_length=4, seed=3)
    mixed = collect_log(simulator, num_users=150, num_visits=3, session_length=4, seed=3, config=config)
    assert digest(plain.item_id, plain.examined, plain.behaviours) == "f1be4941b24466e0"
    assert digest(mixed.item_id, mixed.examined, mixed.behaviours) == "a6fd3375211d2c92"
    assert simulator.catalog.withdraw_s_I is None and not simulator.has_arrivals
    assert "time_s" not in observation_space(simulator, 5).spaces


def test_arrivals_leave_everything_else_of_the_catalogue_as_it_is():
    still, truth = make_catalog(CatalogConfig(num_items=200), 1)
    lively, lively_truth = make_catalog(CatalogConfig(num_items=200, arrivals_a_day=2, lifetime_days=30), 1)
    assert (lively.upload_s_I[:80] == still.upload_s_I[:80]).all() and (lively.upload_s_I[80:] > 0).all()
    for f in fields(still):
        if f.name not in ("upload_s_I", "withdraw_s_I", "text_I", "content_from"):
            assert (getattr(lively, f.name) == getattr(still, f.name)).all(), f.name
    for f in fields(truth):
        if f.name != "popularity_I":
            assert (getattr(lively_truth, f.name) == getattr(truth, f.name)).all(), f.name


# ---------------------------------------------------------------- the catalogue


def test_items_arrive_at_the_rate_in_the_order_of_their_ids_and_live_as_long_as_they_should():
    config = CatalogConfig(num_items=5000, arrivals_a_day=50, arrival_days=60, lifetime_days=20)
    catalog, _ = make_catalog(config, 0)
    arrived = catalog.upload_s_I > 0
    assert arrived.sum() == num_arrivals(config) == 3000 and not arrived[:2000].any()
    assert (np.diff(catalog.upload_s_I[2000:]) >= 0).all() and catalog.upload_s_I.max() <= 60 * DAY_S
    counts = np.histogram(catalog.upload_s_I[2000:], bins=6, range=(0, 60 * DAY_S))[0]
    assert (abs(counts - 500) < 5 * np.sqrt(500)).all()
    life = (catalog.withdraw_s_I - np.maximum(catalog.upload_s_I, 0)) / DAY_S
    for some in (life[:2000], life[2000:]):
        assert abs(some.mean() - 20) < 5 * 20 / np.sqrt(len(some)) and (some > 0).all()


def test_what_exists_is_what_was_uploaded_and_not_withdrawn(fresh):
    catalog, times = fresh.catalog, np.array([0.0, 3.3, 11.0, 50.0]) * DAY_S
    found = catalog.exists(times)
    for u, now in enumerate(times):
        plain = [up <= now < down for up, down in zip(catalog.upload_s_I, catalog.withdraw_s_I, strict=True)]
        assert found[u].tolist() == plain
    items = np.arange(12).reshape(4, 3) * 30
    assert (catalog.exists(times[:, None], items) == np.take_along_axis(found, items, axis=1)).all()
    at, still = catalog.upload_s_I[300], replace(catalog, withdraw_s_I=None)
    assert still.exists(np.array(at))[300] and not still.exists(np.array(np.nextafter(at, 0)))[300]
    assert still.exists(np.array(1e12)).all()


@given(st.floats(-10, 500), st.floats(0, 100))
def test_freshness_only_falls_with_age(age_days, more_days):
    young, old = freshness(FRESH, np.array([age_days, age_days + more_days]) * DAY_S)
    assert 0 < old <= young <= 1
    if age_days > 0:
        assert np.log(young / old) == pytest.approx(more_days / FRESH.fresh_days, abs=1e-9)


def test_the_catalogues_files_keep_the_withdrawals(fresh, tmp_path):
    write_catalog(fresh.catalog, tmp_path / "catalog.parquet")
    again = read_catalog(tmp_path / "catalog.parquet")
    assert (again.withdraw_s_I == fresh.catalog.withdraw_s_I).all()
    write_catalog(replace(fresh.catalog, withdraw_s_I=None), tmp_path / "still.parquet")
    assert read_catalog(tmp_path / "still.parquet").withdraw_s_I is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_items": 100, "arrivals_a_day": 10, "arrival_days": 10}, "raise num_items or lower either"),
        ({"lifetime_days": -1.0}, "must be 0 or more"),
        ({"arrivals_a_day": -0.5}, "must be 0 or more"),
    ],
)
def test_impossible_arrivals_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_catalog(CatalogConfig(**config), 0)


# ---------------------------------------------------------------- the users


def test_a_lively_simulator_keeps_all_promises(fresh):
    check_simulator(fresh)


def test_an_empty_place_ends_the_visit_unseen_and_displeases(fresh):
    state = users_at(fresh, 300, 5.0)
    exists = fresh.catalog.exists(np.array(5 * DAY_S))
    here, absent = np.flatnonzero(exists)[:3], np.flatnonzero(~exists)
    assert len(absent) > 20
    late = np.flatnonzero(fresh.catalog.upload_s_I > 6 * DAY_S)[0]
    gone = np.flatnonzero(fresh.catalog.withdraw_s_I < 5 * DAY_S)[0]
    for missing in (late, gone):
        slates = np.tile([here[0], missing, here[1]], (300, 1))
        response, after = fresh.respond(state, slates)
        alone, alone_after = fresh.respond(state, slates[:, :1])
        assert (response.examined_UK == [True, False, False]).all() and response.left_U.all()
        assert not response.behaviours_UKB[:, 1:].any() and not response.watch_s_UK[:, 1:].any()
        assert (response.behaviours_UKB[:, :1] == alone.behaviours_UKB).all()
        assert (after.num_seen_U == alone_after.num_seen_U).all() and (after.mood_UD >= -1).all()
        nothing, displeased = fresh.respond(state, np.full((300, 2), missing))
        assert not nothing.examined_UK.any() and not nothing.elapsed_s_U.any()
        rate = FRESH.satisfaction_rate
        np.testing.assert_allclose(displeased.satisfaction_U, (1 - rate) * state.satisfaction_U - rate, rtol=1e-5)
        went_on = fresh.respond(state, np.tile(here[:2], (300, 1)))[0].examined_UK[:, 1]
        lower = after.satisfaction_U < alone_after.satisfaction_U
        assert went_on.any() and (lower == went_on).all(), "only who reaches the empty place minds it"


def test_an_item_uploaded_during_the_visit_is_there_for_those_who_reach_it_later():
    patient = replace(FRESH, next_logit=50.0, budget_s=1e7)
    simulator = ShortVideo(patient)
    late = simulator.config.num_items - 100
    upload_s = simulator.catalog.upload_s_I[late]
    simulator.catalog.withdraw_s_I[:] = np.inf
    state = replace(users_at(simulator, 400, 0.0), time_s_U=np.full(400, upload_s - 3.0))
    response, _ = simulator.respond(state, np.tile([0, late], (400, 1)))
    in_time = response.watch_s_UK[:, 0] >= 3.0
    assert 0 < in_time.sum() < 400
    assert (response.examined_UK[:, 1] == in_time).all()


def test_appeal_fades(fresh):
    item = int(np.argmax(fresh.catalog.withdraw_s_I * (fresh.catalog.upload_s_I > 0)))
    born = fresh.catalog.upload_s_I[item] / DAY_S
    end = fresh.catalog.withdraw_s_I[item] / DAY_S
    days = [born, born + 5, min(born + 25, end - 0.1)]
    assert days[2] > born + 10
    slates = np.full((4000, 1), item)
    still = ShortVideo(replace(FRESH, fresh_weight=0.0))
    clicks = [fresh.respond(users_at(fresh, 4000, day), slates)[0].behaviours_UKB[:, 0, 0] for day in days]
    plain = still.respond(users_at(still, 4000, days[0]), slates)[0].behaviours_UKB[:, 0, 0]
    assert (clicks[0] >= clicks[1]).all() and (clicks[1] >= clicks[2]).all() and (clicks[2] >= plain).all()
    assert clicks[0].mean() > clicks[2].mean() + 0.02 and clicks[2].mean() < plain.mean() + 0.03
    scores = [fresh.ranker_score(users_at(fresh, 3, day), np.array([[item]] * 3)) for day in days]
    pull = [np.exp(-(day - born) / FRESH.fresh_days) for day in days]
    np.testing.assert_allclose(scores[0] - scores[1], pull[0] - pull[1], atol=1e-5)


def test_users_may_begin_on_a_later_day(fresh):
    later = fresh.starting(12.0)
    seeds = user_seeds(200, 0, "later")
    first, then = fresh.reset(seeds), later.reset(seeds)
    np.testing.assert_allclose(then.time_s_U - first.time_s_U, 12 * DAY_S)
    assert (then.interest_UD == first.interest_UD).all() and (
        later.catalog.upload_s_I == fresh.catalog.upload_s_I
    ).all()


# ---------------------------------------------------------------- the logging policy


def test_policies_and_oracle_serve_only_what_exists(fresh, log):
    shown = log.event == Event.IMPRESSION
    login_s = np.repeat(log.timestamp_s[log.event == Event.LOGIN], 4)
    assert fresh.catalog.exists(login_s, log.item_id[shown]).all()
    assert (fresh.catalog.upload_s_I[log.item_id[shown]] > 0).mean() > 0.02, "and new items are among it"
    state = users_at(fresh, 60, np.linspace(0, 25, 60))
    sessions = fresh.oracle(state, 6)
    assert fresh.catalog.exists(state.time_s_U[:, None], sessions).all() and (np.diff(np.sort(sessions)) > 0).all()


def test_a_lively_log_depends_on_neither_blocks_nor_other_users(fresh, log, monkeypatch):
    monkeypatch.setattr("feedgym.envs.logging.BLOCK_USERS", 7)
    again = collect_log(fresh, num_users=30, num_visits=8, session_length=4, seed=3)
    rows = slice(0, log.offsets_U1[30])
    assert (again.item_id == log.item_id[rows]).all() and (again.watch_s == log.watch_s[rows]).all()
    np.testing.assert_array_equal(again.propensity, log.propensity[rows])


def test_a_lively_log_can_be_replayed(fresh, log):
    from feedgym.data.sessions import logged_sessions

    sessions = logged_sessions(log, 4)
    some = sessions.rows(np.arange(0, len(sessions), 7))
    assert (states_at(fresh, log, some, seed=3).time_s_U == some.start_s_N).all()


TINY = LoggingConfig(popularity_share=0.25, random_share=0.15, num_candidates=100, temperature=0.5)


class ComingAndGoing(ToyUsers):
    """Toy users of 6 items: item 4 comes on day 1, item 5 never, item 0 goes on day 2; popularity turns about."""

    has_arrivals = True

    def __init__(self):
        super().__init__(num_items=6)
        self.catalog = replace(
            self.catalog,
            upload_s_I=np.array([0, 0, 0, 0, 1, 99]) * DAY_S,
            withdraw_s_I=np.array([2, np.inf, np.inf, np.inf, np.inf, np.inf]) * DAY_S,
        )

    def popularity_on(self, day):
        return np.roll(self.popularity_I, day)


def plain_chance(simulator, session, day, exists, mood=0.7, config=TINY):
    """Propensities of a session under the mixture over what exists, item after item, from the definitions."""
    score = 3 * mood * np.arange(6) / 6
    weights = np.exp(score / config.temperature), simulator.popularity_on(day), np.ones(6)
    joint, out = np.array(config.shares_R), []
    for k, item in enumerate(session):
        left = [i for i in exists if i not in session[:k]]
        after = joint * [w[item] / w[left].sum() for w in weights]
        out.append(after.sum() / joint.sum())
        joint = after
    return out


@pytest.mark.parametrize(("day", "exists"), [(0, [0, 1, 2, 3]), (1, [0, 1, 2, 3, 4]), (2, [1, 2, 3, 4])])
def test_propensities_under_arrivals_are_those_of_the_definition_and_sum_to_one(day, exists):
    simulator = ComingAndGoing()
    policy = LoggingPolicy(simulator, 2, TINY)
    sessions = np.array(list(itertools.permutations(exists, 2)))
    state = take_users(simulator.reset(user_seeds(1, 0, "x")), np.zeros(len(sessions), int))
    state = replace(state, mood_U=np.full(len(sessions), 0.7, np.float32), time_s_U=np.full(len(sessions), day * DAY_S))
    supply = policy._supply(state)
    candidates = policy._candidates(state, policy.no_taste(len(sessions)), np.zeros(len(sessions), np.uint64), supply)
    propensity = policy._propensity(sessions, *candidates, supply)
    expected = [plain_chance(simulator, session.tolist(), day, exists) for session in sessions]
    np.testing.assert_allclose(propensity, expected, rtol=1e-5)
    assert propensity.prod(axis=1).sum() == pytest.approx(1, abs=1e-5)


def test_sessions_of_mixed_days_are_as_frequent_as_their_propensities_say():
    simulator, num_users = ComingAndGoing(), 30_000
    policy = LoggingPolicy(simulator, 2, TINY)
    state = simulator.reset(user_seeds(num_users, 0, "x"))
    day_U = np.arange(num_users) % 3
    state = replace(state, mood_U=np.full(num_users, 0.7, np.float32), time_s_U=(day_U + 0.5) * DAY_S)
    slates, propensity = policy.serve(state, policy.no_taste(num_users))
    for day, exists in ((0, [0, 1, 2, 3]), (1, [0, 1, 2, 3, 4]), (2, [1, 2, 3, 4])):
        served, chances = slates[day_U == day], propensity[day_U == day]
        assert np.isin(served, exists).all()
        for session in itertools.permutations(exists, 2):
            chance = np.prod(plain_chance(simulator, session, day, exists))
            hit = (served == session).all(axis=1)
            assert abs(hit.mean() - chance) < 5 * np.sqrt(chance / len(served)), (day, session)
            np.testing.assert_allclose(chances[hit].prod(axis=1), chance, rtol=1e-4)


@pytest.mark.parametrize("k", range(2))
def test_inverse_propensities_are_unbiased_over_what_exists_when_candidates_are_few(k):
    config = LoggingConfig(popularity_share=0.2, random_share=0.4, num_candidates=2, temperature=0.5)
    simulator, num_users = ComingAndGoing(), 30_000
    policy = LoggingPolicy(simulator, 2, config)
    state = replace(simulator.reset(user_seeds(num_users, 0, "x")), time_s_U=np.full(num_users, 1.5 * DAY_S))
    slates, propensity = policy.serve(state, policy.no_taste(num_users))
    for item in range(5):
        weight = (slates[:, k] == item) / propensity[:, k]
        free = ~(slates[:, :k] == item).any(axis=1)  # an item above cannot come again
        assert abs(weight[free].mean() - 1) < 5 * weight[free].std() / np.sqrt(free.sum())


def test_popularity_follows_age(fresh):
    first = fresh.popularity_on(0)
    np.testing.assert_allclose(first, fresh.popularity_I, rtol=0.2)
    item = 399
    born = int(fresh.catalog.upload_s_I[item] // DAY_S) + 1
    assert fresh.popularity_on(born)[item] > fresh.popularity_on(born + 60)[item]
    assert fresh.popularity_on(born).sum() == pytest.approx(1, abs=1e-4)


def test_too_few_items_are_told_and_not_served():
    dying = ShortVideo(ShortVideoConfig(num_items=40, lifetime_days=1.0))
    state = users_at(dying, 3, 30.0)
    policy = LoggingPolicy(dying, 4)
    for serve in (lambda: dying.oracle(state, 4), lambda: policy.serve(state, policy.no_taste(3))):
        with pytest.raises(ValueError, match="longer lifetime_days"):
            serve()


def test_a_log_may_end_on_a_day(fresh, log):
    short = collect_log(fresh, num_users=120, num_visits=8, session_length=4, seed=3, until_s=3 * DAY_S)
    logins = short.timestamp_s[short.event == Event.LOGIN]
    assert short.num_users == 120 and logins.max() < 3 * DAY_S < log.timestamp_s.max()
    all_logins = log.timestamp_s[log.event == Event.LOGIN]
    assert len(logins) == (all_logins < 3 * DAY_S).sum()


# ---------------------------------------------------------------- what agents are told


def test_observations_are_dated_where_items_come_and_go(fresh):
    env = gym.make_vec(
        "feedgym/ShortVideoFresh-v1", num_envs=3, vectorization_mode="vector_entry_point", num_items=5000
    )
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space and observation["time_s"].dtype == np.float64
    histories = event_batch(observation)
    assert isinstance(histories, DatedEventBatch)
    assert histories.time_s_U.tolist() == env.state.time_s_U.tolist()
    exists = existing_items(histories, env.simulator.catalog)
    assert (exists.numpy() == env.simulator.catalog.exists(env.state.time_s_U)).all()
    assert existing_items(histories, None) is None
    part = histories.rows(torch.tensor([2, 0])).trimmed()
    assert isinstance(part, DatedEventBatch) and part.time_s_U.tolist() == histories.time_s_U[[2, 0]].tolist()


def test_reference_agents_serve_what_exists_with_true_log_probabilities(fresh):
    env = FeedVectorEnv(200, fresh.starting(6.0), session_length=3)
    observation, _ = env.reset(seed=1)
    histories, catalog = event_batch(observation), fresh.catalog
    count_I = torch.arange(400)
    now = histories.time_s_U.numpy()[:, None]
    unaware = PopularRecommender(count_I, 3).recommend(histories).item_ids_USK[:, 0].numpy()
    assert not catalog.exists(now, unaware).any(), "the last items are not there yet"
    generator = torch.Generator().manual_seed(0)
    for agent in (PopularRecommender(count_I, 3, catalog=catalog), RandomRecommender(400, 3, catalog=catalog)):
        assert catalog.exists(now, agent.recommend(histories).item_ids_USK[:, 0].numpy()).all()
        sampled = agent.sample(histories, 5, generator)
        assert catalog.exists(now[:, None], sampled.item_ids_USK.numpy()).all()
        assert torch.isfinite(sampled.logp_US).all()
    n = catalog.exists(now[:, 0]).sum(axis=1)
    np.testing.assert_allclose(sampled.logp_US[:, 0], -np.log(n * (n - 1.0) * (n - 2.0)), rtol=1e-5)
    best = np.where(catalog.exists(now[:, 0]), np.arange(400), -1).max(axis=1)
    aware = PopularRecommender(count_I, 3, catalog=catalog).recommend(histories).item_ids_USK[:, 0, 0]
    assert (aware.numpy() == best).all()
