import numpy as np
import pytest
import torch

from feedgym.experiments.align.analysis import stops
from feedgym.experiments.align.probe import Probe, Signals, probe_metrics, signals_of, truth_of
from feedgym.experiments.align.stop_scores import KnownRun, compare_rules, leave_one_out, score
from feedgym.experiments.align.stopping import (
    Correlation,
    CorrelationConfig,
    Disagreement,
    Diversity,
    DiversityConfig,
    HeldOut,
    HeldOutConfig,
    KLBudget,
    KLBudgetConfig,
    Never,
    first_stop,
    kept_round,
    usual_rules,
)
from feedgym.plugins import BUILT_IN, resolve

RULES = [name for name in BUILT_IN["stop"] if name != "never"]


def around(rng, mean_N, users, noise):
    """Values of users who differ, with the same means in all rounds but for noise."""
    return np.array(mean_N, float)[:, None] + rng.normal(size=users) + noise * rng.normal(size=(len(mean_N), users))


def signals(seed=0, rounds=9, users=200, **mean_N):
    """A run in which everything goes well: the proxy and the held-out reward rise, and sessions stay varied."""
    rng, t = np.random.default_rng(seed), np.arange(rounds)
    usual = {"proxy": 2 + 0.2 * t, "kl": 0.7 * t, "entropy": 34 - t, "diversity": 0.9 - 0.01 * t}
    usual |= {"held_out": 2 + 0.15 * t, "spread": np.full(rounds, 0.5), "correlation": np.full(rounds, 0.7)}
    noise = {"diversity": 0.05, "correlation": 0.2, "spread": 0.05}
    return Signals(**{f"{n}_NU": around(rng, mean_N.get(n, usual[n]), users, noise.get(n, 0.3)) for n in usual})


def humped(rounds=9, peak=4, fall=0.1):
    t = np.arange(rounds)
    return 2 + 0.2 * np.minimum(t, peak) - fall * np.maximum(t - peak, 0)


def test_no_rule_stops_a_run_that_goes_well():
    for seed in range(5):
        run = signals(seed)
        assert {name: first_stop(rule, run) for name, rule in usual_rules(run).items()} == dict.fromkeys(RULES)
        assert all(kept_round(rule, run) == 8 for rule in usual_rules(run).values())


def test_noise_alone_rarely_stops_the_held_out_rule():
    runs = [signals(seed, held_out=np.full(9, 2.0)) for seed in range(60)]
    careless, patient = HeldOut(), HeldOut(HeldOutConfig(patience=2, level=0.01))
    assert sum(careless.bad(run).any() for run in runs) < 0.3 * len(runs)  # 8 looks at .05 each
    assert sum(first_stop(patient, run) is not None for run in runs) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_the_held_out_rule_finds_the_planted_peak_soon_after_it(seed):
    run = signals(seed, held_out=humped())
    alarm, reason = first_stop(HeldOut(), run)
    assert alarm in (5, 6) and "has fallen" in reason
    assert HeldOut().best(run.until(alarm)) in (4, 5)


def test_patience_waits_for_as_many_rounds_in_a_row():
    kl_N = [0, 1, 9, 3, 9, 9, 3, 9, 9]
    for patience, alarm in ((1, 2), (2, 5), (3, None)):
        rule, run = KLBudget(KLBudgetConfig(nats=5, patience=patience)), signals(kl=kl_N)
        stop = first_stop(rule, run)
        assert (stop and stop[0]) == alarm
        assert kept_round(rule, run) == {1: 1, 2: 3, 3: 6}[patience]


@pytest.mark.parametrize(
    ("rule", "name", "mean_N", "alarm"),
    [
        (Disagreement(), "spread", [0.5, 0.5, 0.6, 0.9, 1.4, 1.7, 1.8, 1.9, 1.9], 4),
        (KLBudget(KLBudgetConfig(nats=3)), "kl", [0, 1, 2, 4, 5, 6, 7, 8, 9], 3),
        (Diversity(), "diversity", [0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.3, 0.3, 0.3], 4),
        (Diversity(DiversityConfig(items=0)), "entropy", [34, 30, 25, 20, 18, 10, 9, 8, 7], 5),
        (Correlation(CorrelationConfig(floor=0.5)), "correlation", [0.7, 0.7, 0.6, 0.5, 0.4, 0.2, 0.1, 0.1, 0.1], 5),
    ],
)
def test_each_rule_stops_at_its_limit_and_says_why(rule, name, mean_N, alarm):
    run = signals(**{name: mean_N})
    assert first_stop(rule, run)[0] == alarm
    assert rule.best(run.until(alarm)) == alarm - 1
    assert any(char.isdigit() for char in first_stop(rule, run)[1])


