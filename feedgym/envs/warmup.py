"""A past for fresh users: visits under the logging policy, before an episode begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from feedgym.envs.history import History
from feedgym.envs.logging import BLOCK_USERS
from feedgym.envs.logging_policy import LoggingPolicy
from feedgym.protocols import cat_users, take_users


def warm_up(policy: LoggingPolicy, state: Any, history: History, num_visits: int) -> tuple[Any, History]:
    """U users and their histories after some visits, each user by their own luck alone.

    Nobody leaves for good meanwhile: a user who would is served once more, so that all have the same number of visits.

    Args:
        policy: serves them.
        state: fresh users; not changed.
        history: what is known of them; not changed.
        num_visits: visits, 1 or more.
    """
    states, histories = [], []
    for start in range(0, len(state.seed_U), BLOCK_USERS):
        rows = np.arange(start, min(start + BLOCK_USERS, len(state.seed_U)))
        users, past = take_users(state, rows), take_users(history, rows)
        taste_UE = policy.no_taste(len(rows))
        for _ in range(num_visits):
            slates_UK, _ = policy.serve(users, taste_UE)
            response, after = policy.simulator.respond(users, slates_UK)
            taste_UE = policy.learn(taste_UE, slates_UK, response.behaviours_UKB)
            past = past.after(users.time_s_U, slates_UK, response, policy.simulator.catalog.duration_s_I)
            users = after
        states.append(users)
        histories.append(past)
    return cat_users(states), cat_users(histories)
