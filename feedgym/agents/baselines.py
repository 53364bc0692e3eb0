"""Agents without a network: random items, the most popular items, and neighbours of the user's items.

Those with ``scores`` can be judged by full ranking (:mod:`feedgym.experiments.retrieval.metrics`).
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from feedgym.agents.requests import existing_items, request_noise, seen_by
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, Event, EventLog

LOW_SCORE, LOW_LOGIT = -1e30, -100.0
"""Score of a seen item: below all others, but it can still be served if nothing else is left."""


class RandomRecommender:
    """Sessions of different items, all equally likely.

    Args:
        num_items: I.
        session_length: K, at most I.
        seed: for :meth:`recommend`, whose sessions depend on the seed and on the request's history.
        catalog: with dated histories, serve only items that exist by the catalogue's times.

    Raises:
        ValueError: the sessions are longer than the catalogue.
    """

    def __init__(self, num_items: int, session_length: int, seed: int = 0, *, catalog: Catalog | None = None) -> None:
        _check_length(session_length, num_items)
        self.num_items, self.session_length, self.seed = num_items, session_length, seed
        self.catalog = catalog

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user, uniform over ordered sessions, with their log-probability."""
        luck_USI = torch.rand(len(histories), n, self.num_items, generator=generator)
        exists_UI = existing_items(histories, self.catalog, self.session_length)
        items_USK = _ruled_out(luck_USI, exists_UI).topk(self.session_length, dim=-1).indices
        num_items_U = torch.full((len(histories),), self.num_items) if exists_UI is None else exists_UI.sum(1)
        left_UK = num_items_U[:, None] - torch.arange(self.session_length)
        logp_U1 = -left_UK.double().log().sum(1, keepdim=True)
        return SessionBatch(item_ids_USK=items_USK, logp_US=logp_U1.float().repeat(1, n))

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """One session per user, the same for the same request."""
        luck_UI = request_noise(histories, self.num_items, self.seed)
        luck_UI = _ruled_out(luck_UI, existing_items(histories, self.catalog, self.session_length))
        return _served(luck_UI.topk(self.session_length, dim=1).indices)


class PopularRecommender:
    """The most popular items that are not in the user's history.

    Args:
        count_I: how often each item was seen, or any other popularity.
        session_length: K, at most I.
        catalog: with dated histories, serve only items that exist by the catalogue's times.

    Raises:
        ValueError: the sessions are longer than the catalogue.
    """

    def __init__(self, count_I: Tensor, session_length: int, *, catalog: Catalog | None = None) -> None:
        _check_length(session_length, len(count_I))
        self.count_I, self.session_length = count_I.double(), session_length
        self.catalog = catalog

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user, drawn by popularity without replacement (Plackett-Luce)."""
        score_UI = self._scores(histories)
        logit_UI = torch.where(score_UI == LOW_SCORE, LOW_LOGIT, score_UI.clamp_min(1e-9).log())
        logit_UI = _ruled_out(logit_UI, existing_items(histories, self.catalog, self.session_length))
        return _drawn(logit_UI, n, self.session_length, generator)

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The K most popular unseen items, most popular first; ties go to the lower id."""
        order_UI = self._scores(histories).argsort(dim=1, descending=True, stable=True)
        return _served(order_UI[:, : self.session_length])

    def scores(self, histories: EventBatch) -> Tensor:
        """Popularity [U, I], also of seen items."""
        return self.count_I.repeat(len(histories), 1)

    def _scores(self, histories: EventBatch) -> Tensor:
        """Popularity [U, I], far below zero for items in the history, and -inf for items that do not exist."""
        scores_UI = _without_seen(self.scores(histories), histories)
        return _ruled_out(scores_UI, existing_items(histories, self.catalog, self.session_length))


