"""Judges every agent on one log: the result of each estimator, or the reason why it refuses, and the truth.

Axes beyond the legend of :mod:`feedgym.data.events`: ``A`` all slates that the catalogue allows, ``X`` pairs of a place
and an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from math import perm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.ope import estimators as by
from feedgym.experiments.ope.agents import Mixture
from feedgym.experiments.ope.estimators import Estimate, Float, log_or_never
from feedgym.experiments.ope.opinion import Opinion
from feedgym.experiments.ope.presets import OPERun
from feedgym.experiments.ope.targets import Target
from feedgym.experiments.ope.visits import JudgingVisits
from feedgym.experiments.progress import Step

ESTIMATORS = {
    "ips": "whole-slate IPS",
    "snips": "whole-slate SNIPS",
    "iips": "independent IPS",
    "rips": "reward-interaction IPS",
    "snrips": "the same, self-normalised",
    "pi": "pseudo-inverse",
    "dm": "direct method",
    "dr": "doubly robust",
    "cascade_dr": "cascade doubly robust",
    "switch": "the same, as deep as the log supports",
}
"""The estimators in the order of the tables, with their names for people."""

ERRORS = 3.0
"""Number of standard errors that a mean of weights may differ from 1."""

Told = dict[str, Estimate | str]
"""By estimator, the estimate or the reason for refusing it."""


@dataclass(frozen=True, eq=False)
class Answers:
    """An agent's probabilities and values at N visits.

    Attributes:
        logp_NK: log-probability of each logged item given those above it.
        truth_N: true value of a slate of its own.
        value_N: the model's expectation for its slates; None without a model.
        served_N: share of its slates that the log could have shown.
        prob_NA: its probability of every slate; None if there are too many.
    """

    logp_NK: Float
    truth_N: Float
    value_N: Float | None
    served_N: Float
    prob_NA: Float | None

    def mixed(self, shares: Mapping[str, float], parts: Mapping[str, Answers]) -> Answers:
        """Answers of a mixture of agents, drawn for each visit."""
        told: dict[str, Any] = {name: [getattr(parts[part], name) for part in shares] for name in vars(self)}
        share_R = list(shares.values())
        prefix_NK = _average([np.exp(np.cumsum(logp, axis=1)) for logp in told.pop("logp_NK")], share_R)
        above_NK = np.concatenate([np.ones((len(prefix_NK), 1)), prefix_NK[:, :-1]], axis=1)
        prob_NK = np.divide(prefix_NK, above_NK, out=np.zeros_like(prefix_NK), where=above_NK > 0)
        averages: dict[str, Any] = {
            name: None if values[0] is None else _average(values, share_R) for name, values in told.items()
        }
        return Answers(logp_NK=log_or_never(prob_NK), **averages)


def _average(values: list[Float], share_R: list[float]) -> Float:
    return sum(share * value for share, value in zip(share_R, values, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Slates:
    """All slates of a small catalogue, with the log's moments of pairs of a place and an item.

    Attributes:
        slates_NAK: each slate once per visit.
        one_hot_AX: 1 at their pairs.
        logged_NA: the log's probability of each slate.
        moment_NXX: the log's probability of two pairs together.
        shown_NX: 1 at the pairs that were shown.
    """

    slates_NAK: NDArray[np.int64]
    one_hot_AX: Float
    logged_NA: Float
    moment_NXX: Float
    shown_NX: Float

    @classmethod
    def of(cls, visits: JudgingVisits, num_items: int) -> Slates:
        """List all slates of a catalogue whose items always exist."""
        length = visits.slates_NK.shape[1]
        slates_AK = np.array(list(permutations(range(num_items), length)))
        one_hot_AX = _pairs(slates_AK, num_items)
        slates_NAK = np.repeat(slates_AK[None], len(visits), axis=0)
        logged_NA = visits.chances(slates_NAK).prod(axis=2)
        num_pairs = one_hot_AX.shape[1]
        both_AX = (one_hot_AX[:, :, None] * one_hot_AX[:, None]).reshape(len(slates_AK), -1)
        moment_NXX = (logged_NA @ both_AX).reshape(-1, num_pairs, num_pairs)
        return cls(slates_NAK, one_hot_AX, logged_NA, moment_NXX, _pairs(visits.slates_NK, num_items))

    def item_weights(self, prob_NA: Float, num_places: int) -> Float:
        """Ratios [N, K] of both policies' marginal probabilities of the item shown at each place."""
        shares = [(prob @ self.one_hot_AX)[self.shown_NX > 0] for prob in (prob_NA, self.logged_NA)]
        return (shares[0] / shares[1]).reshape(-1, num_places)


