"""What people see of a feed: the visit that was just paid, as text or as a picture (:mod:`feedgym.envs.picture`).

Rendering is for people, as Gymnasium's is: where a simulator has a method ``interests(state)`` that gives what its
users truly want, two arrays [U, M] of affinities to the topics and satiation with them, that is shown and labelled as
truth. For other simulators it is the share of the time watched that each topic got, which a platform sees too.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from feedgym.data.events import BEHAVIOURS, BoolArray, Catalog, FloatArray, IntArray
from feedgym.envs.catalog import DAY_S
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import Response, UserSimulator

RENDER_MODES = ["ansi", "rgb_array"]
RENDER_FPS = 2
"""Visits a second in a video."""

TRAIL = 30
"""Visits that are looked back on."""
TOPICS = 8
"""Topics that are shown: those the user liked best over the visits looked back on."""
BAR = 10
"""Characters of the bar that is an item's whole duration."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """One session as one user answered it; see :class:`feedgym.protocols.Response`.

    Attributes:
        items_K: item ids.
        examined_K, watch_s_K, behaviours_KB: the answers to them.
        elapsed_s, left, return_gap_s, churned: the end of the visit.
        reward: what it was worth.
        parts: weighted components of the reward, those that are not 0.
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
    """One user at one moment, with all that text and pictures need.

    Attributes:
        catalog: the items.
        user: the user's seed.
        profile: the fields' names and values.
        visit: number of the visit shown, from 1.
        page: number of the session within the visit, from 1; higher only where visits are served page by page.
        start_s: when the session began, or will begin.
        session: what happened; None before the first visit.
        is_truth: what is called taste is the simulator's truth.
        taste_M: affinity to all topics at the login, or the share of the seconds watched so far.
        topic_T: topics shown, best liked first.
        taste_VT: the same for the last V visits and these topics.
        tired_VT: satiation with them at the login; zeros where unknown.
        reward_V: what the last V visits were worth.
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
        """The user, as people read it; seeds of later users have 64 bits."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Visits:
    """One step of the environment, all slots; rows of slots outside the mask mean nothing."""

    mask_U: BoolArray
    state: Any
    slates_UK: IntArray
    response: Response
    reward_U: NDArray[np.floating]
    parts: dict[str, NDArray[np.floating]]
    taste_UM: FloatArray
    tired_UM: FloatArray


