"""Estimators on logs of simulated users: refusals, the table, all slates of a small catalogue, and the command line."""

import json
from dataclasses import replace

import numpy as np
import pytest

from feedgym.cli import main
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.experiments.align.presets import smoke
from feedgym.experiments.ope import estimators as ope
from feedgym.experiments.ope import judging
from feedgym.experiments.ope.estimators import Estimate, direct
from feedgym.experiments.ope.experiment import training
from feedgym.experiments.ope.judging import ESTIMATORS, Answers, Judge, fault_of
from feedgym.experiments.ope.presets import OPERun, ope_smoke
from feedgym.experiments.ope.table import over_logs, ranked, table_of, told_of_log
from feedgym.experiments.ope.targets import LoggingTarget, ScoreTarget, random_logits
from feedgym.experiments.ope.visits import judging_log, judging_visits
from feedgym.experiments.statistics import resampling_counts

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, PLACES = 6, 2
CONFIG = replace(ope_smoke(), users=500, visits=3, samples=2, replicas=8)


@pytest.fixture(scope="module")
def visits():
    """A log of a catalogue of six items."""
    simulator = ShortVideo(ShortVideoConfig(num_items=ITEMS))
    align = replace(smoke(), session_length=PLACES)
    log = judging_log(CONFIG, simulator, PLACES, 0)
    return judging_visits(CONFIG, align, simulator, log, simulator.catalog, 0)


@pytest.fixture(scope="module")
def slates(visits):
    return judging.all_slates(CONFIG, visits, ITEMS)


def preferring(visits, temperature):
    """A policy that prefers items in the order of their ids."""
    logits = random_logits(visits, visits.simulator.catalog) + np.arange(ITEMS)
    return ScoreTarget(logits.float(), temperature, PLACES)


def answered(target, visits, slates):
    """An agent's answers with a model that knows nothing."""
    told = judging.answers(target, visits, None, slates, CONFIG, 0)
    return replace(told, value_N=np.zeros(len(visits)))


def judge_of(visits, slates, **changes):
    return Judge(replace(CONFIG, **changes), visits, slates, np.zeros_like(visits.reward_NK))


def test_with_support_all_estimators_are_near_the_truth_and_pi_and_iips_sum_over_all_slates(visits, slates):
    judge = judge_of(visits, slates)
    assert slates.moment_NXX.shape[1:] == (ITEMS * PLACES,) * 2
    assert np.trace(slates.moment_NXX, axis1=1, axis2=2) == pytest.approx(PLACES)
    told = answered(preferring(visits, 4.0), visits, slates)
    assert told.prob_NA.sum(axis=1) == pytest.approx(1)
    estimates, support = judge.estimates(told)
    assert support.depth == PLACES and support.served == 1 and support.mean_K == pytest.approx([1, 1], abs=0.1)
    truth = told.truth_N.mean()
    for name in set(ESTIMATORS) - {"dm"}:
        assert abs(estimates[name].mean() - truth) < 0.3, name  # the rewards of 1,000 visits have s.e. 0.05
    # The pseudo-inverse weights of a policy that is the log's own are 1.
    own = judging.answers(LoggingTarget(visits), visits, None, slates, CONFIG, 0)
    assert own.prob_NA == pytest.approx(slates.logged_NA)
    log_mean = visits.reward_NK.sum(axis=1).mean()
    for name in ("ips", "snips", "iips", "rips", "snrips", "pi"):
        assert judge.estimates(own)[0][name].mean() == pytest.approx(log_mean, abs=1e-6), name


def test_an_estimate_without_support_is_refused_with_the_reason_and_the_model_is_used_instead(visits, slates):
    judge = judge_of(visits, slates, min_rows_share=0.5)
    estimates, support = judge.estimates(answered(preferring(visits, 0.2), visits, slates))
    assert support.depth == 0
    for name in ("ips", "snips", "rips", "snrips", "dr", "cascade_dr"):
        assert estimates[name].startswith("at place 1 the effective sample size is"), name
    assert isinstance(estimates["iips"], str) and isinstance(estimates["pi"], str)
    assert estimates["switch"].mean() == estimates["dm"].mean() == 0  # the model's word, which here is 0


