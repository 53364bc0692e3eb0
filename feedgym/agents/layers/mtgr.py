"""The MTGR layer: group layer norm, and SiLU attention divided by the sample's tokens (arXiv:2505.18654, §3.3).

    X' = GroupLN(X);   K, Q, V, U = MLP(X');   V' = SiLU(Q K^T) / (tokens of the sample) * mask · V;
    X <- MLP(GroupLN(V' * U)) + X

Candidates of a sample see its context and themselves, so their queries never meet each other's keys. A sample of M
context tokens and K candidates costs M (M + K) products per layer instead of (M + K)^2.

The second norm undoes the division up to its eps. The eps is therefore tiny, so that scores do not depend on how many
candidates share a sample. The MLPs are single matrices. K, Q, V and U pass a SiLU as in HSTU, and there is no
1/sqrt(d).

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` context tokens (keys), ``Q`` queries, ``H`` heads of width
``d``.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6
GATED_EPS = 1e-16
"""Eps of the norm after attention. Values of long samples are small, so a larger eps would reveal the sample's
length."""


class Domain(IntEnum):
    """Kind of content of a token."""

    USER = 0
    STATIC = 1
    REAL_TIME = 2
    CANDIDATE = 3


class GroupLayerNorm(nn.Module):
    """Layer norm whose weight and bias belong to the token's domain.

    Args:
        width: of the vectors.
        eps: added to their variance.
        grouped: one weight and bias per domain; false shares them among all domains.
    """

    def __init__(self, width: int, eps: float = EPS, grouped: bool = True) -> None:
        super().__init__()
        self.eps, self.grouped = eps, grouped
        num_groups = len(Domain) if grouped else 1
        self.weight = nn.Parameter(torch.ones(num_groups, width))
        self.bias = nn.Parameter(torch.zeros(num_groups, width))

    def forward(self, x: Tensor, domain: Tensor | Domain) -> Tensor:
        """Normalised vectors of ``x`` [..., D].

        Args:
            x: the vectors.
            domain: one for all vectors, or int64 [...] for each.
        """
        x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        if not self.grouped or isinstance(domain, Domain):
            group = int(domain) if self.grouped and isinstance(domain, Domain) else 0
            return x * self.weight[group] + self.bias[group]
        # A product picks rows exactly, and on a CPU its gradient is much faster than that of an index.
        choice = F.one_hot(domain, len(self.weight)).to(self.weight.dtype)
        return x * (choice @ self.weight) + choice @ self.bias


class MTGRLayer(nn.Module):
    """One layer.

    Args:
        d_model: D.
        num_heads: H, heads of width D / H.
        grouped: one norm per domain; false uses one for all.
        dropout: before the output matrix.
    """

    def __init__(self, d_model: int, num_heads: int, grouped: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupLayerNorm(d_model, EPS, grouped)
        self.kqvu = nn.Linear(d_model, 4 * d_model)
        self.gated_norm = GroupLayerNorm(d_model, GATED_EPS, grouped)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        context_NMD: Tensor,
        candidates_NKD: Tensor,
        domain_NM: Tensor,
        mask_NMM: Tensor,
        mask_NKM: Tensor,
        num_tokens_N: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Context [N, M, D] and candidates [N, K, D] after the layer.

        Args:
            context_NMD: tokens of user, sequence and real-time events.
            candidates_NKD: tokens of candidates.
            domain_NM: int64 :class:`Domain` of the context's tokens.
            mask_NMM: bool, true where query m sees key m'.
            mask_NKM: bool, true where candidate k sees key m; it always sees itself, and never another candidate.
            num_tokens_N: real tokens of the sample, including candidates.
        """
        k_NMHd, q_NMHd, v_NMHd, u_NMD = self._project(context_NMD, domain_NM)
        own_k, q_NKHd, own_v, u_NKD = self._project(candidates_NKD, Domain.CANDIDATE)
        share_N111 = 1 / num_tokens_N.to(context_NMD.dtype)[:, None, None, None]
        seen_NMHd = _attend(q_NMHd, k_NMHd, v_NMHd, mask_NMM) * share_N111
        itself_NKHd = F.silu((q_NKHd * own_k).sum(-1, keepdim=True)) * own_v
        seen_NKHd = (_attend(q_NKHd, k_NMHd, v_NMHd, mask_NKM) + itself_NKHd) * share_N111
        return (
            context_NMD + self._finish(seen_NMHd, u_NMD, domain_NM),
            candidates_NKD + self._finish(seen_NKHd, u_NKD, Domain.CANDIDATE),
        )

    def _project(self, x: Tensor, domain: Tensor | Domain) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, queries and values [N, M, H, d] and gates [N, M, D]."""
        k, q, v, u = F.silu(self.kqvu(self.norm(x, domain))).chunk(4, dim=-1)
        k, q, v = (part.unflatten(-1, (self.num_heads, -1)) for part in (k, q, v))
        return k, q, v, u

    def _finish(self, seen: Tensor, u: Tensor, domain: Tensor | Domain) -> Tensor:
        return self.out(self.dropout(self.gated_norm(seen.flatten(-2) * u, domain)))


def _attend(q_NQHd: Tensor, k_NMHd: Tensor, v_NMHd: Tensor, mask_NQM: Tensor) -> Tensor:
    """SiLU(q k) · mask · v; the mask multiplies after the SiLU, where a zero also gives a zero gradient."""
    weight_NHQM = F.silu(torch.einsum("nqhd,nmhd->nhqm", q_NQHd, k_NMHd)) * mask_NQM[:, None]
    return torch.einsum("nhqm,nmhd->nqhd", weight_NHQM, v_NMHd)
