"""The cascade against its own definition by brute force, and the promises of a recommender."""

from dataclasses import dataclass, replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_agents import toy_histories, toy_model, toy_tokenizer

from feedgym.agents.cascade import Cascade, CascadeConfig, Voted, rerank
from feedgym.agents.check import check_recommender
from feedgym.agents.hstu import HSTU, HSTUConfig
from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.session_model import SessionRecommender
from feedgym.data.batches import DatedEventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.envs.truth import RewardWeights

ITEMS, K = 9, 3
TASKS = ("click", "like", "follow", "comment", "forward", "hate")

pytestmark = pytest.mark.usefixtures("one_thread")


def catalog_of(num_items=ITEMS, **columns):
    rng = np.random.default_rng(3)
    return Catalog(
        raw_ids_I=np.arange(num_items),
        content_IE=rng.normal(size=(num_items, 4)).astype(np.float32),
        topic_I=np.arange(num_items, dtype=np.int32) % 3,
        duration_s_I=rng.uniform(10, 200, num_items).astype(np.float32),
        creator_I=np.arange(num_items),
        upload_s_I=np.zeros(num_items),
        **columns,
    )


class Scores:
    """A retriever whose scores depend on the last item that the user saw."""

    def __init__(self, num_items=ITEMS):
        self.table = torch.randn(num_items + 1, num_items, generator=torch.Generator().manual_seed(1))

    def scores(self, histories):
        length_U = histories.mask_UT.sum(1)
        last_U = histories.item_ids_UT.gather(1, (length_U - 1).clamp_min(0)[:, None])[:, 0]
        return self.table[torch.where(length_U > 0, last_U, len(self.table) - 1)]


@dataclass
class Ranker:
    """A ranker whose answers depend on the user's profile and the item, and on nothing else."""

    tasks: tuple = TASKS
    watch: bool = True
    num_items: int = ITEMS

    def __post_init__(self):
        rng = torch.Generator().manual_seed(2)
        self.config = SimpleNamespace(tasks=self.tasks, watch=self.watch)
        self.prob = torch.rand(3, self.num_items, len(self.tasks) + self.watch, generator=rng)

    def predict(self, histories, item_ids_UK, mask_UK=None):
        prob_UKM = self.prob[histories.profile_UF[:, :1], item_ids_UK]
        return SimpleNamespace(prob_UKM=prob_UKM, watch_fraction_UK=prob_UKM[..., -1])


def cascade_of(catalog=None, retriever=None, ranker=None, length=K, weights=None, **config):
    parts = (retriever or Scores(), ranker or Ranker(), catalog or catalog_of())
    return Cascade(*parts, length, CascadeConfig(**config), weights)


def brute_force(agent, histories, u):
    """One user's session straight from the definition: retrieve, value, place by place the greatest gain."""
    config, catalog, w = agent.config, agent.catalog, agent.weights
    seen = set(histories.item_ids_UT[u][histories.mask_UT[u]].tolist())
    scores = agent.retriever.scores(histories)[u].tolist()
    order = sorted(range(catalog.num_items), key=lambda i: (i in seen, -scores[i]))[: config.candidates]
    prob = agent.ranker.prob[histories.profile_UF[u, 0]].tolist()
    unit = catalog.content_IE / np.linalg.norm(catalog.content_IE, axis=1, keepdims=True)

    def value(i):
        told = sum(getattr(w, name) * prob[i][m] for m, name in enumerate(agent.ranker.tasks))
        return told + w.watch_minutes * prob[i][-1] * catalog.duration_s_I[i] / 60 - 1e4 * (i in seen)

    def bonus(i, placed):
        if not placed:
            return 0.0
        if config.rule == "mmr":
            return -max(float(unit[i] @ unit[j]) for j in placed)
        grams = [unit[rows] @ unit[rows].T for rows in (placed, [*placed, i])]
        return float(np.log(max(np.linalg.det(grams[1]) / np.linalg.det(grams[0]), 1e-10)))

    placed = []
    while len(placed) < agent.session_length:
        left = [i for i in order if i not in placed]
        placed.append(max(left, key=lambda i: value(i) + config.diversity * bonus(i, placed)))
    return placed


