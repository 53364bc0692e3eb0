"""Supervised fine-tuning on a user's own sampled sessions, with more weight on better ones: RSFT and Exp-RSFT.

Neither can lower a session's probability, and neither has a reference. Next-token prediction on the logged sessions
(``ntp_weight``) keeps the model in place. Without it, each round of perfect imitation moves the model by up to log N -
(N - 1) / N nats. N is the number of sampled sessions per user.

Like the loss of next-token prediction, this loss is a mean over codes, so both weights have the same unit. Users whose
scores do not differ are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from feedgym.agents.alignment.groups import NO_SPREAD, chosen, differ, kept_of
from feedgym.agents.alignment.loop import GroupRows, LoopConfig, train_groups, without_dropout
from feedgym.agents.alignment.policy_gradient import Behaviour, check_drawn, mean_of_session
from feedgym.agents.pretrain import Progress
from feedgym.data.batches import Histories, ScoredParts, ScoredSessions, TensorRows
from feedgym.protocols import GenerativeAgent
from feedgym.ranges import Count, CountOrZero, Positive, check_choices

Unit = Literal["spread", "score"]
Pick = Callable[[ScoredSessions], tuple[Tensor, Tensor]]
"""Takes G of each user's sessions: their indices, int64 [U, G], and weights, float32 [U, G]."""


@dataclass(frozen=True, kw_only=True)
class RSFTConfig(LoopConfig):
    """Options of RSFT."""

    best: Count = 1
    """Number of each user's best sessions to imitate; all of them equally if there are no more."""
    imitation_weight: Positive = 1.0
    """Weight of imitation (mean over codes)."""


