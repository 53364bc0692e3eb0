"""Computes a visit of each user, compiled: user after user, item after item, until the user leaves.

:mod:`feedgym.envs.short_video.visit_numpy` holds the same equations for all users at once. With the same random numbers
it makes the same decisions, but its floats differ in the last bits. This file computes in float64 and keeps float32.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics, ``R`` remembered items, ``X`` explicit behaviours,
``H`` hours of the day, ``W`` days of the week and its end. ``D`` is the latent width.
"""

from __future__ import annotations

import math
from collections import namedtuple
from dataclasses import fields, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, DAY_S, Catalog, IntArray
from feedgym.envs import luck
from feedgym.envs.compiling import compiled, given
from feedgym.envs.luck_compiled import derive, draw, exponential
from feedgym.envs.short_video.catalog import Latents
from feedgym.envs.short_video.population import FEEDBACK, Population, ShortVideoConfig, ShortVideoState, Terms
from feedgym.envs.short_video.visit import (
    ACTIVE_HOUR,
    BUDGET,
    CHURN,
    CLICK,
    COMPLETE,
    EXTENT,
    GAP,
    MINUTE,
    NEXT,
    REPLAY,
    SimulatorWithTruth,
)
from feedgym.protocols import Response

HATE = len(FEEDBACK) - 1
VISIT = luck.VISIT
HOUR_S, WEEK_S = 3600.0, 604_800.0

CONSTANTS = tuple(field.name for field in (*fields(ShortVideoConfig), *fields(Terms)) if field.name != "day_peaks")

Items = namedtuple(
    "Items",
    "z_ID quality_I clickbait_I duration_s_I topic_I2 weight_I2 upload_s_I withdraw_s_I day_H passed_s_W",
)
"""The items and the activity by hour and day, as in :class:`Latents`, :class:`Catalog` and :class:`Population`."""

Users = namedtuple(
    "Users",
    "seed_U visit_U time_s_U hour_shift_U num_seen_U seen_UR interest_UD core_UD mood_UD satiation_UM satisfaction_U "
    "patience_U click_bias_U feedback_UX susceptibility_U novelty_U activity_U",
)
"""Columns of the state that a visit reads."""

READ = dict.fromkeys(Users._fields, np.float32) | {
    **{"seed_U": np.uint64, "visit_U": np.int64, "time_s_U": np.float64},
    **{"hour_shift_U": np.int64, "num_seen_U": np.int64, "seen_UR": np.int32},
}

Changed = namedtuple("Changed", "time_s_U interest_UD mood_UD satiation_UM satisfaction_U seen_UR num_seen_U")
"""Columns of the state at the next visit that a visit writes."""

Told = namedtuple("Told", [field.name for field in fields(Response)])  # type: ignore[misc]  # as the dataclass has them
"""The arrays of a :class:`Response`."""


def constants_of(simulator: SimulatorWithTruth) -> NDArray[np.void]:
    """The constants of a visit, one record of floats and rows of floats; in an array, which numba takes faster."""
    where = vars(simulator.terms) | vars(simulator.config)
    values = {name: where[name] for name in CONSTANTS}
    dtype = [(name, np.float64, np.shape(value)) for name, value in values.items()]
    return np.array([tuple(values.values())], dtype)


def items_of(simulator: SimulatorWithTruth) -> Items:
    """The items and the users' week, as kernels take them; made once as long as nothing is replaced."""
    latents, catalog, population = simulator.latents, simulator.catalog, simulator.population
    made_of, items = _ITEMS.get(latents, (None, None))
    if items is None or made_of != (catalog, population):
        never = np.full(catalog.num_items, np.inf) if simulator.has_arrivals else np.zeros(0)
        items = Items(
            z_ID=given(latents.z_ID, np.float32),
            quality_I=given(latents.quality_I, np.float32),
            clickbait_I=given(latents.clickbait_I, np.float32),
            duration_s_I=given(catalog.duration_s_I, np.float32),
            topic_I2=given(latents.topic_I2, np.int32),
            weight_I2=given(latents.weight_I2, np.float32),
            upload_s_I=given(catalog.upload_s_I, np.float64),
            withdraw_s_I=given(never if catalog.withdraw_s_I is None else catalog.withdraw_s_I, np.float64),
            day_H=given(population.day_H, np.float32),
            passed_s_W=given(population.passed_s_W if population.has_week else np.zeros(0), np.float64),
        )
        _ITEMS[latents] = (catalog, population), items
    return items


_ITEMS: WeakKeyDictionary[Latents, tuple[tuple[Catalog, Population], Items]] = WeakKeyDictionary()


