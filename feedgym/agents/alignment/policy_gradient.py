"""Common part of the policy gradients on groups of scored sessions: GRPO, RLOO, OneRec's ECPO and OneRec-V2's GBPO.

All of them raise the probability of sessions that are better than others of the same user, and lower that of the worse
ones. They differ in the advantage and in the unit that is compared with the old policy: a code, an item or a session.
They also differ in the bounds of this ratio. The old policy is the round's snapshot. Its log-probabilities are computed
once, before the first step and without dropout. They are kept in the round's folder, so that a killed round can
continue with them. So all ratios are 1 at the first step.

Common deviations from the papers:
    - Next-token prediction on the logged sessions of the same users is added (``ntp_weight``), as OneRec trains both
      together.
    - The log-probabilities are the model's own, over the joint vocabulary, while sessions are drawn from the model
      restricted to what can be served. The gradient of log pi_c is that of the model's own log-probability minus that
      of the mass on what is allowed. A method does not know what was allowed (items seen, items that do not exist yet),
      so this term is left out. Centred advantages cancel it at the first code, where it is the same for all sessions of
      a group.
    - Sessions may be drawn otherwise than from the model at temperature 1: sharper, cut by top-k or top-p, or from the
      base. Then ``behaviour="drawn"`` weights each by its probability under the snapshot, divided by that under its own
      distribution.
    - The reward is given to the whole session, so all its codes share its advantage.
    - A round is one batch of sessions and some fifty small steps. The papers' clipping at 0.2 is for few, large steps
      between two batches. Here it would end a round after a seventh of the divergence of a round of DPO. So the default
      bounds are wider. The weights balance losses in different units, so that a round of each method moves the model
      about equally far.
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
from feedgym.agents.alignment.loop import GroupRows, LoopConfig, train_groups, without_dropout
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import Histories, ScoredParts, ScoredSessions, TensorRows
from feedgym.data.parquet import read_batch, write_batch
from feedgym.data.whole import drop_checkpoints, is_whole, seal
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import LearningRate, Passes, Positive

Level = Literal["code", "item", "session"]
Behaviour = Literal["model", "drawn"]


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(LoopConfig):
    """Options of all policy gradients."""

    learning_rate: LearningRate = 1e-3
    """Peak learning rate of AdamW; no weight decay."""
    epochs: Passes = 1
    """Passes over the groups."""
    group_size: Annotated[int, Interval(ge=2, le=10**6)] = 16
    """Sessions per user to learn from, drawn at random from those that were sampled; all of them if there are no
    more."""
    policy_weight: Positive = 4.0
    """Weight of the method's own loss, a mean over codes."""
    behaviour: Behaviour = "model"
    """Assumed distribution of the sessions. model treats them as draws of the snapshot itself. drawn weights each by
    the snapshot's probability over the one with which it was drawn, with mean 1 per group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.behaviour not in get_args(Behaviour):
            raise ValueError(f"behaviour={self.behaviour!r} is unknown; choose model or drawn.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Logps(TensorRows):
    """Log-probabilities of the groups' codes before the first step.

    Attributes:
        old_UGKL: under the snapshot.
        reference_UGKL: under the reference; None if that is the snapshot.
    """

    old_UGKL: Tensor
    reference_UGKL: Tensor | None = None


class PolicyGradient(ABC):
    """Common part of the methods: groups, old log-probabilities, and one update.

    A subclass implements ``_advantage``, and ``_losses`` of single codes, items or sessions.
    """

    Config: ClassVar[type]
    config: PolicyGradientConfig

    def __init__(self, config: Any) -> None:
        self.config = config

    def update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """Update as in :meth:`feedgym.protocols.AlignmentMethod.update`.

        Returns:
            ``groups`` is the number of groups that were learned from, ``skipped`` that of groups whose scores do not
            differ. ``advantage_spread`` is the spread of all advantages. ``first_loss``, ``first_ratio`` and
            ``first_kl`` are those of the first step. The others are means over the last epoch's steps: ``loss``,
            ``ntp_loss``, ``ratio``, ``clip_share`` (share of ratios whose gradient is cut), ``kl``, ``entropy`` (nats
            per code) and ``grad_norm``. ``kl`` is in nats per session, to the reference, estimated by k3 on the
            snapshot's sessions. With ``behaviour="drawn"`` there is also ``behaviour_ess``, the effective number of
            sessions in a group's weights.
        """
        return self._update(model, histories, sampled, logged_UK, work, progress, None)

    def _update(
        self,
        model: GenerativeAgent,
        histories: Histories,
        sampled: ScoredSessions | ScoredParts,
        logged_UK: Tensor,
        work: Path,
        progress: Progress | None,
        reference: Any,
    ) -> dict[str, float]:
        groups = random_groups(sampled, self.config.group_size, self.config.seed)
        counts: dict[str, float] = {"groups": len(groups), "skipped": len(sampled) - len(groups)}
        if not len(groups):
            return counts
        rows = GroupRows(model, histories.at(groups.user_idx_U), groups.item_ids_UGK, logged_UK[groups.user_idx_U])
        with without_dropout(model):
            before = logps_before(rows, self.config, Path(work), model, reference)
            rows.columns = self.columns(groups, before)
            told = {"advantage_spread": rows.columns["advantage_UG"].std().item()}
            if "weight_UG" in rows.columns:
                weight_UG = rows.columns["weight_UG"]
                told["behaviour_ess"] = (weight_UG.sum(1) ** 2 / weight_UG.square().sum(1)).mean().item()
            return counts | told | train_groups(model, rows, self.config, self.loss, Path(work), progress)

    def columns(self, groups: Groups, before: Logps) -> dict[str, Tensor]:
        """Further inputs of the loss for each user."""
        columns = {"advantage_UG": self._advantage(groups.score_UG, before), "old_UGKL": before.old_UGKL}
        if before.reference_UGKL is not None:
            columns["reference_UGKL"] = before.reference_UGKL
        if self.config.behaviour == "drawn":
            columns["weight_UG"] = behaviour_weights(groups, before.old_UGKL)
        return columns

    def loss(
        self, logp_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's weighted loss of a batch, and its figures."""
        old_BGKL = columns["old_UGKL"]
        # Without a code all log-probabilities are 0, and so are their differences.
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


