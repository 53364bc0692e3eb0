"""The session reward model: how good a whole session is for a user, learned from logged answers alone.

OneRec's reward model (arXiv:2502.18965, §3): every item of the session attends to the user's history (target
attention), the items attend to each other, and towers predict what the user does. The score adds the towers up in the
units of the true reward, :class:`feedgym.envs.truth.RewardWeights`: one point a minute watched, half a point a like.

Deviations from the paper:
    - The towers answer a position at a time and self-attention is causal: what a user does with an item can depend on
      the items before it, never on those after it. The sum over the session comes after the towers, not before.
    - A tower for going on says with which probability position k is reached at all. Rewards are given to reached items
      only, so the score is sum_k P(k reached) · E[reward of k | k reached]: an exact factorisation, and it makes early
      items count for more than late ones. The paper scores all items of a session alike.
    - Towers for every behaviour, for seconds watched and for the return within a day; the paper has session watch time,
      view, follow and like. Watch time is a soft label, seconds over ``watch_cap_s``.
    - Each attention is told which keys are the same item, topic or creator as the query, by one learned bias per head.

Axes beyond the legend of :mod:`feedgym.data.events`: ``O`` towers, ``Q`` items of all sessions of a user in one row.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from transformers import PreTrainedConfig

from feedgym.agents.layers.history import EventFeatures, RequestTokens
from feedgym.agents.pretrain import PretrainConfig, Progress, SessionDataset, pretrain
from feedgym.data.batches import HISTORY_COLUMNS, EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOURS, Catalog, LoggedSessions
from feedgym.data.parquet import replacing
from feedgym.envs.truth import RewardWeights
from feedgym.ranges import (
    BelowOne,
    Count,
    Few,
    LearningRate,
    NonNegative,
    PartPasses,
    Positive,
    Ranged,
    Seed,
    SomeSeconds,
    Width,
    check_divides,
)
from feedgym.rewards.answers import NEXT, RETURN, TOWERS, WATCH, Answers, observed_bce
from feedgym.rewards.network import ItemVectors, RelationAttention, SessionLayer, Sizes, Tower

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "reward_model.json"


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(Ranged):
    """The session reward model and its training."""

    width: Width = 64
    """D, width of the model."""
    heads: Few = 4
    """Attention heads; divides width."""
    layers: Few = 1
    """Self-attention layers inside the session."""
    dropout: BelowOne = 0.0
    """Dropout inside the network."""
    id_dropout: BelowOne = 0.2
    """Share of item-id embeddings left out in training, so that content speaks for rare items."""
    watch_cap_s: SomeSeconds = 300.0
    """Seconds watched of one item that count as a full label; more is clipped."""
    max_weight: Positive = 1.0
    """Clip of the inverse propensity weights by which the log's favouritism is undone, where it has propensities; 1
    takes the log at face value."""
    lr: LearningRate = 5e-3
    """Peak learning rate of AdamW, warmed up and decayed by a cosine."""
    weight_decay: NonNegative = 0.01
    """AdamW's decay of matrices and embeddings."""
    batch_size: Count = 256
    """Sessions a step and device."""
    epochs: PartPasses = 2.0
    """Passes over the logged sessions."""
    checkpoint_steps: Count = 500
    """Steps between checkpoints."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the sessions and dropout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides(self, "heads", "width")


class Predictions(NamedTuple):
    """What the towers say of S sessions per user.

    Attributes:
        logit_USKO: a logit a position and tower of TOWERS, given that the position is reached.
        prob_reach_USK: probability that the user gets to the position; 0 where there is no item.
        logit_return_US: logit of coming back within a day.
    """

    logit_USKO: Tensor
    prob_reach_USK: Tensor
    logit_return_US: Tensor


class RewardModel(nn.Module):
    """A :class:`feedgym.protocols.SessionReward` learned from a log; call it on histories and sessions.

    Args:
        config: sizes.
        sizes: what the data decide.

    Attributes:
        weights: what the score is made of; :meth:`with_weights` gives another opinion by the same towers.
        occurs_O: bool, whether the log shows each tower's label at all; the others are left out of the score.
        return_observed: bool, the same for the return.
    """

    occurs_O: Tensor
    return_observed: Tensor

    def __init__(self, config: RewardModelConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes, self.weights = config, sizes, RewardWeights()
        width = config.width
        self.items = ItemVectors(width, config.id_dropout, sizes)
        self.events = EventFeatures(width, len(BEHAVIOURS), sizes.history_length)
        self.request = RequestTokens(width, tuple(size + 1 for size in sizes.profile_sizes))
        self.norm_events = nn.RMSNorm(width, eps=1e-6)
        self.user = nn.Linear(2 * width, width)
        self.norm_items = nn.RMSNorm(width, eps=1e-6)
        self.attention = RelationAttention(width, config.heads)
        self.fuse = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width))
        self.fuse_item = nn.Linear(3 * width, 2 * width)
        self.fuse_user = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Embedding(sizes.session_length, width)
        self.layers = nn.ModuleList(SessionLayer(width, config.heads, config.dropout) for _ in range(config.layers))
        self.towers = Tower(width, config.dropout, len(TOWERS))
        self.return_tower = Tower(2 * width, config.dropout, 1)
        self.register_buffer("occurs_O", torch.ones(len(TOWERS), dtype=torch.bool))
        self.register_buffer("return_observed", torch.ones((), dtype=torch.bool))

    def forward(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Expected reward [U, S] of S sessions for each of U users, in the units of the true reward."""
        with torch.no_grad():
            score_US = self.score(self.predict(histories, sessions.item_ids_USK))
        return score_US.to(sessions.item_ids_USK.device)

    def score(self, predictions: Predictions) -> Tensor:
        """The towers' answers, added up with the weights of the reward."""
        prob_USKO = predictions.logit_USKO.sigmoid() * self.occurs_O
        weights = self.weights
        weight_O = [getattr(weights, name) for name in BEHAVIOURS]
        weight_O += [weights.watch_minutes * self.config.watch_cap_s / 60, 0.0]
        value_USK = prob_USKO @ prob_USKO.new_tensor(weight_O)
        prob_return_US = predictions.logit_return_US.sigmoid() * self.return_observed
        return (predictions.prob_reach_USK * value_USK).sum(-1) + weights.return_24h * prob_return_US

    def predict(self, histories: EventBatch, item_ids_USK: Tensor) -> Predictions:
        """The towers' answers; the history is encoded once per user, whatever the number of sessions.

        Raises:
            ValueError: a session or history is longer than those of the training data, or an item is unknown.
        """
        self._check(item_ids_USK)
        device = self.occurs_O.device  # training may have left the model on an accelerator
        histories, item_ids_USK = histories.to(device), item_ids_USK.to(device)
        events_UTD, user_UD = self._encode(histories)
        x_USKD = self._meet(histories, events_UTD, user_UD, item_ids_USK)
        logit_USKO = self.towers(x_USKD)
        real_USK = item_ids_USK >= 0
        prob_reach_USK = _reach(logit_USKO[..., -1].sigmoid(), real_USK, self.occurs_O[-1])
        # The return is learned through what the session holds, not through how far the user gets.
        pooled_USD = (prob_reach_USK.detach()[..., None] * x_USKD).sum(2)
        both = torch.cat([pooled_USD, user_UD[:, None].expand_as(pooled_USD)], dim=-1)
        return Predictions(logit_USKO, prob_reach_USK, self.return_tower(both).squeeze(-1))

    def _encode(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """Events [U, T, D] and one vector per user [U, D]."""
        mask_UT = histories.mask_UT
        limit_F = torch.tensor(self.sizes.profile_sizes, device=mask_UT.device)
        clamped = replace(histories, profile_UF=histories.profile_UF.clamp_max(limit_F))
        items_UTD = self.items(histories.item_ids_UT.masked_fill(~mask_UT, 0))
        events_UTD = self.norm_events(items_UTD + self.events(clamped)).masked_fill(~mask_UT[..., None], 0.0)
        mean_UD = events_UTD.sum(1) / mask_UT.sum(1, keepdim=True).clamp_min(1)
        return events_UTD, self.user(torch.cat([mean_UD, self.request(clamped).sum(1)], dim=-1))

    def _meet(self, histories: EventBatch, events_UTD: Tensor, user_UD: Tensor, item_ids_USK: Tensor) -> Tensor:
        """The session's items after meeting the history and each other, [U, S, K, D]."""
        num_users, num_samples, length = item_ids_USK.shape
        ids_UQ = item_ids_USK.clamp_min(0).flatten(1)
        event_ids_UT = histories.item_ids_UT.masked_fill(~histories.mask_UT, 0)
        items_UQD = self.norm_items(self.items(ids_UQ))
        relations = self.items.relations(ids_UQ, event_ids_UT)
        attended_UQD = self.attention(items_UQD, events_UTD, relations, histories.mask_UT[:, None, None])
        joined = self.fuse_item(torch.cat([items_UQD, attended_UQD, items_UQD * attended_UQD], dim=-1))
        x_UQD = items_UQD + self.fuse(joined + self.fuse_user(user_UD)[:, None])
        x_NKD = x_UQD.view(num_users * num_samples, length, -1) + self.position.weight[:length]
        ids_NK, real_NK = ids_UQ.view(-1, length), item_ids_USK.view(-1, length) >= 0
        causal_KK = torch.ones(length, length, dtype=torch.bool, device=ids_NK.device).tril()
        mask = real_NK[:, None, None] & causal_KK
        relations = self.items.relations(ids_NK, ids_NK)
        for layer in self.layers:
            x_NKD = layer(x_NKD, relations, mask)
        return x_NKD.view(num_users, num_samples, length, -1)

    def _check(self, item_ids_USK: Tensor) -> None:
        length, limit = item_ids_USK.shape[2], self.sizes.session_length
        if length > limit:
            raise ValueError(
                f"Sessions of {length} items exceed the reward model's session_length={limit}; score shorter ones or "
                "train it on longer ones."
            )
        if item_ids_USK.numel() and int(item_ids_USK.max()) >= self.sizes.num_items:
            raise ValueError(
                f"Item id {int(item_ids_USK.max())} is outside the reward model's 0..{self.sizes.num_items - 1}; "
                "use the catalogue it was trained on."
            )

    def loss(self, predictions: Predictions, answers: Answers) -> Tensor:
        """Binary cross-entropy of all towers over what was observed; sessions lie at S = 1."""
        logits_NO, labels_NO = predictions.logit_USKO.squeeze(1).flatten(0, 1), answers.labels_NKO.flatten(0, 1)
        towers = observed_bce(logits_NO, labels_NO, answers.weight_NK.flatten())
        returns = observed_bce(predictions.logit_return_US, answers.return_N[:, None], answers.weight_NK[:, -1])
        return (towers * self.occurs_O).sum() + returns[0]

    def prepare(self, catalog: Catalog, answers: Answers) -> None:
        """Take the catalogue in, and let each tower start at the rate of its label in the log."""
        self.items.fill(catalog)
        rate_O, return_rate = answers.labels_NKO.flatten(0, 1).nanmean(0), answers.return_N.nanmean()
        self.occurs_O.copy_(rate_O > 0)
        self.occurs_O[TOWERS.index(NEXT)] = ~rate_O[TOWERS.index(NEXT)].isnan()  # a rate of 0 is an answer too
        self.return_observed.copy_(~return_rate.isnan())
        self.towers.start_at(rate_O)
        self.return_tower.start_at(return_rate)

    def with_weights(self, weights: RewardWeights) -> Self:
        """The same towers, shared, with another opinion of what counts: clicks alone, for instance."""
        other = copy.copy(self)
        other.weights = weights
        return other

    def save_pretrained(self, folder: Path | str) -> None:
        """Write weights, catalogue and configuration into a folder."""
        with replacing(Path(folder) / WEIGHTS_FILE) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, temporary)
        parts: dict[str, Any] = {"config": self.config, "sizes": self.sizes, "weights": self.weights}
        with replacing(Path(folder) / CONFIG_FILE) as temporary:
            temporary.write_text(json.dumps({name: asdict(value) for name, value in parts.items()}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The model saved in ``folder``, in evaluation mode.

        Raises:
            ValueError: a file is missing or damaged.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            saved = json.loads(path.read_text())
            sizes = Sizes(**saved["sizes"] | {"profile_sizes": tuple(saved["sizes"]["profile_sizes"])})
            model = cls(RewardModelConfig(**saved["config"]), sizes)
            model.weights = RewardWeights(**saved["weights"])
            path = Path(folder) / WEIGHTS_FILE
            model.load_state_dict(load_file(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"Cannot read {path} ({reason}); train the reward model again or restore it.") from error
        return model.eval()


def _reach(prob_next_USK: Tensor, real_USK: Tensor, learned: Tensor) -> Tensor:
    """Probability of getting to each position: going on at all positions before it; 0 where there is no item."""
    prob_next_USK = torch.where(real_USK & learned, prob_next_USK, 1.0)
    before_USK = F.pad(prob_next_USK[..., :-1], (1, 0), value=1.0)
    return before_USK.cumprod(-1) * real_USK


class _Fitting(nn.Module):
    """The reward model as the Trainer wants it: tensors in, a loss out."""

    def __init__(self, model: RewardModel) -> None:
        super().__init__()
        self.model = model
        self.config = PreTrainedConfig()  # the Trainer leaves notes there

    def forward(self, **batch: Tensor) -> Any:
        histories = EventBatch(**{name: batch[name] for name in HISTORY_COLUMNS})
        answers = Answers(**{f.name: batch[f.name] for f in fields(Answers)})
        return _LossOutput(self.model.loss(self.model.predict(histories, batch["item_ids_NK"][:, None]), answers))


class _LossOutput(NamedTuple):
    loss: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _LabelledSessions(SessionDataset):
    """Logged sessions with the labels of their positions."""

    answers: Answers

    def collate(self, model: Any, idx: Sequence[int]) -> dict[str, Tensor]:
        rows = torch.as_tensor(idx)
        histories, answers = self.histories.rows(rows).trimmed(), self.answers.rows(rows)
        return {
            **{name: getattr(histories, name) for name in HISTORY_COLUMNS},
            "item_ids_NK": self.item_ids_NK[rows],
            **{f.name: getattr(answers, f.name) for f in fields(Answers)},
        }


def fit_reward_model(
    catalog: Catalog,
    histories: EventBatch,
    sessions: LoggedSessions,
    config: RewardModelConfig,
    output_dir: Path | str,
    progress: Progress | None = None,
) -> RewardModel:
    """Train a reward model on logged sessions.

    Args:
        catalog: the items.
        histories: N rows, what was known before each session.
        sessions: N sessions with the users' answers; good and bad ones alike.
        config: sizes and training.
        output_dir: gets checkpoints and the model; training goes on from a checkpoint found there.
        progress: called after each step.

    Returns:
        The model in evaluation mode.
    """
    output_dir = Path(output_dir)
    answers = Answers.of(sessions, config.watch_cap_s, config.max_weight)
    item_ids_NK = torch.from_numpy(sessions.item_ids_NK.astype(np.int64))
    dataset = _LabelledSessions(histories=histories, item_ids_NK=item_ids_NK, answers=answers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = RewardModel(config, Sizes.of(catalog, histories, item_ids_NK.shape[1]))
    model.prepare(catalog, answers)
    schedule = PretrainConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        weight_decay=config.weight_decay,
        checkpoint_steps=config.checkpoint_steps,
        seed=config.seed,
    )
    pretrain(_Fitting(model), dataset, schedule, output_dir, progress)  # type: ignore[type-var]
    model.save_pretrained(output_dir)
    return model.eval()


def auc_per_tower(
    model: RewardModel,
    histories: EventBatch,
    sessions: LoggedSessions,
    batch_size: int = 1024,
    only_I: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """How well each tower tells logged answers apart: the area under the ROC curve over positions, or sessions.

    Seconds watched count as positive above their mean; towers whose labels are all alike are left out.

    Args:
        model: the reward model.
        histories: N rows, what was known before each session; of users the model was not trained on.
        sessions: N sessions with the users' answers.
        batch_size: sessions scored at a time.
        only_I: the items whose answers count, such as those that the model hardly knows; sessions' returns, which are
            no item's, are then left out. All count if None.
    """
    if only_I is not None and not only_I.any():
        return {}
    answers = Answers.of(sessions, model.config.watch_cap_s)
    item_ids_NSK = torch.from_numpy(sessions.item_ids_NK.astype(np.int64))[:, None]
    logits, returns = [], []
    with torch.no_grad():
        for start in range(0, len(histories), batch_size):
            rows = slice(start, start + batch_size)
            predictions = model.predict(histories.rows(rows), item_ids_NSK[rows])
            logits.append(predictions.logit_USKO.flatten(0, 2).cpu())
            returns.append(predictions.logit_return_US.flatten().cpu())
    labels_NO, logits_NO = answers.labels_NKO.flatten(0, 1), torch.cat(logits)
    if only_I is not None:
        others_N = torch.from_numpy(~only_I[sessions.item_ids_NK]).flatten()
        labels_NO = labels_NO.masked_fill(others_N[:, None], torch.nan)
    columns = {name: (labels_NO[:, o], logits_NO[:, o]) for o, name in enumerate(TOWERS)}
    columns[WATCH] = (_above_mean(columns[WATCH][0]), columns[WATCH][1])
    if only_I is None:
        columns[RETURN] = (answers.return_N, torch.cat(returns))
    seen = {name: (label[~label.isnan()], logit[~label.isnan()]) for name, (label, logit) in columns.items()}
    return {n: float(roc_auc_score(y, logit)) for n, (y, logit) in seen.items() if len(y.unique()) == 2}


def _above_mean(label: Tensor) -> Tensor:
    return torch.where(label.isnan(), label, (label > label.nanmean()).float())
