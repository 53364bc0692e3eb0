"""Common parts of the two ways to compute a visit: the uses of random numbers, and the simulator's interface."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feedgym.data.events import Catalog, FloatArray, IntArray
from feedgym.envs.short_video.catalog import Latents
from feedgym.envs.short_video.population import Population, ShortVideoConfig, Terms

CLICK, COMPLETE, REPLAY, EXTENT, NEXT = range(5)
"""Channels of random numbers at a position; those of the explicit behaviours follow them."""
BUDGET, GAP, ACTIVE_HOUR, MINUTE, CHURN = range(5)
"""Channels of random numbers of a whole visit."""


class SimulatorWithTruth(Protocol):
    """The part of :class:`feedgym.envs.short_video.ShortVideo` that the modules it calls need."""

    config: ShortVideoConfig
    terms: Terms
    catalog: Catalog
    latents: Latents
    population: Population
    has_arrivals: bool

    @property
    def constants(self) -> NDArray[np.void]:
        """The numbers of configuration and terms, as a compiled kernel takes them."""
        ...

    def fresh_pull(self, time_s: NDArray[np.float64], items: IntArray) -> FloatArray:
        """Effect of freshness on the pull of items."""
        ...
