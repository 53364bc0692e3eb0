"""The columnar data of the project, in NumPy: catalogues, event logs and logged sessions.

THE LEGEND. Array names end in the letters of their axes, everywhere in this project. For example, ``watch_s_UK`` holds
the seconds that each user watched each item of their session. The first column is the usual meaning of a letter, the
second its other meanings in some parts. A module's docstring says when another meaning applies::

    U users
    S samples per user                  agents/sequences: negatives drawn for a row
    T history length                    text: tokens of a text; slates, render: topics; recsim: steps of time
    K session length: the places of a session or a slate, the candidates of a request
                                        tokenizers: clusters near a point
    N rows: logged sessions, requests; in networks and tokenizers whatever is processed singly (tokens, points, draws)
                                        probes and stop rules of an alignment: its rounds; statistics: runs
    I items
    B behaviours                        tokenizers: bits of a hash, points of a block
    E content width                     mixtures of experts: experts
    F profile fields                    feed-forward layers: their width; slates: features of an item
    L code levels
    C codes per level                   clusters; cascade, logging policies: candidates; rankers: tokens of the context
    V vocabulary                        realism, replay: visits
    D model width                       simulators: latent width; logging policies, retention: days
    P preference pairs
    M positions of the sequence of tokens that a network reads
                                        simulators, render: topics; rankers, comparisons of methods: tasks
    Q queries of attention              ranking: requests of a row; learned users: quantiles
    H heads of attention                simulators: hours or parts of the day
    R rows decoded together             experiments: resamples; realism: ranks; logging policies: rules;
                                        truth: replicas; short video: the items remembered
    J items of a short list, such as those that must not be served again
                                        short video: the topics that a user loves; proto-actions: points of one
    G groups                            assignment: points of one group; logging policies: urns; learned users: donors;
                                        alignment: sessions of a user's group
    W children of a node, at most       ranking networks: places of a window, thresholds of watching;
                                        short video: the width of what an item shows of itself
                                        probes: held-out reward models
    O outputs of the reward model
    A numbers of a continuous action    off-policy evaluation: all slates of a small catalogue
    Y numbers that describe an event
    Z places of a sequence: its start, profile and context among them
                                        HSTU as a ranker: tokens of an event
    X whatever has no letter: features, numbers of a row, nodes of a tree

A digit is an axis of that many entries: ``limit_U1`` is [U, 1]. Offsets (``offsets_U1``, ``first_U1``) have U + 1.

Names carry units: ``_s`` seconds, ``prob_``/``logp_``/``logit_`` probabilities and their logs, ``num_`` counts, ``_id``
identifiers and ``_idx`` positions in an array. Item ids inside feedgym are dense: 0..I-1, the row of the item in the
:class:`Catalog`; -1 means "no item". Users are likewise rows 0..U-1 of an :class:`EventLog`. The ids used outside
feedgym are kept in ``user_ids_U`` and ``Catalog.raw_ids_I``.

An :class:`EventLog` holds one event stream per user (HSTU, arXiv:2402.17152, §2.2): a profile event, then visits. A
visit is a login, the impressions in the order of the session, and a logout.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.integer]
BoolArray = NDArray[np.bool_]

DAY_S = 86_400.0

BEHAVIOURS = ("click", "long_view", "like", "follow", "comment", "forward", "hate")
"""The B behaviours, in the order of every ``_B`` axis. "click" in a one-column feed means "did not skip"."""

BEHAVIOUR_IDX = {name: idx for idx, name in enumerate(BEHAVIOURS)}


class Event(IntEnum):
    """Kind of an event in a log; the order here is the order of simultaneous events."""

    PROFILE = 0
    LOGIN = 1
    IMPRESSION = 2
    LOGOUT = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """Everything that a recommender may know about the items. Row i is item id i.

    Attributes:
        raw_ids_I: the items' ids outside feedgym (int64 or str).
        content_IE: float32 content embeddings.
        topic_I: int32 topic tag, 0..num_topics-1, or -1 where unknown; tags may be wrong.
        duration_s_I: float32 length of the item, seconds, > 0.
        creator_I: int64 creator id.
        upload_s_I: float64 upload time on the log's clock, seconds; may be negative (before the log began).
        text_I: str words about the item, "" where there are none; None if no item has text.
        withdraw_s_I: float64 time at which the item is withdrawn, infinite where it stays; None if all stay.
        content_from: source of ``content_IE``, for people to read; "" if unknown.
    """

    raw_ids_I: NDArray
    content_IE: FloatArray
    topic_I: IntArray
    duration_s_I: FloatArray
    creator_I: IntArray
    upload_s_I: NDArray[np.float64]
    text_I: NDArray | None = None
    content_from: str = ""
    withdraw_s_I: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "content_from"}
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"Catalog columns differ in length: {lengths}; give every column one row per item.")
        bad = ~np.isfinite(self.content_IE).all(axis=1)
        if bad.any():
            raise ValueError(
                f"Catalog.content_IE has NaN or infinite values in {int(bad.sum())} item(s), first item "
                f"{self.raw_ids_I[int(np.argmax(bad))]!r}; drop or impute them before building the catalogue."
            )

    @property
    def num_items(self) -> int:
        """I, the number of items."""
        return len(self.raw_ids_I)

    @property
    def num_topics(self) -> int:
        """One more than the largest topic tag."""
        return int(self.topic_I.max(initial=-1)) + 1

    def exists(self, time_s: NDArray[np.float64], item_ids: IntArray | None = None) -> BoolArray:
        """True for items that can be served at a time: uploaded by then, and not yet withdrawn.

        Args:
            time_s: seconds on the log's clock; any shape.
            item_ids: items whose shape broadcasts with the times, as in ``exists(time_s_U[:, None], slates_UK)``.

        Returns:
            bool of the common shape; without ``item_ids`` all items in a last axis of their own, [..., I].
        """
        time_s = np.asarray(time_s)
        if item_ids is None:
            time_s, item_ids = time_s[..., None], np.arange(self.num_items)
        uploaded = self.upload_s_I[item_ids] <= time_s
        return uploaded if self.withdraw_s_I is None else uploaded & (time_s < self.withdraw_s_I[item_ids])


@dataclass(frozen=True, kw_only=True, eq=False)
class EventLog:
    """Event streams of U users, one row per event, sorted by (user, time); user u owns rows offsets[u]:offsets[u+1].

    Attributes:
        user_ids_U: ids outside feedgym (int64 or str), one per user.
        offsets_U1: int64 [U+1], CSR offsets of the users' rows.
        profile_UF: int64 profile fields, 0..profile_sizes[f]-1.
        profile_names: the F names of the profile fields.
        profile_sizes: the F cardinalities of the profile fields.
        timestamp_s: float64 [rows] seconds on the log's clock.
        event: int8 [rows], an :class:`Event`.
        session_id: int32 [rows] visit number of the user, -1 for profile rows; increases with time.
        position: int16 [rows] place in the session, 0..K-1; -1 where the row is not an impression.
        item_id: int32 [rows] dense item id; -1 where the row is not an impression.
        watch_s: float32 [rows] seconds watched.
        examined: bool [rows], true where the user reached the item. A served item that was never seen has examined
            false and no behaviours, so that the log does not claim a dislike for something unseen.
        behaviours: uint8 [rows, B], 0 or 1.
        propensity: float32 [rows] probability that the logging policy chose this item at this position, given the
            earlier ones; NaN where unknown.
        extra: float32 [rows] further feedback by name, where a log has more than feedgym's models use (KuaiRand's tab,
            stays and profile visits). 0 where the row is not an impression, NaN where unknown.
        has_time: true if the times are real. False where only the order of events is known: then the times count one
            second per event and mean nothing else.
    """

    user_ids_U: NDArray
    offsets_U1: NDArray[np.int64]
    profile_UF: NDArray[np.int64]
    profile_names: tuple[str, ...]
    profile_sizes: tuple[int, ...]
    timestamp_s: NDArray[np.float64]
    event: NDArray[np.int8]
    session_id: NDArray[np.int32]
    position: NDArray[np.int16]
    item_id: NDArray[np.int32]
    watch_s: FloatArray
    examined: BoolArray
    behaviours: NDArray[np.uint8]
    propensity: FloatArray
    extra: dict[str, FloatArray] = field(default_factory=dict)
    has_time: bool = True

    @property
    def num_users(self) -> int:
        """U, the number of users."""
        return len(self.user_ids_U)

    @property
    def num_events(self) -> int:
        """Number of rows."""
        return len(self.timestamp_s)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoggedSessions:
    """The sessions of an event log, one row per session, in the order of the log.

    Attributes:
        user_idx_N: int64 the user's row in the log.
        row_N: int64 the log row where the session begins; the user's history is everything before it.
        start_s_N: float64 time of the login, seconds.
        item_ids_NK: int32 served items in order, -1 after the last one.
        examined_NK: bool.
        watch_s_NK: float32 seconds.
        behaviours_NKB: uint8.
        propensity_NK: float32, NaN where unknown or padded.
        return_gap_s_N: float64 seconds from the session's last event to the user's next login; NaN for the last one
            (not yet observed).
    """

    user_idx_N: NDArray[np.int64]
    row_N: NDArray[np.int64]
    start_s_N: NDArray[np.float64]
    item_ids_NK: NDArray[np.int32]
    examined_NK: BoolArray
    watch_s_NK: FloatArray
    behaviours_NKB: NDArray[np.uint8]
    propensity_NK: FloatArray
    return_gap_s_N: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.user_idx_N)

    def rows(self, idx: NDArray) -> LoggedSessions:
        """The sessions at ``idx`` (an index or boolean array), in that order."""
        return LoggedSessions(**{f.name: getattr(self, f.name)[idx] for f in fields(self)})
