"""GRPO, Dr. GRPO, RLOO, ECPO and GBPO against their formulas written out, session by session."""

import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
from test_alignment_dpo import RANDOM, K, logp, make_histories, make_model, weights
from toy_agents import toy_histories, toy_model, toy_tokenizer
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from feedgym.agents.alignment.check import check_method
from feedgym.agents.alignment.ecpo import ECPO, GBPO, ECPOConfig, GBPOConfig
from feedgym.agents.alignment.groups import Groups
from feedgym.agents.alignment.grpo import GRPO, RLOO, DrGRPO, DrGRPOConfig, GRPOConfig, RLOOConfig
from feedgym.agents.alignment.imitation import RSFT, ExpRSFT
from feedgym.agents.alignment.loop import GroupRows, GroupTrainer, without_dropout
from feedgym.agents.alignment.policy_gradient import Logps, PolicyGradientConfig, behaviour_weights
from feedgym.agents.generation import SamplingConfig, sample_sessions
from feedgym.agents.session_model import history_columns, next_token_loss
from feedgym.data.batches import ScoredSessions
from feedgym.data.parquet import read_batch

NUM_ITEMS, U, S, G = 30, 20, 7, 5
METHODS = {"grpo": GRPO, "dr_grpo": DrGRPO, "rloo": RLOO, "ecpo": ECPO, "gbpo": GBPO}
EVERY = METHODS | {"rsft": RSFT, "exp_rsft": ExpRSFT}
SHORT = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}

pytestmark = pytest.mark.usefixtures("one_thread")


def make_sampled(num=U, size=S, seed=3, items=NUM_ITEMS):
    generator = torch.Generator().manual_seed(seed)
    return ScoredSessions(
        item_ids_USK=torch.randint(items, (num, size, K), generator=generator),
        score_US=torch.randn(num, size, generator=generator),
        logp_US=torch.zeros(num, size),
        logp_allowed_US=torch.zeros(num, size),
        logp_drawn_US=torch.zeros(num, size),
    )


def make_logged(num=U, seed=4):
    logged_UK = torch.randint(NUM_ITEMS, (num, K), generator=torch.Generator().manual_seed(seed))
    return logged_UK.masked_fill(torch.arange(K) >= torch.arange(num)[:, None] % (K + 1), -1)


def by_code(model, histories, item_ids_UGK):
    """Log-probabilities of the codes, a list [L·items] a session: one session at a time, with gradients."""
    sessions = []
    for u, group in enumerate(item_ids_UGK):
        for items in group:
            tokens = model.session_tokens(items[None][:, items >= 0])
            logits = model(input_ids=tokens, **history_columns(histories.rows(slice(u, u + 1)))).logits[0]
            logp = logits.log_softmax(-1)
            sessions.append(
                [[logp[k * 3 + level, tokens[0, k * 3 + level + 1]] for level in (0, 1)] for k in range(len(items))
                 if items[k] >= 0]
            )  # fmt: skip
    return sessions


def clip(ratio, advantage, low, high):
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def flat(session):
    return torch.stack([code for item in session for code in item])


def grpo(new, old, ref, a):
    new, old, ref = map(flat, (new, old, ref))
    u = ref - new
    return (clip((new - old).exp(), a, 0.2, 0.3) + 0.7 * (u.exp() - 1 - u)).mean()


def dr_grpo(new, old, ref, a):
    return clip((flat(new) - flat(old)).exp(), a, 0.2, 0.3).sum() / (2 * K)


def rloo(new, old, ref, a):
    return clip((flat(new).sum() - flat(old).sum()).exp(), a, 0.2, 0.3)


def ecpo(new, old, ref, a):
    losses = []
    for item, before in zip(new, old, strict=True):
        pi, pi_old = sum(item).exp(), sum(before).exp()
        losses.append(clip(pi / torch.maximum(pi.detach() / 1.3, pi_old), a, 0.2, 0.2))
    return torch.stack(losses).mean()


def gbpo(new, old, ref, a):
    pi, pi_old = flat(new).exp(), flat(old).exp()
    bound = torch.maximum(pi_old, pi.detach() if a >= 0 else 1 - pi.detach())
    return (-a * pi / bound).mean()


def standard(scores):
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))
    return [(score - mean) / (spread + 1e-4) for score in scores]


