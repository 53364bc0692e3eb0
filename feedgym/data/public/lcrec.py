"""LC-Rec's files, also of LETTER, MiniOneRec and copies of TIGER's data: ``NAME.inter.json`` and ``NAME.item.json``.

``NAME.inter.json`` maps each user to their items in time order, ``{"0": [12, 7], ...}``. ``NAME.item.json`` maps each
item to its fields, ``{"12": {"title": "...", "brand": "..."}, ...}``; they become its text. Its topic is the second
category (the first is that of the whole file), its creator the brand. Codes of ``NAME.index.json`` are a tokenizer
(:mod:`feedgym.tokenizers.index`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, decoded, one_line, with_neighbours
from feedgym.data.public.interactions import ORDER_ONLY, Ratings, ratings_log, read_ids
from feedgym.data.sources import ReadOptions, Source

INTER, ITEM, INDEX = ".inter.json", ".item.json", ".index.json"
EACH_A_CLICK = "every item is a click"
FIELD = 300
"""Characters of a field that are kept; the sentence model reads 256 tokens."""


def find_lcrec(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds LC-Rec's files by their suffixes; None if there are none.

    Raises:
        ValueError: there are those of several data sets, so it is unclear which to read.
    """
    names = [name for name in files if name.endswith(INTER)]
    if path.is_file() and path.name.endswith(ITEM):  # given by its items
        names = [path.name.removesuffix(ITEM) + INTER]
    files = with_neighbours(path, files, r".*\.(inter|item|index)\.json")
    if not names or names[0] not in files:
        return None
    if len(names) > 1:
        raise ValueError(f"{path}: holds several data sets ({', '.join(sorted(names))}); give one file.")
    name = names[0].removesuffix(INTER)
    inter, items, index = files[names[0]], files.get(name + ITEM), files.get(name + INDEX)
    codes = (f"{index.name} holds codes; --tokenizer index --tokenizer.path {index} takes them",) if index else ()

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        events = _events(inter)
        facts = pd.DataFrame({"item_id": []}) if items is None else item_facts(items, events["item_id"])
        return ratings_log(inter, Ratings(events=events, items=facts), options)

    return Source(
        name=f"LC-Rec's files of {name}",
        files=(inter, items) if items else (inter,),
        says=(EACH_A_CLICK, ORDER_ONLY, *codes),
        read=read,
    )


def json_object(file: RawFile) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        ValueError: it holds something else.
    """
    try:
        content = json.loads(decoded(file.read()))
    except (ValueError, RecursionError) as error:
        if str(error).startswith(str(file)):  # a damaged archive
            raise
        raise ValueError(f"{file}: is not JSON ({str(error).splitlines()[0]}); fetch the file again.") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{file}: is not a JSON object with an entry per user or item; fetch the file again.")
    return content


def item_facts(file: RawFile, asked: pd.Series) -> pd.DataFrame:
    """Texts, topics and brands of the items of ``NAME.item.json``, under ids of the type of ``asked``.

    Raises:
        ValueError: the file holds none of the items asked for.
    """
    rows = [(item, *_described(fields)) for item, fields in json_object(file).items()]
    table = pd.DataFrame(rows, columns=["item_id", "text", "topic", "creator"])
    if pd.api.types.is_integer_dtype(asked):
        table = table[table["item_id"].str.fullmatch(r"0|-?[1-9]\d{0,17}")].astype({"item_id": np.int64})
    if not table["item_id"].isin(asked).any():
        raise ValueError(f"{file}: holds none of the {asked.nunique()} items; take both files of one data set.")
    return table


def _events(file: RawFile) -> pd.DataFrame:
    """One row per user and item, in order."""
    lists = json_object(file)
    for user, items in lists.items():
        if not isinstance(items, list) or not all(type(item) in (int, str) for item in items):
            raise ValueError(f"{file}: the entry of user {user!r} is not a list of items; write {{user: [item, ...]}}.")
    users = np.repeat(np.array([*lists], dtype=object), [len(items) for items in lists.values()])
    item = [str(item) for items in lists.values() for item in items]
    if not item:
        raise ValueError(f"{file}: no user has an item; fetch the file again.")
    return pd.DataFrame({"user_id": read_ids(pd.Series(users)), "item_id": read_ids(pd.Series(item))})


def _described(fields: Any) -> tuple[str, str | None, str | None]:
    """An item's text, topic and creator; its fields are a dictionary, or its title alone."""
    if not isinstance(fields, dict):
        return one_line(fields), None, None
    words = {str(name): one_line(value).strip("[]'\" ")[:FIELD] for name, value in fields.items()}
    title = words.pop("title", "")
    parts = [title, *(f"{name.capitalize()}: {value}" for name, value in words.items() if value)]
    # Categories are joined by commas, and names hold ", ": "Arts, Crafts & Sewing,Painting".
    path = [name.strip() for name in re.split(r",(?! )", words.get("categories", "")) if name.strip()]
    topic = path[min(1, len(path) - 1)] if path else None
    return ". ".join(filter(None, parts)), topic, words.get("brand") or None
