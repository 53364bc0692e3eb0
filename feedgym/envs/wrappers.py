"""Changes observations and actions of a feed, for learners that accept neither histories nor sessions of item ids.

========================  ==================================================================================
observation               the history window as it is, or :class:`CompactObservation`, one vector per user
action                    a session of item ids as it is, :class:`ProtoItems` (a point in content space for
                          each place) or :class:`ItemByItem` (one item id per step)
========================  ==================================================================================

Each has a twin for vector environments (``Vector...``) that gives the same numbers. They can be combined. With
Stable-Baselines3, use PPO on ``CompactObservation(env)``, SAC and TD3 on ``ProtoItems(CompactObservation(env))``, DQN
and sb3-contrib's MaskablePPO on ``CompactObservation(ItemByItem(env))``. :mod:`feedgym.envs.features` has their
computations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorActionWrapper,
    VectorEnv,
    VectorObservationWrapper,
    VectorWrapper,
)
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from feedgym.data.events import BoolArray, Catalog
from feedgym.envs.features import compact_state, item_points, nearest_items
from feedgym.envs.history import Observation, has_arrivals
from feedgym.protocols import UserSimulator


def of_feeds(env: gym.Env | VectorEnv, name: str) -> Sequence[Any]:
    """An attribute of the feed under wrappers, or of every feed in Gymnasium's own vector environments."""
    base = env.unwrapped
    return base.get_attr(name) if isinstance(base, (SyncVectorEnv, AsyncVectorEnv)) else [getattr(base, name)]


def _existing(env: Any, simulator: UserSimulator) -> Callable[[slice], BoolArray] | None:
    """A function for the items that exist when the users of some slots log in, [slots, I]; None if all always exist."""
    if not has_arrivals(simulator):
        return None
    time_s_U = np.concatenate([state.time_s_U for state in of_feeds(env, "state")])
    return lambda users: simulator.catalog.exists(time_s_U[users])


# ---------------------------------------------------------------- observations


class _CompactState:
    """:func:`compact_state` for one environment: its constants, its space, and passing on of action masks."""

    def __init__(self, env: Any, space: gym.Space, width: int | None, half_life: float, satiation_hours: float) -> None:
        if not isinstance(space, spaces.Dict) or "history_items" not in space.spaces:
            raise ValueError(f"The observations {space} hold no history; put CompactObservation closer to the feed.")
        for name, value in (("half_life", half_life), ("satiation_hours", satiation_hours)):
            if not value > 0:
                raise ValueError(f"{name}={value} is not above 0; give events or hours above 0.")
        simulator = of_feeds(env, "simulator")[0]
        self._constants: dict[str, Any] = {
            "points_IE": item_points(simulator.catalog, width).astype(np.float32),
            "topic_I": simulator.catalog.topic_I,
            "profile_sizes": simulator.profile_sizes,
            "half_life": half_life,
            "satiation_hours": satiation_hours,
        }
        mask_space = space.spaces.get("action_mask")
        self._masked = mask_space is not None
        nothing = {name: np.zeros((1, *(part.shape or ())), part.dtype) for name, part in space.spaces.items()}
        state_space = spaces.Box(-1, 1, compact_state(nothing, **self._constants).shape[1:], np.float32)
        self.space: gym.Space = state_space
        if mask_space is not None:
            self.space = spaces.Dict({"observations": state_space, "action_mask": mask_space})

    def __call__(self, observation: Observation) -> Any:
        state_UD = compact_state(observation, **self._constants)
        return {"observations": state_UD, "action_mask": observation["action_mask"]} if self._masked else state_UD


class CompactObservation(gym.ObservationWrapper, RecordConstructorArgs):
    """One vector per user instead of the history window; see :func:`compact_state`.

    If the observation has an action mask (:class:`ItemByItem`), the result is a dict of ``observations``, which is the
    vector, and ``action_mask``. RLlib's masking modules and Stable-Baselines3's ``MultiInputPolicy`` take it so.

    Args:
        env: a feed whose observations still hold the history.
        width: principal components of the content that are kept; all of it, unrotated, if None.
        half_life: number of later events after which an event counts half.
        satiation_hours: hours after which the count of a topic decays to 1/e.

    Raises:
        ValueError: there is no history, or a number is out of range.
    """

    def __init__(
        self, env: gym.Env, *, width: int | None = None, half_life: float = 10.0, satiation_hours: float = 6.0
    ) -> None:
        RecordConstructorArgs.__init__(self, width=width, half_life=half_life, satiation_hours=satiation_hours)
        gym.ObservationWrapper.__init__(self, env)
        self._compact = _CompactState(env, env.observation_space, width, half_life, satiation_hours)
        self.observation_space = self._compact.space

    def observation(self, observation: Observation) -> Any:
        """One user's vector, float32 [D]."""
        return _row(self._compact({name: np.asarray(column)[None] for name, column in observation.items()}), 0)