def test_a_rule_knows_nothing_of_later_rounds():
    run, other = signals(0, held_out=humped()), signals(1)
    spliced = Signals(**{n: np.concatenate([v[:5], vars(other)[n][5:]]) for n, v in vars(run).items()})
    for rule in usual_rules(run).values():
        assert rule.stopped(run.until(4)) == rule.stopped(spliced.until(4))


def test_rules_that_need_watchers_are_left_out_or_refused_without_them():
    run = signals()
    alone = Signals(**{**vars(run), "held_out_NU": None, "spread_NU": None, "correlation_NU": None})
    assert set(usual_rules(alone)) == {"kl", "diversity"}
    for name in ("held_out", "disagreement", "correlation"):
        with pytest.raises(ValueError, match=f"stop='{name}' needs held-out reward models"):
            resolve("stop", name)().stopped(alone)
    with pytest.raises(ValueError, match="without a limit"):
        DiversityConfig(items=0, entropy=0)


# ---------------------------------------------------------------- scores


class At:
    """Fires after one round, and keeps another."""

    def __init__(self, alarm, kept):
        self.alarm, self.kept = alarm, kept

    def stopped(self, signals):
        return "now" if len(signals) - 1 == self.alarm else None

    def best(self, signals):
        return self.kept


def known(truth_N, seed=0):
    truth_NU = around(np.random.default_rng(seed), truth_N, 400, 0.05)
    return KnownRun(signals=signals(users=400, rounds=len(truth_N)), truth_NU=truth_NU)


def test_the_scores_of_a_run_that_turns():
    run = known(humped(peak=4, fall=0.2))  # 2.8 at its peak, 2.0 at the end
    late, early, never = score(At(6, 5), run), score(At(2, 2), run), score(Never(), run)
    assert late.turned and late.peak == 4 and late.delay_rounds == 2 and not late.missed and not late.false_alarm
    assert late.delay_nats == pytest.approx(1.4, abs=0.1)
    assert late.regret == pytest.approx(0.25, abs=0.02) and late.fallen == pytest.approx(0.4 / 2.8, abs=0.01)
    assert early.false_alarm and early.regret == pytest.approx(0.5, abs=0.02) and early.delay_rounds == -2
    assert never.missed and never.alarm is None and never.regret == pytest.approx(1.0, abs=0.02)


def test_any_alarm_in_a_run_that_never_turns_is_false():
    run = known(2 + 0.2 * np.arange(9))
    assert score(At(8, 8), run).false_alarm and not score(Never(), run).missed
    assert score(Never(), run).regret == pytest.approx(0.0, abs=0.02)
    assert score(At(8, 8), run).delay_rounds is None


def test_rules_are_compared_by_counts_and_medians():
    runs = [known(humped(peak=4, fall=0.2), 0), known(humped(peak=4, fall=0.2), 1), known(2 + 0.2 * np.arange(9), 2)]
    rows = {row["rule"]: row for row in compare_rules({"late": At(6, 5)}, runs)}
    assert rows["late"] | {"regret": 0, "delay_nats": 0, "worst_fallen": 0} == {
        "rule": "late", "runs": 3, "turned": 2, "alarms": 3, "missed": 0, "false_alarms": 1, "delay_rounds": 2,
        "delay_nats": 0, "regret": 0, "worst_fallen": 0,
    }  # fmt: skip
    assert rows["never"]["missed"] == 2 and np.isnan(rows["never"]["delay_rounds"])


