"""Long-term satisfaction (chocolate and kale), RecSim's third family; see :mod:`feedgym.envs.recsim`.

Users always take the first item. Clickbait ("choc") engages more at once but lowers satisfaction, which scales all
later engagement; wholesome items ("kale") raise it. Satisfaction is never observed.

Source: ``recsim/environments/long_term_satisfaction.py`` (``LTSStaticUserSampler``, ``LTSUserModel``). With RecSim's
own constants a sensitivity of 0.01 leaves satisfaction within a percent or two of one half, so choc always pays. Raise
``sensitivity`` for a real conflict.

Axes beyond the legend of :mod:`feedgym.data.events`: ``X`` points of the grid of exposures. ``T`` counts steps left in
``value_TX``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from scipy.special import expit

from feedgym.data.events import IntArray
from feedgym.envs import luck
from feedgym.envs.recsim.steps import TRAITS, RecSimState, best, by_blocks, documents, fresh, next_time_s, one_click
from feedgym.protocols import Response, checked_slates
from feedgym.ranges import BelowOne, Count, Ranged, Seed, Spread, Weight

ENGAGEMENT, INNOVATION = range(2)
"""Channels of a step's random numbers."""

MAX_ENGAGEMENT_S = 100.0
"""Limit at which RecSim's observation clips engagement; here the documents' length, beyond which users watch again."""

GRID = 257
"""Number of exposures at which the oracle computes the value of a user."""
PLANNED_ITEMS = 33
"""Number of clickbait scores, evenly spaced in rank, with which the oracle plans the future."""
NOISE_SD, NOISE_WEIGHT = np.sqrt(3) * np.array([-1, 0, 1]), np.array([1, 4, 1]) / 6
"""Gauss-Hermite quadrature of a standard normal number by three points."""


