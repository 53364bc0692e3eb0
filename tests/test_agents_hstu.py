"""HSTU against loops written from the equations, and cached decoding against whole sequences."""

import math
from dataclasses import replace

import pytest
import torch
from toy_agents import toy_histories

from feedgym.agents.generation import SamplingConfig
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender, stochastic_length
from feedgym.agents.layers.hstu import CausalTimes, HSTULayer
from feedgym.agents.layers.relative_time import time_buckets
from feedgym.agents.pretrain import PretrainConfig, SessionDataset, pretrain
from feedgym.agents.sequences import IGNORED, SequenceDataset, Sequences
from feedgym.agents.session_model import session_logp

NUM_ITEMS, T, K = 12, 6, 3
KINDS = {
    "items": dict(stream="items"),
    "events": dict(stream="events", profile_sizes=(3, 2), only_positives=False),
    "no times, two heads": dict(use_time=False, num_heads=2, d_qk=3, concat_ua=True),
}


def toy(seed=0, **sizes):
    """An untrained model whose every weight matters."""
    torch.manual_seed(seed)
    given = dict(
        d_model=8, num_layers=2, d_qk=5, d_v=4, num_items=NUM_ITEMS, history_length=T, session_length=K, dropout=0.0
    )
    model = HSTU(HSTUConfig(**given | sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


def toy_sessions(model, histories, n=5):
    return HSTURecommender(model, sampling=SamplingConfig(block_seen=False)).sample(
        histories, n, torch.Generator().manual_seed(3)
    )


def as_one_sequence(model, histories, item_ids_K, user):
    """One user's history with a session appended as events at the moment of the request, and where the session is."""
    known = Sequences.of(histories.rows(slice(user, user + 1)), model.config, T)
    p = int(known.length_U)
    idx = torch.arange(p)[None]
    kept = known.positions(idx)
    now_s = kept.request_s_UZ[0, -1]
    more = len(item_ids_K)

    def grown(column, value):
        return torch.cat([column, value.reshape(1, more, *column.shape[2:]).to(column)], dim=1)

    columns = vars(kept) | {
        "item_ids_UZ": grown(kept.item_ids_UZ, item_ids_K),
        "behaviours_UZB": grown(kept.behaviours_UZB, torch.zeros(more * kept.behaviours_UZB.shape[2])),
        "mask_UZ": grown(kept.mask_UZ, torch.ones(more)),
        "next_UZ": grown(kept.next_UZ, torch.full((more,), IGNORED)),
    }
    for name in ("watch_fraction_UZ", "begin_s_UZ", "request_s_UZ"):
        value = torch.zeros(more) if "watch" in name else now_s.repeat(more)
        columns[name] = grown(columns[name], value)
    return Sequences(**columns), p


@pytest.mark.parametrize("concat_ua", [False, True])
def test_the_layer_is_the_loop_written_from_the_equations(concat_ua, monkeypatch):
    monkeypatch.setattr("feedgym.agents.layers.hstu.QUERIES_PER_BLOCK", 2)
    torch.manual_seed(1)
    num, width, heads, d_qk, d_v, n_const = 5, 6, 2, 3, 4, 9
    layer = HSTULayer(width, heads, d_qk, d_v, n_const, True, concat_ua, 0.0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.7)
    x = torch.randn(num, width, dtype=torch.float64)
    begin_s = torch.tensor([0.0, 10, 4000, 90000, 90060], dtype=torch.float64)
    request_s = torch.tensor([10.0, 4000, 90000, 90060, 1e7], dtype=torch.float64)  # of the next event

    def norm(v):
        mean = sum(v) / len(v)
        var = sum((a - mean) ** 2 for a in v) / len(v)
        return [(a - mean) / math.sqrt(var + 1e-6) for a in v]

    def silu(a):
        return a / (1 + math.exp(-a))

    position, time = layer.bias.position.tolist(), layer.bias.time.tolist()
    w, out_w, out_b = layer.uvqk.tolist(), layer.out.weight.tolist(), layer.out.bias.tolist()
    rows = []
    for i in range(num):
        normed = norm(x[i].tolist())
        rows.append([silu(sum(normed[d] * w[d][c] for d in range(width))) for c in range(len(w[0]))])
    begin_v, begin_q, begin_k = heads * d_v, 2 * heads * d_v, 2 * heads * d_v + heads * d_qk
    expected = []
    for i in range(num):
        av = []
        for h in range(heads):
            total = [0.0] * d_v
            for j in range(i + 1):
                q = rows[i][begin_q + h * d_qk : begin_q + (h + 1) * d_qk]
                k = rows[j][begin_k + h * d_qk : begin_k + (h + 1) * d_qk]
                bucket = min(int(math.log(max(abs(float(request_s[i] - begin_s[j])), 1)) / 0.301), 128)
                rab = float(position[i - j + n_const - 1]) + float(time[bucket])
                a = silu(sum(a * b for a, b in zip(q, k, strict=True)) + rab) / n_const
                for c in range(d_v):
                    total[c] += a * rows[j][begin_v + h * d_v + c]
            av += total
        a, u = norm(av), rows[i][: heads * d_v]
        ua = [b * c for b, c in zip(u, a, strict=True)]
        gated = [*u, *a, *ua] if concat_ua else ua
        expected.append(
            [float(x[i, d]) + out_b[d] + sum(g * o for g, o in zip(gated, out_w[d], strict=True)) for d in range(width)]
        )
    got, _, _ = layer(x[None], CausalTimes(request_s_UM=request_s[None], begin_s_UM=begin_s[None], use_time=True))
    torch.testing.assert_close(got[0], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, 0), (0.3, 0), (1, 0), (1.36, 1), (-60, 13), (86400, 37), (1e30, 128)]
)
def test_time_buckets_are_logarithmic(seconds, bucket):
    assert time_buckets(torch.tensor([seconds], dtype=torch.float64)).tolist() == [bucket]


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_other_users_and_padding_change_nothing(kind):
    model, histories = toy(**KINDS[kind]), toy_histories(6, num_items=NUM_ITEMS)
    sequences = Sequences.of(histories, model.config, T)
    hidden = model.encode(sequences)
    later = torch.arange(hidden.shape[1]) >= 4
    changed = replace(
        sequences,
        item_ids_UZ=torch.where(later, (sequences.item_ids_UZ + 1) % NUM_ITEMS, sequences.item_ids_UZ),
        behaviours_UZB=torch.where(later[:, None], 1 - sequences.behaviours_UZB, sequences.behaviours_UZB),
        begin_s_UZ=torch.where(later, sequences.begin_s_UZ + 500, sequences.begin_s_UZ),
        request_s_UZ=torch.where(later, sequences.request_s_UZ + 500, sequences.request_s_UZ),
    )
    after = model.encode(changed)
    assert torch.equal(after[:, :4], hidden[:, :4]) and not torch.allclose(after[-1, 4:], hidden[-1, 4:])
    padding = ~sequences.mask_UZ
    scribbled = replace(
        sequences,
        item_ids_UZ=sequences.item_ids_UZ.masked_fill(padding, 3),
        begin_s_UZ=sequences.begin_s_UZ.masked_fill(padding, 7e8),
    )
    assert torch.equal(model.encode(scribbled)[sequences.mask_UZ], hidden[sequences.mask_UZ])
    alone = torch.cat([model.encode(sequences.rows(slice(u, u + 1))) for u in range(6)])
    torch.testing.assert_close(alone, hidden, atol=1e-6, rtol=1e-5)


