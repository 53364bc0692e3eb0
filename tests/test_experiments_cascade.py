"""The contest of a cascade and an end-to-end agent, through the real command line, and what a request costs."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_agents import toy_histories

from feedgym.agents.cascade import Cascade
from feedgym.agents.ranker import RankerSizes
from feedgym.cli import MISTAKE, main
from feedgym.experiments.against import rivals
from feedgym.experiments.align.agents import agents_of, read_config
from feedgym.experiments.cascade.experiment import build_ranker, plan, requests
from feedgym.experiments.cascade.presets import CASCADE_COMPARISONS, CascadeRun, RankerStage
from feedgym.experiments.configs import CostConfig
from feedgym.experiments.cost import cost_of
from feedgym.experiments.run import Run
from feedgym.plugins import BUILT_IN

END_TO_END = {"base", "aligned", "base_searched", "aligned_searched"}
SMALL = RankerSizes(d_model=8, num_layers=1, num_heads=2, dropout=0.0)
AGENTS = {"random", "popular", "retrieved", "ranked", "cascade", "oracle"} | END_TO_END

pytestmark = pytest.mark.usefixtures("one_thread")


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(one_thread, aligned_run, tmp_path_factory):
    """The smoke contest against a tiny run."""
    folder = tmp_path_factory.mktemp("cascade") / "run"
    main(["compare", "cascade-smoke", "--against", str(aligned_run), "--run", str(folder)])
    return folder


def test_all_agents_are_in_one_table_with_intervals_lifts_and_costs(finished):
    summary = summary_of(finished)
    assert set(summary["agents"]) == AGENTS and summary["lift_names"] == ["cascade", "aligned"]
    assert set(summary["lifts"]) == {f"cascade over {name}" for name in AGENTS - {"cascade"}}
    ours, theirs = (summary["agents"][name]["true_reward"]["mean"] for name in ("cascade", "aligned"))
    assert summary["lift"]["true_reward"]["mean"] == pytest.approx(ours / theirs - 1)
    for name in AGENTS - {"oracle"}:
        ms, value = summary["agents"][name]["cost_ms"], summary["agents"][name]["true_reward"]
        assert 0 < ms["low"] <= ms["mean"] <= ms["high"] and value["low"] <= value["mean"] <= value["high"]
    mflop = {name: summary["agents"][name]["cost_mflop"]["mean"] for name in AGENTS - {"oracle"}}
    assert mflop["random"] == mflop["popular"] == 0 < mflop["retrieved"] < mflop["ranked"] < mflop["cascade"]
    assert "cost_ms" not in summary["agents"]["oracle"]  # it is asked with the users' true state
    assert list(summary["stages"]) == list(plan(read_config(finished)))
    assert summary["learning_names"] == ["retriever", "ranker"] and len(summary["learning"]) == 2
    report = (finished / "report.html").read_text()
    assert "ms per request" in report and "GenRank" in summary["note"] and "cascade over aligned" in report


def test_the_cascade_of_a_finished_run_is_read_back_whole(finished, aligned_run):
    agent = Cascade.load(finished / "stages" / "cascade")
    config, other = read_config(finished), agents_of(aligned_run)
    assert agent.config == config.cascade and agent.weights == other.config.weights
    assert type(agent.ranker).__name__ == "GenRank" and agent.session_length == other.config.session_length
    histories = requests(other, 6)
    assert len(histories) == 6 and agent.recommend(histories).item_ids_USK.shape == (6, 1, 4)


def test_the_cascade_is_judged_beside_another_runs_agents(finished, aligned_run):
    other = agents_of(aligned_run)
    judge = replace(other.config.judge, against=(str(finished),))
    (found,) = rivals(replace(other.config, judge=judge), other.catalog).items()
    histories, ours = requests(other, 6), Cascade.load(finished / "stages" / "cascade")
    assert found[0] == f"cascade of {finished.name}"
    assert torch.equal(found[1].recommend(histories).item_ids_USK, ours.recommend(histories).item_ids_USK)


def test_other_rules_keep_the_models_and_no_diversity_is_the_rankers_order(finished, tmp_path, capsys):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    main(["compare", "cascade-smoke", "--resume", str(folder), "--cascade.diversity", "0", "--judge.beams", "0"])
    before, plain = summary_of(finished), summary_of(folder)
    assert set(plain["agents"]) == AGENTS - {"ranked", "base_searched", "aligned_searched"}
    for name, then in (("cascade", "ranked"), ("aligned", "aligned"), ("retrieved", "retrieved")):
        assert plain["agents"][name]["true_reward"] == before["agents"][then]["true_reward"]
    assert plain["stages"]["ranker"] == before["stages"]["ranker"]
    assert "lift" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--end-to-end", "sasrec"], "end_to_end='sasrec' aligns no agent"),
        (["--cascade.candidates", "3"], "cascade.candidates=3"),
        (["--cascade.diversity", "-1"], "diversity=-1.0"),
        (["--against", "nowhere"], "nowhere holds no run"),
        (["--judge.cost.repeats", "0"], "cost.repeats=0"),
        (["--ranker.epochs", "0"], "ranker.epochs=0"),
    ],
)
def test_mistakes_are_told_and_leave_nothing(options, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "cascade-smoke", "--run", str(tmp_path / "run"), *options])
    assert stop.value.code == MISTAKE and says in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CASCADE_COMPARISONS)
def test_presets_come_back_from_a_run_folder(name, tmp_path):
    config = CASCADE_COMPARISONS[name]()
    Run(tmp_path / "run", config, plan(config), tracker="none").close()
    assert read_config(tmp_path / "run") == config and isinstance(config, CascadeRun)
    assert next(iter(plan(config))) == "end-to-end"


def test_rankers_read_contents_unless_told_not_to(aligned_run):
    other = agents_of(aligned_run)
    for content in (True, False):
        ranker = build_ranker(RankerStage(content=content, model=SMALL), other.log, other.catalog, 12)
        assert hasattr(ranker, "content_IE") == content


@pytest.mark.parametrize("kind", BUILT_IN["ranker"])
def test_every_ranker_predicts_what_the_reward_weighs(kind, aligned_run):
    other = agents_of(aligned_run)
    settings = RankerStage(kind=kind, model=SMALL)
    ranker = build_ranker(settings, other.log, other.catalog, 12)
    histories = requests(other, 5)
    items = torch.arange(6).repeat(5, 1)
    found = ranker.predict(histories, items)
    assert found.prob_UKM.shape == (5, 6, 7) and found.watch_fraction_UK.shape == (5, 6)
    retriever = SimpleNamespace(scores=lambda h: torch.randn(len(h), other.catalog.num_items))
    agent = Cascade(retriever, ranker, other.catalog, 4, weights=other.config.weights)
    minutes = torch.from_numpy(other.catalog.duration_s_I)[items] * found.watch_fraction_UK / 60
    w = other.config.weights
    weight_B = torch.tensor([w.click, w.long_view, w.like, w.follow, w.comment, w.forward, w.hate])
    want = found.prob_UKM @ weight_B + w.watch_minutes * minutes
    torch.testing.assert_close(agent.values(histories, items), want)
    assert settings.label == type(ranker).title


def test_sizes_that_do_not_fit_a_ranker_are_told_at_once():
    odd = RankerSizes(d_model=9)
    assert RankerStage(model=odd).sizes().d_model == 9
    with pytest.raises(ValueError, match="d_model=9 is not a multiple of num_heads=2"):
        RankerStage(kind="mtgr", model=odd)


def test_costs_are_told_a_request():
    class Slow:
        def __init__(self):
            self.calls, self.weight = 0, torch.randn(3, 11)

        def recommend(self, histories):
            self.calls += 1
            time.sleep(0.02)
            return torch.randn(len(histories), 3) @ self.weight

    agent = Slow()
    found = cost_of(agent, toy_histories(4), 3)
    assert agent.calls == 4 and found["cost_mflop"]["mean"] == 2 * 3 * 11 / 1e6
    assert 5 <= found["cost_ms"]["low"] <= found["cost_ms"]["mean"] <= found["cost_ms"]["high"] < 500
    with pytest.raises(ValueError, match="requests=0 must be 1 or more"):
        CostConfig(requests=0)


@pytest.mark.slow
def test_without_a_finished_run_the_end_to_end_agent_is_trained_first(tmp_path):
    folder = tmp_path / "run"
    main(["compare", "cascade-smoke", "--ray", "off", "--run", str(folder)])
    summary = summary_of(folder)
    assert set(summary["agents"]) == AGENTS and next(iter(summary["stages"])) == "end-to-end"
    assert "base" in agents_of(folder / "stages" / "end-to-end" / "run").agents
    main(["compare", "cascade-smoke", "--resume", str(folder)])
    assert summary_of(folder)["agents"] == summary["agents"]
