"""Counter-based random numbers: every uniform number is a function of only (user seed, visit, position, channel).

There is no generator state. A draw is the splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) of a counter added
to the visit's key. So a user's responses do not depend on the batch, the order of the users or the number of workers.
Two recommenders can also serve the same users with the same random numbers. All functions broadcast.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from feedgym.data.events import FloatArray

VISIT = -1
"""Position of draws that belong to the whole visit, not to one item of it."""

CHANNELS = 256
"""Channels per position: ``channel`` must be in 0..CHANNELS-1."""

LOG_GROUP = "log"
"""Name of the population whose visits are logged."""

MAX_SEED = 2**63
"""Upper bound of seeds, exclusive."""

TRAITS = 0x747261697473
"""Salt of the random numbers that define a user; no visit has this number."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNIT = np.float32(2.0**-23)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, a bijection of the 64-bit words; works in place."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is intended
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def _step(key: ArrayLike, count: ArrayLike) -> NDArray[np.uint64]:
    """Word number ``count`` of the splitmix64 sequence that starts at ``key``; negative counts wrap around."""
    words = np.asarray(count).astype(np.uint64, copy=False)
    with np.errstate(over="ignore"):
        return _mix(np.atleast_1d(np.asarray(key).astype(np.uint64, copy=False) + words * _GOLDEN))


def derive(seed_U: ArrayLike, salt: ArrayLike) -> NDArray[np.uint64]:
    """Derives new seeds, uint64, each a function of an old seed and an integer salt; at least one-dimensional.

    Further mixing rounds separate the new seeds' draws from the old seeds' own draws. The first one counts from 1,
    because the finaliser maps 0 to 0 and seed 0 would be its own descendant.

    Visit v's key is ``derive(seed_U, v)``, so other salts are large numbers, such as :data:`TRAITS`.
    """
    return _mix(_step(_step(seed_U, 1), salt))


def stream(seed_U: ArrayLike, visit_U: ArrayLike) -> NDArray[np.uint64]:
    """The key of one visit of each user, uint64 [U], for :func:`draw`."""
    return derive(seed_U, visit_U)


def traits(seed_U: ArrayLike) -> NDArray[np.uint64]:
    """The key of each user's traits, uint64 [U], for :func:`draw` in a simulator's ``reset``.

    It differs from all visits' keys. Traits drawn from a visit's key would be correlated with the events in that visit.
    """
    return derive(seed_U, TRAITS)


def draw(stream_U: NDArray[np.uint64], position: ArrayLike, channel: ArrayLike) -> FloatArray:
    """Uniform float32 numbers strictly inside (0, 1), of 23 random bits each.

    Args:
        stream_U: uint64 keys made by :func:`stream` or :func:`traits`.
        position: item positions 0.. in the session, or ``VISIT``.
        channel: integers in 0..CHANNELS-1, one per purpose.
    """
    words = _step(stream_U, (np.asarray(position) + 1) * CHANNELS + np.asarray(channel))
    words >>= np.uint64(41)  # 23 bits + the half below are exact in float32, so the result is never 0 or 1
    uniform = words.astype(np.uint32).astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= _UNIT
    return uniform


def uniform(seed_U: ArrayLike, visit_U: ArrayLike, position: ArrayLike, channel: ArrayLike) -> FloatArray:
    """Uniform float32 numbers in (0, 1) by user seed, visit number, position and channel; see :func:`draw`."""
    return draw(stream(seed_U, visit_U), position, channel)


def normal(uniform: FloatArray) -> FloatArray:
    """Standard normal numbers from uniform ones, by the inverse distribution function."""
    return ndtri(uniform)


def exponential(uniform: FloatArray) -> FloatArray:
    """Exponential numbers of mean 1 from uniform ones; small for small uniforms."""
    return -np.log1p(-uniform)


def weibull(uniform: FloatArray, shape: float) -> FloatArray:
    """Weibull numbers of scale 1 from uniform ones; a shape below 1 has a heavy tail."""
    return exponential(uniform) ** np.float32(1 / shape)


def user_seeds(num_users: int, seed: int, group: str) -> NDArray[np.uint64]:
    """Seeds of the users 0..num_users-1 of a population, uint64 [U], all different.

    Args:
        num_users: U; a smaller population consists of the first users of a larger one.
        seed: the experiment's seed.
        group: the population's name, such as "log" or "judge"; populations of different names share no users.

    Raises:
        ValueError: ``num_users`` is below 1 or the seed is negative or too large.
    """
    if num_users < 1:
        raise ValueError(f"num_users={num_users} is below 1; give 1 or more.")
    return seeds_of(np.arange(num_users), seed, group)


def seeds_of(ids_U: ArrayLike, seed: int, group: str) -> NDArray[np.uint64]:
    """Seeds uint64 [U] of the users with the given numbers in a population; see :func:`user_seeds`."""
    if not 0 <= seed < MAX_SEED:
        raise ValueError(f"seed={seed} is outside 0..2**63-1; give one inside.")
    population = derive(np.uint64(seed), zlib.crc32(group.encode()))
    return derive(population, ids_U)
