"""The catalogue as a prefix tree of codes in flat tensors, which limits what a decoder may generate next.

Nodes are numbered breadth first, lexicographically inside a level: the root is 0, and the node entered by edge ``e`` is
``e + 1``. Edges are sorted by (parent, code). So one ``searchsorted`` walks any number of rows one level down, and no
table of nodes x codes is needed. The node -1 means "off the tree": nothing is allowed there and it holds no item.

If items come and go (:meth:`Trie.dated`), the allowed codes depend on the time of a request. Then each user has counts
of the existing items below every node (:meth:`Trie.supply`). The R rows are those of U users in order, equally many
each.

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` rows being decoded, ``W`` the widest node's children,
``X`` nodes of the tree, ``J`` items blocked in a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from feedgym.data.events import Catalog


@dataclass(frozen=True, kw_only=True, eq=False)
class Children:
    """Children of R nodes of one level, side by side; a child's place is its number among its siblings.

    Attributes:
        first_R1: int64, node of the first child; the child at place w is this node plus w.
        code_RW: int64, code that leads to each child; [1, W] if it is the same for all rows.
        exists_RW: bool, there is a child with existing items below it.
        free_RW: bool, some of these are not used.
    """

    first_R1: Tensor
    code_RW: Tensor
    exists_RW: Tensor
    free_RW: Tensor

    def of(self, values_RC: Tensor) -> Tensor:
        """The entries [R, W] of the children's codes; arbitrary where there is no child."""
        if len(self.code_RW) == 1:
            return values_RC[:, self.code_RW[0]]
        return values_RC.gather(1, self.code_RW)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trie:
    """A prefix tree over the items' code tuples. Build it with :meth:`from_codes`.

    Tensors with one row more than their axis says hold the answer for index -1 in the last row.

    Attributes:
        num_codes: codes of each of the L levels.
        codes_IL: int64 [I+1, L] codes of the items; row -1 is -1.
        path_IL: int64 [I+1, L+1] the nodes on the path to each item, root first; row -1 is -2, which is not a node.
        edge_key: int64 [X-1] parent x max(num_codes) + code, ascending.
        code_X: int64 [X+1+W] the code that leads to the node; 0 for the root and after the last node. There are as many
            of these as the widest node has children.
        first_edge_X: int64 [X+1] the edge to the node's first child.
        num_children_X: int64 [X+1].
        num_items_X: int64 [X+1] items below the node.
        item_X: int64 [X+1] the item of a leaf, -1 elsewhere.
        widest: largest number of children of a node, one number per level.
        fewest: smallest number of items below a child, one number per level.
        upload_s_I: float64 [I+1] upload time of each item, never for item -1; None if all items always exist.
        withdraw_s_I: float64 [I+1] withdrawal time of each item.
    """

    num_codes: tuple[int, ...]
    codes_IL: Tensor
    path_IL: Tensor
    edge_key: Tensor
    code_X: Tensor
    first_edge_X: Tensor
    num_children_X: Tensor
    num_items_X: Tensor
    item_X: Tensor
    widest: tuple[int, ...]
    fewest: tuple[int, ...]
    upload_s_I: Tensor | None = None
    withdraw_s_I: Tensor | None = None

    @classmethod
    def from_codes(cls, codes_IL: Tensor, num_codes: tuple[int, ...] | None = None) -> Self:
        """Build the tree of I items, on the CPU.

        Args:
            codes_IL: integer [I, L] codes, every item's tuple different.
            num_codes: codes of each level; the largest code in use plus one if left out.

        Raises:
            ValueError: there are no items, a code lies outside its level, or two items share a tuple.
        """
        codes = codes_IL.detach().cpu().numpy().astype(np.int64)
        num_codes = _checked_num_codes(codes, num_codes)
        num_items, num_levels = codes.shape
        # Sorted by their codes, the items below any node are neighbours. A level's nodes begin where the prefix
        # changes. The number of rows to the next beginning is a node's number of items.
        order_I = np.lexsort(codes.T[::-1])
        path_IL, starts = _number_nodes(codes[order_I])
        if len(starts[-1]) < num_items:
            twin = int(np.flatnonzero(np.diff(path_IL[:, -1]) == 0)[0])
            raise ValueError(
                f"Items {order_I[twin]} and {order_I[twin + 1]} share the codes {codes[order_I[twin]].tolist()}, and "
                f"{num_items - len(starts[-1])} item(s) in all have no tuple of their own; add a level that tells "
                "colliding items apart."
            )
        num_nodes = 1 + sum(map(len, starts))
        edge_key, parent = np.empty((2, num_nodes - 1), dtype=np.int64)
        num_items_X, item_X = np.zeros(num_nodes + 1, dtype=np.int64), np.full(num_nodes + 1, -1)
        num_items_X[0], widest, fewest = num_items, [], []
        for level, start in enumerate(starts):
            node = path_IL[start, level + 1]
            parent[node - 1] = path_IL[start, level]
            edge_key[node - 1] = path_IL[start, level] * max(num_codes) + codes[order_I[start], level]
            num_items_X[node] = np.diff(start, append=num_items)
            widest.append(int(np.bincount(path_IL[start, level]).max()))
            fewest.append(int(num_items_X[node].min()))
        item_X[path_IL[:, -1]] = order_I
        num_children_X = np.bincount(parent, minlength=num_nodes + 1)
        by_item = np.full((num_items + 1, num_levels + 1), -2)
        by_item[order_I] = path_IL
        return cls(
            num_codes=num_codes,
            codes_IL=torch.from_numpy(np.vstack([codes, np.full((1, num_levels), -1)])),
            path_IL=torch.from_numpy(by_item),
            edge_key=torch.from_numpy(edge_key),
            code_X=torch.from_numpy(np.pad(edge_key % max(num_codes), (1, max(widest) + 1))),
            first_edge_X=torch.from_numpy(np.cumsum(num_children_X) - num_children_X),
            num_children_X=torch.from_numpy(num_children_X),
            num_items_X=torch.from_numpy(num_items_X),
            item_X=torch.from_numpy(item_X),
            widest=tuple(widest),
            fewest=tuple(fewest),
        )

    @property
    def num_levels(self) -> int:
        """L, the number of codes of an item."""
        return len(self.num_codes)

    @property
    def num_items(self) -> int:
        """I, the number of items."""
        return len(self.codes_IL) - 1

    def to(self, device: torch.device | str) -> Self:
        """The tree on another device."""
        moved: dict[str, Any] = {name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def dated(self, catalog: Catalog) -> Self:
        """The tree with items that come and go by the catalogue's times.

        Raises:
            ValueError: the catalogue and the tree have different numbers of items.
        """
        if catalog.num_items != self.num_items:
            raise ValueError(
                f"The catalogue has {catalog.num_items} items but {self.num_items} have codes; fit the tokenizer to "
                "the contents of the whole catalogue."
            )
        device, upload_s_I, withdraw_s_I = self.codes_IL.device, catalog.upload_s_I, catalog.withdraw_s_I
        if withdraw_s_I is None:
            withdraw_s_I = np.full(catalog.num_items, np.inf)
        return replace(
            self,
            upload_s_I=torch.from_numpy(np.append(upload_s_I, np.inf)).to(device),  # so item -1 exists at no time
            withdraw_s_I=torch.from_numpy(np.append(withdraw_s_I, np.inf)).to(device),
        )

    def exists(self, time_s: Tensor, items: Tensor) -> Tensor:
        """True where items can be served at times, bool of the common shape; only for :meth:`dated` trees."""
        assert self.upload_s_I is not None and self.withdraw_s_I is not None
        return (self.upload_s_I[items] <= time_s) & (time_s < self.withdraw_s_I[items])

    def num_existing(self, time_s_U: Tensor) -> Tensor:
        """Number of items that can be served at each time, int64 [U]; only for :meth:`dated` trees."""
        assert self.upload_s_I is not None and self.withdraw_s_I is not None
        gone_s_I = torch.maximum(self.upload_s_I, self.withdraw_s_I)  # items withdrawn before their upload never exist
        come, gone = (torch.searchsorted(v.sort().values, time_s_U, right=True) for v in (self.upload_s_I, gone_s_I))
        return come - gone

    def supply(self, time_s_U: Tensor) -> Tensor:
        """Number of items below each node that exist at U requests, int32 [U, X+1]; only for :meth:`dated` trees.

        It takes U times the memory of the tree, so use it for few users at a time.
        """
        items_I = torch.arange(self.num_items, device=time_s_U.device)
        exists_UI = self.exists(time_s_U[:, None], items_I).int()
        supply_UX = exists_UI.new_zeros(len(time_s_U), len(self.num_items_X))
        # Each item counts in all nodes on its path, level by level; ``scatter_add_`` adds for all users at once.
        for node_I in self.path_IL[:-1].T:
            supply_UX.scatter_add_(1, node_I.expand(len(time_s_U), -1), exists_UI)
        return supply_UX

    def root(self, num_rows: int) -> Tensor:
        """int64 [R] the root, once per row."""
        return self.codes_IL.new_zeros(num_rows)

    def children(
        self,
        nodes_R: Tensor,
        level: int,
        used_items_RJ: Tensor | None = None,
        supply_UX: Tensor | None = None,
        blocked_UJ: Tensor | None = None,
    ) -> Children:
        """The codes that may come next.

        A code is not free if every item below it is used, blocked or absent. So a prefix never leads to a dead end as
        long as the row has any other item left.

        Args:
            nodes_R: int64 nodes, all at depth ``level`` (0 is the root) or -1.
            level: the level of the code to choose, 0..L-1.
            used_items_RJ: int64 items that a row has written, padded with -1; an item may be there twice.
            supply_UX: from :meth:`supply`, if only existing items may be generated; the others must exist then.
            blocked_UJ: int64 further items that no row of a user may write, none of them used, padded with -1.
        """
        # Each row has as many places as the widest node has children, so that rows of different nodes form one array.
        widest = self.widest[level]
        place_W = torch.arange(widest, device=nodes_R.device)
        # All rows of a user are at the root first: look its children up once.
        num_users = 1 if supply_UX is None else len(supply_UX)
        parent_R = nodes_R if level else nodes_R.new_zeros(num_users)
        first_R = self.first_edge_X[parent_R] + 1
        exists_RW = place_W < self.num_children_X[parent_R][:, None]
        if supply_UX is not None:
            exists_RW &= _of_user(supply_UX, (first_R[:, None] + place_W).clamp(max=len(self.edge_key))) > 0
        code_RW = self.code_X.unfold(0, widest, 1)[first_R if level else first_R[:1]]
        if level == 0:
            exists_RW = (exists_RW[:, None] & (nodes_R == 0).view(num_users, -1, 1)).flatten(0, 1)
            first_R = first_R[:1].expand(len(nodes_R))
        lists = [items for items in (used_items_RJ, blocked_UJ) if items is not None and items.shape[1]]
        free_RW, fewest = exists_RW, self.fewest[level] if supply_UX is None else 1
        if sum(items.shape[1] for items in lists) >= fewest:
            place_RJ = self._exhausted(nodes_R, first_R[:, None], level, lists, supply_UX)
            free_RW = torch.nn.functional.pad(exists_RW, (0, 1)).scatter_(1, place_RJ, False)[:, :-1]
        return Children(first_R1=first_R[:, None], code_RW=code_RW, exists_RW=exists_RW, free_RW=free_RW)

    def _exhausted(
        self, nodes_R: Tensor, first_R1: Tensor, level: int, lists: list[Tensor], supply_UX: Tensor | None
    ) -> Tensor:
        """int64 [R, J] places of children with no free item below; W where a listed item exhausts none.

        Each list holds items [R, J'] of rows or [U, J'] of users, all of whose rows have them.
        """
        # Only the parents of listed items can be exhausted, so J places per row are checked instead of all W.
        widest, last = self.widest[level], level == self.num_levels - 1
        parents, children, below = zip(*(self._paths(items, level, len(nodes_R)) for items in lists), strict=True)
        child_RJ = torch.cat(children, dim=1)
        under_RJ = torch.cat(parents, dim=1) == nodes_R[:, None]
        place_RJ = torch.where(under_RJ, child_RJ - first_R1, widest)
        if last:  # a child is one item
            return place_RJ
        count_RW = torch.zeros(len(nodes_R), widest + 1, dtype=torch.int32, device=nodes_R.device)
        count_RW.scatter_add_(1, place_RJ, torch.ones_like(place_RJ, dtype=torch.int32))
        below_RJ = torch.cat(below, dim=1) if supply_UX is None else _of_user(supply_UX, child_RJ.clamp(min=0))
        return torch.where(under_RJ & (count_RW.gather(1, place_RJ) >= below_RJ), place_RJ, widest)

    def _paths(self, items_NJ: Tensor, level: int, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes [R, J] at a level above items, their children, and the number of items below these, for each row.

        An item that comes again counts once: its node is -2 there, as that of item -1.
        """
        ranked_NJ = items_NJ.sort(dim=1).values
        again_NJ = torch.nn.functional.pad(ranked_NJ[:, 1:] == ranked_NJ[:, :-1], (1, 0))
        ranked_NJ = ranked_NJ.masked_fill(again_NJ, -1)
        child_NJ = self.path_IL[ranked_NJ, level + 1]
        found = self.path_IL[ranked_NJ, level], child_NJ, self.num_items_X[child_NJ.clamp(min=0)]
        # Looked up once per user, because items of a large catalogue lie far apart in memory.
        rows = num_rows // len(items_NJ)
        return found if rows == 1 else tuple(v.repeat_interleave(rows, dim=0) for v in found)  # type: ignore[return-value]

    def child(self, nodes: Tensor, codes: Tensor) -> Tensor:
        """The nodes [...] reached from ``nodes`` by ``codes`` (shapes broadcast); -1 where the code is illegal."""
        # One number per (parent, code), ascending like the edges, so that a lookup is a binary search. Codes outside
        # 0..base-1 are refused separately, because their numbers belong to other parents' edges.
        base = max(self.num_codes)
        key = nodes * base + codes
        edge = torch.searchsorted(self.edge_key, key.contiguous()).clamp(max=len(self.edge_key) - 1)
        legal = (self.edge_key[edge] == key) & (codes >= 0) & (codes < base)
        return torch.where(legal, edge + 1, -1)

    def item(self, nodes: Tensor) -> Tensor:
        """The item ids [...] of leaves; -1 for other nodes."""
        return self.item_X[nodes]

    def decode(self, codes: Tensor) -> Tensor:
        """The item ids [...] of codes [..., L]; -1 if no item has them.

        Raises:
            ValueError: the last axis does not have L codes.
        """
        if codes.shape[-1] != self.num_levels:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)}, but an item has {self.num_levels} codes; "
                f"give a last axis of {self.num_levels}."
            )
        codes = codes.long()
        nodes = torch.zeros_like(codes[..., 0])
        for level in range(self.num_levels):
            nodes = self.child(nodes, codes[..., level])
        return self.item(nodes)


def _of_user(supply_UX: Tensor, nodes_RW: Tensor) -> Tensor:
    """The entries [R, W] of nodes in their own user's row; R rows are those of U users in order."""
    return supply_UX.gather(1, nodes_RW.view(len(supply_UX), -1)).view_as(nodes_RW)


def _checked_num_codes(codes_IL: np.ndarray, num_codes: tuple[int, ...] | None) -> tuple[int, ...]:
    """The codes of each level, after checking that the table fits in them."""
    if codes_IL.ndim != 2 or 0 in codes_IL.shape:
        raise ValueError(f"codes have shape {codes_IL.shape}; a trie needs [I, L] with at least one item and level.")
    num_codes = tuple(int(n) for n in codes_IL.max(axis=0) + 1) if num_codes is None else tuple(num_codes)
    if len(num_codes) != codes_IL.shape[1]:
        raise ValueError(
            f"num_codes={num_codes} names {len(num_codes)} levels, but the codes have {codes_IL.shape[1]}; "
            "give one number per level."
        )
    outside_IL = (codes_IL < 0) | (codes_IL >= num_codes)
    if outside_IL.any():
        item, level = np.argwhere(outside_IL)[0]
        raise ValueError(
            f"Item {item} has code {codes_IL[item, level]} at level {level}, outside 0..{num_codes[level] - 1}; "
            "raise num_codes or fix the codes."
        )
    return num_codes


def _number_nodes(sorted_codes_IL: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Numbers the nodes on the path to each item of a sorted table.

    Returns:
        int64 [I, L+1] node numbers, root first, and for each level the rows where a new node begins.
    """
    num_items, num_levels = sorted_codes_IL.shape
    # A node begins where the code or the parent differs from the row above. So ``new_I`` only grows from level to
    # level, and counting the beginnings numbers the nodes breadth first.
    new_I = np.arange(num_items) == 0
    path_IL, starts, num_nodes = np.zeros((num_items, num_levels + 1), dtype=np.int64), [], 1
    for level in range(num_levels):
        new_I = new_I | (np.diff(sorted_codes_IL[:, level], prepend=-1) != 0)
        path_IL[:, level + 1] = num_nodes - 1 + np.cumsum(new_I)
        starts.append(np.flatnonzero(new_I))
        num_nodes += len(starts[-1])
    return path_IL, starts
