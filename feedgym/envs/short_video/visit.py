"""What the two ways to compute a visit have in common: which random number decides what, and what they ask for."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import Catalog, FloatArray, IntArray
from feedgym.envs.short_video.catalog import Latents
from feedgym.envs.short_video.population import Population, ShortVideoConfig, Terms

CLICK, COMPLETE, REPLAY, EXTENT, NEXT = range(5)
"""Channels of luck at a position; those of the explicit behaviours follow them."""
BUDGET, GAP, ACTIVE_HOUR, MINUTE, CHURN = range(5)
"""Channels of luck of a whole visit."""


class SimulatorWithTruth(Protocol):
    """What is asked of :class:`feedgym.envs.short_video.ShortVideo` by the modules that it calls."""

    config: ShortVideoConfig
    terms: Terms
    catalog: Catalog
    latents: Latents
    population: Population
    has_arrivals: bool

    @property
    def constants(self) -> np.void:
        """The numbers of configuration and terms, as a compiled kernel takes them."""
        ...

    def fresh_pull(self, time_s: NDArray[np.float64], items: IntArray) -> FloatArray:
        """What freshness adds to the pull of items."""
        ...
