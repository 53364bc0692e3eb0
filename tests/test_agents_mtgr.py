"""MTGR against its equations, and what a ranker on aggregated samples must promise."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feedgym.agents.cross_features import KINDS, PER_KIND, cross_features, item_kinds
from feedgym.agents.layers.mtgr import GATED_EPS, Domain
from feedgym.agents.mtgr import MTGR, MTGRConfig
from feedgym.agents.token_batches import TokenBatches, token_batches
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.ranking import RankingBatch

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_ITEMS = 30
PROFILE_SIZES = (3, 2)


def histories(lengths: list[int], seed: int, width: int | None = None) -> EventBatch:
    g = torch.Generator().manual_seed(seed)
    shape = (len(lengths), width or max(1, *lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    return EventBatch(
        item_ids_UT=torch.randint(NUM_ITEMS, shape, generator=g) * mask,
        behaviours_UTB=(torch.rand(*shape, len(BEHAVIOURS), generator=g) < 0.3).float() * mask[..., None],
        watch_fraction_UT=torch.rand(shape, generator=g) * mask,
        gap_s_UT=(10 + 5000 * torch.rand(shape, generator=g)) * mask,
        mask_UT=mask,
        profile_UF=torch.stack([torch.randint(size, (len(lengths),), generator=g) for size in PROFILE_SIZES], 1),
        time_of_day_U=24 * torch.rand(len(lengths), generator=g),
    )


def windows(lengths=(7, 3, 0), candidates=(8, 5, 6), seed=0) -> RankingBatch:
    """Rows of several requests, an hour apart; four exposures each, ten seconds apart."""
    g = torch.Generator().manual_seed(seed + 100)
    num, most = len(candidates), max(candidates)
    mask = torch.arange(most) < torch.tensor(candidates)[:, None]
    place = torch.arange(most).expand(num, most)
    return RankingBatch(
        histories=histories(list(lengths), seed),
        item_ids_NK=torch.randint(NUM_ITEMS, (num, most), generator=g) * mask,
        mask_NK=mask,
        behaviours_NKB=(torch.rand(num, most, len(BEHAVIOURS), generator=g) < 0.4).float() * mask[..., None],
        watch_fraction_NK=torch.rand(num, most, generator=g) * mask,
        time_s_NK=(3600.0 * (place // 4) + 10 * (place % 4)).double() * mask,
        request_NK=place // 4 * mask,
    )


def at_once(batch: RankingBatch) -> RankingBatch:
    """The same candidates, all of one request."""
    zeros = torch.zeros_like
    return replace(batch, time_s_NK=zeros(batch.time_s_NK), request_NK=zeros(batch.request_NK))


def model(kinds=None, **config) -> MTGR:
    torch.manual_seed(1)
    sizes = {"num_items": NUM_ITEMS, "profile_sizes": PROFILE_SIZES, "d_model": 12, "num_layers": 2, "num_heads": 3}
    made = MTGR(MTGRConfig(**sizes | {"tasks": ("click", "like"), "watch": True} | config), kinds)
    for name, parameter in made.named_parameters():  # so that norms of different domains differ, and biases count
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    return made.eval()


# ------------------------------------------------------------------ parity


def plain_scores(net: MTGR, batch: RankingBatch) -> list[list[list[float]]]:
    """Logits from the equations, token by token, in Python's own numbers but for matrix products."""
    sample = net.embed(batch)
    scores = []
    for n in range(len(batch)):
        num_context = sample.mask_NZ.shape[1]
        tokens = [  # vector, domain, time; a static token has none
            (sample.context_NZD[n, p], int(sample.domain_NZ[n, p]), sample.time_NZ[n, p].item())
            for p in range(num_context)
            if sample.mask_NZ[n, p]
        ]
        real = [k for k in range(batch.mask_NK.shape[1]) if batch.mask_NK[n, k]]
        tokens += [(sample.candidates_NKD[n, k], int(Domain.CANDIDATE), batch.time_s_NK[n, k].item()) for k in real]
        xs = [vector for vector, *_ in tokens]
        for layer in net.layers:
            xs = plain_layer(layer, xs, tokens, net.config.num_heads)
        scores.append([net.out(net.head(x)).tolist() for x in xs[len(xs) - len(real) :]])
    return scores


