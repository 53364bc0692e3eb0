"""OneRec's policy gradients, which bound the push on bad sessions: ECPO and GBPO.

See :mod:`feedgym.agents.alignment.policy_gradient` for what they share, and where that leaves the papers.
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
    """ECPO."""

    epsilon: SplitShare = 0.5
    """Ratios are clipped to 1 - epsilon and 1 + epsilon."""
    delta: NonNegative = 0.1
    """The ratio of a bad session stays below 1 + epsilon + delta, and with it the push downwards."""
    level: Level = "item"
    """What has a ratio: each code, each item, or the session. The paper's sessions are one item."""
    format_samples: CountOrZero = 0
    """The paper's format reward: this many sessions of each group, at random, have a further advantage of 1. The
    sampler serves nothing but items, so all of them are legal; what it teaches is not to need the trie."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, level=Level)
        if self.format_samples > self.group_size:
            raise ValueError(
                f"format_samples={self.format_samples} exceeds group_size={self.group_size}; lower it or raise that."
            )


class ECPO(PolicyGradient):
    """Early-clipped GRPO (OneRec's technical report, arXiv:2506.13695, §4.2): bounds the push on bad sessions.

    pi'_old = max(sg(pi) / (1 + epsilon + delta), pi_old). No KL: it is trained together with next-token prediction.
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
    """GBPO."""

    top_share: SplitShare = 0.25
    """Share of a group that is good: an advantage of 1. At least one session."""
    bottom_share: SplitShare = 0.25
    """Share of a group that is bad: an advantage of -1. At least one session."""
    level: Level = "code"
    """What has a ratio: each code, each item, or the session."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, level=Level)
        if self.top_share + self.bottom_share > 1:
            raise ValueError(
                f"top_share={self.top_share} and bottom_share={self.bottom_share} are more than a group; lower one."
            )


class GBPO(PolicyGradient):
    """Gradient-bounded policy optimisation (OneRec-V2, arXiv:2508.20900, §4): no sample is clipped away.

    pi'_old = max(pi_old, sg(pi)) of good sessions, max(pi_old, 1 - sg(pi)) of bad ones: their gradient is at most that
    of -log(1 - pi), a classifier's. Labels are of the user's own group (the paper: the best quarter of a batch by how
    much of the duration was played, and disliked ones), for here rewards of different users are of different size.
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
