"""Best of N: an agent draws N sessions at each request, and serves the one with the best reward.

Every alignment is compared with it (Stiennon et al., arXiv:2009.01325, §4.1): it needs no training, but costs more at
every request. Its log-probabilities are unknown, NaN.
"""

from __future__ import annotations

from typing import Any

import torch

from feedgym.agents.requests import request_keys
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.protocols import Recommender, SessionReward

ROWS_PER_BLOCK = 4096
"""Sessions drawn and scored at a time; keeps memory low."""


class BestOf:
    """Serves the best of N drawn sessions.

    Args:
        agent: draws the sessions. Its method ``drawn(histories, n)``, if it has one, draws with random numbers keyed by
            the request. Other agents are sampled request by request, with a generator seeded by the request, which
            takes longer.
        reward: scores them; among equal scores the first drawn is served.
        n: N, sessions drawn per request.

    Raises:
        ValueError: N is below 1.
    """

    def __init__(self, agent: Recommender, reward: SessionReward, n: int) -> None:
        if n < 1:
            raise ValueError(f"best_of={n} sessions leave none to serve; give 1 or more.")
        self.agent, self.reward, self.n = agent, reward, n
        self.session_length = agent.session_length

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user, each the best of its own N."""
        size = max(1, ROWS_PER_BLOCK // (n * self.n))
        return SessionBatch.cat(
            [
                self._best(block, self.agent.sample(block, n * self.n, generator), n)
                for block in _blocks(histories, size)
            ]
        )

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The best of N sessions, the same for the same request."""
        size = max(1, ROWS_PER_BLOCK // self.n)
        return SessionBatch.cat(
            [self._best(block, drawn(self.agent, block, self.n), 1) for block in _blocks(histories, size)]
        )

    def _best(self, histories: EventBatch, sessions: SessionBatch, n: int) -> SessionBatch:
        return best(sessions, self.reward(histories, sessions), n)


def drawn(agent: Any, histories: EventBatch, n: int) -> SessionBatch:
    """``n`` sessions per user by random numbers keyed by the request: the same for the same request."""
    if hasattr(agent, "drawn"):
        return agent.drawn(histories, n)
    keys = (int(key) >> 1 for key in request_keys(histories))
    sampled = [agent.sample(histories.rows([u]), n, torch.Generator().manual_seed(key)) for u, key in enumerate(keys)]
    return SessionBatch.cat(sampled)


def best(sessions: SessionBatch, score_US: torch.Tensor, n: int = 1) -> SessionBatch:
    """Splits each user's sessions into ``n`` groups in order, and takes the best-scored one of each group.

    Args:
        sessions: S of U users, n dividing S.
        score_US: their scores.
        n: sessions per user that are left.
    """
    items_USNK = sessions.item_ids_USK.unflatten(1, (n, -1))
    best_US = score_US.unflatten(1, (n, -1)).argmax(dim=2)
    items_USK = items_USNK.take_along_dim(best_US[:, :, None, None], dim=2).squeeze(2)
    return SessionBatch.of_items(items_USK)


def _blocks(histories: EventBatch, size: int) -> list[EventBatch]:
    return [histories.rows(slice(low, low + size)) for low in range(0, len(histories), size)]
