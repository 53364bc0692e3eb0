"""OneRec: an encoder-decoder that generates a whole session of items as semantic tokens (arXiv:2502.18965).

The encoder reads the history, L tokens an item, fully visible. The decoder reads BOS before every item and predicts
the item's L codes: [BOS, s1^1..s1^L, BOS, s2^1, ...]; its feed-forward layers are sparse mixtures of experts (eq. 5).
One output matrix covers the joint vocabulary of all levels.

Deviations from the paper:
    - No separator token between history items: a level embedding marks where an item begins.
    - The history holds every examined item with its behaviours, watched fraction and times as added features; the
      paper feeds the items that were positive and nothing else. Profile fields and time of day are extra tokens.
    - Learned absolute positions in the decoder, recency ranks in the encoder.
    - A load-balancing loss (Switch, arXiv:2101.03961, eq. 4-6) on the experts; the paper does not say how it balances.
    - Code embeddings start at the tokenizer's centroids (``semantic_init``), so that likeness of content is known from
      the first step; the paper says nothing of initial weights, and trains on billions of sessions.

Rows: the backbone decodes R rows for U histories, R a multiple of U; row r belongs to history r mod U. So a batch of
preference pairs, [all chosen; all rejected], needs its histories only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as hf_logging

from feedgym.agents.generation import GenerativeRecommender, SamplingConfig
from feedgym.agents.layers.attention import CrossAttention, SelfAttention
from feedgym.agents.layers.history import EventFeatures, RequestTokens
from feedgym.agents.layers.moe import SparseMoE
from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.vocabulary import Vocabulary

hf_logging.disable_progress_bar()  # loading and saving take milliseconds; the project draws its own bars

SEMANTIC_STD, OUTPUT_STD = 0.4, 0.04
"""Standard deviations of code embeddings at their start; outputs are small, for they meet activations of size 1."""

HISTORY_COLUMNS = tuple(f.name for f in fields(EventBatch))
"""The keyword arguments by which the model takes a history: the columns of an EventBatch."""


class OneRecConfig(PreTrainedConfig):
    """Sizes of a OneRec. ``num_codes``, ``num_items`` and ``tokenizer_hash`` come from the tokenizer."""

    model_type = "onerec"
    attribute_map = {  # noqa: RUF012 - the name and type that transformers prescribes
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "decoder_layers",
    }

    d_model: int = 64
    """D, width of the model."""
    num_heads: int = 4
    """H, attention heads; divides d_model."""
    encoder_layers: int = 2
    """Layers that read the history."""
    decoder_layers: int = 2
    """Layers that write the session."""
    d_ff: int = 128
    """Width inside an encoder's feed-forward layer and inside each expert."""
    num_experts: int = 4
    """Experts in each decoder layer; the paper has 24."""
    num_experts_per_tok: int = 2
    """Experts that a token is sent to."""
    gate_renormalise: bool = False
    """Divide the kept gates by their sum; the paper does not."""
    output_router_logits: bool = True
    """Return the router's logits and add the load-balancing loss."""
    router_aux_loss_coef: float = 0.01
    """Weight of the load-balancing loss."""
    dropout: float = 0.0
    """Dropout on the embeddings and on every layer's output."""
    initializer_range: float = 0.06
    """Standard deviation of the initial weights."""
    semantic_init: bool = True
    """Let code embeddings start at the tokenizer's centroids, where it has some."""
    session_length: int = 5
    """K, the most items a session can have."""
    history_length: int = 64
    """T, the most events a history can have."""
    profile_sizes: tuple[int, ...] | list[int] = ()
    """Cardinalities of the F profile fields."""
    num_behaviours: int = len(BEHAVIOURS)
    """B."""
    num_codes: tuple[int, ...] | list[int] = (32, 32)
    """Codes of each of the L levels."""
    num_items: int = 0
    """I, items of the catalogue."""
    tokenizer_hash: str = ""
    """Hash of the tokenizer whose codes the weights speak of."""
    tie_word_embeddings: bool = False
    """Let input embeddings and output matrix be one."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.profile_sizes = tuple(self.profile_sizes)  # JSON brings them back as lists
        self.num_codes = tuple(self.num_codes)
        super().__post_init__(**kwargs)

    @property
    def max_tokens(self) -> int:
        """Decoder positions: K items of BOS and L codes."""
        return self.session_length * (len(self.num_codes) + 1)

    @property
    def vocab_size(self) -> int:
        """V, padding and BOS included."""
        return Vocabulary(tuple(self.num_codes)).size


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, fully visible."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model, eps=1e-6)
        self.attention = SelfAttention(config.d_model, config.num_heads)
        self.norm_ff = nn.RMSNorm(config.d_model, eps=1e-6)
        self.up = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_UTD: Tensor, mask: Tensor) -> Tensor:
        """Output [U, T, D]; ``mask`` [U, 1, 1, T] is true at real positions."""
        x_UTD = x_UTD + self.dropout(self.attention(self.norm_attention(x_UTD), mask=mask))
        return x_UTD + self.dropout(self.down(self.up(self.norm_ff(x_UTD)).relu()))


class Encoder(nn.Module):
    """Histories to memory; the token embedding is shared with the decoder."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.events = EventFeatures(config.d_model, config.num_behaviours, config.history_length)
        self.request = RequestTokens(config.d_model, tuple(config.profile_sizes))
        self.level = nn.Embedding(len(config.num_codes), config.d_model)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
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