def plain_norm(norm, x, domain):
    mean = sum(x.tolist()) / len(x)
    variance = sum((value - mean) ** 2 for value in x.tolist()) / len(x)
    return (x - mean) / math.sqrt(variance + norm.eps) * norm.weight[domain] + norm.bias[domain]


def sees(query: tuple, key: tuple, same: bool) -> bool:
    if same:
        return True
    if key[1] in (Domain.USER, Domain.STATIC):
        return True
    if key[1] == Domain.CANDIDATE or query[1] in (Domain.USER, Domain.STATIC):
        return False
    return key[2] < query[2]


def plain_layer(layer, xs, tokens, num_heads):
    projected = []
    for x, (_, domain, _) in zip(xs, tokens, strict=True):
        mixed = layer.kqvu.weight @ plain_norm(layer.norm, x, domain) + layer.kqvu.bias
        projected.append((mixed * torch.sigmoid(mixed)).chunk(4))
    after = []
    for i, x in enumerate(xs):
        heads = []
        for h in range(num_heads):
            total = 0
            for j in range(len(xs)):
                if sees(tokens[i], tokens[j], i == j):
                    score = projected[i][1].chunk(num_heads)[h] @ projected[j][0].chunk(num_heads)[h]
                    total = total + score * torch.sigmoid(score) / len(xs) * projected[j][2].chunk(num_heads)[h]
            heads.append(total)
        gated = torch.cat(heads) * projected[i][3]
        normed = plain_norm(layer.gated_norm, gated, tokens[i][1])
        after.append(x + layer.out.weight @ normed + layer.out.bias)
    return after


