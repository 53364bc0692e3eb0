"""The session reward model: predicts the value of a whole session to a user, learned only from logged responses.

OneRec's reward model (arXiv:2502.18965, §3). Every item of the session attends to the user's history (target
attention), the items attend to each other, and towers predict the user's responses. The score sums the towers in the
units of the true reward, :class:`feedgym.envs.truth.RewardWeights`: one point per minute watched, half a point per
like.

Deviations from the paper:
    - The towers predict position by position, and self-attention is causal: responses to an item can depend on earlier
      items, never on later ones. The sum over the session comes after the towers, not before.
    - A tower for going on gives the probability that position k is reached at all. Only reached items earn rewards, so
      the score is sum_k P(k reached) · E[reward of k | k reached]. This is an exact factorisation, and makes early
      items count more than late ones. The paper scores all items of a session equally.
    - Towers for every behaviour, for seconds watched and for the return within a day; the paper has session watch time,
      view, follow and like. Watch time is a soft label, seconds over ``watch_cap_s``.
    - Each attention marks the keys with the same item, topic or creator as the query, by one learned bias per head.
    - ``p_score`` predicts one learned score (OneRec's technical report, arXiv:2506.13695): a network over the
      hidden vectors of the towers learns all signs of liking jointly. Deviations from it: scores per position,
      summed by P(reached). A hate is not a sign of liking, nor is a return, which belongs to no item.
    - Instead of target attention a whole ranker may read the history (``backbone``,
      :mod:`feedgym.rewards.backbone`); the layers above, reach and towers, are the same.

Axes beyond the legend of :mod:`feedgym.data.events`: ``O`` towers, ``Q`` items of all sessions of a user in one row.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feedgym.agents.layers.history import EventFeatures, RequestTokens
from feedgym.data.batches import EventBatch, SessionBatch
from feedgym.data.events import BEHAVIOURS, Catalog
from feedgym.data.parquet import replacing
from feedgym.envs.truth import RewardWeights
from feedgym.rewards.answers import LIKES, NEXT, TOWERS, Answers, observed_bce
from feedgym.rewards.backbone import RankerBackbone
from feedgym.rewards.config import RewardModelConfig
from feedgym.rewards.doubly_robust import Imputed, doubly_robust_bce
from feedgym.rewards.network import FusedTowers, ItemVectors, RelationAttention, SessionLayer, Sizes, Tower

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "reward_model.json"


class Predictions(NamedTuple):
    """Predictions of the towers for S sessions per user.

    Attributes:
        logit_USKO: one logit per position and tower of TOWERS, given that the position is reached; with ``p_score`` one
            more, the joint one.
        prob_reach_USK: probability that the user reaches the position; 0 if there is no item.
        logit_return_US: logit of a return within a day.
    """

    logit_USKO: Tensor
    prob_reach_USK: Tensor
    logit_return_US: Tensor


class RewardModel(nn.Module):
    """A :class:`feedgym.protocols.SessionReward` learned from a log; call it on histories and sessions.

    Args:
        config: options of the model.
        sizes: facts about the data.

    Attributes:
        weights: weights of the parts of the score; :meth:`with_weights` changes them for the same towers.
        occurs_O: bool, whether the log has each tower's label at all; the others are left out of the score.
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
        if config.backbone == "attention":
            self.attention = RelationAttention(width, config.heads)
        else:
            self.ranker = RankerBackbone(config, sizes)
        self.fuse = nn.Sequential(nn.SiLU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width))
        self.fuse_item = nn.Linear(3 * width, 2 * width)
        self.fuse_user = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Embedding(sizes.session_length, width)
        self.layers = nn.ModuleList(SessionLayer(width, config.heads, config.dropout) for _ in range(config.layers))
        self.towers = (FusedTowers if config.p_score else Tower)(width, config.dropout, len(TOWERS))
        self.return_tower = Tower(2 * width, config.dropout, 1)
        self.register_buffer("occurs_O", torch.ones(len(TOWERS), dtype=torch.bool))
        self.register_buffer("return_observed", torch.ones((), dtype=torch.bool))

    def forward(self, histories: EventBatch, sessions: SessionBatch) -> Tensor:
        """Expected reward [U, S] of S sessions for each of U users, in the units of the true reward."""
        with torch.no_grad():
            score_US = self.score(self.predict(histories, sessions.item_ids_USK))
        return score_US.to(sessions.item_ids_USK.device)

    def score(self, predictions: Predictions) -> Tensor:
        """Sum the towers' predictions with the weights of the reward; or sum the joint ones."""
        num_towers = len(TOWERS)
        if self.config.p_score:
            return (predictions.prob_reach_USK * predictions.logit_USKO[..., num_towers].sigmoid()).sum(-1)
        prob_USKO = predictions.logit_USKO.sigmoid() * self.occurs_O
        weights = self.weights
        weight_O = [getattr(weights, name) for name in BEHAVIOURS]
        weight_O += [weights.watch_minutes * self.config.watch_cap_s / 60, 0.0]
        value_USK = prob_USKO @ prob_USKO.new_tensor(weight_O)
        prob_return_US = predictions.logit_return_US.sigmoid() * self.return_observed
        return (predictions.prob_reach_USK * value_USK).sum(-1) + weights.return_24h * prob_return_US

    def predict(self, histories: EventBatch, item_ids_USK: Tensor) -> Predictions:
        """Predict by the towers; the history is encoded once per user, whatever the number of sessions.

        Raises:
            ValueError: a session or history is longer than those of the training data, or an item is unknown.
        """
        self._check(item_ids_USK)
        device = self.occurs_O.device  # training may have left the model on an accelerator
        histories, item_ids_USK = self._known(histories.to(device)), item_ids_USK.to(device)
        events_UTD, user_UD = self._encode(histories)
        x_USKD = self._meet(histories, events_UTD, user_UD, item_ids_USK)
        logit_USKO = self.towers(x_USKD)
        real_USK = item_ids_USK >= 0
        goes_on = TOWERS.index(NEXT)
        prob_reach_USK = _reach(logit_USKO[..., goes_on].sigmoid(), real_USK, self.occurs_O[goes_on])
        # The return is learned from the content of the session, not from how far the user gets.
        pooled_USD = (prob_reach_USK.detach()[..., None] * x_USKD).sum(2)
        both = torch.cat([pooled_USD, user_UD[:, None].expand_as(pooled_USD)], dim=-1)
        return Predictions(logit_USKO, prob_reach_USK, self.return_tower(both).squeeze(-1))

    def _known(self, histories: EventBatch) -> EventBatch:
        """Histories with one common value for all profile values that did not occur in training."""
        limit_F = torch.tensor(self.sizes.profile_sizes, device=histories.profile_UF.device)
        return replace(histories, profile_UF=histories.profile_UF.clamp_max(limit_F))

    def _encode(self, histories: EventBatch) -> tuple[Tensor, Tensor]:
        """Events [U, T, D] and one vector per user [U, D]."""
        mask_UT = histories.mask_UT
        items_UTD = self.items(histories.item_ids_UT.masked_fill(~mask_UT, 0))
        events_UTD = self.norm_events(items_UTD + self.events(histories)).masked_fill(~mask_UT[..., None], 0.0)
        mean_UD = events_UTD.sum(1) / mask_UT.sum(1, keepdim=True).clamp_min(1)
        return events_UTD, self.user(torch.cat([mean_UD, self.request(histories).sum(1)], dim=-1))

    def _attended(self, histories: EventBatch, events_UTD: Tensor, items_UQD: Tensor, ids_UQ: Tensor) -> Tensor:
        """Output of target attention, or of the ranker, for each item [U, Q, D]."""
        if self.config.backbone != "attention":
            return self.ranker(histories, ids_UQ)
        relations = self.items.relations(ids_UQ, histories.item_ids_UT.masked_fill(~histories.mask_UT, 0))
        return self.attention(items_UQD, events_UTD, relations, histories.mask_UT[:, None, None])

    def _meet(self, histories: EventBatch, events_UTD: Tensor, user_UD: Tensor, item_ids_USK: Tensor) -> Tensor:
        """Vectors of the session's items, combined with the history and each other, [U, S, K, D]."""
        num_users, num_samples, length = item_ids_USK.shape
        ids_UQ = item_ids_USK.clamp_min(0).flatten(1)
        items_UQD = self.norm_items(self.items(ids_UQ))
        attended_UQD = self._attended(histories, events_UTD, items_UQD, ids_UQ)
        joined = self.fuse_item(torch.cat([items_UQD, attended_UQD, items_UQD * attended_UQD], dim=-1))
        x_UQD = items_UQD + self.fuse(joined + self.fuse_user(user_UD)[:, None])
        x_NKD = x_UQD.view(num_users * num_samples, length, -1) + self.position.weight[:length]
        ids_NK, real_NK = ids_UQ.view(-1, length), item_ids_USK.reshape(-1, length) >= 0
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
        """Binary cross-entropy of all towers over observed responses; sessions are at S = 1.

        The joint score learns all signs of liking that occur: its loss is the sum over all of them.
        """
        logits_NO, labels_NO = predictions.logit_USKO.squeeze(1).flatten(0, 1), answers.labels_NKO.flatten(0, 1)
        weight_N = answers.weight_NK.flatten()
        towers_O = observed_bce(logits_NO[:, : len(TOWERS)], labels_NO, weight_N)
        returns = observed_bce(predictions.logit_return_US, answers.return_N[:, None], answers.weight_NK[:, -1])
        loss = (towers_O * self.occurs_O).sum() + returns[0]
        if self.config.p_score:
            fused_NO = logits_NO[:, len(TOWERS) :].expand(-1, len(TOWERS))
            likes_O = self.occurs_O & self.occurs_O.new_tensor([name in LIKES for name in TOWERS])
            loss = loss + (observed_bce(fused_NO, labels_NO, weight_N) * likes_O).sum()
        return loss

    def doubly_robust_loss(
        self, predictions: Predictions, answers: Answers, imputed: Imputed, times_N: Tensor
    ) -> Tensor:
        """The loss of all towers over sessions as if drawn regardless of the user; s = 0 is the logged session.

        See :func:`feedgym.rewards.doubly_robust.doubly_robust_bce`. Row n counts ``times_N`` times.
        """
        reach_NSK = imputed.reach_NSK * times_N[:, None, None]
        towers_O = doubly_robust_bce(
            predictions.logit_USKO.transpose(1, 2).flatten(0, 1),
            answers.labels_NKO.flatten(0, 1),
            answers.weight_NK.flatten(),
            imputed.prob_NSKO.transpose(1, 2).flatten(0, 1),
            reach_NSK.transpose(1, 2).flatten(0, 1),
        )
        returns = doubly_robust_bce(
            predictions.logit_return_US[..., None],
            answers.return_N[:, None],
            answers.weight_NK[:, -1],
            imputed.return_NS[..., None],
            times_N[:, None].expand_as(imputed.return_NS),
        )
        return (towers_O * self.occurs_O).sum() + returns[0] * self.return_observed

    def prepare(self, catalog: Catalog, answers: Answers) -> None:
        """Copy the catalogue, and let each tower start at the rate of its label in the log."""
        self.items.fill(catalog)
        if self.config.backbone != "attention":
            self.ranker.fill(catalog)
        rate_O, return_rate = answers.labels_NKO.flatten(0, 1).nanmean(0), answers.return_N.nanmean()
        self.occurs_O.copy_(rate_O > 0)
        self.occurs_O[TOWERS.index(NEXT)] = ~rate_O[TOWERS.index(NEXT)].isnan()  # a rate of 0 is a valid rate too
        self.return_observed.copy_(~return_rate.isnan())
        self.towers.start_at(rate_O)
        self.return_tower.start_at(return_rate)

    def with_weights(self, weights: RewardWeights) -> Self:
        """The same towers, shared, with other weights of the reward: only clicks, for instance."""
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
    def described(cls, folder: Path | str) -> Self:
        """An untrained model with the options and sizes of the one saved in ``folder``."""
        saved = json.loads((Path(folder) / CONFIG_FILE).read_text())
        sizes = Sizes(**saved["sizes"] | {"profile_sizes": tuple(saved["sizes"]["profile_sizes"])})
        model = cls(RewardModelConfig(**saved["config"]), sizes)
        model.weights = RewardWeights(**saved["weights"])
        return model

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Load the model saved in ``folder``, in evaluation mode.

        Raises:
            ValueError: a file is missing or damaged.
        """
        with unreadable_as(Path(folder) / CONFIG_FILE):
            model = cls.described(folder)
        with unreadable_as(Path(folder) / WEIGHTS_FILE):
            model.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))
        return model.eval()


@contextmanager
def unreadable_as(path: Path) -> Iterator[None]:
    """Name the missing or damaged file of a saved model in a one-line error."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"Cannot read {path} ({reason}); train the reward model again or restore it.") from error


def _reach(prob_next_USK: Tensor, real_USK: Tensor, learned: Tensor) -> Tensor:
    """Probability of reaching each position, by going on at all positions before it; 0 if there is no item."""
    prob_next_USK = torch.where(real_USK & learned, prob_next_USK, 1.0)
    before_USK = F.pad(prob_next_USK[..., :-1], (1, 0), value=1.0)
    return before_USK.cumprod(-1) * real_USK
