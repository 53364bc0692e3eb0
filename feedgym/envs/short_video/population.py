"""Users of the short-video feed: the constants, a user's state, fresh users and their daily rhythm.

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics, ``J`` topics that a user may love, ``R`` remembered
items, ``X`` explicit behaviours, ``H`` hours of the day, ``W`` days of the week and its end. ``C`` counts channels of
random numbers here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from scipy.special import ndtr

from feedgym.data.events import BEHAVIOURS, DAY_S, FloatArray, IntArray
from feedgym.data.sessions import WEEK_DAYS
from feedgym.envs import luck
from feedgym.envs.compiling import HAS_NUMBA
from feedgym.envs.short_video.catalog import CatalogConfig, Latents, unit
from feedgym.envs.short_video.gamma import GammaQuantiles
from feedgym.ranges import (
    Count,
    Logit,
    NonNegative,
    Positive,
    Ranged,
    Seconds,
    Seed,
    Share,
    SomeSeconds,
    Spread,
    check_order,
)

FEEDBACK = BEHAVIOURS[2:]
"""The X = 5 explicit behaviours: like, follow, comment, forward, hate."""

PROFILE_NAMES = ("age_group", "gender", "device")
PROFILE_SIZES = (6, 2, 3)

INTEREST, WEIGHT, NORMAL, UNIFORM = range(4)
"""Positions of a user's traits in their random numbers; the channels count the topics or the traits."""
(
    PATIENCE,
    CLICK_BIAS,
    SUSCEPTIBILITY,
    ACTIVITY,
    HOUR_SHIFT,
    NOVELTY,
    FIRST_PROFILE,
) = range(7)
"""Channels of the normal traits; the profile fields and the FEEDBACK follow them."""
FIRST_FEEDBACK = FIRST_PROFILE + len(PROFILE_NAMES)


