"""Reads any table of events with a map of its columns to feedgym's names, and the table of its items.

For example ``read_table("views.csv", {"user_id": "visitor", "item_id": "video", "timestamp": "ts"})``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feedgym.data.build import assemble_log, cut_visits, encode_profile
from feedgym.data.columns import unread
from feedgym.data.content import attribute_embeddings
from feedgym.data.events import BEHAVIOURS, BoolArray, Catalog, EventLog, FloatArray
from feedgym.data.names import OUT, Columns, understood
from feedgym.data.parquet import EXTRA_PREFIX, PROFILE_PREFIX
from feedgym.data.public.files import numbers, plain, refuse
from feedgym.data.public.interactions import (
    CONTENT_WIDTH,
    RULE,
    content_of,
    joined,
    k_core,
    plain_ids,
    rated_behaviours,
    texts_of,
    time_order,
)
from feedgym.data.rows import few, header_of, rows_of, table_files
from feedgym.data.sources import ReadOptions, Source, keeps_clock
from feedgym.data.times import log_seconds

REQUIRED = ("user_id", "item_id")
IDS = (*REQUIRED, "session_id")
EVENT_COLUMNS = (
    *IDS,
    *("timestamp", "position", "watch_s", "duration_s", "examined", "propensity", "rating"),
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

    ``column_map`` maps these names of feedgym to the file's columns. A name that is left out maps to itself, or to a
    usual name of the same thing (``video_id``, ``time_ms``, see :mod:`feedgym.data.names`); "-" reads none. Times and
    lengths may have a unit: ``play_time_ms:ms``.

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
    - ``rating``, 0 to 5, instead of behaviours: every examined row is a click, 4 or more a like, 2 or less a hate;
    - ``profile_<name>``: profile fields, taken from the user's first row;
    - ``extra_<name>``: further feedback, a number; empty cells are 0.

    ``items`` is a table with ``item_id`` and, where known, ``duration_s``, ``topic``, ``creator``, ``upload_time`` and
    ``text``. Columns ``embedding_*`` are the content embeddings. Without them embeddings are made from the texts, or
    else from the other columns, numbers and categories. If those do not tell items apart, or without ``items``, they
    come from the co-occurrence of items. That uses the first four fifths of the log, without each user's last two
    events.

    Ids of CSV files are read as text: "007" and "7" differ. If all are plain integers, they become integers.

    Args:
        path: separated values (also compressed), JSON lines, parquet, or a folder of parquet files.
        column_map: maps feedgym's names to the file's.
        items: the items' table; its columns are mapped too.
        options: order of ties, k-core, embeddings of texts.

    Returns:
        The log and the catalogue.

    Raises:
        ValueError: a column is missing, unknown or unreadable, an item is unknown, or the file is empty; one line.
    """
    path, items = Path(path), None if items is None else Path(items)
    of_event, of_item = _columns(path, items, column_map)
    table = rows_of(path, tuple(of_event.of.get(name, name) for name in IDS))
    item_table = None if items is None else rows_of(items, (of_item.of.get("item_id", "item_id"), "item_id"))
    table = _renamed(path, table, of_event, REQUIRED)
    if items is not None and item_table is not None:
        item_table = _checked_items(items, _renamed(items, item_table, of_item, ("item_id",)))
    return log_of_rows(path, table, items, item_table, options or ReadOptions())


def log_of_rows(
    path: object, table: pd.DataFrame, items: object, item_table: pd.DataFrame | None, options: ReadOptions
) -> tuple[EventLog, Catalog]:
    """Makes a log of a table with feedgym's columns, one row per exposure; readers of public data end here too.

    Args:
        path: the file, for messages.
        table: columns as in :func:`read_table`, and an index with the rows' numbers in the file.
        items: the items' file, for messages.
        item_table: the items, every item of ``table`` among them; None if nothing is known about them.
        options: as in :func:`read_table`.

    Raises:
        ValueError: as in :func:`read_table`.
    """
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
    header = header_of(path)
    of_event, of_item = _columns(path, items, column_map)
    taken = of_event.taken(header, [name for name in header if _is_of_event(name)])
    left_out = {name for name, column in column_map.items() if column == OUT}
    says, warns = unread(path.name, header, taken, left_out)
    says = [*of_event.says(path.name), *says]
    if "rating" in taken:
        says.append(RULE)
    if "position" in taken and "timestamp" not in taken:
        warns.append(
            f"{path.name}: positions are not read without timestamp, and the order of the rows counts; map it too."
        )
    if items is not None:
        says += of_item.says(items.name)
        if left := _unread_of_items(header_of(items), of_item):
            says.append(f"{items.name}: columns that are not read next to texts or embeddings: {', '.join(left)}")
    return Source(
        name="a table of events",
        files=(*table_files(path), *(table_files(items) if items else ())),
        says=tuple(says),
        warns=tuple(warns),
        read=lambda options: read_table(path, column_map, items, options),
    )


