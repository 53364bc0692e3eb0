"""Rows of one target and its history: MiniOneRec's CSV files, and RecBole's benchmark files ``NAME.train.inter``.

MiniOneRec's columns are ``user_id, history_item_title, item_title, history_item_id, item_id, history_item_sid,
item_sid``; its lists are written as Python does. RecBole's are ``user_id:token, item_id_list:token_seq,
item_id:token``. A user's rows overlap, so they are put together to one list of items per user. A history may be cut to
its last items; the rows of a user with cut histories must be in time order. The files train, valid and test are joined,
because feedgym splits the log itself.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, decoded, delimited, listed, refuse
from feedgym.data.public.interactions import ORDER_ONLY, Ratings, ratings_log, read_ids
from feedgym.data.public.lcrec import EACH_A_CLICK
from feedgym.data.sources import ReadOptions, Source

CSV = {"user_id": "user_id", "history_item_id": "history", "item_id": "item_id"}
INTER = {"user_id:token": "user_id", "item_id_list:token_seq": "history", "item_id:token": "item_id"}
SPLITS = ("train", "valid", "val", "dev", "test")
SPLIT = re.compile(rf"(?:^|(?<=[/._-]))({'|'.join(SPLITS)})(?=[/._-])")
"""The name of a split in "train/NAME.csv", "NAME.train.inter" or "train.csv"."""


def find_targets(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds rows of targets and histories by their header; None if there are none.

    Raises:
        ValueError: there are those of several data sets, so it is unclear which to read.
    """
    del files  # train and test may share a name, so all files are listed
    parts = [file for file in listed(path) if _form(file) is not None]
    if not parts:
        return None
    if path.is_file() and path.suffix != ".zip":
        parts = _beside(parts[0])
    sets = {_without_split(file) for file in parts}
    if len(sets) > 1:
        raise ValueError(f"{path}: holds several data sets ({', '.join(sorted(sets))}); give one file.")
    parts.sort(key=_split)

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        table = pd.concat([_rows(file) for file in parts], ignore_index=True)
        items = _titles(table) if "item_title" in table else pd.DataFrame({"item_id": []})
        lists = together(parts[0], zip(table["user_id"], table["history"], table["item_id"], strict=True))
        pairs = [(user, item) for user, items in lists.items() for item in items]
        events = pd.DataFrame(pairs, columns=["user_id", "item_id"]).apply(read_ids)
        items["item_id"] = items["item_id"].astype(events["item_id"].dtype)
        return ratings_log(parts[0], Ratings(events=events, items=items), options)

    form = "MiniOneRec's CSV" if _form(parts[0]) is CSV else "RecBole's benchmark files"
    joined = f"the rows of {len(parts)} file(s) are put together to one list of items per user"
    return Source(name=form, files=tuple(parts), says=(EACH_A_CLICK, joined, ORDER_ONLY), read=read)


def together(where: object, rows: Iterable[tuple[str, list[str], str]]) -> dict[str, list[str]]:
    """Puts the overlapping rows (user, history, target) together to each user's items.

    Raises:
        ValueError: a row does not continue its user's earlier ones.
    """
    rows_of = defaultdict(list)
    for user, history, target in rows:
        rows_of[user].append([*history, target])
    window = max((len(row) - 1 for mine in rows_of.values() for row in mine), default=0)
    lists = {}
    for user, mine in rows_of.items():
        items: list[str] = []
        for row in sorted(mine, key=len):  # stable: rows of one length keep the file's order
            longer = _continued(items, row, cut=len(row) > window)
            if longer is None:
                raise ValueError(
                    f"{where}: the history {row[:-1][-5:]} of user {user!r} does not continue their earlier rows; give "
                    f"all files of one split, with each user's rows in time order."
                )
            items = longer
        lists[user] = items
    return lists


def _continued(items: list[str], row: list[str], *, cut: bool) -> list[str] | None:
    """A user's items with those of a further row; None if the row does not fit.

    Args:
        items: the items so far.
        row: history and target.
        cut: the history has the greatest length of all, so it may begin anywhere.
    """
    history = row[:-1]
    if not cut and items[: len(row)] == row:  # the row is there twice; its history is the whole past
        return items
    if not items or (history and items[-len(history) :] == history):
        return [*(items or history), row[-1]]
    if any(items[at : at + len(row)] == row for at in range(len(items) - len(row) + 1)):  # the row is there twice
        return items
    for overlap in range(min(len(items), len(row)), 0, -1):  # rows between are missing
        if items[-overlap:] == row[:overlap]:
            return items + row[overlap:]
    return None


def _form(file: RawFile) -> dict[str, str] | None:
    """Detects which of the two forms a file's header has; None for neither."""
    form, separator = (CSV, ",") if file.stem.endswith(".csv") else (INTER, "\t")
    if form is INTER and not file.stem.endswith(".inter"):
        return None
    try:
        with file.opened() as stream:
            header = decoded(stream.readline(65_536)).strip()
    except ValueError:  # damaged: another reader reports so
        return None
    return form if {*form} <= {cell.strip('"') for cell in header.split(separator)} else None


def _beside(file: RawFile) -> list[RawFile]:
    """The file and its other splits: in folders beside its own, or under names that differ in the split."""
    key = _without_split(file)
    folder = file.path.parent.parent if file.path.parent.name in SPLITS else file.path.parent
    return [other for other in listed(folder) if _without_split(other) == key and _form(other) is not None]


def _place(file: RawFile) -> str:
    return "/".join(Path(file.member or file.path).parts[-2:])


def _split(file: RawFile) -> int:
    """The number of a file's split; the first one if its path names none."""
    found = SPLIT.findall(_place(file))
    return SPLITS.index(found[-1]) if found else 0


def _without_split(file: RawFile) -> str:
    """A file's folder and name with the last name of a split left out, which its other splits share."""
    place, found = _place(file), [*SPLIT.finditer(_place(file))]
    return place[: found[-1].start()] + "*" + place[found[-1].end() :] if found else place


def _rows(file: RawFile) -> pd.DataFrame:
    """The columns of a file as text, with the history as a list of text."""
    form = _form(file) or CSV
    table = delimited(file, "," if form is CSV else "\t", None, quoted=form is CSV, words=True).rename(columns=form)
    for name in ("user_id", "item_id"):
        refuse(file, table, name, table[name].isna(), "is empty", "drop those rows")
    history = table["history"].fillna("")
    lists = history.map(_list) if form is CSV else history.str.split()
    refuse(file, table, "history", lists.isna(), "is not a list", "write it as [1, 2]")
    return table.assign(history=lists)


def _list(text: str) -> list[str] | None:
    """A list as Python or JSON writes it, as text; None for anything else."""
    try:
        value: Any = ast.literal_eval(text) if text else []
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return [str(part) for part in value] if isinstance(value, list) else None


def _titles(table: pd.DataFrame) -> pd.DataFrame:
    """The titles of targets, and of items that are in histories alone."""
    titles = dict(zip(table["item_id"], table["item_title"], strict=True))
    if "history_item_title" in table:
        for history, words in zip(table["history"], table["history_item_title"].fillna(""), strict=True):
            if any(item not in titles for item in history):
                for item, title in zip(history, _list(words) or [], strict=False):
                    titles.setdefault(item, title)
    return pd.DataFrame({"item_id": [*titles], "text": [*titles.values()]})
