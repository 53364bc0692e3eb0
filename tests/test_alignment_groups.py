"""Groups out of sampled sessions, advantages, and the weights of imitation."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_alignment_dpo import K, make_histories, make_model
from test_alignment_policy_gradient import NUM_ITEMS, S, U, make_logged, make_sampled

from feedgym.agents.alignment.groups import centred, labelled, leave_one_out, random_groups, standardised
from feedgym.agents.alignment.imitation import (
    RSFT,
    ExpRSFT,
    ExpRSFTConfig,
    RSFTConfig,
    exp_weights,
    resampled,
)
from feedgym.agents.session_model import session_logp

pytestmark = pytest.mark.usefixtures("one_thread")


def test_groups_are_drawn_at_random_and_never_by_score():
    sampled = make_sampled(num=2000, size=8)
    sampled.item_ids_USK[:, :, 0] = torch.arange(8)
    groups = random_groups(sampled, 3, seed=0)
    rank_US = sampled.score_US.argsort(1).argsort(1)
    ranks = rank_US.gather(1, groups.item_ids_UGK[:, :, 0])
    share = torch.bincount(ranks.flatten(), minlength=8) / ranks.numel()
    assert (share - 1 / 8).abs().max() < 0.02
    assert all(len(set(row)) == 3 for row in groups.item_ids_UGK[:, :, 0].tolist())  # no session drawn twice
    sampled.score_US.neg_()
    again, other = random_groups(sampled, 3, seed=0), random_groups(sampled, 3, seed=1)
    assert torch.equal(again.item_ids_UGK, groups.item_ids_UGK)  # whatever the scores are
    assert not torch.equal(other.item_ids_UGK, groups.item_ids_UGK)


def test_a_group_may_be_all_of_a_users_sessions_and_copies_stay():
    sampled = make_sampled()
    sampled.item_ids_USK[0, 1:4] = sampled.item_ids_USK[0, 0]
    for size in (S, 100):
        groups = random_groups(sampled, size, seed=0)
        assert torch.equal(groups.score_UG.sort(1).values, sampled.score_US.sort(1).values)
        assert (groups.item_ids_UGK[0] == sampled.item_ids_USK[0, 0]).all(1).sum() == 4


def test_a_group_keeps_what_belongs_to_a_session_together():
    sampled = make_sampled()
    sampled.logp_drawn_US.copy_(sampled.item_ids_USK.double().sum(2))
    sampled.logp_allowed_US.copy_(sampled.score_US)
    sampled.score_US[3] = 0.0
    groups = random_groups(sampled, 3, seed=0)
    assert groups.user_idx_U.tolist() == [u for u in range(U) if u != 3]
    torch.testing.assert_close(groups.logp_drawn_UG, groups.item_ids_UGK.float().sum(2))
    assert torch.equal(groups.logp_allowed_UG, groups.score_UG)


def test_advantages():
    score_UG = torch.tensor([[1.0, 2.0, 6.0], [4.0, 2.0, 0.0]])
    assert centred(score_UG).tolist() == [[-2, -1, 3], [2, 0, -2]]
    torch.testing.assert_close(standardised(score_UG)[1], torch.tensor([1.0, 0.0, -1.0]), rtol=1e-3, atol=1e-4)
    assert leave_one_out(score_UG).tolist() == [[-3, -1.5, 4.5], [3, 0, -3]]
    assert labelled(score_UG, 0.25, 0.25).tolist() == [[-1, 0, 1], [1, 0, -1]]
    assert labelled(score_UG[:, :2], 0.25, 0.25).tolist() == [[-1, 1], [1, -1]]
    eight = labelled(torch.arange(8.0)[None], 0.25, 0.5)
    assert eight.tolist() == [[-1, -1, -1, -1, 0, 0, 1, 1]]


@given(st.integers(2, 9), st.integers(0, 99))
def test_leave_one_out_is_the_baseline_of_the_others(size, seed):
    score_UG = torch.randn(3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for i in range(size):
        others = torch.cat([score_UG[:, :i], score_UG[:, i + 1 :]], dim=1)
        torch.testing.assert_close(leave_one_out(score_UG)[:, i], score_UG[:, i] - others.mean(1))


def test_the_weights_of_imitation_run_from_the_best_alone_to_all_alike():
    sampled = make_sampled()
    best = torch.nn.functional.one_hot(sampled.score_US.argmax(1), S).float()
    torch.testing.assert_close(exp_weights(sampled, ExpRSFTConfig(temperature=1e-5)), best)
    torch.testing.assert_close(exp_weights(sampled, ExpRSFTConfig(temperature=1e5)), torch.full((U, S), 1 / S))
    plain = exp_weights(sampled, ExpRSFTConfig(temperature=0.7, unit="score"))
    wanted = (sampled.score_US / 0.7).exp()
    torch.testing.assert_close(plain, wanted / wanted.sum(1, keepdim=True))
    scaled = exp_weights(sampled, ExpRSFTConfig(temperature=0.7))
    sampled.score_US.mul_(9).add_(3)  # a user's unit and level do not matter
    torch.testing.assert_close(exp_weights(sampled, ExpRSFTConfig(temperature=0.7)), scaled)


def test_weights_are_corrected_for_how_the_sessions_were_drawn():
    sampled = make_sampled()
    sampled.logp_US[:], sampled.logp_allowed_US[:] = -3.0, -1.0
    sampled.logp_drawn_US[:, 0] = -2.0 - torch.tensor(3.0).log()  # three times as rare as the model makes it
    sampled.logp_drawn_US[:, 1:] = -2.0
    config = ExpRSFTConfig(temperature=1.0, unit="score", behaviour="drawn")
    wanted = sampled.score_US.exp()
    wanted[:, 0] *= 3
    torch.testing.assert_close(exp_weights(sampled, config), wanted / wanted.sum(1, keepdim=True))
    sampled.logp_drawn_US[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"behaviour='drawn' needs .* a search lacks the first"):
        exp_weights(sampled, config)


@given(st.integers(1, 12), st.integers(0, 99))
def test_sessions_are_drawn_as_often_as_their_weights_say(num, seed):
    generator = torch.Generator().manual_seed(seed)
    weight_US = (3 * torch.randn(4, 6, generator=generator)).softmax(1)
    idx = resampled(weight_US, num, generator)
    counts = torch.nn.functional.one_hot(idx, 6).sum(1)
    assert ((counts - num * weight_US).abs() < 1 + 1e-5).all()


def test_draws_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    weight_US = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).expand(4000, -1)
    share = torch.nn.functional.one_hot(resampled(weight_US, 3, generator), 4).double().mean((0, 1))
    torch.testing.assert_close(share, weight_US[0].double(), rtol=0, atol=0.01)


def first_loss(method, tmp_path, sampled):
    """The method's loss at the model as it came: one step on all users."""
    given = make_model(), make_histories(U), sampled, make_logged(), tmp_path
    return method.update(*given)


