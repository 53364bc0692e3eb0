"""ItemKNN against loops over users and items."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from toy_agents import toy_histories

from feedgym.agents import baselines
from feedgym.agents.baselines import ItemKNNRecommender
from feedgym.data.build import assemble_log
from feedgym.data.events import BEHAVIOURS

NUM_ITEMS, K = 8, 3


def log_of(seed, users=20, items=NUM_ITEMS):
    rng = np.random.default_rng(seed)
    user = np.sort(rng.integers(0, users, 5 * users))
    behaviours = np.zeros((len(user), len(BEHAVIOURS)), np.uint8)
    behaviours[:, 0] = rng.random(len(user)) < 0.8
    behaviours[:, -1] = rng.random(len(user)) < 0.2  # hate takes nothing
    return assemble_log(
        user_ids_U=np.arange(users),
        profile_UF=np.zeros((users, 0), int),
        profile_names=(),
        profile_sizes=(),
        user_idx=user,
        timestamp_s=np.arange(len(user)) * 1.0,
        item_id=rng.integers(0, items, len(user)),
        watch_s=np.zeros(len(user), np.float32),
        behaviours=behaviours,
        new_visit=np.diff(user, prepend=-1) != 0,
    )


def plain_similarity(log, items, neighbours, shrink):
    """sim[i][j] by loops; of equally near items the lower id is kept."""
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets_U1))
    taken = [{u for u, i, b in zip(user, log.item_id, log.behaviours, strict=True) if i == item and b[0]}
             for item in range(items)]  # fmt: skip
    out = np.zeros((items, items))
    for i in range(items):
        near = [(len(taken[i] & taken[j]) / (np.sqrt(len(taken[i]) * len(taken[j])) + shrink), -j)
                for j in range(items) if j != i and taken[i] & taken[j]]  # fmt: skip
        for similarity, minus_j in sorted(near, reverse=True)[:neighbours]:
            out[i, -minus_j] = similarity
    return out, [len(t) for t in taken]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.sampled_from([0.0, 2.0]), st.booleans())
def test_neighbours_equal_a_plain_loop(seed, neighbours, shrink, sorted_whole):
    log = log_of(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "KNN_BLOCK", 3)  # blocks change nothing
        agent = ItemKNNRecommender.fit(log, NUM_ITEMS, K, neighbours=neighbours, shrink=shrink)
    want, count = plain_similarity(log, NUM_ITEMS, neighbours, shrink)
    # Rounding may order two equal cosines either way, so the kept similarities are compared, sorted.
    found = agent.similarity_II.toarray()
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(want, axis=1), rtol=1e-6)
    every, _ = plain_similarity(log, NUM_ITEMS, NUM_ITEMS, shrink)
    np.testing.assert_allclose(found[found > 0], every[found > 0], rtol=1e-6)
    assert agent.count_I.tolist() == count


def test_only_the_nearest_of_many_are_sorted_and_kept():
    """The path for dense blocks, where the last kept similarity is found first."""
    log = log_of(1, users=300, items=40)
    agent = ItemKNNRecommender.fit(log, 40, K, neighbours=3)
    want, _ = plain_similarity(log, 40, 3, 0.0)
    found = agent.similarity_II.toarray()
    assert (found > 0).sum(axis=1).max() == 3
    np.testing.assert_allclose(np.sort(found, axis=1), np.sort(want, axis=1), rtol=1e-6)


def agent_of(recent=None):
    similarity = np.zeros((6, 6))
    similarity[0, [1, 2]], similarity[3, [2, 4]], similarity[5, 0] = (0.5, 0.25), (0.5, 0.125), 0.75
    return ItemKNNRecommender(sparse.csr_matrix(similarity), torch.tensor([5, 0, 9, 5, 0, 1]), K, recent=recent)


def test_scores_add_up_similarities_of_the_histories_different_items():
    agent, histories = agent_of(), toy_histories(30)
    similarity, popularity = agent.similarity_II.toarray(), np.array([5, 0, 9, 5, 0, 1]) / 10 - 1
    for last in (None, 1, 2):
        score_UI = agent_of(last).scores(histories)
        for u in range(30):
            seen = histories.item_ids_UT[u][histories.mask_UT[u]].tolist()
            total = similarity[sorted(set(seen if last is None else seen[-last:]))].sum(axis=0)
            np.testing.assert_allclose(score_UI[u], np.where(total > 0, total, popularity))


def test_it_serves_the_best_unseen_items_and_then_popular_ones():
    histories = toy_histories(20)
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(6) < 3))
    agent = agent_of()
    served, score_UI = agent.recommend(histories).item_ids_USK, agent.scores(histories)
    for u in range(20):
        seen = set(histories.item_ids_UT[u][histories.mask_UT[u]].tolist())
        order = sorted((i for i in range(6) if i not in seen), key=lambda i: (-score_UI[u, i].item(), i))
        assert served[u, 0].tolist() == order[:K]
    assert served[0, 0].tolist() == [2, 0, 3]  # a new user gets what is popular


def test_sampled_sessions_hold_seen_items_only_where_nothing_else_is_left():
    histories = toy_histories(12)
    drawn = agent_of().sample(histories, 50, torch.Generator().manual_seed(0))
    assert drawn.logp_US.isfinite().all() and (drawn.logp_US <= 0).all()
    for u in range(12):
        seen = set(histories.item_ids_UT[u][histories.mask_UT[u]].tolist())
        fresh = min(K, 6 - len(seen))
        assert all(len(set(s) - seen) == fresh for s in drawn.item_ids_USK[u].tolist())


@pytest.mark.parametrize("given_", [{"neighbours": 0}, {"shrink": -1.0}, {"recent": 0}, {"behaviours": ("follow",)}])
def test_settings_that_mean_nothing_are_refused(given_):
    with pytest.raises(ValueError, match=r"raise|name behaviours that the log has"):
        ItemKNNRecommender.fit(log_of(0), NUM_ITEMS, K, **given_)
