"""Computes a visit of each user in NumPy: the positions one after another, all users at once.

This is the simulator without numba, and the reference for the compiled kernel
(:mod:`feedgym.envs.short_video.visit_numba`). Only the positions are looped over; a step makes no array of users by
items. Arrays that the loop reads put the position first ([K, U]), so that each step is contiguous.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics, ``R`` remembered items, ``X`` explicit behaviours.
``C`` counts channels of random numbers. ``D`` is the latent width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, BoolArray, FloatArray, IntArray
from feedgym.envs import luck
from feedgym.envs.short_video.catalog import unit
from feedgym.envs.short_video.population import FEEDBACK, ShortVideoState
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

CHANNELS_C1 = np.arange(NEXT + 1 + len(FEEDBACK))[:, None]


@dataclass(kw_only=True, eq=False)
class _Visit:
    """Working memory of one visit of U users; the arrays below ``spent_s_U`` change from item to item."""

    stream_U: NDArray[np.uint64]
    budget_s_U: NDArray[np.floating]
    z_KUD: FloatArray
    pull_KU: FloatArray
    bait_KU: FloatArray
    click_KU: FloatArray
    duration_s_KU: FloatArray
    topic_weight_2KU: FloatArray
    topic_cell_2KU: IntArray
    wait_s_KU: NDArray[np.float64] | None
    feedback_XU: FloatArray
    novelty_U: FloatArray
    patience_U: FloatArray
    spent_s_U: FloatArray
    here_U: BoolArray
    mood_UD: FloatArray
    satiation_UM: FloatArray
    recovery_U: FloatArray
    satisfaction_U: FloatArray
    sated_KU: FloatArray
    feeling_KU: FloatArray
    behaviours_UKB: NDArray[np.uint8]
    watch_s_KU: FloatArray
    examined_KU: BoolArray


def respond(
    simulator: SimulatorWithTruth, state: ShortVideoState, slates_UK: IntArray
) -> tuple[Response, ShortVideoState]:
    """Responses of the users to one session each, and the users at their next visit.

    Args:
        simulator: the users' simulator.
        state: U users; not changed.
        slates_UK: item ids, checked before.
    """
    slates_KU = np.ascontiguousarray(slates_UK.T)
    visit = _begin(simulator, state, slates_KU)
    # Positions one after another, since mood, satiation and the time left depend on the items before; users all at
    # once. Who left is computed further and masked, so that no array changes its shape on the way.
    for k in range(len(slates_KU)):
        _examine(simulator, visit, k)
    return _end(simulator, state, visit, slates_KU)


def _begin(simulator: SimulatorWithTruth, state: ShortVideoState, slates_KU: IntArray) -> _Visit:
    c, latents = simulator.config, simulator.latents
    num_items, num_users = slates_KU.shape
    stream_U = luck.stream(state.seed_U, state.visit_U)
    active_U = simulator.population.activity(state.time_s_U, state.hour_shift_U)
    budget_U = luck.normal(luck.draw(stream_U, luck.VISIT, BUDGET))
    topic_weight_KU2 = latents.weight_I2.take(slates_KU, axis=0)
    topic_cell_KU2 = latents.topic_I2.take(slates_KU, axis=0) + c.num_topics * np.arange(num_users)[:, None]
    bait_KU = latents.clickbait_I.take(slates_KU)
    z_KUD = latents.z_ID.take(slates_KU, axis=0)
    pull_KU = (
        c.interest_weight * np.einsum("kud,ud->ku", z_KUD, state.interest_UD)
        + c.quality_weight * latents.quality_I.take(slates_KU)
        - np.float32(c.seen_penalty) * _seen(state.seen_UR, slates_KU)
    )
    if c.fresh_weight:
        pull_KU += simulator.fresh_pull(state.time_s_U, slates_KU)
    return _Visit(
        stream_U=stream_U,
        budget_s_U=c.budget_s * np.exp(c.budget_sd * budget_U + c.budget_active * (2 * active_U - 1)),
        z_KUD=z_KUD,
        pull_KU=pull_KU,
        bait_KU=bait_KU,
        click_KU=c.click_logit
        + c.click_clickbait * state.susceptibility_U * bait_KU
        + c.click_bias_weight * state.click_bias_U,
        duration_s_KU=simulator.catalog.duration_s_I.take(slates_KU),
        topic_weight_2KU=np.ascontiguousarray(np.moveaxis(topic_weight_KU2, 2, 0)),
        topic_cell_2KU=np.ascontiguousarray(np.moveaxis(topic_cell_KU2, 2, 0)),
        wait_s_KU=_waits(simulator, state.time_s_U, slates_KU) if simulator.has_arrivals else None,
        feedback_XU=np.array(c.feedback_logit, np.float32)[:, None] + state.feedback_UX.T,
        novelty_U=c.novelty_weight * state.novelty_U,
        patience_U=c.next_logit + state.patience_U,
        spent_s_U=np.zeros(num_users, np.float32),
        here_U=np.ones(num_users, bool),
        mood_UD=state.mood_UD.copy(),
        satiation_UM=state.satiation_UM.copy(),
        recovery_U=np.ones(num_users, np.float32),
        satisfaction_U=state.satisfaction_U.copy(),
        sated_KU=np.empty((num_items, num_users), np.float32),
        feeling_KU=np.empty((num_items, num_users), np.float32),
        behaviours_UKB=np.zeros((num_users, num_items, len(BEHAVIOURS)), np.uint8),
        watch_s_KU=np.zeros((num_items, num_users), np.float32),
        examined_KU=np.zeros((num_items, num_users), bool),
    )


def _waits(simulator: SimulatorWithTruth, login_s_U: NDArray[np.float64], slates_KU: IntArray) -> NDArray[np.float64]:
    """Seconds into the visit from which the items exist, infinite if they were withdrawn before it."""
    wait_s_KU = simulator.catalog.upload_s_I.take(slates_KU) - login_s_U
    if simulator.catalog.withdraw_s_I is not None:
        wait_s_KU[simulator.catalog.withdraw_s_I.take(slates_KU) <= login_s_U] = np.inf
    return wait_s_KU


def _examine(simulator: SimulatorWithTruth, visit: _Visit, k: int) -> None:
    """Position k: feelings and behaviours of users who are still here, and who goes on to the next one."""
    c = simulator.config
    if visit.wait_s_KU is not None:
        empty_U = visit.here_U & (visit.spent_s_U < visit.wait_s_KU[k])
        visit.satisfaction_U += c.satisfaction_rate * empty_U * (-1 - visit.satisfaction_U)
        visit.here_U = visit.here_U & ~empty_U
    uniform_CU = luck.draw(visit.stream_U, k, CHANNELS_C1)
    here_U, cell_2U, weight_2U = visit.here_U, visit.topic_cell_2KU[:, k], visit.topic_weight_2KU[:, k]
    # All topics recover equally within a visit, so one factor per user keeps a step from touching all M of them.
    satiation_2U = visit.satiation_UM.reshape(-1).take(cell_2U) * visit.recovery_U
    sated_U = (satiation_2U * weight_2U).sum(axis=0, out=visit.sated_KU[k])
    pull_U = (
        visit.pull_KU[k]
        + c.mood_weight * np.einsum("ud,ud->u", visit.mood_UD, visit.z_KUD[k])
        - c.satiation_weight * sated_U
        + visit.novelty_U * (satiation_2U[0] < c.novelty_satiation)
    )
    click_U = here_U & _happens(uniform_CU[CLICK], pull_U + visit.click_KU[k])
    enjoyment_U = pull_U - c.enjoyment_clickbait * visit.bait_KU[k]
    watch_s_U = _watch(simulator, visit, k, uniform_CU, click_U, enjoyment_U)

    behaviours_UB = visit.behaviours_UKB[:, k]
    behaviours_UB[:, 0] = click_U
    behaviours_UB[:, 1] = here_U & (watch_s_U >= np.minimum(c.long_view_s, visit.duration_s_KU[k]))
    # Explicit feedback follows enjoyment, which clickbait lowers, while clicks follow the pull. So a log can
    # distinguish items that pleased from items that only lured.
    felt_XU = np.multiply.outer(np.array(c.feedback_enjoyment, np.float32), enjoyment_U)
    feedback_XU = _happens(uniform_CU[NEXT + 1 :], visit.feedback_XU + felt_XU)
    feedback_XU[:-1] &= click_U
    feedback_XU[-1] &= here_U  # users may hate an item that they skipped
    behaviours_UB[:, 2:] = feedback_XU.T
    visit.examined_KU[k] = here_U

    _learn(simulator, visit, k, click_U, enjoyment_U, satiation_2U)
    visit.recovery_U *= np.exp(watch_s_U * np.float32(-1 / (3600 * c.satiation_hours)))
    goes_on_U = _happens(uniform_CU[NEXT], visit.patience_U + c.next_enjoyment * enjoyment_U)
    visit.here_U = here_U & goes_on_U & (watch_s_U < visit.budget_s_U - visit.spent_s_U)
    visit.spent_s_U += watch_s_U


def _watch(
    simulator: SimulatorWithTruth,
    visit: _Visit,
    k: int,
    uniform_CU: FloatArray,
    click_U: BoolArray,
    enjoyment_U: FloatArray,
):
    """Seconds watched: skip or watch, in part, or to the end and once more; never beyond the user's time."""
    c = simulator.config
    duration_s_U, extent_U = visit.duration_s_KU[k], uniform_CU[EXTENT]
    skip_s_U = np.minimum(c.skip_mean_s * luck.exponential(extent_U), duration_s_U)
    logit_U = c.complete_logit + c.complete_enjoyment * enjoyment_U
    logit_U -= c.complete_duration * (np.log(duration_s_U) - np.float32(np.log(32)))
    completes_U = _happens(uniform_CU[COMPLETE], logit_U)
    replays_U = uniform_CU[REPLAY] < c.replay_prob * _sigmoid(enjoyment_U - 1)
    full_U = 1 + replays_U * (np.float32(c.replay_max) * extent_U)
    # One uniform number serves skipping, replaying and watching in part, because a user does only one of them.
    low, slope = c.partial_shape
    part_U = c.partial_low + c.partial_span * np.exp(np.log(extent_U) / (low + slope * _sigmoid(enjoyment_U)))
    watch_s_U = np.where(click_U, duration_s_U * np.where(completes_U, full_U, part_U), skip_s_U)
    watch_s_U = np.where(visit.here_U, np.minimum(watch_s_U, visit.budget_s_U - visit.spent_s_U), 0)
    visit.watch_s_KU[k] = watch_s_U
    return watch_s_U


