"""Checks that a user simulator keeps the rules that environments, logs and judges rely on."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.envs.check_environment import check_shells
from feedgym.envs.check_luck import check_luck
from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.luck import user_seeds
from feedgym.protocols import Response, UserSimulator, take_users

NUM_USERS = 16
NUM_VISITS = 4

STATE_TYPES = {"seed_U": "uint64", "visit_U": "int64", "time_s_U": "float64", "profile_UF": "int64"}
"""Columns that every state has, and their types."""
RESPONSE_TYPES = {
    "behaviours_UKB": "uint8",
    "watch_s_UK": "float32",
    "examined_UK": "bool",
    "elapsed_s_U": "float32",
    "left_U": "bool",
    "return_gap_s_U": "float32",
    "churned_U": "bool",
}


def check_simulator(simulator: UserSimulator, *, session_length: int = 5, seed: int = 0) -> None:
    """Serve a few users and test the rules; error messages say what to change.

    Args:
        simulator: the simulator; it stays unchanged, unless it breaks the rules.
        session_length: K of the sessions served.
        seed: for the users and their sessions.

    Raises:
        ValueError: it breaks a rule; the message names the rule and what to change.
    """
    name = type(simulator).__name__
    _check_attributes(simulator, name)
    session_length = min(session_length, simulator.catalog.num_items)
    seeds_U = user_seeds(NUM_USERS, seed, "check")
    state = _check_reset(simulator, name, seeds_U)
    rng = np.random.default_rng(seed)
    for _ in range(NUM_VISITS):
        slates_UK = _slates(rng, simulator.catalog.num_items, session_length)
        response, next_state = _check_pure(simulator, name, state, slates_UK)
        _check_types(name, response, session_length)
        _check_answers(name, response)
        _check_next(name, state, next_state, response)
        _check_alone(simulator, name, state, slates_UK, response, next_state)
        state = next_state
    _check_slates(simulator, name, state)
    if hasattr(simulator, "interests"):
        _check_interests(simulator, name, state)
    check_luck(simulator, name, session_length=session_length, seed=seed)
    _check_shells(simulator, name, session_length, seed)


def _slates(rng: np.random.Generator, num_items: int, session_length: int) -> NDArray[np.int64]:
    return rng.permuted(np.tile(np.arange(num_items), (NUM_USERS, 1)), axis=1)[:, :session_length]


def _check_attributes(simulator: Any, name: str) -> None:
    for method in ("reset", "respond"):
        _require(callable(getattr(simulator, method, None)), f"{name} has no {method}(); see feedgym.protocols.")
    catalog = getattr(simulator, "catalog", None)
    _require(
        isinstance(catalog, Catalog),
        f"{name}.catalog is a {type(catalog).__name__}; set it to a feedgym.Catalog of the items that can be served.",
    )
    names, sizes = getattr(simulator, "profile_names", None), getattr(simulator, "profile_sizes", None)
    _require(
        isinstance(names, tuple)
        and isinstance(sizes, tuple)
        and len(names) == len(sizes)
        and min(sizes, default=0) > 0,
        f"{name}.profile_names is {names!r} and profile_sizes {sizes!r}; set both to tuples with one entry per "
        "profile field, at least one, and sizes of 1 or more.",
    )


def _check_reset(simulator: UserSimulator, name: str, seeds_U: NDArray[np.uint64]) -> Any:
    """Check fresh users: their columns, and that each row depends only on its own seed."""
    given_U = seeds_U.copy()
    state = simulator.reset(given_U)
    _require(bool((given_U == seeds_U).all()), f"{name}.reset() changed the seeds it was given; work on a copy.")
    _check_state(simulator, name, state, "reset()")
    _require(
        bool((state.seed_U == seeds_U).all()),
        f"{name}.reset() stores other seeds in seed_U than it was given; store those, since judges replace seed_U to "
        "draw fresh random numbers.",
    )
    _require(not state.visit_U.any(), f"{name}.reset() gives visit_U other than 0; count the visits from 0.")
    again = simulator.reset(seeds_U)
    _require(
        not _different(state, again),
        f"{name}.reset() gave other {_different(state, again)} for the same seeds; draw every random number from the "
        "seeds (feedgym.envs.luck).",
    )
    order = np.arange(NUM_USERS)[::-3]
    other = _different(take_users(state, order), simulator.reset(seeds_U[order]))
    _require(not other, f"{name}.reset() gave other {other} in another batch; let row u depend only on seeds_U[u].")
    return state


def _check_state(simulator: UserSimulator, name: str, state: Any, method: str) -> None:
    _require(
        is_dataclass(state) and not isinstance(state, type),
        f"{name}.{method} gives a state of type {type(state).__name__}; make it a dataclass of arrays, so that users "
        "can be taken and put.",
    )
    columns = {f.name: getattr(state, f.name) for f in fields(state)}
    for key, dtype in STATE_TYPES.items():
        actual = getattr(columns.get(key), "dtype", None)
        _require(actual == dtype, f"{name}.{method} gives a state whose {key} is {actual}; it must be a {dtype} array.")
    for key, column in columns.items():
        _require(
            isinstance(column, np.ndarray) and column.ndim > 0 and len(column) == NUM_USERS,
            f"{name}.{method} gives {key} of shape {np.shape(column)} for {NUM_USERS} users; every field of the state "
            "must be an array with one row per user.",
        )
        _require(
            column.dtype.kind != "f" or bool(np.isfinite(column).all()),
            f"{name}.{method} gives {key} that is not finite; give every number of the state a value (for time_s_U the "
            "second at which the next visit begins), since comparisons with NaN are silently false.",
        )
    profile_UF, sizes_F = state.profile_UF, simulator.profile_sizes
    _require(
        profile_UF.shape == (NUM_USERS, len(sizes_F)) and bool(((profile_UF >= 0) & (profile_UF < sizes_F)).all()),
        f"{name}.{method} gives profiles of shape {profile_UF.shape} or outside profile_sizes={sizes_F}; give [U, F] "
        "values in 0..size-1.",
    )


def _check_pure(simulator: UserSimulator, name: str, state: Any, slates_UK: NDArray) -> tuple[Response, Any]:
    """Check that inputs stay unchanged, and that the same inputs give the same responses."""
    kept, given_UK = copy.deepcopy(state), slates_UK.copy()
    reply = simulator.respond(state, given_UK)
    _require(
        isinstance(reply, tuple) and len(reply) == 2 and isinstance(reply[0], Response),
        f"{name}.respond() returned {type(reply).__name__}; return (feedgym.protocols.Response, state).",
    )
    _require(bool((given_UK == slates_UK).all()), f"{name}.respond() changed the slates it was given; work on a copy.")
    changed = _different(kept, state)
    _require(not changed, f"{name}.respond() changed {changed} of the state it was given; copy before writing.")
    _check_state(simulator, name, reply[1], "respond()")
    response, next_state = simulator.respond(state, slates_UK)
    other = _different(reply[0], response) or _different(reply[1], next_state)
    _require(
        not other,
        f"{name}.respond() gave other {other} for the same inputs; draw every random number from seed_U and "
        "visit_U (feedgym.envs.luck), and keep nothing between calls.",
    )
    return reply


def _check_types(name: str, response: Response, session_length: int) -> None:
    sizes = {"U": NUM_USERS, "K": session_length, "B": len(BEHAVIOURS)}
    for key, dtype in RESPONSE_TYPES.items():
        column = getattr(response, key)
        shape = tuple(sizes[axis] for axis in key.rsplit("_", 1)[1])
        actual = getattr(column, "dtype", type(column).__name__)
        _require(
            isinstance(column, np.ndarray) and column.dtype == dtype and column.shape == shape,
            f"{name}.respond() gives {key} of type {actual} and shape {np.shape(column)}; give {dtype} of {shape}.",
        )


def _check_answers(name: str, response: Response) -> None:
    """Check ranges and the consistency of columns."""
    examined_UK, watch_s_UK = response.examined_UK, response.watch_s_UK
    for key in ("watch_s_UK", "elapsed_s_U", "return_gap_s_U"):
        column = getattr(response, key)
        _require(
            bool((np.isfinite(column) & (column >= 0)).all()),
            f"{name}.respond() gives {key} that is negative or not finite (least {column.min()}, greatest "
            f"{column.max()}); give seconds of 0 or more, also for churned users.",
        )
    _require(
        response.behaviours_UKB.max() <= 1,
        f"{name}.respond() gives behaviours up to {response.behaviours_UKB.max()}; give 0 or 1.",
    )
    _require(
        not (examined_UK[:, 1:] & ~examined_UK[:, :-1]).any(),
        f"{name}.respond() gives examined_UK with an item examined after one that was not; users go through a "
        "session from its beginning and stop once.",
    )
    _require(
        not response.behaviours_UKB[~examined_UK].any(),
        f"{name}.respond() gives behaviours on items that were not examined; a log must not "
        "hold reactions to items that users never saw.",
    )
    _require(
        not watch_s_UK[~examined_UK].any(),
        f"{name}.respond() gives watch_s_UK above 0 on items that were not examined; set it to 0 there.",
    )
    _require(
        bool((response.left_U == ~examined_UK.all(axis=1)).all()),
        f"{name}.respond() gives left_U that disagrees with examined_UK; set it to true if an item was not examined.",
    )
    watched_s_U = watch_s_UK.sum(axis=1, dtype=np.float64)
    _require(
        bool((response.elapsed_s_U >= watched_s_U * (1 - 1e-5) - 1e-3).all()),
        f"{name}.respond() gives elapsed_s_U shorter than the seconds watched; measure it from login to logout.",
    )


def _check_next(name: str, state: Any, next_state: Any, response: Response) -> None:
    """Check users at their next visit: one visit older, at the time of their return, and otherwise the same."""
    _require(
        bool((next_state.visit_U == state.visit_U + 1).all()),
        f"{name}.respond() takes visit_U from {state.visit_U[0]} to {next_state.visit_U[0]}; add 1 per visit.",
    )
    passed_s_U = next_state.time_s_U - state.time_s_U
    expected_s_U = response.elapsed_s_U.astype(np.float64) + response.return_gap_s_U
    late_U = np.abs(passed_s_U - expected_s_U) > 1e-3 + 1e-6 * expected_s_U
    _require(
        not late_U.any(),
        f"{name}.respond() moves the clock by {passed_s_U[late_U.argmax()]:.3f} s, elapsed_s_U + return_gap_s_U "
        f"is {expected_s_U[late_U.argmax()]:.3f} s; set time_s_U to the time of the return.",
    )
    _require(bool((passed_s_U > 0).all()), f"{name}.respond() leaves the clock unchanged; a visit takes time.")
    for key in ("seed_U", "profile_UF"):
        _require(
            bool((getattr(next_state, key) == getattr(state, key)).all()),
            f"{name}.respond() changed {key} of the users; it must stay constant for a user.",
        )


def _check_alone(
    simulator: UserSimulator, name: str, state: Any, slates_UK: NDArray, response: Response, next_state: Any
) -> None:
    """Check that a user's responses are the same, bit by bit, whoever else is asked."""
    batches = {"alone": np.array([NUM_USERS // 2]), "in another order": np.random.default_rng(0).permutation(NUM_USERS)}
    for how, rows in batches.items():
        part, part_next = simulator.respond(take_users(state, rows), slates_UK[rows])
        other = _different(take_users(response, rows), part) or _different(take_users(next_state, rows), part_next)
        _require(
            not other,
            f"{name}.respond() gave users asked {how} other {other}; let a user's row depend only on that user, and "
            "mind that matrix products round differently in other shapes (np.einsum and np.vecdot do not).",
        )


def _check_slates(simulator: UserSimulator, name: str, state: Any) -> None:
    """Check that faulty sessions are refused, and that everything environments allow is answered."""
    num_items = simulator.catalog.num_items
    item_U = np.zeros((NUM_USERS, 1), np.int64)
    faults = {
        f"item id {num_items} of {num_items} items": item_U + num_items,
        "item id -1": item_U - 1,
        f"{NUM_USERS - 1} sessions for {NUM_USERS} users": item_U[:-1],
        "item ids of type float64": item_U.astype(np.float64),
    }
    for fault, slates_UK in faults.items():
        answer = _outcome(simulator, state, slates_UK)
        _require(
            isinstance(answer, ValueError),
            f"{name}.respond() meets {fault} with {type(answer).__name__}; raise a ValueError that names the fault.",
        )
    for what, slates_UK in (("one item", item_U), ("the same item three times", np.repeat(item_U, 3, axis=1))):
        answer = _outcome(simulator, state, slates_UK)
        _require(
            not isinstance(answer, Exception),
            f"{name}.respond() meets a session of {what} with {answer!r}; answer it, since environments may serve it.",
        )


def _outcome(simulator: UserSimulator, state: Any, slates_UK: NDArray) -> Any:
    """Return value or exception of respond()."""
    try:
        return simulator.respond(state, slates_UK)[0]
    except Exception as error:
        return error


def _check_interests(simulator: Any, name: str, state: Any) -> None:
    """Check the true interests that renderings show, if the simulator offers them."""
    kept = copy.deepcopy(state)
    told = simulator.interests(state)
    _require(not _different(kept, state), f"{name}.interests() changed the state it was given; copy before writing.")
    shapes = [np.shape(part) for part in told] if isinstance(told, tuple) else []
    fits = len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 2 and shapes[0][0] == NUM_USERS
    _require(
        fits and shapes[0][1] >= simulator.catalog.num_topics,
        f"{name}.interests() gives shapes {shapes}; give affinities and satiation, two arrays [{NUM_USERS}, M] with "
        f"one column for each of the catalogue's {simulator.catalog.num_topics} topics.",
    )
    _require(
        all(bool(np.isfinite(part).all()) for part in told),
        f"{name}.interests() gives values that are not finite; give 0 where there is no interest or no satiation.",
    )


def _check_shells(simulator: UserSimulator, name: str, session_length: int, seed: int) -> None:
    """Check the environments around the simulator: Gymnasium's own checks, and many users against single ones."""

    def single(render_mode: str | None = None) -> FeedEnv:
        return FeedEnv(simulator, session_length=session_length, history_length=7, horizon=3, render_mode=render_mode)

    def vector(num_envs: int, mode: AutoresetMode) -> FeedVectorEnv:
        return FeedVectorEnv(
            num_envs, simulator, session_length=session_length, history_length=7, horizon=3, autoreset_mode=mode
        )

    spec = EnvSpec("feedgym/Checked-v1", entry_point=single)  # type: ignore[arg-type]
    check_shells(f"FeedEnv({name})", lambda: gym.make(spec), vector, seed=seed)


def _different(ours: Any, theirs: Any) -> str:
    """Name of the first field in which two dataclasses of arrays differ, to the bit; "" if they are equal."""
    for f in fields(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return f.name
    return ""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
