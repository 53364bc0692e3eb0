"""A run of four stages, which a process can import without any heavy library."""

from dataclasses import dataclass
from typing import Any

from feedgym.experiments.run import Plan, json_of

JSON = json_of(Any)


@dataclass(frozen=True)
class Config:
    users: int = 3
    rounds: int = 1
    simulator: str = "feedgym.envs.short_video:ShortVideo"


def plan_of(config):
    plan = Plan()
    plan.stage("log", [config.users, config.simulator])
    plan.stage("base", parents=("log",))
    plan.stage("aligned", config.rounds, ("base",))
    plan.stage("cost", parents=("log",), own="It is measured here")
    return plan