@pytest.mark.parametrize(("real_time_s", "gated_eps"), [(0.0, GATED_EPS), (6000.0, 1e-3)])
def test_scores_are_those_of_a_plain_loop_over_the_equations(real_time_s, gated_eps):
    net, batch = model(real_time_s=real_time_s).double(), windows()
    batch.time_s_NK[0, 3] = batch.time_s_NK[0, 2]  # two exposures at the same moment
    for layer in net.layers:
        layer.gated_norm.eps = gated_eps  # a large one shows the division by the number of tokens
    expected, found = plain_scores(net, batch), net.logits_NKM(batch)
    for n, row in enumerate(expected):
        torch.testing.assert_close(found[n, : len(row)], torch.tensor(row, dtype=torch.float64), rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------ who sees whom


def test_changing_a_candidate_leaves_the_others_of_its_request_unchanged_to_the_bit():
    net, batch = model(), at_once(windows())
    items = batch.item_ids_NK.clone()
    items[:, 2] = (items[:, 2] + 1) % NUM_ITEMS
    before, after = net.logits_NKM(batch), net.logits_NKM(replace(batch, item_ids_NK=items))
    others = torch.arange(items.shape[1]) != 2
    assert torch.equal(before[:, others], after[:, others])
    assert (before[:, 2] != after[:, 2]).any(dim=1).all()


def feedback_gradient(net: MTGR, batch: RankingBatch, n: int, k: int) -> torch.Tensor:
    """How much the feedback to each exposure of row n moves candidate k's scores, [K]."""
    behaviours, watch = batch.behaviours_NKB.clone().requires_grad_(), batch.watch_fraction_NK.clone().requires_grad_()
    logits = net.logits_NKM(replace(batch, behaviours_NKB=behaviours, watch_fraction_NK=watch))
    moved = torch.autograd.grad(logits[n, k].sum(), (behaviours, watch))
    return moved[0][n].abs().sum(-1) + moved[1][n].abs()


@pytest.mark.parametrize("layers", [1, 3])
def test_feedback_moves_later_exposures_and_has_no_gradient_at_all_to_others(layers):
    net, batch = model(num_layers=layers), windows(candidates=(8, 5, 6))
    batch.time_s_NK[0, 5] = batch.time_s_NK[0, 4]  # two exposures at the same moment
    for n, k in [(0, 0), (0, 3), (0, 4), (0, 5), (0, 7), (1, 4), (2, 2)]:
        moved = feedback_gradient(net, batch, n, k)
        earlier = (batch.time_s_NK[n] < batch.time_s_NK[n, k]) & batch.mask_NK[n]
        assert (moved[earlier] > 0).all()
        assert (moved[~earlier] == 0).all()


def test_a_slate_ranked_at_its_request_learns_from_earlier_requests_alone():
    net, batch = model(decided="request"), windows()
    moved = feedback_gradient(net, batch, 0, 7)
    assert (moved[:4] > 0).all()
    assert (moved[4:] == 0).all()
    assert (feedback_gradient(net, batch, 0, 3) == 0).all()


def test_an_exposure_that_is_also_a_candidate_changes_later_candidates_only():
    net, batch = model().double(), windows()
    items = batch.item_ids_NK.clone()
    items[:, 2] = (items[:, 2] + 1) % NUM_ITEMS
    moved = (net.logits_NKM(batch) != net.logits_NKM(replace(batch, item_ids_NK=items))).any(-1)
    assert not moved[:, :2].any()
    assert moved[0].tolist() == [False, False] + [True] * 6


def test_recent_history_is_real_time_like_the_windows_own_events():
    net = model(real_time_s=3600.0, cross_features=False)
    batch = windows(lengths=(0,), candidates=(2,))
    past = histories([1], 0)
    past = replace(
        past,
        item_ids_UT=batch.item_ids_NK[:, :1],
        behaviours_UTB=batch.behaviours_NKB[:, :1],
        watch_fraction_UT=batch.watch_fraction_NK[:, :1],
        profile_UF=batch.histories.profile_UF,
        time_of_day_U=batch.histories.time_of_day_U,
    )
    past = replace(past, gap_s_UT=torch.full_like(past.gap_s_UT, 10))
    second = {name: value[:, 1:] for name, value in vars(batch).items() if name != "histories"}
    served = RankingBatch(histories=past, **second | {"time_s_NK": torch.zeros(1, 1, dtype=torch.float64)})
    torch.testing.assert_close(net.logits_NKM(served)[:, 0], net.logits_NKM(batch)[:, 1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(cross_features=False).logits_NKM(served)[:, 0], net.logits_NKM(batch)[:, 1])


# ------------------------------------------------------------------ samples and padding


def test_padding_changes_nothing():
    net, batch = model(), windows()
    before = net.logits_NKM(batch)
    noise = windows(seed=5)
    kept_T, kept_K = batch.histories.mask_UT, batch.mask_NK

    def scribbled(name, given, drawn, mask):
        kept = mask.reshape(mask.shape + (1,) * (given.ndim - mask.ndim))
        return torch.where(kept, given, drawn)

    other = histories([kept_T.shape[1]] * len(kept_T), 7)
    past = {
        name: scribbled(name, value, getattr(other, name), kept_T) if name.endswith(("_UT", "_UTB")) else value
        for name, value in vars(batch.histories).items()
        if name != "mask_UT"
    }
    columns = {
        name: scribbled(name, value, getattr(noise, name), kept_K)
        for name, value in vars(batch).items()
        if name not in ("histories", "mask_NK")
    }
    changed = replace(batch, histories=EventBatch(mask_UT=kept_T, **past), **columns)
    assert torch.equal(net.logits_NKM(changed)[kept_K], before[kept_K])


def test_a_row_alone_scores_as_in_a_batch():
    net, batch = model().double(), windows()
    together = net.logits_NKM(batch)
    for n in range(len(batch)):
        num = int(batch.mask_NK[n].sum())
        alone = net.logits_NKM(batch.rows(slice(n, n + 1)))
        torch.testing.assert_close(alone[0, :num], together[n, :num], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grouped", [True, False])
def test_candidates_score_alike_in_one_sample_and_in_samples_of_their_own(grouped):
    net, batch = model(group_layer_norm=grouped).double(), windows()
    together = net.logits_NKM(batch)
    for k in range(batch.mask_NK.shape[1]):
        until_k = batch.mask_NK & (torch.arange(batch.mask_NK.shape[1]) <= k)  # what came later is not there at all
        alone = net.logits_NKM(replace(batch, mask_NK=until_k))
        real = batch.mask_NK[:, k]
        torch.testing.assert_close(alone[real, k], together[real, k], rtol=1e-7, atol=1e-9)


# ------------------------------------------------------------------ ablations


def test_one_norm_for_all_is_the_grouped_one_with_equal_groups_and_nothing_else():
    grouped, single, batch = model(), model(group_layer_norm=False), windows()
    shared = {name: value for name, value in single.state_dict().items()}
    for name, value in grouped.state_dict().items():
        if "norm" in name and value.ndim == 2:
            assert value.shape[0] == len(Domain) and shared[name].shape[0] == 1
            shared[name] = shared[name].expand_as(value)
        else:
            assert shared[name].shape == value.shape
    grouped.load_state_dict(shared)
    torch.testing.assert_close(grouped.logits_NKM(batch), single.logits_NKM(batch), rtol=1e-5, atol=1e-6)


def test_without_cross_features_kinds_do_not_matter_and_the_rest_is_the_same_model():
    batch = windows()
    kinds = torch.zeros(len(KINDS), NUM_ITEMS, dtype=torch.long)
    full, without = model(), model(cross_features=False)
    assert torch.equal(model(kinds, cross_features=False).logits_NKM(batch), without.logits_NKM(batch))
    assert not torch.allclose(model(kinds).logits_NKM(batch), full.logits_NKM(batch))
    width = full.config.d_model
    weights = full.state_dict()
    weights["candidate.0.weight"][:, width:] = 0
    full.load_state_dict(weights)
    without.load_state_dict(weights | {"candidate.0.weight": weights["candidate.0.weight"][:, :width]})
    torch.testing.assert_close(full.logits_NKM(batch), without.logits_NKM(batch), rtol=1e-5, atol=1e-6)


def test_masks_differ_in_the_mask_alone_and_a_full_one_leaks():
    batch = windows()
    nets = {mask: model(mask=mask) for mask in ("dynamic", "causal", "full")}
    for net in nets.values():
        net.load_state_dict(nets["dynamic"].state_dict())
    single = at_once(batch)  # without real-time events, only the causal one differs
    scores = {mask: net.logits_NKM(single) for mask, net in nets.items()}
    assert torch.equal(scores["dynamic"], scores["full"])
    assert not torch.allclose(scores["dynamic"], scores["causal"])
    assert (feedback_gradient(nets["full"], batch, 0, 0)[:7] > 0).all()
    batch.time_s_NK[:] = torch.tensor([0.0, 0, 0, 0, 9, 9, 9, 9], dtype=torch.float64)
    assert (feedback_gradient(nets["dynamic"], batch, 0, 3) == 0).all()
    by_place = feedback_gradient(nets["causal"], batch, 0, 3)
    assert (by_place[:3] > 0).all() and (by_place[3:] == 0).all()


# ------------------------------------------------------------------ cross features


def test_cross_features_are_counts_over_the_history():
    past = histories([9, 4, 0], 3)
    items = torch.randint(NUM_ITEMS, (3, 5), generator=torch.Generator().manual_seed(1))
    items[0, 0] = past.item_ids_UT[0, 2]
    kinds = torch.stack([torch.arange(NUM_ITEMS), torch.arange(NUM_ITEMS) % 4, torch.arange(NUM_ITEMS) % 3 - 1])
    found = cross_features(past, items, kinds)
    assert found.shape == (3, 5, len(KINDS) * PER_KIND)
    for n in range(3):
        num = int(past.mask_UT[n].sum())
        for k in range(5):
            expected = []
            for group in kinds.tolist():
                mine = group[items[n, k]]
                met = [t for t in range(num) if mine >= 0 and group[past.item_ids_UT[n, t]] == mine]
                ago = past.gap_s_UT[n, max(met) : num].sum().item() if met else None
                expected += [math.log(1 + len(met)), 1 / (1 + math.log(1 + ago / 3600)) if met else 0.0]
                for b in range(len(BEHAVIOURS)):
                    expected.append(sum(past.behaviours_UTB[n, t, b].item() for t in met) / (1 + len(met)))
                expected.append(sum(past.watch_fraction_UT[n, t].item() for t in met) / (1 + len(met)))
            np.testing.assert_allclose(found[n, k], expected, rtol=1e-5, atol=1e-6)


def test_kinds_group_items_by_creator_and_content():
    content = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1], [0, 0]], np.float32)
    catalog = Catalog(
        raw_ids_I=np.arange(5),
        content_IE=content,
        topic_I=np.zeros(5, np.int32),
        duration_s_I=np.ones(5, np.float32),
        creator_I=np.array([70, 70, 5, -1, 5]),
        upload_s_I=np.zeros(5),
    )
    item, creator, cluster = item_kinds(catalog, num_clusters=2).tolist()
    assert item == [0, 1, 2, 3, 4]
    assert creator[0] == creator[1] != creator[2] == creator[4] and creator[3] == -1
    assert cluster[0] == cluster[1] != cluster[2] == cluster[3] and cluster[4] == -1


