import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_agents import NUM_ITEMS, K, toy_histories, toy_model, toy_tokenizer
from toy_users import ToyUsers, toy_catalog

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.agents.generation import SamplingConfig, score_sessions
from feedgym.agents.session_model import SessionRecommender
from feedgym.data.batches import SessionBatch
from feedgym.data.events import BEHAVIOURS
from feedgym.data.requests import Requests
from feedgym.envs.logging import collect_log, event_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig
from feedgym.envs.truth import RewardWeights, reward_components, session_reward, true_value
from feedgym.envs.visits import Visits
from feedgym.experiments import evaluate
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.configs import JudgeConfig
from feedgym.experiments.controls import references, with_controls
from feedgym.experiments.evaluate import (
    compared,
    judge_offline,
    judge_online,
    recall_ndcg,
    top_items,
)
from feedgym.experiments.serve import METRICS, ServingRecord, _best_by_truth, readable, serve, session_diversity
from feedgym.experiments.statistics import Ratio

ITEMS, LENGTH, HISTORY, VISITS = 40, 4, 5, 6
EXPOSURE_METRICS = {"creator_gini", "creators_unseen", "catalog_coverage", "top_1pct_share", "cold_share",
                    "exploration_share", "item_reward"}  # fmt: skip
WEIGHTS = RewardWeights(click=0.3, hate=-2.0)
SEEDS = user_seeds(17, 0, "judge")


def slate(profile, events, sharp=3):
    """The session that a user of this profile gets who is known by this many events."""
    return [(7 * int(profile[0]) + 11 * int(profile[1]) + sharp * int(events) + 5 * k) % ITEMS for k in range(LENGTH)]


class Attentive:
    """Chooses by profile and by the length of the history, so that a mixed-up user is noticed."""

    def sample(self, histories, n, generator):
        return SessionBatch(item_ids_USK=self.recommend(histories).item_ids_USK.expand(-1, n, -1).clone(),
                            logp_US=torch.zeros(len(histories), n))  # fmt: skip

    session_length = LENGTH

    def __init__(self, sharp=3, only_profile=None):
        self.sharp, self.only_profile = sharp, only_profile

    def recommend(self, histories):
        rows = []
        for profile, events in zip(histories.profile_UF.tolist(), histories.mask_UT.sum(1).tolist(), strict=True):
            here = self.only_profile is None or profile[0] == self.only_profile
            rows.append(slate(profile, events, self.sharp if here else 3))
        items_U1K = torch.tensor(rows)[:, None]
        return SessionBatch(item_ids_USK=items_U1K, logp_US=torch.zeros(len(rows), 1))


def opinion(histories, sessions):
    return (
        sessions.item_ids_USK.float().sum(-1) + 1000 * histories.profile_UF[:, :1] + histories.mask_UT.sum(1)[:, None]
    )


def served_by(agent, simulator=None, seeds=SEEDS, visits=VISITS, step=None, seen_states=None):
    def choose(histories, state):
        if seen_states is not None:
            seen_states.append(state)
        return agent.recommend(histories)

    return serve(
        simulator or ToyUsers(churn=0.2),
        choose,
        opinion,
        seeds,
        visits=visits,
        session_length=LENGTH,
        history_length=HISTORY,
        weights=WEIGHTS,
        step=step,
    )


# ---------------------------------------------------------------- serving


FAVOURITES = 6

ALL_HAVE = [name for name in METRICS if name != "satisfaction"]
"""Metrics of simulators that do not tell how satisfied their users are."""


class Fond(ToyUsers):
    """Users who tell what they would like most."""

    def favourites(self, state, n):
        assert n == 40, "all items are asked for where there are fewer than 50"
        return (state.profile_UF[:, :1] * 7 + np.arange(FAVOURITES) * 4) % ITEMS


