"""Means, lifts and their bootstrap intervals over users.

Every metric is a ratio of two sums over users (likes over items seen, reward over visits). So a user who came back more
often counts more, and a user without visits does not count. Users are resampled, never visits, because a user's visits
depend on each other. Lifts resample both agents' users together, because both served the same users with the same
random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from feedgym.data.events import FloatArray

NUM_RESAMPLES = 2000
LEVEL = 0.95


class Figure(Protocol):
    """A figure of U users that can be computed again for resampled ones."""

    @property
    def num_users(self) -> int:
        """U."""
        ...

    def mean(self) -> float:
        """Compute the figure for all users."""
        ...

    def resampled(self, counts_RU: FloatArray) -> np.ndarray:
        """Compute the figure for resamples of the users."""
        ...


@dataclass(frozen=True, eq=False)
class Ratio:
    """A metric of U users as numerator and denominator, each float64 [U]."""

    numerator_U: np.ndarray
    denominator_U: np.ndarray

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.numerator_U)

    def mean(self) -> float:
        """Sum of the numerators over the sum of the denominators."""
        return float(self.numerator_U.sum() / max(self.denominator_U.sum(), 1e-12))

    def resampled(self, counts_RU: FloatArray) -> np.ndarray:
        """The mean for each of R resamples of the users."""
        return (counts_RU @ self.numerator_U) / np.maximum(counts_RU @ self.denominator_U, 1e-12)


@dataclass(frozen=True, eq=False)
class Series:
    """A metric of U users at each of V visits, as numerator and denominator, each float64 [U, V]."""

    numerator_UV: np.ndarray
    denominator_UV: np.ndarray

    def mean(self) -> np.ndarray:
        """Sum of the numerators over the sum of the denominators, [V]; NaN if no user had a visit."""
        return _divided(self.numerator_UV.sum(axis=0), self.denominator_UV.sum(axis=0))

    def resampled(self, counts_RU: FloatArray) -> np.ndarray:
        """The means [R, V] for resamples of the users; NaN if none of the drawn users had a visit."""
        return _divided(counts_RU @ self.numerator_UV, counts_RU @ self.denominator_UV)


def _divided(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def resampling_counts(num_users: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Number of times each user is drawn in each of R bootstrap resamples: float64 [R, U], rows sum to U."""
    # Drawing U users with replacement is one multinomial draw of their counts, and a resampled sum then one product.
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_users, np.full(num_users, 1 / num_users), size=num_resamples).astype(np.float64)


def interval(metric: Figure, counts_RU: np.ndarray) -> dict[str, float]:
    """Mean with the ends of its 95% percentile interval."""
    return {"mean": metric.mean(), **ends(metric.resampled(counts_RU))}


def lift(treated: Figure, control: Figure, counts_RU: np.ndarray) -> dict[str, float] | None:
    """Relative change of ``treated`` over ``control``, paired over users, with its 95% interval.

    None if a resample has a control of 0 or less: then the rate is too rare, or a loss, for a relative change.
    """
    # The same counts for both: a resample with generous users helps both agents, and this cancels in the ratio.
    control_R = control.resampled(counts_RU)
    if control.mean() <= 0 or (control_R <= 0).any():
        return None
    return {"mean": treated.mean() / control.mean() - 1, **ends(treated.resampled(counts_RU) / control_R - 1)}


def gain(treated: Figure, control: Figure, counts_RU: np.ndarray) -> dict[str, float]:
    """Treated minus control, paired over users, with the ends of its 95% percentile interval."""
    values_R = treated.resampled(counts_RU) - control.resampled(counts_RU)
    return {"mean": treated.mean() - control.mean(), **ends(values_R)}


def intervals(series: Series, counts_RU: np.ndarray) -> dict[str, list[float]]:
    """Means [V] of a series with the ends of their 95% percentile intervals, each visit by itself."""
    return _ends_by_visit(series.mean(), series.resampled(counts_RU))


def difference(treated: Series, control: Series, counts_RU: np.ndarray) -> dict[str, list[float]]:
    """Treated minus control at each visit [V], paired over users, with 95% intervals, each visit by itself."""
    values_RV = treated.resampled(counts_RU) - control.resampled(counts_RU)
    return _ends_by_visit(treated.mean() - control.mean(), values_RV)


def over_runs(value_N: np.ndarray) -> dict[str, Any]:
    """Mean of N independent runs with its 95% interval by Student's t, infinite for a single run, and the runs."""
    from scipy.stats import t

    mean, runs = float(value_N.mean()), len(value_N)
    half = float(t.ppf((1 + LEVEL) / 2, runs - 1) * value_N.std(ddof=1) / runs**0.5) if runs > 1 else float("inf")
    return {"mean": mean, "low": mean - half, "high": mean + half, "runs": value_N.tolist()}


def ends(values_R: np.ndarray) -> dict[str, float]:
    """The ends of the 95% percentile interval of resampled values."""
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high)}


def _ends_by_visit(mean_V: np.ndarray, values_RV: np.ndarray) -> dict[str, list[float]]:
    """Means and ends; NaN at visits that nobody made."""
    there_V = ~np.isnan(mean_V)
    ends_2V = np.full((2, len(mean_V)), np.nan)
    # A resample without any user of a visit shows nothing about it.
    ends_2V[:, there_V] = np.nanquantile(values_RV[:, there_V], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {"mean": mean_V.tolist(), "low": ends_2V[0].tolist(), "high": ends_2V[1].tolist()}


def within_user_correlation(left_US: np.ndarray, right_US: np.ndarray, *, ranks: bool) -> float:
    """Mean over users of :func:`correlation_per_user`, over those for whom both scores vary; NaN if there are none."""
    each_U = correlation_per_user(left_US, right_US, ranks=ranks)
    varies_U = ~np.isnan(each_U)
    return float(each_U[varies_U].mean()) if varies_U.any() else float("nan")


def correlation_per_user(left_US: np.ndarray, right_US: np.ndarray, *, ranks: bool) -> np.ndarray:
    """Correlation of two scores over each user's S sessions.

    Args:
        left_US: first score.
        right_US: second score.
        ranks: Spearman's rank correlation instead of Pearson's.

    Returns:
        float64 [U], NaN for users for whom one of the scores is constant.
    """
    if ranks:
        from scipy.stats import rankdata

        left_US, right_US = rankdata(left_US, axis=1), rankdata(right_US, axis=1)
    left = left_US - left_US.mean(axis=1, keepdims=True)
    right = right_US - right_US.mean(axis=1, keepdims=True)
    # Correlated user by user: over all sessions together, users who like everything would look like agreement.
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    return np.divide((left * right).sum(axis=1), scale, out=np.full(len(scale), np.nan), where=scale > 1e-12)
