"""When to stop aligning, by rules that see no truth.

A rule looks at the signals of the probes after every round (:class:`feedgym.experiments.align.probe.Signals`), says
whether to stop and why, and which round is then the best one. Each is a class with its ``Config``; one of your own
needs the two methods of :class:`StopRule`.

The defaults are chosen, not derived: they were set by looking at two runs of the demo's size (seed 10), so that none of
them stops the one with a sound reward model. Fit them on other seeds than those reported;
:mod:`feedgym.experiments.align.stop_scores` says how good they are where the truth is known.

What each can see: ``held_out`` and ``correlation`` see a reward model that is exploited alone, and no bias that the
held-out ones share; so does ``disagreement``, already while the held-out ones still rise. ``kl`` and ``diversity`` see
how far the agent has gone, whatever the reward.

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
    """Decides after every round whether the alignment goes on."""

    def stopped(self, signals: Signals) -> str | None:
        """Why to stop after the last of the rounds so far; None to go on."""
        ...

    def best(self, signals: Signals) -> int:
        """The best of the rounds so far, in the rule's eyes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Patient(Ranged):
    """What all rules have."""

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
        """Which rounds look bad [N], each judged by what was known after it; the base never does."""

    @abstractmethod
    def reason(self, signals: Signals) -> str:
        """What looks bad in the last round."""

    def stopped(self, signals: Signals) -> str | None:
        """Why to stop after the last of the rounds so far; None to go on."""
        last_N = self.bad(signals)[-self.config.patience :]
        return self.reason(signals) if len(last_N) == self.config.patience and last_N.all() else None

    def best(self, signals: Signals) -> int:
        """The last round before those at the end that look bad."""
        return int(np.flatnonzero(~self.bad(signals))[-1])


@dataclass(frozen=True, kw_only=True)
class DisagreementConfig(Patient):
    """Stops when the optimised reward and the held-out ones are further apart than on the base's sessions."""

    ratio: Annotated[float, Interval(gt=1, le=1000)] = 2.5
    """Their standard deviation over a session, over that on the base's sessions. It rises while all goes well too,
    because they spread out where values are high."""


class Disagreement(Crossing):
    """Stops when those who judge a session disagree more than they did over the base's."""

    Config: ClassVar = DisagreementConfig
    watched = True

    def __init__(self, config: DisagreementConfig = DisagreementConfig()) -> None:
        super().__init__(config)
        self.ratio = config.ratio

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Where the mean spread is above the limit."""
        return self._ratio_N(signals) > self.ratio

    def reason(self, signals: Signals) -> str:
        """The ratio reached."""
        return f"rewards disagree {self._ratio_N(signals)[-1]:.2f} times as much as over the base (limit {self.ratio})"

    def _ratio_N(self, signals: Signals) -> Float:
        spread_N = _watched(signals.spread_NU, "disagreement").mean(axis=1)
        return spread_N / max(spread_N[0], 1e-12)


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(Patient):
    """Stops when a reward model that nothing optimises likes the sessions less than it did before."""

    level: SplitShare = 0.01
    """Level of the one-sided test, paired over users, against the best round so far; shared out among the rounds that
    could have been the best one."""


class HeldOut(Crossing):
    """Stops when held-out reward models say that the sessions became worse; their favourite round is the best one."""

    Config: ClassVar = HeldOutConfig
    watched = True

    def __init__(self, config: HeldOutConfig = HeldOutConfig()) -> None:
        super().__init__(config)
        self.level = config.level

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Where the fall since the best round before is beyond what luck among users explains."""
        value_NU = _watched(signals.held_out_NU, "held_out")
        return np.array([self._worse(value_NU[: t + 1]) for t in range(len(value_NU))])

    def reason(self, signals: Signals) -> str:
        """Since when, and how much."""
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
        # The best of many rounds is high by luck too: each of them has only its share of the level.
        limit = student.ppf(1 - self.level / len(before_NU), len(fall_U) - 1)
        return bool(fall_U.mean() > limit * max(standard_error(fall_U), 1e-12))


@dataclass(frozen=True, kw_only=True)
class KLBudgetConfig(Patient):
    """Stops when the agent is further from the base than a budget allows."""

    nats: Positive = 12.0
    """Divergence from the base per session that may be spent."""


