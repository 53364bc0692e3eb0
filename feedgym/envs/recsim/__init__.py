"""RecSim's three families as batched user simulators (Ie et al., arXiv:1909.04847; github.com/google-research/recsim).

- InterestEvolution: interests move with watched videos, and good videos pay their time back.
- InterestExploration: hidden types of users, and popular topics that hide what a minority would love.
- LongTermSatisfaction: clickbait engages now and costs satisfaction later.

``benchmarks/recsim_parity.py`` compares their distributions with the original's.

One visit is one of RecSim's steps; the slate is the session. The taken item has a click, a long view if it was watched
to its end, and RecSim's watch time or engagement as seconds. An exhausted budget is churn. Slates are examined as a
whole, with two exceptions. Cascading users stop at the click, and only the first item is examined if RecSim's users
look at no other. With the ``*_REWARD`` weights a feed's reward is RecSim's own.

Deviations from RecSim:
- Documents are a fixed catalogue that all users share, as with RecSim's ``resample_documents=False``; a catalogue seed
  replaces RecSim's document sampler.
- Random numbers are counter-based (:mod:`feedgym.envs.luck`), so distributions are RecSim's but single draws are not.
- Observations are feedgym's: served items with responses, and a profile. RecSim shows the current interests of interest
  evolution's users, and the quality of served videos. Here the profile holds the initial interests in a few levels, and
  quality is not shown. In the other two families RecSim shows nothing of its users.
- A second passes between two steps (``STEP_GAP_S``); a clicked document of interest exploration is read for a minute.
- In interest evolution, users served after the end of their budget watch nothing; RecSim does not define this case.
- Interest evolution leaves out the weight of interest in the budget, which is 0 in RecSim's model. It uses videos of
  one topic each, as ``create_environment`` does. If the number of topics is not RecSim's 20, each topic still has a
  quality.
"""

from feedgym.envs.recsim.evolution import InterestEvolution, InterestEvolutionConfig, InterestEvolutionState
from feedgym.envs.recsim.exploration import InterestExploration, InterestExplorationConfig, InterestExplorationState
from feedgym.envs.recsim.satisfaction import (
    LongTermSatisfaction,
    LongTermSatisfactionConfig,
    LongTermSatisfactionState,
)
from feedgym.envs.truth import RewardWeights

__all__ = [
    "INTEREST_EVOLUTION_REWARD",
    "INTEREST_EXPLORATION_REWARD",
    "LONG_TERM_SATISFACTION_REWARD",
    "SLATE_SIZE",
    "InterestEvolution",
    "InterestEvolutionConfig",
    "InterestEvolutionState",
    "InterestExploration",
    "InterestExplorationConfig",
    "InterestExplorationState",
    "LongTermSatisfaction",
    "LongTermSatisfactionConfig",
    "LongTermSatisfactionState",
]

SLATE_SIZE = 2
"""Items per slate in RecSim's own main program and tests."""


def _only(**weights: float) -> RewardWeights:
    nothing = dict.fromkeys(RewardWeights.__dataclass_fields__, 0.0)
    return RewardWeights(**(nothing | weights))


INTEREST_EVOLUTION_REWARD = _only(watch_minutes=1.0)
"""RecSim's ``clicked_watchtime_reward``: minutes watched."""
INTEREST_EXPLORATION_REWARD = _only(click=1.0)
"""RecSim's ``total_clicks_reward``."""
LONG_TERM_SATISFACTION_REWARD = _only(watch_minutes=60.0)
"""RecSim's ``clicked_engagement_reward``: engagement, which is in seconds here."""
