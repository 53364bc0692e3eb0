"""The configuration of off-policy evaluation, and its presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from annotated_types import Interval

from feedgym.data.events import BEHAVIOURS
from feedgym.envs.short_video import ShortVideoConfig
from feedgym.experiments.configs import DataConfig, LogConfig
from feedgym.experiments.options import pairs_of
from feedgym.ranges import Count, CountOrZero, Few, Length, NonNegative, Positive, Ranged, Seed, Share, SplitShare

DECIDED = {"seed": "--seed", "ray": "--ray", "data": "using only simulated users"}
"""Options of the agents' training that the evaluation sets itself, with the replacement."""


@dataclass(frozen=True, kw_only=True)
class OPERun(Ranged):
    """Estimates agents from logs of another policy, and compares with the true reward of serving them.

    The production system, with a share of random visits, serves fresh users and so makes a log. From it ten estimators
    predict the value of each agent, as if it were served for one visit at the log's own requests. An estimate that the
    log cannot support is refused with the reason. The simulator then gives the truth.
    """

    seed: Seed = 0
    """Seed of the logs' users and of all draws; without --against, of the whole world."""
    against: str | None = None
    """Folder of a finished onerec-ipa run (or tiger-ipa, hstu-ipa), which gives simulator, agents and reward model."""
    end_to_end: str = "onerec-ipa"
    """Without --against: the preset that trains the agents first, inside this run's folder."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """NAME=VALUE options of that training, by the names of `feedgym run`."""
    ray: str = "local"
    """Place to sample its sessions: local, off (in this process), or the address of a Ray cluster."""
    logs: Few = 3
    """Number of independent logs, each with other users; they give the spread of the estimates."""
    users: Count = 600
    """Number of users of a log."""
    visits: Annotated[int, Interval(ge=2, le=100_000)] = 8
    """Visits per user. The last one is not used, because it is unknown whether the user came back."""
    random_share: Share = 0.2
    """Share of the log's visits to serve at random. Without it rare items are hardly ever shown, and agents that serve
    them are refused."""
    popularity_share: Share = 0.1
    """Share of the visits to serve by popularity; the production system serves the rest."""
    num_candidates: Count = 200
    """Number of candidates that the production system retrieves per visit."""
    temperature: Positive = 2.0
    """Scale of the noise on the production system's scores."""
    agent_temperatures: tuple[Positive, ...] = (0.7, 1.0, 1.5, 2.0)
    """Temperatures of the base and the aligned agent; each makes one agent to judge."""
    popularity_temperatures: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    """Temperatures for serving by popularity: items in proportion to clicks ** (1 / temperature)."""
    content_temperatures: tuple[Positive, ...] = (0.1, 0.3)
    """Temperatures for serving items similar to those that the user liked, by cosine / temperature."""
    ranker_temperatures: tuple[Positive, ...] = (0.1, 0.3)
    """Temperatures for ranking the most popular items, by the reward model's prediction for each / temperature."""
    ranker_items: Count = 100
    """Number of items that this ranker chooses among."""
    mixtures: tuple[SplitShare, ...] = (0.5, 0.8)
    """Shares of the visits that mixtures serve at random; the aligned agent serves the rest, at temperature 1."""
    replicas: Count = 8
    """Simulated responses to average for the true value of a slate, one slate per request and agent."""
    samples: Few = 1
    """Slates of the agent per request, for the reward model's estimate of its value."""
    enumerated: Count = 1000
    """Most possible slates of a catalogue for estimators that sum over all of them (IIPS and PI)."""
    min_rows: NonNegative = 10.0
    """Least effective sample size of an estimate; below it the estimate is refused."""
    min_rows_share: Share = 0.01
    """Least effective sample size as a share of the log's visits."""
    min_served: Share = 0.99
    """Least share of an agent's slates that the log could have shown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_share + self.popularity_share > 1:
            shares = f"random_share={self.random_share} and popularity_share={self.popularity_share}"
            raise ValueError(f"{shares} must add up to at most 1; lower one.")
        for name in pairs_of(self.options, "set"):
            if name in DECIDED:
                raise ValueError(f"set has {name}, which the evaluation decides itself, by {DECIDED[name]}; drop it.")

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        from feedgym.experiments.align.presets import AlignConfig

        named = pairs_of(self.options, "set")
        return [*((kind, str(named[kind])) for kind in AlignConfig.PLUGINS if kind in named), ("ray", self.ray)]


def ope() -> OPERun:
    """Off-policy evaluation: 19 agents on a log with 20% random visits, ten estimators, and the truth."""
    return OPERun()


SMALL_WORLD = (
    *("simulator.num_items=12", "session_length=2", "sampling.block_seen=False", "log.users=2000", "log.visits=3"),
    *("reward_model.epochs=4", "pretrain.steps=300", "pretrain.checkpoint_steps=300", "pretrain.warmup_steps=20"),
    *("rounds.num=2", "rounds.num_samples=32"),
)
"""Twelve items in slates of two: 132 slates, so that every estimator has support. Visits are few: users who have seen
all items several times like none, and then all agents have the same value."""


def ope_small() -> OPERun:
    """A small world in which every estimator has support: twelve items, slates of two; it trains its own agents."""
    return OPERun(
        end_to_end="onerec-ipa-smoke", options=SMALL_WORLD, ray="off", users=600, visits=3, ranker_items=12,
        agent_temperatures=(0.5, 1.0, 2.0), content_temperatures=(0.3,), popularity_temperatures=(0.3, 1.0),
    )  # fmt: skip


def ope_smoke() -> OPERun:
    """Every stage once, in seconds; its figures mean nothing."""
    return OPERun(
        end_to_end="onerec-ipa-smoke", options=("simulator.num_items=8", "session_length=2", "rounds.num=1"),
        ray="off", logs=2, users=30, visits=3, ranker_items=8, replicas=2, samples=1, agent_temperatures=(1.0,),
        content_temperatures=(0.3,), popularity_temperatures=(1.0,), ranker_temperatures=(0.3,), mixtures=(0.5,),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OPEItemsRun(DataConfig):
    """Estimates agents of single items, on a log with known probabilities that items were shown.

    A recorded log (--data) needs random exposures, as KuaiRand's; of a simulated log the first places are used. There
    is no truth: agents have intervals over users, and the results of two halves of the users are compared.
    """

    session_length: Length = 5
    """K: items per visit of a simulated log."""
    history_length: Length = 40
    """T, events of the history that show which items the user liked."""
    behaviours: tuple[str, ...] = ("long_view",)
    """Behaviours; an exposure with any of these earns 1."""
    popularity_temperatures: tuple[Positive, ...] = (0.5, 1.0, 2.0, 4.0)
    """Temperatures for serving by popularity: items in proportion to such exposures ** (1 / temperature)."""
    content_temperatures: tuple[Positive, ...] = (0.1, 0.3)
    """Temperatures for serving items similar to those that the user liked, by cosine / temperature."""
    exposures: CountOrZero = 20_000
    """Number of exposures to judge by, drawn at random if there are more; 0 takes all."""
    held_out: SplitShare = 0.5
    """Share of the users who judge; the others serve to learn popularity and a model of the reward."""
    min_rows: NonNegative = 10.0
    """Least effective sample size of an estimate; below it the estimate is refused."""
    min_rows_share: Share = 0.01
    """Least effective sample size as a share of the exposures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.behaviours if name not in BEHAVIOURS]:
            raise ValueError(f"Unknown behaviour {unknown[0]!r}; the behaviours are {', '.join(BEHAVIOURS)}.")
        if not self.behaviours:
            raise ValueError(f"behaviours is empty; give one or more of {', '.join(BEHAVIOURS)}.")


def ope_items() -> OPEItemsRun:
    """Off-policy evaluation item by item, on a log with known propensities, such as KuaiRand's (--data FOLDER)."""
    return OPEItemsRun()


def ope_items_smoke() -> OPEItemsRun:
    """The same in seconds, on a tiny simulated log; its figures mean nothing."""
    return OPEItemsRun(log=LogConfig(users=60, visits=4), simulator_options=ShortVideoConfig(num_items=60))


OPE_COMPARISONS: dict[str, Callable[[], Any]] = {
    "ope": ope,
    "ope-small": ope_small,
    "ope-smoke": ope_smoke,
    "ope-items": ope_items,
    "ope-items-smoke": ope_items_smoke,
}
"""The off-policy evaluations in `feedgym compare`."""
