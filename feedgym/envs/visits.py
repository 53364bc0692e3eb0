"""Visits with served sessions and responses, before they become an event log."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import FloatArray
from feedgym.protocols import take_users


@dataclass(frozen=True, kw_only=True, eq=False)
class Visits:
    """N served visits, and the profiles of their users.

    Attributes:
        profile_UF: profile fields.
        user_N: the user's row in the profiles of all users.
        visit_N: number of the user's visit.
        login_s_N: seconds on the simulator's clock.
        logout_s_N: seconds on the same clock.
        slates_NK: served items.
        propensity_NK: NaN where unknown.
        watch_s_NK: seconds.
        examined_NK: true if the user reached the item.
        behaviours_NKB: 0 or 1.
    """

    profile_UF: NDArray[np.int64]
    user_N: NDArray[np.int64]
    visit_N: NDArray[np.int64]
    login_s_N: NDArray[np.float64]
    logout_s_N: NDArray[np.float64]
    slates_NK: NDArray[np.int64]
    propensity_NK: FloatArray
    watch_s_NK: FloatArray
    examined_NK: NDArray[np.bool_]
    behaviours_NKB: NDArray[np.uint8]

    @classmethod
    def cat(cls, blocks: list[Visits]) -> Visits:
        """Concatenate blocks of users."""
        return cls(**{f.name: np.concatenate([getattr(block, f.name) for block in blocks]) for f in fields(cls)})


def served_visits(
    policy: Any, state: Any, user_U: NDArray[np.int64], num_visits: int, until_s: float = np.inf
) -> Visits:
    """All visits of a block of users, sorted by user and visit."""
    profile_UF = np.array(state.profile_UF, np.int64)
    taste_UE = policy.no_taste(len(user_U))
    rows: list[dict[str, NDArray]] = []
    for visit in range(num_visits):
        slates_UK, propensity_UK = policy.serve(state, taste_UE)
        response, next_state = policy.simulator.respond(state, slates_UK)
        # Sums of float32 seconds are slightly off, but the rows of a user must not run backwards in time.
        spent_s_U = np.maximum(response.elapsed_s_U, response.watch_s_UK.sum(axis=1, dtype=np.float64))
        rows.append(
            {
                "user_N": user_U,
                "visit_N": np.full(len(user_U), visit),
                "login_s_N": state.time_s_U,
                "logout_s_N": np.minimum(state.time_s_U + spent_s_U, next_state.time_s_U),
                "slates_NK": slates_UK,
                "propensity_NK": propensity_UK,
                "watch_s_NK": response.watch_s_UK,
                "examined_NK": response.examined_UK,
                "behaviours_NKB": response.behaviours_UKB,
            }
        )
        stays = np.flatnonzero(~response.churned_U & (next_state.time_s_U < until_s))
        if not len(stays):
            break
        if policy.has_taste:
            taste_UE = policy.learn(taste_UE, slates_UK, response.behaviours_UKB)
        taste_UE = taste_UE[stays]
        state, user_U = take_users(next_state, stays), user_U[stays]
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    order = np.lexsort((columns["visit_N"], columns["user_N"]))
    return Visits(profile_UF=profile_UF, **{name: column[order] for name, column in columns.items()})
