"""Checks a registered environment: Gymnasium's own checks, one user against many, and large batches against small ones.

Users are compared to the bit. Vector environments are tried in all autoreset modes, across the ends of episodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from feedgym.protocols import load

Vector = Callable[[int, AutoresetMode], VectorEnv]

NUM_SLOTS = 4
NUM_STEPS = 8
BATCHES = (1, 7, 64)
"""Numbers of users served at once; a user who is in all of them must get the same results."""


def check_environment(env_id: str, *, seed: int = 0, **kwargs: Any) -> None:
    """Test that the environment of an id keeps the rules, with one user at a time and with many at once.

    Args:
        env_id: a registered id, or ``"module:id"`` if the module registers it.
        seed: for the users and their sessions.
        **kwargs: keywords of the environment that replace the id's defaults.

    Raises:
        ValueError: there is no such id, it has no vector environment, or it breaks a rule; the message names the rule.
    """
    module, _, plain_id = env_id.rpartition(":")
    if module:
        load(f"{module}:__name__")  # imports the module that registers the id, also from the current folder
    try:
        spec = gym.spec(plain_id)
    except gym.error.Error as error:
        remedy = "Name the module that registers it: 'module:id'."
        if module:
            remedy = f"{module} was imported but does not register {plain_id}; look at its feedgym.register()."
        raise ValueError(f"Cannot find {env_id}: {error} {remedy}") from error
    if spec.vector_entry_point is None:
        raise ValueError(f"{env_id} has no vector_entry_point; register it by feedgym.register.")

    def single() -> gym.Env:
        return gym.make(env_id, **kwargs)

    def vector(num_envs: int, mode: AutoresetMode) -> VectorEnv:
        return gym.make_vec(
            env_id, num_envs, vectorization_mode="vector_entry_point", autoreset_mode=mode.value, **kwargs
        )

    check_shells(env_id, single, vector, seed=seed)


def check_shells(name: str, single: Callable[[], gym.Env], vector: Vector, *, seed: int) -> None:
    """Run the checks.

    Args:
        name: for messages.
        single: makes an environment of one user, with a spec, so that its render modes can be tried.
        vector: makes one of many users in an autoreset mode.
        seed: for the users and their sessions.

    Raises:
        ValueError: a rule is broken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            check_env(single().unwrapped)
        except Exception as error:
            raise ValueError(f"gymnasium's check_env fails on {name}: {error}") from error
    singles = [single() for _ in range(NUM_SLOTS)]
    for mode in AutoresetMode:
        _check_against_singles(name, singles, vector(NUM_SLOTS, mode), mode, seed)
    _check_batches(name, vector, seed)


def _check_against_singles(name: str, singles: list[gym.Env], many: VectorEnv, mode: AutoresetMode, seed: int) -> None:
    """Check that the native vector environment always equals Gymnasium's vector of single ones."""
    apart = SyncVectorEnv([partial(_itself, env) for env in singles], autoreset_mode=mode)
    many.action_space.seed(seed)

    def compare(ours: Any, theirs: Any) -> None:
        if not all(data_equivalence(x, y, exact=True) for x, y in zip(ours, theirs, strict=True)):
            raise ValueError(
                f"The vector environment of {name} differs from single environments in autoreset mode "
                f"{mode.value}; let a user's responses depend only on their own seed, visit and session."
            )

    compare(many.reset(seed=seed), apart.reset(seed=seed))
    for _ in range(NUM_STEPS):
        actions = many.action_space.sample()
        ours = many.step(actions)
        compare(ours, apart.step(actions))
        if not many.observation_space.contains(ours[0]):
            raise ValueError(f"The observations of {name} are outside their space; look at what its simulator returns.")
        over_U = ours[2] | ours[3]
        if mode is AutoresetMode.DISABLED and over_U.any():
            compare(*(env.reset(options={"reset_mask": over_U.copy()}) for env in (many, apart)))


def _itself(env: gym.Env) -> gym.Env:
    return env


def _check_batches(name: str, vector: Vector, seed: int) -> None:
    """Check that a user gets the same results alone, among few and among many."""
    feeds = [vector(size, AutoresetMode.SAME_STEP) for size in BATCHES]
    feeds[-1].action_space.seed(seed)

    def compare(results: list[Any]) -> None:
        for size, result in zip(BATCHES[:-1], results, strict=False):
            if not data_equivalence(result, _rows(results[-1], slice(size)), exact=True):
                raise ValueError(
                    f"Users of {name} get other results among {size} users than among {BATCHES[-1]}; mind that matrix "
                    "products round differently in other shapes (np.einsum and np.vecdot do not)."
                )

    compare([env.reset(seed=seed)[0] for env in feeds])
    for _ in range(NUM_STEPS):
        actions = feeds[-1].action_space.sample()
        compare([env.step(actions[:size])[:4] for size, env in zip(BATCHES, feeds, strict=True)])


def _rows(result: Any, rows: slice) -> Any:
    """The first slots of a batched observation, reward and so on."""
    if isinstance(result, dict):
        return {key: _rows(value, rows) for key, value in result.items()}
    if isinstance(result, tuple):
        return tuple(_rows(value, rows) for value in result)
    column: NDArray = result
    return column[rows]
