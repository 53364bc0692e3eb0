"""Common part of all models that write sessions as codes: configuration, tokens, loss, files and checks.

A subclass names its ``config_class`` and has a backbone ``model`` (:class:`SessionBackbone`) below one output matrix
``lm_head`` over the joint vocabulary of all levels. The sessions it reads and writes have BOS before every item, [BOS,
s1^1..s1^L, BOS, s2^1, ...]. Such a model can be pretrained (:mod:`feedgym.agents.pretrain`), sampled and searched
(:mod:`feedgym.agents.generation`), and aligned (:mod:`feedgym.agents.alignment.dpo`).

The backbone decodes R rows for U histories, where R is a multiple of U; row r belongs to history r mod U. So a batch of
preference pairs, [all chosen; all rejected], needs its histories only once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutput, ModelOutput

from feedgym.agents.card import WithCard
from feedgym.agents.generation import GenerativeRecommender, SamplingConfig
from feedgym.agents.layers.compiled import CompiledDecoding, can_compile
from feedgym.agents.layers.transformer import DecodingState
from feedgym.agents.saved import SizedConfig, load_saved
from feedgym.agents.sharing import part_of_mean
from feedgym.data.batches import HISTORY_COLUMNS, EventBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.ranges import CountOrZero, Few, Length, check_ranges
from feedgym.tokenizers.codes import CodeTokenizer
from feedgym.tokenizers.vocabulary import Vocabulary

SEMANTIC_STD, OUTPUT_STD = 0.4, 0.04
"""Initial standard deviations of code embeddings; outputs are small, because they multiply activations of size 1."""


class SessionConfig(SizedConfig):
    """Sizes of every session model; ``num_codes``, ``num_items`` and ``tokenizer_hash`` come from the tokenizer."""

    attribute_map = {  # noqa: RUF012 - the name and type that transformers prescribes
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "decoder_layers",
    }

    session_length: Length = 5
    """K, most items of a session."""
    history_length: Length = 64
    """T, most events of a history."""
    profile_sizes: tuple[int, ...] | list[int] = ()
    """Cardinalities of the F profile fields."""
    num_behaviours: Few = len(BEHAVIOURS)
    """B."""
    num_codes: tuple[int, ...] | list[int] = (32, 32)
    """Codes of each of the L levels."""
    num_items: CountOrZero = 0
    """I, items of the catalogue."""
    tokenizer_hash: str = ""
    """Hash of the tokenizer that the weights were trained with."""
    tie_word_embeddings: bool = False
    """Share one matrix between input embeddings and output."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.profile_sizes = tuple(self.profile_sizes)  # JSON turns them into lists
        self.num_codes = tuple(self.num_codes)
        super().__post_init__(**kwargs)
        check_ranges(self)

    @property
    def max_tokens(self) -> int:
        """Decoder positions: K items of BOS and L codes."""
        return self.session_length * (len(self.num_codes) + 1)

    @property
    def vocab_size(self) -> int:
        """V, including padding and BOS."""
        return Vocabulary(tuple(self.num_codes)).size


class SessionBackbone(nn.Module):
    """Everything below the output matrix.

    The codes of the catalogue are a buffer, so they are stored with the weights that were trained on them. A subclass
    has ``forward(input_ids, attention_mask, use_cache, **history)``, which returns the ``last_hidden_state`` [R, M, D]
    of right-padded decoder sequences.
    """

    item_tokens_IL: Tensor

    def __init__(self, config: SessionConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.register_buffer("item_tokens_IL", torch.zeros(config.num_items, len(config.num_codes), dtype=torch.long))
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)

    def history_tokens(self, histories: EventBatch) -> Tensor:
        """Embedded codes [U, T, L, D] of the histories' items; arbitrary where padded."""
        return self.tokens(self.item_tokens_IL[histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)])


