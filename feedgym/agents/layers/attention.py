"""Multi-head attention for encoder-decoders whose users each own many decoded rows.

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` decoded rows, ``M`` positions (keys), ``Q`` queries, ``H``
heads. Head tensors are [rows, H, positions, D/H]. There is no attention dropout, because with it no fused kernel runs
on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection and no biases in it.

    Args:
        d_model: D.
        num_heads: H; must divide D if no ``head_width`` is given.
        head_width: width of a head; D/H if left out.
        scale: multiplies the products of queries and keys; 1/sqrt(head width) if left out.
    """

    def __init__(self, d_model: int, num_heads: int, head_width: int | None = None, scale: float | None = None) -> None:
        super().__init__()
        if head_width is None and d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}; choose a divisor.")
        self.num_heads, self.scale = num_heads, scale
        inner = num_heads * (head_width or d_model // num_heads)
        self.qkv = nn.Linear(d_model, 3 * inner, bias=False)
        self.out = nn.Linear(inner, d_model, bias=False)

    def forward(self, x_NMD: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Output [N, M, D].

        Args:
            x_NMD: N sequences of M positions.
            mask: broadcastable to [N, H, M, M]; bool, true where attention is allowed, or float, added to the scores.
            causal: allow only the past; not together with a mask.
        """
        q, k, v = self.qkv(x_NMD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale)
        return self.out(out.transpose(1, 2).flatten(2))

    def step(
        self,
        x_MRD: Tensor,
        keys: Tensor,
        values: Tensor,
        length: int,
        num_queries: int,
        bias_HQM: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of the newest M positions of R rows, with cached keys and values.

        Args:
            x_MRD: the new positions, position first.
            keys: [max positions, R, H * head width] cache; positions ``length``.. are written here.
            values: the same.
            length: number of positions already cached.
            num_queries: number of the last new positions that need an output; the others are only cached.
            bias_HQM: added to the scores of these positions towards each position cached by then; future ones are
                ignored.

        Returns:
            [num_queries, R, D].
        """
        q, k, v = self.qkv(x_MRD).chunk(3, dim=-1)
        end = length + len(x_MRD)
        keys[length:end] = k
        values[length:end] = v
        heads = (self.num_heads, -1)
        keys_h, values_h = keys[:end].unflatten(-1, heads), values[:end].unflatten(-1, heads)
        scale = (q.shape[-1] // self.num_heads) ** -0.5 if self.scale is None else self.scale
        q = q[-num_queries:].unflatten(-1, heads) * scale
        out = []
        for i in range(num_queries):
            seen = end - num_queries + i + 1
            # With one query per row and a dozen keys, a product and a sum are several times faster than batched matmul.
            scores = (keys_h[:seen] * q[i]).sum(-1, keepdim=True)
            if bias_HQM is not None:
                scores = scores + bias_HQM[:, i, :seen].T[:, None, :, None]
            out.append((scores.softmax(0) * values_h[:seen]).sum(0))
        return self.out(torch.stack(out).flatten(2))


class CrossAttention(nn.Module):
    """Attention of each user's decoded positions to the user's encoded history, without biases.

    All rows of a user share the user's keys and values, which are never copied per row. The arguments are those of
    :class:`SelfAttention`.
    """

    def __init__(self, d_model: int, num_heads: int, head_width: int | None = None, scale: float | None = None) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        inner = num_heads * (head_width or d_model // num_heads)
        self.q = nn.Linear(d_model, inner, bias=False)
        self.kv = nn.Linear(d_model, 2 * inner, bias=False)
        self.out = nn.Linear(inner, d_model, bias=False)

    def project(self, memory_UTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [U, H, T, D/H] of the encoded histories."""
        k, v = self.kv(memory_UTD).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return k.contiguous(), v.contiguous()

    def forward(self, x_UQD: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Output [U, Q, D] of Q queries per user; ``mask`` [U, 1, 1, T] is true at real positions."""
        q = self.q(x_UQD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=self.scale)
        return self.out(out.transpose(1, 2).flatten(2))

    def of_rows(self, x_RMD: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Output [R, M, D] of whole sequences; row r reads the memory of user r mod U."""
        grouped = x_RMD.unflatten(0, (-1, len(mask))).transpose(0, 1).flatten(1, 2)
        out = self(grouped, keys, values, mask)
        return out.unflatten(1, (-1, x_RMD.shape[1])).transpose(0, 1).flatten(0, 1)

    def step(self, x_MRD: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Output [M, R, D] of a few positions of rows that are sorted by user."""
        grouped = x_MRD.unflatten(1, (len(mask), -1)).transpose(0, 1).flatten(1, 2)
        out = self(grouped, keys, values, mask)
        return out.unflatten(1, (len(x_MRD), -1)).transpose(0, 1).flatten(1, 2)
