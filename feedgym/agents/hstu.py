"""HSTU: a sequential transducer for retrieval, and a generative agent that writes sessions (arXiv:2402.17152).

There are two streams of tokens, both after a start token:
    - "items", as in Meta's code for retrieval: one token per event, its item;
    - "events", the paper's timeline (§2.2): profile fields, then items and the user's actions, alternating; the next
      item is predicted after the action. Skipped items can then be recognised as such.

The relative time bias of row i is measured from the request that follows event i. So it needs the time of the next
request, which is known when a request is answered. It is off for data without times (``use_time``).

A session is written item by item. Keys and values of the history are computed once per user and shared by all of the
user's samples. Those of the session's own items are cached. All items of a session have the request's time. In the
events stream their actions are not known yet. A learned token "unknown" replaces them; in training it also replaces a
share of the actions (``hide_actions``).

Sessions are learned by cross-entropy over the whole catalogue (:meth:`HSTU.training_batch`), because sampling and DPO
use probabilities of sessions. For a million items that is too much. With ``loss="sampled_softmax"`` they are learned
against drawn negatives, which teaches the order of items rather than their probabilities. ``bce`` applies only to whole
sequences (:meth:`HSTU.sequence_batch`), from which retrieval learns.

Stochastic length (§3.2): sequences of more than N^(alpha/2) events are cut to that many, except with probability
N^alpha / n^2. The remaining events are drawn, recent ones with higher probability (weights 1 - age / sum of ages); next
items and times stay the true ones. The draw is made in the forward pass, like dropout, and not where batches are made.
Batches are made ahead of time, so a resumed training would draw other numbers.

Deviations: see :mod:`feedgym.agents.sequences`; N is 1 + T + K (Meta's 211 for T = 200 and K = 10 alike). Contextual
features other than the profile, and the sampling of users by 1/n, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput

from feedgym.agents.generation import GenerativeRecommender, SamplingConfig
from feedgym.agents.layers.hstu import CausalTimes, HSTULayer, RelativeBias
from feedgym.agents.layers.relative_time import time_buckets
from feedgym.agents.sequences import (
    IGNORED,
    SequenceConfig,
    SequenceModel,
    Sequences,
    SequenceSizes,
    sampled_softmax,
)
from feedgym.agents.session_model import history_columns, next_token_loss
from feedgym.agents.sharing import part_of_mean
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.ranges import Few, Share, Width
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.item_id import ItemId
from feedgym.tokenizers.vocabulary import Vocabulary

Stream = Literal["items", "events"]

NEVER = -1e4
"""Logit of tokens that are not items."""


@dataclass(frozen=True, kw_only=True)
class HSTUSizes(SequenceSizes):
    """Sizes, stream and loss of HSTU.

    In alignment it learns sessions by cross-entropy over the whole catalogue, because sampling and DPO use
    probabilities of sessions. The losses with drawn negatives are for retrieval (``feedgym run hstu``). If sessions are
    written among candidates (``sampling.candidates``), they may also be learned by sampled_softmax.
    """

    d_qk: Width = 50
    """Width of a head's queries and keys."""
    d_v: Width = 50
    """Width of a head's values and gate."""
    concat_ua: bool = False
    """Feed [u, a, u * a] to the output matrix instead of u * a."""
    stream: Stream = "items"
    """items, or events: profile, items and actions on one timeline."""
    use_time: bool = True
    """Bias attention by the time between an event and the request; off automatically if the data have no times."""
    hide_actions: Share = 0.1
    """Events stream: share of actions that training replaces by "unknown", so that sessions can be written."""
    stochastic_alpha: Annotated[float, Interval(ge=0, le=2)] = 0.0
    """Exponent alpha of the stochastic length, in (1, 2]; 0 trains on whole sequences."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream not in get_args(Stream):
            raise ValueError(f"stream={self.stream!r} is unknown; choose one of {', '.join(get_args(Stream))}.")
        if self.stochastic_alpha and not 1 < self.stochastic_alpha <= 2:
            raise ValueError(
                f"stochastic_alpha={self.stochastic_alpha} must lie in (1, 2], or be 0 for whole sequences."
            )


class HSTUConfig(SequenceConfig):
    """Configuration of an HSTU for transformers."""

    model_type = "hstu"
    sizes = HSTUSizes

    profile_sizes: tuple[int, ...] | list[int] = ()
    """Cardinalities of the F profile fields; used in the events stream."""
    num_behaviours: Few = len(BEHAVIOURS)
    """B."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.profile_sizes = tuple(self.profile_sizes)
        super().__post_init__(**kwargs)

    @property
    def tokens_per_event(self) -> int:
        """1, or 2 if actions are tokens."""
        return 1 if self.stream == "items" else 2

    @property
    def num_prefix(self) -> int:
        """Tokens before the first event: the start and, in the events stream, the profile."""
        return 1 if self.stream == "items" else 1 + len(self.profile_sizes)

    @property
    def num_positions(self) -> int:
        """N, tokens of the longest sequence, including generated ones."""
        return self.num_prefix + self.tokens_per_event * (self.history_length + self.session_length)


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamTokens:
    """Embedded tokens of U sequences with their times.

    Attributes:
        x_UMD: embeddings, without positions.
        begin_s_UM: float64 time of the token's event, seconds.
        request_s_UM: float64 time of the next token's event or of the request, seconds.
        mask_UM: bool.
    """

    x_UMD: Tensor
    begin_s_UM: Tensor
    request_s_UM: Tensor
    mask_UM: Tensor


