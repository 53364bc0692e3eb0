"""Event logs in parts, for logs that are written while they are simulated and may be larger than memory.

A part holds all events of some users, one file per day::

    FOLDER/catalog.parquet
    FOLDER/events/parts.json                    number of parts; written last
    FOLDER/events/users=00003/day=00012.parquet

Users are divided by a hash of their id, the one that chooses a share of the users (``--users 0.05``) under seed 0. So
under seed 0 that share reads the first twentieth of the parts and nothing else. Under another seed all parts are read,
and other users' rows are dropped during reading. The files of a part are read as an Arrow data set, with only the
columns of a log. A log in parts and the same log in one file are equal when read, with users in the order of their ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from feedgym.data.arrow import arrow_of, numpy_of
from feedgym.data.events import DAY_S, Catalog, EventLog
from feedgym.data.parquet import (
    EXTRA_PREFIX,
    LOG_COLUMNS,
    OTHER_FORMAT,
    PROFILE_PREFIX,
    Choose,
    checked_columns,
    log_of_table,
    log_table,
    read_log,
    replacing,
    write_log,
)
from feedgym.data.splits import take_users, user_luck

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

ONE_FILE, FOLDER, COUNT = "events.parquet", "events", "parts.json"
PART_USERS = 4096
"""Approximate number of users per part; one part is in memory while a log is written or read."""
ONE_FILE_ROWS = 2_000_000
"""Most rows of a log that an experiment keeps in one file, which is written and read as a whole."""


def parts_for(num_users: int) -> int:
    """Number of parts of a log."""
    return -(-num_users // PART_USERS)


def part_of(user_ids_U: NDArray, num_parts: int) -> NDArray[np.int32]:
    """Returns the part of each user: parts are equal ranges of the hash that chooses users under seed 0."""
    blocks = np.array_split(user_ids_U, max(1, len(user_ids_U) // 2**18))  # the hash turns ids into text
    return np.concatenate([(user_luck(block, 0) * num_parts).astype(np.int32) for block in blocks])


def begin_parts(folder: Path) -> None:
    """Makes the folder of a log in parts.

    Raises:
        ValueError: it holds a log already, or the parts of one that was not finished.
    """
    if (folder / ONE_FILE).exists() or (folder / FOLDER).exists():
        raise ValueError(f"{folder} holds a log already, or part of one; remove it or name another folder.")
    (folder / FOLDER).mkdir(parents=True)


def end_parts(folder: Path, num_parts: int) -> None:
    """Marks a log as complete: without this file, which is written last, its parts are not read."""
    with replacing(folder / FOLDER / COUNT) as temporary:
        temporary.write_text(json.dumps({"num_parts": num_parts}))


def write_part(log: EventLog, folder: Path, part: int) -> None:
    """Writes all events of a part's users, one file per day of the log's clock."""
    table, day = log_table(log), np.floor(log.timestamp_s / DAY_S).astype(np.int64)
    order = np.argsort(day, kind="stable")
    days, first = np.unique(day[order], return_index=True)
    for number, rows in zip(days.tolist(), np.split(order, first[1:]), strict=True):
        with replacing(folder / FOLDER / f"users={part:05d}" / f"day={number:05d}.parquet") as temporary:
            pq.write_table(table.take(arrow_of(rows)), temporary, compression="zstd")


def save_log(log: EventLog, folder: Path) -> None:
    """Writes a log to a folder: in one file, or in parts if it has more than ``ONE_FILE_ROWS`` rows."""
    if log.num_events <= ONE_FILE_ROWS:
        write_log(log, folder / ONE_FILE)
        return
    part_U = part_of(log.user_ids_U, num_parts := parts_for(log.num_users))
    begin_parts(folder)
    for part in np.unique(part_U).tolist():
        write_part(take_users(log, part_U == part), folder, part)
    end_parts(folder, num_parts)


def has_log(folder: Path) -> bool:
    """True if a folder holds a log in feedgym's format, in one file or in parts."""
    return (folder / ONE_FILE).exists() or (folder / FOLDER / COUNT).exists()


def log_files(folder: Path) -> list[Path]:
    """Lists the files of a log: its only file, or else the file with the number of parts and then those of days."""
    if (folder / ONE_FILE).exists():
        return [folder / ONE_FILE]
    return [folder / FOLDER / COUNT, *(file for _, files in _parts(folder) for file in files)]


def load_log(
    folder: Path, catalog: Catalog | None = None, choose: Choose | None = None, first_share: float = 1.0
) -> EventLog:
    """Reads a log from a folder, in one file or in parts, and checks it.

    Args:
        folder: holds ``events.parquet``, or ``events`` with parts.
        catalog: as for :func:`feedgym.data.parquet.read_log`.
        choose: the users to read; all if left out.
        first_share: parts beyond this share of the hash's range hold no chosen users and are not opened.

    Raises:
        ValueError: as for :func:`feedgym.data.parquet.read_log`; or no user is chosen.
    """
    if (folder / ONE_FILE).exists():
        return read_log(folder / ONE_FILE, catalog, choose)
    num_parts = _num_parts(folder)
    found = [_Part.of(files, choose) for part, files in _parts(folder) if part < first_share * num_parts]
    parts = [part for part in found if len(part.ids)]
    if not parts:
        raise ValueError(f"{folder}: none of the users is chosen; raise the share of users.")
    return _filled(parts, catalog)


