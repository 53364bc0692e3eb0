"""Reads the rows of a table's file: separated values (the separator is detected), JSON lines, or parquet.

The header says what the separator is: of comma, tab, semicolon and bar, the one that parts it into most names. Files
may be compressed. A folder of parquet files is one table.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from feedgym.data.public.files import RawFile, json_lines, plain
from feedgym.data.public.interactions import read_ids

SEPARATORS = (",", "\t", ";", "|")
PEEKED = 20
"""Lines of JSON whose keys are the header; later keys are read too."""
FEW = 20
"""Names of columns that a message lists."""


def header_of(path: Path) -> list[str]:
    """The names of a table's columns.

    Raises:
        ValueError: the file cannot be read.
    """
    with reading(path):
        if _is_parquet(path):
            from pyarrow.dataset import dataset

            return [str(name) for name in dataset(path, partitioning="hive" if path.is_dir() else None).schema.names]
        if _is_json(path):
            return [*dict.fromkeys(name for row in islice(_objects(path), PEEKED) for name in row)]
        return [str(name) for name in pd.read_csv(path, sep=separator_of(path), nrows=0, index_col=False)]


def rows_of(path: Path, ids: tuple[str, ...] = ()) -> pd.DataFrame:
    """Reads a file's table; in text files the columns ``ids`` are read as text, so that "007" and "7" differ.

    Raises:
        ValueError: the file cannot be read, or has no rows.
    """
    with reading(path):
        if _is_parquet(path):
            table = pd.read_parquet(path)
        elif _is_json(path):
            table = pd.DataFrame([*_objects(path)])
            plain(path, table, {*ids} & {*table})
            as_text = {name: table[name].map(str, na_action="ignore") for name in {*ids} & {*table}}
            table = table.assign(**as_text)
        else:
            table = _separated(path, ids)
        if not _is_parquet(path):
            table = table.assign(**{name: read_ids(table[name]) for name in {*ids} & {*table}})
    if table.empty:
        raise ValueError(f"{path}: the file has no rows; give one with at least one event.")
    return table.reset_index(drop=True)


def separator_of(path: Path) -> str:
    """The separator that parts a file's header into most names; for a single name a comma, or a tab for TSV."""
    first = pd.read_csv(path, sep="\x1f", header=None, nrows=1, quoting=csv.QUOTE_NONE, dtype=str, index_col=False)
    names = {sep: len(next(csv.reader([str(first.iloc[0, 0])], delimiter=sep))) for sep in SEPARATORS}
    usual = "\t" if ".tsv" in path.suffixes else ","
    return max((usual, *SEPARATORS), key=lambda separator: names[separator])  # the first of equal ones


def is_table_folder(path: Path) -> bool:
    """True for a folder with parquet files alone, also in subfolders."""
    first = None
    for file in path.rglob("*"):
        if file.is_file() and file.name[0] not in "._":
            first = first or file
            if file.suffix != ".parquet":
                return False
    return first is not None


def table_files(path: Path) -> tuple[RawFile, ...]:
    """The files of a table: the one file, or those of a folder."""
    return tuple(map(RawFile, sorted(path.rglob("*.parquet")))) if path.is_dir() else (RawFile(path),)


def few(names: Any) -> str:
    """The names of columns for a message, shortened if there are many."""
    shown = [str(name) for name in names]
    return str(shown) if len(shown) <= FEW else f"{shown[:FEW]} and {len(shown) - FEW} more"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any error of a parser into one line that names the file."""
    if not path.is_file() and not is_table_folder(path):
        raise ValueError(f"{path}: no such file; check the path.")
    try:
        yield
    except Exception as error:  # parsers and decompressors each raise their own errors
        detail = str(error).partition("\n")[0].removeprefix(f"{path}: ")
        raise ValueError(f"{path}: cannot be read as a table ({detail}); give CSV, JSON lines or parquet.") from error


def _separated(path: Path, ids: tuple[str, ...]) -> pd.DataFrame:
    with warnings.catch_warnings():
        # In rows longer than the header, pandas would shift the columns, or drop the last ones and warn.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        as_text: Any = dict.fromkeys(ids, str)
        return pd.read_csv(path, sep=separator_of(path), index_col=False, low_memory=False, dtype=as_text)


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a single large object that maps ids to lists is no table."""
    for row in json_lines(RawFile(path)):
        if row and all(isinstance(value, (list, dict)) for value in row.values()):
            raise ValueError("it maps names to lists or objects, and has no values")
        yield row


def _is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet" or path.is_dir()


def _is_json(path: Path) -> bool:
    return bool({".json", ".jsonl", ".ndjson"} & {*path.suffixes})
