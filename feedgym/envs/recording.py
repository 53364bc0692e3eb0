"""Memory of a recorder: the steps of a feed, and their event log.

Steps that are pages of one visit become one visit in the log, so a visit may have more items than a step. Visits before
an episode (``warmup_visits``) are written as history: impressions without login and logout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from feedgym.data.batches import TensorRows
from feedgym.data.events import BoolArray, Event, EventLog, FloatArray, IntArray
from feedgym.data.parquet import write_batch, write_catalog, write_log
from feedgym.data.sessions import user_of_rows
from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.logging import event_log
from feedgym.envs.logging_policy import LoggingPolicy
from feedgym.envs.visits import Visits
from feedgym.envs.wrappers import of_feeds
from feedgym.protocols import Response, UserSimulator

CHURNED, RETURN_GAP_S, TERMINATED = "churned", "return_gap_s", "terminated"
"""Columns of a recording beyond those of every log: ``EventLog.extra`` on all impressions of a step."""

MEASURED = ("behaviours", "watch_s", "examined", "elapsed_s", CHURNED, RETURN_GAP_S)
"""Keys of the infos that are recorded."""

SEEDS = "seeds.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Seeds(TensorRows):
    """Seeds of a log's users, as int64 words with the bits of the uint64 seeds."""

    seed_U: torch.Tensor


