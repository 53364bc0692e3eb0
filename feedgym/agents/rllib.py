"""RLlib's new API stack on the feed: modules, distribution, learner, environments and configurations.

Ray must be running (:func:`feedgym.experiments.rollouts.start_ray`). The networks are those of
:mod:`feedgym.agents.slates`, and the weights of one are all that a trained agent needs afterwards.

RLlib takes every vector environment to be in ``NEXT_STEP`` mode and does not look; ours are made so. Here observations
are one vector each (:func:`feedgym.agents.slates.flat_observation`), which replay buffers and logs handle best and CQL
insists on; the modules of PPO and Q-learning read the environment's own dictionaries as well.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from ray.data import ActorPoolStrategy, DataContext
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.cql.torch.default_cql_torch_rl_module import DefaultCQLTorchRLModule
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS, DQNLearner
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.metrics import TD_ERROR_KEY
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.tune.registry import register_env
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.rl_settings import OFFLINE, TrainConfig
from feedgym.agents.slates import (
    CriticHead,
    ItemQ,
    ProtoCritic,
    ProtoPolicy,
    SlateNetConfig,
    SlateNetwork,
    SlatePolicy,
    SlateQ,
    SlateWorld,
    choice_loss,
    flat_observation,
    outcomes,
    slate_value,
)
from feedgym.data.parquet import replacing
from feedgym.envs.feed import FeedEnv, FeedVectorEnv, event_batch
from feedgym.envs.truth import RewardWeights
from feedgym.envs.wrappers import VectorItemByItem
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
"""Which network an algorithm trains."""

ENV, CHOICE_LOSS = "feedgym-training", "choice_loss"

FRESH_SHARE = 0.1
"""Share of the catalogue up to which passing over a whole history costs nothing: others like it are left."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What an agent is trained for: a registered feed, and networks that fit it.

    Attributes:
        env_id: the environment's id.
        options: its keywords, where they differ from those it is registered with.
        simulator: its users.
        world: items and lengths.
        sizes: of the networks.
        reward: what a step is worth, by the environment's own weights.
    """

    env_id: str
    options: dict[str, Any]
    simulator: UserSimulator
    world: SlateWorld
    sizes: SlateNetConfig
    reward: RewardWeights

    @classmethod
    def of(cls, env_id: str, options: dict[str, Any], sizes: SlateNetConfig, axes: int = 20) -> Task:
        """The task of an environment; ``axes`` as for :meth:`SlateWorld.of`.

        Raises:
            ValueError: no feed has this id, or the keywords do not fit it.
        """
        feed = _feed_class(env_id, "vector_entry_point")(1, **_spec(env_id).kwargs | options)
        users = feed.simulator
        world = SlateWorld.of(users.catalog, users.profile_sizes, feed.session_length, feed.history_length, axes)
        return cls(env_id=env_id, options=options, simulator=users, world=world, sizes=sizes, reward=feed.reward)

    def feed(self, num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> FeedVectorEnv:
        """Many users at once; RLlib takes every vector environment to be in ``NEXT_STEP`` mode."""
        kwargs = _spec(self.env_id).kwargs | self.options | {"autoreset_mode": mode}
        return _feed_class(self.env_id, "vector_entry_point")(num_envs, **kwargs)

    def network(self, config: TrainConfig) -> SlateNetwork:
        """An untrained network of the kind that the algorithm trains."""
        kind = NETWORK_OF[config.algorithm]
        return kind(self.world, self.sizes, **self.more(config))

    def more(self, config: TrainConfig) -> dict[str, Any]:
        """What the network is told besides items and sizes."""
        if NETWORK_OF[config.algorithm] is not ProtoPolicy:
            return {}
        return {"points": self.world.session_length if config.proto_each else 1, "fresh": self.fresh(config)}

    def fresh(self, config: TrainConfig) -> bool:
        """Whether proto-items pass over what the history shows."""
        if config.proto_fresh is not None:
            return config.proto_fresh
        return self.world.history_length <= self.world.num_items * FRESH_SHARE


def _spec(env_id: str) -> EnvSpec:
    try:
        return gym.spec(env_id)
    except gym.error.Error as error:
        raise ValueError(f"{error} Give the id of a feed, such as feedgym/ShortVideo-v0.") from error


def _feed_class(env_id: str, entry_point: str) -> Any:
    path = getattr(_spec(env_id), entry_point)
    found = load(path) if isinstance(path, str) else path
    if not (isinstance(found, type) and issubclass(found, (FeedEnv, FeedVectorEnv))):
        raise ValueError(f"{env_id} is no feed of feedgym's; register a simulator with feedgym.register.")
    return found


# ---------------------------------------------------------------- modules


class SlateDistribution(Distribution):
    """Plackett-Luce for RLlib. ``scores`` turns what the module gave out into logits, with the module's own weights."""

    scores: Callable[[Tensor], Tensor]
    length: int

    def __init__(self, logits_UI: Tensor, deterministic: bool = False) -> None:
        self.slates, self.deterministic = PlackettLuce(logits_UI, self.length), deterministic

    @classmethod
    def of(cls, scores: Callable[[Tensor], Tensor], length: int) -> type[SlateDistribution]:
        """The class for a module whose outputs ``scores`` reads."""
        return type(cls.__name__, (cls,), {"scores": staticmethod(scores), "length": length})

    @classmethod
    def from_logits(cls, logits: Tensor, **kwargs: Any) -> SlateDistribution:
        """The distribution that a module's outputs stand for."""
        return cls(cls.scores(logits))

    def sample(self, *, sample_shape: Any = None, return_logp: bool = False, **kwargs: Any) -> Any:
        """Slates [..., U, K], with their log-probabilities if asked for."""
        if self.deterministic:
            drawn_SUK = self.slates.mode().expand(int(np.prod(sample_shape or 1)), -1, -1)
        else:
            drawn_SUK = self.slates.sample(int(np.prod(sample_shape or 1))).transpose(0, 1)
        logp_SU = torch.stack([self.logp(drawn_UK) for drawn_UK in drawn_SUK]) if return_logp else None
        if sample_shape is None:
            return (drawn_SUK[0], logp_SU[0]) if logp_SU is not None else drawn_SUK[0]
        drawn = drawn_SUK.reshape(*sample_shape, *drawn_SUK.shape[1:])
        return (drawn, logp_SU.reshape(*sample_shape, -1)) if logp_SU is not None else drawn

    def rsample(self, **kwargs: Any) -> Any:
        """Slates are discrete: there is none."""
        raise NotImplementedError("Slates are discrete and cannot be reparameterised.")

    def logp(self, value: Tensor, **kwargs: Any) -> Tensor:
        """Log-probabilities [U] of slates [U, K]."""
        return self.slates.log_prob(value.long())

    def entropy(self, **kwargs: Any) -> Tensor:
        """Unbiased estimates of the entropy [U]."""
        return self.slates.entropy()

    def kl(self, other: SlateDistribution, **kwargs: Any) -> Tensor:
        """Unbiased estimates of the divergence from ``other`` [U]."""
        return self.slates.kl(other.slates)

    def to_deterministic(self) -> SlateDistribution:
        """The likeliest slate, always."""
        return type(self)(self.slates.logits_UI, deterministic=True)

    @staticmethod
    def required_input_dim(space: gym.Space, **kwargs: Any) -> int:
        """Unknown: it depends on the network."""
        raise NotImplementedError("The network decides how wide its outputs are.")


