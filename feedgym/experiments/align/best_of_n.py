"""Best-of-n curves for every n from one pool of S scored sessions per user, and their cost in divergence.

Serving the best of n draws by a reward is the control that every training method must be compared with. Its curve of
truth against divergence comes free with each pool (Gao, Schulman and Hilton, arXiv:2210.10760, §2 and App. I).

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` the sizes n that are requested.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def best_of_n(score_US: Float, value_US: Float, sizes: Sequence[int]) -> Float:
    """Unbiased expected value of the session with the highest score among n draws, for several n.

    The mean over all subsets of n of the S sessions (App. I): with scores in rising order, session i is the best of
    C(i-1, n-1) subsets out of C(S, n). Sessions of equal score share their values, as in a random choice between them.

    Args:
        score_US: scores to choose by.
        value_US: values of the sessions. Their noise must be independent of the noise of the scores. To choose by the
            truth, give two independent estimates of it.
        sizes: n, each from 1 to S.

    Returns:
        float64 [U, X].

    Raises:
        ValueError: a size is outside 1..S.
    """
    from scipy.special import gammaln

    num_samples = score_US.shape[1]
    if min(sizes) < 1 or max(sizes) > num_samples:
        raise ValueError(f"sizes={list(sizes)} must lie between 1 and the {num_samples} samples; change them.")
    order_US, tie_US = _ties(score_US)
    sorted_N = np.take_along_axis(value_US, order_US, axis=1).ravel().astype(float)
    shared_N = np.bincount(tie_US.ravel(), sorted_N) / np.bincount(tie_US.ravel())
    n, i = np.asarray(sizes)[:, None], np.arange(1, num_samples + 1)
    # Log-gamma, because C(128, 64) exceeds float64's whole numbers; if i < n there is no such subset.
    log_subsets = gammaln(i) - gammaln(n) - gammaln(np.maximum(i - n, 0) + 1)
    log_all = gammaln(num_samples + 1) - gammaln(n + 1) - gammaln(num_samples - n + 1)
    share_XS = np.where(i >= n, np.exp(log_subsets - log_all), 0.0)
    return shared_N[tie_US] @ share_XS.T


def best_of_n_kl(score_US: Float, sizes: Sequence[int]) -> Float:
    """Divergence of best-of-n from a single draw in nats, [U, X]: log n - (n - 1)/n, less if scores tie.

    The known formula is exact for scores without ties, and too large with them. Here tied sessions of the pool, such as
    copies of one session, count as one outcome with their share of the pool. A session without a tie represents a
    stretch of the continuous case. The result is an upper bound if the pool is too small to show all ties.
    """
    from scipy.special import xlogy

    num_users, num_samples = score_US.shape
    _, tie_US = _ties(score_US)
    first_N, count_N = np.unique(tie_US, return_index=True, return_counts=True)[1:]
    user_N, place_N = np.divmod(first_N, num_samples)
    low_N1 = (place_N / num_samples)[:, None]
    high_N1 = low_N1 + (count_N / num_samples)[:, None]
    n = np.asarray(sizes, float)

    def integral(u: Float) -> Float:  # of n u^(n-1) log(n u^(n-1)), from 0 to u
        return u**n * np.log(n) + (n - 1) * (xlogy(u**n, u) - u**n / n)

    mass_NX = high_N1**n - low_N1**n
    one_outcome_NX = xlogy(mass_NX, mass_NX / (high_N1 - low_N1))
    stretch_NX = integral(high_N1) - integral(low_N1)
    kl_UX = np.zeros((num_users, len(n)))
    np.add.at(kl_UX, user_N, np.where(count_N[:, None] > 1, one_outcome_NX, stretch_NX))
    return kl_UX


def doublings(num_samples: int) -> list[int]:
    """The sizes 1, 2, 4, ... and the number of samples itself."""
    return [*(2**k for k in range(num_samples.bit_length()) if 2**k < num_samples), num_samples]


def _ties(score_US: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rising order of each user's scores, and for each place in that order the number of its tie, [U, S] each."""
    order_US = np.argsort(score_US, axis=1, kind="stable")
    sorted_US = np.take_along_axis(score_US, order_US, axis=1)
    new_US = np.ones(score_US.shape, bool)
    new_US[:, 1:] = np.diff(sorted_US, axis=1) != 0
    return order_US, np.cumsum(new_US).reshape(score_US.shape) - 1
