"""Gymnasium environments over any user simulator: one user (:class:`FeedEnv`) or many at once (:class:`FeedVectorEnv`).

A step is a visit here; in the environments of :mod:`feedgym.envs.levels` it is a request, a page or a return. The
simulator's hidden state never reaches observations or infos.

A slot's first user has the slot's seed; later users have seeds derived from it by their number
(:func:`feedgym.envs.luck.derive`). So the vector environment equals single environments user by user, also across
resets.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import logger, spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, FloatArray, IntArray
from feedgym.envs import luck
from feedgym.envs.history import MAX_GAP_S as MAX_GAP_S  # these three are also available here
from feedgym.envs.history import History, Observation, first_history, has_arrivals, observation_space
from feedgym.envs.history import event_batch as event_batch
from feedgym.envs.history import event_times_s as event_times_s
from feedgym.envs.logging_policy import LoggingPolicy
from feedgym.envs.render import RENDER_FPS, RENDER_MODES, Screen
from feedgym.envs.truth import RewardWeights, reward_components, weighted_sum
from feedgym.envs.warmup import warm_up
from feedgym.plugins import is_folder, made
from feedgym.protocols import Response, UserSimulator, load, put_users, take_users

SHORT_VIDEO = "feedgym.envs.short_video:ShortVideo"
NEXT_USER = 0x6E657874
"""Salt for the seeds of a slot's later users."""

POPULATIONS = ("train", "test")
TEST_POPULATION = 0x74657374
"""Salt for the seeds of the test users, who never appear in training."""


def make_simulator(
    simulator: UserSimulator | str = SHORT_VIDEO, *, trust: bool = False, **kwargs: Any
) -> UserSimulator:
    """Make a simulator from an object or an import path.

    Args:
        simulator: an object, or a name from :mod:`feedgym.plugins`. Or the import path of an object, or of a class or
            function that makes one. Or the folder of a simulator that was fitted to a log.
        trust: import classes that such a folder names even if they are not feedgym's (:mod:`feedgym.trust`).
        **kwargs: given to the class or function; if it takes a dataclass ``config``, they are its fields.

    Raises:
        ValueError: the path leads nowhere, or keywords were given for an existing object.
    """
    target: Any
    if isinstance(simulator, str) and is_folder("simulator", simulator):
        from feedgym.envs.learned import LearnedSimulator  # imports torch, which other simulators do not need

        target = LearnedSimulator.load(simulator, trust=trust)
    else:
        target = made("simulator", simulator)
    if not callable(target):
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} cannot be set on an existing simulator; pass its import path instead.")
        return target
    config_type = _config_type(target)
    try:
        return target(config_type(**kwargs)) if config_type and kwargs else target(**kwargs)
    except TypeError as error:
        name = getattr(config_type or target, "__name__", simulator)
        raise ValueError(f"Cannot make {name} with {kwargs}: {error}; check the keywords' names.") from error


def judging(simulator: Any) -> UserSimulator:
    """The simulator for judging: its fresh users never appear in training; itself if all fresh users are new people."""
    return simulator.judging() if hasattr(simulator, "judging") else simulator


def _config_type(target: Any) -> type | None:
    """The dataclass type of the parameter ``config``, if there is one."""
    hint = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target).get("config")
    options = (hint, *typing.get_args(hint))
    return next((option for option in options if isinstance(option, type) and is_dataclass(option)), None)


def _rendering() -> dict[str, Any]:
    return {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}


