"""KuaiSim's task levels over any user simulator; they define the step, its reward and the end of an episode.

=========  ==============  ============================  =====================================
level      a step          terminated                    truncated
=========  ==============  ============================  =====================================
request    the only slate  at once                       never
session    a page          the user leaves the feed      after ``horizon`` pages
visit      a whole visit   the user never comes back     after ``horizon`` visits
retention  a whole visit   the user never comes back     after ``horizon_days`` of their clock
=========  ==============  ============================  =====================================

The visit level is :mod:`feedgym.envs.feed`. All levels have the same observations and actions, so an agent of one level
can be used at any other.

Deviations from KuaiSim (Zhao et al., arXiv:2309.12645): responses come from any simulator instead of one model trained
on KuaiRand. The simulator decides when users leave and return, not a temper budget or a model of return days. Returning
is rewarded within a window of hours, and gaps are in fractions of days.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` places of an episode's pages in a single row.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import DAY_S, BoolArray, FloatArray, IntArray
from feedgym.envs.feed import SHORT_VIDEO, FeedEnv, FeedVectorEnv
from feedgym.envs.luck import user_seeds
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import Response, UserSimulator, cat_users, put_users, take_users

FEEDBACK_ONLY = RewardWeights(return_24h=0.0)
"""Only events on the screen count, not the return."""

NOTHING = RewardWeights(**{name: 0.0 for name in vars(RewardWeights())})
"""Nothing of the visit itself counts."""

CAUSALITY_USERS = 64
"""Number of users for which it is tested that responses do not depend on later items."""


# ---------------------------------------------------------------- request


class RequestVectorEnv(FeedVectorEnv):
    """Many users at once, one request each; see :class:`RequestEnv`."""

    default_reward = FEEDBACK_ONLY

    def __init__(
        self,
        num_envs: int = 1,
        simulator: UserSimulator | str = SHORT_VIDEO,
        *,
        warmup_visits: int = 5,
        **kwargs: Any,
    ) -> None:
        if "horizon" in kwargs:
            raise ValueError(f"horizon={kwargs['horizon']} has no effect on a single request; leave it out.")
        super().__init__(num_envs, simulator, horizon=1, warmup_visits=warmup_visits, **kwargs)

    def _ends(self, response: Response) -> tuple[BoolArray, BoolArray]:
        return np.ones_like(response.churned_U), np.zeros_like(response.churned_U)


class RequestEnv(FeedEnv):
    """One slate to one user with a past: a contextual bandit.

    ### Action space
    As :class:`feedgym.envs.feed.FeedEnv`'s: one session of K item ids, the slate.

    ### Observation space
    As :class:`feedgym.envs.feed.FeedEnv`'s. The history holds the user's warm-up visits.

    ### Reward
    The value of the slate: minutes watched and behaviours by their weights. The return does not count, unless
    ``reward`` gives it a weight.

    ### Starting state
    A fresh user, drawn from the seed, after ``warmup_visits`` visits under the logging policy of
    :mod:`feedgym.envs.logging`. No user leaves for good in the warm-up.

    ### Episode end
    Terminated by the response.

    ### Info
    As :class:`feedgym.envs.feed.FeedEnv`'s.

    ### Arguments
    Those of :class:`feedgym.envs.feed.FeedEnv` without ``horizon``.

    ### References
    The request level of KuaiSim (Zhao et al., arXiv:2309.12645).

    ### Version history
    As :class:`feedgym.envs.feed.FeedEnv`'s.
    """

    vector_env = RequestVectorEnv


# ---------------------------------------------------------------- whole session


class SessionVectorEnv(FeedVectorEnv):
    """Many users at once, each in the middle of a visit; see :class:`SessionEnv`.

    For each page the simulator is asked, from the state at the login, for the responses to all pages so far in one
    session. The user's random numbers depend on visit and position. So the earlier responses come out unchanged, and
    only the last page's part is new. Slots on the same page are asked together.
    """

    default_reward = FEEDBACK_ONLY

    def __init__(
        self,
        num_envs: int = 1,
        simulator: UserSimulator | str = SHORT_VIDEO,
        *,
        session_length: int = 5,
        horizon: int = 10,
        warmup_visits: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_envs, simulator, session_length=session_length, horizon=horizon, warmup_visits=warmup_visits, **kwargs
        )
        require_causal(self.simulator, session_length)
        self._pages_UX = np.zeros((num_envs, self.horizon * session_length), np.int64)
        self._num_pages_U = np.zeros(num_envs, np.int64)
        self._elapsed_s_U = np.zeros(num_envs)
        self._login_history = self._history
        self._is_over_U = np.zeros(num_envs, bool)

    def _answer(self, slates_UK: IntArray, acting_U: BoolArray) -> Response:
        """Responses to the new page only; the state stays that of the login until the visit is over."""
        length = self.session_length
        place_UK = self._num_pages_U[:, None] * length + np.arange(length)
        acting = np.flatnonzero(acting_U)
        self._pages_UX[acting[:, None], place_UK[acting]] = slates_UK[acting]
        self._num_pages_U = self._num_pages_U + acting_U
        rows, answers, histories = [], [], []
        for num_pages in np.unique(self._num_pages_U[acting]):
            rows.append(acting[self._num_pages_U[acting] == num_pages])
            answer, history = self._visit_so_far(rows[-1], int(num_pages) * length)
            answers.append(answer)
            histories.append(history)
        answer = _spread(cat_users(answers), np.concatenate(rows), self.num_envs)
        self._history = self._history.put(np.concatenate(rows), cat_users(histories))
        on_page_s_U = np.maximum(answer.elapsed_s_U - self._elapsed_s_U, 0).astype(np.float32)
        self._elapsed_s_U = np.where(acting_U, answer.elapsed_s_U.astype(np.float64), self._elapsed_s_U)
        self._is_over_U = answer.left_U | (self._num_pages_U >= self.horizon)
        return replace(
            answer,
            elapsed_s_U=on_page_s_U,
            return_gap_s_U=np.where(self._is_over_U, answer.return_gap_s_U, 0).astype(np.float32),
            churned_U=answer.churned_U & self._is_over_U,
        )

    def _visit_so_far(self, rows: NDArray[np.int64], num_items: int) -> tuple[Response, Any]:
        """Responses to the last page, and histories, of users who have seen equally many items."""
        state, pages_UX = take_users(self._state, rows), self._pages_UX[rows, :num_items]
        whole, _ = self.simulator.respond(state, pages_UX)
        history = take_users(self._login_history, rows).after(
            state.time_s_U, pages_UX, whole, self.simulator.catalog.duration_s_I
        )
        page = slice(num_items - self.session_length, num_items)
        answer = replace(
            whole,
            behaviours_UKB=whole.behaviours_UKB[:, page],
            watch_s_UK=whole.watch_s_UK[:, page],
            examined_UK=whole.examined_UK[:, page],
        )
        return answer, history

    def _ends(self, response: Response) -> tuple[BoolArray, BoolArray]:
        return response.left_U, self._num_pages_U >= self.horizon

    def _measured(self, response: Response) -> dict[str, Any]:
        measured = super()._measured(response)
        measured["reward_components"]["return_24h"] *= self._is_over_U  # users who are still here have not returned
        return measured

    def _next_users(self, mask_U: BoolArray) -> None:
        super()._next_users(mask_U)
        self._login_history = put_users(self._login_history, mask_U, take_users(self._history, mask_U))
        self._num_pages_U = np.where(mask_U, 0, self._num_pages_U)
        self._elapsed_s_U = np.where(mask_U, 0, self._elapsed_s_U)

    def _now_s_U(self) -> NDArray[np.float64]:
        return self._state.time_s_U + self._elapsed_s_U


def _spread(response: Response, rows: NDArray[np.int64], num_users: int) -> Response:
    """The responses of the users in some rows among ``num_users``, zeros in the other rows."""
    columns = {}
    for f in fields(response):
        part = getattr(response, f.name)
        columns[f.name] = np.zeros((num_users, *part.shape[1:]), part.dtype)
        columns[f.name][rows] = part
    return Response(**columns)


class SessionEnv(FeedEnv):
    """One visit of one user with a past, page by page, until they leave.

    ### Action space
    As :class:`feedgym.envs.feed.FeedEnv`'s: K item ids, the next page.

    ### Observation space
    As :class:`feedgym.envs.feed.FeedEnv`'s. The history ends with the pages of the visit so far, and ``time_of_day`` is
    that of the request for the next page.

    ### Reward
    The value of the page: minutes watched and behaviours by their weights. If ``reward`` gives the return a weight, it
    counts in the step that ends the visit. So an episode's rewards add up to the value of the whole visit as one
    session of all its pages.

    ### Starting state
    The login of a fresh user, drawn from the seed, who made ``warmup_visits`` visits under the logging policy before.

    ### Episode end
    Terminated when the user leaves, before reaching all items of the page; truncated after ``horizon`` pages.

    ### Info
    As :class:`feedgym.envs.feed.FeedEnv`'s, for the page: ``elapsed_s`` is the time spent on it. ``return_gap_s`` is 0
    and ``churned`` false while the visit goes on.

    ### Arguments
    Those of :class:`feedgym.envs.feed.FeedEnv`; ``session_length`` is the length of a page and ``horizon`` the number
    of pages. The simulator's users must respond to an item before they see the next one. A simulator whose users choose
    among the items of a slate is refused.

    ### References
    The whole-session level of KuaiSim (Zhao et al., arXiv:2309.12645).

    ### Version history
    As :class:`feedgym.envs.feed.FeedEnv`'s.
    """

    vector_env = SessionVectorEnv


def require_causal(simulator: UserSimulator, page_length: int) -> None:
    """Check that users respond to a page before they have seen the next one.

    Raises:
        ValueError: the responses to a page depend on later pages.
    """
    num_items = simulator.catalog.num_items
    state = simulator.reset(user_seeds(CAUSALITY_USERS, 0, "causality"))
    rng = np.random.default_rng(0)
    page_UK, *next_UK = (rng.integers(num_items, size=(CAUSALITY_USERS, page_length)) for _ in range(3))
    alone, _ = simulator.respond(state, page_UK)
    for later_UK in next_UK:
        both, _ = simulator.respond(state, np.concatenate([page_UK, later_UK], axis=1))
        for name in ("examined_UK", "watch_s_UK", "behaviours_UKB"):
            if not np.array_equal(getattr(alone, name), getattr(both, name)[:, :page_length]):
                raise ValueError(
                    f"{type(simulator).__name__} answers a page differently if another follows ({name} differs); its "
                    "visits cannot be served page by page, so serve whole visits (level 'visit')."
                )


# ---------------------------------------------------------------- cross session


class RetentionVectorEnv(FeedVectorEnv):
    """Many users at once over days; see :class:`RetentionEnv`."""

    default_reward = NOTHING

    def __init__(
        self,
        num_envs: int = 1,
        simulator: UserSimulator | str = SHORT_VIDEO,
        *,
        horizon_days: float = 14.0,
        horizon: int = 1000,
        return_hours: float = 24.0,
        **kwargs: Any,
    ) -> None:
        for name, value in (("horizon_days", horizon_days), ("return_hours", return_hours)):
            if not value > 0:
                raise ValueError(f"{name}={value} is not above 0; give days or hours above 0.")
        super().__init__(num_envs, simulator, horizon=horizon, **kwargs)
        self.horizon_days, self.return_hours = horizon_days, return_hours
        self._first_login_s_U = np.zeros(num_envs)

    def _measured(self, response: Response) -> dict[str, Any]:
        measured = super()._measured(response)
        gap_days_U = (response.return_gap_s_U / np.float32(DAY_S)).astype(np.float32)
        gap_days_U[response.churned_U] = np.inf
        returned_U = (gap_days_U <= np.float32(self.return_hours / 24)).astype(np.float32)
        measured["reward_components"]["returned"] = returned_U
        return measured | {"return_gap_days": gap_days_U}

    def _reward(self, parts: dict[str, FloatArray]) -> FloatArray:
        return super()._reward(parts) + parts["returned"]

    def _ends(self, response: Response) -> tuple[BoolArray, BoolArray]:
        churned_U, late_U = super()._ends(response)
        passed_s_U = self._state.time_s_U - self._first_login_s_U
        return churned_U, late_U | (passed_s_U >= self.horizon_days * DAY_S)

    def _next_users(self, mask_U: BoolArray) -> None:
        super()._next_users(mask_U)
        self._first_login_s_U = np.where(mask_U, self._state.time_s_U, self._first_login_s_U)


class RetentionEnv(FeedEnv):
    """One user over days, served so that they come back soon and stay.

    ### Action space
    As :class:`feedgym.envs.feed.FeedEnv`'s: the session of a visit.

    ### Observation space
    As :class:`feedgym.envs.feed.FeedEnv`'s.

    ### Reward
    1 if the user came back within ``return_hours``, else 0. Events in the visit itself count only if ``reward`` gives
    them weights.

    ### Starting state
    As :class:`feedgym.envs.feed.FeedEnv`'s: a fresh user before their first visit.

    ### Episode end
    Terminated when the user will never come back. Truncated when they would come back ``horizon_days`` or more after
    the episode's first login, or after ``horizon`` visits.

    ### Info
    As :class:`feedgym.envs.feed.FeedEnv`'s, with ``return_gap_days`` (infinite if the user never comes back) and
    ``returned`` among the ``reward_components``. :mod:`feedgym.envs.retention` turns recorded gaps into return curves.

    ### Arguments
    Those of :class:`feedgym.envs.feed.FeedEnv`, ``horizon_days`` and ``return_hours``; ``horizon`` is 1,000 visits.

    ### References
    The cross-session level of KuaiSim (Zhao et al., arXiv:2309.12645).

    ### Version history
    As :class:`feedgym.envs.feed.FeedEnv`'s.
    """

    vector_env = RetentionVectorEnv