def centre(scores):
    return [score - sum(scores) / len(scores) for score in scores]


def others(scores):
    return [score - (sum(scores) - score) / (len(scores) - 1) for score in scores]


def labels(scores):
    order = sorted(scores)
    return [1.0 if score >= order[-2] else -1.0 if score == order[0] else 0.0 for score in scores]


FORMULAS = {
    "grpo": (GRPOConfig(beta=0.7, epsilon=0.2, epsilon_high=0.3), grpo, standard),
    "grpo, unscaled": (GRPOConfig(beta=0.7, epsilon=0.2, epsilon_high=0.3, scale_by_spread=False), grpo, centre),
    "dr_grpo": (DrGRPOConfig(epsilon=0.2, epsilon_high=0.3), dr_grpo, centre),
    "rloo": (RLOOConfig(epsilon=0.2, epsilon_high=0.3), rloo, others),
    "ecpo": (ECPOConfig(epsilon=0.2), ecpo, standard),
    "gbpo": (GBPOConfig(top_share=0.4, bottom_share=0.3), gbpo, labels),
}


def method_of(config):
    return next(kind for kind in METHODS.values() if kind.Config is type(config))(config)


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradients_equal_those_written_from_the_equations(name, tmp_path):
    config, formula, advantage = FORMULAS[name]
    config = replace(config, policy_weight=1.7, ntp_weight=0.4, group_size=G)
    policy, old, reference = (make_model(seed).double() for seed in (1, 0, 2))
    for parameter, before in zip(old.parameters(), policy.parameters(), strict=True):  # near, so that not all is cut
        parameter.data.mul_(0.05).add_(0.95 * before.data)
    histories, sampled, logged_UK = make_histories(U), make_sampled(size=G), make_logged()
    item_ids_UGK = sampled.item_ids_USK
    item_ids_UGK[::3, 1, 1:] = -1  # a shorter session
    users = torch.tensor([3, 0, 17, 8, 9, 12])

    method = method_of(config)
    with without_dropout(policy):
        rows = GroupRows(policy, histories, item_ids_UGK, logged_UK)
        trainer = GroupTrainer(policy, rows, config, method.loss, tmp_path)
        before = Logps(old_UGKL=rows.logps(old, config), reference_UGKL=rows.logps(reference, config))
        groups = Groups(
            user_idx_U=torch.arange(U), item_ids_UGK=item_ids_UGK, score_UG=sampled.score_US,
            logp_allowed_UG=sampled.logp_allowed_US, logp_drawn_UG=sampled.logp_drawn_US,
        )  # fmt: skip
        rows.columns = method.columns(groups, before)
        policy.train()
        loss = trainer.compute_loss(policy, rows.collate(users.tolist()))
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    policy.zero_grad()
    models = [model.eval() for model in (policy, old, reference)]
    histories, item_ids_UGK, logged_UK = histories.rows(users), item_ids_UGK[users], logged_UK[users]
    new, was, ref = (by_code(model, histories, item_ids_UGK) for model in models)
    was, ref = ([[[code.detach() for code in item] for item in s] for s in many] for many in (was, ref))
    advantages = [a for scores in sampled.score_US[users].double().tolist() for a in advantage(scores)]
    policy_loss = torch.stack([formula(*given) for given in zip(new, was, ref, advantages, strict=True)]).mean()
    batch = policy.training_batch(histories, logged_UK)
    ntp = next_token_loss(policy(**{**batch, "labels": None}).logits, batch["labels"])
    tokens = policy.session_tokens(torch.cat([*item_ids_UGK.transpose(0, 1), logged_UK]))
    router_logits = policy(input_ids=tokens, **history_columns(histories)).router_logits
    aux = load_balancing_loss_func(router_logits, 4, 2, (tokens != 0).long())
    by_hand = 1.7 * policy_loss + 0.4 * ntp + 0.01 * aux
    by_hand.backward()

    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5, abs=1e-5)
    assert gradients.keys() == {name for name, p in policy.named_parameters() if p.grad is not None}
    for parameter, p in policy.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[parameter], p.grad, rtol=1e-4, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("level", ["code", "item", "session"])
