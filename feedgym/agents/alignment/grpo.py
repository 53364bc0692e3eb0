"""Policy gradients that compare a user's sessions with each other: GRPO, Dr. GRPO and RLOO.

:mod:`feedgym.agents.alignment.policy_gradient` has their common part and its deviations from the papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from feedgym.agents.alignment.groups import centred, leave_one_out, standardised
from feedgym.agents.alignment.policy_gradient import (
    Logps,
    PolicyGradient,
    PolicyGradientConfig,
    at_level,
    clipped,
    k3,
    mean_of_session,
)
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import Histories, ScoredParts, ScoredSessions
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import NonNegative, Positive, SplitShare


@dataclass(frozen=True, kw_only=True)
class ClippedConfig(PolicyGradientConfig):
    """Options of policy gradients with clipped ratios."""

    epsilon: SplitShare = 0.5
    """A ratio below 1 - epsilon no longer lowers a session's probability; the papers use 0.2."""
    epsilon_high: Positive = 1.0
    """A ratio above 1 + epsilon_high no longer raises it; GRPO uses 0.2, DAPO 0.28."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(ClippedConfig):
    """Options of GRPO."""

    beta: NonNegative = 0.04
    """Weight of the KL divergence from the reference, per code."""
    scale_by_spread: bool = True
    """Divide advantages by the group's standard deviation, as the paper does. Users whose sessions hardly differ then
    weigh as much as others."""


class GRPO(PolicyGradient):
    """Group relative policy optimisation (DeepSeekMath, arXiv:2402.03300, equations 3 and 4)."""

    title = "GRPO"
    Config = GRPOConfig
    config: GRPOConfig

    def update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
        reference: Any = None,
    ) -> dict[str, float]:
        """Update as in :meth:`PolicyGradient.update`; the divergence from ``reference`` is part of the loss."""
        if reference is not None and not self.config.beta:
            raise ValueError("beta=0 leaves the reference unused; raise beta, or let the snapshot be the reference.")
        return self._update(model, histories, sampled, logged_UK, work, progress, reference)

    def _advantage(self, score_UG: Tensor, before: Logps) -> Tensor:
        return standardised(score_UG) if self.config.scale_by_spread else centred(score_UG)

    def _losses(
        self, logp_BGKL: Tensor, old_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        loss_BGKL, figures = clipped(
            logp_BGKL - old_BGKL, columns["advantage_UG"], mask_BGKL, config.epsilon, config.epsilon_high
        )
        loss_BGKL = loss_BGKL + config.beta * k3(logp_BGKL, columns.get("reference_UGKL", old_BGKL))
        return mean_of_session(loss_BGKL, mask_BGKL), figures


@dataclass(frozen=True, kw_only=True)
class DrGRPOConfig(ClippedConfig):
    """Options of Dr. GRPO."""

    policy_weight: Positive = 10.0
    """Weight of the method's own loss, a mean over codes with advantages in units of the reward."""


class DrGRPO(PolicyGradient):
    """GRPO done right (arXiv:2503.20783): no standard deviation, a constant instead of a session's length, no KL."""

    title = "Dr. GRPO"
    Config = DrGRPOConfig
    config: DrGRPOConfig

    def _advantage(self, score_UG: Tensor, before: Logps) -> Tensor:
        return centred(score_UG)

    def _losses(
        self, logp_BGKL: Tensor, old_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss_BGKL, figures = clipped(
            logp_BGKL - old_BGKL, columns["advantage_UG"], mask_BGKL, self.config.epsilon, self.config.epsilon_high
        )
        return (loss_BGKL * mask_BGKL).sum((2, 3)) / mask_BGKL[0, 0].numel(), figures


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(ClippedConfig):
    """Options of RLOO."""

    policy_weight: Positive = 1.0
    """Weight of the method's own loss, a sum over codes with advantages in units of the reward."""
    epsilon: SplitShare = 0.8
    """A session's ratio below 1 - epsilon no longer lowers its probability; TRL uses 0.2."""
    epsilon_high: Positive = 4.0
    """A session's ratio above 1 + epsilon_high no longer raises its probability; TRL uses 0.2."""
    beta: NonNegative = 0.0
    """Cost of a nat of divergence from the reference, in units of the reward; it is subtracted from the session's
    reward. At the snapshot the divergence is 0, so this needs rounds.reference='base'."""


class RLOO(PolicyGradient):
    """REINFORCE with the mean of the user's other sessions as baseline (arXiv:2402.14740, §2.2), clipped as TRL does.

    The ratio is that of a session, and so is the divergence from the reference, which is subtracted from the reward.
    Advantages are in units of the reward, and the loss is a sum over the many codes of a session, not a mean.
    """

    title = "RLOO"
    Config = RLOOConfig
    config: RLOOConfig

    def update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
        reference: Any = None,
    ) -> dict[str, float]:
        """Update as in :meth:`PolicyGradient.update`; the divergence from ``reference`` is part of the reward."""
        if (reference is not None) != (self.config.beta > 0):
            raise ValueError(
                f"beta={self.config.beta} charges for leaving a reference other than the snapshot; set both beta and "
                "rounds.reference='base', or neither."
            )
        return self._update(model, histories, sampled, logged_UK, work, progress, reference)

    def _advantage(self, score_UG: Tensor, before: Logps) -> Tensor:
        if before.reference_UGKL is None:
            return leave_one_out(score_UG)
        gained_UG = (before.old_UGKL - before.reference_UGKL).sum((2, 3))
        return leave_one_out(score_UG - self.config.beta * gained_UG)

    def _losses(
        self, logp_BGKL: Tensor, old_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        gap = at_level(logp_BGKL - old_BGKL, "session")
        loss, figures = clipped(gap, columns["advantage_UG"], mask_BGKL, self.config.epsilon, self.config.epsilon_high)
        return loss.sum((2, 3)), figures
