"""RecSim's families against scalar versions written from the equations, their distributions and brute-force oracles.

The distributions of the real package are compared in benchmarks/recsim_parity.py.
"""

import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from scipy.special import ndtri

from feedgym.data.events import BEHAVIOURS
from feedgym.envs import luck
from feedgym.envs.check import check_simulator
from feedgym.envs.feed import FeedVectorEnv, make_simulator
from feedgym.envs.logging import collect_log
from feedgym.envs.luck import user_seeds
from feedgym.envs.recsim import (
    INTEREST_EVOLUTION_REWARD,
    INTEREST_EXPLORATION_REWARD,
    LONG_TERM_SATISFACTION_REWARD,
    InterestEvolution,
    InterestEvolutionConfig,
    InterestExploration,
    InterestExplorationConfig,
    LongTermSatisfaction,
    LongTermSatisfactionConfig,
)
from feedgym.envs.recsim.steps import STEP_GAP_S
from feedgym.envs.truth import session_reward

B = {name: idx for idx, name in enumerate(BEHAVIOURS)}
CHOICES = ["multinomial_proportional", "multinomial_logit", "proportional_cascade", "exponential_cascade"]
FAMILIES = [InterestEvolution, InterestExploration, LongTermSatisfaction]
REWARDS = [INTEREST_EVOLUTION_REWARD, INTEREST_EXPLORATION_REWARD, LONG_TERM_SATISFACTION_REWARD]
LIKELY = {"score_scaling": 0.35}
"""Cascades in which something is clicked."""
NICHE = InterestExplorationConfig(affinity_mean=((0.1, 1.4), (0.7, 0.1)))
"""Some love the second topic; RecSim's own users of the first type like both nearly as much."""


def users(simulator, num_users, group="test"):
    return simulator.reset(user_seeds(num_users, 0, group))


def random_slates(rng, simulator, num_users, length):
    num_items = simulator.catalog.num_items
    return rng.permuted(np.tile(np.arange(num_items), (num_users, 1)), axis=1)[:, :length]


def uniform_of(state, u, channel):
    return float(luck.draw(luck.stream(state.seed_U[u : u + 1], state.visit_U[u]), luck.VISIT, channel)[0])


def pick(probs, uniform):
    """The first position at which the running sum passes the uniform number, or None."""
    total = 0.0
    for k, prob in enumerate(probs):
        total += prob
        if uniform < total:
            return k
    return None


# ---------------------------------------------------------------- the equations, one user at a time


def plain_probs(config, scores):
    if config.choice == "multinomial_logit":
        mass = [np.exp(s) for s in scores]
        return [m / (sum(mass) + np.exp(config.no_click_mass)) for m in mass]
    if config.choice == "multinomial_proportional":
        mass = [s - config.min_normalizer for s in scores]
        return [m / (sum(mass) + config.no_click_mass - config.min_normalizer) for m in mass]
    probs, still = [], 1.0
    for s in scores:
        appeal = np.exp(s) if config.choice == "exponential_cascade" else s - config.min_normalizer
        click = config.attention_prob * config.score_scaling * appeal
        probs.append(still * click)
        still *= 1 - click
    return probs


@pytest.mark.parametrize("how", CHOICES)
def test_interest_evolution_follows_recsims_equations(how):
    config = InterestEvolutionConfig(num_items=30, choice=how, budget_minutes=25.0, **LIKELY)
    simulator = InterestEvolution(config)
    state, rng = users(simulator, 40), np.random.default_rng(0)
    clicks, cut = 0, 0
    for _ in range(12):
        slates = random_slates(rng, simulator, 40, 4)
        response, after = simulator.respond(state, slates)
        for u in np.flatnonzero(state.budget_minutes_U > 0):
            features = simulator.catalog.content_IE[slates[u]].astype(float)
            interests, budget = state.interest_UM[u].copy(), state.budget_minutes_U[u]
            place = pick(plain_probs(config, features @ interests), uniform_of(state, u, 0))
            watch = 0.0
            if place is None:
                budget -= 0.5
                assert not response.behaviours_UKB[u].any() and response.elapsed_s_U[u] == 30
            else:
                watch = min(budget, 4.0)
                mask, alpha = features[place], -0.3 * np.abs(interests) + 0.3
                update = alpha * mask * (mask - interests)
                positive = uniform_of(state, u, 1) < ((interests + 1) / 2) @ mask
                interests = np.clip(interests + update if positive else interests - update, -1, 1)
                quality = simulator.quality_I[slates[u, place]]
                budget += -watch + 0.9 * (1 / 3.4) * watch * quality
                clicks, cut = clicks + 1, cut + (watch < 4)
                assert response.behaviours_UKB[u, place, B["click"]] and response.behaviours_UKB[u, :, 0].sum() == 1
                assert response.behaviours_UKB[u, place, B["long_view"]] == (watch == 4)
                np.testing.assert_allclose(response.watch_s_UK[u, place], 60 * watch, rtol=1e-6)
            np.testing.assert_allclose(after.interest_UM[u], interests, atol=1e-12)
            np.testing.assert_allclose(after.budget_minutes_U[u], budget, atol=1e-9)
            assert response.churned_U[u] == (budget <= 0)
            met = 4 if place is None or "cascade" not in how else place + 1
            assert response.examined_UK[u].tolist() == [True] * met + [False] * (4 - met)
        state = after
    assert clicks > 50 and cut > 3 and response.churned_U.any() and not response.churned_U.all()


