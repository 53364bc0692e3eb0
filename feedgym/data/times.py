"""Converts times of tables to seconds on a log's clock, whose zero is midnight where the users live.

Numbers, and stamps without a zone or in UTC, are shifted by the reader's ``utc_offset``. A stamp with its own offset
(``22:00+08:00``, or a column in a time zone) keeps its local hour. For events, the offset of a user's earliest stamp
applies to all of their stamps. Order and pauses are then those of real time, and the clock does not run backwards when
daylight saving ends or a user travels.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feedgym.data.public.files import refuse

UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
LIMITS = (1e11, 1e14, 1e17)
"""Sizes from which a number is in the next unit: 1e11 seconds are the year 5138, 1e11 milliseconds 1973."""
OWN_OFFSET = r"[T ][\d:.,]+\s*([+-])(\d{2}):?(\d{2})?$"
"""An offset after a time of day; the hyphens of a date do not match."""
HOUR_S = 3600.0


def log_seconds(
    where: object, table: pd.DataFrame, name: str, utc_offset: float, user_idx: NDArray | None = None
) -> NDArray[np.float64]:
    """Seconds since 1970 in local time, NaN where a cell is unreadable.

    Args:
        where: the file, for messages.
        table: holds the column; its index holds the rows' numbers.
        name: the column: numbers in one of the usual units (detected from their size), ISO text, dates or datetimes.
        utc_offset: hours that local time is ahead of UTC, for stamps without their own offset.
        user_idx: user of every row, if the rows are events; else None.

    Raises:
        ValueError: numbers in different units.
    """
    column = table[name]
    if not pd.api.types.is_datetime64_any_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce")
        if numbers.notna().any():
            values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
            return _one_unit(where, table, name, values) + utc_offset * HOUR_S
    times = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
    seconds = np.asarray((times - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1), dtype=np.float64)
    own_s = _own_offset_s(column)
    if user_idx is not None:
        own_s = _of_earliest(seconds, own_s, user_idx)
    return seconds + np.where(np.isnan(own_s), utc_offset * HOUR_S, own_s)


def _one_unit(where: object, table: pd.DataFrame, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Converts numbers to seconds; the finite ones must all have the same unit."""
    unit = np.searchsorted(LIMITS, np.abs(values), side="right")
    count = np.bincount(unit[np.isfinite(values)], minlength=len(UNITS))
    usual = int(count.argmax())
    for other in np.flatnonzero(count):
        if other != usual:
            what = f"looks like {UNITS[other]}, and like {UNITS[usual]} in the others,"
            refuse(where, table, name, np.isfinite(values) & (unit == other), what, "write all times in one unit")
    return values / 1e3**usual


def _own_offset_s(column: pd.Series) -> NDArray[np.float64]:
    """Seconds that each stamp's own zone is ahead of UTC; NaN if it has none or is in UTC."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        if str(column.dt.tz) in ("UTC", "UTC+00:00", "+00:00", "Etc/UTC"):
            return np.full(len(column), np.nan)
        ahead = column.dt.tz_localize(None) - column.dt.tz_convert("UTC").dt.tz_localize(None)
        return np.asarray(ahead / pd.Timedelta(seconds=1), dtype=np.float64)
    if pd.api.types.is_datetime64_any_dtype(column):
        return np.full(len(column), np.nan)
    parts = column.astype("string").str.extract(OWN_OFFSET)
    hours, minutes = (pd.to_numeric(parts[n]).astype("Float64").to_numpy(np.float64, na_value=np.nan) for n in (1, 2))
    own_s = np.where(parts[0].fillna("+") == "-", -1, 1) * (hours * HOUR_S + np.nan_to_num(minutes) * 60)
    return np.where(own_s == 0, np.nan, own_s)


def _of_earliest(seconds: NDArray[np.float64], own_s: NDArray[np.float64], user_idx: NDArray) -> NDArray[np.float64]:
    """Offset of every row: that of its user's earliest stamp."""
    order = np.lexsort((seconds, user_idx))
    first = np.searchsorted(user_idx[order], user_idx)
    return own_s[order][first]
