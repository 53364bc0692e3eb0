from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_rewards_model import SMALL, K, catalog, histories, lively_model, logged, sessions

from feedgym.experiments.align.presets import smoke
from feedgym.rewards.check import check_reward
from feedgym.rewards.compose import Cautious, CautiousConfig, WorstCase
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.ensemble import RewardEnsemble, load_reward_model
from feedgym.rewards.model import RewardModel
from feedgym.rewards.training import averaged, fit_reward_model, member_weights

H, S = histories(6), sessions(6, 5)
RANKERS = ("genrank", "hstu-rank", "mtgr")
THREE = replace(SMALL, members=3, id_dropout=0.0, epochs=2)


def lively_members(num=3, config=SMALL):
    first = lively_model(config)
    members = [first]
    for _ in range(num - 1):
        members.append(other := lively_model(config))
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return members


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_an_ensemble_thinks_what_its_members_think():
    members = lively_members()
    ensemble = RewardEnsemble.of(members).eval()
    apart = torch.stack([member(H, S) for member in members])
    torch.testing.assert_close(ensemble.opinions(H, S), apart, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ensemble(H, S), apart.mean(0), rtol=1e-4, atol=1e-4)
    assert (apart.std(0) > 0.001).all()
    for member, again in zip(members, ensemble.members(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(member.parameters(), again.parameters(), strict=True))
    prob = torch.stack([member.predict(H, S.item_ids_USK).logit_USKO.sigmoid() for member in members]).mean(0)
    torch.testing.assert_close(ensemble.predict(H, S.item_ids_USK).logit_USKO.sigmoid(), prob, rtol=1e-4, atol=1e-4)


def test_it_keeps_the_promises_of_a_reward_and_so_do_pessimists():
    ensemble = RewardEnsemble.of(lively_members()).eval()
    for reward in (ensemble, WorstCase(ensemble), Cautious(ensemble)):
        check_reward(reward, H, S)


def test_pessimists_are_never_above_the_mean_and_know_how_far_members_are_apart():
    ensemble = RewardEnsemble.of(lively_members()).eval()
    mean, opinions = ensemble(H, S), ensemble.opinions(H, S)
    assert torch.equal(Cautious(ensemble, CautiousConfig(deviations=0))(H, S), mean)
    assert torch.equal(WorstCase(ensemble)(H, S), opinions.min(0).values)
    for deviations in (0.5, 1.0, 2.0):
        want = mean - deviations * opinions.double().std(0, correction=0)
        got = Cautious(ensemble, CautiousConfig(deviations=deviations))(H, S)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        assert (got < mean).all()
    pair = RewardEnsemble.of(lively_members(2)).eval()  # the standard deviation of two is half of what lies between
    torch.testing.assert_close(WorstCase(pair)(H, S), Cautious(pair)(H, S))


def test_members_that_agree_are_one_model():
    ensemble = RewardEnsemble.of([lively_model()] * 3).eval()
    one = lively_model()(H, S)
    for reward in (ensemble, WorstCase(ensemble), Cautious(ensemble), averaged(ensemble).eval()):
        torch.testing.assert_close(reward(H, S), one, rtol=1e-4, atol=1e-4)


def test_another_opinion_of_what_counts_is_all_members():
    ensemble = RewardEnsemble.of(members := lively_members()).eval()
    other = replace(ensemble.weights, like=7.0, watch_minutes=0.0)
    want = torch.stack([member.with_weights(other)(H, S) for member in members]).mean(0)
    torch.testing.assert_close(ensemble.with_weights(other)(H, S), want, rtol=1e-4, atol=1e-4)
    assert ensemble.weights != other and WorstCase(ensemble.with_weights(other)).ensemble.weights == other


def test_a_single_model_has_no_members_to_be_apart():
    for kind in (WorstCase, Cautious):
        with pytest.raises(ValueError, match="give it an ensemble"):
            kind(lively_model())


@pytest.mark.parametrize("options", [{}, {"members": 3, "shared_start": 0.5}])
def test_an_alignment_with_a_pessimist_needs_members(options):
    with pytest.raises(ValueError, match="set --reward-model"):
        replace(smoke(), reward="worst_case", reward_model=RewardModelConfig(**options))


# ---------------------------------------------------------------- training


def test_members_trained_in_one_pass_are_those_trained_alone(tmp_path):
    """Also where gradients are clipped: by the norm of each member, and not of all."""
    from feedgym.rewards import training

    arguments = catalog(), histories(60), logged(60)
    together = fit_reward_model(*arguments, THREE, tmp_path / "together")
    times_NM, seeds = member_weights(logged(60), THREE), training.seeds_of_members(THREE)
    for m, member in enumerate(together.members()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "member_weights", lambda *_, m=m: times_NM[:, [m]])
            patch.setattr(training, "seeds_of_members", lambda *_, m=m: [seeds[m]])
            alone = fit_reward_model(*arguments, THREE, tmp_path / f"alone-{m}").members()[0]
        for (name, got), want in zip(member.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4, msg=name)
    assert len({float(score) for score in together.opinions(H, S)[:, 0, 0]}) == 3


def test_an_ensemble_of_one_is_the_model(tmp_path, monkeypatch):
    from feedgym.rewards import training

    arguments, config = (catalog(), histories(60), logged(60)), replace(SMALL, id_dropout=0.0, epochs=2)
    model = fit_reward_model(*arguments, config, tmp_path / "model")
    monkeypatch.setattr(RewardModelConfig, "is_ensemble", True)
    ensemble = fit_reward_model(*arguments, config, tmp_path / "ensemble")
    assert isinstance(ensemble, RewardEnsemble) and len(ensemble) == 1 and training.seeds_of_members(config) == [0]
    torch.testing.assert_close(ensemble(H, S), model(H, S), rtol=1e-3, atol=1e-3)


def test_members_learn_from_resamples_of_users_unless_told_otherwise():
    s = logged(400, user_idx_N=np.repeat(np.arange(100) * 3, 4))
    times_NM = member_weights(s, replace(THREE, members=8))
    assert times_NM.shape == (400, 8)
    by_user = times_NM.reshape(100, 4, 8)
    assert (by_user == by_user[:, :1]).all() and (by_user[:, 0].sum(0) == 100).all()
    assert 0.5 < (by_user[:, 0] > 0).mean() < 0.75  # 1 - 1/e of the users
    assert len({tuple(column) for column in times_NM.T}) == 8
    assert (member_weights(s, replace(THREE, resample=False)) == 1).all()


def test_averaged_members_are_one_model_near_their_common_start(tmp_path):
    config = replace(THREE, shared_start=0.5, id_dropout=0.2)
    model = fit_reward_model(catalog(), histories(60), logged(60), config, tmp_path)
    assert isinstance(model, RewardModel) and isinstance(load_reward_model(tmp_path), RewardModel)
    parted = {
        name.removeprefix("model.net."): value
        for name, value in weights_of(tmp_path / "parted").items()
        if "relation_H3" in name
    }
    assert parted
    for name, value_M in parted.items():
        assert len(value_M.unique(dim=0)) == 3
        torch.testing.assert_close(model.state_dict()[name], value_M.mean(0))


def test_a_saved_ensemble_comes_back(tmp_path):
    ensemble = fit_reward_model(catalog(), histories(40), logged(40), THREE, tmp_path)
    loaded = load_reward_model(tmp_path)
    assert isinstance(loaded, RewardEnsemble) and not loaded.training and loaded.config == THREE
    assert torch.equal(loaded(H, S), ensemble(H, S))
    (tmp_path / "model.safetensors").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"Cannot read .*model.safetensors"):
        load_reward_model(tmp_path)


