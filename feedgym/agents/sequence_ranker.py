"""Common base of HSTU ranking and GenRank: a history is read once, and candidates see it and themselves.

    history tokens -> HSTU layers, keys and values kept -> candidates: attention to these and to themselves -> head

The queries of candidates never meet each other's keys. So a request of K candidates costs K (M + 1) products per layer
after the M (M + 1) / 2 of the history. Scoring them in parts (M-FALCON, arXiv:2402.17152, §3.4) gives the same result
as one pass. The layers are those of retrieval (:mod:`feedgym.agents.layers.hstu`) with the options of Meta's ranking
code.

Contextual tokens come before the history: the profile's fields and the hour of the request. All tokens see them.

The head is that of Meta's code: a network over (vector after the layers) * (vector of the item), one logit per task.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from feedgym.agents.layers.history import ages_s
from feedgym.agents.layers.hstu import Attention, HSTULayer, RelativeBias
from feedgym.agents.layers.relative_time import time_buckets
from feedgym.agents.ranker import Ranker, RankerConfig, RankerSizes, ranking_loss
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.ranking import RankingBatch
from feedgym.ranges import Count, CountOrZero, Width

Bias = Literal["learned", "alibi", "none"]
HOURS = 24
WATCHED = (0.1, 0.25, 0.5, 0.75, 1.0, 2.0)
"""Watched fractions at which an action gets another bit."""

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values [N, M, H, d] of the history, one pair per layer."""


@dataclass(frozen=True, kw_only=True)
class SequenceRankerSizes(RankerSizes):
    """Options of sizes and layers."""

    d_qk: Width = 32
    """Width of a head's queries and keys."""
    d_v: Width = 32
    """Width of a head's values and gate."""
    bias: Bias = "learned"
    """Bias of attention by distance and time: learned (HSTU's), alibi (GenRank's, without parameters) or none."""
    attention: Attention = "silu"
    """Weights from the products of queries and keys and the bias. silu is HSTU's: the SiLU of their sum. decay is the
    SiLU of the products times e to the bias, and needs alibi. softmax is that of their sum."""
    affine: bool = True
    """Give norms weights, and the layers' first matrix a bias."""
    scaled: bool = True
    """Divide the products of queries and keys by sqrt(d_qk)."""
    concat_ux: bool = True
    """Give the layers' output matrix [u, x, u * a] instead of u * a."""
    head_norm: bool = False
    """Norm the attended values of each head separately."""
    contents: bool = True
    """Read the items' contents in addition to their ids."""
    loss_on_history: bool = False
    """Also learn from the history's events, each predicted at its place: HSTU's published training, an ablation of
    GenRank."""
    candidates_per_pass: Count = 256
    """Candidates to score at once when serving; the history is read once for all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias not in get_args(Bias):
            raise ValueError(f"bias={self.bias!r} is unknown; choose one of {', '.join(get_args(Bias))}.")
        if self.attention not in get_args(Attention):
            kinds = ", ".join(get_args(Attention))
            raise ValueError(f"attention={self.attention!r} is unknown; choose one of {kinds}.")
        if self.attention == "decay" and self.bias != "alibi":
            raise ValueError(f"attention='decay' decays by bias='alibi', not by {self.bias!r}; choose alibi or silu.")


class SequenceRankerConfig(RankerConfig):
    """Configuration of such a ranker in transformers' form."""

    sizes = SequenceRankerSizes

    content_width: CountOrZero = 0
    """E, width of the items' contents, which are read in addition to their ids; 0 reads only ids."""

    @property
    def num_context(self) -> int:
        """Tokens before the history's: the profile's fields and the hour."""
        return len(self.profile_sizes) + 1

    @property
    def tokens_per_event(self) -> int:
        """Tokens that an event of the history takes."""
        return 1

    @property
    def num_places(self) -> int:
        """N, places of the longest sequence; candidates share the last one."""
        return self.num_context + self.tokens_per_event * self.history_length + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """M embedded tokens of N rows.

    Attributes:
        x_NMD: embeddings.
        item_ids_NM: int64, the items; any value if a token has none.
        place_NM: int64, the token's place in its sequence. A candidate sees the tokens before its place, and itself;
            candidates that are decided together share a place.
        time_s_NM: float32 seconds after the row's request, negative in the past.
        mask_NM: bool.
    """

    x_NMD: Tensor
    item_ids_NM: Tensor
    place_NM: Tensor
    time_s_NM: Tensor
    mask_NM: Tensor

    def columns(self, idx: slice) -> Self:
        """A part of the tokens."""
        return replace(self, **{f.name: getattr(self, f.name)[:, idx] for f in fields(self)})

    def followed_by(self, other: Tokens) -> Tokens:
        """Append other tokens of the same rows."""
        return Tokens(**{f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)})


