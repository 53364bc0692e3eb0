"""Gamma numbers from uniform ones, by a table: scipy's ``gammaincinv`` takes longer than all else of drawing a user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, gammainccinv, gammaincinv, gammaln

from feedgym.data.events import FloatArray

FARTHEST = 17.0
"""Largest absolute log-odds of a uniform number of :mod:`feedgym.envs.luck`, a little rounded up."""
POINTS = 4097


class GammaQuantiles:
    """The inverse of the Gamma(shape, 1) distribution function, to about 1e-10 of its value.

    The log of the quantile is a smooth function of the log-odds of the uniform number. Cubic pieces go through its
    values and slopes at equally distant points.

    Args:
        shape: of the Gamma distribution, above 0.
    """

    def __init__(self, shape: float) -> None:
        odds_Q = np.linspace(-FARTHEST, FARTHEST, POINTS)
        below_Q, above_Q = expit(odds_Q), expit(-odds_Q)
        with np.errstate(divide="ignore"):
            log_Q = np.log(np.where(odds_Q < 0, gammaincinv(shape, below_Q), gammainccinv(shape, above_Q)))
        # d log x / d log-odds = u (1 - u) / (x density(x)); where x is tiny, u is nearly x**shape / Gamma(shape + 1).
        tiny_Q = log_Q < -600
        log_Q[tiny_Q] = (np.log(below_Q[tiny_Q]) + gammaln(shape + 1)) / shape
        log_density_Q = shape * log_Q - np.exp(log_Q) - gammaln(shape)
        slope_Q = np.exp(np.log(below_Q) + np.log(above_Q) - log_density_Q)
        self._step = 2 * FARTHEST / (POINTS - 1)
        rise_Q, left_Q, right_Q = np.diff(log_Q), slope_Q[:-1] * self._step, slope_Q[1:] * self._step
        self._coefficients_4Q = np.stack(
            [log_Q[:-1], left_Q, 3 * rise_Q - 2 * left_Q - right_Q, left_Q + right_Q - 2 * rise_Q]
        )

    def __call__(self, uniform_X: FloatArray) -> FloatArray:
        """The quantiles of uniform numbers, float32."""
        u_X = uniform_X.astype(np.float64)
        place_X = (np.log(u_X / (1 - u_X)) + FARTHEST) / self._step
        piece_X = place_X.astype(np.int64)
        s_X: NDArray[np.float64] = place_X - piece_X
        a_X, b_X, c_X, d_X = self._coefficients_4Q[:, piece_X]
        return np.exp(a_X + s_X * (b_X + s_X * (c_X + s_X * d_X))).astype(np.float32)
