"""Lists of items in time order, as papers on sequential recommendation share them, and RecBole's atomic files.

A text file of whole numbers is either "user item" a line (SASRec) or "user item item item ..." (S3-Rec, P5, TIGER's
copies); without times. Beside it ``datamaps.json`` (its ``id2item``) gives the items their ids outside, and an items'
table (``items``) under either id gives them words. RecBole's files are ``NAME.inter``, ``NAME.item`` and ``NAME.user``,
whose headers name columns as ``name:type``; the words of an item are all its text columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from feedgym.data.columns import unread
from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, decoded, delimited, numbers, refuse
from feedgym.data.public.interactions import (
    ORDER_ONLY,
    RULE,
    Ratings,
    ReadOptions,
    Source,
    joined,
    ratings_log,
    read_ids,
)

EVENTS = ("user_id", "item_id", "rating", "timestamp")
FEW = 60
"""User columns of at most this many values are profile fields; others would be all but a name."""


def find_recbole(files: dict[str, RawFile]) -> Source | None:
    """RecBole's atomic files by their suffixes, or None."""
    inter = next((file for name, file in files.items() if name.endswith(".inter")), None)
    if inter is None:
        return None
    stem = inter.stem.removesuffix(".inter")
    beside = {kind: files[f"{stem}.{kind}"] for kind in ("item", "user") if f"{stem}.{kind}" in files}

    header = [name for name, _ in _typed(inter)]
    says, warns = unread(inter.name, header, {name: name for name in EVENTS if name in header})

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        ids = tuple(f"{name}:{type_}" for name, type_ in _typed(inter) if name in ("user_id", "item_id"))
        events, _ = _atomic(inter, words=ids)
        for name in ("user_id", "item_id"):
            if name not in events:
                raise ValueError(f"{inter}: column {name!r} is missing; the file has {list(events)}: rename one.")
            refuse(inter, events, name, events[name].isna(), "is empty", "drop those rows")
            events[name] = read_ids(events[name])
        for name in {"rating", "timestamp"} & {*events}:
            values = numbers(inter, events, name)
            refuse(inter, events, name, np.isnan(values), "is empty", "drop those rows, or leave the column out")
            events[name] = values
        tables = {f"{kind}s": _described(file, kind, events[f"{kind}_id"]) for kind, file in beside.items()}
        return ratings_log(inter, Ratings(events=events, **tables), options)

    files_read = (inter, *beside.values())
    return Source(
        name=f"RecBole's files of {stem}", files=files_read, says=(RULE, *says), warns=tuple(warns), read=read
    )


def _typed(file: RawFile) -> list[tuple[str, str]]:
    """The columns of a file's header with their types."""
    with file.opened() as stream:
        header = decoded(stream.readline(65_536)).rstrip("\r\n")
    return [(name, type_) for name, _, type_ in (column.partition(":") for column in header.split("\t"))]


def _atomic(file: RawFile, words: bool | tuple[str, ...] = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """A file's table under the columns' plain names, and their types."""
    table = delimited(file, "\t", None, words=words)
    pairs = [str(column).partition(":")[::2] for column in table]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"{file}: two columns share a name ({', '.join(map(str, table))}); rename one.")
    return table.set_axis([name for name, _ in pairs], axis=1), dict(pairs)


def _described(file: RawFile, kind: str, ids: pd.Series) -> pd.DataFrame:
    """Items with their words, or users with their profile; their keys become of one type with the events' ``ids``."""
    table, kinds = _atomic(file, words=True)
    key = f"{kind}_id"
    if key not in table:
        raise ValueError(f"{file}: column {key!r} is missing; the file has {list(table)}: rename one.")
    if pd.api.types.is_numeric_dtype(ids):
        written = table[key].str.fullmatch(r"0|-?[1-9]\d{0,17}").fillna(False)
        table[key] = pd.to_numeric(table[key].where(written))  # a key that is no such number is nobody's
    tokens = [name for name, type_ in kinds.items() if type_.startswith("token") and name != key]
    if kind == "user":
        return table[[key, *(name for name in tokens if table[name].nunique() <= FEW)]]
    words = joined(table[tokens], "; ")
    last = [name for name in tokens if kinds[name] == "token_seq"][-1:]  # a title is a sequence too; classes come last
    topic = {"topic": table[last[0]].astype("string").str.split(" ").str[0].astype(object)} if last else {}
    return pd.DataFrame({key: table[key], "text": words, **topic})


def find_sequences(files: dict[str, RawFile], items: Callable[[], pd.DataFrame] | None = None) -> Source | None:
    """A text file of whole numbers among files, or None.

    Args:
        files: what is there.
        items: reads the items' table: ``item_id`` and any of ``text``, ``topic``, ``creator``.
    """
    lists = [file for name, file in files.items() if name.endswith(".txt") and _is_list(file)]
    if not lists:
        return None
    if len(lists) > 1:
        names = ", ".join(file.name for file in lists)
        raise ValueError(f"{lists[0].path.parent}: holds several lists of items ({names}); give one file.")
    source, maps = lists[0], files.get("datamaps.json")

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        events = _pairs(source)
        if maps is not None:
            events = events.assign(item_id=_outside_ids(source, maps, events["item_id"]))
        known = items() if items is not None else pd.DataFrame({"item_id": []})
        if items is not None and not known["item_id"].isin(events["item_id"]).any():
            raise ValueError(f"{source}: the items' table holds none of its items; give them the same ids.")
        return ratings_log(source, Ratings(events=events, items=known), options)

    found = (source, maps) if maps else (source,)
    return Source(name="lists of items", files=found, says=("every item is a click", ORDER_ONLY), read=read)


def _is_list(file: RawFile) -> bool:
    """Whether a file begins with lines of two whole numbers or more."""
    with file.opened() as stream:
        lines = decoded(b"".join(stream.readline(65_536) for _ in range(3))).splitlines()
    return bool(lines) and all(re.fullmatch(r"\s*\d+([ \t]\d+)+\s*", line) for line in lines)


def _pairs(file: RawFile) -> pd.DataFrame:
    """User and item a row, in the file's order."""
    lines = [line.split() for line in decoded(file.read()).splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and (len(line) < 2 or not all(word.isdecimal() for word in line)):
            raise ValueError(f"{file}: line {number} is no list of whole numbers; write 'user item item ...'.")
    lines = [line for line in lines if line]
    user = np.repeat([int(line[0]) for line in lines], [len(line) - 1 for line in lines])
    return pd.DataFrame({"user_id": user, "item_id": [int(word) for line in lines for word in line[1:]]})


def _outside_ids(source: RawFile, maps: RawFile, item_id: pd.Series) -> pd.Series:
    try:
        names = {int(own): str(name) for own, name in json.loads(decoded(maps.read()))["id2item"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{maps}: has no 'id2item' that maps numbers to ids ({error}); fetch it again.") from error
    named = item_id.map(names)
    table = pd.DataFrame({"item_id": item_id})
    refuse(source, table, "item_id", named.isna(), f"has an id that {maps.name} lacks", "take both from one source")
    return named
