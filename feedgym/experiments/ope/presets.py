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

DECIDED = {"seed": "--seed", "ray": "--ray", "data": "simulated users alone"}
"""Options of the agents' training that the evaluation sets itself, and by what."""


@dataclass(frozen=True, kw_only=True)
class OPERun(Ranged):
    """Off-policy evaluation of agents on logs of another policy, beside what serving them would truly earn.

    Fresh users are served by the production system with a share of random visits, which is the log. From it the value
    of each agent is estimated, as if it were served for one visit at the log's own requests, by ten estimators; an
    estimate that the log cannot support is refused with the reason. The simulator then tells the truth.
    """

    seed: Seed = 0
    """Decides the logs' users and what is drawn; without --against the whole world."""
    against: str | None = None
    """Folder of a finished onerec-ipa run (or tiger-ipa, hstu-ipa): its simulator, agents and reward model."""
    end_to_end: str = "onerec-ipa"
    """Without --against: the preset by which the agents are trained first, inside this run's folder."""
    options: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """NAME=VALUE options of that training, by the names of `feedgym run`."""
    ray: str = "local"
    """Where its sessions are sampled: local, off (in this process), or the address of a Ray cluster."""
    logs: Few = 3
    """Independent logs, of other users each, over which estimates spread."""
    users: Count = 600
    """Users of a log."""
    visits: Annotated[int, Interval(ge=2, le=100_000)] = 8
    """Visits a user. The last one is not judged by: whether the user came back is not known."""
    random_share: Share = 0.2
    """Share of the log's visits that are served at random. Without it rare items are hardly ever shown, and agents that
    serve them are refused."""
    popularity_share: Share = 0.1
    """Share served by popularity; the rest is the production system's."""
    num_candidates: Count = 200
    """Candidates that system retrieves per visit."""
    temperature: Positive = 2.0
    """Scale of the noise on its scores."""
    agent_temperatures: tuple[Positive, ...] = (0.7, 1.0, 1.5, 2.0)
    """Temperatures at which base and aligned agent are judged, an agent each."""
    popularity_temperatures: tuple[Positive, ...] = (0.5, 1.0, 2.0)
    """The same of serving by popularity: items in proportion to clicks ** (1 / temperature)."""
    content_temperatures: tuple[Positive, ...] = (0.1, 0.3)
    """The same of serving what is like the items that pleased, by cosine over temperature."""
    ranker_temperatures: tuple[Positive, ...] = (0.1, 0.3)
    """The same of ranking the most popular items by the reward model's opinion of each over temperature."""
    ranker_items: Count = 100
    """How many items that ranker chooses among."""
    mixtures: tuple[SplitShare, ...] = (0.5, 0.8)
    """Shares of the visits that mixtures serve at random; the rest is the aligned agent's, at temperature 1."""
    replicas: Count = 8
    """Answers from which the true value of a slate is averaged, one slate per request and agent."""
    samples: Few = 1
    """Slates of the agent per request, by which the model of the reward says its value."""
    enumerated: Count = 1000
    """Most slates that a catalogue may allow for estimators that sum over all of them (IIPS and PI)."""
    min_rows: NonNegative = 10.0
    """Least effective sample size of an estimate that is not refused."""
    min_rows_share: Share = 0.01
    """The same as a share of the log's visits."""
    min_served: Share = 0.99
    """Least share of an agent's slates that the log could have shown."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_share + self.popularity_share > 1:
            shares = f"random_share={self.random_share} and popularity_share={self.popularity_share}"
            raise ValueError(f"{shares} must add up to at most 1; lower one.")
        for name in pairs_of(self.options, "set"):
            if name in DECIDED:
                raise ValueError(f"set says {name}, which the evaluation decides itself, by {DECIDED[name]}; drop it.")

    def code(self) -> list[tuple[str, str | None]]:
        """What it names besides data; see :mod:`feedgym.trust`."""
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
"""Twelve items in slates of two: 132 slates, so that every estimator has support. Visits are few: whoever has seen all
items several times likes none, and all agents are worth the same."""


def ope_small() -> OPERun:
    """The same where every estimator has support: twelve items, slates of two; it trains its own agents."""
    return OPERun(
        end_to_end="onerec-ipa-smoke", options=SMALL_WORLD, ray="off", users=600, visits=3, ranker_items=12,
        agent_temperatures=(0.5, 1.0, 2.0), content_temperatures=(0.3,), popularity_temperatures=(0.3, 1.0),
    )  # fmt: skip


def ope_smoke() -> OPERun:
    """Everything once, in seconds; its figures mean nothing."""
    return OPERun(
        end_to_end="onerec-ipa-smoke", options=("simulator.num_items=8", "session_length=2", "rounds.num=1"),
        ray="off", logs=2, users=30, visits=3, ranker_items=8, replicas=2, samples=1, agent_temperatures=(1.0,),
        content_temperatures=(0.3,), popularity_temperatures=(1.0,), ranker_temperatures=(0.3,), mixtures=(0.5,),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OPEItemsRun(DataConfig):
    """Off-policy evaluation of agents of single items, on a log that tells with which chance items were shown.

    Of a recorded log (--data), KuaiRand's random exposures can be judged by; of a simulated one, the first places.
    There is no truth: agents have intervals over users, and two halves of the users are held against each other.
    """

    session_length: Length = 5
    """K: items of a simulated log's visits."""
    history_length: Length = 40
    """T, events of the history by which items are like what pleased."""
    behaviours: tuple[str, ...] = ("long_view",)
    """An exposure with any of these earns 1."""
    popularity_temperatures: tuple[Positive, ...] = (0.5, 1.0, 2.0, 4.0)
    """Agents that serve by popularity: items in proportion to such exposures ** (1 / temperature)."""
    content_temperatures: tuple[Positive, ...] = (0.1, 0.3)
    """Agents that serve what is like the items that pleased, by cosine over temperature."""
    exposures: CountOrZero = 20_000
    """Exposures that are judged by, drawn at random where there are more; 0 takes all."""
    held_out: SplitShare = 0.5
    """Share of the users who judge; from the others popularity and a model of the reward are learned."""
    min_rows: NonNegative = 10.0
    """Least effective sample size of an estimate that is not refused."""
    min_rows_share: Share = 0.01
    """The same as a share of the exposures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [name for name in self.behaviours if name not in BEHAVIOURS]:
            raise ValueError(f"Unknown behaviour {unknown[0]!r}; the behaviours are {', '.join(BEHAVIOURS)}.")
        if not self.behaviours:
            raise ValueError(f"behaviours is empty; give one or more of {', '.join(BEHAVIOURS)}.")


def ope_items() -> OPEItemsRun:
    """Item by item on a log with known chances, such as KuaiRand's random exposures (--data FOLDER)."""
    return OPEItemsRun()


def ope_items_smoke() -> OPEItemsRun:
    """The same in seconds, on a tiny simulated log."""
    return OPEItemsRun(log=LogConfig(users=60, visits=4), simulator_options=ShortVideoConfig(num_items=60))


OPE_COMPARISONS: dict[str, Callable[[], Any]] = {
    "ope": ope,
    "ope-small": ope_small,
    "ope-smoke": ope_smoke,
    "ope-items": ope_items,
    "ope-items-smoke": ope_items_smoke,
}
"""What `feedgym compare` offers of it."""
