"""Relatives of DPO on pairs of sessions, with a reference: IPO, cDPO, rDPO, APO.

ρ = log π(y|x) - log π_ref(y|x), summed over a session's codes, is a session's gain over the reference. w is preferred
to l. The log-probabilities are the model's own, over all codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from feedgym.agents.alignment.contrasts import Opinions, UpdateConfig
from feedgym.agents.alignment.pairs import PairingConfig
from feedgym.agents.alignment.preference import ReferencedMethod
from feedgym.ranges import Positive, check_choices

FlipShare = Annotated[float, Interval(gt=0, lt=0.5)]
"""Probability that a pair is the wrong way round."""
APOKind = Literal["zero", "down"]


@dataclass(frozen=True, kw_only=True)
class IPOConfig(UpdateConfig):
    """Options of identity preference optimisation."""

    gap: Positive = 4.0
    """Target in nats for the preferred session's gain over the reference minus that of the other session: the paper's
    1/(2 tau)."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""


@dataclass(frozen=True, kw_only=True)
class SmoothedConfig(UpdateConfig):
    """Options of DPO for preferences that may be the wrong way round."""

    beta: Positive = 0.1
    """Strength of the pull towards the reference: the scale of the implicit rewards."""
    label_smoothing: FlipShare = 0.1
    """Probability that a pair is the wrong way round, below 0.5."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""


@dataclass(frozen=True, kw_only=True)
class APOConfig(UpdateConfig):
    """Options of anchored preference optimisation."""

    preference_weight: Positive = 2.0
    """Weight of the method's own loss; at 2 its first gradient equals that of DPO."""
    kind: APOKind = "zero"
    """zero raises the preferred session and lowers the other. down lowers both, the other one more, for a model that is
    better than its training data."""
    beta: Positive = 0.1
    """Strength of the pull towards the reference: the scale of the implicit rewards."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, kind=APOKind)


class IPO(ReferencedMethod):
    """IPO: the difference of gains has a finite target (arXiv:2310.12036, eq. 17), by TRL's loss.

    (ρ_w/n_w - ρ_l/n_l - gap/n)² with n_w, n_l codes of the two sessions and n of the longest. For sessions of equal
    length this is (ρ_w - ρ_l - gap)²/n². Implicit rewards, and so ``margin``, are gains in units of twice the gap: the
    target is a margin of ½.

    Deviations: the paper sums over codes. TRL takes means, as the paper's authors advised its developers, so its beta
    is n/(2 gap) here.
    """

    title = "IPO"
    Config = IPOConfig

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's loss ipo, whose target is a gap of means."""
        return {"loss_type": ["ipo"], "beta": num_codes / (2 * self.config.gap)}

    def rewards(self, opinions: Opinions) -> Tensor:
        """Gains in units of twice the gap."""
        return opinions.gain_SP / (2 * self.config.gap)


class CDPO(ReferencedMethod):
    """Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"): preferences may be wrong.

    -(1-ε) log σ(β(ρ_w - ρ_l)) - ε log σ(-β(ρ_w - ρ_l)), with its minimum at β(ρ_w - ρ_l) = log((1-ε)/ε). TRL does not
    have this loss; its ``robust`` is :class:`RDPO`.
    """

    title = "cDPO"
    Config = SmoothedConfig

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss in the class's docstring."""
        margin_P, flip = self.margin(opinions), self.config.label_smoothing
        return -(1 - flip) * F.logsigmoid(margin_P) - flip * F.logsigmoid(-margin_P)


class RDPO(ReferencedMethod):
    """Robust DPO (arXiv:2403.00409): unbiased for preferences that are wrong with probability ε, by TRL's loss.

    [-(1-ε) log σ(β(ρ_w - ρ_l)) + ε log σ(-β(ρ_w - ρ_l))] / (1 - 2ε), which has no lower bound.
    """

    title = "rDPO"
    Config = SmoothedConfig

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's loss robust."""
        config = self.config
        return {"loss_type": ["robust"], "beta": config.beta, "label_smoothing": config.label_smoothing}


class APO(ReferencedMethod):
    """Anchored preference optimisation (arXiv:2408.06266, eq. 7 and 8), by TRL's losses.

    zero: 1 - σ(βρ_w) + σ(βρ_l). down: σ(βρ_w) + 1 - σ(β(ρ_w - ρ_l)).
    """

    title = "APO"
    Config = APOConfig

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's loss apo_zero or apo_down."""
        return {"loss_type": [f"apo_{self.config.kind}"], "beta": self.config.beta}
