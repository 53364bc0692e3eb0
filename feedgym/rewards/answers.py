"""Turns logged responses into labels for the reward model's towers.

Axes beyond the legend of :mod:`feedgym.data.events`: ``O`` towers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.agents.sharing import part_of_mean
from feedgym.data.batches import TensorRows
from feedgym.data.events import BEHAVIOURS, FloatArray, LoggedSessions
from feedgym.envs.truth import RETURN_S

WATCH, NEXT, RETURN = "watch", "next", "return_24h"
TOWERS = (*BEHAVIOURS, WATCH, NEXT)
LIKES = (*(name for name in BEHAVIOURS if name != "hate"), WATCH)
"""Towers for a position; the return has a separate tower, as it has one label per session."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers(TensorRows):
    """Labels of N logged sessions in [0, 1]; NaN if nothing was observed.

    Attributes:
        labels_NKO: float32, one column per tower of TOWERS, NaN if the position was not examined.
        return_N: float32, 1 for a return within a day, NaN if the return was not observed.
        weight_NK: float32, weight of a position; see :func:`propensity_weights`.
    """

    labels_NKO: Tensor
    return_N: Tensor
    weight_NK: Tensor

    @classmethod
    def of(cls, sessions: LoggedSessions, watch_cap_s: float, max_weight: float = 1.0) -> Self:
        """Make the labels of logged sessions, and their weights."""
        shown_NK = sessions.item_ids_NK >= 0
        examined_NK = sessions.examined_NK & shown_NK
        # Whether a user who examined an item also examined the next one; unknown if there is no next one.
        goes_on_NK = np.full(shown_NK.shape, np.nan, np.float32)
        goes_on_NK[:, :-1] = np.where(shown_NK[:, 1:], examined_NK[:, 1:], np.nan)
        watch_NK = np.clip(sessions.watch_s_NK / watch_cap_s, 0, 1)
        labels = np.concatenate([sessions.behaviours_NKB, watch_NK[..., None], goes_on_NK[..., None]], axis=-1)
        labels = np.where(examined_NK[..., None], labels, np.nan).astype(np.float32)
        gap_s_N = sessions.return_gap_s_N
        returned_N = np.where(np.isnan(gap_s_N), np.nan, gap_s_N <= RETURN_S).astype(np.float32)
        return cls(
            labels_NKO=torch.from_numpy(labels),
            return_N=torch.from_numpy(returned_N),
            weight_NK=torch.from_numpy(propensity_weights(sessions, max_weight)),
        )


def propensity_weights(sessions: LoggedSessions, max_weight: float) -> FloatArray:
    """Stabilised inverse propensity weights (Robins, Hernán and Brumback, 2000), float32 [N, K].

    A production system shows users the items that it expects them to like. A model that trusts its log learns that
    shown items are liked, and predicts the same for items that another agent shows to anyone. The weight of a position
    is a product over the items up to it: each item's share of all exposures, divided by its propensity. This acts as if
    every item had been shown regardless of the user. Unknown propensities count as the item's share.

    Args:
        sessions: N sessions.
        max_weight: weights are clipped to this; 1 or less turns them off.
    """
    items_NK, shown_NK = sessions.item_ids_NK, sessions.item_ids_NK >= 0
    if max_weight <= 1:
        return np.ones(items_NK.shape, np.float32)
    count_I = np.bincount(items_NK[shown_NK])
    share_NK = (count_I / count_I.sum())[np.maximum(items_NK, 0)]
    ratio_NK = share_NK / np.where(shown_NK & np.isfinite(sessions.propensity_NK), sessions.propensity_NK, share_NK)
    return np.minimum(np.cumprod(ratio_NK, axis=1), max_weight).astype(np.float32)


def observed_bce(logits_NO: Tensor, labels_NO: Tensor, weight_N: Tensor) -> Tensor:
    """Weighted mean cross-entropy [O] of each column over its rows that are not NaN; 0 if all of them are."""
    weight_NO = weight_N[:, None] * ~labels_NO.isnan()
    loss_NO = F.binary_cross_entropy_with_logits(logits_NO, labels_NO.nan_to_num(0.0), reduction="none")
    weight_O = weight_NO.sum(0)
    return part_of_mean((loss_NO * weight_NO).sum(0) / weight_O.clamp_min(1e-6), weight_O)
