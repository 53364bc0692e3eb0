"""Compiles loops over users with numba; without numba, their NumPy versions are used.

Machine code is kept on disk next to the source, or in the user's cache folder. So only the first process waits for the
compiler, a few seconds. To see if that code is out of date, numba checks only the file of a kernel. So a kernel's
helpers are in the same file; those of :mod:`feedgym.envs.luck_compiled` never change.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

HAS_NUMBA = find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
"""True if kernels can be compiled; numba's own switch turns them off."""


def compiled(signature: str | None = None, *, any_order: bool = False) -> Callable[[Callable], Callable]:
    """Decorates a function to be compiled: for a signature in numba's notation, else for what it is called with.

    Kernels do not allocate, so numba need not count who holds an array (``_nrt``), which costs more than the sums over
    a row. The arithmetic is exactly that of IEEE 754; division by zero gives infinity, as in NumPy.

    Args:
        signature: types of result and arguments.
        any_order: sums may be added up in any order, which is the same in every row.
    """
    fast: Any = {"reassoc", "nsz"} if any_order else False
    return lambda function: jitted(function, signature, error_model="numpy", _nrt=False, fastmath=fast)


def jitted(function: Callable, signature: str | None = None, **options: Any) -> Any:
    """Compiles a function with numba's options; its machine code is kept on disk where a folder can be written to."""
    import numba

    try:
        return numba.jit(signature, cache=True, **options)(function)
    except RuntimeError:  # no folder for machine code can be written to
        return numba.jit(signature, **options)(function)


def given(array: NDArray, dtype: DTypeLike) -> NDArray:
    """An array as kernels take it, so that they are compiled once: contiguous and writable, itself where it is so."""
    if array.flags.carray and array.dtype == dtype:
        return array
    return np.array(array, dtype, order="C")