def _learn(
    simulator: SimulatorWithTruth,
    visit: _Visit,
    k: int,
    click_U: BoolArray,
    enjoyment_U: FloatArray,
    satiation_2U: FloatArray,
):
    """Change mood, satiation and satisfaction by the item of position k."""
    c = simulator.config
    feeling_U = np.tanh(enjoyment_U, out=visit.feeling_KU[k])
    clicked_U, here_U = click_U.astype(np.float32), visit.here_U
    visit.mood_UD += (c.mood_rate * feeling_U * clicked_U)[:, None] * (visit.z_KUD[k] - visit.mood_UD)
    step_U = c.satiation_rate * here_U.astype(np.float32) * (c.satiation_skip + (1 - c.satiation_skip) * clicked_U)
    # ``satiation_UM`` lacks the recovery since the login (see ``_examine``), so new values are divided by the factor
    # that later reads multiply by. An item's two topics differ, so no cell is written twice.
    satiation_2U += step_U * visit.topic_weight_2KU[:, k] * (1 - satiation_2U)
    visit.satiation_UM.reshape(-1)[visit.topic_cell_2KU[:, k]] = satiation_2U / visit.recovery_U
    weight_U = c.satisfaction_skip + (1 - c.satisfaction_skip) * clicked_U
    if simulator.terms.satisfaction_bar:
        feeling_U = np.tanh(enjoyment_U - simulator.terms.satisfaction_bar)
    visit.satisfaction_U += c.satisfaction_rate * here_U * (feeling_U * weight_U - visit.satisfaction_U)


