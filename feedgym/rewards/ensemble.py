"""Several reward models as one: their weights are tensors with a leading axis M and run in one pass.

Members agree on what they have learned; their disagreement is chance, and a policy aligned to one model exploits it
(Coste et al., arXiv:2310.02743). An ensemble scores by the members' mean; :class:`WorstCase` and :class:`Cautious` of
:mod:`feedgym.rewards.compose` penalise disagreement.

Members differ by their initial weights and by the users that they learned from. All share the catalogue.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.envs.truth import RewardWeights
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.model import CONFIG_FILE, WEIGHTS_FILE, Predictions, RewardModel, unreadable_as


class RewardEnsemble(nn.Module):
    """A :class:`feedgym.protocols.SessionReward`: the mean prediction of M reward models.

    Args:
        net: one of the models, whose parameters are replaced by those of all, with a leading axis M.
    """

    def __init__(self, net: RewardModel) -> None:
        super().__init__()
        self.net = net

    @classmethod
    def of(cls, members: Sequence[RewardModel]) -> Self:
        """Make an ensemble of models of the same sizes and the same catalogue; their weights are copied."""
        net = copy.deepcopy(members[0])
        _replace_parameters(net, stack_module_state(list(members))[0])
        return cls(net)

    @property
    def config(self) -> RewardModelConfig:
        """Options of sizes and training."""
        return self.net.config

    @property
    def weights(self) -> RewardWeights:
        """Weights of the parts of a score."""
        return self.net.weights

    def __len__(self) -> int:
        """M."""
        return len(next(self.net.parameters()))

    def members(self) -> list[RewardModel]:
        """The separate models, with copies of their weights."""
        apart = [copy.deepcopy(self.net) for _ in range(len(self))]
        for m, model in enumerate(apart):
            _replace_parameters(model, {name: value[m] for name, value in self.net.named_parameters()})
        return apart

    def each(self, answer: Callable[..., Any], *mapped: Tensor) -> Any:
        """Call a function for every member; returns its tensors with a leading axis M.

        Args:
            answer: called with a member and that member's part of ``mapped``.
            *mapped: tensors whose first axis is M.
        """

        def of_one(own: dict[str, Tensor], *args: Tensor) -> Any:
            return functional_call(_Asked(self.net), own, (answer, *args))

        parameters: dict[str, Tensor] = {f"net.{name}": value for name, value in self.net.named_parameters()}
        # The fused attention of CPUs gives no gradient for a bias that has the axis M.
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(of_one, randomness="different")(parameters, *mapped)

    def opinions(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """The members' scores [M, U, S] of S sessions for each of U users, in the units of the true reward."""
        ids_USK = sessions.item_ids_USK
        with torch.no_grad():
            score_MUS = self.each(lambda net: net.score(net.predict(histories, ids_USK)))
        return score_MUS.to(ids_USK.device)

    def forward(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """The members' mean score [U, S]."""
        return self.opinions(histories, sessions).mean(0)

    def predict(self, histories: EventBatch, item_ids_USK: Tensor) -> Predictions:
        """The members' mean probabilities, as the logits of one model."""
        said: Predictions = self.each(lambda net: net.predict(histories, item_ids_USK))
        return Predictions(
            said.logit_USKO.sigmoid().mean(0).logit(eps=1e-6),
            said.prob_reach_USK.mean(0),
            said.logit_return_US.sigmoid().mean(0).logit(eps=1e-6),
        )

    def with_weights(self, weights: RewardWeights) -> Self:
        """The same members with other weights of the reward."""
        return type(self)(self.net.with_weights(weights)).train(self.training)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write weights, catalogue and configuration into a folder."""
        self.net.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Load the ensemble saved in ``folder``, in evaluation mode.

        Raises:
            ValueError: a file is missing or damaged.
        """
        with unreadable_as(Path(folder) / CONFIG_FILE):
            net = RewardModel.described(folder)
        with unreadable_as(Path(folder) / WEIGHTS_FILE):
            saved = load_file(Path(folder) / WEIGHTS_FILE)
            _replace_parameters(net, {name: torch.empty_like(saved[name]) for name, _ in net.named_parameters()})
            net.load_state_dict(saved)
        return cls(net).eval()


class _Asked(nn.Module):
    """A model on which :func:`torch.func.functional_call` can call any function."""

    def __init__(self, net: RewardModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, answer: Callable[..., Any], *args: Tensor) -> Any:
        return answer(self.net, *args)


def _replace_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, nn.Parameter(value.detach().clone()))


def load_reward_model(folder: Path | str) -> RewardModel | RewardEnsemble:
    """Load the reward model, or the ensemble, that is saved in ``folder``.

    Raises:
        ValueError: a file is missing or damaged.
    """
    with unreadable_as(Path(folder) / CONFIG_FILE):
        is_ensemble = RewardModel.described(folder).config.is_ensemble
    return (RewardEnsemble if is_ensemble else RewardModel).load(folder)
