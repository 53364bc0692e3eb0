"""Sequences by table, losses by brute force, and recommenders that draw from scores."""

import math
from dataclasses import replace

import pytest
import torch
from toy_agents import toy_histories

from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import (
    IGNORED,
    ChosenProducts,
    ScoreRecommender,
    SequenceConfig,
    SequenceDataset,
    Sequences,
)
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX

NUM_ITEMS = 9


def toy(seed=0, **sizes):
    """An untrained model whose every weight matters."""
    torch.manual_seed(seed)
    given = dict(d_model=6, d_ff=5, num_items=NUM_ITEMS, history_length=6, session_length=3, dropout=0.0)
    model = SASRec(SASRecConfig(**given | sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model.eval()


def one_history():
    """Items 3 (clicked), 1 (not), 4 (clicked), 2 (clicked), and one place of padding; gaps 10, 20, 30, 40 s."""
    clicked = torch.tensor([1.0, 0, 1, 1, 0])
    behaviours_UTB = torch.zeros(1, 5, 7)
    behaviours_UTB[0, :, BEHAVIOUR_IDX["click"]] = clicked
    return EventBatch(
        item_ids_UT=torch.tensor([[3, 1, 4, 2, 0]]),
        behaviours_UTB=behaviours_UTB,
        watch_fraction_UT=torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0]]),
        gap_s_UT=torch.tensor([[10.0, 20, 30, 40, 99]]),
        mask_UT=torch.tensor([[True, True, True, True, False]]),
        profile_UF=torch.zeros(1, 0, dtype=torch.long),
        time_of_day_U=torch.zeros(1),
    )


@pytest.mark.parametrize(
    ("limit", "only_positives", "items", "begin_s", "request_s", "next_item"),
    [
        # Skipped items are read, but never predicted.
        (9, False, [9, 3, 1, 4, 2], [0, 0, 10, 30, 60], [0, 10, 30, 60, 100], [3, IGNORED, 4, 2, IGNORED]),
        # Skipped items are not read; the request after item 3 is when item 4 was taken.
        (9, True, [9, 3, 4, 2], [0, 0, 30, 60], [0, 30, 60, 100], [3, 4, 2, IGNORED]),
        # Only the newest events.
        (2, True, [9, 4, 2], [30, 30, 60], [30, 60, 100], [4, 2, IGNORED]),
    ],
)
def test_sequences_by_table(limit, only_positives, items, begin_s, request_s, next_item):
    config = SequenceConfig(num_items=9, positives=("click",), only_positives=only_positives)
    found = Sequences.of(one_history(), config, limit)
    real = int(found.length_U)
    assert real == len(items) and found.item_ids_UZ[0, :real].tolist() == items
    assert found.begin_s_UZ[0, :real].tolist() == begin_s and found.request_s_UZ[0, :real].tolist() == request_s
    assert found.next_UZ[0, :real].tolist() == next_item and (found.next_UZ[0, real:] == IGNORED).all()
    watched = found.watch_fraction_UZ[0, 1:real].tolist()
    assert watched == pytest.approx([{3: 0.1, 1: 0.2, 4: 0.3, 2: 0.4}[item] for item in items[1:]])


def test_a_new_user_has_the_start_alone():
    histories = toy_histories(3, num_items=NUM_ITEMS)
    found = Sequences.of(histories, SequenceConfig(num_items=NUM_ITEMS), 6)
    assert found.length_U[0] == 1 and found.item_ids_UZ[0, 0] == NUM_ITEMS
    assert toy().scores(histories)[0].isfinite().all()


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("num_items", [3, NUM_ITEMS, 300])  # as many as a position asks for: all are scored; else those
@pytest.mark.parametrize("loss", ["bce", "ce", "sampled_softmax"])
def test_losses_by_brute_force(loss, num_items, similarity, monkeypatch):
    monkeypatch.setattr("feedgym.agents.sequences.ROWS_ALIKE", 2)  # three groups, the last of one user
    model = toy(loss=loss, num_items=num_items, num_negatives=2, similarity=similarity, temperature=0.3)
    histories = toy_histories(5, num_items=num_items)
    batch = model.sequence_batch(histories)
    torch.manual_seed(5)
    got = model(**batch).loss
    sequences = Sequences(**batch)
    sequences = sequences.rows(sequences.length_U.argsort(stable=True))  # in which order negatives are drawn
    hidden, weight = model.encode(sequences).tolist(), model.items.weight.tolist()
    places = (sequences.next_UZ >= 0).nonzero().tolist()
    torch.manual_seed(5)
    negatives = torch.randint(num_items, (len(places), 2)).tolist()

    def score(user, place, item):
        a, b = hidden[user][place], weight[item]
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        length = math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(q * q for q in b))
        return (dot / length if similarity == "cosine" else dot) / 0.3

    total = 0.0
    for n, (user, place) in enumerate(places):
        target = int(sequences.next_UZ[user, place])
        held = set(sequences.item_ids_UZ[user][sequences.mask_UZ[user]].tolist())
        if loss == "bce":
            counted = [item for item in negatives[n] if item not in held]
            negative = sum(math.log(1 + math.exp(score(user, place, item))) for item in counted)
            total += math.log(1 + math.exp(-score(user, place, target))) + negative / max(len(counted), 1)
            continue
        others = range(num_items) if loss == "ce" else [target, *(i for i in negatives[n] if i != target)]
        total += math.log(sum(math.exp(score(user, place, item)) for item in others)) - score(user, place, target)
    assert len(places) > 5 and got.item() == pytest.approx(total / len(places), rel=1e-4)


