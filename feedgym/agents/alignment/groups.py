"""Groups of a user's sampled sessions, and the advantage of each session over the others of its group.

Rewards are given to whole sessions, so all codes of a session share its advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from feedgym.data.batches import ScoredParts, ScoredSessions, TensorRows

RowsT = TypeVar("RowsT", bound=TensorRows)

NO_SPREAD = 1e-6
"""Groups whose scores have a smaller standard deviation cannot rank their sessions."""
ADVANTAGE_EPS = 1e-4
"""Added to the standard deviation that advantages are divided by, as in TRL's GRPO."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups(TensorRows):
    """G sessions for each of some users.

    Attributes:
        user_idx_U: int64 row of the user among the users whose sessions were sampled.
        item_ids_UGK: int32 items.
        score_UG: float32, the reward's scores.
        logp_allowed_UG: float32, see :class:`feedgym.data.batches.SessionBatch`.
        logp_drawn_UG: float32, see there.
    """

    user_idx_U: Tensor
    item_ids_UGK: Tensor
    score_UG: Tensor
    logp_allowed_UG: Tensor
    logp_drawn_UG: Tensor

    def __len__(self) -> int:
        return len(self.user_idx_U)


def random_groups(sampled: ScoredSessions | ScoredParts, size: int, seed: int) -> Groups:
    """Draws ``size`` of each user's S sessions, or takes all of them if there are no more.

    They are drawn at random and never by their score: in a group of the best, some good sessions would count as bad. A
    session that was sampled twice may appear twice, which reflects its probability. Users whose group's scores do not
    differ are left out. Nothing can be learned from them, and dividing by their spread would leave only rounding
    errors.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(part: ScoredSessions, first: int) -> Groups:
        order_US = torch.rand(part.score_US.shape, generator=generator).argsort(dim=1)
        groups = chosen(part, order_US[:, :size], first)
        return groups.rows(differ(groups.score_UG))

    return kept_of(sampled, drawn)


def kept_of(sampled: ScoredSessions | ScoredParts, keep: Callable[[ScoredSessions, int], RowsT]) -> RowsT:
    """Put together what a method keeps of a round: ``keep(part, first)`` of each part.

    Args:
        sampled: the sessions, read a part at a time.
        keep: takes a part, and the row of its first user among all users.
    """
    kept, first = [], 0
    for part in sampled.parts():
        kept.append(keep(part, first))
        first += len(part)
    return type(kept[0]).cat(kept)


def chosen(sampled: ScoredSessions, idx_UG: Tensor, first: int = 0) -> Groups:
    """The sessions at ``idx_UG`` among each user's S; the first user has the row ``first`` among all."""
    users_U1 = torch.arange(len(sampled))[:, None]
    return Groups(
        user_idx_U=first + users_U1[:, 0],
        item_ids_UGK=sampled.item_ids_USK[users_U1, idx_UG].int(),
        score_UG=sampled.score_US[users_U1, idx_UG],
        logp_allowed_UG=sampled.logp_allowed_US[users_U1, idx_UG],
        logp_drawn_UG=sampled.logp_drawn_US[users_U1, idx_UG],
    )


def differ(score_UG: Tensor) -> Tensor:
    """True for users whose scores differ, bool [U]."""
    return score_UG.std(dim=1, correction=0) > NO_SPREAD


# ---------------------------------------------------------------- advantages


def centred(score_UG: Tensor) -> Tensor:
    """Scores minus the group's mean (Dr. GRPO, arXiv:2503.20783)."""
    return score_UG - score_UG.mean(dim=1, keepdim=True)


def standardised(score_UG: Tensor) -> Tensor:
    """Centred scores divided by the group's standard deviation (GRPO, arXiv:2402.03300, §4.1.2)."""
    return centred(score_UG) / (score_UG.std(dim=1, keepdim=True) + ADVANTAGE_EPS)


def leave_one_out(score_UG: Tensor) -> Tensor:
    """Scores minus the mean of the group's other sessions (RLOO, arXiv:2402.14740, §2.2)."""
    size = score_UG.shape[1]
    return centred(score_UG) * size / (size - 1)


def labelled(score_UG: Tensor, top_share: float, bottom_share: float) -> Tensor:
    """1 for the best sessions of the group, -1 for the worst, 0 for the others; at least one of each."""
    size = score_UG.shape[1]
    num_top, num_bottom = (max(1, math.floor(share * size)) for share in (top_share, bottom_share))
    rank_UG = score_UG.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank_UG >= size - num_top).float() - (rank_UG < num_bottom).float()