def respond(
    simulator: SimulatorWithTruth, state: ShortVideoState, slates_UK: IntArray
) -> tuple[Response, ShortVideoState]:
    """Responses of the users to one session each, and the users at their next visit.

    Args:
        simulator: the users' simulator.
        state: U users; not changed.
        slates_UK: item ids, checked before.
    """
    num_users, length = slates_UK.shape
    users = Users(*(given(getattr(state, name), dtype) for name, dtype in READ.items()))
    after = Changed(*(getattr(users, name).copy() for name in Changed._fields))
    after.interest_UD[:] = 0  # the kernel first sums the liked items there
    response = Response(
        behaviours_UKB=np.zeros((num_users, length, len(BEHAVIOURS)), np.uint8),
        watch_s_UK=np.zeros((num_users, length), np.float32),
        examined_UK=np.zeros((num_users, length), bool),
        elapsed_s_U=np.empty(num_users, np.float32),
        left_U=np.empty(num_users, bool),
        return_gap_s_U=np.empty(num_users, np.float32),
        churned_U=np.empty(num_users, bool),
    )
    uniform_U = np.empty(num_users, np.float32)
    _draw_budgets(users.seed_U, users.visit_U, uniform_U)
    normal_U = given(luck.normal(uniform_U), np.float32)
    slates_UK, told = given(slates_UK, np.int64), Told(**vars(response))
    _answer(simulator.constants, items_of(simulator), users, slates_UK, normal_U, after, told)
    return response, replace(state, visit_U=state.visit_U + 1, **after._asdict())


# ---------------------------------------------------------------- compiled


@compiled()
def _draw_budgets(seed_U, visit_U, uniform_U):
    """The random numbers of the time that users have: its distribution is NumPy's work."""
    for u in range(len(seed_U)):
        uniform_U[u] = draw(derive(seed_U[u], np.uint64(visit_U[u])), VISIT, BUDGET)


@compiled()
def _answer(constants_1, items, users, slates_UK, normal_U, after, told):
    """All users' visits, written into ``told`` and ``after``."""
    c = constants_1[0]
    for u in range(len(slates_UK)):
        stream = derive(users.seed_U[u], np.uint64(users.visit_U[u]))
        active = items.day_H[(np.int64(users.time_s_U[u] / HOUR_S) - users.hour_shift_U[u]) % 24]
        longer = c.budget_sd * normal_U[u] + c.budget_active * (2 * active - 1)
        budget_s = np.float32(c.budget_s * math.exp(longer))
        _visit(c, items, users, slates_UK[u], stream, budget_s, after, told, u)


