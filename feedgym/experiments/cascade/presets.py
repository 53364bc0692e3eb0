"""Comparisons as functions: each returns the whole configuration of a contest, to be changed field by field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from feedgym import plugins
from feedgym.agents.cascade import CascadeConfig
from feedgym.agents.fit import FitConfig
from feedgym.agents.hstu import HSTUSizes
from feedgym.agents.ranker import RankerSizes
from feedgym.experiments.configs import CostConfig, JudgeConfig
from feedgym.experiments.retrieval.presets import HSTURun, hstu_retrieval_small, hstu_retrieval_smoke
from feedgym.ranges import CountOrZero, Length, Passes, Ranged, Seed, SplitShare


@dataclass(frozen=True, kw_only=True)
class RetrieverStage(Ranged):
    """The cascade's retriever, an HSTU, and how it is trained: each user's last items choose the epoch."""

    model: HSTUSizes = field(default_factory=lambda: hstu_retrieval_small().model)
    """The model."""
    history_length: Length = 50
    """T, the newest events of a history that are read."""
    session_length: Length = 10
    """K, by which its training sequences are longer than T."""
    behaviours: tuple[str, ...] = ("click",)
    """An examined exposure with any of these is an item taken: such are foretold."""
    epochs: Passes = 20
    """Passes over the users, at most; the best epoch by validation is kept."""
    fit: FitConfig = field(default_factory=lambda: hstu_retrieval_small().fit)
    """Optimiser, validation and patience."""
    validation_targets: CountOrZero = 1000
    """Validation targets looked at after an epoch, drawn once; 0 looks at all."""

    def run(self, seed: int) -> HSTURun:
        """The retriever as an experiment of its own, for a log that is there already."""
        return HSTURun(seed=seed, **{name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class RankerStage(Ranged):
    """The cascade's ranker and how it is trained: requests of all users, the latest ones choose the epoch."""

    kind: Literal["genrank", "hstu-rank", "mtgr"] = "genrank"
    """GenRank, HSTU ranking, or MTGR with features that cross the history with a candidate."""
    model: RankerSizes = field(default_factory=lambda: RankerSizes(num_layers=2))
    """Sizes that all of them have; whatever else one of them can be told stays at its default."""
    content: bool = True
    """Let GenRank and HSTU ranking read the items' contents beside their ids; MTGR meets them in its cross features."""
    validation_share: SplitShare = 0.1
    """Share of the log's requests, the latest ones, that are not learned from but choose the epoch."""
    epochs: Passes = 4
    """Passes over the other requests, at most."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(lr=2e-3, patience=1, max_grad_norm=1.0))
    """Optimiser, validation and patience."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes()  # what does not fit together is told now

    def sizes(self) -> RankerSizes:
        """The sizes as its class wants them."""
        contents = {} if self.kind == "mtgr" else {"contents": self.content}
        return plugins.config_type("ranker", self.kind)(**vars(self.model), **contents)

    @property
    def label(self) -> str:
        """Its name for people."""
        return plugins.title_of("ranker", self.kind)


@dataclass(frozen=True, kw_only=True)
class CascadeRun(Ranged):
    """A cascade (retrieve, rank, re-rank) against an end-to-end agent in one simulator, with what a request costs each.

    Both learn from the same log, and the same fresh users judge them.
    """

    seed: Seed = 0
    """Decides weights and batches of the cascade's models and, without --against, the whole world."""
    against: str | None = None
    """Folder of a finished onerec-ipa run (or tiger-ipa, hstu-ipa): its simulator, log, lengths, reward and agents."""
    end_to_end: str = "onerec-ipa"
    """Without --against: the preset by which the end-to-end agent is trained first, inside this run's folder."""
    ray: str = "local"
    """Where that agent's sessions are sampled: local, off (in this process), or the address of a Ray cluster."""
    retriever: RetrieverStage = field(default_factory=RetrieverStage)
    """What names the candidates."""
    ranker: RankerStage = field(default_factory=RankerStage)
    """What values them: behaviours and the watched fraction, in the weights of the true reward."""
    cascade: CascadeConfig = field(default_factory=lambda: CascadeConfig(diversity=0.1))
    """How many candidates are ranked, and how a session is made of them."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """Who judges."""

    def code(self) -> list[tuple[str, str | None]]:
        """What it names besides data; see :mod:`feedgym.trust`."""
        return [("ray", self.ray)]


def cascade() -> CascadeRun:
    """HSTU retrieval, GenRank and a diverse re-rank against OneRec before and after alignment."""
    return CascadeRun()


def cascade_smoke() -> CascadeRun:
    """The contest in seconds; its figures mean nothing."""
    small = hstu_retrieval_smoke()
    model = replace(small.model, stream="items", stochastic_alpha=0.0, only_positives=True)
    return CascadeRun(
        end_to_end="onerec-ipa-smoke",
        retriever=RetrieverStage(
            model=model, history_length=8, session_length=3, epochs=1, fit=small.fit, validation_targets=50
        ),
        ranker=RankerStage(model=RankerSizes(d_model=8, num_layers=1), epochs=1),
        cascade=CascadeConfig(candidates=20, diversity=0.2),
        judge=JudgeConfig(users=12, visits=2, beams=2, cost=CostConfig(requests=8, repeats=2)),
    )


CASCADE_COMPARISONS: dict[str, Callable[[], CascadeRun]] = {"cascade": cascade, "cascade-smoke": cascade_smoke}
"""What `feedgym compare` offers of it."""
