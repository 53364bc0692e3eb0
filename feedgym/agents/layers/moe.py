"""Sparse mixture-of-experts feed-forward layer and its load statistics.

It is dropless: every token reaches its experts whatever the others chose, so a token's output does not depend on the
batch.

Axes that differ from the legend of :mod:`feedgym.data.events`: ``N`` tokens, ``E`` experts, ``k`` experts of a token,
``F`` width inside an expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SparseMoE(nn.Module):
    """Top-k experts of two matrices with ReLU between them: y = sum over the top k of g_e(x) · FFN_e(x).

    The gate is a softmax over ALL experts (OneRec, arXiv:2502.18965, eq. 5). The paper keeps the k largest values
    unchanged; ``renormalise`` divides them by their sum, as Mixtral does.

    Args:
        d_model: D, width.
        d_ff: width inside an expert.
        num_experts: E.
        experts_per_token: k.
        renormalise: scale the kept gates to sum to one.
    """

    def __init__(self, d_model: int, d_ff: int, num_experts: int, experts_per_token: int, renormalise: bool) -> None:
        super().__init__()
        if not 1 <= experts_per_token <= num_experts:
            raise ValueError(f"num_experts_per_tok={experts_per_token} must lie in 1..num_experts={num_experts}.")
        self.experts_per_token = experts_per_token
        self.renormalise = renormalise
        self.router = nn.Linear(d_model, num_experts, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.down_EFD = nn.Parameter(torch.empty(num_experts, d_ff, d_model))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Output [N, D] and router logits [N, E] of N tokens."""
        logits_NE = self.router(x_ND)
        gates_Nk, experts_Nk = logits_NE.float().softmax(-1).topk(self.experts_per_token, dim=-1)
        if self.renormalise:
            gates_Nk = gates_Nk / gates_Nk.sum(-1, keepdim=True)
        # Sorting the (token, expert) pairs by expert turns the layer into one pair of matrix products per expert.
        order = experts_Nk.flatten().argsort(stable=True)
        sizes = experts_Nk.flatten().bincount(minlength=logits_NE.shape[1]).tolist()
        inputs = x_ND.index_select(0, order // self.experts_per_token).split(sizes)
        outputs = torch.cat(
            [(x @ up).relu() @ down for x, up, down in zip(inputs, self.up_EDF, self.down_EFD, strict=True) if len(x)]
        )
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        outputs_NkD = outputs.index_select(0, place).view(*experts_Nk.shape, -1)
        return (outputs_NkD * gates_Nk.to(x_ND.dtype)[..., None]).sum(1), logits_NE


def expert_load(router_logits: Sequence[Tensor], experts_per_token: int) -> Tensor:
    """Share of the (token, expert) pairs that each expert received, [layers, E]; balanced at 1/E.

    Args:
        router_logits: [N, E] per layer.
        experts_per_token: k.
    """
    logits = torch.stack(list(router_logits)).detach()
    chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(experts_per_token, dim=-1).indices, 1.0)
    return chosen.mean(1) / experts_per_token