class KLBudget(Crossing):
    """Stops at a distance from the base."""

    Config: ClassVar = KLBudgetConfig

    def __init__(self, config: KLBudgetConfig = KLBudgetConfig()) -> None:
        super().__init__(config)
        self.nats = config.nats

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Where the mean divergence is above the budget."""
        over_N = signals.kl_NU.mean(axis=1) > self.nats
        over_N[0] = False
        return over_N

    def reason(self, signals: Signals) -> str:
        """The divergence reached."""
        return f"{signals.kl_NU[-1].mean():.2f} nats from the base (budget {self.nats})"


@dataclass(frozen=True, kw_only=True)
class DiversityConfig(Patient):
    """Stops when sessions are less varied than a share of the base's."""

    items: Share = 0.6
    """Floor of the variety within sessions, as a share of the base's; 0 for none."""
    entropy: Share = 0.5
    """Floor of the entropy of a user's sessions, as a share of the base's; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.items == self.entropy == 0:
            raise ValueError("items=0 and entropy=0 leave the rule nothing to stop at; raise one of them.")


class Diversity(Crossing):
    """Stops at a floor of variety, within sessions or between them."""

    Config: ClassVar = DiversityConfig

    def __init__(self, config: DiversityConfig = DiversityConfig()) -> None:
        super().__init__(config)
        self.floors = {"diversity": config.items, "entropy": config.entropy}

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Where one of the two is below its floor."""
        below = [share_N < self.floors[name] for name, share_N in self._shares(signals).items()]
        bad_N = np.any(below, axis=0)
        bad_N[0] = False
        return bad_N

    def reason(self, signals: Signals) -> str:
        """What is left of each."""
        left = (f"{share_N[-1]:.0%} of the {name}" for name, share_N in self._shares(signals).items())
        floors = " and ".join(f"{floor:.0%}" for floor in self.floors.values())
        return f"sessions have {' and '.join(left)} of the base's (floors {floors})"

    def _shares(self, signals: Signals) -> dict[str, Float]:
        figures = {"diversity": signals.diversity_NU.mean(axis=1), "entropy": signals.entropy_NU.mean(axis=1)}
        return {name: value_N / max(value_N[0], 1e-12) for name, value_N in figures.items()}


@dataclass(frozen=True, kw_only=True)
class CorrelationConfig(Patient):
    """Stops when the optimised reward no longer ranks sessions as held-out ones do."""

    floor: SomeShare = 0.5
    """Least rank correlation within users, as a share of that over the base's sessions."""


class Correlation(Crossing):
    """Stops when the optimised reward and the held-out ones no longer agree which of a user's sessions are better."""

    Config: ClassVar = CorrelationConfig
    watched = True

    def __init__(self, config: CorrelationConfig = CorrelationConfig()) -> None:
        super().__init__(config)
        self.floor = config.floor

    def bad(self, signals: Signals) -> NDArray[np.bool_]:
        """Where the correlation is below its floor."""
        mean_N = self._mean_N(signals)
        bad_N = mean_N < self.floor * mean_N[0]
        bad_N[0] = False
        return bad_N

    def reason(self, signals: Signals) -> str:
        """What the correlation was and is."""
        mean_N = self._mean_N(signals)
        return f"rank correlation with the held-out reward {mean_N[-1]:.2f}, over the base's sessions {mean_N[0]:.2f}"

    def _mean_N(self, signals: Signals) -> Float:
        return np.nan_to_num(np.nanmean(_watched(signals.correlation_NU, "correlation"), axis=1))


class Never:
    """No rule: every round is gone through, and the last one's agent is kept."""

    watched: ClassVar[bool] = False

    def stopped(self, signals: Signals) -> None:
        """Goes on."""
        return

    def best(self, signals: Signals) -> int:
        """The last round."""
        return len(signals) - 1


def usual_rules(signals: Signals) -> dict[str, StopRule]:
    """The rules of the registry with their defaults, as far as the signals serve them."""
    kinds = {name: resolve("stop", name) for name in BUILT_IN["stop"] if name != "never"}
    return {name: kind() for name, kind in kinds.items() if not kind.watched or signals.held_out_NU is not None}


def first_stop(rule: StopRule, signals: Signals) -> tuple[int, str] | None:
    """The round after which a rule would have stopped a run that went on, and why; None where it never would."""
    for t in range(len(signals)):
        if reason := rule.stopped(signals.until(t)):
            return t, reason
    return None


def kept_round(rule: StopRule, signals: Signals) -> int:
    """The round whose agent a run ends with under a rule: the best when it stops, or of all rounds."""
    stop = first_stop(rule, signals)
    return rule.best(signals if stop is None else signals.until(stop[0]))


def _watched(value_NU: Float | None, rule: str) -> Float:
    if value_NU is None:
        raise ValueError(
            f"stop={rule!r} needs held-out reward models, and there are none; fit some, or choose kl or diversity."
        )
    return value_NU
