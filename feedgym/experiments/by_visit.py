"""What judged agents do visit by visit: whether a gain lasts, and how it is used up.

An agent that skims what everybody likes does well at first, so a mean over the first visits flatters it. Beside the
true reward and the opinion of the reward model at each visit stand what tells why they fall: the share of the items
seen that the user had seen before (``repeats``), the share of the user's favourites that are used up, and how few
items make up what is served to all (``concentration``).

Figures of a visit are those of the users who are still there; intervals resample users, each visit by itself, and
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
"""Metrics told visit by visit with intervals; besides them concentration and the share of users still there."""


def told_by_visit(
    served: Mapping[str, ServingRecord], pairs: Sequence[tuple[str, str]], counts_RU: NDArray[np.float64]
) -> dict[str, Any]:
    """The part ``by_visit`` of a summary.

    Args:
        served: the same users under each agent.
        pairs: agents whose difference in true reward is told, each over another.
        counts_RU: the resamples of the users.

    Returns:
        ``agents``: by name the metrics of :data:`BY_VISIT` that were measured, each with lists [V] ``mean``, ``low``
        and ``high``, and ``alive`` and ``concentration`` with a ``mean`` alone. ``difference``: by "one over other" the
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
