"""Predicts rewards of slates by a reward model, as a whole and place by place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.experiments.ope.estimators import Float
from feedgym.experiments.scoring import scores_of

BLOCK_ITEMS = 2**14
"""Items of slates to score at a time."""


class Opinion:
    """A reward model that was fitted to other users than those it is asked about.

    It is in the units of the true reward, and the reward of a place does not depend on later places.

    Args:
        model: a :class:`feedgym.rewards.model.RewardModel`, or an object with its ``weights`` and ``with_weights``.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.session = model.with_weights(replace(model.weights, return_24h=0.0))

    def values(self, histories: EventBatch, slates_NSK: NDArray[np.int64]) -> Float:
        """The expected reward of S slates per request, [N, S]."""
        return self._asked(self.model, histories, torch.from_numpy(np.ascontiguousarray(slates_NSK)))

    def by_place(self, histories: EventBatch, slates_NK: NDArray[np.int64]) -> Float:
        """Expected reward at each place [N, K] given the items down to it; the last place includes the return.

        The part of a place is the difference between the slate cut off below it and cut off above it.
        """
        length, slates = slates_NK.shape[1], torch.from_numpy(slates_NK)
        kept_KK = torch.ones(length, length, dtype=torch.bool).tril()
        cut_NKK = torch.where(kept_KK, slates[:, None], -1)
        reward_NK = np.diff(self._asked(self.session, histories, cut_NKK), axis=1, prepend=0.0)
        whole_N1 = self._asked(self.model, histories, slates[:, None])
        reward_NK[:, -1] += (whole_N1 - self._asked(self.session, histories, slates[:, None]))[:, 0]
        return reward_NK

    @staticmethod
    def _asked(model: Any, histories: EventBatch, slates_NSK: torch.Tensor) -> Float:
        return scores_of(model, histories, slates_NSK, max(1, BLOCK_ITEMS // max(1, slates_NSK[0].numel())))
