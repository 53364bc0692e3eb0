"""TIGER: an encoder-decoder over semantic ids that generates the codes of the next item (arXiv:2305.05065).

The encoder reads [user token, codes of item 1, codes of item 2, ...], L codes per item. The decoder starts at BOS and
writes the L codes of the next item. Both are as in T5: relative position bias, RMS norms before every part, ReLU.
:class:`~feedgym.tokenizers.rqvae.RQVAE` gives the paper's codes; any CodeTokenizer can be used.

If several items share their content's codes, the tokenizer's last level counts them (TIGER §3.1). So a decoded tuple is
one item, and a beam search ranks the items of such a group by the probability of their counters.

Deviations from the paper:
    - A session of K items is written by further decoding, with BOS before every item as in OneRec: [BOS, s1^1..s1^L,
      BOS, s2^1, ...]. ``session_length=1`` is the paper's model.
    - The user token is a hash of the profile fields, because histories hold no user id, and new users have none that
      was trained on. By default all users have the same token, which GRID found best.
    - ``event_features`` adds OneRec's event features (behaviours, watched fraction, times) to the codes, and the
      profile and time of day as tokens. With ``only_positives=False`` it distinguishes liked from disliked items. By
      default the model reads only the codes of the newest positive items, as in the paper.
    - Searches and samples are restricted to existing codes; the paper decodes freely and drops invalid ids.
    - Input and output embeddings are two matrices, as in T5 1.1, unless ``tie_word_embeddings``; the output matrix is
      initialised so small that logits have size 1.
    - No dropout on attention weights, with which no fused kernel runs on a CPU, or inside feed-forward layers.
    - AdamW, because the paper does not name its optimizer; its schedule is ``inverse_sqrt``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from feedgym.agents.layers.attention import CrossAttention, SelfAttention
from feedgym.agents.layers.history import EventFeatures, RequestTokens, newest_events
from feedgym.agents.layers.relative_bias import RelativeBias
from feedgym.agents.layers.transformer import DecoderLayer as CrossDecoderLayer
from feedgym.agents.layers.transformer import DecodingState, EncoderLayer
from feedgym.agents.session_model import EncoderDecoder, SessionConfig, SessionModel
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS
from feedgym.ranges import BelowOne, Count, Few, Length, Positive, Ranged, Width


@dataclass(frozen=True, kw_only=True)
class TigerSizes(Ranged):
    """Sizes and inputs of TIGER; the defaults are the paper's."""

    d_model: Width = 128
    """D, width of the model."""
    num_heads: Few = 6
    """H, attention heads."""
    head_width: Width = 64
    """Width of a head; H times this need not equal D."""
    encoder_layers: Few = 4
    """Layers that read the history."""
    decoder_layers: Few = 4
    """Layers that write the codes."""
    d_ff: Width = 1024
    """Width inside a feed-forward layer."""
    dropout: BelowOne = 0.1
    """Dropout on the embeddings, on every layer's parts and on both stacks' outputs."""
    num_buckets: Annotated[int, Interval(ge=4, le=1024)] = 32
    """Buckets of relative positions."""
    max_distance: Length = 128
    """Largest distance in tokens; larger ones share a bucket."""
    num_user_tokens: Count = 1
    """Number of tokens to which users are hashed by their profile; the paper uses 2,000, for user ids. 1: one for
    all."""
    only_positives: bool = True
    """Read only events with a behaviour of ``positives``; otherwise all that were examined."""
    positives: tuple[str, ...] = BEHAVIOURS[:-1]
    """The behaviours that make an event positive."""
    event_features: bool = False
    """Also read behaviours, watched fraction and times of the events, the profile and the time of day."""
    semantic_init: bool = False
    """Initialise code embeddings from the tokenizer's centroids, if it has any; the paper initialises at random."""


