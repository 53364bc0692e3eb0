"""Sparse mixture-of-experts feed-forward layer and its load statistics.

It is dropless: every token reaches its experts whatever the others chose, so a token's output does not depend on the
batch.

Axes that differ from the legend of :mod:`feedgym.data.events`: ``N`` tokens, ``E`` experts, ``k`` experts of a token,
``F`` width inside an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedgym.agents.sharing import is_shared, part_of_mean, whole_mean


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
        # Counted without bincount, which would make a GPU's host wait.
        sizes_E = torch.zeros_like(logits_NE[0], dtype=torch.long)
        sizes_E = sizes_E.scatter_add(0, experts_Nk.flatten(), torch.ones_like(order))
        inputs = x_ND.index_select(0, order // self.experts_per_token)
        outputs = self._by_expert(inputs, sizes_E)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        outputs_NkD = outputs.index_select(0, place).view(*experts_Nk.shape, -1)
        return (outputs_NkD * gates_Nk.to(x_ND.dtype)[..., None]).sum(1), logits_NE

    def _by_expert(self, x_GD: Tensor, sizes_E: Tensor) -> Tensor:
        """Outputs [G, D] of (token, expert) pairs that are sorted by expert."""
        if can_group(x_GD, self.up_EDF):
            return grouped_product(grouped_product(x_GD, self.up_EDF, sizes_E).relu(), self.down_EFD, sizes_E)
        groups = zip(x_GD.split(sizes_E.tolist()), self.up_EDF, self.down_EFD, strict=True)
        return torch.cat([(x @ up).relu() @ down for x, up, down in groups if len(x)])


def can_group(x_GD: Tensor, weight_EDF: Tensor) -> bool:
    """True if :func:`grouped_product` is better than one product per expert, whose sizes a GPU's host must wait for."""
    wide = all(size * 2 % 16 == 0 for size in weight_EDF.shape[1:])  # the kernel reads 16 bytes at a time
    return x_GD.device.type != "cpu" and x_GD.dtype != torch.float64 and wide and hasattr(F, "grouped_mm")


def grouped_product(x_GD: Tensor, weight_EDF: Tensor, sizes_E: Tensor) -> Tensor:
    """Products [G, F] of groups of neighbouring rows with their own matrices, in autocast's precision if it is on.

    In bfloat16 torch has one kernel for all groups; in float32 it multiplies them one by one.
    """
    kind = x_GD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_GD.dtype
    offsets_E = sizes_E.cumsum(0, dtype=torch.int32)
    return F.grouped_mm(x_GD.to(dtype), weight_EDF.to(dtype), offs=offsets_E)


def balance_loss(router_logits: tuple[Tensor, ...], experts_per_token: int, attention_mask: Tensor | None) -> Tensor:
    """Load-balancing loss (Switch, arXiv:2101.03961, eq. 4-6); k where the load is balanced.

    It is a product of two means over tokens, so processes that share a batch need the others' first one.

    Args:
        router_logits: [N, E] per layer.
        experts_per_token: k.
        attention_mask: [R, M] of N = R·M tokens, 1 where a token counts.
    """
    num_experts = router_logits[0].shape[1]
    if not is_shared():
        from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

        layers: Any = router_logits
        loss: Any = load_balancing_loss_func(layers, num_experts, experts_per_token, attention_mask)
        return loss
    logits = torch.stack(router_logits).float()  # [layers, N, E]
    mask_N = logits.new_ones(logits.shape[1]) if attention_mask is None else attention_mask.flatten().to(logits)
    chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(experts_per_token, dim=-1).indices, 1.0)
    count = mask_N.sum()
    means_E = [(part * mask_N[:, None]).sum(1).mean(0) / count for part in (chosen, logits.softmax(-1))]
    return num_experts * (whole_mean(means_E[0], count) * part_of_mean(means_E[1], count)).sum()


def expert_load(router_logits: Sequence[Tensor], experts_per_token: int) -> Tensor:
    """Share of the (token, expert) pairs that each expert received, [layers, E]; balanced at 1/E.

    Args:
        router_logits: [N, E] per layer.
        experts_per_token: k.
    """
    logits = torch.stack(list(router_logits)).detach()
    chosen = torch.zeros_like(logits).scatter_(-1, logits.topk(experts_per_token, dim=-1).indices, 1.0)
    return chosen.mean(1) / experts_per_token
