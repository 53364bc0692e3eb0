"""KuaiRec (Gao et al., 2022), Kuaishou's videos: ``big_matrix.csv`` or ``small_matrix.csv``, and facts beside them.

The columns are ``user_id, video_id, play_duration, video_duration, time, date, timestamp, watch_ratio``, with lengths
in milliseconds and times in seconds. Rows without a time (the small matrix has some) are left out. KuaiRec records no
clicks: every row is a click, and a ``long_view`` if the video was watched to its end. A video's topic is the first tag
of ``item_categories.csv``. Profiles are the fields of ``user_features.csv`` that are groups. The clock is Beijing's.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from feedgym.data.events import Catalog, EventLog
from feedgym.data.public.files import RawFile, delimited, need, numbers, with_neighbours
from feedgym.data.sources import ReadOptions, Source, keeps_clock

MATRICES = ("big_matrix.csv", "small_matrix.csv")
TAGS, USERS = "item_categories.csv", "user_features.csv"
COLUMNS = ("user_id", "video_id", "play_duration", "video_duration", "timestamp")
GROUPS = (
    *("user_active_degree", "is_live_streamer", "is_video_author"),
    *("follow_user_num_range", "fans_user_num_range", "friend_user_num_range", "register_days_range"),
)
BEIJING_S = 8 * 3600
SAYS = (
    "every row is a click, and a long_view if the video was watched to its end; rows without a time are left out",
    "times are Beijing's",
)


def find_kuairec(path: Path, files: dict[str, RawFile]) -> Source | None:
    """Finds KuaiRec by the names of its files; None if it is not there."""
    found = [name for name in MATRICES if name in files]
    if not found:
        return None
    files = with_neighbours(path, files, rf"{TAGS}|{USERS}")
    matrix, tags, users = files[found[0]], files.get(TAGS), files.get(USERS)
    other = [f"{name} is not read; give its path to read it" for name in found[1:]]

    def read(options: ReadOptions) -> tuple[EventLog, Catalog]:
        from feedgym.data.table import log_of_rows

        keeps_clock(matrix, "KuaiRec's times become Beijing's by themselves", options)
        views = _views(matrix)
        if users is not None:
            views = views.join(_profiles(users), on="user_id")
        items = None if tags is None else _topics(tags, views["item_id"])
        return log_of_rows(matrix, views, tags, items, options)

    files_read = tuple(file for file in (matrix, tags, users) if file is not None)
    return Source(name="KuaiRec", files=files_read, says=(*SAYS, *other), read=read)


def _views(file: RawFile) -> pd.DataFrame:
    table = need(file, delimited(file, ",", None), COLUMNS)
    watch_s, last_s = numbers(file, table, "play_duration") / 1000, numbers(file, table, "video_duration") / 1000
    views = pd.DataFrame(
        {
            "user_id": table["user_id"],
            "item_id": table["video_id"],
            "timestamp": numbers(file, table, "timestamp") + BEIJING_S,
            "watch_s": watch_s,
            "duration_s": last_s,
            "click": 1,
            "long_view": (watch_s >= last_s).astype(int),
        }
    )
    return views[views["timestamp"].notna()]


def _topics(file: RawFile, asked: pd.Series) -> pd.DataFrame:
    """The videos asked for, with their first tag; ``feat`` is a list such as "[27, 9]"."""
    table = need(file, delimited(file, ",", None, quoted=True), ("video_id", "feat")).drop_duplicates("video_id")
    topic = table.set_index("video_id")["feat"].astype(str).str.extract(r"(\d+)")[0]
    items = pd.Index(asked.unique()).sort_values()
    return pd.DataFrame({"item_id": items, "topic": topic.reindex(items).to_numpy()})


def _profiles(file: RawFile) -> pd.DataFrame:
    table = delimited(file, ",", None, quoted=True).drop_duplicates("user_id").set_index("user_id")
    return table[[name for name in GROUPS if name in table]].add_prefix("profile_")
