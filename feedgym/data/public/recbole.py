"""RecBole's atomic files: ``NAME.inter``, ``NAME.item`` and ``NAME.user``, with headers of ``name:type``.

An item's words are taken from all its text columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from feedgym.data.columns import unread
from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, decoded, delimited, numbers, refuse, with_neighbours
from feedgym.data.public.interactions import RULE, Ratings, joined, ratings_log, read_ids
from feedgym.data.sources import ReadOptions, Source

EVENTS = ("user_id", "item_id", "rating", "timestamp")
BESIDE = r".*\.(item|user)"
FEW = 60
"""User columns with at most this many values are profile fields; others would almost identify the user."""


def find_recbole(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds RecBole's atomic files by their suffixes; None if there are none."""
    inter = next((file for name, file in files.items() if name.endswith(".inter")), None)
    if inter is None:
        return None
    files = with_neighbours(path, files, BESIDE)
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
    """Reads a file's table under the columns' plain names, and returns their types."""
    table = delimited(file, "\t", None, words=words)
    pairs = [str(column).partition(":")[::2] for column in table]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"{file}: two columns share a name ({', '.join(map(str, table))}); rename one.")
    return table.set_axis([name for name, _ in pairs], axis=1), dict(pairs)


def _described(file: RawFile, kind: str, ids: pd.Series) -> pd.DataFrame:
    """Items with their words, or users with their profile; their keys get the type of the events' ``ids``."""
    table, kinds = _atomic(file, words=True)
    key = f"{kind}_id"
    if key not in table:
        raise ValueError(f"{file}: column {key!r} is missing; the file has {list(table)}: rename one.")
    if pd.api.types.is_numeric_dtype(ids):
        written = table[key].str.fullmatch(r"0|-?[1-9]\d{0,17}").fillna(False)
        table[key] = pd.to_numeric(table[key].where(written))  # a key that is not a number matches nobody
    tokens = [name for name, type_ in kinds.items() if type_.startswith("token") and name != key]
    if kind == "user":
        return table[[key, *(name for name in tokens if table[name].nunique() <= FEW)]]
    words = joined(table[tokens], "; ")
    last = [name for name in tokens if kinds[name] == "token_seq"][-1:]  # a title is a sequence too; classes come last
    topic = {"topic": table[last[0]].astype("string").str.split(" ").str[0].astype(object)} if last else {}
    return pd.DataFrame({key: table[key], "text": words, **topic})
