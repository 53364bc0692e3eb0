"""Logs of the outside world: public data sets, feedgym's own folders, or any table of events with a map of its columns.

``find_data`` tells what stands at a path, by the files it finds, and ``load_data`` reads it. For example
``log, catalog = load_data("views.csv", {"user_id": "visitor", "item_id": "video", "timestamp": "ts"})``.
"""

from __future__ import annotations

import logging
import re
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
from feedgym.data.parquet import PROFILE_PREFIX, read_catalog, read_log
from feedgym.data.public.amazon import META, find_amazon
from feedgym.data.public.files import RawFile, numbers, plain, raw_files, refuse
from feedgym.data.public.interactions import (
    CONTENT_WIDTH,
    ReadOptions,
    Source,
    content_of,
    joined,
    k_core,
    keeps_clock,
    plain_ids,
    read_ids,
    texts_of,
    time_order,
)
from feedgym.data.public.kuairand import (
    EARLIER,
    EARLIER_RULE,
    RANDOM_PATTERN,
    RANDOM_RULE,
    is_kuairand,
    kuairand_files,
    read_kuairand,
)
from feedgym.data.public.lists import find_recbole, find_sequences
from feedgym.data.public.movielens import find_movielens
from feedgym.data.splits import take_users
from feedgym.data.times import log_seconds

__all__ = ["ReadOptions", "column_pair", "find_data", "load_data", "read_kuairand", "read_table"]

REQUIRED = ("user_id", "item_id")
IDS = (*REQUIRED, "session_id")
EVENT_COLUMNS = (
    *IDS,
    *("timestamp", "position", "watch_s", "duration_s", "examined", "propensity"),
    *BEHAVIOURS,
)
ITEM_COLUMNS = ("item_id", "duration_s", "topic", "creator", "upload_time", "text")
EMBEDDING_PREFIX = "embedding_"
BESIDE = re.compile(
    rf"{META.pattern}|datamaps\.json|sas_to_original_.*\.txt|(movies|users)\.(dat|csv)|u\.(item|user)|.*\.(item|user)"
)
"""Files that belong to another one; they are looked for where a single file is named."""


def load_data(
    path: str | Path,
    column_map: Mapping[str, str] | None = None,
    items: str | Path | None = None,
    options: ReadOptions | None = None,
) -> tuple[EventLog, Catalog]:
    """Reads whatever stands at ``path``; what that is goes to the log of the program, by the logger ``feedgym.data``.

    So do warnings, where columns are not read that look as if they should be.

    Args:
        path: see :func:`find_data`.
        column_map: feedgym's column name to the table's, see :func:`read_table`; for tables only.
        items: the items of a table or of lists.
        options: order of ties, k-core, embeddings of texts.

    Raises:
        ValueError: nothing readable stands there, or the data break their format.
    """
    source = find_data(path, column_map, items)
    log, catalog = source.read(options or ReadOptions())
    said = (source.name, *source.says, f"content: {catalog.content_from or 'of unknown origin'}")
    logger = logging.getLogger("feedgym.data")
    logger.info("%s: %s", path, "; ".join(said))
    for line in source.warns:
        logger.warning("%s", line)
    return log, catalog


def column_pair(text: str) -> tuple[str, str]:
    """``NAME=COLUMN``, as the command line takes a column map, as a pair.

    Raises:
        ValueError: there is no "=".
    """
    name, found, column = text.partition("=")
    if not found or not name or not column:
        raise ValueError(f"--columns got {text!r}; write NAME=COLUMN, e.g. user_id=uid.")
    return name, column


def find_data(path: str | Path, column_map: Mapping[str, str] | None = None, items: str | Path | None = None) -> Source:
    """What stands at a path, and how it would be read.

    Args:
        path: a folder (or a zip) with the files of KuaiRand, MovieLens, Amazon's reviews, RecBole or lists of items, a
            folder with feedgym's ``events.parquet`` and ``catalog.parquet``, one such file, or a CSV or parquet table.
        column_map: names a table's columns, see :func:`read_table`; such a file is nothing but a table.
        items: the items of a table or of lists.

    Raises:
        ValueError: nothing readable stands there.
    """
    path, items = Path(path), None if items is None else Path(items)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path.")
    if found := None if column_map else _public(path, items):
        return found
    if path.is_dir() and (column_map or items):
        raise ValueError(f"{path}: is a folder, but column_map and items describe a single table; give its file.")
    if path.is_file():
        return _of_table(path, column_map or {}, items)
    raise ValueError(
        f"{path}: holds no files that feedgym knows (KuaiRand's log_standard_*; MovieLens's u.data, ratings.dat or "
        f"ratings.csv; Amazon's reviews; RecBole's *.inter; lists of items *.txt; events.parquet and catalog.parquet); "
        f"give the folder that does, or a table's file with a column map."
    )


