"""Counter-based luck: every uniform is a function of (user seed, visit, position, channel) and of nothing else.

There is no generator state. A draw is the splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014) of a counter added
to the visit's key, so a user's answers depend neither on the batch, nor on the order of the users, nor on the number of
workers, and two recommenders can be served to the same users under the same luck. All functions broadcast.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from feedgym.data.events import FloatArray

VISIT = -1
"""The position of draws which belong to the whole visit, not to one item of it."""

CHANNELS = 256
"""Channels per position: ``channel`` must be in 0..CHANNELS-1."""

LOG_GROUP = "log"
"""The population whose visits are logged."""

MAX_SEED = 2**63
"""Seeds are below this."""

TRAITS = 0x747261697473
"""Salt of the luck that makes a user who they are; no visit has such a number."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNIT = np.float32(2.0**-23)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser, a bijection of the 64-bit words; works in place."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x


def _step(key: ArrayLike, count: ArrayLike) -> NDArray[np.uint64]:
    """Word number ``count`` of the splitmix64 sequence which starts at ``key``; negative counts wrap around."""
    words = np.asarray(count).astype(np.uint64, copy=False)
    with np.errstate(over="ignore"):
        return _mix(np.atleast_1d(np.asarray(key).astype(np.uint64, copy=False) + words * _GOLDEN))


def derive(seed_U: ArrayLike, salt: ArrayLike) -> NDArray[np.uint64]:
    """New seeds, uint64, each a function of an old seed and an integer salt; at least one-dimensional.

    Further mixing rounds keep the new seeds' draws apart from the old seeds' own draws. The first one counts from 1:
    the finaliser maps 0 to 0, so seed 0 would be its own descendant.

    Visit v's key is ``derive(seed_U, v)``, so salts that are no visits are large numbers, as :data:`TRAITS` is.
    """
    return _mix(_step(_step(seed_U, 1), salt))


def stream(seed_U: ArrayLike, visit_U: ArrayLike) -> NDArray[np.uint64]:
    """The key of one visit of each user, uint64 [U], for :func:`draw`."""
    return derive(seed_U, visit_U)


def traits(seed_U: ArrayLike) -> NDArray[np.uint64]:
    """The key of what makes each user who they are, uint64 [U], for :func:`draw` in a simulator's ``reset``.

    It is apart from all visits' keys. Traits drawn from a visit's key would be correlated with what happens in it.
    """
    return derive(seed_U, TRAITS)


def draw(stream_U: NDArray[np.uint64], position: ArrayLike, channel: ArrayLike) -> FloatArray:
    """Uniform float32 numbers strictly inside (0, 1), of 23 random bits each.

    Args:
        stream_U: uint64 keys made by :func:`stream` or :func:`traits`.
        position: item positions 0.. in the session, or ``VISIT``.
        channel: integers in 0..CHANNELS-1, one a purpose.
    """
    words = _step(stream_U, (np.asarray(position) + 1) * CHANNELS + np.asarray(channel))
    words >>= np.uint64(41)  # 23 bits + the half below are exact in float32, so neither 0 nor 1 can come out
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
        num_users: U; the first users of a larger population are those of a smaller one.
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
