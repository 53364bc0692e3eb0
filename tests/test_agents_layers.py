import math
from dataclasses import replace

import pytest
import torch
from toy_agents import T, toy_histories

from feedgym.agents.layers import moe
from feedgym.agents.layers.attention import CrossAttention, SelfAttention
from feedgym.agents.layers.history import LOG_SECONDS_SCALE, EventFeatures, RequestTokens, ages_s
from feedgym.agents.layers.moe import SparseMoE, expert_load

D, H = 8, 2
DOUBLE = torch.float64


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def lively(module, seed=0):
    """The module in double precision, every weight drawn anew; embeddings and matrices alike."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module.double()


# ---------------------------------------------------------------- attention


def plain_attention(q, keys, values, heads):
    """One query, vector by vector."""
    width, out = len(q) // heads, []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = torch.stack([k[part] @ q[part] / math.sqrt(width) for k in keys])
        out.append(sum(w * v[part] for w, v in zip(logits.softmax(0), values, strict=True)))
    return torch.cat(out)


def plain_self(layer, x_MD, visible):
    """Output at each position, which sees the positions ``visible(m)``."""
    q, k, v = (x_MD @ layer.qkv.weight.T).split(D, dim=1)
    rows = [plain_attention(q[m], k[visible(m)], v[visible(m)], H) for m in range(len(x_MD))]
    return torch.stack(rows) @ layer.out.weight.T


def test_causal_self_attention_is_that_of_a_plain_loop():
    layer, x = lively(SelfAttention(D, H)), noise(3, 5, D)
    want = torch.stack([plain_self(layer, row, lambda m: range(m + 1)) for row in x])
    torch.testing.assert_close(layer(x, causal=True), want)


def test_masked_self_attention_sees_what_the_mask_shows():
    layer, x = lively(SelfAttention(D, H)), noise(2, 5, D)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
    want = [plain_self(layer, x[n], lambda m, n=n: mask[n].nonzero().flatten().tolist()) for n in range(2)]
    torch.testing.assert_close(layer(x, mask=mask[:, None, None]), torch.stack(want))


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 3], [1, 4], [5], [3, 1, 1]])
def test_stepwise_attention_is_the_causal_one(sizes):
    layer, x_MRD = lively(SelfAttention(D, H)), noise(5, 3, D)
    want = layer(x_MRD.transpose(0, 1), causal=True).transpose(0, 1)
    for answers in (1, 9):
        keys, values = (torch.full((7, 3, D), torch.nan, dtype=DOUBLE) for _ in range(2))  # not to be read unwritten
        begin = 0
        for size in sizes:
            num = min(size, answers)
            end = begin + size
            with torch.no_grad():
                found = layer.step(x_MRD[begin:end], keys, values, begin, num)
            torch.testing.assert_close(found, want[end - num : end])
            begin = end
        assert keys[5:].isnan().all() and keys[:5].isfinite().all()


def test_cross_attention_is_that_of_a_plain_loop_and_reads_no_padding():
    layer, memory, x = lively(CrossAttention(D, H)), noise(3, 4, D, seed=1), noise(3, 6, D)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    keys, values = layer.project(memory)
    assert keys.shape == values.shape == (3, H, 4, D // H)
    found = layer(x, keys, values, mask[:, None, None])
    for u in range(3):
        k, v = (memory[u] @ layer.kv.weight.T)[mask[u]].split(D, dim=1)
        for n in range(6):
            want = plain_attention(layer.q.weight @ x[u, n], k, v, H) @ layer.out.weight.T
            torch.testing.assert_close(found[u, n], want)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="d_model=8 is not divisible by num_heads=3; choose a divisor"):
        SelfAttention(8, 3)


# ---------------------------------------------------------------- mixture of experts


def plain_moe(layer, x_D):
    """One token by OneRec's eq. 5: gates are a softmax over ALL experts, the largest k are kept as they are."""
    gate_E = (layer.router.weight @ x_D).softmax(0)
    kept = sorted(range(len(gate_E)), key=lambda e: -gate_E[e].item())[: layer.experts_per_token]
    total = sum(gate_E[e] for e in kept) if layer.renormalise else 1.0
    return sum(gate_E[e] / total * ((x_D @ layer.up_EDF[e]).clamp_min(0) @ layer.down_EFD[e]) for e in kept)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(("experts", "kept"), [(4, 2), (5, 1), (3, 3), (24, 2)])