@dataclass(frozen=True, kw_only=True)
class ShortVideoConfig(CatalogConfig):
    """The users and their catalogue. Constants without a source were set so that figures agree with KuaiRand's."""

    catalog_seed: Seed = 0
    """Seed of the catalogue; users have separate seeds."""
    first_day: NonNegative = 0.0
    """Day of the clock of users' first visits; choose a later day for users who come after a log has ended."""

    interest_topics: tuple[Count, Count] = (2, 8)
    """Fewest and most topics that a user loves."""
    interest_shape: Positive = 0.7
    """Gamma shape of the weights of the loved topics."""
    profile_tie: Annotated[float, Interval(ge=-1, le=1)] = 0.5
    """Correlation of a profile field's hidden score with the user's interests; 0 makes profiles noise."""
    patience_sd: Spread = 0.6
    """Spread of patience, in logits of going on."""
    click_bias_sd: Spread = 0.7
    """Spread of the readiness to click."""
    feedback_sd: Spread = 1.3
    """Spread of each behaviour's propensity, in logits: a few users give most comments."""
    susceptibility_sd: Spread = 0.4
    """Log-normal spread of the susceptibility to clickbait, median 1."""
    activity_sd: Spread = 0.8
    """Log-normal spread of activity (visits per day), median 1."""
    hour_shift_sd: Spread = 1.5
    """Spread of the shift of a user's active hours, hours."""
    memory_items: Count = 128
    """R, number of last examined items that a user remembers."""

    interest_weight: Logit = 4.5
    """Pull of the long-term interests, <theta, z>."""
    mood_weight: Logit = 1.2
    """Pull of the short-term interests, <s, z>."""
    quality_weight: Logit = 0.7
    """Pull of quality."""
    fresh_weight: Logit = 0.0
    """Pull of an item just uploaded; it falls by 1/e every fresh_days. 0: age has no effect."""
    satiation_weight: Logit = 2.6
    """Push of satiation with the item's topics, <f, m>."""
    seen_penalty: Logit = 2.5
    """Push of an item that the user remembers."""
    novelty_weight: Logit = 0.5
    """Pull of a primary topic not met lately, times the user's novelty appetite: standard normal, so some avoid it."""
    novelty_satiation: Share = 0.02
    """Satiation below which a topic counts as not met recently: about half a day without it."""

    click_logit: Logit = -2.6
    """Logit of a click on an item of pull 0; KuaiRand-27K clicks 0.379 in production and 0.176 at random."""
    click_clickbait: Logit = 0.9
    """Increase of the click logit per unit of clickbait, for a user of susceptibility 1."""
    click_bias_weight: Logit = 0.5
    """Weight of the user's readiness to click."""
    ranker_clickbait: Logit = 0.5
    """Increase of a production ranker's score per unit of clickbait, as the ranker was trained on clicks."""
    enjoyment_clickbait: Logit = 0.9
    """Decrease of enjoyment per unit of clickbait."""

    complete_logit: Logit = -0.2
    """Logit of watching a clicked item of enjoyment 0 and 32 s to its end. With complete_enjoyment and
    complete_duration, watch ratios have bumps near 0 and at 1, and a median that falls with duration, as in
    KuaiRand."""
    complete_enjoyment: Logit = 0.9
    """Increase of that logit per unit of enjoyment."""
    complete_duration: Logit = 0.55
    """Decrease of that logit per e-fold of duration over 32 s."""
    replay_prob: Share = 0.25
    """Probability of a replay after completion, times sigmoid(enjoyment - 1)."""
    replay_max: NonNegative = 1.5
    """Longest replay, in durations; uniform up to it."""
    partial_low: Share = 0.05
    """Least fraction watched after a click without completion."""
    partial_span: Share = 0.9
    """Range of that fraction."""
    partial_shape: tuple[Positive, NonNegative] = (0.8, 0.6)
    """a, b of the Beta(a + b sigmoid(enjoyment), 1) fraction inside the range."""
    skip_mean_s: SomeSeconds = 2.0
    """Mean watch time of a skipped item, exponential. KuaiRand-Pure: 1.8 s."""
    long_view_s: Seconds = 18.0
    """Watching this long, or to the end, is a long view (KuaiRand's definition)."""

    feedback_logit: tuple[Logit, ...] = (-6.6, -9.9, -8.2, -9.6, -8.1)
    """Logits of like, follow, comment, forward, hate at enjoyment 0, for rates like KuaiRand-Pure's: 0.0172, 0.0013,
    0.0025, 0.0009, 0.0008 of the items examined."""
    feedback_enjoyment: tuple[Logit, ...] = (1.0, 1.1, 0.8, 0.9, -1.0)
    """Increase of these logits per unit of enjoyment. Hate falls with it and needs no click."""

    next_logit: Logit = 2.8
    """Logit of going on to the next item at patience and enjoyment 0."""
    next_enjoyment: Logit = 0.55
    """Increase of that logit per unit of enjoyment."""
    budget_s: SomeSeconds = 180.0
    """Median time that a user has for a visit, seconds."""
    budget_sd: Spread = 0.9
    """Log-normal spread of that time."""
    budget_active: Logit = 0.3
    """Added to the log of that time, times 2 * activity - 1: in full at the day's peak, and 0 at half of it."""

    mood_rate: Share = 0.12
    """Step of the short-term interests towards a clicked item of enjoyment 1 or more."""
    mood_hours: Positive = 12.0
    """Time constant with which the mood fades, hours."""
    satiation_rate: Share = 0.22
    """Step of satiation at a clicked item."""
    satiation_skip: Share = 0.4
    """Share of that step at a skipped item."""
    satiation_hours: Positive = 3.0
    """Time constant of the recovery from satiation, hours."""
    satisfaction_rate: Share = 0.06
    """Step of satisfaction towards tanh(enjoyment) per item."""
    satisfaction_skip: Share = 0.35
    """Weight of the enjoyment of skipped items in satisfaction."""
    drift_rate: Share = 0.02
    """Step of the long-term interests towards the mood per visit."""

    gap_hours: Positive = 14.0
    """Scale of the gap to the next visit at satisfaction 0 and activity 1, hours."""
    gap_satisfaction: Logit = 1.6
    """The gap is scaled by exp(-gap_satisfaction * satisfaction)."""
    gap_shape: Annotated[float, Interval(ge=0.05, le=100)] = 0.7
    """Weibull shape of the gap; below 1, so that most gaps are short and some are long."""
    churn_logit: Logit = -5.0
    """Logit of leaving for ever after a visit, at satisfaction 0."""
    churn_satisfaction: Logit = 2.0
    """Decrease of that logit per unit of satisfaction."""

    day_base: NonNegative = 0.1
    """Activity at the dead of night. This and the bumps follow KuaiRand-27K's exposures by hour."""
    day_peaks: tuple[tuple[NonNegative, Positive, NonNegative], ...] = ((13.0, 4.0, 0.65), (21.5, 2.5, 0.75))
    """Hour, width in hours and height of the bumps of the day's activity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "interest_topics")
        for name in ("feedback_logit", "feedback_enjoyment"):
            if len(getattr(self, name)) != len(FEEDBACK):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} numbers; give {len(FEEDBACK)}, one for each of "
                    f"{', '.join(FEEDBACK)}."
                )
        if not (self.day_base or any(height for _, _, height in self.day_peaks)):
            raise ValueError(f"day_base={self.day_base} and no height in day_peaks: nobody is active; raise either.")


@dataclass(frozen=True, kw_only=True)
class Terms(Ranged):
    """Terms of the equations that are off in ShortVideo; :mod:`feedgym.envs.short_video.calibrated` turns them on.

    They are not options of :class:`ShortVideoConfig`, so that its runs stay unchanged.
    """

    ranker_interest: Logit = 0.0
    """Added to interest_weight in the production ranker's score: rankers trained on clicks show more of the same than
    users want."""
    satisfaction_bar: Logit = 0.0
    """Enjoyment that leaves a user as satisfied as before; less of it disappoints."""
    churn_fatigue: Logit = 0.0
    """Increase of the logit of leaving for ever per unit of fatigue, the mean satiation with the items of a visit."""
    gap_fatigue: Logit = 0.0
    """The gap to the next visit is scaled by exp(gap_fatigue * fatigue)."""
    gap_min_hours: NonNegative = 0.0
    """Least gap between two visits, hours."""
    week: tuple[Positive, ...] = (1.0,) * WEEK_DAYS
    """Activity on the days of the week, beginning with the clock's first day: gaps pass that much faster."""
    drift_watched: Share = 0.0
    """Step of the long-term interests towards a visit's clicked items, as far as they were enjoyed. 0: none."""
    drift_core: Share = 0.0
    """Step per visit of the long-term interests back to the core, those that the user came with."""
    drift_limit: Annotated[float, Interval(ge=-1, le=1)] = -1.0
    """Least cosine of the long-term interests with the core. -1: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.week) != WEEK_DAYS:
            raise ValueError(f"week has {len(self.week)} numbers; give {WEEK_DAYS}, one for each day of the week.")


def terms_of(config: ShortVideoConfig) -> Terms:
    """The terms of a configuration that has them as options; otherwise the defaults."""
    return config if isinstance(config, Terms) else Terms()


@dataclass(frozen=True, kw_only=True, eq=False)
class ShortVideoState:
    """U users between two visits. Only ``seed_U`` holds their randomness: replacing it changes no trait.

    Attributes:
        seed_U: uint64 seed of the user's random numbers.
        visit_U: int64 number of visits so far.
        time_s_U: float64 time at which the next visit begins.
        profile_UF: int64 age group, gender, device.
        interest_UD: float32 unit vectors, long-term interests (theta).
        core_UD: float32 unit vectors, the long-term interests that the user came with; they never change.
        mood_UD: float32 short-term interests (s).
        satiation_UM: float32 in [0, 1) satiation per topic (f).
        satisfaction_U: float32 in [-1, 1] (S).
        patience_U: float32 logits of going on.
        click_bias_U: float32 readiness to click.
        feedback_UX: float32 propensity of each explicit behaviour, logits.
        susceptibility_U: float32 > 0, to clickbait.
        novelty_U: float32 appetite for topics not met recently; negative for users who avoid them.
        activity_U: float32 > 0, relative frequency of visits.
        hour_shift_U: int64 shift of the day's rhythm, hours.
        seen_UR: int32 ring of the items examined last, -1 if empty.
        num_seen_U: int64 items examined so far.
    """

    seed_U: NDArray[np.uint64]
    visit_U: NDArray[np.int64]
    time_s_U: NDArray[np.float64]
    profile_UF: NDArray[np.int64]
    interest_UD: FloatArray
    core_UD: FloatArray
    mood_UD: FloatArray
    satiation_UM: FloatArray
    satisfaction_U: FloatArray
    patience_U: FloatArray
    click_bias_U: FloatArray
    feedback_UX: FloatArray
    susceptibility_U: FloatArray
    novelty_U: FloatArray
    activity_U: FloatArray
    hour_shift_U: IntArray
    seen_UR: IntArray
    num_seen_U: NDArray[np.int64]


class Population:
    """Draws users and knows when they are active.

    Args:
        config: the constants.
        latents: the catalogue's truth, for its topics.

    Attributes:
        day_H: float32 activity of the hours of the day, 1 at the peak.
        has_week: some days are more active than others.
        passed_s_W: float64 seconds, weighed by the days' activity, that have passed when a day of the week begins.
    """

    def __init__(self, config: ShortVideoConfig, latents: Latents) -> None:
        self.config, self.latents = config, latents
        rng = np.random.default_rng([config.catalog_seed, 1])
        self._profile_FD = unit(rng.normal(size=(len(PROFILE_NAMES), config.latent_dim))).astype(np.float32)
        self._gamma = GammaQuantiles(config.interest_shape)
        self.day_H = _day(config.day_peaks, config.day_base)
        week = terms_of(config).week
        self.has_week = any(level != 1 for level in week)
        self._day_s_W = DAY_S * np.arange(WEEK_DAYS + 1)
        self.passed_s_W = DAY_S * np.append(0, np.cumsum(week))

    def draw(self, seeds_U: NDArray[np.uint64]) -> ShortVideoState:
        """Draw fresh users; row u depends only on ``seeds_U[u]``."""
        c = self.config
        seeds_U = np.array(seeds_U, np.uint64)
        num_users = len(seeds_U)
        loved_UJ, weight_UJ, uniform_UC, uniform_U3 = self._traits(seeds_U)
        interest_UD, normal_CU = self._interests(loved_UJ, weight_UJ), luck.normal(uniform_UC.T)
        start_U, bar_U, minute_U = uniform_U3.T
        shift_U = np.rint(c.hour_shift_sd * normal_CU[HOUR_SHIFT]).astype(np.int64)
        start_s_U = (start_U.astype(np.float64) + c.first_day) * DAY_S
        return ShortVideoState(
            seed_U=seeds_U,
            visit_U=np.zeros(num_users, np.int64),
            time_s_U=self.next_active(start_s_U, shift_U, bar_U, minute_U),
            profile_UF=self._profiles(interest_UD, normal_CU[FIRST_PROFILE:FIRST_FEEDBACK]),
            interest_UD=interest_UD,
            core_UD=interest_UD.copy(),
            mood_UD=np.zeros((num_users, c.latent_dim), np.float32),
            satiation_UM=np.zeros((num_users, c.num_topics), np.float32),
            satisfaction_U=np.zeros(num_users, np.float32),
            patience_U=c.patience_sd * normal_CU[PATIENCE],
            click_bias_U=c.click_bias_sd * normal_CU[CLICK_BIAS],
            feedback_UX=np.ascontiguousarray(c.feedback_sd * normal_CU[FIRST_FEEDBACK:].T),
            susceptibility_U=np.exp(c.susceptibility_sd * normal_CU[SUSCEPTIBILITY]),
            novelty_U=normal_CU[NOVELTY].copy(),
            activity_U=np.exp(c.activity_sd * normal_CU[ACTIVITY]),
            hour_shift_U=shift_U,
            seen_UR=np.full((num_users, c.memory_items), -1, np.int32),
            num_seen_U=np.zeros(num_users, np.int64),
        )

    def activity(self, time_s_U: NDArray[np.float64], shift_U: IntArray) -> FloatArray:
        """Activity of the users' hour, in (0, 1], 1 at the day's peak."""
        return self.day_H.take(_hour(time_s_U) - shift_U, mode="wrap")

    def after(self, time_s_U: NDArray[np.float64], gap_s_U: NDArray[np.floating]) -> NDArray[np.float64]:
        """Time at which a gap ends: it passes as fast as the days of the week are active; float64 [U].

        With w(t) the activity of the day of t, the end t solves: integral of w from ``time_s_U`` to t = ``gap_s_U``.
        """
        if not self.has_week:
            return time_s_U + gap_s_U
        (*_, week_s), (*_, passed_s) = self._day_s_W, self.passed_s_W
        begin_s_U = week_s * np.floor(time_s_U / week_s)
        passed_s_U = np.interp(time_s_U - begin_s_U, self._day_s_W, self.passed_s_W) + gap_s_U
        more_U = np.floor(passed_s_U / passed_s)
        end_s_U = np.interp(passed_s_U - passed_s * more_U, self.passed_s_W, self._day_s_W)
        return begin_s_U + week_s * more_U + end_s_U

    def next_active(self, time_s_U: NDArray[np.float64], shift_U: IntArray, bar_U: FloatArray, minute_U: FloatArray):
        """``time_s_U`` if its hour is active, else a time in the next active hour; float64 [U].

        An hour is active when the day's activity is above the visit's bar, in (0, 1); the peak always is.
        ``minute_U`` in (0, 1) places the visit in the hour.
        """
        hour_U = _hour(time_s_U)
        level_UH = self.day_H.take((hour_U - shift_U)[:, None] + np.arange(24), mode="wrap")
        wait_U = (level_UH > bar_U[:, None]).argmax(axis=1)
        return np.where(wait_U > 0, (hour_U + wait_U + minute_U.astype(np.float64)) * 3600, time_s_U)

    def _traits(self, seeds_U: NDArray[np.uint64]) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
        """Topics [U, J] drawn by their shares with an exponential race, and uniform numbers of the traits.

        The numbers are those of the topics' weights (0 for topics beyond the user's number), of the normal traits, and
        of three others.
        """
        low, high = self.config.interest_topics[0], min(self.config.interest_topics[1], self.config.num_topics)
        num_normal, share_M = FIRST_FEEDBACK + len(FEEDBACK), self.latents.topic_share_M
        if HAS_NUMBA:
            from feedgym.envs.short_video import population_compiled  # numba takes long to import

            positions = (INTEREST, WEIGHT, NORMAL, UNIFORM)
            return population_compiled.traits(seeds_U, share_M, low, high, positions, num_normal)
        traits_U1 = luck.stream(luck.derive(seeds_U, 0), 0)[:, None]  # older than luck.traits, and as far from visits
        race_UM = luck.exponential(luck.draw(traits_U1, INTEREST, np.arange(len(share_M))))
        loved_UJ = np.argsort(race_UM / share_M, axis=1)[:, :high]
        count_U1 = low + luck.draw(traits_U1, WEIGHT, high) * (high + 1 - low)
        weight_UJ = luck.draw(traits_U1, WEIGHT, np.arange(high)) * (np.arange(1, high + 1) <= count_U1)
        return (
            loved_UJ,
            weight_UJ,
            luck.draw(traits_U1, NORMAL, np.arange(num_normal)),
            luck.draw(traits_U1, UNIFORM, np.arange(3)),
        )

    def _interests(self, loved_UJ: IntArray, uniform_UJ: FloatArray) -> FloatArray:
        """A Gamma-weighted mixture of topics; unit vectors."""
        weight_UJ = np.zeros_like(uniform_UJ)
        weighs_UJ = uniform_UJ > 0
        weight_UJ[weighs_UJ] = self._gamma(uniform_UJ[weighs_UJ])
        interest_UD = np.zeros((len(loved_UJ), self.config.latent_dim), np.float32)
        for j in range(loved_UJ.shape[1]):
            interest_UD += weight_UJ[:, j, None] * self.latents.topic_MD[loved_UJ[:, j]]
        return unit(interest_UD)

    def _profiles(self, interest_UD: FloatArray, noise_FU: FloatArray) -> NDArray[np.int64]:
        """Profile fields cut from hidden scores which are partly the interests along a direction per field."""
        tie = self.config.profile_tie
        along_UF = np.vecdot(interest_UD[:, None], self._profile_FD) * np.sqrt(np.float32(self.config.latent_dim))
        quantile_UF = ndtr(tie * along_UF + np.sqrt(1 - tie**2) * noise_FU.T)
        sizes_F = np.array(PROFILE_SIZES)
        return np.minimum(quantile_UF * sizes_F, sizes_F - 1).astype(np.int64)


def _hour(time_s_U: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(time_s_U / 3600).astype(np.int64)


def _day(peaks: tuple[tuple[float, float, float], ...], base: float) -> FloatArray:
    """Activity of the 24 hours: bumps on a base, 1 at the peak."""
    hour_H = np.arange(24) + 0.5
    day_H = np.full(24, base)
    for centre, width, height in peaks:
        away_H = np.abs((hour_H - centre + 12) % 24 - 12)
        day_H += height * np.exp(-0.5 * (away_H / width) ** 2)
    return (day_H / day_H.max()).astype(np.float32)
