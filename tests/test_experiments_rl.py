import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from feedgym.cli import read_config
from feedgym.experiments.presets import CONFIGS, PRESETS
from feedgym.experiments.rl.experiment import VISITS_METRIC, mean_of, plan, seeds_compared, training_seed
from feedgym.experiments.rl.presets import RL_PRESETS, RLConfig, smoke
from feedgym.experiments.run import Run
from feedgym.experiments.serve import ServingRecord
from feedgym.experiments.statistics import Ratio, over_runs


def test_intervals_over_runs_are_students():
    value_N = np.array([2.2, 2.5, 1.9, 2.4])
    found = over_runs(value_N)
    low, high = ttest_1samp(value_N, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high)) and found["runs"] == value_N.tolist()
    alone = over_runs(value_N[:1])
    assert alone["mean"] == 2.2 and alone["low"] == -np.inf


def record(**by_visit):
    return ServingRecord({name: np.array(count) for name, count in by_visit.items()}, np.array([0.5, np.nan]))


def test_several_trainings_count_as_one_agent_whose_outcomes_are_their_means():
    one = record(true_reward=[[1.0, 3.0], [0.0, 1.0]], visits=[[1.0, 1.0], [0.0, 1.0]])
    two = record(true_reward=[[3.0, 0.0], [0.0, 0.0]], visits=[[1.0, 1.0], [1.0, 1.0]])
    both = mean_of([one, two])
    assert both.ratio("true_reward").numerator_U.tolist() == [2, 2]
    assert both.ratio("true_reward").denominator_U.tolist() == [1.5, 2]
    assert both.by_visit["visits"].tolist() == [[1, 1], [0.5, 1]] and both.concentration_V[0] == 0.5


def test_lifts_over_trainings_are_against_the_same_reference():
    def agent(value):
        return {name: Ratio(np.full(3, value), np.ones(3)) for name in ("true_reward", VISITS_METRIC)}

    found = seeds_compared("ppo", [agent(3.0), agent(4.0)], {"popular": agent(2.0), "lost": agent(-1.0)})
    assert found["true_reward of ppo over popular"]["runs"] == [0.5, 1.0]
    assert "true_reward of ppo over lost" not in found  # a loss cannot be lifted


def test_options_reach_the_environment_and_mistakes_are_told():
    config = RLConfig(env_options=("num_items=70", "choice=proportional_cascade"), session_length=4)
    assert config.options() == {"num_items": 70, "choice": "proportional_cascade", "session_length": 4}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        RLConfig(env_options=("num_items",))
    with pytest.raises(ValueError, match="num_seeds=0"):
        RLConfig(num_seeds=0)
    with pytest.raises(ValueError, match=r"gamma=1\.5 must be 1 or less"):
        replace(smoke().train, gamma=1.5)


def test_trainings_have_seeds_of_their_own():
    seeds = {training_seed(RLConfig(seed=seed), n) for seed in range(5) for n in range(5)}
    assert len(seeds) == 25 and max(seeds) < 2**31


@pytest.mark.parametrize("name", RL_PRESETS)
def test_presets_are_offered_and_come_back_from_a_run_folder(name, tmp_path):
    config = PRESETS[name]()
    assert CONFIGS[type(config).__name__] is RLConfig and list(plan(config))[-1] == "cost"
    Run(tmp_path / "run", config, plan(config), tracker="none").close()
    assert read_config(tmp_path / "run") == config


def test_a_reward_models_opinion_is_told_only_where_there_is_one():
    served = record(**{name: np.ones((2, 2)) for name in ("true_reward", "visits", "seen", "watch_s")})
    assert "model_reward" not in served.ratios() and served.ratios()["watch_s"].mean() == 1


@pytest.mark.slow
def test_the_command_trains_judges_and_resumes(tmp_path):
    folder = tmp_path / "run"
    arguments = [sys.executable, "-m", "feedgym", "run", "rllib-smoke"]
    done = subprocess.run([*arguments, "--run", str(folder)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert {"random", "popular", "ppo", "oracle"} == set(summary["agents"])
    assert len(summary["over_seeds"]["true_reward of ppo"]["runs"]) == 2
    assert summary["lift_names"] == ["ppo", "popular"] and "ppo over random" in summary["lifts"]
    assert "model_reward" not in summary["agents"]["ppo"]
    report = (folder / "report.html").read_text()
    assert "ppo over popular" in report and "Over the trainings" in report and "Learning" in report
    again = subprocess.run([*arguments, "--resume", str(folder)], capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    found = json.loads((folder / "summary.json").read_text())
    assert found["agents"] == summary["agents"] and "done trained" not in again.stderr
    assert not list(Path(folder).rglob("*.pkl"))
