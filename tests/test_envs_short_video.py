import itertools
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.special import ndtri

from feedgym.data.events import BEHAVIOURS
from feedgym.envs import luck
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingConfig
from feedgym.envs.luck import user_seeds
from feedgym.envs.short_video import ShortVideo, ShortVideoConfig

B = {name: idx for idx, name in enumerate(BEHAVIOURS)}
SMALL = ShortVideoConfig(num_items=60, memory_items=8)
PATIENT = {"next_logit": 50.0, "budget_s": 1e7}
"""Users who examine every item."""


def users(simulator, num_users, group="test"):
    return simulator.reset(user_seeds(num_users, 0, group))


def lived(simulator, num_users, visits=3, length=6):
    """Users with a past."""
    state, rng = users(simulator, num_users), np.random.default_rng(0)
    for _ in range(visits):
        _, state = simulator.respond(state, rng.integers(simulator.config.num_items, size=(num_users, length)))
    return state


# ---------------------------------------------------------------- the equations, one user and one item at a time


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_visit(simulator, state, u, slate):
    """A visit of user u by the specification's equations, in scalars, with the simulator's random channels."""
    c, truth, catalog = simulator.config, simulator.latents, simulator.catalog
    key = luck.stream(state.seed_U[u : u + 1], state.visit_U[u])

    def uniform(position, channel):
        return float(luck.draw(key, position, channel)[0])

    theta, s = state.interest_UD[u].astype(float), state.mood_UD[u].astype(float)
    f, satisfaction = state.satiation_UM[u].astype(float), float(state.satisfaction_U[u])
    oldest = state.num_seen_U[u] % c.memory_items
    ring = [int(i) for i in np.roll(state.seen_UR[u], -oldest) if i >= 0]
    active = float(simulator.population.activity(state.time_s_U[u : u + 1], state.hour_shift_U[u : u + 1])[0])
    budget = c.budget_s * np.exp(c.budget_sd * ndtri(uniform(luck.VISIT, 0)) + c.budget_active * (2 * active - 1))
    spent, rows = 0.0, []
    for k, item in enumerate(slate):
        z, q, bait = truth.z_ID[item].astype(float), truth.quality_I[item], truth.clickbait_I[item]
        duration = catalog.duration_s_I[item]
        m = truth.mixture_IM[item].astype(float)
        g = c.interest_weight * theta @ z + c.mood_weight * s @ z + c.quality_weight * q - c.satiation_weight * f @ m
        g -= c.seen_penalty * (item in ring)
        g += c.novelty_weight * state.novelty_U[u] * (f[truth.topic_I2[item, 0]] < c.novelty_satiation)
        bias = c.click_bias_weight * state.click_bias_U[u]
        click = uniform(k, 0) < sigmoid(c.click_logit + g + c.click_clickbait * state.susceptibility_U[u] * bait + bias)
        e = g - c.enjoyment_clickbait * bait
        if click:
            logit = c.complete_logit + c.complete_enjoyment * e - c.complete_duration * np.log(duration / 32)
            if uniform(k, 1) < sigmoid(logit):
                replay = uniform(k, 2) < c.replay_prob * sigmoid(e - 1)
                watch = duration * (1 + replay * c.replay_max * uniform(k, 3))
            else:
                power = 1 / (c.partial_shape[0] + c.partial_shape[1] * sigmoid(e))
                watch = duration * (c.partial_low + c.partial_span * uniform(k, 3) ** power)
        else:
            watch = min(duration, -c.skip_mean_s * np.log1p(-uniform(k, 3)))
        watch = min(watch, budget - spent)
        row = [click, watch >= min(c.long_view_s, duration)]
        for x in range(5):
            chance = sigmoid(c.feedback_logit[x] + c.feedback_enjoyment[x] * e + state.feedback_UX[u, x])
            row.append((click or x == 4) and uniform(k, 5 + x) < chance)
        rows.append((row, watch))
        spent += watch
        ring.append(int(item))  # within a visit nothing is forgotten
        s = s + c.mood_rate * np.tanh(e) * click * (z - s)
        f = f + c.satiation_rate * m * (c.satiation_skip + (1 - c.satiation_skip) * click) * (1 - f)
        f = f * np.exp(-watch / (3600 * c.satiation_hours))
        satisfaction += c.satisfaction_rate * (np.tanh(e) * (1 if click else c.satisfaction_skip) - satisfaction)
        if not (uniform(k, 4) < sigmoid(c.next_logit + state.patience_U[u] + c.next_enjoyment * e) and spent < budget):
            break
    churned = uniform(luck.VISIT, 4) < sigmoid(c.churn_logit - c.churn_satisfaction * satisfaction)
    gap = 3600 * c.gap_hours * np.exp(-c.gap_satisfaction * satisfaction) / state.activity_U[u]
    gap *= (-np.log1p(-uniform(luck.VISIT, 1))) ** (1 / c.gap_shape)
    return rows, churned, gap, spent, s, f, satisfaction, ring[-c.memory_items :]