def plain_counts(simulator, seed, visits):
    """What a single user does, asked alone, visit by visit."""
    state = simulator.reset(np.array([seed]))
    favourites = set(simulator.favourites(state, ITEMS)[0].tolist())
    counts = {name: np.zeros(visits) for name in ("visits", "seen", "favourites_used", *ALL_HAVE)}
    events, known = 0, set()
    for visit in range(visits):
        profile = state.profile_UF[0]
        items = slate(profile, min(events, HISTORY))
        response, state = simulator.respond(state, np.array([items]))
        seen = int(response.examined_UK.sum())
        for item in items[:seen]:
            counts["repeats"][visit] += item in known
            known.add(item)
        told = {
            "visits": 1,
            "seen": seen,
            "session_items": seen,
            "true_reward": session_reward(response, WEIGHTS)[0],
            "model_reward": sum(items) + 1000 * profile[0] + min(events, HISTORY),
            "watch_s": response.watch_s_UK.sum(),
            "return_24h": reward_components(response)["return_24h"][0],
            "churn_rate": response.churned_U[0],
            "diversity": plain_diversity(simulator.catalog, items),
            "favourites_used": len(known & favourites) / FAVOURITES,
            **{f"{name}_rate": response.behaviours_UKB[0, :, b].sum() for b, name in enumerate(BEHAVIOURS)},
        }
        for name, value in told.items():
            counts[name][visit] = value
        events += seen
        if response.churned_U[0]:
            break
    return counts


@pytest.mark.parametrize("churn", [0.0, 0.2, 1.0])
def test_counts_are_what_each_user_did_when_asked_alone_and_nothing_after_they_left(churn):
    simulator = Fond(churn=churn)
    found = served_by(Attentive(), simulator)
    expected = [plain_counts(simulator, seed, VISITS) for seed in SEEDS]
    assert found.by_visit.keys() == expected[0].keys()
    for name, count_VU in found.by_visit.items():
        plain_VU = np.stack([user[name] for user in expected], axis=1)
        np.testing.assert_allclose(count_VU, plain_VU, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found.sums[name], plain_VU.sum(axis=0), rtol=1e-5, atol=1e-5, err_msg=name)
    visits = found.sums["visits"]
    assert {0.0: visits.min() == VISITS, 0.2: visits.min() < VISITS, 1.0: visits.max() == 1}[churn]
    assert found.sums["churn_rate"].mean() == {0.0: 0, 1.0: 1}.get(churn, found.sums["churn_rate"].mean())
    assert (found.sums["repeats"] > 0).any() or churn == 1


def test_serving_ends_when_everybody_left_and_progress_is_told():
    heard = []
    served_by(Attentive(), ToyUsers(churn=0.0), step=lambda *now: heard.append(now))
    assert heard == [(visit + 1, VISITS) for visit in range(VISITS)]
    heard.clear()
    served_by(Attentive(), ToyUsers(churn=1.0), step=lambda *now: heard.append(now))
    assert heard == [(1, VISITS)]


def test_the_same_agent_meets_the_same_again():
    first, again = served_by(Attentive()).sums, served_by(Attentive()).sums
    assert all((first[name] == again[name]).all() for name in first)


def test_two_agents_meet_the_same_users_with_random_numbers_that_nobody_else_can_touch():
    """Agents that differ for one profile alone differ for its users alone."""
    states, other_states = [], []
    mine = served_by(Attentive(), seen_states=states)
    other = served_by(Attentive(sharp=7, only_profile=2), seen_states=other_states)
    assert (states[0].seed_U == other_states[0].seed_U).all() and (states[0].mood_U == other_states[0].mood_U).all()
    same_U = np.all([mine.sums[name] == other.sums[name] for name in mine.sums], axis=0)
    profile_U = states[0].profile_UF[:, 0]
    assert same_U[profile_U != 2].all() and not same_U[profile_U == 2].all()


def test_some_users_are_served_as_they_are_among_others():
    some = np.array([4, 0, 9])
    whole, part = served_by(Attentive()).sums, served_by(Attentive(), seeds=SEEDS[some]).sums
    for name in whole:
        np.testing.assert_allclose(part[name], whole[name][some], rtol=1e-6, err_msg=name)


def test_the_oracle_alone_is_shown_who_is_still_there():
    states = []
    found = served_by(Attentive(), seen_states=states)
    for visit, state in enumerate(states):
        assert state.seed_U.tolist() == SEEDS[found.sums["visits"] > visit].tolist()
        assert (state.visit_U == visit).all()


