"""Sessions among candidates against a model's own logits over all items, session by session, on a tiny catalogue."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from toy_agents import dated, toy_histories, toy_model, toy_tokenizer
from toy_users import toy_catalog

from feedgym.agents.check import check_recommender
from feedgym.agents.generation import (
    SamplingConfig,
    candidate_items,
    item_log_probs,
    sample_sessions,
    score_sessions,
)
from feedgym.agents.hstu import HSTU, HSTUConfig, HSTURecommender
from feedgym.agents.layers.blockwise import blockwise_topk
from feedgym.agents.session_model import SessionRecommender, history_columns
from feedgym.experiments.align.presets import RoundsConfig, hstu_smoke, smoke, tiger_smoke

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, T, K, C = 9, 6, 2, 5
USERS = 6


def toy(seed=0, num_items=ITEMS, **sizes):
    """An untrained model whose every weight matters."""
    torch.manual_seed(seed)
    lengths = dict(num_items=num_items, history_length=T, session_length=K, dropout=0.0)
    model = HSTU(HSTUConfig(d_model=8, d_qk=5, d_v=4, temperature=0.5, **lengths | sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model.eval()


def agent_of(model, num_beams=0, catalog=None, **sampling):
    return HSTURecommender(model, K, SamplingConfig(**sampling), num_beams, catalog=catalog)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def requests(num=USERS, seed=0):
    """Histories short enough that candidates are left out for other reasons than that they were seen."""
    return toy_histories(num, seed, num_items=ITEMS, length=3)


def seen(histories, user):
    return set(histories.item_ids_UT[user][histories.mask_UT[user]].tolist())


def plain_candidates(model, histories, num=C, block_seen=True):
    """Each user's best items by the scores of all."""
    for user, score_I in enumerate(model.scores(histories).tolist()):
        left = [i for i in range(len(score_I)) if not (block_seen and i in seen(histories, user))]
        yield sorted(left, key=lambda i, s=score_I: -s[i])[:num]


def plain_chances(model, histories, candidates, temperature=1.0):
    """Log-probability of every session of each user: softmax over the candidates that are left, item after item."""
    every = torch.tensor(list(permutations(range(model.config.num_items), K)))
    for user, some in enumerate(candidates):
        one = histories.rows([user])
        with torch.no_grad():
            logits = model(input_ids=model.session_tokens(every), **history_columns(one)).logits
        logits_NKI = logits[:, ::2, model.vocabulary.level_offset(0) :]  # after BOS, each item is predicted
        logp = {}
        for session, logits_KI in zip(every.tolist(), logits_NKI, strict=True):
            left, total = list(some), 0.0
            for item, logit_I in zip(session, logits_KI, strict=True):
                if item not in left:
                    total = -np.inf
                    break
                total += (logit_I[left] / temperature).log_softmax(0)[left.index(item)].item()
                left.remove(item)
            logp[tuple(session)] = total
        yield logp


# ---------------------------------------------------------------- the largest of many


@given(
    num=st.integers(1, 40),
    users=st.integers(1, 4),
    k=st.integers(1, 12),
    block=st.integers(1, 45),
    seed=st.integers(0, 10**6),
    different=st.integers(1, 6),
)
def test_the_blockwise_largest_are_those_of_a_stable_sort(num, users, k, block, seed, different):
    score_UI = torch.randint(different, (users, num), generator=seeded(seed)).float()  # many are equal
    score_UI[torch.rand(score_UI.shape, generator=seeded(seed)) < 0.2] = -torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feedgym.agents.layers.blockwise.SCORES_PER_BLOCK", block)
        value_UK, idx_UK = blockwise_topk(lambda part: score_UI[:, part], (users, num), k)
    assert value_UK.shape == idx_UK.shape == (users, k)
    best = score_UI.sort(dim=1, descending=True, stable=True)
    for value, idx, expected, order in zip(value_UK, idx_UK, best.values, best.indices, strict=True):
        real = int((expected[:k] > -torch.inf).sum())
        assert torch.equal(value[:real], expected[:real]) and torch.equal(idx[:real], order[:real])
        assert (value[real:] == -torch.inf).all() and (idx[real:] == -1).all()
    expected_UK = score_UI.topk(min(k, num), dim=1).values
    assert torch.equal(value_UK[:, : expected_UK.shape[1]], expected_UK)


# ---------------------------------------------------------------- candidates


@pytest.mark.parametrize("block_seen", [False, True])
@pytest.mark.parametrize("block", [1, 4, 100])
def test_the_candidates_are_the_best_first_items(block_seen, block, monkeypatch):
    monkeypatch.setattr("feedgym.agents.layers.blockwise.SCORES_PER_BLOCK", block)
    model, histories = toy(), requests()
    found = candidate_items(model, agent_of(model).trie, histories, C, K, block_seen)
    assert found.tolist() == list(plain_candidates(model, histories, C, block_seen))


