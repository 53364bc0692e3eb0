"""Interest exploration, RecSim's second family; see :mod:`feedgym.envs.recsim`.

Documents of some topics are well made and please many; those of others please a minority very much. Users have hidden
types, never change and never leave. A recommender that serves the most clicked documents never learns who would love
the others.

Source: ``recsim/environments/interest_exploration.py`` (``IEClusterUserSampler``, ``IETopicDocumentSampler``,
``IEUserModel``).

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics, ``X`` shares of topics or of types of users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import FloatArray, IntArray
from feedgym.envs import choice, luck
from feedgym.envs.recsim.steps import TRAITS, RecSimState, best, by_blocks, documents, fresh, next_time_s, one_click
from feedgym.protocols import Response, checked_slates
from feedgym.ranges import Count, Logit, NonNegative, Ranged, Seed, Share, SomeSeconds, Spread

TYPE, AFFINITY = range(2)
"""Channels of a user's traits; each topic's affinity has its own position."""


@dataclass(frozen=True, kw_only=True)
class InterestExplorationConfig(Ranged):
    """RecSim's constants."""

    num_items: Count = 100
    """I, number of documents."""
    catalog_seed: Seed = 0
    """Seed of the documents."""
    topic_distribution: tuple[Share, ...] = (0.2, 0.8)
    """Shares of the M topics in the catalogue."""
    topic_quality_mean: tuple[Logit, ...] = (0.8, 0.2)
    """Mean of the log-quality of each topic's documents."""
    topic_quality_sd: tuple[Spread, ...] = (0.1, 0.1)
    """Standard deviation of the log-quality of each topic's documents."""
    user_type_distribution: tuple[Share, ...] = (0.3, 0.7)
    """Shares of the types of users."""
    affinity_mean: tuple[tuple[Logit, ...], ...] = ((0.1, 0.7), (0.7, 0.1))
    """Mean of the log-affinity of each type of users to each topic."""
    affinity_sd: tuple[tuple[Spread, ...], ...] = ((0.1, 0.1), (0.1, 0.1))
    """Standard deviation of the log-affinity of each type of users to each topic."""
    no_click_mass: NonNegative = 5.0
    """Score of clicking nothing."""
    document_s: SomeSeconds = 60.0
    """Seconds that a clicked document is read; RecSim's documents have no length."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InterestExplorationState(RecSimState):
    """U users between two steps; only the clock ever changes.

    Attributes:
        profile_UF: int64 zeros, because RecSim shows nothing of its users.
        type_U: int64 the user's hidden type.
        affinity_UM: float64 affinities > 0 to the topics.
    """

    type_U: NDArray[np.int64]
    affinity_UM: NDArray[np.float64]


class InterestExploration:
    """RecSim's interest exploration, batched.

    Args:
        config: the constants.

    Attributes:
        catalog: the documents; their content is RecSim's observation: the topic one-hot, then the quality.
        quality_I: float64 the documents' quality.

    Raises:
        ValueError: the constants disagree about the number of topics or of types, or shares do not sum to 1.
    """

    profile_names: tuple[str, ...] = ("user",)
    profile_sizes: tuple[int, ...] = (1,)

    Config = InterestExplorationConfig

    def __init__(self, config: InterestExplorationConfig = InterestExplorationConfig()) -> None:
        _check(config)
        self.config = config
        rng = np.random.default_rng(config.catalog_seed)
        num_topics = len(config.topic_distribution)
        self._topic_I = rng.choice(num_topics, size=config.num_items, p=config.topic_distribution)
        mean_M, sd_M = np.array(config.topic_quality_mean), np.array(config.topic_quality_sd)
        self.quality_I = rng.lognormal(mean_M[self._topic_I], sd_M[self._topic_I])
        self.catalog = documents(
            content_IE=np.column_stack([np.eye(num_topics)[self._topic_I], self.quality_I]),
            topic_I=self._topic_I,
            duration_s_I=np.full(config.num_items, config.document_s),
        )

    def reset(self, seeds_U: NDArray[np.uint64]) -> InterestExplorationState:
        """Fresh users: a type, and lognormal affinities around the type's."""
        c, num_users = self.config, len(seeds_U)
        traits_U = luck.stream(luck.derive(seeds_U, TRAITS), 0)
        type_U = _pick(c.user_type_distribution, luck.draw(traits_U, luck.VISIT, TYPE))
        place_M = np.arange(len(c.topic_distribution))
        normal_UM = luck.normal(luck.draw(traits_U[:, None], place_M, AFFINITY).astype(np.float64))
        return InterestExplorationState(
            **fresh(seeds_U),
            profile_UF=np.zeros((num_users, 1), np.int64),
            type_U=type_U,
            affinity_UM=np.exp(np.array(c.affinity_mean)[type_U] + np.array(c.affinity_sd)[type_U] * normal_UM),
        )

    def respond(
        self, state: InterestExplorationState, slates_UK: IntArray
    ) -> tuple[Response, InterestExplorationState]:
        """Responses of the users to one slate each, and the users at their next step.

        Args:
            state: U users; stays unchanged.
            slates_UK: item ids.

        Raises:
            ValueError: the slates have another shape, are not integers, or hold an unknown item.
        """
        c, num_users = self.config, len(state.seed_U)
        slates_UK = checked_slates(slates_UK, num_users, c.num_items)
        uniform_U = luck.draw(luck.stream(state.seed_U, state.visit_U), luck.VISIT, 0)
        position_U = choice.choose(self.choice_prob(state, slates_UK), uniform_U)
        response = one_click(
            position_U,
            np.ones(slates_UK.shape, bool),
            watch_s_U=np.full(num_users, c.document_s),
            to_the_end_U=np.ones(num_users, bool),
            idle_s=0.0,
            churned_U=np.zeros(num_users, bool),
        )
        return response, replace(state, visit_U=state.visit_U + 1, time_s_U=next_time_s(state.time_s_U, response))

    def choice_prob(self, state: InterestExplorationState, slates_UK: IntArray) -> NDArray[np.float64]:
        """Chance that each position of a slate is clicked, float64 [U, K]: a logit of affinity plus quality."""
        affinity_UK = np.take_along_axis(state.affinity_UM, self._topic_I[slates_UK], axis=1)
        return choice.multinomial_logit(affinity_UK + self.quality_I[slates_UK], self.config.no_click_mass)

    def oracle(self, state: InterestExplorationState, session_length: int) -> NDArray[np.int64]:
        """Slates [U, K] of the highest scores, which are the best ones, since served items never change a user."""
        return by_blocks(self._highest_scores, state, session_length, self.config.num_items)

    def interests(self, state: InterestExplorationState) -> tuple[FloatArray, FloatArray]:
        """The truth for renderings: affinities, and satiation, which RecSim does not have; [U, M] each."""
        return state.affinity_UM.astype(np.float32), np.zeros(state.affinity_UM.shape, np.float32)

    def _highest_scores(self, state: InterestExplorationState, session_length: int) -> NDArray[np.int64]:
        return best(state.affinity_UM[:, self._topic_I] + self.quality_I, session_length)


def _pick(share_X: tuple[float, ...], uniform_U: FloatArray) -> NDArray[np.int64]:
    """Indices drawn by share."""
    return np.minimum(np.searchsorted(np.cumsum(share_X), uniform_U, side="right"), len(share_X) - 1)


def _check(config: InterestExplorationConfig) -> None:
    topics, types = len(config.topic_distribution), len(config.user_type_distribution)
    for name in ("topic_distribution", "user_type_distribution"):
        share_X = np.array(getattr(config, name))
        if len(share_X) == 0 or share_X.min() < 0 or abs(share_X.sum() - 1) > 1e-6:
            raise ValueError(f"{name}={getattr(config, name)} are not shares; give numbers of 0 or more that sum to 1.")
    shapes = {
        "topic_quality_mean": (topics,),
        "topic_quality_sd": (topics,),
        "affinity_mean": (types, topics),
        "affinity_sd": (types, topics),
    }
    for name, shape in shapes.items():
        try:
            actual = np.array(getattr(config, name), np.float64).shape
        except ValueError:
            actual = ("ragged",)  # type: ignore[assignment]
        if actual != shape:
            raise ValueError(f"{name} has shape {actual}, but {topics} topics and {types} types of users need {shape}.")
