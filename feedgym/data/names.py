"""Understands the columns of tables: names that others use for feedgym's, units, and columns to leave out.

A column with feedgym's own name is always taken as that. Others are understood if exactly one column has a usual name
of the thing; of several, none is chosen and the table is refused. Only names that leave no doubt are listed: a
``watch_time`` may hold seconds or milliseconds, so it must be mapped with its unit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from feedgym.data.events import BEHAVIOURS
from feedgym.data.public.files import numbers, refuse
from feedgym.data.times import LIMITS

UNITS = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0, "min": 1 / 60, "h": 1 / 3600}
"""Each unit, and the number of them in a second."""
IN_SECONDS = ("timestamp", "upload_time", "watch_s", "duration_s")
"""Names whose columns may have a unit."""
OUT = "-"
"""Stands for no column: ``rating=-`` leaves ratings out."""
_FLAGS = {
    "click": ("is_click", "is_clicked", "clicked"),
    "long_view": ("is_long_view", "is_longview"),
    "like": ("is_like", "is_liked", "liked"),
    "follow": ("is_follow", "is_followed", "followed"),
    "comment": ("is_comment", "is_commented", "commented"),
    "forward": ("is_forward", "is_forwarded", "forwarded", "is_share", "is_shared", "shared"),
    "hate": ("is_hate", "is_hated", "hated", "is_dislike", "is_disliked", "disliked"),
}
_CLOCKS = (
    *("timestamp", "time_stamp", "time", "ts", "event_time", "event_timestamp", "datetime", "date_time"),
    *("unix_time", "unix_timestamp", "unix_review_time", "created_at"),
)
_ITEMS = (
    *("item_id", "itemid", "item", "iid", "video_id", "videoid", "vid", "movie_id", "movieid", "asin", "product_id"),
    *("productid", "news_id", "article_id", "track_id", "song_id", "photo_id", "book_id", "goods_id"),
)
_PLAYS = ("play_time", "playing_time", "play_duration", "watch_time", "watch_duration", "watching_time", "view_time")
_LENGTHS = ("duration", "video_duration", "item_duration", "track_duration")
USUAL: dict[str, dict[str, str | None]] = {
    "user_id": dict.fromkeys(
        ("user_id", "userid", "user", "uid", "visitor_id", "visitorid", "visitor", "reviewer_id", "customer_id")
    ),
    "item_id": dict.fromkeys(_ITEMS),
    "timestamp": dict.fromkeys(_CLOCKS) | {f"{name}_{unit}": unit for name in _CLOCKS for unit in ("ms", "us", "ns")},
    "session_id": dict.fromkeys(("session_id", "sessionid")),
    "duration_s": {f"{name}_{unit}": unit for name in _LENGTHS for unit in ("ms", "s")},
    "watch_s": {f"{name}_{unit}": unit for name in _PLAYS for unit in ("ms", "s")},
    **{name: dict.fromkeys((name, *names)) for name, names in _FLAGS.items()},
    "rating": dict.fromkeys(("rating", "ratings", "stars", "star_rating", "overall")),
}
"""feedgym's names, and for each the names that others use (in lower case, parted by "_") with their unit."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table that are read, and as what.

    Attributes:
        of: maps feedgym's names to the table's columns, where those have other names.
        units: units of columns, by feedgym's names; other times are seconds, or detected from their size.
        out: feedgym's names that are left out.
        guessed: those of ``of`` that nobody mapped.
    """

    of: dict[str, str]
    units: dict[str, str] = field(default_factory=dict)
    out: frozenset[str] = frozenset()
    guessed: tuple[str, ...] = ()

    def taken(self, header: Collection[str], known: Collection[str]) -> dict[str, str]:
        """Maps all names that are read to their columns, own names included."""
        own = {name: name for name in header if name in known and name not in self.out}
        return {n: c for n, c in own.items() if n not in self.of and c not in self.of.values()} | self.of

    def says(self, where: object) -> list[str]:
        """A line that tells which columns were understood by their names."""
        pairs = [f"{n}={self.of[n]}{':' + self.units[n] if n in self.units else ''}" for n in self.guessed]
        change = "--columns NAME=COLUMN takes another, NAME=- none"
        return [f"{where}: understood by their names: {' '.join(pairs)} ({change})"] if pairs else []

    def in_seconds(self, where: object, table: pd.DataFrame, mapped: Collection[str]) -> pd.DataFrame:
        """The renamed table with its ``mapped`` columns in other units as seconds.

        Raises:
            ValueError: a column with a unit holds other things than numbers, or times that cannot be in that unit.
        """
        for name in (name for name in self.units if name in mapped):
            seconds = numbers(where, table, name) / UNITS[self.units[name]]
            if name in ("timestamp", "upload_time"):
                late = np.abs(seconds) >= LIMITS[0]
                remedy = "name the unit of the column, or none to have it detected"
                refuse(where, table, name, late, f"is after the year 5000 in {self.units[name]}", remedy)
            table = table.assign(**{name: seconds})
        return table


def understood(
    where: object, header: Iterable[str], column_map: Mapping[str, str], known: Collection[str], *, lasts: bool = False
) -> Columns:
    """Finds out what the columns of a table are.

    Args:
        where: the file, for messages.
        header: the names of the table's columns.
        column_map: maps feedgym's names to columns; ``column:unit`` names a unit, "-" leaves the name out.
        known: feedgym's names that this table may have.
        lasts: the lengths of items are known from elsewhere, so that watch times can be read.

    Raises:
        ValueError: a unit is unknown or misplaced, or several columns have a usual name of one thing.
    """
    header = [str(name) for name in header]
    of: dict[str, str] = {}
    units: dict[str, str] = {}
    for name, column in column_map.items():
        if column != OUT:
            of[name], unit = _parted(where, name, column, header)
            units |= {name: unit} if unit is not None else {}
    out = {name for name, column in column_map.items() if column == OUT}
    guessed: list[str] = []
    free = [column for column in header if column not in of.values()]
    for name, usual in USUAL.items():
        if name == "rating" and name not in of and any(other in of or other in free for other in BEHAVIOURS):
            out.add(name)
        if name not in known or name in out or name in of or name in free:
            continue
        if name == "watch_s" and not (lasts or "duration_s" in of or "duration_s" in free):
            continue
        fitting = [column for column in free if _lower(column) in usual and column not in (*known, *of.values())]
        if len(fitting) > 1:
            raise ValueError(
                f"{where}: {name} may be any of {', '.join(fitting)}; name one, e.g. --columns {name}={fitting[0]}, or "
                f"none: --columns {name}=-."
            )
        for column in fitting:
            of[name], unit = column, usual[_lower(column)]
            guessed.append(name)
            units |= {name: unit} if unit is not None else {}
    return Columns(of=of, units=units, out=frozenset(out), guessed=tuple(guessed))


def _parted(where: object, name: str, column: str, header: list[str]) -> tuple[str, str | None]:
    """The column and the unit of ``column:unit``; a colon may also be part of a column's name."""
    base, colon, unit = column.rpartition(":")
    if column in header or not colon or (unit not in UNITS and base not in header):
        return column, None
    if name not in IN_SECONDS:
        raise ValueError(f"{where}: {name}={column} names a unit, but {', '.join(IN_SECONDS)} alone have one; drop it.")
    if unit not in UNITS:
        raise ValueError(f"{where}: {name}={column} names an unknown unit; write one of {', '.join(UNITS)}.")
    return base, unit


def _lower(column: str) -> str:
    """A column's name in lower case, parted by "_": "userId" becomes "user_id"."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")
