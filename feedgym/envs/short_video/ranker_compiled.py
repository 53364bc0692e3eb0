"""The production ranker's scores of candidates, compiled; ``C`` counts candidates, ``D`` is the latent width."""

from __future__ import annotations

import numpy as np

from feedgym.data.events import FloatArray, IntArray
from feedgym.envs.compiling import compiled, given


def scores(
    weights: tuple[float, float, float],
    interest_UD: FloatArray,
    z_ID: FloatArray,
    quality_I: FloatArray,
    clickbait_I: FloatArray,
    items_UC: IntArray,
) -> FloatArray:
    """The weighted sum of users' affinity to candidates, of quality and of clickbait, float32 [U, C]."""
    score_UC = np.empty(items_UC.shape, np.float32)
    tables = (given(array, np.float32) for array in (interest_UD, z_ID, quality_I, clickbait_I))
    _score(weights, *tables, given(items_UC, np.int64), score_UC)
    return score_UC


@compiled(any_order=True)
def _score(weights, interest_UD, z_ID, quality_I, clickbait_I, items_UC, score_UC):
    by_interest, by_quality, by_clickbait = weights
    for u in range(items_UC.shape[0]):
        for c in range(items_UC.shape[1]):
            item = items_UC[u, c]
            affinity = np.float32(0)
            for d in range(z_ID.shape[1]):
                affinity += interest_UD[u, d] * z_ID[item, d]
            appeal = by_quality * quality_I[item] + by_clickbait * clickbait_I[item]
            score_UC[u, c] = by_interest * affinity + appeal
