"""Parts of the session reward model: item vectors, attention with relations between items, and towers.

Axes beyond the legend of :mod:`feedgym.data.events`: ``J`` distinct items, ``Q`` queries, ``H`` heads, ``O`` outputs
of a tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedgym.data.batches import Histories
from feedgym.data.events import Catalog


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Facts about the data that a reward model depends on."""

    num_items: int
    """I."""
    content_dim: int
    """E."""
    num_topics: int
    """Number of topic tags; -1 gets a separate row."""
    num_creators: int
    """Number of creators, numbered densely."""
    profile_sizes: tuple[int, ...]
    """Cardinalities of the F profile fields in the training data; all larger values share one more."""
    history_length: int
    """T, the longest history."""
    session_length: int
    """K, the longest session."""

    @classmethod
    def of(cls, catalog: Catalog, histories: Histories, session_length: int) -> Self:
        """Read the sizes from a catalogue and its logged sessions."""
        return cls(
            num_items=catalog.num_items,
            content_dim=catalog.content_IE.shape[1],
            num_topics=catalog.num_topics,
            num_creators=len(np.unique(catalog.creator_I)),
            profile_sizes=tuple(int(top) + 1 for top in histories.profile_UF.amax(0)),
            history_length=histories.length,
            session_length=session_length,
        )


class ItemVectors(nn.Module):
    """Items as vectors of width D: content, duration, topic, creator and a learned id.

    The catalogue's facts about the items are in buffers and are saved with the weights.
    """

    content_IE: Tensor
    log_duration_I: Tensor
    topic_I: Tensor
    creator_I: Tensor

    def __init__(self, width: int, id_dropout: float, sizes: Sizes) -> None:
        super().__init__()
        self.id_dropout = id_dropout
        self.register_buffer("content_IE", torch.zeros(sizes.num_items, sizes.content_dim))
        self.register_buffer("log_duration_I", torch.zeros(sizes.num_items))
        self.register_buffer("topic_I", torch.zeros(sizes.num_items, dtype=torch.long))
        self.register_buffer("creator_I", torch.zeros(sizes.num_items, dtype=torch.long))
        self.content = nn.Linear(sizes.content_dim, width, bias=False)
        self.duration = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.topic = nn.Embedding(sizes.num_topics + 1, width)
        self.creator = nn.Embedding(sizes.num_creators, width)
        self.id = nn.Embedding(sizes.num_items, width)
        for table in (self.topic, self.creator, self.id):
            nn.init.normal_(table.weight, std=0.02)

    def fill(self, catalog: Catalog) -> None:
        """Copy the catalogue; content is scaled to a root mean square of 1, durations are standardised logs."""
        content_IE = torch.as_tensor(catalog.content_IE, dtype=torch.float32)
        content_IE = content_IE - content_IE.mean(0)
        self.content_IE.copy_(content_IE / content_IE.square().mean().sqrt().clamp_min(1e-6))
        log_duration_I = torch.as_tensor(catalog.duration_s_I, dtype=torch.float32).log()
        spread = log_duration_I.std(correction=0).clamp_min(1e-3)
        self.log_duration_I.copy_((log_duration_I - log_duration_I.mean()) / spread)
        self.topic_I.copy_(torch.as_tensor(catalog.topic_I) + 1)
        self.creator_I.copy_(torch.from_numpy(np.unique(catalog.creator_I, return_inverse=True)[1]))

    def forward(self, item_ids: Tensor) -> Tensor:
        """Vectors [..., D] of item ids [...]; each distinct item is computed once."""
        items_J, place = item_ids.unique(return_inverse=True)
        id_JD = self.id(items_J)
        if self.training and self.id_dropout:
            id_JD = id_JD * (torch.rand(len(items_J), 1, device=id_JD.device) >= self.id_dropout)
        vectors_JD = (
            self.content(self.content_IE[items_J])
            + self.duration(self.log_duration_I[items_J, None])
            + self.topic(self.topic_I[items_J])
            + self.creator(self.creator_I[items_J])
            + id_JD
        )
        return F.embedding(place, vectors_JD)

    def relations(self, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """Whether keys have the query's own item, topic and creator: float32 [..., 3, queries, keys]."""
        tags = (torch.arange(len(self.topic_I), device=query_ids.device), self.topic_I, self.creator_I)
        same = [tag[query_ids][..., :, None] == tag[key_ids][..., None, :] for tag in tags]
        same[1] = same[1] & (self.topic_I[query_ids] > 0)[..., None]
        return torch.stack(same, dim=-3).float()


class RelationAttention(nn.Module):
    """Multi-head attention whose heads know which keys share the query's item, topic or creator.

    A learned empty key is always there: the weight that real keys take from it shows how many of them match.

    Args:
        width: D, divisible by ``heads``.
        heads: H.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.empty = nn.Parameter(torch.zeros(2, 1, heads, 1, width // heads))
        self.relation_H3 = nn.Parameter(torch.zeros(heads, 3))

    def forward(self, query_NQD: Tensor, key_NTD: Tensor, relations_N3QT: Tensor, mask: Tensor) -> Tensor:
        """Output [N, Q, D]; ``mask`` (bool, broadcastable to [N, 1, Q, T]) is true if attention is allowed."""
        q = self.q(query_NQD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(key_NTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([self.empty.expand(2, len(kv[0]), self.heads, 1, kv.shape[-1]), kv], dim=3)
        bias = torch.einsum("nrqt,hr->nhqt", relations_N3QT, self.relation_H3)
        bias = F.pad(bias.masked_fill(~mask, float("-inf")), (1, 0))
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class SessionLayer(nn.Module):
    """Pre-norm causal self-attention of a session's items, and feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.attention = RelationAttention(width, heads)
        self.norm_ff = nn.RMSNorm(width, eps=1e-6)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NKD: Tensor, relations_N3KK: Tensor, mask: Tensor) -> Tensor:
        """Output [N, K, D]; ``mask`` [N, 1, K, K]."""
        normed = self.norm_attention(x_NKD)
        x_NKD = x_NKD + self.dropout(self.attention(normed, normed, relations_N3KK, mask))
        return x_NKD + self.dropout(self.ff(self.norm_ff(x_NKD)))


