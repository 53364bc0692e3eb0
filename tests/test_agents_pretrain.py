import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from toy_agents import CODES, NUM_ITEMS, K, toy_histories, toy_model, toy_tokenizer
from transformers import TrainingArguments

from feedgym.agents.generation import beam_sessions
from feedgym.agents.layers.moe import expert_load
from feedgym.agents.onerec import OneRec
from feedgym.agents.pretrain import PretrainConfig, SessionDataset, pretrain
from feedgym.agents.session_model import next_token_loss, session_logp

CONFIG = PretrainConfig(steps=12, batch_size=8, lr=1e-2, warmup_steps=2, checkpoint_steps=4, log_steps=1)


pytestmark = pytest.mark.usefixtures("one_thread")


def planted(num, seed=0):
    """Users who want the items that follow their newest one; new users want the first ones."""
    histories = toy_histories(num, seed)
    last_U = histories.mask_UT.sum(1) - 1
    newest_U = torch.where(last_U < 0, -1, histories.item_ids_UT[torch.arange(num), last_U.clamp_min(0)])
    return histories, (newest_U[:, None] + 1 + torch.arange(K)) % NUM_ITEMS


def dataset(num=40, seed=0):
    """Sessions of which some end early."""
    histories, ids_NK = planted(num, seed)
    ids_NK[::3, -1] = -1
    return SessionDataset(histories=histories, item_ids_NK=ids_NK)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_it_learns_a_planted_pattern(tmp_path):
    histories, ids_NK = planted(800)
    model = toy_model(d_model=16, d_ff=32, initializer_range=0.1)
    config = PretrainConfig(steps=150, batch_size=48, lr=2e-2, warmup_steps=10)
    assert pretrain(model, SessionDataset(histories=histories, item_ids_NK=ids_NK), config, tmp_path) is model
    histories, ids_NK = planted(200, seed=1)
    served = beam_sessions(model, toy_tokenizer().trie(), histories, 2, K, block_seen=False)
    assert (served.item_ids_USK[:, 0] == ids_NK).float().mean() > 0.95
    with torch.no_grad():
        assert session_logp(model.eval(), histories, ids_NK[:, None]).exp().mean() > 0.8
    # The model in the folder is the one that was returned.
    assert same(weights(OneRec.load(tmp_path, toy_tokenizer())), weights(model))


@pytest.mark.parametrize(("half_written", "group"), [(None, False), ('{"epoch": 0.4', False), (None, True)])
def test_a_killed_run_goes_on_and_ends_in_the_same_weights(half_written, group, tmp_path):
    calm, killed = toy_model(dropout=0.2), toy_model(dropout=0.2)
    config = replace(CONFIG, group_by_length=group)
    pretrain(calm, dataset(), config, tmp_path / "calm")

    def dies(step, steps, metrics):
        if step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(killed, dataset(), config, tmp_path / "killed", dies)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    if half_written is not None:  # killed while it wrote the next checkpoint
        newest = tmp_path / "killed" / "checkpoint-10"
        shutil.copytree(tmp_path / "killed" / "checkpoint-8", newest)
        (newest / "model.safetensors").write_bytes(b"\x10")
        (newest / "trainer_state.json").write_text(half_written)
    # Neither the weights it is started with nor other users of the generator matter.
    for model, folder in ((toy_model(1, dropout=0.2), "again"), (killed, "killed")):
        if folder == "again":
            shutil.copytree(tmp_path / "killed", tmp_path / folder)
        torch.rand(7)
        steps = []
        pretrain(model, dataset(), config, tmp_path / folder, lambda *step, steps=steps: steps.append(step[:2]))
        assert steps == [(9, 12), (10, 12), (11, 12), (12, 12)]
        assert same(weights(model), weights(calm))
        files = (load_file(tmp_path / name / "model.safetensors") for name in (folder, "calm"))
        assert same(*files)