def logps_before(rows: GroupRows, config: LoopConfig, work: Path, model: Any, reference: Any) -> Logps:
    """Log-probabilities under the round's first weights, computed or read from what a killed round left in ``work``."""
    folder = work / "before"
    path = folder / "logps.safetensors"
    if not is_whole(folder):  # without it, later training is of no use
        drop_checkpoints(work)
        of_reference = None if reference is None else rows.logps(reference, config)
        write_batch(Logps(old_UGKL=rows.logps(model, config), reference_UGKL=of_reference), path)
        seal(folder)
    before = read_batch(Logps, path)
    if len(before.old_UGKL) != len(rows):
        raise ValueError(
            f"{work} holds a round of {len(before.old_UGKL)} groups, not {len(rows)}; give each round a folder "
            "of its own."
        )
    return before


def check_drawn(logp_drawn: Tensor, logp_allowed: Tensor) -> None:
    """Refuse ``behaviour='drawn'`` for sessions without one of these log-probabilities.

    Raises:
        ValueError: one is NaN.
    """
    if (logp_drawn + logp_allowed).isnan().any():
        raise ValueError(
            "behaviour='drawn' needs the probability with which each session was drawn, and the model's own: a search "
            "lacks the first, candidates the second; choose behaviour='model', or sample among all items."
        )


def behaviour_weights(groups: Groups, old_UGKL: Tensor) -> Tensor:
    """Weight of each session: its probability under the snapshot over that of its draw, [U, G]; each group's mean is 1.

    Both are restricted to what can be served: the snapshot's own log-probability minus that of what was allowed.
    """
    check_drawn(groups.logp_drawn_UG, groups.logp_allowed_UG)
    log_weight_UG = old_UGKL.sum((2, 3)) - groups.logp_allowed_UG - groups.logp_drawn_UG
    return log_weight_UG.softmax(dim=1) * log_weight_UG.shape[1]


# ---------------------------------------------------------------- formulas


def at_level(value_BGKL: Tensor, level: Level) -> Tensor:
    """Sums log-probabilities of codes to those of items [B, G, K, 1] or sessions [B, G, 1, 1]."""
    if level == "code":
        return value_BGKL
    return value_BGKL.sum(3 if level == "item" else (2, 3), keepdim=True)


def mean_of_session(value_BGKL: Tensor, mask_BGKL: Tensor) -> Tensor:
    """Means [B, G] over the existing codes, items or session."""
    mask = mask_BGKL[..., : value_BGKL.shape[3]][:, :, : value_BGKL.shape[2]]
    return (value_BGKL * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)


def k3(logp: Tensor, logp_reference: Tensor) -> Tensor:
    """Schulman's estimate of the KL divergence from a reference, at least 0; the samples come from the policy."""
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
    """Mean ratio, and the share of ratios that have no gradient of their own."""
    return {
        "ratio": mean_of_session(ratio.detach(), mask_BGKL).mean(),
        "clip_share": mean_of_session(cut.float(), mask_BGKL).mean(),
    }
