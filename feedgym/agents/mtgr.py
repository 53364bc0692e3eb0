"""MTGR: a ranker whose sample is a user, with cross features, group layer norm and a dynamic mask (arXiv:2505.18654).

One sample holds a user's window with all its candidates: D = [U, S, R, candidates] (§3.1).
    - U: one token per scalar feature, which are the profile's fields and the hour of the request.
    - S: the user's events before the window: MLP(concat(item, feedback, age)).
    - R: the events since: the window's own exposures with their feedback, and the history's events of the last
      ``real_time_s``. When a request is served, R consists only of the latter.
    - candidates: the window's exposures, MLP(concat(cross features, item)); see :mod:`feedgym.agents.cross_features`.

The dynamic mask (§3.3) depends on time. U and S are static: they see each other, and all tokens see them. A real-time
event is seen by itself and by strictly later real-time events and candidates. For example, an exposure at 10:00 must
not see the click at 10:05 that is in the same sample. A candidate is seen only by itself.

The layers are in :mod:`feedgym.agents.layers.mtgr`, dynamic batches in :mod:`feedgym.agents.token_batches`.

Deviations from the paper:
    - A candidate's time is its exposure, as in the paper, or its request (``decided``). The latter is for slates that
      are ranked as a whole, which cannot learn from the feedback to their first item.
    - Events after the row's last decision have no real-time token.
    - Ablations. ``mask="causal"`` orders all context by place instead of time. ``mask="full"`` lets everything see all
      real-time events, even future ones, and so trains on information that will be missing in use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from transformers import initialization as init

from feedgym.agents.cross_features import KINDS, NUM_FEATURES, cross_features, item_kinds, seconds_ago
from feedgym.agents.layers.mtgr import Domain, GroupLayerNorm, MTGRLayer
from feedgym.agents.layers.relative_time import NUM_TIME_BUCKETS, time_buckets
from feedgym.agents.ranker import Ranker, RankerConfig, RankerSizes
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.ranking import PER_CANDIDATE, RankingBatch
from feedgym.ranges import Seconds, check_divides

Mask = Literal["dynamic", "causal", "full"]
Decided = Literal["exposure", "request"]

HOURS = 24


@dataclass(frozen=True, kw_only=True)
class MTGRSizes(RankerSizes):
    """Options and ablations of MTGR.

    The paper's small, medium and large models have widths of 512, 768 and 768, 3, 5 and 15 layers, and 2, 3 and 3
    heads.
    """

    decided: Decided = "exposure"
    """End of a candidate's real-time events: its exposure (the paper), or the request that exposed it. If a request's
    items are ranked at once, nothing later may be known; the other rankers know no more."""
    real_time_s: Seconds = 0.0
    """Events of the history younger than this many seconds are real-time instead of static: when a request is served
    they replace the window before it."""
    mask: Mask = "dynamic"
    """dynamic; ablations: causal (by place instead of time) or full (real-time events are seen, even future ones)."""
    group_layer_norm: bool = True
    """Use a norm for each domain; otherwise, as an ablation, one for all."""
    cross_features: bool = True
    """Give candidates their cross features; otherwise, as an ablation, only their items."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kinds in {"mask": Mask, "decided": Decided}.items():
            if getattr(self, name) not in get_args(kinds):
                given = getattr(self, name)
                raise ValueError(f"{name}={given!r} is unknown; choose one of {', '.join(get_args(kinds))}.")
        check_divides(self, "num_heads", "d_model")


class MTGRConfig(RankerConfig):
    """Configuration of an MTGR in transformers' form."""

    model_type = "mtgr"
    sizes = MTGRSizes


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleTokens:
    """Embedded tokens of N samples: Z of context [U, history, window] and K candidates.

    Attributes:
        context_NZD: U, S and R.
        candidates_NKD: the candidates.
        domain_NZ: int64 :class:`Domain`.
        mask_NZ: bool, real tokens of the context.
        time_NZ: float64 seconds after the row's request; only for real-time events.
        time_NK: float64 seconds after the row's request at which each candidate is decided.
        num_tokens_N: number of real tokens, including candidates.
        num_before: number of context places before the window's.
    """

    context_NZD: Tensor
    candidates_NKD: Tensor
    domain_NZ: Tensor
    mask_NZ: Tensor
    time_NZ: Tensor
    time_NK: Tensor
    num_tokens_N: Tensor
    num_before: int


