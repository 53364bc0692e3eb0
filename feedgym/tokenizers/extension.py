"""Gives codes to items that arrive after a tokenizer was fitted; known items keep theirs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 4096
"""New items whose distances are in memory at a time."""


def codes_of_new(content_NE: Matrix, books: Sequence[Matrix], codes_IL: Ints, num_codes: tuple[int, ...]) -> Ints:
    """Gives each new item a tuple of its own: at each level the code nearest to the rest of its content.

    The rest is what the codes of earlier levels leave. An item whose tuple is taken gets the nearest last code that is
    free below its prefix. If none is free, it takes the next nearest code at the level before, and so on up. A last
    level without a book, which only counts, gives its lowest free code. Of new items that want the same tuple, the
    first one gets it.

    Args:
        content_NE: content of N new items.
        books: the vectors [C, E] of the codes of each level; the last level may have none.
        codes_IL: int64 codes of the items that are known.
        num_codes: codes of each level; they do not grow, so that models keep their vocabulary.

    Returns:
        int64 [N, L] codes.

    Raises:
        ValueError: no free tuple is left.
    """
    if prod(num_codes) >= 2**63:
        raise ValueError(f"num_codes={num_codes} makes more tuples than 64 bits can number; fit with fewer codes.")
    taken = np.sort(np.ravel_multi_index(tuple(codes_IL.T), num_codes))
    blocks = []
    for start in range(0, len(content_NE), _BLOCK):
        blocks.append(_codes_of_block(content_NE[start : start + _BLOCK], books, taken, num_codes))
        taken = np.union1d(taken, np.ravel_multi_index(tuple(blocks[-1].T), num_codes))
    return np.concatenate(blocks)


def _codes_of_block(content_NE: Matrix, books: Sequence[Matrix], taken: Ints, num_codes: tuple[int, ...]) -> Ints:
    codes_NL = np.empty((len(content_NE), len(num_codes)), dtype=np.int64)
    left, detour_N = np.arange(len(content_NE)), np.zeros(len(content_NE), dtype=np.int64)
    while len(left):
        prefix, residual_NE = _prefix(content_NE[left], books, detour_N[left], len(num_codes) - 1)
        tuples_NL, is_free_N = _nearest_free(prefix, residual_NE, books, taken, num_codes)
        tuple_N = np.ravel_multi_index(tuple(tuples_NL.T), num_codes)
        gets = np.zeros(len(left), dtype=bool)
        able = np.flatnonzero(is_free_N)
        gets[able[np.unique(tuple_N[able], return_index=True)[1]]] = True
        codes_NL[left[gets]] = tuples_NL[gets]
        taken = np.union1d(taken, tuple_N[gets])
        detour_N[left[~is_free_N]] += 1
        if detour_N.max() >= prod(num_codes[:-1]):
            raise ValueError(
                f"No free tuple is left for a new item: num_codes={num_codes} and {len(taken)} items; fit again with "
                "more codes."
            )
        left = left[~gets]
    return codes_NL


def _prefix(content_NE: Matrix, books: Sequence[Matrix], detour_N: Ints, num_levels: int) -> tuple[Ints, Matrix]:
    """Returns all codes but the last one, [N, L-1], and the content minus their vectors.

    Detour 0 is the nearest code at each level. The others count through the ranks of the codes, the last level fastest.
    """
    prefix, residual_NE = np.empty((len(content_NE), num_levels), dtype=np.int64), content_NE
    for level, book in enumerate(books[:num_levels]):
        distance_NC = (book**2).sum(1) - 2 * residual_NE @ book.T
        rank_N = detour_N // prod(map(len, books[level + 1 : num_levels])) % len(book)
        nearest_N = distance_NC.argmin(axis=1)
        if rank_N.any():
            nearest_N = distance_NC.argsort(axis=1, kind="stable")[np.arange(len(rank_N)), rank_N]
        prefix[:, level] = nearest_N
        residual_NE = residual_NE - book[nearest_N]
    return prefix, residual_NE


def _nearest_free(
    prefix: Ints, residual_NE: Matrix, books: Sequence[Matrix], taken: Ints, num_codes: tuple[int, ...]
) -> tuple[Ints, NDArray[np.bool_]]:
    """Returns the tuple [N, L] with the nearest free last code, and whether there is a free one."""
    last = num_codes[-1]
    distance_NC = np.zeros((len(prefix), last))
    if len(books) == len(num_codes):
        distance_NC = (books[-1] ** 2).sum(1) - 2 * residual_NE @ books[-1].T
    number_N = np.zeros(len(prefix), dtype=np.int64)
    for level, size in enumerate(num_codes[:-1]):
        number_N = number_N * size + prefix[:, level]
    tuple_NC = number_N[:, None] * last + np.arange(last)
    at = np.minimum(np.searchsorted(taken, tuple_NC), len(taken) - 1)
    distance_NC = np.where(taken[at] == tuple_NC, np.inf, distance_NC)
    best_N = distance_NC.argmin(axis=1)
    return np.concatenate([prefix, best_N[:, None]], axis=1), np.isfinite(distance_NC.min(axis=1))
