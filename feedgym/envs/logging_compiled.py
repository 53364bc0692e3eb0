"""The logging policy's work with random numbers, compiled, for items that all users can be served.

:mod:`feedgym.envs.logging_policy` does the same in NumPy, also where items come and go, and explains it.

Axes as in :mod:`feedgym.envs.logging_policy`; ``X`` are the items, and ``Q`` the equal parts of a guide to them.
"""

from __future__ import annotations

import math
from collections import namedtuple

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import FloatArray
from feedgym.envs.compiling import compiled, given
from feedgym.envs.luck_compiled import derive, draw, exponential

PARTS_PER_ITEM = 4
Urn = namedtuple("Urn", "end_X guide_Q shift")
"""Cumulative integer weights of the items, and two aids to search them. These are the first item that ends beyond the
beginning of each part of their total, and the binary logarithm of the parts' length."""


def urn_of(end_X: NDArray[np.int64]) -> Urn:
    """An urn from cumulative weights."""
    shift = max(0, int(end_X[-1]).bit_length() - (PARTS_PER_ITEM * len(end_X)).bit_length())
    begin_Q = np.arange((int(end_X[-1]) >> shift) + 1) << shift
    return Urn(given(end_X, np.int64), np.searchsorted(end_X, begin_Q, side="right").astype(np.int32), shift)


def keys(
    seed_U: NDArray[np.uint64], visit_U: NDArray[np.int64], salt: int, channel: int
) -> tuple[NDArray[np.uint64], FloatArray]:
    """The keys of the policy's random numbers at users' visits, and the ones by which a rule is drawn."""
    key_U, uniform_U = np.empty(len(seed_U), np.uint64), np.empty(len(seed_U), np.float32)
    _make_keys(given(seed_U, np.uint64), given(visit_U, np.int64), np.uint64(salt), channel, key_U, uniform_U)
    return key_U, uniform_U