def test_a_killed_training_of_members_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    config = replace(THREE, epochs=3, checkpoint_steps=4, dropout=0.1, id_dropout=0.2, shared_start=0.3)
    arguments = catalog(), histories(80), logged(80), config

    def dies_at_step_8(step, steps, metrics):
        if step == 8:
            raise KeyboardInterrupt

    fit_reward_model(*arguments, tmp_path / "calm")
    with pytest.raises(KeyboardInterrupt):
        fit_reward_model(*arguments, tmp_path / "killed", dies_at_step_8)
    torch.rand(7)
    fit_reward_model(*arguments, tmp_path / "killed")
    calm, killed = weights_of(tmp_path / "calm"), weights_of(tmp_path / "killed")
    assert all(torch.equal(calm[name], killed[name]) for name in calm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": False}, "set members too"),
        ({"shared_start": 0.5}, "set members too"),
        ({"backbone_layers": 3}, "does nothing for backbone='attention'"),
        ({"backbone": "sasrec"}, "choose one of attention, genrank"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RewardModelConfig(**options)


# ---------------------------------------------------------------- rankers


@pytest.mark.parametrize("backbone", RANKERS)
def test_a_ranker_keeps_the_promises_of_a_reward(backbone):
    model = lively_model(replace(SMALL, backbone=backbone))
    check_reward(model, H, S)
    whole = model.predict(H, S.item_ids_USK)
    changed = S.item_ids_USK.clone()
    changed[..., 2:] = (changed[..., 2:] + 1) % 30
    other = model.predict(H, changed)
    torch.testing.assert_close(other.logit_USKO[:, :, :2], whole.logit_USKO[:, :, :2], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(other.prob_reach_USK[..., :3], whole.prob_reach_USK[..., :3], rtol=1e-3, atol=1e-3)
    swapped = S.item_ids_USK[..., [1, 0, 2, 3]]
    assert ((model.score(model.predict(H, swapped)) - model.score(whole)).abs() > 1e-4).all()


@pytest.mark.parametrize("backbone", RANKERS)
def test_a_ranker_reads_the_history_and_the_catalogue(backbone, tmp_path):
    model = lively_model(replace(SMALL, backbone=backbone))
    other = replace(H, behaviours_UTB=1 - H.behaviours_UTB)
    with torch.no_grad():
        found = [model.ranker(h, S.item_ids_USK.flatten(1)) for h in (H, other)]
    seen_U = H.mask_UT.any(1)
    assert ((found[0] - found[1]).abs().amax((1, 2))[seen_U] > 1e-3).all()
    kept = [name for name, _ in model.ranker.named_buffers() if name.endswith(("content_IE", "kinds_XI"))]
    assert kept and all(model.ranker.get_buffer(name).float().std() > 0 for name in kept)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_reward_model(tmp_path)(H, S), model(H, S))


@pytest.mark.parametrize("backbone", RANKERS)
def test_rankers_are_trained_one_or_several(backbone, tmp_path):
    config = replace(SMALL, backbone=backbone, members=2, id_dropout=0.0)
    ensemble = fit_reward_model(catalog(), histories(40), logged(40), config, tmp_path)
    before = fit_reward_model.__globals__["untrained"](config, ensemble.net.sizes, 0)
    for (name, got), start in zip(ensemble.members()[0].named_parameters(), before.parameters(), strict=True):
        if "ranker" in name and "items.weight" not in name:
            assert name.endswith("time") or not torch.equal(got, start), name
    assert ensemble(H, S).isfinite().all() and S.item_ids_USK.shape[2] == K
