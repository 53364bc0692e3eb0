"""Preference methods on pairs without a reference: CPO, SimPO, ORPO. Nothing keeps the model near its former state.

l(y) is the log-probability of a session under the model, over all codes, and l̄(y) its mean over the session's codes. w
is preferred to l. TRL's trainers of CPO and ORPO accept only texts, so these losses are written here, on the forward
pass of DPO's trainer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from feedgym.agents.alignment.contrasts import Opinions, UpdateConfig
from feedgym.agents.alignment.pairs import PairingConfig
from feedgym.agents.alignment.preference import PreferenceMethod
from feedgym.ranges import NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class CPOConfig(UpdateConfig):
    """Options of contrastive preference optimisation."""

    beta: Positive = 0.1
    """Scale of the difference of the sessions' log-probabilities."""
    nll_weight: NonNegative = 1.0
    """Weight of imitating the preferred session, mean over codes: the paper's other half, and TRL's alpha."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""


@dataclass(frozen=True, kw_only=True)
class SimPOConfig(UpdateConfig):
    """Options of simple preference optimisation."""

    beta: Positive = 2.0
    """Scale of the difference of mean log-probabilities per code; equals a beta for sums times the codes of a
    session."""
    gamma_ratio: NonNegative = 0.5
    """Margin in mean log-probability per code, in nats, that the preferred session should have: the paper's
    gamma/beta."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""


@dataclass(frozen=True, kw_only=True)
class ORPOConfig(UpdateConfig):
    """Options of odds-ratio preference optimisation."""

    odds_weight: Positive = 0.1
    """Weight of the odds ratio relative to imitating the preferred session: the paper's lambda, and TRL's beta."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""


class CPO(PreferenceMethod):
    """CPO (arXiv:2401.08417): -log σ(β(l_w - l_l)) + nll_weight · (-l̄_w), with a uniform reference.

    Deviations: the imitation is a mean over the session's codes, as in TRL and the authors' code; the paper uses sums.
    """

    title = "CPO"
    Config = CPOConfig

    def rewards(self, opinions: Opinions) -> Tensor:
        """Beta times the log-probability."""
        return self.config.beta * opinions.logp_SP

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss in the class's docstring."""
        return -F.logsigmoid(self.margin(opinions)) - self.config.nll_weight * opinions.mean_SP[0]


class SimPO(PreferenceMethod):
    """SimPO (arXiv:2405.14734, eq. 6): -log σ(β(l̄_w - l̄_l) - γ), with γ = gamma_ratio · β."""

    title = "SimPO"
    Config = SimPOConfig

    def rewards(self, opinions: Opinions) -> Tensor:
        """Beta times the mean log-probability."""
        return self.config.beta * opinions.mean_SP

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss in the class's docstring."""
        return -F.logsigmoid(self.margin(opinions) - self.config.gamma_ratio * self.config.beta)


class ORPO(PreferenceMethod):
    """ORPO (arXiv:2403.07691, eq. 6 and 7): -l̄_w - odds_weight · log σ(log odds_w - log odds_l).

    The odds of a session are p̄/(1 - p̄) with p̄ = exp(l̄), the geometric mean of its codes' probabilities.
    """

    title = "ORPO"
    Config = ORPOConfig

    def rewards(self, opinions: Opinions) -> Tensor:
        """The log odds."""
        return opinions.mean_SP - log1mexp(opinions.mean_SP)

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss in the class's docstring."""
        return -opinions.mean_SP[0] - self.config.odds_weight * F.logsigmoid(self.margin(opinions))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0 to full precision (Mächler 2012); finite at 0, where probabilities round to 1."""
    x = x.clamp_max(-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # Both branches get valid arguments, because gradients also flow through the one that is not chosen.
    return torch.where(near, (-x.where(near, x.new_tensor(-1.0)).expm1()).log(), (-x.exp()).log1p())