def test_two_gpus_without_a_launcher_do_not_cut_batches(request, tmp_path):
    config, one, two = replace(CONFIG, steps=3), toy_model(), toy_model()
    pretrain(one, dataset(), config, tmp_path / "one")
    cut = request.getfixturevalue("two_gpus")
    assert TrainingArguments(output_dir=str(tmp_path)).n_gpu == 2  # as the Trainer would have it
    pretrain(two, dataset(), config, tmp_path / "two")
    assert cut == [] and same(weights(two), weights(one))


def test_rows_of_like_length_share_a_batch_every_epoch_in_another_order(tmp_path):
    examples, batches = dataset(), []

    class Recorded(SessionDataset):
        def collate(self, model, idx):
            batches.append(list(idx))
            return super().collate(model, idx)

    config = replace(CONFIG, steps=40, batch_size=2, group_by_length=True)  # an epoch draws pools of 5 batches
    pretrain(toy_model(), Recorded(**vars(examples)), config, tmp_path)
    length_N = examples.lengths_N
    for epoch in (batches[:20], batches[20:]):
        assert sorted(idx for batch in epoch for idx in batch) == list(range(40))
        spread = sum(int((length_N[left] - length_N[right]).abs()) for left, right in epoch)
        assert spread <= 4 * int(length_N.max())  # two neighbours of each of 4 sorted pools; at random it is near 40
    assert batches[:20] != batches[20:]


@pytest.mark.parametrize("steps", [10, 12])  # an epoch has 5
def test_a_finished_run_is_not_trained_again_but_a_longer_one_goes_on(steps, tmp_path):
    first, second, more = toy_model(), toy_model(1), []
    config = replace(CONFIG, steps=steps, schedule="constant_with_warmup")
    pretrain(first, dataset(), config, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    pretrain(second, dataset(), config, tmp_path, lambda *step: more.append(step[:2]))
    assert more == [] and same(weights(second), weights(first))
    assert same(weights(OneRec.load(tmp_path, toy_tokenizer())), weights(first))
    pretrain(second, dataset(), replace(config, steps=steps + 1), tmp_path, lambda *step: more.append(step[:2]))
    assert more == [(steps + 1, steps + 1)] and not same(weights(second), weights(first))


@pytest.mark.parametrize("damage", ["no trainer_state.json", "no weights", "a bit of the optimizer", "no seal"])
def test_a_checkpoint_that_is_not_whole_is_passed_over_for_the_one_before(tmp_path, damage):
    calm, steps = toy_model(), []
    config = replace(CONFIG, steps=6, checkpoint_steps=2)
    pretrain(calm, dataset(), config, tmp_path)
    last = tmp_path / "checkpoint-6"
    file = last / {"no trainer_state.json": "trainer_state.json", "no weights": "model.safetensors",
                   "a bit of the optimizer": "optimizer.pt", "no seal": "whole.json"}[damage]  # fmt: skip
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if damage.startswith("no") else file.write_bytes(data)
    again = toy_model(1)
    pretrain(again, dataset(), config, tmp_path, lambda *step: steps.append(step[0]))
    assert steps == [5, 6] and same(weights(again), weights(calm))


def test_the_seed_decides_the_order_and_the_dropout_and_nothing_else_does(tmp_path):
    found = []
    for n, (seed, dropout) in enumerate([(3, 0.2), (3, 0.2), (3, 0.0), (4, 0.0)]):
        model = toy_model(dropout=dropout)
        torch.manual_seed(n)
        pretrain(model, dataset(), replace(CONFIG, seed=seed), tmp_path / str(n))
        found.append(weights(model))
    assert same(found[0], found[1]) and not same(found[1], found[2]) and not same(found[2], found[3])


def test_metrics_are_means_over_the_steps_since_the_last_ones(tmp_path):
    model, data, seen = toy_model(router_aux_loss_coef=0.5), dataset(), {}
    config = replace(CONFIG, steps=5, batch_size=len(data), lr=1e-12, log_steps=2)
    batch = data.collate(model, range(len(data)))
    with torch.no_grad():
        outputs = model(**batch)
    pretrain(model, data, config, tmp_path, lambda step, steps, metrics: seen.update({step: dict(metrics)}))
    assert seen[1] == seen[2] == {} and seen[3] == seen[4]  # the Trainer logs after it tells of the step
    load = expert_load(outputs.router_logits, 2)
    want = {
        "loss": (next_token_loss(outputs.logits, batch["labels"]) + 0.5 * outputs.aux_loss).item(),
        "aux_loss": outputs.aux_loss.item(),
        "expert_load_min": load.min().item(),
        "expert_load_max": load.max().item(),
    }
    for step in (3, 5):
        assert {name: seen[step][name] for name in want} == pytest.approx(want, rel=1e-4)


def test_a_batch_holds_the_rows_asked_for_cut_to_their_longest_history():
    model, data = toy_model(), dataset()
    short = [n for n in range(len(data)) if 0 < data.histories.mask_UT[n].sum() <= 3][:4]
    batch = data.collate(model, short)
    assert batch["item_ids_UT"].shape == (4, int(data.histories.mask_UT[short].sum(1).max())) < (4, 6)
    assert torch.equal(batch["input_ids"], model.session_tokens(data.item_ids_NK[short]))
    whole = model.training_batch(data.histories.rows(torch.tensor(short)), data.item_ids_NK[short])
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).loss, model(**whole).loss)


