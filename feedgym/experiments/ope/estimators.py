"""Estimates the reward of a policy of slates from a log that another policy made. Pure NumPy, in float64.

A row is a logged request: the K items shown, and the reward at each place. It also has each item's probability of being
shown, given the request x and the items above it. V is the expected sum of the rewards under the *target* policy e,
while the log was made by b. The prefix weight of place k is c_k = prod_{j<=k} e_j / b_j, with c_0 = 1.

| estimator | exact on average if |
|---|---|
| :func:`ips`, :func:`snips` | the log could have shown all that the target would show (support); SNIPS up to O(1/N) |
| :func:`iips` | support, and the reward of a place depends only on its own item |
| :func:`rips`, :func:`snrips` | support, and the reward of a place depends only on the items down to it (a *cascade*) |
| :func:`pseudo_inverse` | support, and the slate's reward is a sum over places of what each item alone would give |
| :func:`direct` | the model of the reward is right |
| :func:`doubly_robust` | support or the model is right |
| :func:`cascade_dr` | cascade and support, or the model is right |

An estimate is a sum of ratios of sums over rows (:class:`Estimate`), so that it can be computed again for resampled
users. Requests of one user are not independent, so bootstraps draw users.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` terms of an estimate, or pairs of a place and an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate as sum_x (sum_n numerator_nx / sum_n denominator_nx).

    Attributes:
        numerator_NX: one row per request.
        denominator_NX: of the same shape; ones if the estimate is a mean over rows.
    """

    numerator_NX: Float
    denominator_NX: Float

    def mean(self) -> float:
        """The estimate."""
        return float(_ratio(self.numerator_NX.sum(axis=0), self.denominator_NX.sum(axis=0)).sum())

    @property
    def num_users(self) -> int:
        """Number of rows: users, after :meth:`of_users`."""
        return len(self.numerator_NX)

    def of_users(self, user_N: NDArray[np.integer], num_users: int) -> Estimate:
        """The same estimate with a row per user: sums over the user's requests."""
        sums = [np.zeros((num_users, self.numerator_NX.shape[1])) for _ in range(2)]
        for sum_UX, term_NX in zip(sums, (self.numerator_NX, self.denominator_NX), strict=True):
            np.add.at(sum_UX, user_N, term_NX)
        return Estimate(*sums)

    def resampled(self, counts_RU: NDArray) -> Float:
        """The estimate [R] under resamplings, given how often each row is drawn."""
        return _ratio(counts_RU @ self.numerator_NX, counts_RU @ self.denominator_NX).sum(axis=-1)