def test_formulas_hold_at_every_level_in_float64(level):
    generator = torch.Generator().manual_seed(0)
    new = (torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64) * 0.3 - 1).requires_grad_()
    old = new.detach() + 0.3 * torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)
    advantage = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    mask, axes = torch.ones(3, 4, 2, 2, dtype=torch.bool), {"code": (), "item": 3, "session": (2, 3)}[level]
    p, q = ((value.sum(axes, keepdim=True) if axes else value).exp() for value in (new, old))
    a, early = advantage[..., None, None], torch.maximum(p.detach() / 1.3, q)
    wanted = {
        ECPO(ECPOConfig(level=level, epsilon=0.2, policy_weight=1.0)): clip(p / early, a, 0.2, 0.2),
        GBPO(GBPOConfig(level=level, policy_weight=1.0)): -a
        * p
        / torch.where(a >= 0, torch.maximum(q, p), torch.maximum(q, 1 - p)).detach(),
    }
    for method, by_hand in wanted.items():
        loss, _ = method.loss(new, mask, {"advantage_UG": advantage, "old_UGKL": old})
        torch.testing.assert_close(loss, by_hand.mean())
        grads = [torch.autograd.grad(value, new, retain_graph=True)[0] for value in (loss, by_hand.mean())]
        torch.testing.assert_close(*grads)


def test_ecpo_bounds_the_push_on_bad_sessions_and_grpo_does_not():
    new = torch.tensor([[[[-0.1]], [[-0.1]]]], dtype=torch.float64, requires_grad=True)
    columns = {"advantage_UG": torch.tensor([[-1.0, 1.0]]), "old_UGKL": torch.full((1, 2, 1, 1), -5.0)}
    mask = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    pushes = {}
    for method in (ECPO(ECPOConfig(epsilon=0.2, policy_weight=1.0)), GRPO(GRPOConfig(beta=0.0, policy_weight=1.0))):
        loss, figures = method.loss(new, mask, columns)
        pushes[type(method)] = torch.autograd.grad(loss, new)[0][0, :, 0, 0] * 2
        assert figures["clip_share"] == 0.5
    assert pushes[ECPO].tolist() == pytest.approx([1.3, 0])
    assert pushes[GRPO].tolist() == pytest.approx([math.exp(4.9), 0])


def test_gbpo_pushes_no_harder_than_a_classifier():
    for now in (-8.0, -2.0, -0.5, -0.01):
        new = torch.full((1, 2, 1, 1), now, dtype=torch.float64, requires_grad=True)
        columns = {"advantage_UG": torch.tensor([[-1.0, 1.0]]), "old_UGKL": torch.full((1, 2, 1, 1), -12.0)}
        loss, _ = GBPO(GBPOConfig(policy_weight=1.0)).loss(new, torch.ones(1, 2, 1, 1, dtype=torch.bool), columns)
        down, up = (torch.autograd.grad(loss, new)[0] * 2).flatten().tolist()
        odds = math.exp(now) / (1 - math.exp(now))  # the derivative of -log(1 - pi) after log pi
        assert up == pytest.approx(-1) and down == pytest.approx(odds)


