"""Content embeddings for items with words and numbers, or for items known only by the users who watched them.

SciPy and scikit-learn take seconds to import, so only what computes embeddings imports them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, Event, EventLog, FloatArray
from feedgym.data.splits import until

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse


def attribute_embeddings(words_I: list[str] | pd.Series, numbers_IX: NDArray, width: int) -> FloatArray:
    """Embeds items by their attributes: TF-IDF of their words next to their standardised numbers, then SVD.

    Args:
        words_I: space-separated words, e.g. "tag=39 type=Web"; a word that only one item has is dropped, since it
            relates no items.
        numbers_IX: X finite numbers per item, X >= 0.
        width: E.

    Returns:
        float32 [I, E], rows of length 1 (or 0 where an item has nothing).
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.preprocessing import StandardScaler

    parts = []
    if any(words.split() for words in words_I):
        counts = CountVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False).fit_transform(words_I)
        counts = counts[:, np.asarray((counts > 0).sum(axis=0)).ravel() > 1]
        if counts.shape[1]:
            parts.append(TfidfTransformer().fit_transform(counts))
    if numbers_IX.shape[1]:
        # Numbers weigh less than words, so that length alone never makes two items neighbours.
        parts.append(sparse.csr_matrix(0.3 * StandardScaler().fit_transform(numbers_IX)))
    if not parts:
        return np.zeros((len(words_I), width), dtype=np.float32)
    return reduced(sparse.hstack(parts).tocsr(), width)


def collaborative_embeddings(
    log: EventLog, num_items: int, width: int, *, before_s: float, per_user: int = 50
) -> FloatArray:
    """Embeds items by the users who liked both: SVD of the items' positive pointwise mutual information.

    PPMI(i, j) = max(0, log(n_ij n / (n_i n_j))) with n_ij the users for whom both were positive (Levy & Goldberg,
    2014).

    Args:
        log: the event log; exposures with a click, a long view or an interaction count.
        num_items: I.
        width: E.
        before_s: only events before this time are used; whatever is held out must come after it.
        per_user: how many of a user's last positives count; this bounds the work for heavy users.

    Returns:
        float32 [I, E], rows of length 1; 0 for items that no user liked together with another item.
    """
    from scipy import sparse

    past = until(log, before_s)
    user = np.repeat(np.arange(past.num_users), np.diff(past.offsets_U1))
    row = np.flatnonzero(_liked(past))
    from_end = np.searchsorted(user[row], user[row], side="right") - np.arange(len(row))
    row = row[from_end <= per_user]
    ones = np.ones(len(row), dtype=np.float32)
    liked_UI = sparse.csr_matrix((ones, (user[row], past.item_id[row])), shape=(past.num_users, num_items))
    liked_UI.data[:] = 1  # an item liked twice counts once
    pairs = (liked_UI.T @ liked_UI).tolil()
    pairs.setdiag(0)
    return reduced(_ppmi(pairs.tocsr()), width)


def _liked(log: EventLog) -> BoolArray:
    """Exposures with any behaviour except hate, which is the last one."""
    return (log.event == Event.IMPRESSION) & log.examined & log.behaviours[:, :-1].any(axis=1)


def _ppmi(pairs: sparse.csr_matrix) -> sparse.csr_matrix:
    """Positive pointwise mutual information of a symmetric matrix of counts."""
    from scipy import sparse

    pairs.eliminate_zeros()
    total_I = np.asarray(pairs.sum(axis=1)).ravel()
    coo = pairs.tocoo()
    ratio = coo.data * total_I.sum() / (total_I[coo.row] * total_I[coo.col])
    return sparse.csr_matrix((np.maximum(np.log(ratio), 0), (coo.row, coo.col)), shape=pairs.shape)


def reduced(matrix: sparse.csr_matrix, width: int) -> FloatArray:
    """Rows reduced to ``width`` dimensions by SVD, of length 1; a small matrix is filled up with zeros."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    rank = min(width, *matrix.shape)
    filled = np.zeros((matrix.shape[0], width), dtype=np.float32)
    if rank and matrix.count_nonzero():
        # TruncatedSVD needs at least two columns; a single one needs no reduction.
        dense = TruncatedSVD(rank, random_state=0).fit_transform(matrix) if matrix.shape[1] > 1 else matrix.toarray()
        filled[:, :rank] = normalize(dense)
    return filled


def default_cutoff_s(log: EventLog) -> float:
    """The time before which four fifths of the impressions lie; the default end of the training part."""
    return float(np.quantile(log.timestamp_s[log.event == Event.IMPRESSION], 0.8))
