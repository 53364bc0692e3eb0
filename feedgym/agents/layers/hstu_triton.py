"""HSTU's causal attention as Triton kernels, which keep no weight of any pair of positions in memory.

The equations are those of :mod:`feedgym.agents.layers.hstu`, whose blocks of queries keep the weights of one block at a
time. Here a tile of queries meets one tile of keys after another, and their scores, biases and time buckets exist on
the chip alone. The backward pass computes them twice: for the gradients of queries and biases, and for those of keys
and values. So memory grows with the positions and not with their square.

**No GPU has run these kernels.** They are tested in Triton's interpreter on a CPU, against the blocks, and compiled for
two generations of GPUs without being run. How fast they are is unknown. ``FEEDGYM_TRITON=0`` turns them off.

On a GPU the results may differ from the blocks' in the last bits, because sums run in another order. A time difference
within rounding of the edge of a bucket may fall into the next one. Gradients of the biases are added up by atomic sums,
whose order changes from run to run.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` positions, ``H`` heads of width ``d`` (``d_qk`` or ``d_v``),
``Q`` and ``K`` the queries and keys of a tile. In the kernels all tensors are pointers to their first number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from feedgym.agents.layers.relative_time import BUCKET_WIDTH, NUM_TIME_BUCKETS

HAS_TRITON = find_spec("triton") is not None and os.environ.get("FEEDGYM_TRITON", "1") != "0"
"""True if kernels can be compiled; FEEDGYM_TRITON=0 turns them off."""
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
"""True if Triton runs its kernels in Python, so that they can be tested on a CPU."""
WIDEST = {torch.float32: 64, torch.bfloat16: 128, torch.float16: 128}
"""Widest heads by type; wider ones do not fit into a GPU's registers."""

if HAS_TRITON:
    import triton
    import triton.language as tl


def _kernel(function: Callable) -> Any:
    # Without Triton the module can still be imported.
    return triton.jit(function) if HAS_TRITON else function


def can_attend(q: Tensor, v: Tensor) -> bool:
    """True if :func:`attend` takes queries [U, M, H, d_qk] and values [U, M, H, d_v].

    It needs Triton, an Nvidia GPU of compute capability 8 or more, and heads that are not too wide. It is not used
    where torch must be deterministic.
    """
    if not HAS_TRITON or torch.are_deterministic_algorithms_enabled():
        return False
    if max(q.shape[3], v.shape[3]) > WIDEST.get(q.dtype, 0):
        return False
    if q.is_cuda and torch.version.hip is None:
        return torch.cuda.get_device_capability(q.device) >= (8, 0)
    return INTERPRETED and not q.is_cuda and q.dtype != torch.bfloat16  # the interpreter multiplies it wrongly


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: Tensor,
    time: Tensor | None,
    request_s_UM: Tensor,
    begin_s_UM: Tensor,
    scale: float,
    num_positions: int,
) -> Tensor:
    """Values under causal attention, SiLU(scale q k + bias) · v / N; [U, M, H, d_v] of whole sequences.

    It has gradients for the first five arguments, and no gradients of gradients.

    Args:
        q: queries [U, M, H, d_qk]; float32, bfloat16 or float16.
        k: keys [U, M, H, d_qk] of the same type.
        v: values [U, M, H, d_v] of the same type.
        position: bias of each distance from 0 on; at least M numbers.
        time: bias of each time bucket, or None.
        request_s_UM: time of the request after each position, seconds; read only for a bias by time.
        begin_s_UM: time of each position's event, seconds.
        scale: multiplies the products of queries and keys.
        num_positions: N.
    """
    assert len(position) >= q.shape[1]
    seconds = (None, None) if time is None else (request_s_UM.contiguous(), begin_s_UM.contiguous())
    return _Attention.apply(q, k, v, position, time, *seconds, scale, 1 / num_positions)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, position: Any, time: Any, *rest: Any) -> Tensor:
        (q, k, v), seconds, factors = (_by_rows(x) for x in (q, k, v)), rest[:2], rest[2:]
        out = v.new_empty(v.shape)
        _launch(_attended, (q, k, v), (position, time, *seconds), factors, out)
        ctx.save_for_backward(q, k, v, position, time, *seconds)
        ctx.factors = factors
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, position, time, *seconds = ctx.saved_tensors
        given = ((q, k, v), (position, time, *seconds), ctx.factors, grad_out.contiguous())
        num_users, num, heads, _ = grad_out.shape
        grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
        # A table of its own for each user and head, so that fewer atomic sums meet.
        grad_position = q.new_zeros(num_users * heads, num, dtype=torch.float32)
        grad_time = None if time is None else q.new_zeros(num_users * heads, NUM_TIME_BUCKETS, dtype=torch.float32)
        _launch(_query_gradients, *given, grad_q, grad_position, grad_time)
        _launch(_key_gradients, *given, grad_k, grad_v)
        whole = torch.zeros_like(position)
        whole[:num] = grad_position.sum(0) * ctx.factors[1]
        summed = None if grad_time is None else (grad_time.sum(0) * ctx.factors[1]).to(time.dtype)
        return grad_q, grad_k, grad_v, whole, summed, None, None, None, None


