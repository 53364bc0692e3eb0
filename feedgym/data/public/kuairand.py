"""KuaiRand (Gao et al., arXiv:2208.08696): short-video exposures of Kuaishou with every feedback, in its own files.

The log's clock counts seconds since 1970-01-01 00:00 in Beijing, where the users live, so that times of day are local.
Item embeddings come from the author, the tags, the kind, the length and the upload date only. The published statistics
of a video are aggregates over the whole month and would leak what is to be predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow.parquet import read_schema as parquet_schema

from feedgym.data.build import assemble_log, cut_visits, encode_profile
from feedgym.data.content import attribute_embeddings, collaborative_embeddings, default_cutoff_s
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, EventLog
from feedgym.data.public.files import BROKEN, RawFile, numbers, plain, whole_numbers
from feedgym.data.public.interactions import k_core, time_order
from feedgym.data.sources import ReadOptions, Source, keeps_clock
from feedgym.data.splits import RANDOM

BEIJING_S = 8 * 3600
FIRST_DAY_S = pd.Timestamp("2022-04-08").timestamp()
"""The data set's first moment, on the log's clock."""

LOG_PATTERN, RANDOM_PATTERN = "log_standard_*", "log_random_*"
VIDEOS, USERS, EARLIER = "video_features_basic_*", "user_features_*", "user_sequences.parquet"
COLUMN_OF = {name: name if name == "long_view" else f"is_{name}" for name in BEHAVIOURS}
EARLIER_NUMBERS = ("user_id", "history_len", "last_time_ms")
EARLIER_LISTS = ("watch_seq", "like_seq", "long_watch_seq")
LOG_COLUMNS = ("user_id", "video_id", "time_ms", "play_time_ms", *COLUMN_OF.values())
EXTRA = {
    "tab": ("tab", 1),
    "profile_enter": ("is_profile_enter", 1),
    "profile_stay_s": ("profile_stay_time", 1000),
    "comment_stay_s": ("comment_stay_time", 1000),
}
"""Names of ``EventLog.extra``, the log's columns (all versions of KuaiRand have them) and their divisors."""
MORE_COLUMNS = ("duration_ms", *(column for column, _ in EXTRA.values()))
VIDEO_COLUMNS = (
    *("video_id", "author_id", "video_type", "upload_dt", "upload_type", "video_duration", "music_type", "tag"),
)
ONE_HOT = tuple(f"onehot_feat{n}" for n in (0, 1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17))
"""The encrypted user features with at most 50 values; the others would almost identify the user."""
PROFILE_FIELDS = (
    *("user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range", "fans_user_num_range"),
    *("friend_user_num_range", "register_days_range", *ONE_HOT),
)
OWN_FILE = "drop those rows, or take KuaiRand's own file"
LONG_VIEW_S = 18.0
"""A long view is a video watched to its end, or for this long (the data set's definition)."""


RANDOM_RULE = (
    f"{RANDOM_PATTERN}: videos drawn at random, flagged in extra_random; propensity 1 / the number of different videos"
)
EARLIER_RULE = f"{EARLIER}: earlier exposures come first, with times made up evenly and without watch times"


def kuairand_files(folder: str | Path) -> list[Path]:
    """The files of KuaiRand in a folder."""
    return sorted(
        path for pattern in (LOG_PATTERN, RANDOM_PATTERN, VIDEOS, USERS, EARLIER) for path in Path(folder).glob(pattern)
    )


def is_kuairand(folder: str | Path) -> bool:
    """True if a folder holds KuaiRand's files."""
    logs = (*Path(folder).glob(LOG_PATTERN), *Path(folder).glob(RANDOM_PATTERN)) if Path(folder).is_dir() else ()
    return bool(logs) and any(Path(folder).glob(VIDEOS))


def find_kuairand(path: Path, _: dict[str, RawFile]) -> Source | None:
    """Recognises a folder with KuaiRand's files by their names; None otherwise."""
    if not is_kuairand(path):
        return None
    says = ["every exposure was examined"]
    says += [RANDOM_RULE] if any(path.glob(RANDOM_PATTERN)) else []
    says += [EARLIER_RULE] if (path / EARLIER).exists() else []
    return Source(
        name="KuaiRand",
        files=tuple(RawFile(file) for file in kuairand_files(path)),
        says=tuple(says),
        read=lambda options: read_kuairand(path, options=options),
    )


