"""Tokens that a generative model reads and writes: padding, BOS and one block of codes per level.

Token ids never leave :mod:`feedgym.tokenizers` and :mod:`feedgym.agents`; everything else uses item ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Joint vocabulary of L levels: ``[PAD, BOS, level 0, level 1, ...]``.

    Attributes:
        num_codes: codes of each of the L levels.
    """

    num_codes: tuple[int, ...]
    pad_id: ClassVar[int] = 0
    bos_id: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.num_codes or min(self.num_codes) < 1:
            raise ValueError(f"num_codes={self.num_codes}; give at least one level, each with at least one code.")

    @property
    def size(self) -> int:
        """V, the number of tokens."""
        return self.bos_id + 1 + sum(self.num_codes)

    @property
    def num_levels(self) -> int:
        """L, the number of codes of an item."""
        return len(self.num_codes)

    def level_offset(self, level: int) -> int:
        """The token of code 0 of a level; its block ends before ``level_offset + num_codes[level]``."""
        return self.bos_id + 1 + sum(self.num_codes[:level])

    def token_ids(self, codes: Tensor) -> Tensor:
        """int64 tokens [..., L] of codes [..., L]; PAD where the code is -1 (no item)."""
        return torch.where(codes < 0, self.pad_id, codes + self._per_level(self._offsets, codes))

    def codes(self, tokens: Tensor) -> Tensor:
        """int64 codes [..., L] of tokens [..., L]; -1 where a token is not a code of its level."""
        codes = tokens - self._per_level(self._offsets, tokens)
        legal = (codes >= 0) & (codes < self._per_level(self.num_codes, tokens))
        return torch.where(legal, codes, -1)

    def session_tokens(self, codes: Tensor) -> Tensor:
        """Turns sessions into decoder tokens, with BOS before every item (OneRec, arXiv:2502.18965, §3.2).

        Args:
            codes: int64 [..., K, L] codes; -1 for places after the session's last item.

        Returns:
            int64 [..., K*(L+1)] ``{BOS, s1^1..s1^L, BOS, s2^1, ..}``; PAD for places without an item.
        """
        bos = torch.where(codes[..., :1] < 0, self.pad_id, self.bos_id)
        return torch.cat([bos, self.token_ids(codes)], dim=-1).flatten(-2)

    def completion_mask(self, tokens: Tensor) -> Tensor:
        """Bool, the shape of ``tokens``: true on codes, which a model is trained to generate; BOS is forced."""
        return tokens > self.bos_id

    @property
    def _offsets(self) -> tuple[int, ...]:
        return tuple(accumulate(self.num_codes[:-1], initial=self.bos_id + 1))

    def _per_level(self, values: tuple[int, ...], like: Tensor) -> Tensor:
        if like.shape[-1] != self.num_levels:
            raise ValueError(
                f"Expected {self.num_levels} codes in the last axis, one per level, but the shape is "
                f"{tuple(like.shape)}; encode with the tokenizer this vocabulary was made for."
            )
        return torch.tensor(values, device=like.device)
