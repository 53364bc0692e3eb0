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
    """The log that the simulated users leave behind under the production system."""

    users: Count = 4000
    """Users in the log."""
    visits: Visits = 14
    """Visits a user, unless they churn earlier."""
    days: NonNegative = 0.0
    """The log ends on this day of the simulator's clock, whatever visits are left. 0: no end."""

    @property
    def until_s(self) -> float:
        """When the log ends on the simulator's clock."""
        return 86_400 * self.days if self.days else math.inf


@dataclass(frozen=True, kw_only=True)
class LogSource(Ranged):
    """Where a log comes from: recorded data, if they are given."""

    data: str | None = None
    """A real log: a folder or zip of a data set that `feedgym data inspect` reads, or a parquet/CSV file read with
    --columns. Without it simulated users leave one."""
    columns: tuple[str, ...] = ()
    """For a file of your own: NAME=COLUMN pairs, e.g. user_id=uid item_id=vid timestamp=ts watch_s=seconds."""
    items: str | None = None
    """For a file of your own: a parquet/CSV file of item features, keyed by the same item id."""
    read: ReadOptions = field(default_factory=ReadOptions)
    """How the data are read."""


@dataclass(frozen=True, kw_only=True)
class UsersConfig(LogSource):
    """Who leaves the log: simulated users, or those of a real one."""

    PLUGINS: ClassVar[tuple[str, ...]] = ("simulator",)

    simulator: str = "short_video"
    """The users, where no data are given: short_video, short_video_calibrated, interest_evolution,
    interest_exploration, long_term_satisfaction, an import path such as my_lab.users:Teen, or the folder of a learned
    simulator."""
    simulator_options: Annotated[Any, tyro.conf.arg(name="simulator")] = field(
        default_factory=lambda: ShortVideoConfig(num_items=2000)
    )
    """Options of the simulator; the experiment's seed is added to that of its catalogue."""
    log: LogConfig = field(default_factory=LogConfig)
    """How much they log."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fill_in(self, self.PLUGINS)

    def code(self) -> list[tuple[str, str | None]]:
        """What it names besides data; see :mod:`feedgym.trust`."""
        return [(kind, getattr(self, kind)) for kind in self.PLUGINS]


@dataclass(frozen=True, kw_only=True)
class DataConfig(UsersConfig):
    """Where the log of an experiment comes from that looks at a log alone."""

    read: ReadOptions = field(default_factory=lambda: ReadOptions(text="off"))
    """How the data are read."""
    seed: Seed = 0
    """Decides weights, the order of users, dropout and negatives, and the simulated log."""


@dataclass(frozen=True, kw_only=True)
class CostConfig(Ranged):
    """How the cost of a request is measured."""

    requests: Count = 128
    """Requests of a batch: the last ones of so many users of the log."""
    repeats: Passes = 3
    """Batches timed, of which the median counts."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(Ranged):
    """The users who judge the agents in the end. They are fresh: no stage before has seen them."""

    users: Count = 280
    """Fresh users served by every agent, with the same luck."""
    visits: Visits = 30
    """Visits a user, unless they churn earlier: enough to see whether a gain lasts. The mean of the first 8 is told
    beside that of all."""
    seed: Seed = 0
    """Another seed is another population of users."""
    first_day: NonNegative = 0.0
    """Day of the simulator's clock on which they pay their first visits. Where items come and go, the day on which the
    log ends or later: they meet what no log has seen."""
    beams: CountOrZero = 8
    """Agents serve sessions drawn as in a round. With beams they are judged a second time, serving the likeliest
    session that a search of this width finds: what alignment is worth to agents that choose sharply anyway. 0: no."""
    best_of: tuple[Drawn, ...] = ()
    """Judge base and aligned once more for each of these N, serving the best of N drawn sessions by the reward: what
    the reward gives without any alignment. It takes N times as long to serve."""
    study: bool = False
    """Judge the best of those N sessions by the truth as well, which no platform could serve: what a perfect reward
    would give."""

    against: tuple[str, ...] = ()
    """Folders of other finished runs in the same world (aligned agents, cascades, rllib-*), whose agents are judged as
    well."""
    cost: CostConfig = field(default_factory=CostConfig)
    """How the cost of a request is measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study and not self.best_of:
            raise ValueError("judge.study takes the best of judge.best_of sessions; give some, such as 16.")
