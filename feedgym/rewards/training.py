"""Trains reward models on logged sessions: one, an ensemble in one pass, or members whose weights are averaged.

All members of an ensemble see the same batches in the same order. They differ by their initial weights, their dropout
and the weight of each user. A user's weight is their count in a draw of all users with replacement. Gradients are
clipped member by member, so a member learns exactly what it would learn alone.

Averaged members (WARM, arXiv:2401.12187) have a common start: weights of models that started separately are in
different valleys, and their mean is in none. Deviations from the paper: members differ by their users and dropout, not
by their learning rates. The start has learned the same task, for a part of the passes.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` members.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, TrainerCallback

from feedgym.agents.pretrain import PretrainConfig, Progress, SessionDataset, pretrain
from feedgym.data.batches import HISTORY_COLUMNS, EventBatch, Histories
from feedgym.data.events import Catalog, FloatArray, LoggedSessions
from feedgym.rewards.answers import Answers
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.doubly_robust import Imputed, drawn_sessions
from feedgym.rewards.ensemble import RewardEnsemble
from feedgym.rewards.model import RewardModel
from feedgym.rewards.network import Sizes

RESAMPLE = 0x7265
"""Salt for drawing the users that members learn from."""
HALVES = 0x68616C66
"""Salt for the halves of the users that impute for each other."""
STARTS = 0x7374
"""Salt for the members' initial weights, except the first one's."""


def fit_reward_model(
    catalog: Catalog,
    histories: Histories,
    sessions: LoggedSessions,
    config: RewardModelConfig,
    output_dir: Path | str,
    progress: Progress | None = None,
) -> RewardModel | RewardEnsemble:
    """Train a reward model, or several as one, on logged sessions.

    Args:
        catalog: the items.
        histories: N rows, known before each session.
        sessions: N sessions with the users' responses, good and bad ones.
        config: options of the model and its training.
        output_dir: folder for checkpoints and the model; training continues from a checkpoint found there.
        progress: called after each step.

    Returns:
        The model in evaluation mode.
    """
    output_dir, examples = Path(output_dir), _examples(histories, sessions, config)
    sizes = Sizes.of(catalog, histories, examples.item_ids_NK.shape[1])
    starts = [untrained(config, sizes, seed) for seed in seeds_of_members(config)]
    for start in starts:
        start.prepare(catalog, examples.answers)
    if config.imputed:
        examples = imputing(examples, sessions, starts[0], config, output_dir, progress)
    model: RewardModel | RewardEnsemble
    if config.is_ensemble:
        model = trained_together(starts, examples, config, output_dir, progress)
    elif config.members == 1:
        model = trained_alone(starts[0], examples, config, output_dir, progress)
    else:
        before = replace(config, epochs=config.epochs * config.shared_start)
        after = replace(config, epochs=config.epochs - before.epochs)
        start = trained_alone(starts[0], examples, before, output_dir / "start", progress)
        parted = trained_together([start] * config.members, examples, after, output_dir / "parted", progress)
        model = averaged(parted)
    model.save_pretrained(output_dir)
    return model.eval()


def train_reward_model_further(
    model: RewardModel | RewardEnsemble,
    histories: Histories,
    sessions: LoggedSessions,
    config: RewardModelConfig,
    output_dir: Path | str,
    progress: Progress | None = None,
) -> RewardModel | RewardEnsemble:
    """Continue training a reward model on other sessions of the same catalogue; the model itself stays unchanged.

    Args:
        model: the model to start from.
        histories: N rows, known before each session.
        sessions: N sessions with the users' responses.
        config: sizes as the model's, and the options of this training.
        output_dir: folder for checkpoints and the model; training continues from a checkpoint found there.
        progress: called after each step.

    Returns:
        The model in evaluation mode.
    """
    output_dir, examples = Path(output_dir), _examples(histories, sessions, config)
    model = copy.deepcopy(model).train()
    if config.imputed:
        start = model.members()[0] if isinstance(model, RewardEnsemble) else model
        examples = imputing(examples, sessions, start, config, output_dir, progress)
    if isinstance(model, RewardEnsemble):
        model = trained_together(model.members(), examples, config, output_dir, progress)
    else:
        model = trained_alone(model, examples, config, output_dir, progress)
    model.save_pretrained(output_dir)
    return model.eval()


def _examples(histories: Histories, sessions: LoggedSessions, config: RewardModelConfig) -> _LabelledSessions:
    return _LabelledSessions(
        histories=histories,
        item_ids_NK=torch.from_numpy(sessions.item_ids_NK.astype(np.int64)),
        answers=Answers.of(sessions, config.watch_cap_s, config.max_weight),
        times_NM=torch.from_numpy(member_weights(sessions, config)),
    )


def imputing(
    examples: _LabelledSessions,
    sessions: LoggedSessions,
    start: RewardModel,
    config: RewardModelConfig,
    place: Path,
    progress: Progress | None,
) -> _LabelledSessions:
    """Add predictions of a model of the other half of the users, for the sessions and for random ones drawn for each.

    The two models start from ``start`` and use responses without weights, because the weights correct their errors.
    """
    drawn_NSK = torch.from_numpy(drawn_sessions(sessions, config.imputed, config.seed))
    item_ids_NSK = torch.cat([examples.item_ids_NK[:, None], drawn_NSK], dim=1)
    user_N = np.unique(sessions.user_idx_N, return_inverse=True)[1]
    in_half_U = np.random.default_rng((config.seed, HALVES)).permutation(user_N.max() + 1) % 2
    half_N = torch.from_numpy(in_half_U[user_N])
    parts, rows = [], [torch.where(half_N == half)[0] for half in range(2)]
    for half in range(2):
        learned = examples.part(rows[1 - half]).at_face_value()
        model = trained_alone(copy.deepcopy(start), learned, config, place / f"imputing-{half}", progress).eval()
        with torch.no_grad():
            parts += [
                _imputed(model, examples.histories.rows(block), item_ids_NSK[block])
                for block in rows[half].split(config.batch_size)
            ]
    return replace(examples, imputed=Imputed.cat(parts).rows(torch.cat(rows).argsort()))


def _imputed(model: RewardModel, histories: EventBatch, item_ids_NSK: Tensor) -> Imputed:
    """Predictions of a model for some sessions."""
    said = model.predict(histories.trimmed(), item_ids_NSK)
    return Imputed(
        item_ids_NSK=item_ids_NSK,
        prob_NSKO=said.logit_USKO.sigmoid().cpu(),
        reach_NSK=said.prob_reach_USK.cpu(),
        return_NS=said.logit_return_US.sigmoid().cpu(),
    )


def untrained(config: RewardModelConfig, sizes: Sizes, seed: int) -> RewardModel:
    """Make a model with the initial weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RewardModel(config, sizes)


