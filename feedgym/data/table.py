"""Reads any table of events with a map of its columns to feedgym's names, and the table of its items.

For example ``read_table("views.csv", {"user_id": "visitor", "item_id": "video", "timestamp": "ts"})``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow.parquet import read_schema as parquet_schema

from feedgym.data.build import assemble_log, cut_visits, encode_profile
from feedgym.data.columns import unread
from feedgym.data.content import attribute_embeddings
from feedgym.data.events import BEHAVIOURS, BoolArray, Catalog, EventLog, FloatArray
from feedgym.data.parquet import PROFILE_PREFIX
from feedgym.data.public.files import RawFile, numbers, plain, refuse
from feedgym.data.public.interactions import (
    CONTENT_WIDTH,
    content_of,
    joined,
    k_core,
    plain_ids,
    read_ids,
    texts_of,
    time_order,
)
from feedgym.data.sources import ReadOptions, Source, keeps_clock
from feedgym.data.times import log_seconds

REQUIRED = ("user_id", "item_id")
IDS = (*REQUIRED, "session_id")
EVENT_COLUMNS = (
    *IDS,
    *("timestamp", "position", "watch_s", "duration_s", "examined", "propensity"),
    *BEHAVIOURS,
)
ITEM_COLUMNS = ("item_id", "duration_s", "topic", "creator", "upload_time", "text")
EMBEDDING_PREFIX = "embedding_"


def read_table(
    path: str | Path,
    column_map: Mapping[str, str],
    items: str | Path | None = None,
    options: ReadOptions | None = None,
) -> tuple[EventLog, Catalog]:
    """Reads any table with one row per exposure (or interaction).

    ``column_map`` maps these names of feedgym to the file's columns (a name that is left out maps to itself):

    - ``user_id`` and ``item_id``, the only required ones;
    - ``timestamp``: seconds, milli-, micro- or nanoseconds since 1970 (detected from their size), ISO text or
      datetimes; see :mod:`feedgym.data.times` for zones. A file without it must be in time order, and counts as one
      event per second;
    - ``session_id``: a visit ends where it changes. Without it, visits end at pauses of half an hour. A user's rows at
      the same time are shuffled, see :class:`ReadOptions`, unless they share a session: then they keep the file's
      order;
    - ``position``: place in the slate, a number; orders the rows of a user (and session) at the same time;
    - ``watch_s``, ``duration_s`` (of the item), ``examined`` (0/1, and 0 only where no behaviour is 1), ``propensity``;
    - the behaviours, 0/1. Without any of them, every examined row is a click;
    - ``profile_<name>``: profile fields, taken from the user's first row.

    ``items`` is a table with ``item_id`` and, where known, ``duration_s``, ``topic``, ``creator``, ``upload_time`` and
    ``text``. Columns ``embedding_*`` are the content embeddings. Without them embeddings are made from the texts, or
    else from the other columns, numbers and categories. If those do not tell items apart, or without ``items``, they
    come from the co-occurrence of items in the first four fifths of the log, without each user's last two events.

    Ids of CSV files are read as text: "007" and "7" differ. If all are plain integers, they become integers.

    Args:
        path: CSV (also compressed), TSV or parquet.
        column_map: maps feedgym's names to the file's.
        items: the items' table; its columns are mapped too.
        options: order of ties, k-core, embeddings of texts.

    Returns:
        The log and the catalogue.

    Raises:
        ValueError: a column is missing, unknown or unreadable, an item is unknown, or the file is empty; one line.
    """
    path, items = Path(path), None if items is None else Path(items)
    table = _table(path, tuple(column_map.get(name, name) for name in IDS))
    item_table = None if items is None else _table(items, (column_map.get("item_id", "item_id"), "item_id"))
    _check_map(column_map, path, table, items, item_table)
    table = _renamed(path, table, {n: c for n, c in column_map.items() if _is_of_event(n)}, REQUIRED)
    if items is not None and item_table is not None:
        of_item = {n: c for n, c in column_map.items() if _is_of_item(n)}
        item_table = _checked_items(items, _renamed(items, item_table, of_item, ("item_id",)))
    options = options or ReadOptions()
    table = k_core(table[options.chosen(table["user_id"])], options.core)  # the index keeps the rows' numbers
    if table.empty:
        raise ValueError(f"{path}: no row is left with core {options.core} and {options.users:g} of the users.")
    raw_ids_I, item_id = _item_ids(path, table, item_table)
    user_idx, user_ids = pd.factorize(table["user_id"])
    timestamp_s = _timestamps(path, table, user_idx, options)
    session = pd.factorize(table["session_id"])[0] if "session_id" in table else None
    order = time_order(user_idx, timestamp_s, options, session, _positions(path, table))
    table, item_id = table.iloc[order], item_id[order]
    log = _log(path, table, user_idx[order], user_ids, timestamp_s[order], item_id)
    return log, _catalog(path, items, raw_ids_I, item_table, table, item_id, log, options)


def table_source(path: Path, column_map: Mapping[str, str], items: Path | None) -> Source:
    """Describes a file that is read as a table, and which of its columns are not read."""
    header = _header(path)
    taken = {column: column for column in header if _is_of_event(column)}
    taken |= {name: column for name, column in column_map.items() if _is_of_event(name)}
    says, warns = unread(path.name, header, taken)
    if "position" in taken and "timestamp" not in taken:
        warns.append(
            f"{path.name}: positions are not read without timestamp, and the order of the rows counts; map it too."
        )
    if items is not None and (left := _unread_of_items(_header(items), column_map)):
        says.append(f"{items.name}: columns that are not read next to texts or embeddings: {', '.join(left)}")
    return Source(
        name="a table of events",
        files=(RawFile(path), *((RawFile(items),) if items else ())),
        says=tuple(says),
        warns=tuple(warns),
        read=lambda options: read_table(path, column_map, items, options),
    )


def _unread_of_items(header: list[str], column_map: Mapping[str, str]) -> list[str]:
    """The columns of an items' table that are not used: if embeddings or texts are given, all others."""
    taken = {column: column for column in header if _is_of_item(column)}
    taken |= {name: column for name, column in column_map.items() if _is_of_item(name)}
    if "text" not in taken and not any(name.startswith(EMBEDDING_PREFIX) for name in taken):
        return []
    return [column for column in header if column not in taken.values()]