class ItemKNNRecommender:
    """Items near to those in the user's history: cosine over the users who took both (Sarwar et al., WWW 2001).

    sim(i, j) = n_ij / (sqrt(n_i n_j) + shrink), where n_ij users took both; an item keeps its ``neighbours`` nearest
    ones. An item's score is the sum of its similarities to the different items of the history. Items that are near to
    none come after all others, by popularity.

    Args:
        similarity_II: sparse; row i holds the neighbours of item i.
        count_I: how many users took each item.
        session_length: K, at most I.
        recent: how many of a history's last events count; all if None. Choose it on validation targets: where tastes
            drift, a few are far better than all.
        catalog: with dated histories, serve only items that exist by the catalogue's times.

    Raises:
        ValueError: the sessions are longer than the catalogue, or ``recent`` is below 1.
    """

    def __init__(
        self,
        similarity_II: sparse.csr_matrix,
        count_I: Tensor,
        session_length: int,
        *,
        recent: int | None = None,
        catalog: Catalog | None = None,
    ) -> None:
        _check_length(session_length, len(count_I))
        if recent is not None and recent < 1:
            raise ValueError(f"recent={recent} must be 1 or more events of a history, or None for all; raise it.")
        self.similarity_II, self.session_length = similarity_II.tocsr().astype(np.float64), session_length
        self.count_I, self.recent, self.catalog = count_I.double(), recent, catalog

    @classmethod
    def fit(
        cls,
        log: EventLog,
        num_items: int,
        session_length: int,
        *,
        neighbours: int = 100,
        shrink: float = 0.0,
        recent: int | None = None,
        behaviours: tuple[str, ...] = BEHAVIOURS[:-1],
        catalog: Catalog | None = None,
    ) -> Self:
        """Builds neighbours from a log of training events.

        Args:
            log: the training events.
            num_items: I.
            session_length: K.
            neighbours: how many neighbours an item keeps.
            shrink: lowers similarities that are based on few users.
            recent: how many of a history's last events count; all if None.
            behaviours: an examined exposure with any of these is an item taken.
            catalog: with dated histories, serve only items that exist by the catalogue's times.

        Raises:
            ValueError: ``neighbours`` is below 1, ``shrink`` negative, or nothing was taken.
        """
        if neighbours < 1 or shrink < 0:
            raise ValueError(f"neighbours={neighbours} and shrink={shrink} must be at least 1 and 0; raise them.")
        done = log.behaviours[:, [BEHAVIOUR_IDX[name] for name in behaviours]].any(axis=1)
        row = np.flatnonzero((log.event == Event.IMPRESSION) & log.examined & done)
        if not len(row):
            raise ValueError(f"No exposure has any of {', '.join(behaviours)}; name behaviours that the log has.")
        user = np.searchsorted(log.offsets_U1, row, side="right") - 1
        ones = np.ones(len(row), dtype=np.float32)
        taken_UI = sparse.csr_matrix((ones, (user, log.item_id[row])), shape=(log.num_users, num_items))
        taken_UI.data[:] = 1  # an item taken twice counts once
        count_I = np.asarray(taken_UI.sum(axis=0), dtype=np.float64).ravel()
        similarity_II = _nearest(taken_UI, count_I, neighbours, shrink)
        return cls(similarity_II, torch.from_numpy(count_I), session_length, recent=recent, catalog=catalog)

    def sample(self, histories: EventBatch, n: int, generator: torch.Generator) -> SessionBatch:
        """``n`` sessions per user, drawn by score without replacement (Plackett-Luce); items near to none are rare."""
        score_UI = self._scores(histories)
        # Items near to none have a score in (-1, 0): a hundred times rarer than the least similarity in use.
        logit_UI = torch.where(score_UI > 0, score_UI.clamp_min(1e-6), 1e-8 * (score_UI + 1).clamp_min(1e-3)).log()
        logit_UI = torch.where(score_UI == LOW_SCORE, LOW_LOGIT, logit_UI)
        logit_UI = torch.where(score_UI == -torch.inf, score_UI, logit_UI)
        return _drawn(logit_UI, n, self.session_length, generator)

    def recommend(self, histories: EventBatch) -> SessionBatch:
        """The K best-scored unseen items; ties go to the lower id."""
        order_UI = self._scores(histories).argsort(dim=1, descending=True, stable=True)
        return _served(order_UI[:, : self.session_length])

    def scores(self, histories: EventBatch) -> Tensor:
        """Sum of similarities [U, I], float64, also of seen items; from -1 to 0 for items near to none."""
        mask_UT = histories.mask_UT
        if self.recent is not None:
            from_end_UT = mask_UT.sum(1, keepdim=True) - mask_UT.cumsum(1)
            mask_UT = mask_UT & (from_end_UT < self.recent)
        user, place = np.nonzero(mask_UT.cpu().numpy())
        items = histories.item_ids_UT.cpu().numpy()[user, place]
        ones = np.ones(len(items))
        history_UI = sparse.csr_matrix((ones, (user, items)), shape=(len(histories), len(self.count_I)))
        history_UI.sum_duplicates()
        history_UI.data[:] = 1
        score_UI = torch.from_numpy((history_UI @ self.similarity_II).toarray())
        popularity_I = self.count_I / (self.count_I.max() + 1) - 1
        return torch.where(score_UI > 0, score_UI, popularity_I)

    def _scores(self, histories: EventBatch) -> Tensor:
        """Scores [U, I], far below zero for items in the history, and -inf for items that do not exist."""
        scores_UI = _without_seen(self.scores(histories), histories)
        return _ruled_out(scores_UI, existing_items(histories, self.catalog, self.session_length))


