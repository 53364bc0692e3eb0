"""Plackett-Luce: ordered slates of K different items, drawn place after place in proportion to exp(logit).

P(a | l) = prod_k exp(l[a_k]) / sum over the items i not among a_1..a_(k-1) of exp(l[i])   (Plackett, 1975)

Drawing takes one pass: the K largest of logit + Gumbel noise, in that order (Kool et al., arXiv:1903.06059). Entropy
and divergence have no tractable closed form. By the chain rule they are expectations of sums of K closed forms, one per
place. They are estimated from one drawn slate per row: unbiased, and exact if K is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOWHERE = -1e30
"""Logit of an item that is already in the slate; finite, so that gradients are finite."""


@dataclass(frozen=True, eq=False)
class PlackettLuce:
    """A distribution over slates for each of U rows.

    Attributes:
        logits_UI: float, finite; items that must never come have a logit below all others.
        length: K, at most I.
    """

    logits_UI: Tensor
    length: int

    def sample(self, n: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """``n`` slates per row, int64 [U, n, K]; rows do not depend on each other."""
        users, items = self.logits_UI.shape
        noise = torch.empty((users, n, items), dtype=self.logits_UI.dtype, device=self.logits_UI.device)
        # An exponential that rounds to 0 would give an infinite Gumbel, and topk does not report NaN.
        gumbel_USI = -noise.exponential_(generator=generator).clamp_min(1e-20).log()
        return (self.logits_UI.detach()[:, None] + gumbel_USI).topk(self.length, dim=-1).indices

    def mode(self) -> Tensor:
        """The likeliest slate of each row, int64 [U, K]: the items by descending logit."""
        return self.logits_UI.topk(self.length, dim=-1).indices

    def log_prob(self, slates_UK: Tensor) -> Tensor:
        """Log-probabilities [U] of slates of K different items; one pass over the items, stable for sharp logits."""
        return self.item_log_probs(slates_UK).sum(dim=1)

    def item_log_probs(self, slates_UK: Tensor) -> Tensor:
        """Log-probability [U, K] of each item given those in the places before it."""
        return self.logits_UI.gather(1, slates_UK) - self._log_total(slates_UK)

    def entropy(self, generator: torch.Generator | None = None) -> Tensor:
        """An estimate of the entropy [U]: the places' entropies along one drawn slate."""
        slates_UK = self.sample(1, generator)[:, 0]
        log_total_UK = self._log_total(slates_UK)
        return (log_total_UK - self._expected(self.logits_UI, slates_UK, log_total_UK)).sum(dim=1)

    def kl(self, other: PlackettLuce, generator: torch.Generator | None = None) -> Tensor:
        """An estimate of KL(self, other) [U]: the places' divergences along one slate drawn from self."""
        slates_UK = self.sample(1, generator)[:, 0]
        log_total_UK = self._log_total(slates_UK)
        gap_UK = self._expected(self.logits_UI - other.logits_UI, slates_UK, log_total_UK)
        return (gap_UK - log_total_UK + other._log_total(slates_UK)).sum(dim=1)

    def _log_total(self, slates_UK: Tensor) -> Tensor:
        """Log of each place's denominator [U, K]: the items in no place, and those in places k..K."""
        chosen_UK = self.logits_UI.gather(1, slates_UK)
        return torch.cat([self._log_rest(slates_UK), chosen_UK.flip(1)], dim=1).logcumsumexp(dim=1)[:, 1:].flip(1)

    def _log_rest(self, slates_UK: Tensor) -> Tensor:
        return self.logits_UI.scatter(1, slates_UK, NOWHERE).logsumexp(dim=1, keepdim=True)

    def _expected(self, value_UI: Tensor, slates_UK: Tensor, log_total_UK: Tensor) -> Tensor:
        """Mean value of each place's item [U, K], given the items before it."""
        rest_UI = self.logits_UI.scatter(1, slates_UK, NOWHERE)
        mean_rest_U1 = (rest_UI.softmax(dim=1) * value_UI.scatter(1, slates_UK, 0.0)).sum(dim=1, keepdim=True)
        rest_UK = (rest_UI.logsumexp(dim=1, keepdim=True) - log_total_UK).exp() * mean_rest_U1
        # prob_UKK[u, k, j]: the item of place j comes at place k, for j >= k.
        prob_UKK = (self.logits_UI.gather(1, slates_UK)[:, None] - log_total_UK[:, :, None]).clamp_max(0).exp().triu()
        return rest_UK + (prob_UKK * value_UI.gather(1, slates_UK)[:, None]).sum(dim=2)
