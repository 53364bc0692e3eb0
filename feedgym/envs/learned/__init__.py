"""A simulator whose users are learned from a log (:mod:`feedgym.envs.learned.simulator`)."""

from feedgym.envs.learned.simulator import LearnedSimulator, LearnedState

__all__ = ["LearnedSimulator", "LearnedState"]