# ------------------------------------------------------------------ dynamic batches


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200), st.integers(0, 5))
def test_batches_hold_every_row_once_and_no_more_tokens_than_asked(lengths, max_tokens, seed):
    lengths_N = np.array(lengths)
    batches = token_batches(lengths_N, max_tokens, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or lengths_N[rows].max() * len(rows) <= max_tokens


def test_dynamic_batches_weigh_every_candidate_equally():
    lengths, candidates = (7, 3, 0, 9, 2, 5), (8, 1, 6, 2, 3, 8)
    rows, net = windows(lengths, candidates), model().double()
    dynamic = TokenBatches(rows=rows, max_tokens=60, seed=2)
    assert len({len(batch) for batch in dynamic.batches}) > 1

    def gradient(columns):
        net.zero_grad()
        net(**columns).loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    steps = [gradient(dynamic.collate(net, [i])) for i in range(len(dynamic))]
    everything = gradient(net.ranking_columns(rows))
    torch.testing.assert_close(torch.stack(steps).mean(0), everything, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------ learning, saving, faults


def test_learns_what_the_feedback_of_the_window_says():
    """All of a user's candidates are clicked or none is, and nothing but earlier feedback tells which."""
    rows = windows(lengths=(1,) * 24, candidates=(8,) * 24)
    mood = (torch.arange(24) % 2 == 0).float()
    rows.behaviours_NKB[:] = 0
    rows.behaviours_NKB[..., 0] = mood[:, None]
    net = model(tasks=("click",), watch=False, dropout=0.0).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        net(**net.ranking_columns(rows)).loss.backward()
        optimizer.step()
    sure = net.eval().logits_NKM(rows)[..., 0].sigmoid() > 0.5
    assert (sure[:, 1:] == mood[:, None].bool()).float().mean() > 0.95


def test_a_saved_model_scores_the_same(tmp_path):
    kinds = torch.stack([torch.arange(NUM_ITEMS), torch.arange(NUM_ITEMS) % 4, torch.arange(NUM_ITEMS) % 3])
    net, batch = model(kinds), windows()
    net.save_pretrained(tmp_path)
    again = MTGR.load(tmp_path).eval()
    assert torch.equal(again.kinds_XI, kinds)
    assert torch.equal(again.logits_NKM(batch), net.logits_NKM(batch))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mask": "none"}, "mask"),
        ({"decided": "now"}, "decided"),
        ({"d_model": 10, "num_heads": 3}, "num_heads"),
        ({"real_time_s": -1.0}, "real_time_s"),
    ],
)
def test_wrong_settings_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        model(**wrong)
