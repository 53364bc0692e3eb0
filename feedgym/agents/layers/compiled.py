"""Decodes on a CPU with compiled loops, faster than :class:`~feedgym.agents.layers.transformer.DecodingState`.

Log-probabilities differ from that class's in the last bits. Four things save time:
    - Attention reads every key and value once (:mod:`feedgym.agents.layers.kernels`).
    - Keys and values stay where they were written. A table says which row of the cache holds a row's position. So a
      beam search copies this table instead of the cache, and rows that begin equal share their beginning.
    - The matrix product that makes outputs also adds them to the residual stream, in memory that is used again.
    - A user's rows attend only to the real part of the history.

Axes beyond the legend of :mod:`feedgym.data.events`: ``Q`` newest positions of a row, ``R`` rows, ``M`` positions of a
row, ``H`` heads, ``X`` all heads side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedgym.agents.layers.attention import CrossAttention, SelfAttention
from feedgym.agents.layers.moe import SparseMoE
from feedgym.agents.layers.transformer import DecoderLayer
from feedgym.envs.compiling import HAS_NUMBA

LANES = 8


def can_compile(layer: DecoderLayer, memory_UMD: Tensor, mask: Tensor) -> bool:
    """True if :class:`CompiledDecoding` can decode: float32 on a CPU, without gradients, heads of usual sizes."""
    heads, width = layer.attention.num_heads, layer.attention.out.in_features // layer.attention.num_heads
    if not HAS_NUMBA or torch.is_grad_enabled() or memory_UMD.device.type != "cpu" or memory_UMD.dtype != torch.float32:
        return False
    if heads > LANES or width % LANES or layer.training or torch.is_autocast_enabled("cpu"):
        return False
    real_UM = mask[:, 0, 0]
    return bool(real_UM[:, 0].all() and (real_UM[:, 1:] <= real_UM[:, :-1]).all())  # padding comes last


class CompiledDecoding:
    """State of decoding; see the module's docstring.

    Attributes:
        memory: keys and values of the histories per layer, [U, T', 2·X].
        cache: keys and values [layers, rows, 2, max positions, X], with as many rows as have been needed so far.
        origin_RM: int64, the row of the cache that holds a row's position.
        length: positions filled.
    """

    def __init__(self, memory: list[Tensor], mask: Tensor, max_tokens: int, layer: DecoderLayer) -> None:
        self.memory, self.length = memory, 0
        num_users, _, size = memory[0].shape
        self.heads, self.inner = layer.attention.num_heads, size // 2
        self.length_U = mask[:, 0, 0].sum(1).numpy()
        self.user_U1 = np.arange(num_users)[:, None]
        self.origin_RM = torch.arange(num_users)[:, None].repeat(1, max_tokens)
        self.cache = memory[0].new_empty(len(memory), num_users, 2, max_tokens, self.inner)
        self._parts: dict[str, Tensor] = {}

    def select(self, parent_US: Tensor) -> None:
        """Lets row (u, s) continue row (u, parent_US[u, s]); only the table is copied."""
        num_users = len(parent_US)
        first_U1 = torch.arange(num_users)[:, None] * (len(self.origin_RM) // num_users)
        self.origin_RM = self.origin_RM[(first_U1 + parent_US).flatten()]

    def begin(self, num_new: int) -> None:
        """Make room for new positions of all rows."""
        num_rows, allocated = len(self.origin_RM), self.cache.shape[1]
        if num_rows > allocated:
            grown = self.cache.new_empty(len(self.cache), num_rows, *self.cache.shape[2:])
            grown[:, :allocated, :, : self.length] = self.cache[:, :, :, : self.length]
            self.cache = grown
        self.origin_RM[:, self.length : self.length + num_new] = torch.arange(num_rows)[:, None]

    def attend(
        self, layer: DecoderLayer, x_MRD: Tensor, layer_idx: int, num_queries: int, bias_HQM: Tensor | None = None
    ) -> Tensor:
        """Both attentions, as :meth:`DecodingState.attend`; the result overwrites ``x_MRD``."""
        self._attend_rows(layer, x_MRD, layer_idx, num_queries, bias_HQM)
        x_QRD = x_MRD[-num_queries:]
        self._attend_memory(layer, x_QRD, layer_idx)
        return x_QRD

    def _attend_rows(
        self, layer: DecoderLayer, x_MRD: Tensor, layer_idx: int, num_queries: int, bias_HQM: Tensor | None
    ) -> None:
        from feedgym.agents.layers import kernels

        num_new, num_rows, _ = x_MRD.shape
        qkv_NX = self._product("qkv", self.normed(x_MRD, layer.norm_attention), layer.attention.qkv)
        cache, end = self.cache[layer_idx], self.length + num_new
        new = qkv_NX.view(num_new, num_rows, 3, -1)[:, :, 1:]
        cache[:num_rows, :, self.length : end] = new.permute(1, 2, 0, 3)
        attended = self._part("attended", num_queries * num_rows, self.inner)
        layout = (cache[0].numel(), self.inner, cache[0, 0].numel())
        for i in range(num_queries):
            position, seen = num_new - num_queries + i, end - num_queries + i + 1
            bias = torch.empty(0)
            if bias_HQM is not None:  # heads in the lanes of one vector
                bias = F.pad(bias_HQM[:, i].T, (0, LANES - self.heads))
            kernels.attend_rows(
                _flat(qkv_NX), position * num_rows * 3 * self.inner, 3 * self.inner, _flat(cache), layout,
                self.origin_RM.numpy(), np.full(num_rows, seen), *self._sizes(layer.attention), _flat(bias),
                _flat(attended[i * num_rows : (i + 1) * num_rows]),
            )  # fmt: skip
        x_MRD[-num_queries:].view(len(attended), -1).addmm_(attended, layer.attention.out.weight.T)

    def _attend_memory(self, layer: DecoderLayer, x_QRD: Tensor, layer_idx: int) -> None:
        from feedgym.agents.layers import kernels

        kv, (num_queries, num_rows, _) = self.memory[layer_idx], x_QRD.shape
        q_NX = self._product("q", self.normed(x_QRD, layer.norm_cross), layer.cross.q)
        attended, sizes = self._part("attended", *q_NX.shape), self._sizes(layer.cross)
        if num_rows == len(kv):  # one row per user
            layout = (kv[0].numel(), kv.shape[2], self.inner)
            for i in range(num_queries):
                kernels.attend_rows(
                    _flat(q_NX), i * num_rows * self.inner, self.inner, _flat(kv), layout, self.user_U1,
                    self.length_U, *sizes, _flat(torch.empty(0)), _flat(attended[i * num_rows : (i + 1) * num_rows]),
                )  # fmt: skip
        else:
            kernels.attend_memory(
                _flat(q_NX), _flat(kv), kv.shape[1], self.length_U, num_queries, num_rows, *sizes, _flat(attended)
            )
        x_QRD.view(len(q_NX), -1).addmm_(attended, layer.cross.out.weight.T)

    def _sizes(self, attention: SelfAttention | CrossAttention) -> tuple[int, int, np.float32]:
        """Heads, their width, and the scale of products."""
        width = self.inner // self.heads
        return self.heads, width, np.float32(width**-0.5 if attention.scale is None else attention.scale)

    def feed_forward(self, layer: Any, x_QRD: Tensor) -> Tensor:
        """The layer's feed-forward part, as :meth:`DecodingState.feed_forward`; the result overwrites ``x_QRD``."""
        normed, x_ND = self.normed(x_QRD, layer.norm_ff), x_QRD.view(-1, x_QRD.shape[2])
        if hasattr(layer, "experts"):
            self._experts(layer.experts, normed, x_ND)
        else:
            x_ND.addmm_(self._product("inner", normed, layer.up).relu_(), layer.down.weight.T)
        return x_QRD

    def _experts(self, moe: SparseMoE, normed_ND: Tensor, x_ND: Tensor) -> None:
        from feedgym.agents.layers import kernels

        logits_NE = self._product("router", normed_ND, moe.router)
        num_pairs, num_experts = len(x_ND) * moe.experts_per_token, logits_NE.shape[1]
        expert_P, token_P, first_E1 = (np.empty(n, np.int64) for n in (num_pairs, num_pairs, num_experts + 1))
        gate_P = np.empty(num_pairs, np.float32)
        kernels.route(logits_NE.numpy(), moe.experts_per_token, moe.renormalise, expert_P, token_P, gate_P, first_E1)
        inputs = self._part("inputs", num_pairs, x_ND.shape[1])
        inner = self._part("inner", num_pairs, moe.up_EDF.shape[2])
        kernels.gather(normed_ND.numpy(), token_P, inputs.numpy())
        for up, down, low, high in zip(moe.up_EDF, moe.down_EFD, first_E1[:-1], first_E1[1:], strict=True):
            torch.mm(inputs[low:high], up, out=inner[low:high])
            torch.mm(inner[low:high].relu_(), down, out=inputs[low:high])
        kernels.add_gated(inputs.numpy(), token_P, gate_P, x_ND.numpy())

    def normed(self, x: Tensor, norm: nn.RMSNorm) -> Tensor:
        """The RMS norm of vectors [N, D] in memory that the next call overwrites."""
        from feedgym.agents.layers import kernels

        x_ND = x.view(-1, x.shape[-1])
        normed = self._part("normed", *x_ND.shape)
        kernels.rms_norm(x_ND.numpy(), norm.weight.numpy(), np.float32(norm.eps), normed.numpy())
        return normed

    def _product(self, name: str, x_ND: Tensor, linear: nn.Linear) -> Tensor:
        out = self._part(name, len(x_ND), linear.out_features)
        return torch.mm(x_ND, linear.weight.T, out=out)

    def _part(self, name: str, num: int, width: int) -> Tensor:
        """Returns memory [num, width], which later calls with the same name use again."""
        kept = self._parts.get(name)
        if kept is None or kept.numel() < num * width:
            kept = self._parts[name] = self.cache.new_empty(num * width)
        return kept[: num * width].view(num, width)


def _flat(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).numpy()