def test_rates_are_over_items_seen_losses_over_users_and_the_rest_over_visits():
    found = served_by(Attentive())
    sums = {name: sum_U.sum() for name, sum_U in found.sums.items()}
    assert found.ratio("like_rate").mean() == pytest.approx(sums["like_rate"] / sums["seen"])
    assert found.ratio("churn_rate").mean() == pytest.approx(sums["churn_rate"] / len(SEEDS))
    assert found.ratio("repeats").mean() == pytest.approx(sums["repeats"] / sums["seen"])
    for name in ("true_reward", "model_reward", "watch_s", "session_items", "return_24h", "diversity"):
        assert found.ratio(name).mean() == pytest.approx(sums[name] / sums["visits"])


# ---------------------------------------------------------------- diversity and offline metrics


def plain_diversity(catalog, items):
    content = [catalog.content_IE[i].astype(float) for i in items]
    pairs = [(i, j) for i in range(len(items)) for j in range(i)]
    return np.mean([1 - content[i] @ content[j] / np.sqrt(content[i] @ content[i] * (content[j] @ content[j]))
                    for i, j in pairs])  # fmt: skip


def test_diversity_is_the_mean_distance_of_all_pairs_of_items():
    catalog = toy_catalog(ITEMS)
    items = np.random.default_rng(0).integers(ITEMS, size=(3, 2, 5))
    found = session_diversity(catalog, items)
    assert found.shape == (3, 2)
    for at in np.ndindex(3, 2):
        assert found[at] == pytest.approx(plain_diversity(catalog, items[at]), abs=1e-5)


def test_copies_are_not_diverse_and_neither_is_a_session_of_one():
    catalog = toy_catalog(ITEMS)
    assert session_diversity(catalog, np.array([[3, 3, 3]])) == pytest.approx(0, abs=1e-6)
    assert session_diversity(catalog, np.array([[3], [5]])).tolist() == [0, 0]


def plain_recall_ndcg(served, targets):
    relevant = [t for t in targets if t >= 0]
    gains = [1 / np.log2(place + 2) for place, item in enumerate(served) if item in relevant]
    best = [1 / np.log2(place + 2) for place in range(min(len(served), len(relevant)))]
    return len(gains) / min(len(served), len(relevant)), sum(gains) / sum(best)


@given(st.integers(1, 6), st.integers(1, 8), st.randoms(use_true_random=False))
def test_recall_and_ndcg_are_those_of_a_plain_loop(length, most, random):
    served, targets = [], []
    for _ in range(4):
        served.append(random.sample(range(9), length))
        relevant = random.sample(range(9), random.randint(1, most))
        targets.append(relevant + [-1] * (most - len(relevant)))
    found = recall_ndcg(np.array(served), np.array(targets), "x")
    expected = np.array([plain_recall_ndcg(s, t) for s, t in zip(served, targets, strict=True)])
    assert list(found) == [f"recall@{length} of x", f"ndcg@{length} of x"]
    np.testing.assert_allclose(np.stack(list(found.values()), axis=1), expected, atol=1e-12)


def test_a_perfect_prediction_has_recall_and_ndcg_of_one_however_many_followed():
    targets = np.array([[4, -1, -1], [4, 2, -1], [2, 4, 7]])
    for order in permutations([4, 2, 7]):
        found = recall_ndcg(np.array([order, order, order]), targets, "x")
        assert found["recall@3 of x"].tolist() == [1, 1, 1]
        assert found["ndcg@3 of x"][2] == pytest.approx(1)
    assert recall_ndcg(np.array([[4, 2, 7]] * 3), targets, "x")["ndcg@3 of x"] == pytest.approx(1)


# ---------------------------------------------------------------- comparing


def ratios(numerators, denominator=None):
    ones = np.ones(len(next(iter(numerators.values()))))
    return {
        name: {"reward": Ratio(values, ones if denominator is None else denominator)}
        for name, values in numerators.items()
    }


