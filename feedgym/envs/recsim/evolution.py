"""Interest evolution, RecSim's first family; see :mod:`feedgym.envs.recsim`.

Users have interests in [-1, 1] in the topics of videos, and a budget of time. They choose from a slate by interest. A
watched video moves the interest in its topic up or down, more if the interest is weak. The better the video was, the
more of its time they get back.

Source: ``recsim/environments/interest_evolution.py``, the model that its ``create_environment`` builds
(``UtilityModelUserSampler``, ``UtilityModelVideoSampler``, ``IEvUserModel``).

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from feedgym.data.events import FloatArray, IntArray
from feedgym.envs import choice, luck
from feedgym.envs.recsim.steps import TRAITS, RecSimState, best, by_blocks, documents, fresh, next_time_s, one_click
from feedgym.protocols import Response, checked_slates
from feedgym.ranges import Count, Few, Logit, NonNegative, Positive, Ranged, Seed, Share, Spread, Weight

CHOICE, FLIP = range(2)
"""Channels of a step's random numbers."""

ORACLE_STEPS = 8
"""Most iterations of Dinkelbach's method, which converges superlinearly and stops when no slate changes."""


@dataclass(frozen=True, kw_only=True)
class InterestEvolutionConfig(Ranged):
    """RecSim's constants, in its units: minutes, and scores that are interests."""

    num_items: Count = 100
    """I, number of videos."""
    catalog_seed: Seed = 0
    """Seed of the videos."""
    num_topics: Annotated[int, Interval(ge=2, le=65_536)] = 20
    """M, number of topics; the first 70% are poor, the others good."""
    quality_range: tuple[Logit, Logit] = (-3.0, 3.0)
    """Mean quality of the poorest and of the best topic; poor topics are spaced evenly up to 0, good ones from 0."""
    quality_sd: Spread = 0.1
    """Standard deviation of quality within a topic."""
    video_minutes: Positive = 4.0
    """Length of every video, minutes."""
    budget_minutes: Positive = 200.0
    """Time budget of a user, minutes; the last minute ends the episode."""
    step_penalty_minutes: Positive = 0.5
    """Time that a slate takes if nothing is watched, minutes."""
    payback: Share = 0.9
    """Share of the watched time that a video of quality ``quality_scale`` gives back; poor videos cost additional
    time."""
    quality_scale: Positive = 3.4
    """Quality with the full payback."""
    alpha_x: Positive = 1.0
    """Strength of an interest at and above which it does not move."""
    alpha_y: Share = 0.3
    """Step of an interest of strength 0."""
    choice: Literal["multinomial_proportional", "multinomial_logit", "proportional_cascade", "exponential_cascade"] = (
        "multinomial_proportional"
    )
    """Model of users' choice from a slate; see :mod:`feedgym.envs.choice`."""
    no_click_mass: Weight = 1.0
    """Score of watching nothing, in the multinomial models."""
    min_normalizer: Logit = -1.0
    """Least score of the proportional models; at most -1, because interests reach down to -1."""
    attention_prob: Share = 0.65
    """Chance that an item is noticed, in the cascades."""
    score_scaling: NonNegative = 0.05
    """Factor from a score to the chance of a click, in the cascades."""
    profile_levels: Few = 4
    """Levels in which the profile shows each topic's initial interest; 1 shows nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InterestEvolutionState(RecSimState):
    """U users between two steps.

    Attributes:
        profile_UF: int64 initial interests, in levels.
        interest_UM: float64 in [-1, 1], -1 is disgust.
        budget_minutes_U: float64 time left; the episode is over at 0 or below.
    """

    interest_UM: NDArray[np.float64]
    budget_minutes_U: NDArray[np.float64]


class InterestEvolution:
    """RecSim's interest evolution, batched.

    Args:
        config: the constants.

    Attributes:
        catalog: the videos; their content is RecSim's observation, the topic one-hot. All are equally long.
        quality_I: float64 the videos' quality, which no recommender sees.

    Raises:
        ValueError: a constant is out of range.
    """

    Config = InterestEvolutionConfig

    def __init__(self, config: InterestEvolutionConfig = InterestEvolutionConfig()) -> None:
        _check(config)
        self.config = config
        num_topics, levels = config.num_topics, config.profile_levels
        rng = np.random.default_rng(config.catalog_seed)
        self._topic_I = rng.integers(num_topics, size=config.num_items)
        self.quality_I = rng.normal(_topic_quality(config)[self._topic_I], config.quality_sd)
        # Minutes of budget that a minute of each video costs, including the payback for its quality.
        self._cost_I = 1 - config.payback * self.quality_I / config.quality_scale
        self.catalog = documents(
            content_IE=np.eye(num_topics)[self._topic_I],
            topic_I=self._topic_I,
            duration_s_I=np.full(config.num_items, 60 * config.video_minutes),
        )
        self.profile_names = tuple(f"interest_{topic}" for topic in range(num_topics))
        self.profile_sizes = (levels,) * num_topics

    def reset(self, seeds_U: NDArray[np.uint64]) -> InterestEvolutionState:
        """Fresh users, with interests uniform in [-1, 1]."""
        c, num_users = self.config, len(seeds_U)
        traits_U = luck.stream(luck.derive(seeds_U, TRAITS), 0)
        uniform_UM = luck.draw(traits_U[:, None], np.arange(c.num_topics), 0).astype(np.float64)
        return InterestEvolutionState(
            **fresh(seeds_U),
            profile_UF=(uniform_UM * c.profile_levels).astype(np.int64),
            interest_UM=2 * uniform_UM - 1,
            budget_minutes_U=np.full(num_users, c.budget_minutes),
        )

    def respond(self, state: InterestEvolutionState, slates_UK: IntArray) -> tuple[Response, InterestEvolutionState]:
        """Responses of the users to one slate each, and the users at their next step.

        Args:
            state: U users; stays unchanged.
            slates_UK: item ids.

        Raises:
            ValueError: the slates have another shape, are not integers, or hold an unknown item.
        """
        c, rows_U = self.config, np.arange(len(state.seed_U))
        slates_UK = checked_slates(slates_UK, len(rows_U), c.num_items)
        stream_U = luck.stream(state.seed_U, state.visit_U)
        score_UK = np.take_along_axis(state.interest_UM, self._topic_I[slates_UK], axis=1)
        position_U = choice.choose(self.choice_prob(score_UK), luck.draw(stream_U, luck.VISIT, CHOICE))
        clicked_U, item_U = position_U != choice.NOTHING, slates_UK[rows_U, position_U]
        watch_minutes_U = clicked_U * np.clip(state.budget_minutes_U, 0, c.video_minutes)
        spent_U = np.where(clicked_U, watch_minutes_U * self._cost_I[item_U], c.step_penalty_minutes)
        budget_U = state.budget_minutes_U - spent_U
        response = one_click(
            position_U,
            self._examined(position_U, slates_UK.shape[1]),
            watch_s_U=60 * watch_minutes_U,
            to_the_end_U=watch_minutes_U >= c.video_minutes,
            idle_s=60 * c.step_penalty_minutes,
            churned_U=budget_U <= 0,
        )
        return response, replace(
            state,
            visit_U=state.visit_U + 1,
            time_s_U=next_time_s(state.time_s_U, response),
            interest_UM=self._moved(state, clicked_U, item_U, luck.draw(stream_U, luck.VISIT, FLIP)),
            budget_minutes_U=budget_U,
        )

    def choice_prob(self, score_UK: NDArray[np.float64]) -> NDArray[np.float64]:
        """Chance that each position of slates of given interests is watched, float64 [..., K]."""
        c = self.config
        match c.choice:
            case "multinomial_proportional":
                return choice.multinomial_proportional(score_UK, c.no_click_mass, c.min_normalizer)
            case "multinomial_logit":
                return choice.multinomial_logit(score_UK, c.no_click_mass)
            case "proportional_cascade":
                return choice.proportional_cascade(score_UK, c.attention_prob, c.score_scaling, c.min_normalizer)
        return choice.exponential_cascade(score_UK, c.attention_prob, c.score_scaling)

    def oracle(self, state: InterestEvolutionState, session_length: int) -> NDArray[np.int64]:
        """Slates [U, K] with the most minutes watched per minute of budget, if interests stayed as they are.

        A user will watch about the budget times that ratio. For multinomial choices the slate is the best one
        (Dinkelbach's method on a ratio of sums over its items). For cascades, where order matters, it is nearly the
        best.
        """
        return by_blocks(self._most_minutes, state, session_length, self.config.num_items)

    def interests(self, state: InterestEvolutionState) -> tuple[FloatArray, FloatArray]:
        """The truth for renderings: interests, and satiation, which RecSim does not have; [U, M] each."""
        return state.interest_UM.astype(np.float32), np.zeros(state.interest_UM.shape, np.float32)

    @property
    def _cascades(self) -> bool:
        return self.config.choice.endswith("cascade")

    def _examined(self, position_U: NDArray[np.int64], session_length: int) -> NDArray[np.bool_]:
        if self._cascades:
            return choice.met_in_cascade(position_U, session_length)
        return np.ones((len(position_U), session_length), bool)

    def _moved(self, state: InterestEvolutionState, clicked_U: NDArray, item_U: NDArray, flip_U: NDArray):
        """Interests after watching: up with probability (interest + 1) / 2, else down."""
        c = self.config
        rows_U = np.flatnonzero(clicked_U)
        cell_U = rows_U, self._topic_I[item_U[rows_U]]
        interest_U = state.interest_UM[cell_U]
        step_U = (c.alpha_y - c.alpha_y / c.alpha_x * np.abs(interest_U)) * (1 - interest_U)
        up_U = flip_U[rows_U] < (interest_U + 1) / 2
        interest_UM = state.interest_UM.copy()
        interest_UM[cell_U] = np.clip(interest_U + np.where(up_U, step_U, -step_U), -1, 1)
        return interest_UM

    def _most_minutes(self, state: InterestEvolutionState, session_length: int) -> NDArray[np.int64]:
        c, cost_I = self.config, self._cost_I
        score_UI = state.interest_UM[:, self._topic_I]
        appeal_UI = self._appeal(score_UI)
        ratio_U1 = np.zeros((len(score_UI), 1))
        slates_UK = np.full((len(score_UI), session_length), -1)
        for _ in range(ORACLE_STEPS):
            last_UK = slates_UK
            gain_UI = c.video_minutes * (1 - ratio_U1 * cost_I)
            if self._cascades:  # a click replaces the penalty of no click
                gain_UI += ratio_U1 * c.step_penalty_minutes
            slates_UK = best(appeal_UI * gain_UI, session_length)
            if self._cascades:
                order_UK = best(np.take_along_axis(gain_UI, slates_UK, axis=1), session_length)
                slates_UK = np.take_along_axis(slates_UK, order_UK, axis=1)
            if (slates_UK == last_UK).all():
                break
            prob_UK = self.choice_prob(np.take_along_axis(score_UI, slates_UK, axis=1))
            idle_U = c.step_penalty_minutes * (1 - prob_UK.sum(axis=1))
            spent_U = c.video_minutes * (prob_UK * cost_I[slates_UK]).sum(axis=1) + idle_U
            ratio_U1 = (c.video_minutes * prob_UK.sum(axis=1) / spent_U)[:, None]
        return slates_UK

    def _appeal(self, score_UI: NDArray[np.float64]) -> NDArray[np.float64]:
        """Masses of the items, up to a factor: chances of a click in a cascade."""
        if self.config.choice in ("multinomial_logit", "exponential_cascade"):
            return np.exp(score_UI)
        return score_UI - self.config.min_normalizer


def _topic_quality(config: InterestEvolutionConfig) -> NDArray[np.float64]:
    low, high = config.quality_range
    num_poor = int(config.num_topics * 0.7)
    return np.concatenate([np.linspace(low, 0, num_poor), np.linspace(0, high, config.num_topics - num_poor)])


def _check(config: InterestEvolutionConfig) -> None:
    if config.min_normalizer > -1:
        raise ValueError(f"min_normalizer={config.min_normalizer} is above -1, the least interest; lower it.")
    if config.payback * max(map(abs, config.quality_range)) >= config.quality_scale:
        raise ValueError(
            f"payback={config.payback} gives back all the time of the best videos, so users never leave; keep it below "
            "quality_scale over the largest quality."
        )