class VectorCompactObservation(VectorObservationWrapper):
    """:class:`CompactObservation` for vector environments, including final observations."""

    def __init__(
        self, env: VectorEnv, *, width: int | None = None, half_life: float = 10.0, satiation_hours: float = 6.0
    ) -> None:
        # Gymnasium's class refuses SAME_STEP, because it would not change the final observations; step() does.
        VectorWrapper.__init__(self, env)
        self._compact = _CompactState(env, env.single_observation_space, width, half_life, satiation_hours)
        self.single_observation_space = self._compact.space
        self.observation_space = batch_space(self._compact.space, env.num_envs)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment and change the observations."""
        observation, *outcome, info = self.env.step(actions)
        reward_U, terminated_U, truncated_U = outcome
        return self.observations(observation), reward_U, terminated_U, truncated_U, _change_final(info, self._compact)

    def observations(self, observations: Any) -> Any:
        """The users' vectors, float32 [U, D]."""
        return self._compact(observations)


def _row(batch: Any, row: int) -> Any:
    """One user's part of a batched observation."""
    if not isinstance(batch, dict):
        return batch[row]
    values = ((name, column[row]) for name, column in batch.items())
    # A Discrete space needs scalar integers, a Box needs arrays.
    return {name: value if isinstance(value, np.integer) else np.asarray(value) for name, value in values}