def read_kuairand(
    folder: str | Path,
    *,
    content_width: int = 64,
    collaborative: bool = False,
    collaborative_before_s: float | None = None,
    earlier: bool = True,
    random: bool = True,
    options: ReadOptions | None = None,
) -> tuple[EventLog, Catalog]:
    """Reads the logs of KuaiRand (Pure, 1K or 27K), standard and random, with their users and videos.

    Exposures of ``log_random_*`` took the place of recommended videos. Each of these "has an equal probability of being
    replaced by a random video sampled from an item pool" (kuairand.com). They are sorted among the others by time. They
    have ``EventLog.extra["random"]`` 1 and the propensity 1 / (different videos of the random log): 1 / 7,583 in the
    published files. Those videos have about equally many exposures (half of them 162 or more, the most shown 214). The
    propensity is the video's chance in a place that is filled at random. Which places are filled so is not logged, and
    no other propensity is known (NaN). :func:`feedgym.data.splits.random_exposures` returns these rows; figures on them
    have no exposure bias.

    Rows that repeat (user, video, time) are dropped, and visits are cut at pauses of half an hour. If the folder has
    ``user_sequences.parquet`` (each user's last exposures before the log, in order but without times), those come
    first. They are spread evenly from the data set's first day to the last of them. Their long views and likes are
    known; a long view counts as a click that was watched for the least time that makes one. Other behaviours and watch
    times are unknown and set to 0. These exposures belong to no visit, so they are history and positive targets, never
    logged sessions.

    The log has twelve kinds of feedback. Seven are behaviours and the play time is ``watch_s``. Profile visits, the
    times spent on profiles and comments, and the tab are in ``EventLog.extra``. A video's length comes from the video
    file, else from the log's ``duration_ms``.

    Args:
        folder: holds ``log_standard_*``, ``video_features_basic_*`` and ``user_features_*`` (CSV, CSV.gz or parquet).
        content_width: E of the content embeddings.
        collaborative: append this many dimensions learnt from which videos the same users liked.
        collaborative_before_s: those dimensions use only events before this time on the log's clock; by default the
            time before which four fifths of the exposures lie.
        earlier: read ``user_sequences.parquet`` where it exists.
        random: read ``log_random_*`` if there are such files.
        options: the order of ties, the share of users and the k-core; there are no texts. If only some users are read,
            the files are read in chunks, so that KuaiRand-27K need not fit in memory at once.

    Returns:
        The log, and the catalogue of all videos in the video file; if not all users are read, of the videos that occur.

    Raises:
        ValueError: a file or a column is missing, or a log names a video that is not in the video file.
    """
    folder, options = Path(folder), options or ReadOptions()
    keeps_clock(folder, "KuaiRand's clock is Beijing's already", options)
    has_earlier = earlier and (folder / EARLIER).exists()
    random_paths = sorted(folder.glob(RANDOM_PATTERN)) if random else []
    log_paths = [*sorted(folder.glob(LOG_PATTERN)), *random_paths]
    if not log_paths:
        raise ValueError(f"{folder}: no file {LOG_PATTERN}; unpack KuaiRand's data folder there.")
    chance = 1 / _pool_size(random_paths) if random_paths else np.nan
    raw = {path: _read_numbers(path, LOG_COLUMNS, MORE_COLUMNS, _of_users(options)) for path in log_paths}
    some = options.users < 1 and not has_earlier
    seen = pd.Index(pd.concat([table["video_id"] for table in raw.values()]).unique()) if some else None
    video_file = _one(folder, VIDEOS)
    videos = _read_keyed(video_file, VIDEO_COLUMNS, _of_videos(seen))
    videos = videos.assign(video_duration=numbers(video_file, videos, "video_duration"))
    parts = [
        _exposures(path, raw.pop(path), videos).assign(
            random=path in random_paths, propensity=chance if path in random_paths else np.nan
        )
        for path in log_paths
    ]
    videos = videos.assign(video_duration=_known_durations(videos, parts))
    if has_earlier:
        part = _earlier_exposures(folder / EARLIER, videos)
        parts.append(part[options.chosen(part["user_id"])])
    rows = pd.concat(parts, ignore_index=True)  # the log comes first: its row is kept for an exposure in both
    rows = k_core(rows.drop_duplicates(["user_id", "item_id", "timestamp_s"]), options.core)
    if rows.empty:
        raise ValueError(f"{folder}: the logs have no rows; check the download, lower core, or raise users.")
    order = time_order(rows["user_id"].to_numpy(), rows["timestamp_s"].to_numpy(), options)
    rows = rows.iloc[order].reset_index(drop=True)
    log = _log(rows, _read_keyed(_one(folder, USERS), ("user_id", *PROFILE_FIELDS)))
    content_IE = _content(videos, content_width)
    if collaborative:
        before_s = default_cutoff_s(log) if collaborative_before_s is None else collaborative_before_s
        liked_IE = collaborative_embeddings(log, len(videos), content_width, before_s=before_s)
        content_IE = np.concatenate([content_IE, liked_IE], axis=1)
    return log, _catalog(videos, content_IE, collaborative)


