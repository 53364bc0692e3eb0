"""Rewards that ignore the user: item averages of the log, as a baseline for a learned model.

They order sessions by popularity with a criterion. ``ItemAverage.rate(log, catalog, "click")`` is the classic wrong
reward: clickbait scores high under it, and an agent aligned to it shows over-optimisation.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, Event, EventLog


class ItemAverage:
    """Scores a session by the sum of its items' values, for any user and in any order.

    Args:
        value_I: float32 value of each item.
    """

    def __init__(self, value_I: Tensor) -> None:
        # A last row of 0 is the value of item -1, which pads sessions.
        self.value_I1 = torch.cat([value_I.float(), torch.zeros(1)])

    @classmethod
    def watch_minutes(cls, log: EventLog, catalog: Catalog, prior: float = 20.0) -> Self:
        """Minutes watched per examined exposure.

        Args:
            log: the event log.
            catalog: the items.
            prior: number of exposures with the average of all items that are added to each item's own.

        Raises:
            ValueError: the log has no examined exposure.
        """
        return cls._of(log, catalog, log.watch_s / 60, prior)

    @classmethod
    def rate(cls, log: EventLog, catalog: Catalog, behaviour: str, prior: float = 20.0) -> Self:
        """Share of the examined exposures with a behaviour; the other arguments are those of :meth:`watch_minutes`.

        Raises:
            ValueError: an unknown behaviour, or the log has no examined exposure.
        """
        if behaviour not in BEHAVIOUR_IDX:
            raise ValueError(f"Unknown behaviour {behaviour!r}; the behaviours are {', '.join(BEHAVIOURS)}.")
        return cls._of(log, catalog, log.behaviours[:, BEHAVIOUR_IDX[behaviour]], prior)

    @classmethod
    def _of(cls, log: EventLog, catalog: Catalog, outcome: NDArray, prior: float) -> Self:
        seen = (log.event == Event.IMPRESSION) & log.examined
        if not seen.any():
            raise ValueError("The log has no examined exposure to average; pass a log of served sessions.")
        item_ids, outcome = log.item_id[seen], outcome[seen].astype(np.float64)
        total_I = np.bincount(item_ids, weights=outcome, minlength=catalog.num_items)
        num_I = np.bincount(item_ids, minlength=catalog.num_items)
        return cls(torch.from_numpy((total_I + prior * outcome.mean()) / np.maximum(num_I + prior, 1e-9)))

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Sums of item values [U, S]; the histories are not used."""
        return self.value_I1.to(sessions.item_ids_USK.device)[sessions.item_ids_USK].sum(-1)
