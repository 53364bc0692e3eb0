"""Stores event logs and catalogues as parquet, batches as safetensors. Nothing is pickled; writes are atomic.

``docs/data.md`` describes the columns. A bad file is refused with one line that names the file, the column, the first
bad row and the remedy.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feedgym.data.arrow import arrow_of, numpy_of, words_of
from feedgym.data.batches import TensorRows
from feedgym.data.events import BEHAVIOURS, BoolArray, Catalog, Event, EventLog

EVENT_NAMES = tuple(event.name.lower() for event in Event)
PROFILE_PREFIX, EXTRA_PREFIX = "profile_", "extra_"

_is_number: Callable[[pa.DataType], bool] = lambda t: pa.types.is_floating(t) or pa.types.is_integer(t)  # noqa: E731
_is_flag: Callable[[pa.DataType], bool] = lambda t: pa.types.is_boolean(t) or pa.types.is_integer(t)  # noqa: E731
_is_text: Callable[[pa.DataType], bool] = lambda t: pa.types.is_string(t) or pa.types.is_large_string(t)  # noqa: E731
_is_id: Callable[[pa.DataType], bool] = lambda t: pa.types.is_integer(t) or _is_text(t)  # noqa: E731

LOG_COLUMNS: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "user_id": ("integer or string", _is_id),
    "timestamp_s": ("number", _is_number),
    "event": ("string", _is_text),
    "session_id": ("integer", pa.types.is_integer),
    "position": ("integer", pa.types.is_integer),
    "item_id": ("integer", pa.types.is_integer),
    "watch_s": ("number", _is_number),
    "examined": ("bool or 0/1", _is_flag),
    **{name: ("bool or 0/1", _is_flag) for name in BEHAVIOURS},
    "propensity": ("number", _is_number),
}
CATALOG_COLUMNS: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "raw_id": ("integer or string", _is_id),
    "content": ("list of float32, all of one length", pa.types.is_fixed_size_list),
    "topic": ("integer", pa.types.is_integer),
    "duration_s": ("number", _is_number),
    "creator": ("integer", pa.types.is_integer),
    "upload_s": ("number", _is_number),
}

OTHER_FORMAT = "read another format with feedgym.data.table.read_table"

Choose = Callable[[NDArray], BoolArray]
"""Takes user ids and returns true for the users to read."""

BatchT = TypeVar("BatchT", bound=TensorRows)


def write_log(log: EventLog, path: str | Path) -> None:
    """Writes an event log as one zstd parquet file, one row per event, in the log's order.

    Args:
        log: the log; every user's stream holds exactly one profile event, and user ids are unique.
        path: the file, replaced if it exists.

    Raises:
        ValueError: a user has no profile event or several, or two users share an id.
    """
    table = log_table(log)
    at = table.column_names.index("user_id")
    table = table.set_column(at, "user_id", table["user_id"].dictionary_encode())
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def log_table(log: EventLog) -> pa.Table:
    """An event log as an Arrow table, one row per event, in the log's order.

    Raises:
        ValueError: as for :func:`write_log`.
    """
    user = np.repeat(np.arange(log.num_users), np.diff(log.offsets_U1))
    profiles = np.bincount(user[log.event == Event.PROFILE], minlength=log.num_users)
    if (profiles != 1).any():
        first = int(np.argmax(profiles != 1))
        raise ValueError(
            f"User {log.user_ids_U[first]!r} has {profiles[first]} profile events; every user's stream must hold "
            f"exactly one, because the file keeps the profile there."
        )
    ids, counts = np.unique(log.user_ids_U, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"User id {ids[np.argmax(counts)]!r} belongs to {counts.max()} users; give each its own id.")
    sizes = dict(zip(log.profile_names, log.profile_sizes, strict=True))
    metadata = {"feedgym_profile_sizes": json.dumps(sizes), "feedgym_has_time": json.dumps(log.has_time)}
    return pa.table(_log_columns(log, user)).replace_schema_metadata(metadata)


def _log_columns(log: EventLog, user: NDArray) -> dict[str, pa.Array]:
    """The columns of the file; ``user`` is the row of each event's user."""
    columns: dict[str, Any] = {
        "user_id": arrow_of(log.user_ids_U).take(arrow_of(user)),
        "timestamp_s": log.timestamp_s,
        "event": pa.DictionaryArray.from_arrays(arrow_of(log.event), words_of(EVENT_NAMES)),
        "session_id": log.session_id,
        "position": log.position,
        "item_id": log.item_id,
        "watch_s": log.watch_s,
        "examined": log.examined,
    }
    columns |= {name: log.behaviours[:, b].astype(bool) for b, name in enumerate(BEHAVIOURS)}
    columns["propensity"] = log.propensity
    columns |= {EXTRA_PREFIX + name: values for name, values in log.extra.items()}
    arrays = {name: arrow_of(v) if isinstance(v, np.ndarray) else v for name, v in columns.items()}
    for f, name in enumerate(log.profile_names):
        arrays[PROFILE_PREFIX + name] = arrow_of(log.profile_UF[user, f], log.event == Event.PROFILE)
    return arrays


