"""GenRank and HSTU ranking: what a score may depend on, against a plain loop, in parts against at once."""

import math
from dataclasses import replace

import pytest
import torch
from toy_agents import scribbled, toy_histories

from feedgym.agents.genrank import GenRank, GenRankConfig, candidate_requests, history_requests
from feedgym.agents.hstu_rank import HSTURanker, HSTURankerConfig
from feedgym.agents.layers.hstu import HSTULayer
from feedgym.agents.layers.relative_time import time_buckets
from feedgym.agents.sequence_ranker import WATCHED, alibi, decided_s
from feedgym.data.batches import DatedEventBatch
from feedgym.data.ranking import RankingBatch

NUM_ITEMS, T, N, K = 12, 6, 7, 4
SIZES = dict(d_model=8, num_layers=2, num_heads=2, d_qk=3, d_v=4, dropout=0.0, history_length=T, profile_sizes=(3, 2))
KINDS = {
    "added": (HSTURanker, HSTURankerConfig(**SIZES, num_items=NUM_ITEMS)),
    "interleaved": (HSTURanker, HSTURankerConfig(**SIZES, num_items=NUM_ITEMS, actions="interleaved", head_norm=True)),
    "as in Meta's code": (HSTURanker, HSTURankerConfig(**SIZES, num_items=NUM_ITEMS, bias="none", watch=False)),
    "genrank": (GenRank, GenRankConfig(**SIZES, num_items=NUM_ITEMS, request_gap_s=3e4)),
    "contents": (GenRank, GenRankConfig(**SIZES, num_items=NUM_ITEMS, content_width=3)),
    "interleaved, history learned": (
        HSTURanker,
        HSTURankerConfig(**SIZES, num_items=NUM_ITEMS, actions="interleaved", loss_on_history=True),
    ),
    "full history": (GenRank, GenRankConfig(**SIZES, num_items=NUM_ITEMS, history_mask="full", bias="learned")),
    "decay": (GenRank, GenRankConfig(**SIZES, num_items=NUM_ITEMS, attention="decay")),
    "softmax": (GenRank, GenRankConfig(**SIZES, num_items=NUM_ITEMS, attention="softmax")),
    "softmax, learned bias": (
        HSTURanker,
        HSTURankerConfig(**SIZES, num_items=NUM_ITEMS, actions="interleaved", attention="softmax"),
    ),
    "plain layers": (
        GenRank,
        GenRankConfig(**SIZES, num_items=NUM_ITEMS, affine=False, scaled=False, concat_ux=False),
    ),
}
pytestmark = pytest.mark.usefixtures("one_thread")


def toy(kind, seed=0, **changes):
    """An untrained model whose every weight matters."""
    torch.manual_seed(seed)
    of, config = KINDS[kind]
    contents = (torch.randn(NUM_ITEMS, 3),) if config.content_width else ()
    model = of(type(config)(**{**config.to_dict(), **changes}), *contents)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model.eval()


