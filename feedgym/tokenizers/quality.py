"""How good a set of codes is, in numbers to print before a model is trained on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from feedgym.protocols import ItemTokenizer


def quality_report(
    tokenizer: ItemTokenizer, content_IE: Tensor | ArrayLike, topic_I: ArrayLike | None = None
) -> dict[str, Any]:
    """Describe a fitted tokenizer's codes over its catalogue.

    A prefix is the first l codes of an item; lists over prefixes have one entry for each l, and the last one is the
    whole tuple. For a tokenizer whose last level only counts inside a collision group (TIGER), the entry before the
    last therefore tells how many items collided.

    Args:
        tokenizer: fitted on the catalogue. ``num_codes`` and ``reconstruct(codes)`` are used where it has them.
        content_IE: [I, E] the content it was fitted on.
        topic_I: [I] topic tags, -1 where unknown.

    Returns:
        A dict that json can write:

        * ``num_items``, ``num_codes`` (a list, one number a level), ``items_per_tuple``: items over possible tuples;
          near 1 the last levels have no freedom left to mean anything.
        * ``utilisation``: share of a level's codes in use; ``entropy_bits``: of a level's codes over items.
        * ``cluster_size_min``, ``cluster_size_max``: items of a level's rarest (unused codes count as 0) and most
          frequent code.
        * ``unique_prefix_ratio``: different prefixes over items, for l = 1..L; ``unique_tuple_ratio``: its last entry.
        * ``max_prefix_group``: most items sharing a prefix, for l = 1..L; ``max_collision_group``: its last entry.
        * ``reconstruction_error``: mean squared error of the content over its variance, 0 is perfect and 1 is what
          the mean alone achieves; None if the tokenizer cannot reconstruct.
        * ``same_topic_rate``: chance that two items which share a prefix have the same topic, for l = 0..L, l = 0
          being any two items; None where no two items share one, or no topics are given.
    """
    content = torch.as_tensor(content_IE, dtype=torch.float64)
    codes = tokenizer.encode(torch.arange(len(content)))
    codes_IL = codes.numpy()
    num_codes = [int(n) for n in getattr(tokenizer, "num_codes", codes_IL.max(axis=0) + 1)]
    counts = [np.bincount(code_I, minlength=n) for code_I, n in zip(codes_IL.T, num_codes, strict=True)]
    prefixes = [_group(codes_IL[:, : length + 1]) for length in range(len(num_codes))]
    unique = [(int(p.max()) + 1) / len(p) for p in prefixes]
    largest = [int(np.bincount(p).max()) for p in prefixes]
    topics = np.full(len(content), -1) if topic_I is None else np.asarray(topic_I)
    return {
        "num_items": len(content),
        "num_codes": num_codes,
        "items_per_tuple": len(content) / float(np.prod(np.array(num_codes, dtype=np.float64))),
        "utilisation": [float((count > 0).mean()) for count in counts],
        "entropy_bits": [_entropy_bits(count) for count in counts],
        "cluster_size_min": [int(count.min()) for count in counts],
        "cluster_size_max": [int(count.max()) for count in counts],
        "unique_prefix_ratio": unique,
        "unique_tuple_ratio": unique[-1],
        "max_prefix_group": largest,
        "max_collision_group": largest[-1],
        "reconstruction_error": _reconstruction_error(tokenizer, codes, content),
        "same_topic_rate": [_same_topic_rate(p, topics) for p in [np.zeros_like(prefixes[0]), *prefixes]],
    }


def _group(codes_IL: NDArray[np.int64]) -> NDArray[np.int64]:
    """[I] the number of the item's row among the different rows."""
    return np.unique(codes_IL, axis=0, return_inverse=True)[1].reshape(-1)


def _entropy_bits(count_C: NDArray[np.int64]) -> float:
    prob = count_C[count_C > 0] / count_C.sum()
    return float(-(prob * np.log2(prob)).sum()) + 0.0


def _reconstruction_error(tokenizer: ItemTokenizer, codes_IL: Tensor, content_IE: Tensor) -> float | None:
    reconstruct = getattr(tokenizer, "reconstruct", None)
    if reconstruct is None:
        return None
    variance = (content_IE - content_IE.mean(dim=0)).square().mean()
    error = (reconstruct(codes_IL) - content_IE).square().mean()
    return float(error / variance) if variance > 0 else None


def _same_topic_rate(prefix_I: NDArray[np.int64], topic_I: NDArray[np.integer]) -> float | None:
    """Pairs of tagged items sharing prefix and topic, over pairs sharing the prefix."""
    tagged = topic_I >= 0
    pairs = _num_pairs(prefix_I[tagged])
    if pairs == 0:
        return None
    return _num_pairs(_group(np.stack([prefix_I, topic_I], axis=1)[tagged])) / pairs


def _num_pairs(group_I: NDArray[np.int64]) -> int:
    size = np.bincount(group_I)
    return int((size * (size - 1) // 2).sum())
