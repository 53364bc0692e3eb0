"""Makes the agents that an aligned agent is compared with: references, search, and best of N.

Each is an agent like any other. ``base`` and ``aligned`` serve sessions drawn as in a round; the others by name:
    ``base_searched``       serves the best session of a beam search
    ``base_best_of_16``     serves the best of 16 draws by the reward model, which needs no alignment
    ``base_best_of_16_by_truth``    serves the best of 16 draws by the truth
                            (:func:`feedgym.experiments.serve.serve_all`): only for studies, since no platform can ask
                            it
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
    """References without a model: random, and the most popular items that a user has not seen; only existing items."""
    count_I = exposure_counts(log, catalog.num_items)
    return {
        "random": RandomRecommender(catalog.num_items, config.session_length, seed=config.seed, catalog=catalog),
        "popular": PopularRecommender(torch.from_numpy(count_I), config.session_length, catalog=catalog),
    }


def with_controls(
    agents: Mapping[str, Recommender], reward: SessionReward, judge: JudgeConfig
) -> dict[str, Recommender]:
    """Agents as they are, agents that search if they can, and the best of N draws of each.

    Args:
        agents: "base", "aligned".
        reward: scores the N draws.
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
    """Make a generative agent that serves the best session of a search, with the same model."""
    agent = copy.copy(agent)
    agent.num_beams = beams
    return agent
