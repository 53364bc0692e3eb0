"""Measures how well a ranker's probabilities order and fit users' behaviour, per task, with intervals over users.

AUC is over all candidates together. GAUC is the mean of the users' own AUCs, weighted by their candidates, over users
who have both outcomes. Normalised entropy is the log loss over that of the base rate (He et al., ADKDD 2014): 1 is no
better than the base rate. Calibration is the predicted over the observed rate: 1 is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from feedgym.data.events import FloatArray
from feedgym.experiments.statistics import Figure, Ratio

CELLS = 2**24
"""Weights of resamplings and candidates held at a time."""
EPS = 1e-7


@dataclass(frozen=True, eq=False)
class AUC:
    """The area under the ROC curve of N candidates of U users; ties count half.

    Attributes:
        label_N: bool.
        score_N: any score that preserves the order.
        user_N: int64 users 0..U-1.
        num_users: U.
    """

    label_N: NDArray[np.bool_]
    score_N: NDArray[np.float64]
    user_N: NDArray[np.int64]
    num_users: int

    def mean(self) -> float:
        """The area."""
        return float(self.resampled(np.ones((1, self.num_users), np.float32))[0])

    def resampled(self, counts_RU: FloatArray) -> NDArray[np.float64]:
        """The area, where each user's candidates count as often as the user was drawn; NaN without both outcomes."""
        order_N = np.argsort(self.score_N, kind="stable")
        score_N, label_N, user_N = self.score_N[order_N], self.label_N[order_N], self.user_N[order_N]
        starts = np.flatnonzero(np.append(True, np.diff(score_N) != 0))  # first of equal scores
        size = max(1, CELLS // max(len(score_N), 1))
        blocks = (counts_RU[low : low + size] for low in range(0, len(counts_RU), size))
        return np.concatenate([_weighted_auc(block[:, user_N], label_N, starts) for block in blocks])


def _weighted_auc(weight_RN: NDArray, label_N: NDArray, starts: NDArray) -> NDArray[np.float64]:
    """Areas of candidates sorted by score; those from one of ``starts`` to the next have the same score."""
    positive_RG = np.add.reduceat(weight_RN * label_N, starts, axis=1)
    negative_RG = np.add.reduceat(weight_RN * ~label_N, starts, axis=1)
    below_RG = negative_RG.cumsum(axis=1) - negative_RG / 2
    pairs_R = positive_RG.sum(axis=1) * negative_RG.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive_RG * below_RG).sum(axis=1) / np.where(pairs_R > 0, pairs_R, np.nan)


def grouped_auc(label_N: NDArray, score_N: NDArray, user_N: NDArray, num_users: int) -> Ratio:
    """GAUC: users' AUCs, weighted by their number of candidates; users with only one outcome are left out."""
    order_N = np.lexsort((score_N, user_N))
    user_N, score_N, label_N = user_N[order_N], score_N[order_N], label_N[order_N].astype(float)
    # Ranks within users: those among all, since a user's candidates are adjacent, minus the candidates of users before.
    new_N = np.append(True, (np.diff(user_N) != 0) | (np.diff(score_N) != 0)) if len(user_N) else np.zeros(0, bool)
    count_U = np.bincount(user_N, minlength=num_users)
    rank_N = rankdata(new_N.cumsum(), method="average") - (count_U.cumsum() - count_U)[user_N]
    positive_U = np.bincount(user_N, label_N, num_users)
    rank_sum_U = np.bincount(user_N, label_N * rank_N, num_users)
    pairs_U = positive_U * (count_U - positive_U)
    area_U = (rank_sum_U - positive_U * (positive_U + 1) / 2) / np.maximum(pairs_U, 1)
    weight_U = np.where(pairs_U > 0, count_U, 0).astype(float)
    return Ratio(area_U * weight_U, weight_U)


@dataclass(frozen=True, eq=False)
class NormalizedEntropy:
    """Log loss over the entropy of the base rate.

    Attributes:
        loss_U: sum of the log losses of a user's candidates.
        positive_U: candidates with the outcome.
        count_U: candidates.
    """

    loss_U: NDArray[np.float64]
    positive_U: NDArray[np.float64]
    count_U: NDArray[np.float64]

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.count_U)

    def mean(self) -> float:
        """The ratio of all users."""
        return float(self.resampled(np.ones((1, self.num_users), np.float32))[0])

    def resampled(self, counts_RU: FloatArray) -> NDArray[np.float64]:
        """The ratio under resamplings of the users; NaN where the outcome always or never happened."""
        count_R = counts_RU @ self.count_U
        rate_R = counts_RU @ self.positive_U / np.maximum(count_R, EPS)
        both_R = (rate_R > 0) & (rate_R < 1)
        rate_R = np.where(both_R, rate_R, 0.5)
        entropy_R = -(rate_R * np.log(rate_R) + (1 - rate_R) * np.log(1 - rate_R))
        return np.where(both_R, counts_RU @ self.loss_U / np.maximum(count_R, EPS) / entropy_R, np.nan)


def task_figures(
    task: str, label_N: NDArray[np.bool_], prob_N: NDArray[np.float64], user_N: NDArray[np.int64], num_users: int
) -> dict[str, Figure]:
    """auc, gauc, logloss, ne and calibration of a behaviour, each named ``METRIC.TASK``.

    Args:
        task: the behaviour.
        label_N: true if it happened to each of N candidates.
        prob_N: predicted probabilities.
        user_N: int64 users 0..U-1.
        num_users: U.
    """
    prob_N = np.clip(prob_N.astype(np.float64), EPS, 1 - EPS)
    loss_N = -np.where(label_N, np.log(prob_N), np.log1p(-prob_N))

    def total_U(values_N: NDArray | None = None) -> NDArray[np.float64]:
        return np.bincount(user_N, values_N, num_users).astype(np.float64)

    loss_U, positive_U, count_U = total_U(loss_N), total_U(label_N.astype(float)), total_U()
    return {
        f"auc.{task}": AUC(label_N, prob_N, user_N, num_users),
        f"gauc.{task}": grouped_auc(label_N, prob_N, user_N, num_users),
        f"logloss.{task}": Ratio(loss_U, count_U),
        f"ne.{task}": NormalizedEntropy(loss_U, positive_U, count_U),
        f"calibration.{task}": Ratio(total_U(prob_N), positive_U),
    }


def watch_figures(
    fraction_N: NDArray[np.float64], foretold_N: NDArray[np.float64], user_N: NDArray[np.int64], num_users: int
) -> dict[str, Figure]:
    """mae.watch and calibration.watch of the watched fraction, clipped at 1."""
    fraction_N = np.minimum(fraction_N.astype(np.float64), 1)
    error_U = np.bincount(user_N, np.abs(fraction_N - foretold_N), num_users)
    return {
        "mae.watch": Ratio(error_U, np.bincount(user_N, minlength=num_users).astype(np.float64)),
        "calibration.watch": Ratio(
            np.bincount(user_N, foretold_N, num_users), np.bincount(user_N, fraction_N, num_users)
        ),
    }
