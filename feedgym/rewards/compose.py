"""Combines rewards, rewards diversity, and offers other rewards than the model's for choosing pairs.

Functions and classes here make rewards from the parts of an experiment; ``--reward clicks`` names one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import DAY_S, Catalog
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import SessionReward
from feedgym.ranges import NonNegative, Positive, Ranged, Share, Weight
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
        # A last row of zeros is the vector of item -1, which pads sessions.
        self.unit_I1E = F.pad(F.normalize(content_IE, dim=1), (0, 0, 0, 1))

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Mean distances [U, S]; 0 for sessions of fewer than two items. The histories are not used."""
        item_ids_USK = sessions.item_ids_USK
        unit_USKE = self.unit_I1E.to(item_ids_USK.device)[item_ids_USK]
        num_US = (item_ids_USK >= 0).sum(-1)
        # |sum of n unit vectors|^2 = n + the cosines of all ordered pairs.
        cosines_US = unit_USKE.sum(2).square().sum(-1) - unit_USKE.square().sum((2, 3))
        return torch.where(num_US > 1, 1 - cosines_US / (num_US * (num_US - 1)).clamp_min(1), 0.0)


class Freshness:
    """Share of a session's items that were uploaded recently.

    Args:
        catalog: the items.
        days: most days before the request if histories are dated; otherwise before the newest item of all.
    """

    def __init__(self, catalog: Catalog, days: float = 1.0) -> None:
        self.upload_s_I = torch.as_tensor(catalog.upload_s_I, dtype=torch.float64)
        self.span_s = days * DAY_S

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Shares [U, S] of the session's real items; 0 for empty sessions."""
        item_ids_USK = sessions.item_ids_USK
        now_s_U = getattr(histories, "time_s_U", self.upload_s_I.max().expand(len(histories)))
        age_s_USK = now_s_U[:, None, None].cpu() - self.upload_s_I[item_ids_USK.clamp_min(0).cpu()]
        return _share((age_s_USK <= self.span_s).to(item_ids_USK.device), item_ids_USK)


class Legality:
    """Share of a session's items that are legal: in the catalogue, not seen before, and not above in the session.

    Agents that write along a trie are always legal; sessions from elsewhere may not be.

    Args:
        catalog: the items.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.num_items = catalog.num_items

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Shares [U, S]; 0 for empty sessions."""
        item_ids_USK = sessions.item_ids_USK
        seen_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, -1).to(item_ids_USK.device)
        seen_USK = (item_ids_USK[..., None] == seen_UT[:, None, None]).any(-1)
        above_USK = (item_ids_USK[..., None] == item_ids_USK[..., None, :]).tril(-1).any(-1)
        return _share((item_ids_USK < self.num_items) & ~seen_USK & ~above_USK, item_ids_USK)


def _share(holds_USK: Tensor, item_ids_USK: Tensor) -> Tensor:
    """The share of a session's items for which something holds, float32 [U, S]."""
    real_USK = item_ids_USK >= 0
    return (holds_USK & real_USK).sum(-1) / real_USK.sum(-1).clamp_min(1).float()


