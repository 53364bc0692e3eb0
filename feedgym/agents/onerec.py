"""OneRec: an encoder-decoder that generates a whole session of items as semantic tokens (arXiv:2502.18965).

The encoder reads the history, L tokens per item, fully visible. The decoder reads BOS before every item and predicts
the item's L codes: [BOS, s1^1..s1^L, BOS, s2^1, ...]. Its feed-forward layers are sparse mixtures of experts (eq. 5).
One output matrix covers the joint vocabulary of all levels.

Deviations from the paper:
    - No separator token between history items: a level embedding marks where an item begins.
    - The history holds every examined item with its behaviours, watched fraction and times as added features; the paper
      uses only positive items. Profile fields and time of day are extra tokens.
    - Learned absolute positions in the decoder, recency ranks in the encoder.
    - A load-balancing loss (Switch, arXiv:2101.03961, eq. 4-6) on the experts; the paper does not describe its
      balancing.
    - Code embeddings start at the tokenizer's centroids (``semantic_init``), so that similarity of content is known
      from the first step. The paper does not mention initial weights, and trains on billions of sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast

from feedgym.agents.layers.history import EventFeatures, RequestTokens
from feedgym.agents.layers.moe import SparseMoE, balance_loss
from feedgym.agents.layers.transformer import DecoderLayer as CrossDecoderLayer
from feedgym.agents.layers.transformer import DecodingState, EncoderLayer
from feedgym.agents.session_model import EncoderDecoder, SessionConfig, SessionModel, next_token_loss
from feedgym.data.batches import EventBatch
from feedgym.ranges import BelowOne, Few, NonNegative, Positive, Ranged, Width, check_divides


@dataclass(frozen=True, kw_only=True)
class OneRecSizes(Ranged):
    """Sizes of OneRec."""

    d_model: Width = 64
    """D, width of the model."""
    num_heads: Few = 4
    """H, attention heads; must divide d_model."""
    encoder_layers: Few = 1
    """Layers that read the history."""
    decoder_layers: Few = 2
    """Layers that write the session."""
    d_ff: Width = 128
    """Width inside an encoder's feed-forward layer and inside each expert."""
    num_experts: Few = 4
    """Experts in each decoder layer; the paper uses 24."""
    num_experts_per_tok: Few = 2
    """Experts per token."""
    gate_renormalise: bool = False
    """Divide the selected gates by their sum; the paper does not."""
    router_aux_loss_coef: NonNegative = 0.01
    """Weight of the loss that balances the experts' load."""
    dropout: BelowOne = 0.0
    """Dropout on the embeddings and on every layer's output."""
    semantic_init: bool = True
    """Initialise code embeddings from the tokenizer's centroids, if it has any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides(self, "num_heads", "d_model")
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} is above num_experts={self.num_experts}; lower it."
            )


class OneRecConfig(SessionConfig):
    """Configuration of a OneRec for transformers."""

    model_type = "onerec"
    sizes = OneRecSizes

    output_router_logits: bool = True
    """Return the router's logits and add the load-balancing loss."""
    initializer_range: Positive = 0.06
    """Standard deviation of the initial weights."""


