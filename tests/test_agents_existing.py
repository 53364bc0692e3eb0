"""Where items come and go, no agent of any kind serves, samples or learns from an item that does not exist then."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import sparse
from toy_agents import (
    CODES,
    NUM_CODES,
    NUM_ITEMS,
    K,
    T,
    allowed,
    dated,
    scribbled,
    toy_histories,
    toy_model,
    toy_tokenizer,
)
from toy_ranker import ToyRanker
from toy_users import toy_catalog

from feedgym.agents.baselines import ItemKNNRecommender, PopularRecommender, RandomRecommender
from feedgym.agents.cascade import Cascade, CascadeConfig, Voted
from feedgym.agents.check import check_recommender
from feedgym.agents.generation import SamplingConfig, beam_sessions, sample_sessions, score_sessions
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender
from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.agents.sasrec import SASRec, SASRecConfig
from feedgym.agents.sequences import ScoreRecommender
from feedgym.agents.session_model import SessionRecommender
from feedgym.agents.slates import NETWORKS
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.agents.slates.world import SlateWorld
from feedgym.agents.tiger import Tiger, TigerConfig
from feedgym.envs.truth import RewardWeights
from feedgym.tokenizers import Trie
from feedgym.tokenizers.item_id import ItemId

pytestmark = pytest.mark.usefixtures("one_thread")

DAY_S = 86_400.0
UPLOAD_D, WITHDRAW_D = [0, -3, 0, 0, 1, 2], [np.inf, 1, np.inf, 3, np.inf, np.inf]
CATALOG = replace(
    toy_catalog(NUM_ITEMS), upload_s_I=np.array(UPLOAD_D) * DAY_S, withdraw_s_I=np.array(WITHDRAW_D) * DAY_S
)
DAYS = [0.5, 1.0, 1.5, 2.0, 2.9999, 3.0, 40.0]
"""Moments at which 4 or 5 of the items exist."""
EVERY = torch.tensor(list(permutations(range(NUM_ITEMS), K)))


def requests(seed=0):
    """Histories that show items of all times, one a moment of :data:`DAYS`."""
    return dated(toy_histories(len(DAYS), seed), torch.tensor(DAYS, dtype=torch.float64) * DAY_S)


def plain_existing(day):
    return [i for i in range(NUM_ITEMS) if UPLOAD_D[i] <= day < WITHDRAW_D[i]]


def all_exist(sessions, histories):
    existing = [set(plain_existing(time_s / DAY_S)) for time_s in histories.time_s_U.tolist()]
    return all(set(rows.flatten().tolist()) <= some for rows, some in zip(sessions.item_ids_USK, existing, strict=True))


def tiger():
    torch.manual_seed(1)
    sizes = dict(d_model=8, num_heads=2, head_width=6, encoder_layers=1, decoder_layers=1, d_ff=12, num_user_tokens=7)
    lengths = dict(session_length=K, history_length=T, profile_sizes=(3, 2), only_positives=False)
    return Tiger.from_tokenizer(toy_tokenizer(), TigerConfig(**sizes, **lengths)).eval()


def hstu():
    torch.manual_seed(2)
    lengths = dict(num_items=NUM_ITEMS, history_length=T, session_length=K)
    return HSTU(HSTUConfig(d_model=8, d_qk=5, d_v=4, temperature=0.5, **lengths)).eval()


MODELS = {
    "OneRec": (toy_model, CODES, NUM_CODES),
    "TIGER": (tiger, CODES, NUM_CODES),
    "HSTU": (hstu, torch.arange(NUM_ITEMS)[:, None], (NUM_ITEMS,)),
}


# ---------------------------------------------------------------- generation, with every session enumerated


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block_seen", [True, False])
def test_the_probabilities_of_the_sessions_of_existing_items_sum_to_one(name, block_seen):
    make, codes_IL, num_codes = MODELS[name]
    model, trie, histories = make(), Trie.from_codes(codes_IL, num_codes).dated(CATALOG), requests()
    scored = score_sessions(model, trie, histories, EVERY.expand(len(DAYS), -1, -1), block_seen)
    prob_UX = (scored.logp_US - scored.logp_allowed_US).exp()
    torch.testing.assert_close(prob_UX.sum(1), torch.ones(len(DAYS)))
    for u, day in enumerate(DAYS):
        existing = torch.isin(EVERY, torch.tensor(plain_existing(day))).all(1)
        assert not prob_UX[u, ~existing].any()
        assert block_seen or (prob_UX[u, existing] > 0).all()
    found = sample_sessions(model, trie, histories, 200, K, torch.Generator().manual_seed(0),
                            SamplingConfig(block_seen=block_seen))  # fmt: skip
    again = score_sessions(model, trie, histories, found.item_ids_USK, block_seen)
    for column in ("logp_US", "logp_legal_US", "logp_allowed_US"):
        torch.testing.assert_close(getattr(found, column), getattr(again, column), atol=1e-4, rtol=1e-4)
    wide = beam_sessions(model, trie, histories.rows([3]), 1000, K, block_seen)
    possible = {tuple(s) for s, p in zip(EVERY.tolist(), prob_UX[3].tolist(), strict=True) if p > 0}
    assert {tuple(session) for session in wide.item_ids_USK[0].tolist()} == possible


@pytest.mark.parametrize("name", MODELS)
def test_at_each_time_it_is_as_if_no_other_items_had_codes(name):
    make, codes_IL, num_codes = MODELS[name]
    model, trie, histories = make(), Trie.from_codes(codes_IL, num_codes).dated(CATALOG), requests(1)
    for u, day in enumerate(DAYS):
        existing, history = torch.tensor(plain_existing(day)), histories.rows([u])
        alone = Trie.from_codes(codes_IL[existing], num_codes)
        among = torch.tensor(list(permutations(range(len(existing)), K)))[None]
        found = score_sessions(model, trie, history, existing[among], block_seen=False)
        expected = score_sessions(model, alone, history, among, block_seen=False)
        for column in ("logp_US", "logp_legal_US", "logp_allowed_US"):
            torch.testing.assert_close(getattr(found, column), getattr(expected, column))
        searched, plain = (beam_sessions(model, some, history, 4, K, block_seen=False) for some in (trie, alone))
        assert torch.equal(searched.item_ids_USK, existing[plain.item_ids_USK])


@pytest.mark.parametrize("name", MODELS)
def test_nothing_moves_where_nothing_is_dated_or_everything_exists(name):
    make, codes_IL, num_codes = MODELS[name]
    model, plain, histories = make(), Trie.from_codes(codes_IL, num_codes), toy_histories(9)
    always = plain.dated(replace(CATALOG, upload_s_I=np.full(NUM_ITEMS, -5.0), withdraw_s_I=None))
    ways = [(plain, histories), (plain.dated(CATALOG), histories), (always, dated(histories, torch.zeros(9).double()))]
    first, *others = (sample_sessions(model, t, h, 8, K, torch.Generator().manual_seed(0)) for t, h in ways)
    for other in others:
        for column in ("item_ids_USK", "logp_US", "logp_legal_US", "logp_allowed_US"):
            assert torch.equal(getattr(first, column), getattr(other, column))


def test_users_at_different_times_do_not_touch_each_other(monkeypatch):
    model, trie, histories = toy_model(), toy_tokenizer().trie().dated(CATALOG), requests(2)
    whole = beam_sessions(model, trie, histories, 6, K)
    alone = [beam_sessions(model, trie, histories.rows([u]), 6, K) for u in range(len(DAYS))]
    monkeypatch.setattr("feedgym.agents.generation.SUPPLY_CELLS", 1)
    blocks = beam_sessions(model, trie, histories, 6, K)
    for u, one in enumerate(alone):
        assert torch.equal(whole.item_ids_USK[u], one.item_ids_USK[0, : whole.item_ids_USK.shape[1]])
    assert torch.equal(whole.item_ids_USK, blocks.item_ids_USK)


# ---------------------------------------------------------------- all agents


def slates(kind, draws=False, **more):
    torch.manual_seed(3)
    world = SlateWorld.of(CATALOG, (3, 2), K, T, axes=2, dated=True)
    network = NETWORKS[kind](world, SlateNetConfig(width=8, heads=2, hidden=16), **more)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return RLlibRecommender(network, draws)


def cascade(retriever):
    ranker = ToyRanker(torch.from_numpy(CATALOG.content_IE))
    config = CascadeConfig(candidates=NUM_ITEMS, diversity=0.2)
    return Cascade(
        retriever, ranker, CATALOG, K, config, RewardWeights(watch_minutes=0, follow=0, comment=0, forward=0)
    )


def drawing():
    return SessionRecommender(toy_model(), toy_tokenizer(), num_beams=0, catalog=CATALOG)


def item_knn():
    near_II = np.random.default_rng(0).random((NUM_ITEMS, NUM_ITEMS)) * (1 - np.eye(NUM_ITEMS))
    return ItemKNNRecommender(sparse.csr_matrix(near_II), torch.arange(NUM_ITEMS), K, catalog=CATALOG)


AGENTS = {
    "random": lambda: RandomRecommender(NUM_ITEMS, K, catalog=CATALOG),
    "popular": lambda: PopularRecommender(torch.arange(NUM_ITEMS), K, catalog=CATALOG),
    "item-knn": item_knn,
    "OneRec": lambda: SessionRecommender(toy_model(), toy_tokenizer(), catalog=CATALOG),
    "OneRec, drawing": drawing,
    "OneRec, filtered": lambda: SessionRecommender(
        toy_model(), toy_tokenizer(), sampling=SamplingConfig(temperature=2, top_k=2, top_p=0.9), catalog=CATALOG
    ),
    "TIGER": lambda: SessionRecommender(tiger(), toy_tokenizer(), catalog=CATALOG),
    "HSTU": lambda: HSTURecommender(hstu(), catalog=CATALOG),
    "SASRec": lambda: ScoreRecommender(
        SASRec(SASRecConfig(num_items=NUM_ITEMS, d_model=8, d_ff=8, history_length=T, session_length=K)),
        catalog=CATALOG,
    ),
    "cascade": lambda: cascade(hstu()),
    "cascade of drawn sessions": lambda: cascade(Voted(drawing(), NUM_ITEMS, 50)),
    "SlatePolicy": lambda: slates("SlatePolicy"),
    "SlatePolicy, drawing": lambda: slates("SlatePolicy", draws=True),
    "SlateQ": lambda: slates("SlateQ"),
    "ItemQ": lambda: slates("ItemQ"),
    "ProtoPolicy": lambda: slates("ProtoPolicy", fresh=False),
    "ProtoPolicy, fresh": lambda: slates("ProtoPolicy", points=K),
}


@pytest.mark.parametrize("name", AGENTS)
def test_no_agent_samples_or_serves_what_does_not_exist(name):
    agent = AGENTS[name]()
    for seed in range(3):
        histories = requests(seed)
        assert all_exist(agent.recommend(histories), histories)
        assert all_exist(agent.sample(histories, 40, torch.Generator().manual_seed(seed)), histories)
        if hasattr(agent, "beams"):
            assert all_exist(agent.beams(histories, 6), histories)
    check_recommender(agent, toy_histories(7), NUM_ITEMS)
    if name != "cascade of drawn sessions":  # the check takes away so much of these histories that the votes are few
        check_recommender(agent, requests(), NUM_ITEMS)


@pytest.mark.parametrize("name", [name for name in AGENTS if not name.startswith("cascade")])
def test_a_request_with_fewer_existing_items_than_a_session_is_told(name):
    agent = AGENTS[name]()
    early = replace(requests(), time_s_U=torch.full((len(DAYS),), -DAY_S, dtype=torch.float64))
    for ask in (agent.recommend, lambda some: agent.sample(some, 2, torch.Generator().manual_seed(0))):
        with pytest.raises(ValueError, match="A session of 3 different items was requested when only 1 exist"):
            ask(early)


def test_agents_that_know_the_times_come_back_from_disk_with_them(tmp_path):
    agent, histories = slates("SlateQ"), requests()
    agent.save(tmp_path)
    again = RLlibRecommender.load(tmp_path)
    assert again.network.world.dated and all_exist(again.recommend(histories), histories)
    assert torch.equal(again.recommend(histories).item_ids_USK, agent.recommend(histories).item_ids_USK)


# ---------------------------------------------------------------- the trie


def test_items_without_codes_are_told():
    with pytest.raises(ValueError, match="The catalogue has 7 items but 6 have codes; fit the tokenizer"):
        toy_tokenizer().trie().dated(toy_catalog(7))
    with pytest.raises(ValueError, match="6 have codes"):
        HSTURecommender(hstu(), catalog=toy_catalog(7))


def test_a_large_catalogue_is_masked_for_128_samples_a_user_without_a_large_table():
    num_items, rng = 20_000, np.random.default_rng(0)
    times = {"upload_s_I": rng.uniform(-1, 1, num_items), "withdraw_s_I": rng.uniform(0, 3, num_items)}
    catalog, ids_I1 = replace(toy_catalog(num_items), **times), torch.arange(num_items)[:, None]
    for codes_IL in (ids_I1, ids_I1 // torch.tensor([4, 2, 1]) % torch.tensor([5000, 2, 2])):
        trie, time_s_U = Trie.from_codes(codes_IL).dated(catalog), torch.tensor([0.0, 0.7], dtype=torch.float64)
        supply_UX = trie.supply(time_s_U)
        exists_UI = torch.from_numpy(catalog.exists(time_s_U.numpy()))
        assert supply_UX[:, 0].tolist() == exists_UI.sum(1).tolist() == trie.num_existing(time_s_U).tolist()
        assert torch.equal(supply_UX[:, trie.path_IL[:-1, -1]] > 0, exists_UI)
        mask_USC = allowed(trie, trie.root(2 * 128), 0, None, supply_UX).view(2, 128, -1)
        assert (mask_USC == mask_USC[:, :1]).all()
        for mask_C, exists_I in zip(mask_USC[:, 0], exists_UI, strict=True):
            assert torch.equal(mask_C.nonzero()[:, 0], codes_IL[exists_I, 0].unique())


def test_padding_says_nothing():
    trie = toy_tokenizer().trie().dated(CATALOG)
    model, histories = toy_model(), requests()
    found = [beam_sessions(model, trie, some, 3, K).item_ids_USK for some in (histories, scribbled(histories))]
    assert torch.equal(*found)


def test_an_item_id_tokenizer_is_dated_too():
    trie = ItemId().fit(torch.zeros(NUM_ITEMS, 1)).trie().dated(CATALOG)
    for time_s in (0.0, DAY_S, 2.5 * DAY_S):
        mask_C = allowed(trie, trie.root(1), 0, None, trie.supply(torch.tensor([time_s], dtype=torch.float64)))[0]
        assert mask_C.nonzero()[:, 0].tolist() == plain_existing(time_s / DAY_S)