@pytest.mark.parametrize("rule", ["mmr", "dpp"])
@pytest.mark.parametrize("diversity", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("candidates", [3, 5, 9, 100])
def test_sessions_are_those_of_brute_force(rule, diversity, candidates):
    agent = cascade_of(rule=rule, diversity=diversity, candidates=candidates)
    histories = toy_histories(24, num_items=ITEMS)
    served = agent.recommend(histories).item_ids_USK[:, 0].tolist()
    assert served == [brute_force(agent, histories, u) for u in range(24)]


def test_rules_and_weights_matter():
    histories = toy_histories(24, num_items=ITEMS)
    plain = cascade_of().recommend(histories).item_ids_USK
    for other in (
        {"diversity": 1.0},
        {"diversity": 1.0, "rule": "dpp"},
        {"candidates": 4},
        {"weights": RewardWeights(watch_minutes=0.0, hate=-9.0)},
    ):
        assert not torch.equal(cascade_of(**other).recommend(histories).item_ids_USK, plain)


@pytest.mark.parametrize("rule", ["mmr", "dpp"])
def test_without_diversity_the_order_is_the_rankers_and_chance_is_plackett_luces(rule):
    value_UC = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    unit_UCE = torch.nn.functional.normalize(torch.randn(4, 7, 3), dim=2)
    config = CascadeConfig(rule=rule, temperature=0.7)
    choice = PlackettLuce(value_UC / 0.7, 3)
    place_USK, logp_US = rerank(value_UC, unit_UCE, 3, config)
    assert torch.equal(place_USK[:, 0], choice.mode())
    torch.testing.assert_close(logp_US[:, 0], choice.log_prob(place_USK[:, 0]))
    place_USK, logp_US = rerank(value_UC, unit_UCE, 3, config, 50, torch.Generator().manual_seed(1))
    for s in range(50):
        torch.testing.assert_close(logp_US[:, s], choice.log_prob(place_USK[:, s]))


@pytest.mark.parametrize("rule", ["mmr", "dpp"])
def test_sampled_sessions_come_as_often_as_their_log_probability_says(rule):
    value_UC = torch.tensor([[0.4, 0.1, 0.0, -0.2]])
    unit_UCE = torch.nn.functional.normalize(torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(4)), dim=2)
    config = CascadeConfig(rule=rule, diversity=0.4, temperature=0.5)
    places, logp = rerank(value_UC, unit_UCE, 3, config, 40_000, torch.Generator().manual_seed(0))
    key = (places[0] * torch.tensor([16, 4, 1])).sum(1)
    total = 0.0
    for order in permutations(range(4), 3):
        here = key == order[0] * 16 + order[1] * 4 + order[2]
        prob = float(logp[0][here][0].exp())  # all 24 orders were drawn
        assert (logp[0][here] - logp[0][here][0]).abs().max() < 1e-5
        assert abs(float(here.float().mean()) - prob) < 5 * (prob / 40_000) ** 0.5
        total += prob
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("config", [{}, {"diversity": 0.5}, {"diversity": 0.5, "rule": "dpp", "candidates": 4}])
def test_it_keeps_a_recommenders_promises(config):
    check_recommender(cascade_of(**config), toy_histories(9, seed=5, num_items=ITEMS), ITEMS)


def test_seen_items_come_last_and_nothing_twice():
    agent = cascade_of(length=5)
    histories = toy_histories(40, num_items=ITEMS)
    sessions = agent.sample(histories, 6, torch.Generator().manual_seed(0)).item_ids_USK
    for u in range(40):
        seen = set(histories.item_ids_UT[u][histories.mask_UT[u]].tolist())
        for session in sessions[u].tolist():
            assert len(set(session)) == 5
            again = [item in seen for item in session]
            assert again == sorted(again) and sum(again) == max(0, 5 - (ITEMS - len(seen)))


def test_users_do_not_depend_on_each_other():
    agent, histories = cascade_of(diversity=0.5), toy_histories(30, num_items=ITEMS)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    served, moved = agent.recommend(histories), agent.recommend(histories.rows(order))
    assert torch.equal(moved.item_ids_USK, served.item_ids_USK[order])
    torch.testing.assert_close(moved.logp_US, served.logp_US[order])


