"""feedgym: a simulated feed, and the workbench that aligns generative recommenders to what its users really want.

Importing the package registers its Gymnasium environments, and those of installed packages, by import path. It loads
nothing heavy: the public names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from feedgym.envs.registration import register, register_built_in, register_installed

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
    "event_batch": "feedgym.envs.history",
    "ShortVideo": "feedgym.envs.short_video",
    "ShortVideoConfig": "feedgym.envs.short_video",
    "RewardWeights": "feedgym.envs.truth",
    "collect_log": "feedgym.envs.logging",
    "check_simulator": "feedgym.envs.check",
    "GenerativeAgent": "feedgym.protocols",
    "AlignmentMethod": "feedgym.protocols",
    "align": "feedgym.api",
    "pretrain": "feedgym.api",
    "evaluate": "feedgym.api",
    "simulate": "feedgym.api",
}
__all__ = ["register", *_MODULE_OF]

register_built_in()
register_installed()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'feedgym' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "feedgym":
            raise
        raise ImportError(f"feedgym.{name} needs {error.name}; run pip install 'feedgym[train]'.") from error


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