def test_only_the_time_of_the_request_moves_with_a_later_request():
    histories = toy_histories(6, num_items=NUM_ITEMS)
    last = torch.arange(T) == histories.mask_UT.sum(1, keepdim=True) - 1
    later = replace(histories, gap_s_UT=histories.gap_s_UT + 1e6 * last)
    assert not torch.allclose(toy().scores(later)[1:], toy().scores(histories)[1:])
    assert torch.equal(toy(use_time=False).scores(later), toy(use_time=False).scores(histories))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_decoding_teacher_forcing_and_whole_sequences_agree(kind):
    model, histories = toy(**KINDS[kind]), toy_histories(5, num_items=NUM_ITEMS)
    sessions = toy_sessions(model, histories)
    with torch.no_grad():
        forced_US = session_logp(model, histories, sessions.item_ids_USK)
        torch.testing.assert_close(sessions.logp_US, forced_US, atol=1e-5, rtol=1e-5)
        model._actions = lambda sequences, known=model._actions: (
            (  # the session's actions are unknown
                torch.where(
                    sequences.mask_UZ.cumsum(1)[..., None] > p,
                    model.unknown_action.weight[0],
                    known(sequences),
                )
            )
            if model.config.stream == "events"
            else None
        )
        for user in range(5):
            for s in range(2):
                items_K = sessions.item_ids_USK[user, s]
                sequence, p = as_one_sequence(model, histories, items_K, user)
                logp = model.item_logits(model.encode(sequence)[0, p - 1 : p - 1 + K]).log_softmax(-1)
                whole = logp[torch.arange(K), items_K].sum()
                torch.testing.assert_close(whole, sessions.logp_US[user, s], atol=1e-5, rtol=1e-5)


