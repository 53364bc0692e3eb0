import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from toy_users import ToyUsers

from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.sessions import histories, logged_sessions
from feedgym.data.splits import take_users as take_log_users
from feedgym.envs import logging, replay
from feedgym.envs.feed import FeedVectorEnv, event_batch
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.replay import states_at
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.protocols import take_users


class PlainUsers(ToyUsers):
    """Users whose simulator offers neither a ranker's scores nor popularity."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.popularity_I = None

    def __getattribute__(self, name):
        if name == "ranker_score":
            raise AttributeError(name)
        return super().__getattribute__(name)


def simulators():
    return [
        ToyUsers(churn=0.2),
        PlainUsers(churn=0.2),
        ShortVideo(ShortVideoConfig(num_items=300, memory_items=16, churn_logit=-2)),
    ]


IDS = ["toy", "plain", "short_video"]
SMALL = {"num_users": 60, "num_visits": 5, "session_length": 4, "seed": 3}


def same(a, b):
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name), equal_nan=f.name == "propensity") for f in fields(a)
    )


# ---------------------------------------------------------------- users' seeds


def test_seeds_are_a_matter_of_seed_group_and_number():
    groups = {(seed, group): user_seeds(5000, seed, group) for seed in (0, 1) for group in ("log", "judge", "pilot")}
    assert len(np.unique(np.concatenate(list(groups.values())))) == 6 * 5000
    assert (user_seeds(7, 0, "log") == groups[0, "log"][:7]).all() and groups[0, "log"].dtype == np.uint64
    with pytest.raises(ValueError, match="num_users=0"):
        user_seeds(0, 0, "log")
    with pytest.raises(ValueError, match="seed=-1"):
        user_seeds(1, -1, "log")


# ---------------------------------------------------------------- the log


@pytest.mark.parametrize("simulator", simulators(), ids=IDS)
def test_log_does_not_depend_on_the_block_size(simulator, monkeypatch):
    log = collect_log(simulator, **SMALL)
    for size in (1, 7):
        monkeypatch.setattr(logging, "BLOCK_USERS", size)
        assert same(log, collect_log(simulator, **SMALL))
    fewer = collect_log(simulator, **{**SMALL, "num_users": 11})
    assert same(fewer, take_log_users(log, np.arange(11)))
    assert not np.array_equal(log.item_id, collect_log(simulator, **{**SMALL, "seed": 4}).item_id)


@pytest.mark.parametrize("simulator", simulators(), ids=IDS)
def test_log_is_a_well_formed_event_stream(simulator):
    done = []
    log = collect_log(simulator, **SMALL, progress=lambda *now: done.append(now))
    assert done == [(60, 60)]
    visits = np.zeros(60, int)
    for user in range(60):
        rows = slice(log.offsets_U1[user], log.offsets_U1[user + 1])
        event = log.event[rows]
        assert event[0] == Event.PROFILE and log.session_id[rows][0] == -1
        one = [Event.LOGIN, *[Event.IMPRESSION] * 4, Event.LOGOUT]
        visits[user] = (len(event) - 1) // 6
        assert event[1:].tolist() == one * visits[user] and visits[user] >= 1
        assert log.session_id[rows][1:].tolist() == np.repeat(np.arange(visits[user]), 6).tolist()
        assert (np.diff(log.timestamp_s[rows]) >= 0).all()
    assert visits.max() == 5 and visits.min() < 5, "some users must churn and some stay"
    shown = log.event == Event.IMPRESSION
    assert (log.item_id[~shown] == -1).all() and (log.position[~shown] == -1).all()
    assert np.isnan(log.propensity[~shown]).all() and not log.examined[~shown].any()
    assert ((log.propensity[shown] > 0) & (log.propensity[shown] <= 1)).all()
    assert not log.behaviours[~log.examined].any() and (~log.examined[shown]).any()
    items_NK = np.sort(log.item_id[shown].reshape(-1, 4))
    assert (np.diff(items_NK) > 0).all() and items_NK.min() >= 0
    assert log.behaviours.shape[1] == len(BEHAVIOURS) and log.profile_UF.shape == (60, len(log.profile_names))


def test_log_and_environment_tell_a_recommender_the_same():
    """Serving the logged sessions in the environment gives the observations that histories() cuts from the log."""
    simulator = ShortVideo(ShortVideoConfig(num_items=300, memory_items=16, churn_logit=-20))
    log = collect_log(simulator, **SMALL)
    sessions = logged_sessions(log, 4)
    env = FeedVectorEnv(60, simulator, session_length=4, history_length=9, memory=5)
    observation, _ = env.reset(seed=user_seeds(60, 3, "log").tolist())
    for visit in range(5):
        now = sessions.rows(np.arange(60) * 5 + visit)
        logged = histories(log, simulator.catalog, now.user_idx_N, now.row_N, now.start_s_N, 9, memory=5)
        served = event_batch(observation)
        for f in fields(logged):
            assert data_equivalence(getattr(logged, f.name).numpy(), getattr(served, f.name).numpy(), exact=True), (
                f.name
            )
        observation, *_ = env.step(now.item_ids_NK)


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize("simulator", simulators(), ids=IDS)
def test_replayed_users_answer_exactly_what_was_logged(simulator, monkeypatch):
    log = collect_log(simulator, **SMALL)
    sessions = logged_sessions(log, 4)
    rng = np.random.default_rng(0)
    for rows in (np.arange(len(sessions)), rng.integers(len(sessions), size=90), np.array([len(sessions) - 1])):
        monkeypatch.setattr(replay, "BLOCK_USERS", 13)
        some = sessions.rows(rows)
        state = states_at(simulator, log, some, seed=3)
        assert (state.time_s_U == some.start_s_N).all()
        response, _ = simulator.respond(state, some.item_ids_NK)
        assert (response.watch_s_UK == some.watch_s_NK).all()
        assert (response.behaviours_UKB == some.behaviours_NKB).all()
        assert (response.examined_UK == some.examined_NK).all()
        known = ~np.isnan(some.return_gap_s_N)
        np.testing.assert_allclose(response.return_gap_s_U[known], some.return_gap_s_N[known], rtol=1e-5, atol=1e-2)


def test_replay_takes_a_part_of_the_log_and_shorter_rows():
    simulator = ToyUsers(churn=0.2)
    log = take_log_users(collect_log(simulator, **SMALL), np.array([2, 5, 40]))
    halves, full = logged_sessions(log, 2), logged_sessions(log, 4)  # a visit as two rows, and as one
    state = states_at(simulator, log, halves, seed=3)
    for half in (0, 1):  # the users as they were before the visit, for either row
        response, _ = simulator.respond(take_users(state, np.arange(half, len(halves), 2)), full.item_ids_NK)
        assert (response.watch_s_UK == full.watch_s_NK).all()


def test_replay_refuses_another_seed():
    simulator = ToyUsers(churn=0.0)
    log = collect_log(simulator, **SMALL)
    with pytest.raises(ValueError, match="the seed that the log was collected with"):
        states_at(simulator, log, logged_sessions(log, 4), seed=4)


# ---------------------------------------------------------------- propensities


TINY = LoggingConfig(popularity_share=0.25, random_share=0.15, num_candidates=100, temperature=0.5)


def served(config, num_users, session_length=2, num_items=5):
    simulator = ToyUsers(num_items=num_items)
    policy = LoggingPolicy(simulator, session_length, config)
    state = simulator.reset(user_seeds(num_users, 0, "x"))
    state = replace(state, mood_U=np.full(num_users, 0.7, np.float32))  # all users alike, but for their random numbers
    return simulator, policy, state, *policy.serve(state, policy.no_taste(num_users))


def plain_chance(simulator, session, mood=0.7, config=TINY):
    """Propensities of a session under the mixture, item after item, from the definitions."""
    num_items = simulator.catalog.num_items
    score = 3 * mood * np.arange(num_items) / num_items
    weights = np.exp(score / config.temperature), simulator.popularity_I, np.ones(num_items)
    shares = 1 - config.popularity_share - config.random_share, config.popularity_share, config.random_share
    joint, out = np.array(shares), []
    for k, item in enumerate(session):
        left = [i for i in range(num_items) if i not in session[:k]]
        after = joint * [w[item] / w[left].sum() for w in weights]
        out.append(after.sum() / joint.sum())
        joint = after
    return out


def test_propensities_are_those_of_the_definition_and_sum_to_one():
    simulator, policy, state, _, _ = served(TINY, 20)
    sessions = np.array(list(itertools.permutations(range(5), 2)))
    state = replace(state, **{f.name: getattr(state, f.name)[[0] * 20] for f in fields(state)})
    key_U = np.zeros(20, np.uint64)
    supply = policy._supply(state)
    candidates = policy._candidates(state, policy.no_taste(20), key_U, supply)
    propensity = policy._propensity(sessions, *candidates, supply)
    np.testing.assert_allclose(propensity, [plain_chance(simulator, s.tolist()) for s in sessions], rtol=1e-5)
    assert propensity.prod(axis=1).sum() == pytest.approx(1, abs=1e-5)


def test_sessions_are_as_frequent_as_their_propensities_say():
    simulator, _, _, slates, propensity = served(TINY, 40_000)
    for session in itertools.permutations(range(5), 2):
        chance = np.prod(plain_chance(simulator, session))
        hit = (slates == session).all(axis=1)
        assert abs(hit.mean() - chance) < 5 * np.sqrt(chance / 40_000), session
        np.testing.assert_allclose(propensity[hit].prod(axis=1), chance, rtol=1e-4)


@pytest.mark.parametrize("k", range(3))
def test_inverse_propensities_are_unbiased_when_candidates_are_few(k):
    """With retrieval at work, every item's mean of 1{shown at k} / propensity is 1."""
    config = LoggingConfig(popularity_share=0.2, random_share=0.4, num_candidates=3, temperature=0.5)
    _, _, _, slates, propensity = served(config, 40_000, session_length=3, num_items=8)
    for item in range(8):
        weight = (slates[:, k] == item) / propensity[:, k]
        if k == 0:
            assert abs(weight.mean() - 1) < 5 * weight.std() / 200
        free = ~(slates[:, :k] == item).any(axis=1)  # an item above cannot come again
        assert abs(weight[free].mean() - 1) < 5 * weight[free].std() / np.sqrt(free.sum())


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (LoggingConfig(popularity_share=0, random_share=1), [1, 1, 1, 1, 1]),
        (LoggingConfig(popularity_share=1.0, random_share=0.0), [5, 4, 3, 2, 1]),
    ],
)
def test_a_single_rule_draws_by_its_weights(config, weights):
    _, _, _, slates, propensity = served(config, 20_000)
    weights = np.array(weights) / sum(weights)
    np.testing.assert_allclose(np.bincount(slates[:, 0], minlength=5) / 20_000, weights, atol=0.015)
    np.testing.assert_allclose(propensity[:, 0], weights[slates[:, 0]], rtol=1e-5)
    second = weights[slates[:, 1]] / (1 - weights[slates[:, 0]])
    np.testing.assert_allclose(propensity[:, 1], second, rtol=1e-5)