def read_log(path: str | Path, catalog: Catalog | None = None, choose: Choose | None = None) -> EventLog:
    """Reads an event log and checks it.

    Args:
        path: a parquet file with the columns of ``docs/data.md``. Rows may be in any order; unsorted ones are sorted by
            user (first seen first) and time.
        catalog: when given, every item id must be one of its rows.
        choose: the users to read; the rows of others are dropped, unchecked, while the file is read.

    Raises:
        ValueError: the file is missing, empty, or breaks the format; one line naming file, column, row and remedy; or
            no user is chosen.
    """
    return log_of_table(path, _read_table(path, LOG_COLUMNS, OTHER_FORMAT, choose), catalog)


def log_of_table(path: str | Path, table: pa.Table, catalog: Catalog | None) -> EventLog:
    """Checks a table with the columns of a log, and turns it into one.

    Args:
        path: the file, for messages.
        table: the columns of ``docs/data.md``.
        catalog: as for :func:`read_log`.

    Raises:
        ValueError: as for :func:`read_log`.
    """
    event = _event_codes(path, table)
    columns = {name: _column(path, table, name) for name in LOG_COLUMNS if name not in ("user_id", "event")}
    _check_values(path, event, columns, catalog)
    ids = table["user_id"].combine_chunks().dictionary_encode()
    if ids.null_count:
        _fail(path, "user_id", np.asarray(ids.is_null()), "is empty", "give every event its user")
    user = numpy_of(ids.indices).astype(np.int64)
    order = _sorted_order(user, event, columns)
    profile_row_U = _profile_rows(path, user, event, ids.dictionary)
    names, sizes, profile_UF = _profiles(path, table, profile_row_U)
    return EventLog(
        user_ids_U=_id_array(ids.dictionary),
        offsets_U1=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(ids.dictionary)))]).astype(np.int64),
        profile_UF=profile_UF,
        profile_names=names,
        profile_sizes=sizes,
        timestamp_s=columns["timestamp_s"][order].astype(np.float64),
        event=event[order],
        session_id=columns["session_id"][order].astype(np.int32),
        position=columns["position"][order].astype(np.int16),
        item_id=columns["item_id"][order].astype(np.int32),
        watch_s=columns["watch_s"][order].astype(np.float32),
        examined=columns["examined"][order].astype(bool),
        behaviours=np.stack([columns[name][order].astype(np.uint8) for name in BEHAVIOURS], axis=1),
        propensity=columns["propensity"][order].astype(np.float32),
        extra=_extra(path, table, order),
        has_time=json.loads((table.schema.metadata or {}).get(b"feedgym_has_time", b"true")),
    )


def _extra(path: str | Path, table: pa.Table, order: NDArray) -> dict[str, NDArray[np.float32]]:
    """Further feedback, in columns that begin with ``extra_``."""
    names = [name for name in table.column_names if name.startswith(EXTRA_PREFIX)]
    for name in names:
        if not _is_number(table[name].type):
            raise ValueError(f"{path}: column {name!r} is {table[name].type} and must be number; convert it.")
    return {n.removeprefix(EXTRA_PREFIX): _column(path, table, n)[order].astype(np.float32) for n in names}