def item_words(items: Path) -> pd.DataFrame:
    """Reads an items' table for lists; without a column ``text``, all its columns of words are the text."""
    table = _renamed(items, _table(items, ("item_id",)), {}, ("item_id",))
    if "text" not in table:
        words = table.drop(columns=["item_id", "topic", "creator"], errors="ignore").select_dtypes(exclude="number")
        table["text"] = joined(words, ". ")
    return table[[name for name in ("item_id", "text", "topic", "creator") if name in table]]


def _header(path: Path) -> list[str]:
    """The names of a table's columns."""
    with _reading(path):
        if path.suffix == ".parquet":
            return [str(name) for name in parquet_schema(path).names]
        return [str(name) for name in pd.read_csv(path, sep=_separator(path), nrows=0, index_col=False)]


def _table(path: Path, ids: tuple[str, ...] = ()) -> pd.DataFrame:
    """Reads a file's table; in a CSV the columns ``ids`` are read as text, so that "007" and "7" differ."""
    with _reading(path):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with warnings.catch_warnings():
                # In rows longer than the header, pandas would shift the columns, or drop the last ones and warn.
                warnings.simplefilter("error", pd.errors.ParserWarning)
                as_text: Any = dict.fromkeys(ids, str)
                table = pd.read_csv(path, sep=_separator(path), index_col=False, low_memory=False, dtype=as_text)
            table = table.assign(**{name: read_ids(table[name]) for name in {*ids} & {*table}})
    if table.empty:
        raise ValueError(f"{path}: the file has no rows; give one with at least one event.")
    return table.reset_index(drop=True)


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns any error of a parser into one line that names the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path.")
    try:
        yield
    except Exception as error:  # parsers and decompressors each raise their own errors
        detail = str(error).partition("\n")[0]
        raise ValueError(f"{path}: cannot be read as a table ({detail}); give CSV or parquet.") from error


