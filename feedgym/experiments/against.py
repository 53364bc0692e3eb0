"""Loads agents of other finished runs for the judgement: aligned agents, cascades, and agents trained with RLlib.

Their names consist of their kind and their run's folder: "aligned of demo-1", "cascade of contest", "ppo-0 of ppo".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feedgym.agents.cascade import Cascade
from feedgym.agents.rl_recommender import RLlibRecommender
from feedgym.data.events import Catalog
from feedgym.data.whole import read_mark
from feedgym.experiments.align.agents import agents_of, finished_stage, key_of, read_config
from feedgym.experiments.align.presets import AlignConfig
from feedgym.experiments.cascade.presets import CascadeRun
from feedgym.experiments.logs import LOG
from feedgym.experiments.rl.presets import RLConfig
from feedgym.experiments.run import plain, read_product
from feedgym.experiments.serve import JudgedConfig
from feedgym.protocols import Recommender


class Rivals(NamedTuple):
    """Agents of another finished run.

    Attributes:
        agents: the agents by name.
        catalog: the items they serve.
        history_length: events that they read; None for agents that read all events they are given.
    """

    agents: dict[str, Recommender]
    catalog: Catalog
    history_length: int | None


def rivals(config: JudgedConfig, catalog: Catalog, *, trust: bool = False) -> dict[str, Recommender]:
    """Load the agents of the runs that ``judge.against`` names.

    Args:
        config: the run in which to judge them.
        catalog: its items.
        trust: import the code that a folder names even if it is not part of feedgym (:mod:`feedgym.trust`).

    Raises:
        ValueError: a folder holds no finished run of these kinds, or agents of another world: with other items or other
            lengths.
    """
    found: dict[str, Recommender] = {}
    for folder in map(Path, config.judge.against):
        theirs = _read(folder, trust)
        _check(folder, theirs, catalog, config)
        named = {f"{name} of {folder.name}": agent for name, agent in theirs.agents.items()}
        if again := found.keys() & named:
            raise ValueError(f"judge.against names two runs of {min(again)!r}; give their folders different names.")
        found |= named
    return found


def rivals_key(against: Sequence[str]) -> Any:
    """Key of the agents of other runs: configuration and content of their stages.

    Raises:
        ValueError: as for :func:`rivals`.
    """
    return [[Path(folder).name, _key(Path(folder))] for folder in against]


def _read(folder: Path, trust: bool) -> Rivals:
    config = read_config(folder)
    if isinstance(config, AlignConfig):
        run = agents_of(folder, trust=trust)
        return Rivals({"aligned": run.agents["aligned"]}, run.catalog, config.history_length)
    stages = {name: finished_stage(folder, name) for name in _stages(folder, config)}
    if isinstance(config, CascadeRun):
        cascade = read_product(stages["cascade"], Cascade.load)
        return Rivals({"cascade": cascade}, cascade.catalog, None)
    _, catalog = read_product(stages.pop("log"), LOG.load)
    trained = {name: read_product(stage, RLlibRecommender.load) for name, stage in stages.items()}
    agents = {name.replace("trained", config.train.algorithm): agent for name, agent in trained.items()}
    return Rivals(dict(agents), catalog, next(iter(trained.values())).network.world.history_length)


def _stages(folder: Path, config: Any) -> list[str]:
    """Names of the stages to read the agents from."""
    if isinstance(config, CascadeRun):
        return ["cascade"]
    if isinstance(config, RLConfig):
        return ["log", *(f"trained-{n}" for n in range(config.num_seeds))]
    raise ValueError(
        f"{folder} is of {type(config).__name__}, whose agents do not serve sessions that can be judged; judge.against "
        "takes aligned runs, cascades and runs of rllib-*."
    )


def _key(folder: Path) -> Any:
    config = read_config(folder)
    if isinstance(config, AlignConfig):
        return key_of(folder)
    return [plain(config), {name: read_mark(finished_stage(folder, name)) for name in _stages(folder, config)}]


def _check(folder: Path, theirs: Rivals, catalog: Catalog, config: JudgedConfig) -> None:
    """Refuse agents of another world."""
    lengths = {agent.session_length for agent in theirs.agents.values()}
    remedy = "judge.against takes runs of the same simulator, lengths and seed"
    if lengths != {config.session_length}:
        raise ValueError(f"{folder} serves sessions of {min(lengths)} items, not {config.session_length}; {remedy}.")
    if theirs.history_length not in (None, config.history_length):
        told = f"histories of {theirs.history_length} events, not {config.history_length}"
        raise ValueError(f"{folder} reads {told}; {remedy}.")
    if not np.array_equal(theirs.catalog.content_IE, catalog.content_IE):
        raise ValueError(f"{folder} serves other items than those of this run; {remedy}.")