@compiled()
def _visit(c, items, users, slate_K, stream, budget_s, after, told, u):
    """The visit of user u: the items until the user leaves, then the changes until the next visit."""
    login_s, theta_D, ring_R = users.time_s_U[u], users.interest_UD[u], users.seen_UR[u]
    mood_D, satiation_M, liked_D = after.mood_UD[u], after.satiation_UM[u], after.interest_UD[u]
    satisfaction, num_seen = float(users.satisfaction_U[u]), users.num_seen_U[u]
    spent_s, recovery, liked, sated = np.float32(0), 1.0, 0.0, 0.0
    for k in range(len(slate_K)):
        item = slate_K[k]
        if _is_empty(items, item, login_s, spent_s):
            satisfaction += c.satisfaction_rate * (-1 - satisfaction)
            break
        z_D, bait, duration_s = items.z_ID[item], items.clickbait_I[item], items.duration_s_I[item]
        # All topics recover equally within a visit, so one factor per user keeps a step from touching all M of them.
        topic_1, topic_2 = items.topic_I2[item, 0], items.topic_I2[item, 1]
        share_1, share_2 = items.weight_I2[item, 0], items.weight_I2[item, 1]
        f_1, f_2 = satiation_M[topic_1] * recovery, satiation_M[topic_2] * recovery
        pull = (
            _affinity(c.interest_weight, theta_D, c.mood_weight, mood_D, z_D)
            + c.quality_weight * items.quality_I[item]
            - c.satiation_weight * (f_1 * share_1 + f_2 * share_2)
            - c.seen_penalty * _is_seen(item, k, ring_R, slate_K)
            + c.novelty_weight * users.novelty_U[u] * (f_1 < c.novelty_satiation)
        )
        if c.fresh_weight != 0:
            age_s = max(login_s - items.upload_s_I[item], 0.0)
            pull += c.fresh_weight * math.exp(-age_s / (c.fresh_days * DAY_S))
        lure = c.click_clickbait * users.susceptibility_U[u] * bait + c.click_bias_weight * users.click_bias_U[u]
        click = _happens(draw(stream, k, CLICK), c.click_logit + pull + lure)
        enjoyment = pull - c.enjoyment_clickbait * bait
        left_s = budget_s - spent_s
        watch_s = np.float32(min(_watch(c, stream, k, click, enjoyment, duration_s), left_s))

        told.examined_UK[u, k], told.watch_s_UK[u, k] = True, watch_s
        told.behaviours_UKB[u, k, 0] = click
        told.behaviours_UKB[u, k, 1] = watch_s >= min(c.long_view_s, duration_s)
        for x in range(0 if click else HATE, HATE + 1):  # users may hate an item that they skipped
            logit = c.feedback_logit[x] + c.feedback_enjoyment[x] * enjoyment + users.feedback_UX[u, x]
            told.behaviours_UKB[u, k, 2 + x] = _happens(draw(stream, k, NEXT + 1 + x), logit)

        feeling = _tanh(enjoyment)
        if click:
            liking = max(feeling, 0.0)
            liked += liking
            for d in range(len(z_D)):
                liked_D[d] += liking * z_D[d]
                mood_D[d] += c.mood_rate * feeling * (z_D[d] - mood_D[d])
        # New values are divided by the recovery that later reads multiply by; an item's two topics differ.
        step = c.satiation_rate * (1.0 if click else c.satiation_skip)
        satiation_M[topic_1] = (f_1 + step * share_1 * (1 - f_1)) / recovery
        satiation_M[topic_2] = (f_2 + step * share_2 * (1 - f_2)) / recovery
        if c.satisfaction_bar != 0:
            feeling = _tanh(enjoyment - c.satisfaction_bar)
        satisfaction += c.satisfaction_rate * (feeling * (1.0 if click else c.satisfaction_skip) - satisfaction)
        sated += f_1 * share_1 + f_2 * share_2
        after.seen_UR[u, num_seen % len(ring_R)] = item
        num_seen += 1
        spent_s += watch_s
        recovery = math.exp(-spent_s / (HOUR_S * c.satiation_hours))
        goes_on = _happens(draw(stream, k, NEXT), c.next_logit + users.patience_U[u] + c.next_enjoyment * enjoyment)
        if not goes_on or watch_s >= left_s:
            break

    num_examined = num_seen - users.num_seen_U[u]
    fatigue, logout_s = sated / max(num_examined, 1), login_s + spent_s
    after.satisfaction_U[u], after.num_seen_U[u] = satisfaction, num_seen
    told.elapsed_s_U[u], told.left_U[u] = spent_s, num_examined < len(slate_K)
    churn_logit = c.churn_logit - c.churn_satisfaction * satisfaction + c.churn_fatigue * fatigue
    told.churned_U[u] = _happens(draw(stream, VISIT, CHURN), churn_logit)
    scale_s = HOUR_S * c.gap_hours * math.exp(c.gap_fatigue * fatigue - c.gap_satisfaction * satisfaction)
    gap_s = scale_s / users.activity_U[u] * exponential(draw(stream, VISIT, GAP)) ** (1 / c.gap_shape)
    back_s = _after(items.passed_s_W, logout_s, gap_s) + HOUR_S * c.gap_min_hours
    bar, minute = draw(stream, VISIT, ACTIVE_HOUR), draw(stream, VISIT, MINUTE)
    after.time_s_U[u] = _next_active(items.day_H, back_s, users.hour_shift_U[u], bar, minute)
    told.return_gap_s_U[u] = after.time_s_U[u] - logout_s

    _drift(c, theta_D, users.core_UD[u], mood_D, liked, liked_D)
    mood_left = math.exp(-told.return_gap_s_U[u] / (HOUR_S * c.mood_hours))
    for d in range(len(mood_D)):
        mood_D[d] *= mood_left
    recovery *= math.exp(-told.return_gap_s_U[u] / (HOUR_S * c.satiation_hours))
    for m in range(len(satiation_M)):
        left = satiation_M[m] * recovery
        satiation_M[m] = left if left >= 1e-6 else 0.0  # denormal floats are slow


@compiled()
def _affinity(interest_weight, theta_D, mood_weight, mood_D, z_D):
    """The pull of long-term interests and mood."""
    total = 0.0
    for d in range(len(z_D)):
        total += (interest_weight * theta_D[d] + mood_weight * mood_D[d]) * z_D[d]
    return total


