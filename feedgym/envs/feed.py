"""The Gymnasium shells over any user simulator: one user (:class:`FeedEnv`) or many at once (:class:`FeedVectorEnv`).

A step is a visit: the action is an ordered session of item ids, the reward what the visit was worth to the user, the
observation what a recommender may know at the next request. An episode is a user: churn terminates it, the horizon
truncates it. Nothing of the simulator's hidden state reaches observations or infos.

Slots and users: a slot's first user has the slot's seed, and the users after it have seeds derived from that one by
their number (:func:`feedgym.envs.luck.derive`). So the vector environment equals single environments user by user,
through resets too.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import logger, spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from feedgym.data.batches import EventBatch
from feedgym.data.events import BEHAVIOURS, BoolArray, FloatArray, IntArray
from feedgym.data.sessions import MAX_WATCH_FRACTION, time_of_day
from feedgym.envs import luck
from feedgym.envs.render import RENDER_FPS, RENDER_MODES, Screen
from feedgym.envs.truth import RewardWeights, reward_components, session_reward
from feedgym.protocols import Response, UserSimulator, load, put_users, take_users

MAX_GAP_S = 1e9
"""Bound of the observed gaps; a space with infinite bounds cannot be normalised."""

SHORT_VIDEO = "feedgym.envs.short_video:ShortVideo"
NEXT_USER = 0x6E657874
"""Salt of the seeds of a slot's later users."""

Observation = dict[str, NDArray]


def event_times_s(login_s_U: NDArray[np.float64], watch_s_UK: FloatArray) -> NDArray[np.float64]:
    """When each item of a visit came on the screen: the login plus the seconds watched before it.

    Environments and logs both use this clock. Items the user never reached get the time at which the user left.

    Args:
        login_s_U: when the visit began.
        watch_s_UK: seconds watched.

    Returns:
        float64 seconds [U, K].
    """
    spent_s_UK = np.cumsum(watch_s_UK, axis=1, dtype=np.float64)
    return login_s_U[:, None] + spent_s_UK - watch_s_UK