def candidates(
    key_U: NDArray[np.uint64], salt: int, urn: Urn, top_K: NDArray[np.int64], num_drawn: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Items [U, C] by weight and the top ones, in ascending order, and marks on second copies."""
    uniform_UC = np.empty((len(key_U), num_drawn), np.float32)
    _draw_candidates(given(key_U, np.uint64), np.uint64(salt), uniform_UC)
    uniform_UC.sort(axis=1)
    items_UC = np.empty((len(key_U), num_drawn + len(top_K)), np.int64)
    again_UC = np.empty(items_UC.shape, bool)
    _look_up(urn, uniform_UC, np.sort(top_K), items_UC, again_UC)
    return items_UC, again_UC


def ranked(
    key_U: NDArray[np.uint64], salt: int, items_UC: NDArray[np.int64], logit_UC: FloatArray, length: int
) -> NDArray[np.int64]:
    """The K items [U, K] of greatest logit plus Gumbel noise, the best first."""
    slates_UK, logit_UC = np.empty((len(key_U), length), np.int64), given(logit_UC, np.float32)
    uniform_C, near_C = np.empty(items_UC.shape[1]), np.empty(items_UC.shape[1], np.int64)
    keys_U, items_UC, best_K = given(key_U, np.uint64), given(items_UC, np.int64), np.empty(length)
    _rank(keys_U, np.uint64(salt), items_UC, logit_UC, MOST_NOISE_Q, uniform_C, near_C, best_K, slates_UK)
    return slates_UK


def lottery(key_U: NDArray[np.uint64], channels: tuple[int, int], urn: Urn, length: int) -> NDArray[np.int64]:
    """Items [U, K] drawn by weight one after another, without replacement."""
    slates_UK, taken_K = np.empty((len(key_U), length), np.int64), np.empty(length, np.int64)
    _draw_items(given(key_U, np.uint64), channels, urn, taken_K, slates_UK)
    return slates_UK


# ---------------------------------------------------------------- compiled


@compiled()
def _make_keys(seed_U, visit_U, salt, channel, key_U, uniform_U):
    for u in range(len(seed_U)):
        key_U[u] = derive(derive(seed_U[u], salt), np.uint64(visit_U[u]))
        uniform_U[u] = draw(key_U[u], -1, channel)


@compiled()
def _item_at(urn, mark):
    """The item whose weight covers a mark."""
    item = urn.guide_Q[mark >> urn.shift]
    while urn.end_X[item] <= mark:
        item += 1
    return item


@compiled()
def _draw_candidates(key_U, salt, uniform_UC):
    for u in range(len(key_U)):
        key = derive(key_U[u], salt)
        for c in range(uniform_UC.shape[1]):
            uniform_UC[u, c] = draw(key, 0, c)


@compiled()
def _look_up(urn, uniform_UC, top_K, items_UC, again_UC):
    """Ascending items of ascending uniform numbers, and the ascending top ones, merged."""
    total = urn.end_X[-1]
    for u in range(len(items_UC)):
        c, k, last = 0, 0, -1
        drawn = _item_at(urn, np.int64(uniform_UC[u, 0] * np.float64(total)))
        for i in range(items_UC.shape[1]):
            if k == len(top_K) or (c < uniform_UC.shape[1] and drawn <= top_K[k]):
                items_UC[u, i] = drawn
                c += 1
                if c < uniform_UC.shape[1]:
                    drawn = _item_at(urn, np.int64(uniform_UC[u, c] * np.float64(total)))
            else:
                items_UC[u, i] = top_K[k]
                k += 1
            again_UC[u, i] = items_UC[u, i] == last
            last = items_UC[u, i]


@compiled()
def _rank(key_U, salt, items_UC, logit_UC, most_noise_Q, uniform_C, near_C, best_K, slates_UK):
    parts, guess = len(most_noise_Q) - 1, -np.inf
    for u in range(len(key_U)):
        key = derive(key_U[u], salt)
        for c in range(len(uniform_C)):
            uniform_C[c] = draw(key, 0, c)
        # The two logarithms of the noise are for the few who may be among the best. Noise falls with the uniform
        # number, so its part bounds it from both sides. If K are surely above a guess, who is below is out.
        step, num_surely, num_near = 1.0, 0, 0
        while num_surely < len(best_K):
            num_surely = num_near = 0
            for c in range(len(uniform_C)):
                part = np.int64(uniform_C[c] * parts)
                if logit_UC[u, c] + most_noise_Q[part] > guess:
                    near_C[num_near] = c
                    num_near += 1
                    num_surely += logit_UC[u, c] + most_noise_Q[part + 1] > guess
            if guess == -np.inf:
                break
            guess, step = (guess - step, 2 * step) if step < 16 else (-np.inf, step)
        best_K[:] = -np.inf
        for i in range(num_near):
            c = near_C[i]
            _insert(best_K, slates_UK, u, logit_UC[u, c] - math.log(exponential(uniform_C[c])), items_UC[u, c])
        guess = best_K[len(best_K) - 1] - 0.5  # of the next user


@compiled()
def _insert(best_K, slates_UK, u, score, item):
    """Puts an item in its place among the best; those after it move one place, and the last one falls out."""
    k = length = len(best_K)
    while k > 0 and score > best_K[k - 1]:
        k -= 1
        if k < length - 1:
            best_K[k + 1], slates_UK[u, k + 1] = best_K[k], slates_UK[u, k]
    if k < length:
        best_K[k], slates_UK[u, k] = score, item


@compiled()
def _draw_items(key_U, channels, urn, taken_K, slates_UK):
    coarse, fine = channels
    for u in range(len(key_U)):
        left = urn.end_X[-1]
        for k in range(len(taken_K)):
            uniform = draw(key_U[u], k, coarse) + (draw(key_U[u], k, fine) - 0.5) * 2.0**-23
            mark = np.int64(uniform * np.float64(left))
            for j in range(k):  # the taken items, in ascending order, that begin at or before the mark shift it
                end = urn.end_X[taken_K[j]]
                weight = end - (urn.end_X[taken_K[j] - 1] if taken_K[j] else 0)
                mark += weight if mark >= end - weight else 0
            item = _item_at(urn, mark)
            left -= urn.end_X[item] - (urn.end_X[item - 1] if item else 0)
            slates_UK[u, k], j = item, k
            while j > 0 and taken_K[j - 1] > item:
                taken_K[j] = taken_K[j - 1]
                j -= 1
            taken_K[j] = item


with np.errstate(divide="ignore"):
    MOST_NOISE_Q = -np.log(-np.log1p(-np.arange(1025) / 1024))
    """The most Gumbel noise that uniform numbers of equal parts of (0, 1) give; the least is the next part's most."""
