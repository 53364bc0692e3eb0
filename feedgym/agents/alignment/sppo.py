"""SPPO: each session's gain over the reference has a target set by how often it would win (arXiv:2405.00675)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from feedgym.agents.alignment.contrasts import Opinions, UpdateConfig
from feedgym.agents.alignment.pairs import Choice, PairingConfig, Unit, prob_of_winning
from feedgym.agents.alignment.preference import ReferencedMethod
from feedgym.data.batches import ScoredSessions
from feedgym.ranges import Positive, check_choices

Labels = Literal["hard", "soft"]


@dataclass(frozen=True, kw_only=True)
class SPPOConfig(UpdateConfig):
    """Options of self-play preference optimisation."""

    preference_weight: Positive = 0.01
    """Weight of the method's own loss, a sum of squared nats; at the default target its first gradient is then about
    that of DPO."""
    target: Positive = 2.0
    """Gain over the reference, in nats, that is the target of a session which always wins; one that never wins has its
    negative. Half the paper's eta, 1/(2 beta) in TRL."""
    labels: Labels = "hard"
    """hard: the better session of a pair always wins and the worse never does. soft: each wins as often as its score
    says, against all sessions of its user."""
    score_unit: Unit = "score"
    """Unit of the differences in score for soft labels. A session wins with the probability sigmoid(difference), in
    scores or in standard deviations of the user's own scores (spread)."""
    pairing: PairingConfig = field(default_factory=PairingConfig)
    """Rule for pairing sessions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, labels=Labels, score_unit=Unit)
        if self.score_unit != "score" and self.labels == "hard":
            raise ValueError(
                f"score_unit={self.score_unit!r} has no effect on labels='hard'; choose soft or leave it out."
            )


class SPPO(ReferencedMethod):
    """Self-play preference optimisation (arXiv:2405.00675, eq. 4.7): a sum of squares over the two sessions.

    Σ (ρ_y - target · (2 P(y) - 1))², with the gain ρ over the reference and P(y) the probability that y beats the
    policy. Hard labels are 1 and 0, by TRL's ``sppo_hard``. Soft ones are the mean over the user's S sampled sessions
    of σ(r_y - r_y'), where r are the scores. Implicit rewards, and so ``margin``, are gains in units of twice the
    target: hard labels aim at a margin of 1.

    Deviations: P comes from the reward's scores, not from a preference model; the authors halve the sum, TRL does not.
    """

    title = "SPPO"
    Config = SPPOConfig

    def prob_win(self, sampled: ScoredSessions, choice: Choice) -> Tensor | None:
        """The soft labels."""
        if self.config.labels == "hard":
            return None
        return prob_of_winning(sampled, choice, self.config.score_unit)

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's loss sppo_hard."""
        if self.config.labels == "soft":
            return {}
        return {"loss_type": ["sppo_hard"], "beta": 1 / (2 * self.config.target)}

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss in the class's docstring, for soft labels."""
        assert opinions.prob_win_SP is not None
        target_SP = self.config.target * (2 * opinions.prob_win_SP - 1)
        return (opinions.gain_SP - target_SP).square().sum(0)

    def rewards(self, opinions: Opinions) -> Tensor:
        """Gains in units of twice the target."""
        return opinions.gain_SP / (2 * self.config.target)
