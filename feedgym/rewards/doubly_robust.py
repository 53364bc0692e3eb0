"""Doubly robust training: logged responses correct those that models of other users impute for random sessions.

A log shows users the items that its system expected them to like. The loss should be over items shown regardless of
the user. Two estimates of it are common. Imputing responses for such items is as biased as the imputing model.
Weighting logged responses by inverse propensities has a high variance. Doubly robust (Wang et al., Doubly robust joint
learning, ICML 2019, eq. 9; Dudik, Langford and Li, arXiv:1103.4601):

    E over drawn items of loss(f, imputed)  +  E over logged items of w [loss(f, response) - loss(f, imputed)],

which is unbiased if the imputed responses or the weights are right. The cross-entropy is linear in its label, so the
bracket is -(response - imputed) times the logit f.

Deviations from Wang et al.: the imputing models are not trained jointly. Each is fitted beforehand to one half of the
users and imputes for the other half. So none has seen the responses that it imputes. Items are drawn by their shares of
all exposures, as the stabilised weights require (:func:`feedgym.rewards.answers.propensity_weights`). They count by the
probability that a user would reach them.

Axes beyond the legend of :mod:`feedgym.data.events`: ``O`` towers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from feedgym.agents.sharing import part_of_mean
from feedgym.data.batches import TensorRows
from feedgym.data.events import LoggedSessions


@dataclass(frozen=True, kw_only=True, eq=False)
class Imputed(TensorRows):
    """Predictions of a model of other users for N logged sessions (s = 0) and for random sessions drawn for each.

    Attributes:
        item_ids_NSK: int64 sessions, -1 after the last item.
        prob_NSKO: float32 probabilities of the towers' labels.
        reach_NSK: float32 probabilities that the user reaches the position.
        return_NS: float32 probabilities of a return within a day.
    """

    item_ids_NSK: Tensor
    prob_NSKO: Tensor
    reach_NSK: Tensor
    return_NS: Tensor


def doubly_robust_bce(
    logits_NSO: Tensor, labels_NO: Tensor, weight_N: Tensor, imputed_NSO: Tensor, reach_NS: Tensor
) -> Tensor:
    """Doubly robust cross-entropy [O] of N positions, per position that would be reached.

    Args:
        logits_NSO: logits of the logged item at s = 0, and of drawn ones.
        labels_NO: the user's responses to the logged item; NaN if not observed.
        weight_N: inverse propensity weights of the logged items.
        imputed_NSO: imputed probabilities of the labels.
        reach_NS: probability that the user reaches the position; for the logged item the label shows it.
    """
    drawn_NSO = F.binary_cross_entropy_with_logits(logits_NSO[:, 1:], imputed_NSO[:, 1:], reduction="none")
    imputed_O = (drawn_NSO * reach_NS[:, 1:, None]).mean(1).sum(0)
    surprise_NO = torch.where(labels_NO.isnan(), 0.0, labels_NO.nan_to_num() - imputed_NSO[:, 0])
    correction_O = -(weight_N[:, None] * surprise_NO * logits_NSO[:, 0]).sum(0)
    reach = reach_NS[:, 1:].mean(1).sum()
    return part_of_mean((imputed_O + correction_O) / reach.clamp_min(1e-6), reach)


def drawn_sessions(sessions: LoggedSessions, num: int, seed: int) -> NDArray[np.int64]:
    """Draw sessions of distinct items by their shares of all exposures [N, num, K], as long as the logged ones.

    Args:
        sessions: N logged sessions.
        num: number of sessions to draw for each.
        seed: seed of the draws.

    Raises:
        ValueError: fewer items were shown than a session has.
    """
    items_NK = sessions.item_ids_NK.astype(np.int64)
    count_I = np.bincount(items_NK[items_NK >= 0]).astype(np.float64)
    length, rng = items_NK.shape[1], np.random.default_rng(seed)
    if (shown := int((count_I > 0).sum())) < length:
        raise ValueError(
            f"imputed={num} draws sessions of {length} different items, and the log shows {shown}; set it to 0."
        )
    shape = (len(items_NK), num, length)
    drawn_NSK = rng.choice(len(count_I), size=shape, p=count_I / count_I.sum())
    while (again_NSK := _repeated(drawn_NSK)).any():
        drawn_NSK[again_NSK] = rng.choice(len(count_I), size=int(again_NSK.sum()), p=count_I / count_I.sum())
    return np.where(items_NK[:, None] >= 0, drawn_NSK, -1)


def _repeated(item_ids_NSK: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask of the items that already appeared earlier in their session."""
    same_NSKK = item_ids_NSK[..., :, None] == item_ids_NSK[..., None, :]
    return np.tril(same_NSKK, -1).any(axis=-1)
