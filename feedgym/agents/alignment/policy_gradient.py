"""What the policy gradients on groups of scored sessions share: GRPO and RLOO, OneRec's ECPO and OneRec-V2's GBPO.

All of them raise the probability of the sessions that are better than others of the same user, and lower that of the
worse ones. They differ in the advantage, in what is compared with the old policy (a code, an item, a session) and in
how this ratio is bounded. The old policy is the round's snapshot: its log-probabilities are taken once, before the
first step, without dropout, and kept in the round's folder, so that a round that was killed goes on with them. So all
ratios are 1 at the first step.

What they share beyond the papers:
    - Next-token prediction on the logged sessions of the same users (``ntp_weight``), as OneRec trains both together.
    - The log-probabilities are the model's own, over the joint vocabulary, while sessions are drawn from the model
      restricted to what can be served. The gradient of log pi_c is that of the model's own less that of the mass on
      what is allowed; a method does not know what was allowed (items seen, items that do not exist yet), so this term
      is left out. Centred advantages cancel it at the first code, where it is the same for all sessions of a group.
    - Where sessions were drawn otherwise than from the model at temperature 1 (sharper, cut by top-k or top-p, or from
      the base), ``behaviour="drawn"`` weighs each by how much likelier the snapshot makes it than what drew it.
    - The reward is of the whole session, so all its codes share its advantage.
    - A round is one batch of sessions and some fifty small steps. The papers' clipping at 0.2 is for few, large steps
      between two batches: here it ends a round after a seventh of the divergence that a round of DPO makes. So the
      defaults are wider, and the weights, of losses in different units, such that a round of each goes about as far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from annotated_types import Interval
from torch import Tensor

from feedgym.agents.alignment.groups import Groups, random_groups
from feedgym.agents.alignment.loop import GroupRows, GroupTrainer, LoopConfig, without_dropout
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import EventBatch, ScoredSessions, TensorRows
from feedgym.data.parquet import read_batch, write_batch
from feedgym.data.whole import drop_checkpoints, is_whole, seal
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import LearningRate, Passes, Positive

Level = Literal["code", "item", "session"]
Behaviour = Literal["model", "drawn"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(LoopConfig):
    """What all policy gradients are told."""

    learning_rate: LearningRate = 1e-3
    """Peak learning rate of AdamW; no weight decay."""
    epochs: Passes = 1
    """Passes over the groups."""
    group_size: Annotated[int, Interval(ge=2, le=10**6)] = 16
    """Sessions per user to learn from, drawn at random from those that were sampled; all of them where there are no
    more."""
    policy_weight: Positive = 4.0
    """Weight of the method's own loss, which is a mean over codes."""
    behaviour: Behaviour = "model"
    """Whose draws the sessions count as: model takes them as the snapshot's own, drawn weighs each by the snapshot's
    probability over that with which it was drawn, the weights of a group having the mean 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.behaviour not in get_args(Behaviour):
            raise ValueError(f"behaviour={self.behaviour!r} is unknown; choose model or drawn.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Logps(TensorRows):
    """Log-probabilities of the groups' codes before the first step.

    Attributes:
        old_UGKL: under the snapshot.
        reference_UGKL: under the reference; None where that is the snapshot.
    """

    old_UGKL: Tensor
    reference_UGKL: Tensor | None = None


class PolicyGradient(ABC):
    """What the methods share: groups, old log-probabilities, and one update.

    A subclass has ``_advantage``, and ``_losses`` of single codes, items or sessions.
    """

    Config: ClassVar[type]
    config: PolicyGradientConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def update(
        self,
        model: GenerativeAgent,
        histories: EventBatch,
        sampled: ScoredSessions,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """See :meth:`feedgym.protocols.AlignmentMethod.update`.

        Returns:
            ``groups`` that were learned from and ``skipped`` ones, whose scores do not differ; ``advantage_spread``,
            that of all their advantages; ``first_loss``, ``first_ratio`` and ``first_kl`` of the first step; and means
            over the last epoch's steps: ``loss``, ``ntp_loss``, ``ratio``, ``clip_share`` of ratios whose gradient is
            cut, ``kl`` (nats a session, to the reference, estimated by k3 on the sessions of the snapshot), ``entropy``
            (nats a code) and ``grad_norm``. With ``behaviour="drawn"`` also ``behaviour_ess``, how many sessions a
            group's weights are worth.
        """
        return self._update(model, histories, sampled, logged_UK, work, progress, None)

    def _update(
        self,
        model: GenerativeAgent,
        histories: EventBatch,
        sampled: ScoredSessions,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None,
        reference: Any,
    ) -> dict[str, float]:
        groups = random_groups(sampled, self.config.group_size, self.config.seed)
        counts: dict[str, float] = {"groups": len(groups), "skipped": len(sampled) - len(groups)}
        if not len(groups):
            return counts
        rows = GroupRows(model, histories.rows(groups.user_idx_U), groups.item_ids_UGK, logged_UK[groups.user_idx_U])
        with without_dropout(model):
            trainer = GroupTrainer(model, rows, self.config, self.loss, Path(work), progress)
            before = logps_before(trainer, Path(work), model, reference)
            rows.columns = self.columns(groups, before)
            told = {"advantage_spread": rows.columns["advantage_UG"].std().item()}
            if "weight_UG" in rows.columns:
                weight_UG = rows.columns["weight_UG"]
                told["behaviour_ess"] = (weight_UG.sum(1) ** 2 / weight_UG.square().sum(1)).mean().item()
            return counts | told | trainer.run()

    def columns(self, groups: Groups, before: Logps) -> dict[str, Tensor]:
        """What the loss is given of each user."""
        columns = {"advantage_UG": self._advantage(groups.score_UG, before), "old_UGKL": before.old_UGKL}
        if before.reference_UGKL is not None:
            columns["reference_UGKL"] = before.reference_UGKL
        if self.config.behaviour == "drawn":
            columns["weight_UG"] = behaviour_weights(groups, before.old_UGKL)
        return columns

    def loss(
        self, logp_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's loss of a batch, weighted, and its figures."""
        old_BGKL = columns["old_UGKL"]
        # Where there is no code, all log-probabilities are 0, and so are their differences.
        loss_BG, figures = self._losses(logp_BGKL, old_BGKL, mask_BGKL, columns)
        if "weight_UG" in columns:
            loss_BG = loss_BG * columns["weight_UG"]
        kl_BGKL = k3(logp_BGKL, columns.get("reference_UGKL", old_BGKL))
        return self.config.policy_weight * loss_BG.mean(), figures | {"kl": kl_BGKL.detach().sum((2, 3)).mean()}

    @abstractmethod
    def _advantage(self, score_UG: Tensor, before: Logps) -> Tensor:
        """Advantages [U, G]."""

    @abstractmethod
    def _losses(
        self, logp_BGKL: Tensor, old_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each session [B, G], and the figures ``ratio`` and ``clip_share``."""


def logps_before(trainer: GroupTrainer, work: Path, model: Any, reference: Any) -> Logps:
    """The log-probabilities under the round's first weights, or those that a killed round left in ``work``."""
    folder = work / "before"
    path = folder / "logps.safetensors"
    if not is_whole(folder):  # without it, what was trained since is of no use
        drop_checkpoints(work)
        of_reference = None if reference is None else trainer.logps(reference)
        write_batch(Logps(old_UGKL=trainer.logps(model), reference_UGKL=of_reference), path)
        seal(folder)
    before = read_batch(Logps, path)
    if len(before.old_UGKL) != len(trainer.rows):
        raise ValueError(
            f"{work} holds a round of {len(before.old_UGKL)} groups, not {len(trainer.rows)}; give each round a folder "
            "of its own."
        )
    return before


def behaviour_weights(groups: Groups, old_UGKL: Tensor) -> Tensor:
    """How much likelier each session is under the snapshot than where it was drawn, [U, G]; a group's mean is 1.

    Both are restricted to what can be served: the snapshot's own log-probability less that of what was allowed.
    """
    if groups.logp_drawn_UG.isnan().any():
        raise ValueError(
            "behaviour='drawn' needs the probability with which each session was drawn, and a search has none; choose "
            "behaviour='model', or sample the sessions."
        )
    log_weight_UG = old_UGKL.sum((2, 3)) - groups.logp_allowed_UG - groups.logp_drawn_UG
    return log_weight_UG.softmax(dim=1) * log_weight_UG.shape[1]


# ---------------------------------------------------------------- formulas


def at_level(value_BGKL: Tensor, level: Level) -> Tensor:
    """Log-probabilities of codes added up to those of items [B, G, K, 1] or sessions [B, G, 1, 1]."""
    if level == "code":
        return value_BGKL
    return value_BGKL.sum(3 if level == "item" else (2, 3), keepdim=True)


def mean_of_session(value_BGKL: Tensor, mask_BGKL: Tensor) -> Tensor:
    """Means [B, G] over the codes, items or session that there are."""
    mask = mask_BGKL[..., : value_BGKL.shape[3]][:, :, : value_BGKL.shape[2]]
    return (value_BGKL * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)


def k3(logp: Tensor, logp_reference: Tensor) -> Tensor:
    """Schulman's estimate of the KL divergence from a reference, at least 0; samples are of the policy."""
    gap = logp_reference - logp
    return gap.exp() - 1 - gap


def clipped(
    logp_ratio: Tensor, advantage_BG: Tensor, mask_BGKL: Tensor, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's loss -min(ratio A, clip(ratio, 1 - low, 1 + high) A), and figures of the ratios."""
    ratio, advantage = logp_ratio.exp(), advantage_BG[..., None, None]
    loss = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    cut = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)
    return loss, ratio_figures(ratio, cut, mask_BGKL)


def ratio_figures(ratio: Tensor, cut: Tensor, mask_BGKL: Tensor) -> dict[str, Tensor]:
    """Mean ratio, and the share of ratios without a gradient of their own."""
    return {
        "ratio": mean_of_session(ratio.detach(), mask_BGKL).mean(),
        "clip_share": mean_of_session(cut.float(), mask_BGKL).mean(),
    }
