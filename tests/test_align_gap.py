import numpy as np
import pytest
import torch

from feedgym.experiments.align.gap import WAY, gap, values_at_requests
from feedgym.experiments.align.probe import Probe
from feedgym.experiments.statistics import Ratio


def pool(rng, *, users=300, samples=64, level=0.0, spread=1.0, error=1.0, replica_noise=0.0):
    """Sessions of a generator, the reward's scores of them, and the truth measured twice."""
    truth_US = level + spread * rng.normal(size=(users, samples))
    half_US2 = truth_US[..., None] + replica_noise * rng.normal(size=(users, samples, 2))
    score_US = truth_US + error * rng.normal(size=truth_US.shape)
    zeros = torch.zeros(users, samples)
    return Probe(
        item_ids_USK=zeros[..., None].long(), logp_US=zeros, base_logp_US=zeros,
        score_US=torch.from_numpy(score_US), truth_half_US2=torch.from_numpy(half_US2),
    )  # fmt: skip


def test_the_steps_add_up_to_the_way_and_the_shares_to_one():
    rng = np.random.default_rng(0)
    values = values_at_requests(pool(rng), pool(rng, level=1.0, spread=0.5), 4 + rng.normal(size=300))
    found = gap(values)
    assert [step["to"] for step in found["steps"]] == list(WAY[1:])
    assert sum(step["mean"] for step in found["steps"]) == pytest.approx(found["way"]["mean"])
    assert sum(step["share"]["mean"] for step in found["steps"]) == pytest.approx(1)
    assert found["way"]["mean"] == pytest.approx(values["oracle"].mean() - values["base"].mean())
    for figure in (*found["values"].values(), *found["steps"], found["way"]):
        assert figure["low"] <= figure["mean"] <= figure["high"]


def test_what_is_planted_is_found():
    rng = np.random.default_rng(1)
    found = gap(values_at_requests(pool(rng), pool(rng, level=1.0), np.full(300, 4.0)))
    best_of_64 = 2.3675  # mean of the largest of 64 standard normals
    expected = [1.0, best_of_64 / 2**0.5 - 1.0, best_of_64 * (1 - 1 / 2**0.5), 4 - best_of_64]
    assert [step["mean"] for step in found["steps"]] == pytest.approx(expected, abs=0.08)
    assert found["steps"][1]["name"] == "lost by the optimiser"


def test_choosing_by_the_truth_does_not_profit_from_its_noise():
    rng = np.random.default_rng(2)
    noisy = pool(rng, spread=0.0, replica_noise=2.0)  # all sessions are worth the same
    values = values_at_requests(noisy, noisy)
    assert values["base_best_by_truth"].mean() == pytest.approx(0, abs=0.3)
    assert noisy.truth_US.max(dim=1).values.mean() > 2  # which the plain maximum would have said


def test_a_perfect_reward_loses_nothing():
    rng = np.random.default_rng(3)
    base = pool(rng, error=0.0)
    values = values_at_requests(base, base, n=16)
    np.testing.assert_allclose(values["base_best"], values["base_best_by_truth"])
    np.testing.assert_allclose(values["aligned"], values["base"])


def test_an_optimiser_that_beats_the_best_of_n_has_a_negative_loss():
    rng = np.random.default_rng(4)
    found = gap(values_at_requests(pool(rng, samples=4), pool(rng, level=3.0), np.full(300, 4.0)))
    assert found["steps"][1]["high"] < 0


def test_agents_that_are_not_there_leave_their_step_to_the_next_one():
    rng = np.random.default_rng(5)
    served = {name: Ratio(level + rng.gamma(2, size=50), np.full(50, 8.0)) for name, level in
              (("base", 0), ("aligned", 8), ("oracle", 24), ("cascade", 9))}  # fmt: skip
    found = gap(served)
    assert [step["name"] for step in found["steps"]] == [
        "gained by alignment",
        "lost by the optimiser, lost by the reward model, out of the generator's reach",
    ]
    assert "cascade" in found["values"]
    assert found["values"]["base"]["mean"] == pytest.approx(served["base"].mean())


def test_what_makes_no_way_is_refused():
    with pytest.raises(ValueError, match="give base and two more"):
        gap({"base": np.zeros(3), "oracle": np.ones(3)})
    recorded = Probe(**{**vars(pool(np.random.default_rng(0))), "truth_half_US2": None})
    with pytest.raises(ValueError, match="a recorded log has none"):
        values_at_requests(recorded, recorded)