@pytest.mark.parametrize("config", [SMALL, ShortVideoConfig(num_items=25, memory_items=40, feedback_logit=(-1.0,) * 5)])
def test_a_visit_follows_the_equations(config):
    simulator = ShortVideo(config)
    state = lived(simulator, 60)
    slates = np.random.default_rng(1).integers(config.num_items, size=(60, 7))
    slates[::5, 3] = slates[::5, 0]  # some items twice
    response, after = simulator.respond(state, slates)
    for u in range(60):
        rows, churned, gap, spent, mood, satiation, satisfaction, seen = plain_visit(simulator, state, u, slates[u])
        n = len(rows)
        assert response.examined_UK[u].tolist() == [True] * n + [False] * (7 - n)
        assert response.behaviours_UKB[u, :n].tolist() == [row for row, _ in rows]
        np.testing.assert_allclose(response.watch_s_UK[u, :n], [watch for _, watch in rows], rtol=2e-4)
        assert response.churned_U[u] == churned and response.left_U[u] == (n < 7)
        assert response.return_gap_s_U[u] >= gap * 0.999, "a return waits for an active hour, and never comes early"
        np.testing.assert_allclose(response.elapsed_s_U[u], spent, rtol=1e-4)
        hours = response.return_gap_s_U[u] / 3600
        np.testing.assert_allclose(after.mood_UD[u], mood * np.exp(-hours / config.mood_hours), atol=1e-5)
        np.testing.assert_allclose(
            after.satiation_UM[u], satiation * np.exp(-hours / config.satiation_hours), atol=2e-5
        )
        np.testing.assert_allclose(after.satisfaction_U[u], satisfaction, atol=1e-5)
        assert sorted(i for i in after.seen_UR[u] if i >= 0) == sorted(seen)
    assert response.left_U.any() and not response.left_U.all()


def test_behaviours_agree_with_each_other():
    simulator = ShortVideo(ShortVideoConfig(num_items=60, feedback_logit=(-1.0,) * 5))
    slates = np.random.default_rng(0).integers(60, size=(2000, 6))
    response, _ = simulator.respond(users(simulator, 2000), slates)
    click = response.behaviours_UKB[..., B["click"]].astype(bool)
    for name in ("like", "follow", "comment", "forward"):
        assert (
            not response.behaviours_UKB[~click][:, B[name]].any() and response.behaviours_UKB[click][:, B[name]].any()
        )
    assert response.behaviours_UKB[~click][:, B["hate"]].any()
    duration = simulator.catalog.duration_s_I[slates]
    long_view = response.examined_UK & (response.watch_s_UK >= np.minimum(18, duration))
    assert (response.behaviours_UKB[..., B["long_view"]] == long_view).all()
    assert (response.watch_s_UK[~click] <= duration[~click]).all()
    assert (response.watch_s_UK <= 2.5 * duration * (1 + 1e-6)).all()


# ---------------------------------------------------------------- sessions are more than their items


def click_rates(simulator, state, slates):
    return simulator.respond(state, slates)[0].behaviours_UKB[..., 0].mean(axis=0)


def same_topic_and_others(simulator):
    """Four items of one topic, four of other topics, and a fifth of the first topic."""
    topic_I = simulator.latents.topic_I2[:, 0]
    topic = np.bincount(topic_I).argmax()
    own = np.flatnonzero(topic_I == topic)[:5]
    others = np.flatnonzero((simulator.latents.topic_I2 != topic).all(axis=1))[:4]
    return own, others


