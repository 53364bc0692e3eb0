"""feedgym: a simulated feed, and the workbench that aligns generative recommenders to what its users really want.

Importing the package registers its Gymnasium environments by import path and loads nothing heavy: the public names are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym

SIMULATORS = {"feedgym/ShortVideo-v0": "feedgym.envs.short_video:ShortVideo"}
"""Gymnasium ids and the simulators behind them."""

_MODULE_OF = {
    "Catalog": "feedgym.data.events",
    "EventLog": "feedgym.data.events",
    "EventBatch": "feedgym.data.batches",
    "SessionBatch": "feedgym.data.batches",
    "Preferences": "feedgym.data.batches",
    "UserSimulator": "feedgym.protocols",
    "Recommender": "feedgym.protocols",
    "SessionReward": "feedgym.protocols",
    "ItemTokenizer": "feedgym.protocols",
    "FeedEnv": "feedgym.envs.feed",
    "FeedVectorEnv": "feedgym.envs.feed",
    "event_batch": "feedgym.envs.feed",
    "ShortVideo": "feedgym.envs.short_video",
    "ShortVideoConfig": "feedgym.envs.short_video",
    "RewardWeights": "feedgym.envs.truth",
    "collect_log": "feedgym.envs.logging",
    "check_simulator": "feedgym.envs.check",
}
__all__ = ["SIMULATORS", *_MODULE_OF]

for _id, _path in SIMULATORS.items():
    if _id not in gym.registry:  # workers may import the package again
        gym.register(
            id=_id,
            entry_point="feedgym.envs.feed:FeedEnv",
            vector_entry_point="feedgym.envs.feed:FeedVectorEnv",
            kwargs={"simulator": _path},
        )


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'feedgym' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