class HidingMask(nn.Dropout):
    """Chooses what training hides; a Dropout, so that switching off a model's dropout also switches this off."""

    def forward(self, x: Tensor) -> Tensor:
        """True for hidden elements, bool of the shape of ``x``: a share ``p`` in training, none otherwise."""
        if not (self.training and self.p):
            return torch.zeros_like(x, dtype=torch.bool)
        return torch.rand(x.shape, device=x.device) < self.p


class HSTUState:
    """State of decoding: users' keys and values, and those of the items that each row has written.

    Attributes:
        memory: keys and values [U, M, H, d] per layer, of the history's tokens.
        tokens: the history's tokens, for their mask and times.
        length_U: real tokens of each history.
        now_s_U: time of the request, seconds.
        own: keys and values [U, S, C, H, d] per layer, of the C tokens written so far.
        hidden_USD: the vector after each row's last token.
    """

    def __init__(
        self, memory: list[tuple[Tensor, Tensor]], tokens: StreamTokens, now_s_U: Tensor, hidden_USD: Tensor
    ) -> None:
        self.memory, self.tokens, self.now_s_U, self.hidden_USD = memory, tokens, now_s_U, hidden_USD
        self.length_U = tokens.mask_UM.sum(1)
        self.own = [(keys[:, None, :0], values[:, None, :0]) for keys, values in memory]

    def select(self, parent_US: Tensor) -> None:
        """Let row (u, s) become a copy of row (u, parent_US[u, s]); the number of samples may change."""
        user_U1 = torch.arange(len(parent_US), device=parent_US.device)[:, None]
        self.own = [(keys[user_U1, parent_US], values[user_U1, parent_US]) for keys, values in self.own]
        self.hidden_USD = self.hidden_USD[user_U1, parent_US]


