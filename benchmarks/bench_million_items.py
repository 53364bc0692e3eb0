"""Residual k-means of many items: time, peak memory, sizes of the codes, error, and new items afterwards.

``python benchmarks/bench_million_items.py [ITEMS] [CODES]``, by default 1,000,000 items of 64 dimensions (200 topics of
very different sizes, 20 kinds of items in each) and the codes that feedgym chooses. ``CODES`` is a list such as
128,128,256.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from memory import peak_gb
from numpy.typing import NDArray

from feedgym.tokenizers import ResidualKMeans, ResidualKMeansConfig

WIDTH, TOPICS, KINDS, NEW = 64, 200, 20, 1000


def contents(num_items: int, seed: int = 0) -> NDArray[np.float64]:
    """Items around kinds around topics; a topic's size falls with its rank."""
    rng = np.random.default_rng(seed)
    centres, rank = rng.normal(size=(TOPICS, WIDTH)), np.arange(1, TOPICS + 1)
    topic = rng.choice(TOPICS, num_items, p=(1 / rank) / (1 / rank).sum())
    kinds = 0.5 * rng.normal(size=(TOPICS * KINDS, WIDTH))
    kind = topic * KINDS + rng.integers(0, KINDS, num_items)
    return centres[topic] + kinds[kind] + 0.35 * rng.normal(size=(num_items, WIDTH))


def main() -> None:
    """Fit, describe, extend."""
    num_items = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    codes = tuple(map(int, sys.argv[2].split(","))) if len(sys.argv) > 2 else None
    every = contents(num_items + NEW)
    content, before, begin = every[:num_items], peak_gb(), time.process_time()
    fitted = ResidualKMeans(ResidualKMeansConfig(num_codes=codes)).fit(content)
    seconds = time.process_time() - begin
    print(f"{num_items:,} items, codes {fitted.num_codes}: {seconds:.0f} CPU s, peak {peak_gb():.2f} GB ", end="")
    print(f"({before:.2f} GB of them the libraries and the contents)")
    for level, (code_I, size) in enumerate(zip(fitted.codes_IL.T, fitted.num_codes, strict=True)):
        count = code_I.bincount(minlength=size)
        print(f"level {level}: {int(count.min())} to {int(count.max())} items a code")
    error = 0.0
    for low in range(0, num_items, 2**16):
        block = slice(low, low + 2**16)
        error += ((fitted.reconstruct(fitted.codes_IL[block]).numpy() - content[block]) ** 2).sum()
    error /= ((content - content.mean(0)) ** 2).sum()
    begin = time.process_time()
    longer = fitted.extend(every[num_items:])
    assert torch.equal(longer.codes_IL[:num_items], fitted.codes_IL)
    print(f"unexplained variance {error:.3f}; {NEW:,} new items took {time.process_time() - begin:.1f} CPU s")


if __name__ == "__main__":
    main()