def test_beams_are_the_best_sessions_of_all():
    model, histories = toy(num_items=5), toy_histories(4, num_items=5)
    agent = HSTURecommender(model, session_length=2, sampling=SamplingConfig(block_seen=False))
    found = agent.beams(histories, 20)
    pairs = torch.tensor([(a, b) for a in range(5) for b in range(5) if a != b])
    with torch.no_grad():
        logp_US = session_logp(model, histories, pairs.expand(4, -1, -1))
    best_US, order_US = logp_US.sort(dim=1, descending=True)
    torch.testing.assert_close(found.logp_US, best_US, atol=1e-5, rtol=1e-5)
    assert torch.equal(found.item_ids_USK[:, 0], pairs[order_US[:, 0]])


def test_128_sessions_a_user_have_different_items_and_reproduce():
    model, histories = toy(), toy_histories(3, num_items=NUM_ITEMS)
    first, again = (toy_sessions(model, histories, 128) for _ in range(2))
    assert torch.equal(first.item_ids_USK, again.item_ids_USK)
    ordered = first.item_ids_USK.sort(-1).values
    assert first.item_ids_USK.shape == (3, 128, K) and (ordered[..., 1:] != ordered[..., :-1]).all()
    with pytest.raises(ValueError, match="session_length=3"):
        HSTURecommender(model, session_length=4).sample(histories, 1, torch.Generator())


def test_sessions_are_learned_by_their_labels_alone():
    model, histories = toy(), toy_histories(4, num_items=NUM_ITEMS)
    ids_NK = torch.tensor([[1, 2, 3], [4, 5, -1], [6, -1, -1], [7, 8, 9]])
    batch = model.training_batch(histories, ids_NK)
    loss = model(**batch).loss
    logp = []
    for user, ids in enumerate(ids_NK.tolist()):
        real = [i for i in ids if i >= 0]
        sequence, p = as_one_sequence(model, histories, torch.tensor(real), user)
        rows = model.item_logits(model.encode(sequence)[0]).log_softmax(-1)
        logp += [rows[p - 1 + k, item] for k, item in enumerate(real)]
    torch.testing.assert_close(loss, -torch.stack(logp).mean(), atol=1e-5, rtol=1e-5)
    assert all(p.grad is not None for p in [loss.backward(), *model.parameters()][1:])


@pytest.mark.parametrize("sizes", [dict(loss="ce"), dict(loss="bce", num_negatives=1), dict(num_negatives=3)])
def test_sessions_are_judged_over_the_whole_catalogue_and_learned_so_except_by_a_sampled_softmax(sizes):
    model, histories = toy(**sizes), toy_histories(9, num_items=NUM_ITEMS)
    sessions = toy_sessions(model, histories, 1).item_ids_USK
    batch = model.training_batch(histories, sessions[:, 0])
    expected = -session_logp(model.eval(), histories, sessions).mean() / K
    torch.testing.assert_close(model(**batch).loss, expected)
    learned = model.train()(**batch)
    if "loss" in sizes:
        torch.testing.assert_close(learned.loss, expected)
    else:
        assert learned.logits is None and abs(learned.loss - expected) > 1e-3


