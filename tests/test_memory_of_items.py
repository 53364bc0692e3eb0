"""The platform's memory: items seen before the window of a history are told, and agents leave them out."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from toy_agents import NUM_ITEMS, K, dated, toy_histories, toy_model, toy_tokenizer
from toy_users import ToyUsers, toy_catalog

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.agents.check import check_recommender
from feedgym.agents.generation import SamplingConfig, beam_sessions, sample_sessions, score_sessions, seen_items
from feedgym.agents.requests import shown_mask
from feedgym.agents.session_model import SessionRecommender, history_columns
from feedgym.data.batches import EventBatch
from feedgym.data.requests import Requests
from feedgym.data.sessions import logged_sessions
from feedgym.envs.feed import FeedVectorEnv, event_batch
from feedgym.envs.logging import collect_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.truth import RewardWeights
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.serve import serve

ITEMS, LENGTH, T, J = 40, 4, 5, 7
TRIE = toy_tokenizer().trie()


# ---------------------------------------------------------------- what is told


def walk(env, visits=6, seed=3):
    """The observations of a walk with random actions, the same for every environment."""
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    for _ in range(visits):
        observation, *_ = env.step(rng.integers(ITEMS, size=env.action_space.shape))
        seen.append(observation)
    return seen


def feed(memory=0, length=T, **options):
    return FeedVectorEnv(
        6, ToyUsers(ITEMS, churn=0.1), session_length=LENGTH, history_length=length, memory=memory, **options
    )


@pytest.mark.parametrize("warmup", [0, 2])
def test_the_memory_holds_what_a_longer_history_would_show_before_the_window(warmup):
    for told, whole, plain in zip(
        walk(feed(J, warmup_visits=warmup)), walk(feed(0, T + J, warmup_visits=warmup)),
        walk(feed(warmup_visits=warmup)), strict=True,
    ):  # fmt: skip
        for u in range(6):
            events = whole["history_items"][u][whole["history_mask"][u] == 1].tolist()
            earlier = events[: max(0, len(events) - T)]
            assert told["history_earlier"][u].tolist() == earlier + [-1] * (J - len(earlier))
        assert all((told[name] == column).all() for name, column in plain.items())
        assert "history_earlier" not in plain


def test_the_environment_follows_gymnasiums_rules_with_a_memory():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("feedgym/ShortVideo-v1", num_items=60, session_length=LENGTH, history_length=T, memory=J)
        check_env(env.unwrapped)
        assert gym.spaces.flatten(env.observation_space, env.reset(seed=3)[0]).ndim == 1
    many = feed(J)
    assert all(observation in many.observation_space for observation in walk(many))
    batch = event_batch(many.reset(seed=0)[0])
    assert batch.earlier_UJ.dtype == torch.int64 and (batch.earlier_UJ == -1).all()
    assert event_batch(feed().reset(seed=0)[0]).earlier_UJ is None


def test_a_memory_below_nothing_is_refused():
    with pytest.raises(ValueError, match=r"memory=-1 is below 0; give 0"):
        feed(-1)


def test_logged_requests_know_the_same():
    simulator = ToyUsers(ITEMS, churn=0.05)
    data = (collect_log(simulator, num_users=12, num_visits=6, session_length=LENGTH, seed=0), simulator.catalog)
    sessions = logged_sessions(data[0], LENGTH)
    told, plain = (Requests.of(data, sessions, T, memory=memory).histories.rows(slice(None)) for memory in (J, 0))
    whole = Requests.of(data, sessions, T + J).histories.rows(slice(None))
    assert plain.earlier_UJ is None and (told.earlier_UJ >= 0).any()
    for n in range(len(sessions)):
        events = whole.item_ids_UT[n][whole.mask_UT[n]].tolist()
        earlier = events[: max(0, len(events) - T)]
        assert told.earlier_UJ[n].tolist() == earlier + [-1] * (J - len(earlier))
    assert all(torch.equal(getattr(told, name), column) for name, column in vars(plain).items() if column is not None)


def test_no_model_reads_it():
    histories = replace(toy_histories(3), earlier_UJ=torch.zeros(3, 2, dtype=torch.long))
    assert "earlier_UJ" not in history_columns(histories)
    again = EventBatch.cat([histories.rows(slice(2)), histories.rows(slice(2, 3))])
    assert torch.equal(again.earlier_UJ, histories.earlier_UJ) and histories.trimmed().earlier_UJ.shape == (3, 2)


# ---------------------------------------------------------------- what agents make of it


def remembering(histories, *items):
    """The histories, every user having seen these items before."""
    return replace(histories, earlier_UJ=torch.tensor([[*items, -1]]).expand(len(histories), -1).contiguous())


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("model", [toy_model(0), toy_model(1)])
def test_nothing_that_is_remembered_is_drawn_or_found_and_nothing_changes_without(model):
    histories, wild = toy_histories(7), SamplingConfig(temperature=5.0)
    short = replace(histories, mask_UT=histories.mask_UT & (torch.arange(6) < 1))  # leaves enough others
    some = remembering(short, 4, 1)
    drawn = sample_sessions(model, TRIE, some, 60, 2, seeded(), wild)
    found = beam_sessions(model, TRIE, some, 4, 2)
    for sessions in (drawn, found):
        assert not torch.isin(sessions.item_ids_USK, torch.tensor([1, 4])).any()
        assert (sessions.item_ids_USK[..., 0] != sessions.item_ids_USK[..., 1]).all()
    for nothing in (short, remembering(short)):
        plain = sample_sessions(model, TRIE, nothing, 60, 2, seeded(), wild)
        assert torch.isin(plain.item_ids_USK, torch.tensor([1, 4])).any()
        assert torch.equal(plain.item_ids_USK, sample_sessions(model, TRIE, short, 60, 2, seeded(), wild).item_ids_USK)
    free = sample_sessions(model, TRIE, some, 60, 2, seeded(), replace(wild, block_seen=False))
    assert torch.isin(free.item_ids_USK, torch.tensor([1, 4])).any()
    scored = score_sessions(model, TRIE, some, torch.tensor([[[4, 0], [0, 2]]]).expand(7, -1, -1))
    assert (scored.logp_allowed_US[:, 0] == torch.inf).all()
    torch.testing.assert_close(
        score_sessions(model, TRIE, some, drawn.item_ids_USK).logp_allowed_US, drawn.logp_allowed_US
    )


def test_the_chances_of_all_sessions_that_may_be_drawn_sum_to_one():
    model = toy_model()
    histories = remembering(toy_histories(4).events(slice(2)), 3, 5)
    pairs = torch.tensor([(a, b) for a in range(NUM_ITEMS) for b in range(NUM_ITEMS)])[None].expand(4, -1, -1)
    scored = score_sessions(model, TRIE, histories, pairs)
    chance_U = (scored.logp_US - scored.logp_allowed_US).exp().sum(1)
    torch.testing.assert_close(chance_U, torch.ones(4))


def test_of_too_many_the_newest_are_blocked_and_those_of_the_history_are_newer():
    histories = replace(
        toy_histories(1),
        item_ids_UT=torch.tensor([[4, 2, 0, 0, 0, 0]]),
        mask_UT=torch.tensor([[True, True, False, False, False, False]]),
        earlier_UJ=torch.tensor([[1, 5, 2, -1]]),
    )
    for limit, expected in enumerate([set(), {2}, {2, 4}, {2, 4, 5}, {1, 2, 4, 5}, {1, 2, 4, 5}]):
        assert set(seen_items(histories, limit).flatten().tolist()) - {-1} == expected


def test_where_items_come_and_go_absent_ones_need_no_blocking():
    trie, histories = dated_trie(), remembering(toy_histories(5).events(slice(1)), 4, 1)
    now = dated(histories, torch.full((5,), 10.0, dtype=torch.float64))
    drawn = sample_sessions(toy_model(), trie, now, 40, 2, seeded(), SamplingConfig(temperature=5.0))
    assert not torch.isin(drawn.item_ids_USK, torch.tensor([0, 1, 4])).any(), "0 is not there yet"


def dated_trie():
    """The toy's tree, of which item 0 comes later."""
    catalog = replace(toy_catalog(NUM_ITEMS), upload_s_I=np.array([50.0, 0, 0, 0, 0, 0]))
    return TRIE.dated(catalog)


