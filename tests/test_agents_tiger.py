import json
import math
from dataclasses import replace

import pytest
import torch
from toy_agents import CODES, NUM_CODES, NUM_ITEMS, K, T, scribbled, toy_histories, toy_tokenizer
from transformers import T5Config, T5ForConditionalGeneration

from feedgym.agents.alignment.dpo import DPORoundConfig, dpo_round
from feedgym.agents.generation import beam_sessions, sample_sessions, score_sessions
from feedgym.agents.layers.history import ages_s, newest_events
from feedgym.agents.layers.relative_bias import RelativeBias, bucket_of
from feedgym.agents.pretrain import PretrainConfig, SessionDataset, pretrain
from feedgym.agents.session_model import SessionRecommender, history_columns, session_logp
from feedgym.agents.tiger import Tiger, TigerConfig, user_token
from feedgym.data.batches import EventBatch, Preferences
from feedgym.data.events import BEHAVIOUR_IDX
from feedgym.tokenizers import RQVAE, RQVAEConfig

SIZES = dict(
    d_model=8,
    num_heads=2,
    head_width=6,
    encoder_layers=2,
    decoder_layers=2,
    d_ff=12,
    num_buckets=8,
    max_distance=10,
    num_user_tokens=7,
    session_length=K,
    history_length=T,
    profile_sizes=(3, 2),
    only_positives=False,
    dropout=0.0,
)
LEVELS = len(NUM_CODES)


def tiger(seed=0, tokenizer=None, **sizes):
    """An untrained model whose every weight matters."""
    torch.manual_seed(seed)
    model = Tiger.from_tokenizer(tokenizer or toy_tokenizer(), TigerConfig(**SIZES | sizes))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    torch.nn.init.normal_(model.lm_head.weight)
    return model.eval()


def some_sessions(num, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(NUM_ITEMS, generator=rng)[:K] for _ in range(num)])


def logits_of(model, histories, tokens):
    with torch.no_grad():
        return model(input_ids=tokens, **history_columns(histories)).logits


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (8, 10)])
def test_buckets_hold_one_near_distance_each_and_far_ones_by_their_logarithm(bidirectional, num_buckets, max_distance):
    def plain(distance):
        buckets, start = num_buckets, 0
        if bidirectional:
            buckets //= 2
            start = buckets if distance > 0 else 0
            distance = abs(distance)
        else:
            distance = max(-distance, 0)
        exact = buckets // 2
        if distance < exact:
            return start + distance
        grown = math.log(distance / exact) / math.log(max_distance / exact) * (buckets - exact)
        return start + min(exact + int(grown + 1e-6), buckets - 1)

    distances = torch.arange(-200, 201)
    found = bucket_of(distances, num_buckets, max_distance, bidirectional)
    assert found.tolist() == [plain(d) for d in distances.tolist()]


def test_the_bias_of_the_last_queries_is_the_end_of_the_whole_bias():
    bias = RelativeBias(3, 8, 10, bidirectional=False)
    whole = bias(9)
    assert whole.shape == (3, 9, 9)
    torch.testing.assert_close(bias(9, 2), whole[:, -2:])
    for q in range(9):
        for k in range(q + 1):
            torch.testing.assert_close(whole[:, q, k], bias.bias.weight[bucket_of(torch.tensor(k - q), 8, 10, False)])