def _one(folder: Path, pattern: str) -> Path:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"{folder}: no file {pattern}; copy it there from KuaiRand's data folder.")
    return paths[0]


Keep = Callable[[pd.DataFrame], NDArray[np.bool_]] | None
"""Selects the wanted rows of a table; None wants all."""

CHUNK = 2_000_000
"""Rows read at a time if not all are wanted."""


def _of_users(options: ReadOptions) -> Keep:
    return None if options.users == 1 else lambda table: options.chosen(table["user_id"])


def _of_videos(seen: pd.Index | None) -> Keep:
    return None if seen is None else lambda table: table["video_id"].isin(seen).to_numpy()


def _read(path: Path, columns: tuple[str, ...], more: tuple[str, ...] = (), keep: Keep = None) -> pd.DataFrame:
    """Reads the named columns of a CSV or parquet file, and those of ``more`` that it has."""
    try:
        if path.suffix == ".parquet":
            there = set(parquet_schema(path).names)
            table = pd.read_parquet(path, columns=[*columns, *(name for name in more if name in there)])
            return table if keep is None else table[keep(table)]
        header = pd.read_csv(path, nrows=0)
        wanted = [*columns, *(name for name in more if name in header)]
        if keep is None:
            return pd.read_csv(path, usecols=wanted, low_memory=False)
        with pd.read_csv(path, usecols=wanted, low_memory=False, chunksize=CHUNK) as chunks:
            return pd.concat([chunk[keep(chunk)] for chunk in chunks])
    except BROKEN as error:
        detail = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: cannot be read to its end ({detail}); fetch the file again.") from error
    except (ValueError, KeyError) as error:
        detail = str(error).splitlines()[0]
        raise ValueError(f"{path}: needs the columns {', '.join(columns)} ({detail}); take KuaiRand's.") from error


def _refuse(path: Path, column: str, bad: pd.Series, what: str) -> None:
    if bad.any():
        first = bad.index[int(np.argmax(bad))]
        raise ValueError(f"{path}: column {column!r} {what} in {int(bad.sum())} row(s), first row {first}; {OWN_FILE}.")


def _read_numbers(path: Path, columns: tuple[str, ...], more: tuple[str, ...], keep: Keep) -> pd.DataFrame:
    """Reads a file whose named columns must all hold numbers."""
    table = _read(path, columns, more, keep)
    plain(path, table, map(str, table))
    table = table.apply(pd.to_numeric, errors="coerce")
    for name in table:
        _refuse(path, name, table[name].isna() | (table[name] < 0), "is empty, negative or not a number")
    return table


def _read_keyed(path: Path, columns: tuple[str, ...], keep: Keep = None) -> pd.DataFrame:
    """Reads a file with one row for each value of its first named column, an id."""
    table = _read(path, columns, keep=keep)
    plain(path, table, columns)
    ids = {columns[0], "author_id"} & {*columns}
    table = table.assign(**{name: whole_numbers(path, table, name, OWN_FILE) for name in ids})
    _refuse(path, columns[0], table[columns[0]].duplicated(), "repeats a value")
    return table.reset_index(drop=True)


def _item_ids(path: Path, video_id: pd.Series, videos: pd.DataFrame) -> NDArray[np.int64]:
    """Catalogue rows of raw video ids, a column of ``path`` whose index holds the file's rows."""
    item_id = pd.Index(videos["video_id"]).get_indexer(pd.Index(video_id))
    if (item_id < 0).any():
        at = int(np.argmax(item_id < 0))
        raise ValueError(
            f"{path}: column {video_id.name!r} names video {video_id.iloc[at]} in row {video_id.index[at]}, which "
            f"is not in {VIDEOS}; take both files from one version of KuaiRand."
        )
    return item_id.astype(np.int64)


