"""Measures a reward's scores of sessions: against users' logged responses, and against true values.

Offline figures need only held-out users of a log. Figures against the truth are for study. They use sessions that the
base draws, that an aligned agent draws and that a search finds. Rewards must score sessions that no log has shown.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` sessions; ``G`` groups of sessions with similar scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from feedgym.data.batches import Histories
from feedgym.data.events import LoggedSessions
from feedgym.envs.logging_policy import RANDOM, LoggingConfig, rules_of
from feedgym.envs.luck import LOG_GROUP, user_seeds
from feedgym.envs.truth import RETURN_S, RewardWeights, brought_at_once
from feedgym.experiments.align.best_of_n import best_of_n
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.scoring import scores_of
from feedgym.experiments.statistics import within_user_correlation
from feedgym.protocols import SessionReward

Float = NDArray[np.float64]

GROUPS = 10
"""Number of groups of a reliability curve."""


def logged_reward(sessions: LoggedSessions, weights: RewardWeights) -> Float:
    """Reward of logged sessions, in the units of the true reward [N]; NaN if the return counts and is unknown."""
    seen_NK = sessions.examined_NK & (sessions.item_ids_NK >= 0)
    value_NK = brought_at_once(sessions.behaviours_NKB, sessions.watch_s_NK, weights)
    value_N = (value_NK * seen_NK).sum(axis=1)
    if not weights.return_24h or np.isnan(sessions.return_gap_s_N).all():
        return value_N
    returned_N = np.where(np.isnan(sessions.return_gap_s_N), np.nan, sessions.return_gap_s_N <= RETURN_S)
    return value_N + weights.return_24h * returned_N


def reliability(score_N: Float, value_N: Float, groups: int = GROUPS) -> list[dict[str, float]]:
    """Group sessions by score, from lowest to highest, with mean ``score``, mean ``value`` and ``share`` per group."""
    order_N = np.argsort(score_N, kind="stable")
    parts = [part for part in np.array_split(order_N, groups) if len(part)]
    return [
        {"score": score_N[part].mean(), "value": value_N[part].mean(), "share": len(part) / len(score_N)}
        for part in parts
    ]


def calibration_error(curve: Sequence[dict[str, float]]) -> float:
    """Expected calibration error: distance between scores and outcomes, mean over the groups of a curve."""
    return float(sum(group["share"] * abs(group["score"] - group["value"]) for group in curve))


def pair_accuracy(score_US: Float, truth_US: Float) -> float:
    """Share of the pairs of a user's sessions that scores order as the truth does; equal scores count half.

    Pairs of equal truth, such as a session drawn twice, do not count; NaN if there are no others.
    """
    upper = np.triu_indices(score_US.shape[1], 1)
    right = pairs = 0.0
    for score_S, truth_S in zip(score_US, truth_US, strict=True):
        truth_P = np.sign(np.subtract.outer(truth_S, truth_S)[upper])
        score_P = np.sign(np.subtract.outer(score_S, score_S)[upper])
        right += ((1 + score_P * truth_P) / 2)[truth_P != 0].sum()
        pairs += (truth_P != 0).sum()
    return right / pairs if pairs else float("nan")


def served_at_random(config: AlignConfig, sessions: LoggedSessions) -> NDArray[np.bool_]:
    """Mask of the sessions of a simulated log that were served at random [N]; users need all their visits, in order."""
    visit_N = np.arange(len(sessions)) - np.searchsorted(sessions.user_idx_N, sessions.user_idx_N)
    seed_N = user_seeds(config.log.users, config.seed, LOG_GROUP)[sessions.user_idx_N]
    return rules_of(seed_N, visit_N, LoggingConfig()) == RANDOM


def against_log(
    reward: SessionReward, histories: Histories, sessions: LoggedSessions, weights: RewardWeights, where: str = "log"
) -> Any:
    """Measure offline how a reward's scores of held-out sessions agree with users' responses.

    Returns:
        ``figures``: ``log_auc``, how well scores separate sessions above the mean from others; ``log_rank``, their rank
        correlation with the outcomes; ``log_ece``, the calibration error in units of the reward. ``curve``: the
        reliability curve. The names begin with ``where``.
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    known_N = np.flatnonzero(~np.isnan(logged_reward(sessions, weights)))
    histories, sessions = histories.rows(torch.from_numpy(known_N)), sessions.rows(known_N)
    item_ids_NSK = torch.from_numpy(sessions.item_ids_NK.astype(np.int64))[:, None]
    score_N, value_N = scores_of(reward, histories, item_ids_NSK)[:, 0], logged_reward(sessions, weights)
    curve, good_N = reliability(score_N, value_N), value_N > value_N.mean()
    figures = {
        "auc": float(roc_auc_score(good_N, score_N)) if 0 < good_N.mean() < 1 else float("nan"),
        "rank": float(spearmanr(score_N, value_N).statistic),
        "ece": calibration_error(curve),
    }
    return {"figures": {f"{where}_{name}": value for name, value in figures.items()}, "curve": curve}


def against_truth(score_US: Float, truth_half_US2: Float, where: str) -> Any:
    """Measure how the scores of users' sessions agree with their true values.

    Args:
        score_US: the scores.
        truth_half_US2: true values by two halves of the simulated responses.
        where: name of the set of sessions, for the figures' names.

    Returns:
        ``figures``: ``WHERE_pairs`` (:func:`pair_accuracy`); ``WHERE_rank``, the rank correlation within users;
        ``WHERE_best``, the true value of each user's best session by the score; and ``WHERE_excess``, mean score minus
        mean truth. ``curve``: the reliability curve.
    """
    truth_US = truth_half_US2.mean(axis=2)
    figures = {
        "pairs": pair_accuracy(score_US, truth_US),
        "rank": within_user_correlation(score_US, truth_US, ranks=True),
        "best": float(best_of_n(score_US, truth_US, [score_US.shape[1]]).mean()),
        "excess": float(score_US.mean() - truth_US.mean()),
    }
    curve = reliability(score_US.ravel(), truth_US.ravel())
    return {"figures": {f"{where}_{name}": value for name, value in figures.items()}, "curve": curve}
