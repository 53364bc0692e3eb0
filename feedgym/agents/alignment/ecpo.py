"""OneRec's policy gradients, which bound the push away from bad sessions: ECPO and GBPO.

:mod:`feedgym.agents.alignment.policy_gradient` has their common part and its deviations from the papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from feedgym.agents.alignment.groups import labelled, standardised
from feedgym.agents.alignment.policy_gradient import (
    Level,
    Logps,
    PolicyGradient,
    PolicyGradientConfig,
    at_level,
    clipped,
    mean_of_session,
    ratio_figures,
)
from feedgym.ranges import CountOrZero, NonNegative, SplitShare, check_choices


@dataclass(frozen=True, kw_only=True)
class ECPOConfig(PolicyGradientConfig):
    """Options of ECPO."""

    epsilon: SplitShare = 0.5
    """Ratios are clipped to 1 - epsilon and 1 + epsilon."""
    delta: NonNegative = 0.1
    """Keeps the ratio of a bad session below 1 + epsilon + delta, and with it the push downwards."""
    level: Level = "item"
    """Unit of the ratios: each code, each item, or the session. In the paper a session is one item."""
    format_samples: CountOrZero = 0
    """The paper's format reward: this many random sessions of each group get an additional advantage of 1. The sampler
    serves only items, so all sessions are legal; the reward teaches the model not to need the trie."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, level=Level)
        if self.format_samples > self.group_size:
            raise ValueError(
                f"format_samples={self.format_samples} exceeds group_size={self.group_size}; lower format_samples."
            )


class ECPO(PolicyGradient):
    """Early-clipped GRPO (OneRec's technical report, arXiv:2506.13695, §4.2), with a bounded push away from bad ones.

    pi'_old = max(sg(pi) / (1 + epsilon + delta), pi_old). It has no KL term, because it is trained together with
    next-token prediction.
    """

    title = "ECPO"
    Config = ECPOConfig
    config: ECPOConfig

    def _advantage(self, score_UG: Tensor, before: Logps) -> Tensor:
        return standardised(score_UG)

    def _losses(
        self, logp_BGKL: Tensor, old_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        epsilon, level = self.config.epsilon, self.config.level
        logp, old = at_level(logp_BGKL, level), at_level(old_BGKL, level)
        early = torch.maximum(logp.detach() - math.log(1 + epsilon + self.config.delta), old)
        loss, figures = clipped(logp - early, columns["advantage_UG"], mask_BGKL, epsilon, epsilon)
        loss_BG = mean_of_session(loss, mask_BGKL)
        if num := self.config.format_samples:  # the order of a group is random
            legal = torch.ones_like(loss_BG)
            legal[:, num:] = 0.0
            loss_BG = loss_BG + mean_of_session(clipped(logp - early, legal, mask_BGKL, epsilon, epsilon)[0], mask_BGKL)
        return loss_BG, figures


@dataclass(frozen=True, kw_only=True)
class GBPOConfig(PolicyGradientConfig):
    """Options of GBPO."""

    top_share: SplitShare = 0.25
    """Share of a group that counts as good, with advantage 1; at least one session."""
    bottom_share: SplitShare = 0.25
    """Share of a group that counts as bad, with advantage -1; at least one session."""
    level: Level = "code"
    """Unit of the ratios: each code, each item, or the session."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, level=Level)
        if self.top_share + self.bottom_share > 1:
            raise ValueError(
                f"top_share={self.top_share} and bottom_share={self.bottom_share} add up to more than 1; lower one."
            )


class GBPO(PolicyGradient):
    """Gradient-bounded policy optimisation (OneRec-V2, arXiv:2508.20900, §4): no sample is clipped away.

    pi'_old = max(pi_old, sg(pi)) for good sessions, max(pi_old, 1 - sg(pi)) for bad ones. So their gradient is at most
    that of -log(1 - pi), a classifier's. Labels are relative to the user's own group, because rewards differ in size
    between users. The paper labels the best quarter of a batch by the share of the duration that was played, and
    disliked ones.
    """

    title = "GBPO"
    Config = GBPOConfig
    config: GBPOConfig

    def _advantage(self, score_UG: Tensor, before: Logps) -> Tensor:
        return labelled(score_UG, self.config.top_share, self.config.bottom_share)

    def _losses(
        self, logp_BGKL: Tensor, old_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logp, old = (at_level(value, self.config.level) for value in (logp_BGKL, old_BGKL))
        advantage = columns["advantage_UG"][..., None, None]
        now = logp.detach()
        bound = torch.where(advantage >= 0, now, log1mexp(now))
        weight = (logp - torch.maximum(old, bound)).exp()
        cut = (bound > old) & (advantage != 0)
        figures = ratio_figures((logp - old).exp(), cut, mask_BGKL)
        return mean_of_session(-weight * advantage, mask_BGKL), figures


def log1mexp(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) of log-probabilities; -inf at 0."""
    return torch.where(logp > -math.log(2), (-torch.expm1(logp)).log(), torch.log1p(-logp.exp()))
