"""The loss of every preference method, and its gradients, against the formula of its paper written by hand."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toy_contrasts import K, make_histories, make_model
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from feedgym.agents.alignment.contrasts import Contrasts, Logps, Opinions
from feedgym.agents.alignment.dpo import DPO, IPA
from feedgym.agents.alignment.kto import KTO
from feedgym.agents.alignment.paired import APO, CDPO, IPO, RDPO
from feedgym.agents.alignment.pairs import GradingConfig
from feedgym.agents.alignment.reference_free import CPO, ORPO, SimPO, log1mexp
from feedgym.agents.alignment.s_dpo import SDPO
from feedgym.agents.alignment.sppo import SPPO
from feedgym.agents.alignment.trainer import lent_to_trl, round_trainer
from feedgym.agents.session_model import history_columns, next_token_loss, session_logp

pytestmark = pytest.mark.usefixtures("one_thread")

NUM, ROWS = 24, torch.tensor([3, 0, 17, 8, 9, 22])
CODES = 2 * K


def dpo(b, g, logp, n):
    return -F.logsigmoid(b * (g[0] - g[1]))


def odds(logp, n):
    p = (logp / n).exp()
    return p / (1 - p)


# By hand, [P]: b is beta .3, g the gains over the reference, logp the log-probabilities, n the codes; [S, P] each.
BY_HAND = {
    "ipa": (IPA, {}, dpo),
    "sigmoid": (DPO, {}, dpo),
    "hinge": (DPO, {"loss_type": "hinge"}, lambda b, g, logp, n: F.relu(1 - b * (g[0] - g[1]))),
    "sigmoid_norm": (
        DPO, {"loss_type": "sigmoid_norm"}, lambda b, g, logp, n: -F.logsigmoid(b * (g[0] / n[0] - g[1] / n[1])),
    ),
    "nca_pair": (
        DPO, {"loss_type": "nca_pair"},
        lambda b, g, logp, n: -F.logsigmoid(b * g[0]) - F.logsigmoid(-b * g[0]) / 2 - F.logsigmoid(-b * g[1]) / 2,
    ),
    "ipo": (IPO, {"gap": 5.0}, lambda b, g, logp, n: (g[0] / n[0] - g[1] / n[1] - 5 / CODES) ** 2),
    "cdpo": (
        CDPO, {"label_smoothing": 0.2},
        lambda b, g, logp, n: -0.8 * F.logsigmoid(b * (g[0] - g[1])) - 0.2 * F.logsigmoid(b * (g[1] - g[0])),
    ),
    "rdpo": (
        RDPO, {"label_smoothing": 0.2},
        lambda b, g, logp, n: (-0.8 * F.logsigmoid(b * (g[0] - g[1])) + 0.2 * F.logsigmoid(b * (g[1] - g[0]))) / 0.6,
    ),
    "apo_zero": (APO, {}, lambda b, g, logp, n: 1 - torch.sigmoid(b * g[0]) + torch.sigmoid(b * g[1])),
    "apo_down": (
        APO, {"kind": "down"}, lambda b, g, logp, n: torch.sigmoid(b * g[0]) + 1 - torch.sigmoid(b * (g[0] - g[1])),
    ),
    "sppo_hard": (SPPO, {"target": 3.0}, lambda b, g, logp, n: (g[0] - 3) ** 2 + (g[1] + 3) ** 2),
    "sppo_soft": (
        SPPO, {"target": 3.0, "labels": "soft"},
        lambda b, g, logp, n: (g[0] - 6 * (0.9 - 0.5)) ** 2 + (g[1] - 6 * (0.3 - 0.5)) ** 2,
    ),
    "cpo": (
        CPO, {"nll_weight": 0.6}, lambda b, g, logp, n: -F.logsigmoid(b * (logp[0] - logp[1])) - 0.6 * logp[0] / n[0],
    ),
    "simpo": (
        SimPO, {"gamma_ratio": 0.4},
        lambda b, g, logp, n: -F.logsigmoid(b * (logp[0] / n[0] - logp[1] / n[1]) - 0.4 * b),
    ),
    "orpo": (
        ORPO, {"odds_weight": 0.7},
        lambda b, g, logp, n: -logp[0] / n[0]
        - 0.7 * F.logsigmoid((odds(logp[0], n[0]) / odds(logp[1], n[1])).log()),
    ),
    "s_dpo": (SDPO, {}, lambda b, g, logp, n: (1 + sum((b * (g[s] - g[0])).exp() for s in range(1, len(g)))).log()),
}  # fmt: skip
NUM_SESSIONS = {"s_dpo": 4}


def by_method(name):
    """A method with its options, and its loss by hand."""
    kind, options, formula = BY_HAND[name]
    beta = {} if name in ("ipo", "sppo_hard", "sppo_soft", "orpo") else {"beta": 0.3}
    shared = {"preference_weight": 0.7, "ntp_weight": 0.4, "batch_size": 10}
    return kind(kind.Config(**shared, **beta, **options)), formula


def sessions(num_sessions, seed=2):
    """Random sessions, of which some are short, and logged ones of 0 to K items."""
    generator = torch.Generator().manual_seed(seed)
    item_ids_PSK = torch.randint(30, (NUM, num_sessions, K), generator=generator)
    item_ids_PSK[::3, 1, 1:] = -1
    logged_PK = torch.randint(30, (NUM, K), generator=generator)
    logged_PK[torch.arange(K) >= torch.arange(NUM)[:, None] % (K + 1)] = -1
    return item_ids_PSK, logged_PK


def by_trainer(method, reference, policy, item_ids_PSK, logged_PK, work, prob_win_PS=None):
    """The loss of a batch by the trainer of a round, and its gradients."""
    histories = make_histories(NUM)
    with lent_to_trl(policy):
        contrasts = Contrasts(policy, histories, item_ids_PSK, logged_PK, prob_win_PS)
        with torch.no_grad():
            reference_PS = session_logp(reference, histories, item_ids_PSK)
            mismatched_PS = session_logp(reference, histories, item_ids_PSK.roll(-1, 0))
        single = method.trainer == "KTOTrainer"
        contrasts.logps = Logps(
            own_PS=reference_PS, reference_PS=reference_PS, mismatched_PS=mismatched_PS if single else None
        )
        trainer = round_trainer(method, policy, contrasts, work)
        policy.train()
        loss = trainer.compute_loss(policy, contrasts.collate([{"row": int(row)} for row in ROWS]))
        loss.backward()
    assert "forward" not in policy.__dict__
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy.eval()
    return loss, gradients, trainer.figures


def with_the_rest(loss, policy, histories, item_ids_PSK, logged_PK):
    """A preference loss by hand with next-token prediction and load balancing."""
    batch = policy.training_batch(histories, logged_PK)
    labels = batch.pop("labels")
    ntp = next_token_loss(policy(**batch).logits, labels)
    tokens = policy.session_tokens(torch.cat([item_ids_PSK.transpose(0, 1).flatten(0, 1), logged_PK]))
    router_logits = policy(input_ids=tokens, **history_columns(histories)).router_logits
    aux = load_balancing_loss_func(router_logits, 4, 2, (tokens != 0).long())
    return 0.7 * loss + 0.4 * ntp + 0.01 * aux


def assert_same(loss, gradients, by_hand, policy):
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5, abs=1e-5)
    assert gradients.keys() == {name for name, p in policy.named_parameters() if p.grad is not None}
    for name, p in policy.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", BY_HAND)
def test_loss_and_gradients_equal_those_written_from_the_equations(name, tmp_path):
    method, formula = by_method(name)
    reference, policy = make_model(0).double().eval(), make_model(1).double()
    item_ids_PSK, logged_PK = sessions(NUM_SESSIONS.get(name, 2))
    prob_win_PS = torch.tensor([[0.9, 0.3]]).expand(NUM, 2) if name == "sppo_soft" else None
    loss, gradients, figures = by_trainer(method, reference, policy, item_ids_PSK, logged_PK, tmp_path, prob_win_PS)

    histories, item_ids_PSK, logged_PK = make_histories(NUM).rows(ROWS), item_ids_PSK[ROWS], logged_PK[ROWS]
    logp_SP = session_logp(policy, histories, item_ids_PSK).T
    gain_SP = logp_SP - session_logp(reference, histories, item_ids_PSK).T.detach()
    num_codes_SP = 2.0 * (item_ids_PSK >= 0).sum(2).T
    own = formula(0.3, gain_SP, logp_SP, num_codes_SP).mean()
    assert figures["loss"] == [pytest.approx(own.item(), rel=1e-5)]
    assert_same(loss, gradients, with_the_rest(own, policy, histories, item_ids_PSK, logged_PK), policy)


@pytest.mark.parametrize("seed, reached", [(1, True), (3, False)])
def test_kto_equals_its_equation_with_the_next_contrasts_sessions_as_mismatched(seed, reached, tmp_path):
    graded = GradingConfig(good=2, bad=1)
    shared = {"preference_weight": 0.7, "ntp_weight": 0.4, "batch_size": 10, "good_weight": 1.3, "bad_weight": 0.8}
    method = KTO(KTO.Config(beta=0.3, graded=graded, **shared))
    reference, policy = make_model(0).double().eval(), make_model(seed).double().eval()
    if not reached:
        reference, policy = policy, reference
    item_ids_PSK, logged_PK = sessions(3)
    loss, gradients, figures = by_trainer(method, reference, policy, item_ids_PSK, logged_PK, tmp_path)

    next_PSK = item_ids_PSK.roll(-1, 0)[ROWS]
    histories, item_ids_PSK, logged_PK = make_histories(NUM).rows(ROWS), item_ids_PSK[ROWS], logged_PK[ROWS]
    gain_PS = session_logp(policy, histories, item_ids_PSK) - session_logp(reference, histories, item_ids_PSK).detach()
    with torch.no_grad():
        z = (
            (session_logp(policy, histories, next_PSK) - session_logp(reference, histories, next_PSK))
            .mean()
            .clamp_min(0)
        )
    good, bad = gain_PS[:, :2], gain_PS[:, 2:]
    parts = [1.3 * (1 - torch.sigmoid(0.3 * (good - z))), 0.8 * (1 - torch.sigmoid(0.3 * (z - bad)))]
    own = torch.cat(parts, dim=1).mean()
    assert figures["loss"] == [pytest.approx(own.item(), rel=1e-5)]
    margin = 0.3 * (good.mean(1) - bad.mean(1)).mean().item()
    assert figures["margin"] == [pytest.approx(margin, rel=1e-5)]
    assert_same(loss, gradients, with_the_rest(own, policy, histories, item_ids_PSK, logged_PK), policy)


def opinions(logp_SP, reference_SP=None, n=6.0):
    reference_SP = torch.zeros_like(logp_SP) if reference_SP is None else reference_SP
    return Opinions(logp_SP=logp_SP, reference_SP=reference_SP, num_codes_SP=torch.full_like(logp_SP, n))


def test_s_dpo_with_one_rejected_session_is_dpo_and_bears_what_would_overflow():
    logp_SP = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    method = SDPO(SDPO.Config(beta=0.3))
    torch.testing.assert_close(method.loss(opinions(logp_SP)), dpo(0.3, logp_SP, None, None))
    far = method.loss(opinions(torch.tensor([[0.0], [1e4], [-1e4]])))
    assert far.item() == pytest.approx(3000.0)


def test_cdpo_rests_where_its_paper_says():
    method = CDPO(CDPO.Config(beta=0.5, label_smoothing=0.2))
    logp_SP = torch.tensor([[math.log(4) / 0.5], [0.0]], dtype=torch.float64, requires_grad=True)
    method.loss(opinions(logp_SP)).sum().backward()
    assert logp_SP.grad.abs().max() < 1e-12


@pytest.mark.parametrize(
    "kind, rest", [(IPO, [[4.0], [0.0]]), (SPPO, [[2.0], [-2.0]])], ids=["half the margin", "the whole margin"]
)
def test_the_margin_of_methods_with_a_target_is_in_its_units(kind, rest):
    margin = kind(kind.Config()).margin(opinions(torch.tensor(rest)))
    assert margin.item() == pytest.approx({IPO: 0.5, SPPO: 1.0}[kind])


def test_log1mexp_is_precise_and_its_gradients_are_finite():
    x = torch.tensor([-1e-5, -1e-3, -0.5, -0.7, -3.0, -50.0], dtype=torch.float64, requires_grad=True)
    value = log1mexp(x)
    torch.testing.assert_close(value, torch.tensor([math.log(-math.expm1(v)) for v in x.tolist()], dtype=torch.float64))
    value.sum().backward()
    torch.testing.assert_close(x.grad, -1 / torch.expm1(-x.detach()))
    edge = torch.tensor([0.0, -200.0], requires_grad=True)
    log1mexp(edge).sum().backward()
    assert edge.grad.isfinite().all()


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        (DPO, {"loss_type": "robust"}, "loss_type='robust' is unknown; choose one of sigmoid"),
        (CDPO, {"label_smoothing": 0.0}, "label_smoothing=0.0 must be above 0"),
        (RDPO, {"label_smoothing": 0.5}, "label_smoothing=0.5 must be below 0.5"),
        (APO, {"kind": "up"}, "kind='up' is unknown; choose one of zero, down"),
        (SPPO, {"score_unit": "spread"}, "score_unit='spread' has no effect on labels='hard'; choose soft"),
        (SPPO, {"labels": "both"}, "labels='both' is unknown"),
        (KTO, {"batch_size": 1}, "batch_size=1 must be 2 or more"),
    ],
)
def test_settings_are_checked(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        replace(kind.Config(), **settings)


@pytest.mark.parametrize("kind", [DPO, APO, SPPO], ids=lambda kind: kind.title)
def test_methods_start_at_about_the_same_speed_by_default(kind):
    method = kind(kind.Config())
    logp_SP = torch.zeros(2, 1, requires_grad=True)
    b, (up, down) = getattr(method.config, "beta", 0.0), logp_SP
    loss = {
        DPO: lambda: -F.logsigmoid(b * (up - down)),
        APO: lambda: 1 - torch.sigmoid(b * up) + torch.sigmoid(b * down),
        SPPO: lambda: (up - method.config.target) ** 2 + (down + method.config.target) ** 2,
    }[kind]()
    (method.config.preference_weight * loss).sum().backward()
    assert logp_SP.grad.flatten().tolist() == pytest.approx([-0.05, 0.05], rel=0.25)