def _num_parts(folder: Path) -> int:
    path = folder / FOLDER / COUNT
    try:
        return int(json.loads(path.read_text())["num_parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: does not give the number of parts ({error}); write the log again.") from error


def _parts(folder: Path) -> Iterator[tuple[int, list[Path]]]:
    """The parts by number, each with its files by day."""
    for path in sorted((folder / FOLDER).glob("users=*")):
        yield int(path.name.partition("=")[2]), sorted(path.glob("day=*.parquet"), key=_day_of)


def _day_of(path: Path) -> int:
    return int(path.stem.partition("=")[2])


@dataclass(frozen=True)
class _Part:
    """A part's files, and its chosen users in the order of their ids, with the rows of each."""

    files: list[Path]
    ids: NDArray
    sizes: NDArray[np.int64]
    is_whole: bool

    @classmethod
    def of(cls, files: list[Path], choose: Choose | None) -> _Part:
        """Reads only the users of a part."""
        with _whole(files[0].parent):
            users = numpy_of(_table(_dataset(files), ["user_id"])["user_id"].combine_chunks())
        ids, sizes = np.unique(users.astype(str) if users.dtype == object else users, return_counts=True)
        chosen = np.ones(len(ids), dtype=bool) if choose is None else choose(ids)
        return cls(files, ids[chosen], sizes[chosen], bool(chosen.all()))

    @property
    def name(self) -> Path:
        """The part's folder."""
        return self.files[0].parent

    def read(self, catalog: Catalog | None) -> EventLog:
        """The log of the chosen users."""
        from pyarrow.dataset import field

        chosen = None if self.is_whole else field("user_id").isin(pa.array(self.ids))
        with _whole(self.name):
            source = _dataset(self.files)
            table = _table(source, [name for name in source.schema.names if _is_read(name)], chosen)
            table.validate(full=True)
        table = table.replace_schema_metadata(source.schema.metadata)
        table = checked_columns(self.name, table, LOG_COLUMNS, OTHER_FORMAT)
        # Days come in order, and so do a user's rows of one day, so a stable sort restores the log's order.
        users = numpy_of(table["user_id"].combine_chunks())
        users = np.searchsorted(self.ids, users.astype(str) if users.dtype == object else users)
        table = table.take(arrow_of(np.argsort(users, kind="stable")))
        return log_of_table(self.name, table, catalog)


def _dataset(files: list[Path]) -> Dataset:
    """A part's files as an Arrow data set; made anew each time, because it keeps what it knows of its files."""
    import pyarrow.dataset as ds  # imports pandas, which a log in one file does not need

    return ds.dataset([str(file) for file in files], format="parquet")


def _table(source: Dataset, columns: list[str], chosen: Any = None) -> pa.Table:
    """The rows of a data set, read file by file: reading ahead would hold several of them decoded."""
    return source.to_table(columns=columns, filter=chosen, use_threads=False, fragment_readahead=1, batch_readahead=1)


@contextmanager
def _whole(part: Path) -> Iterator[None]:
    """Turns errors of a damaged file into one line."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{part}: not whole parquet files ({str(error).splitlines()[0]}); {OTHER_FORMAT}.") from error


def _is_read(name: str) -> bool:
    return name in LOG_COLUMNS or name.startswith((PROFILE_PREFIX, EXTRA_PREFIX))


def _filled(parts: list[_Part], catalog: Catalog | None) -> EventLog:
    """One log of the users of all parts, in the order of their ids."""
    # Columns have their full length from the start and are filled part by part, so that no row is held twice.
    ids, sizes = np.concatenate([part.ids for part in parts]), np.concatenate([part.sizes for part in parts])
    order_U = np.argsort(ids, kind="stable")
    offsets_U1 = np.append(0, np.cumsum(sizes[order_U])).astype(np.int64)
    begins_U = np.empty(len(ids), dtype=np.int64)
    begins_U[order_U] = offsets_U1[:-1]
    columns: dict[str, NDArray] = {}
    profiles = []
    for part, begins in zip(parts, np.split(begins_U, np.cumsum([len(p.ids) for p in parts])[:-1]), strict=True):
        log = part.read(catalog)
        place = np.arange(log.num_events) + np.repeat(begins - log.offsets_U1[:-1], part.sizes)
        found = _columns_of(log)
        if not columns:
            columns = {name: np.empty((offsets_U1[-1], *v.shape[1:]), v.dtype) for name, v in found.items()}
        if columns.keys() != found.keys():
            raise ValueError(f"{part.name}: has other columns than the parts before it; write the log again.")
        for name, values in found.items():
            columns[name][place] = values
        profiles.append(log.profile_UF)
        pa.default_memory_pool().release_unused()  # Arrow would keep a part's memory for itself
    extra = {name.removeprefix(EXTRA_PREFIX): columns.pop(name) for name in list(columns) if name[:6] == EXTRA_PREFIX}
    whole_log: Any = {**columns, "extra": extra, "user_ids_U": ids[order_U], "offsets_U1": offsets_U1}
    return replace(log, profile_UF=np.concatenate(profiles)[order_U], **whole_log)


def _columns_of(log: EventLog) -> dict[str, NDArray]:
    """Returns the columns with a row per event; extra feedback has the names that it has in files."""
    names = [f.name for f in fields(EventLog) if f.name not in ("user_ids_U", "offsets_U1", "profile_UF")]
    columns = {name: value for name in names if isinstance(value := getattr(log, name), np.ndarray)}
    return columns | {EXTRA_PREFIX + name: value for name, value in log.extra.items()}
