"""Parts that the configurations of all experiments share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from feedgym.data.interactions import ReadOptions
from feedgym.envs.short_video import ShortVideoConfig


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """The log that the simulated users leave behind under the production system."""

    users: int = 4000
    """Users in the log."""
    visits: int = 14
    """Visits a user, unless they churn earlier."""
    days: float = 0.0
    """The log ends on this day of the simulator's clock, whatever visits are left. 0: no end."""

    @property
    def until_s(self) -> float:
        """When the log ends on the simulator's clock."""
        return 86_400 * self.days if self.days else math.inf

    def __post_init__(self) -> None:
        if self.days < 0:
            raise ValueError(f"log.days={self.days:g} is below 0; give the day on which the log ends, or 0 for no end.")


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A real log, if there is one."""

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
class DataConfig(Recording):
    """Where the log of an experiment comes from that looks at a log alone."""

    read: ReadOptions = field(default_factory=lambda: ReadOptions(text="off"))
    """How the data are read."""
    seed: int = 0
    """Decides weights, the order of users, dropout and negatives, and the simulated log."""
    short_video: ShortVideoConfig = field(default_factory=lambda: ShortVideoConfig(num_items=2000))
    """The simulator, where no data are given."""
    log: LogConfig = field(default_factory=LogConfig)
    """How much it logs."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The users who judge the agents in the end. They are fresh: no stage before has seen them."""

    users: int = 1000
    """Fresh users served by every agent, with the same luck."""
    visits: int = 8
    """Visits a user, unless they churn earlier."""
    seed: int = 0
    """Another seed is another population of users."""
    first_day: float = 0.0
    """Day of the simulator's clock on which they pay their first visits. Where items come and go, the day on which the
    log ends or later: they meet what no log has seen."""
    beams: int = 8
    """Agents serve sessions drawn as in a round. With beams they are judged a second time, serving the likeliest
    session that a search of this width finds: what alignment is worth to agents that choose sharply anyway. 0: no."""

    def __post_init__(self) -> None:
        for name in ("users", "visits"):
            if getattr(self, name) < 1:
                raise ValueError(f"judge.{name}={getattr(self, name)} must be 1 or more.")
        if self.beams < 0:
            raise ValueError(f"judge.beams={self.beams} must be 0 (no second judgement), 1 (greedy) or more.")