def test_chosen_products_have_the_gradients_of_gathered_ones():
    torch.manual_seed(0)
    vectors = [torch.randn(rows, 3, dtype=torch.float64, requires_grad=True) for rows in (5, 7)]
    idx_NS = torch.randint(7, (5, 4))
    idx_NS[0] = 2  # drawn more than once
    plain_NS = (vectors[0] @ vectors[1].T).gather(1, idx_NS)
    found_NS = ChosenProducts.apply(*vectors, idx_NS)
    weight_NS = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(found_NS, plain_NS)
    expected = torch.autograd.grad((plain_NS * weight_NS).sum(), vectors)
    torch.testing.assert_close(torch.autograd.grad((found_NS * weight_NS).sum(), vectors), expected)


@pytest.mark.parametrize("num_rows", [2, 30])  # fewer cells than items, and more
def test_logits_of_some_items_are_those_of_all_with_their_gradients(num_rows):
    model = toy(num_items=40, num_negatives=3)
    hidden = torch.randn(num_rows, model.config.d_model, requires_grad=True)
    idx_NS = torch.randint(40, (num_rows, 4))
    idx_NS[0] = idx_NS[1, 0]  # asked for more than once
    some_NS, plain_NS = model._some_logits(hidden, idx_NS), model.item_logits(hidden).gather(1, idx_NS)
    torch.testing.assert_close(some_NS, plain_NS)
    weight_NS, learned = torch.randn(num_rows, 4), (hidden, model.items.weight)
    expected = torch.autograd.grad((plain_NS * weight_NS).sum(), learned)
    torch.testing.assert_close(torch.autograd.grad((some_NS * weight_NS).sum(), learned), expected)


def test_scores_belong_to_the_newest_events_whatever_surrounds_them(monkeypatch):
    monkeypatch.setattr("feedgym.agents.sequences.ROWS_ALIKE", 2)
    model, histories = toy(), toy_histories(6, num_items=NUM_ITEMS)
    scores_UI = model.scores(histories)
    sequences = Sequences.of(histories, model.config, 6)
    with torch.no_grad():
        logits_UZI = model.item_logits(model.encode(sequences))
    torch.testing.assert_close(scores_UI, logits_UZI[torch.arange(6), sequences.length_U - 1])
    scribbled = histories.item_ids_UT.masked_fill(~histories.mask_UT, 5)
    assert torch.equal(model.scores(replace(histories, item_ids_UT=scribbled)), scores_UI)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(model.scores(histories.rows(order)), scores_UI[order])
    longer = toy_histories(4, length=20, num_items=NUM_ITEMS)
    shorter = toy(only_positives=False, history_length=6)
    kept = longer.events(slice(14, 20)).rows(slice(3, 4))  # the last user's history is full
    torch.testing.assert_close(shorter.scores(longer)[3:], shorter.scores(kept))


def test_sessions_are_drawn_by_score_and_seen_items_come_last():
    model, histories = toy(temperature=1.0), toy_histories(5, num_items=NUM_ITEMS)
    agent = ScoreRecommender(model)
    scores_UI = agent.scores(histories)
    served = agent.recommend(histories)
    sampled = agent.sample(histories, 400, torch.Generator().manual_seed(0))
    for user in range(5):
        seen = set(histories.item_ids_UT[user][histories.mask_UT[user]].tolist())
        ranked = sorted(set(range(NUM_ITEMS)) - seen, key=lambda i: -float(scores_UI[user, i]))
        assert served.item_ids_USK[user, 0].tolist() == ranked[:3]
        assert not seen & set(sampled.item_ids_USK[user].flatten().tolist())
        weight = {i: math.exp(float(scores_UI[user, i])) for i in ranked}
        session = sampled.item_ids_USK[user, 0].tolist()
        left, logp = sum(weight.values()), 0.0
        for item in session:
            logp += math.log(weight[item] / left)
            left -= weight[item]
        assert float(sampled.logp_US[user, 0]) == pytest.approx(logp, abs=1e-4)
        first = (sampled.item_ids_USK[user, :, 0] == ranked[0]).float().mean()
        assert float(first) == pytest.approx(weight[ranked[0]] / sum(weight.values()), abs=0.08)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="num_items=0"):
        SASRec(SASRecConfig())
    with pytest.raises(ValueError, match="session_length=10"):
        ScoreRecommender(toy(), 10)
    with pytest.raises(ValueError, match="at least one"):
        SequenceDataset(histories=toy_histories(3).rows(slice(0)))
    for wrong in (
        dict(loss="mse"),
        dict(similarity="l2"),
        dict(temperature=0.0),
        dict(block="post"),
        dict(num_heads=3),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SASRecConfig(num_items=5, **wrong)