def test_a_swapped_early_item_changes_later_answers_only_through_mood_and_satiation():
    slates = np.tile(np.arange(10, 16), (800, 1))
    swapped = slates.copy()
    swapped[:, 0] = 30
    changes = {}
    for name, off in {"all": {}, "none": {"mood_weight": 0.0, "satiation_weight": 0.0, "novelty_weight": 0.0}}.items():
        simulator = ShortVideo(replace(SMALL, **PATIENT, **off))
        a, b = (simulator.respond(users(simulator, 800), x)[0] for x in (slates, swapped))
        changes[name] = (a.watch_s_UK[:, 1:] != b.watch_s_UK[:, 1:]).mean()
        assert (a.watch_s_UK[:, 0] != b.watch_s_UK[:, 0]).mean() > 0.5
    assert changes["all"] > 0.01 and changes["none"] == 0


def test_order_matters_to_the_same_items():
    """An item that ends a permuted session finds its topic stale; without mood and satiation it would not care."""
    off = {"mood_weight": 0.0, "satiation_weight": 0.0, "novelty_weight": 0.0}
    ratio = {}
    for name, config in {"on": replace(SMALL, **PATIENT), "off": replace(SMALL, **PATIENT, **off)}.items():
        simulator = ShortVideo(config)
        own, others = same_topic_and_others(simulator)
        state = users(simulator, 8000)
        first = click_rates(simulator, state, np.tile([own[4], *others, *own[:4]], (8000, 1)))[0]
        last = click_rates(simulator, state, np.tile([*others, *own], (8000, 1)))[-1]
        ratio[name] = last / first
    assert ratio["on"] < 0.85 and abs(ratio["off"] - 1) < 0.1


def test_the_fifth_video_of_a_topic_is_dull_and_hours_make_it_good_again():
    simulator = ShortVideo(replace(SMALL, **PATIENT, mood_weight=0.0, novelty_weight=0.0))
    own, others = same_topic_and_others(simulator)
    state = users(simulator, 8000)
    after_own = click_rates(simulator, state, np.tile(own, (8000, 1)))[4]
    after_others = click_rates(simulator, state, np.tile([*others, own[4]], (8000, 1)))[4]
    assert after_own < 0.85 * after_others
    _, later = simulator.respond(state, np.tile(own, (8000, 1)))
    topic = simulator.latents.topic_I2[own[0], 0]
    gap_s = later.time_s_U - state.time_s_U
    assert later.satiation_UM[gap_s < 3600, topic].mean() > 0.2
    assert later.satiation_UM[gap_s > 12 * 3600, topic].max() < 0.05


def test_enjoyed_items_put_users_in_the_mood_for_more():
    simulator = ShortVideo(replace(SMALL, **PATIENT, satiation_weight=0.0, novelty_weight=0.0, mood_hours=1e6))
    own, _ = same_topic_and_others(simulator)
    state = users(simulator, 8000)
    z = simulator.latents.z_ID[own[4]]
    response, after = simulator.respond(state, np.tile(own[:4], (8000, 1)))
    mood = after.mood_UD @ z
    clicked, love = response.behaviours_UKB[..., 0].any(axis=1), state.interest_UD @ z
    assert mood[clicked & (love > 0.5)].mean() > 0.02 and np.corrcoef(mood[clicked], love[clicked])[0, 1] > 0.2
    assert not after.mood_UD[~clicked].any(), "who skipped everything is in the mood for nothing"
    moved = replace(state, mood_UD=np.tile(z, (8000, 1)))
    rates = [click_rates(simulator, users_now, np.full((8000, 1), own[4]))[0] for users_now in (state, moved)]
    assert rates[1] > 1.5 * rates[0]


def test_items_seen_before_are_clicked_less_within_and_across_visits():
    simulator = ShortVideo(replace(SMALL, **PATIENT, satiation_weight=0.0, mood_weight=0.0, novelty_weight=0.0))
    state = users(simulator, 4000)
    fresh = click_rates(simulator, state, np.tile([1, 2, 3], (4000, 1)))
    twice = click_rates(simulator, state, np.tile([3, 2, 3], (4000, 1)))
    assert twice[2] < 0.5 * fresh[2] and twice[1] == fresh[1]
    _, later = simulator.respond(state, np.tile([3, 4, 5], (4000, 1)))
    forgotten = replace(later, seen_UR=np.full_like(later.seen_UR, -1))
    slates = np.tile([3, 6], (4000, 1))
    known, unknown = click_rates(simulator, later, slates), click_rates(simulator, forgotten, slates)
    assert known[0] < 0.5 * unknown[0] and known[1] == unknown[1]


