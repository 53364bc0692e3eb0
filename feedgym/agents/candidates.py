"""Candidates: the few items of a large catalogue among which a user's sessions are written.

A model over item ids has a logit for every item at every step of every session. For a million items that is too much.
With candidates, each user's C best items are retrieved once per request. They are those with the largest logits of the
session's first item, among the items that exist and are not blocked. All items of the user's sessions are then chosen
among these C.

Sessions are drawn from the model given that each item is a candidate. At each step, the probability of a candidate is
divided by that of all candidates that the session does not hold yet. Log-probabilities of sessions are those of a model
that has no other items. Its logits need no pass over all items. But they do not tell the probabilities over all items,
by which models learn.

Axes beyond the legend of :mod:`feedgym.data.events`: ``C`` candidates, ``W`` places of options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from feedgym.agents.layers.blockwise import blockwise_topk
from feedgym.tokenizers.trie import Trie


class ScoresItems(Protocol):
    """An agent that can write among candidates: the logit of an item is the product of two vectors."""

    def query(self, tokens_USM: Tensor, state: Any) -> Tensor:
        """Feed tokens as ``step`` does; returns vectors [U, S, D]. BOS alone leaves the state as it is."""
        ...

    def item_vectors(self, item_ids: Tensor | slice) -> Tensor:
        """Vectors [..., D] of items."""
        ...


def check_candidates(model: Any, trie: Trie, num: int, session_length: int) -> None:
    """Refuse candidates for models that do not score items, and fewer of them than a session has items.

    Raises:
        ValueError: says which.
    """
    if trie.num_codes != (trie.num_items,) or not hasattr(model, "query"):
        raise ValueError(
            f"sampling.candidates={num} needs a model that scores items, such as HSTU, but {type(model).__name__} "
            "writes codes; leave it 0."
        )
    check_enough(num, session_length)


def check_enough(num: int, session_length: int) -> None:
    """Refuse fewer candidates than a session has items.

    Raises:
        ValueError: they are fewer.
    """
    if num < session_length:
        raise ValueError(
            f"sampling.candidates={num} is below session_length={session_length}, but a session holds no item twice; "
            "raise it."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """The choices of the next step in each row, side by side in W places.

    Attributes:
        logp_USW: log-probability of each option, over the joint vocabulary or over the candidates.
        exists_USW: bool, there is an option that exists at the request.
        free_USW: bool, and the row may choose it.
        first_US: node of the trie at place 0; the others follow it. None for candidates.
        node_UW: nodes of the candidates, ascending.
    """

    logp_USW: Tensor
    exists_USW: Tensor
    free_USW: Tensor
    first_US: Tensor | None = None
    node_UW: Tensor | None = None

    def nodes(self, place_US: Tensor, parent_US: Tensor | None) -> Tensor:
        """The nodes at places of the rows ``parent_US``; -1 for place -1."""
        if self.first_US is not None:
            nodes_US = place_US + (self.first_US if parent_US is None else self.first_US.gather(1, parent_US))
        else:
            assert self.node_UW is not None
            nodes_US = self.node_UW.gather(1, place_US.clamp_min(0))
        return nodes_US.masked_fill(place_US < 0, -1)

    def places(self, nodes_US: Tensor) -> Tensor:
        """The places of nodes; of a node that is no candidate, one that is never free."""
        if self.first_US is not None:
            return nodes_US - self.first_US
        assert self.node_UW is not None
        return _places(self.node_UW, nodes_US)


@dataclass(frozen=True, kw_only=True, eq=False)
class Shortlist:
    """The candidates of U users, each with C places and one more, at which there is none.

    Attributes:
        trie: the catalogue; each item has one code.
        node_UW: int64 nodes of the candidates, ascending, then a number above all nodes.
        vectors_UWD: their vectors.
    """

    trie: Trie
    node_UW: Tensor
    vectors_UWD: Tensor

    @classmethod
    def of(cls, model: Any, trie: Trie, items_UC: Tensor) -> Self:
        """The candidates ``items_UC``, -1 where a user has fewer."""
        nobody = trie.num_items + 1
        node_UC = trie.path_IL[items_UC, 1]
        node_UW = torch.nn.functional.pad(node_UC.masked_fill(items_UC < 0, nobody), (0, 1), value=nobody)
        node_UW = node_UW.sort(dim=1).values
        return cls(trie=trie, node_UW=node_UW, vectors_UWD=model.item_vectors(node_UW.clamp_max(nobody - 1) - 1))

    def options(self, query_USD: Tensor, written_USK: Tensor) -> Options:
        """The options of rows with queries [U, S, D] that have written items."""
        real_UW = self.node_UW <= self.trie.num_items
        logits_USW = (query_USD @ self.vectors_UWD.transpose(1, 2)).float().masked_fill(~real_UW[:, None], -torch.inf)
        exists_USW = free_USW = real_UW[:, None].expand_as(logits_USW)
        if written_USK.shape[2]:
            place_USK = _places(self.node_UW, self.trie.path_IL[written_USK, 1])
            free_USW = exists_USW.scatter(2, place_USK, False)
        logp_USW = logits_USW.log_softmax(-1)
        return Options(logp_USW=logp_USW, exists_USW=exists_USW, free_USW=free_USW, node_UW=self.node_UW)


def retrieved(
    model: Any, trie: Trie, query_UD: Tensor, num: int, blocked_UJ: Tensor, time_s_U: Tensor | None
) -> Tensor:
    """The ``num`` items with the largest products with each user's query, int64 [U, C], best first; -1 after the last.

    Of equal products the items with the smaller codes are taken. Scores are computed for some items at a time.

    Args:
        model: has the items' vectors.
        trie: the catalogue; each item has one code.
        query_UD: the queries.
        num: C, or all items if there are fewer.
        blocked_UJ: int64 items to leave out, -1 where there are fewer.
        time_s_U: times of the requests, at which the items must exist; None if all do.
    """
    blocked_code_UJ = trie.codes_IL[blocked_UJ, 0]

    def scores(codes: slice) -> Tensor:
        score_UB = (query_UD @ model.item_vectors(codes).T).float()
        width, code_UJ = score_UB.shape[1], blocked_code_UJ - codes.start
        place_UJ = torch.where((code_UJ >= 0) & (code_UJ < width), code_UJ, width)
        barred_UB = torch.zeros_like(score_UB[:, :1], dtype=torch.bool).repeat(1, width + 1)
        barred_UB = barred_UB.scatter_(1, place_UJ, True)[:, :-1]
        if time_s_U is not None:
            barred_UB |= ~trie.exists(time_s_U[:, None], trie.item_X[codes.start + 1 : codes.stop + 1])
        return score_UB.masked_fill_(barred_UB, -torch.inf)

    num = min(num, trie.num_items)
    _, code_UC = blockwise_topk(scores, (len(query_UD), trie.num_items), num, query_UD.device)
    return trie.item(code_UC + 1).masked_fill(code_UC < 0, -1)


def _places(node_UW: Tensor, nodes: Tensor) -> Tensor:
    """Places [U, ...] of nodes among ascending ones; the last place for nodes that are not among them."""
    wanted_UX = nodes.flatten(1)
    place_UX = torch.searchsorted(node_UW, wanted_UX.contiguous())
    place_UX = place_UX.masked_fill(node_UW.gather(1, place_UX) != wanted_UX, node_UW.shape[1] - 1)
    return place_UX.view(nodes.shape)
