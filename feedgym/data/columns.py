"""Columns of a table that feedgym does not read, and those of them whose names look meaningful."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from feedgym.data.events import BEHAVIOURS

_FEEDBACK = {
    "click": r"click(ed|s)?",
    "long_view": r"(long_?view(ed)?|complet(e|ed|ion)|finish(ed)?|play_?done)",
    "like": r"(likes?|liked|thumbs_?up|favou?rite[ds]?)",
    "follow": r"follow(ed|s)?",
    "comment": r"comment(ed|s)?",
    "forward": r"(forward(ed|s)?|shared?|shares|retweet(ed)?)",
    "hate": r"(hated?|hates|dislike[ds]?|thumbs_?down)",
}
LOOKS_LIKE: dict[str, re.Pattern[str]] = {
    **{name: re.compile(rf"(is_?|has_?|num_?)?{pattern}") for name, pattern in _FEEDBACK.items()},
    "rating": re.compile(r"(ratings?|stars|overall|scores?|labels?|feedback)"),
    "position": re.compile(r"(pos(ition)?|rank(ing)?|slot|place)(_?(idx|index|id|no))?"),
    "session_id": re.compile(r"(session|visit|request|slate|impression_?list)(_?(idx|index|id|no))?"),
    "timestamp": re.compile(r"(unix_?)?(time(_?stamp)?|ts|date(_?time)?|event_?time|t)(_?(ms|us|ns|s|sec|seconds))?"),
    "watch_s": re.compile(r"(watch|play|view|dwell|stay)(_?(ed|ing))?_?(time|duration|seconds|secs?|s|ms)(_?(ms|s))?"),
    "duration_s": re.compile(r"((video|item|content)_?)?(duration|length)(_?(ms|s|sec|seconds))?"),
    "examined": re.compile(r"(is_?)?(examined|seen|viewed|exposed|viewable)"),
    "propensity": re.compile(r"(propensity(_?scores?)?|p_?scores?|action_?prob(ability)?|logging_?prob(ability)?)"),
}
"""feedgym's names, and the lower-case names that others use for the same things."""


def unread(
    where: object, columns: Iterable[object], taken: Mapping[str, str], out: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Messages about the columns of a table of events that are not read.

    Args:
        where: the file's name, for the messages.
        columns: the columns of the file.
        taken: maps feedgym's names to the file's columns that are read.
        out: feedgym's names that are left out on purpose; nothing warns of them.

    Returns:
        Lines that list what is done, and warnings about unread columns whose names look meaningful.
    """
    left = [str(column) for column in columns if str(column) not in taken.values()]
    no_feedback = not any(name in taken for name in (*BEHAVIOURS, "rating"))
    says = [f"{where}: columns that are not read: {', '.join(left)}"] if left else []
    if no_feedback:
        says.append("no column of feedback, so every row that was looked at is a click")
    warns = []
    for column in left:
        small = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")
        name = next((n for n, pattern in LOOKS_LIKE.items() if n not in taken and pattern.fullmatch(small)), None)
        if name is None or name in out:
            continue
        instead = ", and every row counts as a click" if no_feedback and name in (*BEHAVIOURS, "rating") else ""
        remedy = f"if it is {name}, map it: --columns {name}={column}"
        if name == "rating":
            remedy = "make columns of 0 and 1 of it and map them, e.g. like where it is 4 or more"
        elif name in ("watch_s", "duration_s"):
            unit = ":ms" if small.endswith("_ms") else ":UNIT, e.g. :s or :ms"
            too = " and duration_s" if name == "watch_s" and "duration_s" not in taken else ""
            remedy = f"if it is {name}, map it{too}: --columns {name}={column}{unit}"
        warns.append(f"{where}: column {column!r} is not read{instead}; {remedy}.")
    return says, warns
