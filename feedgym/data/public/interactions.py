"""Turns "this user rated that item" into event logs, for MovieLens, Amazon's reviews and lists of items.

The rule, reported for every log that is read this way: each rating is an examined exposure and a ``click``. A rating of
4 or more (of 5) is a ``like``, one of 2 or less a ``hate``. Watch times are unknown, and items that were shown but
passed over are not recorded.

Events of a user at the same time have no order. In Amazon's reviews a day is one time, and the files list a day's items
by their id, which would reveal the last item early. Such events are shuffled under a seed, unless ``ties`` keeps the
file's order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from feedgym.data.build import assemble_log, cut_visits, encode_profile
from feedgym.data.content import collaborative_embeddings, default_cutoff_s
from feedgym.data.events import BEHAVIOUR_IDX, BEHAVIOURS, Catalog, EventLog, FloatArray
from feedgym.data.sources import ReadOptions, keeps_clock
from feedgym.data.splits import without_last
from feedgym.data.text import text_embeddings
from feedgym.data.times import HOUR_S

LIKED, DISLIKED = 4.0, 2.0
RULE = f"every rating is a click, {LIKED:g} or more a like, {DISLIKED:g} or less a hate"
ORDER_ONLY = "only the order of a user's events is known, so they count 0, 1, 2, ... seconds (has_time is false)"
CONTENT_WIDTH = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings:
    """Tables of a data set before they become a log.

    Attributes:
        events: ``user_id``, ``item_id`` and, where known, ``rating`` and ``timestamp`` (seconds). Without a timestamp,
            the rows of a user must be in order.
        items: ``item_id`` and any of ``text``, ``topic``, ``creator``, ``upload_s``; may include items that nobody
            rated.
        users: ``user_id`` and the profile fields.
    """

    events: pd.DataFrame
    items: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"item_id": []}))
    users: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"user_id": []}))


def ratings_log(where: object, ratings: Ratings, options: ReadOptions) -> tuple[EventLog, Catalog]:
    """Makes a log, and a catalogue of the items in it, in the order of their ids.

    Of rows that repeat (user, item, timestamp), only the last is kept.

    Args:
        where: name for messages.
        ratings: the tables.
        options: ties, core, texts.

    Raises:
        ValueError: no event is left.
    """
    events, has_time = ratings.events, "timestamp" in ratings.events
    if has_time:
        events = events.drop_duplicates(["user_id", "item_id", "timestamp"], keep="last")
    events = k_core(events[options.chosen(events["user_id"])], options.core)
    if events.empty:
        raise ValueError(
            f"{where}: no event is left of {len(ratings.events)}; give a fuller file, lower core, or raise users."
        )
    user_idx, user_ids = pd.factorize(events["user_id"])
    item_id, raw_ids_I = pd.factorize(events["item_id"], sort=True)
    if has_time:
        time_s = events["timestamp"] + options.utc_offset * HOUR_S
    else:
        keeps_clock(where, "the data know no times", options)
        time_s = events.groupby("user_id", sort=False).cumcount()
    timestamp_s = time_s.to_numpy(dtype=np.float64)
    order = time_order(user_idx, timestamp_s, options)
    events, user_idx, item_id, timestamp_s = events.iloc[order], user_idx[order], item_id[order], timestamp_s[order]
    profiles = ratings.users.drop_duplicates("user_id").set_index("user_id").reindex(user_ids)
    profile_UF, profile_sizes = encode_profile(profiles)
    log = assemble_log(
        user_ids_U=plain_ids(user_ids),
        profile_UF=profile_UF,
        profile_names=tuple(str(name) for name in profiles),
        profile_sizes=profile_sizes,
        user_idx=user_idx,
        timestamp_s=timestamp_s,
        item_id=item_id,
        watch_s=np.zeros(len(events), dtype=np.float32),
        behaviours=rated_behaviours(events["rating"].to_numpy() if "rating" in events else None, len(events)),
        new_visit=cut_visits(user_idx, timestamp_s) if has_time else np.diff(user_idx, prepend=-1) != 0,
        has_time=has_time,
    )
    return log, _catalog(raw_ids_I, ratings.items, log, options)


def rated_behaviours(rating: NDArray | None, rows: int) -> NDArray[np.uint8]:
    """Behaviours [rows, B] by the rule at the top of this module; only clicks if there are no ratings."""
    behaviours = np.zeros((rows, len(BEHAVIOURS)), dtype=np.uint8)
    behaviours[:, BEHAVIOUR_IDX["click"]] = 1
    if rating is not None:
        behaviours[:, BEHAVIOUR_IDX["like"]] = rating >= LIKED
        behaviours[:, BEHAVIOUR_IDX["hate"]] = rating <= DISLIKED
    return behaviours


def time_order(
    user_idx: NDArray,
    timestamp_s: NDArray,
    options: ReadOptions,
    within: NDArray | None = None,
    position: NDArray | None = None,
) -> NDArray[np.int64]:
    """Sorts rows by user and time; a user's rows at the same time are shuffled or keep the file's order.

    Args:
        user_idx: user of every row.
        timestamp_s: time of every row.
        options: ``ties`` and ``seed``.
        within: rows of the same user and time that share this value stay together, in the file's order (a slate's
            items).
        position: every row's place in the slate; orders a user's rows at the same time, and those within one slate.
    """
    if options.ties == "file" and position is None:
        return np.lexsort((timestamp_s, user_idx))
    rows = len(user_idx)
    luck = np.arange(rows, dtype=np.float64)
    if options.ties == "shuffle":
        luck = np.random.default_rng(options.seed).random(rows)
    if within is not None:
        luck = luck[pd.Series(np.arange(rows)).groupby(within).transform("first").to_numpy()]
    keys = (timestamp_s, user_idx)
    if position is None:
        return np.lexsort((luck, *keys))
    return np.lexsort((luck, position, *keys) if within is None else (position, luck, *keys))


def k_core(events: pd.DataFrame, k: int) -> pd.DataFrame:
    """Keeps the events of users and items that have at least ``k`` of them, repeated until all have."""
    while k > 1 and len(events):
        users, items = (events.groupby(name)[name].transform("size") for name in ("user_id", "item_id"))
        kept = (users >= k) & (items >= k)
        if kept.all():
            break
        events = events[kept]
    return events


def plain_ids(ids: pd.Series | pd.Index | NDArray) -> NDArray:
    """Ids as int64 where they are integers that fit, else as text."""
    values = np.asarray(ids)
    fit = np.issubdtype(values.dtype, np.integer) and values.max(initial=0) <= np.iinfo(np.int64).max
    return values.astype(np.int64 if fit else np.str_)


def read_ids(column: pd.Series) -> pd.Series:
    """Ids that a file holds as text: integers if all are written as such; else text, because "007" is not "7"."""
    different = pd.Series(column.unique())
    if column.isna().any() or not different.astype(str).str.fullmatch(r"0|-?[1-9]\d*").all():
        return column
    try:
        return column.astype(np.int64)
    except (ValueError, OverflowError):  # hashes of 64 bits
        return column


def texts_of(column: pd.Series) -> NDArray:
    """Texts as an array of objects, empty cells as ""."""
    texts = np.empty(len(column), dtype=object)
    texts[:] = column.fillna("").astype(str).to_list()
    return texts


def joined(table: pd.DataFrame, separator: str) -> list[str]:
    """The columns' texts, row by row, without the empty ones."""
    columns = [texts_of(table[name]) for name in table]
    return [separator.join(filter(None, row)) for row in zip(*columns, strict=True)] if columns else [""] * len(table)