def event_batch(observation: Observation) -> EventBatch:
    """An observation, of one user or batched, as the histories that recommenders take."""
    columns = {name: np.asarray(column) for name, column in observation.items()}
    if columns["history_items"].ndim == 1:
        columns = {name: column[None] for name, column in columns.items()}

    def tensor(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(columns[name]).to(dtype)

    return EventBatch(
        item_ids_UT=tensor("history_items", torch.int64),
        behaviours_UTB=tensor("history_behaviours", torch.float32),
        watch_fraction_UT=tensor("history_watch_fraction", torch.float32),
        gap_s_UT=tensor("history_gap_s", torch.float32),
        mask_UT=tensor("history_mask", torch.bool),
        profile_UF=tensor("profile", torch.int64),
        time_of_day_U=tensor("time_of_day", torch.float32),
    )


def make_simulator(simulator: UserSimulator | str = SHORT_VIDEO, **kwargs: Any) -> UserSimulator:
    """The simulator that an object or an import path names.

    Args:
        simulator: an object, or the import path of an object, a class or a function that makes one.
        **kwargs: given to the class or function; they are the config's fields where it takes a dataclass ``config``.

    Raises:
        ValueError: the path leads nowhere, or keywords were given for an object that is already made.
    """
    target = load(simulator) if isinstance(simulator, str) else simulator
    if not callable(target):
        if kwargs:
            raise ValueError(
                f"{sorted(kwargs)} cannot be set on a simulator already made; pass its import path instead."
            )
        return target
    config_type = _config_type(target)
    try:
        return target(config_type(**kwargs)) if config_type and kwargs else target(**kwargs)
    except TypeError as error:
        name = getattr(config_type or target, "__name__", simulator)
        raise ValueError(f"Cannot make {name} with {kwargs}: {error}; check the keywords' names.") from error


def _config_type(target: Any) -> type | None:
    """The dataclass that the parameter ``config`` takes, if there is one."""
    hint = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target).get("config")
    options = (hint, *typing.get_args(hint))
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """The last T examined events of U users, oldest first, right-padded with zeros.

    Attributes:
        items_UT: int64 item ids.
        behaviours_UTB: int8, 0 or 1.
        watch_fraction_UT: float32 seconds watched over the duration, clipped.
        time_s_UT: float64 when the item came on the screen.
        length_U: int64 number of real events.
    """

    items_UT: NDArray[np.int64]
    behaviours_UTB: NDArray[np.int8]
    watch_fraction_UT: FloatArray
    time_s_UT: NDArray[np.float64]
    length_U: NDArray[np.int64]

    @classmethod
    def empty(cls, num_users: int, length: int) -> History:
        """Users of whom nothing is known."""
        return cls(
            items_UT=np.zeros((num_users, length), np.int64),
            behaviours_UTB=np.zeros((num_users, length, len(BEHAVIOURS)), np.int8),
            watch_fraction_UT=np.zeros((num_users, length), np.float32),
            time_s_UT=np.zeros((num_users, length)),
            length_U=np.zeros(num_users, np.int64),
        )

    def after(self, login_s_U: NDArray, slates_UK: IntArray, response: Response, duration_s_I: FloatArray) -> History:
        """The history with the examined items of one more visit; the input is not changed."""
        num_users, length = self.items_UT.shape
        session_length = slates_UK.shape[1]
        total_U = self.length_U + response.examined_UK.sum(axis=1)
        length_U = np.minimum(total_U, length)
        # Place j of the new history is event j + (total - length) of old history and visit laid end to end.
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

    def observation(self, profile_UF: NDArray[np.int64], now_s_U: NDArray[np.float64]) -> Observation:
        """What is known of the users at a request at ``now_s_U``; fresh arrays."""
        place_T = np.arange(self.items_UT.shape[1])
        next_s_UT = np.empty_like(self.time_s_UT)
        next_s_UT[:, :-1] = self.time_s_UT[:, 1:]
        next_s_UT = np.where(place_T == self.length_U[:, None] - 1, now_s_U[:, None], next_s_UT)
        mask_UT = place_T < self.length_U[:, None]
        gap_s_UT = np.where(mask_UT, np.clip(next_s_UT - self.time_s_UT, 0, MAX_GAP_S), 0)
        return {
            "profile": profile_UF.astype(np.int64),
            "history_items": self.items_UT.copy(),
            "history_behaviours": self.behaviours_UTB.copy(),
            "history_watch_fraction": self.watch_fraction_UT.copy(),
            "history_gap_s": gap_s_UT.astype(np.float32),
            "history_mask": mask_UT.astype(np.int8),
            "time_of_day": time_of_day(now_s_U),
        }


def observation_space(simulator: UserSimulator, history_length: int) -> spaces.Dict:
    """The space of one user's observation; names and meanings are those of :class:`EventBatch`."""
    shape = (history_length,)
    return spaces.Dict(
        {
            "profile": spaces.MultiDiscrete(np.array(simulator.profile_sizes, np.int64)),
            "history_items": spaces.Box(0, simulator.catalog.num_items - 1, shape, np.int64),
            "history_behaviours": spaces.MultiBinary((*shape, len(BEHAVIOURS))),
            "history_watch_fraction": spaces.Box(0, MAX_WATCH_FRACTION, shape, np.float32),
            "history_gap_s": spaces.Box(0, MAX_GAP_S, shape, np.float32),
            "history_mask": spaces.MultiBinary(history_length),
            "time_of_day": spaces.Box(0, 24, (), np.float32),
        }
    )


def _rendering() -> dict[str, Any]:
    return {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}


