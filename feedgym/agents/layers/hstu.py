"""The HSTU layer: pointwise gated attention with relative position and time bias (arXiv:2402.17152, §3, eq. 1-3).

    U, V, Q, K = split(SiLU(LN(X) W));   A = SiLU(Q K^T + rab) / N * mask;   Y = X + f(LN(A V) * U)

There is no softmax, no 1/sqrt(d) and no feed-forward layer. N is constant (the longest sequence), so attention reflects
how much of something a user did, not its share. The mask multiplies AFTER the SiLU, because before it -inf would give
NaN. Norms have no weights. This follows Meta's code for retrieval; its code for ranking differs as the layer's options
say.

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` rows, ``M`` positions (keys), ``Q`` queries, ``H`` heads of
width ``d`` (``d_qk`` or ``d_v``). In the formulas N is the number of positions of the longest sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feedgym.agents.layers import hstu_triton
from feedgym.agents.layers.relative_time import NUM_TIME_BUCKETS, time_buckets

Attention = Literal["silu", "decay", "softmax"]

EPS = 1e-6
QUERIES_PER_BLOCK = 104
"""Queries computed together: two blocks for the usual 200 events. More blocks compute less for keys in the future, but
add up more gradients of the keys that they share."""
LONG = 512
"""Most positions of which training keeps all attention weights, [U, H, M, M], which is faster. For longer sequences
they would be most of its memory, so the backward pass computes each block's attention again."""


class CausalBlock(NamedTuple):
    """Neighbouring queries of whole sequences under causal attention, which see no key after the last of them.

    Attributes:
        start: first query.
        end: end of the queries, and of their keys.
        buckets: time buckets [U, Q, M] from each key's event to the query's request; None without times.
        mask: bool [1, Q, M], true where a query sees a key.
    """

    start: int
    end: int
    buckets: Tensor | None
    mask: Tensor


def causal_blocks(request_s_UM: Tensor, begin_s_UM: Tensor, use_time: bool) -> list[CausalBlock]:
    """Cuts M positions into blocks of queries, so that little is computed for keys in the future.

    Args:
        request_s_UM: time of the request after each position, seconds.
        begin_s_UM: time of each position's event, seconds.
        use_time: whether to compute time buckets.
    """
    num, blocks = begin_s_UM.shape[1], []
    place_M = torch.arange(num, device=begin_s_UM.device)
    for start in range(0, num, QUERIES_PER_BLOCK):
        end = min(start + QUERIES_PER_BLOCK, num)
        buckets = None
        if use_time:
            buckets = time_buckets(request_s_UM[:, start:end, None] - begin_s_UM[:, None, :end])
            buckets = buckets.byte() if num > LONG else buckets  # all blocks' buckets stay until the backward pass
        blocks.append(CausalBlock(start, end, buckets, (place_M[start:end, None] >= place_M[:end])[None]))
    return blocks


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalTimes:
    """Times of whole sequences under causal attention; one for all layers, which share its blocks.

    Attributes:
        request_s_UM: time of the request after each position, seconds.
        begin_s_UM: time of each position's event, seconds.
        use_time: whether attention has a bias by time.
    """

    request_s_UM: Tensor
    begin_s_UM: Tensor
    use_time: bool

    @cached_property
    def blocks(self) -> list[CausalBlock]:
        """Blocks of queries; not made if attention is fused."""
        return causal_blocks(self.request_s_UM, self.begin_s_UM, self.use_time)


class RelativeBias(nn.Module):
    """rab^{p,t}: a learned number for each distance of positions, and one for each time bucket; shared by heads.

    Args:
        num_positions: N.
        use_time: add a bias by time.
    """

    def __init__(self, num_positions: int, use_time: bool) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.position = nn.Parameter(torch.empty(2 * num_positions - 1))
        self.time = nn.Parameter(torch.empty(NUM_TIME_BUCKETS)) if use_time else None

    def forward(self, query_pos: Tensor, key_pos: Tensor, buckets: Tensor | None) -> Tensor:
        """Bias [..., Q, M].

        Args:
            query_pos: int64 positions [..., Q] of the queries.
            key_pos: int64 positions [..., M] of the keys.
            buckets: time buckets [..., Q, M] from each key's event to the query's request.
        """
        distance = query_pos[..., :, None] - key_pos[..., None, :] + self.num_positions - 1
        bias = _looked_up(self.position, distance)
        if self.time is not None and buckets is not None:
            bias = bias + _looked_up(self.time, buckets.int())
        return bias


def _looked_up(table: Tensor, idx: Tensor) -> Tensor:
    # index_select, because on a CPU the gradients of table[idx] and of F.embedding take several times longer.
    return table.index_select(0, idx.flatten()).view(idx.shape)