def seeds_of_members(config: RewardModelConfig) -> list[int]:
    """Seeds of the initial weights; the first one is the configuration's own, and the only one with a common start."""
    others = range(1, config.members if config.is_ensemble else 1)
    return [config.seed, *(int(np.random.SeedSequence((config.seed, STARTS, m)).generate_state(1)[0]) for m in others)]


def member_weights(sessions: LoggedSessions, config: RewardModelConfig) -> FloatArray:
    """Weight of each session for each member, float32 [N, M]: the count of its user in a draw of the users."""
    user_N = np.unique(sessions.user_idx_N, return_inverse=True)[1]
    if config.members == 1 or not config.resample:
        return np.ones((len(user_N), config.members), np.float32)
    num_users = user_N.max() + 1
    rngs = [np.random.default_rng((config.seed, RESAMPLE, m)) for m in range(config.members)]
    times = [np.bincount(rng.integers(num_users, size=num_users), minlength=num_users) for rng in rngs]
    return np.stack([times_U[user_N] for times_U in times], axis=1).astype(np.float32)


def trained_alone(
    model: RewardModel, examples: _LabelledSessions, config: RewardModelConfig, place: Path, progress: Progress | None
) -> RewardModel:
    """Train one model, with the same weight for all sessions."""
    one = replace(examples, times_NM=torch.ones(len(examples), 1))
    pretrain(_Fitting(model), one, schedule(config), place, progress)  # type: ignore[type-var]
    return model


def trained_together(
    starts: Sequence[RewardModel],
    examples: _LabelledSessions,
    config: RewardModelConfig,
    place: Path,
    progress: Progress | None,
) -> RewardEnsemble:
    """Train all members, each with its own weights of the users."""
    ensemble = RewardEnsemble.of(starts)
    settings = schedule(config)
    clip = ClipMembers(ensemble, settings.max_grad_norm)
    fitting = _Fitting(ensemble)
    pretrain(fitting, examples, replace(settings, max_grad_norm=0), place, progress, [clip])  # type: ignore[type-var]
    return ensemble


