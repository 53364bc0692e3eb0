"""Reading a finished run's agents back: the same agents as the run had, and faults told in one line."""

import shutil

import pytest
import torch

from feedgym.agents.baselines import RandomRecommender
from feedgym.data.whole import write_sealed
from feedgym.experiments.align.agents import agents_of, read_config
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.run import read_about
from feedgym.rewards.compose import Diversity
from feedgym.rewards.model import RewardModel


def test_a_runs_agents_come_back_with_its_world_and_reward(aligned_run):
    finished = agents_of(aligned_run)
    assert finished.config == read_config(aligned_run)
    assert set(finished.agents) == {"base", "aligned"}
    assert finished.world.simulator.catalog.num_items == finished.catalog.num_items == 120
    base, aligned = (finished.agents[name].model.state_dict() for name in ("base", "aligned"))
    assert any(not torch.equal(base[name], aligned[name]) for name in base), "one round of DPO changes weights"

    pool = Pool.of((finished.log, finished.catalog), finished.world, finished.config)
    histories = pool.unseen.histories.rows(slice(3))
    sessions = RandomRecommender(120, finished.config.session_length).sample(
        histories, 4, torch.Generator().manual_seed(0)
    )
    model = RewardModel.load(aligned_run / "stages" / "reward").with_weights(finished.config.weights)
    expected = model(histories, sessions) + Diversity(finished.catalog)(histories, sessions)
    torch.testing.assert_close(finished.reward(histories, sessions), expected, msg="the run's own score")


def test_unfinished_and_damaged_runs_are_refused(aligned_run, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run"):
        agents_of(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(aligned_run, copy)
    mark = copy / "stages" / "aligned-1" / "stage.json"
    mark.unlink()
    with pytest.raises(ValueError, match=r"not finished its stage aligned-1; finish it with `feedgym demo --resume"):
        agents_of(copy)
    weights = copy / "stages" / "base" / "model.safetensors"
    mark.write_text((aligned_run / "stages" / "aligned-1" / "stage.json").read_text())
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(
        ValueError, match=r"model.safetensors is damaged; make it again: feedgym stage base --run \S+ --redo"
    ):
        agents_of(copy)


def test_without_rounds_the_aligned_agent_is_the_base(aligned_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(aligned_run, copy, ignore=shutil.ignore_patterns("aligned-*"))
    written = read_about(copy)
    written["config"]["rounds"]["num"] = 0
    write_sealed(copy / "config.json", written)
    agents = agents_of(copy).agents
    base, aligned = (agents[name].model.state_dict() for name in ("base", "aligned"))
    assert all(torch.equal(base[name], aligned[name]) for name in base)


def field_added(config):
    config["colour"] = "red"


def field_removed(config):
    del config["rounds"]["user_share"]


def field_renamed(config):
    config["session_size"] = config.pop("session_length")


@pytest.mark.parametrize("change", [field_added, field_removed, field_renamed])
def test_a_configuration_with_other_fields_is_refused_and_not_filled_with_defaults(aligned_run, tmp_path, change):
    about = read_about(aligned_run)
    change(about["config"])
    write_sealed(tmp_path / "config.json", about)
    with pytest.raises(
        ValueError, match=r"is of another version of feedgym \(.*\); start a new run with --run"
    ) as told:
        read_config(tmp_path)
    assert "\n" not in str(told.value)