def _is_of_event(name: str) -> bool:
    return name in EVENT_COLUMNS or name.startswith(PROFILE_PREFIX)


def _is_of_item(name: str) -> bool:
    return name in ITEM_COLUMNS or name.startswith(EMBEDDING_PREFIX)


def _check_map(
    column_map: Mapping[str, str],
    path: Path,
    table: pd.DataFrame,
    items: Path | None,
    item_table: pd.DataFrame | None,
) -> None:
    """Refuses names that feedgym does not know and columns that are missing from their file."""
    names = sorted({*EVENT_COLUMNS, *ITEM_COLUMNS})
    for name, column in column_map.items():
        of_event, of_item = _is_of_event(name), _is_of_item(name)
        if not of_event and not of_item:
            raise ValueError(f"column_map names {name!r}, which feedgym does not know; use {', '.join(names)}.")
        if not of_event and item_table is None:
            raise ValueError(f"column_map names {name!r}, which describes items; give the items' file (items) too.")
        have = {*(table if of_event else ()), *(item_table if of_item and item_table is not None else ())}
        if column not in have:
            there = sorted(str(c) for c in have)
            raise ValueError(
                f"{path if of_event else items}: column {column!r} (for {name}) is missing; there are {there}: map one "
                f"of them."
            )


def _renamed(path: Path, table: pd.DataFrame, column_map: Mapping[str, str], required: tuple[str, ...]) -> pd.DataFrame:
    """Renames the table's columns to feedgym's names; the file's own columns with those names are dropped."""
    mapped = {name: table[column] for name, column in column_map.items() if column in table}
    sources = [column_map[name] for name in mapped]
    table = table.drop(columns=list({*sources, *mapped}), errors="ignore").assign(**mapped)
    for name in required:
        if name not in table:
            raise ValueError(
                f"{path}: column {name!r} is missing; the file has {[str(c) for c in table]}: name the one to take in "
                f"column_map."
            )
        refuse(path, table, name, table[name].isna(), "is empty", "drop those rows")
    plain(path, table, [name for name in map(str, table) if _is_of_event(name) or _is_of_item(name)])
    return table