def schedule(config: RewardModelConfig) -> PretrainConfig:
    """The Trainer's options."""
    return PretrainConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        checkpoint_steps=config.checkpoint_steps,
        seed=config.seed,
    )


def averaged(ensemble: RewardEnsemble) -> RewardModel:
    """Average the members' weights into one model."""
    model = ensemble.members()[0]
    with torch.no_grad():
        for name, value in ensemble.net.named_parameters():
            model.get_parameter(name).copy_(value.mean(0))
    return model


class ClipMembers(TrainerCallback):
    """Clips the gradient of each member to a norm, as the Trainer clips the gradient of a model.

    Args:
        ensemble: the members.
        max_norm: the norm.
    """

    everywhere = True  # in every process that trains

    def __init__(self, ensemble: RewardEnsemble, max_norm: float) -> None:
        self.ensemble, self.max_norm = ensemble, max_norm

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale the gradients."""
        grads = [parameter.grad for parameter in self.ensemble.parameters() if parameter.grad is not None]
        norm_M = torch.stack([grad.reshape(len(grad), -1).norm(dim=1) for grad in grads]).norm(dim=0)
        scale_M = (self.max_norm / (norm_M + 1e-6)).clamp_max(1)
        for grad in grads:
            grad.mul_(scale_M.view(-1, *[1] * (grad.ndim - 1)))


class _Fitting(nn.Module):
    """A reward model or an ensemble in the form that the Trainer needs: tensors in, a loss out."""

    def __init__(self, model: RewardModel | RewardEnsemble) -> None:
        super().__init__()
        self.model = model
        self.config = PreTrainedConfig()  # the Trainer writes notes there

    def forward(self, **batch: Tensor) -> Any:
        histories = EventBatch(**{name: batch[name] for name in HISTORY_COLUMNS})
        answers = Answers(**{f.name: batch[f.name] for f in fields(Answers)})
        item_ids_NSK = batch["item_ids_NK"][:, None]

        imputed = Imputed(**{f.name: batch[f.name] for f in fields(Imputed)}) if "prob_NSKO" in batch else None

        def loss(model: RewardModel, times_N: Tensor) -> Tensor:
            counted = replace(answers, weight_NK=answers.weight_NK * times_N[:, None])
            if imputed is None:
                return model.loss(model.predict(histories, item_ids_NSK), counted)
            said = model.predict(histories, imputed.item_ids_NSK)
            return model.doubly_robust_loss(said, counted, imputed, times_N)

        times_MN = batch["times_NM"].T
        if isinstance(self.model, RewardModel):
            return _LossOutput(loss(self.model, times_MN[0]))
        # A sum, because then every member has the gradient that it would have alone.
        return _LossOutput(self.model.each(loss, times_MN).sum())


class _LossOutput(NamedTuple):
    loss: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _LabelledSessions(SessionDataset):
    """Logged sessions with the labels of their positions, and their weights for every member."""

    answers: Answers
    times_NM: Tensor
    imputed: Imputed | None = None

    def part(self, idx: Tensor) -> Self:
        """The rows at ``idx``."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        histories = columns.pop("histories").at(idx)
        taken: dict[str, Any] = {
            name: value[idx] if isinstance(value, Tensor) else value.rows(idx)
            for name, value in columns.items()
            if value is not None
        }
        return replace(self, histories=histories, **taken)

    def at_face_value(self) -> Self:
        """The same sessions with equal weights for all positions."""
        return replace(self, answers=replace(self.answers, weight_NK=torch.ones_like(self.answers.weight_NK)))

    def collate(self, model: Any, idx: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(idx)
        histories, answers = self.histories.rows(rows).trimmed(), self.answers.rows(rows)
        return {
            **{name: getattr(histories, name) for name in HISTORY_COLUMNS},
            "item_ids_NK": self.item_ids_NK[rows],
            "times_NM": self.times_NM[rows],
            **{f.name: getattr(answers, f.name) for f in fields(Answers)},
            **({} if self.imputed is None else vars(self.imputed.rows(rows))),
        }
