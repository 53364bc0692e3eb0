"""Rules that decide when to stop aligning, without access to the truth.

After every round a rule looks at the signals of the probes (:class:`feedgym.experiments.align.probe.Signals`). It
decides if and why to stop, and which round is then the best one. Each rule is a class with its ``Config``; your own
rule needs the two methods of :class:`StopRule`.

The defaults are chosen, not derived. They were set on two runs of the demo's size (seed 10), so that none of them stops
the run with a sound reward model. Fit them on other seeds than those you report;
:mod:`feedgym.experiments.align.stop_scores` measures how good they are if the truth is known.

What each rule can detect: ``held_out`` and ``correlation`` detect the exploitation of one reward model, but no bias
that the held-out models share. ``disagreement`` detects the same, even while the held-out scores still rise. ``kl`` and
``diversity`` detect how far the agent has moved, whatever the reward.

Axes beyond the legend of :mod:`feedgym.data.events`: ``N`` rounds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from feedgym.experiments.align.overoptimisation import standard_error
from feedgym.experiments.align.probe import Signals
from feedgym.plugins import BUILT_IN, resolve
from feedgym.ranges import Positive, Ranged, Share, SomeShare, SplitShare

Float = NDArray[np.float64]


class StopRule(Protocol):
    """Decides after every round whether the alignment continues."""

    def stopped(self, signals: Signals) -> str | None:
        """Reason to stop after the last of the rounds so far; None to continue."""
        ...

    def best(self, signals: Signals) -> int:
        """The best of the rounds so far, according to the rule."""
        ...


@dataclass(frozen=True, kw_only=True)
class Patient(Ranged):
    """Options of all rules."""

    patience: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Rounds in a row that must look bad before the rule stops."""


class Crossing(ABC):
    """A rule that stops when something looks bad for some rounds in a row; the round before those is the best one."""

    watched: ClassVar[bool] = False
    """Whether the rule needs held-out reward models."""

    def __init__(self, config: Patient) -> None:
        self.config = config

    @abstractmethod
    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Mask of the rounds that look bad [N], each judged by the signals known after it; the base never does."""

    @abstractmethod
    def reason(self, signals: Signals) -> str:
        """The reason why the last round looks bad."""

    def stopped(self, signals: Signals) -> str | None:
        """Reason to stop after the last of the rounds so far; None to continue."""
        last_N = self.bad(signals)[-self.config.patience :]
        return self.reason(signals) if len(last_N) == self.config.patience and last_N.all() else None

    def best(self, signals: Signals) -> int:
        """The last round before those at the end that look bad."""
        return int(np.flatnonzero(~self.bad(signals))[-1])


@dataclass(frozen=True, kw_only=True)
class DisagreementConfig(Patient):
    """Stops when the scores of the optimised and the held-out rewards differ more than on the base's sessions."""

    ratio: Annotated[float, Interval(gt=1, le=1000)] = 2.5
    """Limit of the standard deviation of a session's scores, relative to that on the base's sessions. It also rises
    while all goes well, because scores spread out at high values."""


class Disagreement(Crossing):
    """Stops when the judges of a session disagree more than they did on the base's sessions."""

    Config: ClassVar = DisagreementConfig
    watched = True

    def __init__(self, config: DisagreementConfig = DisagreementConfig()) -> None:
        super().__init__(config)
        self.ratio = config.ratio

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Rounds whose mean spread is above the limit."""
        return self._ratio_N(signals) > self.ratio

    def reason(self, signals: Signals) -> str:
        """The current ratio, with its limit."""
        return f"rewards disagree {self._ratio_N(signals)[-1]:.2f} times as much as on the base (limit {self.ratio})"

    def _ratio_N(self, signals: Signals) -> Float:
        spread_N = _watched(signals.spread_NU, "disagreement").mean(axis=1)
        return spread_N / max(spread_N[0], 1e-12)


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Patient):
    """Stops when a reward model that is not optimised scores the sessions lower than before."""

    level: SplitShare = 0.01
    """Level of the one-sided test, paired over users, against the best round so far. It is divided among the rounds
    that could have been the best one."""


class HeldOut(Crossing):
    """Stops when held-out reward models score the sessions lower; their favourite round is the best one."""

    Config: ClassVar = HeldOutConfig
    watched = True

    def __init__(self, config: HeldOutConfig = HeldOutConfig()) -> None:
        super().__init__(config)
        self.level = config.level

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Rounds whose fall since the best earlier round exceeds the sampling error over users."""
        value_NU = _watched(signals.held_out_NU, "held_out")
        return np.array([self._worse(value_NU[: t + 1]) for t in range(len(value_NU))])

    def reason(self, signals: Signals) -> str:
        """The fall, and the round since when."""
        mean_N = _watched(signals.held_out_NU, "held_out").mean(axis=1)
        best = self.best(signals)
        return f"the held-out reward has fallen from {mean_N[best]:.3g} after round {best} to {mean_N[-1]:.3g}"

    def best(self, signals: Signals) -> int:
        """The round of the highest held-out reward."""
        return int(_watched(signals.held_out_NU, "held_out").mean(axis=1).argmax())

    def _worse(self, value_NU: Float) -> bool:
        from scipy.stats import t as student

        if len(value_NU) == 1:
            return False
        before_NU, last_U = value_NU[:-1], value_NU[-1]
        fall_U = before_NU[before_NU.mean(axis=1).argmax()] - last_U
        # The best of many rounds is high by chance too: each of them has only its share of the level.
        limit = student.ppf(1 - self.level / len(before_NU), len(fall_U) - 1)
        return bool(fall_U.mean() > limit * max(standard_error(fall_U), 1e-12))


