"""Compiled parts around the visit against their NumPy versions: histories, fresh users, the logging policy."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaincinv

from feedgym.data.events import BEHAVIOURS
from feedgym.envs import history, logging_policy
from feedgym.envs.compiling import HAS_NUMBA
from feedgym.envs.history import History
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig, population
from feedgym.envs.short_video.gamma import GammaQuantiles
from feedgym.protocols import Response, take_users

pytestmark = pytest.mark.skipif(not HAS_NUMBA, reason="numba is not installed")


def same(a, b):
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert x.dtype == y.dtype and np.array_equal(x, y), f.name


def random_visit(rng, num_users, length, duration_s_I):
    """Slates and the parts of a response that a history takes, for any numbers of examined items."""
    slates_UK = rng.integers(len(duration_s_I), size=(num_users, length))
    examined_UK = np.arange(length) < rng.integers(length + 1, size=(num_users, 1))
    watch_s_UK = (rng.exponential(size=slates_UK.shape) * 2 * duration_s_I[slates_UK] * examined_UK).astype(np.float32)
    behaviours_UKB = rng.integers(2, size=(*slates_UK.shape, len(BEHAVIOURS)), dtype=np.uint8) * examined_UK[..., None]
    rest = np.zeros(num_users, np.float32)
    return slates_UK, Response(
        behaviours_UKB=behaviours_UKB,
        watch_s_UK=watch_s_UK,
        examined_UK=examined_UK,
        **{"elapsed_s_U": rest, "left_U": rest > 0, "return_gap_s_U": rest, "churned_U": rest > 0},
    )


@given(length=st.integers(1, 12), session=st.integers(1, 9), visits=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_histories_grow_as_in_numpy_to_the_bit(length, session, visits, seed):
    rng = np.random.default_rng(seed)
    duration_s_I = rng.uniform(5, 50, 30).astype(np.float32)
    compiled = plain = History.empty(5, length)
    login_s_U = rng.uniform(0, 1e7, 5)
    for _ in range(visits):
        slates_UK, response = random_visit(rng, 5, session, duration_s_I)
        before = take_users(compiled, np.arange(5))
        compiled, old = compiled.after(login_s_U, slates_UK, response, duration_s_I), compiled
        same(old, before)
        plain = plain._after(login_s_U, slates_UK, response, duration_s_I)
        same(compiled, plain)
        login_s_U = login_s_U + rng.uniform(0, 1e5, 5)


def test_histories_are_those_of_numpy_without_numba(monkeypatch):
    rng, duration_s_I = np.random.default_rng(0), np.full(30, 9, np.float32)
    visit = random_visit(rng, 4, 6, duration_s_I)
    compiled = History.empty(4, 8).after(np.zeros(4), *visit, duration_s_I)
    monkeypatch.setattr(history, "HAS_NUMBA", False)
    same(compiled, History.empty(4, 8).after(np.zeros(4), *visit, duration_s_I))


@pytest.mark.parametrize("topics", [{}, {"num_topics": 3, "interest_topics": (1, 7)}, {"interest_topics": (4, 4)}])
def test_fresh_users_are_those_of_numpy(topics, monkeypatch):
    simulator, seeds = ShortVideo(ShortVideoConfig(num_items=50, **topics)), user_seeds(3000, 0, "fresh")
    compiled = simulator.reset(seeds)
    monkeypatch.setattr(population, "HAS_NUMBA", False)
    plain = simulator.reset(seeds)
    other = (compiled.interest_UD != plain.interest_UD).any(axis=1)
    assert other.sum() <= 1, "two topics that tie in their race are rare"
    same(take_users(compiled, ~other), take_users(plain, ~other))


@pytest.mark.parametrize("shape", [0.02, 0.3, 0.7, 1.0, 4.0, 300.0])
def test_gamma_quantiles_are_scipys(shape):
    ends = np.array([0.5, 2**23 - 0.5]) / 2**23
    uniform = np.concatenate([ends, (np.random.default_rng(0).integers(2**23, size=5000) + 0.5) / 2**23])
    got = GammaQuantiles(shape)(uniform.astype(np.float32))
    np.testing.assert_allclose(got, gammaincinv(shape, uniform).astype(np.float32), rtol=2e-7, atol=1e-37)


POLICIES = {
    "default": (300, 10, LoggingConfig()),
    "many candidates": (60, 5, LoggingConfig(num_candidates=500, popularity_share=0.3)),
    "fewer than items": (60, 7, LoggingConfig(num_candidates=20, popularity_share=0.3, random_share=0.3)),
    "the whole catalogue": (12, 12, LoggingConfig(num_candidates=5, random_share=0.4)),
    "cold": (300, 4, LoggingConfig(temperature=1e-3)),
    "hot": (300, 4, LoggingConfig(temperature=100.0)),
    "no production": (30, 4, LoggingConfig(popularity_share=0.5, random_share=0.5)),
    "production alone": (30, 4, LoggingConfig(popularity_share=0.0, random_share=0.0)),
}


@pytest.mark.parametrize("name", POLICIES)
def test_the_logging_policy_serves_as_in_numpy(name, monkeypatch):
    num_items, length, config = POLICIES[name]
    simulator = ShortVideo(ShortVideoConfig(num_items=num_items))
    policy, state = LoggingPolicy(simulator, length, config), simulator.reset(user_seeds(1500, 0, "served"))
    taste_UE = policy.no_taste(1500)
    slates_UK, propensity_UK = policy.serve(state, taste_UE)
    assert np.array_equal(policy.sessions(state, taste_UE), slates_UK)
    few = np.array([3, 700])
    assert np.array_equal(policy.sessions(take_users(state, few), taste_UE[few]), slates_UK[few])
    monkeypatch.setattr(logging_policy, "HAS_NUMBA", False)
    simulator.compiled = False
    plain_UK, plain_propensity_UK = LoggingPolicy(simulator, length, config).serve(state, taste_UE)
    other_U = (slates_UK != plain_UK).any(axis=1)
    assert other_U.sum() <= 1, "two candidates whose scores tie are rare"
    np.testing.assert_allclose(propensity_UK[~other_U], plain_propensity_UK[~other_U], rtol=2e-3)


def test_sessions_are_those_served_where_items_come_and_go():
    simulator = ShortVideo(
        ShortVideoConfig(num_items=200, arrivals_a_day=5.0, arrival_days=20.0, lifetime_days=15.0, fresh_weight=1.0)
    )
    policy, state = LoggingPolicy(simulator, 6), simulator.reset(user_seeds(200, 0, "served"))
    state = replace(state, time_s_U=state.time_s_U + np.arange(200) * 6_000)
    taste_UE = policy.no_taste(200)
    assert np.array_equal(policy.sessions(state, taste_UE), policy.serve(state, taste_UE)[0])
