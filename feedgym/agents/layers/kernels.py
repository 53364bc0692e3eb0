"""Compiled loops of decoding on a CPU: attention of single queries, RMS norms, and the routing of experts.

A decoder that writes a hundred sessions per user spends a third of its time on attention with one query per row. Every
key is used once there, but torch's products and sums read keys several times and write what they read. These loops read
each key and value once. Their results differ from torch's in the last bits, because sums run in another order.

Numba keeps machine code on disk and looks at this file alone when it asks whether that is out of date. So a change of
:mod:`feedgym.agents.layers.simd` needs one here too.

Axes beyond the legend of :mod:`feedgym.data.events`: ``Q`` queries of a row (the newest positions), ``R`` rows, ``M``
positions of a row, ``H`` heads, ``X`` all heads side by side, ``d`` width of a head, ``N`` tokens, ``E`` experts, ``P``
(token, expert) pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from feedgym.agents.layers.simd import LANES, exponential, fma, largest, load, prefetch, repeat, spread, store, total
from feedgym.envs.compiling import jitted

GROUP = 2 * LANES
"""Rows of a user that attend to the history together."""
ZERO, ONE, LOWEST = np.float32(0), np.float32(1), np.float32(-np.inf)


def _compiled(function: Callable) -> Any:
    # "nnan" and "ninf" are left out: sums may run in any order, but infinities stay what they are
    return jitted(function, nogil=True, fastmath={"reassoc", "contract", "arcp", "nsz"}, error_model="numpy")


@_compiled
def attend_rows(q, first, stride, kv, layout, origin_RM, seen_R, heads, width, scale, bias, out):
    """Attention of one query per row to the row's own keys.

    Scores become weights in one vector with a lane per head, so there are at most eight heads.

    Args:
        q: flat, as are all but ``origin_RM`` and ``seen_R``: the query [X] of row r begins at ``first + r * stride``.
        first: see ``q``.
        stride: see ``q``.
        kv: keys and values of rows and positions.
        layout: distances in ``kv`` from row to row, from position to position, and from a key to its value.
        origin_RM: row of ``kv`` that holds a row's position; [R, 1] if it is the same for all positions.
        seen_R: number of positions that a row attends to, at least 1.
        heads: H.
        width: of a head, d; a multiple of 8.
        scale: multiplies the products of queries and keys.
        bias: [M, 8] added to the products, by head; nothing if it is empty.
        out: [R, X] gets the output.
    """
    num_rows, inner, whole = len(seen_R), heads * width, origin_RM.shape[1] == 1
    per_row, per_position, to_value = layout
    most = seen_R.max()
    score = np.zeros((most + 1) * LANES, np.float32)
    one, none, down = spread(ONE), spread(ZERO), spread(-ONE)
    for r in range(num_rows):
        query, to, seen = first + r * stride, r * inner, seen_R[r]
        following = min(r + 1, num_rows - 1)
        for m in range(seen):
            kept = origin_RM[r, 0 if whole else m] * per_row + m * per_position
            later = origin_RM[following, 0 if whole else m] * per_row + m * per_position
            for j in range(0, inner, 2 * LANES):  # a cache line
                prefetch(kv, later + j)
                prefetch(kv, later + to_value + j)
            for h in range(heads):
                product = none
                for j in range(h * width, (h + 1) * width, LANES):
                    product = fma(load(q, query + j), load(kv, kept + j), product)
                score[m * LANES + h] = total(product) * scale
        top = spread(LOWEST)
        for m in range(seen):
            s = load(score, m * LANES)
            if len(bias):
                s = fma(one, s, load(bias, m * LANES))
                store(score, m * LANES, s)
            top = largest(top, s)
        summed = none
        for m in range(seen):
            weight = exponential(fma(down, top, load(score, m * LANES)))
            store(score, m * LANES, weight)
            summed = fma(one, weight, summed)
        store(score, most * LANES, summed)
        for h in range(heads):
            share = ONE / score[most * LANES + h]
            for j in range(h * width, (h + 1) * width, LANES):
                attended = none
                for m in range(seen):
                    kept = origin_RM[r, 0 if whole else m] * per_row + m * per_position + to_value
                    attended = fma(repeat(score, m * LANES + h), load(kv, kept + j), attended)
                store(out, to + j, fma(spread(share), attended, none))


@_compiled
def attend_memory(q, kv, positions, length_U, num_queries, num_rows, heads, width, scale, out):
    """Attention of rows to the beginning of their users' histories; rows are sorted by user.

    Sixteen rows of a user attend together, one in each lane of two vectors.

    Args:
        q: [Q, R, X] queries; flat, as are all but ``length_U``.
        kv: [U, positions, 2, X] keys and values of the histories.
        positions: M.
        length_U: number of positions that a user's rows attend to, at least 1.
        num_queries: Q.
        num_rows: R.
        heads: H.
        width: of a head, d; a multiple of 4.
        scale: multiplies the products of queries and keys.
        out: [Q, R, X] gets the output.
    """
    num_users, inner = len(length_U), heads * width
    per_user, step = num_rows // num_users, 2 * inner
    turned, summed = np.zeros(width * GROUP, np.float32), np.empty(width * GROUP, np.float32)
    score, part = np.empty((positions + 4) * GROUP, np.float32), np.empty(GROUP, np.float32)
    one, none, down = spread(ONE), spread(ZERO), spread(-ONE)
    for u in range(num_users):
        num = length_U[u]
        last = num - 1
        for i in range(num_queries):
            for low in range(u * per_user, (u + 1) * per_user, GROUP):
                size = min(GROUP, (u + 1) * per_user - low)
                for h in range(heads):
                    start = u * positions * step + h * width
                    for g in range(size):
                        at = (i * num_rows + low + g) * inner + h * width
                        for j in range(width):
                            turned[j * GROUP + g] = q[at + j] * scale
                    top_a, top_b = spread(LOWEST), spread(LOWEST)
                    for m in range(0, num, 4):  # the last key is repeated to fill a group of four
                        k0, k1 = start + m * step, start + min(m + 1, last) * step
                        k2, k3 = start + min(m + 2, last) * step, start + min(m + 3, last) * step
                        a0, a1, a2, a3, b0, b1, b2, b3 = none, none, none, none, none, none, none, none
                        for j in range(width):
                            a, b = load(turned, j * GROUP), load(turned, j * GROUP + LANES)
                            k = repeat(kv, k0 + j)
                            a0, b0 = fma(k, a, a0), fma(k, b, b0)
                            k = repeat(kv, k1 + j)
                            a1, b1 = fma(k, a, a1), fma(k, b, b1)
                            k = repeat(kv, k2 + j)
                            a2, b2 = fma(k, a, a2), fma(k, b, b2)
                            k = repeat(kv, k3 + j)
                            a3, b3 = fma(k, a, a3), fma(k, b, b3)
                        at = m * GROUP
                        for a, b in ((a0, b0), (a1, b1), (a2, b2), (a3, b3)):
                            store(score, at, a)
                            store(score, at + LANES, b)
                            top_a, top_b = largest(top_a, a), largest(top_b, b)
                            at += GROUP
                    share_a, share_b = none, none
                    for at in range(0, num * GROUP, GROUP):
                        a = exponential(fma(down, top_a, load(score, at)))
                        b = exponential(fma(down, top_b, load(score, at + LANES)))
                        store(score, at, a)
                        store(score, at + LANES, b)
                        share_a, share_b = fma(one, a, share_a), fma(one, b, share_b)
                    store(part, 0, share_a)
                    store(part, LANES, share_b)
                    for j in range(0, width, 4):
                        a0, a1, a2, a3, b0, b1, b2, b3 = none, none, none, none, none, none, none, none
                        for m in range(num):
                            a, b, at = (
                                load(score, m * GROUP),
                                load(score, m * GROUP + LANES),
                                start + m * step + inner + j,
                            )
                            v = repeat(kv, at)
                            a0, b0 = fma(v, a, a0), fma(v, b, b0)
                            v = repeat(kv, at + 1)
                            a1, b1 = fma(v, a, a1), fma(v, b, b1)
                            v = repeat(kv, at + 2)
                            a2, b2 = fma(v, a, a2), fma(v, b, b2)
                            v = repeat(kv, at + 3)
                            a3, b3 = fma(v, a, a3), fma(v, b, b3)
                        at = j * GROUP
                        for a, b in ((a0, b0), (a1, b1), (a2, b2), (a3, b3)):
                            store(summed, at, a)
                            store(summed, at + LANES, b)
                            at += GROUP
                    for g in range(size):
                        at, share = (i * num_rows + low + g) * inner + h * width, ONE / part[g]
                        for j in range(width):
                            out[at + j] = summed[j * GROUP + g] * share


@_compiled
def rms_norm(x_ND, weight_D, eps, out_ND):
    """Computes x / sqrt(mean(x²) + eps) · weight, row by row."""
    num, width = x_ND.shape
    for n in range(num):
        x, out = x_ND[n], out_ND[n]
        squares = ZERO
        for j in range(width):
            squares += x[j] * x[j]
        factor = ONE / np.sqrt(squares / np.float32(width) + eps)
        for j in range(width):
            out[j] = x[j] * factor * weight_D[j]


@_compiled
def route(logits_NE, per_token, renormalise, expert_P, token_P, gate_P, first_E1):
    """Pairs tokens with their likeliest experts, sorted by expert.

    Args:
        logits_NE: the router's.
        per_token: experts of a token.
        renormalise: divide the gates of a token by their sum.
        expert_P: int64, for the experts of each token.
        token_P: int64, gets the token of each pair.
        gate_P: float32, gets the gate of each pair.
        first_E1: int64, gets the first pair of each expert, and the number of pairs.
    """
    num, experts = logits_NE.shape
    prob_E, chosen_P = np.empty(experts, np.float32), np.empty(num * per_token, np.float32)
    first_E1[:] = 0
    for n in range(num):
        top = logits_NE[n, 0]
        for e in range(experts):
            top = max(top, logits_NE[n, e])
        total, kept = ZERO, ZERO
        for e in range(experts):
            prob_E[e] = np.exp(logits_NE[n, e] - top)
            total += prob_E[e]
        for i in range(per_token):
            best = 0
            for e in range(experts):
                if prob_E[e] > prob_E[best]:
                    best = e
            expert_P[n * per_token + i] = best
            chosen_P[n * per_token + i] = prob_E[best]
            kept += prob_E[best]
            prob_E[best] = -ONE
            first_E1[best + 1] += 1
        for i in range(per_token):
            chosen_P[n * per_token + i] /= kept if renormalise else total
    for e in range(experts):
        first_E1[e + 1] += first_E1[e]
    place_E = first_E1[:-1].copy()
    for p in range(num * per_token):
        e = expert_P[p]
        token_P[place_E[e]] = p // per_token
        gate_P[place_E[e]] = chosen_P[p]
        place_E[e] += 1


@_compiled
def gather(x_ND, token_P, out_PD):
    """Copies each pair's row from its token."""
    for p in range(len(token_P)):
        x, out = x_ND[token_P[p]], out_PD[p]
        for j in range(len(out)):
            out[j] = x[j]


@_compiled
def add_gated(y_PD, token_P, gate_P, x_ND):
    """Add each pair's output times its gate to its token's row."""
    for p in range(len(token_P)):
        y, x, gate = y_PD[p], x_ND[token_P[p]], gate_P[p]
        for j in range(len(y)):
            x[j] += gate * y[j]