@dataclass(frozen=True, kw_only=True)
class KLBudgetConfig(Patient):
    """Stops when the agent is further from the base than a budget allows."""

    nats: Positive = 12.0
    """Budget of the divergence from the base, in nats per session."""


class KLBudget(Crossing):
    """Stops at a given distance from the base."""

    Config: ClassVar = KLBudgetConfig

    def __init__(self, config: KLBudgetConfig = KLBudgetConfig()) -> None:
        super().__init__(config)
        self.nats = config.nats

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Rounds whose mean divergence is above the budget."""
        over_N = signals.kl_NU.mean(axis=1) > self.nats
        over_N[0] = False
        return over_N

    def reason(self, signals: Signals) -> str:
        """The current divergence, with its budget."""
        return f"{signals.kl_NU[-1].mean():.2f} nats from the base (budget {self.nats})"


@dataclass(frozen=True, kw_only=True)
class DiversityConfig(Patient):
    """Stops when the variety of the sessions falls below a share of the base's."""

    items: Share = 0.6
    """Least variety within sessions, as a share of the base's; 0 for no limit."""
    entropy: Share = 0.5
    """Least entropy of a user's sessions, as a share of the base's; 0 for no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.items == self.entropy == 0:
            raise ValueError("items=0 and entropy=0 leave the rule without a limit; raise one of them.")


class Diversity(Crossing):
    """Stops when variety, within sessions or between them, falls below a limit."""

    Config: ClassVar = DiversityConfig

    def __init__(self, config: DiversityConfig = DiversityConfig()) -> None:
        super().__init__(config)
        self.floors = {"diversity": config.items, "entropy": config.entropy}

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Rounds in which one of the two is below its limit."""
        below = [share_N < self.floors[name] for name, share_N in self._shares(signals).items()]
        bad_N = np.any(below, axis=0)
        bad_N[0] = False
        return bad_N

    def reason(self, signals: Signals) -> str:
        """The remaining share of each, with the limits."""
        left = (f"{share_N[-1]:.0%} of the {name}" for name, share_N in self._shares(signals).items())
        floors = " and ".join(f"{floor:.0%}" for floor in self.floors.values())
        return f"sessions have {' and '.join(left)} of the base's (floors {floors})"

    def _shares(self, signals: Signals) -> dict[str, Float]:
        figures = {"diversity": signals.diversity_NU.mean(axis=1), "entropy": signals.entropy_NU.mean(axis=1)}
        return {name: value_N / max(value_N[0], 1e-12) for name, value_N in figures.items()}


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig(Patient):
    """Stops when the optimised reward no longer ranks sessions as the held-out ones do."""

    floor: SomeShare = 0.5
    """Least rank correlation within users, as a share of the one on the base's sessions."""


class Correlation(Crossing):
    """Stops when the optimised reward and the held-out ones no longer agree on the order of a user's sessions."""

    Config: ClassVar = CorrelationConfig
    watched = True

    def __init__(self, config: CorrelationConfig = CorrelationConfig()) -> None:
        super().__init__(config)
        self.floor = config.floor

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Rounds whose correlation is below the limit."""
        mean_N = self._mean_N(signals)
        bad_N = mean_N < self.floor * mean_N[0]
        bad_N[0] = False
        return bad_N

    def reason(self, signals: Signals) -> str:
        """The correlation now and on the base's sessions."""
        mean_N = self._mean_N(signals)
        return f"rank correlation with the held-out reward {mean_N[-1]:.2f}, on the base's sessions {mean_N[0]:.2f}"

    def _mean_N(self, signals: Signals) -> Float:
        return np.nan_to_num(np.nanmean(_watched(signals.correlation_NU, "correlation"), axis=1))


class Never:
    """No rule: all rounds are run, and the last one's agent is kept."""

    watched: ClassVar[bool] = False

    def stopped(self, signals: Signals) -> None:
        """Always continue."""
        return

    def best(self, signals: Signals) -> int:
        """The last round."""
        return len(signals) - 1


def usual_rules(signals: Signals) -> dict[str, StopRule]:
    """Built-in rules with their default options, as far as the signals suffice for them."""
    kinds = {name: resolve("stop", name) for name in BUILT_IN["stop"] if name != "never"}
    return {name: kind() for name, kind in kinds.items() if not kind.watched or signals.held_out_NU is not None}


def first_stop(rule: StopRule, signals: Signals) -> tuple[int, str] | None:
    """The round after which a rule would have stopped a run that continued, and why; None if it never would."""
    for t in range(len(signals)):
        if reason := rule.stopped(signals.until(t)):
            return t, reason
    return None


def kept_round(rule: StopRule, signals: Signals) -> int:
    """The round whose agent a run ends with under a rule: the best round so far when it stops, or the best of all."""
    stop = first_stop(rule, signals)
    return rule.best(signals if stop is None else signals.until(stop[0]))


def _watched(value_NU: Float | None, rule: str) -> Float:
    if value_NU is None:
        raise ValueError(
            f"stop={rule!r} needs held-out reward models, and there are none; fit some, or choose kl or diversity."
        )
    return value_NU
