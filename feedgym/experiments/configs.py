"""Parts that the configurations of all experiments share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import tyro

from feedgym.data.sources import ReadOptions
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.plugins import fill_in
from feedgym.ranges import Count, CountOrZero, Drawn, NonNegative, Passes, Ranged, Seed, Visits


@dataclass(frozen=True, kw_only=True)
class LogConfig(Ranged):
    """Options of the log that the simulated users leave under the production system."""

    users: Count = 4000
    """Number of users in the log."""
    visits: Visits = 14
    """Visits per user, unless they churn earlier."""
    days: NonNegative = 0.0
    """Day of the simulator's clock on which the log ends, even if visits are left. 0: no end."""

    @property
    def until_s(self) -> float:
        """Time of the simulator's clock at which the log ends."""
        return 86_400 * self.days if self.days else math.inf


@dataclass(frozen=True, kw_only=True)
class LogSource(Ranged):
    """Source of a log: recorded data, if they are given."""

    data: str | None = None
    """A real log: a folder or zip of a data set that `feedgym data inspect` reads, or a parquet/CSV file together with
    --columns. Without it simulated users make the log."""
    columns: tuple[str, ...] = ()
    """For a file of your own: NAME=COLUMN pairs, e.g. user_id=uid item_id=vid timestamp=ts watch_s=seconds."""
    items: str | None = None
    """For a file of your own: a parquet/CSV file of item features, keyed by the same item id."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """Options for reading the data."""


@dataclass(frozen=True, kw_only=True)
class UsersConfig(LogSource):
    """Source of the users in the log: a simulator, or a real log."""

    PLUGINS: ClassVar[tuple[str, ...]] = ("simulator",)

    simulator: str = "short_video"
    """The users, unless data are given: short_video, short_video_calibrated, interest_evolution, interest_exploration,
    long_term_satisfaction, an import path such as my_lab.users:Teen, or the folder of a learned simulator."""
    simulator_options: Annotated[Any, tyro.conf.arg(name="simulator")] = field(
        default_factory=lambda: ShortVideoConfig(num_items=2000)
    )
    """Options of the simulator; the experiment's seed is added to that of its catalogue."""
    log: LogConfig = field(default_factory=LogConfig)
    """Size of the simulated log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fill_in(self, self.PLUGINS)

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        return [(kind, getattr(self, kind)) for kind in self.PLUGINS]


@dataclass(frozen=True, kw_only=True)
class DataConfig(UsersConfig):
    """Source of the log for an experiment that only needs a log."""

    read: ReadOptions = field(default_factory=lambda: ReadOptions(text="off"))
    """Options for reading the data."""
    seed: Seed = 0
    """Seed of weights, the order of users, dropout and negatives, and the simulated log."""


@dataclass(frozen=True, kw_only=True)
class CostConfig(Ranged):
    """Options for measuring the cost of a request."""

    requests: Count = 128
    """Number of requests in a batch: the last ones of that many users of the log."""
    repeats: Passes = 3
    """Number of timed batches; the median counts."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Ranged):
    """Options of the users who judge the agents in the end. They are fresh: no earlier stage has seen them."""

    users: Count = 280
    """Number of fresh users served by every agent, with the same random numbers."""
    visits: Visits = 30
    """Visits per user, unless they churn earlier: enough to see whether a gain lasts. The mean of the first 8 is
    reported together with the mean of all."""
    seed: Seed = 0
    """Seed; another seed gives another population of users."""
    first_day: NonNegative = 0.0
    """Day of the simulator's clock of their first visits. If items come and go, choose the day on which the log ends or
    a later one. Then the users meet items that no log has seen."""
    beams: CountOrZero = 8
    """Width of a beam search. Agents serve sessions drawn as in a round; with beams they are judged a second time,
    serving the likeliest session of the search. This shows the effect of alignment on agents that choose sharply
    anyway. 0: no."""
    best_of: tuple[Drawn, ...] = ()
    """Numbers N. For each, base and aligned are also judged serving the best of N drawn sessions by the reward. This
    shows what the reward gives without alignment. Serving takes N times as long."""
    study: bool = False
    """Also judge the best of those N sessions by the truth, which no platform could serve: it shows what a perfect
    reward would give."""

    against: tuple[str, ...] = ()
    """Folders of other finished runs in the same world (aligned agents, cascades, rllib-*); judge their agents too."""
    cost: CostConfig = field(default_factory=CostConfig)
    """Options for measuring the cost of a request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study and not self.best_of:
            raise ValueError("judge.study needs the sessions of judge.best_of; give some, such as 16.")