def test_a_run_is_silent_and_leaves_nothing_of_mixed_precision_on_the_model(tmp_path, capfd, recwarn):
    model, data = toy_model(), dataset()
    pretrain(model, data, replace(CONFIG, steps=2, bf16=True), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn if not issubclass(w.category, (DeprecationWarning, FutureWarning))] == []
    batch, loaded = data.collate(model, range(8)), OneRec.load(tmp_path, toy_tokenizer())
    with torch.no_grad():
        assert torch.equal(model.eval()(**batch).logits, loaded(**batch).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"lr": -1e-3}, "lr=-0.001 must be above 0"),
        ({"lr": float("nan")}, "lr=nan is not a finite number"),
        ({"checkpoint_steps": 0}, "checkpoint_steps=0 must be 1 or more"),
        ({"log_steps": 0}, "log_steps=0 must be 1 or more"),
        ({"epochs": 0.0}, "epochs=0.0 must be above 0; raise it or give steps"),
        ({"steps": -1}, "steps=-1 must be 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be 0 or more"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0 must be 0 or more"),
        ({"schedule": "step"}, "schedule='step' is unknown; choose one of cosine, linear, constant_with_warmup"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)


def test_steps_go_before_epochs(tmp_path):
    assert PretrainConfig(epochs=0.0, steps=3).steps == 3
    steps = []
    config = replace(CONFIG, steps=0, epochs=2.0)
    pretrain(toy_model(), dataset(20), config, tmp_path / "a", lambda *step: steps.append(step[:2]))
    pretrain(toy_model(), dataset(20), replace(CONFIG, steps=3), tmp_path / "b", lambda *step: steps.append(step[:2]))
    assert steps == [(n, 6) for n in range(1, 7)] + [(n, 3) for n in range(1, 4)]


@pytest.mark.parametrize("num", [0, 3])
def test_histories_and_sessions_that_do_not_match_are_refused(num):
    histories = toy_histories(4)
    with pytest.raises(ValueError, match=f"{len(histories.rows(slice(num, 4)))} histories and {num} sessions"):
        SessionDataset(histories=histories.rows(slice(num, 4)), item_ids_NK=torch.zeros(num, K, dtype=torch.long))
    with pytest.raises(ValueError, match="0 histories and 0 sessions; give one history per session and at least one"):
        SessionDataset(histories=histories.rows(slice(0, 0)), item_ids_NK=torch.zeros(0, K, dtype=torch.long))


def test_the_saved_model_says_which_codes_it_speaks(tmp_path):
    pretrain(toy_model(), dataset(), replace(CONFIG, steps=1), tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["tokenizer_hash"] == toy_tokenizer().hash and saved["num_items"] == len(CODES)
    checkpoint = OneRec.load(tmp_path / "checkpoint-1", toy_tokenizer())
    assert torch.equal(checkpoint.model.item_tokens_IL, checkpoint.vocabulary.token_ids(CODES))
