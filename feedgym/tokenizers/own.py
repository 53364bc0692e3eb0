"""Fits any tokenizer; those of third parties become a table of frozen codes, which is all that agents need."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from feedgym.data.events import Catalog
from feedgym.protocols import ItemTokenizer
from feedgym.tokenizers.codes import CodeTokenizer


@dataclass(frozen=True, kw_only=True)
class FixedCodesConfig:
    """No options."""


class FixedCodes(CodeTokenizer):
    """Codes from another tokenizer."""

    Config = FixedCodesConfig

    @classmethod
    def of(cls, tokenizer: ItemTokenizer, num_items: int) -> Self:
        """Take the codes of a fitted tokenizer.

        Raises:
            ValueError: they are not a table of whole numbers from 0, or two items have the same codes.
        """
        codes_IL = torch.as_tensor(tokenizer.encode(torch.arange(num_items)))
        if codes_IL.ndim != 2 or len(codes_IL) != num_items or codes_IL.is_floating_point() or int(codes_IL.min()) < 0:
            raise ValueError(
                f"{type(tokenizer).__name__}.encode() gave {codes_IL.dtype} of shape {tuple(codes_IL.shape)} for "
                f"{num_items} items; give whole numbers from 0, one row of L codes per item."
            )
        num_codes = tuple(int(size) + 1 for size in codes_IL.amax(0))
        return cls(FixedCodesConfig()).freeze(codes_IL.long(), num_codes)


def fit_codes(tokenizer: Any, catalog: Catalog, work: Path) -> CodeTokenizer:
    """Fit any tokenizer on a catalogue's content.

    If its ``fit`` takes ``work``, it resumes from checkpoints there; if it takes ``raw_ids_I``, it gets the items' ids.
    """
    offered = {"work": work, "raw_ids_I": catalog.raw_ids_I}
    asked = {name: offered[name] for name in offered.keys() & inspect.signature(tokenizer.fit).parameters}
    content_IE = torch.as_tensor(catalog.content_IE)
    fitted = tokenizer.fit(content_IE, **asked)
    return fitted if isinstance(fitted, CodeTokenizer) else FixedCodes.of(fitted, len(content_IE))


def codes_type(kind: Any) -> type[CodeTokenizer]:
    """The class that reads back a fitted tokenizer of some class."""
    return kind if inspect.isclass(kind) and issubclass(kind, CodeTokenizer) else FixedCodes