def _change_final(info: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """SAME_STEP: changes the final observations in the info too, one per finished slot."""
    if "final_obs" not in info:
        return info
    slots = np.flatnonzero(info["_final_obs"])
    rows = [info["final_obs"][slot] for slot in slots]
    is_dict = isinstance(rows[0], dict)
    changed = change({n: np.stack([row[n] for row in rows]) for n in rows[0]} if is_dict else np.stack(rows))
    final = np.full(len(info["final_obs"]), None, dtype=object)
    for i, slot in enumerate(slots):
        final[slot] = _row(changed, i)
    return info | {"final_obs": final}


# ---------------------------------------------------------------- actions


class _ProtoSpace:
    """Points for the K places of a session, and the items served for them."""

    def __init__(self, env: Any, space: gym.Space, width: int | None) -> None:
        self._env, self._simulator = env, of_feeds(env, "simulator")[0]
        length = _session_length(space, self._simulator.catalog)
        self._points_IE = item_points(self._simulator.catalog, width)
        self.space = spaces.Box(-1, 1, (length, self._points_IE.shape[1]), np.float32)

    def slates(self, proto: Any, shape: tuple[int, ...]) -> NDArray[np.int64]:
        proto_UKE = np.asarray(proto, np.float64)
        if proto_UKE.shape != shape:
            raise ValueError(f"Proto-items of shape {proto_UKE.shape} do not fit; give points {shape}.")
        if not np.isfinite(proto_UKE).all():
            raise ValueError("Proto-items hold NaN or infinite values; look for a diverged policy.")
        allowed = _existing(self._env, self._simulator)
        return nearest_items(self._points_IE, proto_UKE.reshape(-1, *self.space.shape), allowed)


class ProtoItems(gym.ActionWrapper, RecordConstructorArgs):
    """An action is a point in content space for each place: a box [K, E'] within [-1, 1].

    The nearest existing items are served, without repetition in a session; see
    :func:`feedgym.envs.features.nearest_items` and :func:`feedgym.envs.features.item_points`.

    Args:
        env: a feed whose actions are sessions of item ids.
        width: number of principal components of the content that points have; None keeps all of it, unrotated.

    Raises:
        ValueError: the actions are not sessions, sessions are longer than the catalogue, or the width is out of range.
    """

    def __init__(self, env: gym.Env, *, width: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, width=width)
        gym.ActionWrapper.__init__(self, env)
        self._proto = _ProtoSpace(env, env.action_space, width)
        self.action_space = self._proto.space

    def action(self, action: Any) -> NDArray[np.int64]:
        """Item ids [K] of points [K, E']."""
        return self._proto.slates(action, self._proto.space.shape)[0]


class VectorProtoItems(VectorActionWrapper):
    """:class:`ProtoItems` for vector environments."""

    def __init__(self, env: VectorEnv, *, width: int | None = None) -> None:
        super().__init__(env)
        self._proto = _ProtoSpace(env, env.single_action_space, width)
        self.single_action_space = self._proto.space
        self.action_space = batch_space(self._proto.space, env.num_envs)

    def actions(self, actions: Any) -> Any:
        """Item ids [U, K] of points [U, K, E']."""
        return self._proto.slates(actions, (self.num_envs, *self._proto.space.shape))


class _GrowingSlates:
    """U sessions that grow together by one item per step."""

    def __init__(self, env: Any, num_slots: int, observation_space: gym.Space, action_space: gym.Space) -> None:
        self._env, self._simulator = env, of_feeds(env, "simulator")[0]
        catalog = self._simulator.catalog
        self.num_items, self.length = catalog.num_items, _session_length(action_space, catalog)
        self._points_IE = item_points(catalog)
        self.slate_UK = np.full((num_slots, self.length), -1, np.int64)
        self.position = 0
        observed = {"observations": observation_space}
        if isinstance(observation_space, spaces.Dict):
            observed = observation_space.spaces
        self.space = spaces.Dict(
            {
                **observed,
                "slate": spaces.Box(-1, self.num_items - 1, (self.length,), np.int64),
                "position": spaces.Discrete(self.length),
                "action_mask": spaces.MultiBinary(self.num_items),
            }
        )

    def clear(self) -> None:
        self.slate_UK, self.position = np.full_like(self.slate_UK, -1), 0

    def place(self, actions: Any) -> bool:
        """Puts one item into each session; returns true if the sessions are complete."""
        item_U = np.asarray(actions)
        if item_U.shape != self.slate_UK.shape[:1] or not np.issubdtype(item_U.dtype, np.integer):
            raise ValueError(f"Actions of shape {item_U.shape}, {item_U.dtype}, do not fit; give one item id per slot.")
        if ((item_U < 0) | (item_U >= self.num_items)).any():
            wrong = item_U[(item_U < 0) | (item_U >= self.num_items)][0]
            raise ValueError(f"Item id {wrong} is outside 0..{self.num_items - 1}; choose where action_mask is 1.")
        item_U = item_U.astype(np.int64)
        mask_UI = self.masks_UI().astype(bool)
        barred = np.flatnonzero(~mask_UI[np.arange(len(item_U)), item_U])
        if len(barred):
            wanted_U1E, mask_UI = self._points_IE[item_U[barred], None], mask_UI[barred]
            item_U[barred] = nearest_items(self._points_IE, wanted_U1E, lambda users: mask_UI[users])[:, 0]
        self.slate_UK[:, self.position] = item_U
        self.position += 1
        return self.position == self.length

    def masks_UI(self) -> NDArray[np.int8]:
        allowed = _existing(self._env, self._simulator)
        mask_UI = np.ones((len(self.slate_UK), self.num_items), np.int8)
        if allowed is not None:
            mask_UI[:] = allowed(slice(None))
        np.put_along_axis(mask_UI, self.slate_UK[:, : self.position], 0, axis=1)
        return mask_UI

    def extend(self, observation: Any) -> Observation:
        """A batched observation with the sessions so far, in new arrays."""
        return {name: column.copy() for name, column in _named(observation).items()} | {
            "slate": self.slate_UK.copy(),
            "position": np.full(len(self.slate_UK), self.position),
            "action_mask": self.masks_UI(),
        }

    def extend_final(self, observation: Any) -> Observation:
        """The last observations of some users, whose next sessions would be empty."""
        observed = _named(observation)
        num_users = len(next(iter(observed.values())))
        mask_UI = np.ones((num_users, self.num_items), np.int8)
        if "time_s" in observed:
            mask_UI[:] = self._simulator.catalog.exists(observed["time_s"][:, 0])
        return observed | {
            "slate": np.full((num_users, self.length), -1),
            "position": np.zeros(num_users, np.int64),
            "action_mask": mask_UI,
        }


def _named(observation: Any) -> Observation:
    return observation if isinstance(observation, dict) else {"observations": observation}


class ItemByItem(gym.Wrapper, RecordConstructorArgs):
    """An action is one item id; the user is served once the session has K items.

    Observations have three additional keys: ``slate``, ``position`` and ``action_mask``. ``slate`` holds the item ids
    so far, -1 for empty places; the mask is 1 for items that exist and are not in the slate. Until the last place
    rewards are 0 and infos empty. For learners without masks, an item chosen against the mask is replaced by the
    allowed item with the nearest content. So no item is in a session twice.

    Args:
        env: a feed whose actions are sessions of item ids.

    Raises:
        ValueError: the actions are not sessions, or sessions are longer than the catalogue.
    """

    def __init__(self, env: gym.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._slates = _GrowingSlates(env, 1, env.observation_space, env.action_space)
        self.action_space = spaces.Discrete(self._slates.num_items)
        self.observation_space = self._slates.space
        self._known: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and empty the slate."""
        self._known, info = self.env.reset(seed=seed, options=options)
        self._slates.clear()
        return self._observation(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Place one item; the last one serves the user."""
        if not self._slates.place(np.atleast_1d(np.asarray(action))):
            return self._observation(), 0.0, False, False, {}
        slate_K = self._slates.slate_UK[0]
        self._slates.clear()
        self._known, reward, terminated, truncated, info = self.env.step(slate_K)
        return self._observation(), reward, terminated, truncated, info

    def action_masks(self) -> NDArray[np.bool_]:
        """True for items that may come next, bool [I]; sb3-contrib's MaskablePPO calls it by this name."""
        return self._slates.masks_UI()[0].astype(bool)

    def _observation(self) -> Observation:
        batch = {name: np.asarray(column)[None] for name, column in _named(self._known).items()}
        return _row(self._slates.extend(batch), 0)


class VectorItemByItem(VectorWrapper):
    """:class:`ItemByItem` of a vector environment whose autoreset mode is ``SAME_STEP`` or ``DISABLED``.

    All slots are at the same place of their sessions. In ``NEXT_STEP`` a slot would lose a step at each reset and fall
    behind the others; in this mode, wrap single environments in :class:`ItemByItem`.

    Raises:
        ValueError: the autoreset mode is ``NEXT_STEP``, or as for :class:`ItemByItem`.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        if env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP:
            raise ValueError(
                "autoreset_mode NextStep lets slots fall out of step; make the environment with "
                "autoreset_mode='SameStep' or 'Disabled', or vectorise ItemByItem(FeedEnv(...)) by Gymnasium."
            )
        self._slates = _GrowingSlates(env, env.num_envs, env.single_observation_space, env.single_action_space)
        self.single_action_space = spaces.Discrete(self._slates.num_items)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.single_observation_space = self._slates.space
        self.observation_space = batch_space(self._slates.space, env.num_envs)
        self._known: Any = None

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and empty the slates.

        Raises:
            ValueError: only some slots are reset in the middle of their sessions.
        """
        mask = (options or {}).get("reset_mask")
        if mask is not None and not np.all(mask) and self._slates.position:
            raise ValueError(
                f"Slots cannot be reset at place {self._slates.position} of {self._slates.length}, while others go on; "
                "reset them when the sessions are complete, or reset all."
            )
        self._known, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._slates.clear()
        return self._slates.extend(self._known), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Place one item in every slot; the last one serves the users."""
        if not self._slates.place(actions):
            nobody_U = np.zeros(self.num_envs, bool)
            return self._slates.extend(self._known), np.zeros(self.num_envs), nobody_U, nobody_U.copy(), {}
        slates_UK = self._slates.slate_UK
        self._slates.clear()
        self._known, reward_U, terminated_U, truncated_U, info = self.env.step(slates_UK)
        info = _change_final(info, self._slates.extend_final)
        return self._slates.extend(self._known), reward_U, terminated_U, truncated_U, info

    def action_masks(self) -> NDArray[np.bool_]:
        """True for items that may come next, bool [U, I]."""
        return self._slates.masks_UI().astype(bool)


def _session_length(space: gym.Space, catalog: Catalog) -> int:
    if not isinstance(space, spaces.MultiDiscrete):
        raise ValueError(f"The actions {space} are not sessions of item ids; wrap the feed once and directly.")
    length = len(space.nvec)
    if length > catalog.num_items:
        raise ValueError(
            f"Sessions of {length} different items need more than the catalogue's {catalog.num_items}; lower "
            "session_length."
        )
    return length
