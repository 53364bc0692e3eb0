import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from toy_users import ToyUsers

from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.registration import ENVIRONMENTS
from feedgym.envs.sb3 import SB3VecEnv
from feedgym.envs.wrappers import (
    CompactObservation,
    ItemByItem,
    ProtoItems,
    VectorCompactObservation,
    VectorItemByItem,
    VectorProtoItems,
)

K, ITEMS = 3, 20


def feed(num_envs=None, **kwargs):
    kwargs = {"session_length": K, "history_length": 6, "horizon": 5, **kwargs}
    kwargs = {"simulator": ToyUsers(num_items=ITEMS, churn=0.2)} | kwargs
    return FeedEnv(**kwargs) if num_envs is None else FeedVectorEnv(num_envs, autoreset_mode="SameStep", **kwargs)


SINGLE = {
    "sessions": CompactObservation,
    "proto": lambda env: ProtoItems(CompactObservation(env), width=2),
    "item": lambda env: CompactObservation(ItemByItem(env)),
}
MANY = {
    "sessions": VectorCompactObservation,
    "proto": lambda env: VectorProtoItems(VectorCompactObservation(env), width=2),
    "item": lambda env: VectorCompactObservation(VectorItemByItem(env)),
}
FEW = {"learning_starts": 64, "batch_size": 16, "device": "cpu", "seed": 0}
LEARNERS = {
    "ppo": ("sessions", lambda env: PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, device="cpu", seed=0)),
    "sac": ("proto", lambda env: SAC("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, **FEW)),
    "td3": ("proto", lambda env: TD3("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, **FEW)),
    "dqn": ("item", lambda env: DQN("MultiInputPolicy", env, policy_kwargs={"net_arch": [16]}, **FEW)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", SINGLE)
def test_their_check_env_passes_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env in (feed(), gym.make("feedgym/ShortVideo-v1", session_length=K, num_items=60)):
            check_env(SINGLE[name](env))


@pytest.mark.parametrize("env_id", ENVIRONMENTS)
def test_their_check_env_passes_without_a_warning_on_every_id_as_it_is(env_id):
    arriving = "arrivals_a_day" in gym.spec(env_id).kwargs  # such a catalogue must hold what arrives
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, **{} if arriving else {"num_items": 60}))


def test_their_learner_takes_a_plain_feed_as_it_is():
    model = PPO("MultiInputPolicy", feed(), n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0).learn(32)
    observation, _ = feed().reset(seed=3)
    assert feed().action_space.contains(model.predict(observation, deterministic=True)[0])


@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("name", LEARNERS)
def test_learners_train_unmodified(name, kind):
    """Parameters move and stay finite, and what is chosen then can be served."""
    actions, make = LEARNERS[name]
    env = SINGLE[actions](feed()) if kind == "single" else SB3VecEnv(MANY[actions](feed(8)))
    model = make(env)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(128)
    after = list(model.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(torch.isfinite(p).all() for p in after)
    fresh = SINGLE[actions](feed())
    observation, _ = fresh.reset(seed=3)
    served = 0
    for _ in range(2 * K):
        action, _ = model.predict(observation, deterministic=True)
        assert fresh.action_space.contains(action if action.ndim else action[()])
        observation, reward, terminated, truncated, info = fresh.step(action)
        assert np.isfinite(reward) and fresh.observation_space.contains(observation)
        served += "watch_s" in info
        if terminated or truncated:
            observation, _ = fresh.reset()
    assert served >= 2


@pytest.mark.parametrize("name", MANY)
def test_the_vector_adapter_equals_their_own_of_single_environments(name):
    ours, theirs = (
        SB3VecEnv(MANY[name](feed(4))),
        DummyVecEnv([lambda: Monitor(SINGLE[name](feed())) for _ in range(4)]),
    )
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    ours.seed(7)
    theirs.seed(7)
    same(ours.reset(), theirs.reset())
    ends = 0
    ours.action_space.seed(0)
    for _ in range(12 * K):
        action = np.array([ours.action_space.sample() for _ in range(4)])
        mine, yours = ours.step(action), theirs.step(action)
        same(mine[0], yours[0])
        assert np.array_equal(mine[1], yours[1]) and np.array_equal(mine[2], yours[2])
        for i in np.flatnonzero(mine[2]):
            same(mine[3][i]["terminal_observation"], yours[3][i]["terminal_observation"])
            assert mine[3][i]["TimeLimit.truncated"] == yours[3][i]["TimeLimit.truncated"]
            told, expected = mine[3][i]["episode"], yours[3][i]["episode"]
            assert told["l"] == expected["l"] and told["r"] == pytest.approx(expected["r"], abs=1e-5)
            assert 0 < told["t"] < 600
            ends += 1
    assert ends > 2


@pytest.mark.slow
def test_ppo_learns_what_users_like():
    """Toy users like items by number: sessions chosen after 20,000 visits are worth more than random ones."""
    simulator = ToyUsers(num_items=ITEMS, churn=0.0)
    env = SB3VecEnv(VectorCompactObservation(feed(32, simulator=simulator, horizon=10)))
    model = PPO(
        "MlpPolicy", env, n_steps=16, batch_size=256, gamma=0.0, learning_rate=3e-3, device="cpu", seed=0
    ).learn(20_000)
    rng = np.random.default_rng(0)
    random = mean_reward(simulator, lambda _: rng.random((500, ITEMS)).argsort(axis=1)[:, :K])
    learned = mean_reward(simulator, lambda observation: model.predict(observation, deterministic=True)[0])
    assert learned > 1.2 * random


def mean_reward(simulator, choose):
    env = SB3VecEnv(VectorCompactObservation(feed(500, simulator=simulator, horizon=10)))
    env.seed(10_000)
    observation, total = env.reset(), 0.0
    for _ in range(10):
        observation, reward, _, _ = env.step(choose(observation))
        total += reward.mean() / 10
    return total


def same(mine, yours):
    mine, yours = (x if isinstance(x, dict) else {"": x} for x in (mine, yours))
    for name in yours:
        assert np.array_equal(mine[name], yours[name]), name


def test_the_vector_adapter_answers_for_its_slots():
    env = SB3VecEnv(MANY["item"](feed(4)))
    env.reset()
    env.step(np.array([1, 2, 3, 4]))
    masks = env.env_method("action_masks", indices=[1, 3])  # as MaskablePPO asks
    assert [np.flatnonzero(~mask).tolist() for mask in masks] == [[2], [4]]
    assert env.has_attr("action_masks") and not env.has_attr("nothing_like_it")
    assert env.env_is_wrapped(VectorItemByItem) == [True] * 4 and env.env_is_wrapped(VectorProtoItems, 0) == [False]
    assert env.get_attr("horizon", 2) == [5]
    env.set_attr("horizon", 2)
    assert env.unwrapped.env.unwrapped.horizon == 2 and VecMonitor(env).num_envs == 4
    env.close()
    with pytest.raises(ValueError, match="autoreset_mode NextStep"):
        SB3VecEnv(FeedVectorEnv(2, ToyUsers(), autoreset_mode=AutoresetMode.NEXT_STEP))