def _by_rows(x: Tensor) -> Tensor:
    """The tensor [U, M, H, d], copied unless a position's numbers lie together and positions at equal distances.

    Queries, keys and values lie side by side in one matrix product, and need no copies.
    """
    num_users, num, heads, width = x.shape
    together = x.stride(3) == 1 and (heads == 1 or x.stride(2) == width)
    return x if together and (num_users == 1 or x.stride(0) == num * _row(x)) else x.contiguous()


def _row(x: Tensor) -> int:
    """Distance of a position's numbers to those of the next, which may belong to the next user."""
    return x.stride(1) if x.shape[1] > 1 else x.stride(0)


def _launch(kernel: Any, qkv: Any, biases: Any, factors: Any, *rest: Any) -> None:
    """Runs a kernel for every user, head and tile of positions."""
    q, _, v = qkv
    num_users, num, heads, d_qk = q.shape
    sizes = tile_sizes(q.dtype, d_qk, v.shape[3])
    grid = (num_users * heads, triton.cdiv(num, sizes["BLOCK"]))
    with torch.cuda.device_of(q):
        kernel[grid](*qkv, *biases, *rest, *(_row(x) for x in qkv), num, heads, *factors, **sizes)


def tile_sizes(dtype: torch.dtype, d_qk: int, d_v: int) -> dict[str, Any]:
    """Sizes that a kernel is compiled for: widths, the next powers of two, positions of a tile, precision of products.

    Args:
        dtype: of queries, keys and values.
        d_qk: width of a head's queries and keys.
        d_v: width of a head's values.
    """
    padded = [max(16, 1 << (width - 1).bit_length()) for width in (d_qk, d_v)]
    exact = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return {
        "D_QK": d_qk,
        "D_V": d_v,
        "PADDED_QK": padded[0],
        "PADDED_V": padded[1],
        "BLOCK": 16 if dtype == torch.float32 else 32,  # larger tiles do not fit into the registers
        "PRECISION": "ieee" if exact else "tf32",
    }


@_kernel
def _load(head, place, num, row, D: tl.constexpr, PADDED: tl.constexpr):
    """A head's numbers at some positions, [BLOCK, PADDED]; 0 where there are none."""
    column = tl.arange(0, PADDED)
    real = (place[:, None] < num) & (column[None, :] < D)
    return tl.load(head + place[:, None] * row + column[None, :], mask=real, other=0.0)


@_kernel
def _store(head, values, place, num, row, D: tl.constexpr, PADDED: tl.constexpr):
    """Writes a head's numbers at some positions."""
    column = tl.arange(0, PADDED)
    real = (place[:, None] < num) & (column[None, :] < D)
    tl.store(head + place[:, None] * row + column[None, :], values, mask=real)


