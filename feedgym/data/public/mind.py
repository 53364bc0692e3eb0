"""MIND (Wu et al., 2020), Microsoft's news: ``behaviors.tsv`` and ``news.tsv``, without headers.

A row of ``behaviors.tsv`` is a visit: its id, the user, the time (``11/11/2019 9:05:58 AM``), and two lists. One has
the news that the user had clicked before, the other the news shown with their clicks (``N1-0 N2-1``). Each shown news
is an exposure. MIND shuffled the news of a visit, so their places are unknown. Clicks before the first visit have no
times and are not read. If the folders of train and dev are both there, both are read. A news' text is its title and
abstract, its topic the subcategory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, delimited, listed, refuse
from feedgym.data.public.interactions import joined
from feedgym.data.sources import ReadOptions, Source

BEHAVIORS, NEWS = "behaviors.tsv", "news.tsv"
VISIT = ("visit", "user_id", "time", "history", "shown")
FIELDS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
TIME = "%m/%d/%Y %I:%M:%S %p"
SAYS = (
    "each news shown is an exposure; its place in the visit is unknown",
    "the clicks before a user's first visit (history) have no times and are not read",
)


def find_mind(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds MIND by the names of its files; None if it is not there."""
    if BEHAVIORS not in files:
        return None
    alone = path.is_file() and path.suffix != ".zip"
    all_files = [RawFile(path), *listed(path.parent)] if alone else listed(path)
    visits = [file for file in all_files if file.stem == BEHAVIORS][: 1 if alone else None]
    news = [file for file in all_files if file.stem == NEWS]
    if not news:
        raise ValueError(f"{path}: has {BEHAVIORS}, but no {NEWS} beside it; put both in one folder.")

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        from feedgym.data.table import log_of_rows

        shown = pd.concat([_shown(file, number) for number, file in enumerate(visits)], ignore_index=True)
        items = pd.concat([_news(file) for file in news]).drop_duplicates("item_id")
        return log_of_rows(visits[0], shown, news[0], items[items["item_id"].isin(shown["item_id"])], options)

    return Source(name="MIND", files=(*visits, *news), says=SAYS, read=read)


def _shown(file: RawFile, number: int) -> pd.DataFrame:
    """One row per news shown, of the ``number``-th file."""
    table = delimited(file, "\t", VISIT, words=True)
    refuse(file, table, "user_id", table["user_id"].isna(), "is empty", "drop those rows")
    time = pd.to_datetime(table["time"], format=TIME, errors="coerce")
    refuse(file, table, "time", time.isna(), "is not as 11/11/2019 9:05:58 AM", "fetch the file again")
    names = table["shown"].fillna("").str.split()
    count = names.map(len).to_numpy()
    parts = names.explode().dropna().str.rpartition("-")
    parts = parts.rename(columns={0: "item_id", 2: "shown"})
    unknown = ~parts["shown"].isin(["0", "1"])
    refuse(file, parts, "shown", unknown, "has no clicks (-0 or -1), as in the test set", "read train or dev")
    row = np.repeat(np.arange(len(table)), count)
    return pd.DataFrame(
        {
            "user_id": table["user_id"].to_numpy()[row],
            "item_id": parts["item_id"].to_numpy(),
            "timestamp": time.to_numpy()[row],
            "session_id": [f"{number}/{r}" for r in row],
            "click": parts["shown"].astype(int).to_numpy(),
        }
    )


def _news(file: RawFile) -> pd.DataFrame:
    table = delimited(file, "\t", FIELDS, words=True)
    return pd.DataFrame(
        {"item_id": table["item_id"], "text": joined(table[["title", "abstract"]], ". "), "topic": table["subcategory"]}
    )