def test_a_sampled_softmax_learns_sessions_against_drawn_negatives():
    model, histories = toy(num_negatives=3), toy_histories(4, num_items=NUM_ITEMS)
    first, second = [[1, 2, 3], [4, 5, -1], [6, -1, -1], [7, 8, 9]], [[9, 1, -1], [-1, -1, -1], [2, 3, 4], [0, 7, 5]]
    ids_NK = torch.tensor(first + second)  # two sessions per user
    batch = model.training_batch(histories, ids_NK)
    with torch.no_grad():
        logits_RKI = model(**{**batch, "labels": None}).logits[:, ::2, model.vocabulary.level_offset(0) :]
    torch.manual_seed(5)
    loss = model.train()(**batch).loss
    torch.manual_seed(5)
    negative_NS, losses, n = torch.randint(NUM_ITEMS, (int((ids_NK >= 0).sum()), 3)), [], 0
    for user in range(4):  # users, their sessions, items
        for row in (user, user + 4):
            for k, item in enumerate(ids_NK[row].tolist()):
                if item >= 0:
                    others = [i for i in negative_NS[n].tolist() if i != item]
                    losses.append(-logits_RKI[row, k, [item, *others]].log_softmax(0)[0])
                    n += 1
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    loss.backward()
    assert model.items.weight.grad.abs().sum() > 0


def test_an_agent_that_learned_by_a_sampled_softmax_writes_what_follows_among_candidates(tmp_path):
    """Item i + 1 follows item i, of 300 items."""
    num_items, length = 300, 4
    torch.manual_seed(0)
    begin_N1 = torch.randint(num_items, (600, 1))
    items_NT = (begin_N1 + torch.arange(length + K)) % num_items
    told = toy_histories(600, num_items=num_items, length=length)
    histories = replace(
        told, item_ids_UT=items_NT[:, :length].contiguous(), mask_UT=torch.ones_like(told.mask_UT),
        behaviours_UTB=torch.ones_like(told.behaviours_UTB),
    )  # fmt: skip
    sizes = dict(d_model=24, d_qk=12, d_v=12, num_items=num_items, history_length=length, session_length=K)
    model = HSTU(HSTUConfig(**sizes, num_layers=1, dropout=0.0, use_time=False, num_negatives=32))
    config = PretrainConfig(steps=250, batch_size=64, lr=2e-2, warmup_steps=10)
    pretrain(model, SessionDataset(histories=histories, item_ids_NK=items_NT[:, length:]), config, tmp_path)
    agent = HSTURecommender(model, sampling=SamplingConfig(candidates=12))
    asked = histories.rows(slice(50))
    drawn = agent.sample(asked, 8, torch.Generator().manual_seed(0)).item_ids_USK
    right = drawn == (asked.item_ids_UT[:, None, -1:] + 1 + torch.arange(K)) % num_items
    assert right[..., 0].float().mean() > 0.85 and right.float().mean() > 0.5  # by chance 1 of 12


def test_stochastic_length_keeps_what_it_should():
    histories = toy_histories(4000, num_items=NUM_ITEMS, length=16)
    model = toy(history_length=16, only_positives=False)
    sequences = Sequences.of(histories, model.config, 16)
    cut = stochastic_length(sequences, 1.5, 16, torch.Generator().manual_seed(0))  # 16^0.75 = 8
    before, after = sequences.length_U - 1, cut.length_U - 1
    assert (after[before <= 8] == before[before <= 8]).all()
    for n in (10, 13, 16):
        share = (after[before == n] == n).float().mean()
        assert set(after[before == n].tolist()) <= {8, n} and share == pytest.approx(64 / n**2, abs=0.1)
    # The order stays, each position keeps what truly came next and when, and recent events stay more often.
    real = cut.mask_UZ[:, 1:] & cut.mask_UZ[:, :-1]
    assert (cut.begin_s_UZ.diff(dim=1)[real] >= 0).all()
    user = int((after < before).nonzero()[0])
    where = {float(t): p for p, t in enumerate(sequences.begin_s_UZ[user, 1:].tolist(), 1)}
    for p in range(1, int(cut.length_U[user])):
        old = where[float(cut.begin_s_UZ[user, p])]
        for name in ("item_ids_UZ", "next_UZ", "request_s_UZ"):
            assert getattr(cut, name)[user, p] == getattr(sequences, name)[user, old]
    full = (before == 16) & (after == 8)
    oldest, newest = (
        (cut.begin_s_UZ[full, 1:9] == sequences.begin_s_UZ[full, p, None]).any(1).float().mean() for p in (1, 16)
    )
    assert newest > oldest + 0.05
    assert torch.equal(stochastic_length(sequences, 2.0, 16).item_ids_UZ, sequences.item_ids_UZ)