@_kernel
def _load_s(seconds, place, num):
    """Times of some positions."""
    return tl.load(seconds + place, mask=place < num, other=0.0)


@_kernel
def _bucket(request, begin, WIDTH: tl.constexpr = BUCKET_WIDTH, LAST: tl.constexpr = NUM_TIME_BUCKETS - 1):
    """Time buckets [Q, K], as :func:`feedgym.agents.layers.relative_time.time_buckets` has them."""
    delta = tl.abs((request[:, None] - begin[None, :]).to(tl.float32))
    return tl.minimum(tl.floor(tl.log(tl.maximum(delta, 1.0)) / WIDTH), LAST).to(tl.int32)


@_kernel
def _scores(q, k, query, key, num, position, time, request_s, begin_s, first, scale, PRECISION: tl.constexpr):
    """Scores [Q, K] with their biases, which keys a query sees, and the time buckets, 0 without biases by time."""
    seen = (query[:, None] >= key[None, :]) & (query[:, None] < num)
    score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    score += tl.load(position + query[:, None] - key[None, :], mask=seen, other=0.0).to(tl.float32)
    bucket = tl.zeros_like(score).to(tl.int32)
    if time is not None:
        bucket = _bucket(_load_s(request_s + first, query, num), _load_s(begin_s + first, key, num))
        score += tl.load(time + bucket).to(tl.float32)
    return score, seen, bucket


@_kernel
def _weights(score, seen):
    """Weights [Q, K] of the values, without ``share``."""
    return tl.where(seen, score * tl.sigmoid(score), 0.0)


@_kernel
def _score_gradients(score, grad_weight, seen):
    """Gradients [Q, K] of the scores: those of the weights times the SiLU's derivative."""
    gate = tl.sigmoid(score)
    return tl.where(seen, grad_weight * gate * (1 + score * (1 - gate)), 0.0)


