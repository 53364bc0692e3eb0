"""Finds the measure of a reward model that best predicts the true reward of the agent aligned to it.

It takes the rank correlation of a measure with the true reward of the aligned agent, over the reward models of a
comparison. Each counts as a mean over the seeds. The interval resamples reward models, because conclusions are about
them. Models of one family, such as those made from one ensemble, are similar, so the interval is rather too short.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` reward models; ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.page import missing
from feedgym.experiments.statistics import NUM_RESAMPLES, correlation_per_user, ends

Float = NDArray[np.float64]

LEAST = 4
"""Least number of reward models; fewer cannot rank a measure."""


def predictors(measure: Mapping[str, Mapping[str, float]], reward: Mapping[str, float], seed: int = 0) -> list[Any]:
    """Rank the measures, the best predictor first.

    Args:
        measure: figures by reward model and name.
        reward: true reward of the agent that was aligned to each model.
        seed: seed for resampling.

    Returns:
        For each measure ``name``, ``models`` (how many have it), and the rank correlation with the reward as ``mean``
        with the ends ``low`` and ``high`` of its 95% interval. Measures are left out if fewer than four models have
        them, or if they are equal for all models.
    """
    names = list(dict.fromkeys(name for figures in measure.values() for name in figures))
    found = []
    for name in names:
        told = [model for model in reward if not missing(measure.get(model, {}).get(name))]
        value_N, reward_N = np.array([measure[m][name] for m in told]), np.array([reward[m] for m in told])
        if len(told) >= LEAST and np.ptp(value_N) > 0 and np.ptp(reward_N) > 0:
            found.append({"name": name, "models": len(told), **rank_correlation(value_N, reward_N, seed)})
    return sorted(found, key=lambda row: -abs(row["mean"]))


def rank_correlation(left_N: Float, right_N: Float, seed: int = 0) -> dict[str, float]:
    """Spearman's correlation with its 95% percentile interval over resampled pairs."""
    idx_RN = np.random.default_rng(seed).integers(len(left_N), size=(NUM_RESAMPLES, len(left_N)))
    resampled_R = correlation_per_user(left_N[idx_RN], right_N[idx_RN], ranks=True)
    told_R = resampled_R[~np.isnan(resampled_R)]  # a resample of copies of one model has no ranks
    return {"mean": float(correlation_per_user(left_N[None], right_N[None], ranks=True)[0]), **ends(told_R)}