def test_what_the_log_could_not_have_shown_is_refused(visits, slates):
    told = answered(preferring(visits, 4.0), visits, slates)
    half = replace(told, served_N=np.full(len(visits), 0.5))
    estimates, support = judge_of(visits, slates).estimates(half)
    assert support.depth == 0 and {type(estimates[n]) for n in ("ips", "iips", "pi", "dr")} == {str}
    assert estimates["ips"] == "50.0% of what it serves could not have been shown in this log"


def test_a_mixture_half_of_which_was_never_seen_is_refused_though_many_rows_count():
    rng = np.random.default_rng(0)
    seen_N = 0.5 * np.ones(1000) + rng.normal(size=1000) * 0.01  # the weights of the half that was
    assert ope.effective_sample_size(seen_N) > 990
    assert "the mean weight is 0.50 and should be 1" in fault_of(seen_N, 10)
    assert "propensities may be wrong" in fault_of(3 * seen_N, 10)
    assert fault_of(np.ones(1000), 10) is None and fault_of(rng.exponential(size=1000), 10) is None
    assert fault_of(np.zeros(1000), 0) is not None


def test_without_a_model_of_the_reward_those_that_need_one_are_refused(visits, slates):
    told = replace(answered(preferring(visits, 4.0), visits, slates), value_N=None)
    estimates, _ = Judge(CONFIG, visits, slates, None).estimates(told)
    assert {name for name, e in estimates.items() if isinstance(e, str)} == {"dm", "dr", "cascade_dr", "switch"}


def test_many_slates_or_unknown_candidates_are_not_summed_over(visits):
    few = replace(CONFIG, enumerated=29)
    assert "6 items in 2 places make 30, above enumerated=29" in judging.all_slates(few, visits, ITEMS)
    visits = replace(visits, policy=ShortPolicy(5))
    assert "candidates are drawn anew" in judging.all_slates(CONFIG, visits, ITEMS)


class ShortPolicy:
    """Stands for a logging policy that retrieves fewer candidates than there are items."""

    def __init__(self, num_candidates):
        self.config = type("Config", (), {"num_candidates": num_candidates})()


# ---------------------------------------------------------------- the table


def planted(values, refused=()):
    """A log's figures: by agent the truth and the direct method's estimate."""
    agents = {}
    for number, (truth, estimate) in enumerate(values):
        told = {} if number in refused else {"dm": {"mean": estimate, "low": estimate - 0.1, "high": estimate + 0.1}}
        agents[f"a{number}"] = {
            "truth": {"mean": truth, "low": truth, "high": truth},
            "estimates": told,
            "refused": {name: "because" for name in ESTIMATORS if name not in told},
        }
    rank = {"mean": 0.5, "resampled": [0.4, 0.6], "agents": len(values) - len(refused)}
    none = {"mean": None, "resampled": [], "agents": 0}
    return {"agents": agents, "ranks": {name: rank if name == "dm" else none for name in ESTIMATORS}}


def test_errors_regret_and_refusals_of_planted_figures():
    logs = [planted([(1, 1.5), (2, 1.75), (3, 3.0)]), planted([(1, 1.0), (2, 2.25), (3, 2.0)])]
    row = table_of(logs)["dm"]
    assert row["bias"] == pytest.approx((0.5 - 0.25 + 0 + 0 + 0.25 - 1) / 6)
    assert row["rmse"] == pytest.approx(np.sqrt((0.25 + 0.0625 + 0.0625 + 1) / 6))
    assert row["spread"] == pytest.approx(np.sqrt(np.mean([0.125, 0.125, 0.5])))
    assert row["covered"] == pytest.approx(2 / 6) and row["agents"] == 3 and row["refused"] == 0
    assert row["regret"] == pytest.approx((0 + 1) / 2)  # in the second log it prefers the agent worth 2 to that worth 3
    assert row["rank"]["mean"] == 0.5 and 0.4 <= row["rank"]["low"] <= row["rank"]["high"] <= 0.6
    ips = table_of(logs)["ips"]
    assert ips == {"agents": 0, "refused": 6, "reason": "because"}
    missing = table_of([logs[0], planted([(1, 1.0), (2, 2.25), (3, 2.0)], refused=(2,))])["dm"]
    assert missing["agents"] == 2 and missing["refused"] == 1
    assert over_logs(logs)["a0"]["dm"]["mean"] == pytest.approx(1.25) and "ips" not in over_logs(logs)["a0"]


