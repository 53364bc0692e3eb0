from dataclasses import fields, replace

import numpy as np
import pytest
from toy_users import ToyUsers

from feedgym.data.events import BEHAVIOURS
from feedgym.envs import truth
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RewardWeights, replica_seeds, session_reward, true_value
from feedgym.protocols import Response, take_users


def world(num_users=20, num_sessions=6, num_items=40):
    simulator = ShortVideo(ShortVideoConfig(num_items=num_items, memory_items=8))
    state = simulator.reset(user_seeds(num_users, 0, "truth"))
    rng = np.random.default_rng(0)
    _, state = simulator.respond(state, rng.integers(num_items, size=(num_users, 4)))
    return simulator, state, rng.integers(num_items, size=(num_users, num_sessions, 4))


def test_rewards_by_hand():
    behaviours = np.zeros((3, 2, len(BEHAVIOURS)), np.uint8)
    behaviours[0, :, BEHAVIOURS.index("like")] = 1
    behaviours[
        1, 0, [BEHAVIOURS.index(name) for name in ("click", "long_view", "follow", "comment", "forward", "hate")]
    ] = 1
    response = Response(
        behaviours_UKB=behaviours,
        watch_s_UK=np.array([[60, 30], [0, 0], [6, 0]], np.float32),
        examined_UK=np.ones((3, 2), bool),
        elapsed_s_U=np.zeros(3, np.float32),
        left_U=np.zeros(3, bool),
        return_gap_s_U=np.array([86_400, 86_401, 5], np.float32),
        churned_U=np.array([False, False, True]),
    )
    # minutes, likes and a return; the other behaviours, back too late; minutes of one who never returns
    np.testing.assert_allclose(
        session_reward(response, RewardWeights()), [1.5 + 1 + 2, 1 + 0.3 + 0.5 - 1, 0.1], rtol=1e-6
    )
    only = {f.name: 0.0 for f in fields(RewardWeights)}
    clicks = session_reward(response, RewardWeights(**{**only, "click": 2.0, "long_view": 1.0}))
    np.testing.assert_allclose(clicks, [0, 3, 0])


def test_true_value_is_the_mean_over_the_replicas_answers():
    simulator, state, sessions = world()
    value = true_value(simulator, state, sessions, replicas=3, seed=9)
    luck = replica_seeds(state.seed_U, 3, 9)
    for user, session in [(0, 0), (7, 5), (19, 2)]:
        rewards = []
        for r in range(3):
            one = replace(take_users(state, np.array([user])), seed_U=luck[user, r : r + 1])
            rewards.append(session_reward(simulator.respond(one, sessions[user, session][None])[0], RewardWeights())[0])
        assert value[user, session] == pytest.approx(np.mean(rewards), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 100_000])
def test_true_value_depends_neither_on_blocks_nor_on_batch_mates(rows, monkeypatch):
    simulator, state, sessions = world()
    value = true_value(simulator, state, sessions, replicas=4)
    monkeypatch.setattr(truth, "BLOCK_ROWS", rows)
    assert (true_value(simulator, state, sessions, replicas=4) == value).all()
    some = np.array([3, 1])
    assert (
        true_value(simulator, take_users(state, some), sessions[some][:, ::-1], replicas=4)[:, ::-1] == value[some]
    ).all()


def test_random_numbers_are_paired_within_a_user_and_fresh_otherwise():
    simulator, state, sessions = world()
    kept = {f.name: getattr(state, f.name).copy() for f in fields(state)}
    twice = true_value(simulator, state, sessions[:, [0, 0]], replicas=2)
    assert (twice[:, 0] == twice[:, 1]).all()
    other = true_value(simulator, state, sessions[:, :1], replicas=2, seed=1)
    assert (other[:, 0] != twice[:, 0]).mean() > 0.9
    seeds = np.concatenate([replica_seeds(state.seed_U, 8, s).ravel() for s in (0, 1)])
    assert len(np.unique(np.append(seeds, state.seed_U))) == 20 * 17
    for name, column in kept.items():
        assert (getattr(state, name) == column).all(), name


def test_true_value_is_unbiased_for_what_users_really_do():
    """Over many users, the truth's mean is the mean of what happened; paired, so the users' own spread drops out."""
    simulator, _, _ = world()
    state = simulator.reset(user_seeds(4000, 1, "truth"))
    slates = np.random.default_rng(1).integers(40, size=(4000, 4))
    happened = session_reward(simulator.respond(state, slates)[0], RewardWeights())
    value = true_value(simulator, state, slates[:, None], replicas=16)[:, 0]
    difference = happened - value
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(4000)
    assert np.corrcoef(happened, value)[0, 1] > 0.3, "the truth must tell users and sessions apart"
    independent = true_value(simulator, state, slates[:, None], replicas=16, seed=3)[:, 0]
    assert np.corrcoef(difference, independent - value)[0, 1] < 0.5


def test_any_simulator_can_be_judged():
    simulator = ToyUsers(num_items=20)
    state = simulator.reset(user_seeds(200, 0, "truth"))
    good, bad = np.arange(15, 20), np.arange(5)
    value = true_value(simulator, state, np.tile(np.stack([good, bad]), (200, 1, 1)), replicas=8)
    assert (value[:, 0] - value[:, 1]).mean() > 0.3


@pytest.mark.parametrize(
    ("shape", "replicas", "message"),
    [((20, 4), 1, r"shape \(20, 4\)"), ((19, 2, 4), 1, "do not fit 20 users"), ((20, 2, 4), 0, "replicas=0")],
)
def test_user_faults_are_named(shape, replicas, message):
    simulator, state, _ = world()
    with pytest.raises(ValueError, match=message):
        true_value(simulator, state, np.zeros(shape, int), replicas=replicas)
