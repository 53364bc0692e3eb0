"""Splits the gap between the base and the oracle into steps.

The agents on this path, all at the same requests::

    base -> aligned -> base_best -> base_best_by_truth -> oracle

``base_best`` serves the best of n draws of the base by the reward, ``base_best_by_truth`` the best by the truth.
The step from the aligned agent to the best of n by the reward is lost by the optimiser. The step from there to the best
by the truth is lost by the reward model. The rest, up to the oracle, is out of the generator's reach. The steps add up
to the whole gap. A step backwards is negative (an aligned agent may do better than the best of n).

Axes beyond the legend of :mod:`feedgym.data.events`: ``R`` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.align.best_of_n import best_of_n
from feedgym.experiments.align.probe import Probe
from feedgym.experiments.statistics import Figure, Ratio, ends, resampling_counts

Float = NDArray[np.float64]

WAY = ("base", "aligned", "base_best", "base_best_by_truth", "oracle")
"""The agents on the path, in order."""

UP_TO = {
    "aligned": "gained by alignment",
    "base_best": "lost by the optimiser",
    "base_best_by_truth": "lost by the reward model",
    "oracle": "out of the generator's reach",
}
"""Names of the steps, by the agent they lead to; the step to a missing agent becomes part of the next one."""


def values_at_requests(
    base: Probe, aligned: Probe, oracle_U: Float | None = None, n: int | None = None
) -> dict[str, Float]:
    """True values per user of the agents on the path, and of the aligned agent's best of n, at a probe's requests.

    Choosing by the truth uses one half of the replicas to choose and the other half to value, both ways round.
    Otherwise noise would inflate the best of many noisy values. As half of the replicas choose worse than the truth
    itself would, the values by truth are lower bounds.

    Args:
        base: the base's pool of S sessions per user.
        aligned: the aligned agent's pool, of the same users.
        oracle_U: true value of the oracle's sessions.
        n: sessions to choose from; all S if not given.

    Returns:
        float64 [U] by the names of :data:`WAY`, and ``aligned_best`` and ``aligned_best_by_truth``.

    Raises:
        ValueError: the truth is not known.
    """
    values = {**_drawn_and_best("base", base, n), **_drawn_and_best("aligned", aligned, n)}
    return values if oracle_U is None else {**values, "oracle": np.asarray(oracle_U, float)}


def _drawn_and_best(name: str, pool: Probe, n: int | None) -> dict[str, Float]:
    if pool.truth_half_US2 is None:
        raise ValueError("The gap is measured in true values, and a recorded log has none; simulate its users.")
    one_US, other_US = np.moveaxis(pool.truth_half_US2.cpu().numpy().astype(float), 2, 0)
    score_US, truth_US = pool.score_US.cpu().numpy().astype(float), (one_US + other_US) / 2
    sizes = [n or truth_US.shape[1]]
    by_truth_UX = (best_of_n(one_US, other_US, sizes) + best_of_n(other_US, one_US, sizes)) / 2
    return {
        name: truth_US.mean(axis=1),
        f"{name}_best": best_of_n(score_US, truth_US, sizes)[:, 0],
        f"{name}_best_by_truth": by_truth_UX[:, 0],
    }


def gap(values: Mapping[str, Float | Figure], seed: int = 0) -> dict[str, Any]:
    """Compute the agents' values and the steps from base to oracle, with 95% intervals.

    Args:
        values: by agent, the users' values [U], or a ratio of sums over users, as in served judgements. All agents need
            the same users. ``base`` and two more of :data:`WAY` are required; agents off the path only get a value.
        seed: seed for resampling users.

    Returns:
        ``values``: by agent ``mean``, ``low``, ``high``. ``steps``: in order ``name``, ``to``, ``mean``, ``low``,
        ``high`` and ``share``, the part of the whole gap, with its interval. ``way``: the whole gap.

    Raises:
        ValueError: too few agents of the path are given.
    """
    figures = {name: _figure(value) for name, value in values.items()}
    there = [name for name in WAY if name in figures]
    if there[:1] != ["base"] or len(there) < 3:
        raise ValueError(
            f"agents {sorted(values)} are too few to split the gap; give base and two more of {', '.join(WAY)}."
        )
    counts_RU = resampling_counts(figures["base"].num_users, seed)
    mean = {name: figure.mean() for name, figure in figures.items()}
    resampled = {name: figure.resampled(counts_RU) for name, figure in figures.items()}
    way, way_R = mean[there[-1]] - mean["base"], resampled[there[-1]] - resampled["base"]
    steps = []
    for below, above in pairwise(there):
        step, step_R = mean[above] - mean[below], resampled[above] - resampled[below]
        share = {"mean": step / way, **ends(step_R / way_R)}
        steps.append({"name": _name_of(below, above), "to": above, "mean": step, **ends(step_R), "share": share})
    return {
        "values": {name: {"mean": mean[name], **ends(resampled[name])} for name in figures},
        "steps": steps,
        "way": {"mean": way, **ends(way_R)},
    }


def _name_of(below: str, above: str) -> str:
    """Name of the step between two agents of the path if those between them are missing."""
    return ", ".join(UP_TO[name] for name in WAY[WAY.index(below) + 1 : WAY.index(above) + 1])


def _figure(value: Float | Figure) -> Figure:
    return Ratio(value, np.ones(len(value))) if isinstance(value, np.ndarray) else value
