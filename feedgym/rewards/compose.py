"""Rewards made of rewards, diversity as a reward of its own, and rewards to choose pairs by instead of the model's.

Functions and classes here make rewards from what an experiment has; ``--reward clicks`` names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import Catalog
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import SessionReward
from feedgym.ranges import NonNegative, Ranged
from feedgym.rewards.ensemble import RewardEnsemble
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


class WorstCase:
    """A session is worth what the least convinced member of an ensemble thinks (Coste et al., arXiv:2310.02743).

    Deviation: members' scores are taken as they are. They learned the same answers in the same units, so none is far
    below the others as a whole.

    Args:
        reward_model: an ensemble.

    Raises:
        ValueError: it is a single model.
    """

    of_members = True

    def __init__(self, reward_model: RewardModel | RewardEnsemble) -> None:
        self.ensemble = checked_ensemble(reward_model, "WorstCase")

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """The members' lowest scores [U, S]."""
        return self.ensemble.opinions(histories, sessions).amin(0)


@dataclass(frozen=True, kw_only=True)
class CautiousConfig(Ranged):
    """How much disagreement counts."""

    deviations: NonNegative = 1.0
    """k, standard deviations of the members' scores that are taken off their mean; 0 is the mean."""


class Cautious:
    """The members' mean score less k standard deviations of their scores.

    Coste et al. (arXiv:2310.02743) take off the variance, whose unit is not the reward's.

    Args:
        reward_model: an ensemble.
        config: k.

    Raises:
        ValueError: it is a single model.
    """

    Config = CautiousConfig
    of_members = True

    def __init__(self, reward_model: RewardModel | RewardEnsemble, config: CautiousConfig = CautiousConfig()) -> None:
        self.ensemble, self.config = checked_ensemble(reward_model, "Cautious"), config

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Lowered scores [U, S]."""
        opinion_MUS = self.ensemble.opinions(histories, sessions)
        return opinion_MUS.mean(0) - self.config.deviations * opinion_MUS.std(0, correction=0)


def checked_ensemble(reward_model: Any, name: str) -> RewardEnsemble:
    """The ensemble that a reward looks at, if it is one."""
    if not hasattr(reward_model, "opinions"):
        raise ValueError(f"{name} looks at how far the members of an ensemble are apart; give it an ensemble.")
    return reward_model


def reward_model(reward_model: RewardModel | RewardEnsemble) -> SessionReward:
    """The model of the log's users: what chooses the sessions unless another reward is named."""
    return reward_model


def clicks(reward_model: RewardModel | RewardEnsemble) -> SessionReward:
    """The classic wrong reward: the number of clicks that the model expects, for whatever reason users click."""
    nothing = {name: 0.0 for name in vars(RewardWeights())}
    return reward_model.with_weights(RewardWeights(**nothing | {"click": 1.0}))


def diverse(reward_model: RewardModel | RewardEnsemble, catalog: Catalog) -> SessionReward:
    """The reward model's opinion and a bonus for sessions of unlike items, one point at most."""
    return Weighted({reward_model: 1.0, Diversity(catalog): 1.0})