def test_interest_exploration_follows_recsims_equations():
    simulator = InterestExploration(InterestExplorationConfig(num_items=30))
    state, rng = users(simulator, 60), np.random.default_rng(0)
    clicks = 0
    for _ in range(6):
        slates = random_slates(rng, simulator, 60, 3)
        response, after = simulator.respond(state, slates)
        for u in range(60):
            scores = [state.affinity_UM[u, simulator.catalog.topic_I[i]] + simulator.quality_I[i] for i in slates[u]]
            logits = np.array([*scores, 5.0])
            probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            place = pick(probs[:-1], uniform_of(state, u, 0))
            expected = np.arange(3) == (-1 if place is None else place)
            clicks += expected.sum()
            assert (response.behaviours_UKB[u, :, B["click"]] == expected).all()
            assert (response.watch_s_UK[u] == 60 * expected).all() and response.examined_UK[u].all()
        assert (after.affinity_UM == state.affinity_UM).all() and not response.churned_U.any()
        state = after
    assert 60 < clicks < 300


def test_long_term_satisfaction_follows_recsims_equations():
    config = LongTermSatisfactionConfig(num_items=30, sensitivity=0.4, choc_sd=0.8, kale_sd=0.5, time_budget=5)
    simulator = LongTermSatisfaction(config)
    state, rng = users(simulator, 50), np.random.default_rng(0)
    for step in range(5):
        slates = random_slates(rng, simulator, 50, 3)
        response, after = simulator.respond(state, slates)
        for u in range(50):
            bait, exposure = simulator.clickbait_I[slates[u, 0]], state.exposure_U[u]
            satisfaction = 1 / (1 + np.exp(-0.4 * exposure))
            loc = (bait * 5.0 + (1 - bait) * 4.0) * satisfaction
            scale = bait * 0.8 + (1 - bait) * 0.5
            engagement = np.exp(loc + scale * ndtri(uniform_of(state, u, 0)))
            np.testing.assert_allclose(response.watch_s_UK[u], [engagement, 0, 0], rtol=1e-6)
            exposure = 0.7 * exposure - 2.0 * (bait - 0.5) + 0.05 * ndtri(uniform_of(state, u, 1))
            np.testing.assert_allclose(after.exposure_U[u], exposure, atol=1e-12)
        assert response.examined_UK.tolist() == [[True, False, False]] * 50 and response.left_U.all()
        assert (response.behaviours_UKB[:, 0, B["click"]] == 1).all()
        assert response.churned_U.all() == (step == 4) and response.churned_U.any() == (step == 4)
        state = after


# ---------------------------------------------------------------- who the users are, and what the items


def test_documents_are_drawn_as_recsim_draws_them():
    many = InterestEvolution(InterestEvolutionConfig(num_items=40_000))
    topic_I, quality_I = many.catalog.topic_I, many.quality_I
    assert (np.abs(np.bincount(topic_I) / 40_000 - 0.05) < 0.006).all()
    means = np.array([quality_I[topic_I == m].mean() for m in range(20)])
    expected = np.concatenate([np.linspace(-3, 0, 14), np.linspace(0, 3, 6)])
    np.testing.assert_allclose(means, expected, atol=0.012)
    assert abs((quality_I - expected[topic_I]).std() - 0.1) < 0.002
    assert (many.catalog.content_IE == np.eye(20)[topic_I]).all(), "content tells the topic and nothing of quality"

    many = InterestExploration(InterestExplorationConfig(num_items=40_000))
    for topic, share, mean in ((0, 0.2, 0.8), (1, 0.8, 0.2)):
        log_quality = np.log(many.quality_I[many.catalog.topic_I == topic])
        assert abs(len(log_quality) / 40_000 - share) < 0.01
        assert abs(log_quality.mean() - mean) < 0.005 and abs(log_quality.std() - 0.1) < 0.005
    np.testing.assert_allclose(many.catalog.content_IE[:, 2], many.quality_I, rtol=1e-6)

    many = LongTermSatisfaction(LongTermSatisfactionConfig(num_items=40_000))
    assert abs(many.clickbait_I.mean() - 0.5) < 0.01 and many.clickbait_I.min() >= 0 and many.clickbait_I.max() < 1
    assert (many.catalog.content_IE[:, 0] == many.clickbait_I.astype(np.float32)).all()


