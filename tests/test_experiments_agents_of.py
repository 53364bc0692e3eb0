"""Reading a finished run's agents back: the same agents as the run had, and faults told in one line."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from feedgym.agents.baselines import RandomRecommender
from feedgym.experiments.agents_of import agents_of, read_config
from feedgym.experiments.presets import smoke
from feedgym.experiments.run import Run, StageReached
from feedgym.experiments.worlds import Pool
from feedgym.rewards.compose import Diversity
from feedgym.rewards.model import RewardModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run brought up to its first round's snapshot, which is all that its agents need."""
    from feedgym.experiments.align import align

    folder = tmp_path_factory.mktemp("runs") / "one"
    tiny = smoke()
    config = replace(
        tiny,
        ray="off",
        ipa=replace(tiny.ipa, rounds=1, num_samples=6, truth_replicas=1),
        score="feedgym.rewards.compose:diverse",
    )
    run = Run(folder, config, tracker=False, stop_after="aligned-1")
    with pytest.raises(StageReached):
        align(config, run)
    run.close()
    return folder


def test_a_runs_agents_come_back_with_its_world_and_reward(folder):
    finished = agents_of(folder)
    assert finished.config == read_config(folder)
    assert set(finished.agents) == {"base", "aligned"}
    assert finished.world.simulator.catalog.num_items == finished.catalog.num_items == 120
    base, aligned = (finished.agents[name].model.state_dict() for name in ("base", "aligned"))
    assert any(not torch.equal(base[name], aligned[name]) for name in base), "one round of DPO changes weights"

    pool = Pool.of((finished.log, finished.catalog), finished.world, finished.config)
    histories = pool.unseen.histories.rows(slice(3))
    sessions = RandomRecommender(120, finished.config.session_length).sample(
        histories, 4, torch.Generator().manual_seed(0)
    )
    model = RewardModel.load(folder / "stages" / "reward").with_weights(finished.config.weights)
    expected = model(histories, sessions) + Diversity(finished.catalog)(histories, sessions)
    torch.testing.assert_close(finished.reward(histories, sessions), expected, msg="the run's own score")


def test_unfinished_and_damaged_runs_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run"):
        agents_of(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    mark = copy / "stages" / "aligned-1" / "stage.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"complete": False}))
    with pytest.raises(ValueError, match=r"not finished its stage aligned-1; finish it with `feedgym demo --resume"):
        agents_of(copy)
    weights = copy / "stages" / "base" / "model.safetensors"
    mark.write_text((folder / "stages" / "aligned-1" / "stage.json").read_text())
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="Cannot read the model"):
        agents_of(copy)


def test_without_rounds_the_aligned_agent_is_the_base(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("aligned-*"))
    written = json.loads((copy / "config.json").read_text())
    written["config"]["ipa"]["rounds"] = 0
    (copy / "config.json").write_text(json.dumps(written))
    agents = agents_of(copy).agents
    base, aligned = (agents[name].model.state_dict() for name in ("base", "aligned"))
    assert all(torch.equal(base[name], aligned[name]) for name in base)