class TigerConfig(SessionConfig):
    """Configuration of a TIGER for transformers; the defaults are the paper's."""

    model_type = "tiger"
    sizes = TigerSizes

    session_length: Length = 1
    """K, most items of a session; 1 in the paper."""
    history_length: Length = 20
    """T, how many of the newest events of a history are read."""
    initializer_factor: Positive = 1.0
    """Multiplies T5's standard deviations of the initial weights."""
    initializer_range: Positive = 0.06
    """Standard deviation of initial weights that T5 does not have: those of the features."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.num_user_tokens > 1 and not self.profile_sizes:
            raise ValueError(
                f"num_user_tokens={self.num_user_tokens} must be 1 (the same token for all), or more if users "
                f"have profile fields to hash; these have {len(self.profile_sizes)} fields."
            )


def user_token(profile_UF: Tensor, num_tokens: int) -> Tensor:
    """int64 [U] token 0..num_tokens-1 from the users' profile fields; the same fields always give the same token."""
    hashed_U = profile_UF.new_zeros(len(profile_UF))
    for field_U in profile_UF.T:
        hashed_U = (hashed_U + field_U + 1) * 0x5851F42D4C957F2D  # Knuth's multiplier; wraps around
        hashed_U = hashed_U ^ (hashed_U >> 29)
    return hashed_U % num_tokens


class Encoder(nn.Module):
    """Encodes histories as memory; the token embedding is shared with the decoder."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        self.users = nn.Embedding(config.num_user_tokens, config.d_model)
        self.events: nn.Module | None = None
        self.request: nn.Module | None = None
        if config.event_features:
            self.events = EventFeatures(config.d_model, config.num_behaviours, config.history_length)
            self.request = RequestTokens(config.d_model, tuple(config.profile_sizes))
        self.bias = RelativeBias(config.num_heads, config.num_buckets, config.max_distance, bidirectional=True)
        self.layers = nn.ModuleList(
            EncoderLayer(config.d_model, config.num_heads, config.d_ff, config.dropout, config.head_width, 1.0)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, histories: EventBatch, tokens_UTLD: Tensor) -> tuple[Tensor, Tensor]:
        """Memory [U, T', D] and its mask [U, 1, 1, T'], where T' is T·L plus the tokens in front."""
        front = [self.users(user_token(histories.profile_UF, self.users.num_embeddings))[:, None]]
        if self.events is not None and self.request is not None:
            tokens_UTLD = tokens_UTLD + self.events(histories).unsqueeze(2)
            front.append(self.request(histories))
        x = torch.cat([*front, tokens_UTLD.flatten(1, 2)], dim=1)
        real = histories.mask_UT.repeat_interleave(tokens_UTLD.shape[2], dim=1)
        mask = F.pad(real, (x.shape[1] - real.shape[1], 0), value=True)[:, None, None]
        scores = torch.where(mask, self.bias(x.shape[1]), -torch.inf)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, scores)
        return self.dropout(self.norm(x)), mask