# ---------------------------------------------------------------- engagement is not satisfaction


def test_clickbait_raises_clicks_and_lowers_enjoyment():
    config = replace(SMALL, **PATIENT, feedback_logit=(-2.0,) * 5)
    plain, baited = ShortVideo(config), ShortVideo(config)
    plain.latents = replace(plain.latents, clickbait_I=np.zeros(60, np.float32))
    baited.latents = replace(baited.latents, clickbait_I=np.full(60, 1.5, np.float32))
    state = users(plain, 4000)
    slates = np.random.default_rng(0).integers(60, size=(4000, 5))
    (a, after_a), (b, after_b) = plain.respond(state, slates), baited.respond(state, slates)
    click_a, click_b = a.behaviours_UKB[..., 0] == 1, b.behaviours_UKB[..., 0] == 1
    assert click_b.mean() > 1.5 * click_a.mean()
    for name in ("like", "follow", "comment", "forward"):
        assert b.behaviours_UKB[click_b][:, B[name]].mean() < 0.6 * a.behaviours_UKB[click_a][:, B[name]].mean()
    assert b.behaviours_UKB[..., B["hate"]].mean() > 1.5 * a.behaviours_UKB[..., B["hate"]].mean()
    duration = plain.catalog.duration_s_I[slates]
    assert (b.watch_s_UK / duration)[click_b].mean() < 0.85 * (a.watch_s_UK / duration)[click_a].mean()
    assert after_b.satisfaction_U.mean() < after_a.satisfaction_U.mean() - 0.02
    assert b.return_gap_s_U.mean() > a.return_gap_s_U.mean()


def test_satisfied_users_come_back_sooner_and_stay():
    simulator = ShortVideo(SMALL)
    state = users(simulator, 20_000)
    slates = np.tile([1, 2], (20_000, 1))
    answers = {}
    for level in (-0.8, 0.8):
        changed = replace(state, satisfaction_U=np.full(20_000, level, np.float32))
        answers[level] = simulator.respond(changed, slates)[0]
    assert np.median(answers[0.8].return_gap_s_U) < 0.4 * np.median(answers[-0.8].return_gap_s_U)
    assert answers[0.8].churned_U.mean() < 0.2 * answers[-0.8].churned_U.mean()


# ---------------------------------------------------------------- who the users are


def test_rates_are_those_of_the_real_feed():
    """The figures of KuaiRand that the constants were set by, within the noise of 500 users."""
    simulator = ShortVideo()
    rates = {}
    for name, share in {"production": 0.0, "random": 1.0}.items():
        config = LoggingConfig(popularity_share=0.0, random_share=share)
        log = collect_log(simulator, num_users=500, num_visits=10, session_length=10, seed=0, config=config)
        rates[name] = log.behaviours[log.examined].mean(axis=0)
    first = log.position == 0
    examined = log.examined.sum() / first.sum()
    assert rates["production"][0] == pytest.approx(0.37, abs=0.04) and rates["random"][0] == pytest.approx(
        0.18, abs=0.03
    )
    assert rates["production"][B["long_view"]] == pytest.approx(0.31, abs=0.04)
    real = {"like": 0.0172, "follow": 0.0013, "comment": 0.0025, "forward": 0.0009, "hate": 0.0008}
    for name, rate in real.items():
        assert rate / 2 < rates["production"][B[name]] < rate * 2, name
    assert 6 < examined < 8


def test_watch_ratios_have_two_bumps_and_fall_with_duration():
    simulator = ShortVideo()
    config = LoggingConfig(popularity_share=0.0, random_share=0.0)
    log = collect_log(simulator, num_users=500, num_visits=8, session_length=10, seed=1, config=config)
    duration = simulator.catalog.duration_s_I[log.item_id[log.examined]]
    ratio = log.watch_s[log.examined] / duration
    assert 0.4 < (ratio < 0.1).mean() < 0.55 and 0.17 < (abs(ratio - 1) < 0.001).mean() < 0.28
    assert 0.02 < (ratio > 1.001).mean() < 0.08
    assert ((ratio > 0.4) & (ratio < 0.9)).mean() < 0.2
    edges = [5, 15, 30, 60, 120, 301]
    medians = [np.median(ratio[(duration >= a) & (duration < b)]) for a, b in itertools.pairwise(edges)]
    assert (np.diff(medians) < 0).all() and medians[0] > 5 * medians[-1]


