"""Records the sessions of a feed and the users' responses, and cuts logs into transitions for offline learners.

A recording is a folder. Its ``events.parquet`` and ``catalog.parquet`` are feedgym's own log, so that every experiment
can learn from it (``feedgym run onerec-ipa --data FOLDER``). With its ``seeds.safetensors``,
:func:`feedgym.envs.replay.replay` recreates the same users. Times are those of the simulator's clock, which is part of
the users' state. Of the state only the seeds, the clock and the profiles are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.data.events import Catalog, Event, EventLog, FloatArray, IntArray, LoggedSessions
from feedgym.data.parquet import read_batch
from feedgym.data.sessions import histories, logged_sessions
from feedgym.envs.history import MAX_GAP_S, Observation, told_on_request
from feedgym.envs.recording import CHURNED, MEASURED, RETURN_GAP_S, SEEDS, TERMINATED, Recording, Seeds
from feedgym.envs.replay import replay as replay
from feedgym.envs.truth import RewardWeights, session_reward
from feedgym.protocols import Response


class _Recorder:
    """Common part of the wrappers for both kinds of environments."""

    _recording: Recording
    propensity: Any = None

    def log(self) -> EventLog:
        """The recorded log so far."""
        return self._recording.log()

    @property
    def seeds_U(self) -> NDArray[np.uint64]:
        """Seeds of the log's users, uint64 [U], for :func:`replay`."""
        return self._recording.seeds_U

    def save(self) -> None:
        """Writes the recording so far; each file is replaced as a whole."""
        self._recording.save()


class RecordLog(_Recorder, gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Records a feed of any kind in feedgym's own log format.

    Given a vector environment, it makes a :class:`VectorRecordLog`, which works in the same way. It must wrap the feed
    directly, below wrappers that change actions. Every episode is a separate user; users are numbered by their first
    visit.

    Before a step, set ``propensity`` to the probabilities with which the agent chose the items, [K] or [num_envs, K].
    It applies only to that step; the log holds NaN if none was set. Through outer wrappers use
    ``set_wrapper_attr("propensity", ...)``.

    Args:
        env: a feed, in Gymnasium's wrappers or not; also Gymnasium's own vector environments of feeds.
        folder: where :meth:`save` and :meth:`close` write the recording.

    Raises:
        ValueError: the environment is not a feed, or its actions are not sessions of item ids.
    """

    def __new__(cls, env: gym.Env | VectorEnv, folder: str | Path) -> Any:
        """Choose the class for the kind of environment."""
        return VectorRecordLog(env, folder) if isinstance(env, VectorEnv) else super().__new__(cls)

    def __init__(self, env: gym.Env, folder: str | Path) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, folder=str(folder))
        gym.Wrapper.__init__(self, env)
        self._recording = Recording(env, env.action_space, 1, folder)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; its next user is a new one."""
        self._recording.fresh_U[:] = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: IntArray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """The environment's step, recorded; see :class:`RecordLog` for ``propensity``."""
        propensity, self.propensity = self.propensity, None
        propensity = None if propensity is None else np.asarray(propensity)[None]
        login = self._recording.login(np.asarray(action)[None], propensity)
        result = self.env.step(action)
        measured = {name: np.asarray(value)[None] for name, value in result[4].items() if name in MEASURED}
        measured |= {f"_{name}": np.ones(1, bool) for name in measured}
        self._recording.step(login, np.array([result[2]]), np.array([result[3]]), measured)
        return result

    def close(self) -> None:
        """Saves the recording, if there is anything in it, and closes the environment."""
        self.save()
        super().close()


class VectorRecordLog(_Recorder, VectorWrapper):
    """:class:`RecordLog` for vector environments, in any autoreset mode."""

    def __init__(self, env: VectorEnv, folder: str | Path) -> None:
        super().__init__(env)
        self._recording = Recording(env, env.single_action_space, env.num_envs, folder)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; slots that are reset get new users."""
        mask = (options or {}).get("reset_mask")
        self._recording.fresh_U |= True if mask is None else np.asarray(mask, bool)
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """The environment's step, recorded; see :class:`RecordLog` for ``propensity``."""
        propensity, self.propensity = self.propensity, None
        login = self._recording.login(np.asarray(actions), propensity)
        result = self.env.step(actions)
        self._recording.step(login, *result[2:])
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
    return read_batch(Seeds, Path(folder) / SEEDS).seed_U.numpy().view(np.uint64)


def transitions(
    log: EventLog,
    catalog: Catalog,
    history_length: int,
    session_length: int,
    weights: RewardWeights = RewardWeights(),  # noqa: B008 (frozen)
    *,
    dated: bool = False,
    weekday: bool = False,
) -> dict[str, Any]:
    """Turns a log into transitions of :class:`feedgym.envs.feed.FeedEnv`, one per visit, for offline learners.

    Visits of more than K items become several transitions. Remainders, and visits of fewer items, are not actions of
    the environment and are left out, but stay in the histories.

    Args:
        log: the event log.
        catalog: its items.
        history_length: T.
        session_length: K.
        weights: weights of the reward's components.
        dated: include the time in observations, as simulators with ``has_arrivals`` do.
        weekday: include the day of the week in observations.

    Returns:
        Arrays with the leading axis N, in the log's order:

        * ``observations``, ``next_observations``: dicts with the keys and dtypes of the environment's observations. The
          next request of a user's last visit is at the recorded return, or at the logout if the log does not hold it.
        * ``actions``: int64 item ids [N, K].
        * ``rewards``: float32. A return that is not in the log adds nothing.
        * ``terminateds``: bool, true if the episode is known to have ended for good (recorded by :class:`RecordLog`).
        * ``truncateds``: bool, true if for any other reason the next transition is another user's or does not follow
          directly.
        * ``propensities``: float32 [N, K], NaN where unknown.
        * ``users``: int64 row of the user in the log.
        * ``episodes``: int64 number of the uninterrupted run of transitions.

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
    told = {"dated": dated, "with_weekday": weekday}
    joined_N = follows_N[whole] & np.append(np.diff(whole) == 1, False)
    terminated_N = terminated_N[whole] & ~follows_N[whole]
    return {
        "observations": _observation(now) | told_on_request(start_s_N, **told),
        "actions": sessions.item_ids_NK[whole].astype(np.int64),
        "rewards": _rewards(sessions, churned_N, gap_s_N, weights)[whole],
        "next_observations": _observation(after) | told_on_request(next_s_N[whole], **told),
        "terminateds": terminated_N,
        "truncateds": ~joined_N & ~terminated_N,
        "propensities": sessions.propensity_NK[whole],
        "users": user_N,
        "episodes": np.cumsum(np.append(False, ~joined_N[:-1])).astype(np.int64),
    }


def _ends(
    log: EventLog, sessions: LoggedSessions, follows_N: NDArray, next_row_N: NDArray
) -> tuple[NDArray, NDArray, NDArray[np.float64]]:
    """Flags for sessions known to end an episode or to lose the user, and seconds to the next visit."""
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
    """The environment's rewards of logged sessions; a gap of NaN counts as no return."""
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
        "time_of_day": batch.time_of_day_U.numpy()[:, None],
    }