def test_identical_agents_have_no_lift_and_no_spread():
    reward_U = np.random.default_rng(0).gamma(2.0, size=30)
    found = compared(ratios({"base": reward_U, "aligned": reward_U.copy()}), seed=0)
    assert found["lift"] == {"reward": {"mean": 0, "low": 0, "high": 0}}
    assert found["agents"]["base"] == found["agents"]["aligned"]
    assert found["agents"]["base"]["reward"]["low"] < reward_U.mean() < found["agents"]["base"]["reward"]["high"]


def test_lift_is_that_of_aligned_over_base_whatever_else_was_served():
    reward_U, visits_U = np.random.default_rng(0).gamma(2.0, size=30), np.arange(1.0, 31)
    agents = {"random": 0.1 * reward_U, "aligned": 1.25 * reward_U, "base": reward_U}
    found = compared(ratios(agents, visits_U), seed=0)
    assert list(found["agents"]) == list(agents)
    assert found["lift"]["reward"] == pytest.approx({"mean": 0.25, "low": 0.25, "high": 0.25})
    assert found["agents"]["random"]["reward"]["mean"] == pytest.approx(0.1 * reward_U.sum() / visits_U.sum())
    assert "lift_searched" not in found


def test_agents_that_search_are_compared_with_each_other():
    reward_U = np.random.default_rng(0).gamma(2.0, size=30)
    scale = {"base": 1.0, "aligned": 1.5, "base_searched": 2.0, "aligned_searched": 2.2}
    found = compared(ratios({name: times * reward_U for name, times in scale.items()}), seed=0)
    assert found["lift"]["reward"]["mean"] == pytest.approx(0.5)
    assert found["lift_searched"]["reward"]["mean"] == pytest.approx(0.1)


@pytest.mark.parametrize("base", [0.0, -1.0])
def test_there_is_no_lift_over_nothing_or_less(base):
    """Over a base of -1, a rise to -0.5 would read as a fall by half."""
    base_U = np.full(20, base)
    found = compared(ratios({"base": base_U, "aligned": base_U + 0.5}), seed=0)
    assert found["lift"] == {} and found["agents"]["aligned"]["reward"]["mean"] == base + 0.5


# ---------------------------------------------------------------- judging online


def judged(simulator, agents, users=20, **changes):
    log = collect_log(simulator, num_users=15, num_visits=3, session_length=LENGTH, seed=0)
    config = AlignConfig(
        session_length=LENGTH, history_length=HISTORY, weights=WEIGHTS, judge=JudgeConfig(users=users, visits=2)
    )
    config = replace(config, **changes)
    everyone = references(log, simulator.catalog, config) | with_controls(agents, opinion, config.judge)
    return judge_online(simulator, everyone, opinion, log, user_seeds(users, 0, "judge"), config)


def test_judges_of_a_simulator_that_keeps_some_apart_are_those():
    class Apart(ToyUsers):
        def judging(self):
            return ToyUsers(churn=1.0)

    agents = {"base": Attentive(), "aligned": Attentive()}
    stays, leaves = (judged(users, agents)["agents"]["base"] for users in (ToyUsers(churn=0.0), Apart(churn=0.0)))
    assert stays["churn_rate"]["mean"] == 0 and leaves["churn_rate"]["mean"] == 1