def _pairs(slates_XK: NDArray[np.int64], num_items: int) -> Float:
    return (slates_XK[..., None] == np.arange(num_items)).reshape(len(slates_XK), -1).astype(np.float64)


def all_slates(config: OPERun, visits: JudgingVisits, num_items: int) -> Slates | str:
    """All slates, or the reason why there is no sum over them."""
    length = visits.slates_NK.shape[1]
    if (number := perm(num_items, length)) > config.enumerated:
        return (
            f"it sums over all slates, and {num_items:,} items in {length} places make {number:.2g}, above "
            f"enumerated={config.enumerated}"
        )
    if visits.policy.config.num_candidates < num_items:
        return "the log's candidates are drawn anew for each visit, so its marginal chances are not known"
    return Slates.of(visits, num_items)


def answers(
    target: Target, visits: JudgingVisits, opinion: Opinion | None, slates: Slates | str, config: OPERun, seed: int
) -> Answers:
    """Compute an agent's answers; the truth and the model value different slates of it."""
    drawn_NSK = target.sample(1 + config.samples, seed)
    own_N1K, others_NSK = drawn_NSK[:, :1], drawn_NSK[:, 1:]
    value_N = None
    if opinion is not None:
        value_N = opinion.values(visits.histories, others_NSK).mean(axis=1)
    prob_NA = None
    if isinstance(slates, Slates):
        prob_NA = np.exp(target.log_probs(slates.slates_NAK).sum(axis=2))
    return Answers(
        logp_NK=target.log_probs(visits.slates_N1K)[:, 0],
        truth_N=visits.true_values(own_N1K, config.replicas)[:, 0],
        value_N=value_N,
        served_N=(visits.chances(others_NSK).prod(axis=2) > 0).mean(axis=1),
        prob_NA=prob_NA,
    )


@dataclass(frozen=True)
class Support:
    """Support that the log gives to estimates of an agent.

    Attributes:
        served: share of its slates that the log could have shown.
        rows_K: effective sample size of the prefix weights at each place.
        mean_K: their means, which are 1 up to sampling error if the propensities are right.
        largest_K: the largest weight's share of their sum.
        depth: number of places for which the log supports estimates by weights.
        why: the reason why it supports no more; None if it supports all.
    """

    served: float
    rows_K: list[float]
    mean_K: list[float]
    largest_K: list[float]
    depth: int
    why: str | None


def fault_of(weight_N: Float, least: float) -> str | None:
    """Reason why the weights of N rows support no estimate: too few rows count, or the weights' mean is not 1.

    The mean is 1 over all possible logs. A mean far below 1 shows that most of the agent's slates do not occur in this
    log. The remaining rows may still look numerous, such as those from the random half of a mixture.
    """
    rows, num = float(by.effective_sample_size(weight_N)), len(weight_N)
    if rows < least:
        return f"the effective sample size is {rows:.1f} of {num:,} rows, below {least:.0f}"
    mean, error = float(weight_N.mean()), float(weight_N.std()) / num**0.5
    if abs(mean - 1) > ERRORS * error + 1e-6:
        off = "most of what it serves is not in this log" if mean < 1 else "the propensities may be wrong"
        return f"the mean weight is {mean:.2f} and should be 1 up to {ERRORS * error:.2f}: {off}"
    return None


