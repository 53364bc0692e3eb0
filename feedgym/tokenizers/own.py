"""Any tokenizer, fitted: those of others become a table of frozen codes, which is all that agents ask for."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from feedgym.protocols import ItemTokenizer
from feedgym.tokenizers.codes import CodeTokenizer


@dataclass(frozen=True, kw_only=True)
class FixedCodesConfig:
    """Nothing to choose."""


class FixedCodes(CodeTokenizer):
    """Codes that another tokenizer gave."""

    Config = FixedCodesConfig

    @classmethod
    def of(cls, tokenizer: ItemTokenizer, num_items: int) -> Self:
        """The codes of a fitted tokenizer.

        Raises:
            ValueError: they are no table of whole numbers from 0, or two items have the same.
        """
        codes_IL = torch.as_tensor(tokenizer.encode(torch.arange(num_items)))
        if codes_IL.ndim != 2 or len(codes_IL) != num_items or codes_IL.is_floating_point() or int(codes_IL.min()) < 0:
            raise ValueError(
                f"{type(tokenizer).__name__}.encode() gave {codes_IL.dtype} of shape {tuple(codes_IL.shape)} for "
                f"{num_items} items; give whole numbers from 0, one row of L codes an item."
            )
        num_codes = tuple(int(size) + 1 for size in codes_IL.amax(0))
        return cls(FixedCodesConfig()).freeze(codes_IL.long(), num_codes)


def fit_codes(tokenizer: Any, content_IE: Tensor | ArrayLike, work: Path) -> CodeTokenizer:
    """Fit any tokenizer on the contents [I, E]; one whose ``fit`` takes ``work`` goes on from its checkpoints there."""
    keeps = {"work": work} if "work" in inspect.signature(tokenizer.fit).parameters else {}
    content_IE = torch.as_tensor(content_IE)
    fitted = tokenizer.fit(content_IE, **keeps)
    return fitted if isinstance(fitted, CodeTokenizer) else FixedCodes.of(fitted, len(content_IE))


def codes_type(kind: Any) -> type[CodeTokenizer]:
    """The class that reads a fitted tokenizer of a class back."""
    return kind if inspect.isclass(kind) and issubclass(kind, CodeTokenizer) else FixedCodes