def test_other_agents_leave_it_out_as_they_do_the_history():
    histories = remembering(toy_histories(6).events(slice(1)), 3, 0)
    served = PopularRecommender(torch.tensor([9, 1, 1, 8, 1, 1]), 2).recommend(histories).item_ids_USK
    assert not torch.isin(served, torch.tensor([0, 3])).any()
    expected_UI = shown_mask(toy_histories(6).events(slice(1)), NUM_ITEMS)
    expected_UI[:, [0, 3]] = True
    assert torch.equal(shown_mask(histories, NUM_ITEMS), expected_UI)


def test_agents_with_a_memory_conform():
    agent = SessionRecommender(toy_model(), toy_tokenizer(), K, num_beams=2)
    check_recommender(agent, remembering(toy_histories(5), 2), NUM_ITEMS)


def repeats(memory, agent):
    simulator = ToyUsers(ITEMS, churn=0.0)
    record = serve(
        simulator, lambda histories, _: agent.recommend(histories), None, user_seeds(9, 0, "judge"), visits=8,
        session_length=LENGTH, history_length=T, memory=memory, weights=RewardWeights(),
    )  # fmt: skip
    return record.sums["repeats"], record.sums["seen"]


def test_served_users_see_nothing_twice_within_the_memory():
    agent = PopularRecommender(torch.arange(ITEMS).flip(0), LENGTH)
    without, _ = repeats(0, agent)
    within, seen = repeats(ITEMS, agent)
    assert (without > 0).all() and (within == 0).all() and (seen > 2 * T).any()
    assert (repeats(ITEMS, RandomRecommender(ITEMS, LENGTH))[0] > 0).any(), "who knows nothing remembers nothing"


def test_a_memory_of_what_is_not_left_out_is_refused():
    with pytest.raises(ValueError, match=r"memory does nothing if sampling\.block_seen"):
        AlignConfig(memory=5, sampling=SamplingConfig(block_seen=False))