class SequenceRanker(Ranker):
    """Base of HSTU ranking and GenRank; subclasses embed history and candidates.

    Args:
        config: sizes and options.
        content_IE: contents of the items, if ``content_width`` is above 0; saved with the weights.
    """

    Config = SequenceRankerSizes
    config: SequenceRankerConfig
    config_class = SequenceRankerConfig
    content_IE: Tensor

    def __init__(self, config: SequenceRankerConfig, content_IE: Tensor | None = None) -> None:
        super().__init__(config)
        width, shape = config.d_model, (config.num_items, config.content_width)
        if config.content_width:
            content_IE = torch.zeros(shape) if content_IE is None else content_IE.float()
            if content_IE.shape != shape:
                raise ValueError(f"content_IE of shape {tuple(content_IE.shape)} does not fit; give {list(shape)}.")
            spread_E = content_IE.std(0, unbiased=False).clamp_min(1e-6)
            self.register_buffer("content_IE", (content_IE - content_IE.mean(0)) / spread_E)
            self.content = nn.Linear(config.content_width, width)
        self.items = nn.Embedding(config.num_items, width)
        self.context = nn.ModuleList(nn.Embedding(size, width) for size in (*config.profile_sizes, HOURS))
        self.action = nn.Sequential(
            nn.Linear(len(BEHAVIOURS) + len(WATCHED), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.layers: Any = nn.ModuleList(
            HSTULayer(
                width,
                config.num_heads,
                config.d_qk,
                config.d_v,
                config.num_places,
                True,
                False,
                config.dropout,
                affine=config.affine,
                scaled=config.scaled,
                concat_ux=config.concat_ux,
                head_norm=config.head_norm,
                learned_bias=config.bias == "learned",
                attention=config.attention,
            )
            for _ in range(config.num_layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.item_head = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.user_norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, config.num_outputs))

    @classmethod
    def for_catalog(cls, sizes: SequenceRankerSizes, catalog: Catalog, **data_fields: Any) -> Self:
        """See the base; the items' contents are used if ``sizes.contents`` is set."""
        config: Any = cls.config_class
        if not sizes.contents:
            return cls(config(**vars(sizes), **data_fields))
        content_IE = torch.from_numpy(catalog.content_IE)
        return cls(config(**vars(sizes), **data_fields, content_width=content_IE.shape[1]), content_IE)

    # ------------------------------------------------------------ a subclass's part

    def history_tokens(self, histories: EventBatch) -> Tokens:
        """Tokens of context and history, the context first."""
        raise NotImplementedError

    def candidate_tokens(self, batch: RankingBatch) -> Tokens:
        """One token per candidate, without any information about its responses."""
        raise NotImplementedError

    def past_candidates(self, histories: EventBatch) -> Tokens:
        """The history's events as candidates, each at the place where it was decided."""
        raise NotImplementedError

    def sees_MM(self, place_M: Tensor) -> Tensor:
        """Mask of the history's tokens that each token sees, given their places: bool, itself and earlier ones."""
        return place_M <= place_M[:, None]

    def headless(self) -> Self:
        """See the base."""
        self.head[-1] = nn.Identity()
        return self

    # ------------------------------------------------------------ learning

    def forward(self, **columns: Any) -> CausalLMOutput:
        """Compute the base's loss, or the loss of all candidates and events together with ``loss_on_history``."""
        if not self.config.loss_on_history:
            return super().forward(**columns)
        batch = RankingBatch.of_columns(columns)
        history = self.history_tokens(batch.histories)
        both = self.past_candidates(batch.histories).followed_by(self.candidate_tokens(batch))
        logits = self.score(both, history, self.read(history))
        num_past = batch.histories.item_ids_UT.shape[1]
        target = torch.cat([self.targets_NKM(_as_candidates(batch.histories)), self.targets_NKM(batch)], dim=1)
        loss = ranking_loss(logits, target, both.mask_NM)
        return CausalLMOutput(loss=loss, logits=logits[:, num_past:])

    # ------------------------------------------------------------ scoring

    def logits_NKM(self, batch: RankingBatch) -> Tensor:
        """Logits [N, K, M] of the tasks, the watched fraction last."""
        history = self.history_tokens(batch.histories)
        return self.score(self.candidate_tokens(batch), history, self.read(history))

    def _scores(self, rows: RankingBatch) -> Tensor:
        """As in the base, but for a part of the candidates at a time; the history is read once."""
        batch = self._newest(rows)
        history = self.history_tokens(batch.histories)
        memory, candidates = self.read(history), self.candidate_tokens(batch)
        size = self.config.candidates_per_pass
        parts = [slice(low, low + size) for low in range(0, batch.item_ids_NK.shape[1], size)]
        logit_parts = [self.score(candidates.columns(part), history, memory).float() for part in parts]
        return torch.cat(logit_parts, dim=1) if logit_parts else self.logits_NKM(batch)

    def read(self, history: Tokens) -> Memory:
        """Keys and values of the history's tokens, one pair per layer."""
        x_NMD = self.dropout(history.x_NMD)
        alike = replace(history, place_NM=history.place_NM[:1])  # the same in all rows
        mask_NMM = self.sees_MM(alike.place_NM[0]) & history.mask_NM[:, None]
        relation, memory = self._relation(alike, alike), []
        for n, layer in enumerate(self.layers):
            u, v, q, k = layer.project(x_NMD)
            memory.append((k, v))
            if n + 1 < len(self.layers):  # the output of the last layer is not needed
                x_NMD = layer.finish(x_NMD, u, layer.attend(q, k, v, self._bias(layer, relation), mask_NMM))
        return memory

    def score(self, candidates: Tokens, history: Tokens, memory: Memory) -> Tensor:
        """Logits [N, K, M] of candidates given a history."""
        x_NKD = self.dropout(candidates.x_NMD)
        mask_NKZ = (history.place_NM[:, None] < candidates.place_NM[..., None]) & history.mask_NM[:, None]
        relation = self._relation(candidates, history)
        for layer, (keys, values) in zip(self.layers, memory, strict=True):
            u, v, q, k = layer.project(x_NKD)
            bias = self._bias(layer, relation)
            attended = layer.attend_both(q, (keys, values), (k, v), bias, _own_bias(layer), mask_NKZ)
            x_NKD = layer.finish(x_NKD, u, attended)
        user_NKD, item_NKD = self.user_norm(x_NKD), self.item_head(self.item_vectors(candidates.item_ids_NM))
        return self.head(user_NKD * item_NKD)

    def _relation(self, query: Tokens, key: Tokens) -> Any:
        """Inputs of the layers' bias: places and buckets of time, or the whole bias [N, H, Q, Z] of ALiBi."""
        if self.config.bias == "none":
            return None
        timeless_NQZ = torch.minimum(query.place_NM[..., None], key.place_NM[:, None]) < self.config.num_context
        apart_s_NQZ = (query.time_s_NM[..., None] - key.time_s_NM[:, None]).masked_fill(timeless_NQZ, 0)
        if self.config.bias == "alibi":
            return alibi(query.place_NM[..., None] - key.place_NM[:, None], apart_s_NQZ, self.config.num_heads)
        return query.place_NM, key.place_NM, time_buckets(apart_s_NQZ)

    def _bias(self, layer: HSTULayer, relation: Any) -> Tensor | None:
        return relation if layer.bias is None else layer.bias(*relation)

    # ------------------------------------------------------------ parts of tokens

    def item_vectors(self, item_ids: Tensor) -> Tensor:
        """Vectors [..., D] of items: of their ids and, if known, of their contents."""
        if not self.config.content_width:
            return self.items(item_ids)
        return self.items(item_ids) + self.content(self.content_IE[item_ids])

    def context_tokens(self, histories: EventBatch) -> Tokens:
        """Tokens of the profile fields and the hour of the request; they come first and have no time of their own."""
        values = [*histories.profile_UF.unbind(1), histories.time_of_day_U.long().clamp(0, HOURS - 1)]
        x_NCD = torch.stack([table(value_U) for table, value_U in zip(self.context, values, strict=True)], dim=1)
        num, width = x_NCD.shape[:2]
        zeros_NC = torch.zeros(num, width, dtype=torch.long, device=x_NCD.device)
        return Tokens(
            x_NMD=x_NCD,
            item_ids_NM=zeros_NC,
            place_NM=torch.arange(width, device=x_NCD.device).expand(num, -1),
            time_s_NM=zeros_NC.float(),
            mask_NM=torch.ones_like(zeros_NC, dtype=torch.bool),
        )

    def actions_NTD(self, histories: EventBatch) -> Tensor:
        """Vectors of users' responses to events: bits of behaviours and of watched fractions, through a network."""
        watched_NTW = histories.watch_fraction_UT[..., None] >= torch.tensor(WATCHED, device=self.device)
        bits = torch.cat([histories.behaviours_UTB, watched_NTW.float()], dim=2)
        return self.action(bits.to(self.items.weight.dtype))

    def place_of_candidates(self, batch: RankingBatch) -> Tensor:
        """Places [N, K] of a row's candidates: after the history, the same for all."""
        num_N1 = batch.histories.mask_UT.sum(1, keepdim=True)
        place_N1 = self.config.num_context + self.config.tokens_per_event * num_N1
        return place_N1.expand(batch.item_ids_NK.shape)

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings of unit length, Xavier's uniform matrices.

        With retrieval's small first matrices, attended values would be so small that the eps of their norm hides them
        at first.
        """
        if isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=self.config.d_model**-0.5)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, RelativeBias):
            for table in (module.position, module.time):
                if table is not None:
                    init.normal_(table, std=0.02)
        elif isinstance(module, HSTULayer):
            init.xavier_uniform_(module.uvqk)
            if module.uvqk_bias is not None:
                init.zeros_(module.uvqk_bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            init.ones_(module.weight)
            init.zeros_(module.bias)


def alibi(apart: Tensor, apart_s: Tensor, num_heads: int) -> Tensor:
    """Bias -m_h (distance + ln(1 + minutes apart)) [N, H, Q, Z], without parameters (GenRank, §3.3).

    The slopes m_h are ALiBi's, a geometric sequence that ends at 2^-8 (arXiv:2108.12409, §3). In ALiBi the bias is
    added inside a softmax, and makes weights decay. Inside a SiLU it does not. With a product of 1 and a slope of 1,
    weights at distances 0 to 4 are 0.73, 0, -0.27, -0.24 and -0.14. ``attention`` chooses how the bias is used.

    Args:
        apart: places between query and key [N, Q, P].
        apart_s: seconds between them.
        num_heads: H.
    """
    slope_H = torch.tensor([2 ** (-8 * (head + 1) / num_heads) for head in range(num_heads)], device=apart.device)
    distance = apart.abs() + torch.log1p(apart_s.abs() / 60)
    return -slope_H[:, None, None] * distance[:, None]


def _own_bias(layer: HSTULayer) -> Tensor | float:
    """Bias of a token towards itself: distance 0 and the first bucket of time."""
    if layer.bias is None:
        return 0.0
    own = layer.bias.position[layer.bias.num_positions - 1]
    return own if layer.bias.time is None else own + layer.bias.time[0]


def decided_s(batch: RankingBatch) -> Tensor:
    """float32 seconds [N, K] from the row's request to the request of each candidate, taken from its first exposure."""
    own_s_NK = batch.first_exposure_s_NK().masked_fill(batch.request_NK == 0, 0)
    return own_s_NK.masked_fill(~batch.mask_NK, 0).float()


def _as_candidates(histories: EventBatch) -> RankingBatch:
    """Make candidates of the events and their labels, without times and requests."""
    past = cleaned(histories)
    rows = RankingBatch.unlabelled(past, past.item_ids_UT, past.mask_UT)
    return replace(rows, behaviours_NKB=past.behaviours_UTB, watch_fraction_NK=past.watch_fraction_UT)


def cleaned(histories: EventBatch) -> EventBatch:
    """Replace padding in the histories by zeros."""
    pad_NT = ~histories.mask_UT
    return replace(
        histories,
        item_ids_UT=histories.item_ids_UT.masked_fill(pad_NT, 0),
        behaviours_UTB=histories.behaviours_UTB.masked_fill(pad_NT[..., None], 0),
        watch_fraction_UT=histories.watch_fraction_UT.masked_fill(pad_NT, 0),
        gap_s_UT=histories.gap_s_UT.masked_fill(pad_NT, 0),
    )


def event_times_s(histories: EventBatch) -> Tensor:
    """float32 seconds [N, T] from the request back to each event, negative."""
    return -ages_s(histories)