def test_a_cold_production_system_is_greedy_and_a_whole_catalogue_can_be_shown():
    cold = LoggingConfig(popularity_share=0.0, random_share=0.0, temperature=1e-4)
    _, _, _, slates, propensity = served(cold, 50, session_length=5)
    assert (slates == [4, 3, 2, 1, 0]).all() and (propensity == 1).all()
    for config in (TINY, LoggingConfig(num_candidates=1), LoggingConfig(popularity_share=0.5, random_share=0.5)):
        _, _, _, slates, propensity = served(config, 50, session_length=5)
        assert (np.sort(slates) == np.arange(5)).all() and np.isfinite(propensity).all()


# ---------------------------------------------------------------- what the rules are good for


def test_production_beats_popularity_and_random_by_clicks():
    simulator = ShortVideo(ShortVideoConfig(num_items=2000))
    rates = {}
    for name, shares in {"production": (0.0, 0.0), "popularity": (1.0, 0.0), "random": (0.0, 1.0)}.items():
        config = LoggingConfig(popularity_share=shares[0], random_share=shares[1])
        log = collect_log(simulator, num_users=300, num_visits=4, session_length=5, seed=0, config=config)
        rates[name] = log.behaviours[log.examined, 0].mean()
    assert rates["production"] > rates["popularity"] + 0.1 and rates["popularity"] > rates["random"]


