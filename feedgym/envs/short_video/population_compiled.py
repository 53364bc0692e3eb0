"""The random numbers that decide who users are, compiled.

:class:`feedgym.envs.short_video.population.Population` does the same in NumPy, and makes the users of them.
Axes as in :mod:`feedgym.envs.short_video.population`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import FloatArray, IntArray
from feedgym.envs.compiling import compiled, given
from feedgym.envs.luck_compiled import derive, draw, exponential


def traits(
    seeds_U: NDArray[np.uint64], share_M: FloatArray, low: int, high: int, positions: tuple[int, ...], num_normal: int
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Draws the random numbers of :meth:`feedgym.envs.short_video.population.Population.draw`.

    Args:
        seeds_U: the users.
        share_M: shares of the topics.
        low: fewest topics of a user.
        high: most of them.
        positions: of the traits in a user's luck: interests, weights, normal and uniform ones.
        num_normal: number of normal traits.

    Returns:
        Topics [U, J] in the order of the race, uniform numbers of their weights (0 beyond the user's number of topics),
        and those of the normal and of three uniform traits.
    """
    num_users = len(seeds_U)
    loved_UJ = np.empty((num_users, high), np.int64)
    weight_UJ, normal_UC, uniform_U3 = (np.empty((num_users, count), np.float32) for count in (high, num_normal, 3))
    seeds_U, race_J = given(seeds_U, np.uint64), np.empty(high)
    share_M = given(share_M, np.float32)
    _draw(seeds_U, share_M, low, positions, race_J, loved_UJ, weight_UJ, normal_UC, uniform_U3)
    return loved_UJ, weight_UJ, normal_UC, uniform_U3


@compiled()
def _draw(seeds_U, share_M, low, positions, race_J, loved_UJ, weight_UJ, normal_UC, uniform_U3):
    interest, weight, normal, uniform = positions
    high = len(race_J)
    for u in range(len(seeds_U)):
        key = derive(derive(seeds_U[u], np.uint64(0)), np.uint64(0))
        race_J[:] = np.inf
        for m in range(len(share_M)):
            time = exponential(draw(key, interest, m)) / share_M[m]
            j = high
            while j > 0 and time < race_J[j - 1]:  # the topics after it move one place
                j -= 1
                if j < high - 1:
                    race_J[j + 1], loved_UJ[u, j + 1] = race_J[j], loved_UJ[u, j]
            if j < high:
                race_J[j], loved_UJ[u, j] = time, m
        count = low + draw(key, weight, high) * (high + 1 - low)
        for j in range(high):
            weight_UJ[u, j] = draw(key, weight, j) if j + 1 <= count else 0.0
        for c in range(normal_UC.shape[1]):
            normal_UC[u, c] = draw(key, normal, c)
        for c in range(3):
            uniform_U3[u, c] = draw(key, uniform, c)
