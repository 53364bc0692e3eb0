"""Over-optimisation: proxy and true gain against the distance from the base, fitted in Gao et al.'s forms.

With d = sqrt(KL from the base) Gao, Schulman and Hilton (arXiv:2210.10760, §3) find a true gain of

    d (alpha - beta d)        for best-of-n,   highest at d* = alpha / (2 beta),       R* = alpha^2 / (4 beta);
    d (alpha - beta log d)    for RL,          highest at d* = exp(alpha / beta - 1),  R* = beta d*.

Both are linear in alpha and beta: weighted least squares through the origin. The points of a curve share their users,
so intervals come from resampling runs and, within them, users; never from the residuals. A peak outside the range of
observed distances is not reported.

Deviations from the paper: gains are per user, relative to the same users' sessions before the first round. Points whose
divergence is not two standard errors above 0 are left out, because the root of noise around 0 is biased.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` points of a curve, the rounds 0..N-1; ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.statistics import LEVEL, NUM_RESAMPLES, resampling_counts

Float = NDArray[np.float64]
Form = Literal["best_of_n", "rl"]

FORMS: dict[Form, str] = {"best_of_n": "d (alpha - beta d)", "rl": "d (alpha - beta log d)"}
"""The forms as formulas."""
MIN_POINTS = 3
"""Least number of points; a form has two parameters, so a fit to fewer points would mean nothing."""
MISFIT = 1.5
"""A form further from the free curve than this many standard errors does not fit."""
LEAST_FALL = 0.05
"""Least share of the highest gain that a run must lose to count as over-optimised, however precise the measurement."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Divergence of a run from the base and gain over it after N rounds, for each of U users, float64 [N, U]."""

    kl_NU: Float
    gain_NU: Float

    @classmethod
    def of(cls, kl_NU: Float, value_NU: Float) -> Curve:
        """The curve of values whose first row is the base's, paired over users."""
        return cls(kl_NU=kl_NU, gain_NU=value_NU - value_NU[0])

    @property
    def d_N(self) -> Float:
        """Distance from the base, the root of the divergence, which is cut off at 0 after averaging."""
        return _distance(self.kl_NU.mean(axis=1))

    def told(self) -> Curve:
        """Keep only points whose divergence is clearly above 0."""
        kept_N = self.kl_NU.mean(axis=1) > np.maximum(2 * standard_error(self.kl_NU), 1e-9)
        return Curve(kl_NU=self.kl_NU[kept_N], gain_NU=self.gain_NU[kept_N])


def standard_error(value_NU: Float) -> Float:
    """Standard error of the mean over users."""
    return value_NU.std(axis=-1, ddof=1) / np.sqrt(value_NU.shape[-1])


def fit(curves: Sequence[Curve], form: Form, seed: int = 0) -> dict[str, Any] | None:
    """Fit a form to the curves of one or more runs.

    Args:
        curves: one per run; users may differ between runs.
        form: the form.
        seed: seed for resampling.

    Returns:
        ``alpha``, ``beta``, ``d_star`` and ``r_star``, each with ``mean`` (the estimate) and the ends of its 95%
        interval, which are infinite if a resample has no peak. ``bends`` is the share of resamples with beta > 0.
        ``condition`` belongs to the problem with columns of length 1. ``rmse`` is that of the form, ``free_rmse`` that
        of the free curve. ``misfit`` is the form's distance from the free curve in standard errors, and ``fits`` its
        verdict. ``peak`` has d* and R*, or is None for the reason in ``no_peak``. ``points`` counts the points. The
        result is None if there are fewer than 3.
    """
    curves = [told for told in (curve.told() for curve in curves) if len(told.gain_NU)]
    if sum(len(curve.gain_NU) for curve in curves) < MIN_POINTS:
        return None
    d, gain, error = (np.concatenate(parts) for parts in zip(*map(_points, curves), strict=True))
    at_estimate = _moments(d, gain, 1 / error**2, form)
    alpha, beta = (float(value) for value in _solved(at_estimate))
    resampled = _solved(_resampled_moments(curves, form, seed))
    figures = (alpha, beta, *_peak(alpha, beta, form))
    figures_R = (*resampled, *_peak(*resampled, form))
    fitted, free = predicted(d, alpha, beta, form), rising_then_falling(d, gain, 1 / error**2)
    misfit = float(np.sqrt((((fitted - free) / error) ** 2).mean()))
    no_peak = _why_no_peak(beta, figures[2], d)
    return {
        "form": form,
        **{
            name: {"mean": float(value), **_ends(value_R)}
            for name, value, value_R in zip(("alpha", "beta", "d_star", "r_star"), figures, figures_R, strict=True)
        },
        "bends": float((resampled[1] > 0).mean()),
        "condition": _condition(at_estimate),
        "rmse": float(np.sqrt(((fitted - gain) ** 2).mean())),
        "free_rmse": float(np.sqrt(((free - gain) ** 2).mean())),
        "misfit": misfit,
        "fits": misfit <= MISFIT,
        "peak": None if no_peak else {"d": float(figures[2]), "gain": float(figures[3])},
        "no_peak": no_peak,
        "points": len(d),
    }


def predicted(d: Float, alpha: float, beta: float, form: Form) -> Float:
    """The form's gain at distances d."""
    return alpha * d - beta * _bend(d, form)