class Tower(nn.Sequential):
    """A network with one hidden layer that outputs logits."""

    def __init__(self, width: int, dropout: float, num_outputs: int) -> None:
        last = nn.Linear(width, num_outputs)
        nn.init.normal_(last.weight, std=0.01)
        super().__init__(nn.RMSNorm(width, eps=1e-6), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), last)

    @torch.no_grad()
    def start_at(self, rate_O: Tensor) -> None:
        """Make the untrained probabilities about equal to these rates; NaN counts as one half."""
        last = self[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(rate_O.nan_to_num(0.5).clamp(1e-6, 1 - 1e-6).logit())


class FusedTowers(nn.Module):
    """Towers with a separate hidden layer each, and one joint output: a network over all hidden vectors (P-Score).

    Args:
        width: D, of the inputs and of the network.
        dropout: before the outputs.
        num_towers: O; each has a hidden vector of width / 4, at least 4.
    """

    def __init__(self, width: int, dropout: float, num_towers: int) -> None:
        super().__init__()
        self.num_towers, hidden = num_towers, max(4, width // 4)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.hidden = nn.Linear(width, num_towers * hidden)
        self.dropout = nn.Dropout(dropout)
        self.out_OH = nn.Parameter(torch.empty(num_towers, hidden))
        self.bias_O = nn.Parameter(torch.zeros(num_towers))
        self.fuse = Tower(num_towers * hidden, dropout, 1)
        nn.init.normal_(self.out_OH, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., O + 1] of vectors [..., D], the joint one last."""
        hidden = self.dropout(F.silu(self.hidden(self.norm(x))))
        own = (hidden.unflatten(-1, (self.num_towers, -1)) * self.out_OH).sum(-1) + self.bias_O
        return torch.cat([own, self.fuse(hidden)], dim=-1)

    @torch.no_grad()
    def start_at(self, rate_O: Tensor) -> None:
        """Make the untrained probabilities about equal to these rates; the joint one about equal to their mean."""
        self.bias_O.copy_(rate_O.nan_to_num(0.5).clamp(1e-6, 1 - 1e-6).logit())
        self.fuse.start_at(rate_O.nanmean())
