"""ShortVideo with other constants: users differ more, leave bad feeds, and want more of what they watched.

The simulator is :class:`feedgym.envs.short_video.simulator.ShortVideo`; this module holds the constants that differ.
They turn on terms that are 0 there. In the notation of that module, for a visit of the examined items 1..n::

    S <- S + satisfaction_rate (tanh(e_k - satisfaction_bar) {1 if click else satisfaction_skip} - S)     each item
    F = mean over k of <f_k, m_k>                                      fatigue: satiation with what was shown
    churn = sigmoid(churn_logit - churn_satisfaction S + churn_fatigue F)
    gap = gap_hours exp(-gap_satisfaction S + gap_fatigue F) / activity * Weibull(gap_shape)
    return: the t with  integral of week(.) from logout to t - gap_min_hours  =  gap, then the next active hour
    w_k = click_k max(0, tanh e_k),   w = sum of w_k,   y = sum of w_k z_k
    x = theta + drift_rate (s - theta) + drift_watched (y - w theta) / max(w, 1) + drift_core (core - theta)
    theta <- x / |x|, turned towards the core until <theta, core> >= drift_limit
    ranker's score = (interest_weight + ranker_interest) <theta, z> + ...

``core`` are the interests that the user came with, and week() is the activity of a day of the week. So skipped items
annoy, a feed of one topic tires, and users want more of what they enjoyed, within a cone around the core.

Sources: the KuaiRand-Pure slice and the tables of KuaiRand-27K in docs/realism.md. No public data show how users change
if their feed is bad for weeks. So churn, fatigue and drift are design choices; the page lists their effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from feedgym.envs.short_video.population import ShortVideoConfig, Terms
from feedgym.envs.short_video.simulator import ShortVideo
from feedgym.ranges import Count, Logit, NonNegative, Positive, Share, Spread


@dataclass(frozen=True, kw_only=True)
class CalibratedConfig(ShortVideoConfig, Terms):
    """Constants of the calibrated users and their catalogue that differ from :class:`ShortVideoConfig`."""

    popularity_quality: Logit = 1.2
    """Weight of quality in the popularity rank. Popular items please more than others, so that fewer users leave a feed
    by popularity than a random one. The top 10% of the items have 0.59 of the exposures (KuaiRand-Pure: 0.64)."""
    interest_topics: tuple[Count, Count] = (1, 5)
    """Fewest and most topics that a user loves. With ranker_interest, the next item shares the topic 0.063 more often
    than by chance (KuaiRand-Pure)."""
    ranker_interest: Logit = 4.0
    """Added to interest_weight in the production ranker's score; see interest_topics."""
    click_bias_sd: Spread = 1.2
    """Spread of the readiness to click: two clicks of one user correlate by 0.14 (KuaiRand-27K)."""
    click_bias_weight: Logit = 1.0
    """Weight of the user's readiness to click."""
    click_logit: Logit = -3.2
    """Logit of a click on an item of pull 0; KuaiRand-27K clicks 0.379 in production and 0.176 at random."""
    feedback_logit: tuple[Logit, ...] = (-7.1, -10.6, -8.6, -10.2, -7.8)
    """Logits of like, follow, comment, forward, hate at enjoyment 0, for KuaiRand-Pure's rates."""

    satisfaction_skip: Share = 1.0
    """Weight of the enjoyment of skipped items in satisfaction: users mind the items that they had to skip."""
    satisfaction_bar: Logit = 0.3
    """Enjoyment that leaves a user as satisfied as before. A random feed offers less, the logged policy more."""
    churn_logit: Logit = -3.5
    """Logit of leaving for ever after a visit, at satisfaction 0. With churn_satisfaction and churn_fatigue, about 4%
    of the visits of a random feed are the last ones, and 0.5% under production."""
    churn_satisfaction: Logit = 4.0
    """Decrease of that logit per unit of satisfaction."""
    churn_fatigue: Logit = 5.0
    """Increase of that logit per unit of fatigue: a feed of only a user's favourite topic loses more users than
    production."""
    gap_hours: Positive = 42.0
    """Scale of the gap to the next visit at satisfaction 0 and activity 1, hours. With the options below the median is
    about 15 hours, and 0.65 of the users are back within 24 (KuaiRand-Pure: 15.1 and 0.65)."""
    gap_satisfaction: Logit = 2.0
    """The gap is scaled by exp(-gap_satisfaction * satisfaction)."""
    gap_fatigue: Logit = 2.0
    """The gap is scaled by exp(gap_fatigue * fatigue)."""
    gap_min_hours: NonNegative = 0.5
    """Least gap between two visits, hours: users who come back sooner have not left, as KuaiRand's visits are cut."""
    week: tuple[Positive, ...] = (0.94, 0.925, 0.935, 0.945, 0.99, 1.14, 1.125)
    """Activity from Monday to Sunday. Visits per day then follow KuaiRand-27K's exposures of 8 to 21 April 2022, its
    two weeks without holidays: weekdays have 0.86 of Saturday's."""

    drift_rate: Share = 0.0
    """Step of the long-term interests towards the mood per visit; drift_watched replaces it."""
    drift_watched: Share = 0.2
    """Step of the long-term interests towards a visit's clicked items, as far as they were enjoyed. With drift_core and
    drift_limit the cosine of interests is 0.95 after 60 visits under production, 0.91 under the oracle."""
    drift_core: Share = 0.1
    """Step per visit of the long-term interests back to the core: half of a drift is forgotten in seven visits."""
    drift_limit: Annotated[float, Interval(ge=-1, le=1)] = 0.7
    """Least cosine of the long-term interests with the core: about 45 degrees."""


class ShortVideoCalibrated(ShortVideo):
    """The flagship simulator calibrated to real users' reactions to bad feeds; see the module's docstring.

    Args:
        config: the catalogue's and the users' constants.
    """

    Config = CalibratedConfig

    def __init__(self, config: CalibratedConfig = CalibratedConfig()) -> None:
        super().__init__(config)