def _catalog(raw_ids_I: pd.Index, items: pd.DataFrame, log: EventLog, options: ReadOptions) -> Catalog:
    item_facts = items.drop_duplicates("item_id").set_index("item_id").reindex(raw_ids_I)
    count, begin_s = len(raw_ids_I), float(log.timestamp_s.min())
    text_I = texts_of(item_facts["text"]) if "text" in item_facts else None
    content_IE, content_from = content_of(text_I, log, count, options)
    unknown = pd.Series(np.full(count, np.nan))
    codes = {name: pd.factorize(item_facts.get(name, unknown), sort=True)[0] for name in ("topic", "creator")}
    upload_s_I = item_facts["upload_s"].fillna(begin_s) if "upload_s" in item_facts else np.full(count, begin_s)
    return Catalog(
        raw_ids_I=plain_ids(raw_ids_I),
        content_IE=content_IE,
        topic_I=codes["topic"].astype(np.int32),
        duration_s_I=np.ones(count, dtype=np.float32),
        creator_I=codes["creator"].astype(np.int64),
        upload_s_I=np.asarray(upload_s_I, dtype=np.float64),
        text_I=text_I,
        content_from=content_from,
    )


def content_of(text_I: NDArray | None, log: EventLog, count: int, options: ReadOptions) -> tuple[FloatArray, str]:
    """Content embeddings of items from their texts; if those do not tell items apart, from co-occurrence.

    Co-occurrence uses only events that are known under any split of the log. These are the events of the first four
    fifths of the time, without each user's last two.
    """
    if text_I is not None and options.text != "off":
        content_IE, name = text_embeddings(text_I, options.text, cache=options.cache)
        if np.abs(content_IE[:, 1:]).max(initial=0) > 1e-6:
            return content_IE, f"{name} of the texts"
    past = without_last(log, 2)
    before_s = default_cutoff_s(log) if log.has_time else np.inf
    content_IE = collaborative_embeddings(past, count, CONTENT_WIDTH, before_s=before_s)
    return content_IE, "co-occurrence" + (" in the first four fifths" if log.has_time else "") + ", without last events"
