"""A cluster of our own keeps to itself and leaves nothing behind; another one may lose its nodes.

The tests start Ray themselves, so they are apart from those of rollouts, which share one that runs.
"""

import ipaddress
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from test_experiments_rollouts import Reward, rollout, some_histories

from feedgym.experiments.rollouts import ray_running

pytestmark = pytest.mark.slow

PATH = os.pathsep.join([os.path.dirname(__file__), *sys.path])
"""Workers and other processes find the agents and rewards of the tests by it."""


class Deadly:
    """Kills every actor that it comes to."""

    def __call__(self, histories, sessions):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_costs_one_worker_after_another_ends_the_round(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATH)
    with pytest.raises(ValueError, match=r"has cost 6 workers, perhaps for lack of memory; lower rollouts.users_per"):
        rollout(some_histories(), Deadly(), num_actors=1)


class SlowReward(Reward):
    """Takes a moment, and says on which node it is."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, histories, sessions):
        import ray

        (self.folder / ray.get_runtime_context().get_node_id()).touch()
        time.sleep(0.5)
        return super().__call__(histories, sessions)


TWO_NODES = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from test_experiments_ray import SlowReward
from test_experiments_rollouts import Reward, rollout, same, some_histories

def leave():
    while not (ray.is_initialized() and (theirs := [n["NodeID"] for n in ray.nodes() if "second" in n["Resources"]])):
        time.sleep(.02)
    while not (folder / theirs[0]).exists():
        time.sleep(.02)
    cluster.remove_node(second, allow_graceful=False)  # while it works: each task takes half a second
    print("gone", flush=True)

folder = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1, resources={"second": 1})
cluster.wait_for_nodes()
threading.Thread(target=leave, daemon=True).start()
(answer,) = rollout(some_histories(), SlowReward(folder), ray=cluster.address, num_actors=2)
assert len(list(folder.iterdir())) == 2, "both nodes worked"
assert same(answer, rollout(some_histories(), Reward(), ray="off")[0])
print("same", flush=True)
cluster.shutdown()
"""


def test_a_node_that_goes_away_in_the_middle_of_a_round_changes_nothing_and_leaves_no_one_waiting(tmp_path):
    """The cluster has no room for the lost actor, so the other one does everything."""
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": PATH}
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, tmp_path], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert {"gone", "same"} <= {*done.stdout.split()}
    assert "A worker was lost. Done again by another: task" in done.stderr


def family():
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def is_loopback(host):
    address = ipaddress.ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_ray_listens_on_the_loopback_address_alone_and_refuses_who_has_no_token():
    with ray_running() as ray:
        ray.get(ray.remote(num_cpus=1)(lambda: os.getpid()).remote())
        listening = [
            (process.name(), connection.laddr)
            for process in family()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert {name for name, _ in listening} >= {"gcs_server", "raylet"}
        assert [place for place in listening if not is_loopback(place[1].ip)] == []
        address = ray.get_runtime_context().gcs_address
        code = f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None, timeout=60)"
        for token, refusal in ((os.environ["RAY_AUTH_TOKEN"], ""), ("0" * 64, "InvalidAuthToken")):
            env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
            guest = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
            assert (guest.returncode == 0) == (not refusal) and refusal in guest.stderr, guest.stderr
    assert [process.cmdline() for process in family()[1:] if "ray" in " ".join(process.cmdline())] == []


ROLLOUTS = """
import time
from test_experiments_rollouts import Agent, Reward, some_histories
from feedgym.experiments.rollouts import RolloutConfig, Rollouts
with Rollouts(RolloutConfig(users_per_task=4)) as rollouts:
    rollouts(Agent(), Reward(), some_histories(), 16, (3, 1))
    print("running", flush=True)
    time.sleep(600)
"""
RLLIB = ["-m", "feedgym", "run", "rllib-smoke", "--num-seeds", "1", "--train.iterations", "10000", "--run"]


@pytest.mark.parametrize("kind", ["rollouts", "rllib"])
def test_a_killed_run_leaves_no_process_behind(kind, tmp_path):
    folder = tmp_path / "run"
    command = ["-c", ROLLOUTS] if kind == "rollouts" else [*RLLIB, str(folder)]
    env = os.environ | {"PYTHONPATH": PATH}
    metrics = folder / "metrics.jsonl"  # written after each iteration
    with open(tmp_path / "said", "w+") as said:
        run = subprocess.Popen([sys.executable, *command], env=env, stdout=said, stderr=subprocess.STDOUT)
        for _ in range(2400):
            if "running" in (tmp_path / "said").read_text() or metrics.exists():
                break
            assert run.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        born = psutil.Process(run.pid).children(recursive=True)
        run.kill()
        run.wait()
    assert sum("ray" in process.name() for process in born) >= 2
    _, left = psutil.wait_procs(born, timeout=20)
    assert [process.cmdline() for process in left] == []
