"""Logged answers as the labels of the reward model's towers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.data.batches import TensorRows
from feedgym.data.events import BEHAVIOURS, LoggedSessions
from feedgym.envs.truth import RETURN_S

WATCH, NEXT, RETURN = "watch", "next", "return_24h"
TOWERS = (*BEHAVIOURS, WATCH, NEXT)
"""The towers of a position; the return has a tower of its own, as it answers once a session."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers(TensorRows):
    """What N users answered, as labels in [0, 1]; NaN where nothing was observed.

    Attributes:
        labels_NKO: float32, one column a tower of TOWERS, NaN where the position was not examined.
        return_N: float32, 1 for a return within a day, NaN where the return was not observed.
    """

    labels_NKO: Tensor
    return_N: Tensor

    @classmethod
    def of(cls, sessions: LoggedSessions, watch_cap_s: float) -> Self:
        """The labels of logged sessions."""
        shown_NK = sessions.item_ids_NK >= 0
        examined_NK = sessions.examined_NK & shown_NK
        # Whether a user who examined an item examined the next one; unknown where there is no next one.
        goes_on_NK = np.full(shown_NK.shape, np.nan, np.float32)
        goes_on_NK[:, :-1] = np.where(shown_NK[:, 1:], examined_NK[:, 1:], np.nan)
        watch_NK = np.clip(sessions.watch_s_NK / watch_cap_s, 0, 1)
        labels = np.concatenate([sessions.behaviours_NKB, watch_NK[..., None], goes_on_NK[..., None]], axis=-1)
        labels = np.where(examined_NK[..., None], labels, np.nan).astype(np.float32)
        gap_s_N = sessions.return_gap_s_N
        returned_N = np.where(np.isnan(gap_s_N), np.nan, gap_s_N <= RETURN_S).astype(np.float32)
        return cls(labels_NKO=torch.from_numpy(labels), return_N=torch.from_numpy(returned_N))


def observed_bce(logits_NO: Tensor, labels_NO: Tensor) -> Tensor:
    """Mean cross-entropy [O] of each column over its rows that are not NaN; 0 where all of them are."""
    seen_NO = ~labels_NO.isnan()
    loss_NO = F.binary_cross_entropy_with_logits(logits_NO, labels_NO.nan_to_num(0.0), reduction="none")
    return (loss_NO * seen_NO).sum(0) / seen_NO.sum(0).clamp_min(1)
