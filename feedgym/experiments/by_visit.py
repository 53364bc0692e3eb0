"""Compares judged agents visit by visit: whether a gain lasts, and why it fades.

An agent that serves what everybody likes does well at first, so a mean over the first visits flatters it. The report
shows the true reward and the reward model's prediction at each visit. Three figures explain why they fall. ``repeats``
is the share of the items seen that the user had seen before. ``favourites_used`` is the share of the user's favourites
that are used up. ``concentration`` shows how few items make up everything served.

Figures of a visit are those of the users who are still there. Intervals resample users, each visit by itself, and
differences between agents are paired over users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.serve import ServingRecord
from feedgym.experiments.statistics import Series, difference, intervals

BY_VISIT = ("true_reward", "model_reward", "repeats", "favourites_used")
"""Metrics by visit with intervals; others are concentration and the share of users still there."""


def told_by_visit(
    served: Mapping[str, ServingRecord], pairs: Sequence[tuple[str, str]], counts_RU: NDArray[np.float64]
) -> dict[str, Any]:
    """Make the part ``by_visit`` of a summary.

    Args:
        served: records of the same users under each agent.
        pairs: pairs of agents, to compare the true reward of the first with that of the second.
        counts_RU: resamples of the users.

    Returns:
        ``agents``: by name the measured metrics of :data:`BY_VISIT`, each with lists [V] ``mean``, ``low`` and
        ``high``; ``alive`` and ``concentration`` have only a ``mean``. ``difference``: by "one over other", the
        difference in true reward.
    """
    agents = {name: _figures(record, counts_RU) for name, record in served.items()}
    both = [(one, other) for one, other in pairs if one in served and other in served]
    rewards: dict[str, Series] = {name: record.series("true_reward") for name, record in served.items()}
    return {
        "agents": agents,
        "difference": {f"{a} over {b}": difference(rewards[a], rewards[b], counts_RU) for a, b in both},
    }


def _figures(record: ServingRecord, counts_RU: NDArray[np.float64]) -> dict[str, dict[str, list[float]]]:
    figures = {name: intervals(record.series(name), counts_RU) for name in BY_VISIT if name in record.by_visit}
    figures["alive"] = {"mean": record.by_visit["visits"].mean(axis=1).tolist()}
    figures["concentration"] = {"mean": record.concentration_V.tolist()}
    return figures
