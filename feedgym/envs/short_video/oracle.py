"""Chooses sessions by the truth: an upper reference for recommenders.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics, ``R`` remembered items, ``X`` explicit behaviours.
``C`` counts candidates here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from feedgym.data.events import BEHAVIOURS, FloatArray, IntArray
from feedgym.envs.short_video.population import ShortVideoState
from feedgym.envs.short_video.visit import SimulatorWithTruth
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import take_users, too_few

BLOCK_USERS = 64
"""Users to process at a time: a block makes arrays of users by items."""

SHORTLIST = 512
"""Candidates per user, those of greatest enjoyment before satiation; all 10,000 gain 0.2% in 15 times the time."""


def greedy_sessions(
    simulator: SimulatorWithTruth,
    state: ShortVideoState,
    session_length: int,
    weights: RewardWeights = RewardWeights(),  # noqa: B008 (frozen)
) -> NDArray[np.int64]:
    """Choose position after position the item of greatest expected reward, given the expected effect of earlier ones.

    This is greedy, so a lower bound of the best session; looking ahead to the return and to going on gained less than
    1%.

    Args:
        simulator: the users' simulator.
        state: U users about to be served; not changed.
        session_length: K, at most the number of items.
        weights: weights of the reward; the return's weight has no effect.

    Returns:
        int64 item ids [U, K], all distinct in a session.

    Raises:
        ValueError: there are fewer items than the session is long, for some user at the time of the request.
    """
    num_items = simulator.config.num_items
    if not 1 <= session_length <= num_items:
        raise ValueError(f"A session of {session_length} different items needs as many items; have 1..{num_items}.")
    num_users = len(state.seed_U)
    sessions_UK = np.empty((num_users, session_length), np.int64)
    for start in range(0, num_users, BLOCK_USERS):
        rows = np.arange(start, min(start + BLOCK_USERS, num_users))
        sessions_UK[rows] = _greedy_block(simulator, take_users(state, rows), session_length, weights)
    return sessions_UK


def favourite_items(simulator: SimulatorWithTruth, state: ShortVideoState, n: int) -> NDArray[np.int64]:
    """The items of greatest enjoyment by long-term interests, quality and clickbait, before mood and satiation.

    Args:
        simulator: the users' simulator.
        state: U users; not changed.
        n: items per user, at most the number of items.

    Returns:
        int64 item ids [U, n], in any order.
    """
    blocks = [np.arange(u, min(u + BLOCK_USERS, len(state.seed_U))) for u in range(0, len(state.seed_U), BLOCK_USERS)]
    return np.concatenate([_shortlist(simulator, take_users(state, rows), n)[0] for rows in blocks])


def _greedy_block(simulator: SimulatorWithTruth, state: ShortVideoState, session_length: int, weights: RewardWeights):
    c, latents = simulator.config, simulator.latents
    items_UC, pull_UC = _shortlist(simulator, state, max(SHORTLIST, session_length))
    rows_U = np.arange(len(items_UC))
    z_UCD, topics_UC2, shares_UC2 = latents.z_ID[items_UC], latents.topic_I2[items_UC], latents.weight_I2[items_UC]
    mood_UD, satiation_UM = state.mood_UD.copy(), state.satiation_UM.copy()
    sessions_UK = np.empty((len(items_UC), session_length), np.int64)
    for k in range(session_length):
        satiation_UC2 = satiation_UM[rows_U[:, None, None], topics_UC2]
        now_UC = pull_UC + c.mood_weight * np.vecdot(z_UCD, mood_UD[:, None])
        now_UC -= c.satiation_weight * (satiation_UC2 * shares_UC2).sum(axis=2)
        now_UC += c.novelty_weight * state.novelty_U[:, None] * (satiation_UC2[..., 0] < c.novelty_satiation)
        click_UC, enjoyment_UC, reward_UC = expected_reward(simulator, state, items_UC, now_UC, weights)
        reward_UC = np.where(np.isneginf(now_UC), -np.inf, reward_UC)
        best_U = reward_UC.argmax(axis=1)
        sessions_UK[:, k] = items_UC[rows_U, best_U]
        if np.isneginf(reward_UC[rows_U, best_U]).any():
            raise too_few(session_length, k)
        pull_UC[rows_U, best_U] = -np.inf  # no item twice

        # The expected step of the simulator's own rules for mood and satiation.
        click_U, feeling_U = click_UC[rows_U, best_U], np.tanh(enjoyment_UC[rows_U, best_U])
        mood_UD += (c.mood_rate * feeling_U * click_U)[:, None] * (z_UCD[rows_U, best_U] - mood_UD)
        step_U2 = (c.satiation_rate * (c.satiation_skip + (1 - c.satiation_skip) * click_U))[:, None]
        cells = rows_U[:, None], topics_UC2[rows_U, best_U]
        satiation_UM[cells] += step_U2 * shares_UC2[rows_U, best_U] * (1 - satiation_UM[cells])
    return sessions_UK


def _shortlist(simulator: SimulatorWithTruth, state: ShortVideoState, size: int) -> tuple[IntArray, FloatArray]:
    """Items of greatest long-term enjoyment per user, and their pull before mood, satiation and novelty, [U, C]."""
    c, latents = simulator.config, simulator.latents
    pull_UI = c.interest_weight * state.interest_UD @ latents.z_ID.T + c.quality_weight * latents.quality_I
    row, slot = np.nonzero(state.seen_UR >= 0)
    remembered = np.unique(np.stack([row, state.seen_UR[row, slot]]), axis=1)
    pull_UI[remembered[0], remembered[1]] -= c.seen_penalty
    if c.fresh_weight:
        pull_UI += simulator.fresh_pull(state.time_s_U[:, None], np.arange(c.num_items))
    if simulator.has_arrivals:
        pull_UI[~simulator.catalog.exists(state.time_s_U)] = -np.inf
    if size >= c.num_items:
        return np.tile(np.arange(c.num_items), (len(pull_UI), 1)), pull_UI
    bait_I = c.enjoyment_clickbait * latents.clickbait_I
    items_UC = np.argpartition(bait_I - pull_UI, size, axis=1)[:, :size]
    return items_UC, np.take_along_axis(pull_UI, items_UC, axis=1)


def expected_reward(
    simulator: SimulatorWithTruth,
    state: ShortVideoState,
    items_UC: IntArray,
    pull_UC: FloatArray,
    weights: RewardWeights,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Click probability, enjoyment and expected reward (without the return) of items of a given pull, float32 [U, C].

    Watching is capped at the median time of a visit. The expectation follows the rules that ``ShortVideo`` samples
    from.
    """
    c = simulator.config
    bait_UC = simulator.latents.clickbait_I[items_UC]
    duration_s_UC = simulator.catalog.duration_s_I[items_UC]
    click_UC = expit(
        pull_UC
        + c.click_logit
        + c.click_clickbait * state.susceptibility_U[:, None] * bait_UC
        + c.click_bias_weight * state.click_bias_U[:, None]
    )
    enjoyment_UC = pull_UC - c.enjoyment_clickbait * bait_UC
    complete_UC = expit(
        c.complete_logit + c.complete_enjoyment * enjoyment_UC - c.complete_duration * np.log(duration_s_UC / 32)
    )
    full_UC = 1 + c.replay_prob * expit(enjoyment_UC - 1) * c.replay_max / 2
    shape_UC = c.partial_shape[0] + c.partial_shape[1] * expit(enjoyment_UC)
    part_UC = c.partial_low + c.partial_span * shape_UC / (shape_UC + 1)
    clicked_s_UC = np.minimum(duration_s_UC, c.budget_s) * (complete_UC * full_UC + (1 - complete_UC) * part_UC)
    skipped_s_UC = c.skip_mean_s * -np.expm1(-duration_s_UC / c.skip_mean_s)
    reward_UC = weights.watch_minutes / 60 * (click_UC * clicked_s_UC + (1 - click_UC) * skipped_s_UC)
    reward_UC += weights.click * click_UC
    for x, name in enumerate(BEHAVIOURS[2:]):
        logit_UC = c.feedback_logit[x] + c.feedback_enjoyment[x] * enjoyment_UC + state.feedback_UX[:, x, None]
        reward_UC += getattr(weights, name) * expit(logit_UC) * (1 if name == "hate" else click_UC)
    return click_UC, enjoyment_UC, reward_UC
