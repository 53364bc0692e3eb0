"""Options of a session reward model and its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from feedgym.ranges import (
    BelowOne,
    Count,
    CountOrZero,
    Few,
    LearningRate,
    NonNegative,
    PartPasses,
    Positive,
    Ranged,
    Seed,
    SomeSeconds,
    Width,
    check_choices,
    check_divides,
)

Backbone = Literal["attention", "genrank", "hstu-rank", "mtgr"]


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(Ranged):
    """The session reward model and its training."""

    width: Width = 64
    """D, width of the model."""
    heads: Few = 4
    """Attention heads; divides width."""
    layers: Few = 1
    """Self-attention layers inside the session."""
    backbone: Backbone = "attention"
    """Network that combines an item with the user's history: attention (one layer of target attention, as in OneRec),
    or a whole ranker without its head. Rankers are genrank, hstu-rank and mtgr. The session's items are combined
    afterwards."""
    backbone_layers: Few = 2
    """Layers of that ranker; attention has one."""
    dropout: BelowOne = 0.0
    """Dropout inside the network."""
    id_dropout: BelowOne = 0.2
    """Share of item-id embeddings to drop in training, so that the content decides about rare items."""
    watch_cap_s: SomeSeconds = 300.0
    """Seconds watched of one item that count as a full label; longer times are clipped."""
    max_weight: Positive = 1.0
    """Clip of the inverse propensity weights that correct the log's preferences, if it has propensities; 1 uses the log
    uncorrected."""
    imputed: CountOrZero = 0
    """Number of random sessions per logged one, with responses imputed by models of the other half of the users. This
    is doubly robust training, unbiased if either these models or the propensities are right. It needs max_weight."""
    p_score: bool = False
    """Predict one learned score (P-Score of OneRec's technical report). Each tower has its own hidden layer, and a
    network over all of these learns all signs of liking jointly. The score is not a sum with the reward's weights."""
    members: Few = 1
    """M, models of an ensemble, trained in one pass over the sessions from different initial weights. The score is
    their mean; --reward worst_case or cautious use their spread."""
    resample: bool = True
    """Train each member on a resample of the users, drawn with replacement; otherwise all learn from the same users."""
    shared_start: BelowOne = 0.0
    """Share of the training for which the members are one model. Then they separate, and their weights are averaged at
    the end, which gives one model at the cost of one (WARM, arXiv:2401.12187). 0 keeps them separate."""
    lr: LearningRate = 5e-3
    """Peak learning rate of AdamW, warmed up and decayed by a cosine."""
    weight_decay: NonNegative = 0.01
    """AdamW's decay of matrices and embeddings."""
    batch_size: Count = 256
    """Sessions per step and device."""
    epochs: PartPasses = 2.0
    """Passes over the logged sessions."""
    checkpoint_steps: Count = 500
    """Steps between checkpoints."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the sessions and dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, backbone=Backbone)
        check_divides(self, "heads", "width")
        if self.backbone == "attention" and self.backbone_layers != RewardModelConfig.backbone_layers:
            raise ValueError(
                f"backbone_layers={self.backbone_layers} does nothing for backbone='attention', which has one layer; "
                "choose a ranker, or leave it out."
            )
        if self.imputed and self.max_weight <= 1:
            raise ValueError(
                f"imputed={self.imputed} complements inverse propensity weights, and max_weight="
                f"{self.max_weight:g} turns these off; set max_weight above 1, such as 10."
            )
        if self.imputed and self.p_score:
            raise ValueError("p_score learns from logged responses, not from imputed ones; choose one of the two.")
        if self.members == 1 and not (self.resample and self.shared_start == 0):
            raise ValueError("resample and shared_start need several members; set members too, or leave them out.")

    @property
    def is_ensemble(self) -> bool:
        """Whether it has several separate models."""
        return self.members > 1 and not self.shared_start