def _pool_size(paths: list[Path]) -> int:
    """Size of the pool that videos were drawn from at random: the different videos that were drawn for any user."""
    drawn = pd.concat([_read(path, ("video_id",))["video_id"] for path in paths])
    return max(int(drawn.nunique()), 1)


def _exposures(path: Path, raw: pd.DataFrame, videos: pd.DataFrame) -> pd.DataFrame:
    flags = {name: (raw[COLUMN_OF[name]] > 0).astype(np.uint8) for name in BEHAVIOURS}
    return pd.DataFrame(
        {
            "user_id": raw["user_id"],
            "item_id": _item_ids(path, raw["video_id"], videos),
            "timestamp_s": raw["time_ms"] / 1000 + BEIJING_S,
            "watch_s": (raw["play_time_ms"] / 1000).astype(np.float32),
            **flags,
            **{name: raw[column] / unit for name, (column, unit) in EXTRA.items() if column in raw},
            "duration_ms": raw.get("duration_ms", np.nan),
            "earlier": False,
        }
    )


def _known_durations(videos: pd.DataFrame, parts: list[pd.DataFrame]) -> pd.Series:
    """Lengths in milliseconds, from the logs where the video file has none."""
    longest = pd.concat([part.groupby("item_id")["duration_ms"].max() for part in parts]).groupby(level=0).max()
    published = videos["video_duration"].where(videos["video_duration"] > 0)
    return published.fillna(longest.where(longest > 0).reindex(videos.index))


def _earlier_exposures(path: Path, videos: pd.DataFrame) -> pd.DataFrame:
    """The exposures before the log, with times made up evenly between the first day and the last exposure."""
    users = _read(path, (*EARLIER_NUMBERS, *EARLIER_LISTS))
    users = users.assign(**{name: whole_numbers(path, users, name, OWN_FILE) for name in EARLIER_NUMBERS})
    for name in EARLIER_LISTS:
        lists: Any = [_ids(path, name, row, value) for row, value in enumerate(users[name])]
        users[name] = pd.Series(lists, index=users.index, dtype=object)
    size = np.array([len(value) for value in users["watch_seq"]], dtype=np.int64)
    _refuse(path, "history_len", users["history_len"] < np.maximum(size, 1), "is too small")
    user = np.repeat(np.arange(len(users)), size)
    rows = pd.DataFrame({"user": user, "video_id": users["watch_seq"].explode().dropna().astype(np.int64).to_numpy()})
    from_end = np.cumsum(size)[user] - 1 - np.arange(len(rows))
    last_s = users["last_time_ms"].to_numpy() / 1000 + BEIJING_S
    step_s = (last_s - FIRST_DAY_S) / users["history_len"].to_numpy()  # of all earlier exposures, listed or not
    long_view, like = (_marked(rows, users[name]) for name in ("long_watch_seq", "like_seq"))
    item_id = _item_ids(path, rows["video_id"].set_axis(user).rename("watch_seq"), videos)
    least_s = np.minimum(_duration_s(videos)[item_id], LONG_VIEW_S)
    flags = dict.fromkeys(BEHAVIOURS, np.uint8(0)) | {"click": long_view | like, "long_view": long_view, "like": like}
    return pd.DataFrame(
        {
            "user_id": users["user_id"].to_numpy()[user],
            "item_id": item_id,
            "timestamp_s": last_s[user] - from_end * step_s[user],
            "watch_s": np.where(long_view, least_s, 0).astype(np.float32),
            **flags,
            "earlier": True,
            "random": False,
            "propensity": np.nan,
        }
    )


def _ids(path: Path, name: str, row: int, value: Any) -> NDArray[np.int64]:
    """A list of video ids; an empty cell is an empty list."""
    listed = np.asarray([] if value is None else value)
    if listed.ndim != 1 or (listed.size and listed.dtype.kind not in "iu"):
        raise ValueError(f"{path}: column {name!r} holds no list of ids in row {row}; {OWN_FILE}.")
    return listed.astype(np.int64)


