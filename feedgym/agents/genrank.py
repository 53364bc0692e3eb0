"""GenRank: a ranker that generates actions, with items as their positional context (arXiv:2505.04180).

One token per event: e = item + action + position + request + pre-request time (a sum of five, §3.2). A candidate has
[MASK] instead of the action. This takes half of the tokens of HSTU's interleaved timeline and a quarter of its
attention.
    - position: a learned index; all candidates of a request share one.
    - request: the number of requests up to the event.
    - pre-request time: the bucket of the seconds between the event's request and the event before it.

Attention is biased by distance and time without parameters (:func:`feedgym.agents.sequence_ranker.alibi`). History is
causal; a candidate sees it and itself. The loss is only on candidates. No official code exists.

Deviations, and details that the paper leaves open:
    - Effect of the bias. The paper adds it but gives no formula for the resulting attention. Added inside HSTU's SiLU
      (``attention="silu"``, the default), a falling bias is not a decay: weights fall through 0 to about -.28 and
      return towards 0. Distant events then have the opposite sign of near ones. ``"decay"`` multiplies SiLU's weights
      by e to the bias; ``"softmax"`` takes the softmax of products and bias, as ALiBi does.
    - The layers are those of HSTU ranking here, so that the two can be compared. Contextual tokens come first and see
      only those before them.
    - Histories hold gaps between events, not their requests: events up to ``request_gap_s`` apart belong to one
      request. 0 makes every different time a request, as in the paper for logs of requests.
    - Ablations. ``loss_on_history`` also learns from history: each of its events appears again as a candidate of its
      own request. ``history_mask="full"`` lets the history see all of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedgym.agents.layers.relative_time import NUM_TIME_BUCKETS, time_buckets
from feedgym.agents.sequence_ranker import (
    Bias,
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
from feedgym.ranges import Seconds

HistoryMask = Literal["causal", "full"]


@dataclass(frozen=True, kw_only=True)
class GenRankSizes(SequenceRankerSizes):
    """Sizes and ablations of GenRank."""

    bias: Bias = "alibi"
    """Bias of attention by distance and time: alibi (without parameters), learned (as in HSTU) or none."""
    request_gap_s: Seconds = 600.0
    """Longest gap between two events of the same request."""
    history_mask: HistoryMask = "causal"
    """causal, or full as an ablation: the history sees all of itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history_mask not in get_args(HistoryMask):
            kinds = ", ".join(get_args(HistoryMask))
            raise ValueError(f"history_mask={self.history_mask!r} is unknown; choose one of {kinds}.")
        if self.loss_on_history and self.history_mask == "full":
            raise ValueError("loss_on_history could read its answers with history_mask=full; choose one of the two.")


class GenRankConfig(SequenceRankerConfig):
    """Configuration of GenRank for transformers."""

    model_type = "genrank"
    sizes = GenRankSizes


