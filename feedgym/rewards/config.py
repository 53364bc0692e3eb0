"""What a session reward model is and how it is trained."""

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
    """How an item meets the user's history: attention (one layer of target attention, as in OneRec), or a whole ranker
    without its head: genrank, hstu-rank or mtgr. The items of the session meet each other afterwards."""
    backbone_layers: Few = 2
    """Layers of that ranker; attention has one."""
    dropout: BelowOne = 0.0
    """Dropout inside the network."""
    id_dropout: BelowOne = 0.2
    """Share of item-id embeddings left out in training, so that content speaks for rare items."""
    watch_cap_s: SomeSeconds = 300.0
    """Seconds watched of one item that count as a full label; more is clipped."""
    max_weight: Positive = 1.0
    """Clip of the inverse propensity weights by which the log's favouritism is undone, where it has propensities; 1
    takes the log at face value."""
    imputed: CountOrZero = 0
    """Sessions drawn at random beside each logged one, whose answers models of the other half of the users impute:
    doubly robust training, unbiased where either these models or the propensities are right. It needs max_weight."""
    p_score: bool = False
    """Score by one learned score (P-Score of OneRec's technical report): each tower has a hidden layer of its own, and
    a network over all of these learns every sign of liking at once. It is no sum with the reward's weights."""
    members: Few = 1
    """M, models of an ensemble, trained in one pass over the sessions; each starts at weights of its own. It scores by
    their mean; --reward worst_case or cautious look at how far they are apart."""
    resample: bool = True
    """Let each member learn from a resample of the users, drawn with replacement; otherwise from all alike."""
    shared_start: BelowOne = 0.0
    """Above 0 the members are one model for this share of the training. Then they part, and their weights are averaged
    in the end: one model that costs no more than one to ask (WARM, arXiv:2401.12187). 0 keeps them apart."""
    lr: LearningRate = 5e-3
    """Peak learning rate of AdamW, warmed up and decayed by a cosine."""
    weight_decay: NonNegative = 0.01
    """AdamW's decay of matrices and embeddings."""
    batch_size: Count = 256
    """Sessions a step and device."""
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
                f"backbone_layers={self.backbone_layers} does nothing where backbone='attention', which has one layer; "
                "choose a ranker, or leave it out."
            )
        if self.imputed and self.max_weight <= 1:
            raise ValueError(
                f"imputed={self.imputed} corrects what inverse propensity weights leave open, and max_weight="
                f"{self.max_weight:g} turns these off; set max_weight above 1, such as 10."
            )
        if self.imputed and self.p_score:
            raise ValueError("p_score learns from logged answers and not from imputed ones; choose one of the two.")
        if self.members == 1 and not (self.resample and self.shared_start == 0):
            raise ValueError("resample and shared_start are about several members; set members too, or leave them out.")

    @property
    def is_ensemble(self) -> bool:
        """Whether there are several opinions of a session."""
        return self.members > 1 and not self.shared_start