def as_t5(model):
    """transformers' T5 with this model's weights."""
    c = model.config
    config = T5Config(
        vocab_size=c.vocab_size, d_model=c.d_model, d_kv=c.head_width, d_ff=c.d_ff, num_layers=c.encoder_layers,
        num_decoder_layers=c.decoder_layers, num_heads=c.num_heads, relative_attention_num_buckets=c.num_buckets,
        relative_attention_max_distance=c.max_distance, dropout_rate=0.0,
        feed_forward_proj="relu", layer_norm_epsilon=1e-6,
    )  # fmt: skip
    t5, ours = T5ForConditionalGeneration(config).eval(), dict(model.named_parameters())
    t5.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # it always ties, and scales what was tied
    t5.config.scale_decoder_outputs = c.tie_word_embeddings
    state = {"shared.weight": ours["model.tokens.weight"], "lm_head.weight": model.lm_head.weight}
    for stack, name in (("encoder", "model.encoder"), ("decoder", "model")):
        attention = f"{stack}.block.0.layer.0.SelfAttention"
        state[f"{attention}.relative_attention_bias.weight"] = ours[f"{name}.bias.bias.weight"]
        state[f"{stack}.final_layer_norm.weight"] = ours[f"{name}.norm.weight"]
        state[f"{stack}.embed_tokens.weight"] = ours["model.tokens.weight"]
        for i in range(getattr(c, f"{stack}_layers")):
            block, layer = f"{stack}.block.{i}.layer", f"{name}.layers.{i}"
            q, k, v = ours[f"{layer}.attention.qkv.weight"].chunk(3)
            parts = {"q": q, "k": k, "v": v, "o": ours[f"{layer}.attention.out.weight"]}
            state |= {f"{block}.0.SelfAttention.{n}.weight": w for n, w in parts.items()}
            state[f"{block}.0.layer_norm.weight"] = ours[f"{layer}.norm_attention.weight"]
            last = 1
            if stack == "decoder":
                k, v = ours[f"{layer}.cross.kv.weight"].chunk(2)
                parts = {"q": ours[f"{layer}.cross.q.weight"], "k": k, "v": v, "o": ours[f"{layer}.cross.out.weight"]}
                state |= {f"{block}.1.EncDecAttention.{n}.weight": w for n, w in parts.items()}
                state[f"{block}.1.layer_norm.weight"] = ours[f"{layer}.norm_cross.weight"]
                last = 2
            state[f"{block}.{last}.DenseReluDense.wi.weight"] = ours[f"{layer}.up.weight"]
            state[f"{block}.{last}.DenseReluDense.wo.weight"] = ours[f"{layer}.down.weight"]
            state[f"{block}.{last}.layer_norm.weight"] = ours[f"{layer}.norm_ff.weight"]
    missing, unexpected = t5.load_state_dict(state, strict=False)
    assert not unexpected and not missing
    return t5


@pytest.mark.parametrize("tied", [False, True])
def test_the_forward_pass_is_that_of_transformers_t5(tied):
    """User by user, without padding: [user token, codes of the history] in, decoder sequences out."""
    model, histories = tiger(tie_word_embeddings=tied), toy_histories(5)
    t5 = as_t5(model)
    tokens = model.session_tokens(some_sessions(10))
    found = logits_of(model, histories, tokens)
    assert found.shape == (10, K * (LEVELS + 1), 2 + sum(NUM_CODES))
    users_UD = model.model.encoder.users(user_token(histories.profile_UF, 7))
    for row in range(10):
        history = histories.rows([row % 5])
        seen = history.item_ids_UT[history.mask_UT]
        codes = model.vocabulary.token_ids(CODES[seen]).flatten() if len(seen) else torch.zeros(0, dtype=torch.long)
        embedded = torch.cat([users_UD[[row % 5]], model.model.tokens(codes)])
        with torch.no_grad():
            want = t5(inputs_embeds=embedded[None], decoder_input_ids=tokens[[row]]).logits[0]
        torch.testing.assert_close(found[row], want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("features", [False, True])
def test_cached_decoding_equals_teacher_forcing(features):
    model, histories = tiger(event_features=features), toy_histories(6)
    drawn = sample_sessions(model, toy_tokenizer().trie(), histories, 5, K, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.logp_US, session_logp(model, histories, drawn.item_ids_USK).detach())
    assert drawn.logp_US.std() > 0.5
    assert all(len(set(s)) == K for s in drawn.item_ids_USK.flatten(0, 1).tolist())


def test_the_beam_is_the_best_of_all_sessions():
    model, histories, trie = tiger(), toy_histories(4), toy_tokenizer().trie()
    every = torch.tensor([[a, b] for a in range(NUM_ITEMS) for b in range(NUM_ITEMS) if a != b])
    scored = score_sessions(model, trie, histories, every.expand(4, -1, -1), block_seen=False)
    best = scored.logp_US.sort(dim=1, descending=True)
    found = beam_sessions(model, trie, histories, 64, 2, block_seen=False)
    assert found.logp_US.shape == (4, 30)
    torch.testing.assert_close(found.logp_US, best.values)
    for u in range(4):
        assert torch.equal(found.item_ids_USK[u, :5], every[best.indices[u, :5]])


def test_items_that_share_their_content_are_told_apart_by_the_counter():
    """Four items, two contents: the paper's last code ranks the items of a group, and each list holds every item."""
    content = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.5], [1.0, 0.0]])
    tokenizer = RQVAE(RQVAEConfig(num_codes=(2,), latent_width=2, steps=30, batch_size=4)).fit(content)
    assert tokenizer.codes_IL[:, 1].tolist() == [0, 1, 0, 2]
    model, histories = tiger(tokenizer=tokenizer), toy_histories(3, num_items=4)
    agent = SessionRecommender(model, tokenizer, 1)
    agent.sampling = replace(agent.sampling, block_seen=False)
    ranked = agent.beams(histories, 10)
    assert ranked.item_ids_USK.shape == (3, 4, 1)
    for u in range(3):
        assert sorted(ranked.item_ids_USK[u, :, 0].tolist()) == [0, 1, 2, 3]
        for item, logp in zip(ranked.item_ids_USK[u, :, 0], ranked.logp_US[u], strict=True):
            want = session_logp(model, histories.rows([u]), item.view(1, 1, 1)).item()
            assert logp.item() == pytest.approx(want, abs=1e-4)