class Screen:
    """Remembers the last visits of an environment's slots and renders them.

    Args:
        mode: "ansi" or "rgb_array".
        simulator: the users.
        session_length: K; decides the size of all pictures.
        weights: of the reward's components.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(self, mode: str, simulator: UserSimulator, session_length: int, weights: RewardWeights) -> None:
        if mode not in RENDER_MODES:
            raise ValueError(f"render_mode={mode!r} is unknown; give one of {', '.join(RENDER_MODES)}, or None.")
        self.mode, self.simulator, self.session_length, self.weights = mode, simulator, session_length, weights
        self._steps: deque[_Visits] = deque(maxlen=TRAIL)
        self._visits_U: NDArray[np.int64] = np.zeros(0, np.int64)
        self._watched_s_UM: FloatArray = np.zeros((0, 0), np.float32)

    def greet(self, mask_U: BoolArray) -> None:
        """New users are in the slots of the mask."""
        if len(self._visits_U) != len(mask_U):
            self._visits_U = np.zeros(len(mask_U), np.int64)
            self._watched_s_UM = np.zeros((len(mask_U), self.simulator.catalog.num_topics), np.float32)
        self._visits_U[mask_U] = 0
        self._watched_s_UM[mask_U] = 0

    def record(
        self,
        mask_U: BoolArray,
        state: Any,
        slates_UK: IntArray,
        response: Response,
        parts: Mapping[str, FloatArray],
        reward_U: NDArray[np.floating],
    ) -> None:
        """A visit of the users of the mask.

        Args:
            mask_U: who visited.
            state: all users, at the login.
            slates_UK: sessions of all slots.
            response: answers of those of the mask.
            parts: their unweighted reward components.
            reward_U: rewards of all slots.
        """

        def spread(column: NDArray) -> NDArray:
            whole = np.zeros((len(mask_U), *column.shape[1:]), column.dtype)
            whole[mask_U] = column
            return whole

        self._visits_U[mask_U] += 1
        # What a task level adds to the components of RewardWeights counts as it is.
        worth = {name: spread(part) * getattr(self.weights, name, 1.0) for name, part in parts.items()}
        response = Response(**{f.name: spread(getattr(response, f.name)) for f in fields(response)})
        self._watch(slates_UK, response.watch_s_UK)
        taste_UM, tired_UM = self._interests(state)
        self._steps.append(
            _Visits(
                mask_U=mask_U.copy(),
                state=state,
                slates_UK=slates_UK.copy(),
                response=response,
                reward_U=reward_U.copy(),
                parts=worth,
                taste_UM=taste_UM,
                tired_UM=tired_UM,
            )
        )

    def frames(self, state: Any) -> tuple[Any, ...]:
        """A string, or a picture uint8 [H, W, 3], a slot.

        Args:
            state: the users now; None before the first reset.

        Raises:
            ResetNeeded: there are no users yet.
        """
        if state is None:
            raise ResetNeeded("The feed has no users yet; call reset() before render().")
        views = [self._view(slot, state) for slot in range(len(self._visits_U))]
        if self.mode == "ansi":
            return tuple(as_text(view) for view in views)
        from feedgym.envs.picture import as_picture

        return tuple(as_picture(view, self.session_length) for view in views)

    def _view(self, slot: int, state: Any) -> View:
        """What is known of the user of a slot."""
        visits = [step for step in self._steps if step.mask_U[slot]]
        visits = visits[max(0, len(visits) - int(self._visits_U[slot])) :] if self._visits_U[slot] else []
        last = visits[-1] if visits else None
        if last is None:
            taste_UM, tired_UM = self._interests(state)
            taste_VM, tired_VM = taste_UM[slot][None], tired_UM[slot][None]
        else:
            taste_VM, tired_VM = (
                np.stack([getattr(v, name)[slot] for v in visits]) for name in ("taste_UM", "tired_UM")
            )
        at = state if last is None else last.state
        pages = [v for v in visits if v.state.visit_U[slot] == at.visit_U[slot]]
        topic_T = np.argsort(-taste_VM.max(axis=0), kind="stable")[:TOPICS]
        return View(
            catalog=self.simulator.catalog,
            user=int(at.seed_U[slot]),
            profile=dict(zip(self.simulator.profile_names, at.profile_UF[slot].tolist(), strict=True)),
            visit=int(at.visit_U[slot]) + 1,
            page=max(1, len(pages)),
            start_s=float(at.time_s_U[slot]) + sum(float(v.response.elapsed_s_U[slot]) for v in pages[:-1]),
            session=None if last is None else _session(last, slot),
            is_truth=hasattr(self.simulator, "interests"),
            taste_M=taste_VM[-1],
            topic_T=topic_T,
            taste_VT=taste_VM[:, topic_T],
            tired_VT=tired_VM[:, topic_T],
            reward_V=np.array([v.reward_U[slot] for v in visits]),
        )

    def _watch(self, slates_UK: IntArray, watch_s_UK: FloatArray) -> None:
        """Count the seconds watched by topic; items without a topic are left out."""
        topic_UK = self.simulator.catalog.topic_I[slates_UK]
        user_UK = np.broadcast_to(np.arange(len(slates_UK))[:, None], slates_UK.shape)
        known_UK = topic_UK >= 0
        np.add.at(self._watched_s_UM, (user_UK[known_UK], topic_UK[known_UK]), watch_s_UK[known_UK])

    def _interests(self, state: Any) -> tuple[FloatArray, FloatArray]:
        """Truth where there is one, else the shares of the seconds watched so far."""
        if hasattr(self.simulator, "interests"):
            return self.simulator.interests(state)
        total_s_U1 = self._watched_s_UM.sum(axis=1, keepdims=True)
        share_UM = self._watched_s_UM / np.maximum(total_s_U1, 1e-9)
        return share_UM, np.zeros_like(share_UM)


def _session(visits: _Visits, slot: int) -> Session:
    answer = visits.response
    return Session(
        items_K=visits.slates_UK[slot],
        examined_K=answer.examined_UK[slot],
        watch_s_K=answer.watch_s_UK[slot],
        behaviours_KB=answer.behaviours_UKB[slot],
        elapsed_s=float(answer.elapsed_s_U[slot]),
        left=bool(answer.left_U[slot]),
        return_gap_s=float(answer.return_gap_s_U[slot]),
        churned=bool(answer.churned_U[slot]),
        reward=float(visits.reward_U[slot]),
        parts={name: float(part[slot]) for name, part in visits.parts.items() if part[slot]},
    )


# ---------------------------------------------------------------- text


def as_text(view: View) -> str:
    """A visit, an item a line, between a header and a footer."""
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
    """Part of an item watched, as a bar of BAR characters and a + where it was watched again."""
    eighths = round(min(float(fraction), 1) * BAR * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return f"{drawn:░<{BAR}}{'+' if fraction > 1.005 else ' '}"


def behaviours_of(session: Session, k: int) -> list[str]:
    """Names of what the user did at position k."""
    return [name for name, flag in zip(BEHAVIOURS, session.behaviours_KB[k], strict=True) if flag]


def left_at(session: Session) -> int:
    """The position after which the user left early; -1 if they stayed to the end, or never looked."""
    return int(session.examined_K.sum()) - 1 if session.left else -1


def clock(time_s: float) -> str:
    """A time on the log's clock, whose zero is the midnight before day 1."""
    day, second = divmod(time_s, DAY_S)
    return f"day {int(day) + 1}, {int(second // 3600):02}:{int(second % 3600 // 60):02}"


def span(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for unit, name in ((DAY_S, "days"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def item_name(catalog: Catalog, item: int) -> str:
    """The item's id outside feedgym."""
    return str(catalog.raw_ids_I[item])


def title_of(catalog: Catalog, item: int) -> str:
    """The item's text, or its id where it has none."""
    title = "" if catalog.text_I is None else str(catalog.text_I[item])
    return title or item_name(catalog, item)


def topic_name(topic: int) -> str:
    """A topic tag."""
    return f"topic {topic}" if topic >= 0 else "no topic"


def ending(view: View) -> str:
    """How the visit ended and when the user comes back."""
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
    """The reward and what it is made of."""
    terms = " ".join(f"{value:+.2f} {name}" for name, value in session.parts.items())
    return f"reward {session.reward:.2f}" + (f" = {terms}" if terms else "")


def _interest_line(view: View) -> str:
    """The topics liked best, as of this visit's login."""
    taste_T, tired_T = view.taste_VT[-1], view.tired_VT[-1]
    told = [
        f"{topic} {taste:.2f}" + (f" (tired {tired:.2f})" if tired >= 0.005 else "")
        for topic, taste, tired in zip(view.topic_T, taste_T, tired_T, strict=True)
        if taste >= 0.005
    ]
    if not told:
        return ""
    return f"{'true interests (agents never see them)' if view.is_truth else 'watched by topic'}: {', '.join(told[:5])}"