def _ratio(numerator: Float, denominator: Float) -> Float:
    """Ratio, or 0 if the denominator is 0: no row of the sum comes from the target."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _mean_of(value_N: Float) -> Estimate:
    return Estimate(value_N[:, None], np.ones((len(value_N), 1)))


# ---------------------------------------------------------------- weights


def log_or_never(prob: Float) -> Float:
    """Logarithms of probabilities, -inf for 0."""
    with np.errstate(divide="ignore"):
        return np.log(prob)


def prefix_weights(prob_target_NK: Float, prob_logged_NK: Float) -> Float:
    """Prefix weights c_k [N, K] from the probabilities of the items given those above them.

    Raises:
        ValueError: a probability of the log is not in (0, 1].
    """
    check_propensities(prob_logged_NK)
    return np.asarray(np.cumprod(prob_target_NK / prob_logged_NK, axis=1), np.float64)


def check_propensities(prob_logged_NK: Float) -> None:
    """Refuse invalid propensities.

    Raises:
        ValueError: one is missing, 0, negative or above 1.
    """
    wrong_NK = ~((prob_logged_NK > 0) & (prob_logged_NK <= 1))
    if wrong_NK.any():
        first = prob_logged_NK[wrong_NK].ravel()[0]
        raise ValueError(
            f"{int(wrong_NK.sum())} propensities of the log are not in (0, 1], the first is {first}; give "
            "the probabilities with which the items were shown."
        )


def effective_sample_size(weight_N: Float) -> Float:
    """(sum w)^2 / sum w^2 (Kish), along the first axis; 0 if all weights are 0."""
    total, squares = (np.asarray(np.sum(term, axis=0), np.float64) for term in (weight_N, np.square(weight_N)))
    return _ratio(total**2, squares)


# ---------------------------------------------------------------- estimators by weights


def ips(prefix_NK: Float, reward_NK: Float) -> Estimate:
    """Whole-slate inverse propensity scoring: mean of c_K sum_k r_k (Horvitz and Thompson, 1952).

    Unbiased given support; its variance grows exponentially with K.
    """
    return _mean_of(prefix_NK[:, -1] * reward_NK.sum(axis=1))


def snips(prefix_NK: Float, reward_NK: Float) -> Estimate:
    """The same divided by the sum of the weights: sum c_K sum_k r_k / sum c_K (Swaminathan and Joachims, NIPS 2015)."""
    weight_N = prefix_NK[:, -1]
    return Estimate((weight_N * reward_NK.sum(axis=1))[:, None], weight_N[:, None])


def iips(weight_NK: Float, reward_NK: Float) -> Estimate:
    """Independent IPS: mean of sum_k w_k r_k (Li et al., KDD 2018, arXiv:1804.10488, the item-position model).

    Args:
        weight_NK: w_k = P_e(a_k at place k | x) / P_b(a_k at place k | x), from the MARGINALS of both policies.
        reward_NK: rewards.
    """
    return _mean_of((weight_NK * reward_NK).sum(axis=1))


def rips(prefix_NK: Float, reward_NK: Float) -> Estimate:
    """Reward-interaction IPS: mean of sum_k c_k r_k (McInerney et al., KDD 2020, arXiv:2007.12986).

    A place is weighted by the items down to it and not by those that follow, so the first places have small weights.
    """
    return _mean_of((prefix_NK * reward_NK).sum(axis=1))


def snrips(prefix_NK: Float, reward_NK: Float) -> Estimate:
    """The same, divided at each place by the sum of its weights: sum_k (sum_n c_k r_k / sum_n c_k)."""
    return Estimate(prefix_NK * reward_NK, prefix_NK)


def pseudo_inverse(target_NX: Float, moment_NXX: Float, shown_NX: Float, reward_NK: Float) -> Estimate:
    """Pseudo-inverse estimator: mean of (q_e^T G^+ 1_a) sum_k r_k (Swaminathan et al., NIPS 2017, arXiv:1605.04812).

    Args:
        target_NX: q_e, the target's marginal probability of each pair of a place and an item.
        moment_NXX: G = E_b[1_a 1_a^T], the log's probability of every two pairs together.
        shown_NX: 1_a, 1 at the pairs that were shown.
        reward_NK: rewards; only their sum is used.
    """
    return _mean_of(pseudo_inverse_weights(target_NX, moment_NXX, shown_NX) * reward_NK.sum(axis=1))


def pseudo_inverse_weights(target_NX: Float, moment_NXX: Float, shown_NX: Float) -> Float:
    """The weights q_e^T G^+ 1_a [N]; they may be negative. Their mean is 1."""
    solved_NX = np.linalg.pinv(moment_NXX, rcond=1e-10, hermitian=True) @ shown_NX[..., None]
    return np.vecdot(target_NX, solved_NX[..., 0])


# ---------------------------------------------------------------- estimators with a model


def direct(value_N: Float) -> Estimate:
    """Direct method: mean of the reward that a model expects from the target's own slates.

    Args:
        value_N: E_{a~e} of the model's reward; a mean over slates drawn from the target is enough.
    """
    return _mean_of(value_N)


def doubly_robust(prefix_NK: Float, reward_NK: Float, model_NK: Float, value_N: Float) -> Estimate:
    """Doubly robust over whole slates: mean of V^ + c_K sum_k (r_k - r^_k) (Dudik et al., ICML 2011, arXiv:1103.4601).

    Args:
        prefix_NK: prefix weights; the last ones are used.
        reward_NK: rewards.
        model_NK: the model's reward at each place of the logged slate.
        value_N: as for :func:`direct`, from the same model.
    """
    return _mean_of(value_N + prefix_NK[:, -1] * (reward_NK - model_NK).sum(axis=1))


def cascade_dr(prefix_NK: Float, reward_NK: Float, q_NK: Float, expected_NK: Float) -> Estimate:
    """Cascade doubly robust: mean of sum_k c_k (r_k - Q_k) + c_{k-1} E_k (Kiyohara et al., 2022, arXiv:2202.01562).

    Args:
        prefix_NK: prefix weights c_k.
        reward_NK: rewards.
        q_NK: Q_k, any function of the request and the items down to place k.
        expected_NK: E_k, its mean over the target's own item at place k, given the logged items above.
    """
    before_NK = np.concatenate([np.ones((len(prefix_NK), 1)), prefix_NK[:, :-1]], axis=1)
    return _mean_of((prefix_NK * (reward_NK - q_NK) + before_NK * expected_NK).sum(axis=1))


def cascade_dr_to(depth: int, prefix_NK: Float, reward_NK: Float, model_NK: Float, value_N: Float) -> Estimate:
    """Cascade DR with the model's own reward to go, down to a place: mean of V^ + sum_{k<=depth} c_k (r_k - r^_k).

    Let Q_k = r^_k + E Q_{k+1}, the model's expectation from place k on, which leaves the least variance (Kiyohara et
    al.). Then the expectations of :func:`cascade_dr` below the first place cancel. So slates of the target are needed
    only for V^, and never as continuations of logged prefixes.

    Below ``depth`` the model is used without correction, as SWITCH does for large weights (Wang et al., ICML 2017,
    arXiv:1612.01205). Depth 0 is the direct method, K the whole estimator.
    """
    corrected_NK = prefix_NK[:, :depth] * (reward_NK - model_NK)[:, :depth]
    return _mean_of(value_N + corrected_NK.sum(axis=1))