class FeedVectorEnv(VectorEnv):
    """Many users at once, natively vectorised.

    An action is one ordered session of K item ids a slot. An item may stand in a session twice: the user answers its
    second copy like any item already seen.

    ``info`` holds what a platform would measure, each key with its ``_key`` mask: ``reward_components`` (unweighted,
    named as in :class:`RewardWeights`), ``examined``, ``watch_s``, ``behaviours``, ``elapsed_s``, ``left``,
    ``return_gap_s``, ``churned``.

    Args:
        num_envs: number of slots, one user each at any time.
        simulator: an object or an import path; see :func:`make_simulator`.
        session_length: K.
        history_length: T, examined events that are observed.
        horizon: visits after which an episode is truncated.
        reward: weights of the reward's components; the default weights if None.
        autoreset_mode: Gymnasium's; how slots whose episode is over get their next user.
        max_episode_steps: what ``gymnasium.make_vec`` passes on; the smaller of it and the horizon counts.
        render_mode: "ansi" for text, "rgb_array" for pictures; see :mod:`feedgym.envs.render`.
        **simulator_kwargs: given to the simulator, e.g. ``num_items=500``.

    Raises:
        ValueError: a length is below 1, the simulator cannot be made, or the render mode is unknown.
    """

    def __init__(
        self,
        num_envs: int = 1,
        simulator: UserSimulator | str = SHORT_VIDEO,
        *,
        session_length: int = 10,
        history_length: int = 50,
        horizon: int = 30,
        reward: RewardWeights | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **simulator_kwargs: Any,
    ) -> None:
        self.horizon = horizon if max_episode_steps is None else min(horizon, max_episode_steps)
        lengths = {"num_envs": num_envs, "session_length": session_length, "history_length": history_length}
        for name, value in {**lengths, "horizon": self.horizon}.items():
            if value < 1:
                raise ValueError(f"{name}={value} is below 1; give 1 or more.")
        self.num_envs = num_envs
        self.simulator = make_simulator(simulator, **simulator_kwargs)
        self.history_length = history_length
        self.reward = reward or RewardWeights()
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = _rendering() | {"autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self._screen = None if render_mode is None else Screen(render_mode, self.simulator, session_length, self.reward)

        num_items = self.simulator.catalog.num_items
        self.single_action_space = spaces.MultiDiscrete(np.full(session_length, num_items))
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = observation_space(self.simulator, history_length)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self._state: Any = None
        self._history = History.empty(num_envs, history_length)
        self._over_U = np.zeros(num_envs, bool)
        self._slot_seed_U = np.zeros(num_envs, np.uint64)
        self._num_users_U = np.zeros(num_envs, np.int64)

    @property
    def state(self) -> Any:
        """The users' true state, a :class:`feedgym.protocols.UserState`: for oracles and judges, never for agents."""
        return self._state

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """New users in all slots, or in those of ``options["reset_mask"]``.

        Args:
            seed: slot i gets the user of seed + i; or one seed (or None) a slot. Without a seed a slot goes on to its
                next user, and a slot that never had a seed draws one from ``np_random``.
            options: ``reset_mask``, bool [num_envs], leaves the other slots as they are.

        Raises:
            ValueError: seeds or mask do not fit the slots.
        """
        super().reset(seed=int(seed) if isinstance(seed, (int, np.integer)) else None)
        mask_U = self._reset_mask(options)
        self._seed_slots(seed, mask_U)
        self._next_users(mask_U)
        return self._observation(), {}

    def step(self, actions: IntArray) -> tuple[Observation, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """One visit of every user whose episode goes on.

        In ``NEXT_STEP`` mode, slots whose episode ended at the last step get their next user; their actions are unread.

        Args:
            actions: item ids [num_envs, K].

        Raises:
            ValueError: the actions have another shape, are no integers, or hold an unknown item.
            ResetNeeded: before the first reset, or with a slot whose episode is over in ``DISABLED`` mode.
        """
        over_U = self._over_U
        self._check_ready()
        slates_UK = self._checked(actions, ~over_U)
        reward_U = np.zeros(self.num_envs)
        churned_U = np.zeros(self.num_envs, bool)
        late_U = np.zeros(self.num_envs, bool)
        measured: dict[str, Any] = {}
        acting_U = ~over_U
        if acting_U.any():
            before = self._state
            response = self._answer(slates_UK, acting_U)
            reward_U[acting_U] = session_reward(response, self.reward)
            if self._screen is not None:
                self._screen.record(acting_U, before, slates_UK, response, reward_U)
            churned_U[acting_U] = response.churned_U
            late_U = acting_U & (self._state.visit_U >= self.horizon)
            measured = _measured(response)
        if over_U.any():
            self._next_users(over_U)
        self._over_U = churned_U | late_U
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over_U.any():
            info = self._replace_finished(measured)
        else:
            info = _masked(measured, acting_U)
        return self._observation(), reward_U, churned_U, late_U, info

    def render(self) -> tuple[Any, ...] | None:
        """The visits just paid, one a slot: strings, or pictures uint8 [H, W, 3] of one size; None without a mode.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self._screen is None:
            logger.warn("render() was called without a render mode; give render_mode= to gymnasium.make_vec.")
            return None
        return self._screen.frames(self._state)

    def _check_ready(self) -> None:
        if self._state is None:
            raise ResetNeeded("The feed has no users yet; call reset() before step().")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over_U.any():
            slots = np.flatnonzero(self._over_U).tolist()
            raise ResetNeeded(
                f"The episodes of slots {slots[:10]} are over; reset them with options={{'reset_mask': mask}} before "
                "the next step, or use another autoreset_mode."
            )

    def _checked(self, actions: IntArray, acting_U: BoolArray) -> IntArray:
        slates_UK = np.asarray(actions)
        if slates_UK.shape != self.action_space.shape:
            raise ValueError(f"Actions of shape {slates_UK.shape} do not fit; give item ids {self.action_space.shape}.")
        if not np.issubdtype(slates_UK.dtype, np.integer):
            raise ValueError(f"Actions of dtype {slates_UK.dtype} are no item ids; give integers.")
        num_items = self.simulator.catalog.num_items
        wrong_UK = ((slates_UK < 0) | (slates_UK >= num_items)) & acting_U[:, None]
        if wrong_UK.any():
            raise ValueError(
                f"Item id {slates_UK[wrong_UK][0]} is outside 0..{num_items - 1}; serve ids of the catalogue only."
            )
        return slates_UK

    def _answer(self, slates_UK: IntArray, acting_U: BoolArray) -> Response:
        """The answers of the acting slots' users, whose states and histories move on."""
        everyone = bool(acting_U.all())
        state = self._state if everyone else take_users(self._state, acting_U)
        history = self._history if everyone else take_users(self._history, acting_U)
        slates_UK = slates_UK[acting_U]
        response, next_state = self.simulator.respond(state, slates_UK)
        history = history.after(state.time_s_U, slates_UK, response, self.simulator.catalog.duration_s_I)
        self._state = next_state if everyone else put_users(self._state, acting_U, next_state)
        self._history = history if everyone else put_users(self._history, acting_U, history)
        return response

    def _replace_finished(self, measured: dict[str, Any]) -> dict[str, Any]:
        """SAME_STEP: the last observation and info of finished users go into the info, new users into their slots."""
        over_U = self._over_U
        info = _masked(_rows(measured, ~over_U), ~over_U) if not over_U.all() else {}
        last = self._observation()
        final_obs = np.full(self.num_envs, None, dtype=object)  # Gymnasium wants one unbatched observation a slot
        for slot in np.flatnonzero(over_U):
            final_obs[slot] = {name: np.asarray(column[slot]) for name, column in last.items()}
        info |= {"final_obs": final_obs, "_final_obs": over_U.copy()}
        info |= {"final_info": _masked(_rows(measured, over_U), over_U), "_final_info": over_U.copy()}
        self._next_users(over_U)
        return info

    def _seed_slots(self, seed: int | Sequence[int | None] | None, mask_U: BoolArray) -> None:
        """Begin the slots of the mask anew where a seed is given or none ever was."""
        if isinstance(seed, (int, np.integer)):
            seeds: list[int | None] = [int(seed) + slot for slot in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"{len(seeds)} seeds do not fit {self.num_envs} slots; give one seed a slot, or an integer."
            )
        if any(s is not None and s < 0 for s in seeds):
            raise ValueError(f"Seed {min(s for s in seeds if s is not None)} is negative; give 0 or more.")
        given_U = np.array([s is not None for s in seeds]) & mask_U
        unseeded_U = mask_U & ~given_U & (self._num_users_U == 0)
        values_U = np.array([0 if s is None else int(s) % 2**64 for s in seeds], np.uint64)
        self._slot_seed_U = np.where(given_U, values_U, self._slot_seed_U)
        self._slot_seed_U[unseeded_U] = self.np_random.integers(2**64, size=int(unseeded_U.sum()), dtype=np.uint64)
        self._num_users_U = np.where(given_U, 0, self._num_users_U)

    def _next_users(self, mask_U: BoolArray) -> None:
        """Put each slot's next user into the slots of the mask."""
        slot_seed_U, number_U = self._slot_seed_U[mask_U], self._num_users_U[mask_U]
        later_U = luck.derive(luck.derive(slot_seed_U, NEXT_USER), number_U)
        fresh = self.simulator.reset(np.where(number_U == 0, slot_seed_U, later_U))
        self._state = fresh if mask_U.all() else put_users(self._state, mask_U, fresh)
        empty = History.empty(len(number_U), self.history_length)
        self._history = empty if mask_U.all() else put_users(self._history, mask_U, empty)
        self._num_users_U = self._num_users_U + mask_U
        self._over_U = self._over_U & ~mask_U
        if self._screen is not None:
            self._screen.greet(mask_U)

    def _reset_mask(self, options: dict[str, Any] | None) -> BoolArray:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, bool)
        mask_U = np.asarray(mask)
        if mask_U.shape != (self.num_envs,) or mask_U.dtype != np.bool_ or not mask_U.any():
            raise ValueError(
                f"reset_mask of shape {mask_U.shape} and dtype {mask_U.dtype} does not fit; give bool "
                f"[{self.num_envs}] with at least one true slot."
            )
        if self._state is None and not mask_U.all():
            raise ValueError("The first reset must fill all slots; leave reset_mask out.")
        return mask_U

    def _observation(self) -> Observation:
        return self._history.observation(self._state.profile_UF, self._state.time_s_U)


class FeedEnv(gym.Env):
    """One user at a time: a :class:`FeedVectorEnv` of one slot without its leading axis; the same keywords."""

    metadata = _rendering()

    def __init__(self, simulator: UserSimulator | str = SHORT_VIDEO, **kwargs: Any) -> None:
        self.metadata = _rendering()  # wrappers add modes of their own to it
        self._feed = FeedVectorEnv(1, simulator, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.observation_space = self._feed.single_observation_space
        self.action_space = self._feed.single_action_space
        self.render_mode = self._feed.render_mode

    @property
    def simulator(self) -> UserSimulator:
        """The users."""
        return self._feed.simulator

    @property
    def state(self) -> Any:
        """The user's true state, one row: for oracles, judges and recorders, never for agents."""
        return self._feed.state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The user of ``seed``, or the next user; see :meth:`FeedVectorEnv.reset`."""
        super().reset(seed=seed)
        self._feed.np_random = self.np_random
        observation, _ = self._feed.reset(seed=None if seed is None else [seed])
        return _first(observation), {}

    def step(self, action: IntArray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One visit; see :meth:`FeedVectorEnv.step`."""
        observation, reward_U, terminated_U, truncated_U, info = self._feed.step(np.asarray(action)[None])
        observed = _first(observation)
        return observed, float(reward_U[0]), bool(terminated_U[0]), bool(truncated_U[0]), _first_info(info)

    def render(self) -> Any:
        """The visit just paid; see :meth:`FeedVectorEnv.render`."""
        frames = self._feed.render()
        return None if frames is None else frames[0]


def _measured(response: Response) -> dict[str, Any]:
    """What a platform would measure of a visit: the whole of a response and nothing of the state."""
    measured: dict[str, Any] = {"reward_components": reward_components(response)}
    return measured | {f.name.rsplit("_", 1)[0]: getattr(response, f.name) for f in fields(response)}


def _rows(measured: dict[str, Any], rows_U: BoolArray) -> dict[str, Any]:
    return {k: _rows(v, rows_U) if isinstance(v, dict) else v[rows_U] for k, v in measured.items()}


def _masked(measured: dict[str, Any], mask_U: BoolArray) -> dict[str, Any]:
    """Gymnasium's vector info: columns over all slots, zero outside the mask, which stands under ``_key``."""
    info: dict[str, Any] = {}
    for key, value in measured.items():
        if isinstance(value, dict):
            info[key] = _masked(value, mask_U)
        else:
            info[key] = np.zeros((len(mask_U), *value.shape[1:]), value.dtype)
            info[key][mask_U] = value
        info[f"_{key}"] = mask_U.copy()
    return info


def _first(observation: Observation) -> Observation:
    return {name: np.asarray(column[0]) for name, column in observation.items()}


def _first_info(info: dict[str, Any]) -> dict[str, Any]:
    """The info of slot 0 without masks; booleans as Python's, which Gymnasium's own vector environments batch."""
    first: dict[str, Any] = {}
    for key, value in info.items():
        if isinstance(value, dict):
            first[key] = _first_info(value)
        elif not key.startswith("_"):
            first[key] = bool(value[0]) if value.ndim == 1 and value.dtype == np.bool_ else value[0]
    return first