# ---------------------------------------------------------------- invariances


def test_tokens_change_what_comes_after_them_and_nothing_before():
    model, histories = tiger(), toy_histories(4)
    tokens = model.session_tokens(some_sessions(4))
    before = logits_of(model, histories, tokens)
    for m in range(tokens.shape[1]):
        changed = tokens.clone()
        changed[:, m] = (changed[:, m] + 1) % model.config.vocab_size
        after = logits_of(model, histories, changed)
        torch.testing.assert_close(after[:, :m], before[:, :m])
        assert ((after - before)[:, m:].abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("features", [False, True])
def test_the_content_and_the_amount_of_padding_change_nothing(features):
    model, histories = tiger(event_features=features), toy_histories(8)
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(T) < T - 2))
    tokens = model.session_tokens(some_sessions(8))
    want = logits_of(model, histories, tokens)
    for less in range(3):
        torch.testing.assert_close(logits_of(model, scribbled(histories).events(slice(T - less)), tokens), want)


def test_row_r_reads_history_r_mod_u_and_rows_do_not_touch_each_other():
    model, histories = tiger(), toy_histories(4)
    tokens = model.session_tokens(some_sessions(12))
    whole = logits_of(model, histories, tokens)
    for row in range(12):
        torch.testing.assert_close(whole[row], logits_of(model, histories.rows([row % 4]), tokens[[row]])[0])


def test_what_the_paper_reads_matters_and_nothing_else_does():
    histories = toy_histories(2).rows([1])
    features = ("behaviours_UTB", "watch_fraction_UT", "gap_s_UT", "time_of_day_U")
    for model, matter in ((tiger(), ()), (tiger(event_features=True), features)):
        tokens = model.session_tokens(some_sessions(1))
        before = logits_of(model, histories, tokens)
        for name in ("item_ids_UT", "profile_UF", *features):
            column = getattr(histories, name).clone()
            column[0] = 1 - column[0] if name != "item_ids_UT" else (column[0] + 1) % NUM_ITEMS
            if name == "profile_UF":
                column = (histories.profile_UF + 1) % torch.tensor([3, 2])
            moved = (logits_of(model, replace(histories, **{name: column}), tokens) - before).abs().max()
            assert (moved > 1e-4) == (name in ("item_ids_UT", "profile_UF", *matter)), name
        turned = replace(histories, item_ids_UT=histories.item_ids_UT.flip(1))
        assert (logits_of(model, turned, tokens) - before).abs().max() > 1e-4  # the order of the history counts


def test_only_the_newest_positive_items_are_read():
    model, every = tiger(only_positives=True, history_length=2, positives=("like", "hate")), tiger(history_length=T)
    histories = toy_histories(6, seed=2)
    chosen = [BEHAVIOUR_IDX[name] for name in ("like", "hate")]
    liked_UT = (histories.behaviours_UTB[..., chosen] > 0).any(-1) & histories.mask_UT
    assert liked_UT.sum(1).max() > 2
    items = [histories.item_ids_UT[u][liked_UT[u]][-2:] for u in range(6)]
    mask_U2 = torch.tensor([[len(row) > 0, len(row) > 1] for row in items])
    read = EventBatch(
        item_ids_UT=torch.stack([torch.nn.functional.pad(row, (0, 2 - len(row))) for row in items]),
        behaviours_UTB=torch.zeros(6, 2, 7),
        watch_fraction_UT=torch.zeros(6, 2),
        gap_s_UT=torch.zeros(6, 2),
        mask_UT=mask_U2,
        profile_UF=histories.profile_UF,
        time_of_day_U=histories.time_of_day_U,
    )
    tokens = model.session_tokens(some_sessions(6))
    torch.testing.assert_close(logits_of(model, histories, tokens), logits_of(every, read, tokens))