KNN_BLOCK = 512
"""Items whose co-occurrences are held at a time; the whole I x I matrix never is."""


def _nearest(taken_UI: sparse.csr_matrix, count_I: np.ndarray, neighbours: int, shrink: float) -> sparse.csr_matrix:
    """Each item's nearest neighbours [I, I], sparse; among equally near ones the lower id wins."""
    by_item = taken_UI.T.tocsr()
    blocks = []
    for low in range(0, len(count_I), KNN_BLOCK):
        both = (by_item[low : low + KNN_BLOCK] @ taken_UI).tocoo()
        row, column = both.row, both.col
        scale = np.sqrt(count_I[low + row] * count_I[column]) + shrink
        similarity = both.data / scale
        other = column != low + row
        row, column, similarity = row[other], column[other], similarity[other]
        shape = (min(KNN_BLOCK, len(count_I) - low), len(count_I))
        if len(row) > 4 * shape[0] * neighbours:  # sorting all is slow: first find how near the last kept one is
            dense = sparse.csr_matrix((similarity, (row, column)), shape=shape).toarray()
            near = similarity >= np.partition(dense, -neighbours, axis=1)[:, -neighbours][row]
            row, column, similarity = row[near], column[near], similarity[near]
        order = np.lexsort((column, -similarity, row))
        row, column, similarity = row[order], column[order], similarity[order]
        kept = np.arange(len(row)) - np.searchsorted(row, row) < neighbours
        blocks.append(sparse.csr_matrix((similarity[kept], (row[kept], column[kept])), shape=shape))
    return sparse.vstack(blocks).tocsr()


def _ruled_out(score: Tensor, exists_UI: Tensor | None) -> Tensor:
    """Scores [U, I] or [U, S, I] with -inf for items that do not exist."""
    if exists_UI is None:
        return score
    return score.masked_fill(~exists_UI if score.ndim == 2 else ~exists_UI[:, None], -torch.inf)


def _without_seen(score_UI: Tensor, histories: EventBatch) -> Tensor:
    """Scores with items that the user is known to have seen far below all others."""
    items_UX, known_UX = seen_by(histories)
    seen_UX = items_UX.masked_fill(~known_UX, score_UI.shape[1]).cpu()
    return F.pad(score_UI, (0, 1)).scatter_(1, seen_UX, LOW_SCORE)[:, :-1]


def _drawn(logit_UI: Tensor, n: int, length: int, generator: torch.Generator) -> SessionBatch:
    """Sessions drawn item by item without replacement, with their log-probabilities."""
    gumbel_USI = -torch.empty(len(logit_UI), n, logit_UI.shape[1]).exponential_(generator=generator).log()
    items_USK = (logit_UI[:, None] + gumbel_USI).topk(length, dim=-1).indices
    return SessionBatch(item_ids_USK=items_USK, logp_US=_plackett_luce_logp(logit_UI, items_USK).float())


def _plackett_luce_logp(logit_UI: Tensor, items_USK: Tensor) -> Tensor:
    """Log-probability [U, S] of drawing items in this order without replacement."""
    logit_USI = logit_UI[:, None].expand(-1, items_USK.shape[1], -1)
    chosen_USK = logit_USI.gather(2, items_USK)
    never_US1 = logit_USI.scatter(2, items_USK, -torch.inf).logsumexp(2, keepdim=True)
    # Mass left before item k, summed from the end: subtracting the earlier ones from the total would drown small items
    # in rounding.
    left_USK = torch.cat([never_US1, chosen_USK.flip(2)], dim=2).logcumsumexp(2)[..., 1:].flip(2)
    return (chosen_USK - left_USK).sum(2)


def _served(items_UK: Tensor) -> SessionBatch:
    """Sessions of agents that have no log-probability for their choice."""
    return SessionBatch.of_items(items_UK[:, None])


def _check_length(session_length: int, num_items: int) -> None:
    if not 1 <= session_length <= num_items:
        raise ValueError(
            f"session_length={session_length} must be in 1..{num_items}, the items of the catalogue; a session holds "
            "no item twice."
        )
