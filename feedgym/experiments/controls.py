"""The agents that an aligned agent is judged beside: what search and best of N would give, and other runs' agents.

Each is an agent like others. ``base`` and ``aligned`` serve sessions drawn as in a round; by name,

    ``base_searched``       serves the best session of a beam search
    ``base_best_of_16``     the best of 16 draws by the reward model, which needs no alignment
    ``base_best_of_16_by_truth``    the best of 16 draws by the truth (:func:`feedgym.experiments.serve.serve_all`): for
                            studies only, since no platform can ask it
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from feedgym.agents.baselines import PopularRecommender, RandomRecommender
from feedgym.agents.best_of import BestOf
from feedgym.data.events import Catalog, EventLog
from feedgym.experiments.configs import JudgeConfig
from feedgym.experiments.exposure import exposure_counts
from feedgym.experiments.serve import JudgedConfig, best_of_name
from feedgym.protocols import Recommender, SessionReward


def references(log: EventLog, catalog: Catalog, config: JudgedConfig) -> dict[str, Recommender]:
    """The agents that know nothing: random, and the most popular of what a user has not seen; both of what exists."""
    count_I = exposure_counts(log, catalog.num_items)
    return {
        "random": RandomRecommender(catalog.num_items, config.session_length, seed=config.seed, catalog=catalog),
        "popular": PopularRecommender(torch.from_numpy(count_I), config.session_length, catalog=catalog),
    }


def with_controls(
    agents: Mapping[str, Recommender], reward: SessionReward, judge: JudgeConfig
) -> dict[str, Recommender]:
    """Agents as they are, those that can search by search, and the best of N draws of each.

    Args:
        agents: "base", "aligned".
        reward: what scores the N draws.
        judge: width of the search, and the numbers N.
    """
    every = dict(agents)
    for name, agent in agents.items() if judge.beams else ():
        if hasattr(agent, "num_beams"):
            every[f"{name}_searched"] = searching(agent, judge.beams)
    for n in judge.best_of:
        every |= {best_of_name(name, n): BestOf(agent, reward, n) for name, agent in agents.items()}
    return every


def searching(agent: Any, beams: int) -> Any:
    """A generative agent that serves the best of a search, on the same model."""
    agent = copy.copy(agent)
    agent.num_beams = beams
    return agent
