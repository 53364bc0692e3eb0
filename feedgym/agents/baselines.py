"""Agents that know nothing of the user: random items, and the most popular ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.agents.requests import request_noise
from feedgym.data.batches import EventBatch, SessionBatch

LOW_SCORE, LOW_LOGIT = -1e30, -100.0
"""What a seen item scores: below all others, yet it can still be served where nothing else is left."""


class RandomRecommender:
    """Sessions of different items, all equally likely.

    Args:
        num_items: I.
        session_length: K, at most I.
        seed: decides what :meth:`recommend` serves; a request is told apart from others by its history.

    Raises:
        ValueError: the sessions are longer than the catalogue.
    """

    def __init__(self, num_items: int, session_length: int, seed: int = 0) -> None:
        _check_length(session_length, num_items)
        self.num_items, self.session_length, self.seed = num_items, session_length, seed

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions a user, uniform over ordered sessions, with their log-probability."""
        luck_USI = torch.rand(len(histories), n, self.num_items, generator=generator)
        items_USK = luck_USI.topk(self.session_length, dim=-1).indices
        logp = -torch.arange(self.num_items, self.num_items - self.session_length, -1).double().log().sum()
        return SessionBatch(item_ids_USK=items_USK, logp_US=torch.full(items_USK.shape[:2], float(logp)))

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """One session a user, the same for the same request."""
        luck_UI = request_noise(histories, self.num_items, self.seed)
        return _served(luck_UI.topk(self.session_length, dim=1).indices)


class PopularRecommender:
    """The most popular items that the user's history does not show.

    Args:
        count_I: how often each item was seen, or any other popularity.
        session_length: K, at most I.

    Raises:
        ValueError: the sessions are longer than the catalogue.
    """

    def __init__(self, count_I: Tensor, session_length: int) -> None:
        _check_length(session_length, len(count_I))
        self.count_I, self.session_length = count_I.double(), session_length

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions a user, drawn by popularity without replacement (Plackett-Luce)."""
        score_UI = self._scores(histories)
        logit_UI = torch.where(score_UI == LOW_SCORE, LOW_LOGIT, score_UI.clamp_min(1e-9).log())
        gumbel_USI = -torch.empty(len(logit_UI), n, logit_UI.shape[1]).exponential_(generator=generator).log()
        items_USK = (logit_UI[:, None] + gumbel_USI).topk(self.session_length, dim=-1).indices
        return SessionBatch(item_ids_USK=items_USK, logp_US=_plackett_luce_logp(logit_UI, items_USK).float())

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The K most popular unseen items, most popular first; ties go to the lower id."""
        order_UI = self._scores(histories).argsort(dim=1, descending=True, stable=True)
        return _served(order_UI[:, : self.session_length])

    def _scores(self, histories: EventBatch) -> Tensor:
        """Popularity [U, I], far below zero where the history shows the item."""
        score_UI = self.count_I.repeat(len(histories), 1)
        seen_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, len(self.count_I)).cpu()
        padded_UI = F.pad(score_UI, (0, 1))
        return padded_UI.scatter_(1, seen_UT, LOW_SCORE)[:, :-1]


def _plackett_luce_logp(logit_UI: Tensor, items_USK: Tensor) -> Tensor:
    """Log-probability [U, S] of drawing items in this order without replacement."""
    logit_USI = logit_UI[:, None].expand(-1, items_USK.shape[1], -1)
    chosen_USK = logit_USI.gather(2, items_USK)
    never_US1 = logit_USI.scatter(2, items_USK, -torch.inf).logsumexp(2, keepdim=True)
    # Mass left before item k, summed from the end: the total less what went before would drown small items in rounding.
    left_USK = torch.cat([never_US1, chosen_USK.flip(2)], dim=2).logcumsumexp(2)[..., 1:].flip(2)
    return (chosen_USK - left_USK).sum(2)


def _served(items_UK: Tensor) -> SessionBatch:
    """Chosen sessions of agents that have no log-probability for their choice."""
    return SessionBatch(item_ids_USK=items_UK[:, None], logp_US=torch.full((len(items_UK), 1), torch.nan))


def _check_length(session_length: int, num_items: int) -> None:
    if not 1 <= session_length <= num_items:
        raise ValueError(
            f"session_length={session_length} must be in 1..{num_items}, the items of the catalogue; a session holds "
            "no item twice."
        )