def test_rank_correlations_are_over_agents_and_have_none_for_two():
    counts_RU = resampling_counts(40, 0, 20)
    rng = np.random.default_rng(0)
    truths = [direct(rng.normal(size=40) * 0.01 + level) for level in range(4)]
    upside_down = list(zip(truths, truths[::-1], strict=True))
    assert ranked(list(zip(truths, truths, strict=True)), counts_RU)["mean"] == pytest.approx(1)
    found = ranked(upside_down, counts_RU)
    assert (
        found["mean"] == pytest.approx(-1) and found["resampled"] == pytest.approx([-1] * 20) and found["agents"] == 4
    )
    assert ranked(upside_down[:2], counts_RU)["mean"] is None


def test_a_log_is_told_agent_by_agent(visits, slates):
    targets = {f"t{t}": preferring(visits, t) for t in (2.0, 4.0, 8.0)}
    found: dict[str, Answers] = {name: answered(target, visits, slates) for name, target in targets.items()}
    log = told_of_log(judge_of(visits, slates), found, 0)
    assert log["visits"] == len(visits) and set(log["agents"]) == set(targets)
    told = log["agents"]["t4.0"]
    assert told["truth"]["low"] <= told["truth"]["mean"] <= told["truth"]["high"] and told["support"]["depth"] == 2
    estimate = judge_of(visits, slates).estimates(found["t4.0"])[0]["rips"]
    assert isinstance(estimate, Estimate) and told["estimates"]["rips"]["mean"] == pytest.approx(estimate.mean())
    assert json.loads(json.dumps(log))["ranks"]["rips"]["agents"] == 3


# ---------------------------------------------------------------- configuration and command line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"random_share": 0.9, "popularity_share": 0.2}, "must add up to at most 1"),
        ({"options": ("seed=3",)}, "set has seed, which the evaluation decides itself"),
        ({"visits": 1}, "visits=1 must be 2 or more"),
        ({"mixtures": (1.0,)}, "must be below 1"),
        ({"agent_temperatures": (0.0,)}, "must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        replace(OPERun(), **options)


def test_the_agents_training_is_a_preset_with_options():
    config = training(replace(ope_smoke(), options=("rounds.num=3", "session_length=2"), seed=5))
    assert (config.rounds.num, config.session_length, config.seed) == (3, 2, 5)
    with pytest.raises(ValueError, match="end_to_end='sasrec' aligns no agent"):
        training(replace(ope_smoke(), end_to_end="sasrec"))


def test_the_whole_of_it_by_the_command_line_and_again_without_any_work(tmp_path, capsys):
    folder = tmp_path / "run"
    main(["compare", "ope-smoke", "--run", str(folder), "--logs", "1"])
    said, summary = capsys.readouterr(), json.loads((folder / "summary.json").read_text())
    assert "Off-policy evaluation of 8 agents" in said.out and "rank corr." in said.out
    assert set(summary["estimators"]) == set(ESTIMATORS) and summary["agents"]["logging"]["ips"]["mean"] > 0
    # The logging policy's estimate is the mean of its log whatever the weights, which all are 1.
    logging = summary["agents"]["logging"]
    assert logging["ips"] == pytest.approx(logging["rips"]) and logging["ips"] == pytest.approx(logging["snips"])
    page = (folder / "report.html").read_text()
    assert "How far the logs support each agent" in page and "Refused estimates" not in page
    main(["compare", "ope-smoke", "--resume", str(folder), "--min-rows", "100000"])
    again, refused = capsys.readouterr(), json.loads((folder / "summary.json").read_text())
    assert "told-0" in again.err and "done log-0" not in again.err
    assert (
        refused["estimators"]["ips"]["agents"] == 0
        and "effective sample size" in refused["estimators"]["ips"]["reason"]
    )
    assert refused["estimators"]["dm"]["agents"] == 8 and "Refused estimates" in (folder / "report.html").read_text()
