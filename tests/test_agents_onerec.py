import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import rms_norm
from toy_agents import CODES, NUM_CODES, NUM_ITEMS, K, T, scribbled, toy_histories, toy_model, toy_tokenizer

from feedgym.agents.layers.moe import expert_load
from feedgym.agents.onerec import OneRec, OneRecConfig
from feedgym.agents.session_model import (
    OUTPUT_STD,
    SEMANTIC_STD,
    history_columns,
    next_token_loss,
    session_logp,
)
from feedgym.data.batches import EventBatch
from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig

LENGTH = K * (len(NUM_CODES) + 1)
PAD, BOS = 0, 1


def some_sessions(num, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(NUM_ITEMS, generator=rng)[:K] for _ in range(num)])


def logits_of(model, histories, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, **history_columns(histories)).logits


# ---------------------------------------------------------------- the equations, written plainly


def plain_logits(model, history, tokens):
    """Logits at each position of one decoder row of one user, without padding, cache or batch."""
    state, heads, width = dict(model.model.named_parameters()), 2, 4

    def norm(x, name):
        return rms_norm(x, x.shape[-1:], state[f"{name}.weight"], 1e-6)

    def attend(q, keys, values):
        out = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            logits = torch.stack([k[part] @ q[part] / width**0.5 for k in keys])
            out.append(sum(w * v[part] for w, v in zip(logits.softmax(0), values, strict=True)))
        return torch.cat(out)

    def experts(x, name):
        gate_E = (state[f"{name}.router.weight"] @ x).softmax(0)
        kept = sorted(range(len(gate_E)), key=lambda e: -gate_E[e].item())[:2]
        up, down = state[f"{name}.up_EDF"], state[f"{name}.down_EFD"]
        return sum(gate_E[e] * ((x @ up[e]).clamp_min(0) @ down[e]) for e in kept)

    with torch.no_grad():
        seen = history.item_ids_UT[0].tolist()
        extra = model.model.encoder.events(history)[0]  # these two modules: tests/test_agents_layers.py
        xs = list(model.model.encoder.request(history)[0])
        for t, item in enumerate(seen):
            for level, token in enumerate(model.vocabulary.token_ids(CODES[item]).tolist()):
                xs.append(state["tokens.weight"][token] + extra[t] + state["encoder.level.weight"][level])
        for i in range(len(model.model.encoder.layers)):
            name = f"encoder.layers.{i}"
            qkv = [(state[f"{name}.attention.qkv.weight"] @ norm(x, f"{name}.norm_attention")).split(8) for x in xs]
            _, keys, values = zip(*qkv, strict=True)
            out = state[f"{name}.attention.out.weight"]
            xs = [x + out @ attend(qkv[n][0], keys, values) for n, x in enumerate(xs)]
            up, down = state[f"{name}.up.weight"], state[f"{name}.down.weight"]
            xs = [x + down @ (up @ norm(x, f"{name}.norm_ff")).clamp_min(0) for x in xs]
        memory = [norm(x, "encoder.norm") for x in xs]

        ys = [state["tokens.weight"][token] + state["positions.weight"][m] for m, token in enumerate(tokens)]
        for i in range(len(model.model.layers)):
            name = f"layers.{i}"
            qkv = [(state[f"{name}.attention.qkv.weight"] @ norm(y, f"{name}.norm_attention")).split(8) for y in ys]
            q, keys, values = zip(*qkv, strict=True)
            out = state[f"{name}.attention.out.weight"]
            ys = [y + out @ attend(q[m], keys[: m + 1], values[: m + 1]) for m, y in enumerate(ys)]
            kv = [(state[f"{name}.cross.kv.weight"] @ x).split(8) for x in memory]
            keys, values = zip(*kv, strict=True)
            q, out = state[f"{name}.cross.q.weight"], state[f"{name}.cross.out.weight"]
            ys = [y + out @ attend(q @ norm(y, f"{name}.norm_cross"), keys, values) for y in ys]
            ys = [y + experts(norm(y, f"{name}.norm_ff"), f"{name}.experts") for y in ys]
        return torch.stack([model.lm_head.weight @ norm(y, "norm") for y in ys])


