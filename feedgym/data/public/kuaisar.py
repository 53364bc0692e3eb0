"""KuaiSAR (Sun et al., 2023), Kuaishou's recommendations and searches: ``rec_inter.csv``, ``src_inter.csv`` and facts.

``rec_inter.csv`` has ``user_id, item_id, playing_time, duration_ms, time, timestamp, click, forward, like, follow,
search, search_item_related``, with lengths and times in milliseconds. A search while watching is ``extra_search``.
``src_inter.csv`` is another log, read if its path is given. Each item that a search showed is an exposure, clicked if
``click_cnt`` is above 0. A search is a visit. Its keywords are not read.

A text consists of the English names of an item's categories and the words of its caption. The words are numbers in the
files and become ``w1 w213``, so TF-IDF suits them. The topic is the second category, or the first if there is none.
Profiles are the fields of ``user_features.csv``. The clock is Beijing's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, delimited, need, numbers, with_neighbours
from feedgym.data.public.interactions import joined
from feedgym.data.sources import ReadOptions, Source, keeps_clock

RECOMMENDED, SEARCHED = "rec_inter.csv", "src_inter.csv"
ITEMS, USERS = "item_features.csv", "user_features.csv"
FLAGS = ("click", "forward", "like", "follow")
SHOWN = ("user_id", "item_id", "playing_time", "duration_ms", "timestamp", *FLAGS, "search")
FOUND = ("user_id", "item_id", "search_session_id", "search_session_timestamp", "click_cnt")
CATEGORIES = tuple(f"{level}_level_category_name_en" for level in ("first", "second", "third", "fourth"))
PROFILE = ("search_active_level", "rec_active_level", "onehot_feat1", "onehot_feat2")
NONE = ("", "empty", "nan", "unknown")
"""Names that mean that there is no category."""
BEIJING_S = 8 * 3600


def find_kuaisar(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds KuaiSAR by the names of its files; None if it is not there."""
    found = [name for name in (RECOMMENDED, SEARCHED) if name in files]
    if not found:
        return None
    files = with_neighbours(path, files, rf"{ITEMS}|{USERS}")
    main, facts, users = files[found[0]], files.get(ITEMS), files.get(USERS)
    says = ["times are Beijing's", "the social network is not read"]
    says += [f"{name} is not read; give its path to read the searches" for name in found[1:]]

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        from feedgym.data.table import log_of_rows

        keeps_clock(main, "KuaiSAR's times become Beijing's by themselves", options)
        rows = _recommended(main) if found[0] == RECOMMENDED else _searched(main)
        if users is not None:
            rows = rows.join(_profiles(users), on="user_id")
        items = None if facts is None else _items(facts, rows["item_id"])
        return log_of_rows(main, rows, facts, items, options)

    kind = "recommendations" if found[0] == RECOMMENDED else "searches"
    files_read = tuple(file for file in (main, facts, users) if file is not None)
    return Source(name=f"KuaiSAR's {kind}", files=files_read, says=tuple(says), read=read)


def _recommended(file: RawFile) -> pd.DataFrame:
    table = need(file, delimited(file, ",", None), SHOWN)
    return pd.DataFrame(
        {
            "user_id": table["user_id"],
            "item_id": table["item_id"],
            "timestamp": numbers(file, table, "timestamp") / 1000 + BEIJING_S,
            "watch_s": numbers(file, table, "playing_time") / 1000,
            "duration_s": numbers(file, table, "duration_ms") / 1000,
            **{name: table[name] for name in FLAGS},
            "extra_search": table["search"],
        }
    )


def _searched(file: RawFile) -> pd.DataFrame:
    """One row per item shown; the order of a search's items is the file's."""
    table = need(file, delimited(file, ",", None, quoted=True), FOUND)
    return pd.DataFrame(
        {
            "user_id": table["user_id"],
            "item_id": table["item_id"],
            "timestamp": numbers(file, table, "search_session_timestamp") / 1000 + BEIJING_S,
            "session_id": table.groupby(["user_id", "search_session_id"], sort=False).ngroup(),
            "click": (numbers(file, table, "click_cnt", 0) > 0).astype(int),
        }
    )


def _items(file: RawFile, asked: pd.Series) -> pd.DataFrame:
    """The items asked for, with text, topic, author and the time of their upload."""
    columns = ("item_id", "caption", "author_id", "upload_time", *CATEGORIES)
    table = need(file, delimited(file, ",", None, quoted=True), columns).drop_duplicates("item_id").set_index("item_id")
    table = table.reindex(pd.Index(asked.unique()).sort_values())
    names = table[[*CATEGORIES]].astype("string").fillna("").apply(lambda column: column.where(~column.isin(NONE), ""))
    words = table["caption"].astype("string").fillna("").str.findall(r"\d+")
    caption = words.map(lambda numbered: " ".join(f"w{number}" for number in numbered))
    second, first = names[CATEGORIES[1]], names[CATEGORIES[0]]
    topic = second.where(second != "", first)
    uploaded = pd.to_datetime(table["upload_time"], errors="coerce", format="mixed")
    items = pd.DataFrame(
        {
            "item_id": table.index,
            "text": joined(names.assign(caption=caption), ". "),
            "topic": topic.where(topic != "", np.nan).to_numpy(),
            "creator": table["author_id"].where(table["author_id"] > 0).to_numpy(),
            "upload_time": uploaded.where(uploaded.dt.year > 1970).to_numpy(),
        }
    )
    return items


def _profiles(file: RawFile) -> pd.DataFrame:
    table = delimited(file, ",", None).drop_duplicates("user_id").set_index("user_id")
    return table[[name for name in PROFILE if name in table]].add_prefix("profile_")