def test_a_killed_training_draws_the_same_lengths_and_hidden_actions(tmp_path):
    random = dict(stochastic_alpha=1.2, hide_actions=0.3, dropout=0.2, num_negatives=5)
    examples = SequenceDataset(histories=toy_histories(24, num_items=NUM_ITEMS))
    config = PretrainConfig(epochs=2, batch_size=8, lr=1e-2, checkpoint_steps=2)

    def train(seed, folder, progress=None):
        model = toy(seed, **KINDS["events"], **random)
        pretrain(model, examples, config, tmp_path / folder, progress)
        return model

    def dies(step, steps, metrics):
        if step == 5:
            raise KeyboardInterrupt

    calm = train(0, "calm")
    with pytest.raises(KeyboardInterrupt):
        train(0, "killed", dies)
    torch.rand(7)
    again = train(1, "killed")
    assert all(torch.equal(value, calm.state_dict()[name]) for name, value in again.state_dict().items())


def test_stochastic_length_is_drawn_in_training_alone_and_not_where_batches_are_made():
    model = toy(stochastic_alpha=1.2, only_positives=False, loss="ce")
    histories = toy_histories(24, num_items=NUM_ITEMS)
    state = torch.get_rng_state()
    batch = model.sequence_batch(histories)
    assert torch.equal(torch.get_rng_state(), state)  # batches are made ahead: drawing here would break resuming
    whole = {model(**batch).loss.item() for _ in range(3)}
    cut = {model.train()(**batch).loss.item() for _ in range(3)}
    assert len(whole) == 1 and len(cut) == 3


def test_it_is_saved_and_loaded_with_its_options(tmp_path):
    model, histories = toy(**KINDS["events"]), toy_histories(4, num_items=NUM_ITEMS)
    model.save_pretrained(tmp_path)
    loaded = HSTU.load(tmp_path)
    assert loaded.config.stream == "events" and torch.equal(loaded.scores(histories), model.scores(histories))
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="train again"):
        HSTU.load(tmp_path)


def test_wrong_options_are_refused():
    for wrong in (dict(stream="both"), dict(stochastic_alpha=3.0), dict(hide_actions=2.0), dict(loss="mse")):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            HSTUConfig(num_items=5, **wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_long_histories_have_the_same_gradients_without_keeping_any_weights(kind, monkeypatch):
    """Blocks whose attention is computed again, against one block that keeps all weights of all layers, in float64."""
    histories, found = toy_histories(7, num_items=NUM_ITEMS), []
    for long, queries in ((10**6, 10**6), (3, 3)):
        monkeypatch.setattr("feedgym.agents.layers.hstu.LONG", long)
        monkeypatch.setattr("feedgym.agents.layers.hstu.QUERIES_PER_BLOCK", queries)
        model, kept = toy(**KINDS[kind], loss="ce").double(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            loss = model.train()(**model.sequence_batch(histories)).loss
        loss.backward()
        found.append((loss, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]))
        heads, num = model.config.num_heads, model.config.num_prefix + model.config.tokens_per_event * T
        weights = [x for x in kept if x.ndim == 4 and x.shape[1] == heads and x.shape[3] in range(2, num + 1)]
        assert bool([x for x in weights if x.shape[2] > 1 and x.shape[0] > 1 and x.is_floating_point()]) == (long > 3)
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
