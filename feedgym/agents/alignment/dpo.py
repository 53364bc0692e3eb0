"""DPO on pairs of sessions (arXiv:2305.18290), and IPA, OneRec's iterated form of it (arXiv:2502.18965, §3.3).

The loss of a pair, w preferred to l, is -log σ(β (ρ_w - ρ_l)). Here ρ = log π(y|x) - log π_ref(y|x) is the gain over
the reference, a sum over the session's codes. The losses are TRL's; the rest is in
:mod:`feedgym.agents.alignment.trainer`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from feedgym.agents.alignment.contrasts import Contrasts, UpdateConfig
from feedgym.agents.alignment.pairs import Choice, PairingConfig, choose_pairs
from feedgym.agents.alignment.preference import PreferenceMethod, ReferencedMethod
from feedgym.agents.alignment.trainer import run_round
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import EventBatch, Preferences, ScoredSessions
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import NonNegative, Positive, check_choices

LossType = Literal["sigmoid", "hinge", "sigmoid_norm", "nca_pair"]


@dataclass(frozen=True, kw_only=True)
class IPAConfig(UpdateConfig):
    """Iterated DPO as in OneRec. ``preference_weight`` over ``ntp_weight`` is the paper's λ."""

    beta: Positive = 0.1
    """Strength of the pull towards the reference: the scale of the implicit rewards."""
    margin: NonNegative = 0.0
    """Pairs whose scores differ by less than this are skipped."""


@dataclass(frozen=True, kw_only=True)
class DPORoundConfig(UpdateConfig):
    """Direct preference optimisation."""

    beta: Positive = 0.1
    """Strength of the pull towards the reference: the scale of the implicit rewards. With sigmoid_norm, which averages
    over a session's codes, it should be larger by the number of codes per session."""
    loss_type: LossType = "sigmoid"
    """TRL's name of the loss: sigmoid is DPO itself; hinge (SLiC); sigmoid_norm, on means over codes; nca_pair, which
    also holds the preferred session's probability up."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, loss_type=LossType)


class IPA(PreferenceMethod):
    """Iterative preference alignment: the best of each user's sessions against the worst (OneRec, Algorithm 2).

    L = ntp_weight L_NTP + preference_weight L_DPO. The reference is always the round's own snapshot; :class:`DPO` can
    use another one, and more pairs.
    """

    title = "IPA"
    Config = IPAConfig

    def choose(self, sampled: ScoredSessions, generator: torch.Generator) -> Choice:
        """The best session against the worst."""
        return choose_pairs(sampled, PairingConfig(margin=self.config.margin), generator)

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's sigmoid."""
        return {"loss_type": ["sigmoid"], "beta": self.config.beta}


class DPO(ReferencedMethod):
    """Direct preference optimisation (arXiv:2305.18290), and those of its relatives that have no class of their own.

    Let ρ be the gain over the reference. The sigmoid loss is -log σ(β(ρ_w - ρ_l)), and hinge is
    max(0, 1 - β(ρ_w - ρ_l)) (SLiC, arXiv:2305.10425). The loss sigmoid_norm is sigmoid with means over codes. nca_pair
    is -log σ(βρ_w) - ½ log σ(-βρ_w) - ½ log σ(-βρ_l) (arXiv:2402.05369).
    """

    title = "DPO"
    Config = DPORoundConfig

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's loss of that name."""
        return {"loss_type": [self.config.loss_type], "beta": self.config.beta}


def dpo_round(
    model: GenerativeAgent,
    histories: EventBatch,
    preferences: Preferences,
    config: DPORoundConfig,
    output_dir: Path | str,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train ``model`` in place by DPO on a round's pairs, with its state before as the reference.

    Args:
        model: the snapshot the pairs were sampled from.
        histories: P histories of the pairs' users.
        preferences: the pairs.
        config: how to train.
        output_dir: gets the reference and checkpoints; see :func:`feedgym.agents.alignment.trainer.run_round`.
        progress: called after each step.

    Returns:
        The figures of :func:`feedgym.agents.alignment.trainer.run_round`; ``first_loss`` is ln 2 for the loss sigmoid.

    Raises:
        ValueError: there are no pairs, the pairs do not match the histories, or sessions are too long for the model.
    """
    contrasts = paired(model, histories, preferences)
    return run_round(DPO(config), model, contrasts, output_dir, progress)


def paired(model: GenerativeAgent, histories: EventBatch, preferences: Preferences) -> Contrasts:
    """Turns pairs into contrasts, which a trainer learns from."""
    longest = max(preferences.chosen_PK.shape[1], preferences.rejected_PK.shape[1])
    sides = [
        torch.nn.functional.pad(ids, (0, longest - ids.shape[1]), value=-1)
        for ids in (preferences.chosen_PK, preferences.rejected_PK)
    ]
    return Contrasts(model, histories, torch.stack(sides, dim=1), preferences.logged_PK)
