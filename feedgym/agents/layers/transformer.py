"""Layers of encoder-decoders whose users each own many decoded rows, and the state of their decoding.

Pre-norm with RMS norms and without biases, as in T5 (arXiv:1910.10683). The decoder writes R rows for U histories,
where R is a multiple of U. With whole sequences, row r reads history r mod U. So a batch of preference pairs, [all
chosen; all rejected], needs its histories only once. When decoding step by step, rows are sorted by user.

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` rows, ``M`` positions of a row, ``Q`` queries, ``H`` heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feedgym.agents.layers.attention import CrossAttention, SelfAttention


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, fully visible."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float,
        head_width: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(d_model, eps=1e-6)
        self.attention = SelfAttention(d_model, num_heads, head_width, scale)
        self.norm_ff = nn.RMSNorm(d_model, eps=1e-6)
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_UTD: Tensor, mask: Tensor) -> Tensor:
        """Output [U, T, D]; for ``mask`` see :meth:`SelfAttention.forward`."""
        x_UTD = x_UTD + self.dropout(self.attention(self.norm_attention(x_UTD), mask=mask))
        return x_UTD + self.dropout(self.down(self.up(self.norm_ff(x_UTD)).relu()))


class DecodingState:
    """State of decoding: each user's memory, and the keys and values of the rows decoded so far.

    Attributes:
        memory: cross-attention keys and values per layer, [U, H, T', head width].
        mask: [U, 1, 1, T'].
        cache: [layers, 2, max positions, U·S, H * head width], allocated once.
        length: positions filled.
    """

    def __init__(self, memory: list[tuple[Tensor, Tensor]], mask: Tensor, max_tokens: int) -> None:
        self.memory, self.mask, self.length = memory, mask, 0
        users, heads, _, width = memory[0][0].shape
        self.cache = memory[0][0].new_empty(len(memory), 2, max_tokens, users, heads * width)

    def select(self, parent_US: Tensor) -> None:
        """Replace the state's rows by copies of the rows at ``parent_US`` (index along the old sample axis)."""
        num_users = len(parent_US)
        base_U1 = torch.arange(num_users, device=parent_US.device)[:, None] * (self.cache.shape[3] // num_users)
        rows = (base_U1 + parent_US).flatten()
        shape = (*self.cache.shape[:3], len(rows), self.cache.shape[4])
        selected = self.cache.new_empty(shape)
        selected[:, :, : self.length] = self.cache[:, :, : self.length].index_select(3, rows)
        self.cache = selected

    def begin(self, num_new: int) -> None:
        """Called before the layers read ``num_new`` new positions of all rows."""

    def attend(
        self, layer: DecoderLayer, x_MRD: Tensor, layer_idx: int, num_queries: int, bias_HQM: Tensor | None = None
    ) -> Tensor:
        """Both attentions of the newest M positions.

        Args:
            layer: the layer.
            x_MRD: the new positions of rows that are sorted by user.
            layer_idx: the layer's number.
            num_queries: Q, the number of the last new positions that need an output.
            bias_HQM: added to the scores of self-attention.

        Returns:
            [Q, R, D].
        """
        keys, values = self.cache[layer_idx]
        normed = layer.norm_attention(x_MRD)
        attended = layer.attention.step(normed, keys, values, self.length, num_queries, bias_HQM)
        x_QRD = x_MRD[-num_queries:] + attended
        return x_QRD + layer.cross.step(layer.norm_cross(x_QRD), *self.memory[layer_idx], self.mask)

    def feed_forward(self, layer: DecoderLayer, x_QRD: Tensor) -> Tensor:
        """The layer's feed-forward part."""
        return layer.feed_forward(x_QRD)


class DecoderLayer(nn.Module):
    """Causal self-attention and cross-attention; a subclass adds the feed-forward part."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        head_width: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(d_model, eps=1e-6)
        self.attention = SelfAttention(d_model, num_heads, head_width, scale)
        self.norm_cross = nn.RMSNorm(d_model, eps=1e-6)
        self.cross = CrossAttention(d_model, num_heads, head_width, scale)
        self.norm_ff = nn.RMSNorm(d_model, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def attend(self, x_RMD: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor, bias: Tensor | None = None) -> Tensor:
        """Both attentions of whole sequences, [R, M, D].

        Args:
            x_RMD: R rows of M positions.
            memory: the layer's cross-attention keys and values of U histories.
            mask: [U, 1, 1, T'], true at real positions of the memory.
            bias: [1, H, M, M] scores to add in self-attention, -inf in the future; None adds nothing.
        """
        normed = self.norm_attention(x_RMD)
        x_RMD = x_RMD + self.dropout(self.attention(normed, mask=bias, causal=bias is None))
        return x_RMD + self.dropout(self.cross.of_rows(self.norm_cross(x_RMD), *memory, mask))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The feed-forward part with its norm and residual connection."""
        raise NotImplementedError
