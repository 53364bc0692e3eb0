import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from toy_users import ToyUsers

from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig, oracle
from feedgym.envs.short_video.oracle import expected_reward, greedy_sessions
from feedgym.envs.truth import RewardWeights, oracle_sessions, true_value
from feedgym.protocols import take_users

NO_RETURN = RewardWeights(return_24h=0.0)


def users(simulator, num_users):
    return simulator.reset(user_seeds(num_users, 0, "oracle"))


def test_the_oracle_beats_production_which_beats_popularity_and_random():
    simulator = ShortVideo(ShortVideoConfig(num_items=2000))
    state = users(simulator, 200)

    def served(popularity, random):
        policy = LoggingPolicy(simulator, 5, LoggingConfig(popularity_share=popularity, random_share=random))
        return policy.serve(state, policy.no_taste(200))[0]

    sessions = [oracle_sessions(simulator, state, 5), served(0.0, 0.0), served(1.0, 0.0), served(0.0, 1.0)]
    value = true_value(simulator, state, np.stack(sessions, axis=1), replicas=8).mean(axis=0)
    assert value[0] > 1.4 * value[1] and value[1] > 1.1 * value[2] and value[1] > 1.1 * value[3]


def test_on_a_tiny_catalogue_the_oracle_comes_near_the_best_of_all_sessions():
    simulator = ShortVideo(ShortVideoConfig(num_items=6, memory_items=8))
    state = users(simulator, 60)
    every = np.array(list(itertools.permutations(range(6), 2)))
    value = true_value(simulator, state, np.tile(every, (60, 1, 1)), weights=NO_RETURN, replicas=128)
    chosen = simulator.oracle(state, 2)
    at = (every[None] == chosen[:, None]).all(axis=2).argmax(axis=1)
    fresh = true_value(simulator, state, np.tile(every, (60, 1, 1)), weights=NO_RETURN, replicas=128, seed=1)
    best = fresh[np.arange(60), value.argmax(axis=1)].mean()  # judged by other random numbers than chosen by
    assert fresh[np.arange(60), at].mean() > 0.97 * best
    assert best > 1.2 * fresh.mean(), "the test must leave room for a bad oracle"


def test_expected_reward_is_the_mean_of_the_simulators_answers():
    """First positions of users without a time limit, against many sampled answers, item by item."""
    config = ShortVideoConfig(num_items=12, budget_s=1e6, budget_sd=0.0, budget_active=0.0)
    simulator = ShortVideo(config)
    state = users(simulator, 30)
    items = np.tile(np.arange(12), (30, 1))
    pull = config.interest_weight * state.interest_UD @ simulator.latents.z_ID.T
    pull += config.quality_weight * simulator.latents.quality_I + config.novelty_weight * state.novelty_U[:, None]
    weights = RewardWeights(return_24h=0.0, click=0.7, hate=-5.0)
    expected = expected_reward(simulator, state, items, pull, weights)[2]
    sampled = true_value(simulator, state, items[:, :, None], weights=weights, replicas=400)
    assert abs((sampled - expected).mean()) < 0.01
    assert np.corrcoef(sampled.ravel(), expected.ravel())[0, 1] > 0.98
    slope = np.polyfit(expected.ravel(), sampled.ravel(), 1)[0]
    assert abs(slope - 1) < 0.05


def test_sessions_hold_different_items_and_depend_on_the_user_alone(monkeypatch):
    simulator = ShortVideo(ShortVideoConfig(num_items=900, memory_items=16))
    state = users(simulator, 30)
    _, state = simulator.respond(state, np.tile(np.arange(10), (30, 1)))
    kept = {f.name: getattr(state, f.name).copy() for f in fields(state)}
    sessions = simulator.oracle(state, 8)
    assert (np.diff(np.sort(sessions)) > 0).all()
    for name, column in kept.items():
        assert (getattr(state, name) == column).all(), name
    monkeypatch.setattr(oracle, "BLOCK_USERS", 7)
    some = np.array([20, 3])
    assert (simulator.oracle(take_users(state, some), 8) == sessions[some]).mean() > 0.99


def test_the_oracle_knows_satiation_and_memory():
    simulator = ShortVideo(ShortVideoConfig(num_items=900, memory_items=16))
    state = users(simulator, 40)
    first = simulator.oracle(state, 4)
    seen = np.full_like(state.seen_UR, -1)
    seen[:, :4] = first
    again = simulator.oracle(replace(state, seen_UR=seen), 4)
    assert (again[:, :, None] == first[:, None]).any(axis=2).mean() < 0.2
    topic = simulator.latents.topic_I2[first[:, 0], 0]
    full = state.satiation_UM.copy()
    full[np.arange(40), topic] = 0.99
    then = simulator.latents.topic_I2[simulator.oracle(replace(state, satiation_UM=full), 4), 0]
    before = simulator.latents.topic_I2[first, 0]
    assert (then == topic[:, None]).mean() < 0.6 * (before == topic[:, None]).mean()


def test_user_faults_are_named():
    simulator = ShortVideo(ShortVideoConfig(num_items=6))
    with pytest.raises(ValueError, match=r"have 1\.\.6"):
        greedy_sessions(simulator, users(simulator, 2), 7)
    toy = ToyUsers()
    with pytest.raises(ValueError, match="ToyUsers has no oracle"):
        oracle_sessions(toy, users(toy, 2), 3)
    assert (simulator.oracle(users(simulator, 2), 6).sum(axis=1) == 15).all()
