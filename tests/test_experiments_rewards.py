"""The comparison of reward models: measures on tiny cases by hand, predictors on planted figures, and a whole one."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_rewards_model import histories, logged

from feedgym.cli import MISTAKE, main
from feedgym.data.events import BEHAVIOURS, Event
from feedgym.data.sessions import logged_sessions
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingConfig
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RETURN_S, RewardWeights
from feedgym.experiments import place, report
from feedgym.experiments.align.pool import Pool
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.align.steps import drawn_at_random
from feedgym.experiments.align.world import Simulated
from feedgym.experiments.configs import LogConfig
from feedgym.experiments.methods.cells import cells_of
from feedgym.experiments.rewards import measures
from feedgym.experiments.rewards.experiment import plan
from feedgym.experiments.rewards.measures import (
    against_log,
    against_truth,
    calibration_error,
    logged_reward,
    pair_accuracy,
    reliability,
    scores_of,
)
from feedgym.experiments.rewards.predictors import predictors, rank_correlation
from feedgym.experiments.rewards.presets import VARIANTS, RewardsRun

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = (
    *("log.users=60", "log.visits=3", "pretrain.steps=3", "pretrain.checkpoint_steps=3"),
    *("rounds.num=1", "rounds.num_samples=6", "rounds.truth_replicas=2"),
    *("judge.users=8", "judge.visits=2", "judge.beams=0", "judge.cost.requests=4", "judge.cost.repeats=1"),
)

# ---------------------------------------------------------------- measures


@given(seed=st.integers(0, 10**6))
def test_pairs_are_counted_one_by_one(seed):
    rng = np.random.default_rng(seed)
    score_US, truth_US = rng.integers(4, size=(2, 3, 5)).astype(float)
    right = []
    for u in range(3):
        for a, b in itertools.combinations(range(5), 2):
            if truth_US[u, a] != truth_US[u, b]:
                same = (score_US[u, a] - score_US[u, b]) * (truth_US[u, a] - truth_US[u, b])
                right.append(0.5 if same == 0 else float(same > 0))
    got = pair_accuracy(score_US, truth_US)
    assert got == pytest.approx(np.mean(right)) if right else np.isnan(got)
    if right:
        assert pair_accuracy(-score_US, truth_US) == pytest.approx(1 - got)
        assert pair_accuracy(np.exp(score_US), 3 * truth_US - 1) == pytest.approx(got)


def test_reliability_groups_sessions_of_like_scores():
    score_N, value_N = np.array([3.0, 1.0, 2.0, 4.0]), np.array([5.0, 1.0, 1.0, 3.0])
    curve = reliability(score_N, value_N, groups=2)
    assert curve == [{"score": 1.5, "value": 1.0, "share": 0.5}, {"score": 3.5, "value": 4.0, "share": 0.5}]
    assert calibration_error(curve) == pytest.approx(0.5)
    assert calibration_error(reliability(value_N, value_N)) == 0
    assert calibration_error(reliability(value_N + 2, value_N)) == pytest.approx(2)


def test_what_logged_sessions_brought_is_the_true_reward_of_what_happened():
    s, weights = logged(50), RewardWeights(like=0.7, hate=-2.0, return_24h=3.0)
    want = []
    for n in range(50):
        value = sum(
            getattr(weights, name) * s.behaviours_NKB[n, k, b]
            for k in range(4)
            if s.examined_NK[n, k]
            for b, name in enumerate(BEHAVIOURS)
        )
        value += weights.watch_minutes * s.watch_s_NK[n].sum() / 60
        gap_s = s.return_gap_s_N[n]
        want.append(np.nan if np.isnan(gap_s) else value + 3.0 * (gap_s <= RETURN_S))
    np.testing.assert_allclose(logged_reward(s, weights), want, rtol=1e-5)
    assert np.isfinite(logged_reward(s, RewardWeights(return_24h=0.0))).all()


def test_a_reward_that_knows_what_happened_is_right_and_one_that_knows_the_contrary_is_wrong():
    s, h = logged(200), histories(200)
    known_N = ~np.isnan(logged_reward(s, RewardWeights()))
    value_N = torch.from_numpy(logged_reward(s, RewardWeights()))
    place = {tuple(ids): n for n, ids in enumerate(s.item_ids_NK.tolist())}

    def oracle(histories, sessions):
        return torch.stack([value_N[place[tuple(ids)]] for ids in sessions.item_ids_USK[:, 0].tolist()])[
            :, None
        ].float()

    told = against_log(oracle, h, s, RewardWeights())
    assert known_N.sum() < 200 and told["figures"]["log_ece"] == pytest.approx(0, abs=1e-6)
    assert [told["figures"][name] for name in ("log_auc", "log_rank")] == pytest.approx([1, 1])
    worst = against_log(lambda *x: -oracle(*x), h, s, RewardWeights())["figures"]
    assert worst["log_auc"] == 0 and worst["log_rank"] == pytest.approx(-1) and worst["log_ece"] > 1


def test_figures_against_the_truth():
    rng = np.random.default_rng(0)
    truth_US2 = rng.normal(size=(5, 6, 2))
    told = against_truth(truth_US2.mean(2) + 3, truth_US2, "base")["figures"]
    assert told["base_pairs"] == told["base_rank"] == pytest.approx(1)
    assert told["base_best"] == pytest.approx(truth_US2.mean(2).max(1).mean()) and told["base_excess"] == pytest.approx(
        3
    )


def test_scores_are_those_of_all_users_at_once():
    ids_USK = torch.randint(30, (70, 3, 4))
    reward = lambda h, s: s.item_ids_USK.sum(-1) + h.mask_UT.sum(1)[:, None].float()  # noqa: E731
    h = histories(70)
    np.testing.assert_array_equal(scores_of(reward, h, ids_USK), ids_USK.sum(-1) + h.mask_UT.sum(1)[:, None])


def test_visits_at_random_are_those_that_show_anything():
    simulator, shares = ShortVideo(ShortVideoConfig(num_items=200)), {"popularity_share": 0.0, "random_share": 0.5}
    config = replace(smoke(), log=LogConfig(users=300, visits=3), seed=4)
    log = collect_log(simulator, num_users=300, num_visits=3, session_length=4, seed=4, config=LoggingConfig(**shares))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "LoggingConfig", lambda: LoggingConfig(**shares))
        s = logged_sessions(log, 4)
        random_N = measures.served_at_random(config, s)
    assert 0.4 < random_N.mean() < 0.6
    counts = [np.bincount(s.item_ids_NK[rows].ravel(), minlength=200) for rows in (random_N, ~random_N)]
    drawn, favoured = (count.var() / count.mean() for count in counts)  # 1 for draws that favour nothing
    assert drawn < 1.3 and favoured > 1.8
    # At the first position all items have the same chance at random, and no rule before tells which one is at work.
    assert np.bincount(s.item_ids_NK[random_N, 0], minlength=200).max() < 15


def test_random_exposures_of_a_recorded_log_check_the_reward_model(monkeypatch):
    simulator = ShortVideo(ShortVideoConfig(num_items=60))
    log = collect_log(simulator, num_users=80, num_visits=3, session_length=4, seed=0)
    flag = ((np.arange(log.num_events) % 3 == 0) & (log.event == Event.IMPRESSION)).astype(np.float32)
    log = replace(log, extra={**log.extra, "random": flag})
    config = replace(smoke(), session_length=4)
    pool = Pool.of((log, simulator.catalog), Simulated(config), config)
    drawn = drawn_at_random(pool)
    rows = drawn.sessions.row_N
    assert log.examined[rows].all() and (flag[rows] == 1).all() and drawn.sessions.item_ids_NK.shape == (len(rows), 1)
    assert set(drawn.sessions.user_idx_N) <= set(pool.unseen.sessions.user_idx_N)
    assert set(drawn.sessions.user_idx_N).isdisjoint(pool.rate.sessions.user_idx_N)
    assert (log.item_id[rows] == drawn.sessions.item_ids_NK[:, 0]).all()
    assert drawn_at_random(replace(pool, log=replace(log, extra={}))) is None


# ---------------------------------------------------------------- predictors


def test_the_measure_that_orders_the_models_as_their_agents_comes_first():
    rng = np.random.default_rng(3)
    reward = {f"model {n}": 3 + 0.1 * n for n in range(12)}
    measure = {
        name: {"good": value**3, "bad": -value, "noise": rng.normal(), "same": 1.0} for name, value in reward.items()
    }
    measure["model 0"]["rare"] = measure["model 1"]["rare"] = 0.5
    found = {row["name"]: row for row in predictors(measure, reward)}
    assert found.keys() == {"good", "bad", "noise"} and list(found)[-1] == "noise"
    assert found["good"]["mean"] == pytest.approx(1) and found["bad"]["mean"] == pytest.approx(-1)
    assert found["good"]["low"] == pytest.approx(1) and found["noise"]["low"] < 0 < found["noise"]["high"]
    assert found["good"]["models"] == 12


def test_the_rank_correlation_is_spearmans():
    rng = np.random.default_rng(1)
    left, right = rng.integers(5, size=(2, 14)).astype(float)
    told = rank_correlation(left, right)
    assert told["mean"] == pytest.approx(spearmanr(left, right).statistic)
    assert told["low"] < told["mean"] < told["high"]


# ---------------------------------------------------------------- the comparison


def test_at_least_twelve_reward_models_are_compared_and_an_ensemble_is_trained_once():
    cells = cells_of(RewardsRun(seeds=(0,)))
    assert len(cells) >= 12 and [cell.condition for cell in cells] == list(VARIANTS)
    from feedgym.experiments.align.experiment import plan as plan_of_cell

    reward = {cell.condition: plan_of_cell(cell.config)["reward"] for cell in cells}
    base = {plan_of_cell(cell.config)["base"] for cell in cells}
    assert len({reward[name] for name in ("ensemble", "cautious", "very_cautious", "worst_case")}) == 1
    assert reward["resampled"] == reward["resampled_cautious"] != reward["ensemble"]
    assert len(base) == 1 and reward["ensemble"] != reward["plain"] == reward["clicks"] != reward["averaged"]


def test_another_first_reward_or_search_measures_anew():
    tiny = {"preset": "onerec-ipa-smoke", "seeds": (0,)}
    one, other = (plan(RewardsRun(**tiny, rewards=two)) for two in (("plain", "clicks"), ("clicks", "plain")))
    assert one["plain-0"] == other["plain-0"] and one["measured-plain-0"] != other["measured-plain-0"]
    wider = plan(RewardsRun(**tiny, rewards=("plain", "clicks"), beams=5))
    assert wider["plain-0"] == one["plain-0"] and wider["measured-clicks-0"] != one["measured-clicks-0"]


def test_a_reward_of_ones_own_is_compared_and_asked_about():
    run = RewardsRun(preset="onerec-ipa-smoke", seeds=(0,), rewards=("plain", "my_lab.reward:ClickRates"))
    assert ("reward", "my_lab.reward:ClickRates") in run.code() and ("reward", "plain") not in run.code()
    assert [cell.config.reward for cell in cells_of(run)] == ["reward_model", "my_lab.reward:ClickRates"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--rewards", "best"], "rewards has 'best', which is unknown; give plain"),
        (["--rewards", "plain", "plain"], "twice"),
        (["--set", "reward=clicks"], "decides itself, by --rewards"),
        (["--rewards", "clicks", "--set", "reward_model.p_score=True"], "one score for everything"),
    ],
)
def test_mistakes_are_told_in_a_line(options, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "rewards-smoke", *options, "--run", str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == MISTAKE and says in line and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda summary, folder: (folder / "report.html").touch())
        some = ["--rewards", "plain", "narrow", "clicks", "diversity", "--seeds", "0", "--beams", "3"]
        main(["compare", "rewards-smoke", *some, "--ray", "off", "--set", *TINY, "--run", str(folder)])
    return folder


def test_a_whole_comparison(compared, monkeypatch):
    summary = json.loads((compared / "summary.json").read_text())
    assert not summary["failed"] and list(summary["conditions"]) == ["plain", "narrow", "clicks", "diversity"]
    for name, told in summary["measures"].items():
        figures = told["figures"]
        some = {"log_auc", "log_ece", "base_pairs", "aligned_rank", "searched_rank", "own_best", "towers_auc"}
        assert some <= set(figures)
        assert 0 <= figures["base_pairs"] <= 1 and figures["log_ece"] >= 0, name
        assert set(told["curves"]) - {"random"} == {"log", "base", "aligned", "searched", "own"}
    plain, clicks = (summary["measures"][name]["figures"] for name in ("plain-0", "clicks-0"))
    assert plain["towers_auc"] == clicks["towers_auc"] and plain["aligned_rank"] == plain["own_rank"]
    assert all(row["models"] == 4 for row in summary["predictors"]) and summary["predictors"]
    page = (compared / "report.html").read_text()
    for words in ("Which measure predicts", "Reliability", "rank correlation with the truth", "class='chart'"):
        assert words in page
    monkeypatch.setattr(place, "launch", None)  # all cells are read
    main(["compare", "rewards", "--resume", str(compared)])
    again = json.loads((compared / "summary.json").read_text())
    assert not again["failed"] and again["measures"] == summary["measures"]
