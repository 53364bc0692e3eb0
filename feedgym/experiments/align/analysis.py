"""Analyses the probes of a run; :mod:`feedgym.experiments.align.pictures` draws these parts of ``summary.json``.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` rounds; ``X`` sizes n of best-of-n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.align.best_of_n import best_of_n, best_of_n_kl, doublings
from feedgym.experiments.align.gap import gap, values_at_requests
from feedgym.experiments.align.overoptimisation import FORMS, Curve, fit, turnover
from feedgym.experiments.align.probe import Probe, Signals, kl_of, truth_of
from feedgym.experiments.align.stop_scores import KnownRun, score
from feedgym.experiments.align.stopping import StopRule, first_stop, kept_round, usual_rules
from feedgym.experiments.statistics import Ratio, interval, resampling_counts

Float = NDArray[np.float64]


def told_of(
    probes: Sequence[Probe], signals: Signals, pools: Mapping[str, Probe], oracle_U: Float | None, seed: int
) -> dict[str, Any]:
    """All parts of the summary that come from probes.

    Args:
        probes: probes after rounds 0, 1, ... of the same users.
        signals: the signals of these probes.
        pools: larger pools of sessions of ``base`` and ``aligned``, of the same users.
        oracle_U: true value of the oracle's sessions for these users, if there is an oracle.
        seed: seed for resampling users.

    Returns:
        ``over_optimisation``, ``stops`` and, if the truth is known, ``gap``.
    """
    truth_NU = truth_of(probes)
    told: dict[str, Any] = {}
    if len(probes) > 1:
        told["over_optimisation"] = over_optimisation(probes, pools["base"], seed)
        told["stops"] = stops(usual_rules(signals), signals, truth_NU)
    if truth_NU is not None:
        values = values_at_requests(pools["base"], pools["aligned"], oracle_U)
        told["gap"] = {"held-out users at their logged requests": gap(values, seed)}
    return told


def over_optimisation(probes: Sequence[Probe], pool: Probe | None = None, seed: int = 0) -> dict[str, Any]:
    """Proxy and true gain along a run, best-of-n of the base for comparison, and the fits of both.

    Args:
        probes: probes after rounds 0, 1, ... of the same users; the first is the base's.
        pool: a larger pool of the base's sessions for best-of-n; by default the first probe.
        seed: seed for resampling users.

    Returns:
        ``rounds``: a row per round with ``round``, ``kl`` and the gains over round 0: ``proxy`` and, if the truth is
        known, ``truth``, each with ``mean``, ``low``, ``high``. ``best_of_n``: the same per size ``n``, from one pool.
        ``unit``: the spread of the base's sessions within users, which makes the two gains comparable.
        ``expected_slope``: slope of truth on proxy over the base's sessions, which predicts the true gain of a proxy
        gain as long as nothing is exploited. ``fits``: see :func:`fit`, with ``curve`` and ``of``. ``turnover``: see
        there.
    """
    pool = probes[0] if pool is None else pool
    values = {"proxy": np.stack([_array(probe.score_US).mean(axis=1) for probe in probes])}
    if (truth_NU := truth_of(probes)) is not None:
        values["truth"] = truth_NU
    aligned = {name: Curve.of(kl_of(probes), value_NU) for name, value_NU in values.items()}
    sizes = doublings(pool.score_US.shape[1])
    chosen = _best_of_n_curves(pool, sizes)
    fits = [
        {"curve": curve, "of": name, **found}
        for curve, curves in (("rounds", aligned), ("best_of_n", chosen))
        for name in curves
        for form in FORMS
        if (found := fit([curves[name]], form, seed))
    ]
    return {
        "rounds": [{"round": t, **row} for t, row in enumerate(_rows(aligned, seed))],
        "best_of_n": [{"n": n, **row} for n, row in zip(sizes, _rows(chosen, seed), strict=True)],
        **_scales(pool),
        "fits": fits,
        "turnover": None if truth_NU is None else turnover(truth_NU),
    }


def stops(rules: Mapping[str, StopRule], signals: Signals, truth_NU: Float | None = None) -> list[dict[str, Any]]:
    """Decisions of each rule in a run that continued to its end.

    Returns:
        A row per rule: ``rule``, ``alarm`` (the round, None without one), ``reason``, ``kept`` (the round whose agent
        the rule would have kept). With the truth, also the other figures of
        :class:`feedgym.experiments.align.stop_scores.StopScore`.
    """
    rows = []
    for name, rule in rules.items():
        if truth_NU is not None:
            rows.append({"rule": name, **vars(score(rule, KnownRun(signals=signals, truth_NU=truth_NU)))})
        else:
            alarm, reason = first_stop(rule, signals) or (None, None)
            rows.append({"rule": name, "alarm": alarm, "reason": reason, "kept": kept_round(rule, signals)})
    return rows


def _best_of_n_curves(pool: Probe, sizes: Sequence[int]) -> dict[str, Curve]:
    score_US = _array(pool.score_US)
    values = {"proxy": score_US} | ({} if pool.truth_US is None else {"truth": _array(pool.truth_US)})
    kl_XU = best_of_n_kl(score_US, sizes).T
    return {name: Curve.of(kl_XU, best_of_n(score_US, value_US, sizes).T) for name, value_US in values.items()}


def _rows(curves: Mapping[str, Curve], seed: int) -> list[dict[str, Any]]:
    """A row per point: divergence and the gains with intervals."""
    first = next(iter(curves.values()))
    counts_RU = resampling_counts(first.kl_NU.shape[1], seed)
    ones_U = np.ones(first.kl_NU.shape[1])
    gains = {name: [interval(Ratio(gain_U, ones_U), counts_RU) for gain_U in c.gain_NU] for name, c in curves.items()}
    return [
        {"kl": float(kl_U.mean()), **{name: gains[name][row] for name in curves}}
        for row, kl_U in enumerate(first.kl_NU)
    ]


def _scales(pool: Probe) -> dict[str, Any]:
    """Spread of proxy and truth within users, and the slope of truth on proxy there."""
    score_US = _array(pool.score_US)
    if pool.truth_US is None:
        return {"unit": {"proxy": _within(score_US, score_US) ** 0.5}, "expected_slope": None}
    truth_US = _array(pool.truth_US)
    of_proxy, of_truth = _within(score_US, score_US), _within(truth_US, truth_US)
    return {
        "unit": {"proxy": of_proxy**0.5, "truth": of_truth**0.5},
        "expected_slope": _within(score_US, truth_US) / max(of_proxy, 1e-12),
    }


def _within(left_US: Float, right_US: Float) -> float:
    """Mean covariance over each user's sessions."""
    left, right = (values - values.mean(axis=1, keepdims=True) for values in (left_US, right_US))
    return float((left * right).sum() / (left.shape[0] * (left.shape[1] - 1)))


def _array(values: Any) -> Float:
    return values.cpu().numpy().astype(np.float64)
