"""T5's relative position bias (arXiv:1910.10683, §2.1): a number per head and bucket of distances, added to scores.

Half of the buckets hold one distance each. The others grow with the logarithm of the distance, and the last one holds
everything from ``max_distance`` on. Fully visible attention has separate buckets for keys after the query.

Axes beyond the legend of :mod:`feedgym.data.events`: ``H`` heads, ``Q`` queries, ``M`` keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def bucket_of(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Buckets of the distances "key's position minus query's"; int64, the shape of ``distance``."""
    start = torch.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        start = (distance > 0).long() * num_buckets
        back = distance.abs()
    else:
        back = (-distance).clamp_min(0)
    exact = num_buckets // 2
    growth = (back.clamp_min(1).float() / exact).log() / math.log(max_distance / exact) * (num_buckets - exact)
    far = (exact + growth.long()).clamp_max(num_buckets - 1)
    return start + torch.where(back < exact, back, far)


class RelativeBias(nn.Module):
    """The bias of one stack of layers, which share it.

    Args:
        num_heads: H.
        num_buckets: buckets, both directions together.
        max_distance: larger distances share the last bucket.
        bidirectional: for fully visible attention; causal attention has no keys after the query.
    """

    def __init__(self, num_heads: int, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        super().__init__()
        self.num_buckets, self.max_distance, self.bidirectional = num_buckets, max_distance, bidirectional
        self.bias = nn.Embedding(num_buckets, num_heads)

    def forward(self, num_keys: int, num_queries: int | None = None) -> Tensor:
        """The bias [H, Q, M] of the last Q queries (all if left out) for M keys."""
        key_M = torch.arange(num_keys, device=self.bias.weight.device)
        query_Q = key_M[num_keys - (num_queries or num_keys) :]
        distance_QM = key_M - query_Q[:, None]
        buckets_QM = bucket_of(distance_QM, self.num_buckets, self.max_distance, self.bidirectional)
        return self.bias(buckets_QM).permute(2, 0, 1)
