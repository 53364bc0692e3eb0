from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import ndcg_score

from feedgym.agents.baselines import PopularRecommender
from feedgym.data.batches import SessionBatch
from feedgym.data.build import assemble_log
from feedgym.data.events import BEHAVIOURS, Catalog, Event
from feedgym.data.inspect import gini
from feedgym.data.splits import leave_one_out, temporal_split
from feedgym.experiments.retrieval.metrics import (
    RankingConfig,
    evaluate_ranking,
    over_seeds,
    rank_metrics,
    rank_of,
    ranking_table,
    top_of,
)

NUM_ITEMS = 12
CONFIG = RankingConfig(at=(1, 3, 5), list_at=3, chunk=7)


def log_of(seed=0, users=25):
    rng = np.random.default_rng(seed)
    size = rng.integers(2, 9, users)
    user = np.repeat(np.arange(users), size)
    behaviours = np.zeros((len(user), len(BEHAVIOURS)), np.uint8)
    behaviours[:, 0] = 1
    return assemble_log(
        user_ids_U=np.arange(users),
        profile_UF=np.zeros((users, 0), int),
        profile_names=(),
        profile_sizes=(),
        user_idx=user,
        timestamp_s=np.arange(len(user)) * 1.0,
        item_id=(NUM_ITEMS * rng.random(len(user)) ** 2).astype(int),
        watch_s=np.zeros(len(user), np.float32),
        behaviours=behaviours,
        new_visit=np.diff(user, prepend=-1) != 0,
    )


def catalog_of(items=NUM_ITEMS):
    return Catalog(
        raw_ids_I=np.arange(items),
        content_IE=np.zeros((items, 2), np.float32),
        topic_I=np.zeros(items, np.int32),
        duration_s_I=np.ones(items, np.float32),
        creator_I=np.zeros(items, np.int64),
        upload_s_I=np.zeros(items),
    )


class ByHistory:
    """Scores with many ties that depend on the last event; lists in the order of the same scores."""

    session_length = 5

    def scores(self, histories):
        last_U = histories.item_ids_UT.gather(1, histories.mask_UT.sum(1, keepdim=True) - 1)
        return ((torch.arange(NUM_ITEMS) * 7 + 3 * last_U) % 5).double()


class Lists(ByHistory):
    scores = None

    def recommend(self, histories):
        order_UI = ByHistory.scores(self, histories).argsort(dim=1, descending=True, stable=True)
        items = order_UI[:, None, : self.session_length]
        return SessionBatch(item_ids_USK=items, logp_US=torch.full((len(items), 1), torch.nan))


def plain(log, split, agent, config):
    """All metrics by loops over users, items and the orders of tied items."""
    out = {f"{m}@{k}": [] for k in config.at for m in ("HR", "NDCG")} | {f"MRR@{max(config.at)}": []}
    lists, lifts = [], []
    train = split.train.item_id[split.train.event == Event.IMPRESSION]
    popularity = np.bincount(train, minlength=NUM_ITEMS)
    for user, row, target in zip(split.test.user_idx_N, split.test.row_N, split.test.item_id_N, strict=True):
        before = [log.item_id[r] for r in range(log.offsets_U1[user], row) if log.event[r] == Event.IMPRESSION]
        history = SimpleNamespace(
            item_ids_UT=torch.tensor([before]), mask_UT=torch.ones(1, len(before), dtype=torch.bool)
        )
        score = ByHistory.scores(agent, history)[0].tolist()
        ranked = [i for i in range(NUM_ITEMS) if not (config.leave_out_seen and i in before)]
        lists.append(sorted(ranked, key=lambda i: (-score[i], i))[: config.list_at])
        lifts.append((np.mean(popularity[lists[-1]]) if lists[-1] else 0.0, np.mean(popularity[before])))
        ranks = []
        if target in ranked:
            better = sum(score[i] > score[target] for i in ranked)
            tied = sum(score[i] == score[target] for i in ranked)
            ranks = [better + 1 + order.index(0) for order in permutations(range(min(tied, 6)))] if tied <= 6 else None
            ranks = ranks or [better + 1 + t for t in range(tied)]
        for k in config.at:
            out[f"HR@{k}"].append(np.mean([r <= k for r in ranks]) if ranks else 0)
            out[f"NDCG@{k}"].append(np.mean([(r <= k) / np.log2(r + 1) for r in ranks]) if ranks else 0)
        k = max(config.at)
        out[f"MRR@{k}"].append(np.mean([(r <= k) / r for r in ranks]) if ranks else 0)
    return out, lists, lifts, popularity


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_full_ranking_equals_brute_force(seed, leave_out_seen):
    log, config = log_of(seed), replace(CONFIG, leave_out_seen=leave_out_seen)
    split = leave_one_out(log)
    result = evaluate_ranking(ByHistory(), log, catalog_of(), split, config)
    values, lists, lifts, popularity = plain(log, split, ByHistory(), config)
    for name, value in values.items():
        np.testing.assert_allclose(result.values_N[name], value, atol=1e-12, err_msg=name)
        assert result.mean(name) == pytest.approx(np.mean(value))
    assert [[i for i in row if i >= 0] for row in result.lists_NK.tolist()] == lists
    counts = np.bincount(np.concatenate(lists).astype(int), minlength=NUM_ITEMS)
    assert result.totals["coverage@3"] == (counts > 0).mean()
    differences = np.abs(counts[:, None] - counts[None, :]).sum()
    assert result.totals["Gini@3"] == pytest.approx(differences / (2 * NUM_ITEMS * counts.sum()))
    listed, past = np.array(lifts).T
    assert result.mean("popularity lift@3") == pytest.approx((listed.sum() - past.sum()) / past.sum())
    cold = popularity[split.test.item_id_N] == 0
    assert result.totals["cold targets"] == cold.mean()
    if cold.any():
        assert result.mean("cold HR@3") == pytest.approx(np.mean(np.array(values["HR@3"])[cold]))
    else:
        assert "cold HR@3" not in result.ratios


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=9), st.data())
def test_ties_are_averaged_as_scikit_learn_does(scores, data):
    target, k = data.draw(st.integers(0, len(scores) - 1)), data.draw(st.integers(1, len(scores)))
    relevant = np.eye(len(scores))[[target]]
    better, tied = rank_of(torch.tensor([scores], dtype=torch.float64), torch.tensor([target]))
    found = rank_metrics(better.numpy(), tied.numpy(), (k,))
    assert found[f"NDCG@{k}"][0] == pytest.approx(ndcg_score(relevant, np.array([scores], float), k=k))