def toy_rows(num=N, seed=0, requests=1):
    """Rows of 1 to K candidates, of several requests each if asked; the first user is new."""
    rng = torch.Generator().manual_seed(seed)
    length_N1 = torch.randint(1, K + 1, (num, 1), generator=rng)
    length_N1[-1] = K
    mask_NK = torch.arange(K) < length_N1
    request_NK = (torch.arange(K) * requests // K).expand(num, K) * mask_NK
    time_s_NK = (torch.arange(K) * 40.0 + request_NK * 1e5).double() * mask_NK
    return RankingBatch(
        histories=toy_histories(num, seed, NUM_ITEMS, T),
        item_ids_NK=torch.randint(NUM_ITEMS, (num, K), generator=rng) * mask_NK,
        mask_NK=mask_NK,
        behaviours_NKB=torch.rand(num, K, 7, generator=rng).round() * mask_NK[..., None],
        watch_fraction_NK=torch.rand(num, K, generator=rng) * mask_NK,
        time_s_NK=time_s_NK,
        request_NK=request_NK,
    )


def changed(rows, n, k, item_id):
    """The rows with another item as candidate (n, k)."""
    item_ids_NK = rows.item_ids_NK.clone()
    item_ids_NK[n, k] = item_id
    return replace(rows, item_ids_NK=item_ids_NK)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_candidate_is_scored_alone(kind):
    model, rows = toy(kind), toy_rows()
    before = model.logits_NKM(rows)
    after = model.logits_NKM(changed(rows, N - 1, 1, (int(rows.item_ids_NK[N - 1, 1]) + 5) % NUM_ITEMS))
    same_NK = torch.ones(N, K, dtype=torch.bool)
    same_NK[N - 1, 1] = False
    assert torch.equal(before[same_NK], after[same_NK])  # to the bit
    assert (before[N - 1, 1] - after[N - 1, 1]).abs().min() > 1e-4
    twice = replace(rows, item_ids_NK=rows.item_ids_NK[:, :1].expand(-1, K).contiguous())
    logits_NKM = model.logits_NKM(twice)
    torch.testing.assert_close(logits_NKM[-1], logits_NKM[-1, :1].expand(K, -1))  # order within a request is nothing


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_labels_of_candidates_and_padding_reach_no_score(kind):
    model, rows = toy(kind), toy_rows(requests=2)
    before = model.logits_NKM(rows)[rows.mask_NK]
    blank = replace(
        rows,
        behaviours_NKB=1 - rows.behaviours_NKB,
        watch_fraction_NK=1 - rows.watch_fraction_NK,
        histories=scribbled(rows.histories),
        item_ids_NK=rows.item_ids_NK.masked_fill(~rows.mask_NK, 10**6),
    )
    assert torch.equal(before, model.logits_NKM(blank)[rows.mask_NK])
    more = torch.nn.functional.pad

    def grown(column, by=3):
        return more(column, (0, by)) if column.ndim == 2 else more(column, (0, 0, 0, by))

    wide = {name: grown(column) for name, column in blank.columns().items() if name.endswith(("NK", "NKB"))}
    padded = model.logits_NKM(replace(blank, **wide))[:, :K]
    torch.testing.assert_close(padded[rows.mask_NK], before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_happened_in_the_history_matters_and_other_users_do_not(kind):
    model, rows = toy(kind), toy_rows()
    before, past = model.logits_NKM(rows), rows.histories
    behaviours_UTB = past.behaviours_UTB.clone()
    behaviours_UTB[-1, 2, 0] = 1 - behaviours_UTB[-1, 2, 0]
    after = model.logits_NKM(replace(rows, histories=replace(past, behaviours_UTB=behaviours_UTB)))
    assert torch.equal(before[:-1], after[:-1]) and (before[-1] - after[-1]).abs().max() > 1e-4
    alone = model.logits_NKM(rows.rows(slice(N - 1, N)))
    torch.testing.assert_close(alone, before[-1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["added", "interleaved", "genrank"])
@torch.no_grad()
def test_events_of_the_history_know_nothing_of_later_ones(kind):
    """The keys of an event's tokens stay when a later event changes; in GenRank those of the context stay too."""
    model, past = toy(kind), toy_histories(3, 1, NUM_ITEMS, T)
    item_ids_UT = past.item_ids_UT.clone()
    item_ids_UT[-1, 4] = (item_ids_UT[-1, 4] + 3) % NUM_ITEMS
    first = model.config.num_context if kind == "genrank" else None
    memories = [model.read(model.history_tokens(h)) for h in (past, replace(past, item_ids_UT=item_ids_UT))]
    late = model.config.num_context + 4 * model.config.tokens_per_event
    if first is None:  # contextual tokens see the whole history, so that only the first layer can be compared
        for memory in memories:
            del memory[1:]
    for (k, v), (k_after, v_after) in zip(*memories, strict=True):
        assert torch.equal(k[:, :late], k_after[:, :late]) and torch.equal(v[:, :late], v_after[:, :late])
        assert not torch.equal(k[-1, late], k_after[-1, late])


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_in_parts_is_one_pass(kind):
    whole, past = toy(kind), toy_histories(5, 2, NUM_ITEMS, T + 3)
    items_UK = torch.randint(NUM_ITEMS, (5, 11), generator=torch.Generator().manual_seed(1))
    parts = toy(kind, candidates_per_pass=3)
    calls = []
    read = parts.read
    parts.read = lambda history: calls.append(1) or read(history)
    found, expected = parts.predict(past, items_UK), whole.predict(past, items_UK)
    torch.testing.assert_close(found.prob_UKM, expected.prob_UKM, atol=1e-6, rtol=0)
    assert len(calls) == 1  # the history is read once
    assert found.prob_UKM.shape == (5, 11, 3)
    assert (found.watch_fraction_UK is None) == (not whole.config.watch)
    dated = DatedEventBatch(**vars(past), time_s_U=torch.zeros(5, dtype=torch.float64))
    assert torch.equal(whole.predict(dated, items_UK).prob_UKM, expected.prob_UKM)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_read_back_it_says_the_same(kind, tmp_path):
    model, past = toy(kind), toy_histories(4, 3, NUM_ITEMS, T)
    model.save_pretrained(tmp_path)
    items_UK = torch.arange(8).view(4, 2)
    again = type(model).load(tmp_path)
    assert torch.equal(again.predict(past, items_UK).prob_UKM, model.predict(past, items_UK).prob_UKM)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind):
    model, rows = toy(kind).train(), toy_rows()
    output = model(**model.ranking_columns(rows))
    output.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


# ---------------------------------------------------------------- plain loops


def plain(model, rows, n, k):
    """One candidate's logits, token by token, from the equations."""
    config, past = model.config, rows.histories
    size = int(past.mask_UT[n].sum())
    per_event, genrank = config.tokens_per_event, isinstance(model, GenRank)
    age_s = [float(past.gap_s_UT[n, t:size].sum()) for t in range(size)]

    def action(t):
        watched = [float(past.watch_fraction_UT[n, t] >= w) for w in WATCHED]
        return model.action(torch.tensor([*past.behaviours_UTB[n, t].tolist(), *watched]))

    def item_of(item_id):
        more = model.content(model.content_IE[item_id]) if config.content_width else 0
        return model.items.weight[item_id] + more

    def bucket(seconds):
        return min(int(math.log(max(abs(seconds), 1)) / 0.301), 128)

    tokens = [(table.weight[v], 0.0) for table, v in zip(model.context, past.profile_UF[n], strict=False)]
    tokens.append((model.context[-1].weight[int(past.time_of_day_U[n])], 0.0))
    request, waited = 0, 0.0
    for t in range(size):
        item = item_of(past.item_ids_UT[n, t])
        if genrank:
            if t and float(past.gap_s_UT[n, t - 1]) > config.request_gap_s:
                request, waited = request + 1, float(past.gap_s_UT[n, t - 1])
            x = item + action(t) + model.positions.weight[t] + model.requests.weight[request]
            tokens.append((x + model.times.weight[bucket(waited)], -age_s[t]))
            continue
        parts = [item, action(t)] if per_event == 2 else [item + action(t)]
        for p, part in enumerate(parts):
            back = per_event * size - (per_event * t + p)
            tokens.append((part + model.positions.weight[back] + model.times.weight[bucket(age_s[t])], -age_s[t]))
    item = item_of(rows.item_ids_NK[n, k])
    if genrank:
        gap = float(past.gap_s_UT[n, size - 1]) if size else 0.0
        if gap > config.request_gap_s:
            request, waited = request + 1, gap
        x = item + model.masked_action.weight[0] + model.positions.weight[size] + model.requests.weight[request]
        x = x + model.times.weight[bucket(waited)]
    else:
        x = item + model.positions.weight[0] + model.times.weight[0]
        x = x + model.unknown_action.weight[0] if per_event == 1 else x
    tokens.append((x, 0.0))
    xs, times = [x for x, _ in tokens], [time for _, time in tokens]
    last, context = len(tokens) - 1, config.num_context
    for layer in model.layers:
        u, v, q, k_ = zip(*(layer.project(x) for x in xs), strict=True)
        out = []
        for i in range(len(xs)):
            everything = config.history_mask == "full" if genrank else i < context and not config.loss_on_history
            seen = [j for j in range(last) if i != j and (j < i or (everything and i < last))] + [i]
            total = torch.zeros(config.num_heads, config.d_v)
            mass = torch.zeros(config.num_heads, 1)
            for j in seen:
                for h in range(config.num_heads):
                    bias = 0.0
                    score = q[i][h] @ k_[j][h] / (config.d_qk**0.5 if config.scaled else 1)
                    apart_s = times[i] - times[j] if min(i, j) >= context else 0.0
                    if config.bias == "learned":
                        place = i - j + config.num_places - 1
                        bias = layer.bias.position[place] + layer.bias.time[bucket(apart_s)]
                    elif config.bias == "alibi":
                        slope = 2 ** (-8 * (h + 1) / config.num_heads)
                        bias = -slope * (abs(i - j) + math.log1p(abs(apart_s) / 60))
                    weight = {
                        "silu": (score + bias) * torch.sigmoid(score + bias) / config.num_places,
                        "decay": score * torch.sigmoid(score) * math.exp(bias) / config.num_places,
                        "softmax": torch.exp(score + bias),
                    }[config.attention]
                    total[h] += weight * v[j][h]
                    mass[h] += weight
            out.append(layer.finish(xs[i], u[i], total / mass if config.attention == "softmax" else total))
        xs = out
    return model.head(model.user_norm(xs[last]) * model.item_head(item))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_scores_are_those_of_a_plain_loop(kind):
    model, rows = toy(kind), toy_rows()
    found = model.logits_NKM(rows)
    for n, k in [(0, 0), (2, 0), (N - 1, 0), (N - 1, K - 1)]:  # the first user is new
        torch.testing.assert_close(found[n, k], plain(model, rows, n, k), atol=2e-4, rtol=2e-4)


# ---------------------------------------------------------------- requests and time


def test_requests_are_cut_at_gaps_and_counted_on_to_the_candidates():
    past = toy_histories(2, 0, NUM_ITEMS, T)
    gap_s_UT = torch.tensor([[0.0] * 6, [10.0, 700, 20, 5000, 30, 900]])  # the last one runs to the request
    past = replace(past, gap_s_UT=gap_s_UT, mask_UT=torch.tensor([[False] * 6, [True] * 6]))
    number, waited, first = history_requests(past, 600)
    assert number[1].tolist() == [0, 0, 1, 1, 2, 2] and first[1].tolist() == [0, 0, 2, 2, 4, 4]
    assert waited[1].tolist() == [0, 0, 700, 700, 5000, 5000]
    rows = replace(
        toy_rows(2),
        histories=past,
        mask_NK=torch.ones(2, K, dtype=torch.bool),
        request_NK=torch.tensor([[0, 0, 1, 2]] * 2),
        time_s_NK=torch.tensor([[5.0, 9, 109, 9000]] * 2, dtype=torch.float64),
    )
    number, waited = candidate_requests(rows, 600)
    assert number.tolist() == [[0, 0, 1, 2], [3, 3, 4, 5]]
    assert waited.tolist() == [[0, 0, 100, 8891], [900, 900, 100, 8891]]
    assert decided_s(rows)[0].tolist() == [0, 0, 109, 9000]
    number, waited = candidate_requests(rows, 1000)  # the candidates go on the last request of the history
    assert number[1].tolist() == [1, 1, 2, 3] and waited[1, 0] == 5000
    assert history_requests(past, 0)[0][1].tolist() == [0, 1, 2, 3, 4, 5]  # every time a request


def test_candidates_of_a_request_share_position_request_and_time():
    model, rows = toy("genrank"), toy_rows()
    same = replace(rows, item_ids_NK=torch.full_like(rows.item_ids_NK, 3), mask_NK=torch.ones_like(rows.mask_NK))
    tokens = model.candidate_tokens(same)
    assert torch.equal(tokens.x_NMD, tokens.x_NMD[:, :1].expand(-1, K, -1))
    assert torch.equal(tokens.place_NM, tokens.place_NM[:, :1].expand(-1, K))


def test_alibi_falls_with_distance_and_time_and_has_the_published_slopes():
    bias = alibi(torch.tensor([[[0, 1, 8]]]), torch.tensor([[[0.0, 0.0, 3600.0]]]), 8)[0, :, 0]
    assert bias[:, 0].tolist() == [0] * 8
    assert bias[:, 1].tolist() == [-(2.0**-h) for h in range(1, 9)]
    assert float(bias[0, 2]) == pytest.approx(-0.5 * (8 + math.log(61)))
    assert not [name for name, _ in toy("genrank").named_parameters() if "bias.position" in name]


def test_only_added_inside_a_silu_is_a_falling_bias_no_decay():
    """One key of content 1 at distances 0 to 4, slope 1."""
    ones = torch.ones(1, 5, 1, 1)
    found = {}
    for attention in ("silu", "decay", "softmax"):
        layer = HSTULayer(1, 1, 1, 1, 1, False, False, 0.0, learned_bias=False, attention=attention)
        values = torch.eye(5)[None, :, None]  # attended values are the weights
        bias = -torch.arange(5.0).expand(1, 1, 1, 5)
        found[attention] = layer.attend(ones[:, :1], ones, values, bias, torch.ones(1, 1, 5, dtype=torch.bool))[0, 0, 0]
    torch.testing.assert_close(found["silu"], torch.tensor([0.7311, 0, -0.2689, -0.2384, -0.1423]), atol=1e-4, rtol=0)
    for attention in ("decay", "softmax"):
        weight = found[attention]
        torch.testing.assert_close(weight[1:] / weight[:-1], torch.full((4,), math.exp(-1)))


def test_action_bits_tell_how_much_was_watched():
    model, past = toy("genrank"), toy_histories(2, 0, NUM_ITEMS, T)
    found = [
        model.actions_NTD(replace(past, watch_fraction_UT=torch.full_like(past.watch_fraction_UT, fraction)))[-1, 0]
        for fraction in (0.3, 0.4, 0.6)
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


# ---------------------------------------------------------------- ablations


@pytest.mark.parametrize("kind", ["genrank", "added", "interleaved"])
@torch.no_grad()
def test_loss_on_history_scores_events_by_what_came_before_them(kind):
    """In GenRank by what came before their request, in HSTU by all before them."""
    model, rows = toy(kind, loss_on_history=True, **({"request_gap_s": 2e4} if kind == "genrank" else {})), toy_rows()
    past, n = rows.histories, N - 1
    if kind == "genrank":
        begins_T = history_requests(past, model.config.request_gap_s)[2][n].tolist()
    else:
        begins_T = list(range(T))
        for table in (model.positions, model.times):  # they count back from the row's request, which differs
            table.weight.zero_()

    def scored(histories):
        history = model.history_tokens(histories)
        return model.score(model.past_candidates(histories), history, model.read(history))

    logits = scored(past)
    for t, begin in enumerate(begins_T):  # the same as a row that ends before the event, or its request
        if not begin:
            continue
        kept = past.rows(slice(n, n + 1)).events(slice(begin))
        row = RankingBatch.unlabelled(kept, past.item_ids_UT[n : n + 1, t : t + 1])
        torch.testing.assert_close(model.logits_NKM(row)[0, 0], logits[n, t], atol=1e-4, rtol=1e-4)
    for t, begin in enumerate(begins_T):
        other = replace(past, behaviours_UTB=past.behaviours_UTB.clone())
        other.behaviours_UTB[n, begin:] = 1 - other.behaviours_UTB[n, begin:]
        assert torch.equal(scored(other)[n, : t + 1], logits[n, : t + 1])  # no answer is read off


@pytest.mark.parametrize("kind", ["genrank", "added", "interleaved"])
def test_loss_on_history_is_the_mean_over_events_and_candidates(kind):
    rows = toy_rows()
    both = toy(kind, loss_on_history=True)
    output, columns = both(**rows.columns()), rows.columns()
    history = both.history_tokens(rows.histories)
    past = both.score(both.past_candidates(rows.histories), history, both.read(history))[rows.histories.mask_UT]
    fraction = rows.histories.watch_fraction_UT.clamp_max(1)[..., None]
    target = torch.cat([rows.histories.behaviours_UTB[..., :3], fraction], dim=-1)[rows.histories.mask_UT]
    logits = torch.cat([past, output.logits[rows.mask_NK]])
    targets = torch.cat([target, both.targets_NKM(rows)[rows.mask_NK]])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output.logits, both.logits_NKM(rows))
    assert not torch.allclose(toy(kind)(**columns).loss, expected)


@pytest.mark.parametrize(
    ("of", "options", "told"),
    [
        (GenRankConfig, dict(history_mask="half"), "history_mask='half'"),
        (GenRankConfig, dict(request_gap_s=-1), "request_gap_s=-1"),
        (GenRankConfig, dict(history_mask="full", loss_on_history=True), "read its answers"),
        (GenRankConfig, dict(bias="no"), "bias='no'"),
        (GenRankConfig, dict(attention="linear"), "attention='linear'"),
        (GenRankConfig, dict(attention="decay", bias="learned"), "not by 'learned'"),
        (HSTURankerConfig, dict(actions="left out"), "actions='left out'"),
        (HSTURankerConfig, dict(candidates_per_pass=0), "candidates_per_pass=0"),
        (HSTURankerConfig, dict(tasks=("clck",)), "'clck'"),
    ],
)
def test_mistakes_are_told(of, options, told):
    with pytest.raises(ValueError, match=told):
        of(num_items=3, **options)


def test_contents_are_brought_to_one_scale_and_must_fit():
    contents = torch.tensor([[100.0, 1], [300, 1], [200, 1]])
    model = GenRank(GenRankConfig(num_items=3, content_width=2), contents)
    expected = torch.tensor([[-1.0, 0], [1, 0], [0, 0]]) * torch.tensor([1.5**0.5, 1])
    torch.testing.assert_close(model.content_IE, expected)
    with pytest.raises(ValueError, match="give \\[3, 4\\]"):
        GenRank(GenRankConfig(num_items=3, content_width=4), contents)


def test_time_buckets_of_the_loop_are_the_layers():
    seconds = torch.tensor([0.0, 5.0, 86_400.0])
    assert time_buckets(seconds).tolist() == [min(int(math.log(max(s, 1)) / 0.301), 128) for s in seconds.tolist()]


@pytest.mark.parametrize("head_norm", [False, True])
@torch.no_grad()
def test_the_layers_options_are_those_of_the_ranking_code(head_norm):
    torch.manual_seed(0)
    layer = HSTULayer(6, 2, 3, 4, 9, True, False, 0.0, affine=True, scaled=True, concat_ux=True, head_norm=head_norm)
    for parameter in layer.parameters():
        parameter.normal_()
    x, attended = torch.randn(5, 6), torch.randn(5, 2, 4)

    def norm(values, weight, bias):
        mean, var = values.mean(-1, keepdim=True), values.var(-1, keepdim=True, unbiased=False)
        return (values - mean) / (var + 1e-6).sqrt() * weight + bias

    mixed = norm(x, layer.norm.weight, layer.norm.bias) @ layer.uvqk + layer.uvqk_bias
    mixed = mixed * torch.sigmoid(mixed)
    u, v, q, k = layer.project(x)
    torch.testing.assert_close(torch.cat([part.flatten(1) for part in (u, v, q, k)], dim=1), mixed)
    weight, bias = layer.attended_norm.weight, layer.attended_norm.bias
    if head_norm:
        a = torch.cat([norm(attended[:, h], weight[4 * h : 4 * h + 4], bias[4 * h : 4 * h + 4]) for h in (0, 1)], dim=1)
    else:
        a = norm(attended.flatten(1), weight, bias)
    expected = x + layer.out(torch.cat([u, attended.flatten(1), u * a], dim=1))
    torch.testing.assert_close(layer.finish(x, u, attended), expected)
    score = (q * k).sum(-1, keepdim=True) / 3**0.5 + 0.5
    torch.testing.assert_close(layer.attend_itself(q, k, v, 0.5), score * torch.sigmoid(score) / 9 * v)
