"""Preference pairs out of sampled sessions."""

from __future__ import annotations

import torch

from feedgym.data.batches import Preferences, ScoredSessions


def best_and_worst(sampled: ScoredSessions, logged_UK: torch.Tensor, margin: float) -> Preferences:
    """Best against worst of each user's sessions by the reward (OneRec, arXiv:2502.18965, Algorithm 2, lines 7-9).

    Args:
        sampled: S sessions per user, scored.
        logged_UK: what the log showed these users.
        margin: pairs whose scores differ by less are left out, as are those that do not differ.

    Returns:
        At most one pair per user.
    """
    user = torch.arange(len(sampled))
    best, worst = sampled.score_US.argmax(dim=1), sampled.score_US.argmin(dim=1)
    pairs = Preferences(
        user_idx_P=user,
        chosen_PK=sampled.item_ids_USK[user, best],
        rejected_PK=sampled.item_ids_USK[user, worst],
        logged_PK=logged_UK,
        score_chosen_P=sampled.score_US[user, best],
        score_rejected_P=sampled.score_US[user, worst],
    )
    gap_P = pairs.score_chosen_P - pairs.score_rejected_P
    return pairs.rows((gap_P > 0) & (gap_P >= margin))