def write_catalog(catalog: Catalog, path: str | Path) -> None:
    """Writes a catalogue as one zstd parquet file, one row per item; row i is item id i."""
    width = catalog.content_IE.shape[1]
    content = arrow_of(np.ascontiguousarray(catalog.content_IE).reshape(-1))
    columns = {
        "raw_id": arrow_of(catalog.raw_ids_I),
        "content": pa.FixedSizeListArray.from_arrays(content, width),
        "topic": arrow_of(catalog.topic_I),
        "duration_s": arrow_of(catalog.duration_s_I),
        "creator": arrow_of(catalog.creator_I),
        "upload_s": arrow_of(catalog.upload_s_I),
    }
    if catalog.text_I is not None:
        columns["text"] = pa.array(catalog.text_I.tolist(), pa.string())
    if catalog.withdraw_s_I is not None:
        columns["withdraw_s"] = arrow_of(catalog.withdraw_s_I)
    table = pa.table(columns).replace_schema_metadata({"feedgym_content_from": catalog.content_from})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_catalog(path: str | Path) -> Catalog:
    """Reads a catalogue and checks it.

    Raises:
        ValueError: the file is missing, empty, or breaks the format; one line naming file, column, row and remedy.
    """
    table = _read_table(path, CATALOG_COLUMNS, OTHER_FORMAT)
    columns = {name: _column(path, table, name) for name in ("topic", "duration_s", "creator", "upload_s")}
    content = table["content"].combine_chunks()
    if content.null_count:
        _fail(path, "content", np.asarray(content.is_null()), "is empty", "give every item an embedding")
    content_IE = numpy_of(content.flatten()).astype(np.float32).reshape(table.num_rows, -1)
    broken_I = np.asarray(~np.isfinite(content_IE).all(axis=1))
    _refuse(path, "content", broken_I, "has NaN or infinite values", "drop or impute the item")
    _refuse(path, "duration_s", ~(columns["duration_s"] > 0), "is not above 0", "write the item's length in seconds")
    return Catalog(
        raw_ids_I=_id_array(table["raw_id"].combine_chunks()),
        content_IE=content_IE,
        topic_I=columns["topic"].astype(np.int32),
        duration_s_I=columns["duration_s"].astype(np.float32),
        creator_I=columns["creator"].astype(np.int64),
        upload_s_I=columns["upload_s"].astype(np.float64),
        text_I=_texts(path, table) if "text" in table.column_names else None,
        content_from=(table.schema.metadata or {}).get(b"feedgym_content_from", b"").decode(),
        withdraw_s_I=_withdrawals(path, table) if "withdraw_s" in table.column_names else None,
    )


def _withdrawals(path: str | Path, table: pa.Table) -> NDArray[np.float64]:
    if not _is_number(table["withdraw_s"].type):
        raise ValueError(f"{path}: column 'withdraw_s' is {table['withdraw_s'].type} and must be number; convert it.")
    return _column(path, table, "withdraw_s").astype(np.float64)


def _texts(path: str | Path, table: pa.Table) -> NDArray:
    """Texts as an array of objects; with a fixed width every text would take the space of the longest."""
    if not _is_text(table["text"].type):
        raise ValueError(f"{path}: column 'text' is {table['text'].type} and must be string; convert it.")
    texts = np.empty(table.num_rows, dtype=object)
    texts[:] = table["text"].fill_null("").to_pylist()
    return texts


