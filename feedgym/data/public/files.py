"""Raw files of public data sets: in a folder or a zip, compressed or not; broken ones are refused in one line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""Errors of decompressors for files that are cut off, damaged or not archives. zlib's and lzma's are not OSErrors."""

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class RawFile:
    """A file on disk, or a member of a zip.

    Attributes:
        path: the file, or the zip.
        member: name in the zip; None for a file on disk.
    """

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}!{self.member}"

    @property
    def name(self) -> str:
        """The file's own name, without folders."""
        return Path(self.member or self.path).name

    @property
    def stem(self) -> str:
        """The name without the suffix of its compression."""
        return self.name.removesuffix(Path(self.name).suffix) if Path(self.name).suffix in _OPENERS else self.name

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The decompressed bytes, as a stream.

        Raises:
            ValueError: the archive is damaged or incomplete, even if only reading further reveals it.
        """
        try:
            with self._raw() as raw:
                opener = _OPENERS.get(Path(self.name).suffix)
                yield raw if opener is None else opener(raw)  # type: ignore[operator, misc]
        except BROKEN as error:
            detail = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(f"{self}: cannot be read to its end ({detail}); fetch the file again.") from error

    @contextmanager
    def _raw(self) -> Iterator[IO[bytes]]:
        if self.member is None:
            with open(self.path, "rb") as stream:
                yield stream
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                yield stream

    def read(self) -> bytes:
        """All of the decompressed bytes."""
        with self.opened() as stream:
            return stream.read()


def raw_files(path: Path) -> dict[str, RawFile]:
    """The files of a folder (and its subfolders), of a zip, or the one file, by name without compression suffix.

    If files share a name, the one nearest to the top is kept.
    """
    return {file.stem: file for file in reversed(listed(path))}


def listed(path: Path) -> list[RawFile]:
    """All files of a folder (and its subfolders), of a zip, or the one file; those nearest to the top come first."""
    if path.is_dir():
        paths = sorted((p for pattern in ("*", "*/*") for p in path.glob(pattern) if p.is_file()), key=_depth)
        return [RawFile(p) for p in paths]
    if path.suffix == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                members = sorted((m for m in archive.namelist() if not m.endswith("/")), key=lambda m: _depth(Path(m)))
        except BROKEN as error:
            raise ValueError(f"{path}: is not a whole zip archive ({error}); fetch the file again.") from error
        return [RawFile(path, member) for member in members]
    return [RawFile(path)]


def with_neighbours(path: Path, files: dict[str, RawFile], beside: str) -> dict[str, RawFile]:
    """The files at a path; for a single file, also the files in its folder that belong to it.

    Args:
        path: a folder, a zip or a file.
        files: the files at the path.
        beside: pattern of the names of files that belong to another one, without the suffix of a compression.
    """
    if not path.is_file() or path.suffix == ".zip":
        return files
    return {name: file for name, file in raw_files(path.parent).items() if re.fullmatch(beside, name)} | files


def _depth(path: Path) -> tuple[int, str]:
    return len(path.parts), str(path)


def decoded(data: bytes) -> str:
    """Decodes text as UTF-8, or as Latin-1 if it is not UTF-8 (MovieLens up to 1M)."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def json_lines(file: RawFile, parse: Callable[[str], Any] = json.loads) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per line.

    Raises:
        ValueError: a line holds none; it is named.
    """
    with file.opened() as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = parse(decoded(line))
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                detail = str(error).splitlines()[0]
                raise ValueError(f"{file}: line {number} cannot be read ({detail}); fetch the file again.") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file}: line {number} is not a JSON object; give one object per line.")
            yield row


def one_line(value: Any) -> str:
    """A field of a JSON object as one line of text: lists are joined, markup and missing values are removed."""
    if value is None or value != value:  # NaN alone differs from itself
        return ""
    if isinstance(value, list):
        value = " ".join(one_line(part) for part in value)
    text = " ".join(re.sub(r"<[^>]*>", " ", str(value)).split())
    return "" if text.lower() in ("none", "nan") else text


def delimited(
    file: RawFile,
    separator: str,
    names: tuple[str, ...] | None,
    *,
    quoted: bool = False,
    words: bool | tuple[str, ...] = False,
) -> pd.DataFrame:
    """Reads a table of separated values.

    Args:
        file: the file.
        separator: may have several characters.
        names: the columns of a file without a header; None reads the header.
        quoted: values may be in quotation marks.
        words: read values as text even if they look like numbers; in all columns, or in the named ones.

    Raises:
        ValueError: the file is broken, empty, or has rows of another length; one line.
    """
    import pandas as pd

    data = file.read()
    if len(separator) > 1:  # pandas' fast parser knows single characters only
        data, separator = data.replace(separator.encode(), b"\x1f"), "\x1f"
    if not data.strip():
        raise ValueError(f"{file}: the file is empty; fetch it again.")
    text = io.StringIO(decoded(data)) if not data.isascii() else io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would be cut
            return pd.read_csv(
                text,  # type: ignore[arg-type]
                sep=separator,
                header=None if names else 0,
                names=list(names) if names else None,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                index_col=False,
                low_memory=False,
                dtype=dict.fromkeys(words, str) if isinstance(words, tuple) else str if words else None,
            )
    except (ValueError, pd.errors.ParserWarning, pd.errors.ParserError) as error:
        columns = f"the columns {', '.join(names)}" if names else "its header's columns"
        detail = str(error).splitlines()[0]
        raise ValueError(f"{file}: cannot be read with {columns} ({detail}); fetch the file again.") from error


def need(where: object, table: pd.DataFrame, columns: Mapping[str, str] | tuple[str, ...]) -> pd.DataFrame:
    """The named columns, renamed where a mapping (the file's names to feedgym's) is given.

    Raises:
        ValueError: one is missing.
    """
    for column in columns:
        if column not in table:
            raise ValueError(f"{where}: column {column!r} is missing; it has {[str(c) for c in table]}: add it.")
    chosen = table[list(columns)]
    return chosen.rename(columns=dict(columns)) if isinstance(columns, Mapping) else chosen


def refuse(where: object, table: pd.DataFrame, column: str, bad: NDArray | pd.Series, what: str, remedy: str) -> None:
    """Refuses bad rows of a file in one line; ``table``'s index holds the row numbers.

    Raises:
        ValueError: there are bad rows.
    """
    rows = table.index[np.asarray(bad)]
    if len(rows):
        raise ValueError(f"{where}: column {column!r} {what} in {len(rows)} row(s), first row {rows.min()}; {remedy}.")


def plain(where: object, table: pd.DataFrame, columns: Iterable[Any]) -> None:
    """Refuses columns of lists, structures or bytes, which only typed tables can have.

    Raises:
        ValueError: there is such a column.
    """
    for name in columns:
        for value in table[name].dropna().head(1) if table[name].dtype == object else ():
            if isinstance(value, (list, tuple, set, dict, np.ndarray, bytes)):
                what = "bytes" if isinstance(value, bytes) else "structures" if isinstance(value, dict) else "lists"
                raise ValueError(f"{where}: column {name!r} holds {what} and must hold one value per row; convert it.")


def whole_numbers(where: object, table: pd.DataFrame, name: str, remedy: str) -> NDArray[np.int64]:
    """A column of whole numbers as int64; empty cells are refused too."""
    import pandas as pd

    values = numbers(where, table, name)
    bad = ~(np.abs(values) < 2**63) | (values != np.floor(values))
    refuse(where, table, name, bad, "is empty or not a whole number", remedy)
    exact = pd.to_numeric(table[name])  # floats are not exact beyond 2**53
    whole: NDArray[np.int64] = np.asarray(exact if pd.api.types.is_integer_dtype(exact) else values, dtype=np.int64)
    return whole


def numbers(where: object, table: pd.DataFrame, name: str, fill: float | None = None) -> NDArray[np.float64]:
    """A column as float64; text and infinity are refused, and empty cells become ``fill``, or NaN if that is None."""
    import pandas as pd

    plain(where, table, (name,))
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    # pandas would turn durations and datetimes into numbers in a unit that nobody named.
    bad = (~np.isfinite(values) | (table[name].dtype.kind in "mM")) & table[name].notna().to_numpy()
    refuse(where, table, name, bad, "is not a finite number", "write numbers")
    return values if fill is None else np.where(np.isnan(values), fill, values)