class Judge:
    """Applies the estimators to one log.

    Args:
        config: the limits for refusing estimates.
        visits: the log.
        slates: all slates, or the reason why they are missing.
        model_NK: the model's reward at each place of the logged slates; None without a model.
    """

    def __init__(self, config: OPERun, visits: JudgingVisits, slates: Slates | str, model_NK: Float | None) -> None:
        self.config, self.visits, self.slates, self.model_NK = config, visits, slates, model_NK
        self.least = max(config.min_rows, config.min_rows_share * len(visits))

    def estimates(self, told: Answers) -> tuple[Told, Support]:
        """Results of each estimator for an agent, or the reasons for refusing."""
        prefix_NK = by.prefix_weights(np.exp(told.logp_NK), self.visits.prob_NK)
        support = self.support(prefix_NK, told)
        found = self._by_weights(prefix_NK, support) | self._by_sums(told, support)
        found |= self._by_model(prefix_NK, told, support)
        return {name: found[name] for name in ESTIMATORS}, support

    def support(self, prefix_NK: Float, told: Answers) -> Support:
        """Measure how far the log supports estimates of an agent."""
        served, total_K = float(told.served_N.mean()), prefix_NK.sum(axis=0)
        faults = [fault_of(weight_N, self.least) for weight_N in prefix_NK.T]
        depth = next((k for k, fault in enumerate(faults) if fault), len(faults))
        why = f"at place {depth + 1} {faults[depth]}" if depth < len(faults) else None
        if served < self.config.min_served:
            depth, why = 0, f"{1 - served:.1%} of what it serves could not have been shown in this log"
        return Support(
            served=served,
            rows_K=by.effective_sample_size(prefix_NK).tolist(),
            mean_K=prefix_NK.mean(axis=0).tolist(),
            largest_K=(prefix_NK.max(axis=0) / np.where(total_K > 0, total_K, 1)).tolist(),
            depth=depth,
            why=why,
        )

    def _by_weights(self, prefix_NK: Float, support: Support) -> Told:
        reward_NK = self.visits.reward_NK
        return {
            name: support.why or estimator(prefix_NK, reward_NK)
            for name, estimator in (("ips", by.ips), ("snips", by.snips), ("rips", by.rips), ("snrips", by.snrips))
        }

    def _by_sums(self, told: Answers, support: Support) -> Told:
        if isinstance(self.slates, str) or told.prob_NA is None:
            return dict.fromkeys(("iips", "pi"), str(self.slates))
        slates, reward_NK = self.slates, self.visits.reward_NK
        if support.served < self.config.min_served:
            return dict.fromkeys(("iips", "pi"), str(support.why))
        weight_NK = slates.item_weights(told.prob_NA, reward_NK.shape[1])
        those = (told.prob_NA @ slates.one_hot_AX, slates.moment_NXX, slates.shown_NX)
        weight_N = by.pseudo_inverse_weights(*those)
        faults = [fault_of(column_N, self.least) for column_N in weight_NK.T]
        return {
            "iips": next(filter(None, faults), None) or by.iips(weight_NK, reward_NK),
            "pi": fault_of(weight_N, self.least) or by.pseudo_inverse(*those, reward_NK),
        }

    def _by_model(self, prefix_NK: Float, told: Answers, support: Support) -> Told:
        if self.model_NK is None or told.value_N is None:
            none = "the run's reward is not a model of the true reward in the same units"
            return dict.fromkeys(("dm", "dr", "cascade_dr", "switch"), none)
        reward_NK, why, places = self.visits.reward_NK, support.why, self.visits.reward_NK.shape[1]
        those = (prefix_NK, reward_NK, self.model_NK, told.value_N)
        return {
            "dm": by.direct(told.value_N),
            "dr": why or by.doubly_robust(*those),
            "cascade_dr": why or by.cascade_dr_to(places, *those),
            "switch": by.cascade_dr_to(support.depth, *those),
        }


def judged_agents(
    config: OPERun,
    targets: Mapping[str, Target],
    mixtures: Mapping[str, Mixture],
    visits: JudgingVisits,
    opinion: Opinion | None,
    slates: Slates | str,
    seed: int,
    step: Step,
) -> dict[str, Answers]:
    """Compute the answers of all agents by name, mixtures last."""
    found: dict[str, Answers] = {}
    for number, (name, target) in enumerate(targets.items()):
        found[name] = answers(target, visits, opinion, slates, config, seed)
        step(number + 1, len(targets))
    for name, mixture in mixtures.items():
        found[name] = next(iter(found.values())).mixed(mixture.shares, found)
    return found