def _public(path: Path, items: Path | None) -> Source | None:
    """A data set that is known by its files, or None."""
    if items is None and is_kuairand(path):
        says = ["every exposure was examined"]
        says += [RANDOM_RULE] if any(path.glob(RANDOM_PATTERN)) else []
        says += [EARLIER_RULE] if (path / EARLIER).exists() else []
        parts = tuple(RawFile(p) for p in kuairand_files(path))
        return Source(
            name="KuaiRand", files=parts, says=tuple(says), read=lambda options: read_kuairand(path, options=options)
        )
    if items is None and path.is_dir() and (path / "events.parquet").exists():
        return _own(path)
    files = raw_files(path)
    if path.is_file() and path.suffix != ".zip":
        files = {name: file for name, file in raw_files(path.parent).items() if BESIDE.fullmatch(name)} | files
    if items is None:
        return find_movielens(files) or find_recbole(files) or find_amazon(files) or find_sequences(files)
    return find_sequences(files, lambda: _words_of(items))


def _of_table(path: Path, column_map: Mapping[str, str], items: Path | None) -> Source:
    header = _header(path)
    taken = {column: column for column in header if _is_of_event(column)}
    taken |= {name: column for name, column in column_map.items() if _is_of_event(name)}
    says, warns = unread(path.name, header, taken)
    if "position" in taken and "timestamp" not in taken:
        warns.append(
            f"{path.name}: positions are not read without timestamp: the order of the rows stands; map it too."
        )
    if items is not None and (left := _unread_of_items(_header(items), column_map)):
        says.append(f"{items.name}: columns that are not read beside texts or embeddings: {', '.join(left)}")
    return Source(
        name="a table of events",
        files=(RawFile(path), *((RawFile(items),) if items else ())),
        says=tuple(says),
        warns=tuple(warns),
        read=lambda options: read_table(path, column_map, items, options),
    )


def _unread_of_items(header: list[str], column_map: Mapping[str, str]) -> list[str]:
    """The columns of an items' table that nothing is made of: where embeddings or texts are given, the others."""
    taken = {column: column for column in header if _is_of_item(column)}
    taken |= {name: column for name, column in column_map.items() if _is_of_item(name)}
    if "text" not in taken and not any(name.startswith(EMBEDDING_PREFIX) for name in taken):
        return []
    return [column for column in header if column not in taken.values()]


def _own(folder: Path) -> Source:
    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        if options.core > 1:
            raise ValueError(
                f"{folder}: feedgym's own logs are read as they are, and core is {options.core}; leave it 1."
            )
        keeps_clock(folder, "feedgym's own logs are read as they are", options)
        catalog = read_catalog(folder / "catalog.parquet")
        log = read_log(folder / "events.parquet", catalog)
        chosen_U = options.chosen(pd.Series(log.user_ids_U))
        if not chosen_U.any():
            raise ValueError(
                f"{folder}: none of {log.num_users} users is among a share of {options.users:g}; raise it."
            )
        return take_users(log, chosen_U), catalog

    files = tuple(RawFile(folder / name) for name in ("events.parquet", "catalog.parquet"))
    return Source(name="feedgym's own log", files=files, says=(), read=read)


def _words_of(items: Path) -> pd.DataFrame:
    """An items' table for lists: without a column ``text`` all its columns of words are the text."""
    table = _renamed(items, _table(items, ("item_id",)), {}, ("item_id",))
    if "text" not in table:
        words = table.drop(columns=["item_id", "topic", "creator"], errors="ignore").select_dtypes(exclude="number")
        table["text"] = joined(words, ". ")
    return table[[name for name in ("item_id", "text", "topic", "creator") if name in table]]


