"""Records what a feed shows and what its users do, replays it, and cuts it into transitions for offline learners.

A recording is a folder with ``events.parquet`` and ``catalog.parquet``, feedgym's own log, so that every experiment can
learn from it (``feedgym run onerec-ipa --data FOLDER``), and ``seeds.safetensors``, with which :func:`replay` makes the
same users again. Times are those of the simulator's clock, which only the users' state tells; nothing else is read
from it.

Steps which are pages of one visit are one visit in the log, so that a visit may have more items than a step. Visits
before an episode (``warmup_visits``) are written as history: impressions without login and logout.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch, TensorRows
from feedgym.data.events import BoolArray, Catalog, Event, EventLog, FloatArray, IntArray, LoggedSessions
from feedgym.data.parquet import read_batch, write_batch, write_catalog, write_log
from feedgym.data.sessions import histories, logged_sessions, user_of_rows
from feedgym.envs.feed import MAX_GAP_S, FeedEnv, FeedVectorEnv, Observation
from feedgym.envs.logging import LoggingPolicy, Visits, event_log, replayed
from feedgym.envs.truth import RewardWeights, session_reward
from feedgym.envs.wrappers import of_feeds
from feedgym.protocols import Response, UserSimulator, cat_users, take_users

CHURNED, RETURN_GAP_S, TERMINATED = "churned", "return_gap_s", "terminated"
"""What a recording knows beyond the columns of every log: ``EventLog.extra`` on all impressions of a step."""

MEASURED = ("behaviours", "watch_s", "examined", "elapsed_s", CHURNED, RETURN_GAP_S)
"""What is recorded of the infos."""

SEEDS = "seeds.safetensors"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seeds(TensorRows):
    """Seeds of a log's users, int64 words with the bits of the uint64 seeds."""

    seed_U: torch.Tensor


