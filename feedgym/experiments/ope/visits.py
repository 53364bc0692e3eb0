"""The logged visits that judge agents before they are served: requests, rewards, propensities, and the truth.

Estimators see only what a platform's log holds: histories, items, propensities and responses. The users' states come
from a replay of the log. They serve for the truth, and for the logging policy's probabilities of slates it did not
show.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog, EventLog, LoggedSessions
from feedgym.data.requests import Requests
from feedgym.data.sessions import logged_sessions
from feedgym.envs import luck
from feedgym.envs.history import has_arrivals
from feedgym.envs.logging import collect_log
from feedgym.envs.logging_policy import LoggingConfig, LoggingPolicy
from feedgym.envs.replay import states_at
from feedgym.envs.truth import RETURN_S, RewardWeights, brought_at_once, true_value
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.ope.estimators import Float, check_propensities
from feedgym.experiments.ope.presets import OPERun
from feedgym.experiments.progress import progress
from feedgym.protocols import UserSimulator, take_users

LOG_SALT = 0x6F7065
"""Salt of the seeds of the logs, so that their users differ from all others."""
BLOCK_ROWS = 8192
"""Slates to compute propensities for at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgingVisits:
    """N logged visits of U users.

    Attributes:
        requests: sessions and histories.
        user_N: rows of the users, 0..U-1.
        num_users: U.
        reward_NK: float64 rewards at each place, in the units of the true reward; the last one includes the return.
        prob_NK: float64 probability with which each item was shown, given those above it.
        weights: weights of the reward.
        simulator: the users.
        state: the users' states just before the visits.
        policy: the policy that made the log.
        taste_NE: the users' tastes as the policy knew them.
    """

    requests: Requests
    user_N: NDArray[np.int64]
    num_users: int
    reward_NK: Float
    prob_NK: Float
    weights: RewardWeights
    simulator: UserSimulator
    state: Any
    policy: LoggingPolicy
    taste_NE: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user_N)

    @cached_property
    def histories(self) -> EventBatch:
        """The histories, which are all needed at once and again for each agent."""
        return self.requests.histories.rows(slice(None))

    @cached_property
    def slates_NK(self) -> NDArray[np.int64]:
        """The logged slates."""
        return self.requests.sessions.item_ids_NK.astype(np.int64)

    @cached_property
    def slates_N1K(self) -> NDArray[np.int64]:
        """The same as one slate per visit, always the same array."""
        return self.slates_NK[:, None]

    def chances(self, slates_NSK: NDArray[np.int64]) -> Float:
        """The logging policy's probability [N, S, K] of each item of S slates per visit, given those above it."""
        num_slates, parts = slates_NSK.shape[1], []
        for low in range(0, len(self), size := max(1, BLOCK_ROWS // num_slates)):
            visits = np.repeat(np.arange(len(self))[low : low + size], num_slates)
            slates = slates_NSK[low : low + size].reshape(-1, slates_NSK.shape[2])
            parts.append(self.policy.propensity(take_users(self.state, visits), self.taste_NE[visits], slates))
        return np.concatenate(parts).reshape(slates_NSK.shape).astype(np.float64)

    def true_values(self, slates_NSK: NDArray[np.int64], replicas: int) -> Float:
        """True values of slates to the users [N, S]: the mean of that many simulated responses."""
        return true_value(
            self.simulator, self.state, slates_NSK, weights=self.weights, replicas=replicas
        ).astype(np.float64)  # fmt: skip


def log_seed(config: OPERun, number: int) -> int:
    """Seed of the users of a log."""
    return int(luck.derive(np.uint64(config.seed), LOG_SALT + number)[0] % 2**31)


def logging_config(config: OPERun) -> LoggingConfig:
    """Options for serving the users of the logs."""
    names = ("popularity_share", "random_share", "num_candidates", "temperature")
    return LoggingConfig(**{name: getattr(config, name) for name in names})


def judging_log(config: OPERun, simulator: UserSimulator, session_length: int, number: int) -> EventLog:
    """Serve fresh users by the production system with its share of random visits, and return the log."""
    with progress(f"Log {number}: serving users") as step:
        return collect_log(
            simulator, num_users=config.users, num_visits=config.visits, session_length=session_length,
            seed=log_seed(config, number), config=logging_config(config), progress=step,
        )  # fmt: skip


def judging_visits(
    config: OPERun, align: AlignConfig, simulator: UserSimulator, log: EventLog, catalog: Catalog, number: int
) -> JudgingVisits:
    """Select the visits of a log that judge agents: all except those whose return could not be observed.

    Those are the last visits that users were given. Users who left for good earlier are known not to have come back.
    """
    seed, length = log_seed(config, number), align.session_length
    every = logged_sessions(log, length)
    policy = LoggingPolicy(simulator, length, logging_config(config), seed)
    kept_N = log.session_id[every.row_N] < config.visits - 1
    sessions, taste_NE = every.rows(kept_N), tastes(policy, every)[kept_N]
    prob_NK = sessions.propensity_NK.astype(np.float64)
    check_propensities(prob_NK)
    told: dict[str, Any] = {"dated": has_arrivals(simulator), "memory": align.memory}
    return JudgingVisits(
        requests=Requests.of((log, catalog), sessions, align.history_length, **told),
        user_N=sessions.user_idx_N,
        num_users=log.num_users,
        reward_NK=rewards_by_place(sessions, align.weights),
        prob_NK=prob_NK,
        weights=align.weights,
        simulator=simulator,
        state=states_at(simulator, log, sessions, seed),
        policy=policy,
        taste_NE=taste_NE,
    )


def tastes(policy: LoggingPolicy, sessions: LoggedSessions) -> NDArray[np.float32]:
    """The users' tastes as the logging policy knew them before each of all their visits, [N, E]."""
    none_NE = policy.no_taste(len(sessions))
    learned_NE = policy.learn(none_NE, sessions.item_ids_NK, sessions.behaviours_NKB).astype(np.float64)
    before_NE = np.cumsum(learned_NE, axis=0) - learned_NE
    first_N = np.searchsorted(sessions.user_idx_N, sessions.user_idx_N)
    return (before_NE - before_NE[first_N]).astype(np.float32)


def rewards_by_place(sessions: LoggedSessions, weights: RewardWeights) -> Float:
    """Rewards [N, K] in the units of the true reward, as :class:`feedgym.envs.truth.RewardWeights` has them.

    The return follows the whole session, so it counts as a reward of the last place.
    """
    reward_NK = brought_at_once(sessions.behaviours_NKB, sessions.watch_s_NK, weights)
    came_back_N = np.nan_to_num(sessions.return_gap_s_N, nan=np.inf) <= RETURN_S
    reward_NK[:, -1] += weights.return_24h * came_back_N
    return reward_NK


assert {field.name for field in fields(RewardWeights)} == {"watch_minutes", "return_24h", *BEHAVIOURS}