def test_a_user_who_has_seen_nearly_all_has_fewer_candidates():
    model, histories = toy(), requests()
    histories = replace(histories, earlier_UJ=torch.tensor([[0, 1, 2, 3, 4, 5]]).expand(USERS, -1).contiguous())
    found = candidate_items(model, agent_of(model).trie, histories, C, K)
    free = [set(range(6, ITEMS)) - seen(histories, user) for user in range(USERS)]
    for row, some in zip(found.tolist(), free, strict=True):
        assert set(row) >= some and (len(some) < K or set(row) - {-1} == some)
        assert len(set(row) - {-1}) >= K and -1 in row
    agent = agent_of(model, candidates=C)
    sessions = agent.sample(histories, 40, seeded())
    assert (sessions.item_ids_USK[..., 0] != sessions.item_ids_USK[..., 1]).all() and (sessions.item_ids_USK >= 0).all()
    for row_SK, some in zip(sessions.item_ids_USK, found.tolist(), strict=True):
        assert set(row_SK.flatten().tolist()) <= set(some) - {-1}
    assert torch.isfinite(sessions.logp_drawn_US).all()


def test_candidates_exist_at_the_request():
    upload_s_I, withdraw_s_I = np.array([0.0, 0, 0, 0, 0, 5, 0, 9, 0]), np.full(ITEMS, np.inf)
    withdraw_s_I[:3] = 7.0
    catalog = replace(toy_catalog(ITEMS), upload_s_I=upload_s_I, withdraw_s_I=withdraw_s_I)
    time_s_U = torch.tensor([0.0, 4.9, 5, 7, 8.9, 20], dtype=torch.float64)
    model, histories = toy(), dated(requests(), time_s_U)
    agent = agent_of(model, candidates=C, catalog=catalog)
    found = agent.candidates(histories)
    every = list(plain_candidates(model, histories, ITEMS))
    for row, best, time_s in zip(found.tolist(), every, time_s_U.tolist(), strict=True):
        there = [i for i in best if upload_s_I[i] <= time_s < withdraw_s_I[i]]
        assert [i for i in row if i >= 0] == there[:C]
    for sessions in (agent.sample(histories, 50, seeded()), agent.beams(histories, 4)):
        exists = catalog.exists(time_s_U.numpy()[:, None, None], sessions.item_ids_USK.numpy())
        assert exists.all()


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return result