def test_the_forward_pass_is_that_of_the_equations_written_plainly():
    model, histories = toy_model(encoder_layers=2), toy_histories(5)
    tokens = model.session_tokens(some_sessions(10))
    found = logits_of(model, histories, tokens)
    assert found.shape == (10, LENGTH, 2 + sum(NUM_CODES))
    for row in range(10):
        history = histories.rows([row % 5])
        history = history.events(slice(int(history.mask_UT.sum())))
        want = plain_logits(model, history, tokens[row].tolist())
        torch.testing.assert_close(found[row], want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- invariances


def test_tokens_change_what_comes_after_them_and_nothing_before():
    model, histories = toy_model(), toy_histories(4)
    tokens = model.session_tokens(some_sessions(4))
    before = logits_of(model, histories, tokens)
    for m in range(LENGTH):
        changed = tokens.clone()
        changed[:, m] = (changed[:, m] + 1) % model.config.vocab_size
        after = logits_of(model, histories, changed)
        torch.testing.assert_close(after[:, :m], before[:, :m])
        assert ((after - before)[:, m:].abs().amax(-1) > 1e-4).all()


def test_the_content_and_the_amount_of_padding_change_nothing():
    model, histories = toy_model(), toy_histories(8)
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(T) < T - 2))
    tokens = model.session_tokens(some_sessions(8))
    want = logits_of(model, histories, tokens)
    for less in range(3):
        torch.testing.assert_close(logits_of(model, scribbled(histories).events(slice(T - less)), tokens), want)


def test_what_a_real_event_says_matters():
    model, histories = toy_model(), toy_histories(2).rows([1])
    tokens = model.session_tokens(some_sessions(1))
    before = logits_of(model, histories, tokens)
    for name in ("item_ids_UT", "behaviours_UTB", "watch_fraction_UT", "gap_s_UT", "time_of_day_U", "profile_UF"):
        column = getattr(histories, name).clone()
        column[0] = 1 - column[0] if name != "item_ids_UT" else (column[0] + 1) % NUM_ITEMS
        if name == "profile_UF":
            column = (histories.profile_UF + 1) % torch.tensor([3, 2])
        after = logits_of(model, replace(histories, **{name: column}), tokens)
        assert (after - before).abs().max() > 1e-4, name
    turned = replace(histories, item_ids_UT=histories.item_ids_UT.flip(1))
    assert (logits_of(model, turned, tokens) - before).abs().max() > 1e-4  # the order of the history counts


def test_row_r_reads_history_r_mod_u_and_rows_do_not_touch_each_other():
    model, histories = toy_model(), toy_histories(4)
    tokens = model.session_tokens(some_sessions(12))
    whole = logits_of(model, histories, tokens)
    for row in range(12):
        torch.testing.assert_close(whole[row], logits_of(model, histories.rows([row % 4]), tokens[[row]])[0])
    order = torch.tensor([2, 0, 3, 1])
    mixed = logits_of(model, histories.rows(order), tokens.view(3, 4, -1)[:, order].flatten(0, 1))
    torch.testing.assert_close(mixed.view(3, 4, LENGTH, -1), whole.view(3, 4, LENGTH, -1)[:, order])


def test_dropout_acts_in_training_alone():
    model, histories = toy_model(dropout=0.5), toy_histories(4)
    tokens = model.session_tokens(some_sessions(4))
    want = logits_of(toy_model(), histories, tokens)
    assert torch.equal(logits_of(model.eval(), histories, tokens), want)
    model.train()
    first, second = (logits_of(model, histories, tokens) for _ in range(2))
    assert not torch.equal(first, second)


# ---------------------------------------------------------------- learning


