"""S-DPO: the best session against several worse ones at once (arXiv:2406.09215)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Generator, Tensor

from feedgym.agents.alignment.contrasts import Opinions, UpdateConfig
from feedgym.agents.alignment.pairs import Choice, ListingConfig, choose_lists
from feedgym.agents.alignment.preference import ReferencedMethod
from feedgym.data.batches import ScoredSessions
from feedgym.ranges import Positive


@dataclass(frozen=True, kw_only=True)
class SDPOConfig(UpdateConfig):
    """Options of softmax DPO."""

    beta: Positive = 0.1
    """Strength of the pull towards the reference: the scale of the implicit rewards. With large values only the hardest
    rejected session counts."""
    rejected: ListingConfig = field(default_factory=ListingConfig)
    """Sessions that the best one is compared with."""


class SDPO(ReferencedMethod):
    """Softmax DPO (arXiv:2406.09215, eq. 12): log(1 + Σ_l exp(β(ρ_l - ρ_w))).

    With the gain ρ over the reference, it is the cross-entropy of the best session in softmax(βρ) over it and R worse
    ones. With R = 1 it is DPO; it starts at log(1 + R). Log-probabilities are the model's own, over all codes.

    Deviations: the rejected sessions are sampled from the model and have a lower reward; the paper's are random items.
    """

    title = "S-DPO"
    Config = SDPOConfig

    def choose(self, sampled: ScoredSessions, generator: Generator) -> Choice:
        """One session and several worse ones."""
        return choose_lists(sampled, self.config.rejected, generator)

    def loss(self, opinions: Opinions) -> Tensor:
        """The loss in the class's docstring."""
        return -self.rewards(opinions).log_softmax(0)[0]
