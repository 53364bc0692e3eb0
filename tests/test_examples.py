"""The examples keep their promises and can be used as their README says."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import feedgym
from feedgym.data.events import BEHAVIOUR_IDX
from feedgym.envs.check import check_simulator
from feedgym.envs.check_environment import check_environment
from feedgym.envs.feed import FeedVectorEnv, make_simulator

ROOT = Path(feedgym.__file__).parent.parent
SIMULATORS = {
    "examples.minimal_users:MinimalUsers": None,
    "examples.own_users:Teens": "examples/Teens-v0",
    "examples.table_users:TableUsers": "examples/Table-v0",
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("path", SIMULATORS)
def test_simulators_and_their_ids_pass_every_check(path):
    check_simulator(make_simulator(path))
    if SIMULATORS[path]:
        check_environment(f"{path.partition(':')[0]}:{SIMULATORS[path]}")


def test_the_smallest_simulator_is_small():
    assert len((ROOT / "examples/minimal_users.py").read_text().splitlines()) < 66


def test_minimal_users_click_what_they_like_without_an_id_of_their_own():
    env = FeedVectorEnv(400, make_simulator("examples.minimal_users:MinimalUsers"), session_length=4)
    observation, _ = env.reset(seed=0)
    parity_U1 = observation["profile"].astype(int)
    liked, other = (env.step((parity_U1 + shift) % 2 + 2 * np.arange(4)) for shift in (0, 1))
    click = BEHAVIOUR_IDX["click"]
    assert liked[4]["behaviours"][..., click].mean() > 0.75
    assert other[4]["behaviours"][..., click].mean() < 0.25


def test_teens_like_what_they_love():
    """An agent that serves the topic clicked before does better than a random one."""
    env = gym.make_vec("examples.own_users:examples/Teens-v0", 300, vectorization_mode="vector_entry_point")
    observation, _ = env.reset(seed=0)
    random = env.step(env.action_space.sample())
    for _ in range(3):
        observation, *_ = env.step(env.action_space.sample())
    topic_UT = env.simulator.catalog.topic_I[observation["history_items"]]
    clicked_UT = observation["history_behaviours"][:, :, 0] == 1
    topic_U = topic_UT[np.arange(300), clicked_UT.argmax(axis=1)]
    better = env.step(topic_U[:, None] + 5 * np.arange(6))
    assert better[1].mean() > 1.3 * random[1].mean()


def test_a_table_of_ones_own_is_the_truth(tmp_path):
    lines = ["user,item,watch_ratio,duration_s", "a,x,1.0,30", "a,y,0.0,40", "b,x,0.0,30", "b,y,1.0,40"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    env = gym.make_vec(
        "examples.table_users:examples/Table-v0",
        50,
        vectorization_mode="vector_entry_point",
        path=str(tmp_path / "table.csv"),
        session_length=2,
    )
    observation, _ = env.reset(seed=0)
    row_U = observation["profile"][:, 0]
    assert set(row_U) == {0, 1} and env.simulator.catalog.raw_ids_I.tolist() == ["x", "y"]
    info = env.step(np.tile([0, 1], (50, 1)))[4]
    assert (info["watch_s"][np.arange(50), row_U] >= 0.8 * np.array([30, 40])[row_U]).all()
    assert not info["watch_s"][np.arange(50), 1 - row_U].any()


def test_own_users_runs_as_its_readme_says():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "examples.own_users"], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.startswith("Mean reward per visit: ")