class MTGR(Ranker):
    """The model.

    Args:
        config: sizes and options.
        kinds_XI: groups of the items for cross features (:func:`feedgym.agents.cross_features.item_kinds`); saved with
            the weights. By default each item is only in its own group.
    """

    title = "MTGR"
    Config = MTGRSizes
    config: MTGRConfig
    config_class = MTGRConfig
    kinds_XI: Tensor

    def __init__(self, config: MTGRConfig, kinds_XI: Tensor | None = None) -> None:
        super().__init__(config)
        if kinds_XI is None:
            kinds_XI = torch.full((len(KINDS), config.num_items), -1)
            kinds_XI[0] = torch.arange(config.num_items)
        if kinds_XI.shape != (len(KINDS), config.num_items):
            raise ValueError(
                f"kinds_XI of shape {tuple(kinds_XI.shape)} do not fit; give [{len(KINDS)}, {config.num_items}]."
            )
        width, feedback = config.d_model, len(BEHAVIOURS) + 1
        self.register_buffer("kinds_XI", kinds_XI)
        self.items = nn.Embedding(config.num_items, width)
        self.user = nn.ModuleList(nn.Embedding(size, width) for size in (*config.profile_sizes, HOURS))
        self.age = nn.Embedding(NUM_TIME_BUCKETS, width)
        self.event = _mlp(2 * width + feedback, width)
        self.candidate = _mlp(width + (NUM_FEATURES if config.cross_features else 0), width)
        shape = (width, config.num_heads, config.group_layer_norm, config.dropout)
        self.layers = nn.ModuleList(MTGRLayer(*shape) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, config.num_outputs)
        self.post_init()

    @classmethod
    def for_catalog(cls, sizes: MTGRSizes, catalog: Catalog, **data_fields: Any) -> Self:
        """See the base; cross features need the items' groups."""
        config: Any = MTGRConfig
        return cls(config(**vars(sizes), **data_fields), item_kinds(catalog) if sizes.cross_features else None)

    def logits_NKM(self, batch: RankingBatch) -> Tensor:
        """Logits [N, K, M] of the tasks, and of the watched fraction if it is predicted.

        Args:
            batch: N rows of candidates. Their responses are read only for later candidates of the row that may know
                them.
        """
        return self.scores_NKM(self.embed(batch))

    def scores_NKM(self, sample: SampleTokens) -> Tensor:
        """Logits [N, K, M] of embedded samples."""
        context_NZD, candidates_NKD = self.dropout(sample.context_NZD), self.dropout(sample.candidates_NKD)
        mask_NZZ, mask_NKZ = self.masks(sample)
        for layer in self.layers:
            context_NZD, candidates_NKD = layer(
                context_NZD, candidates_NKD, sample.domain_NZ, mask_NZZ, mask_NKZ, sample.num_tokens_N
            )
        return self.out(self.head(candidates_NKD))

    def headless(self) -> Self:
        """See the base."""
        self.out = nn.Identity()  # type: ignore[assignment]
        return self

    def forward(self, weight: Tensor | None = None, **columns: Any) -> Any:
        """Compute the base's loss, times ``weight`` if a dynamic batch gives one.

        Args:
            weight: see :mod:`feedgym.agents.token_batches`.
            **columns: as for the base.
        """
        output: Any = super().forward(**columns)
        if weight is not None:
            output.loss = output.loss * weight
        return output

    # ------------------------------------------------------------ tokens

    def embed(self, batch: RankingBatch) -> SampleTokens:
        """Embed the samples' tokens for the first layer."""
        time_NK, (window, known_NW) = self.decided_s(batch), self._window(batch)
        past = batch.histories.trimmed()
        ago_s_NT = seconds_ago(past)
        recent_NT = ago_s_NT < self.config.real_time_s
        age_s_NT = ago_s_NT.masked_fill(recent_NT, 0)  # like the window's events, which have no age yet
        user_NFD = self._user_tokens(past)
        history_NTD = self._event_tokens(past.item_ids_UT, past.behaviours_UTB, past.watch_fraction_UT, age_s_NT)
        window_NWD = self._event_tokens(
            window.item_ids_NK, window.behaviours_NKB, window.watch_fraction_NK, torch.zeros_like(window.time_s_NK)
        )
        like_NF, like_NW = (torch.ones_like(x[..., 0], dtype=torch.long) for x in (user_NFD, window_NWD))
        domains = [Domain.USER * like_NF, Domain.STATIC + recent_NT.long(), Domain.REAL_TIME * like_NW]
        mask_NZ = torch.cat([like_NF.bool(), past.mask_UT, known_NW], dim=1)
        return SampleTokens(
            context_NZD=torch.cat([user_NFD, history_NTD, window_NWD], dim=1),
            candidates_NKD=self._candidate_tokens(batch),
            domain_NZ=torch.cat(domains, dim=1),
            mask_NZ=mask_NZ,
            time_NZ=torch.cat([torch.zeros_like(like_NF).double(), -ago_s_NT, window.time_s_NK], dim=1),
            time_NK=time_NK,
            num_tokens_N=mask_NZ.sum(1) + batch.mask_NK.sum(1),
            num_before=user_NFD.shape[1] + history_NTD.shape[1],
        )

    def decided_s(self, batch: RankingBatch) -> Tensor:
        """float64 seconds [N, K] from the row's request to the decision about each candidate."""
        if self.config.decided == "exposure":
            return batch.time_s_NK
        return batch.first_exposure_s_NK()

    def _window(self, batch: RankingBatch) -> tuple[RankingBatch, Tensor]:
        """The exposures that a later decision of their row may know, as the columns that hold any, and their mask."""
        last_s_N1 = self.decided_s(batch).masked_fill(~batch.mask_NK, -torch.inf).amax(1, keepdim=True)
        known_NK = batch.mask_NK & (batch.time_s_NK < last_s_N1)
        width = int(known_NK.any(0).nonzero().max()) + 1 if known_NK.any() else 0
        columns = {name: getattr(batch, name)[:, :width] for name in PER_CANDIDATE}
        return replace(batch, **columns), known_NK[:, :width]

    def _user_tokens(self, histories: EventBatch) -> Tensor:
        fields = [*histories.profile_UF.unbind(1), histories.time_of_day_U.long().clamp(0, HOURS - 1)]
        return torch.stack([table(field_U) for table, field_U in zip(self.user, fields, strict=True)], dim=1)

    def _event_tokens(self, item_ids: Tensor, behaviours: Tensor, watch_fraction: Tensor, ago_s: Tensor) -> Tensor:
        feedback = torch.cat([behaviours, watch_fraction[..., None]], dim=-1).to(self.items.weight.dtype)
        return self.event(torch.cat([self.items(item_ids), self.age(time_buckets(ago_s)), feedback], dim=-1))

    def _candidate_tokens(self, batch: RankingBatch) -> Tensor:
        parts = [self.items(batch.item_ids_NK)]
        if self.config.cross_features:
            crossed = cross_features(batch.histories.trimmed(), batch.item_ids_NK, self.kinds_XI)
            parts.append(crossed.to(parts[0].dtype))
        return self.candidate(torch.cat(parts, dim=-1))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier's matrices; embeddings of length about 1, because they are joined with feedback between 0 and 1."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.d_model**-0.5)
        elif isinstance(module, GroupLayerNorm | nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    # ------------------------------------------------------------ masks

    def masks(self, sample: SampleTokens) -> tuple[Tensor, Tensor]:
        """Masks of the context tokens that the context, and the candidates, see: bool [N, P, P] and [N, K, P]."""
        static_NZ, time_NZ, time_NK = self._order(sample)
        seen_NZZ = static_NZ[:, None] | (time_NZ[:, None] < time_NZ[..., None])
        itself_ZZ = torch.eye(time_NZ.shape[1], dtype=torch.bool, device=time_NZ.device)
        seen_NKZ = static_NZ[:, None] | (time_NZ[:, None] < time_NK[..., None])
        return (seen_NZZ | itself_ZZ) & sample.mask_NZ[:, None], seen_NKZ & sample.mask_NZ[:, None]

    def _order(self, sample: SampleTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Mask of the static tokens of the context, and the times of the context's tokens and of the candidates.

        A static token comes before everything, so it sees only static tokens.
        """
        if self.config.mask == "full":
            return torch.ones_like(sample.mask_NZ), sample.time_NZ, sample.time_NK
        if self.config.mask == "causal":
            place_Z = torch.arange(sample.mask_NZ.shape[1], device=sample.mask_NZ.device)
            place_K = sample.num_before + torch.arange(sample.time_NK.shape[1], device=place_Z.device)
            return torch.zeros_like(sample.mask_NZ), place_Z[None], place_K[None]
        static_NZ = sample.domain_NZ != Domain.REAL_TIME
        return static_NZ, sample.time_NZ.masked_fill(static_NZ, -torch.inf), sample.time_NK


def _mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))