@dataclass(frozen=True, kw_only=True)
class LongTermSatisfactionConfig(Ranged):
    """RecSim's constants; engagement is in seconds."""

    num_items: Count = 100
    """I, number of documents."""
    catalog_seed: Seed = 0
    """Seed of the documents."""
    memory_discount: BelowOne = 0.7
    """Share of the net positive exposure that a step keeps; from 0 to below 1."""
    sensitivity: Weight = 0.01
    """Satisfaction is sigmoid(sensitivity * net positive exposure)."""
    innovation_sd: Spread = 0.05
    """Standard deviation of the noise in the exposure."""
    choc_mean: Annotated[float, Interval(ge=-20, le=20)] = 5.0
    """Mean log-engagement with pure clickbait, at satisfaction 1."""
    choc_sd: Spread = 1.0
    """Standard deviation of the log-engagement with pure clickbait."""
    kale_mean: Annotated[float, Interval(ge=-20, le=20)] = 4.0
    """Mean log-engagement with an item free of clickbait, at satisfaction 1."""
    kale_sd: Spread = 1.0
    """Standard deviation of the log-engagement with an item free of clickbait."""
    time_budget: Count = 60
    """Number of steps after which a user leaves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LongTermSatisfactionState(RecSimState):
    """U users between two steps.

    Attributes:
        profile_UF: int64 zeros, because RecSim shows nothing of its users.
        exposure_U: float64 net positive exposure.
        budget_U: int64 steps left.
    """

    exposure_U: NDArray[np.float64]
    budget_U: NDArray[np.int64]


class LongTermSatisfaction:
    """RecSim's long-term satisfaction, batched.

    Args:
        config: the constants.

    Attributes:
        catalog: the documents; their content is RecSim's observation, the clickbait score. They have no topic.
        clickbait_I: float64 in [0, 1).

    Raises:
        ValueError: a constant is out of range.
    """

    profile_names: tuple[str, ...] = ("user",)
    profile_sizes: tuple[int, ...] = (1,)

    Config = LongTermSatisfactionConfig

    def __init__(
        self,
        config: LongTermSatisfactionConfig = LongTermSatisfactionConfig(),
    ) -> None:
        self.config = config
        self.clickbait_I = np.random.default_rng(config.catalog_seed).random(config.num_items)
        self.catalog = documents(
            content_IE=self.clickbait_I[:, None],
            topic_I=np.full(config.num_items, -1),
            duration_s_I=np.full(config.num_items, MAX_ENGAGEMENT_S),
        )

    def reset(self, seeds_U: NDArray[np.uint64]) -> LongTermSatisfactionState:
        """Fresh users, with uniform net positive exposure."""
        c, num_users = self.config, len(seeds_U)
        traits_U = luck.stream(luck.derive(seeds_U, TRAITS), 0)
        uniform_U = luck.draw(traits_U, luck.VISIT, 0).astype(np.float64)
        return LongTermSatisfactionState(
            **fresh(seeds_U),
            profile_UF=np.zeros((num_users, 1), np.int64),
            exposure_U=(uniform_U - 0.5) / (1 - c.memory_discount),
            budget_U=np.full(num_users, c.time_budget),
        )

    def respond(
        self, state: LongTermSatisfactionState, slates_UK: IntArray
    ) -> tuple[Response, LongTermSatisfactionState]:
        """Engagement of the users with the first item of one slate each, and the users at their next step.

        Args:
            state: U users; stays unchanged.
            slates_UK: item ids.

        Raises:
            ValueError: the slates have another shape, are not integers, or hold an unknown item.
        """
        c, num_users = self.config, len(state.seed_U)
        slates_UK = checked_slates(slates_UK, num_users, c.num_items)
        stream_U = luck.stream(state.seed_U, state.visit_U)
        noise_U, innovation_U = (
            luck.normal(luck.draw(stream_U, luck.VISIT, channel).astype(np.float64))
            for channel in (ENGAGEMENT, INNOVATION)
        )
        clickbait_U = self.clickbait_I[slates_UK[:, 0]]
        mean_U, sd_U = self.log_engagement(clickbait_U, state.exposure_U)
        watch_s_U = np.exp(mean_U + sd_U * noise_U)
        response = one_click(
            np.zeros(num_users, np.int64),
            np.arange(slates_UK.shape[1]) < np.ones((num_users, 1)),
            watch_s_U=watch_s_U,
            to_the_end_U=watch_s_U >= MAX_ENGAGEMENT_S,
            idle_s=0.0,
            churned_U=state.budget_U <= 1,
        )
        return response, replace(
            state,
            visit_U=state.visit_U + 1,
            time_s_U=next_time_s(state.time_s_U, response),
            exposure_U=self._exposed(state.exposure_U, clickbait_U) + c.innovation_sd * innovation_U,
            budget_U=state.budget_U - 1,
        )

    def satisfaction(self, exposure_U: NDArray[np.float64]) -> NDArray[np.float64]:
        """Satisfaction in (0, 1), [...], of net positive exposures."""
        return expit(self.config.sensitivity * exposure_U)

    def log_engagement(self, clickbait: NDArray, exposure: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and standard deviation of log-engagement, given clickbait and net positive exposure, broadcast."""
        c = self.config
        mean = (clickbait * c.choc_mean + (1 - clickbait) * c.kale_mean) * self.satisfaction(exposure)
        return mean, clickbait * c.choc_sd + (1 - clickbait) * c.kale_sd

    def oracle(self, state: LongTermSatisfactionState, session_length: int) -> NDArray[np.int64]:
        """Sessions [U, K] whose first item has the highest value: its engagement plus all expected later engagement.

        Later engagement is that of the best policy, by dynamic programming over exposure and steps left.
        """
        return by_blocks(self._most_valuable, state, session_length, self.config.num_items)

    def _exposed(self, exposure: NDArray, clickbait: NDArray) -> NDArray:
        """Net positive exposure after an item, without the noise."""
        return self.config.memory_discount * exposure - 2 * (clickbait - 0.5)

    def _engagement_s(self, clickbait: NDArray, exposure: NDArray) -> NDArray:
        """Expected engagement, seconds."""
        mean, sd = self.log_engagement(clickbait, exposure)
        return np.exp(mean + sd**2 / 2)

    def _most_valuable(self, state: LongTermSatisfactionState, session_length: int) -> NDArray[np.int64]:
        left_U = np.clip(state.budget_U - 1, 0, self.config.time_budget)
        later_UX = self._value_TX[left_U]
        return best(self._value_of(self.clickbait_I, state.exposure_U[:, None], later_UX[:, None]), session_length)

    def _value_of(self, clickbait_I: NDArray, exposure_U1: NDArray, later_U1X: NDArray) -> NDArray[np.float64]:
        """Expected seconds [U, I] of an item now plus the best policy after it, with values at the grid's exposures."""
        step, low = self._grid_X[1] - self._grid_X[0], self._grid_X[0]
        value_UI = self._engagement_s(clickbait_I, exposure_U1)
        for noise, weight in zip(self.config.innovation_sd * NOISE_SD, NOISE_WEIGHT, strict=True):
            place_UI = np.clip((self._exposed(exposure_U1, clickbait_I) + noise - low) / step, 0, GRID - 1)
            left_UI = np.minimum(place_UI.astype(np.int64), GRID - 2)
            later_UX = later_U1X[:, 0]
            below_UI, above_UI = (np.take_along_axis(later_UX, left_UI + i, axis=1) for i in (0, 1))
            value_UI = value_UI + weight * (below_UI + (place_UI - left_UI) * (above_UI - below_UI))
        return value_UI

    @cached_property
    def _grid_X(self) -> NDArray[np.float64]:
        c = self.config
        noise = 5 * c.innovation_sd / np.sqrt(1 - c.memory_discount**2)
        reach = 1 / (1 - c.memory_discount) + noise  # the limit of repeating the same extreme forever
        return np.linspace(-reach, reach, GRID)

    @cached_property
    def _value_TX(self) -> NDArray[np.float64]:
        """Value by exposure for 0..time_budget steps left, with the best item at each step."""
        ranked_I = np.sort(self.clickbait_I)
        planned_I = ranked_I[np.unique(np.linspace(0, len(ranked_I) - 1, PLANNED_ITEMS).round().astype(int))]
        value_TX = np.zeros((self.config.time_budget + 1, GRID))
        for left in range(1, len(value_TX)):
            later_U1X = np.broadcast_to(value_TX[left - 1], (GRID, 1, GRID))
            value_TX[left] = self._value_of(planned_I, self._grid_X[:, None], later_U1X).max(axis=1)
        return value_TX