@compiled()
def _is_empty(items, item, login_s, spent_s):
    """Whether an item was withdrawn before the visit, or does not exist yet."""
    if len(items.withdraw_s_I) == 0:
        return False
    return items.withdraw_s_I[item] <= login_s or spent_s < items.upload_s_I[item] - login_s


@compiled()
def _is_seen(item, k, ring_R, slate_K):
    """Whether the user remembers an item from before, or from an earlier position."""
    found = False
    for r in range(len(ring_R)):  # without an exit, so that many places are compared at once
        found |= ring_R[r] == item
    for j in range(k):
        found |= slate_K[j] == item
    return found


@compiled()
def _watch(c, stream, k, click, enjoyment, duration_s):
    """Seconds watched: skip or watch, in part, or to the end and once more."""
    extent = draw(stream, k, EXTENT)
    if not click:
        return min(c.skip_mean_s * exponential(extent), duration_s)
    logit = c.complete_logit + c.complete_enjoyment * enjoyment - c.complete_duration * math.log(duration_s / 32)
    # One uniform number serves skipping, replaying and watching in part, because a user does only one of them.
    if _happens(draw(stream, k, COMPLETE), logit):
        replays = draw(stream, k, REPLAY) < c.replay_prob * _sigmoid(enjoyment - 1)
        return duration_s * (1 + replays * c.replay_max * extent)
    shape = c.partial_shape[0] + c.partial_shape[1] * _sigmoid(enjoyment)
    return duration_s * (c.partial_low + c.partial_span * extent ** (1 / shape))


@compiled("b1(f8, f8)")
def _happens(uniform, logit):
    """Bernoulli(sigmoid(logit)) by a uniform number.

    As (1 + x/4)^4 <= exp(x), most cases are clear without the exponential.
    """
    bound = (1 + abs(logit) / 4) ** 4
    if logit < 0 and uniform * (1 + bound) >= 1:
        return False
    if logit > 0 and uniform * (1 + bound) < bound:
        return True
    return uniform * (1 + math.exp(-logit)) < 1


@compiled("f8(f8)")
def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


@compiled("f8(f8)")
def _tanh(x):
    return 1 - 2 / (math.exp(2 * x) + 1)


@compiled()
def _drift(c, theta_D, core_D, mood_D, liked, new_D):
    """Long-term interests: towards the mood and the liked items, whose sum ``new_D`` holds, and back to the core."""
    step, square, cosine = c.drift_watched / max(liked, 1.0), 0.0, 0.0
    for d in range(len(new_D)):
        towards = c.drift_rate * (mood_D[d] - theta_D[d]) + step * (new_D[d] - liked * theta_D[d])
        new_D[d] = theta_D[d] + towards + c.drift_core * (core_D[d] - theta_D[d])
        square += new_D[d] * new_D[d]
        cosine += new_D[d] * core_D[d]
    length, stay, to_core = math.sqrt(square), 1.0, 0.0
    cosine /= length
    if cosine < c.drift_limit:  # turned towards the core until the cosine is the limit
        stay = math.sqrt(1 - c.drift_limit**2) / max(math.sqrt(1 - cosine**2), 1e-6)
        to_core = c.drift_limit - stay * cosine
    for d in range(len(new_D)):
        new_D[d] = stay / length * new_D[d] + to_core * core_D[d]


@compiled()
def _after(passed_s_W, time_s, gap_s):
    """Time at which a gap ends that passes as fast as the days of the week are active."""
    if len(passed_s_W) == 0:  # all days are the same
        return time_s + gap_s
    week_s = passed_s_W[-1]
    week = math.floor(time_s / WEEK_S)
    day = int((time_s - week * WEEK_S) / DAY_S)
    speed = (passed_s_W[day + 1] - passed_s_W[day]) / DAY_S
    passed_s = passed_s_W[day] + speed * (time_s - week * WEEK_S - day * DAY_S) + gap_s
    more = math.floor(passed_s / week_s)
    passed_s -= more * week_s
    day = 0
    while day < 6 and passed_s_W[day + 1] <= passed_s:
        day += 1
    speed = (passed_s_W[day + 1] - passed_s_W[day]) / DAY_S
    return (week + more) * WEEK_S + day * DAY_S + (passed_s - passed_s_W[day]) / speed


@compiled()
def _next_active(day_H, time_s, shift, bar, minute):
    """``time_s`` if its hour is active, else a time in the next active hour."""
    hour = np.int64(time_s / HOUR_S)
    local = (hour - shift) % 24
    for wait in range(24):
        if day_H[local + wait if local + wait < 24 else local + wait - 24] > bar:
            return (hour + wait + minute) * HOUR_S if wait else time_s
    return time_s