class HSTU(SequenceModel):
    """The model. Its tokens are those of :class:`feedgym.tokenizers.vocabulary.Vocabulary` over item ids."""

    config: HSTUConfig
    layers: Any
    title = "HSTU"
    Config = HSTUSizes
    config_class = HSTUConfig
    base_model_prefix = "model"

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__(config)
        self.positions = nn.Embedding(config.num_positions, config.d_model)
        if config.stream == "events":
            self.profile = nn.ModuleList(nn.Embedding(size, config.d_model) for size in config.profile_sizes)
            self.action = nn.Linear(config.num_behaviours + 1, config.d_model)
            self.unknown_action = nn.Embedding(1, config.d_model)
            self.hidden_actions = HidingMask(config.hide_actions)
        shape = (config.d_model, config.num_heads, config.d_qk, config.d_v, config.num_positions)
        extras = (config.use_time, config.concat_ua, config.dropout)
        self.layers = nn.ModuleList(HSTULayer(*shape, *extras) for _ in range(config.num_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    @classmethod
    def build(
        cls,
        config: HSTUSizes,
        tokenizer: CodeTokenizer,
        *,
        session_length: int,
        history_length: int,
        profile_sizes: tuple[int, ...],
    ) -> Self:
        """Build a model as in :meth:`feedgym.protocols.GenerativeAgent.build`.

        Raises:
            ValueError: an item has more than one code.
        """
        if tokenizer.num_codes != (tokenizer.num_items,):
            raise ValueError(f"HSTU writes item ids, not {tokenizer.num_levels} codes per item; use item_id.")
        lengths = {"session_length": session_length, "history_length": history_length}
        settings: Any = HSTUConfig
        sizes = {**vars(config), **lengths, "profile_sizes": profile_sizes}
        return cls(settings(**sizes, num_items=tokenizer.num_items))

    @classmethod
    def for_log(cls, sizes: HSTUSizes, *, profile_sizes: tuple[int, ...], has_time: bool, **data_fields: Any) -> Self:
        """Make an untrained model for a log, as in the base class."""
        settings: Any = HSTUConfig
        use_time = {"use_time": sizes.use_time and has_time}
        return cls(settings(**vars(sizes) | use_time, profile_sizes=profile_sizes, **data_fields))

    @classmethod
    def load(cls, folder: Path | str, tokenizer: CodeTokenizer | None = None) -> Self:
        """The model saved in ``folder``.

        Raises:
            ValueError: a file is missing or damaged, or the tokenizer has another number of items.
        """
        model = super().load(folder)
        if tokenizer is not None and tokenizer.num_items != model.config.num_items:
            raise ValueError(
                f"The model was trained on {model.config.num_items} items, not {tokenizer.num_items}; load the "
                "tokenizer saved with it or pretrain again."
            )
        return model

    # ------------------------------------------------------------ whole sequences

    def encode(self, sequences: Sequences) -> Tensor:
        """Vectors [U, Z, D]; in the events stream those after the actions (and after the profile)."""
        hidden_UMD, _ = self._run(self.embed(sequences))
        return hidden_UMD[:, self.config.num_prefix - 1 :: self.config.tokens_per_event]

    def embed(self, sequences: Sequences) -> StreamTokens:
        """The embedded tokens of the stream."""
        x_UZD = self.items(sequences.item_ids_UZ) * self.config.d_model**0.5
        begin_s_UZ, request_s_UZ, mask_UZ = sequences.begin_s_UZ, sequences.request_s_UZ, sequences.mask_UZ
        if self.config.stream == "items":
            return StreamTokens(x_UMD=x_UZD, begin_s_UM=begin_s_UZ, request_s_UM=request_s_UZ, mask_UM=mask_UZ)
        num_fields = len(self.config.profile_sizes)
        profile = [field(sequences.profile_UF[:, f])[:, None] for f, field in enumerate(self.profile)]
        pairs_UTD = torch.stack([x_UZD[:, 1:], self._actions(sequences)[:, 1:]], dim=2).flatten(1, 2)

        def spread(first_UZ: Tensor, second_UZ: Tensor) -> Tensor:
            """The start's value for the prefix, then two values per event."""
            pairs = torch.stack([first_UZ[:, 1:], second_UZ[:, 1:]], dim=2).flatten(1)
            return torch.cat([first_UZ[:, :1].expand(-1, 1 + num_fields), pairs], dim=1)

        request_s_UM = spread(begin_s_UZ, request_s_UZ)  # an item's action follows it at the same time
        request_s_UM[:, num_fields] = request_s_UZ[:, 0]
        return StreamTokens(
            x_UMD=torch.cat([x_UZD[:, :1], *profile, pairs_UTD], dim=1),
            begin_s_UM=spread(begin_s_UZ, begin_s_UZ),
            request_s_UM=request_s_UM,
            mask_UM=spread(mask_UZ, mask_UZ),
        )

    def _actions(self, sequences: Sequences) -> Tensor:
        """Vectors [U, Z, D] of the users' actions; in training some are unknown."""
        features = torch.cat([sequences.behaviours_UZB, sequences.watch_fraction_UZ[..., None]], dim=2)
        known_UZD = self.action(features.to(self.action.weight.dtype))
        hidden_UZ = self.hidden_actions(known_UZD[..., 0])
        return torch.where(hidden_UZ[..., None], self.unknown_action.weight[0], known_UZD)

    def _run(self, tokens: StreamTokens) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Vectors [U, M, D] after each token, and each layer's keys and values."""
        x_UMD = self.dropout(tokens.x_UMD + self.positions.weight[: tokens.x_UMD.shape[1]]) * tokens.mask_UM[..., None]
        # Padding comes after every real token, so it needs no mask of its own.
        times = CausalTimes(
            request_s_UM=tokens.request_s_UM, begin_s_UM=tokens.begin_s_UM, use_time=self.config.use_time
        )
        memory = []
        for layer in self.layers:
            x_UMD, k, v = layer(x_UMD, times)
            x_UMD = x_UMD * tokens.mask_UM[..., None]
            memory.append((k, v))
        return x_UMD, memory

    def _buckets(self, request_s: Tensor, begin_s: Tensor) -> Tensor | None:
        if not self.config.use_time:
            return None
        return time_buckets(request_s[..., :, None] - begin_s[..., None, :])

    # ------------------------------------------------------------ sessions

    @property
    def vocabulary(self) -> Vocabulary:
        """Padding, BOS, and one token per item."""
        return Vocabulary((self.config.num_items,))

    def session_tokens(self, item_ids_NK: Tensor) -> Tensor:
        """Tokens [N, 2K] of sessions of item ids, BOS before every item; PAD where an item is -1."""
        return self.vocabulary.session_tokens(item_ids_NK.to(self.device)[..., None])

    def training_batch(self, histories: EventBatch, item_ids_NK: Tensor) -> dict[str, Tensor]:
        """Inputs of :meth:`forward` to learn the sessions; BOS and padding are read but not learned."""
        tokens_NM = self.session_tokens(item_ids_NK)
        return {
            "input_ids": tokens_NM,
            "attention_mask": (tokens_NM != Vocabulary.pad_id).long(),
            "labels": tokens_NM.masked_fill(~self.vocabulary.completion_mask(tokens_NM), IGNORED),
            **history_columns(histories),
        }

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **columns: Tensor,
    ) -> CausalLMOutput:
        """Whole sequences, or sessions after histories, teacher-forced.

        Args:
            input_ids: [R, M] tokens of sessions, BOS before every item; whole sequences are learned if left out.
            attention_mask: not needed: right padding comes after every real token.
            labels: [R, M], ``input_ids`` with -100 where nothing is learned; shifted here.
            use_cache: ignored; :meth:`step` is the cached path.
            **columns: those of :class:`Sequences`; with ``input_ids`` those of an EventBatch of U histories, where row
                r continues history r mod U.

        Returns:
            The loss of whole sequences; or the logits [R, M, V] of the tokens after each, and the loss of the labels.
            In training by sampled_softmax only the loss, for which no logits of all items are needed.
        """
        if input_ids is None:
            return super().forward(**vars(self._of_stochastic_length(Sequences(**columns))))
        state = self._begin(EventBatch(**columns))
        tokens_USM = input_ids.unflatten(0, (-1, len(state.length_U))).transpose(0, 1)
        state.hidden_USD = state.hidden_USD.expand(-1, tokens_USM.shape[1], -1)
        items_USK = (tokens_USM[..., 1::2] - self.vocabulary.level_offset(0)).clamp_min(0)
        hidden_USKD = torch.cat([state.hidden_USD[:, :, None], self._extend(items_USK, state)], dim=2)
        if labels is not None and self.training and self.config.loss == "sampled_softmax":
            return CausalLMOutput(loss=self._sampled_loss(hidden_USKD, labels))
        after_M = (torch.arange(input_ids.shape[1], device=input_ids.device) + 1) // 2  # items read so far
        logits = self._token_logits(hidden_USKD[:, :, after_M]).transpose(0, 1).flatten(0, 1)
        loss = None
        if labels is not None:
            loss = next_token_loss(logits, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def _sampled_loss(self, hidden_USKD: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the sessions' items among themselves and drawn negatives; see :meth:`forward`."""
        label_USK = labels.unflatten(0, (-1, len(hidden_USKD))).transpose(0, 1)[..., 1::2]
        at_USK = label_USK != IGNORED
        target_N = label_USK[at_USK] - self.vocabulary.level_offset(0)
        logits_NS, negative_NS = self._with_negatives(hidden_USKD[:, :, :-1][at_USK], target_N)
        return part_of_mean(sampled_softmax(logits_NS, negative_NS == target_N[:, None]), at_USK.sum())

    def _of_stochastic_length(self, sequences: Sequences) -> Sequences:
        """Cut long sequences in training, if it is configured."""
        if not (self.training and self.config.stochastic_alpha):
            return sequences
        limit = self.config.history_length + self.config.session_length
        return stochastic_length(sequences, self.config.stochastic_alpha, limit)

    def start(self, histories: EventBatch, max_tokens: int) -> HSTUState:
        """Read the histories; one row per user.

        Raises:
            ValueError: the sessions are longer than the model allows.
        """
        if max_tokens > 2 * self.config.session_length:
            raise ValueError(
                f"Sessions of {max_tokens // 2} items exceed the model's session_length={self.config.session_length}; "
                "ask for fewer or build a longer model."
            )
        return self._begin(histories)

    def step(self, tokens_USM: Tensor, state: HSTUState) -> Tensor:
        """Float32 logits [U, S, V] after BOS alone, which adds nothing, or after an item and BOS."""
        return self._token_logits(self._feed(tokens_USM, state))

    def query(self, tokens_USM: Tensor, state: HSTUState) -> Tensor:
        """Vectors [U, S, D] after the same tokens; their products with :meth:`item_vectors` are the items' logits."""
        return self._queries(self._feed(tokens_USM, state))

    def _feed(self, tokens_USM: Tensor, state: HSTUState) -> Tensor:
        if tokens_USM.shape[2] > 1:
            self._extend(tokens_USM[..., :1] - self.vocabulary.level_offset(0), state)
        return state.hidden_USD

    def _begin(self, histories: EventBatch) -> HSTUState:
        sequences = Sequences.of(histories.trimmed(), self.config, self.config.history_length)
        tokens = self.embed(sequences)
        hidden_UMD, memory = self._run(tokens)
        user_U = torch.arange(len(hidden_UMD), device=hidden_UMD.device)
        now_s_U = sequences.request_s_UZ[user_U, sequences.length_U - 1]
        last_UD = hidden_UMD[user_U, tokens.mask_UM.sum(1) - 1]
        return HSTUState(memory, tokens, now_s_U, last_UD[:, None])

    def _extend(self, item_ids_USK: Tensor, state: HSTUState) -> Tensor:
        """Vectors [U, S, K, D] after K more items of each row; the state grows by them."""
        per_event, (num_users, num_rows, num_items) = self.config.tokens_per_event, item_ids_USK.shape
        x = self.items(item_ids_USK) * self.config.d_model**0.5
        if per_event == 2:
            x = torch.stack([x, self.unknown_action.weight[0].expand_as(x)], dim=3).flatten(2, 3)
        num_cached, num_new = state.own[0][0].shape[2], num_items * per_event
        place_C = torch.arange(num_cached + num_new, device=x.device)
        place_UM = state.length_U[:, None] + place_C[num_cached:]
        x = self.dropout(x + self.positions(place_UM)[:, None])
        tokens, now_s_UM = state.tokens, state.now_s_U[:, None].expand(-1, num_new)
        key_1M = torch.arange(tokens.mask_UM.shape[1], device=x.device)[None]
        to_history = self._buckets(now_s_UM, tokens.begin_s_UM)
        to_own = torch.zeros(num_new, len(place_C), dtype=torch.long, device=x.device)  # all at the request's time
        causal_MC = place_C[num_cached:, None] >= place_C
        own = []
        for layer, (keys, values), cached in zip(self.layers, state.memory, state.own, strict=True):
            u, v, q, k = layer.project(x)
            k, v = (_appended(old, new) for old, new in zip(cached, (k, v), strict=True))
            own.append((k, v))
            # Every row of a user attends to the user's single memory: rows and tokens are both queries.
            bias_UMZ = layer.bias(place_UM, key_1M, to_history)
            every = [part.repeat(1, num_rows, 1) for part in (bias_UMZ, tokens.mask_UM[:, None].expand_as(bias_UMZ))]
            memory = layer.attend(q.flatten(1, 2), keys, values, *every).unflatten(1, (num_rows, num_new))
            bias_MC = layer.bias(place_C[num_cached:], place_C, to_own if self.config.use_time else None)
            itself = layer.attend(*(part.flatten(0, 1) for part in (q, k, v)), bias_MC[None], causal_MC[None])
            x = layer.finish(x, u, memory + itself.unflatten(0, (num_users, num_rows)))
        state.own = own
        state.hidden_USD = x[:, :, -1]
        return x[:, :, per_event - 1 :: per_event]

    def _token_logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] over the vocabulary; tokens that are not items have almost no probability."""
        return F.pad(self.item_logits(hidden), (self.vocabulary.level_offset(0), 0), value=NEVER)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, RelativeBias):
            for table in (module.position, module.time):
                if table is not None:
                    init.normal_(table, std=std)
        if isinstance(module, HSTULayer):
            init.normal_(module.uvqk, std=std)
        if module is self.positions:
            init.trunc_normal_(module.weight, std=self.config.d_model**-0.5)


def _appended(cached: Tensor, new: Tensor) -> Tensor:
    """Appends new keys or values to cached ones [U, S, C, H, d]; an empty cache is shared by all rows."""
    return torch.cat([cached.expand(-1, new.shape[1], -1, -1, -1), new], dim=2)


def stochastic_length(
    sequences: Sequences, alpha: float, longest: int, generator: torch.Generator | None = None
) -> Sequences:
    """Cuts sequences to at most N^(alpha/2) events, except with probability N^alpha / n^2 (§3.2, eq. 4).

    Args:
        sequences: U sequences; the start always stays.
        alpha: exponent in (1, 2]; 2 cuts nothing.
        longest: N, events of the longest sequence.
        generator: for the draws; torch's own if left out.
    """
    kept = max(1, round(longest ** (alpha / 2)))
    num_U = sequences.length_U - 1
    device = num_U.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    cut_U = (num_U > kept) & (uniform(len(num_U)) >= longest**alpha / num_U.clamp_min(1) ** 2)
    begin_s_UT, mask_UT = sequences.begin_s_UZ[:, 1:], sequences.mask_UZ[:, 1:]
    age_s_UT = (begin_s_UT.masked_fill(~mask_UT, -torch.inf).amax(1, keepdim=True) - begin_s_UT).masked_fill(
        ~mask_UT, 0
    )
    weight_UT = 1 - age_s_UT / age_s_UT.sum(1, keepdim=True).clamp_min(1e-9)
    # Weighted draws without replacement are the largest values of log weight + Gumbel noise.
    noise_UT = weight_UT.clamp_min(1e-9).log().float() - (-uniform(*mask_UT.shape).clamp_min(1e-20).log()).log()
    rank_UT = noise_UT.masked_fill(~mask_UT, -torch.inf).argsort(1, descending=True).argsort(1)
    stays_UT = mask_UT & (~cut_U[:, None] | (rank_UT < kept))
    stays_UZ = F.pad(stays_UT, (1, 0), value=True)
    order_UZ = (~stays_UZ).int().argsort(dim=1, stable=True)[:, : int(stays_UZ.sum(1).max())]
    chosen = sequences.positions(order_UZ)
    real_UZ = stays_UZ.gather(1, order_UZ)
    return Sequences(**vars(chosen) | {"mask_UZ": real_UZ, "next_UZ": chosen.next_UZ.masked_fill(~real_UZ, IGNORED)})


class HSTURecommender(GenerativeRecommender):
    """An HSTU as a Recommender; see :class:`GenerativeRecommender` for the other arguments.

    It also scores all items, as full ranking needs it.
    """

    def __init__(
        self,
        model: HSTU,
        session_length: int | None = None,
        sampling: SamplingConfig | None = None,
        num_beams: int = 8,
        device: torch.device | str | None = None,
        *,
        catalog: Catalog | None = None,
    ) -> None:
        trie = ItemId().fit(torch.zeros(model.config.num_items, 1)).trie()
        length = session_length or model.config.session_length
        super().__init__(model, trie, length, sampling, num_beams, device, catalog=catalog)

    def scores(self, histories: EventBatch) -> Tensor:
        """Logits [U, I], also of seen items."""
        return self.model.scores(histories)
