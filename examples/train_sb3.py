"""Three learners of Stable-Baselines3 on one feed, unmodified: PPO on sessions, SAC on proto-items, DQN item by item.

    pip install stable-baselines3
    python examples/train_sb3.py --steps 30000

Prints the mean true reward per visit of each on new users, next to random sessions and the oracle, which sees the
users' state. Users tire of seen items, so a learner that serves the same items to everybody is worse than random.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm

from feedgym.envs.feed import FeedVectorEnv
from feedgym.envs.sb3 import SB3VecEnv
from feedgym.envs.wrappers import VectorCompactObservation, VectorItemByItem, VectorProtoItems

SESSION_LENGTH = 5


def feed(num_envs: int, num_items: int, population: str = "test") -> FeedVectorEnv:
    lengths = {"session_length": SESSION_LENGTH, "horizon": 20}
    return FeedVectorEnv(num_envs, **lengths, autoreset_mode="SameStep", population=population, num_items=num_items)


def wrapped(name: str, env: FeedVectorEnv) -> SB3VecEnv:
    if name == "dqn":
        return SB3VecEnv(VectorCompactObservation(VectorItemByItem(env)))
    compact = VectorCompactObservation(env)
    return SB3VecEnv(VectorProtoItems(compact, width=8) if name == "sac" else compact)


def learner(name: str, env: SB3VecEnv, seed: int) -> BaseAlgorithm:
    few = {"learning_rate": 1e-3, "seed": seed, "device": "cpu"}
    if name == "ppo":
        return PPO("MlpPolicy", env, n_steps=32, batch_size=512, n_epochs=6, gamma=0.3, **few)
    few |= {"learning_starts": 2000, "gradient_steps": 4, "policy_kwargs": {"net_arch": [64, 64]}}
    if name == "sac":
        return SAC("MlpPolicy", env, gamma=0.3, **few)
    # A session's reward comes with its last item, so the discount must reach over the session.
    return DQN(
        "MultiInputPolicy",
        env,
        gamma=0.9,
        train_freq=1,
        target_update_interval=500,
        exploration_fraction=0.6,
        buffer_size=100_000,
        **few,
    )


def mean_reward(env: SB3VecEnv, choose, visits: int, steps_a_visit: int) -> float:
    env.seed(0)
    observation = env.reset()
    total = 0.0
    for _ in range(visits * steps_a_visit):
        observation, reward_U, _, _ = env.step(choose(observation))
        total += float(reward_U.mean())
    return total / visits


def oracle_reward(num_items: int, visits: int) -> float:
    env = feed(200, num_items)
    env.reset(seed=0)
    return float(np.mean([env.step(env.simulator.oracle(env.state, SESSION_LENGTH))[1].mean() for _ in range(visits)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps each learner trains for")
    parser.add_argument("--num-items", type=int, default=100)
    parser.add_argument("--visits", type=int, default=10, help="visits per user in the judgement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learners", nargs="+", choices=("ppo", "sac", "dqn"), default=["ppo", "sac", "dqn"])
    args = parser.parse_args()
    torch.set_num_threads(1)  # such small networks are slower with more

    judged = SB3VecEnv(feed(200, args.num_items))
    judged.action_space.seed(args.seed)
    random = mean_reward(judged, lambda _: np.array([judged.action_space.sample() for _ in range(200)]), args.visits, 1)
    print(f"random  {random:6.3f}")
    for name in args.learners:
        model = learner(name, wrapped(name, feed(64, args.num_items, "train")), args.seed).learn(args.steps)
        env = wrapped(name, feed(200, args.num_items))
        steps_a_visit = SESSION_LENGTH if name == "dqn" else 1
        served = mean_reward(
            env, lambda seen, m=model: m.predict(seen, deterministic=True)[0], args.visits, steps_a_visit
        )
        print(f"{name:<7} {served:6.3f}")
    print(f"oracle  {oracle_reward(args.num_items, args.visits):6.3f}")


if __name__ == "__main__":
    main()
