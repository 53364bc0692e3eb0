"""What HSTU ranking and GenRank share: a history read once, and candidates that see it and themselves.

    history tokens -> HSTU layers, keys and values kept -> candidates: attention to these and to themselves -> head

The queries of candidates never meet each other's keys, so a request of K candidates costs K (M + 1) products a layer
after the M (M + 1) / 2 of the history, and scoring them in parts (M-FALCON, arXiv:2402.17152, §3.4) gives what one pass
gives. The layers are those of retrieval (:mod:`feedgym.agents.layers.hstu`) with the options of Meta's ranking code.

Before the history stand contextual tokens: the profile's fields and the hour of the request. All see them.

The head is that of Meta's code: a network over (vector after the layers) * (vector of the item), a logit a task.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from feedgym.agents.layers.history import ages_s
from feedgym.agents.layers.hstu import Attention, HSTULayer, RelativeBias, time_buckets
from feedgym.agents.ranker import Ranker, RankerConfig, RankerSizes, ranking_loss
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.ranking import RankingBatch
from feedgym.ranges import Count, CountOrZero, Width

Bias = Literal["learned", "alibi", "none"]
HOURS = 24
WATCHED = (0.1, 0.25, 0.5, 0.75, 1.0, 2.0)
"""Watched fractions from which on an action has another bit."""

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values [N, M, H, d] of the history, a layer each."""


@dataclass(frozen=True, kw_only=True)
class SequenceRankerSizes(RankerSizes):
    """Sizes and the layers' options."""

    d_qk: Width = 32
    """Width of a head's queries and keys."""
    d_v: Width = 32
    """Width of a head's values and gate."""
    bias: Bias = "learned"
    """Of attention, by distance and time: learned (HSTU's), alibi (GenRank's, without parameters) or none."""
    attention: Attention = "silu"
    """What products of queries and keys and the bias become: silu (HSTU's: the SiLU of their sum), decay (the SiLU of
    the products times e to the bias, which must be alibi) or softmax (of their sum)."""
    affine: bool = True
    """Norms have weights, and the layers' first matrix a bias."""
    scaled: bool = True
    """Divide the products of queries and keys by sqrt(d_qk)."""
    concat_ux: bool = True
    """Give the layers' output matrix [u, x, u * a] instead of u * a."""
    head_norm: bool = False
    """Norm the attended values of each head apart."""
    contents: bool = True
    """Read the items' contents beside their ids."""
    loss_on_history: bool = False
    """Learn from the history's events too, each foretold where it stands: HSTU's published training, an ablation of
    GenRank."""
    candidates_per_pass: Count = 256
    """Candidates that are scored at once when serving; the history is read once for all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bias not in get_args(Bias):
            raise ValueError(f"bias={self.bias!r} is unknown; choose one of {', '.join(get_args(Bias))}.")
        if self.attention not in get_args(Attention):
            kinds = ", ".join(get_args(Attention))
            raise ValueError(f"attention={self.attention!r} is unknown; choose one of {kinds}.")
        if self.attention == "decay" and self.bias != "alibi":
            raise ValueError(
                f"attention='decay' decays by bias='alibi' and not by {self.bias!r}; choose alibi or silu."
            )


class SequenceRankerConfig(RankerConfig):
    """Such a ranker as transformers keeps it."""

    sizes = SequenceRankerSizes

    content_width: CountOrZero = 0
    """E, width of the items' contents, which are read beside their ids; 0 reads ids alone."""

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
        item_ids_NM: int64, the items; anything where a token is none.
        place_NM: int64, the token's place in its sequence. A candidate sees the tokens before its place, and itself;
            candidates that are decided on together share one.
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
        """These tokens and then others of the same rows."""
        return Tokens(**{f.name: torch.cat([getattr(self, f.name), getattr(other, f.name)], 1) for f in fields(self)})


