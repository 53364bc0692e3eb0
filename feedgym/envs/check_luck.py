"""Checks a simulator's randomness: another seed changes a user's responses, but not the user.

Judges (:func:`feedgym.envs.truth.true_value`) replace ``seed_U`` to draw new random numbers. That is right if events
depend on seed, visit and position, and everything that defines the user is in the other columns of the state.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from feedgym.envs.luck import user_seeds
from feedgym.protocols import Response, UserSimulator, cat_users, take_users

NUM_USERS = 48
NUM_SEEDS = 8
"""Number of seeds that all users are asked under, one after another."""
NUM_VISITS = 64
"""Visits of every user, under their own seed and under new ones."""
BLOCK_ROWS = 1024
CHANCE = 1e-8
"""A rule counts as broken if chance alone would look like this in fewer than this share of all checks."""


def check_luck(simulator: UserSimulator, name: str, *, session_length: int, seed: int) -> None:
    """Ask users under their own, under others' and under new seeds.

    Args:
        simulator: must already keep the other rules of its protocol.
        name: for messages.
        session_length: K of the session that all are served.
        seed: for the users and their sessions.

    Raises:
        ValueError: seeds do not decide the randomness, or they decide who the users are.
    """
    rng = np.random.default_rng(seed)
    num_items = simulator.catalog.num_items
    state = simulator.reset(user_seeds(NUM_USERS, seed, "check luck"))
    _, state = simulator.respond(state, rng.integers(num_items, size=(NUM_USERS, session_length)))
    slate_K = rng.permutation(num_items)[:session_length]
    _check_seeds_and_states(simulator, name, state, slate_K, seed)
    _check_same_person(simulator, name, state, slate_K, seed)


def _check_seeds_and_states(simulator: UserSimulator, name: str, state: Any, slate_K: NDArray, seed: int) -> None:
    """Check that responses depend on the seed, and also on the rest of the state."""
    asked = take_users(state, np.repeat(np.arange(NUM_USERS), NUM_SEEDS))
    seeds_S = user_seeds(NUM_SEEDS, seed, "check seeds")
    answers_US = _codes(_ask(simulator, replace(asked, seed_U=np.tile(seeds_S, NUM_USERS)), slate_K))
    answers_US = answers_US.reshape(NUM_USERS, NUM_SEEDS)
    if (answers_US == answers_US[:, :1]).all():
        raise ValueError(
            f"{name}.respond() answers the same for every seed_U; draw random events from seed_U and visit_U "
            "(feedgym.envs.luck.stream), since judges replace seed_U to draw new random numbers."
        )
    if (answers_US == answers_US[:1]).all():
        raise ValueError(
            f"{name}.respond() gives all users of one seed the same answer, whatever their state; keep what makes "
            "users differ in columns of the state, drawn in reset() (feedgym.envs.luck.traits): judges replace seed_U."
        )


def _check_same_person(simulator: UserSimulator, name: str, state: Any, slate_K: NDArray, seed: int) -> None:
    """Check that over many visits users respond under their own seed as they do under new ones.

    Given the rest of the state and the visit, both responses are draws of one distribution, so that their differences d
    have no preferred sign. Then (sum d)^2 / sum d^2 over a user's visits has mean 1 and tails below those of a
    chi-square. If the seed defines the user, it grows with the number of visits.
    """
    asked = take_users(state, np.repeat(np.arange(NUM_USERS), NUM_VISITS))
    asked = replace(asked, visit_U=np.tile(np.arange(NUM_VISITS), NUM_USERS))
    fresh = replace(asked, seed_U=user_seeds(len(asked.seed_U), seed, "check fresh"))
    ours, theirs = (_figures(_ask(simulator, users, slate_K)) for users in (asked, fresh))
    for what in ours:
        apart_UV = (ours[what] - theirs[what]).reshape(NUM_USERS, NUM_VISITS)
        square_U = (apart_UV**2).sum(axis=1)
        differs_U = square_U > 0
        drift = (apart_UV.sum(axis=1)[differs_U] ** 2 / square_U[differs_U]).sum()
        if differs_U.any() and chdtrc(differs_U.sum(), drift) < CHANCE:
            raise ValueError(
                f"{name}.respond() makes users other people when seed_U is replaced, as judges do for new randomness: "
                f"over {NUM_VISITS} visits their {what} differs from that under their own seed. Keep what makes users "
                "differ in columns of the state, drawn in reset() (feedgym.envs.luck.traits); use seed_U in "
                "respond() only for the events of a visit (luck.stream(seed_U, visit_U))."
            )


def _ask(simulator: UserSimulator, users: Any, slate_K: NDArray) -> Response:
    """Responses of users who are all served the same session."""
    rows = np.arange(len(users.seed_U))
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    return cat_users(
        [simulator.respond(take_users(users, block), np.tile(slate_K, (len(block), 1)))[0] for block in blocks]
    )


def _codes(response: Response) -> NDArray[np.int64]:
    """A number for each different response."""
    columns = [getattr(response, f.name).astype(np.float64) for f in fields(Response)]
    table = np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)


def _figures(response: Response) -> dict[str, NDArray[np.float64]]:
    """Figures by which users are distinguished, [U] each."""
    watch_KU, feedback_KU = np.log1p(response.watch_s_UK.T.astype(np.float64)), response.behaviours_UKB.sum(axis=2).T
    figures = {
        "number of examined items": response.examined_UK.sum(axis=1),
        "return gap": np.log1p(response.return_gap_s_U.astype(np.float64)),
        "churn": response.churned_U,
    }
    for k in range(len(watch_KU)):
        figures |= {f"watch time at position {k}": watch_KU[k], f"feedback at position {k}": feedback_KU[k]}
    return {what: np.asarray(values, np.float64) for what, values in figures.items()}