def test_kept_events_keep_their_columns_and_their_ages():
    histories = toy_histories(8)
    keep_UT = histories.mask_UT & (torch.arange(T) % 3 != 1)
    kept = newest_events(histories, keep_UT, 3)
    for u in range(8):
        places = keep_UT[u].nonzero()[:, 0].tolist()[-3:]
        assert kept.mask_UT[u].sum() == len(places)
        for name in ("item_ids_UT", "behaviours_UTB", "watch_fraction_UT"):
            assert torch.equal(getattr(kept, name)[u, : len(places)], getattr(histories, name)[u, places])
        torch.testing.assert_close(ages_s(kept)[u, : len(places)], ages_s(histories)[u, places])
    assert kept.item_ids_UT.shape[1] <= 3


def test_users_are_hashed_by_their_whole_profile():
    profiles = torch.cartesian_prod(torch.arange(8), torch.arange(8), torch.arange(8))
    tokens = user_token(profiles, 2000)
    assert torch.equal(tokens, user_token(profiles, 2000)) and tokens.min() >= 0 and tokens.max() < 2000
    assert len(tokens.unique()) > 400  # 512 balls in 2,000 bins: 452 bins expected
    assert user_token(torch.zeros(3, 0, dtype=torch.long), 1).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="num_user_tokens=9 must be 1"):
        TigerConfig(num_user_tokens=9)


# ---------------------------------------------------------------- learning, files, alignment


def test_it_starts_near_a_uniform_guess_at_the_papers_sizes():
    """12.5 million weights without the vocabulary's (the paper says about 13 with it), activations of size 1."""
    tokenizer = toy_tokenizer()
    torch.manual_seed(0)
    model = Tiger.from_tokenizer(tokenizer, TigerConfig()).eval()
    assert sum(p.numel() for p in model.model.layers.parameters()) == 4 * (2 * 4 * 128 * 384 + 2 * 128 * 1024 + 3 * 128)
    batch = model.training_batch(toy_histories(32), some_sessions(32)[:, :1])
    with torch.no_grad():
        loss = model(**batch).loss.item()
    assert loss == pytest.approx(math.log(model.config.vocab_size), abs=1.0)


def test_it_learns_the_next_item_from_the_history(tmp_path):
    """The next item is the one after the newest: only a model that reads history and codes can tell."""
    histories = toy_histories(300, seed=4)
    keep = histories.mask_UT.any(1)
    histories = histories.rows(keep)
    newest = histories.item_ids_UT.gather(1, (histories.mask_UT.sum(1, keepdim=True) - 1))
    targets = (newest + 1) % NUM_ITEMS
    model = tiger(session_length=1, d_model=32, d_ff=64)
    data = SessionDataset(histories=histories, item_ids_NK=targets)
    settings = PretrainConfig(steps=100, batch_size=32, warmup_steps=10, lr=5e-3, schedule="inverse_sqrt")
    pretrain(model, data, settings, tmp_path)
    agent = SessionRecommender(model, toy_tokenizer(), 1)
    agent.sampling = replace(agent.sampling, block_seen=False)
    assert (agent.recommend(histories).item_ids_USK[:, 0] == targets).float().mean() > 0.8  # chance: 1/6
    again = Tiger.load(tmp_path, toy_tokenizer())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["num_codes"] == list(NUM_CODES)
    other = toy_tokenizer(CODES.flip(0))
    with pytest.raises(ValueError, match="was trained with tokenizer"):
        Tiger.load(tmp_path, other)


def test_a_round_of_alignment_starts_at_ln_2_and_prefers_the_chosen(tmp_path):
    model, histories = tiger(dropout=0.2).train(), toy_histories(24, seed=3)
    pairs = Preferences(
        user_idx_P=torch.arange(24),
        chosen_PK=some_sessions(24, 1),
        rejected_PK=some_sessions(24, 2),
        logged_PK=some_sessions(24, 3),
        score_chosen_P=torch.ones(24),
        score_rejected_P=torch.zeros(24),
    )
    before = session_logp(tiger(), histories, pairs.chosen_PK[:, None]).detach()
    config = DPORoundConfig(epochs=10, batch_size=12, learning_rate=1e-2, ntp_weight=0.01)
    metrics = dpo_round(model, histories, pairs, config, tmp_path)
    assert metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["first_margin"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["accuracy"] > 0.8 and metrics["margin"] > 0.2
    assert model.training and "forward" not in model.__dict__
    after = session_logp(model.eval(), histories, pairs.chosen_PK[:, None]).detach()
    assert metrics["chosen_logp_change"] == pytest.approx((after - before).mean().item(), abs=1e-3)