def test_the_mixture_is_the_papers_equation_token_by_token(experts, kept, renormalise):
    layer, x = lively(SparseMoE(D, 12, experts, kept, renormalise)), noise(40, D)
    found, logits = layer(x)
    torch.testing.assert_close(found, torch.stack([plain_moe(layer, token) for token in x]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits, x @ layer.router.weight.T)


def test_gates_that_are_kept_do_not_sum_to_one_unless_asked():
    x = noise(20, D)
    raw, unit = (lively(SparseMoE(D, 12, 4, 2, renormalise)) for renormalise in (False, True))
    share_N = raw.router(x).softmax(-1).topk(2).values.sum(1)
    torch.testing.assert_close(raw(x)[0], unit(x)[0] * share_N[:, None], rtol=1e-6, atol=1e-6)
    assert share_N.min() < 0.9


def test_no_token_is_dropped_however_many_want_the_same_expert():
    layer, x = lively(SparseMoE(D, 12, 4, 2, False)), noise(30, D)
    alone = torch.cat([layer(token[None])[0] for token in x])
    torch.testing.assert_close(layer(x)[0], alone)
    crowd = torch.cat([x[:1].expand(200, -1), x])  # two experts get nearly everything
    torch.testing.assert_close(layer(crowd)[0], torch.cat([alone[:1].expand(200, -1), alone]))


def test_only_the_chosen_experts_and_the_router_get_gradients():
    layer, x = lively(SparseMoE(D, 12, 6, 2, False)), noise(1, D)
    found, logits = layer(x)
    found.sum().backward()
    chosen = set(logits.topk(2).indices[0].tolist())
    for weights in (layer.up_EDF, layer.down_EFD):
        assert {e for e in range(6) if weights.grad[e].abs().sum() > 0} == chosen
    assert (layer.router.weight.grad.abs().sum(1) > 0).all()  # the softmax runs over all experts


@pytest.mark.parametrize("kept", [0, 5])
def test_an_impossible_number_of_experts_is_refused(kept):
    with pytest.raises(ValueError, match=rf"num_experts_per_tok={kept} must lie in 1\.\.num_experts=4"):
        SparseMoE(D, 12, 4, kept, False)


def test_expert_load_counts_who_got_the_tokens():
    logits = [noise(50, 4, seed=layer).float() for layer in range(3)]
    found = expert_load(logits, 2)
    want = torch.zeros(3, 4)
    for layer in range(3):
        for row in logits[layer].tolist():
            for expert in sorted(range(4), key=lambda e: -row[e])[:2]:
                want[layer, expert] += 1 / 100
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    assert torch.equal(expert_load([torch.tensor([[0.0, 9.0, 8.0]])], 2), torch.tensor([[0.0, 0.5, 0.5]]))


# ---------------------------------------------------------------- histories


def scribbled(histories):
    pad_UT = ~histories.mask_UT
    return replace(
        histories,
        item_ids_UT=histories.item_ids_UT.masked_fill(pad_UT, -7),
        behaviours_UTB=histories.behaviours_UTB.masked_fill(pad_UT[..., None], torch.nan),
        watch_fraction_UT=histories.watch_fraction_UT.masked_fill(pad_UT, torch.inf),
        gap_s_UT=histories.gap_s_UT.masked_fill(pad_UT, torch.nan),
    )


def test_an_events_age_is_the_sum_of_the_gaps_after_it():
    histories = toy_histories(20)
    found = ages_s(scribbled(histories))
    for u in range(20):
        gaps = histories.gap_s_UT[u][histories.mask_UT[u]].tolist()
        want = [sum(gaps[t:]) for t in range(len(gaps))] + [0.0] * (T - len(gaps))
        torch.testing.assert_close(found[u], torch.tensor(want))


def test_event_features_are_those_of_a_plain_loop():
    histories = toy_histories(10)
    layer = lively(EventFeatures(D, 7, T)).float()
    found = layer(scribbled(histories))
    first, _, last = layer.features
    assert found.isfinite().all()
    for u in range(10):
        gaps = histories.gap_s_UT[u][histories.mask_UT[u]].tolist()
        for t in range(len(gaps)):
            features = [*histories.behaviours_UTB[u, t].tolist(), histories.watch_fraction_UT[u, t].item()]
            features += [math.log1p(gaps[t]) * LOG_SECONDS_SCALE, math.log1p(sum(gaps[t:])) * LOG_SECONDS_SCALE]
            hidden = first.weight @ torch.tensor(features) + first.bias
            want = last.weight @ (hidden * hidden.sigmoid()) + last.bias + layer.recency.weight[len(gaps) - 1 - t]
            torch.testing.assert_close(found[u, t], want, rtol=1e-4, atol=1e-5)


def test_event_features_do_not_depend_on_the_amount_of_padding():
    histories = toy_histories(10)
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(T) < T - 2))
    layer = lively(EventFeatures(D, 7, T)).float()
    short = layer(histories.events(slice(T - 2)))
    real_UT = histories.mask_UT[:, : T - 2]
    torch.testing.assert_close(layer(histories)[:, : T - 2][real_UT], short[real_UT])