def test_session_tokens_are_bos_and_codes_and_only_codes_are_learned():
    model = toy_model()
    ids = torch.tensor([[1, 2, 5], [3, -1, -1], [-1, -1, -1]])
    tokens = model.session_tokens(ids)
    # [PAD, BOS, four codes of level 0, three of level 1]; item 1 is (3, 1), 2 is (0, 2), 5 is (1, 2), 3 is (1, 0).
    assert tokens.tolist() == [[1, 5, 7, 1, 2, 8, 1, 3, 8], [1, 3, 6] + [0] * 6, [0] * 9]
    padded = torch.cat([CODES, torch.tensor([[-1, -1]])])[ids]
    assert torch.equal(tokens, model.vocabulary.session_tokens(padded))
    batch = model.training_batch(toy_histories(3), ids)
    assert batch["labels"].tolist() == [
        [-100, 5, 7, -100, 2, 8, -100, 3, 8],
        [-100, 3, 6] + [-100] * 6,
        [-100] * 9,
    ]
    assert batch["attention_mask"].tolist() == [[1] * 9, [1] * 3 + [0] * 6, [0] * 9]
    assert torch.equal(batch["mask_UT"], toy_histories(3).mask_UT)


def test_the_loss_is_the_mean_surprise_at_the_codes_plus_the_balance_of_the_experts():
    model, histories = toy_model(router_aux_loss_coef=0.3), toy_histories(4)
    ids = some_sessions(4)
    ids[1, 1:], ids[3, 2:] = -1, -1
    batch = model.training_batch(histories, ids)
    with torch.no_grad():
        outputs = model(**batch)
    surprise = []
    for n in range(4):
        logp_MV = outputs.logits[n].log_softmax(-1)
        for k, item in enumerate(ids[n].tolist()):
            for level, token in enumerate(model.vocabulary.token_ids(CODES[item]).tolist() if item >= 0 else []):
                surprise.append(-logp_MV[3 * k + level, token].item())
    assert len(surprise) == 2 * (3 + 1 + 3 + 2)
    plain = sum(surprise) / len(surprise)
    assert next_token_loss(outputs.logits, batch["labels"]).item() == pytest.approx(plain, rel=1e-5)

    # Switch, eq. 4-6, over the real tokens of all layers: E times the sum of share times mean probability.
    real = (batch["input_ids"] != PAD).flatten()
    probs = torch.cat([logits.softmax(-1)[real] for logits in outputs.router_logits])
    chosen = torch.zeros_like(probs).scatter(1, probs.topk(2, dim=1).indices, 1.0)
    balance = 4 * (chosen.mean(0) * probs.mean(0)).sum().item()
    assert outputs.aux_loss.item() == pytest.approx(balance, rel=1e-5)
    assert outputs.loss.item() == pytest.approx(plain + 0.3 * balance, rel=1e-5)
    with torch.no_grad():
        bare = model(**batch, output_router_logits=False)
    assert bare.aux_loss is None and bare.router_logits is None
    assert bare.loss.item() == pytest.approx(plain, rel=1e-5)


def test_places_after_a_sessions_end_change_no_loss():
    model, histories = toy_model(), toy_histories(4)
    short, ids = some_sessions(4)[:, :2], some_sessions(4)
    ids[:, 2] = -1
    with torch.no_grad():
        losses = [model(**model.training_batch(histories, sessions)).loss for sessions in (short, ids)]
    torch.testing.assert_close(*losses)


def test_session_logp_sums_the_codes_of_the_session_and_has_gradients():
    model, histories = toy_model(), toy_histories(3)
    ids_USK = some_sessions(12).view(3, 4, K)
    ids_USK[1, 2, 1:], ids_USK[2, 0] = -1, -1
    found = session_logp(model, histories, ids_USK)
    assert found.shape == (3, 4)
    for u in range(3):
        for s in range(4):
            tokens = model.session_tokens(ids_USK[u, s][None])
            logp_MV = logits_of(model, histories.rows([u]), tokens)[0].log_softmax(-1)
            want = sum(logp_MV[m - 1, t].item() for m, t in enumerate(tokens[0].tolist()) if t > BOS)
            assert found[u, s].item() == pytest.approx(want, abs=1e-4)
    assert found[2, 0] == 0.0
    found.sum().backward()
    # Every weight takes part, save the rows of tokens that never occur.
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_the_experts_load_can_be_read_off_the_router():
    model, histories = toy_model(), toy_histories(4)
    with torch.no_grad():
        outputs = model(**model.training_batch(histories, some_sessions(4)))
    load = expert_load(outputs.router_logits, 2)
    assert load.shape == (2, 4) and len(load.unique()) > 3
    torch.testing.assert_close(load.sum(1), torch.ones(2))