def _columns(path: Path, items: Path | None, column_map: Mapping[str, str]) -> tuple[Columns, Columns]:
    """Finds out what the columns of the events' table and of the items' table are."""
    header, item_header = header_of(path), [] if items is None else header_of(items)
    of_item = understood(items, item_header, _of(column_map, _is_of_item), ITEM_COLUMNS)
    lasts = "duration_s" in of_item.taken(item_header, ITEM_COLUMNS)
    of_event = understood(path, header, _of(column_map, _is_of_event), EVENT_COLUMNS, lasts=lasts)
    _check_map(column_map, path, header, of_event, items, item_header, of_item)
    return of_event, of_item


def _of(column_map: Mapping[str, str], is_of: Callable[[str], bool]) -> dict[str, str]:
    return {name: column for name, column in column_map.items() if is_of(name)}


def _unread_of_items(header: list[str], columns: Columns) -> list[str]:
    """The columns of an items' table that are not used: if embeddings or texts are given, all others."""
    taken = columns.taken(header, [name for name in header if _is_of_item(name)])
    if "text" not in taken and not any(name.startswith(EMBEDDING_PREFIX) for name in taken):
        return []
    return [column for column in header if column not in taken.values()]


def item_words(items: Path) -> pd.DataFrame:
    """Reads an items' table for lists; without a column ``text``, all its columns of words are the text."""
    columns = understood(items, header_of(items), {}, ITEM_COLUMNS)
    table = _renamed(items, rows_of(items, (columns.of.get("item_id", "item_id"),)), columns, ("item_id",))
    if "text" not in table:
        words = table.drop(columns=["item_id", "topic", "creator"], errors="ignore").select_dtypes(exclude="number")
        table["text"] = joined(words, ". ")
    return table[[name for name in ("item_id", "text", "topic", "creator") if name in table]]


def _is_of_event(name: str) -> bool:
    return name in EVENT_COLUMNS or name.startswith((PROFILE_PREFIX, EXTRA_PREFIX))


def _is_of_item(name: str) -> bool:
    return name in ITEM_COLUMNS or name.startswith(EMBEDDING_PREFIX)


def _check_map(
    column_map: Mapping[str, str],
    path: Path,
    header: list[str],
    of_event: Columns,
    items: Path | None,
    item_header: list[str],
    of_item: Columns,
) -> None:
    """Refuses names that feedgym does not know and columns that are missing from their file."""
    names = sorted({*EVENT_COLUMNS, *ITEM_COLUMNS})
    for name in column_map:
        is_of_event, is_of_item = _is_of_event(name), _is_of_item(name)
        if not is_of_event and not is_of_item:
            raise ValueError(f"column_map names {name!r}, which feedgym does not know; use {', '.join(names)}.")
        if not is_of_event and items is None:
            raise ValueError(f"column_map names {name!r}, which describes items; give the items' file (items) too.")
        have = {*(header if is_of_event else ()), *(item_header if is_of_item else ())}
        column = of_event.of.get(name, of_item.of.get(name))
        if column is not None and column not in have:
            raise ValueError(
                f"{path if is_of_event else items}: column {column!r} (for {name}) is missing; there are "
                f"{few(sorted(have))}: map one of them."
            )


def _renamed(path: Path, table: pd.DataFrame, columns: Columns, required: tuple[str, ...]) -> pd.DataFrame:
    """Renames the table's columns to feedgym's names, in seconds; the file's own columns of those names are dropped."""
    mapped = {name: table[column] for name, column in columns.of.items() if column in table}
    sources = [columns.of[name] for name in mapped]
    table = table.drop(columns=list({*sources, *mapped, *columns.out}), errors="ignore").assign(**mapped)
    for name in required:
        if name not in table:
            raise ValueError(
                f"{path}: column {name!r} is missing; the file has {few(table)}: name the one to take in column_map, "
                f"e.g. --columns {name}=COLUMN."
            )
        refuse(path, table, name, table[name].isna(), "is empty", "drop those rows")
    plain(path, table, [name for name in map(str, table) if _is_of_event(name) or _is_of_item(name)])
    return columns.in_seconds(path, table, mapped)


