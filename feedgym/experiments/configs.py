"""Parts that the configurations of all experiments share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """The log that the simulated users leave behind under the production system."""

    users: int = 4000
    """Users in the log."""
    visits: int = 14
    """Visits a user, unless they churn earlier."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """The users who judge the agents in the end. They are fresh: no stage before has seen them."""

    users: int = 1000
    """Fresh users served by every agent, with the same luck."""
    visits: int = 8
    """Visits a user, unless they churn earlier."""
    seed: int = 0
    """Another seed is another population of users."""
    beams: int = 8
    """Agents serve sessions drawn as in a round. With beams they are judged a second time, serving the likeliest
    session that a search of this width finds: what alignment is worth to agents that choose sharply anyway. 0: no."""

    def __post_init__(self) -> None:
        for name in ("users", "visits"):
            if getattr(self, name) < 1:
                raise ValueError(f"judge.{name}={getattr(self, name)} must be 1 or more.")
        if self.beams < 0:
            raise ValueError(f"judge.beams={self.beams} must be 0 (no second judgement), 1 (greedy) or more.")
