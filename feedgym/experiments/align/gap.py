"""Where the gap lies: the way from the base to the oracle, taken apart.

Some agents stand on that way, all at the same requests::

    base -> aligned -> base_best -> base_best_by_truth -> oracle

``base_best`` serves the best of n of the base's draws by the reward, ``base_best_by_truth`` that by the truth. So what
lies between the aligned agent and the best of n by the reward is what the optimiser loses, what lies between that and
the best by the truth is what the reward model loses, and the rest up to the oracle is out of the generator's reach. The
steps add up to the way; one that goes backwards is negative (an aligned agent may do better than the best of n).

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
"""The agents on the way, in its order."""

UP_TO = {
    "aligned": "gained by alignment",
    "base_best": "lost by the optimiser",
    "base_best_by_truth": "lost by the reward model",
    "oracle": "out of the generator's reach",
}
"""What the step up to an agent is called; where an agent is not there, its step is part of the next one."""


def values_at_requests(
    base: Probe, aligned: Probe, oracle_U: Float | None = None, n: int | None = None
) -> dict[str, Float]:
    """True values per user of the agents on the way, and of the aligned agent's best of n, at a probe's requests.

    Choosing by the truth is choosing by one half of its replicas and valuing by the other, both ways round: the best of
    many noisy values would be overrated by its noise. As half of the replicas choose worse than the truth itself would,
    the values by truth are lower bounds.

    Args:
        base: the base's pool of S sessions a user.
        aligned: the aligned agent's, of the same users.
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
    """The agents' values and the steps of the way from base to oracle, with 95% intervals.

    Args:
        values: by agent, the users' values [U] or a ratio of sums over users, as served judgements have; the same users
            for all. ``base`` and two more of :data:`WAY` are needed; agents beside the way are told with the rest.
        seed: decides the resamples of users.

    Returns:
        ``values``: by agent ``mean``, ``low``, ``high``. ``steps``: in the way's order ``name``, ``to``, ``mean``,
        ``low``, ``high`` and, as a part of the whole way, ``share`` with its interval. ``way``: its whole length.

    Raises:
        ValueError: too few agents of the way are there.
    """
    figures = {name: _figure(value) for name, value in values.items()}
    there = [name for name in WAY if name in figures]
    if there[:1] != ["base"] or len(there) < 3:
        raise ValueError(
            f"agents {sorted(values)} make no way to take apart; give base and two more of {', '.join(WAY)}."
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
    """What lies between two agents of the way, those between them not being there."""
    return ", ".join(UP_TO[name] for name in WAY[WAY.index(below) + 1 : WAY.index(above) + 1])


def _figure(value: Float | Figure) -> Figure:
    return Ratio(value, np.ones(len(value))) if isinstance(value, np.ndarray) else value
