"""Compares methods over seeds: which differences are significant, and aggregates that one lucky run does not decide.

A seed makes its own log, base and reward model, and all methods of a seed share them. So differences are taken seed by
seed: a run is paired with the other methods' runs of its seed. More users do not help, because figures differ between
seeds; intervals are over runs.

The aggregates are those of rliable (Agarwal et al., arXiv:2108.13264). Deviations: Runs of one seed are drawn together
for all methods, while rliable treats them as unrelated. Random numbers are keyed by an argument, while rliable draws
from NumPy's global generator. The worst run is reported too, as the interquartile mean hides it.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` runs, one per seed; ``M`` tasks, such as an agent in a
world; ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.statistics import LEVEL, NUM_RESAMPLES, ends, over_runs

Float = NDArray[np.float64]


def aggregate(value_NM: Float, seed: int = 0) -> dict[str, float]:
    """The interquartile mean over all runs of all tasks with its 95% stratified bootstrap interval, and the worst run.

    Values of different tasks must be comparable: normalise them, for example by the gap from the base to the oracle.

    Returns:
        ``mean`` (the interquartile mean), ``low``, ``high``, ``worst``.
    """
    resampled_R = interquartile_mean(_resampled(value_NM, _drawn_runs(value_NM, seed)))
    return {"mean": float(interquartile_mean(value_NM)), **ends(resampled_R), "worst": float(value_NM.min())}


def interquartile_mean(value_XNM: Float) -> Float:
    """Mean of the middle half of all runs of all tasks, which are the last two axes."""
    from scipy.stats import trim_mean

    return trim_mean(value_XNM.reshape(*value_XNM.shape[:-2], -1), 0.25, axis=-1)


def probability_of_improvement(ours_NM: Float, theirs_NM: Float, seed: int = 0) -> dict[str, float]:
    """Probability that a run of ours is above one of theirs, ties counting half: mean over tasks, with a 95% interval.

    Args:
        ours_NM: runs by task.
        theirs_NM: runs of the same seeds.
        seed: seed for resampling seeds.
    """
    idx_RNM = _drawn_runs(ours_NM, seed)
    above_R = _above(_resampled(ours_NM, idx_RNM), _resampled(theirs_NM, idx_RNM))
    return {"mean": float(_above(ours_NM, theirs_NM)), **ends(above_R)}


def against(control: str, values: Mapping[str, Float]) -> dict[str, dict[str, Any]]:
    """Compare every method with a control, seed by seed.

    Args:
        control: name of the control among the methods.
        values: the methods' figures by seed, float64 [N], for the same seeds in the same order.

    Returns:
        By method: the difference's ``mean``, ``low`` and ``high`` by Student's t and ``runs``
        (:func:`feedgym.experiments.statistics.over_runs`), ``p`` (two-sided) and ``p_holm``, corrected for the number
        of methods.
    """
    others = [name for name in values if name != control]
    differences = {name: np.asarray(values[name], float) - values[control] for name in others}
    p = {name: paired_p(difference_N) for name, difference_N in differences.items()}
    corrected = dict(zip(others, holm(np.array([p[name] for name in others])), strict=True))
    return {name: {**over_runs(differences[name]), "p": p[name], "p_holm": float(corrected[name])} for name in others}


def in_bold(values: Mapping[str, Float], level: float = 1 - LEVEL) -> set[str]:
    """The methods that no other one beats, as far as the seeds can show; empty if they show no difference.

    One method beats another if it is higher by a paired t-test at ``level``. The test is corrected by Holm for all
    pairs of methods, because the best of many is high by chance too.
    """
    pairs = list(permutations(values, 2))
    differences = [np.asarray(values[above], float) - values[below] for above, below in pairs]
    # Each pair appears twice, once per direction: one-sided p of both directions are as many tests as two-sided ones.
    p = np.array([paired_p(d) / 2 if d.mean() > 0 else 1.0 for d in differences])
    beaten = {below for (_, below), value in zip(pairs, holm(p), strict=True) if value < level}
    return set(values) - beaten if beaten else set()


def paired_p(difference_N: Float) -> float:
    """Two-sided p of Student's t-test that paired differences are 0 on average; 1 if there is only one run."""
    from scipy.stats import t as student

    runs, mean = len(difference_N), float(difference_N.mean())
    if runs < 2 or mean == 0:
        return 1.0
    spread = float(difference_N.std(ddof=1)) / runs**0.5
    return 0.0 if spread == 0 else float(2 * student.sf(abs(mean) / spread, runs - 1))


def holm(p_X: Float) -> Float:
    """Correct p values for their number: each becomes the least level at which it is significant (Holm 1979)."""
    order = np.argsort(p_X, kind="stable")
    stepped = np.maximum.accumulate(p_X[order] * np.arange(len(p_X), 0, -1))
    corrected = np.empty(len(p_X))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def _drawn_runs(value_NM: Float, seed: int) -> NDArray[np.int64]:
    """Draw the runs of each resample, separately within each task."""
    shape = (NUM_RESAMPLES, *value_NM.shape)
    return np.random.default_rng(seed).integers(len(value_NM), size=shape)


def _resampled(value_NM: Float, idx_RNM: NDArray[np.int64]) -> Float:
    return np.take_along_axis(np.asarray(value_NM, float)[None], idx_RNM, axis=1)


def _above(ours_XNM: Float, theirs_XNM: Float) -> Float:
    """Share of pairs of runs in which ours is higher, with ties counting half: the mean over tasks."""
    ours, theirs = ours_XNM[..., :, None, :], theirs_XNM[..., None, :, :]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(-3, -2, -1))