class Recording:
    """The steps of a feed so far.

    Args:
        env: a feed in wrappers or not, or one of Gymnasium's own vector environments of feeds.
        space: its action space for one slot.
        num_slots: users at a time.
        folder: folder to save to.

    Attributes:
        fresh_U: true for slots whose next user is new.

    Raises:
        ValueError: the environment is not a feed, or its actions are not sessions of item ids.
    """

    def __init__(self, env: gym.Env | VectorEnv, space: gym.Space, num_slots: int, folder: str | Path) -> None:
        base = env.unwrapped
        if not isinstance(base, (FeedEnv, FeedVectorEnv, SyncVectorEnv, AsyncVectorEnv)):
            raise ValueError(f"{base} is not a feed and has no users to record; wrap one of feedgym's environments.")
        if not isinstance(space, spaces.MultiDiscrete):
            raise ValueError(
                f"The actions {space} are not sessions of item ids; put RecordLog around the feed itself, below the "
                "wrappers that change its actions."
            )
        self.env, self.folder = env, Path(folder)
        self.simulator: UserSimulator = of_feeds(env, "simulator")[0]
        self.fresh_U = np.ones(num_slots, bool)
        self._length = len(space.nvec)
        self._policy: LoggingPolicy | None = None
        self._user_U = np.full(num_slots, -1)
        self._num_past: list[tuple[NDArray[np.int64], int]] = []
        self._seeds: list[NDArray[np.uint64]] = []
        self._profiles: list[NDArray[np.int64]] = []
        self._rows: list[dict[str, NDArray]] = []

    def login(self, slates_UK: IntArray, propensity: Any) -> dict[str, NDArray]:
        """Users of the slots with their sessions and times, before they are served."""
        propensity_UK = np.full(slates_UK.shape, np.nan, np.float32)
        if propensity is not None:
            propensity_UK = _checked(propensity, slates_UK.shape)
        states = of_feeds(self.env, "state")
        names = ("seed_U", "visit_U", "time_s_U", "profile_UF")
        at_login = {name: np.concatenate([getattr(state, name) for state in states]) for name in names}
        return at_login | {"slates_NK": slates_UK, "propensity_NK": propensity_UK}

    def step(
        self, login: dict[str, NDArray], terminated_U: BoolArray, truncated_U: BoolArray, info: dict[str, Any]
    ) -> None:
        """Record the responses of the slots' users who were served."""
        served_U, measured = _answers(info, len(terminated_U))
        if served_U.any():
            self._register(login, served_U)
            row = {"user_N": self._user_U, "visit_N": login["visit_U"], "login_s_N": login["time_s_U"]}
            row |= {name: login[name] for name in ("slates_NK", "propensity_NK")}
            row |= {TERMINATED: terminated_U, **measured}
            self._rows.append({name: column[served_U] for name, column in row.items()})
        self.fresh_U |= terminated_U | truncated_U

    def _register(self, login: dict[str, NDArray], served_U: BoolArray) -> None:
        """Register a slot's fresh user as the log's next user."""
        new = np.flatnonzero(served_U & self.fresh_U)
        self.fresh_U[new] = False
        self._user_U[new] = sum(map(len, self._seeds)) + np.arange(len(new))
        self._seeds.append(login["seed_U"][new])
        self._profiles.append(login["profile_UF"][new])
        for num_visits in np.unique(login["visit_U"][new]):
            self._add_past(login, new[login["visit_U"][new] == num_visits], int(num_visits))

    def _add_past(self, login: dict[str, NDArray], slots: NDArray[np.int64], num_visits: int) -> None:
        """Add the warm-up visits of slots' users, by serving them again (:func:`feedgym.envs.warmup.warm_up`)."""
        if not num_visits:
            return
        policy = self._policy = self._policy or LoggingPolicy(self.simulator, self._length)
        rows, state, taste_UE = [], self.simulator.reset(login["seed_U"][slots]), policy.no_taste(len(slots))
        for visit in range(num_visits):
            slates_UK, propensity_UK = policy.serve(state, taste_UE)
            response, after = self.simulator.respond(state, slates_UK)
            taste_UE = policy.learn(taste_UE, slates_UK, response.behaviours_UKB)
            row = {"user_N": self._user_U[slots], "visit_N": np.full(len(slots), visit), "login_s_N": state.time_s_U}
            row |= {"slates_NK": slates_UK, "propensity_NK": propensity_UK, TERMINATED: np.zeros(len(slots), bool)}
            measured = ((f.name.rsplit("_", 1)[0], getattr(response, f.name)) for f in fields(Response))
            rows.append(row | {name: column for name, column in measured if name in MEASURED})
            state = after
        # A user who was met in the middle of an episode has another past, which was not recorded.
        if np.array_equal(state.time_s_U, login["time_s_U"][slots]):
            self._rows += rows
            self._num_past.append((self._user_U[slots], num_visits))

    @property
    def seeds_U(self) -> NDArray[np.uint64]:
        """Seeds of the users so far, uint64 [U]."""
        return np.concatenate([np.zeros(0, np.uint64), *self._seeds])

    def log(self) -> EventLog:
        """The event log of the steps so far.

        Raises:
            ValueError: there are none.
        """
        if not self._rows:
            raise ValueError("Nothing is recorded yet; step the environment before asking for its log.")
        rows = {name: np.concatenate([row[name] for row in self._rows]) for name in self._rows[0]}
        order = np.lexsort((rows["visit_N"], rows["user_N"]))  # stable: pages stay in order
        rows = {name: column[order] for name, column in rows.items()}
        page_N = _pages(rows)
        login_s_N, logout_s_N = _times_s(rows, page_N)
        profile_UF = np.concatenate(self._profiles)
        visits = Visits(
            profile_UF=profile_UF,
            login_s_N=login_s_N,
            logout_s_N=logout_s_N,
            watch_s_NK=rows["watch_s"],
            examined_NK=rows["examined"],
            behaviours_NKB=rows["behaviours"],
            **{name: rows[name] for name in ("user_N", "visit_N", "slates_NK", "propensity_NK")},
        )
        log = event_log(self.simulator, profile_UF, visits)
        is_first_N, is_last_N = page_N == 0, np.append(page_N[1:] == 0, True)
        num_past_U = np.zeros(log.num_users, np.int64)
        for users, num_visits in self._num_past:
            num_past_U[users] = num_visits
        is_visit_N = rows["visit_N"] >= num_past_U[rows["user_N"]]
        rows[RETURN_GAP_S] = np.where(rows[RETURN_GAP_S] > 0, rows[RETURN_GAP_S], np.nan)  # 0: the visit goes on
        extra = {name: rows[name] for name in (CHURNED, RETURN_GAP_S, TERMINATED)}
        return _joined(log, page_N, is_first_N & is_visit_N, is_last_N & is_visit_N, extra)

    def save(self) -> None:
        """Writes log, catalogue and seeds, if there is anything to write."""
        if self._rows:
            write_log(self.log(), self.folder / "events.parquet")
            write_catalog(self.simulator.catalog, self.folder / "catalog.parquet")
            write_batch(Seeds(seed_U=torch.from_numpy(self.seeds_U.view(np.int64))), self.folder / SEEDS)