def test_scores_that_are_all_alike_are_worth_what_chance_is():
    better, tied = rank_of(torch.zeros(1, 100), torch.tensor([0]))
    found = rank_metrics(better.numpy(), tied.numpy(), (10,))
    assert found["HR@10"][0] == pytest.approx(0.1)
    assert found["MRR@10"][0] == pytest.approx(sum(1 / r for r in range(1, 11)) / 100)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -np.inf]), min_size=1, max_size=9), st.data())
def test_the_best_items_are_those_of_a_stable_sort(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    order = sorted((i for i, s in enumerate(scores) if s > -np.inf), key=lambda i: (-scores[i], i))[:k]
    assert top_of(torch.tensor([scores]), k)[0].tolist() == order + [-1] * (k - len(order))


def test_chunks_change_nothing_and_validation_targets_can_be_asked_for():
    log = log_of(3)
    split = leave_one_out(log)
    one = evaluate_ranking(ByHistory(), log, catalog_of(), split, replace(CONFIG, chunk=1000))
    steps = []
    other = evaluate_ranking(ByHistory(), log, catalog_of(), split, CONFIG, step=lambda d, n: steps.append((d, n)))
    assert one.summary() == other.summary() and steps[-1] == (len(split.test),) * 2
    valid = evaluate_ranking(ByHistory(), log, catalog_of(), split, CONFIG, targets=split.validation)
    assert len(valid.values_N["HR@1"]) == len(split.validation)
    assert (valid.values_N["NDCG@5"] != one.values_N["NDCG@5"]).any()


def test_lists_count_hits_on_items_after_what_was_seen_is_taken_out():
    log = log_of(1)
    split = leave_one_out(log)
    result = evaluate_ranking(Lists(), log, catalog_of(), split, CONFIG)
    assert result.ranked_by == "lists"
    for n, (user, row, target) in enumerate(
        zip(split.test.user_idx_N, split.test.row_N, split.test.item_id_N, strict=True)
    ):
        before = [log.item_id[r] for r in range(log.offsets_U1[user], row) if log.event[r] == Event.IMPRESSION]
        score = (np.arange(NUM_ITEMS) * 7 + 3 * before[-1]) % 5
        listed = sorted(range(NUM_ITEMS), key=lambda i: (-score[i], i))[:5]
        listed = [i for i in listed if i not in before]
        rank = listed.index(target) + 1 if target in listed else np.inf
        for k in CONFIG.at:
            assert result.values_N[f"HR@{k}"][n] == (rank <= k)
            assert result.values_N[f"NDCG@{k}"][n] == pytest.approx((rank <= k) / np.log2(rank + 1))
        assert [i for i in result.lists_NK[n].tolist() if i >= 0] == listed[:3]


def test_several_targets_of_a_user_are_one_user():
    log = log_of(2)
    split = temporal_split(log, validation=0.2, test=0.4, targets="all")
    result = evaluate_ranking(ByHistory(), log, catalog_of(), split, CONFIG)
    users = np.unique(split.test.user_idx_N)
    assert len(split.test) > len(users) == len(result.ratios["HR@3"].numerator_U)
    assert result.ratios["HR@3"].denominator_U.tolist() == [int((split.test.user_idx_N == u).sum()) for u in users]
    assert result.mean("HR@3") == pytest.approx(result.values_N["HR@3"].mean())


def test_a_target_seen_before_is_missed_where_seen_items_are_left_out():
    log = log_of(0)
    items = log.item_id.copy()
    split = leave_one_out(log)
    items[split.test.row_N] = items[split.validation.row_N]
    log = replace(log, item_id=items)
    agent = SimpleNamespace(scores=lambda h: torch.nn.functional.one_hot(
        h.item_ids_UT.gather(1, h.mask_UT.sum(1, keepdim=True) - 1)[:, 0], NUM_ITEMS).double())  # fmt: skip
    out = evaluate_ranking(agent, log, catalog_of(), leave_one_out(log), CONFIG)
    assert out.totals["targets seen before"] == 1 and out.mean("HR@5") == 0
    kept = evaluate_ranking(agent, log, catalog_of(), leave_one_out(log), replace(CONFIG, leave_out_seen=False))
    assert kept.mean("HR@1") == 1
    assert "seen items left out" in out.protocol and "seen items ranked too" in kept.protocol


def test_gini_of_known_counts():
    assert gini(np.array([3, 3, 3])) == 0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert np.isnan(gini(np.zeros(3)))


def test_intervals_over_users_and_over_seeds():
    log = log_of(0, users=200)
    split = leave_one_out(log)
    popular = PopularRecommender(torch.arange(NUM_ITEMS), 3)
    runs = [evaluate_ranking(popular, log, catalog_of(), split, CONFIG)]
    runs += [evaluate_ranking(ByHistory(), log, catalog_of(), split, replace(CONFIG, chunk=50))]
    users = runs[0].intervals(seed=3)["HR@3"]
    deviation = runs[0].values_N["HR@3"].std() / np.sqrt(len(split.test))
    assert users["low"] < users["mean"] < users["high"]
    assert users["high"] - users["low"] == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    seeds = over_seeds(runs, "HR@3")
    values = [run.mean("HR@3") for run in runs]
    low, high = stats.t.interval(0.95, 1, loc=np.mean(values), scale=stats.sem(values))
    assert (seeds["low"], seeds["high"]) == (pytest.approx(low), pytest.approx(high))
    assert np.isnan(over_seeds(runs[:1], "HR@3")["low"])


def test_the_table_names_its_protocol_and_refuses_to_mix():
    log = log_of(0)
    split = leave_one_out(log)
    runs = {name: [evaluate_ranking(agent, log, catalog_of(), split, CONFIG)] for name, agent in
            {"scores": ByHistory(), "lists": Lists()}.items()}  # fmt: skip
    table = ranking_table(runs, ("HR@3", "coverage@3"))
    assert table.title == f"leave-one-out; 12 items, seen items left out; {len(split.test)} targets"
    columns = {column.header: list(column.cells) for column in table.columns}
    assert list(columns) == ["agent", "ranked by", "HR@3", "coverage@3"]
    assert columns["ranked by"] == ["scores", "lists"]
    assert columns["HR@3"][0].startswith(f"{runs['scores'][0].mean('HR@3'):.4f}\n[")
    assert "unseen in training" in table.caption and "over users" in table.caption
    other = evaluate_ranking(ByHistory(), log, catalog_of(), split, replace(CONFIG, leave_out_seen=False))
    with pytest.raises(ValueError, match="judged differently"):
        ranking_table(runs | {"other": [other]})


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (
            SimpleNamespace(scores=lambda h: torch.full((len(h), NUM_ITEMS), torch.nan)),
            "scores\\(\\) gave NaN for 7 users",
        ),
        (SimpleNamespace(scores=lambda h: torch.zeros(len(h), 3)), r"gave shape \(7, 3\); give one score per item"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(agent, message):
    log = log_of(0)
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(agent, log, catalog_of(), leave_one_out(log), CONFIG)


def test_lists_that_count_double_are_refused():
    class Bad(Lists):
        def recommend(self, histories):
            session = super().recommend(histories)
            return replace(session, item_ids_USK=session.item_ids_USK * 0 + self.item)

    log = log_of(0)
    for item, message in ((1, "listed an item twice"), (99, r"listed an item outside 0..11")):
        agent = Bad()
        agent.item = item
        with pytest.raises(ValueError, match=message):
            evaluate_ranking(agent, log, catalog_of(), leave_one_out(log), CONFIG)
    with pytest.raises(ValueError, match=r"at\[0\]=0 must be 1 or more"):
        RankingConfig(at=(0,))
