"""Common part of all tokenizers with code tuples: encode, decode, the hash and the file."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedgym.data.parquet import replacing
from feedgym.tokenizers.trie import Trie
from feedgym.tokenizers.vocabulary import Vocabulary

FILE_NAME = "tokenizer.safetensors"
SIZES_BEFORE = "sizes_before"
"""Key in ``learned`` of the numbers of items that a tokenizer had before each extension."""
ConfigT = TypeVar("ConfigT")
_FORMAT = "feedgym.tokenizer/1"


class CodeTokenizer:
    """Base of the tokenizers: a table of frozen codes, one tuple per item.

    A subclass is made from its config, names the config's class in ``Config`` and calls :meth:`freeze` at the end of
    its ``fit``. Results are on the device of the input; a trie is kept for each device in use.
    """

    Config: ClassVar[type]

    def __init__(self, config: Any) -> None:
        self.config = config
        self.learned: dict[str, Tensor] = {}
        self._tries: dict[torch.device, Trie] = {}
        self._num_content_levels: int | None = None

    def freeze(
        self,
        codes_IL: Tensor,
        num_codes: tuple[int, ...],
        *,
        num_content_levels: int | None = None,
        **learned: Tensor,
    ) -> Self:
        """Set the final codes, and whatever else was learned.

        Args:
            codes_IL: integer [I, L] codes, every item's tuple different.
            num_codes: codes of each level.
            num_content_levels: levels before the one of :func:`append_counter`; all of them if left out.
            learned: tensors (codebooks, weights) to store in the file with the codes; they appear in ``learned``.

        Raises:
            ValueError: see :meth:`Trie.from_codes`.
        """
        trie = Trie.from_codes(codes_IL, num_codes)
        self._tries = {torch.device("cpu"): trie}
        self.learned = {name: tensor.detach().cpu().contiguous() for name, tensor in learned.items()}
        self.hash = codes_hash(trie.codes_IL[:-1], trie.num_codes)
        self._num_content_levels = num_content_levels
        return self

    def extended(self, empty: CodeTokenizer, new_IL: Tensor) -> Any:
        """Returns a tokenizer of these items and new ones; it remembers how many there were before.

        Args:
            empty: a new tokenizer of the same class.
            new_IL: int64 codes of the new items.
        """
        before = self.learned.get(SIZES_BEFORE, torch.empty(0, dtype=torch.int64))
        learned = {**self.learned, SIZES_BEFORE: torch.cat([before, torch.tensor([self.num_items])])}
        codes_IL = torch.cat([self.codes_IL, new_IL])
        return empty.freeze(codes_IL, self.num_codes, num_content_levels=self._num_content_levels, **learned)

    @property
    def hashes(self) -> set[str]:
        """The hash of these codes, and those of the tokenizers that they extend: models of those may use these."""
        sizes = self.learned.get(SIZES_BEFORE, torch.empty(0, dtype=torch.int64)).tolist()
        return {self.hash, *(codes_hash(self.codes_IL[:size], self.num_codes) for size in sizes)}

    @property
    def num_codes(self) -> tuple[int, ...]:
        """Codes of each of the L levels."""
        return self.trie().num_codes

    @property
    def num_levels(self) -> int:
        """L, the number of codes of an item."""
        return len(self.num_codes)

    @property
    def num_content_levels(self) -> int:
        """Levels whose codes come from the item's content; a level after them only counts items that share these."""
        return self._num_content_levels or self.num_levels

    @property
    def num_items(self) -> int:
        """I, the number of items."""
        return self.trie().num_items

    @property
    def codes_IL(self) -> Tensor:
        """int64 codes of all items, on the CPU."""
        return self.trie().codes_IL[:-1]

    @property
    def codebooks(self) -> list[Tensor]:
        """The vectors [C, E] of the codes of the first levels; levels that only count have none."""
        names = (f"codebook_{level}" for level in range(self.num_levels))
        return [self.learned[name] for name in names if name in self.learned]

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of a generative model over these codes."""
        return Vocabulary(self.num_codes)

    def trie(self, device: torch.device | str = "cpu") -> Trie:
        """The catalogue's prefix tree on a device."""
        device = torch.device(device)
        if device not in self._tries:
            if not self._tries:
                raise ValueError(f"This {type(self).__name__} has no codes yet; call fit() or load() first.")
            self._tries[device] = self._tries[torch.device("cpu")].to(device)
        return self._tries[device]

    def encode(self, item_ids: Tensor) -> Tensor:
        """int64 codes [..., L] of item ids [...]; -1 for the id -1 (no item).

        Raises:
            ValueError: an id is neither -1 nor one of the I items.
        """
        outside = (item_ids < -1) | (item_ids >= self.num_items)
        if outside.any():
            raise ValueError(
                f"Item id {int(item_ids[outside][0])} is outside this tokenizer's items 0..{self.num_items - 1}; "
                "fit the tokenizer on the catalogue of these ids."
            )
        return self.trie(item_ids.device).codes_IL[item_ids.long()]

    def decode(self, codes: Tensor) -> Tensor:
        """int64 item ids [...] of codes [..., L]; -1 if no item has them."""
        return self.trie(codes.device).decode(codes)

    def save(self, path: Path | str) -> Path:
        """Write the codes and what was learned to a safetensors file, and return the file's path.

        Args:
            path: the file, or a folder for ``tokenizer.safetensors``, made if needed.
        """
        file = _file(path)
        metadata = {
            "format": _FORMAT,
            "class": type(self).__name__,
            "config": json.dumps(asdict(self.config)),
            "num_codes": json.dumps(self.num_codes),
            "num_content_levels": json.dumps(self.num_content_levels),
            "hash": self.hash,
        }
        with replacing(file) as temporary:
            save_file({"codes_IL": self.codes_IL.contiguous(), **self.learned}, temporary, metadata=metadata)
        return file

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a tokenizer that :meth:`save` wrote.

        Raises:
            ValueError: there is no such file, it is damaged, another class wrote it, or its codes differ from its hash.
        """
        file = _file(path)
        if not file.is_file():
            raise ValueError(f"There is no tokenizer at {file}; fit one and save() it there.")
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if (metadata.get("format"), metadata.get("class")) != (_FORMAT, cls.__name__):
                raise ValueError(
                    f"{file} holds a {metadata.get('class')!r} in format {metadata.get('format')!r}, not a "
                    f"{cls.__name__!r} in format {_FORMAT!r}; load it with the class that saved it."
                )
            codes_IL, num_codes = tensors.pop("codes_IL"), tuple(json.loads(metadata["num_codes"]))
            num_content_levels = json.loads(metadata.get("num_content_levels", "null"))
            tokenizer = cls(cls.Config(**_tuples(json.loads(metadata["config"]))))
            if codes_hash(codes_IL, num_codes) != metadata["hash"]:
                raise ValueError(f"The codes in {file} do not match their hash; fit the tokenizer again and save() it.")
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is damaged ({error}); fit the tokenizer again and save() it.") from error
        return tokenizer.freeze(codes_IL, num_codes, num_content_levels=num_content_levels, **tensors)


def append_counter(
    codes_IL: Tensor, num_codes: tuple[int, ...], *, only_if_needed: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """Appends a level that counts within each group of items with the same codes.

    An item with unique codes gets 0, and so does the item with the lowest id in a group (TIGER, arXiv:2305.05065,
    §3.1).

    Args:
        codes_IL: integer [I, L] codes.
        num_codes: codes of each level.
        only_if_needed: add no level if all tuples differ.

    Returns:
        int64 [I, L+1] codes and the number of codes of each level; the new level has as many as the largest group has
        items.
    """
    group_I = codes_IL.unique(dim=0, return_inverse=True)[1]
    size = group_I.bincount()
    if only_if_needed and len(size) == len(codes_IL):
        return codes_IL.long(), num_codes
    order_I = group_I.argsort(stable=True)
    nth_I = torch.empty_like(group_I)
    nth_I[order_I] = torch.arange(len(group_I)) - (size.cumsum(0) - size)[group_I[order_I]]
    return torch.cat([codes_IL.long(), nth_I[:, None]], dim=1), (*num_codes, int(size.max()))


def checked_content(content_IE: Tensor | ArrayLike) -> NDArray[np.float64]:
    """The content as float64 [I, E], after checking that it can be fitted.

    Raises:
        ValueError: it is not a finite matrix.
    """
    if isinstance(content_IE, Tensor):
        content_IE = content_IE.detach().cpu().numpy()
    content = np.asarray(content_IE, dtype=np.float64)
    if content.ndim != 2 or 0 in content.shape:
        raise ValueError(f"content_IE has shape {content.shape}; give one row of embeddings per item.")
    bad_I = ~np.isfinite(content).all(axis=1)
    if bad_I.any():
        raise ValueError(
            f"content_IE has NaN or infinite values in {int(bad_I.sum())} item(s), the first of them item "
            f"{int(np.argmax(bad_I))}; drop or impute them before fitting."
        )
    return content


def check_no_code_empty(num_codes: tuple[int, ...], num_items: int) -> None:
    """Raise ValueError if a level has more codes than there are items."""
    if max(num_codes) > num_items:
        raise ValueError(
            f"num_codes={num_codes} asks for a level of {max(num_codes)} codes, but there are only {num_items} "
            "items and no code may be empty; lower it."
        )


def with_num_codes(config: ConfigT, num_items: int) -> ConfigT:
    """Fills in the number of codes of each level from the number of items, if a configuration leaves it out."""
    given: Any = config
    return replace(given, num_codes=given.num_codes or codes_for(num_items))


def check_num_codes(num_codes: tuple[int, ...] | None) -> None:
    """Raise ValueError unless ``num_codes`` is None, or there is a level and each has at least one code."""
    if num_codes is not None and (not num_codes or min(num_codes) < 1):
        raise ValueError(f"num_codes={num_codes}; give at least one level, each with at least one code.")


def check_enough_tuples(num_codes: tuple[int, ...], num_items: int) -> None:
    """Raise ValueError unless every item can have its own tuple."""
    if prod(num_codes) < num_items:
        raise ValueError(
            f"num_codes={num_codes} makes {prod(num_codes)} tuples, too few for {num_items} items; "
            "raise it or add a level."
        )


def codes_hash(codes_IL: Tensor, num_codes: tuple[int, ...]) -> str:
    """sha256 of a table of codes, which a model checkpoint stores to refuse another tokenizer."""
    digest = hashlib.sha256(json.dumps([list(num_codes), list(codes_IL.shape)]).encode())
    digest.update(codes_IL.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """Turns the lists that JSON made of a config's tuples back into tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def _file(path: Path | str) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / FILE_NAME


SLACK = 4
"""Least number of code tuples per item. In tight codes nearly every tuple is an item, so it is easy to write an
existing one. An item's last code then follows from those before it, and no new item finds a free tuple."""


def codes_for(num_items: int) -> tuple[int, ...]:
    """Number of codes per level for a catalogue: powers of two whose product is at least ``SLACK`` times the items.

    Two levels up to 16,384 tuples, else three. Few items need more levels, since no level may have more codes than
    there are items.
    """
    bits = math.ceil(math.log2(SLACK * max(num_items, 2)))
    levels = 2 if bits <= 14 else 3
    while 2 ** math.ceil(bits / levels) > max(num_items, 2):
        levels += 1
    return tuple(2 ** ((bits + level) // levels) for level in range(levels))
