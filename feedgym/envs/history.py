"""Observations: what a platform knows about its users at a request, their last examined events and their profile."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from feedgym.data.batches import DatedEventBatch, EventBatch
from feedgym.data.events import BEHAVIOURS, FloatArray, IntArray
from feedgym.data.sessions import MAX_WATCH_FRACTION, WEEK_DAYS, time_of_day, weekday
from feedgym.envs.compiling import HAS_NUMBA
from feedgym.protocols import Response, UserSimulator

if TYPE_CHECKING:
    import torch

MAX_TIME_S = 1e10
"""Bound of observed times, three centuries."""

MAX_GAP_S = 1e9
"""Bound of observed gaps; a space with infinite bounds cannot be normalised."""

Observation = dict[str, NDArray]


def event_times_s(login_s_U: NDArray[np.float64], watch_s_UK: FloatArray) -> NDArray[np.float64]:
    """Times at which the items of a visit appeared on the screen: the login plus the seconds watched before.

    Environments and logs both use this clock. Items the user never reached get the time at which the user left.

    Args:
        login_s_U: start of the visit.
        watch_s_UK: seconds watched.

    Returns:
        float64 seconds [U, K].
    """
    spent_s_UK = np.cumsum(watch_s_UK, axis=1, dtype=np.float64)
    time_s_UK = login_s_U[:, None] + spent_s_UK - watch_s_UK
    # What was added and taken away again may leave a time a rounding error before the login, or the item before.
    return np.maximum.accumulate(np.maximum(time_s_UK, login_s_U[:, None]), axis=1)


def has_arrivals(simulator: Any) -> bool:
    """True if a simulator's items come and go, so that observations hold the time (its attribute ``has_arrivals``)."""
    return bool(getattr(simulator, "has_arrivals", False))


def first_history(simulator: Any, state: Any, length: int) -> History:
    """The history of fresh users: empty, unless the simulator has ``known_history(state, length)``."""
    if hasattr(simulator, "known_history"):
        return simulator.known_history(state, length)
    return History.empty(len(state.seed_U), length)


