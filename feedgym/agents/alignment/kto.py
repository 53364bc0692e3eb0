"""KTO: learns from good and bad sessions that are not paired (arXiv:2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Interval
from torch import Generator

from feedgym.agents.alignment.contrasts import UpdateConfig
from feedgym.agents.alignment.pairs import Choice, GradingConfig, choose_grades
from feedgym.agents.alignment.preference import ReferencedMethod
from feedgym.data.batches import ScoredSessions
from feedgym.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class KTOConfig(UpdateConfig):
    """Options of Kahneman-Tversky optimisation."""

    preference_weight: Positive = 4.0
    """Weight of the method's own loss, a mean over sessions; at 4 its first gradient equals that of DPO."""
    beta: Positive = 0.1
    """Strength of the pull towards the reference: the scale of the implicit rewards."""
    good_weight: Positive = 1.0
    """Weight of a good session; the paper recommends good_weight x good between 1 and 4/3 of bad_weight x bad."""
    bad_weight: Positive = 1.0
    """Weight of a bad session."""
    batch_size: Annotated[int, Interval(ge=2, le=10**9)] = 16
    """Users per step and device, each with all their sessions. The mean gain of mismatched sessions is taken over them,
    and is noisy if they are few."""
    graded: GradingConfig = field(default_factory=GradingConfig)
    """Rule for the sessions that count as good and as bad."""


class KTO(ReferencedMethod):
    """Kahneman-Tversky optimisation (arXiv:2402.01306, eq. 7), by TRL's KTOTrainer.

    The loss is a mean over sessions. A good one counts good_weight (1 - σ(β(ρ - z))), a bad one bad_weight
    (1 - σ(β(z - ρ))). Here ρ is the gain over the reference, and z = max(0, mean gain of mismatched sessions), without
    gradient. A session is good or bad relative to its own user's sessions. Log-probabilities are the model's own, over
    all codes.

    Deviations: mismatched sessions are those of the round's next user, the same in each pass, so that the reference
    scores them once. TRL takes the next row of a batch, which here might belong to the same user.
    """

    title = "KTO"
    Config = KTOConfig
    trainer = "KTOTrainer"

    @property
    def num_chosen(self) -> int:
        """The number of good sessions."""
        return self.config.graded.good

    def choose(self, sampled: ScoredSessions, generator: Generator) -> Choice:
        """Good and bad sessions of each user."""
        return choose_grades(sampled, self.config.graded)

    def of_trl(self, num_codes: int) -> dict[str, Any]:
        """TRL's loss kto."""
        config = self.config
        weights = {"desirable_weight": config.good_weight, "undesirable_weight": config.bad_weight}
        return {"loss_type": "kto", "beta": config.beta, **weights}
