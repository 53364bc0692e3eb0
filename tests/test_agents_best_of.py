import pytest
import torch
from toy_agents import NUM_ITEMS, K, toy_histories, toy_model, toy_tokenizer

from feedgym.agents import best_of
from feedgym.agents.baselines import RandomRecommender
from feedgym.agents.best_of import BestOf, best
from feedgym.agents.check import check_recommender
from feedgym.agents.generation import SamplingConfig
from feedgym.agents.session_model import SessionRecommender
from feedgym.data.batches import SessionBatch


def reward(histories, sessions):
    """Prefers other items of every user, and minds the order."""
    place_K = torch.arange(1, sessions.item_ids_USK.shape[2] + 1)
    return (sessions.item_ids_USK * place_K).sum(-1).float() * (1 - 2 * histories.profile_UF[:, :1].float() % 3)


def generative():
    return SessionRecommender(toy_model(), toy_tokenizer(), K, SamplingConfig(temperature=1.5), num_beams=0)


@pytest.mark.parametrize("agent", [generative(), RandomRecommender(NUM_ITEMS, K)], ids=["drawn", "sampled"])
@pytest.mark.parametrize("rows", [4096, 7])
def test_it_is_an_agent_like_others_whatever_the_blocks(agent, rows, monkeypatch):
    monkeypatch.setattr(best_of, "ROWS_PER_BLOCK", rows)
    check_recommender(BestOf(agent, reward, 5), toy_histories(6), NUM_ITEMS)


@pytest.mark.parametrize("rows", [4096, 20, 1])
def test_what_is_served_is_the_best_of_the_agents_own_draws(rows, monkeypatch):
    monkeypatch.setattr(best_of, "ROWS_PER_BLOCK", rows)
    histories, agent = toy_histories(9), generative()
    served = BestOf(agent, reward, 8).recommend(histories)
    drawn = agent.drawn(histories, 8)
    score_US = reward(histories, drawn)
    for u in range(9):
        scores = score_US[u].tolist()
        first = scores.index(max(scores))  # of equal ones the first
        assert served.item_ids_USK[u, 0].tolist() == drawn.item_ids_USK[u, first].tolist()
    assert served.logp_US.isnan().all() and served.logp_US.shape == (9, 1)
    assert (reward(histories, served)[:, 0] > score_US[:, 0]).any(), "the first draw is what the agent itself serves"


def test_the_best_of_one_is_the_agents_own_draw():
    histories, agent = toy_histories(9), generative()
    assert torch.equal(
        BestOf(agent, reward, 1).recommend(histories).item_ids_USK, agent.recommend(histories).item_ids_USK
    )


def test_samples_are_each_the_best_of_a_group_of_their_own():
    histories, agent = toy_histories(5), generative()
    found = BestOf(agent, reward, 3).sample(histories, 4, torch.Generator().manual_seed(1))
    drawn = agent.sample(histories, 12, torch.Generator().manual_seed(1))
    score_US = reward(histories, drawn)
    for u in range(5):
        for s in range(4):
            group = range(3 * s, 3 * s + 3)
            chosen = max(group, key=lambda i: (score_US[u, i].item(), -i))
            assert found.item_ids_USK[u, s].tolist() == drawn.item_ids_USK[u, chosen].tolist()


def test_with_more_draws_the_reward_never_falls_for_they_are_the_same_and_more():
    histories, agent = toy_histories(9), generative()
    scores = [reward(histories, BestOf(agent, reward, n).recommend(histories)) for n in (1, 4, 16)]
    assert (scores[1] >= scores[0]).all() and (scores[2] >= scores[1]).all() and (scores[2] > scores[0]).any()


def test_an_agent_that_can_only_sample_draws_by_the_request():
    histories, agent = toy_histories(6), RandomRecommender(NUM_ITEMS, K)
    one, other = BestOf(agent, reward, 4), BestOf(agent, reward, 4)
    whole = one.recommend(histories).item_ids_USK
    assert torch.equal(whole, other.recommend(histories).item_ids_USK)
    assert len({tuple(row) for row in whole[:, 0].tolist()}) > 1


def test_the_best_by_hand():
    items_USK = torch.arange(12).view(1, 6, 2)
    score_US = torch.tensor([[1.0, 3, 2, 5, 5, 0]])
    assert best(SessionBatch(item_ids_USK=items_USK, logp_US=score_US), score_US).item_ids_USK.tolist() == [[[6, 7]]]
    two = best(SessionBatch(item_ids_USK=items_USK, logp_US=score_US), score_US, 2)
    assert two.item_ids_USK.tolist() == [[[2, 3], [6, 7]]]


def test_none_cannot_be_served():
    with pytest.raises(ValueError, match="give 1 or more"):
        BestOf(generative(), reward, 0)