def test_histories_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="Histories of 6 events exceed the model's history_length=5; keep the newest"):
        EventFeatures(D, 7, 5)(toy_histories(3))


def test_request_tokens_are_the_profile_and_the_time_of_day_on_a_circle():
    histories, layer = toy_histories(5), lively(RequestTokens(D, (3, 2))).float()
    found = layer(histories)
    assert found.shape == (5, 3, D)
    for u in range(5):
        for f in range(2):
            assert torch.equal(found[u, f], layer.fields[f].weight[histories.profile_UF[u, f]])
        angle = 2 * math.pi * histories.time_of_day_U[u].item() / 24
        waves = [math.sin(angle), math.cos(angle), math.sin(2 * angle), math.cos(2 * angle)]
        want = layer.time_of_day.weight @ torch.tensor(waves) + layer.time_of_day.bias
        torch.testing.assert_close(found[u, 2], want, rtol=1e-4, atol=1e-5)
    midnight = [layer(replace(histories, time_of_day_U=torch.full((5,), t)))[:, 2] for t in (0.0, 23.9999, 12.0)]
    torch.testing.assert_close(midnight[0], midnight[1], rtol=1e-3, atol=1e-3)
    assert (midnight[0] - midnight[2]).abs().max() > 0.1
    assert RequestTokens(D, ())(toy_histories(4)).shape == (4, 1, D)  # no profile at all


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_products_are_one_product_per_expert(dtype, monkeypatch):
    """As a GPU computes them, without asking how many tokens an expert has; expert 2 gets none."""
    torch.manual_seed(0)
    experts = moe.SparseMoE(16, 24, 5, 2, True)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        experts.router.weight[2] = 0
        experts.router.weight[:2] = experts.router.weight[:2].abs()
    x_ND, found = torch.randn(30, 16).abs(), []
    for grouped in (False, True):
        monkeypatch.setattr(moe, "can_group", lambda *_, grouped=grouped: grouped)
        experts.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs, logits = experts(x_ND)
        outputs.square().sum().backward()
        found.append((outputs, logits, [parameter.grad.clone() for parameter in experts.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-5 if dtype == torch.float32 else 0.02, atol=1e-5)