@pytest.mark.parametrize(("users", "n"), [(16, 20), (300, 1)])
def test_no_tensor_has_a_cell_for_every_user_and_item(users, n):
    num_items = 60_000
    model, histories = toy(num_items=num_items), toy_histories(users, num_items=num_items)
    agent = agent_of(model, candidates=2000)
    with LargestTensor() as counted:
        agent.sample(histories, n, seeded())
        agent.candidates(histories)
    assert counted.most < (0.85 if users == 16 else 0.15) * users * num_items  # the candidates of all users have less


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("block_seen", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_sessions_have_the_probabilities_of_the_softmax_over_what_is_left_of_the_candidates(block_seen, temperature):
    model, histories, n = toy(), requests(), 4000
    agent = agent_of(model, candidates=C, block_seen=block_seen, temperature=temperature)
    some = list(plain_candidates(model, histories, C, block_seen))
    drawn = agent.sample(histories, n, seeded())
    for user, logp in enumerate(plain_chances(model, histories, some, temperature)):
        assert sum(map(np.exp, logp.values())) == pytest.approx(1, abs=1e-5)
        sessions = [tuple(row) for row in drawn.item_ids_USK[user].tolist()]
        expected = torch.tensor([logp[session] for session in sessions])
        torch.testing.assert_close(drawn.logp_drawn_US[user], expected, atol=1e-5, rtol=1e-5)
        for session, value in logp.items():
            share, chance = sessions.count(session) / n, np.exp(value)
            assert abs(share - chance) < 5 * (chance * (1 - chance) / n) ** 0.5 + 1e-9
    at_one = list(plain_chances(model, histories, some))
    restricted_US = drawn.logp_US - drawn.logp_allowed_US
    for user, logp in enumerate(at_one):
        expected = torch.tensor([logp[tuple(row)] for row in drawn.item_ids_USK[user].tolist()])
        torch.testing.assert_close(restricted_US[user], expected, atol=1e-5, rtol=1e-5)


def test_given_sessions_have_the_same_probabilities_and_none_with_an_item_that_is_no_candidate():
    model, histories = toy(), requests()
    trie, every = agent_of(model).trie, torch.tensor(list(permutations(range(ITEMS), K)))
    some = list(plain_candidates(model, histories))
    scored = score_sessions(model, trie, histories, every.expand(USERS, -1, -1), candidates=C)
    given = score_sessions(model, trie, histories, every.expand(USERS, -1, -1), candidates=torch.tensor(some))
    by_item = item_log_probs(model, trie, histories, every.expand(USERS, -1, -1), SamplingConfig(candidates=C))
    expected = torch.tensor([list(logp.values()) for logp in plain_chances(model, histories, some)])
    for found in (scored.logp_US - scored.logp_allowed_US, given.logp_US - given.logp_allowed_US, by_item.sum(2)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scored.logp_legal_US, torch.zeros_like(scored.logp_legal_US), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "way", [{}, {"temperature": 0.5}, {"top_p": 0.7}, {"top_k": 3}, {"block_seen": False}], ids=str
)
def test_with_all_items_as_candidates_the_draws_are_those_without_candidates(way):
    model, histories = toy(), requests()
    plain, among = (agent_of(model, candidates=num, **way).sample(histories, 200, seeded()) for num in (0, ITEMS))
    assert torch.equal(plain.item_ids_USK, among.item_ids_USK)
    torch.testing.assert_close(plain.logp_drawn_US, among.logp_drawn_US, atol=1e-5, rtol=1e-5)
    restricted = [sessions.logp_US - sessions.logp_allowed_US for sessions in (plain, among)]
    torch.testing.assert_close(*restricted, atol=1e-5, rtol=1e-5)
    more = agent_of(model, candidates=10 * ITEMS, **way).sample(histories, 200, seeded())
    assert torch.equal(more.item_ids_USK, among.item_ids_USK), "there are no more than all"


def test_a_search_finds_the_best_sessions_of_the_candidates():
    model, histories = toy(), requests()
    found = agent_of(model, candidates=C).beams(histories, C * (C - 1))
    some = list(plain_candidates(model, histories))
    for user, logp in enumerate(plain_chances(model, histories, some)):
        possible = {session for session, value in logp.items() if value > -np.inf}
        assert {tuple(row) for row in found.item_ids_USK[user].tolist()} == possible
    assert (found.logp_US.diff(dim=1) <= 1e-6).all()


@pytest.mark.parametrize("stream", ["items", "events"])
@pytest.mark.parametrize("num_beams", [0, 3])
def test_an_agent_with_candidates_conforms(stream, num_beams):
    sizes = dict(stream="events", profile_sizes=(3, 2), only_positives=False) if stream == "events" else {}
    check_recommender(agent_of(toy(**sizes), num_beams, candidates=C), requests(9), ITEMS)


def test_blocks_of_users_and_of_items_change_nothing(monkeypatch):
    model, histories = toy(), requests()
    agent = agent_of(model, candidates=C)
    whole = agent.sample(histories, 30, seeded())
    monkeypatch.setattr("feedgym.agents.generation.ROWS_PER_BLOCK", 1)
    monkeypatch.setattr("feedgym.agents.layers.blockwise.SCORES_PER_BLOCK", 2)
    again = agent.sample(histories, 30, seeded())
    assert torch.equal(whole.item_ids_USK, again.item_ids_USK)
    torch.testing.assert_close(whole.logp_US, again.logp_US)


def test_given_candidates_are_used_and_the_option_says_how_many_otherwise():
    model, histories = toy(), requests()
    agent = agent_of(model, candidates=C)
    asked = (model, agent.trie, histories, 50, K)
    drawn = agent.sample(histories, 50, seeded())
    given = sample_sessions(*asked, seeded(), SamplingConfig(), agent.candidates(histories))
    assert torch.equal(drawn.item_ids_USK, given.item_ids_USK)
    only = torch.tensor([[4, 2, -1]]).expand(USERS, -1)
    pairs = sample_sessions(*asked, seeded(), SamplingConfig(block_seen=False), only)
    assert set(pairs.item_ids_USK.flatten().tolist()) == {2, 4}
    assert agent_of(model).candidates(histories) == 0


# ---------------------------------------------------------------- refusals


def one_line(error):
    return "\n" not in str(error.value)


def test_models_that_write_codes_are_refused():
    with pytest.raises(ValueError, match=r"candidates=5 needs a model that scores items.*OneRec writes codes") as error:
        SessionRecommender(toy_model(), toy_tokenizer(), sampling=SamplingConfig(candidates=5))
    assert one_line(error)
    for config in (smoke(), tiger_smoke()):
        with pytest.raises(ValueError, match=rf"candidates=50 needs .*{config.model} writes codes") as error:
            replace(config, sampling=SamplingConfig(candidates=50))
        assert one_line(error)
    assert replace(hstu_smoke(), sampling=SamplingConfig(candidates=50)).sampling.candidates == 50


def test_choices_that_do_nothing_together_or_lack_something_are_refused():
    with pytest.raises(ValueError, match="top_k=5 does nothing among candidates=5"):
        SamplingConfig(top_k=5, candidates=5)
    with pytest.raises(ValueError, match="candidates=1 is below session_length=2"):
        agent_of(toy(), candidates=1)
    with pytest.raises(ValueError, match="candidates=4 is below session_length=5"):
        replace(hstu_smoke(), sampling=SamplingConfig(candidates=4))
    some = SamplingConfig(candidates=50)
    for method in ("rloo", "exp_rsft"):
        config = replace(hstu_smoke(), sampling=some, method=method, method_options=None)
        with pytest.raises(ValueError, match=r"behaviour='drawn' needs .* over all items") as error:
            replace(config, method_options=replace(config.method_options, behaviour="drawn"))
        assert one_line(error)
    assert replace(hstu_smoke(), sampling=some, rounds=RoundsConfig(search="beam"))
    with pytest.raises(ValueError, match="do nothing where rounds"):
        replace(hstu_smoke(), sampling=replace(some, temperature=0.5), rounds=RoundsConfig(search="beam"))