class _Recording:
    """The visits of a feed's users so far, in memory."""

    def __init__(self, env: gym.Env | VectorEnv, space: gym.Space, num_slots: int, folder: str | Path) -> None:
        base = env.unwrapped
        if not isinstance(base, (FeedEnv, FeedVectorEnv, SyncVectorEnv, AsyncVectorEnv)):
            raise ValueError(f"{base} is no feed and has no users to record; wrap one of feedgym's environments.")
        if not isinstance(space, spaces.MultiDiscrete):
            raise ValueError(
                f"The actions {space} are no sessions of item ids; put RecordLog around the feed itself, below the "
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

    def login(self) -> dict[str, NDArray]:
        """Who is about to be served in the slots, and when."""
        states = of_feeds(self.env, "state")
        names = ("seed_U", "visit_U", "time_s_U", "profile_UF")
        return {name: np.concatenate([getattr(state, name) for state in states]) for name in names}

    def step(
        self, login: dict[str, NDArray], slates_UK: IntArray, propensity: Any, result: tuple[Any, ...] | list[Any]
    ) -> None:
        """One step of the feed, given its batched result: the answers of those slots' users who were served."""
        _, _, terminated_U, truncated_U, info = result
        propensity_UK = np.full(slates_UK.shape, np.nan, np.float32)
        if propensity is not None:
            propensity_UK = _checked(propensity, slates_UK.shape)
        served_U, measured = _answers(info, len(slates_UK))
        if served_U.any():
            self._register(login, served_U)
            visit = {"user_N": self._user_U, "visit_N": login["visit_U"], "login_s_N": login["time_s_U"]}
            visit |= {"slates_NK": slates_UK, "propensity_NK": propensity_UK, TERMINATED: terminated_U, **measured}
            self._rows.append({name: column[served_U] for name, column in visit.items()})
        self.fresh_U |= terminated_U | truncated_U

    def _register(self, login: dict[str, NDArray], served_U: BoolArray) -> None:
        """A slot's fresh user is the log's next user."""
        new = np.flatnonzero(served_U & self.fresh_U)
        self.fresh_U[new] = False
        self._user_U[new] = sum(map(len, self._seeds)) + np.arange(len(new))
        self._seeds.append(login["seed_U"][new])
        self._profiles.append(login["profile_UF"][new])
        for num_visits in np.unique(login["visit_U"][new]):
            self._add_past(login, new[login["visit_U"][new] == num_visits], int(num_visits))

    def _add_past(self, login: dict[str, NDArray], slots: NDArray[np.int64], num_visits: int) -> None:
        """The warm-up visits of slots' users, who are served them once more (:func:`feedgym.envs.warmup.warm_up`)."""
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
        # Who was met in the middle of an episode has another past, which nobody recorded.
        if np.array_equal(state.time_s_U, login["time_s_U"][slots]):
            self._rows += rows
            self._num_past.append((self._user_U[slots], num_visits))

    @property
    def seeds_U(self) -> NDArray[np.uint64]:
        return np.concatenate([np.zeros(0, np.uint64), *self._seeds])

    def log(self) -> EventLog:
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
        if self._rows:
            write_log(self.log(), self.folder / "events.parquet")
            write_catalog(self.simulator.catalog, self.folder / "catalog.parquet")
            write_batch(_Seeds(seed_U=torch.from_numpy(self.seeds_U.view(np.int64))), self.folder / SEEDS)


class _Recorder:
    """What the wrappers of both kinds of environments offer."""

    _recording: _Recording
    propensity: Any = None

    def log(self) -> EventLog:
        """What is recorded so far."""
        return self._recording.log()

    @property
    def seeds_U(self) -> NDArray[np.uint64]:
        """Seeds of the log's users, uint64 [U], for :func:`replay`."""
        return self._recording.seeds_U

    def save(self) -> None:
        """Writes what is recorded so far; each file takes its place whole."""
        self._recording.save()


class RecordLog(_Recorder, gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Records a feed of any kind in feedgym's own log format.

    Given a vector environment it makes a :class:`VectorRecordLog`, which works alike. It stands around the feed itself,
    below wrappers that change actions. Every episode is a user of their own; users are numbered by their first visit.

    Set ``propensity`` to the probabilities with which the agent chose the items, [K] or [num_envs, K], before a step;
    it counts for that step alone, and is NaN in the log where none was set. From above further wrappers use
    ``set_wrapper_attr("propensity", ...)``.

    Args:
        env: a feed, in Gymnasium's wrappers or not; also Gymnasium's own vector environments of feeds.
        folder: where :meth:`save` and :meth:`close` write the recording.

    Raises:
        ValueError: the environment is no feed, or its actions are no sessions of item ids.
    """

    def __new__(cls, env: gym.Env | VectorEnv, folder: str | Path) -> Any:
        """One name for both kinds of environments."""
        return VectorRecordLog(env, folder) if isinstance(env, VectorEnv) else super().__new__(cls)

    def __init__(self, env: gym.Env, folder: str | Path) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, folder=str(folder))
        gym.Wrapper.__init__(self, env)
        self._recording = _Recording(env, env.action_space, 1, folder)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The environment's reset; its next user is another one."""
        self._recording.fresh_U[:] = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: IntArray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The environment's step, recorded; see :class:`RecordLog` for ``propensity``."""
        propensity, self.propensity = self.propensity, None
        login = self._recording.login()
        result = self.env.step(action)
        measured = {name: np.asarray(result[4][name])[None] for name in MEASURED if name in result[4]}
        measured |= {f"_{name}": np.ones(1, bool) for name in measured}
        propensity = None if propensity is None else np.asarray(propensity)[None]
        batch = [*(np.asarray(part)[None] for part in result[1:4]), measured]
        self._recording.step(login, np.asarray(action)[None], propensity, [None, *batch])
        return result

    def close(self) -> None:
        """Saves the recording, if there is anything in it, and closes the environment."""
        self.save()
        super().close()


class VectorRecordLog(_Recorder, VectorWrapper):
    """:class:`RecordLog` of a vector environment, whatever its autoreset mode."""

    def __init__(self, env: VectorEnv, folder: str | Path) -> None:
        super().__init__(env)
        self._recording = _Recording(env, env.single_action_space, env.num_envs, folder)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """The environment's reset; the next users of the slots that are reset are others."""
        mask = (options or {}).get("reset_mask")
        self._recording.fresh_U |= True if mask is None else np.asarray(mask, bool)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The environment's step, recorded; see :class:`RecordLog` for ``propensity``."""
        propensity, self.propensity = self.propensity, None
        login = self._recording.login()
        result = self.env.step(actions)
        self._recording.step(login, np.asarray(actions), propensity, result)
        return result

    def close(self, **kwargs: Any) -> None:
        """Saves the recording, if there is anything in it, and closes the environment."""
        self.save()
        super().close(**kwargs)


def read_seeds(folder: str | Path) -> NDArray[np.uint64]:
    """Seeds of the users of a recording, uint64 [U], in the log's order.

    Raises:
        ValueError: the folder holds no recording.
    """
    return read_batch(_Seeds, Path(folder) / SEEDS).seed_U.numpy().view(np.uint64)


def replay(env: Any, log: EventLog, seeds_U: NDArray[np.uint64]) -> Response:
    """Serves the users of a log the same sessions again.

    Args:
        env: the simulator that answered when the log was written, or an environment around it.
        log: what :class:`RecordLog` recorded, or :func:`feedgym.envs.logging.collect_log` collected.
        seeds_U: seeds of the log's users (``RecordLog.seeds_U``, :func:`read_seeds`,
            :func:`feedgym.envs.logging.user_seeds` of the group "log").

    Returns:
        The answers to the log's N visits, in its order, with what the log does not tell. Visits of fewer items than the
        longest one have zeros behind them.

    Raises:
        ValueError: an answer is not to the bit what was logged, or there is not one seed a user.
    """
    if len(seeds_U) != log.num_users:
        raise ValueError(f"{len(seeds_U)} seeds do not fit the log's {log.num_users} users; give one a user.")
    simulator = of_feeds(env, "simulator")[0] if hasattr(env, "unwrapped") else env
    served, is_visit_N = _served(log)
    first_U1 = np.searchsorted(served.user_idx_N, np.arange(log.num_users + 1))
    visits = replayed(_AnyLength(simulator), served, first_U1, seeds_U, np.arange(len(served)))
    rows, responses = zip(*((row_V, response) for row_V, _, response in visits), strict=True)
    order = np.argsort(np.concatenate(rows))
    columns = {f.name: np.concatenate([getattr(r, f.name) for r in responses])[order] for f in fields(Response)}
    return Response(**{name: column[is_visit_N] for name, column in columns.items()})


def _served(log: EventLog) -> tuple[LoggedSessions, BoolArray]:
    """All that users were served, a row a visit, visits that are history only included, and which are none of those."""
    row = np.flatnonzero(log.event == Event.IMPRESSION)
    user = user_of_rows(log)[row]
    begins = (np.diff(user, prepend=-1) != 0) | (np.diff(log.session_id[row], prepend=-1) != 0)
    first_N, visit = row[begins], np.cumsum(begins) - 1

    def scatter(values: NDArray, fill: float) -> NDArray:
        out = np.full((len(first_N), int(log.position.max()) + 1, *values.shape[1:]), fill, values.dtype)
        out[visit, log.position[row]] = values[row]
        return out

    served = LoggedSessions(
        user_idx_N=user[begins],
        row_N=first_N,
        start_s_N=log.timestamp_s[first_N],
        item_ids_NK=scatter(log.item_id, -1),
        examined_NK=scatter(log.examined, False),
        watch_s_NK=scatter(log.watch_s, 0),
        behaviours_NKB=scatter(log.behaviours, 0),
        propensity_NK=scatter(log.propensity, np.nan),
        return_gap_s_N=np.full(len(first_N), np.nan),
    )
    return served, log.event[first_N - 1] == Event.LOGIN


class _AnyLength:
    """A simulator that takes sessions of different lengths, padded with -1; answers are padded with zeros."""

    def __init__(self, simulator: UserSimulator) -> None:
        self.simulator, self.reset, self.catalog = simulator, simulator.reset, simulator.catalog
        self.profile_names, self.profile_sizes = simulator.profile_names, simulator.profile_sizes

    def respond(self, state: Any, slates_UK: IntArray) -> tuple[Response, Any]:
        """The answers of U users, and their next states."""
        length_U = (slates_UK >= 0).sum(axis=1)
        groups = [np.flatnonzero(length_U == length) for length in np.unique(length_U)]
        answers, states = [], []
        for users in groups:
            length = length_U[users[0]]
            response, after = self.simulator.respond(take_users(state, users), slates_UK[users, :length])
            answers.append(_padded(response, slates_UK.shape[1] - length))
            states.append(after)
        back = np.argsort(np.concatenate(groups))
        return take_users(cat_users(answers), back), take_users(cat_users(states), back)


def _padded(response: Response, places: int) -> Response:
    """Answers with some places more, which the users did not reach."""
    names = ("behaviours_UKB", "watch_s_UK", "examined_UK")
    columns = {name: getattr(response, name) for name in names}
    more = {n: np.zeros((len(c), places, *c.shape[2:]), c.dtype) for n, c in columns.items()}
    return replace(response, **{n: np.concatenate([c, more[n]], axis=1) for n, c in columns.items()})


def transitions(
    log: EventLog,
    catalog: Catalog,
    history_length: int,
    session_length: int,
    weights: RewardWeights = RewardWeights(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """A log as the transitions of :class:`feedgym.envs.feed.FeedEnv`, one a visit, for offline learners.

    Visits of more than K items become several transitions; what is left over, and visits of fewer items, are no
    actions of the environment and are left out, but stay in the histories.

    Args:
        log: the event log.
        catalog: its items.
        history_length: T.
        session_length: K.
        weights: of the reward's components.

    Returns:
        Arrays with the leading axis N, in the log's order:

        * ``observations``, ``next_observations``: dicts with the keys and dtypes of the environment's observations.
          The next request of a user's last visit is at the recorded return, or, where the log does not tell, at the
          logout.
        * ``actions``: int64 item ids [N, K].
        * ``rewards``: float32. A return that the log does not tell adds nothing.
        * ``terminateds``: bool, the episode is known to have been over for good (:class:`RecordLog` tells).
        * ``truncateds``: bool, the next transition is another user's, or not what came next, for any other reason.
        * ``propensities``: float32 [N, K], NaN where unknown.
        * ``users``: int64 row of the user in the log.
        * ``episodes``: int64 number of the unbroken run of transitions.

    Raises:
        ValueError: a length is below 1, the log has no visits, or none with K items.
    """
    sessions = logged_sessions(log, session_length)
    follows_N = np.append(sessions.user_idx_N[1:] == sessions.user_idx_N[:-1], False)
    whole = np.flatnonzero((sessions.item_ids_NK >= 0).all(axis=1))
    if not len(whole):
        shown = int((sessions.item_ids_NK >= 0).sum(axis=1).max(initial=0))
        raise ValueError(
            f"No visit of the log has session_length={session_length} items, the longest row has {shown}; lower it."
        )
    next_row_N = np.where(follows_N, np.roll(sessions.row_N, -1), log.offsets_U1[sessions.user_idx_N + 1])
    terminated_N, churned_N, gap_s_N = _ends(log, sessions, follows_N, next_row_N)
    told_s_N = np.where(np.isnan(sessions.return_gap_s_N), np.nan_to_num(gap_s_N), 0)
    last_s_N = log.timestamp_s[next_row_N - 1] + told_s_N
    next_s_N = np.where(follows_N, np.roll(sessions.start_s_N, -1), last_s_N)

    user_N, row_N, start_s_N = (a[whole] for a in (sessions.user_idx_N, sessions.row_N, sessions.start_s_N))
    now = histories(log, catalog, user_N, row_N, start_s_N, history_length)
    after = histories(log, catalog, user_N, next_row_N[whole], next_s_N[whole], history_length)
    joined_N = follows_N[whole] & np.append(np.diff(whole) == 1, False)
    terminated_N = terminated_N[whole] & ~follows_N[whole]
    return {
        "observations": _observation(now),
        "actions": sessions.item_ids_NK[whole].astype(np.int64),
        "rewards": _rewards(sessions, churned_N, gap_s_N, weights)[whole],
        "next_observations": _observation(after),
        "terminateds": terminated_N,
        "truncateds": ~joined_N & ~terminated_N,
        "propensities": sessions.propensity_NK[whole],
        "users": user_N,
        "episodes": np.cumsum(np.append(False, ~joined_N[:-1])).astype(np.int64),
    }


def _ends(
    log: EventLog, sessions: LoggedSessions, follows_N: NDArray, next_row_N: NDArray
) -> tuple[NDArray, NDArray, NDArray[np.float64]]:
    """Whether sessions are known to have ended an episode, or to have lost the user; seconds to the next visit."""
    shown = np.flatnonzero(log.event == Event.IMPRESSION)
    last_N = shown[np.searchsorted(shown, next_row_N) - 1]
    unknown_N = np.full(len(sessions), np.nan)
    terminated_N, churned_N, told_s_N = (
        log.extra[name][last_N].astype(np.float64) if name in log.extra else unknown_N
        for name in (TERMINATED, CHURNED, RETURN_GAP_S)
    )
    gap_s_N = sessions.return_gap_s_N
    return terminated_N == 1, churned_N == 1, np.where(~follows_N & np.isnan(gap_s_N), told_s_N, gap_s_N)


def _rewards(sessions: LoggedSessions, churned_N: NDArray, gap_s_N: NDArray, weights: RewardWeights) -> FloatArray:
    """The environment's rewards of logged sessions; a gap of NaN is no return."""
    response = Response(
        behaviours_UKB=sessions.behaviours_NKB,
        watch_s_UK=sessions.watch_s_NK,
        examined_UK=sessions.examined_NK,
        elapsed_s_U=sessions.watch_s_NK.sum(axis=1),
        left_U=~np.all(sessions.examined_NK, axis=1),
        return_gap_s_U=gap_s_N.astype(np.float32),
        churned_U=churned_N,
    )
    return session_reward(response, weights)


def _observation(batch: EventBatch) -> Observation:
    """Histories as the environment's batched observation."""
    return {
        "profile": batch.profile_UF.numpy(),
        "history_items": batch.item_ids_UT.numpy(),
        "history_behaviours": batch.behaviours_UTB.numpy().astype(np.int8),
        "history_watch_fraction": batch.watch_fraction_UT.numpy(),
        "history_gap_s": np.clip(batch.gap_s_UT.numpy(), 0, MAX_GAP_S).astype(np.float32),
        "history_mask": batch.mask_UT.numpy().astype(np.int8),
        "time_of_day": batch.time_of_day_U.numpy(),
    }


def _checked(propensity: Any, shape: tuple[int, ...]) -> FloatArray:
    propensity_UK = np.asarray(propensity, np.float32)
    if propensity_UK.shape != shape:
        raise ValueError(f"Propensities of shape {propensity_UK.shape} do not fit; give one an item, {shape}.")
    if ((propensity_UK <= 0) | (propensity_UK > 1)).any():
        raise ValueError(
            f"Propensities from {np.nanmin(propensity_UK)} to {np.nanmax(propensity_UK)} are no probabilities of what "
            "was chosen; give numbers in (0, 1], or NaN where unknown."
        )
    return propensity_UK


def _answers(info: dict[str, Any], num_slots: int) -> tuple[BoolArray, dict[str, NDArray]]:
    """Which slots' users were served, and what was measured; finished slots may stand under ``final_info``."""
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
    """When the steps began and ended, as in collected logs: not before all was watched, not after the next login.

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
    """A log of steps as a log of visits: without logins and logouts in their middle, and with what a step measured."""
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
