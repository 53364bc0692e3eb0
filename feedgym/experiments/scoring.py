"""Scores given sessions by a reward, for some users at a time."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.batches import Histories, SessionBatch
from feedgym.protocols import SessionReward

USERS_AT_ONCE = 32
"""Users to score at a time."""


def scores_of(
    reward: SessionReward, histories: Histories, item_ids_USK: torch.Tensor, users: int = USERS_AT_ONCE
) -> NDArray[np.float64]:
    """Scores [U, S] of U users' sessions, computed for ``users`` of them at a time."""
    blocks = [slice(low, low + users) for low in range(0, len(histories), users)]
    parts = [reward(histories.rows(rows), SessionBatch.of_items(item_ids_USK[rows])) for rows in blocks]
    return torch.cat(parts).cpu().numpy().astype(np.float64)
