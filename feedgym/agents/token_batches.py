"""Dynamic batches: as many samples per step as fit a number of tokens, with equal weight for every candidate.

User samples differ in length by orders of magnitude. So MTGR fills steps by tokens, not by samples, and weights each
step's gradient by its size (arXiv:2505.18654, §3.4). A step's loss is the mean over its candidates, weighted by its
number of candidates over the mean number per step. So the gradients of an epoch, or of the devices in a step, add up to
those with equal weight for all candidates.

The samples that share a step are drawn once; the order of the steps is drawn again for every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from feedgym.data.ranking import RankingBatch

POOL = 32
"""Number of batches whose samples are sorted by length together: enough for little padding, few enough to stay
mixed."""


def token_batches(lengths_N: NDArray[np.int64], max_tokens: int, seed: int) -> list[NDArray[np.int64]]:
    """Rows of each batch: its longest row times its number of rows is at most ``max_tokens``.

    Args:
        lengths_N: tokens of the rows.
        max_tokens: most tokens of a batch, including padding; a longer row forms its own batch.
        seed: for the grouping of rows.
    """
    lengths_N = np.maximum(lengths_N, 1)
    order_N = np.random.default_rng(seed).permutation(len(lengths_N))
    pool_N = np.cumsum(lengths_N[order_N]) // (POOL * max_tokens)
    order_N = order_N[np.lexsort((-lengths_N[order_N], pool_N))]  # the longest of a pool first
    pool_N.sort()
    batches, low = [], 0
    while low < len(order_N):
        high = min(low + max(1, max_tokens // lengths_N[order_N[low]]), len(order_N))
        high = min(high, int(np.searchsorted(pool_N, pool_N[low], side="right")))
        batches.append(order_N[low:high])
        low = high
    return batches


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenBatches(Dataset):
    """Training samples, already grouped into batches: an element is a batch, so a step takes one (``batch_size=1``).

    Attributes:
        rows: N samples.
        max_tokens: of a batch.
        seed: for the grouping of samples.
    """

    rows: RankingBatch
    max_tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.rows) == 0 or self.max_tokens < 1:
            raise ValueError(
                f"{len(self.rows)} samples and max_tokens={self.max_tokens} make no batch; give at least one of each."
            )

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, idx: int) -> int:
        return idx

    @cached_property
    def batches(self) -> list[NDArray[np.int64]]:
        """Rows of each batch."""
        history_N, num_N = self.rows.histories.mask_UT.sum(1), self.rows.mask_NK.sum(1)
        length_N = self.rows.histories.profile_UF.shape[1] + 1 + history_N + 2 * num_N  # exposures are in R too
        return token_batches(length_N.numpy(), self.max_tokens, self.seed)

    @property
    def lengths_N(self) -> Tensor:
        """Candidates of each batch."""
        num_N = self.rows.mask_NK.sum(1)
        return torch.stack([num_N[torch.from_numpy(rows)].sum() for rows in self.batches])

    def collate(self, model: Any, idx: Sequence[int]) -> dict[str, Tensor]:
        """The model's training batch of some batches, with the weight of its loss."""
        rows = torch.from_numpy(np.concatenate([self.batches[i] for i in idx]))
        batch = self.rows.rows(rows)
        mean = self.rows.mask_NK.sum() / len(self)
        return model.ranking_columns(batch) | {"weight": batch.mask_NK.sum() / (mean * len(idx))}
