import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from toy_agents import NUM_ITEMS, K, T, toy_histories

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.agents.requests import request_noise

COUNTS = torch.tensor([5, 0, 9, 5, 0, 1])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def never_again(histories):
    """Histories with room for padding, and nonsense there."""
    histories = replace(histories, mask_UT=histories.mask_UT & (torch.arange(T) < T - 2))
    pad_UT = ~histories.mask_UT
    return histories, replace(histories, item_ids_UT=histories.item_ids_UT.masked_fill(pad_UT, 10**6))


def seen_by(histories, u):
    return set(histories.item_ids_UT[u][histories.mask_UT[u]].tolist())


# ---------------------------------------------------------------- random items


def test_random_sessions_are_uniform_over_ordered_sessions():
    agent = RandomRecommender(5, 3)
    drawn = agent.sample(toy_histories(2), 6000, seeded())
    assert drawn.item_ids_USK.shape == (2, 6000, 3) and drawn.item_ids_USK.dtype == torch.int64
    for u in range(2):
        counts = Counter(map(tuple, drawn.item_ids_USK[u].tolist()))
        assert set(counts) == set(permutations(range(5), 3))
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert drawn.logp_US.unique().tolist() == [pytest.approx(-math.log(5 * 4 * 3))]


def test_random_recommendations_are_uniform_over_requests():
    num = 6000
    histories = replace(toy_histories(1).rows([0] * num), time_of_day_U=torch.arange(num) / num * 24)
    served = RandomRecommender(5, 2).recommend(histories)
    counts = Counter(map(tuple, served.item_ids_USK[:, 0].tolist()))
    assert set(counts) == set(permutations(range(5), 2))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert served.logp_US.shape == (num, 1) and served.logp_US.isnan().all()


def test_a_random_recommendation_belongs_to_the_request_and_the_seed():
    histories, scribbled = never_again(toy_histories(12))
    served = RandomRecommender(NUM_ITEMS, K).recommend(histories).item_ids_USK
    agent = RandomRecommender(NUM_ITEMS, K)
    assert torch.equal(agent.recommend(scribbled.events(slice(T - 1))).item_ids_USK, served)
    order = torch.randperm(12, generator=seeded())
    assert torch.equal(agent.recommend(histories.rows(order)).item_ids_USK, served[order])
    assert torch.equal(torch.cat([agent.recommend(histories.rows([u])).item_ids_USK for u in range(12)]), served)
    assert not torch.equal(RandomRecommender(NUM_ITEMS, K, seed=1).recommend(histories).item_ids_USK, served)


def test_samples_are_decided_by_the_generator():
    for agent in (RandomRecommender(NUM_ITEMS, K), PopularRecommender(COUNTS + 1, K)):
        first, again, other = (agent.sample(toy_histories(5), 9, seeded(s)).item_ids_USK for s in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)


# ---------------------------------------------------------------- popular items


def test_the_most_popular_unseen_items_are_served_and_ties_go_to_the_lower_id():
    histories = toy_histories(30)
    served = PopularRecommender(COUNTS, K).recommend(histories)
    assert served.item_ids_USK.shape == (30, 1, K) and served.logp_US.isnan().all()
    came_back = 0
    for u in range(30):
        order = sorted(range(NUM_ITEMS), key=lambda i: (i in seen_by(histories, u), -COUNTS[i].item(), i))
        found = served.item_ids_USK[u, 0].tolist()
        unseen = [i for i in order if i not in seen_by(histories, u)][:K]
        assert found[: len(unseen)] == unseen and len(set(found)) == K
        came_back += len(unseen) < K
    assert came_back > 0  # where too little is left, seen items fill the session


def plain_logp(weights, session):
    """Plackett-Luce: item after item, by its share of what is left."""
    left, logp = dict(enumerate(weights)), 0.0
    for item in session:
        logp += math.log(left[item] / math.fsum(left.values()))
        del left[item]
    return logp


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e12])
def test_sampled_log_probabilities_are_those_of_a_plain_loop(scale):
    """Large counts beside zeros: the mass left at the end is a rounding error of the mass at the start."""
    histories = toy_histories(8)
    weights = COUNTS.double() * scale
    drawn = PopularRecommender(weights, NUM_ITEMS).sample(histories, 20, seeded())
    assert (drawn.logp_US <= 0).all() and drawn.logp_US.dtype == torch.float32
    for u in range(8):
        floor = [
            math.exp(-100.0) if i in seen_by(histories, u) else max(w, 1e-9) for i, w in enumerate(weights.tolist())
        ]
        for s, session in enumerate(drawn.item_ids_USK[u].tolist()):
            assert drawn.logp_US[u, s].item() == pytest.approx(plain_logp(floor, session), rel=1e-5, abs=1e-5)
    short = PopularRecommender(weights, 2).sample(histories, 20, seeded())
    floor = [max(w, 1e-9) for w in weights.tolist()]
    want = [plain_logp(floor, session) for session in short.item_ids_USK[0].tolist()]
    torch.testing.assert_close(short.logp_US[0], torch.tensor(want))


