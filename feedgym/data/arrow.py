"""Arrow columns from NumPy arrays and back, without a copy of numbers and without pandas.

pyarrow's own conversions look whether a value is one of pandas's, and import it for that, which takes half a second.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def arrow_of(values: NDArray, valid: NDArray[np.bool_] | None = None) -> pa.Array:
    """A column of numbers, flags or texts; rows that are not ``valid`` are empty (of numbers only)."""
    if values.dtype == bool:
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, _bits(values)])
    if values.dtype.kind in "iuf":
        buffers = [None if valid is None else _bits(valid), pa.py_buffer(np.ascontiguousarray(values))]
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), buffers)
    return pa.array(values)


def words_of(words: Iterable[str]) -> pa.Array:
    """A column of a few words."""
    encoded = [word.encode() for word in words]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def numpy_of(column: pa.Array, fill: float | None = None) -> NDArray:
    """The values of a column, flags as uint8; ``fill`` replaces empty rows (of numbers only). May be read-only."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.to_numpy(zero_copy_only=False)
    if not column.null_count:
        return np.from_dlpack(column)
    assert fill is not None
    values = np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype())[column.offset :][: len(column)]
    return np.where(numpy_of(column.is_valid()).astype(bool), values, fill).astype(values.dtype)


def _bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))