def write_batch(batch: TensorRows, path: str | Path) -> None:
    """Writes a batch of tensors (histories, sessions, preferences) as safetensors, without the fields that are None."""
    import torch
    from safetensors.torch import save_file

    columns = ((f.name, getattr(batch, f.name)) for f in fields(batch))  # type: ignore[arg-type]
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {n: v.detach().cpu().clone(memory_format=torch.contiguous_format) for n, v in columns if v is not None}
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def read_batch(cls: type[BatchT], path: str | Path) -> BatchT:
    """Reads a batch of class ``cls`` written by :func:`write_batch`.

    Raises:
        ValueError: the file is missing, is not a safetensors file, or lacks a field of ``cls``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _must_exist(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); write it with write_batch.") from error
    required = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
    if missing := sorted(required - set(tensors)):
        raise ValueError(f"{path}: {cls.__name__} needs {missing}, the file has {sorted(tensors)}; check the path.")
    return cls(**tensors)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file that replaces ``path`` when the block succeeds, so that readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def _must_exist(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; check the path.")


def _fail(path: str | Path, column: str, bad: NDArray, what: str, remedy: str) -> NoReturn:
    rows = np.flatnonzero(bad)
    raise ValueError(f"{path}: column {column!r} {what} in {len(rows)} row(s), first row {rows[0]}; {remedy}.")


def _refuse(path: str | Path, column: str, bad: NDArray, what: str, remedy: str) -> None:
    if bad.any():
        _fail(path, column, bad, what, remedy)


def _read_table(path: str | Path, expected: dict, remedy: str, choose: Choose | None = None) -> pa.Table:
    """Reads a file as a table, see :func:`checked_columns`; only rows of users that ``choose`` takes, if given."""
    _must_exist(path)
    try:
        with pq.ParquetFile(path, memory_map=False) as file:  # pq.read_table would import pandas
            table = file.read() if choose is None else _rows_of(path, file, choose)
        table.validate(full=True)  # damaged pages decode to text that is not UTF-8 or offsets out of bounds
    except (pa.ArrowException, OSError) as error:  # thrift and the decompressors raise OSErrors
        raise ValueError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); {remedy}.") from error
    return checked_columns(path, table, expected, remedy)


def _rows_of(path: str | Path, file: pq.ParquetFile, choose: Choose) -> pa.Table:
    """The rows of the chosen users, filtered batch by batch."""
    if "user_id" not in file.schema_arrow.names:  # a later check names the missing columns
        return file.read()
    ids = _chosen_ids(path, file.read(columns=["user_id"])["user_id"], choose)
    batches = (batch.filter(pc.is_in(_plain(batch["user_id"]), value_set=ids)) for batch in file.iter_batches())
    return pa.Table.from_batches(batches, file.schema_arrow)


def _chosen_ids(path: str | Path, column: pa.ChunkedArray, choose: Choose) -> pa.Array:
    """Returns the distinct ids of a column that are chosen.

    Raises:
        ValueError: none is chosen.
    """
    ids = _plain(column).unique().drop_null()
    chosen = choose(numpy_of(ids))
    if not chosen.any():
        raise ValueError(f"{path}: none of {len(ids)} users falls into that share; raise it.")
    return ids.filter(arrow_of(chosen))


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def checked_columns(path: str | Path, table: pa.Table, expected: dict, remedy: str) -> pa.Table:
    """A table whose expected columns exist and have the right type, without dictionaries.

    Raises:
        ValueError: a column is missing or of another type, or there is no row.
    """
    for name, (kind, is_kind) in expected.items():
        if name not in table.column_names:
            raise ValueError(f"{path}: column {name!r} is missing (it has {table.column_names}); add it, or {remedy}.")
        type_ = table[name].type
        if pa.types.is_dictionary(type_):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(type_.value_type))
            type_ = type_.value_type
        if not is_kind(type_):
            raise ValueError(f"{path}: column {name!r} is {type_} and must be {kind}; convert it.")
    if not table.num_rows:
        raise ValueError(f"{path}: the file has no rows; write at least one before reading it.")
    return table


def _column(path: str | Path, table: pa.Table, name: str) -> NDArray:
    column = table[name].combine_chunks()
    if column.null_count:
        _fail(path, name, np.asarray(column.is_null()), "is empty", "fill it (-1 for no item, NaN for no propensity)")
    return numpy_of(column)


def _event_codes(path: str | Path, table: pa.Table) -> NDArray[np.int8]:
    codes = pc.index_in(table["event"].combine_chunks(), value_set=words_of(EVENT_NAMES))
    event = numpy_of(codes, -1).astype(np.int8)
    unknown = event < 0
    if unknown.any():
        value = table["event"][int(np.argmax(unknown))].as_py()
        _fail(path, "event", unknown, f"has the unknown name {value!r}", f"use one of {', '.join(EVENT_NAMES)}")
    return event


def _check_values(path: str | Path, event: NDArray, columns: dict[str, NDArray], catalog: Catalog | None) -> None:
    watch_s, item_id, is_item = columns["watch_s"], columns["item_id"], event == Event.IMPRESSION
    _refuse(path, "timestamp_s", ~np.isfinite(columns["timestamp_s"]), "is NaN or infinite", "drop those events")
    _refuse(path, "watch_s", ~np.isfinite(watch_s), "is NaN or infinite", "write 0 where nothing was watched")
    _refuse(path, "watch_s", watch_s < 0, "is negative", "write seconds, 0 where nothing was watched")
    beyond = columns["session_id"].astype(np.int32) != columns["session_id"]
    _refuse(path, "session_id", beyond, "is too large for 32 bits", "number each user's visits from 0")
    for name in ("examined", *BEHAVIOURS):
        values = columns[name]
        _refuse(path, name, (values != 0) & (values != 1), "is neither 0 nor 1", "write a bool or 0/1")
    _refuse(path, "item_id", is_item & (item_id < 0), "is negative for an impression", "write the item's catalogue row")
    _refuse(path, "item_id", ~is_item & (item_id != -1), "is set on no impression", "write -1 there")
    if catalog is not None:
        limit = catalog.num_items
        _refuse(path, "item_id", item_id >= limit, f"is outside the catalogue of {limit} items", "add the items to it")


def _sorted_order(user: NDArray, event: NDArray, columns: dict[str, NDArray]) -> NDArray:
    """Sorts rows by user and time. A file already in order keeps the order of its simultaneous events."""
    time_s = columns["timestamp_s"]
    step = np.diff(user)
    if ((step > 0) | ((step == 0) & (np.diff(time_s) >= 0))).all():
        return np.arange(len(user))
    return np.lexsort((columns["position"], event, columns["session_id"], time_s, user))


def _profile_rows(path: str | Path, user: NDArray, event: NDArray, ids: pa.Array) -> NDArray:
    """The row of every user's profile event."""
    rows = np.flatnonzero(event == Event.PROFILE)
    counts = np.bincount(user[rows], minlength=len(ids))
    if (counts != 1).any():
        bad = int(np.argmax(counts != 1))
        _fail(
            path, "event", user == bad, f"has {counts[bad]} profile events for user {ids[bad].as_py()!r}", "write one"
        )
    profile_row_U = np.empty(len(ids), dtype=np.int64)
    profile_row_U[user[rows]] = rows
    return profile_row_U