@_kernel
def _attended(
    q, k, v, position, time, request_s, begin_s, out, q_row, k_row, v_row, num, heads, scale, share,
    D_QK: tl.constexpr, D_V: tl.constexpr, PADDED_QK: tl.constexpr, PADDED_V: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attended values of a tile of queries."""
    first, head = (tl.program_id(0) // heads).to(tl.int64) * num, tl.program_id(0) % heads
    query, out_row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), heads * D_V
    q_tile = _load(q + first * q_row + head * D_QK, query, num, q_row, D_QK, PADDED_QK)
    total = tl.zeros([BLOCK, PADDED_V], tl.float32)
    for start in range(0, (tl.program_id(1) + 1) * BLOCK, BLOCK):
        key = start + tl.arange(0, BLOCK)
        k_tile = _load(k + first * k_row + head * D_QK, key, num, k_row, D_QK, PADDED_QK)
        v_tile = _load(v + first * v_row + head * D_V, key, num, v_row, D_V, PADDED_V)
        score, seen, _ = _scores(
            q_tile, k_tile, query, key, num, position, time, request_s, begin_s, first, scale, PRECISION
        )
        total += tl.dot(_weights(score, seen).to(v_tile.dtype), v_tile, input_precision=PRECISION)
    _store(out + first * out_row + head * D_V, total * share, query, num, out_row, D_V, PADDED_V)


@_kernel
def _query_gradients(
    q, k, v, position, time, request_s, begin_s, grad_out, grad_q, grad_position, grad_time,
    q_row, k_row, v_row, num, heads, scale, share,
    D_QK: tl.constexpr, D_V: tl.constexpr, PADDED_QK: tl.constexpr, PADDED_V: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, BUCKETS: tl.constexpr = NUM_TIME_BUCKETS,
):  # fmt: skip
    """Gradients of a tile of queries, and its part of those of the biases, the latter without ``share``."""
    first, head = (tl.program_id(0) // heads).to(tl.int64) * num, tl.program_id(0) % heads
    query, out_row, table = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), heads * D_V, tl.program_id(0).to(tl.int64)
    q_tile = _load(q + first * q_row + head * D_QK, query, num, q_row, D_QK, PADDED_QK)
    grad_tile = _load(grad_out + first * out_row + head * D_V, query, num, out_row, D_V, PADDED_V)
    total = tl.zeros([BLOCK, PADDED_QK], tl.float32)
    for start in range(0, (tl.program_id(1) + 1) * BLOCK, BLOCK):
        key = start + tl.arange(0, BLOCK)
        k_tile = _load(k + first * k_row + head * D_QK, key, num, k_row, D_QK, PADDED_QK)
        v_tile = _load(v + first * v_row + head * D_V, key, num, v_row, D_V, PADDED_V)
        score, seen, bucket = _scores(
            q_tile, k_tile, query, key, num, position, time, request_s, begin_s, first, scale, PRECISION
        )
        grad_weight = tl.dot(grad_tile, tl.trans(v_tile), input_precision=PRECISION)
        grad_score = _score_gradients(score, grad_weight, seen)
        total += tl.dot(grad_score.to(k_tile.dtype), k_tile, input_precision=PRECISION)
        distance = query[:, None] - key[None, :]
        tl.atomic_add(grad_position + table * num + distance, grad_score, mask=seen, sem="relaxed")
        if time is not None:
            tl.atomic_add(grad_time + table * BUCKETS + bucket, grad_score, mask=seen, sem="relaxed")
    row = heads * D_QK
    _store(grad_q + first * row + head * D_QK, total * (scale * share), query, num, row, D_QK, PADDED_QK)


@_kernel
def _key_gradients(
    q, k, v, position, time, request_s, begin_s, grad_out, grad_k, grad_v,
    q_row, k_row, v_row, num, heads, scale, share,
    D_QK: tl.constexpr, D_V: tl.constexpr, PADDED_QK: tl.constexpr, PADDED_V: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of their values."""
    first, head = (tl.program_id(0) // heads).to(tl.int64) * num, tl.program_id(0) % heads
    key, row, out_row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), heads * D_QK, heads * D_V
    k_tile = _load(k + first * k_row + head * D_QK, key, num, k_row, D_QK, PADDED_QK)
    v_tile = _load(v + first * v_row + head * D_V, key, num, v_row, D_V, PADDED_V)
    total_k, total_v = tl.zeros([BLOCK, PADDED_QK], tl.float32), tl.zeros([BLOCK, PADDED_V], tl.float32)
    for start in range(tl.program_id(1) * BLOCK, num, BLOCK):
        query = start + tl.arange(0, BLOCK)
        q_tile = _load(q + first * q_row + head * D_QK, query, num, q_row, D_QK, PADDED_QK)
        grad_tile = _load(grad_out + first * out_row + head * D_V, query, num, out_row, D_V, PADDED_V)
        score, seen, _ = _scores(
            q_tile, k_tile, query, key, num, position, time, request_s, begin_s, first, scale, PRECISION
        )
        weight = tl.trans(_weights(score, seen)).to(grad_tile.dtype)
        total_v += tl.dot(weight, grad_tile, input_precision=PRECISION)
        grad_weight = tl.dot(grad_tile, tl.trans(v_tile), input_precision=PRECISION)
        grad_score = tl.trans(_score_gradients(score, grad_weight, seen)).to(q_tile.dtype)
        total_k += tl.dot(grad_score, q_tile, input_precision=PRECISION)
    _store(grad_k + first * row + head * D_QK, total_k * (scale * share), key, num, row, D_QK, PADDED_QK)
    _store(grad_v + first * out_row + head * D_V, total_v * share, key, num, out_row, D_V, PADDED_V)