def test_a_judgement_holds_all_agents_all_metrics_and_visits_to_read():
    found = judged(ToyUsers(), {"base": Attentive(), "aligned": Attentive(sharp=7)})
    assert found.keys() == {"agents", "lift", "lifts", "by_visit", "samples", "judged_by"}
    assert found["lifts"].keys() == {f"aligned over {name}" for name in ("random", "popular", "base")}
    assert found["lifts"]["aligned over base"] == found["lift"]
    assert list(found["agents"]) == ["random", "popular", "base", "aligned"]
    for metrics in found["agents"].values():
        assert list(metrics)[: len(ALL_HAVE)] == ALL_HAVE
        assert set(metrics) - set(ALL_HAVE) >= EXPOSURE_METRICS
        assert all(value["low"] <= value["mean"] <= value["high"] for value in metrics.values())
    assert found["judged_by"].startswith("20 fresh users, served 2 visits")
    columns, rows = found["samples"]["columns"], found["samples"]["rows"]
    assert len(rows) == 3 * 2 * LENGTH and all(len(row) == len(columns) for row in rows)
    assert {(row[0], row[1]) for row in rows} == {(f"user {u}", a) for u in (1, 2, 3) for a in ("base", "aligned")}
    lines = found["samples"]["timelines"]
    assert [(line["agent"], line["user"]) for line in lines] == [
        (agent, f"user {u}") for agent in ("base", "aligned") for u in (1, 2, 3)
    ]
    for line in lines:  # the last visit is the one to read
        last = [row for row in rows if (row[0], row[1]) == (line["user"], line["agent"])]
        assert {row[columns.index("visit")] for row in last} == {len(line["visits"])}
        visit = line["visits"][-1]
        assert visit["topics"] == [row[columns.index("topic")] for row in last]
        for share, row in zip(visit["watched"], last, strict=True):
            watched, duration = row[columns.index("watched s")], row[columns.index("duration s")]
            assert share is watched is None or share == pytest.approx(watched / duration, abs=0.06)
        days = [told["day"] for told in line["visits"]]
        assert days == sorted(days)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_agents_are_served_to_the_same_users_so_that_twins_have_no_lift():
    found = judged(ToyUsers(), {"base": Attentive(), "aligned": Attentive()})
    assert found["agents"]["base"] == found["agents"]["aligned"]
    assert found["lift"]["true_reward"] == {"mean": 0, "low": 0, "high": 0}


def test_the_oracle_is_served_where_the_simulator_has_one_and_beats_those_who_know_nothing():
    users = ShortVideo(ShortVideoConfig(num_items=60, memory_items=8))
    agents = judged(users, {"base": RandomRecommender(60, LENGTH), "aligned": RandomRecommender(60, LENGTH)})["agents"]
    assert list(agents)[-1] == "oracle"
    assert agents["oracle"]["true_reward"]["mean"] > agents["random"]["true_reward"]["mean"]
    assert agents["base"] == agents["random"]


class Drawing:
    """Draws sessions that depend on the profile; the first one is what it serves."""

    session_length = LENGTH

    def drawn(self, histories, n):
        start_U11 = (histories.profile_UF[:, :1] * 5 + histories.mask_UT.sum(1, keepdim=True))[:, :, None]
        items_USK = (start_U11 + 7 * torch.arange(n)[:, None] + 3 * torch.arange(LENGTH)) % ITEMS
        return SessionBatch(item_ids_USK=items_USK, logp_US=torch.zeros(len(items_USK), n))

    def recommend(self, histories):
        return self.drawn(histories, 1)


def test_the_best_of_n_is_served_by_the_reward_and_for_studies_by_the_truth():
    judge = JudgeConfig(users=30, visits=3, best_of=(2, 8), study=True)
    found = judged(ToyUsers(churn=0.0), {"base": Drawing(), "aligned": Attentive()}, users=30, judge=judge)
    agents = found["agents"]
    named = {f"{name}_best_of_{n}" for name in ("base", "aligned") for n in (2, 8)}
    assert agents.keys() == {"random", "popular", "base", "aligned"} | named | {f"{name}_by_truth" for name in named}
    opinions = [agents[name]["model_reward"]["mean"] for name in ("base", "base_best_of_2", "base_best_of_8")]
    assert opinions == sorted(opinions) and opinions[2] > opinions[0]
    truth = [agents[f"base{way}"]["true_reward"]["mean"] for way in ("", "_best_of_2_by_truth", "_best_of_8_by_truth")]
    assert truth == sorted(truth) and truth[2] > max(truth[0], agents["base_best_of_8"]["true_reward"]["mean"])
    pairs = {"aligned over base", "aligned over base_best_of_2", "aligned over base_best_of_8"}
    assert found["by_visit"]["difference"].keys() == pairs