class SlatePolicyModule(TorchRLModule, ValueFunctionAPI):
    """:class:`SlatePolicy` for PPO, BC and MARWIL."""

    def setup(self) -> None:
        """Build the network that the configuration names."""
        self.net = _network(self.model_config)
        self.action_dist_cls = SlateDistribution.of(self.net.scores, self.net.length)

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        inputs_UX, state_US = self.net(self.net.read(batch[Columns.OBS]))
        return {Columns.ACTION_DIST_INPUTS: inputs_UX, Columns.EMBEDDINGS: state_US}

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self._forward(batch)[Columns.ACTION_DIST_INPUTS]}

    _forward_inference = _forward_exploration

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values [U] of the states."""
        if embeddings is None:
            embeddings = self.net.encoder(self.net.read(batch[Columns.OBS]))
        return self.net.value(embeddings)[:, 0] * self.model_config["steps_ahead"]


class _NoCatalog:
    """The default modules would build networks of their own from a catalogue of RLlib's."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def get_action_dist_cls(self, **kwargs: Any) -> None:
        """Modules set their own."""


class QModule(TorchRLModule, QNetAPI, TargetNetworkAPI):
    """What the modules of both kinds of Q-learning share: a network, its target, and exploration that wears off."""

    def setup(self) -> None:
        """Build the network that the configuration names."""
        self.net = _network(self.model_config)
        self.epsilon = Scheduler(fixed_value_or_schedule=self.model_config["exploration"], framework=self.framework)

    def make_target_networks(self) -> None:
        """A copy of the network."""
        self.target = make_target_network(self.net)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The network and its copy."""
        return [(self.net, self.target)]

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What items are ranked by, [U, I]."""
        return {QF_PREDS: self.values(self.net, batch[Columns.OBS])}

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The same of the target network."""
        return {QF_PREDS: self.values(self.target, batch[Columns.OBS])}

    def values(self, net: Any, observation: Any) -> Tensor:
        """What items are ranked by, [U, I]; minus infinity where an item cannot be chosen."""
        raise NotImplementedError

    def now(self, t: int) -> float:
        """The chance of a random item after ``t`` steps."""
        self.epsilon.update(t)
        return self.epsilon.get_current_value()


class ItemQModule(QModule):
    """:class:`ItemQ` for RLlib's DQN, on observations of :class:`TrainingItems`."""

    def values(self, net: ItemQ, observation: dict[str, Tensor]) -> Tensor:
        """Q [U, I]."""
        histories = net.read(observation)
        return net.values(net(net.encoder(histories), histories, self.net.read_slate(observation)))

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.values(self.net, batch[Columns.OBS]).argmax(dim=1)}

    def _forward_exploration(self, batch: dict[str, Any], t: int, **kwargs: Any) -> dict[str, Any]:
        q_UI = self.values(self.net, batch[Columns.OBS])
        random_U = torch.multinomial(q_UI.isfinite().float(), 1)[:, 0]
        explores_U = torch.rand(len(q_UI)) < self.now(t)
        return {Columns.ACTIONS: torch.where(explores_U, random_U, q_UI.argmax(dim=1))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            next_UI = self.values(self.net, batch[Columns.NEXT_OBS])
            target_next_UI = self.values(self.target, batch[Columns.NEXT_OBS])
        q_UI = self.values(self.net, batch[Columns.OBS])
        return {QF_PREDS: q_UI, QF_NEXT_PREDS: next_UI, QF_TARGET_NEXT_PREDS: target_next_UI}


class SlateQModule(QModule):
    """:class:`SlateQ`, trained by :class:`SlateQLearner`."""

    def values(self, net: SlateQ, observation: Any) -> Tensor:
        """Choice times value [U, I]."""
        return net.logits(net.read(observation))

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTIONS: self.values(self.net, batch[Columns.OBS]).topk(self.net.length, dim=1).indices}

    def _forward_exploration(self, batch: dict[str, Any], t: int, **kwargs: Any) -> dict[str, Any]:
        best_UK = self._forward_inference(batch)[Columns.ACTIONS]
        return {Columns.ACTIONS: explored(best_UK, self.net.num_items, self.now(t))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        slates_UK = batch[Columns.ACTIONS].long()
        advantage_UI, choice_UI, nothing_U = self.net(self.net.read(batch[Columns.OBS]))
        chosen = advantage_UI.gather(1, slates_UK), choice_UI.gather(1, slates_UK), nothing_U
        after = self.net.read(batch[Columns.NEXT_OBS])
        examined_UK, clicked_UK = outcomes(slates_UK, after)
        with torch.no_grad():
            best_UK = self.net.logits(after).topk(self.net.length, dim=1).indices
            advantage_UI, choice_UI, nothing_U = self.target(after)
            next_U = slate_value(advantage_UI.gather(1, best_UK), choice_UI.gather(1, best_UK), nothing_U)
        return {
            QF_PREDS: slate_value(chosen[0], chosen[1].detach(), chosen[2]),
            QF_TARGET_NEXT_PREDS: next_U,
            CHOICE_LOSS: choice_loss(chosen[1], clicked_UK, examined_UK),
        }


def explored(slates_UK: Tensor, num_items: int, chance: float) -> Tensor:
    """Slates whose items are each replaced, with a chance, by random ones which the slate does not hold."""
    score_UI = torch.rand(len(slates_UK), num_items)
    kept_UK = torch.rand(slates_UK.shape) >= chance
    # Kept items come first, in their order; random ones fill up.
    place_UK = torch.arange(slates_UK.shape[1], 0, -1.0).expand_as(slates_UK)
    score_UI.scatter_(1, slates_UK, torch.where(kept_UK, 1 + place_UK, torch.rand(slates_UK.shape)))
    return score_UI.topk(slates_UK.shape[1], dim=1).indices


class SlateQLearner(DQNLearner, TorchLearner):
    """Q-learning of slate values, and maximum likelihood of the choice model beside it."""

    def compute_loss_for_module(
        self, *, module_id: str, config: DQNConfig, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """The regression on r + gamma * max_A Q(s', A), plus the choice model's cross-entropy."""
        going_on_U = 1 - batch[Columns.TERMINATEDS].float()
        target_U = batch[Columns.REWARDS] + config.gamma ** batch["n_step"] * going_on_U * fwd_out[QF_TARGET_NEXT_PREDS]
        error_U = fwd_out[QF_PREDS] - target_U.detach()
        choice = fwd_out[CHOICE_LOSS].mean()
        loss = (batch["weights"] * error_U**2).mean()
        self.metrics.log_value((module_id, TD_ERROR_KEY), error_U.abs(), reduce="item_series")
        self.metrics.log_dict({"qf_loss": loss, CHOICE_LOSS: choice}, key=module_id, window=1)
        return loss + choice


class _ActorState(nn.Module):
    """The actor's state as RLlib's SAC asks for it."""

    def __init__(self, net: ProtoPolicy) -> None:
        super().__init__()
        self.encoder, self.wide = net.encoder, net.wide
        self._net = [net]  # in a list: RLlib's optimiser takes the weights from here and those of the head beside them

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The encoding under RLlib's name."""
        return {ENCODER_OUT: self._net[0].state(self._net[0].read(batch[Columns.OBS]))}


class _CriticState(nn.Module):
    """A critic's state and action as RLlib's SAC asks for them; it judges what is served and not what was meant."""

    def __init__(self, critic: ProtoCritic, served: ProtoPolicy) -> None:
        super().__init__()
        self.critic = critic
        self._served = [served]  # in a list, so that the critic has no weights of the actor's

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The encoding under RLlib's name."""
        histories = self._served[0].read(batch[Columns.OBS])
        action_UA = self._served[0].served(batch[Columns.ACTIONS], histories)
        return {ENCODER_OUT: self.critic(histories, action_UA)}


class _ProtoSetup:
    """Networks of :class:`ProtoPolicy` and :class:`ProtoCritic` under the names of RLlib's SAC."""

    def setup(self: Any) -> None:
        """Build the networks that the configuration names."""
        config = self.model_config
        self.twin_q = config["twin_q"]
        self.net = _network(config)
        self.action_dist_cls = TorchSquashedGaussian.get_partial_dist_cls(low=-1.0, high=1.0)
        self.pi_encoder, self.pi = _ActorState(self.net), self.net.head
        if self.inference_only:
            return
        for name in ("qf", "qf_twin") if self.twin_q else ("qf",):
            critic = ProtoCritic(config["world"], config["sizes"], self.net.action_width)
            setattr(self, f"{name}_encoder", _CriticState(critic, self.net))
            setattr(self, name, CriticHead(critic.width, 2 * config["sizes"].hidden))


class SACModule(_ProtoSetup, DefaultSACTorchRLModule):
    """:class:`ProtoPolicy` for SAC."""


class CQLModule(_ProtoSetup, DefaultCQLTorchRLModule):
    """:class:`ProtoPolicy` for CQL."""


def _network(model_config: dict[str, Any]) -> Any:
    return model_config["kind"](model_config["world"], model_config["sizes"], **model_config["more"])


# ---------------------------------------------------------------- environments


class TrainingFeed(VectorWrapper):
    """A feed as RLlib is quickest with: observations flat, and no infos, which it would cut up user by user.

    Args:
        env: a feed in ``NEXT_STEP`` mode.
        proto: the network whose proto-items are the actions, or None for sessions of item ids.
    """

    def __init__(self, env: VectorEnv, proto: ProtoPolicy | None = None) -> None:
        super().__init__(env)
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        self.proto = proto
        self._known: dict[str, Any] = {}
        self.single_observation_space = flat_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        if proto is not None:
            self.single_action_space = spaces.Box(-1, 1, (proto.action_width,), np.float32)
            self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """New users."""
        self._known, _ = self.env.reset(**kwargs)
        return flat_observation(self._known), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One visit a user."""
        if self.proto is not None:
            proto_UA = torch.as_tensor(np.asarray(actions))
            actions = self.proto.items(proto_UA, self.proto.length, event_batch(self._known)).numpy()
        self._known, reward_U, terminated_U, truncated_U, _ = self.env.step(actions)
        return flat_observation(self._known), reward_U, terminated_U, truncated_U, {}


class TrainingItems(VectorWrapper):
    """One item a step for many users, flat and without infos; the session so far stands at the end of the observation.

    It is in ``NEXT_STEP`` mode, where a slot loses the step after an episode's end. So that all stay at the same place
    of their sessions, a new user's first session begins with an item drawn at random.

    Args:
        env: a feed in ``DISABLED`` mode.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(VectorItemByItem(env))
        assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        self.metadata = env.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self._over_U = np.zeros(env.num_envs, bool)
        self._luck = np.random.default_rng(0)
        self.single_observation_space = flat_space(self.env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """New users."""
        self._over_U[:], self._luck = False, np.random.default_rng(seed)
        return flat_observation(self.env.reset(seed=seed, options=options)[0]), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One item a user, or a new user."""
        new_U, items_U = self._over_U, np.array(actions)
        if new_U.any():
            self.env.reset(options={"reset_mask": new_U})
            items_U[new_U] = self._luck.integers(self.env.single_action_space.n, size=int(new_U.sum()))  # type: ignore[attr-defined]
        observation, reward_U, terminated_U, truncated_U, _ = self.env.step(items_U)
        if (gone_U := new_U & (terminated_U | truncated_U)).any():  # sessions of one item: it was a whole visit
            observation, _ = self.env.reset(options={"reset_mask": gone_U})
        terminated_U, truncated_U = terminated_U & ~new_U, truncated_U & ~new_U
        self._over_U = terminated_U | truncated_U
        return flat_observation(observation), np.where(new_U, 0, reward_U), terminated_U, truncated_U, {}


def flat_space(space: gym.Space) -> spaces.Box:
    """The space of :func:`flat_observation`; unbounded, for item ids and seconds share it."""
    nothing = {name: np.zeros((1, *(part.shape or ())), part.dtype) for name, part in space.spaces.items()}  # type: ignore[attr-defined]
    return spaces.Box(-np.inf, np.inf, flat_observation(nothing).shape[1:], np.float32)


def make_env(task: Task, config: TrainConfig, given: dict[str, Any]) -> VectorEnv:
    """What RLlib trains in: many users at once, whose sessions grow item by item for DQN.

    Args:
        task: users and lengths.
        config: the algorithm.
        given: RLlib's environment config; ``num_envs`` is in it where a vector environment is wanted.
    """
    num_envs = given.get("num_envs", 1)
    if config.algorithm == "dqn":
        return TrainingItems(task.feed(num_envs, AutoresetMode.DISABLED))
    network = task.network(config)
    return TrainingFeed(task.feed(num_envs), network if isinstance(network, ProtoPolicy) else None)


# ---------------------------------------------------------------- logs


def write_rows(transitions: dict[str, Any], task: Task, config: TrainConfig, path: Path) -> Path:
    """Transitions of a log as the parquet rows that RLlib's offline algorithms read.

    Args:
        transitions: of :func:`feedgym.envs.recorder.transitions`.
        task: lengths; for CQL also where the items lie: its actions are the proto-items of what was served.
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


# ---------------------------------------------------------------- configurations


def algorithm_config(
    task: Task, config: TrainConfig, seed: int, rows: Path | None = None, done: int = 0
) -> AlgorithmConfig:
    """RLlib's configuration of a training.

    Args:
        task: users and networks.
        config: the algorithm and its settings.
        seed: of weights, samples and users.
        rows: the log, for offline algorithms (:func:`write_rows`).
        done: iterations done before, after which exploration goes on.
    """
    for chatty in ("ray.rllib", "ray.data"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    made = _CONFIG_OF[config.algorithm](config)
    made.framework("torch").debugging(seed=seed, log_level="ERROR").learners(num_learners=0)
    register_env(ENV, partial(make_env, task, config))
    made.environment(ENV).env_runners(
        num_env_runners=0,
        num_envs_per_env_runner=1 if config.algorithm in OFFLINE else config.num_envs,
        gym_env_vectorize_mode="vector_entry_point",
    )
    if config.algorithm in OFFLINE:
        _read_log(made, task, config, rows)
    kind, module = NETWORK_OF[config.algorithm], _MODULE_OF[config.algorithm]
    model_config = {
        "kind": kind,
        "world": task.world,
        "sizes": task.sizes,
        "more": task.more(config),
        "steps_ahead": horizon_of(config.gamma),
        "exploration": _exploration(config, done),
    }
    made.rl_module(
        rl_module_spec=RLModuleSpec(module_class=module, model_config=model_config, catalog_class=_NoCatalog)
    )
    return made


def horizon_of(gamma: float) -> float:
    """1 / (1 - gamma): by it values exceed rewards. Networks learn values divided by it."""
    return 1 / max(1 - gamma, 1e-2)


def _exploration(config: TrainConfig, done: int) -> list[list[float]]:
    """Chances of random items by steps from now on: from 1 to the last one over the first third of the training."""
    fading = max(1, config.iterations * config.steps // 3)
    left = max(0.0, 1 - done * config.steps / fading)
    return [[0, config.epsilon + (1 - config.epsilon) * left], [max(1, int(fading * left)), config.epsilon]]


def _read_log(made: AlgorithmConfig, task: Task, config: TrainConfig, rows: Path | None) -> None:
    """Small batches of work, for machines of few cores; CQL asks for an environment, which is never stepped."""
    assert rows is not None
    env: Any = make_env(task, config, {"num_envs": 1})
    made.environment(observation_space=env.single_observation_space, action_space=env.single_action_space)
    DataContext.get_current().enable_progress_bars = False
    made.offline_data(
        input_=[str(rows)],
        input_read_method="read_parquet",
        map_batches_kwargs={"compute": ActorPoolStrategy(size=1), "num_cpus": 1},
        iter_batches_kwargs={"prefetch_batches": 1},
        dataset_num_iters_per_learner=config.steps,
    )


def _ppo(config: TrainConfig) -> AlgorithmConfig:
    return PPOConfig().training(
        train_batch_size_per_learner=config.steps,
        minibatch_size=min(config.batch_size, config.steps),
        num_epochs=config.epochs,
        lr=config.lr,
        gamma=config.gamma,
        lambda_=0.9,
        entropy_coeff=config.entropy,
        clip_param=config.clip,
        vf_clip_param=float("inf"),
        vf_loss_coeff=0.5 / horizon_of(config.gamma) ** 2,
        use_kl_loss=False,
        grad_clip=1.0,
    )


def _q_learning(config: TrainConfig) -> AlgorithmConfig:
    made = DQNConfig().training(
        lr=config.lr, num_atoms=1, dueling=False, double_q=True, n_step=1, td_error_loss_fn="mse", **_replay(config)
    )
    return made.training(learner_class=SlateQLearner) if config.algorithm == "slateq" else made


def _sac(config: TrainConfig) -> AlgorithmConfig:
    rates: dict[str, Any] = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), config.lr)
    return SACConfig().training(lr=None, twin_q=True, n_step=1, initial_alpha=config.alpha, **rates, **_replay(config))


def _replay(config: TrainConfig) -> dict[str, Any]:
    return {
        "gamma": config.gamma,
        "tau": config.tau,
        "target_network_update_freq": 1,
        "train_batch_size_per_learner": config.batch_size,
        "training_intensity": config.updates * config.batch_size,
        "num_steps_sampled_before_learning_starts": min(2 * config.batch_size, config.steps),
        "replay_buffer_config": {"type": "EpisodeReplayBuffer", "capacity": config.buffer},
    }


def _marwil(config: TrainConfig) -> AlgorithmConfig:
    shared: dict[str, Any] = {"lr": config.lr, "gamma": config.gamma, "train_batch_size_per_learner": config.batch_size}
    if config.algorithm == "bc":
        return BCConfig().training(**shared)
    return MARWILConfig().training(beta=config.beta, vf_coeff=1 / horizon_of(config.gamma) ** 2, **shared)


def _cql(config: TrainConfig) -> AlgorithmConfig:
    rates: dict[str, Any] = dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), config.lr)
    return CQLConfig().training(
        lr=None,
        gamma=config.gamma,
        tau=config.tau,
        twin_q=True,
        n_step=1,
        bc_iters=0,
        train_batch_size_per_learner=config.batch_size,
        **rates,
    )


_CONFIG_OF: dict[str, Callable[[TrainConfig], AlgorithmConfig]] = {
    "ppo": _ppo,
    "slateq": _q_learning,
    "dqn": _q_learning,
    "sac": _sac,
    "bc": _marwil,
    "marwil": _marwil,
    "cql": _cql,
}
_MODULE_OF: dict[str, type[TorchRLModule]] = {
    "ppo": SlatePolicyModule,
    "slateq": SlateQModule,
    "dqn": ItemQModule,
    "sac": SACModule,
    "bc": SlatePolicyModule,
    "marwil": SlatePolicyModule,
    "cql": CQLModule,
}


# ---------------------------------------------------------------- training


def train(
    task: Task,
    config: TrainConfig,
    seed: int,
    work: Path,
    rows: Path | None = None,
    step: Callable[..., None] | None = None,
    log: Callable[[dict[str, float], int], None] | None = None,
) -> SlateNetwork:
    """Train an agent, or go on from the last checkpoint that a killed training left.

    What goes on are weights, optimisers and target networks; users begin anew, and a replay buffer fills again.

    Args:
        task: users and networks.
        config: the algorithm and its settings.
        seed: of weights, samples and users.
        work: folder of the checkpoints.
        rows: the log, for offline algorithms.
        step: progress callback.
        log: takes the metrics of an iteration, and its number.

    Returns:
        The network, for :class:`feedgym.agents.rl_recommender.RLlibRecommender`.
    """
    done, state = read_checkpoint(work)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding environment")  # one id of RLlib's for all trainings
        algorithm = algorithm_config(task, config, seed + done, rows, done).build_algo()
    if algorithm.local_replay_buffer is not None:  # RLlib draws from it with a generator that has no seed
        algorithm.local_replay_buffer.rng = np.random.default_rng(seed + done)
    try:
        if state is not None:
            algorithm.learner_group.set_state(state)
            if algorithm.env_runner_group is not None:
                algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group)
        every = max(1, config.iterations // config.checkpoints)
        for iteration in range(done + 1, config.iterations + 1):
            metrics = _metrics(algorithm.train())
            if log is not None:
                log(metrics, iteration)
            if step is not None:
                step(iteration, config.iterations, {n: v for n, v in metrics.items() if n == "reward a step"})
            if iteration % every == 0 and iteration < config.iterations:
                write_checkpoint(work, iteration, algorithm.learner_group.get_state())
        return learned_network(algorithm, task, config)
    finally:
        algorithm.stop()


def _metrics(result: dict[str, Any]) -> dict[str, float]:
    """What people look at: the training's own reward, and the learner's losses."""
    met = result.get("env_runners", {})
    metrics = {}
    if met.get("episode_len_mean"):
        metrics["reward a step"] = met["episode_return_mean"] / met["episode_len_mean"]
        metrics["episode return"] = met["episode_return_mean"]
    learner = result.get("learners", {}).get(DEFAULT_MODULE_ID, {})
    wanted = ("entropy", "vf_explained_var", "policy_loss", "qf_loss", CHOICE_LOSS, "qf_mean")
    return metrics | {name.replace("_", " "): float(learner[name]) for name in wanted if name in learner}


def learned_network(algorithm: Algorithm, task: Task, config: TrainConfig) -> SlateNetwork:
    """The network as the algorithm's learner has it now."""
    weights = algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
    network = task.network(config)
    mine = {name.removeprefix("net."): value for name, value in weights.items() if name.startswith("net.")}
    network.load_state_dict({name: torch.as_tensor(value) for name, value in mine.items()})
    return network.eval()


TENSORS = "learner.safetensors"


def write_checkpoint(work: Path, iteration: int, state: Any) -> None:
    """Keep a learner's state: its arrays as safetensors, the rest as JSON, nothing pickled."""
    tensors: dict[str, Tensor] = {}
    rest = _split(state, "", tensors)
    with replacing(work / TENSORS) as temporary:
        save_file(tensors, temporary, metadata={"iteration": str(iteration), "rest": json.dumps(rest)})


def read_checkpoint(work: Path) -> tuple[int, Any]:
    """The iterations done and the learner's state then; 0 and None where there is no checkpoint."""
    if not (work / TENSORS).exists():
        return 0, None
    with safe_open(work / TENSORS, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return int(metadata["iteration"]), _joined(json.loads(metadata["rest"]), tensors)


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """A nested state as JSON, whose arrays are names in ``tensors``."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        tensors[path] = torch.as_tensor(value).detach().clone().contiguous()
        return {"array": path, "numpy": not isinstance(value, Tensor)}
    if isinstance(value, dict):
        return {"dict": [[key, _split(part, f"{path}/{key}", tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(part, f"{path}/{n}", tensors) for n, part in enumerate(value)]}
    return {"value": value}


def _joined(rest: Any, tensors: dict[str, Tensor]) -> Any:
    if "array" in rest:
        return tensors[rest["array"]].numpy() if rest["numpy"] else tensors[rest["array"]]
    if "dict" in rest:
        return {key: _joined(part, tensors) for key, part in rest["dict"]}
    if "list" in rest:
        return [_joined(part, tensors) for part in rest["list"]]
    return rest["value"]
