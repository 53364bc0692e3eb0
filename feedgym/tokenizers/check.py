"""Checks that an item tokenizer keeps the rules that agents rely on, with messages that say what to change."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from feedgym.protocols import ItemTokenizer


def check_tokenizer(tokenizer: ItemTokenizer, content_IE: Tensor | ArrayLike) -> None:
    """Fit copies of a tokenizer and test that agents can rely on it; the object itself stays as it was.

    A tokenizer with ``num_codes``, ``hash``, ``save`` or ``load`` must have all four.

    Args:
        tokenizer: the tokenizer, fitted or not.
        content_IE: [I, E] content embeddings of a catalogue to fit, at least two items.

    Raises:
        ValueError: it breaks a rule; the message names the rule and what to change.
    """
    content = torch.as_tensor(content_IE, dtype=torch.float32)
    name = type(tokenizer).__name__
    for method in ("fit", "encode", "decode"):
        _require(callable(getattr(tokenizer, method, None)), f"{name} has no {method}(); see feedgym.protocols.")
    before = content.clone()
    fitted = copy.deepcopy(tokenizer).fit(content)
    _require(fitted is not None, f"{name}.fit() returned None; end it with `return self`.")
    _require(torch.equal(content, before), f"{name}.fit() changed the content it was given; work on a copy.")
    # For a tokenizer with only the protocol's methods, experiments keep the codes in a table (FixedCodes).
    is_plain = not any(hasattr(fitted, part) for part in ("num_codes", "hash", "save", "load"))
    codes_IL, num_codes = _check_codes(fitted, name, len(content), is_plain)
    _check_shapes(fitted, name, codes_IL)
    _check_illegal(fitted, name, codes_IL, num_codes)
    again = copy.deepcopy(tokenizer).fit(content).encode(torch.arange(len(content)))
    _require(
        torch.equal(codes_IL, again),
        f"Two fits of {name} on the same content gave different codes; draw every random number from a generator "
        "seeded by the config.",
    )
    if not is_plain:
        _check_file(fitted, name, codes_IL)


def _check_codes(fitted: ItemTokenizer, name: str, num_items: int, is_plain: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Check type, range, uniqueness and inversion of all codes; return them with the number of codes per level."""
    item_ids = torch.arange(num_items)
    codes = fitted.encode(item_ids)
    _require(
        isinstance(codes, Tensor) and codes.dtype == torch.int64,
        f"{name}.encode() gave {getattr(codes, 'dtype', type(codes).__name__)}; return an int64 tensor.",
    )
    _require(
        codes.ndim == 2 and len(codes) == num_items and codes.shape[1] > 0,
        f"{name}.encode() of {num_items} items has shape {tuple(codes.shape)}; return [I, L], one row per item.",
    )
    num_codes: Any = getattr(fitted, "num_codes", None)
    if is_plain:
        num_codes = tuple(int(largest) + 1 for largest in codes.amax(0))
    _require(
        isinstance(num_codes, tuple) and len(num_codes) == codes.shape[1],
        f"{name}.num_codes is {num_codes!r}; set it to a tuple with the number of codes of each of the "
        f"{codes.shape[1]} levels: agents build their vocabulary from it (feedgym.tokenizers.CodeTokenizer does this).",
    )
    _require(
        bool(((codes >= 0) & (codes < torch.tensor(num_codes))).all()),
        f"{name}.encode() gave codes from {int(codes.min())} to {int(codes.max())}, outside num_codes={num_codes}; "
        "number a level's codes 0..num_codes-1.",
    )
    num_unique = len(codes.unique(dim=0))
    _require(
        num_unique == num_items,
        f"{name} gave {num_items} items only {num_unique} different tuples; add a level that separates colliding "
        "items, so that metrics can be counted by item.",
    )
    back = fitted.decode(codes)
    _require(
        back.dtype == torch.int64 and torch.equal(back, item_ids),
        f"{name}.decode(encode(items)) is not the items for {int((back != item_ids).sum())} of {num_items}; make "
        "decode() the inverse of encode() and return int64.",
    )
    return codes, num_codes


def _check_shapes(fitted: ItemTokenizer, name: str, codes_IL: Tensor) -> None:
    """Check that leading dimensions are kept, and that each item's answer does not depend on the others."""
    generator = torch.Generator().manual_seed(0)
    item_ids = torch.randint(len(codes_IL), (2, 3, 4), generator=generator)
    codes = fitted.encode(item_ids)
    _require(
        codes.shape == (2, 3, 4, codes_IL.shape[1]) and torch.equal(codes, codes_IL[item_ids]),
        f"{name}.encode() of ids [2, 3, 4] has shape {tuple(codes.shape)} or other codes than item by item; keep the "
        "leading axes and look up each item separately.",
    )
    back = fitted.decode(codes)
    _require(
        torch.equal(back, item_ids),
        f"{name}.decode() of codes [2, 3, 4, L] has shape {tuple(back.shape)} or other ids than one by one; keep the "
        "leading axes and look up each tuple separately.",
    )


def _check_illegal(fitted: ItemTokenizer, name: str, codes_IL: Tensor, sizes: tuple[int, ...]) -> None:
    """Check tuples that no item has, and padding."""
    num_codes = torch.tensor(sizes)
    legal = set(map(tuple, codes_IL.tolist()))
    generator = np.random.default_rng(0)
    guesses = torch.from_numpy(generator.integers(0, num_codes.numpy(), size=(256, len(num_codes))))
    illegal = [guess for guess in guesses.tolist() if tuple(guess) not in legal]
    illegal += [num_codes.tolist(), [-1] * len(num_codes)]
    decoded = fitted.decode(torch.tensor(illegal))
    wrong = (decoded != -1).nonzero().flatten().tolist()
    _require(
        not wrong,
        f"{name}.decode({illegal[wrong[0]] if wrong else None}) gave an item although none has these codes; return -1.",
    )


def _check_file(fitted: Any, name: str, codes_IL: Tensor) -> None:
    """Check that a tokenizer is loaded as it was saved, including the hash that a model checkpoint stores."""
    code_hash = getattr(fitted, "hash", None)
    _require(
        isinstance(code_hash, str) and bool(code_hash),
        f"{name}.hash is {code_hash!r}; set it in fit(), for instance to feedgym.tokenizers.codes_hash(codes, "
        "num_codes): checkpoints store it.",
    )
    for method in ("save", "load"):
        _require(
            callable(getattr(fitted, method, None)),
            f"{name} has no {method}(); a checkpoint is useless without its codes (feedgym.tokenizers.CodeTokenizer "
            "has both).",
        )
    with tempfile.TemporaryDirectory() as folder:
        fitted.save(folder)
        loaded = type(fitted).load(folder)
    _require(
        loaded.hash == code_hash and torch.equal(loaded.encode(torch.arange(len(codes_IL))), codes_IL),
        f"{name}.load() gave codes or a hash that differ from the saved ones; write the codes, and do not fit again.",
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
