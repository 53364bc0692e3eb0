"""Uses a ranker in the reward model: it reads the history, and scores every item of a session against it.

The ranker (:mod:`feedgym.agents.ranker`) is used without its head: a candidate's vector replaces the output of target
attention. Items of a session are candidates of one request, so the ranker sees each of them alone. The effect of
earlier items is learned by the session's own layers above, and the whole is trained jointly. A history is read once per
user, whatever the number of sessions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from feedgym import plugins
from feedgym.agents.ranker import Ranker
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.ranking import RankingBatch
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.network import Sizes


class RankerBackbone(nn.Module):
    """Computes vectors of candidates after a history.

    Args:
        config: names the ranker and its sizes.
        sizes: facts about the data.
    """

    def __init__(self, config: RewardModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.kind: type[Ranker] = plugins.resolve("ranker", config.backbone)
        self.sizes = plugins.config_type("ranker", config.backbone)(
            d_model=config.width, num_layers=config.backbone_layers, num_heads=config.heads, dropout=config.dropout
        )
        self.facts: dict[str, Any] = {
            "num_items": sizes.num_items,
            "profile_sizes": tuple(size + 1 for size in sizes.profile_sizes),
            "history_length": sizes.history_length,
            "tasks": BEHAVIOURS,
            "watch": True,
        }
        contents = {"content_width": sizes.content_dim} if getattr(self.sizes, "contents", False) else {}
        config_class: Any = self.kind.config_class
        self.model = self.kind(config_class(**vars(self.sizes), **self.facts, **contents)).headless()

    def fill(self, catalog: Catalog) -> None:
        """Copy the facts about the items that the ranker may use."""
        with torch.random.fork_rng(devices=[]):
            other = self.kind.for_catalog(self.sizes, catalog, **self.facts)
        for name, known in other.named_buffers():
            self.model.get_buffer(name).copy_(known)

    def forward(self, histories: EventBatch, item_ids_UQ: Tensor) -> Tensor:
        """Vectors [U, Q, D] of items shown to users now."""
        return self.model.logits_NKM(RankingBatch.unlabelled(histories, item_ids_UQ))
