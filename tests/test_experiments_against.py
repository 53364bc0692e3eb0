"""Agents of other runs beside a run's own, and refusals of those that cannot be judged there."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.agents.slates.policy import SlatePolicy
from feedgym.agents.slates.world import SlateWorld
from feedgym.cli import read_config
from feedgym.data.requests import LogAndItems
from feedgym.experiments.against import rivals, rivals_key
from feedgym.experiments.align.agents import agents_of
from feedgym.experiments.align.experiment import plan as align_plan
from feedgym.experiments.cost import asked
from feedgym.experiments.logs import LOG
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.rl.experiment import plan as rl_plan
from feedgym.experiments.run import Codec, Run, with_curve

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(aligned_run):
    return agents_of(aligned_run)


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    """A run of PPO whose two agents are untrained."""
    folder = tmp_path_factory.mktemp("rl") / "ppo-run"
    config = PRESETS["rllib-smoke"]()
    run = Run(folder, config, rl_plan(config), tracker="none")
    data: LogAndItems = (finished.log, finished.catalog)
    run.stage("log", lambda _: data, LOG)
    for n in range(2):
        agent = RLlibRecommender(network(finished, n))
        codec = with_curve(Codec(lambda agent, where: agent.save(where), RLlibRecommender.load))
        run.stage(f"trained-{n}", lambda _, agent=agent: (agent, []), codec)
    run.close()
    return folder


def network(finished, seed):
    torch.manual_seed(seed)
    catalog, config = finished.catalog, finished.config
    world = SlateWorld.of(catalog, finished.log.profile_sizes, config.session_length, config.history_length)
    return SlatePolicy(world, SlateNetConfig(width=8, heads=2, hidden=8))


def judged_beside(finished, *folders, **changes):
    judge = replace(finished.config.judge, against=tuple(map(str, folders)))
    return replace(finished.config, judge=judge, **changes)


def served(agent, finished):
    return agent.recommend(asked((finished.log, finished.catalog), finished.config, 9, dated=False)).item_ids_USK


def test_an_aligned_agent_of_another_run_serves_as_it_did_there(finished, aligned_run, tmp_path):
    other = Path(shutil.copytree(aligned_run, tmp_path / "other"))
    found = rivals(judged_beside(finished, aligned_run, other), finished.catalog)
    assert list(found) == [f"aligned of {aligned_run.name}", "aligned of other"]
    for agent in found.values():
        assert torch.equal(served(agent, finished), served(finished.agents["aligned"], finished))


def test_every_training_of_a_run_with_rllib_is_judged(finished, trained):
    found = rivals(judged_beside(finished, trained), finished.catalog)
    assert list(found) == ["ppo-0 of ppo-run", "ppo-1 of ppo-run"]
    for n, agent in enumerate(found.values()):
        assert torch.equal(served(agent, finished), served(RLlibRecommender(network(finished, n).eval()), finished))


def test_other_runs_decide_the_judgement_by_what_they_hold(finished, aligned_run, trained, tmp_path):
    alone, beside = (align_plan(judged_beside(finished, *folders)) for folders in ((), (aligned_run,)))
    changed = {name for name in alone if alone[name] != beside[name]}
    assert changed == {"judged-beside", "judged", "cost"}
    copy = Path(shutil.copytree(trained, tmp_path / trained.name))
    assert rivals_key([trained]) == rivals_key([copy]) != rivals_key([aligned_run])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"session_length": 3}, "serves sessions of 4 items, not 3"),
        ({"history_length": 9}, "histories of 12 events, not 9"),
    ],
)
def test_agents_of_other_lengths_are_refused(finished, aligned_run, trained, changes, message):
    for folder in (aligned_run, trained):
        with pytest.raises(ValueError, match=message):
            rivals(judged_beside(finished, folder, **changes), finished.catalog)


def test_agents_of_other_items_are_refused(finished, trained):
    other = replace(finished.catalog, content_IE=finished.catalog.content_IE[::-1].copy())
    assert not np.array_equal(other.content_IE, finished.catalog.content_IE)
    with pytest.raises(ValueError, match=r"serves other items than those of this run; judge\.against takes runs"):
        rivals(judged_beside(finished, trained), other)


def test_what_is_no_such_run_is_refused(finished, aligned_run, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        rivals(judged_beside(finished, tmp_path), finished.catalog)
    config = PRESETS["sasrec-smoke"]()
    Run(tmp_path / "sasrec", config, {}, tracker="none").close()  # type: ignore[arg-type]
    assert type(read_config(tmp_path / "sasrec")) is type(config)
    with pytest.raises(ValueError, match=r"is of SASRecRun, whose agents do not serve"):
        rivals(judged_beside(finished, tmp_path / "sasrec"), finished.catalog)
    rl = PRESETS["rllib-smoke"]()
    Run(tmp_path / "rl", rl, rl_plan(rl), tracker="none").close()
    with pytest.raises(ValueError, match="has not finished its stage log"):
        rivals(judged_beside(finished, tmp_path / "rl"), finished.catalog)
    twice = Path(shutil.copytree(aligned_run, tmp_path / "again" / aligned_run.name))
    with pytest.raises(ValueError, match="give their folders different names"):
        rivals(judged_beside(finished, aligned_run, twice), finished.catalog)


def test_no_recorded_log_is_judged_beside_others(finished):
    with pytest.raises(ValueError, match=r"judge\.against needs simulated users"):
        judged_beside(finished, "runs/other", data="log.parquet")