def _checked_items(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    refuse(path, table, "item_id", table["item_id"].duplicated(), "repeats an item", "keep one row per item")
    for name in (str(c) for c in table if str(c).startswith(EMBEDDING_PREFIX)):
        refuse(path, table, name, np.isnan(numbers(path, table, name)), "is NaN", "drop or impute those items")
    names = {"item_id", "topic", "creator", "text"}
    numeric = {*table.select_dtypes("number"), "duration_s"} & {*table.columns} - names
    return table.assign(**{str(name): numbers(path, table, str(name)) for name in numeric})


def _item_ids(path: Path, table: pd.DataFrame, item_table: pd.DataFrame | None) -> tuple[NDArray, NDArray[np.int64]]:
    """Raw ids of the catalogue and each event's row in it; without an items' table, the sorted items of the events."""
    if item_table is None:
        codes, ids = pd.factorize(table["item_id"], sort=True)
        return plain_ids(ids), codes
    listed, asked = item_table["item_id"], table["item_id"]
    if pd.api.types.is_integer_dtype(listed) != pd.api.types.is_integer_dtype(asked):  # 7 and "7" are one item
        listed, asked = listed.astype(str), asked.astype(str)
    codes = pd.Index(listed).get_indexer(pd.Index(asked))
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        unknown = table["item_id"].iloc[[row]].item()  # as Python writes it
        raise ValueError(
            f"{path}: column 'item_id' names item {unknown!r} in row {row}, which the items' file does not hold "
            f"({int((codes < 0).sum())} such rows); add the items to it, with ids written alike."
        )
    return plain_ids(item_table["item_id"]), codes


def _flags(path: Path, table: pd.DataFrame, name: str, fill: int) -> BoolArray:
    """A column of 0 and 1; empty cells become ``fill``."""
    values = numbers(path, table, name, fill)
    refuse(path, table, name, (values != 0) & (values != 1), "is neither 0 nor 1", "write 0/1, e.g. rating >= 4")
    return values == 1


def _timestamps(path: Path, table: pd.DataFrame, user_idx: NDArray, options: ReadOptions) -> NDArray[np.float64]:
    """Times in seconds, or the order of the rows if the file has no times."""
    if "timestamp" not in table:
        keeps_clock(path, "has no timestamp", options)
        return np.arange(len(table), dtype=np.float64)
    seconds = log_seconds(path, table, "timestamp", options.utc_offset, user_idx)
    bad = ~np.isfinite(seconds)
    refuse(path, table, "timestamp", bad, "is empty or not a time", "write seconds or ISO times, or drop those rows")
    return seconds


def _positions(path: Path, table: pd.DataFrame) -> NDArray[np.float64] | None:
    """Places in slates; without times the order of the file's rows counts, and places are not used."""
    if not {"position", "timestamp"} <= {*table}:
        return None
    position = numbers(path, table, "position")
    refuse(path, table, "position", np.isnan(position), "is empty", "fill it, or leave the column out")
    return position


def _log(
    path: Path, table: pd.DataFrame, user_idx: NDArray, user_ids: pd.Index, timestamp_s: NDArray, item_id: NDArray
) -> EventLog:
    """The log of a table sorted by user and time."""
    examined = _flags(path, table, "examined", 1) if "examined" in table else np.ones(len(table), dtype=bool)
    present = [name for name in BEHAVIOURS if name in table]
    behaviours = np.zeros((len(table), len(BEHAVIOURS)), dtype=np.uint8)
    for name in present or ["click"]:
        done = _flags(path, table, name, 0) if present else examined
        refuse(path, table, name, done & ~examined, "is 1 where examined is 0", "set examined to 1 there")
        behaviours[:, BEHAVIOURS.index(name)] = done
    watch_s = numbers(path, table, "watch_s", 0) if "watch_s" in table else np.zeros(len(table))
    refuse(path, table, "watch_s", watch_s < 0, "is negative", "write seconds")
    propensity = numbers(path, table, "propensity") if "propensity" in table else np.full(len(table), np.nan)
    bad = (propensity <= 0) | (propensity > 1)
    refuse(path, table, "propensity", bad, "is outside (0, 1]", "leave unknown ones empty")
    if "session_id" in table:
        remedy = "fill it, or leave the column out to cut visits at pauses"
        refuse(path, table, "session_id", table["session_id"].isna(), "is empty", remedy)
        session = pd.factorize(table["session_id"])[0]
        new_visit = np.diff(session, prepend=-1) != 0
    else:
        new_visit = cut_visits(user_idx, timestamp_s)
    fields = [str(c) for c in table if str(c).startswith(PROFILE_PREFIX)]
    first = np.searchsorted(user_idx, np.arange(len(user_ids)))
    profile_UF, sizes = encode_profile(table[fields].iloc[first])
    return assemble_log(
        user_ids_U=plain_ids(user_ids),
        profile_UF=profile_UF,
        profile_names=tuple(name.removeprefix(PROFILE_PREFIX) for name in fields),
        profile_sizes=sizes,
        user_idx=user_idx,
        timestamp_s=timestamp_s,
        item_id=item_id,
        watch_s=watch_s.astype(np.float32),
        behaviours=behaviours,
        new_visit=new_visit,
        has_time="timestamp" in table,
        examined=examined,
        propensity=propensity.astype(np.float32),
    )


def _catalog(
    path: Path,
    items: Path | None,
    raw_ids_I: NDArray,
    item_table: pd.DataFrame | None,
    table: pd.DataFrame,
    item_id: NDArray,
    log: EventLog,
    options: ReadOptions,
) -> Catalog:
    count = len(raw_ids_I)
    item_facts = pd.DataFrame(index=range(count)) if item_table is None else item_table.reset_index(drop=True)
    topic_I = pd.factorize(item_facts["topic"], sort=True)[0] if "topic" in item_facts else np.full(count, -1)
    creator_I = pd.factorize(item_facts["creator"], sort=True)[0] if "creator" in item_facts else np.full(count, -1)
    upload_s_I = np.full(count, np.nan)
    if "upload_time" in item_facts:
        upload_s_I = log_seconds(items, item_facts, "upload_time", options.utc_offset)
    text_I = texts_of(item_facts["text"]) if "text" in item_facts else None
    content_IE, content_from = _content(items, item_facts, text_I, log, count, options)
    return Catalog(
        raw_ids_I=raw_ids_I,
        content_IE=content_IE,
        topic_I=topic_I.astype(np.int32),
        duration_s_I=_durations(path, item_facts, table, item_id, count),
        creator_I=creator_I.astype(np.int64),
        upload_s_I=np.where(np.isfinite(upload_s_I), upload_s_I, log.timestamp_s.min()),
        text_I=text_I,
        content_from=content_from,
    )


def _durations(path: Path, item_facts: pd.DataFrame, table: pd.DataFrame, item_id: NDArray, count: int) -> FloatArray:
    """Lengths from the items' table, else from the events (the longest of the item), else the median, else 1 s."""
    if "duration_s" in item_facts:
        seconds = item_facts["duration_s"]
    elif "duration_s" in table:
        seconds = pd.Series(numbers(path, table, "duration_s")).groupby(item_id).max().reindex(range(count))
    elif "watch_s" in table:
        raise ValueError(f"{path}: has watch_s but no duration_s to divide it by; map duration_s in the log or items.")
    else:
        seconds = pd.Series(np.ones(count))
    seconds = seconds.where(seconds > 0)
    return seconds.fillna(seconds.median()).fillna(1.0).to_numpy(dtype=np.float32)


def _content(
    items: Path | None,
    item_facts: pd.DataFrame,
    text_I: NDArray | None,
    log: EventLog,
    count: int,
    options: ReadOptions,
) -> tuple[FloatArray, str]:
    """Content embeddings, given or made from texts, from the items' other columns or from the log; and their source."""
    given = [c for c in item_facts if str(c).startswith(EMBEDDING_PREFIX)]
    if given:
        return item_facts[given].to_numpy(dtype=np.float32), f"columns {EMBEDDING_PREFIX}*"
    if text_I is not None and options.text != "off":
        return content_of(text_I, log, count, options)
    features = item_facts.drop(columns=["item_id", "upload_time", "text"], errors="ignore")
    plain(items, features, features)
    numeric = features.select_dtypes("number").columns.difference(["topic", "creator"])
    numbers_IX = features[numeric].fillna(features[numeric].median()).fillna(0).to_numpy(dtype=np.float64)
    words = pd.Series("", index=item_facts.index)
    for name in features.columns.difference(numeric):
        value = features[name].astype("string").str.replace(r"\s+", "_", regex=True)
        words += (f" {name}=" + value).fillna("").astype(str)
    content_IE = attribute_embeddings(words, numbers_IX, CONTENT_WIDTH)
    # A single number (say, only lengths) becomes a mere sign when rows get length 1, and titles all differ.
    if np.abs(content_IE[:, 1:]).max(initial=0) > 1e-6:
        return content_IE, "the items' columns"
    return content_of(None, log, count, options)