# ---------------------------------------------------------------- how it starts


def fitted_tokenizer(width=5):
    """Codes with centroids, the second level's far smaller than the first's."""
    content = torch.randn(40, width, generator=torch.Generator().manual_seed(3))
    return ResidualKMeans(ResidualKMeansConfig(num_codes=(6, 8))).fit(content)


def cosines(vectors):
    return vectors @ vectors.T / vectors.square().sum()


@pytest.mark.parametrize("tied", [False, True])
def test_codes_start_at_their_centroids_rotated_into_the_models_width(tied):
    tokenizer = fitted_tokenizer()
    model = toy_model(3, tokenizer, d_model=8, tie_word_embeddings=tied)
    matrices = {SEMANTIC_STD: model.model.tokens.weight} | ({} if tied else {OUTPUT_STD: model.lm_head.weight})
    for std, matrix in matrices.items():
        starts = []
        for level, centroids in enumerate(tokenizer.codebooks):
            first = model.vocabulary.level_offset(level)
            rows = matrix[first : first + len(centroids)].detach()
            centred = centroids - centroids.mean(0)
            torch.testing.assert_close(cosines(rows), cosines(centred), rtol=1e-4, atol=1e-5)
            assert rows.std().item() == pytest.approx(std, rel=1e-4)
            starts.append((rows / rows.norm(), centred / centred.norm()))
        # One rotation for all levels: codes of different levels are as alike as their centroids.
        (rows, centred), (other_rows, other_centred) = starts
        torch.testing.assert_close(rows @ other_rows.T, centred @ other_centred.T, rtol=1e-4, atol=1e-5)
    torch.manual_seed(3)
    bare = OneRec.from_tokenizer(tokenizer, OneRecConfig(**model.config.to_dict() | {"semantic_init": False}))
    assert torch.equal(bare.model.tokens.weight[:2], model.model.tokens.weight[:2])  # PAD and BOS have no centroid
    assert bare.model.tokens.weight[2:].std().item() == pytest.approx(0.6, rel=0.3)


def test_content_wider_than_the_model_is_projected():
    model = toy_model(0, fitted_tokenizer(width=20), d_model=8)
    for matrix, std in ((model.model.tokens.weight, SEMANTIC_STD), (model.lm_head.weight, OUTPUT_STD)):
        for first, last in ((2, 8), (8, 16)):
            assert matrix[first:last].std().item() == pytest.approx(std, rel=1e-4)
            assert torch.linalg.matrix_rank(matrix[first:last]) >= 5


def test_tied_embeddings_stay_one_matrix_through_training_and_saving(tmp_path):
    tokenizer = fitted_tokenizer()
    tied, free = (toy_model(0, tokenizer, tie_word_embeddings=tie) for tie in (True, False))
    assert free.lm_head.weight is not free.model.tokens.weight
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 16 * 8
    histories = toy_histories(4)
    session_logp(tied, histories, some_sessions(4)[:, None]).sum().backward()
    torch.optim.SGD(tied.parameters(), lr=0.1).step()
    tied.save_pretrained(tmp_path)
    for model in (tied, OneRec.load(tmp_path, tokenizer)):
        assert model.lm_head.weight is model.model.tokens.weight
        assert torch.equal(model.lm_head.weight, tied.model.tokens.weight)


