"""Choice models: probabilities that users take each item of a slate, or none, given the items' scores.

A model turns scores [..., K] into the probabilities of the K positions. The rest up to 1 is the probability of taking
nothing. :func:`choose` draws from them with one uniform number per user, so that all models use the same random
numbers. The four named models are those of RecSim (Ie et al., arXiv:1909.04847, section 4.2, and
``recsim/choice_model.py``). Any simulator can use them, and any other probabilities with :func:`choose`.

- multinomial logit, conditional on a slate: p(k) = exp(s_k) / (exp(s_0) + sum exp(s_j))
- multinomial proportional: p(k) = (s_k - m) / ((s_0 - m) + sum (s_j - m)), where m is the least score
- cascades: items are seen in order, each clicked with chance attention * scaling * exp(s_k), or (s_k - m) instead of
  exp(s_k). The first click ends the slate

Deviations: from a slate whose masses are all 0 nothing is taken (RecSim divides by 0). The proportional cascade works
here, while RecSim's check of the scores fails for two or more items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from feedgym.data.events import BoolArray

Probabilities = NDArray[np.float64]

NOTHING = -1
"""Position of users who take no item."""


def choose(prob_UK: ArrayLike, uniform_U: ArrayLike) -> NDArray[np.int64]:
    """Draws each user's position by inversion: int64 [...], ``NOTHING`` with the remaining probability.

    Args:
        prob_UK: probabilities of the K positions, [..., K], summing to at most 1.
        uniform_U: numbers in (0, 1), [...].
    """
    end_UK = np.cumsum(prob_UK, axis=-1, dtype=np.float64)
    passed_U = (end_UK <= np.asarray(uniform_U)[..., None]).sum(axis=-1)
    return np.where(passed_U < end_UK.shape[-1], passed_U, NOTHING)


def met_in_cascade(position_U: NDArray[np.int64], session_length: int) -> BoolArray:
    """Items seen by users who go through a slate until they take one: bool [..., K], a prefix of the slate."""
    last_U = np.where(position_U == NOTHING, session_length, position_U)
    return np.arange(session_length) <= last_U[..., None]


def multinomial(mass_UK: ArrayLike, null_mass: ArrayLike = 0.0) -> Probabilities:
    """Each item, or nothing, in proportion to its mass.

    Args:
        mass_UK: masses of the items [..., K], 0 or more.
        null_mass: mass of taking nothing; a number, or one per user [...].

    Raises:
        ValueError: a mass is negative.
    """
    mass_UK, null_mass = np.asarray(mass_UK, np.float64), np.asarray(null_mass, np.float64)
    least = min(mass_UK.min(initial=0), null_mass.min(initial=0))
    if least < 0:
        raise ValueError(f"A mass of {least:.3g} is negative; lower min_normalizer to the least score.")
    total_U = mass_UK.sum(axis=-1) + null_mass
    return mass_UK / np.where(total_U > 0, total_U, 1)[..., None]


def multinomial_logit(score_UK: ArrayLike, null_score: ArrayLike = -np.inf) -> Probabilities:
    """p(k) in proportion to exp(score); for nothing to exp(``null_score``), a number or one per user [...]."""
    score_UK, null_score = np.asarray(score_UK, np.float64), np.asarray(null_score, np.float64)
    top_U = np.maximum(score_UK.max(axis=-1), null_score)  # prevents overflow
    return multinomial(np.exp(score_UK - top_U[..., None]), np.exp(null_score - top_U))


def multinomial_proportional(
    score_UK: ArrayLike, null_score: ArrayLike = 0.0, min_normalizer: float = 0.0
) -> Probabilities:
    """p(k) in proportion to score - ``min_normalizer``; for nothing to ``null_score`` - ``min_normalizer``.

    Raises:
        ValueError: a score is below ``min_normalizer``.
    """
    return multinomial(np.asarray(score_UK, np.float64) - min_normalizer, np.asarray(null_score) - min_normalizer)


def cascade(click_UK: ArrayLike) -> Probabilities:
    """Probabilities of the first click of users who go through a slate and click each item with its chance.

    Args:
        click_UK: chance of a click on an item that is seen, [..., K].

    Raises:
        ValueError: a chance is outside 0..1.
    """
    click_UK = np.asarray(click_UK, np.float64)
    low, high = click_UK.min(initial=0), click_UK.max(initial=0)
    if low < 0 or high > 1:
        wrong = low if low < 0 else high
        raise ValueError(f"{wrong:.3g} is not a chance of a click; lower score_scaling, or min_normalizer if negative.")
    still_UK = np.cumprod(1 - click_UK, axis=-1)
    before_UK = np.concatenate([np.ones_like(still_UK[..., :1]), still_UK[..., :-1]], axis=-1)
    return before_UK * click_UK


def exponential_cascade(score_UK: ArrayLike, attention_prob: float, score_scaling: float) -> Probabilities:
    """A cascade whose items are clicked with chance attention_prob * score_scaling * exp(score).

    Raises:
        ValueError: ``attention_prob`` is outside 0..1, ``score_scaling`` negative, or a chance above 1.
    """
    return cascade(_scaled(np.exp(np.asarray(score_UK, np.float64)), attention_prob, score_scaling))


def proportional_cascade(
    score_UK: ArrayLike, attention_prob: float, score_scaling: float, min_normalizer: float = 0.0
) -> Probabilities:
    """A cascade whose items are clicked with chance attention_prob * score_scaling * (score - min_normalizer).

    Raises:
        ValueError: ``attention_prob`` is outside 0..1, ``score_scaling`` negative, or a chance outside 0..1.
    """
    return cascade(_scaled(np.asarray(score_UK, np.float64) - min_normalizer, attention_prob, score_scaling))


def _scaled(appeal_UK: Probabilities, attention_prob: float, score_scaling: float) -> Probabilities:
    if not 0 <= attention_prob <= 1:
        raise ValueError(f"attention_prob={attention_prob} is outside 0..1; it is the chance that an item is noticed.")
    if score_scaling < 0:
        raise ValueError(f"score_scaling={score_scaling} is negative; give 0 or more.")
    click_UK = score_scaling * appeal_UK
    if click_UK.max(initial=0) > 1:
        raise ValueError(f"score_scaling={score_scaling} makes a chance of {click_UK.max():.3g}; lower it.")
    return attention_prob * click_UK