class RSFT:
    """Rejection sampling: next-token prediction on the best of each user's sessions (RAFT, arXiv:2304.06767)."""

    title = "RSFT"
    Config = RSFTConfig

    def __init__(self, config: RSFTConfig) -> None:
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
        """Update as in :meth:`feedgym.protocols.AlignmentMethod.update`; the figures are those of :func:`imitate`."""
        config = self.config

        def pick(part: ScoredSessions) -> tuple[Tensor, Tensor]:
            idx_UG = part.score_US.topk(min(config.best, part.score_US.shape[1]), dim=1).indices
            return idx_UG, torch.full(idx_UG.shape, 1 / idx_UG.shape[1])

        return imitate(
            model, histories, sampled, logged_UK, pick, config.imitation_weight, config, work, progress
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExpRSFTConfig(LoopConfig):
    """Options of Exp-RSFT."""

    temperature: Positive = 0.5
    """Lambda: a session weighs exp(score / lambda), relative to the sum over the user's sessions. Near 0 only the best
    session is imitated; far above the spread of the scores, all are imitated equally."""
    unit: Unit = "spread"
    """Unit of lambda: the standard deviation of the user's own scores, or the score itself."""
    draws: CountOrZero = 8
    """Sessions per user to imitate, drawn by their weights with repetition. This costs less than weighting all
    sessions, which 0 does."""
    imitation_weight: Positive = 1.0
    """Weight of imitation (mean over codes)."""
    behaviour: Behaviour = "model"
    """Assumed distribution of the sessions. model treats them as draws of the model itself. drawn corrects the weights
    by the model's probability over the one with which a session was drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, unit=Unit, behaviour=Behaviour)


class ExpRSFT:
    """Imitation weighted by exp(reward / lambda) (arXiv:2603.10279); its target is pi times exp(reward / lambda).

    The weights of each user add up to 1. Otherwise, with shared parameters, the users with the highest rewards would
    dominate.
    """

    title = "Exp-RSFT"
    Config = ExpRSFTConfig

    def __init__(self, config: ExpRSFTConfig) -> None:
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
            The figures of :func:`imitate`, and ``ess``, the mean effective number of sessions in a user's weights.
        """
        config = self.config
        generator, sizes = torch.Generator().manual_seed(config.seed), []

        def pick(part: ScoredSessions) -> tuple[Tensor, Tensor]:
            weight_US = exp_weights(part, config)
            sizes.append((1 / weight_US.square().sum(1))[differ(part.score_US)])
            if not config.draws:
                return torch.arange(weight_US.shape[1]).expand(weight_US.shape), weight_US
            idx_UG = resampled(weight_US, config.draws, generator)
            return idx_UG, torch.full(idx_UG.shape, 1 / config.draws)

        figures = imitate(
            model, histories, sampled, logged_UK, pick, config.imitation_weight, config, work, progress
        )  # fmt: skip
        ess_U = torch.cat(sizes)
        return ({"ess": ess_U.mean().item()} if len(ess_U) else {}) | figures


def exp_weights(sampled: ScoredSessions, config: ExpRSFTConfig) -> Tensor:
    """The weight [U, S] of each session; the weights of each user add up to 1."""
    logit_US = sampled.score_US / config.temperature
    if config.unit == "spread":
        logit_US = logit_US / sampled.score_US.std(dim=1, correction=0, keepdim=True).clamp_min(NO_SPREAD)
    if config.behaviour == "drawn":
        check_drawn(sampled.logp_drawn_US, sampled.logp_allowed_US)
        logit_US = logit_US + sampled.logp_US - sampled.logp_allowed_US - sampled.logp_drawn_US
    return logit_US.softmax(dim=1)


def resampled(weight_US: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draws ``num`` of each user's S sessions by their weights with repetition, int64 [U, num].

    A user's draws are evenly spaced in the cumulated weights (systematic resampling). So each session is drawn as often
    as its weight says, to within one.
    """
    start_U1 = torch.rand(len(weight_US), 1, generator=generator, dtype=torch.float64)
    place_UG = (torch.arange(num) + start_U1) / num
    cdf_US = weight_US.double().cumsum(dim=1)
    return torch.searchsorted(cdf_US / cdf_US[:, -1:], place_UG, right=True).clamp_max(weight_US.shape[1] - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Imitated(TensorRows):
    """Sessions to imitate, G for each of some users.

    Attributes:
        user_idx_U: int64 row of the user.
        item_ids_UGK: int32 items.
        weight_UG: float32 weights.
        gain_U: float32 reward of these sessions by their weights, minus the mean of all sessions.
    """

    user_idx_U: Tensor
    item_ids_UGK: Tensor
    weight_UG: Tensor
    gain_U: Tensor

    def __len__(self) -> int:
        return len(self.user_idx_U)


def imitate(
    model: GenerativeAgent,
    histories: Histories,
    sampled: ScoredSessions | ScoredParts,
    logged_UK: Tensor,
    pick: Pick,
    imitation_weight: float,
    config: LoopConfig,
    work: Path,
    progress: Progress | None,
) -> dict[str, float]:
    """Trains next-token prediction on the sessions that ``pick`` takes of each part; skips users without a spread.

    Returns:
        ``groups`` is the number of users that were learned from, ``skipped`` that of the others. ``score_gain`` is the
        reward of the imitated sessions minus that of all sessions of these users. ``first_loss`` is that of the first
        step. ``loss``, ``ntp_loss``, ``entropy`` (nats per code) and ``grad_norm`` are means over the last epoch's
        steps.
    """
    taken = _imitated(sampled, pick)
    counts: dict[str, float] = {"groups": len(taken), "skipped": len(sampled) - len(taken)}
    if not len(taken):
        return counts
    rows = GroupRows(model, histories.at(taken.user_idx_U), taken.item_ids_UGK, logged_UK[taken.user_idx_U])
    rows.columns = {"weight_UG": taken.weight_UG}

    def loss(logp_BGKL: Tensor, mask_BGKL: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return imitation_weight * weighted_nll(logp_BGKL, mask_BGKL, columns["weight_UG"]), {}

    with without_dropout(model):
        figures = train_groups(model, rows, config, loss, Path(work), progress)
    return counts | {"score_gain": taken.gain_U.mean().item()} | figures


def _imitated(sampled: ScoredSessions | ScoredParts, pick: Pick) -> Imitated:
    """The sessions to imitate, of users whose scores differ."""

    def taken(part: ScoredSessions, first: int) -> Imitated:
        idx_UG, weight_UG = pick(part)
        learned_U = differ(part.score_US)
        groups, weight_UG = chosen(part, idx_UG, first).rows(learned_U), weight_UG[learned_U]
        gain_U = (groups.score_UG * weight_UG).sum(1) - part.score_US[learned_U].mean(1)
        return Imitated(
            user_idx_U=groups.user_idx_U, item_ids_UGK=groups.item_ids_UGK, weight_UG=weight_UG, gain_U=gain_U
        )

    return kept_of(sampled, taken)


def weighted_nll(logp_BGKL: Tensor, mask_BGKL: Tensor, weight_BG: Tensor) -> Tensor:
    """Minus the log-probability per code: the weighted mean over each user's sessions, then the mean over users."""
    return -(weight_BG * mean_of_session(logp_BGKL, mask_BGKL)).sum(1).mean()