def test_popular_sessions_are_drawn_with_their_log_probability():
    agent = PopularRecommender(torch.tensor([5.0, 2.0, 9.0, 5.0, 3.0, 1.0]), 2)
    histories = toy_histories(6)
    drawn = agent.sample(histories, 8000, seeded())
    for u in (0, 2, 3):
        possible = list(permutations(set(range(NUM_ITEMS)) - seen_by(histories, u), 2))
        logp = dict(zip(map(tuple, drawn.item_ids_USK[u].tolist()), drawn.logp_US[u].tolist(), strict=True))
        counts = Counter(map(tuple, drawn.item_ids_USK[u].tolist()))
        assert set(counts) == set(possible)
        chances = [math.exp(logp[session]) for session in possible]
        assert sum(chances) == pytest.approx(1.0, abs=1e-5)
        expected = 8000 * np.array(chances) / sum(chances)
        assert stats.chisquare([counts[session] for session in possible], expected).pvalue > 1e-3


def test_seen_items_are_drawn_only_where_nothing_else_is_left():
    """Nobody likes the unseen items: still they go first."""
    seen = torch.tensor([[2, 0, 3, 0, 0, 0]])
    history = replace(toy_histories(2).rows([1]), item_ids_UT=seen, mask_UT=torch.tensor([[True] * 3 + [False] * 3]))
    drawn = PopularRecommender(COUNTS, 5).sample(history, 500, seeded()).item_ids_USK[0]
    assert set(drawn[:, :3].flatten().tolist()) == {1, 4, 5} and drawn[:, 0].unique().tolist() == [5]
    assert set(drawn[:, 3:].flatten().tolist()) == {0, 2, 3}


def test_popularity_ignores_padding_and_other_users():
    histories, scribbled = never_again(toy_histories(12))
    agent = PopularRecommender(COUNTS, K)
    served = agent.recommend(histories).item_ids_USK
    assert torch.equal(agent.recommend(scribbled).item_ids_USK, served)
    assert torch.equal(agent.recommend(scribbled.events(slice(T - 2))).item_ids_USK, served)
    assert torch.equal(torch.cat([agent.recommend(histories.rows([u])).item_ids_USK for u in range(12)]), served)
    kept = {name: column.clone() for name, column in vars(scribbled).items() if column is not None}
    agent.sample(scribbled, 3, seeded())
    assert all(torch.equal(getattr(scribbled, name), column) for name, column in kept.items())


@pytest.mark.parametrize("length", [0, NUM_ITEMS + 1])
def test_sessions_longer_than_the_catalogue_are_refused(length):
    for make in (lambda: RandomRecommender(NUM_ITEMS, length), lambda: PopularRecommender(COUNTS, length)):
        with pytest.raises(ValueError, match=rf"session_length={length} must be in 1\.\.{NUM_ITEMS}"):
            make()


# ---------------------------------------------------------------- the random numbers of a request


def test_request_noise_is_uniform_and_its_numbers_have_nothing_to_do_with_each_other():
    num = 3000
    histories = replace(toy_histories(3).rows([2] * num), time_of_day_U=torch.arange(num) / num * 24)
    noise_UN = request_noise(histories, 4).numpy()
    assert noise_UN.dtype == np.float32 and noise_UN.min() > 0 and noise_UN.max() < 1
    for column in noise_UN.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise_UN.T) - np.eye(4)).max() < 0.08
    assert np.abs(np.corrcoef(noise_UN[:-1, 0], noise_UN[1:, 0])[0, 1]) < 0.08


def test_request_noise_depends_on_the_request_alone():
    histories, scribbled = never_again(toy_histories(12))
    noise = request_noise(histories, 300)  # more numbers than a position has channels
    assert noise.shape == (12, 300) and len(noise.unique()) > 3590
    assert torch.equal(request_noise(histories, 20), noise[:, :20])
    for length in (T - 2, T - 1, T):
        assert torch.equal(request_noise(scribbled.events(slice(length)), 300), noise)
    longer = replace(
        histories,
        item_ids_UT=torch.cat([scribbled.item_ids_UT] * 2, dim=1),
        mask_UT=torch.cat([histories.mask_UT, torch.zeros(12, T).bool()], dim=1),
    )
    assert torch.equal(request_noise(longer, 300), noise)
    order = torch.randperm(12, generator=seeded())
    assert torch.equal(request_noise(histories.rows(order), 300), noise[order])
    assert (request_noise(histories, 300, seed=1) != noise).float().mean() > 0.99


@pytest.mark.parametrize("change", ["an item", "the order", "the profile", "the hour", "one event more"])
def test_another_request_has_other_luck(change):
    history = toy_histories(2).rows([1])
    history = replace(history, item_ids_UT=torch.tensor([[3, 1, 4, 1, 5, 0]]), mask_UT=torch.arange(T)[None] < 5)
    other = {
        "an item": replace(history, item_ids_UT=torch.tensor([[3, 1, 4, 2, 5, 0]])),
        "the order": replace(history, item_ids_UT=torch.tensor([[1, 3, 4, 1, 5, 0]])),
        "the profile": replace(history, profile_UF=history.profile_UF.flip(1) + 1),
        "the hour": replace(history, time_of_day_U=(history.time_of_day_U + 1) % 24),
        "one event more": replace(history, mask_UT=torch.ones(1, T).bool()),  # of item 0, which is not padding
    }[change]
    assert (request_noise(other, 50) != request_noise(history, 50)).float().mean() > 0.95