def _checked_items(path: object, table: pd.DataFrame) -> pd.DataFrame:
    refuse(path, table, "item_id", table["item_id"].duplicated(), "repeats an item", "keep one row per item")
    for name in (str(c) for c in table if str(c).startswith(EMBEDDING_PREFIX)):
        refuse(path, table, name, np.isnan(numbers(path, table, name)), "is NaN", "drop or impute those items")
    names = {"item_id", "topic", "creator", "text"}
    numeric = {*table.select_dtypes("number"), "duration_s"} & {*table.columns} - names
    return table.assign(**{str(name): numbers(path, table, str(name)) for name in numeric})


def _item_ids(path: object, table: pd.DataFrame, item_table: pd.DataFrame | None) -> tuple[NDArray, NDArray[np.int64]]:
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


def _flags(path: object, table: pd.DataFrame, name: str, fill: int) -> BoolArray:
    """A column of 0 and 1; empty cells become ``fill``."""
    values = numbers(path, table, name, fill)
    refuse(path, table, name, (values != 0) & (values != 1), "is neither 0 nor 1", "write 0/1, e.g. rating >= 4")
    return values == 1


def _timestamps(path: object, table: pd.DataFrame, user_idx: NDArray, options: ReadOptions) -> NDArray[np.float64]:
    """Times in seconds, or the order of the rows if the file has no times."""
    if "timestamp" not in table:
        keeps_clock(path, "has no timestamp", options)
        return np.arange(len(table), dtype=np.float64)
    seconds = log_seconds(path, table, "timestamp", options.utc_offset, user_idx)
    bad = ~np.isfinite(seconds)
    refuse(path, table, "timestamp", bad, "is empty or not a time", "write seconds or ISO times, or drop those rows")
    return seconds


def _positions(path: object, table: pd.DataFrame) -> NDArray[np.float64] | None:
    """Places in slates; without times the order of the file's rows counts, and places are not used."""
    if not {"position", "timestamp"} <= {*table}:
        return None
    position = numbers(path, table, "position")
    refuse(path, table, "position", np.isnan(position), "is empty", "fill it, or leave the column out")
    return position


def _log(
    path: object, table: pd.DataFrame, user_idx: NDArray, user_ids: pd.Index, timestamp_s: NDArray, item_id: NDArray
) -> EventLog:
    """The log of a table sorted by user and time."""
    examined = _flags(path, table, "examined", 1) if "examined" in table else np.ones(len(table), dtype=bool)
    behaviours = _behaviours(path, table, examined)
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
    fields, extra = ([str(c) for c in table if str(c).startswith(kind)] for kind in (PROFILE_PREFIX, EXTRA_PREFIX))
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
        extra={name.removeprefix(EXTRA_PREFIX): numbers(path, table, name, 0) for name in extra},
    )


def _behaviours(path: object, table: pd.DataFrame, examined: BoolArray) -> NDArray[np.uint8]:
    """Behaviours [rows, B]: the columns' own, those of the ratings, or a click on all that was looked at."""
    present = [name for name in BEHAVIOURS if name in table]
    if "rating" in table:
        if present:
            raise ValueError(
                f"{path}: has rating and {', '.join(present)}, which say the same; leave one out: --columns rating=-."
            )
        return rated_behaviours(_ratings(path, table, examined), len(table)) * examined[:, None]
    behaviours = np.zeros((len(table), len(BEHAVIOURS)), dtype=np.uint8)
    for name in present or ["click"]:
        done = _flags(path, table, name, 0) if present else examined
        refuse(path, table, name, done & ~examined, "is 1 where examined is 0", "set examined to 1 there")
        behaviours[:, BEHAVIOURS.index(name)] = done
    return behaviours


def _ratings(path: object, table: pd.DataFrame, examined: BoolArray) -> NDArray[np.float64]:
    """Ratings on a scale that ends at 5."""
    rating = numbers(path, table, "rating")
    remedy = "make columns of 0 and 1 of it and map them, or leave it out: --columns rating=-"
    bad = examined & ~((rating >= 0) & (rating <= 5))
    refuse(path, table, "rating", bad, "is empty or outside 0 to 5", remedy)
    if rating.max(initial=0, where=examined) <= 1:
        raise ValueError(f"{path}: column 'rating' is never above 1, so it is no scale to 5; {remedy}.")
    return rating


def _catalog(
    path: object,
    items: object,
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


def _durations(path: object, item_facts: pd.DataFrame, table: pd.DataFrame, item_id: NDArray, count: int) -> FloatArray:
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
    items: object,
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