def test_only_what_exists_is_served_where_requests_are_dated():
    gone = np.where(np.arange(ITEMS) % 2, np.inf, 10.0)
    agent = cascade_of(catalog_of(withdraw_s_I=gone))
    histories = toy_histories(12, num_items=ITEMS)
    dated = DatedEventBatch(**vars(histories), time_s_U=torch.full((12,), 20.0, dtype=torch.float64))
    assert (agent.recommend(dated).item_ids_USK % 2 == 1).all()
    assert (agent.recommend(histories).item_ids_USK % 2 == 0).any()


def test_an_agents_drawn_sessions_can_name_the_candidates():
    base = SessionRecommender(toy_model(), toy_tokenizer(), session_length=K)
    retriever = Voted(base, 6, num_samples=8)
    histories = toy_histories(7)
    drawn = base.drawn(histories, 8).item_ids_USK.flatten(1)
    votes = torch.stack([(drawn == item).sum(1) for item in range(6)], dim=1)
    torch.testing.assert_close(retriever.scores(histories).exp(), votes.float())
    agent = cascade_of(catalog_of(6), retriever, Ranker(num_items=6))
    check_recommender(agent, toy_histories(9, seed=5), 6)
    few = cascade_of(catalog_of(6), Voted(SessionRecommender(toy_model(), toy_tokenizer(), 1), 6, 1), Ranker(), 2)
    with pytest.raises(ValueError, match="1 items for a user, a session 2"):
        few.recommend(histories)


def test_agents_without_their_own_draws_are_asked_under_a_fixed_seed():
    from feedgym.agents.baselines import RandomRecommender

    retriever, histories = Voted(RandomRecommender(ITEMS, 4), ITEMS, 2), toy_histories(5, num_items=ITEMS)
    score_UI = retriever.scores(histories)
    assert torch.equal(score_UI, retriever.scores(histories))
    assert (score_UI.exp().sum(1) == 8).all() and ((score_UI > -torch.inf).sum(1) >= 4).all()


def test_a_saved_cascade_comes_back(tmp_path):
    torch.manual_seed(0)
    config = HSTUConfig(num_items=ITEMS, d_model=8, d_qk=4, d_v=4, num_heads=1, history_length=6, session_length=K)
    weights = RewardWeights(like=0.7)
    agent = cascade_of(retriever=HSTU(config).eval(), weights=weights, diversity=0.4, rule="dpp", candidates=5)
    histories = toy_histories(9, num_items=ITEMS)
    agent.save(tmp_path / "agent")
    again = Cascade.load(tmp_path / "agent", ranker=Ranker())
    assert (again.config, again.weights, again.session_length) == (agent.config, weights, K)
    assert torch.equal(again.recommend(histories).item_ids_USK, agent.recommend(histories).item_ids_USK)
    with pytest.raises(ValueError, match="ranker="):
        Cascade.load(tmp_path / "agent")
    (tmp_path / "agent" / "cascade.json").write_text("{}")
    with pytest.raises(ValueError, match="no complete cascade"):
        Cascade.load(tmp_path / "agent", ranker=Ranker())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CascadeConfig(rule="mrm"), "mmr, dpp"),
        (lambda: CascadeConfig(diversity=-1.0), "diversity=-1.0"),
        (lambda: CascadeConfig(temperature=0.0), "temperature=0.0"),
        (lambda: cascade_of(candidates=2), "session_length=3"),
        (lambda: cascade_of(length=10), "session_length=10"),
        (lambda: cascade_of(ranker=Ranker(tasks=("click",))), "not like, whose weight is 0.5"),
        (lambda: cascade_of(ranker=Ranker(watch=False)), "not watch_minutes"),
        (lambda: Voted(None, 5, 0), "num_samples=0"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_of_nothing_need_no_prediction():
    nothing = {name: 0.0 for name in (*BEHAVIOURS, "watch_minutes")}
    weights = replace(RewardWeights(), **nothing | {"click": 1.0})
    agent = cascade_of(ranker=Ranker(tasks=("click",), watch=False), weights=weights)
    histories = toy_histories(6, num_items=ITEMS)
    found = agent.candidates(histories)
    want = agent.ranker.prob[histories.profile_UF[:, :1], found.item_ids_UC][..., 0]
    torch.testing.assert_close(found.value_UC, want)
