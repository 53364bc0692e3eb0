"""Residual k-means: OneRec's tokenizer with balanced clusters (arXiv:2502.18965, §3.1, Algorithm 1), or plain.

Level l clusters the residuals after the levels before it, and an item's code there is its cluster. Clusters have exact
sizes, so no code is ever unused or crowded. ``assignment="nearest"`` gives the plain residual k-means of OneRec's
technical report (arXiv:2506.13695) and of GRID.

Deviations from the papers:
    * Algorithm 1 fills the clusters one after another, each with the nearest of the points not yet taken. So the last
      ones get leftovers from everywhere, and the next level has little to gain. Here the points of all clusters are
      chosen together, at the least total distance, by an auction (Bertsekas & Castañón, 1989). On 2,000 items of the
      simulator, levels of 32 and 64 codes leave 37% of the content's variance unexplained. Algorithm 1, which is
      available as ``assignment="greedy"``, leaves 42%.
    * If |V| is not divisible by K, the first ``I % C`` clusters take one item more, so sizes are within 1 of each
      other.
    * Under ``greedy`` the clusters choose in the (random) order of the starting centroids, which is the same in every
      iteration. The paper's listing does not specify the order, and a new one each time would prevent convergence.
    * Every item gets its own tuple, while the paper lets items collide. Below a prefix, a code may hold only as many
      items as later levels can separate, one at the last level. Such a choice always exists, at every level and with
      sizes still within 1, if there are at least as many tuples as items. So no extra level is needed. Alternatives are
      ``collisions="counter"`` (TIGER's extra level) and ``"sinkhorn"`` (LC-Rec's repair of the last level, whose sizes
      are then no longer exact).
    * Large levels (more than ``EXACT_PAIRS`` pairs of items and codes, 8 million) are made another way. K-means sees a
      new sample of the items in each of at most ``SAMPLES`` passes. Then every item bids only for the codes near it
      (:mod:`feedgym.tokenizers.many_points`). Sizes are still within 1; distances are a few per cent larger. Items that
      collide swap codes. Sizes differ by more only if no swap is found, which can happen if there are few free codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from torch import Tensor

from feedgym.ranges import Passes, Ranged, Seed, Width
from feedgym.tokenizers.assignment import (
    Assignment,
    Ints,
    Matrix,
    assign,
    assign_apart,
    cluster_sizes,
    is_large,
    nearest,
    sinkhorn_apart,
)
from feedgym.tokenizers.codes import (
    CodeTokenizer,
    append_counter,
    check_enough_tuples,
    check_no_code_empty,
    check_num_codes,
    checked_content,
    with_num_codes,
)
from feedgym.tokenizers.extension import codes_of_new

Collisions = Literal["apart", "counter", "sinkhorn"]

SAMPLES = 8
"""Most passes of k-means over a large level."""
SAMPLE_PER_CODE, LEAST_SAMPLE = 32, 2**16
"""Items in the sample of a pass: a number per code, and the smallest number in all."""
_BLOCK = 2**16


@dataclass(frozen=True, kw_only=True)
class ResidualKMeansConfig(Ranged):
    """Options of residual k-means."""

    assignment: Assignment = "auction"
    """Filling of clusters: auction and greedy give them exact sizes, nearest any size. auction has the least total
    distance, greedy is the paper's Algorithm 1 (cluster after cluster), nearest is plain k-means."""
    collisions: Collisions = "apart"
    """Treatment of items with the same codes. apart chooses codes so that there are none. counter counts them by one
    more level. sinkhorn spreads them over the last level, and counts those that still collide."""
    max_iterations: Passes = 30
    """Most passes of k-means per level; it stops earlier once no item changes its cluster. A large level (more than 8
    million pairs of items and codes) takes at most 8 passes, each over a sample of the items."""

    num_codes: tuple[Width, ...] | None = None
    """Codes of each level, one number per level; chosen by the number of items if left out. Their product must be at
    least the number of items if collisions are kept apart."""
    seed: Seed = 0
    """Seed of the starting centroids."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("assignment", get_args(Assignment)), ("collisions", get_args(Collisions))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}.")
        check_num_codes(self.num_codes)


class ResidualKMeans(CodeTokenizer):
    """Tokenizer by residual k-means; ``learned`` holds the codebooks as ``codebook_0``, ``codebook_1``..."""

    Config = ResidualKMeansConfig

    def __init__(self, config: ResidualKMeansConfig | None = None) -> None:
        super().__init__(config or ResidualKMeansConfig())

    def fit(self, content_IE: Tensor | ArrayLike) -> Self:
        """Learn the codes of a catalogue.

        Args:
            content_IE: [I, E] content embeddings; distances are Euclidean, so scale columns by their importance.

        Raises:
            ValueError: the content is not a finite matrix, or a level has more codes than there are items. Or there are
                fewer tuples than items, and collisions are to be kept apart.
        """
        residual_IE = checked_content(content_IE).copy()  # each level takes its centroids off in place
        config = self.config = with_num_codes(self.config, len(residual_IE))
        check_no_code_empty(config.num_codes, len(residual_IE))
        if config.collisions == "apart":
            check_enough_tuples(config.num_codes, len(residual_IE))
        rng = np.random.default_rng(config.seed)
        prefix_I = np.zeros(len(residual_IE), dtype=np.int64)
        codes, codebooks = [], {}
        for level, num_codes in enumerate(config.num_codes):
            centroids_CE = fit_centroids(residual_IE, num_codes, config.assignment, config.max_iterations, rng)
            code_I = self._codes_of_level(level, residual_IE, centroids_CE, prefix_I)
            centroids_CE = _cluster_means(residual_IE, code_I, centroids_CE)
            for block in _blocks(len(residual_IE)):
                residual_IE[block] -= centroids_CE[code_I[block]]
            prefix_I = np.unique(prefix_I * num_codes + code_I, return_inverse=True)[1]
            codes.append(code_I)
            codebooks[f"codebook_{level}"] = torch.from_numpy(centroids_CE.astype(np.float32))
        codes_IL, all_num_codes = torch.from_numpy(np.stack(codes, axis=1)), config.num_codes
        if config.collisions != "apart":
            needed = config.collisions == "sinkhorn"
            codes_IL, all_num_codes = append_counter(codes_IL, all_num_codes, only_if_needed=needed)
        return self.freeze(codes_IL, all_num_codes, num_content_levels=len(config.num_codes), **codebooks)

    def extend(self, content_IE: Tensor | ArrayLike) -> Self:
        """Gives codes to items that arrived after fitting, numbered after the known ones; known items keep theirs.

        New items take the nearest free codes (:func:`feedgym.tokenizers.extension.codes_of_new`), so clusters no longer
        have equal sizes. The vocabulary stays as it is, and models trained on the known items accept the result.

        Args:
            content_IE: [new items, E] their content.

        Returns:
            A new tokenizer of all items; this one stays as it is.

        Raises:
            ValueError: the content is not a finite matrix of the same width, or no free tuple is left.
        """
        content, books = checked_content(content_IE), [book.double().numpy() for book in self.codebooks]
        if content.shape[1] != books[0].shape[1]:
            raise ValueError(
                f"content_IE has width {content.shape[1]}, but the tokenizer was fitted on {books[0].shape[1]}; give "
                "new items the same kind of embedding."
            )
        new_IL = codes_of_new(content, books, self.codes_IL.numpy(), self.num_codes)
        return self.extended(type(self)(self.config), torch.from_numpy(new_IL))

    def _codes_of_level(self, level: int, residual_IE: Matrix, centroids_CE: Matrix, prefix_I: Ints) -> Ints:
        sizes_C, assignment = cluster_sizes(len(residual_IE), len(centroids_CE)), self.config.assignment
        later = self.config.num_codes[level + 1 :]
        if self.config.collisions == "apart":
            limit = min(prod(later), len(residual_IE))
            return assign_apart(residual_IE, centroids_CE, sizes_C, prefix_I, limit, assignment)
        code_I = assign(residual_IE, centroids_CE, sizes_C, assignment)
        if self.config.collisions == "sinkhorn" and not later:
            return sinkhorn_apart(residual_IE, centroids_CE, code_I, prefix_I)
        return code_I

    def reconstruct(self, codes: Tensor) -> Tensor:
        """float32 content [..., E] that codes [..., L] describe: the sum of their centroids."""
        books = (book.to(codes.device) for book in self.codebooks)
        return torch.stack([book[codes[..., level]] for level, book in enumerate(books)]).sum(dim=0)


def fit_centroids(
    points_ND: Matrix, num_codes: int, assignment: Assignment, max_iterations: int, rng: np.random.Generator
) -> Matrix:
    """Lloyd's iteration: float64 [C, D] centroids.

    Under ``nearest`` a cluster that becomes empty restarts at the point farthest from its centroid. An auction among
    too many points and clusters sees a new sample of the points in each pass.
    """
    if assignment == "auction" and is_large(len(points_ND), num_codes):
        return _centroids_of_samples(points_ND, num_codes, min(max_iterations, SAMPLES), rng)
    sizes_C = cluster_sizes(len(points_ND), num_codes)
    centroids_CD = points_ND[rng.permutation(len(points_ND))[:num_codes]]
    before_N = np.full(len(points_ND), -1)
    for _ in range(max_iterations):
        if assignment == "nearest":
            code_N = _fill_empty(*nearest(points_ND, centroids_CD), num_codes)
        else:
            code_N = assign(points_ND, centroids_CD, sizes_C, assignment)
        if (code_N == before_N).all():
            break
        centroids_CD, before_N = _cluster_means(points_ND, code_N, centroids_CD), code_N
    return centroids_CD


def _centroids_of_samples(points_ND: Matrix, num_codes: int, num_passes: int, rng: np.random.Generator) -> Matrix:
    """Lloyd's iteration over samples: float64 [C, D] centroids, equally used by each sample."""
    num_sampled = min(len(points_ND), max(LEAST_SAMPLE, SAMPLE_PER_CODE * num_codes))
    centroids_CD = points_ND[rng.choice(len(points_ND), num_codes, replace=False)]
    for _ in range(num_passes):
        sample_ND = points_ND[np.sort(rng.choice(len(points_ND), num_sampled, replace=False))]
        code_N = assign(sample_ND, centroids_CD, cluster_sizes(num_sampled, num_codes), "auction")
        centroids_CD = _cluster_means(sample_ND, code_N, centroids_CD)
    return centroids_CD


def _blocks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, num_rows, _BLOCK))


def _fill_empty(code_N: Ints, distance_N: Matrix, num_codes: int) -> Ints:
    """Codes after each empty cluster got one of the points farthest from their centroids."""
    empty = np.flatnonzero(np.bincount(code_N, minlength=num_codes) == 0)
    farthest = np.argsort(-distance_N, kind="stable")[: len(empty)]
    far = distance_N[farthest] > 0  # a point on its centroid gains nothing by moving
    code_N[farthest[far]] = empty[far]
    return code_N


def _cluster_means(points_ND: Matrix, code_N: Ints, centroids_CD: Matrix) -> Matrix:
    """Means of the clusters' points; a cluster without any keeps its centroid."""
    num_codes = len(centroids_CD)
    members_CN = csr_array((np.ones(len(code_N)), (code_N, np.arange(len(code_N)))), shape=(num_codes, len(code_N)))
    count_C1 = np.bincount(code_N, minlength=num_codes)[:, None]
    return np.where(count_C1 > 0, (members_CN @ points_ND) / np.maximum(count_C1, 1), centroids_CD)