def _checked(propensity: Any, shape: tuple[int, ...]) -> FloatArray:
    propensity_UK = np.asarray(propensity, np.float32)
    if propensity_UK.shape != shape:
        raise ValueError(f"Propensities of shape {propensity_UK.shape} do not fit; give one per item, {shape}.")
    if ((propensity_UK <= 0) | (propensity_UK > 1)).any():
        raise ValueError(
            f"Propensities from {np.nanmin(propensity_UK)} to {np.nanmax(propensity_UK)} are not probabilities of "
            "the chosen items; give numbers in (0, 1], or NaN where unknown."
        )
    return propensity_UK


def _answers(info: dict[str, Any], num_slots: int) -> tuple[BoolArray, dict[str, NDArray]]:
    """Slots whose users were served, and their measurements; those of finished slots may be under ``final_info``."""
    served_U = np.zeros(num_slots, bool)
    measured: dict[str, NDArray] = {}
    for part in (info, info.get("final_info", {})):
        if f"_{MEASURED[0]}" not in part:
            continue
        here_U = part[f"_{MEASURED[0]}"]
        served_U |= here_U
        for name in MEASURED:
            column = measured.setdefault(name, np.zeros_like(part[name]))
            column[here_U] = part[name][here_U]
    return served_U, measured


def _pages(rows: dict[str, NDArray]) -> NDArray[np.int64]:
    """Number of each row, sorted by user and visit, among the rows of its visit."""
    begins = (np.diff(rows["user_N"], prepend=-1) != 0) | (np.diff(rows["visit_N"], prepend=-1) != 0)
    return np.arange(len(begins)) - np.flatnonzero(begins)[np.cumsum(begins) - 1]


def _times_s(rows: dict[str, NDArray], page_N: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Start and end of the steps, as in collected logs: not before all was watched, not after the next login.

    A visit's later pages follow on the earlier ones.
    """
    elapsed_s_N = rows["elapsed_s"].astype(np.float64)
    spent_s_N = np.maximum(elapsed_s_N, rows["watch_s"].sum(axis=1, dtype=np.float64))
    before_s_N = np.cumsum(spent_s_N) - spent_s_N
    before_s_N -= before_s_N[np.arange(len(page_N)) - page_N]
    login_s_N = rows["login_s_N"] + np.where(page_N > 0, before_s_N, 0)
    next_s_N = login_s_N + elapsed_s_N + rows[RETURN_GAP_S]
    goes_on_N = rows["user_N"][1:] == rows["user_N"][:-1]
    next_s_N[:-1] = np.where(goes_on_N, login_s_N[1:], next_s_N[:-1])
    return login_s_N, np.minimum(login_s_N + spent_s_N, next_s_N)


def _joined(
    log: EventLog, page_N: NDArray[np.int64], login_N: BoolArray, logout_N: BoolArray, extra: dict[str, NDArray]
) -> EventLog:
    """Turns a log of steps into one of visits: without logins and logouts in between, with the steps' measurements."""
    keep, shown = np.ones(log.num_events, bool), log.event == Event.IMPRESSION
    keep[log.event == Event.LOGIN], keep[log.event == Event.LOGOUT] = login_N, logout_N
    length = int(log.position.max()) + 1
    position = log.position.copy()
    position[shown] += (np.repeat(page_N, length) * length).astype(np.int16)
    columns = {name: np.zeros(log.num_events, np.float32) for name in extra}
    for name, values_N in extra.items():
        columns[name][shown] = np.repeat(values_N, length)
    count_U = np.bincount(user_of_rows(log)[keep], minlength=log.num_users)
    same = ("timestamp_s", "event", "session_id", "item_id", "watch_s", "examined", "behaviours", "propensity")
    return replace(
        log,
        offsets_U1=np.append(0, np.cumsum(count_U)).astype(np.int64),
        position=position[keep],
        extra={name: column[keep] for name, column in columns.items()},
        **{name: getattr(log, name)[keep] for name in same},
    )
