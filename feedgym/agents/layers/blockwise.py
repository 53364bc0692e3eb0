"""The largest of very many scores per row, computed a block at a time and never held at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SCORES_PER_BLOCK = 2**14
"""Scores per row in a block: enough for fast matrix products, few enough to stay in a CPU's cache."""


def blockwise_topk(
    scores: Callable[[slice], Tensor], shape: tuple[int, int], k: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The k largest of I scores per row, best first; of equal scores those with the smaller indices.

    Memory does not grow with I. The result does not depend on the size of the blocks.

    Args:
        scores: computes the float32 scores [U, B] of a slice of B indices; -inf where an index must not be chosen.
        shape: U and I.
        k: number to keep.
        device: device of the scores.

    Returns:
        Values [U, k] and their int64 indices. Where a row has fewer than k finite scores, -inf and -1 follow them.
    """
    num_rows, num = shape
    value_UK = torch.full((num_rows, k), -torch.inf, device=device)
    idx_UK = torch.full((num_rows, k), -1, device=device)
    for low in range(0, num, SCORES_PER_BLOCK):
        score_UB = scores(slice(low, min(low + SCORES_PER_BLOCK, num)))
        # A score that only equals the k-th best loses to it, whose index is smaller. So few are new after some blocks.
        if num_new := int((score_UB > value_UK[:, -1:]).sum(1).max()):
            new_UN = score_UB.topk(num_new, dim=1).indices.sort(dim=1).values
            value_UX = torch.cat([value_UK, score_UB.gather(1, new_UN)], dim=1)
            idx_UX = torch.cat([idx_UK, new_UN + low], dim=1)
            value_UX, order_UX = value_UX.sort(dim=1, descending=True, stable=True)
            value_UK, idx_UK = value_UX[:, :k], idx_UX.gather(1, order_UX[:, :k])
    return value_UK, idx_UK.masked_fill(value_UK == -torch.inf, -1)