class FeedVectorEnv(VectorEnv):
    """Many users at once, natively vectorised: :class:`FeedEnv` with a leading axis of slots.

    ``info`` holds what a platform would measure, each key with its ``_key`` mask, as in Gymnasium.

    Args:
        num_envs: number of slots, one user each at any time.
        simulator: an object or an import path; see :func:`make_simulator`.
        session_length: K.
        history_length: T, number of examined events that are observed.
        memory: number of earlier examined items that are also observed, so that agents can avoid them.
        horizon: visits after which an episode is truncated.
        warmup_visits: visits that users made under the logging policy before their episode begins.
        reward: weights of the reward's components, or their import path; ``default_reward`` if None.
        population: "train", or "test" for users that no seed gives in "train".
        weekday: include the day of the week in observations, so that agents can learn a weekly rhythm.
        autoreset_mode: Gymnasium's mode, by which slots get their next user after an episode.
        max_episode_steps: passed by ``gymnasium.make_vec``; the smaller of it and the horizon applies.
        render_mode: "ansi" for text, "rgb_array" for pictures; see :mod:`feedgym.envs.render`.
        **simulator_kwargs: given to the simulator, e.g. ``num_items=500``.

    Raises:
        ValueError: a length is below 1, the simulator cannot be made, or the population or render mode is unknown.
    """

    default_reward: ClassVar[RewardWeights] = RewardWeights()

    def __init__(
        self,
        num_envs: int = 1,
        simulator: UserSimulator | str = SHORT_VIDEO,
        *,
        session_length: int = 10,
        history_length: int = 50,
        memory: int = 0,
        horizon: int = 30,
        warmup_visits: int = 0,
        reward: RewardWeights | str | None = None,
        population: str = "train",
        weekday: bool = False,
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
        if memory < 0:
            raise ValueError(f"memory={memory} is below 0; give 0 for only the history.")
        if warmup_visits < 0:
            raise ValueError(f"warmup_visits={warmup_visits} is below 0; give 0 for users without a past.")
        if population not in POPULATIONS:
            raise ValueError(f"population={population!r} is unknown; give {' or '.join(POPULATIONS)}.")
        self.population, self.weekday = population, weekday
        self.num_envs = num_envs
        self.simulator = make_simulator(simulator, **simulator_kwargs)
        if population == "test":
            self.simulator = judging(self.simulator)
        self.history_length, self.memory = history_length, memory
        self.session_length, self.warmup_visits = session_length, warmup_visits
        self.reward = (load(reward) if isinstance(reward, str) else reward) or self.default_reward
        if not isinstance(self.reward, RewardWeights):
            raise ValueError(f"reward={reward!r} is not a RewardWeights; give one, or the import path of one.")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = _rendering() | {"autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self._screen = None if render_mode is None else Screen(render_mode, self.simulator, session_length, self.reward)

        num_items = self.simulator.catalog.num_items
        self.single_action_space = spaces.MultiDiscrete(np.full(session_length, num_items))
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = observation_space(
            self.simulator, history_length, with_weekday=weekday, memory=memory
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self._policy: LoggingPolicy | None = None
        self._state: Any = None
        self._history = History.empty(num_envs, history_length + memory)
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
        """Start new users in all slots, or in those of ``options["reset_mask"]``.

        Args:
            seed: slot i gets the user of seed + i; or give one seed (or None) per slot. With N slots, seeds s and s + 1
                share N - 1 users, so take seeds N apart, and another ``population`` for tests. Without a seed a slot
                takes its next user; a slot that never had a seed draws one from ``np_random``.
            options: ``reset_mask``, bool [num_envs]; the other slots stay as they are.

        Raises:
            ValueError: seeds or mask do not fit the slots.
        """
        super().reset(seed=int(seed) if isinstance(seed, (int, np.integer)) else None)
        mask_U = self._reset_mask(options)
        self._seed_slots(seed, mask_U)
        self._next_users(mask_U)
        return self._observation(), {}

    def step(self, actions: IntArray) -> tuple[Observation, NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """One step of every user whose episode goes on.

        In ``NEXT_STEP`` mode, slots whose episode ended at the last step get their next user; their actions are
        ignored.

        Args:
            actions: item ids [num_envs, K].

        Raises:
            ValueError: the actions have another shape, are not integers, or hold an unknown item.
            ResetNeeded: before the first reset, or with a slot whose episode is over in ``DISABLED`` mode.
        """
        acting_U = ~self._over_U
        measured, reward_U, terminated_U, truncated_U = self._act(actions)
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over_U.any():
            info = self._replace_finished(measured)
        else:
            info = _masked(measured, acting_U)
        return self._observation(), reward_U, terminated_U, truncated_U, info

    def render(self) -> tuple[Any, ...] | None:
        """The last visits, one per slot: strings, or pictures uint8 [H, W, 3] of equal size; None without a mode.

        Raises:
            ResetNeeded: before the first reset.
        """
        if self._screen is None:
            logger.warn("render() was called without a render mode; give render_mode= to gymnasium.make_vec.")
            return None
        return self._screen.frames(self._state)

    def _act(self, actions: IntArray) -> tuple[dict[str, Any], NDArray[np.float64], BoolArray, BoolArray]:
        """Measurements of all slots, rewards, and flags for terminated and truncated episodes; see :meth:`step`.

        Those of slots whose episode was over mean nothing; their rewards are 0 and their flags false.
        """
        self._check_ready()
        over_U, acting_U = self._over_U, ~self._over_U
        slates_UK = self._checked(actions, acting_U)
        measured: dict[str, Any] = {}
        reward_U = np.zeros(self.num_envs)
        terminated_U, truncated_U = np.zeros((2, self.num_envs), bool)
        if acting_U.any():
            before = self._state
            response = self._answer(slates_UK, acting_U)
            measured = self._measured(response)
            reward_U[acting_U] = self._reward(measured["reward_components"])[acting_U]
            terminated_U, truncated_U = (ends_U & acting_U for ends_U in self._ends(response))
            if self._screen is not None:
                answers, parts = take_users(response, acting_U), _rows(measured["reward_components"], acting_U)
                self._screen.record(acting_U, before, slates_UK, answers, parts, reward_U)
        if over_U.any():
            self._next_users(over_U)
        self._over_U = terminated_U | truncated_U
        return measured, reward_U, terminated_U, truncated_U

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
            raise ValueError(f"Actions of dtype {slates_UK.dtype} are not item ids; give integers.")
        num_items = self.simulator.catalog.num_items
        if slates_UK.min() >= 0 and slates_UK.max() < num_items:
            return slates_UK
        wrong_UK = ((slates_UK < 0) | (slates_UK >= num_items)) & acting_U[:, None]
        if wrong_UK.any():
            raise ValueError(
                f"Item id {slates_UK[wrong_UK][0]} is outside 0..{num_items - 1}; serve only ids of the catalogue."
            )
        return slates_UK

    def _answer(self, slates_UK: IntArray, acting_U: BoolArray) -> Response:
        """Responses of all slots' users; their states and histories are updated.

        Taking the acting users out and putting them back would take longer than to answer the few whose episode is
        over. These see any items, and the next users take their places.
        """
        slates_UK = np.where(acting_U[:, None], slates_UK, 0)
        state = self._state
        response, self._state = self.simulator.respond(state, slates_UK)
        duration_s_I = self.simulator.catalog.duration_s_I
        self._history = self._history.after(state.time_s_U, slates_UK, response, duration_s_I)
        return response

    def _ends(self, response: Response) -> tuple[BoolArray, BoolArray]:
        """Flags for terminated and for truncated episodes, of all slots as if all acted."""
        return response.churned_U, self._state.visit_U - self.warmup_visits >= self.horizon

    def _measured(self, response: Response) -> dict[str, Any]:
        """Everything that a platform would measure: all of a response and nothing of the state."""
        measured: dict[str, Any] = {"reward_components": reward_components(response)}
        return measured | {f.name.rsplit("_", 1)[0]: getattr(response, f.name) for f in fields(response)}

    def _reward(self, parts: dict[str, FloatArray]) -> FloatArray:
        """The users' rewards from their components."""
        return weighted_sum(parts, self.reward)

    def _replace_finished(self, measured: dict[str, Any]) -> dict[str, Any]:
        """SAME_STEP: puts finished users' last observations and infos into the info, and new users into their slots."""
        over_U = self._over_U
        info = _masked(measured, ~over_U) if not over_U.all() else {}
        last = self._observation()
        final_obs = np.full(self.num_envs, None, dtype=object)  # Gymnasium expects one unbatched observation per slot
        for slot in np.flatnonzero(over_U):
            final_obs[slot] = {name: np.asarray(column[slot]) for name, column in last.items()}
        info |= {"final_obs": final_obs, "_final_obs": over_U.copy()}
        info |= {"final_info": _masked(measured, over_U), "_final_info": over_U.copy()}
        self._next_users(over_U)
        return info

    def _seed_slots(self, seed: int | Sequence[int | None] | None, mask_U: BoolArray) -> None:
        """Restart the slots of the mask that get a seed or never had one."""
        if isinstance(seed, (int, np.integer)):
            seeds: list[int | None] = [int(seed) + slot for slot in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"{len(seeds)} seeds do not fit {self.num_envs} slots; give one seed per slot, or an integer."
            )
        if any(s is not None and s < 0 for s in seeds):
            raise ValueError(f"Seed {min(s for s in seeds if s is not None)} is negative; give 0 or more.")
        given_U = np.array([s is not None for s in seeds]) & mask_U
        unseeded_U = mask_U & ~given_U & (self._num_users_U == 0)
        values_U = np.array([0 if s is None else int(s) % 2**64 for s in seeds], np.uint64)
        self._slot_seed_U = np.where(given_U, values_U, self._slot_seed_U)
        self._slot_seed_U[unseeded_U] = self.np_random.integers(2**64, size=int(unseeded_U.sum()), dtype=np.uint64)
        if self.population == "test":
            begun_U = given_U | unseeded_U
            self._slot_seed_U[begun_U] = luck.derive(self._slot_seed_U[begun_U], TEST_POPULATION)
        self._num_users_U = np.where(given_U, 0, self._num_users_U)

    def _next_users(self, mask_U: BoolArray) -> None:
        """Put each slot's next user into the slots of the mask."""
        slot_seed_U, number_U = self._slot_seed_U[mask_U], self._num_users_U[mask_U]
        later_U = luck.derive(luck.derive(slot_seed_U, NEXT_USER), number_U)
        fresh = self.simulator.reset(np.where(number_U == 0, slot_seed_U, later_U))
        history = first_history(self.simulator, fresh, self.history_length + self.memory)
        if self.warmup_visits:
            self._policy = self._policy or LoggingPolicy(self.simulator, self.session_length)
            fresh, history = warm_up(self._policy, fresh, history, self.warmup_visits)
        self._state = fresh if mask_U.all() else put_users(self._state, mask_U, fresh)
        self._history = history if mask_U.all() else self._history.put(mask_U, history)
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
        told = {"dated": has_arrivals(self.simulator), "with_weekday": self.weekday}
        if not self.memory:
            return self._history.observation(self._state.profile_UF, self._now_s_U(), **told)
        window = self._history.resized(self.history_length)
        observed = window.observation(self._state.profile_UF, self._now_s_U(), **told)
        return observed | {"history_earlier": self._history.earlier(self.history_length)}

    def _now_s_U(self) -> NDArray[np.float64]:
        """Time of the next request."""
        return self._state.time_s_U


class FeedEnv(gym.Env):
    """One user who visits repeatedly; a step is a visit, and an episode is the user's time with the feed.

    A :class:`FeedVectorEnv` of one slot without its leading axis, which takes the same keywords.

    ### Action space
    ``MultiDiscrete([I] * K)``: an ordered session of K item ids. A session may hold an item twice; the user treats the
    second copy like any item already seen. The simulator decides if order matters: users of the short-video feed go
    from the first item to the last until they have had enough.

    ### Observation space
    A ``Dict`` of what a platform knows at a request; the user's state of mind stays hidden. The last T items that the
    user reached come oldest first, padded with zeros if there are fewer.

    | key | space | meaning |
    |---|---|---|
    | ``profile`` | MultiDiscrete [F] | the simulator's profile fields |
    | ``history_items`` | Box int64 [T] | item ids |
    | ``history_behaviours`` | MultiBinary [T, 7] | click, long view, like, follow, comment, forward, hate |
    | ``history_watch_fraction`` | Box float32 [T] | seconds watched over the item's duration, at most 5 |
    | ``history_gap_s`` | Box float32 [T] | seconds to the next item, or to the request after the last one |
    | ``history_mask`` | MultiBinary [T] | 1 where there is an item |
    | ``time_of_day`` | Box float32 [1] | hours, 0 to 24 |
    | ``time_s`` | Box float64 [1] | the simulator's clock, seconds; only if items come and go |
    | ``weekday`` | MultiDiscrete [1] | day of the week, 0 on the clock's first day; only with ``weekday=True`` |
    | ``history_earlier`` | Box int64 [J] | items before those T, oldest first, padded with -1; only with ``memory=J`` |

    ### Reward
    The value of the visit to the user. It is the weighted sum of the minutes watched, the counts of the behaviours, and
    1 for a return within 24 hours. The weights are those of :class:`feedgym.RewardWeights`.

    ### Starting state
    A fresh user, drawn from the seed, before their first visit, or after ``warmup_visits`` visits under the logging
    policy. Without a seed a reset gives the next user. ``population="test"`` has other users than "train" under every
    seed.

    ### Episode end
    Terminated when the user will never come back; truncated after ``horizon`` visits.

    ### Info
    After a step, the platform's measurements: ``examined`` (bool [K], true for items that the user reached),
    ``watch_s`` (float32 [K]) and ``behaviours`` (uint8 [K, 7]). ``elapsed_s``, ``left`` (true if before the end of the
    session), ``return_gap_s`` (seconds to the next visit) and ``churned`` describe the visit. ``reward_components`` are
    the parts of the reward before weighting.

    ### Arguments
    ``simulator`` (an import path or an object) and all its arguments, such as ``num_items``; ``session_length`` K,
    ``history_length`` T, ``memory`` J. ``horizon``, ``warmup_visits``, ``reward`` (weights, or their import path),
    ``population`` ("train" or "test"), ``weekday``, ``render_mode``; see :class:`FeedVectorEnv`. Vector environments
    also take ``autoreset_mode``.

    ### References
    The interface for slates follows RecSim (Ie et al., arXiv:1909.04847), the feedback KuaiRand (Gao et al.,
    arXiv:2208.08696).

    ### Version history
    - v1: ``time_of_day`` and ``time_s`` have shape [1], which Stable-Baselines3 requires of every box.
    - v0: first version; they had shape [].
    """

    metadata = _rendering()
    vector_env: ClassVar[type[FeedVectorEnv]] = FeedVectorEnv

    def __init__(self, simulator: UserSimulator | str = SHORT_VIDEO, **kwargs: Any) -> None:
        for name in ("autoreset_mode", "num_envs"):
            if name in kwargs:
                raise ValueError(
                    f"{name}={kwargs[name]!r} is for vector environments (gymnasium.make_vec); leave it out here, "
                    "where one user is served until the episode ends and reset() is called."
                )
        self.metadata = _rendering()  # wrappers add their own modes to it
        self._feed = self.vector_env(1, simulator, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
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
        """Start the user of ``seed``, or the next user; see :meth:`FeedVectorEnv.reset`."""
        super().reset(seed=seed)
        self._feed.np_random = self.np_random
        observation, _ = self._feed.reset(seed=None if seed is None else [seed])
        return _first(observation), {}

    def step(self, action: IntArray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One step; see :meth:`FeedVectorEnv.step`.

        Raises:
            ResetNeeded: before the first reset, or after the episode's end.
        """
        if self._feed._over_U[0]:
            raise ResetNeeded("The episode is over; call reset() before the next step().")
        measured, reward_U, terminated_U, truncated_U = self._feed._act(np.asarray(action)[None])
        observed, ends = _first(self._feed._observation()), (bool(terminated_U[0]), bool(truncated_U[0]))
        return observed, float(reward_U[0]), *ends, _first_info(measured)

    def render(self) -> Any:
        """The last visit; see :meth:`FeedVectorEnv.render`."""
        frames = self._feed.render()
        return None if frames is None else frames[0]


def _rows(measured: dict[str, Any], rows_U: BoolArray) -> dict[str, Any]:
    return {k: _rows(v, rows_U) if isinstance(v, dict) else v[rows_U] for k, v in measured.items()}


def _masked(measured: dict[str, Any], mask_U: BoolArray) -> dict[str, Any]:
    """Gymnasium's vector info: columns of all slots, zero outside the mask, which is stored under ``_key``."""
    info: dict[str, Any] = {}
    others = np.flatnonzero(~mask_U)
    for key, value in measured.items():
        if isinstance(value, dict):
            info[key] = _masked(value, mask_U)
        else:
            info[key] = value.copy()
            info[key][others] = 0
        info[f"_{key}"] = mask_U.copy()
    return info


def _first(observation: Observation) -> Observation:
    return {name: np.asarray(column[0]) for name, column in observation.items()}


def _first_info(measured: dict[str, Any]) -> dict[str, Any]:
    """The info of slot 0, with Python's booleans, which Gymnasium's own vector environments can batch."""
    first: dict[str, Any] = {}
    for key, value in measured.items():
        if isinstance(value, dict):
            first[key] = _first_info(value)
        else:
            first[key] = bool(value[0]) if value.ndim == 1 and value.dtype == np.bool_ else value[0]
    return first
