"""Scores stop rules if the truth is known: how late they fire, how often falsely, and what that costs.

A run's peak is the first round within a standard error of the highest true value. A run that falls from it by more
than delta has turned (:func:`feedgym.experiments.align.overoptimisation.turnover`). A rule that fires too late lets the
value fall, and one that fires early gives up some of the gain: the regret counts both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feedgym.experiments.align.overoptimisation import turnover
from feedgym.experiments.align.probe import Signals
from feedgym.experiments.align.stopping import Never, StopRule, first_stop

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownRun:
    """A run that continued to its end, with the truth.

    Attributes:
        signals: the signals that rules may see, of N rounds and U users.
        truth_NU: true values of the same users' sessions, float64.
    """

    signals: Signals
    truth_NU: Float


@dataclass(frozen=True, kw_only=True)
class StopScore:
    """Outcome of a rule in one run.

    Attributes:
        alarm: the round after which it fired; None if it did not.
        reason: its reason.
        kept: the round whose agent the run ends with.
        peak: the round at which the run should have ended.
        turned: whether the run is over-optimised at its end.
        delay_rounds, delay_nats: from the peak to the alarm; None without an alarm or in a run that never turns.
        missed: no alarm in a run that turned.
        false_alarm: an alarm before the peak that gave away more than delta, or any alarm in a run that never turns.
        regret: loss of the kept round against the peak, as a share of the peak's gain; NaN if nothing was gained.
        fallen: share of the peak's true value that was lost by the round of the alarm, or by the end without one.
    """

    alarm: int | None
    reason: str | None
    kept: int
    peak: int
    turned: bool
    delay_rounds: int | None
    delay_nats: float | None
    missed: bool
    false_alarm: bool
    regret: float
    fallen: float


def score(rule: StopRule, run: KnownRun, delta: float | None = None) -> StopScore:
    """Score a rule on a run that continued to its end; ``delta`` as in :func:`turnover`."""
    turn = turnover(run.truth_NU, delta)
    peak, mean_N, kl_N = turn["round"], run.truth_NU.mean(axis=1), run.signals.kl_NU.mean(axis=1)
    alarm, reason = first_stop(rule, run.signals) or (None, None)
    last = len(mean_N) - 1 if alarm is None else alarm
    kept = rule.best(run.signals.until(last))
    turned, gave_away = turn["over_optimised"], mean_N[peak] - mean_N[last]
    late = alarm is not None and turned
    return StopScore(
        alarm=alarm,
        reason=reason,
        kept=kept,
        peak=peak,
        turned=turned,
        delay_rounds=last - peak if late else None,
        delay_nats=float(kl_N[last] - kl_N[peak]) if late else None,
        missed=turned and alarm is None,
        false_alarm=alarm is not None and (not turned or (alarm < peak and gave_away > turn["delta"])),
        regret=float((mean_N[peak] - mean_N[kept]) / turn["gain"]) if turn["gain"] > 0 else float("nan"),
        fallen=float(gave_away / mean_N[peak]),
    )


def compare_rules(rules: Mapping[str, StopRule], runs: Sequence[KnownRun]) -> list[dict[str, Any]]:
    """Compare rules over several runs, together with the control that never stops; the oracle's regret is 0.

    Returns:
        A row per rule: ``rule``, and the counts ``runs``, ``turned``, ``alarms``, ``missed`` and ``false_alarms``. The
        medians ``delay_rounds`` and ``delay_nats`` over runs that turned and were stopped, and ``regret`` over all
        runs. ``worst_fallen``, the largest loss in runs that turned, at the alarm or the end. NaN if there is none.
    """
    return [_row(name, [score(rule, run) for run in runs]) for name, rule in {**rules, "never": Never()}.items()]


def _row(name: str, scores: Sequence[StopScore]) -> dict[str, Any]:
    def median(attribute: str) -> float:
        values = [value for s in scores if (value := getattr(s, attribute)) is not None and value == value]
        return float(np.median(values)) if values else float("nan")

    return {
        "rule": name,
        "runs": len(scores),
        "turned": sum(s.turned for s in scores),
        "alarms": sum(s.alarm is not None for s in scores),
        "missed": sum(s.missed for s in scores),
        "false_alarms": sum(s.false_alarm for s in scores),
        **{name: median(name) for name in ("delay_rounds", "delay_nats", "regret")},
        "worst_fallen": max((s.fallen for s in scores if s.turned), default=float("nan")),
    }


def leave_one_out(candidates: Mapping[str, StopRule], runs: Sequence[KnownRun]) -> list[tuple[str, StopScore]]:
    """For each run, the candidate with the least mean regret over the other runs, and its score in this run.

    A threshold looks better than it is if it is judged by the runs it was chosen on.

    Raises:
        ValueError: there are fewer than 2 runs.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run leaves none to choose a threshold on; give 2 or more.")
    scores = {name: [score(rule, run) for run in runs] for name, rule in candidates.items()}

    def mean_regret(n: int, name: str) -> float:
        regrets = [s.regret for m, s in enumerate(scores[name]) if m != n and s.regret == s.regret]
        return float(np.mean(regrets)) if regrets else float("inf")

    chosen = [min(candidates, key=partial(mean_regret, n)) for n in range(len(runs))]
    return [(name, scores[name][n]) for n, name in enumerate(chosen)]