class Lexicographic:
    """Rules first, then a reward: a session that breaks an earlier rule scores lower than any that keeps it.

    ``Lexicographic([(Legality(catalog), 1.0), (no_clickbait, 0.5)], then=model)`` orders sessions first by whether they
    are legal, then by whether they pass your own function against clickbait, and then by the model.

    Args:
        rules: rewards with the least score that keeps the rule, the most important one first.
        then: orders sessions that keep the same rules. Its scores are clipped to half of ``gap`` above and below 0.
        gap: penalty for breaking the last rule; each earlier rule has twice the penalty of the next one.

    Raises:
        ValueError: there is no rule, or the gap is not above 0.
    """

    def __init__(self, rules: Sequence[tuple[SessionReward, float]], then: SessionReward, gap: float = 100.0) -> None:
        if not rules or not gap > 0:
            raise ValueError(
                f"{len(rules)} rules and gap={gap:g} give no order; give one or more rules, and a gap above 0."
            )
        self.rules, self.then, self.gap = list(rules), then, gap

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Scores [U, S]."""
        score_US = self.then(histories, sessions).clamp(-self.gap / 2, self.gap / 2)
        for place, (rule, least) in enumerate(reversed(self.rules)):
            score_US = score_US - self.gap * 2**place * (rule(histories, sessions) < least)
        return score_US


@dataclass(frozen=True, kw_only=True)
class MixedConfig(Ranged):
    """Options of a mixed reward: points in addition to the reward model's prediction, and a rule that comes first."""

    diversity: Weight = 0.5
    """Points for diversity: multiplied by the mean distance of the items' contents."""
    freshness: Weight = 0.0
    """Points for recent uploads: multiplied by the share of recently uploaded items."""
    fresh_days: Positive = 1.0
    """Days that count as recent; needs freshness."""
    least_diversity: Share = 0.0
    """Rule: sessions less diverse than this score lower than all others. 0: no rule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.diversity or self.freshness or self.least_diversity):
            raise ValueError(
                "diversity, freshness and least_diversity are all 0, so nothing is mixed; raise one of them."
            )
        if not self.freshness and self.fresh_days != MixedConfig.fresh_days:
            raise ValueError(f"fresh_days={self.fresh_days:g} does nothing if freshness=0; set freshness too.")


class Mixed:
    """The reward model's prediction, points for diversity and freshness, and a rule that comes first.

    Args:
        reward_model: the model.
        catalog: the items.
        config: points and rule.
    """

    Config = MixedConfig

    def __init__(
        self, reward_model: RewardModel | RewardEnsemble, catalog: Catalog, config: MixedConfig = MixedConfig()
    ) -> None:
        self.config, diversity = config, Diversity(catalog)
        points: dict[SessionReward, float] = {reward_model: 1.0, diversity: config.diversity}
        if config.freshness:
            points[Freshness(catalog, config.fresh_days)] = config.freshness
        self.reward: SessionReward = Weighted(points)
        if config.least_diversity:
            self.reward = Lexicographic([(diversity, config.least_diversity)], then=self.reward)

    def __call__(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Scores [U, S]."""
        return self.reward(histories, sessions)


class WorstCase:
    """Scores a session by the lowest score among an ensemble's members (Coste et al., arXiv:2310.02743).

    Deviation: members' scores are used unchanged. All members learned from the same responses in the same units, so
    none is far below the others as a whole.

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
    """Options of the penalty for disagreement."""

    deviations: NonNegative = 1.0
    """k, number of standard deviations of the members' scores to subtract from their mean; 0 is the mean."""


class Cautious:
    """Scores a session by the members' mean minus k standard deviations of their scores.

    Coste et al. (arXiv:2310.02743) subtract the variance, whose unit is not the reward's.

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
    """Refuse a reward model that is not an ensemble."""
    if not hasattr(reward_model, "opinions"):
        raise ValueError(f"{name} uses the spread of an ensemble's members; give it an ensemble.")
    return reward_model


def reward_model(reward_model: RewardModel | RewardEnsemble) -> SessionReward:
    """The reward model of the log's users; it chooses the sessions unless another reward is named."""
    return reward_model


def clicks(reward_model: RewardModel | RewardEnsemble) -> SessionReward:
    """The classic wrong reward: the number of clicks that the model predicts, whatever the reason for them."""
    nothing = {name: 0.0 for name in vars(RewardWeights())}
    return reward_model.with_weights(RewardWeights(**nothing | {"click": 1.0}))


def diverse(reward_model: RewardModel | RewardEnsemble, catalog: Catalog) -> SessionReward:
    """The reward model's prediction and a bonus for diverse sessions, at most one point."""
    return Weighted({reward_model: 1.0, Diversity(catalog): 1.0})