def test_users_are_drawn_as_recsim_draws_them():
    state = users(InterestEvolution(), 20_000)
    assert state.interest_UM.min() >= -1 and state.interest_UM.max() <= 1
    np.testing.assert_allclose(state.interest_UM.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(state.interest_UM.var(axis=0), 1 / 3, atol=0.01)
    assert np.abs(np.corrcoef(state.interest_UM.T) - np.eye(20)).max() < 0.035
    assert (state.budget_minutes_U == 200).all()
    assert (state.profile_UF == np.floor((state.interest_UM + 1) * 2)).all(), "four levels of interest a topic"

    state = users(InterestExploration(), 20_000)
    assert abs((state.type_U == 0).mean() - 0.3) < 0.012
    for kind, means in enumerate(((0.1, 0.7), (0.7, 0.1))):
        log_affinity_UM = np.log(state.affinity_UM[state.type_U == kind])
        np.testing.assert_allclose(log_affinity_UM.mean(axis=0), means, atol=0.01)
        np.testing.assert_allclose(log_affinity_UM.std(axis=0), 0.1, atol=0.005)
    assert not state.profile_UF.any()

    state = users(LongTermSatisfaction(), 20_000)
    assert np.abs(state.exposure_U).max() <= 0.5 / 0.3 and abs(state.exposure_U.mean()) < 0.03
    assert abs(state.exposure_U.var() - (1 / 0.3) ** 2 / 12) < 0.03


def test_the_catalogue_follows_its_seed():
    for family in FAMILIES:
        path = f"feedgym.envs.recsim:{family.__name__}"
        a, b, c = (make_simulator(path, num_items=50, catalog_seed=seed).catalog.content_IE for seed in (1, 1, 2))
        assert (a == b).all() and (a != c).any()


# ---------------------------------------------------------------- time and the protocol


@pytest.mark.parametrize("how", CHOICES)
def test_interest_evolution_keeps_the_promises_under_every_choice(how):
    check_simulator(InterestEvolution(InterestEvolutionConfig(num_items=40, choice=how, **LIKELY)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("num_items", [3, 40])
def test_families_keep_the_promises(family, num_items):
    check_simulator(make_simulator(f"feedgym.envs.recsim:{family.__name__}", num_items=num_items))


def test_the_budget_of_interest_evolution_ends_the_episode_and_pays_for_what_is_watched():
    config = InterestEvolutionConfig(num_items=30, budget_minutes=20, payback=0.0)
    simulator = InterestEvolution(config)
    state, rng = users(simulator, 200), np.random.default_rng(0)
    minutes_U, idle_U, alive_U = np.zeros(200), np.zeros(200), np.ones(200, bool)
    for _ in range(60):
        response, state = simulator.respond(state, random_slates(rng, simulator, 200, 3))
        watched_U = response.watch_s_UK.sum(axis=1) / 60
        assert not watched_U[~alive_U].any(), "nobody watches after their last minute"
        clicked_U = response.behaviours_UKB[:, :, 0].any(axis=1)
        minutes_U += watched_U
        idle_U += alive_U & ~clicked_U
        alive_U &= ~response.churned_U
        assert (alive_U == (state.budget_minutes_U > 0)).all()
    assert not alive_U.any()
    spent_U = minutes_U + 0.5 * idle_U
    assert ((spent_U >= 20 - 1e-4) & (spent_U < 20.5)).all(), "without payback the budget is all there is"


def test_better_videos_pay_back_more_time():
    config = InterestEvolutionConfig(num_items=200)
    simulator = InterestEvolution(config)
    state = users(simulator, 4000)
    ranked_I, left = np.argsort(simulator.quality_I), {}
    for name, slate in (("poor", ranked_I[:3]), ("good", ranked_I[-3:])):
        response, after = simulator.respond(state, np.tile(slate, (4000, 1)))
        clicked_U = response.behaviours_UKB[:, :, 0].any(axis=1)
        left[name] = after.budget_minutes_U[clicked_U]
        assert (after.budget_minutes_U[~clicked_U] == 199.5).all()
    assert left["good"].min() > 198.8 and left["poor"].max() < 193


def test_the_clock_moves_by_what_recsim_calls_time():
    for family in FAMILIES:
        simulator = family()
        state = users(simulator, 30)
        response, after = simulator.respond(state, random_slates(np.random.default_rng(0), simulator, 30, 2))
        assert (response.return_gap_s_U == STEP_GAP_S).all()
        watched_s_U = response.watch_s_UK.sum(axis=1)
        idle_s = 30 if family is InterestEvolution else 0
        clicked_U = response.behaviours_UKB[:, :, 0].any(axis=1)
        np.testing.assert_allclose(response.elapsed_s_U, np.where(clicked_U, watched_s_U, idle_s))
        np.testing.assert_allclose(after.time_s_U, response.elapsed_s_U.astype(np.float64) + STEP_GAP_S, rtol=1e-6)


@pytest.mark.parametrize(("family", "weights"), zip(FAMILIES, REWARDS, strict=True))
def test_the_feeds_reward_is_recsims(family, weights):
    simulator = family()
    env = FeedVectorEnv(64, simulator, session_length=2, reward=weights, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    before = env.state
    slates = random_slates(np.random.default_rng(0), simulator, 64, 2)
    reward_U = env.step(slates)[1]
    response, _ = simulator.respond(before, slates)
    clicked_U = response.behaviours_UKB[:, :, 0].any(axis=1)
    if family is InterestEvolution:
        expected_U = 4.0 * clicked_U
    elif family is InterestExploration:
        expected_U = clicked_U
    else:
        noise_U = luck.normal(luck.draw(luck.stream(before.seed_U, before.visit_U), luck.VISIT, 0))
        mean_U, sd_U = simulator.log_engagement(simulator.clickbait_I[slates[:, 0]], before.exposure_U)
        expected_U = np.exp(mean_U + sd_U * noise_U)
    np.testing.assert_allclose(reward_U, expected_U, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_state_shows_nowhere(family):
    env = FeedVectorEnv(4, family(), session_length=2)
    env.reset(seed=3)
    observation, *_ = env.step(env.action_space.sample())
    hidden = [f.name for f in fields(env._state) if f.name not in ("profile_UF", "time_s_U")]
    env._state = replace(env._state, **{name: np.full_like(getattr(env._state, name), 1) for name in hidden})
    assert data_equivalence(env._observation(), observation, exact=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_logs_can_be_collected(family):
    simulator = family()
    log = collect_log(simulator, num_users=30, num_visits=6, session_length=3, seed=0)
    assert log.num_users == 30 and log.behaviours[:, B["click"]].sum() > 20
    assert log.profile_sizes == simulator.profile_sizes


# ---------------------------------------------------------------- oracles against brute force


def minutes_ratio(simulator, interests, slate):
    """Minutes watched a minute of budget spent, on one slate for ever."""
    config, slate = simulator.config, list(slate)
    probs = np.array(plain_probs(config, interests[simulator.catalog.topic_I[slate]]))
    cost = 4 * (1 - 0.9 * simulator.quality_I[slate] / 3.4)
    return 4 * probs.sum() / (probs @ cost + 0.5 * (1 - probs.sum()))


@pytest.mark.parametrize("how", CHOICES)
def test_oracle_of_interest_evolution_gets_the_most_out_of_the_budget(how):
    simulator = InterestEvolution(InterestEvolutionConfig(num_items=9, choice=how, **LIKELY))
    state = users(simulator, 25)
    slates = simulator.oracle(state, 3)
    assert all(len(set(slate)) == 3 for slate in slates.tolist())
    for u, slate in enumerate(slates):
        every = [minutes_ratio(simulator, state.interest_UM[u], s) for s in itertools.permutations(range(9), 3)]
        found = minutes_ratio(simulator, state.interest_UM[u], slate)
        assert found >= max(every) * (0.995 if "cascade" in how else 1 - 1e-9)


def test_oracle_of_interest_exploration_is_clicked_most():
    simulator = InterestExploration(InterestExplorationConfig(num_items=8))
    state = users(simulator, 20)
    found_U = simulator.choice_prob(state, simulator.oracle(state, 3)).sum(axis=1)
    every_S = [np.tile(slate, (20, 1)) for slate in itertools.combinations(range(8), 3)]
    best_U = np.max([simulator.choice_prob(state, slates_UK).sum(axis=1) for slates_UK in every_S], axis=0)
    np.testing.assert_allclose(found_U, best_U, rtol=1e-12)


@pytest.mark.parametrize("sensitivity", [0.01, 1.0])
def test_oracle_of_long_term_satisfaction_looks_ahead_to_the_end(sensitivity):
    config = LongTermSatisfactionConfig(num_items=5, sensitivity=sensitivity, innovation_sd=0.0, time_budget=4)
    simulator = LongTermSatisfaction(config)
    state = users(simulator, 40)

    def worth(exposure, plan):
        total = 0.0
        for item in plan:
            bait = simulator.clickbait_I[item]
            mean = (5 * bait + 4 * (1 - bait)) / (1 + np.exp(-sensitivity * exposure))
            total += np.exp(mean + 0.5)
            exposure = 0.7 * exposure - 2 * (bait - 0.5)
        return total

    first_U = simulator.oracle(state, 2)[:, 0]
    for u in range(40):
        plans = {plan: worth(state.exposure_U[u], plan) for plan in itertools.product(range(5), repeat=4)}
        with_it = max(value for plan, value in plans.items() if plan[0] == first_U[u])
        assert with_it >= max(plans.values()) * (1 - 1e-4)
    most_bait = simulator.clickbait_I.argmax()
    assert (first_U == most_bait).all() == (sensitivity == 0.01), "only sensitive users are worth a sacrifice"


@pytest.mark.parametrize(
    ("simulator", "weights", "rival"),
    [
        (InterestEvolution(), REWARDS[0], lambda s, state: s.interests(state)[0][:, s.catalog.topic_I]),
        (InterestExploration(NICHE), REWARDS[1], lambda s, state: np.tile(s.quality_I, (len(state.seed_U), 1))),
        (
            LongTermSatisfaction(LongTermSatisfactionConfig(sensitivity=0.3)),
            REWARDS[2],
            lambda s, state: np.tile(s.clickbait_I, (len(state.seed_U), 1)),
        ),
    ],
    ids=["evolution", "exploration", "satisfaction"],
)
def test_oracles_beat_the_myopic_rival_over_episodes(simulator, weights, rival):
    def episodes(choose):
        state, total_U, alive_U = users(simulator, 150), np.zeros(150), np.ones(150, bool)
        for _ in range(120):
            response, state = simulator.respond(state, choose(state))
            total_U += alive_U * session_reward(response, weights)
            alive_U &= ~response.churned_U
        return total_U.mean()

    myopic = episodes(lambda state: np.argsort(-rival(simulator, state), axis=1, kind="stable")[:, :2])
    assert episodes(lambda state: simulator.oracle(state, 2)) > 1.1 * myopic


# ---------------------------------------------------------------- user faults


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InterestEvolutionConfig(num_items=0), "num_items=0"),
        (lambda: InterestEvolutionConfig(budget_minutes=0), "budget_minutes=0"),
        (lambda: InterestEvolutionConfig(min_normalizer=-0.5), "min_normalizer=-0.5"),
        (lambda: InterestEvolutionConfig(payback=1.2), "payback=1.2"),
        (lambda: InterestExplorationConfig(num_items=-1), "num_items=-1"),
        (lambda: InterestExplorationConfig(topic_distribution=(0.5, 0.6)), "topic_distribution"),
        (lambda: InterestExplorationConfig(topic_quality_mean=(0.1,)), "topic_quality_mean has shape"),
        (lambda: InterestExplorationConfig(affinity_mean=((0.1, 0.2), (0.1,))), "affinity_mean has shape"),
        (lambda: LongTermSatisfactionConfig(memory_discount=1.0), "memory_discount=1.0"),
        (lambda: LongTermSatisfactionConfig(time_budget=0), "time_budget=0"),
        (lambda: LongTermSatisfactionConfig(choc_sd=-1.0), "choc_sd=-1.0"),
    ],
)
def test_constants_that_cannot_be_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        config = make()
        next(f for f in FAMILIES if type(config).__name__ == f"{f.__name__}Config")(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_oracles_refuse_sessions_longer_than_the_catalogue(family):
    simulator = make_simulator(f"feedgym.envs.recsim:{family.__name__}", num_items=3)
    with pytest.raises(ValueError, match="session of 4 different items"):
        simulator.oracle(users(simulator, 2), 4)
