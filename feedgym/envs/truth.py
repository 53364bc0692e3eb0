"""True values of sessions for the users, measured by serving them to the simulated users.

To measure it, copy a user, let the copies respond to each session several times with new random numbers, and average.
All sessions of a user meet the same random numbers, so that their comparison is paired.

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` responses of a user to the same session.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, FloatArray, IntArray
from feedgym.envs import luck
from feedgym.protocols import Response, UserSimulator, take_users
from feedgym.ranges import Ranged, Weight

RETURN_S = 86_400.0
"""Longest gap in seconds that counts as a return within the day."""

BLOCK_ROWS = 2048
"""Sessions processed at a time; keeps memory low and the arrays in the cache. Results do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class RewardWeights(Ranged):
    """Weights of the true reward of a session: a weighted sum of minutes, counts of behaviours and the return."""

    watch_minutes: Weight = 1.0
    """Weight of a minute watched."""
    click: Weight = 0.0
    """Weight of a click; 0, because a click is only a promise, which clickbait breaks."""
    long_view: Weight = 0.0
    """Weight of a long view."""
    like: Weight = 0.5
    """Weight of a like."""
    follow: Weight = 1.0
    """Weight of a follow."""
    comment: Weight = 0.3
    """Weight of a comment."""
    forward: Weight = 0.5
    """Weight of a forward."""
    hate: Weight = -1.0
    """Weight of a hate."""
    return_24h: Weight = 2.0
    """Weight of coming back within 24 hours."""


def reward_components(response: Response) -> dict[str, FloatArray]:
    """Parts of the reward by the names of :class:`RewardWeights`, float32 [U] each: minutes, counts, 0 or 1."""
    counts_UB = response.behaviours_UKB.sum(axis=1, dtype=np.float32)
    returned_U = ~response.churned_U & (response.return_gap_s_U <= RETURN_S)
    return {
        "watch_minutes": response.watch_s_UK.sum(axis=1, dtype=np.float32) / np.float32(60),
        **{name: counts_UB[:, idx] for name, idx in BEHAVIOUR_IDX.items()},
        "return_24h": returned_U.astype(np.float32),
    }


def brought_at_once(
    behaviours_XB: NDArray[np.uint8], watch_s_X: FloatArray, weights: RewardWeights
) -> NDArray[np.float64]:
    """Weighted sum of minutes and behaviours that exposures brought, without the return, float64 [...]."""
    weight_B = np.array([getattr(weights, name) for name in BEHAVIOURS])
    return behaviours_XB @ weight_B + weights.watch_minutes * watch_s_X.astype(np.float64) / 60


def session_reward(response: Response, weights: RewardWeights) -> FloatArray:
    """True reward of each user's session as it happened, float32 [U]."""
    return weighted_sum(reward_components(response), weights)


def weighted_sum(parts: dict[str, FloatArray], weights: RewardWeights) -> FloatArray:
    """Weighted sum of :func:`reward_components`, float32 [U]; components of weight 0 are skipped."""
    reward_U = np.zeros(len(parts["return_24h"]), np.float32)
    for field in fields(weights):
        weight = getattr(weights, field.name)
        if weight:
            reward_U += np.float32(weight) * parts[field.name]
    return reward_U


def true_value(
    simulator: UserSimulator,
    state: Any,
    sessions_UNK: IntArray,
    *,
    weights: RewardWeights = RewardWeights(),
    replicas: int = 16,
    seed: int = 0,
) -> FloatArray:
    """Expected true reward of N sessions for each of U users: the mean over ``replicas`` responses with new randomness.

    Replica r of a user has the same random numbers for all N sessions, so differences within a user are paired. They
    depend only on the user's seed, ``seed`` and r, and are independent of the user's own random numbers.

    Args:
        simulator: any user simulator whose randomness comes only from ``state.seed_U``.
        state: U users about to be served; stays unchanged.
        sessions_UNK: item ids.
        weights: weights of the reward.
        replicas: responses per session.
        seed: another seed gives independent estimates.

    Returns:
        float32 [U, N].

    Raises:
        ValueError: the sessions have another shape, or replicas is below 1.
    """
    sessions_UNK = np.asarray(sessions_UNK)
    num_users = len(state.seed_U)
    if sessions_UNK.ndim != 3 or len(sessions_UNK) != num_users:
        raise ValueError(
            f"Sessions of shape {sessions_UNK.shape} do not fit {num_users} users; give [{num_users}, N, K]."
        )
    if replicas < 1:
        raise ValueError(f"replicas={replicas} is below 1; give 1 or more.")
    luck_UR = replica_seeds(state.seed_U, replicas, seed)
    num_rows = num_users * sessions_UNK.shape[1]
    value_N = np.empty(num_rows, np.float32)
    block = max(1, BLOCK_ROWS // replicas)
    for start in range(0, num_rows, block):
        user_N, session_N = np.divmod(np.arange(start, min(start + block, num_rows)), sessions_UNK.shape[1])
        users = take_users(state, np.repeat(user_N, replicas))
        users = replace(users, seed_U=luck_UR[user_N].reshape(-1))
        response, _ = simulator.respond(users, np.repeat(sessions_UNK[user_N, session_N], replicas, axis=0))
        reward_NR = session_reward(response, weights).reshape(-1, replicas)
        value_N[start : start + len(user_N)] = reward_NR.mean(axis=1)
    return value_N.reshape(num_users, -1)


def replica_seeds(seed_U: NDArray[np.uint64], replicas: int, seed: int) -> NDArray[np.uint64]:
    """The seeds of each user's replicas [U, replicas] under :func:`true_value`."""
    judge_U = luck.derive(luck.derive(seed_U, 1), seed)
    return luck.derive(judge_U[:, None], np.arange(replicas))


def oracle_sessions(simulator: Any, state: Any, session_length: int) -> NDArray[np.int64]:
    """The simulator's own best sessions [U, K] for its users.

    Raises:
        ValueError: the simulator has no ``oracle(state, session_length)`` method.
    """
    if not hasattr(simulator, "oracle"):
        raise ValueError(
            f"{type(simulator).__name__} has no oracle; give it a method oracle(state, session_length) -> ids [U, K]."
        )
    return simulator.oracle(state, session_length)