def rising_then_falling(d_N: Float, gain_N: Float, weight_N: Float) -> Float:
    """The closest curve that rises to a peak and falls from there, at the same points; forms are compared with it."""
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(d_N, kind="stable")
    gain, weight = gain_N[order], weight_N[order]

    def split_at(k: int) -> Float:
        halves = ((slice(k), True), (slice(k, None), False))
        return np.concatenate(
            [
                isotonic_regression(gain[part], sample_weight=weight[part], increasing=rising)
                for part, rising in halves
                if len(gain[part])
            ]
        )

    ways = [split_at(k) for k in range(len(gain) + 1)]
    best = min(ways, key=lambda way: float((weight * (way - gain) ** 2).sum()))
    return best[np.argsort(order)]


def turnover(value_NU: Float, delta: float | None = None) -> dict[str, Any]:
    """Find the round at which a run should have ended, and whether it continued too long.

    Args:
        value_NU: true values after each round, of the same users.
        delta: least fall that counts; None: two standard errors of the fall, or 5% of the highest gain if that is more.

    Returns:
        ``round``, the first one within one standard error of the highest mean (of the paired difference to it). From
        there, ``gain`` over round 0 and ``fall`` to the last round. ``over_optimised``: the fall exceeds ``delta``.
    """
    mean_N = value_NU.mean(axis=1)
    highest = int(mean_N.argmax())
    near_N = mean_N[highest] - mean_N <= standard_error(value_NU[highest] - value_NU)
    peak = int(near_N.argmax())
    gain, fall = float(mean_N[peak] - mean_N[0]), float(mean_N[peak] - mean_N[-1])
    if delta is None:
        delta = max(2 * float(standard_error(value_NU[peak] - value_NU[-1])), LEAST_FALL * gain)
    return {"round": peak, "gain": gain, "fall": fall, "delta": delta, "over_optimised": fall > delta}


def _bend(d: Float, form: Form) -> Float:
    """The term that beta multiplies."""
    from scipy.special import xlogy

    return d * d if form == "best_of_n" else xlogy(d, d)


def _peak(alpha: Any, beta: Any, form: Form) -> tuple[Any, Any]:
    """d* and R* of a form; infinite if it has no peak."""
    with np.errstate(all="ignore"):
        d = alpha / (2 * beta) if form == "best_of_n" else np.exp(np.divide(alpha, beta) - 1)
        gain = alpha * d / 2 if form == "best_of_n" else beta * d
    has_one = np.greater(beta, 0) & np.isfinite(d)
    return np.where(has_one, d, np.inf), np.where(has_one, gain, np.inf)


def _why_no_peak(beta: float, d: float, seen: Float) -> str | None:
    if beta <= 0:
        return "the curve does not bend down"
    if not seen.min() <= d <= seen.max():
        return f"the fit has its peak outside the observed distances, {seen.min():.2f} to {seen.max():.2f}"
    return None


def _distance(kl: Float) -> Float:
    return np.sqrt(np.maximum(kl, 0))


def _points(curve: Curve) -> tuple[Float, Float, Float]:
    """Distance, gain and the gain's standard error of a curve's points, float64 [N] each."""
    error_N = np.maximum(standard_error(curve.gain_NU), 1e-9)
    return curve.d_N, curve.gain_NU.mean(axis=1), error_N


def _moments(d_XN: Float, gain_XN: Float, weight_N: Float, form: Form) -> Float:
    """The five sums over points for weighted least squares, [..., 5]; sums of several runs can be added."""
    left, right = d_XN, -_bend(d_XN, form)
    products = (left * left, left * right, right * right, left * gain_XN, right * gain_XN)
    return np.stack([(product * weight_N).sum(axis=-1) for product in products], axis=-1)


def _solved(moments: Float) -> tuple[Float, Float]:
    """Alpha and beta from the sums of :func:`_moments`."""
    aa, ab, bb, ay, by = np.moveaxis(moments, -1, 0)
    determinant = np.maximum(aa * bb - ab * ab, 1e-300)
    return (bb * ay - ab * by) / determinant, (aa * by - ab * ay) / determinant


def _condition(moments: Float) -> float:
    """Condition number of the two columns, each of length 1: large if all points are on one side of the peak."""
    aa, ab, bb = moments[:3]
    cosine = min(abs(ab) / np.sqrt(aa * bb), 1 - 1e-15)
    return float(np.sqrt((1 + cosine) / (1 - cosine)))


def _resampled_moments(curves: Sequence[Curve], form: Form, seed: int) -> Float:
    """The sums of :func:`_moments` [R, 5] for resampled runs, with users resampled within each run."""
    rng = np.random.default_rng(seed)
    total_R5 = np.zeros((NUM_RESAMPLES, 5))
    for _ in curves:
        which_R = rng.integers(len(curves), size=NUM_RESAMPLES)
        for run, curve in enumerate(curves):
            drawn_R = which_R == run
            num_users = curve.gain_NU.shape[1]
            counts_RU = resampling_counts(num_users, int(rng.integers(2**31)), int(drawn_R.sum())) / num_users
            d_RN, gain_RN = _distance(counts_RU @ curve.kl_NU.T), counts_RU @ curve.gain_NU.T
            total_R5[drawn_R] += _moments(d_RN, gain_RN, 1 / _points(curve)[2] ** 2, form)
    return total_R5


def _ends(values_R: Float) -> dict[str, float]:
    # "Nearest", because nothing can be interpolated between a number and infinity.
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return {"low": float(low), "high": float(high)}