class _AttendedNorm(nn.Module):
    """Layer norm of attended values, over all heads or each separately; [..., H, d_v] to [..., H·d_v]."""

    def __init__(self, num_heads: int, d_v: int, by_head: bool, affine: bool) -> None:
        super().__init__()
        self.num_normed = d_v if by_head else num_heads * d_v
        self.weight = nn.Parameter(torch.ones(num_heads * d_v)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_heads * d_v)) if affine else None

    def forward(self, attended: Tensor) -> Tensor:
        a = attended.flatten(-2)
        normed = F.layer_norm(a.unflatten(-1, (-1, self.num_normed)), (self.num_normed,), eps=EPS).flatten(-2)
        return normed if self.weight is None or self.bias is None else normed * self.weight + self.bias


class HSTULayer(nn.Module):
    """One layer.

    Args:
        d_model: D.
        num_heads: H.
        d_qk: width of a head's queries and keys.
        d_v: width of a head's values and of its gate.
        num_positions: N, the divisor of attention.
        use_time: include time in the bias.
        concat_ua: feed [u, a, u * a] to the output matrix instead of u * a.
        dropout: before the output matrix.
        affine: as in ranking: norms have weights, and the first matrix a bias.
        scaled: as in ranking: products of queries and keys are divided by sqrt(d_qk).
        concat_ux: as in ranking: feed [u, x, u * a] to the output matrix, where x are the attended values before their
            norm.
        head_norm: normalise the attended values of each head separately.
        learned_bias: add a learned relative bias to the products; without it :meth:`attend` takes any other, or none.
        attention: weights as a function of products of queries and keys, s, and their bias, b. silu (HSTU's): SiLU(s +
            b) / N. decay: SiLU(s) exp(b) / N, so that a falling bias takes weights to 0. softmax: softmax(s + b).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_qk: int,
        d_v: int,
        num_positions: int,
        use_time: bool,
        concat_ua: bool,
        dropout: float,
        *,
        affine: bool = False,
        scaled: bool = False,
        concat_ux: bool = False,
        head_norm: bool = False,
        learned_bias: bool = True,
        attention: str = "silu",
    ) -> None:
        super().__init__()
        self.attention = attention
        self.num_heads, self.num_positions = num_heads, num_positions
        self.concat_ua, self.concat_ux, self.head_norm = concat_ua, concat_ux, head_norm
        self.scale = d_qk**-0.5 if scaled else 1.0
        self.sizes = [num_heads * d_v, num_heads * d_v, num_heads * d_qk, num_heads * d_qk]
        self.uvqk = nn.Parameter(torch.empty(d_model, sum(self.sizes)))
        self.uvqk_bias = nn.Parameter(torch.zeros(sum(self.sizes))) if affine else None
        self.norm = nn.LayerNorm(d_model, EPS, elementwise_affine=affine)
        self.attended_norm = _AttendedNorm(num_heads, d_v, head_norm, affine)
        self.bias = RelativeBias(num_positions, use_time) if learned_bias else None
        self.out = nn.Linear(num_heads * d_v * (3 if concat_ua or concat_ux else 1), d_model)
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gate [..., H·d_v], values [..., H, d_v], queries and keys [..., H, d_qk] of inputs [..., D]."""
        mixed = self.norm(x) @ self.uvqk
        mixed = F.silu(mixed if self.uvqk_bias is None else mixed + self.uvqk_bias)
        u, *vqk = mixed.split(self.sizes, dim=-1)
        v, q, k = (part.unflatten(-1, (self.num_heads, -1)) for part in vqk)
        return u, v, q, k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask_RQM: Tensor) -> Tensor:
        """Values weighted as ``attention`` says, e.g. SiLU(q k + bias) * mask · v / N; [R, Q, H, d_v] of R rows.

        Except with softmax, this is a sum over keys without normalisation, so that parts of the keys can be attended to
        separately and added up.

        Args:
            q: queries [R, Q, H, d_qk].
            k: keys [R, M, H, d_qk].
            v: values [R, M, H, d_v].
            bias: [R, Q, M], for all heads, or [R, H, Q, M], as decay needs it.
            mask_RQM: bool, true where a query sees a key; [1, Q, M] if it is the same for all rows. With softmax every
                query must see a key.
        """
        if self.attention == "softmax":
            score_RHQM = self._scores(q, k, bias).masked_fill(~mask_RQM[:, None], -torch.inf)
            return torch.einsum("rhqm,rmhd->rqhd", score_RHQM.softmax(-1), v)
        if self.attention == "decay" and bias is not None:
            weight_RHQM = F.silu(self._scores(q, k, None)) * bias.exp()
        else:
            weight_RHQM = F.silu(self._scores(q, k, bias))
        return torch.einsum("rhqm,rmhd->rqhd", weight_RHQM * mask_RQM[:, None], v / self.num_positions)

    def _scores(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """Products of queries and keys plus their bias, [R, H, Q, M]."""
        score_RHQM = torch.einsum("rqhd,rmhd->rhqm", q if self.scale == 1 else q * self.scale, k)
        if bias is None:
            return score_RHQM
        return score_RHQM + (bias[:, None] if bias.ndim == 3 else bias)

    def attend_itself(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        """Attention of each position to itself, [..., H, d_v] from [..., H, d]; add it to that of :meth:`attend`."""
        score = (q * k).sum(-1, keepdim=True) * self.scale + bias
        return F.silu(score) / self.num_positions * v

    def attend_both(
        self,
        q: Tensor,
        memory: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        bias: Tensor | None,
        own_bias: Tensor | float,
        mask_RQM: Tensor,
    ) -> Tensor:
        """Attention of positions to the keys and values of a memory and to their own, [R, Q, H, d_v].

        Args:
            q: queries [R, Q, H, d_qk].
            memory: keys and values [R, M, H, d].
            own: keys and values [R, Q, H, d]; each query sees only its own.
            bias: towards the memory; see :meth:`attend`.
            own_bias: of a position towards itself.
            mask_RQM: bool, true where a query sees a key of the memory.
        """
        if self.attention != "softmax":
            return self.attend(q, *memory, bias, mask_RQM) + self.attend_itself(q, *own, own_bias)
        # One softmax over both: the position's own score is the last column.
        (keys, values), (k, v) = memory, own
        score_RHQM = self._scores(q, keys, bias).masked_fill(~mask_RQM[:, None], -torch.inf)
        own_RHQ1 = (((q * k).sum(-1) * self.scale) + own_bias).transpose(1, 2)[..., None]
        weight_RHQM = torch.cat([score_RHQM, own_RHQ1], dim=-1).softmax(-1)
        attended = torch.einsum("rhqm,rmhd->rqhd", weight_RHQM[..., :-1], values)
        return attended + weight_RHQM[..., -1:].transpose(1, 2) * v

    def finish(self, x: Tensor, u: Tensor, attended: Tensor) -> Tensor:
        """Output [..., D] of raw inputs, gates and attended values [..., H, d_v]."""
        a = self.attended_norm(attended)
        gated = u * a
        if self.concat_ua or self.concat_ux:
            gated = torch.cat([u, a if self.concat_ua else attended.flatten(-2), gated], dim=-1)
        return x + self.out(self.dropout(gated))

    def forward(self, x_UMD: Tensor, times: CausalTimes) -> tuple[Tensor, Tensor, Tensor]:
        """Output [U, M, D] of whole sequences under causal attention, with their keys and values [U, M, H, d]."""
        u, v, q, k = self.project(x_UMD)
        fused = self.attention == "silu" and hstu_triton.can_attend(q, v)
        attend = self._attend_fused if fused else self._attend_by_blocks
        return self.finish(x_UMD, u, attend(q, k, v, times)), k, v

    def _attend_fused(self, q: Tensor, k: Tensor, v: Tensor, times: CausalTimes) -> Tensor:
        """Attended values [U, M, H, d_v] by a kernel, which keeps no weights."""
        assert self.bias is not None
        position = self.bias.position[self.num_positions - 1 :]  # no key comes after its query
        time = self.bias.time if times.use_time else None
        seconds = times.request_s_UM, times.begin_s_UM
        return hstu_triton.attend(q, k, v, position, time, *seconds, self.scale, self.num_positions)

    def _attend_by_blocks(self, q: Tensor, k: Tensor, v: Tensor, times: CausalTimes) -> Tensor:
        """Attended values [U, M, H, d_v] block by block."""
        attend: Any = self._attend_block
        if q.shape[1] > LONG and torch.is_grad_enabled():
            attend = partial(checkpoint, self._attend_block, use_reentrant=False, preserve_rng_state=False)
        parts = [attend(q[:, b.start : b.end], k[:, : b.end], v[:, : b.end], b) for b in times.blocks]
        return torch.cat(parts, dim=1)

    def _attend_block(self, q: Tensor, k: Tensor, v: Tensor, block: CausalBlock) -> Tensor:
        """Attended values of a block's queries; the weights exist only in here."""
        assert self.bias is not None
        place_1M = torch.arange(block.end, device=q.device)[None]
        bias = self.bias(place_1M[:, block.start :], place_1M, block.buckets)
        return self.attend(q, k, v, bias, block.mask)
