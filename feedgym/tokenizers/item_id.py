"""Tokenizers that ignore an item's content: one token per item, and random tuples (TIGER's "random ID").

They show how much of a model's accuracy comes from the meaning of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from feedgym.ranges import Ranged, Seed, Width
from feedgym.tokenizers.codes import (
    CodeTokenizer,
    check_enough_tuples,
    check_num_codes,
    checked_content,
    with_num_codes,
)


@dataclass(frozen=True, kw_only=True)
class ItemIdConfig:
    """No options: item i has code i."""


class ItemId(CodeTokenizer):
    """One level with a code for each item: the item's id."""

    Config = ItemIdConfig

    def __init__(self, config: ItemIdConfig | None = None) -> None:
        super().__init__(config or ItemIdConfig())

    def fit(self, content_IE: Tensor | ArrayLike) -> Self:
        """Number I items; only the number of rows counts.

        Raises:
            ValueError: the content is not a finite matrix.
        """
        num_items = len(checked_content(content_IE))
        return self.freeze(torch.arange(num_items)[:, None], (num_items,))


@dataclass(frozen=True, kw_only=True)
class RandomCodesConfig(Ranged):
    """Options of random codes."""

    num_codes: tuple[Width, ...] | None = None
    """Codes of each level, one number per level; chosen by the number of items if left out. Their product must be at
    least the number of items."""
    seed: Seed = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_num_codes(self.num_codes)
        if prod(self.num_codes or ()) >= 2**63:
            raise ValueError(f"num_codes={self.num_codes} makes 2^63 tuples or more; lower it or drop a level.")


class RandomCodes(CodeTokenizer):
    """A tuple for each item, drawn at random without replacement (TIGER, arXiv:2305.05065, §4.3: "random ID")."""

    Config = RandomCodesConfig

    def __init__(self, config: RandomCodesConfig | None = None) -> None:
        super().__init__(config or RandomCodesConfig())

    def fit(self, content_IE: Tensor | ArrayLike) -> Self:
        """Draw the tuples of I items; only the number of rows counts.

        Raises:
            ValueError: the content is not a finite matrix, or there are fewer tuples than items.
        """
        num_items = len(checked_content(content_IE))
        self.config = with_num_codes(self.config, num_items)
        num_codes = self.config.num_codes
        check_enough_tuples(num_codes, num_items)
        number_I = np.random.default_rng(self.config.seed).choice(prod(num_codes), size=num_items, replace=False)
        codes_IL = np.stack(np.unravel_index(number_I, num_codes), axis=1)
        return self.freeze(torch.from_numpy(codes_IL), num_codes)
