"""Locality-sensitive hashing, which TIGER compares its RQ-VAE with (arXiv:2305.05065, §4.3).

A level of C = 2^b codes has b random hyperplanes. An item's code consists of b bits that say on which side of each it
lies. Each level has its own hyperplanes, so none refines another: all L levels together are one hash of L x b bits.

Deviations from the paper:
    * Hyperplanes go through the mean of the content, not through the origin. Embeddings of text often lie all on one
      side of the origin, and most hyperplanes would then separate nothing.
    * The paper does not mention items with the same codes; one more level counts them, as with its RQ-VAE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from feedgym.ranges import Ranged, Seed, Width
from feedgym.tokenizers.codes import CodeTokenizer, append_counter, check_num_codes, checked_content, with_num_codes


@dataclass(frozen=True, kw_only=True)
class LSHConfig(Ranged):
    """Options of the hyperplanes."""

    num_codes: tuple[Width, ...] | None = None
    """Codes of each level, powers of two; chosen by the number of items if left out. A level that
    counts colliding items comes after them."""
    seed: Seed = 0
    """Seed of the hyperplanes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_codes(self.num_codes)
        if any(size & (size - 1) for size in self.num_codes or ()):
            raise ValueError(f"num_codes={self.num_codes}; hyperplanes halve space, so give powers of two.")

    @property
    def num_bits(self) -> tuple[int, ...]:
        """Hyperplanes of each level."""
        return tuple(size.bit_length() - 1 for size in self.num_codes or ())


class LSH(CodeTokenizer):
    """Tokenizer by random hyperplanes; ``learned`` holds them as ``hyperplanes_BE``, with the content's ``mean_E``."""

    Config = LSHConfig

    def __init__(self, config: LSHConfig | None = None) -> None:
        super().__init__(config or LSHConfig())

    def fit(self, content_IE: Tensor | ArrayLike) -> Self:
        """Draw the hyperplanes and hash a catalogue.

        Raises:
            ValueError: the content is not a finite matrix.
        """
        content = checked_content(content_IE)
        config = self.config = with_num_codes(self.config, len(content))
        mean_E = content.mean(axis=0)
        hyperplanes_BE = np.random.default_rng(config.seed).normal(size=(sum(config.num_bits), content.shape[1]))
        bit_IB = (content - mean_E) @ hyperplanes_BE.T > 0
        of_level = np.split(bit_IB, np.cumsum(config.num_bits)[:-1], axis=1)
        codes_IL = np.stack([bits @ (1 << np.arange(bits.shape[1])) for bits in of_level], axis=1)
        codes, num_codes = append_counter(torch.from_numpy(codes_IL), config.num_codes)
        learned = {"hyperplanes_BE": torch.from_numpy(hyperplanes_BE), "mean_E": torch.from_numpy(mean_E)}
        return self.freeze(codes, num_codes, num_content_levels=len(config.num_codes), **learned)
