"""Measures the quality of a set of codes, to print before a model is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from feedgym.tokenizers.codes import CodeTokenizer


def quality_report(
    tokenizer: CodeTokenizer, content_IE: Tensor | ArrayLike, topic_I: ArrayLike | None = None
) -> dict[str, Any]:
    """Describe a fitted tokenizer's codes over its catalogue.

    A prefix is the first l codes of an item. Lists over prefixes have one entry for each l, and the last one is the
    whole tuple. Collisions are counted before the level that only separates colliding items (TIGER), if there is one.

    Args:
        tokenizer: fitted on the catalogue. ``num_codes``, ``num_content_levels`` and ``reconstruct(codes)`` are used if
            it has them.
        content_IE: [I, E] the content it was fitted on.
        topic_I: [I] topic tags, -1 where unknown.

    Returns:
        A dict for JSON:

        * ``num_items``, ``num_codes`` (a list, one number per level), ``num_content_levels`` (without the one that
          counts), ``items_per_tuple``: items over possible tuples. Near 1 the last levels have no freedom left to carry
          meaning.
        * ``utilisation``: share of a level's codes in use. ``entropy_bits``: of a level's codes over items.
          ``perplexity``: 2 to that power, the number of equally used codes with the same entropy.
        * ``cluster_size_min``, ``cluster_size_max``: items of a level's rarest (unused codes count as 0) and most
          frequent code.
        * ``unique_prefix_ratio``: different prefixes over items, for l = 1..L; ``unique_tuple_ratio``: its last entry.
        * ``max_prefix_group``: most items sharing a prefix, for l = 1..L.
        * ``collision_rate``: share of items that share their content codes with another item; ``unique_ratio``:
          different content tuples over items; ``max_collision_group``: most items sharing one.
        * ``reconstruction_error``: mean squared error of the content over its variance. 0 is perfect and 1 is no better
          than the mean; None if the tokenizer cannot reconstruct.
        * ``topic_purity``: share of tagged items whose topic is the most frequent one of their prefix, for l = 0..L. It
          rises with the number of prefixes, so compare it at equal numbers. None if no topics are given.
    * ``same_topic_rate``: probability that two items with the same prefix have the same topic, for l = 0..L. l = 0
      means any two items. None if no two items share a prefix, or no topics are given.
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
    num_content_levels = int(getattr(tokenizer, "num_content_levels", len(num_codes)))
    collided = np.bincount(prefixes[num_content_levels - 1])
    entropies = [_entropy_bits(count) for count in counts]
    prefixes_from_0 = [np.zeros_like(prefixes[0]), *prefixes]
    return {
        "num_items": len(content),
        "num_codes": num_codes,
        "num_content_levels": num_content_levels,
        "items_per_tuple": len(content) / float(np.prod(np.array(num_codes, dtype=np.float64))),
        "utilisation": [float((count > 0).mean()) for count in counts],
        "entropy_bits": entropies,
        "perplexity": [2.0**bits for bits in entropies],
        "cluster_size_min": [int(count.min()) for count in counts],
        "cluster_size_max": [int(count.max()) for count in counts],
        "unique_prefix_ratio": unique,
        "unique_tuple_ratio": unique[-1],
        "max_prefix_group": largest,
        "collision_rate": float(collided[collided > 1].sum() / len(content)),
        "unique_ratio": len(collided) / len(content),
        "max_collision_group": int(collided.max()),
        "reconstruction_error": _reconstruction_error(tokenizer, codes, content),
        "same_topic_rate": [_same_topic_rate(p, topics) for p in prefixes_from_0],
        "topic_purity": [_topic_purity(p, topics) for p in prefixes_from_0],
    }


def compare_tokenizers(
    tokenizers: Mapping[str, CodeTokenizer], content_IE: Tensor | ArrayLike, topic_I: ArrayLike | None = None
) -> pd.DataFrame:
    """Compares the figures of several fitted tokenizers, one row each.

    Args:
        tokenizers: by row name, all fitted on the same catalogue.
        content_IE: [I, E] its content.
        topic_I: [I] topic tags, -1 where unknown.

    Returns:
        Columns of :func:`quality_report`, with lists over levels joined by "/". Utilisation and perplexity are those of
        the content levels, perplexity as a share of the level's codes. Topic figures are those of the first code.
    """
    rows = {}
    for name, tokenizer in tokenizers.items():
        report = quality_report(tokenizer, content_IE, topic_I)
        levels = slice(report["num_content_levels"])
        evenness = [p / n for p, n in zip(report["perplexity"], report["num_codes"], strict=True)]
        rows[name] = {
            "num_codes": "/".join(map(str, report["num_codes"])),
            "utilisation": "/".join(f"{share:.3f}" for share in report["utilisation"][levels]),
            "perplexity_share": "/".join(f"{share:.3f}" for share in evenness[levels]),
            **{key: report[key] for key in ("collision_rate", "unique_ratio", "max_collision_group")},
            "reconstruction_error": report["reconstruction_error"],
            "same_topic_rate": report["same_topic_rate"][1],
            "topic_purity": report["topic_purity"][1],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _group(codes_IL: NDArray[np.int64]) -> NDArray[np.int64]:
    """[I] the number of each item's row among the different rows."""
    return np.unique(codes_IL, axis=0, return_inverse=True)[1].reshape(-1)


def _entropy_bits(count_C: NDArray[np.int64]) -> float:
    prob = count_C[count_C > 0] / count_C.sum()
    return float(-(prob * np.log2(prob)).sum()) + 0.0


def _reconstruction_error(tokenizer: CodeTokenizer, codes_IL: Tensor, content_IE: Tensor) -> float | None:
    reconstruct = getattr(tokenizer, "reconstruct", None)
    if reconstruct is None:
        return None
    variance = (content_IE - content_IE.mean(dim=0)).square().mean()
    error = (reconstruct(codes_IL) - content_IE).square().mean()
    return float(error / variance) if variance > 0 else None


def _same_topic_rate(prefix_I: NDArray[np.int64], topic_I: NDArray[np.integer]) -> float | None:
    """Pairs of tagged items that share prefix and topic, over pairs that share the prefix."""
    tagged = topic_I >= 0
    pairs = _num_pairs(prefix_I[tagged])
    if pairs == 0:
        return None
    return _num_pairs(_group(np.stack([prefix_I, topic_I], axis=1)[tagged])) / pairs


def _topic_purity(prefix_I: NDArray[np.int64], topic_I: NDArray[np.integer]) -> float | None:
    """Items with the most frequent topic of their prefix, over all tagged items."""
    tagged = topic_I >= 0
    if not tagged.any():
        return None
    both, count = np.unique(np.stack([prefix_I, topic_I], axis=1)[tagged], axis=0, return_counts=True)
    most = np.zeros(int(prefix_I.max()) + 1, dtype=np.int64)
    np.maximum.at(most, both[:, 0], count)
    return float(most.sum() / tagged.sum())


def _num_pairs(group_I: NDArray[np.int64]) -> int:
    size = np.bincount(group_I)
    return int((size * (size - 1) // 2).sum())
