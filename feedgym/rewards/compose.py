"""Rewards made of rewards, diversity as a reward of its own, and two rewards to choose pairs by instead of the model's.

Functions here make rewards from what an experiment has; ``--reward clicks`` names one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import Catalog
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import SessionReward
from feedgym.rewards.model import RewardModel


class Weighted:
    """A weighted sum of rewards, e.g. ``Weighted({model: 1.0, Diversity(catalog): 0.3})``.

    Args:
        weights: the weight of each reward.

    Raises:
        ValueError: no rewards were given.
    """

    def __init__(self, weights: Mapping[SessionReward, float]) -> None:
        if not weights:
            raise ValueError("Weighted() got no rewards; give at least one, with its weight.")
        self.weights = dict(weights)

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """The weighted sum [U, S]."""
        scores = [weight * reward(histories, sessions) for reward, weight in self.weights.items()]
        return torch.stack(scores).sum(0)


class Diversity:
    """Mean cosine distance of the session's pairs of items by content: 0 for copies, about 1 for unrelated items.

    Args:
        catalog: the items.
    """

    def __init__(self, catalog: Catalog) -> None:
        content_IE = torch.as_tensor(catalog.content_IE, dtype=torch.float32)
        # A last row of zeros answers for item -1, which pads sessions.
        self.unit_I1E = F.pad(F.normalize(content_IE, dim=1), (0, 0, 0, 1))

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Mean distances [U, S]; 0 for sessions of fewer than two items. The histories are not looked at."""
        item_ids_USK = sessions.item_ids_USK
        unit_USKE = self.unit_I1E.to(item_ids_USK.device)[item_ids_USK]
        num_US = (item_ids_USK >= 0).sum(-1)
        # |sum of n unit vectors|^2 = n + the cosines of all ordered pairs.
        cosines_US = unit_USKE.sum(2).square().sum(-1) - unit_USKE.square().sum((2, 3))
        return torch.where(num_US > 1, 1 - cosines_US / (num_US * (num_US - 1)).clamp_min(1), 0.0)


def reward_model(reward_model: RewardModel) -> SessionReward:
    """The model of the log's users: what chooses the sessions unless another reward is named."""
    return reward_model


def clicks(reward_model: RewardModel) -> SessionReward:
    """The classic wrong reward: the number of clicks that the model expects, for whatever reason users click."""
    nothing = {name: 0.0 for name in vars(RewardWeights())}
    return reward_model.with_weights(RewardWeights(**nothing | {"click": 1.0}))


def diverse(reward_model: RewardModel, catalog: Catalog) -> SessionReward:
    """The reward model's opinion and a bonus for sessions of unlike items, one point at most."""
    return Weighted({reward_model: 1.0, Diversity(catalog): 1.0})