def _profiles(
    path: str | Path, table: pa.Table, row_U: NDArray
) -> tuple[tuple[str, ...], tuple[int, ...], NDArray[np.int64]]:
    """Names, cardinalities and values of the profile fields."""
    columns = [name for name in table.column_names if name.startswith(PROFILE_PREFIX)]
    declared = json.loads((table.schema.metadata or {}).get(b"feedgym_profile_sizes", b"{}"))
    names = tuple(column.removeprefix(PROFILE_PREFIX) for column in columns)
    profile_UF, sizes = np.zeros((len(row_U), len(names)), dtype=np.int64), []
    for f, (name, column) in enumerate(zip(names, columns, strict=True)):
        if not pa.types.is_integer(table[column].type):
            raise ValueError(
                f"{path}: column {column!r} is {table[column].type} and must be integer; encode it 0, 1, ..."
            )
        at_profile = np.zeros(table.num_rows, dtype=bool)
        at_profile[row_U] = True
        null = numpy_of(table[column].is_null().combine_chunks()).astype(bool) & at_profile
        _refuse(path, column, null, "is empty on a profile event", "write the user's value there")
        values = numpy_of(table[column].combine_chunks(), 0)
        size = int(declared.get(name, values[row_U].max() + 1))
        bad = at_profile & ((values < 0) | (values >= size))
        _refuse(path, column, bad, f"is outside 0..{size - 1}", "encode the field 0, 1, ... below its size")
        profile_UF[:, f] = values[row_U]
        sizes.append(size)
    return names, tuple(sizes), profile_UF


def _id_array(ids: pa.Array) -> NDArray:
    """Ids as int64 or as fixed-width strings."""
    return numpy_of(ids).astype(np.int64 if pa.types.is_integer(ids.type) else np.str_)