class EncoderDecoder(SessionBackbone):
    """A backbone with an ``encoder`` of the history, and decoder ``layers`` that read its output by cross-attention."""

    encoder: nn.Module
    layers: Any

    def read(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """The encoder's output [U, T', D] and its mask [U, 1, 1, T']."""
        return self.encoder(histories, self.history_tokens(histories))

    def encode(self, histories: EventBatch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Each decoder layer's cross-attention keys and values, and the mask [U, 1, 1, T']."""
        memory, mask = self.read(histories)
        return [layer.cross.project(memory) for layer in self.layers], mask

    def start(self, histories: EventBatch, max_tokens: int) -> DecodingState | CompiledDecoding:
        """Encode the histories and allocate ``max_tokens`` decoder positions; one row per user."""
        memory, mask = self.read(histories)
        if can_compile(self.layers[0], memory, mask):
            return CompiledDecoding([layer.cross.kv(memory) for layer in self.layers], mask, max_tokens, self.layers[0])
        return DecodingState([layer.cross.project(memory) for layer in self.layers], mask, max_tokens)


class SessionModel(WithCard, GenerationMixin):
    """A model over the codes of a catalogue; the module's docstring says what a subclass adds.

    transformers' ``generate`` is not supported; :mod:`feedgym.agents.generation` samples and searches.
    """

    base_model_prefix = "model"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    _tied_weights_keys = {"lm_head.weight": "model.tokens.weight"}  # noqa: RUF012 - what transformers prescribes
    config: Any
    model: Any
    lm_head: nn.Linear

    @classmethod
    def build(
        cls,
        config: Any,
        tokenizer: CodeTokenizer,
        *,
        session_length: int,
        history_length: int,
        profile_sizes: tuple[int, ...],
    ) -> Self:
        """Build a model as in :meth:`feedgym.protocols.GenerativeAgent.build`."""
        lengths = {"session_length": session_length, "history_length": history_length}
        settings: Any = cls.config_class
        return cls.from_tokenizer(tokenizer, settings(**vars(config), **lengths, profile_sizes=profile_sizes))

    @classmethod
    def from_tokenizer(cls, tokenizer: CodeTokenizer, config: Any) -> Self:
        """Make a new model for the tokenizer's codes; ``config`` gives everything else."""
        sizes = config.to_dict() | {
            "num_codes": tokenizer.num_codes,
            "num_items": tokenizer.num_items,
            "tokenizer_hash": tokenizer.hash,
        }
        model = cls(type(config)(**sizes))
        model.model.item_tokens_IL.copy_(tokenizer.vocabulary.token_ids(tokenizer.codes_IL))
        if config.semantic_init:
            model._start_at_centroids(tokenizer)
        return model

    @torch.no_grad()
    def _start_at_centroids(self, tokenizer: CodeTokenizer) -> None:
        """Initialise input and output embeddings of codes: their centroids, randomly rotated into the model's width.

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
        """Load the model saved in ``folder``; its tokenizer may have been extended by new items since.

        Raises:
            ValueError: a file is missing or damaged, or the model was trained with another tokenizer.
        """
        model = load_saved(cls, folder)
        if model.config.tokenizer_hash in tokenizer.hashes - {tokenizer.hash}:  # items have come since
            model.config.update({"num_items": tokenizer.num_items, "tokenizer_hash": tokenizer.hash})
            model.model.item_tokens_IL = tokenizer.vocabulary.token_ids(tokenizer.codes_IL)
        model.check_tokenizer(tokenizer)
        return model

    def check_tokenizer(self, tokenizer: CodeTokenizer) -> None:
        """Raise ValueError unless the weights were trained on this tokenizer's codes."""
        if tokenizer.hash != self.config.tokenizer_hash:
            raise ValueError(
                f"The model was trained with tokenizer {self.config.tokenizer_hash!r}, not {tokenizer.hash!r}; "
                "load the tokenizer saved with it or pretrain again."
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the model."""
        return Vocabulary(tuple(self.config.num_codes))

    def session_tokens(self, item_ids_NK: Tensor) -> Tensor:
        """Decoder tokens [N, K·(L + 1)] of sessions of item ids; PAD where an item is -1."""
        item_ids_NK = item_ids_NK.to(self.model.item_tokens_IL.device)
        tokens_NKL = self.model.item_tokens_IL[item_ids_NK.clamp_min(0)]
        bos = torch.full_like(tokens_NKL[..., :1], Vocabulary.bos_id)
        tokens = torch.cat([bos, tokens_NKL], dim=-1)
        return tokens.masked_fill(item_ids_NK[..., None] < 0, Vocabulary.pad_id).flatten(1)

    def training_batch(self, histories: EventBatch, item_ids_NK: Tensor) -> dict[str, Tensor]:
        """Inputs of :meth:`forward` to learn the sessions; BOS and padding are read but not learned."""
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
        **history: Tensor,
    ) -> ModelOutput:
        """Next-token logits [R, M, V] of right-padded decoder sequences, teacher-forced.

        Args:
            input_ids: [R, M] decoder tokens, BOS before every item.
            attention_mask: [R, M], 1 at real tokens.
            labels: [R, M], ``input_ids`` with -100 where nothing is learned (BOS, padding); shifted here.
            use_cache: ignored; :meth:`step` is the cached path.
            **history: the columns of an EventBatch of U histories; row r decodes history r mod U.
        """
        hidden_RMD = self.model(input_ids, attention_mask, **history).last_hidden_state
        logits = self.lm_head(hidden_RMD)
        loss: Any = None if labels is None else next_token_loss(logits, labels)
        return CausalLMOutput(loss=loss, logits=logits)

    def start(self, histories: EventBatch, max_tokens: int) -> Any:
        """Encode the histories and allocate ``max_tokens`` decoder positions; one row per user.

        Raises:
            ValueError: there are more positions than the model's longest session has.
        """
        if max_tokens > self.config.max_tokens:
            num_levels = len(self.config.num_codes)
            raise ValueError(
                f"Sessions of {max_tokens // (num_levels + 1)} items exceed the model's "
                f"session_length={self.config.session_length}; ask for fewer or build a longer model."
            )
        return self.model.start(histories, max_tokens)

    def step(self, tokens_USM: Tensor, state: Any) -> Tensor:
        """Float32 logits [U, S, V] after the last of M new tokens per row."""
        return self.lm_head(self.model.step(tokens_USM, state)).float()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SessionBackbone):
            init.zeros_(module.item_tokens_IL)


def next_token_loss(logits_NMV: Tensor, labels_NM: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens, in float32; several processes share it out.

    Args:
        logits_NMV: logits at each position, of the token after it.
        labels_NM: tokens, -100 where nothing is learned.
    """
    logits, targets = logits_NMV[:, :-1].flatten(0, 1).float(), labels_NM[:, 1:].flatten()
    return part_of_mean(F.cross_entropy(logits, targets, ignore_index=-100), (targets != -100).sum())


def session_logp(model: SessionModel, histories: EventBatch, item_ids_USK: Tensor) -> Tensor:
    """Log-probability [U, S] of sessions under the model, teacher-forced, with gradients; -1 pads a session.

    Args:
        model: the model; in training mode its dropout is on.
        histories: U users.
        item_ids_USK: int64, S sessions for each of them.
    """
    tokens_RM = model.session_tokens(item_ids_USK.transpose(0, 1).flatten(0, 1))
    logits = model(input_ids=tokens_RM, **history_columns(histories)).logits
    logp_RM = logits[:, :-1].float().log_softmax(-1).gather(2, tokens_RM[:, 1:, None]).squeeze(2)
    logp_R = logp_RM.masked_fill(~model.vocabulary.completion_mask(tokens_RM[:, 1:]), 0.0).sum(1)
    return logp_R.view(-1, len(histories)).T


def history_columns(histories: EventBatch) -> dict[str, Tensor]:
    """The columns of histories that models read, as keyword arguments."""
    return {name: getattr(histories, name) for name in HISTORY_COLUMNS}


class SessionRecommender(GenerativeRecommender):
    """A session model as a Recommender; see :class:`GenerativeRecommender` for the other arguments.

    Raises:
        ValueError: the model was trained with another tokenizer.
    """

    def __init__(
        self,
        model: SessionModel,
        tokenizer: CodeTokenizer,
        session_length: int | None = None,
        sampling: SamplingConfig | None = None,
        num_beams: int = 8,
        device: torch.device | str | None = None,
        *,
        catalog: Catalog | None = None,
    ) -> None:
        model.check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        length = session_length or model.config.session_length
        super().__init__(model, tokenizer.trie(), length, sampling, num_beams, device, catalog=catalog)
