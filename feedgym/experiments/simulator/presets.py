"""The configuration of simulators fitted to a log, and its presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import tyro

from feedgym.agents.fit import FitConfig
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.configs import LogConfig, UsersConfig
from feedgym.ranges import Count, CountOrZero, Length, Passes, Seed, SplitShare, Width


@dataclass(frozen=True, kw_only=True)
class LearnedRun(UsersConfig):
    """Fit a user simulator to a log: a ranker predicts responses, regressions predict leaving, return and churn.

    The users are split in three parts by a hash of their id. The ranker trains on most of them, the simulator is
    calibrated on --calibration of them, and --held-out of them, unseen before, judge it. The simulator is written to
    RUN/stages/simulator; use that folder wherever a simulator is needed (--simulator).
    """

    name: ClassVar[str] = "learned-simulator"

    seed: Seed = 0
    """Seed of the weights, the order of training, the split and the replay's random numbers."""
    simulator_options: Annotated[Any, tyro.conf.arg(name="simulator")] = field(default_factory=ShortVideoConfig)
    """Options of the simulator that makes the log if no data are given."""
    session_length: Length = 5
    """K: items per visit of a simulated log; longer visits of a recorded log are read as several requests."""
    known_visits: CountOrZero = 3
    """Visits that users have made in the log before the simulation begins."""
    calibration: SplitShare = 0.15
    """Share of the users for calibrating the ranker."""
    held_out: SplitShare = 0.15
    """Share of the users for judging the simulator."""
    ranker: str = "genrank"
    """The ranker: genrank, hstu-rank, mtgr, or the import path of a class."""
    d_model: Width = 64
    """Width of the ranker."""
    history_length: Length = 40
    """T, how many of the newest events of a history the ranker reads."""
    min_events: Count = 100
    """Behaviours that happen less often in the training log are not predicted by the ranker but have the log's rate."""
    epochs: Passes = 6
    """Most passes over the training users' requests; the best one by the calibration users' loss is kept."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(lr=2e-3, batch_size=128, patience=2, max_grad_norm=1.0))
    """Options for training the ranker."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration + self.held_out >= 1:
            raise ValueError(
                f"calibration={self.calibration} and held_out={self.held_out} leave no users to train on; lower them."
            )

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        return [*super().code(), ("ranker", self.ranker)]


def learned_simulator() -> LearnedRun:
    """A user simulator fitted to a log, judged by held-out users; its folder can be used as --simulator."""
    return LearnedRun()


def learned_simulator_smoke() -> LearnedRun:
    """The same in seconds, on a tiny log."""
    return LearnedRun(log=LogConfig(users=200, visits=6), d_model=16, history_length=12, epochs=1, min_events=20)


LEARNED_PRESETS: dict[str, Callable[[], LearnedRun]] = {
    "learned-simulator": learned_simulator,
    "learned-simulator-smoke": learned_simulator_smoke,
}
