"""Decoding with compiled loops: the same sessions as with torch, and attention as it is written in the papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_agents import NUM_ITEMS, K, toy_histories, toy_model, toy_tokenizer

from feedgym.agents.generation import beam_sessions, sample_sessions, score_sessions
from feedgym.agents.layers import compiled
from feedgym.agents.layers.compiled import CompiledDecoding
from feedgym.agents.layers.moe import SparseMoE
from feedgym.agents.layers.transformer import DecodingState
from feedgym.agents.tiger import Tiger, TigerConfig

kernels = pytest.importorskip("feedgym.agents.layers.kernels")
TRIE = toy_tokenizer().trie()

pytestmark = pytest.mark.usefixtures("one_thread")


def toy_tiger():
    torch.manual_seed(1)
    sizes = dict(d_model=8, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=2, d_ff=12)
    config = TigerConfig(**sizes, session_length=K, history_length=6, only_positives=False, initializer_factor=3.0)
    return Tiger.from_tokenizer(toy_tokenizer(), config).eval()


MODELS = {
    "onerec": lambda: toy_model(d_model=16),
    "onerec, gates that sum to 1, 3 of 5 experts": lambda: toy_model(
        d_model=16, gate_renormalise=True, num_experts=5, num_experts_per_tok=3
    ),
    "tiger": toy_tiger,
}


def flat(tensor):
    return tensor.contiguous().view(-1).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_sessions_are_those_of_torch(name, monkeypatch):
    model, histories = MODELS[name](), toy_histories(7)
    items_USK = torch.arange(NUM_ITEMS).repeat(7, 1)[:, None, :K]

    def ways():
        yield sample_sessions(model, TRIE, histories, 21, K, torch.Generator().manual_seed(0))
        yield sample_sessions(model, TRIE, histories, 1, K, torch.Generator().manual_seed(0))
        yield beam_sessions(model, TRIE, histories, 9, K)
        yield score_sessions(model, TRIE, histories, items_USK)

    assert isinstance(started(model, histories), CompiledDecoding)
    found = list(ways())
    monkeypatch.setattr(compiled, "HAS_NUMBA", False)
    assert isinstance(started(model, histories), DecodingState)
    for mine, theirs in zip(found, ways(), strict=True):
        assert torch.equal(mine.item_ids_USK, theirs.item_ids_USK)
        for field in ("logp_US", "logp_legal_US", "logp_allowed_US", "logp_drawn_US"):
            torch.testing.assert_close(
                getattr(mine, field), getattr(theirs, field), rtol=1e-5, atol=1e-5, equal_nan=True, msg=field
            )


@torch.no_grad()
def started(model, histories):
    return model.start(histories, 9)


def test_gradients_other_dtypes_and_unusual_heads_are_left_to_torch():
    model, histories = MODELS["onerec"](), toy_histories(3)
    assert isinstance(model.start(histories, 9), DecodingState)
    assert isinstance(started(toy_model(), histories), DecodingState)  # heads of width 4
    assert isinstance(started(model.double(), histories), DecodingState)


@pytest.mark.parametrize("heads, width, with_bias", [(1, 8, False), (4, 16, True), (8, 24, True)])
def test_attention_to_own_positions_is_softmax_of_products(heads, width, with_bias):
    rng, rows, positions, inner = torch.Generator().manual_seed(0), 5, 7, heads * width
    q_RX, kv = torch.randn(rows, inner, generator=rng), torch.randn(rows, 2, positions, inner, generator=rng)
    origin_RM = torch.randint(rows, (rows, positions), generator=rng)
    seen_R = torch.tensor([1, 2, 7, 4, 5])
    bias_HM = torch.randn(heads, positions, generator=rng) * 5 if with_bias else torch.zeros(heads, positions)
    out = torch.empty(rows, inner)
    bias = flat(F.pad(bias_HM.T, (0, 8 - heads))) if with_bias else np.zeros(0, np.float32)
    layout = (2 * positions * inner, inner, positions * inner)
    kernels.attend_rows(
        flat(q_RX), 0, inner, flat(kv), layout, origin_RM.numpy(), seen_R.numpy(), heads, width, np.float32(0.3), bias,
        out.view(-1).numpy(),
    )  # fmt: skip
    for r in range(rows):
        for h in range(heads):
            part, scores = slice(h * width, (h + 1) * width), []
            for m in range(seen_R[r]):
                key = kv[origin_RM[r, m], 0, m, part].double()
                scores.append(0.3 * (q_RX[r, part].double() @ key) + bias_HM[h, m])
            weights = torch.stack(scores).softmax(0)
            want = sum(w * kv[origin_RM[r, m], 1, m, part].double() for m, w in enumerate(weights))
            torch.testing.assert_close(out[r, part].double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_user", [2, 16, 19])
def test_attention_to_a_history_is_softmax_over_its_real_part(per_user):
    rng, users, queries, longest, heads, width = torch.Generator().manual_seed(1), 3, 2, 11, 2, 8
    inner, length_U = heads * width, torch.tensor([1, 11, 6])
    q = torch.randn(queries, users * per_user, inner, generator=rng) * 3
    kv = torch.randn(users, longest, 2, inner, generator=rng)
    for u in range(users):
        kv[u, length_U[u] :] = torch.nan
    out = torch.empty_like(q)
    kernels.attend_memory(
        flat(q), flat(kv), longest, length_U.numpy(), queries, users * per_user, heads, width, np.float32(0.5),
        out.view(-1).numpy(),
    )  # fmt: skip
    for u in range(users):
        keys, values = kv[u, : length_U[u]].double().unflatten(-1, (heads, width)).unbind(1)
        mine = slice(u * per_user, (u + 1) * per_user)
        score = torch.einsum("qrhd,mhd->qrhm", q[:, mine].double().unflatten(-1, (heads, width)), keys) * 0.5
        want = torch.einsum("qrhm,mhd->qrhd", score.softmax(-1), values).flatten(2)
        torch.testing.assert_close(out[:, mine].double(), want, rtol=1e-5, atol=1e-5)


def test_routing_sorts_pairs_by_expert_with_the_gates_of_the_layer():
    torch.manual_seed(0)
    moe, x_ND = SparseMoE(4, 6, 5, 2, renormalise=True), torch.randn(30, 4)
    with torch.no_grad():
        for weights in (moe.up_EDF, moe.down_EFD):
            weights.normal_()
        logits_NE = moe.router(x_ND)
        expert_P, token_P, first_E1 = np.empty(60, np.int64), np.empty(60, np.int64), np.empty(6, np.int64)
        gate_P = np.empty(60, np.float32)
        kernels.route(logits_NE.numpy(), 2, True, expert_P, token_P, gate_P, first_E1)
        assert first_E1[0] == 0 and first_E1[-1] == 60
        gates_NE = torch.zeros(30, 5)
        for e in range(5):
            pairs = slice(first_E1[e], first_E1[e + 1])
            assert (np.diff(token_P[pairs]) > 0).all()
            gates_NE[token_P[pairs], e] = torch.from_numpy(gate_P[pairs])
        every_NED = ((x_ND @ moe.up_EDF).relu() @ moe.down_EFD).transpose(0, 1)
        torch.testing.assert_close((gates_NE[..., None] * every_NED).sum(1), moe(x_ND)[0])
