"""One user at one moment, for people: the last visit, and its text.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, DAY_S, BoolArray, Catalog, FloatArray, IntArray

TRAIL = 30
"""Number of past visits that are shown."""
TOPICS = 8
"""Number of topics that are shown: those the user liked best over the past visits."""
BAR = 10
"""Characters of the bar for an item's whole duration."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One session with one user's response; see :class:`feedgym.protocols.Response`.

    Attributes:
        items_K: item ids.
        examined_K, watch_s_K, behaviours_KB: the responses to them.
        elapsed_s, left, return_gap_s, churned: the end of the visit.
        reward: reward of the session.
        parts: weighted components of the reward that are not 0.
    """

    items_K: IntArray
    examined_K: BoolArray
    watch_s_K: FloatArray
    behaviours_KB: NDArray[np.uint8]
    elapsed_s: float
    left: bool
    return_gap_s: float
    churned: bool
    reward: float
    parts: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One user at one moment, with everything that text and pictures need.

    Attributes:
        catalog: the items.
        user: the user's seed.
        profile: names and values of the profile's fields.
        visit: number of the visit shown, from 1.
        page: number of the session within the visit, from 1; higher only if visits are served page by page.
        start_s: time at which the session began, or will begin.
        session: the session; None before the first visit.
        is_truth: true if the taste is the simulator's truth.
        taste_M: affinity to all topics at the login, or the share of the seconds watched so far.
        topic_T: topics shown, in descending order of interest.
        taste_VT: taste at the last V visits for these topics.
        tired_VT: satiation with these topics at the login; zeros if unknown.
        reward_V: rewards of the last V visits.
    """

    catalog: Catalog
    user: int
    profile: dict[str, int]
    visit: int
    page: int
    start_s: float
    session: Session | None
    is_truth: bool
    taste_M: FloatArray
    topic_T: IntArray
    taste_VT: FloatArray
    tired_VT: FloatArray
    reward_V: FloatArray

    @property
    def who(self) -> str:
        """Short name of the user; seeds of later users have 64 bits."""
        return f"user {self.user}" if self.user < 10**6 else f"user {self.user % 2**32:08x}"

    @property
    def when(self) -> str:
        """Visit, page and time."""
        page = f", page {self.page}" if self.page > 1 else ""
        return f"visit {self.visit}{page} · {clock(self.start_s)}"

    @property
    def traits(self) -> str:
        """The profile."""
        return ", ".join(f"{name} {value}" for name, value in self.profile.items())


def as_text(view: View) -> str:
    """A visit as text with one item per line, between a header and a footer."""
    lines = [f"{view.who} · {view.when} · {textwrap.shorten(view.traits, 80, placeholder=' …')}"]
    session = view.session
    if session is None:
        lines.append("  no session served yet")
    else:
        width = max(len(item_name(view.catalog, item)) for item in session.items_K)
        lines += [_item_line(view, session, k, width) for k in range(len(session.items_K))]
        lines += [f"  {ending(view)}", f"  {reward_sum(session)}"]
    if line := _interest_line(view):
        lines.append(f"  {line}")
    return "\n".join(lines) + "\n"


def _item_line(view: View, session: Session, k: int, width: int) -> str:
    catalog, item = view.catalog, int(session.items_K[k])
    topic = int(catalog.topic_I[item])
    title = "" if catalog.text_I is None else str(catalog.text_I[item])[:40]
    about = f"{k + 1:>3}  {item_name(catalog, item):<{width}}  {topic_name(topic):<9}"
    if view.is_truth:
        about += f" ({view.taste_M[topic]:.2f})".ljust(8) if topic >= 0 else " " * 8
    about += f" {catalog.duration_s_I[item]:>5.0f} s  "
    if not session.examined_K[k]:
        return f"{about}{'·' * BAR}   not reached  {title}".rstrip()
    did = " ".join(behaviours_of(session, k)) or "skipped"
    leaves = "  << left here" if left_at(session) == k else ""
    watched = f"{bar(session.watch_s_K[k] / catalog.duration_s_I[item])}{session.watch_s_K[k]:>5.0f} s"
    return f"{about}{watched}  {did}{leaves}  {title}".rstrip()


def bar(fraction: float) -> str:
    """Watched part of an item, as a bar of BAR characters, and a + if it was watched again."""
    eighths = round(min(float(fraction), 1) * BAR * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return f"{drawn:░<{BAR}}{'+' if fraction > 1.005 else ' '}"


def behaviours_of(session: Session, k: int) -> list[str]:
    """Names of the behaviours at position k."""
    return [name for name, flag in zip(BEHAVIOURS, session.behaviours_KB[k], strict=True) if flag]


def left_at(session: Session) -> int:
    """The position after which the user left early; -1 if they stayed to the end, or never looked."""
    return int(session.examined_K.sum()) - 1 if session.left else -1


def clock(time_s: float) -> str:
    """Formats a time on the log's clock, whose zero is the midnight before day 1."""
    day, second = divmod(time_s, DAY_S)
    return f"day {int(day) + 1}, {int(second // 3600):02}:{int(second % 3600 // 60):02}"


def span(seconds: float) -> str:
    """Formats a length of time in a suitable unit."""
    for unit, name in ((DAY_S, "days"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def item_name(catalog: Catalog, item: int) -> str:
    """The item's id outside feedgym."""
    return str(catalog.raw_ids_I[item])


def title_of(catalog: Catalog, item: int) -> str:
    """The item's text, or its id if it has none."""
    title = "" if catalog.text_I is None else str(catalog.text_I[item])
    return title or item_name(catalog, item)


def topic_name(topic: int) -> str:
    """A topic tag."""
    return f"topic {topic}" if topic >= 0 else "no topic"


def ending(view: View) -> str:
    """Text about the end of the visit and the user's return."""
    session = view.session
    assert session is not None
    seen, length = int(session.examined_K.sum()), len(session.items_K)
    stayed = f"left after {seen} of {length} items" if session.left else f"saw all {length} items"
    if session.churned:
        return f"{stayed}, {span(session.elapsed_s)}; never comes back"
    if session.return_gap_s == 0:  # page by page: the visit is not over
        return f"{stayed}, {span(session.elapsed_s)}; still here"
    back_s = view.start_s + session.elapsed_s + session.return_gap_s
    return f"{stayed}, {span(session.elapsed_s)}; back in {span(session.return_gap_s)} ({clock(back_s)})"


def reward_sum(session: Session) -> str:
    """Text about the reward and its parts."""
    terms = " ".join(f"{value:+.2f} {name}" for name, value in session.parts.items())
    return f"reward {session.reward:.2f}" + (f" = {terms}" if terms else "")


def _interest_line(view: View) -> str:
    """Text about the topics liked best at this visit's login."""
    taste_T, tired_T = view.taste_VT[-1], view.tired_VT[-1]
    told = [
        f"{topic} {taste:.2f}" + (f" (tired {tired:.2f})" if tired >= 0.005 else "")
        for topic, taste, tired in zip(view.topic_T, taste_T, tired_T, strict=True)
        if taste >= 0.005
    ]
    if not told:
        return ""
    return f"{'true interests (agents never see them)' if view.is_truth else 'watched by topic'}: {', '.join(told[:5])}"
