"""SASRec: causal self-attention over the items a user took (Kang & McAuley, arXiv:1808.09781).

There are two blocks, whose published figures differ less than those of the losses:
    - "original", the authors' code: layer norms with weights, no output projection, and a norm after the last block;
    - "meta", from Meta's generative-recommenders: norms without weights, an output projection, nothing after the
      blocks.
In both, queries are normalised but keys and values are not, and the residual of attention is the normalised input.

Deviations: see :mod:`feedgym.agents.sequences`. The loss is an option (bce as in the paper, ce, sampled_softmax). So is
the similarity (the paper's dot product, or cosine over a temperature). Every table of results names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from feedgym.agents.sequences import SequenceConfig, SequenceModel, Sequences, SequenceSizes
from feedgym.ranges import Width, check_divides

Block = Literal["meta", "original"]
EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class SASRecSizes(SequenceSizes):
    """Sizes and loss of SASRec."""

    d_ff: Width = 50
    """Width inside a feed-forward layer."""
    block: Block = "meta"
    """meta (of generative-recommenders) or original (the authors')."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block not in get_args(Block):
            raise ValueError(f"block={self.block!r} is unknown; choose one of {', '.join(get_args(Block))}.")
        check_divides(self, "num_heads", "d_model")


class SASRecConfig(SequenceConfig):
    """Configuration of a SASRec for transformers."""

    model_type = "sasrec"
    sizes = SASRecSizes


class SASRecBlock(nn.Module):
    """Attention with normalised queries, then a position-wise network with its residual."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width, original = config.d_model, config.block == "original"
        self.num_heads = config.num_heads
        self.norm_attention = nn.LayerNorm(width, eps=EPS, elementwise_affine=original)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Identity() if original else nn.Linear(width, width)
        self.norm_ff = nn.LayerNorm(width, eps=EPS, elementwise_affine=original)
        self.up, self.down = nn.Linear(width, config.d_ff), nn.Linear(config.d_ff, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_UZD: Tensor) -> Tensor:
        """Output [U, P, D]."""
        query_UZD = self.norm_attention(x_UZD)
        heads = (self.num_heads, -1)
        q = self.q(query_UZD).unflatten(-1, heads).transpose(1, 2)
        k, v = (layer(x_UZD).unflatten(-1, heads).transpose(1, 2) for layer in (self.k, self.v))
        dropout = self.dropout.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        x_UZD = self.norm_ff(query_UZD + self.out(attended.transpose(1, 2).flatten(2)))
        inner = self.dropout(self.up(x_UZD).relu())
        return x_UZD + self.dropout(self.down(inner))


class SASRec(SequenceModel):
    """The model."""

    title = "SASRec"
    Config = SASRecSizes
    config_class = SASRecConfig
    base_model_prefix = "model"

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__(config)
        self.positions = nn.Embedding(config.num_positions, config.d_model)
        self.blocks = nn.ModuleList(SASRecBlock(config) for _ in range(config.num_layers))
        original = config.block == "original"
        self.norm = nn.LayerNorm(config.d_model, eps=EPS) if original else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def encode(self, sequences: Sequences) -> Tensor:
        """Vectors [U, P, D] after each position."""
        mask_UZ1 = sequences.mask_UZ[..., None]
        num_positions = sequences.item_ids_UZ.shape[1]
        x_UZD = self.items(sequences.item_ids_UZ) * self.config.d_model**0.5 + self.positions.weight[:num_positions]
        x_UZD = self.dropout(x_UZD) * mask_UZ1
        for block in self.blocks:
            x_UZD = block(x_UZD) * mask_UZ1
        return self.norm(x_UZD)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self.positions:
            init.trunc_normal_(self.positions.weight, std=self.config.d_model**-0.5)