class DecodingState:
    """What decoding remembers: each user's memory, and the keys and values of the rows decoded so far.

    Attributes:
        memory: cross-attention keys and values a layer, [U, H, T', D/H].
        mask: [U, 1, 1, T'].
        cache: [layers, 2, max positions, U·S, D], allocated once.
        length: positions filled.
    """

    def __init__(self, memory: list[tuple[Tensor, Tensor]], mask: Tensor, max_tokens: int) -> None:
        self.memory, self.mask, self.length = memory, mask, 0
        users, heads, _, width = memory[0][0].shape
        self.cache = memory[0][0].new_empty(len(memory), 2, max_tokens, users, heads * width)

    def select(self, parent_US: Tensor) -> None:
        """Let the state's rows be copies of the rows at ``parent_US`` (index along the old sample axis)."""
        num_users = len(parent_US)
        base_U1 = torch.arange(num_users, device=parent_US.device)[:, None] * (self.cache.shape[3] // num_users)
        rows = (base_U1 + parent_US).flatten()
        shape = (*self.cache.shape[:3], len(rows), self.cache.shape[4])
        selected = self.cache.new_empty(shape)
        selected[:, :, : self.length] = self.cache[:, :, : self.length].index_select(3, rows)
        self.cache = selected


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, cross-attention and mixture of experts."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(config.d_model, eps=1e-6)
        self.attention = SelfAttention(config.d_model, config.num_heads)
        self.norm_cross = nn.RMSNorm(config.d_model, eps=1e-6)
        self.cross = CrossAttention(config.d_model, config.num_heads)
        self.norm_ff = nn.RMSNorm(config.d_model, eps=1e-6)
        self.experts = SparseMoE(
            config.d_model, config.d_ff, config.num_experts, config.num_experts_per_tok, config.gate_renormalise
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_RMD: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Output [R, M, D] and router logits [R·M, E] of whole sequences."""
        x_RMD = x_RMD + self.dropout(self.attention(self.norm_attention(x_RMD), causal=True))
        num_users, num_positions = len(mask), x_RMD.shape[1]
        grouped = self.norm_cross(x_RMD).unflatten(0, (-1, num_users)).transpose(0, 1).flatten(1, 2)
        cross = self.cross(grouped, *memory, mask).unflatten(1, (-1, num_positions)).transpose(0, 1).flatten(0, 1)
        return self._experts(x_RMD + self.dropout(cross))

    def step(self, x_MRD: Tensor, layer_idx: int, state: DecodingState, num_queries: int) -> Tensor:
        """Output [num_queries, R, D] of the newest M positions; the state's rows lie user by user."""
        keys, values = state.cache[layer_idx]
        normed = self.norm_attention(x_MRD)
        x_MRD = x_MRD[-num_queries:] + self.attention.step(normed, keys, values, state.length, num_queries)
        grouped = self.norm_cross(x_MRD).unflatten(1, (len(state.mask), -1)).transpose(0, 1).flatten(1, 2)
        cross = self.cross(grouped, *state.memory[layer_idx], state.mask)
        x_MRD = x_MRD + cross.unflatten(1, (num_queries, -1)).transpose(0, 1).flatten(1, 2)
        return self._experts(x_MRD)[0]

    def _experts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        update, router_logits = self.experts(self.norm_ff(x).flatten(0, 1))
        return x + self.dropout(update).view_as(x), router_logits


class OneRecBackbone(nn.Module):
    """Everything below the output matrix.

    The codes of the catalogue are a buffer: they travel with the weights that were trained on them.
    """

    item_tokens_IL: Tensor
    layers: Sequence[DecoderLayer]

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("item_tokens_IL", torch.zeros(config.num_items, len(config.num_codes), dtype=torch.long))
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_tokens, config.d_model)
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))  # type: ignore[assignment]
        self.norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)

    def encode(self, histories: EventBatch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Each decoder layer's cross-attention keys and values, and the mask [U, 1, 1, T']."""
        item_ids_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)
        memory, mask = self.encoder(histories, self.tokens(self.item_tokens_IL[item_ids_UT]))
        return [layer.cross.project(memory) for layer in self.layers], mask

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
            attention_mask: not needed: right padding lies in the future of every real token.
            use_cache: ignored; :meth:`OneRec.step` is the cached path.
            output_router_logits: return the router's logits, [R·M, E] a layer.
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
        """Hidden state [U, S, D] after the last of M new tokens a row; the state grows by M positions."""
        num_new = tokens_USM.shape[2]
        positions_MD = self.positions.weight[state.length : state.length + num_new]
        x_MRD = self.tokens(tokens_USM.flatten(0, 1).T) + positions_MD[:, None]
        for i, layer in enumerate(self.layers):
            # Only the newest position is read at the end, so the last layer answers no other.
            x_MRD = layer.step(x_MRD, i, state, 1 if i == len(self.layers) - 1 else num_new)
        state.length += num_new
        return self.norm(x_MRD[-1]).view(*tokens_USM.shape[:2], -1)


class OneRec(PreTrainedModel, GenerationMixin):
    """The model: backbone and one output matrix over the joint vocabulary.

    ``generate`` of transformers is not supported; :mod:`feedgym.agents.generation` samples and searches.
    """

    config_class = OneRecConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    _tied_weights_keys = {"lm_head.weight": "model.tokens.weight"}  # noqa: RUF012 - what transformers prescribes
    model: OneRecBackbone
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]  # noqa: RUF012 - the name and type transformers prescribes

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__(config)
        self.model = OneRecBackbone(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_tokenizer(cls, tokenizer: CodeTokenizer, config: OneRecConfig) -> Self:
        """A new model that speaks the tokenizer's codes; ``config`` gives everything else."""
        sizes = config.to_dict() | {
            "num_codes": tokenizer.num_codes,
            "num_items": tokenizer.num_items,
            "tokenizer_hash": tokenizer.hash,
        }
        model = cls(OneRecConfig(**sizes))
        model.model.item_tokens_IL.copy_(tokenizer.vocabulary.token_ids(tokenizer.codes_IL))
        if config.semantic_init:
            model._start_at_centroids(tokenizer)
        return model

    @torch.no_grad()
    def _start_at_centroids(self, tokenizer: CodeTokenizer) -> None:
        """Input and output embeddings of a level's codes: its centroids, randomly rotated into the model's width.

        One rotation serves all levels, so that the sum of an item's embeddings is its reconstructed content.
        """
        for level, centroids_CE in enumerate(tokenizer.codebooks):
            if level == 0:
                side = max(centroids_CE.shape[1], self.config.d_model)
                basis = torch.linalg.qr(torch.randn(side, side))[0][: centroids_CE.shape[1], : self.config.d_model]
            unit_CD = (centroids_CE - centroids_CE.mean(0)) @ basis
            unit_CD = unit_CD / unit_CD.std().clamp_min(1e-6)
            start = self.vocabulary.level_offset(level)
            rows = slice(start, start + len(unit_CD))
            self.model.tokens.weight[rows] = SEMANTIC_STD * unit_CD
            if not self.config.tie_word_embeddings:
                self.lm_head.weight[rows] = OUTPUT_STD * unit_CD

    @classmethod
    def load(cls, folder: Path | str, tokenizer: CodeTokenizer) -> Self:
        """The model saved in ``folder``.

        Raises:
            ValueError: a file is missing or damaged, or the model was trained with another tokenizer.
        """
        try:
            if not (Path(folder) / CONFIG_NAME).is_file():  # transformers would make one up or ask the internet
                raise FileNotFoundError(f"it has no {CONFIG_NAME}")
            # Left alone, transformers puts random weights where it finds none, and a table where an error should be.
            loaded: Any = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
            model, found = loaded
            sizes = (name for name, *_ in found["mismatched_keys"])
            if astray := sorted({*found["missing_keys"], *found["unexpected_keys"], *sizes}):
                raise ValueError(f"weights and {CONFIG_NAME} disagree on {astray[0]}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"Cannot read the model in {folder} ({reason}); restore it or pretrain again.") from error
        model.check_tokenizer(tokenizer)
        return model

    def check_tokenizer(self, tokenizer: CodeTokenizer) -> None:
        """Raise ValueError unless the weights were trained on this tokenizer's codes."""
        if tokenizer.hash != self.config.tokenizer_hash:
            raise ValueError(
                f"The model was trained with tokenizer {self.config.tokenizer_hash!r}, not {tokenizer.hash!r}; "
                "load the tokenizer saved beside it or pretrain again."
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens it speaks."""
        return Vocabulary(tuple(self.config.num_codes))

    def session_tokens(self, item_ids_NK: Tensor) -> Tensor:
        """Decoder tokens [N, K·(L + 1)] of sessions of item ids; PAD where an item is -1."""
        item_ids_NK = item_ids_NK.to(self.model.item_tokens_IL.device)
        tokens_NKL = self.model.item_tokens_IL[item_ids_NK.clamp_min(0)]
        bos = torch.full_like(tokens_NKL[..., :1], Vocabulary.bos_id)
        tokens = torch.cat([bos, tokens_NKL], dim=-1)
        return tokens.masked_fill(item_ids_NK[..., None] < 0, Vocabulary.pad_id).flatten(1)

    def training_batch(self, histories: EventBatch, item_ids_NK: Tensor) -> dict[str, Tensor]:
        """What :meth:`forward` needs to learn the sessions: BOS and padding are read but not learned."""
        tokens_NM = self.session_tokens(item_ids_NK)
        return {
            "input_ids": tokens_NM,
            "attention_mask": (tokens_NM != Vocabulary.pad_id).long(),
            "labels": tokens_NM.masked_fill(~self.vocabulary.completion_mask(tokens_NM), -100),
            **history_columns(histories),
        }

    def forward(
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
            aux_loss = load_balancing_loss_func(
                outputs.router_logits, self.config.num_experts, self.config.num_experts_per_tok, attention_mask
            )
        if labels is not None:
            loss = next_token_loss(logits, labels)
            if aux_loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss, aux_loss=aux_loss, logits=logits, router_logits=outputs.router_logits
        )

    def start(self, histories: EventBatch, max_tokens: int) -> DecodingState:
        """Encode the histories and make room for ``max_tokens`` decoder positions; one row a user."""
        if max_tokens > self.config.max_tokens:
            num_levels = len(self.config.num_codes)
            raise ValueError(
                f"Sessions of {max_tokens // (num_levels + 1)} items exceed the model's "
                f"session_length={self.config.session_length}; ask for fewer or build a longer model."
            )
        memory, mask = self.model.encode(histories)
        return DecodingState(memory, mask, max_tokens)

    def step(self, tokens_USM: Tensor, state: DecodingState) -> Tensor:
        """Float32 logits [U, S, V] after the last of M new tokens a row."""
        return self.lm_head(self.model.step(tokens_USM, state)).float()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SparseMoE):
            for weights in (module.up_EDF, module.down_EFD):
                init.normal_(weights, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, OneRecBackbone):
            init.zeros_(module.item_tokens_IL)


def next_token_loss(logits_NMV: Tensor, labels_NM: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens, in float32.

    Args:
        logits_NMV: logits at each position, of the token after it.
        labels_NM: tokens, -100 where nothing is learned.
    """
    logits, targets = logits_NMV[:, :-1].flatten(0, 1).float(), labels_NM[:, 1:].flatten()
    return F.cross_entropy(logits, targets, ignore_index=-100)


def session_logp(model: OneRec, histories: EventBatch, item_ids_USK: Tensor) -> Tensor:
    """Log-probability [U, S] of sessions under the model, teacher-forced, with gradients; -1 pads a session.

    Args:
        model: the model; in training mode its dropout is on.
        histories: U users.
        item_ids_USK: int64, S sessions for each of them.
    """
    tokens_RM = model.session_tokens(item_ids_USK.transpose(0, 1).flatten(0, 1))
    logits = model(input_ids=tokens_RM, output_router_logits=False, **history_columns(histories)).logits
    logp_RM = logits[:, :-1].float().log_softmax(-1).gather(2, tokens_RM[:, 1:, None]).squeeze(2)
    logp_R = logp_RM.masked_fill(~model.vocabulary.completion_mask(tokens_RM[:, 1:]), 0.0).sum(1)
    return logp_R.view(-1, len(histories)).T


def history_columns(histories: EventBatch) -> dict[str, Tensor]:
    """A history as the keyword arguments the model takes."""
    return {name: getattr(histories, name) for name in HISTORY_COLUMNS}


class OneRecRecommender(GenerativeRecommender):
    """A OneRec behind the Recommender protocol; see :class:`GenerativeRecommender` for the other arguments.

    Raises:
        ValueError: the model was trained with another tokenizer.
    """

    def __init__(
        self,
        model: OneRec,
        tokenizer: CodeTokenizer,
        session_length: int | None = None,
        sampling: SamplingConfig | None = None,
        num_beams: int = 8,
        device: torch.device | str = "cpu",
    ) -> None:
        model.check_tokenizer(tokenizer)
        super().__init__(
            model, tokenizer.trie(), session_length or model.config.session_length, sampling, num_beams, device
        )
