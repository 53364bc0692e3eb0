"""Lists of items in time order, as papers on sequential recommendation share them.

A text file of whole numbers has lines "user item" (SASRec) or "user item item item ..." (S3-Rec, P5, copies of TIGER's
data), without times. Next to it, ``datamaps.json`` (its ``id2item``) gives the items' original ids. An items' table
(``items``) under either id gives them words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, decoded, refuse, with_neighbours
from feedgym.data.public.interactions import ORDER_ONLY, Ratings, ratings_log
from feedgym.data.sources import ReadOptions, Source

ID_MAP = "datamaps.json"
BESIDE = re.escape(ID_MAP)


def find_sequences(
    path: Path, files: dict[str, RawFile], items: Callable[[], pd.DataFrame] | None = None
) -> Source | None:
    """Finds a text file of whole numbers; None if there is none.

    Args:
        path: folder, zip or file that was given.
        files: the files at the path.
        items: function that reads the items' table: ``item_id`` and any of ``text``, ``topic``, ``creator``.
    """
    lists = [file for name, file in files.items() if name.endswith(".txt") and _is_list(file)]
    if not lists:
        return None
    if len(lists) > 1:
        names = ", ".join(file.name for file in lists)
        raise ValueError(f"{lists[0].path.parent}: holds several lists of items ({names}); give one file.")
    source, maps = lists[0], with_neighbours(path, files, BESIDE).get(ID_MAP)

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        events = _pairs(source)
        if maps is not None:
            events = events.assign(item_id=_outside_ids(source, maps, events["item_id"]))
        item_facts = items() if items is not None else pd.DataFrame({"item_id": []})
        if items is not None and not item_facts["item_id"].isin(events["item_id"]).any():
            raise ValueError(f"{source}: the items' table holds none of its items; give them the same ids.")
        return ratings_log(source, Ratings(events=events, items=item_facts), options)

    files_read = (source, maps) if maps else (source,)
    return Source(name="lists of items", files=files_read, says=("every item is a click", ORDER_ONLY), read=read)


def _is_list(file: RawFile) -> bool:
    """True if a file begins with lines of two or more whole numbers."""
    with file.opened() as stream:
        lines = decoded(b"".join(stream.readline(65_536) for _ in range(3))).splitlines()
    return bool(lines) and all(re.fullmatch(r"\s*\d+([ \t]\d+)+\s*", line) for line in lines)


def _pairs(file: RawFile) -> pd.DataFrame:
    """One user and item per row, in the file's order."""
    lines = [line.split() for line in decoded(file.read()).splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and (len(line) < 2 or not all(word.isdecimal() for word in line)):
            raise ValueError(f"{file}: line {number} is not a list of whole numbers; write 'user item item ...'.")
    lines = [line for line in lines if line]
    user = np.repeat([int(line[0]) for line in lines], [len(line) - 1 for line in lines])
    return pd.DataFrame({"user_id": user, "item_id": [int(word) for line in lines for word in line[1:]]})


def _outside_ids(source: RawFile, maps: RawFile, item_id: pd.Series) -> pd.Series:
    try:
        names = {int(own): str(name) for own, name in json.loads(decoded(maps.read()))["id2item"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{maps}: has no 'id2item' that maps numbers to ids ({error}); fetch it again.") from error
    named = item_id.map(names)
    table = pd.DataFrame({"item_id": item_id})
    refuse(source, table, "item_id", named.isna(), f"has an id that {maps.name} lacks", "take both from one source")
    return named