def nll(sampled):
    """Minus the log-probability a code of each session [U, S]."""
    with torch.no_grad():
        return -session_logp(make_model().eval(), make_histories(U), sampled.item_ids_USK) / (2 * K)


def test_rsft_imitates_the_best_sessions(tmp_path):
    sampled = make_sampled()
    for best in (1, 3, 50):
        config = RSFTConfig(best=best, batch_size=U, epochs=1, imitation_weight=1.5)
        metrics = first_loss(RSFT(config), tmp_path / str(best), sampled)
        order = sampled.score_US.argsort(1, descending=True)[:, :best]
        assert metrics["first_loss"] == pytest.approx(1.5 * nll(sampled).gather(1, order).mean().item(), rel=1e-5)
        gain = sampled.score_US.gather(1, order).mean() - sampled.score_US.mean()
        assert metrics["score_gain"] == pytest.approx(gain.item(), abs=1e-5)


def test_exp_rsft_weighs_all_sessions_or_draws_some(tmp_path):
    sampled = make_sampled()
    config = ExpRSFTConfig(draws=0, batch_size=U, epochs=1)
    weight_US = exp_weights(sampled, config)
    metrics = first_loss(ExpRSFT(config), tmp_path / "all", sampled)
    assert metrics["first_loss"] == pytest.approx((weight_US * nll(sampled)).sum(1).mean().item(), rel=1e-5)
    assert metrics["ess"] == pytest.approx((1 / weight_US.square().sum(1)).mean().item(), rel=1e-5)
    assert 1 < metrics["ess"] < S
    many = first_loss(ExpRSFT(ExpRSFTConfig(draws=500, batch_size=U, epochs=1)), tmp_path / "many", sampled)
    assert many["first_loss"] == pytest.approx(metrics["first_loss"], rel=5e-3)
    assert many["score_gain"] == pytest.approx(metrics["score_gain"], abs=0.01)


def test_imitation_raises_what_is_imitated_above_what_is_not(tmp_path):
    sampled, model = make_sampled(), make_model()
    before = copy.deepcopy(model).eval()
    RSFT(RSFTConfig(epochs=8, learning_rate=3e-3)).update(model, make_histories(U), sampled, make_logged(), tmp_path)
    with torch.no_grad():
        gain_US, was = (session_logp(m.eval(), make_histories(U), sampled.item_ids_USK) for m in (model, before))
    gain_US -= was
    best = sampled.score_US.argmax(1)[:, None]
    assert gain_US.gather(1, best).mean() > gain_US.mean() + 1
    assert NUM_ITEMS > S  # not all that there is


@pytest.mark.parametrize(("changes", "message"), [({"unit": "z"}, "unit='z'"), ({"behaviour": "z"}, "behaviour='z'")])
def test_unknown_choices_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"{message} is unknown; choose one of"):
        ExpRSFTConfig(**changes)
