"""Reads logs: public data sets, feedgym's own folders, or any table of events with a map of its columns.

``find_data`` detects the format from the files at a path, and ``load_data`` reads it. For example ``log, catalog =
load_data("views.csv", {"user_id": "visitor", "item_id": "video", "timestamp": "ts"})``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from feedgym.data.events import Catalog, EventLog
from feedgym.data.parquet import read_catalog
from feedgym.data.parts import has_log, load_log, log_files
from feedgym.data.public.files import RawFile, raw_files
from feedgym.data.sources import ReadOptions, Source, keeps_clock
from feedgym.data.whole import product_of


def load_data(
    path: str | Path,
    column_map: Mapping[str, str] | None = None,
    items: str | Path | None = None,
    options: ReadOptions | None = None,
) -> tuple[EventLog, Catalog]:
    """Reads the data at ``path``; the logger ``feedgym.data`` reports the detected format.

    It also warns of unread columns whose names look meaningful.

    Args:
        path: see :func:`find_data`.
        column_map: maps feedgym's column names to the table's, see
            :func:`feedgym.data.table.read_table`; for tables only.
        items: the items of a table or of lists.
        options: order of ties, k-core, embeddings of texts.

    Raises:
        ValueError: there are no readable data, or they break their format.
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
    """Splits ``NAME=COLUMN``, the command line's form of a column map, into a pair.

    Raises:
        ValueError: there is no "=".
    """
    name, equals, column = text.partition("=")
    if not equals or not name or not column:
        raise ValueError(f"--columns got {text!r}; write NAME=COLUMN, e.g. user_id=uid.")
    return name, column


def find_data(path: str | Path, column_map: Mapping[str, str] | None = None, items: str | Path | None = None) -> Source:
    """Detects the format of the data at a path, and how to read them.

    Args:
        path: a folder (or a zip) with the files of a public data set or with lists of items, or one such file. See
            docs/data.md. It may also be a folder with feedgym's ``events.parquet`` and ``catalog.parquet`` (also
            RUN/stages/log), or a table (CSV, JSON lines, parquet).
        column_map: names a table's columns, see :func:`feedgym.data.table.read_table`; a file with a map is always read
            as a table.
        items: the items of a table or of lists.

    Raises:
        ValueError: there are no readable data.
    """
    path, items = product_of(Path(path)), None if items is None else Path(items)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path.")
    source = None if column_map else _recognised(path, items)
    if source is not None:
        return source
    from feedgym.data.rows import is_table_folder

    unfinished = (path / "catalog.parquet").exists()  # a log of feedgym's own whose events are not whole
    if path.is_file() or (is_table_folder(path) and not unfinished):
        from feedgym.data.table import table_source

        return table_source(path, column_map or {}, items)
    if column_map or items:
        raise ValueError(f"{path}: is a folder, but column_map and items describe a single table; give its file.")
    raise ValueError(
        f"{path}: holds no files that feedgym knows (KuaiRand's log_standard_*; KuaiRec's big_matrix.csv; "
        f"KuaiSAR's rec_inter.csv; MIND's behaviors.tsv; Yambda's listens.parquet; MovieLens's u.data, ratings.dat or "
        f"ratings.csv; Amazon's reviews; RecBole's *.inter; LC-Rec's *.inter.json; MiniOneRec's train/*.csv; lists of "
        f"items *.txt; events.parquet and catalog.parquet); give a folder with such files, or a table's file with a "
        f"column map."
    )


def _recognised(path: Path, items: Path | None) -> Source | None:
    """Data recognised by their files, or None; of these, only lists of items take a table of items."""
    files = raw_files(path)
    if items is not None:
        from feedgym.data.public.lists import find_sequences
        from feedgym.data.table import item_words

        return find_sequences(path, files, lambda: item_words(items))
    if (own := _find_own(path)) is not None:
        return own
    from feedgym.data.public.finders import FINDERS  # pandas, which a log of feedgym's own does not need

    sources = (find(path, files) for find in FINDERS)
    return next((source for source in sources if source is not None), None)


def _find_own(folder: Path) -> Source | None:
    """A folder with a log of feedgym's, or None; KuaiRand's files win if a folder holds both."""
    if not has_log(folder) or _is_kuairand(folder):
        return None

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        if options.core > 1:
            raise ValueError(
                f"{folder}: feedgym's own logs are read as they are, and core is {options.core}; leave it 1."
            )
        keeps_clock(folder, "feedgym's own logs are read as they are", options)
        catalog = read_catalog(folder / "catalog.parquet")
        choose = None if options.users == 1 else options.chosen
        log = load_log(folder, catalog, choose, options.users if options.seed == 0 else 1.0)
        return log, catalog

    files = tuple(RawFile(file) for file in (*log_files(folder), folder / "catalog.parquet"))
    return Source(name="feedgym's own log", files=files, says=(), read=read)


def _is_kuairand(folder: Path) -> bool:
    if not any(folder.glob("log_*")):
        return False
    from feedgym.data.public.kuairand import is_kuairand

    return is_kuairand(folder)
