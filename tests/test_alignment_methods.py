"""Every preference method as a whole: what it starts at, on every agent, near another reference, and after a kill."""

import copy
import inspect
import math
import shutil

import pytest
import torch
from toy_contrasts import NUM_ITEMS, K, P, logp, make_histories, make_hstu, make_model, make_tiger

from feedgym.agents.alignment.contrasts import Logps, PreferenceLoss
from feedgym.agents.alignment.pairs import GradingConfig
from feedgym.data.batches import ScoredSessions
from feedgym.data.parquet import read_batch
from feedgym.plugins import BUILT_IN, resolve

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [name for name in BUILT_IN["method"] if issubclass(resolve("method", name), PreferenceLoss)]
WITHOUT = ["cpo", "simpo", "orpo"]
"""Those that have no reference."""


def make_sampled(num=P, num_sessions=6, seed=5):
    generator = torch.Generator().manual_seed(seed)
    item_ids_USK = torch.rand(num, num_sessions, NUM_ITEMS, generator=generator).argsort(-1)[..., :K]
    nothing = torch.full((num, num_sessions), torch.nan)
    return ScoredSessions(item_ids_USK=item_ids_USK, score_US=torch.randn(num, num_sessions, generator=generator),
                          logp_US=nothing, logp_allowed_US=nothing, logp_drawn_US=nothing)  # fmt: skip


def make_method(name, **options):
    kind = resolve("method", name)
    return kind(kind.Config(**{"batch_size": 12, "epochs": 2, "learning_rate": 3e-3} | options))


def update(method, model, work, progress=None, **others):
    logged_UK = torch.randint(NUM_ITEMS, (P, K), generator=torch.Generator().manual_seed(6))
    return method.update(model, make_histories(P), make_sampled(), logged_UK, work, progress, **others)


FIRST = {
    "ipa": math.log(2), "dpo": math.log(2), "ipo": (4 / (2 * K)) ** 2, "cdpo": math.log(2), "rdpo": math.log(2),
    "apo": 1.0, "sppo": 8.0, "s_dpo": math.log(4), "kto": 0.5,
}  # fmt: skip
"""Where a loss starts if nothing has been learned: its value at gains of 0."""


def test_every_method_with_a_reference_has_its_first_value_here():
    assert set(FIRST) | set(WITHOUT) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_each_starts_where_its_formula_does_and_learns(name, tmp_path):
    model = make_model()
    before = copy.deepcopy(model)
    options = {"preference_weight": 0.1 if name == "sppo" else 10.0, "ntp_weight": 0.1}
    metrics = update(make_method(name, epochs=6, learning_rate=1e-2, **options), model, tmp_path)
    assert metrics["pairs"] == P
    if name in FIRST:
        assert metrics["first_loss"] == pytest.approx(FIRST[name], abs=1e-5)
        assert metrics["first_margin"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["accuracy"] > 0.8 and metrics["margin"] > metrics["first_margin"] + 0.1
    assert metrics["chosen_logp_change"] > metrics["rejected_logp_change"] + 1
    assert metrics["loss"] < metrics["first_loss"]

    method = make_method(name)
    choice = method.choose(make_sampled(), torch.Generator().manual_seed(method.config.seed))
    sessions_PSK = choice.of(make_sampled().item_ids_USK)
    histories = make_histories(P).rows(choice.user_idx_P)
    for figure, nth in (("chosen_logp", 0), ("rejected_logp", slice(1, None))):
        picked = sessions_PSK[:, nth].reshape(P, -1, K)
        now, then = (
            torch.stack([logp(each, histories, picked[:, s]) for s in range(picked.shape[1])]).mean().item()
            for each in (model, before)
        )
        assert metrics[figure] == pytest.approx(now, abs=1e-3)
        assert metrics[f"{figure}_change"] == pytest.approx(now - then, abs=1e-3)


@pytest.mark.parametrize("make", [make_tiger, make_hstu], ids=["tiger", "hstu"])
@pytest.mark.parametrize("name", METHODS)
def test_each_updates_every_agent(name, make, tmp_path):
    torch.manual_seed(0)
    model = make().train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    before = copy.deepcopy(model)
    metrics = update(make_method(name, epochs=1), model, tmp_path)
    if name in FIRST:
        first = (4 / K) ** 2 if name == "ipo" else FIRST[name]  # one code per item
        assert metrics["first_loss"] == pytest.approx(first, abs=1e-5)
    assert all(math.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert model.training and "forward" not in model.__dict__


@pytest.mark.parametrize("name", METHODS)
def test_another_reference_is_taken_where_there_is_one(name, tmp_path):
    method = make_method(name)
    with_one = "reference" in inspect.signature(method.update).parameters
    assert with_one is (name not in [*WITHOUT, "ipa"])
    if not with_one:
        return
    model, base = make_model(1), make_model(0).train()
    before = copy.deepcopy(base)
    metrics = update(method, model, tmp_path, reference=base)
    assert metrics["first_loss"] != pytest.approx(FIRST[name], abs=1e-3)
    kept = read_batch(Logps, tmp_path / "reference" / "reference.safetensors")
    choice = method.choose(make_sampled(), torch.Generator().manual_seed(method.config.seed))
    chosen_PK = choice.of(make_sampled().item_ids_USK)[:, 0]
    histories = make_histories(P).rows(choice.user_idx_P)
    torch.testing.assert_close(kept.reference_PS[:, 0], logp(before, histories, chosen_PK))
    torch.testing.assert_close(kept.own_PS[:, 0], logp(make_model(1), histories, chosen_PK))
    assert (
        metrics["chosen_logp_change"]
        == pytest.approx(metrics["chosen_logp"] - kept.own_PS[:, 0].mean().item(), abs=1e-4)
        or name == "kto"
    )
    # It is left as it came.
    assert base.training and "forward" not in base.__dict__
    assert {m.p for m in base.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("name", ["s_dpo", "kto"])
def test_a_killed_round_goes_on_and_ends_in_the_same_weights(name, tmp_path):
    method = make_method(name, batch_size=8, checkpoint_steps=2)
    undisturbed, killed, base = make_model(1), make_model(1), make_model(0)
    expected = update(method, undisturbed, tmp_path / "undisturbed", reference=base)

    def kill(done, total, metrics):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(method, killed, tmp_path / "killed", kill, reference=base)
    shutil.copytree(tmp_path / "killed", tmp_path / "killed_too")
    for model, folder in ((make_model(1), "killed"), (killed, "killed_too")):
        steps = []
        told = lambda *step, steps=steps: steps.append(step[:2])  # noqa: E731
        assert update(method, model, tmp_path / folder, told, reference=base) == expected
        assert steps == [(5, 6), (6, 6)]
        for key, value in model.state_dict().items():
            assert torch.equal(value, undisturbed.state_dict()[key]), key


def test_kto_shuffles_its_users_and_takes_more_of_one_kind(tmp_path):
    options = {"graded": GradingConfig(good=1, bad=3), "good_weight": 3.0, "epochs": 1}
    metrics = update(make_method("kto", **options), make_model(), tmp_path / "0")
    assert metrics["first_loss"] == pytest.approx((3 + 3) / 8, abs=1e-6)
    ends = []
    for seed in (0, 0, 1):
        model = make_model()
        update(make_method("kto", **options, seed=seed), model, tmp_path / f"{len(ends)}-of-{seed}")
        ends.append(model.state_dict()["lm_head.weight"])
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_methods_know_what_they_are_called():
    titles = {resolve("method", name).title for name in METHODS}
    assert len(titles) == len(METHODS) and {"IPA", "DPO", "SimPO", "KTO"} <= titles
