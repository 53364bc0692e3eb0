"""Yambda (Ploshkin et al., 2025), Yandex's music: ``listens.parquet``, ``likes.parquet``, or ``multi_event.parquet``.

Flat files have a row per event: ``uid, timestamp, item_id, is_organic``. Listens also have ``played_ratio_pct`` and
``track_length_seconds``, and ``multi_event.parquet`` has an ``event_type``. Sequential files have a row per user, with
lists of the same. Times are seconds from an unknown start, in steps of five.

Every listen is a click, and a ``long_view`` if half of the track or more was played, as in the authors' benchmark. A
like or dislike (``hate``) belongs to the user's last listen of the track in the half hour before it. Without one it is
a row of its own, without a click. ``is_organic`` is ``extra_organic``. Unlikes and undislikes are not read.

Files beside them, or up to two folders above, describe the tracks. ``embeddings.parquet`` gives the content (0 for
tracks without audio), and ``artist_item_mapping.parquet`` the creator (the first artist).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feedgym.data.build import VISIT_GAP_S
from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, need
from feedgym.data.sources import ReadOptions, Source

ALL, LISTENS = "multi_event.parquet", "listens.parquet"
MARKS = {"like": "likes.parquet", "hate": "dislikes.parquet"}
EVENT_TYPES = {"like": "like", "hate": "dislike"}
EMBEDDINGS, ARTISTS = "embeddings.parquet", "artist_item_mapping.parquet"
OWN = {"uid", "is_organic"}
"""Columns of every file of events, which tell them from other files of these names."""
PLURAL = {"item_ids": "item_id", "timestamps": "timestamp"}
"""Names of the sequential files in their description; the published code uses those of the flat files."""
HALF_PCT = 50
SAYS = (
    "every listen is a click, and a long_view if half of the track was played",
    "likes and dislikes belong to the last listen of the track in the half hour before, else they are rows themselves",
    "times are seconds from an unknown start, so times of day mean nothing",
    "unlikes and undislikes are not read",
)


def find_yambda(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds Yambda by its files' names and columns; None if it is not there.

    Raises:
        ValueError: the folder holds several sizes or forms of it.
    """
    main = _main(path)
    if main is None:
        return None
    marks = {} if main.name == ALL else {name: main.parent / file for name, file in MARKS.items()}
    marks = {name: file for name, file in marks.items() if file.is_file()}
    above = (main.parent, *main.parents[1:3])
    audio, artists = (next((f / name for f in above if (f / name).is_file()), None) for name in (EMBEDDINGS, ARTISTS))

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        from feedgym.data.table import log_of_rows

        listens, marked = _events(main, marks, options)
        rows = _with_marks(listens, marked)
        items = _items(rows["item_id"], audio, artists) if audio or artists else None
        return log_of_rows(main, rows, audio or artists, items, options)

    used = tuple(RawFile(file) for file in (main, *marks.values(), audio, artists) if file is not None)
    return Source(name="Yambda", files=used, says=SAYS, read=read)


def _main(path: Path) -> Path | None:
    """The file of listens: the given one, or that of the folder, of which there may be one below it."""
    if path.is_file():
        return path if path.name in (ALL, LISTENS) and _is_yambda(path) else None
    for pattern in ("", "*/", "*/*/"):
        found = sorted(file for name in (ALL, LISTENS) for file in path.glob(pattern + name) if _is_yambda(file))
        if len({file.parent for file in found}) > 1:
            names = ", ".join(sorted({str(file.parent.relative_to(path)) for file in found}))
            raise ValueError(f"{path}: holds several sizes or forms of Yambda ({names}); give one of these folders.")
        if found:
            return next((file for file in found if file.name == ALL), found[0])
    return None


