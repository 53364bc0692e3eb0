"""Features of a candidate from the user's history: how often, how recently and how well similar items were met.

They are features of a pair of user and item, as industrial rankers use them and MTGR keeps them (arXiv:2505.18654,
§3.2). They are counted only from the row's history, which ends before the row's first candidate. So they cannot contain
any effect of the exposure.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog

KINDS = ("item", "creator", "content")
"""Kinds of similarity between items: the same item, the same creator, the same cluster of contents."""

PER_KIND = 2 + len(BEHAVIOURS) + 1
"""Features per kind: number of meetings, recency, the share of each behaviour, and the mean watch fraction."""

NUM_FEATURES = len(KINDS) * PER_KIND
PRIOR = 1.0
"""Meetings without any behaviour that are added to every share, so that one click in one meeting gives no certainty."""


def item_kinds(catalog: Catalog, num_clusters: int = 64, seed: int = 0) -> Tensor:
    """Group of every item for each kind of similarity, int64 [X, I]; -1 if no other item is similar.

    Args:
        catalog: the items.
        num_clusters: clusters of their contents; fewer if there are fewer different contents.
        seed: for the clustering.
    """
    content_IE = catalog.content_IE
    told_I = content_IE.any(axis=1)  # a row of zeros carries no information
    cluster_I = np.full(catalog.num_items, -1)
    num_clusters = min(num_clusters, len(np.unique(content_IE[told_I], axis=0)))
    if num_clusters:
        cluster_I[told_I] = KMeans(num_clusters, n_init=1, random_state=seed).fit_predict(content_IE[told_I])
    creator_I = np.unique(catalog.creator_I, return_inverse=True)[1]
    creator_I = np.where(catalog.creator_I < 0, -1, creator_I)
    return torch.from_numpy(np.stack([np.arange(catalog.num_items), creator_I, cluster_I]).astype(np.int64))


@torch.no_grad()
def cross_features(histories: EventBatch, item_ids_NK: Tensor, kinds_XI: Tensor) -> Tensor:
    """float32 features [N, K, X * PER_KIND] of candidates, each between 0 and about 5.

    The first two features of a kind are ln(1 + meetings), and 1 / (1 + ln(1 + hours since the last one)) or 0. The
    others are the user's behaviours in the meetings as shares of 1 + meetings.

    Args:
        histories: N users.
        item_ids_NK: int64 candidates.
        kinds_XI: groups of items (:func:`item_kinds`).
    """
    recency_NT = 1 / (1 + torch.log1p(seconds_ago(histories) / 3600)).float() * histories.mask_UT
    done_NTY = torch.cat([histories.behaviours_UTB, histories.watch_fraction_UT[..., None]], dim=2)
    parts = []
    for group_I in kinds_XI:
        group_NT, group_NK = group_I[histories.item_ids_UT], group_I[item_ids_NK]
        alike_NKT = (group_NK[..., None] == group_NT[:, None]) & histories.mask_UT[:, None]
        alike_NKT = (alike_NKT & (group_NK[..., None] >= 0)).to(done_NTY.dtype)
        count_NK1 = alike_NKT.sum(2, keepdim=True)
        recency_NK1 = (alike_NKT * recency_NT[:, None]).amax(2, keepdim=True)
        parts += [count_NK1.log1p(), recency_NK1, alike_NKT @ done_NTY / (PRIOR + count_NK1)]
    return torch.cat(parts, dim=2)


def seconds_ago(histories: EventBatch) -> Tensor:
    """float64 [U, T] seconds from each event to the request; 0 where padded."""
    gap_s_UT = histories.gap_s_UT.masked_fill(~histories.mask_UT, 0).double()
    return gap_s_UT.sum(1, keepdim=True) - gap_s_UT.cumsum(1) + gap_s_UT
