"""Codes from a file: ``NAME.index.json`` of LC-Rec, LETTER, MiniOneRec and copies of TIGER's data.

The file maps each item to its codes, one per level: ``{"12": ["<a_3>", "<b_0>", "<c_255>"], ...}``. Whole numbers
``[3, 0, 255]`` are read too. A level has as many codes as its largest number says. All items of the file count, so the
vocabulary does not depend on the log. Levels may differ in size.

Deviations from the publications:
    * Some files give two items the same codes (RQ-VAE without repair). LC-Rec and MiniOneRec count a hit on either as a
      hit on both. Here every item has its own tuple: a further level counts items that collide, as in TIGER.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from feedgym.ranges import Ranged
from feedgym.tokenizers.codes import CodeTokenizer, append_counter, checked_content

Collisions = Literal["counter", "refuse"]

MOST_CODES = 65_536
"""Most codes of a level: a larger number is not a code, but for example an item's id."""
TOKEN = re.compile(r"<?([A-Za-z]+)_(\d{1,9})>?")


@dataclass(frozen=True, kw_only=True)
class IndexConfig(Ranged):
    """Options of codes from a file."""

    path: str | None = None
    """The file with the items' codes, NAME.index.json; must be given."""
    collisions: Collisions = "counter"
    """Treatment of items with the same codes: counter (one more level counts them, if there are any) or refuse."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.collisions not in get_args(Collisions):
            raise ValueError(f"collisions={self.collisions!r} is unknown; choose one of {get_args(Collisions)}.")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the codes depend on.

        Raises:
            ValueError: no file is named, or there is none.
        """
        if self.path is None:
            raise ValueError("tokenizer 'index' needs a file of codes, and path is None; give NAME.index.json.")
        path = Path(self.path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file of codes; check the path of NAME.index.json.")
        return (path,)


class Index(CodeTokenizer):
    """Tokenizer with published codes, from a file ``NAME.index.json``."""

    Config = IndexConfig

    def __init__(self, config: IndexConfig | None = None) -> None:
        super().__init__(config or IndexConfig())

    def fit(self, content_IE: Tensor | ArrayLike, raw_ids_I: Sequence[Any] | NDArray | None = None) -> Self:
        """Look up the codes of I items.

        Args:
            content_IE: [I, E] content; only the number of rows counts.
            raw_ids_I: ids of the items in the file; 0, 1, 2, ... if left out.

        Raises:
            ValueError: the file is missing or broken, lacks items, or has colliding items that are to be refused.
        """
        (path,) = self.config.files
        num_items = len(checked_content(content_IE))
        rows_XL, row_of = _codes(path)
        names = [str(item) for item in (range(num_items) if raw_ids_I is None else raw_ids_I)]
        row_I = np.array([row_of.get(name, -1) for name in names])
        if (row_I < 0).any():
            raise ValueError(
                f"{path}: has no codes for {int((row_I < 0).sum())} of {num_items} items, the first of them "
                f"{names[int(np.argmax(row_I < 0))]!r}; take it and the log from one source, or leave these items out."
            )
        sizes = tuple(int(size) + 1 for size in rows_XL.max(axis=0))
        counted, num_codes = append_counter(torch.from_numpy(rows_XL[row_I]), sizes, only_if_needed=True)
        if len(num_codes) > len(sizes) and self.config.collisions == "refuse":
            raise ValueError(_collisions(path, rows_XL[row_I], names))
        return self.freeze(counted, num_codes, num_content_levels=len(sizes))


def _codes(path: Path) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The codes of the file's X items, int64 [X, L], and each item's row."""
    from feedgym.data.public.files import RawFile
    from feedgym.data.public.lcrec import json_object  # pandas, which other tokenizers do not need

    items = json_object(RawFile(path))
    levels: tuple[str, ...] | None = None
    rows = []
    for item, tokens in items.items():
        letters, codes = _parsed(path, item, tokens)
        levels = letters if levels is None else levels
        if letters != levels:
            raise ValueError(
                f"{path}: item {item!r} has the levels {_named(letters)}, and the first item {_named(levels)}; give "
                "all items one code per level, in the same order."
            )
        rows.append(codes)
    return np.array(rows, dtype=np.int64), {item: row for row, item in enumerate(items)}


def _parsed(path: Path, item: str, tokens: Any) -> tuple[tuple[str, ...], list[int]]:
    """The letters of an item's levels ("" if its codes are numbers), and its codes."""
    found = []
    for token in tokens if isinstance(tokens, list) else ():
        match = TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is not None:
            found.append((match[1], int(match[2])))
        elif type(token) is int:
            found.append(("", token))
    if not found or len(found) != len(tokens):
        raise ValueError(
            f'{path}: the codes of item {item!r} are {tokens!r}; write ["<a_3>", "<b_0>", ...] or numbers.'
        )
    codes = [code for _, code in found]
    if min(codes) < 0 or max(codes) >= MOST_CODES:
        raise ValueError(f"{path}: item {item!r} has the codes {codes}; number a level's codes 0 to {MOST_CODES - 1}.")
    return tuple(letter for letter, _ in found), codes


def _named(letters: tuple[str, ...]) -> str:
    return ", ".join(letter or "a number" for letter in letters)


def _collisions(path: Path, codes_IL: NDArray[np.int64], names: list[str]) -> str:
    """A message with the number of items whose codes another one has, and the first pair of them."""
    _, first_X, group_I, size_X = np.unique(
        codes_IL, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    group_I = group_I.reshape(-1)
    second = int(np.argmax(first_X[group_I] != np.arange(len(group_I))))
    return (
        f"{path}: {int((size_X[group_I] > 1).sum())} of {len(names)} items share their codes with another, first "
        f"{names[first_X[group_I[second]]]!r} and {names[second]!r}; set collisions=counter to tell them apart by one "
        "more level, or give other codes."
    )
