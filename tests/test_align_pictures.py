import json

import numpy as np
import pytest
import torch

from feedgym.experiments.align.analysis import over_optimisation, stops
from feedgym.experiments.align.gap import gap, values_at_requests
from feedgym.experiments.align.pictures import gap_section, over_optimisation_section
from feedgym.experiments.align.probe import Probe, signals_of, truth_of
from feedgym.experiments.align.stopping import KLBudget, KLBudgetConfig, usual_rules
from feedgym.experiments.run import json_of


def run(*, rounds=7, users=40, samples=16, known=True, watched=True, fall=0.4):
    """Probes of a run whose proxy rises all the time while the truth turns after round 3."""
    probes = []
    for t in range(rounds):
        rng = np.random.default_rng(t)
        truth_US = 2 + 0.4 * min(t, 3) - fall * max(t - 3, 0) + 0.5 * rng.normal(size=(users, samples))
        score_US = truth_US + (0.4 + fall) * max(t - 3, 0) + 0.5 * rng.normal(size=truth_US.shape)
        kl_US = 0.8 * t + 0.5 * (t > 0) * rng.normal(size=truth_US.shape)
        base_logp_US = -30 + rng.normal(size=truth_US.shape)
        half_US2 = truth_US[..., None] + 0.2 * rng.normal(size=(*truth_US.shape, 2))
        watch_USW = truth_US[..., None] + 0.5 * rng.normal(size=(*truth_US.shape, 2))
        arrays = {"logp_US": base_logp_US + kl_US, "base_logp_US": base_logp_US, "score_US": score_US}
        arrays |= {"truth_half_US2": half_US2} if known else {}
        arrays |= {"watch_USW": watch_USW} if watched else {}
        ids = torch.zeros(users, samples, 5, dtype=torch.int64)
        probes.append(Probe(item_ids_USK=ids, **{name: torch.from_numpy(value) for name, value in arrays.items()}))
    return probes


def parts(probes):
    signals = signals_of(probes, np.ones((len(probes), len(probes[0]))))
    rules = {**usual_rules(signals), "kl": KLBudget(KLBudgetConfig(nats=3.5))}
    return over_optimisation(probes), stops(rules, signals, truth_of(probes))


def test_a_run_that_turns_is_told_so_and_its_rules_are_scored():
    found, stopped = parts(run())
    assert found["turnover"]["round"] == 3 and found["turnover"]["over_optimised"]
    assert [row["round"] for row in found["rounds"]] == list(range(7))
    assert found["rounds"][3]["truth"]["mean"] == pytest.approx(1.2, abs=0.1)
    assert found["rounds"][6]["proxy"]["mean"] == pytest.approx(1.2 + 3 * 0.4, abs=0.15)
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 4, 8, 16]
    assert found["expected_slope"] == pytest.approx(0.5, abs=0.05)  # half of the proxy's variance is noise
    truth = next(f for f in found["fits"] if (f["curve"], f["of"], f["form"]) == ("rounds", "truth", "best_of_n"))
    assert truth["bends"] > 0.95 and 0.9 < truth["peak"]["d"] < 1.7
    page = over_optimisation_section(found, stopped)
    assert "Over-optimised: the truth is best after round 3" in page and "rounds from the peak" in page
    assert page.count("class='chart'") == 2


def test_the_parts_survive_the_summary_file(tmp_path):
    # As JSON has no infinity and no NaN: what was not measured is null there.
    probes = run(fall=-0.2)
    found, stopped = parts(probes)
    values = gap(values_at_requests(probes[0], probes[-1], np.full(40, 5.0)))
    codec = json_of(dict)
    codec.save({"over": found, "stops": stopped, "gap": {"at logged requests": values}}, tmp_path)
    back = json.loads((tmp_path / "value.json").read_text())
    page = over_optimisation_section(back["over"], back["stops"])
    assert "does not bend down" in page and "Not over-optimised" in page
    assert "lost by the reward model" in gap_section(back["gap"])


def test_a_recorded_log_has_the_proxy_alone():
    found, stopped = parts(run(known=False, watched=False))
    assert found["turnover"] is None and set(found["unit"]) == {"proxy"}
    page = over_optimisation_section(found, stopped)
    assert "regret" not in page and "Over-optimised" not in page


def test_few_rounds_have_a_picture_and_no_fit_of_the_rounds():
    found, stopped = parts(run(rounds=2, samples=2))
    assert found["fits"] == []
    assert "Too few rounds" in over_optimisation_section(found, stopped)
    alone, _ = parts(run(rounds=1, samples=4))
    assert over_optimisation_section(alone)


def test_nothing_is_drawn_of_what_a_run_has_not():
    assert over_optimisation_section(None) == "" and gap_section(None) == "" and gap_section({}) == ""
