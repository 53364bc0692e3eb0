"""``feedgym run learned-simulator``: the command line, its folder as a simulator, and its judgement."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from feedgym.agents.ranker import Ranker, RankerConfig, RankingDataset
from feedgym.cli import main
from feedgym.data.ranking import ranking_requests
from feedgym.envs.feed import make_simulator
from feedgym.envs.logging import collect_log
from feedgym.experiments.simulator.experiment import LogSplit, figures_of
from feedgym.experiments.simulator.presets import learned_simulator_smoke

RANKER = f"{__name__}:ItemRates"


class ItemRatesConfig(RankerConfig):
    model_type = "feedgym-test-item-rates"


class ItemRates(Ranker):
    """Each item has its rates, whoever sees it."""

    config_class = ItemRatesConfig

    def __init__(self, config):
        super().__init__(config)
        self.rate_IM = nn.Embedding(config.num_items, config.num_outputs)
        self.post_init()

    def logits_NKM(self, batch):
        return self.rate_IM(batch.item_ids_NK) - 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned") / "run"
    options = ["--ranker", RANKER, "--log.users", "150", "--log.visits", "5", "--fit.lr", "0.05"]
    main(["run", "learned-simulator-smoke", "--run", str(folder), *options])
    return folder


def test_a_run_leaves_a_simulator_and_its_judgement(run):
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["agents"]) == {"log", "simulated"}
    assert 0.4 < summary["offline"]["click"]["auc"] < 0.8
    rates = [summary["agents"][name]["click_rate"] for name in ("log", "simulated")]
    assert rates[0]["low"] < rates[1]["high"] and rates[1]["low"] < rates[0]["high"]
    assert {d["aspect"] for d in summary["distances"]} >= {"session length", "watch ratio", "return gaps"}
    for name in ("realism.html", "report.html"):
        assert "class='chart'" in (run / name).read_text()


def test_its_folder_serves_wherever_a_simulator_is_asked_for(run, tmp_path, capsys):
    folder = str(run / "stages" / "simulator")
    main(["check", folder, "--trust"])
    assert "UserSimulator, all promises kept" in capsys.readouterr().out
    main(["simulate", "--simulator", folder, "--out", str(tmp_path), "--users", "20", "--visits", "2", "--trust"])
    assert (tmp_path / "events.parquet").exists()


def test_a_finished_run_is_not_done_again(run):
    marks = [run / "stages" / name / "stage.json" for name in ("log", "ranker", "simulator")]
    before = [mark.stat().st_mtime_ns for mark in marks]
    with pytest.raises(SystemExit):  # its ranker is not feedgym's own
        main(["stage", "simulator", "--run", str(run)])
    main(["stage", "simulator", "--run", str(run), "--trust"])
    assert [mark.stat().st_mtime_ns for mark in marks] == before
    main(["stage", "simulator", "--run", str(run), "--redo", "--trust"])
    assert [mark.stat().st_mtime_ns for mark in marks[:2]] == before[:2]
    assert marks[2].stat().st_mtime_ns > before[2]


def test_the_three_parts_share_no_user():
    config = learned_simulator_smoke()
    simulator = make_simulator()
    log = collect_log(simulator, num_users=80, num_visits=2, session_length=3, seed=0)
    parts = LogSplit.of(config, (log, simulator.catalog))
    users = [parts.log.user_ids_U[~parts.unseen_U], parts.log.user_ids_U[parts.unseen_U], parts.held_out[0].user_ids_U]
    assert sorted(np.concatenate(users).tolist()) == list(range(80))
    train, unseen = parts.requests(config)
    assert not set(parts.log.user_ids_U[train.user_idx_N]) & set(parts.log.user_ids_U[unseen.user_idx_N])
    with pytest.raises(ValueError, match="leave a part empty"):
        LogSplit.of(
            config, (collect_log(simulator, num_users=2, num_visits=1, session_length=3, seed=0), simulator.catalog)
        )
    with pytest.raises(ValueError, match="leave no users to train"):
        replace(config, calibration=0.6, held_out=0.4)


def test_the_loss_is_that_of_one_batch_whatever_the_blocks(monkeypatch):
    simulator = make_simulator()
    log = collect_log(simulator, num_users=30, num_visits=3, session_length=4, seed=0)
    rows = ranking_requests(log, simulator.catalog, 8)
    model = ItemRates(ItemRatesConfig(num_items=simulator.catalog.num_items, profile_sizes=log.profile_sizes))
    with torch.no_grad():
        whole = float(model(**RankingDataset(rows=rows.batch).collate(model, range(len(rows)))).loss)
    monkeypatch.setattr("feedgym.agents.ranker.USERS_PER_BLOCK", 7)
    assert model.mean_loss(rows.batch) == pytest.approx(whole, rel=1e-5)


def test_figures_of_a_log_are_those_of_counting():
    simulator = make_simulator()
    log = collect_log(simulator, num_users=40, num_visits=3, session_length=4, seed=0)
    figures = figures_of(log, seed=0)
    seen = (log.event == 2) & log.examined
    assert figures["click_rate"]["mean"] == pytest.approx(log.behaviours[seen, 0].mean())
    assert figures["session_items"]["mean"] == pytest.approx(seen.sum() / (log.event == 1).sum())
    assert figures["watch_s"]["mean"] == pytest.approx(log.watch_s[seen].sum() / (log.event == 1).sum(), rel=1e-5)
    assert figures["click_rate"]["low"] < figures["click_rate"]["mean"] < figures["click_rate"]["high"]