def _marked(rows: pd.DataFrame, subsequence: pd.Series) -> NDArray[np.uint8]:
    """Flags rows in their user's subsequence; if an item repeats, the latest rows, as often as the list names it."""
    listed = subsequence.reset_index(drop=True).explode().dropna().astype(np.int64)
    keys = pd.MultiIndex.from_arrays([listed.index, listed.to_numpy()], names=["user", "video_id"])
    counts = pd.Series(1, index=keys).groupby(level=[0, 1]).sum().rename("listed").reset_index()
    wanted = rows.merge(counts, how="left", on=["user", "video_id"])["listed"].fillna(0).to_numpy()
    from_end = rows.groupby(["user", "video_id"]).cumcount(ascending=False).to_numpy()
    return (from_end < wanted).astype(np.uint8)


def _log(rows: pd.DataFrame, users: pd.DataFrame) -> EventLog:
    """The log of sorted exposures; users missing from the user file get a profile of all 0, unknown."""
    user_idx, user_ids_U = pd.factorize(rows["user_id"])
    codes, sizes = encode_profile(users[list(PROFILE_FIELDS)])
    at = pd.Index(users["user_id"]).get_indexer(pd.Index(user_ids_U))
    earlier, timestamp_s = rows["earlier"].to_numpy(), rows["timestamp_s"].to_numpy()
    new_visit = cut_visits(user_idx, timestamp_s) & ~earlier | (np.diff(earlier.astype(np.int8), prepend=0) != 0)
    extra = [name for name in EXTRA if name in rows] + [RANDOM] * bool(rows[RANDOM].any())
    return assemble_log(
        user_ids_U=np.asarray(user_ids_U, dtype=np.int64),
        profile_UF=np.where(at[:, None] >= 0, codes[at], 0),
        profile_names=PROFILE_FIELDS,
        profile_sizes=sizes,
        user_idx=user_idx,
        timestamp_s=timestamp_s,
        item_id=rows["item_id"].to_numpy(),
        watch_s=rows["watch_s"].to_numpy(),
        behaviours=rows[list(BEHAVIOUR_IDX)].to_numpy(dtype=np.uint8),
        new_visit=new_visit,
        without_login=earlier,
        propensity=rows["propensity"].to_numpy(dtype=np.float32),
        extra={name: rows[name].to_numpy(dtype=np.float32) for name in extra},
    )


def _duration_s(videos: pd.DataFrame) -> NDArray[np.float64]:
    """Lengths; picture posts have none and get the median."""
    duration_ms = videos["video_duration"].where(videos["video_duration"] > 0)
    return (duration_ms.fillna(duration_ms.median()).fillna(1000.0) / 1000).to_numpy()


def _content(videos: pd.DataFrame, width: int) -> NDArray[np.float32]:
    length = pd.qcut(videos["video_duration"], 10, labels=False, duplicates="drop").fillna(-1).astype(int)
    words = "length=" + length.astype(str) + " author=" + videos["author_id"].astype(str)
    for name in ("video_type", "upload_dt", "upload_type", "music_type"):
        words += (f" {name}=" + videos[name].astype(str)).fillna("")
    words += (" tag=" + videos["tag"].astype("string").str.replace(",", " tag=")).fillna("").astype(str)
    return attribute_embeddings(words, np.log(_duration_s(videos))[:, None], width)


def _catalog(videos: pd.DataFrame, content_IE: NDArray[np.float32], collaborative: bool) -> Catalog:
    first_tag = videos["tag"].astype("string").str.split(",").str[0]
    tags = pd.to_numeric(first_tag, errors="coerce")
    upload = pd.to_datetime(videos["upload_dt"], errors="coerce")
    upload_s = (upload - pd.Timestamp(0)).dt.total_seconds()
    return Catalog(
        raw_ids_I=videos["video_id"].to_numpy(dtype=np.int64),
        content_IE=content_IE,
        content_from="author, tags, kind, length and upload date" + (" beside co-occurrence" if collaborative else ""),
        topic_I=pd.factorize(tags, sort=True)[0].astype(np.int32),
        duration_s_I=_duration_s(videos).astype(np.float32),
        creator_I=videos["author_id"].to_numpy(dtype=np.int64),
        upload_s_I=np.asarray(upload_s.fillna(FIRST_DAY_S), dtype=np.float64),
    )
