"""Registers the Gymnasium ids of feedgym and of other packages' simulators by import path, so nothing is imported.

An installed package announces its simulators by entry points of the group ``feedgym.simulators``, name = id, value =
import path::

    [project.entry-points."feedgym.simulators"]
    "my_lab/Teen-v0" = "my_lab.users:Teen"

Other code calls :func:`register`. Workers without either need the id with the module that registers it:
``gym.make("my_lab:my_lab/Teen-v0")``.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import gymnasium as gym

GROUP = "feedgym.simulators"
"""Entry points of this group are registered when feedgym is imported."""

LEVELS: dict[str, tuple[str, dict[str, Any]]] = {
    "request": ("feedgym.envs.levels:Request", {"session_length": 10, "history_length": 50, "warmup_visits": 5}),
    "session": (
        "feedgym.envs.levels:Session",
        {"session_length": 5, "history_length": 50, "horizon": 10, "warmup_visits": 5},
    ),
    "visit": ("feedgym.envs.feed:Feed", {"session_length": 10, "history_length": 50, "horizon": 30}),
    "retention": (
        "feedgym.envs.levels:Retention",
        {"session_length": 10, "history_length": 50, "horizon": 1000, "horizon_days": 14.0, "return_hours": 24.0},
    ),
}
"""Task levels: prefix of the import paths of ``...Env`` and ``...VectorEnv``, and the level's defaults."""

SHORT_VIDEO = "feedgym.envs.short_video:ShortVideo"
FRESH = {"arrivals_a_day": 75.0, "arrival_days": 60.0, "lifetime_days": 60.0, "fresh_weight": 1.0}
"""Options of a feed whose items arrive at about the past pace, are withdrawn after two months and lose their appeal."""
RECSIM = "feedgym.envs.recsim"


def _recsim(reward: str) -> dict[str, Any]:
    """RecSim's slates of 2, as in its main program and tests; most users with a budget end before the horizon."""
    return {"session_length": 2, "horizon": 200, "reward": f"{RECSIM}:{reward}"}


# A version's defaults never change. A change of numbers becomes a new version next to the old one. A change of the
# spaces replaces it (Gymnasium reports this when the old one is requested). Users with other constants have a separate
# name as long as the plain ones are the default. A higher version would tell everybody to leave those.
ENVIRONMENTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "feedgym/ShortVideo-v1": ("visit", SHORT_VIDEO, {}),
    "feedgym/ShortVideoRequest-v1": ("request", SHORT_VIDEO, {}),
    "feedgym/ShortVideoSession-v1": ("session", SHORT_VIDEO, {}),
    "feedgym/ShortVideoRetention-v1": ("retention", SHORT_VIDEO, {}),
    "feedgym/ShortVideoFresh-v1": ("visit", SHORT_VIDEO, FRESH),
    "feedgym/ShortVideoCalibrated-v1": ("visit", f"{SHORT_VIDEO}Calibrated", {"weekday": True}),
    "feedgym/InterestEvolution-v1": ("visit", f"{RECSIM}:InterestEvolution", _recsim("INTEREST_EVOLUTION_REWARD")),
    "feedgym/InterestExploration-v1": (
        "visit",
        f"{RECSIM}:InterestExploration",
        _recsim("INTEREST_EXPLORATION_REWARD"),
    ),
    "feedgym/LongTermSatisfaction-v1": (
        "visit",
        f"{RECSIM}:LongTermSatisfaction",
        _recsim("LONG_TERM_SATISFACTION_REWARD"),
    ),
}
"""The built-in ids: task level, simulator, and differences from the level's defaults."""


def register(env_id: str, simulator: Any, *, level: str = "visit", **defaults: Any) -> None:
    """Make a simulator known to ``gymnasium.make`` and ``gymnasium.make_vec`` under an id.

    Registering the same again does nothing, so that modules may register on import, in workers too.

    Args:
        env_id: ``"my_lab/Teen-v0"``: a name space of your own, a name and a version.
        simulator: import path of a class, a function or an object, such as ``"my_lab.users:Teen"``. Classes and objects
            themselves are accepted too, but then other processes cannot make the environment.
        level: kind of a step: request, session, visit or retention; see :mod:`feedgym.envs.levels`.
        **defaults: keywords of the environment (``session_length``, ``reward``, ...) and of the simulator.

    Raises:
        ValueError: an unknown level, a malformed id, or an id that names something else already.
    """
    if level not in LEVELS:
        raise ValueError(f"There is no task level {level!r}; the levels are {', '.join(LEVELS)}.")
    if isinstance(simulator, str) and ":" not in simulator:
        raise ValueError(f"{simulator!r} is not an import path; write it as 'package.module:Name'.")
    path, level_defaults = LEVELS[level]
    kwargs = {"simulator": simulator, **level_defaults, **defaults}
    registered = gym.registry.get(env_id)
    if registered is not None:
        if (registered.entry_point, registered.kwargs) == (f"{path}Env", kwargs):
            return
        raise ValueError(
            f"{env_id} is registered already, for {registered.entry_point} with {registered.kwargs}; give the new one "
            "another name or version."
        )
    try:
        gym.register(env_id, f"{path}Env", vector_entry_point=f"{path}VectorEnv", kwargs=kwargs)
    except gym.error.Error as error:
        raise ValueError(f"{env_id!r} is not a valid id: {error}; write it as 'my_lab/Teen-v0'.") from error


def register_built_in() -> None:
    """Register feedgym's own ids."""
    for env_id, (level, simulator, defaults) in ENVIRONMENTS.items():
        register(env_id, simulator, level=level, **defaults)


def register_installed() -> None:
    """Register the simulators of installed packages; those that cannot be registered cause a warning."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            register(entry.name, entry.value)
        except ValueError as error:
            where = entry.dist.name if entry.dist else "an installed package"
            warnings.warn(f"feedgym leaves out the simulator of {where}: {error}", stacklevel=2)
