"""Comparisons as functions: each returns a whole configuration, to be changed field by field."""

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
    """Options of the cascade's retriever, an HSTU, and its training: each user's last items choose the epoch."""

    model: HSTUSizes = field(default_factory=lambda: hstu_retrieval_small().model)
    """The model."""
    history_length: Length = 50
    """T, how many of the newest events of a history are read."""
    session_length: Length = 10
    """K, by which its training sequences are longer than T."""
    behaviours: tuple[str, ...] = ("click",)
    """An examined exposure with any of these is an item taken; only these are predicted."""
    epochs: Passes = 20
    """Most passes over the users; the best epoch by validation is kept."""
    fit: FitConfig = field(default_factory=lambda: hstu_retrieval_small().fit)
    """Optimiser, validation and patience."""
    validation_targets: CountOrZero = 1000
    """Validation targets used after an epoch, drawn once; 0 uses all."""

    def run(self, seed: int) -> HSTURun:
        """The retriever as a separate experiment, for an existing log."""
        return HSTURun(seed=seed, **{name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class RankerStage(Ranged):
    """Options of the cascade's ranker and its training: requests of all users, the latest ones choose the epoch."""

    kind: Literal["genrank", "hstu-rank", "mtgr"] = "genrank"
    """GenRank, HSTU ranking, or MTGR with features that cross the history with a candidate."""
    model: RankerSizes = field(default_factory=lambda: RankerSizes(num_layers=2))
    """Sizes that all rankers have; other options of a ranker keep their defaults."""
    content: bool = True
    """Let GenRank and HSTU ranking also read the items' contents; MTGR sees them in its cross features."""
    validation_share: SplitShare = 0.1
    """Share of the log's requests, the latest ones, that choose the epoch instead of being trained on."""
    epochs: Passes = 4
    """Most passes over the other requests."""
    fit: FitConfig = field(default_factory=lambda: FitConfig(lr=2e-3, patience=1, max_grad_norm=1.0))
    """Optimiser, validation and patience."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sizes()  # inconsistent sizes are reported now

    def sizes(self) -> RankerSizes:
        """The sizes for the ranker's class."""
        contents = {} if self.kind == "mtgr" else {"contents": self.content}
        return plugins.config_type("ranker", self.kind)(**vars(self.model), **contents)

    @property
    def label(self) -> str:
        """The ranker's name for people."""
        return plugins.title_of("ranker", self.kind)


@dataclass(frozen=True, kw_only=True)
class CascadeRun(Ranged):
    """A cascade (retrieve, rank, re-rank) against an end-to-end agent in one simulator, with the cost per request.

    Both learn from the same log, and the same fresh users judge them.
    """

    seed: Seed = 0
    """Seed of weights and batches of the cascade's models and, without --against, of the whole world."""
    against: str | None = None
    """Folder of a finished onerec-ipa run (or tiger-ipa, hstu-ipa), which gives simulator, log, lengths, reward and
    agents."""
    end_to_end: str = "onerec-ipa"
    """Without --against: the preset that trains the end-to-end agent first, inside this run's folder."""
    ray: str = "local"
    """Place to sample that agent's sessions: local, off (in this process), or the address of a Ray cluster."""
    retriever: RetrieverStage = field(default_factory=RetrieverStage)
    """The retriever of the candidates."""
    ranker: RankerStage = field(default_factory=RankerStage)
    """The ranker of behaviours and the watched fraction, which values candidates by the weights of the true reward."""
    cascade: CascadeConfig = field(default_factory=lambda: CascadeConfig(diversity=0.1))
    """Number of candidates to rank, and the rule that makes a session of them."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The judging users."""

    def code(self) -> list[tuple[str, str | None]]:
        """The code that it names, apart from data; see :mod:`feedgym.trust`."""
        return [("ray", self.ray)]


def cascade() -> CascadeRun:
    """HSTU retrieval, GenRank and a diverse re-rank against OneRec before and after alignment."""
    return CascadeRun()


def cascade_smoke() -> CascadeRun:
    """The comparison in seconds; its figures mean nothing."""
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
"""Its presets in `feedgym compare`."""