def test_without_help_from_the_simulator_popularity_is_learned_and_taste_is_followed():
    """Later items are better for toy users, so the pilot must rank them first, though nobody says so."""
    simulator = PlainUsers(num_items=20, churn=0.0)
    policy = LoggingPolicy(simulator, 4, LoggingConfig(pilot_users=2000))
    rank = np.argsort(np.argsort(-policy._whole.popular.weight_GI[0]))
    assert np.corrcoef(rank, np.arange(20))[0, 1] < -0.9
    greedy = LoggingConfig(popularity_share=0.0, random_share=0.0, temperature=0.01)
    policy = LoggingPolicy(simulator, 4, greedy)
    content = simulator.catalog.content_IE / np.linalg.norm(simulator.catalog.content_IE, axis=1, keepdims=True)
    slates = np.array([[7, 1, 2, 3]])
    behaviours = np.zeros((1, 4, len(BEHAVIOURS)), np.uint8)
    behaviours[0, 0, BEHAVIOURS.index("like")] = 1
    behaviours[0, 1, BEHAVIOURS.index("hate")] = 1  # no pleasure
    taste = policy.learn(policy.no_taste(1), slates, behaviours)
    state = simulator.reset(user_seeds(1, 0, "x"))
    shown, _ = policy.serve(state, taste)
    assert shown[0].tolist() == np.argsort(-content @ content[7])[:4].tolist()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_visits": 0}, "num_visits=0"),
        ({"session_length": 41}, r"session_length=41 must be in 1\.\.40"),
        ({"config": LoggingConfig(random_share=0.95)}, "add up to at most 1"),
    ],
)
def test_user_faults_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        collect_log(ToyUsers(), **{**SMALL, **kwargs})