def _is_yambda(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return OWN.issubset(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):  # another file of this name; its own reader says what is wrong
        return False


def _events(main: Path, marks: dict[str, Path], options: ReadOptions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The listens, and the likes and dislikes, one row each."""
    table = _rows(main, options)
    if main.name == ALL:
        kind = need(main, table, ("event_type",))["event_type"].astype(str)
        rated = {name: table[kind == event] for name, event in EVENT_TYPES.items()}
        table = table[kind == "listen"]
    else:
        rated = {name: _rows(file, options) for name, file in marks.items()}
    need(main, table, ("played_ratio_pct", "track_length_seconds"))
    ratio = table["played_ratio_pct"].astype(np.float64)
    length_s = table["track_length_seconds"].astype(np.float64)
    listens = _of_event(table).assign(
        watch_s=ratio / 100 * length_s, duration_s=length_s, click=1, long_view=(ratio >= HALF_PCT).astype(int)
    )
    marked = [_of_event(rows).assign(mark=name) for name, rows in rated.items()]
    return listens.reset_index(drop=True), pd.concat(marked, ignore_index=True) if marked else pd.DataFrame()


def _of_event(table: pd.DataFrame) -> pd.DataFrame:
    names = {"uid": "user_id", "item_id": "item_id", "timestamp": "timestamp", "is_organic": "extra_organic"}
    return table[[*names]].rename(columns=names).astype(np.int64)


def _rows(file: Path, options: ReadOptions) -> pd.DataFrame:
    """The file's events of the users that are to be read, one row each."""
    import pyarrow as pa

    parts = []
    try:
        for batch in _batches(file):
            chosen = options.chosen(batch.column("uid").to_numpy(zero_copy_only=False))
            parts.append(_flat(batch.filter(pa.array(chosen))))
        return pa.Table.from_batches(parts).to_pandas()
    except (OSError, pa.ArrowException, KeyError) as error:
        detail = str(error).partition("\n")[0]
        raise ValueError(f"{file}: cannot be read as a file of Yambda ({detail}); fetch it again.") from error


def _batches(file: Path) -> Iterator:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        yield from opened.iter_batches()


def _flat(batch):  # type: ignore[no-untyped-def]  # pyarrow's batches are typed only by its stubs
    """A batch with a row per event; lists of a sequential file are unrolled."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {PLURAL.get(name, name): batch.column(name) for name in batch.schema.names}
    lists = {name for name, column in columns.items() if pa.types.is_list(column.type)}
    if not lists:
        return batch
    lengths = pc.list_value_length(columns["item_id"])
    for name in lists:
        if not pc.list_value_length(columns[name]).equals(lengths):
            raise KeyError(f"the lists of {name} are not as long as those of the items")
    user = pc.list_parent_indices(columns["item_id"])
    return pa.RecordBatch.from_pydict(
        {name: pc.list_flatten(column) if name in lists else column.take(user) for name, column in columns.items()}
    )


def _with_marks(listens: pd.DataFrame, marked: pd.DataFrame) -> pd.DataFrame:
    """The listens with their likes and dislikes; those that follow no listen of the track come as further rows."""
    flags = {name: np.zeros(len(listens), dtype=int) for name in MARKS}
    if marked.empty:
        return listens.assign(**flags)
    keys = ["user_id", "item_id"]
    heard = listens[[*keys, "timestamp"]].assign(row=np.arange(len(listens))).sort_values("timestamp", kind="stable")
    marked = marked.sort_values("timestamp", kind="stable")
    row = pd.merge_asof(marked, heard, on="timestamp", by=keys, tolerance=int(VISIT_GAP_S))["row"].to_numpy()
    alone = np.isnan(row)
    for name, flag in flags.items():
        flag[row[~alone & (marked["mark"] == name).to_numpy()].astype(np.int64)] = 1
    if not alone.any():  # an empty table would turn the others' whole numbers into floats
        return listens.assign(**flags)
    further = marked[alone].assign(**{name: (marked["mark"] == name).astype(int) for name in MARKS})
    further = further.drop(columns="mark").groupby([*keys, "timestamp"], as_index=False).max()
    return pd.concat([listens.assign(**flags), further.assign(click=0, long_view=0)], ignore_index=True)


def _items(asked: pd.Series, audio: Path | None, artists: Path | None) -> pd.DataFrame:
    """The tracks asked for, with their first artist and their embedding."""
    item_I = np.unique(asked)
    items = pd.DataFrame({"item_id": item_I})
    if artists is not None:
        creator = pd.read_parquet(artists).drop_duplicates("item_id").set_index("item_id")["artist_id"]
        items["creator"] = creator.reindex(item_I).to_numpy()
    if audio is None:
        return items
    content_IE = _content(audio, item_I)
    names = [f"embedding_{number}" for number in range(content_IE.shape[1])]
    return pd.concat([items, pd.DataFrame(content_IE, columns=names)], axis=1)


def _content(audio: Path, item_I: NDArray) -> NDArray[np.float32]:
    """The tracks' embeddings of length 1, and 0 for tracks without one."""
    content_IE = None
    for batch in _batches(audio):
        names = batch.column("item_id").to_numpy(zero_copy_only=False)
        at = np.minimum(np.searchsorted(item_I, names), len(item_I) - 1)
        known = item_I[at] == names
        rows = np.stack(batch.column("normalized_embed").to_numpy(zero_copy_only=False))
        if content_IE is None:
            content_IE = np.zeros((len(item_I), rows.shape[1]), dtype=np.float32)
        content_IE[at[known]] = rows[known]
    if content_IE is None:
        raise ValueError(f"{audio}: has no rows; fetch it again.")
    return content_IE