def test_few_users_give_most_comments():
    simulator = ShortVideo(SMALL)
    comment = BEHAVIOURS[2:].index("comment")
    odds = np.exp(np.sort(users(simulator, 5000).feedback_UX[:, comment])[::-1].astype(float))
    assert odds[:500].sum() > 0.35 * odds.sum()


def test_interests_are_few_topics_and_profiles_tell_something_of_them():
    simulator = ShortVideo()
    state = users(simulator, 5000)
    np.testing.assert_allclose(np.linalg.norm(state.interest_UD, axis=1), 1, rtol=1e-5)
    assert (state.profile_UF.max(axis=0) + 1 == simulator.profile_sizes).all()
    for f in range(3):
        groups = [
            state.interest_UD[state.profile_UF[:, f] == v].mean(axis=0) for v in range(simulator.profile_sizes[f])
        ]
        assert np.linalg.norm(groups[0] - groups[-1]) > 0.15, "chance alone gives about 0.05"
    affinity = state.interest_UD[:500] @ state.interest_UD[500:1000].T
    assert affinity.std() > 0.2, "users must differ"


def test_logins_follow_the_day_and_never_come_before_the_gap_is_over():
    simulator = ShortVideo()
    state = users(simulator, 6000)
    response, after = simulator.respond(state, np.tile([1, 2], (6000, 1)))
    for clock in (state.time_s_U, after.time_s_U):
        hours = np.bincount((clock // 3600 % 24).astype(int), minlength=24)
        assert hours[[21, 22]].sum() > 2.5 * hours[[3, 4]].sum()
    assert (after.time_s_U >= state.time_s_U + response.elapsed_s_U).all()


def test_random_numbers_depend_only_on_the_seed_which_changes_no_trait():
    simulator = ShortVideo(SMALL)
    state = lived(simulator, 500)
    slates = np.random.default_rng(0).integers(60, size=(500, 6))
    other = replace(state, seed_U=user_seeds(500, 1, "other"))
    a, b = simulator.respond(state, slates)[0], simulator.respond(other, slates)[0]
    assert (a.watch_s_UK != b.watch_s_UK).mean() > 0.5
    assert a.behaviours_UKB[..., 0].mean() == pytest.approx(b.behaviours_UKB[..., 0].mean(), abs=0.03)
    everyone = replace(state, seed_U=np.full_like(state.seed_U, 5))
    same = {f.name: getattr(everyone, f.name)[[7] * 500] for f in fields(everyone)}
    watch = simulator.respond(replace(everyone, **same), np.tile(slates[7], (500, 1)))[0].watch_s_UK
    assert (watch == watch[0]).all(), "same user, same random numbers, same session"


def test_states_stay_in_their_ranges_over_a_long_life():
    simulator = ShortVideo(SMALL)
    state = lived(simulator, 100, visits=40, length=10)
    assert (state.satiation_UM >= 0).all() and (state.satiation_UM < 1).all()
    assert (abs(state.satisfaction_U) <= 1).all() and np.isfinite(state.mood_UD).all()
    assert (np.linalg.norm(state.mood_UD, axis=1) < 1.5).all()
    np.testing.assert_allclose(np.linalg.norm(state.interest_UD, axis=1), 1, rtol=1e-4)
    for f in fields(state):
        column = getattr(state, f.name)
        assert column.dtype != np.float64 or f.name == "time_s_U", f"{f.name} must stay float32"


@pytest.mark.parametrize(
    ("slates", "message"),
    [
        (np.zeros((3, 4), int), r"shape \(3, 4\) do not fit 2 users"),
        (np.zeros((2, 0), int), r"K >= 1"),
        (np.zeros((2, 4)), "dtype float64 are not item ids"),
        (np.full((2, 4), 60), r"Item id 60 is outside 0\.\.59"),
        (np.full((2, 4), -1), "Item id -1 is outside"),
    ],
)
def test_wrong_slates_are_refused(slates, message):
    simulator = ShortVideo(SMALL)
    with pytest.raises(ValueError, match=message):
        simulator.respond(users(simulator, 2), slates)