def event_batch(observation: Observation) -> EventBatch:
    """Turns an observation, of one user or batched, into histories for recommenders; dated if it holds the time."""
    import torch

    columns = {name: np.asarray(column) for name, column in observation.items()}
    if columns["history_items"].ndim == 1:
        columns = {name: column[None] for name, column in columns.items()}

    def tensor(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(columns[name]).to(dtype)

    histories = EventBatch(
        item_ids_UT=tensor("history_items", torch.int64),
        behaviours_UTB=tensor("history_behaviours", torch.float32),
        watch_fraction_UT=tensor("history_watch_fraction", torch.float32),
        gap_s_UT=tensor("history_gap_s", torch.float32),
        mask_UT=tensor("history_mask", torch.bool),
        profile_UF=tensor("profile", torch.int64),
        time_of_day_U=tensor("time_of_day", torch.float32)[:, 0],
        earlier_UJ=tensor("history_earlier", torch.int64) if "history_earlier" in columns else None,
    )
    if "time_s" not in columns:
        return histories
    return DatedEventBatch(**vars(histories), time_s_U=tensor("time_s", torch.float64)[:, 0])


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """The last T examined events of U users, oldest first, right-padded with zeros.

    Attributes:
        items_UT: int64 item ids.
        behaviours_UTB: int8, 0 or 1.
        watch_fraction_UT: float32 seconds watched over the duration, clipped.
        time_s_UT: float64 time at which the item appeared on the screen, seconds.
        length_U: int64 number of real events.
    """

    items_UT: NDArray[np.int64]
    behaviours_UTB: NDArray[np.int8]
    watch_fraction_UT: FloatArray
    time_s_UT: NDArray[np.float64]
    length_U: NDArray[np.int64]

    @classmethod
    def empty(cls, num_users: int, length: int) -> History:
        """Histories without events."""
        return cls(
            items_UT=np.zeros((num_users, length), np.int64),
            behaviours_UTB=np.zeros((num_users, length, len(BEHAVIOURS)), np.int8),
            watch_fraction_UT=np.zeros((num_users, length), np.float32),
            time_s_UT=np.zeros((num_users, length)),
            length_U=np.zeros(num_users, np.int64),
        )

    def after(self, login_s_U: NDArray, slates_UK: IntArray, response: Response, duration_s_I: FloatArray) -> History:
        """The history with the examined items of one more visit; the input stays unchanged."""
        if HAS_NUMBA:
            from feedgym.envs.history_compiled import after  # numba takes long to import

            return History(**after(self, login_s_U, slates_UK, response, duration_s_I))
        return self._after(login_s_U, slates_UK, response, duration_s_I)

    def _after(self, login_s_U: NDArray, slates_UK: IntArray, response: Response, duration_s_I: FloatArray) -> History:
        """The same in NumPy, to the bit."""
        num_users, length = self.items_UT.shape
        session_length = slates_UK.shape[1]
        total_U = self.length_U + response.examined_UK.sum(axis=1)
        length_U = np.minimum(total_U, length)
        # Place j of the new history is event j + (total - length) of the old history followed by the visit.
        event_UT = np.arange(length) + (total_U - length_U)[:, None]
        visit_UT = np.minimum(length + event_UT - self.length_U[:, None], length + session_length - 1)
        source_UT = np.where(event_UT < self.length_U[:, None], event_UT, visit_UT)
        source_UT += np.arange(num_users)[:, None] * (length + session_length)
        padded_UT = np.arange(length) >= length_U[:, None]

        def column(old_UT: NDArray, new_UK: NDArray) -> NDArray:
            joined = np.concatenate([old_UT, new_UK.astype(old_UT.dtype, copy=False)], axis=1)
            picked_UT = joined.reshape(-1, *joined.shape[2:]).take(source_UT, axis=0)
            picked_UT[padded_UT] = 0
            return picked_UT

        fraction_UK = np.clip(response.watch_s_UK / duration_s_I[slates_UK], 0, MAX_WATCH_FRACTION)
        return History(
            items_UT=column(self.items_UT, slates_UK),
            behaviours_UTB=column(self.behaviours_UTB, response.behaviours_UKB),
            watch_fraction_UT=column(self.watch_fraction_UT, fraction_UK),
            time_s_UT=column(self.time_s_UT, event_times_s(login_s_U, response.watch_s_UK)),
            length_U=length_U,
        )

    def put(self, idx: NDArray, rows: History) -> History:
        """This history after the users at ``idx`` were replaced in place by ``rows``."""
        for f in fields(self):
            getattr(self, f.name)[idx] = getattr(rows, f.name)
        return self

    def resized(self, length: int) -> History:
        """The last ``length`` of the events, in arrays of that length."""
        length_U = np.minimum(self.length_U, length)
        source_UT = np.arange(length) + (self.length_U - length_U)[:, None]
        source_UT = np.minimum(source_UT, self.items_UT.shape[1] - 1)
        padded_UT = np.arange(length) >= length_U[:, None]
        rows_U1 = np.arange(len(length_U))[:, None]

        def column(old_UT: NDArray) -> NDArray:
            picked_UT = old_UT[rows_U1, source_UT]
            picked_UT[padded_UT] = 0
            return picked_UT

        columns = {f.name: column(getattr(self, f.name)) for f in fields(self) if f.name != "length_U"}
        return History(**columns, length_U=length_U)

    def earlier(self, length: int) -> NDArray[np.int64]:
        """The items before the last ``length`` events, oldest first, -1 after the last one."""
        items_UJ = self.items_UT[:, : self.items_UT.shape[1] - length]
        there_UJ = np.arange(items_UJ.shape[1]) < self.length_U[:, None] - length
        return np.where(there_UJ, items_UJ, -1)

    def observation(
        self,
        profile_UF: NDArray[np.int64],
        now_s_U: NDArray[np.float64],
        *,
        dated: bool = False,
        with_weekday: bool = False,
    ) -> Observation:
        """The observation at a request at ``now_s_U``, in new arrays. Dated ones also hold the time."""
        place_T = np.arange(self.items_UT.shape[1])
        next_s_UT = np.empty_like(self.time_s_UT)
        next_s_UT[:, :-1] = self.time_s_UT[:, 1:]
        next_s_UT = np.where(place_T == self.length_U[:, None] - 1, now_s_U[:, None], next_s_UT)
        mask_UT = place_T < self.length_U[:, None]
        gap_s_UT = np.where(mask_UT, np.clip(next_s_UT - self.time_s_UT, 0, MAX_GAP_S), 0)
        observation: Observation = {
            "profile": profile_UF.astype(np.int64),
            "history_items": self.items_UT.copy(),
            "history_behaviours": self.behaviours_UTB.copy(),
            "history_watch_fraction": self.watch_fraction_UT.copy(),
            "history_gap_s": gap_s_UT.astype(np.float32),
            "history_mask": mask_UT.astype(np.int8),
            "time_of_day": time_of_day(now_s_U)[:, None],
        }
        return observation | told_on_request(now_s_U, dated=dated, with_weekday=with_weekday)


def told_on_request(now_s_U: NDArray, *, dated: bool, with_weekday: bool) -> Observation:
    """Optional parts of observations about the time of the request, beyond the time of day."""
    told: Observation = {"time_s": np.asarray(now_s_U, np.float64)[:, None]} if dated else {}
    return told | {"weekday": weekday(now_s_U)[:, None]} if with_weekday else told


def observation_space(
    simulator: UserSimulator, history_length: int, *, with_weekday: bool = False, memory: int = 0
) -> spaces.Dict:
    """The space of one user's observation; names and meanings are those of :class:`EventBatch`.

    If items come and go, it also has the time of the request on the simulator's clock, ``time_s``, for
    :meth:`feedgym.data.events.Catalog.exists`.

    Args:
        simulator: the users.
        history_length: T.
        with_weekday: include the day of the week.
        memory: number of earlier items to include.
    """
    shape = (history_length,)
    dated = {"time_s": spaces.Box(0, MAX_TIME_S, (1,), np.float64)} if has_arrivals(simulator) else {}
    week = {"weekday": spaces.MultiDiscrete(np.array([WEEK_DAYS]))} if with_weekday else {}
    earlier = {"history_earlier": spaces.Box(-1, simulator.catalog.num_items - 1, (memory,), np.int64)}
    return spaces.Dict(
        {
            "profile": spaces.MultiDiscrete(np.array(simulator.profile_sizes, np.int64)),
            "history_items": spaces.Box(0, simulator.catalog.num_items - 1, shape, np.int64),
            "history_behaviours": spaces.MultiBinary((*shape, len(BEHAVIOURS))),
            "history_watch_fraction": spaces.Box(0, MAX_WATCH_FRACTION, shape, np.float32),
            "history_gap_s": spaces.Box(0, MAX_GAP_S, shape, np.float32),
            "history_mask": spaces.MultiBinary(history_length),
            "time_of_day": spaces.Box(0, 24, (1,), np.float32),
            **dated,
            **week,
            **(earlier if memory else {}),
        }
    )
