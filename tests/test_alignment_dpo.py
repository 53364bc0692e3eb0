import copy
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from feedgym.agents.alignment.dpo import DPORoundConfig, PairLogps, Pairs, dpo_round, lent_to_trl, round_trainer
from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.agents.session_model import history_columns, next_token_loss, session_logp
from feedgym.agents.tiger import Tiger, TigerConfig
from feedgym.data.batches import EventBatch, Preferences
from feedgym.data.parquet import read_batch

NUM_ITEMS, K, T, P = 30, 3, 6, 24
CONFIG = DPORoundConfig(epochs=2, batch_size=8, learning_rate=3e-3)


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(seed=0, std=0.2):
    """A small OneRec whose config has dropout; larger initial weights than usual, so that sessions differ in logp."""
    torch.manual_seed(seed)
    config = OneRecConfig(
        d_model=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=2,
        d_ff=24,
        dropout=0.3,
        initializer_range=std,
        num_codes=(6, 5),
        num_items=NUM_ITEMS,
        session_length=K,
        history_length=T,
        profile_sizes=(3,),
    )
    model = OneRec(config)
    codes_I2 = torch.stack([torch.arange(NUM_ITEMS) // 5, torch.arange(NUM_ITEMS) % 5], dim=1)
    model.model.item_tokens_IL.copy_(model.vocabulary.token_ids(codes_I2))
    return model


def make_histories(num=P, seed=1):
    generator = torch.Generator().manual_seed(seed)
    length_U = torch.randint(0, T + 1, (num, 1), generator=generator)
    return EventBatch(
        item_ids_UT=torch.randint(NUM_ITEMS, (num, T), generator=generator),
        behaviours_UTB=torch.rand(num, T, 7, generator=generator).round(),
        watch_fraction_UT=torch.rand(num, T, generator=generator),
        gap_s_UT=torch.rand(num, T, generator=generator) * 1e4,
        mask_UT=torch.arange(T) < length_U,
        profile_UF=torch.randint(3, (num, 1), generator=generator),
        time_of_day_U=torch.rand(num, generator=generator) * 24,
    )


def make_preferences(num=P, seed=2):
    """Random pairs; logged sessions of 0 to K items. The rows in the pool lie far outside the histories."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, logged = torch.randint(NUM_ITEMS, (3, num, K), generator=generator)
    logged[torch.arange(K) >= torch.arange(num)[:, None] % (K + 1)] = -1
    return Preferences(
        user_idx_P=torch.full((num,), 10**9),
        chosen_PK=chosen,
        rejected_PK=rejected,
        logged_PK=logged,
        score_chosen_P=torch.ones(num),
        score_rejected_P=torch.zeros(num),
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def logp(model, histories, item_ids_PK):
    with torch.no_grad():
        return session_logp(model.eval(), histories, item_ids_PK[:, None])[:, 0]


RANDOM = {
    "onerec": lambda: make_model(),
    "tiger": lambda: Tiger(TigerConfig(**SHARED, d_ff=12, head_width=4, num_codes=(NUM_ITEMS,))),
    "hstu, items": lambda: HSTU(HSTUConfig(**SHARED, stochastic_alpha=1.2)),
    "hstu, events": lambda: HSTU(HSTUConfig(**SHARED, stochastic_alpha=1.2, stream="events", hide_actions=0.5)),
}
"""Every agent with every option on that makes its training random."""
SHARED = dict(d_model=8, num_heads=2, dropout=0.3, num_items=NUM_ITEMS, session_length=K, history_length=T,
              profile_sizes=(3,), only_positives=False)  # fmt: skip


@pytest.mark.parametrize("kind", RANDOM)
def test_nothing_random_is_on_while_policy_and_reference_are_compared(kind, tmp_path):
    torch.manual_seed(0)
    model = RANDOM[kind]().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    batch = model.training_batch(make_histories(), make_preferences().chosen_PK)
    losses = {model(**batch).loss.item() for _ in range(3)}
    assert len(losses) == 3  # it is random in training
    metrics = dpo_round(model, make_histories(), make_preferences(), CONFIG, tmp_path)
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["first_margin"] == pytest.approx(0.0, abs=1e-6)
    assert len({model(**batch).loss.item() for _ in range(3)}) == 3  # and is so again


def test_every_round_starts_at_ln_2_and_margin_0_though_the_model_has_dropout(tmp_path):
    model = make_model().train()
    for t in range(2):
        pairs = make_preferences(seed=t)
        metrics = dpo_round(model, make_histories(), pairs, CONFIG, tmp_path / str(t))
        assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert metrics["first_margin"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["margin"] > 0.01
    assert model.training
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


# The losses as their papers write them; r are beta times the gains over the reference, n the codes of a session.
LOSSES = {
    "sigmoid": lambda b, up, down, n_up, n_down: -F.logsigmoid(b * (up - down)),
    "hinge": lambda b, up, down, n_up, n_down: F.relu(1 - b * (up - down)),
    "ipo": lambda b, up, down, n_up, n_down: (up / n_up - down / n_down - 1 / (2 * b)) ** 2,
    "robust": lambda b, up, down, n_up, n_down: (
        (-0.9 * F.logsigmoid(b * (up - down)) + 0.1 * F.logsigmoid(b * (down - up))) / 0.8
    ),
    "sigmoid_norm": lambda b, up, down, n_up, n_down: -F.logsigmoid(b * (up / n_up - down / n_down)),
    "nca_pair": lambda b, up, down, n_up, n_down: (
        -F.logsigmoid(b * up) - 0.5 * F.logsigmoid(-b * up) - 0.5 * F.logsigmoid(-b * down)
    ),
    "apo_zero": lambda b, up, down, n_up, n_down: 1 - torch.sigmoid(b * up) + torch.sigmoid(b * down),
    "sppo_hard": lambda b, up, down, n_up, n_down: (up - 0.5 / b) ** 2 + (down + 0.5 / b) ** 2,
}


@pytest.mark.parametrize("loss_type", LOSSES)
def test_loss_and_gradients_equal_those_written_from_the_equations(loss_type, tmp_path):
    config = DPORoundConfig(
        loss_type=loss_type,
        beta=0.3,
        dpo_weight=0.7,
        ntp_weight=0.4,
        label_smoothing=0.1 if loss_type == "robust" else 0.0,
        batch_size=10,
    )
    reference, policy = make_model(0).double(), make_model(1).double()
    histories, preferences = make_histories(), make_preferences()
    preferences.rejected_PK[::3, 1:] = -1  # a shorter session
    rows = torch.tensor([3, 0, 17, 8, 9, 22])
    with lent_to_trl(policy):
        pairs = Pairs(policy, histories, preferences)
        pairs.reference = PairLogps(
            chosen_P=logp(reference, histories, preferences.chosen_PK),
            rejected_P=logp(reference, histories, preferences.rejected_PK),
        )
        trainer = round_trainer(policy, pairs, config, tmp_path)
        policy.train()
        loss = trainer.compute_loss(policy, pairs.collate([{"row": int(row)} for row in rows]))
        loss.backward()
    assert "forward" not in policy.__dict__
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}

    policy.zero_grad()
    policy.eval()
    histories, preferences = histories.rows(rows), preferences.rows(rows)
    pair_P2K = torch.stack([preferences.chosen_PK, preferences.rejected_PK], dim=1)
    gain_P2 = session_logp(policy, histories, pair_P2K) - session_logp(reference, histories, pair_P2K).detach()
    length_2P = 2.0 * (pair_P2K >= 0).sum(2).T
    dpo = LOSSES[loss_type](0.3, *gain_P2.T, *length_2P).mean()

    batch = policy.training_batch(histories, preferences.logged_PK)
    labels = batch.pop("labels")
    ntp = next_token_loss(policy(**batch).logits, labels)

    tokens = policy.session_tokens(torch.cat([preferences.chosen_PK, preferences.rejected_PK, preferences.logged_PK]))
    router_logits = policy(input_ids=tokens, **history_columns(histories)).router_logits
    aux = load_balancing_loss_func(router_logits, 4, 2, (tokens != 0).long())
    by_hand = 0.7 * dpo + 0.4 * ntp + 0.01 * aux
    by_hand.backward()

    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5, abs=1e-5)
    assert gradients.keys() == {name for name, p in policy.named_parameters() if p.grad is not None}
    for name, p in policy.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_the_chosen_gain_on_the_rejected_and_the_figures_say_by_how_much(tmp_path):
    model, histories, preferences = make_model(), make_histories(), make_preferences()
    before = copy.deepcopy(model)
    config = replace(CONFIG, epochs=10, beta=0.1, ntp_weight=0.1)  # little enough imitation not to get in the way
    metrics = dpo_round(model, histories, preferences, config, tmp_path)
    chosen, rejected = preferences.chosen_PK, preferences.rejected_PK
    chosen_P = logp(model, histories, chosen) - logp(before, histories, chosen)
    rejected_P = logp(model, histories, rejected) - logp(before, histories, rejected)
    assert metrics["accuracy"] == pytest.approx((chosen_P > rejected_P).double().mean().item())
    assert metrics["accuracy"] > 0.9
    assert metrics["margin"] == pytest.approx(0.1 * (chosen_P - rejected_P).mean().item(), abs=1e-4)
    assert metrics["margin"] > 0.5
    assert metrics["loss"] < 0.5 < metrics["first_loss"]
    assert metrics["chosen_logp"] == pytest.approx(logp(model, histories, chosen).mean().item(), abs=1e-4)
    assert metrics["rejected_logp_change"] == pytest.approx(rejected_P.mean().item(), abs=1e-4)
    assert metrics["chosen_logp_change"] == pytest.approx(chosen_P.mean().item(), abs=1e-4)
    assert all(type(value) is float for value in metrics.values())


def test_the_reference_stays_what_the_model_was(tmp_path):
    model, histories, preferences = make_model(), make_histories(), make_preferences()
    before = copy.deepcopy(model)
    dpo_round(model, histories, preferences, CONFIG, tmp_path)
    reference = read_batch(PairLogps, tmp_path / "reference" / "reference.safetensors")
    torch.testing.assert_close(reference.chosen_P, logp(before, histories, preferences.chosen_PK))
    torch.testing.assert_close(reference.rejected_P, logp(before, histories, preferences.rejected_PK))

    # A copy made afterwards has a life of its own: TRL's forward, left on the model, would answer for the original.
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed.lm_head.weight.zero_()
    codes = 2 * K
    expected = torch.full((P,), -codes * math.log(model.config.vocab_size))
    torch.testing.assert_close(logp(zeroed, histories, preferences.chosen_PK), expected)


def test_two_gpus_without_a_launcher_do_not_mix_users_up(request, tmp_path):
    histories, preferences, one, two = make_histories(), make_preferences(), make_model(), make_model()
    expected = dpo_round(one, histories, preferences, CONFIG, tmp_path / "one")
    cut = request.getfixturevalue("two_gpus")
    assert dpo_round(two, histories, preferences, CONFIG, tmp_path / "two") == expected
    assert cut == [] and all(torch.equal(value, one.state_dict()[name]) for name, value in weights(two).items())

    # What it is kept from: six rows of two users, cut in two, read each other's histories.
    batch = Pairs(one, histories, preferences).batch(torch.tensor([20, 22]))
    batch = {name: value for name, value in batch.items() if name != "completion_mask"}
    batch |= {name: batch[name][:2].repeat(3, 1) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole, halves = one.eval()(**batch).logits, torch.nn.DataParallel(one)(**batch).logits
    assert len(cut) == 1 and not torch.allclose(whole, halves)


def test_a_killed_round_goes_on_and_ends_in_the_same_weights(tmp_path):
    histories, preferences = make_histories(), make_preferences()
    config = replace(CONFIG, checkpoint_steps=2)
    undisturbed, killed = make_model(), make_model()
    expected = dpo_round(undisturbed, histories, preferences, config, tmp_path / "undisturbed")

    def kill(done, total, metrics):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpo_round(killed, histories, preferences, config, tmp_path / "killed", progress=kill)
    (tmp_path / "killed" / "checkpoint-5").mkdir()  # half-written
    assert any((value != undisturbed.state_dict()[name]).any() for name, value in weights(killed).items())

    # Whether the round's first weights are passed again or those it was killed with does not matter.
    again = [make_model(), killed]
    folders = [tmp_path / "killed", tmp_path / "killed_too"]
    shutil.copytree(*folders)
    for model, folder in zip(again, folders, strict=True):
        steps = []
        metrics = dpo_round(
            model, histories, preferences, config, folder, progress=lambda *step, steps=steps: steps.append(step[:2])
        )
        assert steps == [(5, 6), (6, 6)]
        assert metrics == expected
        for name, value in model.state_dict().items():
            assert torch.equal(value, undisturbed.state_dict()[name]), name


def test_a_finished_round_is_not_trained_again(tmp_path):
    model, histories, preferences = make_model(), make_histories(), make_preferences()
    expected = dpo_round(model, histories, preferences, CONFIG, tmp_path)
    fresh, steps = make_model(), []
    assert dpo_round(fresh, histories, preferences, CONFIG, tmp_path, progress=lambda *s: steps.append(s)) == expected
    assert steps == []
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())


def test_sessions_that_were_not_logged_add_nothing_to_next_token_prediction(tmp_path):
    model, histories, preferences = make_model(), make_histories(), make_preferences()
    preferences.logged_PK.fill_(-1)
    with_ntp = dpo_round(model, histories, preferences, replace(CONFIG, ntp_weight=5.0), tmp_path / "a")
    without = make_model()
    dpo_round(without, histories, preferences, replace(CONFIG, ntp_weight=0.0), tmp_path / "b")
    assert with_ntp["ntp_loss"] == 0.0
    assert all(torch.equal(value, without.state_dict()[name]) for name, value in model.state_dict().items())


def test_next_token_prediction_learns_the_logged_sessions(tmp_path):
    model, histories, preferences = make_model(), make_histories(), make_preferences()
    preferences.logged_PK[:, 0] = preferences.logged_PK[:, 0].clamp_min(0)
    before = logp(model, histories, preferences.logged_PK)
    config = replace(CONFIG, epochs=10, dpo_weight=1e-6, ntp_weight=1.0)
    dpo_round(model, histories, preferences, config, tmp_path)
    assert (logp(model, histories, preferences.logged_PK) - before).mean() > 1.0


def test_a_round_is_silent(tmp_path, capfd, recwarn):
    dpo_round(make_model(), make_histories(), make_preferences(), CONFIG, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


def cut(preferences, num):
    return preferences.rows(slice(0, num))


@pytest.mark.parametrize(
    "histories, preferences, message",
    [
        (make_histories(0), cut(make_preferences(), 0), "at least one pair"),
        (make_histories(5), make_preferences(), f"5 histories and {P} preference pairs"),
        (
            make_histories(),
            replace(make_preferences(), chosen_PK=torch.zeros(P, K + 1, dtype=torch.long)),
            f"{K + 1} items exceed the model's session_length={K}",
        ),
    ],
)
def test_faults_are_named(histories, preferences, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dpo_round(make_model(), histories, preferences, CONFIG, tmp_path)


def test_a_folder_of_another_round_is_refused(tmp_path):
    dpo_round(make_model(), make_histories(), make_preferences(), CONFIG, tmp_path)
    with pytest.raises(ValueError, match=f"a round of {P} pairs, not 8"):
        dpo_round(make_model(), make_histories(8), make_preferences(8), CONFIG, tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"beta": 0.0}, "beta=0.0 must be above 0"),
        ({"epochs": 0}, "epochs=0 must be 1 or more"),
        ({"ntp_weight": -1.0}, "ntp_weight=-1.0 must be 0 or more"),
        ({"loss_type": "dpo"}, "loss_type='dpo' is unknown; choose one of sigmoid"),
        ({"schedule": "step"}, "schedule='step' is unknown"),
        ({"label_smoothing": 0.1}, "does nothing to loss_type='sigmoid'"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"must be below 0.5"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DPORoundConfig(**settings)


def test_importing_the_module_does_not_import_trl():
    code = "import sys, feedgym.agents.alignment.dpo as dpo; dpo.DPORoundConfig(); print('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