class SequenceRanker(Ranker):
    """Base of HSTU ranking and GenRank: a subclass embeds history and candidates.

    Args:
        config: sizes and options.
        content_IE: contents of the items, where ``content_width`` is above 0; kept with the weights.
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
        """See the base; the items' contents are handed over if ``sizes.contents`` says so."""
        config: Any = cls.config_class
        if not sizes.contents:
            return cls(config(**vars(sizes), **data_fields))
        content_IE = torch.from_numpy(catalog.content_IE)
        return cls(config(**vars(sizes), **data_fields, content_width=content_IE.shape[1]), content_IE)

    # ------------------------------------------------------------ a subclass's part

    def history_tokens(self, histories: EventBatch) -> Tokens:
        """Context and history, the context first."""
        raise NotImplementedError

    def candidate_tokens(self, batch: RankingBatch) -> Tokens:
        """A token a candidate, which knows nothing of what became of it."""
        raise NotImplementedError

    def past_candidates(self, histories: EventBatch) -> Tokens:
        """The history's events as candidates, each of them where it was decided on."""
        raise NotImplementedError

    def sees_MM(self, place_M: Tensor) -> Tensor:
        """Which tokens of the history, at some places, each of them sees: bool, itself and those before it."""
        return place_M <= place_M[:, None]

    def headless(self) -> Self:
        """See the base."""
        self.head[-1] = nn.Identity()
        return self

    # ------------------------------------------------------------ learning

    def forward(self, **columns: Any) -> CausalLMOutput:
        """The base's loss, or that of all candidates and events together where history is learned from too."""
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
        """As of the base, but candidates a part at a time, for which the history is read once."""
        batch = self._newest(rows)
        history = self.history_tokens(batch.histories)
        memory, candidates = self.read(history), self.candidate_tokens(batch)
        size = self.config.candidates_per_pass
        parts = [slice(low, low + size) for low in range(0, batch.item_ids_NK.shape[1], size)]
        logit_parts = [self.score(candidates.columns(part), history, memory).float() for part in parts]
        return torch.cat(logit_parts, dim=1) if logit_parts else self.logits_NKM(batch)

    def read(self, history: Tokens) -> Memory:
        """Keys and values of the history's tokens, a layer each."""
        x_NMD = self.dropout(history.x_NMD)
        alike = replace(history, place_NM=history.place_NM[:1])  # the same in all rows
        mask_NMM = self.sees_MM(alike.place_NM[0]) & history.mask_NM[:, None]
        relation, memory = self._relation(alike, alike), []
        for n, layer in enumerate(self.layers):
            u, v, q, k = layer.project(x_NMD)
            memory.append((k, v))
            if n + 1 < len(self.layers):  # what comes after the last layer nobody reads
                x_NMD = layer.finish(x_NMD, u, layer.attend(q, k, v, self._bias(layer, relation), mask_NMM))
        return memory

    def score(self, candidates: Tokens, history: Tokens, memory: Memory) -> Tensor:
        """Logits [N, K, M] of candidates after a history."""
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
        """What the layers' bias is made of: places and buckets of time, or the whole bias [N, H, Q, Z] of ALiBi."""
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
        """Vectors [..., D] of items: of their ids and, where they are known, of their contents."""
        if not self.config.content_width:
            return self.items(item_ids)
        return self.items(item_ids) + self.content(self.content_IE[item_ids])

    def context_tokens(self, histories: EventBatch) -> Tokens:
        """Profile fields and the hour of the request; they stand first and have no time of their own."""
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
        """Vectors of what users did at events: bits of behaviours and of how much they watched, through a network."""
        watched_NTW = histories.watch_fraction_UT[..., None] >= torch.tensor(WATCHED, device=self.device)
        bits = torch.cat([histories.behaviours_UTB, watched_NTW.float()], dim=2)
        return self.action(bits.to(self.items.weight.dtype))

    def place_of_candidates(self, batch: RankingBatch) -> Tensor:
        """Places [N, K] of a row's candidates: after the history, all the same."""
        num_N1 = batch.histories.mask_UT.sum(1, keepdim=True)
        place_N1 = self.config.num_context + self.config.tokens_per_event * num_N1
        return place_N1.expand(batch.item_ids_NK.shape)

    def _init_weights(self, module: nn.Module) -> None:
        """Embeddings of unit length, Xavier's uniform matrices.

        Retrieval's small first matrices make what is attended to so small that the eps of its norm hides it at first.
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

    The slopes m_h are ALiBi's, a geometric sequence that ends at 2^-8 (arXiv:2108.12409, §3). There it is added inside
    a softmax, where it makes weights decay. Inside a SiLU it does not: with a product of 1 and a slope of 1, weights at
    distances 0 to 4 are .73, 0, -.27, -.24 and -.14. ``attention`` chooses what it does.

    Args:
        apart: places between query and key [N, Q, P].
        apart_s: seconds between them.
        num_heads: H.
    """
    slope_H = torch.tensor([2 ** (-8 * (head + 1) / num_heads) for head in range(num_heads)], device=apart.device)
    distance = apart.abs() + torch.log1p(apart_s.abs() / 60)
    return -slope_H[:, None, None] * distance[:, None]


def _own_bias(layer: HSTULayer) -> Tensor | float:
    """The bias of a token towards itself: distance 0 and the first bucket of time."""
    if layer.bias is None:
        return 0.0
    own = layer.bias.position[layer.bias.num_positions - 1]
    return own if layer.bias.time is None else own + layer.bias.time[0]


def decided_s(batch: RankingBatch) -> Tensor:
    """float32 seconds [N, K] from the row's request to that of each candidate, of which its first exposure tells."""
    own_s_NK = batch.first_exposure_s_NK().masked_fill(batch.request_NK == 0, 0)
    return own_s_NK.masked_fill(~batch.mask_NK, 0).float()


def _as_candidates(histories: EventBatch) -> RankingBatch:
    """The events with their labels as candidates; of times and requests nothing is said."""
    past = cleaned(histories)
    rows = RankingBatch.unlabelled(past, past.item_ids_UT, past.mask_UT)
    return replace(rows, behaviours_NKB=past.behaviours_UTB, watch_fraction_NK=past.watch_fraction_UT)


def cleaned(histories: EventBatch) -> EventBatch:
    """The histories with zeros where they are padded."""
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