class DecoderLayer(CrossDecoderLayer):
    """Causal self-attention, cross-attention and feed-forward."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__(config.d_model, config.num_heads, config.dropout, config.head_width, 1.0)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_RMD: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor, bias: Tensor) -> Tensor:
        """Output [R, M, D] of whole sequences."""
        return self.feed_forward(self.attend(x_RMD, memory, mask, bias))

    def step(self, x_MRD: Tensor, layer_idx: int, state: DecodingState, bias_HQM: Tensor) -> Tensor:
        """Output [Q, R, D] of the newest Q positions; the state's rows are sorted by user."""
        return state.feed_forward(self, state.attend(self, x_MRD, layer_idx, bias_HQM.shape[1], bias_HQM))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Two matrices with ReLU between them."""
        return x + self.dropout(self.down(self.up(self.norm_ff(x)).relu()))


class TigerBackbone(EncoderDecoder):
    """Everything below the output matrix."""

    layers: Sequence[DecoderLayer]
    encoder: Encoder

    def __init__(self, config: TigerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.bias = RelativeBias(config.num_heads, config.num_buckets, config.max_distance, bidirectional=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))  # type: ignore[assignment]
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)

    def read(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """Encode as in :class:`EncoderDecoder`, but only the events that the model reads."""
        keep_UT = histories.mask_UT
        if self.config.only_positives:
            positive = [BEHAVIOUR_IDX[name] for name in self.config.positives]
            keep_UT = keep_UT & (histories.behaviours_UTB[..., positive] > 0).any(-1)
        return super().read(newest_events(histories, keep_UT, self.config.history_length))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **history: Tensor,
    ) -> BaseModelOutput:
        """Hidden states of decoder sequences, right-padded.

        Args:
            input_ids: [R, M] decoder tokens.
            attention_mask: not needed: right padding comes after every real token.
            use_cache: ignored; :meth:`Tiger.step` is the cached path.
            **history: the columns of an EventBatch of U histories; row r decodes history r mod U.
        """
        memory, mask = self.encode(EventBatch(**history))
        num_rows, num_positions = input_ids.shape
        assert num_rows % len(mask) == 0, f"{num_rows} decoder rows do not fit {len(mask)} histories"
        future_MM = torch.ones(num_positions, num_positions, dtype=torch.bool, device=input_ids.device).triu(1)
        scores = self.bias(num_positions)[None].masked_fill(future_MM, -torch.inf)
        x_RMD = self.dropout(self.tokens(input_ids))
        for layer, keys_values in zip(self.layers, memory, strict=True):
            x_RMD = layer(x_RMD, keys_values, mask, scores)
        return BaseModelOutput(last_hidden_state=self._hidden(x_RMD))

    def step(self, tokens_USM: Tensor, state: DecodingState) -> Tensor:
        """Hidden state [U, S, D] after the last of M new tokens per row; the state grows by M positions."""
        num_new = tokens_USM.shape[2]
        bias_HQM = self.bias(state.length + num_new, num_new)
        x_MRD = self.tokens(tokens_USM.flatten(0, 1).T)
        state.begin(num_new)
        for i, layer in enumerate(self.layers):
            # Only the newest position is read at the end, so the last layer computes no other.
            x_MRD = layer.step(x_MRD, i, state, bias_HQM[:, -1:] if i == len(self.layers) - 1 else bias_HQM)
        state.length += num_new
        return self._hidden(x_MRD[-1]).view(*tokens_USM.shape[:2], -1)

    def _hidden(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.norm(x))
        # Embeddings of size 1 would give logits of size sqrt(D): T5 scales them if they are also the output matrix.
        return hidden * self.config.d_model**-0.5 if self.config.tie_word_embeddings else hidden


class Tiger(SessionModel):
    """The model: backbone and one output matrix over the joint vocabulary."""

    title = "TIGER"
    Config = TigerSizes
    config_class = TigerConfig
    model: TigerBackbone
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012 - the name and type transformers prescribes

    def __init__(self, config: TigerConfig) -> None:
        super().__init__(config)
        self.model = TigerBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()
        self._start_as_t5()

    @torch.no_grad()
    def _start_as_t5(self) -> None:
        """Set T5's initial weights: products with activations of size 1 have size 1; heads do not scale."""
        width, inner, ff = self.config.d_model, self.config.num_heads * self.config.head_width, self.config.d_ff
        query_std = (width * self.config.head_width) ** -0.5
        starts = [(self.model.tokens.weight, 1.0), (self.model.encoder.users.weight, 1.0)]
        if not self.config.tie_word_embeddings:
            starts.append((self.lm_head.weight, width**-0.5))
        for module in self.modules():
            if isinstance(module, SelfAttention):
                starts += [(module.qkv.weight[:inner], query_std), (module.qkv.weight[inner:], width**-0.5)]
            if isinstance(module, CrossAttention):
                starts += [(module.q.weight, query_std), (module.kv.weight, width**-0.5)]
            if isinstance(module, (SelfAttention, CrossAttention)):
                starts.append((module.out.weight, inner**-0.5))
            if isinstance(module, (EncoderLayer, DecoderLayer)):
                starts += [(module.up.weight, width**-0.5), (module.down.weight, ff**-0.5)]
            if isinstance(module, RelativeBias):
                starts.append((module.bias.weight, width**-0.5))
        for weight, std in starts:
            weight.normal_(0.0, self.config.initializer_factor * std)
