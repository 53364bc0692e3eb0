"""The task that an agent is trained for: users, lengths, and the network of the algorithm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from feedgym.agents.rl_settings import TrainConfig
from feedgym.agents.slates.layers import SlateNetConfig
from feedgym.agents.slates.policy import SlateNetwork, SlatePolicy
from feedgym.agents.slates.proto import ProtoPolicy
from feedgym.agents.slates.values import ItemQ, SlateQ
from feedgym.agents.slates.world import SlateWorld
from feedgym.envs.feed import FeedEnv, FeedVectorEnv
from feedgym.envs.history import has_arrivals
from feedgym.envs.truth import RewardWeights
from feedgym.protocols import UserSimulator, load

NETWORK_OF: dict[str, type[SlateNetwork]] = {
    "ppo": SlatePolicy,
    "bc": SlatePolicy,
    "marwil": SlatePolicy,
    "slateq": SlateQ,
    "dqn": ItemQ,
    "sac": ProtoPolicy,
    "cql": ProtoPolicy,
}
"""The network that each algorithm trains."""

FRESH_SHARE = 0.1
"""Largest share of the catalogue in a history for which skipping it costs nothing: similar items are left."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A training task: a registered feed, and networks that fit it.

    Attributes:
        env_id: the environment's id.
        options: its keywords that differ from the registered ones.
        simulator: its users.
        world: items and lengths.
        sizes: of the networks.
        reward: the environment's own reward weights.
    """

    env_id: str
    options: dict[str, Any]
    simulator: UserSimulator
    world: SlateWorld
    sizes: SlateNetConfig
    reward: RewardWeights

    @classmethod
    def of(cls, env_id: str, options: dict[str, Any], sizes: SlateNetConfig, axes: int = 20) -> Task:
        """Make the task of an environment; ``axes`` as for :meth:`SlateWorld.of`.

        Raises:
            ValueError: no feed has this id, or the keywords do not fit it.
        """
        feed = _feed_class(env_id, "vector_entry_point")(1, **_spec(env_id).kwargs | options)
        users = feed.simulator
        lengths = feed.session_length, feed.history_length
        world = SlateWorld.of(users.catalog, users.profile_sizes, *lengths, axes, dated=has_arrivals(users))
        return cls(env_id=env_id, options=options, simulator=users, world=world, sizes=sizes, reward=feed.reward)

    def feed(self, num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> FeedVectorEnv:
        """An environment for many users; RLlib assumes that vector environments are in ``NEXT_STEP`` mode."""
        kwargs = _spec(self.env_id).kwargs | self.options | {"autoreset_mode": mode}
        return _feed_class(self.env_id, "vector_entry_point")(num_envs, **kwargs)

    def network(self, config: TrainConfig) -> SlateNetwork:
        """An untrained network of the kind that the algorithm trains."""
        kind = NETWORK_OF[config.algorithm]
        return kind(self.world, self.sizes, **self.more(config))

    def more(self, config: TrainConfig) -> dict[str, Any]:
        """Further arguments of the network besides items and sizes."""
        if NETWORK_OF[config.algorithm] is not ProtoPolicy:
            return {}
        return {"points": self.world.session_length if config.proto_each else 1, "fresh": self.fresh(config)}

    def fresh(self, config: TrainConfig) -> bool:
        """True if proto-items skip items in the history."""
        if config.proto_fresh is not None:
            return config.proto_fresh
        return self.world.history_length <= self.world.num_items * FRESH_SHARE


def _spec(env_id: str) -> EnvSpec:
    try:
        return gym.spec(env_id)
    except gym.error.Error as error:
        raise ValueError(f"{error} Give the id of a feed, such as feedgym/ShortVideo-v1.") from error


def _feed_class(env_id: str, entry_point: str) -> Any:
    path = getattr(_spec(env_id), entry_point)
    env_class = load(path) if isinstance(path, str) else path
    if not (isinstance(env_class, type) and issubclass(env_class, (FeedEnv, FeedVectorEnv))):
        raise ValueError(f"{env_id} is not a feed of feedgym's; register a simulator with feedgym.register.")
    return env_class
