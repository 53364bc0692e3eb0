"""HSTU's attention by kernels and without; a program, because Triton asks for its interpreter when it is imported.

TRITON_INTERPRET=1 python tests/toy_fused.py OUT.pt
"""

import sys

import torch
import torch.nn.functional as F
from test_agents_hstu import KINDS, NUM_ITEMS, toy
from toy_agents import toy_histories

from feedgym.agents.layers import hstu_triton
from feedgym.agents.layers.hstu import CausalTimes, HSTULayer
from feedgym.agents.layers.relative_time import time_buckets

CASES = {  # tiles have 16 positions, in float16 32
    "one position": dict(num=1),
    "a whole tile": dict(num=16),
    "an odd length, two heads": dict(num=53, heads=2),
    "usual widths": dict(num=35, d_qk=50, d_v=50),
    "no times, scaled": dict(num=37, heads=3, use_time=False, scaled=True),
    "values wider than queries": dict(num=18, d_qk=3, d_v=20),
    "one position, its heads in disorder": dict(num=1, heads=2, copied=True),
    "queries that must be copied": dict(num=21, heads=2, copied=True),
    "float16": dict(num=45, heads=2, dtype=torch.float16),
}
USERS, MORE = 3, 2
"""Users, and positions that the longest sequence has more."""


def made(num, heads=1, d_qk=5, d_v=7, use_time=True, scaled=False, copied=False, dtype=torch.float32):
    """A layer, what it attends to (one product with an unused part), times, and whether queries lie in disorder."""
    torch.manual_seed(num)
    layer = HSTULayer(6, heads, d_qk, d_v, num + MORE, use_time, False, 0.0, scaled=scaled)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.5)
    mixed = torch.randn(USERS, num, 3 + heads * (2 * d_qk + d_v)).to(dtype)
    begin_s = torch.rand(USERS, num, dtype=torch.float64).pow(4).mul(1e7).sort(1).values + 1.7e9
    request_s = torch.cat([begin_s[:, 1:], begin_s[:, -1:] + 60], dim=1)
    return layer, mixed, CausalTimes(request_s_UM=request_s, begin_s_UM=begin_s, use_time=use_time), copied


def plain(layer, q, k, v, times):
    """The equation with all weights at once, in float64."""
    num, bias = q.shape[1], layer.bias
    place = torch.arange(num)
    score = torch.einsum("uqhd,umhd->uhqm", q.double(), k.double()) * layer.scale
    score = score + bias.position.double()[place[:, None] - place + layer.num_positions - 1]
    if times.use_time:
        bucket = time_buckets(times.request_s_UM[:, :, None] - times.begin_s_UM[:, None, :])
        score = score + bias.time.double()[bucket.long()][:, None]
    return torch.einsum("uhqm,umhd->uqhd", F.silu(score).tril() / layer.num_positions, v.double())


def attended(way, layer, mixed, times, copied):
    """Attended values, gradients of queries, keys, values and biases, and the size of the largest tensor kept."""
    leaf, heads = mixed.clone().requires_grad_(), layer.num_heads
    layer.zero_grad()
    d_v, d_qk = layer.sizes[0], layer.sizes[2]
    _, q, k, v = (
        part.unflatten(-1, (heads if i else 1, -1)) for i, part in enumerate(leaf.split([3, d_qk, d_qk, d_v], -1))
    )
    assert hstu_triton.can_attend(q, v)
    if copied:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    kept = [0]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = way(q, k, v, times)
    told = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    (out * told).sum().backward()
    tables = [table.grad.double() for table in (layer.bias.position, layer.bias.time) if table is not None]
    return [out.detach().double(), leaf.grad.double(), *tables], max(kept)


def attentions(name):
    """The three ways of a case."""
    layer, *rest = made(**CASES[name])
    ways = {"fused": layer._attend_fused, "plain": lambda *given: plain(layer, *given)}
    if CASES[name].get("dtype") is None:
        ways["blocks"] = layer._attend_by_blocks
    return {way: attended(attend, layer, *rest) for way, attend in ways.items()}


def trained(kind):
    """Loss and gradients of a model whose users have histories of different lengths, with kernels and without."""
    found, calls, attend = {}, [], hstu_triton.attend
    hstu_triton.attend = lambda *given: calls.append(1) or attend(*given)
    histories = toy_histories(5, num_items=NUM_ITEMS, length=23)
    for way, has_triton in (("fused", True), ("blocks", False)):
        hstu_triton.HAS_TRITON = has_triton
        model = toy(**KINDS[kind], loss="ce", history_length=23).train()
        loss = model(**model.sequence_batch(histories)).loss
        loss.backward()
        grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        found[way] = {"loss": loss.detach()} | grads, len(calls)
        calls.clear()
    hstu_triton.HAS_TRITON, hstu_triton.attend = True, attend
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    layers, models = {name: attentions(name) for name in CASES}, {kind: trained(kind) for kind in KINDS}
    torch.save({"layers": layers, "models": models}, sys.argv[1])
