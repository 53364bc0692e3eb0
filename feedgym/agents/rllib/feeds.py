"""Training data for RLlib: many users at once, or the rows of a log.

RLlib assumes without a check that vector environments are in ``NEXT_STEP`` mode, so ours are made that way. Here each
observation is one vector (:func:`~feedgym.agents.slates.world.flat_observation`), which replay buffers and logs handle
best and CQL requires.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID

from feedgym.agents.requests import require_items
from feedgym.agents.rl_settings import TrainConfig
from feedgym.agents.rllib.task import Task
from feedgym.agents.slates.proto import ProtoPolicy
from feedgym.agents.slates.world import flat_observation
from feedgym.data.events import Catalog
from feedgym.data.parquet import replacing
from feedgym.envs.feed import FeedVectorEnv, event_batch
from feedgym.envs.wrappers import VectorItemByItem


class TrainingFeed(VectorWrapper):
    """A feed in the form that is fastest for RLlib: flat observations, and no infos, which it would split by user.

    If items come and go, a request at which too few exist for a session is an error.

    Args:
        env: a feed in ``NEXT_STEP`` mode.
        proto: the network whose proto-items are the actions, or None for sessions of item ids.
    """

    def __init__(self, env: FeedVectorEnv, proto: ProtoPolicy | None = None) -> None:
        super().__init__(env)
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        self.proto = proto
        self._known: dict[str, Any] = {}
        self._over_U, self.catalog, self.length = (
            np.zeros(env.num_envs, bool),
            env.simulator.catalog,
            env.session_length,
        )
        self.single_observation_space = flat_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        if proto is not None:
            self.single_action_space = spaces.Box(-1, 1, (proto.action_width,), np.float32)
            self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start new users."""
        self._known, _ = self.env.reset(**kwargs)
        self._over_U[:] = False
        return flat_observation(self._known), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One visit per user."""
        require_supply(self._known, ~self._over_U, self.catalog, self.length)
        if self.proto is not None:
            proto_UA = torch.as_tensor(np.asarray(actions))
            actions = self.proto.items(proto_UA, self.proto.length, event_batch(self._known)).numpy()
        self._known, reward_U, terminated_U, truncated_U, _ = self.env.step(actions)
        self._over_U = terminated_U | truncated_U
        return flat_observation(self._known), reward_U, terminated_U, truncated_U, {}


class TrainingItems(VectorWrapper):
    """One item per step for many users, flat and without infos; the session so far is at the end of the observation.

    It is in ``NEXT_STEP`` mode, where a slot loses the step after an episode's end. To keep all users at the same place
    of their sessions, a new user's first session begins with a random existing item.

    Args:
        env: a feed in ``DISABLED`` mode.
    """

    def __init__(self, env: FeedVectorEnv) -> None:
        super().__init__(VectorItemByItem(env))
        assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        self.catalog, self.length = env.simulator.catalog, env.session_length
        self._known: dict[str, Any] = {}
        self.metadata = env.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._over_U = np.zeros(env.num_envs, bool)
        self._luck = np.random.default_rng(0)
        self.single_observation_space = flat_space(self.env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start new users."""
        self._over_U[:], self._luck = False, np.random.default_rng(seed)
        self._known, _ = self.env.reset(seed=seed, options=options)
        return flat_observation(self._known), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One item per user, or a new user."""
        new_U, items_U = self._over_U, np.array(actions)
        require_supply(self._known, ~new_U, self.catalog, self.length)
        if new_U.any():
            observation, _ = self.env.reset(options={"reset_mask": new_U})
            items_U[new_U] = self._random_items({name: column[new_U] for name, column in observation.items()})
        observation, reward_U, terminated_U, truncated_U, _ = self.env.step(items_U)
        if (gone_U := new_U & (terminated_U | truncated_U)).any():  # sessions of one item are a whole visit
            observation, _ = self.env.reset(options={"reset_mask": gone_U})
        self._known = observation
        terminated_U, truncated_U = terminated_U & ~new_U, truncated_U & ~new_U
        self._over_U = terminated_U | truncated_U
        return flat_observation(observation), np.where(new_U, 0, reward_U), terminated_U, truncated_U, {}

    def _random_items(self, observation: dict[str, Any]) -> NDArray[np.int64]:
        """A random item for each of some users."""
        num_users, num_items = len(observation["profile"]), int(self.env.single_action_space.n)  # type: ignore[attr-defined]
        if "time_s" not in observation:
            return self._luck.integers(num_items, size=num_users)
        exists_UI = self.catalog.exists(observation["time_s"][:, 0])
        return np.where(exists_UI, self._luck.random((num_users, num_items)), -1).argmax(axis=1)


def require_supply(observation: dict[str, Any], asking_U: NDArray[np.bool_], catalog: Catalog, length: int) -> None:
    """Require that enough items for a session exist at the requests of active users, if observations are dated.

    Raises:
        ValueError: fewer exist at some request.
    """
    if "time_s" in observation:
        require_items(torch.from_numpy(catalog.exists(observation["time_s"][asking_U, 0])), length)


def flat_space(space: gym.Space) -> spaces.Box:
    """The space of :func:`flat_observation`; unbounded, because item ids and seconds share it."""
    nothing = {name: np.zeros((1, *(part.shape or ())), part.dtype) for name, part in space.spaces.items()}  # type: ignore[attr-defined]
    return spaces.Box(-np.inf, np.inf, flat_observation(nothing).shape[1:], np.float32)


def make_env(task: Task, config: TrainConfig, given: dict[str, Any]) -> VectorEnv:
    """The environment for RLlib: many users at once, whose sessions grow item by item for DQN.

    Args:
        task: users and lengths.
        config: the algorithm.
        given: RLlib's environment config; contains ``num_envs`` if a vector environment is wanted.
    """
    num_envs = given.get("num_envs", 1)
    if config.algorithm == "dqn":
        return TrainingItems(task.feed(num_envs, AutoresetMode.DISABLED))
    network = task.network(config)
    return TrainingFeed(task.feed(num_envs), network if isinstance(network, ProtoPolicy) else None)


def write_rows(transitions: dict[str, Any], task: Task, config: TrainConfig, path: Path) -> Path:
    """Writes a log's transitions as the parquet rows that RLlib's offline algorithms read.

    Args:
        transitions: from :func:`feedgym.envs.recorder.transitions`.
        task: lengths; for CQL also the items' points: its actions are the proto-items of the served sessions.
        config: the algorithm.
        path: the file.
    """
    actions_NK = transitions["actions"]
    network = task.network(config)
    actions = network.proto(actions_NK) if isinstance(network, ProtoPolicy) else actions_NK
    columns = {
        "eps_id": transitions["episodes"].astype(str),
        "agent_id": np.full(len(actions_NK), "agent_0"),
        "module_id": np.full(len(actions_NK), DEFAULT_MODULE_ID),
        "obs": list(flat_observation(transitions["observations"])),
        "actions": list(actions),
        "rewards": transitions["rewards"],
        "new_obs": list(flat_observation(transitions["next_observations"])),
        "terminateds": transitions["terminateds"],
        "truncateds": transitions["truncateds"],
    }
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return path