def test_the_truth_chooses_among_draws_by_the_value_of_each_alone():
    simulator = ToyUsers()
    state = simulator.reset(SEEDS[:5])
    histories = replace(toy_histories(5, num_items=ITEMS), profile_UF=torch.from_numpy(state.profile_UF))
    chosen = _best_by_truth(Drawing(), simulator, 6, WEIGHTS)(histories, state).item_ids_USK[:, 0]
    drawn = Drawing().drawn(histories, 6).item_ids_USK
    for u in range(5):
        one = simulator.reset(SEEDS[u : u + 1])
        values = [true_value(simulator, one, drawn[u, s].numpy()[None, None], weights=WEIGHTS, replicas=8)[0, 0]
                  for s in range(6)]  # fmt: skip
        assert chosen[u].tolist() == drawn[u, int(np.argmax(values))].tolist()


def test_a_study_of_no_sessions_is_refused():
    with pytest.raises(ValueError, match=r"judge\.best_of; give some"):
        JudgeConfig(study=True)


def test_popularity_counts_what_was_seen_not_what_was_served():
    simulator = ToyUsers(churn=0.0)
    log = collect_log(simulator, num_users=30, num_visits=3, session_length=LENGTH, seed=0)
    assert (~log.examined[log.item_id >= 0]).any()
    found = references(log, simulator.catalog, AlignConfig(session_length=LENGTH, seed=5))
    seen = log.item_id[log.examined].tolist()
    assert found["popular"].count_I.tolist() == [seen.count(item) for item in range(simulator.catalog.num_items)]
    assert (found["random"].seed, found["random"].session_length) == (5, LENGTH)


# ---------------------------------------------------------------- visits to read


def visits_of_two_users():
    """User 0 pays two visits and user 1 one; rows are visits."""
    behaviours = np.zeros((3, 2, len(BEHAVIOURS)), np.uint8)
    behaviours[1, 0, [BEHAVIOURS.index("click"), BEHAVIOURS.index("like")]] = 1
    return Visits(
        profile_UF=np.zeros((2, 2), np.int64), user_N=np.array([0, 0, 1]), visit_N=np.array([0, 1, 0]),
        login_s_N=np.array([0.0, 90.0, 0.0]), logout_s_N=np.array([20.0, 120.0, 5.0]),
        slates_NK=np.array([[0, 1], [10, 11], [2, 3]]), propensity_NK=np.full((3, 2), np.nan, np.float32),
        watch_s_NK=np.array([[9, 9], [12.34, 0], [1, 0]], np.float32),
        examined_NK=np.array([[True, True], [True, True], [True, False]]), behaviours_NKB=behaviours,
    )  # fmt: skip


def test_people_read_the_last_visit_that_each_user_paid_before_leaving():
    catalog, visits = toy_catalog(ITEMS), visits_of_two_users()
    log = event_log(ToyUsers(), visits.profile_UF, visits)
    rows = readable(ServingRecord({}, np.zeros(0), log), "base", catalog)
    item = [[str(i), int(catalog.topic_I[i]), round(float(catalog.duration_s_I[i]), 1)] for i in range(ITEMS)]
    assert rows == [
        ["user 1", "base", 2, 1, *item[10], 12.3, "click, like"],
        ["user 1", "base", 2, 2, *item[11], 0.0, "-"],
        ["user 2", "base", 1, 1, *item[2], 1.0, "-"],
        ["user 2", "base", 1, 2, *item[3], None, "not reached"],
    ]


# ---------------------------------------------------------------- judging offline


def test_the_likeliest_next_items_of_a_generative_agent_are_those_of_highest_probability():
    model, histories = toy_model(), toy_histories(5)
    agent = SessionRecommender(model, toy_tokenizer(), K, SamplingConfig(block_seen=False), num_beams=1)
    every = torch.arange(NUM_ITEMS)[None, :, None].expand(5, -1, -1)
    logp_UI = score_sessions(model, agent.trie, histories, every).logp_US
    assert top_items(agent, histories, NUM_ITEMS).tolist() == logp_UI.argsort(dim=1, descending=True).tolist()
    three = logp_UI.gather(1, top_items(agent, histories, 3))
    assert (three[:, :-1] > three[:, 1:]).all()
    assert agent.session_length == K