def read_table(
    path: str | Path,
    column_map: Mapping[str, str],
    items: str | Path | None = None,
    options: ReadOptions | None = None,
) -> tuple[EventLog, Catalog]:
    """Reads any table with one row an exposure (or an interaction).

    feedgym's names, which ``column_map`` maps to the file's (a name that is left out stands for itself):

    - ``user_id`` and ``item_id``, the only ones a file must have;
    - ``timestamp``: seconds, milli-, micro- or nanoseconds since 1970 (told by their size), ISO text or datetimes; see
      :mod:`feedgym.data.times` for zones. A file without it is in time order already, and counts as one event a second;
    - ``session_id``: where it changes, a visit ends. Without it visits end at pauses of half an hour. Rows of a user
      at one time are shuffled, see :class:`ReadOptions`, unless they share a session: then the file's order is theirs;
    - ``position``: place in the slate, a number: the order of rows of a user (and session) at one time;
    - ``watch_s``, ``duration_s`` (of the item), ``examined`` (0/1, and 0 only where no behaviour is 1), ``propensity``;
    - the behaviours, 0/1. Without any of them every examined row is a click;
    - ``profile_<name>``: profile fields, taken from the user's first row.

    ``items`` is a table with ``item_id`` and, where known, ``duration_s``, ``topic``, ``creator``, ``upload_time`` and
    ``text``. Columns ``embedding_*`` are the content embeddings; without them the texts are made into embeddings, else
    the other columns, numbers and categories, and where those tell nothing apart, or without ``items``, the
    co-occurrence of items in the earlier four fifths of the log, without each user's last two events.

    Ids of CSV files are read as text: "007" and "7" are two. Where all are plain integers, they become integers.

    Args:
        path: CSV (also compressed), TSV or parquet.
        column_map: feedgym's name to the file's.
        items: the items' table; its columns are mapped too.
        options: order of ties, k-core, embeddings of texts.

    Returns:
        The log and the catalogue.

    Raises:
        ValueError: a column is missing, unknown or unreadable, an item is unknown, or nothing is there; one line.
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


def _header(path: Path) -> list[str]:
    """The names of a table's columns."""
    with _reading(path):
        if path.suffix == ".parquet":
            return [str(name) for name in parquet_schema(path).names]
        return [str(name) for name in pd.read_csv(path, sep=_separator(path), nrows=0, index_col=False)]


