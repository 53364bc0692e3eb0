"""Makes the agents of the default table: a finished run's at several temperatures, rankers, popularity, and mixtures.

A mixture draws for each visit which of its parts serves, as the logging policy does. All its figures follow from the
responses of its parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from feedgym.experiments.align.agents import FinishedRun
from feedgym.experiments.ope.opinion import Opinion
from feedgym.experiments.ope.presets import OPERun
from feedgym.experiments.ope.targets import (
    AgentFamily,
    AgentTarget,
    LoggingTarget,
    ScoreTarget,
    Target,
    content_logits,
    popularity_logits,
    random_logits,
    ranker_logits,
)
from feedgym.experiments.ope.visits import JudgingVisits

LOGGING, RANDOM = "logging", "random"


@dataclass(frozen=True)
class Mixture:
    """Agents by name, with the share of the visits that each serves."""

    shares: Mapping[str, float]


def targets_of(
    config: OPERun, finished: FinishedRun, visits: JudgingVisits, opinion: Opinion | None
) -> dict[str, Target]:
    """Make the agents that are not mixtures, bound to the visits of a log."""
    length, catalog = finished.config.session_length, finished.catalog
    blocked = finished.config.sampling.block_seen
    popular_NI = popularity_logits(visits, finished.log, catalog, blocked)
    scores: dict[str, tuple[Any, tuple[float, ...]]] = {
        "popular": (popular_NI, config.popularity_temperatures),
        "content": (content_logits(visits, catalog, blocked), config.content_temperatures),
    }
    if opinion is not None and config.ranker_temperatures:
        logit_NI = ranker_logits(visits, popular_NI, opinion, config.ranker_items)
        scores["ranker"] = (logit_NI, config.ranker_temperatures)
    targets: dict[str, Target] = {LOGGING: LoggingTarget(visits)}
    targets[RANDOM] = ScoreTarget(random_logits(visits, catalog), 1.0, length)
    for name, (logit_NI, those) in scores.items():
        targets |= {at(name, t): ScoreTarget(logit_NI, t, length) for t in those}
    temperatures = temperatures_of(config)
    ways = [replace(finished.config.sampling, temperature=t) for t in temperatures]
    for name, agent in finished.agents.items() if ways else ():
        family = AgentFamily(visits, agent, ways)  # type: ignore[arg-type]
        targets |= {at(name, t): AgentTarget(family, way) for way, t in enumerate(temperatures)}
    return targets


def temperatures_of(config: OPERun) -> list[float]:
    """Temperatures of the base and the aligned agent; they include 1 if mixtures need it."""
    return sorted({*config.agent_temperatures, *((1.0,) if config.mixtures else ())})


def mixtures_of(config: OPERun) -> dict[str, Mixture]:
    """Make the mixtures, by name."""
    part = at("aligned", 1.0)
    return {f"{share:.0%} random, else {part}": Mixture({RANDOM: share, part: 1 - share}) for share in config.mixtures}


def at(name: str, temperature: float) -> str:
    """An agent's name with its temperature."""
    return f"{name} at {temperature:g}"
