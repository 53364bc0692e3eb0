"""The networks as RLlib's modules, the distribution of slates, and the learner of SlateQ.

Modules of PPO and Q-learning read flat observations and the environment's own dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.algorithms.cql.torch.default_cql_torch_rl_module import DefaultCQLTorchRLModule
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_NEXT_PREDS, QF_PREDS, QF_TARGET_NEXT_PREDS, DQNLearner
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.distribution.torch.torch_distribution import TorchSquashedGaussian
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.utils import make_target_network
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.utils.metrics import TD_ERROR_KEY
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor, nn

from feedgym.agents.plackett_luce import PlackettLuce
from feedgym.agents.slates.proto import CriticHead, ProtoCritic, ProtoPolicy
from feedgym.agents.slates.values import ItemQ, SlateQ, choice_loss, outcomes, slate_value

CHOICE_LOSS = "choice_loss"


class SlateDistribution(Distribution):
    """Plackett-Luce for RLlib. ``scores`` turns the module's output into logits, with the module's own weights."""

    scores: Callable[[Tensor], Tensor]
    length: int

    def __init__(self, logits_UI: Tensor, deterministic: bool = False) -> None:
        self.slates, self.deterministic = PlackettLuce(logits_UI, self.length), deterministic

    @classmethod
    def of(cls, scores: Callable[[Tensor], Tensor], length: int) -> type[SlateDistribution]:
        """The distribution class for a module whose outputs ``scores`` reads."""
        return type(cls.__name__, (cls,), {"scores": staticmethod(scores), "length": length})

    @classmethod
    def from_logits(cls, logits: Tensor, **kwargs: Any) -> SlateDistribution:
        """The distribution for a module's outputs."""
        return cls(cls.scores(logits))

    def sample(self, *, sample_shape: Any = None, return_logp: bool = False, **kwargs: Any) -> Any:
        """Slates [..., U, K], with their log-probabilities on demand."""
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
        """Not available, because slates are discrete."""
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
        """A distribution that always gives the likeliest slate."""
        return type(self)(self.slates.logits_UI, deterministic=True)

    @staticmethod
    def required_input_dim(space: gym.Space, **kwargs: Any) -> int:
        """Not available, because it depends on the network."""
        raise NotImplementedError("The network decides how wide its outputs are.")


class SlatePolicyModule(TorchRLModule, ValueFunctionAPI):
    """:class:`SlatePolicy` for PPO, BC and MARWIL."""

    def setup(self) -> None:
        """Build the network that the configuration names."""
        self.net = _network(self.model_config)
        self.action_dist_cls = SlateDistribution.of(self.net.of_inputs, self.net.length)

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


class NoCatalog:
    """Replaces RLlib's catalogue, from which the default modules would build their own networks."""

    def __init__(self, **kwargs: Any) -> None:
        pass

    def get_action_dist_cls(self, **kwargs: Any) -> None:
        """Nothing, because modules set their own."""


class QModule(TorchRLModule, QNetAPI, TargetNetworkAPI):
    """Common part of both Q-learning modules: a network, its target, and decaying exploration."""

    def setup(self) -> None:
        """Build the network that the configuration names."""
        self.net = _network(self.model_config)
        self.epsilon = Scheduler(fixed_value_or_schedule=self.model_config["exploration"], framework=self.framework)

    def make_target_networks(self) -> None:
        """Copy the network."""
        self.target = make_target_network(self.net)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The network and its copy."""
        return [(self.net, self.target)]

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Ranking scores of items, [U, I]."""
        return {QF_PREDS: self.values(self.net, batch[Columns.OBS])}

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Ranking scores of the target network."""
        return {QF_PREDS: self.values(self.target, batch[Columns.OBS])}

    def values(self, net: Any, observation: Any) -> Tensor:
        """Ranking scores of items, [U, I]; far below all others for items that cannot be chosen."""
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
        exists_UI = self.net.exists(self.net.times(self.net.read(batch[Columns.OBS])))
        return {Columns.ACTIONS: explored(best_UK, self.net.num_items, self.now(t), exists_UI)}

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


def explored(slates_UK: Tensor, num_items: int, chance: float, exists_UI: Tensor | None = None) -> Tensor:
    """Replaces each item of slates with some chance by a random existing one that is not in the slate."""
    score_UI = torch.rand(len(slates_UK), num_items)
    if exists_UI is not None:
        score_UI = score_UI.masked_fill(~exists_UI, -1)
    kept_UK = torch.rand(slates_UK.shape) >= chance
    # Kept items come first, in their order; random ones fill the rest.
    place_UK = torch.arange(slates_UK.shape[1], 0, -1.0).expand_as(slates_UK)
    score_UI.scatter_(1, slates_UK, torch.where(kept_UK, 1 + place_UK, torch.rand(slates_UK.shape)))
    return score_UI.topk(slates_UK.shape[1], dim=1).indices


class SlateQLearner(DQNLearner, TorchLearner):
    """Q-learning of slate values together with maximum likelihood of the choice model."""

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
    """The actor's state in the form for RLlib's SAC."""

    def __init__(self, net: ProtoPolicy) -> None:
        super().__init__()
        self.encoder, self.wide = net.encoder, net.wide
        self._net = [net]  # in a list: RLlib's optimiser takes the weights from here and those of the head

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The encoding under RLlib's name."""
        return {ENCODER_OUT: self._net[0].state(self._net[0].read(batch[Columns.OBS]))}


class _CriticState(nn.Module):
    """A critic's state and action in the form for RLlib's SAC; it judges the served items, not the proto-items."""

    def __init__(self, critic: ProtoCritic, served: ProtoPolicy) -> None:
        super().__init__()
        self.critic = critic
        self._served = [served]  # in a list, so that the critic holds none of the actor's weights

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


MODULE_OF: dict[str, type[TorchRLModule]] = {
    "ppo": SlatePolicyModule,
    "slateq": SlateQModule,
    "dqn": ItemQModule,
    "sac": SACModule,
    "bc": SlatePolicyModule,
    "marwil": SlatePolicyModule,
    "cql": CQLModule,
}
"""The module that each algorithm trains."""