def test_other_agents_name_the_items_they_would_serve():
    agent = PopularRecommender(torch.tensor([3, 9, 1, 7, 5, 8]), 2)
    assert top_items(agent, toy_histories(2), 4)[0].tolist() == [1, 5, 3, 4]
    assert agent.session_length == 2


def test_a_catalogue_of_which_users_have_seen_nearly_all_can_be_judged_offline(monkeypatch):
    monkeypatch.setattr(evaluate, "OFFLINE_BLOCK", 1)
    histories = toy_histories(6)
    agent = SessionRecommender(toy_model(), toy_tokenizer(), K)
    assert (top_items(agent, histories, NUM_ITEMS) == -1).any(), "some user must have too few items left"
    log = collect_log(ToyUsers(NUM_ITEMS), num_users=5, num_visits=2, session_length=K, seed=0)
    requests = Requests(sessions=None, histories=histories, targets_NK=torch.tensor([[4, 2, -1]] * 6))
    config = AlignConfig(session_length=K)
    agents = references(log, toy_catalog(NUM_ITEMS), config) | {"base": agent, "aligned": agent}
    found = judge_offline(agents, opinion, toy_catalog(NUM_ITEMS), requests, config, "nobody")
    assert found["agents"]["random"]["recall@6 of next item"]["mean"] == 1, "it names the whole catalogue"
    assert 0 < found["agents"]["base"]["recall@6 of next item"]["mean"] < 1
    assert found["agents"]["base"] == found["agents"]["aligned"]


class Knowing:
    """Serves every user what follows, if it knows their profile."""

    session_length = K

    def __init__(self, requests, known=True):
        self.requests, self.known = requests, known

    def recommend(self, histories):
        rows = []
        for profile in histories.profile_UF.tolist():
            (at,) = [u for u, p in enumerate(self.requests.histories.profile_UF.tolist()) if p == profile]
            following = [i for i in self.requests.targets_NK[at].tolist() if i >= 0]
            others = [i for i in range(20, 40) if i not in following]
            ranked = (following if self.known else []) + others
            rows.append(ranked[: self.session_length])
        return SessionBatch(item_ids_USK=torch.tensor(rows)[:, None], logp_US=torch.zeros(len(rows), 1))


@pytest.mark.parametrize("block", [256, 3])
def test_offline_one_who_knows_the_future_is_told_from_one_who_does_not_whatever_the_blocks(monkeypatch, block):
    monkeypatch.setattr(evaluate, "OFFLINE_BLOCK", block)
    simulator = ToyUsers(churn=0.0)
    log = collect_log(simulator, num_users=10, num_visits=3, session_length=K, seed=0)
    histories = replace(toy_histories(8, num_items=ITEMS), profile_UF=torch.arange(16).reshape(8, 2))
    targets_NK = torch.tensor([[u, u + 8, -1 if u % 2 else u + 12] for u in range(8)])
    requests = Requests(sessions=None, histories=histories, targets_NK=targets_NK)
    agents = {"base": Knowing(requests, known=False), "aligned": Knowing(requests)}
    config = AlignConfig(session_length=K, history_length=HISTORY)
    everyone = references(log, simulator.catalog, config) | agents
    found = judge_offline(everyone, opinion, simulator.catalog, requests, config, "what they watched next")
    assert found["judged_by"] == "what they watched next"
    assert list(found["agents"]) == ["random", "popular", "base", "aligned"]
    predicted = ("recall@3 of session", "ndcg@3 of session", "recall@10 of next item", "ndcg@10 of next item")
    for metric in predicted:
        assert found["agents"]["aligned"][metric] == pytest.approx({"mean": 1, "low": 1, "high": 1})
        assert found["agents"]["base"][metric]["mean"] == 0
        assert metric not in found["lift"], "there is no lift over nothing"
    served = agents["aligned"].recommend(histories)
    opinions, diversity = opinion(histories, served), session_diversity(simulator.catalog, served.item_ids_USK[:, 0])
    assert found["agents"]["aligned"]["model_reward"]["mean"] == pytest.approx(opinions.mean().item())
    assert found["agents"]["aligned"]["diversity"]["mean"] == pytest.approx(diversity.mean())