def test_a_model_made_from_a_tokenizer_speaks_its_codes():
    tokenizer = fitted_tokenizer()
    given = OneRecConfig(d_model=8, num_heads=2, num_codes=(99,), num_items=7, tokenizer_hash="?")
    model = OneRec.from_tokenizer(tokenizer, given)
    assert (model.config.num_codes, model.config.num_items) == ((6, 8), 40)
    assert model.config.tokenizer_hash == tokenizer.hash and given.num_items == 7
    assert torch.equal(model.vocabulary.codes(model.model.item_tokens_IL), tokenizer.codes_IL)
    assert (model.config.vocab_size, model.config.max_tokens) == (16, 15)


# ---------------------------------------------------------------- files


def test_saving_and_loading_keeps_every_bit_and_the_catalogue(tmp_path):
    model, histories = toy_model(gate_renormalise=True, encoder_layers=2), toy_histories(4)
    model.save_pretrained(tmp_path)
    torch.manual_seed(123)
    loaded = OneRec.load(tmp_path, toy_tokenizer())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.model.item_tokens_IL, model.vocabulary.token_ids(CODES))
    tokens = model.session_tokens(some_sessions(4))
    assert torch.equal(logits_of(loaded, histories, tokens), logits_of(model, histories, tokens))
    ours, theirs = (m.config.to_dict() for m in (model, loaded))
    assert {
        k: v for k, v in ours.items() if theirs[k] != v and k not in ("architectures", "dtype", "_name_or_path")
    } == {}
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.p*"))  # no pickles


def test_another_tokenizer_is_refused_in_one_line(tmp_path):
    toy_model().save_pretrained(tmp_path)
    other = toy_tokenizer(CODES.flip(0))
    with pytest.raises(ValueError, match=r"The model was trained with tokenizer '.*', not '.*'; load the") as found:
        OneRec.load(tmp_path, other)
    assert toy_tokenizer().hash in str(found.value) and other.hash in str(found.value)
    assert "\n" not in str(found.value)


def write(file, content):
    return lambda folder: (folder / file).write_bytes(content)


def edit_config(**values):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def edit_weights(change):
    def edit(folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, metadata={"format": "pt"})

    return edit


DAMAGE = {
    "no folder": shutil.rmtree,
    "no config": lambda folder: (folder / "config.json").unlink(),
    "half a config": write("config.json", b'{"d_model": 8,'),
    "another thing's config": write("config.json", b"[]"),
    "an empty config": write("config.json", b"{}"),
    "a wrong type": edit_config(d_model="wide"),
    "a wider config": edit_config(d_model=16),
    "a deeper config": edit_config(decoder_layers=3),
    "a larger catalogue": edit_config(num_items=NUM_ITEMS + 1),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no header": write("model.safetensors", b"\x10"),
    "half the weights": lambda folder: write(
        "model.safetensors", (folder / "model.safetensors").read_bytes()[:-500]
    )(folder),
    "a weight is missing": edit_weights(lambda weights: weights.pop("model.norm.weight")),
    "the catalogue is missing": edit_weights(lambda weights: weights.pop("model.item_tokens_IL")),
    "a weight too many": edit_weights(lambda weights: weights.update(extra=torch.ones(2))),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_in_one_line(damage, tmp_path):
    folder = tmp_path / "agent"
    toy_model().save_pretrained(folder)
    DAMAGE[damage](folder)
    with pytest.raises(ValueError, match=r"Cannot read the model in .*/agent \(.*\); restore it or train") as found:
        OneRec.load(folder, toy_tokenizer())
    assert "\n" not in str(found.value)


def test_sessions_longer_than_the_model_are_refused():
    model = toy_model()
    with pytest.raises(ValueError, match=f"Sessions of 4 items exceed the model's session_length={K}"):
        model.start(toy_histories(2), 4 * 3)
    state = model.start(toy_histories(2), LENGTH)
    assert state.cache.shape[2] == LENGTH


def test_a_history_is_all_the_columns_of_a_batch():
    histories = toy_histories(3)
    columns = history_columns(histories)
    assert [*columns, "earlier_UJ"] == list(vars(histories)) and EventBatch(**columns).mask_UT is histories.mask_UT
