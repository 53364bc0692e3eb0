"""Deployment cycles as functions: each returns the whole configuration of a run, to be changed field by field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Interval

from feedgym.experiments.align.presets import AlignConfig, RoundsConfig, small, smoke
from feedgym.ranges import Count, CountOrZero, LearningRate, PartPasses, Ranged, Share, Visits, check_choices

Learner = Literal["aligned", "offline", "base", "popular"]
Refit = Literal["keep", "continue", "refit"]


@dataclass(frozen=True, kw_only=True)
class CycleConfig(Ranged):
    """Options of the cycles: which users to serve in each, what to learn from, and what to fit again."""

    num: Annotated[int, Interval(ge=1, le=1000)] = 3
    """Cycles of serving and learning, after the agent was made from the log."""
    rounds: Annotated[int, Interval(ge=1, le=10_000)] = 2
    """Rounds of alignment in each cycle; those before the first cycle are rounds.num."""
    users: Count = 145
    """Number of new users in each cycle."""
    visits: Visits = 14
    """Visits per user and cycle, unless they churn earlier."""
    stay: Annotated[int, Interval(ge=1, le=1000)] = 1
    """Number of cycles that serve a user. 1: all users of a cycle are new; 2: those of the last cycle return once."""
    explore: Share = 0.0
    """Share of the visits that get a random session instead of the agent's."""
    window: CountOrZero = 0
    """Number of cycles to learn from, the latest ones; the log counts as the one before the first. 0: all of them."""
    fresh_share: Share = 0.5
    """Share of a round's requests that come from the latest cycle; the others come from before it. With window=1 all of
    them come from the latest."""
    base: Refit = "keep"
    """Use of the served sessions for next-token prediction. keep: none, so that alignment continues from the last
    snapshot. continue: train the last snapshot further, then align it. refit: pretrain a new base, then align it."""
    reward: Refit = "refit"
    """The reward model: keep the log's, continue to train it on the sessions of the window, or refit a new one."""
    further_epochs: PartPasses = 0.5
    """Passes over the sessions of the window when a model is trained further."""
    further_lr: LearningRate = 5e-4
    """Peak learning rate when a model is trained further."""
    learners: tuple[Learner, ...] = ("aligned", "offline", "base", "popular")
    """Learners in the cycles, each learning only from the sessions it served. aligned is always required. offline is
    aligned for as many rounds, but only on the log, and serves nobody. base is as aligned, without the alignment.
    popular serves the items seen most in the window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, base=Refit, reward=Refit, learners=Learner)
        if "aligned" not in self.learners or len(set(self.learners)) < len(self.learners):
            raise ValueError(f"learners={' '.join(self.learners)!r} must include aligned and have no name twice.")
        if self.window == 1 and self.fresh_share != CycleConfig.fresh_share:
            raise ValueError(f"fresh_share={self.fresh_share} does nothing if window=1 keeps one cycle; leave it out.")
        if "continue" not in (self.base, self.reward):
            for name in ("further_epochs", "further_lr"):
                if getattr(self, name) != getattr(CycleConfig, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)} has no model to train further; set base or reward to continue."
                    )


@dataclass(frozen=True, kw_only=True)
class CyclesConfig(AlignConfig):
    """A deployed alignment: the agent serves users, learns from their responses, and serves again."""

    cycles: CycleConfig = field(default_factory=CycleConfig)
    """Options of the cycles."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None:
            raise ValueError("Cycles need simulated users, who can be served; leave --data out.")
        if self.rounds.serve:
            raise ValueError(f"rounds.serve={self.rounds.serve} does not fit cycles, which serve too; leave it 0.")
        if self.stop != "never":
            raise ValueError(f"stop={self.stop!r} does nothing here, as cycles are not probed; leave it never.")
        if self.rollouts.max_staleness:
            raise ValueError(
                f"rollouts.max_staleness={self.rollouts.max_staleness} does not fit cycles, whose rounds learn from "
                "what the last snapshot served; leave it 0."
            )
        if self.judge.best_of:
            raise ValueError("judge.best_of is not judged in cycles; leave it out, or align without cycles.")

    @property
    def cycle_rounds(self) -> RoundsConfig:
        """Options of the rounds of a cycle, which draw a part of their requests from its served sessions."""
        cycles = self.cycles
        return replace(self.rounds, serve=cycles.users, serve_visits=cycles.visits, served_share=cycles.fresh_share)


def with_cycles(config: AlignConfig, cycles: CycleConfig, **changes: Any) -> CyclesConfig:
    """Deploy an alignment in cycles."""
    parts = {f.name: getattr(config, f.name) for f in fields(AlignConfig)}
    return CyclesConfig(**parts | {"cycles": cycles} | changes)


def onerec_cycles() -> CyclesConfig:
    """The demo deployed: 6 rounds, then 3 cycles of 2,000 requests with 2 rounds each; about 30 minutes on 2 cores."""
    return with_cycles(small(), CycleConfig())


def cycles_smoke() -> CyclesConfig:
    """Two cycles in seconds: for tests and continuous integration; their figures mean nothing."""
    tiny = smoke()
    cycles = CycleConfig(num=2, rounds=1, users=8, visits=2, stay=2, explore=0.2, window=2)
    return with_cycles(tiny, cycles, rounds=replace(tiny.rounds, num=1))


CYCLES_PRESETS: dict[str, Callable[[], CyclesConfig]] = {
    "onerec-cycles": onerec_cycles,
    "onerec-cycles-smoke": cycles_smoke,
}
"""The deployment experiments in `feedgym run`."""