class GenRank(SequenceRanker):
    """The model.

    Args:
        config: sizes and options.
        content_IE: contents of the items; see the base class.
    """

    title = "GenRank"
    Config = GenRankSizes
    config: GenRankConfig
    config_class = GenRankConfig

    def __init__(self, config: GenRankConfig, content_IE: Tensor | None = None) -> None:
        super().__init__(config, content_IE)
        self.masked_action = nn.Embedding(1, config.d_model)
        self.positions = nn.Embedding(config.history_length + 1, config.d_model)
        self.requests = nn.Embedding(config.history_length + 1, config.d_model)
        self.times = nn.Embedding(NUM_TIME_BUCKETS, config.d_model)
        self.post_init()

    def history_tokens(self, histories: EventBatch) -> Tokens:
        """Context, then one token per event."""
        past = cleaned(histories)
        request_NT, waited_s_NT, _ = history_requests(past, self.config.request_gap_s)
        place_NT = torch.arange(past.item_ids_UT.shape[1], device=self.device).expand(past.item_ids_UT.shape)
        x_NTD = self._embedded(past.item_ids_UT, self.actions_NTD(past), place_NT, request_NT, waited_s_NT)
        events = Tokens(
            x_NMD=x_NTD,
            item_ids_NM=past.item_ids_UT,
            place_NM=place_NT + self.config.num_context,
            time_s_NM=event_times_s(past),
            mask_NM=past.mask_UT,
        )
        return self.context_tokens(past).followed_by(events)

    def candidate_tokens(self, batch: RankingBatch) -> Tokens:
        """One token per candidate, with [MASK] as its action."""
        item_ids_NK = batch.item_ids_NK.masked_fill(~batch.mask_NK, 0)
        request_NK, waited_s_NK = candidate_requests(batch, self.config.request_gap_s)
        place_NK = self.place_of_candidates(batch)
        index_NK = place_NK - self.config.num_context
        return Tokens(
            x_NMD=self._embedded(item_ids_NK, self._masked(item_ids_NK), index_NK, request_NK, waited_s_NK),
            item_ids_NM=item_ids_NK,
            place_NM=place_NK,
            time_s_NM=decided_s(batch),
            mask_NM=batch.mask_NK,
        )

    def past_candidates(self, histories: EventBatch) -> Tokens:
        """The history's events as candidates of their own requests, with the position of the request's first event."""
        past = cleaned(histories)
        request_NT, waited_s_NT, first_NT = history_requests(past, self.config.request_gap_s)
        return Tokens(
            x_NMD=self._embedded(past.item_ids_UT, self._masked(past.item_ids_UT), first_NT, request_NT, waited_s_NT),
            item_ids_NM=past.item_ids_UT,
            place_NM=first_NT + self.config.num_context,
            time_s_NM=event_times_s(past).gather(1, first_NT),
            mask_NM=past.mask_UT,
        )

    def sees_MM(self, place_M: Tensor) -> Tensor:
        """Mask: each token sees itself and those before it; as an ablation everything of the history."""
        before_MM = super().sees_MM(place_M)
        return torch.ones_like(before_MM) if self.config.history_mask == "full" else before_MM

    def _embedded(self, item_ids: Tensor, action: Tensor, index: Tensor, request: Tensor, waited_s: Tensor) -> Tensor:
        """The sum of the five embeddings."""
        last = self.config.history_length
        context = self.positions(index.clamp(max=last)) + self.requests(request.clamp(max=last))
        return self.item_vectors(item_ids) + action + context + self.times(time_buckets(waited_s))

    def _masked(self, item_ids: Tensor) -> Tensor:
        return self.masked_action(torch.zeros_like(item_ids))


def history_requests(histories: EventBatch, request_gap_s: float) -> tuple[Tensor, Tensor, Tensor]:
    """For each event, the number of its request, the seconds before that request, and the request's first event.

    Args:
        histories: N users.
        request_gap_s: longest gap within a request.

    Returns:
        int64, float32 and int64, [N, T] each; 0 seconds for the first request.
    """
    before_s_NT = F.pad(histories.gap_s_UT[:, :-1], (1, 0)).masked_fill(~histories.mask_UT, 0)
    opens_NT = before_s_NT > request_gap_s
    place_T = torch.arange(before_s_NT.shape[1], device=before_s_NT.device)
    first_NT = torch.where(opens_NT, place_T, 0).cummax(1).values
    return opens_NT.long().cumsum(1), before_s_NT.gather(1, first_NT), first_NT


def candidate_requests(batch: RankingBatch, request_gap_s: float) -> tuple[Tensor, Tensor]:
    """The number of each candidate's request, continuing those of the history, and the seconds before that request.

    Returns:
        int64 and float32, [N, K] each.
    """
    past = batch.histories
    request_NT, waited_s_NT, _ = history_requests(past, request_gap_s)
    last_N1 = (past.mask_UT.sum(1, keepdim=True) - 1).clamp_min(0)
    gap_s_N1 = past.gap_s_UT.masked_fill(~past.mask_UT, 0).gather(1, last_N1)
    opens_N1 = gap_s_N1 > request_gap_s
    waited_s_N1 = torch.where(opens_N1, gap_s_N1, waited_s_NT.gather(1, last_N1))
    request_NK = request_NT.gather(1, last_N1) + opens_N1.long() + batch.request_NK
    # For later requests of a row, the time counts from the last exposure of the one before.
    between_s_NK = F.pad(batch.time_s_NK.diff(dim=1), (1, 0))
    opens_NK = F.pad(batch.request_NK.diff(dim=1) > 0, (1, 0))
    first_NK = torch.where(opens_NK, torch.arange(opens_NK.shape[1], device=opens_NK.device), 0).cummax(1).values
    later_s_NK = between_s_NK.gather(1, first_NK).clamp_min(0).to(waited_s_N1.dtype)
    return request_NK, torch.where(batch.request_NK > 0, later_s_NK, waited_s_N1)