def _end(
    simulator: SimulatorWithTruth, state: ShortVideoState, visit: _Visit, slates_KU: IntArray
) -> tuple[Response, ShortVideoState]:
    """Logout: churn or the gap to the next visit, and the changes of the user until then."""
    c, terms = simulator.config, simulator.terms
    churn_U, gap_U, bar_U, minute_U = (
        luck.draw(visit.stream_U, luck.VISIT, channel) for channel in (CHURN, GAP, ACTIVE_HOUR, MINUTE)
    )
    logout_s_U = state.time_s_U + visit.spent_s_U
    num_examined_U = visit.examined_KU.sum(axis=0)
    fatigue_U = np.float32(0)
    if terms.churn_fatigue or terms.gap_fatigue:
        fatigue_U = _summed(visit.sated_KU * visit.examined_KU) / np.maximum(num_examined_U, 1).astype(np.float32)
    stays_U = c.churn_satisfaction * visit.satisfaction_U - terms.churn_fatigue * fatigue_U
    churned_U = _happens(churn_U, c.churn_logit - stays_U)
    keen_U = c.gap_satisfaction * visit.satisfaction_U - terms.gap_fatigue * fatigue_U
    gap_s_U = 3600 * c.gap_hours * np.exp(-keen_U) / state.activity_U
    gap_s_U *= luck.weibull(gap_U, c.gap_shape)
    back_s_U = simulator.population.after(logout_s_U, gap_s_U) + 3600 * terms.gap_min_hours
    next_s_U = simulator.population.next_active(back_s_U, state.hour_shift_U, bar_U, minute_U)
    gap_s_U = (next_s_U - logout_s_U).astype(np.float32)
    response = Response(
        behaviours_UKB=visit.behaviours_UKB,
        watch_s_UK=np.ascontiguousarray(visit.watch_s_KU.T),
        examined_UK=np.ascontiguousarray(visit.examined_KU.T),
        elapsed_s_U=visit.spent_s_U,
        left_U=num_examined_U < len(slates_KU),
        return_gap_s_U=gap_s_U,
        churned_U=churned_U,
    )
    satiation_UM = visit.satiation_UM
    satiation_UM *= (visit.recovery_U * np.exp(gap_s_U * np.float32(-1 / (3600 * c.satiation_hours))))[:, None]
    satiation_UM[satiation_UM < 1e-6] = 0  # denormal floats are slow
    next_state = replace(
        state,
        visit_U=state.visit_U + 1,
        time_s_U=next_s_U,
        interest_UD=_drifted(simulator, state, visit),
        mood_UD=visit.mood_UD * np.exp(gap_s_U * np.float32(-1 / (3600 * c.mood_hours)))[:, None],
        satiation_UM=satiation_UM,
        satisfaction_U=visit.satisfaction_U,
        seen_UR=_remember(state, visit.examined_KU, slates_KU),
        num_seen_U=state.num_seen_U + num_examined_U,
    )
    return response, next_state


