import copy
import math
import shutil
from dataclasses import replace

import pytest
import torch
from toy_contrasts import K, P, logp, make_histories, make_hstu, make_model, make_preferences, make_tiger, weights

from feedgym.agents.alignment.contrasts import Logps
from feedgym.agents.alignment.dpo import DPO, DPORoundConfig, dpo_round, paired
from feedgym.agents.alignment.trainer import _RoundTrainer, run_round
from feedgym.data.parquet import read_batch

CONFIG = DPORoundConfig(epochs=2, batch_size=8, learning_rate=3e-3)


pytestmark = pytest.mark.usefixtures("one_thread")


RANDOM = {
    "onerec": make_model,
    "tiger": make_tiger,
    "hstu, items": lambda: make_hstu(stochastic_alpha=1.2),
    "hstu, events": lambda: make_hstu(stochastic_alpha=1.2, stream="events", hide_actions=0.5),
}
"""Every agent with every option on that makes its training random."""


@pytest.mark.parametrize("kind", RANDOM)
def test_nothing_random_is_on_while_policy_and_reference_are_compared(kind, tmp_path):
    torch.manual_seed(0)
    model = RANDOM[kind]().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    batch = model.training_batch(make_histories(), make_preferences().chosen_PK)
    losses = {model(**batch).loss.item() for _ in range(3)}
    assert len(losses) == 3 and all(map(math.isfinite, losses))  # it is random in training
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
    kept = read_batch(Logps, tmp_path / "reference" / "reference.safetensors")
    torch.testing.assert_close(kept.reference_PS[:, 0], logp(before, histories, preferences.chosen_PK))
    torch.testing.assert_close(kept.reference_PS[:, 1], logp(before, histories, preferences.rejected_PK))
    assert torch.equal(kept.own_PS, kept.reference_PS)

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
    batch = paired(one, histories, preferences).batch(torch.tensor([20, 22]))
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
    config = replace(CONFIG, epochs=10, preference_weight=1e-6, ntp_weight=1.0)
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
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DPORoundConfig(**settings)


def test_a_round_takes_log_probabilities_from_sampling_if_the_model_drew_the_sessions(tmp_path, monkeypatch):
    model, histories, preferences = make_model(), make_histories(), make_preferences()
    asked, logps = [], _RoundTrainer.logps
    monkeypatch.setattr(_RoundTrainer, "logps", lambda *args: asked.append(1) or logps(*args))
    drawn_PS = torch.stack([logp(model, histories, ids) for ids in (preferences.chosen_PK, preferences.rejected_PK)], 1)
    found = {}
    for name, sampled_PS in (("computed", None), ("sampled", drawn_PS), ("of another model", drawn_PS + 0.1)):
        asked.clear()
        contrasts = paired(learner := copy.deepcopy(model), histories, preferences)
        contrasts.sampled_logp_PS = sampled_PS
        metrics = run_round(DPO(CONFIG), learner, contrasts, tmp_path / name)
        kept = read_batch(Logps, tmp_path / name / "reference" / "reference.safetensors")
        torch.testing.assert_close(kept.own_PS, drawn_PS)
        assert torch.equal(kept.own_PS, kept.reference_PS)
        assert metrics["first_margin"] == pytest.approx(0.0, abs=1e-5)
        assert len(asked) == (1 if name == "sampled" else 2)  # once at the end, for the figures
        found[name] = weights(learner)
    for name, value in found["computed"].items():
        torch.testing.assert_close(found["sampled"][name], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(found["of another model"][name], value)