class Encoder(nn.Module):
    """Encodes histories as memory; the token embedding is shared with the decoder."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.events = EventFeatures(config.d_model, config.num_behaviours, config.history_length)
        self.request = RequestTokens(config.d_model, tuple(config.profile_sizes))
        self.level = nn.Embedding(len(config.num_codes), config.d_model)
        self.layers = nn.ModuleList(
            EncoderLayer(config.d_model, config.num_heads, config.d_ff, config.dropout)
            for _ in range(config.encoder_layers)
        )
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, histories: EventBatch, tokens_UTLD: Tensor) -> tuple[Tensor, Tensor]:
        """Memory [U, F + 1 + T·L, D] and its mask [U, 1, 1, F + 1 + T·L]."""
        events_UTLD = tokens_UTLD + self.events(histories).unsqueeze(2) + self.level.weight
        request_UFD = self.request(histories)
        x = self.dropout(torch.cat([request_UFD, events_UTLD.flatten(1, 2)], dim=1))
        real = histories.mask_UT.repeat_interleave(tokens_UTLD.shape[2], dim=1)
        mask = F.pad(real, (request_UFD.shape[1], 0), value=True)[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x), mask


class DecoderLayer(CrossDecoderLayer):
    """Causal self-attention, cross-attention and mixture of experts."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config.d_model, config.num_heads, config.dropout)
        self.experts = SparseMoE(
            config.d_model, config.d_ff, config.num_experts, config.num_experts_per_tok, config.gate_renormalise
        )

    def forward(self, x_RMD: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Output [R, M, D] and router logits [R·M, E] of whole sequences."""
        return self._experts(self.attend(x_RMD, memory, mask))

    def step(self, x_MRD: Tensor, layer_idx: int, state: DecodingState, num_queries: int) -> Tensor:
        """Output [num_queries, R, D] of the newest M positions; the state's rows are sorted by user."""
        return state.feed_forward(self, state.attend(self, x_MRD, layer_idx, num_queries))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The mixture of experts."""
        return self._experts(x)[0]

    def _experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        update, router_logits = self.experts(self.norm_ff(x).flatten(0, 1))
        return x + self.dropout(update).view_as(x), router_logits


class OneRecBackbone(EncoderDecoder):
    """Everything below the output matrix."""

    layers: Sequence[DecoderLayer]

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        self.positions = nn.Embedding(config.max_tokens, config.d_model)
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))  # type: ignore[assignment]
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        **history: Tensor,
    ) -> MoeModelOutputWithPast:
        """Hidden states of decoder sequences, right-padded.

        Args:
            input_ids: [R, M] decoder tokens.
            attention_mask: not needed: right padding comes after every real token.
            use_cache: ignored; :meth:`OneRec.step` is the cached path.
            output_router_logits: return the router's logits, [R·M, E] per layer.
            **history: the columns of an EventBatch of U histories; row r decodes history r mod U.
        """
        memory, mask = self.encode(EventBatch(**history))
        num_rows, num_positions = input_ids.shape
        assert num_rows % len(mask) == 0, f"{num_rows} decoder rows do not fit {len(mask)} histories"
        x_RMD = self.dropout(self.tokens(input_ids) + self.positions.weight[:num_positions])
        router_logits = []
        for layer, keys_values in zip(self.layers, memory, strict=True):
            x_RMD, logits = layer(x_RMD, keys_values, mask)
            router_logits.append(logits)
        wanted = self.config.output_router_logits if output_router_logits is None else output_router_logits
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(x_RMD), router_logits=tuple(router_logits) if wanted else None
        )

    def step(self, tokens_USM: Tensor, state: DecodingState) -> Tensor:
        """Hidden state [U, S, D] after the last of M new tokens per row; the state grows by M positions."""
        num_new = tokens_USM.shape[2]
        positions_MD = self.positions.weight[state.length : state.length + num_new]
        x_MRD = self.tokens(tokens_USM.flatten(0, 1).T) + positions_MD[:, None]
        state.begin(num_new)
        for i, layer in enumerate(self.layers):
            # Only the newest position is read at the end, so the last layer computes no other.
            x_MRD = layer.step(x_MRD, i, state, 1 if i == len(self.layers) - 1 else num_new)
        state.length += num_new
        return self.norm(x_MRD[-1]).view(*tokens_USM.shape[:2], -1)


class OneRec(SessionModel):
    """The model: backbone and one output matrix over the joint vocabulary."""

    title = "OneRec"
    Config = OneRecSizes
    config_class = OneRecConfig
    model: OneRecBackbone
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012 - the name and type transformers prescribes

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        self.model = OneRecBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        **history: Tensor,
    ) -> MoeCausalLMOutputWithPast:
        """Next-token logits [R, M, V] of right-padded decoder sequences, teacher-forced.

        Args:
            input_ids: [R, M] decoder tokens, BOS before every item.
            attention_mask: [R, M], 1 at real tokens; keeps padding out of the load-balancing loss.
            labels: [R, M], ``input_ids`` with -100 where nothing is learned (BOS, padding); shifted here.
            use_cache: ignored.
            output_router_logits: overrides the configuration's.
            **history: the columns of an EventBatch of U histories; row r decodes history r mod U.
        """
        outputs = self.model(input_ids, attention_mask, output_router_logits=output_router_logits, **history)
        logits = self.lm_head(outputs.last_hidden_state)
        loss: Tensor | None = None
        aux_loss: Any = None
        if outputs.router_logits is not None:
            aux_loss = balance_loss(outputs.router_logits, self.config.num_experts_per_tok, attention_mask)
        if labels is not None:
            loss = next_token_loss(logits, labels)
            if aux_loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss, aux_loss=aux_loss, logits=logits, router_logits=outputs.router_logits
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SparseMoE):
            for weights in (module.up_EDF, module.down_EFD):
                init.normal_(weights, mean=0.0, std=self.config.initializer_range)