def _drifted(simulator: SimulatorWithTruth, state: ShortVideoState, visit: _Visit) -> FloatArray:
    """Long-term interests after the visit: moved towards its mood and enjoyed items, and back to the core."""
    terms = simulator.terms
    interest_UD = state.interest_UD + simulator.config.drift_rate * (visit.mood_UD - state.interest_UD)
    if terms.drift_watched:
        liked_KU = np.maximum(visit.feeling_KU, 0) * visit.behaviours_UKB[:, :, 0].T
        liked_U = _summed(liked_KU)
        liked_UD = np.einsum("ku,kud->ud", liked_KU, visit.z_KUD)
        # Towards the mean of the liked items, by a step that grows with the liking up to that of one item.
        step_U1 = (terms.drift_watched / np.maximum(liked_U, 1))[:, None]
        interest_UD += step_U1 * (liked_UD - liked_U[:, None] * state.interest_UD)
    if terms.drift_core:
        interest_UD += terms.drift_core * (state.core_UD - state.interest_UD)
    interest_UD = unit(interest_UD)
    return interest_UD if terms.drift_limit == -1 else _turned(interest_UD, state.core_UD, terms.drift_limit)


def _sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def _happens(uniform: FloatArray, logit: FloatArray) -> BoolArray:
    """Bernoulli(sigmoid(logit)) by a uniform number."""
    return uniform * (1 + np.exp(-logit)) < 1


def _summed(x_KU: NDArray) -> NDArray:
    """Sums over the positions, in their order: ``sum`` may add in another order if there are few users."""
    return functools.reduce(np.add, x_KU)


def _turned(x_UD: FloatArray, core_UD: FloatArray, limit: float) -> FloatArray:
    """Turn unit vectors towards the core if their cosine with it is below the limit, until it is the limit."""
    cosine_U = np.vecdot(x_UD, core_UD)
    far = np.flatnonzero(cosine_U < limit)  # few
    off_UD = x_UD[far] - cosine_U[far, None] * core_UD[far]
    length_U1 = np.maximum(np.linalg.norm(off_UD, axis=1, keepdims=True), np.float32(1e-6))
    x_UD[far] = limit * core_UD[far] + np.float32(np.sqrt(1 - limit**2)) * off_UD / length_U1
    return x_UD


def _seen(seen_UR: IntArray, slates_KU: IntArray) -> BoolArray:
    """Whether the user remembers the item of position k, from before or from an earlier position.

    A user who examines position k has examined all positions before it, so this is known before the session begins.
    """
    items_KU = slates_KU.astype(np.int32)
    seen_KU = np.empty(items_KU.shape, bool)
    for k, item_U in enumerate(items_KU):
        seen_KU[k] = (seen_UR == item_U[:, None]).any(axis=1) | (items_KU[:k] == item_U).any(axis=0)
    return seen_KU


def _remember(state: ShortVideoState, examined_KU: BoolArray, slates_KU: IntArray) -> IntArray:
    """The rings after the examined items have replaced the oldest ones."""
    seen_UR = state.seen_UR.copy()
    rows_U = np.arange(len(seen_UR))
    for k, (item_U, examined_U) in enumerate(zip(slates_KU, examined_KU, strict=True)):
        slot_U = (state.num_seen_U + k) % seen_UR.shape[1]
        seen_UR[rows_U, slot_U] = np.where(examined_U, item_U, seen_UR[rows_U, slot_U])
    return seen_UR
