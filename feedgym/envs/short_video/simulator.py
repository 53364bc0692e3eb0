"""The flagship simulator: users of a one-column short-video feed who respond to whole sessions.

A user examines the items of a session one after another until patience or time runs out. Each item meets long-term
interests, the mood of the day, satiation with its topics and the memory of items already seen. Clickbait raises the
click and lowers the enjoyment. Enjoyment is never observed; it drives completion, feedback, going on, satisfaction, the
return and churn. So order and diversity matter, and engagement is not satisfaction.

With arrivals or lifetimes (:class:`feedgym.envs.short_video.catalog.CatalogConfig`; off by default) items come and go
on a clock that all users share. A session may name any item of the catalogue. If an item does not exist yet, or was
withdrawn before the visit began, its place is empty. Then the user has nothing to watch, is as displeased as by a click
on the worst item, and leaves. So every action has a response, and an empty place pays nothing. Neither it nor later
places are examined, so that no log or history can mistake it for an item that users dislike.

All random numbers are keyed by user (:mod:`feedgym.envs.luck`). The equations of a visit are in two files: a compiled
loop over users (:mod:`feedgym.envs.short_video.visit_numba`), and NumPy if numba is missing
(:mod:`feedgym.envs.short_video.visit_numpy`).

Axes beyond the legend of :mod:`feedgym.data.events`: ``M`` topics. ``C`` counts candidates in ``ranker_score``.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import DAY_S, FloatArray, IntArray
from feedgym.envs.compiling import HAS_NUMBA
from feedgym.envs.short_video import visit_numpy
from feedgym.envs.short_video.catalog import freshness, make_catalog, num_arrivals, popularity
from feedgym.envs.short_video.oracle import favourite_items, greedy_sessions
from feedgym.envs.short_video.population import (
    PROFILE_NAMES,
    PROFILE_SIZES,
    Population,
    ShortVideoConfig,
    ShortVideoState,
    terms_of,
)
from feedgym.protocols import Response, checked_slates


class ShortVideo:
    """The flagship user simulator; see the module's docstring.

    Args:
        config: the catalogue's and the users' constants.

    Attributes:
        catalog: the part of the items that recommenders may know.
        latents: the truth of the items, for judges and logging policies.
        terms: the equations' terms that are off by default; see :mod:`feedgym.envs.short_video.calibrated`.
        popularity_I: float32 share of the exposures that each item has in a feed by popularity.
        population: draws users and knows when they are active.
        has_arrivals: whether items come or go, so that the legal items depend on the clock.
        compiled: visits are answered by the compiled kernel, not by NumPy.
    """

    Config = ShortVideoConfig
    profile_names: tuple[str, ...] = PROFILE_NAMES
    profile_sizes: tuple[int, ...] = PROFILE_SIZES

    def __init__(self, config: ShortVideoConfig = ShortVideoConfig()) -> None:  # noqa: B008 (frozen)
        self.config, self.terms = config, terms_of(config)
        self.catalog, self.latents = make_catalog(config, config.catalog_seed)
        self.popularity_I = self.latents.popularity_I
        self.has_arrivals = bool(num_arrivals(config) or config.lifetime_days)
        self.population = Population(config, self.latents)
        self.compiled = HAS_NUMBA

    def reset(self, seeds_U: NDArray[np.uint64]) -> ShortVideoState:
        """Draw fresh users, before their first visit, which is in an active hour of the clock's first day or so."""
        return self.population.draw(seeds_U)

    def starting(self, first_day: float) -> ShortVideo:
        """The same catalogue and users, with first visits on another day of the clock."""
        return type(self)(replace(self.config, first_day=first_day))

    def respond(self, state: ShortVideoState, slates_UK: IntArray) -> tuple[Response, ShortVideoState]:
        """Responses of the users to one session each, and the users at their next visit.

        Args:
            state: U users; not changed.
            slates_UK: item ids in 0..I-1, the same number K of items for all users.

        Raises:
            ValueError: the slates have another shape, are not integers, or hold an unknown item.
        """
        slates_UK = checked_slates(slates_UK, len(state.seed_U), self.config.num_items)
        if self.compiled:
            from feedgym.envs.short_video import visit_numba  # numba takes long to import

            return visit_numba.respond(self, state, slates_UK)
        return visit_numpy.respond(self, state, slates_UK)

    @functools.cached_property
    def constants(self) -> NDArray[np.void]:
        """The constants of a visit, as the kernel takes them."""
        from feedgym.envs.short_video.visit_numba import constants_of

        return constants_of(self)

    def ranker_score(self, state: ShortVideoState, items_UC: IntArray) -> FloatArray:
        """Score of a production ranker for C candidates per user: interest, quality, clickbait, [U, C]."""
        c, latents, by_interest = self.config, self.latents, self.config.interest_weight + self.terms.ranker_interest
        if self.compiled:
            from feedgym.envs.short_video.ranker_compiled import scores

            weights = (float(by_interest), float(c.quality_weight), float(c.ranker_clickbait))
            tables = (latents.z_ID, latents.quality_I, latents.clickbait_I)
            score_UC = scores(weights, state.interest_UD, *tables, items_UC)
        else:
            affinity_UC = np.vecdot(latents.z_ID.take(items_UC, axis=0), state.interest_UD[:, None])
            quality_UC, bait_UC = latents.quality_I.take(items_UC), latents.clickbait_I.take(items_UC)
            score_UC = by_interest * affinity_UC + c.quality_weight * quality_UC + c.ranker_clickbait * bait_UC
        return score_UC + self.fresh_pull(state.time_s_U[:, None], items_UC) if c.fresh_weight else score_UC

    def popularity_on(self, day: int) -> FloatArray:
        """Weights [I] of the items in a feed by popularity on a day of the clock, by their age when it begins."""
        age_s_I = day * DAY_S - self.catalog.upload_s_I
        return popularity(self.config, self.latents.fame_I, age_s_I).astype(np.float32)

    def fresh_pull(self, time_s: NDArray[np.float64], items: IntArray) -> FloatArray:
        """Effect of freshness on the pull of items at a time, float32 of their common shape."""
        age_s = time_s - self.catalog.upload_s_I.take(items)
        return (self.config.fresh_weight * freshness(self.config, age_s)).astype(np.float32)

    def oracle(self, state: ShortVideoState, session_length: int) -> NDArray[np.int64]:
        """Sessions [U, K] chosen by the truth (:func:`feedgym.envs.short_video.oracle.greedy_sessions`)."""
        return greedy_sessions(self, state, session_length)

    def favourites(self, state: ShortVideoState, n: int) -> NDArray[np.int64]:
        """The ``n`` items [U, n] that each user would enjoy most without satiation."""
        return favourite_items(self, state, n)

    def interests(self, state: ShortVideoState) -> tuple[FloatArray, FloatArray]:
        """The truth for renderings: affinity to the topics and satiation with them, [U, M] each.

        The affinity combines long-term interests and mood, weighted as in a choice.
        """
        c = self.config
        unit = c.interest_weight or 1.0  # if long-term interests have no weight, only the mood is felt
        felt_UD = c.interest_weight / unit * state.interest_UD + c.mood_weight / unit * state.mood_UD
        return np.einsum("ud,md->um", felt_UD, self.latents.topic_MD), state.satiation_UM
