"""The package's own test: the rules of a simulator, and the environment that its entry point registers."""

import gymnasium as gym
import numpy as np
from teens.users import Teens

import feedgym


def test_the_simulator_keeps_the_rules():
    feedgym.check_simulator(Teens())


def test_the_entry_point_makes_an_environment():
    env = gym.make("teens/Teens-v0", num_items=50, session_length=4)
    env.reset(seed=0)
    _, reward, *_ = env.step(np.arange(4))
    assert np.isfinite(reward)