def _table(path: Path, ids: tuple[str, ...] = ()) -> pd.DataFrame:
    """A file's table; the columns ``ids`` are read as text from a CSV, where "007" and "7" are two."""
    with _reading(path):
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:
            with warnings.catch_warnings():
                # Of rows longer than the header pandas would shift the columns, or drop the last ones and warn.
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
    """Whatever a parser finds wrong with a file, in one line that names it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; check the path.")
    try:
        yield
    except Exception as error:  # parsers and decompressors each raise errors of their own
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
    """Refuses names feedgym does not know and columns that the file they belong to does not have."""
    known = sorted({*EVENT_COLUMNS, *ITEM_COLUMNS})
    for name, column in column_map.items():
        of_event, of_item = _is_of_event(name), _is_of_item(name)
        if not of_event and not of_item:
            raise ValueError(f"column_map names {name!r}, which feedgym does not know; use {', '.join(known)}.")
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
    """The table under feedgym's names; the file's own columns of those names give way."""
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
    refuse(path, table, "item_id", table["item_id"].duplicated(), "repeats an item", "keep one row an item")
    for name in (str(c) for c in table if str(c).startswith(EMBEDDING_PREFIX)):
        refuse(path, table, name, np.isnan(numbers(path, table, name)), "is NaN", "drop or impute those items")
    names = {"item_id", "topic", "creator", "text"}
    numeric = {*table.select_dtypes("number"), "duration_s"} & {*table.columns} - names
    return table.assign(**{str(name): numbers(path, table, str(name)) for name in numeric})


def _item_ids(path: Path, table: pd.DataFrame, item_table: pd.DataFrame | None) -> tuple[NDArray, NDArray[np.int64]]:
    """Raw ids of the catalogue and each event's row in it; without an items' table, the items that occur, sorted."""
    if item_table is None:
        codes, ids = pd.factorize(table["item_id"], sort=True)
        return plain_ids(ids), codes
    known, asked = item_table["item_id"], table["item_id"]
    if pd.api.types.is_integer_dtype(known) != pd.api.types.is_integer_dtype(asked):  # 7 and "7" are one item
        known, asked = known.astype(str), asked.astype(str)
    codes = pd.Index(known).get_indexer(pd.Index(asked))
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
    """Seconds; where the file has no times, the order of its rows."""
    if "timestamp" not in table:
        keeps_clock(path, "has no timestamp", options)
        return np.arange(len(table), dtype=np.float64)
    seconds = log_seconds(path, table, "timestamp", options.utc_offset, user_idx)
    bad = ~np.isfinite(seconds)
    refuse(path, table, "timestamp", bad, "is empty or no time", "write seconds or ISO times, or drop those rows")
    return seconds


def _positions(path: Path, table: pd.DataFrame) -> NDArray[np.float64] | None:
    """Places in slates; without times the order of the file's rows is the order, and they say nothing."""
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
    known = pd.DataFrame(index=range(count)) if item_table is None else item_table.reset_index(drop=True)
    topic_I = pd.factorize(known["topic"], sort=True)[0] if "topic" in known else np.full(count, -1)
    creator_I = pd.factorize(known["creator"], sort=True)[0] if "creator" in known else np.full(count, -1)
    upload_s_I = np.full(count, np.nan)
    if "upload_time" in known:
        upload_s_I = log_seconds(items, known, "upload_time", options.utc_offset)
    text_I = texts_of(known["text"]) if "text" in known else None
    content_IE, content_from = _content(items, known, text_I, log, count, options)
    return Catalog(
        raw_ids_I=raw_ids_I,
        content_IE=content_IE,
        topic_I=topic_I.astype(np.int32),
        duration_s_I=_durations(path, known, table, item_id, count),
        creator_I=creator_I.astype(np.int64),
        upload_s_I=np.where(np.isfinite(upload_s_I), upload_s_I, log.timestamp_s.min()),
        text_I=text_I,
        content_from=content_from,
    )


def _durations(path: Path, known: pd.DataFrame, table: pd.DataFrame, item_id: NDArray, count: int) -> FloatArray:
    """Lengths from the items' table, else from the events (the item's longest); the median where unknown, else 1 s."""
    if "duration_s" in known:
        seconds = known["duration_s"]
    elif "duration_s" in table:
        seconds = pd.Series(numbers(path, table, "duration_s")).groupby(item_id).max().reindex(range(count))
    elif "watch_s" in table:
        raise ValueError(f"{path}: has watch_s but no duration_s, so no watched share; map duration_s in log or items.")
    else:
        seconds = pd.Series(np.ones(count))
    seconds = seconds.where(seconds > 0)
    return seconds.fillna(seconds.median()).fillna(1.0).to_numpy(dtype=np.float32)


def _content(
    items: Path | None, known: pd.DataFrame, text_I: NDArray | None, log: EventLog, count: int, options: ReadOptions
) -> tuple[FloatArray, str]:
    """Content embeddings: given, or made of texts, of the items' other columns, or of the log, and which it was."""
    given = [c for c in known if str(c).startswith(EMBEDDING_PREFIX)]
    if given:
        return known[given].to_numpy(dtype=np.float32), f"columns {EMBEDDING_PREFIX}*"
    if text_I is not None and options.text != "off":
        return content_of(text_I, log, count, options)
    features = known.drop(columns=["item_id", "upload_time", "text"], errors="ignore")
    plain(items, features, features)
    numeric = features.select_dtypes("number").columns.difference(["topic", "creator"])
    numbers_IX = features[numeric].fillna(features[numeric].median()).fillna(0).to_numpy(dtype=np.float64)
    words = pd.Series("", index=known.index)
    for name in features.columns.difference(numeric):
        value = features[name].astype("string").str.replace(r"\s+", "_", regex=True)
        words += (f" {name}=" + value).fillna("").astype(str)
    content_IE = attribute_embeddings(words, numbers_IX, CONTENT_WIDTH)
    # A single number (say, lengths alone) becomes a sign when rows get length 1, and titles are all different.
    if np.abs(content_IE[:, 1:]).max(initial=0) > 1e-6:
        return content_IE, "the items' columns"
    return content_of(None, log, count, options)