def test_the_format_reward_gives_the_first_sessions_of_a_random_group_an_advantage_of_1():
    new = torch.randn(2, 4, 2, 2, requires_grad=True)
    columns = {"advantage_UG": torch.zeros(2, 4), "old_UGKL": new.detach()}
    loss, _ = ECPO(ECPOConfig(format_samples=3, policy_weight=1.0)).loss(
        new, torch.ones(2, 4, 2, 2, dtype=torch.bool), columns
    )
    loss.backward()
    assert loss.item() == pytest.approx(-3 / 4)
    assert (new.grad[:, :3] < 0).all() and (new.grad[:, 3] == 0).all()
    with pytest.raises(ValueError, match="format_samples=17 exceeds group_size=16; lower format_samples"):
        ECPOConfig(format_samples=17)


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("onerec", name) for name in METHODS), *((kind, "grpo") for kind in RANDOM if kind != "onerec")],
)
def test_every_round_starts_at_ratio_1_and_no_divergence_for_every_agent(kind, name, tmp_path):
    torch.manual_seed(0)
    model = RANDOM[kind]().train()
    if kind == "tiger":
        model.model.item_tokens_IL.copy_(model.vocabulary.token_ids(torch.arange(NUM_ITEMS)[:, None]))
    before = weights(model)
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    method = METHODS[name](METHODS[name].Config(**SHORT, group_size=4))
    metrics = method.update(model, make_histories(U), make_sampled(), make_logged(), tmp_path)
    assert metrics["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["first_kl"] == pytest.approx(0, abs=1e-8)
    if name != "gbpo":  # whose weights of bad sessions are no ratios
        assert metrics["first_loss"] == pytest.approx(0, abs=1e-5)
    assert metrics["groups"] == U and metrics["skipped"] == 0
    assert metrics["kl"] > 0 and metrics["ratio"] != 1 and metrics["grad_norm"] > 0
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert any((value != before[key]).any() for key, value in weights(model).items())
    assert model.training and "forward" not in vars(model)
    assert rates == [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]


def test_users_whose_scores_do_not_differ_are_skipped(tmp_path):
    sampled, model = make_sampled(), make_model()
    sampled.score_US[2:5] = sampled.score_US[2:5, :1]
    metrics = GRPO(GRPOConfig(**SHORT)).update(model, make_histories(U), sampled, make_logged(), tmp_path)
    assert (metrics["groups"], metrics["skipped"]) == (U - 3, 3)
    sampled.score_US[:] = 2.0
    for name, kind in EVERY.items():
        model, steps = make_model(), []
        given = (
            model,
            make_histories(U),
            sampled,
            make_logged(),
            tmp_path / name,
            lambda *step, to=steps: to.append(step),
        )
        assert kind(kind.Config()).update(*given) == {"groups": 0, "skipped": U}
        assert steps == [] and all(
            torch.equal(value, weights(make_model())[key]) for key, value in weights(model).items()
        )


def test_old_and_reference_log_probabilities_are_those_of_the_models_as_they_came(tmp_path):
    model, reference, histories = make_model(0), make_model(5), make_histories(U)
    was, base, sampled = copy.deepcopy(model), copy.deepcopy(reference), make_sampled(size=G)
    method = GRPO(GRPOConfig(**SHORT, group_size=G))
    metrics = method.update(model, histories, sampled, make_logged(), tmp_path, reference=reference)
    before = read_batch(Logps, tmp_path / "before" / "logps.safetensors")
    order = torch.rand(U, G, generator=torch.Generator().manual_seed(0)).argsort(1)
    for g in range(G):
        items_UK = sampled.item_ids_USK[torch.arange(U), order[:, g]]
        torch.testing.assert_close(before.old_UGKL[:, g].sum((1, 2)), logp(was, histories, items_UK))
        torch.testing.assert_close(before.reference_UGKL[:, g].sum((1, 2)), logp(base, histories, items_UK))
    assert metrics["first_kl"] > 0.1
    assert metrics["first_loss"] == pytest.approx(
        4 * 0.04 * metrics["first_kl"] / (2 * K), rel=1e-4
    )  # a mean over codes
    assert all(torch.equal(value, weights(base)[key]) for key, value in weights(reference).items())
    assert reference.training  # as it came


def test_rloo_charges_for_the_divergence_and_a_group_of_two_is_a_pair():
    method, score_UG = RLOO(RLOOConfig(beta=0.5)), torch.tensor([[3.0, 1.0], [0.0, 4.0]])
    old = torch.zeros(2, 2, 1, 2)
    before = Logps(old_UGKL=old, reference_UGKL=old - torch.tensor([[1.0, 0.0], [2.0, 2.0]])[..., None, None])
    assert method._advantage(score_UG, Logps(old_UGKL=old)).tolist() == [[2, -2], [-4, 4]]
    assert method._advantage(score_UG, before).tolist() == [[1, -1], [-4, 4]]  # two codes, .5 nats each


def test_a_reference_without_use_is_refused(tmp_path):
    given = make_model(), make_histories(U), make_sampled(), make_logged(), tmp_path
    with pytest.raises(ValueError, match=r"beta=0 leaves the reference unused; raise beta"):
        GRPO(GRPOConfig(beta=0.0)).update(*given, reference=make_model(1))
    for beta, reference in ((0.0, make_model(1)), (0.1, None)):
        with pytest.raises(ValueError, match=r"set both beta and rounds.reference='base', or neither"):
            RLOO(RLOOConfig(beta=beta)).update(*given, reference=reference)


def sampled_from(model, histories, reward, temperature=1.0, num=24, seed=0):
    """Sessions of the toy catalogue, as a round would bring them."""
    generator = torch.Generator().manual_seed(seed)
    sampling = SamplingConfig(temperature=temperature, block_seen=False)
    sessions = sample_sessions(model, toy_tokenizer().trie(), histories, num, K, generator, sampling)
    return ScoredSessions(
        item_ids_USK=sessions.item_ids_USK, score_US=reward(sessions.item_ids_USK), logp_US=sessions.logp_US,
        logp_allowed_US=sessions.logp_allowed_US, logp_drawn_US=sessions.logp_drawn_US,
    )  # fmt: skip


def value(item_ids_USK):
    """Items of a high number are good, most of all in the beginning."""
    return (item_ids_USK * torch.tensor([3.0, 2.0, 1.0])).sum(2)


@pytest.mark.parametrize("name", EVERY)
def test_each_method_raises_the_mean_reward_of_what_is_sampled(name, tmp_path):
    model, histories = toy_model(), toy_histories(40)
    sampled = sampled_from(model, histories, value)
    config = EVERY[name].Config(epochs=6, learning_rate=5e-3, ntp_weight=0.0)
    EVERY[name](config).update(model, histories, sampled, sampled.item_ids_USK[:, 0], tmp_path)
    after = sampled_from(model, histories, value, seed=1)
    spread = sampled.score_US.std(1).mean()
    assert after.score_US.mean() > sampled.score_US.mean() + 0.5 * spread


def test_sessions_drawn_at_another_temperature_can_be_weighed():
    model, histories = toy_model(), toy_histories(12)
    rows = torch.arange(12)
    for temperature in (1.0, 0.5):
        s = sampled_from(model, histories, value, temperature, num=6)
        groups = Groups(
            user_idx_U=rows, item_ids_UGK=s.item_ids_USK, score_UG=s.score_US, logp_allowed_UG=s.logp_allowed_US,
            logp_drawn_UG=s.logp_drawn_US,
        )  # fmt: skip
        weight_UG = behaviour_weights(groups, s.logp_US[..., None, None])
        if temperature == 1:
            torch.testing.assert_close(weight_UG, torch.ones(12, 6), rtol=1e-4, atol=1e-4)
        else:
            wanted_UG = (s.logp_US - s.logp_allowed_US).exp() / s.logp_drawn_US.exp()
            torch.testing.assert_close(weight_UG, wanted_UG / wanted_UG.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)
    among = replace(groups, logp_allowed_UG=torch.full((12, 6), torch.nan))
    with pytest.raises(ValueError, match=r"candidates the second; choose behaviour='model'"):
        behaviour_weights(among, s.logp_US[..., None, None])
    searched = replace(groups, logp_drawn_UG=torch.full((12, 6), torch.nan))
    with pytest.raises(
        ValueError, match=r"behaviour='drawn' needs .* a search lacks the first, .*; choose behaviour='model'"
    ):
        behaviour_weights(searched, s.logp_US[..., None, None])


def test_weights_of_what_was_drawn_scale_each_sessions_loss(tmp_path):
    model, histories = toy_model(), toy_histories(20)
    sampled = sampled_from(model, histories, value, temperature=0.5)
    metrics = {
        behaviour: GRPO(GRPOConfig(epochs=1, behaviour=behaviour)).update(
            copy.deepcopy(model), histories, sampled, sampled.item_ids_USK[:, 0], tmp_path / behaviour
        )
        for behaviour in ("model", "drawn")
    }
    assert "behaviour_ess" not in metrics["model"] and 1 < metrics["drawn"]["behaviour_ess"] < 16
    assert metrics["drawn"]["first_ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["drawn"]["first_loss"] != pytest.approx(metrics["model"]["first_loss"], abs=1e-4)
    new, columns = torch.zeros(1, 2, 1, 1), {"advantage_UG": torch.tensor([[1.0, -1.0]])}
    columns |= {"old_UGKL": new, "weight_UG": torch.tensor([[1.5, 0.5]])}
    loss, _ = DrGRPO(DrGRPOConfig(policy_weight=1.0)).loss(new, torch.ones(1, 2, 1, 1, dtype=torch.bool), columns)
    assert loss.item() == pytest.approx(-(1.5 - 0.5) / 2)


@pytest.mark.parametrize("name", ["grpo", "exp_rsft"])
def test_a_killed_round_goes_on_and_ends_in_the_same_weights(name, tmp_path):
    histories, sampled, logged_UK = make_histories(U), make_sampled(), make_logged()
    method = EVERY[name](EVERY[name].Config(**SHORT, checkpoint_steps=2))
    undisturbed, killed = make_model(), make_model()
    expected = method.update(undisturbed, histories, sampled, logged_UK, tmp_path / "undisturbed")

    def kill(done, total, metrics):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.update(killed, histories, sampled, logged_UK, tmp_path / "killed", kill)
    (tmp_path / "killed" / "checkpoint-5").mkdir()  # half-written
    shutil.copytree(tmp_path / "killed", tmp_path / "killed_too")
    # Whether the round's first weights are passed again or those it was killed with does not matter.
    for model, folder in ((make_model(), "killed"), (killed, "killed_too")):
        steps = []
        metrics = method.update(
            model, histories, sampled, logged_UK, tmp_path / folder, lambda *step, steps=steps: steps.append(step[:2])
        )
        assert steps == [(5, 6), (6, 6)]
        assert metrics == expected
        assert all(torch.equal(value, undisturbed.state_dict()[key]) for key, value in weights(model).items())


def test_a_finished_round_is_not_trained_again_and_another_round_is_refused(tmp_path):
    given, method = (make_histories(U), make_sampled(), make_logged(), tmp_path), GRPO(GRPOConfig(**SHORT))
    model, again, steps = make_model(), make_model(), []
    expected = method.update(model, *given)
    assert method.update(again, *given, lambda *step: steps.append(step)) == expected and steps == []
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights(again).items())
    fewer = make_histories(9), make_sampled(9), make_logged(9), tmp_path
    with pytest.raises(ValueError, match="holds a round of 20 groups, not 9; give each round a folder of its own"):
        method.update(make_model(), *fewer)


def test_two_gpus_without_a_launcher_do_not_mix_users_up(request, tmp_path):
    given, method = (make_histories(U), make_sampled(), make_logged()), GRPO(GRPOConfig(**SHORT))
    one, two = make_model(), make_model()
    expected = method.update(one, *given, tmp_path / "one")
    cut = request.getfixturevalue("two_gpus")
    assert method.update(two, *given, tmp_path / "two") == expected and cut == []


def test_a_round_is_silent(tmp_path, capfd, recwarn):
    GRPO(GRPOConfig(**SHORT)).update(make_model(), make_histories(U), make_sampled(), make_logged(), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []


def test_bfloat16_leaves_the_model_as_a_copy_needs_it(tmp_path):
    model = make_model()
    config = GRPOConfig(**SHORT, bf16=True)
    metrics = GRPO(config).update(model, make_histories(U), make_sampled(), make_logged(), tmp_path)
    assert metrics["first_ratio"] == pytest.approx(1, abs=0.02)
    assert "forward" not in vars(model) and model.lm_head.weight.dtype == torch.float32


def test_sessions_that_are_too_long_are_refused(tmp_path):
    sampled = make_sampled()
    longer = replace(sampled, item_ids_USK=torch.cat([sampled.item_ids_USK] * 2, dim=2))
    with pytest.raises(ValueError, match="Sessions of 6 items exceed the model's session_length=3; cut them or build"):
        GRPO(GRPOConfig()).update(make_model(), make_histories(U), longer, make_logged(), tmp_path)


@pytest.mark.parametrize("name", EVERY)
def test_the_methods_are_sound(name):
    content_IE = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    check_method(EVERY[name], toy_histories(5, num_items=60), content_IE, (3, 2))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (PolicyGradientConfig, {"behaviour": "beam"}, "behaviour='beam' is unknown; choose model or drawn"),
        (PolicyGradientConfig, {"group_size": 1}, "group_size=1 must be 2 or more"),
        (GRPOConfig, {"schedule": "step"}, "schedule='step' is unknown; choose one of cosine"),
        (ECPOConfig, {"level": "word"}, "level='word' is unknown; choose one of code, item, session"),
        (GBPOConfig, {"level": "word"}, "level='word' is unknown; choose one of code, item, session"),
        (GBPOConfig, {"top_share": 0.7, "bottom_share": 0.5}, "add up to more than 1; lower one"),
    ],
)
def test_senseless_options_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)
