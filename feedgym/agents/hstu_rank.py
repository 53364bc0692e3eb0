"""HSTU ranking: predicts a user's actions on each candidate (arXiv:2402.17152, §2.2; DLRM-v3 in Meta's code).

It has the same layers as retrieval, but another target and another head. The timeline's actions are either
    - "added": one token per event, item + action; candidates have "action unknown" instead; or
    - "interleaved": two tokens per event, its item and then its action (the paper's x0, a0, x1, a1, ...). Candidates
      are item tokens, whose action would come next.

Positions are counted back from the candidates, which share position 0. The time embedding is the bucket of the seconds
from the event to the request. Contextual tokens see the whole history, and a candidate is seen only by itself.

``loss_on_history`` trains as in the paper (table 1): every item of the timeline predicts its action, not only the
candidates. Contextual tokens then see no history, because they would reveal an item's own action to it.

Deviations from Meta's code: attention keeps the paper's learned bias of distance and time (``bias="none"`` is as in the
code). Time buckets are the logarithmic ones of retrieval. The parts of the loss have equal weights. The reach of
attention is not limited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from feedgym.agents.layers.relative_time import NUM_TIME_BUCKETS, time_buckets
from feedgym.agents.sequence_ranker import (
    SequenceRanker,
    SequenceRankerConfig,
    SequenceRankerSizes,
    Tokens,
    cleaned,
    decided_s,
    event_times_s,
)
from feedgym.data.batches import EventBatch
from feedgym.data.ranking import RankingBatch

Actions = Literal["added", "interleaved"]


@dataclass(frozen=True, kw_only=True)
class HSTURankerSizes(SequenceRankerSizes):
    """Sizes and layout of HSTU ranking."""

    actions: Actions = "added"
    """added to their items' tokens, or interleaved as separate tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.actions not in get_args(Actions):
            raise ValueError(f"actions={self.actions!r} is unknown; choose one of {', '.join(get_args(Actions))}.")


class HSTURankerConfig(SequenceRankerConfig):
    """Configuration of HSTU ranking for transformers."""

    model_type = "hstu_rank"
    sizes = HSTURankerSizes

    @property
    def tokens_per_event(self) -> int:
        """1, or 2 if actions are tokens."""
        return 2 if self.actions == "interleaved" else 1


class HSTURanker(SequenceRanker):
    """The model.

    Args:
        config: sizes and options.
        content_IE: contents of the items; see the base class.
    """

    title = "HSTU ranking"
    Config = HSTURankerSizes
    config: HSTURankerConfig
    config_class = HSTURankerConfig

    def __init__(self, config: HSTURankerConfig, content_IE: Tensor | None = None) -> None:
        super().__init__(config, content_IE)
        self.positions = nn.Embedding(config.num_places, config.d_model)
        self.times = nn.Embedding(NUM_TIME_BUCKETS, config.d_model)
        if config.actions == "added":
            self.unknown_action = nn.Embedding(1, config.d_model)
        self.post_init()

    def history_tokens(self, histories: EventBatch) -> Tokens:
        """Context, then one token per event, or its item's and its action's."""
        past = cleaned(histories)
        item_NTD, action_NTD = self.item_vectors(past.item_ids_UT), self.actions_NTD(past)
        if self.config.actions == "added":
            x_NTZD = (item_NTD + action_NTD)[:, :, None]
        else:
            x_NTZD = torch.stack([item_NTD, action_NTD], dim=2)
        return self.context_tokens(past).followed_by(self._events(x_NTZD, past))

    def candidate_tokens(self, batch: RankingBatch) -> Tokens:
        """Items with position 0, the time of their request and, if actions are added, an unknown action."""
        item_ids_NK = batch.item_ids_NK.masked_fill(~batch.mask_NK, 0)
        here, now_s = torch.zeros_like(item_ids_NK), torch.zeros_like(item_ids_NK, dtype=torch.float32)
        return Tokens(
            x_NMD=self._undecided(item_ids_NK) + self.positions(here) + self.times(time_buckets(now_s)),
            item_ids_NM=item_ids_NK,
            place_NM=self.place_of_candidates(batch),
            time_s_NM=decided_s(batch),
            mask_NM=batch.mask_NK,
        )

    def past_candidates(self, histories: EventBatch) -> Tokens:
        """The history's items at their own places: they see all earlier events, even those of their own request."""
        past = cleaned(histories)
        return self._events(self._undecided(past.item_ids_UT)[:, :, None], past)

    def sees_MM(self, place_M: Tensor) -> Tensor:
        """Mask: each token sees itself and those before it; contextual tokens see all, unless that reveals answers."""
        before_MM = super().sees_MM(place_M)
        return before_MM if self.config.loss_on_history else before_MM | (place_M < self.config.num_context)[:, None]

    def _undecided(self, item_ids: Tensor) -> Tensor:
        """Vectors [..., D] of items before their actions, with an unknown action if actions are added."""
        item = self.item_vectors(item_ids)
        return item + self.unknown_action(torch.zeros_like(item_ids)) if self.config.actions == "added" else item

    def _events(self, x_NTZD: Tensor, past: EventBatch) -> Tokens:
        """The first Z tokens of each event, given their vectors, plus the embeddings of position and time."""
        per_event, (num, length, parts) = self.config.tokens_per_event, x_NTZD.shape[:3]
        place_TZ = per_event * torch.arange(length, device=x_NTZD.device)[:, None]
        place_NM = (place_TZ + torch.arange(parts, device=x_NTZD.device)).flatten().expand(num, -1)
        last_N1 = per_event * past.mask_UT.sum(1, keepdim=True)

        def spread(column_NT: Tensor) -> Tensor:
            return column_NT.repeat_interleave(parts, dim=1)

        time_s_NM = spread(event_times_s(past))
        context_NMD = self.positions((last_N1 - place_NM).clamp_min(0)) + self.times(time_buckets(time_s_NM))
        return Tokens(
            x_NMD=x_NTZD.flatten(1, 2) + context_NMD,
            item_ids_NM=spread(past.item_ids_UT),
            place_NM=place_NM + self.config.num_context,
            time_s_NM=time_s_NM,
            mask_NM=spread(past.mask_UT),
        )