def test_a_threshold_is_chosen_on_other_runs():
    turning = [known(humped(peak=4, fall=0.2), seed) for seed in range(3)]
    rules = {"at the peak": At(5, 4), "never": Never()}
    assert [name for name, _ in leave_one_out(rules, turning)] == ["at the peak"] * 3
    odd = [*turning[:1], known(2 + 0.2 * np.arange(9), 3)]
    assert [name for name, _ in leave_one_out(rules, odd)] == ["never", "at the peak"]
    with pytest.raises(ValueError, match="give 2 or more"):
        leave_one_out(rules, turning[:1])


def test_stops_of_a_run_tell_the_truth_where_it_is_known():
    run = known(humped(peak=4, fall=0.2))
    (told,) = stops({"late": At(6, 5)}, run.signals, run.truth_NU)
    (blind,) = stops({"late": At(6, 5)}, run.signals)
    assert blind == {"rule": "late", "alarm": 6, "reason": "now", "kept": 5}
    assert blind.items() <= told.items() and told["peak"] == 4


# ---------------------------------------------------------------- signals of probes


def probe(seed, users=6, samples=8, shift=0.0, watched=2, known=True):
    rng = np.random.default_rng(seed)
    make = lambda *shape: torch.from_numpy(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    truth = make(users, samples, 1) + 0.1 * make(users, samples, 2)
    score = truth.mean(dim=2) + shift + 0.5 * make(users, samples)
    watch = truth.mean(dim=2)[..., None] * 3 + 10 + make(users, samples, watched)
    return Probe(
        item_ids_USK=torch.zeros(users, samples, 5, dtype=torch.int64),
        logp_US=make(users, samples) - 20 + shift,
        base_logp_US=make(users, samples) - 20,
        score_US=score,
        watch_USW=watch if watched else None,
        truth_half_US2=truth if known else None,
    )


def test_signals_are_the_means_of_the_probes():
    probes = [probe(0), probe(1, shift=2.0)]
    found = signals_of(probes, np.ones((2, 6)))
    np.testing.assert_allclose(found.proxy_NU[1], probes[1].score_US.mean(dim=1), rtol=1e-6)
    np.testing.assert_allclose(found.kl_NU[1], (probes[1].logp_US - probes[1].base_logp_US).mean(dim=1), rtol=1e-4)
    np.testing.assert_allclose(found.entropy_NU, [-p.logp_US.mean(dim=1) for p in probes], rtol=1e-6)
    np.testing.assert_allclose(truth_of(probes)[0], probes[0].truth_half_US2.mean(dim=(1, 2)), rtol=1e-5)
    assert found.correlation_NU.shape == (2, 6) and (found.correlation_NU[0] > 0).mean() > 0.5


def test_disagreement_is_in_units_of_the_base_whatever_the_members_scales():
    probes = [probe(0), probe(1)]
    wider = [Probe(**{**vars(p), "watch_USW": p.watch_USW * torch.tensor([7.0, 0.1]) - 50}) for p in probes]
    spread = [signals_of(p, np.ones((2, 6))).spread_NU for p in (probes, wider)]
    np.testing.assert_allclose(*spread, rtol=1e-4)
    exploited = [probes[0], Probe(**{**vars(probes[1]), "score_US": probes[1].score_US + 3})]
    assert signals_of(exploited, np.ones((2, 6))).spread_NU[1].mean() > 1.5 * spread[0][1].mean()


def test_what_nobody_knows_is_not_told():
    blind = probe(0, watched=0, known=False)
    assert set(probe_metrics(blind)) == {"model_mean", "kl_to_base", "entropy"}
    assert truth_of([blind]) is None and signals_of([blind], np.ones((1, 6))).held_out_NU is None
    told = probe_metrics(probe(0))
    more = {"true_mean", "rank_correlation", "held_out_mean", "held_out_correlation"}
    assert set(told) == {"model_mean", "kl_to_base", "entropy", *more}
    assert 0.5 < told["rank_correlation"] < 1


def test_a_probe_is_kept_in_a_file_and_read_back(tmp_path):
    from feedgym.data.parquet import read_batch, write_batch

    for kept in (probe(0), probe(0, watched=0, known=False)):
        write_batch(kept, tmp_path / "probe.safetensors")
        back = read_batch(Probe, tmp_path / "probe.safetensors")
        assert (back.truth_US is None) == (kept.truth_US is None)
        assert torch.equal(back.rows(slice(2)).logp_US, kept.logp_US[:2])
