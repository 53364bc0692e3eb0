"""The draws of :mod:`feedgym.envs.luck` for compiled kernels: the same numbers, one at a time."""

from __future__ import annotations

import math

import numpy as np

from feedgym.envs.compiling import compiled

GOLDEN, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@compiled("u8(u8)")
def mix(x):
    """The splitmix64 finaliser of a 64-bit word."""
    x = (x ^ (x >> np.uint64(30))) * MIX_1
    x = (x ^ (x >> np.uint64(27))) * MIX_2
    return x ^ (x >> np.uint64(31))


@compiled("f8(u8, i8, i8)")
def draw(stream, position, channel):
    """A uniform number in (0, 1) by a stream's key, a position (-1 for the whole visit) and a channel."""
    word = mix(stream + np.uint64((position + 1) * 256 + channel) * GOLDEN)
    return (np.int64(word >> np.uint64(41)) + 0.5) * 2.0**-23


@compiled("u8(u8, u8)")
def derive(key, salt):
    """The key that :func:`feedgym.envs.luck.derive` derives from a key with a salt, both uint64."""
    return mix(mix(mix(key + GOLDEN) + salt * GOLDEN))


@compiled("f8(f8)")
def exponential(uniform):
    """An exponential number of mean 1 from a uniform one."""
    return -math.log1p(-uniform)
