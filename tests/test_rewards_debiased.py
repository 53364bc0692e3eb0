"""Training against the log's favouritism: imputed answers, doubly robust losses, and one fused score."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rewards_ensemble import H, S
from test_rewards_model import NUM_ITEMS, SMALL, K, catalog, histories, lively_model, logged, sessions
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from feedgym.envs.truth import RewardWeights
from feedgym.experiments.align.presets import smoke
from feedgym.rewards.answers import LIKES, TOWERS, Answers
from feedgym.rewards.check import check_reward
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.doubly_robust import doubly_robust_bce, drawn_sessions
from feedgym.rewards.ensemble import load_reward_model
from feedgym.rewards.training import fit_reward_model

ITEMS = 3
DR = replace(SMALL, max_weight=10.0, imputed=2)


def expected_loss(prob_I, propensity_I, target_I, logit_I, imputed_I, weight_I):
    """The mean of the doubly robust loss over all that a log of one exposure could hold, drawn item included."""
    total = 0.0
    for shown, answer, drawn in product(range(ITEMS), (0, 1), range(ITEMS)):
        chance = propensity_I[shown] * (prob_I[shown] if answer else 1 - prob_I[shown]) * target_I[drawn]
        got = doubly_robust_bce(
            torch.stack([logit_I[shown], logit_I[drawn]])[None, :, None],
            torch.tensor([[float(answer)]], dtype=torch.float64),
            weight_I[[shown]],
            torch.stack([imputed_I[shown], imputed_I[drawn]])[None, :, None],
            torch.ones(1, 2, dtype=torch.float64),
        )
        total += chance * got[0]
    return total


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_it_is_unbiased_where_the_imputed_answers_are_right_or_the_weights_are(seed):
    rng = torch.Generator().manual_seed(seed)
    prob_I, other_I = torch.rand(2, ITEMS, generator=rng, dtype=torch.float64)
    propensity_I, target_I, wrong_I = torch.rand(3, ITEMS, generator=rng, dtype=torch.float64) + 0.1
    propensity_I, target_I = propensity_I / propensity_I.sum(), target_I / target_I.sum()
    logit_I = torch.randn(ITEMS, generator=rng, dtype=torch.float64)
    want = (target_I * bce(logit_I, prob_I, reduction="none")).sum()
    facts = (prob_I, propensity_I, target_I, logit_I)
    torch.testing.assert_close(expected_loss(*facts, other_I, target_I / propensity_I), want)
    torch.testing.assert_close(expected_loss(*facts, prob_I, wrong_I), want)
    assert abs(expected_loss(*facts, other_I, wrong_I) - want) > 1e-6  # where neither is


def test_what_was_not_observed_corrects_nothing():
    logits = torch.randn(4, 3, 2, requires_grad=True)
    imputed, reach = torch.rand(4, 3, 2), torch.rand(4, 3)
    unseen = doubly_robust_bce(logits, torch.full((4, 2), torch.nan), torch.full((4,), 50.0), imputed, reach)
    drawn = bce(logits[:, 1:], imputed[:, 1:], reduction="none") * reach[:, 1:, None]
    torch.testing.assert_close(unseen, drawn.mean(1).sum(0) / reach[:, 1:].mean(1).sum())
    unseen.sum().backward()
    assert (logits.grad[:, 0] == 0).all() and logits.grad.isfinite().all()


def test_drawn_sessions_have_the_shares_of_the_log_and_no_item_twice():
    s = logged(3000)
    s.item_ids_NK[s.item_ids_NK == 7] = 8  # never shown
    drawn_NSK = drawn_sessions(s, 2, seed=1)
    assert drawn_NSK.shape == (3000, 2, K)
    assert ((drawn_NSK >= 0) == (s.item_ids_NK >= 0)[:, None]).all()
    count_I = np.bincount(drawn_NSK[drawn_NSK >= 0], minlength=NUM_ITEMS)
    share_I = np.bincount(s.item_ids_NK[s.item_ids_NK >= 0], minlength=NUM_ITEMS)
    assert count_I[7] == 0 and np.corrcoef(count_I, share_I)[0, 1] > 0.9
    for session in drawn_NSK.reshape(-1, K)[:500]:
        shown = session[session >= 0]
        assert len(set(shown)) == len(shown)
    assert np.array_equal(drawn_sessions(s, 2, seed=1), drawn_NSK)
    s.item_ids_NK[:] = [1, 2, 1, 2]
    with pytest.raises(ValueError, match="draws sessions of 4 different items, and the log shows 2"):
        drawn_sessions(s, 2, seed=1)


def favoured(num_sessions, seed=0):
    """Half of the users like even items and are shown them 3 times out of 4; nobody likes what is odd."""
    rng = np.random.default_rng(seed)
    s, h = logged(num_sessions, seed), histories(num_sessions, seed)
    taste_N = rng.integers(2, size=num_sessions)
    even_NK = rng.random((num_sessions, K)) < np.where(taste_N, 0.75, 0.25)[:, None]
    ids_NK = (2 * rng.permuted(np.tile(np.arange(NUM_ITEMS // 2), (num_sessions, 1)), axis=1)[:, :K] + ~even_NK).astype(
        np.int32
    )
    chance_NK = np.where(even_NK, np.where(taste_N, 0.75, 0.25)[:, None], np.where(taste_N, 0.25, 0.75)[:, None])
    liked_NK = even_NK & (taste_N == 1)[:, None]
    behaviours = np.zeros((num_sessions, K, 7), np.uint8)
    behaviours[..., 2] = liked_NK
    return h, replace(
        s,
        item_ids_NK=ids_NK,
        examined_NK=np.ones((num_sessions, K), bool),
        behaviours_NKB=behaviours,
        propensity_NK=(chance_NK / (NUM_ITEMS // 2)).astype(np.float32),
    )


def test_doubly_robust_training_undoes_favouritism_that_no_feature_tells(tmp_path):
    """The histories say nothing of taste, so half of those who see an even item would like it, if anyone saw it."""
    h, s = favoured(500)
    config = replace(SMALL, epochs=4, batch_size=32, max_weight=1e6, imputed=1)
    likes = {}
    for name, settings_ in {"robust": config, "plain": replace(config, imputed=0, max_weight=1.0)}.items():
        model = fit_reward_model(catalog(), h, s, settings_, tmp_path / name)
        even = torch.arange(0, NUM_ITEMS, 2)[None, :, None].repeat(100, 1, 1)
        with torch.no_grad():
            logits = model.predict(histories(100, seed=3), even).logit_USKO
        likes[name] = float(logits[..., TOWERS.index("like")].sigmoid().mean())
    assert likes["plain"] > 0.68 and abs(likes["robust"] - 0.5) < 0.12, likes


def test_each_half_of_the_users_imputes_for_the_other(tmp_path, monkeypatch):
    from feedgym.rewards import training

    learned, answered = [], []
    alone, imputed = training.trained_alone, training._imputed

    def trained(model, examples, *args):
        learned.append(examples)
        return alone(model, examples, *args)

    def impute(model, h, item_ids_NSK):
        answered.append((len(learned), item_ids_NSK[:, 0]))
        return imputed(model, h, item_ids_NSK)

    monkeypatch.setattr(training, "trained_alone", trained)
    monkeypatch.setattr(training, "_imputed", impute)
    s = logged(60, user_idx_N=np.repeat(np.arange(20), 3))
    fit_reward_model(catalog(), histories(60), s, DR, tmp_path)
    halves = [{tuple(row) for row in examples.item_ids_NK.tolist()} for examples in learned[:2]]
    assert len(learned) == 3 and sum(map(len, halves)) == 60
    for number, rows in answered:
        assert not halves[number - 1] & {tuple(row) for row in rows.tolist()}
    assert all((examples.answers.weight_NK == 1).all() for examples in learned[:2])
    final = learned[2]
    assert (
        torch.equal(final.imputed.item_ids_NSK[:, 0], final.item_ids_NK)
        and (final.imputed.reach_NSK[:, 0, 0] == 1).all()
    )


def test_members_learn_doubly_robust_too(tmp_path):
    s = replace(logged(60), propensity_NK=np.full((60, K), 0.05, np.float32))
    model = fit_reward_model(catalog(), histories(60), s, replace(DR, members=2), tmp_path)
    assert len(model) == 2 and model(H, S).isfinite().all() and model.opinions(H, S).std(0).max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"imputed": 1}, "set max_weight above 1"),
        ({"imputed": 1, "max_weight": 5.0, "p_score": True}, "choose one of the two"),
    ],
)
def test_choices_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RewardModelConfig(**options)


# ---------------------------------------------------------------- one fused score


def test_a_p_score_keeps_the_promises_of_a_reward_and_has_no_weights(tmp_path):
    model = lively_model(replace(SMALL, p_score=True))
    check_reward(model, H, S)
    assert torch.equal(model.with_weights(RewardWeights(like=9.0))(H, S), model(H, S))
    said = model.predict(H, S.item_ids_USK)
    assert said.logit_USKO.shape[-1] == len(TOWERS) + 1
    want = (said.prob_reach_USK * said.logit_USKO[..., -1].sigmoid()).sum(-1)
    torch.testing.assert_close(model(H, S), want.detach())
    model.save_pretrained(tmp_path)
    assert torch.equal(load_reward_model(tmp_path)(H, S), model(H, S))
    with pytest.raises(ValueError, match="one score for everything"):
        replace(smoke(), reward="clicks", reward_model=RewardModelConfig(p_score=True))


def test_the_fused_score_learns_every_sign_of_liking_that_occurs():
    model, h = lively_model(replace(SMALL, p_score=True)), histories(30)
    s = logged(30)
    s.behaviours_NKB[..., TOWERS.index("follow")] = 0
    answers = Answers.of(s, 300.0)
    model.prepare(catalog(), answers)
    said = model.predict(h, torch.from_numpy(s.item_ids_NK).long()[:, None])
    towers = said.logit_USKO[:, 0]
    own = model.loss(said, answers)
    want = 0.0
    for name in LIKES:
        label = answers.labels_NKO[..., TOWERS.index(name)]
        seen = ~label.isnan()
        if name != "follow":
            want += bce(towers[..., -1][seen], label[seen])
    blank = said._replace(logit_USKO=torch.cat([said.logit_USKO[..., :-1], 0 * said.logit_USKO[..., -1:]], dim=-1))
    rest = own - model.loss(blank, answers) + np.log(2) * (len(LIKES) - 1)
    torch.testing.assert_close(rest, want, rtol=1e-4, atol=1e-4)
    assert "hate" not in LIKES and "next" not in LIKES


def test_a_p_score_learns_what_is_liked(tmp_path):
    h, s = favoured(400)
    model = fit_reward_model(catalog(), h, s, replace(SMALL, epochs=3, p_score=True), tmp_path)
    ids = torch.tensor([[0, 2, 4, 6], [1, 3, 5, 7]])[None].repeat(20, 1, 1)
    batch = replace(sessions(20, 2), item_ids_USK=ids)
    score_US = model(histories(20), batch)
    assert (score_US[:, 0] > score_US[:, 1]).all()
