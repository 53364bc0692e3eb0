"""Rankers as experiments: what is judged, what baselines know, and the real command line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from feedgym import plugins
from feedgym.cli import main
from feedgym.data.events import Event
from feedgym.experiments.presets import PRESETS
from feedgym.experiments.rank import experiment as rank
from feedgym.experiments.rank.agents import new_ranker
from feedgym.experiments.rank.experiment import RankingData, figures_of, item_rates, mean_auc
from feedgym.experiments.retrieval.data import read_log


def untrained(config, data):
    return new_ranker(config.name, config.model, data.catalog, data.facts, config.history_length)


@pytest.fixture(scope="module")
def data():
    config = PRESETS["genrank-smoke"]()
    return RankingData.of(config, read_log(config, None))


def test_parts_follow_one_another_and_baselines_know_training_alone(data):
    ends = [(part.start_s_N.min(), part.start_s_N.max()) for part in (data.train, data.validation, data.judged)]
    assert ends[0][1] <= ends[1][0] <= ends[1][1] <= ends[2][0]
    rate_IM, rows = item_rates(data), data.train.batch
    item = int(rows.item_ids_NK[rows.mask_NK].mode().values)
    shown = rows.mask_NK & (rows.item_ids_NK == item)
    clicks = rows.behaviours_NKB[..., 0]
    expected = (clicks[shown].sum() + 20 * clicks[rows.mask_NK].mean()) / (shown.sum() + 20)
    assert data.facts.tasks[0] == "click" and rate_IM[item, 0] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("preset", ["genrank-smoke", "mtgr-smoke"])
def test_exposures_drawn_at_random_judge_alone_and_train_nothing(preset, monkeypatch):
    monkeypatch.setattr(rank, "NUM_RESAMPLES", 20)
    config = PRESETS[preset]()
    log, catalog = read_log(config, None)
    shown = log.event == Event.IMPRESSION
    flag = (np.random.default_rng(0).random(log.num_events) < 0.2) & shown
    marked = replace(log, extra={"random": flag.astype(np.float32)})
    data, plain = RankingData.of(config, (marked, catalog)), RankingData.of(config, (log, catalog))
    assert plain.drawn is None
    began_s = data.judged.start_s_N.min()
    assert data.drawn.start_s_N.min() >= began_s
    seen = log.examined & shown
    late = (flag & seen & (log.timestamp_s >= began_s)).sum()
    assert 0 < data.drawn.batch.mask_NK.sum() <= late
    parts = [data.validation, data.judged] + ([data.train] if preset == "genrank-smoke" else [])
    others = sum(int(part.batch.mask_NK.sum()) for part in parts)
    if preset == "genrank-smoke":
        assert others == (seen & ~flag).sum()
    # They are in histories, as the users saw them.
    before = data.drawn.batch.histories
    assert int(before.mask_UT.sum()) > 0 and (before.item_ids_UT[before.mask_UT] < catalog.num_items).all()
    judged = rank.judge(config, data, untrained(config, data))
    figures = judged["figures"]
    assert f"{config.name}, drawn at random" in figures and "item_rate, drawn at random" in figures
    assert figures["constant, drawn at random"]["auc.click"]["mean"] == pytest.approx(0.5)
    assert judged["candidates"]["drawn at random"] == int(data.drawn.batch.mask_NK.sum())


def test_scores_belong_to_their_candidates(data):
    """A ranker that knows the answers has areas of 1 and the right rates."""
    rows = data.judged
    real_NK, columns = rows.batch.mask_NK, [0, 1]
    truth = rows.batch.behaviours_NKB[real_NK][:, columns].numpy()
    found = figures_of(np.clip(truth, 0.01, 0.99), ("click", "long_view"), rows)
    assert found["auc.click"].mean() == found["gauc.long_view"].mean() == 1
    wrong = figures_of(np.clip(truth[::-1], 0.01, 0.99), ("click", "long_view"), rows)
    assert wrong["auc.click"].mean() < 0.7


@pytest.mark.parametrize("preset", ["hstu-rank-smoke", "genrank-smoke", "mtgr-smoke"])
def test_a_ranker_is_trained_and_judged_through_the_command_line(preset, tmp_path, capsys):
    main(["run", preset, "--run", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    kind = plugins.resolve("ranker", PRESETS[preset]().name)
    ranker = kind.load(tmp_path / "run" / "stages" / PRESETS[preset]().name)
    for table in (summary["offline"], summary["baselines"]["item_rate"]):
        for task in ranker.config.tasks:
            for metric in ("auc", "gauc", "logloss", "ne", "calibration"):
                found = table[f"{metric}.{task}"]
                assert found["low"] <= found["mean"] <= found["high"]
    assert summary["baselines"]["constant"]["auc.click"]["mean"] == pytest.approx(0.5)
    assert (tmp_path / "run" / "report.html").exists()
    # The ranker that was judged is the one in the folder.
    config = PRESETS[preset]()
    data = RankingData.of(config, read_log(config, None))
    again = mean_auc(ranker, data.judged)
    told = np.mean([summary["offline"][f"auc.{task}"]["mean"] for task in ranker.config.tasks])
    assert again == pytest.approx(told, abs=1e-6)
    with torch.no_grad():
        torch.manual_seed(0)
        new = untrained(config, data)
    assert any(not torch.equal(a, b) for a, b in zip(ranker.parameters(), new.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out", "0"], "held_out=0.0 must be above 0"),
        (["--tasks", "sleep"], "'sleep', which is not one of"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "genrank-smoke", "--run", str(tmp_path / "run"), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
