"""Gives fresh users a past: visits under the logging policy, before an episode begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from feedgym.envs.history import History
from feedgym.envs.logging_policy import LoggingPolicy
from feedgym.protocols import cat_users, take_users

BLOCK_USERS = 1024
"""Users served at a time; keeps arrays of users by candidates small. What becomes of them does not depend on it."""


def warm_up(policy: LoggingPolicy, state: Any, history: History, num_visits: int) -> tuple[Any, History]:
    """Lets U users make some visits, each with only their own random numbers; returns users and histories.

    No user leaves for good meanwhile: a user who would is served again, so that all have the same number of visits.

    Args:
        policy: serves the users.
        state: fresh users; stays unchanged.
        history: their history; stays unchanged.
        num_visits: number of visits, 1 or more.
    """
    states, histories = [], []
    for start in range(0, len(state.seed_U), BLOCK_USERS):
        rows = np.arange(start, min(start + BLOCK_USERS, len(state.seed_U)))
        users, past = take_users(state, rows), take_users(history, rows)
        taste_UE = policy.no_taste(len(rows))
        for _ in range(num_visits):
            slates_UK = policy.sessions(users, taste_UE)
            response, after = policy.simulator.respond(users, slates_UK)
            if policy.has_taste:
                taste_UE = policy.learn(taste_UE, slates_UK, response.behaviours_UKB)
            past = past.after(users.time_s_U, slates_UK, response, policy.simulator.catalog.duration_s_I)
            users = after
        states.append(users)
        histories.append(past)
    return cat_users(states), cat_users(histories)
